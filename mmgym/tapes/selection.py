"""Which part of a recording is used: a window, the same hours of every day, what lies between long pauses."""

from __future__ import annotations

import argparse
import datetime
import math
import re
import zoneinfo
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.tapes.findings import Finding
from mmgym.tapes.units import DAY, DAY_NS, TIME_UNITS

Array = NDArray[np.float64]

CLOCKS = ("exchange", "local")
HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})(?:\s+(\S+))?")
MOST_DAYS = 4000


@dataclass(frozen=True)
class Selection:
    """What is used of a recording, and how it is read.

    Attributes
    ----------
    start, end : float or str, optional
        Window: seconds of the tape, or a date and time such as ``2024-08-08T10:00`` (UTC) where stamps are dated. The
        quotes at its start are those of the last quote before.
    session : str, optional
        Hours of each day, ``"HH:MM-HH:MM"``, on the clock of the tape (0 s is midnight), or of a place where stamps are
        dated: ``"09:30-16:00 America/New_York"``. An end before its start is on the next day.
    gap : float, optional
        Seconds: all longer pauses are gaps, besides those that are found.
    symbol : str, optional
        The instrument, where files hold several.
    clock : {"exchange", "local"}
        Which stamps are taken where files have both. Some feeds have local ones only for quotes; then trades follow.
    trade_lag : float
        Seconds by which trades are stamped too late; taken off.

    Raises
    ------
    ValueError
        If an entry is out of range.
    """

    start: float | str | None = None
    end: float | str | None = None
    session: str | None = None
    gap: float | None = None
    symbol: str | None = None
    clock: str = "exchange"
    trade_lag: float = 0.0

    def __post_init__(self) -> None:
        if self.gap is not None and not (math.isfinite(self.gap) and self.gap > 0):
            raise ValueError(f"gap = {self.gap} is not allowed: it must be a positive number of seconds")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock = {self.clock!r} is not allowed: it must be one of {', '.join(CLOCKS)}")
        if not math.isfinite(self.trade_lag):
            raise ValueError(f"trade_lag = {self.trade_lag} is not allowed: it must be a finite number of seconds")
        if self.session is not None:
            _hours(self.session)

    def windows(
        self, name: str, first: float, last: float, origin: int | None
    ) -> tuple[Array | None, tuple[Finding, ...]]:
        """Start and end of each stretch of time that is used, shape (n, 2), None for all; what of it is not there.

        Parameters
        ----------
        name : str
            Of the recording, for messages.
        first, last : float
            Its first and last time, s.
        origin : int, optional
            The midnight from which its seconds count, nanoseconds since 1970.

        Raises
        ------
        ValueError
            If nothing of the recording lies in them.
        """
        if self.start is None and self.end is None and self.session is None:
            return None, ()
        begin = first if self.start is None else _seconds(self.start, origin, "start")
        finish = last if self.end is None else _seconds(self.end, origin, "end")
        hours = np.array([[begin, finish]])
        if self.session is not None:
            hours = _daily(self.session, first, last, origin)
        hours = np.clip(hours, max(begin, first), min(finish, last))
        hours = hours[hours[:, 1] > hours[:, 0]]
        runs = f"the tape runs from {first:.10g} to {last:.10g} s"
        runs += "" if origin is None else f" after {pd.Timestamp(origin):%Y-%m-%d} 00:00 UTC"
        if not len(hours):
            chosen = {key: getattr(self, key) for key in ("start", "end", "session") if getattr(self, key) is not None}
            shown = ", ".join(f"{key} = {value}" for key, value in chosen.items())
            raise ValueError(f"{name}: {shown} is not allowed: nothing lies there; {runs}")
        beyond = [f"start = {self.start} lies before its first event"] if begin < first else []
        beyond += [f"end = {self.end} lies after its last event"] if finish > last else []
        text = f"{name}: {', '.join(beyond)}: {runs}, and is used from its first or to its last event."
        return hours, (Finding("window", text),) if beyond else ()


def _hours(text: str) -> tuple[float, float, str | None]:
    """Start and end in seconds of a day, and the zone."""
    match = HOURS.fullmatch(text.strip())
    problem = "it must be HH:MM-HH:MM, such as 09:30-16:00, or with a zone: 09:30-16:00 America/New_York"
    if match is None:
        raise ValueError(f"session = {text!r} is not allowed: {problem}")
    numbers = [int(match[place]) for place in range(1, 5)]
    if max(numbers[1], numbers[3]) > 59 or max(numbers[0], numbers[2]) > 24:
        raise ValueError(f"session = {text!r} is not allowed: {problem}")
    start, end = 60.0 * (60 * numbers[0] + numbers[1]), 60.0 * (60 * numbers[2] + numbers[3])
    if max(start, end) > DAY or start == end:
        raise ValueError(f"session = {text!r} is not allowed: {problem}")
    if match[5] is not None:
        try:
            zoneinfo.ZoneInfo(match[5])
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"session = {text!r} is not allowed: {match[5]!r} is no time zone") from error
    return start, end if end > start else end + DAY, match[5]


def _daily(text: str, first: float, last: float, origin: int | None) -> Array:
    """The hours of every day of a recording, in its seconds."""
    start, end, zone = _hours(text)
    days = np.arange(math.floor(first / DAY) - 1, math.floor(last / DAY) + 2)
    if days.size > MOST_DAYS:
        raise ValueError(f"session = {text!r}: the tape runs over {days.size} days, {MOST_DAYS} at most are allowed")
    if zone is None:
        return np.stack([days * DAY + start, days * DAY + end], axis=1)
    if origin is None:
        raise ValueError(f"session = {text!r}: the stamps of this tape have no date; give hours on its own clock")
    place = zoneinfo.ZoneInfo(zone)
    rows = []
    for day in days:
        date = datetime.datetime.fromtimestamp(origin // 10**9 + int(day) * DAY, datetime.UTC).date()
        midnight = datetime.datetime(date.year, date.month, date.day)
        ends = [
            (midnight + datetime.timedelta(seconds=second)).replace(tzinfo=place).timestamp() for second in (start, end)
        ]
        rows.append([value - origin / 1e9 for value in ends])
    return np.array(rows)


def _seconds(value: float | str, origin: int | None, name: str) -> float:
    """A time of the tape."""
    try:
        number = float(value)
    except ValueError:
        pass
    else:
        if not math.isfinite(number):
            raise ValueError(f"{name} = {value} is not allowed: it must be finite")
        return number
    try:
        time = pd.Timestamp(value)
    except ValueError as error:
        rule = "it must be a number of seconds, or a time such as 2024-08-08T10:00"
        raise ValueError(f"{name} = {value!r} is not allowed: {rule}") from error
    if origin is None:
        raise ValueError(f"{name} = {value!r} is not allowed: the stamps of this tape have no date; give seconds")
    moment = time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
    nanoseconds = int(moment.as_unit("ns").value)
    assert origin % DAY_NS == 0
    return (nanoseconds - origin) / 1e9


def cut_to_windows(tape: pd.DataFrame, windows: Array) -> tuple[pd.DataFrame, Array]:
    """A tape within windows, and the stretches between them, shape (n, 2).

    A window begins with the quotes that stood at its start, and ends with those that stood at its end: it is observed
    in full.
    """
    times = tape["time_s"].to_numpy(dtype=float)
    quoted = np.flatnonzero((tape["event"] == "quote").to_numpy())
    places, stamps = [], []
    for start, end in windows:
        low, high = np.searchsorted(times, start, side="left"), np.searchsorted(times, end, side="right")
        inside = np.arange(low, high)
        before = quoted[quoted < low][-1:]
        last = quoted[quoted < high][-1:] if times[-1] > end else quoted[:0]
        places += [before, inside, last]
        stamps += [np.full(before.size, start), times[inside], np.full(last.size, end)]
    rows = tape.iloc[np.concatenate(places)]
    rows = rows.assign(time_s=np.concatenate(stamps))
    return rows, np.stack([windows[:-1, 1], windows[1:, 0]], axis=1)


# The command line

TIME_UNIT = "of time_s (default s; what looks like another one is refused)"


def add_tape_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that reads tapes."""
    group = parser.add_argument_group("tape")
    when = "seconds of the tape, or such as 2024-08-08T10:00"
    group.add_argument("--start", metavar="TIME", help=f"of the window: {when}")
    group.add_argument("--end", metavar="TIME", help="of the window")
    text = "of every day, also with a zone: '09:30-16:00 America/New_York'; the rest is left out"
    group.add_argument("--session", metavar="HH:MM-HH:MM", help=text)
    group.add_argument("--gap", type=float, metavar="SECONDS", help="longer pauses are gaps, besides those found")
    group.add_argument("--symbol", help="the instrument, where files hold several")
    group.add_argument("--clock", choices=CLOCKS, default="exchange", help="whose stamps (default exchange)")
    text = "by which trades are stamped too late"
    group.add_argument("--trade-lag", type=float, default=0.0, metavar="SECONDS", help=text)
    group.add_argument("--time-unit", choices=list(TIME_UNITS), help=TIME_UNIT)


def selection_of(options: argparse.Namespace) -> Selection:
    """The selection of a command line."""
    names = ("start", "end", "session", "gap", "symbol", "clock", "trade_lag")
    return Selection(**{name: getattr(options, name) for name in names})
