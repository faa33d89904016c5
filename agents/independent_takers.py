"""Independent learning in the mean-field market: all takers of one N-player game learn with one network, together.

Each is a row of a `OneCrowd`, for Stable-Baselines3: she sees and is paid her own, and meets the flow that all of them
make while they learn. Nobody knows of the others, hence *independent* (de Witt et al. 2020, "Is independent learning
all you need in the StarCraft multi-agent challenge?").
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mmgym.envs.mean_field_players import MeanFieldPlayers

__all__ = ["OneCrowd"]

Array = NDArray[Any]


class OneCrowd(VecEnv):  # type: ignore[misc]
    """The takers of one game as the rows of a `VecEnv`; rewards are expected over the Brownian part of the price.

    The maker, whom takers do not feel, quotes the mid.

    Parameters
    ----------
    num_takers : int
    **arguments
        Those of `mmgym.envs.mean_field_players.MeanFieldPlayers`.
    """

    def __init__(self, num_takers: int, **arguments: Any) -> None:
        self.players = MeanFieldPlayers(1, num_takers=num_takers, reward="expected", **arguments)
        low, one = np.array([0.0, -1.0, -1.0], np.float32), np.float32(1.0)
        spaces = gymnasium.spaces.Box(low, one), gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._maker = np.zeros((1, 2), np.float32)
        super().__init__(num_takers, *spaces)

    def reset(self) -> Array:
        """Start an episode, with the seed of the last `seed` call if there was one."""
        observations: Array = self.players.reset(self._seeds[0])[0][0]
        self._reset_seeds()
        return observations

    def step_async(self, actions: Array) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions[None]

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Step the game, and start the next one if it is over."""
        step = self.players.step(self._actions, self._maker)
        observations: Array = step.taker_observations[0]
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if step.terminated:
            infos = [{"terminal_observation": last, "TimeLimit.truncated": False} for last in observations]
            observations = self.reset()
        finished = np.full(self.num_envs, step.terminated)
        return observations, step.taker_rewards[0].astype(np.float32), finished, infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of the game, once per row asked for."""
        value = None if attr_name == "render_mode" else getattr(self.players, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of the game."""
        setattr(self.players, attr_name, value)

    def env_method(
        self, method_name: str, *arguments: Any, indices: int | Iterable[int] | None = None, **keywords: Any
    ) -> list[Any]:
        """Call a method of the game, once."""
        answer = getattr(self.players, method_name)(*arguments, **keywords)
        return [answer for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None) -> list[bool]:
        """Nothing wraps the game."""
        return [False for _ in self._get_indices(indices)]
