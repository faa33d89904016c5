"""Policies: what can be asked for an action, functions of the observation, and policies that want quotes."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.wrappers import refuse_policy_wrappers

Array = NDArray[Any]

__all__ = ["CallablePolicy", "Policy", "QuotingPolicy", "StatelessPolicy", "as_policy", "checked_actions"]


@runtime_checkable
class Policy(Protocol):
    """Something that acts: Stable-Baselines3's `predict` and whether it is a function of the observation alone.

    A stochastic policy may also have ``distribution(observations)``, which returns quadrature nodes of its actions,
    shape (B, M, action), and their weights, shape (B, M).
    """

    markov: bool

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions of one observation or of a batch, and the next hidden state."""


class StatelessPolicy:
    """A policy without a hidden state: subclasses define `act`, from observations to actions.

    `predict` ignores what it is given beside the observation: a policy that draws its actions does so whatever
    ``deterministic`` says.
    """

    markov = True

    def act(self, observation: Any) -> Any:
        """Action of one observation, or actions of a batch."""
        raise TypeError(f"{type(self).__name__} must define act()")

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Action of one observation, or actions of a batch, and the hidden state as it was given."""
        return self.act(observation), state


class QuotingPolicy(StatelessPolicy):
    """A policy that wants quotes: where they lie outside the action box, the nearest ones are played.

    Subclasses define `wanted`, and ``model``, with the maps of the market: ``from_quotes(params, quotes)`` and
    ``to_quotes(params, actions)``.
    """

    model: Any
    params: Any

    def wanted(self, observation: Any) -> Array:
        """Quotes of one observation or of a batch, in model units, inside the box or not."""
        raise TypeError(f"{type(self).__name__} must define wanted()")

    def act(self, observation: Any) -> Array:
        """Action of one observation, or actions of a batch: the nearest ones in the box."""
        found: Array = self.model.from_quotes(self.params, self.wanted(observation))
        return found

    def clips(self, observation: Any) -> Array:
        """Whether the quotes of an observation, or of each of a batch, lie outside the box."""
        wanted = np.asarray(self.wanted(observation))
        played = self.model.to_quotes(self.params, self.model.from_quotes(self.params, wanted))
        found: Array = (np.abs(played - wanted) > 1e-6 * (1.0 + np.abs(wanted))).any(axis=-1)
        return found


class CallablePolicy(StatelessPolicy):
    """A bare function of the batch of observations; ``markov=True`` declares that it depends on nothing else."""

    def __init__(self, function: Any, markov: bool = False) -> None:
        self._function, self.markov = function, markov

    def act(self, observation: Any) -> Any:
        """The function's actions."""
        return self._function(observation)


def as_policy(policy: Any, markov: bool | None) -> Any:
    """Something that has ``predict``: the policy itself, or a callable wrapped, ``markov`` as given.

    Raises
    ------
    TypeError
        If it is neither, or a Stable-Baselines3 model behind wrappers that change what it sees or does.
    """
    if hasattr(policy, "get_vec_normalize_env") and not hasattr(policy, "markov"):
        refuse_policy_wrappers(policy, normalisation=False)
    if not hasattr(policy, "predict"):
        if not callable(policy):
            raise TypeError(f"{type(policy).__name__} is not a policy: it needs predict(observation), or be callable")
        return CallablePolicy(policy, bool(markov))
    return policy


def checked_actions(policy: Any, actions: Any, count: int, shape: tuple[int, ...]) -> Array:
    """Actions of shape ``(count, *shape)`` as a policy gave them for a batch of observations.

    Raises
    ------
    ValueError
        If they have another shape, or are not finite numbers.
    """
    found = np.asarray(actions)
    function = getattr(policy, "_function", None) if isinstance(policy, CallablePolicy) else policy
    name = getattr(function, "__name__", type(function).__name__)
    if found.shape != (count, *shape):
        raise ValueError(
            f"{name} returned actions of shape {found.shape} for a batch of {count} observations: it must return "
            f"{(count, *shape)}, an action for every row (observations[:, i] is the i-th entry of all rows)"
        )
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{name} returned actions of type {found.dtype}: they must be numbers")
    good = np.isfinite(found)
    if not good.all():
        row = int(np.flatnonzero(~good.reshape(count, -1).all(axis=1))[0])
        raise ValueError(
            f"{name} returned the action {found[row].tolist()} for observation {row} of a batch: actions must be finite"
        )
    return found
