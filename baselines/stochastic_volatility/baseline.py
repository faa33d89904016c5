"""The baseline of the stochastic-volatility market: its optimum, its policies, and what they are worth.

With the defaults the optimum is 65.500809 (error 7e-8), with hidden variance 65.497868; under ``utility="cara"``
63.372413 (error 3.3e-5), and bracketed if hidden.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines import frozen
from mmgym.baselines.baseline import (
    BestKnownPolicy,
    Bounds,
    Evaluation,
    Progress,
    SimulatedBaseline,
    best_lower,
    make_baseline,
)
from mmgym.baselines.episodes import ControlVariate, Decision
from mmgym.baselines.frozen import Functional, Solution
from mmgym.baselines.glft.closed_forms import avellaneda_stoikov_depths, glft_asymptotic_depths
from mmgym.baselines.policy import Policy, QuotingPolicy, draws_actions
from mmgym.baselines.stochastic_volatility.continuous import best_depths, blind_values, continuous_values, plain_params
from mmgym.baselines.stochastic_volatility.one_step import VarianceProblem
from mmgym.baselines.stochastic_volatility.tilted import TiltedVarianceProblem
from mmgym.models import stochastic_volatility as model
from mmgym.models.stochastic_volatility import Params

Array = NDArray[Any]

__all__ = ["OptimalVariancePolicy", "StochasticVolatilityBaseline", "VariancePolicy"]

COARSE, FINE = 9, 13  # nodes of the variance
SAFETY, ROUNDING = 2.0, 1e-9  # the stated error in units of the distance between two grids, and of the value
LARGEST_ERROR = 0.02  # relative: beyond, the optimum is not called certified


class VariancePolicy(QuotingPolicy):
    """Depths by step, inventory and variance behind `predict`: linear between variances.

    Parameters
    ----------
    params : Params
    depths : (N, S, K, 2)
        Depths [bid, ask] (price).
    variances : (K,)
        Increasing; K may be 1, for depths that do not depend on the variance.
    """

    model = model

    def __init__(self, params: Params, depths: Array, variances: Array) -> None:
        self.params, self.depths, self.variances = params, depths, variances

    def wanted(self, observation: Any) -> Array:
        """Depths of one observation, or of each of a batch; a terminal observation has the last step's."""
        step, lots, variance = model.locate(self.params, observation)
        step, lots = np.minimum(step, self.params.num_steps - 1), lots + self.params.limit
        if len(self.variances) == 1:
            return np.asarray(self.depths[step, lots, 0])
        upper = np.clip(np.searchsorted(self.variances, variance), 1, len(self.variances) - 1)
        low, high = self.variances[upper - 1], self.variances[upper]
        share = np.clip((variance - low) / (high - low), 0.0, 1.0)[..., None]
        return np.asarray((1.0 - share) * self.depths[step, lots, upper - 1] + share * self.depths[step, lots, upper])


class SolvedVariancePolicy(VariancePolicy):
    """The best quotes of a solution, at the expected variance where it is hidden."""

    def __init__(self, problem: VarianceProblem, solution: Solution) -> None:
        shape = (problem.num_steps, problem.lot_count, problem.node_count, 2)
        variances = problem.nodes(0) if problem.grid is not None else np.zeros(1)
        super().__init__(problem.market, solution.controls.reshape(shape), variances)
        self._problem, self._values = problem, solution.values

    def value(self, observation: Any) -> Array:
        """The criterion that can still be reached from an observation, or from each of a batch (currency)."""
        step, lots, variance = model.locate(self.params, observation)
        shape, p = step.shape, self._problem
        rows = p.rows(0, np.ravel(variance))
        values = self._values.reshape(-1, p.lot_count, p.node_count)[step.ravel(), lots.ravel() + self.params.limit]
        return np.asarray((values * rows).sum(axis=1).reshape(shape))


class OptimalVariancePolicy(SolvedVariancePolicy):
    """The optimum.

    Attributes
    ----------
    optimum : float
        The criterion from the environment's initial state.
    bounds : Bounds
    level : str
    """

    def __init__(self, problem: VarianceProblem, solution: Solution, bounds: Bounds) -> None:
        super().__init__(problem, solution)
        self.optimum, self.bounds, self.level = bounds.upper, bounds, bounds.level


def _at_start(problem: VarianceProblem, solution: Solution) -> float:
    """The criterion of a solution from the initial state."""
    return float(problem.to_value(problem.initial @ solution.raw[0], solution.log_scale[0]))


class VarianceAdvantages(ControlVariate):
    """The solved value from the initial state plus the one-step advantages of what is played.

    Unbiased but for the error of the solved value; the optimum is estimated with next to no sampling error.
    """

    def __init__(self, problem: VarianceProblem, solution: Solution) -> None:
        self.problem, self.solution, self.params = problem, solution, problem.market
        self.start = float(problem.initial @ solution.raw[0])

    def before(self, decision: Decision) -> Array:
        """The advantages of the depths."""
        p, problem, solution, n, info = self.params, self.problem, self.solution, decision.number, decision.info
        count = len(decision.actions)
        lots = np.rint(info["inventory"] / p.order_size).astype(np.int64) + p.limit
        if problem.grid is not None:
            variance = info["variance"]
        else:
            variance = np.full(count, p.expected_variance(n * p.step_length))
        rows = problem.rows(n, variance)
        here = (solution.raw[n].reshape(problem.lot_count, problem.node_count)[lots] * rows).sum(axis=1)
        depths = decision.envs.to_quotes(decision.actions)
        if isinstance(problem, TiltedVarianceProblem):
            scale = solution.log_scale - solution.log_scale[0]
            weight = problem.log_weight(info)
            ahead = problem.tilted(lots, rows, depths, solution.raw[n + 1]) * np.exp(weight + scale[n + 1])
            return np.asarray(ahead - here * np.exp(weight + scale[n]))
        ahead = problem.continuation(solution.raw[n + 1]) @ rows.T
        return np.asarray(problem.means(lots, np.arange(count), variance, depths, ahead, problem.criterion) - here)


@make_baseline.register(Params)
class StochasticVolatilityBaseline(SimulatedBaseline):
    """Optimum, policies and evaluation of the market.

    Its one-step law lives on nodes of the variance, which are not the states that the environment observes.
    """

    reference = "constant"
    ours = ("expected_variance", "hjb", "variance_blind", "constant")  # no paper has this market

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.expected_utility = params.utility == "cara"
        self.solved = params.observe_variance or params.utility == "mean"  # otherwise its value is an upper bound

    @functools.cached_property
    def _problems(self) -> tuple[VarianceProblem, VarianceProblem]:
        kind = TiltedVarianceProblem if self.params.utility == "cara" else VarianceProblem
        return kind(self.params, COARSE, polished=False), kind(self.params, FINE)

    @functools.cached_property
    def _solution(self) -> tuple[Solution, float, float]:
        """The solution, its value and its error."""
        coarse, fine = self._problems
        solution = frozen.solve(fine)
        value, rough = _at_start(fine, solution), _at_start(coarse, frozen.solve(coarse))
        error = SAFETY * abs(value - rough) + ROUNDING * abs(value) + self.params.cara_bias
        if not error <= LARGEST_ERROR * max(abs(value), float(np.max(1.0 / fine.decays)) * self.params.order_size):
            raise ArithmeticError(
                f"the optimum {value:.6g} is only known to {error:.3g}: the variance spreads too far for polynomials; "
                "lower variance_volatility or initial_variance, or raise variance_reversion"
            )
        return solution, value, error

    def upper(self) -> float:
        """The optimum or its upper bound."""
        return self._solution[1]

    @functools.cache  # noqa: B019  # baselines are kept anyway
    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound: its value less its error."""

        def rough(name: str) -> tuple[float, float]:
            evaluation = self._evaluated(self.policies()[name]())
            return evaluation.value, evaluation.error

        return best_lower(list(self.policies()), rough)

    def bounds(self) -> Bounds:
        """Bounds of the optimum: where it is not solved, the lower one is that of the best known policy."""
        _, value, error = self._solution
        return Bounds(value if self.solved else min(self.best_known()[1], value), value, error)

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch, by the solution."""
        return SolvedVariancePolicy(self._problems[1], self._solution[0]).value(observation)

    def best_policy(self) -> Any:
        """The optimum; the best policy known where a hidden variance counts in a utility.

        Raises
        ------
        ArithmeticError
            If its error is not small.
        """
        if self.solved:
            return OptimalVariancePolicy(self._problems[1], self._solution[0], self.bounds())
        return BestKnownPolicy(self)

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """Policies by name: the continuous-time optimum, and those that do not look at the variance.

        ``expected_variance`` plays what is best at the expected variance, where that is not the optimum.
        ``variance_blind`` has the continuous-time quotes that are best where the variance is what is expected of it
        (under the mean criterion the best of those that do not see it); the papers' closed forms are those of the
        long-run variance.
        """
        p, plain = self.params, plain_params(self.params, self.params.utility)

        def blind(depths: Callable[[], Array]) -> Callable[[], Policy]:
            return lambda: VariancePolicy(p, depths()[:, :, None, :], np.zeros(1))

        def hjb() -> Policy:
            values, grid = continuous_values(p, num_steps=p.num_steps)
            depths = np.moveaxis(best_depths(p, np.moveaxis(values[:-1], 2, 1)), 1, 2)
            return VariancePolicy(p, depths, grid.nodes)

        def constant() -> Array:
            depths = np.array([1.0 / p.fill_decay_bid, 1.0 / p.fill_decay_ask])
            return np.broadcast_to(depths, (p.num_steps, 2 * p.limit + 1, 2))

        policies: dict[str, Callable[[], Policy]] = {"hjb": hjb} if p.observe_variance else {}
        if not self.solved:
            policies["expected_variance"] = lambda: SolvedVariancePolicy(self._problems[1], self._solution[0])
        return policies | {
            "variance_blind": blind(lambda: best_depths(p, blind_values(p)[:-1])),
            "glft_asymptotic": blind(lambda: glft_asymptotic_depths(plain)),
            "avellaneda_stoikov": blind(lambda: avellaneda_stoikov_depths(plain)),
            "constant": blind(constant),
        }

    def value_of_reference(self) -> float:
        """What constant depths of ``1 / fill_decay`` are worth."""
        return self._evaluated(self.policies()[self.reference]()).value

    def evaluate(
        self, policy: Policy, deterministic: bool = True, progress: Progress | None = None
    ) -> Evaluation | None:
        """Expectations under a policy of the observation; the error is the distance to a coarser grid.

        None for a policy that draws its actions.
        """
        if draws_actions(policy, deterministic):
            return None
        return self._evaluated(policy)

    def _evaluated(self, policy: Policy) -> Evaluation:
        coarse, fine = self._problems
        table = frozen.tabulate(fine, policy)

        def expectation(problem: VarianceProblem, played: frozen.Table, functional: Functional) -> float:
            values, log_scale = frozen.evaluate(problem, played, functional)
            raw = problem.initial @ values[0, :, 0]
            return float(problem.to_value(raw, log_scale[0]) if functional.exponents is not None else raw)

        value = expectation(fine, table, fine.criterion)
        error = 0.0
        if fine.node_count > 1:
            error = abs(value - expectation(coarse, frozen.tabulate(coarse, policy), coarse.criterion))
        wanted = (Functional(gain=1.0), Functional(fills=1.0), Functional(absolute_inventory=1.0))
        pnl, fills, inventory = (expectation(fine, table, functional) for functional in wanted)
        return Evaluation(value, error, pnl, fills, inventory)

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`."""
        return VarianceAdvantages(self._problems[1], self._solution[0])

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """The criterion and its standard error from those of ``estimate``; under CARA by the delta method."""
        problem = self._problems[1]
        if not problem.aversion:
            return mean, stderr
        value = float(problem.to_value(np.array(mean), self._solution[0].log_scale[0]))
        return value, stderr / (problem.aversion * mean)

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Values and best depths at some times, inventories and variances."""
        p, rows = self.params, []
        best = SolvedVariancePolicy(self._problems[1], self._solution[0])
        for step in sorted({0, p.num_steps // 2, p.num_steps - 1}):
            for lots in np.unique([-(p.limit // 2), 0, 1, p.limit // 2]).tolist():
                for variance in (0.5 * p.variance_mean, p.variance_mean, 2.0 * p.variance_mean):
                    observation = model.observe(p, step, lots, variance)
                    depths = model.to_quotes(p, best.predict(observation)[0]).tolist()
                    controls = dict(zip(control_names, depths, strict=True))
                    state = {"step": step, "inventory": lots * p.order_size, "variance": variance}
                    rows.append({**state, "value": float(best.value(observation)), **controls})
        return rows
