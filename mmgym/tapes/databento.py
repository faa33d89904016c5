"""Databento's MBP-1, TBBO and trades, as CSV (times as integers or ISO 8601, prices scaled or not) or as DBN.

=========== =========================================================================================================
schema      columns
=========== =========================================================================================================
trades      ts_recv, ts_event, rtype, publisher_id, instrument_id, action, side, depth, price, size, flags,
            ts_in_delta, sequence, symbol
mbp-1, tbbo those and bid_px_00, ask_px_00, bid_sz_00, ask_sz_00, bid_ct_00, ask_ct_00
=========== =========================================================================================================

Times are nanoseconds since 1970; ``ts_event`` is the exchange's, ``ts_recv`` the recorder's. Prices that are all
enormous whole numbers are multiples of 1e-9, and 2**63 - 1 (CSV: an empty cell) stands for none. Trades are the records
of action ``T``; their side is the aggressor's: ``A`` sold, ``B`` bought, ``N`` is not known. Records of mbp-1 bear the
book after them; a trade leaves it to the cancels that follow. Those of tbbo bear the book before the trade: it is taken
to stand since a nanosecond before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.tapes.findings import Finding
from mmgym.tapes.pieces import Piece, Reader, one_symbol, piece, quote_rows, trade_rows
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source, read_columns, require
from mmgym.tapes.units import epoch_nanoseconds, iso_nanoseconds

DBN, ZSTANDARD = b"DBN", b"\x28\xb5\x2f\xfd"
BOOK = ("bid_px_00", "bid_sz_00", "ask_px_00", "ask_sz_00")
EVENT = ("ts_event", "action", "side", "price", "size")
HEADERS = {"mbp-1": (*EVENT, *BOOK), "trades": EVENT}
PRICES = ("price", "bid_px_00", "ask_px_00")
NO_PRICE = float(2**63 - 1)
BAD_BOOK = 4  # bit of the flags
SMALLEST_SCALED = 1e6  # a thousandth of a unit of price


def kind(source: Source) -> str | None:
    """``"dbn"`` by the first bytes, ``"mbp-1"`` or ``"trades"`` by the header."""
    if source.content.startswith((DBN, ZSTANDARD)):
        return "dbn"
    header = set(source.header)
    return next((k for k, columns in HEADERS.items() if header >= {*columns} and "order_id" not in header), None)


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each file is a piece."""
    return [_read_one(name, source, selection) for name, source in files]


def _read_one(name: str, source: Source, selection: Selection) -> Piece:
    time = "ts_event" if selection.clock == "exchange" else "ts_recv"
    table = _read_dbn(source) if name == "dbn" else _read_csv(source, time, book=name == "mbp-1")
    key = "symbol" if "symbol" in table and (table["symbol"] != "").all() else "instrument_id"
    if key in table:
        table = one_symbol(source.name, table, key, selection.symbol)
    if "bid_px_00" in table and "publisher_id" in table:
        table = one_symbol(source.name, table, "publisher_id", None, "publishers, each with a book of its own")
    stamps = table[time].to_numpy(dtype=np.int64)
    line = table.index.to_numpy() + 2
    trade = (table["action"] == "t").to_numpy()
    side = table["side"].map({"a": "sell", "b": "buy"}).fillna("").to_numpy(dtype=object)
    price, size = table["price"].to_numpy(dtype=float), table["size"].to_numpy(dtype=float)
    trades = trade_rows(stamps[trade], price[trade], size[trade], side[trade], line[trade])
    findings = _bad_books(source.name, table)
    if "bid_px_00" not in table:
        return piece(source.name, [trades], findings=findings)
    bid, bid_size, ask, ask_size = (table[column].to_numpy(dtype=float) for column in BOOK)
    if trade.all():
        first = np.append(True, np.diff(stamps) != 0)
        quotes = quote_rows(stamps[first] - 1, bid[first], bid_size[first], ask[first], ask_size[first], line[first])
        text = "quotes are seen at trades only: what happens between trades (moves of the spread, the mid) is not seen."
        findings.append(Finding("quotes_at_trades", text))
    else:
        quotes = quote_rows(stamps, bid, bid_size, ask, ask_size, line)
    both = [trades, quotes] if not trade.all() else [quotes, trades]
    return piece(source.name, both, findings=findings, by_line=True, changes_only=not trade.all())


def _bad_books(name: str, table: pd.DataFrame) -> list[Finding]:
    if "flags" not in table:
        return []
    flags = table["flags"].fillna(0)
    require(name, table, "flags", flags.isin(range(256)), "flags are the sum of bits, from 0 to 255")
    flagged = int((flags.to_numpy(dtype=np.int64) & BAD_BOOK > 0).sum())
    if not flagged:
        return []
    return [Finding("bad_book", f"{name}: {flagged} records are flagged: their book may be wrong; they are kept.")]


def _read_csv(source: Source, time: str, *, book: bool) -> pd.DataFrame:
    """The columns of a CSV file, times in nanoseconds and prices in their unit."""
    header = source.header
    first = dict(zip(header, source.first_cells[1], strict=False)) if len(source.first_cells) > 1 else {}
    iso = not first.get(time, "0").isdigit()
    numbers = ["price", "size", *(BOOK if book else ())]
    numbers += [column for column in ("flags",) if column in header]
    words = ["action", "side", *(column for column in ("symbol", "instrument_id", "publisher_id") if column in header)]
    if iso:
        table = read_columns(source, numbers, (*words, time), keep_case=(time,))
        table[time] = iso_nanoseconds(source.name, table[time])
    else:
        table = read_columns(source, numbers, words, integers=(time,))
        table[time] = epoch_nanoseconds(f"{source.name}, column {time!r}", table[time])
    present = [name for name in PRICES if name in table]
    raw = table[present].to_numpy(dtype=float)
    table[present] = _prices(raw, scaled=_are_scaled(raw))
    return table


def _are_scaled(raw: NDArray[np.float64]) -> bool:
    """Whether prices are multiples of 1e-9: all are whole numbers, and would be enormous."""
    known = np.abs(raw[~np.isnan(raw) & (np.abs(raw) < NO_PRICE) & (raw != 0)])
    return bool(known.size and (known == np.floor(known)).all() and known.min() >= SMALLEST_SCALED)


def _prices(raw: NDArray[np.float64], scaled: bool) -> NDArray[np.float64]:
    known = np.where(np.abs(raw) >= NO_PRICE, np.nan, raw)
    return np.round(known * 1e-9, 9) if scaled else known


def _read_dbn(source: Source) -> pd.DataFrame:
    """The records of a DBN file, plain or compressed."""
    try:
        import databento_dbn
    except ImportError as error:
        raise ImportError(
            f"{source.name}: DBN files need the extra databento: pip install 'mmgym[databento]'"
        ) from error
    packed = source.content.startswith(ZSTANDARD)
    compression: Any = databento_dbn.Compression.ZSTD if packed else databento_dbn.Compression.NONE
    decoder = databento_dbn.DBNDecoder(compression=compression)
    try:
        decoder.write(source.content)
        records = decoder.decode()
    except databento_dbn.DBNError as error:
        raise ValueError(f"{source.name}: not a complete DBN file ({error})") from error
    wanted = [one for one in records if isinstance(one, databento_dbn.MBP1Msg | databento_dbn.TradeMsg)]
    if not wanted or len({type(one) for one in wanted}) > 1:
        kinds = ", ".join(sorted({type(one).__name__ for one in records})) or "nothing"
        raise ValueError(f"{source.name}: it holds {kinds}; records of mbp-1, tbbo or trades are read, one kind a file")
    columns = ["ts_event", "ts_recv", "action", "side", "price", "size", "flags", "instrument_id", "publisher_id"]
    if isinstance(wanted[0], databento_dbn.MBP1Msg):
        columns += list(BOOK)
    table = pd.DataFrame({column: [_plain(getattr(one, column)) for one in wanted] for column in columns})
    table.index = table.index - 1  # records are counted from 1
    for column in (name for name in PRICES if name in table):
        table[column] = _prices(table[column].to_numpy(dtype=float), scaled=True)
    return table


def _plain(value: object) -> object:
    """A field of a record: numbers, and small letters."""
    if isinstance(value, int | float):
        return int(value)
    return str(getattr(value, "value", value)).lower()


READER = Reader("Databento", "mbp-1, tbbo or trades, CSV or DBN", kind, read, HEADERS)
