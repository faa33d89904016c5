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

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL
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


@njit(**KERNEL)
def step_weights(rate, step, nodes, node_weights, drift, pi, rho, beta):
    """Fill ``pi``, ``rho`` and ``beta`` for the uniformisation rate; the number of terms.

    ``nodes`` and ``node_weights`` (K,) are a quadrature on [0, 1], ``drift`` (K,) is ``mu`` at the nodes.
    """
    mean = rate * step
    terms = _terms(mean)
    beta[:terms] = 0.0
    for i in range(nodes.shape[0]):
        if drift[i] != 0.0:
            fill_poisson_weights(mean * nodes[i], rho[:terms])  # until rho's own values come, a place to write to
            weight = step * node_weights[i] * drift[i]
            for j in range(terms):
                beta[j] += weight * rho[j]
    fill_poisson_weights(mean, pi[:terms])
    tail = 0.0
    for j in range(terms - 1, -1, -1):
        rho[j] = tail / rate
        tail += pi[j]
    return terms


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
    pi, rho, beta = np.empty(MAX_TERMS), np.empty(MAX_TERMS), np.empty(MAX_TERMS)
    for g in range(groups.shape[0] - 1):
        i = groups[g]
        b, up, down = signals[i], rates[i, 0], rates[i, 1]
        rate = max(up + down, 1e-3 / step)
        terms = step_weights(rate, step, nodes, node_weights, drift[b], pi, rho, beta)
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
        for q in range(np.uint64(low + 1), np.uint64(high + 2)):  # one cell beyond the edges on each side
            above, below, o = q + ONE, q - ONE, q - ONE
            up0, down0 = u0[above] - u0[q], u0[below] - u0[q]
            upb, downb = ub[above] - ub[q], ub[below] - ub[q]
            upa, downa = ua[above] - ua[q], ua[below] - ua[q]
            n0[q] = u0[q] + x * up0 + z * down0 + a * values[o] + r * (reward[o] + earned) + c * inventory[o]
            nb[q] = ub[q] + x * upb + z * downb + w * up0 + r * source_b[1]
            na[q] = ua[q] + x * upa + z * downa + w * down0 + r * source_a[1]
            nbb[q] = ubb[q] + x * (ubb[above] - ubb[q]) + z * (ubb[below] - ubb[q]) + 2.0 * w * upb + r * source_b[2]
            nab[q] = uab[q] + x * (uab[above] - uab[q]) + z * (uab[below] - uab[q]) + w * (upa + downb)
            naa[q] = uaa[q] + x * (uaa[above] - uaa[q]) + z * (uaa[below] - uaa[q]) + 2.0 * w * downa + r * source_a[2]
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
    step, factors, decay, size, max_depth, reward, nodes, node_weights, drift, values, inventory, depths, best,
    shortfalls,
):  # fmt: skip
    """Best frozen depths of every state near a guess, and their value, by `mmgym.trust_region` in the intensities.

    Parameters
    ----------
    factors : (2,)
        Fill intensities of bid and ask at depth 0 (1 / time); with 0, a side's depth does not matter and stays.
    reward, nodes, node_weights, drift, values, inventory
        Those of `backward_mean`.
    depths : (B, Q, 2)
        In: guess. Out: best depths.
    best, shortfalls : (B, Q)
        Out: best values, and what a further move promises.
    """
    count_b, count_q = values.shape
    block, out, sources = np.empty((2, 6, count_q + 2)), np.empty(6), np.zeros((2, 3))
    pi, rho, beta = np.empty(MAX_TERMS), np.empty(MAX_TERMS), np.empty(MAX_TERMS)
    search, relative = new_search(2), np.empty(0)
    rates, slope, curvature = np.empty(2), np.empty(2), np.empty((2, 2))
    low, high = factors * math.exp(-decay * max_depth), factors * math.exp(decay * max_depth)
    noise = rounding(values, size / decay + step_reward(step, reward, drift, inventory))
    for b in range(count_b):
        for q in range(count_q):
            for side in range(2):
                rate = factors[side] * math.exp(-decay * depths[b, q, side])
                rates[side] = min(max(rate, low[side]), high[side])
            begin(search, rates)
            while True:
                rates[:] = search.trial
                for side in range(2):
                    if factors[side] > 0.0:
                        depth = math.log(factors[side] / rates[side]) / decay
                        sources[side, 0] = size * rates[side] * depth
                        sources[side, 1] = size * (depth - 1.0 / decay)
                        sources[side, 2] = -size / (decay * rates[side])
                rate = max(rates[0] + rates[1], 1e-3 / step)
                terms = step_weights(rate, step, nodes, node_weights, drift[b], pi, rho, beta)
                _derivatives(
                    q, terms, rates, rate, sources, reward, pi, rho, beta, values[b], inventory, block, out
                )  # fmt: skip
                slope[0], slope[1] = out[1], out[2]
                curvature[0, 0], curvature[1, 1] = out[3], out[5]
                curvature[0, 1] = curvature[1, 0] = out[4]
                if advance(search, out[0], slope, curvature, low, high, relative, noise):
                    break
            best[b, q] = search.numbers[VALUE]
            shortfalls[b, q] = search.numbers[SHORTFALL]
            for side in range(2):
                if factors[side] > 0.0:
                    depth = math.log(factors[side] / search.point[side]) / decay
                    depths[b, q, side] = min(max(depth, -max_depth), max_depth)


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
            nearest = 1.0 / decay - max(most if side == 0 else -least, 0.0)
            events += step * factors[side] * math.exp(-decay * min(max(nearest, -max_depth), max_depth))
        if events * max(bends * decay, 1.0) > CROWDED:
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
    quotes,
    values,
):
    """Best frozen depths of all steps, backwards from 0 at the horizon, each guessed from the two steps after.

    Where a step may have several maxima, the corners of the box are guesses as well.

    Parameters
    ----------
    factors : (N, 2)
    impact : (N, K)
        Drift of the price at the nodes of each step.
    beliefs : (B, K)
        Expected signal at the nodes, by the signal at the start of a step.
    moves : (B, B)
        Transition matrix of the signal over a step.
    quotes, values : (N, B, Q, 2), (N + 1, B, Q)
        Out. ``quotes[-1]`` holds the guess for the last step.

    Returns
    -------
    float
        What a further move promises in the worst cell, in units of the rounding error of its values.
    """
    count, worst = quotes.shape[0], 0.0
    shortfalls = np.empty(values.shape[1:])
    others, reached, missing = np.empty(quotes.shape[1:]), np.empty(values.shape[1:]), np.empty(values.shape[1:])
    values[count] = 0.0
    drift = np.empty(beliefs.shape)
    for n in range(count - 1, -1, -1):
        if n < count - 2:
            quotes[n] = 2.0 * quotes[n + 1] - quotes[n + 2]
        elif n < count - 1:
            quotes[n] = quotes[n + 1]
        for b in range(drift.shape[0]):
            drift[b] = beliefs[b] + impact[n]
        after = moves @ values[n + 1]
        improve(
            step, factors[n], decay, size, max_depth, reward, nodes, node_weights, drift, after, inventory, quotes[n],
            values[n], shortfalls,
        )  # fmt: skip
        noise = rounding(after, size / decay + step_reward(step, reward, drift, inventory))
        if is_crowded(step, factors[n], decay, size, max_depth, reward, drift @ node_weights, after, inventory):
            for corner in range(4):
                others[:, :, 0] = max_depth if corner % 2 else -max_depth
                others[:, :, 1] = max_depth if corner < 2 else -max_depth
                improve(
                    step, factors[n], decay, size, max_depth, reward, nodes, node_weights, drift, after, inventory,
                    others, reached, missing,
                )  # fmt: skip
                for b in range(after.shape[0]):
                    for q in range(after.shape[1]):
                        if reached[b, q] > values[n, b, q] + noise:
                            quotes[n, b, q] = others[b, q]
                            values[n, b, q], shortfalls[b, q] = reached[b, q], missing[b, q]
        worst = max(worst, shortfalls.max() / noise)
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
    p, n = np.empty(count_q), np.empty(count_q)
    shifts, weights = np.empty(MAX_TERMS), np.empty(MAX_TERMS)
    for b in range(count_b):
        for q in range(count_q):
            mass = law[b, q]
            if mass == 0.0:
                continue
            up, down = rates[b, q, 0], rates[b, q, 1]
            rate = max(up + down, 1e-3 / step)
            x, z, mean = up / rate, down / rate, rate * step
            idle = 1.0 - (up + down) / rate  # exactly 0 but for rates near 0
            terms = _terms(mean)
            fill_poisson_weights(mean, weights[:terms])
            p[max(0, q - terms) : min(count_q, q + terms + 1)] = 0.0
            n[max(0, q - terms) : min(count_q, q + terms + 1)] = 0.0
            p[q] = mass
            result[b, q] += weights[0] * mass
            shifts[0] = 0.0
            for j in range(1, terms):
                low, high = max(0, q - j), min(count_q - 1, q + j)
                shift = 0.0
                for s in range(low, high + 1):
                    value = (idle + (x if s == count_q - 1 else 0.0) + (z if s == 0 else 0.0)) * p[s]
                    if s > 0:
                        value += x * p[s - 1]
                    if s < count_q - 1:
                        value += z * p[s + 1]
                    n[s] = value
                    shift += (s - q) * value
                p, n = n, p
                shifts[j] = shift
                for s in range(low, high + 1):
                    result[b, s] += weights[j] * p[s]
            for i in range(nodes.shape[0]):
                fill_poisson_weights(mean * nodes[i], weights[:terms])
                moved[i] += np.dot(weights[:terms], shifts[:terms])
