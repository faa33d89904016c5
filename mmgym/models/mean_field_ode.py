"""Numba kernels of the continuous-time mean-field equations: HJB, feedback, forward equation, evaluation.

Everything is a classical Runge-Kutta step of order 4 on a given time grid. Curves in time are arrays of ``2 n + 1``
rows: row ``2 i`` belongs to node ``i`` and row ``2 i + 1`` to the middle of interval ``i``, where solutions come from
cubic Hermite interpolation. A curve that does not change may have one row. States are ``[signal, inventory]`` arrays
``(B, Q)``; a market-maker, who has no signal, is the case ``B = 1``.

Baldacci, Bergault & Possamai, "A mean-field game of market-making against strategic traders", system (4.6), as
corrected: fills of ``z`` assets; bids are off at the upper inventory bound and asks at the lower one.
"""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL

ONE = np.uint64(1)  # unsigned loop indices spare the check for negative ones, and the inner loops become vectors


@njit(**KERNEL)
def _row(curve, k):
    return curve[k] if curve.shape[0] > 1 else curve[0]


@njit(**KERNEL)
def _start_stage(stage, start, h, slopes, state):
    """Put the state at which a stage of a step wants the slope: at the start, twice in the middle, at the end."""
    if stage == 0:
        state[:] = start
    else:
        state[:] = start + (h if stage == 3 else 0.5 * h) * slopes[stage - 1]


@njit(**KERNEL)
def _end_step(start, h, slopes, end):
    """Put the state after a step from the slopes of its four stages."""
    end[:] = start + h / 6.0 * (slopes[0] + 2.0 * slopes[1] + 2.0 * slopes[2] + slopes[3])


@njit(**KERNEL)
def _hjb_slope(w, drift, factors, jumps, signal, inventory, size, decay, penalty, max_depth, slope):
    """``-dW/dt``: running reward, signal jumps and the Hamiltonians of both sides."""
    count_b, count_q = w.shape
    for b in range(count_b):
        for q in range(count_q):
            x = inventory[q]
            value = w[b, q]
            total = (drift + signal[b]) * x - penalty * x * x
            if b < count_b - 1:
                total += jumps[0, 0] * (w[b + 1, q] - value)
            if b > 0:
                total += jumps[1, 0] * (w[b - 1, q] - value)
            for far in range(2, jumps.shape[1] + 1):
                if b + far < count_b:
                    total += jumps[0, far - 1] * (w[b + far, q] - value)
                if b >= far:
                    total += jumps[1, far - 1] * (w[b - far, q] - value)
            for side in range(2):
                other = q + 1 - 2 * side
                if 0 <= other < count_q:
                    jump = w[b, other] - value
                    depth = min(max(1.0 / decay[side] - jump / size, -max_depth), max_depth)
                    total += factors[side] * math.exp(-decay[side] * depth) * (size * depth + jump)
            slope[b, q] = total


@njit(**KERNEL)
def hjb(times, drift, factors, jumps, signal, inventory, size, decay, penalty, max_depth, euler, values, slopes):
    """The best value of every time and state, backwards from 0 at the horizon.

    Parameters
    ----------
    times : (n + 1,)
    drift : (2 n + 1,)
        Drift of the price that all share (price / time).
    factors : (2 n + 1 or 1, 2)
        Fill intensities of bids and asks at depth 0 (1 / time).
    jumps : (2, J)
        Rates at which the signal rises and falls by 1, 2, ... levels (1 / time).
    signal, inventory : (B,), (Q,)
    decay : (2,)
        Of bids and asks (1 / price).
    size, penalty, max_depth : float
        Assets a fill, price / (assets^2 time), price.
    euler : bool
        The explicit Euler step of the paper instead (first order).
    values, slopes : (n + 1, B, Q)
        Out: ``W`` and ``-dW/dt`` at the nodes.
    """
    stages, state = np.empty((4, *values.shape[1:])), np.empty(values.shape[1:])
    last = len(times) - 1
    values[last] = 0.0
    for i in range(last - 1, -1, -1):
        h = times[i + 1] - times[i]
        for stage in range(1 if euler else 4):
            k = 2 * i + 2 - (stage + 1) // 2
            _start_stage(stage, values[i + 1], h, stages, state)
            _hjb_slope(
                state,
                drift[k],
                _row(factors, k),
                jumps,
                signal,
                inventory,
                size,
                decay,
                penalty,
                max_depth,
                stages[stage],
            )
        slopes[i + 1] = stages[0]
        if euler:
            values[i] = values[i + 1] + h * stages[0]
        else:
            _end_step(values[i + 1], h, stages, values[i])
    _hjb_slope(
        values[0], drift[0], _row(factors, 0), jumps, signal, inventory, size, decay, penalty, max_depth, slopes[0]
    )


@njit(**KERNEL)
def best_quotes(times, values, slopes, size, decay, max_depth, quotes):
    """Depths ``[bid, ask]`` of the HJB's maximum, shape (2 n + 1, B, Q, 2); a blocked side gets ``1 / decay``."""
    count_b, count_q = values.shape[1:]
    w = np.empty((count_b, count_q))
    for k in range(quotes.shape[0]):
        i = k // 2
        if k % 2 == 0:
            w[:] = values[i]
        else:
            h = times[i + 1] - times[i]
            w[:] = 0.5 * (values[i] + values[i + 1]) - 0.125 * h * (slopes[i] - slopes[i + 1])
        for b in range(count_b):
            for q in range(count_q):
                for side in range(2):
                    other = q + 1 - 2 * side
                    jump = w[b, other] - w[b, q] if 0 <= other < count_q else 0.0
                    quotes[k, b, q, side] = min(max(1.0 / decay[side] - jump / size, -max_depth), max_depth)


@njit(**KERNEL)
def _law_slope(p, rates, jumps, slope):
    count_b, count_q = p.shape
    slope[:] = 0.0
    for b in range(count_b):
        for q in range(count_q):
            mass = p[b, q]
            for side in range(2):
                other = q + 1 - 2 * side
                if 0 <= other < count_q:
                    flow = rates[b, q, side] * mass
                    slope[b, q] -= flow
                    slope[b, other] += flow
                for far in range(1, jumps.shape[1] + 1):
                    to = b + (1 - 2 * side) * far
                    if 0 <= to < count_b:
                        flow = jumps[side, far - 1] * mass
                        slope[b, q] -= flow
                        slope[to, q] += flow


@njit(**KERNEL)
def law(times, rates, jumps, initial, euler, laws):
    """Law of the state at all times, shape (2 n + 1, B, Q), from fill rates (2 n + 1 or 1, B, Q, 2)."""
    stages, state = np.empty((4, *initial.shape)), np.empty(initial.shape)
    laws[0] = initial
    _law_slope(laws[0], _row(rates, 0), jumps, stages[0])
    for i in range(len(times) - 1):
        h = times[i + 1] - times[i]
        p, end, middle = laws[2 * i], 2 * i + 2, 2 * i + 1
        if euler:
            laws[end] = p + h * stages[0]
            laws[middle] = p + 0.5 * h * stages[0]
            _law_slope(laws[end], _row(rates, end), jumps, stages[0])
            continue
        for stage in range(1, 4):
            _start_stage(stage, p, h, stages, state)
            _law_slope(state, _row(rates, 2 * i + (stage + 1) // 2), jumps, stages[stage])
        _end_step(p, h, stages, laws[end])
        _law_slope(laws[end], _row(rates, end), jumps, stages[1])
        laws[middle] = np.maximum(0.5 * (p + laws[end]) + 0.125 * h * (stages[0] - stages[1]), 0.0)
        laws[middle] *= p.sum() / laws[middle].sum()  # Hermite interpolation misses 0 by 1e-12 in cells just reached
        stages[0] = stages[1]


@njit(**KERNEL)
def buying(laws, rates, result):
    """Net rate of purchases of the crowd (fills / time), shape (2 n + 1,)."""
    count_b, count_q = laws.shape[1:]
    for k in range(laws.shape[0]):
        rate = _row(rates, k)
        total = 0.0
        for b in range(count_b):
            for q in range(count_q):
                if q < count_q - 1:
                    total += laws[k, b, q] * rate[b, q, 0]
                if q > 0:
                    total -= laws[k, b, q] * rate[b, q, 1]
        result[k] = total


@njit(**KERNEL)
def _linear_slope(v, drift, rates, earned, factors, jumps, signal, inventory, size, penalty, slope):
    count_b, count_q = v.shape
    for b in range(count_b):
        for q in range(count_q):
            x = inventory[q]
            total = (drift + signal[b]) * x - penalty * x * x
            for side in range(2):
                other = q + 1 - 2 * side
                if 0 <= other < count_q:
                    gain = size * earned[b, q, side] + rates[b, q, side] * (v[b, other] - v[b, q])
                    total += factors[side] * gain
                for far in range(1, jumps.shape[1] + 1):
                    to = b + (1 - 2 * side) * far
                    if 0 <= to < count_b:
                        total += jumps[side, far - 1] * (v[to, q] - v[b, q])
            slope[b, q] = total


@njit(**KERNEL)
def evaluate(times, drift, rates, earned, factors, jumps, signal, inventory, size, penalty, values):
    """Value of a feedback policy, shape (n + 1, B, Q).

    ``rates`` are its mean fill probabilities ``E[exp(-decay d)]`` and ``earned`` its ``E[d exp(-decay d)]``, shape
    (2 n + 1 or 1, B, Q, 2); ``factors`` multiply both.
    """
    stages, state = np.empty((4, *values.shape[1:])), np.empty(values.shape[1:])
    last = len(times) - 1
    values[last] = 0.0
    for i in range(last - 1, -1, -1):
        h = times[i + 1] - times[i]
        for stage in range(4):
            k = 2 * i + 2 - (stage + 1) // 2
            r, e, f = _row(rates, k), _row(earned, k), _row(factors, k)
            _start_stage(stage, values[i + 1], h, stages, state)
            _linear_slope(state, drift[k], r, e, f, jumps, signal, inventory, size, penalty, stages[stage])
        _end_step(values[i + 1], h, stages, values[i])


@njit(**KERNEL)
def response(times, rates, bends, generator, inventory, source, result):
    """First-order change of the crowd's purchases, where it plays best and the drift changes.

    The derivatives of `hjb`, in which the best depths stay as they are, and of `law` under depths that follow.

    Parameters
    ----------
    rates : (2 n + 1, 2, B, Q + 2)
        Fill rates of bids and asks (1 / time), between two cells of zeros; 0 where a side is blocked.
    bends : (2 n + 1, 2, B, Q + 2)
        What they change with the value of a fill, times the law.
    generator : (B, B)
        Of the signal (1 / time).
    source : (2 n + 1,)
        Change of the drift (price / time).
    result : (2 n + 1,)
        Out: change of the net rate of purchases (fills / time).
    """
    count_b, count_q = rates.shape[2], rates.shape[3] - 2
    last = len(times) - 1
    shape = (count_b, count_q + 2)
    values = np.zeros((2 * last + 1, *shape))
    slopes, state, slope_after = np.zeros((4, *shape)), np.zeros(shape), np.zeros(shape)
    for i in range(last - 1, -2, -1):
        h = times[i + 1] - times[max(i, 0)]
        for stage in range(4 if i >= 0 else 1):
            k = 2 * i + 2 - (stage + 1) // 2
            _start_stage(stage, values[2 * i + 2], h, slopes, state)
            drift, slope = source[k], slopes[stage]
            for b in range(count_b):
                up, down, w, out = rates[k, 0, b], rates[k, 1, b], state[b], slope[b]
                for q in range(np.uint64(1), np.uint64(count_q + 1)):
                    value = w[q]
                    out[q] = (
                        drift * inventory[q - ONE] + up[q] * (w[q + ONE] - value) + down[q] * (w[q - ONE] - value)
                    )  # fmt: skip
                _add_rows(generator[b], state, out)
        if i < last - 1:
            h_after, middle = times[i + 2] - times[i + 1], 2 * i + 3
            values[middle] = 0.5 * (values[middle - 1] + values[middle + 1]) - 0.125 * h_after * (
                slopes[0] - slope_after
            )
        slope_after[:] = slopes[0]
        if i >= 0:
            _end_step(values[2 * i + 2], h, slopes, values[2 * i])
    change, end, half = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    moving = np.zeros((2, count_b, count_q + 2))
    slopes[:] = 0.0
    _law_response(rates[0], bends[0], generator, values[0], change, moving, slopes[0])
    result[0] = (moving[0] - moving[1]).sum()
    for i in range(last):
        h = times[i + 1] - times[i]
        for stage in range(1, 4):
            k = 2 * i + (stage + 1) // 2
            _start_stage(stage, change, h, slopes, state)
            _law_response(rates[k], bends[k], generator, values[k], state, moving, slopes[stage])
        _end_step(change, h, slopes, end)
        for k in (2 * i + 2, 2 * i + 1):
            if k == 2 * i + 1:
                half[:] = 0.5 * (change + end) + 0.125 * h * (slopes[0] - slopes[1])
            p = end if k == 2 * i + 2 else half
            _law_response(rates[k], bends[k], generator, values[k], p, moving, slopes[1 if k == 2 * i + 2 else 2])
            result[k] = (moving[0] - moving[1]).sum()
        change[:] = end
        slopes[0] = slopes[1]


@njit(**KERNEL)
def _law_response(rates, bends, generator, values, law, moving, slope):
    """Put the change of how many buy and sell in each cell, (2, B, Q + 2), and the slope of the law's change."""
    count_b, count_q = rates.shape[1], rates.shape[2] - 2
    for b in range(count_b):
        p, w, bids, asks = law[b], values[b], moving[0, b], moving[1, b]
        up, down, up_bend, down_bend = rates[0, b], rates[1, b], bends[0, b], bends[1, b]
        for q in range(np.uint64(1), np.uint64(count_q + 1)):
            bids[q] = up[q] * p[q] + up_bend[q] * (w[q + ONE] - w[q])
            asks[q] = down[q] * p[q] + down_bend[q] * (w[q - ONE] - w[q])
        out = slope[b]
        for q in range(np.uint64(1), np.uint64(count_q + 1)):
            out[q] = bids[q - ONE] + asks[q + ONE] - bids[q] - asks[q]
        _add_rows(generator[:, b], law, out)


@njit(**KERNEL)
def _add_rows(shares, rows, out):
    """Add shares (B,) of rows (B, Q + 2) between their first and last cells."""
    for b in range(len(shares)):
        share, row = shares[b], rows[b]
        if share != 0.0:
            for q in range(np.uint64(1), np.uint64(len(out) - 1)):
                out[q] += share * row[q]
