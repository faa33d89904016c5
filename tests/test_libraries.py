"""Other libraries: every line of the table in mmgym/adapters/README.md runs, where its library is installed.

Scores are compared with those of the same functions of the observation in numpy.
"""

import importlib
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import mmgym
from mmgym import baselines

ROOT = Path(mmgym.__file__).resolve().parents[1]
TABLE = (ROOT / "mmgym" / "adapters" / "README.md").read_text(encoding="utf-8")
ROWS = {
    cells[0]: [cell.strip("`") for cell in cells[1:]]
    for cells in (re.split(r" \| ", line.strip("| ")) for line in TABLE.splitlines() if "`" in line and line[0] == "|")
}
AS, ROBUST, TICK = "mmgym/AvellanedaStoikov-v0", "mmgym/RobustGLFT-v0", "mmgym/TickSpread-v0"
FLAT = {"actions": "flat", "num_steps": 4}  # of the last one
WEIGHTS = np.array([[0.05, 0.6], [-0.1, -0.5]], np.float32)  # an agent: quotes linear in time and inventory
OFFSETS = np.array([0.45, 0.4], np.float32)

pytestmark = [  # the libraries' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def need(*modules):
    """Modules by name, or a skip."""
    imported = [pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError) for name in modules]
    return imported[0] if len(imported) == 1 else imported


def evaluated(library, column, **names):
    """What a cell of the table returns; the modules that it names are imported."""
    code = ROWS[library][column]
    for module in re.findall(r"\b((?:torchrl|skrl|tianshou|pufferlib|mmgym|torch)(?:\.[a-z_0-9]+)*)\.\w+\(", code):
        names[module.partition(".")[0]] = importlib.import_module(module.partition(".")[0])
        importlib.import_module(module)
    return eval(code, {"gym": gymnasium, "ID": AS, "score": baselines.score, **names})


def linear(observations):
    return np.clip(observations @ WEIGHTS.T + OFFSETS, -1.0, 1.0)


def likeliest(logits, sizes):
    """The largest of the logits of each component of an action."""
    return np.stack([part.argmax(axis=1) for part in np.split(logits, np.cumsum(sizes)[:-1], axis=1)], axis=1)


def linear_layer():
    torch = need("torch")
    layer = torch.nn.Linear(2, 2)
    layer.load_state_dict({"weight": torch.tensor(WEIGHTS), "bias": torch.tensor(OFFSETS)})
    return layer


def is_that_of_numpy(scored, env_id=AS):
    expected = baselines.score(env_id, linear, markov=True)
    assert scored.method == expected.method == "exact"
    assert scored.value == pytest.approx(expected.value, rel=1e-6)


def test_the_table_is_covered():
    tested = {name for mark in test_torchrl.pytestmark if mark.name == "parametrize" for name in mark.args[1]}
    alone = {"skrl", "Tianshou", "RLlib", "SBX", "CleanRL's loops", "PufferLib", "PettingZoo"}
    assert set(ROWS) == tested | alone
    assert all(len(cells) == 2 for cells in ROWS.values())


@pytest.mark.long
@pytest.mark.parametrize("library", ["TorchRL", "TorchRL, batch"])
def test_torchrl(library):
    torch, modules, envs, nn = need("torch", "torchrl.modules", "torchrl.envs.utils", "tensordict.nn")
    env = evaluated(library, 0)
    envs.check_env_specs(env)
    played = env.rollout(203, break_when_any_done=False)
    ends = played["next", "terminated"].reshape(-1, 203)
    assert ends.nonzero()[:, 1].tolist() == [199] * len(ends)  # the next step is one of a new episode
    assert (played["observation"].reshape(-1, 203, 2)[:, 200, 0] == 0.0).all()

    class Head(torch.nn.Module):
        def forward(self, location):
            return location, torch.full_like(location, 0.1)

    net = nn.TensorDictModule(torch.nn.Sequential(linear_layer(), Head()), ["observation"], ["loc", "scale"])
    keys = {"in_keys": ["loc", "scale"], "distribution_class": modules.IndependentNormal, "return_log_prob": True}
    actor = modules.ProbabilisticActor(net, default_interaction_type=nn.InteractionType.RANDOM, **keys)
    is_that_of_numpy(evaluated(library, 1, actor=actor))
    drawn = baselines.score(AS, actor, method="simulated", deterministic=False, episodes=500)

    random = np.random.default_rng(0)

    def noisy(observations):
        means = observations @ WEIGHTS.T + OFFSETS
        return np.clip(means + 0.1 * random.standard_normal(means.shape), -1.0, 1.0)

    expected = baselines.score(AS, noisy, method="simulated", episodes=500, seed=1)
    assert abs(drawn.value - expected.value) < 5 * np.hypot(drawn.stderr, expected.stderr)  # false alarms: 6e-7
    with pytest.raises(TypeError, match="must map the observation alone to the action"):
        baselines.score(AS, net)


def test_torchrl_has_the_state_of_a_game():
    need("pettingzoo", "torchrl.envs")
    from torchrl.envs.libs.pettingzoo import PettingZooWrapper

    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    env = PettingZooWrapper(env=MeanFieldParallelEnv(num_takers=3, num_steps=60), return_state=True)
    assert env.rollout(100)["next", "state"].shape == (60, 14)


@pytest.mark.parametrize("env_id", [TICK])
def test_torchrl_one_hot_actions(env_id):
    need("torchrl.modules")
    from torchrl.envs import GymEnv
    from torchrl.modules import MLP, QValueActor

    spec = GymEnv(env_id, **FLAT).action_spec
    net = MLP(3, spec.shape[-1], num_cells=[4])
    score = baselines.score(env_id, QValueActor(net, in_keys=["observation"], spec=spec), **FLAT)
    assert score.value == pytest.approx(baselines.score(env_id, net, **FLAT).value, rel=1e-9)


def test_skrl(tmp_path):
    torch, models, trainers = need("torch", "skrl.models.torch", "skrl.trainers.torch")
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.memories.torch import RandomMemory

    class Gaussian(models.GaussianMixin, models.Model):
        def __init__(self, layer, **spaces):
            models.Model.__init__(self, **spaces)
            models.GaussianMixin.__init__(self)
            self.layer, self.log_std = layer, torch.nn.Parameter(torch.zeros(2))

        def compute(self, inputs, role):
            return self.layer(inputs["observations"]), {"log_std": self.log_std}

    class Value(models.DeterministicMixin, models.Model):
        def __init__(self, **spaces):
            models.Model.__init__(self, **spaces)
            models.DeterministicMixin.__init__(self)
            self.layer = torch.nn.Linear(2, 1)

        def compute(self, inputs, role):
            return self.layer(inputs["observations"]), {}

    env = evaluated("skrl", 0)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    layer, config = linear_layer(), PPO_CFG(rollouts=5)
    config.experiment.directory, config.experiment.write_interval = str(tmp_path), 0
    config.experiment.checkpoint_interval = 0
    policy, memory = Gaussian(layer, **spaces), RandomMemory(memory_size=5, num_envs=env.num_envs, device=env.device)
    agent = PPO(models={"policy": policy, "value": Value(**spaces)}, memory=memory, cfg=config, **spaces)
    before = layer.bias.clone()
    options = {"timesteps": 10, "disable_progressbar": True, "close_environment_at_exit": False}
    trainers.SequentialTrainer(env=env, agents=agent, cfg=options).train()
    assert not torch.equal(before, layer.bias)  # it learns
    layer.load_state_dict(linear_layer().state_dict())
    is_that_of_numpy(evaluated("skrl", 1, agent=agent))


@pytest.mark.long
def test_tianshou():
    torch, data, reinforce = need("torch", "tianshou.data", "tianshou.algorithm.modelfree.reinforce")

    class Actor(torch.nn.Module):
        layer = linear_layer()

        def forward(self, observations, state=None, info=None):
            means = self.layer(torch.as_tensor(observations))
            return (means, torch.full_like(means, 0.1)), state

    policy = reinforce.ProbabilisticActorPolicy(
        actor=Actor(),
        dist_fn=lambda moments: torch.distributions.Independent(torch.distributions.Normal(*moments), 1),
        action_space=gymnasium.make(AS).action_space,
        deterministic_eval=True,
        action_scaling=False,
    )
    envs = evaluated("Tianshou", 0)
    collector = data.Collector(policy, envs, data.VectorReplayBuffer(2000, len(envs)))
    collector.reset()
    collected = collector.collect(n_episode=8)
    assert collected.lens.tolist() == [200] * 8
    ends = [data.Batch(batch).terminated for batch in (collector.buffer[199], collector.buffer[198])]
    assert [bool(end) for end in ends] == [True, False]
    is_that_of_numpy(evaluated("Tianshou", 1, policy=policy))


@pytest.mark.slow
def test_rllib():
    need("mmgym.agents.rllib")
    import ray

    algorithm = evaluated("RLlib", 0)
    try:
        algorithm.train()
        module = algorithm.get_module()
        score = evaluated("RLlib", 1, algorithm=algorithm)
        assert score.method == "exact"
        assert score.value == pytest.approx(baselines.score(AS, module).value, rel=1e-12)
    finally:
        algorithm.stop()
        ray.shutdown()


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments"), [(AS, {}), (TICK, {"num_steps": 4}), (TICK, FLAT)], ids=str)
def test_rllib_module(env_id, arguments):
    """An untrained RLModule: the mean of its Gaussian head, or the likeliest entries of its categorical ones."""
    torch, spec, catalog, ppo = need(
        "torch",
        "ray.rllib.core.rl_module.rl_module",
        "ray.rllib.algorithms.ppo.ppo_catalog",
        "ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module",
    )
    env = gymnasium.make(env_id, **arguments)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    kinds = {"module_class": ppo.DefaultPPOTorchRLModule, "catalog_class": catalog.PPOCatalog, "model_config": {}}
    module = spec.RLModuleSpec(**spaces, **kinds).build()

    def heads(observations):
        with torch.no_grad():
            outputs = module.forward_inference({"obs": torch.as_tensor(observations)})["action_dist_inputs"].numpy()
        if env_id == AS:
            return outputs[:, :2]
        if arguments is FLAT:
            return outputs.argmax(axis=1)
        return likeliest(outputs, env.action_space.nvec)

    score = baselines.score(env_id, module, **arguments)
    assert score.value == pytest.approx(baselines.score(env_id, heads, markov=True, **arguments).value, rel=1e-9)


@pytest.mark.long
def test_sbx():
    sbx = need("sbx")
    envs = evaluated("SBX", 0)
    model = sbx.PPO("MlpPolicy", envs, n_steps=10, batch_size=2560, gamma=1.0, seed=0).learn(5120)
    score = evaluated("SBX", 1, model=model)
    expected = baselines.score(AS, lambda observations: model.predict(observations, deterministic=True)[0], markov=True)
    assert (score.method, score.value) == ("exact", pytest.approx(expected.value, rel=1e-9))


def test_stable_baselines_logs_episodes(tmp_path):
    """PPO's log of episodes against sums of what Gymnasium's own vector environment pays for its actions."""
    sb3, logger = need("stable_baselines3", "stable_baselines3.common.logger")
    from mmgym.adapters.sb3 import make_sb3_env

    class Recording(sb3.PPO):
        played = []  # noqa: RUF012

        def collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps):
            done = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
            self.played.append(np.clip(rollout_buffer.actions, -1.0, 1.0))
            return done

    envs = make_sb3_env(AS, 3, num_steps=7)
    model = Recording("MlpPolicy", envs, n_steps=20, batch_size=60, n_epochs=1, gamma=1.0, seed=5, device="cpu")
    model.set_logger(logger.configure(str(tmp_path), ["csv"]))
    model.learn(120, log_interval=2)
    model.logger.close()
    logged = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    reference = gymnasium.make_vec(AS, num_envs=3, num_steps=7, vectorization_mode="sync")
    reference.reset(seed=5)
    rewards = []
    for actions in np.concatenate(model.played):
        if rewards and len(rewards) % 7 == 0:
            reference.step(actions)  # Gymnasium's reset, in a step of its own
        rewards.append(reference.step(actions)[1])
    totals = np.sum(rewards[:35], axis=1).reshape(5, 7).sum(axis=1) / 3
    assert float(logged["rolloutep_len_mean"]) == 7
    assert float(logged["rolloutep_rew_mean"]) == pytest.approx(totals.mean(), rel=1e-5)


def test_cleanrl_loop():
    """A loop as CleanRL's, in the default mode NextStep, against single environments that are reset by hand."""
    envs = evaluated("CleanRL's loops", 0)
    random, count, steps = np.random.default_rng(0), envs.num_envs, 403
    actions = random.uniform(-1.0, 1.0, (steps, count, 2)).astype(np.float32)
    observations, _ = envs.reset(seed=3)
    done, sums, lengths, returns = np.zeros(count, bool), np.zeros(count), np.zeros(count, int), []
    for n in range(steps):
        following, rewards, terminations, truncations, infos = envs.step(actions[n])
        assert not truncations.any()
        sums, lengths = np.where(done, 0.0, sums + rewards), np.where(done, 0, lengths + 1)
        assert (rewards[done] == 0.0).all()  # the step after an end is the reset: no transition to learn from
        done = terminations
        if done.any():
            np.testing.assert_allclose(infos["episode"]["r"][done], sums[done], rtol=1e-9)
            assert (infos["episode"]["l"][done] == 200).all() and (lengths[done] == 200).all()
            returns.append(sums[:2].copy())
        observations = following
    assert len(returns) == 2
    for row in range(2):
        env = gymnasium.make(AS)
        env.reset(seed=3 + row)
        for episode in range(2):
            total = 0.0
            for n in range(200):
                total += env.step(actions[201 * episode + n, row])[1]
            assert returns[episode][row] == pytest.approx(total, rel=1e-12)
            env.reset()
        np.testing.assert_array_equal(observations[row], env.step(actions[402, row])[0])
    is_that_of_numpy(evaluated("CleanRL's loops", 1, module=linear_layer()))


@pytest.mark.long
@pytest.mark.parametrize("env_id", [TICK])  # its kernels: see conftest.py
def test_pufferlib(env_id):
    need("pufferlib.emulation")
    torch = need("torch")
    env, alone = evaluated("PufferLib", 0), gymnasium.make(env_id)
    observation, _ = env.reset(seed=4)
    np.testing.assert_array_equal(np.ravel(observation), alone.reset(seed=4)[0])  # version 3 has an axis of agents
    alone.action_space.seed(0)
    for _ in range(300):
        action = alone.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        expected = alone.step(action)
        np.testing.assert_array_equal(np.ravel(observation), expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
    assert terminated
    sizes = alone.action_space.nvec
    module = torch.nn.Linear(3, int(sizes.sum()))

    def chosen(observations):
        return likeliest(module(torch.as_tensor(observations)).detach().numpy(), sizes)

    score = evaluated("PufferLib", 1, module=module)
    assert score.value == pytest.approx(baselines.score(env_id, chosen, markov=True).value, rel=1e-9)


@pytest.mark.parametrize("env_id", [ROBUST])
def test_pettingzoo(env_id):
    need("pettingzoo")
    env = evaluated("PettingZoo", 0)
    with pytest.raises(RuntimeError, match="reset"):
        env.state()
    observations, _ = env.reset(seed=1)
    random = np.random.default_rng(2)
    while env.agents:
        for seen in observations.values():
            np.testing.assert_array_equal(env.state(), seen)
        assert env.state_space.contains(env.state())
        played = {agent: random.uniform(-1.0, 1.0, env.action_space(agent).shape) for agent in env.agents}
        observations, rewards, *_ = env.step(played)
        assert sum(rewards.values()) == 0.0
    is_that_of_numpy(evaluated("PettingZoo", 1, module=linear_layer()), env_id)


def test_state_of_the_players():
    """The state has what the infos tell of every player, over what observations are scaled by."""
    need("pettingzoo")
    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    env = MeanFieldParallelEnv(num_takers=3, num_steps=60)
    _, infos = env.reset(seed=3)
    random = np.random.default_rng(1)
    params = env.players.params.game
    for n in range(61):
        state = env.state()
        assert state.shape == env.state_space.shape == (8 + 2 * 3,) and env.state_space.contains(state)
        assert state[:2] == pytest.approx([n / 60, infos["maker_0"]["inventory"] / params.inventory_limit])
        takers = state[8:].reshape(3, 2)
        for row, taker in enumerate(env.takers):
            assert takers[row, 0] == pytest.approx(infos[taker]["inventory"] / params.inventory_limit)
            assert takers[row, 1] == pytest.approx(infos[taker]["signal"] / params.signal_limit)
        if n < 60:
            _, _, _, _, infos = env.step({agent: random.uniform(-1.0, 1.0, 2) for agent in env.agents})


def test_call_and_attributes_of_a_batch():
    """As Gymnasium's own vector environment answers."""
    envs = gymnasium.make_vec(AS, num_envs=3, num_steps=5, render_mode="ansi").unwrapped
    reference = gymnasium.make_vec(AS, num_envs=3, num_steps=5, vectorization_mode="sync", render_mode="ansi")
    for each in (envs, reference):
        each.reset(seed=2)
        each.step(np.zeros((3, 2), np.float32))
    for name in ("params", "control_names", "render_mode"):
        assert envs.call(name) == envs.get_attr(name) == reference.get_attr(name)
    assert envs.call("render") == reference.call("render")
    quotes = np.array([0.3, -0.2])
    np.testing.assert_array_equal(envs.call("to_quotes", quotes), reference.call("to_quotes", quotes))
    many = gymnasium.make_vec(AS, num_envs=6, num_steps=5).unwrapped
    assert many.call("render") == (None,) * 6
    for values in (7, [7, 7, 7]):
        envs.set_attr("note", values)
        reference.set_attr("note", values)
        assert envs.get_attr("note") == reference.get_attr("note") == (7, 7, 7)
    for name, values, message in (
        ("note", [1, 2, 3], "all rows only"),
        ("note", [1, 1], "there are 3 rows"),
        ("volatility", 1.0, "parameters"),
        ("params", None, "parameters"),
        ("num_envs", 2, "'num_envs' cannot be set: it is given when the batch is made"),
        ("note", [np.zeros(2), np.ones(2), np.zeros(2)], "all rows only"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.set_attr(name, values)
    with pytest.raises(AttributeError, match="no_such_thing"):
        envs.call("no_such_thing")


@pytest.mark.long
@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_trackers_get_what_tensorboard_gets(library, tmp_path, monkeypatch):
    tracker = need(library)
    page = (ROOT / "agents" / "README.md").read_text(encoding="utf-8")
    code = re.search(rf"`({library}\.[^`]+)`", page)[1]
    calls = re.search(r"`(mmgym\.agents\.train\.train\([^`]+)`", page)[1]
    from mmgym.agents.train import train

    assert calls == 'mmgym.agents.train.train("ppo", ID)'
    monkeypatch.chdir(tmp_path)
    if library == "wandb":
        monkeypatch.setenv("WANDB_MODE", "offline")
        run = eval(code, {"wandb": tracker})
        train("ppo", AS, timesteps=1_200_000, progress=False)
        run.finish()
        tracker.teardown()  # its service has written the file only then
        stored = next(tmp_path.glob("wandb/offline-run*/run-*.wandb")).read_bytes()
        assert b"rollout/ep_rew_mean" in stored and b"exact/skill" in stored
        return
    need("mlflow.pytorch")
    tracker.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    eval(code, {"mlflow": tracker})
    try:
        with tracker.start_run() as run:
            train("ppo", AS, timesteps=1_200_000, progress=False)
        metrics = tracker.get_run(run.info.run_id).data.metrics
    finally:
        tracker.pytorch.autolog(disable=True)
    assert {"rollout/ep_rew_mean", "exact/skill"} <= set(metrics)
