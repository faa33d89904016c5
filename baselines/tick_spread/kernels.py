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
            rate = clock + fastest
            inverse = 1.0 / rate if rate > 0.0 else length  # nothing moves: two terms are exact, K is 0
            terms = num_terms(rate * length)
            weights = poisson_weights(rate * length, terms)
            if rate == 0.0:
                terms, weights = 2, np.array([0.0, 1.0])
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
                rate = clock + fastest - slowest
                if rate == 0.0:
                    rate = 1e-3 / length  # nothing moves but, for complex exponents, the phase
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
