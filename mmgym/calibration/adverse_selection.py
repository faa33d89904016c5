r"""Adverse selection: how the mid moves after a fill, by depth and horizon, and the impact market that moves alike.

A quote at depth :math:`d` is filled by every order that reaches it. With :math:`S_{t-}` the mid before the order's time
stamp, the *drift* after a fill at the horizon :math:`h` is the mean of :math:`S_{t+h} - S_{t-}` after fills of the ask
and of minus that after fills of the bid: what the mid moves against the maker, of whose edge :math:`d` it leaves
:math:`d` less the drift. Orders whose horizon ends after their session are left out. Intervals are those of 30 blocks
of time (`mmgym.calibration.block_intervals`).

In the impact market (`mmgym.models.impact`) the mid moves by :math:`\xi` at once and by a pressure of drift
:math:`\beta` that decays at the rate :math:`\kappa`, so that the drift is

.. math:: \xi + \frac{\beta}{\kappa} (1 - e^{-\kappa h}).

`fit_impact` fits this curve to the drifts after all fills at the smallest depth, by least squares weighted with their
errors; the errors of its parameters are those of a jackknife over the blocks. The curve holds what the orders after a
fill move, which in a market with clustered orders come from the same side; in the impact market it all comes from the
one fill.

References
----------
Cartea, Á., Jaimungal, S. and Penalva, J. (2015). *Algorithmic and High-Frequency Trading*, section 10.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.block_intervals import Estimate, block_sums, blocks_of, ratio_estimate, student
from mmgym.plot import new_figure, write_figure
from mmgym.printing import write_output

Array = NDArray[np.float64]

HORIZONS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)  # s
LONGEST_HORIZON = 20  # of the record in a horizon
STEPS = (0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 50)  # ticks beyond the smallest depth
MOST_DEPTHS = 5
FEWEST_FILLS = 50  # of each side at a depth
DECAYS = 120  # tried
WIDEST_PRESSURE = 100
COLUMNS = ["side", "depth", "horizon", "fills", "drift", "standard_error", "lower", "upper", "edge_left"]


@dataclass(frozen=True)
class Impact:
    """Parameters of the impact market: price, price / s, 1 / s."""

    impact: Estimate
    pressure_drift: Estimate
    pressure_decay: Estimate

    def curve(self, horizon: ArrayLike) -> Array:
        """Drift after a fill, price."""
        return _curve(self.impact.value, self.pressure_drift.value, self.pressure_decay.value, horizon)


@dataclass(frozen=True)
class AdverseSelection:
    """What the mid does after fills.

    Attributes
    ----------
    drifts : pandas.DataFrame
        ``side`` (bid, ask, both), ``depth`` (price), ``horizon`` (s), ``fills``, ``drift`` (price, against the maker)
        with ``standard_error`` and 95 % interval ``lower, upper``, and ``edge_left`` = depth less drift.
    law : Impact
        Of all fills at the smallest depth.
    """

    drifts: pd.DataFrame = field(repr=False, compare=False)
    law: Impact

    def sentence(self) -> str:
        """What the summary of a calibration says."""
        both = self.drifts[self.drifts["side"] == "both"]
        horizon = float(both["horizon"].max())
        rows = both[both["horizon"] == horizon]
        parts = ", ".join(
            f"{row.drift:.3g} [{row.lower:.3g}, {row.upper:.3g}] of {row.depth:g}" for row in rows.itertuples()
        )
        eaten = int((rows["drift"] >= rows["depth"]).sum())
        return (
            f"Adverse selection: within {horizon:g} s of a fill the mid moves against the maker by (of an edge of) "
            f"{parts}; at {eaten} of {len(rows)} depths it eats the whole edge."
        )

    def write(self, path: str | Path) -> Path:
        """Write the drifts as .csv or .json, or their picture as .png.

        Raises
        ------
        ValueError
            If the name ends otherwise.
        ImportError
            If matplotlib is missing for a picture.
        """
        path = Path(path)
        if path.suffix == ".png":
            return self.plot(path)
        write_output(str(path), self.drifts)
        return path

    def plot(self, path: str | Path) -> Path:
        """Write a PNG: drift and edge that is left over the horizon, for each depth."""
        both = self.drifts[self.drifts["side"] == "both"]
        figure = new_figure(11, 4.5)
        drift, edge = figure.subplots(1, 2)
        shift = float(both.loc[both["horizon"] > 0, "horizon"].min()) / 3  # where horizon 0 is drawn
        for number, (depth, rows) in enumerate(both.groupby("depth")):
            colour = f"C{number}"
            place = np.where(rows["horizon"] > 0, rows["horizon"], shift) * (1 + 0.04 * number)
            errors = [rows["drift"] - rows["lower"], rows["upper"] - rows["drift"]]
            style = {"fmt": "o-", "markersize": 3, "linewidth": 1, "capsize": 2, "color": colour}
            drift.errorbar(place, rows["drift"], errors, label=f"depth {depth:g}: {rows['fills'].max()} fills", **style)
            edge.errorbar(place, rows["edge_left"], errors[::-1], label=f"depth {depth:g}", **style)
        horizons = np.geomspace(shift, float(both["horizon"].max()), 200)
        drift.plot(horizons, self.law.curve(horizons), "k--", linewidth=1, label="impact market, smallest depth")
        drift.set_ylabel("drift of the mid against the maker (price)")
        drift.set_title("adverse selection, 95 %")
        edge.set_ylabel("depth less drift (price)")
        edge.set_title("edge that is left")
        for panel in (drift, edge):
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set_xscale("log")
            panel.set_xlabel(f"seconds after the fill (leftmost: 0, drawn at {shift:.2g})")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
        write_figure(figure, Path(path), dpi=120)
        return Path(path)


def measure(
    quotes: Sequence[pd.DataFrame],
    bounds: ArrayLike,
    orders: pd.DataFrame,
    *,
    tick: float,
    minimum_depth: float,
    horizons: Sequence[float] | None = None,
) -> AdverseSelection | None:
    """Measure the drift after fills on a tape.

    Parameters
    ----------
    quotes : sequence of pandas.DataFrame
        `mmgym.tapes.level1.best_quotes` of each session.
    bounds : array_like, shape (sessions, 2)
        First and last time of each.
    orders : pandas.DataFrame
        `mmgym.tapes.level1.market_orders`.
    tick, minimum_depth : float
        Depths are this one and some ticks more, five at most, with 50 fills on each side.
    horizons : sequence of float, optional
        Seconds; by default from 0 to 60, at most a twentieth of the record.

    Returns
    -------
    AdverseSelection or None
        None where the smallest depth has fewer than 50 fills on a side.
    """
    bounds = np.asarray(bounds, dtype=float)
    seconds = float(np.diff(bounds, axis=1).sum())
    chosen = [h for h in HORIZONS if h <= seconds / LONGEST_HORIZON] if horizons is None else list(horizons)
    orders = orders[orders["reach"].notna()]
    moves, block = _moves(quotes, bounds, orders, chosen)
    reach, buy = orders["reach"].to_numpy(dtype=float), (orders["side"] == "buy").to_numpy()
    depths = [minimum_depth + step * tick for step in STEPS]
    enough = [
        min(int(((reach >= depth - tick / 1e6) & (buy == side)).sum()) for side in (True, False)) >= FEWEST_FILLS
        for depth in depths
    ]
    if not enough[0] or len(chosen) < 3:
        return None
    depths = [depth for depth, kept in zip(depths, enough, strict=True) if kept][:MOST_DEPTHS]
    rows = []
    for depth in depths:
        filled = reach >= depth - tick / 1e6
        for side, own in (("bid", filled & ~buy), ("ask", filled & buy), ("both", filled)):
            for column, horizon in enumerate(chosen):
                tops, counts = _sums(moves[own, column], block[own])
                estimate = ratio_estimate(tops, counts)
                numbers = [int(counts.sum()), estimate.value, estimate.stderr, estimate.lower, estimate.upper]
                rows.append([side, float(f"{depth:.10g}"), horizon, *numbers, depth - estimate.value])
    filled = reach >= minimum_depth - tick / 1e6
    sums, counts = _all_sums(moves[filled], block[filled])
    seen = counts.sum(axis=0) > 0
    law = fit_impact(np.array(chosen)[seen], sums[:, seen], counts[:, seen])
    return AdverseSelection(pd.DataFrame(rows, columns=COLUMNS), law)


def _moves(
    quotes: Sequence[pd.DataFrame], bounds: Array, orders: pd.DataFrame, horizons: Sequence[float]
) -> tuple[Array, NDArray[np.intp]]:
    """Moves of the mid against the maker at each horizon, NaN beyond the session, and the block of each order."""
    time = orders["time_s"].to_numpy(dtype=float)
    sign = np.where(orders["side"] == "buy", 1.0, -1.0)
    moves = np.full((time.size, len(horizons)), np.nan)
    observed = np.zeros(time.size)
    before = 0.0
    for own, (start, end) in zip(quotes, bounds, strict=True):
        here = np.flatnonzero((time >= start) & (time <= end))
        stamps, mid = own["time_s"].to_numpy(dtype=float), own["mid"].to_numpy(dtype=float)
        first = mid[np.maximum(np.searchsorted(stamps, time[here]) - 1, 0)]
        observed[here] = before + time[here] - start
        for column, horizon in enumerate(horizons):
            later = time[here] + horizon
            latest = mid[np.searchsorted(stamps, later + 1e-9, side="right") - 1]
            moves[here, column] = np.where(later <= end, sign[here] * (latest - first), np.nan)
        before += end - start
    return moves, blocks_of(observed, 0.0, before)


def _sums(moves: Array, block: NDArray[np.intp]) -> tuple[Array, Array]:
    """Sums and numbers of moves in each block."""
    seen = np.isfinite(moves)
    return block_sums(block[seen], moves[seen]), block_sums(block[seen], np.ones(int(seen.sum())))


def _all_sums(moves: Array, block: NDArray[np.intp]) -> tuple[Array, Array]:
    """`_sums` of all horizons, shapes (blocks, horizons)."""
    parts = [_sums(moves[:, column], block) for column in range(moves.shape[1])]
    return np.stack([top for top, _ in parts], axis=1), np.stack([count for _, count in parts], axis=1)


def fit_impact(horizons: Array, sums: Array, counts: Array) -> Impact:
    """Fit the impact market to drifts (the module's docstring has the curve).

    Parameters
    ----------
    horizons : array, shape (H,)
        Seconds, three at least, rising.
    sums, counts : array, shape (B, H)
        Sums of moves and their numbers in blocks of time.
    """
    drift = sums.sum(axis=0) / counts.sum(axis=0)
    errors = np.array([ratio_estimate(sums[:, h], counts[:, h]).stderr for h in range(len(horizons))])
    weight = 1 / np.maximum(errors, max(1e-3 * float(np.abs(drift).max()), 1e-300)) ** 2
    positive = horizons[horizons > 0]
    decays = np.geomspace(0.5 / positive.max(), 4 / positive.min(), DECAYS)
    point = _least_squares(horizons, drift, weight, decays)
    rests = [(sums.sum(axis=0) - top, counts.sum(axis=0) - own) for top, own in zip(sums, counts, strict=True)]
    without = np.array([_least_squares(horizons, top / own, weight, decays) for top, own in rests if own.all()])
    number = len(without)
    without[:, 2], value = np.log(without[:, 2]), np.array([point[0], point[1], math.log(point[2])])
    stderr = np.sqrt(((without - without.mean(axis=0)) ** 2).sum(axis=0) * (number - 1) / number)
    reach = student(number - 1) * stderr
    lower, upper = value - reach, value + reach
    factor = math.exp(min(float(reach[2]), 300.0))
    return Impact(
        impact=Estimate(point[0], float(stderr[0]), max(float(lower[0]), 0.0), float(upper[0])),
        pressure_drift=Estimate(point[1], float(stderr[1]), float(lower[1]), float(upper[1])),
        pressure_decay=Estimate(point[2], point[2] * float(stderr[2]), point[2] / factor, point[2] * factor),
    )


def _least_squares(horizons: Array, drift: Array, weight: Array, decays: Array) -> tuple[float, float, float]:
    """Impact (0 or more), drift of the pressure and its decay; the decay is one of those given."""
    shape = -np.expm1(-np.outer(decays, horizons))  # (decays, H)
    total, first = weight.sum(), shape @ weight
    second, level = shape**2 @ weight, float(weight @ drift)
    product = shape @ (weight * drift)
    bent = total * second - first**2
    size = (total * product - first * level) / np.maximum(bent, 1e-300)
    impact = (level - size * first) / total
    size = np.where(impact < 0, product / second, size)
    impact = np.maximum(impact, 0.0)
    loss = ((drift - impact[:, None] - size[:, None] * shape) ** 2) @ weight
    best = int(loss.argmin())
    return float(impact[best]), float(size[best] * decays[best]), float(decays[best])


def _curve(impact: float, drift: float, decay: float, horizon: ArrayLike) -> Array:
    return np.asarray(impact - drift / decay * np.expm1(-decay * np.asarray(horizon, dtype=float)))


def pressure_limit(fills: float, decay: float) -> int:
    """Pressure that fills of this rate (1 / s, of each side) hardly exceed: three standard deviations, 2 to 100."""
    return min(max(math.ceil(3 * math.sqrt(fills / decay)), 2), WIDEST_PRESSURE)
