"""Training on the exact value: no sampled rewards, no critic.

A round of training evaluates the network exactly, expands what nearby policies gain to second order in the actions
(`mmgym.baselines.expansion`: exact policy gradient, exact curvature), and lets Gauss-Newton find the weights that gain
most. Where the network can represent it, that is policy iteration by Newton's method, and a dozen rounds are enough. A
"step" of such a run is one round. The network is a function of the float32 observation, in float64; its actions are
clipped to the box.

Where actions are discrete, a round takes the exact advantages of all of them (`mmgym.baselines.choices`) and fits
softmax heads to the better ones (`mmgym.agents.choice_network`), the sharper the later the round: policy iteration too.

In the power market states are too many for exact values. A round fits the network's own value function
(`mmgym.baselines.hawkes_power.expansion`); what the step gains at any offsets is then a closed form, which Adam climbs.
The gradient is as good as the fit, by which the best round is chosen too; what the network is worth, only a simulation
tells.
"""

import math
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.agents.choice_network import ChoicePolicy, ChoiceSearch
from mmgym.agents.model_files import ModelFileError, flatten
from mmgym.agents.network import GaussNewton, NetworkPolicy, ascend, restore_network
from mmgym.agents.stored_tensors import check_tensors
from mmgym.baselines.choices import Choices, FrozenChoices, component_sizes
from mmgym.baselines.expansion import Expansion, Expansions
from mmgym.plain_files import shortened

__all__ = ["ChoicePolicy", "ExactGradient", "NetworkPolicy", "network_of", "restore_network"]

Array = NDArray[Any]


class ExactGradient:
    """Rounds of exact evaluation and Gauss-Newton.

    Parameters
    ----------
    expansions : Expansions or FrozenChoices
        Of the environment: see `mmgym.baselines.catalogue.expansions_of`.
    policy : NetworkPolicy or ChoicePolicy
        Of a box of actions, or of discrete ones. It is trained.
    inner_steps : int
        Steps of Gauss-Newton in a round, at most; or of Adam.
    seed : int
        Of the cells that expansions are drawn on.
    """

    def __init__(
        self,
        expansions: Expansions | FrozenChoices,
        policy: NetworkPolicy | ChoicePolicy,
        inner_steps: int = 5,
        seed: int = 0,
    ) -> None:
        self.expansions, self.policy = expansions, policy
        self.inner_steps, self.seed = inner_steps, seed
        policy.standardise(expansions.observations)
        self.search: Any = GaussNewton(policy) if isinstance(policy, NetworkPolicy) else ChoiceSearch(policy)
        self.steps, self.value = 0, -np.inf  # rounds, and the value at the start of the last
        self.best_value, self.best_weights = -np.inf, self.policy.weights()

    def _remember(self, value: float) -> None:
        self.value = value
        if value > self.best_value:
            self.best_value, self.best_weights = value, self.policy.weights()

    def iterate(self) -> bool:
        """One round: whether the weights changed, or may change in another one."""
        expansion = self.expansions.around(self.policy, np.random.default_rng([self.seed, self.steps]))
        self._remember(expansion.value)
        if isinstance(expansion, Expansion | Choices):
            taken = self.search.climb(expansion, self.inner_steps)
        else:
            taken = ascend(self.policy, expansion, self.inner_steps, [self.seed, self.steps])
        self.steps += 1
        return bool(taken > 0 or not self.search.exhausted)

    def finish(self) -> float:
        """Go back to the best weights that there were, these included; their value."""
        self._remember(self.expansions.value(self.policy))
        self.policy.set_weights(self.best_weights)
        return self.best_value

    def state(self, arrays: dict[str, Array], *, training: bool) -> dict[str, Any]:
        """JSON layout of the network (and of the search); their arrays go to ``arrays``."""
        tree: dict[str, Any] = {"network": dict(self.policy.network.state_dict())}
        if training:
            tree |= {"best_value": float(self.best_value), "best_weights": self.best_weights}
            tree |= self.search.state()
        layout: dict[str, Any] = flatten(tree, arrays, "parameters")
        return layout

    def restore(self, description: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Put network, search and number of steps where a checkpoint left them."""
        tree = restore_network(self.policy, description, arrays)
        try:
            self.search.restore(tree)
            value, weights = tree["best_value"], {"best_weights": tree["best_weights"]}
        except KeyError as error:
            raise ModelFileError(f"the checkpoint lacks a usable state of the search: {error}") from error
        check_tensors(weights, {"best_weights": self.policy.weights()}, "the search")
        if type(value) is not float or math.isnan(value):
            raise ModelFileError(f"best_value = {shortened(value)} must be a number")
        self.best_value, self.best_weights = value, weights["best_weights"].clone()
        self.steps = int(description["steps"])


def network_of(env: Any, net_arch: list[int], seed: int = 0) -> NetworkPolicy | ChoicePolicy:
    """A fresh network for an environment with a box of actions, or with discrete ones.

    Raises
    ------
    TypeError
        If the actions are neither.
    """
    length, space = env.observation_space.shape[0], env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        network = NetworkPolicy(length, space.shape[0], list(net_arch), seed)
        network.quotes_of = env.to_quotes
        return network
    sizes = component_sizes(space)
    if sizes is None:
        raise TypeError(f"a network of ours needs a box of actions or discrete ones, not {space}")
    policy = ChoicePolicy(length, sizes, list(net_arch), seed, getattr(env, "masks", None))
    policy.prefer(env.resting_action())
    return policy
