"""Reading recorded markets from CSV files, with errors that name file, line and column.

Level-1 tape
------------
A ``.csv`` or ``.csv.gz`` file in UTF-8 whose first line is a header; one row per event, in the order of the exchange.

=========== ===================== =================================================================================
column      in the rows           meaning
=========== ===================== =================================================================================
time_s      all                   seconds; never falls, and several rows may bear one time stamp
event       all                   ``quote`` (new best quotes) or ``trade``
bid, ask    quote                 best prices, ``bid < ask``
bid_size    quote                 size at the best bid, positive
ask_size    quote                 size at the best ask, positive
price, size trade                 price and positive size of one trade
side        trade                 side of the aggressor, ``buy`` or ``sell``
=========== ===================== =================================================================================

The cells of the columns that do not belong to a row's event are empty. Further columns are ignored.

Lines are counted from 1, and the header is line 1. No cell may hold a comma, so one line is one row.
"""

from __future__ import annotations

import csv
import gzip
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn, TextIO, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

TAPE_NUMBERS = ("time_s", "bid", "bid_size", "ask", "ask_size", "price", "size")
TAPE_WORDS = ("event", "side")
TAPE_COLUMNS = ("time_s", "event", "bid", "bid_size", "ask", "ask_size", "price", "size", "side")
ROWS_AT_ONCE = 100_000
LARGEST_NUMBER = 1e100  # squares and cubes of what is read stay finite

Array = NDArray[np.float64]


def read_header(path: str | Path) -> list[str]:
    """Column names of a CSV file.

    Raises
    ------
    ValueError
        If the file is empty or is no text file.
    """
    return next(_rows(Path(path)))


def read_columns(
    path: str | Path, numbers: Sequence[str], words: Sequence[str] = (), *, allow_empty: bool = False
) -> pd.DataFrame:
    """Read the named columns of a CSV file.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` file, or a gzipped one whose name ends in ``.gz``.
    numbers, words : sequence of str
        Columns of numbers (an empty cell becomes NaN) and of words (an empty cell stays the empty string).
    allow_empty : bool
        Whether a header without rows is a table.

    Returns
    -------
    pandas.DataFrame
        Row ``i`` is line ``i + 2`` of the file.

    Raises
    ------
    ValueError
        If the file is empty, is no CSV or is cut short, lacks a column, or a cell of ``numbers`` is neither empty
        nor a finite number (0, or from 1e-100 to 1e100 in size).
    """
    path = Path(path)
    rows = _rows(path)
    header = next(rows)
    for column in (*numbers, *words):
        if header.count(column) != 1:
            problem = "missing" if column not in header else "named twice"
            fail(path, 1, column, f"{problem}; the header must name {', '.join((*numbers, *words))} once each")
    parts = []
    line = 2
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        parts.append(_parse(path, header, batch, line, numbers, words))
        line += len(batch)
    if not parts and allow_empty:
        parts.append(_parse(path, header, [], line, numbers, words))
    if not parts:
        raise ValueError(f"{path}, line 2: no rows; at least one row must follow the header")
    return pd.concat(parts, ignore_index=True)


def require(path: str | Path, table: pd.DataFrame, column: str, allowed: ArrayLike, rule: str) -> None:
    """Refuse a file at the first row where `allowed` is false.

    Parameters
    ----------
    path : str or Path
        Name of the file, for the message.
    table : pandas.DataFrame
        What `read_columns` returned.
    column : str
        The column at fault.
    allowed : array_like of bool, shape (rows,)
        Which rows are in order.
    rule : str
        What is allowed, for the message.

    Raises
    ------
    ValueError
        Naming file, line, column, cell and rule.
    """
    wrong = np.flatnonzero(~np.asarray(allowed, dtype=bool))
    if wrong.size:
        cell = table[column].iloc[wrong[0]]
        shown = "an empty cell" if cell == "" or cell != cell else str(cell)
        fail(path, int(wrong[0]) + 2, column, f"{shown} is not allowed; {rule}")


def fail(path: str | Path, line: int, column: str, problem: str) -> NoReturn:
    """Raise the ValueError that names file, line and column."""
    raise ValueError(f"{path}, line {line}, column {column!r}: {problem}")


def read_tape(path: str | Path) -> pd.DataFrame:
    """Read and check a level-1 tape (the columns are in the module's docstring).

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.csv.gz`` file.

    Returns
    -------
    pandas.DataFrame
        The nine documented columns; row ``i`` is line ``i + 2`` of the file, cells that do not belong to an event are
        NaN (numbers) or empty (``side``).

    Raises
    ------
    ValueError
        If anything in the file breaks the format; the message names file, line, column and what is allowed.
    """
    tape = read_columns(path, TAPE_NUMBERS, TAPE_WORDS)
    check_tape(path, tape)
    return tape


def check_tape(path: str | Path, tape: pd.DataFrame) -> None:
    """Refuse a tape that breaks the format, as `read_tape` does.

    Parameters
    ----------
    path : str or Path
        Name of the file, for the message.
    tape : pandas.DataFrame
        The nine columns as `read_tape` returns them.

    Raises
    ------
    ValueError
        Naming file, line, column and what is allowed.
    """
    require(path, tape, "time_s", tape["time_s"].notna(), "every row needs a time in seconds")
    require(path, tape, "time_s", ~(tape["time_s"].diff() < 0), "time must not fall from one row to the next")
    require(path, tape, "event", tape["event"].isin(["quote", "trade"]), "an event is 'quote' or 'trade'")
    quote = tape["event"] == "quote"
    for column in ("bid", "bid_size", "ask", "ask_size"):
        require(path, tape, column, tape[column].notna() == quote, "quote rows need a number, trade rows an empty cell")
    for column in ("price", "size"):
        require(path, tape, column, tape[column].isna() == quote, "trade rows need a number, quote rows an empty cell")
    for column in ("bid_size", "ask_size", "size"):
        require(path, tape, column, ~(tape[column] <= 0), "a size must be positive")
    require(path, tape, "bid", ~(tape["bid"] >= tape["ask"]), "the bid must lie below the ask of the same row")
    side_known = tape["side"].isin(["buy", "sell"])
    require(path, tape, "side", side_known | quote, "the aggressor of a trade is 'buy' or 'sell'")
    require(path, tape, "side", (tape["side"] == "") | ~quote, "a quote row has no side")


def best_quotes(tape: pd.DataFrame) -> pd.DataFrame:
    """Best quotes once the events of each time stamp are over.

    Parameters
    ----------
    tape : pandas.DataFrame
        What `read_tape` returned.

    Returns
    -------
    pandas.DataFrame
        ``time_s`` (strictly rising), ``bid``, ``bid_size``, ``ask``, ``ask_size`` and ``mid``, one row per time stamp
        that has quotes.
    """
    quotes = tape.loc[tape["event"] == "quote", ["time_s", "bid", "bid_size", "ask", "ask_size"]]
    quotes = quotes.drop_duplicates("time_s", keep="last", ignore_index=True)
    return quotes.assign(mid=(quotes["bid"] + quotes["ask"]) / 2)


def price_step(quotes: pd.DataFrame) -> float:
    """Smallest difference between two best prices of `best_quotes`, rounded to six digits: the tick of a long tape."""
    prices = np.unique(quotes[["bid", "ask"]].to_numpy(dtype=float))
    steps = np.diff(prices)
    return float(f"{steps[steps > 1e-9 * np.abs(prices).max()].min():.6g}")


def sample_mid(quotes: pd.DataFrame, *, start: float, end: float, interval: float) -> tuple[Array, Array]:
    """The mid every `interval` seconds from `start` on: that of the last quote at or before.

    Parameters
    ----------
    quotes : pandas.DataFrame
        What `best_quotes` returned; its first row stands at `start` or before.
    start, end, interval : float
        Seconds.

    Returns
    -------
    samples, mid : array, shape (n,)
        Times (s) from `start` to `end` at most, and mid prices.
    """
    number = math.floor((end - start) / interval + 1e-9) + 1
    samples: Array = start + interval * np.arange(number, dtype=float)
    latest = np.searchsorted(quotes["time_s"], samples + 1e-9 * interval, side="right") - 1
    return samples, quotes["mid"].to_numpy(dtype=float)[latest]


def market_orders(tape: pd.DataFrame) -> pd.DataFrame:
    """Market orders: the trades of one aggressor side at one time stamp, taken together.

    Parameters
    ----------
    tape : pandas.DataFrame
        What `read_tape` returned.

    Returns
    -------
    pandas.DataFrame
        ``time_s``, ``side`` (of the aggressor), ``size``, ``touch``: the best price for the aggressor, and ``reach``:
        the distance of the worst price from the mid before the time stamp, in units of price; NaN where no quote comes
        before.
    """
    trades = tape[tape["event"] == "trade"]
    orders = trades.groupby(["time_s", "side"], as_index=False).agg(
        size=("size", "sum"), lowest=("price", "min"), highest=("price", "max")
    )
    quotes = best_quotes(tape)
    before = np.searchsorted(quotes["time_s"], orders["time_s"])  # quotes before the time stamp
    mid = np.concatenate([[np.nan], quotes["mid"]])[before]
    buy = orders["side"] == "buy"
    touch = np.where(buy, orders["lowest"], orders["highest"])
    reach = np.where(buy, orders["highest"] - mid, mid - orders["lowest"])
    return orders[["time_s", "side", "size"]].assign(touch=touch, reach=reach)


def _rows(path: Path) -> Iterator[list[str]]:
    """Header and rows of a CSV file as lists of cells, all of one width."""
    line = 0
    width = 0
    try:
        with _open(path) as stream:
            for line, row in enumerate(csv.reader(stream, quoting=csv.QUOTE_NONE), start=1):
                width = width or len(row)
                if not row or len(row) != width:
                    problem = f"{len(row)} cells where the header has {width}" if width else "the header is empty"
                    raise ValueError(f"{path}, line {line}: {problem}; every line needs the same number of cells")
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, after line {line}: not a CSV file in UTF-8 ({error})") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}, after line {line}: not a complete gzip file ({error})") from error
    except csv.Error as error:
        raise ValueError(f"{path}, after line {line}: not a CSV file ({error})") from error
    if line == 0:
        raise ValueError(f"{path}, line 1: the file is empty; it needs a header and rows")


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _parse(
    path: Path, header: list[str], rows: list[list[str]], first_line: int, numbers: Sequence[str], words: Sequence[str]
) -> pd.DataFrame:
    """Turn cells into numbers; refuse the first cell that is none."""
    text = pd.DataFrame(rows, columns=header, dtype=object)
    parsed: dict[str, pd.Series] = {}
    for column in numbers:
        parsed[column] = pd.to_numeric(text[column], errors="coerce").astype(float)
        size = parsed[column].abs()
        usable = (size <= LARGEST_NUMBER) & ((size >= 1 / LARGEST_NUMBER) | (size == 0))
        wrong: NDArray[np.intp] = np.flatnonzero(~usable & (text[column] != ""))
        if wrong.size:
            cell = text[column].iloc[wrong[0]]
            fail(
                path,
                first_line + int(wrong[0]),
                column,
                f"{cell!r} is not allowed; a finite number is (0, or 1e-100 to 1e100 in size)",
            )
    return pd.DataFrame(parsed | {column: text[column].map(sys.intern) for column in words})
