"""Kernels of the intraday power baseline: features of states, the generator applied to them, and simulated paths.

A value function is ``Theta(tau, j, q, y) = sum_b C_b(tau, q) Phi_b(j, y)`` with products ``Phi_b`` of one feature of
the spread ``j`` and one of each intensity. ``C (slices, B, Q)`` is constant on slices of the time left, whose borders
``(slices + 1,)`` rise from 0.

Features of a state are written to ``(4, B)``: the features; the generator of spread and intensities applied to them;
their expectations just after a buy and just after a sell, the order and its move of the book included.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.baselines.hawkes_flow.reach import best_offset, fill_worth, order_gain
from mmgym.compiling import KERNEL
from mmgym.models.hawkes_flow import log_fill
from mmgym.models.hawkes_power import (
    BUY,
    CLOCK,
    EVENT,
    LAST,
    MID_SIGN,
    SELL,
    SPREAD_SIGN,
    excite,
    next_event,
    order_reach,
    relax,
    reset_one,
    ticks_moved,
)
from mmgym.random_streams import start_stream, uniform

PROCESSES = 6
NODES = np.array([0.5 - 0.5 / math.sqrt(3.0), 0.5 + 0.5 / math.sqrt(3.0)])  # Gauss-Legendre on [0, 1], weights 1/2


class Basis(NamedTuple):
    """Products of features, as kernels take them."""

    degrees: NDArray[np.int64]  # (B, 7): the feature of the spread and of each intensity in each product
    active: NDArray[np.int64]  # (B, A): processes whose feature in the product is not constant, then -1
    spread_table: NDArray[np.float64]  # (L, n): features of the spread
    moved_table: NDArray[np.float64]  # (6, L, n): their expectations after an event of each process
    impacts: NDArray[np.float64]  # (6, L): E[xi_k | spread], EUR / MWh
    shapes: NDArray[np.float64]  # (6, 5): see `_rate_features`


# Features


@njit(**KERNEL)
def _rate_features(rate, shape, out):
    """Features of an intensity, out[0], and their derivatives, out[1].

    They are 1, a linear one, and powers of a bounded one, ``y / (y + scale)``; ``shape`` is ``(center, width, scale,
    center of the bounded one, its width)``.
    """
    out[0, 0], out[1, 0] = 1.0, 0.0
    if out.shape[1] > 1:
        out[0, 1], out[1, 1] = (rate - shape[0]) / shape[1], 1.0 / shape[1]
    if out.shape[1] > 2:
        total = rate + shape[2]
        bounded = (rate / total - shape[3]) / shape[4]
        slope = shape[2] / (total * total * shape[4])
        power = bounded
        for n in range(2, out.shape[1]):
            out[1, n] = n * power * slope
            power *= bounded
            out[0, n] = power


@njit(**KERNEL)
def state_features(p, basis, spread, rates, work, out):
    """Features (4, B) of a state: spread (ticks) and rates (6,), 1 / minute; ``work`` is from `scratch`."""
    degrees, active = basis.degrees, basis.active
    for k in range(PROCESSES):
        _rate_features(rates[k] + p.excitations[k], basis.shapes[k], work[k, 1:])
        work[k, 2] = work[k, 1]
        _rate_features(rates[k], basis.shapes[k], work[k, :2])
    here = basis.spread_table[spread - 1]
    for n in range(len(here)):
        applied = 0.0
        for k in range(PROCESSES):
            applied += rates[k] * (basis.moved_table[k, spread - 1, n] - here[n])
        work[PROCESSES, 0, n] = applied
    for b in range(degrees.shape[0]):
        n = degrees[b, 0]
        across = 1.0
        for a in range(active.shape[1]):
            k = active[b, a]
            if k < 0:
                break
            across *= work[k, 0, degrees[b, k + 1]]
        out[0, b] = here[n] * across
        applied = work[PROCESSES, 0, n] * across
        out[2, b] = basis.moved_table[BUY, spread - 1, n] * across
        out[3, b] = basis.moved_table[SELL, spread - 1, n] * across
        for a in range(active.shape[1]):
            k = active[b, a]
            if k < 0:
                break
            others = 1.0
            for i in range(active.shape[1]):
                other = active[b, i]
                if other < 0:
                    break
                if other != k:
                    others *= work[other, 0, degrees[b, other + 1]]
            degree = degrees[b, k + 1]
            moved = basis.moved_table[k, spread - 1, n]
            flow = p.decays[k] * (p.base_rates[k] - rates[k]) * work[k, 1, degree] * here[n]
            applied += others * (flow + rates[k] * moved * (work[k, 2, degree] - work[k, 0, degree]))
            if k >= BUY:
                out[k - 2, b] = others * moved * work[k, 2, degree]
        out[1, b] = applied


@njit(**KERNEL)
def order_features(p, basis, spread, rates, work, out):
    """The last two rows of `state_features` alone: expectations just after a buy and just after a sell."""
    degrees, active = basis.degrees, basis.active
    for k in range(PROCESSES):
        if k >= BUY:
            _rate_features(rates[k] + p.excitations[k], basis.shapes[k], work[k, 1:])
            work[k, 2] = work[k, 1]
        _rate_features(rates[k], basis.shapes[k], work[k, :2])
    buy, sell = basis.moved_table[BUY, spread - 1], basis.moved_table[SELL, spread - 1]
    for b in range(degrees.shape[0]):
        n, across = degrees[b, 0], 1.0
        for a in range(active.shape[1]):
            k = active[b, a]
            if k < 0 or k >= BUY:
                break
            across *= work[k, 0, degrees[b, k + 1]]
        bought, sold = degrees[b, BUY + 1], degrees[b, SELL + 1]
        out[2, b] = buy[n] * across * work[BUY, 2, bought] * work[SELL, 0, sold]
        out[3, b] = sell[n] * across * work[BUY, 0, bought] * work[SELL, 2, sold]


@njit(**KERNEL)
def scratch(basis):
    """Room for `state_features` and `order_features`."""
    return np.empty((PROCESSES + 1, 3, basis.degrees.max() + 1))


@njit(**KERNEL)
def features_of(record, basis, spreads, rates, out):
    """`state_features` of many states, out (S, 4, B)."""
    work = scratch(basis)
    for i in range(len(spreads)):
        state_features(record[0], basis, spreads[i], rates[i], work, out[i])


@njit(**KERNEL)
def rates_at(p, s, elapsed, rates):
    """Intensities (6,) a time after the state, no event in between."""
    rates[0] = p.base_rates[0] + s.excess_bid_improvement * math.exp(-p.decays[0] * elapsed)
    rates[1] = p.base_rates[1] + s.excess_bid_cancellation * math.exp(-p.decays[1] * elapsed)
    rates[2] = p.base_rates[2] + s.excess_ask_cancellation * math.exp(-p.decays[2] * elapsed)
    rates[3] = p.base_rates[3] + s.excess_ask_improvement * math.exp(-p.decays[3] * elapsed)
    rates[4] = p.base_rates[4] + s.excess_buy * math.exp(-p.decays[4] * elapsed)
    rates[5] = p.base_rates[5] + s.excess_sell * math.exp(-p.decays[5] * elapsed)


@njit(**KERNEL)
def sample_states(record, rows, horizon, per_path, seeds, spreads, rates):
    """States at ``per_path`` uniform times of each path: spreads (S,), rates (S, 6); ``rows`` is one row of state."""
    p, s = record[0], rows[0]
    times = np.empty(per_path)
    for path in range(len(seeds)):
        s0, s1 = start_stream(seeds[path])
        for i in range(per_path):
            times[i], s0, s1 = uniform(s0, s1)
        times.sort()
        reset_one(p, s)
        spread, now, i = np.int64(s.spread), 0.0, 0
        while i < per_path:
            wait, process, s0, s1 = next_event(p, s, horizon * times[i] - now, s0, s1)
            relax(p, s, wait)
            now += wait
            if process < 0:
                spreads[path * per_path + i] = spread
                rates_at(p, s, 0.0, rates[path * per_path + i])
                i += 1
            else:
                ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
                spread += SPREAD_SIGN[process] * ticks
                excite(p, s, process)


# What orders are worth


@njit(**KERNEL)
def add_order_gains(rates, edges, law, ask, offsets, total):
    """Add the orders of one side to total (S, Q), for edges (S, Q - 1) between lots and the ``law`` of their reach.

    That is ``rate * f(d) (d + edge)`` at offsets ``d`` (S, Q), or ``rate * psi(edge)`` for None.
    """
    for s in range(edges.shape[0]):
        for q in range(edges.shape[1]):
            before = q + 1 if ask else q
            if offsets is None:
                gain = order_gain(edges[s, q], law[0], law[1])
            else:
                gain = fill_worth(offsets[s, before], edges[s, q], law[0], law[1])
            total[s, before] += rates[s] * gain


@njit(**KERNEL)
def combine(features, table, out):
    """out (Q,) = features (B,) @ table (B, Q)."""
    out[:] = 0.0
    for b in range(table.shape[0]):
        weight = features[b]
        for q in range(table.shape[1]):
            out[q] += weight * table[b, q]


@njit(**KERNEL)
def edges_at(p, basis, features, table, spread, bought, sold, asks, bids):
    """Edges ``c = h - E xi + E Theta(lots after) - E Theta(lots before)``: asks from 1 - Q, bids to Q - 1."""
    combine(features[2], table, bought)
    combine(features[3], table, sold)
    ask = p.half_tick * spread - basis.impacts[BUY, spread - 1]
    bid = p.half_tick * spread - basis.impacts[SELL, spread - 1]
    for q in range(len(bought) - 1):
        asks[q] = ask + bought[q] - bought[q + 1]
        bids[q] = bid + sold[q + 1] - sold[q]


@njit(**KERNEL)
def _slice_at(borders, time_left):
    """The slice of a time left."""
    return min(max(np.searchsorted(borders, time_left) - 1, 0), len(borders) - 2)


@njit(**KERNEL)
def look_up(record, basis, borders, table, times, lots, spreads, rates, out):
    """Edges of bid and ask, and the value, out (S, 3), at times left, lots (from 0 on), spreads and rates (S, 6).

    The value is interpolated between the middles of the slices.
    """
    p = record[0]
    work, features = scratch(basis), np.empty((4, basis.degrees.shape[0]))
    for i in range(len(times)):
        spread, q = spreads[i], lots[i]
        state_features(p, basis, spread, rates[i], work, features)
        level = _slice_at(borders, times[i])
        out[i, 0], out[i, 1] = _lot_edges(p, basis, features, table[level], spread, q)
        middle = 0.5 * (borders[level] + borders[level + 1])
        other = level + 1 if (times[i] > middle and level + 2 < len(borders)) or level == 0 else level - 1
        other = min(other, len(table) - 1)
        gap = 0.5 * (borders[other] + borders[other + 1]) - middle
        share = (times[i] - middle) / gap if gap != 0.0 else 0.0
        value = 0.0
        for b in range(table.shape[1]):
            value += features[0, b] * ((1.0 - share) * table[level, b, q] + share * table[other, b, q])
        out[i, 2] = value


@njit(**KERNEL)
def _lot_edges(p, basis, features, level, spread, q):
    """Edges of bid and ask at one inventory; 0 for a side that is closed."""
    bid = ask = 0.0
    if q < level.shape[1] - 1:
        bid = p.half_tick * spread - basis.impacts[SELL, spread - 1]
        for b in range(level.shape[0]):
            bid += features[3, b] * (level[b, q + 1] - level[b, q])
    if q > 0:
        ask = p.half_tick * spread - basis.impacts[BUY, spread - 1]
        for b in range(level.shape[0]):
            ask += features[2, b] * (level[b, q - 1] - level[b, q])
    return bid, ask


@njit(**KERNEL)
def drift_at(basis, spread, rates):
    """Expected move of the mid, EUR / MWh / minute."""
    drift = 0.0
    for k in range(PROCESSES):
        drift += rates[k] * MID_SIGN[k] * basis.impacts[k, spread - 1]
    return drift


# Paths


@njit(**KERNEL)
def bound_paths(record, rows, basis, borders, table, seeds, most, values):
    """Pathwise bounds, values (paths, 3), each less the value function at the start.

    They are the dual bound; the dual bound in which fills are known in advance too; and, with fills averaged over, the
    policy of the value function. ``most`` is the largest number of market orders on a path; where there are more, the
    values are not-a-number. A path has the events of the episode that the environment plays from its seed: they depend
    on the times of decisions, not on what is decided.
    """
    p, s = record[0], rows[0]
    lots = table.shape[2]
    limit = p.inventory_limit
    work, features = scratch(basis), np.empty((4, table.shape[1]))
    rates = np.empty(PROCESSES)
    step, room = np.empty(lots), np.empty((3, lots))
    asks, bids = np.empty(lots - 1), np.empty(lots - 1)
    sums, edges = np.empty((most + 1, lots)), np.empty((most, lots - 1))
    sides = np.empty(most, dtype=np.int64)
    for path in range(len(seeds)):
        s0, s1 = start_stream(seeds[path])
        reset_one(p, s)
        spread, orders, steps, level = np.int64(s.spread), 0, 0, len(table) - 1
        sums[0] = 0.0
        left, last = s.time_left, s.time_left <= p.step_length * LAST
        length = left if last else p.step_length
        now, rest = left, length
        while orders < most:
            wait, process, s0, s1 = next_event(p, s, rest, s0, s1)
            end = 0.0 if last and process < 0 else max(now - wait, 0.0)
            done = 0.0
            while True:
                border = max(borders[level], end) if level > 0 else end
                width = now - border
                for node in range(2):
                    rates_at(p, s, done + NODES[node] * width, rates)
                    state_features(p, basis, spread, rates, work, features)
                    _add_residual(
                        p, basis, features, table[level], spread, rates, 0.5 * width, room, asks, bids, sums[orders]
                    )
                done += width
                now = border
                if level == 0 or borders[level] <= end:
                    break
                rates_at(p, s, done, rates)
                state_features(p, basis, spread, rates, work, features)
                combine(features[0], table[level - 1], step)
                sums[orders] += step
                combine(features[0], table[level], step)
                sums[orders] -= step
                level -= 1
            relax(p, s, wait)
            rest -= wait
            if process < 0 and last:
                break
            if process >= BUY:
                rates_at(p, s, 0.0, rates)
                state_features(p, basis, spread, rates, work, features)
                edges_at(p, basis, features, table[level], spread, room[0], room[1], asks, bids)
                sides[orders] = process
                edges[orders] = asks if process == BUY else bids
                orders += 1
                sums[orders] = 0.0
                _, s0, s1 = order_reach(p, process, s0, s1)
            if process >= 0:
                ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
                spread += SPREAD_SIGN[process] * ticks
                excite(p, s, process)
            if process < 0 or p.decision == EVENT or (p.decision != CLOCK and process >= BUY):
                steps += 1
                left = (
                    p.step_length * (p.num_steps - steps) if p.decision == CLOCK else left - (length - max(rest, 0.0))
                )
                last = left <= p.step_length * LAST
                length = left if last else p.step_length
                now, rest = left, length
        if orders == most:
            values[path] = np.nan
            continue
        rates_at(p, s, 0.0, rates)
        state_features(p, basis, spread, rates, work, features)
        combine(features[0], table[0], step)
        for q in range(lots):
            lot = np.float64(q - limit)
            sums[orders, q] -= step[q] + abs(lot) * p.half_tick * spread + p.terminal_penalty * lot * lot
        for kind in range(3):
            values[path, kind] = _left_at_start(p, kind, sums, edges, sides, orders, room)


@njit(**KERNEL)
def _add_residual(p, basis, features, level, spread, rates, weight, room, asks, bids, total):
    """Add ``weight Res(q)`` to total (Q,)."""
    edges_at(p, basis, features, level, spread, room[0], room[1], asks, bids)
    combine(features[1], level, room[2])
    drift = drift_at(basis, spread, rates)
    for q in range(len(total)):
        lot = np.float64(q - p.inventory_limit)
        total[q] += weight * (room[2, q] + lot * drift - p.running_penalty * lot * lot)
    for q in range(len(total) - 1):
        total[q + 1] += weight * rates[BUY] * order_gain(asks[q], p.fill_decay_buy, p.log_behind_buy)
        total[q] += weight * rates[SELL] * order_gain(bids[q], p.fill_decay_sell, p.log_behind_sell)


@njit(**KERNEL)
def _left_at_start(p, kind, sums, edges, sides, orders, room):
    """What is left above the value function at the start, in one of the three kinds of `bound_paths`."""
    laws = ((p.fill_decay_buy, p.log_behind_buy), (p.fill_decay_sell, p.log_behind_sell))
    after, before = room[0], room[1]
    before[:] = sums[orders]
    for n in range(orders - 1, -1, -1):
        after[:] = before
        for i in range(len(after) - 1):
            q, to = (i + 1, i) if sides[n] == BUY else (i, i + 1)
            before[q] = after[q] + _gain_of_order(kind, edges[n, i], after[to] - after[q], laws[sides[n] - BUY])
        before += sums[n]
    return before[p.inventory_limit + p.initial_inventory]


@njit(**KERNEL)
def _gain_of_order(kind, edge, gap, law):
    """What an order adds, in the three kinds of `bound_paths`, if a fill changes what follows by ``gap``."""
    decay, log_behind = law
    if kind == 0:
        return order_gain(edge + gap, decay, log_behind) - order_gain(edge, decay, log_behind)
    if kind == 1:
        return max(gap, 0.0)
    return gap * math.exp(log_fill(best_offset(edge, decay, log_behind, np.inf), decay, log_behind))


@njit(**KERNEL)
def replay_steps(record, rows, basis, borders, table, depths, active, gaps):
    """Control variates of the steps that the rows are about to play with frozen ``depths (N, 2)``, from their streams.

    gaps (N,): integral of what the generator with these depths makes of the value function, so that the value function
    at the start plus all gaps of an episode has the policy's criterion as its expectation. ``rows`` are left where the
    step ends (inventory, spread, intensities), for comparison.
    """
    p = record[0]
    work, features = scratch(basis), np.empty((4, table.shape[1]))
    rates = np.empty(PROCESSES)
    for i in range(len(rows)):
        if not active[i]:
            continue
        s, gap = rows[i], 0.0
        s0, s1 = s.s0, s.s1
        q, spread = np.int64(s.inventory), np.int64(s.spread)
        last = s.time_left <= p.step_length * LAST
        length = s.time_left if last else p.step_length
        now, left = s.time_left, length
        level = _slice_at(borders, now)
        while True:
            wait, process, s0, s1 = next_event(p, s, left, s0, s1)
            end = 0.0 if last and process < 0 else max(now - wait, 0.0)
            half_spread = p.half_tick * spread
            done = 0.0
            while True:
                border = max(borders[level], end) if level > 0 else end
                width = now - border
                for node in range(2):
                    rates_at(p, s, done + NODES[node] * width, rates)
                    gap += (
                        0.5
                        * width
                        * _generator(p, basis, table[level], features, work, spread, rates, q, depths[i], half_spread)
                    )
                done += width
                now = border
                if level == 0 or borders[level] <= end:
                    break
                rates_at(p, s, done, rates)
                state_features(p, basis, spread, rates, work, features)
                column = q + p.inventory_limit
                for b in range(table.shape[1]):
                    gap += features[0, b] * (table[level - 1, b, column] - table[level, b, column])
                level -= 1
            relax(p, s, wait)
            left -= wait
            if process < 0:
                break
            if process >= BUY:
                reach, s0, s1 = order_reach(p, process, s0, s1)
                if process == BUY:
                    if q > -p.inventory_limit and depths[i, 1] - half_spread <= reach:
                        q -= 1
                elif q < p.inventory_limit and depths[i, 0] - half_spread <= reach:
                    q += 1
            ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
            spread += SPREAD_SIGN[process] * ticks
            excite(p, s, process)
            if p.decision == EVENT or (p.decision != CLOCK and process >= BUY):
                last = False
                break
        if last:
            rates_at(p, s, 0.0, rates)
            state_features(p, basis, spread, rates, work, features)
            gap -= p.half_tick * np.float64(abs(q) * spread) + p.terminal_penalty * np.float64(q * q)
            for b in range(table.shape[1]):
                gap -= features[0, b] * table[0, b, q + p.inventory_limit]
        s.inventory, s.spread = q, spread
        gaps[i] = gap


@njit(**KERNEL)
def _generator(p, basis, level, features, work, spread, rates, q, depths, half_spread):
    """The generator with frozen depths, applied to ``x + q s + Theta``, less the running penalty."""
    state_features(p, basis, spread, rates, work, features)
    column, lot = q + p.inventory_limit, np.float64(q)
    total = lot * drift_at(basis, spread, rates) - p.running_penalty * lot * lot
    for b in range(level.shape[0]):
        total += features[1, b] * level[b, column]
    bid, ask = _lot_edges(p, basis, features, level, spread, column)
    if q < p.inventory_limit:
        total += rates[SELL] * fill_worth(depths[0] - half_spread, bid, p.fill_decay_sell, p.log_behind_sell)
    if q > -p.inventory_limit:
        total += rates[BUY] * fill_worth(depths[1] - half_spread, ask, p.fill_decay_buy, p.log_behind_buy)
    return total
