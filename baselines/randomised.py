"""The baseline of an environment whose parameters are drawn at every reset: means over their law.

A law of finitely many values is summed over exactly. A continuous one is integrated by the rule of Clenshaw & Curtis
(1960) with `NODES` nodes in each argument, on the law's own scale, and its error is estimated by the nested rule of
half as many: the value of every market at a node is as exact as that market's, the mean over the law is an estimate.

Three values frame a policy: the best policy that knows the parameters (above every other), the best one that is known
not to (one fixed table for all of them, or the optimum of the average market, below the optimum), and the reference
policy of the average market, whose skill is 0. Skill 1 is the second, or the first where observations end in the
parameters: the mean of the optimum of every episode's own market, which `InformedOptimum` is at the nodes and comes
near between them (where actions are chosen from a list it plays those of the nearest node). Markets without a table of
the optimum have the best policy of the average market there too, which does not see the parameters. Where a law is
continuous, the fixed table is improved at the nodes of the nested rule, and what it is worth is found at all of them,
with the error of that as of every other mean.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import (
    Baseline,
    BestKnownPolicy,
    Bounds,
    Evaluation,
    FiniteBaseline,
    PaperPolicies,
    SimulatedBaseline,
    baseline_for,
    make_baseline,
)
from mmgym.baselines.episodes import ControlVariate, Rewards
from mmgym.baselines.frozen import Solution, Table, evaluate
from mmgym.baselines.mixture import MixtureProblem, best_fixed_table, mean_value, union_solution
from mmgym.baselines.policy import Policy, PolicyThrough, StatelessPolicy
from mmgym.baselines.table_policy import tabulated
from mmgym.variation import Law, Variation

__all__ = ["MOST_NODES", "NODES", "Quadrature", "SeesValues", "quadrature"]

Array = NDArray[Any]

NODES = {"uniform": 9, "loguniform": 9, "normal": 17}  # of a continuous law; the nested rule has 5, or 9
MOST_NODES = 1024  # of all laws together: a market is solved at each
INFORMED = "informed_optimum"  # of every episode's own market, where observations end in its parameters
SAME = 1e-6  # of what observations end in: the node itself, to single precision
FINE = 400  # nodes of the Gauss-Legendre rule that integrates the interpolating polynomials against a density


class Quadrature(NamedTuple):
    """Nodes of laws with their weights, and the weights of the nested rule."""

    values: list[dict[str, Any]]
    weights: Array  # (K,)
    coarse: Array  # (K,), the same where laws have finitely many values

    @property
    def is_exact(self) -> bool:
        """Whether laws have finitely many values, so that a mean is a sum."""
        return bool((self.weights == self.coarse).all())

    def mean(self, of_nodes: Any) -> tuple[float, float]:
        """The mean of numbers at the nodes, and its error as the nested rule tells it (0 where the sum is exact)."""
        numbers = np.asarray(of_nodes, np.float64)
        return float(self.weights @ numbers), float(abs((self.weights - self.coarse) @ numbers))


def _places(law: Law) -> Array:
    """Where in -1 ... 1 the nodes of a continuous law are: Chebyshev points."""
    count = NODES[law.kind]
    return -np.cos(np.pi * np.arange(count) / (count - 1))


def _rule(law: Law) -> tuple[list[dict[str, Any]], Array, Array]:
    """Nodes, weights and coarse weights of one law."""
    if law.kind == "choice":
        choices = law.choices()
        weights = np.array([weight for _, weight in choices])
        return [values for values, _ in choices], weights, weights
    places, count = _places(law), NODES[law.kind]
    fine, masses = np.polynomial.legendre.leggauss(FINE)
    masses = masses * law.density(fine)
    masses /= masses.sum()

    def weights_of(nodes: Array) -> Array:
        """Integrals of the Lagrange polynomials of Chebyshev points, by their expansion in Chebyshev polynomials."""
        basis = np.polynomial.chebyshev.chebvander(nodes, len(nodes) - 1)
        moments = masses @ np.polynomial.chebyshev.chebvander(fine, len(nodes) - 1)
        return np.linalg.solve(basis.T, moments)

    coarse = np.zeros(count)
    coarse[::2] = weights_of(places[::2])
    return [{law.names[0]: law.value(float(x))} for x in places], weights_of(places), coarse


@functools.lru_cache(maxsize=32)
def _quadrature(variation: Variation) -> Quadrature:
    rules = [_rule(law) for law in variation.laws]
    count = math.prod(len(rule[0]) for rule in rules)
    if count > MOST_NODES:
        raise ValueError(
            f"the mean over randomise needs {count:,} markets, at most {MOST_NODES:,} are allowed: 9 of each "
            "uniform law, 17 of each normal one and one of each value of a choice, times each other; give fewer"
        )
    values = [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*(rule[0] for rule in rules))
    ]
    return Quadrature(values, _product([rule[1] for rule in rules]), _product([rule[2] for rule in rules]))


def _product(weights: Sequence[Array]) -> Array:
    """Weights of all combinations of nodes."""
    return functools.reduce(lambda a, b: np.multiply.outer(a, b).ravel(), weights)


def quadrature(variation: Variation) -> Quadrature:
    """Nodes and weights of the laws of randomised parameters.

    Raises
    ------
    ValueError
        If there are more than `MOST_NODES` of them together.
    """
    return _quadrature(variation)


def _average(variation: Variation, nodes: Quadrature) -> dict[str, Any]:
    """Expected values of the arguments; the law's middle ones where no market has those (multiples, whole numbers)."""
    means = {
        name: sum(
            w * np.asarray(values[name], np.float64) for w, values in zip(nodes.weights, nodes.values, strict=True)
        )
        for name in variation.names
    }
    average = {name: np.asarray(mean).tolist() for name, mean in means.items()}
    try:
        variation.params(average)
    except ValueError:
        return variation.middle()
    return average


class _Randomised:
    """What randomised markets share, whether their states are finitely many or not."""

    def __init__(self, variation: Variation) -> None:
        self.variation, self.nodes = variation, quadrature(variation)
        self.average_params = variation.params(_average(variation, self.nodes))
        self.average = baseline_for(self.average_params)
        self.markets = [baseline_for(variation.params(values)) for values in self.nodes.values]
        utilities = {getattr(market.params, "risk_aversion", None) for market in self.markets}
        if self.average.expected_utility and len(utilities) > 1:
            raise ValueError(
                "risk_aversion is not allowed in randomise where the criterion is an expected utility and a score is "
                "wanted: there is no one criterion to score by"
            )

    def mixed(self, criteria: Sequence[float]) -> tuple[float, float]:
        """The criterion over the law from those of the nodes, and its error by quadrature.

        Expected utilities are averaged, not certainty equivalents.
        """
        if not self.average.expected_utility:
            return self.nodes.mean(criteria)
        aversion = float(self.average.params.risk_aversion)
        exponents = -aversion * np.asarray(criteria)
        top = exponents.max()
        mean, error = self.nodes.mean(np.exp(exponents - top))
        return float(-(np.log(mean) + top) / aversion), error / mean / aversion


class RandomisedBaseline(FiniteBaseline):
    """The baseline of randomised markets with finitely many states.

    Its problem is the union of those at the nodes of the law.
    """

    only_bounds = False

    def __init__(self, shared: _Randomised) -> None:
        variation, nodes = shared.variation, shared.nodes
        self.shared, self.nodes = shared, nodes
        problems = [market.problem for market in shared.markets]
        columns = variation.columns(nodes.values)
        known = {
            name if column.shape[1] == 1 else f"{name}_{i}": column[:, i]
            for name, column in columns.items()
            for i in range(column.shape[1])
        }
        seen = np.array([variation.scaled(values) for values in nodes.values]) if variation.observed else None
        self.mixture = MixtureProblem([p for p in problems if p is not None], nodes.weights, seen, known)
        papers = shared.average.policies()
        tables: dict[str, Callable[[], Array | Table]] = {
            name: functools.partial(self._table_of, make) for name, make in papers.items()
        }
        tables["average_optimum"] = self._average_optimum
        if seen is None:
            tables["fixed_optimum"] = self._fixed_optimum
        new = ("average_optimum", "fixed_optimum") if seen is None else ("average_optimum", INFORMED)
        ours = (*shared.average.ours, *new)
        super().__init__(shared.average_params, self.mixture, PaperPolicies(tables, shared.average.reference, ours))

    def _tiled(self, table: Array | Table) -> Array | Table:
        """A table of the average market for the states of all."""
        count = len(self.mixture.parts)
        if isinstance(table, Table):
            controls = np.tile(table.controls, (1, count, *([1] * (table.controls.ndim - 2))))
            weights = None if table.weights is None else np.tile(table.weights, (1, count, 1))
            return Table(controls, weights)
        return np.tile(table, (1, count, 1))

    def _table_of(self, make: Callable[[], Policy]) -> Array | Table:
        """What a policy of the average market plays."""
        problem, policy = self.shared.average.problem, make()
        assert problem is not None
        return self._tiled(tabulated(problem, policy, True)[0])

    def _average_controls(self) -> Array:
        solution = self.shared.average.solution
        assert solution is not None
        return solution.controls

    def _average_optimum(self) -> Array | Table:
        return self._tiled(self._average_controls())

    @functools.cached_property
    def fixed_controls(self) -> Array:
        """The best table (N, S, C) that is the same for all markets.

        Where a law is continuous, the best at the nested nodes, unless the average market's optimum is better at all.
        """
        if not self.nodes.is_exact:
            kept, weights = np.flatnonzero(self.nodes.coarse > 0.0), self.nodes.coarse
            nested = MixtureProblem(
                [self.mixture.parts[i] for i in kept], weights[kept] / weights[kept].sum(), None, {}
            )
            average = self._average_controls()
            best = best_fixed_table(nested, [average])
            return max(best, average, key=lambda table: mean_value(self.mixture, table))
        tables = np.split(self.solution.controls, len(self.mixture.parts), axis=1)
        own = max(tables, key=lambda table: mean_value(self.mixture, table))
        return best_fixed_table(self.mixture, [self._average_controls(), own])

    def _fixed_optimum(self) -> Array | Table:
        return self._tiled(self.fixed_controls)

    @functools.cached_property
    def solution(self) -> Solution:
        """The optimum that knows the parameters."""
        return union_solution(self.mixture, [s for m in self.shared.markets if (s := m.solution) is not None])

    @functools.cached_property
    def _bounds(self) -> Bounds:
        upper, error = self.shared.mixed([market.bounds().upper for market in self.shared.markets])
        error += self.mixture.tolerance
        if self.mixture.seen is not None and self.nodes.is_exact:
            return Bounds(upper, upper, error)
        lower, lower_error = max(self._criterion(self.policies()[name](), True) for name in self._candidates())
        error = max(error, lower_error + self.mixture.tolerance)
        return Bounds(min(lower, upper), upper if self.mixture.seen is None else upper + error, error)

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """As in `Baseline`; with the optimum of what observations end in."""
        policies = dict(super().policies())
        return policies if self.mixture.seen is None else policies | {INFORMED: lambda: self._informed}

    @functools.cached_property
    def _informed(self) -> "InformedOptimum":
        assert self.mixture.seen is not None
        optima = [market.best_policy() for market in self.shared.markets]
        chooses = self.mixture.action_values is not None
        return InformedOptimum(self.shared.variation, self.mixture.seen, optima, chooses)

    def _candidates(self) -> list[str]:
        """Policies that may be the best known of those that know what observations tell.

        The fixed table of choices over a continuous law is not: it takes minutes, and is found when it is asked for.
        """
        if self.mixture.seen is not None:
            return [INFORMED]
        slow = not self.nodes.is_exact and self.mixture.action_values is not None
        return ["average_optimum"] if slow else ["average_optimum", "fixed_optimum"]

    def bounds(self) -> Bounds:
        """Below: the best policy known that knows what observations tell; above: the best that knows the parameters.

        Where both are the same, as observations tell all, the upper end has the error of the quadrature in it.
        """
        return self._bounds

    def best_known(self) -> tuple[str, float]:
        """Name and value of the best policy known of those that know what observations tell."""
        values = {name: self.criterion_value(self.policies()[name]()) for name in self._candidates()}
        best = max(values, key=lambda name: values[name])
        return best, values[best]

    def upper(self) -> float:
        """What the best policy that knows the parameters is worth."""
        return self.bounds().upper

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, in the average market where it does not tell which."""
        optimum = self.shared.average.best_policy() if self.mixture.seen is None else self._informed
        return np.asarray(optimum.value(observation))

    def best_policy(self) -> Any:
        """The optimum where it is one of the observation, otherwise the best policy known."""
        return super().best_policy() if self.bounds().lower == self.bounds().upper else BestKnownPolicy(self)

    def criterion_value(self, policy: Policy) -> float:
        """As in `Baseline`."""
        return self._criterion(policy, True)[0]

    def _criterion(self, policy: Policy, deterministic: bool) -> tuple[float, float]:
        """The criterion of a policy over the law, and its error by quadrature."""
        table, _ = tabulated(self.mixture, policy, deterministic)
        values, log_scale = evaluate(self.mixture, table)
        starts = [part.initial for part in self.mixture.parts]
        raw = [start @ block for start, block in zip(starts, self.mixture.blocks(values[0, :, 0]), strict=True)]
        return self.shared.mixed([float(self.mixture.to_value(np.array(each), log_scale[0])) for each in raw])

    def evaluate(
        self, policy: Policy, deterministic: bool, progress: Callable[[int], object] | None
    ) -> Evaluation | None:
        """As in `Baseline`; the value with the error of its quadrature."""
        evaluation = super().evaluate(policy, deterministic, progress)
        if evaluation is None or self.nodes.is_exact:
            return evaluation
        value, error = self._criterion(policy, deterministic)
        return evaluation._replace(value=value, error=error, method=evaluation.method.replace("exact", "quadrature"))

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`: the rewards themselves, as rows do not tell their parameters."""
        return Rewards()

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """As in `Baseline`, of the mean of rewards."""
        return Rewards.converted(mean, stderr, self.params.risk_aversion if self.expected_utility else 0.0)


class InformedOptimum(StatelessPolicy):
    """The optimum of the market whose parameters observations end in, from those of the markets at the nodes.

    Between the nodes of continuous laws its actions are those of the polynomial through the nodes' (Chebyshev points),
    within their range; where actions are chosen from a list, those of the nearest node.

    Parameters
    ----------
    variation : Variation
    shown : (K, W)
        What observations of the markets at the nodes end in, in the order of `quadrature`.
    optima : sequence of Policy
        Of those markets, each with ``value(observation)``.
    chooses : bool
        Whether actions are chosen from a list.
    """

    def __init__(self, variation: Variation, shown: Array, optima: Sequence[Any], chooses: bool) -> None:
        self._optima, self._width = list(optima), variation.width
        self.quotes_of = self._optima[0].quotes_of  # actions mean the same quotes in all of the markets
        sizes = [len(law.values) if law.kind == "choice" else NODES[law.kind] for law in variation.laws]
        grid = shown.reshape(*sizes, -1)
        self._laws = []  # columns of what is shown, the nodes' values there, and the polynomials through the nodes
        for k, (law, size) in enumerate(zip(variation.laws, sizes, strict=True)):
            rows = np.moveaxis(grid, k, 0).reshape(size, -1, self._width)[:, 0]
            columns = variation.columns_of(law)
            expansion = None  # of the nodes' Lagrange polynomials in Chebyshev polynomials
            if law.kind != "choice" and not chooses:
                expansion = np.linalg.inv(np.polynomial.chebyshev.chebvander(_places(law), size - 1))
            self._laws.append((columns, rows[:, columns], expansion))

    def _weights(self, shown: Array) -> Array:
        """Weights (B, K) of the nodes."""
        whole = np.ones((len(shown), 1))
        for columns, nodes, expansion in self._laws:
            gaps = np.abs(shown[:, None, columns] - nodes).sum(axis=-1)
            part = np.eye(len(nodes))[gaps.argmin(axis=-1)]
            if expansion is not None:
                between = gaps.min(axis=-1) > SAME
                part[between] = (
                    np.polynomial.chebyshev.chebvander(shown[between, columns[0]], len(nodes) - 1) @ expansion
                )
            whole = (whole[:, :, None] * part[:, None, :]).reshape(len(shown), -1)
        return whole

    def _between(self, observation: Any, of: Callable[[Any, Array], Any]) -> Array:
        """What the optima say (B, ...), each asked where it has a weight."""
        given = np.asarray(observation, np.float32)
        rows = given.reshape(-1, given.shape[-1])
        shown, which = np.unique(rows[:, -self._width :].astype(np.float64), axis=0, return_inverse=True)
        weights = self._weights(shown)
        first = np.asarray(of(self._optima[0], rows[:1, : -self._width]))
        total = np.zeros((len(rows), *first.shape[1:]))
        low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
        for optimum, column in zip(self._optima, weights.T, strict=True):
            part = column[which.ravel()]
            at = np.flatnonzero(part)
            if len(at):
                said = np.asarray(of(optimum, rows[at, : -self._width]))
                total[at] += part[at].reshape(-1, *([1] * (said.ndim - 1))) * said
                low[at], high[at] = np.minimum(low[at], said), np.maximum(high[at], said)
        whole = np.clip(total, low, high).astype(first.dtype)
        return whole.reshape((*given.shape[:-1], *whole.shape[1:]))

    def act(self, observation: Any) -> Array:
        """Action of one observation, or actions of a batch."""
        return self._between(observation, lambda optimum, rows: optimum.predict(rows)[0])

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch."""
        return self._between(observation, lambda optimum, rows: optimum.value(rows))


class SeesValues(PolicyThrough):
    """A policy whose observations end in certain values (as it sees them at a node), or that does without their end.

    Parameters
    ----------
    policy : Policy
    shown : (W,)
        What the policy sees at the end of observations.
    dropped : int
        Entries at the end of observations that it does not see.
    """

    def __init__(self, policy: Any, shown: Array, dropped: int = 0) -> None:
        super().__init__(policy)
        self._shown, self._dropped = shown, dropped

    def seen(self, observations: Any) -> Array:
        """Observations with the other end."""
        given = np.asarray(observations)
        kept = given[..., : given.shape[-1] - self._dropped]
        return np.concatenate([kept, np.broadcast_to(self._shown, (*kept.shape[:-1], len(self._shown)))], axis=-1)


class SimulatedRandomised(SimulatedBaseline):
    """The baseline of randomised markets without a table of the optimum: means of what is known at the nodes."""

    def __init__(self, shared: _Randomised) -> None:
        super().__init__(shared.average_params)
        self.shared, self.variation = shared, shared.variation
        self.reference, self.ours = shared.average.reference, (*shared.average.ours, "average_best")
        self.only_bounds, self.expected_utility = True, shared.average.expected_utility

    def _shown(self, values: Mapping[str, Any]) -> Array:
        return self.variation.scaled(values) if self.variation.observed else np.zeros(0, np.float32)

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """Those of the average market, and its best one."""
        width, nothing = self.variation.width, np.zeros(0, np.float32)

        def blind(make: Callable[[], Policy]) -> Callable[[], Policy]:
            return lambda: SeesValues(make(), nothing, width) if width else make()

        policies = {name: blind(make) for name, make in self.shared.average.policies().items()}
        return policies | {"average_best": blind(self.shared.average.best_policy)}

    @functools.cached_property
    def _best_known(self) -> tuple[str, float]:
        policy = self.policies()["average_best"]()
        evaluation = self.evaluate(policy, True, None)
        if evaluation is not None:
            return "average_best", evaluation.value - evaluation.error
        mean, stderr = self.simulated(policy, 10_000, 0)
        return "average_best", mean - 3.0 * stderr

    def best_known(self) -> tuple[str, float]:
        """The best policy of the average market, and what it is worth."""
        return self._best_known

    def upper(self) -> float:
        """The mean of what the best policy that knows the parameters is worth, with its error."""
        bounds = [market.bounds() for market in self.shared.markets]
        value, error = self.shared.mixed([each.upper + each.error for each in bounds])
        return value + error

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, by the best policy of the average market."""
        given = np.asarray(observation)
        kept = given[..., : given.shape[-1] - self.variation.width]
        return np.asarray(self.shared.average.best_policy().value(kept))

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Those of the average market."""
        return self.shared.average.examples(control_names)

    def environment(self) -> Any:
        """An environment with these laws."""
        make = self.variation.environment
        assert make is not None  # it is an environment's
        return make()

    def evaluate(
        self, policy: Policy, deterministic: bool, progress: Callable[[int], object] | None
    ) -> Evaluation | None:
        """Means of the markets' own evaluations, where all have one."""
        parts = []
        for values, market in zip(self.shared.nodes.values, self.shared.markets, strict=True):
            part = market.evaluate(SeesValues(policy, self._shown(values)), deterministic, None)
            if part is None:
                return None
            parts.append(part)
            if progress is not None:
                progress(1)
        value, error = self.shared.mixed([part.value for part in parts])
        means = {
            name: self.shared.nodes.mean([getattr(part, name) for part in parts])[0]
            for name in ("pnl", "fills", "absolute_inventory", "error")
        }
        return Evaluation(
            value=value,
            error=error + means["error"],
            pnl=means["pnl"],
            fills=means["fills"],
            absolute_inventory=means["absolute_inventory"],
        )


@make_baseline.register
def _of(variation: Variation) -> Baseline:
    shared = _Randomised(variation)
    if all(market.problem is not None and not market.only_bounds for market in (shared.average, *shared.markets)):
        return RandomisedBaseline(shared)
    return SimulatedRandomised(shared)
