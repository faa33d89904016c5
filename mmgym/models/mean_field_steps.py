"""Numba kernels of one decision step of the mean-field game, with depths frozen: exact to rounding.

Inside a step of length ``h`` a player's inventory is a birth-death chain with constant rates, independent of the
signal. With ``P = 1 + A / c`` uniformised at the rate ``c`` of both sides, and a running reward ``r(q) + mu(s) q``,

    E[v(q_h) + int_0^h (r(q_s) + mu(s) q_s) ds] = sum_j (pi_j P^j v + rho_j P^j r + beta_j P^j q),
    pi_j = Poisson(j; c h),    rho_j = int Poisson(j; c s) ds,    beta_j = int mu(s) Poisson(j; c s) ds,

``beta`` by Gauss-Legendre quadrature. The sum is taken from its last term on, ``U_j = (pi_j v + rho_j r + beta_j q) +
P U_{j + 1}``, so that ``U_j`` is needed within ``j`` orders of the inventory that is asked for. Its derivatives in the
two intensities obey the differentiated recursion (``c`` is only a device and stays constant).
"""

import math
from collections import namedtuple

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL, SCALAR
from mmgym.trust_region import SHORTFALL, VALUE, advance, begin, new_search, rounding
from mmgym.uniformisation import fill_poisson_weights, num_terms

CROWDED = 20.0  # expected fills, times what one changes of the next one's best depth: there may be several maxima
MAX_TERMS = 4096  # of a step of 2400 expected events, the most that a player can have, there are 2876
ONE = np.uint64(1)  # unsigned loop indices spare the check for negative ones, and the inner loops become vectors


@njit(**KERNEL)
def _terms(mean):
    """Terms of a step of so many expected events, for arrays of ``MAX_TERMS``."""
    terms = num_terms(mean) + 2
    if terms > MAX_TERMS:
        raise ArithmeticError("depths so far below -max_depth give more than 3500 expected fills a step: raise them")
    return terms


# The sums' weights for uniformisation rates in a geometric row, worked out when a rate is first asked for: any rate of
# at least both sides' does, so that states with similar fills share them. `terms` (R,) are 0 until then; pi, rho (R, J)
# and beta (R, B, J), by the signal at the start.
StepWeights = namedtuple("StepWeights", ["rates", "terms", "pi", "rho", "beta", "present", "scratch"])
SPACING = 2.0**0.25  # of the row


@njit(**KERNEL)
def fastest(rates):
    """The largest sum of both sides' rates, of rates (..., 2): 0 of none."""
    most = 0.0
    for total in (rates[..., 0] + rates[..., 1]).flat:
        most = max(most, total)
    return most


@njit(**KERNEL)
def new_weights(step, most_fills, present):
    """Room for the weights of rates up to ``most_fills`` (1 / time), for the signals (B,) that are present."""
    slowest = 1e-3 / step
    most_fills = max(most_fills, slowest)
    rates = slowest * SPACING ** np.arange(1.0 + math.ceil(math.log(most_fills / slowest) / math.log(SPACING)))
    if num_terms(rates[-1] * step) + 2 > MAX_TERMS:  # elsewhere the row, and so rounding, is the same for all pairs
        rates[-1] = most_fills
    count, most = rates.shape[0], _terms(rates[-1] * step)
    return StepWeights(
        rates, np.zeros(count, np.int64), np.empty((count, most)), np.empty((count, most)),
        np.empty((count, present.shape[0], most)), present, np.empty(most),
    )  # fmt: skip


@njit(**KERNEL)
def weights_for(weights, rate, step, nodes, node_weights, drift):
    """The place of the first rate in the row that is at least this one; its weights are there then.

    ``nodes`` and ``node_weights`` (K,) are a quadrature on [0, 1], ``drift`` (B, K) is ``mu`` at the nodes.
    """
    rates, place = weights.rates, 0
    if rate > rates[0]:
        place = min(int(math.log(rate / rates[0]) / math.log(SPACING)), len(rates) - 1)
        while place < len(rates) - 1 and rates[place] < rate:
            place += 1
    if weights.terms[place] > 0:
        return place
    mean = rates[place] * step
    terms = weights.terms[place] = _terms(mean)
    pi, rho, beta, scratch = weights.pi[place], weights.rho[place], weights.beta[place], weights.scratch[:terms]
    beta[:, :terms] = 0.0
    for i in range(nodes.shape[0]):
        fill_poisson_weights(mean * nodes[i], scratch)
        for b in range(drift.shape[0]):
            weight = step * node_weights[i] * drift[b, i]
            if weight != 0.0 and weights.present[b]:
                for j in range(terms):
                    beta[b, j] += weight * scratch[j]
    fill_poisson_weights(mean, pi[:terms])
    tail = 0.0
    for j in range(terms - 1, -1, -1):
        rho[j] = tail / rates[place]
        tail += pi[j]
    return place


@njit(**KERNEL)
def backward_mean(
    step, groups, states, signals, rates, gains, reward, nodes, node_weights, drift, values, inventory, result
):  # fmt: skip
    """Expectation of an additive functional over one step plus the rest.

    Parameters
    ----------
    groups : (G + 1,) int
        The pairs ``groups[g] .. groups[g + 1] - 1`` have the same signal, rates and gains, and are worked out together.
    states, signals : (M,) int
        Levels of inventory and of the signal at the start of the step.
    rates, gains : (M, 2)
        Fill intensities of bid and ask, and what a fill adds.
    reward : (Q,)
        What the functional gains per unit of time, without the part ``mu(s) q``.
    drift : (B, K)
        ``mu`` at the nodes, by the signal at the start of the step.
    values : (B, Q)
        Expectation of the rest after the step, averaged over the signal's move from each level.
    result : (M,)

    Notes
    -----
    The cells beyond the edges repeat those at the edges, so that a blocked fill changes nothing.
    """
    count = values.shape[1]
    u, n = np.empty(count + 2), np.empty(count + 2)
    present = np.zeros(values.shape[0], np.bool_)
    present[signals] = True
    weights = new_weights(step, fastest(rates), present)
    for g in range(groups.shape[0] - 1):
        i = groups[g]
        b, up, down = signals[i], rates[i, 0], rates[i, 1]
        place = weights_for(weights, up + down, step, nodes, node_weights, drift)
        rate, terms = weights.rates[place], weights.terms[place]
        pi, rho, beta = weights.pi[place], weights.rho[place], weights.beta[place, b]
        source_up, source_down = up * gains[i, 0], down * gains[i, 1]
        first = last = states[i]
        for k in range(i, groups[g + 1]):
            first, last = min(first, states[k]), max(last, states[k])
        x, z, after = up / rate, down / rate, values[b]
        u[:] = 0.0
        for j in range(terms - 1, -1, -1):
            low, high = max(0, first - j), min(count - 1, last + j)
            a, r, c = pi[j], rho[j], beta[j]
            for q in range(np.uint64(low + 1), np.uint64(high + 2)):  # one cell beyond the edges on each side
                n[q] = (
                    u[q] + x * (u[q + ONE] - u[q]) + z * (u[q - ONE] - u[q])
                    + a * after[q - ONE] + r * (reward[q - ONE] + source_up + source_down) + c * inventory[q - ONE]
                )  # fmt: skip
            if high == count - 1:  # no bid at the upper bound
                n[count] -= r * source_up
                n[count + 1] = n[count]
            if low == 0:
                n[1] -= r * source_down
                n[0] = n[1]
            u, n = n, u
        for k in range(i, groups[g + 1]):
            result[k] = u[states[k] + 1]


@njit(**SCALAR)
def propagate(begin, end, x, z, u, source, towards, weight, constant, n):
    """``n = P u + weight * (source's change from a cell to the one above, or below) + constant``."""
    if towards > 0:
        for q in range(begin, end):
            n[q] = (
                u[q]
                + x * (u[q + ONE] - u[q])
                + z * (u[q - ONE] - u[q])
                + weight * (source[q + ONE] - source[q])
                + constant
            )
    else:
        for q in range(begin, end):
            n[q] = (
                u[q]
                + x * (u[q + ONE] - u[q])
                + z * (u[q - ONE] - u[q])
                + weight * (source[q - ONE] - source[q])
                + constant
            )


@njit(**KERNEL)
def _derivatives(start, terms, rates, rate, sources, reward, pi, rho, beta, values, inventory, block, out):
    """``U_0`` at ``start``, its gradient and its Hessian in the intensities: [U, U_b, U_a, U_bb, U_ab, U_aa].

    ``sources`` (2, 3) are what a side's fills earn per unit of time and two derivatives; ``block`` (2, 6, Q + 2) is
    scratch.
    """
    count = values.shape[0]
    x, z, w = rates[0] / rate, rates[1] / rate, 1.0 / rate
    u, n = block[0], block[1]
    u[:] = 0.0
    source_b, source_a = sources[0], sources[1]
    earned = source_b[0] + source_a[0]
    for j in range(terms - 1, -1, -1):
        low, high = max(0, start - j), min(count - 1, start + j)
        a, r, c = pi[j], rho[j], beta[j]
        u0, ub, ua, ubb, uab, uaa = u[0], u[1], u[2], u[3], u[4], u[5]
        n0, nb, na, nbb, nab, naa = n[0], n[1], n[2], n[3], n[4], n[5]
        begin, end = np.uint64(low + 1), np.uint64(high + 2)  # one cell beyond the edges on each side
        for q in range(begin, end):  # a loop for each: few arrays at a time, so that it becomes vectors
            o = q - ONE
            n0[q] = (
                u0[q] + x * (u0[q + ONE] - u0[q]) + z * (u0[o] - u0[q])
                + a * values[o] + r * (reward[o] + earned) + c * inventory[o]
            )  # fmt: skip
        propagate(begin, end, x, z, ub, u0, 1, w, r * source_b[1], nb)
        propagate(begin, end, x, z, ua, u0, -1, w, r * source_a[1], na)
        propagate(begin, end, x, z, ubb, ub, 1, 2.0 * w, r * source_b[2], nbb)
        propagate(begin, end, x, z, uaa, ua, -1, 2.0 * w, r * source_a[2], naa)
        for q in range(begin, end):
            above, below = q + ONE, q - ONE
            nab[q] = (
                uab[q] + x * (uab[above] - uab[q]) + z * (uab[below] - uab[q])
                + w * (ua[above] - ua[q] + ub[below] - ub[q])
            )  # fmt: skip
        if high == count - 1:  # no bid at the upper bound
            n0[count] -= r * source_b[0]
            nb[count] -= r * source_b[1]
            nbb[count] -= r * source_b[2]
            for d in range(6):
                n[d, count + 1] = n[d, count]
        if low == 0:
            n0[1] -= r * source_a[0]
            na[1] -= r * source_a[1]
            naa[1] -= r * source_a[2]
            for d in range(6):
                n[d, 0] = n[d, 1]
        u, n = n, u
    for d in range(6):
        out[d] = u[d, start + 1]


@njit(**KERNEL)
def step_reward(step, reward, drift, inventory):
    """The largest reward of a step besides fills."""
    return step * (np.abs(reward).max() + np.abs(drift).max() * np.abs(inventory).max())


@njit(**KERNEL)
def improve(
    step, factors, decay, size, box, reward, nodes, node_weights, drift, values, inventory, prior, penalty,
    weights, depths, best, shortfalls,
):  # fmt: skip
    """Best frozen depths of every state near a guess, and their value, by `mmgym.trust_region` in the intensities.

    Parameters
    ----------
    factors, decay : (2,)
        Fill intensities of bid and ask at depth 0 (1 / time), with 0 a side's depth does not matter and stays; and how
        fast they fall (1 / price).
    box : (2,)
        The least and the largest depth.
    reward, nodes, node_weights, drift, values, inventory
        Those of `backward_mean`.
    prior, penalty : (B, Q, 2), (2,)
        Where a side's penalty is above 0, the value is less by it times ``step (r log(r / p) - r + p)``, with the fill
        intensity ``r`` and that ``p`` of the prior's depth.
    weights : StepWeights
        With room for rates at the least depths and all signals.
    depths : (B, Q, 2)
        In: guess, nan where a state is left out. Out: best depths.
    best, shortfalls : (B, Q)
        Out: best values, and what a further move promises.
    """
    climb(
        step, factors, decay, size, box, reward, nodes, node_weights, drift, values, inventory, prior, penalty,
        weights, rounding(values, size / decay.min() + step_reward(step, reward, drift, inventory)), depths, best,
        shortfalls,
    )  # fmt: skip


@njit(**KERNEL)
def climb(
    step, factors, decay, size, box, reward, nodes, node_weights, drift, values, inventory, prior, penalty,
    weights, noise, depths, best, shortfalls,
):  # fmt: skip
    """`improve`, where gains of less than some ``noise`` are not looked for."""
    count_b, count_q = values.shape
    block, out, sources = np.empty((2, 6, count_q + 2)), np.empty(6), np.zeros((2, 3))
    search, relative = new_search(2), np.empty(0)
    rates, slope, curvature = np.empty(2), np.empty(2), np.empty((2, 2))
    low, high = np.empty(2), np.empty(2)
    for side in range(2):
        low[side] = factors[side] * math.exp(-decay[side] * box[1])
        high[side] = factors[side] * math.exp(-decay[side] * box[0])
    for b in range(count_b):
        for q in range(count_q):
            if np.isnan(depths[b, q, 0]):
                continue
            for side in range(2):
                rate = factors[side] * math.exp(-decay[side] * depths[b, q, side])
                rates[side] = min(max(rate, low[side]), high[side])
            begin(search, rates)
            while True:
                rates[:] = search.trial
                for side in range(2):
                    if factors[side] > 0.0:
                        depth = math.log(factors[side] / rates[side]) / decay[side]
                        sources[side, 0] = size * rates[side] * depth
                        sources[side, 1] = size * (depth - 1.0 / decay[side])
                        sources[side, 2] = -size / (decay[side] * rates[side])
                place = weights_for(weights, rates[0] + rates[1], step, nodes, node_weights, drift)
                _derivatives(
                    q, weights.terms[place], rates, weights.rates[place], sources, reward, weights.pi[place],
                    weights.rho[place], weights.beta[place, b], values[b], inventory, block, out,
                )  # fmt: skip
                slope[0], slope[1] = out[1], out[2]
                curvature[0, 0], curvature[1, 1] = out[3], out[5]
                curvature[0, 1] = curvature[1, 0] = out[4]
                for side in range(2):
                    if penalty[side] > 0.0 and factors[side] > 0.0:
                        usual = factors[side] * math.exp(-decay[side] * prior[b, q, side])
                        ratio = math.log(rates[side] / usual)
                        out[0] -= step * penalty[side] * (rates[side] * ratio - rates[side] + usual)
                        slope[side] -= step * penalty[side] * ratio
                        curvature[side, side] -= step * penalty[side] / rates[side]
                if advance(search, out[0], slope, curvature, low, high, relative, noise):
                    break
            best[b, q] = search.numbers[VALUE]
            shortfalls[b, q] = search.numbers[SHORTFALL]
            for side in range(2):
                if factors[side] > 0.0:
                    depth = math.log(factors[side] / search.point[side]) / decay[side]
                    depths[b, q, side] = min(max(depth, box[0]), box[1])


@njit(**KERNEL)
def is_crowded(step, factors, decay, size, max_depth, reward, drifts, values, inventory):
    """Whether the best depths of a step may have several maxima, from a bound on its fills and on how they differ.

    ``drifts`` (B,) are means over the step; `mmgym.baselines.maximise.depth_region` has the reasons.
    """
    for b in range(values.shape[0]):
        after, least, most, bends = values[b], np.inf, -np.inf, 0.0
        for ahead in (after, after + step * (reward + drifts[b] * inventory)):
            slopes = np.diff(ahead) / size
            least, most = min(least, slopes.min()), max(most, slopes.max())
            bends = max(bends, np.abs(np.diff(slopes)).max())
        events = 0.0
        for side in range(2):
            nearest = 1.0 / decay[side] - max(most if side == 0 else -least, 0.0)
            events += step * factors[side] * math.exp(-decay[side] * min(max(nearest, -max_depth), max_depth))
        if events * max(bends * decay.max(), 1.0) > CROWDED:
            return True
    return False


@njit(**KERNEL)
def best_response(
    step,
    factors,
    decay,
    size,
    max_depth,
    reward,
    nodes,
    node_weights,
    impact,
    beliefs,
    moves,
    inventory,
    slack,
    quotes,
    values,
):
    """Best frozen depths of all steps, backwards from 0 at the horizon.

    Each step's guess moves as the best depths of the two steps after have moved from theirs, continued. Where a step
    may have several maxima, the corners of the box are guesses as well.

    Parameters
    ----------
    factors, decay : (N, 2), (2,)
    impact : (N, K)
        Drift of the price at the nodes of each step.
    beliefs : (B, K)
        Expected signal at the nodes, by the signal at the start of a step.
    moves : (B, B)
        Transition matrix of the signal over a step.
    slack : float
        Gains of less than a thousandth of it are not looked for; at 0, of the values' rounding error.
    quotes, values : (N, B, Q, 2), (N + 1, B, Q)
        Out. ``quotes`` hold guesses: depths that are near the best ones, or any that are the same at all steps.

    Returns
    -------
    float
        What a further move promises in the worst cell, in units of the rounding error of its values, or of the slack.
    """
    count, worst = quotes.shape[0], 0.0
    shortfalls = np.empty(values.shape[1:])
    others, reached, missing = np.empty(quotes.shape[1:]), np.empty(values.shape[1:]), np.empty(values.shape[1:])
    values[count] = 0.0
    drift = np.empty(beliefs.shape)
    guess, change, change_after = others.copy(), np.zeros(others.shape), np.zeros(others.shape)
    everywhere = np.ones(drift.shape[0], np.bool_)
    quickest, no_penalty, box = np.exp(decay * max_depth), np.zeros(2), np.array([-max_depth, max_depth])
    weights = new_weights(step, fastest(factors * quickest), everywhere)
    for n in range(count - 1, -1, -1):
        weights.terms[:] = 0
        guess[:] = quotes[n]
        quotes[n] += (2.0 * change - change_after) if n < count - 2 else change
        for b in range(drift.shape[0]):
            drift[b] = beliefs[b] + impact[n]
        after = moves @ values[n + 1]
        noise = max(rounding(after, size / decay.min() + step_reward(step, reward, drift, inventory)), slack)
        climb(
            step, factors[n], decay, size, box, reward, nodes, node_weights, drift, after, inventory, guess,
            no_penalty, weights, noise, quotes[n], values[n], shortfalls,
        )  # fmt: skip
        if is_crowded(step, factors[n], decay, size, max_depth, reward, drift @ node_weights, after, inventory):
            for corner in range(4):
                others[:, :, 0] = max_depth if corner % 2 else -max_depth
                others[:, :, 1] = max_depth if corner < 2 else -max_depth
                climb(
                    step, factors[n], decay, size, box, reward, nodes, node_weights, drift, after, inventory,
                    guess, no_penalty, weights, noise, others, reached, missing,
                )  # fmt: skip
                for b in range(after.shape[0]):
                    for q in range(after.shape[1]):
                        if reached[b, q] > values[n, b, q] + noise:
                            quotes[n, b, q] = others[b, q]
                            values[n, b, q], shortfalls[b, q] = reached[b, q], missing[b, q]
        worst = max(worst, shortfalls.max() / noise)
        change_after[:] = change
        change[:] = quotes[n] - guess
    return worst


@njit(**KERNEL)
def forward(step, rates, law, nodes, result, moved):
    """Law of the inventory after a step, by signal at its start, and how far the mean has moved inside it.

    Parameters
    ----------
    rates : (B, Q, 2)
        Fill intensities of each state.
    law : (B, Q)
        Before the step; mass of any sum.
    nodes : (D,)
        Times in [0, 1].
    result : (B, Q)
        Added to: the law after the step, before the signal's move.
    moved : (D,)
        Added to: mean change of inventory (orders) until each node, times the mass.
    """
    count_b, count_q = law.shape
    p, n = np.empty(count_q + 2), np.empty(count_q + 2)
    weights = new_weights(step, fastest(rates), np.zeros(0, np.bool_))
    none, no_drift = np.empty(0), np.empty((0, 0))
    shifts = np.zeros(weights.pi.shape)  # by the uniformisation rate: mean change of inventory after so many events
    for b in range(count_b):
        for q in range(count_q):
            mass = law[b, q]
            if mass == 0.0:
                continue
            up, down = rates[b, q, 0], rates[b, q, 1]
            place = weights_for(weights, up + down, step, none, none, no_drift)
            rate, terms, pi = weights.rates[place], weights.terms[place], weights.pi[place]
            x, z, idle = up / rate, down / rate, 1.0 - (up + down) / rate
            p[max(0, q - terms) : min(count_q, q + terms + 1) + 2] = 0.0
            n[max(0, q - terms) : min(count_q, q + terms + 1) + 2] = 0.0
            p[q + 1] = mass
            result[b, q] += pi[0] * mass
            shift = 0.0
            for j in range(1, terms):
                low, high, weight = max(0, q - j), min(count_q - 1, q + j), pi[j]
                shift += x * (mass - p[count_q]) if high == count_q - 1 else x * mass
                shift -= z * (mass - p[1]) if low == 0 else z * mass
                for s in range(np.uint64(low + 1), np.uint64(high + 2)):
                    n[s] = idle * p[s] + x * p[s - ONE] + z * p[s + ONE]
                if high == count_q - 1:
                    n[count_q] += x * p[count_q]
                if low == 0:
                    n[1] += z * p[1]
                p, n = n, p
                shifts[place, j] += shift
                for s in range(np.uint64(low + 1), np.uint64(high + 2)):
                    result[b, s - ONE] += weight * p[s]
    for place in range(len(shifts)):
        terms = weights.terms[place]
        for i in range(nodes.shape[0] if terms > 0 else 0):
            fill_poisson_weights(weights.rates[place] * step * nodes[i], weights.scratch[:terms])
            moved[i] += np.dot(weights.scratch[:terms], shifts[place, :terms])
