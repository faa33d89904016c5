"""Training on the exact value: no sampled rewards, no critic.

A round of training evaluates the network exactly, expands what nearby policies gain to second order in the actions
(`baselines.expansion`: exact policy gradient, exact curvature), and lets Gauss-Newton find the weights that gain most.
Where the network can represent it, that is policy iteration by Newton's method, and a dozen rounds are enough. A "step"
of such a run is one round. The network is a function of the float32 observation, in float64; its actions are clipped to
the box.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.model_files import ModelFileError, flatten
from agents.network import LARGEST_DAMPING, GaussNewton, NetworkPolicy, network_of, restore_network
from baselines.expansion import Expansions

__all__ = ["ExactGradient", "NetworkPolicy", "network_of", "restore_network"]

Array = NDArray[Any]

REACH = 0.1  # of actions: how far a policy may move before it is evaluated again


class ExactGradient:
    """Rounds of exact evaluation and Gauss-Newton.

    Parameters
    ----------
    expansions : Expansions
        Of the environment: see `baselines.expansion.expansions_of`.
    policy : NetworkPolicy
        Is trained.
    inner_steps : int
        Steps of Gauss-Newton in a round, at most.
    seed : int
        Of the cells that expansions are drawn on.
    """

    def __init__(self, expansions: Expansions, policy: NetworkPolicy, inner_steps: int = 5, seed: int = 0) -> None:
        self.expansions, self.policy = expansions, policy
        self.inner_steps, self.seed = inner_steps, seed
        policy.standardise(expansions.observations)
        self.search = GaussNewton(policy)
        self.steps, self.value = 0, -np.inf  # rounds, and the value at the start of the last
        self.best_value, self.best_weights = -np.inf, self.search.weights()

    def _remember(self, value: float) -> None:
        self.value = value
        if value > self.best_value:
            self.best_value, self.best_weights = value, self.search.weights()

    def iterate(self) -> bool:
        """One round: whether the weights changed, or may change in another one."""
        expansion = self.expansions.around(self.policy, np.random.default_rng([self.seed, self.steps]))
        self._remember(expansion.value)
        found = self.search.climb(expansion, self.inner_steps, REACH)
        self.steps += 1
        return found > 0 or self.search.damping < LARGEST_DAMPING

    def finish(self) -> float:
        """Go back to the best weights that there were, these included; their value."""
        self._remember(self.expansions.value(self.policy))
        self.search.set_weights(self.best_weights)
        return self.best_value

    def state(self, arrays: dict[str, Array], *, training: bool) -> dict[str, Any]:
        """JSON layout of the network (and of the search); their arrays go to ``arrays``."""
        tree: dict[str, Any] = {"network": dict(self.policy.network.state_dict())}
        if training:
            tree |= {
                "damping": float(self.search.damping),
                "best_value": float(self.best_value),
                "best_weights": self.best_weights,
            }
        layout: dict[str, Any] = flatten(tree, arrays, "parameters")
        return layout

    def restore(self, description: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Put network, search and number of steps where a checkpoint left them."""
        tree = restore_network(self.policy, description, arrays)
        try:
            self.search.damping, self.best_value = float(tree["damping"]), float(tree["best_value"])
            self.best_weights = tree["best_weights"].clone()
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ModelFileError(f"the checkpoint lacks a usable state of the search: {error}") from error
        self.steps = int(description["steps"])
