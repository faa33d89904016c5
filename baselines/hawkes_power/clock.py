r"""A dual bound of the intraday power market whose quotes rest between ticks of the clock.

The penalty of `mmgym.baselines.hawkes_power.bounds` goes on, and a second one knows that the distances ``d`` of a step
are chosen at its start. With a value function ``Theta``, inventory ``q`` at the start of the step and edges ``e`` of a
fill (``c - h`` of `mmgym.baselines.hawkes_power.kernels`), what the quotes earn in the step is nearly

    Z(d) = sum over sides int y f(d - h_u) (d + e_u) du + N(d) - int y psi(h_u + e_u) du,

``N`` what changes where several orders of one side fill one after another. ``E[Z | start of the step]`` for all ``d``
and ``q`` at once comes from simulated futures that nothing else uses: an unbiased estimate, hence a valid penalty ``Z -
E Z`` (Rogers 2002; Brown, Smith & Sun 2010). Whoever knows the book in advance chooses ``d`` step by step, backwards,
which is the bound:

    B_k(q) = max_d  E Z + (what the orders of the step earn at d - Z) + E[B_{k+1}(q') | book, d].

Fills of both sides in one step are worth a second difference of ``Theta`` besides; ``Z`` has that too, times the number
of such pairs, as if no offset were below 0. The quotes that maximise ``E Z`` from the state alone are the best known
policy.

Any edges will do as long as a path has the same ``Z`` when it is played and when it is a future: ``e_u`` is that of the
start plus a linear function of the moves of half-spread and intensities. All kinks in ``d`` lie at multiples of half a
tick; there, and at equal parts in between, the maximum is taken, and a bound of the second derivative covers the rest.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.hawkes_flow.reach import order_gain
from mmgym.baselines.hawkes_power.basis import features_at, sampled_states
from mmgym.baselines.hawkes_power.kernels import (
    NODES,
    PROCESSES,
    combine,
    drift_at,
    edges_at,
    rates_at,
    scratch,
    state_features,
)
from mmgym.baselines.hawkes_power.values import ValueFunction
from mmgym.compiling import KERNEL
from mmgym.models import hawkes
from mmgym.models.hawkes_power import (
    BUY,
    MARKET,
    SELL,
    SPREAD_SIGN,
    Params,
    excite,
    next_event,
    order_reach,
    relax,
    reset_one,
    ticks_moved,
)
from mmgym.random_streams import start_stream

Array = NDArray[np.float64]

__all__ = ["best_held_offsets", "edge_slopes", "held_bounds", "most_of_walk", "offset_nodes", "walk"]

FINEST = 0.02  # spacing of offsets, in units of 1 / kappa, or below
MOST_NODES, MOST_BYTES, MOST_ORDERS = 1_000, 2.0**29, 1.5  # offsets; of the tables of a path; of both sides in a step
FUTURES, AHEAD = 200, 64  # of each step, for the bound and for the policy
TOGETHER = 5  # paths of a kernel's call
ORDERS = 64  # of a side in a step that the penalty counts
FILLS = 9  # in a step that are told apart, less one
CERTAIN_FILLS = 2.0  # largest weight of an order in pairs, in units of one at the start's half-spread
FUTURE_SALT = np.uint64(0x5DEECE66D1234567)


def offset_nodes(params: Params) -> Array | None:
    """Offsets at which the maximum is taken (EUR / MWh); None for markets that the bound is not made for.

    Those have decisions at events, a `reach_atom`, several orders a step or too many offsets and steps.
    """
    p = params
    decay = max(p.fill_decay_buy, p.fill_decay_sell)
    spacing = p.half_tick / math.ceil(p.half_tick * decay / FINEST)
    widest = max(p.max_offset_bid, p.max_offset_ask)
    counts = hawkes.expected_count(p.base_rates, p.excitations, p.decays, np.array(p.initial_rates), p.horizon)
    orders = float(counts[BUY:].sum()) / p.num_steps
    if p.decision != "clock" or max(p.reach_atom_buy, p.reach_atom_sell) > 0.0 or orders > MOST_ORDERS:
        return None
    if not widest / spacing < MOST_NODES - 1:
        return None
    nodes = np.asarray(spacing * np.arange(math.ceil(widest / spacing * (1.0 - 1e-12)) + 1), dtype=np.float64)
    tables = 32.0 * p.num_steps * len(nodes) * p.inventory_limit
    return nodes if tables <= MOST_BYTES else None


def _required_nodes(params: Params) -> Array:
    """Those of `offset_nodes`, or a ValueError that says what is needed."""
    nodes = offset_nodes(params)
    if nodes is None:
        raise ValueError(
            "quotes that rest are not looked for with these parameters, nor is their bound: that needs "
            f"decision='clock', no reach_atom, at most {MOST_ORDERS} orders a step and {MOST_NODES} offsets, and "
            f"tables of {MOST_BYTES / 2**20:g} MiB"
        )
    return nodes


def edge_slopes(params: Params, function: ValueFunction) -> Array:
    """Slopes (steps, 2, 7) of the edges of bid and ask at no inventory in half-spread and intensities."""
    p, basis = params, function.basis
    spreads, rates = sampled_states(p)
    features = features_at(p, basis, spreads, rates)
    inverse = np.linalg.pinv(np.column_stack([np.ones(len(spreads)), p.half_tick * spreads, rates]))[1:]
    lots = p.inventory_limit
    projections = [
        (inverse @ features[:, row], inverse @ -basis.impacts[process, spreads - 1], lots + step)
        for row, process, step in ((3, SELL, 1), (2, BUY, -1))
    ]
    slopes = np.empty((p.num_steps, 2, 1 + PROCESSES))
    for k in range(p.num_steps):
        middle = p.step_length * (p.num_steps - k - 0.5)
        level = min(max(int(np.searchsorted(function.borders, middle)) - 1, 0), len(function.table) - 1)
        table = function.table[level]
        for side, (features_of, impact, to) in enumerate(projections):
            slopes[k, side] = features_of @ (table[:, to] - table[:, lots]) + impact
    return slopes


def held_bounds(params: Params, function: ValueFunction, paths: int, seed: int, futures: int = FUTURES) -> Array:
    """Estimates (paths, 2): of the bound, and of the policy that looks a step ahead, which has futures of its own.

    Parameters
    ----------
    params : Params
        With `offset_nodes`.
    function : ValueFunction
        Any one gives valid bounds.
    paths : int
    seed : int
        Path ``i`` has the events of the episode that an environment with these parameters plays from ``seed + i``.
    futures : int
        Simulated at each step for what is expected of it; few make the bound wider, not wrong.
    """
    nodes = _required_nodes(params)
    seeds = np.uint64(seed) + np.arange(paths, dtype=np.uint64)
    record, rows, slopes = MARKET.record(params), np.zeros(1, MARKET.row_dtype), edge_slopes(params, function)
    values, most, missing = np.full((paths, 2), np.nan), 32, np.arange(paths)
    with tqdm(total=paths, desc="bound by the clock", unit="path", delay=2.0, leave=False, disable=None) as bar:
        while missing.size:
            for first in range(0, missing.size, TOGETHER):
                rest = missing[first : first + TOGETHER]
                part = np.empty((rest.size, 2))
                held_paths(record, rows, *function, slopes, seeds[rest], futures, AHEAD, nodes, most, part)
                values[rest] = part
                bar.update(int(np.isfinite(part[:, 0]).sum()))
            most, missing = 4 * most, np.flatnonzero(np.isnan(values[:, 0]))
    return np.asarray(values + function.initial(params))


def best_held_offsets(
    params: Params,
    function: ValueFunction,
    slopes: Array,
    time_left: Array,
    inventory: Array,
    spread: Array,
    rates: Array,
    seeds: NDArray[np.uint64],
    futures: int = AHEAD,
) -> Array:
    """Offsets of bid and ask (S, 2), EUR / MWh, that are expected to earn most while they rest for a step.

    Parameters
    ----------
    params : Params
        With `offset_nodes`.
    function : ValueFunction
    slopes : array
        Its `edge_slopes`.
    time_left, inventory, spread, rates : array_like, shapes (S,), (S,), (S,), (S, 6)
        Minutes, lots, ticks, 1 / minute.
    seeds : array, shape (S,)
        Of the futures that are simulated from each state.
    futures : int
        How many.

    Raises
    ------
    ValueError
        If the market has no `offset_nodes`.
    """
    nodes = _required_nodes(params)
    offsets = np.empty((len(time_left), 2))
    held_offsets(
        MARKET.record(params),
        np.zeros(1, MARKET.row_dtype),
        *function,
        slopes,
        np.ascontiguousarray(time_left, dtype=np.float64),
        np.ascontiguousarray(inventory, dtype=np.int64),
        np.ascontiguousarray(spread, dtype=np.int64),
        np.ascontiguousarray(rates, dtype=np.float64),
        np.ascontiguousarray(seeds, dtype=np.uint64),
        futures,
        nodes,
        offsets,
    )
    return offsets


@njit(**KERNEL)
def _set_excess(s, excess):
    s.excess_bid_improvement = excess[0]
    s.excess_bid_cancellation = excess[1]
    s.excess_ask_cancellation = excess[2]
    s.excess_ask_improvement = excess[3]
    s.excess_buy = excess[4]
    s.excess_sell = excess[5]


@njit(**KERNEL)
def _expected(base, excess, decay, wait):
    """Integral of an intensity over a time without events."""
    return base * wait - excess * math.expm1(-decay * wait) / decay


@njit(**KERNEL)
def _moved(p, s, wait, spread, start, slopes):
    """Change of an edge since the start (7,) of the step, in the middle of a wait."""
    half = 0.5 * wait
    change = slopes[0] * p.half_tick * (spread - start[0])
    change += slopes[1] * (p.base_rates[0] + s.excess_bid_improvement * math.exp(-p.decays[0] * half) - start[1])
    change += slopes[2] * (p.base_rates[1] + s.excess_bid_cancellation * math.exp(-p.decays[1] * half) - start[2])
    change += slopes[3] * (p.base_rates[2] + s.excess_ask_cancellation * math.exp(-p.decays[2] * half) - start[3])
    change += slopes[4] * (p.base_rates[3] + s.excess_ask_improvement * math.exp(-p.decays[3] * half) - start[4])
    change += slopes[5] * (p.base_rates[4] + s.excess_buy * math.exp(-p.decays[4] * half) - start[5])
    change += slopes[6] * (p.base_rates[5] + s.excess_sell * math.exp(-p.decays[5] * half) - start[6])
    return change


@njit(**KERNEL)
def _chance(distance, decay):
    """Of a fill at a distance behind the best price."""
    return 1.0 if distance <= 1e-12 else math.exp(-decay * distance)


@njit(**KERNEL)
def _add_free(mass, change, decay, edges, worths, total):
    """Add ``mass psi(edges + change)``; ``worths`` is ``exp(kappa edges - 1) / kappa``."""
    factor = math.exp(decay * change)
    for q in range(len(total)):
        edge = edges[q] + change
        total[q] += mass * (edge if edge * decay >= 1.0 else max(edge, factor * worths[q]))


@njit(**KERNEL)
def _add_counts(n, half_spreads, start, decay, nodes, room, law):
    """Add the law (D, FILLS) of the number of fills of a side, from two on, at all nodes."""
    last = law.shape[1] - 1
    for i in range(len(nodes)):
        top = 0
        room[:] = 0.0
        room[0] = 1.0
        for o in range(n):
            fill = _chance(start + nodes[i] - half_spreads[o], decay)
            top = min(top + 1, last)
            for k in range(top, 0, -1):
                stays = room[k] if k == last else (1.0 - fill) * room[k]
                room[k] = stays + fill * room[k - 1]
            room[0] *= 1.0 - fill
        for k in range(2, top + 1):
            law[i, k] += room[k]


@njit(**KERNEL)
def _add_repeated(law, edges, start, nodes, ask, scale, out):
    """Add what further fills of one side change, given the law of their number, to out (D, 2 Q)."""
    fills, lots = law.shape[1], out.shape[1]
    while fills > 2 and law[:, fills - 1].max() == 0.0:
        fills -= 1
    for q in range(lots):
        room = q + 1 if ask else lots - q
        gain, beyond = 0.0, 0.0
        for k in range(2, fills):
            if k <= room:
                gain += edges[q - k + 1 if ask else q + k - 1] - edges[q]
            else:
                beyond += 1.0
            for i in range(len(nodes)):
                if law[i, k] != 0.0:
                    out[i, q] += scale * law[i, k] * (gain - beyond * (start + nodes[i] + edges[q]))


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
def _add_step(p, sums, law, free, pairs, edges, spread, nodes, ask, scale, lines, out, curve):
    """Add ``scale Z`` of one side to out (D, 2 Q), and a bound of its second derivative to curve (2 Q,).

    ``sums`` (3, L) has ``int y``, the same times the change of the edge, and its absolute value, by spread; ``pairs``
    is the sum of ``n + 2 n^2`` over the orders that `law` counts.
    """
    start, decay = p.half_tick * spread, p.fill_decay_buy if ask else p.fill_decay_sell
    _tabulate(p, sums[0], spread, decay, nodes, lines[0])
    _tabulate(p, sums[1], spread, decay, nodes, lines[1])
    mass, change, span, lots = sums[0].sum(), sums[2].sum(), edges.max() - edges.min(), out.shape[1]
    for q in range(lots):
        for i in range(len(nodes)):
            out[i, q] += scale * (lines[0, i] * (start + nodes[i] + edges[q]) + lines[1, i] - free[q])
        widest = start + nodes[-1] + abs(edges[q])
        curve[q] += abs(scale) * decay * (mass * (decay * widest + 2.0) + decay * change)
        limited = (q + 1 if ask else lots - q) < law.shape[1] - 1
        curve[q] += abs(scale) * decay * decay * pairs * (span + (widest if limited else 0.0))
    _add_repeated(law, edges, start, nodes, ask, scale, out)


@njit(**KERNEL)
def _start_edges(p, edges, spread, decays, worths):
    """From edges ``c`` (2, 2 Q) of bid and ask, in place, ``e = c - h``, and ``exp(kappa e - 1) / kappa``."""
    for side in range(2):
        for q in range(edges.shape[1]):
            edges[side, q] -= p.half_tick * spread
            worths[side, q] = math.exp(decays[side] * edges[side, q] - 1.0) / decays[side]


@njit(**KERNEL)
def _add_wait(p, s, wait, spread, start, slopes, decays, edges, worths, sums, free, changes):
    """Add a time without events to what `_add_step` takes: sums (2, 3, L), free (2, 2 Q)."""
    for side in range(2):
        excess = s.excess_buy if side == 1 else s.excess_sell
        process = BUY if side == 1 else SELL
        mass = _expected(p.base_rates[process], excess, p.decays[process], wait)
        change = _moved(p, s, wait, spread, start, slopes[side])
        sums[side, 0, spread - 1] += mass
        sums[side, 1, spread - 1] += mass * change
        sums[side, 2, spread - 1] += mass * abs(change)
        _add_free(mass, p.half_tick * spread + change, decays[side], edges[side], worths[side], free[side])
        changes[0, side], changes[1, side] = mass, change


@njit(**KERNEL)
def _add_orders(n, half_spreads, start, decays, nodes, room, law, pairs):
    """Add the orders (2,) of a path to the laws of the number of fills (2, D, FILLS) where there are several."""
    for side in range(2):
        if n[side] > 1:
            _add_counts(n[side], half_spreads[side], start, decays[side], nodes, room, law[side])
            pairs[side] += n[side] + 2.0 * n[side] * n[side]


@njit(**KERNEL)
def _both(n, half_spreads, start, decays):
    """Weight of orders of both sides that fill in one step, at no offsets: how often, were nothing certain to fill."""
    weights = np.zeros(2)
    for side in range(2):
        for o in range(n[side]):
            weights[side] += min(math.exp(decays[side] * (half_spreads[side, o] - start)), CERTAIN_FILLS)
    return weights[0] * weights[1]


@njit(**KERNEL)
def _add_futures(
    p, s, start, excess, slopes, decays, edges, worths, futures, nodes, stream, sums, free, law, pairs, room
):
    """Simulate futures of a step from its start and add what `_add_step` takes; the stream goes on.

    Returns the stream and the sum of `_both`.
    """
    s0, s1 = stream
    both = 0.0
    half_spreads, n, changes = np.empty((2, ORDERS)), np.empty(2, dtype=np.int64), np.empty((2, 2))
    for _ in range(futures):
        _set_excess(s, excess)
        spread, rest = np.int64(start[0]), p.step_length
        n[:] = 0
        while True:
            wait, process, s0, s1 = next_event(p, s, rest, s0, s1)
            _add_wait(p, s, wait, spread, start, slopes, decays, edges, worths, sums, free, changes)
            relax(p, s, wait)
            rest -= wait
            if process < 0:
                break
            if process >= BUY:
                side = 1 if process == BUY else 0
                if n[side] < ORDERS:
                    half_spreads[side, n[side]] = p.half_tick * spread
                    n[side] += 1
            ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
            spread += SPREAD_SIGN[process] * ticks
            excite(p, s, process)
        _add_orders(n, half_spreads, p.half_tick * start[0], decays, nodes, room, law, pairs)
        both += _both(n, half_spreads, p.half_tick * start[0], decays)
    _set_excess(s, excess)
    return (s0, s1), both


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
    """Bounds of `walk` over all quotes, and of its second derivatives in a quote over the square of ``kappa``."""
    lots = len(after)
    low, high = max(q - orders, 0), min(q + orders, lots - 1)
    total, widest = 0.0, 0.0
    for i in range(orders):
        best, largest, ask = 0.0, 0.0, sides[i] == BUY
        decay, rise = decays[1 if ask else 0], max(half_spreads[i] - start, 0.0)
        for r in range(low, high + 1):
            closed, here = (q == 0, r > 0) if ask else (q == lots - 1, r < lots - 1)
            own = 0.0 if closed else edges[i, q - 1 if ask else q]
            edge = edges[i, r - 1 if ask else r] if here else 0.0
            gain, size = 0.0, 0.0
            if here and closed:
                gain, size = order_gain(edge, decay, 0.0), abs(edge) + rise + 3.0 / decay
            elif here:
                gain, size = edge - own, abs(edge - own)
            elif not closed:
                gain, size = rise - own, abs(own) + rise + 3.0 / decay
            best, largest = max(best, gain), max(largest, size)
        total += best
        widest += largest
    spread = 0.0
    for i in range(orders + 1):
        least, most = math.inf, -math.inf
        for r in range(low, high + 1):
            value = sums[i, r] + (after[r] if i == orders else 0.0)
            least, most = min(least, value), max(most, value)
        total += most
        spread += most - least
    return total, (orders + 2.0 * orders * orders) * (widest + spread)


@njit(**KERNEL)
def best_pair(q, cross, bids, asks, fades):
    """Nodes of bid and ask that are good together, found by turns, with ``cross`` times their ``fades`` (2, D)."""
    lots = bids.shape[1] + 1
    j = np.argmax(bids[:, q]) if q < lots - 1 else 0
    i = np.argmax(asks[:, q - 1]) if q > 0 else 0
    if 0 < q < lots - 1 and cross != 0.0:
        for _ in range(3):
            best = -math.inf
            for n in range(len(bids)):
                value = bids[n, q] + cross * fades[0, n] * fades[1, i]
                if value > best:
                    best, j = value, n
            best = -math.inf
            for n in range(len(asks)):
                value = asks[n, q - 1] + cross * fades[0, j] * fades[1, n]
                if value > best:
                    best, i = value, n
    return j, i


@njit(**KERNEL)
def _best_of_step(
    orders, q, sides, half_spreads, edges, sums, after, start, nodes, cross, fades, bids, asks, decays, values
):
    """The largest value over the nodes of bid and ask, from inventory ``q`` on."""
    lots, count = len(after), len(nodes)
    parts = (orders, q, sides, half_spreads, edges, sums, after)
    j, i = best_pair(q, cross, bids, asks, fades)
    of_bid = bids[:, q].copy() if q < lots - 1 else np.zeros(count)
    of_ask = asks[:, q - 1].copy() if q > 0 else np.zeros(count)
    buys, most, curve = 0, 0.0, abs(cross) * (decays[0] ** 2 + decays[1] ** 2)
    for n in range(orders):
        buys += sides[n] == BUY
    both = 0 < buys < orders
    if orders > 0:
        largest, of_walk = most_of_walk(*parts, start, decays)
        most = largest if both else 0.0
        curve += 2.0 * max(decays[0], decays[1]) ** 2 * of_walk
    if orders == 0:
        of_bid += walk(*parts, start, start, decays, values)
    elif not both:  # what orders earn depends on the quote of one side
        for n in range(count):
            if buys > 0:
                of_ask[n] += walk(*parts, start, start + nodes[n], decays, values)
            else:
                of_bid[n] += walk(*parts, start + nodes[n], start, decays, values)
    best = of_ask[i] + of_bid[j] + cross * fades[0, j] * fades[1, i]
    if both:
        best += walk(*parts, start + nodes[j], start + nodes[i], decays, values)
    low, high = fades[1, count - 1], fades[1, 0]
    at_low, at_high = (of_bid + cross * low * fades[0]).max(), (of_bid + cross * high * fades[0]).max()
    for i in range(count):
        share = (fades[1, i] - low) / (high - low)  # the best bid's worth is convex in the ask's fading
        if of_ask[i] + share * at_high + (1.0 - share) * at_low + most <= best:
            continue
        for j in range(count):
            value = of_ask[i] + of_bid[j] + cross * fades[0, j] * fades[1, i]
            if value + most > best:
                if both:
                    value += walk(*parts, start + nodes[j], start + nodes[i], decays, values)
                best = max(best, value)
    return best, curve


@njit(**KERNEL)
def _foresee(p, s, basis, table, slopes, spread, futures, nodes, stream, work, features, tables, curves):
    """What quotes of a step are expected to earn, from its state ``s``: tables (2, D, 2 Q), bounds of their curvature.

    Returns the start (7,) of `_moved`, edges and worths (2, 2 Q), the weight (2 Q + 1,) of fills of both sides,
    and the stream.
    """
    lots, decays = table.shape[1], np.array([p.fill_decay_sell, p.fill_decay_buy])
    start, room = np.empty(7), np.empty((2, lots))
    edges, worths, free, cross = (
        np.empty((2, lots - 1)),
        np.empty((2, lots - 1)),
        np.zeros((2, lots - 1)),
        np.zeros(lots),
    )
    sums, law, pairs = np.zeros((2, 3, p.largest_spread)), np.zeros((2, len(nodes), FILLS)), np.zeros(2)
    lines, fills = np.empty((2, len(nodes))), np.empty(FILLS)
    start[0] = spread
    rates_at(p, s, 0.0, start[1:])
    state_features(p, basis, spread, start[1:], work, features)
    edges_at(p, basis, features, table, spread, room[0], room[1], edges[1], edges[0])
    _start_edges(p, edges, spread, decays, worths)
    stream, both = _add_futures(
        p, s, start, start[1:] - p.base_rates, slopes, decays, edges, worths, futures, nodes, stream, sums, free, law,
        pairs, fills,
    )  # fmt: skip
    tables[:] = 0.0
    curves[:] = 0.0
    for side in range(2):
        _add_step(
            p, sums[side], law[side], free[side], pairs[side], edges[side], spread, nodes, side == 1, 1.0 / futures,
            lines, tables[side], curves[side],
        )  # fmt: skip
    for q in range(1, lots - 1):
        cross[q] = edges[1, q] - edges[1, q - 1]
    return start, edges, worths, cross, both / futures, stream


@njit(**KERNEL)
def held_offsets(record, rows, basis, borders, table, slopes, left, lots, spreads, rates, seeds, futures, nodes, out):
    """Offsets (S, 2) of bid and ask at states, the best ones for what simulated futures say from seeds (S,)."""
    p, s = record[0], rows[0]
    work, features = scratch(basis), np.empty((4, table.shape[1]))
    tables = np.empty((2, len(nodes), table.shape[2] - 1))
    curves = np.empty((2, table.shape[2] - 1))
    fades = np.exp(-np.outer(np.array([p.fill_decay_sell, p.fill_decay_buy]), nodes))
    for n in range(len(left)):
        _set_excess(s, rates[n] - p.base_rates)
        level = min(max(np.searchsorted(borders, left[n] * (1.0 + 1e-12)) - 1, 0), len(table) - 1)
        k = min(max(np.int64(np.rint((p.horizon - left[n]) / p.step_length)), 0), p.num_steps - 1)
        _, _, _, cross, both, _ = _foresee(
            p, s, basis, table[level], slopes[k], spreads[n], futures, nodes, start_stream(seeds[n]), work, features,
            tables, curves,
        )  # fmt: skip
        q = lots[n] + p.inventory_limit
        j, i = best_pair(q, cross[q] * both, tables[0], tables[1], fades)
        out[n, 0], out[n, 1] = nodes[j], nodes[i]


@njit(**KERNEL)
def held_paths(record, rows, basis, borders, table, slopes, seeds, futures, ahead, nodes, most, out):
    """Pathwise estimates (paths, 2) of `held_bounds`, less the value function at the start.

    Not-a-number where a step has more than ``most`` orders.
    """
    p, s = record[0], rows[0]
    lots, steps = table.shape[2], p.num_steps
    limit, largest = p.inventory_limit, p.largest_spread
    work, features = scratch(basis), np.empty((4, table.shape[1]))
    decays = np.array([p.fill_decay_sell, p.fill_decay_buy])
    rates, room, jump, now_edges = np.empty(PROCESSES), np.empty((3, lots)), np.empty(lots), np.empty((2, lots - 1))
    own, values, changes = np.empty((2, lots - 1)), np.empty(lots), np.empty((2, 2))
    tables, curves = np.empty((steps, 2, len(nodes), lots - 1)), np.empty((steps, 2, lots - 1))
    chosen, spreads, counts = np.zeros((steps, 2, lots), np.int64), np.empty(steps, np.int64), np.empty(steps, np.int64)
    sides, half_spreads = np.empty((steps, most), np.int64), np.empty((steps, most))
    order_edges, sums = np.empty((steps, most, lots - 1)), np.empty((steps, most + 1, lots))
    step_sums, free, law = np.zeros((2, 3, largest)), np.empty((2, lots - 1)), np.empty((2, len(nodes), FILLS))
    pairs, fills = np.empty(2), np.empty(FILLS)
    seen, n = np.empty((2, ORDERS)), np.empty(2, np.int64)
    crosses, fades = np.empty((steps, lots)), np.exp(-np.outer(decays, nodes))
    spacing = nodes[1] - nodes[0]
    for path in range(len(seeds)):
        s0, s1 = start_stream(seeds[path])
        stream = start_stream(seeds[path] ^ FUTURE_SALT)
        reset_one(p, s)
        spread, level, enough = np.int64(s.spread), len(table) - 1, True
        for k in range(steps):
            now, rest = p.step_length * (steps - k), p.step_length
            spreads[k] = spread
            height = p.half_tick * spread
            # the policy's quotes come from futures of their own: those of the penalty flatter what is chosen by them
            _, _, _, cross, both, stream = _foresee(
                p, s, basis, table[level], slopes[k], spread, ahead, nodes, stream, work, features, tables[k],
                curves[k],
            )  # fmt: skip
            for q in range(lots):
                chosen[k, 0, q], chosen[k, 1, q] = best_pair(q, both * cross[q], tables[k, 0], tables[k, 1], fades)
            start, edges, worths, cross, both, stream = _foresee(
                p, s, basis, table[level], slopes[k], spread, futures, nodes, stream, work, features, tables[k],
                curves[k],
            )  # fmt: skip
            crosses[k] = both * cross
            free[:], law[:], pairs[:], n[:], orders = 0.0, 0.0, 0.0, 0, 0
            sums[k, 0] = 0.0
            while True:
                wait, process, s0, s1 = next_event(p, s, rest, s0, s1)
                end = 0.0 if k == steps - 1 and process < 0 else max(now - wait, 0.0)
                half_spread, done = p.half_tick * spread, 0.0
                _add_wait(p, s, wait, spread, start, slopes[k], decays, edges, worths, step_sums, free, changes)
                for side in range(2):
                    for q in range(lots - 1):
                        own[side, q] = -changes[0, side] * (edges[side, q] + changes[1, side])
                while True:
                    border = max(borders[level], end) if level > 0 else end
                    width = now - border
                    for node in range(2):
                        rates_at(p, s, done + NODES[node] * width, rates)
                        state_features(p, basis, spread, rates, work, features)
                        edges_at(p, basis, features, table[level], spread, room[0], room[1], now_edges[1], now_edges[0])
                        combine(features[1], table[level], room[2])
                        drift = drift_at(basis, spread, rates)
                        for q in range(lots):
                            lot = np.float64(q - limit)
                            residual = room[2, q] + lot * drift - p.running_penalty * lot * lot
                            sums[k, orders, q] += 0.5 * width * residual
                        for q in range(lots - 1):
                            own[0, q] += 0.5 * width * rates[SELL] * (now_edges[0, q] - half_spread)
                            own[1, q] += 0.5 * width * rates[BUY] * (now_edges[1, q] - half_spread)
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
                for side in range(2):
                    for i in range(len(nodes)):
                        fill = _chance(height + nodes[i] - half_spread, decays[side])
                        for q in range(lots - 1):
                            tables[k, side, i, q] += fill * own[side, q]
                    for q in range(lots - 1):
                        curves[k, side, q] += decays[side] * decays[side] * abs(own[side, q])
                relax(p, s, wait)
                rest -= wait
                if process < 0:
                    break
                if process >= BUY:
                    if orders == most:
                        enough = False
                        break
                    rates_at(p, s, 0.0, rates)
                    state_features(p, basis, spread, rates, work, features)
                    edges_at(p, basis, features, table[level], spread, room[0], room[1], now_edges[1], now_edges[0])
                    side = 1 if process == BUY else 0
                    sides[k, orders], half_spreads[k, orders] = process, half_spread
                    order_edges[k, orders] = now_edges[side]
                    if n[side] < ORDERS:
                        seen[side, n[side]] = half_spread
                        n[side] += 1
                    orders += 1
                    sums[k, orders] = 0.0
                    _, s0, s1 = order_reach(p, process, s0, s1)
                ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
                spread += SPREAD_SIGN[process] * ticks
                excite(p, s, process)
            if not enough:
                break
            counts[k] = orders
            _add_orders(n, seen, height, decays, nodes, fills, law, pairs)
            crosses[k] -= _both(n, seen, height, decays) * cross
            for side in range(2):
                span = edges[side].max() - edges[side].min()
                for q in range(lots - 1):
                    for i in range(len(nodes)):
                        tables[k, side, i, q] += free[side, q]
                    widest = span + height + nodes[-1] + abs(edges[side, q])
                    curves[k, side, q] += decays[side] * decays[side] * pairs[side] * widest
                _add_repeated(law[side], edges[side], height, nodes, side == 1, -1.0, tables[k, side])
        if not enough:
            out[path] = np.nan
            continue
        rates_at(p, s, 0.0, rates)
        state_features(p, basis, spread, rates, work, features)
        combine(features[0], table[0], jump)
        for kind in range(2):
            after, before = room[0], room[1]
            for q in range(lots):
                lot = np.float64(q - limit)
                after[q] = -jump[q] - abs(lot) * p.half_tick * spread - p.terminal_penalty * lot * lot
            for k in range(steps - 1, -1, -1):
                parts = (sides[k], half_spreads[k], order_edges[k], sums[k], after)
                height, bids, asks = p.half_tick * spreads[k], tables[k, 0], tables[k, 1]
                for q in range(lots):
                    if kind == 0:
                        best, curve = _best_of_step(
                            counts[k], q, *parts, height, nodes, crosses[k, q], fades, bids, asks, decays, values
                        )
                        curve += (curves[k, 1, q - 1] if q > 0 else 0.0) + (curves[k, 0, q] if q < lots - 1 else 0.0)
                        before[q] = best + 0.125 * spacing * spacing * curve
                    else:
                        j, i = chosen[k, 0, q], chosen[k, 1, q]
                        before[q] = walk(counts[k], q, *parts, height + nodes[j], height + nodes[i], decays, values)
                        before[q] += (bids[j, q] if q < lots - 1 else 0.0) + (asks[i, q - 1] if q > 0 else 0.0)
                        before[q] += crosses[k, q] * fades[0, j] * fades[1, i]
                after[:] = before
            out[path, kind] = after[limit + p.initial_inventory]
