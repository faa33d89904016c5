"""Trained Stable-Baselines3 models as policies that can be scored exactly."""

import math
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.choices import component_sizes
from mmgym.baselines.gaussian import clipped_gaussian_nodes
from mmgym.baselines.wrappers import innermost, refuse_policy_wrappers

__all__ = ["ModelPolicy", "as_policy"]

Array = NDArray[Any]

MOST_ACTIONS = 256  # discrete ones, whose probabilities are tabulated


class ModelPolicy:
    """An SB3 model with its normalisation of observations: a function of the observation, unless it is recurrent.

    Parameters
    ----------
    model : stable_baselines3 algorithm
    normalisation : VecNormalize or None
        Whose running statistics of observations the model saw.
    masks : callable or None
        Observations -> action masks, for a model that was trained with them.
    quotes_of : callable or None
        Actions -> quotes in model units, in the environment that it was trained in.
    """

    def __init__(self, model: Any, normalisation: Any = None, masks: Any = None, quotes_of: Any = None) -> None:
        self.quotes_of = quotes_of
        self.model = model
        self.markov = "Recurrent" not in type(model).__name__
        self._normalisation = normalisation
        self._masks = masks

    def _seen(self, observations: Any) -> Any:
        return observations if self._normalisation is None else self._normalisation.normalize_obs(observations)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """The model's actions, clipped to the action space; masks that are not given are those of the observations."""
        if action_masks is None and self._masks is not None:
            action_masks = self._masks(observation)
        masks = {} if action_masks is None else {"action_masks": action_masks}
        actions, state = self.model.predict(
            self._seen(observation), state=state, episode_start=episode_start, deterministic=deterministic, **masks
        )
        return actions, state

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """How the model acts: actions (B, M, A) and their weights (B, M).

        Of a clipped Gaussian head on a box, they are quadrature nodes; of discrete heads all actions, (B, M) if an
        action is one number, with their probabilities.

        Raises
        ------
        TypeError
            If the model has neither head, or more than `MOST_ACTIONS` discrete actions.
        """
        import torch
        from stable_baselines3.common.distributions import DiagGaussianDistribution

        space = self.model.action_space
        if not hasattr(self.model.policy, "get_distribution"):
            raise TypeError(f"{type(self.model).__name__} has no action distribution: use method='simulated'")
        masks = {} if self._masks is None else {"action_masks": self._masks(observations)}
        with torch.no_grad():
            tensor, _ = self.model.policy.obs_to_tensor(self._seen(observations))
            head = self.model.policy.get_distribution(tensor, **masks)
        if isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete):
            return _all_actions(head, space)
        if not isinstance(head, DiagGaussianDistribution) or not isinstance(space, gymnasium.spaces.Box):
            raise TypeError(f"{type(head).__name__} has no quadrature: use method='simulated'")
        mean, std = head.distribution.mean.numpy(), head.distribution.stddev.numpy()
        return clipped_gaussian_nodes(mean.astype(np.float64), std.astype(np.float64), space.low, space.high)


def _all_actions(head: Any, space: Any) -> tuple[Array, Array]:
    """All actions of independent categorical heads, and their probabilities."""
    sizes = component_sizes(space)
    count = 0 if sizes is None else math.prod(sizes)
    if sizes is None or count > MOST_ACTIONS:
        raise TypeError(
            f"{space} has too many actions to score them all (at most {MOST_ACTIONS}): use method='simulated'"
        )
    heads = getattr(head, "distributions", None) or head.distribution
    heads = heads if isinstance(heads, list) else [heads]
    weights = np.ones((len(heads[0].probs), 1))
    for part in heads:
        chances = part.probs.numpy().astype(np.float64)
        chances /= chances.sum(axis=1, keepdims=True)
        weights = (weights[:, :, None] * chances[:, None]).reshape(len(weights), -1)
    single = isinstance(space, gymnasium.spaces.Discrete)
    actions = np.arange(count) if single else np.indices(sizes).reshape(len(sizes), -1).T
    return np.broadcast_to(actions, (len(weights), *actions.shape)), weights


def as_policy(model: Any) -> ModelPolicy:
    """A trained SB3 model as a policy, with the normalisation of the `VecNormalize` around its environment.

    Raises
    ------
    TypeError
        If the model uses action masks and has no environment, which tells them, or its environment has a wrapper that
        changes what it sees or does, besides `VecNormalize`.
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    if not isinstance(model, BaseAlgorithm):
        raise TypeError(f"{type(model).__name__} is not a Stable-Baselines3 model")
    refuse_policy_wrappers(model, normalisation=True)
    venv = model.get_env()
    normalisation = model.get_vec_normalize_env() if venv is not None else None
    masks = None
    if "Maskable" in type(model).__name__:
        if venv is None:
            raise TypeError("a model with action masks needs its environment: set_env() first")
        masks = venv.get_attr("masks", 0)[0]
    if normalisation is not None and not normalisation.norm_obs:
        normalisation = None
    return ModelPolicy(model, normalisation, masks, getattr(innermost(venv), "to_quotes", None))
