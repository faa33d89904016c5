"""Numba kernels of the frozen-quote step of the GLFT market, and of quotes that react at once.

Inside a step the depths are constant, so every expectation over the step solves a linear system ``y' = K y`` that is
tridiagonal in the inventory. It is summed by uniformisation, ``exp(h K) = sum_j Poisson(j; c h) (1 + K / c)^j``, with a
shift ``c`` that makes every term positive for a plain expectation. Only one inventory of the result is wanted: after
``j`` terms the sum needs the inventories within ``terms - j`` of it, so the window shrinks.
"""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL
from mmgym.trust_region import SHORTFALL, VALUE, advance, begin, new_search
from mmgym.uniformisation import num_terms, poisson_weights

ONE = np.uint64(1)  # unsigned loop indices spare the check for negative ones, and the inner loops become vectors
TAYLOR_TERMS = 20  # of an exponential of norm at most 1: the rest is below 1 / 21! = 2e-20


@njit(**KERNEL)
def backward_moments(step, states, rates, gains, drift_rate, variance_rate, values, result):
    """First (and second) moments of an additive functional over one step plus the rest of the episode.

    Parameters
    ----------
    step : float
        Length of the step.
    states : (M,) int
        Index of the inventory (0 is the lower bound) at the start of the step.
    rates, gains : (M, 2)
        Intensities of bid and ask fills while active, and what a fill adds to the functional.
    drift_rate, variance_rate : (S,)
        What the functional gains per unit of time, and the variance of its Brownian part.
    values : (S, K)
        ``K = 1``: expectation of the rest. ``K = 2``: and its second moment.
    result : (M, K)
        The same at the start of the step.
    """
    count, moments = values.shape
    f, g = np.empty(count), np.empty(count)
    m, o = np.empty(count), np.empty(count)
    for i in range(states.shape[0]):
        q, up, down = states[i], rates[i, 0], rates[i, 1]
        gain_up, gain_down = gains[i, 0], gains[i, 1]
        shift = up + down
        terms = num_terms(shift * step)
        low, high = max(0, q - terms), min(count - 1, q + terms)
        for s in range(low, high + 1):
            f[s] = values[s, 0]
            m[s] = values[s, 1] if moments == 2 else 0.0
        weights = poisson_weights(shift * step, terms)
        total_f, total_m = weights[0] * f[q], weights[0] * m[q]
        for j in range(1, terms):
            left = terms - j
            low, high = max(0, q - left), min(count - 1, q + left)
            for s in range(low, high + 1):
                new_f = drift_rate[s]
                new_m = 2.0 * drift_rate[s] * f[s] + variance_rate[s]
                if s < count - 1:
                    new_f += up * (f[s + 1] - f[s] + gain_up)
                    new_m += up * (m[s + 1] - m[s] + gain_up * (2.0 * f[s + 1] + gain_up))
                if s > 0:
                    new_f += down * (f[s - 1] - f[s] + gain_down)
                    new_m += down * (m[s - 1] - m[s] + gain_down * (2.0 * f[s - 1] + gain_down))
                g[s], o[s] = f[s] + new_f / shift, m[s] + new_m / shift
            f, g = g, f
            m, o = o, m
            total_f += weights[j] * f[q]
            total_m += weights[j] * m[q]
        result[i, 0] = total_f
        if moments == 2:
            result[i, 1] = total_m


@njit(**KERNEL)
def backward_exponential(step, states, rates, gains, growth, exponents, values, result):
    """``E[exp(z R)]`` of an additive functional ``R`` over one step plus the rest, for exponents ``z`` of shape (K,).

    ``growth`` (S, K) is the logarithm of ``E[exp(z R)]`` per unit of time besides fills. The other parameters are those
    of `backward_moments`; ``values`` and ``result`` have a column per exponent.
    """
    count, columns = values.shape
    y, next_y = np.empty_like(values), np.empty_like(values)
    up_factor, down_factor = np.empty_like(exponents), np.empty_like(exponents)
    for i in range(states.shape[0]):
        q, up, down = states[i], rates[i, 0], rates[i, 1]
        largest = 0.0
        for k in range(columns):
            up_factor[k] = up * np.exp(exponents[k] * gains[i, 0])
            down_factor[k] = down * np.exp(exponents[k] * gains[i, 1])
            largest = max(largest, abs(up_factor[k]) + abs(down_factor[k]))
        slowest, fastest = 0.0, 0.0
        for s in range(count):
            for k in range(columns):
                slowest = min(slowest, growth[s, k].real)
                fastest = max(fastest, abs(growth[s, k]))
        shift = up + down - slowest
        inverse = 1.0 / shift
        terms = num_terms((math.hypot(shift, fastest) + largest) * step)
        low, high = max(0, q - terms), min(count - 1, q + terms)
        y[low : high + 1] = values[low : high + 1]
        weights = poisson_weights(shift * step, terms)
        for k in range(columns):
            result[i, k] = weights[0] * y[q, k]
        for j in range(1, terms):
            left = terms - j
            low, high = max(0, q - left), min(count - 1, q + left)
            for s in range(low, high + 1):
                leave = shift - (up if s < count - 1 else 0.0) - (down if s > 0 else 0.0)
                for k in range(columns):
                    next_y[s, k] = (leave + growth[s, k]) * y[s, k]
                if s < count - 1:
                    for k in range(columns):
                        next_y[s, k] += up_factor[k] * y[s + 1, k]
                if s > 0:
                    for k in range(columns):
                        next_y[s, k] += down_factor[k] * y[s - 1, k]
                for k in range(columns):
                    next_y[s, k] *= inverse
            y, next_y = next_y, y
            for k in range(columns):
                result[i, k] += weights[j] * y[q, k]


@njit(**KERNEL)
def forward_law(step, rates, law, result):
    """Law of the inventory after a step, shape (S,), from the law before it and the rates (S, 2) of each inventory."""
    count = law.shape[0]
    p, next_p = np.empty(count), np.empty(count)
    result[:] = 0.0
    for q in range(count):
        if law[q] == 0.0:
            continue
        up, down = rates[q, 0], rates[q, 1]
        shift = up + down
        terms = num_terms(shift * step)
        p[max(0, q - terms) : min(count, q + terms + 1)] = 0.0
        next_p[max(0, q - terms) : min(count, q + terms + 1)] = 0.0
        p[q] = law[q]
        weights = poisson_weights(shift * step, terms)
        result[q] += weights[0] * p[q]
        for j in range(1, terms):
            low, high = max(0, q - j), min(count - 1, q + j)
            for s in range(low, high + 1):
                mass = (shift - (up if s < count - 1 else 0.0) - (down if s > 0 else 0.0)) * p[s]
                if s > 0:
                    mass += up * p[s - 1]
                if s < count - 1:
                    mass += down * p[s + 1]
                next_p[s] = mass / shift
            p, next_p = next_p, p
            for s in range(low, high + 1):
                result[s] += weights[j] * p[s]


@njit(**KERNEL)
def _side(rate, fill_rate, decay, size, aversion):
    """A side as a function of its intensity ``x``: weight of the neighbour's value, source, and two derivatives.

    Mean criterion (``aversion`` 0): weight ``x``, source ``x D d(x)`` with the depth ``d(x) = ln(A / x) / k``.
    CARA: weight ``x exp(-gamma D d(x)) = x (x / A)^(gamma D / k)``, no source.
    """
    depth = math.log(fill_rate / rate) / decay
    if aversion == 0.0:
        return rate, 1.0, 0.0, size * rate * depth, size * (depth - 1.0 / decay), -size / (decay * rate)
    power = aversion * size / decay
    factor = math.exp(-aversion * size * depth)
    return rate * factor, (1.0 + power) * factor, power * (1.0 + power) * factor / rate, 0.0, 0.0, 0.0


@njit(**KERNEL)
def _value_and_slopes(step, q, rates, fill_rates, decays, size, aversion, diagonal, source, values, blocks, out):
    """One-step value at inventory ``q`` for intensities ``rates``, its gradient and its Hessian in them.

    ``out`` is [y, y_b, y_a, y_bb, y_ab, y_aa]; ``blocks`` is scratch of shape (2, 6, S + 2). The derivatives solve the
    systems that differentiating ``y' = K y + source`` in the intensities gives. The cells beyond the edges hold what
    makes a blocked fill change nothing.
    """
    count = values.shape[0]
    x, z = rates[0], rates[1]
    cb, cb1, cb2, sb, sb1, sb2 = _side(x, fill_rates[0], decays[0], size, aversion)
    ca, ca1, ca2, sa, sa1, sa2 = _side(z, fill_rates[1], decays[1], size, aversion)
    slowest, fastest = 0.0, 0.0
    for s in range(count):
        slowest = min(slowest, diagonal[s])
        fastest = max(fastest, diagonal[s])
    shift = x + z - slowest
    terms = num_terms((shift + fastest + max(cb + ca - x - z, 0.0)) * step) + 2
    y, n = blocks[0], blocks[1]
    low, high = max(0, q - terms), min(count - 1, q + terms)
    y[0, low + 1 : high + 2] = values[low : high + 1]
    y[1:, low + 1 : high + 2] = 0.0
    weights = poisson_weights(shift * step, terms)
    for d in range(6):
        out[d] = weights[0] * y[d, q + 1]
    w = 1.0 / shift
    for j in range(1, terms):
        if high == count - 1:
            e = count
            u = y[:, count + 1]
            u[0] = (x * y[0, e] - sb) / cb
            u[1] = (x * y[1, e] + y[0, e] - cb1 * u[0] - sb1) / cb
            u[2] = x * y[2, e] / cb
            u[3] = (x * y[3, e] + 2.0 * (y[1, e] - cb1 * u[1]) - cb2 * u[0] - sb2) / cb
            u[4] = (x * y[4, e] + y[2, e] - cb1 * u[2]) / cb
            u[5] = x * y[5, e] / cb
        if low == 0:
            u = y[:, 0]
            u[0] = (z * y[0, 1] - sa) / ca
            u[1] = z * y[1, 1] / ca
            u[2] = (z * y[2, 1] + y[0, 1] - ca1 * u[0] - sa1) / ca
            u[3] = z * y[3, 1] / ca
            u[4] = (z * y[4, 1] + y[1, 1] - ca1 * u[1]) / ca
            u[5] = (z * y[5, 1] + 2.0 * (y[2, 1] - ca1 * u[2]) - ca2 * u[0] - sa2) / ca
        left = terms - j
        low, high = max(0, q - left), min(count - 1, q + left)
        y0, yb, ya, ybb, yab, yaa = y[0], y[1], y[2], y[3], y[4], y[5]
        n0, nb, na, nbb, nab, naa = n[0], n[1], n[2], n[3], n[4], n[5]
        earned, idle = sb + sa, shift - x - z
        for s in range(np.uint64(low + 1), np.uint64(high + 2)):
            above, below = s + ONE, s - ONE
            stay, f, fb, fa = idle + diagonal[below], y0[s], yb[s], ya[s]
            u0, ub, ua, v0, vb, va = y0[above], yb[above], ya[above], y0[below], yb[below], ya[below]
            n0[s] = w * (stay * f + source[below] + earned + cb * u0 + ca * v0)
            nb[s] = w * (stay * fb + cb * ub + ca * vb + cb1 * u0 - f + sb1)
            na[s] = w * (stay * fa + cb * ua + ca * va + ca1 * v0 - f + sa1)
            nbb[s] = w * (
                stay * ybb[s] + cb * ybb[above] + ca * ybb[below] + 2.0 * (cb1 * ub - fb) + cb2 * u0 + sb2
            )  # fmt: skip
            nab[s] = w * (stay * yab[s] + cb * yab[above] + ca * yab[below] + cb1 * ua - fa + ca1 * vb - fb)
            naa[s] = w * (
                stay * yaa[s] + cb * yaa[above] + ca * yaa[below] + 2.0 * (ca1 * va - fa) + ca2 * v0 + sa2
            )  # fmt: skip
        y, n = n, y
        for d in range(6):
            out[d] += weights[j] * y[d, q + 1]


@njit(**KERNEL)
def backward_gradient(
    step, states, rates, fill_rates, decays, size, aversion, diagonal, source, values, result, gradient
):
    """One-step criterion of (state, intensities) pairs and its derivatives in the intensities.

    Parameters
    ----------
    states : (M,) int
    rates : (M, 2)
        Intensities of bid and ask while active.
    diagonal, source, values
        Those of `improve`.
    result, gradient : (M,), (M, 2)
        Out.
    """
    count = values.shape[0]
    y, n = np.empty((3, count)), np.empty((3, count))
    for i in range(states.shape[0]):
        q, x, z = states[i], rates[i, 0], rates[i, 1]
        cb, cb1, _, sb, sb1, _ = _side(x, fill_rates[0], decays[0], size, aversion)
        ca, ca1, _, sa, sa1, _ = _side(z, fill_rates[1], decays[1], size, aversion)
        slowest, fastest = 0.0, 0.0
        for s in range(count):
            slowest = min(slowest, diagonal[s])
            fastest = max(fastest, diagonal[s])
        shift = x + z - slowest
        terms = num_terms((shift + fastest + max(cb + ca - x - z, 0.0)) * step) + 1
        low, high = max(0, q - terms), min(count - 1, q + terms)
        for s in range(low, high + 1):
            y[0, s], y[1, s], y[2, s] = values[s], 0.0, 0.0
        weights, w = poisson_weights(shift * step, terms), 1.0 / shift
        total, total_b, total_a = weights[0] * values[q], 0.0, 0.0
        for j in range(1, terms):
            left = terms - j
            low, high = max(0, q - left), min(count - 1, q + left)
            y0, yb, ya = y[0], y[1], y[2]
            for s in range(low, high + 1):
                stay = shift + diagonal[s]
                n0, nb, na = stay * y0[s] + source[s], stay * yb[s], stay * ya[s]
                if s < count - 1:
                    n0 += cb * y0[s + 1] - x * y0[s] + sb
                    nb += cb * yb[s + 1] - x * yb[s] + cb1 * y0[s + 1] - y0[s] + sb1
                    na += cb * ya[s + 1] - x * ya[s]
                if s > 0:
                    n0 += ca * y0[s - 1] - z * y0[s] + sa
                    nb += ca * yb[s - 1] - z * yb[s]
                    na += ca * ya[s - 1] - z * ya[s] + ca1 * y0[s - 1] - y0[s] + sa1
                n[0, s], n[1, s], n[2, s] = w * n0, w * nb, w * na
            y, n = n, y
            total += weights[j] * y[0, q]
            total_b += weights[j] * y[1, q]
            total_a += weights[j] * y[2, q]
        result[i] = total
        gradient[i, 0], gradient[i, 1] = total_b, total_a


@njit(**KERNEL)
def improve(
    step, fill_rates, decays, size, aversion, diagonal, source, low_rates, high_rates, values, noise, depths, best,
    shortfalls,
):  # fmt: skip
    """Best frozen depths of every inventory near a guess, and their value, by `mmgym.trust_region` in the intensities.

    Parameters
    ----------
    diagonal, source : (S,)
        Growth rate and reward rate of an inventory, besides fills.
    low_rates, high_rates : (2,)
        Bounds of the intensities: those of the depth box.
    values : (S,)
        Value at the end of the step; under CARA (``aversion > 0``) the expectation of ``exp(-gamma ...)``, minimised.
    noise : (S,)
        Rounding error of the values.
    depths : (S, 2)
        In: guess. Out: best depths.
    best, shortfalls : (S,)
        Out: best values, and what a further move promises.
    """
    count = values.shape[0]
    blocks, out = np.empty((2, 6, count + 2)), np.empty(6)
    sign = 1.0 if aversion == 0.0 else -1.0
    search, relative = new_search(2), np.empty(0)
    rates, slope, curvature = np.empty(2), np.empty(2), np.empty((2, 2))
    for q in range(count):
        for side in range(2):
            rate = fill_rates[side] * math.exp(-decays[side] * depths[q, side])
            rates[side] = min(max(rate, low_rates[side]), high_rates[side])
        begin(search, rates)
        while True:
            _value_and_slopes(
                step, q, search.trial, fill_rates, decays, size, aversion, diagonal, source, values, blocks, out
            )  # fmt: skip
            slope[0], slope[1] = sign * out[1], sign * out[2]
            curvature[0, 0], curvature[1, 1] = sign * out[3], sign * out[5]
            curvature[0, 1] = curvature[1, 0] = sign * out[4]
            if advance(search, sign * out[0], slope, curvature, low_rates, high_rates, relative, noise[q]):
                break
        best[q] = sign * search.numbers[VALUE]
        shortfalls[q] = search.numbers[SHORTFALL]
        for side in range(2):
            depths[q, side] = math.log(fill_rates[side] / search.point[side]) / decays[side]


@njit(**KERNEL)
def time_weights(rate, fade, step, terms):
    """``int_0^step exp(-fade s) Poisson(j; rate s) ds`` for ``j = 0 .. terms - 1``, from positive terms."""
    ends = math.exp(-fade * step) * poisson_weights(rate * step, terms + 1)
    weights = np.empty(terms)
    later = 0.0
    for j in range(terms, 0, -1):
        later = ((rate + fade) * later + ends[j]) / rate
        weights[j - 1] = later
    return weights


@njit(**KERNEL)
def backward_means(step, fade, lots, columns, excess, rates, gains, flow, fading, values, result):
    """Expectation of an additive functional over one step plus the rest of the episode.

    Parameters
    ----------
    step, fade : float
        Length of the step, and decay of the fading part of the flow (1 / time).
    lots, columns, excess : (M,)
        Index of the inventory, column of ``values``, and ``nu - theta`` at the start of the step.
    rates, gains : (M, 2)
        Intensities of bid and ask fills while active, and what a fill adds.
    flow, fading : (S,)
        What the functional gains per unit of time, and what it gains at ``nu - theta = 1``.
    values : (S, C)
        Expectation of the rest by inventory at the end of the step, given the variance at its start.
    result : (M,)
    """
    count = len(flow)
    law, new = np.empty(count), np.empty(count)
    for i in range(len(lots)):
        up, down = rates[i, 0], rates[i, 1]
        shift, column = max(up + down, -2.0 * fade), columns[i]  # a negative fade needs a faster clock
        terms = num_terms((shift + max(fade, 0.0)) * step)  # those of the fading weights, which start from the last
        at_end = poisson_weights(shift * step, terms)
        steady, fades = time_weights(shift, 0.0, step, terms), time_weights(shift, fade, step, terms)
        law[:] = 0.0
        law[lots[i]] = 1.0
        total = 0.0
        for j in range(terms):
            new[:] = 0.0
            for s in range(count):
                mass = law[s]
                if mass == 0.0:
                    continue
                reward = flow[s]
                new[s] += mass * (shift - up - down) / shift
                if s < count - 1:
                    reward += up * gains[i, 0]
                    new[s + 1] += mass * up / shift
                else:
                    new[s] += mass * up / shift
                if s > 0:
                    reward += down * gains[i, 1]
                    new[s - 1] += mass * down / shift
                else:
                    new[s] += mass * down / shift
                total += mass * (at_end[j] * values[s, column] + steady[j] * reward + fades[j] * excess[i] * fading[s])
            law, new = new, law
        result[i] = total


@njit(**KERNEL)
def integrate(length, stay, up, down, coupling, source, values):
    """Values (S, K) after the time ``length`` of a linear system that is tridiagonal in the inventory.

    Parameters
    ----------
    stay, up, down : (S, K), or (S, 1) for all columns alike
        Weights of the inventory itself, the next higher and the next lower one (1 / time).
    coupling : (S, 3) or (0, 3)
        Weights ``stay, up, down`` of the first column in the derivative of the second.
    source : (S, K)
        Constant part of the derivative.
    values : (S, K)
        At the start.
    """
    count, columns = values.shape
    own = 1 if stay.shape[1] > 1 else 0  # whether columns have weights of their own
    norm = 0.0
    for q in range(count):
        for k in range(stay.shape[1]):
            norm = max(norm, abs(stay[q, k]) + abs(up[q, k]) + abs(down[q, k]))
    pieces = max(1, math.ceil(length * norm))
    total, term, next_term = values.copy(), np.empty_like(values), np.empty_like(values)
    for _ in range(pieces):
        for q in range(count):
            for k in range(columns):
                term[q, k] = total[q, k]
        for j in range(1, TAYLOR_TERMS + 1):
            step = length / (pieces * j)
            for q in range(count):
                for k in range(columns):
                    change = stay[q, own * k] * term[q, k]
                    if q < count - 1:
                        change += up[q, own * k] * term[q + 1, k]
                    if q > 0:
                        change += down[q, own * k] * term[q - 1, k]
                    if j == 1:
                        change += source[q, k]
                    next_term[q, k] = step * change
                if len(coupling) > 0:
                    change = coupling[q, 0] * term[q, 0]
                    if q < count - 1:
                        change += coupling[q, 1] * term[q + 1, 0]
                    if q > 0:
                        change += coupling[q, 2] * term[q - 1, 0]
                    next_term[q, 1] += step * change
            term, next_term = next_term, term
            for q in range(count):
                for k in range(columns):
                    total[q, k] += term[q, k]
    return total
