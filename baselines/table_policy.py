"""Policies that are tables over steps and states, and the tables that policies of the observation play."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import FrozenProblem, Table, require_probabilities, tabulate, tabulate_distribution
from mmgym.baselines.policy import StatelessPolicy, title

__all__ = ["MixedTablePolicy", "TablePolicy", "require_repeated", "table_policy", "tabulated"]

Array = NDArray[Any]

ASKED_AGAIN = 32_768  # cells of whole steps at which a policy is asked twice


class _Tabulated(StatelessPolicy):
    """What tables behind `predict` share: the cell of an observation."""

    _problem: FrozenProblem

    def quotes_of(self, actions: Any) -> Array:
        """Quotes in model units that its actions stand for."""
        return self._problem.controls(actions)

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


def table_policy(problem: FrozenProblem, table: Array | Table, seed: int = 0) -> TablePolicy | MixedTablePolicy:
    """The policy that plays a table: controls (N, S, C), or a `Table`, whose weights make it a stochastic policy."""
    if isinstance(table, Table) and table.weights is not None:
        return MixedTablePolicy(problem, table, seed)
    return TablePolicy(problem, table.controls if isinstance(table, Table) else table)


def tabulated(problem: FrozenProblem, policy: Any, deterministic: bool) -> tuple[Table, str]:
    """The table that a policy of the observation plays, and how: "exact", or "exact, as it acts" (by its distribution).

    A mode is asked for again at up to 32,768 cells, or one step: all states of steps spread over the horizon. What a
    policy answers differently at other steps alone is not noticed.

    Parameters
    ----------
    problem : FrozenProblem
    policy : Policy
    deterministic : bool
        Whether a stochastic policy is tabulated at its mode, if it has one, or as it acts.

    Raises
    ------
    ValueError
        If the policy draws its actions and has no distribution, or its actions are of a wrong shape or not finite.
    """
    if deterministic and policy.has_mode:
        mode = tabulate(problem, policy)
        count = max(1, ASKED_AGAIN // problem.num_states)
        again = np.unique(np.linspace(0, problem.num_steps - 1, min(count, problem.num_steps)).astype(np.int64))
        require_repeated(policy, mode.controls[again], tabulate(problem, policy, steps=again).controls)
        return mode, "exact"
    if policy.distribution is not None:
        return tabulate_distribution(problem, policy), "exact, as it acts"
    if deterministic:
        raise ValueError(f"{title(policy)} has no mode and no distribution(): use method='simulated'")
    mode = tabulate(problem, policy)
    if not np.array_equal(mode.controls, tabulate(problem, policy, deterministic=False).controls):
        raise ValueError(f"{title(policy)} draws its actions, but has no distribution(): use method='simulated'")
    return mode, "exact"


def require_repeated(policy: Any, first: Array, second: Array) -> None:
    """Refuse a policy whose answers to the same observations differ.

    Raises
    ------
    ValueError
        If they do, beyond the rounding of a network.
    """
    if not np.allclose(first, second, rtol=1e-5, atol=1e-6):
        raise ValueError(
            "the policy says that it is a function of the observation (markov), but answers the same observations "
            "differently when it is asked twice: use method='simulated', markov=False, or give it a distribution()"
        )
