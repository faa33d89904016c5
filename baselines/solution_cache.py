"""Solutions kept on disk: one file per set of parameters and state of the solver's sources.

They lie in the user's cache folder, or in ``MMGYM_CACHE_DIR`` if that is set, and can be deleted at any time. A file is
written under a temporary name and renamed; one that cannot be read is solved again.
"""

import contextlib
import hashlib
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from baselines import frozen
from mmgym import uniformisation
from mmgym.plain_files import UnreadableFile, numbers, read_arrays

__all__ = ["cache_folder", "load_solution", "save_solution", "solution_file"]


def cache_folder() -> Path:
    """Where solutions are kept."""
    return Path(os.environ.get("MMGYM_CACHE_DIR") or platformdirs.user_cache_dir("mmgym")) / "solutions"


def _source_hash(problem: Any) -> str:
    """A hash of the sources that a solution depends on: the models, the market's baselines, and what is generic."""
    own = Path(inspect.getfile(type(problem)))
    sources = [Path(inspect.getfile(module)) for module in (frozen, uniformisation)]
    models = Path(inspect.getfile(type(problem.params))).parent
    sources += [*sorted(own.parent.glob("*.py")), *sorted(models.glob("*.py"))]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def solution_file(problem: Any) -> Path:
    """The file of a problem's solution: the name has the market, a hash of its parameters and one of the solver."""
    params = problem.params
    digest = hashlib.sha256(repr(params._asdict()).encode()).hexdigest()[:24]
    market = type(params).__module__.rpartition(".")[2]
    return cache_folder() / f"{market}-{digest}-{_source_hash(problem)}.npz"


def save_solution(problem: Any, solution: frozen.Solution) -> None:
    """Keep a solution; where the folder cannot be written, nothing is kept."""
    path = solution_file(problem)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    compact = solution.controls.astype(np.float32)
    controls = compact if np.array_equal(compact, solution.controls) else solution.controls
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.savez_compressed(stream, controls=controls, raw=solution.raw, log_scale=solution.log_scale)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def load_solution(problem: Any) -> frozen.Solution | None:
    """A kept solution of exactly these parameters and sources, or None: whatever its damage, it is solved again."""
    steps, states = problem.num_steps, problem.num_states
    shapes = {"controls": (steps, states, problem.num_controls), "raw": (steps + 1, states), "log_scale": (steps + 1,)}
    try:
        found = read_arrays(solution_file(problem))
        for name in ("raw", "log_scale"):
            numbers(found[name], name, shapes[name], "f")
        controls = found["controls"]
        if controls.dtype.kind != "f" or controls.shape != shapes["controls"] or np.isnan(controls).any():
            return None
    except (UnreadableFile, KeyError):
        return None
    raw, log_scale = found["raw"], found["log_scale"]
    return frozen.Solution(controls.astype(np.float64), problem.to_value(raw, log_scale[:, None]), raw, log_scale)
