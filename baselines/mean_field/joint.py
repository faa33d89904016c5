r"""Games of a few takers on decision steps, by dynamic programming: deviations from a table, and Nash equilibria.

Takers ``2 .. N`` play one table of their own states, and taker 1 sees them all, or only herself; or all see all. The
others cannot be told apart, so that the joint states are hers with a multiset of theirs. `joint_player` has the steps,
`joint_maker` what the maker gains by leaving the mean field.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import integer, together
from mmgym.baselines.mean_field.exchangeable import Multisets, num_multisets
from mmgym.baselines.mean_field.joint_player import Player, agreed, taker_of, taker_step
from mmgym.models.mean_field_finite import inventory_steps
from mmgym.models.mean_field_game import Game

__all__ = ["MAX_STATES", "Nash", "StepDeviation", "check_states", "check_table", "deviation_on_steps", "nash_on_steps"]

Array = NDArray[np.float64]
MAX_STATES = 200_000  # of all players together
SETTLED = 1e-5  # change of best depths, in units of 1 / taker_fill_decay, at which a stage's search ends: see `missed`
MOST_ROUNDS = 400  # of best depths in a stage
LEAST_PART = 0.125  # of the way to the best depths that a round goes where they do not settle


class StepDeviation(NamedTuple):
    """What one of ``N`` takers, or the maker among them, can gain who leaves a table (currency)."""

    num_takers: int
    value: float  # of the table
    blind: float  # of better depths of her own state: a taker's best ones; the maker's that no others of a step improve
    seeing: float  # of her best depths of all players' states

    @property
    def gain(self) -> float:
        """Of the deviation that sees her own state only, at most `seeing_gain`."""
        return self.blind - self.value

    @property
    def seeing_gain(self) -> float:
        """Of the best deviation that sees all: tables of all players are an epsilon-Nash equilibrium with the most."""
        return self.seeing - self.value


class Nash(NamedTuple):
    """A symmetric Markov-perfect equilibrium of ``N`` takers who see each other's states."""

    depths: Array  # (steps, S, M, 2), by her own state and the multiset of the others'
    others: NDArray[np.int64]  # (M, N - 1): the multisets, each ascending
    value: float  # of each taker (currency)
    missed: float  # what one of them gains by the best other depths that are found from these and the box's corners


def check_states(game: Game, num_takers: int, others: int, names: tuple[str, ...], alone: int) -> None:
    """Refuse too many joint states: those of ``others`` takers who cannot be told apart, times ``alone``.

    Raises
    ------
    ValueError
        With both numbers, that asked for and that allowed, and these names of arguments.
    """
    integer("num_takers", num_takers, low=1, high=100)
    states = game.shape[0] * game.shape[1]
    asked = alone * num_multisets(states, others)
    if asked > MAX_STATES:
        given = {"num_takers": num_takers, **{name: getattr(game, name) for name in names}}
        raise together(
            given,
            f"the players have {asked:,} joint states, {alone} times the multisets of {others} of {states}; at most "
            f"{MAX_STATES:,} are allowed",
        )


def check_table(name: str, depths: Array, steps: int, states: int, shape: tuple[int, ...]) -> Array:
    """A table (N, S, 2) of depths of this size.

    Raises
    ------
    ValueError
        If it has another one; the message has the shape that is allowed.
    """
    if np.size(depths) != steps * states * 2:
        raise ValueError(f"{name} of shape {np.shape(depths)} are not allowed: {shape} are")
    return np.asarray(depths, dtype=np.float64).reshape(steps, states, 2)


LIMITS = "inventory_limit", "signal_limit"


def deviation_on_steps(game: Game, depths: Array, num_takers: int) -> StepDeviation:
    """What one of ``N`` takers gains by leaving the table that all play, with what she sees.

    Parameters
    ----------
    game : Game
    depths : (N, B, Q, 2) or (N, S, 2)
        The table, such as the equilibrium's by `mmgym.models.mean_field_flow.best_response`.
    num_takers : int
        From 1 on; hers and the others' joint states are ``S C(S + N - 2, N - 1)``, at most 200,000.

    Raises
    ------
    ValueError
        If the table has another shape, or the takers have too many states.
    ArithmeticError
        If best depths are not found, or a value comes out otherwise when evaluated anew: backwards and forwards for the
        table's, backwards once more for the best depths.
    """
    states, others = game.shape[0] * game.shape[1], num_takers - 1
    check_states(game, num_takers, others, LIMITS, states)
    table = check_table("depths", depths, game.num_steps, states, (game.num_steps, *game.shape, 2))
    taker, rate, sets = taker_of(game, num_takers), game.taker_fill_rate, Multisets(states, others)
    steps = [taker_step(game, table[n], taker.system.nodes) for n in range(game.num_steps)]
    laws = [game.initial.ravel()]
    for moves, _ in steps:
        laws.append(laws[-1] @ moves)
    members = sets.members[others]
    seeing, value, blind, earned = np.zeros((states, len(members))), np.zeros(states), np.zeros(states), 0.0
    for n in reversed(range(game.num_steps)):
        moves, pace = steps[n]
        mean = others / num_takers * laws[n] @ pace
        earned += float(laws[n] @ taker.value(rate, table[n], mean, np.zeros(states)))
        value, blind = taker.value(rate, table[n], mean, value), taker.best(rate, table[n], mean, blind)[1]
        drifts, ahead = pace[members].sum(axis=1) / num_takers, sets.behind(seeing, moves, others)
        for place, drift in enumerate(drifts):
            seeing[:, place] = taker.best(rate, table[n], drift, np.ascontiguousarray(ahead[:, place]))[1]
    seen = seeing @ sets.law(laws[0], others)
    worth = [float(laws[0] @ of_state) for of_state in (value, blind, seen)]
    agreed(worth[0], earned, abs(worth[0]) + taker.size / taker.decay.min())
    return StepDeviation(num_takers, *worth)


def nash_on_steps(game: Game, num_takers: int = 2) -> Nash:
    """A symmetric equilibrium of ``N`` takers who all see the states of all at the start of each step.

    Backwards, a stage at a time: all joint states take best depths against the others' until these settle. Then the
    best depths from the corners of the box are looked for too, and what they gain is added up over the steps.

    Parameters
    ----------
    game : Game
    num_takers : int
        From 2 on; their joint states are ``S C(S + N - 2, N - 1)``, at most 200,000. Ten steps of two takers with 21
        states each take some twenty seconds.

    Raises
    ------
    ValueError
        If the takers have too many states.
    ArithmeticError
        If best depths are not found, or do not settle in 400 rounds.
    """
    integer("num_takers", num_takers, low=2, high=100)
    states, others = game.shape[0] * game.shape[1], num_takers - 1
    check_states(game, num_takers, others, LIMITS, states)
    taker, sets, rate, missed = taker_of(game, num_takers), Multisets(states, others), game.taker_fill_rate, 0.0
    shape = states, len(sets.members[others])
    values, depths = np.zeros(shape), np.empty((game.num_steps, *shape, 2))
    guess = np.broadcast_to(1.0 / game.taker_fill_decay, (*shape, 2)).copy()
    for n in reversed(range(game.num_steps)):
        stage, part, last = _Stage(game, taker, sets, values), 1.0, np.inf
        for _ in range(MOST_ROUNDS):
            stage.play(guess)
            better = stage.each(lambda own, drift, ahead, at: taker.near(rate, at, drift, ahead, own)[0], (2,))
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
        values = stage.each(lambda own, drift, ahead, at: taker.value(rate, at, drift, ahead, own)[0], ())
        best = stage.each(lambda own, drift, ahead, at: taker.best(rate, at, drift, ahead, own)[1][0], ())
        missed += max(float((best - values).max()), 0.0)
        depths[n] = guess
    law = game.initial.ravel()
    value = float(law @ values @ sets.law(law, others))
    return Nash(depths, sets.members[others], value, missed)


class _Stage:
    """One step of all takers, before values (S, M) of the first, by the multiset of the others."""

    def __init__(self, game: Game, taker: Player, sets: Multisets, values: Array) -> None:
        self.game, self.taker, self.values = game, taker, values
        self.members, self.added = sets.members[-1], sets.added
        rest = sets.without_each(self.members.shape[1])
        self.seen = np.moveaxis(sets.added[-1][rest], -1, 0)  # (S, M, N - 1): whom each of the others sees

    def play(self, depths: Array) -> None:
        """Let all play depths (S, M, 2) in this stage."""
        game, shape = self.game, self.values.shape
        self.depths = depths
        owners = np.repeat(np.arange(shape[0]), shape[1])
        laws, _, pace = inventory_steps(game, owners % game.shape[1], depths.reshape(-1, 2))
        signals = self.taker.system.moves[owners // game.shape[1]]
        self.moves = (signals[:, :, None] * laws[:, None, :]).reshape(*shape, shape[0])
        self.pace = (game.impact / game.step_length * pace).reshape(*shape, -1)

    def each(self, worth: Callable[[NDArray[np.int64], Array, Array, Array], Any], width: tuple[int, ...]) -> Array:
        """An array (S, M, *width) of what a function finds for the first taker in each joint state.

        Its arguments are her state (1,), the others' drift (K,), the values (S,) behind their transitions, and her
        depths (1, 2).
        """
        result, count = np.empty((*self.values.shape, *width)), self.members.shape[1]
        for own, place in np.ndindex(self.values.shape):
            seen = self.members[place], self.seen[own, place]
            ahead = self.values
            for added, law in zip(reversed(self.added), self.moves[seen], strict=True):
                ahead = ahead[:, added] @ law
            drift = self.pace[seen].sum(axis=0) / (count + 1)
            at, here = self.depths[own, place][None], np.array([own])
            result[own, place] = worth(here, drift, np.ascontiguousarray(ahead[:, 0]), at)
        return result
