"""A batch of environments as a Stable-Baselines3 `VecEnv`."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
except ImportError as error:
    raise ImportError("mmgym.adapters.sb3 needs Stable-Baselines3: pip install 'mmgym[agents]'") from error

__all__ = ["CentredRewards", "SB3VecEnv", "make_sb3_env"]

Array = NDArray[Any]


class SB3VecEnv(VecEnv):  # type: ignore[misc]
    """Serve a batch of mmgym environments to Stable-Baselines3.

    Parameters
    ----------
    envs : KernelVectorEnv or RememberingVectorEnv
        A batch with ``autoreset_mode="Disabled"``: this class restarts finished rows itself, as SB3 expects it, within
        the step. The finished rows' infos have ``terminal_observation``, ``TimeLimit.truncated`` (False: the horizon
        is a true end) and ``episode``, from which SB3 logs ``rollout/ep_rew_mean``: its return ``r``, its number of
        steps ``l`` and the seconds ``t`` since this object was made. Unfinished rows share one empty dict.

    Attributes
    ----------
    returns, lengths : arrays (num_envs,)
        Rewards and steps of the episodes that are played.

    Raises
    ------
    ValueError
        If the batch resets itself.
    """

    def __init__(self, envs: Any) -> None:
        if envs.autoreset_mode is not AutoresetMode.DISABLED:
            raise ValueError(f"autoreset_mode {envs.autoreset_mode.value!r} is not allowed here: it must be 'Disabled'")
        self.envs = envs
        self._actions: Array | None = None
        self._nothing: dict[str, Any] = {}
        self._begun = time.monotonic()
        self.returns, self.lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Array:
        """Start an episode in every row, with the seeds of the last `seed` call if there was one."""
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observations: Array
        observations, info = self.envs.reset(seed=seeds)
        self.returns[:], self.lengths[:] = 0.0, 0
        self.reset_infos = self._row_infos(info)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Array) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Step every row and restart those that finished."""
        observations, rewards, finished, info = self.step_batch()
        infos = self._row_infos(info)
        self.returns += rewards
        self.lengths += 1
        if finished.any():
            finished = finished.copy()
            last = observations.copy()
            observations, _ = self.envs.reset(options={"reset_mask": finished})
            seconds = round(time.monotonic() - self._begun, 6)
            for row in np.flatnonzero(finished):
                episode = {"r": float(self.returns[row]), "l": int(self.lengths[row]), "t": seconds}
                end = {"terminal_observation": last[row], "TimeLimit.truncated": False, "episode": episode}
                infos[row] = {**infos[row], **end}
            self.returns[finished], self.lengths[finished] = 0.0, 0
        return observations, rewards.astype(np.float32), finished, infos

    def step_batch(self) -> tuple[Array, Array, Array, dict[str, Any]]:
        """Step every row: observations, rewards, which are finished, info. For subclasses that change rewards."""
        observations, rewards, finished, _, info = self.envs.step(self._actions)
        return observations, rewards, finished, info

    def _row_infos(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        if not info:
            return [self._nothing] * self.num_envs
        columns = {name: self._by_row(values) for name, values in info.items()}
        return [{name: values[row] for name, values in columns.items()} for row in range(self.num_envs)]

    def _by_row(self, values: Any) -> list[Any]:
        """Arrays over the rows, or a dict of them, as a list with an entry for each row."""
        if isinstance(values, dict):
            columns = {name: np.asarray(column).tolist() for name, column in values.items()}
            return [{name: column[row] for name, column in columns.items()} for row in range(self.num_envs)]
        rows: list[Any] = np.asarray(values).tolist()
        return rows

    def close(self) -> None:
        """Close the batch."""
        self.envs.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds of the next `reset`: ``seed + i`` for row ``i``."""
        self._seeds = [None] * self.num_envs if seed is None else [int(seed) + i for i in range(self.num_envs)]
        return list(self._seeds)

    def _count(self, indices: int | Iterable[int] | None) -> list[int]:
        return list(self._get_indices(indices))

    def has_attr(self, attr_name: str) -> bool:
        """Whether the batch has an attribute."""
        return hasattr(self.envs, attr_name)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The batch's attribute, once per row asked for."""
        if attr_name == "render_mode":
            return [None] * len(self._count(indices))
        return [getattr(self.envs, attr_name)] * len(self._count(indices))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of the whole batch.

        Raises
        ------
        ValueError
            If it is asked for some rows only, or as `KernelVectorEnv.set_attr`.
        """
        if len(self._count(indices)) != self.num_envs:
            raise ValueError(f"{attr_name!r} can be set for all rows only: they are one batch")
        self.envs.set_attr(attr_name, [value] * self.num_envs)

    def env_method(
        self, method_name: str, *arguments: Any, indices: int | Iterable[int] | None = None, **keywords: Any
    ) -> list[Any]:
        """Call the batch's method once; an array with a row per environment is handed out by rows."""
        results = self.envs.call(method_name, *arguments, **keywords)
        return [results[row] for row in self._count(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """No row is wrapped."""
        return [False] * len(self._count(indices))

    def get_images(self) -> Sequence[Array | None]:
        """No row is rendered."""
        return [None] * self.num_envs


class CentredRewards(VecEnvWrapper):  # type: ignore[misc]
    """Rewards less a constant and times another, for training.

    Every policy's value falls by the same amount, so the optimum stays: an episode has a fixed number of steps or, in
    the Hawkes markets with decisions after events, one that the order flow decides and no policy changes. But what a
    critic has to learn is no longer dominated by the time that is left, times what any sensible policy earns a step;
    the differences between actions, which are far smaller, weigh more (Naik, Wan, Tomar and Sutton, Reward centering,
    2024, arXiv 2405.09999).

    Parameters
    ----------
    venv : VecEnv
    per_step : float
        What is subtracted from every reward, in the unit of rewards (currency); about the value of constant quotes
        divided by the number of steps does well.
    scale : float
        By which rewards are then multiplied. DQN's loss is quadratic only where errors are below 1 (Huber): beyond, it
        understates gains that are rare and large, such as fills.

    Raises
    ------
    ValueError
        If `per_step` is not finite, or `scale` not positive and finite.
    """

    def __init__(self, venv: VecEnv, per_step: float, scale: float = 1.0) -> None:
        if not math.isfinite(per_step):
            raise ValueError(f"per_step = {per_step} is not allowed: it must be finite")
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale = {scale} is not allowed: it must be positive and finite")
        super().__init__(venv)
        self.per_step, self.scale = per_step, scale

    def reset(self) -> Any:
        """Start an episode in every row."""
        return self.venv.reset()

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        """As of the environment below, with rewards less the constant, times the other."""
        observations, rewards, finished, infos = self.venv.step_wait()
        return observations, (rewards - np.float32(self.per_step)) * np.float32(self.scale), finished, infos


def make_sb3_env(
    env_id: str, num_envs: int, *, threads: int = 1, adapter: Callable[[Any], SB3VecEnv] = SB3VecEnv, **arguments: Any
) -> SB3VecEnv:
    """A batch of an mmgym id for Stable-Baselines3.

    Parameters
    ----------
    env_id : str
    num_envs, threads : int
        Rows, and threads that share a step.
    adapter : callable
        From the batch to what is returned: `SB3VecEnv` or a subclass of it.
    **arguments
        The environment's constructor arguments.
    """
    import mmgym  # noqa: F401  # registers the ids

    envs = gymnasium.make_vec(
        env_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        threads=threads,
        autoreset_mode="Disabled",
        **arguments,
    )
    return adapter(envs.unwrapped)
