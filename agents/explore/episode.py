"""An episode of a policy, step by step, next to the optimum's on the same random stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import Baseline
from mmgym.baselines.episodes import Decision, episodes
from mmgym.baselines.frozen import advantages
from mmgym.baselines.policy import checked_actions

__all__ = ["Episode", "Played", "play"]

Array = NDArray[Any]


class Played(NamedTuple):
    """One policy's episode of N steps: columns by name, each (N,)."""

    name: str
    before: dict[str, Array]  # the state at the start of a step: "time", and the market's `info`
    during: dict[str, Array]  # what the step brought: quotes, fills, "reward"
    quotes: Array  # (N, C) controls in model units


class Episode(NamedTuple):
    """A policy's episode and the optimum's, both seeded alike, and what the optimum does in the policy's states.

    Attributes
    ----------
    policy, optimum : Played
    instead : Played
        One step of the optimum from each state of the policy's episode, with the random numbers that the policy had.
    loss : (N,) or None
        What the policy's step is worth less than the best one, in expectation; None where that is not known exactly.
    """

    policy: Played
    optimum: Played
    instead: Played
    loss: Array | None


def flat(entries: dict[str, Any]) -> dict[str, float]:
    """Info entries of a batch of one as numbers: those of several assets with their numbers behind the name."""
    numbers: dict[str, float] = {}
    for name, values in entries.items():
        if isinstance(values, dict):
            continue
        row = np.asarray(values, dtype=np.float64)[0]
        parts = row.ravel()
        numbers |= {name if row.ndim == 0 else f"{name}_{i}": float(part) for i, part in enumerate(parts)}
    return numbers


class _Record:
    """What an episode's steps were, one after the other."""

    def __init__(self, env: Any, name: str) -> None:
        self.env, self.name, self.now = env, name, 0.0
        self.rows: list[tuple[dict[str, float], dict[str, float], Array]] = []

    def add(self, before: Any, after: Any, reward: float, actions: Array) -> None:
        start, end = flat(before), flat(after)
        heads = tuple(self.env.step_entries)

        def of_step(entry: str) -> bool:
            return entry in heads or entry.rpartition("_")[0] in heads

        state = {"time": self.now} | {key: value for key, value in start.items() if not of_step(key)}
        step = {key: value for key, value in end.items() if of_step(key)} | {"reward": reward}
        quotes = np.asarray(self.env.to_quotes(actions), dtype=np.float64)[0]
        self.rows.append((state, step, quotes))
        self.now += end.get("elapsed", float(self.env.params.horizon) / int(self.env.params.num_steps))

    def played(self) -> Played:
        def columns(part: int) -> dict[str, Array]:
            return {key: np.array([row[part][key] for row in self.rows]) for key in self.rows[0][part]}  # type: ignore[index]

        return Played(self.name, columns(0), columns(1), np.stack([row[2] for row in self.rows]))


def play(env: Any, baseline: Baseline, name: str, policy: Any, best_name: str, best: Any, seed: int) -> Episode:
    """Play an episode of a policy and one of the best, seeded alike, and the best one's steps from the same states.

    Parameters
    ----------
    env : environment
    baseline : Baseline
        Its baseline.
    name, best_name : str
        How the policies are called.
    policy, best : Policy
    seed : int
    """
    twin = env.make_batch(1, info="full")
    twin.reset(seed=seed)
    instead, shape = _Record(env, best_name), twin.single_action_space.shape

    def answer(decision: Decision) -> None:
        twin.set_state(decision.envs.get_state())
        actions = checked_actions(best, best.predict(decision.observations)[0], decision.observations, shape)
        instead.now = followed.now
        _, reward, _, _, info = twin.step(actions)
        instead.add(decision.info, info, float(reward[0]), actions)

    followed = _Record(env, name)
    losses = _Losses(baseline)
    for step in episodes(env.make_batch(1, info="full"), policy, seed, note=answer):
        losses.add(step.decision)
        followed.add(step.decision.info, step.info, float(step.rewards[0]), step.decision.actions)
    alone = _Record(env, best_name)
    for step in episodes(env.make_batch(1, info="full"), best, seed):
        alone.add(step.decision.info, step.info, float(step.rewards[0]), step.decision.actions)
    return Episode(followed.played(), alone.played(), instead.played(), losses.array())


class _Losses:
    """What each step is worth less than the best one, where the law of a step is known and the criterion is a mean."""

    def __init__(self, baseline: Baseline) -> None:
        known = baseline.problem is not None and not baseline.expected_utility
        self.problem = baseline.problem if known else None
        self.solution = baseline.solution if known else None
        self.values: list[float] = []

    def add(self, decision: Decision) -> None:
        if self.problem is None or self.solution is None:
            return
        n, (_, cells) = decision.number, self.problem.locate(decision.observations)
        quotes = np.asarray(decision.envs.to_quotes(decision.actions), dtype=np.float64)
        worth = advantages(self.problem, self.solution, n, cells, quotes)
        self.values.append(float(self.solution.raw[n, cells[0]] - worth[0]))

    def array(self) -> Array | None:
        return np.array(self.values) if self.values else None
