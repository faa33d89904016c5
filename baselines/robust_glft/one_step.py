"""The frozen-control problem of a player of the robust GLFT market, exact to rounding, against a given opponent.

Given what both chose, a step is that of the GLFT market with parameters of its own; an opponent who draws is a mixture
of such steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import Functional, Table, check_tables, terminal_values
from mmgym.baselines.glft import kernels
from mmgym.baselines.maximise import CROWDED, Region, best_controls, climb, in_box, inventory_slopes
from mmgym.baselines.robust_glft.kernels import backward_slopes
from mmgym.models import robust_glft as market
from mmgym.models import robust_glft_game as game
from mmgym.models.robust_glft_game import CONTROLS, NATURE, QUOTES

Array = NDArray[Any]

__all__ = ["RobustProblem", "as_table"]


def as_table(controls: Array, weights: Array) -> Table:
    """A table of controls (N, S, P, C) and probabilities (N, S, P); without the latter where nothing is drawn."""
    return Table(controls[:, :, 0]) if weights.shape[-1] == 1 else Table(controls, weights)


class RobustProblem:
    """A player's market as a `FrozenProblem`. States are the maker's inventories from ``-limit`` to ``limit`` orders.

    Parameters
    ----------
    params : MakerParams or AdversaryParams
    opponent : Table, optional
        What the other player plays, in place of what the parameters say.
    """

    tolerance = 0.0
    search_tolerance = 1e-12
    aversion = 0.0
    action_values = None
    has_market_orders = False

    def __init__(self, params: Any, opponent: Table | None = None) -> None:
        p = self.params = params
        self.num_steps, self.num_states, self.num_controls = p.num_steps, p.levels, p.num_own_controls
        check_tables(p.num_steps, p.levels, self.num_controls, "num_steps or inventory_limit, or raise order_size")
        self.opponent = as_table(*market.opponent_table(p)) if opponent is None else opponent
        self.own, self.other = (QUOTES, NATURE) if p.role == "maker" else (NATURE, QUOTES)
        self.lots, self.inventory = np.arange(-p.limit, p.limit + 1), p.inventory
        self.coordinates: Mapping[str, Array] = {"inventory": self.inventory}
        self.initial = (self.lots == p.start).astype(np.float64)
        self.criterion = Functional(gain=1.0, price=1.0, penalty=1.0)
        center, reach = p.control_center[self.own], p.control_reach[self.own]
        self.low_controls, self.high_controls = center - reach, center + reach
        self.shortest, self.longest = 1.0 / p.nature_high[3], 1.0 / p.nature_low[3]  # 1 / fill decay
        units = np.full(2, self.shortest) if p.role == "maker" else reach
        self.control_units: Array = np.where(units > 0.0, units, 1.0)
        self.unit_value = p.order_size * self.longest
        self.step_reward = p.step_length * float(np.abs(self._flow(self.criterion, self._largest_drift)).max())

    @property
    def _largest_drift(self) -> float:
        return float(max(self.params.nature_high[0], self.params.nature_low[0], key=abs))

    def observations(self, n: int) -> NDArray[np.float32]:
        return market.observe(self.params, n, self.lots)

    def locate(self, observations: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        step, lots = market.locate(self.params, observations)
        return step, lots + self.params.limit

    def controls(self, actions: Array) -> Array:
        return market.to_quotes(self.params, actions)

    def actions(self, controls: Array) -> NDArray[np.float32]:
        return market.from_quotes(self.params, controls)

    def cell(self, state: int) -> str:
        """A state in words, for messages."""
        return f"inventory {self.inventory[state]:g}"

    # What both play

    def _joint(self, n: int, states: Array, controls: Array) -> tuple[Array, Array, Array]:
        """States (M * D,), controls of both (M * D, 7) and weights (M, D) of the opponent's draws."""
        met, states = self.opponent.controls[n][states], np.asarray(states)
        if self.opponent.weights is None:
            met, weights = met[:, None], np.ones((len(states), 1))
        else:
            weights = self.opponent.weights[n][states]
        joint = np.empty((*met.shape[:2], len(CONTROLS)))
        joint[..., self.own], joint[..., self.other] = np.asarray(controls)[:, None], met
        return np.repeat(states, met.shape[1]), joint.reshape(-1, len(CONTROLS)), weights

    @staticmethod
    def intensities(joint: Array) -> Array:
        """Fill intensities (1 / time), shape (..., 2), of the controls of both, while both sides are active."""
        return np.asarray(joint[..., 3:5] * np.exp(-joint[..., 5:7] * joint[..., :2]))

    def _flow(self, functional: Functional, drift: float) -> Array:
        """Gain of the functional per unit of time besides fills (S,)."""
        p, q = self.params, self.inventory
        flow = p.sign * (functional.gain * drift * q - functional.penalty * p.running_penalty * q**2)
        return np.asarray(flow + functional.absolute_inventory * np.abs(q))

    # The protocol

    def terminal(self, functional: Functional) -> Array:
        reward = -self.params.sign * functional.penalty * self.params.terminal_penalty * self.inventory**2
        return terminal_values(reward, functional)

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        p, values = self.params, np.ascontiguousarray(values)
        cells, joint, weights = self._joint(n, states, controls)
        rates = self.intensities(joint)
        gains = p.sign * functional.gain * p.order_size * joint[:, :2] + functional.fills
        variance = (functional.price * p.volatility * self.inventory) ** 2
        result = np.empty((len(cells), values.shape[1]), dtype=values.dtype)
        drifts, which = np.unique(joint[:, 2], return_inverse=True)
        order = np.argsort(which, kind="stable")
        for drift, here in zip(drifts, np.split(order, np.cumsum(np.bincount(which, minlength=1))[:-1]), strict=True):
            system, part = (p.step_length, cells[here], rates[here], gains[here]), np.empty_like(result[here])
            flow = self._flow(functional, float(drift))
            if functional.exponents is None:
                kernels.backward_moments(*system, flow, variance, values, part)
            else:
                z = functional.exponents.astype(values.dtype)
                growth = np.multiply.outer(flow, z) + 0.5 * np.multiply.outer(variance, z**2)
                kernels.backward_exponential(*system, np.ascontiguousarray(growth), z, values, part)
            result[here] = part
        mixed: Array = np.einsum("mdk,md->mk", result.reshape(*weights.shape, result.shape[1]), weights)
        return mixed

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        _, joint, weights = self._joint(n, states, controls)
        no_fill = np.exp(-self.params.step_length * self.intensities(joint).sum(axis=-1)).reshape(weights.shape)
        chance = (no_fill * weights).sum(axis=1)
        return np.asarray(np.where(self.lots[states] == 0, chance, 0.0)[:, None] * values[states])

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        _, joint, weights = self._joint(n, np.arange(self.num_states), controls)
        rates = self.intensities(joint).reshape(*weights.shape, 2)
        total, part = np.zeros(self.num_states), np.empty(self.num_states)
        for d in range(weights.shape[1]):
            share = np.ascontiguousarray(law * weights[:, d])
            kernels.forward_law(self.params.step_length, np.ascontiguousarray(rates[:, d]), share, part)
            total += part
        return total

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        p = self.params
        cells, joint, weights = self._joint(n, states, controls)
        each = np.empty((len(cells), 1 + len(CONTROLS)))
        flow = -p.running_penalty * self.inventory**2
        ahead = np.ascontiguousarray(p.sign * values[:, 0])
        backward_slopes(p.step_length, p.order_size, cells, joint, self.inventory, flow, ahead, each)
        mixed = p.sign * np.einsum("mdk,md->mk", each.reshape(*weights.shape, each.shape[1]), weights)
        return mixed[:, :1], mixed[:, 1:][:, self.own]

    def region(self, n: int, values: Array) -> Region:
        """As `mmgym.baselines.maximise.ContinuousProblem` has it: the box, and where many fills are expected.

        Fills are counted under the choices of nature that bring most of them, and under the maker's lowest depths that
        may be best, or those that the adversary meets.
        """
        p = self.params
        values = p.sign * values
        step = p.step_length * (p.running_penalty * self.inventory**2 + np.abs(self._largest_drift * self.inventory))
        slopes, bends = inventory_slopes(np.stack([values, values - step, values + step])[None], p.order_size)
        if p.role == "maker":
            depths = np.clip(self.shortest - np.maximum(slopes[..., 1], 0.0), p.min_depth, p.max_depth)[:, None]
        else:
            depths = self.opponent.controls[n].reshape(self.num_states, -1, 2)
        most = np.exp(-np.where(depths < 0.0, p.nature_high[3], p.nature_low[3]) * depths)
        fills = p.step_length * p.nature_high[1] * most.sum(axis=-1).max(axis=-1)
        crowded = fills * np.maximum(bends / self.shortest, 1.0) > CROWDED
        return Region(self.low_controls, self.high_controls, np.broadcast_to(crowded, self.num_states))

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        states = np.arange(self.num_states)
        if self.params.role == "maker":
            if guess is None:
                slope = np.diff(values[:, 0]) / self.params.order_size
                guess = self.longest + np.stack([-np.append(slope, slope[-1]), np.append(slope[0], slope)], axis=1)
            starts = np.clip(guess, self.low_controls, self.high_controls)
        else:
            starts = self._best_corners(n, values)
        controls, best, shortfalls = climb(self, n, states, starts, values)
        return best_controls(self, n, values, in_box(self, controls), best, shortfalls)

    def _best_corners(self, n: int, values: Array) -> Array:
        """The best corner of the adversary's box in every state (S, 5)."""
        corners = game.corners(self.params)
        states = np.repeat(np.arange(self.num_states), len(corners))
        worths = self.backward(n, states, np.tile(corners, (self.num_states, 1)), values, self.criterion)
        return np.asarray(corners[worths.reshape(self.num_states, len(corners)).argmax(axis=1)])

    def to_value(self, values: Array, log_scale: Any) -> Array:
        return np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        raise TypeError("the criterion of the robust market is a mean: no weight of it is exponential")

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        slack = 1e-9 * (self.high_controls - self.low_controls)
        return np.asarray((controls <= self.low_controls + slack) | (controls >= self.high_controls - slack))
