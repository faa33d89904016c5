"""The clock of a record: the step of its time stamps, and the events that share one because it is too wide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from mmgym.tapes.findings import Finding

FEWEST_STAMPS = 30  # before a grid of time stamps is looked for
LARGEST_BIAS, SMALLEST_BIAS = 0.05, 0.005  # of a rate, by events that share a stamp: refused, warned of


def clock_grid(gaps: ArrayLike, largest: float) -> float:
    """Step of the clock: the largest of which all differences between time stamps are multiples; 0 where there is none.

    Parameters
    ----------
    gaps : array_like, shape (n,)
        Differences of time stamps.
    largest : float
        Largest time stamp, which says how exact the differences are.
    """
    gaps = np.asarray(gaps, dtype=float)
    gaps = gaps[gaps > 0]
    if gaps.size < FEWEST_STAMPS:
        return 0.0
    rounding = 8 * np.finfo(float).eps * max(abs(largest), 1.0)
    for step in sorted({float(gaps.min()), *(10.0**k for k in range(-6, 10)), 60.0, 3600.0}, reverse=True):
        tolerance = 1e-3 + rounding / step
        if step > gaps.min() * (1 + tolerance) or tolerance > 0.05:
            continue
        for part in (gaps[:100], gaps):
            if (np.abs(part / step - np.rint(part / step)) > tolerance).any():
                break
        else:
            return step
    return 0.0


def shared_stamps(count: int, seconds: float, step: float) -> float:
    """Share of Poisson events that fall on the stamp of another and are not seen, on a clock of this step."""
    if step == 0 or count == 0:
        return 0.0
    occupied = count * step / seconds
    return 1.0 if occupied >= 1 else 1 - occupied / -math.log1p(-occupied)


def coarse_clock(
    name: str, what: str, count: int, seconds: float, step: float, parameters: tuple[str, ...]
) -> tuple[float, Finding | None]:
    """Share of events that a coarse clock hides, 0 where it does no harm, and the finding.

    Raises
    ------
    ValueError
        If no right number can be given.
    """
    hidden = shared_stamps(count, seconds, step)
    noise = 1 / math.sqrt(max(count, 1))
    if hidden > LARGEST_BIAS and hidden > noise:
        raise ValueError(
            f"{name}: coarse clock: time stamps are multiples of {step:g} s, on which about {100 * hidden:.0f} % or "
            f"more of the {what} ({count} stamps in {seconds:.6g} s) share a stamp with another and are lost; no right "
            f"number can be given, a clock of {2 * SMALLEST_BIAS * seconds / count:.1g} s or finer is needed"
        )
    if hidden > SMALLEST_BIAS and hidden > noise / 4:
        return hidden, Finding(
            "coarse_clock",
            f"time stamps are multiples of {step:g} s, on which about {100 * hidden:.2g} % of the {what} share a stamp "
            "with another: the rate is corrected for it as if they were Poisson, intervals are widened by as much.",
            parameters,
        )
    return 0.0, None
