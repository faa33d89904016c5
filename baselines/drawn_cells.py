"""Which (step, state) cells an expansion or a choice is made on: a part of them, drawn so that sums stay unbiased."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["sampled", "time_slices"]

Array = NDArray[Any]

SLICES = 40  # steps that are drawn, one in each slice of time
LATER = 1.3  # slices are shorter towards the horizon: their ends are N (1 - (1 - x)^LATER)


def sampled(importance: Array, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """About ``count`` indices, drawn without replacement in proportion to an importance, and the inverse chances."""
    if count >= len(importance):
        return np.arange(len(importance)), np.ones(len(importance))
    chance = importance / importance.sum()
    for _ in range(5):  # a chance is at most 1
        chance = np.minimum(chance * (count / chance.sum()), 1.0)
    drawn = np.flatnonzero(random.random(len(chance)) < chance)
    return drawn, 1.0 / chance[drawn]


def time_slices(count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """One of ``count`` steps drawn from each slice of time, and the lengths of the slices in steps."""
    ends = 1.0 - (1.0 - np.linspace(0.0, 1.0, SLICES + 1)) ** LATER
    ends = np.unique(np.ceil(count * ends - 1e-9).astype(np.int64))
    lengths = np.diff(ends)
    return ends[:-1] + (random.random(len(lengths)) * lengths).astype(np.int64), lengths
