r"""What the N-player game makes of the mean-field equilibrium: exactly, in continuous time, and its convergence.

If all takers play depths that depend on their own states only, their states are independent, with the law of the limit.
One taker among ``N`` then meets the drift of the others, ``m (N - 1) / N``, and pushes the mid herself: at a fill with
``q`` assets before it she gains ``+ kappa z q / N`` (bid) or ``- kappa z q / N`` (ask), the fill being executed at the
mid after her push. With ``H_q^{+-}(D) = max_{|d| <= d_inf} A^m exp(-k d) (z d + D +- kappa z q / N)`` her best value
against the equilibrium's depths solves

    -dW/dt = (b + m (N - 1) / N) q - gamma sigma^2 q^2 + (signal jumps) + H_q^+(W(q + z) - W) + H_q^-(W(q - z) - W).

What a deviation gains is of the order ``1 / N^2``; the value itself moves by ``1 / N``.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.baselines.differential_equations import runge_kutta_step
from mmgym.baselines.frozen import solve, state_laws
from mmgym.baselines.mean_field.joint import StepDeviation, deviation_on_steps
from mmgym.baselines.mean_field.joint_maker import maker_deviation_on_steps
from mmgym.baselines.mean_field.one_step import MeanFieldProblem
from mmgym.envs.mean_field_players import MeanFieldPlayers
from mmgym.models import mean_field_limit as limit
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.models.mean_field_flow import best_response
from mmgym.models.mean_field_game import Game

__all__ = ["Deviation", "best_deviation", "few_takers", "inventory_fluctuations", "loglog_slope"]

Array = NDArray[np.float64]


class Deviation(NamedTuple):
    """What one of ``N`` takers can gain by leaving the depths that are the equilibrium of the limit (currency)."""

    num_takers: int
    gain: float  # best - value
    value: float  # of the equilibrium's depths in the N-player game
    best: float  # of her best depths of her own state
    shift: float  # of the value from that in the limit


def _slope(game: Game, num_takers: int, drift: float, values: Array, depths: Array | None) -> Array:
    """``-dW/dt`` under the drift of the limit, of given depths or of the best ones."""
    q, z, decay = game.inventory, game.order_size, game.taker_fill_decay
    push = game.impact * z * q / num_takers
    others = (num_takers - 1) / num_takers
    total = (game.signal[:, None] + others * drift) * q - game.taker_penalty * q**2 + game.signal_generator @ values
    below, above = slice(None, -1), slice(1, None)
    for side, here, there, sign in ((0, below, above, 1), (1, above, below, -1)):
        gain = values[:, there] - values[:, here] + sign * push[here]
        if depths is None:
            depth = np.clip(1.0 / decay[side] - gain / z, -game.max_depth, game.max_depth)
        else:
            depth = depths[:, here, side]
        total[:, here] += game.taker_fill_rate[side] * np.exp(-decay[side] * depth) * (z * depth + gain)
    return np.asarray(total)


def _worth(game: Game, num_takers: int, flow: limit.ContinuousFlow, table: Array | None) -> float:
    """What one taker earns with the depths of a table, or with the best ones."""
    values = np.zeros(game.shape)
    for n in range(len(flow.times) - 1, 0, -1):

        def slope(values: Array, half_steps: int, end: int = 2 * n) -> Array:
            k = end - half_steps
            return _slope(game, num_takers, flow.drift[k], values, None if table is None else table[k])

        values = runge_kutta_step(slope, values, flow.times[n] - flow.times[n - 1])
    return float((game.initial * values).sum())


def best_deviation(game: Game, num_takers: int, equilibrium: limit.Equilibrium | None = None) -> Deviation:
    """The best deviation of one taker, by Runge-Kutta steps of order 4 on the equilibrium's grid.

    Parameters
    ----------
    game : Game
    num_takers : int
        N >= 1, large enough for the grid's steps to be stable.
    equilibrium : Equilibrium, optional
        In continuous time; solved if not given.

    Raises
    ------
    ValueError
        If ``num_takers`` is below 1.
    ArithmeticError
        If the steps are not stable: her own impact is too strong.
    """
    if num_takers < 1:
        raise ValueError(f"num_takers = {num_takers} is not allowed: it must be >= 1")
    equilibrium = limit.solve_equilibrium(game) if equilibrium is None else equilibrium
    flow = equilibrium.flow
    with np.errstate(over="ignore", invalid="ignore"):
        value, best = (_worth(game, num_takers, flow, table) for table in (equilibrium.taker_quotes, None))
    if not (np.isfinite(value) and np.isfinite(best)):
        raise ArithmeticError(
            f"with num_takers = {num_takers} a taker's own impact is too strong for the {len(flow.times) - 1} time "
            "steps"
        )
    return Deviation(num_takers, best - value, value, best, value - equilibrium.taker_value)


def inventory_fluctuations(
    counts: tuple[int, ...] = (10, 30, 100, 300, 1000), *, players: int = 400_000, seed: int = 0, **arguments: Any
) -> pd.DataFrame:
    """How the takers' empirical inventory law at the horizon tends to that of the limit, by simulation.

    All takers play the equilibrium's frozen depths.

    Parameters
    ----------
    counts : tuple of int
        Numbers of takers.
    players : int
        Takers simulated for each of them, in as many games as that needs.
    seed : int
    **arguments
        Those of `mmgym.models.mean_field_game.Game.create`.

    Returns
    -------
    DataFrame
        For each ``num_takers``: ``games``; ``rms``, the root mean square distance of the mean inventory (assets) from
        its expectation, with ``rms_error``, and ``rms_exact`` = std(q_T) / sqrt(N); ``histogram``, the mean L1 distance
        of the empirical law from the exact one, and ``histogram_normal``, what the central limit theorem says of it.
    """
    params = TakerParams.create(**arguments)
    game, problem = params.game, MeanFieldProblem(params)
    controls = solve(problem).controls
    law = state_laws(problem, controls)[-1].reshape(game.shape).sum(axis=0)
    mean, square = float(law @ game.inventory), float(law @ game.inventory**2)
    table = (controls / game.max_depth).astype(np.float32).reshape(game.num_steps, *game.shape, 2)
    rows = []
    for count in counts:
        games = max(players // count, 50)
        batch = MeanFieldPlayers(games, num_takers=count, reward="expected", **arguments)
        batch.reset(seed)
        quotes = np.zeros((games, 2), np.float32)
        for n in range(game.num_steps):
            batch.step(table[n][batch.signal + game.signal_limit, batch.inventory + game.short], quotes)
        distance = batch.inventory.mean(axis=1) * game.order_size - mean
        histogram = np.stack([(batch.inventory == lots).mean(axis=1) for lots in params.lots])
        squares = distance**2
        rms = float(np.sqrt(squares.mean()))
        rows.append(
            {
                "num_takers": count,
                "games": games,
                "rms": rms,
                "rms_error": float(squares.std(ddof=1) / np.sqrt(games) / (2.0 * rms)),
                "rms_exact": float(np.sqrt((square - mean**2) / count)),
                "histogram": float(np.abs(histogram - law[:, None]).sum(axis=0).mean()),
                "histogram_normal": float(np.sqrt(2.0 / np.pi * law * (1.0 - law) / count).sum()),
            }
        )
    return pd.DataFrame(rows)


def few_takers(counts: tuple[int, ...] = (1, 2, 3), **arguments: Any) -> pd.DataFrame:
    """What a player gains by leaving the equilibrium of the limit where there are few takers, on decision steps.

    Parameters
    ----------
    counts : tuple of int
        Numbers of takers.
    **arguments
        Those of `mmgym.models.mean_field_game.Game.create`, of a game with few states.

    Returns
    -------
    DataFrame
        For each ``num_takers`` of a taker and of the maker: ``value`` of the equilibrium's depths, ``gain`` of depths
        of her own state, and ``seeing_gain`` of depths of all takers' states, from
        `mmgym.baselines.mean_field.joint` and `joint_maker` (currency).
    """
    params = MakerParams.create(**arguments)
    game, flow = params.game, params.flow
    depths, own = best_response(game, flow)[0], solve(MeanFieldProblem(params, flow)).controls
    rows = []
    for count in counts:
        players: dict[str, StepDeviation] = {
            "taker": deviation_on_steps(game, depths, count),
            "maker": maker_deviation_on_steps(game, depths, own, count),
        }
        row: dict[str, Any] = {"num_takers": count}
        for name, found in players.items():
            entries = {"value": found.value, "gain": found.gain, "seeing_gain": found.seeing_gain}
            row |= {f"{name}_{entry}": value for entry, value in entries.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def loglog_slope(x: Array, y: Array) -> float:
    """Slope of ``log y`` against ``log x`` by least squares."""
    return float(np.polynomial.polynomial.polyfit(np.log(x), np.log(y), 1)[1])
