"""The benchmark: environment ids x algorithms x seeds, and the papers' policies, as cells that are run once each.

A benchmark is a folder: ``cells/`` (one JSON for each finished or failed cell, written atomically), ``runs/`` (the
agents, see `mmgym.agents.train`), and what `mmgym.agents.benchmark_report` makes of them. A benchmark that was killed
goes on with the cells that are missing; a cell whose settings change is another cell.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm.auto import tqdm

from mmgym.agents.benchmark_cell import ONE_THREAD, lost_cell, result_file, run_folder
from mmgym.agents.benchmark_ray import run_ray
from mmgym.agents.benchmark_result import read_result
from mmgym.agents.config import TUNED, Config, configurations_for, load_config, read_yaml, remembers
from mmgym.agents.runs import MOST_SEED
from mmgym.plain_files import shortened, write_json
from mmgym.registration import check_foreign_environment

__all__ = [
    "Benchmark",
    "load_benchmark",
    "plan",
    "results_of",
    "run_benchmark",
]

KEYS = ("title", "seeds", "budgets", "tuning", "environments")
MARKET_KEYS = ("env", "algorithms", "budgets", "arguments", "policies")
ENGINES = ("processes", "ray")
Done = Callable[[Mapping[str, Any], dict[str, Any]], None]


class Benchmark(NamedTuple):
    """What a benchmark file says."""

    title: str
    seeds: list[int]
    budgets: dict[str, int]  # algorithm -> environment steps; absent: what the algorithm's configuration says
    environments: dict[str, dict[str, Any]]  # market (an id, unless its settings have ``env``) -> settings
    tuning: dict[str, Any] | None = None  # trials and seeds of studies, see `mmgym.agents.studies`


def _refuse_unknown(source: str, where: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in given:
        if key not in allowed:
            raise ValueError(f"{source}: unknown key {shortened(key)}{where}: allowed are {', '.join(allowed)}")


def _checked_budgets(source: str, where: str, budgets: Any) -> dict[str, int]:
    if not isinstance(budgets, dict):
        raise ValueError(f"{source}: budgets{where} = {shortened(budgets)} must map algorithms to environment steps")
    for name, steps in budgets.items():
        if not isinstance(name, str):
            raise ValueError(f"{source}: budgets{where} has {shortened(name)}, which must be the name of an algorithm")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 10**15:
            raise ValueError(f"{source}: budget of {name}{where} = {shortened(steps)} must be a whole number >= 1")
    return budgets


def _checked_seeds(source: str, where: str, seeds: Any) -> list[int]:
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ValueError(f"{source}: seeds{where} = {shortened(seeds)} must be a list of whole numbers >= 0")
    if max(seeds) > MOST_SEED:
        raise ValueError(f"{source}: seeds{where} = {shortened(seeds)} must be at most {MOST_SEED}")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"{source}: seeds{where} = {shortened(seeds)} must differ from each other")
    return seeds


def _checked_tuning(source: str, tuning: Any, seeds: Sequence[int]) -> dict[str, Any] | None:
    """How studies are made, on seeds that are not reported."""
    if tuning is None:
        return None
    if not isinstance(tuning, dict) or set(tuning) != {"trials", "seeds"}:
        raise ValueError(f"{source}: tuning = {shortened(tuning)} must be a mapping with the keys trials and seeds")
    if type(tuning["trials"]) is not int or not 1 <= tuning["trials"] <= 10**6:
        raise ValueError(f"{source}: trials of tuning = {shortened(tuning['trials'])} must be a whole number >= 1")
    both = sorted(set(_checked_seeds(source, " of tuning", tuning["seeds"])) & set(seeds))
    if both:
        raise ValueError(f"{source}: seeds of tuning = {both} are reported too: settings must be tuned on others")
    return tuning


def _check_market(source: str, market: Any, settings: Any) -> None:
    """Refuse settings of a market of the wrong type, and an environment that a file may not name."""
    if not isinstance(market, str) or not market:
        raise ValueError(f"{source}: the market {shortened(market)} must be text")
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"{source}: {market} = {shortened(settings)} must be a mapping")
    given = settings or {}
    _refuse_unknown(source, f" of {market}", given, MARKET_KEYS)
    _checked_budgets(source, f" of {market}", given.get("budgets", {}))
    for key, what in (("algorithms", "algorithms or paths of their configurations"), ("policies", "policies")):
        names = given.get(key)
        if key not in given:
            continue
        text = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
        if not isinstance(names, list) or not text or (not names and key == "algorithms"):  # no policies: the best only
            raise ValueError(
                f"{source}: {key} = {shortened(names)} of {market} must be a list of names of {what}"
                f"{', at least one' if key == 'algorithms' else ''}; leave the key out for all"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{source}: {key} = {shortened(names)} of {market} must differ from each other")
    arguments = given.get("arguments")
    check_foreign_environment(given.get("env", market), {} if arguments is None else arguments, source)


def load_benchmark(path: str | Path) -> Benchmark:
    """Read a benchmark file; a name without a folder may also be that of a shipped one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, has an unknown key, or a value out of range.
    """
    content, source = read_yaml(path, ("benchmark",), "benchmark", any_ending=True)
    if not isinstance(content, dict):
        raise ValueError(f"{source} must be a mapping with the keys {', '.join(KEYS)}")
    _refuse_unknown(source, "", content, KEYS)
    environments = content.get("environments")
    seeds = _checked_seeds(source, "", content.get("seeds"))
    title = content.get("title", Path(source).stem)
    if not isinstance(title, str) or not re.fullmatch(r"[\w][\w .+-]{0,99}", title):
        raise ValueError(
            f"{source}: title = {shortened(title)} must be text of up to 100 letters, digits, blanks and . _ + -: it "
            "names the folder"
        )
    if not isinstance(environments, dict) or not environments:
        raise ValueError(f"{source}: environments must map environment ids to their settings")
    budgets = _checked_budgets(source, "", content.get("budgets", {}))
    for market, settings in environments.items():
        _check_market(source, market, settings)
    return Benchmark(
        title,
        seeds,
        budgets,
        {str(market): dict(settings or {}) for market, settings in environments.items()},
        _checked_tuning(source, content.get("tuning"), seeds),
    )


def _cell(
    market: str, kind: str, env_id: str, arguments: Mapping[str, Any], name: str, seed: int | None, **rest: Any
) -> dict[str, Any]:
    identity = {"kind": kind, "env": env_id, "arguments": dict(arguments), "name": name, "seed": seed, **rest}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    run = name if seed is None else f"{name}-{seed}"
    return identity | {"market": market, "key": f"{env_id.replace('/', '-')}/{run}-{digest}"}  # the name is no setting


def _suitable(env_id: str, env: Any) -> list[str]:
    """Configurations with settings for an id, without those of studies; with a memory where something is hidden.

    It must then show what the memory is of.
    """
    params, width = env.params, env.observation_space.shape[0]
    observed = [getattr(params, field) for field in params._fields if field.startswith("observe")]
    hides = any(what not in (True, "state") for what in observed)

    def suits(config: Config) -> bool:
        memory = config.hyperparameters.get("memory", {"entries": [0]})
        return not remembers(config.algorithm, config.hyperparameters) or (hides and max(memory["entries"]) < width)

    names = [name for name in configurations_for(env_id) if not name.endswith(TUNED)]
    return [name for name in names if suits(load_config(name, env_id))]


def plan(benchmark: Benchmark) -> list[dict[str, Any]]:
    """The cells of a benchmark: the policies of every market, then the agents, one seed after the other.

    A market without a list of algorithms gets every one that has a configuration for its environment; with a memory
    only where the observation hides something.

    Raises
    ------
    ValueError
        If an environment is unknown, an algorithm has no settings for it, or a cell would be there twice.
    """
    from mmgym.baselines.catalogue import environment_of

    papers, agents = [], []
    for market, settings in benchmark.environments.items():
        env_id, arguments = settings.get("env", market), settings.get("arguments") or {}
        env = environment_of(env_id, **arguments)  # refused here, not in a worker
        papers.append(_cell(market, "policies", env_id, arguments, "policies", None, policies=settings.get("policies")))
        names = settings.get("algorithms") or _suitable(env_id, env)
        if not names:
            raise ValueError(f"{env_id}: no configuration has settings for it; name its algorithms")
        for name in names:
            config, label = load_config(name, env_id, market), Path(name).stem
            budget = {**benchmark.budgets, **settings.get("budgets", {})}.get(label)
            steps = config.n_timesteps if budget is None else budget
            resolved = config._replace(n_timesteps=steps)._asdict()
            agents += [
                _cell(market, "agent", env_id, arguments, label, seed, config=name, timesteps=steps, settings=resolved)
                for seed in benchmark.seeds
            ]
    cells = papers + sorted(agents, key=lambda cell: benchmark.seeds.index(cell["seed"]))
    markets: dict[str, str] = {}
    for cell in cells:
        if cell["key"] in markets:
            raise ValueError(
                f"{cell['market']}: {cell['name']} with the same settings is also in {markets[cell['key']]}; drop one"
            )
        markets[cell["key"]] = cell["market"]
    return cells


def results_of(folder: Path, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results of the cells that are done, in their order.

    Raises
    ------
    ValueError
        If a file is not the result of its cell.
    """
    pairs = [(cell, result_file(folder, cell)) for cell in cells]
    return [read_result(file, cell) for cell, file in pairs if file.exists()]


def _run_processes(
    cells: Sequence[Mapping[str, Any]], folder: Path, workers: int, done: Done, imports: Sequence[str]
) -> None:
    """A process for each cell, so many at a time, on one thread each. A process that dies is a failed cell."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
    waiting = list(cells)
    running: list[tuple[Mapping[str, Any], subprocess.Popen[bytes], Path, float]] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                log = folder / "logs" / f"{cell['key']}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                places = {"folder": str(run_folder(folder, cell)), "file": str(result_file(folder, cell))}
                order = {"cell": cell, **places, "imports": list(imports)}
                with log.open("wb") as output:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "mmgym.agents.benchmark_cell"],
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        bufsize=0,
                    )
                running.append((cell, process, log, time.perf_counter()))
                with contextlib.suppress(BrokenPipeError):  # it died at once: found below
                    _standard_input(process).write(json.dumps(order).encode() + b"\n")
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                cell, process, log, started = entry
                _standard_input(process).close()
                file = result_file(folder, cell)
                if not file.exists():
                    error, text = f"the worker ended with status {process.returncode}", log.read_text(errors="replace")
                    write_json(file, lost_cell(cell, error, text[-4000:], time.perf_counter() - started))
                done(cell, read_result(file, cell))
            time.sleep(0.1)
    finally:
        for _, process, _, _ in running:
            process.kill()
            process.wait()
            _standard_input(process).close()


def _standard_input(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def run_benchmark(
    benchmark: Benchmark,
    folder: Path,
    *,
    engine: str = "processes",
    workers: int | None = None,
    retry_failed: bool = False,
    imports: Sequence[str] = (),
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run the cells that have no result yet; all results, in the order of the plan.

    Parameters
    ----------
    benchmark : Benchmark
    folder : Path
        Of the benchmark; cells that it already holds are not run again.
    engine : {"processes", "ray"}
        Worker processes of this machine, or tasks of the Ray cluster at RAY_ADDRESS (see `mmgym.agents.benchmark_ray`).
    workers : int, optional
        Worker processes, >= 1; one for each core by default. Ray has its own count.
    retry_failed : bool
        Whether cells that failed are run again.
    imports : sequence of str
        Modules that each worker imports first: those that register markets of your own.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If an argument is out of range.
    RuntimeError
        If another benchmark is at work in the folder.
    """
    from filelock import FileLock, Timeout

    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is not allowed: it must be one of {', '.join(ENGINES)}")
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers = {workers} is not allowed: it must be >= 1")
    cells = plan(benchmark)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            before = {result["cell"]["key"]: result for result in results_of(folder, cells)}
            if retry_failed:
                for key in [key for key, result in before.items() if result["status"] == "failed"]:
                    result_file(folder, before.pop(key)["cell"]).unlink()
            _run_missing(cells, before, folder, engine, workers, imports, progress)
    except Timeout:
        raise RuntimeError(
            f"another benchmark is at work in {folder}: wait for its end, stop it, or give another --folder"
        ) from None
    return results_of(folder, cells)


def _run_missing(
    cells: Sequence[Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    folder: Path,
    engine: str,
    workers: int,
    imports: Sequence[str],
    progress: bool,
) -> None:
    """Run the cells that are not among the results before, with a progress bar."""
    missing = [cell for cell in cells if cell["key"] not in before]
    failed = sum(result["status"] == "failed" for result in before.values())
    with tqdm(total=len(cells), initial=len(before), unit="cell", desc="benchmark", disable=not progress) as bar:
        bar.set_postfix(failed=failed)

        def done(cell: Mapping[str, Any], result: dict[str, Any]) -> None:
            nonlocal failed
            if result["status"] == "failed":
                failed += 1
                bar.write(f"failed: {cell['key']}: {result['error']}", file=sys.stderr)
            bar.set_postfix(failed=failed, last=cell["key"].rsplit("-", 1)[0])
            bar.update()

        if engine == "ray":
            run_ray(missing, folder, done, imports)
        else:
            _run_processes(missing, folder, workers, done, imports)
