"""The one safeguarded maximiser of continuous controls, and the check that nothing better is left.

A one-step criterion may have several maxima: the frozen depths of a market-maker with a large terminal penalty and
many fills in a step are best either just before her inventory is as she likes it or well beyond. A market's own search
(or none) gives a candidate for every cell; `best_controls` then

- looks over the whole of the market's region (`Region`) where that is needed, and climbs by the trust-region search of
  `mmgym.trust_region` from the best points of a coarse grid at each value of each control, where they may lead higher;
- demands in every cell that a further step promises less than the tolerance: the projected gradient vanishes there.

Continuous controls have one maximum where few fills are expected in a step: the best depth is ``1 / k`` less the mean
value of the next fill, a mean that depends on the depths only through the fills inside the step. `depth_region`
measures that dependence as the number of fills times how much one changes what the next is worth, at least one unit;
`Region.crowded` are the cells where it is above `CROWDED`. (Not a proof: of 900 markets drawn at random none had two
maxima in a cell below 28, and none of 5,855 further steps between 4 and 40.)
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter

from mmgym import trust_region
from mmgym.baselines.frozen import FrozenProblem
from mmgym.trust_region import COUNT, PROMISED, SHORTFALL, VALUE, advance_rows, begin_rows, new_searches

__all__ = [
    "CROWDED",
    "ContinuousProblem",
    "Region",
    "best_controls",
    "climb",
    "depth_region",
    "in_box",
    "inventory_slopes",
    "rounding",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Glance = Callable[[Integers, Array], Array]

CROWDED = 20.0
MOST_POINTS = (65, 65**2)  # of the coarse grid of a cell, for one and two controls
MORE_POINTS = 700  # for more
COARSE = 0.5  # spacing of the grid, in units of the controls; twice that for more than two
PATIENCE, HOPE = 6, 5.0  # moves after which a climb is given up unless so many times its promise reaches what is known
CHUNK = 100_000  # pairs of state and controls that are evaluated at once
NARROW = 1e-3  # units: in a box so narrow, depths have digits that their intensities have not
DIFFERENCE = 1e-4  # units: of the first curvature


class Region(NamedTuple):
    """Where the best controls of a step are looked for.

    Attributes
    ----------
    low, high : (C,)
        Bounds of the coarse grid, in model units, for every state; climbs may leave them, not the box.
    crowded : (S,) bool
        Cells that may have several maxima.
    """

    low: Array
    high: Array
    crowded: NDArray[np.bool_]


class ContinuousProblem(FrozenProblem, Protocol):
    """What a `mmgym.baselines.frozen.FrozenProblem` with continuous controls also has."""

    low_controls: Array  # (C,)
    high_controls: Array  # (C,)
    control_units: Array  # (C,) lengths on which the criterion bends, such as 1 / fill_decay
    unit_value: float  # what a fill is worth there (currency)
    step_reward: float  # the largest reward of a step besides fills (currency); exponential: logarithm of its factor
    search_tolerance: float  # what a further move may promise at the best controls, in unit values
    aversion: float  # of an exponential criterion, which is minimised; 0 where there is none (1 / currency)

    def region(self, n: int, values: Array) -> Region:
        """Where the best controls before the values (S,) of step n + 1 may lie."""

    def cell(self, state: int) -> str:
        """A state in words, for messages."""


def rounding(problem: ContinuousProblem, values: Array) -> Array:
    """Rounding error (S,) of one-step values from values (S,); an exponential criterion has only positive terms."""
    if problem.aversion:
        return np.asarray(4e-15 * np.abs(values) * np.exp(min(problem.step_reward, 600.0)))
    return np.full(len(values), trust_region.rounding(values, problem.unit_value + problem.step_reward))


def in_box(problem: ContinuousProblem, controls: Array) -> Array:
    """Controls (..., C) in the box, and on its edge where only rounding keeps them from it."""
    low, high, slack = problem.low_controls, problem.high_controls, 1e-14 * problem.control_units
    controls = np.where(controls <= low + slack, low, controls)
    return np.asarray(np.where(controls >= high - slack, high, controls))


def depth_region(problem: ContinuousProblem, base: Array, fills: Array, slopes: Array, bends: Array) -> Region:
    """Bounds of the best frozen depths of a step, and whether cells may have several maxima.

    The derivative of a one-step value in an intensity is an average of ``D (d - base) + y(q +- D) - y(q)`` over the
    moments at which the side is open, ``y`` the value of the rest under the same depths. Two inventories keep their
    distance until a fill at a bound joins them, so that such a difference lies between those of the values ahead and of
    the rewards of a step, but for the chance of that fill times its depth: at most ``A h / (k e)``.

    Parameters
    ----------
    problem : ContinuousProblem
    base : (C,)
        Best depths where a fill does not change the value of the rest, bids first (price).
    fills : (C,)
        Expected fills in a step at depth 0.
    slopes : (G, C, 2)
        Smallest and largest of what a fill adds to the value of the rest, per asset (price), in each of G groups of
        states, of S / G states one after the other.
    bends : (G,)
        Largest change of that from one inventory to the next, per asset (price).
    """
    low, high, unit = problem.low_controls, problem.high_controls, problem.control_units
    nearest = np.clip(base - np.maximum(slopes[..., 1], 0.0), low, high)
    events = (fills * np.exp(-nearest / unit)).sum(axis=1)
    crowded = events * np.maximum(bends / unit.min(), 1.0) > CROWDED
    chance = fills * unit / np.e
    lowest = np.clip(nearest.min(axis=0) - np.roll(chance, len(chance) // 2), low, high)
    highest = np.clip(base - np.minimum(slopes[..., 0].min(axis=0), 0.0) + chance, lowest, high)
    return Region(lowest, highest, np.repeat(crowded, problem.num_states // len(crowded)))


def inventory_slopes(ahead: Array, size: float) -> tuple[Array, Array]:
    """``slopes`` and ``bends`` of `depth_region` from values (G, V, S) by inventory, in lots of ``size`` assets."""
    slopes = np.diff(ahead) / size
    least, most = slopes.min(axis=(1, 2)), slopes.max(axis=(1, 2))
    sides = np.stack([np.stack([least, most], axis=1), np.stack([-most, -least], axis=1)], axis=1)
    return sides, np.abs(np.diff(slopes)).max(axis=(1, 2))


def climb(
    problem: ContinuousProblem, n: int, states: Integers, starts: Array, values: Array, known: Array | None = None
) -> tuple[Array, Array, Array]:
    """Local maxima of the criterion from pairs of state and controls.

    A climb that stays so far below what is ``known`` of its state that the next moves cannot reach it is given up: its
    shortfall is infinite.

    Parameters
    ----------
    problem : ContinuousProblem
    n : int
        Step.
    states : (M,)
    starts : (M, C)
        Controls in model units.
    values : (S, 1)
        Of step n + 1.
    known : (S,), optional
        Values that a state is known to reach, signed as those that are returned.

    Returns
    -------
    controls, values, shortfalls : (M, C), (M,), (M,)
        Signed so that larger is better; what a further move promises.
    """
    sign, units = -1.0 if problem.aversion else 1.0, problem.control_units
    low, high = problem.low_controls, problem.high_controls
    rows, count = starts.shape
    noise = rounding(problem, values[:, 0])[states]
    starts = np.clip(starts, low, high)
    search = new_searches(rows, count)
    _, slopes = problem.gradient(n, states, starts, values)
    for j in range(count):  # the first curvature, by differences into the box
        way = np.where(starts[:, j] + DIFFERENCE * units[j] <= high[j], 1.0, -1.0) * DIFFERENCE * units[j]
        moved = starts.copy()
        moved[:, j] += way
        search.curvature[:, j] = sign * (problem.gradient(n, states, moved, values)[1] - slopes) / way[:, None]
    search.curvature[:] = 0.5 * (search.curvature + np.swapaxes(search.curvature, 1, 2))
    begin_rows(search, np.ascontiguousarray(starts))
    active = np.ones(rows, dtype=np.bool_)
    missing = np.full(rows, -np.inf) if known is None else known[states]
    numbers = search.numbers
    while active.any():
        hopeless = (numbers[:, COUNT] >= PATIENCE) & (numbers[:, VALUE] + HOPE * numbers[:, PROMISED] < missing)
        numbers[active & hopeless, SHORTFALL] = np.inf
        active &= ~hopeless
        at = np.flatnonzero(active)
        heights, slopes = problem.gradient(n, states[at], search.trial[at], values)
        advance_rows(search, at, sign * heights[:, 0], sign * slopes, low, high, units, noise, active)
    return search.point, numbers[:, VALUE].copy(), numbers[:, SHORTFALL].copy()


def _starts(
    problem: ContinuousProblem,
    states: Integers,
    region: Region,
    controls: Array,
    glance: Glance,
    survey: Glance | None,
    best: Array | None,
) -> tuple[Integers, Array]:
    """Pairs of state and controls to climb from, off a coarse grid and away from the candidates (S, C)."""
    sign, count = -1.0 if problem.aversion else 1.0, len(region.low)
    most = int((MOST_POINTS[count - 1] if count <= 2 else MORE_POINTS) ** (1.0 / count) + 1e-9)
    points = (
        np.ceil((region.high - region.low) / ((COARSE if count <= 2 else 2.0 * COARSE) * problem.control_units)) + 1
    )
    bounds = zip(region.low, region.high, np.clip(points, min(5, most), most).astype(int), strict=True)
    axes = [np.linspace(low, high, number) for low, high, number in bounds]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, count)
    spacing = np.array([axis[1] - axis[0] for axis in axes])
    kept_states, kept = [], []
    for part in np.array_split(states, int(np.ceil(len(states) * len(grid) / CHUNK))):
        pairs = (np.repeat(part, len(grid)), np.tile(grid, (len(part), 1)))
        height = sign * (glance(*pairs) if survey is None else survey(part, grid)).reshape(len(part), *map(len, axes))
        # Between grid points the criterion rises above them by less than it falls around them.
        highest = 2.0 * height - minimum_filter(height, size=(1, *[3] * count), mode="nearest")
        known = sign * (glance(part, controls[part]) if best is None else best[part])
        promising = np.zeros(height.shape, dtype=np.bool_)
        crowded = survey is None or region.crowded[part].reshape(-1, *[1] * count)
        for axis in range(1, count + 1):  # maxima lie on ridges: the best point at each value of each control
            ridge = height.max(axis=tuple(i for i in range(1, count + 1) if i != axis), keepdims=True)
            peaks = ridge == maximum_filter1d(ridge, 3, axis=axis, mode="nearest")
            ends = np.isin(np.arange(height.shape[axis]), (0, height.shape[axis] - 1))
            peaks |= ends.reshape([-1 if i == axis else 1 for i in range(count + 1)])
            promising |= (height >= ridge) & (peaks | crowded)
        promising &= highest >= known.reshape(-1, *[1] * count)
        row, place = np.nonzero(promising.reshape(len(part), -1))
        starts = grid[place]
        away = (np.abs(starts - controls[part[row]]) > spacing).any(axis=1)
        kept_states.append(part[row][away])
        kept.append(starts[away])
    return np.concatenate(kept_states), np.concatenate(kept)


def _take_better(
    so_far: tuple[Array, Array, Array],
    states: Integers,
    climbs: tuple[Array, Array, Array],
    sign: float,
    noise: Array,
    tolerance: Array,
) -> None:
    """Put climbs that end above the candidates (controls, values, shortfalls), or where those fell short, in place."""
    controls, best, shortfalls = so_far
    peaks, reached, left = climbs
    for i in np.argsort(reached):  # the best climb of a state comes last
        at = states[i]
        better = reached[i] > sign * best[at] + noise[at] or not shortfalls[at] <= tolerance[at]
        if better and left[i] <= tolerance[at]:
            controls[at], best[at], shortfalls[at] = peaks[i], sign * reached[i], left[i]


def best_controls(
    problem: ContinuousProblem,
    n: int,
    values: Array,
    controls: Array,
    best: Array,
    shortfalls: Array,
    glance: Glance | None = None,
    survey: Glance | None = None,
) -> tuple[Array, Array]:
    """Best controls of every state and their values, from what the market's own search gave.

    Parameters
    ----------
    problem : ContinuousProblem
    n : int
        Step.
    values : (S, 1)
        Of step n + 1.
    controls, best, shortfalls : (S, C), (S,), (S,)
        Candidates, their one-step values and what a further move promises.
    glance : callable, optional
        One-step values (M,) of states (M,) and controls (M, C), good enough to see where maxima may lie; the exact ones
        by default.
    survey : callable, optional
        The same of states (M,) under each of the controls (G, C), shape (M, G), where a market has a cheaper way: then
        all cells are looked over, those that are not crowded for other peaks and the ends of the ridges only.

    Returns
    -------
    controls, values : (S, C), (S, 1)

    Raises
    ------
    ArithmeticError
        If a cell's best controls are not found to the tolerance; the message names it.
    """
    sign = -1.0 if problem.aversion else 1.0
    noise = rounding(problem, values[:, 0])
    unit = problem.unit_value * (problem.aversion * np.abs(values[:, 0]) if problem.aversion else 1.0)
    tolerance = 2e3 * noise + problem.search_tolerance * unit
    region = problem.region(n, values[:, 0])

    def one_step(states: Integers, controls: Array) -> Array:
        return problem.backward(n, states, controls, values, problem.criterion)[:, 0]

    missed = np.flatnonzero(~(shortfalls <= tolerance))
    everywhere = survey is not None
    doubtful = np.arange(problem.num_states) if everywhere else np.union1d(np.flatnonzero(region.crowded), missed)
    if len(doubtful):
        firm = None if len(missed) or survey is None else best
        states, starts = _starts(problem, doubtful, region, controls, glance or one_step, survey, firm)
        states, starts = np.concatenate([states, missed]), np.concatenate([starts, controls[missed]])
        known = np.where(shortfalls <= tolerance, sign * best, -np.inf)
        climbs = climb(problem, n, states, starts, values, known)
        controls, best, shortfalls = controls.copy(), best.copy(), shortfalls.copy()
        _take_better((controls, best, shortfalls), states, climbs, sign, noise, tolerance)
    if not (shortfalls <= tolerance).all():
        worst = int(np.argmax(np.where(shortfalls <= tolerance, -np.inf, np.nan_to_num(shortfalls, nan=np.inf))))
        raise ArithmeticError(
            f"the best controls of step {n} at {problem.cell(worst)} were not found: at {controls[worst]} a further "
            f"move promises {shortfalls[worst]:.3g}, allowed are {tolerance[worst]:.3g}; raise num_steps, or lower the "
            "penalties or the fill rates"
        )
    if ((problem.high_controls - problem.low_controls) < NARROW * problem.control_units).any():
        return controls, problem.backward(n, np.arange(problem.num_states), controls, values, problem.criterion)
    return controls, best[:, None]
