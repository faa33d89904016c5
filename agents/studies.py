"""Equal tuning budgets: a study for each algorithm in each market of a benchmark, and the settings that they end with.

Algorithms of a benchmark file whose names end with ``-tuned`` are those of studies: ``ppo-tuned`` is PPO with the best
settings of a study in each market, all with the trials and seeds of the file's key ``tuning``, and with the
environment steps of its ``budgets``. The seeds that are reported must be others.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from tqdm.auto import tqdm

from mmgym.agents.benchmark import Benchmark
from mmgym.agents.benchmark_cell import ONE_THREAD
from mmgym.agents.config import TUNED
from mmgym.agents.tune import tune
from mmgym.plain_files import read_json, replacing

__all__ = ["tune_benchmark"]


class _Study(NamedTuple):
    """One algorithm in one market."""

    market: str
    env_id: str
    arguments: dict[str, Any]
    name: str  # of the algorithm in the benchmark: ppo-tuned
    timesteps: int

    @property
    def algorithm(self) -> str:
        return self.name.removesuffix(TUNED)

    def folder(self, home: Path) -> Path:
        """Where the study is, below the folder of all."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.market)
        return home / words / self.algorithm


def _studies(benchmark: Benchmark) -> list[_Study]:
    """What a benchmark asks to be tuned."""
    if benchmark.tuning is None:
        raise ValueError(f"benchmark {benchmark.title!r} needs the key tuning, with trials and seeds")
    studies = []
    for market, settings in benchmark.environments.items():
        budgets = {**benchmark.budgets, **settings.get("budgets", {})}
        for name in (Path(name).stem for name in settings.get("algorithms", ())):
            if not name.endswith(TUNED):
                continue
            if name not in budgets:
                raise ValueError(
                    f"benchmark {benchmark.title!r} needs a budget of {name} in {market}: environment steps"
                )
            arguments = settings.get("arguments") or {}
            studies.append(_Study(market, settings.get("env", market), arguments, name, budgets[name]))
    if not studies:
        raise ValueError(f"benchmark {benchmark.title!r} has no algorithm whose name ends with {TUNED}")
    if len({study.folder(Path()) for study in studies}) < len(studies):
        raise ValueError(
            f"benchmark {benchmark.title!r} has markets whose names differ in signs alone: name them apart"
        )
    return studies


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start(imports: Sequence[str]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for name in imports:
        import_module(name)


def _run(study: _Study, home: Path, trials: int, seeds: list[int]) -> str | None:
    """Run what is missing of a study; why it has no result, if so."""
    folder = study.folder(home)
    try:
        tune(
            study.algorithm,
            study.env_id,
            trials=trials,
            timesteps=study.timesteps,
            seeds=seeds,
            folder=folder,
            arguments=study.arguments,
            progress=False,
        )
    except RuntimeError as error:
        return str(error)
    count = sum(read_json(folder / "study.json")["trials"].values())
    return (
        None if count == trials else f"{folder} has {count} trials, but all must have {trials}: raise those of tuning"
    )


def _row(study: _Study, home: Path) -> dict[str, Any]:
    """What a study came to."""
    about = read_json(study.folder(home) / "study.json")
    best = {name: about["best"][name] for name in ("trial", "skill")}
    return {
        "market": study.market,
        "algorithm": study.algorithm,
        **about["trials"],
        **best,
        "seconds": about["seconds"],
    }


def tune_benchmark(
    benchmark: Benchmark,
    folder: str | Path,
    *,
    workers: int | None = None,
    imports: Sequence[str] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Run the studies of a benchmark, or go on with those that the folder holds, and write what they end with.

    The folder gets ``MARKET/ALGORITHM/`` for each study (see `mmgym.agents.tune`), and ``ALGORITHM-tuned.yml``: a
    configuration with an entry for each market, which the benchmark trains with once it is in the folder ``configs``
    or named by its path.

    Parameters
    ----------
    benchmark : Benchmark
        With its key ``tuning``, and budgets of the algorithms whose names end with ``-tuned``.
    folder : path
    workers : int, optional
        Studies at a time, >= 1, each in a process on one thread; one for each core by default. A single one at a time
        runs in this process.
    imports : sequence of str
        Modules that each process imports first: those that register markets of your own.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    studies : DataFrame
        A row for each: market, algorithm, trials that were complete, pruned and failed, the best trial, its mean exact
        skill on the seeds of tuning, and the seconds of all trials.

    Raises
    ------
    ValueError
        If the benchmark asks for no studies, or an argument is out of range.
    RuntimeError
        If none of the trials of a study came to its end, another process is at work in its folder, or it has more
        trials than the others; what the other studies end with is written first.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers = {workers} is not allowed: it must be >= 1")
    studies, home = _studies(benchmark), Path(folder)
    assert benchmark.tuning is not None
    budget = (benchmark.tuning["trials"], benchmark.tuning["seeds"])
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(studies), unit="study", disable=not progress))
        if workers == 1:
            reasons = []
            for study in studies:
                reasons.append(_run(study, home, *budget))
                bar.update()
        else:
            stack.enter_context(_environment(ONE_THREAD))
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, context, _start, (imports,)))
            stack.callback(pool.shutdown, cancel_futures=True)
            waiting = [pool.submit(_run, study, home, *budget) for study in studies]
            for _ in as_completed(waiting):
                bar.update()
            reasons = [done.result() for done in waiting]
    finished = [study for study, reason in zip(studies, reasons, strict=True) if reason is None]
    for name in dict.fromkeys(study.name for study in finished):
        _write(home, [study for study in finished if study.name == name], budget[1])
    if len(finished) < len(studies):
        raise RuntimeError(f"studies without a result: {'; '.join(filter(None, reasons))}; the others are written")
    return pd.DataFrame([_row(study, home) for study in studies])


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Any:
    """Variables of the environment, for the processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _write(home: Path, studies: Sequence[_Study], seeds: Sequence[int]) -> None:
    """The configuration of one algorithm, with an entry for each market."""
    lines = [f"# The best settings of a study in each market, on the seeds {', '.join(map(str, seeds))} of tuning."]
    for study in studies:
        best = yaml.safe_load((study.folder(home) / "best.yml").read_text(encoding="utf-8"))
        row = _row(study, home)
        counts = ", ".join(f"{row[name]} {name}" for name in ("complete", "pruned", "failed"))
        lines.append(f"# {study.market}: trial {row['trial']} of {counts}; skill {row['skill']:.4f}")
        key = study.env_id.rpartition(":")[2]  # entries are without a module
        entry = {key if study.market == study.env_id else study.market: best[key]}
        lines.append(yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=120).rstrip())
    with replacing(home / f"{studies[0].name}.yml") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
