"""Safe model and checkpoint folders: a file from somebody else can be read without running its code.

A model is a folder of

- ``model.json``: format, algorithm (a name from a fixed table), environment id and arguments, hyperparameters,
  versions, steps done, and the layout of the parameters;
- ``parameters.npz``: every parameter and optimiser array;
- ``normalisation.npz``: running statistics of observations and rewards, if the run normalises.

A checkpoint has ``training.npz`` besides: generator states, the environment's state and the last observations. Arrays
are read without pickles, and every field is checked by type and range before it is used. Folders are written under a
temporary name and renamed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import plain_files
from mmgym.agents.algorithms import ALGORITHMS
from mmgym.agents.config import Config, check_settings
from mmgym.plain_files import UnreadableFile, shortened
from mmgym.provenance import provenance
from mmgym.registration import check_foreign_environment

__all__ = [
    "FORMAT",
    "ModelFileError",
    "check_curve",
    "config_of",
    "flatten",
    "model_description",
    "read_arrays",
    "read_folder",
    "recover_folder",
    "remove_folder",
    "unflatten",
    "whole_number",
    "write_folder",
]

FORMAT = "mmgym model 1"
DEEPEST = 20  # levels of a layout
Arrays = dict[str, NDArray[Any]]


class ModelFileError(ValueError):
    """A model folder is missing, truncated, foreign or of another format."""


def flatten(tree: Any, arrays: Arrays, name: str) -> Any:
    """JSON layout of a tree of dicts, lists, tuples, numbers and tensors; the tensors go to ``arrays``.

    Raises
    ------
    TypeError
        For anything else in the tree.
    """
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, dict):
        return {"dict": [[key, flatten(value, arrays, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [flatten(value, arrays, f"{name}.{i}") for i, value in enumerate(tree)]}
    if hasattr(tree, "detach"):
        arrays[name] = tree.detach().cpu().numpy()
        return {"array": name}
    raise TypeError(f"{name} of type {type(tree).__name__} cannot be stored")


def unflatten(layout: Any, arrays: Arrays, make: Callable[[NDArray[Any]], Any], depth: int = DEEPEST) -> Any:
    """The tree of a layout; ``make`` turns its arrays, of numbers or booleans, into tensors.

    Raises
    ------
    ModelFileError
        If the layout is not one that `flatten` makes, or an array is missing or of text.
    """
    if layout is None or isinstance(layout, bool | int | float | str):
        return layout
    if not isinstance(layout, dict) or len(layout) != 1 or depth == 0:
        raise ModelFileError(f"the layout entry {shortened(layout)} is not known")
    kind, content = next(iter(layout.items()))
    if kind == "array":
        if not isinstance(content, str) or content not in arrays:
            raise ModelFileError(f"the array {shortened(content)} is missing")
        if arrays[content].dtype.kind not in "biuf":
            raise ModelFileError(f"the array {content!r} of type {arrays[content].dtype} must be of numbers")
        try:
            return make(arrays[content])
        except TypeError as error:
            raise ModelFileError(f"the array {content!r} is not allowed: {error}") from error
    if kind not in ("dict", "list", "tuple") or not isinstance(content, list):
        raise ModelFileError(f"the layout entry {shortened(layout)} is not known")
    if kind == "dict":
        pairs = [entry for entry in content if isinstance(entry, list) and len(entry) == 2]
        if len(pairs) < len(content) or not all(isinstance(key, int | str) for key, _ in pairs):
            raise ModelFileError(f"the layout entry {shortened(layout)} must have pairs of a name and an entry")
        return {key: unflatten(value, arrays, make, depth - 1) for key, value in pairs}
    values = [unflatten(value, arrays, make, depth - 1) for value in content]
    return tuple(values) if kind == "tuple" else values


def read_arrays(path: Path) -> Arrays:
    """The arrays of an npz file, without pickles.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, or holds anything but plain arrays.
    """
    try:
        return plain_files.read_arrays(path)
    except UnreadableFile as error:
        raise ModelFileError(str(error)) from error


def whole_number(content: Mapping[str, Any], name: str, source: Any, high: int = 2**63) -> int:
    """A field that must be a whole number from 0 to ``high``.

    Raises
    ------
    ModelFileError
        If it is not.
    """
    value = content.get(name)
    if type(value) is not int or not 0 <= value <= high:
        raise ModelFileError(f"{source}: {name} = {shortened(value)} must be a whole number from 0 to {high}")
    return value


def check_curve(curve: Any, source: Any) -> list[dict[str, float]]:
    """A curve of training: a list of ``{steps, skill, regret}``, all numbers.

    Raises
    ------
    ModelFileError
        If it is anything else.
    """
    names = {"steps", "skill", "regret"}
    for point in curve if isinstance(curve, list) else [{}]:
        usual = isinstance(point, dict) and set(point) == names
        if not usual or not all(type(value) in (int, float) for value in point.values()):
            raise ModelFileError(
                f"{source}: the curve has {shortened(point)}, but must be a list of {{steps, skill, regret}}, numbers"
            )
        whole_number(point, "steps", source)
    points: list[dict[str, float]] = curve
    return points


def model_description(
    config: Config, env_id: str, arguments: Mapping[str, Any], steps: int, layout: Any
) -> dict[str, Any]:
    """What ``model.json`` says of every model; `flatten` makes the layout."""
    return {
        "format": FORMAT,
        "algorithm": config.algorithm,
        "env": env_id.rpartition(":")[2],  # a file names no module
        "arguments": dict(arguments),
        "hyperparameters": config._asdict(),
        "steps": steps,
        "versions": provenance()["versions"],
        "layout": layout,
    }


def config_of(description: Mapping[str, Any], source: Any) -> Config:
    """The checked configuration that a description has under ``hyperparameters``.

    Raises
    ------
    ModelFileError
        If a field is missing, unknown or not allowed.
    """
    algorithm, given = description.get("algorithm"), description.get("hyperparameters")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise ModelFileError(
            f"{source}: algorithm = {shortened(algorithm)} is not allowed: it must be one of {', '.join(ALGORITHMS)}"
        )
    if not isinstance(given, dict) or set(given) != set(Config._fields):
        raise ModelFileError(
            f"{source}: hyperparameters = {shortened(given)} must be a mapping with {', '.join(Config._fields)}"
        )
    if given["algorithm"] != algorithm:
        raise ModelFileError(
            f"{source}: hyperparameters.algorithm = {shortened(given['algorithm'])} must be one of {algorithm}, as the "
            "algorithm of the file"
        )
    if not isinstance(given["hyperparameters"], dict) or not isinstance(given["normalize"], dict):
        raise ModelFileError(f"{source}: hyperparameters and normalize within hyperparameters must be mappings")
    run = {name: given[name] for name in ("n_envs", "n_timesteps")}
    settings = {**given["hyperparameters"], **run, **({"normalize": given["normalize"]} if given["normalize"] else {})}
    try:
        return check_settings(algorithm, settings, str(source), str(description.get("env")))
    except ValueError as error:
        raise ModelFileError(str(error)) from error


def read_folder(folder: Path) -> tuple[dict[str, Any], Arrays, Arrays | None]:
    """``model.json``, parameters and normalisation (or None) of a model folder.

    Every field of ``model.json`` has its type and is in its range, but for the layout, which `unflatten` checks, and
    what a checkpoint has besides. The environment is one that a file may name (see
    `mmgym.registration.check_foreign_environment`); where an argument takes a path, there may be one, not opened here.

    Raises
    ------
    ModelFileError
        If the folder is not a complete model of this format.
    """
    path = folder / "model.json"
    if folder.is_file() or not path.is_file():
        raise ModelFileError(
            f"{folder} is not a model folder with model.json, parameters.npz (SB3's .zip files and pickles are refused)"
        )
    try:
        description = plain_files.read_json(path)
    except UnreadableFile as error:
        raise ModelFileError(str(error)) from error
    stored_format = description.get("format") if isinstance(description, dict) else None
    if stored_format != FORMAT:
        raise ModelFileError(f"{path} has format {shortened(stored_format)}, but only {FORMAT!r} can be read")
    needed = ("algorithm", "env", "arguments", "hyperparameters", "layout", "steps")
    missing = [name for name in needed if name not in description]
    if missing:
        raise ModelFileError(f"{path} lacks {', '.join(missing)}")
    config_of(description, path)
    try:
        check_foreign_environment(description["env"], description["arguments"], str(path), files=True)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    for name in ("steps", "updates", "seed", "episodes"):
        if name in description:
            whole_number(description, name, path)
    if not isinstance(description.get("versions", {}), dict):
        raise ModelFileError(f"{path}: versions = {shortened(description['versions'])} must be a mapping")
    seconds = description.get("seconds", 0.0)
    if type(seconds) not in (int, float) or not 0.0 <= seconds < 1e12:
        raise ModelFileError(f"{path}: seconds = {shortened(seconds)} must be a number from 0 to 1e12")
    check_curve(description.get("curve", []), path)
    statistics = folder / "normalisation.npz"
    return description, read_arrays(folder / "parameters.npz"), read_arrays(statistics) if statistics.exists() else None


def _leftovers(folder: Path) -> tuple[Path, Path]:
    """What a write that was killed may leave beside a folder."""
    return folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")


def remove_folder(folder: Path) -> None:
    """Remove a folder, and what a write that was killed left beside it."""
    for path in (folder, *_leftovers(folder)):
        if path.exists():
            shutil.rmtree(path)


def recover_folder(folder: Path) -> None:
    """Put the previous folder back if a write was killed between its two renames."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.replace(folder)


def write_folder(folder: Path, description: dict[str, Any], files: dict[str, Arrays]) -> None:
    """Write a folder under a temporary name and rename it; an older one of that name is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    fresh, old = _leftovers(folder)
    for leftover in (fresh, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    fresh.mkdir()
    for name, arrays in files.items():
        np.savez(fresh / name, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    (fresh / "model.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    if old.exists():
        shutil.rmtree(old)
