"""Hawkes processes: numbers by hand, second methods, exact simulation, maximum likelihood, residual tests.

False alarms. Seeds are fixed, so a check either always passes or never does; the rates say how likely a change of seed
is to fail. Simulated means and variances within 4.2 standard errors: 2.7e-5 each, 1e-3 for the 38 of them. A p-value
above 1e-4, 1e-3 for the ten of them. Recovery: means of the scores within 4 standard errors (6.3e-5 each), sums of
their squares and counts of covering intervals two-sided at 2e-4 each: 1.9e-3 for the four parameters. Single estimates
within 4 standard errors: 6.3e-5 each, 8e-4 for the twelve of them.
"""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
from numba import njit
from scipy import integrate, linalg, optimize, stats

from mmgym.calibration.hawkes import (
    HawkesFit,
    Windows,
    fit_hawkes,
    fit_market_orders,
    fit_poisson,
    log_likelihood,
    mutual_log_likelihood,
    plot_residuals,
    residuals,
)
from mmgym.calibration.hawkes_likelihood import evaluate
from mmgym.models import hawkes
from mmgym.random_streams import start_stream
from mmgym.tapes import read_tape
from mmgym.tapes.level1 import market_orders

REAL_TAPE = Path(__file__).parents[2] / "shared" / "data" / "ethusdt_perpetual_20240808_level1.csv.gz"
ERRORS = 4.2  # standard errors
LATE = (0.6, 1.5, 3.0)  # base rate, excitation, decay of market orders, 1/min
REPLICATIONS = 50

# The hand case of the reference model, and a bivariate one that can be done in the head
TIMES, DURATION, HAND = [0.5, 1.0, 1.2, 3.0], 4.0, (0.5, 0.8, 1.5)
HAND_VALUE = -4.994632824899887
HAND_GRADIENT = [1.5005301335978105, -0.9348431655610775, 0.3535180283194653]
HAND_COMPENSATORS = [0.25, 0.7814045052047922, 1.0849301494438008, 3.0250611589527345]
HAND_TOTAL = 3.9976094656499566

# Parameters of the six processes of the full model, in the order K+, K-, L+, L-, M+, M-
SIX = np.array([[1.5, 1.2, 3], [1.35, 1.2, 3], [1.35, 1.2, 3], [1.5, 1.2, 3], [0.6, 1.5, 3], [0.6, 1.5, 3]])
MUTUAL = (np.array([0.4, 0.7]), np.array([[0.9, 0.5], [1.1, 0.2]]), np.array([2.0, 3.0]))


def plain_likelihood(times, duration, base_rate, excitation, decay, initial_rate=None):
    """The definition, in O(n^2): every intensity and every integral summed over all earlier events."""
    times = np.asarray(times, dtype=float)
    excess = 0.0 if initial_rate is None else initial_rate - base_rate
    rates = []
    for i, now in enumerate(times):
        past = sum(math.exp(-decay * (now - before)) for before in times[:i])
        rates.append(base_rate + excess * math.exp(-decay * now) + excitation * past)
    integral = base_rate * duration + excess * (1 - math.exp(-decay * duration)) / decay
    integral += sum(excitation / decay * (1 - math.exp(-decay * (duration - before))) for before in times)
    return sum(math.log(rate) for rate in rates) - integral


def pooled_plain_likelihood(point, windows, durations, initial_rates):
    parts = zip(windows, durations, initial_rates, strict=True)
    return sum(plain_likelihood(times, duration, *point, initial) for times, duration, initial in parts)


def differences(function, point, step=1e-6):
    """Central differences of a function at a point, with relative steps."""
    slopes = []
    for i, value in enumerate(point):
        above, below = np.array(point, dtype=float), np.array(point, dtype=float)
        above[i] += step * value
        below[i] -= step * value
        slopes.append((np.asarray(function(above)) - np.asarray(function(below))) / (2 * step * value))
    return np.array(slopes)


def random_windows(seed):
    """Windows of several lengths, one of them empty, one with a single event."""
    random = np.random.default_rng(seed)
    durations = random.uniform(2.0, 8.0, 6)
    counts = [0, 1, 4, 9, 15, 25]
    return [np.sort(random.uniform(0, length, n)) for length, n in zip(durations, counts, strict=True)], durations


def score(sample, truth):
    """Standard errors between the mean of a sample and the truth."""
    sample = np.asarray(sample, dtype=float)
    return abs(sample.mean() - truth) / (sample.std(ddof=1) / math.sqrt(sample.size))


# The likelihood


def test_hand_likelihood():
    value, gradient = log_likelihood([TIMES], DURATION, *HAND)
    assert value == pytest.approx(HAND_VALUE, rel=1e-14)
    assert gradient == pytest.approx(HAND_GRADIENT, rel=1e-13)
    value, gradient = log_likelihood([TIMES], DURATION, *HAND, initial_rate=2.0)
    assert value == pytest.approx(-4.593694677538121, rel=1e-14)
    assert gradient == pytest.approx([-0.17067508621536387, -1.2110218821828576, 0.280518533166663], rel=1e-12)


def test_the_window_ends_after_its_last_event():
    assert log_likelihood([TIMES], 3.0, *HAND)[0] == pytest.approx(-4.022084518202665, rel=1e-14)


def test_hand_compensators():
    compensators = residuals([TIMES], DURATION, *HAND)
    assert compensators.points == pytest.approx(HAND_COMPENSATORS, rel=1e-14)
    assert compensators.total == pytest.approx(HAND_TOTAL, rel=1e-14)
    assert compensators.gaps == pytest.approx(np.diff([0.0, *HAND_COMPENSATORS]), rel=1e-13)


def test_compensators_are_integrals_of_the_intensity():
    def intensity(now):
        return (
            0.5 + (2.0 - 0.5) * math.exp(-1.5 * now) + 0.8 * sum(math.exp(-1.5 * (now - t)) for t in TIMES if t < now)
        )

    edges = [0.0, *TIMES, DURATION]
    pieces = [integrate.quad(intensity, *edge, epsabs=1e-13)[0] for edge in pairwise(edges)]
    compensators = residuals([TIMES], DURATION, *HAND, initial_rate=2.0)
    assert [*compensators.points, compensators.total] == pytest.approx(np.cumsum(pieces), rel=1e-12)


def test_hand_bivariate_likelihood():
    end = 1 + math.log(2)
    value, d_base, d_excitation, d_decay = mutual_log_likelihood(
        [[1.0, end]], [[0, 1]], end, [1, 1], [[2, 2], [2, 2]], 1.0
    )
    assert value == pytest.approx(-4.693147180559945, rel=1e-14)
    # by hand: intensities 1 and 2, R = (1/2, 0) before the second event
    assert d_base == pytest.approx([1 - end, 0.5 - end])
    assert d_excitation == pytest.approx(np.array([[-0.5, 0.0], [0.25 - 0.5, 0.0]]))
    loss = math.log(2) / 2 - 0.5  # d/d rho of (1 - exp(-rho u)) / rho at rho = 1, u = log 2
    assert d_decay == pytest.approx([-2 * loss, -2 * loss - 2 * math.log(2) / 2 / 2])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("point", [(0.5, 0.8, 1.5), (2.0, 0.1, 0.05), (0.01, 40.0, 30.0), (1.0, 3.0, 2.0)])
def test_likelihood_is_the_plain_sum_and_its_slopes(point, known):
    windows, durations = random_windows(1)
    initial = [point[0] + 0.3 * i for i in range(6)] if known else [None] * 6
    value, gradient = log_likelihood(windows, durations, *point, initial_rate=initial if known else None)
    assert value == pytest.approx(pooled_plain_likelihood(point, windows, durations, initial), rel=1e-12)
    slopes = differences(lambda x: pooled_plain_likelihood(x, windows, durations, initial), point)
    assert gradient == pytest.approx(slopes, rel=1e-6, abs=1e-7)

    data = Windows.gather(windows, durations)
    rates = np.array(initial, dtype=float)
    curvature = differences(lambda x: evaluate(data, rates, *x)[1], point)
    value_again, gradient_again, hessian = evaluate(data, rates, *point, second=True)
    assert (value_again, gradient_again.tolist()) == (value, gradient.tolist())
    assert hessian == pytest.approx(curvature, rel=1e-6, abs=1e-6 * np.abs(curvature).max())


def test_mutual_likelihood_is_the_plain_sum_and_its_slopes():
    mu, zeta, rho = MUTUAL
    events = hawkes.simulate(mu, zeta, rho, [5.0, 9.0, 7.0], seed=3)
    marks = [events.processes[a:b] for a, b in pairwise(events.offsets)]
    durations = np.array([5.0, 9.0, 7.0])

    def plain(values):
        base, jumps, decay = values[:2], values[2:6].reshape(2, 2), values[6:]
        total = 0.0
        for times, kinds, duration in zip(events.split(), marks, durations, strict=True):
            for i in range(len(times)):
                k = kinds[i]
                past = [jumps[k, kinds[j]] * math.exp(-decay[k] * (times[i] - times[j])) for j in range(i)]
                total += math.log(base[k] + sum(past))
            for k in range(2):
                total -= base[k] * duration
                for t, j in zip(times, kinds, strict=True):
                    total -= jumps[k, j] / decay[k] * (1 - math.exp(-decay[k] * (duration - t)))
        return total

    point = np.concatenate([mu, zeta.ravel(), rho])
    value, *slopes = mutual_log_likelihood(events.split(), marks, durations, mu, zeta, rho)
    assert value == pytest.approx(plain(point), rel=1e-12)
    assert np.concatenate([part.ravel() for part in slopes]) == pytest.approx(differences(plain, point), rel=1e-6)


def test_processes_that_ignore_one_another_have_the_sum_of_their_likelihoods():
    events = hawkes.simulate(*SIX.T, 20.0, seed=4, windows=3)
    marks = [events.processes[a:b] for a, b in pairwise(events.offsets)]
    joint, d_base, d_excitation, d_decay = mutual_log_likelihood(events.split(), marks, 20.0, *SIX.T)
    single = [log_likelihood(events.split(k), 20.0, *SIX[k]) for k in range(6)]
    assert joint == pytest.approx(sum(value for value, _ in single), rel=1e-12)
    gradients = np.array([gradient for _, gradient in single])
    assert np.column_stack([d_base, np.diag(d_excitation), d_decay]) == pytest.approx(gradients, rel=1e-9)


def test_many_events_lose_no_digits():
    """Products of intensities are kept in range: against logarithms added one by one, in extended precision."""
    times = hawkes.simulate(*LATE, 20_000.0, seed=5).times
    past, total = np.longdouble(0), np.longdouble(0)
    for gap in np.diff(times, prepend=0.0):
        past *= np.exp(np.longdouble(-LATE[2] * gap))
        total += np.log(LATE[0] + LATE[1] * past)
        past += 1
    past *= np.exp(np.longdouble(-LATE[2] * (20_000.0 - times[-1])))
    total -= LATE[0] * 20_000.0 + LATE[1] / LATE[2] * (times.size - past)
    assert times.size > 20_000
    assert log_likelihood([times], 20_000.0, *LATE)[0] == pytest.approx(float(total), rel=1e-12)


def test_likelihood_scales_with_the_unit_of_time():
    windows, durations = random_windows(2)
    value, gradient = log_likelihood(windows, durations, *HAND)
    for unit in (1e-6, 60.0, 1e9):
        scaled = log_likelihood([times * unit for times in windows], durations * unit, *(p / unit for p in HAND))
        count = sum(map(len, windows))
        assert scaled[0] == pytest.approx(value - count * math.log(unit), rel=1e-11)
        assert scaled[1] == pytest.approx(gradient * unit, rel=1e-9)


def test_empty_windows_contribute_their_compensator():
    alone = log_likelihood([TIMES], DURATION, *HAND)
    beside = log_likelihood([[], TIMES, []], [2.0, DURATION, 3.0], *HAND)
    assert beside[0] == pytest.approx(alone[0] - 0.5 * 5.0, rel=1e-14)
    assert beside[1] == pytest.approx(alone[1] - [5.0, 0.0, 0.0], rel=1e-13)
    assert log_likelihood([[]], 2.0, *HAND)[0] == -1.0


def test_hawkesbook_agrees():
    import hawkesbook as book

    times = hawkes.simulate(*LATE, 60.0, seed=6).times
    for events, duration, point in ((np.array(TIMES), DURATION, HAND), (times, 60.0, LATE)):
        value, gradient = log_likelihood([events], duration, *point)
        assert value == pytest.approx(book.exp_log_likelihood(events, duration, np.array(point)), rel=1e-12)
        theirs = book.deriv_exp_log_likelihood(events, duration, np.array(point))
        assert gradient == pytest.approx(np.asarray(theirs).ravel(), rel=1e-9)
        theirs = book.exp_hawkes_compensators(events, np.array(point))
        assert residuals([events], duration, *point).points == pytest.approx(theirs, rel=1e-12)


# Moments


@pytest.mark.parametrize(
    ("rate", "horizon", "expected"),
    [
        (0.6, 60.0, [1.1999999999999997, 71.6, 2136.266666666666, 0.9, 1.8, 283.6]),
        (2.1, 60.0, [1.1999999999999997, 72.6, 2195.6, 0.9, 1.8, 287.6]),
        (5.0, 1.0, [2.0478946085640333, 3.168070260957311, 1.8212864926951258, 1.8432472616180933, 3.179339933590471,
                    7.613940127211691]),
    ],
)  # fmt: skip
def test_moments_are_those_of_the_reference(rate, horizon, expected):
    assert np.array(hawkes.moments(*LATE, rate, horizon)) == pytest.approx(np.array(expected), rel=1e-11)


def moments_by_matrix(mu, zeta, rho, rate, horizon):
    """Exponential of the linear equations of (1, m, I, J, V, C, W), where J' = I."""
    a = rho - zeta
    generator = np.zeros((7, 7))
    generator[1, [0, 1]] = rho * mu, -a
    generator[2, 1] = generator[3, 2] = 1.0
    generator[4, [1, 4]] = zeta**2, -2 * a
    generator[5, [1, 4, 5]] = zeta, 1.0, -a
    generator[6, [1, 5]] = 1.0, 2.0
    return (linalg.expm(generator * horizon) @ [1.0, rate, 0, 0, 0, 0, 0])[1:]


@pytest.mark.parametrize("excitation", [0.0, 1.5, 2.999, 3.0, 3.0000001, 3.4])
@pytest.mark.parametrize("horizon", [0.0, 1e-3, 0.5, 0.66, 0.67, 4.0, 12.0])
def test_moments_solve_their_equations(excitation, horizon):
    moments = hawkes.moments(0.6, excitation, 3.0, 2.5, horizon)
    assert np.array(moments) == pytest.approx(
        moments_by_matrix(0.6, excitation, 3.0, 2.5, horizon), rel=1e-9, abs=1e-15
    )
    first = [function(0.6, excitation, 3.0, 2.5, horizon) for function in
             (hawkes.mean_rate, hawkes.expected_count, hawkes.weighted_count)]  # fmt: skip
    assert first == pytest.approx(list(moments)[:3], rel=1e-14)


def test_moments_broadcast():
    rates = np.array([[0.6], [2.0]])
    moments = hawkes.moments(0.6, [1.5, 3.0, 4.0], 3.0, rates, 2.0)
    assert all(part.shape == (2, 3) for part in moments)
    for i, j in np.ndindex(2, 3):
        single = hawkes.moments(0.6, [1.5, 3.0, 4.0][j], 3.0, rates[i, 0], 2.0)
        assert [part[i, j] for part in moments] == pytest.approx([float(part) for part in single], rel=1e-14)


def test_at_excitation_equal_to_decay_the_mean_grows_on_a_line():
    assert hawkes.mean_rate(0.6, 3.0, 3.0, 2.0, 7.0) == pytest.approx(2.0 + 3.0 * 0.6 * 7.0)
    assert hawkes.expected_count(0.6, 3.0, 3.0, 2.0, 7.0) == pytest.approx(2.0 * 7.0 + 3.0 * 0.6 * 49.0 / 2)
    assert [float(part) for part in hawkes.integrals(0.0, 7.0)] == pytest.approx([7.0, 49.0 / 2, 343.0 / 6])


def test_integrals_to_many_digits():
    with mpmath.workdps(60):
        for damping in (0.0, 1e-12, 1e-5, 0.3, 0.999, 1.001, 7.0, 400.0, -1e-7, -0.5, -1.5, -9.0):
            for horizon in (1e-6, 1.0, 3.0):
                a, tau = mpmath.mpf(damping), mpmath.mpf(horizon)
                exact = [
                    mpmath.nsum(lambda k, p=p, z=-a * tau: z**k / mpmath.factorial(k + p), [0, mpmath.inf]) * tau**p
                    if abs(a * tau) < 30
                    else None
                    for p in (1, 2, 3)
                ]
                if exact[0] is None:
                    first = (1 - mpmath.exp(-a * tau)) / a
                    second = (tau - first) / a
                    exact = [first, second, (tau**2 / 2 - second) / a]
                integrals = hawkes.integrals(damping, horizon)
                assert [float(x) for x in integrals] == pytest.approx([float(x) for x in exact], rel=2e-14)


def test_branching_and_stationary_rate():
    assert hawkes.branching_ratio(1.5, 3.0) == 0.5
    assert hawkes.stationary_rate(*LATE) == pytest.approx([1.2])
    assert hawkes.stationary_rate(*SIX.T) == pytest.approx([2.5, 2.25, 2.25, 2.5, 1.2, 1.2])
    assert hawkes.branching_ratio(SIX[:, 1], SIX[:, 2]) == pytest.approx(0.5)
    # a circle of two: the eigenvalues of [[0, 2/4], [3/2, 0]] are +- sqrt(3/4)
    assert hawkes.branching_ratio([[0, 2], [3, 0]], [4, 2]) == pytest.approx(math.sqrt(0.75))
    assert hawkes.stationary_rate([1, 1], [[0, 2], [3, 0]], [4, 2]) == pytest.approx([6, 10])  # x = 1+y/2, y = 1+3x/2


# Simulation


def test_waits_have_their_law():
    """Of one process and of two: against the survival function, and marks against the share of the intensities."""

    @njit
    def draw(n, base_rate, excess, decay, left):
        s0, s1 = start_stream(np.uint64(7))
        single, several, marks = np.empty(n), np.empty(n), np.empty(n, dtype=np.int64)
        for i in range(n):
            single[i], _, s0, s1 = hawkes.next_event(base_rate[:1], excess[:1], decay[:1], np.inf, s0, s1)
            several[i], marks[i], s0, s1 = hawkes.next_event(base_rate, excess, decay, left, s0, s1)
        return single, several, marks

    mu, x, rho = np.array([0.6, 0.2]), np.array([2.0, 3.0]), np.array([3.0, 5.0])

    def survival(s, k):
        return np.exp(-mu[k] * s - x[k] / rho[k] * -np.expm1(-rho[k] * s))

    single, several, marks = draw(40_000, mu, x, rho, 1.0)
    assert stats.kstest(1 - survival(single, 0), "uniform").pvalue > 1e-4
    fired = marks >= 0
    alive = survival(1.0, 0) * survival(1.0, 1)
    assert (several[~fired] == 1.0).all()
    assert score(fired, 1 - alive) < ERRORS
    law = (1 - survival(several[fired], 0) * survival(several[fired], 1)) / (1 - alive)
    assert stats.kstest(law, "uniform").pvalue > 1e-4
    rates = mu + x * np.exp(-np.multiply.outer(several[fired], rho))
    assert score((marks[fired] == 0) - rates[:, 0] / rates.sum(axis=1), 0.0) < ERRORS


def test_kernels_allocate_nothing():
    @njit
    def play(n, base_rate, excess, decay):
        s0, s1 = start_stream(np.uint64(1))
        for _ in range(n):
            wait, process, s0, s1 = hawkes.next_event(base_rate, excess, decay, np.inf, s0, s1)
            hawkes.relax(excess, decay, wait)
            excess[process] += 0.1
        return s0

    @njit
    def allocate(n):
        return np.empty(n)

    play(1, np.array([0.5, 0.5]), np.zeros(2), np.array([2.0, 3.0]))
    allocate(1)
    assert "NRT_MemInfo_alloc" in next(iter(allocate.inspect_llvm().values()))
    assert "NRT_MemInfo_alloc" not in next(iter(play.inspect_llvm().values()))


@pytest.mark.parametrize(
    ("parameters", "rate", "duration"),
    [(LATE, 0.6, 60.0), (LATE, 5.0, 1.0), ((0.6, 3.0, 3.0), 1.0, 1.5), ((0.6, 4.0, 3.0), 0.6, 2.0)],
)
def test_simulated_counts_have_the_moments_of_the_closed_form(parameters, rate, duration):
    """Mean and variance of the count, mean and variance of the last intensity, and their covariance."""
    events = hawkes.simulate(*parameters, duration, seed=100, windows=8000, initial_rate=rate, allow_explosive=True)
    counts, rates = np.diff(events.offsets), events.rates[:, 0]
    exact = hawkes.moments(*parameters, rate, duration)
    assert score(counts, exact.integral) < ERRORS
    assert score((counts - exact.integral) ** 2, exact.count_variance) < ERRORS
    assert score(rates, exact.mean_rate) < ERRORS
    assert score((rates - exact.mean_rate) ** 2, exact.rate_variance) < ERRORS
    assert score((rates - exact.mean_rate) * (counts - exact.integral), exact.rate_count_covariance) < ERRORS


@pytest.mark.slow
def test_simulated_counts_in_full():
    events = hawkes.simulate(*LATE, 60.0, seed=200, windows=400_000)
    counts, exact = np.diff(events.offsets), hawkes.moments(*LATE, 0.6, 60.0)
    assert score(counts, exact.integral) < ERRORS
    assert score((counts - exact.integral) ** 2, exact.count_variance) < ERRORS


def test_processes_that_excite_one_another_have_the_expected_counts():
    """Against the differential equations of the means, by a Runge-Kutta method."""
    mu, zeta, rho = MUTUAL
    start = np.array([1.0, 2.0])
    events = hawkes.simulate(mu, zeta, rho, 6.0, seed=300, windows=4000, initial_rate=start)

    def slope(_, state):
        return np.concatenate([rho * (mu - state[:2]) + zeta @ state[:2], state[:2]])

    end = integrate.solve_ivp(slope, (0, 6.0), [*start, 0, 0], rtol=1e-10, atol=1e-12).y[:, -1]
    rates, counts = hawkes.mutual_counts(mu, zeta, rho, start, 6.0)
    assert np.concatenate([rates, counts]) == pytest.approx(end, rel=1e-8)
    for k in range(2):
        assert score(events.rates[:, k], end[k]) < ERRORS
        assert score([times.size for times in events.split(k)], end[2 + k]) < ERRORS


def test_mutual_residuals_are_unit_poisson():
    """Compensators of each process, summed plainly, at its own events."""
    mu, zeta, rho = MUTUAL
    events = hawkes.simulate(mu, zeta, rho, 800.0, seed=301)
    for k in range(2):
        own = events.times[events.processes == k]
        points = mu[k] * own
        for j in range(2):
            gaps = own[:, None] - events.times[events.processes == j][None, :]
            points += zeta[k, j] / rho[k] * np.where(gaps > 0, -np.expm1(-rho[k] * np.maximum(gaps, 0)), 0).sum(axis=1)
        assert stats.kstest(np.diff(points, prepend=0.0), "expon").pvalue > 1e-4


def test_six_processes_do_not_touch_one_another():
    events = hawkes.simulate(*SIX.T, 60.0, seed=302, windows=300)
    for k in range(6):
        exact = hawkes.moments(*SIX[k], SIX[k, 0], 60.0)
        assert score([times.size for times in events.split(k)], exact.integral) < ERRORS
    first, last = ([times.size for times in events.split(k)] for k in (4, 5))
    assert stats.pearsonr(first, last).pvalue > 1e-4


def test_a_window_depends_on_its_own_seed_alone():
    together = hawkes.simulate(*SIX.T, [5.0, 7.0, 9.0], seed=11)
    for window, duration in enumerate((5.0, 7.0, 9.0)):
        alone = hawkes.simulate(*SIX.T, duration, seed=11 + window)
        here = slice(*together.offsets[window : window + 2])
        assert (together.times[here] == alone.times).all()
        assert (together.processes[here] == alone.processes).all()
        assert (together.rates[window] == alone.rates[0]).all()
        assert alone.times.size > 20


def test_events_without_a_base_rate_are_one_burst():
    """Excess x alone: each event of x / rho expected ones brings on a cluster of 1 / (1 - n)."""
    events = hawkes.simulate(0.0, 1.5, 3.0, 200.0, seed=12, windows=4000, initial_rate=6.0)
    assert score(np.diff(events.offsets), 6.0 / 3.0 / (1 - 0.5)) < ERRORS


def test_simulated_events_are_in_order():
    events = hawkes.simulate(*SIX.T, 60.0, seed=13, windows=20)
    for times in events.split():
        assert (np.diff(times) > 0).all()
        assert 0 < times[0] < times[-1] < 60.0
    assert sum(times.size for k in range(6) for times in events.split(k)) == events.times.size


# Maximum likelihood


@pytest.fixture(scope="module")
def windows() -> list[np.ndarray]:
    return hawkes.simulate(*LATE, 60.0, seed=20, windows=12).split()


@pytest.fixture(scope="module")
def fit(windows) -> HawkesFit:
    return fit_hawkes(windows, 60.0)


def test_the_fit_is_the_maximum_of_the_plain_likelihood():
    """Against a general optimiser of the plain sum, and the inverse of its numerical Hessian."""
    windows = hawkes.simulate(*LATE, 20.0, seed=21, windows=4).split()
    durations, nothing = [20.0] * 4, [None] * 4
    fit = fit_hawkes(windows, 20.0)
    point = np.array([fit.base_rate.value, fit.excitation.value, fit.decay.value])

    def loss(logs):
        return -pooled_plain_likelihood(np.exp(logs), windows, durations, nothing)

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000}
    best = optimize.minimize(loss, np.log(point * [1.3, 0.7, 0.6]), method="Nelder-Mead", options=options)
    assert best.success
    assert point == pytest.approx(np.exp(best.x), rel=1e-6)
    assert fit.log_likelihood == pytest.approx(-best.fun, rel=1e-12)

    def slopes(x):
        return differences(lambda y: pooled_plain_likelihood(y, windows, durations, nothing), x, step=1e-4)

    covariance = np.linalg.inv(-differences(slopes, point, step=1e-4))
    stderrs = [fit.base_rate.stderr, fit.excitation.stderr, fit.decay.stderr]
    assert stderrs == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-4)
    assert fit.covariance == pytest.approx(covariance, rel=1e-3)
    ratio_slopes = differences(lambda x: x[1] / x[2], point)
    assert fit.branching_ratio.stderr == pytest.approx(math.sqrt(ratio_slopes @ covariance @ ratio_slopes), rel=1e-4)
    rate_slopes = differences(lambda x: x[0] / (1 - x[1] / x[2]), point)
    assert fit.stationary_rate.stderr == pytest.approx(math.sqrt(rate_slopes @ covariance @ rate_slopes), rel=1e-4)
    assert fit.stationary_rate.value == pytest.approx(point[0] / (1 - point[1] / point[2]))


def test_at_the_maximum_slopes_vanish_and_the_compensator_is_the_count(windows, fit):
    point = np.array([fit.base_rate.value, fit.excitation.value, fit.decay.value])
    gradient = log_likelihood(windows, 60.0, *point)[1]
    assert np.abs(gradient * point).max() < 1e-7
    assert fit.residuals.total == pytest.approx(fit.events, rel=1e-9)
    assert fit.events == sum(map(len, windows))


def test_the_fit_does_not_depend_on_the_unit_of_time(windows, fit):
    other = fit_hawkes([times * 60.0 for times in windows], 3600.0)
    for name, estimate in fit.estimates().items():
        scale = 1.0 if name == "branching_ratio" else 60.0
        rescaled = other.estimates()[name]
        assert [rescaled.value * scale, rescaled.stderr * scale] == pytest.approx(
            [estimate.value, estimate.stderr], rel=1e-6
        )


def test_long_samples_are_fitted_through_their_head():
    events = hawkes.simulate(*LATE, 600.0, seed=22, windows=60)
    fit = fit_hawkes(events.split(), 600.0)
    assert fit.events > 40_000
    for name, truth in zip(("base_rate", "excitation", "decay"), LATE, strict=True):
        estimate = getattr(fit, name)
        assert abs(estimate.value - truth) < 4 * estimate.stderr
    point = [fit.base_rate.value, fit.excitation.value, fit.decay.value]
    assert np.abs(log_likelihood(events.split(), 600.0, *point)[1] * point).max() < 1e-5


def test_head_cuts_windows_where_they_were_watched():
    data = Windows.gather([[], [1.0, 2.0, 3.0], [], [4.0, 5.0]], [9.0, 8.0, 7.0, 6.0])
    cut = data.head(2)
    assert (cut.times.tolist(), cut.offsets.tolist(), cut.durations.tolist()) == ([1.0, 2.0], [0, 0, 2], [9.0, 2.0])
    whole = data.head(3)
    assert (whole.offsets.tolist(), whole.durations.tolist()) == ([0, 0, 3], [9.0, 8.0])


def recovery(replications, seed, windows):
    """Scores of the estimates and intervals that cover, over replications."""
    truth = {"base_rate": 0.6, "excitation": 1.5, "decay": 3.0, "branching_ratio": 0.5}
    scores, covered = {name: [] for name in truth}, dict.fromkeys(truth, 0)
    for replication in range(replications):
        sample = hawkes.simulate(*LATE, 60.0, seed=seed + windows * replication, windows=windows).split()
        estimates = fit_hawkes(sample, 60.0).estimates()
        for name, value in truth.items():
            scores[name].append((estimates[name].value - value) / estimates[name].stderr)
            covered[name] += estimates[name].lower <= value <= estimates[name].upper
    return scores, covered


@pytest.mark.parametrize(
    ("replications", "windows"), [(REPLICATIONS, 60), pytest.param(1000, 60, marks=pytest.mark.slow)]
)
def test_recovery_of_known_parameters(replications, windows):
    """4300 events each: the bias is below a tenth of the standard error, which is right to a twentieth."""
    scores, covered = recovery(replications, 10_000, windows)
    for name, sample in scores.items():
        assert abs(np.mean(sample)) < 4 / math.sqrt(replications) + 0.1, name
        law = stats.chi2(replications)
        assert law.ppf(1e-4) / 1.1 < np.sum(np.square(sample)) < law.isf(1e-4) * 1.1, name
        count = stats.binom(replications, 0.95)
        assert count.ppf(1e-4) <= covered[name] <= count.isf(1e-4) + 0.01 * replications, name


def test_an_initial_rate_is_made_use_of():
    """Windows that start high: told so, the fit recovers the truth; not told so, it does not."""
    sample = hawkes.simulate(*LATE, 3.0, seed=23, windows=1500, initial_rate=6.0).split()
    fit = fit_hawkes(sample, 3.0, initial_rate=6.0)
    for name, truth in zip(("base_rate", "excitation", "decay"), LATE, strict=True):
        estimate = getattr(fit, name)
        assert abs(estimate.value - truth) < 4 * estimate.stderr
    wrong = fit_hawkes(sample, 3.0, allow_explosive=True)
    assert abs(wrong.base_rate.value - 0.6) > 10 * wrong.base_rate.stderr


def test_poisson_by_hand():
    poisson = fit_poisson([[1.0, 2.0, 3.5], [], [0.5, 1.0, 2.0, 6.0]], [4.0, 3.0, 7.0])
    assert poisson.rate.value == pytest.approx(0.5)
    assert poisson.rate.stderr == pytest.approx(0.5 / math.sqrt(7))
    assert poisson.log_likelihood == pytest.approx(7 * math.log(0.5) - 7)
    assert poisson.aic == pytest.approx(2 - 2 * (7 * math.log(0.5) - 7))
    assert poisson.residuals.points == pytest.approx([0.5, 1.0, 1.75, 3.75, 4.0, 4.5, 6.5])
    assert poisson.residuals.total == pytest.approx(7.0)


def test_comparison_with_poisson(windows, fit):
    alone = fit_poisson(windows, 60.0)
    assert fit.poisson.log_likelihood == alone.log_likelihood
    assert fit.likelihood_ratio == pytest.approx(2 * (fit.log_likelihood - alone.log_likelihood))
    assert fit.aic == pytest.approx(6 - 2 * fit.log_likelihood)
    assert fit.aic < alone.aic - 100
    tests = fit.tests()
    assert tests.loc["hawkes", "gap_p_value"] > 1e-4
    assert tests.loc["poisson", "gap_p_value"] < 1e-10


def test_evenly_spaced_events_have_no_excitation():
    fit = fit_hawkes([np.arange(0.5, 50.0)], 50.0)
    assert (fit.excitation.value, fit.branching_ratio.value) == (0.0, 0.0)
    assert math.isnan(fit.decay.value)
    assert fit.base_rate.value == pytest.approx(1.0)
    assert fit.base_rate.stderr == pytest.approx(1 / math.sqrt(50))
    assert fit.likelihood_ratio == 0.0
    assert "No excitation" in fit.summary("events", "min")
    json.dumps(fit.to_dict(), allow_nan=False)


def test_few_events_are_fitted_or_refused_clearly():
    assert fit_hawkes([[1.0]], 4.0).base_rate.value == pytest.approx(0.25)
    for seed in range(60):
        random = np.random.default_rng(seed)
        sample = [np.sort(random.uniform(0, 5.0, random.integers(0, 4))) for _ in range(3)]
        if sum(map(len, sample)) == 0:
            continue
        try:
            fit = fit_hawkes(sample, 5.0)
        except ValueError as error:
            assert "explosive" in str(error) or "no maximum" in str(error)
        else:
            assert fit.log_likelihood >= fit.poisson.log_likelihood - 1e-9


# Residuals


@pytest.mark.long
def test_residuals_are_uniform_under_the_true_model():
    """P-values of 400 samples of 12 windows, pooled by concatenation; and with each last gap dropped, they are not."""
    gaps, points, dropped = [], [], []
    for replication in range(400):
        sample = hawkes.simulate(*LATE, 10.0, seed=40_000 + 12 * replication, windows=12).split()
        compensators = residuals(sample, 10.0, *LATE)
        gaps.append(compensators.test_gaps()[1])
        points.append(compensators.test_points()[1])
        naive = np.concatenate([residuals([times], 10.0, *LATE).gaps for times in sample])
        dropped.append(stats.kstest(naive, "expon").pvalue)
    assert stats.kstest(gaps, "uniform").pvalue > 1e-4
    assert stats.kstest(points, "uniform").pvalue > 1e-4
    law = stats.binom(400, 0.05)
    for p_values in (gaps, points):
        assert law.ppf(5e-5) <= np.sum(np.array(p_values) < 0.05) <= law.isf(5e-5)
    assert np.sum(np.array(dropped) < 0.05) > law.isf(1e-6)


def test_residual_tests_see_what_is_wrong():
    random = np.random.default_rng(24)
    poisson = np.sort(random.uniform(0, 1000, 1000))
    assert residuals([poisson], 1000.0, 1.0, 0.0, 1.0).test_gaps()[1] > 1e-4
    assert residuals([poisson], 1000.0, 1.3, 0.0, 1.0).test_gaps()[1] < 1e-6  # wrong rate
    trend = 1000 * np.sqrt(poisson / 1000)
    assert residuals([trend], 1000.0, 1.0, 0.0, 1.0).test_points()[1] < 1e-6
    clustered = np.cumsum(random.exponential(np.repeat(random.choice([0.3, 1.7], 100), 10)))
    statistic, p_value = residuals([clustered], clustered[-1] + 1, 1.0, 0.0, 1.0).test_order()
    assert statistic > 0.2
    assert p_value < 1e-6


def test_windows_are_laid_end_to_end():
    compensators = residuals([TIMES, [], TIMES], [DURATION, 2.0, DURATION], *HAND)
    shift = HAND_TOTAL + 2.0 * 0.5
    assert compensators.points == pytest.approx(np.concatenate([HAND_COMPENSATORS, np.add(HAND_COMPENSATORS, shift)]))
    assert compensators.total == pytest.approx(2 * HAND_TOTAL + 1.0)


# The result


def test_table_and_dict(fit):
    table = fit.table()
    assert list(table.index) == ["base_rate", "excitation", "decay", "branching_ratio", "stationary_rate"]
    assert ((table["lower"] < table["estimate"]) & (table["estimate"] < table["upper"])).all()
    content = fit.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["decay"]["value"] == fit.decay.value
    assert content["tests"]["hawkes"]["aic"] == fit.aic


def test_summary_says_how_well_the_model_holds(fit):
    summary = fit.summary("buy orders", "min")
    assert summary.startswith(f"buy orders: {fit.events} events in 12 windows")
    assert summary.count("not rejected") == 3
    assert f"{fit.branching_ratio.value:.3g}" in summary


def test_plot_writes_a_png(fit, tmp_path):
    path = fit.plot(tmp_path / "residuals.png", title="buy orders")
    assert path.read_bytes().startswith(b"\x89PNG")
    many = residuals(hawkes.simulate(*LATE, 60.0, seed=25, windows=100).split(), 60.0, *LATE)
    assert many.points.size > 5000
    assert plot_residuals(tmp_path / "many.png", {"true": many}).stat().st_size > 10_000


def test_plot_names_the_extra(fit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"mmgym\[plot\]"):
        fit.plot(tmp_path / "residuals.png")


# Bad input


@pytest.mark.parametrize(
    ("windows", "duration", "message"),
    [
        ([], 1.0, "no windows"),
        ([[1.0, 3.0, 2.0]], 4.0, "window 0, event 2: the time 2.0 is not allowed; it must be above the one before"),
        ([[0.5], [1.0, 1.0]], 4.0, "window 1, event 1: .* no two of one process happen at once"),
        ([[0.5], [1.0, 5.0]], 4.0, r"window 1, event 1: the time 5.0 is not allowed; it must lie in \[0, 4\]"),
        ([[-0.5]], 4.0, "window 0, event 0"),
        ([[0.5, math.nan]], 4.0, "window 0, event 1"),
        ([[math.inf]], 4.0, "window 0, event 0"),
        ([[0.5]], 0.0, "window 0: its duration must be positive"),
        ([[0.5], [0.5]], [1.0, math.nan], "window 1: its duration must be positive"),
        ([[[0.5]]], 1.0, "one dimension"),
    ],
)
def test_windows_out_of_order_are_refused(windows, duration, message):
    for function in (fit_hawkes, fit_poisson):
        with pytest.raises(ValueError, match=message):
            function(windows, duration)
    with pytest.raises(ValueError, match=message):
        log_likelihood(windows, duration, *HAND)


def test_all_windows_empty_is_refused():
    for function in (fit_hawkes, fit_poisson):
        with pytest.raises(ValueError, match="all 3 windows are empty"):
            function([[], [], []], 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 1.0, 2.0), "base_rate"),
        ((0.5, -1.0, 2.0), "excitation"),
        ((0.5, 1.0, 0.0), "decay"),
        ((0.5, math.nan, 2.0), "excitation"),
        (([0.5, 0.5], [1.0, 1.0, 1.0], 2.0), "do not fit"),
        ((0.5, [[1.0, 0.0]], 2.0), "do not fit"),
        (([], 1.0, 2.0), "do not fit"),
    ],
)
def test_parameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hawkes.simulate(*arguments, 1.0, seed=0)


@pytest.mark.parametrize("excitation", [3.0, 3.6])
def test_explosive_parameters_must_be_asked_for(excitation):
    for function in (hawkes.parameters, hawkes.stationary_rate, lambda *p: hawkes.simulate(*p, 1.0, seed=0)):
        with pytest.raises(ValueError, match=r"branching ratio.*no stationary rate.*finite horizon.*allow_explosive"):
            function(0.6, excitation, 3.0)
    assert hawkes.parameters(0.6, excitation, 3.0, allow_explosive=True)[1] == excitation
    assert hawkes.simulate(0.6, excitation, 3.0, 2.0, seed=0, allow_explosive=True).rates.shape == (1, 1)
    assert math.isfinite(hawkes.moments(0.6, excitation, 3.0, 0.6, 5.0).count_variance)


def test_explosive_estimates_must_be_asked_for():
    windows = hawkes.simulate(0.6, 4.0, 3.0, 3.0, seed=26, windows=300, allow_explosive=True).split()
    with pytest.raises(ValueError, match=r"estimates are explosive.*branching ratio"):
        fit_hawkes(windows, 3.0)
    fit = fit_hawkes(windows, 3.0, allow_explosive=True)
    for name, truth in zip(("base_rate", "excitation", "decay"), (0.6, 4.0, 3.0), strict=True):
        estimate = getattr(fit, name)
        assert abs(estimate.value - truth) < 4 * estimate.stderr
    assert math.isnan(fit.stationary_rate.value)


def test_simulation_stops_at_the_largest_number_of_events():
    with pytest.raises(RuntimeError, match=r"max_events = 1000 events; the branching ratio is 1.33"):
        hawkes.simulate(0.6, 4.0, 3.0, 1000.0, seed=0, allow_explosive=True, max_events=1000)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="initial_rate"):
        hawkes.simulate(*LATE, 1.0, seed=0, initial_rate=0.5)
    with pytest.raises(ValueError, match="duration"):
        hawkes.simulate(*LATE, -1.0, seed=0)
    with pytest.raises(ValueError, match="initial_rate"):
        log_likelihood([TIMES], DURATION, *HAND, initial_rate=-1.0)
    with pytest.raises(ValueError, match="one number for each event"):
        mutual_log_likelihood([[1.0, 2.0]], [[0]], 3.0, [1, 1], 0.5, 1.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        mutual_log_likelihood([[1.0, 2.0]], [[0, 2]], 3.0, [1, 1], 0.5, 1.0)


# Size


@pytest.mark.slow
def test_a_million_events():
    windows = hawkes.simulate(*LATE, 1e6 / 1.2, seed=27).split()
    fit = fit_hawkes(windows, 1e6 / 1.2)
    for name, truth in zip(("base_rate", "excitation", "decay"), LATE, strict=True):
        estimate = getattr(fit, name)
        assert abs(estimate.value - truth) < 4 * estimate.stderr


# The real tape


@pytest.mark.skipif(not REAL_TAPE.exists(), reason="the real tape is not part of the project")
def test_market_orders_of_the_real_tape():
    """The maximum is one of the plain likelihood; Hawkes is far better than Poisson, and still rejected."""
    fits = fit_market_orders(REAL_TAPE)
    orders = market_orders(read_tape(REAL_TAPE))
    for side, fit in fits.items():
        times = orders.loc[orders["side"] == side, "time_s"].to_numpy()
        gaps = times[:, None] - times[None, :]
        gaps[gaps <= 0] = np.inf

        def loss(point, times=times, gaps=gaps, end=fit.exposure):
            mu, zeta, rho = point
            rates = mu + zeta * np.exp(-rho * gaps).sum(axis=1)
            return np.log(rates).sum() - mu * end + zeta / rho * np.expm1(-rho * (end - times)).sum()

        point = np.array([fit.base_rate.value, fit.excitation.value, fit.decay.value])
        assert fit.exposure == pytest.approx(344.744)
        assert fit.log_likelihood == pytest.approx(loss(point), rel=1e-9)
        assert np.abs(differences(loss, point, step=1e-4) * point).max() < 1e-2
        tests = fit.tests()
        assert fit.poisson.aic - fit.aic > 1000
        assert tests.loc["hawkes", "gap_statistic"] < 0.06 < 0.2 < tests.loc["poisson", "gap_statistic"]
        assert tests.loc["hawkes", "gap_p_value"] < 0.01
        assert tests.loc["hawkes", "order_correlation"] > 0.15
        assert "rejected" in fit.summary(side, "s")
