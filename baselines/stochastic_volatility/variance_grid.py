r"""Functions of Heston's variance as polynomials: nodes, derivatives and exact conditional expectations.

The generator ``L f = kappa (theta - nu) f' + (xi^2 / 2) nu f''`` maps polynomials to polynomials of the same degree, so
that ``E[f(nu_t) | nu_0] = exp(t L) f`` is exact for the polynomial through the values at Chebyshev's nodes, without a
condition at ``nu = 0`` and whether or not Feller's condition holds.
"""

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.linalg import expm

from mmgym.baselines.chebyshev import chebyshev_nodes, interpolation_rows
from mmgym.models.stochastic_volatility import Params

Array = NDArray[np.float64]

__all__ = ["VarianceGrid"]

TAIL = 1e-7  # probability that the variance is above the largest node, at each of the times looked at


def largest_variance(params: Params) -> float:
    """A bound that the variance is rarely above (price^2 / time)."""
    p = params
    times = p.horizon * np.array([1e-3, 0.01, 0.03, 0.1, 0.3, 1.0])
    highest = np.concatenate([[p.initial_variance, p.variance_mean], p.expected_variance(times)]).max()
    decay = np.exp(-p.variance_reversion * times)
    scale = p.variance_volatility**2 * -np.expm1(-p.variance_reversion * times) / (4.0 * p.variance_reversion)
    if p.variance_volatility > 0.0:
        degrees = 4.0 * p.variance_reversion * p.variance_mean / p.variance_volatility**2
        tails = scale * scipy.stats.ncx2.isf(TAIL, degrees, p.initial_variance * decay / scale)
        highest = max(highest, np.nanmax(tails))
    return float(1.05 * highest)


class VarianceGrid:
    """Chebyshev nodes ``nu`` (K,) from 0 to the largest variance, barycentric weights and the generator (K, K)."""

    def __init__(self, params: Params, count: int) -> None:
        self.largest = largest_variance(params)
        self.nodes, self.weights = chebyshev_nodes(self.largest, count)
        gaps = self.nodes[:, None] - self.nodes[None, :] + np.eye(count)
        self.slope = self.weights[None, :] / self.weights[:, None] / gaps
        np.fill_diagonal(self.slope, 0.0)
        np.fill_diagonal(self.slope, -self.slope.sum(axis=1))
        pull = params.variance_reversion * (params.variance_mean - self.nodes)
        spread = 0.5 * params.variance_volatility**2 * self.nodes
        self.generator = pull[:, None] * self.slope + spread[:, None] * (self.slope @ self.slope)

    def interpolation(self, variance: Array) -> Array:
        """Rows (B, K) that take the values at the nodes to those at ``variance`` (B,), held at the largest node."""
        return interpolation_rows(self.nodes, self.weights, np.clip(variance, 0.0, self.largest))

    def expectation(self, time: float) -> Array:
        """``E[f(nu_t) | nu_0 = node]`` as a matrix (K, K) on the values of ``f`` at the nodes."""
        return np.asarray(expm(time * self.generator))
