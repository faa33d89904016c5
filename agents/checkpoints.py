"""Stable-Baselines3 models and their environments as plain arrays, and back: all that a run needs to go on."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import Config
from agents.model_files import FORMAT, ModelFileError, flatten, read_arrays, read_folder, unflatten, write_folder
from agents.runs import provenance

__all__ = [
    "batch_under",
    "describe",
    "restore_checkpoint",
    "restore_parameters",
    "restore_statistics",
    "save_checkpoint",
    "statistics_of",
]

Arrays = dict[str, NDArray[Any]]
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")  # of a ReplayBuffer
LSTM = ("hidden_pi", "cell_pi", "hidden_vf", "cell_vf")  # of sb3-contrib's RNNStates


def batch_under(venv: Any) -> Any:
    """The `SB3VecEnv` under the wrappers, if there are any."""
    return venv.unwrapped


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


def describe(model: Any, config: Config, env_id: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
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


def restore_parameters(model: Any, description: dict[str, Any], arrays: Arrays) -> None:
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


def _replay_arrays(model: Any) -> Arrays:
    """What an off-policy model remembers beside its parameters: the used part of its replay buffer, and counters."""
    found: Arrays = {}
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, ReplayBuffer):
        used = buffer.buffer_size if buffer.full else buffer.pos
        found |= {f"replay.{name}": getattr(buffer, name)[:used] for name in REPLAY}
        found["replay.place"] = np.array([buffer.pos, buffer.full])
    if hasattr(model, "_n_calls"):  # of (QR-)DQN, between updates of the target
        found["calls"] = np.array(model._n_calls)
    states = getattr(model, "_last_lstm_states", None)
    if states is not None:
        tensors = (*states.pi, *states.vf)
        found |= {f"lstm.{name}": tensor.numpy() for name, tensor in zip(LSTM, tensors, strict=True)}
    return found


def _restore_replay(model: Any, training: Arrays) -> None:
    if "replay.place" in training:
        buffer, place = model.replay_buffer, training["replay.place"]
        buffer.pos, buffer.full = int(place[0]), bool(place[1])
        for name in REPLAY:
            stored = training[f"replay.{name}"]
            getattr(buffer, name)[: len(stored)] = stored
    if "calls" in training:
        model._n_calls = int(training["calls"])
    if "lstm.hidden_pi" in training:
        tensors = [torch.from_numpy(training[f"lstm.{name}"]) for name in LSTM]
        model._last_lstm_states = type(model._last_lstm_states)((tensors[0], tensors[1]), (tensors[2], tensors[3]))


def save_checkpoint(
    folder: Path, model: Any, config: Config, env_id: str, arguments: Mapping[str, Any], seed: int, seconds: float
) -> None:
    description, arrays = describe(model, config, env_id, arguments)
    venv = model.get_env()
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # SB3 draws from it
    state = batch_under(venv).envs.get_state()
    training: Arrays = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.asarray(keys),
        "last_obs": np.asarray(model._last_obs),
        "last_episode_starts": np.asarray(model._last_episode_starts),
        **{f"env.{name}": np.asarray(value) for name, value in state.items()},
    }
    training |= _replay_arrays(model)
    if model._last_original_obs is not None:
        training["last_original_obs"] = np.asarray(model._last_original_obs)
    description["generators"] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, int(position), int(has_gauss), float(cached)],
        "actions": model.action_space.np_random.bit_generator.state,
    }
    description["episodes"] = int(model._episode_num)
    description["seed"], description["seconds"] = seed, seconds
    files = {"parameters.npz": arrays, "training.npz": training}
    statistics = statistics_of(venv)
    if statistics is not None:
        files["normalisation.npz"] = statistics
    write_folder(folder, description, files)


def restore_checkpoint(folder: Path, model: Any) -> float:
    """Put a model and its environment where a checkpoint left them; the seconds trained before it.

    Raises
    ------
    ModelFileError
        If the folder is not a complete checkpoint, or one of a version with another layout.
    """
    description, arrays, statistics = read_folder(folder)
    training = read_arrays(folder / "training.npz")
    restore_parameters(model, description, arrays)
    restore_statistics(model.get_env(), statistics)
    try:
        _restore_training(model, description, training)
        return float(description["seconds"])
    except KeyError as error:
        raise ModelFileError(
            f"{folder} lacks {error}: it was written by another version, or damaged; train without --resume"
        ) from error


def _restore_training(model: Any, description: dict[str, Any], training: Arrays) -> None:
    """The environments, the generators, and what the model remembers beside its parameters."""
    venv = model.get_env()
    state: dict[str, Any] = {name[4:]: value for name, value in training.items() if name.startswith("env.")}
    for name in ("format", "parameters", "started"):
        state[name] = int(state[name])
    state["market"] = str(state["market"])
    batch_under(venv).envs.set_state(state)
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
    model.action_space.np_random.bit_generator.state = description["generators"]["actions"]
    _restore_replay(model, training)
    model._episode_num = int(description["episodes"])
