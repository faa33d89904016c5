"""Recorded markets and the assumptions of a replay, as hftbacktest takes them (extra ``replay``).

A recording is read from one of

- an ``.npz`` file of hftbacktest's events (its array ``data``),
- a recorded stream of Binance, ``.gz``: a line a message, local time in ns and the exchange's JSON; futures as they
  are, spot messages with what futures have besides (the event time stands for the time of the transaction; best quotes,
  which bear no exchange time, are left out), both through hftbacktest's own converter,
- a level-1 tape of mmgym (`mmgym.tapes.level1`): what is better than a new best price is deleted, sizes behind it
  are those last seen there, and local times are exchange times.

Times are nanoseconds. The converter moves local times so that no message arrives before it was sent: latencies are
those above the fastest message.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import math
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from mmgym.adapters.hftbacktest_play import Book, book_of
from mmgym.compiling import KERNEL
from mmgym.tapes import Selection, check_level1, read_tape
from mmgym.tapes.findings import Finding
from mmgym.tapes.gaps import find_gaps, gap_finding
from mmgym.tapes.units import DAY_NS

Array = NDArray[Any]

__all__ = [
    "Assumptions",
    "Recording",
    "backtest_of",
    "first_in_queue",
    "read_recording",
    "within",
    "without_feed_latency",
]

SECOND = 1_000_000_000
EXCHANGE, LOCAL, BUY, SELL = 1 << 31, 1 << 30, 1 << 29, 1 << 28  # flags of hftbacktest's events
DEPTH, TRADE, CLEAR, SNAPSHOT = 1, 2, 3, 4  # their kinds
KIND = 0xFF
STREAM = re.compile(rb"\d{19} \{")
QUEUES = ("risk_averse", "log", "power")
DECIMALS, MOST_NUMBER = 10**8, 9e9  # of prices and sizes: both together fit into 63 bits
MOST_STEPS = 10**12
DATED = 10**17  # ns since 1970: 1973


@dataclass(frozen=True)
class Assumptions:
    """What a replay assumes of the exchange and of the way to it.

    Attributes
    ----------
    queue : {"risk_averse", "log", "power"}
        How a resting order gets on in the queue of its price when others cancel: "risk_averse" is behind all who stood
        there before, so that trades alone bring it on (the least fills); the others let it move up by the share of the
        queue that is before it, by hftbacktest's ``log_prob_queue_model2`` and ``power_prob_queue_model3``.
    queue_power : float
        Exponent of "power".
    fills : {"partial", "whole"}
        Whether an order is filled by what is left of a trade, or as a whole once a trade gets to it.
    order_latency, response_latency : float
        Seconds from here to the exchange, and back.
    feed_latency : float
        Seconds that market data take, beyond what the recording says.
    """

    queue: Literal["risk_averse", "log", "power"] = "risk_averse"
    queue_power: float = 3.0
    fills: Literal["partial", "whole"] = "partial"
    order_latency: float = 0.01
    response_latency: float = 0.01
    feed_latency: float = 0.0

    def __post_init__(self) -> None:
        if self.queue not in QUEUES or self.fills not in ("partial", "whole"):
            raise ValueError(
                f"queue = {self.queue!r}, fills = {self.fills!r}: queue must be one of {', '.join(QUEUES)}, and fills "
                "'partial' or 'whole'"
            )
        for name in ("queue_power", "order_latency", "response_latency", "feed_latency"):
            value = getattr(self, name)
            if not 0.0 <= value <= 3600.0:
                raise ValueError(f"{name} = {value!r} is not allowed: it must be from 0 to 3600")

    def sentence(self) -> str:
        """What is assumed, in words."""
        queue = {
            "risk_averse": "only trades advance it",
            "log": "log_prob_queue_model2",
            "power": f"power_prob_queue_model3, exponent {self.queue_power:g}",
        }
        return (
            f"queue {self.queue} ({queue[self.queue]}), {self.fills} fills, post-only orders, latency "
            f"{1e3 * self.order_latency:g} ms to the exchange and {1e3 * self.response_latency:g} ms back, "
            f"{1e3 * self.feed_latency:g} ms of market data beyond the recording"
        )


@dataclass(frozen=True)
class Recording:
    """A recorded market.

    Attributes
    ----------
    source : str
        Name of the file.
    events : array
        hftbacktest's events, in the order of their times.
    tick, lot : float
        Steps of prices and of sizes.
    start, end : int
        First time at which the whole book is known, and last time, ns.
    remarks : tuple of str
        What was done while it was read.
    findings : tuple of Finding
        Warnings (`mmgym.tapes.checker`), where it was checked.
    zero : int
        Time at which its own seconds are 0, ns: that of a tape, or the midnight (UTC) before dated times.
    origin : int or None
        That midnight, ns since 1970, where times are dated.
    """

    source: str
    events: Array
    tick: float
    lot: float
    start: int
    end: int
    remarks: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    zero: int = 0
    origin: int | None = None

    @property
    def seconds(self) -> float:
        """Length of what can be played."""
        return (self.end - self.start) / SECOND

    @functools.cached_property
    def book(self) -> Book:
        """Best prices in the exchange's time."""
        exchange = without_feed_latency(self)
        book = book_of(backtest_of(exchange, Assumptions()), len(exchange.events))
        if not len(book.times):
            raise ValueError(f"{self.source}: the best bid is never below the best ask")
        return book

    def delayed(self, late: int) -> Array:
        """Events whose data arrive so many ns later, kept: hftbacktest holds no reference; its own way changes them."""
        if late and late not in self._delayed:
            self._delayed[late] = self.events.copy()
            self._delayed[late]["local_ts"] += late
        return self._delayed[late] if late else self.events

    @functools.cached_property
    def _delayed(self) -> dict[int, Array]:
        return {}


def _library() -> Any:
    try:
        import hftbacktest
    except ImportError as error:
        raise ImportError("replaying a book needs hftbacktest: pip install 'mmgym[replay]'") from error
    return hftbacktest


def read_recording(path: str | Path, *, tick: float | None = None, lot: float | None = None) -> Recording:
    """Read a recording; its kind is found in the file.

    Parameters
    ----------
    path : str or Path
    tick, lot : float, optional
        Steps of prices and of sizes; by default the largest of which all in the file are multiples.

    Returns
    -------
    Recording

    Raises
    ------
    ValueError
        If the file is of none of the known kinds, is damaged or breaks its format, or has no book and no time.
    ImportError
        Without hftbacktest.
    """
    path = Path(path)
    library = _library()
    remarks: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    zero, origin = 0, None
    if path.suffix == ".npz":
        events = _stored(path, library)
    elif STREAM.match(_beginning(path)):
        events, remarks = _converted(path)
    else:
        events, zero, origin, findings = _tape_events(path, library)
        remarks = ("a level-1 tape: no queue stands at a price behind the best at which none was seen",)
    depth = events[np.isin(events["ev"] & KIND, (DEPTH, SNAPSHOT))]
    if not len(depth):
        raise ValueError(f"{path}: no event of the book: a replay needs depth, or best quotes")
    known = events[np.isin(events["ev"] & KIND, (DEPTH, SNAPSHOT, TRADE))]
    steps = []
    for name, column, given in (("tick", "px", tick), ("lot", "qty", lot)):
        if given is not None and not (math.isfinite(given) and given > 0.0):
            raise ValueError(f"{name} = {given!r} is not allowed: it must be positive")
        steps.append(_step(path, name, known[column]) if given is None else given)
    for name, column, step in (("tick", "px", steps[0]), ("lot", "qty", steps[1])):
        count = known[column] / step
        wrong = np.flatnonzero(np.abs(count - np.rint(count)) > 1e-4 + 1e-9 * np.abs(count))
        if len(wrong):
            raise ValueError(f"{path}: {known[column][wrong[0]]:g} is not a whole number of {name}s of {step:g}")
    start, end = _bounds(path, events)
    if zero == 0 and start > DATED:
        zero = origin = start - start % DAY_NS
    return Recording(path.name, events, steps[0], steps[1], start, end, remarks, findings, zero, origin)


def within(recording: Recording, selection: Selection) -> list[Recording]:
    """The windows of a recording, split at its gaps, each as a recording; what was before is known.

    Raises
    ------
    ValueError
        If nothing lies in them.
    """
    return [part for window in _windows(recording, selection) for part in _without_gaps(window)]


def _without_gaps(recording: Recording) -> list[Recording]:
    """The stretches of a recording between pauses that are gaps (`mmgym.tapes.gaps`)."""
    stamps = np.unique(recording.events["exch_ts"][recording.events["ev"] & EXCHANGE != 0])
    stamps = stamps[(stamps >= recording.start) & (stamps <= recording.end)]
    stamps = np.unique(np.r_[recording.start, stamps, recording.end])  # what is missing at the ends of a window, too
    gaps = find_gaps(np.diff(stamps))
    if not len(gaps):
        return [recording]
    starts, ends = stamps[gaps], stamps[gaps + 1]
    seconds, lengths = (starts - recording.zero) / SECOND, (ends - starts) / SECOND
    finding = gap_finding(seconds, lengths, recording.seconds - float(lengths.sum()), "s")
    bounds = zip([recording.start, *ends.tolist()], [*starts.tolist(), recording.end], strict=True)
    return [
        replace(
            recording,
            source=f"{recording.source} ({number})",
            start=low,
            end=high,
            findings=(*recording.findings, finding),
        )
        for number, (low, high) in enumerate(bounds, 1)
        if high > low
    ]


def _windows(recording: Recording, selection: Selection) -> list[Recording]:
    """The windows of a recording."""
    first, last = ((time - recording.zero) / SECOND for time in (recording.start, recording.end))
    windows, _ = selection.windows(recording.source, first, last, recording.origin)
    if windows is None:
        return [recording]
    bounds = recording.zero + np.rint(windows * SECOND).astype(np.int64)
    return [
        replace(
            recording,
            source=f"{recording.source}, {low:.10g} to {high:.10g} s",
            start=max(recording.start, int(start)),
            end=min(recording.end, int(end)),
        )
        for (low, high), (start, end) in zip(windows.tolist(), bounds, strict=True)
    ]


def _beginning(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read(64)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error


def _stored(path: Path, library: Any) -> Array:
    """Events of an npz file."""
    wanted = library.types.event_dtype
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            events = np.asarray(content["data"])
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of hftbacktest, which has an array 'data' ({error})") from error
    if events.dtype.names != wanted.names or events.ndim != 1 or not len(events):
        raise ValueError(f"{path}: its array 'data' must be a list of events with the fields {', '.join(wanted.names)}")
    events = np.ascontiguousarray(events.astype(wanted))
    for flag, column in ((EXCHANGE, "exch_ts"), (LOCAL, "local_ts")):
        times = events[column][events["ev"] & flag != 0]
        if not len(times) or (np.diff(times) < 0).any():
            what = "has no events" if not len(times) else "falls"
            raise ValueError(f"{path}: the time {column} {what}; hftbacktest.data.correct_event_order puts it right")
    return events


def _converted(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Events of a recorded stream by hftbacktest's converter, and what it did."""
    from hftbacktest.data.utils import binancefutures

    said, left_out = io.StringIO(), 0
    rows = 2 * path.stat().st_size + 100_000  # more than a compressed stream has
    with tempfile.TemporaryDirectory() as folder:
        stream = path
        if _is_spot(path):
            stream = Path(folder) / "stream.gz"
            left_out = _complete(path, stream)
        try:
            with contextlib.redirect_stdout(said):
                events = binancefutures.convert(str(stream), buffer_size=rows)
        except (LookupError, TypeError, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: hftbacktest cannot convert this stream ({error!r})") from error
    if not len(events):
        raise ValueError(f"{path}: no depth and no trade in this stream")
    remarks = []
    moved = re.search(r"ahead of exch_timestamp by ([\d.]+)", said.getvalue())
    if moved:
        shown = f"{float(moved[1]) / SECOND:.4g} s"
        remarks.append(f"local times were moved by {shown}: latencies are those above the fastest message")
    if left_out:
        remarks.append(f"{left_out} best quotes without an exchange time were left out")
    return np.ascontiguousarray(events), tuple(remarks)


def _is_spot(path: Path) -> bool:
    """Whether the first change of the book has no time of the transaction."""
    for _, message in _messages(path):
        data = message.get("data", message)
        if data.get("e") == "depthUpdate":
            return "T" not in data
    return False


def _messages(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Local times and messages of a stream."""
    number = 0
    try:
        with gzip.open(path, "rb") as stream:
            for line in stream:
                number += 1
                message = json.loads(line[20:])
                if not isinstance(message, dict):
                    raise ValueError("a message is an object of JSON")
                yield line[:20], message
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path}, line {number}: a line is a local time and a message ({error})") from error


def _complete(path: Path, copy: Path) -> int:
    """Write a spot stream with messages as those of futures; how many best quotes were left out."""
    left_out = exchange = 0
    with gzip.open(copy, "wb", compresslevel=1) as target:
        for local, message in _messages(path):
            data = message.get("data", message)
            if "e" not in data and "lastUpdateId" not in data:
                left_out += 1
                continue
            exchange = max(exchange, int(data.get("T", data.get("E", exchange))))
            data |= {"T": data.get("T", data.get("E", exchange)), "X": "MARKET"}
            target.write(local + json.dumps(message).encode() + b"\n")
    return left_out


def _tape_events(path: Path, library: Any) -> tuple[Array, int, int | None, tuple[Finding, ...]]:
    """Events of a level-1 tape, the time (ns) at which its seconds are 0, the midnight that this is, and findings."""
    tape = read_tape(path)
    quote = (tape["event"] == "quote").to_numpy()
    times = np.rint((tape["time_s"].to_numpy() - tape["time_s"].iloc[0]) * SECOND).astype(np.int64) + SECOND
    best = np.nan_to_num(tape[["bid", "bid_size", "ask", "ask_size"]].to_numpy(dtype=np.float64))
    trades = np.nan_to_num(tape[["price", "size"]].to_numpy(dtype=np.float64))
    buys = (tape["side"] == "buy").to_numpy()
    rows = _level_1(times, quote, best, trades, buys)
    events = np.zeros(len(rows), dtype=library.types.event_dtype)
    events["ev"] = rows[:, 0].astype(np.uint64) | (EXCHANGE | LOCAL)
    events["exch_ts"] = events["local_ts"] = times[rows[:, 1].astype(np.int64)]
    events["px"], events["qty"] = rows[:, 2], rows[:, 3]
    midnight = tape.attrs["origin"]
    zero = SECOND - round(float(tape["time_s"].iloc[0]) * SECOND)
    origin = None if midnight is None else int(pd.Timestamp(midnight).value)
    return events, zero, origin, tuple(tape.attrs["findings"])


@njit(**KERNEL)
def _level_1(times: Array, quote: Array, best: Array, trades: Array, buys: Array) -> Array:
    """Rows (kind and side, number, price, size) of hftbacktest's events of a tape."""
    known = np.empty((2, max(len(times), 1)))  # prices with a size, bids rising, asks falling: the best one is the last
    count = np.zeros(2, dtype=np.int64)
    rows = np.empty((4 * len(times) + 16, 4))
    n = 0
    for i in range(len(times)):
        if n + 8 + count.sum() > len(rows):
            rows = np.concatenate((rows, np.empty_like(rows)))
        if not quote[i]:
            rows[n] = np.array(
                [np.float64(TRADE + (BUY if buys[i] else SELL)), np.float64(i), trades[i, 0], trades[i, 1]]
            )
            n += 1
            continue
        for k in range(2):
            kind, price, sign = np.float64(DEPTH + (BUY if k == 0 else SELL)), best[i, 2 * k], 1.0 - 2.0 * k
            while count[k] > 0 and sign * known[k, count[k] - 1] > sign * price:
                rows[n] = np.array([kind, np.float64(i), known[k, count[k] - 1], 0.0])
                n += 1
                count[k] -= 1
            if count[k] == 0 or known[k, count[k] - 1] != price:
                known[k, count[k]] = price
                count[k] += 1
        for k in range(2):
            kind = np.float64(DEPTH + (BUY if k == 0 else SELL))
            rows[n] = np.array([kind, np.float64(i), best[i, 2 * k], best[i, 2 * k + 1]])
            n += 1
    return rows[:n]


def _step(path: Path, name: str, values: Array) -> float:
    """Largest number, of eight decimals, of which all are whole multiples."""
    if np.abs(values).max() > MOST_NUMBER:
        raise ValueError(f"{path}: numbers beyond {MOST_NUMBER:g}")
    whole = np.unique(np.rint(np.abs(values) * DECIMALS).astype(np.int64))
    step = int(np.gcd.reduce(whole))
    if step == 0 or whole.max() // step > MOST_STEPS:
        raise ValueError(f"{path}: the {name} cannot be told from the file: give it")
    return step / DECIMALS


def _bounds(path: Path, events: Array) -> tuple[int, int]:
    """Time from which the book is whole, and the last time."""
    kinds, local = events["ev"] & KIND, events["ev"] & LOCAL != 0
    book = np.isin(kinds, (DEPTH, SNAPSHOT)) & local & (events["qty"] > 0.0)
    first = [np.flatnonzero(book & (events["ev"] & side != 0)) for side in (BUY, SELL)]
    if not all(len(rows) for rows in first):
        raise ValueError(f"{path}: the book has one side only")
    snapshot = np.flatnonzero((kinds == SNAPSHOT) & local)
    whole = max(rows[0] for rows in first) if not len(snapshot) else snapshot[-1]
    stamps = events["local_ts"]
    if len(snapshot):  # the last row of the first snapshot
        burst = snapshot[stamps[snapshot] == stamps[snapshot[0]]]
        whole = burst[-1]
    start, end = int(stamps[whole]), int(max(events["local_ts"].max(), events["exch_ts"].max()))
    if not end > start:
        raise ValueError(f"{path}: nothing follows the first book")
    return start, end


def without_feed_latency(recording: Recording) -> Recording:
    """The recording as the exchange had it: market data arrive when they are sent."""
    flags = recording.events["ev"] & (EXCHANGE | LOCAL)
    if (flags == EXCHANGE | LOCAL).all() and (recording.events["exch_ts"] == recording.events["local_ts"]).all():
        return recording
    events = recording.events[flags & EXCHANGE != 0]  # a copy
    events["local_ts"] = events["exch_ts"]
    events["ev"] |= LOCAL
    return replace(recording, events=events, end=min(recording.end, int(events["exch_ts"].max())))


def first_in_queue(recording: Recording) -> Recording:
    """The recording with a book of one lot at every price: own orders have next to nobody before them."""
    events = recording.events.copy()
    book = np.isin(events["ev"] & KIND, (DEPTH, SNAPSHOT)) & (events["qty"] > 0.0)
    events["qty"][book] = recording.lot
    return replace(recording, events=events)


def backtest_of(recording: Recording, assumptions: Assumptions) -> Any:
    """A backtest of hftbacktest, without fees."""
    library = _library()
    a = assumptions
    events = recording.delayed(round(a.feed_latency * SECOND))
    asset = library.BacktestAsset().data(events).linear_asset(1.0)
    asset = asset.constant_order_latency(round(a.order_latency * SECOND), round(a.response_latency * SECOND))
    if a.queue == "risk_averse":
        asset = asset.risk_adverse_queue_model()
    elif a.queue == "log":
        asset = asset.log_prob_queue_model2()
    else:
        asset = asset.power_prob_queue_model3(a.queue_power)
    asset = asset.partial_fill_exchange() if a.fills == "partial" else asset.no_partial_fill_exchange()
    asset = asset.trading_value_fee_model(0.0, 0.0).tick_size(recording.tick).lot_size(recording.lot)
    return library.HashMapMarketDepthBacktest([asset])


def read_recordings(
    paths: Sequence[str | Path], selection: Selection | None = None, **steps: float | None
) -> list[Recording]:
    """Each file, and each window of it, as a session of its own, with what the checker of all calibrations finds.

    Raises
    ------
    ValueError
        As `read_recording`, `within` and `mmgym.tapes.check_level1`.
    """
    chosen, parts = selection or Selection(), []
    for path in paths:
        checked = check_level1(path, chosen)
        findings = tuple(item for item in checked.findings if item.name != "gaps")  # those of what is played are named
        parts += within(replace(read_recording(path, **steps), findings=findings), chosen)
    return parts
