"""The frozen-control problem of either role of the mean-field market, exact to rounding.

The step law is that of `mmgym.models.mean_field`. Expectations separate: inside a step the inventory is independent of
the signal, which enters by its expectation at each moment and its transition over the step. Second moments and
exponentials use the joint chain. Continuous-time counterparts: Baldacci, Bergault & Possamai, system (4.6), corrected.
"""

from collections.abc import Mapping
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import Functional, check_tables, terminal_values
from mmgym.baselines.maximise import Region, best_controls, depth_region, in_box, inventory_slopes
from mmgym.baselines.mean_field import kernels
from mmgym.models import mean_field, mean_field_steps
from mmgym.models.mean_field_flow import Flow, quadrature_for, step_system

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

__all__ = ["MeanFieldProblem"]


class MeanFieldProblem:
    """A role of the mean-field market as a `FrozenProblem`.

    State ``b Q + q`` has the signal level ``b`` and the inventory level ``q``, both counted from the lowest; the maker
    has one signal level.

    Parameters
    ----------
    params : mmgym.models.mean_field.Params
    flow : mmgym.models.mean_field_flow.Flow, optional
        The crowd's flow, instead of that of the environment's population. (The maker's observations stay those of the
        environment.)

    Notes
    -----
    ``tolerance`` is what values are wrong by where the crowd moves too fast for the polynomials that its flow is made
    of; the level is then "certified". The environment plays these polynomials.
    """

    num_controls = 2
    aversion = 0.0
    search_tolerance = 1e-12
    action_values = None
    has_market_orders = False

    def __init__(self, params: mean_field.Params, flow: Flow | None = None) -> None:
        p = self.params = params
        game = p.game
        self.num_steps = p.num_steps
        self.shape = (2 * p.signal_levels + 1, len(p.lots))
        self.num_states = self.shape[0] * self.shape[1]
        check_tables(p.num_steps, self.num_states, 2, "num_steps, inventory_limit or signal_limit")
        self.levels = self.shape[1]
        self.lots = np.tile(p.lots, self.shape[0])
        self.signals = np.repeat(np.arange(-p.signal_levels, p.signal_levels + 1), self.levels)
        taker = p.role == "taker"
        self.inventory = game.inventory if taker else game.maker_inventory  # assets, (Q,)
        self.coordinates: Mapping[str, NDArray[Any]] = {"inventory": self.lots * p.order_size}
        if taker:
            self.coordinates = {"signal": self.signals.astype(np.float64), **self.coordinates}
        self.initial = p.initial.ravel()
        self.criterion = Functional(gain=1.0, price=1.0, penalty=1.0)
        self.jumps = game.jumps if taker else np.zeros((2, 1))
        self.signal = game.signal if taker else np.zeros(1)
        flow = p.flow if flow is None else flow
        self.tolerance = game.impact * float(np.abs(self.inventory).max()) * flow.variation
        self.factors = p.factors(flow)
        self.high_controls = np.full(2, p.max_depth)
        self.low_controls = -self.high_controls
        self.control_units = 1.0 / p.fill_decay
        self.unit_value = p.order_size / float(p.fill_decay.min())
        if taker:
            system = step_system(game)
            self.nodes, self.weights, self.beliefs, self.moves = (
                system.nodes, system.weights, system.beliefs, system.moves
            )  # fmt: skip
        else:
            fastest = (self.factors @ np.exp(p.fill_decay * p.max_depth)).max()
            self.nodes, self.weights = quadrature_for(float(fastest * p.step_length))
            self.beliefs, self.moves = np.zeros((1, len(self.nodes))), np.eye(1)
        self.drift = np.ascontiguousarray(game.impact / p.step_length * flow.speed(self.nodes))  # (N, K)
        self.drift_powers = _reversed_speed(game.impact / p.step_length * flow.movement)
        push = float(np.abs(self.beliefs).max() + np.abs(self.drift).max(initial=0.0))
        earned = np.abs(self._reward(self.criterion)) + push * np.abs(self.inventory)
        self.step_reward = p.step_length * float(earned.max())

    # States, observations, actions

    def observations(self, n: int) -> NDArray[np.float32]:
        return mean_field.observe(self.params, n, self.lots, self.signals)

    def locate(self, observations: Array) -> tuple[Integers, Integers]:
        step, lots, signal = mean_field.locate(self.params, observations)
        return step, (signal + self.params.signal_levels) * self.levels + lots + self.params.short

    def controls(self, actions: Array) -> Array:
        return mean_field.to_quotes(self.params, actions)

    def actions(self, controls: Array) -> NDArray[np.float32]:
        return mean_field.from_quotes(self.params, controls)

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        return np.asarray(np.abs(controls) >= self.params.max_depth * (1.0 - 1e-9))

    def intensities(self, n: int, depths: Array) -> Array:
        """Fill intensities (1 / time) at step n, shape (..., 2), of depths of that shape, while both sides are on."""
        return np.asarray(self.factors[n] * np.exp(-self.params.fill_decay * depths))

    # Functionals

    def terminal(self, functional: Functional) -> Array:
        return terminal_values(np.zeros(self.num_states), functional)

    def _reward(self, functional: Functional) -> Array:
        """Gain of the functional per unit of time, besides fills and drifts (Q,)."""
        q = self.inventory
        penalty = functional.penalty * self.params.running_penalty * q**2
        return np.asarray(functional.absolute_inventory * np.abs(q) - penalty, dtype=np.float64)

    # The protocol

    def backward(self, n: int, states: Integers, controls: Array, values: Array, functional: Functional) -> Array:
        states, depths = np.asarray(states), np.asarray(controls, dtype=np.float64)
        single = functional.exponents is None and functional.moments == 1
        order, groups = _groups(states // self.levels if single else None, depths)
        result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
        result[order] = self._grouped(n, groups, states[order], depths[order], values, functional)
        return result

    def _grouped(
        self, n: int, groups: Integers, states: Integers, depths: Array, values: Array, functional: Functional
    ) -> Array:
        p = self.params
        signals, lots = states // self.levels, states % self.levels
        rates = np.ascontiguousarray(self.intensities(n, depths))
        gains = np.ascontiguousarray(functional.gain * p.order_size * depths + functional.fills)
        result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
        reward = self._reward(functional)
        if functional.exponents is None and functional.moments == 1:
            mean_field_steps.backward_mean(
                p.step_length,
                groups,
                lots,
                signals,
                rates,
                gains,
                reward,
                self.nodes,
                self.weights,
                functional.gain * (self.beliefs + self.drift[n]),
                self.moves @ values[:, 0].reshape(self.shape),
                self.inventory,
                result[:, 0],
            )
            return result
        belief = functional.gain * self.signal[:, None] * self.inventory
        variance = np.broadcast_to((functional.price * p.volatility * self.inventory) ** 2, self.shape)
        system = (
            p.step_length,
            groups,
            lots,
            signals,
            rates,
            gains,
            self.jumps,
            reward + belief,
            functional.gain * self.inventory,
            self.drift_powers[n],
            np.ascontiguousarray(variance),
        )
        columns = np.array(values.T, order="C").reshape(values.shape[1], *self.shape)
        if functional.exponents is None:
            kernels.backward_moments(*system, columns, result)
        else:
            kernels.backward_exponential(*system, functional.exponents.astype(values.dtype), columns, result)
        return result

    def backward_without_inventory(
        self, n: int, states: Integers, controls: Array, values: Array, functional: Functional
    ) -> Array:
        no_fill = np.exp(-self.params.step_length * self.intensities(n, np.asarray(controls)).sum(axis=-1))
        signals, lots = states // self.levels, states % self.levels
        after = self.moves @ values.reshape(*self.shape, -1)[:, self.params.short]
        return np.asarray(np.where(lots == self.params.short, no_fill, 0.0)[:, None] * after[signals])

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        after, moved = np.zeros(self.shape), np.zeros(1)
        rates = np.ascontiguousarray(self.intensities(n, np.asarray(controls)).reshape(*self.shape, 2))
        law = np.ascontiguousarray(law).reshape(self.shape)
        mean_field_steps.forward(self.params.step_length, rates, law, np.ones(1), after, moved)
        return np.asarray(self.moves.T @ after).ravel()

    def gradient(self, n: int, states: Integers, controls: Array, values: Array) -> tuple[Array, Array]:
        p, states = self.params, np.asarray(states)
        rates = np.ascontiguousarray(self.intensities(n, np.asarray(controls, dtype=np.float64)))
        result, slopes = np.empty(len(states)), np.empty((len(states), 2))
        kernels.backward_gradient(
            p.step_length,
            states % self.levels,
            states // self.levels,
            rates,
            self.factors[n],
            p.fill_decay,
            p.order_size,
            self._reward(self.criterion),
            self.nodes,
            self.weights,
            self.beliefs + self.drift[n],
            self.moves @ values[:, 0].reshape(self.shape),
            self.inventory,
            result,
            slopes,
        )
        return result[:, None], np.asarray(slopes * -p.fill_decay * rates)

    def first_order_depths(self, values: Array) -> Array:
        """Best depths (B, Q, 2) of a short step before the values (B, Q); a blocked side takes its neighbour's."""
        slope = np.diff(values, axis=1) / self.params.order_size
        base = 1.0 / self.params.fill_decay
        bid = base[0] - np.concatenate([slope, slope[:, -1:]], axis=1)
        ask = base[1] + np.concatenate([slope[:, :1], slope], axis=1)
        return np.asarray(np.clip(np.stack([bid, ask], axis=-1), -self.params.max_depth, self.params.max_depth))

    def region(self, n: int, values: Array) -> Region:
        """As `mmgym.baselines.maximise.ContinuousProblem` has it; the signal and the crowd move the price."""
        p = self.params
        ahead = self.moves @ values.reshape(self.shape)
        drift = (self.beliefs + self.drift[n]) @ self.weights
        reward = self._reward(self.criterion) + drift[:, None] * self.inventory
        ahead = np.stack([ahead, ahead + p.step_length * reward], axis=1)
        fills = p.step_length * self.factors[n]
        return depth_region(self, self.control_units, fills, *inventory_slopes(ahead, p.order_size))

    def cell(self, state: int) -> str:
        return ", ".join(f"{name} {column[state]:g}" for name, column in self.coordinates.items())

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        after = np.ascontiguousarray(self.moves @ values[:, 0].reshape(self.shape))
        depths = self.first_order_depths(after) if guess is None else guess.reshape(*self.shape, 2)
        depths, best, shortfalls = self._climb(n, after, depths, depths, np.zeros(2))
        return best_controls(self, n, values, in_box(self, depths.reshape(-1, 2)), best.ravel(), shortfalls.ravel())

    def improve_near(self, n: int, values: Array, prior: Array, penalty: Array) -> tuple[Array, Array]:
        """The best controls (S, 2) near a prior's and their values (S, 1), less a penalty (2,) for leaving the prior.

        It is ``step_length * sum(penalty * (r log(r / p) - r + p))``, with fill intensities ``r``, of the prior ``p``.
        """
        after = np.ascontiguousarray(self.moves @ values[:, 0].reshape(self.shape))
        prior = prior.reshape(*self.shape, 2)
        depths, best, _ = self._climb(n, after, prior, prior, penalty)
        return in_box(self, depths.reshape(-1, 2)), best.reshape(-1, 1)

    def _climb(self, n: int, after: Array, guess: Array, prior: Array, penalty: Array) -> tuple[Array, Array, Array]:
        p = self.params
        depths = np.clip(guess, self.low_controls, self.high_controls)
        best, shortfalls = np.empty(self.shape), np.empty(self.shape)
        most = float(self.factors[n] @ np.exp(p.fill_decay * p.max_depth))
        mean_field_steps.improve(
            p.step_length,
            self.factors[n],
            p.fill_decay,
            p.order_size,
            np.array([-p.max_depth, p.max_depth]),
            self._reward(self.criterion),
            self.nodes,
            self.weights,
            self.beliefs + self.drift[n],
            after,
            self.inventory,
            np.ascontiguousarray(prior),
            penalty,
            mean_field_steps.new_weights(p.step_length, most, np.ones(self.shape[0], np.bool_)),
            depths,
            best,
            shortfalls,
        )
        return depths, best, shortfalls

    def to_value(self, values: Array, log_scale: float | Array) -> Array:
        return np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        raise TypeError("the mean-field market has no exponential criterion")


def _groups(signals: Integers | None, depths: Array) -> tuple[Any, Integers]:
    """An order of pairs, and where it has pairs of the same depths (and signals) beside each other, shape (G + 1,)."""
    keys = depths if signals is None else np.column_stack([depths, signals])
    order = np.lexsort(keys.T)
    new = (np.diff(keys[order], axis=0) != 0.0).any(axis=1)
    groups = np.concatenate([[0], np.flatnonzero(new) + 1, [len(keys)]]).astype(np.int64)
    if len(groups) == len(keys) + 1:  # all different
        return slice(None), np.arange(len(keys) + 1)
    return order, groups


def _reversed_speed(movement: Array) -> list[Array]:
    """For each step: coefficients of the movement's derivative in powers of the time left, ``1 - x``."""
    order = np.arange(1, movement.shape[1])
    speed = movement[:, 1:] * order
    reversed_speed = []
    for row in speed:
        used = np.flatnonzero(row)
        degree = used[-1] if len(used) else -1
        shifted = [sum(row[k] * comb(int(k), j) for k in range(j, degree + 1)) * (-1) ** j for j in range(degree + 1)]
        reversed_speed.append(np.array(shifted, dtype=np.float64))
    return reversed_speed
