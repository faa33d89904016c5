"""Safe model and checkpoint folders: a file from somebody else can be read without running its code.

A model is a folder of

- ``model.json``: format, algorithm (a name from a fixed table), environment id and arguments, hyperparameters,
  versions, steps done, and the layout of the parameters;
- ``parameters.npz``: every parameter and optimiser array;
- ``normalisation.npz``: running statistics of observations and rewards, if the run normalises.

A checkpoint has ``training.npz`` besides: generator states, the environment's state and the last observations. Arrays
are read with ``allow_pickle=False``. Folders are written under a temporary name and renamed.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORMAT",
    "ModelFileError",
    "flatten",
    "read_arrays",
    "read_folder",
    "recover_folder",
    "unflatten",
    "write_folder",
]

FORMAT = "mmgym model 1"
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


def unflatten(layout: Any, arrays: Arrays, make: Callable[[NDArray[Any]], Any]) -> Any:
    """The tree of a layout; ``make`` turns its arrays into tensors.

    Raises
    ------
    ModelFileError
        If the layout is not one that `flatten` makes, or an array is missing.
    """
    if layout is None or isinstance(layout, bool | int | float | str):
        return layout
    if not isinstance(layout, dict) or len(layout) != 1:
        raise ModelFileError(f"the layout entry {str(layout)[:60]!r} is not known")
    kind, content = next(iter(layout.items()))
    if kind == "array":
        if content not in arrays:
            raise ModelFileError(f"the array {content!r} is missing")
        return make(arrays[content])
    if kind == "dict":
        return {key: unflatten(value, arrays, make) for key, value in content}
    if kind in ("list", "tuple"):
        values = [unflatten(value, arrays, make) for value in content]
        return tuple(values) if kind == "tuple" else values
    raise ModelFileError(f"the layout entry {kind!r} is not known")


def read_arrays(path: Path) -> Arrays:
    """The arrays of an npz file, without pickles.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, or holds pickled objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path} is not a readable npz file of plain arrays: {error}") from error


def read_folder(folder: Path) -> tuple[dict[str, Any], Arrays, Arrays | None]:
    """``model.json``, parameters and normalisation (or None) of a model folder.

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
        description = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path} is not readable JSON: {error}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise ModelFileError(f"{path} has format {found!r}, but only {FORMAT!r} can be read")
    needed = ("algorithm", "env", "arguments", "hyperparameters", "layout", "steps")
    missing = [name for name in needed if name not in description]
    if missing:
        raise ModelFileError(f"{path} lacks {', '.join(missing)}")
    statistics = folder / "normalisation.npz"
    return description, read_arrays(folder / "parameters.npz"), read_arrays(statistics) if statistics.exists() else None


def recover_folder(folder: Path) -> None:
    """Put the previous folder back if a write was killed between its two renames."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.replace(folder)


def write_folder(folder: Path, description: dict[str, Any], files: dict[str, Arrays]) -> None:
    """Write a folder under a temporary name and rename it; an older one of that name is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    fresh, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
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
