"""Agents of other people beside those of a benchmark: scored in its markets, and marked as added in its report.

An agent comes from ``module:function``, or from a folder. The function is called with the environment and, if it has an
argument ``seed``, with each seed of the benchmark; it returns a policy as `mmgym.baselines.score` takes it, or None for
a market that it has none for. A folder has a folder for each market, named as its id with ``-`` for ``/``
(``mmgym-GLFT-v0``), and in it the runs: model folders of this project (``model.json`` and arrays), tables (``.npz``),
or files of Stable-Baselines3 (``.zip``, `mmgym.agents.sb3_files`), of which nothing is run.

What was scored is told by a digest of the folder or of the module's source.
"""

import hashlib
import inspect
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from mmgym.agents.benchmark import Benchmark
from mmgym.agents.benchmark_report import write_pages
from mmgym.agents.benchmark_tables import added_row
from mmgym.agents.commands.command import named_policies
from mmgym.agents.config import shipped_folder
from mmgym.baselines import score
from mmgym.baselines.baseline import environment_of
from mmgym.plain_files import read_json
from mmgym.provenance import provenance

__all__ = ["add_agents"]


def add_agents(
    benchmark: Benchmark, added: Mapping[str, str], folder: Path, *, progress: bool = True
) -> dict[str, pd.DataFrame]:
    """Score added agents, and write the benchmark's report with their rows beside the others.

    Parameters
    ----------
    benchmark : Benchmark
    added : mapping of str to str
        Name -> ``module:function``, or a folder.
    folder : Path
        Of the report. The other rows are those of its ``results.csv``, or of the benchmark that is shipped.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    dict
        The summary of each market.

    Raises
    ------
    ValueError
        If a name is taken, a source is none, or an agent cannot be scored.
    """
    tidy, about = _before(benchmark, folder)
    kept = tidy[~((tidy["kind"] == "added") & tidy["name"].isin(list(added)))]
    taken = set(kept["name"]) & set(added)
    if taken:
        raise ValueError(f"the name {sorted(taken)[0]!r} is taken in the benchmark: choose another one")
    rows: list[dict[str, Any]] = []
    for name, source in added.items():
        markets = tqdm(benchmark.environments.items(), name, unit="market", disable=not progress)
        for market, settings in markets:
            env = environment_of(settings.get("env", market), **(settings.get("arguments") or {}))
            for seed, policy in _agents(source, env, settings.get("env", market), benchmark.seeds):
                started = time.perf_counter()
                figures = score(env, policy).to_dict()
                rows.append(added_row(market, name, seed, figures, time.perf_counter() - started))
        if not any(row["name"] == name for row in rows):
            known = ", ".join(benchmark.environments)
            raise ValueError(f"{source} has no policy for any market of the benchmark {benchmark.title!r}: {known}")
    whole = pd.concat([kept, pd.DataFrame(rows, columns=list(tidy.columns))], ignore_index=True)
    sources = {name: {"source": source, "sha256": _digest(source)} for name, source in added.items()}
    about = about | {"added": about.get("added", {}) | sources, "added_with": provenance()}
    folder.mkdir(parents=True, exist_ok=True)
    return write_pages(whole.astype({"seed": "Int64"}), about, folder)


def _before(benchmark: Benchmark, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every run and the facts of a benchmark that was run: in this folder, or as it is shipped."""
    for file in (folder / "benchmark.json", *sorted((shipped_folder() / "results").glob("*/benchmark.json"))):
        about = read_json(file) if file.is_file() else {}
        if about.get("title") == benchmark.title:
            _refuse_other_markets(benchmark, about["benchmark"]["environments"], file)
            return pd.read_csv(file.parent / "results.csv"), about
    raise ValueError(
        f"there are no results of the benchmark {benchmark.title!r} in {folder}, and none are shipped: run it first, "
        "without --add"
    )


def _refuse_other_markets(benchmark: Benchmark, ran: Mapping[str, Any], file: Path) -> None:
    """Agents are compared in markets that the benchmark was run in."""
    for market, settings in benchmark.environments.items():
        before = ran.get(market, {})
        same = all(settings.get(key) == before.get(key) for key in ("env", "arguments"))
        if market not in ran or not same:
            raise ValueError(
                f"{file} has no results of {market} as it is in the benchmark {benchmark.title!r}: allowed are "
                f"{', '.join(ran)}, with the same arguments"
            )


def _agents(source: str, env: Any, env_id: str, seeds: Sequence[int]) -> Iterator[tuple[int | None, Any]]:
    """Seeds (None where there is no such thing) and policies for a market."""
    if Path(source).is_dir():
        runs = sorted(path for path in (Path(source) / env_id.rpartition(":")[2].replace("/", "-")).glob("*"))
        for number, path in enumerate(runs):
            if path.is_dir() or path.suffix in (".npz", ".zip"):
                yield number, next(iter(named_policies([str(path)], env).values()))
        return
    module, colon, name = source.partition(":")
    if not colon:
        raise ValueError(f"{source!r} is neither a folder nor module:function")
    make = getattr(import_module(module), name, None)
    if not callable(make):
        raise ValueError(f"{module} has no function {name!r}")
    seeded = "seed" in inspect.signature(make).parameters
    for seed in seeds if seeded else [None]:
        policy = make(env, seed=seed) if seeded else make(env)
        if policy is not None:
            yield seed, policy


def _digest(source: str) -> str:
    """SHA-256 of a folder's files, or of a module's source."""
    path, digest = Path(source), hashlib.sha256()
    if path.is_dir():
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    else:
        module = sys.modules[source.partition(":")[0]]
        digest.update(Path(inspect.getfile(module)).read_bytes())
    return digest.hexdigest()
