r"""Games of a few takers on decision steps, by dynamic programming: deviations from a table, and Nash equilibria.

Takers ``2 .. N`` play one table of their own states, and taker 1 sees them all, or only herself; or all see all. Given
the states at the start of a step nobody's fills depend on another's inside it, so that for taker 1

    E int q dS = kappa / N sum_j int E[q_s] dE[q^j_s] + kappa / (2 N) (E[q_h^2] - q_0^2 - z^2 E[fills]),

the first sum over the others. The second part is what her own fills push the mid by, at which they are executed after
the push, as in `mmgym.models.mean_field_players`. So each state of the others leaves her with one step of a taker in a
crowd, whose kernels serve: with their drift, with the values behind their transitions, and with depths that are less by
``kappa z / (2 N)``.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import integer, together
from mmgym.models import mean_field_steps
from mmgym.models.mean_field_finite import inventory_steps
from mmgym.models.mean_field_flow import UNCLIMBED, StepSystem, step_system
from mmgym.models.mean_field_game import Game
from mmgym.trust_region import rounding

__all__ = ["Nash", "StepDeviation", "deviation_on_steps", "nash_on_steps"]

Array = NDArray[np.float64]
MAX_STATES = 200_000  # of all takers together
SETTLED = 1e-5  # change of best depths, in units of 1 / taker_fill_decay, at which a stage's search ends: see `missed`
MOST_ROUNDS = 400  # of best depths in a stage
LEAST_PART = 0.125  # of the way to the best depths that a round goes where they do not settle


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


class Nash(NamedTuple):
    """A symmetric Markov-perfect equilibrium of ``N`` takers who see each other's states."""

    depths: Array  # (steps, S, ..., S, 2), by her own state, then the others' in any order
    value: float  # of each taker (currency)
    missed: float  # bound on what one of them gains by any other depths


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
        climbed = np.max([self._climb(start, drift, values)[1] for start in starts], axis=0)
        return np.asarray(climbed.ravel() - self.push * np.tile(game.inventory**2, game.shape[0]))

    def near(self, depths: Array, drift: Array, values: Array) -> Array:
        """The best depths (S, 2) near some."""
        return np.asarray(self._climb(depths - self.cost, drift, values)[0].reshape(-1, 2) + self.cost)

    def _climb(self, start: Array, drift: Array, values: Array) -> tuple[Array, Array]:
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
        return depths, best


def _checked_states(game: Game, num_takers: int) -> int:
    """States of one taker, if there are not too many of all takers together."""
    states = game.shape[0] * game.shape[1]
    integer("num_takers", num_takers, low=2, high=100)
    if states**num_takers > MAX_STATES:
        raise together(
            {"num_takers": num_takers, "inventory_limit": game.inventory_limit, "signal_limit": game.signal_limit},
            f"all takers together have {states}^{num_takers} states, at most {MAX_STATES:,} are allowed",
        )
    return states


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
    states = _checked_states(game, num_takers)
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
            best = taker.best(table[n], drift, ahead[:, *places])
            same: Any
            for same in set(itertools.permutations(places)):
                seeing[:, *same] = best
    for _ in range(num_takers - 1):
        seeing = seeing @ laws[0]
    return StepDeviation(num_takers, *(float(laws[0] @ of_state) for of_state in (value, blind, seeing)))


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


def nash_on_steps(game: Game, num_takers: int = 2) -> Nash:
    """A symmetric equilibrium of ``N`` takers who all see the states of all at the start of each step.

    Backwards, a stage at a time: all joint states take best depths against the others' until these settle. Then the
    best depths from the corners of the box are looked for too, and what they gain is added up over the steps.

    Parameters
    ----------
    game : Game
    num_takers : int
        From 2 on; all their states together are ``S^N``, at most 200,000. Ten steps of two takers
        with 21 states each take a minute.

    Raises
    ------
    ValueError
        If the takers have too many states.
    ArithmeticError
        If best depths are not found, or do not settle in 400 rounds.
    """
    states = _checked_states(game, num_takers)
    shape = (states,) * num_takers
    taker, missed, values = _OneTaker(game, num_takers), 0.0, np.zeros(shape)
    depths = np.empty((game.num_steps, *shape, 2))
    guess = np.broadcast_to(1.0 / game.taker_fill_decay, (*shape, 2)).copy()
    for n in reversed(range(game.num_steps)):
        stage, part, last = _Stage(taker, values), 1.0, np.inf
        for _ in range(MOST_ROUNDS):
            stage.play(guess)
            better = stage.each(lambda own, drift, ahead, at: taker.near(at, drift, ahead)[own], (2,))
            change = float((np.abs(better - guess) * game.taker_fill_decay).max())
            if change > last:
                part = max(0.5 * part, LEAST_PART)
            guess, last = guess + part * (better - guess), change
            if change <= SETTLED:
                break
        else:
            raise ArithmeticError(
                f"the best depths of {num_takers} takers at step {n} do not settle: they still change by {change:.3g} "
                f"in units of 1 / taker_fill_decay after {MOST_ROUNDS} rounds; raise num_steps, or lower the impact"
            )
        stage.play(guess)
        values = stage.each(lambda own, drift, ahead, at: taker.value(at, drift, ahead)[own], ())
        best = stage.each(lambda own, drift, ahead, at: taker.best(at, drift, ahead)[own], ())
        missed += max(float((best - values).max()), 0.0)
        depths[n] = guess
    law, value = game.initial.ravel(), values
    for _ in range(num_takers):
        value = value @ law
    return Nash(depths, float(value), missed)


class _Stage:
    """One step of all takers, before values (S, ..., S) of the first."""

    def __init__(self, taker: _OneTaker, values: Array) -> None:
        self.taker, self.values = taker, values
        states, others = values.shape[0], values.ndim - 1
        self.places: Any = [
            (own, *rest)
            for own in range(states)
            for rest in itertools.combinations_with_replacement(range(states), others)
        ]

    def play(self, depths: Array) -> None:
        """Let all play depths (S, ..., S, 2) in this stage."""
        game, shape = self.taker.game, self.values.shape
        self.depths = depths
        owners = np.indices(shape)[0].ravel()
        laws, _, pace = inventory_steps(game, owners % game.shape[1], depths.reshape(-1, 2))
        signals = self.taker.system.moves[owners // game.shape[1]]
        self.moves = (signals[:, :, None] * laws[:, None, :]).reshape(*shape, shape[0])
        self.pace = (game.impact / game.step_length * pace).reshape(*shape, -1)

    def each(self, worth: Callable[[int, Array, Array, Array], Any], width: tuple[int, ...]) -> Array:
        """An array (S, ..., S, *width) of what a function finds for the first taker in each joint state.

        Its arguments are her state, the others' drift (K,), the values (S,) behind their transitions, and her depths,
        repeated for all states (S, 2).
        """
        result, count = np.empty((*self.values.shape, *width)), self.values.ndim - 1
        for own, *rest in self.places:
            drift, ahead = 0.0, self.values
            for other in range(count, 0, -1):
                seen: Any = (rest[other - 1], own, *rest[: other - 1], *rest[other:])
                drift = drift + self.pace[seen]
                ahead = ahead @ self.moves[seen]
            here: Any = (own, *rest)
            at = np.tile(self.depths[here], (len(ahead), 1))
            value = worth(own, np.asarray(drift) / (count + 1), ahead, at)
            for same in set(itertools.permutations(rest)):
                result[own, *same] = value
        return result
