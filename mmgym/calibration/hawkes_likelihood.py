r"""Likelihood of Hawkes processes with exponential kernels, with gradient and Hessian, in one pass over the events.

A process of intensity :math:`\lambda(t) = \mu + x_0 e^{-\rho t} + \zeta \sum_{t_i < t} e^{-\rho (t - t_i)}` (the
notation of `mmgym.models.hawkes`) is watched over windows: window :math:`w` has length :math:`T` and events
:math:`t_1 < t_2 < \dots` in it, and windows are independent. The log-likelihood of a window is

.. math::
    \ell = \sum_i \log(\mu + x_0 e^{-\rho t_i} + \zeta R_i) - \mu T - \frac{x_0}{\rho}(1 - e^{-\rho T})
           - \frac{\zeta}{\rho} (N - R_T),

with the recursion :math:`R_1 = 0`, :math:`R_i = e^{-\rho (t_i - t_{i-1})} (1 + R_{i-1})`, whose value at the end of the
window is :math:`R_T = \sum_i e^{-\rho (T - t_i)}`: one exponential for each event gives value, gradient and Hessian.
This is eq. (30) of von Luckner, Cartea, Jaimungal & Kiesel (2017) without its slips: the integral runs to the end of
the window and not to its last event, and the constant of a likelihood relative to a unit Poisson process is left out.
A window without events contributes its compensator :math:`-\int_0^T \lambda`, which is evidence too.

By default a window starts without history, :math:`\lambda(0) = \mu`; a known intensity there is ``initial_rate``.

References
----------
Ozaki, T. (1979). Maximum likelihood estimation of Hawkes' self-exciting point processes. *Annals of the Institute of
Statistical Mathematics* 31 (the recursion).

von Luckner, N., Cartea, Á., Jaimungal, S. and Kiesel, R. (2017). Optimal market maker pricing in the German intraday
power market. Working paper, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from mmgym.compiling import KERNEL
from mmgym.models.hawkes import parameters
from mmgym.vector_exp import fast_exp

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LARGEST_FACTOR = 1e100  # intensities are multiplied up to here before a logarithm is taken


# Windows


@dataclass(frozen=True)
class Windows:
    """Events of one process in several windows, laid end to end.

    Attributes
    ----------
    times : array, shape (n,)
        Times since the start of their window, strictly rising within it.
    offsets : array of int, shape (windows + 1,)
        Window ``w`` holds ``times[offsets[w]:offsets[w + 1]]``.
    durations : array, shape (windows,)
        Lengths of the windows.
    """

    times: Array
    offsets: Index
    durations: Array

    @classmethod
    def gather(cls, windows: Sequence[ArrayLike], duration: ArrayLike) -> Windows:
        """Check windows and lay them end to end.

        Parameters
        ----------
        windows : sequence of array_like
            Event times of each window; a window may be empty.
        duration : array_like, shape () or (windows,)
            Lengths of the windows.

        Raises
        ------
        ValueError
            If there is no window, a flat list of times is given, or a time is not finite, outside its window, or not
            above the one before it; the message names the window and the event.
        """
        if any(np.ndim(window) == 0 for window in windows):
            raise ValueError(
                "windows is a flat list of times; it must hold one list of times for each window: for a single window "
                "pass [times]"
            )
        arrays = [np.asarray(window, dtype=float) for window in windows]
        if not arrays:
            raise ValueError("no windows: at least one is needed")
        durations = np.array(np.broadcast_to(np.asarray(duration, dtype=float), (len(arrays),)))
        for number, (times, length) in enumerate(zip(arrays, durations, strict=True)):
            if not (math.isfinite(length) and length > 0):
                raise ValueError(f"window {number}: its duration must be positive and finite, got {length}")
            if times.ndim != 1:
                raise ValueError(f"window {number}: the times must have one dimension, got shape {times.shape}")
            outside = ~((times >= 0) & (times <= length))
            wrong = outside.copy()
            wrong[1:] |= ~(np.diff(times) > 0)
            if wrong.any():
                event = int(wrong.argmax())
                time, before = float(times[event]), float(times[event - 1])
                rule = (
                    f"it must lie in [0, {length:g}]"
                    if outside[event]
                    else f"it must be above the one before, {before!r}: events are sorted, and no two of one process "
                    "happen at once (take those of one time stamp together)"
                )
                raise ValueError(f"window {number}, event {event}: the time {time!r} is not allowed; {rule}")
        offsets = np.concatenate([[0], np.cumsum([times.size for times in arrays])]).astype(np.int64)
        return cls(np.concatenate(arrays), offsets, durations)

    @property
    def count(self) -> int:
        """Number of events."""
        return int(self.times.size)

    @property
    def exposure(self) -> float:
        """Total length of the windows."""
        return float(self.durations.sum())

    def parts(self) -> list[Array]:
        """Event times of each window."""
        return np.split(self.times, self.offsets[1:-1])

    def head(self, count: int) -> Windows:
        """The first `count` events, the last window cut off after the last of them."""
        last = int(np.searchsorted(self.offsets, count))  # windows that are kept
        durations = self.durations[:last].copy()
        if self.offsets[last] > count:
            durations[-1] = self.times[count - 1]
        return Windows(self.times[:count], np.minimum(self.offsets[: last + 1], count), durations)

    def scaled(self, unit: float) -> Windows:
        """The same windows in another unit of time."""
        return Windows(self.times / unit, self.offsets, self.durations / unit)


# Kernels


@njit(**KERNEL)
def _likelihood(
    times: Array,
    offsets: Index,
    durations: Array,
    initial_rates: Array,
    base_rate: float,
    excitation: float,
    decay: float,
    gradient: Array,
    hessian: Array,
    second: bool,
) -> float:
    """Log-likelihood, its gradient and, if asked for, its Hessian in (base_rate, excitation, decay).

    A NaN among `initial_rates` is a window without history.
    """
    mu, zeta, rho = base_rate, excitation, decay
    logs = 0.0
    factor = 1.0
    integral = 0.0
    g_mu = g_zeta = g_rho = 0.0
    h_mm = h_mz = h_mr = h_zz = h_zr = h_rr = 0.0
    for window in range(durations.size):
        known = 1.0 if initial_rates[window] == initial_rates[window] else 0.0  # is the initial rate given?
        start = initial_rates[window] - mu if known == 1.0 else 0.0  # x_0
        first, last = offsets[window], offsets[window + 1]
        left = 1.0  # exp(-rho t)
        r = r1 = r2 = 0.0  # R and its derivatives in rho
        before = 0.0
        for i in range(first, last):
            t = times[i]
            gap = t - before
            before = t
            shrink = fast_exp(-rho * gap)
            left *= shrink
            if second:
                r2 = shrink * (r2 - gap * (2.0 * r1 - gap * r))
            r1 = shrink * (r1 - gap * r)
            r = shrink * r
            rate = mu + start * left + zeta * r
            factor *= rate
            if not 1.0 / LARGEST_FACTOR < factor < LARGEST_FACTOR:
                logs += math.log(factor)
                factor = 1.0
            inverse = 1.0 / rate
            d_mu = (1.0 - known * left) * inverse
            d_zeta = r * inverse
            d_rho = (zeta * r1 - start * t * left) * inverse
            g_mu += d_mu
            g_zeta += d_zeta
            g_rho += d_rho
            if second:
                h_mm -= d_mu * d_mu
                h_mz -= d_mu * d_zeta
                h_mr += known * t * left * inverse - d_mu * d_rho
                h_zz -= d_zeta * d_zeta
                h_zr += r1 * inverse - d_zeta * d_rho
                h_rr += (zeta * r2 + start * t * t * left) * inverse - d_rho * d_rho
            r += 1.0
        # the compensator mu T + x_0 F + zeta (N - R_T) / rho with F = (1 - exp(-rho T)) / rho
        end = durations[window]
        gap = end - before
        shrink = fast_exp(-rho * gap)
        left *= shrink
        r2 = shrink * (r2 - gap * (2.0 * r1 - gap * r))
        r1 = shrink * (r1 - gap * r)
        r = shrink * r
        f = (1.0 - left) / rho
        f1 = (end * left - f) / rho
        f2 = (-end * end * left - 2.0 * f1) / rho
        g = (last - first - r) / rho
        g1 = (-r1 - g) / rho
        g2 = (-r2 - 2.0 * g1) / rho
        integral += mu * end + start * f + zeta * g
        g_mu -= end - known * f
        g_zeta -= g
        g_rho -= start * f1 + zeta * g1
        h_mr += known * f1
        h_zr -= g1
        h_rr -= start * f2 + zeta * g2
    gradient[0], gradient[1], gradient[2] = g_mu, g_zeta, g_rho
    if second:
        hessian[0, 0], hessian[0, 1], hessian[0, 2] = h_mm, h_mz, h_mr
        hessian[1, 0], hessian[1, 1], hessian[1, 2] = h_mz, h_zz, h_zr
        hessian[2, 0], hessian[2, 1], hessian[2, 2] = h_mr, h_zr, h_rr
    return logs + math.log(factor) - integral


@njit(**KERNEL)
def _mutual_likelihood(
    times: Array,
    marks: Index,
    offsets: Index,
    durations: Array,
    base_rate: Array,
    excitation: Array,
    decay: Array,
    d_base_rate: Array,
    d_excitation: Array,
    d_decay: Array,
) -> float:
    """Log-likelihood of processes that excite one another, and its gradient."""
    size = base_rate.size
    value = 0.0
    r, r1 = np.zeros((size, size)), np.zeros((size, size))  # [k, j]: sum of exp(-rho_k (t - t_i)) over events of j
    counts = np.zeros(size)
    d_base_rate[:], d_excitation[:], d_decay[:] = 0.0, 0.0, 0.0
    for window in range(durations.size):
        r[:], r1[:], counts[:] = 0.0, 0.0, 0.0
        before = 0.0
        for i in range(offsets[window], offsets[window + 1] + 1):
            over = i == offsets[window + 1]
            now = durations[window] if over else times[i]
            gap = now - before
            before = now
            for k in range(size):
                shrink = fast_exp(-decay[k] * gap)
                for j in range(size):
                    r1[k, j] = shrink * (r1[k, j] - gap * r[k, j])
                    r[k, j] *= shrink
            if over:
                break
            m = marks[i]
            rate, slope = base_rate[m], 0.0
            for j in range(size):
                rate += excitation[m, j] * r[m, j]
                slope += excitation[m, j] * r1[m, j]
            value += math.log(rate)
            d_base_rate[m] += 1.0 / rate
            d_decay[m] += slope / rate
            for j in range(size):
                d_excitation[m, j] += r[m, j] / rate
            counts[m] += 1.0
            for k in range(size):
                r[k, m] += 1.0
        for k in range(size):
            value -= base_rate[k] * durations[window]
            d_base_rate[k] -= durations[window]
            for j in range(size):
                g = (counts[j] - r[k, j]) / decay[k]
                value -= excitation[k, j] * g
                d_excitation[k, j] -= g
                d_decay[k] += excitation[k, j] * (r1[k, j] + g) / decay[k]
    return value


@njit(**KERNEL)
def compensators(
    times: Array,
    offsets: Index,
    durations: Array,
    initial_rates: Array,
    base_rate: float,
    excitation: float,
    decay: float,
    points: Array,
) -> float:
    """Residual time of every event, the windows' laid end to end, and of the whole."""
    total = 0.0
    for window in range(durations.size):
        known = initial_rates[window] == initial_rates[window]
        excess = initial_rates[window] - base_rate if known else 0.0
        before = 0.0
        for i in range(offsets[window], offsets[window + 1]):
            gap = times[i] - before
            before = times[i]
            lost = -excess * math.expm1(-decay * gap)
            total += base_rate * gap + lost / decay
            excess += excitation - lost
            points[i] = total
        gap = durations[window] - before
        total += base_rate * gap - excess * math.expm1(-decay * gap) / decay
    return total


# Likelihood


def log_likelihood(
    windows: Sequence[ArrayLike],
    duration: ArrayLike,
    base_rate: float,
    excitation: float,
    decay: float,
    *,
    initial_rate: ArrayLike | None = None,
) -> tuple[float, Array]:
    """Log-likelihood of one process over independent windows, and its gradient, in one pass over the events.

    Parameters
    ----------
    windows : sequence of array_like
        Event times of each window since its start, strictly rising.
    duration : array_like, shape () or (windows,)
        Lengths of the windows.
    base_rate, excitation, decay : float
        mu, zeta and rho, per unit of time; any branching ratio.
    initial_rate : array_like, shape () or (windows,), optional
        Intensity at the start of each window, kept fixed in the derivatives; by default the base rate (no history).

    Returns
    -------
    tuple of float and array, shape (3,)
        Value and derivatives in (base_rate, excitation, decay).

    Raises
    ------
    ValueError
        If a parameter is out of range or a window is not in order (see `Windows.gather`).
    """
    data = Windows.gather(windows, duration)
    mu, zeta, rho = three_parameters(base_rate, excitation, decay)
    value, gradient, _ = evaluate(data, start_rates(initial_rate, data), mu, zeta, rho)
    return value, gradient


def mutual_log_likelihood(
    windows: Sequence[ArrayLike],
    processes: Sequence[ArrayLike],
    duration: ArrayLike,
    base_rate: ArrayLike,
    excitation: ArrayLike,
    decay: ArrayLike,
) -> tuple[float, Array, Array, Array]:
    """Log-likelihood of processes that excite one another, and its gradient.

    Parameters
    ----------
    windows, processes : sequences of array_like
        Event times of each window, of all processes together and strictly rising, and the number of the process that
        each belongs to.
    duration : array_like, shape () or (windows,)
        Lengths of the windows, which start without history.
    base_rate, excitation, decay : array_like
        As in `mmgym.models.hawkes.simulate`; any branching ratio.

    Returns
    -------
    tuple of float and arrays, shapes (K,), (K, K), (K,)
        Value and derivatives.

    Raises
    ------
    ValueError
        If a parameter is out of range, a window is not in order, or a process has no such number.
    """
    mu, zeta, rho = parameters(base_rate, excitation, decay, allow_explosive=True)
    data = Windows.gather(windows, duration)
    marks = [np.atleast_1d(np.asarray(window)) for window in processes]
    if [window.size for window in marks] != np.diff(data.offsets).tolist():
        raise ValueError("processes must have the lengths of windows: one number for each event")
    joined = np.concatenate(marks).astype(np.int64)
    if not ((joined >= 0) & (joined < mu.size)).all():
        raise ValueError(f"processes must be numbers from 0 to {mu.size - 1}")
    slopes = np.empty(mu.size), np.empty((mu.size, mu.size)), np.empty(mu.size)
    value = _mutual_likelihood(data.times, joined, data.offsets, data.durations, mu, zeta, rho, *slopes)
    return float(value), *slopes


def three_parameters(base_rate: float, excitation: float, decay: float) -> tuple[float, float, float]:
    """The checked parameters of one process; any branching ratio."""
    mu, zeta, rho = parameters(float(base_rate), float(excitation), float(decay), allow_explosive=True)
    return float(mu[0]), float(zeta[0, 0]), float(rho[0])


def start_rates(initial_rate: ArrayLike | None, data: Windows) -> Array:
    """The intensity at the start of each window as kernels take it, NaN without history: shape (windows,)."""
    if initial_rate is None:
        return np.full(data.durations.size, np.nan)
    rates = np.array(np.broadcast_to(np.asarray(initial_rate, dtype=float), data.durations.shape))
    if not (np.isfinite(rates) & (rates > 0)).all():
        raise ValueError(f"initial_rate = {initial_rate!r} is not allowed: it must be positive and finite")
    return rates


def evaluate(
    data: Windows, initial_rates: Array, mu: float, zeta: float, rho: float, second: bool = False
) -> tuple[float, Array, Array]:
    """Log-likelihood, gradient and, if asked for, Hessian in (base_rate, excitation, decay), without checks."""
    gradient, hessian = np.empty(3), np.empty((3, 3))
    value = _likelihood(
        data.times, data.offsets, data.durations, initial_rates, mu, zeta, rho, gradient, hessian, second
    )
    return float(value), gradient, hessian
