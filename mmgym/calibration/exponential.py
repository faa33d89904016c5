r"""Maximum likelihood for exponential fill rates.

An order at depth :math:`d` from the mid is filled at rate :math:`\lambda(d) = A e^{-k d}` per second, with
:math:`A` = ``fill_rate`` and :math:`k` = ``fill_decay``. Two kinds of record tell :math:`A` and :math:`k`.

*Fills of own quotes* (`fit_fills`). Row :math:`i` of depth :math:`d_i` and exposure :math:`e_i` seconds has
:math:`n_i \sim \mathrm{Poisson}(A e^{-k d_i} e_i)` fills: a log-linear regression with offset :math:`\log e_i`. For
given :math:`k` the best rate is :math:`A = \sum n_i / \sum e_i e^{-k d_i}`; what is left is one equation in :math:`k`,

.. math:: \frac{\sum d_i e_i e^{-k d_i}}{\sum e_i e^{-k d_i}} = \frac{\sum n_i d_i}{\sum n_i} =: \bar d,

whose left side falls strictly from the largest depth to the smallest: the maximum exists, and is unique, exactly
when the mean depth of the fills lies strictly between the two. With :math:`n = \sum n_i` and :math:`v` the variance of
the depth under the weights :math:`e_i e^{-k d_i}`, Fisher's information gives
:math:`\mathrm{var}\,k = 1/(n v)` and :math:`\mathrm{var} \log A = 1/n + \bar d^2/(n v)`.

*Market orders of others* (`fit_reaches`). A market order that reaches depth :math:`D` fills every quote up to
:math:`D`, so :math:`\lambda(d)` is the rate of orders with :math:`D \ge d`. The counts at two depths hold the same
orders and are no independent data; the reaches are. Given that it gets to a smallest depth :math:`d_0` (the touch;
nothing is seen nearer to the mid) the reach beyond :math:`d_0` is exponential, and in whole ticks :math:`h` it is
geometric: each further tick is reached with probability :math:`q = e^{-k h}`. Looking no deeper than a largest depth
censors the reaches there, and the ticks tried are Bernoulli trials still: with :math:`s` ticks passed and :math:`u`
orders seen to stop,

.. math:: q = \frac{s}{s + u}, \qquad k = -\frac{\log q}{h}, \qquad \mathrm{var}\,k = \frac{1 - q}{h^2 q (s + u)}.

The :math:`n` orders in :math:`T` seconds are Poisson and independent of their reaches, hence
:math:`\log A = \log(n/T) + k d_0` with :math:`\mathrm{var} \log A = 1/n + d_0^2\, \mathrm{var}\,k`.

These are the errors of the model. Fills that cluster have larger ones, and intervals hold them: they are those of sums
over blocks of time (`mmgym.calibration.block_intervals`).

References
----------
Avellaneda, M. and Stoikov, S. (2008). High-frequency trading in a limit order book. *Quantitative Finance* 8(3),
section 2.5 (exponential fill rates).

Guéant, O., Lehalle, C.-A. and Fernandez-Tapia, J. (2013). Dealing with the inventory risk: a solution to the market
making problem. *Mathematics and Financial Economics* 7(4), section 2 (the market that is calibrated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.block_intervals import (
    BLOCKS,
    LEVEL,
    Estimate,
    block_sums,
    blocks_of,
    count_dispersion,
    sandwich,
)

Array = NDArray[np.float64]

SMALLEST_EXPECTED_COUNT = 5.0  # per cell of the chi-square test
LARGEST_CELL_NUMBER = 12
LARGEST_EXPONENT = 700.0  # of the exponential function in floating point


@dataclass(frozen=True)
class ExponentialFit:
    """The exponential law of one side, and how well it holds.

    Attributes
    ----------
    fill_rate : Estimate
        A, per second. The interval is that of log A, carried over.
    log_fill_rate : Estimate
        log A.
    fill_decay : Estimate
        k, per unit of price.
    fills : int
        Fills, or market orders, that the estimates rest on.
    exposure : float
        Seconds.
    deviance : float
        Likelihood-ratio statistic of the exponential law against free rates in cells of depth.
    degrees_of_freedom : int
        Cells less two; zero where the data leave nothing to test.
    p_value : float
        Chi-square probability of a larger deviance; NaN without degrees of freedom. The parameters come from the
        single observations, not from the cells, which makes it a little too small.
    dispersion : float
        Variance of the counts in 30 blocks of time over that of Poisson counts; it exceeds 1 where fills cluster, and
        is in the intervals.
    model_errors : tuple of float
        Standard errors of ``log_fill_rate`` and ``fill_decay`` under the model; theirs are larger where the record
        says so.
    rates : pandas.DataFrame
        By depth (units of price): ``exposure`` (s), ``fills``, ``rate`` (1/s) with its exact 95 % Poisson interval
        ``lower``, ``upper``, the ``fitted`` rate and ``ratio`` = rate / fitted.
    """

    fill_rate: Estimate
    log_fill_rate: Estimate
    fill_decay: Estimate
    fills: int
    exposure: float
    deviance: float
    degrees_of_freedom: int
    p_value: float
    dispersion: float
    model_errors: tuple[float, float]
    rates: pd.DataFrame = field(repr=False, compare=False)


def fit_fills(depth: ArrayLike, exposure: ArrayLike, fills: ArrayLike) -> ExponentialFit:
    """Fit the exponential law to the fills of own quotes (Poisson regression).

    Parameters
    ----------
    depth : array_like, shape (n,)
        Distance of the quote from the mid, units of price; rows in the order of time.
    exposure : array_like, shape (n,)
        Seconds for which the quote stood, positive.
    fills : array_like, shape (n,)
        Number of fills in that time, whole numbers.

    Returns
    -------
    ExponentialFit

    Raises
    ------
    ValueError
        If an array is out of range, or the data do not identify both parameters: no fills, all depths equal, or all
        fills at the smallest (largest) depth.
    """
    depth, exposure, fills = _checked_rows(depth, exposure, fills)
    mean = float(fills @ depth / fills.sum())
    decay = _most_likely_decay(depth, exposure, mean)
    total = fills.sum()
    weight = exposure * np.exp(-decay * (depth - mean))
    log_rate = math.log(total / weight.sum()) + decay * mean
    variance = float(weight @ (depth - mean) ** 2 / weight.sum())
    if not variance > 0:
        ends = f"{depth.min():g} to {depth.max():g}"
        raise ValueError(f"depths from {ends} cannot be told apart: fill_decay needs two at least")
    decay_stderr = 1 / math.sqrt(total * variance)
    expected = total * weight / weight.sum()

    cell = _depth_cells(depth, expected, int(min(LARGEST_CELL_NUMBER, total // SMALLEST_EXPECTED_COUNT)))
    seconds, counts, fitted = (_sums(cell, values) for values in (exposure, fills, expected))
    number = min(BLOCKS, fills.size)
    block = np.arange(fills.size) * number // fills.size
    surprise = fills - expected
    scores = block_sums(block, np.stack([surprise, -surprise * (depth - mean)], axis=1), number)
    return _fit(
        (log_rate, decay, mean),
        np.diag([1 / total, decay_stderr**2]),
        scores,
        (int(total), float(exposure.sum())),
        _deviance(counts, fitted),
        float(count_dispersion(block_sums(block, fills, number), block_sums(block, expected, number))[0]),
        _rate_table(_sums(cell, exposure * depth) / seconds, seconds, counts, fitted / seconds),
    )


def _checked_rows(depth: ArrayLike, exposure: ArrayLike, fills: ArrayLike) -> tuple[Array, Array, Array]:
    """Arrays of `fit_fills`; data that do not identify both parameters are refused."""
    depth, exposure, fills = (np.asarray(values, dtype=float) for values in (depth, exposure, fills))
    if not depth.ndim == 1 <= depth.size or not depth.shape == exposure.shape == fills.shape:
        shapes = f"{depth.shape}, {exposure.shape}, {fills.shape}"
        raise ValueError(f"depth, exposure and fills need one shape (n,) with n >= 1, got {shapes}")
    if not np.isfinite(depth).all():
        raise ValueError("depth must be finite")
    if not (np.isfinite(exposure) & (exposure > 0)).all():
        raise ValueError("exposure must be positive and finite (seconds)")
    if not (np.isfinite(fills) & (fills >= 0) & (fills == np.floor(fills))).all():
        raise ValueError("fills must be whole numbers, 0 or more")
    if fills.sum() == 0:
        raise ValueError("no fills: fill_rate and fill_decay need fills at two depths at least")
    nearest, deepest = depth.min(), depth.max()
    if nearest == deepest:
        raise ValueError(f"all depths are {nearest:g}: fill_decay needs quotes at two depths at least")
    filled = depth[fills > 0]
    if (filled == nearest).all() or (filled == deepest).all():
        end = "smallest" if filled[0] == nearest else "largest"
        raise ValueError(f"all fills are at the {end} depth: fill_decay needs a fill at another depth")
    return depth, exposure, fills


def _most_likely_decay(depth: Array, exposure: Array, mean: float) -> float:
    """The decay at which the tilted mean of the depth is the mean depth of the fills."""
    span = float(np.ptp(depth))
    scaled = (depth - mean) / span

    def excess(decay: float) -> float:
        """Tilted mean of the depth, less the mean depth of the fills: falls from positive to negative."""
        exponent = -decay * scaled
        weight = exposure * np.exp(exponent - exponent.max())
        return float(weight @ scaled / weight.sum())

    bound = 1.0
    while excess(-bound) <= 0 or excess(bound) >= 0:
        bound *= 2
        if bound > LARGEST_EXPONENT:
            raise ValueError(
                "fill_decay is beyond what numbers hold: exposures must be of about one order of magnitude, and depths "
                "spread out between the smallest and the largest"
            )
    return float(scipy.optimize.brentq(excess, -bound, bound, xtol=1e-13)) / span


def fit_reaches(
    time: ArrayLike,
    reach: ArrayLike,
    *,
    start: float,
    end: float,
    tick: float,
    minimum_depth: float,
    maximum_depth: float | None = None,
) -> ExponentialFit:
    """Fit the exponential law to the reaches of market orders (geometric in ticks beyond the touch).

    Parameters
    ----------
    time : array_like, shape (n,)
        Times of the market orders of one side, seconds.
    reach : array_like, shape (n,)
        Distance of each order's worst price from the mid just before it, units of price. Orders that do not get to
        `minimum_depth` are left out.
    start, end : float
        The window watched; orders outside it are left out. Its length is the exposure, seconds.
    tick : float
        Grid of the reaches beyond `minimum_depth`, units of price.
    minimum_depth : float
        The touch: nearest depth at which anything is seen.
    maximum_depth : float, optional
        Look no deeper: reaches are censored here. By default they are not.

    Returns
    -------
    ExponentialFit

    Raises
    ------
    ValueError
        If an argument is out of range, or no order, or none that goes on beyond `minimum_depth`, or none that stops
        before `maximum_depth`, is left.
    """
    time, passed, limit = _whole_reaches(time, reach, start, end, tick, minimum_depth, maximum_depth)
    stops = int((passed < limit).sum())
    total, exposure, steps = passed.size, end - start, float(passed.sum())
    decay = math.log1p(stops / steps) / tick
    decay_stderr = math.sqrt(stops / (steps * (steps + stops))) / tick
    log_rate = math.log(total / exposure) + decay * minimum_depth

    grid = _reach_grid(passed, decay * tick)
    counts = (total - np.searchsorted(np.sort(passed), grid)).astype(float)
    survival = np.exp(-decay * tick * grid)
    block = blocks_of(time, start, end)
    arrived, passes = np.bincount(block, minlength=BLOCKS).astype(float), block_sums(block, passed)
    stopped = block_sums(block, passed < limit)
    onward = math.exp(-decay * tick)
    scores = np.stack([arrived - total / BLOCKS, tick * (stopped * onward / (1 - onward) - passes)], axis=1)
    return _fit(
        (log_rate, decay, minimum_depth),
        np.diag([1 / total, decay_stderr**2]),
        scores,
        (total, exposure),
        _deviance(-np.diff(counts, append=0.0), -total * np.diff(survival, append=0.0)),
        float(count_dispersion(arrived, np.ones(BLOCKS))[0]),
        _rate_table(minimum_depth + tick * grid, np.full(grid.size, exposure), counts, total / exposure * survival),
    )


def _whole_reaches(
    time: ArrayLike,
    reach: ArrayLike,
    start: float,
    end: float,
    tick: float,
    minimum_depth: float,
    maximum_depth: float | None,
) -> tuple[Array, Array, float]:
    """Times and ticks passed beyond the touch of the orders that `fit_reaches` uses, and the most ticks looked at."""
    time, reach = np.asarray(time, dtype=float), np.asarray(reach, dtype=float)
    if time.ndim != 1 or time.shape != reach.shape or not np.isfinite([time, reach]).all():
        raise ValueError(
            f"time and reach need one shape (n,) and finite values, got shapes {time.shape}, {reach.shape}"
        )
    if not (math.isfinite(tick) and tick > 0):
        raise ValueError(f"tick must be positive and finite, got {tick}")
    if not (math.isfinite(end - start) and end > start):
        raise ValueError(f"the window must have positive length, got start {start} and end {end}")
    limit = math.inf if maximum_depth is None else float(_whole_ticks(maximum_depth - minimum_depth, tick))
    if not (math.isfinite(minimum_depth) and limit >= 1):
        given = f"minimum_depth {minimum_depth} and maximum_depth {maximum_depth}"
        raise ValueError(f"maximum_depth must exceed minimum_depth by a tick ({tick:g}) at least, got {given}")
    passed = _whole_ticks(reach - minimum_depth, tick)
    kept = (passed >= 0) & (time >= start) & (time <= end)
    time, passed = time[kept], np.minimum(passed[kept], limit)
    stops, steps = int((passed < limit).sum()), float(passed.sum())
    if passed.size == 0:
        raise ValueError(f"no market order reaches minimum_depth {minimum_depth:g}: both parameters need some")
    if steps == 0 or stops == 0:
        missing = "goes on beyond minimum_depth" if steps == 0 else "stops before maximum_depth"
        raise ValueError(f"no market order {missing}: fill_decay needs orders of different reach")
    return time, passed, limit


def _fit(
    values: tuple[float, float, float],  # log A, k, and the depth at which rate and decay are independent
    covariance: Array,
    scores: Array,  # of the rate at that depth and of the decay, in blocks of time
    rests_on: tuple[int, float],  # fills, and seconds of exposure
    test: tuple[float, int, float],
    dispersion: float,
    rates: pd.DataFrame,
) -> ExponentialFit:
    """A fit with A itself (delta method, interval carried over from log A)."""
    log_value, decay_value, depth = values
    measured, to_rate = sandwich(scores, covariance), np.array([1.0, depth])
    number, of_model = len(scores), float(to_rate @ covariance @ to_rate)
    log_rate = Estimate.measured(log_value, float(to_rate @ measured @ to_rate), of_model, number)
    decay = Estimate.measured(decay_value, float(measured[1, 1]), float(covariance[1, 1]), number)
    stderr = log_rate.stderr
    if not max(abs(log_value), abs(log_rate.lower), abs(log_rate.upper)) < LARGEST_EXPONENT:
        raise ValueError(
            f"log(fill_rate) = {log_value:.4g} +- {stderr:.2g}: the rate at depth 0, an extrapolation, is beyond what "
            "numbers hold; fills are needed nearer to the mid, or at more depths"
        )
    rate = math.exp(log_value)
    fill_rate = Estimate(rate, rate * stderr, math.exp(log_rate.lower), math.exp(log_rate.upper))
    errors = math.sqrt(of_model), math.sqrt(float(covariance[1, 1]))
    return ExponentialFit(fill_rate, log_rate, decay, rests_on[0], rests_on[1], *test, dispersion, errors, rates)


def _deviance(observed: Array, expected: Array) -> tuple[float, int, float]:
    """Deviance, degrees of freedom and p-value; neighbouring cells are pooled until each expects enough."""
    starts: list[int] = []
    remaining = expected[::-1].cumsum()[::-1]
    pooled = math.inf
    for index, here in enumerate(expected):
        if min(pooled, remaining[index]) >= SMALLEST_EXPECTED_COUNT:
            starts.append(index)
            pooled = 0.0
        pooled += here
    freedom = len(starts) - 2
    if freedom < 1:
        return 0.0, 0, math.nan
    seen, mean = np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)
    deviance = max(0.0, 2 * float(scipy.special.xlogy(seen, seen / mean).sum()))
    return deviance, freedom, float(scipy.stats.chi2.sf(deviance, freedom))


def _whole_ticks(distance: ArrayLike, tick: float) -> Array:
    """Whole ticks in a distance, forgiving a millionth of a tick of rounding."""
    return np.floor(np.round(np.asarray(distance, dtype=float) / tick, 6))


def _sums(cell: NDArray[np.intp], values: Array) -> Array:
    """Sum of the values in each cell."""
    return np.bincount(cell, weights=values).astype(float)


def _depth_cells(depth: Array, expected: Array, number: int) -> NDArray[np.intp]:
    """Cell of each row: at most `number` cells of about the same expected fills; equal depths share a cell."""
    level = np.unique(depth, return_inverse=True)[1]
    mass = _sums(level, expected)
    middle = (mass.cumsum() - mass / 2) / mass.sum()
    cell = np.minimum((middle * max(number, 1)).astype(int), max(number, 1) - 1)
    return np.unique(cell[level], return_inverse=True)[1]


def _reach_grid(passed: Array, decay: float) -> Array:
    """Ticks beyond the touch at which rates are shown: to the end of the fit, then to the end of the data."""
    ordered = np.sort(passed)
    few = int(SMALLEST_EXPECTED_COUNT)
    seen = ordered[max(ordered.size - few, 0)]
    fitted = min(math.log(max(ordered.size / few, 1.0)) / decay, ordered[-1])
    grid = np.linspace(0, fitted, LARGEST_CELL_NUMBER + 1)
    if seen > fitted:
        grid = np.concatenate([grid, np.linspace(fitted, seen, LARGEST_CELL_NUMBER)])
    return np.unique(np.round(grid))


def _rate_table(depth: Array, exposure: Array, fills: Array, fitted: Array) -> pd.DataFrame:
    """Rates by depth with exact Poisson intervals (Garwood)."""
    tail = (1 - LEVEL) / 2
    lower = np.where(fills > 0, scipy.special.gammaincinv(np.maximum(fills, 1), tail), 0.0)
    upper = scipy.special.gammainccinv(fills + 1, tail)
    return pd.DataFrame(
        {
            "depth": depth,
            "exposure": exposure,
            "fills": fills.astype(int),
            "rate": fills / exposure,
            "lower": lower / exposure,
            "upper": upper / exposure,
            "fitted": fitted,
            "ratio": fills / exposure / fitted,
        }
    )
