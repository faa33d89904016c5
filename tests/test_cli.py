"""The command line as a user meets it."""

import json
import os
import re
import subprocess
import sys
import zipfile
import zlib

import gymnasium
import numpy as np
import pandas as pd
import pytest

import mmgym
from mmgym import baselines
from mmgym.agents import cli
from mmgym.agents.cli import main
from mmgym.agents.commands.command import environment_id

AS = "mmgym/AvellanedaStoikov-v0"
SHORT = ("--env", AS, "--set", "num_steps=5", "--set", "inventory_limit=3")


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("another benchmark is at work in x: wait"), 2, "another benchmark is at work in x: wait"),
        (MemoryError(), 2, "not enough memory: .*lower num_steps, inventory_limit"),
        (MemoryError("Unable to allocate 29.1 TiB for an array"), 2, "29.1 TiB.*lower num_steps"),
        (ArithmeticError("only known to 0.1: lower it"), 2, "only known to 0.1: lower it"),
        (ZeroDivisionError("division by zero"), 2, "division by zero"),
        (zlib.error("Error -3 while decompressing data"), 2, "compressed file is damaged .*delete it"),
        (zipfile.BadZipFile("File is not a zip file"), 2, "not a zip file"),
        (EOFError(), 1, "EOFError: .*--traceback"),
        (AttributeError("'NoneType' object has no attribute 'x'"), 1, "AttributeError: 'NoneType'.*--traceback list"),
        (AssertionError(), 1, "AssertionError: .*report it"),
        (RecursionError("maximum recursion depth exceeded"), 2, "recursion"),
        (KeyError("missing"), 2, "mmgym list: missing$"),
        (ValueError("two\nlines"), 2, "two lines$"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is kept of what was not written: run it again"),
    ],
)
def test_every_error_is_one_line_with_a_way_on(capsys, monkeypatch, error, status, words):
    def fail(options):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "list", cli.COMMANDS["list"]._replace(run=fail))
    code, out, err = run(capsys, "list")
    assert (code, out) == (status, "")
    assert err.count("\n") == 1 and re.search(words, err.rstrip())
    with pytest.raises(type(error)):
        main(["--traceback", "list"])


@pytest.mark.parametrize(("command", "words"), [("train", "--resume goes on"), ("benchmark", "goes on with the cells")])
def test_an_interrupted_command_says_how_to_go_on(capsys, monkeypatch, command, words):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command, cli.COMMANDS[command]._replace(run=interrupt))
    status, _, err = run(capsys, command, "ppo", *(["--env", AS] if command == "train" else []))
    assert status == 130 and "interrupted" in err and words in err


def test_sizes_are_checked_before_memory_is_asked_for(capsys):
    """29 TiB of tables: refused at once, with the arguments that make them smaller."""
    words = ("--env", "mmgym/GLFT-v0", "--set", "inventory_limit=1e6", "--set", "num_steps=1000000")
    for command in (("solve", *words), ("score", *words, "constant"), ("score", *words, "constant", "--simulated")):
        status, out, err = run(capsys, *command)
        assert (status, out) == (2, "")
        assert re.search(r"1,000,000 steps x 2,000,001 states .* GiB, and this machine has .*lower num_steps", err)


@pytest.mark.parametrize(
    ("env_id", "arguments", "named"),
    [
        ("mmgym/TickSpread-v0", {"inventory_limit": 1e7, "num_steps": 1_000_000}, "raise lot"),
        (
            "mmgym/StochasticVolatility-v0",
            {"inventory_limit": 1e6, "num_steps": 1_000_000},
            "inventory_limit",
        ),
        ("mmgym/HawkesFlow-v0", {"inventory_limit": 1_000_000}, "inventory_limit, horizon"),
    ],
)
def test_solutions_that_do_not_fit_into_memory_are_refused(env_id, arguments, named):
    with pytest.raises(MemoryError, match=rf"GiB, and this machine has .* GiB: lower .*{named}"):
        baselines.best_known_policy(env_id, **arguments)


def test_batches_that_do_not_fit_into_memory_are_refused(monkeypatch):
    import mmgym.arguments

    monkeypatch.setattr(mmgym.arguments.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1000)
    with pytest.raises(MemoryError, match=r"100,000 environments would take .* GiB: lower num_envs"):
        gymnasium.make_vec(AS, num_envs=100_000)
    gymnasium.make_vec(AS, num_envs=100).close()


def test_list(capsys, tmp_path):
    status, out, _ = run(capsys, "list", "--output", str(tmp_path / "list.csv"))
    assert status == 0
    assert AS in out
    assert AS in (tmp_path / "list.csv").read_text()


def test_solve_prints_the_optimum(capsys):
    status, out, _ = run(capsys, "solve", "--env", AS)
    assert status == 0
    assert "66.2438786910" in out
    assert "bind in 0 of 4200 cells" in out


@pytest.mark.long
def test_score_papers_and_risk(capsys, tmp_path):
    file = tmp_path / "scores.json"
    status, out, _ = run(
        capsys,
        "score",
        "--env",
        AS,
        "--set",
        "num_steps=10",
        "optimal",
        "hjb",
        "constant",
        "--risk",
        "--output",
        str(file),
    )
    assert status == 0
    rows = {row.pop("policy"): row for row in json.loads(file.read_text())}
    assert rows["constant"]["value"] == pytest.approx(61.0384347660, abs=1e-6)
    assert rows["optimal"]["skill"] == pytest.approx(1.0)
    # VaR and CVaR of the constant quote do not depend on the number of steps (reference mathematics, section 6)
    assert rows["constant"]["VaR 95%"] == pytest.approx(-45.245508, abs=2e-5)
    assert rows["constant"]["CVaR 99%"] == pytest.approx(-27.880104, abs=2e-5)
    assert "P&L std" in out


def test_train_score_and_resume(capsys, tmp_path):
    config = tmp_path / "ppo.yml"
    config.write_text(
        f"{AS}: {{n_envs: 8, n_timesteps: 1600, n_steps: 100, batch_size: 400, gamma: 1.0}}\n", encoding="utf-8"
    )
    folder, market = str(tmp_path / "run"), ("--env", AS, "--set", "num_steps=40")
    picture = tmp_path / "course.png"
    words = ("--seed", "3", "--folder", folder, "--plot", str(picture))
    status, out, err = run(capsys, "train", str(config), *market, *words)
    assert status == 0, err
    assert picture.read_bytes()[:4] == b"\x89PNG"
    skill = float(out.split()[1].rstrip(","))
    assert ("worse than the reference policy" in out) == (skill < 0.0)
    status, out, _ = run(capsys, "score", *market, folder, "--as-it-acts")
    assert status == 0
    assert "exact, as it acts" in out
    status, out, _ = run(capsys, "train", str(config), *market, "--seed", "3", "--folder", folder, "--resume")
    assert status == 0


@pytest.mark.long
def test_demo_writes_its_pictures_and_table(capsys, tmp_path):
    status, out, _ = run(capsys, "demo", "--folder", str(tmp_path / "demo"), "--timesteps", "200000", "--threads", "1")
    assert status == 0
    for name in ("optimal", "natural_gradient", "avellaneda_stoikov", "constant"):
        assert name in out
    for picture in ("quotes.png", "regret.png"):
        assert (tmp_path / "demo" / picture).stat().st_size > 20_000
    table = pd.read_csv(tmp_path / "demo" / "scores.csv", index_col=0)
    assert table.loc["optimal", "skill"] == pytest.approx(1.0)


def test_calibrate_what_a_rollout_writes(capsys, tmp_path):
    """Simulate quotes, write them, and find the parameters again (4 standard errors, fixed seed)."""

    def wander(observations):
        turn = 40.0 * observations[:, 0]
        return np.stack([np.sin(turn), np.cos(1.3 * turn)], axis=1).astype(np.float32)

    rows = baselines.rollout(AS, wander, episodes=20, seed=0, inventory_limit=500.0)
    rows["bid_exposure"] = rows["ask_exposure"] = 1 / 200
    rows.to_csv(tmp_path / "quotes.csv", index=False)
    output, plot = tmp_path / "fit.csv", tmp_path / "fit.png"
    status, out, err = run(
        capsys, "calibrate", "glft", str(tmp_path / "quotes.csv"), "--output", str(output), "--plot", str(plot)
    )
    assert status == 0, err
    assert "gymnasium.make" in out
    assert plot.stat().st_size > 10_000
    table = pd.read_csv(output, index_col=0)
    truth = {"volatility": 2.0, "fill_rate": 140.0, "fill_decay": 1.5}
    for name, row in table.iterrows():
        for word, value in truth.items():
            if str(name).startswith(word):
                assert abs(row["estimate"] - value) < 4 * row["standard_error"], (name, row.to_dict())


def test_errors_say_what_is_allowed(capsys, tmp_path):
    for words, message in [
        (("solve", "--env", "mmgym/Nothing-v0"), "Nothing"),
        (("solve", "--env", AS, "--set", "num_steps=0"), "whole number from 1"),
        (("solve", "--env", AS, "--set", "num_steps"), "name=value"),
        (("solve", "--env", AS, "--set", "colour=3"), "unexpected keyword argument 'colour'"),
        (
            ("score", "--env", AS, "nobody"),
            "module:function nor one of: all, optimal",
        ),
        (
            ("train", "nothing", "--env", AS),
            "one of a2c, a2c-defaults, a2c-tuned, ars, behaviour_cloning, dqn",
        ),
        (("calibrate", "glft", str(tmp_path / "none.csv")), "none.csv"),
        (("list", "--output", "table.txt"), ".csv or .json"),
        (("throughput", "--seconds", "0"), "must be > 0"),
    ]:
        status, _, err = run(capsys, *words)
        assert status == 2, words
        assert message in err, (words, err)


def test_an_equilibrium_that_is_not_found_is_an_error_line(monkeypatch, capsys):
    from mmgym.models import mean_field_limit, mean_field_population

    def refuse(game):
        raise mean_field_limit.NotConverged("no equilibrium found: lower the impact")

    monkeypatch.setattr(mean_field_population, "equilibrium_flow", refuse)
    for command in (["solve"], ["score", "optimal"]):
        arguments = ["--env", "mmgym/MeanFieldMaker-v0", "--set", "impact=0.0123", "--set", "num_steps=100"]
        assert main([command[0], *command[1:], *arguments]) == 2
        assert capsys.readouterr().err == f"mmgym {command[0]}: no equilibrium found: lower the impact\n"


def test_ids_are_understood_without_their_frame(capsys):
    for text in (AS, "AvellanedaStoikov-v0", "AvellanedaStoikov", "avellanedastoikov"):
        assert environment_id(text) == AS
    assert environment_id("mylab.linear_fills:mylab/LinearFills-v0") == "mylab.linear_fills:mylab/LinearFills-v0"
    for text, meant in (("Avelaneda", AS), ("hawkes", "mmgym/HawkesFlow-v0"), ("mmgym/GLFTT-v0", "mmgym/GLFT-v0")):
        status, _, err = run(capsys, "solve", "--env", text)
        assert status == 2 and f"--env {text}: no such environment; did you mean" in err and meant in err
    status, _, err = run(capsys, "solve", "--env", "nothing_like_it")
    assert status == 2 and "did you mean" not in err and "mmgym list" in err


@pytest.mark.parametrize("command", [("list",), ("solve", *SHORT), ("score", *SHORT, "hjb", "constant")], ids=str)
def test_csv_and_json_are_the_same_table(command, capsys, tmp_path):
    files = [tmp_path / "table.csv", tmp_path / "table.json"]
    for file in files:
        assert run(capsys, *command, "--output", str(file))[0] == 0
    rows, table = json.loads(files[1].read_text()), pd.read_csv(files[0])
    assert all(list(row) == list(table.columns) for row in rows)
    pd.testing.assert_frame_equal(pd.DataFrame(rows), table, check_dtype=False, rtol=1e-12)


def test_solve_shows_inventory_0_and_writes_every_cell(capsys, tmp_path):
    file = tmp_path / "cells.csv"
    words = ("--set", "num_steps=8", "--set", "inventory_limit=9")
    status, out, _ = run(capsys, "solve", "--env", "AvellanedaStoikov", *words, "--output", str(file))
    assert status == 0 and re.search(r"^ +0 +0 ", out, re.MULTILINE)
    env = gymnasium.make(AS, num_steps=8, inventory_limit=9.0)
    best, cells = baselines.optimal_policy(env), pd.read_csv(file)
    assert len(cells) == 8 * 19 and not cells.duplicated(["step", "inventory"]).any()
    start = cells[(cells["step"] == 0) & (cells["inventory"] == 0)].iloc[0]
    assert start["value"] == pytest.approx(best.optimum, rel=1e-12)
    quotes = env.unwrapped.to_quotes(best.predict(env.reset(seed=0)[0])[0])
    np.testing.assert_allclose(start[["bid_depth", "ask_depth"]].to_numpy(float), quotes, rtol=1e-6)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"mmgym {mmgym.__version__}\n"


def test_an_output_that_is_closed_ends_a_command_with_one_line():
    words = [sys.executable, "-c", "import sys; from mmgym.agents.cli import main; sys.exit(main(['list']))"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == "mmgym list: the output was closed; files to be written after it are not\n"


def test_help_loads_no_table_library():
    """Help comes in half a second; only commands that read their options from the markets take longer."""
    code = (
        "import sys\nfrom mmgym.agents.cli import COMMANDS, make_parser\n"
        "for name in set(COMMANDS) - {'calibrate', 'simulate', 'reproduce', 'tape', 'replay'}:\n"
        "    make_parser([name])\n"
        "print(sorted({'torch', 'pandas', 'scipy.optimize', 'matplotlib', 'stable_baselines3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    code = "import sys\nfrom mmgym.agents.cli import make_parser\nmake_parser(['replay'])\n"
    code += "print([name for name in sys.modules if name.startswith('mmgym.baselines.mean_field')])"  # another market's
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
