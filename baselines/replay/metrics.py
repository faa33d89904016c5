"""Figures of sessions, with intervals of a block bootstrap, and fills by depth beside the market's law.

Sessions are cut into contiguous blocks of (about) one length, which are drawn with replacement (Carlstein 1986, blocks
that do not overlap): dependence within a block is kept. Intervals are 95 % percentile intervals of
`scipy.stats.bootstrap`; those of fills by depth are of Poisson counts that vary over the blocks as much as measured.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from mmgym.adapters.hftbacktest import SECOND
from mmgym.adapters.hftbacktest_play import NOTHING
from mmgym.baselines.replay.rules import ReplayRules
from mmgym.baselines.replay.session import Session
from mmgym.calibration.block_intervals import QUANTILE, block_sums, count_dispersion, reach

Array = NDArray[Any]

__all__ = ["HORIZONS", "adverse_moves", "fills_by_depth", "interval_of_ratio", "metrics"]

HORIZONS = (0.1, 1.0, 10.0)  # seconds after a fill
BLOCKS = 30  # of a session, unless their length is given
FEWEST_BLOCKS = 5  # for an interval
RESAMPLES = 2000
CLASSES = 8  # of depths


def adverse_moves(session: Session, horizon: float) -> Array:
    """What the mid moved after each fill, times the signed size: negative is a loss (currency).

    From the mid just before the fill to the one ``horizon`` seconds later, or at the end of the recording.
    """
    fills = session.fills
    recording = session.recording
    stamps = recording.start + np.rint(fills["time_s"].to_numpy() * SECOND).astype(np.int64)
    later = recording.book.mid(np.minimum(stamps + round(horizon * SECOND), recording.end)) * recording.tick
    return np.asarray(_signed(fills) * (later - fills["mid"].to_numpy()))


def _signed(fills: pd.DataFrame) -> Array:
    return np.asarray(fills["size"] * np.where(fills["side"] == "buy", 1.0, -1.0))


def interval_of_ratio(numerator: Array, denominator: Array, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the ratio of sums over blocks; NaN where there are fewer than 5 blocks or nothing below."""
    if len(numerator) < FEWEST_BLOCKS or not np.abs(denominator).sum() > 0.0:
        return math.nan, math.nan

    def ratio(top: Array, bottom: Array, axis: int = -1) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(top.sum(axis=axis) / bottom.sum(axis=axis))

    if np.allclose(numerator * denominator.sum(), denominator * numerator.sum(), rtol=1e-12, atol=0.0):
        value = float(ratio(numerator, denominator))
        return value, value
    options = {"vectorized": True, "paired": True, "n_resamples": RESAMPLES, "method": "percentile"}
    random = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)  # draws with nothing below are left out here
        resampled = scipy.stats.bootstrap((numerator, denominator), ratio, **options, random_state=random)  # type: ignore[call-overload]
    spread = np.asarray(resampled.bootstrap_distribution)
    low, high = np.nanquantile(spread[np.isfinite(spread)], [0.025, 0.975])
    return float(low), float(high)


def _blocks(session: Session, length: float | None) -> tuple[Array, Array]:
    """Block of each interval between decisions, and of each fill."""
    count = len(session.times) - 1
    each = max(1, math.ceil(count / BLOCKS) if length is None else round(length / session.interval))
    number = np.arange(count) // each
    number = np.minimum(number, max(count // each - 1, 0))  # a rest joins the last whole block
    return number, number[np.maximum(session.fills["decision"].to_numpy() - 1, 0)]


def metrics(sessions: Sequence[Session], length: float | None = None) -> tuple[pd.DataFrame, str]:
    """Figures of sessions with intervals, and how they were found.

    Parameters
    ----------
    sessions : sequence of Session
    length : float, optional
        Of a block, seconds; by default 30 blocks a session.

    Returns
    -------
    DataFrame
        Index ``figure``; ``value, lower, upper, unit``.
    str
        Number and length of the blocks.

    Raises
    ------
    ValueError
        If the length is not positive.
    """
    if length is not None and not (math.isfinite(length) and length > 0.0):
        raise ValueError(f"a block of {length!r} s is not allowed: it must be positive")
    sums = [_sums(session, length) for session in sessions]
    whole = {name: np.concatenate([part[name] for part in sums]) for name in sums[0]}
    hours = whole["seconds"] / 3600.0
    rows: list[tuple[str, Array, Array, str]] = [
        ("P&L an hour", whole["pnl"], hours, "currency"),
        ("P&L a fill", whole["pnl"], whole["fills"], "currency"),
        ("fills an hour", whole["fills"], hours, "orders"),
        ("volume an hour", whole["volume"], hours, "assets"),
        ("market orders an hour", whole["orders"], hours, "orders"),
        ("depth of a fill", whole["edge"], whole["volume"], "price"),
    ]
    rows += [(f"move after a fill, {h:g} s", whole[f"moved {h:g}"], whole["volume"], "price") for h in HORIZONS]
    rows += [
        ("fees an hour", whole["fees"], hours, "currency"),
        ("mean |inventory|", whole["held"], whole["seconds"], "assets"),
        ("bid quoted", whole["bid"], whole["seconds"], "share of time"),
        ("ask quoted", whole["ask"], whole["seconds"], "share of time"),
    ]
    figures = {}
    for name, top, bottom, unit in rows:
        total = float(bottom.sum())
        low, high = interval_of_ratio(top, bottom)
        figures[name] = {"value": float(top.sum()) / total if total else math.nan, "lower": low, "upper": high}
        figures[name]["unit"] = unit  # type: ignore[assignment]
    count, seconds = len(whole["seconds"]), float(whole["seconds"].mean())
    text = f"95 % intervals of a block bootstrap, {count} blocks of {seconds:.4g} s"
    if count < FEWEST_BLOCKS:
        text = f"no intervals: {count} blocks of {seconds:.4g} s are too few"
    return pd.DataFrame.from_dict(figures, orient="index").rename_axis("figure"), text


def _sums(session: Session, length: float | None) -> dict[str, Array]:
    """Sums over the blocks of a session."""
    number, of_fills = _blocks(session, length)
    fills, count = session.fills, int(number[-1]) + 1
    quotes = ~fills["taker"].to_numpy(dtype=bool)
    first = ~fills["order"].duplicated().to_numpy() if len(fills) else np.zeros(0, dtype=bool)

    def over_time(values: Array) -> Array:
        return np.bincount(number, weights=values, minlength=count)

    def over_fills(values: Array) -> Array:
        return np.bincount(of_fills, weights=values, minlength=count)

    sizes = fills["size"].to_numpy()
    interval = np.full(len(number), session.interval)
    figures = {
        "seconds": over_time(interval),
        "pnl": over_time(np.diff(session.wealth)),
        "held": over_time(np.abs(session.inventory[:-1]) * interval),
        "bid": over_time((session.own[:-1, 0] != NOTHING) * interval),
        "ask": over_time((session.own[:-1, 1] != NOTHING) * interval),
        "fills": over_fills((first & quotes).astype(np.float64)),
        "orders": over_fills((first & ~quotes).astype(np.float64)),
        "volume": over_fills(sizes * quotes),
        "edge": over_fills(fills["depth"].to_numpy() * sizes * quotes),
        "fees": over_fills(fills["fee"].to_numpy()),
    }
    for horizon in HORIZONS:
        figures[f"moved {horizon:g}"] = over_fills(adverse_moves(session, horizon) * quotes)
    return figures


def fills_by_depth(sessions: Sequence[Session], rules: ReplayRules) -> pd.DataFrame:
    """Fills of quotes by their depth, beside what the market's law expects of quotes that stood there so long.

    Returns
    -------
    DataFrame
        ``side``, ``depth`` (mean, price), ``from``, ``to``, ``seconds`` quoted, ``fills`` (orders), ``expected``
        (orders), ``rate`` and ``law`` (1 / s), ``ratio`` of fills to expected ones with its 95 % interval, ``lower``
        and ``upper``: that of Poisson counts, and where orders cluster that of ``fills`` over their measured dispersion
        (McCullagh & Nelder 1989, section 6.2), from 30 blocks a session.
    """
    rows: list[dict[str, Any]] = []
    for side, name in enumerate(("bid", "ask")):
        parts, before = [], 0
        for one in sessions:
            block = _blocks(one, None)[0] + before
            parts.append(_exposure(one, side, rules, block))
            before = int(block[-1]) + 1
        depth, seconds, expected, filled, block = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if not len(depth):
            continue
        for low, high in _classes(depth, seconds):
            own = (depth >= low) & (depth <= high)
            time, fills, law = float(seconds[own].sum()), float(filled[own].sum()), float(expected[own].sum())
            least, most = _interval_of_count(*(block_sums(block[own], x[own], before) for x in (filled, expected)))
            scale = 1.0 / law if law > 0.0 else math.nan
            rows.append(
                {
                    "side": name,
                    "depth": float((depth[own] * seconds[own]).sum() / time),
                    "from": float(low),
                    "to": float(high),
                    "seconds": time,
                    "fills": fills,
                    "expected": law,
                    "rate": fills / time,
                    "law": law / time,
                    "ratio": fills * scale,
                    "lower": least * scale,
                    "upper": most * scale,
                }
            )
    columns = ["side", "depth", "from", "to", "seconds", "fills", "expected", "rate", "law", "ratio", "lower", "upper"]
    return pd.DataFrame(rows, columns=columns)


def _interval_of_count(counts: Array, expected: Array) -> tuple[float, float]:
    """95 % interval of the sum of counts over blocks: that of a Poisson count of the sum over its dispersion."""
    dispersion, freedom = count_dispersion(counts, expected)
    wide = (float(reach(dispersion, freedom)) / QUANTILE) ** 2
    count = float(counts.sum()) / wide
    least = float(scipy.stats.chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    return wide * least, wide * float(scipy.stats.chi2.ppf(0.975, 2 * (count + 1))) / 2


def _exposure(session: Session, side: int, rules: ReplayRules, block: Array) -> tuple[Array, ...]:
    """Depths, seconds, expected and observed fills, and the block, of the intervals in which a side was quoted."""
    own, best = session.own[:-1, side], session.best[:-1]
    quoted = own != NOTHING
    tick, sign = session.recording.tick, 1 - 2 * side
    price = np.where(quoted, own, best[:, side])
    depth = sign * (best.mean(axis=1) - price) * tick
    offset = sign * (best[:, side] - price) * tick
    law = rules.intensity(side, depth, offset, np.diff(best, axis=1)[:, 0]) / rules.seconds
    fills = session.fills
    first = ~fills["order"].duplicated() & ~fills["taker"] & (fills["side"] == ("buy", "sell")[side])
    filled = np.bincount(np.maximum(fills["decision"][first] - 1, 0), minlength=len(own))[: len(own)]
    kept = quoted | (filled > 0)
    seconds = np.where(quoted, session.interval, 0.0)
    depth = np.where(quoted, depth, np.nan)
    depth = pd.Series(depth).ffill().bfill().to_numpy()  # a fill of an order that is on its way out
    return depth[kept], seconds[kept], (law * seconds)[kept], filled[kept].astype(np.float64), block[kept]


def _classes(depth: Array, seconds: Array) -> list[tuple[float, float]]:
    """Bounds of classes of depths that were quoted for about the same time."""
    distinct, place = np.unique(np.round(depth, 12), return_inverse=True)
    time = np.bincount(place, weights=seconds)
    least, low, reached, classes = time.sum() / CLASSES, 0, 0.0, []
    for k, own in enumerate(time):
        reached += own
        if reached >= least and time[k + 1 :].sum() >= 0.5 * least:
            classes.append((low, k))
            low, reached = k + 1, 0.0
    classes.append((low, len(time) - 1))
    return [(distinct[first] - 1e-12, distinct[last] + 1e-12) for first, last in classes]
