"""Numba kernels of the continuous-time market: the quasi-variational inequality and linear Kolmogorov systems.

Arrays over states have a row per spread and a column per inventory, ``(m, Y)``, or are flat, ``spread * Y + column``.
Controls are counted in lots. Both criteria are one maximisation: of ``w = phi`` under the mean criterion and of
``w = -phi`` under CARA, where what follows a jump counts as ``w(after) * factor + addend``.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.compiling import KERNEL

Array = NDArray[Any]

TIE = 1e-13  # of a value: what a market order must gain to be sent, or a choice to be preferred to a simpler one
TAYLOR_NORM = 4.0  # of an exponential summed as one series: its terms stay below 11, so at most two digits are lost
TAYLOR_TERMS = 60  # at most, of such a series


@njit(**KERNEL)
def _fill_gains(rates: Array, factors: Array, addends: Array, w: Array, best: Array, top: Array) -> None:
    """Adds to ``best`` (Y,) the largest ``rate (w(y + l) F + A - w(y))`` over quotes and sizes ``l``.

    ``rates`` (2,); ``factors, addends`` (2, sizes + 1); ``top`` is scratch (Y,).
    """
    count, gain = w.shape[0], np.zeros(w.shape[0])
    for quote in range(2):
        if rates[quote] <= 0.0 or (quote == 1 and rates[1] <= rates[0]):
            continue  # improved quotes earn no more a share
        for y in range(count):
            top[y] = w[y]
        for size in range(1, min(factors.shape[1], count)):
            factor, addend = factors[quote, size], addends[quote, size]
            for y in range(count - size):
                candidate = w[y + size] * factor + addend
                top[y] = candidate if candidate > top[y] else top[y]
        for y in range(count):
            candidate = rates[quote] * (top[y] - w[y])
            gain[y] = candidate if candidate > gain[y] else gain[y]
    for y in range(count):
        best[y] += gain[y]


@njit(**KERNEL)
def _fill_choices(
    rates: Array, factors: Array, addends: Array, w: Array, floor: float, quotes: Array, sizes: Array
) -> None:
    """The quote and size that `_fill_gains` finds, the simplest within `TIE`: no order, best quote, smallest size."""
    count = w.shape[0]
    for y in range(count):
        quotes[y] = sizes[y] = 0
        kept = 0.0
        for quote in range(2):
            chosen, top = 0, w[y]
            for size in range(1, min(factors.shape[1], count - y)):
                candidate = w[y + size] * factors[quote, size] + addends[quote, size]
                if candidate > top + TIE * abs(top) + floor:
                    chosen, top = size, candidate
            gain = rates[quote] * (top - w[y])
            if gain > kept + rates[quote] * (TIE * abs(top) + floor):
                kept, quotes[y], sizes[y] = gain, quote, chosen


@njit(**KERNEL)
def _sell_sweep(
    block: int, scale: Array, shift: Array, back: Array, cost: Array, w: Array, floor: float, best: Array, land: Array
) -> None:
    """Best of any number of market sell orders of at most ``block`` lots, one after the other.

    ``best(y) = max(w(y), max_(y - block <= z < y) key(z) back(y) + cost(y))`` with ``key = best scale + shift``, by the
    maximum of a sliding window; ``land`` is the inventory after the last order.
    """
    count = w.shape[0]
    keys, places = np.empty(count), np.empty(count, dtype=np.int64)
    first = last = 0
    for y in range(count):
        best[y], land[y] = w[y], y
        if y > 0:
            while places[first] < y - block:
                first += 1
            candidate = keys[first] * back[y] + cost[y]
            if candidate > w[y] + TIE * abs(w[y]) + floor:
                best[y], land[y] = candidate, land[places[first]]
        key = best[y] * scale[y] + shift[y]
        while last > first and keys[last - 1] <= key:
            last -= 1
        keys[last], places[last] = key, y
        last += 1


@njit(**KERNEL)
def _after_orders(
    block: int, scale: Array, shift: Array, back: Array, cost: Array, w: Array, floor: float, best: Array, land: Array
) -> None:
    """Best of any market orders sent at once, (Y,): sells, or buys, which are sells with the inventory mirrored."""
    count = w.shape[0]
    bought, landed = np.empty(count), np.empty(count, dtype=np.int64)
    _sell_sweep(block, scale, shift, back, cost, w, floor, best, land)
    _sell_sweep(block, scale, shift, back, cost, w[::-1].copy(), floor, bought, landed)
    for y in range(count):
        mirrored = count - 1 - y
        if bought[mirrored] > best[y] + TIE * abs(best[y]) + floor:
            best[y], land[y] = bought[mirrored], count - 1 - landed[mirrored]


@njit(**KERNEL)
def march(
    step: float,
    clock: Array,
    transitions: Array,
    bid_rates: Array,
    ask_rates: Array,
    factors: Array,
    addends: Array,
    growth: Array,
    source: Array,
    block: int,
    scale: Array,
    shift: Array,
    back: Array,
    cost: Array,
    floor: float,
    rescale: bool,
    w: Array,
    choices: Array,
) -> float:
    """Steps of the explicit scheme, the latest first: ``w = M[w + step (R w + bid + ask + growth w + source)]``.

    Parameters
    ----------
    step : float
        Length of a step of the scheme (s).
    clock : (K,)
        Rate of the clock in each step, in order of time (1 / s).
    transitions : (m, m)
    bid_rates, ask_rates : (2, m)
        Intensities of best and improved quotes (1 / s).
    factors, addends : (m, 2, sizes + 1)
        What a fill of each size does to the value after it.
    growth, source : (Y,)
        Of the value, per unit of time.
    block : int
        Largest market order in lots; 0 for none.
    scale, shift, back, cost : (m, Y)
        Of `_sell_sweep`.
    floor : float
        Added to relative ties.
    rescale : bool
        Whether to keep the largest value at 1.
    w : (m, Y)
        In: values at the end. Out: at the start.
    choices : (m, Y, 5) int
        Out: bid quote, ask quote, bid size, ask size of the first step, and the column where its market orders land.

    Returns
    -------
    float
        Logarithm of the factor by which ``w`` was divided.
    """
    spreads, count = w.shape
    next_w, top, flow = np.empty_like(w), np.empty(count), np.empty(count)
    best, land = np.empty(count), np.empty(count, dtype=np.int64)
    quotes, sizes = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    log_scale = 0.0
    for k in range(clock.shape[0] - 1, -1, -1):
        for i in range(spreads):
            for y in range(count):
                flow[y] = (growth[y] - clock[k]) * w[i, y] + source[y]
            for j in range(spreads):
                rate = clock[k] * transitions[i, j]
                for y in range(count):
                    flow[y] += rate * w[j, y]
            mirrored = w[i, ::-1].copy()
            for y in range(count):
                best[y] = 0.0
            _fill_gains(ask_rates[:, i].copy(), factors[i], addends[i], mirrored, best, top)
            for y in range(count):
                flow[y] += best[count - 1 - y]
            _fill_gains(bid_rates[:, i].copy(), factors[i], addends[i], w[i], flow, top)
            if k == 0:
                _fill_choices(bid_rates[:, i].copy(), factors[i], addends[i], w[i], floor, quotes, sizes)
                for y in range(count):
                    choices[i, y, 0], choices[i, y, 2] = quotes[y], sizes[y]
                _fill_choices(ask_rates[:, i].copy(), factors[i], addends[i], mirrored, floor, quotes, sizes)
                for y in range(count):
                    choices[i, y, 1], choices[i, y, 3] = quotes[count - 1 - y], sizes[count - 1 - y]
                    choices[i, y, 4] = y
            for y in range(count):
                next_w[i, y] = w[i, y] + step * flow[y]
            if block > 0:
                _after_orders(block, scale[i], shift[i], back[i], cost[i], next_w[i], floor, best, land)
                next_w[i] = best
                if k == 0:
                    choices[i, :, 4] = land
        w[:] = next_w
        if rescale:
            largest = np.abs(w).max()
            w /= largest
            log_scale += math.log(largest)
    return log_scale


@njit(**KERNEL)
def _extend_moments(landing: Array, order_gains: Array, constant: float, values: Array) -> None:
    """Sets the values (S, K) where market orders are sent at once from those where they land.

    ``constant`` is 1 for the values themselves and 0 for their derivatives in time.
    """
    for s in range(values.shape[0]):
        after = landing[s]
        if after != s:
            gain = order_gains[s]
            values[s, 0] = constant * gain + values[after, 0]
            if values.shape[1] == 2:
                values[s, 1] = gain * (constant * gain + 2.0 * values[after, 0]) + values[after, 1]


@njit(**KERNEL)
def feedback_moments(
    length: float,
    clock: float,
    transitions: Array,
    rates: Array,
    targets: Array,
    gains: Array,
    landing: Array,
    order_gains: Array,
    drift: Array,
    variance: Array,
    values: Array,
) -> Array:
    """First (and second) moments of an additive functional, backward over a time in which all is constant.

    Parameters
    ----------
    length, clock : float
        The time (s) and the rate of the clock in it (1 / s).
    transitions : (m, m)
    rates, targets, gains : (2, S)
        Of bid and ask fills: intensity, state after the fill, and what it adds to the functional.
    landing, order_gains : (S,)
        State after the market orders that are sent at once, and what they add; ``landing[s] == s`` where there are
        none.
    drift, variance : (Y,)
        Of the functional per unit of time.
    values : (S, K)
        ``K = 1``: expectation of the rest. ``K = 2``: and its second moment. Not changed.
    """
    spreads, states, columns = transitions.shape[0], values.shape[0], values.shape[1]
    count = states // spreads
    fastest = 0.0
    for s in range(states):
        fastest = max(fastest, rates[0, s] + rates[1, s])
    pieces = max(1, math.ceil(2.0 * (clock + fastest) * length / TAYLOR_NORM))
    total, term, next_term = values.copy(), np.empty_like(values), np.empty_like(values)
    _extend_moments(landing, order_gains, 1.0, total)
    for _ in range(pieces):
        term[:] = total
        for j in range(1, TAYLOR_TERMS):
            step = length / (pieces * j)
            constant = 1.0 if j == 1 else 0.0
            for i in range(spreads):
                for y in range(count):
                    s = i * count + y
                    if landing[s] != s:
                        continue
                    f, mixed = term[s, 0], 0.0
                    for k in range(spreads):
                        mixed += transitions[i, k] * term[k * count + y, 0]
                    change = clock * (mixed - f) + constant * drift[y]
                    for side in range(2):
                        after = term[targets[side, s], 0]
                        change += rates[side, s] * (constant * gains[side, s] + after - f)
                    next_term[s, 0] = step * change
                    if columns == 2:
                        square, mixed = term[s, 1], 0.0
                        for k in range(spreads):
                            mixed += transitions[i, k] * term[k * count + y, 1]
                        change = clock * (mixed - square) + 2.0 * drift[y] * f + constant * variance[y]
                        for side in range(2):
                            gain, after = gains[side, s], targets[side, s]
                            jump = gain * (constant * gain + 2.0 * term[after, 0]) + term[after, 1] - square
                            change += rates[side, s] * jump
                        next_term[s, 1] = step * change
            _extend_moments(landing, order_gains, 0.0, next_term)
            done = True
            for k in range(columns):
                largest = size = 0.0
                for s in range(states):
                    total[s, k] += next_term[s, k]
                    largest = max(largest, abs(next_term[s, k]))
                    size = max(size, abs(total[s, k]))
                done &= largest <= 1e-17 * size
            if done:
                break
            term, next_term = next_term, term
    return total


@njit(**KERNEL)
def feedback_exponential(
    length: float,
    clock: float,
    transitions: Array,
    rates: Array,
    targets: Array,
    gains: Array,
    landing: Array,
    order_gains: Array,
    drift: Array,
    variance: Array,
    exponents: Array,
    values: Array,
) -> Array:
    """``E[exp(z R)]`` of an additive functional ``R``, for exponents ``z`` (K,); otherwise as `feedback_moments`."""
    spreads, states, columns = transitions.shape[0], values.shape[0], values.shape[1]
    count = states // spreads
    factors = np.empty((2, states, columns), dtype=values.dtype)
    order_factors = np.empty_like(values)
    growth = np.empty((count, columns), dtype=values.dtype)
    norm = 0.0
    for k in range(columns):
        z = exponents[k]
        for y in range(count):
            growth[y, k] = z * drift[y] + 0.5 * z * z * variance[y]
        for s in range(states):
            order_factors[s, k] = np.exp(z * order_gains[s])
            size = 2.0 * clock + abs(growth[s % count, k])
            for side in range(2):
                factors[side, s, k] = rates[side, s] * np.exp(z * gains[side, s])
                size += rates[side, s] + abs(factors[side, s, k])
            norm = max(norm, size)
    pieces = max(1, math.ceil(norm * length / TAYLOR_NORM))
    total, term, next_term = values.copy(), np.empty_like(values), np.empty_like(values)
    for s in range(states):
        for k in range(columns):
            if landing[s] != s:
                total[s, k] = order_factors[s, k] * total[landing[s], k]
    for _ in range(pieces):
        term[:] = total
        for j in range(1, TAYLOR_TERMS):
            step = length / (pieces * j)
            for i in range(spreads):
                for y in range(count):
                    s = i * count + y
                    if landing[s] != s:
                        continue
                    leave = clock + rates[0, s] + rates[1, s]
                    bid, ask = targets[0, s], targets[1, s]
                    for k in range(columns):
                        change = (growth[y, k] - leave) * term[s, k]
                        change += factors[0, s, k] * term[bid, k] + factors[1, s, k] * term[ask, k]
                        for other in range(spreads):
                            change += clock * transitions[i, other] * term[other * count + y, k]
                        next_term[s, k] = step * change
            largest = size = 0.0
            for s in range(states):
                for k in range(columns):
                    if landing[s] != s:
                        next_term[s, k] = order_factors[s, k] * next_term[landing[s], k]
                    total[s, k] += next_term[s, k]
                    largest = max(largest, abs(next_term[s, k]))
                    size = max(size, abs(total[s, k]))
            if largest <= 1e-17 * size:
                break
            term, next_term = next_term, term
    return total


@njit(**KERNEL)
def feedback_law(
    length: float, clock: float, transitions: Array, rates: Array, targets: Array, landing: Array, law: Array
) -> Array:
    """Law (S,) of the state after a time in which all is constant, from the law before it.

    The parameters are those of `feedback_moments`; ``law`` has no mass where market orders are sent.
    """
    spreads, states = transitions.shape[0], law.shape[0]
    count = states // spreads
    fastest = 0.0
    for s in range(states):
        fastest = max(fastest, rates[0, s] + rates[1, s])
    pieces = max(1, math.ceil(2.0 * (clock + fastest) * length / TAYLOR_NORM))
    total, term, next_term = law.copy(), np.empty_like(law), np.empty_like(law)
    for _ in range(pieces):
        term[:] = total
        for j in range(1, TAYLOR_TERMS):
            step = length / (pieces * j)
            next_term[:] = 0.0
            for s in range(states):
                mass = step * term[s]
                if mass == 0.0:
                    continue
                next_term[s] -= (clock + rates[0, s] + rates[1, s]) * mass
                for side in range(2):
                    next_term[landing[targets[side, s]]] += rates[side, s] * mass
                for k in range(spreads):
                    after = landing[k * count + s % count]
                    next_term[after] += clock * transitions[s // count, k] * mass
            largest = 0.0
            for s in range(states):
                total[s] += next_term[s]
                largest = max(largest, abs(next_term[s]))
            if largest <= 1e-18:
                break
            term, next_term = next_term, term
    return total
