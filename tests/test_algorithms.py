"""Every algorithm: a tiny run, killed and resumed, its files and score; and what rl-baselines3-zoo reads."""

import argparse
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 (extra agents) is not installed")

import torch

import mmgym.agents.train as module
from mmgym import baselines
from mmgym.adapters.sb3 import CentredRewards, SB3VecEnv, make_sb3_env
from mmgym.agents.algorithms import ALGORITHMS, OWN_LEARNERS, algorithm_class
from mmgym.agents.checkpoints import batch_under
from mmgym.agents.clock import ClockExtractor
from mmgym.agents.config import CLOCK, DEFAULTS, HURDLE, TUNED, WRAPPER, config_names, load_config, shipped_folder
from mmgym.agents.policies import as_policy
from mmgym.agents.train import build_env, load_model, train
from mmgym.registration import ENVIRONMENTS

AS, TS = "mmgym/AvellanedaStoikov-v0", "mmgym/TickSpread-v0"
MARKET = {AS: {"num_steps": 20, "horizon": 0.1, "inventory_limit": 3.0}}
MARKET[TS] = {"num_steps": 20, "horizon": 20.0, "lot": 50.0, "inventory_limit": 200.0}
ON_POLICY = {"n_steps": 20, "policy_kwargs": {"net_arch": [8]}}
REPLAY = {
    "buffer_size": 400,
    "learning_starts": 80,
    "batch_size": 16,
    "train_freq": 4,
    "gradient_steps": 2,
    "policy_kwargs": {"net_arch": [8]},
}
Q_LEARNING = REPLAY | {"target_update_interval": 96, "exploration_fraction": 0.5}
TINY = {
    "a2c": ON_POLICY,
    "ars": {"n_delta": 1, "policy_kwargs": {"net_arch": [4]}},
    "crossq": REPLAY | {"policy_delay": 2, "ent_coef": "auto"},
    "trpo": ON_POLICY | {"batch_size": 80},
    "ppo": ON_POLICY | {"batch_size": 80},
    "maskable_ppo": ON_POLICY | {"batch_size": 80},
    "recurrent_ppo": ON_POLICY
    | {"batch_size": 80, "policy": "MlpLstmPolicy", "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 4}},
    "sac": REPLAY | {"ent_coef": "auto"},
    "td3": REPLAY | {"noise_type": "normal", "noise_std": 0.1},
    "tqc": REPLAY | {"top_quantiles_to_drop_per_net": 1},
    "dqn": Q_LEARNING,
    "qrdqn": Q_LEARNING,
}
DISCRETE = ("maskable_ppo", "dqn", "qrdqn")
SEES_TIME = {
    "normalize": {"norm_obs": False, "norm_reward": True, "gamma": 1.0},
    "policy_kwargs": {"features_extractor_class": CLOCK, "net_arch": [8]},
}


def write(folder, algorithm, **changes):
    """A tiny configuration of an algorithm: its path and the environment it is for."""
    env_id = TS if algorithm in DISCRETE else AS
    common = {"n_envs": 8, "n_timesteps": 960, "policy": "MlpPolicy"} | ({"gamma": 1.0} if algorithm != "ars" else {})
    common["normalize"] = {"norm_obs": True, "norm_reward": True, "gamma": 1.0}
    if algorithm in ("a2c", "sac", "td3"):  # the others go without
        common["vec_env_wrapper"] = {WRAPPER: {"per_step": 0.3}}
    path = folder / f"{algorithm}.yml"
    path.write_text(yaml.safe_dump({env_id: {**common, **TINY[algorithm], **changes}}), encoding="utf-8")
    return str(path), env_id


def arrays(folder):
    contents = {}
    for name in ("parameters", "normalisation"):
        with np.load(folder / "model" / f"{name}.npz") as stored:
            contents |= {f"{name}.{key}": stored[key] for key in stored.files}
    return contents


def test_every_algorithm_is_tried():
    assert set(TINY) | set(OWN_LEARNERS) == set(ALGORITHMS)


@pytest.mark.long
@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        *((name, {}) for name in TINY),
        ("ppo", {"policy": HURDLE, "ent_coef": "lin_0.01"}),
        ("dqn", SEES_TIME),
        ("maskable_ppo", SEES_TIME),
    ],
)
def test_a_killed_run_resumes_to_the_same_parameters(algorithm, changes, tmp_path, monkeypatch):
    """Bit for bit: networks, optimisers, normalisation; replay buffer and hidden states are part of the checkpoint."""
    config, env_id = write(tmp_path, algorithm, **changes)
    options = {"seed": 2, "arguments": MARKET[env_id], "progress": False, "score_steps": 480}
    whole, score = train(config, env_id, folder=tmp_path / "whole", **options)

    save = module.save_checkpoint

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(config, env_id, folder=tmp_path / "run", checkpoint_steps=400, **options)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    folder, again = train(config, env_id, folder=tmp_path / "run", resume=True, **options)
    first, second = arrays(whole), arrays(folder)
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert again.value == score.value
    curves = [json.loads((home / "run.json").read_text(encoding="utf-8"))["curve"] for home in (whole, folder)]
    assert curves[0] == curves[1]
    assert len(curves[0]) > 1

    policy, description = load_model(folder / "model")
    assert description["algorithm"] == algorithm
    assert description["steps"] >= 960
    assert policy.markov == (algorithm != "recurrent_ppo")
    arguments = description["arguments"]
    assert arguments.get("actions") == ("flat" if algorithm in ("dqn", "qrdqn") else None)
    loaded = baselines.score(env_id, policy, **arguments)
    assert loaded.method == score.method == ("exact" if policy.markov else "simulated")
    assert loaded.value == pytest.approx(score.value, abs=1e-12)
    assert loaded.value <= loaded.optimum_upper + 4.0 * loaded.stderr


@pytest.mark.long
def test_random_search_counts_steps_of_episodes_of_any_length(tmp_path, monkeypatch):
    """Rows whose episode is over wait for the others, and step too: every call of the batch counts with all rows."""
    env_id, calls = "mmgym/HawkesPower-v0", []
    config = {"n_envs": 8, "n_timesteps": 1, "n_delta": 1, "policy": "LinearPolicy"}
    (tmp_path / "ars.yml").write_text(yaml.safe_dump({env_id: config}), encoding="utf-8")
    config = load_config(str(tmp_path / "ars.yml"), env_id)
    venv = build_env(config, env_id, {"decision": "order", "horizon": 0.05}, 1, "pnl")
    batch = batch_under(venv).envs
    step = batch.step
    monkeypatch.setattr(batch, "step", lambda actions: calls.append(len(actions)) or step(actions))
    model = module.build_model(config, venv, 0, None)
    model.learn(1)
    assert model.num_timesteps == sum(calls)


@pytest.mark.long
def test_random_search_resumes_from_any_checkpoint(tmp_path, monkeypatch):
    """From the second too, of updates that are longer than the steps between checkpoints."""
    config, env_id = write(tmp_path, "ars")
    options = {"seed": 2, "arguments": MARKET[env_id], "progress": False, "score_steps": 10_000}
    whole, _ = train(config, env_id, folder=tmp_path / "whole", **options)
    save, saved = module.save_checkpoint, []

    def save_and_die_at_last(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_and_die_at_last)
    with pytest.raises(KeyboardInterrupt):
        train(config, env_id, folder=tmp_path / "run", checkpoint_steps=100, **options)
    monkeypatch.undo()
    folder, _ = train(config, env_id, folder=tmp_path / "run", resume=True, **options)
    first, second = arrays(whole), arrays(folder)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_centred_rewards_are_less_by_the_constant_and_all_else_is_the_same(tmp_path):
    """Over an episode the value falls by num_steps * per_step, whatever the policy: here one of random actions."""
    path, _ = write(tmp_path, "a2c")
    config = load_config(path, AS)._replace(normalize={})
    plain = config._replace(hyperparameters={**config.hyperparameters, "vec_env_wrapper": {}})
    pair = [build_env(each, AS, MARKET[AS], 1, "expected") for each in (config, plain)]
    assert isinstance(pair[0], CentredRewards)
    assert isinstance(pair[1], SB3VecEnv)
    generator, totals = np.random.default_rng(0), np.zeros((2, 8))
    for venv in pair:
        venv.seed(5)
        venv.reset()
    for _ in range(20):
        actions = generator.uniform(-1.0, 1.0, (8, 2)).astype(np.float32)
        steps = [venv.step(actions) for venv in pair]
        totals += [rewards for _, rewards, _, _ in steps]
        assert np.array_equal(steps[0][0], steps[1][0])
        assert np.array_equal(steps[0][2], steps[1][2])
    scaled = CentredRewards(pair[1], 0.3, 4.0)
    scaled.seed(5)
    scaled.reset()
    pair[0].seed(5)
    pair[0].reset()
    rewards = [venv.step(np.zeros((8, 2), np.float32))[1] for venv in (scaled, pair[0])]
    np.testing.assert_array_equal(rewards[0], 4.0 * rewards[1])
    assert totals[0] == pytest.approx(totals[1] - 20 * 0.3, abs=1e-5)
    for words, numbers in (("per_step = inf", (np.inf,)), ("scale = 0.0", (0.3, 0.0))):
        with pytest.raises(ValueError, match=f"{words} is not allowed"):
            CentredRewards(pair[1], *numbers)


@pytest.mark.long
@pytest.mark.parametrize(
    ("env_id", "arguments"), [(row.id, {}) for row in ENVIRONMENTS] + [("mmgym/HawkesPower-v0", {"decision": "order"})]
)
def test_no_policy_changes_how_many_steps_an_episode_has(env_id, arguments):
    """So that a constant taken off every reward changes no optimum; in the Hawkes markets the order flow decides."""
    lengths = []
    for i in range(2):
        venv = make_sb3_env(env_id, 3, **arguments)
        steps, finished = np.zeros(3, dtype=int), np.zeros(3, dtype=bool)
        venv.seed(7)
        venv.action_space.seed(i)
        venv.reset()
        while not finished.all():
            steps += ~finished
            finished |= venv.step(np.stack([venv.action_space.sample() for _ in range(3)]))[2]
        lengths.append(steps.tolist())
    assert lengths[0] == lengths[1]
    assert (len(set(lengths[0])) > 1) == ("Hawkes" in env_id)


@pytest.mark.parametrize(
    "wrapper",
    ["os.system", {"os.system": {"command": "true"}}, {WRAPPER: 0.3}, {WRAPPER: {}}, {WRAPPER: {"per_step": True}}],
)
def test_only_our_wrapper_can_be_named(wrapper, tmp_path):
    path, _ = write(tmp_path, "a2c")
    file = Path(path)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content[AS]["vec_env_wrapper"] = wrapper
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match="per_step: a number"):
        load_config(path, AS)


@pytest.mark.long
def test_a_recurrent_policy_remembers(tmp_path):
    config, env_id = write(tmp_path, "recurrent_ppo")
    folder, _ = train(config, env_id, folder=tmp_path / "run", arguments=MARKET[AS], progress=False)
    policy, _ = load_model(folder / "model")
    observation = np.zeros((1, 2), dtype=np.float32)
    first, state = policy.predict(observation, episode_start=np.array([True]))
    second, state = policy.predict(observation, state=state, episode_start=np.array([False]))
    fresh, _ = policy.predict(observation, state=state, episode_start=np.array([True]))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(fresh, first, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="exact score needs a function of the observation"):
        baselines.score(AS, policy, method="exact", **MARKET[AS])


def test_off_policy_heads_have_no_quadrature(tmp_path):
    config, env_id = write(tmp_path, "sac")
    folder, _ = train(config, env_id, folder=tmp_path / "run", arguments=MARKET[AS], timesteps=160, progress=False)
    policy, _ = load_model(folder / "model")
    with pytest.raises(TypeError, match="use method='simulated'"):
        baselines.score(AS, policy, deterministic=False, **MARKET[AS])
    acting = baselines.score(AS, policy, deterministic=False, method="simulated", episodes=100, **MARKET[AS])
    assert acting.method == "simulated"


def test_the_weight_of_entropy_falls_linearly_to_zero(tmp_path, monkeypatch):
    weights, update = [], algorithm_class("ppo").train
    monkeypatch.setattr(algorithm_class("ppo"), "train", lambda self: weights.append(self.ent_coef) or update(self))
    config, env_id = write(tmp_path, "ppo", ent_coef="lin_0.06")
    train(config, env_id, folder=tmp_path / "run", arguments=MARKET[AS], progress=False)
    np.testing.assert_allclose(weights, [0.05, 0.04, 0.03, 0.02, 0.01, 0.0], atol=1e-12)
    config, env_id = write(tmp_path, "sac", ent_coef="lin_0.06")
    with pytest.raises(ValueError, match=r"ent_coef = 'lin_0.06' .* must be a number .*, or auto"):
        load_config(config, env_id)


def test_what_networks_see_of_time(tmp_path):
    """Against the formula in float64; and that it needs observations as they are."""
    space = gymnasium.spaces.Box(np.float32([0.0, -1.0, 2.0]), np.float32([1.0, 1.0, 6.0]))
    seen = np.random.default_rng(0).uniform(space.low, space.high, (50, 3)).astype(np.float32)
    seen[:2, 0] = 0.0, 1.0
    features = ClockExtractor(space)(torch.from_numpy(seen)).numpy()
    exact = seen.astype(np.float64)
    expected = (exact - [0.5, 0.0, 4.0]) / np.array([1.0, 2.0, 4.0]) * 12.0**0.5
    times = np.log(0.005 + np.stack([exact[:, 0], 1.0 - exact[:, 0]], axis=1)) + 1.0
    np.testing.assert_allclose(features, np.concatenate([expected, times], axis=1), rtol=1e-5, atol=1e-5)
    for wrong in (gymnasium.spaces.Box(-1.0, 1.0, (2,)), gymnasium.spaces.Box(0.0, np.inf, (2,))):
        with pytest.raises(ValueError, match="a clock needs bounded observations whose first entry is from 0 to 1"):
            ClockExtractor(wrong)
    config, env_id = write(tmp_path, "dqn", policy_kwargs={"features_extractor_class": CLOCK})
    with pytest.raises(ValueError, match="needs normalize with norm_obs: false"):
        load_config(config, env_id)
    config, env_id = write(tmp_path, "ppo", **SEES_TIME, memory={"rates": [1.0], "entries": [1]})
    with pytest.raises(ValueError, match="memory are not: leave one of the two out"):
        load_config(config, env_id)


def test_noise_of_another_kind_is_refused(tmp_path):
    config, env_id = write(tmp_path, "td3")
    path = tmp_path / "td3.yml"
    path.write_text(path.read_text().replace("noise_type: normal", "noise_type: pink"))
    with pytest.raises(ValueError, match=r"noise_type = 'pink' of .* must be normal"):
        train(config, env_id, folder=tmp_path / "run", progress=False)


def test_cloning_comes_near_what_it_imitates(tmp_path):
    path = tmp_path / "behaviour_cloning.yml"
    path.write_text(f"{AS}:\n  n_timesteps: 8\n  gamma: 1.0\n  net_arch: [16]\n", encoding="utf-8")
    folder, score = train(str(path), AS, folder=tmp_path / "run", arguments=MARKET[AS], progress=False)
    assert score.method == "exact"
    assert score.skill > 0.99
    assert load_model(folder / "model")[1]["algorithm"] == "behaviour_cloning"
    path.write_text(path.read_text().replace(AS, TS), encoding="utf-8")
    with pytest.raises(TypeError, match="needs a box of actions"):
        train(str(path), TS, folder=tmp_path / "other", progress=False)


ZOO = [
    (name, env_id)
    for name in config_names()
    if not name.startswith((*OWN_LEARNERS, "maskable_ppo"))
    for env_id in yaml.safe_load((shipped_folder() / f"{name}.yml").read_text(encoding="utf-8"))
    if env_id not in DEFAULTS and ", " not in env_id  # not those of a market of the benchmark alone
]


@pytest.mark.parametrize(("name", "env_id"), ZOO)
def test_the_zoo_reads_our_configurations(name, env_id, tmp_path):
    """rl-baselines3-zoo's own preprocessing gives arguments that the algorithm takes, and the same ones as ours."""
    manager_module = pytest.importorskip("rl_zoo3.exp_manager", reason="rl-baselines3-zoo is not installed")
    algorithm = name.removesuffix(TUNED).replace("recurrent_ppo", "ppo_lstm")
    manager = manager_module.ExperimentManager(
        argparse.Namespace(), algorithm, env_id, str(tmp_path), verbose=0, config=str(shipped_folder() / f"{name}.yml")
    )
    read, saved = manager.read_hyperparameters()
    hyperparameters, wrapper, callbacks, vec_wrapper = manager._preprocess_hyperparams(read)
    assert wrapper is None
    assert callbacks == []
    ours = load_config(name, env_id)
    expected = set(ours.hyperparameters)
    if "vec_env_wrapper" in expected:
        expected.remove("vec_env_wrapper")  # not of the algorithm's constructor
        wrapped = vec_wrapper(make_sb3_env(env_id, 1))
        assert isinstance(wrapped, CentredRewards)
        assert wrapped.per_step == ours.hyperparameters["vec_env_wrapper"][WRAPPER]["per_step"]
    else:
        assert vec_wrapper is None
    assert manager.n_envs == ours.n_envs
    assert manager.n_timesteps == ours.n_timesteps
    assert manager.normalize == bool(ours.normalize)
    assert manager.normalize_kwargs == {**ours.normalize, "gamma": 1.0}
    kept = {key: value for key, value in saved.items() if key not in ("n_envs", "n_timesteps", "normalize")}
    assert json.loads(json.dumps(kept)) == json.loads(json.dumps(ours.hyperparameters))
    if ours.normalize:
        assert set(hyperparameters) == expected
    algorithm_class(ours.algorithm)  # the class exists; the tiny runs above build it from such settings


def test_models_of_other_libraries_are_refused():
    with pytest.raises(TypeError, match="not a Stable-Baselines3 model"):
        as_policy(object())
