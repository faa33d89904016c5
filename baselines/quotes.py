"""What a policy quotes, where the action box is another one than that it was made for.

An action is a place in the box of quotes, and the box often follows from parameters: by default a depth goes from
``-1 / fill_decay`` to ``3 / fill_decay``. A policy from another market then quotes something else by the same action.
A policy that knows what its actions meant has ``quotes_of``, a function from actions to quotes in model units.
"""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from mmgym.baselines.baseline import environment_of
from mmgym.baselines.foreign import player_in
from mmgym.baselines.policy import PolicyThrough

__all__ = ["QuotedPolicy", "as_quotes", "warn_of_another_box"]


class QuotedPolicy(PolicyThrough):
    """A policy whose quotes are played, in another action box: those outside it are moved to its edge.

    Parameters
    ----------
    policy : Policy
    meant : callable
        Actions -> the quotes that they stood for.
    taken : callable
        Quotes -> the actions that stand for them here.
    """

    def __init__(self, policy: Any, meant: Callable[[Any], Any], taken: Callable[[Any], Any]) -> None:
        super().__init__(policy)
        self._meant, self._taken = meant, taken

    def played(self, actions: Any) -> Any:
        """Actions for the policy's quotes."""
        return self._taken(self._meant(actions))


def as_quotes(policy: Any, env: Any, trained_in: Any = None, **arguments: Any) -> QuotedPolicy:
    """A policy that plays in an environment the quotes that another policy wants, whatever its actions meant.

    Parameters
    ----------
    policy : Policy or callable
    env : environment, vector environment or id
        Where it is to play; with an id, ``arguments`` are those of its constructor.
    trained_in : environment, vector environment or id, optional
        Where its actions had their meaning, of a policy that does not tell.

    Raises
    ------
    TypeError
        If the policy does not tell what its actions meant, and ``trained_in`` is not given.
    """
    base, player = player_in(env, policy, None, **arguments)
    meant = player.quotes_of if trained_in is None else environment_of(trained_in).to_quotes
    if meant is None:
        raise TypeError(
            f"{type(policy).__name__} does not tell which quotes its actions stood for: give the environment that it "
            "was made for, as_quotes(policy, env, trained_in=...)"
        )
    return QuotedPolicy(player, meant, base.from_quotes)


def warn_of_another_box(policy: Any, base: Any) -> None:
    """Warn where the actions of a policy stood for other quotes than they do in an environment."""
    meant, space = policy.quotes_of, base.single_spaces()[1]
    if meant is None or not isinstance(space, gymnasium.spaces.Box):
        return
    ends = np.stack([space.low, space.high])
    try:
        there = np.asarray(meant(ends))
    except (ValueError, IndexError):  # actions of another shape: refused where they are played
        return
    here = np.asarray(base.to_quotes(ends))
    if there.shape == here.shape and not np.allclose(there, here, rtol=1e-6, atol=1e-12):
        words = [", ".join(f"{low:g} to {high:g}" for low, high in zip(*box, strict=True)) for box in (there, here)]
        warnings.warn(
            f"this policy was made for another action box: quotes from {words[0]}, here from {words[1]}. Its actions "
            "are scored as they are, and mean other quotes; score its quotes with score(..., quotes=True), or play "
            "them with mmgym.baselines.as_quotes(policy, env)",
            stacklevel=3,
        )
