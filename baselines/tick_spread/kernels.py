"""Numba kernels of the frozen-control step of the tick-spread market.

Inside a step quotes and sizes are constant, so expectations over the step solve a linear system ``f' = K f +
source`` on (spread, inventory), summed by uniformisation for all starting states at once. Arrays over states are (m,
Y): spread by inventory from ``-limit`` to ``limit`` lots, so that all inner loops run along the inventory. Work arrays
are padded by the larger size on both sides with the values at the bounds: an executed size ``min(size, room)`` is then
a shift.

A *posting* is the limit orders of a step: [bid improved, ask improved, bid lots, ask lots]. `steps` is (pieces, 2):
rate of the clock and length of each piece of the step, in order of time.
"""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL
from mmgym.uniformisation import num_terms, poisson_weights

LEAST_EVENTS = 0.1  # in a piece, of the clock that sums are over: moments lose digits where it hardly ever ticks
TIE = 1e-12  # relative: controls that are better by less are not preferred
ROUNDING = 1e-11  # of values, relative: above what rounding makes of them


@njit(**KERNEL)
def _pad(values, width, count):
    """Continue each row of a padded array by its first and last value."""
    for j in range(values.shape[0]):
        for i in range(width):
            values[j, i] = values[j, width]
            values[j, width + count + i] = values[j, width + count - 1]


@njit(**KERNEL)
def _mix(target, values, width, count, stay, clock, transitions, bid, ask, bid_size, ask_size):
    """``target`` becomes one uniformised step of ``values``, without sources: spread jumps and fills.

    The slices are there for the compiler: it vectorises loops whose indices all start at 0.
    """
    spreads = values.shape[0]
    for j in range(spreads):
        new, here = target[j, width : width + count], values[j, width : width + count]
        above = values[j, width + bid_size : width + bid_size + count]
        below = values[j, width - ask_size : width - ask_size + count]
        keep, up, down = stay[j], bid[j], ask[j]
        for y in range(count):
            new[y] = keep * here[y] + up * above[y] + down * below[y]
        for k in range(spreads):
            jump = clock * transitions[j, k]
            if jump != 0.0:
                other = values[k, width : width + count]
                for y in range(count):
                    new[y] += jump * other[y]


@njit(**KERNEL)
def _add(target, weight, values, start, count):
    """``target += weight * values`` in ``count`` columns from ``start`` on."""
    for j in range(values.shape[0]):
        into, source = target[j, start : start + count], values[j, start : start + count]
        for y in range(count):
            into[y] += weight * source[y]


@njit(**KERNEL)
def _largest_size(postings):
    """The largest size (lots) of a side, or 1."""
    largest = 1
    for g in range(postings.shape[0]):
        largest = max(largest, postings[g, 2], postings[g, 3])
    return largest


@njit(**KERNEL)
def _fill_rates(rates, quote, size):
    """Fill intensities (m,) of a side: 0 where its size is."""
    return rates[quote] if size > 0 else np.zeros(rates.shape[1])


@njit(**KERNEL)
def moments_of_postings(
    steps, transitions, bid_rates, ask_rates, edges, limit, fill_weight, drift, variance, postings, values, result
):
    """First (and second) moments of an additive functional over one step plus the rest of the episode.

    Parameters
    ----------
    steps : (P, 2)
    transitions : (m, m)
    bid_rates, ask_rates : (2, m)
        Intensities of best and improved quotes.
    edges : (2, m)
        What a filled lot adds to the functional.
    limit : int
        Inventory bound in lots, ``Y = 2 limit + 1``.
    fill_weight : float
        What a fill adds whatever its size.
    drift, variance : (Y,)
        What the functional gains per unit of time, and the variance of its Brownian part.
    postings : (G, 4) int
    values : (K, m, Y)
        ``K = 1``: expectation of the rest. ``K = 2``: and its second moment.
    result : (G, K, m, Y)
    """
    moments, spreads, count = values.shape
    width = _largest_size(postings)
    shape = (spreads, count + 2 * width)
    f, next_f, total_f = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    o, next_o, total_o = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    bid_gain, ask_gain = np.zeros((spreads, count)), np.zeros((spreads, count))
    source = np.zeros((spreads, count))
    for g in range(postings.shape[0]):
        bid_size, ask_size = postings[g, 2], postings[g, 3]
        bid = _fill_rates(bid_rates, postings[g, 0], bid_size)
        ask = _fill_rates(ask_rates, postings[g, 1], ask_size)
        fastest = 0.0
        for j in range(spreads):
            fastest = max(fastest, bid[j] + ask[j])
            for y in range(count):
                bid_lots, ask_lots = min(bid_size, count - 1 - y), min(ask_size, y)
                bid_gain[j, y] = edges[postings[g, 0], j] * bid_lots + (fill_weight if bid_lots > 0 else 0.0)
                ask_gain[j, y] = edges[postings[g, 1], j] * ask_lots + (fill_weight if ask_lots > 0 else 0.0)
                source[j, y] = bid[j] * bid_gain[j, y] + ask[j] * ask_gain[j, y] + drift[y]
        for j in range(spreads):
            f[j, width : width + count] = values[0, j]
            if moments == 2:
                o[j, width : width + count] = values[1, j]
        for piece in range(steps.shape[0] - 1, -1, -1):
            clock, length = steps[piece, 0], steps[piece, 1]
            rate = max(clock + fastest, LEAST_EVENTS / length)
            inverse = 1.0 / rate
            terms = num_terms(rate * length)
            weights = poisson_weights(rate * length, terms)
            stay = 1.0 - (clock + bid + ask) * inverse
            up, down, jump = bid * inverse, ask * inverse, clock * inverse
            total_f[:] = 0.0
            _add(total_f, weights[0], f, width, count)
            if moments == 2:
                total_o[:] = 0.0
                _add(total_o, weights[0], o, width, count)
            for term in range(1, terms):
                _pad(f, width, count)
                _mix(next_f, f, width, count, stay, jump, transitions, up, down, bid_size, ask_size)
                if moments == 2:
                    _pad(o, width, count)
                    _mix(next_o, o, width, count, stay, jump, transitions, up, down, bid_size, ask_size)
                    for j in range(spreads):
                        for y in range(count):
                            i = width + y
                            b, a = bid_gain[j, y], ask_gain[j, y]
                            next_o[j, i] += up[j] * b * (2.0 * f[j, i + bid_size] + b)
                            next_o[j, i] += down[j] * a * (2.0 * f[j, i - ask_size] + a)
                            next_o[j, i] += inverse * (2.0 * drift[y] * f[j, i] + variance[y])
                for j in range(spreads):
                    into, gains = next_f[j, width : width + count], source[j]
                    for y in range(count):
                        into[y] += inverse * gains[y]
                _add(total_f, weights[term], next_f, width, count)
                f, next_f = next_f, f
                if moments == 2:
                    _add(total_o, weights[term], next_o, width, count)
                    o, next_o = next_o, o
            f, total_f = total_f, f
            o, total_o = total_o, o
        for j in range(spreads):
            result[g, 0, j] = f[j, width : width + count]
            if moments == 2:
                result[g, 1, j] = o[j, width : width + count]


@njit(**KERNEL)
def _factors(rates, gains, fill_weight, size, room, exponent, real, imaginary):
    """``rate exp(exponent * gain)`` of a fill, by spread and inventory, as real and imaginary part.

    ``room[y]`` is the lots that can still be executed at inventory ``y``; ``gains`` are those of a lot.
    """
    for j in range(real.shape[0]):
        for y in range(real.shape[1]):
            if y > 0 and min(size, room[y]) == min(size, room[y - 1]):
                real[j, y], imaginary[j, y] = real[j, y - 1], imaginary[j, y - 1]
                continue
            lots = min(size, room[y])
            factor = rates[j] * np.exp(exponent * (gains[j] * lots + (fill_weight if lots > 0 else 0.0)))
            real[j, y], imaginary[j, y] = factor.real, factor.imag


@njit(**KERNEL)
def exponentials_of_postings(
    steps,
    transitions,
    bid_rates,
    ask_rates,
    edges,
    limit,
    fill_weight,
    drift,
    variance,
    postings,
    exponents,
    values,
    result,
):
    """``E[exp(z R)]`` of an additive functional ``R`` over one step plus the rest, for exponents ``z`` of shape (K,).

    The other parameters are those of `moments_of_postings`. Exponents are complex; ``values`` (2, K, m, Y) and
    ``result`` (G, 2, K, m, Y) hold real and imaginary parts, apart because the compiler vectorises only real
    arithmetic. Where no exponent has an imaginary part, imaginary parts of values are taken to be 0.
    """
    _, columns, spreads, count = values.shape
    parts = 2 if (exponents.imag != 0.0).any() else 1
    width = _largest_size(postings)
    shape = (2, spreads, count + 2 * width)
    f, next_f, total = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    up, down = np.zeros((2, spreads, count)), np.zeros((2, spreads, count))
    keep = np.zeros((2, count))
    bid_room, ask_room = count - 1 - np.arange(count), np.arange(count)
    result[:] = 0.0
    for column in range(columns):
        z = exponents[column]
        growth = z * drift + 0.5 * z * z * variance
        slowest, grown = min(growth.real.min(), 0.0), np.abs(growth).max()
        for g in range(postings.shape[0]):
            bid_size, ask_size = postings[g, 2], postings[g, 3]
            bid = _fill_rates(bid_rates, postings[g, 0], bid_size)
            ask = _fill_rates(ask_rates, postings[g, 1], ask_size)
            _factors(bid, edges[postings[g, 0]], fill_weight, bid_size, bid_room, z, up[0], up[1])
            _factors(ask, edges[postings[g, 1]], fill_weight, ask_size, ask_room, z, down[0], down[1])
            fastest = (bid + ask).max()
            largest = (np.hypot(up[0], up[1]) + np.hypot(down[0], down[1])).max()
            for part in range(parts):
                f[part, :, width : width + count] = values[part, column]
            for piece in range(steps.shape[0] - 1, -1, -1):
                clock, length = steps[piece, 0], steps[piece, 1]
                rate = max(clock + fastest - slowest, LEAST_EVENTS / length)
                inverse = 1.0 / rate
                terms = num_terms((max(rate, grown) + clock + largest) * length)
                weights = poisson_weights(rate * length, terms)
                total[:] = 0.0
                for part in range(parts):
                    _add(total[part], weights[0], f[part], width, count)
                for term in range(1, terms):
                    for part in range(parts):
                        _pad(f[part], width, count)
                    for j in range(spreads):
                        keep[0] = (rate - clock - bid[j] - ask[j] + growth.real) * inverse
                        keep[1] = growth.imag * inverse
                        for part in range(parts):
                            new = next_f[part, j, width : width + count]
                            for factor in range(parts):
                                # real part: real * real - imaginary * imaginary; imaginary part: the cross products
                                source = f[factor if part == 0 else 1 - factor, j]
                                sign = -1.0 if part == 0 and factor == 1 else 1.0
                                here = source[width : width + count]
                                above = source[width + bid_size : width + bid_size + count]
                                below = source[width - ask_size : width - ask_size + count]
                                stay, raised, lowered = keep[factor], up[factor, j], down[factor, j]
                                scale = sign * inverse
                                if factor == 0:
                                    for y in range(count):
                                        moved = raised[y] * above[y] + lowered[y] * below[y]
                                        new[y] = stay[y] * here[y] + inverse * moved
                                else:
                                    for y in range(count):
                                        moved = raised[y] * above[y] + lowered[y] * below[y]
                                        new[y] += sign * stay[y] * here[y] + scale * moved
                            for other in range(spreads):
                                jump = clock * transitions[j, other] * inverse
                                if jump != 0.0:
                                    jumped = f[part, other, width : width + count]
                                    for y in range(count):
                                        new[y] += jump * jumped[y]
                    for part in range(parts):
                        _add(total[part], weights[term], next_f[part], width, count)
                    f, next_f = next_f, f
                f, total = total, f
            for part in range(parts):
                result[g, part, column] = f[part, :, width : width + count]


@njit(**KERNEL)
def law_of_postings(steps, transitions, bid_rates, ask_rates, postings, laws, result):
    """Law after a step, (m, Y), from laws (G, m, Y) of the states that play each posting, after market orders."""
    groups, spreads, count = laws.shape
    result[:] = 0.0
    p, next_p, total = np.zeros((spreads, count)), np.zeros((spreads, count)), np.zeros((spreads, count))
    for g in range(groups):
        bid_size, ask_size = postings[g, 2], postings[g, 3]
        bid = _fill_rates(bid_rates, postings[g, 0], bid_size)
        ask = _fill_rates(ask_rates, postings[g, 1], ask_size)
        fastest = (bid + ask).max()
        p[:] = laws[g]
        low, high = 0, count
        while low < high and (p[:, low] == 0.0).all():
            low += 1
        while high > low and (p[:, high - 1] == 0.0).all():
            high -= 1
        for piece in range(steps.shape[0]):
            clock, length = steps[piece, 0], steps[piece, 1]
            rate = clock + fastest
            if rate == 0.0:
                continue
            terms = num_terms(rate * length)
            weights = poisson_weights(rate * length, terms)
            total[:] = 0.0
            _add(total, weights[0], p, low, high - low)
            for term in range(1, terms):
                new_low, new_high = low, high  # of the inventories that have any probability
                if bid_size > 0:
                    new_high = min(high + bid_size, count)
                if ask_size > 0:
                    new_low = max(low - ask_size, 0)
                next_p[:, new_low:new_high] = 0.0
                width = high - low
                for j in range(spreads):
                    keep, up, down = (rate - clock - bid[j] - ask[j]) / rate, bid[j] / rate, ask[j] / rate
                    here, stay = p[j, low:high], next_p[j, low:high]
                    for y in range(width):
                        stay[y] += keep * here[y]
                    for k in range(spreads):
                        jump = clock * transitions[k, j] / rate
                        if jump != 0.0:
                            other = p[k, low:high]
                            for y in range(width):
                                stay[y] += jump * other[y]
                    if bid_size > 0:  # what leaves the last inventories ends at the bound
                        inside = max(min(high, count - bid_size) - low, 0)
                        raised = next_p[j, low + bid_size : low + bid_size + inside]
                        for y in range(inside):
                            raised[y] += up * here[y]
                        for y in range(inside, width):
                            next_p[j, count - 1] += up * here[y]
                    if ask_size > 0:
                        outside = min(max(ask_size - low, 0), width)
                        for y in range(outside):
                            next_p[j, 0] += down * here[y]
                        start = low + outside
                        source, lowered = p[j, start:high], next_p[j, start - ask_size : high - ask_size]
                        for y in range(width - outside):
                            lowered[y] += down * source[y]
                low, high = new_low, new_high
                p, next_p = next_p, p
                _add(total, weights[term], p, low, high - low)
            p, total = total, p
        result += p


# Single states -------------------------------------------------------------------------------------------------------


@njit(**KERNEL)
def _prepare_gains(rates, edges, fills, size, room, exponent, factors, gains):
    """Of a side's fills: rates with the factor ``exp(exponent * gain)`` (m, Y), and functionals' gains (K, m, Y)."""
    functionals, spreads, count = gains.shape
    for j in range(spreads):
        for y in range(count):
            lots = min(size, room[y])
            for k in range(functionals):
                gains[k, j, y] = edges[k, j] * lots + (fills[k] if lots > 0 else 0.0)
            factors[j, y] = rates[j]
            if exponent != 0.0:
                if y > 0 and lots == min(size, room[y - 1]):
                    factors[j, y] = factors[j, y - 1]
                else:
                    factors[j, y] *= math.exp(exponent * gains[0, j, y])


@njit(**KERNEL)
def _raise(target, moved, low, size):
    """Add what is in columns from ``low`` on, ``size`` columns further up; what has no room, to the last column."""
    count, width = target.shape[0], moved.shape[0]
    inside = max(min(low + width, count - size) - low, 0)
    into = target[low + size : low + size + inside]
    for y in range(inside):
        into[y] += moved[y]
    for y in range(inside, width):
        target[count - 1] += moved[y]


@njit(**KERNEL)
def _lower(target, moved, low, size):
    """Add what is in columns from ``low`` on, ``size`` columns further down; what has no room, to the first column."""
    width = moved.shape[0]
    outside = min(max(size - low, 0), width)
    for y in range(outside):
        target[0] += moved[y]
    into, source = target[low + outside - size : low + width - size], moved[outside:]
    for y in range(width - outside):
        into[y] += source[y]


@njit(**KERNEL)
def _advance(target, x, low, high, new_low, new_high, stay, jumps, inverse, up, down, sizes, moments, moved):
    """One uniformised step of the law ``x[0]`` (m, Y), and of expectations ``x[1:]`` of ``2 G`` on each state.

    All that is not 0 lies in the columns from ``low`` to ``high``, and afterwards from ``new_low`` to ``new_high``;
    ``moments`` are the drifts (K, Y), gains of bid and ask fills (K, m, Y), and the functionals of ``x[1:]``.
    """
    drift, bid_gains, ask_gains, second = moments
    spreads, width = x.shape[1], high - low
    target[:, :, new_low:new_high] = 0.0
    for v in range(x.shape[0]):
        for j in range(spreads):
            here, out, keep = x[v, j, low:high], target[v, j, low:high], stay[j, low:high]
            for y in range(width):
                out[y] += keep[y] * here[y]
            for k in range(spreads):
                jump = jumps[k, j]
                if jump != 0.0:
                    other = x[v, k, low:high]
                    for y in range(width):
                        out[y] += jump * other[y]
            law = x[0, j, low:high]
            if v > 0:
                gain = drift[second[v - 1], low:high]
                for y in range(width):
                    out[y] += 2.0 * inverse * gain[y] * law[y]
            for side in range(2):
                if sizes[side] == 0:
                    continue
                rate = (up if side == 0 else down)[j, low:high]
                if v == 0:
                    for y in range(width):
                        moved[y] = inverse * rate[y] * here[y]
                else:
                    gain = (bid_gains if side == 0 else ask_gains)[second[v - 1], j, low:high]
                    for y in range(width):
                        moved[y] = inverse * rate[y] * (here[y] + 2.0 * gain[y] * law[y])
                if side == 0:
                    _raise(target[v, j], moved[:width], low, sizes[0])
                else:
                    _lower(target[v, j], moved[:width], low, sizes[1])


@njit(**KERNEL)
def rows_of_postings(
    steps,
    transitions,
    bid_rates,
    ask_rates,
    edges,
    fills,
    drift,
    variance,
    second,
    exponent,
    postings,
    landed,
    ends,
    states,
    law,
    cross,
    first,
    square,
):
    """Rows of pairs of a posting and a state (see `mmgym.baselines.tick_spread.rows`), as many as there is room for.

    Parameters
    ----------
    steps, transitions, bid_rates, ask_rates
        As in `moments_of_postings`.
    edges, fills, drift, variance, second, exponent
        `mmgym.baselines.tick_spread.rows.Gains`.
    postings, landed : (M, 4), (M,) int
    ends : (M,) int
        Where the entries of each row end.
    states, law, cross : (E,), (E,), (E, K2)
        Entries: states at the end, their probabilities, and expectations of ``2 G`` on them.
    first, square : (M, K), (M, K2)
        Means of ``G`` and of ``G^2``; (M, 0) where there is an exponent.

    Returns
    -------
    int
        Number of rows written.
    """
    spreads, count = transitions.shape[0], drift.shape[1]
    functionals, vectors = edges.shape[0], 1 + second.shape[0]
    shape = (vectors, spreads, count)
    x, next_x, total, spent = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    bid_gains, ask_gains = np.zeros((functionals, spreads, count)), np.zeros((functionals, spreads, count))
    up, down, stay = np.zeros((spreads, count)), np.zeros((spreads, count)), np.zeros((spreads, count))
    moved, moments = np.zeros(count), (drift, bid_gains, ask_gains, second)
    growth = exponent * drift[0] + 0.5 * exponent * exponent * variance[0]
    slowest, grown = min(growth.min(), 0.0), np.abs(growth).max()
    bid_room, ask_room = count - 1 - np.arange(count), np.arange(count)
    bid, ask, filled = bid_rates[0], ask_rates[0], 0
    for r in range(postings.shape[0]):
        if filled + spreads * count > states.shape[0]:
            return r
        sizes = (postings[r, 2], postings[r, 3])
        if r == 0 or (postings[r] != postings[r - 1]).any():
            bid, ask = (
                _fill_rates(bid_rates, postings[r, 0], sizes[0]),
                _fill_rates(ask_rates, postings[r, 1], sizes[1]),
            )
            _prepare_gains(bid, edges[:, postings[r, 0]], fills, sizes[0], bid_room, exponent, up, bid_gains)
            _prepare_gains(ask, edges[:, postings[r, 1]], fills, sizes[1], ask_room, exponent, down, ask_gains)
        x[:], spent[:] = 0.0, 0.0
        low = landed[r] % count
        high = low + 1
        x[0, landed[r] // count, low] = 1.0
        for piece in range(steps.shape[0]):
            clock, length = steps[piece, 0], steps[piece, 1]
            rate = max(clock + (bid + ask).max() - slowest, LEAST_EVENTS / length)
            norm = rate if exponent == 0.0 else max(rate, grown) + clock + (up + down).max()
            terms = num_terms(norm * length)
            inverse, weights = 1.0 / rate, poisson_weights(rate * length, terms)
            for j in range(spreads):
                for y in range(count):
                    stay[j, y] = 1.0 + (growth[y] - clock - bid[j] - ask[j]) * inverse
            jumps, later = clock * inverse * transitions, np.zeros(terms)  # weights of later terms
            for term in range(terms - 1, 0, -1):
                later[term - 1] = later[term] + weights[term]
            total[:] = 0.0
            for term in range(terms):
                if term > 0:
                    new_low = max(low - sizes[1], 0)
                    new_high = min(high + sizes[0], count)
                    _advance(
                        next_x, x, low, high, new_low, new_high, stay, jumps, inverse, up, down, sizes, moments, moved
                    )
                    x, next_x, low, high = next_x, x, new_low, new_high
                for v in range(vectors):
                    _add(total[v], weights[term], x[v], low, high - low)
                    _add(spent[v], later[term] * inverse, x[v], low, high - low)
            x, total = total, x
        for j in range(spreads):
            for y in range(low, high):
                for k in range(first.shape[1]):
                    b, a, d = bid_gains[k, j, y], ask_gains[k, j, y], drift[k, y]
                    first[r, k] += spent[0, j, y] * (bid[j] * b + ask[j] * a + d)
                for v in range(1, vectors):
                    k = second[v - 1]
                    b, a, d = bid_gains[k, j, y], ask_gains[k, j, y], drift[k, y]
                    square[r, v - 1] += spent[v, j, y] * (bid[j] * b + ask[j] * a + d)
                    square[r, v - 1] += spent[0, j, y] * (bid[j] * b * b + ask[j] * a * a + variance[k, y])
                if x[0, j, y] > (1e-20 if exponent == 0.0 else 0.0):
                    states[filled], law[filled] = j * count + y, x[0, j, y]
                    for v in range(1, vectors):
                        cross[filled, v - 1] = x[v, j, y]
                    filled += 1
        ends[r] = filled
    return postings.shape[0]


@njit(**KERNEL)
def apply_rows(rows, offsets, states, law, cross, first, square, second, values, result):
    """Values (M, columns) of rows: see `mmgym.baselines.tick_spread.rows.PostingRows.values`."""
    columns, functionals, seconds = values.shape[1], first.shape[1], second.shape[0]
    for i in range(rows.shape[0]):
        row, into = rows[i], result[i]
        into[:] = 0.0
        for k in range(functionals):
            into[k] = first[row, k]
        for k in range(seconds):
            into[functionals + k] = square[row, k]
        if columns == 1:
            total = 0.0
            for e in range(offsets[row], offsets[row + 1]):
                total += law[e] * values[states[e], 0]
            into[0] += total
            continue
        e, end = offsets[row], offsets[row + 1]
        while e + 3 < end:  # four at once: a sum waits for the one before
            w0, w1, w2, w3 = law[e], law[e + 1], law[e + 2], law[e + 3]
            f0, f1, f2, f3 = values[states[e]], values[states[e + 1]], values[states[e + 2]], values[states[e + 3]]
            for column in range(columns):
                into[column] += (w0 * f0[column] + w1 * f1[column]) + (w2 * f2[column] + w3 * f3[column])
            for k in range(seconds):
                s = second[k]
                pair = cross[e, k] * f0[s] + cross[e + 1, k] * f1[s]
                into[functionals + k] += pair + (cross[e + 2, k] * f2[s] + cross[e + 3, k] * f3[s])
            e += 4
        for rest in range(e, end):
            weight, source = law[rest], values[states[rest]]
            for column in range(columns):
                into[column] += weight * source[column]
            for k in range(seconds):
                into[functionals + k] += cross[rest, k] * source[second[k]]


# The best of all postings ---------------------------------------------------------------------------------------------


@njit(**KERNEL)
def best_postings(postings, values, sign, posting_of, best):
    """Best posting of every state (m, Y) and its value, among those whose sizes fit the room and whose quotes exist.

    ``values`` is (G, m, Y); ``sign`` 1 maximises and -1 minimises; ``posting_of`` (m, Y) gets indices.
    """
    groups, spreads, count = values.shape
    best[:] = -sign * np.inf
    posting_of[:] = -1
    for g in range(groups):
        bid_size, ask_size = postings[g, 2], postings[g, 3]
        for j in range(spreads):
            if j == 0 and postings[g, 0] + postings[g, 1] > 0:
                continue
            for y in range(ask_size, count - bid_size):
                gap = sign * (values[g, j, y] - best[j, y])
                if gap > TIE * abs(values[g, j, y]):
                    best[j, y] = values[g, j, y]
                    posting_of[j, y] = g


@njit(**KERNEL)
def margins(postings, values, best, common):
    """By how much postings (G, 4) miss the best, the least over spreads, (G, Y); infinite where they are not allowed.

    Values (G, m, Y) and ``best`` (m, Y) are of amounts of money, and margins are differences; or, with ``common``
    (m, Y) not empty, they are minimised expectations of which that part is the same for all postings, and margins are
    logarithms of the ratio of the rests. They are negative where rounding may matter.
    """
    groups, spreads, count = values.shape
    margin = np.full((groups, count), np.inf)
    slack = ROUNDING * (1.0 + np.abs(best).max())
    for g in range(groups):
        bid_size, ask_size = postings[g, 2], postings[g, 3]
        first = 1 if postings[g, 0] + postings[g, 1] > 0 else 0
        for y in range(ask_size, count - bid_size):
            least = np.inf
            for j in range(first, spreads):
                if common.size == 0:
                    least = min(least, best[j, y] - values[g, j, y] - slack)
                else:
                    error = ROUNDING * best[j, y]
                    rest = values[g, j, y] - common[j, y] - error
                    least = min(least, rest / (best[j, y] - common[j, y] + error))
            margin[g, y] = least if common.size == 0 else math.log(max(least, 1e-300))
    return margin


@njit(**KERNEL)
def best_orders(costs, fixed, order_max, aversion, after, order_of, best):
    """Best market order (lots) of every state (m, Y), given the values ``after`` it (m, Y), and the value with it.

    ``aversion`` 0: values are amounts of money. Otherwise they are expectations of ``exp(-aversion R)``, minimised.
    """
    spreads, count = after.shape
    for j in range(spreads):
        for y in range(count):
            best[j, y], order_of[j, y] = after[j, y], 0
            for size in range(1, order_max + 1):
                for side in (-1, 1):
                    target = y + side * size
                    if not 0 <= target < count:
                        continue
                    cost = size * costs[j] + fixed
                    if aversion == 0.0:
                        value = after[j, target] - cost
                        better = value - best[j, y] > TIE * abs(value)
                    else:
                        value = after[j, target] * math.exp(aversion * cost)
                        better = best[j, y] - value > TIE * abs(value)
                    if better:
                        best[j, y], order_of[j, y] = value, side * size
