"""Solutions kept on disk: one file per set of parameters and state of the sources.

A file's name has a hash of every source of `mmgym` and `baselines`, whichever of them a value depends on: after any
edit it is computed again. They lie in the user's cache folder, or in ``MMGYM_CACHE_DIR`` if that is set, and can be
deleted at any time. A file is written under a temporary name and renamed; one that cannot be read is computed again.
"""

import contextlib
import hashlib
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

import mmgym
from mmgym.baselines import frozen
from mmgym.plain_files import UnreadableFile, numbers, read_arrays, replacing
from mmgym.source_digest import source_digest

__all__ = [
    "cache_folder",
    "is_named",
    "is_sample",
    "kept",
    "kept_file",
    "load_arrays",
    "load_solution",
    "save_solution",
    "solution_file",
]

Fits = Callable[[dict[str, NDArray[Any]]], bool]  # whether what is kept is what is wanted
PACKAGES = (Path(str(mmgym.__file__)).resolve().parent, Path(__file__).resolve().parent)


def cache_folder() -> Path:
    """Where solutions are kept."""
    return Path(os.environ.get("MMGYM_CACHE_DIR") or platformdirs.user_cache_dir("mmgym")) / "solutions"


def kept_file(params: Any, name: Any = "", *types: type) -> Path | None:
    """The file of what is kept of a market's parameters; None, and nothing is kept, where a type has no source file.

    Parameters
    ----------
    params : NamedTuple
    name : str or other value with a ``repr``
        Tells what is kept apart, where a market keeps several things.
    types : type
        Others than that of ``params`` that it depends on: their folders count too where they are not in these packages.
    """
    try:
        homes = {Path(inspect.getfile(kind)).resolve().parent for kind in (type(params), *types)}
    except (OSError, TypeError):  # typed into a notebook or an interpreter: whatever is edited there has no hash
        return None
    others = sorted(home for home in homes if not any(home.is_relative_to(package) for package in PACKAGES))
    kind = type(params)
    given = (kind.__module__, kind.__qualname__, params._asdict(), name)
    digest = hashlib.sha256(repr(given).encode()).hexdigest()[:24]
    market = kind.__module__.rpartition(".")[2]
    return cache_folder() / f"{market}-{digest}-{source_digest(*PACKAGES, *others)}.npz"


def load_arrays(path: Path | None) -> dict[str, NDArray[Any]] | None:
    """What is kept in a file, or None where it cannot be read."""
    try:
        return None if path is None else read_arrays(path)
    except UnreadableFile:
        return None


def save_arrays(path: Path | None, arrays: Mapping[str, Any], write: Callable[..., None] = np.savez) -> None:
    """Keep arrays; where the folder cannot be written, nothing is kept."""
    if path is None:
        return
    with contextlib.suppress(OSError), replacing(path) as part, part.open("wb") as stream:
        write(stream, **arrays)


def kept(params: Any, name: Any, make: Callable[[], Mapping[str, Any]], fits: Fits) -> dict[str, NDArray[Any]]:
    """Arrays from disk or, where none that fit are kept there yet, made and kept."""
    path = kept_file(params, name)
    arrays = load_arrays(path)
    with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):
        if arrays is not None and all(_is_finite(array) for array in arrays.values()) and fits(arrays):
            return arrays
    arrays = {key: np.asarray(value) for key, value in make().items()}
    save_arrays(path, arrays)
    return arrays


def _is_finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def is_sample(name: str, count: int) -> Fits:
    """Whether kept arrays have so many numbers under a name: a sample, or a value and its error."""
    return lambda arrays: arrays[name].shape == (count,) and arrays[name].dtype.kind == "f"


def is_named(names: Collection[str]) -> Fits:
    """Whether kept arrays have one of the names and a lower bound."""
    return lambda arrays: (
        str(arrays["name"]) in names and arrays["lower"].shape == () and arrays["lower"].dtype.kind == "f"
    )


def solution_file(problem: Any) -> Path | None:
    """The file of a problem's solution."""
    return kept_file(problem.params, "", type(problem))


def save_solution(problem: Any, solution: frozen.Solution) -> None:
    """Keep a solution; where the folder cannot be written, nothing is kept."""
    compact = solution.controls.astype(np.float32)
    controls = compact if np.array_equal(compact, solution.controls) else solution.controls
    arrays = {"controls": controls, "raw": solution.raw, "log_scale": solution.log_scale}
    save_arrays(solution_file(problem), arrays, np.savez_compressed)


def load_solution(problem: Any) -> frozen.Solution | None:
    """A kept solution of exactly these parameters and sources, or None: whatever its damage, it is solved again."""
    steps, states = problem.num_steps, problem.num_states
    shapes = {"controls": (steps, states, problem.num_controls), "raw": (steps + 1, states), "log_scale": (steps + 1,)}
    stored = load_arrays(solution_file(problem))
    try:
        if stored is None:
            return None
        for name in ("raw", "log_scale"):
            numbers(stored[name], name, shapes[name], "f")
        controls = stored["controls"]
        if controls.dtype.kind != "f" or controls.shape != shapes["controls"] or np.isnan(controls).any():
            return None
    except (UnreadableFile, KeyError):
        return None
    raw, log_scale = stored["raw"], stored["log_scale"]
    return frozen.Solution(controls.astype(np.float64), problem.to_value(raw, log_scale[:, None]), raw, log_scale)
