"""Numba kernels of the one-step law of declared markets: uniformisation over the states that a step can reach.

Under frozen controls the coordinates are a Markov chain with constant rates, so every expectation over the step solves
``y' = K y + source``, summed as ``exp(h K) = sum_j Poisson(j; c h) (1 + K / c)^j`` with a shift ``c`` that makes the
terms of a plain expectation positive. Where one state of the result is wanted, after ``j`` terms the sum needs the
states within ``terms - j`` events of it only: a `Window` has them by distance, found by following events from the
state. Where all states face the same controls, one sweep over all of them gives everything.
"""

import math
from collections import namedtuple

import numpy as np
from numba import njit

from mmgym.baselines.declared.vectors import LANES, next_sums, scatter_products
from mmgym.compiling import KERNEL
from mmgym.trust_region import SHORTFALL, VALUE, advance, begin, new_search
from mmgym.uniformisation import fill_poisson_weights, num_terms

LEAST_EVENTS = 1e-3  # of the shift, in a step: slower chains are summed as fast as this one
DIFFERENCE = 1e-4  # units of a control: of the first curvature

# A market under parameters: its `mmgym.declared_kernels.rates_function`, the record's bytes, the length of a step.
Chain = namedtuple("Chain", ["rates", "raw", "length"])

# States by distance: `order` (S,) their indices, `place` (S,) where a state is in it or -1, `ends` how many are within
# a distance, `next` (E, S) where in it an event leads to, itself where the event is not open. Then, by place: what
# happens there. `numbers` are how many states and distances there are, whether these are all that can be reached, from
# where on, and how far was asked for.
Window = namedtuple(
    "Window",
    ["order", "place", "ends", "next", "rate", "pay", "flow", "noise", "stay", "source", "extra", "jump", "numbers"],
)
SIZE, LEVELS, WHOLE, AT, ASKED = range(5)


@njit(**KERNEL)
def new_window(events, states):
    """Memory for a window."""
    pairs, single = np.zeros((4, events, states)), np.zeros((4, states))
    window = Window(
        np.zeros(states, np.int64), np.full(states, -1), np.zeros(states + 1, np.int64),
        np.zeros((events, states), np.uint32), pairs[0], pairs[1], single[0], single[1], single[2], single[3], pairs[2],
        pairs[3], np.zeros(5, np.int64),
    )  # fmt: skip
    window.numbers[AT], window.numbers[ASKED] = -1, 8
    return window


@njit(**KERNEL)
def everything(following, window):
    """Make a window of all states, all at distance 0."""
    events, states = following.shape
    for i in range(states):
        window.order[i] = i
        for k in range(events):
            window.next[k, i] = following[k, i] if following[k, i] >= 0 else i
    window.numbers[SIZE], window.numbers[LEVELS], window.numbers[WHOLE] = states, 1, 1
    window.ends[0] = states


@njit(**KERNEL)
def explore(following, state, levels, window):
    """Make a window of the states within ``levels`` events of a state."""
    events = following.shape[0]
    order, place, nexts = window.order, window.place, window.next
    for i in range(window.numbers[SIZE]):
        place[order[i]] = -1
    order[0], place[state], size, begun = state, 0, 1, 0
    window.ends[0], level = 1, 0
    while level < levels:
        end = size
        for i in range(begun, end):
            for k in range(events):
                reached = following[k, order[i]]
                if reached >= 0 and place[reached] < 0:
                    place[reached] = size
                    order[size] = reached
                    size += 1
        begun = end
        if size == end:
            break
        level += 1
        window.ends[level] = size
    for i in range(size):
        for k in range(events):
            reached = following[k, order[i]]
            nexts[k, i] = place[reached] if reached >= 0 and place[reached] >= 0 else i
    window.numbers[SIZE], window.numbers[LEVELS] = size, level + 1
    window.numbers[WHOLE], window.numbers[AT], window.numbers[ASKED] = size == begun, state, levels


@njit(**KERNEL)
def within(window, distance):
    """How many states of a window are within a distance."""
    return window.ends[min(distance, window.numbers[LEVELS] - 1)]


@njit(**KERNEL)
def happen(market, step, rows, controls, weights, window, buffer):
    """Fill in what happens in the states of a window; the highest total intensity, or -1 if an intensity is wrong."""
    return market.rates(
        market.raw, step, rows, window.order, window.numbers[SIZE], controls, weights, window.rate, window.pay,
        window.flow, window.noise, buffer,
    )  # fmt: skip


@njit(**KERNEL)
def moment_terms(length, window, highest, second):
    """Fill in the terms of a sum of moments from what happens; the shift."""
    shift = max(highest, LEAST_EVENTS / length)
    inverse = 1.0 / shift
    events = window.rate.shape[0]
    for i in range(window.numbers[SIZE]):
        stay, source, square = 1.0, window.flow[i], window.noise[i]
        for k in range(events):
            rate, pay = window.rate[k, i], window.pay[k, i]
            stay -= rate * inverse
            source += rate * pay
            square += rate * pay * pay
            window.jump[k, i] = rate * inverse
            if second:
                window.extra[k, i] = 2.0 * rate * pay * inverse
        window.stay[i], window.source[i] = stay, source * inverse
        if second:
            window.noise[i] = square * inverse
            window.flow[i] *= 2.0 * inverse
    return shift


@njit(**KERNEL)
def next_moments(window, size, f, g, m, o):
    """The next terms (S,) of the first moment, and of the second where there is one, in the first ``size`` places."""
    events = window.rate.shape[0]
    for i in range(size):
        g[i] = window.stay[i] * f[i] + window.source[i]
    for k in range(events):
        jump, following = window.jump[k], window.next[k]
        for i in range(size):
            g[i] += jump[i] * f[following[i]]
    if len(m) == 0:
        return
    for i in range(size):
        o[i] = window.stay[i] * m[i] + window.flow[i] * f[i] + window.noise[i]
    for k in range(events):
        jump, extra, following = window.jump[k], window.extra[k], window.next[k]
        for i in range(size):
            o[i] += jump[i] * m[following[i]] + extra[i] * f[following[i]]


@njit(**KERNEL)
def look(following, state, levels, window):
    """Make a window of the states within ``levels`` events of a state, unless it is one already."""
    if window.numbers[AT] != state or (levels > window.numbers[ASKED] and not window.numbers[WHOLE]):
        explore(following, state, max(levels, window.numbers[ASKED]), window)


@njit(**KERNEL)
def suffices(window, terms):
    """Whether a window has all states that a sum of so many terms needs."""
    return window.numbers[WHOLE] or terms <= window.numbers[ASKED]


@njit(**KERNEL)
def pair_moments(market, step, rows, following, states, controls, weights, values, result):
    """First (and second) moments of a functional over one step and the rest, of pairs of state and controls.

    Parameters
    ----------
    market : Chain
    step : int
    rows, following : (S, C), (E, S) int
        Coordinates, and the states that events lead to.
    states, controls : (M,) int, (M, controls)
    weights : (7,)
        Of the functional.
    values : (S, K)
        ``K = 1``: expectation of the rest. ``K = 2``: and its second moment.
    result : (M, K)
        Out.

    Returns
    -------
    int
        The first pair with a wrong intensity, or -1.
    """
    count, moments = values.shape
    events = following.shape[0]
    window, buffer = new_window(events, count), np.zeros((2, events))
    f, g = np.empty(count), np.empty(count)
    m, o = (np.empty(count), np.empty(count)) if moments == 2 else (np.empty(0), np.empty(0))
    poisson = np.empty(0)
    for row in range(len(states)):
        terms, mean = 0, 0.0
        while True:
            look(following, states[row], terms + 2, window)
            highest = happen(market, step, rows, controls[row], weights, window, buffer)
            if highest < 0.0:
                return row
            mean = moment_terms(market.length, window, highest, moments == 2) * market.length
            terms = num_terms(mean)
            if suffices(window, terms):
                break
        if len(poisson) < terms:
            poisson = np.empty(terms)
        fill_poisson_weights(mean, poisson[:terms])
        for i in range(within(window, terms)):
            f[i] = values[window.order[i], 0]
            if moments == 2:
                m[i] = values[window.order[i], 1]
        first = poisson[0] * f[0]
        second = poisson[0] * m[0] if moments == 2 else 0.0
        for j in range(1, terms):
            next_moments(window, within(window, terms - j), f, g, m, o)
            f, g = g, f
            m, o = o, m
            first += poisson[j] * f[0]
            if moments == 2:
                second += poisson[j] * m[0]
        result[row, 0] = first
        if moments == 2:
            result[row, 1] = second
    return -1


# Sweeps side by side (`mmgym.baselines.declared.vectors`) of G groups of eight controls: by state and event, then by
# lane. The first event leaves a state where it is. `sources` are those of F first moments, then of the second moments
# of the first M of them, `extras` what these have of the first ones: tuples of (G, S, LANES), (G, S, E + 1, LANES).
Lanes = namedtuple("Lanes", ["next", "jump", "sources", "extras", "shifts"])
FEW = 1  # rows that are swept one by one


@njit(**KERNEL)
def fill_lanes(market, step, rows, following, controls, weights, places, jump, shifts, source, extra, square):
    """Fill in the terms of sums of moments of a functional under controls (G, C), the last of them repeated.

    Parameters
    ----------
    weights : (7,)
        Of the functional.
    places, jump, shifts : (S, E + 1), (G, S, E + 1, LANES), (G,)
        Out, members of `Lanes` that all functionals share.
    source, extra, square : (G, S, LANES), (G, S, E + 1, LANES), (G, S, LANES)
        Out, members of its tuples; the last two are empty where no second moment is wanted.

    Returns
    -------
    int
        The first row with a wrong intensity, or -1.
    """
    events, states = following.shape
    window, buffer, second = new_window(events, states), np.zeros((2, events)), len(extra) > 0
    everything(following, window)
    for i in range(states):
        places[i, 0] = i
        for k in range(events):
            places[i, k + 1] = window.next[k, i]
    for g in range(len(shifts)):
        shift = LEAST_EVENTS / market.length
        for b in range(LANES):
            at = min(g * LANES + b, len(controls) - 1)
            highest = happen(market, step, rows, controls[at], weights, window, buffer)
            if highest < 0.0:
                return at
            shift = max(shift, highest)
            for i in range(states):
                leaving, gain, more = 0.0, window.flow[i], window.noise[i]
                for k in range(events):
                    rate, pay = window.rate[k, i], window.pay[k, i]
                    leaving += rate
                    gain += rate * pay
                    more += rate * pay * pay
                    jump[g, i, k + 1, b] = rate
                    if second:
                        extra[g, i, k + 1, b] = 2.0 * rate * pay
                jump[g, i, 0, b], source[g, i, b] = leaving, gain
                if second:
                    extra[g, i, 0, b], square[g, i, b] = 2.0 * window.flow[i], more
        inverse = 1.0 / shift
        shifts[g] = shift
        jump[g] *= inverse
        source[g] *= inverse
        if second:
            extra[g] *= inverse
            square[g] *= inverse
        for i in range(states):
            for b in range(LANES):
                jump[g, i, 0, b] = 1.0 - jump[g, i, 0, b]
    return -1


@njit(**KERNEL)
def add_lanes(weight, numbers, total):
    """``total += weight numbers``, of (S, lanes)."""
    one, other = numbers.reshape(-1), total.reshape(-1)
    for i in range(len(one)):
        other[i] += weight * one[i]


@njit(**KERNEL)
def sweep_lanes(length, lanes, values, terms, following, result):
    """As `sweep_moments`, eight controls at once and of several functionals, from what `fill_lanes` found.

    The sum ``sum_j Poisson(j) M^j (values + sources of later terms)`` is Horner's, from its last term on.

    Parameters
    ----------
    values : (S, F + M)
        Of the rest: first moments, then second ones.
    terms, following : tuple of F + M arrays (1, S, LANES)
        Memory.
    result : (G, S, F + M)
        Out.
    """
    count, columns = values.shape
    for g in range(len(lanes.shifts)):
        mean = lanes.shifts[g] * length
        poisson = np.empty(num_terms(mean))
        fill_poisson_weights(mean, poisson)
        later = poisson[-1]
        for c in range(columns):
            for i in range(count):
                terms[c][0, i] = later * values[i, c]
        for j in range(len(poisson) - 2, -1, -1):
            for i in range(count):
                next_sums(
                    g, 0, i, poisson[j], later, values, lanes.sources, lanes.jump, lanes.extras, lanes.next, terms,
                    following,
                )  # fmt: skip
            terms, following = following, terms
            later += poisson[j]
        row = g * LANES
        for b in range(min(LANES, len(result) - row)):
            for i in range(count):
                for c in range(columns):
                    result[row + b, i, c] = terms[c][0, i, b]


@njit(**KERNEL)
def sweep_nested(length, lanes, begins, shares, values, terms, following):
    """As `sweep_lanes`, where groups of controls tell the late terms of those after them.

    Parameters
    ----------
    begins : (G,) int
        The term of which a group is told by those before it; those from there on are small. Not increasing; the first
        group has all terms.
    shares : (G, G, LANES, LANES)
        What the lanes of a group are told by those of the groups before it.
    terms, following : tuple of F + M arrays (G, S, LANES)
        Memory.

    Returns
    -------
    tuple
        Which of the two has the values.
    """
    count, columns = values.shape
    mean, groups = lanes.shifts[0] * length, 1
    poisson = np.empty(num_terms(mean))
    fill_poisson_weights(mean, poisson)
    later = poisson[-1]
    for c in range(columns):
        for i in range(count):
            terms[c][0, i] = later * values[i, c]
    for j in range(len(poisson) - 2, -1, -1):
        while groups < len(begins) and j < begins[groups]:
            for c in range(columns):
                terms[c][groups] = np.dot(terms[c][0], shares[groups, 0])
                for h in range(1, groups):
                    terms[c][groups] += np.dot(terms[c][h], shares[groups, h])
            groups += 1
        for g in range(groups):
            for i in range(count):
                next_sums(
                    g, g, i, poisson[j], later, values, lanes.sources, lanes.jump, lanes.extras, lanes.next, terms,
                    following,
                )  # fmt: skip
        terms, following = following, terms
        later += poisson[j]
    return terms


@njit(**KERNEL)
def lanes_at(basis, terms, states, result):
    """Values (M, K) of states (M,), from K arrays (G, S, LANES) and the weights (M, G LANES) of all lanes."""
    for i in range(len(states)):
        for c in range(len(terms)):
            total = 0.0
            for g in range(len(terms[c])):
                for b in range(LANES):
                    total += basis[i, g * LANES + b] * terms[c][g, states[i], b]
            result[i, c] = total


@njit(**KERNEL)
def total_products(places, size, result):
    """``T_k(x) T_l(y)``, ``k + l < size``, the last index first, at places (M, 2): result (M, G)."""
    one, other = np.ones(max(size, 2)), np.ones(max(size, 2))
    for i in range(len(places)):
        x, y = places[i]
        one[1], other[1] = x, y
        for k in range(2, size):
            one[k] = 2.0 * x * one[k - 1] - one[k - 2]
            other[k] = 2.0 * y * other[k - 1] - other[k - 2]
        at = 0
        for k in range(size):
            for j in range(size - k):
                result[i, at + j] = one[k] * other[j]
            at += size - k


@njit(**KERNEL)
def law_lanes(length, lanes, masses, result):
    """As `sweep_laws`, eight controls at once, from what `fill_lanes` found."""
    count = masses.shape[1]
    f, g, total = np.empty((count, LANES)), np.empty((count, LANES)), np.zeros((count, LANES))
    for number in range(len(lanes.shifts)):
        jump, mean = lanes.jump[number], lanes.shifts[number] * length
        poisson = np.empty(num_terms(mean))
        fill_poisson_weights(mean, poisson)
        f[:] = 0.0
        for b in range(min(LANES, len(masses) - number * LANES)):
            f[:, b] = masses[number * LANES + b]
        add_lanes(poisson[0], f, total)
        for j in range(1, len(poisson)):
            g[:] = 0.0
            for i in range(count):
                scatter_products(i, jump, lanes.next, f, g)
            f, g = g, f
            add_lanes(poisson[j], f, total)
    for i in range(count):
        result[i] += total[i].sum()


@njit(**KERNEL)
def interpolate(basis, heights, states, result):
    """Values (M, K) of states (M,), from heights (G, S, K) of all states at nodes and the weights (M, G) of nodes."""
    nodes, columns = heights.shape[0], heights.shape[2]
    result[:] = 0.0
    for g in range(nodes):
        for i in range(len(states)):
            for c in range(columns):
                result[i, c] += basis[i, g] * heights[g, states[i], c]


@njit(**KERNEL)
def largest(heights):
    """The largest of the absolute values (G, S, K), over the nodes: (S, K)."""
    most = np.zeros(heights.shape[1:])
    for g in range(len(heights)):
        for i in range(heights.shape[1]):
            for c in range(heights.shape[2]):
                most[i, c] = max(most[i, c], abs(heights[g, i, c]))
    return most


@njit(**KERNEL)
def sweep_moments(market, step, rows, following, controls, weights, values, result):
    """As `pair_moments`, of all states under each of controls (G, C): result (G, S, K); the first wrong G, or -1."""
    count, moments = values.shape
    events = following.shape[0]
    window, buffer = new_window(events, count), np.zeros((2, events))
    everything(following, window)
    f, g = np.empty(count), np.empty(count)
    m, o = (np.empty(count), np.empty(count)) if moments == 2 else (np.empty(0), np.empty(0))
    for row in range(len(controls)):
        highest = happen(market, step, rows, controls[row], weights, window, buffer)
        if highest < 0.0:
            return row
        mean = moment_terms(market.length, window, highest, moments == 2) * market.length
        poisson = np.empty(num_terms(mean))
        fill_poisson_weights(mean, poisson)
        f[:] = values[:, 0]
        if moments == 2:
            m[:] = values[:, 1]
        for i in range(count):
            result[row, i, 0] = poisson[0] * f[i]
            if moments == 2:
                result[row, i, 1] = poisson[0] * m[i]
        for j in range(1, len(poisson)):
            next_moments(window, count, f, g, m, o)
            f, g = g, f
            m, o = o, m
            for i in range(count):
                result[row, i, 0] += poisson[j] * f[i]
            if moments == 2:
                for i in range(count):
                    result[row, i, 1] += poisson[j] * m[i]
    return -1


@njit(**KERNEL)
def exponential_terms(length, window, exponents, highest, flat, stay, jump):
    """Fill in the terms of a sum of exponentials, stay (S, K) and jump (E, S, K); the shift and the number of terms.

    ``flat`` (S,) are 1, or 0 of states that paths must not enter.
    """
    events, columns = window.rate.shape[0], len(exponents)
    slowest, fastest, largest = 0.0, 0.0, 0.0
    for i in range(window.numbers[SIZE]):
        rate = 0.0
        for k in range(events):
            rate += window.rate[k, i]
        for c in range(columns):
            z = exponents[c]
            growth = z * window.flow[i] + 0.5 * z * z * window.noise[i]
            slowest, fastest = min(slowest, growth.real), max(fastest, abs(growth))
            stay[i, c] = growth - rate
            into = 0.0
            for k in range(events):
                jump[k, i, c] = window.rate[k, i] * np.exp(z * window.pay[k, i])
                into += abs(jump[k, i, c])
            largest = max(largest, into)
    shift = max(highest - slowest, LEAST_EVENTS / length)
    inverse = 1.0 / shift
    for i in range(window.numbers[SIZE]):
        here = flat[window.order[i]] * inverse
        for c in range(columns):
            stay[i, c] = (shift + stay[i, c]) * here
            for k in range(events):
                jump[k, i, c] *= here
    return shift, num_terms((math.hypot(shift, fastest) + largest) * length)


@njit(**KERNEL)
def next_exponentials(window, size, stay, jump, y, z):
    """The next terms (S, K) in the first ``size`` places."""
    events, columns = window.rate.shape[0], y.shape[1]
    for i in range(size):
        for c in range(columns):
            z[i, c] = stay[i, c] * y[i, c]
    for k in range(events):
        following = window.next[k]
        for i in range(size):
            for c in range(columns):
                z[i, c] += jump[k, i, c] * y[following[i], c]


@njit(**KERNEL)
def pair_exponentials(market, step, rows, following, states, controls, weights, exponents, flat, values, result):
    """``E[exp(z R)]`` over one step and the rest, for exponents (K,); otherwise as `pair_moments`.

    Only of paths through states where ``flat`` (S,) is 1.
    """
    count, columns = values.shape
    events = following.shape[0]
    window, buffer = new_window(events, count), np.zeros((2, events))
    stay, jump = np.empty_like(values), np.empty((events, count, columns), values.dtype)
    y, z = np.empty_like(values), np.empty_like(values)
    for row in range(len(states)):
        terms, shift = 0, 0.0
        while True:
            look(following, states[row], terms + 2, window)
            highest = happen(market, step, rows, controls[row], weights, window, buffer)
            if highest < 0.0:
                return row
            shift, terms = exponential_terms(market.length, window, exponents, highest, flat, stay, jump)
            if suffices(window, terms):
                break
        for i in range(within(window, terms)):
            for c in range(columns):
                y[i, c] = values[window.order[i], c] * flat[window.order[i]]
        log_weight = -shift * market.length
        weight = math.exp(log_weight)
        for c in range(columns):
            result[row, c] = weight * y[0, c]
        for j in range(1, terms):
            next_exponentials(window, within(window, terms - j), stay, jump, y, z)
            y, z = z, y
            log_weight += math.log(shift * market.length / j)
            weight = math.exp(log_weight)
            for c in range(columns):
                result[row, c] += weight * y[0, c]
    return -1


@njit(**KERNEL)
def sweep_exponentials(market, step, rows, following, controls, weights, exponents, flat, values, result):
    """As `pair_exponentials`, of all states under each of the controls (G, C): result (G, S, K)."""
    count, columns = values.shape
    events = following.shape[0]
    window, buffer = new_window(events, count), np.zeros((2, events))
    everything(following, window)
    stay, jump = np.empty_like(values), np.empty((events, count, columns), values.dtype)
    y, z = np.empty_like(values), np.empty_like(values)
    for row in range(len(controls)):
        highest = happen(market, step, rows, controls[row], weights, window, buffer)
        if highest < 0.0:
            return row
        shift, terms = exponential_terms(market.length, window, exponents, highest, flat, stay, jump)
        log_weight = -shift * market.length
        weight = math.exp(log_weight)
        for i in range(count):
            for c in range(columns):
                y[i, c] = values[i, c] * flat[i]
                result[row, i, c] = weight * y[i, c]
        for j in range(1, terms):
            next_exponentials(window, count, stay, jump, y, z)
            y, z = z, y
            log_weight += math.log(shift * market.length / j)
            weight = math.exp(log_weight)
            for i in range(count):
                for c in range(columns):
                    result[row, i, c] += weight * y[i, c]
    return -1


@njit(**KERNEL)
def push(window, size, reached, f, g):
    """The next terms of a law (S,), which has ``size`` places now and will have ``reached`` ones."""
    for i in range(reached):
        g[i] = 0.0
    for i in range(size):
        if f[i] != 0.0:
            g[i] += window.stay[i] * f[i]
            for k in range(window.rate.shape[0]):
                g[window.next[k, i]] += window.jump[k, i] * f[i]


@njit(**KERNEL)
def pair_laws(market, step, rows, following, states, controls, masses, into, result):
    """Add to laws ``into`` (M,) of (G, S) what a step makes of masses (M,) in states (M,) under controls (M, C).

    Returns
    -------
    int
        The first pair with a wrong intensity, or -1.
    """
    events, count = following.shape
    window, buffer, none = new_window(events, count), np.zeros((2, events)), np.zeros(7)
    f, g = np.empty(count), np.empty(count)
    for row in range(len(states)):
        terms, mean = 0, 0.0
        while True:
            look(following, states[row], terms + 2, window)
            highest = happen(market, step, rows, controls[row], none, window, buffer)
            if highest < 0.0:
                return row
            mean = moment_terms(market.length, window, highest, False) * market.length
            terms = num_terms(mean)
            if suffices(window, terms):
                break
        poisson = np.empty(terms)
        fill_poisson_weights(mean, poisson)
        f[: within(window, terms)] = 0.0
        f[0] = masses[row]
        for j in range(terms):
            if j > 0:
                push(window, within(window, j - 1), within(window, j), f, g)
                f, g = g, f
            for i in range(within(window, j)):
                result[into[row], window.order[i]] += poisson[j] * f[i]
    return -1


@njit(**KERNEL)
def sweep_laws(market, step, rows, following, controls, masses, result):
    """Add the law (S,) after a step from masses (G, S) under each of the controls (G, C); the first wrong G, or -1."""
    events, count = following.shape
    window, buffer, none = new_window(events, count), np.zeros((2, events)), np.zeros(7)
    everything(following, window)
    f, g = np.empty(count), np.empty(count)
    for row in range(len(controls)):
        highest = happen(market, step, rows, controls[row], none, window, buffer)
        if highest < 0.0:
            return row
        mean = moment_terms(market.length, window, highest, False) * market.length
        poisson = np.empty(num_terms(mean))
        fill_poisson_weights(mean, poisson)
        f[:] = masses[row]
        for j in range(len(poisson)):
            if j > 0:
                push(window, count, count, f, g)
                f, g = g, f
            for i in range(count):
                result[i] += poisson[j] * f[i]
    return -1


# The criterion and its derivatives in continuous controls

# By continuous control (B, ..): slopes of the coefficients of a window; y and its slopes (1 + B, S), this term and the
# next.
Slopes = namedtuple("Slopes", ["stay", "source", "jump", "y", "z", "out", "rate", "pay", "flow"])


@njit(**KERNEL)
def new_slopes(controls, events, states):
    """Memory for the slopes of a window."""
    return Slopes(
        np.zeros((controls, states)), np.zeros((controls, states)), np.zeros((controls, events, states)),
        np.zeros((controls + 1, states)), np.zeros((controls + 1, states)), np.zeros(controls + 1),
        np.zeros((events, states)), np.zeros((events, states)), np.zeros(states),
    )  # fmt: skip


@njit(**KERNEL)
def slope_terms(market, derive, step, rows, row, free, aversion, window, slopes, highest, buffer):
    """Fill in the terms of the criterion and of its slopes in controls ``row[free]``; the shift and their number."""
    events, controls, size = window.rate.shape[0], len(free), window.numbers[SIZE]
    slowest, fastest, largest = 0.0, 0.0, 0.0
    for i in range(size):
        rate, into, source = 0.0, 0.0, window.flow[i]
        for k in range(events):
            intensity, pay = window.rate[k, i], window.pay[k, i]
            rate += intensity
            if aversion == 0.0:
                window.jump[k, i] = intensity
                source += intensity * pay
            else:
                window.extra[k, i] = math.exp(-aversion * pay)
                window.jump[k, i] = intensity * window.extra[k, i]
            into += window.jump[k, i]
        growth = 0.0
        if aversion != 0.0:
            growth = -aversion * window.flow[i] + 0.5 * aversion * aversion * window.noise[i]
            source = 0.0
        slowest, fastest, largest = min(slowest, growth), max(fastest, growth), max(largest, into)
        window.stay[i], window.source[i] = growth - rate, source
    shift = max(highest - slowest, LEAST_EVENTS / market.length)
    inverse = 1.0 / shift
    for i in range(size):
        window.stay[i] = (shift + window.stay[i]) * inverse
        window.source[i] *= inverse
    for k in range(events):
        for i in range(size):
            window.jump[k, i] *= inverse
    for j in range(controls):
        derive(
            market.raw, step, rows, window.order, size, row, free[j], slopes.rate, slopes.pay, slopes.flow, buffer
        )  # fmt: skip
        for i in range(size):
            flow = slopes.flow[i]
            stay = 0.0
            for k in range(events):
                rate, pay = slopes.rate[k, i], slopes.pay[k, i]
                stay -= rate
                if aversion == 0.0:
                    flow += rate * window.pay[k, i] + window.rate[k, i] * pay
                    slopes.jump[j, k, i] = rate * inverse
                else:
                    slopes.jump[j, k, i] = (rate - aversion * window.rate[k, i] * pay) * window.extra[k, i] * inverse
            if aversion == 0.0:
                slopes.stay[j, i], slopes.source[j, i] = stay * inverse, flow * inverse
            else:
                slopes.stay[j, i], slopes.source[j, i] = (stay - aversion * flow) * inverse, 0.0
    return shift, num_terms((shift + fastest + max(largest - highest, 0.0)) * market.length) + 1


@njit(**KERNEL)
def value_and_slopes(
    market, derive, step, rows, following, state, row, free, weights, aversion, values, window, slopes, buffer, poisson
):
    """One-step criterion of a state and controls, and its slopes in the controls ``free``, into ``slopes.out``.

    False if an intensity is wrong.
    """
    terms, shift = 0, 0.0
    while True:
        look(following, state, terms + 2, window)
        highest = happen(market, step, rows, row, weights, window, buffer)
        if highest < 0.0:
            return False
        shift, terms = slope_terms(market, derive, step, rows, row, free, aversion, window, slopes, highest, buffer)
        if suffices(window, terms):
            break
    mean, controls, events = shift * market.length, len(free), window.rate.shape[0]
    chances = poisson[:terms] if terms <= len(poisson) else np.empty(terms)
    fill_poisson_weights(mean, chances)
    y, z = slopes.y, slopes.z
    for i in range(within(window, terms)):
        y[0, i] = values[window.order[i]]
        for j in range(controls):
            y[j + 1, i] = 0.0
    for j in range(controls + 1):
        slopes.out[j] = chances[0] * y[j, 0]
    for term in range(1, terms):
        size = within(window, terms - term)
        for j in range(controls + 1):
            here, there = y[j], z[j]
            for i in range(size):
                there[i] = window.stay[i] * here[i]
            for k in range(events):
                jump, nexts = window.jump[k], window.next[k]
                for i in range(size):
                    there[i] += jump[i] * here[nexts[i]]
        first = y[0]
        for i in range(size):
            z[0, i] += window.source[i]
        for j in range(controls):
            there, stay, source = z[j + 1], slopes.stay[j], slopes.source[j]
            for i in range(size):
                there[i] += stay[i] * first[i] + source[i]
            for k in range(events):
                jump, nexts = slopes.jump[j, k], window.next[k]
                for i in range(size):
                    there[i] += jump[i] * first[nexts[i]]
        y, z = z, y
        for j in range(controls + 1):
            slopes.out[j] += chances[term] * y[j, 0]
    return True


@njit(**KERNEL)
def pair_slopes(
    market, derive, step, rows, following, states, controls, free, weights, aversion, values, result, gradient
):
    """One-step criterion (M,) of pairs, its derivatives (M, B) in controls ``free`` (B,); the first wrong pair, or -1.

    ``derive`` is the market's `mmgym.declared_kernels.slopes_function`. ``aversion`` > 0: of
    ``E[exp(-aversion R)]``; ``values`` (S,).
    """
    events, count = following.shape
    window, slopes = new_window(events, count), new_slopes(len(free), events, count)
    buffer, poisson = np.zeros((2, events)), np.empty(256)
    for i in range(len(states)):
        if not value_and_slopes(
            market, derive, step, rows, following, states[i], controls[i], free, weights, aversion, values, window,
            slopes, buffer, poisson,
        ):  # fmt: skip
            return i
        result[i] = slopes.out[0]
        gradient[i] = slopes.out[1:]
    return -1


@njit(**KERNEL)
def improve(
    market,
    derive,
    step,
    rows,
    following,
    row,
    free,
    weights,
    aversion,
    values,
    low,
    high,
    units,
    noise,
    controls,
    best,
    shortfalls,
):
    """Best controls of every state near a guess, by `mmgym.trust_region`; the first state of a wrong intensity, or -1.

    Parameters
    ----------
    row, free : (C,), (B,) int
        Controls, and which of them are looked for.
    low, high, units : (B,)
        Their bounds, and lengths on which the criterion bends.
    noise : (S,)
        Rounding error of the values.
    controls : (S, B)
        In: guess. Out: best controls.
    best, shortfalls : (S,)
        Out: best values, and what a further move promises.
    """
    events, count = following.shape
    number = controls.shape[1]
    window, slopes = new_window(events, count), new_slopes(number, events, count)
    buffer, poisson = np.zeros((2, events)), np.empty(256)
    search, unknown = new_search(number), np.empty((0, 0))
    moved, base, slope = row.copy(), np.empty(number), np.empty(number)
    sign = 1.0 if aversion == 0.0 else -1.0
    for i in range(count):
        begin(search, controls[i])
        first = True
        while True:
            moved[free] = search.trial
            if not value_and_slopes(
                market, derive, step, rows, following, i, moved, free, weights, aversion, values, window, slopes,
                buffer, poisson,
            ):  # fmt: skip
                return i
            value = sign * slopes.out[0]
            slope[:] = sign * slopes.out[1:]
            if first:
                first = False
                base[:] = slope
                for j in range(number):
                    way = DIFFERENCE * units[j]
                    if controls[i, j] + way > high[j]:
                        way = -way
                    moved[free] = controls[i]
                    moved[free[j]] += way
                    if not value_and_slopes(
                        market, derive, step, rows, following, i, moved, free, weights, aversion, values, window,
                        slopes, buffer, poisson,
                    ):  # fmt: skip
                        return i
                    for k in range(number):
                        search.curvature[j, k] = (sign * slopes.out[k + 1] - base[k]) / way
                for j in range(number):
                    for k in range(j):
                        mean = 0.5 * (search.curvature[j, k] + search.curvature[k, j])
                        search.curvature[j, k] = search.curvature[k, j] = mean
            if advance(search, value, slope, unknown, low, high, units, noise[i]):
                break
        controls[i] = search.point
        best[i] = sign * search.numbers[VALUE]
        shortfalls[i] = search.numbers[SHORTFALL]
    return -1


# The criterion as a polynomial in one or two controls, of all states at once


@njit(**KERNEL)
def chebyshev(x, values, slopes, bends):
    """Fill in the Chebyshev polynomials at ``x`` in [-1, 1], and their first two derivatives."""
    values[0], slopes[0], bends[0] = 1.0, 0.0, 0.0
    if len(values) > 1:
        values[1], slopes[1], bends[1] = x, 1.0, 0.0
    for k in range(2, len(values)):
        values[k] = 2.0 * x * values[k - 1] - values[k - 2]
        slopes[k] = 2.0 * values[k - 1] + 2.0 * x * slopes[k - 1] - slopes[k - 2]
        bends[k] = 4.0 * slopes[k - 1] + 2.0 * x * bends[k - 1] - bends[k - 2]


@njit(**KERNEL)
def polynomial(table, low, high, place, t, u, slope, curvature):
    """A polynomial with coefficients (K, L) at a place, and its derivatives; ``t``, ``u`` (3, K), (3, L) are memory."""
    first, second = table.shape
    number, scale = len(low), 2.0 / (high - low)
    chebyshev((place[0] - low[0]) * scale[0] - 1.0, t[0], t[1], t[2])
    chebyshev((place[-1] - low[-1]) * scale[-1] - 1.0 if number == 2 else 0.0, u[0], u[1], u[2])
    value = d = e = dd = de = ee = 0.0
    for k in range(first):
        plain = once = twice = 0.0
        for j in range(second):
            plain += table[k, j] * u[0, j]
            once += table[k, j] * u[1, j]
            twice += table[k, j] * u[2, j]
        value += t[0, k] * plain
        d += t[1, k] * plain
        dd += t[2, k] * plain
        e += t[0, k] * once
        de += t[1, k] * once
        ee += t[0, k] * twice
    slope[0], curvature[0, 0] = d * scale[0], dd * scale[0] * scale[0]
    if number == 2:
        slope[1], curvature[1, 1] = e * scale[1], ee * scale[1] * scale[1]
        curvature[0, 1] = curvature[1, 0] = de * scale[0] * scale[1]
    return value


@njit(**KERNEL)
def polynomial_slopes(coefficients, low, high, states, controls, result, slopes):
    """Values (M,) and derivatives (M, B) of the polynomials (S, K, L) of states (M,) at controls (M, B)."""
    t, u = np.zeros((3, coefficients.shape[1])), np.zeros((3, coefficients.shape[2]))
    curvature = np.empty((len(low), len(low)))
    for i in range(len(states)):
        result[i] = polynomial(coefficients[states[i]], low, high, controls[i], t, u, slopes[i], curvature)


@njit(**KERNEL)
def improve_polynomials(coefficients, aversion, low, high, units, noise, controls, best, shortfalls):
    """Best controls (S, C) of every state near a guess, of polynomials (S, K, L); otherwise as `improve`.

    ``C`` is 1, with ``L`` 1, or 2.
    """
    states, first, second = coefficients.shape
    number = len(low)
    t, u = np.zeros((3, first)), np.zeros((3, second))
    search = new_search(number)
    slope, curvature = np.empty(number), np.empty((number, number))
    sign = 1.0 if aversion == 0.0 else -1.0
    for i in range(states):
        begin(search, controls[i])
        while True:
            value = polynomial(coefficients[i], low, high, search.trial, t, u, slope, curvature)
            slope[:] *= sign
            curvature[:] *= sign
            if advance(search, sign * value, slope, curvature, low, high, units, noise[i]):
                break
        controls[i] = search.point
        best[i] = sign * search.numbers[VALUE]
        shortfalls[i] = search.numbers[SHORTFALL]
