"""Which crowd of takers an environment has: the equilibrium's, the constant quote's, or that of a table file.

A table file is an npz of ``controls`` (N, S, 2), or (N, S, M, 2) with ``weights`` (N, S, M), and ``description``, a
JSON text; ``S`` counts signals first, then inventories, both ascending. `mmgym.baselines.write_table` writes it.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import refusal
from mmgym.models.mean_field_flow import Flow, constant_flow, equilibrium_flow, induced_flow
from mmgym.models.mean_field_game import Game
from mmgym.plain_files import UnreadableFile, numbers, parse_json, read_arrays, shortened

__all__ = ["flow_of", "load_population", "population_of"]

Array = NDArray[np.float64]
FORMAT = 1  # of table files


def population_of(game: Game, population: Any, name: str = "population") -> tuple[str, str]:
    """A checked name or path, and a hash of the file ("" without one); ``name`` is the argument's, for messages.

    Raises
    ------
    ValueError
        If it is neither, or the file is not a table of takers of this game.
    """
    if not isinstance(population, str):
        raise refusal(name, population, "'equilibrium', 'constant' or a path")
    if population in ("equilibrium", "constant"):
        return population, ""
    try:
        digest = hashlib.sha256(Path(population).read_bytes()).hexdigest()[:24]
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        allowed = f"'equilibrium', 'constant' or the path of a table file that can be read ({error})"
        raise refusal(name, population, allowed) from error
    load_population(game, population, name)
    return population, digest


def load_population(game: Game, path: str, name: str = "population") -> tuple[Array, Array | None]:
    """Depths (N, B, Q, 2), or (N, B, Q, M, 2) with weights (N, B, Q, M), of a table file.

    Raises
    ------
    ValueError
        If the file is not a table of takers of this game.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{name} = {path!r} is not allowed: {reason}")

    try:
        stored = read_arrays(path)
        description = parse_json(str(stored["description"]), "description")
        controls = numbers(stored["controls"], "controls", stored["controls"].shape).astype(np.float64)
        weights = stored.get("weights")
        weights = None if weights is None else numbers(weights, "weights", weights.shape).astype(np.float64)
    except (KeyError, UnreadableFile) as error:
        raise refuse(f"it is not a table file ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT or description.get("role") != "taker":
        raise refuse(f"it must be a table of takers of format {FORMAT}, but is described as {shortened(description)}")
    if controls.ndim != (3 if weights is None else 4):
        raise refuse(f"its controls have shape {controls.shape}")
    states = game.shape[0] * game.shape[1]
    wanted = (game.num_steps, states, 2) if weights is None else (game.num_steps, states, controls.shape[-2], 2)
    if controls.shape != wanted or (weights is not None and weights.shape != wanted[:-1]):
        raise refuse(f"its controls have shape {controls.shape}, but this game needs {wanted}")
    if not np.isfinite(controls).all() or np.abs(controls).max() > game.max_depth * (1.0 + 1e-6):
        raise refuse(f"its depths must be finite and within max_depth = {game.max_depth:g}")
    if weights is None:
        return controls.reshape(game.num_steps, *game.shape, 2), None
    if not (weights >= 0.0).all() or np.abs(weights.sum(axis=-1) - 1.0).max() > 1e-9:
        raise refuse("its weights must be probabilities")
    nodes = controls.shape[-2]
    return (
        controls.reshape(game.num_steps, *game.shape, nodes, 2),
        weights.reshape(game.num_steps, *game.shape, nodes),
    )


@functools.lru_cache(maxsize=16)
def flow_of(game: Game, population: tuple[str, str]) -> Flow:
    """The flow of a population as `population_of` returns it.

    Raises
    ------
    mmgym.models.mean_field_limit.NotConverged
        If the equilibrium is asked for and not found.
    ValueError
        If the table file has changed since it was checked.
    """
    name, digest = population
    if name == "equilibrium":
        return equilibrium_flow(game)
    if name == "constant":
        return constant_flow(game)
    if population_of(game, name)[1] != digest:
        raise ValueError(f"population = {name!r} is not allowed: the file has changed since the environment was made")
    return induced_flow(game, *load_population(game, name))[0]
