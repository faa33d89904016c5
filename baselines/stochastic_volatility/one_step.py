r"""The frozen-quote problem under stochastic volatility, on inventories and nodes of the variance.

The variance does not depend on the inventory, so one step is: continuation values averaged over the variance's law
(exact for polynomials through the nodes), then the birth-death chain of the inventory with the reward rate ``a(q) +
(nu - theta) exp(-kappa s) b(q)`` at time ``s`` of the step, ``b = -(gamma / 2) q^2``. Where the variance is hidden it
enters through its expectation alone: one node, which moves with time. (CARA:
`mmgym.baselines.stochastic_volatility.tilted`.)
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import Functional, check_tables
from mmgym.baselines.glft import kernels
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.baselines.maximise import Region, best_controls, in_box, rounding
from mmgym.baselines.stochastic_volatility.continuous import plain_params
from mmgym.baselines.stochastic_volatility.variance_grid import VarianceGrid
from mmgym.models import stochastic_volatility

Array = NDArray[Any]

__all__ = ["VarianceProblem"]

MOST_ROUNDS = 10
DIFFERENCE = 1e-3  # of depths, in their units: the second differences of values to rounding are good to 1e-8


class VarianceProblem(GLFTProblem):
    """The market as a `FrozenProblem` for expectations. States are inventories times variance nodes (K fastest).

    Its states do not hold those of the environment, whose variance is continuous;
    `mmgym.baselines.stochastic_volatility` goes between nodes by interpolation. ``initial`` are weights on the nodes,
    some negative.
    """

    search_tolerance = 1e-9  # before the last Newton step

    def __init__(self, params: stochastic_volatility.Params, nodes: int, *, polished: bool = True) -> None:
        super().__init__(plain_params(params, params.utility))
        self.polished = polished
        self.market = p = params
        self.lot_count = 2 * p.limit + 1
        self.grid = VarianceGrid(p, nodes) if p.observe_variance or p.utility == "cara" else None
        self.node_count = nodes if self.grid is not None else 1
        self.num_states = self.lot_count * self.node_count
        check_tables(p.num_steps, self.num_states, 2, "num_steps or inventory_limit, or raise order_size")
        self._expectation = self.grid.expectation(p.step_length) if self.grid is not None else np.eye(1)
        start = np.zeros((self.lot_count, self.node_count))
        start[p.limit + p.start] = self.rows(0, np.array([p.initial_variance]))[0]
        self.initial = start.ravel()

    def nodes(self, n: int) -> Array:
        """Variances of the nodes at step n (K,)."""
        if self.grid is None:
            return self.market.expected_variance(np.array([n * self.market.step_length]))
        return self.grid.nodes

    def rows(self, n: int, variance: Array) -> Array:
        """Interpolation rows (B, K) to variances; a hidden variance is at its node."""
        return np.ones((len(variance), 1)) if self.grid is None else self.grid.interpolation(variance)

    def observations(self, n: int) -> NDArray[np.float32]:
        p = self.market
        lots = np.arange(-p.limit, p.limit + 1)
        return stochastic_volatility.observe(p, n, np.repeat(lots, self.node_count), np.tile(self.nodes(n), len(lots)))

    def terminal(self, functional: Functional) -> Array:
        return np.repeat(super().terminal(functional), self.node_count, axis=0)

    def flows(self, functional: Functional) -> tuple[Array, Array]:
        """What a functional gains per unit of time at ``nu = theta``, and per unit of ``nu - theta``, by inventory."""
        p, q = self.market, self.inventory
        fading = -0.5 * functional.penalty * p.risk_aversion * q**2
        flow = functional.gain * p.trend * q + p.variance_mean * fading + functional.absolute_inventory * np.abs(q)
        return flow, fading

    def continuation(self, values: Array) -> Array:
        """Expectation (S, K) of the values (S K,) of step n + 1 by inventory, given the variance at step n."""
        return np.asarray(values.reshape(self.lot_count, self.node_count) @ self._expectation.T)

    def means(
        self, lots: Array, columns: Array, variance: Array, depths: Array, ahead: Array, functional: Functional
    ) -> Array:
        """Expectations (M,) from inventories and variances under depths (M, 2); ``ahead`` (S, C) are continuations."""
        depths = np.ascontiguousarray(depths, dtype=np.float64)
        rates = self.intensities(depths)
        gains = functional.gain * self.market.order_size * depths + functional.fills
        result = np.empty(len(lots))
        system = (self.market.step_length, self.market.variance_reversion, lots, columns)
        excess = variance - self.market.variance_mean
        kernels.backward_means(
            *system, excess, rates, gains, *self.flows(functional), np.ascontiguousarray(ahead), result
        )
        return result

    def backward(
        self, n: int, states: NDArray[np.int64], controls: Array, values: Array, functional: Functional
    ) -> Array:
        """As the protocol has it, for first moments.

        Raises
        ------
        ValueError
            For other moments, exponentials and price noise.
        """
        if functional.exponents is not None or functional.moments != 1 or values.shape[1] != 1:
            raise ValueError("under stochastic volatility only expectations are evaluated: moments must be 1")
        lots, columns = np.divmod(np.asarray(states), self.node_count)
        ahead = self.continuation(values[:, 0])
        return self.means(lots, columns, self.nodes(n)[columns], controls, ahead, functional)[:, None]

    def cell(self, state: int) -> str:
        lots, node = divmod(state, self.node_count)
        return f"{super().cell(lots)}, node {node} of the variance"

    def gradient(self, n: int, states: NDArray[np.int64], controls: Array, values: Array) -> tuple[Array, Array]:
        """As the protocol has it, by central differences."""
        result = self.backward(n, states, controls, values, self.criterion)
        slopes = np.empty_like(controls)
        for side, shift in enumerate(np.diag(DIFFERENCE * self.control_units)):
            up, down = (self.backward(n, states, controls + way * shift, values, self.criterion) for way in (1.0, -1.0))
            slopes[:, side] = (up - down)[:, 0] / (2.0 * shift[side])
        return result, slopes

    def _separated(self, n: int, values: Array) -> tuple[Array, Array, Array]:
        """Values ahead (S, K), growth and reward rates besides fills, if the variance stood still at each node."""
        p, ahead = self.market, self.continuation(values)
        mean = -math.expm1(-p.variance_reversion * p.step_length) / (p.variance_reversion * p.step_length)
        flow, fading = self.flows(self.criterion)
        rewards = flow[:, None] + (self.nodes(n) - p.variance_mean) * mean * fading[:, None]
        return ahead, np.zeros_like(ahead), rewards

    def region(self, n: int, values: Array) -> Region:
        """As `mmgym.baselines.maximise.ContinuousProblem` has it."""
        ahead, growth, rewards = self._separated(n, values)
        rewards = rewards - growth / self.aversion if self.aversion else rewards
        ahead = self.to_value(ahead, 0.0)
        return self._region(np.concatenate([ahead.T, (ahead + self.market.step_length * rewards).T])[None])

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        """Best depths at each node and their exact values.

        They are searched for as if the variance stood still at its average over the step, which changes depths by the
        order of the step squared and values by its square; where ``polished``, Newton steps for the exact value follow.
        """
        system = self._separated(n, values[:, 0])
        depths, shortfalls = self._separate_depths(*system, guess)
        candidates = self._polish(n, depths, values, shortfalls)
        return best_controls(self, n, values, *candidates, functools.partial(self._glance, *system))

    def _separate_depths(self, ahead: Array, growth: Array, rewards: Array, guess: Array | None) -> tuple[Array, Array]:
        """Depths (S K, 2) that are best if the variance stood still, and what further moves promise (S K,)."""
        depths, shortfalls = np.empty((self.lot_count, self.node_count, 2)), np.empty((self.lot_count, self.node_count))
        spare, missing = np.empty(self.lot_count), np.empty(self.lot_count)
        for k in range(self.node_count):
            column = np.ascontiguousarray(ahead[:, k])
            start = self.first_order_depths(self.to_value(column, 0.0))
            if guess is not None:
                start = guess.reshape(depths.shape)[:, k]
            start = np.clip(start, self.low_controls, self.high_controls)
            kernels.improve(
                self.market.step_length,
                self.fill_rates,
                self.decays,
                self.market.order_size,
                self.aversion,
                np.ascontiguousarray(growth[:, k]),
                np.ascontiguousarray(rewards[:, k]),
                self.intensities(self.high_controls),
                self.intensities(self.low_controls),
                column,
                rounding(self, column),
                start,
                spare,
                missing,
            )
            depths[:, k] = in_box(self, start)
            shortfalls[:, k] = missing
        return depths.reshape(-1, 2), shortfalls.ravel()

    def _glance(self, ahead: Array, growth: Array, rewards: Array, states: NDArray[np.int64], controls: Array) -> Array:
        """One-step values (M,) if the variance stood still."""
        lots, columns = np.divmod(states, self.node_count)
        rates, gains = self.intensities(controls), self.market.order_size * controls
        values = np.empty((len(states), 1))
        for k in range(self.node_count):
            at = columns == k
            result = np.empty((int(at.sum()), 1))
            system, column = (self.market.step_length, lots[at], rates[at], gains[at]), ahead[:, k : k + 1].copy()
            if self.aversion:
                exponents = np.array([-self.aversion])
                kernels.backward_exponential(*system, growth[:, k : k + 1].copy(), exponents, column, result)
            else:
                reward = np.ascontiguousarray(rewards[:, k])
                kernels.backward_moments(*system, reward, np.zeros(self.lot_count), column, result)
            values[at] = result
        return values[:, 0]

    def _polish(self, n: int, controls: Array, values: Array, shortfalls: Array) -> tuple[Array, Array, Array]:
        """Newton steps of each depth by differences, kept where they gain.

        Returns
        -------
        controls, values, shortfalls : (S K, 2), (S K,), (S K,)
            Exact values; what the last step promised, or the ``shortfalls`` given where none is made.
        """
        states, sign = np.arange(self.num_states), -1.0 if self.aversion else 1.0
        kept = self.backward(n, states, controls, values, self.criterion)
        allowed = self.search_tolerance * self.unit_value * (self.aversion * kept[:, 0] if self.aversion else 1.0)
        for _ in range(MOST_ROUNDS if self.polished else 0):
            moved, shortfalls = controls.copy(), np.zeros(self.num_states)
            for side, shift in enumerate(np.diag(DIFFERENCE * self.control_units)):
                up, down = (
                    self.backward(n, states, controls + way * shift, values, self.criterion) for way in (1.0, -1.0)
                )
                slope, curve = sign * (up - down)[:, 0], sign * (up + down - 2.0 * kept)[:, 0]
                newton = -0.5 * slope / np.where(curve < 0.0, curve, -np.inf) * shift[side]
                moved[:, side] += np.clip(newton, -0.1 * self.control_units[side], 0.1 * self.control_units[side])
                moved[:, side] = np.clip(moved[:, side], self.low_controls[side], self.high_controls[side])
                # Along a slope that still rises a unit may be gained, or what is left of the box.
                away = np.where(curve < 0.0, np.abs(moved[:, side] - controls[:, side]), self.control_units[side])
                room = np.where(slope > 0.0, self.high_controls[side], self.low_controls[side]) - controls[:, side]
                shortfalls += np.abs(slope) / (2.0 * shift[side]) * np.minimum(away, np.abs(room))
            reached = self.backward(n, states, moved, values, self.criterion)
            better = sign * reached > sign * kept
            controls, kept = np.where(better, moved, controls), np.where(better, reached, kept)
            if (shortfalls <= allowed).all():
                break
        return controls, kept[:, 0], shortfalls
