"""Units of time: those of exchanges' stamps, told from their size, and those that a tape in seconds should not have."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mmgym.tapes.findings import Finding
from mmgym.tapes.gaps import FEWEST_PAUSES

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
DAY = 86_400.0
DAY_NS = 86_400 * 10**9
YEARS = 1979, 2190  # of a recording
FIRST_EPOCH, LAST_EPOCH = 300_000_000, 7_000_000_000  # s since 1970 that a recording can have: 1979 to 2191


def epoch_unit(name: str, stamps: ArrayLike) -> str:
    """Unit of whole-number stamps since 1970, told from their size.

    Parameters
    ----------
    name : str
        Of the file and its column, for the message.
    stamps : array_like, shape (n,)

    Returns
    -------
    {"s", "ms", "us", "ns"}

    Raises
    ------
    ValueError
        If all stamps do not fit one unit.
    """
    stamps = np.asarray(stamps)
    lowest, highest = float(stamps.min()), float(stamps.max())
    for unit, factor in TIME_UNITS.items():
        if lowest * factor >= FIRST_EPOCH and highest * factor <= LAST_EPOCH:
            return unit
    raise ValueError(
        f"{name}: stamps from {lowest:.10g} to {highest:.10g} are no time since 1970 in seconds, milliseconds, "
        "microseconds or nanoseconds (or mix several units)"
    )


def epoch_nanoseconds(name: str, stamps: ArrayLike) -> Integers:
    """Whole-number stamps since 1970, of any unit, as nanoseconds."""
    stamps = np.asarray(stamps, dtype=np.int64)
    if not stamps.size:
        return stamps
    return stamps * NANOSECONDS[epoch_unit(name, stamps)]


def iso_nanoseconds(name: str, words: pd.Series) -> Integers:
    """Times such as ``2022-06-10T13:30:00.000123456Z`` (UTC where no zone is named) as nanoseconds since 1970.

    Raises
    ------
    ValueError
        If a cell is none; the message names the line.
    """
    times = pd.to_datetime(words, utc=True, errors="coerce", format="ISO8601")
    wrong = np.flatnonzero(~times.dt.year.between(*YEARS))  # an empty one is in no year
    if wrong.size:
        line = int(words.index[wrong[0]]) + 2
        raise ValueError(f"{name}, line {line}: {words.iloc[wrong[0]]!r} is no time such as 2022-06-10T13:30:00.5Z")
    return np.asarray(times.dt.as_unit("ns").astype("int64"), dtype=np.int64)


def seconds_of_the_day(nanoseconds: ArrayLike) -> tuple[Array, int]:
    """Seconds since the midnight (UTC) before the first stamp, and that midnight in nanoseconds since 1970.

    A float holds them to a few femtoseconds; seconds since 1970 only to a quarter of a microsecond.
    """
    stamps = np.asarray(nanoseconds, dtype=np.int64)
    origin = int(stamps.min()) // DAY_NS * DAY_NS if stamps.size else 0
    return (stamps - origin) / 1e9, origin


def refuse_years(name: str, times: Array) -> None:
    """Refuse times of other units that are clear at a glance.

    Raises
    ------
    ValueError
        If the times run for years, if they were seconds; the message names the unit that fits.
    """
    span, last = float(times.max() - times.min()), float(np.abs(times).max())
    if last < 1e11 and span < 1e8:
        return
    likely = [unit for unit, factor in TIME_UNITS.items() if last * factor < 1e10 and span * factor < 1e7]
    shown = f"perhaps time_unit = {likely[0]!r}" if likely else "none of the units fits"
    raise ValueError(
        f"{name}, column 'time_s': wrong time unit: the times run from {times[0]:.10g} to {times[-1]:.10g}, "
        f"{span / (365.25 * DAY):.3g} years if they were seconds; give them in seconds, or say the unit with "
        f"time_unit, one of {', '.join(TIME_UNITS)} ({shown})"
    )


def check_unit(name: str, stamps: Array, seconds: float) -> Finding | None:
    """Refuse a session that runs for days at a pace that no such tape has; whole numbers are warned of.

    Parameters
    ----------
    name : str
        Of the tape.
    stamps : array, shape (rows,)
        Times of the longest session.
    seconds : float
        Its length.

    Raises
    ------
    ValueError
        If the times are no seconds.
    """
    rows = stamps.size
    whole = np.unique(stamps).size >= FEWEST_PAUSES and bool((stamps == np.floor(stamps)).all())
    if rows >= FEWEST_PAUSES and seconds > DAY and rows < seconds:
        raise ValueError(
            f"{name}, column 'time_s': wrong time unit: {rows} rows over {seconds / DAY:.3g} days without a pause, if "
            f"they were seconds{', and all are whole numbers' if whole else ''}; give them in seconds, or say the unit "
            f"with time_unit: 'ms' (then it is {seconds / 1000:.6g} s), 'us', 'ns', or 's' if they are seconds"
        )
    if whole:
        return Finding(
            "time_unit",
            f"all times are whole numbers, {seconds / rows:.3g} apart on average: if they are not seconds, say "
            "time_unit ('ms', 'us', 'ns'); all rates would be wrong by a power of a thousand.",
        )
    return None
