"""Reading a market maker's log of own quotes and fills, to go with a level-1 tape.

Own-quotes log
--------------
A ``.csv`` or ``.csv.gz`` file in UTF-8 whose first line is a header; one row per change of a quote and per fill.

======= ========= =====================================================================================================
column  in rows   meaning
======= ========= =====================================================================================================
time_s  all       seconds, on the clock of the tape; never falls
event   all       ``quote`` (a side's quote changes) or ``fill`` (a side's order is executed)
side    all       ``bid`` or ``ask``
quote   quote     what the side is from this time on: ``best`` (at the best price), ``improved`` (one tick better), or
                  ``off`` (no order); an empty cell in fill rows
======= ========= =====================================================================================================

Further columns are ignored. Both sides are off before their first row. Best and improved are meant relative to the
quotes of the others, and the spread is that of the tape, which must not show the own orders. A quote that goes on
standing (is posted again) after its fill needs no row; one that is withdrawn then needs a row ``off`` after the fill.
The last quote of a side stands until the end of the tape's window: end a log with ``off`` rows where it ended earlier.

A fill belongs to the quote in force in the rows above it and to the spread just before its time. At a spread of one
tick an improved quote counts as best, as in the market.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.spread_chain import SpreadPath
from mmgym.tapes.text_files import read_columns, require

OWN_QUOTES_COLUMNS = ("time_s", "event", "side", "quote")
SIDES = ("bid", "ask")
QUOTES = ("best", "improved")
OFF = -1

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


def read_own_quotes(path: str | Path) -> pd.DataFrame:
    """Read and check an own-quotes log (the columns are in the module's docstring).

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.csv.gz`` file.

    Returns
    -------
    pandas.DataFrame
        The four documented columns; row ``i`` is line ``i + 2`` of the file.

    Raises
    ------
    ValueError
        If anything in the file breaks the format; the message names file, line, column and what is allowed.
    """
    log = read_columns(path, OWN_QUOTES_COLUMNS[:1], OWN_QUOTES_COLUMNS[1:])
    check_own_quotes(path, log)
    return log


def check_own_quotes(path: str | Path, log: pd.DataFrame) -> None:
    """Refuse a log that breaks the format, as `read_own_quotes` does; `path` is its name in the message."""
    require(path, log, "time_s", log["time_s"].notna(), "every row needs a time in seconds")
    require(path, log, "time_s", ~(log["time_s"].diff() < 0), "time must not fall from one row to the next")
    require(path, log, "event", log["event"].isin(["quote", "fill"]), "an event is 'quote' or 'fill'")
    require(path, log, "side", log["side"].isin(SIDES), "a side is 'bid' or 'ask'")
    quote = log["event"] == "quote"
    known = log["quote"].isin([*QUOTES, "off"])
    require(path, log, "quote", known | ~quote, "a quote row needs 'best', 'improved' or 'off'")
    require(path, log, "quote", (log["quote"] == "") | quote, "fill rows need an empty cell")
    for side in SIDES:
        own = log["side"] == side
        standing = log["quote"].where(quote & own).ffill().isin(QUOTES)
        require(path, log, "event", standing | quote | ~own, f"the {side} is off in the rows above, it has no fills")


def own_counts(log: pd.DataFrame, path: SpreadPath, edges: Array) -> tuple[Counts, Array]:
    """Fills and time while (quote, spread) = (q, i), as in Guilbaud & Pham (2013), (2.11) and (2.12), in stretches.

    Parameters
    ----------
    log : pandas.DataFrame
        What `read_own_quotes` returned.
    path : SpreadPath
        States and jumps of the spread; what the log says of other times is left out.
    edges : array, shape (K + 1,)
        Where the stretches begin and end, from the start of the path to its end.

    Returns
    -------
    fills : array of int, shape (K, 2, 2, m)
        Side (bid, ask), quote (best, improved), spread.
    seconds : array, shape (K, 2, 2, m)
        Time for which the quote stood.
    """
    m, start = path.num_spreads, path.times[0]
    stretches = edges.size - 1
    fills, seconds = np.zeros((stretches, 2, 2, m), dtype=np.int64), np.zeros((stretches, 2, 2, m))

    def stretch(times: Array) -> Counts:
        return np.clip(np.searchsorted(edges, times, side="right") - 1, 0, stretches - 1)

    code = {"best": 0, "improved": 1, "off": OFF}
    for index, side in enumerate(SIDES):
        own = log[log["side"] == side]
        time = own["time_s"].to_numpy(dtype=float)
        change = (own["event"] == "quote").to_numpy()
        codes = own["quote"].map(code).to_numpy(dtype=float)
        latest = np.maximum.accumulate(np.where(change, np.arange(time.size), 0)) if time.size else change.astype(int)
        quote_in_row = codes[latest]

        filled = ~change & (time >= start) & (time <= path.end)
        ones = np.ones(int(filled.sum()))
        _add(fills[:, index], stretch(time[filled]), quote_in_row[filled], path.state_before(time[filled]), ones)

        times, quotes = time[change], np.append(OFF, codes[change])
        inside = times[(times > start) & (times < path.end)]
        marks = np.unique(np.concatenate([path.times, inside, edges[1:-1], [path.end]]))
        standing = quotes[np.searchsorted(times, marks[:-1], side="right")]
        states = path.states[np.searchsorted(path.times, marks[:-1], side="right") - 1]
        _add(seconds[:, index], stretch(marks[:-1]), standing, states, np.diff(marks))
    return fills, seconds


def _add(table: NDArray, stretch: Counts, quote: Array, state: Counts, amount: Array) -> None:
    """Add amounts to a table (stretch, quote, spread); an improved quote at a spread of one tick is best."""
    live = quote != OFF
    quote, state, amount = quote[live].astype(int), state[live], amount[live]
    np.add.at(table, (stretch[live], np.where(state == 1, 0, quote), state - 1), amount.astype(table.dtype))
