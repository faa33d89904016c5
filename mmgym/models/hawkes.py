r"""Hawkes processes with exponential kernels: exact simulation, conditional moments, branching.

Process :math:`k` of :math:`K` has the intensity (events per unit of time; left limits are meant)

.. math::
    dy_k = \rho_k (\mu_k - y_k)\,dt + \sum_j \zeta_{kj}\,dN_j, \qquad
    y_k(t) = \mu_k + x_k(0) e^{-\rho_k t} + \sum_j \sum_{t_i^j < t} \zeta_{kj} e^{-\rho_k (t - t_i^j)},

with :math:`\mu` = ``base_rate``, :math:`\zeta` = ``excitation`` and :math:`\rho` = ``decay``, all of them per unit of
time (the markets use minutes). What exceeds the base rate, :math:`x = y - \mu \ge 0`, is called the ``excess``. The
processes of von Luckner, Cartea, Jaimungal & Kiesel (2017), eqs. (3)-(4), excite themselves alone: :math:`\zeta` is
diagonal, and every function that takes one number for each parameter is about such a process.

*Branching.* An event brings on :math:`n = \zeta / \rho` further ones directly, the branching ratio (for several
processes the spectral radius of :math:`\zeta_{kj} / \rho_k`). Below 1 there is a stationary rate
:math:`\bar y = \mu / (1 - n)`; from 1 on the expected intensity grows without bound, which a finite horizon alone keeps
finite.

*Exact simulation.* Between events the intensity is :math:`\mu + x e^{-\rho s}`: two independent clocks, a Poisson one
of rate :math:`\mu` and one that fires with the total probability :math:`1 - e^{-x/\rho}`, at
:math:`s = -\log(1 - \rho E / x) / \rho` for a unit exponential :math:`E < x / \rho`. The earliest of all clocks is the
next event. Memoryless clocks may be drawn afresh at any time, so nothing is thinned and no time step is taken.

*Moments of one process* given the intensity :math:`y` now, :math:`\tau` later, with :math:`a = \rho - \zeta` of any
sign and :math:`\phi_1 = (1 - e^{-a\tau})/a`, :math:`\phi_2 = (\tau - \phi_1)/a`, :math:`\phi_3 = (\tau^2/2 - \phi_2)/a`
(limits :math:`\tau, \tau^2/2, \tau^3/6` at :math:`a = 0`):

.. math::
    E\,y_\tau &= y e^{-a\tau} + \rho\mu\phi_1 \qquad \text{(eqs. (5)-(6) of the paper)} \\
    I(\tau; y) &= E \int_0^\tau y_u\,du = E N_\tau = y\phi_1 + \rho\mu\phi_2 \\
    J(\tau; y) &= E \int_0^\tau (\tau - u)\,y_u\,du = y\phi_2 + \rho\mu\phi_3 \\
    V' &= -2aV + \zeta^2 m, \quad C' = -aC + V + \zeta m, \quad W' = 2C + m

for :math:`m = E y`, :math:`V = \mathrm{var}\,y`, :math:`C = \mathrm{cov}(y, N)` and :math:`W = \mathrm{var}\,N`.

References
----------
von Luckner, N., Cartea, Á., Jaimungal, S. and Kiesel, R. (2017). Optimal market maker pricing in the German intraday
power market. Working paper.

Dassios, A. and Zhao, H. (2013). Exact simulation of Hawkes process with exponentially decaying intensity. *Electronic
Communications in Probability* 18(62) (the two clocks).

Da Fonseca, J. and Zaatour, R. (2014). Hawkes process: fast calibration, application to trade clustering and diffusive
limit. *Journal of Futures Markets* 34(6) (moments).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numba import njit
from numpy.typing import ArrayLike, NDArray

from mmgym.compiling import KERNEL
from mmgym.market import scalar_kernel
from mmgym.parameters import Choice
from mmgym.random_streams import exponential, start_stream, uniform
from mmgym.vector_exp import fast_exp

Array = NDArray[np.float64]

SERIES_BELOW = 1.0  # |a tau| below which the moments come from their power series: no division by a
SERIES_TERMS = 40  # enough for |2 a tau| <= 2 to rounding


# Simulation inside kernels. Nothing is allocated; a stream is the pair (s0, s1) of mmgym.random_streams.


@scalar_kernel
def excess_wait(excess, decay, s0, s1):
    """Wait until an intensity ``excess * exp(-decay * s)`` fires: (wait, s0, s1), infinite if it never does."""
    clock, s0, s1 = exponential(s0, s1)
    share = clock * decay
    return (-math.log1p(-share / excess) / decay if share < excess else math.inf), s0, s1


@scalar_kernel
def next_event(base_rate, excess, decay, left, s0, s1):
    """Wait for the next event of several processes: (wait, process, s0, s1).

    Parameters
    ----------
    base_rate, excess, decay : arrays, shape (K,)
        mu, the present y - mu >= 0, and rho.
    left : float
        Time watched. If nothing happens in it, the wait is ``left`` and the process -1.
    """
    total = 0.0
    for k in range(len(base_rate)):
        total += base_rate[k]
    wait, process = left, -1
    clock, s0, s1 = exponential(s0, s1)
    if clock < total * wait:
        wait = clock / total
        mark, s0, s1 = uniform(s0, s1)
        mark *= total
        process = 0
        while process < len(base_rate) - 1 and mark >= base_rate[process]:
            mark -= base_rate[process]
            process += 1
    for k in range(len(base_rate)):
        if excess[k] > 0.0:
            burst, s0, s1 = excess_wait(excess[k], decay[k], s0, s1)
            if burst < wait:
                wait, process = burst, k
    return wait, process, s0, s1


@scalar_kernel
def relax(excess, decay, elapsed):
    """Let the excess of each process, shape (K,), decay over a time without events."""
    for k in range(len(excess)):
        excess[k] *= fast_exp(-decay[k] * elapsed)


# Simulation of whole windows, for tapes and tests


class Events(NamedTuple):
    """Events of several windows, one window after the other.

    Attributes
    ----------
    times : array, shape (n,)
        Time of each event since the start of its window.
    processes : array of int, shape (n,)
        The process that fired.
    offsets : array of int, shape (windows + 1,)
        Window ``w`` holds the events ``offsets[w]`` to ``offsets[w + 1] - 1``.
    rates : array, shape (windows, K)
        Intensities at the end of each window.
    """

    times: Array
    processes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rates: Array

    def split(self, process: int | None = None) -> list[Array]:
        """Times of each window, of one process or of all: a list of arrays."""
        windows = [slice(start, stop) for start, stop in zip(self.offsets, self.offsets[1:], strict=False)]
        if process is None:
            return [self.times[window] for window in windows]
        return [self.times[window][self.processes[window] == process] for window in windows]


@njit(**KERNEL)
def _simulate_windows(base_rate, excitation, decay, initial_excess, durations, seeds, max_events):
    """Events of every window, each from a stream of its own; fails by an offset of -1."""
    number, processes = durations.size, base_rate.size
    times = np.empty(1024)
    marks = np.empty(1024, dtype=np.int64)
    offsets = np.zeros(number + 1, dtype=np.int64)
    rates = np.empty((number, processes))
    excess = np.empty(processes)
    count = 0
    for window in range(number):
        s0, s1 = start_stream(seeds[window])
        excess[:] = initial_excess
        now = 0.0
        while True:
            wait, process, s0, s1 = next_event(base_rate, excess, decay, durations[window] - now, s0, s1)
            relax(excess, decay, wait)
            if process < 0:
                break
            now += wait
            if count == max_events:
                offsets[-1] = -1
                return times[:count], marks[:count], offsets, rates
            if count == times.size:
                more_times, more_marks = np.empty(2 * count), np.empty(2 * count, dtype=np.int64)
                more_times[:count], more_marks[:count] = times, marks
                times, marks = more_times, more_marks
            times[count], marks[count] = now, process
            count += 1
            for k in range(processes):
                excess[k] += excitation[k, process]
        offsets[window + 1] = count
        rates[window] = base_rate + excess
    return times[:count].copy(), marks[:count].copy(), offsets, rates


def simulate(
    base_rate: ArrayLike,
    excitation: ArrayLike,
    decay: ArrayLike,
    duration: ArrayLike,
    *,
    seed: int,
    windows: int = 1,
    initial_rate: ArrayLike | None = None,
    allow_explosive: bool = False,
    max_events: int = 100_000_000,
) -> Events:
    """Simulate windows exactly.

    Parameters
    ----------
    base_rate, decay : array_like, shape () or (K,)
        mu and rho, per unit of time.
    excitation : array_like, shape (), (K,) or (K, K)
        zeta: a number or a vector for processes that excite themselves alone; in a matrix, entry ``[k, j]`` is the
        jump of the intensity of process ``k`` at an event of process ``j``.
    duration : array_like, shape () or (windows,)
        Length of the windows.
    seed : int
        Window ``w`` plays the stream of the seed ``seed + w``, whatever the other windows are.
    windows : int
        Number of windows; with several durations, their number.
    initial_rate : array_like, shape () or (K,), optional
        Intensities at the start of every window, the base rates or more; by default the base rates (no history).
    allow_explosive : bool
        Whether a branching ratio of 1 or more is accepted.
    max_events : int
        Refuse to store more.

    Returns
    -------
    Events

    Raises
    ------
    ValueError
        If an argument is out of range.
    RuntimeError
        If there are more than `max_events` events.
    """
    mu, zeta, rho = parameters(base_rate, excitation, decay, allow_explosive=allow_explosive)
    lengths = np.asarray(duration, dtype=float)
    lengths = np.full(windows, lengths) if lengths.ndim == 0 else lengths
    if lengths.ndim != 1 or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"duration = {duration!r} is not allowed: it must be positive and finite, one for each window")
    start = mu if initial_rate is None else np.broadcast_to(np.asarray(initial_rate, dtype=float), mu.shape)
    if not (np.isfinite(start) & (start >= mu)).all():
        raise ValueError(f"initial_rate = {initial_rate!r} is not allowed: it must be finite and >= base_rate")
    seeds = np.uint64(seed % 2**64) + np.arange(lengths.size, dtype=np.uint64)
    events = Events(*_simulate_windows(mu, zeta, rho, start - mu, lengths, seeds, max_events))
    if events.offsets[-1] < 0:
        raise RuntimeError(
            f"more than max_events = {max_events} events; the branching ratio is {branching_ratio(zeta, rho):.4g}"
        )
    return events


# Parameters and branching


def branching_ratio(excitation: ArrayLike, decay: ArrayLike) -> float:
    """Expected number of events that one event brings on directly: zeta / rho.

    Parameters
    ----------
    excitation : array_like, shape (), (K,) or (K, K)
        zeta; see `simulate`.
    decay : array_like, shape () or (K,)
        rho.

    Returns
    -------
    float
        The spectral radius of ``excitation[k, j] / decay[k]``; a stationary rate exists where it is below 1.
    """
    rho = np.atleast_1d(np.asarray(decay, dtype=float))
    ratios = _matrix(np.asarray(excitation, dtype=float), rho.size) / rho[:, None]
    return float(np.abs(np.linalg.eigvals(ratios)).max())


def parameters(
    base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike, *, allow_explosive: bool = False
) -> tuple[Array, Array, Array]:
    """Check the parameters of processes, and bring them to their full shapes.

    Parameters
    ----------
    base_rate, excitation, decay : array_like
        See `simulate`.
    allow_explosive : bool
        Whether a branching ratio of 1 or more is accepted: on a finite horizon all is well defined.

    Returns
    -------
    tuple of arrays, shapes (K,), (K, K), (K,)

    Raises
    ------
    ValueError
        If shapes do not fit, a rate is negative, a decay is not positive, or the branching ratio is 1 or more.
    """
    mu, zeta, rho = (np.asarray(values, dtype=float) for values in (base_rate, excitation, decay))
    size = max(values.shape[0] if values.ndim else 1 for values in (mu, zeta, rho))
    fits = all(values.shape in ((), (size,)) for values in (mu, rho)) and zeta.shape in ((), (size,), (size, size))
    if not fits or size == 0:
        raise ValueError(
            f"base_rate, excitation and decay of shapes {mu.shape}, {zeta.shape} and {rho.shape} do not fit: they must "
            "be numbers or vectors of one length K, and excitation may be a (K, K) matrix"
        )
    mu, rho = (np.array(np.broadcast_to(values, (size,))) for values in (mu, rho))
    zeta = _matrix(zeta, size)
    for name, values, allowed, rule in (
        ("base_rate", mu, mu >= 0, ">= 0"),
        ("excitation", zeta, zeta >= 0, ">= 0"),
        ("decay", rho, rho > 0, "> 0"),
    ):
        if not (np.isfinite(values) & allowed).all():
            raise ValueError(f"{name} = {values.tolist()!r} is not allowed: it must be finite and {rule}")
    ratio = branching_ratio(zeta, rho)
    if ratio >= 1.0 and not allow_explosive:
        raise ValueError(explosive(zeta, rho))
    return mu, zeta, rho


def most_excess(initial_rate: float, excitation: float) -> float:
    """An excess intensity that no state has: that of a million orders at once above a million a minute."""
    return initial_rate + 1e6 * (1.0 + excitation)


ALLOW_EXPLOSIVE = Choice(
    False,
    text="whether excitation >= decay is accepted: there is then no stationary rate, and expected intensities grow "
    "without bound as the horizon does; on a finite horizon all is well defined",
)


def explosive(excitation: ArrayLike, decay: ArrayLike) -> str:
    """What excitation >= decay means, for error messages."""
    shown = [np.squeeze(np.asarray(values, dtype=float)).tolist() for values in (excitation, decay)]
    return (
        f"excitation = {shown[0]} is not allowed with decay = {shown[1]}: each event brings on "
        f"{branching_ratio(excitation, decay):.4g} >= 1 further events (the branching ratio, excitation / decay), so "
        "there is no stationary rate and the expected intensity grows without bound; only a finite horizon keeps it "
        "finite, and it must be asked for with allow_explosive=True"
    )


def stationary_rate(base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike) -> Array:
    """Mean intensities in the long run, ``(1 - n)^-1 mu``, shape (K,).

    Raises
    ------
    ValueError
        As `parameters`: the branching ratio must be below 1.
    """
    mu, zeta, rho = parameters(base_rate, excitation, decay)
    return np.asarray(np.linalg.solve(np.eye(mu.size) - zeta / rho[:, None], mu), dtype=np.float64)


# Moments


class Moments(NamedTuple):
    """Moments of one process over a horizon; each is an array of the shape of the broadcast arguments."""

    mean_rate: Array  # E y, 1 / time
    integral: Array  # I = E N, events
    weighted_integral: Array  # J, events * time
    rate_variance: Array  # var y, 1 / time^2
    rate_count_covariance: Array  # cov(y, N), events / time
    count_variance: Array  # var N, events^2


def integrals(damping: ArrayLike, horizon: ArrayLike) -> tuple[Array, Array, Array]:
    """The functions phi_1, phi_2, phi_3 of ``a`` (damping) and ``tau`` (horizon), to rounding for every sign of ``a``.

    Parameters
    ----------
    damping : array_like
        a = rho - zeta, 1 / time, of any sign, zero included.
    horizon : array_like
        tau >= 0, time. The two broadcast.

    Returns
    -------
    tuple of arrays
        ``(1 - exp(-a tau)) / a``, ``(tau - phi_1) / a`` and ``(tau^2 / 2 - phi_2) / a``.
    """
    a, tau = np.broadcast_arrays(np.asarray(damping, dtype=float), np.asarray(horizon, dtype=float))
    z = a * tau
    small = np.abs(z) < SERIES_BELOW
    # phi_3 = tau^3 (1/3! - z/4! + z^2/5! - ...), and upwards from there: no division by a
    near, term = np.zeros(z.shape), np.full(z.shape, 1.0 / 6.0)
    for k in range(SERIES_TERMS):
        near += term
        term = term * np.where(small, -z, 0.0) / (k + 4)
    far = np.where(small, 1.0, a)
    phi_1 = -np.expm1(-np.where(small, 0.0, z)) / far
    phi_2 = (tau - phi_1) / far
    phi_3 = np.where(small, near * tau**3, (0.5 * tau**2 - phi_2) / far)
    phi_2 = np.where(small, 0.5 * tau**2 - a * phi_3, phi_2)
    phi_1 = np.where(small, tau - a * phi_2, phi_1)
    return phi_1, phi_2, phi_3


def mean_rate(
    base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike, rate: ArrayLike, horizon: ArrayLike
) -> Array:
    """E y after a time, given the intensity now (von Luckner et al., eqs. (5)-(6)), 1 / time.

    Parameters
    ----------
    base_rate, excitation, decay : array_like
        mu, zeta and rho of one process, or of several that do not excite one another; 1 / time.
    rate : array_like
        y, the intensity now; 1 / time.
    horizon : array_like
        tau >= 0, time. All five broadcast; any ``excitation`` is allowed.
    """
    mu, zeta, rho, y, tau = _broadcast(base_rate, excitation, decay, rate, horizon)
    return y * np.exp((zeta - rho) * tau) + rho * mu * integrals(rho - zeta, tau)[0]


def expected_count(
    base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike, rate: ArrayLike, horizon: ArrayLike
) -> Array:
    """I(tau; y): expected number of events, also the expected integral of the intensity. Arguments as `mean_rate`."""
    mu, zeta, rho, y, tau = _broadcast(base_rate, excitation, decay, rate, horizon)
    phi_1, phi_2, _ = integrals(rho - zeta, tau)
    return y * phi_1 + rho * mu * phi_2


def weighted_count(
    base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike, rate: ArrayLike, horizon: ArrayLike
) -> Array:
    """J(tau; y): expected events, each weighted by the time left after it (events * time). Arguments as `mean_rate`."""
    mu, zeta, rho, y, tau = _broadcast(base_rate, excitation, decay, rate, horizon)
    _, phi_2, phi_3 = integrals(rho - zeta, tau)
    return y * phi_2 + rho * mu * phi_3


def through_pieces(
    base_rates: Array, excitation: float, decay: float, rate: ArrayLike, durations: Sequence[ArrayLike]
) -> tuple[Array, Array, Array]:
    """E y, I and J of one process after pieces of time with base rates of their own.

    Parameters
    ----------
    base_rates : array, shape (N,)
        mu in each piece; between two of them the intensity jumps by what the base rate does.
    excitation, decay : float
        zeta and rho; any ``excitation`` is allowed.
    rate : array_like
        y now, with the base rate of the first piece.
    durations : sequence of N array_like
        Length of each piece, 0 or more. They broadcast with ``rate``.

    Returns
    -------
    tuple of arrays
        The intensity (with the base rate of the last piece), the expected count and the weighted one: see `mean_rate`,
        `expected_count` and `weighted_count`.
    """
    lengths = np.broadcast_arrays(np.asarray(rate, dtype=float), *(np.asarray(part, dtype=float) for part in durations))
    y, left = lengths[0], sum(lengths[1:])
    count = weighted = np.zeros(y.shape)
    for k, (mu, length) in enumerate(zip(base_rates, lengths[1:], strict=True)):
        phi_1, phi_2, phi_3 = integrals(decay - excitation, length)
        y, left = y + (mu - base_rates[max(k - 1, 0)]), left - length
        own = y * phi_1 + decay * mu * phi_2
        count, weighted = count + own, weighted + y * phi_2 + decay * mu * phi_3 + left * own
        y = y * np.exp((excitation - decay) * length) + decay * mu * phi_1
    return y, count, weighted


def moments(
    base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike, rate: ArrayLike, horizon: ArrayLike
) -> Moments:
    """First and second moments of intensity and count over a horizon. Arguments as `mean_rate`.

    Returns
    -------
    Moments
        Of the broadcast shape.
    """
    mu, zeta, rho, y, tau = _broadcast(base_rate, excitation, decay, rate, horizon)
    a = rho - zeta
    small = np.abs(a * tau) < SERIES_BELOW
    near = _moment_series(mu * rho, zeta, np.where(small, a, 0.0), y, np.where(small, tau, 0.0))
    far = _moment_formula(mu * rho, zeta, np.where(small, 1.0, a), y, tau)
    variance, covariance, count_variance = (np.where(small, *pair) for pair in zip(near, far, strict=True))
    phi_1, phi_2, phi_3 = integrals(a, tau)
    return Moments(
        mean_rate=y * np.exp(-a * tau) + rho * mu * phi_1,
        integral=y * phi_1 + rho * mu * phi_2,
        weighted_integral=y * phi_2 + rho * mu * phi_3,
        rate_variance=variance,
        rate_count_covariance=covariance,
        count_variance=count_variance,
    )


def mutual_counts(
    base_rate: ArrayLike, excitation: ArrayLike, decay: ArrayLike, rate: ArrayLike, horizon: float
) -> tuple[Array, Array]:
    """Expected intensities after a time and expected counts, for processes that excite one another.

    Parameters
    ----------
    base_rate, excitation, decay : array_like
        As in `simulate`; explosive ones are allowed.
    rate : array_like, shape () or (K,)
        Intensities now.
    horizon : float
        tau >= 0.

    Returns
    -------
    tuple of arrays, shape (K,)
        E y and E N, from the exponential of the matrix of ``(y, N)' = (rho (mu - y) + zeta y, y)``.
    """
    mu, zeta, rho = parameters(base_rate, excitation, decay, allow_explosive=True)
    size = mu.size
    generator = np.zeros((2 * size + 1, 2 * size + 1))
    generator[:size, :size] = zeta - np.diag(rho)
    generator[:size, -1] = rho * mu
    generator[size:-1, :size] = np.eye(size)
    start = np.concatenate([np.broadcast_to(np.asarray(rate, dtype=float), (size,)), np.zeros(size), [1.0]])
    end = scipy.linalg.expm(generator * horizon) @ start
    return end[:size], end[size:-1]


def _matrix(excitation: Array, size: int) -> Array:
    """The (K, K) matrix of a number, a vector (its diagonal) or a matrix."""
    if excitation.ndim == 2:
        return np.array(excitation, order="C")
    return np.asarray(np.diag(np.broadcast_to(excitation, (size,))), dtype=np.float64)


def _broadcast(*values: ArrayLike) -> list[Array]:
    return [np.asarray(value) for value in np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in values))]


def _moment_series(pull: Array, zeta: Array, a: Array, y: Array, tau: Array) -> tuple[Array, Array, Array]:
    """var y, cov(y, N), var N for small ``a tau``: the Taylor series of their differential equations.

    Each variable stands for its coefficient of ``tau^k``, times ``tau^k``; ``pull`` is rho mu.
    """
    mean, zero = y.copy(), np.zeros(y.shape)
    variance, covariance, counts = zero, zero, zero
    total = (zero, zero, zero)
    for k in range(SERIES_TERMS):
        step = tau / (k + 1)
        mean, variance, covariance, counts = (
            step * ((pull if k == 0 else zero) - a * mean),
            step * (-2.0 * a * variance + zeta**2 * mean),
            step * (-a * covariance + variance + zeta * mean),
            step * (2.0 * covariance + mean),
        )
        total = (total[0] + variance, total[1] + covariance, total[2] + counts)
    return total


def _moment_formula(pull: Array, zeta: Array, a: Array, y: Array, tau: Array) -> tuple[Array, Array, Array]:
    """var y, cov(y, N), var N from their closed forms in exp(-a tau), exp(-2 a tau) and tau; ``a`` is not zero."""
    stationary = pull / a
    distance = y - stationary
    decayed = np.exp(-a * tau)
    phi = (1.0 - decayed) / a
    # coefficients of 1, exp(-a s) and exp(-2 a s) in V + zeta m
    constant = zeta**2 * stationary / (2.0 * a) + zeta * stationary
    single = zeta**2 * distance / a + zeta * distance
    double = -(zeta**2) * (0.5 * stationary + distance) / a
    variance = zeta**2 * (y * decayed * phi + 0.5 * pull * phi**2)
    covariance = constant * phi + single * tau * decayed + double * decayed * phi
    count = stationary * tau + distance * phi
    squares = constant * (tau - phi) / a + single * (phi - tau * decayed) / a + 0.5 * double * phi**2
    return variance, covariance, count + 2.0 * squares
