"""Training of agents, read from top to bottom: `train` builds, trains, scores and saves one run.

A run is a folder: ``run.json`` (seed, configuration, versions, commit, times, score), ``model/`` (see
`mmgym.agents.model_files`), ``checkpoint/`` while it is unfinished, and ``tensorboard/``. On one thread, a run that was
killed and resumed ends with the same parameters, bit for bit, as one that was not.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.agents.algorithms import NEED_FLAT_ACTIONS, OWN_LEARNERS, RECURRENT, algorithm_class
from mmgym.agents.config import ALGORITHM_KEYS, HURDLE, Config, in_batches, load_config
from mmgym.agents.model_files import (
    ModelFileError,
    check_curve,
    config_of,
    model_description,
    read_folder,
    recover_folder,
    remove_folder,
    write_folder,
)
from mmgym.agents.policies import as_policy
from mmgym.agents.runs import MOST_SEED, derived_seed
from mmgym.arguments import integer
from mmgym.baselines.baseline import baseline_of
from mmgym.baselines.catalogue import environment_of, expansions_of, params_of
from mmgym.baselines.choices import FrozenChoices
from mmgym.baselines.expansion import Expansions
from mmgym.baselines.imitation import ImitationExpansions
from mmgym.baselines.policy import MemoryPolicy
from mmgym.baselines.scoring import Score, exact_skill, score, skill_of_value
from mmgym.memory_traces import MemoryTraces, RememberingVectorEnv
from mmgym.plain_files import read_json, write_json
from mmgym.provenance import provenance
from mmgym.registration import check_foreign_environment

try:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    from mmgym.adapters.sb3 import CentredRewards, SB3VecEnv, make_sb3_env
    from mmgym.agents.checkpoints import (
        batch_under,
        describe,
        require_same_run,
        restore_checkpoint,
        restore_parameters,
        restore_statistics,
        save_checkpoint,
        statistics_of,
    )
    from mmgym.agents.clock import ClockExtractor
    from mmgym.agents.exact_gradient import ExactGradient, network_of, restore_network
    from mmgym.agents.hurdle import HurdlePolicy
    from mmgym.agents.natural_gradient import NaturalGradient, actor_of
    from mmgym.agents.network import NetworkPolicy
except ImportError as error:
    raise ImportError("training needs Stable-Baselines3 and torch: pip install 'mmgym[agents]'") from error

__all__ = ["load_model", "save_model", "train"]

Arrays = dict[str, NDArray[Any]]
Watch = Callable[[int, float], object]


def _linear(initial: float) -> Any:
    return lambda remaining: max(remaining, 0.0) * initial  # the last update may lie past the end of the run


def _schedule(value: Any) -> Any:
    """A number, or the zoo's ``lin_0.001``: falling linearly to 0 over the run."""
    if isinstance(value, str):
        if not value.startswith("lin_"):
            raise ValueError(f"schedule {value!r} is not allowed: it must be a number or lin_<number>")
        return _linear(float(value[4:]))
    return value


def _entropy_schedule(config: Config) -> Any:
    """How the weight of entropy falls over a run, by what remains of it; None if it is constant or learned."""
    given = str(config.hyperparameters.get("ent_coef"))
    return _schedule(given) if given.startswith("lin_") else None


def _action_noise(kind: str, std: float, actions: int) -> Any:
    from stable_baselines3.common.noise import NormalActionNoise

    if kind != "normal":
        raise ValueError(f"noise_type = {kind!r} is not allowed: it must be 'normal'")
    return NormalActionNoise(np.zeros(actions), np.full(actions, float(std)))


def build_model(config: Config, venv: VecEnv, seed: int, tensorboard: str | None) -> Any:
    """A fresh model on a vector environment.

    Raises
    ------
    ValueError
        If the algorithm cannot send the market's actions.
    """
    settings = copy.deepcopy(config.hyperparameters)  # A2C writes into it
    for name in ("learning_rate", "clip_range", "delta_std"):
        if name in settings:
            settings[name] = _schedule(settings[name])
    entropy = _entropy_schedule(config)
    if entropy is not None:
        settings["ent_coef"] = entropy(1.0)  # see `_Watcher`
    if isinstance(settings.get("train_freq"), list):  # [number, "step" or "episode"]
        settings["train_freq"] = tuple(settings["train_freq"])
    kind, std = settings.pop("noise_type", None), settings.pop("noise_std", 0.0)
    if kind is not None:
        settings["action_noise"] = _action_noise(kind, std, math.prod(venv.action_space.shape or ()))
    if config.algorithm == "ars":
        settings["n_eval_episodes"] = venv.num_envs  # of a candidate: an episode in each environment
    if "features_extractor_class" in settings.get("policy_kwargs", {}):
        settings["policy_kwargs"]["features_extractor_class"] = ClockExtractor
    policy = settings.pop("policy", "MlpLstmPolicy" if config.algorithm in RECURRENT else "MlpPolicy")
    for name in ("vec_env_wrapper", "memory"):  # around the environment: see `build_env`
        settings.pop(name, None)
    options = {"seed": seed, "device": "cpu", "tensorboard_log": tensorboard, "verbose": 0, **settings}
    try:
        return algorithm_class(config.algorithm)(HurdlePolicy if policy == HURDLE else policy, venv, **options)
    except AssertionError as error:  # of its action spaces
        raise ValueError(f"{config.algorithm} does not suit this market: {error}") from error


class ExpectedPriceMoves(SB3VecEnv):
    """Rewards without their price noise, where it is known (`mmgym.baselines.baseline.Baseline.price_noise`)."""

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        self._noise = baseline_of(envs.unwrapped).price_noise()

    def step_batch(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """As in `SB3VecEnv`."""
        if self._noise is None:
            return super().step_batch()
        batch = self.envs.unwrapped
        before = batch.get_state()
        observations, rewards, finished, info = super().step_batch()
        return observations, rewards - self._noise(before, batch.get_state()), finished, info


def build_env(
    config: Config, env_id: str, arguments: Mapping[str, Any], threads: int, reward: str | None = None
) -> VecEnv:
    memory = config.hyperparameters.get("memory")

    def adapter(envs: Any) -> SB3VecEnv:
        adapted = ExpectedPriceMoves if reward == "expected" else SB3VecEnv
        return adapted(RememberingVectorEnv(envs, **memory) if memory else envs)

    venv: VecEnv = make_sb3_env(env_id, config.n_envs, threads=threads, adapter=adapter, **arguments)
    for settings in config.hyperparameters.get("vec_env_wrapper", {}).values():
        venv = CentredRewards(venv, **settings)
    return VecNormalize(venv, **config.normalize) if config.normalize else venv


def save_model(folder: Path, model: Any, config: Config, env_id: str, arguments: Mapping[str, Any]) -> None:
    """Write a model folder (see `mmgym.agents.model_files`)."""
    description, arrays = describe(model, config, env_id, arguments)
    files = {"parameters.npz": arrays}
    statistics = statistics_of(model.get_env())
    if statistics is not None:
        files["normalisation.npz"] = statistics
    write_folder(folder, description, files)


def _to_play(config: Config, arrays: Arrays, folder: str | Path) -> Config:
    """The configuration of the smallest model that plays alike: one environment, and no room for experience.

    Raises
    ------
    ModelFileError
        If its networks have more weights than there are stored: refused before memory is taken.
    """
    kwargs = config.hyperparameters.get("policy_kwargs", {})
    layers = kwargs.get("net_arch", config.hyperparameters.get("net_arch", []))
    networks = list(layers.values()) if isinstance(layers, dict) else [layers]
    hidden = kwargs.get("lstm_hidden_size", 0)
    needed = sum(a * b for widths in networks for a, b in pairwise(widths)) + 4 * hidden**2
    stored = sum(array.size for array in arrays.values())
    if needed > stored:
        raise ModelFileError(
            f"{folder}: the networks of model.json have more than {needed} weights, but parameters.npz has {stored}"
        )
    small = {"n_steps": 2, "batch_size": 2} if in_batches(config.algorithm) else {}
    small |= {"buffer_size": 1} if "buffer_size" in ALGORITHM_KEYS[config.algorithm] else {}
    return config._replace(n_envs=1, hyperparameters={**config.hyperparameters, **small})


def load_model(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """A trained model as a policy, and its ``model.json``. No code of the file is run.

    What the file says is checked field by field (see `mmgym.agents.model_files`). Arguments of the environment that
    name files (a population) are left out, here and in what is returned: what a network plays does not depend on them.

    Raises
    ------
    ModelFileError
        If the folder is not a complete model of this format.
    """
    description, arrays, statistics = read_folder(Path(folder))
    config = _to_play(config_of(description, folder), arrays, folder)
    env_id, given = description["env"], description["arguments"]
    face = check_foreign_environment(env_id, given, str(folder), files=True)
    arguments = {name: value for name, value in given.items() if name not in face.file_arguments}
    description["arguments"] = arguments
    try:
        if config.algorithm in OWN_LEARNERS:
            env = environment_of(env_id, **arguments)
            network = _fresh_network(config, env, 0)
            restore_network(network, description, arrays)
            return _player(config, env, network), description
        venv = build_env(config, env_id, arguments, 1)
        model = build_model(config, venv, 0, None)
        restore_parameters(model, description, arrays)
        restore_statistics(venv, statistics)
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}") from error
    except Exception as error:
        raise ModelFileError(f"{folder}: model.json does not describe a model that can be built: {error}") from error
    return as_policy(model), description


def _fresh_network(config: Config, env: Any, seed: int) -> Any:
    """An untrained network of one of our own learners."""
    layers = config.hyperparameters["net_arch"]
    if config.algorithm == "natural_gradient":
        return actor_of(env, layers["pi"], seed, config.hyperparameters.get("memory"))
    return network_of(env, layers, seed)


def _player(config: Config, env: Any, network: Any) -> Any:
    """A network of ours as a policy of the environment, with the memory that its configuration gives it."""
    memory = config.hyperparameters.get("memory")
    return MemoryPolicy(network, MemoryTraces(env.observation_space, **memory)) if memory else network


class _Run(NamedTuple):
    """What is trained, where, and how often it is kept and scored."""

    config: Config
    env_id: str
    arguments: dict[str, Any]
    reward: str | None
    seed: int
    home: Path
    name: str
    threads: int
    checkpoint_steps: int
    score_steps: int
    resumed: bool  # from the checkpoint
    progress: bool
    watch: Watch | None

    @property
    def checkpoint(self) -> Path:
        """The folder of the run's checkpoint."""
        return self.home / "checkpoint"

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this run from others, for its ``run.json``."""
        what = {"seed": self.seed, "env": self.env_id, "arguments": self.arguments, "reward": self.reward}
        return {**what, "config": self.config._asdict()}

    def environment(self) -> Any:
        """A single environment of what is trained on."""
        return environment_of(self.env_id, **self.arguments)


def configured_arguments(algorithm: str, env_id: str, arguments: dict[str, Any], reward: str | None) -> dict[str, Any]:
    """An environment's arguments with those that an algorithm asks for, which are put there."""
    fields = params_of(env_id, **arguments)._fields
    if reward is not None and "reward" in fields:
        arguments.setdefault("reward", reward)
    if algorithm in NEED_FLAT_ACTIONS and "actions" in fields:
        space = environment_of(env_id, **arguments).action_space
        if not isinstance(space, Discrete):
            arguments.setdefault("actions", "flat")
    return arguments


class _Trained(NamedTuple):
    """What training left, besides the model's folder."""

    policy: Any
    steps: int
    seconds: float
    curve: list[dict[str, float]]


class _Watcher(BaseCallback):  # type: ignore[misc]
    """Between updates: progress bar, exact skill in TensorBoard, checkpoints; the weight of entropy."""

    def __init__(self, run: _Run, save: Any, env: Any, bar: Any, curve: list[dict[str, float]]) -> None:
        super().__init__()
        self._run, self._save, self._env, self._bar = run, save, env, bar
        self._next_checkpoint = 0
        self._entropy = _entropy_schedule(run.config)
        self.curve = curve  # of what was trained before, if anything was

    def _on_training_start(self) -> None:
        self._next_checkpoint = self.num_timesteps + self._run.checkpoint_steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        """Before an update: Stable-Baselines3 has no schedule of the weight of entropy."""
        if self._entropy is not None:
            model: Any = self.model
            model.ent_coef = self._entropy(1.0 - self.num_timesteps / self._run.config.n_timesteps)

    def _on_rollout_start(self) -> None:
        """After an update (and before the first): the model and its environment are at rest."""
        self._bar.update(self.num_timesteps - self._bar.n)
        scored = self.curve[-1]["steps"] if self.curve else -1  # by a run that was stopped, right before its checkpoint
        if scored < self.num_timesteps >= len(self.curve) * self._run.score_steps:
            skill, regret = exact_skill(self._env, as_policy(self.model))
            self.curve.append({"steps": self.num_timesteps, "skill": skill, "regret": regret})
            self._bar.set_postfix(skill=f"{skill:.4f}")
            self.logger.record("exact/skill", skill)
            self.logger.record("exact/regret", regret)
            if self._run.watch is not None:
                self._run.watch(self.num_timesteps, skill)
        if self.num_timesteps >= self._next_checkpoint:
            self._next_checkpoint = self.num_timesteps + self._run.checkpoint_steps
            self._save()


def _train_on_samples(run: _Run) -> _Trained:
    """A run of a Stable-Baselines3 algorithm; its model is saved."""
    config, env_id, arguments, seed = run.config, run.env_id, run.arguments, run.seed
    venv = build_env(config, env_id, arguments, run.threads, run.reward)
    model = build_model(config, venv, seed, str(run.home / "tensorboard"))
    batch_under(venv).seed(derived_seed(seed, "environment"))
    before, curve = 0.0, list[dict[str, float]]()
    if run.resumed:
        before, curve = restore_checkpoint(run.checkpoint, model, config, env_id, arguments, seed)
    started = time.perf_counter() - before

    def save() -> None:
        seconds = time.perf_counter() - started
        save_checkpoint(run.checkpoint, model, config, env_id, arguments, seed, seconds, curve)

    with tqdm(total=config.n_timesteps, unit="step", unit_scale=True, desc=run.name, disable=not run.progress) as bar:
        bar.update(model.num_timesteps)
        model.learn(
            config.n_timesteps - model.num_timesteps,
            callback=_Watcher(run, save, run.environment(), bar, curve),
            reset_num_timesteps=not run.resumed,
            tb_log_name="run",
            log_interval=10,
        )
        bar.update(model.num_timesteps - bar.n)
    seconds = time.perf_counter() - started
    save_model(run.home / "model", model, config, env_id, arguments)
    return _Trained(as_policy(model), int(model.num_timesteps), seconds, curve)


def _own_learner(run: _Run, env: Any, policy: Any) -> ExactGradient | NaturalGradient:
    """The learner of a run that is not of Stable-Baselines3."""
    config, settings, seed = run.config, run.config.hyperparameters, derived_seed(run.seed, "environment")
    if config.algorithm == "natural_gradient":
        options: dict[str, Any] = {"num_envs": config.n_envs, "threads": run.threads, "autoreset_mode": "Disabled"}
        envs: Any = gymnasium.make_vec(run.env_id, **options, **run.arguments)
        if "memory" in settings:
            envs = RememberingVectorEnv(envs.unwrapped, **settings["memory"])
        return NaturalGradient(envs, policy, settings, config.n_timesteps, seed, expected=run.reward == "expected")
    if config.algorithm == "exact_gradient":
        expansions: Expansions | FrozenChoices = expansions_of(env)
    else:
        expansions = ImitationExpansions(env, derived_seed(run.seed, "recording"))
    return ExactGradient(expansions, policy, settings["inner_steps"], run.seed)


def _train_in_rounds(run: _Run) -> _Trained:
    """A run of rounds on a network of ours; its model is saved."""
    from torch.utils.tensorboard import SummaryWriter

    env, config = run.environment(), run.config
    network = _fresh_network(config, env, derived_seed(run.seed, "environment"))
    learner, policy = _own_learner(run, env, network), _player(config, env, network)
    before, curve = _resume_rounds(run, learner) if run.resumed else (0.0, [])
    started = time.perf_counter() - before
    next_score = (int(curve[-1]["steps"]) // run.score_steps + 1) * run.score_steps if curve else 0
    next_checkpoint = learner.steps + run.checkpoint_steps
    sampled = isinstance(learner, NaturalGradient)
    shown = {"unit": "step", "unit_scale": True} if sampled else {"unit": "round"}
    bar = tqdm(total=config.n_timesteps, desc=run.name, disable=not run.progress, **shown)
    with SummaryWriter(str(run.home / "tensorboard")) as writer, bar:
        bar.update(learner.steps)
        moving = True
        while moving and learner.steps < config.n_timesteps:
            due, step = learner.steps >= next_score, learner.steps
            scored = exact_skill(env, policy) if due and isinstance(network, NetworkPolicy) else None
            moving = learner.iterate()
            if due:
                next_score = (step // run.score_steps + 1) * run.score_steps
                skill, regret = scored or skill_of_value(env, learner.value)  # of the weights before this round
                curve.append({"steps": step, "skill": skill, "regret": regret})
                bar.set_postfix(skill=f"{skill:.6f}")
                writer.add_scalar("exact/skill", skill, step)
                writer.add_scalar("exact/regret", regret, step)
                if run.watch is not None:
                    run.watch(step, skill)
            bar.update(learner.steps - bar.n)
            if learner.steps >= next_checkpoint:
                next_checkpoint = learner.steps + run.checkpoint_steps
                so_far = {"seconds": time.perf_counter() - started, "curve": curve, "seed": run.seed}
                write_rounds(run, learner, run.checkpoint, so_far)
    learner.finish()
    seconds = time.perf_counter() - started
    write_rounds(run, learner, run.home / "model")
    return _Trained(policy, learner.steps, seconds, curve)


def _resume_rounds(run: _Run, learner: ExactGradient | NaturalGradient) -> tuple[float, list[dict[str, float]]]:
    """Put a learner where the checkpoint left it; the seconds before it, and the curve."""
    description, arrays, _ = read_folder(run.checkpoint)
    require_same_run(description, run.config, run.env_id, run.arguments, run.seed, run.checkpoint)
    learner.restore(description, arrays)
    try:
        return float(description["seconds"]), check_curve(description["curve"], run.checkpoint)
    except KeyError as error:
        raise ModelFileError(f"{run.checkpoint} lacks {error}: train without --resume") from error


def write_rounds(
    run: _Run, learner: ExactGradient | NaturalGradient, folder: Path, training: Mapping[str, Any] | None = None
) -> None:
    """Write the model of a learner or, with what training needs besides, a checkpoint."""
    arrays: Arrays = {}
    layout = learner.state(arrays, training=training is not None)
    description = model_description(run.config, run.env_id, run.arguments, learner.steps, layout)
    write_folder(folder, {**description, **(training or {})}, {"parameters.npz": arrays})


def train(
    config: str | Config,
    env_id: str,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    reward: str | None = "expected",
    timesteps: int | None = None,
    threads: int = 1,
    checkpoint_steps: int = 1_000_000,
    score_steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    watch: Watch | None = None,
) -> tuple[Path, Score]:
    """Train one agent and save it with its exact score.

    Parameters
    ----------
    config : str or Config
        A shipped configuration ("ppo"), the path of one, or what `mmgym.agents.config.load_config` made of it.
    env_id : str
        ``module:id`` imports the module first, which registers it.
    seed : int
        Of the run, from 0 to 2^32 - 1. Environments get 64-bit seeds derived from it.
    folder : path, optional
        Of the run; ``runs/<environment>/<algorithm>-<seed>`` by default.
    arguments : mapping, optional
        Constructor arguments of the environment.
    reward : {"expected", "pnl", None}
        Rewards to train on: with "expected" price noise is left out, by the argument ``reward`` in markets that have
        one, and where `mmgym.baselines.baseline.Baseline.price_noise` is known. The score does not depend on it.
    timesteps : int, optional
        Environment steps, instead of the configuration's.
    threads : int
        Threads of torch and of the environment. Runs are reproducible bit for bit with one.
    checkpoint_steps : int
        Environment steps between checkpoints (of exact_gradient: rounds, as its ``timesteps`` are).
    score_steps : int, optional
        Such steps between two points of the curve of exact skill; a twentieth of the run by default. A point takes
        milliseconds where states are finitely many and up to some seconds where it is simulated.
    resume : bool
        Go on from the folder's checkpoint; a finished run is left as it is.
    overwrite : bool
        Train anew although the folder holds a finished run.
    progress : bool
        Whether to show a progress bar.
    watch : function, optional
        Called with steps and exact skill at each point of the curve; what it raises ends the run.

    Returns
    -------
    folder, score : Path, Score
        Where the run is and what the agent scores at its mode.

    Raises
    ------
    ValueError
        If an argument is out of range, the folder holds another run, or a model file is damaged.
    FileExistsError
        If the folder holds a finished run, without ``resume`` and ``overwrite``.
    """
    integer("seed", seed, low=0, high=MOST_SEED)
    for name, value in (
        *(("threads", threads), ("checkpoint_steps", checkpoint_steps)),
        *(("timesteps", timesteps), ("score_steps", score_steps)),
    ):
        if value is not None:
            integer(name, value, low=1, high=2**62)
    config = config if isinstance(config, Config) else load_config(config, env_id)
    config = config if timesteps is None else config._replace(n_timesteps=timesteps)
    arguments = configured_arguments(config.algorithm, env_id, dict(arguments or {}), reward)
    run_name = f"{env_id.rpartition(':')[2].replace('/', '-')}/{config.algorithm}-{seed}"
    home = Path("runs") / run_name if folder is None else Path(folder)
    recover_folder(home / "checkpoint")
    resumed = resume and (home / "checkpoint").exists()
    how_often = (checkpoint_steps, score_steps or max(config.n_timesteps // 20, 1))
    run = _Run(config, env_id, arguments, reward, seed, home, run_name, threads, *how_often, resumed, progress, watch)
    if resume and _is_finished(run):
        return home, score(run.environment(), load_model(home / "model")[0])
    if not resume and not overwrite and _score_of(home):
        raise FileExistsError(
            f"{home} holds a finished run: choose another folder, or train it anew with overwrite (--overwrite)"
        )
    return home, _train(run)


def _train(run: _Run) -> Score:
    """Train, save and score what a run has not finished; ``run.json`` is written before and after."""
    if not run.resumed:  # of an earlier run: a later --resume must not find it
        remove_folder(run.checkpoint)
    summary: dict[str, Any] = {"settings": run.settings, **provenance()}
    write_json(run.home / "run.json", summary)
    torch.set_num_threads(run.threads)
    trained = _train_in_rounds(run) if run.config.algorithm in OWN_LEARNERS else _train_on_samples(run)
    result = score(run.environment(), trained.policy)
    summary |= {
        "steps": trained.steps,
        "seconds": trained.seconds,
        "steps_per_second": trained.steps / trained.seconds,
        "curve": trained.curve,
        "score": result.to_dict(),
    }
    write_json(run.home / "run.json", summary)
    remove_folder(run.checkpoint)
    return result


def _score_of(home: Path) -> Any:
    """The score in a run's folder; None where there is none."""
    before = read_json(home / "run.json") if (home / "run.json").exists() else None
    return before.get("score") if isinstance(before, dict) else None


def _is_finished(run: _Run) -> bool:
    """Whether the folder holds this run with its score.

    Raises
    ------
    ValueError
        If it holds another run.
    """
    file = run.home / "run.json"
    if not file.exists():
        return False
    before = read_json(file)
    if not isinstance(before, dict) or before.get("settings") != json.loads(json.dumps(run.settings)):
        raise ValueError(
            f"{run.home} holds a run with other settings (run.json): resume it with those, or choose another folder"
        )
    return bool(_score_of(run.home))
