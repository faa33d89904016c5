"""Polynomials through Chebyshev's nodes (the Lobatto ones, with both ends) on ``[0, largest]``, in barycentric form.

Source: Berrut & Trefethen (2004), "Barycentric Lagrange interpolation", SIAM Review 46(3).
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["chebyshev_nodes", "interpolation_rows"]

Array = NDArray[np.float64]


def chebyshev_nodes(largest: float, count: int) -> tuple[Array, Array]:
    """Nodes (count,) in increasing order and their barycentric weights; a single node is 0."""
    k = np.arange(count)
    nodes = 0.5 * largest * (1.0 - np.cos(np.pi * k / max(count - 1, 1)))
    return nodes, np.where((k == 0) | (k == count - 1), 0.5, 1.0) * (-1.0) ** k


def interpolation_rows(nodes: Array, weights: Array, points: Array) -> Array:
    """Rows (B, K) that take a polynomial's values at the nodes (K,) to those at the points (B,)."""
    distance = points[:, None] - nodes
    hit = distance == 0.0
    rows = weights / np.where(hit, 1.0, distance)
    rows = np.where(hit.any(axis=1, keepdims=True), hit.astype(np.float64), rows)
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))
