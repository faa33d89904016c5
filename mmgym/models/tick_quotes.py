r"""Quotes in whole ticks: `mmgym/FillCurves-v0` with depths that are multiples of a tick.

All is as there - fill curves, fees on what is traded and on a fill, penalties, utilities - but a quote is at the depth
``d = i h``, with the tick ``h`` and a whole number ``i`` between `min_depth` and `max_depth`. Prices of orders are in
ticks on every exchange; here the mid is not, so that ticks are counted from it. A decision is two whole numbers, and
the optimum is the best of all pairs in every cell: at most that of `mmgym/FillCurves-v0`, near it if ``h`` is small.

Policies: "constant", the best depth of one fill, the maximum of ``f(k d) (d - c)`` over ticks; "rounded", the
continuous-time optimum of quotes between ticks, each moved to the nearest tick.

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmgym import declare
from mmgym.arguments import TINY, together
from mmgym.models import fill_curves, quoting
from mmgym.models.quoting import continuous_depths
from mmgym.parameters import Real

MOST_TICKS = 300  # between the first depth and the last


class Params(
    fill_curves.Fees,
    quoting.parameters(**fill_curves.FEES, tick=Annotated[float, Real(0.1, TINY, 1e6, "price", "h")]),
):
    """Parameters of the market."""

    def completed(self, given: Mapping[str, Any]) -> Any:
        """As `mmgym.models.quoting` has it, with at least two ticks in the range of depths and at most 301."""
        p = super().completed(given)
        made = () if None not in (given["min_depth"], given["max_depth"]) else ("fill_decay",)  # of the range
        words = {name: getattr(p, name) for name in ("tick", "min_depth", "max_depth", *made)}
        if not 1 <= (p.max_depth - p.min_depth) / p.tick <= MOST_TICKS or p.highest == p.lowest:
            raise together(words, f"from min_depth to max_depth there must be 2 to {MOST_TICKS + 1} whole ticks")
        return p

    @property
    def lowest(self) -> int:
        """The lowest depth in ticks; one that a rounding error puts below `min_depth` counts as at it."""
        ticks: int = math.ceil(self.min_depth / self.tick - 1e-9)
        return ticks

    @property
    def highest(self) -> int:
        """The highest depth in ticks."""
        ticks: int = math.floor(self.max_depth / self.tick + 1e-9)
        return ticks


def fills(side, sign, j):
    """Fills of one side: its depth in ticks is the ``j``-th control."""
    return declare.Event(
        side,
        intensity=lambda p, u: quoting.intensity(p, p.tick * u[j]),
        effect=lambda x: x.inventory + sign,
        payoff=lambda p, u: p.order_size * (p.tick * u[j] - p.fee) - p.fixed_fee,
        when=lambda p, x: abs(x.inventory + sign) <= p.limit,
        counts=side,
    )


def constant(p, x, n):
    """The best depth of one fill, in ticks."""
    ticks = np.arange(p.lowest, p.highest + 1)
    earned = [quoting.intensity(p, p.tick * d) * (p.tick * d - p.cost) for d in ticks]
    return np.full(2, ticks[np.argmax(earned)])


def rounded(p, x, n):
    """The continuous-time optimum between ticks, to the nearest tick."""
    between = fill_curves.Params(**{name: getattr(p, name) for name in fill_curves.Params._fields})
    depths = continuous_depths(fill_curves.MARKET, between)[n]
    return np.clip(np.rint(depths / p.tick), p.lowest, p.highest)


def depth(name):
    """The control of a quote."""
    return declare.Choice(name, lambda p: p.lowest, lambda p: p.highest)


MARKET: declare.Market = declare.Market(
    name="tick_quotes",
    title="Market making with quotes in whole ticks (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[quoting.inventory()],
    controls=[depth("bid_ticks"), depth("ask_ticks")],
    events=[fills("bid", 1, 0), fills("ask", -1, 1)],
    start=lambda p: (p.start,),
    **quoting.INVENTORY,
    policies={"constant": constant, "rounded": rounded},
    papers=("rounded",),
    description=__doc__,
    references="- Guéant, O. (2017). Optimal market making. Applied Mathematical Finance 24(2).",
)
