r"""What is wrong with a level-1 tape although its format is in order: one checker for every calibration.

A file can keep to its format and still lead to wrong numbers. Each calibration passes its tape through here before it
states any. What cannot be set right is a ValueError that says what was found and what to do. The rest is a `Finding`: a
warning that stands in the table, in the JSON, in the summary and on the plot, and says what was done about it.

======================= ===========================================================================================
finding                 how it is told, and what is done
======================= ===========================================================================================
gaps                    a few pauses, of events, quotes or trades, eight times as long as all others or longer, or
                        longer than the gap that is asked for; what is outside the session; pauses between files: the
                        record is split there, rates are over observed time, and nothing is taken across
coarse_clock            time stamps on a grid so wide that events fall on one stamp: rates corrected, intervals
                        widened; an error where that moves a rate by more than 5 %
late_trades,            market orders print inside the quotes before them (not at them), and would not if trades were
early_trades            some milliseconds earlier (later): the shift that fits best is named; an error where distances
                        from the mid are fitted
inside_quotes           market orders print inside the quotes before them, at any shift
sides                   orders to buy print at the bid, orders to sell at the ask: an error
time_unit               milliseconds, microseconds or nanoseconds where seconds are asked for: an error where no
                        market runs so long at so slow a pace, a warning where stamps are whole numbers
unordered               rows up to a second behind those above them: put in order; an error where there are many
empty_book, locked_book rows that say nothing, named with their lines: left out, time without usable quotes cut out;
crossed_book, zero_size an error where they are more than one in twenty (`mmgym.tapes.cleaning`)
no_side, empty_trade
window                  a start before the first event, or an end after the last one: all there is is used
doubled                 every trade stands twice, or trades bear one number: they count once
======================= ===========================================================================================

The thresholds aim at a chance of about 1e-5 for each finding that a clean record is warned of; simulated records of the
markets that can be calibrated are held against them in the tests. Small records are left alone where a fault would hide
in their standard errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mmgym.tapes.clocks import clock_grid, coarse_clock
from mmgym.tapes.findings import Finding
from mmgym.tapes.gaps import find_gaps, gap_finding
from mmgym.tapes.level1 import best_quotes, market_orders
from mmgym.tapes.recording import Paths, Recording, merged, read_recording, recording_of
from mmgym.tapes.selection import Selection
from mmgym.tapes.units import check_unit

Array = NDArray[np.float64]

INSIDE_SHARE = 0.02  # of market orders
OFF_SHARE = 0.05  # of market orders that do not print at the best price
LAGS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # s
LAG_TOLERANCE = 0.005  # of market orders: shifts fit about as well
FINE_LAGS = 41


@dataclass(frozen=True)
class CheckedTape:
    """A level-1 tape whose format and contents have been checked.

    Attributes
    ----------
    name : str
        Of the file, for messages.
    sessions : list of pandas.DataFrame
        The tape, split at its gaps; times in seconds.
    findings : list of Finding
    """

    name: str
    sessions: list[pd.DataFrame]
    findings: list[Finding]

    @property
    def label(self) -> str:
        """The name without its folder, for tables."""
        return Path(self.name).name

    @cached_property
    def bounds(self) -> Array:
        """First quote (event, where there is none) and last event of each session, shape (sessions, 2)."""
        return np.array([[_first_quote(part), part["time_s"].iloc[-1]] for part in self.sessions])

    @cached_property
    def quotes(self) -> list[pd.DataFrame]:
        """`best_quotes` of each session."""
        return [best_quotes(part) for part in self.sessions]

    @cached_property
    def orders(self) -> pd.DataFrame:
        """`market_orders` of all sessions; reaches are from quotes of their own session."""
        return pd.concat([market_orders(part) for part in self.sessions], ignore_index=True)

    def observed(self, time: ArrayLike) -> Array:
        """Times with the gaps cut out: all sessions end to end, a time within a gap at the end of the one before."""
        first, last = self.bounds.T
        if first.size == 1:
            return np.asarray(time, dtype=float)
        starts = first[0] + np.concatenate([[0.0], np.cumsum(last - first)])[:-1]
        time = np.asarray(time, dtype=float)
        session = np.clip(np.searchsorted(first, time, side="right") - 1, 0, first.size - 1)
        inside = np.minimum(time, last[session]) - first[session]
        return np.asarray(starts[session] + inside, dtype=np.float64)

    def seen(self, time: ArrayLike) -> NDArray[np.bool_]:
        """Whether times lie within a session."""
        first, last = self.bounds.T
        time = np.asarray(time, dtype=float)
        session = np.clip(np.searchsorted(first, time, side="right") - 1, 0, first.size - 1)
        return np.asarray((time >= first[session]) & (time <= last[session]))

    def in_observed_time(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of ``time_s`` with the gaps cut out; rows inside them are left out."""
        if len(self.sessions) == 1:
            return table
        time = table["time_s"].to_numpy(dtype=float)
        inside = self.seen(time) | (time < self.bounds[0, 0])
        kept: pd.DataFrame = table[inside].assign(time_s=self.observed(time[inside]))
        return kept

    @property
    def seconds(self) -> float:
        """Observed time."""
        return float(np.diff(self.bounds, axis=1).sum())

    def trade_clock(self) -> float:
        """Step of the clock of the trades (see `clock_grid`)."""
        return _clock_of([part.loc[part["event"] == "trade", "time_s"] for part in self.sessions])

    def quote_clock(self) -> float:
        """Step of the clock of the quotes (see `clock_grid`)."""
        return _clock_of([part.loc[part["event"] == "quote", "time_s"] for part in self.sessions])


def check_level1(
    tape: Paths | pd.DataFrame | Recording,
    selection: Selection | None = None,
    *,
    time_unit: str | None = None,
    reach: bool = False,
) -> CheckedTape:
    """Read files, and check what they say: time unit, gaps, sides, and the order of trades and quotes.

    Parameters
    ----------
    tape : str, Path, sequence of them, pandas.DataFrame or Recording
        Files of any known format, a table with the columns of `mmgym.tapes.level1`, or what `read_recording` returned.
    selection : Selection, optional
        What is used of them; all by default.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Unit of ``time_s``, taken as it is said. By default seconds, and what looks like another unit is refused.
    reach : bool
        Whether distances of trades from the mid are fitted.

    Returns
    -------
    CheckedTape

    Raises
    ------
    ValueError
        If the files cannot be read, or no right number can be given from them.
    """
    if isinstance(tape, pd.DataFrame):
        recording = recording_of(tape, selection, time_unit=time_unit)
    elif isinstance(tape, Recording):
        recording = tape
    else:
        recording = read_recording(tape, selection, time_unit=time_unit)
    name = recording.name
    gaps = _all_gaps(recording)
    checked = CheckedTape(name, _split(name, recording.tape, gaps), [])
    findings = checked.findings
    findings += recording.findings
    if len(gaps):
        lengths = gaps[:, 1] - gaps[:, 0]
        what = "events, quotes or trades" if not len(recording.cuts) else "events, quotes or trades, or left out"
        findings.append(gap_finding(gaps[:, 0], lengths, checked.seconds, "s", what))
    if not recording.unit_said:
        longest = int(np.diff(checked.bounds, axis=1)[:, 0].argmax())
        stamps = checked.sessions[longest]["time_s"].to_numpy(dtype=float)
        unit = check_unit(name, stamps, float(np.diff(checked.bounds[longest])[0]))
        findings += [unit] if unit else []
    if reach:  # a coarse clock puts orders inside the quotes, and is the fault to name
        for side in ("sell", "buy"):
            number = int((checked.orders["side"] == side).sum())
            coarse_clock(name, f"{side} orders", number, checked.seconds, checked.trade_clock(), ())
    findings += _check_trades(name, checked, reach)
    return checked


def _all_gaps(recording: Recording) -> Array:
    """Start and end of each stretch that is not observed: what was cut out, gaps that are found, long pauses."""
    parts = _without(recording.tape, recording.cuts)
    found = [_tape_gaps(part) for part in parts]
    if recording.gap is not None:
        for part in parts:
            stamps = np.unique(part["time_s"].to_numpy(dtype=float))
            long = np.flatnonzero(np.diff(stamps) > recording.gap)
            found.append(np.stack([stamps[long], stamps[long + 1]], axis=1))
    return merged([*recording.cuts.tolist(), *np.concatenate([np.empty((0, 2)), *found]).tolist()])


def _clock_of(times: Iterable[pd.Series]) -> float:
    stamps = [part.to_numpy(dtype=float) for part in times]
    largest = max((abs(part).max() for part in stamps if part.size), default=0.0)
    return clock_grid(np.concatenate([np.diff(part) for part in stamps]), float(largest))


def _tape_gaps(tape: pd.DataFrame) -> Array:
    """Start and end of each gap, shape (gaps, 2): stretches without events, quotes or trades."""
    stamps = np.unique(tape["time_s"].to_numpy(dtype=float))
    gaps = find_gaps(np.diff(stamps))
    found = list(zip(stamps[gaps].tolist(), stamps[gaps + 1].tolist(), strict=True))
    ends, lost = stamps[gaps + 1], np.append(0.0, np.cumsum(np.diff(stamps)[gaps]))
    for event in ("quote", "trade"):
        own = np.unique(tape.loc[tape["event"] == event, "time_s"].to_numpy(dtype=float))
        pauses = np.diff(own - lost[np.searchsorted(ends, own, side="right")])  # without the gaps of all events
        places = find_gaps(pauses)
        found += zip(own[places].tolist(), own[places + 1].tolist(), strict=True)
    merged: list[list[float]] = []
    for start, end in sorted(found):
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=float).reshape(-1, 2)


def _without(tape: pd.DataFrame, gaps: Array) -> list[pd.DataFrame]:
    """The parts of a tape between gaps."""
    if not len(gaps):
        return [tape]
    times = tape["time_s"].to_numpy(dtype=float)
    first = np.concatenate([[0], np.searchsorted(times, gaps[:, 1])])
    last = np.concatenate([np.searchsorted(times, gaps[:, 0], side="right"), [times.size]])
    return [tape.iloc[a:b] for a, b in zip(first, last, strict=True) if b > a]


def _split(name: str, tape: pd.DataFrame, gaps: Array) -> list[pd.DataFrame]:
    """The parts of a tape between gaps; those without length or without quotes are left out."""
    if not len(gaps):
        return [tape]
    parts = _without(tape, gaps)
    kept = [part for part in parts if (part["event"] == "quote").any() and part["time_s"].iloc[-1] > _first_quote(part)]
    if not kept:
        raise ValueError(f"{name}: nothing is left between {len(gaps)} gaps: no stretch has quotes at two times")
    return kept


def _first_quote(part: pd.DataFrame) -> float:
    quotes = part.loc[part["event"] == "quote", "time_s"]
    return float((quotes if len(quotes) else part["time_s"]).iloc[0])


def _check_trades(name: str, checked: CheckedTape, reach: bool) -> list[Finding]:
    """Sides, and whether trades and quotes are on one clock."""
    orders = checked.orders.dropna(subset="reach")
    number = len(orders)
    if number == 0:
        return []
    inside, wrong, off = _against_quotes(checked, orders, 0.0)
    if inside < max(5, INSIDE_SHARE * number) and off < max(10, OFF_SHARE * number):
        return []
    lag, inside_then, off_then = _best_lag(checked, orders)
    if lag > 0 and inside >= max(10, INSIDE_SHARE * number) and inside_then < inside / 3:
        text = (
            f"{100 * inside / number:.3g} % of the market orders print inside the quotes before them, and "
            f"{100 * inside_then / number:.2g} % if trades were {1000 * lag:g} ms earlier: they are stamped about so "
            "much later than the quotes that they cause"
        )
        return [_off_clock(name, "late_trades", text, lag, reach)]
    if lag < 0 and off >= max(10, OFF_SHARE * number) and off_then < off / 3:
        text = (
            f"{100 * off / number:.3g} % of the market orders do not print at the quotes before them, and "
            f"{100 * off_then / number:.2g} % if trades were {-1000 * lag:g} ms later: they are stamped about so much "
            "earlier than quotes"
        )
        return [_off_clock(name, "early_trades", text, lag, reach)]
    if inside < max(5, INSIDE_SHARE * number):
        return []
    if wrong >= 5 and wrong > number / 2:
        raise ValueError(
            f"{name}, column 'side': flipped sides: {wrong} of {number} market orders print on the wrong side of the "
            "quotes, to buy at the bid or below, to sell at the ask or above; the side is that of the aggressor, who "
            "buys at the ask: 'buy' and 'sell' must be exchanged"
        )
    share = f"{100 * inside / number:.3g} % of the market orders print inside the quotes before them"
    text = f"{share}: quotes are missing or stale, or the sides ({wrong} on the wrong one) are"
    if reach and inside > number / 5:
        raise ValueError(f"{name}: orders inside the quotes: {text}; one in five at most is allowed")
    return [Finding("inside_quotes", f"{text} wrong; they are left out of the fit.", ("fill_", "log_fill", "proxy"))]


def _off_clock(name: str, finding: str, text: str, lag: float, reach: bool) -> Finding:
    """The finding of trades on another clock than quotes, an error where distances are fitted."""
    if reach:
        raise ValueError(
            f"{name}: {finding.replace('_', ' ')}: {text}; distances from the mid would be wrong, take {lag:g} from "
            f"time_s of the trade rows (trade_lag = {lag:g} does)"
        )
    return Finding(finding, f"{text}; volumes may fall into the interval beside their own.", ("proxy",))


def _best_lag(checked: CheckedTape, orders: pd.DataFrame) -> tuple[float, int, int]:
    """How much later than quotes trades are stamped: the shift at which most print at them; and what is off then.

    The fit is about as good until the next quotes; the edge where trades would fall behind the quotes that they cause
    is sharp: the smallest shift that fits, found on a grid, on a finer one, and by halving.
    """

    def off(lag: float) -> int:
        return _against_quotes(checked, orders, lag)[2]

    def smallest(grid: Array) -> tuple[int, float]:
        counts = np.array([off(float(lag)) for lag in grid])
        return int(np.flatnonzero(counts <= counts.min() + tolerance)[0]), counts.min() + tolerance

    tolerance = LAG_TOLERANCE * len(orders)
    grid = np.array([*(-lag for lag in reversed(LAGS)), 0.0, *LAGS])
    place, _ = smallest(grid)
    grid = np.linspace(grid[max(place - 1, 0)], grid[min(place + 1, grid.size - 1)], FINE_LAGS)
    place, most = smallest(grid)
    low, high = float(grid[max(place - 1, 0)]), float(grid[place])
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if off(middle) <= most else (middle, high)
    lag = round(high, 5)
    inside, _, off_then = _against_quotes(checked, orders, lag)
    return lag, inside, off_then


def _against_quotes(checked: CheckedTape, orders: pd.DataFrame, lag: float) -> tuple[int, int, int]:
    """Market orders against the quotes that stand `lag` before them: inside, on the other side, not at the best."""
    time, touch = (orders[column].to_numpy(dtype=float) for column in ("time_s", "touch"))
    buy = (orders["side"] == "buy").to_numpy()
    inside = wrong = off = 0
    for quotes, (start, end) in zip(checked.quotes, checked.bounds, strict=True):
        own = (time >= start) & (time <= end)
        # a shifted time equals that of its quotes up to rounding
        before = np.maximum(np.searchsorted(quotes["time_s"], time[own] - lag - (1e-6 if lag else 0.0)) - 1, 0)
        bid, ask = (quotes[column].to_numpy(dtype=float)[before] for column in ("bid", "ask"))
        price, grain = touch[own], 1e-6 * (ask - bid)
        at_ask, at_bid = price >= ask - grain, price <= bid + grain
        inside += int((~np.where(buy[own], at_ask, at_bid)).sum())
        wrong += int(np.where(buy[own], at_bid, at_ask).sum())
        off += int((np.abs(price - np.where(buy[own], ask, bid)) > grain).sum())
    return inside, wrong, off
