"""Studies of settings: spaces that configurations allow, planted curves, interruptions, and runs that train again."""

import json
import re
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import yaml

optuna = pytest.importorskip("optuna", reason="needs the extra tune")
pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 (extra agents) is not installed")

from filelock import FileLock  # noqa: E402
from sqlalchemy import event  # noqa: E402
from sqlalchemy.engine import Engine  # noqa: E402

from mmgym.agents import search_spaces  # noqa: E402
from mmgym.agents import tune as module  # noqa: E402
from mmgym.agents.algorithms import ALGORITHMS, EXACT_LEARNERS  # noqa: E402
from mmgym.agents.benchmark import load_benchmark, plan  # noqa: E402
from mmgym.agents.cli import main  # noqa: E402
from mmgym.agents.config import Config, check_settings, load_config, shipped_folder  # noqa: E402
from mmgym.agents.search_spaces import ENVS, search_space, settings_of  # noqa: E402
from mmgym.agents.studies import tune_benchmark  # noqa: E402
from mmgym.agents.train import train  # noqa: E402
from mmgym.agents.tune import tune  # noqa: E402

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 10, "horizon": 0.5, "inventory_limit": 3.0}
WORDS = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
BOX, LIST = gymnasium.spaces.Box(-1.0, 1.0, (2,)), gymnasium.spaces.Discrete(15)
CHOOSING = ("dqn", "qrdqn", "maskable_ppo")
TUNED = sorted(set(ALGORITHMS) - set(EXACT_LEARNERS))


@pytest.fixture(autouse=True)
def database_that_does_not_wait_for_the_disk():
    def connected(connection, _):
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


def planted(monkeypatch, skills, interrupted=()):
    """Put straight curves to planted skills in the place of training; what it was asked for, one run after the other.

    ``skills`` are those of the runs in turn, where one that is an exception is raised at the end of the run; or a
    function of the settings and the seed. Runs that are numbered in ``interrupted`` end before any may be pruned.
    """
    runs = []

    def run(config, env_id, *, seed, watch, score_steps, **options):
        settings = yaml.safe_load(Path(config).read_text(encoding="utf-8"))[AS]
        number, points = len(runs), []
        runs.append({"points": points, "settings": settings, "trial": Path(config).parent.name})
        skill = skills(settings, seed) if callable(skills) else skills[number]
        failing = isinstance(skill, Exception)
        for point in range(module.POINTS):
            if point == 1 and number in interrupted:
                raise KeyboardInterrupt
            watch(point * score_steps, point / module.POINTS * (0.5 if failing else skill))
            points.append(point)
        if failing:
            raise skill
        return options["folder"], SimpleNamespace(skill=skill)

    monkeypatch.setattr(module, "train", run)
    return runs


def study_of(folder, trials=8, seeds=(100,), **options):
    options = {"timesteps": 100_000, "arguments": SMALL, "progress": False, **options}
    _, best = tune("ppo", AS, trials=trials, seeds=seeds, folder=folder, **options)
    return best, json.loads((folder / "study.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("algorithm", TUNED)
def test_what_is_drawn_is_a_configuration(algorithm):
    """Configurations are checked by `check_settings`, which knows nothing of the spaces; a batch divides a rollout."""
    for seed, timesteps in enumerate([1, 50_000, 1_000_000, 30_000_000] * 10):
        space = search_space(algorithm, LIST if algorithm in CHOOSING else BOX, timesteps)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        settings = settings_of(algorithm, study.ask(space).params, timesteps, -0.3)
        config = check_settings(algorithm, json.loads(json.dumps(settings)), "drawn", AS)
        assert config.n_timesteps == timesteps and config.hyperparameters.get("gamma", 1.0) == 1.0
        if algorithm == "ars":
            assert 1 <= settings["n_top"] <= settings["n_delta"]
            continue
        if "n_steps" in settings:
            rollout = settings["n_envs"] * settings["n_steps"]
            batch = settings.get("batch_size", rollout)
            assert rollout % batch == 0 and batch >= min(1024, rollout)
            assert rollout <= max(timesteps / 16, 16 * ENVS["natural_gradient"])
        else:
            assert settings["learning_starts"] >= settings["n_envs"] and settings["buffer_size"] <= timesteps


def test_pruned_by_the_median_of_planted_curves(tmp_path, monkeypatch):
    """Of curves to 0.1, ..., 0.5 the median is 0.3: that to 0.2 ends where any may, after a quarter; 0.9 does not."""
    every = list(range(10))
    runs = planted(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5, 0.2])
    best, study = study_of(tmp_path, trials=6)
    assert [run["points"] for run in runs] == [every] * 5 + [[0, 1]] and len(best) == 5
    runs = planted(monkeypatch, [0.9])
    best, study = study_of(tmp_path, trials=7)
    assert runs[0]["points"] == every
    assert study["trials"] == {"complete": 6, "pruned": 1, "failed": 0}
    assert list(best["skill"]) == [0.9, 0.5, 0.4, 0.3, 0.2, 0.1] and best["trial"][0] == "0006"
    best, study = study_of(tmp_path, trials=7)  # nothing is left to run
    assert len(runs) == 1 and len(study["sessions"]) == 2 and study["best"]["skill"] == 0.9
    written = yaml.safe_load((tmp_path / "best.yml").read_text(encoding="utf-8"))
    assert written["algorithm"] == "ppo" and written[AS] == runs[0]["settings"]


def test_an_interrupted_study_has_the_trials_of_one_that_was_not(tmp_path, monkeypatch, capsys):
    """Past the fifth trial too, from where on they follow from those before."""

    def skills(settings, seed):
        return 0.5 + 0.1 * np.log10(float(settings["learning_rate"].removeprefix("lin_"))) - 1e-4 * seed

    whole = planted(monkeypatch, skills)
    study_of(tmp_path / "whole", trials=12, seeds=(100, 7))
    numbers = ["--seeds", "100,7", "--trials", "12", "--timesteps", "100000", "--folder", str(tmp_path / "parts")]
    words = ["tune", "ppo", "--env", AS, *WORDS, *numbers]
    parts = []
    for at in (1, 14):
        parts.append(planted(monkeypatch, skills, interrupted=(at,)))
        assert main(words) == 130
        line = "mmgym tune: interrupted; the same command goes on with the trials that are missing\n"
        assert capsys.readouterr().err == line
    parts.append(planted(monkeypatch, skills))
    output = tmp_path / "best.csv"
    assert main([*words, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"mmgym train {tmp_path}/parts/best.yml --env {AS} --set num_steps=10" in printed
    assert output.read_text(encoding="utf-8").startswith("trial,skill,seed 100,seed 7,seconds,")
    studies = [json.loads((tmp_path / name / "study.json").read_text()) for name in ("whole", "parts")]
    assert studies[0]["trials"] == studies[1]["trials"] and sum(studies[0]["trials"].values()) == 12
    assert [study["interrupted"] for study in studies] == [0, 2]
    drawn = [{run["trial"]: run["settings"] for run in runs} for runs in (whole, chain(*parts))]
    assert len(drawn[0]) == 12 and drawn[0] == drawn[1]


def test_a_trial_that_fails_is_counted(tmp_path, monkeypatch):
    planted(monkeypatch, [0.5, ValueError("nan in the weights"), 0.6, float("inf")])
    best, study = study_of(tmp_path, trials=4)
    assert study["trials"] == {"complete": 2, "pruned": 0, "failed": 2} and list(best["skill"]) == [0.6, 0.5]
    assert study["errors"]["0001"] == "ValueError: nan in the weights" and "skill inf" in study["errors"]["0003"]
    planted(monkeypatch, [ValueError("no room")] * 2)
    with pytest.raises(RuntimeError, match="none of 2 trials came to its end; the last: ValueError: no room"):
        study_of(tmp_path / "failed", trials=2)


@pytest.mark.parametrize("algorithm", ["a2c", "natural_gradient"])
def test_the_best_configuration_trains_again(tmp_path, algorithm):
    """Real runs, of samples and of rounds: on one thread the same seed has the same skill again, bit for bit."""
    _, best = tune(
        algorithm, AS, trials=2, timesteps=20_000, seeds=(100,), folder=tmp_path, arguments=SMALL, progress=False
    )
    again = {"seed": 100, "folder": tmp_path / "again", "arguments": SMALL, "progress": False}
    _, score = train(str(tmp_path / "best.yml"), AS, **again)
    assert score.skill == best["skill"][0] == best["skill"].max()


@pytest.mark.parametrize("algorithm", ["a2c", "natural_gradient"])
def test_what_watches_may_end_a_run(tmp_path, algorithm):
    seen = []

    def watch(steps, skill):
        seen.append((steps, skill))
        if len(seen) == 2:
            raise InterruptedError

    options = {"arguments": SMALL, "timesteps": 200_000, "score_steps": 50_000, "progress": False}
    with pytest.raises(InterruptedError):
        train(algorithm, AS, folder=tmp_path, watch=watch, **options)
    assert seen[0][0] == 0 and seen[1][0] >= 50_000 and all(skill < 1.0 for _, skill in seen)
    assert not (tmp_path / "model").exists()


def test_what_is_refused(tmp_path, monkeypatch):
    runs = planted(monkeypatch, [0.5])
    for algorithm, actions, message in [
        ("exact_gradient", BOX, "nothing to tune"),
        ("behaviour_cloning", BOX, "nothing to tune"),
        ("dreamer", BOX, "must be one of a2c, ars, crossq, dqn, maskable_ppo, natural_gradient, ppo"),
        ("dqn", BOX, "chooses from a list"),
        ("td3", LIST, "needs a box"),
    ]:
        with pytest.raises(ValueError, match=message):
            search_space(algorithm, actions, 1000)
    for options, message in [
        ({"seeds": (100, 100)}, "each once"),
        ({"seeds": ()}, "one or more"),
        ({"trials": 0}, "trials = 0"),
        ({"timesteps": 0}, "timesteps = 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            study_of(tmp_path, **options)
    assert not runs
    study_of(tmp_path, trials=1)
    with pytest.raises(ValueError, match=r"holds a study with other settings \(study.json; timesteps\)"):
        study_of(tmp_path, trials=1, timesteps=100_001)
    with FileLock(tmp_path / "lock"), pytest.raises(RuntimeError, match="another study is at work"):
        study_of(tmp_path, trials=2)
    (tmp_path / "study.db").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(OSError, match="no database of a study"):
        study_of(tmp_path, trials=2)


def test_the_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "mmgym.agents.tune")
    assert main(["tune", "ppo", "--env", AS]) == 2
    assert "pip install 'mmgym[agents,tune]'" in capsys.readouterr().err


PLAN = """\
title: small
seeds: [10, 11]
tuning: {trials: 2, seeds: [100, 101]}
budgets: {ppo-tuned: 50000, a2c-tuned: 20000}
environments:
  mmgym/AvellanedaStoikov-v0, short:
    env: mmgym/AvellanedaStoikov-v0
    arguments: {num_steps: 10, horizon: 0.5, inventory_limit: 3.0}
    algorithms: [ppo-tuned, ppo]
  mmgym/AvellanedaStoikov-v0: {algorithms: [ppo-tuned, a2c-tuned]}
"""


def test_a_benchmark_is_tuned_and_trains_with_what_was_best(tmp_path, monkeypatch, capsys):
    """Two markets of one id have an entry each; the second planted trial of a study, of two runs, is its best."""
    runs = planted(monkeypatch, lambda settings, seed: len(runs) + seed)
    file = tmp_path / "plan.yml"
    file.write_text(PLAN, encoding="utf-8")
    words = ["--folder", str(tmp_path / "studies"), "--workers", "1", "--output", str(tmp_path / "studies.csv")]
    assert main(["tune", str(file), *words]) == 0
    assert f"written: {tmp_path}/studies/ppo-tuned.yml, a2c-tuned.yml, and" in capsys.readouterr().out
    rows = (tmp_path / "studies.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.rsplit(",", 1)[0] for row in rows] == [
        f'"{AS}, short",ppo,2,0,0,0001,104.0',
        f"{AS},ppo,2,0,0,0001,108.0",
        f"{AS},a2c,2,0,0,0001,112.0",
    ]
    assert [run["settings"]["n_timesteps"] for run in runs] == [50_000] * 8 + [20_000] * 4
    best = [runs[at]["settings"] for at in (2, 6, 10)]
    found = [
        load_config(str(tmp_path / "studies" / f"{name}.yml"), AS, market)
        for name, market in (("ppo-tuned", f"{AS}, short"), ("ppo-tuned", AS), ("a2c-tuned", AS))
    ]
    assert found == [
        check_settings(algorithm, settings, "", AS)
        for algorithm, settings in zip(("ppo", "ppo", "a2c"), best, strict=True)
    ]
    text = file.read_text(encoding="utf-8").replace("ppo-tuned,", f"{tmp_path}/studies/ppo-tuned.yml,")
    file.write_text(text.replace("a2c-tuned]", f"{tmp_path}/studies/a2c-tuned.yml]"), encoding="utf-8")
    cells = [cell for cell in plan(load_benchmark(file)) if cell["kind"] == "agent" and cell["seed"] == 10]
    assert [cell["name"] for cell in cells] == ["ppo-tuned", "ppo", "ppo-tuned", "a2c-tuned"]
    assert [cell["settings"]["n_timesteps"] for cell in cells] == [50_000, 9_216_000, 50_000, 20_000]
    assert Config(**cells[0]["settings"]) == found[0] and Config(**cells[2]["settings"]) == found[1]


def test_a_study_without_a_result_leaves_the_others(tmp_path, monkeypatch):
    def skills(settings, seed):
        return ValueError("no room") if "n_epochs" not in settings else 0.5

    planted(monkeypatch, skills)
    file = tmp_path / "plan.yml"
    file.write_text(PLAN, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"without a result: .*/a2c: none of 2 trials came to its end; the last: "):
        tune_benchmark(load_benchmark(file), tmp_path / "studies", workers=1, progress=False)
    assert [path.name for path in (tmp_path / "studies").glob("*.yml")] == ["ppo-tuned.yml"]
    file.write_text(PLAN.replace("trials: 2", "trials: 1"), encoding="utf-8")
    with pytest.raises(RuntimeError, match="ppo has 2 trials, but all must have 1: raise those of tuning"):
        tune_benchmark(load_benchmark(file), tmp_path / "studies", workers=1, progress=False)


def test_a_study_does_not_go_on_with_other_settings_of_what_is_not_drawn(tmp_path, monkeypatch):
    runs = planted(monkeypatch, [0.5, 0.6])
    study_of(tmp_path, trials=1)
    monkeypatch.setattr(search_spaces, "ACTORS", {size: [8] for size in search_spaces.ACTORS})
    with pytest.raises(ValueError, match=r"holds a study with other settings \(study.json; trial 0\)"):
        study_of(tmp_path, trials=2)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[100, 101]", "[11, 100]", r"seeds of tuning = \[11\] are reported too"),
        ("trials: 2", "trials: 0", "trials of tuning = 0"),
        ("trials: 2, ", "", "must be a mapping with the keys trials and seeds"),
        ("seeds: [100, 101]", "seeds: []", r"seeds of tuning = \[\] must be"),
        ("tuning: {trials: 2, seeds: [100, 101]}", "", "needs the key tuning"),
        (", a2c-tuned: 20000", "", "needs a budget of a2c-tuned"),
        ("-tuned", "-other", "no algorithm whose name ends with -tuned"),
        (f"{AS}, short", AS.replace("/", "-"), "differ in signs alone"),
    ],
)
def test_what_a_tuned_benchmark_may_not_be(tmp_path, old, new, message):
    file = tmp_path / "plan.yml"
    file.write_text(PLAN.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        tune_benchmark(load_benchmark(file), tmp_path / "studies", workers=1)
    assert not (tmp_path / "studies").exists()


@pytest.mark.long
def test_the_shipped_settings_are_the_best_of_the_shipped_studies():
    """By Optuna's own reading of their databases; all with the budget that the benchmark says."""
    benchmark, folder = load_benchmark("benchmark"), shipped_folder() / "results" / "studies"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    cells = [c for c in plan(benchmark) if c["kind"] == "agent" and c["seed"] == benchmark.seeds[0]]
    tuned = [cell for cell in cells if cell["name"].endswith("-tuned")]
    assert all(cell["name"].endswith("-defaults") for cell in cells if cell not in tuned)  # these have no study
    assert len(tuned) == len(list(folder.rglob("study.db"))) == 34
    for cell in tuned:
        algorithm = cell["name"].removesuffix("-tuned")
        home = folder / re.sub(r"\W", "-", cell["market"]) / algorithm
        about = json.loads((home / "study.json").read_text(encoding="utf-8"))
        said = {name: about["settings"][name] for name in ("algorithm", "env_id", "arguments", "timesteps", "seeds")}
        run = (algorithm, cell["env"], cell["arguments"], cell["timesteps"], benchmark.tuning["seeds"])
        assert tuple(said.values()) == run
        database = f"file:{home / 'study.db'}?mode=ro&immutable=1&uri=true"
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{database}")
        assert benchmark.tuning["trials"] == sum(about["trials"].values()) == len(study.trials) - about["interrupted"]
        drawn = settings_of(algorithm, study.best_params, cell["timesteps"], about["settings"]["per_step"])
        assert Config(**cell["settings"]) == check_settings(algorithm, drawn, "best", cell["env"])


def test_options_that_a_benchmark_says_itself_are_refused(tmp_path, capsys):
    for words, message in [
        ([str(tmp_path / "plan.yml"), "--trials", "3"], "--trials is not allowed with a benchmark file"),
        (["ppo"], "--env is missing"),
        (["ppo", "--env", AS, "--workers", "2"], "--workers 2: only with a benchmark file"),
    ]:
        assert main(["tune", *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="workers = 0"):
        tune_benchmark(load_benchmark("benchmark_quick"), tmp_path, workers=0)


@pytest.mark.long
def test_processes_run_the_studies_of_one_process(tmp_path):
    """Bit for bit, on one thread each."""
    file = tmp_path / "plan.yml"
    text = PLAN.replace("50000", "20000").replace("  mmgym/AvellanedaStoikov-v0: {", f"  {AS}, too: {{env: {AS}, ")
    file.write_text(text.replace("a2c-tuned]}", "a2c-tuned], arguments: {num_steps: 20}}"), encoding="utf-8")
    tables = [
        tune_benchmark(load_benchmark(file), tmp_path / str(workers), workers=workers, progress=False)
        for workers in (1, 2)
    ]
    assert len(tables[0]) == 3 and tables[0].drop(columns="seconds").equals(tables[1].drop(columns="seconds"))
    written = [(tmp_path / str(workers) / "ppo-tuned.yml").read_text(encoding="utf-8") for workers in (1, 2)]
    assert written[0] == written[1]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are read from /proc")
def test_processes_end_with_the_command(tmp_path):
    """Killed without a word, it leaves no study at work."""
    file = tmp_path / "plan.yml"
    file.write_text(PLAN.replace("50000", "100000000"), encoding="utf-8")
    command = [sys.executable, "-m", "mmgym.agents.cli", "tune", str(file), "--folder", str(tmp_path / "studies")]
    with subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while len(list((tmp_path / "studies").rglob("run.json"))) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        process.kill()
    assert len(children) >= 2
    end = time.monotonic() + 20
    while time.monotonic() < end and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
