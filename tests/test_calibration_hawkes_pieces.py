"""Hawkes processes whose base rate varies over the window: a plain likelihood, recovery, one piece.

False alarms. Estimates within 4.2 standard errors: 2.7e-5 each, 2e-4 for the seven; p-values above 1e-4, two of them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize

from mmgym.calibration.hawkes import Windows, fit_hawkes
from mmgym.calibration.hawkes_pieces import fit_pieces, piece_compensators

LENGTH, RATES, EXCITATION, DECAY = 60.0, (0.3, 0.6, 1.5), 1.2, 3.0


def simulate(seed: int, windows: int) -> list[np.ndarray]:
    """Thinning: candidates at the largest base rate plus the excess, which falls until the next event."""
    random, samples = np.random.default_rng(seed), []
    for _ in range(windows):
        now = excess = 0.0
        times = []
        while True:
            bound = max(RATES) + excess
            wait = random.exponential(1 / bound)
            now, excess = now + wait, excess * math.exp(-DECAY * wait)
            if now > LENGTH:
                break
            base = RATES[min(int(3 * now / LENGTH), 2)]
            if random.random() * bound < base + excess:
                times.append(now)
                excess += EXCITATION
        samples.append(np.array(times))
    return samples


def intensity(now: float, times: np.ndarray, rates: np.ndarray, zeta: float, rho: float) -> float:
    before = times[times < now]
    piece = min(int(rates.size * now / LENGTH), rates.size - 1)
    return float(rates[piece] + zeta * np.exp(-rho * (now - before)).sum())


def plain(point: np.ndarray, windows: list[np.ndarray], pieces: int) -> float:
    """The definition: logarithms of intensities, each summed over all earlier events, less the integrals."""
    rates, zeta, rho = point[:pieces], point[pieces], point[pieces + 1]
    value = 0.0
    for times in windows:
        value += sum(math.log(intensity(now, times, rates, zeta, rho)) for now in times)
        value -= LENGTH * rates.mean() + zeta / rho * (1 - np.exp(-rho * (LENGTH - times))).sum()
    return value


def test_the_maximum_is_that_of_the_plain_likelihood() -> None:
    windows = simulate(1, 2)
    data = Windows.gather(windows, LENGTH)
    rates, zeta, rho, value, _ = fit_pieces(data, 2, (0.5, 1.0, 2.0), 1e3)
    point = np.array([*rates, zeta, rho])
    assert value == pytest.approx(plain(point, windows, 2))
    slope = optimize.approx_fprime(point, lambda own: plain(own, windows, 2), 1e-6)
    assert np.abs(slope * point).max() < 1e-2 * data.count / 100
    points, total = piece_compensators(data, rates, zeta, rho)
    assert total == pytest.approx(data.count, rel=1e-6)  # at a maximum
    times = windows[0]
    breaks = [0.0, *times[:5].tolist()]
    for k in range(5):  # before the first piece ends
        area = integrate.quad(lambda now: intensity(now, times, rates, zeta, rho), breaks[k], breaks[k + 1])[0]
        assert points[k] - (points[k - 1] if k else 0.0) == pytest.approx(area, rel=1e-6)


def test_varying_base_rates_are_recovered() -> None:
    windows = simulate(2, 60)
    fit = fit_hawkes(windows, LENGTH, base_pieces=3, unit="min")
    truths = [*RATES, EXCITATION, DECAY, EXCITATION / DECAY, float(np.mean(RATES))]
    estimates = [*fit.base_rates, fit.excitation, fit.decay, fit.branching_ratio, fit.base_rate]
    for estimate, truth in zip(estimates, truths, strict=True):
        assert abs(estimate.value - truth) < 4.2 * estimate.stderr
    assert fit.constant_p_value < 1e-6
    assert fit.residuals.test_gaps()[1] > 1e-4 and fit.residuals.test_points()[1] > 1e-4
    constant = fit_hawkes(windows, LENGTH, unit="min")
    assert constant.branching_ratio.value > fit.branching_ratio.value + 4 * fit.branching_ratio.stderr  # it is misled
    assert fit.aic < constant.aic - 100
    assert list(fit.table().index)[-3:] == ["base_rate[1]", "base_rate[2]", "base_rate[3]"]


def test_pieces_that_cannot_be_told_are_refused() -> None:
    windows = [np.sort(np.random.default_rng(seed).uniform(0, 20, 20)) for seed in (1, 2)]
    with pytest.raises(ValueError, match="piece 2 of 3 holds no event"):
        fit_pieces(Windows.gather(windows, LENGTH), 3, (0.5, 1.0, 2.0), 1e3)
    many = [np.sort(np.random.default_rng(seed).uniform(0, 20, 200)) for seed in (1, 2)]
    with pytest.raises(ValueError, match="the windows have gaps, pieces need whole windows"):
        fit_hawkes(many, LENGTH, base_pieces=3)
    for wrong in ({"base_pieces": 0}, {"base_pieces": 2, "initial_rate": 1.0}):
        with pytest.raises(ValueError, match="base_pieces"):
            fit_hawkes(windows, LENGTH, **wrong)
