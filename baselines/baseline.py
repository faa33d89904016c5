"""The baseline of a market: its optimum or bounds of it, its named policies, and what a policy is worth.

A market registers a function of its parameters with `make_baseline`, in its package `mmgym.baselines.<market>`; generic
code asks `baseline_of` and never what kind of market it is. `FiniteBaseline` is made from a
`mmgym.baselines.frozen.FrozenProblem` and named tables; `SimulatedBaseline` is what markets begin with that have no
such problem.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, singledispatch
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines import frozen
from mmgym.baselines.choices import FrozenChoices, component_sizes
from mmgym.baselines.episodes import ControlVariate, Decision, Rewards, episodes, simulated_columns
from mmgym.baselines.expansion import Expansions, FrozenExpansions
from mmgym.baselines.frozen import FrozenProblem, Functional, Solution, Table, TogetherProblem, criterion_value, solve
from mmgym.baselines.kept import load_solution, save_solution
from mmgym.baselines.pnl_law import PnlLaw, pnl_law
from mmgym.baselines.policy import Policy, PolicyThrough, RandomPolicy
from mmgym.baselines.table_policy import TablePolicy, table_policy, tabulated
from mmgym.baselines.wrappers import unwrapped
from mmgym.market import Market

__all__ = [
    "Baseline",
    "BestKnownPolicy",
    "Bounds",
    "Evaluation",
    "FiniteBaseline",
    "OptimalPolicy",
    "PaperPolicies",
    "PriceNoise",
    "SimulatedBaseline",
    "State",
    "TogetherBaseline",
    "baseline_for",
    "baseline_of",
    "best_lower",
    "environment_of",
    "make_baseline",
    "optimal_controls",
]

Array = NDArray[Any]
Progress = Callable[[int], object]
State = Mapping[str, Any]  # of a batch: `mmgym.kernel_env.KernelVectorEnv.get_state`
PriceNoise = Callable[[State, State], NDArray[np.float64]]  # states before and after a step -> (B,), of mean 0

KEPT_SECONDS = 0.5  # a solution that took longer is kept on disk
CLIPPING_EPISODES = 200  # of the share of clipped decisions where it is simulated


class Bounds(NamedTuple):
    """What is known of the optimum: equal bounds where it is computed, to within ``error``."""

    lower: float
    upper: float
    error: float

    @property
    def level(self) -> str:
        """ "exact" where the bounds are one number or, with an error, "certified"; otherwise "bracketed"."""
        if self.lower != self.upper:
            return "bracketed"
        return "exact" if self.error == 0.0 else "certified"


class Evaluation(NamedTuple):
    """Expectations under a policy, found without sampling. What is None has to be simulated."""

    value: float  # the criterion
    error: float  # of the value
    pnl: float  # W_T - W_0
    fills: float
    absolute_inventory: float  # its integral over time
    orders: float | None = None  # market orders
    std: float | None = None  # of the return
    pnl_std: float | None = None
    utility: float | None = None  # expected, where the criterion is one and it is within floating point
    method: str = "numerical"


class Baseline(Protocol):
    """Optimum, policies and evaluation of a market with certain parameters."""

    @property
    def params(self) -> Any:
        """Parameters of the market."""

    @property
    def reference(self) -> str:
        """Name of the policy whose skill is 0."""

    @property
    def ours(self) -> tuple[str, ...]:
        """Names of the policies that no paper has."""

    @property
    def only_bounds(self) -> bool:
        """Whether no policy of this market is ever claimed to be its optimum, whatever the bounds say."""

    @property
    def expected_utility(self) -> bool:
        """Whether the criterion is an expected utility: scores are then certainty equivalents."""

    @property
    def problem(self) -> FrozenProblem | None:
        """The exact one-step law on the states that the environment observes; None where they are not finitely many."""

    @property
    def solution(self) -> Solution | None:
        """The optimum of the problem; None where there is none."""

    @property
    def evaluation_steps(self) -> int | None:
        """Steps of which `evaluate` tells its ``progress``; None where it tells of none."""

    def bounds(self) -> Bounds:
        """Bounds of the optimum: below, what the best policy known is worth."""

    def best_policy(self) -> Any:
        """The optimum, or the best policy known: with ``optimum``, ``bounds``, ``level`` and ``value(observation)``."""

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """The papers' policies and ours by name, made on demand."""

    def random_policy(self, action_space: Any, seed: int) -> Policy:
        """The market's random policy: that of its paper, otherwise uniform on the action box."""

    def reference_value(self) -> float:
        """The criterion of the reference policy."""

    def criterion_value(self, policy: Policy) -> float | None:
        """The criterion of a policy of the observation at its mode (without one: as it acts).

        None where that is not quick to find.
        """

    def evaluate(self, policy: Policy, deterministic: bool, progress: Progress | None) -> Evaluation | None:
        """Expectations under a policy of the observation, or None where they must be sampled."""

    def control_variate(self, policy: Policy) -> ControlVariate:
        """What a simulation of a policy is controlled with."""

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """The criterion and its standard error from those of a simulation's ``estimate``."""

    def expansions(self, action_space: gymnasium.Space[Any]) -> Expansions | FrozenChoices | None:
        """The local model of exact learners: what policies near a policy gain; None where it is not known."""

    def pnl_law(
        self, policy: Policy, deterministic: bool, progress: Progress | None = None, cells: float = math.inf
    ) -> PnlLaw | None:
        """Law of the final P&L; None where it is not known, or has more ``cells`` (steps times states)."""

    def price_noise(self) -> PriceNoise | None:
        """What chance adds to a step's gain beside the noise that environments integrate out; None: not known."""

    def clipped_share(self, base: Any, policy: Any, seed: int) -> float | None:
        """Share of decisions at which the quotes that a policy wants lie outside the action box; None: unknown."""

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Some states with their values and best controls, to print."""

    def cells(self, control_names: Sequence[str]) -> Mapping[str, Any]:
        """Columns of all steps and states with their values and best controls; examples where these are not finite."""


@singledispatch
def make_baseline(params: Any) -> Baseline:
    """The baseline of a market's parameters.

    Raises
    ------
    TypeError
        If the market has none.
    """
    raise TypeError(f"no baseline is known for parameters of type {type(params).__name__}")


@functools.lru_cache(maxsize=32, typed=True)  # parameters of two markets may be equal as tuples
def baseline_for(params: Any) -> Baseline:
    """The baseline of parameters, kept in memory; ``cache_clear()`` forgets all of them."""
    return make_baseline(params)


def environment_of(env: Any, **arguments: Any) -> Any:
    """The mmgym environment behind an environment, a vector environment, or an id with arguments.

    Wrappers around it must leave observations, actions and rewards alone (see `mmgym.baselines.wrappers`).

    Raises
    ------
    TypeError
        If it is not one of mmgym's, is in a wrapper that may change what a policy sees, does or earns, or arguments
        come without an id.
    """
    if isinstance(env, str):
        import mmgym  # noqa: F401  # registers the ids

        env, arguments = gymnasium.make(env, **arguments), {}
    if arguments:
        raise TypeError(f"arguments {sorted(arguments)} are allowed with an environment id only")
    base = unwrapped(env)
    if not hasattr(base, "params"):
        raise TypeError(f"{type(base).__name__} is not an mmgym environment: give one, a vector environment, or an id")
    return base


def _load(market: Market) -> None:
    """Have the baseline of a market registered: by its package of `mmgym.baselines`, or derived from a declaration.

    A market of somebody else registers its own with `make_baseline`.
    """
    if market.declaration is not None:
        import_module("mmgym.baselines.declared").register(market.declaration)
    elif make_baseline.dispatch(market.params_type) is make_baseline.dispatch(object):
        package = f"mmgym.baselines.{market.name}"
        if find_spec(package) is not None:
            import_module(package)


def baseline_of(env: Any, **arguments: Any) -> Baseline:
    """The baseline of an environment, a vector environment, or an id with constructor arguments.

    Raises
    ------
    TypeError
        If it is a batch whose rows have parameters of their own.
    """
    base = environment_of(env, **arguments)
    _load(base.market)
    if base.variation is None:
        return baseline_for(base.params)
    if not base.variation.laws:
        raise TypeError(
            "rows with parameters of their own have no one optimum: make an environment of one of them, "
            "gymnasium.make(id, **envs.unwrapped.arguments_of_row(i)), or give the law of parameters as randomise"
        )
    import_module("mmgym.baselines.randomised")
    return baseline_for(base.variation)


def optimal_controls(params: Any) -> Array:
    """Controls (N, S, C) of the optimum of these parameters: for policies that are the optimum of a simpler market."""
    solution = baseline_for(params).solution
    if solution is None:
        raise TypeError(f"parameters of type {type(params).__name__} have no optimum on finitely many states")
    return solution.controls


def best_lower(
    names: Mapping[str, Any] | list[str],
    rough: Callable[[str], tuple[float, float]],
    fine: Callable[[str], float] | None = None,
) -> tuple[str, float]:
    """Name and lower bound of the policy whose lower bound is the best.

    Parameters
    ----------
    names : list of str
        Of the policies.
    rough : callable
        Value of a policy, and how far it may be from the true one: the lower bound is their difference.
    fine : callable, optional
        Lower bound of a policy, found with more work: asked for where ``rough`` says that it may be the best.
    """
    values = {name: rough(name) for name in names}
    bounds = {name: value - error for name, (value, error) in values.items()}
    if fine is not None:
        highest = max(bounds.values())
        bounds = {name: fine(name) for name, (value, error) in values.items() if value + error >= highest}
    best = max(bounds, key=lambda name: bounds[name])
    return best, bounds[best]


class Bracketed(Protocol):
    """What `BestKnownPolicy` asks for: a baseline of which only bounds are known."""

    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound."""

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """As in `Baseline`."""

    def bounds(self) -> Bounds:
        """As in `Baseline`."""

    def upper(self) -> float:
        """The optimum, or its upper bound."""

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch (at most, where it is bracketed)."""


class BestKnownPolicy(PolicyThrough):
    """The policy with the best lower bound of all that a bracketed market knows: it acts as that one does.

    Which one it is, is found when it is first asked for.

    Attributes
    ----------
    name : str
        Among the market's policies.
    policy : Policy
    bounds : Bounds
    level : str
    optimum : float
        The upper bound of the optimum.
    paired_gap : pair of float or None
        How far apart the ends are on the same paths, and its standard error; None where they are not estimated so.
    """

    paired_gap: tuple[float, float] | None = None

    def __init__(self, baseline: "Bracketed") -> None:
        self._baseline = baseline

    @property
    def name(self) -> str:
        return self._baseline.best_known()[0]

    @cached_property
    def policy(self) -> Policy:
        return self._baseline.policies()[self.name]()

    @property
    def _policy(self) -> Policy:  # type: ignore[override]  # found when it is asked for
        return self.policy

    @property
    def quotes_of(self) -> Callable[[Any], Array] | None:  # type: ignore[override]
        """As the policy."""
        return self.policy.quotes_of

    @property
    def clips(self) -> Callable[[Any], Array] | None:  # type: ignore[override]
        """As the policy."""
        return self.policy.clips

    @property
    def bounds(self) -> Bounds:
        return self._baseline.bounds()

    @property
    def level(self) -> str:
        return self.bounds.level

    @property
    def optimum(self) -> float:
        return self._baseline.upper()

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch, by the market's value function."""
        return self._baseline.value(observation)


class SimulatedBaseline:
    """What a `Baseline` is without an exact one-step law: all that it does not know is simulated.

    Markets define `policies`, `best_known`, `upper`, `value` and `examples`, and override what they know better.
    """

    reference: str
    ours: tuple[str, ...] = ()
    only_bounds = False
    expected_utility = False
    problem: FrozenProblem | None = None
    solution: Solution | None = None
    evaluation_steps: int | None = None

    def __init__(self, params: Any) -> None:
        self.params = params

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """As in `Baseline`."""
        raise TypeError(f"{type(self).__name__} must define policies()")

    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound."""
        raise TypeError(f"{type(self).__name__} must define best_known()")

    def upper(self) -> float:
        """The optimum, or its upper bound."""
        raise TypeError(f"{type(self).__name__} must define upper()")

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch (at most, where it is bracketed)."""
        raise TypeError(f"{type(self).__name__} must define value()")

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """As in `Baseline`."""
        raise TypeError(f"{type(self).__name__} must define examples()")

    def cells(self, control_names: Sequence[str]) -> Mapping[str, Any]:
        """The examples."""
        rows = self.examples(control_names)
        return {name: [row[name] for row in rows] for name in rows[0]}

    def bounds(self) -> Bounds:
        """As in `Baseline`."""
        return Bounds(min(self.best_known()[1], self.upper()), self.upper(), 0.0)

    def best_policy(self) -> Any:
        """The policy with the best lower bound."""
        return BestKnownPolicy(self)

    def random_policy(self, action_space: Any, seed: int) -> Policy:
        """As in `Baseline`."""
        return RandomPolicy(action_space, seed)

    def value_of_reference(self) -> float:
        """The criterion of the reference policy, found anew: by simulation, if the market has no better way."""
        return self.simulated(self.policies()[self.reference](), 10_000, 0)[0]

    @cached_property
    def _reference_value(self) -> float:
        return self.value_of_reference()

    def reference_value(self) -> float:
        """As in `Baseline`."""
        return self._reference_value

    def criterion_value(self, policy: Policy) -> float | None:
        """None: not quick to find."""
        return None

    def evaluate(self, policy: Policy, deterministic: bool, progress: Progress | None) -> Evaluation | None:
        """None: expectations under a policy are sampled here."""
        return None

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`: the rewards themselves."""
        return Rewards()

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """As in `Baseline`: an expectation."""
        return mean, stderr

    def simulated(self, policy: Policy, count: int, seed: int, batch: int = 10_000) -> tuple[float, float]:
        """Criterion of a policy and its standard error, from ``count`` episodes in the market's own environment."""
        base, variate = self.environment(), self.control_variate(policy)
        sizes = [min(batch, count - first) for first in range(0, count, batch)]
        parts = [
            simulated_columns(base, policy, variate, size, seed + batch * i)["estimate"] for i, size in enumerate(sizes)
        ]
        sample = np.concatenate(parts)
        return self.converted(float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(count)))

    def environment(self) -> Any:
        """An environment with these parameters."""
        raise TypeError(f"{type(self).__name__} must define environment()")

    def expansions(self, action_space: gymnasium.Space[Any]) -> Expansions | FrozenChoices | None:
        """None: not known."""
        return None

    def pnl_law(
        self, policy: Policy, deterministic: bool, progress: Progress | None = None, cells: float = math.inf
    ) -> PnlLaw | None:
        """None: not known."""
        return None

    def price_noise(self) -> PriceNoise | None:
        """None: not known, or none that is left."""
        return None

    def clipped_share(self, base: Any, policy: Any, seed: int) -> float | None:
        """As in `Baseline`, from 200 episodes."""
        if policy.clips is None:
            return None
        envs, clipped, decisions = base.make_batch(CLIPPING_EPISODES), 0, 0
        for step in episodes(envs, policy, seed):
            clipped += int(policy.clips(step.decision.observations)[step.running].sum())
            decisions += int(step.running.sum())
        return clipped / decisions


class PaperPolicies(NamedTuple):
    """What the papers compare with: name -> function that returns its table, and the name with skill 0.

    A table is controls (N, S, C), or a `Table` with weights for a policy that draws its controls. ``ours`` are the
    names of those that no paper has.
    """

    tables: Mapping[str, Callable[[], Array | Table]]
    reference: str
    ours: tuple[str, ...] = ()


class OptimalPolicy(TablePolicy):
    """The optimum of an environment as built.

    Attributes
    ----------
    optimum : float
        The criterion from the environment's own initial state, in model units.
    solution : mmgym.baselines.frozen.Solution
        Controls and values of every step and state.
    bounds : Bounds
        Of the optimum: equal, with the error of the problem.
    level : str
        "exact" or, with an error, "certified".
    binding : (N, S, C) bool
        Where the bounds of the action space bind: nowhere if controls are discrete.
    """

    def __init__(self, problem: FrozenProblem, solution: Solution, bounds: Bounds) -> None:
        super().__init__(problem, solution.controls)
        self.solution = solution
        self.optimum, self.bounds, self.level = bounds.upper, bounds, bounds.level
        self.binding = problem.binding(solution.controls)

    def value(self, observation: Any) -> Array:
        """The criterion that can still be reached from an observation, or from each of a batch (currency)."""
        step, state = self._problem.locate(observation)
        return np.asarray(self.solution.values[step, state])


class Advantages(ControlVariate):
    """The optimum from the initial law plus the one-step advantages of what is played."""

    def __init__(self, problem: FrozenProblem, solution: Solution) -> None:
        self.problem, self.solution = problem, solution
        self.start = float(problem.initial @ solution.raw[0])

    def before(self, decision: Decision) -> Array:
        problem, solution, n = self.problem, self.solution, decision.number
        _, cells = problem.locate(decision.observations)
        quotes = decision.envs.to_quotes(decision.actions)
        gap: Array = frozen.advantages(problem, solution, n, cells, quotes) - solution.raw[n, cells]
        if problem.criterion.exponents is None:
            return gap
        scale = solution.log_scale[n] - solution.log_scale[0]
        weighted: Array = gap * np.exp(problem.log_weight(decision.info) + scale)
        return weighted


class FiniteBaseline:
    """The baseline of a market with finitely many states: all of it is exact, to the problem's tolerance.

    Parameters
    ----------
    params : NamedTuple
    problem : FrozenProblem
    papers : PaperPolicies
    """

    only_bounds = False

    def __init__(self, params: Any, problem: FrozenProblem, papers: PaperPolicies) -> None:
        self.params, self.papers = params, papers
        self.reference, self.ours = papers.reference, papers.ours
        self._problem = problem
        self.expected_utility = problem.criterion.exponents is not None
        self.evaluation_steps = (4 + problem.has_market_orders + self.expected_utility) * problem.num_steps

    @property
    def problem(self) -> FrozenProblem | None:
        """The exact one-step law."""
        return self._problem

    @cached_property
    def solution(self) -> Solution:
        """The optimum: kept in memory and, where it took long to find, on disk."""
        solution = load_solution(self._problem)
        if solution is None:
            started = time.perf_counter()
            solution = solve(self._problem)
            if time.perf_counter() - started > KEPT_SECONDS:
                save_solution(self._problem, solution)
        return solution

    def bounds(self) -> Bounds:
        """The optimum from the initial law."""
        raw = self._problem.initial @ self.solution.raw[0]
        optimum = float(self._problem.to_value(raw, self.solution.log_scale[0]))
        return Bounds(optimum, optimum, self._problem.tolerance)

    def best_policy(self) -> Any:
        """The optimum."""
        return OptimalPolicy(self._problem, self.solution, self.bounds())

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """As in `Baseline`."""

        def made(table: Callable[[], Array | Table]) -> Callable[[], Policy]:
            return lambda: table_policy(self._problem, table())

        return {name: made(table) for name, table in self.papers.tables.items()}

    def random_policy(self, action_space: Any, seed: int) -> Policy:
        """As in `Baseline`."""
        table = self.papers.tables.get("random")
        if table is None:
            return RandomPolicy(action_space, seed)
        return table_policy(self._problem, table(), seed)

    @cached_property
    def _reference_value(self) -> float:
        table = self.papers.tables[self.reference]()
        controls = table.controls if isinstance(table, Table) else table
        return criterion_value(self._problem, TablePolicy(self._problem, controls).controls)

    def reference_value(self) -> float:
        """As in `Baseline`."""
        return self._reference_value

    def criterion_value(self, policy: Policy) -> float | None:
        """As in `Baseline`."""
        return criterion_value(self._problem, tabulated(self._problem, policy, True)[0])

    def evaluate(self, policy: Policy, deterministic: bool, progress: Progress | None) -> Evaluation | None:
        """As in `Baseline`: all figures, by backward recursions."""
        problem = self._problem
        table, how = tabulated(problem, policy, deterministic)
        sums = (
            problem.criterion._replace(moments=2, exponents=None),
            frozen.PNL._replace(moments=2),
            Functional(fills=1.0),
            Functional(absolute_inventory=1.0),
            *([Functional(orders=1.0)] if problem.has_market_orders else []),
        )
        (mean, square), (pnl, pnl_square), fills, absolute_inventory, *orders = self._moments(table, sums, progress)
        value, utility = mean, None
        if self.expected_utility:
            values, log_scale = frozen.evaluate(problem, table, progress=progress)
            raw = problem.initial @ values[0, :, 0]
            value = float(problem.to_value(raw, log_scale[0]))
            with np.errstate(over="ignore"):
                utility = float(-raw * np.exp(log_scale[0]))
        return Evaluation(
            value=value,
            error=0.0,  # the tolerance is that of the bounds
            pnl=pnl,
            fills=fills[0],
            absolute_inventory=absolute_inventory[0],
            orders=orders[0][0] if orders else 0.0,
            std=frozen.deviation(mean, square),
            pnl_std=frozen.deviation(pnl, pnl_square),
            utility=utility if utility is not None and math.isfinite(utility) else None,
            method=how,
        )

    def _moments(self, table: Table, sums: Sequence[Functional], progress: Progress | None) -> list[list[float]]:
        """The moments of each of several sums from the initial law; ``progress`` is called after each step."""
        problem = self._problem
        values = (frozen.evaluate(problem, table, functional, progress)[0][0] for functional in sums)
        return [(problem.initial @ first).tolist() for first in values]

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`."""
        return Advantages(self._problem, self.solution)

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """As in `Baseline`; under CARA by the delta method."""
        exponents = self._problem.criterion.exponents
        value = float(self._problem.to_value(np.array(mean), self.solution.log_scale[0]))
        return value, stderr if exponents is None else stderr / (-float(exponents[0]) * mean)

    def expansions(self, action_space: gymnasium.Space[Any]) -> Expansions | FrozenChoices | None:
        """As in `Baseline`; with discrete actions, choices (`mmgym.baselines.choices`)."""
        sizes = component_sizes(action_space)
        if sizes is not None:
            return FrozenChoices(self._problem, sizes)
        if not isinstance(action_space, gymnasium.spaces.Box):
            raise TypeError(f"exact_gradient needs a box of actions or discrete ones, not {action_space}")
        return FrozenExpansions(self._problem)

    def pnl_law(
        self, policy: Policy, deterministic: bool, progress: Progress | None = None, cells: float = math.inf
    ) -> PnlLaw | None:
        """As in `Baseline`."""
        if self._problem.num_steps * self._problem.num_states > cells:
            return None
        return pnl_law(self._problem, tabulated(self._problem, policy, deterministic)[0], progress=progress)

    def price_noise(self) -> PriceNoise | None:
        """None: not known, or none that is left."""
        return None

    def clipped_share(self, base: Any, policy: Any, seed: int) -> float | None:
        """As in `Baseline`, of tables, by the law of the state."""
        if not isinstance(policy, TablePolicy):
            return None
        cells, shape = policy.clipped_cells, (self._problem.num_steps, self._problem.num_states)
        if cells.shape != shape:
            return None
        if not cells.any():
            return 0.0
        laws = frozen.state_laws(self._problem, policy.controls)[:-1]
        return float((laws * cells).sum() / self._problem.num_steps)

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """About seven inventories, at three values of the other coordinates, at four steps."""
        problem = self._problem
        steps = np.arange(0, problem.num_steps, max(problem.num_steps // 4, 1))
        columns = self._cells(control_names, steps, np.array(_some_states(problem.coordinates)))
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def cells(self, control_names: Sequence[str]) -> dict[str, Array]:
        """Every step and state."""
        return self._cells(control_names, np.arange(self._problem.num_steps), np.arange(self._problem.num_states))

    def _cells(self, control_names: Sequence[str], steps: Array, states: Array) -> dict[str, Array]:
        rows, columns = np.repeat(steps, len(states)), np.tile(states, len(steps))
        controls = self.solution.controls[rows, columns].T
        return {
            "step": rows,
            **{name: values[columns] for name, values in self._problem.coordinates.items()},
            "value": self.solution.values[rows, columns],
            **dict(zip(control_names, controls, strict=True)),
        }


class TogetherBaseline(FiniteBaseline):
    """A finite baseline whose sums are evaluated in one backward pass."""

    def __init__(self, params: Any, problem: TogetherProblem, papers: PaperPolicies) -> None:
        super().__init__(params, problem, papers)
        self._together = problem
        self.evaluation_steps = (1 + self.expected_utility) * problem.num_steps

    def _moments(self, table: Table, sums: Sequence[Functional], progress: Progress | None) -> list[list[float]]:
        problem, functionals = self._together, tuple(sums)
        columns = frozen.columns_of(functionals)
        values = np.empty((problem.num_states, 1 + max(map(max, columns))))
        for own, functional in zip(columns, functionals, strict=True):
            values[:, own] = problem.terminal(functional)
        for n in reversed(range(problem.num_steps)):
            values = frozen.backward_step(problem.backward_together, n, table, values, functionals)
            if progress is not None:
                progress(1)
        first = problem.initial @ values
        return [first[own].tolist() for own in columns]


def _some_states(coordinates: Mapping[str, Array]) -> list[int]:
    """Some states to print: about seven inventories (or of the first coordinate), at three values of the others.

    Inventory 0 is among them.
    """
    shown = "inventory" if "inventory" in coordinates else next(iter(coordinates))
    levels = np.unique(coordinates[shown])
    apart = max((len(levels) - 1) // 6, 1)
    chosen = np.isin(coordinates[shown], levels[int(np.abs(levels).argmin()) % apart :: apart])
    for name, values in coordinates.items():
        if name != shown:
            others = np.unique(values)
            chosen &= np.isin(values, others[np.unique(np.linspace(0, len(others) - 1, 3).astype(int))])
    return [int(s) for s in np.flatnonzero(chosen)]
