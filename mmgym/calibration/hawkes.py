r"""Maximum likelihood for Hawkes processes with exponential kernels, and tests of the fit.

The likelihood, over independent windows, is that of `mmgym.calibration.hawkes_likelihood`; the notation is that of
`mmgym.models.hawkes`.

*Standard errors* come from the observed information, the negative Hessian at the maximum; those of the branching ratio
:math:`n = \zeta / \rho` and of the stationary rate from it by the delta method. Intervals are those of the logarithm,
carried over. Events in stretches of residual time are Poisson under the true model; where they vary by more than chance
has it, standard errors are widened by the root of that ratio, and the fit says so (`mmgym.calibration.tape_checks`).

*Residuals* (eq. (31); Ogata 1988). Under the true model the compensators :math:`\Lambda(t_i)` are the points of a unit
Poisson process. Windows are pooled by laying their residual time end to end, each window with the whole of its
:math:`\Lambda(T)`: dropping the gap that the end of a window cuts off would favour short gaps, and reject too often.
The gaps are compared with a unit exponential law and the points with a uniform one; with estimated parameters both
Kolmogorov-Smirnov tests are conservative (they reject a true model less often than they say).

References
----------
Ogata, Y. (1988). Statistical models for earthquake occurrences and residual analysis for point processes. *Journal of
the American Statistical Association* 83(401).

von Luckner, N., Cartea, Á., Jaimungal, S. and Kiesel, R. (2017). Optimal market maker pricing in the German intraday
power market. Working paper, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.block_intervals import BLOCKS, QUANTILE, UNKNOWN, Estimate
from mmgym.calibration.exponential import SMALLEST_EXPECTED_COUNT
from mmgym.calibration.hawkes_likelihood import (
    Windows,
    compensators,
    evaluate,
    log_likelihood,
    mutual_log_likelihood,
    start_rates,
    three_parameters,
)
from mmgym.calibration.hawkes_pieces import fit_pieces, piece_compensators
from mmgym.calibration.report import as_json, estimate_table, save_figure, shown_p_value, verdict
from mmgym.calibration.tape_checks import (
    FALSE_ALARM,
    excessive,
    find_window_gaps,
    raised,
    steps_of_a_kernel,
    widened,
    without_gaps,
)
from mmgym.models.hawkes import explosive
from mmgym.plain_files import json_value
from mmgym.plot import new_figure
from mmgym.tapes import Selection, check_level1
from mmgym.tapes.findings import Finding, described
from mmgym.tapes.gaps import gap_finding
from mmgym.tapes.recording import Paths

__all__ = [
    "HawkesFit",
    "PoissonFit",
    "Residuals",
    "Windows",
    "draw_residuals",
    "fit_hawkes",
    "fit_market_orders",
    "fit_poisson",
    "log_likelihood",
    "mutual_log_likelihood",
    "plot_residuals",
    "residuals",
]

Array = NDArray[np.float64]

START_EVENTS = 20_000  # events on which the starting points are tried
START_DECAYS = (0.03, 0.3, 3.0, 30.0, 300.0, 3000.0)  # in units of the mean rate
START_RATIO = 0.5
NO_EXCITATION = 1e-9  # branching ratio below which the maximum lies on the boundary
NEWTON_STEPS = 20
PLOT_POINTS = 4000


# Residuals


@dataclass(frozen=True)
class Residuals:
    """Events in residual time, where they are unit Poisson points under the true model.

    Attributes
    ----------
    points : array, shape (n,)
        Compensator at each event, the windows laid end to end.
    total : float
        Compensator of all windows; at a maximum of the likelihood it is the number of events.
    """

    points: Array = field(repr=False)
    total: float

    @property
    def gaps(self) -> Array:
        """Differences of the points, from 0 on: unit exponential numbers under the true model, shape (n,)."""
        return np.diff(self.points, prepend=0.0)

    def test_gaps(self) -> tuple[float, float]:
        """Kolmogorov-Smirnov statistic and p-value of the gaps against the unit exponential law."""
        return _kolmogorov_smirnov(-np.expm1(-self.gaps))

    def test_points(self) -> tuple[float, float]:
        """Kolmogorov-Smirnov statistic and p-value of the points against the uniform law on [0, total]."""
        return _kolmogorov_smirnov(self.points / self.total)

    def dispersion(self) -> tuple[float, int]:
        """Variance over mean of the events in stretches of residual time (about 1), and its degrees of freedom.

        Up to 30 stretches of five events or more; NaN and 0 where there are fewer than ten events.
        """
        stretches = int(min(BLOCKS, self.points.size // SMALLEST_EXPECTED_COUNT))
        if stretches < 2:
            return math.nan, 0
        counts = np.histogram(self.points, bins=stretches, range=(0.0, max(self.total, float(self.points[-1]))))[0]
        return float(counts.var(ddof=1) / counts.mean()), stretches - 1

    def test_order(self) -> tuple[float, float]:
        """Rank correlation of neighbouring gaps (0 under the true model) and its p-value; NaN if all are equal."""
        gaps = self.gaps
        if gaps.size < 3 or np.ptp(gaps[:-1]) == 0 or np.ptp(gaps[1:]) == 0:  # no ranks to compare
            return math.nan, math.nan
        correlation = scipy.stats.spearmanr(gaps[:-1], gaps[1:])
        return float(correlation.statistic), float(correlation.pvalue)


def _kolmogorov_smirnov(values: Array) -> tuple[float, float]:
    if values.size == 0:
        return math.nan, math.nan
    test = scipy.stats.kstest(values, "uniform")
    return float(test.statistic), float(test.pvalue)


def residuals(
    windows: Sequence[ArrayLike],
    duration: ArrayLike,
    base_rate: float,
    excitation: float,
    decay: float,
    *,
    initial_rate: ArrayLike | None = None,
) -> Residuals:
    """Time-rescaling residuals (von Luckner et al., eq. (31)), pooled over windows; arguments as `log_likelihood`.

    An excitation of 0 gives the residuals of a homogeneous Poisson process.
    """
    data = Windows.gather(windows, duration)
    mu, zeta, rho = three_parameters(base_rate, excitation, decay)
    return _residuals(data, start_rates(initial_rate, data), mu, zeta, rho)


def _residuals(data: Windows, initial_rates: Array, mu: float, zeta: float, rho: float) -> Residuals:
    points = np.empty(data.count)
    total = compensators(data.times, data.offsets, data.durations, initial_rates, mu, zeta, rho, points)
    return Residuals(points, float(total))


def plot_residuals(
    path: str | Path, samples: Mapping[str, Residuals], title: str = "", *, findings: Sequence[Finding] = ()
) -> Path:
    """Write a PNG: PP and QQ plots of the gaps against the unit exponential law.

    Parameters
    ----------
    path : str or Path
        Where to write.
    samples : mapping of str to Residuals
        What to draw, by the name of the model.
    title : str
        Heading.
    findings : sequence of Finding
        Warnings, written below.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    figure = new_figure(10, 4.8)
    left, right = figure.subplots(1, 2)
    draw_residuals(left, right, samples)
    if title:
        figure.suptitle(title)
    return save_figure(figure, path, findings, dpi=150)


def draw_residuals(left: Any, right: Any, samples: Mapping[str, Residuals]) -> None:
    """Draw PP plots on the left and QQ plots on the right of two matplotlib axes."""
    largest = 1.0
    for name, sample in samples.items():
        gaps = np.sort(sample.gaps)
        share = (np.arange(gaps.size) + 0.5) / max(gaps.size, 1)
        if gaps.size > PLOT_POINTS:  # evenly spaced ones and the whole tail are enough for a picture
            half = PLOT_POINTS // 2
            shown = np.concatenate([np.linspace(0, gaps.size - half, half), gaps.size - half + np.arange(half)])
            gaps, share = gaps[shown.astype(int)], share[shown.astype(int)]
        statistic, p_value = sample.test_gaps()
        label = f"{name}: KS {statistic:.3g}, p {shown_p_value(p_value)}"
        left.plot(share, -np.expm1(-gaps), ".", markersize=3, label=label)
        right.plot(-np.log1p(-share), gaps, ".", markersize=3, label=name)
        largest = max(largest, float(-np.log1p(-share[-1])))
    left.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, zorder=0)
    right.plot([0, largest], [0, largest], color="0.5", linewidth=0.8, zorder=0)
    left.set(xlabel="empirical probability", ylabel="probability under the model")
    right.set(xlabel="unit exponential quantile", ylabel="residual gap")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()


# Maximum likelihood


@dataclass(frozen=True)
class PoissonFit:
    """A homogeneous Poisson process, for comparison.

    Attributes
    ----------
    rate : Estimate
        Events per unit of time.
    log_likelihood, aic : float
        At the maximum; Akaike's criterion with one parameter.
    residuals : Residuals
        Of this fit.
    """

    rate: Estimate
    log_likelihood: float
    aic: float
    residuals: Residuals = field(repr=False, compare=False)


@dataclass(frozen=True)
class HawkesFit:
    """A Hawkes process fitted by maximum likelihood. Where the maximum has no excitation at all, the decay is not
    identified: excitation and branching ratio are 0, and NaN stands for the decay and for what rests on it.

    Attributes
    ----------
    base_rate, excitation, decay : Estimate
        mu, zeta, rho; per unit of time.
    branching_ratio : Estimate
        zeta / rho.
    stationary_rate : Estimate
        mu / (1 - zeta / rho), events per unit of time; NaN where the process is explosive.
    covariance : array, shape (3, 3)
        Of (base_rate, excitation, decay): the inverse of the observed information.
    events, windows : int
        Numbers that the fit rests on.
    exposure : float
        Total length of the windows.
    log_likelihood, aic : float
        At the maximum; Akaike's criterion with three parameters, or as many more as there are further pieces.
    residuals : Residuals
        Of this fit.
    poisson : PoissonFit
        The homogeneous Poisson process on the same windows.
    findings : tuple of Finding
        Warnings (see `mmgym.calibration.tape_checks`).
    base_rates : tuple of Estimate
        mu of each piece of the windows, where it varies; ``base_rate`` is then their mean (`fit_hawkes`).
    constant_p_value : float
        Chance of so large a gain in likelihood by the pieces if the base rate is constant; NaN without pieces.
    """

    base_rate: Estimate
    excitation: Estimate
    decay: Estimate
    branching_ratio: Estimate
    stationary_rate: Estimate
    covariance: Array = field(repr=False, compare=False)
    events: int
    windows: int
    exposure: float
    log_likelihood: float
    aic: float
    residuals: Residuals = field(repr=False, compare=False)
    poisson: PoissonFit = field(repr=False)
    findings: tuple[Finding, ...] = ()
    base_rates: tuple[Estimate, ...] = ()
    constant_p_value: float = math.nan

    @property
    def likelihood_ratio(self) -> float:
        """Twice the gain in log-likelihood over the Poisson process.

        No p-value goes with it: without excitation the decay is not identified, so the law is not chi-square.
        """
        return 2.0 * (self.log_likelihood - self.poisson.log_likelihood)

    def estimates(self) -> dict[str, Estimate]:
        """The five estimates by name, and the base rates of pieces, ``base_rate[1]`` and on."""
        names = ("base_rate", "excitation", "decay", "branching_ratio", "stationary_rate")
        pieces = {f"base_rate[{k}]": rate for k, rate in enumerate(self.base_rates, start=1)}
        return {name: getattr(self, name) for name in names} | pieces

    def table(self) -> pd.DataFrame:
        """One row per parameter: ``estimate, standard_error, lower, upper`` (95 % interval).

        Where there are findings, their names stand in a column ``warning``.
        """
        units = {name: (estimate, "") for name, estimate in self.estimates().items()}
        return estimate_table(units, self.findings).drop(columns="unit")

    def tests(self) -> pd.DataFrame:
        """How well the fit holds, one row for each of Hawkes and Poisson: log-likelihood, AIC and residual tests."""
        rows = {}
        for name, fit in (("hawkes", self), ("poisson", self.poisson)):
            sample = fit.residuals
            gaps, points, order = sample.test_gaps(), sample.test_points(), sample.test_order()
            rows[name] = [fit.log_likelihood, fit.aic, *gaps, *points, *order]
        columns = ["log_likelihood", "aic", "gap_statistic", "gap_p_value", "point_statistic", "point_p_value"]
        columns += ["order_correlation", "order_p_value"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("model")

    def to_dict(self) -> dict[str, Any]:
        """Estimates, covariance and tests as JSON types; NaN becomes None."""
        numbers = {"events": self.events, "windows": self.windows, "exposure": self.exposure}
        content = {name: asdict(estimate) for name, estimate in self.estimates().items()}
        tests = self.tests().to_dict(orient="index")
        everything = content | {"covariance": self.covariance.tolist()} | numbers | {"tests": tests}
        everything["warnings"] = as_json(self.findings)
        return {name: json_value(value) for name, value in everything.items()}

    def summary(self, name: str, unit: str) -> str:
        """A few sentences: the estimates, and how well the model holds.

        Parameters
        ----------
        name : str
            What the events are.
        unit : str
            Unit of time of the windows.
        """
        rate, ratio = self.base_rate, self.branching_ratio
        text = "".join(f"{line}\n" for line in described(self.findings))
        text += f"{name}: {self.events} events in {self.windows} windows of {self.exposure:.5g} {unit} in all. "
        if ratio.value == 0:
            return text + f"No excitation: a Poisson process of rate {rate.value:.4g} +- {rate.stderr:.2g} per {unit}."
        text += (
            f"Base rate {rate.value:.4g} +- {rate.stderr:.2g}, excitation {self.excitation.value:.4g} +- "
            f"{self.excitation.stderr:.2g}, decay {self.decay.value:.4g} +- {self.decay.stderr:.2g} per {unit}; "
            f"branching ratio {ratio.value:.3g} +- {ratio.stderr:.2g}. Twice the log-likelihood over a Poisson process "
            f"is {self.likelihood_ratio:.4g}"
        )
        text += f", AIC {self.aic:.6g} against {self.poisson.aic:.6g}. "
        for law, test in (("unit exponential gaps", "gaps"), ("uniform points", "points"), ("independence", "order")):
            statistic, p_value = getattr(self.residuals, f"test_{test}")()
            text += f"Residuals: {law} {verdict(p_value)} ({statistic:.3g}, p {shown_p_value(p_value)}). "
        return text.rstrip()

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Write PP and QQ plots of the residual gaps under Hawkes and under Poisson (see `plot_residuals`)."""
        samples = {"Hawkes": self.residuals, "Poisson": self.poisson.residuals}
        return plot_residuals(path, samples, title, findings=self.findings)


def fit_poisson(windows: Sequence[ArrayLike], duration: ArrayLike) -> PoissonFit:
    """Fit a homogeneous Poisson process to windows.

    Raises
    ------
    ValueError
        If all windows are empty, or one is not in order.
    """
    return _fit_poisson(_with_events(Windows.gather(windows, duration)))


def fit_hawkes(
    windows: Sequence[ArrayLike],
    duration: ArrayLike,
    *,
    initial_rate: ArrayLike | None = None,
    allow_explosive: bool = False,
    base_pieces: int = 1,
    unit: str = "unit of time",
) -> HawkesFit:
    """Fit a Hawkes process with exponential kernel to independent windows by maximum likelihood.

    The likelihood may have several maxima in the decay: starting points over six decades of it are tried on the first
    20,000 events, and the best one is followed on all events (L-BFGS-B, then Newton's method on the exact Hessian).

    Parameters
    ----------
    windows : sequence of array_like
        Event times of each window since its start, strictly rising; empty windows count.
    duration : array_like, shape () or (windows,)
        Lengths of the windows.
    initial_rate : array_like, shape () or (windows,), optional
        Intensity at the start of each window; by default the base rate (no history).
    allow_explosive : bool
        Whether estimates with ``excitation >= decay`` are accepted.
    base_pieces : int
        Pieces of equal length of every window, each with a base rate of its own
        (`mmgym.calibration.hawkes_pieces`); the windows then start without history.
    unit : str
        Unit of time, for warnings.

    Returns
    -------
    HawkesFit

    Raises
    ------
    ValueError
        If all windows are empty, a window is not in order, the clock is too coarse for the kernel, the maximum is
        explosive, or there is none (the decay runs off to zero or infinity); or if base rates in pieces are asked for
        and the windows have a history or gaps, or a piece no event.
    """
    if base_pieces < 1 or (base_pieces > 1 and initial_rate is not None):
        raise ValueError(f"base_pieces = {base_pieces} is not allowed: 1 or more, and 1 where initial rates are given")
    data = _with_events(Windows.gather(windows, duration))
    rates = start_rates(initial_rate, data)
    gaps = find_window_gaps(data)
    findings = []
    if len(gaps) and base_pieces > 1:
        raise ValueError(
            f"base_pieces = {base_pieces} is not allowed: the windows have gaps, pieces need whole windows"
        )
    if len(gaps):
        data, rates = without_gaps(data, rates, gaps)
        findings.append(gap_finding(gaps[:, 1], gaps[:, 2] - gaps[:, 1], data.exposure, unit))
    fit = _maximum(data, rates, allow_explosive)
    if base_pieces > 1:
        fit = _with_pieces(fit, data, base_pieces, allow_explosive)
    apart = np.diff(data.times)
    same = np.repeat(np.arange(data.durations.size), np.diff(data.offsets))
    apart = apart[same[1:] == same[:-1]]
    fit = _with_findings(fit, data, findings)
    share, text = steps_of_a_kernel(fit.decay, apart, float(data.durations.max()), unit)
    if share == 0:
        return fit
    # how far rounded times pull the estimates down, measured on simulated processes
    return replace(
        fit,
        base_rate=raised(fit.base_rate, 0.2 * share),
        excitation=raised(fit.excitation, 2.0 * share),
        decay=raised(fit.decay, 1.5 * share),
        branching_ratio=raised(fit.branching_ratio, 0.6 * share),
        findings=(*fit.findings, Finding("coarse_clock", text)),
    )


def _with_findings(fit: HawkesFit, data: Windows, findings: list[Finding]) -> HawkesFit:
    """The fit with its warnings: what was found before, overdispersion, and what the data leave open."""
    dispersion, freedom = fit.residuals.dispersion()
    if excessive(dispersion, freedom):
        factor = math.sqrt(dispersion)
        wide = {name: widened(item, factor, freedom, logarithm=True) for name, item in fit.estimates().items()}
        fit = replace(
            fit,
            base_rate=wide["base_rate"],
            excitation=wide["excitation"],
            decay=wide["decay"],
            branching_ratio=wide["branching_ratio"],
            stationary_rate=wide["stationary_rate"],
            base_rates=tuple(wide[f"base_rate[{k + 1}]"] for k in range(len(fit.base_rates))),
            covariance=fit.covariance * dispersion,
        )
        text = (
            f"events in {freedom + 1} stretches of residual time vary {dispersion:.3g} times as much as in the fit: "
            f"standard errors and intervals are {factor:.3g} times as wide."
        )
        findings = [*findings, Finding("overdispersed", text)]
    empty = data.durations[np.diff(data.offsets) == 0]
    if empty.size and fit.base_rate.value * empty.sum() > -math.log(FALSE_ALARM):
        text = (
            f"{empty.size} of {data.durations.size} windows hold no event, where the fit has "
            f"{fit.base_rate.value * empty.sum():.3g} or more: they count as observed; leave out what was not."
        )
        findings = [*findings, Finding("gaps", text)]
    if fit.excitation.value == 0:
        text = "no excitation: the events are a Poisson process to this fit, and a decay cannot be told."
        findings = [*findings, Finding("not_identified", text, ("excitation", "decay", "branching_ratio"))]
    elif not np.isfinite(fit.covariance).all():
        text = "the likelihood is flat or bent at its maximum: no standard errors."
        findings = [*findings, Finding("not_identified", text)]
    elif not math.isfinite(fit.stationary_rate.value):
        findings = [
            *findings,
            Finding("not_identified", "explosive: there is no stationary rate.", ("stationary_rate",)),
        ]
    return replace(fit, findings=tuple(findings))


def _with_pieces(fit: HawkesFit, data: Windows, pieces: int, allow_explosive: bool) -> HawkesFit:
    """The fit with a base rate for each piece of the windows; `fit` is that with a constant one."""
    pace = data.count / data.exposure
    none = fit.excitation.value == 0
    start = (0.9 * pace, 0.3 * pace, 3 * pace) if none else (fit.base_rate.value, fit.excitation.value, fit.decay.value)
    gaps = np.diff(data.times)
    longest = 1e3 / float(gaps[gaps > 0].min()) if (gaps > 0).any() else 1e3 * pace
    rates, zeta, rho, value, covariance = fit_pieces(data, pieces, start, longest)
    if zeta >= rho and not allow_explosive:
        raise ValueError(f"the estimates are explosive: {explosive(zeta, rho)}")
    mean = np.vstack([np.append(np.full(pieces, 1 / pieces), [0, 0]), np.eye(pieces + 2)[pieces:]])
    unused = np.full(data.durations.size, np.nan)
    whole = _result(data, unused, (float(rates.mean()), zeta, rho), value, mean @ covariance @ mean.T)
    return replace(
        whole,
        aic=2.0 * (pieces + 2) - 2.0 * value,
        residuals=Residuals(*piece_compensators(data, rates, zeta, rho)),
        base_rates=tuple(
            _positive(float(rate), math.sqrt(variance))
            for rate, variance in zip(rates, np.diag(covariance), strict=False)
        ),
        constant_p_value=float(scipy.stats.chi2.sf(max(2 * (value - fit.log_likelihood), 0.0), pieces - 1)),
    )


def _maximum(data: Windows, rates: Array, allow_explosive: bool) -> HawkesFit:
    """The maximum of the likelihood."""
    unit = data.exposure / data.count  # the mean gap is the unit of time of the search
    scaled, scaled_rates = data.scaled(unit), rates * unit

    # decays outside these bounds cannot be told from their limits
    gaps = np.diff(scaled.times)
    smallest = float(gaps[gaps > 0].min()) if (gaps > 0).any() else 1.0
    bounds = (math.log(1e-3 / scaled.durations.max()), math.log(max(1e3 / smallest, 1e3)))
    head = scaled if scaled.count <= START_EVENTS else scaled.head(START_EVENTS)
    head_rates = scaled_rates[: head.durations.size]
    starts = [math.log(decay) for decay in START_DECAYS if bounds[0] < math.log(decay) < bounds[1]]
    tried = [
        _search(head, head_rates, np.array([math.log(1.0 - START_RATIO), START_RATIO, start]), bounds)
        for start in starts
    ]
    best = min(tried, key=lambda candidate: candidate[1])[0]
    if head is not scaled:
        best = _search(scaled, scaled_rates, best, bounds)[0]
    best = _newton(scaled, scaled_rates, best)

    mu, ratio, rho = math.exp(best[0]) / unit, float(best[1]), math.exp(best[2]) / unit
    if ratio < NO_EXCITATION:
        return _no_excitation(data, rates)
    edge = 1e-3
    if not bounds[0] + edge < best[2] < bounds[1] - edge:
        limit = "zero" if best[2] < 0 else "infinity"
        raise ValueError(
            f"the likelihood of these {data.count} events has no maximum: the decay runs off to {limit} (a trend in "
            "the rate, or events closer together than the clock can tell, are no exponential kernels)"
        )
    if ratio >= 1.0 and not allow_explosive:
        raise ValueError(f"the estimates are explosive: {explosive(ratio * rho, rho)}")
    value, _, hessian = evaluate(data, rates, mu, ratio * rho, rho, second=True)
    return _result(data, rates, (mu, ratio * rho, rho), value, _inverse_information(hessian))


def _with_events(data: Windows) -> Windows:
    if data.count == 0:
        raise ValueError(
            f"all {data.durations.size} windows are empty: a rate cannot be told from no events (empty windows are "
            "allowed beside windows with events)"
        )
    return data


def _objective(point: Array, data: Windows, rates: Array) -> tuple[float, Array]:
    """Minus the log-likelihood per event and its gradient, in (log mu, n, log rho)."""
    mu, ratio, rho = math.exp(point[0]), point[1], math.exp(point[2])
    value, (d_mu, d_zeta, d_rho), _ = evaluate(data, rates, mu, ratio * rho, rho)
    slope = np.array([mu * d_mu, rho * d_zeta, rho * (d_rho + ratio * d_zeta)])
    return -value / data.count, -slope / data.count


def _search(data: Windows, rates: Array, start: Array, bounds: tuple[float, float]) -> tuple[Array, float]:
    result = scipy.optimize.minimize(
        _objective,
        start,
        args=(data, rates),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-30.0, 30.0), (0.0, 1e3), bounds],
        options={"maxiter": 200, "ftol": 1e-12, "gtol": 1e-7},
    )
    return np.asarray(result.x, dtype=float), float(result.fun)


def _newton(data: Windows, rates: Array, point: Array) -> Array:
    """Newton's method in (mu, n, rho) from a point near a maximum inside the bounds."""
    if point[1] < NO_EXCITATION:
        return point
    here = np.array([math.exp(point[0]), point[1] * math.exp(point[2]), math.exp(point[2])])
    value, gradient, hessian = evaluate(data, rates, here[0], here[1], here[2], second=True)
    for _ in range(NEWTON_STEPS):
        if not _negative_definite(hessian):
            break
        step = -np.linalg.solve(hessian, gradient)
        there = here + step
        if there.min() <= 0:
            break
        next_value, gradient, hessian = evaluate(data, rates, there[0], there[1], there[2], second=True)
        if not next_value >= value - 1e-9 * max(1.0, abs(value)):
            break
        here, value = there, next_value
        if (np.abs(step) <= 1e-11 * here).all():
            break
    return np.array([math.log(here[0]), here[1] / here[2], math.log(here[2])])


def _negative_definite(hessian: Array) -> bool:
    return bool(np.isfinite(hessian).all() and (np.linalg.eigvalsh(hessian) < 0).all())


def _inverse_information(hessian: Array) -> Array:
    if not _negative_definite(hessian):
        return np.full((3, 3), np.nan)
    return np.asarray(np.linalg.inv(-hessian), dtype=np.float64)


def _result(
    data: Windows, rates: Array, point: tuple[float, float, float], value: float, covariance: Array
) -> HawkesFit:
    mu, zeta, rho = point
    ratio = zeta / rho
    stationary = UNKNOWN
    if ratio < 1.0:
        slope = mu / (rho * (1.0 - ratio) ** 2)  # of the stationary rate in zeta
        weights = np.array([1.0 / (1.0 - ratio), slope, -ratio * slope])
        stationary = _positive(mu / (1.0 - ratio), math.sqrt(weights @ covariance @ weights))
    weights = np.array([0.0, 1.0 / rho, -ratio / rho])
    return HawkesFit(
        base_rate=_positive(mu, math.sqrt(covariance[0, 0])),
        excitation=_positive(zeta, math.sqrt(covariance[1, 1])),
        decay=_positive(rho, math.sqrt(covariance[2, 2])),
        branching_ratio=_positive(ratio, math.sqrt(weights @ covariance @ weights)),
        stationary_rate=stationary,
        covariance=covariance,
        events=data.count,
        windows=data.durations.size,
        exposure=data.exposure,
        log_likelihood=value,
        aic=6.0 - 2.0 * value,
        residuals=_residuals(data, rates, mu, zeta, rho),
        poisson=_fit_poisson(data),
    )


def _no_excitation(data: Windows, rates: Array) -> HawkesFit:
    """The maximum on the boundary: a Poisson process."""
    none = Estimate(0.0, math.nan, 0.0, math.nan)
    poisson = _fit_poisson(data)
    covariance = np.full((3, 3), np.nan)
    covariance[0, 0] = poisson.rate.stderr**2
    return HawkesFit(
        base_rate=poisson.rate,
        excitation=none,
        decay=UNKNOWN,
        branching_ratio=none,
        stationary_rate=poisson.rate,
        covariance=covariance,
        events=data.count,
        windows=data.durations.size,
        exposure=data.exposure,
        log_likelihood=poisson.log_likelihood,
        aic=poisson.aic,
        residuals=poisson.residuals,
        poisson=poisson,
    )


def _fit_poisson(data: Windows) -> PoissonFit:
    rate = data.count / data.exposure
    value = data.count * (math.log(rate) - 1.0)
    sample = _residuals(data, np.full(data.durations.size, np.nan), rate, 0.0, 1.0)
    return PoissonFit(_positive(rate, rate / math.sqrt(data.count)), value, 2.0 - 2.0 * value, sample)


def _positive(value: float, stderr: float) -> Estimate:
    """A positive number with the interval of its logarithm."""
    factor = math.exp(min(QUANTILE * stderr / value, 700.0)) if value > 0 else math.nan
    return Estimate(value, stderr, value / factor, value * factor)


# Market orders of a level-1 tape


def fit_market_orders(
    path: Paths,
    *,
    allow_explosive: bool = False,
    time_unit: str | None = None,
    selection: Selection | None = None,
) -> dict[str, HawkesFit]:
    """Fit the market orders of a level-1 tape, each side by itself; the whole tape is one window.

    The trades of one aggressor side at one time stamp are one order (`mmgym.tapes.level1.market_orders`). Where the
    tape has gaps, its sessions are the windows.

    Parameters
    ----------
    path : str, Path or sequence of them
        The tape: files of any format of `mmgym.tapes`.
    allow_explosive : bool
        See `fit_hawkes`.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Unit of ``time_s``. By default seconds, and what looks like another unit is refused.
    selection : Selection, optional
        What is used of the files; all by default.

    Returns
    -------
    dict of str to HawkesFit
        ``"buy"`` and ``"sell"``, per second.

    Raises
    ------
    ValueError
        If the tape breaks its format, or a side cannot be fitted.
    """
    checked = check_level1(path, selection, time_unit=time_unit)
    orders = checked.orders
    bounds = np.array([[part["time_s"].iloc[0], part["time_s"].iloc[-1]] for part in checked.sessions])
    if not (bounds[:, 1] > bounds[:, 0]).all():
        raise ValueError(f"{checked.name}: all events are at one time; a tape needs events at two times at least")
    fits = {}
    for side in ("buy", "sell"):
        times = orders.loc[orders["side"] == side, "time_s"].to_numpy(dtype=float)
        windows = [times[(times >= start) & (times <= end)] - start for start, end in bounds]
        try:
            fit = fit_hawkes(windows, bounds[:, 1] - bounds[:, 0], allow_explosive=allow_explosive, unit="s")
        except ValueError as error:
            raise ValueError(f"{checked.name}: {side}: {error}") from error
        fits[side] = replace(fit, findings=(*checked.findings, *fit.findings))
    return fits
