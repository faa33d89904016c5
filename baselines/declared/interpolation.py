"""Chebyshev interpolation in a few controls: what is smooth in them is known everywhere from a grid of nodes.

Of two controls, what is smooth has small coefficients of high total degree: the Padua points (Bos, Caliari, De Marchi,
Vianello & Xu 2006) give the polynomial of a total degree from half the nodes of a tensor grid, as stably.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST_DEGREE", "LEAST_DEGREE", "MOST_DEGREE", "Interpolation"]

Array = NDArray[Any]

LEAST_DEGREE, FIRST_DEGREE, MOST_DEGREE = 2, 8, 32
RAISED, LOWERED = 2, 2  # by how much degrees change
LAST = 2  # coefficients that tell how well a degree does


@functools.cache
def chebyshev_transform(degree: int) -> Array:
    """From values at the Chebyshev points ``cos(pi j / degree)`` to coefficients: (degree + 1, degree + 1)."""
    if degree == 0:
        return np.ones((1, 1))
    place = np.arange(degree + 1)
    found = 2.0 / degree * np.cos(np.pi * np.outer(place, place) / degree)
    found[:, [0, -1]] *= 0.5
    found[[0, -1]] *= 0.5
    return found


@functools.cache
def padua(degree: int) -> tuple[Array, Array]:
    """The Padua points (G, 2) in [-1, 1]^2 of a total degree, and from values there to its coefficients (G, G).

    The coefficients are those of ``T_k T_l``, ``k + l`` up to the degree, the last index first.
    """
    j, k = np.nonzero(np.add.outer(np.arange(degree + 1), np.arange(degree + 2)) % 2 == 0)
    points = np.cos(np.pi * np.stack([j / degree, k / (degree + 1)], axis=1))
    ends = (np.isin(j, [0, degree])).astype(int) + np.isin(k, [0, degree + 1])
    share = np.array([2.0, 1.0, 0.5])[ends] / (degree * (degree + 1))
    norm = np.where(np.arange(degree + 1) > 0, 2.0, 1.0)
    first, second = (norm * np.polynomial.chebyshev.chebvander(column, degree) for column in points.T)
    found = (share * (first[:, :, None] * second[:, None, :]).T).transpose(1, 0, 2)
    number = np.arange(degree + 1)
    found[degree, 0] *= 0.5
    return points, np.ascontiguousarray(found[np.add.outer(number, number) <= degree])


def num_nodes(degrees: Array) -> int:
    """How many nodes an interpolation of these degrees (B,) has; 0 of a control that is constant."""
    tensor = int(np.prod(degrees + 1.0))
    highest = int(degrees.max(initial=0))
    return min(tensor, (highest + 1) * (highest + 2) // 2) if len(degrees) == 2 and degrees.min() > 0 else tensor


class Interpolation:
    """A grid of Chebyshev points on a box: a tensor grid, or Padua points where these are fewer.

    Parameters
    ----------
    low, high : (B,)
        The box; where both are equal one node is enough.
    degrees : (B,) int
        Of the polynomials in each control.

    Attributes
    ----------
    nodes : (G, B)
    sizes : tuple of int
        Number of coefficients in each control; of a tensor grid that of nodes too, and the last control runs first.
    """

    def __init__(self, low: Array, high: Array, degrees: Array) -> None:
        self.low, self.high = low, high
        self.degrees = np.where(high > low, degrees, 0)
        self.total = num_nodes(self.degrees) < int(np.prod(self.degrees + 1.0))
        if self.total:
            self.degrees = np.full(2, self.degrees.max())
        self.sizes = tuple(int(degree) + 1 for degree in self.degrees)
        if self.total:
            points, self._transform = padua(int(self.degrees[0]))
            self.nodes = 0.5 * (low + high) + 0.5 * (high - low) * points
            self._orders = np.add.outer(np.arange(self.sizes[0]), np.arange(self.sizes[0]))
            return
        axes = [
            0.5 * (a + b) + 0.5 * (b - a) * (np.cos(np.pi * np.arange(size) / (size - 1)) if size > 1 else np.zeros(1))
            for a, b, size in zip(low, high, self.sizes, strict=True)
        ]
        self.nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))

    def basis(self, points: Array) -> Array:
        """Weights (M, G) of the nodes at points (M, B) of the box."""
        found = np.ones((len(points), 1))
        for j, degree in enumerate(self.degrees):
            width = self.high[j] - self.low[j]
            place = 2.0 * (points[:, j] - self.low[j]) / width - 1.0 if width > 0.0 else np.zeros(len(points))
            along = np.polynomial.chebyshev.chebvander(place, int(degree))
            if not self.total:
                along = along @ chebyshev_transform(int(degree))
            found = (found[:, :, None] * along[:, None, :]).reshape(len(points), -1)
        return np.asarray(found[:, self._orders.ravel() < self.sizes[0]] @ self._transform) if self.total else found

    def coefficients(self, heights: Array) -> Array:
        """Chebyshev coefficients (S, K, L) of two controls, or (S, K, 1) of one, from heights (G, S)."""
        if self.total:
            table = np.zeros((heights.shape[1], *self.sizes))
            table[:, self._orders < self.sizes[0]] = (self._transform @ heights).T
            return table
        found = heights
        for j, degree in enumerate(self.degrees):
            found = chebyshev_transform(int(degree)) @ self._along(j, found)
        return np.ascontiguousarray(np.moveaxis(found.reshape(self.sizes[0], -1, heights.shape[1]), -1, 0))

    def _along(self, j: int, heights: Array) -> Array:
        """Heights (G, ..) with the nodes of the ``j``-th control in the middle."""
        return heights.reshape(int(np.prod(self.sizes[:j])), self.sizes[j], -1)

    def excesses(self, heights: Array, tolerance: Array) -> Array:
        """The last coefficients of heights (G, ..) in every control over the tolerance (..), the largest: (B,)."""
        found = np.zeros(len(self.sizes))
        if self.total:
            orders = self._orders[self._orders < self.sizes[0]]
            last = self._transform[orders > self.degrees[0] - LAST]
            return np.asarray(found + (np.abs(np.tensordot(last, heights, 1)) / tolerance).max())
        for j, degree in enumerate(self.degrees):
            if degree > 0:
                last = chebyshev_transform(int(degree))[-LAST:] @ self._along(j, heights)
                found[j] = (np.abs(last).reshape(-1, tolerance.size) / tolerance.ravel()).max()
        return found

    def better(self, excesses: Array) -> Array | None:
        """Higher degrees where the last coefficients are beyond the tolerance; None where they are not."""
        if (excesses <= 1.0).all():
            return None
        steps = np.where(excesses > 1e4, 2 * RAISED, RAISED)
        return np.where(excesses > 1.0, self.degrees + steps, self.degrees)

    def enough(self, excesses: Array) -> Array:
        """Degrees that will do for what is a little different."""
        return np.where(excesses < 1e-2, np.maximum(self.degrees - LOWERED, LEAST_DEGREE), self.degrees)
