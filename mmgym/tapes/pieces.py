"""What a reader of a vendor's files hands over: events with the lines they stand on, and what was to be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mmgym.tapes.findings import Finding
from mmgym.tapes.level1 import TAPE_COLUMNS
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source
from mmgym.tapes.units import seconds_of_the_day


@dataclass(frozen=True)
class Piece:
    """The events of one file, or of files that belong together.

    Attributes
    ----------
    name : str
        For messages.
    rows : pandas.DataFrame
        The columns of a tape and ``line``, in the order of the file. A quote without a price, or a trade without a
        side, has NaN or the empty word there.
    origin : int or None
        The midnight from which ``time_s`` counts, nanoseconds since 1970; None where no date is known.
    findings : tuple of Finding
    cuts : tuple of (float, float)
        Stretches, in seconds, in which nothing was recorded.
    in_order : bool
        Whether all rows should be in the order of time; else quotes and trades each.
    """

    name: str
    rows: pd.DataFrame = field(repr=False)
    origin: int | None
    findings: tuple[Finding, ...] = ()
    cuts: tuple[tuple[float, float], ...] = ()
    in_order: bool = True

    def undated(self) -> Piece:
        """The same without a date: its seconds count from a midnight."""
        return replace(self, origin=None)


class Reader(NamedTuple):
    """A format.

    Attributes
    ----------
    name : str
    layout : str
        What its files hold, in a line.
    kind : callable
        The kind of file that a source is, or None: ``kind(source)``.
    read : callable
        The pieces of files of this format: ``read([(kind, source), ...], selection)``.
    headers : mapping of str to tuple of str
        Columns by which a header tells each kind.
    """

    name: str
    layout: str
    kind: Callable[[Source], str | None]
    read: Callable[[Sequence[tuple[str, Source]], Selection], list[Piece]]
    headers: Mapping[str, tuple[str, ...]] = {}


def quote_rows(
    nanoseconds: ArrayLike, bid: ArrayLike, bid_size: ArrayLike, ask: ArrayLike, ask_size: ArrayLike, line: ArrayLike
) -> pd.DataFrame:
    """Quotes with stamps in nanoseconds (column ``time_ns``)."""
    count = np.asarray(nanoseconds).size
    columns = {
        "time_ns": np.asarray(nanoseconds, dtype=np.int64),
        "event": np.full(count, "quote", dtype=object),
        "bid": np.asarray(bid, dtype=float),
        "bid_size": np.asarray(bid_size, dtype=float),
        "ask": np.asarray(ask, dtype=float),
        "ask_size": np.asarray(ask_size, dtype=float),
        "price": np.full(count, np.nan),
        "size": np.full(count, np.nan),
        "side": np.full(count, "", dtype=object),
        "line": np.asarray(line, dtype=np.int64),
    }
    return pd.DataFrame(columns)


def trade_rows(
    nanoseconds: ArrayLike, price: ArrayLike, size: ArrayLike, side: ArrayLike, line: ArrayLike
) -> pd.DataFrame:
    """Trades with stamps in nanoseconds (column ``time_ns``); ``side`` is ``buy``, ``sell`` or empty."""
    count = np.asarray(nanoseconds).size
    empty = dict.fromkeys(("bid", "bid_size", "ask", "ask_size"), np.full(count, np.nan))
    columns = {
        "time_ns": np.asarray(nanoseconds, dtype=np.int64),
        "event": np.full(count, "trade", dtype=object),
        **empty,
        "price": np.asarray(price, dtype=float),
        "size": np.asarray(size, dtype=float),
        "side": np.asarray(side, dtype=object),
        "line": np.asarray(line, dtype=np.int64),
    }
    return pd.DataFrame(columns)


def piece(
    name: str,
    parts: Sequence[pd.DataFrame],
    *,
    findings: Sequence[Finding] = (),
    cuts: Sequence[tuple[int, int]] = (),
    by_line: bool = False,
    changes_only: bool = False,
) -> Piece:
    """A piece of quotes and trades with stamps in nanoseconds.

    Parameters
    ----------
    name : str
    parts : sequence of pandas.DataFrame
        What `quote_rows` and `trade_rows` returned.
    findings : sequence of Finding
    cuts : sequence of (int, int)
        Stretches in nanoseconds in which nothing was recorded.
    by_line : bool
        Whether the rows of all parts are put in the order of their lines.
    changes_only : bool
        Whether quotes that repeat the quote before them are left out: rows that tell of the deeper book.
    """
    rows = pd.concat([part for part in parts if len(part)] or list(parts[:1]), ignore_index=True)
    if by_line:
        rows = rows.sort_values("line", kind="stable", ignore_index=True)
    if changes_only:
        rows = rows[~_repeated(rows)]
    time, origin = seconds_of_the_day(rows["time_ns"])
    rows = rows.assign(time_s=time)[[*TAPE_COLUMNS, "line"]]
    stretches = tuple(((start - origin) / 1e9, (end - origin) / 1e9) for start, end in cuts)
    return Piece(name, rows, origin, tuple(findings), stretches, in_order=False)


def _repeated(rows: pd.DataFrame) -> np.ndarray:
    """Quotes that say what the quote before them says."""
    quote = (rows["event"] == "quote").to_numpy()
    own = rows.loc[quote, ["bid", "bid_size", "ask", "ask_size"]].to_numpy(dtype=float)
    repeated = np.zeros(len(rows), dtype=bool)
    same = ((own[1:] == own[:-1]) | (np.isnan(own[1:]) & np.isnan(own[:-1]))).all(axis=1)
    repeated[np.flatnonzero(quote)[1:]] = same
    return repeated


def one_symbol(name: str, table: pd.DataFrame, column: str, symbol: str | None, what: str = "symbols") -> pd.DataFrame:
    """The rows of one instrument.

    Parameters
    ----------
    name : str
        Of the file.
    table : pandas.DataFrame
    column : str
        Which names the instrument.
    symbol : str, optional
        The one that is meant; without it all rows must be of one.
    what : str
        What the column holds, for the message.

    Raises
    ------
    ValueError
        If it is not there, or not clear.
    """
    own = table[column].astype(str).str.lower()
    known = sorted(own.unique())
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    if symbol is not None:
        if symbol.lower() not in known:
            raise ValueError(f"{name}: symbol = {symbol!r} is not there; there are {shown}")
        return table[own == symbol.lower()]
    if len(known) > 1:
        raise ValueError(f"{name}: {len(known)} {what} ({shown}); say which one with symbol")
    return table
