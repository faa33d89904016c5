"""Training of agents, read from top to bottom: `train` builds, trains, scores and saves one run.

A run is a folder: ``run.json`` (seed, configuration, versions, commit, times, score), ``model/`` (see
`agents.model_files`), ``checkpoint/`` while it is unfinished, and ``tensorboard/``. On one thread, a run that was
killed and resumed ends with the same parameters, bit for bit, as one that was not.
"""

import json
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from agents.algorithms import EXACT_GRADIENT, algorithm_class
from agents.config import Config, load_config
from agents.model_files import (
    FORMAT,
    ModelFileError,
    flatten,
    read_arrays,
    read_folder,
    recover_folder,
    unflatten,
    write_folder,
)
from agents.policies import as_policy
from agents.runs import derived_seed, provenance, write_json
from baselines.catalogue import environment_of, params_of
from baselines.price_noise import price_noise
from baselines.scoring import Score, exact_skill, score

try:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    from agents.exact_gradient import ExactGradient, network_of, restore_network
    from baselines.expansion import expansions_of
    from mmgym.adapters.sb3 import SB3VecEnv, make_sb3_env
except ImportError as error:
    raise ImportError("training needs Stable-Baselines3 and torch: pip install 'mmgym[agents]'") from error

__all__ = ["load_model", "save_model", "train"]

Arrays = dict[str, NDArray[Any]]


def _linear(initial: float) -> Any:
    return lambda remaining: max(remaining, 0.0) * initial  # the last update may lie past the end of the run


def _schedule(value: Any) -> Any:
    """A number, or the zoo's ``lin_0.001``: falling linearly to 0 over the run."""
    if isinstance(value, str):
        if not value.startswith("lin_"):
            raise ValueError(f"schedule {value!r} is not allowed: it must be a number or lin_<number>")
        return _linear(float(value[4:]))
    return value


def build_model(config: Config, venv: VecEnv, seed: int, tensorboard: str | None) -> Any:
    """A fresh model on a vector environment."""
    settings = dict(config.hyperparameters)
    for name in ("learning_rate", "clip_range"):
        if name in settings:
            settings[name] = _schedule(settings[name])
    policy = settings.pop("policy", "MlpPolicy")
    return algorithm_class(config.algorithm)(
        policy, venv, seed=seed, device="cpu", tensorboard_log=tensorboard, verbose=0, **settings
    )


class ExpectedPriceMoves(SB3VecEnv):
    """Rewards without their price noise, in markets where it is known (see `baselines.price_noise`)."""

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        self._noise = price_noise(envs.params)

    def step_batch(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """As in `SB3VecEnv`."""
        if self._noise is None:
            return super().step_batch()
        before = self.envs.get_state()
        observations, rewards, finished, info = super().step_batch()
        return observations, rewards - self._noise(before, self.envs.get_state()), finished, info


def build_env(
    config: Config, env_id: str, arguments: Mapping[str, Any], threads: int, reward: str | None = None
) -> VecEnv:
    adapter = ExpectedPriceMoves if reward == "expected" else SB3VecEnv
    venv: VecEnv = make_sb3_env(env_id, config.n_envs, threads=threads, adapter=adapter, **arguments)
    return VecNormalize(venv, **config.normalize) if config.normalize else venv


def _batch(venv: Any) -> Any:
    """The `SB3VecEnv` under the normalisation, if there is one."""
    return venv.venv if isinstance(venv, VecNormalize) else venv


def statistics_of(venv: Any) -> Arrays | None:
    if not isinstance(venv, VecNormalize):
        return None
    found: Arrays = {"returns": venv.returns.copy()}
    for name in ("obs_rms", "ret_rms"):
        running = getattr(venv, name, None)
        if running is not None:
            found |= {f"{name}.{part}": np.asarray(getattr(running, part)) for part in ("mean", "var", "count")}
    return found


def restore_statistics(venv: Any, found: Arrays | None) -> None:
    if (found is None) == isinstance(venv, VecNormalize):
        raise ModelFileError("normalisation.npz and the hyperparameters disagree on whether the run normalises")
    if found is None:
        return
    if len(found["returns"]) == venv.num_envs:
        venv.returns = found["returns"].copy()
    for name in ("obs_rms", "ret_rms"):
        running = getattr(venv, name, None)
        if running is not None:
            running.mean, running.var = found[f"{name}.mean"], found[f"{name}.var"]
            running.count = float(found[f"{name}.count"])


def _describe(model: Any, config: Config, env_id: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """``model.json`` and ``parameters.npz`` of a model: state dicts of networks and optimisers, and loose tensors."""
    arrays: Arrays = {}
    _, loose = model._get_torch_save_params()
    tree: dict[str, Any] = dict(model.get_parameters())
    for name in loose or []:
        tree[name] = getattr(model, name)
    layout = flatten(tree, arrays, "parameters")
    description = {
        "format": FORMAT,
        "algorithm": config.algorithm,
        "env": env_id,
        "arguments": dict(arguments),
        "hyperparameters": config._asdict(),
        "steps": int(model.num_timesteps),
        "updates": int(getattr(model, "_n_updates", 0)),
        "versions": provenance()["versions"],
        "layout": layout,
    }
    return description, arrays


def _restore_parameters(model: Any, description: dict[str, Any], arrays: Arrays) -> None:
    tree = unflatten(description["layout"], arrays, lambda array: torch.from_numpy(np.array(array)))
    _, loose = model._get_torch_save_params()
    try:
        for name in loose or []:
            getattr(model, name).data.copy_(tree.pop(name))
        model.set_parameters(tree, exact_match=True, device="cpu")
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"the parameters do not fit the model of model.json: {error}") from error
    model.num_timesteps = int(description["steps"])
    model._n_updates = int(description.get("updates", 0))


def save_model(folder: Path, model: Any, config: Config, env_id: str, arguments: Mapping[str, Any]) -> None:
    """Write a model folder (see `agents.model_files`)."""
    description, arrays = _describe(model, config, env_id, arguments)
    files = {"parameters.npz": arrays}
    statistics = statistics_of(model.get_env())
    if statistics is not None:
        files["normalisation.npz"] = statistics
    write_folder(folder, description, files)


def load_model(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """A trained model as a policy, and its ``model.json``. No code of the file is run.

    Raises
    ------
    ModelFileError
        If the folder is not a complete model of this format.
    """
    description, arrays, statistics = read_folder(Path(folder))
    try:
        config = Config(**description["hyperparameters"])
        if config.algorithm == EXACT_GRADIENT:
            env = environment_of(description["env"], **description["arguments"])
            network = network_of(env, config.hyperparameters["net_arch"])
            restore_network(network, description, arrays)
            return network, description
        venv = build_env(config, description["env"], description["arguments"], 1)
        model = build_model(config, venv, 0, None)
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"{folder}: model.json does not describe a model that can be built: {error}") from error
    _restore_parameters(model, description, arrays)
    restore_statistics(venv, statistics)
    return as_policy(model), description


def _save_checkpoint(
    folder: Path, model: Any, config: Config, env_id: str, arguments: Mapping[str, Any], seed: int, seconds: float
) -> None:
    description, arrays = _describe(model, config, env_id, arguments)
    venv = model.get_env()
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # SB3 draws from it
    state = _batch(venv).envs.get_state()
    training: Arrays = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.asarray(keys),
        "last_obs": np.asarray(model._last_obs),
        "last_episode_starts": np.asarray(model._last_episode_starts),
        **{f"env.{name}": np.asarray(value) for name, value in state.items()},
    }
    if model._last_original_obs is not None:
        training["last_original_obs"] = np.asarray(model._last_original_obs)
    description["generators"] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, int(position), int(has_gauss), float(cached)],
    }
    description["seed"], description["seconds"] = seed, seconds
    files = {"parameters.npz": arrays, "training.npz": training}
    statistics = statistics_of(venv)
    if statistics is not None:
        files["normalisation.npz"] = statistics
    write_folder(folder, description, files)


def _restore_checkpoint(folder: Path, model: Any) -> float:
    """Put a model and its environment where a checkpoint left them; the seconds trained before it."""
    description, arrays, statistics = read_folder(folder)
    training = read_arrays(folder / "training.npz")
    venv = model.get_env()
    _restore_parameters(model, description, arrays)
    restore_statistics(venv, statistics)
    state: dict[str, Any] = {name[4:]: value for name, value in training.items() if name.startswith("env.")}
    for name in ("format", "parameters", "started"):
        state[name] = int(state[name])
    state["market"] = str(state["market"])
    _batch(venv).envs.set_state(state)
    model._last_obs = training["last_obs"]
    model._last_episode_starts = training["last_episode_starts"]
    model._last_original_obs = training.get("last_original_obs")
    if isinstance(venv, VecNormalize):
        venv.old_obs = training.get("last_original_obs", training["last_obs"])
    torch.set_rng_state(torch.from_numpy(training["torch"]))
    version, words, gauss = description["generators"]["python"]
    random.setstate((version, tuple(words), gauss))
    kind, position, has_gauss, cached = description["generators"]["numpy"]
    np.random.set_state((kind, training["numpy"], position, has_gauss, cached))  # noqa: NPY002  # SB3 draws from it
    return float(description["seconds"])


class _Watcher(BaseCallback):  # type: ignore[misc]
    """Between updates: progress bar, exact skill in TensorBoard, checkpoints."""

    def __init__(self, save: Any, env: Any, bar: Any, checkpoint_steps: int, score_steps: int) -> None:
        super().__init__()
        self._save, self._env, self._bar = save, env, bar
        self._checkpoint_steps, self._score_steps = checkpoint_steps, score_steps
        self._next_checkpoint = self._next_score = 0
        self.curve: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        self._next_checkpoint = self.num_timesteps + self._checkpoint_steps
        self._next_score = (self.num_timesteps // self._score_steps) * self._score_steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """After an update (and before the first): the model and its environment are at rest."""
        self._bar.update(self.num_timesteps - self._bar.n)
        if self.num_timesteps >= self._next_score:
            self._next_score += self._score_steps
            skill, regret = exact_skill(self._env, as_policy(self.model))
            self.curve.append({"steps": self.num_timesteps, "skill": skill, "regret": regret})
            self._bar.set_postfix(skill=f"{skill:.4f}")
            self.logger.record("exact/skill", skill)
            self.logger.record("exact/regret", regret)
        if self.num_timesteps >= self._next_checkpoint:
            self._next_checkpoint += self._checkpoint_steps
            self._save()


def _train_exactly(
    config: Config,
    env_id: str,
    arguments: Mapping[str, Any],
    home: Path,
    checkpoint: Path,
    *,
    seed: int,
    checkpoint_steps: int,
    score_steps: int,
    resumable: bool,
    progress: bool,
) -> dict[str, Any]:
    """An exact-gradient run: its model is saved; steps, seconds and curve."""
    from torch.utils.tensorboard import SummaryWriter

    env = environment_of(env_id, **arguments)
    settings = config.hyperparameters
    policy = network_of(env, settings["net_arch"], derived_seed(seed, "environment"))
    learner = ExactGradient(expansions_of(env), policy, settings["inner_steps"], seed)
    before, curve = 0.0, []
    if resumable:
        description, arrays, _ = read_folder(checkpoint)
        learner.restore(description, arrays)
        before, curve = float(description["seconds"]), list(description["curve"])
    started = time.perf_counter()

    def seconds() -> float:
        return before + time.perf_counter() - started

    def write(folder: Path, *, training: bool) -> None:
        arrays: Arrays = {}
        layout = learner.state(arrays, training=training)
        description = {
            "format": FORMAT,
            "algorithm": config.algorithm,
            "env": env_id,
            "arguments": dict(arguments),
            "hyperparameters": config._asdict(),
            "steps": learner.steps,
            "versions": provenance()["versions"],
            "layout": layout,
        }
        if training:
            description |= {"seconds": seconds(), "curve": curve, "seed": seed}
        write_folder(folder, description, {"parameters.npz": arrays})

    writer = SummaryWriter(str(home / "tensorboard"))
    next_score = (int(curve[-1]["steps"]) // score_steps + 1) * score_steps if curve else 0
    next_checkpoint = learner.steps + checkpoint_steps
    with tqdm(total=config.n_timesteps, unit="round", desc=str(home), disable=not progress) as bar:
        bar.update(learner.steps)
        moving = True
        while moving and learner.steps < config.n_timesteps:
            if learner.steps >= next_score:
                next_score = (learner.steps // score_steps + 1) * score_steps
                skill, regret = exact_skill(env, policy)
                curve.append({"steps": learner.steps, "skill": skill, "regret": regret})
                bar.set_postfix(skill=f"{skill:.6f}")
                writer.add_scalar("exact/skill", skill, learner.steps)
                writer.add_scalar("exact/regret", regret, learner.steps)
            moving = learner.iterate()
            bar.update(learner.steps - bar.n)
            if learner.steps >= next_checkpoint:
                next_checkpoint = learner.steps + checkpoint_steps
                write(checkpoint, training=True)
    writer.close()
    learner.finish()
    elapsed = seconds()
    write(home / "model", training=False)
    return {
        "steps": learner.steps,
        "seconds": elapsed,
        "steps_per_second": learner.steps / elapsed,
        "curve": curve,
        "score": score(env, policy).to_dict(),
    }


def train(
    config_name: str,
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
    progress: bool = True,
) -> tuple[Path, Score]:
    """Train one agent and save it with its exact score.

    Parameters
    ----------
    config_name : str
        A shipped configuration ("ppo") or the path of one.
    env_id : str
    seed : int
        Of the run, >= 0. Environments get 64-bit seeds derived from it.
    folder : path, optional
        Of the run; ``runs/<environment>/<algorithm>-<seed>`` by default.
    arguments : mapping, optional
        Constructor arguments of the environment.
    reward : {"expected", "pnl", None}
        Rewards to train on: with "expected" price noise is left out, by the argument ``reward`` in markets that have
        one, and in the Hawkes markets as `baselines.price_noise` says. The score does not depend on it.
    timesteps : int, optional
        Environment steps, instead of the configuration's.
    threads : int
        Threads of torch and of the environment. Runs are reproducible bit for bit with one.
    checkpoint_steps : int
        Environment steps between checkpoints (of exact_gradient: rounds, as its ``timesteps`` are).
    score_steps : int, optional
        Such steps between two points of the curve of exact skill; a twentieth of the run by default. A point takes
        milliseconds where states are finitely many and up to some seconds in the Hawkes markets, where it is simulated.
    resume : bool
        Go on from the folder's checkpoint; a finished run is left as it is.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    folder, score : Path, Score
        Where the run is and what the agent scores at its mode.

    Raises
    ------
    ValueError
        If an argument is out of range, the folder holds another run, or a model file is damaged.
    """
    numbers = (
        threads,
        checkpoint_steps,
        1 if timesteps is None else timesteps,
        1 if score_steps is None else score_steps,
    )
    if seed < 0 or min(numbers) < 1:
        raise ValueError(
            f"seed = {seed} must be >= 0; threads = {threads}, checkpoint_steps = {checkpoint_steps}, timesteps = "
            f"{timesteps} and score_steps = {score_steps} must be >= 1"
        )
    config = load_config(config_name, env_id)
    if timesteps is not None:
        config = config._replace(n_timesteps=timesteps)
    score_steps = score_steps or max(config.n_timesteps // 20, 1)
    arguments = dict(arguments or {})
    if reward is not None and "reward" in params_of(env_id, **arguments)._fields:
        arguments.setdefault("reward", reward)
    run_name = f"{env_id.replace('/', '-')}/{config.algorithm}-{seed}"
    home = Path("runs") / run_name if folder is None else Path(folder)
    settings = {
        "seed": seed,
        "env": env_id,
        "arguments": arguments,
        "reward": reward,
        "config": config._asdict(),
    }
    summary_file, checkpoint = home / "run.json", home / "checkpoint"
    recover_folder(checkpoint)
    resumable = resume and checkpoint.exists()
    if summary_file.exists():
        before = json.loads(summary_file.read_text(encoding="utf-8"))
        if resume and before["settings"] != json.loads(json.dumps(settings)):
            raise ValueError(f"{home} holds a run with other settings: resume it with those, or choose another folder")
        if resume and before.get("score"):
            policy, _ = load_model(home / "model")
            return home, score(environment_of(env_id, **arguments), policy)
    if not resumable and checkpoint.exists():  # of an earlier run: a later --resume must not find it
        shutil.rmtree(checkpoint)
    run: dict[str, Any] = {"settings": settings, **provenance()}
    write_json(summary_file, run)

    torch.set_num_threads(threads)
    if config.algorithm == EXACT_GRADIENT:
        found_run = _train_exactly(
            config,
            env_id,
            arguments,
            home,
            checkpoint,
            seed=seed,
            checkpoint_steps=checkpoint_steps,
            score_steps=score_steps,
            resumable=resumable,
            progress=progress,
        )
        write_json(summary_file, run | found_run)
        if checkpoint.exists():
            shutil.rmtree(checkpoint)
        return home, score(environment_of(env_id, **arguments), load_model(home / "model")[0])
    venv = build_env(config, env_id, arguments, threads, reward)
    model = build_model(config, venv, seed, str(home / "tensorboard"))
    _batch(venv).seed(derived_seed(seed, "environment"))
    elapsed_before = _restore_checkpoint(checkpoint, model) if resumable else 0.0
    env = environment_of(env_id, **arguments)
    started = time.perf_counter()

    def seconds() -> float:
        return elapsed_before + time.perf_counter() - started

    def save() -> None:
        _save_checkpoint(checkpoint, model, config, env_id, arguments, seed, seconds())

    with tqdm(total=config.n_timesteps, unit="step", unit_scale=True, desc=run_name, disable=not progress) as bar:
        bar.update(model.num_timesteps)
        watcher = _Watcher(save, env, bar, checkpoint_steps, score_steps)
        model.learn(
            config.n_timesteps - model.num_timesteps,
            callback=watcher,
            reset_num_timesteps=not resumable,
            tb_log_name="run",
            log_interval=10,
        )
        bar.update(model.num_timesteps - bar.n)
    found = score(env, as_policy(model))
    save_model(home / "model", model, config, env_id, arguments)
    run |= {
        "steps": int(model.num_timesteps),
        "seconds": seconds(),
        "steps_per_second": model.num_timesteps / seconds(),
        "curve": watcher.curve,
        "score": found.to_dict(),
    }
    write_json(summary_file, run)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)
    return home, found
