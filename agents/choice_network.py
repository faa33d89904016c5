"""Small tanh networks as policies of discrete actions, and the search for weights that make better choices.

A network has a softmax head for each component of an action and plays their modes. Entries that the environment masks
have probability 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.agents.model_files import whole_number
from mmgym.agents.network import StandardisedNetwork
from mmgym.baselines.choices import Choices
from mmgym.baselines.policy import StatelessPolicy

try:
    import torch

    from mmgym.agents.stored_tensors import check_optimizer
except ImportError as error:
    raise ImportError("training needs torch: pip install 'mmgym[agents]'") from error

__all__ = ["ChoicePolicy", "ChoiceSearch"]

Array = NDArray[Any]

PREFERENCE = 2.0  # of outputs, for the resting action of a fresh network
LEARNING_RATE, LEARNING_DECAY = 1e-2, 0.9  # of the first round, and from round to round
TEMPERATURE, TEMPERATURE_DECAY = 0.05, 0.85
SMALLEST_TEMPERATURE = 1e-3
MOST_NEGATIVE = -1e9  # logarithm: a masked entry counts nothing where its target is 0


class ChoicePolicy(StandardisedNetwork, StatelessPolicy):
    """A network with a head for each component of a discrete action, as a policy.

    Parameters
    ----------
    observations : int
        Length of their vector.
    sizes : tuple of int
        Numbers of entries of the components; a single one is a `Discrete` action, a number.
    net_arch, seed
        See `StandardisedNetwork`.
    masks : callable or None
        Observations (..., D) -> which entries are allowed, flat over the components (..., sum of sizes).
    """

    def __init__(
        self,
        observations: int,
        sizes: tuple[int, ...],
        net_arch: list[int],
        seed: int = 0,
        masks: Callable[[Any], Array] | None = None,
    ) -> None:
        super().__init__(observations, sum(sizes), net_arch, seed)
        self.sizes, self._masks = sizes, masks

    def prefer(self, action: Any, amount: float = PREFERENCE) -> None:
        """Raise the outputs of the entries of one action, everywhere."""
        entries = np.reshape(action, -1) + np.cumsum([0, *self.sizes[:-1]])
        with torch.no_grad():
            bias: Any = list(self.network.parameters())[-1]
            bias[torch.from_numpy(entries)] += amount

    def forbidden(self, observations: Array) -> Array:
        """What is added to the outputs: 0 where an entry is allowed, else minus infinity."""
        if self._masks is None:
            return np.zeros((*np.shape(observations)[:-1], sum(self.sizes)))
        return np.where(self._masks(observations), 0.0, -np.inf)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Array, Any]:
        """The entries with the highest outputs among those that are allowed, by the environment or by masks given."""
        banned = self.forbidden(observation) if action_masks is None else np.where(action_masks, 0.0, -np.inf)
        scores = np.split(self.outputs(observation) + banned, np.cumsum(self.sizes)[:-1], axis=-1)
        entries = np.stack([score.argmax(axis=-1) for score in scores], axis=-1).astype(np.int64)
        return (entries[..., 0] if len(self.sizes) == 1 else entries), state


class ChoiceSearch:
    """Weights of a network that prefers the choices with the highest advantages, by Adam.

    In a round the heads are fitted to the marginals of ``softmax(advantage / temperature)``, by cross-entropy weighted
    by visits: a soft step of policy iteration. The temperature is a fraction of what is at stake, the mean advantage
    that random choices miss, and falls from round to round, as the learning rate does.

    Parameters
    ----------
    policy : ChoicePolicy
    """

    exhausted = False

    def __init__(self, policy: ChoicePolicy) -> None:
        self.policy, self.rounds = policy, 0
        self._adam = torch.optim.Adam(policy.network.parameters())

    def state(self) -> dict[str, Any]:
        """What a later round depends on, besides the weights."""
        return {"rounds": self.rounds, "adam": self._adam.state_dict()}

    def restore(self, tree: dict[str, Any]) -> None:
        """Go back to a state."""
        rounds = whole_number(tree, "rounds", "the checkpoint", 2**31)
        check_optimizer(tree["adam"], self._adam, "adam")
        self.rounds = rounds
        self._adam.load_state_dict(tree["adam"])

    def targets(self, choices: Choices) -> list[Any]:
        """Probabilities (B, entries) that the heads are fitted to, one tensor a component."""
        parts = choices.others if choices.others.shape[1] > 1 else choices.last
        stake = -float(choices.weights @ parts.mean(axis=1))
        cooling = max(TEMPERATURE * TEMPERATURE_DECAY**self.rounds, SMALLEST_TEMPERATURE)
        temperature = max(cooling * stake, 1e-300)
        last, others = (
            torch.softmax(torch.from_numpy(part / temperature), dim=-1) for part in (choices.last, choices.others)
        )
        joint, components = others.reshape(-1, *self.policy.sizes[:-1]), range(1, len(self.policy.sizes))
        return [joint.sum(dim=[k for k in components if k != kept]) for kept in components] + [last]

    def climb(self, choices: Choices, steps: int) -> int:
        """Take steps of Adam on the choices of one round; their number."""
        inputs, weights = self.policy.inputs(choices.observations), torch.from_numpy(choices.weights)
        banned = torch.from_numpy(self.policy.forbidden(choices.observations))
        targets = self.targets(choices)
        rate = LEARNING_RATE * LEARNING_DECAY**self.rounds
        for step in range(steps):
            self._adam.param_groups[0]["lr"] = rate * (1.0 - step / steps)
            scores = torch.split(self.policy.network(inputs) + banned, list(self.policy.sizes), dim=-1)
            loss = torch.zeros((), dtype=torch.float64)
            for score, target in zip(scores, targets, strict=True):
                logs = torch.log_softmax(score, dim=-1).clamp_min(MOST_NEGATIVE)
                loss = loss - weights @ (target * logs).sum(dim=-1)
            self._adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
        self.rounds += 1
        return steps
