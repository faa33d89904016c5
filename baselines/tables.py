"""Policies written to files as tables, so that others can be trained against them without the code that made them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.catalogue import environment_of, problem_of
from mmgym.baselines.foreign import as_policy
from mmgym.baselines.frozen import Table, require_probabilities
from mmgym.baselines.table_policy import table_policy, tabulated
from mmgym.plain_files import UnreadableFile, numbers, parse_json, read_arrays, replacing, shortened

__all__ = ["load_policy", "read_table", "write_table"]

FORMAT = 1

Array = NDArray[Any]


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
    OSError
        If the file cannot be written; one that was there is left as it was.
    ValueError
        If the policy draws its actions and has no distribution.
    """
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    table, _ = tabulated(problem, as_policy(policy, True), deterministic)
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
    with replacing(target) as part, part.open("wb") as stream:
        np.savez_compressed(stream, **parts)  # type: ignore[arg-type]
    return target


def read_table(path: str | Path) -> tuple[Table, dict[str, Any]]:
    """A table written by `write_table`, and its description.

    Raises
    ------
    UnreadableFile
        If the file is no such table: a ValueError that says what is wrong and what must be.
    """
    arrays = read_arrays(path)
    missing = [name for name in ("controls", "description") if name not in arrays]
    if missing:
        raise UnreadableFile(f"{path} is not a table written by mmgym: it lacks {', '.join(missing)}")
    weights, controls = arrays.get("weights"), arrays["controls"]
    description = parse_json(str(arrays["description"]), f"the description in {path}")
    if arrays["description"].shape != () or not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UnreadableFile(
            f"{path} is not a table written by mmgym: its description is {shortened(description)}, but must be a "
            f"mapping with format {FORMAT}"
        )
    if controls.ndim != (3 if weights is None else 4):
        raise UnreadableFile(
            f"{path}: controls of shape {controls.shape} are not allowed: they must be (steps, states, controls), or "
            "(steps, states, draws, controls) with weights (steps, states, draws)"
        )
    numbers(controls, f"{path}: controls", controls.shape)
    if weights is not None:
        numbers(weights, f"{path}: weights", controls.shape[:-1], "f")
        try:
            require_probabilities(weights)
        except ValueError as error:
            raise UnreadableFile(f"{path}: {error}") from error
    return Table(controls.astype(np.float64), weights), description


def load_policy(path: str | Path, env: Any, **arguments: Any) -> Any:
    """The policy of a table written by `write_table`, for an environment of the same market, steps and states.

    Parameters
    ----------
    path : str or Path
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.

    Returns
    -------
    TablePolicy or MixedTablePolicy

    Raises
    ------
    ValueError
        If the file is no such table, or the environment is another market, or has other steps or states.
    """
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    table, description = read_table(path)
    market, role, controls = (description.get(name) for name in ("market", "role", "controls"))
    expected = (base.market.name, getattr(base.params, "role", None), list(base.control_names))
    if (market, role, controls) != expected:
        raise ValueError(
            f"{path} is a table of the market {shortened(market)} (role {shortened(role)}, controls "
            f"{shortened(controls)}), not of {base.market.name!r} (role {expected[1]}, controls {expected[2]})"
        )
    shape = (problem.num_steps, problem.num_states)
    if table.controls.shape[:2] != shape or table.controls.shape[-1] != problem.num_controls:
        raise ValueError(
            f"{path} has {table.controls.shape[0]} steps and {table.controls.shape[1]} states, but the environment has "
            f"{shape[0]} and {shape[1]}: its arguments were {shortened(description.get('arguments'))}"
        )
    return table_policy(problem, table)
