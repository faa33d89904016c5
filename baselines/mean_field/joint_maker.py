r"""What the maker gains by leaving the mean field where there are few takers, by dynamic programming on decision steps.

The takers play a table of their own states, and nothing that she does changes them: their joint states are a chain of
their own. At the start of a step a joint state gives her the takers' mean quotes, hence her fill intensities ``f h(d)``
with ``h(d) = exp(-k d)``, and a drift of the mid: one step of `joint_player` each.

Best depths of the joint state ("seeing") are an ordinary dynamic programme. Those of her own inventory ("blind") are
not: her fills tell of the takers, so that inventory and takers depend on each other, by the depths that she has played.
With the law ``F_n(x, q)`` of both, her value is ``sum F_n V_n`` at every step, in which only ``V_n`` depends on the
depths from step ``n`` on. So they are made better a step at a time, backwards, each time the exact value rises, and
again until it does not: no other depths of one step are better then, while those of several steps might be. What sees
all bounds what they could gain.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.baselines.maximise import climb
from mmgym.baselines.mean_field.exchangeable import Multisets
from mmgym.baselines.mean_field.joint import StepDeviation, check_states, check_table
from mmgym.baselines.mean_field.joint_player import Player, agreed, maker_of, taker_step
from mmgym.baselines.mean_field.kernels import backward_gradient
from mmgym.compiling import KERNEL
from mmgym.models import mean_field_limit, mean_field_steps
from mmgym.models.mean_field_game import MAX_EVENTS, Game

__all__ = ["maker_deviation_on_steps"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
MOST_ROUNDS = 100  # of better depths of all steps
SETTLED = 1e-10  # what a last round gains, relative to the value and what a fill is worth


class _Meeting(NamedTuple):
    """What the takers' joint states mean for the maker at one step."""

    moves: Array  # (S, S), of each taker
    factors: Array  # (X, 2), her fill intensities at depth 0
    drifts: Array  # (X, K)


def maker_deviation_on_steps(game: Game, depths: Array, maker_depths: Array, num_takers: int) -> StepDeviation:
    """What the maker gains among ``N`` takers by leaving a table of her own, with what she sees.

    Parameters
    ----------
    game : Game
    depths : (N, B, Q, 2) or (N, S, 2)
        The takers' table, such as the equilibrium's.
    maker_depths : (N, M, 2)
        Hers, such as the optimum of `mmgym.baselines.mean_field.MeanFieldProblem` against that equilibrium.
    num_takers : int
        From 1 on; her states and theirs together are ``M C(S + N - 1, N)``, at most 200,000.

    Raises
    ------
    ValueError
        If a table has another shape, the players have too many states, or the takers' quotes give her more fills a step
        than can be computed with.
    ArithmeticError
        If best depths are not found, or a value comes out otherwise when evaluated anew: forwards, by the joint law,
        for both tables; backwards once more where she sees all.
    """
    states, levels = game.shape[0] * game.shape[1], len(game.maker_inventory)
    check_states(
        game, num_takers, num_takers, ("inventory_limit", "signal_limit", "maker_inventory_limit_long"), levels
    )
    table = check_table("depths", depths, game.num_steps, states, (game.num_steps, *game.shape, 2))
    own = check_table("maker_depths", maker_depths, game.num_steps, levels, (game.num_steps, levels, 2))
    crowd = _Crowd(game, table, num_takers)
    value, blind = crowd.value(own), crowd.value(crowd.blind(own))
    return StepDeviation(num_takers, value, blind, crowd.seeing(own))


class _Crowd:
    """The takers, and the maker among them."""

    def __init__(self, game: Game, table: Array, num_takers: int) -> None:
        self.game, self.table, self.count = game, table, num_takers
        self.sets = Multisets(game.shape[0] * game.shape[1], num_takers)
        self.members = self.sets.members[num_takers]
        most = np.max([self._factors(n) for n in range(game.num_steps)], axis=(0, 1))
        self.maker: Player = maker_of(game, most)
        if not self.maker.room * game.step_length <= 4.0 * MAX_EVENTS:
            raise ValueError(
                f"depths give the maker {self.maker.room * game.step_length:g} expected fills a step at the depth "
                f"-max_depth, which must be at most {4.0 * MAX_EVENTS:g}; raise num_steps or lower max_depth"
            )
        self.steps = [self._meeting(n) for n in range(game.num_steps)]
        size = len(self.members), len(self.maker.inventory)
        self.start = np.zeros(size)
        self.start[:, game.maker_start] = self.sets.law(game.initial.ravel(), num_takers)

    def _factors(self, n: int) -> Array:
        """The maker's fill intensities at depth 0 (1 / time) by the takers' states, shape (X, 2)."""
        game = self.game
        here = np.zeros((len(self.members), *game.shape))
        rows = np.arange(len(self.members))
        for member in self.members.T:
            here.reshape(len(rows), -1)[rows, member] += 1.0
        means, quoting = mean_field_limit.boundary_means(game, here, self.table[n].reshape(*game.shape, 2))
        return mean_field_limit.maker_factors(game, means, quoting)

    def _meeting(self, n: int) -> _Meeting:
        moves, pace = taker_step(self.game, self.table[n], self.maker.system.nodes)
        return _Meeting(moves, self._factors(n), pace[self.members].sum(axis=1) / self.count)

    def _behind(self, n: int, values: Array) -> Array:
        """Values (X, M) behind the takers' moves."""
        return np.ascontiguousarray(self.sets.behind(values.T, self.steps[n].moves, self.count).T)

    def _worth(self, n: int, depths: Array, values: Array) -> Array:
        """Of depths (M, 2) before values (X, M) behind the takers' moves, shape (X, M)."""
        step = self.steps[n]
        rows = zip(step.factors, step.drifts, values, strict=True)
        return np.array([self.maker.value(factors, depths, drift, after) for factors, drift, after in rows])

    def seeing(self, own: Array) -> float:
        """The value of her best depths of all states, which are looked for near these (N, M, 2) too."""
        values = np.zeros(self.start.shape)
        for n in reversed(range(self.game.num_steps)):
            step = self.steps[n]
            rows = zip(step.factors, step.drifts, self._behind(n, values), strict=True)
            values = np.array([self.maker.best(factors, own[n], drift, after)[1] for factors, drift, after in rows])
        return float((self.start * values).sum())

    def value(self, own: Array) -> float:
        """Of depths (N, M, 2) of her own inventory, backwards and forwards."""
        values, earned = np.zeros(self.start.shape), 0.0
        for n in reversed(range(self.game.num_steps)):
            values = self._worth(n, own[n], self._behind(n, values))
        for n, law in enumerate(self.laws(own)):
            earned += float((law * self._worth(n, own[n], np.zeros(law.shape))).sum())
        value = float((self.start * values).sum())
        agreed(value, earned, self._unit(value))
        return value

    def laws(self, own: Array) -> list[Array]:
        """Joint laws (X, M) at the start of each step."""
        laws = [self.start]
        for n in range(self.game.num_steps - 1):
            after = np.zeros(self.start.shape)
            for place, factors in enumerate(self.steps[n].factors):
                rates = (factors * np.exp(-self.maker.decay * own[n]))[None]
                law = np.ascontiguousarray(laws[-1][place : place + 1])
                mean_field_steps.forward(self.maker.step, rates, law, np.ones(1), after[place : place + 1], np.zeros(1))
            laws.append(self.sets.forward(after.T, self.steps[n].moves, self.count).T)
        return laws

    def blind(self, own: Array) -> Array:
        """Depths (N, M, 2) of her own inventory that no others of one step improve on, from these on."""
        own, corners = own.copy(), True
        for _ in range(MOST_ROUNDS):
            laws, values, gained = self.laws(own), np.zeros(self.start.shape), 0.0
            for n in reversed(range(self.game.num_steps)):
                after = self._behind(n, values)
                values = self._worth(n, own[n], after)
                better = _Averaged(self, n, laws[n], after).better(own[n], corners)
                worth = self._worth(n, better, after)
                gains = (laws[n] * (worth - values)).sum(axis=0)
                best = gains > 0.0
                own[n, best], values[:, best] = better[best], worth[:, best]
                gained += float(gains[best].sum())
            settled = gained <= SETTLED * self._unit(float((self.start * values).sum()))
            if settled and corners:
                return own
            corners = settled  # the last round has looked everywhere
        raise ArithmeticError(
            f"the maker's best depths of her own inventory do not settle: they still gain {gained:.3g} after "
            f"{MOST_ROUNDS} rounds; raise num_steps"
        )

    def _unit(self, value: float) -> float:
        return abs(value) + self.maker.size / float(self.maker.decay.min())


class _Averaged:
    """The maker's step with depths of her own inventory, averaged over the takers' states: for `climb`."""

    aversion = 0.0

    def __init__(self, crowd: _Crowd, n: int, law: Array, after: Array) -> None:
        self.maker, self.step, self.after = crowd.maker, crowd.steps[n], after
        mass = law.sum(axis=0)
        self.reached = np.flatnonzero(mass > 0.0)
        self.law = np.ascontiguousarray(law / np.where(mass > 0.0, mass, 1.0))
        self.low_controls, self.high_controls = np.tile(self.maker.box, (2, 1)).T
        self.control_units = 1.0 / self.maker.decay
        self.unit_value = self.maker.size / float(self.maker.decay.min())
        self.step_reward = mean_field_steps.step_reward(
            self.maker.step, self.maker.reward, self.step.drifts, self.maker.inventory
        )

    def gradient(self, n: int, states: Integers, controls: Array, values: Array) -> tuple[Array, Array]:
        """Values (R, 1) and slopes (R, 2) of depths (R, 2) at levels (R,) of the inventory."""
        maker, hits = self.maker, np.exp(-self.maker.decay * controls)
        result, slopes = np.zeros(len(states)), np.zeros((len(states), 2))
        averaged_gradient(
            maker.step, states, hits, self.law, self.step.factors, maker.decay, maker.size, maker.reward,
            maker.system.nodes, maker.system.weights, self.step.drifts, self.after, maker.inventory, result, slopes,
        )  # fmt: skip
        return result[:, None], -maker.decay * hits * slopes

    def better(self, depths: Array, corners: bool) -> Array:
        """The best depths (M, 2) near some, or near a corner of the box too; as they are where she cannot be."""
        starts = [depths]
        if corners:
            ends = itertools.product(self.maker.box, repeat=2)
            starts += [np.tile(corner, (len(depths), 1)) for corner in ends]
        better, best, values = depths.copy(), np.full(len(depths), -np.inf), self.after.max(axis=0)[:, None]
        problem: Any = self
        for start in starts:
            found, heights, _ = climb(problem, 0, self.reached, start[self.reached], values)
            higher = heights > best[self.reached]
            places = self.reached[higher]
            better[places], best[places] = found[higher], heights[higher]
        return better


@njit(**KERNEL)
def averaged_gradient(
    step: Any, states: Any, hits: Any, law: Any, factors: Any, decay: Any, size: Any, reward: Any, nodes: Any,
    node_weights: Any, drifts: Any, after: Any, inventory: Any, result: Any, gradient: Any,
) -> None:  # fmt: skip
    """One-step criterion and its derivatives in ``hits`` (R, 2), averaged over rows of factors, drifts and values.

    Parameters
    ----------
    states, hits : (R,), (R, 2)
        Levels of the inventory, and fill intensities over those at depth 0.
    law, after : (X, M)
        The rows' weights by level, and the values behind the step.
    factors, drifts : (X, 2), (X, K)
    result, gradient : (R,), (R, 2)
        Added to.

    Notes
    -----
    The others are those of `mmgym.baselines.mean_field.kernels.backward_gradient`.
    """
    signals = np.zeros(len(states), np.int64)
    here, slopes = np.empty(len(states)), np.empty(gradient.shape)
    for x in range(len(factors)):
        weights = law[x][states]
        if weights.max() == 0.0:
            continue
        backward_gradient(
            step, states, signals, factors[x] * hits, factors[x], decay, size, reward, nodes, node_weights,
            drifts[x : x + 1], after[x : x + 1], inventory, here, slopes,
        )  # fmt: skip
        for r in range(len(states)):
            result[r] += weights[r] * here[r]
            for side in range(2):
                gradient[r, side] += weights[r] * slopes[r, side] * factors[x, side]
