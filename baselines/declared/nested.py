"""Sweeps at the few nodes that tell a grid, which among themselves tell one another the late terms of their series."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.declared import kernels
from mmgym.baselines.declared.interpolation import SPARE, Interpolation, Skeleton
from mmgym.baselines.declared.vectors import LANES, aligned
from mmgym.uniformisation import num_terms, poisson_weights

__all__ = ["NestedSweeps"]

Array = NDArray[Any]


class NestedSweeps:
    """One-step moments of all states at the nodes of a skeleton, and at points that they are held against.

    The terms of a series from the ``j``-th on are small in all: as many of the nodes less tell them to the same error.
    The points, and the nodes that tell the most, have all terms.

    Parameters
    ----------
    grid : Interpolation
    nodes : Skeleton
    points : (P, B)
    lanes : kernels.Lanes
        Of the points, then the nodes; changed in place.
    length : float
        Of a step.
    """

    def __init__(
        self, grid: Interpolation, nodes: Skeleton, points: Array, lanes: kernels.Lanes, length: float
    ) -> None:
        self.grid, self.nodes, self._lanes, self._length = grid, nodes, lanes, length
        self.memory = sum(part.nbytes for part in (lanes.jump, *lanes.sources, *lanes.extras))
        shift = float(lanes.shifts.max())  # one series of all
        share = (lanes.shifts / shift)[:, None, None, None]
        for part in (lanes.jump, *lanes.extras):
            part *= share
        lanes.jump[:, :, 0] += 1.0 - share[:, 0]
        for source in lanes.sources:
            source *= share[:, 0]
        lanes.shifts[:] = shift
        shape = lanes.sources[0].shape
        self._memory = [tuple(aligned(shape) for _ in lanes.sources) for _ in range(2)]
        tail = np.cumsum(poisson_weights(shift * length, num_terms(shift * length))[::-1])[::-1]
        groups = len(share)
        self._told = np.ascontiguousarray(nodes.basis(points).T).reshape(groups, LANES, -1)
        self._begins, self._shares = np.full(groups, len(tail)), np.zeros((groups, groups, LANES, LANES))
        for g in range(1, groups):
            known = g * LANES - len(points)
            self._begins[g] = min(self._begins[g - 1], int((tail * nodes.errors[known] > SPARE).sum()))
            shares = nodes.shares(known, slice(known, known + LANES))
            self._shares[g].reshape(-1, LANES)[len(points) : g * LANES, : shares.shape[1]] = shares

    def at(self, states: Array, controls: Array, values: Array) -> tuple[Array, Array, Array]:
        """Values (M, K) of states (M,) under controls (M, B); of all states at the points (P, S, K), and as told."""
        columns = kernels.sweep_nested(self._length, self._lanes, self._begins, self._shares, values, *self._memory)
        points = self._told.shape[2]
        exact = np.stack([column[0, :, :points].T for column in columns], axis=-1)
        told = np.stack([(column @ self._told).sum(axis=0).T for column in columns], axis=-1)
        result = np.empty((len(states), values.shape[1]))
        kernels.lanes_at(self.nodes.basis(controls), columns, states, result)
        return result, exact, told
