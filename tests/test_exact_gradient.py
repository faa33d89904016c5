"""Training on the exact value: what it reaches, its files, its resumption, and what it refuses."""

import json

import numpy as np
import pytest

import baselines
from agents.config import load_config
from agents.exact_gradient import ExactGradient
from agents.model_files import ModelFileError
from agents.network import GaussNewton, NetworkPolicy
from agents.train import load_model, train
from baselines.catalogue import environment_of, problem_of
from baselines.expansion import Expansion, expansions_of
from baselines.frozen import tabulate

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 20, "horizon": 0.1, "inventory_limit": 4.0}
CONFIG = f"{AS}:\n  n_timesteps: 8\n  gamma: 1.0\n  net_arch: [8]\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def weights(folder):
    with np.load(folder / "model" / "parameters.npz") as found:
        return {name: found[name] for name in found.files}


def test_gauss_newton_finds_the_weights_of_a_network_that_is_known():
    """A concave expansion around one network, whose maximum is another one: its gain is found to 1e-3."""
    random = np.random.default_rng(2)
    observations = random.uniform(-1.0, 1.0, (400, 2))
    policy = NetworkPolicy(2, 2, [8], seed=1)
    search = GaussNewton(policy)
    played, start = policy.actions(observations), search.weights()
    search.set_weights(start + 0.1 * start.roll(1))
    wanted = policy.actions(observations)
    search.set_weights(start)
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
    kept = learner.search.weights()
    learner.search.set_weights(kept + 1.0)  # as a bad round would
    assert learner.finish() == pytest.approx(max(values), rel=1e-12)
    assert learner.expansions.value(learner.policy) == pytest.approx(max(values), rel=1e-12)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_a_short_run_comes_within_3e_4_of_the_optimum(tmp_path, utility):
    """The whole budgets are in the slow test below."""
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG.replace("[8]", "[32, 32]"), encoding="utf-8")
    arguments = {**SMALL, "utility": utility}
    folder, found = train(str(path), AS, folder=tmp_path / "run", arguments=arguments, timesteps=12, progress=False)
    assert found.method == "exact"
    assert 0.0 <= found.regret < 3e-4 * found.optimum_upper
    policy, description = load_model(folder / "model")
    assert description["algorithm"] == "exact_gradient"
    assert baselines.score(AS, policy, **arguments).value == pytest.approx(found.value, abs=1e-12)
    summary = json.loads((folder / "run.json").read_text())
    assert {"settings", "versions", "commit", "seconds", "steps_per_second", "curve", "score"} <= set(summary)
    assert summary["curve"][0]["skill"] < summary["curve"][-1]["skill"]
    assert list((folder / "tensorboard").rglob("events*"))


def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path, monkeypatch):
    import agents.train as module

    whole, _ = train(config, AS, seed=3, folder=tmp_path / "whole", arguments=SMALL, progress=False)
    write, count = module.write_folder, 0

    def write_and_die(*arguments):
        nonlocal count
        write(*arguments)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_folder", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(config, AS, seed=3, folder=tmp_path / "run", arguments=SMALL, checkpoint_steps=2, progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    folder, _ = train(config, AS, seed=3, folder=tmp_path / "run", arguments=SMALL, resume=True, progress=False)
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


def test_what_cannot_be_trained_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no settings for 'mmgym/TickSpread-v0'"):
        load_config("exact_gradient", "mmgym/TickSpread-v0")
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG.replace("[8]", "[0]"))
    with pytest.raises(ValueError, match=r"net_arch = .* must be a list of whole numbers >= 1"):
        load_config(str(path), AS)
    path.write_text(CONFIG.replace(AS, "mmgym/TickSpread-v0"))
    with pytest.raises(TypeError, match="needs a box of actions"):
        train(str(path), "mmgym/TickSpread-v0", folder=tmp_path / "run", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "regret"),
    [(AS, 1e-5), ("mmgym/GLFT-v0", 1e-5), ("mmgym/MeanFieldMaker-v0", 1e-4), ("mmgym/MeanFieldTaker-v0", 1e-4)],
)
def test_the_shipped_configuration_comes_close_to_the_optimum(env_id, regret, tmp_path):
    _, found = train("exact_gradient", env_id, folder=tmp_path / "run", progress=False)
    assert 0.0 <= found.regret < regret * found.optimum_upper


@pytest.mark.slow
def test_the_hawkes_flow_is_learned_to_a_thousandth(tmp_path):
    _, found = train("exact_gradient", "mmgym/HawkesFlow-v0", folder=tmp_path / "run", progress=False)
    assert -found.value_error <= found.optimum_upper - found.value < 1e-3 * found.optimum_upper
