"""Baselines of declared markets (`mmgym.declare`): the frozen-control problem and the author's policies."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare
from mmgym.baselines.baseline import PaperPolicies, TogetherBaseline, make_baseline
from mmgym.baselines.declared.one_step import DeclaredProblem
from mmgym.baselines.frozen import Table
from mmgym.baselines.policy import Policy, RandomPolicy, uniform_nodes

__all__ = ["DeclaredProblem", "policy_tables", "register"]

MOST_NODES = 2_000  # of a random policy whose value is summed, not simulated


def policy_tables(declared: declare.Market, params: Any) -> PaperPolicies:
    """The author's named policies as tables; of choices also the uniform one on those that are allowed."""
    rows = declared.states(params)
    names = [coordinate.name for coordinate in declared.coordinates]
    coordinates = dict(zip(names, rows.T, strict=True))
    shape = (len(rows), len(declared.controls))

    def table(policy: Callable[..., Any]) -> NDArray[np.float64]:
        found = np.empty((params.num_steps, *shape))
        for n in range(params.num_steps):
            controls = policy(params, coordinates, n)
            given = np.moveaxis(controls, -1, 0) if isinstance(controls, np.ndarray) else controls
            columns = [np.broadcast_to(column, len(rows)) for column in given]
            if len(columns) != shape[1]:
                raise ValueError(
                    f"{declared.name}: the policy {declare.function_name(policy)} gives {len(columns)} controls of "
                    f"{shape[1]}"
                )
            found[n] = np.stack(columns, axis=1)
        return found

    def uniform() -> Table:
        problem = DeclaredProblem(declared, params)
        low = problem.low_controls
        choices = problem.choices
        weights = np.empty((params.num_steps, len(rows), len(choices)))
        for n in range(params.num_steps):
            entries = declare.allowed_entries(declared, params, n)
            index = (choices - low).astype(np.int64)
            open_ = np.stack([entries[:, j, index[:, j]] for j in range(len(low))]).all(axis=0)
            weights[n] = open_ / open_.sum(axis=1, keepdims=True)
        return Table(np.broadcast_to(choices, (params.num_steps, len(rows), *choices.shape)), weights)

    tables: dict[str, Callable[[], Any]] = {
        name: functools.partial(table, policy) for name, policy in declared.policies.items()
    }
    if not declared.boxed.any():
        tables["random"] = uniform
    ours = tuple(name for name in tables if name not in declared.papers)
    return PaperPolicies(tables, reference=next(iter(declared.policies)), ours=ours)


class RandomMixedPolicy(RandomPolicy):
    """Actions uniform on a box with columns that are cut into the entries of choices, all equally likely.

    Parameters
    ----------
    action_space : gymnasium.spaces.Box
        Of one environment.
    problem : DeclaredProblem
    seed : int
        Of the actions drawn by `predict`.
    """

    def __init__(self, action_space: Any, problem: DeclaredProblem, seed: int) -> None:
        super().__init__(action_space, seed)
        self._problem = problem
        boxes = int(problem.declared.boxed.sum())
        self.markov = len(problem.choices) * self.nodes**boxes <= MOST_NODES

    def distribution(self, observations: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Every combination of choices with Gauss-Legendre nodes of the boxes (B, M, A), and weights (B, M)."""
        choices, boxed = self._problem.choices, self._problem.declared.boxed
        grid, weights = uniform_nodes(self.nodes, int(boxed.sum()))
        nodes = np.repeat(self._problem.actions(choices), len(grid), axis=0)
        nodes[:, boxed] = np.tile(grid, (len(choices), 1))
        shares = np.tile(weights, len(choices)) / len(choices)
        count = len(observations)
        return np.broadcast_to(nodes, (count, *nodes.shape)), np.broadcast_to(shares, (count, len(shares)))


class DeclaredBaseline(TogetherBaseline):
    """Of markets with boxes and choices: their random policy is known exactly."""

    def random_policy(self, action_space: Any, seed: int) -> Policy:
        """Uniform on the action box."""
        problem = self.problem
        assert isinstance(problem, DeclaredProblem)
        return RandomMixedPolicy(action_space, problem, seed)


def register(declared: declare.Market) -> None:
    """Make the baseline of a declared market known."""

    def baseline(params: Any) -> TogetherBaseline:
        kind = DeclaredBaseline if declared.boxed.any() and not declared.boxed.all() else TogetherBaseline
        return kind(params, DeclaredProblem(declared, params), policy_tables(declared, params))

    make_baseline.register(declared.params, baseline)
