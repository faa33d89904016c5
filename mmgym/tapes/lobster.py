"""LOBSTER's pairs of files without headers, one row of each per event.

=========== =========================================================================================================
file        columns in their order
=========== =========================================================================================================
message     time (s after midnight, in the exchange's place), type, order id, size, price (1e-4 dollars), direction of
            the limit order (1 buy, -1 sell)
orderbook   ask price 1, ask size 1, bid price 1, bid size 1, ask price 2, ...: the book after the event
=========== =========================================================================================================

Executions of visible orders (type 4) are the trades, and the aggressor is on the other side of the limit order. Those
of hidden orders (5) and auctions (6) do not come from the book and are left out. From a halt (7, price -1) until
trading goes on (price 1) nothing is observed. Prices of 9999999999 and -9999999999 stand for an empty side. The date is
taken from names such as ``AAPL_2012-06-21_34200000_57600000_message_10.csv``; without one the stamps have none. A
message file belongs to the orderbook file of the same name, else to that at the same place in their order. Give the
hours of a session without a zone: the stamps are those of the exchange's place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.tapes.findings import Finding
from mmgym.tapes.pieces import Piece, Reader, piece, quote_rows, trade_rows
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source, fail, read_columns
from mmgym.tapes.units import DAY_NS

MESSAGE = ("time", "type", "order", "size", "price", "direction")
UNIT = 1e-4  # dollars
NO_LEVEL = 9_999_999_999
LATEST = 2 * 86_400.0
DATE = re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)")
EXECUTED, HIDDEN, AUCTION, HALT = 4, 5, 6, 7

Flags = NDArray[np.bool_]


def kind(source: Source) -> str | None:
    """``"message"`` or ``"orderbook"``, by what the cells of the first rows are."""
    rows = source.first_cells[:20]
    try:
        numbers = [[float(cell) for cell in row if cell] for row in rows]
    except ValueError:
        try:
            numbers = [[float(cell) for cell in row[:6]] for row in rows]  # a seventh column may name the dealer
        except ValueError:
            return None
    if not numbers or not all(math.isfinite(value) for row in numbers for value in row):
        return None
    width = len(rows[0])
    if width in (6, 7) and all(
        len(row) >= 6 and 0 <= row[0] < LATEST and row[1] in range(1, 20) and row[5] in (-1, 0, 1) for row in numbers
    ):
        return "message"
    if width % 4 or any(len(row) != width for row in numbers):
        return None
    whole = all(value == int(value) for row in numbers for value in row)
    asks_above = all(row[0] > row[2] for row in numbers)
    return "orderbook" if whole and asks_above else None


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each pair of files is a piece."""
    return [_read_pair(message, book) for message, book in _pairs(files)]


def _pairs(files: Sequence[tuple[str, Source]]) -> list[tuple[Source, Source]]:
    messages = [source for name, source in files if name == "message"]
    books = [source for name, source in files if name == "orderbook"]
    if len(messages) != len(books):
        raise ValueError(
            f"{files[0][1].name}: {len(messages)} message and {len(books)} orderbook files; each day needs one of both"
        )
    by_name = {source.name: source for source in books}
    twins = [by_name.get(source.name.replace("message", "orderbook")) for source in messages]
    return [
        (message, twin if twin is not None and None not in twins else book)
        for message, twin, book in zip(messages, twins, books, strict=True)
    ]


def _read_pair(message: Source, book: Source) -> Piece:
    width = len(message.first_cells[0])
    events = read_columns(message, MESSAGE, names=(*MESSAGE, "dealer")[:width])
    levels = [f"level{place}" for place in range(len(book.first_cells[0]))]
    state = read_columns(book, levels[:4], names=levels)
    if len(events) != len(state):
        raise ValueError(f"{message.name} has {len(events)} rows, {book.name} {len(state)}: they are no pair")
    for column in MESSAGE:
        if events[column].isna().any():
            place = int(np.flatnonzero(events[column].isna())[0])
            fail(message.name, int(events.index[place]) + 2, column, "an empty cell is not allowed")
    known = events["type"].isin(range(1, 8)).to_numpy()
    if not known.all():
        place = int(np.flatnonzero(~known)[0])
        fail(message.name, int(events.index[place]) + 2, "type", f"{events['type'].iloc[place]:g}; it is 1 to 7")
    date = DATE.search(message.name.rpartition("/")[2])
    midnight = 0 if date is None else int(pd.Timestamp(date[1]).as_unit("ns").value)
    stamps = np.rint(events["time"].to_numpy(dtype=float) * 1e9).astype(np.int64) + midnight
    line = events.index.to_numpy() + 2
    ask, ask_size, bid, bid_size = (state[column].to_numpy(dtype=float) for column in levels[:4])
    empty = (np.abs(ask) >= NO_LEVEL) | (np.abs(bid) >= NO_LEVEL)
    ask, bid = (np.where(empty, np.nan, np.round(own * UNIT, 10)) for own in (ask, bid))
    kinds = events["type"].to_numpy(dtype=np.int64)
    own = kinds == EXECUTED
    price = np.round(events["price"].to_numpy(dtype=float)[own] * UNIT, 10)
    side = np.where(events["direction"].to_numpy(dtype=float)[own] < 0, "buy", "sell")
    trades = trade_rows(stamps[own], price, events["size"].to_numpy(dtype=float)[own], side, line[own])
    halted = kinds == HALT
    quotes = quote_rows(
        stamps[~halted], bid[~halted], bid_size[~halted], ask[~halted], ask_size[~halted], line[~halted]
    )
    cuts = _halts(stamps, halted, events["price"].to_numpy(dtype=float))
    found = piece(
        message.name,
        [trades, quotes],
        findings=_left_out(message.name, kinds, cuts),
        cuts=cuts,
        by_line=True,
        changes_only=True,
    )
    return found if date is not None else found.undated()


def _halts(stamps: NDArray[np.int64], halted: Flags, price: NDArray[np.float64]) -> list[tuple[int, int]]:
    """From each halt until trading goes on, or to the end."""
    cuts: list[tuple[int, int]] = []
    begun: int | None = None
    for place in np.flatnonzero(halted):
        if price[place] == -1 and begun is None:
            begun = int(stamps[place])
        elif price[place] == 1 and begun is not None:
            cuts.append((begun, int(stamps[place])))
            begun = None
    return cuts if begun is None else [*cuts, (begun, int(stamps[-1]) + DAY_NS)]


def _left_out(name: str, kinds: NDArray[np.int64], cuts: Sequence[tuple[int, int]]) -> list[Finding]:
    findings = []
    for code, finding, what in ((HIDDEN, "hidden_trades", "hidden orders"), (AUCTION, "auction", "auctions")):
        count, trades = int((kinds == code).sum()), int((kinds == EXECUTED).sum())
        if count:
            text = f"{name}: {count} executions of {what} beside {trades} of visible orders: left out."
            findings.append(Finding(finding, text))
    if cuts:
        findings.append(Finding("halt", f"{name}: {len(cuts)} halts of trading: not observed."))
    return findings


READER = Reader("LOBSTER", "message and orderbook files of the same rows, without headers", kind, read)
