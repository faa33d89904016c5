"""Kernels of quotes that rest for a step of the clock: simulated futures, what orders earn, and pathwise bounds.

The mathematics is that of `mmgym.baselines.hawkes_power.clock`. Tables ``(2, D, 2 Q + 1)`` are of bid and ask, nodes of
the offset from the best price, and inventories at the start of the step; edges ``(2, 2 Q)`` are those of
`mmgym.baselines.hawkes_power.kernels.edges_at`: bids from ``-Q``, asks from ``1 - Q``.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.baselines.hawkes_flow.reach import order_gain
from mmgym.baselines.hawkes_power.kernels import (
    NODES,
    PROCESSES,
    combine,
    drift_at,
    edges_at,
    order_features,
    rates_at,
    scratch,
    state_features,
)
from mmgym.compiling import KERNEL
from mmgym.models.hawkes_power import (
    BUY,
    SELL,
    SPREAD_SIGN,
    excite,
    next_event,
    order_reach,
    relax,
    reset_one,
    ticks_moved,
)
from mmgym.random_streams import start_stream

ORDERS = 64  # of a step that the penalty counts
# The futures of the bound and of the policy have streams of their own, not those that seeds of episodes start
FUTURE_SALT, AHEAD_SALT = np.uint64(0x5DEECE66D1234567), np.uint64(0x2545F4914F6CDD1D)


@njit(**KERNEL)
def _set_excess(s, excess):
    s.excess_bid_improvement = excess[0]
    s.excess_bid_cancellation = excess[1]
    s.excess_ask_cancellation = excess[2]
    s.excess_ask_improvement = excess[3]
    s.excess_buy = excess[4]
    s.excess_sell = excess[5]


@njit(**KERNEL)
def _order_edges(p, basis, level, spread, rates, work, features, room, edges):
    """Edges ``c`` (2, 2 Q) of bid and ask at a state."""
    order_features(p, basis, spread, rates, work, features)
    edges_at(p, basis, features, level, spread, room[0], room[1], edges[1], edges[0])


@njit(**KERNEL)
def _add_wait(
    p, s, wait, now, end, level, basis, borders, table, spread, rates, work, features, room, edges, sums, free
):
    """Add a time without events to what orders may earn in it; returns the slice at its end.

    ``sums`` (2, 2 Q + 1, L) has ``int y``, and the same times ``e`` at each inventory, by spread; ``free`` (2, 2, 2 Q)
    has ``int y psi`` and ``int y |e|``.
    """
    done, half_spread = 0.0, p.half_tick * spread
    while True:
        border = max(borders[level], end) if level > 0 else end
        width = now - border
        for node in range(2):
            rates_at(p, s, done + NODES[node] * width, rates)
            _order_edges(p, basis, table[level], spread, rates, work, features, room, edges)
            for side in range(2):
                decay = p.fill_decay_buy if side == 1 else p.fill_decay_sell
                mass = 0.5 * width * rates[BUY if side == 1 else SELL]
                sums[side, -1, spread - 1] += mass
                for q in range(edges.shape[1]):
                    edge = edges[side, q] - half_spread
                    sums[side, q, spread - 1] += mass * edge
                    free[side, 0, q] += mass * order_gain(edges[side, q], decay, 0.0)
                    free[side, 1, q] += mass * abs(edge)
        done += width
        now = border
        if level == 0 or borders[level] <= end:
            return level
        level -= 1


@njit(**KERNEL)
def _chance(distance, decay):
    """Of a fill at a distance behind the best price."""
    return 1.0 if distance <= 1e-12 else math.exp(-decay * distance)


@njit(**KERNEL)
def _tabulate(p, masses, spread, decay, nodes, out):
    """out (D,) = sum over spreads j of ``masses[j - 1] f(start + node - h_j)``."""
    inside = above = 0.0
    top = len(masses)
    for j in range(1, top + 1):
        if j <= spread:
            inside += masses[j - 1] * math.exp(decay * p.half_tick * (j - spread))
        else:
            above += masses[j - 1]
    j = min(spread, top)
    for i in range(len(nodes)):
        while j < top and p.half_tick * (j + 1 - spread) <= nodes[i] + 1e-12:
            j += 1
            above -= masses[j - 1]
            inside += masses[j - 1] * math.exp(decay * p.half_tick * (j - spread))
        out[i] = above + math.exp(-decay * nodes[i]) * inside


@njit(**KERNEL)
def _add_mean(p, sums, free, spread, nodes, ask, scale, lines, out, curve):
    """Add ``scale`` times what orders earn at the first inventory, less ``int y psi``, to out (D, 2 Q + 1).

    A bound of its second derivative goes to curve (2 Q + 1,).
    """
    start, decay, lots = p.half_tick * spread, p.fill_decay_buy if ask else p.fill_decay_sell, len(free[0])
    _tabulate(p, sums[lots], spread, decay, nodes, lines[0])
    mass = sums[lots].sum()
    for n in range(lots):
        _tabulate(p, sums[n], spread, decay, nodes, lines[1])
        q = n + 1 if ask else n
        for i in range(len(nodes)):
            out[i, q] += scale * (lines[0, i] * (start + nodes[i]) + lines[1, i] - free[0, n])
        curve[q] += scale * decay * (mass * (decay * (start + nodes[-1]) + 2.0) + decay * free[1, n])


@njit(**KERNEL)
def walk(orders, q, sides, half_spreads, edges, sums, after, bid, ask, decays, values):
    """What follows from inventory ``q`` on, above what the step's own quotes ``bid``, ``ask`` (distances) earn there.

    That is what fills at other inventories of the step earn otherwise, the residuals, and ``after`` (2 Q + 1,).
    """
    lots = len(after)
    low, high = max(q - orders, 0), min(q + orders, lots - 1)
    for r in range(low, high + 1):
        values[r] = after[r] + sums[orders, r]
    for i in range(orders - 1, -1, -1):
        if sides[i] == BUY:
            offset = ask - half_spreads[i]
            fill = _chance(offset, decays[1])
            own = offset + edges[i, q - 1] if q > 0 else 0.0
            for r in range(high, low - 1, -1):
                if r > low and r > 0:
                    values[r] += fill * (offset + edges[i, r - 1] - own + values[r - 1] - values[r])
                else:
                    values[r] -= fill * own
                values[r] += sums[i, r]
        else:
            offset = bid - half_spreads[i]
            fill = _chance(offset, decays[0])
            own = offset + edges[i, q] if q < lots - 1 else 0.0
            for r in range(low, high + 1):
                if r < high and r < lots - 1:
                    values[r] += fill * (offset + edges[i, r] - own + values[r + 1] - values[r])
                else:
                    values[r] -= fill * own
                values[r] += sums[i, r]
    return values[q]


@njit(**KERNEL)
def most_of_walk(orders, q, sides, half_spreads, edges, sums, after, start, decays):
    """A bound of `walk` over all quotes."""
    lots = len(after)
    low, high = max(q - orders, 0), min(q + orders, lots - 1)
    total = 0.0
    for i in range(orders):
        best, ask = 0.0, sides[i] == BUY
        decay, rise = decays[1 if ask else 0], max(half_spreads[i] - start, 0.0)
        for r in range(low, high + 1):
            closed, here = (q == 0, r > 0) if ask else (q == lots - 1, r < lots - 1)
            own = 0.0 if closed else edges[i, q - 1 if ask else q]
            edge = edges[i, r - 1 if ask else r] if here else 0.0
            gain = 0.0
            if here and closed:
                gain = order_gain(edge, decay, 0.0)
            elif here:
                gain = edge - own
            elif not closed:
                gain = rise - own
            best = max(best, gain)
        total += best
    for i in range(orders + 1):
        most = -math.inf
        for r in range(low, high + 1):
            most = max(most, sums[i, r] + (after[r] if i == orders else 0.0))
        total += most
    return total


@njit(**KERNEL)
def curvature_of_walk(orders, q, sides, half_spreads, edges, sums, after, start, decays, room):
    """A bound of the sum of the second derivatives of `walk` in its two quotes, where it has them.

    It follows `walk`: bounds of values and of derivatives, room (6, 2 Q + 1), come from those of what is mixed, as the
    probability of a fill has derivatives of at most ``kappa`` and ``kappa^2``.
    """
    lots = len(after)
    low, high = max(q - orders, 0), min(q + orders, lots - 1)
    least, most, slopes, curves = room[0], room[1], room[2:4], room[4:6]
    for r in range(low, high + 1):
        least[r] = most[r] = after[r] + sums[orders, r]
        slopes[0, r] = slopes[1, r] = curves[0, r] = curves[1, r] = 0.0
    for i in range(orders - 1, -1, -1):
        ask = sides[i] == BUY
        side, other, step = (1, 0, -1) if ask else (0, 1, 1)
        decay, rise = decays[side], max(half_spreads[i] - start, 0.0)
        closed = q == 0 if ask else q == lots - 1
        own = 0.0 if closed else edges[i, q - 1 if ask else q]
        for n in range(low, high + 1):
            r = low + high - n if ask else n  # so that what follows is not yet this order's
            to = r + step
            if low <= to <= high:
                edge = edges[i, r - 1 if ask else r]
                gain, size = edge - own, 0.0
                if closed:
                    gain, size = 0.0, abs(edge) + rise + 3.0 / decay
                gap = size + max(abs(gain + most[to] - least[r]), abs(gain + least[to] - most[r]))
            elif 0 <= to < lots:
                continue  # too far from q for so few orders
            else:
                to, gain, size = r, 0.0, 0.0 if closed else abs(own) + rise + 3.0 / decay
                gap = size
            bend = 2.0 * decay * (slopes[side, r] + slopes[side, to]) + decay * decay * gap
            curves[side, r] = max(curves[side, r], curves[side, to]) + bend
            slopes[side, r] = max(slopes[side, r], slopes[side, to]) + decay * gap
            curves[other, r] = max(curves[other, r], curves[other, to])
            slopes[other, r] = max(slopes[other, r], slopes[other, to])
            most[r] = max(most[r], most[to] + gain) + size
            least[r] = min(least[r], least[to] + gain) - size
        for r in range(low, high + 1):
            least[r] += sums[i, r]
            most[r] += sums[i, r]
    return curves[0, q] + curves[1, q]


@njit(**KERNEL)
def walk_alone(n, half_spreads, edges, quote, decay, ask, out):
    """`walk` of ``n`` orders of one side without anything else, from each inventory: out (2 Q + 1,)."""
    lots = len(out)
    out[:] = 0.0
    for o in range(n - 1, -1, -1):
        offset = quote - half_spreads[o]
        fill = _chance(offset, decay)
        if ask:
            for r in range(lots - 1, 0, -1):
                out[r] += fill * (offset + edges[o, r - 1] + out[r - 1] - out[r])
        else:
            for r in range(lots - 1):
                out[r] += fill * (offset + edges[o, r] + out[r + 1] - out[r])
    for o in range(n):
        offset = quote - half_spreads[o]
        fill = _chance(offset, decay)
        for r in range(lots - 1):
            out[r + 1 if ask else r] -= fill * (offset + edges[o, r])


class Grid(NamedTuple):
    """Offsets of bid and ask at which fills of both sides are looked at, and what lies in between.

    In between they are interpolated in ``exp(-kappa offset)``, in which they are linear while no fill is certain.
    """

    coarse: NDArray[np.int64]  # (2, K): nodes, rising
    below: NDArray[np.int64]  # (2, D): the last of them that is not above each node, the last but one at the end
    share: NDArray[np.float64]  # (2, D): weight of the next one


class Room(NamedTuple):
    """Room for `_add_walks`; ``none`` stays zero."""

    half_spreads: NDArray[np.float64]
    edges: NDArray[np.float64]
    sides: NDArray[np.int64]
    none: NDArray[np.float64]
    bounds: NDArray[np.float64]
    alone: NDArray[np.float64]


@njit(**KERNEL)
def _room(lots, count):
    return Room(
        np.empty((2, ORDERS)),
        np.empty((2, ORDERS, lots - 1)),
        np.empty(ORDERS, np.int64),
        np.zeros((ORDERS + 1, lots)),
        np.empty((6, lots)),
        np.empty((2, count, lots)),
    )


@njit(**KERNEL)
def _mixed_column(mixed, grid, i, out):
    """Values out (K,) of mixed (K, K) at a node of the ask."""
    b, share = grid.below[1, i], grid.share[1, i]
    for a in range(len(out)):
        out[a] = (1.0 - share) * mixed[a, b] + share * mixed[a, b + 1]


@njit(**KERNEL)
def _mixed_at(column, grid, j):
    """A value of `_mixed_column` at a node of the bid."""
    a, share = grid.below[0, j], grid.share[0, j]
    return (1.0 - share) * column[a] + share * column[a + 1]


@njit(**KERNEL)
def _add_walks(
    orders, sides, half_spreads, edges, start, nodes, grid, decays, scale, first, last, room, out, mixed, curve
):
    """Add ``scale`` times the `walk` of several orders to what quotes of a step earn.

    That of each side alone to out (2, D, 2 Q + 1), what is left to mixed (2 Q + 1, K, K), at inventories from ``first``
    to before ``last``; bounds of second derivatives, but for mixed, to curve (2 Q + 1,).
    """
    count, lots = grid.coarse.shape[1], edges.shape[1] + 1
    n, values = np.zeros(2, np.int64), np.empty(lots)
    for o in range(orders):
        side = 1 if sides[o] == BUY else 0
        room.half_spreads[side, n[side]], room.edges[side, n[side]] = half_spreads[o], edges[o]
        n[side] += 1
    for side in range(2):
        if n[side] > 1:
            room.sides[: n[side]] = BUY if side == 1 else SELL
            for i in range(len(nodes)):
                quote = start + nodes[i]
                walk_alone(n[side], room.half_spreads[side], room.edges[side], quote, decays[side], side == 1, values)
                for q in range(first, last):
                    out[side, i, q] += scale * values[q]
            for q in range(first, last):
                curve[q] += abs(scale) * curvature_of_walk(
                    n[side], q, room.sides, room.half_spreads[side], room.edges[side], room.none, room.none[0], start,
                    decays, room.bounds,
                )  # fmt: skip
    if n[0] == 0 or n[1] == 0:
        return
    for side in range(2):
        for a in range(count):
            quote = start + nodes[grid.coarse[side, a]]
            walk_alone(
                n[side], room.half_spreads[side], room.edges[side], quote, decays[side], side == 1, room.alone[side, a]
            )
    for q in range(first, last):
        for a in range(count):
            for b in range(count):
                bid, ask = start + nodes[grid.coarse[0, a]], start + nodes[grid.coarse[1, b]]
                value = walk(orders, q, sides, half_spreads, edges, room.none, room.none[0], bid, ask, decays, values)
                mixed[q, a, b] += scale * (value - room.alone[0, a, q] - room.alone[1, b, q])


@njit(**KERNEL)
def _best_pair(bids, asks, mixed, grid, column):
    """Nodes of bid and ask that are good together, found by turns, from bids and asks (D,) and mixed (K, K)."""
    j, i = np.int64(np.argmax(bids)), np.int64(np.argmax(asks))
    for _ in range(3):
        _mixed_column(mixed, grid, i, column)
        best = -math.inf
        for n in range(len(bids)):
            value = bids[n] + _mixed_at(column, grid, n)
            if value > best:
                best, j = value, np.int64(n)
        best = -math.inf
        for n in range(len(asks)):
            _mixed_column(mixed, grid, n, column)
            value = asks[n] + _mixed_at(column, grid, j)
            if value > best:
                best, i = value, np.int64(n)
    return j, i, best + bids[j]


@njit(**KERNEL)
def _bend_of_mixed(mixed, grid, nodes, decays):
    """A bound of the sum of the second derivatives of interpolated mixed (K, K) between nodes."""
    most, count = np.zeros(2), len(mixed)
    for side in range(2):
        for a in range(count - 1):
            fall = math.exp(-decays[side] * nodes[grid.coarse[side, a]])
            fall -= math.exp(-decays[side] * nodes[grid.coarse[side, a + 1]])
            for b in range(count):
                change = mixed[a + 1, b] - mixed[a, b] if side == 0 else mixed[b, a + 1] - mixed[b, a]
                most[side] = max(most[side], abs(change) / fall)
    return decays[0] ** 2 * most[0] + decays[1] ** 2 * most[1]


@njit(**KERNEL)
def _foresee(
    p, s, basis, borders, table, level, left, spread, first, last, futures, nodes, grid, stream, work, features, room,
    out, mixed, curve,
):  # fmt: skip
    """What quotes of a step are expected to earn, from its state ``s``: out (2, D, 2 Q + 1) and mixed (2 Q + 1, K, K).

    At inventories from ``first`` to before ``last``; bounds of second derivatives, but for mixed, go to curve
    (2 Q + 1,). The stream is returned.
    """
    s0, s1 = stream
    lots, start = table.shape[2], p.half_tick * spread
    excess, rates, lines = np.empty(PROCESSES), np.empty(PROCESSES), np.empty((2, len(nodes)))
    pair, edges = np.empty((2, lots)), np.empty((2, lots - 1))
    sums, free = np.zeros((2, lots, p.largest_spread)), np.zeros((2, 2, lots - 1))
    sides, half_spreads, seen = np.empty(ORDERS, np.int64), np.empty(ORDERS), np.empty((ORDERS, lots - 1))
    decays = np.array([p.fill_decay_sell, p.fill_decay_buy])
    rates_at(p, s, 0.0, rates)
    excess[:] = rates - p.base_rates
    out[:], mixed[:], curve[:] = 0.0, 0.0, 0.0
    last_end = max(left - p.step_length, 0.0)
    for _ in range(futures):
        _set_excess(s, excess)
        here, at, now, rest, orders = spread, level, left, p.step_length, 0
        while True:
            wait, process, s0, s1 = next_event(p, s, rest, s0, s1)
            end = last_end if process < 0 else max(now - wait, 0.0)
            at = _add_wait(
                p, s, wait, now, end, at, basis, borders, table, here, rates, work, features, pair, edges, sums, free
            )
            relax(p, s, wait)
            rest -= wait
            now = end
            if process < 0:
                break
            if process >= BUY and orders < ORDERS:
                rates_at(p, s, 0.0, rates)
                _order_edges(p, basis, table[at], here, rates, work, features, pair, edges)
                sides[orders], half_spreads[orders] = process, p.half_tick * here
                seen[orders] = edges[1 if process == BUY else 0]
                orders += 1
            ticks, s0, s1 = ticks_moved(p, process, here, s0, s1)
            here += SPREAD_SIGN[process] * ticks
            excite(p, s, process)
        if orders > 1:
            _add_walks(
                orders, sides, half_spreads, seen, start, nodes, grid, decays, 1.0 / futures, first, last, room, out,
                mixed, curve,
            )  # fmt: skip
    _set_excess(s, excess)
    for side in range(2):
        _add_mean(p, sums[side], free[side], spread, nodes, side == 1, 1.0 / futures, lines, out[side], curve)
    return s0, s1


@njit(**KERNEL)
def foresee_states(
    record, rows, basis, borders, table, left, lots, spreads, rates, seeds, futures, nodes, grid, best, gains
):
    """The best offsets of bid and ask, best (S, 2), at states, as simulated futures from seeds (S,) say.

    At inventories ``lots`` (S,); what quotes earn at all of them goes to gains (S, 2 Q + 1), if it has rows.
    """
    p, s = record[0], rows[0]
    inventories, count = table.shape[2], grid.coarse.shape[1]
    work, features = scratch(basis), np.empty((4, table.shape[1]))
    room, column = _room(inventories, count), np.empty(count)
    tables, mixed = np.empty((2, len(nodes), inventories)), np.empty((inventories, count, count))
    curve = np.empty(inventories)
    for n in range(len(left)):
        _set_excess(s, rates[n] - p.base_rates)
        level = min(max(np.searchsorted(borders, left[n] * (1.0 + 1e-12)) - 1, 0), len(table) - 1)
        q = lots[n] + p.inventory_limit
        first, last = (0, inventories) if len(gains) > 0 else (q, q + 1)
        _foresee(
            p, s, basis, borders, table, level, left[n], spreads[n], first, last, futures, nodes, grid,
            start_stream(seeds[n]), work, features, room, tables, mixed, curve,
        )  # fmt: skip
        j, i, _ = _best_pair(tables[0, :, q], tables[1, :, q], mixed[q], grid, column)
        best[n, 0], best[n, 1] = nodes[j], nodes[i]
        if len(gains) > 0:
            for r in range(inventories):
                _, _, gains[n, r] = _best_pair(tables[0, :, r], tables[1, :, r], mixed[r], grid, column)


@njit(**KERNEL)
def _best_of_step(
    orders, q, sides, half_spreads, edges, sums, after, start, nodes, grid, bids, asks, mixed, decays, values, column
):
    """The largest value over the nodes of bid and ask, from inventory ``q`` on."""
    buys, parts = 0, (orders, q, sides, half_spreads, edges, sums, after)
    of_bid, of_ask = bids[:, q].copy(), asks[:, q].copy()
    for n in range(orders):
        buys += sides[n] == BUY
    both = 0 < buys < orders
    if orders == 0:
        of_bid += walk(*parts, start, start, decays, values)
    elif not both:  # what orders earn depends on the quote of one side
        for n in range(len(nodes)):
            if buys > 0:
                of_ask[n] += walk(*parts, start, start + nodes[n], decays, values)
            else:
                of_bid[n] += walk(*parts, start + nodes[n], start, decays, values)
    most = mixed.max() + (most_of_walk(*parts, start, decays) if both else 0.0)
    best, by_bid = -math.inf, np.argsort(-of_bid)
    for i in np.argsort(-of_ask):
        if of_ask[i] + of_bid[by_bid[0]] + most <= best:
            break
        _mixed_column(mixed, grid, i, column)
        for j in by_bid:
            if of_ask[i] + of_bid[j] + most <= best:
                break
            value = of_ask[i] + of_bid[j] + _mixed_at(column, grid, j)
            if both:
                value += walk(*parts, start + nodes[j], start + nodes[i], decays, values)
            best = max(best, value)
    return best


@njit(**KERNEL)
def held_paths(record, rows, basis, borders, table, seeds, futures, ahead, nodes, grid, most, out):
    """Pathwise estimates (paths, 2) of `mmgym.baselines.hawkes_power.clock.held_bounds`, less the value at the start.

    Not-a-number where a step has more than ``most`` orders.
    """
    p, s = record[0], rows[0]
    lots, steps = table.shape[2], p.num_steps
    limit, largest = p.inventory_limit, p.largest_spread
    work, features = scratch(basis), np.empty((4, table.shape[1]))
    decays = np.array([p.fill_decay_sell, p.fill_decay_buy])
    rates, pair, jump, edges = np.empty(PROCESSES), np.empty((3, lots)), np.empty(lots), np.empty((2, lots - 1))
    tables, curves = np.empty((steps, 2, len(nodes), lots)), np.empty((steps, lots))
    chosen, spreads, counts = np.empty((steps, 2, lots), np.int64), np.empty(steps, np.int64), np.empty(steps, np.int64)
    sides, half_spreads = np.empty((steps, most), np.int64), np.empty((steps, most))
    order_edges, sums = np.empty((steps, most, lots - 1)), np.empty((steps, most + 1, lots))
    # ``waits`` is not read: where quotes rest, what orders earn and its compensator are known to cancel
    waits, free = np.zeros((2, lots, largest)), np.empty((2, 2, lots - 1))
    count, values, bounds = grid.coarse.shape[1], np.empty(lots), np.empty((6, lots))
    room, mixed, column = _room(lots, count), np.empty((steps, lots, count, count)), np.empty(count)
    spacing = nodes[1] - nodes[0]
    for path in range(len(seeds)):
        s0, s1 = start_stream(seeds[path])
        stream = start_stream(seeds[path] ^ FUTURE_SALT)
        reset_one(p, s)
        spread, level, enough = np.int64(s.spread), len(table) - 1, True
        for k in range(steps):
            now, rest = p.step_length * (steps - k), p.step_length
            spreads[k] = spread
            # the policy's quotes come from futures of their own: those of the penalty flatter what is chosen by them
            _foresee(
                p, s, basis, borders, table, level, now, spread, 0, lots, ahead, nodes, grid,
                start_stream(np.uint64(steps - k) ^ AHEAD_SALT), work, features, room, tables[k], mixed[k], curves[k],
            )  # fmt: skip
            for q in range(lots):
                j, i, _ = _best_pair(tables[k, 0, :, q], tables[k, 1, :, q], mixed[k, q], grid, column)
                chosen[k, 0, q], chosen[k, 1, q] = j, i
            stream = _foresee(
                p, s, basis, borders, table, level, now, spread, 0, lots, futures, nodes, grid, stream, work, features,
                room, tables[k], mixed[k], curves[k],
            )  # fmt: skip
            free[:], orders = 0.0, 0
            sums[k, 0] = 0.0
            while True:
                wait, process, s0, s1 = next_event(p, s, rest, s0, s1)
                end = 0.0 if k == steps - 1 and process < 0 else max(now - wait, 0.0)
                done = 0.0
                _add_wait(
                    p, s, wait, now, end, level, basis, borders, table, spread, rates, work, features, pair, edges,
                    waits, free,
                )  # fmt: skip
                while True:
                    border = max(borders[level], end) if level > 0 else end
                    width = now - border
                    for node in range(2):
                        rates_at(p, s, done + NODES[node] * width, rates)
                        state_features(p, basis, spread, rates, work, features)
                        combine(features[1], table[level], jump)
                        drift = drift_at(basis, spread, rates)
                        for q in range(lots):
                            lot = np.float64(q - limit)
                            residual = jump[q] + lot * drift - p.running_penalty * lot * lot
                            sums[k, orders, q] += 0.5 * width * residual
                    done += width
                    now = border
                    if level == 0 or borders[level] <= end:
                        break
                    rates_at(p, s, done, rates)
                    state_features(p, basis, spread, rates, work, features)
                    combine(features[0], table[level - 1], jump)
                    sums[k, orders] += jump
                    combine(features[0], table[level], jump)
                    sums[k, orders] -= jump
                    level -= 1
                relax(p, s, wait)
                rest -= wait
                if process < 0:
                    break
                if process >= BUY:
                    if orders == most:
                        enough = False
                        break
                    rates_at(p, s, 0.0, rates)
                    _order_edges(p, basis, table[level], spread, rates, work, features, pair, edges)
                    sides[k, orders], half_spreads[k, orders] = process, p.half_tick * spread
                    order_edges[k, orders] = edges[1 if process == BUY else 0]
                    orders += 1
                    sums[k, orders] = 0.0
                    _, s0, s1 = order_reach(p, process, s0, s1)
                ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
                spread += SPREAD_SIGN[process] * ticks
                excite(p, s, process)
            if not enough:
                break
            counts[k] = orders
            tables[k, 0, :, :-1] += free[0, 0]
            tables[k, 1, :, 1:] += free[1, 0]
            if orders > 1:
                _add_walks(
                    min(orders, ORDERS), sides[k], half_spreads[k], order_edges[k], p.half_tick * spreads[k], nodes,
                    grid, decays, -1.0, 0, lots, room, tables[k], mixed[k], curves[k],
                )  # fmt: skip
        if not enough:
            out[path] = np.nan
            continue
        rates_at(p, s, 0.0, rates)
        state_features(p, basis, spread, rates, work, features)
        combine(features[0], table[0], jump)
        for kind in range(2):
            after, before = pair[0], pair[1]
            for q in range(lots):
                lot = np.float64(q - limit)
                after[q] = -jump[q] - abs(lot) * p.half_tick * spread - p.terminal_penalty * lot * lot
            for k in range(steps - 1, -1, -1):
                height, bids, asks = p.half_tick * spreads[k], tables[k, 0], tables[k, 1]
                for q in range(lots):
                    parts = (counts[k], q, sides[k], half_spreads[k], order_edges[k], sums[k], after)
                    if kind == 0:
                        curve = curves[k, q] + _bend_of_mixed(mixed[k, q], grid, nodes, decays)
                        curve += curvature_of_walk(*parts, height, decays, bounds)
                        before[q] = _best_of_step(
                            *parts, height, nodes, grid, bids, asks, mixed[k, q], decays, values, column
                        )
                        before[q] += 0.125 * spacing * spacing * curve
                    else:
                        j, i = chosen[k, 0, q], chosen[k, 1, q]
                        before[q] = walk(*parts, height + nodes[j], height + nodes[i], decays, values)
                        _mixed_column(mixed[k, q], grid, i, column)
                        before[q] += bids[j, q] + asks[i, q] + _mixed_at(column, grid, j)
                after[:] = before
            out[path, kind] = after[limit + p.initial_inventory]
