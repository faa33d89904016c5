"""Several assets beyond what can be solved on the grid: the closed form below, plain markets side by side above.

The penalty is at least that of a diagonal matrix below ``Sigma``, ``q' Sigma q >= lambda q' diag(Sigma) q``, ``lambda``
the smallest eigenvalue of the correlation matrix. With the diagonal one the assets are separate markets, whose exact
optima add up to an upper bound of every policy's value; under CARA their certainty equivalents do. The policies, of
which the quadratic closed form is mostly the best, are simulated.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import SimulatedBaseline, best_lower
from mmgym.baselines.catalogue import optimal_policy
from mmgym.baselines.episodes import ControlVariate, Rewards, Step
from mmgym.baselines.multi_asset_glft.closed_forms import riccati_depths, riccati_matrices
from mmgym.baselines.multi_asset_glft.one_step import aversion_of
from mmgym.baselines.policy import Policy, StatePolicy
from mmgym.envs.glft import GLFTEnv
from mmgym.envs.multi_asset_glft import MultiAssetGLFTVectorEnv
from mmgym.models import multi_asset_glft as model
from mmgym.models.multi_asset_glft import JUMP_PARAMETERS, Params
from mmgym.models.wealth import MAX_EXPONENT

Array = NDArray[Any]

__all__ = ["BracketedBaseline", "DepthPolicy", "RiccatiPolicy"]

EPISODES, SEED = 4_000, 0x10C0  # of the values that are simulated once


class DepthPolicy(StatePolicy):
    """A function of step and inventories behind `predict`.

    Attributes
    ----------
    depths : callable
        ``(step (...), lots (..., n)) -> (..., 2 n)`` depths, bids then asks, also at the end of the episode.
    """

    model = model


class RiccatiPolicy(DepthPolicy):
    """The quadratic closed form (Bergault & Guéant 2021)."""

    def __init__(self, params: Params) -> None:
        self._matrices = riccati_matrices(params)
        super().__init__(params, self._depths)

    def _depths(self, step: Array, lots: Array) -> Array:
        a, b = self._matrices
        return riccati_depths(self.params, (a[step], b[step]), lots)


class SeparateMarket:
    """The exact optimum of one asset with the variance of the diagonal bound."""

    def __init__(self, params: Params, asset: int, variance: float) -> None:
        p, n, i = params, params.num_assets, asset
        best = optimal_policy(
            GLFTEnv(
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
        )
        self.solution, self.optimum = best.solution, best.optimum
        self.limit = int(p.limits[i])


class WithoutPriceNoise(ControlVariate):
    """Rewards whose price noise is integrated out."""

    def after(self, step: Step) -> Array:
        """A reward, less the noise in it; of a utility, its expectation given the inventories."""
        p, info = step.decision.envs.params, step.info
        if p.reward != "pnl":
            return step.rewards
        if not (gamma := aversion_of(p)):
            return np.asarray(step.rewards - (info["price_gain"] - step.decision.info["price_gain"]))
        gain = info["gain"] - info["price_gain"] - p.terminal_penalty * (info["inventory"] ** 2).sum(axis=-1)
        utility = -np.exp(
            np.minimum(0.5 * gamma**2 * info["risk"] + info["jump_exponent"] - gamma * gain, MAX_EXPONENT)
        )
        return np.asarray(np.where(step.terminated, utility, 0.0))


class BracketedBaseline(SimulatedBaseline):
    """Bounds and policies of several assets with too many states for the grid."""

    only_bounds = True
    reference = "constant"
    ours = ("constant",)

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.expected_utility = params.utility == "cara"

    @functools.cached_property
    def alone(self) -> list[SeparateMarket]:
        """Separate markets that together are worth at least the optimum."""
        matrix = self.params.matrix
        scale = np.sqrt(np.where(np.diag(matrix) > 0.0, np.diag(matrix), 1.0))
        correlation = matrix / np.outer(scale, scale)
        np.fill_diagonal(correlation, 1.0)
        least = max(float(np.linalg.eigvalsh(correlation)[0]) - 1e-12, 0.0)
        return [SeparateMarket(self.params, i, least * float(matrix[i, i])) for i in range(self.params.num_assets)]

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch: at most."""
        step, lots = model.locate(self.params, observation)
        parts = [alone.solution.values[step, lots[..., i] + alone.limit] for i, alone in enumerate(self.alone)]
        return np.asarray(sum(parts))

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """The closed form and the constant quote."""
        p = self.params

        def constant(step: Array, lots: Array) -> Array:
            return np.broadcast_to(1.0 / p.decays, (*np.shape(lots)[:-1], 2 * p.num_assets))

        return {"riccati": lambda: RiccatiPolicy(p), "constant": lambda: DepthPolicy(p, constant)}

    @functools.cache  # noqa: B019  # baselines are kept anyway
    def simulated_policy(self, name: str) -> tuple[float, float]:
        """Value and four standard errors of a policy."""
        value, error = self.simulated(self.policies()[name](), EPISODES, SEED)
        return value, 4.0 * error

    def environment(self) -> MultiAssetGLFTVectorEnv:
        """As in `SimulatedBaseline`."""
        return MultiAssetGLFTVectorEnv(1, **self.params.arguments())

    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound; four standard errors are in it."""
        return best_lower(list(self.policies()), self.simulated_policy)

    def upper(self) -> float:
        """The upper bound of the optimum: the separate markets' optima."""
        return float(sum(alone.optimum for alone in self.alone))

    def value_of_reference(self) -> float:
        """The simulated value of the constant quote."""
        return self.simulated_policy(self.reference)[0]

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`: the estimate has no price noise."""
        return WithoutPriceNoise()

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """As in `Baseline`: under CARA a certainty equivalent."""
        return Rewards.converted(mean, stderr, aversion_of(self.params))

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Depths and bounds of the value at some inventories of the first asset."""
        p, best = self.params, RiccatiPolicy(self.params)
        rows = []
        for step in (0, p.num_steps // 2, p.num_steps - 1):
            for lots in range(-int(p.limits[0]), int(p.limits[0]) + 1, max(int(p.limits[0]) // 2, 1)):
                state = np.zeros(p.num_assets, dtype=np.int64)
                state[0] = lots
                depths = best.depths(np.asarray(step), state)
                value = float(self.value(model.observe(p, step, state)))
                row = {"step": step, "inventory_0": lots * p.order_size[0], "value at most": value}
                rows.append({**row, **{control_names[i]: float(depths[i]) for i in (0, p.num_assets)}})
        return rows
