"""What is wrong with a record beyond what `mmgym.tapes.checker` finds on a tape: sizes, noise, dispersion, own quotes.

======================= ===========================================================================================
finding                 how it is told, and what is done
======================= ===========================================================================================
gaps, coarse_clock      as on a tape, in files of own quotes and in windows of point processes
own_size                own orders far larger than those on the tape: an error where nothing counts
noise                   neighbouring changes of the mid are opposed (bid-ask bounce): a wider sampling interval
overdispersed           counts (squared changes of the mid) in stretches of time vary more than the model has it:
                        standard errors and intervals are widened by the root of the measured ratio
not_identified          the data leave a number open: its cells are empty
======================= ===========================================================================================

The thresholds aim at a chance of about 1e-5 for each finding that a clean record is warned of.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mmgym.calibration.exponential import (
    LEVEL,
    SMALLEST_EXPECTED_COUNT,
    WINDOWS,
    BrownianFit,
    Estimate,
    ExponentialFit,
    fit_brownian,
)
from mmgym.calibration.hawkes_likelihood import Windows
from mmgym.tapes.clocks import clock_grid
from mmgym.tapes.findings import Finding, described
from mmgym.tapes.gaps import FEWEST_PAUSES, find_gaps, gap_finding
from mmgym.tapes.level1 import sample_mid
from mmgym.tapes.text_files import require
from mmgym.tapes.units import DAY

Array = NDArray[np.float64]

FALSE_ALARM = 1e-5  # of one test on a clean record

SMALLEST_KERNEL_STEP, LARGEST_KERNEL_STEP = 0.02, 0.2  # decay in a step of the clock: warned of, refused
FEWEST_ORDERS = 20
LARGE_OWN_SIZE = 10.0  # in mean order sizes
AS_LARGE = 0.01  # share of the orders that must be as large as an own one that is large
FIRST_INTERVAL = 1.0  # s between mids, where none is asked for
MOST_SAMPLES = 10_000_000
SPREAD_OF_AGES = 4.5  # standard deviations of a mid's age in an interval: a tenth more variance of its square
NOISE_BIAS = 0.3  # left in the variance by a chosen interval, in standard errors
NOISE_CHOICE, NOISE_WARNING = -2.5, float(stats.norm.ppf(FALSE_ALARM))  # scores of the first autocovariance
SHORT_EXPOSURE = 0.01  # of the time to the next row
FEWEST_CHANGES = 30
FEWEST_SQUARES = 300  # changes of the mid before their dispersion is measured


# How findings are shown


def marked(table: pd.DataFrame, findings: Sequence[Finding], names: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of estimates with a column ``warning``, the names of the findings that concern each; none, no column.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per estimate.
    findings : sequence of Finding
    names : sequence of str, optional
        Names of the estimates, by default the index.
    """
    if not findings:
        return table
    rows = list(table.index) if names is None else names
    cells = [", ".join(dict.fromkeys(item.name for item in findings if item.concerns(name))) for name in rows]
    return table.assign(warning=cells)


def draw_findings(figure: Any, findings: Sequence[Finding], width: int = 150) -> None:
    """Write the findings below a matplotlib figure of constrained layout."""
    if findings:
        text = "\n".join(textwrap.fill(line, width) for line in described(findings))
        figure.supxlabel(text, color="tab:red", fontsize=8, x=0.01, ha="left")


def require_finite(arguments: dict[str, Any]) -> None:
    """Refuse arguments of an environment that hold a number that is not finite.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, str | bool | None) and not np.isfinite(np.asarray(value, dtype=float)).all():
            raise ValueError(f"{name} = {value} is not allowed: only finite estimates make an environment")


def json_value(value: Any) -> Any:
    """The value with NaN, also inside lists and dicts, replaced by None."""
    if isinstance(value, dict):
        return {name: json_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def steps_of_a_kernel(decay: Estimate, gaps: ArrayLike, largest: float, unit: str) -> tuple[float, str]:
    """Decay of a Hawkes kernel in one step of the clock, 0 where that is too little to matter, and what to say of it.

    Raises
    ------
    ValueError
        If the clock is too coarse to tell the kernel.
    """
    step = clock_grid(gaps, largest)
    share = decay.value * step
    if not (share > SMALLEST_KERNEL_STEP and share > decay.stderr / decay.value / 4):
        return 0.0, ""
    text = f"time stamps are multiples of {step:g} {unit}, the kernel decays at {decay.value:.4g} per {unit}, within "
    text += f"{1 / share:.2g} steps"
    if share > LARGEST_KERNEL_STEP:
        raise ValueError(
            f"coarse clock: {text}; no right number can be given, a clock of "
            f"{SMALLEST_KERNEL_STEP / decay.value:.1g} {unit} or finer is needed"
        )
    return share, f"{text}: decay and excitation come out too low, their intervals reach up by as much."


def raised(estimate: Estimate, share: float) -> Estimate:
    """An estimate that may be too low by a share of it."""
    reach = share * estimate.value
    return Estimate(estimate.value, math.hypot(estimate.stderr, reach), estimate.lower, estimate.upper * (1 + share))


# Sizes


def check_own_size(
    name: str, own_size: float, orders: pd.DataFrame, counts: ArrayLike, *, needed: bool
) -> list[Finding]:
    """Whether own orders are of the size of those on the tape.

    Parameters
    ----------
    name : str
        Of the tape.
    own_size : float
    orders : pandas.DataFrame
        Market orders.
    counts : array_like
        What the proxy counted in all: side, quote.
    needed : bool
        Whether the rates of the proxy are the ones that are passed on.

    Raises
    ------
    ValueError
        If hardly an order is so large and the rates are needed.
    """
    number = len(orders)
    if number == 0:
        return []
    mean, as_large = float(orders["size"].mean()), int((orders["size"] >= own_size).sum())
    none = np.asarray(counts).min() == 0
    if not none and own_size <= LARGE_OWN_SIZE * mean:
        return []
    text = (
        f"own_size = {own_size:g} is {own_size / mean:.3g} times the mean market order of the tape ({mean:.3g}), "
        f"{as_large} of {number} are as large"
    )
    if needed and number >= FEWEST_ORDERS and (none or as_large < max(AS_LARGE * number, 5)):
        raise ValueError(
            f"{name}: own size: {text}; no rate can be given: own_size is in the unit of the tape's sizes, "
            f"{LARGE_OWN_SIZE * mean:.3g} at most is allowed here"
        )
    return [Finding("own_size", f"{text}: is it in the unit of the tape's sizes?", ("proxy",))]


# Volatility


def sampled_volatility(
    quotes: Sequence[pd.DataFrame], bounds: ArrayLike, interval: float | None, *, required: bool = False
) -> tuple[BrownianFit | None, float, list[Finding]]:
    """Volatility and drift of sampled mids, free of the noise of bid and ask.

    Parameters
    ----------
    quotes : sequence of pandas.DataFrame
        `best_quotes` of each session.
    bounds : array_like, shape (sessions, 2)
        First and last time of each.
    interval : float, optional
        Seconds between the mids. By default one second, more where quotes are rare (4.5 standard deviations of the age
        of the mid), and more where neighbouring changes are opposed: so many that the noise left in the variance is 0.3
        of its standard error.
    required : bool
        Whether a mid that does not move is an error.

    Returns
    -------
    fit : BrownianFit or None
        None where the sampled mid does not move off a line.
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
    first = FIRST_INTERVAL if interval is None else interval
    if interval is None:  # sampled mids are old: their ages must not vary beside the interval
        gaps = np.concatenate([np.diff(own["time_s"].to_numpy(dtype=float)) for own in quotes])
        if gaps.size and gaps.sum() > 0:
            age, square = (gaps**2).sum() / 2 / gaps.sum(), (gaps**3).sum() / 3 / gaps.sum()
            longest = max(seconds / FEWEST_CHANGES, first)
            first = min(max(_round_up(SPREAD_OF_AGES * math.sqrt(square - age**2)), first), longest)
    if seconds / first > MOST_SAMPLES:
        raise ValueError(
            f"volatility_interval = {first:g} s is not allowed: over {seconds:.6g} s it must be "
            f"{seconds / MOST_SAMPLES:.2g} s or more"
        )

    def sample(step: float) -> tuple[Array, Array, Array]:
        parts = []
        for number, (own, (start, end)) in enumerate(zip(quotes, bounds, strict=True)):
            start = max(float(start), float(own["time_s"].iloc[0]))
            time, mid = sample_mid(own, start=start, end=float(end), interval=step)
            parts.append((time, mid, np.full(time.size, float(number))))
        time, mid, label = (np.concatenate(column) for column in zip(*parts, strict=True))
        return time, mid, label

    words = "price/sqrt(s), the mid sampled every {:g} s,"
    fit, chosen, findings = _without_noise(sample, first, interval is not None, words)
    if fit is None and required:
        try:
            fit_brownian(*sample(first))
        except ValueError as error:
            raise ValueError(f"sampled every {first:g} s: {error}") from error
        raise ValueError(f"sampled every {first:g} s: the mid price moves along a line, no volatility can be told")
    return fit, chosen, findings


def recorded_volatility(time: ArrayLike, mid: ArrayLike, label: ArrayLike) -> tuple[BrownianFit, list[Finding]]:
    """Volatility and drift of mids as they are recorded, or of every so many of them where they are noisy.

    Raises
    ------
    ValueError
        See `mmgym.calibration.exponential.fit_brownian`.
    """
    time, mid, label = (np.asarray(values, dtype=float) for values in (time, mid, label))

    def sample(step: float) -> tuple[Array, Array, Array]:
        begins = np.flatnonzero(np.diff(label, prepend=np.nan) != 0)
        place = np.arange(label.size) - np.repeat(begins, np.diff(begins, append=label.size))
        kept = place % int(step) == 0
        return time[kept], mid[kept], label[kept]

    fit, _, findings = _without_noise(sample, 1.0, False, "every {:g}th row is taken", warn=True)
    return fit if fit is not None else fit_brownian(time, mid, label), findings


def _without_noise(
    sample: Callable[[float], tuple[Array, Array, Array]], first: float, asked: bool, words: str, warn: bool = False
) -> tuple[BrownianFit | None, float, list[Finding]]:
    """Fit at an interval free of noise; at the one asked for, warned of, with an interval that holds both."""
    score, wanted = _noise(*sample(first), first)
    chosen = first
    while wanted > chosen:
        chosen = wanted
        wanted = _noise(*sample(chosen), chosen)[1]
    fit = _brownian(*sample(chosen))
    findings = []
    if chosen > first and (asked or warn) and score < NOISE_WARNING and fit is not None:
        text = "neighbouring changes of the mid are opposed (bid-ask noise), which "
        if asked:
            plain, free = _brownian(*sample(first)), fit.volatility
            assert plain is not None
            both = replace(
                plain.volatility,
                stderr=max(plain.volatility.stderr, free.stderr, abs(plain.volatility.value - free.value)),
                lower=min(plain.volatility.lower, free.lower),
                upper=max(plain.volatility.upper, free.upper),
            )
            text += (
                f"makes the volatility too high, {plain.volatility.value:.4g}; {free.value:.4g} +- {free.stderr:.2g} "
                f"{words.format(chosen)} is free of it. The interval holds both."
            )
            fit, chosen = replace(plain, volatility=both), first
        else:
            text += f"makes the volatility too high: {words.format(chosen)}."
        findings.append(Finding("noise", text, ("volatility",)))
    elif asked:
        fit, chosen = _brownian(*sample(first)), first
    if fit is not None:
        fit, wide = _widened_brownian(fit)
        findings += wide
    return fit, chosen, findings


def _brownian(time: Array, mid: Array, label: Array) -> BrownianFit | None:
    change = np.diff(mid)[label[1:] == label[:-1]]
    if change.size < 2 or not np.ptp(change / np.diff(time)[label[1:] == label[:-1]]) > 0:
        return None
    return fit_brownian(time, mid, label)


def _noise(time: Array, mid: Array, label: Array, interval: float) -> tuple[float, float]:
    """Score of the first autocovariance of the changes, and the interval that is free of noise."""
    within = label[1:] == label[:-1]
    change, seconds = np.where(within, np.diff(mid), 0.0), np.diff(time)[within]
    number = int(within.sum())
    products = change[1:] * change[:-1]
    spread = math.sqrt(float(products @ products))
    if number < FEWEST_CHANGES or spread == 0:
        return 0.0, interval
    covariance = float(products.sum())
    score = covariance / spread
    widest = interval * (number // FEWEST_CHANGES)
    if score > NOISE_CHOICE or widest <= interval:
        return score, interval
    duration = float(seconds.sum())
    noise, variance = -covariance / number, (float(change @ change) + 2 * covariance) / duration
    step = duration / number  # seconds of one interval
    if variance <= 0:
        return score, min(4 * interval, widest)
    needed = (2 * noise / (variance * NOISE_BIAS) * math.sqrt(duration / 2)) ** (2 / 3) / step
    return score, float(min(max(_round_up(needed), 2) * interval, widest))


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= value * (1 - 1e-9))


# Overdispersion


def excessive(dispersion: float, freedom: int) -> bool:
    """Whether a dispersion (a chi-square statistic per degree of freedom) is beyond chance."""
    return freedom > 0 and dispersion > stats.chi2.isf(FALSE_ALARM, freedom) / freedom


def widened(estimate: Estimate, factor: float, freedom: int, *, logarithm: bool = False) -> Estimate:
    """An estimate with a standard error `factor` times as large, measured on so many degrees of freedom."""
    stderr = estimate.stderr * factor
    reach = float(stats.t.isf((1 - LEVEL) / 2, freedom)) * stderr
    if not logarithm:
        return Estimate(estimate.value, stderr, estimate.value - reach, estimate.value + reach)
    ratio = math.exp(min(reach / estimate.value, 700.0)) if estimate.value > 0 else 1.0
    return Estimate(estimate.value, stderr, estimate.value / ratio, estimate.value * ratio)


def widened_rate(fit: ExponentialFit, minimum_depth: float, label: str) -> tuple[ExponentialFit, list[Finding]]:
    """Rates with the measured dispersion in their standard errors, and the finding.

    Parameters
    ----------
    fit : ExponentialFit
    minimum_depth : float
        Depth at which the counts enter, where rate and decay are independent.
    label : str
        ``"bid"`` or ``"ask"``.
    """
    freedom = WINDOWS - 1
    if not (math.isfinite(fit.dispersion) and excessive(fit.dispersion, freedom)):
        return fit, []
    stderr = math.sqrt(fit.dispersion / fit.fills + (minimum_depth * fit.fill_decay.stderr) ** 2)
    log_rate = widened(replace(fit.log_fill_rate, stderr=stderr), 1.0, freedom)
    rate = Estimate(
        fit.fill_rate.value,
        fit.fill_rate.value * stderr,
        *(math.exp(min(value, 700.0)) for value in (log_rate.lower, log_rate.upper)),
    )
    text = (
        f"{label}: counts in {WINDOWS} stretches of time vary {fit.dispersion:.3g} times as much as Poisson counts; "
        "standard error and interval of the rate hold that."
    )
    finding = Finding("overdispersed", text, (f"fill_rate_{label}", f"log_fill_rate_{label}"))
    return replace(fit, fill_rate=rate, log_fill_rate=log_rate), [finding]


def _widened_brownian(fit: BrownianFit) -> tuple[BrownianFit, list[Finding]]:
    freedom = WINDOWS - 1
    if fit.increments < FEWEST_SQUARES or not excessive(fit.dispersion, freedom):
        return fit, []
    factor = math.sqrt(fit.dispersion)
    text = (
        f"squared changes of the mid vary {fit.dispersion:.3g} times as much over time as under Brownian motion; the "
        f"standard error and the interval of the volatility are {factor:.3g} times as wide."
    )
    wide = widened(fit.volatility, factor, freedom, logarithm=True)
    plain = fit.volatility
    wide = replace(wide, lower=min(plain.lower, wide.lower), upper=max(plain.upper, wide.upper))
    return replace(fit, volatility=wide), [Finding("overdispersed", text, ("volatility",))]


def unhidden_rate(fit: ExponentialFit, hidden: float) -> ExponentialFit:
    """Rates corrected for the share of the events that a coarse clock hides, and intervals widened by as much."""
    shift, log, decay = -math.log1p(-hidden), fit.log_fill_rate, fit.fill_decay
    stderr = math.hypot(log.stderr, hidden)
    log = Estimate(log.value + shift, stderr, log.lower + shift - hidden, log.upper + shift + hidden)
    value = math.exp(log.value)
    reach = hidden * abs(decay.value)
    return replace(
        fit,
        fill_rate=Estimate(value, value * stderr, math.exp(log.lower), math.exp(log.upper)),
        log_fill_rate=log,
        fill_decay=Estimate(decay.value, math.hypot(decay.stderr, reach), decay.lower - reach, decay.upper + reach),
    )


def spread_of_counts(counts: ArrayLike, seconds: ArrayLike, pieces: ArrayLike) -> tuple[float, int]:
    """Variance of counts in stretches of time over that of Poisson counts, and its degrees of freedom.

    Parameters
    ----------
    counts, seconds : array_like, shape (K, n)
        Events of n rates, and the time in which they could happen, in each stretch.
    pieces : array_like of int, shape (K,)
        Piece of time that a stretch belongs to; rates are constant in a piece.

    Returns
    -------
    dispersion : float
        Pearson's statistic of the counts of all rates together, stretches pooled until each expects five events, per
        degree of freedom; NaN where there is none.
    freedom : int
    """
    counts, seconds, pieces = np.asarray(counts, dtype=float), np.asarray(seconds, dtype=float), np.asarray(pieces)
    statistic, freedom = 0.0, 0
    for piece in np.unique(pieces):
        own, time = counts[pieces == piece], seconds[pieces == piece]
        total = time.sum(axis=0)
        expected = time @ np.divide(own.sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
        cells = int(min(len(own), expected.sum() // SMALLEST_EXPECTED_COUNT))
        if cells < 2:
            continue
        middle = (expected.cumsum() - expected / 2) / expected.sum()
        cell = np.unique((middle * cells).astype(int), return_inverse=True)[1]
        seen, expected = np.bincount(cell, weights=own.sum(axis=1)), np.bincount(cell, weights=expected)
        statistic += float(((seen - expected) ** 2 / expected).sum())
        freedom += seen.size - 1
    return statistic / freedom if freedom else math.nan, freedom


# Files of own quotes


def check_own_record(path: str | Path, quotes: pd.DataFrame) -> tuple[Array, list[Finding]]:
    """Check what a quotes file says: gaps, and the units of times and exposures.

    Parameters
    ----------
    path : str or Path
        Name of the file, for the messages.
    quotes : pandas.DataFrame
        What `mmgym.calibration.quotes.read_quotes` returned.

    Returns
    -------
    label : array, shape (rows,)
        Changes where an episode or a gap ends.
    findings : list of Finding

    Raises
    ------
    ValueError
        If a quote stands for longer than its interval, or the times are no seconds.
    """
    time, episode = quotes["time"].to_numpy(dtype=float), quotes["episode"].to_numpy(dtype=float)
    ends = np.append(episode[1:] != episode[:-1], True)  # the last row of an episode
    step = np.where(ends, np.inf, np.append(np.diff(time), np.inf))
    rounding = 8 * np.finfo(float).eps * np.abs(time)
    exposure = np.zeros(time.size)
    for side in ("bid", "ask"):
        own = quotes[f"{side}_exposure"].to_numpy(dtype=float)
        rule = "a quote stands no longer than from its row to the next (are both in seconds?)"
        require(path, quotes, f"{side}_exposure", own <= step * (1 + 1e-6) + rounding, rule)
        exposure = np.maximum(exposure, own)
    begins = np.flatnonzero(np.append(True, ends[:-1]))
    spans = time[np.flatnonzero(ends)] - time[begins]
    longest = float(spans.max())
    if longest >= 1e8 or np.abs(time).max() >= 1e11:
        raise ValueError(
            f"{path}, column 'time': wrong time unit: an episode of {longest / (365.25 * DAY):.3g} years, up to the "
            f"time {time.max():.10g}, if they were seconds; times and exposures must be seconds"
        )
    findings = []
    steps = np.flatnonzero(~ends)
    gaps = steps[find_gaps(step[steps])]
    gaps = gaps[exposure[gaps] < step[gaps] / 2]
    label = np.cumsum(np.append(True, ends[:-1])).astype(float)
    if gaps.size:
        after = np.zeros(time.size)
        after[gaps + 1] = 1
        label = label + after.cumsum()
        findings.append(gap_finding(time[gaps], step[gaps], float(spans.sum() - step[gaps].sum()), "s", "quotes"))
        spans = spans[:0]
    live = steps[exposure[steps] > 0]
    if live.size >= FEWEST_PAUSES and np.median(exposure[live] / step[live]) < SHORT_EXPOSURE:
        findings.append(
            Finding(
                "time_unit",
                f"half of the exposures are less than {SHORT_EXPOSURE:g} of the time from their row to the next: are "
                "times and exposures both in seconds?",
            )
        )
    if spans.size and longest > DAY:
        findings.append(
            Finding("time_unit", f"an episode lasts {longest / DAY:.3g} days without a gap: is the time in seconds?")
        )
    return label, findings


# Windows of point processes


def find_window_gaps(data: Windows) -> Array:
    """Gaps in windows of a point process: window, start and end of each, shape (gaps, 3).

    Raises
    ------
    ValueError
        If every window holds one event: no such process does that, a list of times was taken for windows.
    """
    counts = np.diff(data.offsets)
    if counts.size >= FEWEST_ORDERS and (counts == 1).all():
        raise ValueError(
            f"all {counts.size} windows hold one event each: a flat list of times? A window is the list of the times "
            "of all events in it; for a single window pass [times]"
        )
    edges = np.insert(data.times, data.offsets[:-1], 0.0)
    edges = np.insert(edges, data.offsets[1:] + np.arange(1, counts.size + 1), data.durations)
    window = np.repeat(np.arange(counts.size), counts + 2)
    occupied = np.repeat(counts > 0, counts + 2)[1:]  # a window without events counts
    places = np.flatnonzero((window[1:] == window[:-1]) & (edges[1:] > edges[:-1]) & occupied)
    places = places[find_gaps(edges[places + 1] - edges[places])]
    return np.stack([window[places], edges[places], edges[places + 1]], axis=1).astype(float)


def without_gaps(data: Windows, rates: Array, gaps: Array) -> tuple[Windows, Array]:
    """Windows split at gaps.

    Parameters
    ----------
    data : Windows
    rates : array, shape (windows,)
        Intensities at the start, NaN without history; a part after a gap has none.
    gaps : array, shape (gaps, 3)
        Of `find_window_gaps`, which may be those of more events than these.
    """
    parts, lengths, own_rates = [], [], []
    for number, length in enumerate(data.durations):
        times = data.times[data.offsets[number] : data.offsets[number + 1]]
        own = gaps[gaps[:, 0] == number]
        starts, ends = np.append(0.0, own[:, 2]), np.append(own[:, 1], length)
        for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if end > start:
                parts.append(times[(times >= start) & (times <= end)] - start)
                lengths.append(end - start)
                own_rates.append(rates[number] if part == 0 else math.nan)
    offsets = np.concatenate([[0], np.cumsum([part.size for part in parts])]).astype(np.int64)
    return Windows(np.concatenate(parts), offsets, np.array(lengths)), np.array(own_rates)
