"""The perturbed optimum: its actions are drawn near the best ones. Its skill can be set, and is known exactly."""

from typing import Any

import gymnasium
import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.baselines.baseline import baseline_of, environment_of
from mmgym.baselines.policy import RememberingPolicy, StatelessPolicy, uniform_nodes
from mmgym.baselines.scoring import QUICK_EPISODES, score, skill_of_value

__all__ = ["MixedPolicy", "NoisyPolicy", "perturbed_optimum"]

Array = NDArray[Any]

SEARCHED_TO = 1e-3  # of the noise
COARSE_NODES = 3  # per dimension, during the search


class NoisyPolicy(RememberingPolicy):
    """A policy with noise: each action is uniform within ``noise`` of the policy's, inside the action box.

    Parameters
    ----------
    policy : Policy
        Deterministic; it may remember.
    action_space : gymnasium.spaces.Box
        Of one environment.
    noise : float
        Largest distance, in units of actions.
    seed : int
        Of the actions drawn by `predict`.

    Raises
    ------
    ValueError
        If the noise is negative.

    Attributes
    ----------
    markov : bool
        True for up to two actions, if the policy does not remember. For more its quadrature would have too many nodes:
        scores are then simulated.
    """

    has_mode = False  # a score must not be taken at one draw of its actions
    nodes = 8  # per dimension

    def __init__(self, policy: Any, action_space: gymnasium.spaces.Box, noise: float, seed: int = 0) -> None:
        if not noise >= 0.0:
            raise ValueError(f"noise = {noise!r} is not allowed: it must be >= 0")
        self.policy, self.noise = policy, noise
        self._space = action_space
        self.markov = action_space.low.size <= 2 and bool(policy.markov)
        self._draws = np.random.default_rng(seed)

    def _bounds(self, actions: Any) -> tuple[Array, Array]:
        center = np.asarray(actions, dtype=np.float64)
        low, high = np.maximum(center - self.noise, self._space.low), np.minimum(center + self.noise, self._space.high)
        return low, high

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Array, Any]:
        """Drawn actions, and what the policy remembers."""
        actions, state = self.policy.predict(observation, state=state, episode_start=episode_start)
        low, high = self._bounds(actions)
        return self._draws.uniform(low, high).astype(self._space.dtype), state

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """Gauss-Legendre nodes (B, M, A) and weights (B, M)."""
        low, high = self._bounds(self.policy.predict(observations)[0])
        nodes, weights = uniform_nodes(self.nodes, low.shape[-1])
        points = 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * nodes
        return points, np.broadcast_to(weights, points.shape[:2])


class MixedPolicy(StatelessPolicy):
    """A policy whose action is another's with a fixed probability, independently at every step.

    Parameters
    ----------
    policy : Policy
        A deterministic function of the observation.
    other : Policy
        With a ``distribution``.
    probability : float
        Of the other's action, from 0 to 1.
    seed : int
        Of the steps at which it acts.

    Raises
    ------
    ValueError
        If the probability is out of range.
    """

    has_mode = False  # a score must not be taken at one draw of its actions

    def __init__(self, policy: Any, other: Any, probability: float, seed: int = 0) -> None:
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability = {probability!r} is not allowed: it must be from 0 to 1")
        self.policy, self.other, self.probability = policy, other, probability
        self._draws = np.random.default_rng(seed)

    def act(self, observation: Any) -> Array:
        """Drawn actions."""
        kept, drawn = self.policy.predict(observation)[0], self.other.predict(observation)[0]
        replaced = self._draws.random(np.shape(observation)[:-1]) < self.probability
        chosen: Array = np.where(np.expand_dims(replaced, -1), drawn, kept).astype(kept.dtype)
        return chosen

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """Actions (B, M, A) and weights (B, M): the policy's, then the other's."""
        kept = np.asarray(self.policy.predict(observations)[0])[:, None]
        drawn, weights = self.other.distribution(observations)
        first = np.full((len(kept), 1), 1.0 - self.probability)
        return np.concatenate([kept, drawn], axis=1), np.concatenate([first, self.probability * weights], axis=1)


def perturbed_optimum(env: Any, skill: float = 0.5, seed: int = 0, **arguments: Any) -> NoisyPolicy | MixedPolicy:
    """The optimum (or best known policy), perturbed until its skill is about ``skill``.

    In a box of actions by noise; with discrete actions by the market's random policy, now and then. How much is
    searched to 1e-3, in markets with continuous coordinates by simulation.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    skill : float
        Below 1.
    seed : int
        Of the drawn actions.

    Raises
    ------
    ValueError
        If ``skill`` is not below 1, or lower than what this perturbation can reach.
    """
    base = environment_of(env, **arguments)
    if not skill < 1.0:
        raise ValueError(f"skill = {skill!r} is not allowed: it must be below 1, which is the optimum")
    baseline = baseline_of(base)
    best, draws = baseline.best_policy(), np.random.SeedSequence(seed).generate_state(2, np.uint64)
    space = base.single_spaces()[1]
    box = isinstance(space, gymnasium.spaces.Box)
    most = float((space.high - space.low).max()) if box else 1.0

    def make(amount: float) -> NoisyPolicy | MixedPolicy:
        if box:
            return NoisyPolicy(best, space, amount, int(draws[0]))
        return MixedPolicy(best, baseline.random_policy(space, int(draws[1])), amount, int(draws[0]))

    def missing(amount: float) -> float:
        played = make(amount)
        if isinstance(played, NoisyPolicy):
            played.nodes = COARSE_NODES
        value = baseline.criterion_value(played) if played.markov else None
        if value is None:
            value = score(base, played, method="simulated", episodes=QUICK_EPISODES).value
        return skill_of_value(base, value)[0] - skill

    low, high = 0.0, most / 64.0
    while missing(high) > 0.0:
        if high == most:
            raise ValueError(
                f"skill = {skill!r} is not allowed: perturbed as far as possible, the optimum still has a higher one"
            )
        low, high = high, min(2.0 * high, most)
    return make(round(float(scipy.optimize.brentq(missing, low, high, xtol=SEARCHED_TO, rtol=1e-6)), 3))
