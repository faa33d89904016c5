"""Training on the exact value: what it reaches, its files, its resumption, and what it refuses."""

import json

import numpy as np
import pytest

import baselines
from agents.config import load_config
from agents.exact_gradient import ExactGradient, NetworkPolicy
from agents.model_files import ModelFileError
from agents.train import load_model, train
from baselines.catalogue import environment_of, problem_of
from baselines.frozen import criterion_value, tabulate

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 20, "horizon": 0.1, "inventory_limit": 4.0}
CONFIG = f"{AS}:\n  n_timesteps: 40\n  gamma: 1.0\n  net_arch: [8]\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def weights(folder):
    with np.load(folder / "model" / "parameters.npz") as found:
        return {name: found[name] for name in found.files}


def test_the_gradient_of_the_network_is_that_of_its_value():
    """Finite differences of the evaluation in three weights; actions are taken in float64."""
    problem = problem_of(AS, **SMALL)
    policy = NetworkPolicy(2, 2, [8], seed=1)
    learner = ExactGradient(problem, policy)
    learner._loss()
    parameters = list(policy.network.parameters())
    gradients = [parameter.grad.clone() for parameter in parameters]

    def value():
        actions = policy(learner.observations).detach().numpy().clip(-1.0, 1.0)
        return criterion_value(problem, (learner.center + learner.reach * actions).reshape(learner.shape))

    for parameter, gradient in zip(parameters[:3], gradients[:3], strict=True):
        flat = parameter.data.view(-1)
        kept, size = flat[0].item(), 1e-6
        flat[0] = kept + size
        ahead = value()
        flat[0] = kept - size
        behind = value()
        flat[0] = kept
        slope = -learner.scale * (ahead - behind) / (2.0 * size)
        assert gradient.view(-1)[0].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_a_short_run_comes_within_3e_4_of_the_optimum(tmp_path, utility):
    """The whole budgets and 1e-4 are in the slow test below."""
    path = tmp_path / "exact_gradient.yml"
    path.write_text(CONFIG.replace("[8]", "[32, 32]"), encoding="utf-8")
    arguments = {**SMALL, "utility": utility}
    folder, found = train(str(path), AS, folder=tmp_path / "run", arguments=arguments, timesteps=160, progress=False)
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
        train(config, AS, seed=3, folder=tmp_path / "run", arguments=SMALL, checkpoint_steps=5, progress=False)
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
@pytest.mark.parametrize("env_id", [AS, "mmgym/GLFT-v0", "mmgym/MeanFieldMaker-v0"])
def test_the_shipped_configuration_comes_within_1e_4_of_the_optimum(env_id, tmp_path):
    _, found = train("exact_gradient", env_id, folder=tmp_path / "run", progress=False)
    assert found.regret < 1e-4 * found.optimum_upper
