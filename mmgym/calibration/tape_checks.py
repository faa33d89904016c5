r"""What is wrong with a record although its format is in order: one checker for every calibration.

A file can keep to its format and still lead to wrong numbers. Each calibration passes its record through here before it
states any. What cannot be set right is a ValueError that says what was found and what to do. The rest is a `Finding`: a
warning that stands in the table, in the JSON, in the summary and on the plot, and says what was done about it.

======================= ===========================================================================================
finding                 how it is told, and what is done
======================= ===========================================================================================
gaps                    a few pauses, of events, quotes or trades, eight times as long as all others or longer: the
                        record is split there, rates are over observed time, and nothing is taken across
coarse_clock            time stamps on a grid so wide that events fall on one stamp: rates corrected, intervals
                        widened; an error where that moves a rate by more than 5 %
late_trades             market orders print inside the quotes before them, and would not if trades were some
                        milliseconds earlier: an error where distances from the mid are fitted
inside_quotes           market orders print inside the quotes before them, at any shift
sides                   orders to buy print at the bid, orders to sell at the ask: an error
time_unit               milliseconds, microseconds or nanoseconds where seconds are asked for: an error where no
                        market runs so long at so slow a pace, a warning where stamps are whole numbers
own_size                own orders far larger than those on the tape: an error where nothing counts
noise                   too few changes of the mid to tell its volatility from rounding and bid-ask bounce
overdispersed           counts in blocks of time vary more than chance has it under the model: their intervals, which
                        are those of the blocks (`mmgym.calibration.block_intervals`), are so much wider
rejected                the law of the model is rejected: the estimates describe the record, no environment is offered
not_identified          the data leave a number open: its cells are empty
======================= ===========================================================================================

The thresholds aim at a chance of about 1e-5 for each finding that a clean record is warned of; simulated records of the
markets that can be calibrated are held against them in the tests. Small records are left alone where a fault would hide
in their standard errors.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mmgym.calibration.block_intervals import Estimate, student
from mmgym.calibration.exponential import ExponentialFit
from mmgym.calibration.hawkes_likelihood import Windows
from mmgym.calibration.tape import best_quotes, market_orders, require

Array = NDArray[np.float64]

FALSE_ALARM = 1e-5  # of one test on a clean record
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
DAY = 86_400.0

FEWEST_PAUSES = 100  # before a gap can be told
GAP_RATIO = 8.0  # of the shortest gap to the longest other pause
GAP_SHARE = 0.002  # of the whole time: less does no harm
FEWEST_STAMPS = 30  # before a grid of time stamps is looked for
LARGEST_BIAS, SMALLEST_BIAS = 0.05, 0.005  # of a rate, by events that share a stamp: refused, warned of
SMALLEST_KERNEL_STEP, LARGEST_KERNEL_STEP = 0.02, 0.2  # decay in a step of the clock: warned of, refused
FEWEST_ORDERS = 20
INSIDE_SHARE = 0.02  # of market orders
LAGS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # s
LARGE_OWN_SIZE = 10.0  # in mean order sizes
AS_LARGE = 0.01  # share of the orders that must be as large as an own one that is large
SHORT_EXPOSURE = 0.01  # of the time to the next row


@dataclass(frozen=True)
class Finding:
    """A warning.

    Attributes
    ----------
    name : str
        One of the names in the module's docstring.
    text : str
        What was found, and what was done about it.
    parameters : tuple of str
        Beginnings of the names of the estimates that it concerns; empty for all.
    """

    name: str
    text: str
    parameters: tuple[str, ...] = ()

    def concerns(self, parameter: str) -> bool:
        """Whether an estimate of this name is warned of."""
        return not self.parameters or parameter.startswith(self.parameters)


# How findings are shown


def marked(table: pd.DataFrame, findings: Sequence[Finding], names: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of estimates with a column ``warning``, the names of the findings that concern each; none, no column.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per estimate.
    findings : sequence of Finding
    names : sequence of str, optional
        Names of the estimates, by default the index.
    """
    if not findings:
        return table
    rows = list(table.index) if names is None else names
    cells = [", ".join(dict.fromkeys(item.name for item in findings if item.concerns(name))) for name in rows]
    return table.assign(warning=cells)


def described(findings: Iterable[Finding]) -> list[str]:
    """One line for each finding."""
    return [f"WARNING ({item.name}): {item.text}" for item in findings]


def draw_findings(figure: Any, findings: Sequence[Finding], width: int = 150) -> None:
    """Write the findings below a matplotlib figure of constrained layout."""
    if findings:
        text = "\n".join(textwrap.fill(line, width) for line in described(findings))
        figure.supxlabel(text, color="tab:red", fontsize=8, x=0.01, ha="left")


def require_finite(arguments: dict[str, Any]) -> None:
    """Refuse arguments of an environment that hold a number that is not finite.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, str | bool | None) and not np.isfinite(np.asarray(value, dtype=float)).all():
            raise ValueError(f"{name} = {value} is not allowed: only finite estimates make an environment")


def json_value(value: Any) -> Any:
    """The value with NaN, also inside lists and dicts, replaced by None."""
    if isinstance(value, dict):
        return {name: json_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Gaps


def find_gaps(pauses: ArrayLike) -> NDArray[np.intp]:
    """The pauses that are gaps in the record, if any.

    Parameters
    ----------
    pauses : array_like, shape (n,)
        Times between neighbouring events, positive.

    Returns
    -------
    array of int
        Places of the few (one in a hundred at most, or three) that are all `GAP_RATIO` times as long as any other
        pause, or longer. Under exponential tails, clusters or not, that does not happen.
    """
    pauses = np.asarray(pauses, dtype=float)
    if pauses.size < FEWEST_PAUSES:
        return np.empty(0, dtype=np.intp)
    most = max(3, pauses.size // 100)
    order = np.argpartition(-pauses, most)[: most + 1]
    order = order[np.argsort(-pauses[order], kind="stable")]
    longest = pauses[order]
    breaks = np.flatnonzero(longest[:-1] >= GAP_RATIO * longest[1:])
    if not breaks.size:
        return np.empty(0, dtype=np.intp)
    gaps = order[: breaks[-1] + 1]
    return np.sort(gaps) if pauses[gaps].sum() >= GAP_SHARE * pauses.sum() else np.empty(0, dtype=np.intp)


def gap_finding(starts: ArrayLike, lengths: ArrayLike, observed: float, unit: str, what: str = "events") -> Finding:
    """The finding of gaps.

    Parameters
    ----------
    starts, lengths : array_like, shape (n,)
        When the gaps begin, and their lengths.
    observed : float
        Time that is left.
    unit : str
        Of time.
    what : str
        What is missing in them.
    """
    starts, lengths = np.atleast_1d(starts), np.atleast_1d(lengths)
    first = zip(starts[:5], lengths[:5], strict=True)
    shown = ", ".join(f"{length:.6g} {unit} from {start:.6g}" for start, length in first)
    more = f" and {starts.size - 5} more" if starts.size > 5 else ""
    return Finding(
        "gaps",
        f"{starts.size} gap{'s' * (starts.size > 1)} without {what} ({shown}{more}): the record is split there, rates "
        f"are over the {observed:.6g} {unit} that are observed, and nothing is taken across.",
    )


# Grid of time stamps


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


def steps_of_a_kernel(decay: Estimate, gaps: ArrayLike, largest: float, unit: str) -> tuple[float, str]:
    """Decay of a Hawkes kernel in one step of the clock, 0 where that is too little to matter, and what to say of it.

    Raises
    ------
    ValueError
        If the clock is too coarse to tell the kernel.
    """
    step = clock_grid(gaps, largest)
    share = decay.value * step
    if not (share > SMALLEST_KERNEL_STEP and share > decay.stderr / decay.value / 4):
        return 0.0, ""
    text = f"time stamps are multiples of {step:g} {unit}, the kernel decays at {decay.value:.4g} per {unit}, within "
    text += f"{1 / share:.2g} steps"
    if share > LARGEST_KERNEL_STEP:
        raise ValueError(
            f"coarse clock: {text}; no right number can be given, a clock of "
            f"{SMALLEST_KERNEL_STEP / decay.value:.1g} {unit} or finer is needed"
        )
    return share, f"{text}: decay and excitation come out too low, their intervals reach up by as much."


def raised(estimate: Estimate, share: float) -> Estimate:
    """An estimate that may be too low by a share of it."""
    reach = share * estimate.value
    return Estimate(estimate.value, math.hypot(estimate.stderr, reach), estimate.lower, estimate.upper * (1 + share))


# Level-1 tapes


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
    path: str | Path, tape: pd.DataFrame, *, time_unit: str | None = None, reach: bool = False
) -> CheckedTape:
    """Check what a level-1 tape says: time unit, gaps, sides, and the order of trades and quotes.

    Parameters
    ----------
    path : str or Path
        Name of the file, for the messages.
    tape : pandas.DataFrame
        What `mmgym.calibration.tape.read_tape` returned.
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
        If no right number can be given from the tape.
    """
    name = str(path)
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise ValueError(f"time_unit must be one of {', '.join(TIME_UNITS)}, got {time_unit!r}")
    if time_unit is not None:
        tape = tape.assign(time_s=tape["time_s"] * TIME_UNITS[time_unit])
    times = tape["time_s"].to_numpy(dtype=float)
    if time_unit is None:
        _refuse_years(name, times)
    gaps = _tape_gaps(tape)
    sessions = _split(tape, gaps)
    findings: list[Finding] = []
    checked = CheckedTape(name, sessions, findings)
    if len(gaps):
        lengths = gaps[:, 1] - gaps[:, 0]
        findings.append(gap_finding(gaps[:, 0], lengths, checked.seconds, "s", "events, quotes or trades"))
    if time_unit is None:
        unit = _time_unit(name, checked)
        findings += [unit] if unit else []
    if reach:  # a coarse clock puts orders inside the quotes, and is the fault to name
        for side in ("sell", "buy"):
            number = int((checked.orders["side"] == side).sum())
            coarse_clock(name, f"{side} orders", number, checked.seconds, checked.trade_clock(), ())
    findings += _check_trades(name, checked, reach)
    return checked


def _clock_of(times: Iterable[pd.Series]) -> float:
    stamps = [part.to_numpy(dtype=float) for part in times]
    largest = max((abs(part).max() for part in stamps if part.size), default=0.0)
    return clock_grid(np.concatenate([np.diff(part) for part in stamps]), float(largest))


def _refuse_years(name: str, times: Array) -> None:
    """Refuse times of other units that are clear at a glance."""
    span, last = float(times[-1] - times[0]), float(np.abs(times).max())
    if last < 1e11 and span < 1e8:
        return
    likely = [unit for unit, factor in TIME_UNITS.items() if last * factor < 1e10 and span * factor < 1e7]
    shown = f"perhaps time_unit = {likely[0]!r}" if likely else "none of the units fits"
    raise ValueError(
        f"{name}, column 'time_s': wrong time unit: the times run from {times[0]:.10g} to {times[-1]:.10g}, "
        f"{span / (365.25 * DAY):.3g} years if they were seconds; give them in seconds, or say the unit with "
        f"time_unit, one of {', '.join(TIME_UNITS)} ({shown})"
    )


def _time_unit(name: str, checked: CheckedTape) -> Finding | None:
    """Refuse a tape that runs for days at a pace that no such tape has; whole numbers are warned of."""
    lengths = np.diff(checked.bounds, axis=1)[:, 0]
    longest = int(lengths.argmax())
    rows, seconds = len(checked.sessions[longest]), float(lengths[longest])
    stamps = checked.sessions[longest]["time_s"].to_numpy(dtype=float)
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


def _split(tape: pd.DataFrame, gaps: Array) -> list[pd.DataFrame]:
    """The tape without what lies inside gaps; parts without length or without quotes are left out."""
    if not len(gaps):
        return [tape]
    times = tape["time_s"].to_numpy(dtype=float)
    first = np.concatenate([[0], np.searchsorted(times, gaps[:, 1])])
    last = np.concatenate([np.searchsorted(times, gaps[:, 0], side="right"), [times.size]])
    parts = [tape.iloc[a:b] for a, b in zip(first, last, strict=True) if b > a]
    kept = [part for part in parts if (part["event"] == "quote").any() and part["time_s"].iloc[-1] > _first_quote(part)]
    return kept or [tape]


def _first_quote(part: pd.DataFrame) -> float:
    quotes = part.loc[part["event"] == "quote", "time_s"]
    return float((quotes if len(quotes) else part["time_s"]).iloc[0])


def _check_trades(name: str, checked: CheckedTape, reach: bool) -> list[Finding]:
    """Sides, and whether trades come after the quotes that they cause."""
    orders = checked.orders.dropna(subset="reach")
    number = len(orders)
    if number == 0:
        return []
    inside, wrong = (int(value) for value in _against_quotes(checked, orders, 0.0))
    if inside < max(5, INSIDE_SHARE * number):
        return []
    shares = np.array([_against_quotes(checked, orders, lag)[0] for lag in LAGS]) / inside
    share = f"{100 * inside / number:.3g} % of the market orders print inside the quotes before them"
    if shares.min() < 1 / 3 and inside >= 10:
        lag = LAGS[int(np.flatnonzero(shares <= 1.2 * shares.min() + 0.02)[0])]
        text = (
            f"{share}, and {100 * inside / number * shares.min():.2g} % if trades were {1000 * lag:g} ms earlier: they "
            "are stamped about so much later than the quotes that they cause"
        )
        if reach:
            raise ValueError(
                f"{name}: late trades: {text}; distances from the mid would be wrong, take {lag:g} from time_s of the "
                "trade rows and sort by it"
            )
        return [Finding("late_trades", f"{text}; volumes may fall into the interval after their own.", ("proxy",))]
    if wrong >= 5 and wrong > number / 2:
        raise ValueError(
            f"{name}, column 'side': flipped sides: {wrong} of {number} market orders print on the wrong side of the "
            "quotes, to buy at the bid or below, to sell at the ask or above; the side is that of the aggressor, who "
            "buys at the ask: 'buy' and 'sell' must be exchanged"
        )
    text = f"{share}: quotes are missing or stale, or the sides ({wrong} on the wrong one) are"
    if reach and inside > number / 5:
        raise ValueError(f"{name}: orders inside the quotes: {text}; one in five at most is allowed")
    return [Finding("inside_quotes", f"{text} wrong; they are left out of the fit.", ("fill_", "log_fill", "proxy"))]


def _against_quotes(checked: CheckedTape, orders: pd.DataFrame, lag: float) -> tuple[int, int]:
    """Market orders inside the quotes that stand `lag` before them, and those on the other side of the quotes."""
    time, touch = (orders[column].to_numpy(dtype=float) for column in ("time_s", "touch"))
    buy = (orders["side"] == "buy").to_numpy()
    inside = wrong = 0
    for quotes, (start, end) in zip(checked.quotes, checked.bounds, strict=True):
        own = (time >= start) & (time <= end)
        # a shifted time equals that of its quotes up to rounding
        before = np.maximum(np.searchsorted(quotes["time_s"], time[own] - lag - (1e-6 if lag else 0.0)) - 1, 0)
        bid, ask = (quotes[column].to_numpy(dtype=float)[before] for column in ("bid", "ask"))
        price, grain = touch[own], 1e-6 * (ask - bid)
        at_ask, at_bid = price >= ask - grain, price <= bid + grain
        inside += int((~np.where(buy[own], at_ask, at_bid)).sum())
        wrong += int(np.where(buy[own], at_bid, at_ask).sum())
    return inside, wrong


# Sizes


def check_own_size(
    name: str, own_size: float, orders: pd.DataFrame, counts: ArrayLike, *, needed: bool
) -> list[Finding]:
    """Whether own orders are of the size of those on the tape.

    Parameters
    ----------
    name : str
        Of the tape.
    own_size : float
    orders : pandas.DataFrame
        Market orders.
    counts : array_like
        What the proxy counted in all: side, quote.
    needed : bool
        Whether the rates of the proxy are the ones that are passed on.

    Raises
    ------
    ValueError
        If hardly an order is so large and the rates are needed.
    """
    number = len(orders)
    if number == 0:
        return []
    mean, as_large = float(orders["size"].mean()), int((orders["size"] >= own_size).sum())
    none = np.asarray(counts).min() == 0
    if not none and own_size <= LARGE_OWN_SIZE * mean:
        return []
    text = (
        f"own_size = {own_size:g} is {own_size / mean:.3g} times the mean market order of the tape ({mean:.3g}), "
        f"{as_large} of {number} are as large"
    )
    if needed and number >= FEWEST_ORDERS and (none or as_large < max(AS_LARGE * number, 5)):
        raise ValueError(
            f"{name}: own size: {text}; no rate can be given: own_size is in the unit of the tape's sizes, "
            f"{LARGE_OWN_SIZE * mean:.3g} at most is allowed here"
        )
    return [Finding("own_size", f"{text}: is it in the unit of the tape's sizes?", ("proxy",))]


# Overdispersion


def overdispersion(what: str, dispersion: float, freedom: int, parameters: tuple[str, ...]) -> list[Finding]:
    """The finding of counts that cluster, if they do.

    Parameters
    ----------
    what : str
        What is counted.
    dispersion, freedom
        See `excessive`.
    parameters : tuple of str
        Beginnings of the names of the estimates that rest on it.
    """
    if not excessive(dispersion, freedom):
        return []
    text = (
        f"{what} vary {dispersion:.3g} times as much over blocks of time as Poisson counts: standard errors and "
        "intervals are those of the blocks."
    )
    return [Finding("overdispersed", text, parameters)]


def rejection(laws: Sequence[str], parameters: tuple[str, ...] = ()) -> list[Finding]:
    """The finding of rejected laws, if there are any.

    Parameters
    ----------
    laws : sequence of str
        What `mmgym.calibration.report.rejected_laws` returned.
    parameters : tuple of str
        Beginnings of the names of the estimates that rest on them.
    """
    if not laws:
        return []
    text = f"{', '.join(laws)}: the estimates describe the record, but the market of the model is not of this kind."
    return [Finding("rejected", text, parameters)]


def excessive(dispersion: float, freedom: int) -> bool:
    """Whether a dispersion (a chi-square statistic per degree of freedom) is beyond chance."""
    return freedom > 0 and dispersion > stats.chi2.isf(FALSE_ALARM, freedom) / freedom


def widened(estimate: Estimate, factor: float, freedom: int, *, logarithm: bool = False) -> Estimate:
    """An estimate with a standard error `factor` times as large, measured on so many degrees of freedom."""
    stderr = estimate.stderr * factor
    reach = student(freedom) * stderr
    if not logarithm:
        return Estimate(estimate.value, stderr, estimate.value - reach, estimate.value + reach)
    ratio = math.exp(min(reach / estimate.value, 700.0)) if estimate.value > 0 else 1.0
    return Estimate(estimate.value, stderr, estimate.value / ratio, estimate.value * ratio)


def unhidden_rate(fit: ExponentialFit, hidden: float) -> ExponentialFit:
    """Rates corrected for the share of the events that a coarse clock hides, and intervals widened by as much."""
    shift, log, decay = -math.log1p(-hidden), fit.log_fill_rate, fit.fill_decay
    stderr = math.hypot(log.stderr, hidden)
    log = Estimate(log.value + shift, stderr, log.lower + shift - hidden, log.upper + shift + hidden)
    value = math.exp(log.value)
    reach = hidden * abs(decay.value)
    return replace(
        fit,
        fill_rate=Estimate(value, value * stderr, math.exp(log.lower), math.exp(log.upper)),
        log_fill_rate=log,
        fill_decay=Estimate(decay.value, math.hypot(decay.stderr, reach), decay.lower - reach, decay.upper + reach),
    )


# Files of own quotes


def check_own_record(path: str | Path, quotes: pd.DataFrame) -> tuple[Array, list[Finding]]:
    """Check what a quotes file says: gaps, and the units of times and exposures.

    Parameters
    ----------
    path : str or Path
        Name of the file, for the messages.
    quotes : pandas.DataFrame
        What `mmgym.calibration.quotes.read_quotes` returned.

    Returns
    -------
    label : array, shape (rows,)
        Changes where an episode or a gap ends.
    findings : list of Finding

    Raises
    ------
    ValueError
        If a quote stands for longer than its interval, or the times are no seconds.
    """
    time, episode = quotes["time"].to_numpy(dtype=float), quotes["episode"].to_numpy(dtype=float)
    ends = np.append(episode[1:] != episode[:-1], True)  # the last row of an episode
    step = np.where(ends, np.inf, np.append(np.diff(time), np.inf))
    rounding = 8 * np.finfo(float).eps * np.abs(time)
    exposure = np.zeros(time.size)
    for side in ("bid", "ask"):
        own = quotes[f"{side}_exposure"].to_numpy(dtype=float)
        rule = "a quote stands no longer than from its row to the next (are both in seconds?)"
        require(path, quotes, f"{side}_exposure", own <= step * (1 + 1e-6) + rounding, rule)
        exposure = np.maximum(exposure, own)
    begins = np.flatnonzero(np.append(True, ends[:-1]))
    spans = time[np.flatnonzero(ends)] - time[begins]
    longest = float(spans.max())
    if longest >= 1e8 or np.abs(time).max() >= 1e11:
        raise ValueError(
            f"{path}, column 'time': wrong time unit: an episode of {longest / (365.25 * DAY):.3g} years, up to the "
            f"time {time.max():.10g}, if they were seconds; times and exposures must be seconds"
        )
    findings = []
    steps = np.flatnonzero(~ends)
    gaps = steps[find_gaps(step[steps])]
    gaps = gaps[exposure[gaps] < step[gaps] / 2]
    label = np.cumsum(np.append(True, ends[:-1])).astype(float)
    if gaps.size:
        after = np.zeros(time.size)
        after[gaps + 1] = 1
        label = label + after.cumsum()
        findings.append(gap_finding(time[gaps], step[gaps], float(spans.sum() - step[gaps].sum()), "s", "quotes"))
        spans = spans[:0]
    live = steps[exposure[steps] > 0]
    if live.size >= FEWEST_PAUSES and np.median(exposure[live] / step[live]) < SHORT_EXPOSURE:
        findings.append(
            Finding(
                "time_unit",
                f"half of the exposures are less than {SHORT_EXPOSURE:g} of the time from their row to the next: are "
                "times and exposures both in seconds?",
            )
        )
    if spans.size and longest > DAY:
        findings.append(
            Finding("time_unit", f"an episode lasts {longest / DAY:.3g} days without a gap: is the time in seconds?")
        )
    return label, findings


# Windows of point processes


def find_window_gaps(data: Windows) -> Array:
    """Gaps in windows of a point process: window, start and end of each, shape (gaps, 3).

    Raises
    ------
    ValueError
        If every window holds one event: no such process does that, a list of times was taken for windows.
    """
    counts = np.diff(data.offsets)
    if counts.size >= FEWEST_ORDERS and (counts == 1).all():
        raise ValueError(
            f"all {counts.size} windows hold one event each: a flat list of times? A window is the list of the times "
            "of all events in it; for a single window pass [times]"
        )
    edges = np.insert(data.times, data.offsets[:-1], 0.0)
    edges = np.insert(edges, data.offsets[1:] + np.arange(1, counts.size + 1), data.durations)
    window = np.repeat(np.arange(counts.size), counts + 2)
    occupied = np.repeat(counts > 0, counts + 2)[1:]  # a window without events counts
    places = np.flatnonzero((window[1:] == window[:-1]) & (edges[1:] > edges[:-1]) & occupied)
    places = places[find_gaps(edges[places + 1] - edges[places])]
    return np.stack([window[places], edges[places], edges[places + 1]], axis=1).astype(float)


def without_gaps(data: Windows, rates: Array, gaps: Array) -> tuple[Windows, Array]:
    """Windows split at gaps.

    Parameters
    ----------
    data : Windows
    rates : array, shape (windows,)
        Intensities at the start, NaN without history; a part after a gap has none.
    gaps : array, shape (gaps, 3)
        Of `find_window_gaps`, which may be those of more events than these.
    """
    parts, lengths, own_rates = [], [], []
    for number, length in enumerate(data.durations):
        times = data.times[data.offsets[number] : data.offsets[number + 1]]
        own = gaps[gaps[:, 0] == number]
        starts, ends = np.append(0.0, own[:, 2]), np.append(own[:, 1], length)
        for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if end > start:
                parts.append(times[(times >= start) & (times <= end)] - start)
                lengths.append(end - start)
                own_rates.append(rates[number] if part == 0 else math.nan)
    offsets = np.concatenate([[0], np.cumsum([part.size for part in parts])]).astype(np.int64)
    return Windows(np.concatenate(parts), offsets, np.array(lengths)), np.array(own_rates)
