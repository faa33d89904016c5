"""The cells of a benchmark as tasks of a Ray cluster, one core each.

The cluster is the one at RAY_ADDRESS, or a local one that is started for the benchmark. Its nodes need the same
installation; what a cell leaves behind (its result and its model) comes back to the machine that asked for it, so no
shared disk is needed. A task whose node dies is run again on another one.
"""

import base64
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mmgym.agents.benchmark_cell import ONE_THREAD, lost_cell, result_file, run_cell, run_folder
from mmgym.plain_files import write_json

__all__ = ["run_ray"]

ATTEMPTS = 10  # of a task whose worker or node dies


def _task(cell: Mapping[str, Any], imports: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Result of a cell and the files of its run, without checkpoints, in base 64."""
    for name in imports:
        import_module(name)
    folder = Path(tempfile.mkdtemp(prefix="mmgym-cell-"))
    try:
        result = run_cell(cell, folder / "run")
        files = [path for path in (folder / "run").rglob("*") if path.is_file() and "checkpoint" not in path.parts]
        names = {str(path.relative_to(folder / "run")): path for path in files}
        return result, {name: base64.b64encode(path.read_bytes()).decode() for name, path in names.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    root = folder.resolve()
    for name, content in files.items():
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"a cell sent the file {name!r}, outside its folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))


def run_ray(
    cells: Sequence[Mapping[str, Any]],
    folder: Path,
    done: Callable[[Mapping[str, Any], dict[str, Any]], None],
    imports: Sequence[str] = (),
) -> None:
    """Run cells on a Ray cluster and keep their results as they come.

    Parameters
    ----------
    cells : sequence of mapping
        See `mmgym.agents.benchmark.plan`.
    folder : Path
        Of the benchmark, on this machine.
    done : callable
        Told of each cell and its result.
    imports : sequence of str
        Modules that each task imports first.

    Raises
    ------
    ImportError
        Without Ray, the extra ``scale``.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: pip install 'mmgym[scale]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS, runtime_env={"env_vars": ONE_THREAD})(_task)
        waiting = {remote.remote(dict(cell), list(imports)): cell for cell in cells}
        started = time.perf_counter()
        while waiting:
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                cell = waiting.pop(reference)
                try:
                    result, files = ray.get(reference)
                    _write_files(run_folder(folder, cell), files)
                except ray.exceptions.RayError as error:
                    result = lost_cell(cell, f"{type(error).__name__}: {error}", "", time.perf_counter() - started)
                write_json(result_file(folder, cell), result)
                done(cell, result)
    finally:
        if ours:
            ray.shutdown()
