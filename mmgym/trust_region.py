"""A safeguarded maximiser of a smooth function on a box, as kernels: a quadratic model, trusted only nearby.

The caller owns the loop and evaluates the function where it is told to::

    begin(search, start)
    while True:
        value, slope, curvature = ...  # at search.trial
        if advance(search, value, slope, curvature, low, high, unit, noise):
            break  # search.point is the maximiser, search.numbers[VALUE] its value

A move is made if it gains at least a tenth of what the model promised; otherwise the region of trust shrinks, so that
the value never falls, and a move that the box or the region stops is the best one inside them, not a clipped one.
(Conn, Gould & Toint 2000, Trust-Region Methods, algorithm 6.1.1; a curvature that is not given is learned by their
symmetric rank-one update of 1991.)
"""

import math
from collections import namedtuple
from typing import Any

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL

__all__ = [
    "COUNT",
    "PROMISED",
    "SHORTFALL",
    "VALUE",
    "Search",
    "advance",
    "advance_rows",
    "begin",
    "begin_rows",
    "new_search",
    "new_searches",
    "rounding",
]

LARGEST = math.log(4.0)  # radius of trust at the start and at most, in units of the coordinates
CONVERGED = 1e-7  # a free move so small is the last: the next one would be of its square
MOST_STEPS = 200
SWEEPS = 60

# Where a search stands; the arrays are changed in place. `numbers` are the value at the point, the radius of trust, the
# gain that the move to the trial promises, its size, the number of evaluations, and, at the end, the shortfall: what
# the model promises of a further move, within the largest radius.
Search = namedtuple("Search", ["point", "trial", "slope", "curvature", "move", "below", "above", "numbers"])
VALUE, RADIUS, PROMISED, SIZE, COUNT, SHORTFALL = range(6)


@njit(**KERNEL)
def new_search(controls):
    """Memory for searches in that many coordinates."""
    return Search(
        np.zeros(controls), np.zeros(controls), np.zeros(controls), np.zeros((controls, controls)), np.zeros(controls),
        np.zeros(controls), np.zeros(controls), np.zeros(6),
    )  # fmt: skip


@njit(**KERNEL)
def rounding(values, unit):
    """Rounding error of one-step values: relative to the largest of the values ahead, and to what a fill is worth."""
    return 4e-15 * (np.abs(values).max() + unit)


@njit(**KERNEL)
def begin(search, start):
    """Start a search: the first trial is ``start`` (C,)."""
    search.point[:] = start
    search.trial[:] = start
    search.numbers[:] = 0.0
    search.numbers[RADIUS] = LARGEST


@njit(**KERNEL)
def _best_move(slope, curvature, below, above, move):
    """Maximise ``slope s + s' curvature s / 2`` over ``below <= s <= above``, coordinate by coordinate; the gain."""
    count = len(slope)
    move[:] = 0.0
    for _ in range(SWEEPS):
        settled = True
        for i in range(count):
            pull, bend = slope[i], curvature[i, i]
            for j in range(count):
                if j != i:
                    pull += curvature[i, j] * move[j]
            if bend < 0.0:
                best = min(max(-pull / bend, below[i]), above[i])
            else:
                up, down = (pull + 0.5 * bend * above[i]) * above[i], (pull + 0.5 * bend * below[i]) * below[i]
                best = above[i] if up >= down else below[i]
            settled = settled and abs(best - move[i]) <= 1e-12 * (above[i] - below[i])
            move[i] = best
        if settled:
            break
    gain = 0.0
    for i in range(count):
        pull = slope[i]
        for j in range(count):
            pull += 0.5 * curvature[i, j] * move[j]
        gain += pull * move[i]
    return gain


@njit(**KERNEL)
def _propose(search, radius, low, high, unit):
    """The best move of the model within a radius: its gain and its size. Without units it is relative."""
    size = 0.0
    for i in range(len(low)):
        x = search.point[i]
        down, up = (math.exp(-radius) * x, math.exp(radius) * x) if len(unit) == 0 else (
            x - radius * unit[i], x + radius * unit[i]
        )  # fmt: skip
        search.below[i], search.above[i] = min(max(down, low[i]) - x, 0.0), max(min(up, high[i]) - x, 0.0)
    gain = _best_move(search.slope, search.curvature, search.below, search.above, search.move)
    for i in range(len(low)):
        if search.move[i] != 0.0:
            size = max(size, abs(search.move[i]) / (search.point[i] if len(unit) == 0 else unit[i]))
    return gain, size


@njit(**KERNEL)
def _learn(move, change, curvature):
    """Symmetric rank-one update of a curvature (C, C) from the change (C,) of the slope along a move (C,)."""
    residual = change - curvature @ move
    scale = np.dot(residual, move)
    if abs(scale) > 1e-8 * math.sqrt(np.dot(move, move) * np.dot(residual, residual)):
        for i in range(len(move)):
            for j in range(len(move)):
                curvature[i, j] += residual[i] * residual[j] / scale


@njit(**KERNEL)
def advance(search, value, slope, curvature, low, high, unit, noise):
    """Take the function at ``search.trial``, move on and say whether the search is at its end.

    Parameters
    ----------
    search : Search
    value, slope, curvature : float, (C,), (C, C) or (0, 0)
        At the trial. Without a curvature ``search.curvature`` is kept and learned from the slopes.
    low, high : (C,)
        The box.
    unit : (C,) or (0,)
        Lengths on which the function bends. Empty: coordinates are positive and moves relative to them.
    noise : float
        Rounding error of values: smaller gains are believed without them.
    """
    numbers = search.numbers
    accepted = True
    if numbers[COUNT] > 0.0:
        gained, promised = value - numbers[VALUE], numbers[PROMISED]
        if len(curvature) == 0:
            _learn(search.move, slope - search.slope, search.curvature)
        if promised <= noise:
            accepted = gained >= -10.0 * noise
            if not accepted:
                numbers[RADIUS] = 0.25 * min(numbers[SIZE], numbers[RADIUS])
        elif not gained >= 0.1 * promised:
            accepted = gained > 0.0
            numbers[RADIUS] = 0.25 * min(numbers[SIZE], numbers[RADIUS])
        elif gained > 0.7 * promised:
            numbers[RADIUS] = min(2.0 * numbers[RADIUS], LARGEST)
    if accepted:
        numbers[VALUE] = value
        search.point[:] = search.trial
        search.slope[:] = slope
        if len(curvature) > 0:
            search.curvature[:] = curvature
    numbers[COUNT] += 1.0
    gain, size = _propose(search, numbers[RADIUS], low, high, unit)
    free = size < 0.99 * numbers[RADIUS] or numbers[RADIUS] == LARGEST
    last = free and (size <= CONVERGED or gain <= 1e-3 * noise)
    if last or numbers[COUNT] >= MOST_STEPS or numbers[RADIUS] < 1e-3 * CONVERGED:
        if last:
            for i in range(len(low)):
                search.point[i] = min(max(search.point[i] + search.move[i], low[i]), high[i])
            numbers[VALUE] += gain
            numbers[SHORTFALL] = gain
        else:
            numbers[SHORTFALL], _ = _propose(search, LARGEST, low, high, unit)
        return True
    numbers[PROMISED], numbers[SIZE] = gain, size
    for i in range(len(low)):
        search.trial[i] = min(max(search.point[i] + search.move[i], low[i]), high[i])
    return False


# Many searches at once, with a leading axis of rows in all arrays of a `Search`


def new_searches(rows: int, controls: int) -> Any:
    """Memory for ``rows`` searches in that many coordinates."""
    pairs = [np.zeros((rows, controls)) for _ in range(6)]
    return Search(*pairs[:3], np.zeros((rows, controls, controls)), *pairs[3:], np.zeros((rows, 6)))


@njit(**KERNEL)
def _row(search, i):
    return Search(
        search.point[i], search.trial[i], search.slope[i], search.curvature[i], search.move[i], search.below[i],
        search.above[i], search.numbers[i],
    )  # fmt: skip


@njit(**KERNEL)
def begin_rows(search, starts):
    """Start every search: their first trials are ``starts`` (M, C). Curvatures stay as they are."""
    for i in range(len(starts)):
        begin(_row(search, i), starts[i])


@njit(**KERNEL)
def advance_rows(search, rows, values, slopes, low, high, unit, noise, active):
    """`advance` of the searches ``rows`` (R,) by values (R,) and slopes (R, C); ``active`` (M,) says which go on.

    ``noise`` (M,) is that of each search.
    """
    none = np.empty((0, 0))
    for r in range(len(rows)):
        i = rows[r]
        active[i] = not advance(_row(search, i), values[r], slopes[r], none, low, high, unit, noise[i])
