"""Memory traces: sums over recorded histories, intensities that they tell, and how agents with them run and are scored.

Second methods: the double sum over an episode's observations, the simulation's own intensities, and scores of the same
policy behind the wrapper.
"""

import json

import gymnasium
import numpy as np
import pytest
import yaml

import mmgym  # noqa: F401  # registers the ids
from mmgym.adapters.sb3 import SB3VecEnv
from mmgym.agents import train as module
from mmgym.agents.config import load_config
from mmgym.agents.learn_game import load_game
from mmgym.agents.model_files import ModelFileError
from mmgym.agents.train import build_env, build_model, load_model, train
from mmgym.baselines import score
from mmgym.baselines.catalogue import environment_of
from mmgym.baselines.episodes import episodes
from mmgym.baselines.policy import CallablePolicy, MemoryPolicy
from mmgym.baselines.scoring import exact_skill
from mmgym.memory_traces import MemoryTraces, RememberingVectorEnv

pytestmark = pytest.mark.usefixtures("solutions_of_its_own")
AS, TS = "mmgym/AvellanedaStoikov-v0", "mmgym/TickSpread-v0"
FLOW, POWER = "mmgym/HawkesFlow-v0", "mmgym/HawkesPower-v0"
TAPE = {"observe": "tape", "horizon": 2.0, "num_steps": 8}  # about ten decisions an episode, of the power market 25
SMALL = {AS: {"num_steps": 10, "horizon": 0.5, "inventory_limit": 3.0}, TS: {"num_steps": 10, "horizon": 20.0}}
MEMORY = {"entries": [1], "rates": [1.0, 10.0]}


def batch_of(env_id, rows, mode="NextStep", **arguments):
    return gymnasium.make_vec(env_id, num_envs=rows, autoreset_mode=mode, **arguments).unwrapped


def direct_sums(observations, begun, entries, rates, low):
    """Traces (T, B, M) of histories (T, B, D), and where episodes begin in them (T, B)."""
    count, rows, _ = observations.shape
    expected = np.zeros((count, rows, 0))
    times = observations[..., 0].astype(np.float64)  # passed, or left
    for entry in entries:
        for sign in (1.0, -1.0) if low[entry] < 0.0 else (1.0,):
            inputs = np.maximum(sign * observations[..., entry].astype(np.float64), 0.0)
            for rate in rates:
                column = np.zeros((count, rows, 1))
                for b in range(rows):
                    start = 0
                    for i in range(count):
                        start = i if begun[i, b] else start
                        lags = np.abs(times[start : i + 1, b] - times[i, b])
                        column[i, b, 0] = np.exp(-rate * lags) @ inputs[start : i + 1, b]
                expected = np.concatenate([expected, column], axis=2)
    return expected


@pytest.mark.parametrize(
    ("env_id", "entries", "arguments"),
    [(FLOW, [2], TAPE), (FLOW, [1, 3], TAPE), (POWER, [3, 4, 5, 6, 7, 8], TAPE), (AS, [1], SMALL[AS])],
)
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_traces_are_sums_over_the_history_of_the_episode(env_id, entries, arguments, mode):
    """Of every row, over several episodes, by the wrapper and by the policy, which has the observations alone."""
    rates, rows = [0.3, 5.0, 300.0], 5
    plain, envs = (batch_of(env_id, rows, mode, **arguments) for _ in range(2))
    envs = RememberingVectorEnv(envs, entries, rates)
    policy = MemoryPolicy(CallablePolicy(lambda seen: seen), envs.traces)
    history, (seen, _) = [plain.reset(seed=3)[0]], envs.reset(seed=3)
    given, random, ended_before = [seen], np.random.default_rng(0), np.zeros(rows, np.bool_)
    first, state = policy.predict(history[0])
    answers, begun = [first], [np.ones(rows, np.bool_)]
    for _ in range(80):
        actions = random.uniform(-1.0, 1.0, (rows, *envs.single_action_space.shape)).astype(np.float32)
        observations, _, ended, *_ = plain.step(actions)
        seen, _, finished, *_ = envs.step(actions)
        assert np.array_equal(seen[:, : observations.shape[1]], observations)
        if mode == "Disabled" and ended.any():
            observations = plain.reset(options={"reset_mask": ended})[0]
            seen = envs.reset(options={"reset_mask": finished})[0]
        begun.append(ended if mode == "Disabled" else ended_before)
        ended_before = ended.copy()
        history.append(observations)
        given.append(seen)
        answer, state = policy.predict(observations, state, begun[-1])
        answers.append(answer)
    observed, low = np.stack(history), plain.single_observation_space.low
    assert np.sum(begun) > 2 * rows
    expected = direct_sums(observed, np.stack(begun), entries, rates, low)
    np.testing.assert_allclose(np.stack(given)[..., observed.shape[2] :], expected, rtol=1e-4, atol=1e-5)
    assert envs.single_observation_space.contains(seen[0])
    assert np.array_equal(np.stack(answers), np.stack(given))


def test_at_a_markets_own_rates_traces_tell_its_intensities():
    """Of buys and sells: the base rate, what is left of the initial excess, and a jump for each order remembered."""
    flows = {"base_rate": [0.8, 0.5], "excitation": [1.0, 2.0], "decay": [2.0, 4.0], "initial_rates": [2.5, 0.5]}
    arguments = {"observe": "tape", "horizon": 5.0, "num_steps": 20, **flows}
    rates = [5.0 * decay for decay in flows["decay"]]
    envs = RememberingVectorEnv(batch_of(FLOW, 8, info="full", **arguments), [2], rates)
    seen, info = envs.reset(seed=1)
    for _ in range(100):  # three episodes or more
        now = 5.0 * (1.0 - seen[:, 0])
        for k, name in enumerate(("buy", "sell")):
            base, jump, decay, first = (flows[key][k] for key in ("base_rate", "excitation", "decay", "initial_rates"))
            told = base + (first - base) * np.exp(-decay * now) + jump * seen[:, 4 + 3 * k]
            np.testing.assert_allclose(told, info[f"{name}_rate"], rtol=1e-4)
        seen, *_, info = envs.step(np.full((8, 2), -0.2, np.float32))


def tilted(seen):
    """Actions that depend on every entry."""
    total = np.asarray(seen, dtype=np.float64) @ np.linspace(-1.0, 1.0, np.shape(seen)[-1])
    return np.stack([np.sin(total), np.cos(total)], axis=-1).astype(np.float32)


@pytest.mark.parametrize(("env_id", "arguments"), [(FLOW, TAPE), (AS, SMALL[AS])])
def test_a_policy_plays_as_behind_the_wrapper(env_id, arguments):
    """The same episodes; it is simulated, also where a function of one observation would be tabulated."""
    env = environment_of(env_id, **arguments)
    policy = MemoryPolicy(CallablePolicy(tilted, markov=True), MemoryTraces(env.observation_space, [1], [1.0, 30.0]))
    behind = score(RememberingVectorEnv(batch_of(env_id, 200, **arguments), [1], [1.0, 30.0]), tilted, episodes=200)
    played = score(env, policy, episodes=200)
    assert played.method == behind.method == "simulated"
    assert (played.pnl, played.fills) == pytest.approx((behind.pnl, behind.fills), rel=1e-9)
    assert abs(played.value - behind.value) < 5.0 * behind.stderr
    skill, regret = exact_skill(env, policy)
    assert regret == pytest.approx(played.optimum_lower - played.value, abs=6.0 * behind.stderr)
    assert skill < 1.0
    with pytest.raises(ValueError, match="an exact score needs a function of the observation"):
        score(env, policy, method="exact")


def test_finished_rows_of_sb3_have_the_traces_of_their_episode():
    """The last observation of an episode with its traces, the first of the next one with its own."""
    venv = SB3VecEnv(RememberingVectorEnv(batch_of(FLOW, 3, "Disabled", **TAPE), [2], [1.0]))
    venv.seed(5)
    before, actions, ends = venv.reset(), np.zeros((3, 2), np.float32), 0
    for _ in range(60):
        seen, _, finished, infos = venv.step(actions)
        for row in np.flatnonzero(finished):
            last = infos[row]["terminal_observation"]
            kept = before[row, 4:] * np.exp(-(before[row, 0] - last[0])) + [max(last[2], 0.0), max(-last[2], 0.0)]
            np.testing.assert_allclose(last[4:], kept, rtol=1e-5)
            assert seen[row, 0] == 1.0
            assert not seen[row, 4:].any()
            ends += 1
        before = seen
    assert ends > 6


ON_POLICY = {"n_envs": 8, "n_timesteps": 960, "n_steps": 20, "policy_kwargs": {"net_arch": [8]}}
NORMALIZE = {"normalize": {"norm_obs": True, "norm_reward": True, "gamma": 1.0}}
OFF_POLICY = {"n_envs": 8, "n_timesteps": 960, "learning_starts": 100, "buffer_size": 500, "batch_size": 16}
RUNS = {
    "natural_gradient": {"n_envs": 64, "n_steps": 20, "n_timesteps": 20_000},
    "ppo": {**ON_POLICY, **NORMALIZE, "batch_size": 80},
    "maskable_ppo": {**ON_POLICY, "batch_size": 80},
    "recurrent_ppo": {**ON_POLICY, "batch_size": 80, "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 4}},
    "sac": {**OFF_POLICY, **NORMALIZE, "policy_kwargs": {"net_arch": [8]}},
}


def write(folder, algorithm, **settings):
    env_id = TS if algorithm == "maskable_ppo" else AS
    file = folder / f"{algorithm}.yml"
    content = {"gamma": 1.0, "memory": MEMORY, **RUNS.get(algorithm, {}), **settings}
    file.write_text(yaml.safe_dump({env_id: content}), encoding="utf-8")
    return str(file), env_id


@pytest.mark.parametrize(
    "algorithm", ["natural_gradient", *(pytest.param(name, marks=pytest.mark.long) for name in RUNS if name[0] != "n")]
)
def test_a_killed_run_resumes_to_the_same_weights_and_is_scored_with_its_memory(algorithm, tmp_path, monkeypatch):
    """Bit for bit; the model of the folder plays as what was trained."""
    config, env_id = write(tmp_path, algorithm)
    options = {"seed": 2, "arguments": SMALL[env_id], "progress": False}
    whole, scored = train(config, env_id, folder=tmp_path / "whole", **options)
    name = "write_rounds" if algorithm == "natural_gradient" else "save_checkpoint"
    save = getattr(module, name)

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(config, env_id, folder=tmp_path / "run", checkpoint_steps=400, **options)
    monkeypatch.undo()
    folder, again = train(config, env_id, folder=tmp_path / "run", resume=True, **options)
    arrays = [dict(np.load(home / "model" / "parameters.npz")) for home in (whole, folder)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0] | arrays[1])
    assert again.value == scored.value
    assert scored.method == "simulated"
    runs = [json.loads((home / "run.json").read_text(encoding="utf-8")) for home in (whole, folder)]
    assert runs[0]["curve"] == runs[1]["curve"]
    policy, _ = load_model(folder / "model")
    assert not policy.markov
    assert score(env_id, policy, **runs[0]["settings"]["arguments"]).value == scored.value
    seen = [len(step.decision.observations[0]) for step in episodes(batch_of(env_id, 2, **SMALL[env_id]), policy, 0)]
    assert seen[0] == environment_of(env_id, **SMALL[env_id]).observation_space.shape[0]


def test_a_model_of_sb3_brings_its_memory(tmp_path):
    """Given as it is, it is not taken for a function of the observation."""
    config, _ = write(tmp_path, "ppo")
    venv = build_env(load_config(config, AS), AS, SMALL[AS], 1)
    model = build_model(load_config(config, AS), venv, 0, None)
    scored = score(AS, model, episodes=100, **SMALL[AS])
    assert scored.method == "simulated"
    assert scored.value == score(AS, module.as_policy(model), episodes=100, **SMALL[AS]).value


def test_refused(tmp_path):
    space = environment_of(FLOW, **TAPE).observation_space
    for entries, rates, message in (
        ([0], [1.0], "entries = 0 is not allowed: it must be a whole number from 1 to 3"),
        ([4], [1.0], "entries = 4 is not allowed"),
        ([2, 2], [1.0], r"entries = \[2, 2\] is not allowed: each must be there once"),
        ([], [1.0], r"entries = \[\] and rates = \[1.0\] must each have at least one number"),
        ([2], [0.0], "rates = 0.0 is not allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryTraces(space, entries, rates)
    with pytest.raises(ValueError, match=r"Discrete\(3\) have no memory traces"):
        MemoryTraces(gymnasium.spaces.Discrete(3), [1], [1.0])
    with pytest.raises(ValueError, match="autoreset_mode 'SameStep' is not allowed here"):
        RememberingVectorEnv(batch_of(FLOW, 2, "SameStep", **TAPE), [2], [1.0])
    for algorithm, memory, message in (
        ("ppo", {"entries": [1]}, "memory = .* must be {entries: a list of whole numbers"),
        ("ppo", {"entries": [1], "rates": [0.0]}, "memory = .* must be "),
        ("exact_gradient", MEMORY, "unknown key 'memory'"),
    ):
        config, _ = write(tmp_path, algorithm, n_timesteps=10, memory=memory)
        with pytest.raises(ValueError, match=message):
            load_config(config, AS)


def test_games_need_answers_without_a_memory(tmp_path):
    learner = {"gamma": 1.0, "n_envs": 2, "n_timesteps": 10, "memory": MEMORY}
    (tmp_path / "ppo.yml").write_text(yaml.safe_dump({"mmgym/MeanFieldTaker-v0": learner}), encoding="utf-8")
    game = {
        "environment": "mmgym/MeanFieldTaker-v0",
        "learner": str(tmp_path / "ppo.yml"),
        "algorithms": {"fictitious_play": None},
    }
    file = tmp_path / "learn_game.yml"
    file.write_text(yaml.safe_dump(game), encoding="utf-8")
    with pytest.raises(ValueError, match="it has a memory, but answers must be functions of the observation"):
        load_game(str(file))


def test_damaged_files_are_refused(tmp_path):
    """A memory of entries that the environment does not show, and a checkpoint without its traces."""
    config, _ = write(tmp_path, "natural_gradient", n_timesteps=2000)
    folder, _ = train(config, AS, folder=tmp_path / "run", arguments=SMALL[AS], progress=False)
    file = folder / "model" / "model.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["hyperparameters"]["hyperparameters"]["memory"]["entries"] = [7]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelFileError, match="entries = 7 is not allowed"):
        load_model(folder / "model")
    envs = RememberingVectorEnv(batch_of(AS, 3, **SMALL[AS]), [1], [1.0])
    envs.reset(seed=0)
    state = envs.get_state()
    with pytest.raises(ValueError, match=r"memory .* is not allowed"):
        envs.set_state({**state, "memory": state["memory"][:2]})
    with pytest.raises(KeyError, match="memory"):
        envs.set_state({name: value for name, value in state.items() if name != "memory"})
