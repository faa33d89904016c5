"""Where a policy loses value: its regret by step and state, exactly, through the advantage identity.

For a criterion that is an expectation, ``V*(initial) - V(initial) = sum_n sum_s P(state n = s) (V*_n(s) - Q*_n(s, a))``
with the law of the state under the policy and the action ``a`` that it plays there (Kakade & Langford 2002, lemma 6.1).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import FrozenProblem, Solution, Table, state_laws

__all__ = ["RegretMap", "regret_by_state", "regret_map"]

Array = NDArray[Any]


def regret_by_state(problem: FrozenProblem, solution: Solution, table: Table) -> Array:
    """Regret (N, S) that a policy incurs at each step and state, in currency; its sum is the regret.

    Parameters
    ----------
    problem : FrozenProblem
    solution : Solution
        The optimum of the problem.
    table : Table
        What the policy plays.

    Raises
    ------
    ValueError
        If the criterion is not an expectation (CARA): the identity holds for sums only.
    """
    if problem.criterion.exponents is not None:
        raise ValueError("the regret of an exponential criterion is not a sum over steps")
    laws, states = state_laws(problem, table), np.arange(problem.num_states)
    lost = np.empty((problem.num_steps, problem.num_states))
    for n in range(problem.num_steps):
        following, controls = solution.raw[n + 1][:, None], table.controls[n]
        if table.weights is None:
            played = problem.backward(n, states, controls, following, problem.criterion)[:, 0]
        else:
            nodes = controls.shape[1]
            pairs = np.repeat(states, nodes), controls.reshape(-1, controls.shape[-1])
            values = problem.backward(n, *pairs, following, problem.criterion)[:, 0]
            played = (values.reshape(-1, nodes) * table.weights[n]).sum(axis=1)
        lost[n] = laws[n] * (solution.raw[n] - played)
    return lost


class RegretMap(NamedTuple):
    """Regret in cells of time and of one coordinate of the state; the cells sum to the regret."""

    times: Array  # (T + 1,) edges, in fractions of the episode
    levels: Mapping[str, Array]  # coordinate -> (L,) its levels, in model units
    cells: Mapping[str, Array]  # coordinate -> (T, L)


def regret_map(problem: FrozenProblem, regret: Array, pieces: int = 40) -> RegretMap:
    """Regret (N, S) summed over pieces of time and, for each coordinate of the state, over all others."""
    edges = np.unique(np.linspace(0, problem.num_steps, pieces + 1).round().astype(int))
    by_time = np.add.reduceat(regret, edges[:-1], axis=0)
    levels, cells = {}, {}
    for name, values in problem.coordinates.items():
        levels[name], where = np.unique(values, return_inverse=True)
        cells[name] = np.stack([by_time[:, where == level].sum(axis=1) for level in range(len(levels[name]))], axis=1)
    return RegretMap(edges / problem.num_steps, levels, cells)
