"""Imitation of a policy, as expansions: how near actions are to what it plays where it goes."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.catalogue import best_known_policy, environment_of
from mmgym.baselines.episodes import episodes
from mmgym.baselines.expansion import CELLS, Expansion
from mmgym.baselines.policy import Policy

__all__ = ["ImitationExpansions"]

Array = NDArray[Any]

EPISODES = 256  # that are imitated
LARGEST = 200_000  # observations of them that are kept, drawn at random


class ImitationExpansions:
    """Behaviour cloning of the best policy: `mmgym.baselines.expansion.Expansions` of the squared distance to it.

    No value is looked at: the observations are those of episodes that it plays, and the criterion is ``-1/2`` times the
    mean squared distance of actions on them.

    Parameters
    ----------
    env : environment
    seed : int
        Of the episodes.

    Raises
    ------
    TypeError
        If its actions are not a box.
    """

    def __init__(self, env: Any, seed: int = 0) -> None:
        base = environment_of(env)
        if not isinstance(base.action_space, gymnasium.spaces.Box):
            raise TypeError(f"behaviour_cloning needs a box of actions, not {base.action_space}")
        seen, played = [], []
        for step in episodes(base.make_batch(EPISODES), best_known_policy(base), seed):
            seen.append(step.decision.observations[step.running])
            played.append(step.decision.actions[step.running])
        self.observations: Array = np.concatenate(seen)
        self.actions: Array = np.concatenate(played).astype(np.float64)
        if len(self.observations) > LARGEST:
            rows = np.random.default_rng(seed).choice(len(self.observations), LARGEST, replace=False)
            self.observations, self.actions = self.observations[rows], self.actions[rows]

    def _played(self, policy: Any, observations: Array) -> Array:
        actions: Array = np.asarray(policy.predict(observations, deterministic=True)[0], dtype=np.float64)
        return actions

    def value(self, policy: Policy) -> float:
        """Minus half the mean squared distance of actions."""
        return -0.5 * float(((self._played(policy, self.observations) - self.actions) ** 2).sum(axis=1).mean())

    def around(self, policy: Policy, random: np.random.Generator) -> Expansion:
        """The exact expansion of a drawn part of the observations."""
        rows = random.choice(len(self.observations), min(CELLS, len(self.observations)), replace=False)
        played = self._played(policy, self.observations[rows])
        slopes = (self.actions[rows] - played) / len(rows)
        curvatures = np.broadcast_to(-np.eye(slopes.shape[1]) / len(rows), (*slopes.shape, slopes.shape[1]))
        return Expansion(self.value(policy), self.observations[rows], played, slopes, curvatures)
