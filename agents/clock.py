"""What networks see of observations whose first entry is the share of an episode that has passed, or is left."""

import math
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from mmgym.agents.network import RESOLUTION

__all__ = ["ClockExtractor"]


class ClockExtractor(BaseFeaturesExtractor):  # type: ignore[misc]
    """Observations standardised by their bounds, and time on scales that resolve both ends of an episode.

    Near the horizon the best actions change within a few steps, which are some hundredths of a standard deviation of
    time: the logarithms of the first entry and of what it lacks to 1 tell them apart. Every entry is centred and scaled
    as if it were uniform between its bounds, so that there is nothing to learn before training.

    Parameters
    ----------
    observation_space : gymnasium.spaces.Box
        Of one dimension, with finite bounds; those of the first entry are 0 and 1.

    Raises
    ------
    ValueError
        If the space is none.
    """

    def __init__(self, observation_space: Any) -> None:
        space = observation_space
        usual = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded()
        if not usual or (space.low[0], space.high[0]) != (0.0, 1.0):
            raise ValueError(f"a clock needs bounded observations whose first entry is from 0 to 1, not {space}")
        super().__init__(space, space.shape[0] + 2)
        low, high = (torch.from_numpy(edge.copy()) for edge in (space.low, space.high))
        self.register_buffer("centre", 0.5 * (low + high), persistent=False)
        self.register_buffer("deviation", (high - low) / math.sqrt(12.0), persistent=False)

    def forward(self, observations: Any) -> Any:
        """Features (B, D + 2) of observations (B, D)."""
        share = observations[:, :1].clamp(0.0, 1.0)
        times = [torch.log(part + RESOLUTION) + 1.0 for part in (share, 1.0 - share)]  # of mean 0 and deviation 1
        return torch.cat([(observations - self.centre) / self.deviation, *times], dim=1)
