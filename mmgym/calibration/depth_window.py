"""The depths at which an exponential law of fill rates holds: a rule for the window of a fit.

From the touch (the median half-spread) on, tick by tick, up to 20 ticks beyond, as long as 100 orders of each side get
there: for each such smallest depth all depths beyond it, and then windows of 60, 40, 25, 15, 10 and 5 ticks, are tried.
The first window is taken in which the law is rejected on neither side (the chi-square test of
`mmgym.calibration.exponential`, 1 % for both sides together, with a degree of freedom at least): the one nearest to the
mid, and the widest there. Where there is none, the fit is that of all depths, and is rejected.

The law then speaks of quotes inside the window. On a market of one tick most orders stop at the best price, so that the
rate at the touch lies above the law of the depths beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mmgym.calibration.exponential import ExponentialFit
from mmgym.calibration.report import REJECTION

WIDTHS = (None, 60, 40, 25, 15, 10, 5)  # ticks; None for all depths
FARTHEST = 20  # ticks from the touch to the smallest depth
FEWEST_ORDERS = 100

Fit = Callable[[float, float | None], list[ExponentialFit]]


def choose_window(
    fit: Fit, touch: float, tick: float, minimum_depth: float | None, maximum_depth: float | None
) -> tuple[float, float | None]:
    """Smallest and largest depth by the rule; what is given stays.

    Parameters
    ----------
    fit : callable
        ``fit(minimum_depth, maximum_depth)`` returns the fits of both sides, or raises ValueError where they cannot be
        told.
    touch, tick : float
        Median half-spread, and the grid of depths.
    minimum_depth, maximum_depth : float or None
        As asked for.

    Returns
    -------
    tuple
        ``(touch, None)``, or what was asked for, where no window passes.
    """
    for low, high in _windows(touch, tick, minimum_depth, maximum_depth):
        try:
            sides = fit(low, high)
        except ValueError:
            continue
        if min(side.fills for side in sides) < FEWEST_ORDERS:
            continue
        if all(side.degrees_of_freedom and side.p_value >= REJECTION / len(sides) for side in sides):
            return low, high
    return touch if minimum_depth is None else minimum_depth, maximum_depth


def _windows(
    touch: float, tick: float, minimum_depth: float | None, maximum_depth: float | None
) -> Iterator[tuple[float, float | None]]:
    """Windows in the order in which they are tried."""
    steps = range(FARTHEST + 1 if minimum_depth is None else 1)
    start = touch if minimum_depth is None else minimum_depth
    for step in steps:
        low = float(f"{start + step * tick:.10g}")
        if maximum_depth is not None:
            yield low, maximum_depth
            continue
        for width in WIDTHS:
            yield low, None if width is None else float(f"{low + width * tick:.10g}")
