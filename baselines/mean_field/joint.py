r"""What one of a few takers gains by leaving the others' depths, on decision steps: by dynamic programming.

Takers ``2 .. N`` play one table of their own states. Taker 1 sees them all, or only herself. Given the states at the
start of a step nobody's fills depend on another's inside it, so that for her

    E int q dS = kappa / N sum_j int E[q_s] dE[q^j_s] + kappa / (2 N) (E[q_h^2] - q_0^2 - z^2 E[fills]),

the first sum over the others. The second part is what her own fills push the mid by, at which they are executed after
the push, as in `mmgym.models.mean_field_players`. So each state of the others leaves her with one step of a taker in a
crowd, whose kernels serve: with their drift, with the values behind their transitions, and with depths that are less by
``kappa z / (2 N)``.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import integer, together
from mmgym.models import mean_field_steps
from mmgym.models.mean_field_finite import inventory_steps
from mmgym.models.mean_field_flow import UNCLIMBED, StepSystem, step_system
from mmgym.models.mean_field_game import Game
from mmgym.trust_region import rounding

__all__ = ["StepDeviation", "deviation_on_steps"]

Array = NDArray[np.float64]
MAX_STATES = 200_000  # of all takers together


class StepDeviation(NamedTuple):
    """What one of ``N`` takers can gain who leaves the table that all play (currency)."""

    num_takers: int
    value: float  # of the table
    blind: float  # of her best depths of her own state
    seeing: float  # of her best depths of all takers' states

    @property
    def gain(self) -> float:
        """Of the best deviation that sees her own state only."""
        return self.blind - self.value

    @property
    def seeing_gain(self) -> float:
        """Of the best deviation that sees all takers' states: the table is an epsilon-Nash equilibrium with it."""
        return self.seeing - self.value


class _OneTaker:
    """Steps of one taker who pushes the mid herself, under a drift that the others' states give."""

    def __init__(self, game: Game, num_takers: int) -> None:
        self.game, self.system = game, step_system(game)
        self.push = game.impact / (2.0 * num_takers)
        self.cost = self.push * game.order_size  # of a fill, by asset
        self.factors = game.taker_fill_rate * np.exp(-game.taker_fill_decay * self.cost)
        self.box = np.array([-game.max_depth, game.max_depth]) - self.cost
        self.reward = -game.taker_penalty * game.inventory**2
        self.states = np.arange(game.shape[0] * game.shape[1])
        self.room = float(self.factors @ np.exp(-game.taker_fill_decay * self.box[0]))

    def after(self, values: Array) -> Array:
        """Values (S,) behind a step, with her pushes, averaged over the signal's move: (B, Q)."""
        game = self.game
        return np.ascontiguousarray(self.system.moves @ (values.reshape(game.shape) + self.push * game.inventory**2))

    def value(self, depths: Array, drift: Array, values: Array) -> Array:
        """Of depths (S, 2) under a drift (K,) before values (S,), shape (S,)."""
        game, system, result = self.game, self.system, np.empty(len(self.states))
        mean_field_steps.backward_mean(
            game.step_length,
            np.arange(len(self.states) + 1),
            self.states % game.shape[1],
            self.states // game.shape[1],
            game.taker_fill_rate * np.exp(-game.taker_fill_decay * depths),
            game.order_size * (depths - self.cost),
            self.reward,
            system.nodes,
            system.weights,
            system.beliefs + drift,
            self.after(values),
            game.inventory,
            result,
        )
        return result - self.push * np.tile(game.inventory**2, game.shape[0])

    def best(self, depths: Array, drift: Array, values: Array) -> Array:
        """Of the best depths near some (S, 2), or near a corner of the box, shape (S,)."""
        game = self.game
        corners = itertools.product(self.box, repeat=2)
        starts = [depths - self.cost, *(np.tile(corner, (len(depths), 1)) for corner in corners)]
        found = np.max([self._climb(start, drift, values) for start in starts], axis=0)
        return np.asarray(found.ravel() - self.push * np.tile(game.inventory**2, game.shape[0]))

    def _climb(self, start: Array, drift: Array, values: Array) -> Array:
        game, system, after = self.game, self.system, self.after(values)
        depths, best = np.clip(start, *self.box).reshape(*game.shape, 2), np.empty(game.shape)
        missing, drifts = np.empty(game.shape), system.beliefs + drift
        mean_field_steps.improve(
            game.step_length,
            self.factors,
            game.taker_fill_decay,
            game.order_size,
            self.box,
            self.reward,
            system.nodes,
            system.weights,
            drifts,
            after,
            game.inventory,
            depths,
            np.zeros(2),
            mean_field_steps.new_weights(game.step_length, self.room, np.ones(game.shape[0], np.bool_)),
            depths,
            best,
            missing,
        )
        unit = game.order_size / game.taker_fill_decay.min()
        earned = mean_field_steps.step_reward(game.step_length, self.reward, drifts, game.inventory)
        if not missing.max() <= UNCLIMBED * rounding(after, unit + earned):
            raise ArithmeticError(
                "the best depths of a taker were not found; raise num_steps, or lower taker_fill_rate"
            )
        return best


def deviation_on_steps(game: Game, depths: Array, num_takers: int) -> StepDeviation:
    """What one of ``N`` takers gains by leaving the table that all play, with what she sees.

    Parameters
    ----------
    game : Game
    depths : (N, B, Q, 2) or (N, S, 2)
        The table, such as the equilibrium's by `mmgym.models.mean_field_flow.best_response`.
    num_takers : int
        From 2 on; all their states together are ``S^N``, at most 200,000.

    Raises
    ------
    ValueError
        If the table has another shape, or the takers have too many states.
    ArithmeticError
        If best depths are not found.
    """
    states = game.shape[0] * game.shape[1]
    integer("num_takers", num_takers, low=2, high=100)
    if states**num_takers > MAX_STATES:
        raise together(
            {"num_takers": num_takers, "inventory_limit": game.inventory_limit, "signal_limit": game.signal_limit},
            f"all takers together have {states}^{num_takers} states, at most {MAX_STATES:,} are allowed",
        )
    if np.size(depths) != game.num_steps * states * 2:
        raise ValueError(f"depths of shape {np.shape(depths)} are not allowed: {(game.num_steps, *game.shape, 2)} are")
    table = np.asarray(depths, dtype=np.float64).reshape(game.num_steps, states, 2)
    taker, levels = _OneTaker(game, num_takers), np.tile(np.arange(game.shape[1]), game.shape[0])
    steps = [_step(game, taker.system, levels, table[n]) for n in range(game.num_steps)]
    laws = [game.initial.ravel()]
    for moves, _ in steps:
        laws.append(laws[-1] @ moves)
    shape = (states,) * num_takers
    seeing, value, blind = np.zeros(shape), np.zeros(states), np.zeros(states)
    others: Any = list(itertools.combinations_with_replacement(range(states), num_takers - 1))
    for n in reversed(range(game.num_steps)):
        moves, pace = steps[n]
        mean = (num_takers - 1) / num_takers * laws[n] @ pace
        value, blind = taker.value(table[n], mean, value), taker.best(table[n], mean, blind)
        ahead, seeing = _behind(seeing, moves), np.empty(shape)
        for places in others:
            drift = pace[list(places)].sum(axis=0) / num_takers
            found = taker.best(table[n], drift, ahead[:, *places])
            same: Any
            for same in set(itertools.permutations(places)):
                seeing[:, *same] = found
    for _ in range(num_takers - 1):
        seeing = seeing @ laws[0]
    return StepDeviation(num_takers, *(float(laws[0] @ found) for found in (value, blind, seeing)))


def _step(game: Game, system: StepSystem, levels: NDArray[np.int64], depths: Array) -> tuple[Array, Array]:
    """Transitions of one taker (S, S), and the drift (S, K) of a crowd of takers in her state."""
    laws, _, pace = inventory_steps(game, levels, depths)
    moves = np.repeat(system.moves, game.shape[1], axis=0)[:, :, None] * laws[:, None, :]
    return moves.reshape(len(levels), len(levels)), game.impact / game.step_length * pace


def _behind(values: Array, moves: Array) -> Array:
    """Values behind the transitions of all takers but the first."""
    for other in range(1, values.ndim):
        values = np.moveaxis(np.tensordot(moves, values, axes=(1, other)), 0, other)
    return values
