"""Learning in the mean-field game: mixtures of populations, and runs of both learners."""

import json

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 (extra agents) is not installed")

from mmgym.agents.independent_takers import OneCrowd
from mmgym.agents.learn_game import load_game, play_game
from mmgym.agents.table_network import TableNetwork
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.mean_field import flow_of_policy, population_exploitability, taker_exploitability
from mmgym.baselines.mean_field.learning import Mixture
from mmgym.baselines.tables import read_table

COUPLED = "mmgym/MeanFieldTakerCoupled-v0"
GAME = {
    "inventory_limit": 30.0,
    "signal_limit": 1,
    "initial_law": [20.0, 1],
    "horizon": 0.4,
    "num_steps": 10,
}


def tables(problem):
    """Three quite different tables of depths."""
    n = np.arange(problem.num_steps)[:, None, None]
    lots, signals = problem.lots[None, :, None], problem.signals[None, :, None]
    side = np.array([1.0, -1.0])
    return [
        np.broadcast_to(0.42, (problem.num_steps, problem.num_states, 2)).copy(),
        0.3 + side * (0.1 * lots - 0.2 * signals) + 0.01 * n,
        0.6 - side * (0.05 * lots + 0.1 * signals) - 0.03 * n,
    ]


def test_the_flow_of_a_mixture_is_the_mixture_of_flows():
    problem = problem_of(COUPLED, **GAME)
    kinds = tables(problem)
    population = Mixture(problem)
    for k, table in enumerate(kinds):
        population.add(table, 1.0 / (k + 1))
    assert population.shares == pytest.approx([1 / 3] * 3)
    mixed = flow_of_policy(COUPLED, population.table(), **GAME)
    apart = [flow_of_policy(COUPLED, table, **GAME) for table in kinds]
    points = np.linspace(0.0, 1.0, 9)
    movement = np.mean([flow.powers(points) for flow in apart], axis=0)
    np.testing.assert_allclose(mixed.powers(points), movement, rtol=0, atol=1e-9)
    quotes = sum(flow.mean_quotes * flow.quoting for flow in apart) / sum(flow.quoting for flow in apart)
    np.testing.assert_allclose(mixed.mean_quotes, quotes, rtol=0, atol=1e-12)


def test_a_mixture_is_worth_the_mixture_of_values_and_a_share_of_one_replaces_all():
    problem = problem_of(COUPLED, **GAME)
    kinds = tables(problem)
    population = Mixture(problem)
    population.add(kinds[0], 1.0)
    population.add(kinds[1], 0.3)
    exploited = population_exploitability(COUPLED, population.table(), **GAME)
    values = [taker_exploitability(COUPLED, table, exploited.flow, **GAME).value for table in kinds[:2]]
    assert exploited.value == pytest.approx(0.7 * values[0] + 0.3 * values[1], rel=1e-11)
    population.add(kinds[2], 1.0)
    assert population.shares == [1.0]
    alone = population_exploitability(COUPLED, kinds[2], **GAME).exploitability
    assert population_exploitability(COUPLED, population.table(), **GAME).exploitability == pytest.approx(
        alone, rel=1e-11
    )


@pytest.mark.long
def test_exact_learners_find_the_equilibrium_of_a_small_game(tmp_path):
    settings, _ = load_game("learn_game_quick")
    game = play_game(settings, tmp_path / "game", tables=True, progress=False)
    curve = game.curve
    assert list(curve["round"]) == [1, 2, 3, 4]
    assert curve["relative"].iloc[-1] < 0.05
    assert (curve["exploitability"] > 0.0).all()
    assert (curve["maker_gap"] > 0.0).all()
    np.testing.assert_allclose(curve["total"], curve["exploitability"] + curve["maker_gap"])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "game" / "rounds.csv"), curve, rtol=1e-10)
    constant = population_exploitability(COUPLED, tables(problem_of(COUPLED, **GAME))[0] * 0 + 1 / 2.375, **GAME)
    assert game.constant == pytest.approx(constant.exploitability)
    table, description = read_table(tmp_path / "game" / "fictitious_play.npz")
    assert description["role"] == "taker"
    judged = population_exploitability(COUPLED, table, **GAME).exploitability
    assert judged == pytest.approx(curve["exploitability"].iloc[-1], abs=1e-5)  # depths are float32 actions in the file
    record = json.loads((tmp_path / "game" / "game.json").read_text(encoding="utf-8"))
    page = (tmp_path / "game" / "README.md").read_text(encoding="utf-8")
    assert f"| {curve['exploitability'].iloc[-1]:.3g} |" in page and str(record["commit"]) in page
    assert list(game.summary["end"]) == ["all rounds played"]
    assert {"settings", "seed", "versions", "commit"} <= set(record)
    assert (tmp_path / "game" / "exploitability.png").stat().st_size > 10_000


def test_sampled_learners_play_too(tmp_path):
    (tmp_path / "ppo.yml").write_text(
        f"""
{COUPLED}: &small
  n_envs: 16
  n_timesteps: 640
  policy: MlpPolicy
  normalize: {{norm_obs: true, norm_reward: true, gamma: 1.0}}
  n_steps: 10
  batch_size: 160
  n_epochs: 2
  gamma: 1.0
mmgym/MeanFieldMakerCoupled-v0: *small
""",
        encoding="utf-8",
    )
    (tmp_path / "learn_game.yml").write_text(
        f"""
environment: {COUPLED}
arguments: {json.dumps(GAME)}
learner: {tmp_path / "ppo.yml"}
rounds: 2
timesteps: 640
algorithms: {{damped_fictitious_play: 0.5, independent: null}}
maker: mmgym/MeanFieldMakerCoupled-v0
maker_timesteps: 320
""",
        encoding="utf-8",
    )
    settings, _ = load_game(str(tmp_path / "learn_game.yml"))
    curves = [play_game(settings, tmp_path / name, seed=3, progress=False).curve for name in "ab"]
    runs = [curve.drop(columns="core_seconds") for curve in curves]
    pd.testing.assert_frame_equal(*runs)
    assert (runs[0]["exploitability"] > 0.0).all()
    assert list(runs[0]["algorithm"]) == ["damped_fictitious_play"] * 2 + ["independent"] * 2
    assert not list((tmp_path / "a").glob("*.npz"))
    with pytest.raises(ValueError, match="seed = -1"):
        play_game(settings, tmp_path / "c", seed=-1)


def test_a_crowd_for_independent_learners_is_the_game():
    """Against the PettingZoo face of the game, over three episodes."""
    pytest.importorskip("pettingzoo", reason="pettingzoo (extra multiagent) is not installed")
    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    market = {"impact": 0.05, **GAME}
    crowd = OneCrowd(5, **market)
    game = MeanFieldParallelEnv(num_takers=5, reward="expected", maker=False, **market)
    crowd.seed(4)
    start, (expected, _) = crowd.reset(), game.reset(seed=4)
    np.testing.assert_array_equal(start, list(expected.values()))
    random = np.random.default_rng(1)
    for n in range(1, 3 * GAME["num_steps"] + 1):
        actions = random.uniform(-0.3, 1.0, (5, 2)).astype(np.float32)
        observations, rewards, finished, infos = crowd.step(actions)
        expected, paid, ended, _, _ = game.step(dict(zip(game.takers, actions, strict=True)))
        assert rewards == pytest.approx(list(paid.values()), rel=1e-6)
        assert finished.tolist() == list(ended.values()) == [n % GAME["num_steps"] == 0] * 5
        if finished.all():
            np.testing.assert_array_equal([info["terminal_observation"] for info in infos], list(expected.values()))
            expected, _ = game.reset()
        np.testing.assert_array_equal(observations, list(expected.values()))


def test_loading_solves_no_equilibrium(monkeypatch):
    """The game that is learned has none that is shipped: solving it would take minutes at 60 steps."""

    def refuse(*_):
        raise AssertionError("an equilibrium was asked for")

    monkeypatch.setattr("mmgym.models.mean_field_flow.solve_equilibrium_flow", refuse)
    settings, _ = load_game("learn_game_independent")
    assert settings.arguments["num_steps"] == 200


def test_bad_games_are_refused(tmp_path):
    for text, message in (
        ("rounds: 3", "with environment"),
        (f"environment: {COUPLED}\nround: 3", "the keys must be among"),
        (f"environment: {COUPLED}\nrounds: 0", "rounds = 0 must be a whole number >= 1"),
        (f"environment: {COUPLED}\nalgorithms: {{mirror_descent: 1.5}}", "rate = 1.5"),
        (f"environment: {COUPLED}\nalgorithms: {{best_response: 0.5}}", "best_response has none"),
        (f"environment: {COUPLED}\nalgorithms: {{newton: null}}\nlearner: ppo", "with learned answers it must be one"),
        (f"environment: {COUPLED}\nalgorithms: newton", "must be a mapping"),
        (f"environment: {COUPLED}\narguments: {{population: constant}}", "without population"),
        ("environment: mmgym/MeanFieldMaker-v0", "must be an id of the mean field's"),
        ("environment: mmgym/GLFT-v0", "the mean field's taker"),
        (f"environment: {COUPLED}\nmaker: {COUPLED}", "the mean field's maker"),
        (f"environment: {COUPLED}\nalgorithms: {{independent: null}}", "must be one of best_response"),
        (f"environment: {COUPLED}\nmaker: mmgym/MeanFieldMakerCoupled-v0", "it needs a learner that trains"),
        (f"environment: {COUPLED}\nalgorithms: {{deep_newton: null}}", "deep ones are deep_fictitious_play"),
        (f"environment: {COUPLED}\nalgorithms: {{deep_fictitious_play: 0.5}}", "fictitious_play has none"),
        (f"environment: {COUPLED}\nalgorithms: {{deep_fictitious_play: null}}\nlearner: ppo", "the learner exact"),
        (f"environment: {COUPLED}\nnetwork: {{steps: 9}}", "used by none of the algorithms"),
        (f"environment: {COUPLED}\nnetwork: {{steps: 0}}", r"must be \{net_arch: .*, steps: a whole number"),
    ):
        (tmp_path / "learn_game.yml").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_game(str(tmp_path / "learn_game.yml"))
    with pytest.raises(FileNotFoundError, match="learn_game_quick"):
        load_game("nothing")


def test_a_network_learns_the_mean_of_what_it_cannot_tell_apart():
    """Cells that look the same: their fill intensities are averaged by the number of takers, not their depths."""
    random = np.random.default_rng(0)
    looks = np.repeat(random.uniform(-1.0, 1.0, (4, 1, 2)), 6, axis=1)  # six states of a step look the same
    seen = np.concatenate([np.arange(4)[:, None, None].repeat(6, axis=1) / 4.0, looks], axis=-1)
    decay = np.array([2.0, 3.5])
    network = TableNetwork(seen, decay, 1.2, [16], 2_000)
    for spread in (0.3, 0.9):  # learned anew
        depths, laws = random.uniform(-spread, spread, (4, 6, 2)), random.dirichlet(np.full(6, 0.5), 4)
        played = network(depths, laws)
        shares = (0.9 * laws + 0.1 / 6.0)[:, :, None]
        expected = -np.log((shares * np.exp(-decay * depths)).sum(axis=1) / shares.sum(axis=1)) / decay
        np.testing.assert_allclose(played, expected[:, None].repeat(6, axis=1), atol=0.02)
        assert np.abs((shares * depths).sum(axis=1) - expected).max() > 0.03 * spread
    assert np.abs(network(np.full((4, 6, 2), 9.0), laws)).max() <= 1.2


@pytest.mark.long
def test_deep_algorithms_come_as_near_as_their_tables(tmp_path):
    tabular = {"mirror_descent": 0.3, "prior_descent": 0.3, "damped_fictitious_play": 0.3, "fictitious_play": None}
    deep = {f"deep_{name}": rate for name, rate in tabular.items()}
    text = (
        f"environment: {COUPLED}\narguments: {json.dumps(GAME)}\nrounds: 6\nnetwork: {{net_arch: [32], steps: 500}}\n"
    )
    (tmp_path / "learn_game.yml").write_text(f"{text}algorithms: {json.dumps({**tabular, **deep})}", encoding="utf-8")
    settings, _ = load_game(str(tmp_path / "learn_game.yml"))
    game = play_game(settings, tmp_path / "game", tables=True, progress=False)
    last = game.curve.groupby("algorithm")["exploitability"].last()
    for name in tabular:
        assert last[f"deep_{name}"] == pytest.approx(last[name], abs=0.02 * game.constant)
        assert 0.0 < last[f"deep_{name}"] < 0.1 * game.constant
        table, _ = read_table(tmp_path / "game" / f"deep_{name}.npz")
        judged = population_exploitability(COUPLED, table, **GAME).exploitability
        assert judged == pytest.approx(last[f"deep_{name}"], abs=1e-5)
    rates = game.summary.set_index("algorithm")["rate"]
    assert list(rates[list(deep)]) == ["0.3", "0.3", "0.3", ""]
