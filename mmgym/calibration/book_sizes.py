"""Sizes on a level-1 tape: the tick, the queues at the best prices, and the market orders that meet them.

Means with the intervals of 30 blocks of time (`mmgym.calibration.block_intervals`); queues are weighted by the time
that they stood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.block_intervals import BLOCKS, Estimate, block_sums, blocks_of, ratio_estimate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BookSizes:
    """Sizes in the unit of the tape; those of orders are of the aggressors that fill the side."""

    tick: float
    queue_bid: Estimate
    queue_ask: Estimate
    order_size_bid: Estimate
    order_size_ask: Estimate

    def estimates(self) -> dict[str, tuple[Estimate, str]]:
        """Those that the tape tells with their units, for a table; the tick has no error."""
        tick = Estimate(self.tick, 0.0, self.tick, self.tick)
        sizes = {name: getattr(self, name) for name in ("queue_bid", "queue_ask", "order_size_bid", "order_size_ask")}
        told = {name: (size, "size") for name, size in sizes.items() if math.isfinite(size.value)}
        return {"tick": (tick, "price")} | told


def book_sizes(quotes: Sequence[pd.DataFrame], bounds: ArrayLike, orders: pd.DataFrame, tick: float) -> BookSizes:
    """Measure sizes.

    Parameters
    ----------
    quotes : sequence of pandas.DataFrame
        `mmgym.tapes.level1.best_quotes` of each session.
    bounds : array_like, shape (sessions, 2)
        First and last time of each.
    orders : pandas.DataFrame
        `mmgym.tapes.level1.market_orders`.
    tick : float
    """
    bounds = np.asarray(bounds, dtype=float)
    starts = np.concatenate([[0.0], np.diff(bounds, axis=1)[:, 0].cumsum()])
    held, place, queues = [], [], []
    sizes = {side: np.zeros(BLOCKS) for side in ("buy", "sell")}
    counts = {side: np.zeros(BLOCKS) for side in ("buy", "sell")}
    for own, (start, end), before in zip(quotes, bounds, starts[:-1], strict=True):
        time = np.clip(own["time_s"].to_numpy(dtype=float), start, end)
        held.append(np.diff(time, append=end))
        place.append(before + time - start)
        queues.append(own[["bid_size", "ask_size"]].to_numpy(dtype=float))
        for side in sizes:
            here = orders[(orders["side"] == side) & orders["time_s"].between(start, end)]
            block = blocks_of(before + here["time_s"] - start, 0.0, starts[-1])
            sizes[side] += block_sums(block, here["size"])
            counts[side] += np.bincount(block, minlength=BLOCKS)
    block = blocks_of(np.concatenate(place), 0.0, starts[-1])
    seconds, queue = np.concatenate(held), np.concatenate(queues)
    time_in = block_sums(block, seconds)
    bid, ask = (ratio_estimate(block_sums(block, queue[:, column] * seconds), time_in) for column in range(2))
    selling, buying = (ratio_estimate(sizes[side], counts[side]) for side in ("sell", "buy"))
    return BookSizes(tick, bid, ask, selling, buying)
