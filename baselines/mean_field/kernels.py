"""Numba kernels of second moments and exponentials over one decision step of the mean-field market.

They need the joint chain of signal and inventory, and the crowd's drift ``mu(s) = sum_l m_l (tau / h)^l`` in the time
left, ``tau = h - s``. With ``U(tau) = exp(-c tau) sum_k v_k (r tau)^k / k!`` the backward equation ``U' = (A + G(tau))
U + F(tau)`` is a recursion for ``v_k``; ``c`` makes its terms positive but for the drift, and a rate ``r`` that bounds
its norm keeps ``v_k`` in range. They are needed within ``terms - k`` levels of the states that are asked for.
"""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL
from mmgym.models.mean_field_steps import fastest, new_weights, propagate, weights_for
from mmgym.uniformisation import num_terms, poisson_weights

# Kept beside the declared law (`mmgym.baselines.declared`) for its speed, with `mmgym.models.mean_field_steps`: 25
# steps of MeanFieldTaker are solved 470 and scored 4.7 times as fast, of MeanFieldMaker 63 and 1.2 times.

ONE = np.uint64(1)  # unsigned loop indices spare the check for negative ones, and the inner loops become vectors


@njit(**KERNEL)
def backward_moments(
    step, groups, states, signals, rates, gains, jumps, reward, lever, drift, variance, values, result
):  # fmt: skip
    """First and second moments of an additive functional over one step plus the rest of the episode.

    Parameters
    ----------
    groups : (G + 1,) int
        The pairs ``groups[g] .. groups[g + 1] - 1`` have the same rates and gains, and are worked out together.
    states, signals : (M,) int
        Levels of inventory and of the signal at the start of the step.
    rates, gains : (M, 2)
        Fill intensities of bid and ask, and what a fill adds to the functional.
    jumps : (2, J)
        Rates at which the signal rises and falls by 1, 2, ... levels.
    reward, variance : (B, Q)
        What the functional gains per unit of time besides the crowd's drift, and the variance of its Brownian part.
    lever, drift : (Q,), (L,)
        It gains ``lever(q) mu`` from the crowd's drift, whose coefficients in ``tau / h`` are ``drift``.
    values : (2, B, Q)
        First and second moment of the rest.
    result : (M, 2)

    Notes
    -----
    Cells beyond the edges hold what makes a blocked jump change nothing.
    """
    count_b, count_q = values.shape[1:]
    degree = drift.shape[0]
    ring = degree + 2
    first = np.zeros((ring, count_b + 2, count_q + 2))
    second, next_second = np.zeros((count_b + 2, count_q + 2)), np.zeros((count_b + 2, count_q + 2))
    pushed, pulls = np.zeros(count_q + 2), np.zeros(degree)
    rise, fall, reach = jumps[0, 0], jumps[1, 0], jumps.shape[1]
    farther = jumps[:, 1:].sum()  # rates of jumps by several levels
    for group in range(groups.shape[0] - 1):
        i, end = groups[group], groups[group + 1]
        up, down = rates[i, 0], rates[i, 1]
        gain_up, gain_down = gains[i, 0], gains[i, 1]
        shift = max(up + down + rise + fall + farther, 1e-3 / step)
        stay = shift - up - down - rise - fall - farther
        terms = num_terms(shift * step) + degree + 2
        weights = poisson_weights(shift * step, terms + 1)
        first_q, last_q = states[i:end].min() + 1, states[i:end].max() + 1
        first_b, last_b = signals[i:end].min() + 1, signals[i:end].max() + 1
        low_q, high_q = max(1, first_q - terms), min(count_q, last_q + terms)
        low_b, high_b = max(1, first_b - reach * terms), min(count_b, last_b + reach * terms)
        for b in range(low_b, high_b + 1):
            for q in range(low_q, high_q + 1):
                first[0, b, q] = values[0, b - 1, q - 1]
                second[b, q] = values[1, b - 1, q - 1]
        for m in range(i, end):
            result[m, 0] = weights[0] * first[0, signals[m] + 1, states[m] + 1]
            result[m, 1] = weights[0] * second[signals[m] + 1, states[m] + 1]
        for k in range(terms):
            f, g = first[k % ring], second
            for b in range(low_b, high_b + 1):
                if high_q == count_q:
                    f[b, count_q + 1] = f[b, count_q] - gain_up
                    g[b, count_q + 1] = g[b, count_q] - gain_up * (2.0 * f[b, count_q + 1] + gain_up)
                if low_q == 1:
                    f[b, 0] = f[b, 1] - gain_down
                    g[b, 0] = g[b, 1] - gain_down * (2.0 * f[b, 0] + gain_down)
            if high_b == count_b:
                f[count_b + 1], g[count_b + 1] = f[count_b], g[count_b]
            if low_b == 1:
                f[0], g[0] = f[1], g[1]
            left = terms - 1 - k
            low_q, high_q = max(1, first_q - left), min(count_q, last_q + left)
            low_b, high_b = max(1, first_b - reach * left), min(count_b, last_b + reach * left)
            flow, used, pull = 0.0, min(k + 1, degree), 1.0
            for m in range(used):  # the factor of v_{k - m}
                pulls[m] = pull * drift[m]
                flow += pulls[m]
                pull *= (k - m) / (shift * step)
            new_f, new_g = first[(k + 1) % ring], next_second
            for b in range(low_b, high_b + 1):
                pushed[low_q : high_q + 1] = 0.0
                for m in range(used):
                    earlier, weight = first[(k - m) % ring, b], pulls[m]
                    for q in range(np.uint64(low_q), np.uint64(high_q + 1)):
                        pushed[q] += weight * earlier[q]
                f0, f1, f2, to_f = f[b], f[b + 1], f[b - 1], new_f[b]
                g0, g1, g2, to_g = g[b], g[b + 1], g[b - 1], new_g[b]
                gained, spread = reward[b - 1], variance[b - 1]
                for q in range(np.uint64(low_q), np.uint64(high_q + 1)):
                    above, below, r, x = f0[q + ONE], f0[q - ONE], gained[q - ONE], lever[q - ONE]
                    to_f[q] = (
                        stay * f0[q] + rise * f1[q] + fall * f2[q]
                        + up * (above + gain_up) + down * (below + gain_down) + r + x * flow
                    ) / shift  # fmt: skip
                    to_g[q] = (
                        stay * g0[q] + rise * g1[q] + fall * g2[q]
                        + up * (g0[q + ONE] + gain_up * (2.0 * above + gain_up))
                        + down * (g0[q - ONE] + gain_down * (2.0 * below + gain_down))
                        + 2.0 * (r * f0[q] + x * pushed[q]) + spread[q - ONE]
                    ) / shift  # fmt: skip
                for far in range(2, reach + 1):
                    above_b, below_b = b + far if b + far <= count_b else b, b - far if b > far else b
                    more, less = jumps[0, far - 1] / shift, jumps[1, far - 1] / shift
                    for q in range(np.uint64(low_q), np.uint64(high_q + 1)):
                        to_f[q] += more * f[above_b, q] + less * f[below_b, q]
                        to_g[q] += more * g[above_b, q] + less * g[below_b, q]
            second, next_second = next_second, second
            for m in range(i, end):
                result[m, 0] += weights[k + 1] * new_f[signals[m] + 1, states[m] + 1]
                result[m, 1] += weights[k + 1] * new_g[signals[m] + 1, states[m] + 1]


@njit(**KERNEL)
def backward_exponential(
    step, groups, states, signals, rates, gains, jumps, reward, lever, drift, variance, exponents, values, result
):
    """``E[exp(z R)]`` of an additive functional ``R`` over one step plus the rest, for exponents ``z`` of shape (K,).

    The other parameters are those of `backward_moments`; ``values`` are (K, B, Q) and ``result`` (M, K).
    """
    columns, count_b, count_q = values.shape
    degree = drift.shape[0]
    ring = degree + 2
    w = np.zeros((ring, count_b + 2, count_q + 2), dtype=values.dtype)
    growth, pushed = np.zeros((count_b, count_q), dtype=values.dtype), np.zeros(count_q + 2, dtype=values.dtype)
    pulls = np.zeros(degree, dtype=values.dtype)
    rise, fall, reach = jumps[0, 0], jumps[1, 0], jumps.shape[1]
    farther = jumps[:, 1:].sum()  # rates of jumps by several levels
    for column in range(columns):
        z = exponents[column]
        slowest, levered, pushes = 0.0, 0.0, 0.0
        for b in range(count_b):
            for q in range(count_q):
                growth[b, q] = z * reward[b, q] + 0.5 * z * z * variance[b, q]
                slowest = min(slowest, growth[b, q].real)
                levered = max(levered, abs(z * lever[q]))
        for m in range(degree):
            pushes += abs(drift[m]) * levered
        fastest = np.abs(growth - slowest).max()
        for group in range(groups.shape[0] - 1):
            i, end = groups[group], groups[group + 1]
            up, down = rates[i, 0], rates[i, 1]
            factor_up, factor_down = np.exp(z * gains[i, 0]), np.exp(z * gains[i, 1])
            shift = max(up + down + rise + fall + farther - slowest, 1e-3 / step)
            stay = shift - up - down - rise - fall - farther
            rate = (
                fastest
                + (stay + slowest)
                + rise
                + fall
                + farther
                + up * abs(factor_up)
                + down * abs(factor_down)
                + pushes
            )
            terms = num_terms(rate * step) + degree + 2
            weights = poisson_weights(rate * step, terms + 1)
            first_q, last_q = states[i:end].min() + 1, states[i:end].max() + 1
            first_b, last_b = signals[i:end].min() + 1, signals[i:end].max() + 1
            low_q, high_q = max(1, first_q - terms), min(count_q, last_q + terms)
            low_b, high_b = max(1, first_b - reach * terms), min(count_b, last_b + reach * terms)
            for b in range(low_b, high_b + 1):
                for q in range(low_q, high_q + 1):
                    w[0, b, q] = values[column, b - 1, q - 1]
            for m in range(i, end):
                result[m, column] = weights[0] * w[0, signals[m] + 1, states[m] + 1]
            for k in range(terms):
                f, new = w[k % ring], w[(k + 1) % ring]
                for b in range(low_b, high_b + 1):
                    if high_q == count_q:
                        f[b, count_q + 1] = f[b, count_q] / factor_up
                    if low_q == 1:
                        f[b, 0] = f[b, 1] / factor_down
                if high_b == count_b:
                    f[count_b + 1] = f[count_b]
                if low_b == 1:
                    f[0] = f[1]
                left = terms - 1 - k
                low_q, high_q = max(1, first_q - left), min(count_q, last_q + left)
                low_b, high_b = max(1, first_b - reach * left), min(count_b, last_b + reach * left)
                used, pull = min(k + 1, degree), z
                for m in range(used):  # the factor of v_{k - m}
                    pulls[m] = pull * drift[m]
                    pull *= (k - m) / (rate * step)
                for b in range(low_b, high_b + 1):
                    pushed[low_q : high_q + 1] = 0.0
                    for m in range(used):
                        earlier, weight = w[(k - m) % ring, b], pulls[m]
                        for q in range(np.uint64(low_q), np.uint64(high_q + 1)):
                            pushed[q] += weight * earlier[q]
                    f0, f1, f2, to, grown = f[b], f[b + 1], f[b - 1], new[b], growth[b - 1]
                    for q in range(np.uint64(low_q), np.uint64(high_q + 1)):
                        to[q] = (
                            (stay + grown[q - ONE]) * f0[q] + rise * f1[q] + fall * f2[q]
                            + up * factor_up * f0[q + ONE] + down * factor_down * f0[q - ONE]
                            + lever[q - ONE] * pushed[q]
                        ) / rate  # fmt: skip
                    for far in range(2, reach + 1):
                        above_b, below_b = b + far if b + far <= count_b else b, b - far if b > far else b
                        more, less = jumps[0, far - 1] / rate, jumps[1, far - 1] / rate
                        for q in range(np.uint64(low_q), np.uint64(high_q + 1)):
                            to[q] += more * f[above_b, q] + less * f[below_b, q]
                for m in range(i, end):
                    result[m, column] += weights[k + 1] * new[signals[m] + 1, states[m] + 1]
            for m in range(i, end):
                result[m, column] *= math.exp((rate - shift) * step)


@njit(**KERNEL)
def backward_gradient(
    step,
    states,
    signals,
    rates,
    factors,
    decay,
    size,
    reward,
    nodes,
    node_weights,
    drift,
    values,
    inventory,
    result,
    gradient,
):
    """One-step criterion of (state, intensities) pairs and its derivatives in the intensities.

    Parameters
    ----------
    states, signals, rates, reward, nodes, node_weights, drift, values, inventory
        Those of `mmgym.models.mean_field_steps.backward_mean`.
    factors, decay : (2,)
        Fill intensities of bid and ask at depth 0, where 0 turns a side off, and how fast they fall (1 / price).
    result, gradient : (M,), (M, 2)
        Out.
    """
    count = values.shape[1]
    block = np.empty((2, 3, count + 2))
    present = np.zeros(values.shape[0], np.bool_)
    present[signals] = True
    weights = new_weights(step, fastest(rates), present)
    for i in range(states.shape[0]):
        start, b, up, down = states[i], signals[i], rates[i, 0], rates[i, 1]
        source_b, source_a, slope_b, slope_a = 0.0, 0.0, 0.0, 0.0
        if factors[0] > 0.0:
            depth = math.log(factors[0] / up) / decay[0]
            source_b, slope_b = size * up * depth, size * (depth - 1.0 / decay[0])
        if factors[1] > 0.0:
            depth = math.log(factors[1] / down) / decay[1]
            source_a, slope_a = size * down * depth, size * (depth - 1.0 / decay[1])
        place = weights_for(weights, up + down, step, nodes, node_weights, drift)
        rate, terms = weights.rates[place], weights.terms[place]
        pi, rho, beta = weights.pi[place], weights.rho[place], weights.beta[place, b]
        x, z, w = up / rate, down / rate, 1.0 / rate
        u, n, after = block[0], block[1], values[b]
        u[:] = 0.0
        for j in range(terms - 1, -1, -1):
            low, high = max(0, start - j), min(count - 1, start + j)
            a, r, c = pi[j], rho[j], beta[j]
            u0, ub, ua, n0, nb, na = u[0], u[1], u[2], n[0], n[1], n[2]
            begin, end = np.uint64(low + 1), np.uint64(high + 2)  # one cell beyond the edges on each side
            for q in range(begin, end):  # a loop for each: few arrays at a time, so that it becomes vectors
                o = q - ONE
                n0[q] = (
                    u0[q] + x * (u0[q + ONE] - u0[q]) + z * (u0[o] - u0[q])
                    + a * after[o] + r * (reward[o] + source_b + source_a) + c * inventory[o]
                )  # fmt: skip
            propagate(begin, end, x, z, ub, u0, 1, w, r * slope_b, nb)
            propagate(begin, end, x, z, ua, u0, -1, w, r * slope_a, na)
            if high == count - 1:  # no bid at the upper bound
                n0[count] -= r * source_b
                nb[count] -= r * slope_b
                n[:, count + 1] = n[:, count]
            if low == 0:
                n0[1] -= r * source_a
                na[1] -= r * slope_a
                n[:, 0] = n[:, 1]
            u, n = n, u
        result[i] = u[0, start + 1]
        gradient[i, 0], gradient[i, 1] = u[1, start + 1], u[2, start + 1]
