"""Several assets beyond what can be solved on the grid: the best of some policies below, separate markets above.

The penalty is at least that of a diagonal matrix below ``Sigma`` (`mmgym.baselines.multi_asset_glft.decoupling`), with
which the assets are separate markets, whose exact optima add up to an upper bound of every policy's value; under CARA
their certainty equivalents do. The policies are simulated, with four standard errors; these do not tell of losses that
are too rare to be among the episodes, as of policies that are ruined now and then where aversion or penalties are high.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import SimulatedBaseline, best_lower
from mmgym.baselines.episodes import ControlVariate, Decision, Rewards, Step
from mmgym.baselines.frozen import Functional
from mmgym.baselines.multi_asset_glft.closed_forms import riccati_depths, riccati_matrices
from mmgym.baselines.multi_asset_glft.decoupling import decoupled_variances
from mmgym.baselines.multi_asset_glft.one_step import aversion_of, jump_growth
from mmgym.baselines.multi_asset_glft.separate import CoupledDepths, FactorDepths, SeparateMarkets
from mmgym.baselines.policy import Policy, StatePolicy
from mmgym.envs.multi_asset_glft import MultiAssetGLFTVectorEnv
from mmgym.models import multi_asset_glft as model
from mmgym.models.multi_asset_glft import Params
from mmgym.models.wealth import MAX_EXPONENT

Array = NDArray[Any]

__all__ = ["BracketedBaseline", "DepthPolicy", "RiccatiPolicy"]

EPISODES = {"mean": 400, "cara": 1_000}  # of the values that are simulated once: a utility has more noise
SEED = 0x10C0


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


class SeparateValues(WithoutPriceNoise):
    """The mean criterion, less what fills change in a value that is nearly that of all assets: 0 on average.

    The value is that of separate markets and ``- q' A q`` between assets; its expectation after a step is exact, as
    fills of different assets do not depend on each other while depths stand.
    """

    def __init__(self, params: Params, markets: SeparateMarkets) -> None:
        self.params, self.markets = params, markets
        self.cross = riccati_matrices(params)[0] * (1.0 - np.eye(params.num_assets))

    def before(self, decision: Decision) -> Array:
        """The expectation of gains and the value after the step."""
        p, n = self.params, decision.number
        lots = np.rint(decision.info["inventory"] / p.sizes).astype(np.int64) + p.limits.astype(np.int64)
        depths = decision.envs.to_quotes(decision.actions)
        total, after = np.zeros(len(lots)), np.empty(lots.shape)
        for i, (problem, solution) in enumerate(zip(self.markets.problems, self.markets.solutions, strict=True)):
            step = (n, lots[:, i], depths[:, i :: p.num_assets])
            total += problem.backward(*step, solution.values[n + 1][:, None], Functional(gain=1.0))[:, 0]
            after[:, i] = problem.backward(*step, problem.inventory[:, None], Functional())[:, 0]
        return np.asarray(total - np.einsum("bi,ij,bj->b", after, self.cross[n + 1], after))

    def after(self, step: Step) -> Array:
        """The reward, less gains and the value after the step."""
        p, info, before = self.params, step.info, step.decision.info
        inventory, n = info["inventory"], step.decision.number + 1
        gained = info["gain"] - info["price_gain"] - (before["gain"] - before["price_gain"])
        lots = np.rint(inventory / p.sizes).astype(np.int64)
        value = self.markets.values(np.full(len(lots), n), lots)
        value = value - np.einsum("bi,ij,bj->b", inventory, self.cross[n], inventory)
        return np.asarray(super().after(step) - gained - value)


class SeparateUtilities(WithoutPriceNoise):
    """Expected utility, less what fills change in one that is nearly that of all assets: 0 on average.

    It is that of separate markets, of which a step's growth by price noise is that of its first inventories.
    """

    def __init__(self, params: Params, markets: SeparateMarkets) -> None:
        self.params, self.markets, self.aversion = params, markets, aversion_of(params)

    def _factor(self, decision: Decision) -> Array:
        p, gamma, info = self.params, self.aversion, decision.info
        q, gain = info["inventory"], info["gain"] - info["price_gain"]
        growth = 0.5 * gamma**2 * np.einsum("bi,ij,bj->b", q, p.matrix, q) + jump_growth(p, -gamma * q)
        scale = sum(solution.log_scale[decision.number + 1] for solution in self.markets.solutions)
        exponent = 0.5 * gamma**2 * info["risk"] + info["jump_exponent"] - gamma * gain + p.step_length * growth
        return np.asarray(np.exp(np.minimum(exponent + scale, MAX_EXPONENT)))

    def before(self, decision: Decision) -> Array:
        """The expectation of the utility after the step."""
        p, n, functional = self.params, decision.number, Functional(gain=1.0, exponents=np.array([-self.aversion]))
        lots = np.rint(decision.info["inventory"] / p.sizes).astype(np.int64) + p.limits.astype(np.int64)
        depths, expected = decision.envs.to_quotes(decision.actions), -self._factor(decision)
        for i, (problem, solution) in enumerate(zip(self.markets.problems, self.markets.solutions, strict=True)):
            values = solution.raw[n + 1][:, None]
            expected *= problem.backward(n, lots[:, i], depths[:, i :: p.num_assets], values, functional)[:, 0]
        return np.asarray(expected)

    def after(self, step: Step) -> Array:
        """The utility of an episode that has ended, less that after the step."""
        p, info, before, n = self.params, step.info, step.decision.info, step.decision.number
        gained = info["gain"] - info["price_gain"] - (before["gain"] - before["price_gain"])
        lots = np.rint(info["inventory"] / p.sizes).astype(np.int64) + p.limits.astype(np.int64)
        utility = self._factor(step.decision) * np.exp(-self.aversion * gained)
        for i, solution in enumerate(self.markets.solutions):
            utility *= solution.raw[n + 1][lots[:, i]]
        return np.asarray(super().after(step) + utility)


class BracketedBaseline(SimulatedBaseline):
    """Bounds and policies of several assets with too many states for the grid."""

    only_bounds = True
    reference = "constant"
    ours = ("coupled", "separate_optima", "constant")

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.expected_utility = params.utility == "cara"

    @functools.cached_property
    def alone(self) -> SeparateMarkets:
        """Separate markets that together are worth at least the optimum."""
        return SeparateMarkets(self.params, decoupled_variances(self.params))

    @functools.cached_property
    def own(self) -> SeparateMarkets:
        """Separate markets with the assets' own variances."""
        return SeparateMarkets(self.params, np.diag(self.params.matrix))

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch: at most."""
        return self.alone.values(*model.locate(self.params, observation))

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """Separate markets with what couples them, the closed form alone, a factor, and quotes that ignore the rest."""
        p = self.params

        def constant(step: Array, lots: Array) -> Array:
            return np.broadcast_to(1.0 / p.decays, (*np.shape(lots)[:-1], 2 * p.num_assets))

        return {
            "coupled": lambda: DepthPolicy(p, CoupledDepths(p)),
            "factor": lambda: DepthPolicy(p, FactorDepths(p)),
            "riccati": lambda: RiccatiPolicy(p),
            "separate_optima": lambda: DepthPolicy(p, self.own.depths),
            "constant": lambda: DepthPolicy(p, constant),
        }

    @functools.cache  # noqa: B019  # baselines are kept anyway
    def simulated_policy(self, name: str) -> tuple[float, float]:
        """Value and four standard errors of a policy."""
        value, error = self.simulated(self.policies()[name](), EPISODES[self.params.utility], SEED)
        return value, 4.0 * error

    def environment(self) -> MultiAssetGLFTVectorEnv:
        """As in `SimulatedBaseline`."""
        return MultiAssetGLFTVectorEnv(1, **self.params.arguments())

    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound; four standard errors are in it."""
        return best_lower(list(self.policies()), self.simulated_policy)

    def upper(self) -> float:
        """The upper bound of the optimum: the separate markets' optima."""
        return self.alone.optimum

    def value_of_reference(self) -> float:
        """The simulated value of the constant quote."""
        return self.simulated_policy(self.reference)[0]

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`: the estimate has no price noise and little of that of fills."""
        if self.params.utility == "cara":
            return SeparateUtilities(self.params, self.own)
        return SeparateValues(self.params, self.own)

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """As in `Baseline`: under CARA a certainty equivalent."""
        return Rewards.converted(mean, stderr, aversion_of(self.params))

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Depths and bounds of the value at some inventories of the first asset."""
        p, best = self.params, cast(DepthPolicy, self.policies()[self.best_known()[0]]())
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
