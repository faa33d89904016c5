r"""Proportions and Poisson rates with standard errors and 95 % score intervals.

For :math:`x` of :math:`n` trials, :math:`p = x/n`, the standard error is :math:`\sqrt{p(1-p)/n}`; for :math:`x` events
of a Poisson process in :math:`T` seconds the rate is :math:`x/T`, its standard error :math:`\sqrt x/T`. The intervals
hold the values that the score test does not refuse (:math:`z = 1.96`),

.. math:: \frac{x + z^2/2 \pm z\sqrt{x(n-x)/n + z^2/4}}{n + z^2} \qquad\text{and}\qquad
          \frac{x + z^2/2 \pm z\sqrt{x + z^2/4}}{T}.

They lie within ``[0, 1]`` and ``[0, inf)``, have length where the standard error is 0, and cover about 95 % at small
counts too, which estimate plus or minus :math:`z` standard errors does not.

References
----------
Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference. *Journal of the American
Statistical Association* 22(158).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.exponential import QUANTILE

Array = NDArray[np.float64]


class Estimates(NamedTuple):
    """Arrays of one shape: estimates, standard errors and the bounds of 95 % intervals. NaN where nothing was seen."""

    value: Array
    stderr: Array
    lower: Array
    upper: Array


def proportions(count: ArrayLike, trials: ArrayLike) -> Estimates:
    """Probabilities from counts.

    Parameters
    ----------
    count, trials : array_like of one shape (or broadcast to one)
        Successes, and trials.
    """
    count, trials = np.broadcast_arrays(np.asarray(count, dtype=float), np.asarray(trials, dtype=float))
    n = np.where(trials > 0, trials, np.nan)
    value = count / n
    centre = (count + QUANTILE**2 / 2) / (n + QUANTILE**2)
    reach = QUANTILE * np.sqrt(count * (1 - value) + QUANTILE**2 / 4) / (n + QUANTILE**2)
    lower, upper = np.where(count > 0, centre - reach, 0 * n), np.where(value < 1, centre + reach, 1 + 0 * n)
    return Estimates(value, np.sqrt(value * (1 - value) / n), lower, upper)


def rates(count: ArrayLike, seconds: ArrayLike) -> Estimates:
    """Poisson rates (1 / s) from counts.

    Parameters
    ----------
    count, seconds : array_like of one shape (or broadcast to one)
        Events, and the time in which they were counted.
    """
    count, seconds = np.broadcast_arrays(np.asarray(count, dtype=float), np.asarray(seconds, dtype=float))
    time = np.where(seconds > 0, seconds, np.nan)
    centre, reach = count + QUANTILE**2 / 2, QUANTILE * np.sqrt(count + QUANTILE**2 / 4)
    lower = np.where(count > 0, centre - reach, 0.0) / time
    return Estimates(count / time, np.sqrt(count) / time, lower, (centre + reach) / time)
