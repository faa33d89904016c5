"""Binance's historical files (data.binance.vision), spot and futures, with and without a header.

=========== =========================================================================================================
file        columns in their order
=========== =========================================================================================================
aggTrades   agg_trade_id, price, quantity, first_trade_id, last_trade_id, transact_time, is_buyer_maker; spot: also
            whether it was the best price
trades      id, price, qty, quote_qty, time, is_buyer_maker; spot: also whether it was the best price
bookTicker  update_id, best_bid_price, best_bid_qty, best_ask_price, best_ask_qty, transaction_time, event_time
=========== =========================================================================================================

Times are milliseconds since 1970, in spot files from 2025 on microseconds. Where the buyer was the maker, the aggressor
sold. A tape needs bookTicker and one of the two kinds of trades.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmgym.tapes.findings import Finding
from mmgym.tapes.pieces import Piece, Reader, piece, quote_rows, trade_rows
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source, fail, read_columns
from mmgym.tapes.units import epoch_nanoseconds

AGGREGATES = ("agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker")
TRADES = ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker")
QUOTES = (
    "update_id",
    "best_bid_price",
    "best_bid_qty",
    "best_ask_price",
    "best_ask_qty",
    "transaction_time",
    "event_time",
)
BEST = "is_best_match"
LAYOUTS: dict[str, tuple[str, ...]] = {
    "aggTrades": AGGREGATES,
    "spot aggTrades": (*AGGREGATES, BEST),
    "trades": TRADES,
    "spot trades": (*TRADES, BEST),
    "bookTicker": QUOTES,
}
FLAGS, TIMES = {"is_buyer_maker", BEST}, {"transact_time", "time", "transaction_time", "event_time"}


def kind(source: Source) -> str | None:
    """The layout of a file, by its header or by what its first cells are; with ``header`` where it has one."""
    header = source.header
    if {"update_id", "best_bid_price", "transaction_time"} <= set(header):
        return "bookTicker header"
    if "is_buyer_maker" in header:
        return "aggTrades header" if "transact_time" in header else "trades header" if "time" in header else None
    for name, layout in LAYOUTS.items():
        if len(header) == len(layout) and all(map(_fits, layout, header)):
            return name
    return None


def _fits(column: str, cell: str) -> bool:
    if column in FLAGS:
        return cell in ("true", "false")
    try:
        number = float(cell)
    except ValueError:
        return False
    if column in TIMES:
        return cell.isdigit() and number >= 1e11
    return number >= 0 and (cell.isdigit() or not column.endswith("id"))


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each file is a piece."""
    return [_read_one(name, source) for name, source in files]


def _read_one(name: str, source: Source) -> Piece:
    layout = None if name.endswith("header") else LAYOUTS[name]
    if name.startswith("bookTicker"):
        table = read_columns(source, QUOTES[1:5], integers=(QUOTES[0], QUOTES[5]), names=layout)
        stamps = epoch_nanoseconds(f"{source.name}, column 'transaction_time'", table["transaction_time"])
        bid, bid_size, ask, ask_size = (table[column] for column in QUOTES[1:5])
        rows = quote_rows(stamps, bid, bid_size, ask, ask_size, table.index + 2)
        return piece(source.name, [rows])
    identity, size, time = ("agg_trade_id", "quantity", "transact_time") if "agg" in name else ("id", "qty", "time")
    table = read_columns(source, ("price", size), ("is_buyer_maker",), integers=(identity, time), names=layout)
    maker = table["is_buyer_maker"]
    known = maker.isin(["true", "false"]).to_numpy()
    if not known.all():
        place = int(np.flatnonzero(~known)[0])
        shown = f"{maker.iloc[place]!r} is not allowed; it is true or false"
        fail(source.name, int(table.index[place]) + 2, "is_buyer_maker", shown)
    table, findings = once_each(source.name, table, identity)
    stamps = epoch_nanoseconds(f"{source.name}, column {time!r}", table[time])
    side = np.where(table["is_buyer_maker"] == "true", "sell", "buy")
    rows = trade_rows(stamps, table["price"], table[size], side, table.index + 2)
    return piece(source.name, [rows], findings=findings)


def once_each(name: str, table: pd.DataFrame, identity: str) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows of which another bears the same number, once."""
    again = table.duplicated(identity).to_numpy()
    if not again.any():
        return table, []
    line = int(table.index[int(np.flatnonzero(again)[0])]) + 2
    text = f"{name}: {again.sum()} trades bear the {identity} of another (first: line {line}): they count once."
    return table[~again], [Finding("doubled", text)]


READER = Reader("Binance", "aggTrades or trades, and bookTicker, with or without a header", kind, read, LAYOUTS)
