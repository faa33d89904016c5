"""What is drawn: cuts through the optimum's tables (or means of its sample) along one coordinate and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.agents.explore.computation import Comparison, Grid, Optimum, Sample
from mmgym.agents.explore.settings import Settings

__all__ = ["Quotes", "Values", "coordinates_of", "levels_of", "quotes_view", "values_view"]

Array = NDArray[Any]

MOST_LEVELS = 41  # of a sampled coordinate that are shown as they are
PIECES = 20  # of a sampled coordinate, or of time, over which means are taken
LEAST = 5  # decisions that a mean is taken of
MOST_TIMES = 121  # of a map


class Quotes(NamedTuple):
    """Controls over one coordinate at some times."""

    across: str
    levels: Array  # (X,)
    times: list[float]  # (T,) in model units
    best: Array  # (T, C, X), nan where nothing is known
    compared: Array | None  # the same, of the policy that is compared
    at: Mapping[str, float]  # where the other coordinates are held; empty of a sample
    sampled: bool


class Values(NamedTuple):
    """What can still be reached, over time and one coordinate."""

    across: str
    levels: Array  # (X,)
    times: Array  # (T,) in model units
    values: Array  # (X, T)
    at: Mapping[str, float]
    sampled: bool


def coordinates_of(optimum: Optimum) -> list[str]:
    """Coordinates that can be on the axis: the inventory first, where there is one."""
    table = optimum.grid or optimum.sample
    names = [] if table is None else list(table.coordinates)
    return sorted(names, key=lambda name: not name.startswith("inventory"))


def chosen_coordinate(optimum: Optimum, settings: Settings) -> str:
    """The coordinate on the axis.

    Raises
    ------
    ValueError
        If the settings name one that the market does not have, or it has none.
    """
    names = coordinates_of(optimum)
    if not names:
        raise ValueError("the state of this market has no coordinate that moves")
    if settings.across and settings.across not in names:
        raise ValueError(f"the coordinate {settings.across!r} is not known here: it must be one of {', '.join(names)}")
    return settings.across or names[0]


def levels_of(optimum: Optimum) -> dict[str, list[float]]:
    """Levels of each coordinate of finitely many states: where it can be held."""
    if optimum.grid is None:
        return {}
    return {name: np.unique(values).tolist() for name, values in optimum.grid.coordinates.items()}


def _held(grid: Grid, across: str, settings: Settings) -> tuple[Array, dict[str, float]]:
    """States on a line along a coordinate, in its order, and the levels of the others: nearest to what is asked for."""
    likely = int(np.argmax(grid.initial))
    kept, at = np.ones(len(grid.initial), dtype=np.bool_), {}
    for name, values in grid.coordinates.items():
        if name != across:
            wanted = settings.at.get(name, float(values[likely]))
            levels = np.unique(values[kept])
            at[name] = float(levels[np.argmin(np.abs(levels - wanted))])
            kept &= values == at[name]
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(grid.coordinates[across][rows], kind="stable")]
    _, first = np.unique(grid.coordinates[across][rows], return_index=True)
    return rows[first], at


def steps_of(optimum: Optimum, fractions: tuple[float, ...]) -> list[int]:
    """Decision steps at fractions of the episode: the last one at 1."""
    return [min(int(fraction * optimum.num_steps), optimum.num_steps - 1) for fraction in fractions]


def quotes_view(optimum: Optimum, comparison: Comparison | None, settings: Settings) -> Quotes:
    """Best controls over a coordinate at the chosen times, and those of the policy that is compared.

    In finitely many states they are those of a step, with the other coordinates held; of a sample, the means over the
    decisions that are nearest to each time.

    Raises
    ------
    ValueError
        If there is no such coordinate.
    """
    across = chosen_coordinate(optimum, settings)
    others = None if comparison is None else comparison.controls
    if optimum.grid is not None:
        rows, at = _held(optimum.grid, across, settings)
        steps = sorted(set(steps_of(optimum, settings.times)))
        cut = np.ix_(np.array(steps), np.array(rows))
        best = optimum.grid.controls[cut].transpose(0, 2, 1)
        fits = others is not None and others.shape == optimum.grid.controls.shape
        compared = others[cut].transpose(0, 2, 1) if fits and others is not None else None
        times = [n * optimum.horizon / optimum.num_steps for n in steps]
        return Quotes(across, optimum.grid.coordinates[across][rows], times, best, compared, at, False)
    assert optimum.sample is not None
    sample, levels, where = optimum.sample, *_binned(optimum.sample, across)
    times = [fraction * optimum.horizon for fraction in settings.times]
    nearest = np.abs(sample.time[:, None] - np.array(times)).argmin(axis=1)
    shape = (len(times), len(levels))
    best = _means(sample.controls, nearest, where, shape)
    fits = others is not None and others.shape == sample.controls.shape
    compared = _means(others, nearest, where, shape) if fits and others is not None else None
    return Quotes(across, levels, times, best, compared, {}, True)


def values_view(optimum: Optimum, settings: Settings) -> Values:
    """What can still be reached, over time and the chosen coordinate.

    Raises
    ------
    ValueError
        If there is no such coordinate.
    """
    across = chosen_coordinate(optimum, settings)
    if optimum.grid is not None:
        rows, at = _held(optimum.grid, across, settings)
        steps = np.unique(np.linspace(0, optimum.num_steps, min(MOST_TIMES, optimum.num_steps + 1)).round().astype(int))
        times = steps * optimum.horizon / optimum.num_steps
        values = optimum.grid.values[np.ix_(steps, rows)].T
        return Values(across, optimum.grid.coordinates[across][rows], times, values, at, False)
    assert optimum.sample is not None
    sample, levels, where = optimum.sample, *_binned(optimum.sample, across)
    piece = np.minimum((PIECES * sample.time / optimum.horizon).astype(int), PIECES - 1)
    means = _means(sample.values[:, None], piece, where, (PIECES, len(levels)))[:, 0]
    return Values(across, levels, (np.arange(PIECES) + 0.5) * optimum.horizon / PIECES, means.T, {}, True)


def _binned(sample: Sample, across: str) -> tuple[Array, Array]:
    """Levels (X,) of a sampled coordinate, or the means of its pieces, and which of them each decision is at."""
    column = sample.coordinates[across]
    levels, where = np.unique(column, return_inverse=True)
    if len(levels) <= MOST_LEVELS:
        return levels, where
    edges = np.unique(np.quantile(column, np.linspace(0.0, 1.0, PIECES + 1)))
    where = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
    count = np.maximum(np.bincount(where, minlength=len(edges) - 1), 1)
    return np.bincount(where, weights=column, minlength=len(edges) - 1) / count, where


def _means(columns: Array, first: Array, second: Array, shape: tuple[int, int]) -> Array:
    """Means (T, C, X) of columns (B, C) over decisions of a time and a level; nan where there are too few."""
    cell = first * shape[1] + second
    size = shape[0] * shape[1]
    count = np.bincount(cell, minlength=size)
    sums = np.stack([np.bincount(cell, weights=column, minlength=size) for column in columns.T])
    means = np.where(count >= LEAST, sums / np.maximum(count, 1), np.nan)
    return np.asarray(means.reshape(-1, *shape).transpose(1, 0, 2))
