"""Stable-Baselines3 models and their environments as plain arrays, and back: all that a run needs to go on."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecNormalize

from mmgym.agents.config import Config
from mmgym.agents.model_files import (
    ModelFileError,
    check_curve,
    flatten,
    model_description,
    read_arrays,
    read_folder,
    unflatten,
    whole_number,
    write_folder,
)
from mmgym.agents.stored_tensors import check_optimizer, check_tensors
from mmgym.plain_files import numbers, shortened

__all__ = [
    "batch_under",
    "describe",
    "require_same_run",
    "restore_checkpoint",
    "restore_parameters",
    "restore_statistics",
    "save_checkpoint",
    "statistics_of",
    "stored_state",
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
    statistics: Arrays = {"returns": venv.returns.copy()}
    for name in ("obs_rms", "ret_rms"):
        running = getattr(venv, name, None)
        if running is not None:
            statistics |= {f"{name}.{part}": np.asarray(getattr(running, part)) for part in ("mean", "var", "count")}
    return statistics


def restore_statistics(venv: Any, statistics: Arrays | None) -> None:
    """Put running statistics back, those of returns only if they are of as many rows.

    Raises
    ------
    ModelFileError
        If they are not those that this environment keeps.
    """
    if (statistics is None) == isinstance(venv, VecNormalize):
        raise ModelFileError("normalisation.npz and the hyperparameters disagree on whether the run normalises")
    if statistics is None:
        return
    own = statistics_of(venv) or {}
    if set(statistics) != set(own):
        raise ModelFileError(f"normalisation.npz has {shortened(sorted(statistics))}, but must have {sorted(own)}")
    for name, array in statistics.items():
        shape = array.shape if name == "returns" and array.ndim == 1 else np.shape(own[name])
        numbers(array, f"normalisation.npz: {name}", shape)
        if name.endswith((".var", ".count")) and not (array >= 0.0).all():
            raise ModelFileError(f"normalisation.npz: {name} must be >= 0")
    if len(statistics["returns"]) == venv.num_envs:
        venv.returns = statistics["returns"].astype(np.float64)
    for name in ("obs_rms", "ret_rms"):
        running = getattr(venv, name, None)
        if running is not None:
            running.mean, running.var = (statistics[f"{name}.{part}"].astype(np.float64) for part in ("mean", "var"))
            running.count = float(statistics[f"{name}.count"])


def describe(model: Any, config: Config, env_id: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """``model.json`` and ``parameters.npz`` of a model: state dicts of networks and optimisers, and loose tensors."""
    arrays: Arrays = {}
    _, loose = model._get_torch_save_params()
    tree: dict[str, Any] = dict(model.get_parameters())
    for name in loose or []:
        tree[name] = getattr(model, name)
    layout = flatten(tree, arrays, "parameters")
    description = model_description(config, env_id, arguments, int(model.num_timesteps), layout)
    return description | {"updates": int(getattr(model, "_n_updates", 0))}, arrays


def restore_parameters(model: Any, description: dict[str, Any], arrays: Arrays) -> None:
    """Set networks, optimisers and loose tensors from a model folder, after a check of each.

    Raises
    ------
    ModelFileError
        If they are not those of such a model.
    """
    tree = unflatten(description["layout"], arrays, lambda array: torch.from_numpy(np.array(array)))
    _, loose = model._get_torch_save_params()
    own = {**model.get_parameters(), **{name: getattr(model, name) for name in loose or []}}
    if not isinstance(tree, dict) or set(tree) != set(own):  # a path would be opened
        raise ModelFileError(
            f"the parameters do not fit the model of model.json: they are {shortened(tree)}, but must be a mapping of "
            f"{', '.join(own)}"
        )
    for name, mine in own.items():
        if isinstance(mine, torch.Tensor):
            check_tensors({name: tree[name]}, {name: mine}, "the model")
        elif set(mine) == {"state", "param_groups"}:
            check_optimizer(tree[name], recursive_getattr(model, name), name)
        else:
            check_tensors(tree[name], mine, name)
    for name in loose or []:
        getattr(model, name).data.copy_(tree.pop(name))
    model.set_parameters(tree, exact_match=True, device="cpu")
    model.num_timesteps = int(description["steps"])
    model._n_updates = int(description.get("updates", 0))


def _replay_arrays(model: Any) -> Arrays:
    """What an off-policy model remembers beside its parameters: the used part of its replay buffer, and counters."""
    arrays: Arrays = {}
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, ReplayBuffer):
        used = buffer.buffer_size if buffer.full else buffer.pos
        arrays |= {f"replay.{name}": getattr(buffer, name)[:used] for name in REPLAY}
        arrays["replay.place"] = np.array([buffer.pos, buffer.full])
    if hasattr(model, "_n_calls"):  # of (QR-)DQN, between updates of the target
        arrays["calls"] = np.array(model._n_calls)
    states = getattr(model, "_last_lstm_states", None)
    if states is not None:
        tensors = (*states.pi, *states.vf)
        arrays |= {f"lstm.{name}": tensor.numpy() for name, tensor in zip(LSTM, tensors, strict=True)}
    return arrays


def _restore_replay(model: Any, training: Arrays) -> None:
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, ReplayBuffer):
        position, full = (int(value) for value in numbers(training["replay.place"], "replay.place", (2,), "iu"))
        used = buffer.buffer_size if full else position
        if not (0 <= position < buffer.buffer_size and full in (0, 1)):
            raise ModelFileError(
                f"replay.place = {position}, {full} must lie within {buffer.buffer_size} and be 0 or 1"
            )
        for name in REPLAY:
            own = getattr(buffer, name)
            numbers(training[f"replay.{name}"], f"replay.{name}", (used, *own.shape[1:]), own.dtype.kind)
        played, space = training["replay.actions"], model.action_space
        low, high = (space.low, space.high) if isinstance(space, gymnasium.spaces.Box) else (0, space.n - 1)
        if not ((played >= low) & (played <= high)).all():
            raise ModelFileError(f"replay.actions must be within {space}")
        buffer.pos, buffer.full = position, bool(full)
        for name in REPLAY:
            getattr(buffer, name)[:used] = training[f"replay.{name}"]
    if hasattr(model, "_n_calls"):
        model._n_calls = int(numbers(training["calls"], "calls", (), "iu"))
    states = getattr(model, "_last_lstm_states", None)
    if states is not None:
        own = (*states.pi, *states.vf)
        tensors = {name: torch.from_numpy(training[f"lstm.{name}"]) for name in LSTM}
        check_tensors(tensors, dict(zip(LSTM, own, strict=True)), "lstm")
        pi, cell_pi, vf, cell_vf = (tensors[name] for name in LSTM)
        model._last_lstm_states = type(states)((pi, cell_pi), (vf, cell_vf))


def save_checkpoint(
    folder: Path,
    model: Any,
    config: Config,
    env_id: str,
    arguments: Mapping[str, Any],
    seed: int,
    seconds: float,
    curve: list[dict[str, float]],
) -> None:
    """Write all that a run needs to go on (see `mmgym.agents.model_files`)."""
    description, arrays = describe(model, config, env_id, arguments)
    venv = model.get_env()
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # SB3 draws from it
    batch = batch_under(venv)
    state = batch.envs.get_state()
    training: Arrays = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.asarray(keys),
        "last_obs": np.asarray(model._last_obs),
        "last_episode_starts": np.asarray(model._last_episode_starts),
        "returns": batch.returns,
        "lengths": batch.lengths,
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
    description |= {"seed": seed, "seconds": seconds, "curve": curve}
    files = {"parameters.npz": arrays, "training.npz": training}
    statistics = statistics_of(venv)
    if statistics is not None:
        files["normalisation.npz"] = statistics
    write_folder(folder, description, files)


def restore_checkpoint(
    folder: Path, model: Any, config: Config, env_id: str, arguments: Mapping[str, Any], seed: int
) -> tuple[float, list[dict[str, float]]]:
    """Put a model and its environment where a checkpoint left them; the seconds trained before it, and the curve.

    Raises
    ------
    ModelFileError
        If the folder is not a complete checkpoint of this run, or one of a version with another layout.
    """
    description, arrays, statistics = read_folder(folder)
    training = read_arrays(folder / "training.npz")
    require_same_run(description, config, env_id, arguments, seed, folder)
    try:
        restore_parameters(model, description, arrays)
        restore_statistics(model.get_env(), statistics)
        _restore_training(model, description, training)
        return float(description["seconds"]), check_curve(description["curve"], folder)
    except KeyError as error:
        raise ModelFileError(
            f"{folder} lacks {error}: it was written by another version, or damaged; train without --resume"
        ) from error
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}; train without --resume") from error
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelFileError(f"{folder} is damaged: {error}; train without --resume") from error


def require_same_run(
    description: Mapping[str, Any], config: Config, env_id: str, arguments: Mapping[str, Any], seed: int, folder: Path
) -> None:
    """Refuse the checkpoint of another run.

    Raises
    ------
    ModelFileError
        If algorithm, settings, environment, its arguments or the seed differ.
    """
    own = {
        "algorithm": config.algorithm,
        "hyperparameters": config._asdict(),
        "env": env_id.rpartition(":")[2],
        "arguments": dict(arguments),
        "seed": seed,
    }
    for name, value in json.loads(json.dumps(own)).items():
        if description.get(name) != value:
            raise ModelFileError(
                f"{folder} is of another run: its {name} is {shortened(description.get(name))}, but must be "
                f"{shortened(value)}; train without --resume"
            )


def _restore_training(model: Any, description: dict[str, Any], training: Arrays) -> None:
    """The environments, the generators, and what the model remembers beside its parameters."""
    venv = model.get_env()
    seen = (venv.num_envs, *venv.observation_space.shape)
    numbers(training["last_obs"], "last_obs", seen, "f")
    numbers(training["last_episode_starts"], "last_episode_starts", (venv.num_envs,), "b")
    numbers(training["returns"], "returns", (venv.num_envs,), "f")
    numbers(training["lengths"], "lengths", (venv.num_envs,), "iu")
    if "last_original_obs" in training or isinstance(venv, VecNormalize):
        numbers(training["last_original_obs"], "last_original_obs", seen, "f")
    batch = batch_under(venv)
    batch.envs.set_state(stored_state(training))
    batch.seed(None)  # of the next reset
    batch.returns[:], batch.lengths[:] = training["returns"], training["lengths"]
    model._last_obs = training["last_obs"]
    model._last_episode_starts = training["last_episode_starts"]
    model._last_original_obs = training.get("last_original_obs")
    if isinstance(venv, VecNormalize):
        venv.old_obs = training["last_original_obs"]
    _restore_generators(model, description, training)
    _restore_replay(model, training)
    model._episode_num = whole_number(description, "episodes", "model.json")


def stored_state(arrays: Arrays) -> dict[str, Any]:
    """The state of a batch (see `KernelVectorEnv.get_state`) among arrays, where its names begin with ``env.``."""
    state: dict[str, Any] = {name[4:]: value for name, value in arrays.items() if name.startswith("env.")}
    for name in ("format", "started"):
        state[name] = int(numbers(state[name], f"env.{name}", (), "iu"))
    shape = np.shape(state["streams"])[:1] if np.ndim(state["parameters"]) else ()  # drawn ones: of every row
    state["parameters"] = numbers(state["parameters"], "env.parameters", shape, "iu")
    state["market"] = str(state["market"])
    return state


def _restore_generators(model: Any, description: dict[str, Any], training: Arrays) -> None:
    """The generators of Python, numpy, torch and the action space, whose states are checked first."""
    own_torch, generators = torch.get_rng_state().numpy(), description["generators"]
    numbers(training["torch"], "torch", own_torch.shape, "u")
    numbers(training["numpy"], "numpy", (624,), "u")
    actions = model.action_space.np_random.bit_generator
    if not isinstance(generators, dict) or not all(name in generators for name in ("python", "numpy", "actions")):
        raise KeyError(next(name for name in ("python", "numpy", "actions") if name not in dict(generators)))
    version, *python = generators["python"]
    words, gauss = python
    if not _words(words, 32, 625) or words[-1] > 624 or not (gauss is None or type(gauss) is float):
        raise ModelFileError(f"model.json: the generator python = {shortened(generators['python'])} is not allowed")
    kind, position, has_gauss, cached = generators["numpy"]
    if kind != "MT19937" or not _words([position], 32, 1) or position > 624 or has_gauss not in (0, 1):
        raise ModelFileError(f"model.json: the generator numpy = {shortened(generators['numpy'])} is not allowed")
    of_actions = generators["actions"]
    if (
        not _same_names(of_actions, actions.state)
        or of_actions["bit_generator"] != actions.state["bit_generator"]
        or not _words(list(of_actions["state"].values()), 128, 2)
        or of_actions["state"]["inc"] % 2 != 1
        or not _words([of_actions["has_uint32"], of_actions["uinteger"]], 32, 2)
        or of_actions["has_uint32"] > 1
    ):
        raise ModelFileError(f"model.json: the generator actions = {shortened(of_actions)} is not allowed")
    torch.set_rng_state(torch.from_numpy(training["torch"]))
    random.setstate((version, tuple(words), gauss))
    state = (kind, training["numpy"].astype(np.uint32), position, has_gauss, float(cached))
    np.random.set_state(state)  # noqa: NPY002  # SB3 draws from it
    actions.state = of_actions


def _words(values: Any, bits: int, count: int) -> bool:
    """Whether there are so many whole numbers of so many bits."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and 0 <= value < 1 << bits for value in values)
    )


def _same_names(given: Any, own: Any) -> bool:
    """Whether two mappings have the same names, on every level."""
    if not isinstance(own, dict):
        return not isinstance(given, dict)
    return isinstance(given, dict) and set(given) == set(own) and all(_same_names(given[k], own[k]) for k in own)
