"""The benchmark: planned, killed and resumed, its failures shown, its report read back in a browser."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest

from mmgym import baselines
from mmgym.agents import benchmark_pictures as pictures
from mmgym.agents.benchmark import load_benchmark, plan, run_benchmark
from mmgym.agents.benchmark_cell import result_file, run_cell
from mmgym.agents.benchmark_report import markdown_table, results_page, write_report
from mmgym.agents.benchmark_tables import (
    efficiency_table,
    overall_table,
    pairwise_table,
    skills_of,
    summary_table,
    tidy_table,
)
from mmgym.agents.cli import main
from mmgym.agents.config import config_names, configurations_for, shipped_folder
from mmgym.plot import new_figure
from mmgym.registration import ENVIRONMENTS

AS = "mmgym/AvellanedaStoikov-v0"
ROOT = Path(__file__).parents[1]
TINY = """
mmgym/AvellanedaStoikov-v0:
  n_envs: 8
  n_timesteps: 1600
  policy: MlpPolicy
  normalize: {norm_obs: true, norm_reward: true, gamma: 1.0}
  n_steps: 100
  batch_size: 400
  n_epochs: 1
  gamma: 1.0
  policy_kwargs: {net_arch: [16]}
"""


def benchmark_file(folder, *, seeds="[0, 1]", breaking=False):
    """A tiny benchmark; with ``breaking``, a second algorithm whose settings PPO refuses when it trains."""
    (folder / "ppo.yml").write_text(TINY)
    names = f"{folder}/ppo.yml"
    if breaking:
        (folder / "ppo-broken.yml").write_text(TINY.replace("n_epochs: 1", "learning_rate: 1.0e+11"))
        names += f", {folder}/ppo-broken.yml"
    path = folder / "tiny.yml"
    path.write_text(
        f"title: tiny\nseeds: {seeds}\nenvironments:\n  {AS}:\n    algorithms: [{names}]\n"
        "    arguments: {num_steps: 20}\n    policies: [hjb, constant]\n"
    )
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark with a failing algorithm that was killed mid-way and run again; cells written before the kill."""
    folder = tmp_path_factory.mktemp("benchmark")
    file, out = benchmark_file(folder, breaking=True), folder / "out"
    script = (
        "import sys; from pathlib import Path; from mmgym.agents.benchmark import *;"
        "run_benchmark(load_benchmark(sys.argv[1]), Path(sys.argv[2]), workers=1, progress=False)"
    )
    command = [sys.executable, "-c", script, str(file), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while len(list(out.rglob("cells/*/*.json"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("cells/*/*.json")}
    return file, out, before, run_benchmark(load_benchmark(file), out, workers=2, progress=False)


def test_a_market_in_which_nothing_is_better_is_a_failed_cell(tmp_path):
    """Without fills every policy is worth the same: its skill would be 0/0."""
    path = tmp_path / "idle.yml"
    arguments = "{num_steps: 3, fill_rate: 1.0e-12, running_penalty: 0.0}"
    path.write_text(f"seeds: [0]\nenvironments: {{{AS}: {{algorithms: [ppo], arguments: {arguments}}}}}\n")
    result = run_cell(plan(load_benchmark(path))[0], tmp_path)
    assert result["status"] == "failed" and "no policy is better there than the one with skill 0" in result["error"]


@pytest.mark.long
def test_a_market_whose_parameters_are_drawn(tmp_path):
    """Its settings are those of the market's own entry; regret is that to who knows the parameters."""
    market = f"{AS}, drawn"
    (tmp_path / "ppo.yml").write_text(TINY + TINY.replace(AS, market).replace("n_envs: 8", "n_envs: 4"))
    path = tmp_path / "drawn.yml"
    path.write_text(
        f"title: drawn\nseeds: [0]\nenvironments:\n  {market}:\n    env: {AS}\n    policies: []\n"
        "    arguments: {num_steps: 20, randomise: {fill_decay: [uniform, 1.0, 2.0]}, observe_parameters: true}\n"
        f"    algorithms: [{tmp_path}/ppo.yml]\n"
    )
    cells = plan(load_benchmark(path))
    assert cells[1]["settings"]["n_envs"] == 4
    policies, agent = (run_cell(cell, tmp_path) for cell in cells)
    assert (policies["status"], agent["status"]) == ("finished", "finished")
    cells = agent["analysis"]["regret"]["coordinates"]["fill_decay"]["cells"]
    assert np.sum(cells) == pytest.approx(agent["score"]["regret"][0], rel=1e-6)
    for panel in agent["analysis"]["quotes"]:
        assert panel["where"]["fill_decay"] == pytest.approx(1.5) and len(panel["inventory"]) == 21
        assert np.all(np.diff(panel["optimal"][0][:-1]) > 0.0)  # bids recede below its limit


@pytest.mark.long
def test_a_killed_benchmark_goes_on_and_runs_nothing_twice(finished):
    file, out, before, results = finished
    cells = plan(load_benchmark(file))
    assert 2 <= len(before) < len(cells) == 5
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written
    assert [result["cell"] for result in results] == cells
    assert not list(out.rglob("*.part*"))
    after = {path: path.stat().st_mtime_ns for path in out.rglob("cells/*/*.json")}
    again = run_benchmark(load_benchmark(file), out, progress=False)
    assert again == results
    assert after == {path: path.stat().st_mtime_ns for path in out.rglob("cells/*/*.json")}


@pytest.mark.long
def test_a_worker_dies_with_its_benchmark(tmp_path):
    """A worker whose standard input closes ends; one that is waiting for its cell too."""
    command = [sys.executable, "-m", "mmgym.agents.benchmark_cell"]
    cell = plan(load_benchmark(benchmark_file(tmp_path)))[1] | {"timesteps": 10**8}
    order = {"cell": cell, "folder": str(tmp_path / "run"), "file": str(tmp_path / "cell.json")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as worker:
        worker.stdin.write(json.dumps(order).encode() + b"\n")
        worker.stdin.flush()
        end = time.monotonic() + 60
        while not (tmp_path / "run" / "run.json").exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait(timeout=20) == 1
    assert not (tmp_path / "cell.json").exists()


@pytest.mark.long
def test_results_are_those_of_the_score(finished):
    _, _, _, results = finished
    tidy = tidy_table(results)
    papers = baselines.paper_policies(AS, num_steps=20)
    for name in ("hjb", "constant"):
        score = baselines.score(AS, papers[name], num_steps=20)
        row = tidy[tidy["name"] == name].iloc[0]
        assert (row["value"], row["skill"], row["regret"]) == pytest.approx((score.value, score.skill, score.regret))
    agents = [r for r in results if r["status"] == "finished" and r["cell"]["kind"] == "agent"]
    for result in agents:
        part = result["analysis"]["regret"]["coordinates"]["inventory"]["cells"]
        assert np.sum(part) == pytest.approx(result["score"]["regret"], rel=1e-5)


@pytest.mark.long
def test_an_agent_is_analysed_on_the_actions_that_it_was_trained_with(tmp_path):
    """DQN plays flat actions, and its optimum is that of flat actions; the papers' policies see all of them."""
    env_id = "mmgym/TickSpread-v0"
    (tmp_path / "dqn.yml").write_text(
        f"{env_id}:\n  n_envs: 8\n  n_timesteps: 400\n  policy: MlpPolicy\n  gamma: 1.0\n  learning_starts: 80\n"
        "  batch_size: 16\n  buffer_size: 400\n"
    )
    path = tmp_path / "flat.yml"
    path.write_text(
        f"seeds: [0]\nenvironments:\n  {env_id}:\n    algorithms: [{tmp_path}/dqn.yml]\n"
        "    arguments: {num_steps: 20, horizon: 20.0, lot: 50.0, inventory_limit: 200.0}\n"
    )
    papers, agent = plan(load_benchmark(path))
    result = run_cell(agent, tmp_path / "run")
    assert result["status"] == "finished", result.get("traceback")
    optimum = baselines.optimal_policy(env_id, **agent["arguments"], actions="flat").optimum
    assert result["score"]["optimum_lower"] == pytest.approx(optimum, rel=1e-12)
    assert optimum < baselines.optimal_policy(env_id, **papers["arguments"]).optimum
    assert result["analysis"]["regret"] and result["analysis"]["quotes"]


@pytest.mark.long
def test_failures_are_shown_and_count_as_losses(finished, capsys):
    file, out, _, results = finished
    failed = [result for result in results if result["status"] == "failed"]
    assert {result["cell"]["name"] for result in failed} == {"ppo-broken"}
    assert len(failed) == 2
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", str(file), "--folder", str(out)])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert printed.count("failed: mmgym-AvellanedaStoikov-v0/ppo-broken-") == 2
    summary = summary_table(tidy_table(results), AS).set_index("policy")
    assert summary.loc["ppo-broken", "failed"] == 2
    assert summary.loc["ppo-broken", "skill"] == -math.inf
    assert summary.loc["ppo", "failed"] == 0
    written = pd.read_csv(out / "results.csv")
    assert (written["status"] == "failed").sum() == 2
    assert json.loads((out / "benchmark.json").read_text())["failed"] == 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "ppo-broken" in page
    assert failed[0]["error"].split(":")[0] in page


@pytest.mark.long
def test_a_worker_that_is_killed_is_a_failed_cell_and_can_be_retried(tmp_path, monkeypatch):
    """The worker's interpreter ends at once, as if the system had killed it."""
    benchmark = load_benchmark(benchmark_file(tmp_path, seeds="[0]"))
    false = shutil.which("false")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", false)
        results = run_benchmark(benchmark, tmp_path / "out", workers=2, progress=False)
    assert [result["status"] for result in results] == ["failed", "failed"]
    assert "status 1" in results[0]["error"]
    kept = run_benchmark(benchmark, tmp_path / "out", progress=False)
    assert kept == results
    papers = plan(benchmark)[0]
    again = run_benchmark(benchmark._replace(seeds=[0]), tmp_path / "out", workers=2, retry_failed=True, progress=False)
    assert [result["status"] for result in again] == ["finished", "finished"]
    assert result_file(tmp_path / "out", papers).exists()


def test_two_benchmarks_do_not_share_a_folder(tmp_path):
    from filelock import FileLock

    benchmark = load_benchmark(benchmark_file(tmp_path))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "lock"), pytest.raises(RuntimeError, match="another benchmark is at work"):
        run_benchmark(benchmark, tmp_path / "out", progress=False)


# --- tables, of made-up runs


def made_up():
    def row(env, kind, name, seed, skill, status="finished"):
        regret = 10.0 * (1.0 - skill) if status == "finished" else None
        return {
            "env": env,
            "kind": kind,
            "name": name,
            "seed": seed,
            "status": status,
            "skill": skill,
            "regret": regret,
        }

    rows = [row("a", "agent", "x", seed, skill) for seed, skill in enumerate([0.1, 0.5, 0.6, 0.7, 0.9])]
    rows += [row("b", "agent", "x", seed, skill) for seed, skill in enumerate([0.2, 0.2, 0.2])]
    rows += [row("a", "agent", "y", seed, skill) for seed, skill in enumerate([0.8, 0.8, 0.8, 0.8])]
    rows += [row("a", "agent", "y", 4, None, "failed")]
    rows += [row("a", "optimum", "optimal", None, 1.0), row("a", "paper", "p", None, 0.55)]
    rows += [row("a", "paper", "random", None, 0.99)]
    return pd.DataFrame(rows).assign(steps=100, seconds=2.0)


def test_summary_of_made_up_runs():
    table = summary_table(made_up(), "a").set_index("policy")
    assert list(table.index) == ["optimal", "random", "y", "x", "p"]
    assert table.loc["x", "skill"] == pytest.approx(0.6)  # of 0.5, 0.6, 0.7
    assert table.loc["x", "regret"] == pytest.approx(4.0)
    assert table.loc["x", "P(improvement)"] == pytest.approx(3 / 5)  # against p; random is no paper's policy
    assert table.loc["y", "P(improvement)"] == pytest.approx(4 / 5)
    assert table.loc["y", "skill low"] == -math.inf
    assert table.loc["y", "regret high"] == math.inf
    assert table.loc["y", ["runs", "failed"]].tolist() == [5, 1]
    assert math.isnan(table.loc["p", "skill low"])


def test_overall_and_pairwise_tables_of_made_up_runs():
    overall = overall_table(made_up()).set_index("algorithm")
    # eight runs, two cut off at each end: 0.2, 0.2, 0.5, 0.6 remain
    assert overall.loc["x", "skill"] == pytest.approx(1.5 / 4)
    assert overall.loc["x", ["markets", "runs"]].tolist() == [2, 8]
    pairs = pairwise_table(made_up()).set_index(["first", "second"])
    # in market a only: 0.9 beats the four 0.8 and all five beat the failed run, 9 of 25; the better one is first
    assert list(pairs.index) == [("y", "x")]
    assert pairs.loc[("y", "x"), "P(improvement)"] == pytest.approx(16 / 25)
    assert pairs.loc[("y", "x"), "P(improvement) high"] > 16 / 25 > pairs.loc[("y", "x"), "P(improvement) low"]


def test_what_it_takes_to_reach_a_skill():
    """By hand: the later of two points of a curve counts, the end of a run too, and runs that never do are infinite."""

    value = {"value": 1.0, "optimum_lower": 2.0, "optimum_upper": 2.0}

    def run(name, curve, end):
        points = [{"steps": steps, "skill": skill} for steps, skill in curve]
        cell = {"kind": "agent", "market": "a", "name": name, "seed": 0}
        result = {"cell": cell, "status": "finished", "curve": points, "steps": 100, "seconds": 50.0}
        return result | {"steps_per_second": 2.0, "score": {"skill": end, **value}}

    x = [run("x", [(0, 0.1), (40, 0.95)], 0.99), run("x", [(0, 0.1), (60, 0.89)], 0.9), run("x", [(20, 0.9)], 0.5)]
    lost = [run("z", [], 0.95) | {"status": "failed", "error": "", "wall_seconds": 1.0} for _ in range(2)]
    tidy = tidy_table([*x, run("y", [(0, 0.0)], 0.8), run("z", [(50, 0.9)], 0.9), *lost])
    assert tidy["steps_to_0.9"][:4].tolist() == [40.0, 100.0, 20.0, math.inf]
    table = efficiency_table(tidy, "a").set_index("algorithm")
    assert table.loc["x"].tolist() == ["3 of 3", 40.0, 20.0]
    assert table.loc["y"].tolist() == ["0 of 1", math.inf, math.inf]
    assert table.loc["z"].tolist() == ["1 of 3", math.inf, math.inf]
    assert not len(efficiency_table(tidy, "b"))


def test_performance_profiles(monkeypatch):
    """The share of runs above a threshold; failed runs are above none."""
    drawn, figures = new_figure, []
    monkeypatch.setattr(pictures, "new_figure", lambda *size: figures.append(drawn(*size)) or figures[-1])
    skills = skills_of(made_up())
    assert {name: len(runs) for name, runs in skills.items()} == {"x": 8, "y": 5}
    pictures.picture_of_profiles(skills)
    lines = {line.get_label().split()[0]: line.get_xydata() for line in figures[0].axes[0].lines}
    for name, shares in {"x": {0.15: 7, 0.55: 3, 0.95: 0}, "y": {0.15: 4, 0.95: 0}}.items():
        for threshold, count in shares.items():
            at = np.abs(lines[name][:, 0] - threshold).argmin()
            assert lines[name][at, 1] == pytest.approx(count / len(skills[name]))


def test_skills_below_the_axis_are_shown_with_their_number(monkeypatch):
    """No policy is left out of the picture: a bad one and one whose runs failed lie on its edge."""
    drawn, figures = new_figure, []
    monkeypatch.setattr(pictures, "new_figure", lambda *size: figures.append(drawn(*size)) or figures[-1])
    table = summary_table(made_up(), "a")
    table.loc[3, ["skill", "skill low", "skill high"]] = [-3.25, -4.0, -2.0]
    table.loc[4, "skill"] = -math.inf
    assert pictures.picture_of_skill(table).startswith("data:image/png;base64,")
    axis = figures[0].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(table["policy"])[::-1]
    assert [text.get_text() for text in axis.texts] == ["-inf", "-3.25"]
    assert axis.get_xlim()[0] > -0.7


def test_markdown_table():
    lines = markdown_table({"a": summary_table(made_up(), "a")}).splitlines()
    assert lines[3].startswith("| `a` | x | 5 | 0.6000 [")
    assert "5, 1 failed" in lines[2]
    assert lines[4] == "| `a` | p | paper | 0.5500 | 4.5000 |  |  |"


# --- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0]\n", "environments must map"),
        ("seeds: 5\nenvironments: {a: }\n", "seeds = 5 must be a list"),
        ("seeds: [true]\nenvironments: {a: }\n", "must be a list of whole numbers"),
        ("seeds: [0, 0]\nenvironments: {a: }\n", "must differ"),
        ("seeds: [0]\nsurprise: 1\nenvironments: {a: }\n", "unknown key 'surprise'.*allowed are title"),
        ("seeds: [0]\nenvironments: {a: {tries: 3}}\n", "unknown key 'tries' of a: allowed are env, algorithms"),
        ("seeds: [0]\nbudgets: {ppo: 0}\nenvironments: {a: }\n", "budget of ppo = 0 must be"),
        ("a: [", "is not YAML"),
        ("- 1\n", "must be a mapping"),
    ],
)
def test_bad_benchmark_files_are_named(tmp_path, text, message):
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_benchmark(tmp_path / "bad.yml")


def test_bad_arguments_are_named(tmp_path):
    benchmark = load_benchmark(benchmark_file(tmp_path))
    with pytest.raises(ValueError, match="engine = 'slurm' is not allowed: it must be one of processes, ray"):
        run_benchmark(benchmark, tmp_path / "out", engine="slurm")
    with pytest.raises(ValueError, match="workers = 0 is not allowed"):
        run_benchmark(benchmark, tmp_path / "out", workers=0)
    with pytest.raises(FileNotFoundError, match="no benchmark 'nothing'"):
        load_benchmark("nothing")


BOX = {"ppo", "a2c", "sac", "td3", "tqc", "behaviour_cloning"}
DISCRETE = {"ppo", "maskable_ppo", "dqn", "qrdqn"}


# The others have the settings of ids without an entry, or carried over.
BENCHMARKED = [row for row in ENVIRONMENTS if not row.declared and row.market != "robust_glft"]
BENCHMARKED = [row for row in BENCHMARKED if "Compact" not in row.id and "StrongImpact" not in row.id]


def test_every_algorithm_has_settings_for_every_id_whose_actions_it_can_send():
    """So that no algorithm is left out of the benchmark unseen; one with a memory where something can be hidden."""
    fit = {(row.id, name) for row in BENCHMARKED for name in (DISCRETE if "TickSpread" in row.id else BOX)}
    arguments = {row.id: gymnasium.make(row.id).unwrapped.params._fields for row in BENCHMARKED}
    hiding = {env for env, names in arguments.items() if any(name.startswith("observe") for name in names)}
    assert "mmgym/HawkesFlow-v0" in hiding
    fit |= {(env, "recurrent_ppo") for env in hiding}
    assert fit <= {(row.id, name) for row in BENCHMARKED for name in configurations_for(row.id)}


def test_the_benchmark_has_the_same_budget_for_every_algorithm():
    """Ten seeds that no study was on; every algorithm tuned, and with what its library says."""
    benchmark = load_benchmark("benchmark")
    assert len(benchmark.seeds) == 10 and not set(benchmark.seeds) & {*range(5), *benchmark.tuning["seeds"]}
    trained: dict[str, set[str]] = {}
    for cell in plan(benchmark):
        if cell["kind"] == "agent":
            trained.setdefault(cell["market"], set()).add(cell["name"])
        if cell["name"].endswith("-defaults"):  # nothing of ours but how many environments there are
            assert cell["settings"]["hyperparameters"] == {"policy": "MlpPolicy", "gamma": 1.0}
            assert not cell["settings"]["normalize"]

    def both(*names):
        return {f"{name}-{kind}" for name in names for kind in ("tuned", "defaults")}

    assert trained.pop("mmgym/TickSpreadCompact-v0") == both("maskable_ppo", "a2c", "dqn")
    assert trained.pop("mmgym/HawkesFlow-v0, tape") == {"ppo-tuned", "natural_gradient-tuned", "recurrent_ppo-tuned"}
    boxes = both("ppo", "a2c", "sac") | {"natural_gradient-tuned"}  # which is ours: no library has defaults of it
    assert len(trained) == 7 and all(names == boxes for names in trained.values())
    assert "benchmark" not in config_names()
    assert plan(load_benchmark("configs/benchmark_quick.yml"))


def test_a_market_has_a_name_of_its_own_and_the_algorithms_that_suit_it(tmp_path):
    flow = "mmgym/HawkesFlow-v0"
    path = tmp_path / "hidden.yml"
    head = f"seeds: [0]\nenvironments:\n  {flow}:\n  hidden:\n    env: {flow}\n"
    tape = f"  tape:\n    env: {flow}\n    arguments: {{observe: tape}}\n"
    path.write_text(head + "    arguments: {observe: fills}\n" + tape)
    cells = plan(load_benchmark(path))
    names = {
        market: {cell["name"] for cell in cells if cell["market"] == market} for market in (flow, "hidden", "tape")
    }
    assert names["hidden"] - names[flow] == {"recurrent_ppo"}
    assert names["tape"] - names["hidden"] == {"natural_gradient-memory"}  # of the orders, which fills do not show
    assert {cell["env"] for cell in cells} == {flow}
    assert len({cell["key"] for cell in cells}) == len(cells)
    path.write_text(head)
    with pytest.raises(ValueError, match="hidden: policies with the same settings is also in mmgym/HawkesFlow-v0"):
        plan(load_benchmark(path))
    path.write_text(f"seeds: [0]\nenvironments:\n  {AS}: {{policies: []}}\n")
    renamed = tmp_path / "renamed.yml"
    renamed.write_text(f"seeds: [0]\nenvironments:\n  name: {{env: {AS}, policies: []}}\n")
    keys = [[cell["key"] for cell in plan(load_benchmark(file))] for file in (path, renamed)]
    assert keys[0] == keys[1]  # a name is no setting: nothing is run again


def test_a_changed_budget_is_another_cell(tmp_path):
    first = load_benchmark(benchmark_file(tmp_path))
    second = first._replace(budgets={"ppo": 800})
    keys = [{cell["key"] for cell in plan(benchmark)} for benchmark in (first, second)]
    assert len(keys[0] & keys[1]) == 1  # the papers' policies


@pytest.mark.long
@pytest.mark.parametrize("name", ["benchmark", "benchmark_boxes", "benchmark_quick", "benchmark_unseen"])
def test_the_page_shows_the_committed_results(name):
    folder = ROOT / "configs" / "results" / name
    about = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    assert about["finished"] == about["cells"] == len(plan(load_benchmark(name)))
    assert {"versions", "commit", "seeds", "budgets", "written"} <= set(about)
    summary = pd.read_csv(folder / "summary.csv")
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == results_page(folder)
    assert markdown_table(dict(list(summary.groupby("env", sort=False)))) in page
    tidy = pd.read_csv(folder / "results.csv").astype({"seed": "Int64"})
    for env_id, rows in summary.groupby("env", sort=False):  # the summary is that of the runs
        again = summary_table(tidy, str(env_id))
        pd.testing.assert_frame_equal(again, rows.drop(columns="env").reset_index(drop=True), rtol=1e-9, atol=1e-9)


# --- the report in a browser


@pytest.mark.long
def test_the_report_is_read_back_in_chromium(finished, browser):
    file, out, _, results = finished
    summary = write_report(load_benchmark(file), results, out)[AS]
    browser.get((out / "report.html").as_uri())
    assert browser.title == "mmgym benchmark: tiny"
    table = browser.find_element("id", "table-mmgym-AvellanedaStoikov-v0")

    def column(number):
        rows = table.find_elements("css selector", "tbody tr")
        return [row.find_elements("css selector", "td")[number].text for row in rows]

    heads = table.find_elements("css selector", "th")
    names = [head.text for head in heads]
    assert names == ["policy", "kind", "runs", "failed", "skill", "regret", "P(improvement)", "steps", "seconds"]
    assert column(0) == list(summary["policy"]) == ["optimal", "hjb", *summary["policy"][2:]]
    shown = dict(zip(column(0), column(4), strict=True))
    for row in summary[summary["kind"] == "paper"].to_dict("records"):
        assert shown[row["policy"]] == f"{row['skill']:.4f}"
    assert shown["ppo-broken"].startswith("−∞")
    heads[5].click()  # regret, largest first
    regrets = summary.sort_values("regret", ascending=False)["policy"]
    assert column(0) == list(regrets)
    assert heads[5].get_attribute("aria-sort") == "descending"
    heads[5].click()
    assert column(0) == list(regrets[::-1])
    heads[0].click()
    assert column(0) == sorted(summary["policy"], reverse=True)
    assert len(browser.find_elements("css selector", "#failures li")) == 2
    pictures = browser.find_elements("css selector", "img")
    assert len(pictures) == 5  # the profiles of all markets first
    for picture in pictures:  # decoded, and inside the file
        assert browser.execute_script("return arguments[0].naturalWidth", picture) > 300
        assert picture.get_attribute("src").startswith("data:image/png;base64,")
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


OTHERS = """
import numpy as np
from mmgym.baselines import paper_policies

def seeded(env, seed):
    if env.action_space.shape != (2,):
        return None
    lean = 0.1 * seed
    return lambda seen: np.clip(np.stack([lean + seen[:, 1], lean - seen[:, 1]], axis=1), -1, 1)

def alone(env):
    return paper_policies(env)["constant"] if "constant" in paper_policies(env) else None
"""


@pytest.mark.long
def test_agents_of_others_stand_beside_the_shipped_results(tmp_path, monkeypatch, capsys):
    """Their rows are marked, told by source and digest, and scored as `score` does; the other rows stay."""
    (tmp_path / "somebody_else.py").write_text(OTHERS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    env = gymnasium.make("mmgym/AvellanedaStoikov-v0")
    runs = tmp_path / "theirs" / "mmgym-AvellanedaStoikov-v0"
    runs.mkdir(parents=True)
    baselines.write_table(baselines.paper_policies(env)["hjb"], env, runs / "0.npz")
    folder = tmp_path / "board"
    words = ["--add", "lean", "somebody_else:seeded", "--add", "saved", str(tmp_path / "theirs")]
    assert main(["benchmark", "benchmark_quick", *words, "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "| lean | 3, added |" in out and "| saved | 1, added |" in out
    tidy = pd.read_csv(folder / "results.csv")
    shipped = pd.read_csv(shipped_folder() / "results" / "benchmark_quick" / "results.csv")
    assert len(tidy[tidy["kind"] != "added"]) == len(shipped)
    mine = tidy[(tidy["name"] == "lean") & (tidy["env"] == env.spec.id)].set_index("seed")
    for seed in (0, 1, 2):
        lean = 0.1 * seed
        score = baselines.score(
            env, lambda seen, lean=lean: np.clip(np.stack([lean + seen[:, 1], lean - seen[:, 1]], axis=1), -1, 1)
        )
        assert abs(mine.loc[seed, "value"] - score.value) < 5.0 * (mine.loc[seed, "stderr"] + score.stderr)
    saved = tidy[tidy["name"] == "saved"].iloc[0]
    assert saved["skill"] == pytest.approx(baselines.score(env, baselines.paper_policies(env)["hjb"]).skill, rel=1e-9)
    about = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((tmp_path / "somebody_else.py").read_bytes()).hexdigest()
    assert about["added"]["lean"] == {"source": "somebody_else:seeded", "sha256": digest}
    for page in ("README.md", "report.html"):
        text = (folder / page).read_text(encoding="utf-8")
        assert "Added to the benchmark: lean from somebody_else:seeded" in text and "lean (added)" in text
    # again, with another agent: those that were added before stay
    assert main(["benchmark", "benchmark_quick", "--add", "flat", "somebody_else:alone", "--folder", str(folder)]) == 0
    assert {"lean", "saved", "flat"} <= set(pd.read_csv(folder / "results.csv")["name"])
    capsys.readouterr()
    for source, words in (
        ("nowhere", "neither a folder nor module:function"),
        ("somebody_else:no_such", "has no function 'no_such'"),
        (str(tmp_path), "has no policy for any market"),
    ):
        assert main(["benchmark", "benchmark_quick", "--add", "x", source, "--folder", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert main(["benchmark", "benchmark_quick", "--add", "ppo", "somebody_else:alone", "--folder", str(folder)]) == 2
    assert "the name 'ppo' is taken" in capsys.readouterr().err
    # a file of the same title with fewer markets leaves the others' rows; one with other arguments is refused
    rows, few = len(pd.read_csv(folder / "results.csv")), tmp_path / "few.yml"
    few.write_text(f"title: quick\nseeds: [0]\nenvironments: {{{AS}: {{algorithms: [ppo]}}}}\n", encoding="utf-8")
    words = ["benchmark", str(few), "--add", "one", "somebody_else:alone", "--folder", str(folder)]
    assert main(words) == 0 and len(pd.read_csv(folder / "results.csv")) == rows + 1
    assert main([*words, "--add", "one", "somebody_else:seeded"]) == 2
    assert "--add one is there twice" in capsys.readouterr().err
    few.write_text(few.read_text().replace("ppo]", "ppo], arguments: {num_steps: 20}"), encoding="utf-8")
    assert main([*words[:3], "two", *words[4:]]) == 2
    assert f"has no results of {AS} as it is in the benchmark 'quick'" in capsys.readouterr().err
