"""Quadrature of Gaussian actions in a box: how a policy with such a head acts, without sampling."""

import functools
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = ["clipped_gaussian_nodes", "hurdle_nodes"]


def _between(mean: Array, std: Array, low: float, high: float, nodes: int) -> tuple[Array, Array]:
    """Nodes and weights (B, nodes) of a Gaussian truncated to its interval; where it has no mass there, they are 0."""
    reach = 8.0 * std
    left, right = np.clip(mean - reach, low, high), np.clip(mean + reach, low, high)
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * (right - left)[:, None]
    inside = 0.5 * (right + left)[:, None] + half * x
    z = (inside - mean[:, None]) / std[:, None]
    mass = half * w * np.exp(-0.5 * z * z) / (np.sqrt(2.0 * np.pi) * std[:, None])
    total = mass.sum(axis=1, keepdims=True)
    return inside, np.divide(mass, total, out=np.zeros_like(mass), where=total > 0.0)


def _with_atoms(inside: Array, mass: Array, low: float, high: float, below: Array, above: Array) -> tuple[Array, Array]:
    """Nodes and weights (B, nodes + 2): atoms at the bounds, and what is between, with the rest of the mass."""
    edge = np.ones((len(inside), 1))
    mass = mass * np.maximum(1.0 - below - above, 0.0)[:, None]
    points = np.concatenate([low * edge, inside, high * edge], axis=1)
    return points, np.concatenate([below[:, None], mass, above[:, None]], axis=1)


def _product(sides: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Nodes (B, M, A) and weights (B, M) of independent components, each with its own (B, m)."""
    grids = np.meshgrid(*[np.arange(side[0].shape[1]) for side in sides], indexing="ij")
    index = [grid.ravel() for grid in grids]
    points = np.stack([side[0][:, i] for side, i in zip(sides, index, strict=True)], axis=-1)
    return points, functools.reduce(np.multiply, [side[1][:, i] for side, i in zip(sides, index, strict=True)])


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
    sides = []
    for m, s, bottom, top in zip(mean.T, std.T, np.ravel(low).astype(float), np.ravel(high).astype(float), strict=True):
        below, above = scipy.special.ndtr((bottom - m) / s), scipy.special.ndtr((m - top) / s)
        sides.append(_with_atoms(*_between(m, s, bottom, top, nodes), bottom, top, below, above))
    return _product(sides)


def hurdle_nodes(gate: Any, mean: Any, std: Any, low: Any, high: Any, nodes: int = 16) -> tuple[Array, Array]:
    """Quadrature of independent actions that are at the lower bound, or else Gaussian and truncated to the interval.

    Parameters
    ----------
    gate : (B, A)
        Probabilities of the lower bound.
    mean, std : (B, A)
        Of the Gaussian before it is truncated; the mean within the bounds, ``std > 0``.
    low, high, nodes
        As in `clipped_gaussian_nodes`.

    Returns
    -------
    points, weights : (B, M, A), (B, M)
        ``M = (nodes + 2)^A``; the weights of a row add up to 1.
    """
    gate, mean, std = (np.atleast_2d(np.asarray(part, float)) for part in (gate, mean, std))
    sides = []
    for p, m, s, bottom, top in zip(gate.T, mean.T, std.T, np.ravel(low), np.ravel(high), strict=True):
        inside = _between(m, s, float(bottom), float(top), nodes)
        sides.append(_with_atoms(*inside, float(bottom), float(top), p, np.zeros_like(p)))
    return _product(sides)
