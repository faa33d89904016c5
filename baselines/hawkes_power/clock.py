r"""Quotes that rest between ticks of the clock in the intraday power market: their value, policy and dual bound.

The penalty of `mmgym.baselines.hawkes_power.bounds` goes on, and a second one knows that the distances ``d`` of a step
are chosen at its start. With a value function ``Theta``, inventory ``q`` at the start of the step and edges ``e = c -
h`` of a fill, at every moment those of the state at that moment, what the quotes earn in the step is nearly

    Z(d) = sum over sides int y [f(d - h_u) (d + e_u) - psi(h_u + e_u)] du + N(d),

``N`` what changes where several orders fill one after another: those of each side alone, and what is left where both
sides have some, at few offsets and interpolated (`mmgym.baselines.hawkes_power.clock_kernels.Grid`). The bound holds
however near that is, as long as a path has the same ``Z`` when it is played and when it is a future: ``E[Z | start of
the step]``, for all ``d`` and ``q`` at once, comes from simulated futures that nothing else uses, which is unbiased, so
that ``Z - E Z`` is a valid penalty (Rogers 2002; Brown, Smith & Sun 2010). Whoever knows the book in advance chooses
``d`` step by step, backwards, which is the bound:

    B_k(q) = max_d  E Z + (what the orders of the step earn at d - Z) + E[B_{k+1}(q') | book, d].

The quotes that maximise ``E Z`` from the state alone are the best known policy.

`held_value` is the ``Theta`` that serves best: it solves the equation of `mmgym.baselines.hawkes_power.values` with
``max_d E Z`` of a step, which is what resting costs, as a further term, as futures tell it at the states of a space.
Foresight lives on what ``B`` differs by from one inventory to the next, and that is small then.

All kinks in ``d`` lie at multiples of half a tick; there, and at equal parts in between, the maximum is taken, and a
bound of the second derivative covers the rest.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.hawkes_power.basis import fitted_space
from mmgym.baselines.hawkes_power.clock_kernels import AHEAD_SALT, Grid, foresee_states, held_paths
from mmgym.baselines.hawkes_power.values import ValueFunction, march
from mmgym.models import hawkes
from mmgym.models.hawkes_power import BUY, MARKET, Params

Array = NDArray[np.float64]

__all__ = ["best_held_offsets", "fill_grid", "held_bounds", "held_value", "offset_nodes"]

FINEST = 0.02  # spacing of offsets, in units of 1 / kappa, or below
MOST_NODES, MOST_BYTES, MOST_ORDERS = 1_000, 2.0**29, 1.5  # offsets; of the tables of a path; of both sides in a step
FUTURES, AHEAD = 200, 200  # of each step, for the bound and for the policy
TOGETHER = 5  # paths of a kernel's call
COARSE = 7  # offsets of each side for fills of both
BOOK_DEGREE = 3  # of `held_value`'s features
LOSS_FUTURES, LOSS_STEPS = 30, (1, 2, 3, 5, 10, 20, 60)  # futures of a state; steps left at which they are simulated
LOSS_SEED = 0x10C0


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
    tables = 16.0 * p.num_steps * len(nodes) * (2 * p.inventory_limit + 1)
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


def fill_grid(params: Params, nodes: Array) -> Grid:
    """Offsets (EUR / MWh) for fills of both sides: those nodes at which ``exp(-kappa offset)`` is near equal parts."""
    count, last = min(COARSE, len(nodes)), len(nodes) - 1
    places = np.arange(count)
    coarse, below = np.empty((2, count), dtype=np.int64), np.empty((2, len(nodes)), dtype=np.int64)
    share = np.empty((2, len(nodes)))
    for side, decay in enumerate((params.fill_decay_sell, params.fill_decay_buy)):
        fading = np.exp(-decay * nodes)
        wanted = np.linspace(fading[0], fading[-1], count)
        nearest = np.abs(fading[:, None] - wanted).argmin(axis=0)
        coarse[side] = np.minimum(np.maximum.accumulate(nearest - places) + places, last - places[::-1])
        below[side] = np.minimum(np.searchsorted(coarse[side], np.arange(last + 1), side="right"), count - 1) - 1
        ends = fading[coarse[side]]
        share[side] = (ends[below[side]] - fading) / (ends[below[side]] - ends[below[side] + 1])
    return Grid(coarse, below, share)


def held_bounds(
    params: Params, function: ValueFunction, paths: int, seed: int, futures: int = FUTURES, ahead: int = AHEAD
) -> Array:
    """Estimates (paths, 2): of the bound, and of what the policy that looks a step ahead is worth, its fills averaged.

    The policy is that of `best_held_offsets`.

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
    ahead : int
        The same for the policy.

    Raises
    ------
    ValueError
        If the market has no `offset_nodes`.
    """
    nodes = _required_nodes(params)
    grid = fill_grid(params, nodes)
    seeds = np.uint64(seed) + np.arange(paths, dtype=np.uint64)
    record, rows = MARKET.record(params), np.zeros(1, MARKET.row_dtype)
    values, most, missing = np.full((paths, 2), np.nan), 32, np.arange(paths)
    with tqdm(total=paths, desc="bound by the clock", unit="path", delay=2.0, leave=False, disable=None) as bar:
        while missing.size:
            for first in range(0, missing.size, TOGETHER):
                rest = missing[first : first + TOGETHER]
                part = np.empty((rest.size, 2))
                held_paths(record, rows, *function, seeds[rest], futures, ahead, nodes, grid, most, part)
                values[rest] = part
                bar.update(int(np.isfinite(part[:, 0]).sum()))
            most, missing = 4 * most, np.flatnonzero(np.isnan(values[:, 0]))
    return np.asarray(values + function.initial(params))


def best_held_offsets(
    params: Params,
    function: ValueFunction,
    time_left: Array,
    inventory: NDArray[Any],
    spread: NDArray[Any],
    rates: Array,
    futures: int = AHEAD,
) -> Array:
    """Offsets of bid and ask (S, 2), EUR / MWh, that are expected to earn most while they rest for a step.

    The futures of a state have random numbers that depend on the steps that are left only.

    Parameters
    ----------
    params : Params
        With `offset_nodes`.
    function : ValueFunction
    time_left, inventory, spread, rates : array_like, shapes (S,), (S,), (S,), (S, 6)
        Minutes, lots, ticks, 1 / minute.
    futures : int
        Simulated from each state.

    Raises
    ------
    ValueError
        If the market has no `offset_nodes`.
    """
    nodes, offsets = _required_nodes(params), np.empty((len(time_left), 2))
    steps = np.rint(np.asarray(time_left) / params.step_length).astype(np.uint64)
    foresee_states(
        MARKET.record(params),
        np.zeros(1, MARKET.row_dtype),
        *function,
        np.ascontiguousarray(time_left, dtype=np.float64),
        np.ascontiguousarray(inventory, dtype=np.int64),
        np.ascontiguousarray(spread, dtype=np.int64),
        np.ascontiguousarray(rates, dtype=np.float64),
        steps ^ AHEAD_SALT,
        futures,
        nodes,
        fill_grid(params, nodes),
        offsets,
        np.empty((0, 0)),
    )
    return offsets


def held_value(params: Params, function: ValueFunction) -> ValueFunction:
    """The value function of quotes that rest, from the one of quotes that move at once.

    What resting costs in a step is simulated with ``function`` at the states of a space and some times left, and goes
    into the equation of the new one, interpolated in the logarithm of the steps that are left.

    Parameters
    ----------
    params : Params
        With `offset_nodes`.
    function : ValueFunction

    Raises
    ------
    ValueError
        If the market has no `offset_nodes`.
    ArithmeticError
        If the solution is not finite.
    """
    p, space = params, fitted_space(params, book_degree=BOOK_DEGREE)
    steps = np.array(sorted({min(n, p.num_steps) for n in LOSS_STEPS}))
    size, lots = len(space.spreads), 2 * p.inventory_limit + 1
    record, rows, nodes = MARKET.record(p), np.zeros(1, MARKET.row_dtype), _required_nodes(p)
    losses, none, grid = np.empty((len(steps), size, lots)), np.zeros(size, dtype=np.int64), fill_grid(p, nodes)
    best, states = np.empty((size, 2)), (none, space.spreads, space.rates)
    seeds = np.random.SeedSequence(LOSS_SEED).generate_state(len(steps) * size, np.uint64).reshape(len(steps), size)
    for n in tqdm(range(len(steps)), "what resting costs", unit="time", delay=2.0, leave=False, disable=None):
        left = np.full(size, steps[n] * p.step_length)
        foresee_states(record, rows, *function, left, *states, seeds[n], LOSS_FUTURES, nodes, grid, best, losses[n])
    losses /= p.step_length
    logs = np.log(steps)

    def at(left: float) -> Array:
        now = math.log(max(math.ceil(left / p.step_length - 1e-9), 1))
        above = min(int(np.searchsorted(logs, now)), len(logs) - 1)
        below = max(above - 1, 0)
        share = (now - logs[below]) / (logs[above] - logs[below]) if above > below else 0.0
        share = min(share, 1.0)
        return np.asarray((1.0 - share) * losses[below] + share * losses[above])

    return march(p, space, losses=at)
