"""The backtest of Guilbaud & Pham (2013): a plain Euler scheme of the tick-spread market.

In a step of length ``h`` all is drawn from the state at its start: the market order is sent; then the spread moves with
the probability ``lambda h``, and each side has one execution with the probability ``lambda_i(q) h``, or none. An
execution of a quote of size 0, which counts as best, is counted like others: the paper's ``N`` jumps whatever the size
is. The environment instead draws spread jumps and fills in continuous time and counts fills of shares only.

A table of controls ``(N, S, 5)`` says what is done in each of ``N`` equal parts of the horizon.

Source: Guilbaud & Pham (2013), section 4.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.tick_spread.one_step import TickSpreadProblem
from mmgym.models.tick_spread import Params

Array = NDArray[Any]

__all__ = ["euler_moments", "euler_paths"]


class _Part(NamedTuple):
    """What happens in a step from each state: in a part of the horizon with the same controls."""

    order: Array  # (S,), lots
    cost: Array  # (S,), of the order, euro
    landing: Array  # (S,), state after the order
    chances: Array  # (2, S), of an execution of bid and ask
    sizes: Array  # (2, S), lots
    gains: Array  # (2, S), over mid, euro


def _part(problem: TickSpreadProblem, controls: Array, step: float) -> _Part:
    p, spread = problem.params, problem.spread
    postings, order, landing = problem.admitted(np.arange(problem.num_states), np.asarray(controls, dtype=np.float64))
    quotes, sizes = postings[:, :2].T, postings[:, 2:].T
    rates = np.stack([p.bid_rates[quotes[0], spread], p.ask_rates[quotes[1], spread]])
    cost = np.abs(order) * p.crossing_costs[spread] + p.fixed_fee * (order != 0)
    return _Part(order, cost, landing, step * rates, sizes, p.edges[quotes, spread] * sizes)


def _checked_step(params: Params, controls: Array, num_steps: int) -> float:
    if params.num_pieces > 1:
        raise ValueError("clock_rate is not allowed: the Euler scheme has one rate of the clock")
    step = params.horizon / num_steps
    fastest = max(params.clock_rates[0], float(params.bid_rates.max()), float(params.ask_rates.max()))
    if step * fastest > 1.0:
        raise ValueError(f"a step of {step:g} s is too long: probabilities need at most {1.0 / fastest:g} s")
    if num_steps % len(controls):
        raise ValueError(f"num_steps = {num_steps} must be a multiple of the {len(controls)} parts of the table")
    return step


def euler_moments(params: Params, controls: Array, num_steps: int) -> tuple[float, float]:
    """Mean and standard deviation of the gain in wealth (euro) in the Euler scheme, exact.

    Parameters
    ----------
    params : Params
        The market, with one rate of the clock; its ``num_steps`` is not used.
    controls : (N, S, 5)
        ``[bid improved, ask improved, bid size, ask size, market order]`` (shares).
    num_steps : int
        Steps of the scheme.

    Raises
    ------
    ValueError
        If a step is so long that probabilities would exceed 1, or the clock has several rates.
    """
    step, problem = _checked_step(params, controls, num_steps), TickSpreadProblem(params)
    moved = params.clock_rates[0] * step
    mixing = (1.0 - moved) * np.eye(params.num_spreads) + moved * problem.transitions
    costs = np.abs(problem.lots) * params.crossing_costs[problem.spread] + params.fixed_fee * (problem.lots != 0)
    values, row = np.stack([-costs, costs**2]), -1  # first and second moment of what is still gained
    for n in reversed(range(num_steps)):
        if n * len(controls) // num_steps != row:
            row = n * len(controls) // num_steps
            part = _part(problem, controls[row], step)
            bid, ask = np.array([[0], [0], [1], [1]]), np.array([[0], [1], [0], [1]])
            weights = np.where(bid, part.chances[0], 1.0 - part.chances[0])
            weights *= np.where(ask, part.chances[1], 1.0 - part.chances[1])
            targets = part.landing + bid * part.sizes[0] - ask * part.sizes[1]
            gains = bid * part.gains[0] + ask * part.gains[1] - part.cost
            variance = step * (params.volatility * params.lot * problem.lots[part.landing]) ** 2
        mixed = (mixing @ values.reshape(2, *problem.shape)).reshape(2, -1)
        first, second = mixed[0, targets], mixed[1, targets]
        values[0] = (weights * (gains + first)).sum(axis=0)
        values[1] = (weights * (gains * (gains + 2.0 * first) + second)).sum(axis=0) + variance
    mean, square = values @ problem.initial
    return float(mean), float(np.sqrt(square - mean**2))


def euler_paths(
    params: Params, controls: Array, num_steps: int, paths: int, random: np.random.Generator
) -> dict[str, Array]:
    """Paths of the Euler scheme.

    Parameters and errors are those of `euler_moments`.

    Returns
    -------
    dict of (paths,) arrays
        ``wealth`` (euro, gained by the end), ``bid fills, ask fills`` (executions, of quotes of size 0 too), ``market
        orders`` and ``maximum inventory`` (shares, the largest absolute one at the end of a step).
    """
    step, problem = _checked_step(params, controls, num_steps), TickSpreadProblem(params)
    cumulative, row = params.cumulative_transitions, -1
    state = random.choice(problem.num_states, paths, p=problem.initial)
    wealth, squares, fills, orders, highest = (np.zeros(shape) for shape in (paths, paths, (2, paths), paths, paths))
    for n in range(num_steps):
        if n * len(controls) // num_steps != row:
            row = n * len(controls) // num_steps
            part = _part(problem, controls[row], step)
        draws = random.random((3, paths))
        executed = draws[:2] < part.chances[:, state]
        bought, sold = np.where(executed, part.sizes[:, state], 0)
        wealth += np.where(executed, part.gains[:, state], 0.0).sum(axis=0) - part.cost[state]
        fills += executed
        orders += part.order[state] != 0
        landed = part.landing[state]
        squares += problem.lots[landed] ** 2
        state = landed + bought - sold
        moving = np.flatnonzero(draws[2] < params.clock_rates[0] * step)
        spread = problem.spread[state[moving]]
        after = (random.random(len(moving))[:, None] >= cumulative[spread]).sum(axis=1)
        state[moving] += (after - spread) * problem.count
        np.maximum(highest, np.abs(problem.lots[state]), out=highest)
    lots, spread = problem.lots[state], problem.spread[state]
    wealth -= np.abs(lots) * params.crossing_costs[spread] + params.fixed_fee * (lots != 0)
    wealth += params.volatility * params.lot * np.sqrt(step * squares) * random.standard_normal(paths)
    counts = {"bid fills": fills[0], "ask fills": fills[1], "market orders": orders}
    return {"wealth": wealth, **counts, "maximum inventory": params.lot * highest}
