"""An actor for boxes of actions whose best ones often lie on the lower bound: a hurdle model (Cragg 1971, section 4).

Each component of an action is at its lower bound with the probability ``p`` of a gate, and otherwise drawn from a
Gaussian that is truncated to what is above. Clipped Gaussian noise is at the bound too, but only as often as its mean
is beyond it, and what the mean says there has no gradient in how far beyond. Here the two questions, whether to leave
the bound and where to go then, have outputs of their own. With the density ``f`` of the truncated Gaussian,

    log-probability  log p at the bound, log(1 - p) + log f(x) above it,
    entropy          -p log p - (1 - p) log(1 - p) + (1 - p) h(f),

both with respect to a unit mass at the bound and length above it. The deterministic action is the bound where ``p`` is
above one half, and else the mode of ``f``.
"""

import math
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution, sum_independent_dims
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn.functional import logsigmoid

from mmgym.baselines.gaussian import hurdle_nodes

__all__ = ["HurdleDistribution", "HurdlePolicy"]


class HurdleDistribution(DiagGaussianDistribution):  # type: ignore[misc]
    """Independent hurdles, one for each component of an action in a box.

    Parameters
    ----------
    space : gymnasium.spaces.Box
        Of one dimension, with finite bounds.

    Raises
    ------
    ValueError
        If the space is none.
    """

    def __init__(self, space: Any) -> None:
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise ValueError(f"a hurdle needs a box of actions of one dimension with finite bounds, not {space}")
        super().__init__(space.shape[0])
        self.space = space
        self.low, self.high = torch.from_numpy(space.low), torch.from_numpy(space.high)

    def proba_distribution_net(self, latent_dim: int, log_std_init: float = 0.0) -> tuple[Any, Any]:
        """A layer with two outputs for each component, gate and mean; and the logarithms of standard deviations."""
        _, log_std = super().proba_distribution_net(latent_dim, log_std_init)
        return torch.nn.Linear(latent_dim, 2 * self.action_dim), log_std

    def proba_distribution(self, mean_actions: Any, log_std: Any) -> "HurdleDistribution":
        """Take the layer's outputs (B, 2 A): logits of the gates; and of means, which a tanh brings into the box."""
        self.gate, raw = mean_actions.chunk(2, dim=-1)
        self.mean = self.low + (self.high - self.low) * 0.5 * (1.0 + torch.tanh(raw))
        self.std = torch.ones_like(self.mean) * log_std.exp()
        self._left, self._right = ((edge - self.mean) / self.std for edge in (self.low, self.high))  # <= 0 <= right
        self._below, self._above = (torch.erf(edge * math.sqrt(0.5)) for edge in (self._left, self._right))
        return self

    def log_prob(self, actions: Any) -> Any:
        """Logarithms of probabilities (B,) of actions (B, A): of densities in components above the bound."""
        z = (actions - self.mean) / self.std
        inside = torch.log(0.5 * (self._above - self._below))
        density = -0.5 * z**2 - 0.5 * math.log(2.0 * math.pi) - torch.log(self.std) - inside
        return sum_independent_dims(
            torch.where(actions <= self.low, logsigmoid(self.gate), logsigmoid(-self.gate) + density)
        )

    def entropy(self) -> Any:
        """Entropies (B,): see the module."""
        mass = 0.5 * (self._above - self._below)
        bend = [edge * torch.exp(-0.5 * edge**2) / math.sqrt(2.0 * math.pi) for edge in (self._left, self._right)]
        above = 0.5 * math.log(2.0 * math.pi * math.e) + torch.log(self.std * mass) + (bend[0] - bend[1]) / (2.0 * mass)
        stays, leaves = torch.sigmoid(self.gate), torch.sigmoid(-self.gate)
        return sum_independent_dims(-stays * logsigmoid(self.gate) + leaves * (above - logsigmoid(-self.gate)))

    def sample(self) -> Any:
        """Actions (B, A): the bound exactly, or above it by the inverse of the truncated Gaussian's law."""
        below, above = self._below.double(), self._above.double()
        z = torch.erfinv(below + (above - below) * torch.rand_like(below)) * math.sqrt(2.0)
        drawn = (self.mean + self.std * z).to(self.mean.dtype)
        drawn = torch.minimum(torch.maximum(drawn, torch.nextafter(self.low, self.high)), self.high)
        return torch.where(torch.rand_like(self.gate) < torch.sigmoid(self.gate), self.low, drawn)

    def mode(self) -> Any:
        """The bound where the gate says so with a probability above one half, else the mode above it."""
        return torch.where(self.gate > 0.0, self.low, self.mean)

    def nodes(self) -> tuple[Any, Any]:
        """Quadrature of the actions: see `mmgym.baselines.gaussian.hurdle_nodes`."""
        gate, mean, std = (part.double().numpy() for part in (torch.sigmoid(self.gate), self.mean, self.std))
        return hurdle_nodes(gate, mean, std, self.space.low, self.space.high)


class HurdlePolicy(ActorCriticPolicy):  # type: ignore[misc]
    """Actor and critic of Stable-Baselines3 with `HurdleDistribution` as the actor's head.

    Arguments are those of `stable_baselines3.common.policies.ActorCriticPolicy`, without ``use_sde``.

    Raises
    ------
    ValueError
        If the actions are no bounded box, or with ``use_sde``.
    """

    def _build(self, lr_schedule: Any) -> None:
        if self.use_sde:
            raise ValueError("use_sde = True is not allowed: a hurdle has noise of its own")
        self.action_dist = HurdleDistribution(self.action_space)
        super()._build(lr_schedule)
