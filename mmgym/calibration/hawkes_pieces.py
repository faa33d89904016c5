r"""Hawkes processes whose base rate varies over the window: piecewise constant, by maximum likelihood.

Every window is cut into :math:`N` pieces of equal length, of base rates :math:`\mu_1 \dots \mu_N`; events excite as
before, across the pieces too. With :math:`R_i = \sum_{j < i} e^{-\rho (t_i - t_j)}` and :math:`k_i` the piece of event
:math:`i`, the log-likelihood of a window of length :math:`T` is

.. math:: \sum_i \log(\mu_{k_i} + \zeta R_i) - \frac TN \sum_k \mu_k
          - \frac\zeta\rho \sum_i \big(1 - e^{-\rho (T - t_i)}\big).

Standard errors are those of the information that the events carry, :math:`\sum_i \nabla\lambda_i \nabla\lambda_i^\top /
\lambda_i^2` (Ogata 1978). Twice the gain in log-likelihood over a constant base rate is chi-square with :math:`N - 1`
degrees of freedom where it is constant.

References
----------
Ogata, Y. (1978). The asymptotic behaviour of maximum likelihood estimators for stationary point processes. *Annals of
the Institute of Statistical Mathematics* 30.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numba import njit
from numpy.typing import NDArray

from mmgym.calibration.hawkes_likelihood import Windows
from mmgym.compiling import KERNEL

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@njit(**KERNEL)
def _excitations(times: Array, offsets: Index, durations: Array, rho: float, sums: Array, slopes: Array) -> Array:
    """R and its derivative in rho at each event; the compensator's sum over events and its derivative."""
    total = np.zeros(2)
    for window in range(durations.size):
        r = r1 = before = 0.0
        first, last = offsets[window], offsets[window + 1]
        for i in range(first, last):
            gap = times[i] - before
            before = times[i]
            shrink = math.exp(-rho * gap)
            r1 = shrink * (r1 - gap * r)
            r = shrink * r
            sums[i], slopes[i] = r, r1
            r += 1.0
        for i in range(first, last):
            left = durations[window] - times[i]
            total[0] -= math.expm1(-rho * left) / rho
            total[1] += left * math.exp(-rho * left) / rho + math.expm1(-rho * left) / rho**2
    return total


def pieces_of(data: Windows, number: int) -> Index:
    """The piece of its window in which each event lies."""
    length = np.repeat(data.durations, np.diff(data.offsets))
    return np.minimum((data.times / length * number).astype(np.int64), number - 1)


def fit_pieces(
    data: Windows, number: int, start: tuple[float, float, float], longest_decay: float
) -> tuple[Array, float, float, float, Array]:
    """Maximise the likelihood.

    Parameters
    ----------
    data : Windows
        Without history.
    number : int
        Pieces.
    start : tuple of float
        Base rate, excitation and decay of a fit with a constant base rate.
    longest_decay : float
        Largest decay that can be told.

    Returns
    -------
    base_rates : array, shape (number,)
    excitation, decay, value : float
        And the log-likelihood.
    covariance : array, shape (number + 2, number + 2)
        Of the base rates, excitation and decay.

    Raises
    ------
    ValueError
        If a piece holds no event.
    """
    piece = pieces_of(data, number)
    seen = np.bincount(piece, minlength=number)
    if not seen.all():
        raise ValueError(f"piece {int(seen.argmin()) + 1} of {number} holds no event: its base rate cannot be told")
    length = data.exposure / number
    sums, slopes = np.empty(data.count), np.empty(data.count)

    def loss(point: Array) -> tuple[float, Array]:
        mu, ratio, rho = np.exp(point[:number]), float(point[number]), math.exp(point[number + 1])
        total = _excitations(data.times, data.offsets, data.durations, rho, sums, slopes)
        zeta = ratio * rho
        rate = mu[piece] + zeta * sums
        value = float(np.log(rate).sum()) - length * float(mu.sum()) - zeta * total[0]
        d_mu = np.bincount(piece, weights=1 / rate, minlength=number) - length
        d_zeta = float((sums / rate).sum()) - total[0]
        d_rho = zeta * (float((slopes / rate).sum()) - total[1])
        gradient = np.concatenate([mu * d_mu, [rho * d_zeta, rho * (d_rho + ratio * d_zeta)]])
        return -value / data.count, -gradient / data.count

    mu, zeta, rho = start
    first = np.concatenate([np.full(number, math.log(mu)), [zeta / rho, math.log(rho)]])
    bounds = [(-30.0, 30.0)] * number + [(0.0, 1e3), (math.log(1e-3 / data.durations.max()), math.log(longest_decay))]
    best = scipy.optimize.minimize(
        loss,
        first,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-8},
    )
    mu_k, rho = np.exp(np.asarray(best.x[:number], dtype=np.float64)), math.exp(best.x[number + 1])
    zeta = float(best.x[number]) * rho
    loss(best.x)
    rate = mu_k[piece] + zeta * sums
    slope = np.zeros((data.count, number + 2))
    slope[np.arange(data.count), piece] = 1.0
    slope[:, number], slope[:, number + 1] = sums, zeta * slopes
    slope /= rate[:, None]
    covariance = np.asarray(np.linalg.pinv(slope.T @ slope), dtype=np.float64)
    return mu_k, zeta, rho, -float(best.fun) * data.count, covariance


def piece_compensators(data: Windows, base_rates: Array, zeta: float, rho: float) -> tuple[Array, float]:
    """Residual time of every event, the windows' laid end to end, and of the whole."""
    points, before, number = np.empty(data.count), 0.0, base_rates.size
    for window, length in enumerate(data.durations):
        own = slice(data.offsets[window], data.offsets[window + 1])
        times = data.times[own]
        edges = np.linspace(0.0, length, number + 1)
        integral = np.append(0.0, np.cumsum(base_rates * length / number))
        base = np.interp(np.append(times, length), edges, integral)
        excited, excess, last = np.zeros(times.size + 1), 0.0, 0.0
        for i, time in enumerate([*times, length]):
            lost = -excess * math.expm1(-rho * (time - last))
            excited[i] = lost / rho
            excess += zeta - lost
            last = time
        compensator = before + base + excited.cumsum()
        points[own], before = compensator[:-1], float(compensator[-1])
    return points, before
