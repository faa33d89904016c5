"""mmgym's own format: a CSV file with the columns of `mmgym.tapes.level1`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mmgym.tapes.level1 import TAPE_COLUMNS, TAPE_NUMBERS, TAPE_WORDS
from mmgym.tapes.pieces import Piece, Reader
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source, read_columns, require


def kind(source: Source) -> str | None:
    """``"tape"`` where the header names the columns of a tape, or most of them."""
    return "tape" if "event" in source.header and len({*source.header} & {*TAPE_COLUMNS}) >= 5 else None


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> list[Piece]:
    """Each file is a piece; its times have no date."""
    return [Piece(source.name, read_level1(source), None) for _, source in files]


def read_level1(source: Source) -> pd.DataFrame:
    """The rows of a file, and ``line``.

    Raises
    ------
    ValueError
        If a row lacks its time, is no quote and no trade, or has cells of the other event.
    """
    tape = read_columns(source, TAPE_NUMBERS, TAPE_WORDS)
    check_cells(source.name, tape)
    return tape[list(TAPE_COLUMNS)].assign(line=tape.index + 2)


def check_cells(name: str, tape: pd.DataFrame) -> None:
    """Refuse a row that lacks its time, is no quote and no trade, or has cells of the other event."""
    require(name, tape, "time_s", tape["time_s"].notna(), "every row needs a time in seconds")
    require(name, tape, "event", tape["event"].isin(["quote", "trade"]), "an event is 'quote' or 'trade'")
    quote = tape["event"] == "quote"
    for column in ("bid", "bid_size", "ask", "ask_size"):
        require(name, tape, column, tape[column].isna() | quote, "quote rows need a number, trade rows an empty cell")
    for column in ("price", "size"):
        require(name, tape, column, tape[column].isna() | ~quote, "trade rows need a number, quote rows an empty cell")
    require(name, tape, "side", (tape["side"] == "") | ~quote, "a quote row has no side")
    known = tape["side"].isin(["buy", "sell", ""])
    require(name, tape, "side", known, "the aggressor of a trade is 'buy' or 'sell'")


READER = Reader("mmgym", ", ".join(TAPE_COLUMNS), kind, read, {"tape": TAPE_COLUMNS})
