"""Binance streams as they are recorded: on each line a local time and a message in JSON.

=========================================== ===========================================================================
line                                        what it is
=========================================== ===========================================================================
``1723161255088165267 {"stream": ...}``     local time (s, ms, us or ns since 1970), a space, the message of a combined
                                            stream (``{"stream": ..., "data": {...}}``) or the bare message
``bookTicker``                              best quotes ``b, B, a, A``; futures have a time ``T`` (ms), spot has none
``trade``, ``aggTrade``                     price ``p``, size ``q``, ``m``: the buyer was the maker, time ``T`` (ms, us)
``depthUpdate``                             levels ``b``, ``a``; used only where there is no ``bookTicker``, from the
                                            snapshot (``lastUpdateId, bids, asks``) on
=========================================== ===========================================================================

Spot and futures alike. The exchange's time is taken where quotes have one, else the local time: trades, which must be
on the same clock, then stand at the exchange's time and the shortest delay of each minute. Trades outside the order
book (insurance fund, liquidation: ``X`` other than ``MARKET``) are left out. Where a ``depthUpdate`` is missing the
book is unknown until the next snapshot.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mmgym.tapes.findings import Finding
from mmgym.tapes.order_book import LevelBook
from mmgym.tapes.pieces import Piece, Reader, piece, quote_rows, trade_rows
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source
from mmgym.tapes.units import Integers, epoch_nanoseconds

LINE = re.compile(r"\d{10,19} ?\{")
MOST_DAMAGED = 0.01  # of the lines
MINUTE = 60 * 10**9


def kind(source: Source) -> str | None:
    """``"stream"`` where lines are a number and JSON."""
    return "stream" if source.first_lines and LINE.match(source.first_lines[0]) else None


@dataclass
class _Messages:
    """The messages of a file by what they are: rows of numbers that begin with line and local time."""

    quotes: list[tuple[float, ...]] = field(default_factory=list)
    trades: list[tuple[float, ...]] = field(default_factory=list)
    depth: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    symbols: set[str] = field(default_factory=set)
    damaged: list[int] = field(default_factory=list)
    off_book: int = 0
    lines: int = 0


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each file is a piece."""
    return [_read_one(source, selection) for _, source in files]


def _read_one(source: Source, selection: Selection) -> Piece:
    messages = _messages(source, selection.symbol)
    _refuse_several(source.name, messages, selection.symbol)
    findings = []
    if messages.damaged:
        if len(messages.damaged) > MOST_DAMAGED * messages.lines:
            raise ValueError(
                f"{source.name}, line {messages.damaged[0]}: no message; {len(messages.damaged)} of {messages.lines} "
                "lines are no time and JSON, one in a hundred at most is passed over"
            )
        count, first = len(messages.damaged), messages.damaged[0]
        text = f"{source.name}: {count} lines are no messages (first: line {first}): left out."
        findings.append(Finding("damaged_lines", text))
    if messages.off_book:
        text = f"{messages.off_book} trades outside the order book (insurance fund, liquidation): left out."
        findings.append(Finding("off_book", text))
    quotes, cuts, lost = _quotes(source.name, messages, selection.clock)
    findings += lost
    local = selection.clock == "local" or not quotes.attrs["exchange"]
    if local and selection.clock == "exchange":
        text = (
            "quotes bear no time of the exchange, local times are taken: trades stand at their own time and the "
            "shortest delay of each minute."
        )
        findings.append(Finding("local_clock", text))
    parts = [quotes, _trades(source.name, messages, local)]
    return piece(source.name, parts, findings=findings, cuts=cuts, by_line=True, changes_only=not messages.quotes)


def _messages(source: Source, symbol: str | None) -> _Messages:
    """All messages of a file; of one symbol, if it is named."""
    messages = _Messages()
    wanted = None if symbol is None else symbol.upper()
    for number, line in enumerate(source.content.decode("utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        messages.lines += 1
        stamp, brace, rest = line.partition("{")
        try:
            local, message = int(stamp), json.loads(brace + rest)
            data = message.get("data", message)
            if isinstance(data, dict):
                _sort(messages, number, local, message.get("stream", ""), data, wanted)
        except (ValueError, KeyError, TypeError, AttributeError):
            messages.damaged.append(number)
    return messages


def _sort(messages: _Messages, line: int, local: int, stream: str, data: dict[str, Any], wanted: str | None) -> None:
    """Put one message where it belongs."""
    event = data.get("e") or stream.partition("@")[2]
    own = str(data.get("s", "")).upper()
    if "lastUpdateId" in data:
        _require_depth(data, ("lastUpdateId",), ("bids", "asks"))
        messages.depth.append((line, local, data))
        return
    if wanted is not None and own != wanted:
        messages.symbols.add(own) if own else None
        return
    if event == "bookTicker":
        messages.symbols.add(own)
        row = (data.get("T", 0), float(data["b"]), float(data["B"]), float(data["a"]), float(data["A"]))
        messages.quotes.append((line, local, *row))
    elif event in ("trade", "aggTrade"):
        messages.symbols.add(own)
        if data.get("X", "MARKET") != "MARKET":
            messages.off_book += 1
            return
        messages.trades.append((line, local, data["T"], float(data["p"]), float(data["q"]), bool(data["m"])))
    elif event == "depthUpdate":
        _require_depth(data, ("U", "u"), ("b", "a"))
        messages.symbols.add(own)
        messages.depth.append((line, local, data))


def _require_depth(data: dict[str, Any], numbers: Sequence[str], sides: Sequence[str]) -> None:
    """Refuse a message of the book that lacks its numbers, or whose levels are no prices and sizes."""
    for name in (*numbers, *({"T", "pu"} & {*data})):
        int(data[name])
    levels = [float(number) for side in sides for price, size in data[side] for number in (price, size)]
    if not all(map(math.isfinite, levels)):
        raise ValueError("prices and sizes must be finite")


def _refuse_several(name: str, messages: _Messages, symbol: str | None) -> None:
    known = ", ".join(sorted(messages.symbols))
    if symbol is not None and symbol.upper() not in messages.symbols:
        raise ValueError(f"{name}: symbol = {symbol!r} is not there; there are {known or 'none'}")
    if symbol is None and len(messages.symbols) > 1:
        raise ValueError(f"{name}: {len(messages.symbols)} symbols ({known}); say which one with symbol")


def _columns(rows: Sequence[tuple[float, ...]], number: int) -> list[np.ndarray]:
    """Columns of rows, whole numbers kept exact."""
    if not rows:
        return [np.empty(0)] * number
    return [np.array(column) for column in zip(*rows, strict=True)]


def _quotes(name: str, messages: _Messages, clock: str) -> tuple[pd.DataFrame, list[tuple[int, int]], list[Finding]]:
    """Quotes, stretches in which the book is unknown, and findings."""
    if not messages.quotes:
        return _quotes_of_depth(name, messages, clock)
    line, local, own, bid, bid_size, ask, ask_size = _columns(messages.quotes, 7)
    exchange = clock == "exchange" and bool((own > 0).all())
    stamps = epoch_nanoseconds(f"{name}, times of bookTicker", own if exchange else local)
    quotes = quote_rows(stamps, bid, bid_size, ask, ask_size, line)
    quotes.attrs["exchange"] = exchange
    return quotes, [], []


def _quotes_of_depth(
    name: str, messages: _Messages, clock: str
) -> tuple[pd.DataFrame, list[tuple[int, int]], list[Finding]]:
    """Quotes of the book that depth updates build."""
    exchange = clock == "exchange" and all("T" in data for _, _, data in messages.depth)
    depth = _Depth()
    rows: list[tuple[float, ...]] = []
    for line, local, data in messages.depth:
        time = int(data["T"]) if exchange else local
        known = depth.take_snapshot(data, time) if "lastUpdateId" in data else depth.take_update(data, time)
        if known:
            rows.append((line, known, *depth.best()))
    if messages.depth and not rows:
        raise ValueError(f"{name}: depth updates without a snapshot: no book can be built, and there is no bookTicker")
    lines, times, bid, bid_size, ask, ask_size = _columns(rows, 6)
    stamps = epoch_nanoseconds(f"{name}, times of depthUpdate", times)
    quotes = quote_rows(stamps, bid, bid_size, ask, ask_size, lines)
    findings = []
    if depth.missing:
        text = f"{depth.missing} times a depthUpdate is missing: the book is unknown until the next snapshot."
        findings.append(Finding("lost_messages", text))
    quotes.attrs["exchange"] = exchange
    return quotes, [], findings


@dataclass
class _Depth:
    """A book that is known from a snapshot on, as long as no update is missing."""

    book: LevelBook = field(default_factory=LevelBook)
    known: bool = False
    last: int = 0  # number of the last update
    missing: int = 0
    waiting: list[tuple[dict[str, Any], int]] = field(default_factory=list)  # updates that came before their snapshot

    def take_snapshot(self, data: dict[str, Any], stamp: int) -> int:
        """Start from a snapshot and the updates after it; the time from which the book is known."""
        self.book.clear()
        _apply(self.book, data["bids"], data["asks"])
        self.known, self.last = True, int(data["lastUpdateId"])
        for update, time in self.waiting:
            if int(update["u"]) > self.last:
                stamp = max(stamp, self.take_update(update, time))
        self.waiting.clear()
        return stamp

    def take_update(self, data: dict[str, Any], stamp: int) -> int:
        """Apply an update, or wait with it; its time, 0 where the book is not new."""
        if not self.known:
            self.waiting.append((data, stamp))
            return 0
        if int(data["u"]) <= self.last:
            return 0
        follows = int(data["pu"]) <= self.last if "pu" in data else int(data["U"]) <= self.last + 1
        if not follows:
            self.known, self.missing = False, self.missing + 1
            self.book.clear()
            self.waiting = [(data, stamp)]
            return stamp
        self.last = int(data["u"])
        _apply(self.book, data["b"], data["a"])
        return stamp

    def best(self) -> tuple[float, float, float, float]:
        """The best quotes, NaN where the book is unknown."""
        return self.book.best()


def _apply(book: LevelBook, bids: Iterable[Sequence[str]], asks: Iterable[Sequence[str]]) -> None:
    for price, size in bids:
        book.set(True, float(price), float(size))
    for price, size in asks:
        book.set(False, float(price), float(size))


def _trades(name: str, messages: _Messages, local_clock: bool) -> pd.DataFrame:
    line, local, own, price, size, maker = _columns(messages.trades, 6)
    stamps = epoch_nanoseconds(f"{name}, times of trades", own)
    if local_clock and stamps.size:
        stamps = _on_local_clock(stamps, epoch_nanoseconds(f"{name}, local times", local))
    return trade_rows(stamps, price, size, np.where(maker.astype(bool), "sell", "buy").astype(object), line)


def _on_local_clock(stamps: Integers, local: Integers) -> Integers:
    """Times of the exchange on the local clock: later by the shortest delay of each minute, in between linear.

    The trades of one time stay together, and delays of their channel do not put them behind the quotes that they cause.
    """
    minute = (stamps - stamps[0]) // MINUTE
    delay = pd.Series(local - stamps).groupby(minute).min()
    middle = (delay.index.to_numpy() + 0.5) * MINUTE
    shift = np.interp((stamps - stamps[0]).astype(float), middle.astype(float), delay.to_numpy(dtype=float))
    shifted: Integers = stamps + np.rint(shift).astype(np.int64)
    return shifted


READER = Reader("Binance stream", "lines of local time and JSON of bookTicker, trade or depthUpdate", kind, read)
