r"""The spread as a Markov chain on a Poisson clock: states, jumps, and tests of the law.

States are whole ticks, ``ceil(spread / tick)``, and all spreads of ``num_spreads`` ticks or more are one state. A move
between spreads of one state is no jump; neither is what happens across a gap in the tape. With :math:`\theta_0` the
start of the window, :math:`\theta_n` the jump times and :math:`\hat S_n` the state from :math:`\theta_n` on (Guilbaud &
Pham 2013, section 2.3):

.. math:: \rho_{ij} = \frac{\#\{n : \hat S_n = i, \hat S_{n+1} = j\}}{\#\{n : \hat S_n = i \text{ and is left}\}}
          \quad (2.8), \qquad
          \lambda_k = \frac{N_{t_k} - N_{t_{k-1}}}{t_k - t_{k-1}} \quad (2.9).

So the paper has it, whose clock drives all spreads alike, and whose spread spends time in proportion to its *visits*. A
market whose narrow spreads last and whose wide ones do not is left at rates of its own, :math:`\lambda_k g_i` out of
state :math:`i` in piece :math:`k`, the largest :math:`g_i` being 1 (`fit_clock`: maximum likelihood, the numbers of
jumps out of each state and in each piece are met). The clock of that is :math:`\lambda_k`, the rate of the spread that
is left fastest, and at a tick of it nothing happens with probability

.. math:: \rho_{ii} = 1 - g_i, \qquad \text{else} \qquad \rho_{ij} = g_i \frac{N_{ij}}{N_i}

(uniformisation): with a single piece the fitted chain spends at each spread what the tape does.

The model says things that a tape can contradict, each with a test:

- *Poisson clock* (`clock_test`): the jumps in stretches of time are Poisson with the fitted rates. Pearson's statistic
  over its degrees of freedom is the dispersion.
- *Exponential holding times* (`holding_times_test`): on the clock's own time :math:`\int \hat\lambda g` they are
  standard exponential. Ten cells of equal probability; one degree of freedom is spent on the scale.
- *One clock for all spreads* (`one_clock_test`): the jumps out of state :math:`i` are as many as
  :math:`\int \hat\lambda\, 1\{S = i\}` says. Where it is rejected, spreads get rates of their own.
- *Markov property* (`markov_test`): given the state, the next one is independent of the one before. A chi-square test
  of independence for each state, the rare rows and columns left out until every cell expects five.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from mmgym.calibration.block_intervals import BLOCKS
from mmgym.calibration.exponential import SMALLEST_EXPECTED_COUNT

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

ENOUGH_VISITS = 100  # then no transition probability has a standard error above 0.05
MOST_SPREADS = 32
HOLDING_CELLS = 10


@dataclass(frozen=True)
class ModelTest:
    """A chi-square test: p_value is NaN where the data leave no degree of freedom."""

    statistic: float
    degrees_of_freedom: int

    @property
    def p_value(self) -> float:
        """Chance of a statistic so large under the model."""
        return (
            float(scipy.stats.chi2.sf(self.statistic, self.degrees_of_freedom)) if self.degrees_of_freedom else math.nan
        )

    @property
    def dispersion(self) -> float:
        """Statistic per degree of freedom: about 1 under the model."""
        return self.statistic / self.degrees_of_freedom if self.degrees_of_freedom else math.nan


@dataclass(frozen=True, eq=False)
class SpreadPath:
    """The spread of one window of time.

    Attributes
    ----------
    times : array, shape (n + 1,)
        Start of the window and the jump times, seconds; where a tape has gaps, starts of sessions too.
    states : array of int, shape (n + 1,)
        State from each of them on, 1 to m.
    queues : array, shape (2, n + 1)
        Sizes at the best bid and at the best ask at these times.
    end : float
        End of the window, seconds.
    num_spreads : int
        m.
    starts : array of bool, shape (n + 1,), optional
        Which of the times are starts of sessions and no jumps; by default the first alone.
    """

    times: Array
    states: Counts
    queues: Array
    end: float
    num_spreads: int
    starts: NDArray[np.bool_] | None = None

    @property
    def jumped(self) -> NDArray[np.bool_]:
        """Whether each interval but the last ends in a jump, shape (n,)."""
        return np.ones(self.times.size - 1, dtype=bool) if self.starts is None else ~self.starts[1:]

    @property
    def transition_counts(self) -> Counts:
        """Jumps from i to j, shape (m, m)."""
        m, jumped = self.num_spreads, self.jumped
        pairs = (self.states[:-1] - 1) * m + self.states[1:] - 1
        return np.bincount(pairs[jumped], minlength=m * m).reshape(m, m)

    @property
    def seconds(self) -> Array:
        """Time in each state, shape (m,), the last interval included."""
        held = np.diff(self.times, append=self.end)
        return np.bincount(self.states - 1, weights=held, minlength=self.num_spreads).astype(float)

    def jumps_between(self, edges: Array) -> Counts:
        """Jumps in each piece ``(edges[k], edges[k + 1]]``."""
        return np.diff(np.searchsorted(self.times[1:][self.jumped], edges, side="right"))

    def transitions_in(self, edges: Array) -> Counts:
        """Jumps from i to j in each piece, shape (K, m, m)."""
        m, jumped = self.num_spreads, self.jumped
        piece = np.searchsorted(edges[1:-1], self.times[1:][jumped])
        cell = (piece * m + self.states[:-1][jumped] - 1) * m + self.states[1:][jumped] - 1
        return np.bincount(cell, minlength=(edges.size - 1) * m * m).reshape(-1, m, m)

    def seconds_in(self, edges: Array) -> Array:
        """Time in each state in each piece, shape (K, m)."""
        ends = np.append(self.times, self.end)
        elapsed = np.zeros((edges.size, self.num_spreads))
        for state in range(self.num_spreads):
            held = np.where(self.states == state + 1, np.diff(ends), 0.0)
            elapsed[:, state] = np.interp(edges, ends, np.append(0.0, held.cumsum()))
        return np.asarray(np.diff(elapsed, axis=0))

    def state_before(self, times: Array) -> Counts:
        """State just before each time of the window."""
        return self.states[np.maximum(np.searchsorted(self.times, times) - 1, 0)]


def tick_states(spread: Array, tick: float) -> Counts:
    """Spread in ticks, rounded up; a millionth of a tick is forgiven."""
    return np.ceil(np.round(spread / tick, 6)).astype(np.int64)


def largest_num_spreads(states: Counts, visits: int) -> int | None:
    """Largest m for which each of the m states is left `visits` times at least; None where not even m = 2 is so."""
    for m in range(min(int(states.max()), MOST_SPREADS), 1, -1):
        merged = np.minimum(states, m)
        left = np.bincount(merged[:-1][merged[1:] != merged[:-1]], minlength=m + 1)[1:]
        if left.min() >= visits:
            return m
    return None


def spread_path(
    quotes: pd.DataFrame, *, tick: float, num_spreads: int | None = None, start: float, end: float
) -> SpreadPath:
    """States and jumps of the spread in a window.

    Parameters
    ----------
    quotes : pandas.DataFrame
        What `mmgym.tapes.level1.best_quotes` returned; its first row stands at `start` or before. A column
        ``session``, if there is one, changes where a gap of the tape is cut out.
    tick : float
        Unit of the states, in price.
    num_spreads : int, optional
        m: spreads of m ticks or more are one state. By default the largest m up to 32 for which each state is left 100
        times at least, and 2 where there is none.
    start, end : float
        The window, seconds.

    Raises
    ------
    ValueError
        If the spread never jumps, or a state is never visited or never left; the message says what to change.
    """
    first = int(np.searchsorted(quotes["time_s"], start, side="right")) - 1
    seen = quotes.iloc[first : int(np.searchsorted(quotes["time_s"], end, side="right"))]
    ticks = tick_states((seen["ask"] - seen["bid"]).to_numpy(dtype=float), tick)
    m = num_spreads or largest_num_spreads(ticks, ENOUGH_VISITS) or 2
    states = np.minimum(ticks, m)
    session = seen["session"].to_numpy() if "session" in seen else np.zeros(len(seen))
    starts = np.append(True, session[1:] != session[:-1])
    kept = starts | np.append(True, states[1:] != states[:-1])
    times = seen["time_s"].to_numpy(dtype=float)[kept]
    times[0] = start
    queues = seen[["bid_size", "ask_size"]].to_numpy(dtype=float)[kept].T
    path = SpreadPath(times, states[kept], queues, end, m, starts[kept])
    _require_jumps(path, ticks, tick, float((seen["ask"] - seen["bid"]).min()))
    return path


def _require_jumps(path: SpreadPath, ticks: Counts, tick: float, narrowest: float) -> None:
    """Each state must have been left."""
    left = path.transition_counts.sum(axis=1)
    if left.all():
        return
    m = path.num_spreads
    if path.times.size == 1:
        problem = f"the spread never changes its state (always {path.states[0]} of {m}, with tick {tick:g})"
    else:
        state = int(np.flatnonzero(left == 0)[0]) + 1
        ending = "never left" if (path.states == state).any() else "never visited"
        wider = " or more" if state == m else ""
        problem = f"a spread of {state} tick{'s' * (state > 1)}{wider} (tick {tick:g}) is {ending}"
    usable = largest_num_spreads(ticks, 1)
    if usable:
        advice = f"num_spreads = {usable} is the largest that works with this tick"
    elif ticks.min() > 1:
        advice = f"with this tick no num_spreads works: the narrowest spread is {narrowest:g}, try tick = {narrowest:g}"
    else:
        advice = "with this tick no num_spreads works: take a smaller tick or a longer tape"
    raise ValueError(f"{problem}; {advice}")


def clock_time(times: Array, edges: Array, rates: Array) -> Array:
    """Integral of a piecewise-constant rate from ``edges[0]`` to each time."""
    integral = np.append(0.0, np.cumsum(rates * np.diff(edges)))
    return np.asarray(np.interp(times, edges, integral))


def fit_clock(exits: Counts, seconds: Array, by_spread: bool) -> tuple[Array, Array]:
    """Rates of the clock's pieces, and by how much slower than it each spread is left.

    Parameters
    ----------
    exits : array of int, shape (K, m)
        Jumps out of each state in each piece.
    seconds : array, shape (K, m)
        Time there.
    by_spread : bool
        Whether spreads are left at rates of their own.

    Returns
    -------
    rates : array, shape (K,)
        1 / s.
    shares : array, shape (m,)
        ``g``, the largest 1.
    """
    shares = np.ones(exits.shape[1])
    rates = exits.sum(axis=1) / seconds.sum(axis=1)
    for _ in range(10_000 if by_spread else 0):
        before = shares
        shares = exits.sum(axis=0) / (rates @ seconds)
        shares = shares / shares.max()
        rates = exits.sum(axis=1) / (seconds @ shares)
        if np.abs(shares - before).max() < 1e-13:
            break
    return rates, shares


def clock_test(path: SpreadPath, edges: Array, shares: Array | None = None) -> ModelTest:
    """Whether jumps in stretches of each piece are Poisson; up to 30 a piece, five jumps expected in each.

    Parameters
    ----------
    path : SpreadPath
    edges : array, shape (K + 1,)
    shares : array, shape (m,), optional
        By how much slower than the clock each spread is left; by default not at all.
    """
    statistic, freedom = 0.0, 0
    slow = np.ones(path.num_spreads) if shares is None else shares
    for low, high, count in zip(edges[:-1], edges[1:], path.jumps_between(edges), strict=True):
        windows = int(min(BLOCKS, count // SMALLEST_EXPECTED_COUNT))
        if windows < 2:
            continue
        ends = np.linspace(low, high, windows + 1)
        weight = path.seconds_in(ends) @ slow
        expected = count * weight / weight.sum()
        wide = np.unique(((expected.cumsum() - expected / 2) / count * windows).astype(int), return_inverse=True)[1]
        seen, mean = np.bincount(wide, weights=path.jumps_between(ends)), np.bincount(wide, weights=expected)
        statistic += float(((seen - mean) ** 2 / mean).sum())
        freedom += seen.size - 1
    return ModelTest(statistic, freedom)


def holding_times_test(path: SpreadPath, edges: Array, rates: Array, shares: Array | None = None) -> ModelTest:
    """Whether holding times on the clock's own time are standard exponential (`shares` as in `clock_test`)."""
    held = np.diff(clock_time(path.times, edges, rates))
    if shares is not None:
        held = held * shares[path.states[:-1] - 1]
    held = held[path.jumped]
    expected = held.size / HOLDING_CELLS
    if expected < SMALLEST_EXPECTED_COUNT:
        return ModelTest(0.0, 0)
    cell = np.minimum((-np.expm1(-held) * HOLDING_CELLS).astype(int), HOLDING_CELLS - 1)
    seen = np.bincount(cell, minlength=HOLDING_CELLS)
    return ModelTest(float(((seen - expected) ** 2).sum() / expected), HOLDING_CELLS - 2)


def one_clock_test(path: SpreadPath, edges: Array, rates: Array) -> ModelTest:
    """Whether every state is left at the rate of the one clock."""
    held = np.diff(clock_time(np.append(path.times, path.end), edges, rates))
    expected = np.bincount(path.states - 1, weights=held, minlength=path.num_spreads)
    seen = path.transition_counts.sum(axis=1)
    return ModelTest(float(((seen - expected) ** 2 / expected).sum()), path.num_spreads - 1)


def markov_test(path: SpreadPath) -> ModelTest:
    """Whether, given the state, the next one is independent of the one before."""
    m = path.num_spreads
    whole = path.jumped[:-1] & path.jumped[1:]
    before, here, after = (states[whole] - 1 for states in (path.states[:-2], path.states[1:-1], path.states[2:]))
    triples = np.bincount((here * m + before) * m + after, minlength=m**3).reshape(m, m, m).astype(float)
    statistic, freedom = 0.0, 0
    for table in triples:
        table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
        while min(table.shape, default=0) >= 2:
            rows, columns = table.sum(axis=1), table.sum(axis=0)
            expected = np.outer(rows, columns) / max(table.sum(), 1.0)
            if expected.min() >= SMALLEST_EXPECTED_COUNT:
                statistic += float(((table - expected) ** 2 / expected).sum())
                freedom += (rows.size - 1) * (columns.size - 1)
                break
            axis = 0 if rows.min() <= columns.min() else 1
            table = np.delete(table, int((rows, columns)[axis].argmin()), axis=axis)
    return ModelTest(statistic, freedom)
