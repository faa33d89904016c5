"""Baselines of declared markets (`mmgym.declare`): the frozen-control problem and the author's policies."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare
from mmgym.baselines.baseline import PaperPolicies, make_baseline
from mmgym.baselines.declared.baseline import DeclaredBaseline
from mmgym.baselines.declared.beliefs import Beliefs
from mmgym.baselines.declared.hidden import BlindBaseline, HiddenBaseline
from mmgym.baselines.declared.one_step import DeclaredProblem
from mmgym.baselines.frozen import Table

__all__ = ["DeclaredProblem", "policy_tables", "register"]


def policy_tables(declared: declare.Market, params: Any) -> PaperPolicies:
    """The author's named policies as tables; of choices also the uniform one on those that are allowed.

    States that are observed alike have the controls of the one that stands for them.
    """
    rows, alike = declared.states(params), declared.alike(params)
    names = [coordinate.name for coordinate in declared.coordinates]
    coordinates = dict(zip(names, rows.T, strict=True))
    shape = (len(rows), len(declared.controls))

    def table(policy: Callable[..., Any]) -> NDArray[np.float64]:
        depths = np.empty((params.num_steps, *shape))
        for n in range(params.num_steps):
            controls = policy(params, coordinates, n)
            given = np.moveaxis(controls, -1, 0) if isinstance(controls, np.ndarray) else controls
            columns = [np.broadcast_to(column, len(rows)) for column in given]
            if len(columns) != shape[1]:
                raise ValueError(
                    f"{declared.name}: the policy {declare.function_name(policy)} gives {len(columns)} controls of "
                    f"{shape[1]}"
                )
            depths[n] = np.stack(columns, axis=1)[alike]
        return depths

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


def register(declared: declare.Market) -> None:
    """Make the baseline of a declared market known."""

    def baseline(params: Any) -> DeclaredBaseline:
        problem, papers = DeclaredProblem(declared, params), policy_tables(declared, params)
        if declared.observed(params).all():
            return DeclaredBaseline(params, problem, papers)
        beliefs = Beliefs(problem)
        return (BlindBaseline if beliefs.never_move else HiddenBaseline)(params, beliefs, papers)

    make_baseline.register(declared.params, baseline)
