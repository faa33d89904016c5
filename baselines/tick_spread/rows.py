"""One step of the tick-spread market from single states under single postings, found once and kept.

A policy plays one posting in each state, and mostly the same one at many steps; a row has what that state needs of it:
the law of the state at the end of the step, and what functionals gain meanwhile. With ``G`` the gain of a functional in
the step and ``f``, ``o`` the first and second moment of what remains, values are ``E[f] + E[G]`` and ``E[o] +
E[2 G f] + E[G^2]``: entries of a row are probabilities and expectations of ``2 G`` on each state at the end.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.tick_spread import kernels

__all__ = ["Gains", "PostingRows"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_ENTRIES = 2**25  # of all rows that are kept: beyond, they are found again
BLOCK = 4096  # rows that are looked up at once


class Gains(NamedTuple):
    """What K functionals gain in a step."""

    edges: Array  # (K, 2, m), by a filled lot
    fills: Array  # (K,), by a fill whatever its size
    drift: Array  # (K, Y), per second
    variance: Array  # (K, Y), of the Brownian part per second
    second: Integers  # those whose second moments are wanted
    exponent: float = 0.0  # z: the row is E[exp(z G); state at the end] of the only functional, if it is not 0


class PostingRows:
    """Rows of one kind of step: clock, market and functionals.

    Parameters
    ----------
    market : tuple
        Steps (P, 2), transitions (m, m), bid and ask rates (2, m): as `kernels.moments_of_postings` takes them.
    gains : Gains
    size_max : int
    """

    def __init__(self, market: tuple[Array, Array, Array, Array], gains: Gains, size_max: int) -> None:
        self.market, self.gains = market, gains
        self.radix = (2, 2, size_max + 1, size_max + 1, len(market[1]) * gains.drift.shape[1])
        self.forget()

    def forget(self) -> None:
        """Drop all rows."""
        self.codes: Integers = np.empty(0, dtype=np.int64)  # of posting and state, ascending
        self.numbers: Integers = np.empty(0, dtype=np.int64)  # of their rows
        self.wanted: Integers = np.empty(0, dtype=np.int64)  # codes that were asked for last and have no row
        self.used = 0  # entries; arrays are longer
        self.offsets: Integers = np.zeros(1, dtype=np.int64)
        self.states = np.empty(0, dtype=np.int32)
        self.law: Array = np.empty(0)
        self.cross: Array = np.empty((0, len(self.gains.second)))
        self.first: Array = np.empty((0, 0 if self.gains.exponent else len(self.gains.fills)))
        self.square: Array = np.empty((0, len(self.gains.second)))

    def coded(self, postings: Integers, landed: Integers) -> Integers:
        """A number (M,) for each posting (M, 4) and state (M,)."""
        return np.asarray(np.ravel_multi_index((*postings.T, landed), self.radix))

    def missing(self, codes: Integers) -> Integers:
        """Those of the codes, once each and ascending, that have no row."""
        if not len(self.codes):
            return np.unique(codes)
        nearest = self.codes[np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)]
        return np.unique(codes[nearest != codes])

    def are_worth(self, codes: Integers, others: float, steps: int) -> bool:
        """Whether to find the rows that are missing, where a step takes as long as so many ``others`` without them.

        They are if they are fewer, or mostly asked for the second time and likely to be in all of so many ``steps``.
        """
        missing = self.missing(codes)
        again = 2 * np.isin(missing, self.wanted).sum() > len(missing)
        worth = bool(len(missing) <= others or (again and len(missing) <= others * steps))
        if not worth:
            self.wanted = missing
        return worth

    def values(self, codes: Integers, values: Array) -> Array:
        """Values (M, columns) at the start of the step, from those at its end (S, columns).

        Columns are the first moments of all functionals, then the second moments of those that have them.
        """
        result = np.empty((len(codes), values.shape[1]))
        values = np.ascontiguousarray(values)
        for low in range(0, len(codes), BLOCK):
            part = codes[low : low + BLOCK]
            if self.used > MOST_ENTRIES:
                self.forget()
            self._add(self.missing(part))
            rows = self.numbers[np.searchsorted(self.codes, part)]
            kept = (self.offsets, self.states, self.law, self.cross, self.first, self.square, self.gains.second)
            kernels.apply_rows(rows, *kept, values, result[low : low + BLOCK])
        return result

    def _add(self, codes: Integers) -> None:
        if not len(codes):
            return
        *posting, landed = np.unravel_index(codes, self.radix)
        postings = np.stack(posting, axis=1)
        start, end = len(self.codes), len(self.codes) + len(codes)
        self.offsets, self.first, self.square = (
            _longer(array, end + 1) for array in (self.offsets, self.first, self.square)
        )
        while start < end:
            size = self.used + max(self.radix[-1], 64 * (end - start))  # of one row at least
            self.states, self.law, self.cross = (_longer(array, size) for array in (self.states, self.law, self.cross))
            entries = (array[self.used :] for array in (self.states, self.law, self.cross))
            sums = (array[start:end] for array in (self.first, self.square))
            pairs = (postings[start - end :], landed[start - end :])
            ends = self.offsets[start + 1 : end + 1]
            count = kernels.rows_of_postings(*self.market, *self.gains, *pairs, ends, *entries, *sums)
            ends[:count] += self.used
            self.used = int(ends[count - 1])
            start += count
        numbers = np.arange(len(self.codes), end)
        order = np.argsort(np.append(self.codes, codes), kind="stable")
        self.codes, self.numbers = np.append(self.codes, codes)[order], np.append(self.numbers, numbers)[order]


def _longer(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array, continued by zeros if it is shorter than ``size``."""
    if len(array) >= size:
        return array
    longer = np.zeros((max(size, 2 * len(array)), *array.shape[1:]), dtype=array.dtype)
    longer[: len(array)] = array
    return longer
