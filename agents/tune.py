"""Studies of settings: so many trials of one algorithm in one market, pruned by exact skill.

A study is a folder: ``study.db`` (Optuna's database, SQLite), ``study.json`` (what was searched, how the trials went,
versions and commits), ``best.yml`` (a configuration for `mmgym.agents.train.train`) and ``trials/NUMBER/`` with each
trial's configuration and runs. Every algorithm of a family has the same search space (`mmgym.agents.search_spaces`), so
equal numbers of trials and steps are equal budgets. What a trial draws follows from those before it alone: on one
thread, a study that was interrupted and taken up again has the trials of one that was not.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from tqdm.auto import tqdm

from mmgym.agents.runs import MOST_SEED
from mmgym.agents.search_spaces import Space, search_space, settings_of
from mmgym.agents.train import configured_arguments, train
from mmgym.arguments import integer
from mmgym.baselines.baseline import baseline_of
from mmgym.baselines.catalogue import environment_of
from mmgym.baselines.scoring import skill_of_value
from mmgym.plain_files import replacing, write_json
from mmgym.provenance import provenance

try:
    import optuna
    from optuna.distributions import distribution_to_json
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as error:
    raise ImportError("tuning needs Optuna: pip install 'mmgym[agents,tune]'") from error

__all__ = ["SEEDS", "tune"]

SEEDS = (100, 101)  # reported ones must be others
POINTS = 10  # of the curve of a run, at which a trial may be pruned
FIRST = 5  # trials that are drawn at random, and before any is pruned
SHOWN = 10  # trials in the table
NEVER = 2**62  # steps to a checkpoint: an interrupted trial starts again
OUTCOMES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class _Search(NamedTuple):
    """What is tuned, and from what."""

    algorithm: str
    env_id: str
    arguments: dict[str, Any]
    timesteps: int
    seeds: list[int]
    space: Space
    per_step: float

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this study from others."""
        space = {name: json.loads(distribution_to_json(distribution)) for name, distribution in self.space.items()}
        what = self._asdict() | {"space": space, "points": POINTS, "first": FIRST}
        settings: dict[str, Any] = json.loads(json.dumps(what))
        return settings

    def configuration(self, drawn: Mapping[str, Any]) -> str:
        """The content of a configuration file with the settings of a trial."""
        settings = settings_of(self.algorithm, drawn, self.timesteps, self.per_step)
        content = {"algorithm": self.algorithm, self.env_id.rpartition(":")[2]: settings}
        text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        return text


def _search(algorithm: str, env_id: str, arguments: Mapping[str, Any], timesteps: int, seeds: Sequence[int]) -> _Search:
    """What is tuned, checked."""
    integer("timesteps", timesteps, low=1, high=NEVER)
    for seed in seeds:
        integer("seed", seed, low=0, high=MOST_SEED)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds = {list(seeds)} are not allowed: they must be one or more, each once")
    trained = configured_arguments(algorithm, env_id, dict(arguments), "expected")
    env = environment_of(env_id, **trained)
    space = search_space(algorithm, env.action_space, timesteps)
    if math.isnan(skill_of_value(env, 0.0)[0]):
        raise ValueError(f"{env_id}: no policy is better there than the one with skill 0, so there is nothing to tune")
    per_step = baseline_of(env).bounds().lower / env.unwrapped.params.num_steps
    return _Search(algorithm, env_id, dict(arguments), timesteps, list(seeds), space, float(f"{per_step:.6g}"))


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to an end by themselves."""
    interrupted = study.user_attrs["interrupted"]
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in interrupted]


def _open(search: _Search, storage: optuna.storages.BaseStorage, folder: Path) -> optuna.Study:
    """The study of a folder, without what an interrupted session left running."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=POINTS // 4)
    name = f"{search.algorithm} {search.env_id}"
    names = optuna.get_all_study_names(storage)
    study = optuna.create_study(
        storage=storage, study_name=(names or [name])[0], pruner=pruner, direction="maximize", load_if_exists=True
    )
    kept = {"settings": search.settings, "interrupted": [], "sessions": [], **study.user_attrs}
    others = [name for name, value in search.settings.items() if kept["settings"].get(name) != value]
    for trial in () if others else study.get_trials(deepcopy=False):  # what is not drawn may have changed since
        text = trial.user_attrs.get("configuration")
        if text is not None and text != search.configuration(trial.params):
            others.append(f"trial {trial.number}")
    if others:
        raise ValueError(
            f"{folder} holds a study with other settings (study.json; {', '.join(others)}): choose another folder"
        )
    running = [trial.number for trial in study.get_trials(states=[TrialState.RUNNING])]
    for name, content in (kept | {"interrupted": sorted({*kept["interrupted"], *running})}).items():
        study.set_user_attr(name, content)
    for number in running:
        study.tell(number, state=TrialState.FAIL)
    return study


def _play(search: _Search, trial: optuna.Trial, home: Path) -> None:
    """Train and score a trial on every seed; its skills are kept with it.

    Raises
    ------
    TrialPruned
        If the best skill so far is below the median of what others had at this point.
    """
    config, skills = home / "config.yml", list[float]()
    content = search.configuration(trial.params)
    trial.set_user_attr("configuration", content)
    with replacing(config) as part:
        part.write_text(f"# trial {home.name}\n{content}", encoding="utf-8")
    every = max(search.timesteps // POINTS, 1)
    for seed in search.seeds:
        before = len(skills) * (search.timesteps // every + 1)

        def watch(steps: int, skill: float, before: int = before) -> None:
            trial.report(skill, before + steps // every)
            if trial.should_prune():
                raise optuna.TrialPruned

        _, score = train(
            str(config),
            search.env_id,
            seed=seed,
            folder=home / f"seed-{seed}",
            arguments=search.arguments,
            checkpoint_steps=NEVER,
            score_steps=every,
            overwrite=True,
            progress=False,
            watch=watch,
        )
        if not math.isfinite(score.skill):
            raise ValueError(f"seed {seed} ended with the skill {score.skill}")
        skills.append(float(score.skill))
        trial.set_user_attr("skills", skills)


def _next(search: _Search, study: optuna.Study, folder: Path) -> None:
    """One more trial: complete, pruned or failed."""
    number = len(_counted(study))
    # an interrupted trial is drawn again as it was
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=FIRST, seed=number)
    trial = study.ask(search.space)
    trial.set_user_attr("folder", f"{number:04d}")
    started = time.perf_counter()
    try:
        _play(search, trial, folder / "trials" / f"{number:04d}")
        state = TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except Exception as error:  # of whatever settings do to an algorithm
        trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:2000])
        state = TrialState.FAIL
    trial.set_user_attr("seconds", time.perf_counter() - started)
    skills = trial.user_attrs.get("skills", [])
    study.tell(trial, sum(skills) / len(skills) if state == TrialState.COMPLETE else None, state=state)


def _ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, best first."""
    complete = [trial for trial in _counted(study) if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: -(trial.value or 0.0))


def _row(trial: FrozenTrial, seeds: Sequence[int]) -> dict[str, Any]:
    """What tables and files say of a complete trial."""
    attributes = trial.user_attrs
    skills = {f"seed {seed}": skill for seed, skill in zip(seeds, attributes["skills"], strict=True)}
    row = {"trial": attributes["folder"], "skill": trial.value, **skills, "seconds": attributes["seconds"]}
    return {**row, **trial.params}


def _write(search: _Search, study: optuna.Study, folder: Path) -> None:
    """Write what is known: ``study.json`` and ``best.yml``."""
    counted, ranked = _counted(study), _ranked(study)
    outcomes = Counter(OUTCOMES[trial.state] for trial in counted)
    errors = {trial.user_attrs["folder"]: trial.user_attrs["error"] for trial in counted if "error" in trial.user_attrs}
    attributes = study.user_attrs
    content = {
        "settings": search.settings,
        "trials": {outcome: outcomes[outcome] for outcome in OUTCOMES.values()},
        "interrupted": len(attributes["interrupted"]),
        "seconds": sum(trial.user_attrs["seconds"] for trial in counted),
        "best": _row(ranked[0], search.seeds) if ranked else None,
        "errors": errors,
        "sessions": attributes["sessions"],
    }
    write_json(folder / "study.json", content)
    if ranked:
        best = ranked[0]
        note = f"Best of {len(counted)} trials: skill {best.value:.6f} on seeds {search.seeds} (study.json)"
        with replacing(folder / "best.yml") as part:
            part.write_text(f"# {note}\n{search.configuration(best.params)}", encoding="utf-8")


def tune(
    algorithm: str,
    env_id: str,
    *,
    trials: int,
    timesteps: int,
    seeds: Sequence[int] = SEEDS,
    folder: str | Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[Path, pd.DataFrame]:
    """Search an algorithm's settings in one market, or go on with the study that the folder holds.

    A trial trains on every seed and counts with its mean final skill. It is pruned (`optuna.pruners.MedianPruner`)
    where its best skill so far, as `mmgym.baselines.scoring.exact_skill` finds it, is below the median of earlier
    trials' at that point; trials that fail are counted. Settings are drawn by `optuna.samplers.TPESampler`.

    Parameters
    ----------
    algorithm : str
    env_id : str
        ``module:id`` imports the module first, which registers it.
    trials : int
        Of the study in all, those of earlier sessions included.
    timesteps : int
        Environment steps of each run.
    seeds : sequence of int
        Of a trial's runs, from 0 to 2^32 - 1. Reported results must have other seeds.
    folder : path, optional
        Of the study; ``runs/tune/<environment>/<algorithm>`` by default.
    arguments : mapping, optional
        Constructor arguments of the environment.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    folder, best : Path, DataFrame
        Where the study is, and its ten best trials: skill (mean and by seed), seconds, and what was drawn.

    Raises
    ------
    ValueError
        If an argument is out of range, the algorithm has nothing to tune or does not suit the market, or the folder
        holds another study.
    OSError
        If the folder's database cannot be read.
    RuntimeError
        If no trial came to its end, or another process is at work in the folder.
    """
    from filelock import FileLock, Timeout

    integer("trials", trials, low=1, high=10**6)
    search = _search(algorithm, env_id, arguments or {}, timesteps, seeds)
    name = f"{env_id.rpartition(':')[2].replace('/', '-')}/{algorithm}"
    home = Path("runs") / "tune" / name if folder is None else Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "lock", timeout=0):
            ranked = _run(search, trials, home, progress)
    except Timeout as error:
        raise RuntimeError(f"{home}: another study is at work there; wait for it or choose another folder") from error
    return home, pd.DataFrame([_row(trial, search.seeds) for trial in ranked[:SHOWN]])


def _run(search: _Search, trials: int, home: Path, progress: bool) -> list[FrozenTrial]:
    """The trials that are missing; all complete ones, best first."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = (home / "study.db").resolve()
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    except SQLAlchemyError as error:
        raise OSError(f"{file} is no database of a study: choose another folder ({error})") from error
    try:
        study = _open(search, storage, home)
        versions = {"optuna": optuna.__version__, **provenance()["versions"]}
        session = {**provenance(), "versions": versions, "first_trial": len(_counted(study))}
        if session["first_trial"] < trials:
            study.set_user_attr("sessions", [*study.user_attrs["sessions"], session])
        with tqdm(total=trials, initial=len(_counted(study)), unit="trial", disable=not progress) as bar:
            while len(_counted(study)) < trials:
                _next(search, study, home)
                _write(search, study, home)
                bar.update()
                ranked = _ranked(study)
                bar.set_postfix(skill=f"{ranked[0].value:.4f}" if ranked else "none")
        _write(search, study, home)  # a session may have ended between a trial and its files
        ranked = _ranked(study)
        if not ranked:
            last = _counted(study)[-1].user_attrs.get("error", "it was pruned")
            raise RuntimeError(f"{home}: none of {len(_counted(study))} trials came to its end; the last: {last}")
        return ranked
    finally:
        storage.remove_session()
        storage.engine.dispose()
