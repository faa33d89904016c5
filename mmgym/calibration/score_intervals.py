r"""Proportions and Poisson rates with standard errors and 95 % score intervals.

For :math:`x` of :math:`n` trials, :math:`p = x/n`, the standard error is :math:`\sqrt{p(1-p)/n}`; for :math:`x` events
of a Poisson process in :math:`T` seconds the rate is :math:`x/T`, its standard error :math:`\sqrt x/T`. The intervals
hold the values that the score test does not refuse,

.. math:: \frac{x + z^2/2 \pm z\sqrt{x(n-x)/n + z^2/4}}{n + z^2} \qquad\text{and}\qquad
          \frac{x + z^2/2 \pm z\sqrt{x + z^2/4}}{T}.

:math:`z = 1.96` where counts are those of the model. Where blocks of time tell that they vary :math:`\phi > 1` times as
much, :math:`z` is :math:`\sqrt\phi` times Student's quantile, and standard errors are :math:`\sqrt\phi` times as large
(`mmgym.calibration.block_intervals`).

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

from mmgym.calibration.block_intervals import reach

Array = NDArray[np.float64]


class Estimates(NamedTuple):
    """Arrays of one shape: estimates, standard errors and the bounds of 95 % intervals. NaN where nothing was seen."""

    value: Array
    stderr: Array
    lower: Array
    upper: Array


def proportions(count: ArrayLike, trials: ArrayLike, dispersion: ArrayLike = 1.0, freedom: int = 0) -> Estimates:
    """Probabilities from counts.

    Parameters
    ----------
    count, trials : array_like of one shape (or broadcast to one)
        Successes, and trials.
    dispersion : array_like
        Measured variance over that of the model, used where it is above 1.
    freedom : int
        Degrees of freedom on which it was measured.
    """
    count, trials = np.broadcast_arrays(np.asarray(count, dtype=float), np.asarray(trials, dtype=float))
    z = reach(dispersion, freedom)
    n = np.where(trials > 0, trials, np.nan)
    value = count / n
    centre = (count + z**2 / 2) / (n + z**2)
    length = z * np.sqrt(count * (1 - value) + z**2 / 4) / (n + z**2)
    lower, upper = np.where(count > 0, centre - length, 0 * n), np.where(value < 1, centre + length, 1 + 0 * n)
    return Estimates(value, np.sqrt(np.fmax(dispersion, 1.0) * value * (1 - value) / n), lower, upper)


def rates(count: ArrayLike, seconds: ArrayLike, dispersion: ArrayLike = 1.0, freedom: int = 0) -> Estimates:
    """Poisson rates (1 / s) from counts.

    Parameters
    ----------
    count, seconds : array_like of one shape (or broadcast to one)
        Events, and the time in which they were counted.
    dispersion, freedom
        As in `proportions`.
    """
    count, seconds = np.broadcast_arrays(np.asarray(count, dtype=float), np.asarray(seconds, dtype=float))
    z = reach(dispersion, freedom)
    time = np.where(seconds > 0, seconds, np.nan)
    centre, length = count + z**2 / 2, z * np.sqrt(count + z**2 / 4)
    lower = np.where(count > 0, centre - length, 0.0) / time
    return Estimates(count / time, np.sqrt(np.fmax(dispersion, 1.0) * count) / time, lower, (centre + length) / time)
