"""Statistics of a few training runs: interquartile mean, stratified bootstrap intervals, probability of improvement.

The definitions are those of Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical
precipice". Runs come in strata, one for each market; a stratum is resampled by itself. A run that has no result counts
as minus infinity (of a skill) or plus infinity (of a regret): it is never left out, and quantiles are then those of
what was drawn, without interpolation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Interval", "bootstrap_interval", "probability_of_improvement"]

Array = NDArray[Any]
Strata = Sequence[Sequence[float]]

RESAMPLES = 10_000


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def _arrays(strata: Strata) -> list[Array]:
    arrays = [np.asarray(runs, dtype=np.float64) for runs in strata]
    if not arrays or any(runs.ndim != 1 or not len(runs) for runs in arrays):
        raise ValueError("every stratum must be a list of at least one run")
    if any(np.isnan(runs).any() for runs in arrays):
        raise ValueError("a run is nan: a run without a result counts as an infinite loss")
    return arrays


def _interquartile_means(values: Array) -> Array:
    """The mean of the middle half of each row: of ``n`` values, ``floor(n / 4)`` are cut off at each end."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=1))


def _resampled(runs: Array, resamples: int, random: np.random.Generator) -> Array:
    return np.asarray(runs[random.integers(0, len(runs), (resamples, len(runs)))])


def _interval(estimate: float, draws: Array, confidence: float) -> Interval:
    tail = 0.5 * (1.0 - confidence)
    low = float(np.quantile(draws, tail, method="lower"))
    return Interval(estimate, low, float(np.quantile(draws, 1.0 - tail, method="higher")))


def bootstrap_interval(
    strata: Strata,
    statistic: Callable[[Array], Array] = _interquartile_means,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the stratified bootstrap.

    Parameters
    ----------
    strata : sequence of sequences of float
        Runs of each stratum; each is resampled with replacement to its own size.
    statistic : callable
        Maps samples (R, runs) to values (R,); the interquartile mean by default.
    confidence : float
        In (0, 1).
    resamples : int
    seed : int
    """
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise ValueError(f"confidence = {confidence} must be in (0, 1), and resamples = {resamples} >= 1")
    runs, random = _arrays(strata), np.random.default_rng(seed)
    draws = statistic(np.concatenate([_resampled(part, resamples, random) for part in runs], axis=1))
    return _interval(float(statistic(np.concatenate(runs)[None, :])[0]), draws, confidence)


def _improvements(x: Array, y: Array) -> Array:
    """Probability that a value of a row of x beats one of y: Mann-Whitney's U over the pairs. Ties count one half."""
    pairs = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    return np.asarray(pairs.mean(axis=(1, 2)))


def probability_of_improvement(
    first: Strata, second: Strata, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Probability of improvement, averaged over the strata, with its stratified bootstrap interval.

    Parameters
    ----------
    first, second : sequences of sequences of float
        Runs of two algorithms in the same strata; more is better.
    """
    x, y = _arrays(first), _arrays(second)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} strata cannot be compared with {len(y)}: they must be the same markets")
    random = np.random.default_rng(seed)
    draws = np.mean(
        [
            _improvements(_resampled(a, resamples, random), _resampled(b, resamples, random))
            for a, b in zip(x, y, strict=True)
        ],
        axis=0,
    )
    estimate = float(np.mean([_improvements(a[None, :], b[None, :])[0] for a, b in zip(x, y, strict=True)]))
    return _interval(estimate, draws, confidence)
