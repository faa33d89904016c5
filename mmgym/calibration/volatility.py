r"""Volatility of a mid price that is rounded to ticks and bounces between bid and ask: two scales, and a signature.

The mid that is seen is a Brownian motion plus a noise that does not last. Its mean squared change over :math:`k`
samples, which are :math:`d_k` seconds apart on average, is

.. math:: V_k = \sigma^2 d_k + 2 \omega^2,

:math:`\omega` the standard deviation of the noise: :math:`\sqrt{V_k / d_k}` over :math:`d_k` is the *signature plot*,
which falls to the volatility. Two scales :math:`J < K` tell both (Zhang, Mykland & Aït-Sahalia 2005; Aït-Sahalia,
Mykland & Zhang 2011 for noise that lasts up to :math:`J`), all pairs of samples taken:

.. math:: \sigma^2 = \frac{V_K - V_J}{d_K - d_J}, \qquad \omega^2 = \frac{V_J - \sigma^2 d_J}{2}.

- :math:`J` is so long that errors of rounding to a grid :math:`g` are independent: :math:`\sigma \sqrt{d_J} \ge g/2`,
  where their correlation is below 1 %.
- :math:`K = J (1 + 2.1 R^{2/3})`, :math:`2 J` at least, with :math:`R = \omega^2 / (\sigma^2 d_J)`: the least variance.
- The interval is that of the sums over 30 blocks of time (`mmgym.calibration.block_intervals`), on the scale of the
  logarithm. It holds changes of the volatility over time.

Without noise the standard error is 1.7 times that of the plain estimate at the same interval. A record of fewer than
60 changes cannot pay that: there the plain estimate is given, with a warning.

References
----------
Zhang, L., Mykland, P. A. and Aït-Sahalia, Y. (2005). A tale of two time scales. *Journal of the American Statistical
Association* 100(472).

Aït-Sahalia, Y., Mykland, P. A. and Zhang, L. (2011). Ultra high frequency volatility estimation with dependent
microstructure noise. *Journal of Econometrics* 160(1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.block_intervals import BLOCKS, FEWEST_BLOCKS, LEVEL, Estimate, block_sums, student
from mmgym.tapes.findings import Finding
from mmgym.tapes.level1 import sample_mid

Array = NDArray[np.float64]

FIRST_INTERVAL = 1.0  # s between mids, where none is asked for
MOST_SAMPLES = 10_000_000
SPREAD_OF_AGES = 4.5  # standard deviations of a mid's age in an interval: a tenth more variance of its square
FEWEST_CHANGES = 60  # for two scales
LONGEST_SCALE = 20  # changes over the longer scale
PILOT = 10  # samples of the longer scale with which the search begins
SIGNATURE = (1, 2, 3, 5)


@dataclass(frozen=True)
class BrownianFit:
    """Drift and volatility of a mid price.

    Attributes
    ----------
    volatility, drift : Estimate
        In price per square root of a second, and price per second.
    increments : int
        Price changes used, at the sampling interval.
    duration : float
        Their total time, seconds.
    excess_kurtosis : float
        Of the standardised changes; 0 under Brownian motion.
    noise : float
        Standard deviation of the noise of one mid, price; NaN where it is not told from the volatility.
    scales : tuple of float or None
        Seconds of the shorter and the longer scale; None for the plain estimate.
    signature : pandas.DataFrame or None
        ``seconds`` between mids, plain ``volatility`` at that interval with its 95 % interval ``lower, upper``.
    """

    volatility: Estimate
    drift: Estimate
    increments: int
    duration: float
    excess_kurtosis: float
    noise: float = math.nan
    scales: tuple[float, float] | None = None
    signature: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def sentence(self) -> str:
        """What the summary of a calibration says."""
        text = (
            f"Volatility {self.volatility.value:.4g} +- {self.volatility.stderr:.2g} price/sqrt(s) from "
            f"{self.increments} price changes over {self.duration:.5g} s"
        )
        if self.scales is not None:
            text += (
                f", from two scales of {self.scales[0]:.4g} and {self.scales[1]:.4g} s; noise of a mid "
                f"{self.noise:.3g} (rounding and bid-ask bounce)"
            )
        return f"{text}. Their excess kurtosis is {self.excess_kurtosis:.2g} (0 under the model)."


@dataclass(frozen=True)
class _Pairs:
    """Squared changes of a mid without drift over so many samples."""

    lag: int
    place: NDArray[np.intp]  # of the first of two samples
    squares: Array
    seconds: Array

    @property
    def mean_square(self) -> float:
        return float(self.squares.mean())

    @property
    def mean_seconds(self) -> float:
        return float(self.seconds.mean())


def _pairs(time: Array, level: Array, label: Array, lag: int) -> _Pairs:
    place = np.flatnonzero(label[lag:] == label[:-lag])
    return _Pairs(lag, place, (level[place + lag] - level[place]) ** 2, time[place + lag] - time[place])


def fit_mid(time: ArrayLike, mid: ArrayLike, label: ArrayLike | None = None, *, grid: float = 0.0) -> BrownianFit:
    """Fit drift and volatility of a Brownian motion that is seen with noise (the module's docstring has it in full).

    Parameters
    ----------
    time : array_like, shape (n,)
        Seconds, strictly rising within a stretch.
    mid : array_like, shape (n,)
        Mid prices at these times.
    label : array_like, shape (n,), optional
        Label of the stretch that a row belongs to; no change is taken across two. One stretch by default.
    grid : float
        Grid to which the mids are rounded, price; 0, the default, for none.

    Returns
    -------
    BrownianFit
        The plain one (`fit_brownian`) where there are fewer than 60 changes, or no two without a gap between them.

    Raises
    ------
    ValueError
        As `fit_brownian`; or if the mids do not spread with time: all their changes are noise.
    """
    plain = fit_brownian(time, mid, label)
    if plain.increments < FEWEST_CHANGES:
        return plain
    seconds = np.asarray(time, dtype=float)
    level = np.asarray(mid, dtype=float) - plain.drift.value * seconds
    stretch = np.zeros(seconds.shape) if label is None else np.asarray(label, dtype=float)
    longest = int(np.unique(stretch, return_counts=True)[1].max()) - 1  # changes without a gap
    if longest < 2:
        return plain
    most = min(max(plain.increments // LONGEST_SCALE, 2), longest)
    short, long = _scales(seconds, level, stretch, most, grid)
    square = (long.mean_square - short.mean_square) / (long.mean_seconds - short.mean_seconds)
    if not square > 0:
        raise ValueError(
            f"the mid price does not spread with time: its changes over {long.mean_seconds:.4g} s are no larger than "
            f"those over {short.mean_seconds:.4g} s; a longer record, or a longer volatility_interval, is needed"
        )
    noise = max((short.mean_square - square * short.mean_seconds) / 2, 0.0)
    error, blocks = _slope_error(short, long, square, noise, plain.increments)
    volatility = math.sqrt(square)
    stderr = error / (2 * volatility)
    factor = math.exp(min(student(blocks - 1) * stderr / volatility, 700.0))
    drift_stderr = volatility / math.sqrt(plain.duration)
    length = drift_stderr * student(plain.increments - 1)
    drift = plain.drift.value
    return BrownianFit(
        volatility=Estimate(volatility, stderr, volatility / factor, volatility * factor),
        drift=Estimate(drift, drift_stderr, drift - length, drift + length),
        increments=plain.increments,
        duration=plain.duration,
        excess_kurtosis=plain.excess_kurtosis,
        noise=math.sqrt(noise),
        scales=(short.mean_seconds, long.mean_seconds),
        signature=_signature(seconds, level, stretch, plain.increments, most),
    )


def _scales(time: Array, level: Array, label: Array, most: int, grid: float) -> tuple[_Pairs, _Pairs]:
    """The two scales, the longer one of at most so many samples."""
    shorter, longer = 1, min(PILOT, most)
    first, second = (_pairs(time, level, label, lag) for lag in (shorter, longer))
    for _ in range(3):
        rate = (second.mean_square - first.mean_square) / (second.mean_seconds - first.mean_seconds)
        step = first.mean_seconds / first.lag
        if not rate > 0:  # all noise, so far
            shorter, longer = min(2 * shorter, most - 1), min(2 * longer, most)
        else:
            shorter = min(max(math.ceil(grid**2 / (4 * rate * step) - 1e-9), 1), most - 1)
            first = _pairs(time, level, label, shorter)
            ratio = max((first.mean_square / (rate * first.mean_seconds) - 1) / 2, 0.0)
            longer = min(max(math.ceil(shorter * (1 + 2.1 * ratio ** (2 / 3))), 2 * shorter), most)
        first, second = (_pairs(time, level, label, lag) for lag in (shorter, max(longer, shorter + 1)))
    return first, second


def _slope_error(short: _Pairs, long: _Pairs, square: float, noise: float, number: int) -> tuple[float, int]:
    """Standard error of the variance per second, and the blocks that it comes from."""
    blocks = min(BLOCKS, max(number // (2 * long.lag), FEWEST_BLOCKS))
    last = max(int(short.place.max()), int(long.place.max())) + 1
    sums = np.zeros(blocks)
    for sign, pairs in ((-1, short), (1, long)):
        surprise = (pairs.squares - square * pairs.seconds - 2 * noise) / pairs.squares.size
        sums += sign * block_sums(pairs.place * blocks // last, surprise, blocks)
    spread = float(((sums - sums.mean()) ** 2).sum()) * blocks / (blocks - 1)
    return math.sqrt(spread) / (long.mean_seconds - short.mean_seconds), blocks


def _signature(time: Array, level: Array, label: Array, number: int, most: int) -> pd.DataFrame:
    """Plain volatility over the interval between mids."""
    rows = []
    lags = [digit * 10**power for power in range(7) for digit in SIGNATURE]
    for lag in (lag for lag in lags if lag <= max(most, 1)):
        pairs = _pairs(time, level, label, lag)
        blocks = min(BLOCKS, max(number // (2 * lag), FEWEST_BLOCKS))
        surprise = pairs.squares - pairs.mean_square / pairs.mean_seconds * pairs.seconds
        sums = block_sums(pairs.place * blocks // (int(pairs.place.max()) + 1), surprise, blocks)
        error = math.sqrt(float(sums @ sums) * blocks / (blocks - 1)) / float(pairs.squares.sum()) / 2
        value = math.sqrt(pairs.mean_square / pairs.mean_seconds)
        factor = math.exp(min(student(blocks - 1) * error, 700.0))
        rows.append([pairs.mean_seconds, value, value / factor, value * factor])
    return pd.DataFrame(rows, columns=["seconds", "volatility", "lower", "upper"])


def draw_signature(fit: BrownianFit, panel: Any) -> None:
    """Draw the signature plot, and the volatility from two scales with its interval."""
    if fit.signature is not None:
        table = fit.signature
        errors = [table["volatility"] - table["lower"], table["upper"] - table["volatility"]]
        panel.errorbar(
            table["seconds"], table["volatility"], errors, fmt="o", markersize=4, capsize=2, label="plain, 95 %"
        )
        panel.set_xscale("log")
    estimate = fit.volatility
    panel.axhline(estimate.value, color="tab:orange", label=f"estimate {estimate.value:.3g}")
    panel.axhspan(estimate.lower, estimate.upper, color="tab:orange", alpha=0.2, linewidth=0)
    for scale in fit.scales or ():
        panel.axvline(scale, color="tab:gray", linestyle=":", linewidth=1)
    panel.set_ylim(bottom=0)
    panel.set_title("signature plot (dotted: the two scales)")
    panel.set_xlabel("seconds between mids")
    panel.set_ylabel("volatility, price/sqrt(s)")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")


def sampled_volatility(
    quotes: Sequence[pd.DataFrame],
    bounds: ArrayLike,
    interval: float | None,
    *,
    grid: float,
    required: bool = False,
) -> tuple[BrownianFit | None, float, list[Finding]]:
    """Volatility and drift of sampled mids.

    Parameters
    ----------
    quotes : sequence of pandas.DataFrame
        `mmgym.tapes.level1.best_quotes` of each session.
    bounds : array_like, shape (sessions, 2)
        First and last time of each.
    interval : float, optional
        Seconds between the mids. By default one second, more where quotes are rare (4.5 standard deviations of the age
        of the mid).
    grid : float
        Tick.
    required : bool
        Whether a mid that tells no volatility is an error.

    Returns
    -------
    fit : BrownianFit or None
        None where the sampled mid does not move off a line, or does not spread with time.
    interval : float
        Seconds between the mids.
    findings : list of Finding

    Raises
    ------
    ValueError
        If the interval asks for more than ten million samples, or a required volatility cannot be fitted.
    """
    bounds = np.asarray(bounds, dtype=float)
    seconds = float(np.diff(bounds, axis=1).sum())
    step = _own_interval(quotes, seconds) if interval is None else interval
    if seconds / step > MOST_SAMPLES:
        raise ValueError(
            f"volatility_interval = {step:g} s is not allowed: over {seconds:.6g} s it must be "
            f"{seconds / MOST_SAMPLES:.2g} s or more"
        )
    parts = []
    for number, (own, (start, end)) in enumerate(zip(quotes, bounds, strict=True)):
        start = max(float(start), float(own["time_s"].iloc[0]))
        time, mid = sample_mid(own, start=start, end=float(end), interval=step)
        parts.append((time, mid, np.full(time.size, float(number))))
    time, mid, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    try:
        fit = fit_mid(time, mid, label, grid=grid)
    except ValueError as error:
        if required:
            raise ValueError(f"sampled every {step:g} s: {error}") from error
        return None, step, []
    return fit, step, _too_few(fit)


def _own_interval(quotes: Sequence[pd.DataFrame], seconds: float) -> float:
    """Sampled mids are old: their ages must not vary beside the interval."""
    gaps = np.concatenate([np.diff(own["time_s"].to_numpy(dtype=float)) for own in quotes])
    if not (gaps.size and gaps.sum() > 0):
        return FIRST_INTERVAL
    age, square = (gaps**2).sum() / 2 / gaps.sum(), (gaps**3).sum() / 3 / gaps.sum()
    longest = max(seconds / FEWEST_CHANGES, FIRST_INTERVAL)
    wanted = _round_up(SPREAD_OF_AGES * math.sqrt(max(square - age**2, 0.0)))
    return float(min(max(wanted, FIRST_INTERVAL), longest))


def recorded_volatility(time: ArrayLike, mid: ArrayLike, label: ArrayLike) -> tuple[BrownianFit, list[Finding]]:
    """Volatility and drift of mids as they are recorded; their grid is the smallest change.

    Raises
    ------
    ValueError
        See `fit_mid`.
    """
    level = np.unique(np.asarray(mid, dtype=float))
    steps = np.diff(level)
    steps = steps[steps > 1e-9 * max(float(np.abs(level).max()), 1e-300)]
    fit = fit_mid(time, mid, label, grid=float(steps.min()) if steps.size else 0.0)
    return fit, _too_few(fit)


def _too_few(fit: BrownianFit) -> list[Finding]:
    if fit.scales is not None:
        return []
    text = (
        f"{fit.increments} changes of the mid are too few to tell its noise ({FEWEST_CHANGES} are needed): the "
        "volatility holds what rounding and bid-ask bounce add."
    )
    return [Finding("noise", text, ("volatility",))]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= value * (1 - 1e-9))


def fit_brownian(time: ArrayLike, mid: ArrayLike, episode: ArrayLike | None = None) -> BrownianFit:
    """Fit drift and volatility of an arithmetic Brownian motion, at any spacing of the times.

    With changes ``x_i`` over ``t_i`` seconds: drift ``sum x / sum t``, volatility squared
    ``sum((x - drift t)^2 / t) / (n - 1)``; the intervals (chi-square and Student) are exact.

    Parameters
    ----------
    time : array_like, shape (n,)
        Seconds, strictly rising within an episode.
    mid : array_like, shape (n,)
        Mid price at these times.
    episode : array_like, shape (n,), optional
        Label of the stretch a row belongs to; no change is taken across two stretches. One stretch by default.

    Returns
    -------
    BrownianFit

    Raises
    ------
    ValueError
        If times do not rise, values are not finite, the mid never moves, or fewer than two changes are left.
    """
    time, mid = np.asarray(time, dtype=float), np.asarray(mid, dtype=float)
    label = np.zeros(time.shape) if episode is None else np.asarray(episode)
    if time.ndim != 1 or not time.shape == mid.shape == label.shape or not np.isfinite([time, mid]).all():
        raise ValueError(f"time and mid need one shape (n,) and finite values, got shapes {time.shape} and {mid.shape}")
    within = label[1:] == label[:-1]
    seconds, change = np.diff(time)[within], np.diff(mid)[within]
    number = seconds.size
    if number < 2:
        raise ValueError(f"the volatility needs two price changes at least, got {number}")
    if not (seconds > 0).all():
        raise ValueError("time must rise strictly from one mid price to the next")
    duration = float(seconds.sum())
    drift = float(change.sum()) / duration
    normal = (change - drift * seconds) / np.sqrt(seconds)
    squares = float(normal @ normal)
    if not squares > 0:
        raise ValueError("the mid price never moves off its drift: the volatility needs changes that differ")
    freedom = number - 1
    volatility = math.sqrt(squares / freedom)
    tail = (1 - LEVEL) / 2
    lower, upper = (math.sqrt(squares / float(scipy.stats.chi2.isf(q, freedom))) for q in (tail, 1 - tail))
    drift_stderr = volatility / math.sqrt(duration)
    reach = drift_stderr * float(scipy.stats.t.isf(tail, freedom))
    return BrownianFit(
        volatility=Estimate(volatility, volatility / math.sqrt(2 * freedom), lower, upper),
        drift=Estimate(drift, drift_stderr, drift - reach, drift + reach),
        increments=number,
        duration=duration,
        excess_kurtosis=float((normal**4).mean() / (normal**2).mean() ** 2) - 3.0,
    )
