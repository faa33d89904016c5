r"""One player's steps in the game of a few takers, where the takers' states give the mid a drift.

Given the states at the start of a step nobody's fills depend on another's inside it, so that for a taker, of ``N``,

    E int q dS = kappa / N sum_j int E[q_s] dE[q^j_s] + kappa / (2 N) (E[q_h^2] - q_0^2 - z^2 E[fills]),

the sum over the others, and for the maker, who pushes nothing, the first part only, over all takers. The second part is
what a taker's own fills push the mid by, at which they are executed after the push, as in
`mmgym.models.mean_field_players`. So each state of the others leaves her with one step of a taker in a crowd, whose
kernels serve: with their drift, with the values behind their transitions, and with depths that are less by
``kappa z / (2 N)``.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from mmgym.models import mean_field_steps
from mmgym.models.mean_field_finite import inventory_steps
from mmgym.models.mean_field_flow import UNCLIMBED, StepSystem, quadrature_for, step_system
from mmgym.models.mean_field_game import Game
from mmgym.trust_region import rounding

__all__ = ["Player", "agreed", "maker_of", "taker_of", "taker_step"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
AGREEING = 1e-9  # of two evaluations of one value, relative


class Player:
    """Steps of a player whose controls are the depths of bid and ask.

    Parameters
    ----------
    game : Game
    inventory, decay, penalty
        Hers: (Q,) assets, (2,) 1 / price, and price / (assets^2 time).
    system : StepSystem
        Her signal, and a quadrature.
    most : (2,)
        Her largest fill intensities at depth 0 (1 / time).
    push : float
        Half of what an asset that she buys moves the mid by (price / asset).
    """

    def __init__(
        self, game: Game, inventory: Array, decay: Array, penalty: float, system: StepSystem, most: Array, push: float
    ) -> None:
        self.step, self.size, self.inventory, self.decay = game.step_length, game.order_size, inventory, decay
        self.system, self.push, self.cost = system, push, push * game.order_size  # the cost of a fill, by asset
        self.shape = len(system.moves), len(inventory)
        self.num_states = self.shape[0] * self.shape[1]
        self.states = np.arange(self.num_states)
        self.most = most
        self.box = np.array([-game.max_depth, game.max_depth])
        self.reward = -penalty * inventory**2
        self.pushed = push * np.tile(inventory**2, self.shape[0])
        self.room = float(most @ np.exp(decay * game.max_depth))

    def after(self, values: Array) -> Array:
        """Values (S,) behind a step, with her pushes, averaged over the signal's move: (B, Q)."""
        return np.ascontiguousarray(self.system.moves @ (values + self.pushed).reshape(self.shape))

    def value(
        self, factors: Array, depths: Array, drift: Array, values: Array, states: Integers | None = None
    ) -> Array:
        """Of depths (M, 2) in some states (M,), or all, before values (S,), shape (M,).

        Depth 0 is filled at the rates ``factors`` (2,).
        """
        states, system, result = self.states if states is None else states, self.system, np.empty(len(depths))
        mean_field_steps.backward_mean(
            self.step,
            np.arange(len(states) + 1),
            states % self.shape[1],
            states // self.shape[1],
            factors * np.exp(-self.decay * depths),
            self.size * (depths - self.cost),
            self.reward,
            system.nodes,
            system.weights,
            system.beliefs + drift,
            self.after(values),
            self.inventory,
            result,
        )
        return np.asarray(result - self.pushed[states])

    def best(
        self, factors: Array, depths: Array, drift: Array, values: Array, states: Integers | None = None
    ) -> tuple[Array, Array]:
        """The best depths (M, 2) near some, or near a corner of the box, and their values (M,), evaluated anew.

        Raises
        ------
        ArithmeticError
            If best depths are not found, or are worth something else than their search says.
        """
        states, corners = self.states if states is None else states, itertools.product(self.box, repeat=2)
        starts = [depths, *(np.tile(corner, (len(depths), 1)) for corner in corners)]
        climbed = [self._climb(factors, start, drift, values, states) for start in starts]
        heights = np.stack([height for _, height in climbed])
        highest = heights.argmax(axis=0), np.arange(len(states))
        found = np.stack([at for at, _ in climbed])[highest]
        worth = self.value(factors, found, drift, values, states)
        agreed(worth, heights[highest] - self.pushed[states], self.noise(drift, values) / AGREEING)
        return found, worth

    def near(self, factors: Array, depths: Array, drift: Array, values: Array, states: Integers) -> Array:
        """The best depths (M, 2) near some, in states (M,)."""
        return self._climb(factors, depths, drift, values, states)[0]

    def noise(self, drift: Array, values: Array) -> float:
        """What a further move from the best depths may promise at most (currency)."""
        unit = self.size / self.decay.min()
        drifts = self.system.beliefs + drift
        earned = mean_field_steps.step_reward(self.step, self.reward, drifts, self.inventory)
        return float(UNCLIMBED * rounding(self.after(values), unit + earned))

    def _climb(
        self, factors: Array, start: Array, drift: Array, values: Array, states: Integers
    ) -> tuple[Array, Array]:
        system, box = self.system, self.box - self.cost
        depths, best, missing = np.full((*self.shape, 2), np.nan), np.zeros(self.shape), np.zeros(self.shape)
        depths.reshape(-1, 2)[states] = np.clip(start - self.cost, *box)
        present = np.zeros(self.shape[0], np.bool_)
        present[states // self.shape[1]] = True
        mean_field_steps.improve(
            self.step,
            factors * np.exp(-self.decay * self.cost),
            self.decay,
            self.size,
            box,
            self.reward,
            system.nodes,
            system.weights,
            system.beliefs + drift,
            self.after(values),
            self.inventory,
            depths,
            np.zeros(2),
            mean_field_steps.new_weights(self.step, self.room, present),
            depths,
            best,
            missing,
        )
        if not missing.max() <= self.noise(drift, values):
            raise ArithmeticError("best depths were not found; raise num_steps, or lower the fill rates")
        return np.asarray(depths.reshape(-1, 2)[states] + self.cost), best.ravel()[states]


def taker_of(game: Game, num_takers: int) -> Player:
    """One of so many takers."""
    most, push, system = game.taker_fill_rate, game.impact / (2.0 * num_takers), step_system(game)
    return Player(game, game.inventory, game.taker_fill_decay, game.taker_penalty, system, most, push)


def maker_of(game: Game, most: Array) -> Player:
    """The maker, with so large fill intensities (2,) at depth 0 at most."""
    fastest = max(float(most @ np.exp(game.maker_fill_decay * game.max_depth)), game.fastest_fills)
    nodes, weights = quadrature_for(fastest * game.step_length)
    system = StepSystem(nodes, weights, np.zeros((1, len(nodes))), np.eye(1))
    return Player(game, game.maker_inventory, game.maker_fill_decay, game.maker_penalty, system, most, 0.0)


def taker_step(game: Game, depths: Array, nodes: Array) -> tuple[Array, Array]:
    """Transitions (S, S) of one taker with depths (S, 2), and the drift (S, K) of a crowd of takers in her state."""
    count_b, count_q = game.shape
    laws, _, pace = inventory_steps(game, np.tile(np.arange(count_q), count_b), depths, nodes)
    moves = np.repeat(step_system(game).moves, count_q, axis=0)[:, :, None] * laws[:, None, :]
    return moves.reshape(len(depths), len(depths)), game.impact / game.step_length * pace


def agreed(backwards: Array | float, forwards: Array | float, scale: float) -> None:
    """Refuse a value that two evaluations differ about.

    Raises
    ------
    ArithmeticError
        If they differ by more than 1e-9 of the scale.
    """
    apart = float(np.abs(np.asarray(backwards) - forwards).max())
    if not apart <= AGREEING * scale:
        raise ArithmeticError(f"two evaluations of a value differ by {apart:.3g}, allowed are {AGREEING * scale:.3g}")
