"""One asset alone, solved exactly, and policies that add to its quotes what the other assets change.

To the exact depths ``d_i(t, q_i)`` of separate markets

- "coupled" adds the difference of two quadratic closed forms, that of all assets and that of the separate markets;
- "factor" adds the skew of the leading factor ``f = beta' q`` of the covariance (Bergault & Guéant 2021, section 4): a
  value ``v(t, f)`` that solves

      v_t - (gamma / 2) f^2 + sum_j (A_j C_j D_j / k_j) exp((k_j / D_j) (v(t, f +- D_j beta_j) - v)) = 0,  v(T) = 0,

  while the separate markets have the variance that is left.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.multi_asset_glft.closed_forms import riccati_matrices, riccati_skews
from mmgym.baselines.multi_asset_glft.one_step import aversion_of, effective_rates
from mmgym.models import glft
from mmgym.models.multi_asset_glft import JUMP_PARAMETERS, Params

Array = NDArray[Any]

__all__ = ["CoupledDepths", "FactorDepths", "SeparateMarkets"]

LARGEST_SKEW = 3.0  # that is looked up, in units of the smallest 1 / k: beyond, the depths are at the end of their box
FACTOR_NODES = 201


class SeparateMarkets:
    """The exact optima of all assets alone, with other variances than their own.

    Attributes
    ----------
    problems : list of GLFTProblem
    solutions : list of Solution
    """

    def __init__(self, params: Params, variances: Array) -> None:
        self.params = params
        baselines = [baseline_for(_alone(params, i, float(variance))) for i, variance in enumerate(variances)]
        self.problems: list[Any] = [baseline.problem for baseline in baselines]
        self.solutions: list[Any] = [baseline.solution for baseline in baselines]

    @property
    def optimum(self) -> float:
        """What they are worth together."""
        p = self.params
        return float(self.values(np.zeros((), np.int64), p.starts.astype(np.int64)))

    def values(self, step: Array, lots: Array) -> Array:
        """What can still be reached, at steps (...) and inventories (..., n) in orders: (...)."""
        limits = self.params.limits.astype(np.int64)
        parts = [solution.values[step, lots[..., i] + limits[i]] for i, solution in enumerate(self.solutions)]
        return np.asarray(sum(parts))

    def depths(self, step: Array, lots: Array) -> Array:
        """Their best depths (..., 2 n), bids, then asks; at the end of the episode those of its last step."""
        limits, step = self.params.limits.astype(np.int64), np.minimum(step, self.params.num_steps - 1)
        sides = [solution.controls[step, lots[..., i] + limits[i]] for i, solution in enumerate(self.solutions)]
        return np.concatenate([np.stack([side[..., j] for side in sides], axis=-1) for j in (0, 1)], axis=-1)


def _alone(params: Params, asset: int, variance: float) -> glft.Params:
    p, n, i = params, params.num_assets, asset
    return glft.Params.create(
        volatility=math.sqrt(variance),
        fill_rate=[p.fill_rate[i], p.fill_rate[n + i]],
        fill_decay=[p.fill_decay[i], p.fill_decay[n + i]],
        drift=p.drift[i],
        jump_law=p.jump_law,
        compensated=p.compensated,
        **{name: getattr(p, name)[i] for name in ("jump_rate", *JUMP_PARAMETERS)},
        order_size=p.order_size[i],
        inventory_limit=p.inventory_limit[i],
        initial_inventory=p.initial_inventory[i],
        horizon=p.horizon,
        num_steps=p.num_steps,
        utility=p.utility,
        risk_aversion=p.risk_aversion,
        running_penalty=None if aversion_of(p) else 0.5 * p.risk_aversion * variance,
        terminal_penalty=p.terminal_penalty,
        min_depth=[p.min_depth[i], p.min_depth[n + i]],
        max_depth=[p.max_depth[i], p.max_depth[n + i]],
    )


def _boxed(params: Params, depths: Array) -> Array:
    return np.asarray(np.clip(depths, params.min_depth, params.max_depth))


class CoupledDepths:
    """Exact separate depths, and the difference of two quadratic closed forms."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self._joint = riccati_matrices(params)
        own = np.diag(params.matrix)
        diagonal = tuple(tuple(row) for row in np.diag(own).tolist())
        self._alone = riccati_matrices(params._replace(covariance=diagonal))
        self._markets = SeparateMarkets(params, own)

    def __call__(self, step: Array, lots: Array) -> Array:
        """Depths (..., 2 n) at steps (...) and inventories (..., n) in orders."""
        joint, alone = (riccati_skews(self.params, (a[step], b[step]), lots) for a, b in (self._joint, self._alone))
        return _boxed(self.params, self._markets.depths(step, lots) + joint - alone)


class FactorDepths:
    """Exact separate depths for the variance that the leading factor leaves, and the skew of the factor."""

    def __init__(self, params: Params) -> None:
        p = self.params = params
        values, vectors = np.linalg.eigh(p.matrix)
        self._loadings = vectors[:, -1] * math.sqrt(max(float(values[-1]), 0.0))
        self._markets = SeparateMarkets(p, np.maximum(np.diag(p.matrix) - self._loadings**2, 0.0))

    @functools.cached_property
    def _factor(self) -> tuple[Array, Array]:
        """Nodes (G,) of the factor, and ``v`` (N + 1, G)."""
        p = self.params
        sizes, moves = np.tile(p.sizes, 2), np.concatenate([self._loadings, -self._loadings]) * np.tile(p.sizes, 2)
        weights, units = effective_rates(p) * sizes / p.decays, p.decays / sizes
        bend = float((weights * (units * moves) ** 2).sum())  # v = -a f^2, a' = gamma / 2 - 2 bend a^2
        slope = math.sqrt(p.risk_aversion / (4.0 * bend)) if bend > 0.0 and p.risk_aversion > 0.0 else 0.0
        limit = float(np.abs(self._loadings) @ np.array(p.inventory_limit))
        steepest = float((units * np.abs(moves)).max())
        if slope * steepest > 0.0:
            limit = min(limit, LARGEST_SKEW / (2.0 * slope * steepest))
        nodes = np.linspace(-limit, limit, FACTOR_NODES) if limit > 0.0 else np.array([-1.0, 0.0, 1.0])
        spacing = nodes[1] - nodes[0]
        place = np.clip((nodes[None] + moves[:, None] - nodes[0]) / spacing, 0.0, len(nodes) - 1.0)
        low = np.minimum(place.astype(np.int64), len(nodes) - 2)
        share = place - low
        inside = np.abs(nodes[None] + moves[:, None]) <= nodes[-1] * (1.0 + 1e-12)
        held = -0.5 * p.risk_aversion * nodes**2

        def slopes(_: float, v: Array) -> Array:
            after = (1.0 - share) * v[low] + share * v[low + 1]
            gains = weights[:, None] * np.exp(units[:, None] * (after - v))
            return np.asarray(held + np.where(inside, gains, 0.0).sum(axis=0))

        times = np.linspace(0.0, p.horizon, p.num_steps + 1)
        return nodes, solution_at(slopes, np.zeros(len(nodes)), times, "the factor's value", 1e-6)

    def __call__(self, step: Array, lots: Array) -> Array:
        """Depths (..., 2 n) at steps (...) and inventories (..., n) in orders."""
        p = self.params
        nodes, values = self._factor
        sizes, here = np.tile(p.sizes, 2), (lots * p.sizes) @ self._loadings
        moves = np.concatenate([self._loadings, -self._loadings]) * sizes
        step = np.broadcast_to(step, here.shape)

        def value(at: Array) -> Array:
            place = np.clip((at - nodes[0]) / (nodes[1] - nodes[0]), 0.0, len(nodes) - 1.0)
            low = np.minimum(place.astype(np.int64), len(nodes) - 2)
            rows = step.reshape(*step.shape, *[1] * (at.ndim - step.ndim))
            return np.asarray((1.0 - (place - low)) * values[rows, low] + (place - low) * values[rows, low + 1])

        held = np.clip(here, nodes[0] + np.abs(moves).max(), nodes[-1] - np.abs(moves).max())[..., None]
        skews = (value(held) - value(held + moves)) / sizes
        return _boxed(p, self._markets.depths(step, lots) + skews)
