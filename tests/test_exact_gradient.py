"""Training on the exact value: what it reaches, its files, its resumption, and what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Dict

from mmgym import baselines
from mmgym.agents.config import load_config
from mmgym.agents.exact_gradient import ExactGradient, network_of
from mmgym.agents.model_files import ModelFileError
from mmgym.agents.network import GaussNewton, NetworkPolicy
from mmgym.agents.train import load_model, train
from mmgym.baselines.catalogue import environment_of, expansions_of, problem_of, reference_policy
from mmgym.baselines.choices import FrozenChoices, component_sizes
from mmgym.baselines.episodes import Rewards, simulated_columns
from mmgym.baselines.expansion import Expansion
from mmgym.baselines.frozen import criterion_value, evaluate, tabulate

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 20, "horizon": 0.1, "inventory_limit": 4.0}
CONFIG = f"{AS}:\n  n_timesteps: 8\n  gamma: 1.0\n  net_arch: [8]\n"

TICK, POWER = "mmgym/TickSpread-v0", "mmgym/HawkesPower-v0"
TINY = {
    "num_steps": 10, "horizon": 30.0, "lot": 20.0, "inventory_limit": 120.0, "limit_order_max": 40.0,
    "market_order_max": 40.0, "spread_transitions": [[0.0, 1.0], [1.0, 0.0]], "fill_rate_best": [0.06, 0.04],
    "fill_rate_improved": [0.15, 0.1], "initial_spread": 1,
}  # fmt: skip
DISCRETE = f"{TICK}:\n  n_timesteps: 8\n  gamma: 1.0\n  net_arch: [32, 32]\n  inner_steps: 300\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def weights(folder):
    with np.load(folder / "model" / "parameters.npz") as stored:
        return {name: stored[name] for name in stored.files}


def test_gauss_newton_finds_the_weights_of_a_network_that_is_known():
    """A concave expansion around one network, whose maximum is another one: its gain is found to 1e-3."""
    random = np.random.default_rng(2)
    observations = random.uniform(-1.0, 1.0, (400, 2))
    policy = NetworkPolicy(2, 2, [8], seed=1)
    search = GaussNewton(policy)
    played, start = policy.actions(observations), policy.weights()
    policy.set_weights(start + 0.1 * start.roll(1))
    wanted = policy.actions(observations)
    policy.set_weights(start)
    assert 0.01 < np.abs(wanted - played).max() < 0.25
    mixing = random.normal(size=(400, 2, 2))
    curvatures = -np.einsum("bij,bkj->bik", mixing, mixing) - 0.1 * np.eye(2)
    slopes = -np.einsum("bij,bj->bi", curvatures, wanted - played)
    expansion = Expansion(0.0, observations, played, slopes, curvatures)
    assert search.climb(expansion, 100, np.inf) > 3

    def gain(actions):
        moved = actions - played
        return (slopes * moved).sum() + 0.5 * np.einsum("bi,bij,bj->", moved, curvatures, moved)

    assert 0.999 * gain(wanted) < gain(policy.actions(observations)) <= gain(wanted)


def test_training_never_ends_worse_than_it_was():
    """`finish` goes back to the best weights that were evaluated."""
    learner = ExactGradient(expansions_of(environment_of(AS, **SMALL)), NetworkPolicy(2, 2, [8], seed=1))
    values = []
    for _ in range(4):
        learner.iterate()
        values.append(learner.value)
    kept = learner.policy.weights()
    learner.policy.set_weights(kept + 1.0)  # as a bad round would
    assert learner.finish() == pytest.approx(max(values), rel=1e-12)
    assert learner.expansions.value(learner.policy) == pytest.approx(max(values), rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_a_short_run_comes_within_3e_4_of_the_optimum(tmp_path, utility):
    """The whole budgets are in the slow test below."""
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG.replace("[8]", "[32, 32]"), encoding="utf-8")
    arguments = {**SMALL, "utility": utility}
    folder, score = train(str(path), AS, folder=tmp_path / "run", arguments=arguments, timesteps=12, progress=False)
    assert score.method == "exact"
    assert 0.0 <= score.regret < 3e-4 * score.optimum_upper
    policy, description = load_model(folder / "model")
    assert description["algorithm"] == "exact_gradient"
    assert baselines.score(AS, policy, **arguments).value == pytest.approx(score.value, abs=1e-12)
    summary = json.loads((folder / "run.json").read_text())
    assert {"settings", "versions", "commit", "seconds", "steps_per_second", "curve", "score"} <= set(summary)
    assert summary["curve"][0]["skill"] < summary["curve"][-1]["skill"]
    assert list((folder / "tensorboard").rglob("events*"))


@pytest.mark.long
@pytest.mark.parametrize("market", [(AS, SMALL), (TICK, TINY)], ids=["box", "discrete"])
def test_a_killed_run_resumes_to_the_same_weights(market, tmp_path, monkeypatch):
    import mmgym.agents.train as module

    env_id, arguments = market
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG + DISCRETE, encoding="utf-8")
    common = {"env_id": env_id, "seed": 3, "arguments": arguments, "timesteps": 6, "progress": False}
    whole, _ = train(str(path), folder=tmp_path / "whole", **common)
    write, count = module.write_folder, 0

    def write_and_die(*arguments):
        nonlocal count
        write(*arguments)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_folder", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(str(path), folder=tmp_path / "run", checkpoint_steps=2, **common)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    folder, _ = train(str(path), folder=tmp_path / "run", resume=True, **common)
    first, second = weights(whole), weights(folder)
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    curves = [json.loads((path / "run.json").read_text())["curve"] for path in (whole, folder)]
    assert curves[0] == curves[1]


def test_the_saved_policy_is_the_trained_one_in_a_terminal_state_too(config, tmp_path):
    folder, _ = train(config, AS, folder=tmp_path / "run", arguments=SMALL, progress=False)
    policy, _ = load_model(folder / "model")
    env = environment_of(AS, **SMALL)
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.predict(observation)[0])
    assert env.action_space.contains(policy.predict(np.array([1.0, 0.0], np.float32))[0])
    table = tabulate(problem_of(AS, **SMALL), policy)
    assert np.isfinite(table.controls).all()
    arrays = weights(folder)
    np.savez(folder / "model" / "parameters.npz", **{name: value[:1] for name, value in arrays.items()})
    with pytest.raises(ModelFileError, match="do not fit"):
        load_model(folder / "model")


@pytest.mark.parametrize("arguments", [{}, {"actions": "flat"}, {"utility": "cara"}])
def test_advantages_of_choices_are_those_of_trying_every_action(arguments):
    """Every action in every drawn cell, one by one, as `FrozenProblem.backward` values it."""
    env = environment_of(TICK, **TINY, **arguments)
    problem, policy = problem_of(env), network_of(env, [8], seed=5)
    around = FrozenChoices(problem, component_sizes(env.action_space)).around(policy, np.random.default_rng(1))
    controls = tabulate(problem, policy).controls
    assert around.value == pytest.approx(criterion_value(problem, controls), rel=1e-12)
    assert around.weights.sum() == pytest.approx(1.0)
    values, _ = evaluate(problem, controls)
    sizes = getattr(env.action_space, "nvec", None)
    actions = np.arange(env.action_space.n) if sizes is None else np.indices(sizes).reshape(len(sizes), -1).T
    for cell, (n, state) in enumerate(zip(*problem.locate(around.observations), strict=True)):
        states = np.full(len(actions), state)
        tried = problem.backward(n, states, problem.controls(actions), values[n + 1], problem.criterion)
        table = problem.to_value(tried, 0.0).reshape(-1, around.last.shape[1])
        advantages = table - table.max()
        np.testing.assert_allclose(around.last[cell], advantages.max(axis=0), atol=1e-10)
        best = around.last[cell].argmax()
        np.testing.assert_allclose(around.others[cell], advantages[:, best], atol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, {"actions": "flat"}, {"utility": "cara"}])
def test_discrete_actions_are_learned_in_a_small_market(arguments, tmp_path):
    path = tmp_path / "exact_gradient.yml"
    path.write_text(DISCRETE, encoding="utf-8")
    arguments = TINY | arguments
    folder, score = train(str(path), TICK, folder=tmp_path / "run", arguments=arguments, timesteps=8, progress=False)
    assert score.method == "exact"
    assert 0.9 < score.skill <= 1.0 + 1e-12
    policy, description = load_model(folder / "model")
    assert description["arguments"].get("actions") == arguments.get("actions")
    env = environment_of(TICK, **arguments)
    assert baselines.score(env, policy).value == score.value
    curve = json.loads((folder / "run.json").read_text())["curve"]
    assert len(curve) == 8
    assert all(point["regret"] >= 0.0 for point in curve)
    observation, _ = env.reset(seed=0)
    batch = np.repeat(observation[None], 3, axis=0)
    single, many = policy.predict(observation)[0], policy.predict(batch)[0]
    assert env.action_space.contains(single)
    assert np.array_equal(many, np.stack([single] * 3))


def test_what_is_masked_is_never_played():
    """In every state of every step, by a network that wants improved quotes and the largest sizes and orders."""
    env = environment_of(TICK, **TINY)
    policy, problem = network_of(env, [8]), problem_of(env)
    policy.prefer(env.params.action_sizes - 1, 50.0)
    observations = np.concatenate([problem.observations(n) for n in range(problem.num_steps)])
    actions = policy.predict(observations)[0]
    offsets = np.cumsum([0, *policy.sizes[:-1]])
    assert np.take_along_axis(env.masks(observations), actions + offsets, axis=1).all()
    assert len(np.unique(actions[:, 4])) > 1
    given = np.zeros((1, sum(policy.sizes)), dtype=bool)
    given[0, offsets] = True
    assert np.array_equal(policy.predict(observations[:1], action_masks=given)[0], [[0, 0, 0, 0, 0]])


def test_what_cannot_be_trained_is_named(tmp_path):
    for arguments in ({"decision": "clock"}, {"observe": "tape"}):  # on the tape a policy is no function of the state
        with pytest.raises(TypeError, match="need decision = 'event', and observe = 'state' or 'fills'"):
            train("exact_gradient", POWER, folder=tmp_path / "none", arguments=arguments, progress=False)
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG.replace("[8]", "[0]"))
    with pytest.raises(ValueError, match=r"net_arch = .* must be a list of whole numbers >= 1"):
        load_config(str(path), AS)
    cloning = tmp_path / "behaviour_cloning.yml"
    cloning.write_text(CONFIG.replace(AS, TICK))
    with pytest.raises(TypeError, match="behaviour_cloning needs a box of actions"):
        train(str(cloning), TICK, folder=tmp_path / "run", progress=False)
    many = environment_of(TICK, lot=1.0)
    with pytest.raises(ValueError, match="at most 10000 combinations of all components but the last, not 40804"):
        expansions_of(many)
    with pytest.raises(TypeError, match="needs a box of actions or discrete ones, not Dict"):
        network_of(SimpleNamespace(observation_space=many.observation_space, action_space=Dict()), [8])
    with pytest.raises(TypeError, match="needs a box of actions, or a market that tells the values of all actions"):
        FrozenChoices(problem_of(AS, **SMALL), (3,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "regret"),
    [(AS, 1e-5), ("mmgym/GLFT-v0", 1e-5), ("mmgym/MeanFieldMaker-v0", 1e-4), ("mmgym/MeanFieldTaker-v0", 1e-4)],
)
def test_the_shipped_configuration_comes_close_to_the_optimum(env_id, regret, tmp_path):
    _, score = train("exact_gradient", env_id, folder=tmp_path / "run", progress=False)
    assert 0.0 <= score.regret < regret * score.optimum_upper


@pytest.mark.slow
def test_the_hawkes_flow_is_learned_to_a_thousandth(tmp_path):
    _, score = train("exact_gradient", "mmgym/HawkesFlow-v0", folder=tmp_path / "run", progress=False)
    assert -score.value_error <= score.optimum_upper - score.value < 1e-3 * score.optimum_upper


def test_a_small_power_market_is_learned():
    """Two rounds gain more, on common paths, than the best quotes of the book; 5 standard errors."""
    env = environment_of(POWER, horizon=2.0, num_steps=8, inventory_limit=2)
    learner = ExactGradient(expansions_of(env), network_of(env, [16], 0), inner_steps=200)
    assert learner.iterate() and learner.iterate()
    first = learner.policy.weights()
    assert learner.finish() == learner.best_value > -np.inf
    assert learner.policy.weights().equal(first)
    joined = reference_policy(env)
    gains = [simulated_columns(env, policy, Rewards(), 4_000, 1)["estimate"] for policy in (learner.policy, joined)]
    better = gains[0] - gains[1]
    assert better.mean() > 5.0 * better.std() / 4_000**0.5


@pytest.mark.slow
def test_the_power_market_is_learned(tmp_path):
    _, score = train("exact_gradient", POWER, seed=7, folder=tmp_path / "run", progress=False)
    assert score.skill > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("actions", ["multi", "flat"])
def test_the_tick_spread_market_is_learned(actions, seed, tmp_path):
    arguments = {"actions": actions}
    _, score = train("exact_gradient", TICK, seed=seed, folder=tmp_path / "run", arguments=arguments, progress=False)
    assert score.skill > 0.98
    assert score.regret >= 0.0
