"""Order books of price levels, rebuilt from their changes, down to the best quotes."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field


@dataclass
class _Side:
    """Sizes by price, and a heap of all prices since the book was cleared; ``sign`` is -1 for bids, 1 for asks."""

    sign: int
    sizes: dict[float, float] = field(default_factory=dict)
    heap: list[float] = field(default_factory=list)

    def set(self, price: float, size: float) -> None:
        if size > 0:
            if price not in self.sizes:
                heapq.heappush(self.heap, self.sign * price)
            self.sizes[price] = size
        else:
            self.sizes.pop(price, None)

    def best(self) -> tuple[float, float]:
        """The best price and its size, NaN where the side is empty."""
        while self.heap:
            price = self.sign * self.heap[0]
            if price in self.sizes:
                return price, self.sizes[price]
            heapq.heappop(self.heap)
        return math.nan, math.nan

    def clear(self) -> None:
        self.sizes.clear()
        self.heap.clear()


@dataclass
class LevelBook:
    """A book of price levels. A change costs a logarithm of the number of levels, the best quotes hardly anything."""

    bids: _Side = field(default_factory=lambda: _Side(-1))
    asks: _Side = field(default_factory=lambda: _Side(1))

    def set(self, bid: bool, price: float, size: float) -> None:
        """The size at a price; 0 removes the level."""
        (self.bids if bid else self.asks).set(price, size)

    def add(self, bid: bool, price: float, size: float) -> None:
        """Add to the size at a price, or take off it."""
        side = self.bids if bid else self.asks
        total = side.sizes.get(price, 0.0) + size
        side.set(price, total if total > 1e-9 * abs(size) else 0.0)

    def remove_better(self, bid: bool, price: float) -> None:
        """Remove the levels of a side that are better than a price."""
        side = self.bids if bid else self.asks
        while side.sign * side.best()[0] < side.sign * price:
            side.set(side.best()[0], 0.0)

    def clear(self) -> None:
        """Remove all levels."""
        self.bids.clear()
        self.asks.clear()

    def best(self) -> tuple[float, float, float, float]:
        """Best bid and its size, best ask and its size; NaN where a side is empty."""
        return *self.bids.best(), *self.asks.best()
