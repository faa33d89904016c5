"""Kernels of the Hawkes flow baseline: tables between their nodes, and control variates along simulated paths.

Tables have the shape (levels, inventories, buy nodes, sell nodes, 3): continuation gains of bid and ask, and values.
They are polynomials in both intensities, and the cubic through four levels in the time left.
"""

import math

import numpy as np
from numba import njit

from mmgym.baselines.hawkes_flow.rates import CHORD
from mmgym.baselines.hawkes_flow.reach import best_offset, fill_worth
from mmgym.compiling import KERNEL, SCALAR
from mmgym.models.hawkes_flow import log_fill, next_order, piece_at
from mmgym.random_streams import uniform

PATH_X, PATH_W = np.polynomial.legendre.leggauss(6)  # nodes of an integral between two orders

CLOSED = 1e-12  # orders in a step that are none
SLACK = 0.5  # change of an edge with fills, in units of 1 / kappa, up to which one depth at most is best
SCAN, FAR = 24, 12.0  # offsets that are tried first elsewhere, and how far, in units of 1 / kappa
SWEEPS, FEW, BISECTIONS = 100, 2, 60
BEHIND = (
    1e-6  # behind the best price, in units of 1 / kappa: the nearest offset that an action in float32 tells from it
)
SAME = 1e-11  # change of offsets, in units of 1 / kappa


@njit(**KERNEL)
def _polynomial_weights(x, nodes, weights, scale, out):
    """Add ``scale`` times the weights of the values at the nodes in the value at ``x``."""
    total = 0.0
    for i in range(len(nodes)):
        if x == nodes[i]:
            out[i] += scale
            return
        total += weights[i] / (x - nodes[i])
    for i in range(len(nodes)):
        out[i] += scale * weights[i] / (x - nodes[i]) / total


@njit(**KERNEL)
def rate_weights(excess, nodes, weights, out):
    """Weights of the values at the nodes in the value at an excess, with the straight line beyond the last node."""
    out[:] = 0.0
    last = nodes[len(nodes) - 1]
    if len(nodes) == 1:
        out[0] = 1.0
    elif excess <= last:
        _polynomial_weights(excess, nodes, weights, 1.0, out)
    else:
        slope = (excess - last) / (CHORD * last)
        out[len(nodes) - 1] = 1.0 + slope
        _polynomial_weights((1.0 - CHORD) * last, nodes, weights, -slope, out)


@njit(**KERNEL)
def _time_weights(time, times, segments, out):
    """First of the levels (four, or fewer) around a time left, their number, and their weights; all in one segment."""
    s = 0
    while s < len(segments) - 1 and time > times[segments[s, 1]]:
        s += 1
    low, high = segments[s]
    first, last = low, high
    while last - first > 1:
        middle = (first + last) // 2
        if times[middle] <= time:
            first = middle
        else:
            last = middle
    count = min(4, high - low + 1)
    first = max(low, min(first - 1, high - count + 1))
    for j in range(count):
        out[j] = 1.0
        for k in range(count):
            if k != j:
                out[j] *= (time - times[first + k]) / (times[first + j] - times[first + k])
    return first, count


@njit(**KERNEL)
def look_up(table, times, segments, state, buy_nodes, buy_weights, sell_nodes, sell_weights, scratch, out):
    """Bid gain, ask gain and value at a state (time left, inventory index, buy and sell excess)."""
    time_weights, buy, sell = scratch[0], scratch[1], scratch[2]
    first, count = _time_weights(state[0], times, segments, time_weights)
    rate_weights(state[2], buy_nodes, buy_weights, buy)
    rate_weights(state[3], sell_nodes, sell_weights, sell)
    q = np.int64(state[1])
    out[0] = out[1] = out[2] = 0.0
    for level in range(count):
        for i in range(len(buy_nodes)):
            weight = time_weights[level] * buy[i]
            bid = ask = value = 0.0
            for j in range(len(sell_nodes)):
                entry = table[first + level, q, i, j]
                bid += sell[j] * entry[0]
                ask += sell[j] * entry[1]
                value += sell[j] * entry[2]
            out[0] += weight * bid
            out[1] += weight * ask
            out[2] += weight * value


@njit(**KERNEL)
def look_up_rows(table, times, segments, states, buy_nodes, buy_weights, sell_nodes, sell_weights, out):
    """`look_up` of many states (B, 4) into ``out`` (B, 3)."""
    scratch = np.empty((3, max(len(buy_nodes), len(sell_nodes), 4)))
    buy, sell = scratch[:, : len(buy_nodes)], scratch[:, : len(sell_nodes)]
    parts = (scratch[0], buy[1], sell[2])
    for i in range(len(states)):
        look_up(table, times, segments, states[i], buy_nodes, buy_weights, sell_nodes, sell_weights, parts, out[i])


@njit(**SCALAR)
def _shortfalls(p, depths, gains):
    """What an order fills the bid and the ask for at these depths, less that at the best ones: at most 0 each."""
    decay, behind, edge = p.fill_decay_sell, p.log_behind_sell, p.half_spread + gains[0]
    best = best_offset(edge, decay, behind, 2.0 * p.reach_bid)
    played = fill_worth(depths[0] - p.half_spread, edge, decay, behind)
    bid = played - fill_worth(best, edge, decay, behind)
    decay, behind, edge = p.fill_decay_buy, p.log_behind_buy, p.half_spread + gains[1]
    best = best_offset(edge, decay, behind, 2.0 * p.reach_ask)
    played = fill_worth(depths[1] - p.half_spread, edge, decay, behind)
    return bid, played - fill_worth(best, edge, decay, behind)


@njit(**SCALAR)
def _panels(p, length, rate):
    """Panels of an integral over ``length``, so that decays and hazards of up to ``rate`` are smooth on each."""
    fastest = max(p.decay_buy, p.decay_sell, rate)
    return 1 + np.int64(min(0.5 * length * fastest, 1e4))


@njit(**SCALAR)
def _path_node(length, panels, j):
    """Node ``j`` of an integral over ``length`` and its weight."""
    panel, node = j // len(PATH_X), j % len(PATH_X)
    half = 0.5 * length / panels
    return half * (2.0 * panel + 1.0 + PATH_X[node]), half * PATH_W[node]


@njit(**SCALAR)
def _next_order(p, time_left, buy, sell):
    """Probabilities that the next order comes before the next decision and is a buy, or a sell, from excesses."""
    bought = sold = 0.0
    base_buy, base_sell, end = piece_at(p, time_left)
    length = min(time_left - end, p.step_length)
    panels = _panels(p, length, base_buy + base_sell + buy + sell)
    for j in range(panels * len(PATH_X)):
        u, weight = _path_node(length, panels, j)
        faded_buy, faded_sell = math.exp(-p.decay_buy * u), math.exp(-p.decay_sell * u)
        hazard = (base_buy + base_sell) * u
        hazard += buy * (1.0 - faded_buy) / p.decay_buy + sell * (1.0 - faded_sell) / p.decay_sell
        weight *= math.exp(-hazard)
        bought += weight * (base_buy + buy * faded_buy)
        sold += weight * (base_sell + sell * faded_sell)
    return bought, sold


@njit(**KERNEL)
def open_sides(record, states, out):
    """Probabilities (B, 2) that the next order comes before the next decision and may fill the bid, or the ask."""
    p = record[0]
    for i in range(len(states)):
        bought, sold = _next_order(p, states[i, 0], states[i, 2], states[i, 3])
        q = np.int64(states[i, 1]) - p.inventory_limit
        out[i, 0] = sold if q < p.inventory_limit else 0.0
        out[i, 1] = bought if q > -p.inventory_limit else 0.0


@njit(**KERNEL)
def event_advantages(record, states, depths, gains, active, out):
    """Advantages of depths that are frozen until the next order, at states (B, 4) with mean gains (B, 2 or more).

    ``sum_k W_k [fill at d - fill at the best depth]``, ``W_k`` the probability that the next order comes in time and is
    of the side ``k``.
    """
    p = record[0]
    for i in range(len(states)):
        out[i] = 0.0
        if not active[i]:
            continue
        bought, sold = _next_order(p, states[i, 0], states[i, 2], states[i, 3])
        q = np.int64(states[i, 1]) - p.inventory_limit
        bid, ask = _shortfalls(p, depths[i], gains[i])
        if q < p.inventory_limit:
            out[i] += sold * bid
        if q > -p.inventory_limit:
            out[i] += bought * ask


@njit(**KERNEL)
def clock_advantages(
    record,
    table,
    times,
    segments,
    buy_nodes,
    buy_weights,
    sell_nodes,
    sell_weights,
    states,
    streams,
    depths,
    active,
    ends,
    out,
):
    """Compensated advantages of depths that are frozen for a step, along the path that the environment plays.

    ``int sum_k y_k [fill at d - fill at the best depth] dt`` between the orders of the step, which are replayed from
    the streams; the depths that are best move with the state. ``ends`` gets the inventory index after the step.
    """
    p = record[0]
    scratch = np.empty((3, max(len(buy_nodes), len(sell_nodes), 4)))
    parts = (scratch[0], scratch[1, : len(buy_nodes)], scratch[2, : len(sell_nodes)])
    best, state = np.empty(3), np.empty(4)
    for i in range(len(states)):
        out[i] = 0.0
        ends[i] = np.int64(states[i, 1])
        if not active[i]:
            continue
        q = np.int64(states[i, 1]) - p.inventory_limit
        start, buy, sell = states[i, 0], states[i, 2], states[i, 3]
        s0, s1 = streams[i, 0], streams[i, 1]
        fill_bid = math.exp(log_fill(depths[i, 0] - p.half_spread, p.fill_decay_sell, p.log_behind_sell))
        fill_ask = math.exp(log_fill(depths[i, 1] - p.half_spread, p.fill_decay_buy, p.log_behind_buy))
        base_buy, base_sell, end = piece_at(p, start)
        left = min(start - end, p.step_length)
        while True:
            wait, side, filled, s0, s1 = next_order(
                p, base_buy, base_sell, q, buy, sell, left, fill_bid, fill_ask, s0, s1
            )
            panels = _panels(p, wait, base_buy + base_sell)
            for j in range(panels * len(PATH_X)):
                u, weight = _path_node(wait, panels, j)
                state[0] = max(start - u, 0.0)
                state[1] = q + p.inventory_limit
                state[2] = buy * math.exp(-p.decay_buy * u)
                state[3] = sell * math.exp(-p.decay_sell * u)
                look_up(table, times, segments, state, buy_nodes, buy_weights, sell_nodes, sell_weights, parts, best)
                bid, ask = _shortfalls(p, depths[i], best)
                rate = 0.0
                if q < p.inventory_limit:
                    rate += (base_sell + state[3]) * bid
                if q > -p.inventory_limit:
                    rate += (base_buy + state[2]) * ask
                out[i] += weight * rate
            if side == 0:
                break
            start -= wait
            left -= wait
            buy *= math.exp(-p.decay_buy * wait)
            sell *= math.exp(-p.decay_sell * wait)
            if side > 0:
                q -= filled
                buy += p.excitation_buy
            else:
                q += filled
                sell += p.excitation_sell
        ends[i] = q + p.inventory_limit


@njit(**KERNEL)
def update_particles(base, jumps, decays, elapsed, ordered, sides, passed, excess, weights, streams):
    """Particles (B, P, 2), their weights (B, P) and streams (B, 2) after a step; base rates and more by rows."""
    count = excess.shape[1]
    hazards, chances, old = np.empty(count), np.empty(2 * count), np.empty((count, 2))
    for i in range(len(excess)):
        total, least = 0.0, np.inf
        faded = np.exp(-decays * elapsed[i])
        for j in range(count):
            hazards[j] = 0.0
            for k in range(2):
                hazards[j] += excess[i, j, k] * (1.0 - faded[k]) / decays[k]
                excess[i, j, k] *= faded[k]
            if weights[i, j] > 0.0:
                least = min(least, hazards[j])
        for j in range(count):
            likely = weights[i, j] * math.exp(min(least - hazards[j], 0.0))
            for k in range(2):
                side = 1 - 2 * k
                if not ordered[i]:
                    chance = 0.5
                elif sides[i] == 0:
                    chance = (base[i, k] + excess[i, j, k]) * passed[i, k]
                else:
                    chance = base[i, k] + excess[i, j, k] if sides[i] == side else 0.0
                chances[k * count + j] = likely * chance  # buys first: steps of two would meet one side only
                total += likely * chance
        if ordered[i] and sides[i] == 0:
            mark, s0, s1 = uniform(streams[i, 0], streams[i, 1])
            streams[i, 0], streams[i, 1] = s0, s1
            old[:] = excess[i]
            c, passed_by = 0, chances[0]
            for j in range(count):
                while c < 2 * count - 1 and passed_by < total * (j + mark) / count:
                    c += 1
                    passed_by += chances[c]
                excess[i, j] = old[c % count]
                excess[i, j, c // count] += jumps[c // count]
                weights[i, j] = 1.0 / count
        else:
            for j in range(count):
                weights[i, j] = (chances[j] + chances[count + j]) / total
            if ordered[i]:
                excess[i, :, 0 if sides[i] > 0 else 1] += jumps[0 if sides[i] > 0 else 1]


# Offsets that are frozen by the clock: see `mmgym.baselines.hawkes_flow.clock`


@njit(**SCALAR)
def _powers(fill, out):
    """Chebyshev polynomials of ``2 fill - 1``."""
    x = 2.0 * fill - 1.0
    out[0], out[1] = 1.0, x
    for k in range(2, len(out)):
        out[k] = 2.0 * x * out[k - 1] - out[k - 2]


@njit(**SCALAR)
def _series(coefficients, x):
    """A Chebyshev series of ``x`` and its derivative."""
    value = slope = after = slope_after = 0.0
    for k in range(len(coefficients) - 1, 0, -1):
        slope, slope_after = 2.0 * (value + x * slope) - slope_after, slope
        value, after = coefficients[k] + 2.0 * x * value - after, value
    return coefficients[0] + x * value - after, value + x * slope - slope_after


@njit(**SCALAR)
def _side_at(rest, orders, prices, offset, fill):
    """What a step is worth if a side is at this offset, and the edge of its orders (0 where none meet it)."""
    x = 2.0 * fill - 1.0
    value, slope = _series(rest, x)
    count, more = _series(orders, x)
    price = prices[0] + prices[1] * offset
    worth = value + price * fill * count
    edge = (2.0 * slope + price * (count + 2.0 * fill * more)) / count - offset if count > CLOSED else prices[0]
    return worth, edge


@njit(**KERNEL)
def _best_of_few(rest, orders, law, prices, start):
    """The best offset of a side whose edge hardly depends on its fills, by iteration; the next sweep goes on."""
    offset = start
    for _ in range(FEW):
        fill = math.exp(log_fill(offset, law[0], law[1]))
        _, edge = _side_at(rest, orders, prices, offset, fill)
        offset = min(max(1.0 / law[0] - edge, 0.0), law[2])
    return offset


@njit(**KERNEL)
def _best_of_many(rest, orders, law, prices, start):
    """The best offset of a side: of those at the best price and behind it, the best one and what it leads to."""
    decay, behind, high = law
    least = BEHIND / decay if behind < 0.0 else 0.0  # at the best price itself all orders fill
    _, edge = _side_at(rest, orders, prices, 0.0, 0.0)
    width = min(high, FAR / decay)
    best, offset = _side_at(rest, orders, prices, 0.0, 1.0)[0], 0.0
    for k in range(SCAN + 2):
        tried = max(width * k / SCAN if k <= SCAN else min(max(1.0 / decay - edge, 0.0), high), least)
        worth, _ = _side_at(rest, orders, prices, tried, math.exp(behind - decay * tried))
        if worth > best:
            best, offset = worth, tried
    if offset == 0.0 and behind < 0.0:
        return offset
    low, far = max(offset - width / SCAN, least), min(offset + width / SCAN, high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + far)
        _, edge = _side_at(rest, orders, prices, middle, math.exp(behind - decay * middle))
        if decay * (middle + edge) < 1.0:
            low = middle
        else:
            far = middle
    peak = 0.5 * (low + far) if 0.5 * (low + far) > SAME / decay else 0.0
    worth, _ = _side_at(rest, orders, prices, peak, math.exp(behind - decay * peak))
    return peak if worth >= best else offset


@njit(**KERNEL)
def _best_offset(rest, orders, law, prices, start):
    """The best offset of a side, the other's given."""
    none, all_filled = _side_at(rest, orders, prices, 0.0, 0.0)[1], _side_at(rest, orders, prices, 0.0, 1.0)[1]
    if law[1] == 0.0 and abs(all_filled - none) * law[0] < SLACK:
        return _best_of_few(rest, orders, law, prices, start)
    return _best_of_many(rest, orders, law, prices, start)


@njit(**KERNEL)
def _seen_by(side, worth, met, met_by_other, prices, offset, fill, powers, rest, orders):
    """What a step is worth without a side's depth, and orders that meet it, as series of its fill probability."""
    _powers(fill, powers)
    earned = (prices[0] + prices[1] * offset) * fill
    for i in range(len(rest)):
        rest[i] = orders[i] = 0.0
        for j in range(len(powers)):
            a, b = (i, j) if side == 0 else (j, i)
            rest[i] += powers[j] * (worth[a, b] + earned * met_by_other[a, b])
            orders[i] += powers[j] * met[a, b]


@njit(**KERNEL)
def choose_offsets(worth, bids, asks, laws, prices, best, offsets, edges, values):
    """The best offsets (cells, 2) of bid and ask, if they are wanted, their edges, and what they are worth."""
    powers, rest, orders = np.empty(worth.shape[1]), np.empty(worth.shape[1]), np.empty(worth.shape[1])
    fills = np.empty(2)
    for c in range(len(worth)):
        for k in range(2):
            fills[k] = math.exp(log_fill(offsets[c, k], laws[k, 0], laws[k, 1]))
        for _ in range(SWEEPS):
            moved = 0.0
            for k in range(2):
                met, other = (bids, asks) if k == 0 else (asks, bids)
                _seen_by(k, worth[c], met[c], other[c], prices, offsets[c, 1 - k], fills[1 - k], powers, rest, orders)
                if best:
                    offset = _best_offset(rest, orders, laws[k], prices, offsets[c, k])
                    moved = max(moved, abs(offset - offsets[c, k]) * laws[k, 0])
                    offsets[c, k] = offset
                    fills[k] = math.exp(log_fill(offset, laws[k, 0], laws[k, 1]))
                values[c], edges[c, k] = _side_at(rest, orders, prices, offsets[c, k], fills[k])
            if moved < SAME:
                break
