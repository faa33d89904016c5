"""hftbacktest's npz files: an array ``data`` with the fields ev, exch_ts, local_ts, px, qty, order_id, ival, fval.

The low byte of ``ev`` is the event: 1 depth (``qty`` at ``px``, 0 removes the level), 2 trade, 3 clear a side up to
``px``, 4 snapshot, 5 best quote, and by order 10 add, 11 cancel, 12 modify, 13 fill (which the cancel that follows
takes off the book). Bits 29 and 28 say buy and sell (of a trade: who began it), 31 and 30 whether the event holds for
the exchange and for the local clock. Times are nanoseconds since 1970. The best quotes are those of the book that the
events build.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.tapes.order_book import LevelBook
from mmgym.tapes.pieces import Piece, Reader, piece, quote_rows, trade_rows
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import ZIP, Source

EXCHANGE, LOCAL, BUY, SELL = 1 << 31, 1 << 30, 1 << 29, 1 << 28
DEPTH, TRADE, CLEAR, SNAPSHOT, BEST = 1, 2, 3, 4, 5
ADD, CANCEL, MODIFY = 10, 11, 12
FIELDS = {"ev", "exch_ts", "local_ts", "px", "qty"}
ARRAY = b"\x93NUMPY"


def kind(source: Source) -> str | None:
    """``"events"`` where the bytes are those of NumPy's files."""
    return "events" if source.content.startswith((ZIP, ARRAY)) else None


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each file is a piece."""
    return [_read_one(source, selection) for _, source in files]


def _read_one(source: Source, selection: Selection) -> Piece:
    events = _events(source)
    wanted, column = (EXCHANGE, "exch_ts") if selection.clock == "exchange" else (LOCAL, "local_ts")
    flags = events["ev"].astype(np.int64)
    own = (flags & wanted > 0) & (flags & 0xFF > 0)
    if not own.any():
        raise ValueError(f"{source.name}: no event holds for the {selection.clock} clock; try the other one")
    order = np.flatnonzero(own)[np.argsort(events[column][own], kind="stable")]
    events, flags = events[order], flags[order]
    stamps, number = events[column].astype(np.int64), np.arange(1, len(events) + 1)  # in the order of this clock
    shown = flags & 0xFF == TRADE
    side = np.where(flags & BUY > 0, "buy", np.where(flags & SELL > 0, "sell", ""))
    trades = trade_rows(stamps[shown], events["px"][shown], events["qty"][shown], side[shown], number[shown])
    quotes = _quotes(events, flags, stamps, number)
    return piece(source.name, [trades, quotes], by_line=True, changes_only=True)


def _events(source: Source) -> NDArray:
    """The array of events."""
    try:
        loaded: Any = np.load(io.BytesIO(source.content), allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            names = list(loaded.files)
            loaded = loaded["data"] if "data" in names else loaded[names[0]]
    except (ValueError, OSError, EOFError, KeyError, IndexError) as error:
        raise ValueError(f"{source.name}: not an npz file of hftbacktest ({error})") from error
    if not set(loaded.dtype.names or ()) >= FIELDS or not loaded.size:
        shown = ", ".join(loaded.dtype.names or ("no fields",))
        raise ValueError(f"{source.name}: it needs events with {', '.join(sorted(FIELDS))}; it has {shown}")
    events: NDArray = loaded
    return events


def _quotes(events: NDArray, flags: NDArray, stamps: NDArray, number: NDArray) -> pd.DataFrame:
    """The best quotes after each event that changes the book."""
    book = LevelBook()
    orders: dict[int, tuple[bool, float, float]] = {}
    rows: list[tuple[Any, ...]] = []
    names = events.dtype.names or ()
    keys = events["order_id"].tolist() if "order_id" in names else [0] * len(events)
    columns = (flags.tolist(), events["px"].tolist(), events["qty"].tolist(), keys)
    for place, (flag, price, size, key) in enumerate(zip(*columns, strict=True)):
        code, bid = flag & 0xFF, bool(flag & BUY)
        if code in (DEPTH, SNAPSHOT):
            book.set(bid, price, size)
        elif code == BEST:
            book.remove_better(bid, price)
            book.set(bid, price, size)
        elif code == CLEAR:
            _clear(book, orders, flag, price)
        elif code in (ADD, MODIFY, CANCEL):
            _by_order(book, orders, code, key, (bid, price, size))
        else:
            continue
        if not rows or stamps[rows[-1][0]] != stamps[place]:
            rows.append((place, *book.best()))
        rows[-1] = (place, *book.best())  # of one time, the book after all of its events
    if not rows:
        return quote_rows([], [], [], [], [], [])
    where, bids, bid_sizes, asks, ask_sizes = (np.array(column) for column in zip(*rows, strict=True))
    return quote_rows(stamps[where], bids, bid_sizes, asks, ask_sizes, number[where])


def _clear(book: LevelBook, orders: dict[int, tuple[bool, float, float]], flag: int, price: float) -> None:
    """Remove the levels of a side from the best one to a price, all of them where there is none; else both sides."""
    if not flag & (BUY | SELL):
        book.clear()
        orders.clear()
        return
    bid = bool(flag & BUY)
    if not np.isfinite(price) or price == 0:
        (book.bids if bid else book.asks).clear()
        return
    book.remove_better(bid, price)
    book.set(bid, price, 0.0)


def _by_order(
    book: LevelBook, orders: dict[int, tuple[bool, float, float]], code: int, key: int, new: tuple[bool, float, float]
) -> None:
    """A change of one order: a cancel takes its size off, the others say what the order is now."""
    old = orders.pop(key, None)
    if old is not None:
        book.add(old[0], old[1], -old[2])
    if code == CANCEL:
        new = (*old[:2], old[2] - new[2] if new[2] > 0 else 0.0) if old is not None else (*new[:2], 0.0)
    if new[2] > 0:
        orders[key] = new
        book.add(*new)


READER = Reader("hftbacktest", "npz of events with ev, exch_ts, local_ts, px, qty", kind, read)
