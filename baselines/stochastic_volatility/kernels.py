"""Numba kernel of the frozen-quote step under stochastic volatility and CARA."""

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL

__all__ = ["tilted_step"]

LONGEST = 12.0  # norm of a piece of the step; its terms stay small, as values are nearly polynomials of low degree
SMALLEST = 1e-16  # of a term of its series, relative
MOST_TERMS = 60


@njit(**KERNEL)
def tilted_step(step, lots, rows, rates, factors, blocks, norms, values, result):
    """``E[exp(-gamma gain) w]`` over one step by Taylor series of ``exp(h A)``, in pieces of moderate norm.

    ``A`` is a block of the variance for each inventory, and fills between neighbouring inventories.

    Parameters
    ----------
    step : float
        Length of the step.
    lots : (M,) int
        Index of the inventory (0 is the lower bound) at the start of the step.
    rows : (M, K)
        Weights of the variance's nodes at the start of the step.
    rates, factors : (M, 2)
        Intensities of bid and ask fills while active, and ``exp(-gamma gain)`` of a fill.
    blocks : (S, K, K)
        Generator of the variance, tilted, and growth rate by inventory.
    norms : (S,)
        Bounds of the norms of the blocks.
    values : (S, K)
        ``w`` at the end of the step.
    result : (M,)
    """
    count, nodes = values.shape
    here, term, fresh = np.empty((count, nodes)), np.empty((count, nodes)), np.empty((count, nodes))
    largest_block = norms.max()
    for m in range(lots.shape[0]):
        up, down = rates[m, 0], rates[m, 1]
        gain_up, gain_down = up * factors[m, 0], down * factors[m, 1]
        norm = step * (largest_block + up + down + gain_up + gain_down)
        pieces = max(1, int(np.ceil(norm / LONGEST)))
        length = step / pieces
        here[:] = values
        for _ in range(pieces):
            term[:] = here
            size = np.abs(here).max()
            for j in range(1, MOST_TERMS):
                scale, largest = length / j, 0.0
                for q in range(count):
                    loss = (up if q < count - 1 else 0.0) + (down if q > 0 else 0.0)
                    for k in range(nodes):
                        total = -loss * term[q, k]
                        for i in range(nodes):
                            total += blocks[q, k, i] * term[q, i]
                        if q < count - 1:
                            total += gain_up * term[q + 1, k]
                        if q > 0:
                            total += gain_down * term[q - 1, k]
                        total *= scale
                        fresh[q, k] = total
                        largest = max(largest, abs(total))
                term, fresh = fresh, term
                here += term
                if largest < SMALLEST * size:
                    break
        total = 0.0
        for k in range(nodes):
            total += rows[m, k] * here[lots[m], k]
        result[m] = total
