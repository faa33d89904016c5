"""Policies written to files as tables, so that others can be trained against them without the code that made them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from baselines.catalogue import environment_of, problem_of
from baselines.frozen import Table, tabulate, tabulate_distribution

__all__ = ["read_table", "write_table"]

FORMAT = 1


def write_table(policy: Any, env: Any, path: str | Path, *, deterministic: bool = True, **arguments: Any) -> Path:
    """Tabulate a policy of the observation in an environment, and write the table.

    The file is an npz of ``controls``, float64 in model units, shape (N, S, C), or (N, S, M, C) with ``weights`` (N, S,
    M) for a policy as it acts, and ``description``, a JSON text: the market, its arguments, the role and the names of
    the controls. It holds no pickled objects. The table of a taker is a ``population`` of the mean-field market.

    Parameters
    ----------
    policy : Policy or callable
        A function of the observation, trained networks included.
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    path : str or Path
        Written as given; an existing file is replaced.
    deterministic : bool
        Whether a stochastic policy is tabulated at its mode, or as it acts (it needs a ``distribution``).

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If the policy has no mode, or is asked for as it acts and has no distribution.
    """
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    if not hasattr(policy, "predict"):
        from baselines.policy import CallablePolicy

        policy = CallablePolicy(policy, True)
    if deterministic and getattr(policy, "has_mode", True):
        table = tabulate(problem, policy)
    elif hasattr(policy, "distribution"):
        table = tabulate_distribution(problem, policy)
    else:
        raise ValueError(f"{type(policy).__name__} has no distribution(): it can be tabulated at its mode only")
    description = {
        "format": FORMAT,
        "market": base.market.name,
        "role": getattr(base.params, "role", None),
        "arguments": base.arguments,
        "controls": list(base.control_names),
    }
    parts = {"controls": table.controls, "description": np.array(json.dumps(description))}
    if table.weights is not None:
        parts["weights"] = table.weights
    target = Path(path)
    with target.open("wb") as stream:
        np.savez_compressed(stream, **parts)  # type: ignore[arg-type]
    return target


def read_table(path: str | Path) -> tuple[Table, dict[str, Any]]:
    """A table written by `write_table`, and its description."""
    with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as found:
        weights = found["weights"] if "weights" in found.files else None
        return Table(found["controls"], weights), json.loads(str(found["description"]))
