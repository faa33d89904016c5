r"""The frozen-quote problem under stochastic volatility and CARA.

With depths frozen, ``w(t, q, nu) = E[exp(-gamma (W_T - W_t))]`` solves the linear system

    -w_t = kappa (theta - nu) w_nu + (xi^2 / 2) nu w_nunu - gamma rho xi nu q w_nu + (gamma^2 nu q^2 / 2 - gamma mu q) w
           + kappa_J(-gamma q) w + sum_sides lambda (exp(-gamma D delta) w(q +- D) - w)

inside a step, ``mu`` the trend and ``kappa_J`` the cumulant of the compensated jumps: `VarianceGrid` nodes in the
variance, exponential of the matrix exactly in time.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from mmgym.baselines.frozen import Functional
from mmgym.baselines.stochastic_volatility.continuous import jump_growth
from mmgym.baselines.stochastic_volatility.kernels import tilted_step
from mmgym.baselines.stochastic_volatility.one_step import VarianceProblem
from mmgym.models import stochastic_volatility

Array = NDArray[Any]

__all__ = ["TiltedVarianceProblem"]


class TiltedVarianceProblem(VarianceProblem):
    """`VarianceProblem` with the criterion of CARA. Its nodes stay where the variance is hidden from the policy."""

    def __init__(self, params: stochastic_volatility.Params, nodes: int, *, polished: bool = True) -> None:
        super().__init__(params, nodes, polished=polished)
        p, grid, q = params, self.grid, self.inventory[:, None]
        assert grid is not None
        growth = 0.5 * (self.aversion * q) ** 2 * grid.nodes - self.aversion * p.trend * q + jump_growth(p, q)
        tilt = -self.aversion * p.correlation * p.variance_volatility * q * grid.nodes
        blocks = grid.generator + tilt[:, :, None] * grid.slope
        blocks[:, np.arange(nodes), np.arange(nodes)] += growth
        self._growth_rates = growth
        self._blocks = np.ascontiguousarray(blocks)
        self._norms = np.abs(blocks).sum(axis=2).max(axis=1)
        self._tilted_expectations = np.stack([expm(p.step_length * block) for block in blocks])

    def tilted(self, lots: Array, rows: Array, depths: Array, values: Array) -> Array:
        """``w`` (M,) of inventories and interpolation rows (M, K) under depths (M, 2), from values (S, K) ahead."""
        depths = np.ascontiguousarray(depths, dtype=np.float64)
        result = np.empty(len(lots))
        tilted_step(
            self.market.step_length,
            np.asarray(lots),
            np.ascontiguousarray(rows),
            self.intensities(depths),
            np.exp(-self.aversion * self.market.order_size * depths),
            self._blocks,
            self._norms,
            np.ascontiguousarray(values.reshape(self.lot_count, self.node_count)),
            result,
        )
        return result

    def backward(
        self, n: int, states: NDArray[np.int64], controls: Array, values: Array, functional: Functional
    ) -> Array:
        """As the protocol has it, for the criterion and for first moments.

        Raises
        ------
        ValueError
            For other moments, exponentials and price noise.
        """
        if functional != self.criterion:
            return super().backward(n, states, controls, values, functional)
        lots, columns = np.divmod(np.asarray(states), self.node_count)
        return self.tilted(lots, np.eye(self.node_count)[columns], controls, values[:, 0])[:, None]

    def _separated(self, n: int, values: Array) -> tuple[Array, Array, Array]:
        """As in the base class, for a variance that moves before the fills of the step do.

        That changes values by less than the square of its length.
        """
        ahead = np.einsum("qij,qj->qi", self._tilted_expectations, values.reshape(self.lot_count, self.node_count))
        ahead *= np.exp(-self._growth_rates * self.market.step_length)
        return ahead, self._growth_rates, np.zeros_like(ahead)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        """As the protocol has it; the price noise that follows from the variance's path stays in."""
        gamma = self.aversion
        noise = 0.5 * gamma**2 * self.market.independent_share * info["weighted_square"] + info["jump_exponent"]
        return np.asarray(-gamma * (info["gain"] - info["price_gain"] + info["variance_gain"]) + noise)
