"""Chebyshev interpolation in a few controls: what is smooth in them is known everywhere from a grid of nodes.

Of two controls, what is smooth has small coefficients of high total degree: the Padua points (Bos, Caliari, De Marchi,
Vianello & Xu 2006) give the polynomial of a total degree from half the nodes of a tensor grid, as stably.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

from mmgym.baselines.declared import kernels

__all__ = ["FIRST_DEGREE", "LEAST_DEGREE", "MOST_DEGREE", "Interpolation", "Skeleton"]

Array = NDArray[Any]

LEAST_DEGREE, FIRST_DEGREE, MOST_DEGREE = 2, 8, 32
RAISED, LOWERED = 2, 2  # by how much degrees change
LAST = 2  # coefficients that tell how well a degree does
SKETCHED = 160  # sums of heights, with random signs, that nodes are chosen by
SPARE = 0.05  # of the tolerance: the mean error at nodes that are left out


@functools.cache
def chebyshev_transform(degree: int) -> Array:
    """From values at the Chebyshev points ``cos(pi j / degree)`` to coefficients: (degree + 1, degree + 1)."""
    if degree == 0:
        return np.ones((1, 1))
    place = np.arange(degree + 1)
    transform = 2.0 / degree * np.cos(np.pi * np.outer(place, place) / degree)
    transform[:, [0, -1]] *= 0.5
    transform[[0, -1]] *= 0.5
    return transform


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
    coefficients = (share * (first[:, :, None] * second[:, None, :]).T).transpose(1, 0, 2)
    number = np.arange(degree + 1)
    coefficients[degree, 0] *= 0.5
    return points, np.ascontiguousarray(coefficients[np.add.outer(number, number) <= degree])


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
            points, self.transform = padua(int(self.degrees[0]))
            self.nodes = 0.5 * (low + high) + 0.5 * (high - low) * points
            self._orders = np.add.outer(np.arange(self.sizes[0]), np.arange(self.sizes[0]))
            return
        axes = [
            0.5 * (a + b) + 0.5 * (b - a) * (np.cos(np.pi * np.arange(size) / (size - 1)) if size > 1 else np.zeros(1))
            for a, b, size in zip(low, high, self.sizes, strict=True)
        ]
        self.nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))

    def alike(self, other: "Interpolation") -> bool:
        """Whether another grid has the same nodes."""
        return all(map(np.array_equal, (self.low, self.high, self.degrees), (other.low, other.high, other.degrees)))

    def basis(self, points: Array) -> Array:
        """Weights (M, G) of the nodes at points (M, B) of the box."""
        basis = self.along(points)
        return basis @ self.transform if self.total else basis

    def along(self, points: Array) -> Array:
        """As `basis`; where the degree is total of the polynomials (M, G), in the place of the nodes."""
        width = self.high - self.low
        places = np.divide(2.0 * (points - self.low), width, out=np.ones(points.shape), where=width > 0.0) - 1.0
        if self.total:
            products = np.empty((len(points), len(self.nodes)))
            kernels.total_products(places, self.sizes[0], products)
            return products
        products = np.ones((len(points), 1))
        for place, degree in zip(places.T, self.degrees.tolist(), strict=True):
            along = np.polynomial.chebyshev.chebvander(place, degree) @ chebyshev_transform(degree)
            products = (products[:, :, None] * along[:, None, :]).reshape(len(points), -1)
        return products

    def coefficients(self, heights: Array) -> Array:
        """Chebyshev coefficients (S, K, L) of two controls, or (S, K, 1) of one, from heights (G, S)."""
        if self.total:
            table = np.zeros((heights.shape[1], *self.sizes))
            table[:, self._orders < self.sizes[0]] = (self.transform @ heights).T
            return table
        coefficients = heights
        for j, degree in enumerate(self.degrees):
            coefficients = chebyshev_transform(int(degree)) @ self._along(j, coefficients)
        return np.ascontiguousarray(np.moveaxis(coefficients.reshape(self.sizes[0], -1, heights.shape[1]), -1, 0))

    def _along(self, j: int, heights: Array) -> Array:
        """Heights (G, ..) with the nodes of the ``j``-th control in the middle."""
        return heights.reshape(int(np.prod(self.sizes[:j])), self.sizes[j], -1)

    def excesses(self, heights: Array, tolerance: Array) -> Array:
        """The last coefficients of heights (G, ..) in every control over the tolerance (..), the largest: (B,)."""
        excess = np.zeros(len(self.sizes))
        if self.total:
            orders = self._orders[self._orders < self.sizes[0]]
            last = self.transform[orders > self.degrees[0] - LAST]
            return np.asarray(excess + (np.abs(np.tensordot(last, heights, 1)) / tolerance).max())
        for j, degree in enumerate(self.degrees):
            if degree > 0:
                last = chebyshev_transform(int(degree))[-LAST:] @ self._along(j, heights)
                excess[j] = (np.abs(last).reshape(-1, tolerance.size) / tolerance.ravel()).max()
        return excess

    def better(self, excesses: Array) -> Array | None:
        """Higher degrees where the last coefficients are beyond the tolerance; None where they are not."""
        if (excesses <= 1.0).all():
            return None
        steps = np.where(excesses > 1e4, 2 * RAISED, RAISED)
        return np.where(excesses > 1.0, self.degrees + steps, self.degrees)

    def enough(self, excesses: Array) -> Array:
        """Degrees that will do for what is a little different."""
        return np.where(excesses < 1e-2, np.maximum(self.degrees - LOWERED, LEAST_DEGREE), self.degrees)


class Skeleton:
    """The few nodes of a grid that tell what all others hold: an interpolative decomposition.

    What is interpolated is more alike in controls than polynomials are: it depends on them by a few intensities. Pivots
    of a QR factorisation choose the nodes (Cheng, Gimbutas, Martinsson & Rokhlin 2005), from sums of the heights with
    random signs (Halko, Martinsson & Tropp 2011).

    Parameters
    ----------
    grid : Interpolation
    heights : (G, N)
        Of what is alike, in units of the error that is tolerated in each of the ``N``.
    size, besides : int
        With ``besides`` other ones the nodes fill up groups of ``size``, unless more are wanted than are told apart.

    Attributes
    ----------
    nodes : (R, B)
        Those that tell the most first.
    errors : (R,)
        Mean error of the nodes from the ``k``-th on, as told by those before.
    """

    def __init__(self, grid: Interpolation, heights: Array, size: int, besides: int) -> None:
        self._grid, self.besides = grid, besides
        count, width = len(heights), -(-heights.shape[1] // SKETCHED)
        signed = np.zeros((count, width * SKETCHED))
        signed[:, : heights.shape[1]] = heights
        signed *= np.random.default_rng(0).choice([-1.0, 1.0], signed.shape[1])
        sketch = signed.reshape(count, width, SKETCHED).sum(axis=1)
        triangle, order = qr(sketch.T, mode="r", pivoting=True)
        errors = np.abs(np.diag(triangle)) / np.sqrt(heights.shape[1])
        wanted = -(-(int((errors > SPARE).sum()) + besides) // size) * size - besides
        self.errors = errors[:wanted]
        wanted = len(self.errors)
        self._triangle = triangle[:wanted]
        shares = np.zeros((count, besides + wanted))
        shares[order, besides:] = self.shares(wanted, slice(None)).T
        self.nodes = grid.nodes[order[:wanted]]
        self._weights = grid.transform @ shares if grid.total else shares

    def shares(self, known: int, wanted: slice) -> Array:
        """Weights (``known``, W) of the first nodes in the ``wanted`` ones."""
        return np.asarray(solve_triangular(self._triangle[:known, :known], self._triangle[:known, wanted]))

    def basis(self, points: Array) -> Array:
        """Weights (M, besides + R) of the nodes at points (M, B) of the box, and those 0 of the others before them."""
        return self._grid.along(points) @ self._weights
