r"""Standard errors and 95 % intervals that hold the clustering of events, from sums over blocks of time.

Orders, fills and jumps of a record cluster, so that counts vary more over time than those of the model. An estimate
solves :math:`\sum_b s_b = 0` with one score :math:`s_b` for each of :math:`B` blocks of time (30 of equal length); if
the blocks are longer than the clusters, their scores are independent and the estimate has the sandwich variance

.. math:: I^{-1} \Big( \frac{B}{B - P} \sum_b s_b s_b^\top \Big) I^{-1},

:math:`I` the information of the model and :math:`P` the pieces of time with a level of their own (one, mostly). Over
the variance :math:`I^{-1}` of the model this is the *dispersion* of an estimate. Where it is above 1 it is used, with
Student's quantile of :math:`B - P` degrees of freedom; where it is not, the error is that of the model.

References
----------
White, H. (1982). Maximum likelihood estimation of misspecified models. *Econometrica* 50(1).

Ibragimov, R. and Müller, U. K. (2010). t-statistic based correlation and heterogeneity robust inference. *Journal of
Business & Economic Statistics* 28(4).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
QUANTILE = NormalDist().inv_cdf(0.5 + LEVEL / 2)
BLOCKS = 30
FEWEST_BLOCKS = 10  # fewer do not tell a variance
FEWEST_EVENTS = 10  # nor do so few events


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and 95 % interval."""

    value: float
    stderr: float
    lower: float
    upper: float

    @classmethod
    def normal(cls, value: float, stderr: float) -> Estimate:
        """With the interval of the normal law."""
        return cls(value, stderr, value - QUANTILE * stderr, value + QUANTILE * stderr)

    @classmethod
    def measured(cls, value: float, variance: float, model_variance: float, blocks: int = BLOCKS) -> Estimate:
        """With the larger of a variance measured over blocks of time and that of the model."""
        dispersion = variance / model_variance if model_variance > 0 else 1.0
        stderr = math.sqrt(model_variance)
        length = float(reach(dispersion, blocks - 1)) * stderr
        return cls(value, stderr * math.sqrt(max(dispersion, 1.0)), value - length, value + length)


UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)  # what the data do not tell


def ratio_estimate(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """Sum over sum of values of blocks (or days), with Student's interval of their spread.

    Parameters
    ----------
    numerators, denominators : array_like, shape (B,)

    Returns
    -------
    Estimate
        Without error for a single block; `UNKNOWN` where the denominators add up to 0.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    total = float(bottom.sum())
    if total == 0:
        return UNKNOWN
    value, number = float(top.sum()) / total, top.size
    if number < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    stderr = math.sqrt(float(((top - value * bottom) ** 2).sum()) * number / (number - 1)) / total
    length = student(number - 1) * stderr
    return Estimate(value, stderr, value - length, value + length)


@functools.cache
def student(freedom: int) -> float:
    """Quantile of a 95 % interval on so many degrees of freedom."""
    return float(scipy.stats.t.isf((1 - LEVEL) / 2, freedom))


def reach(dispersion: ArrayLike, freedom: int) -> Array:
    """Standard errors of the model on each side of an estimate that its 95 % interval reaches.

    Parameters
    ----------
    dispersion : array_like
        Measured variance over that of the model; NaN where it could not be measured.
    freedom : int
        Blocks less pieces, on which it was measured.
    """
    wide = np.fmax(np.asarray(dispersion, dtype=float), 1.0)
    return np.asarray(np.sqrt(wide) * np.where(wide > 1, student(freedom) if freedom > 0 else QUANTILE, QUANTILE))


def block_sums(block: ArrayLike, values: ArrayLike, number: int = BLOCKS) -> Array:
    """Sums over blocks, shape (number, ...), of values of shape (n, ...)."""
    values = np.asarray(values, dtype=float)
    sums = np.zeros((number, *values.shape[1:]))
    np.add.at(sums, np.asarray(block, dtype=np.intp), values)
    return sums


def blocks_of(time: ArrayLike, start: float, end: float, number: int = BLOCKS) -> NDArray[np.intp]:
    """The block of equal length in which each time lies."""
    place = (np.asarray(time, dtype=float) - start) / (end - start) * number
    return np.clip(place.astype(np.intp), 0, number - 1)


def sandwich(scores: ArrayLike, covariance: ArrayLike) -> Array:
    """Covariance of estimates from the sums of their scores over blocks.

    Parameters
    ----------
    scores : array_like, shape (blocks, p)
    covariance : array_like, shape (p, p)
        Inverse of the model's information.

    Returns
    -------
    array, shape (p, p)
        The model's own where there are too few blocks.
    """
    scores, covariance = np.asarray(scores, dtype=float), np.asarray(covariance, dtype=float)
    number = len(scores)
    if number < FEWEST_BLOCKS:
        return covariance
    return np.asarray(covariance @ (scores.T @ scores) @ covariance * number / (number - 1))


def count_dispersion(counts: ArrayLike, exposure: ArrayLike, pieces: ArrayLike | None = None) -> tuple[Array, int]:
    """Measured variance of counts over that of Poisson counts, and its degrees of freedom.

    Parameters
    ----------
    counts, exposure : array_like, shape (B, ...)
        Events in each block, and the time (or the expected number, up to a factor) in which they could happen.
    pieces : array_like of int, shape (B,), optional
        The piece of time of a block; rates are constant in a piece. One piece by default.

    Returns
    -------
    dispersion : array, shape (...)
        NaN where fewer than ten events, or ten blocks with exposure, do not tell it.
    freedom : int
    """
    counts, exposure = np.asarray(counts, dtype=float), np.asarray(exposure, dtype=float)
    label = np.zeros(len(counts), dtype=int) if pieces is None else np.asarray(pieces)
    variance = np.zeros(counts.shape[1:])
    for piece in np.unique(label):
        own, time = counts[label == piece], exposure[label == piece]
        total = time.sum(axis=0)
        rate = np.divide(own.sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
        live = np.maximum((time > 0).sum(axis=0), 2)
        variance += ((own - rate * time) ** 2).sum(axis=0) * live / (live - 1)
    freedom = len(counts) - int(np.unique(label).size)
    seen, told = counts.sum(axis=0), (exposure > 0).sum(axis=0) >= FEWEST_BLOCKS
    told &= seen >= FEWEST_EVENTS
    dispersion = np.divide(variance, seen, out=np.full(variance.shape, math.nan), where=told)
    return np.asarray(dispersion), freedom
