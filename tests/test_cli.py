"""The command line as a user meets it."""

import json

import numpy as np
import pandas as pd
import pytest

import baselines
from agents.cli import main

AS = "mmgym/AvellanedaStoikov-v0"


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


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


def test_score_papers_and_risk(capsys, tmp_path):
    file = tmp_path / "scores.json"
    status, out, _ = run(
        capsys,
        "score",
        "--env",
        AS,
        "--set",
        "num_steps=50",
        "optimal",
        "hjb",
        "constant",
        "--risk",
        "--output",
        str(file),
    )
    assert status == 0
    found = json.loads(file.read_text())
    assert found["constant"]["value"] == pytest.approx(61.0384347660, abs=1e-6)
    assert found["optimal"]["skill"] == pytest.approx(1.0)
    # VaR and CVaR of the constant quote do not depend on the number of steps (reference mathematics, section 6)
    assert found["constant"]["VaR 95%"] == pytest.approx(-45.245508, abs=2e-5)
    assert found["constant"]["CVaR 99%"] == pytest.approx(-27.880104, abs=2e-5)
    assert "P&L std" in out


def test_train_score_and_resume(capsys, tmp_path):
    config = tmp_path / "ppo.yml"
    config.write_text(
        f"{AS}: {{n_envs: 8, n_timesteps: 1600, n_steps: 100, batch_size: 400, gamma: 1.0}}\n", encoding="utf-8"
    )
    folder, market = str(tmp_path / "run"), ("--env", AS, "--set", "num_steps=40")
    status, out, _ = run(capsys, "train", str(config), *market, "--seed", "3", "--folder", folder)
    assert status == 0
    assert "skill" in out
    status, out, _ = run(capsys, "score", *market, folder, "--as-it-acts")
    assert status == 0
    assert "exact, as it acts" in out
    status, out, _ = run(capsys, "train", str(config), *market, "--seed", "3", "--folder", folder, "--resume")
    assert status == 0


def test_demo_writes_its_picture_and_table(capsys, tmp_path):
    status, out, _ = run(capsys, "demo", "--folder", str(tmp_path / "demo"), "--timesteps", "51200", "--threads", "1")
    assert status == 0
    for name in ("optimal", "PPO", "avellaneda_stoikov", "constant"):
        assert name in out
    assert (tmp_path / "demo" / "quotes.png").stat().st_size > 20_000
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
        (("solve", "--env", AS, "--set", "colour=3"), "unknown argument 'colour'"),
        (("score", "--env", AS, "nobody"), "neither a folder, a table (.npz) nor one of: all, optimal"),
        (("train", "nothing", "--env", AS), "one of a2c, behaviour_cloning, dqn, exact_gradient"),
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
