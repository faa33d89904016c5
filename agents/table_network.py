"""A network in the place of a table of depths: it learns fill intensities, by their likelihood."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.agents.network import StandardisedNetwork

try:
    import torch
except ImportError as error:
    raise ImportError("training needs torch: pip install 'mmgym[agents]'") from error

__all__ = ["TableNetwork"]

Array = NDArray[np.float64]
BATCH = 2_048  # cells of a step of Adam, drawn by their weights; all where they are no more
RATE = 3e-3  # of the first step of a fit
EXPLORED = 0.1  # part of the weights that all cells have alike: somebody may come there


class TableNetwork:
    """A network that is fitted to one table of depths after another, each time from where it was.

    Its outputs are the logarithms of both fill intensities, ``log(l / A) = -k d``. What a fit minimises is what takers
    lose in log-likelihood of their fills who are thought to have the network's intensities ``l`` and have those ``m``
    of the table, ``sum l - m + m log(m / l)`` over cells: the mean of several tables' intensities has the least, as a
    mean of laws on finitely many actions has with their log-likelihood.

    Parameters
    ----------
    observations : (N, S, D)
        Of the cells of a table.
    decay : (2,)
        Of fill intensities by depth (1 / price).
    max_depth : float
        Depths are clipped to the box from its negative to it (price).
    net_arch : sequence of int
        Widths of the hidden layers.
    steps : int
        Of Adam in a fit, at a rate that falls to 0.
    seed : int
    """

    def __init__(
        self,
        observations: Array,
        decay: Array,
        max_depth: float,
        net_arch: Sequence[int] = (64, 64),
        steps: int = 1_000,
        seed: int = 0,
    ) -> None:
        torch.set_num_threads(1)  # steps are too small to share
        self.network = StandardisedNetwork(observations.shape[-1], 2, list(net_arch), seed, clock=True, single=True)
        self.network.standardise(observations.reshape(-1, observations.shape[-1]))
        self.network.calm()
        self.observations, self.decay, self.max_depth = observations, decay, max_depth
        self.steps, self._random = steps, np.random.default_rng([seed, 1])

    def __call__(self, depths: Array, laws: Array) -> Array:
        """Learn depths (N, S, 2), clipped to the box, of takers who are in the cells by laws (N, S); what it plays."""
        shape = laws.shape
        aims = (-self.decay * depths.clip(-self.max_depth, self.max_depth)).reshape(-1, 2)
        weights: Array = (1.0 - EXPLORED) * laws / laws.sum() + EXPLORED / laws.size
        until = weights.ravel().cumsum()
        few = weights.size <= BATCH
        inputs = self.network.inputs(self.observations.reshape(-1, self.observations.shape[-1]))
        targets = torch.from_numpy(aims).to(inputs.dtype)
        weight = torch.from_numpy(weights.reshape(-1, 1)).to(inputs.dtype) if few else 1.0 / BATCH
        optimizer: Any = torch.optim.Adam(self.network.network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        for _ in range(self.steps):
            drawn: Any = slice(None)
            if not few:
                drawn = np.searchsorted(until, self._random.random(BATCH) * until[-1]).clip(max=weights.size - 1)
            aim = targets[drawn]
            beyond = self.network.network(inputs[drawn]) - aim
            optimizer.zero_grad()
            (weight * aim.exp() * (beyond.exp() - 1.0 - beyond)).sum().backward()
            optimizer.step()
            schedule.step()
        played = -self.network.outputs(self.observations) / self.decay
        return np.asarray(played.reshape(*shape, 2).clip(-self.max_depth, self.max_depth))
