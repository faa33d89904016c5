"""What is wrong with a record beyond what `mmgym.tapes.checker` finds on a tape: sizes, noise, dispersion, own quotes.

======================= ===========================================================================================
finding                 how it is told, and what is done
======================= ===========================================================================================
gaps, coarse_clock      as on a tape, in files of own quotes and in windows of point processes
own_size                own orders far larger than those on the tape: an error where nothing counts
noise                   too few changes of the mid to tell its volatility from rounding and bid-ask bounce
overdispersed           counts in blocks of time vary more than chance has it under the model: their intervals, which
                        are those of the blocks (`mmgym.calibration.block_intervals`), are so much wider
rejected                the law of the model is rejected: the estimates describe the record, no environment is offered
not_identified          the data leave a number open: its cells are empty
======================= ===========================================================================================

The thresholds aim at a chance of about 1e-5 for each finding that a clean record is warned of.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.block_intervals import Estimate, student
from mmgym.calibration.exponential import ExponentialFit
from mmgym.calibration.hawkes_likelihood import Windows
from mmgym.tapes.clocks import clock_grid
from mmgym.tapes.findings import Finding, described
from mmgym.tapes.gaps import FEWEST_PAUSES, find_gaps, gap_finding
from mmgym.tapes.text_files import require
from mmgym.tapes.units import DAY

Array = NDArray[np.float64]

FALSE_ALARM = 1e-5  # of one test on a clean record

SMALLEST_KERNEL_STEP, LARGEST_KERNEL_STEP = 0.02, 0.2  # decay in a step of the clock: warned of, refused
FEWEST_ORDERS = 20
LARGE_OWN_SIZE = 10.0  # in mean order sizes
AS_LARGE = 0.01  # share of the orders that must be as large as an own one that is large
SHORT_EXPOSURE = 0.01  # of the time to the next row


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


# Overdispersion


def overdispersion(what: str, dispersion: float, freedom: int, parameters: tuple[str, ...]) -> list[Finding]:
    """The finding of counts that cluster, if they do.

    Parameters
    ----------
    what : str
        What is counted.
    dispersion, freedom
        See `excessive`.
    parameters : tuple of str
        Beginnings of the names of the estimates that rest on it.
    """
    if not excessive(dispersion, freedom):
        return []
    text = (
        f"{what} vary {dispersion:.3g} times as much over blocks of time as Poisson counts: standard errors and "
        "intervals are those of the blocks."
    )
    return [Finding("overdispersed", text, parameters)]


def rejection(laws: Sequence[str], parameters: tuple[str, ...] = ()) -> list[Finding]:
    """The finding of rejected laws, if there are any.

    Parameters
    ----------
    laws : sequence of str
        What `mmgym.calibration.report.rejected_laws` returned.
    parameters : tuple of str
        Beginnings of the names of the estimates that rest on them.
    """
    if not laws:
        return []
    text = f"{', '.join(laws)}: the estimates describe the record, but the market of the model is not of this kind."
    return [Finding("rejected", text, parameters)]


def excessive(dispersion: float, freedom: int) -> bool:
    """Whether a dispersion (a chi-square statistic per degree of freedom) is beyond chance."""
    return freedom > 0 and dispersion > scipy.stats.chi2.isf(FALSE_ALARM, freedom) / freedom


def widened(estimate: Estimate, factor: float, freedom: int, *, logarithm: bool = False) -> Estimate:
    """An estimate with a standard error `factor` times as large, measured on so many degrees of freedom."""
    stderr = estimate.stderr * factor
    reach = student(freedom) * stderr
    if not logarithm:
        return Estimate(estimate.value, stderr, estimate.value - reach, estimate.value + reach)
    ratio = math.exp(min(reach / estimate.value, 700.0)) if estimate.value > 0 else 1.0
    return Estimate(estimate.value, stderr, estimate.value / ratio, estimate.value * ratio)


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


def find_window_gaps(data: Windows, longest: float = math.inf) -> Array:
    """Gaps in windows of a point process: window, start and end of each, shape (gaps, 3).

    Parameters
    ----------
    data : Windows
    longest : float
        All longer pauses are gaps, besides those that are found.

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
    pauses = edges[places + 1] - edges[places]
    places = places[np.union1d(find_gaps(pauses), np.flatnonzero(pauses > longest))]
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
