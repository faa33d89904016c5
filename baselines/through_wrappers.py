"""Environments in wrappers that change what a policy sees or does, as the policy meets them.

Wrappers that turn one observation or action into another, and remember nothing, are functions: they are put before and
after the policy, and its score is as exact as without them. Behind all others it is simulated, in the wrapped
environment itself; what counts there are the rewards of the market, whatever a wrapper makes of them.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.policy import PolicyThrough
from mmgym.baselines.wrappers import innermost

__all__ = ["ThroughWrappers", "WrappedEnvironment"]

Array = NDArray[Any]

Observing = gymnasium.ObservationWrapper | gymnasium.vector.VectorObservationWrapper


class ThroughWrappers(PolicyThrough):
    """A policy that sees and acts through wrappers that are functions.

    Parameters
    ----------
    policy : Policy
    layers : sequence of gymnasium wrappers
        From the outermost on.
    """

    def __init__(self, policy: Any, layers: Sequence[Any]) -> None:
        super().__init__(policy)
        self._layers = list(layers)

    def seen(self, observations: Any) -> Any:
        """Observations as the outermost wrapper shows them."""
        for layer in reversed(self._layers):
            if isinstance(layer, Observing):
                observations = _of_rows(layer, "observation", np.asarray(observations))
        return observations

    def played(self, actions: Any) -> Any:
        """Actions as they reach the environment."""
        flat = np.asarray(actions)
        width = len(getattr(self._layers[0], "single_action_space", self._layers[0].action_space).shape)
        rows = flat.reshape(-1, *flat.shape[flat.ndim - width :])
        for layer in self._layers:
            if not isinstance(layer, Observing):
                rows = _of_rows(layer, "action", rows)
        return rows.reshape(*flat.shape[: flat.ndim - width], *rows.shape[1:])


def _of_rows(layer: Any, kind: str, rows: Array) -> Array:
    """What a wrapper makes of observations or actions, shape ``(B, ...)``."""
    if isinstance(layer, gymnasium.Wrapper):
        change = getattr(layer, kind)
        return np.stack([np.asarray(change(row)) for row in rows])
    count, change = layer.num_envs, getattr(layer, f"{kind}s")  # of a batch that has always so many rows
    parts = [rows[low : low + count] for low in range(0, len(rows), count)]
    padded = [np.concatenate([part, np.repeat(part[-1:], count - len(part), axis=0)]) for part in parts]
    changed = [np.array(change(whole))[: len(part)] for whole, part in zip(padded, parts, strict=True)]
    return np.concatenate(changed)


class WrappedEnvironment:
    """A wrapped environment as the loop that plays episodes takes it.

    A single environment is copied, one for each row; a batch plays its own number of rows.

    Parameters
    ----------
    env : environment or vector environment

    Raises
    ------
    ValueError
        If it is a batch that resets its rows in the step in which they end.
    """

    def __init__(self, env: Any) -> None:
        if getattr(innermost(env), "_same_step", False):
            raise ValueError("a wrapped batch is simulated with the autoreset mode NEXT_STEP: make it with that one")
        self.env = env
        self.rows = getattr(env, "num_envs", None)

    def make_batch(self, count: int, info: str) -> Any:
        """Rows that are stepped together."""
        if self.rows is None:
            return _Copies([copy.deepcopy(self.env) for _ in range(count)])
        return _Batch(copy.deepcopy(self.env))


def _tapped(base: Any, kept: Callable[[Any, Any], None]) -> None:
    """Have the innermost environment tell its rewards and full infos, before wrappers change them."""
    plain = base.step
    base._full_info = True

    def step(actions: Any) -> Any:
        outcome = plain(actions)
        kept(outcome[1], outcome[4])
        return outcome

    base.step = step


class _Copies:
    """Wrapped single environments, one for each row; rows that have ended wait."""

    def __init__(self, envs: list[Any]) -> None:
        self.envs, self.num_envs = envs, len(envs)
        self.single_action_space, self.params = envs[0].action_space, innermost(envs[0]).params
        self._own: list[tuple[float, dict[str, Any]]] = [(0.0, {})] * len(envs)
        self._last: list[Any] = [None] * len(envs)
        for i, env in enumerate(envs):
            _tapped(innermost(env), lambda reward, info, i=i: self._own.__setitem__(i, (reward, info)))  # type: ignore[misc]

    def reset(self, seed: int) -> tuple[Array, dict[str, Any]]:
        starts = [env.reset(seed=seed + i) for i, env in enumerate(self.envs)]
        self._last = [observation for observation, _ in starts]
        self._ended = np.zeros(self.num_envs, np.bool_)
        return np.stack(self._last), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        for i in np.flatnonzero(~self._ended):
            self._last[i], _, terminated, truncated, _ = self.envs[i].step(actions[i])
            if truncated and not terminated:
                raise ValueError("a wrapper ended an episode before the horizon: scores are those of whole episodes")
            self._ended[i] = terminated
        infos = [info for _, info in self._own]
        names = [name for name in infos[0] if name != "parameters"]
        info = {name: np.array([each[name] for each in infos]) for name in names}
        rewards = np.array([reward for reward, _ in self._own])
        return np.stack(self._last), rewards, self._ended.copy(), np.zeros_like(self._ended), info


class _Batch:
    """A wrapped vector environment."""

    def __init__(self, env: Any) -> None:
        base = innermost(env)
        self.env, self.num_envs, self.params = env, env.num_envs, base.params
        self.single_action_space = env.single_action_space
        self._own: tuple[Any, dict[str, Any]] = (None, {})
        _tapped(base, self._keep)

    def _keep(self, rewards: Any, info: dict[str, Any]) -> None:
        self._own = np.array(rewards), {**info}

    def reset(self, seed: int) -> tuple[Array, dict[str, Any]]:
        return np.array(self.env.reset(seed=seed)[0]), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        observations, _, terminated, truncated, _ = self.env.step(actions)
        if (truncated & ~terminated).any():
            raise ValueError("a wrapper ended an episode before the horizon: scores are those of whole episodes")
        rewards, info = self._own
        return np.array(observations), rewards, np.array(terminated), np.array(truncated), info
