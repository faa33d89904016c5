"""How fast the environments are on this machine: bare batches, through the SB3 adapter, and PPO end to end."""

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pandas as pd

import mmgym  # noqa: F401  # registers the ids
from mmgym.baselines.baseline import environment_of
from mmgym.parameters import arguments_of

__all__ = ["throughput"]

MOST_RECORDS = 100_000_000  # bytes of parameters of rows, which take as long to make


def _rate(run: Callable[[], None], steps: int, seconds: float) -> tuple[float, float]:
    """Best and median steps per second of ``run``, which makes ``steps`` steps."""
    run()
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        rates.append(steps / (time.perf_counter() - started))
    return float(np.max(rates)), float(np.median(rates))


def _vector(env_id: str, num_envs: int, seconds: float, **options: Any) -> tuple[float, float]:
    envs = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)
    envs.reset(seed=0)
    base: Any = envs.unwrapped
    actions = np.array([base.resting_action()] * num_envs)
    count = max(1, 400_000 // num_envs)

    def run() -> None:
        for _ in range(count):
            envs.step(actions)

    return _rate(run, count * num_envs, seconds)


def _single(env_id: str, seconds: float, **arguments: Any) -> tuple[float, float]:
    env: Any = gymnasium.make(env_id, **arguments).unwrapped
    action = env.resting_action()
    env.reset(seed=0)

    def run() -> None:
        for _ in range(20_000):
            if env.step(action)[2]:
                env.reset()

    return _rate(run, 20_000, seconds)


def _adapter(env_id: str, num_envs: int, seconds: float, **arguments: Any) -> tuple[float, float]:
    from mmgym.adapters.sb3 import make_sb3_env

    venv = make_sb3_env(env_id, num_envs, **arguments)
    venv.seed(0)
    venv.reset()
    actions = np.array([venv.envs.resting_action()] * num_envs)
    count = max(1, 400_000 // num_envs)

    def run() -> None:
        for _ in range(count):
            venv.step(actions)

    return _rate(run, count * num_envs, seconds)


def _training(env_id: str, threads: int, **arguments: Any) -> tuple[float, float]:
    import torch

    from mmgym.agents.config import load_config
    from mmgym.agents.train import build_env, build_model

    torch.set_num_threads(threads)
    config = load_config("ppo", env_id)
    model = build_model(config, build_env(config, env_id, arguments, 1), 0, None)
    rollout = config.n_envs * config.hyperparameters["n_steps"]
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        model.learn(rollout, reset_num_timesteps=False)
        rates.append(rollout / (time.perf_counter() - started))
    return float(np.max(rates)), float(np.median(rates))


def _own_parameters(env_id: str, num_envs: int, arguments: dict[str, Any]) -> tuple[str, list[float]] | None:
    """A real argument with a value for each row; None where it would take too long to make them."""
    base: Any = environment_of(env_id, **arguments)
    if num_envs * base.market.record(base.params).itemsize > MOST_RECORDS:
        return None
    for name, value in arguments_of(base.params).items():
        if isinstance(value, float) and value > 0.0:
            values = np.linspace(0.9375, 1.0, num_envs) * value
            shared = base.market.shared
            try:
                ends: list[Any] = [
                    environment_of(env_id, **{**arguments, name: float(value)}) for value in values[[0, -1]]
                ]
                if shared and shared.key(ends[0].params) != shared.key(ends[1].params):
                    continue  # a game to solve for each row
                gymnasium.make_vec(env_id, num_envs=2, parameters={name: values[[0, -1]]}, **arguments)
            except ValueError:  # it changes the states, or what actions stand for
                continue
            return name, values.tolist()
    return None


def throughput(env_id: str, seconds: float = 1.0, **arguments: Any) -> pd.DataFrame:
    """Environment steps per second, best and median of repeated runs.

    Parameters
    ----------
    env_id : str
    seconds : float
        Time spent on each measurement, > 0.
    **arguments
        Constructor arguments of the environment.

    Returns
    -------
    DataFrame
        One row per measurement. Those that need Stable-Baselines3 are left out without it. Training is that of
        PPO.
    """
    if not seconds > 0.0:
        raise ValueError(f"seconds = {seconds} is not allowed: it must be > 0")
    rates = {
        "single environment": _single(env_id, seconds, **arguments),
        "batch of 64": _vector(env_id, 64, seconds, **arguments),
        "batch of 64, copy=False": _vector(env_id, 64, seconds, copy=False, **arguments),
        "batch of 4,096": _vector(env_id, 4096, seconds, **arguments),
        "batch of 65,536": _vector(env_id, 65_536, seconds, **arguments),
        "batch of 65,536, copy=False": _vector(env_id, 65_536, seconds, copy=False, **arguments),
        "batch of 65,536, 2 threads": _vector(env_id, 65_536, seconds, threads=2, **arguments),
        "batch of 65,536, 2 threads, copy=False": _vector(env_id, 65_536, seconds, threads=2, copy=False, **arguments),
    }
    own = _own_parameters(env_id, 4096, arguments)
    if own is not None:
        name, values = own
        rates[f"batch of 4,096, {name} by row"] = _vector(env_id, 4096, seconds, parameters={name: values}, **arguments)
        law = {name: ["uniform", values[0], values[-1]]}
        rates[f"batch of 4,096, {name} by episode"] = _vector(env_id, 4096, seconds, randomise=law, **arguments)
    for label, (run, steps) in environment_of(env_id, **arguments).measurements().items():
        rates[label] = _rate(run, steps, seconds)
    try:
        rates["SB3 adapter, batch of 4,096"] = _adapter(env_id, 4096, seconds, **arguments)
        for threads in (1, 2):
            label = f"training with ppo end to end, {threads} thread{'s' * (threads > 1)}"
            rates[label] = _training(env_id, threads, **arguments)
    except ImportError as error:
        print(f"SB3 is left out: {error}")
    rows = [{"what": what, "best steps/s": best, "median steps/s": median} for what, (best, median) in rates.items()]
    return pd.DataFrame(rows)
