"""Rows that say nothing of a market: books that are empty, locked or crossed, sizes of zero, trades without a side.

They are left out and named with their lines; where more than one in twenty is such, the recording is refused. The
quotes before such a row are taken to stand for a second; what is longer is cut out of the observed time. Rows that all
stand twice are a recording that was joined with itself: they count once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.tapes.findings import Finding
from mmgym.tapes.text_files import require

LARGEST_SHARE = 0.05  # of the quotes, or the trades, that may be left out
STANDING = 1.0  # s for which quotes are taken to stand where the next ones cannot be used
FEWEST_TWINS = 20  # trades before rows are called doubled
NUMBERS = ("bid", "bid_size", "ask", "ask_size")

Flags = NDArray[np.bool_]


def clean(rows: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, list[Finding], list[tuple[float, float]]]:
    """Leave out rows that cannot be used.

    Parameters
    ----------
    rows : pandas.DataFrame
        The columns of a tape in the order of time, ``line`` and ``piece``.
    names : sequence of str
        Of the pieces.

    Returns
    -------
    rows : pandas.DataFrame
    findings : list of Finding
    cuts : list of (float, float)
        Stretches without usable quotes that are longer than a second.

    Raises
    ------
    ValueError
        If more than one quote or trade in twenty cannot be used; file, line and column of the first are named.
    """
    rows, findings = _once(rows, names)
    quote = (rows["event"] == "quote").to_numpy()
    used = np.ones(len(rows), dtype=bool)
    for name, what, rule, columns in _faults(rows, quote):
        wrong = np.logical_or.reduce([flags for _, flags in columns]) & used
        if not wrong.any():
            continue
        total = int((quote if what.startswith("quotes") else ~quote).sum())
        if wrong.sum() > LARGEST_SHARE * total:
            _refuse(rows, names, columns, wrong, f"{rule} ({wrong.sum()} of {total} rows; one in twenty is left out)")
        used &= ~wrong
        shown = f"{wrong.sum()} {what}, {100 * wrong.sum() / total:.2g} % ({_places(rows, names, wrong)})"
        findings.append(Finding(name, f"{shown}: left out."))
    cuts = _unusable(rows["time_s"].to_numpy(dtype=float), quote, used)
    if cuts:
        lost = sum(end - start for start, end in cuts)
        text = f"{len(cuts)} stretches of more than {STANDING:g} s without usable quotes, {lost:.6g} s in all: cut out."
        findings.append(Finding("empty_book", text))
    return rows[used], findings, cuts


def _faults(rows: pd.DataFrame, quote: Flags) -> list[tuple[str, str, str, list[tuple[str, Flags]]]]:
    """Name, what is wrong, what is allowed, and the rows by the column at fault."""
    bid, bid_size, ask, ask_size = (rows[column].to_numpy(dtype=float) for column in NUMBERS)
    price, size = rows["price"].to_numpy(dtype=float), rows["size"].to_numpy(dtype=float)
    lacking = [(name, quote & np.isnan(own)) for name, own in zip(NUMBERS, (bid, bid_size, ask, ask_size), strict=True)]
    unpriced = [("price", ~quote & np.isnan(price)), ("size", ~quote & np.isnan(size))]
    side = ~quote & ~rows["side"].isin(["buy", "sell"]).to_numpy()
    empty = "quote rows need a number (a book with an empty side has no quotes)"
    below, positive = "the bid must lie below the ask of the same row", "a size must be positive"
    return [
        ("empty_book", "quotes of an empty book", empty, lacking),
        ("zero_size", "quotes of no size", positive, [("bid_size", bid_size <= 0), ("ask_size", ask_size <= 0)]),
        ("locked_book", "quotes of a locked book", below, [("bid", bid == ask)]),
        ("crossed_book", "quotes of a crossed book", below, [("bid", bid > ask)]),
        ("empty_trade", "trades without a price or size", "trade rows need a number", unpriced),
        ("zero_size", "trades of no size", positive, [("size", size <= 0)]),
        ("no_side", "trades without a side", "the aggressor of a trade is 'buy' or 'sell'", [("side", side)]),
    ]


def _places(rows: pd.DataFrame, names: Sequence[str], wrong: Flags) -> str:
    """The first places of rows."""
    own = rows[wrong]
    first = [f"line {line}" for line in own["line"].iloc[:5]]
    more = ", ..." if len(own) > 5 else ""
    file = "" if len(names) == 1 else f" of {names[int(own['piece'].iloc[0])]}"
    return f"{', '.join(first)}{more}{file}"


def _refuse(
    rows: pd.DataFrame, names: Sequence[str], columns: Sequence[tuple[str, Flags]], wrong: Flags, rule: str
) -> None:
    first = int(np.flatnonzero(wrong)[0])
    column = next(name for name, flags in columns if flags[first])
    own = rows.iloc[first : first + 1]
    own = own.set_axis(own["line"] - 2)
    require(names[int(own["piece"].iloc[0])], own, column, [False], rule)


def _unusable(time: NDArray[np.float64], quote: Flags, used: Flags) -> list[tuple[float, float]]:
    """Stretches, longer than a second, that begin with a quote that cannot be used and end with one that can."""
    own, good = time[quote], used[quote]
    starts = np.flatnonzero(~good & np.append(True, good[:-1]))
    cuts = []
    for start in starts:
        after = np.flatnonzero(good[start:])
        end = own[start + after[0]] if after.size else time[-1]
        if end - own[start] > STANDING:
            cuts.append((float(own[start]), float(end)))
    return cuts


def _once(rows: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows that all stand twice, once."""
    trade = (rows["event"] == "trade").to_numpy()
    if trade.sum() < FEWEST_TWINS:
        return rows, []
    columns = ["time_s", "event", *NUMBERS, "price", "size", "side"]
    trades = rows.loc[trade, ["time_s", "price", "size", "side"]]
    counts = trades.groupby(list(trades.columns), sort=False, dropna=False)["time_s"].transform("size")
    if (counts.to_numpy() < 2).any():
        return rows, []
    second = rows.duplicated(columns).to_numpy()
    text = f"every trade stands twice or more: {second.sum()} rows repeat others ({_places(rows, names, second)})"
    return rows[~second], [Finding("doubled", f"{text}: they count once.")]
