r"""Memory traces: moving sums of what was observed, which an agent sees beside what it observes now.

Where an observation hides part of the state, the history tells more than the last of it. A *memory trace* (Eberhard,
Muehlebach & Vernade 2025) is the state of a linear recurrence, here in continuous time: with inputs ``x_i`` at times
``t_i`` and a rate ``r``,

    m_i = exp(-r (t_i - t_{i-1})) m_{i-1} + x_i = sum_{j <= i} exp(-r (t_i - t_j)) x_j.

Several rates on a logarithmic scale resolve the history on all of them; nothing in them is learned, so that a policy of
observations and traces is trained like any other, without gradients through time. The rates are settings, not those of
a market: whatever it forgets at a rate of its own a network has to put together from traces at others.

References: O. Eberhard, M. Muehlebach & C. Vernade (2025). Partially observable reinforcement learning with memory
traces. Proceedings of the 42nd International Conference on Machine Learning, PMLR 267.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mmgym.arguments import integer, real
from mmgym.kernel_env import KernelVectorEnv
from mmgym.plain_files import numbers

__all__ = ["MemoryTraces", "RememberingVectorEnv"]

Array = NDArray[Any]


class MemoryTraces:
    """The recurrence, for observations whose first entry is the share of the horizon that has passed, or is left.

    Parameters
    ----------
    space : gymnasium.spaces.Box
        Of one observation, shape ``(D,)``.
    entries : sequence of int
        Which entries of an observation are remembered, from 1 to ``D - 1``, each once. Positive and negative parts are
        inputs apart: of the side of an order (1 or -1) two, of an entry that the space bounds by 0 one.
    rates : sequence of float
        At which inputs are forgotten, above 0 and at most 1e9, per horizon.

    Attributes
    ----------
    space : gymnasium.spaces.Box
        Of one observation and the traces, shape ``(D + M,)``: of each input in turn a trace for each rate.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(self, space: gymnasium.Space[Any], entries: Sequence[int], rates: Sequence[float]) -> None:
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"observations of {space} have no memory traces: they must be a box of shape (D,)")
        if not len(entries) or not len(rates):
            raise ValueError(f"entries = {entries!r} and rates = {rates!r} must each have at least one number")
        chosen = [integer("entries", entry, low=1, high=space.shape[0] - 1) for entry in entries]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"entries = {entries!r} is not allowed: each must be there once")
        self._rates = np.array([real("rates", rate, low=1e-9, high=1e9) for rate in rates])
        parts = [(entry, sign) for entry in chosen for sign in (1.0, -1.0) if sign > 0.0 or space.low[entry] < 0.0]
        self._entries, self._signs = np.array([entry for entry, _ in parts]), np.array([sign for _, sign in parts])
        self.observed = int(space.shape[0])
        more = np.zeros(len(parts) * len(self._rates), np.float32)
        self.space = gymnasium.spaces.Box(
            np.concatenate([space.low, more]), np.concatenate([space.high, more + np.inf]), dtype=np.float32
        )

    def seen(self, before: Array | None, observations: Any, begun: Any = None) -> Array:
        """Observations with their traces, float32.

        Parameters
        ----------
        before : array (..., D + M) or None
            What this returned of the last observations; None if there were none.
        observations : array (..., D)
        begun : array (...) of bool, optional
            Which of them are the first of an episode; none by default.
        """
        now = np.asarray(observations, dtype=np.float32)
        sums = np.maximum(self._signs * now[..., self._entries], 0.0)[..., None] + np.zeros(len(self._rates))
        if before is not None:
            elapsed = np.abs(before[..., 0].astype(np.float64) - now[..., 0])
            kept = np.exp(-self._rates * elapsed[..., None])
            if begun is not None:
                kept[np.reshape(begun, elapsed.shape).astype(np.bool_)] = 0.0
            sums += before[..., self.observed :].reshape(sums.shape) * kept[..., None, :]
        return np.concatenate([now, sums.reshape(*now.shape[:-1], -1).astype(np.float32)], axis=-1)


class RememberingVectorEnv(gymnasium.vector.VectorWrapper):  # type: ignore[type-arg]
    """A batch whose observations have memory traces beside them: a row's traces begin anew with its episodes.

    What else the batch has is reached through this wrapper.

    Parameters
    ----------
    env : KernelVectorEnv
        With the autoreset mode NEXT_STEP or DISABLED.
    entries, rates
        As in `MemoryTraces`.

    Attributes
    ----------
    traces : MemoryTraces

    Raises
    ------
    ValueError
        If an argument is out of range, or the batch resets its rows in the step in which they end.
    """

    def __init__(self, env: KernelVectorEnv, entries: Sequence[int], rates: Sequence[float]) -> None:
        super().__init__(env)
        if env.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode {env.autoreset_mode.value!r} is not allowed here: it must be "
                f"{AutoresetMode.NEXT_STEP.value!r} or {AutoresetMode.DISABLED.value!r}"
            )
        self.traces = MemoryTraces(env.single_observation_space, entries, rates)
        self.single_observation_space = self.traces.space
        self.observation_space = batch_space(self.traces.space, env.num_envs)
        self._seen: Array | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start episodes, in the rows of ``options["reset_mask"]`` or in all."""
        observations, info = self.env.reset(seed=seed, options=options)
        fresh = self.traces.seen(None, observations)
        if self._seen is None or options is None or "reset_mask" not in options:
            self._seen = fresh
        else:
            self._seen = np.where(np.asarray(options["reset_mask"])[:, None], fresh, self._seen)
        return self._seen.copy(), info

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """As of the batch, with observations and traces."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        seen = self.traces.seen(self._seen, observations)
        self._seen = seen.copy()
        self._seen[terminated, self.traces.observed :] = 0.0  # an episode comes next
        return seen, rewards, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """The complete state of all rows, as in `KernelVectorEnv.get_state`, and ``memory``, their traces.

        Of rows that have ended they are 0: an episode comes next.
        """
        state: dict[str, Any] = self.env.get_state()  # type: ignore[attr-defined]
        return state if self._seen is None else {**state, "memory": self._seen[:, self.traces.observed :].copy()}

    def set_state(self, state: Mapping[str, Any]) -> Array:
        """Restore a state from `get_state`; observations and traces of all rows.

        Raises
        ------
        ValueError
            As `KernelVectorEnv.set_state`, or if the traces are not finite numbers of the same shape.
        KeyError
            If it has no traces.
        """
        rest = dict(state)
        width = self.traces.space.shape[0] - self.traces.observed
        memory = numbers(np.asarray(rest.pop("memory")), "memory", (self.num_envs, width), "f")
        observations = self.env.set_state(rest)  # type: ignore[attr-defined]
        self._seen = np.concatenate([observations, memory.astype(np.float32)], axis=1)
        return self._seen.copy()
