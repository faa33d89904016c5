"""Tardis.dev's downloadable CSV files: quotes, book_ticker, book_snapshot and trades.

=========== =========================================================================================================
file        columns
=========== =========================================================================================================
quotes,     exchange, symbol, timestamp, local_timestamp, ask_amount, ask_price, bid_price, bid_amount
book_ticker
snapshots   the same with asks[0].price, asks[0].amount, bids[0].price, bids[0].amount and deeper levels
trades      exchange, symbol, timestamp, local_timestamp, id, side, price, amount
=========== =========================================================================================================

Times are microseconds since 1970; ``timestamp`` is the exchange's. ``side`` is the aggressor's: buy, sell or unknown.
An empty cell says that a side of the book is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmgym.tapes.binance import once_each
from mmgym.tapes.pieces import Piece, Reader, one_symbol, piece, quote_rows, trade_rows
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source, read_columns
from mmgym.tapes.units import epoch_nanoseconds

BASE = ("exchange", "symbol", "timestamp", "local_timestamp")
QUOTES = ("bid_price", "bid_amount", "ask_price", "ask_amount")
SNAPSHOTS = ("bids[0].price", "bids[0].amount", "asks[0].price", "asks[0].amount")
HEADERS = {"quotes": (*BASE, *QUOTES), "snapshots": (*BASE, *SNAPSHOTS), "trades": (*BASE, "side", "price", "amount")}


def kind(source: Source) -> str | None:
    """``"quotes"``, ``"snapshots"`` or ``"trades"``, by the header."""
    header = set(source.header)
    return next((k for k, columns in HEADERS.items() if header >= {*columns} and "is_snapshot" not in header), None)


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each file is a piece."""
    return [_read_one(name, source, selection) for name, source in files]


def _read_one(name: str, source: Source, selection: Selection) -> Piece:
    time = "timestamp" if selection.clock == "exchange" else "local_timestamp"
    place = f"{source.name}, column {time!r}"
    if name != "trades":
        columns = QUOTES if name == "quotes" else SNAPSHOTS
        table = read_columns(source, columns, ("symbol",), integers=(time,))
        table = one_symbol(source.name, table, "symbol", selection.symbol)
        stamps = epoch_nanoseconds(place, table[time])
        bid, bid_size, ask, ask_size = (table[column] for column in columns)
        rows = quote_rows(stamps, bid, bid_size, ask, ask_size, table.index + 2)
        return piece(source.name, [rows], changes_only=True)
    table = read_columns(source, ("price", "amount"), ("symbol", "side", "id"), integers=(time,))
    table = one_symbol(source.name, table, "symbol", selection.symbol)
    table, findings = once_each(source.name, table, "id") if (table["id"] != "").all() else (table, [])
    side = np.where(table["side"].isin(["buy", "sell"]), table["side"], "")
    rows = trade_rows(epoch_nanoseconds(place, table[time]), table["price"], table["amount"], side, table.index + 2)
    return piece(source.name, [rows], findings=findings)


READER = Reader("Tardis", "quotes, book_ticker or book_snapshot, and trades", kind, read, HEADERS)
