"""The named policies of an environment: its optimum and the policies of the papers, as tables behind `predict`."""

import functools
import time
from collections.abc import Callable, Mapping
from functools import singledispatch
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import (
    FrozenProblem,
    Solution,
    Table,
    criterion_value,
    frozen_problem,
    require_probabilities,
    solve,
)
from mmgym.baselines.numerical import Bounds, NumericalBaseline, numerical_baseline
from mmgym.baselines.policy import StatelessPolicy
from mmgym.baselines.solution_cache import load_solution, save_solution
from mmgym.baselines.wrappers import unwrapped
from mmgym.market import Market

__all__ = [
    "MixedTablePolicy",
    "NoOptimum",
    "OptimalPolicy",
    "PaperPolicies",
    "RandomPolicy",
    "TablePolicy",
    "best_known_policy",
    "environment_of",
    "level_of",
    "numerical_of",
    "optimal_controls",
    "optimal_policy",
    "paper_policies",
    "paper_tables",
    "params_of",
    "policy_origins",
    "problem_of",
    "random_policy",
    "reference_policy",
    "reference_value",
    "table_policy",
    "uniform_nodes",
]

Array = NDArray[Any]


class NoOptimum(LookupError):  # noqa: N818  # the public name
    """The optimum of a market is not known, only bounds."""


KEPT_SECONDS = 0.5  # a solution that took longer is kept on disk


class PaperPolicies(NamedTuple):
    """What the papers compare with: name -> function that returns its table, and the name with skill 0.

    A table is controls (N, S, C), or a `Table` with weights for a policy that draws its controls. ``ours`` are the
    names of those that no paper has.
    """

    tables: Mapping[str, Callable[[], Array | Table]]
    reference: str
    ours: tuple[str, ...] = ()


@singledispatch
def paper_tables(params: Any) -> PaperPolicies:
    """The paper policies of a market's parameters.

    Raises
    ------
    TypeError
        If the market has none.
    """
    raise TypeError(f"no paper policies are known for parameters of type {type(params).__name__}")


class _Tabulated(StatelessPolicy):
    """What tables behind `predict` share: the cell of an observation."""

    _problem: FrozenProblem

    def _cells(self, observations: Any) -> tuple[Array, Array]:
        """Step and state; a terminal observation has the last step's."""
        step, state = self._problem.locate(observations)
        return np.minimum(step, self._problem.num_steps - 1), state


class TablePolicy(_Tabulated):
    """A policy of the observation, tabulated over steps and states: acting is a look-up.

    Parameters
    ----------
    problem : FrozenProblem
    controls : (N, S, C)
        Controls in model units. Where they lie outside the action space the nearest action is played.

    Attributes
    ----------
    controls : (N, S, C)
        What is played, in model units.
    actions : (N, S, A)
        The same as actions.
    clipped_cells : (N, S) bool
        Cells whose controls lay outside the action space.
    clipped : int
        Their number.
    """

    def __init__(self, problem: FrozenProblem, controls: Array) -> None:
        self._problem = problem
        self.actions = problem.actions(controls)
        self.controls = problem.controls(self.actions)
        tolerance = 1e-6 * (1.0 + np.abs(self.controls))
        with np.errstate(invalid="ignore"):
            self.clipped_cells = (np.abs(self.controls - controls) > tolerance).any(axis=-1)
        self.clipped = int(self.clipped_cells.sum())

    def act(self, observation: Any) -> Array:
        """Action of one observation, or actions of a batch; a terminal observation gets the last step's action."""
        return self.actions[self._cells(observation)]


class MixedTablePolicy(_Tabulated):
    """A policy that draws its controls from a table of them, independently at every step.

    Parameters
    ----------
    problem : FrozenProblem
    table : Table
        Controls (N, S, M, C) and weights (N, S, M).
    seed : int
        Of the actions drawn by `predict`.
    """

    has_mode = False  # a score must not be taken at one draw of its actions

    def __init__(self, problem: FrozenProblem, table: Table, seed: int = 0) -> None:
        if table.weights is None:
            raise ValueError("a table without weights is a TablePolicy")
        require_probabilities(table.weights)
        self._problem = problem
        self._random = np.random.default_rng(seed)
        self.actions = problem.actions(table.controls)
        self.weights = table.weights

    def act(self, observation: Any) -> Array:
        """Drawn actions."""
        actions, weights = self.distribution(observation)
        total = np.cumsum(weights, axis=-1)
        draw = self._random.random(total.shape[:-1])[..., None] * total[..., -1:]
        chosen = (draw >= total).sum(axis=-1)
        cell = np.ix_(*map(np.arange, chosen.shape)) if chosen.shape else ()
        drawn: Array = actions[(*cell, chosen)]
        return drawn

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """Actions (B, M, A) and weights (B, M)."""
        cells = self._cells(observations)
        return self.actions[cells], self.weights[cells]


class OptimalPolicy(TablePolicy):
    """The optimum of an environment as built.

    Attributes
    ----------
    optimum : float
        The criterion from the environment's own initial state, in model units.
    solution : mmgym.baselines.frozen.Solution
        Controls and values of every step and state.
    bounds : mmgym.baselines.numerical.Bounds
        Of the optimum: equal, with the error of the problem.
    level : str
        "exact" or, with an error, "certified".
    binding : (N, S, C) bool
        Where the bounds of the action space bind: nowhere if controls are discrete.
    """

    def __init__(self, problem: FrozenProblem, solution: Solution) -> None:
        super().__init__(problem, solution.controls)
        self.solution = solution
        self.optimum = float(problem.to_value(problem.initial @ solution.raw[0], solution.log_scale[0]))
        self.bounds = Bounds(self.optimum, self.optimum, problem.tolerance)
        self.level = self.bounds.level
        self.binding = problem.binding(solution.controls)

    def value(self, observation: Any) -> Array:
        """The criterion that can still be reached from an observation, or from each of a batch (currency)."""
        step, state = self._problem.locate(observation)
        return np.asarray(self.solution.values[step, state])


def uniform_nodes(nodes: int, dimensions: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes (nodes^D, D) and weights of the uniform law on ``[-1, 1]^D``."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    grid = np.stack(np.meshgrid(*[x] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    return grid, functools.reduce(np.multiply.outer, [w / 2.0] * dimensions).ravel()


class RandomPolicy(StatelessPolicy):
    """Actions uniform on the action box.

    Parameters
    ----------
    action_space : gymnasium.spaces.Box
        Of one environment.
    seed : int
        Of the actions drawn by `predict`.

    Attributes
    ----------
    markov : bool
        True for up to two actions. For more its quadrature would have too many nodes: scores are then simulated.
    """

    has_mode = False  # a score must not be taken at one draw of its actions
    nodes = 12  # per dimension: 1e-9 of the value where a step has few fills, 1e-4 where it has fifty

    def __init__(self, action_space: gymnasium.spaces.Box, seed: int = 0) -> None:
        self._space = action_space
        self._random = np.random.default_rng(seed)
        self.markov = action_space.low.size <= 2

    def act(self, observation: Any) -> Array:
        """Uniform actions."""
        batch = np.shape(observation)[:-1]
        low, high = self._space.low, self._space.high
        return self._random.uniform(low, high, (*batch, *low.shape)).astype(self._space.dtype)

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """Gauss-Legendre nodes (B, M, A) and weights (B, M) of the uniform law."""
        grid, weights = uniform_nodes(self.nodes, self._space.low.size)
        center, reach = 0.5 * (self._space.high + self._space.low), 0.5 * (self._space.high - self._space.low)
        batch = len(observations)
        nodes = np.broadcast_to(center + reach * grid, (batch, *grid.shape))
        return nodes, np.broadcast_to(weights, (batch, len(weights)))


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


def params_of(env: Any, **arguments: Any) -> Any:
    """Parameters of an environment, a vector environment, or an id with constructor arguments: see `environment_of`."""
    return environment_of(env, **arguments).params


def _load(market: Market) -> None:
    """Import the market's baselines, which register themselves."""
    if market.declaration is None:
        import_module(f"mmgym.baselines.{market.name}")
    else:
        import_module("mmgym.baselines.declared").register(market.declaration)


@functools.lru_cache(maxsize=64, typed=True)
def _problem(params: Any) -> FrozenProblem:
    return frozen_problem(params)


@functools.lru_cache(maxsize=16, typed=True)
def _solution(params: Any) -> Solution:
    """The optimum: kept in memory and, where it took long to find, on disk."""
    problem = _problem(params)
    found = load_solution(problem)
    if found is None:
        started = time.perf_counter()
        found = solve(problem)
        if time.perf_counter() - started > KEPT_SECONDS:
            save_solution(problem, found)
    return found


def optimal_controls(params: Any) -> Array:
    """Controls (N, S, C) of the optimum of these parameters: for policies that are the optimum of a simpler market."""
    return _solution(params).controls


def table_policy(problem: FrozenProblem, table: Array | Table, seed: int = 0) -> TablePolicy | MixedTablePolicy:
    """The policy that plays a table: controls (N, S, C), or a `Table`, whose weights make it a stochastic policy."""
    if isinstance(table, Table) and table.weights is not None:
        return MixedTablePolicy(problem, table, seed)
    return TablePolicy(problem, table.controls if isinstance(table, Table) else table)


def problem_of(env: Any, **arguments: Any) -> FrozenProblem:
    """The frozen-control problem of an environment (see `params_of`).

    Raises
    ------
    TypeError
        If the market's states are not finitely many (see `numerical_of`).
    """
    base = environment_of(env, **arguments)
    if numerical_of(base) is not None:
        raise TypeError(f"{base.market.name} has continuous coordinates: it has no exact one-step law on finite states")
    return _problem(base.params)


@functools.lru_cache(maxsize=16, typed=True)
def _numerical(params: Any) -> NumericalBaseline | None:
    return numerical_baseline(params)


def numerical_of(env: Any, **arguments: Any) -> NumericalBaseline | None:
    """The numerical baseline of an environment with continuous coordinates; None where states are finitely many."""
    base = environment_of(env, **arguments)
    _load(base.market)
    return _numerical(base.params)


def level_of(env: Any, **arguments: Any) -> str:
    """How exactly the optimum of an environment is known, as its bounds say: "exact", "certified" or "bracketed"."""
    found: str = best_known_policy(env, **arguments).level
    return found


def optimal_policy(env: Any, **arguments: Any) -> Any:
    """The optimal policy of an environment as built: its steps, order size, bounds and utility.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.

    Returns
    -------
    OptimalPolicy, or a `mmgym.baselines.numerical.NumericalPolicy`
        Its ``optimum`` is the criterion from the environment's own initial state.

    Raises
    ------
    NoOptimum
        If only bounds of the optimum are known.
    """
    base = environment_of(env, **arguments)
    numerical = numerical_of(base)
    best = best_known_policy(base)
    if numerical is not None and (numerical.only_bounds or best.level == "bracketed"):
        raise NoOptimum("only bounds of this market's optimum are known: use best_known_policy")
    return best


def best_known_policy(env: Any, **arguments: Any) -> Any:
    """The best policy known: the optimal one, or the one with the best lower bound of all that the market knows."""
    base = environment_of(env, **arguments)
    numerical = numerical_of(base)
    if numerical is not None:
        return numerical.best_policy()
    return OptimalPolicy(_problem(base.params), _solution(base.params))


def paper_policies(env: Any, **arguments: Any) -> dict[str, Any]:
    """Policies to compare with, by name: the papers', and ours (`policy_origins`).

    ``random`` is uniform on the action box if no paper has one.
    """
    base = environment_of(env, **arguments)
    numerical = numerical_of(base)
    if numerical is not None:
        policies: dict[str, Any] = {name: make() for name, make in numerical.policies().items()}
    else:
        problem = _problem(base.params)
        policies = {name: table_policy(problem, table()) for name, table in paper_tables(base.params).tables.items()}
    return policies | {"random": random_policy(base)}


def policy_origins(env: Any, **arguments: Any) -> dict[str, str]:
    """Where the `paper_policies` of an environment come from: name -> "paper" or "ours"."""
    base = environment_of(env, **arguments)
    numerical = numerical_of(base)
    found = numerical if numerical is not None else paper_tables(base.params)
    names = list(numerical.policies() if numerical is not None else paper_tables(base.params).tables)
    papers = [name for name in names if name not in found.ours]
    return {name: "paper" if name in papers else "ours" for name in [*names, "random"]}


def random_policy(env: Any, seed: int = 0, **arguments: Any) -> Any:
    """The market's random policy: that of its paper, otherwise uniform on the action box.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    seed : int
        Of the actions drawn by `predict`.
    """
    base = environment_of(env, **arguments)
    if numerical_of(base) is None:
        table = paper_tables(base.params).tables.get("random")
        if table is not None:
            return table_policy(_problem(base.params), table(), seed)
    return RandomPolicy(getattr(base, "single_action_space", base.action_space), seed)


def reference_policy(env: Any, **arguments: Any) -> Any:
    """The policy whose skill is 0."""
    base = environment_of(env, **arguments)
    numerical = numerical_of(base)
    if numerical is not None:
        return numerical.policies()[numerical.reference]()
    return TablePolicy(_problem(base.params), _reference_controls(paper_tables(base.params)))


def _reference_controls(found: PaperPolicies) -> Array:
    table = found.tables[found.reference]()
    return table.controls if isinstance(table, Table) else table


@functools.lru_cache(maxsize=64, typed=True)
def _reference_value(params: Any) -> float:
    numerical = _numerical(params)
    if numerical is not None:
        return numerical.reference_value()
    found = paper_tables(params)
    problem = _problem(params)
    return criterion_value(problem, TablePolicy(problem, _reference_controls(found)).controls)


def reference_value(env: Any, **arguments: Any) -> float:
    """Criterion of the reference policy, in model units."""
    base = environment_of(env, **arguments)
    _load(base.market)
    return _reference_value(base.params)
