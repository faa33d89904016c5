"""Quadrature of clipped Gaussian actions: how a policy with a diagonal Gaussian head acts, without sampling."""

import functools
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = ["clipped_gaussian_nodes"]


def _one_dimension(mean: Array, std: Array, low: float, high: float, nodes: int) -> tuple[Array, Array]:
    """Nodes and weights (B, nodes + 2) of ``clip(N(mean, std^2), low, high)``: two atoms, and the density between."""
    reach = 8.0 * std
    left, right = np.clip(mean - reach, low, high), np.clip(mean + reach, low, high)
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * (right - left)[:, None]
    inside = 0.5 * (right + left)[:, None] + half * x
    z = (inside - mean[:, None]) / std[:, None]
    mass = half * w * np.exp(-0.5 * z * z) / (np.sqrt(2.0 * np.pi) * std[:, None])
    below, above = scipy.special.ndtr((low - mean) / std), scipy.special.ndtr((mean - high) / std)
    between = np.maximum(1.0 - below - above, 0.0)[:, None]
    total = mass.sum(axis=1, keepdims=True)
    mass = np.divide(mass * between, total, out=np.zeros_like(mass), where=total > 0.0)
    edge = np.ones((len(mean), 1))
    points = np.concatenate([low * edge, inside, high * edge], axis=1)
    return points, np.concatenate([below[:, None], mass, above[:, None]], axis=1)


def clipped_gaussian_nodes(mean: Any, std: Any, low: Any, high: Any, nodes: int = 16) -> tuple[Array, Array]:
    """Quadrature of independent Gaussian actions, each clipped to its interval.

    Parameters
    ----------
    mean, std : (B, A)
        Before clipping; ``std > 0``.
    low, high : (A,)
        Bounds of the action box.
    nodes : int
        Gauss-Legendre nodes between the bounds, per dimension.

    Returns
    -------
    points, weights : (B, M, A), (B, M)
        ``M = (nodes + 2)^A``; the weights of a row add up to 1.
    """
    mean, std = np.atleast_2d(np.asarray(mean, float)), np.atleast_2d(np.asarray(std, float))
    sides = [
        _one_dimension(mean[:, i], std[:, i], float(np.ravel(low)[i]), float(np.ravel(high)[i]), nodes)
        for i in range(mean.shape[1])
    ]
    grids = np.meshgrid(*[np.arange(nodes + 2)] * mean.shape[1], indexing="ij")
    index = [grid.ravel() for grid in grids]
    points = np.stack([side[0][:, i] for side, i in zip(sides, index, strict=True)], axis=-1)
    weights = functools.reduce(np.multiply, [side[1][:, i] for side, i in zip(sides, index, strict=True)])
    return points, weights
