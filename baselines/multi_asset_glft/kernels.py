"""Kernels of the frozen-quote problem of several assets: one-step operators on the product grid of inventories.

Given frozen quotes the inventories are a Markov chain on the grid with generator ``K``; a functional adds a source
``b``. ``exp(h [[K, b], [0, 0]])`` is summed by uniformisation (`mmgym.uniformisation`): exact to rounding. ``moves``
(2 n, S) has the state after a fill of each side, bids first, -1 where the side is closed.
"""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL
from mmgym.trust_region import SHORTFALL, VALUE, advance, begin, new_search
from mmgym.uniformisation import num_terms, poisson_weights

# Kept beside the declared law (`mmgym.baselines.declared`), for its speed: ten steps of MultiAssetGLFT are solved 13
# times as fast (but scored no faster: 1.1 times).

__all__ = ["backward_exponential", "backward_gradient", "backward_moments", "forward_law", "improve"]


@njit(**KERNEL)
def _total(rates):
    total = 0.0
    for rate in rates:
        total += rate
    return total


@njit(**KERNEL)
def backward_moments(step, states, rates, gains, drift, variance, moves, values, result):
    """Mean (and second moment, if ``values`` has two columns) of an additive functional over a step plus the rest.

    Parameters
    ----------
    step : float
    states : (M,)
    rates, gains : (M, 2 n)
        Fill intensities while the sides are open, and what a fill adds.
    drift, variance : (S,)
        What the functional gains per unit of time, and the variance of its price noise per unit of time.
    moves : (2 n, S)
    values, result : (S, K), (M, K)
    """
    count, columns = values.shape
    sides = rates.shape[1]
    y, z = np.empty_like(values), np.empty_like(values)
    for m in range(len(states)):
        scale = _total(rates[m])
        if scale == 0.0:
            scale = 1.0 / step
        terms = num_terms(2.0 * scale * step)
        y[:] = values
        weights, here = poisson_weights(scale * step, terms), states[m]
        total = np.zeros(columns)
        for k in range(terms):
            for c in range(columns):
                total[c] += weights[k] * y[here, c]
            if k == terms - 1:
                break
            for x in range(count):
                mean = drift[x]
                square = variance[x] + 2.0 * drift[x] * y[x, 0]
                for j in range(sides):
                    to = moves[j, x]
                    if to >= 0:
                        rate, gain = rates[m, j], gains[m, j]
                        mean += rate * (gain + y[to, 0] - y[x, 0])
                        if columns > 1:
                            square += rate * (gain * (gain + 2.0 * y[to, 0]) + y[to, 1] - y[x, 1])
                z[x, 0] = y[x, 0] + mean / scale
                if columns > 1:
                    z[x, 1] = y[x, 1] + square / scale
            y, z = z, y
        result[m] = total


@njit(**KERNEL)
def backward_exponential(step, states, rates, gains, growth, exponents, moves, values, result):
    """``E[exp(z R)]`` of an additive functional over a step plus the rest, for exponents (K,).

    ``growth`` (S, K) is the logarithm of ``E[exp(z R)]`` per unit of time besides fills; the other parameters are those
    of `backward_moments`.
    """
    count, columns = values.shape
    sides = rates.shape[1]
    y, z = np.empty_like(values), np.empty_like(values)
    factors = np.empty((sides, columns), values.dtype)
    fastest = 0.0
    for x in range(count):
        for c in range(columns):
            fastest = max(fastest, abs(growth[x, c]))
    for m in range(len(states)):
        norm = 0.0
        for j in range(sides):
            largest = 0.0
            for c in range(columns):
                factors[j, c] = np.exp(exponents[c] * gains[m, j])
                largest = max(largest, abs(factors[j, c]))
            norm += rates[m, j] * largest
        scale = _total(rates[m]) + fastest
        if scale == 0.0:
            scale = 1.0 / step
        terms = num_terms((2.0 * scale + norm) * step)
        y[:] = values
        weights, here = poisson_weights(scale * step, terms), states[m]
        total = np.zeros(columns, values.dtype)
        for k in range(terms):
            for c in range(columns):
                total[c] += weights[k] * y[here, c]
            if k == terms - 1:
                break
            for x in range(count):
                for c in range(columns):
                    change = growth[x, c] * y[x, c]
                    for j in range(sides):
                        to = moves[j, x]
                        if to >= 0:
                            change += rates[m, j] * (factors[j, c] * y[to, c] - y[x, c])
                    z[x, c] = y[x, c] + change / scale
            y, z = z, y
        result[m] = total


@njit(**KERNEL)
def forward_law(step, rates, moves, law, result):
    """Law after a step, where every state has its own frozen quotes: (S, 2 n) intensities."""
    count = len(law)
    sides = rates.shape[1]
    y, z = np.empty(count), np.empty(count)
    result[:] = 0.0
    for s in range(count):
        if law[s] == 0.0:
            continue
        scale = _total(rates[s])
        if scale == 0.0:
            result[s] += law[s]
            continue
        terms = num_terms(2.0 * scale * step)
        y[:] = 0.0
        y[s] = law[s]
        weights = poisson_weights(scale * step, terms)
        for k in range(terms):
            for x in range(count):
                result[x] += weights[k] * y[x]
            if k == terms - 1:
                break
            for x in range(count):
                z[x] = y[x]
            for x in range(count):
                if y[x] == 0.0:
                    continue
                for j in range(sides):
                    to = moves[j, x]
                    if to >= 0:
                        part = y[x] * rates[s, j] / scale
                        z[to] += part
                        z[x] -= part
            y, z = z, y


@njit(**KERNEL)
def value_and_slopes(step, state, rates, depths, decays, sizes, aversion, growth, drift, moves, values, work, slopes):
    """The criterion from one state under frozen depths, and its derivatives in the depths.

    The derivative of ``K`` and of the source in a depth is the source of another function on the grid, which is carried
    along: exact to rounding like the value.

    Parameters
    ----------
    step, state : float, int
    rates, depths, decays, sizes : (2 n,)
        Intensities at the depths; size of an order of each side.
    aversion : float
        Of an exponential criterion: its values are expectations of ``exp(-aversion ...)``. 0 for a mean.
    growth, drift : (S,)
        Growth of the criterion per unit of time besides fills: relative, of an exponential one, and absolute.
    moves : (2 n, S)
    values : (S,)
    work : (2, 2 n + 1, S)
        Overwritten.
    slopes : (2 n,)
        Takes the derivatives.
    """
    count, sides = len(values), len(rates)
    scale, norm = _total(rates), 0.0
    if aversion > 0.0:
        for x in range(count):
            norm = max(norm, abs(growth[x]))
        scale += norm
        for j in range(sides):
            norm += rates[j] * math.exp(-aversion * sizes[j] * depths[j])
    terms = num_terms((2.0 * scale + norm) * step)
    y, z = work[0], work[1]
    y[:] = 0.0
    y[sides] = values
    slopes[:] = 0.0
    total, weights = 0.0, poisson_weights(scale * step, terms)
    for k in range(terms):
        total += weights[k] * y[sides, state]
        for j in range(sides):
            slopes[j] += weights[k] * y[j, state]
        if k == terms - 1:
            break
        z[:] = y
        for j in range(sides):
            rate, decay, size, gain = rates[j] / scale, decays[j], sizes[j], sizes[j] * depths[j]
            factor, steep = 1.0, 0.0
            if aversion > 0.0:
                size, gain, factor, steep = 0.0, 0.0, math.exp(-aversion * gain), aversion * size
            for x in range(count):
                to = moves[j, x]
                if to >= 0:
                    there = factor * y[sides, to]
                    jump = gain + there - y[sides, x]
                    z[sides, x] += rate * jump
                    z[j, x] += rate * (size - decay * jump - steep * there)
                    for i in range(sides):
                        z[i, x] += rate * (factor * y[i, to] - y[i, x])
        for x in range(count):
            z[sides, x] += drift[x] / scale
        if aversion > 0.0:
            for i in range(sides + 1):
                for x in range(count):
                    z[i, x] += growth[x] / scale * y[i, x]
        y, z = z, y
    return total


@njit(**KERNEL)
def improve(
    step, factors, decays, sizes, aversion, low, high, growth, drift, moves, values, units, noise, curvatures, depths,
    best, shortfalls,
):  # fmt: skip
    """Best frozen depths of every state near a guess, and their value, by `mmgym.trust_region`.

    Parameters
    ----------
    units : (2 n,)
        ``1 / decays``.
    noise : (S,)
        Rounding error of the values.
    curvatures : (S, 2 n, 2 n)
        In: guess of the second derivatives, 0 where there is none. Out: those learned.
    depths : (S, 2 n)
        In: guess. Out: best depths.
    best, shortfalls : (S,)
        Out: best values, and what a further move promises.
    """
    count, sides = depths.shape
    work, slopes, rates = np.empty((2, sides + 1, count)), np.empty(sides), np.empty(sides)
    search, none = new_search(sides), np.empty((0, 0))
    sign = 1.0 if aversion == 0.0 else -1.0
    for s in range(count):
        for j in range(sides):
            depths[s, j] = min(max(depths[s, j], low[j]), high[j])
            rates[j] = factors[j] * math.exp(-decays[j] * depths[s, j])
        begin(search, depths[s])
        search.curvature[:] = curvatures[s]
        if curvatures[s, 0, 0] == 0.0:
            # Nearly diagonal, - k D E[fills]: a step changes the others' prospects by the order of its fills.
            for j in range(sides):
                opposite = rates[j + sides // 2 if j < sides // 2 else j - sides // 2]
                chance = 1.0 if moves[j, s] >= 0 else 0.5 * (1.0 - math.exp(-opposite * step))
                weight = 1.0 if aversion == 0.0 else aversion * values[s]
                search.curvature[j, j] = -weight * decays[j] * sizes[j] * rates[j] * step * max(chance, 1e-3)
        while True:
            for j in range(sides):
                rates[j] = factors[j] * math.exp(-decays[j] * search.trial[j])
            value = value_and_slopes(
                step, s, rates, search.trial, decays, sizes, aversion, growth, drift, moves, values, work, slopes
            )  # fmt: skip
            slopes *= sign
            if advance(search, sign * value, slopes, none, low, high, units, noise[s]):
                break
        depths[s] = search.point
        curvatures[s] = search.curvature
        best[s], shortfalls[s] = sign * search.numbers[VALUE], search.numbers[SHORTFALL]


@njit(**KERNEL)
def backward_gradient(
    step, states, rates, depths, decays, sizes, aversion, growth, drift, moves, values, result, gradient
):
    """One-step criterion (M,) of states (M,) under depths (M, 2 n), and its derivatives (M, 2 n) in them."""
    work = np.empty((2, rates.shape[1] + 1, len(values)))
    for m in range(len(states)):
        result[m] = value_and_slopes(
            step, states[m], rates[m], depths[m], decays, sizes, aversion, growth, drift, moves, values, work,
            gradient[m],
        )  # fmt: skip
