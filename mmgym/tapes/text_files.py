"""Tables of text: plain, gzipped or zipped CSV files, read by pandas, with errors that name file, line and column.

Cells are separated by commas, semicolons or tabs. Names of columns may be quoted and in capitals; blank lines and lines
of comment (``#``) before the header are passed over; an empty cell, ``NA``, ``NaN``, ``None`` and ``null`` say that
there is no value. Lines are counted from 1; row ``i`` of a table is line ``i + 2`` of its file, by its index.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

LARGEST_NUMBER = 1e100  # squares and cubes of what is read stay finite
NO_VALUE = ["", "NA", "N/A", "na", "n/a", "NaN", "nan", "NAN", "None", "none", "null", "NULL"]
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file, or one member of an archive, unpacked.

    Attributes
    ----------
    name : str
        For messages.
    content : bytes
    """

    name: str
    content: bytes = field(repr=False)

    @cached_property
    def first_lines(self) -> list[str]:
        """The first hundred lines, without blank ones and comments before the header; empty where this is no text."""
        head = self.content[: 1 << 16].decode("utf-8-sig", errors="replace")
        if "\0" in head or head[:200].count("\ufffd") > 2:
            return []
        lines = [line for line in head.splitlines() if line.strip()]
        while lines and lines[0].lstrip().startswith("#"):
            lines.pop(0)
        return lines[:100]

    @cached_property
    def separator(self) -> str:
        """What stands between cells."""
        first = self.first_lines[0] if self.first_lines else ""
        return max(",;\t", key=first.count)

    @cached_property
    def first_cells(self) -> list[list[str]]:
        """The cells of the first lines, in small letters, without quotation marks."""
        rows = csv.reader(self.first_lines, delimiter=self.separator, skipinitialspace=True)
        try:
            return [[cell.strip().lower() for cell in row] for row in rows]
        except csv.Error:
            return []

    @cached_property
    def header(self) -> list[str]:
        """The cells of the first line."""
        return self.first_cells[0] if self.first_cells else []


def open_source(path: str | Path) -> list[Source]:
    """The file, or the members of the archive, unpacked; what a file is packed with is seen from its content.

    Raises
    ------
    ValueError
        If a packed file is cut short or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name the files in it")
    content = path.read_bytes()
    if content.startswith(GZIP) or (path.suffix == ".gz" and content):
        return [Source(str(path), _gunzip(path, content))]
    if content.startswith(ZIP):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if names and all(name.endswith(".npy") for name in names):
                    return [Source(str(path), content)]
                members = [Source(f"{path}:{name}", archive.read(name)) for name in names]
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{path}: not a complete zip file ({error})") from error
        if not members:
            raise ValueError(f"{path}: an empty zip file")
        return [
            Source(member.name, _gunzip(Path(member.name), member.content))
            if member.content.startswith(GZIP)
            else member
            for member in members
        ]
    return [Source(str(path), content)]


def _gunzip(path: Path, content: bytes) -> bytes:
    parts: list[bytes] = []
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            while part := stream.read(CHUNK):
                parts.append(part)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        line = sum(part.count(b"\n") for part in parts)
        raise ValueError(f"{path}, after line {line}: not a complete gzip file ({error})") from error
    return b"".join(parts)


def the_source(path: str | Path | Source) -> Source:
    """The one file of a path.

    Raises
    ------
    ValueError
        If an archive holds several.
    """
    if isinstance(path, Source):
        return path
    sources = open_source(path)
    if len(sources) > 1:
        raise ValueError(f"{path}: {len(sources)} files in one archive; unpack it and name one")
    return sources[0]


def read_columns(
    path: str | Path | Source,
    numbers: Sequence[str],
    words: Sequence[str] = (),
    *,
    integers: Sequence[str] = (),
    names: Sequence[str] | None = None,
    header: Sequence[str] | None = None,
    allow_empty: bool = False,
    keep_case: Sequence[str] = (),
) -> pd.DataFrame:
    """Read the named columns of a CSV file.

    Parameters
    ----------
    path : str, Path or Source
        A file, plain or packed.
    numbers, words, integers : sequence of str
        Columns of numbers (no value becomes NaN), of words (no value becomes the empty string; capitals become small
        letters), and of whole numbers too long for a float (every cell needs one), in small letters.
    names : sequence of str, optional
        Names of the columns of a file without a header.
    header : sequence of str, optional
        What the columns of the header are called; by default what it says, in small letters.
    allow_empty : bool
        Whether a header without rows is a table.
    keep_case : sequence of str
        Words whose capitals stay.

    Returns
    -------
    pandas.DataFrame
        Row ``i``, by its index, is line ``i + 2`` of the file.

    Raises
    ------
    ValueError
        If the file is empty, is no CSV or is cut short, lacks a column, or a cell of ``numbers`` is neither empty
        nor a finite number (0, or from 1e-100 to 1e100 in size).
    """
    source = the_source(path)
    first, text = _table(source, names is None)
    header = list(names or header or source.header)
    wanted = (*numbers, *integers, *words)
    for column in wanted:
        if header.count(column) != 1:
            problem = "missing" if column not in header else "named twice"
            fail(source.name, first, column, f"{problem}; the header must name {', '.join(wanted)} once each")
    width = len(header)
    lines = _lines(source, text, width, first if names is None else 0)
    if not lines.size and not allow_empty:
        raise ValueError(f"{source.name}, line {first + 1}: no rows; at least one row must follow the header")
    types = dict.fromkeys(numbers, "float64") | dict.fromkeys(words, "category") | dict.fromkeys(integers, "int64")
    try:
        with np.errstate(invalid="raise", over="raise"):
            table = _parse(source, text, header, types, lines)
    except (ValueError, ArithmeticError) as error:
        if not isinstance(error, pd.errors.ParserError):
            _name_the_cell(source, text, header, numbers, integers, lines)
        raise ValueError(f"{source.name}: not a CSV file ({error})") from error
    table.index = pd.Index(lines - 2)
    for column in numbers:
        size = table[column].abs()
        if not (table[column].isna() | (size <= LARGEST_NUMBER) & ((size >= 1 / LARGEST_NUMBER) | (size == 0))).all():
            _name_the_cell(source, text, header, numbers, integers, lines)
    for column in words:
        own = table[column]
        kept = [str(word).strip() if column in keep_case else str(word).strip().lower() for word in own.cat.categories]
        table[column] = pd.Series(np.array([*kept, ""], dtype=object)[own.cat.codes], index=table.index)
    return table


def _table(source: Source, has_header: bool) -> tuple[int, bytes]:
    """Line of the header (of the first row, where there is none), and the text."""
    try:
        source.content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = source.content.count(b"\n", 0, error.start)
        raise ValueError(f"{source.name}, after line {line}: not a CSV file in UTF-8 ({error})") from error
    text = source.content.removeprefix(b"\xef\xbb\xbf")
    if not text:
        raise ValueError(f"{source.name}, line 1: the file is empty; it needs a header and rows")
    if not text.strip():
        raise ValueError(f"{source.name}, line 1: the header is empty; every line needs the same number of cells")
    if b"\0" in text:
        raise ValueError(f"{source.name}: not a CSV file (it holds zero bytes)")
    first = 1
    for row in io.BytesIO(text):
        if row.strip() and not row.lstrip().startswith(b"#"):
            break
        first += 1
    return first, text


def _lines(source: Source, text: bytes, width: int, header: int) -> NDArray[np.int64]:
    """Numbers of the lines that are rows, each of which has as many cells as the header."""
    if b'"' in text:
        rows = csv.reader(io.StringIO(text.decode("utf-8")), delimiter=source.separator, skipinitialspace=True)
        try:
            pairs = [(len(row), bool("".join(row).strip())) for row in rows]
        except csv.Error as error:
            raise ValueError(f"{source.name}: not a CSV file ({error})") from error
        cells, filled = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    else:
        data = np.frombuffer(text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n") + b"\n", dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        breaks = np.flatnonzero(data == ord(source.separator))
        cells = np.diff(np.searchsorted(breaks, ends), prepend=0) + 1
        marks = np.flatnonzero((data != ord(source.separator)) & (data != ord(" ")) & (data != ord("\n")))
        filled = np.diff(np.searchsorted(marks, ends), prepend=0) > 0
    ragged = np.flatnonzero(filled & (cells != width) & (np.arange(cells.size) >= header))
    if ragged.size:
        line = int(ragged[0]) + 1
        raise ValueError(
            f"{source.name}, line {line}: {cells[line - 1]} cells where the header has {width}; every line needs the "
            "same number of cells"
        )
    lines: NDArray[np.int64] = np.flatnonzero(filled).astype(np.int64) + 1
    return lines[lines > header]


def _parse(
    source: Source, text: bytes, header: Sequence[str], types: dict[str, str], lines: NDArray[np.int64]
) -> pd.DataFrame:
    if not lines.size:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
    table: pd.DataFrame = pd.read_csv(
        io.BytesIO(text),
        sep=source.separator,
        header=None,
        names=list(range(len(header))),
        usecols=[header.index(name) for name in types],
        dtype={header.index(name): kind for name, kind in types.items()},
        skiprows=int(lines[0]) - 1,
        skip_blank_lines=False,
        keep_default_na=False,
        na_values=NO_VALUE,
        skipinitialspace=True,
    )
    table = table.iloc[lines - lines[0]].reset_index(drop=True)
    named: pd.DataFrame = table[[header.index(name) for name in types]].set_axis(list(types), axis=1)
    return named


def _name_the_cell(
    source: Source,
    text: bytes,
    header: Sequence[str],
    numbers: Sequence[str],
    integers: Sequence[str],
    lines: NDArray[np.int64],
) -> None:
    """Raise the error that names the first cell that is no number."""
    cells = _parse(source, text, header, dict.fromkeys((*numbers, *integers), "object"), lines)
    for column in (*numbers, *integers):
        own = cells[column].fillna("").astype(str)
        size = pd.to_numeric(own, errors="coerce").abs()
        usable = (size <= LARGEST_NUMBER) & ((size >= 1 / LARGEST_NUMBER) | (size == 0))
        rule = "a finite number is (0, or 1e-100 to 1e100 in size)"
        if column in integers:
            usable, rule = own.str.fullmatch(r"[+-]?\d{1,18}"), "a whole number is"
        wrong = np.flatnonzero(~(usable.to_numpy(dtype=bool) | ((own == "").to_numpy() & (column in numbers))))
        if wrong.size:
            cell = own.iloc[wrong[0]]
            fail(source.name, int(lines[wrong[0]]), column, f"{cell!r} is not allowed; {rule}")


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
        fail(path, int(table.index[wrong[0]]) + 2, column, f"{shown} is not allowed; {rule}")


def fail(path: str | Path, line: int, column: str, problem: str) -> NoReturn:
    """Raise the ValueError that names file, line and column."""
    raise ValueError(f"{path}, line {line}, column {column!r}: {problem}")
