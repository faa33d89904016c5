"""From files of any known format to one level-1 tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.tapes.cleaning import clean
from mmgym.tapes.findings import Finding
from mmgym.tapes.formats import recognise
from mmgym.tapes.house import check_cells
from mmgym.tapes.level1 import TAPE_COLUMNS
from mmgym.tapes.pieces import Piece
from mmgym.tapes.selection import Selection, cut_to_windows
from mmgym.tapes.text_files import Source, open_source
from mmgym.tapes.units import DAY, TIME_UNITS, refuse_years

Array = NDArray[np.float64]
Paths = str | Path | Sequence[str | Path]

SHARED = 1.0  # s that two files of one kind may overlap


@dataclass(frozen=True)
class Recording:
    """A level-1 tape, where it is from, and what was found while it was read.

    Attributes
    ----------
    name : str
        Of its files, for messages.
    tape : pandas.DataFrame
        The columns of `mmgym.tapes.level1`; ``time_s`` counts from midnight where stamps are dated.
    formats : tuple of str
        Formats of the files.
    origin : int or None
        That midnight, nanoseconds since 1970.
    findings : tuple of Finding
    cuts : array, shape (n, 2)
        Stretches of time that are not observed.
    gap : float or None
        Seconds: all longer pauses are gaps.
    unit_said : bool
        Whether the unit of time is known.
    """

    name: str
    tape: pd.DataFrame = field(repr=False)
    formats: tuple[str, ...] = ()
    origin: int | None = None
    findings: tuple[Finding, ...] = ()
    cuts: Array = field(default_factory=lambda: np.empty((0, 2)), repr=False)
    gap: float | None = None
    unit_said: bool = False


def read_tape(paths: Paths, selection: Selection | None = None, *, time_unit: str | None = None) -> pd.DataFrame:
    """Read files of any known format (`mmgym.tapes.formats`) as one level-1 tape.

    Parameters
    ----------
    paths : str, Path or sequence of them
        One or several files, plain, gzipped or zipped: days in any order, and the quotes and trades of a vendor who
        keeps them apart.
    selection : Selection, optional
        What is used of them; all by default.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Of ``time_s`` in mmgym's own format; stamps of other formats tell their unit by their size.

    Returns
    -------
    pandas.DataFrame
        ``time_s, event, bid, bid_size, ask, ask_size, price, size, side`` (`mmgym.tapes.level1`), in the order of time.
        ``time_s`` counts from the first midnight (UTC) where stamps are dated. ``attrs`` has ``findings``, what was
        left out or set right and why; ``origin``, that midnight; and ``formats``.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is of no known format, breaks its own, or more than one row in twenty has to be left out.
    """
    recording = read_recording(paths, selection, time_unit=time_unit)
    tape = recording.tape.copy()
    origin = None if recording.origin is None else str(pd.Timestamp(recording.origin, tz="UTC"))
    tape.attrs = {"findings": list(recording.findings), "origin": origin, "formats": list(recording.formats)}
    return tape


def read_recording(paths: Paths, selection: Selection | None = None, *, time_unit: str | None = None) -> Recording:
    """Read files as `read_tape`, with all that is known of them.

    Parameters
    ----------
    paths, selection, time_unit
        See `read_tape`.

    Returns
    -------
    Recording
    """
    selection = Selection() if selection is None else selection
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    if not names:
        raise ValueError("no files: at least one is needed")
    name = str(names[0]) if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    sources = [source for path in names for source in open_source(path)]
    for number, source in enumerate(sources):
        twin = next((other for other in sources[:number] if other.content == source.content), None)
        if twin is not None:
            raise ValueError(f"{twin.name} and {source.name} are the same file twice; name one of them")
    pieces, formats = _read(sources, selection)
    return _recording(name, pieces, formats, selection, time_unit)


def recording_of(tape: pd.DataFrame, selection: Selection | None = None, *, time_unit: str | None = None) -> Recording:
    """A table with the columns of a tape as a recording, checked as a file of mmgym's own format is."""
    if missing := [column for column in TAPE_COLUMNS if column not in tape]:
        raise ValueError(f"the tape: columns {', '.join(missing)} are missing; it needs {', '.join(TAPE_COLUMNS)}")
    rows = tape[list(TAPE_COLUMNS)].reset_index(drop=True)
    check_cells("the tape", rows)
    one = Piece("the tape", rows.assign(line=rows.index + 2), None)
    return _recording("the tape", [one], ["mmgym"], selection or Selection(), time_unit)


def _recording(
    name: str, pieces: list[Piece], formats: Sequence[str], selection: Selection, time_unit: str | None
) -> Recording:
    """Pieces joined, cut and cleaned."""
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise ValueError(f"time_unit must be one of {', '.join(TIME_UNITS)}, got {time_unit!r}")
    if time_unit is not None:
        pieces = [_in_unit(one, TIME_UNITS[time_unit]) for one in pieces]
    findings = [finding for one in pieces for finding in one.findings]
    rows, cuts, origin, joined = _join(name, pieces, time_unit is not None)
    findings += joined
    if selection.trade_lag:
        trades = rows["event"] == "trade"
        earlier = (rows["time_s"] - selection.trade_lag).round(9)  # exact again where stamps are decimal
        rows = rows.assign(time_s=rows["time_s"].where(~trades, earlier))
        rows = rows.sort_values("time_s", kind="stable", ignore_index=True)
    first, last = (float(rows["time_s"].iloc[place]) for place in (0, -1))
    windows, beyond = selection.windows(name, first, last, origin)
    findings += beyond
    if windows is not None:
        places = np.searchsorted(rows["time_s"], windows[:, 1], side="right")
        if (places == np.searchsorted(rows["time_s"], windows[:, 0])).all():
            runs = f"the tape runs from {first:.10g} to {last:.10g} s"
            raise ValueError(f"{name}: no events in the chosen window or session; {runs}")
        rows, between = cut_to_windows(rows, windows)
        cuts = [*cuts, *between.tolist()]
    rows, found, empty = clean(rows, [one.name for one in pieces])
    return Recording(
        name=name,
        tape=rows[list(TAPE_COLUMNS)].reset_index(drop=True),
        formats=tuple(formats),
        origin=origin,
        findings=(*findings, *found),
        cuts=merged([*cuts, *empty]),
        gap=selection.gap,
        unit_said=time_unit is not None or origin is not None,
    )


def _read(sources: Sequence[Source], selection: Selection) -> tuple[list[Piece], list[str]]:
    """The pieces of all files, read by the formats that know them."""
    files: dict[str, list[tuple[str, Source]]] = {}
    readers = {}
    for source in sources:
        reader, kind = recognise(source)
        readers[reader.name] = reader
        files.setdefault(reader.name, []).append((kind, source))
    pieces = [one for name, own in files.items() for one in readers[name].read(own, selection)]
    for one in pieces:
        if not len(one.rows):
            raise ValueError(f"{one.name}: no quotes and no trades")
    return pieces, list(files)


def _in_unit(one: Piece, factor: float) -> Piece:
    """A piece whose seconds were given in another unit; stamps that are dated are in seconds already."""
    if one.origin is not None:
        return one
    return replace(one, rows=one.rows.assign(time_s=one.rows["time_s"] * factor))


def _join(
    name: str, pieces: list[Piece], unit_said: bool
) -> tuple[pd.DataFrame, list[tuple[float, float]], int | None, list[Finding]]:
    """All rows on one clock with the number of their piece, stretches between files, the midnight, and findings."""
    dated = [one.origin for one in pieces if one.origin is not None]
    if dated and len(dated) < len(pieces):
        raise ValueError(f"{name}: some of the files have dated stamps and others have not: they are on no one clock")
    findings: list[Finding] = []
    if dated:
        origin: int | None = min(dated)
        shifts = [((one.origin or 0) - min(dated)) / 1e9 for one in pieces]
    else:
        origin = None
        for one in pieces:
            if not unit_said:
                refuse_years(one.name, one.rows["time_s"].to_numpy(dtype=float))
        shifts = _days(pieces)
        if any(shifts):
            text = f"the {len(pieces)} files begin at the same hours without dates: taken as days in their order."
            findings.append(Finding("days", text))
    parts, spans, cuts = [], [], []
    for number, (one, shift) in enumerate(zip(pieces, shifts, strict=True)):
        time = one.rows["time_s"].to_numpy(dtype=float) + shift
        parts.append(one.rows.assign(time_s=time, piece=number, place=np.arange(time.size)))
        spans.append((float(time.min()), float(time.max()), number))
        cuts += [(start + shift, end + shift) for start, end in one.cuts]
    _refuse_overlaps(pieces, parts)
    rows, disorder = _in_order(pieces, parts)
    findings += disorder
    cuts += _between_files(rows, spans)
    return rows, cuts, origin, findings


def _days(pieces: Sequence[Piece]) -> list[float]:
    """Whole days by which files without dates are put behind each other."""
    shifts, end = [], -np.inf
    for one in pieces:
        first, last = float(one.rows["time_s"].min()), float(one.rows["time_s"].max())
        shift = 0.0 if first >= end else DAY * float(np.ceil((end - first) / DAY))
        shifts.append(shift)
        end = last + shift
    return shifts


def _refuse_overlaps(pieces: Sequence[Piece], parts: Sequence[pd.DataFrame]) -> None:
    """Refuse two files that have quotes, or trades, of one time."""
    for event in ("quote", "trade"):
        times = [part.loc[part["event"] == event, "time_s"] for part in parts]
        spans = sorted((float(own.min()), float(own.max()), place) for place, own in enumerate(times) if len(own))
        for (_, last, before), (first, end, after) in pairwise(spans):
            if min(last, end) - first > SHARED:
                raise ValueError(
                    f"{pieces[before].name} and {pieces[after].name} both have {event}s from {first:.10g} s to "
                    f"{last:.10g} s: the same events twice, or two markets; name one of them"
                )


STEP_BACK = 1.0  # s that a row may be behind the one before it
UNORDERED_SHARE = 0.05


def _in_order(pieces: Sequence[Piece], parts: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, list[Finding]]:
    """All rows in the order of time, and what was out of order.

    Raises
    ------
    ValueError
        If more than one row in twenty is, or one by more than a second: that is no jitter of stamps.
    """
    findings = []
    for one, part in zip(pieces, parts, strict=True):
        groups = [part] if one.in_order else [part[part["event"] == event] for event in ("quote", "trade")]
        for own in groups:
            time = own["time_s"].to_numpy(dtype=float)
            latest = np.maximum.accumulate(time) if time.size else time
            back = np.flatnonzero(time < latest)
            if not back.size:
                continue
            most = float((latest - time).max())
            line = int(own["line"].iloc[back[0]])
            if most > STEP_BACK or back.size > UNORDERED_SHARE * time.size:
                raise ValueError(
                    f"{one.name}, line {line}, column 'time_s': {time[back[0]]:.10g} is not allowed; time must not "
                    f"fall from one row to the next ({back.size} of {time.size} rows, by up to {most:.6g} s; one "
                    f"in twenty, by {STEP_BACK:g} s, is set right)"
                )
            text = f"{one.name}: {back.size} rows stand up to {most:.3g} s behind rows above them (first: line {line})"
            findings.append(Finding("unordered", f"{text}; put in the order of time."))
    rows = pd.concat(parts, ignore_index=True)
    quotes = np.array([(part["event"] == "quote").mean() for part in parts])
    last = (quotes == 1)[rows["piece"]]  # of one time: trades before the quotes that they cause, where files hold each
    order = np.lexsort((last, rows["time_s"].to_numpy(dtype=float)))
    return rows.iloc[order].reset_index(drop=True), findings


def _between_files(rows: pd.DataFrame, spans: Sequence[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """Pauses between files that are longer than all pauses in them."""
    covered: list[list[float]] = []
    for start, end, _ in sorted(spans):
        if covered and start <= covered[-1][1]:
            covered[-1][1] = max(covered[-1][1], end)
        else:
            covered.append([start, end])
    if len(covered) < 2:
        return []
    pauses = np.diff(rows["time_s"].to_numpy(dtype=float))
    between = [(before[1], after[0]) for before, after in pairwise(covered)]
    inner = np.sort(pauses)[::-1][len(between) :]
    longest = float(inner[0]) if inner.size else 0.0
    return [(start, end) for start, end in between if end - start > max(longest, SHARED)]


def merged(cuts: Sequence[Sequence[float]]) -> Array:
    """Stretches of time in order, those that meet as one."""
    merged: list[list[float]] = []
    for start, end in sorted(map(list, cuts)):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=float).reshape(-1, 2)
