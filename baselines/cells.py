"""What policies quote, are worth and lose by step and state, as tables: what `mmgym.plot` draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.baselines.baseline import baseline_of
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.foreign import opened, player_in
from mmgym.baselines.frozen import evaluate, state_laws
from mmgym.baselines.regret import RegretMap, regret_by_state, regret_map
from mmgym.baselines.table_policy import tabulated

__all__ = ["FRACTIONS", "policy_cells", "regret_maps"]

FRACTIONS = (0.0, 0.5, 0.9)  # of the episode

Array = NDArray[Any]


def policy_cells(
    env: Any, policies: Mapping[str, Any], fractions: Sequence[float] = FRACTIONS, **arguments: Any
) -> pd.DataFrame:
    """Quotes and values of policies in every state, at a few steps.

    Parameters
    ----------
    env : environment, vector environment or id
        With finitely many states; with an id, ``arguments`` are those of its constructor.
    policies : mapping of str to Policy
        Functions of the observation; a stochastic one is taken at its mode.
    fractions : sequence of float
        Of the episode, in [0, 1).

    Returns
    -------
    DataFrame
        ``policy``, ``step``, ``time``, the coordinates of the state, the controls (in model units), ``value`` (what
        remains from there; currency) and ``chance`` (of being there under the optimum).

    Raises
    ------
    TypeError
        If the market's states are not finitely many.
    """
    base = opened(env, **arguments)[1]
    problem, baseline = problem_of(base), baseline_of(base)
    solution = baseline.solution
    laws = None if solution is None else state_laws(problem, solution.controls)
    steps = sorted({min(int(f * problem.num_steps), problem.num_steps - 1) for f in fractions})
    frames = []
    for name, policy in policies.items():
        player = player_in(base if isinstance(env, str) else env, policy, True)[1]
        table = tabulated(problem, player, True)[0]
        controls = table.controls if table.weights is None else (table.controls * table.weights[..., None]).sum(axis=2)
        raw, log_scale = evaluate(problem, table)
        values = problem.to_value(raw[..., 0], log_scale[:, None])
        for n in steps:
            columns = {
                "policy": name,
                "step": n,
                "time": n * base.params.horizon / problem.num_steps,
                **problem.coordinates,
                **dict(zip(base.control_names, controls[n].T, strict=True)),
                "value": values[n],
                "chance": np.nan if laws is None else laws[n],
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def regret_maps(env: Any, policies: Mapping[str, Any], **arguments: Any) -> dict[str, RegretMap]:
    """Where policies lose value: their regret by time and by each coordinate of the state, exactly.

    Parameters
    ----------
    env, policies
        As in `policy_cells`.

    Raises
    ------
    TypeError, ValueError
        If the market's states are not finitely many, or its criterion is not an expectation (CARA).
    """
    maps = {}
    for name, policy in policies.items():
        base, player = player_in(env, policy, True, **arguments)
        problem, solution = problem_of(base), baseline_of(base).solution
        if solution is None:
            raise TypeError("the optimum of this market is no table: there is no map of the regret to it")
        maps[name] = regret_map(problem, regret_by_state(problem, solution, tabulated(problem, player, True)[0]))
    return maps
