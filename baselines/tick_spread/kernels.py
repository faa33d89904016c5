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
MAX_ESTIMATES = 32_000_000  # numbers kept at once


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


# The filter: which postings with both sides can be best in some state ------------------------------------------------


@njit(**KERNEL)
def count_laws(steps, transitions, bid_rates, ask_rates, fills):
    """Fills of frozen quotes in one step without an inventory bound, by starting spread and quotes.

    Returns
    -------
    laws : (m, 2, 2, fills + 1, fills + 1, m)
        Probability of (bid fills, ask fills, final spread), for up to ``fills`` fills in all.
    products : (m, 2, 2)
        Expected time integral of bid fills times ask fills so far.
    """
    spreads = transitions.shape[0]
    laws = np.zeros((spreads, 2, 2, fills + 1, fills + 1, spreads))
    products = np.zeros((spreads, 2, 2))
    shape = (fills + 1, fills + 1, spreads)
    for start in range(spreads):
        for bid_quote in range(2):
            for ask_quote in range(2):
                bid, ask = bid_rates[bid_quote], ask_rates[ask_quote]
                fastest = (bid + ask).max()
                p, next_p = np.zeros(shape), np.zeros(shape)
                p[0, 0, start] = 1.0
                time = np.zeros(shape)
                for piece in range(steps.shape[0]):
                    clock, length = steps[piece, 0], steps[piece, 1]
                    rate = clock + fastest
                    if rate == 0.0:
                        time += length * p
                        continue
                    terms = num_terms(rate * length)
                    weights = poisson_weights(rate * length, terms)
                    total = weights[0] * p
                    tail = max(1.0 - weights[0], 0.0)
                    time += tail / rate * p
                    for term in range(1, terms):
                        for b in range(fills + 1):
                            for a in range(fills + 1 - b):
                                for j in range(spreads):
                                    mass = (rate - clock - bid[j] - ask[j]) * p[b, a, j]
                                    for k in range(spreads):
                                        mass += clock * transitions[k, j] * p[b, a, k]
                                    if b > 0:
                                        mass += bid[j] * p[b - 1, a, j]
                                    if a > 0:
                                        mass += ask[j] * p[b, a - 1, j]
                                    next_p[b, a, j] = mass / rate
                        p, next_p = next_p, p
                        total += weights[term] * p
                        tail = max(tail - weights[term], 0.0)
                        time += tail / rate * p
                    p = total
                laws[start, bid_quote, ask_quote] = p
                for b in range(fills + 1):
                    for a in range(fills + 1 - b):
                        products[start, bid_quote, ask_quote] += a * b * time[b, a].sum()
    return laws, products


@njit(**KERNEL)
def _expected_values(law, values, reach, mixed):
    """``mixed[b, a, reach + y]``: value after ``b`` and ``a`` fills that end at inventory ``y``, over final spreads."""
    spreads, count = values.shape
    for b in range(1, law.shape[0]):
        for a in range(1, law.shape[0] - b):
            mixed[b, a] = 0.0
            row = mixed[b, a, reach : reach + count]
            for j in range(spreads):
                weight, source = law[b, a, j], values[j]
                for y in range(count):
                    row[y] += weight * source[y]
            mixed[b, a, :reach] = row[0]
            mixed[b, a, reach + count :] = row[count - 1]


@njit(**KERNEL)
def promising_postings(laws, products, penalty, slack, loss, values, bid_alone, ask_alone):
    """Postings with both sides that may be the best of some state, shape (G, 4), for the mean criterion.

    Such a posting is worth what its bid is worth alone, plus its ask alone, minus no quotes, plus what they are worth
    together, on both sides' filling:

        sum over b, a >= 1 of E[v(y + b l_bid - a l_ask) - v(y + b l_bid) - v(y - a l_ask) + v(y); b, a fills]
        + 2 penalty l_bid l_ask E int b a dt.

    This last part is estimated without an inventory bound, the inventory at the end clipped to it;
    ``loss[size, k]`` bounds the error where the ``k``-th fill of a side is the first that leaves the bound, and
    ``slack`` every other error.

    Parameters
    ----------
    laws, products
        What `count_laws` returns.
    penalty : float
        Running penalty of a squared lot per unit of time.
    slack : float
    loss : (size_max + 1, F)
    values : (m, Y)
        The criterion at the end of the step.
    bid_alone, ask_alone : (2, size_max + 1, m, Y)
        Exact values of each quote and size of one side alone; the entries [:, 0] are those of no quotes.
    """
    spreads, count = values.shape
    fills, size_max = laws.shape[3] - 1, bid_alone.shape[1] - 1
    reach, sizes = fills * size_max, size_max + 1
    marked = np.zeros((2, 2, sizes, sizes), dtype=np.bool_)
    mixed = np.empty((fills + 1, fills + 1, count + 2 * reach))
    by_ask = np.empty((fills + 1, count + 2 * reach))
    error, reflected = np.empty((sizes, count)), np.empty((sizes, count))  # of bid sizes and of ask sizes
    for size in range(1, sizes):
        for y in range(count):
            first = (count - 1 - y) // size + 1
            error[size, y] = loss[size, min(first, loss.shape[1] - 1)]
            reflected[size, count - 1 - y] = error[size, y]
    block = min(count, max(64, MAX_ESTIMATES // (4 * sizes * sizes)))
    estimates = np.empty((2, 2, sizes, sizes, block))
    best, base = np.empty(block), np.empty(block)
    for start in range(spreads):
        quotes = 1 if start == 0 else 2
        for left in range(0, count, block):
            right = min(left + block, count)
            width = right - left
            best[:] = -np.inf
            for quote in range(quotes):  # one side alone, or none
                for size in range(sizes):
                    for y in range(left, min(right, count - size)):
                        best[y - left] = max(best[y - left], bid_alone[quote, size, start, y])
                    for y in range(max(left, size), right):
                        best[y - left] = max(best[y - left], ask_alone[quote, size, start, y])
            nothing = bid_alone[0, 0, start, left:right]
            for bid_quote in range(quotes):
                for ask_quote in range(quotes):
                    _expected_values(laws[start, bid_quote, ask_quote], values, reach, mixed)
                    product = 2.0 * penalty * products[start, bid_quote, ask_quote]
                    for bid_size in range(1, sizes):
                        bid = bid_alone[bid_quote, bid_size, start, left:right]
                        for y in range(width):
                            base[y] = bid[y] - nothing[y]
                        for a in range(1, fills):
                            low, high = reach + left - a * size_max, reach + right
                            into = by_ask[a, low:high]
                            into[:] = 0.0
                            for b in range(1, fills + 1 - a):
                                here = mixed[b, a, low:high]
                                moved = mixed[b, a, low + b * bid_size : high + b * bid_size]
                                for i in range(high - low):
                                    into[i] += moved[i] - here[i]
                            unmoved = by_ask[a, reach + left : reach + right]
                            for y in range(width):
                                base[y] -= unmoved[y]
                        for ask_size in range(1, sizes):
                            ask = ask_alone[ask_quote, ask_size, start, left:right]
                            estimated = estimates[bid_quote, ask_quote, bid_size, ask_size]
                            constant = product * bid_size * ask_size
                            for y in range(width):
                                estimated[y] = base[y] + ask[y] + constant
                            for a in range(1, fills):
                                shift = reach - a * ask_size
                                row = by_ask[a, shift + left : shift + right]
                                for y in range(width):
                                    estimated[y] += row[y]
                            low, high = max(left, ask_size), min(right, count - bid_size)
                            if low < high:
                                estimate, record = estimated[low - left : high - left], best[low - left : high - left]
                                above, below = error[bid_size, low:high], reflected[ask_size, low:high]
                                for y in range(high - low):
                                    record[y] = max(record[y], estimate[y] - above[y] - below[y])
            for bid_quote in range(quotes):
                for ask_quote in range(quotes):
                    for bid_size in range(1, sizes):
                        for ask_size in range(1, sizes):
                            estimated = estimates[bid_quote, ask_quote, bid_size, ask_size]
                            for y in range(max(left, ask_size), min(right, count - bid_size)):
                                if marked[bid_quote, ask_quote, bid_size, ask_size]:
                                    break
                                high = estimated[y - left] + error[bid_size, y] + reflected[ask_size, y] + slack
                                marked[bid_quote, ask_quote, bid_size, ask_size] = high >= best[y - left]
    return np.argwhere(marked)


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
