"""The formats that are known, found by what a file holds, never by its name."""

from __future__ import annotations

from mmgym.tapes import binance, binance_stream, databento, epex, hftbacktest, house, lobster, tardis
from mmgym.tapes.pieces import Reader
from mmgym.tapes.text_files import Source, fail

READERS: tuple[Reader, ...] = (
    house.READER,
    binance.READER,
    binance_stream.READER,
    databento.READER,
    tardis.READER,
    hftbacktest.READER,
    epex.READER,
    lobster.READER,
)


def recognise(source: Source) -> tuple[Reader, str]:
    """The reader of a file, and the kind of file that it is to it.

    Raises
    ------
    ValueError
        If no format fits; the message says which ones there are.
    """
    for reader in READERS:
        kind = reader.kind(source)
        if kind is not None:
            return reader, kind
    known = "; ".join(f"{reader.name}: {reader.layout}" for reader in READERS)
    if not source.content.strip():
        what = "header" if source.content else "file"
        raise ValueError(f"{source.name}, line 1: the {what} is empty; it needs a header and rows")
    if not source.first_lines:
        raise ValueError(f"{source.name}: not a CSV file in UTF-8, nor another known format ({known})")
    shown = source.header[0] if source.header else source.first_lines[0][:40]
    return fail(source.name, 1, shown, f"no known format; {_nearest(source)}{known}")


def _nearest(source: Source) -> str:
    """The format of which a header has most columns, at least two in three, and what it lacks."""
    header, lacking = {cell.replace(" ", "") for cell in source.header}, []
    for reader in READERS:
        for kind, columns in reader.headers.items():
            missing = [column for column in columns if column not in header]
            if 3 * len(missing) <= len(columns):
                lacking.append((len(missing) / len(columns), f"{reader.name} ({kind})", missing))
    if not lacking:
        return ""
    _, name, missing = min(lacking)
    shown = ", ".join(map(repr, missing))
    return f"the nearest is {name}, of which {shown} {'is' if len(missing) == 1 else 'are'} missing; known are "
