"""The natural gradient: sums and metrics by other ways, the critic against exact values, runs and their files."""

import json

import gymnasium
import numpy as np
import pytest
import torch

from mmgym.agents import natural_gradient as module
from mmgym.agents import train as train_module
from mmgym.agents.config import OWN_DEFAULTS, load_config
from mmgym.agents.model_files import ModelFileError
from mmgym.agents.natural_gradient import NaturalGradient, actor_of
from mmgym.agents.train import build_env, load_model, train
from mmgym.baselines import score
from mmgym.baselines.catalogue import environment_of, problem_of
from mmgym.baselines.frozen import tabulate, visits

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 10, "horizon": 0.5, "inventory_limit": 3.0, "reward": "expected"}
CONFIG = f"{AS}:\n  n_timesteps: 300000\n  gamma: 1.0\n  n_envs: 256\n  n_steps: 20\n"


def learner_of(total=1_000_000, env_id=AS, arguments=SMALL, seed=0, **settings):
    settings = {**OWN_DEFAULTS["natural_gradient"], **settings}
    torch.set_num_threads(1)
    envs = gymnasium.make_vec(env_id, num_envs=settings["n_envs"], autoreset_mode="Disabled", **arguments)
    policy = actor_of(environment_of(env_id, **arguments), settings["net_arch"]["pi"], seed)
    return NaturalGradient(envs, policy, settings, total, seed)


def test_sums_within_episodes():
    """Against the double sum of their definitions."""
    random = np.random.default_rng(0)
    rewards, goes_on, values = random.normal(size=(7, 3)), random.random((7, 3)) < 0.7, random.normal(size=(8, 3))
    for discount in (0.0, 0.6, 1.0):
        expected, returns = np.zeros((7, 3)), np.zeros((7, 3))
        for row in range(3):
            for i in range(7):
                for j in range(i, 7):
                    expected[i, row] += discount ** (j - i) * rewards[j, row]
                    returns[i, row] += rewards[j, row]
                    if not goes_on[j, row]:
                        break
                else:
                    returns[i, row] += values[7, row]
        tensors = [torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in (rewards, goes_on, values)]
        assert np.allclose(module.discounted_sums(*tensors[:2], discount), expected)
        assert np.allclose(module.returns_of(*tensors), returns)


def test_a_metric_is_how_far_outputs_move():
    """Lengths of small steps against the outputs before and after; a step climbs its objective."""
    policy = actor_of(environment_of(AS, **SMALL), [5], seed=1)
    metric = module.Metric(policy.network, 1e-3)
    observations = np.random.default_rng(1).uniform(0.0, 1.0, (300, 2)).astype(np.float32)
    inputs, wanted = policy.inputs(observations), torch.linspace(-0.3, 0.3, 300)[:, None]
    metric.update(inputs)
    weights, before = policy.weights(), policy.outputs(observations)
    for seed in range(3):
        step = 1e-3 * torch.randn(len(weights), generator=torch.Generator().manual_seed(seed))
        policy.set_weights(weights + step)
        moved = np.sqrt(((policy.outputs(observations) - before) ** 2).sum(1).mean())
        assert metric.length(step) == pytest.approx(moved, rel=0.01)
    policy.set_weights(weights)

    def objective():
        return -((policy.network(inputs) - wanted) ** 2).sum(1).mean()

    step, start = metric.step(objective()), objective().item()
    policy.set_weights(weights + 1e-3 * step)
    assert objective().item() > start


def test_the_critic_finds_the_exact_values_of_a_policy_that_stands_still():
    """The exact values of the actor, where it goes: to 1 %, and what inventory adds to them to 10 % of its range."""
    learner = learner_of(600_000, n_envs=512, n_steps=20, step_size=1e-9, exploration=[1e-6, 1e-6])
    while learner.iterate():
        pass
    problem = problem_of(environment_of(AS, **SMALL))
    _, exact, chances = visits(problem, tabulate(problem, learner.policy).controls)
    for n in range(problem.num_steps):
        values = float(learner.table[n]) + learner.unit * learner.critic.outputs(problem.observations(n))[:, 0]
        away = values - exact[n]
        mean = chances[n] @ away
        assert abs(mean) < 0.01 * exact[0].max()
        assert np.sqrt(chances[n] @ (away - mean) ** 2) < 0.1 * np.ptp(exact[0])


def test_rewards_without_price_noise_are_those_of_training_with_sb3():
    """Episode for episode, the last reward of each included, where prices move with the order flow."""
    env_id, arguments, rows = "mmgym/HawkesFlow-v0", {"horizon": 3.0, "num_steps": 12}, 6
    learner = learner_of(env_id=env_id, arguments=arguments, n_envs=rows)
    other = build_env(load_config("ppo", env_id)._replace(n_envs=rows, normalize={}), env_id, arguments, 1, "expected")
    actions = np.full((rows, 2), -0.3, dtype=np.float32)
    learner.envs.reset(seed=5)
    other.seed(5)
    other.reset()
    ends = 0
    for _ in range(60):
        observations, rewards, finished = learner.step(actions)
        expected = other.step(actions)
        ends += int(finished.sum())
        assert np.array_equal(observations, expected[0])
        assert np.array_equal(finished, expected[2])
        assert np.allclose(rewards, expected[1], rtol=1e-5, atol=1e-6)
    assert ends > rows


def test_rows_begin_at_different_times():
    """Where decisions follow events too: of the start of the first round, over the whole episode."""
    learner = learner_of(env_id="mmgym/HawkesFlow-v0", arguments={"horizon": 20.0, "num_steps": 60}, n_envs=200)
    left = learner.spread_out()[:, 0]
    assert np.histogram(left, bins=4, range=(0.0, 1.0))[0].min() > 20


def test_two_point_exploration_is_a_third_as_biased():
    """Where the slope of ``exp(-k a) a`` vanishes under both kinds of noise, by quadrature: its docstring's claim."""
    k, s = 1.5, 0.1
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)

    def bias(points, chances):
        at = np.linspace(0.5, 0.9, 40_001)
        slope = sum(w * z * np.exp(-k * (at + s * z)) * (at + s * z) for z, w in zip(points, chances, strict=True))
        return at[np.abs(slope).argmin()] - 1.0 / k

    two, gauss = bias([-1.0, 1.0], [0.5, 0.5]), bias(nodes, weights / weights.sum())
    assert gauss == pytest.approx(k * s**2, rel=0.02)
    assert two == pytest.approx(gauss / 3.0, rel=0.02)


def test_a_run_learns_is_killed_and_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Bit for bit; the model is scored exactly, and better than constant quotes by far."""
    config = tmp_path / "natural_gradient.yml"
    config.write_text(CONFIG, encoding="utf-8")
    options = {"seed": 2, "arguments": SMALL, "progress": False, "score_steps": 100_000}
    whole, scored = train(str(config), AS, folder=tmp_path / "whole", **options)
    assert 0.8 < scored.skill <= 1.0
    assert scored.method == "exact"
    write = train_module.write_rounds

    def write_and_die(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "write_rounds", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(str(config), AS, folder=tmp_path / "run", checkpoint_steps=100_000, **options)
    monkeypatch.undo()
    folder, again = train(str(config), AS, folder=tmp_path / "run", resume=True, **options)
    arrays = [dict(np.load(home / "model" / "parameters.npz")) for home in (whole, folder)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0] | arrays[1])
    assert again.value == scored.value
    policy, description = load_model(folder / "model")
    assert description["algorithm"] == "natural_gradient"
    assert score(AS, policy, **SMALL).value == pytest.approx(scored.value, abs=1e-9)
    curves = [json.loads((home / "run.json").read_text(encoding="utf-8"))["curve"] for home in (whole, folder)]
    assert curves[0] == curves[1]


def test_damaged_checkpoints_are_refused():
    learner = learner_of(n_envs=8, n_steps=4)
    learner.iterate()
    arrays = {}
    description = {"layout": learner.state(arrays, training=True), "steps": 32}
    learner.restore(description, arrays)
    for name in sorted(arrays):
        with pytest.raises(ModelFileError):
            learner.restore(description, {key: value for key, value in arrays.items() if key != name})


def test_refused(tmp_path):
    with pytest.raises(TypeError, match="natural_gradient needs a box of actions, not Multi"):
        actor_of(environment_of("mmgym/TickSpread-v0"), [4])
    file = tmp_path / "natural_gradient.yml"
    for line, message in (
        ("exploration: [0.1]", "two numbers above 0 and at most 2"),
        ("net_arch: [4]", r"net_arch = \[4\] of .* must be \{pi: a list"),
        ("normalize: true", "unknown key 'normalize'"),
    ):
        file.write_text(f"{AS}:\n  n_timesteps: 1000\n  gamma: 1.0\n  {line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_config(str(file), AS)
