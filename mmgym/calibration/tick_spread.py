r"""Calibration of the tick-spread market from a level-1 tape (Guilbaud & Pham 2013, section 2.3).

The spread is a Markov chain with transition matrix :math:`\rho` that jumps at the ticks of a Poisson clock of rate
:math:`\lambda(t)`; a quote at the best price or one tick better is filled at the intensity :math:`\lambda_i(q)` of the
spread :math:`i` and the quote :math:`q`. `calibrate` estimates all of them, with standard errors and 95 % intervals:

=========================== ================================================ ========================================
parameter                   estimate                                         standard error of the model
=========================== ================================================ ========================================
transition matrix, (2.8)    jumps from i to j over jumps from i              ``sqrt(p (1 - p) / jumps from i)``
clock, (2.9)                jumps in a piece over its length                 ``sqrt(jumps) / length``
exit rates                  jumps from i over the time at i                  ``sqrt(jumps) / time``
intensities, (2.11), (2.12) fills over the time in (spread, own quote)       ``sqrt(fills) / time``
proxy intensities, (2.13)   intervals of much traded volume over their time  ``sqrt(intervals) / time``
volatility                  sampled mids at two scales                       see `mmgym.calibration.volatility`
=========================== ================================================ ========================================

Standard errors and intervals hold the clustering that blocks of time measure (`mmgym.calibration.block_intervals`).

The paper has one clock for all spreads. Where the tape rejects that, spreads are left at rates of their own: the clock
has the largest of them, and the others stand on the diagonal of the transition matrix
(`mmgym.calibration.spread_chain`).

The first two and the last come from the tape (`mmgym.tapes`); execution intensities from a log of one's own
quotes (`mmgym.calibration.own_quotes`) or, without one, from the volumes on the tape, by a rule that is biased
(`mmgym.calibration.volume_proxy` has its closed form). States of the spread and the tests of the model are in
`mmgym.calibration.spread_chain`, the intervals in `mmgym.calibration.score_intervals`.

Choices made in reading a tape: the spread is the one once all events of a time stamp are over; the trades of a time
stamp belong to the interval that ends there; gaps of a tape are cut out; sizes, fees and penalties of the market are no
estimates and are left to the user. The intensities by proxy are those of orders of `own_size` shares: set
``limit_order_max`` accordingly. What can be wrong with a tape, and what is done about it, is in
`mmgym.tapes.checker`.

References
----------
Guilbaud, F. and Pham, H. (2013). Optimal high-frequency trading with limit and market orders. *Quantitative Finance*
13(1).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.block_intervals import BLOCKS, count_dispersion
from mmgym.calibration.book_sizes import book_sizes
from mmgym.calibration.command import INTERVAL, add_file_options, fit_and_show
from mmgym.calibration.own_quotes import QUOTES, SIDES, check_own_quotes, own_counts, read_own_quotes
from mmgym.calibration.report import REJECTION
from mmgym.calibration.spread_chain import (
    MOST_SPREADS,
    SpreadPath,
    clock_test,
    fit_clock,
    holding_times_test,
    markov_test,
    one_clock_test,
    spread_path,
)
from mmgym.calibration.tape_checks import (
    check_own_size,
    overdispersion,
    rejection,
)
from mmgym.calibration.tick_spread_chain import SpreadChain, transition_dispersion
from mmgym.calibration.tick_spread_report import Calibration, Executions, OrderFlow
from mmgym.calibration.volatility import sampled_volatility
from mmgym.calibration.volume_proxy import AGGRESSORS, proxy_counts
from mmgym.models.tick_spread import MAX_PIECES
from mmgym.tapes import CheckedTape, Finding, Selection, check_level1
from mmgym.tapes.clocks import coarse_clock
from mmgym.tapes.level1 import price_step, sample_mid
from mmgym.tapes.recording import Paths
from mmgym.tapes.selection import add_tape_options, selection_of
from mmgym.tapes.units import TIME_UNITS

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

HOUR = 3600.0
HOLDING_TIMES = ("auto", "equal", "by_spread")


def calibrate(
    path: Paths | pd.DataFrame,
    *,
    own_quotes: str | Path | pd.DataFrame | None = None,
    tick: float | None = None,
    num_spreads: int | None = None,
    clock_pieces: int | Sequence[float] | None = None,
    holding_times: Literal["auto", "equal", "by_spread"] = "auto",
    own_size: float | None = None,
    volatility_interval: float | None = None,
    time_unit: str | None = None,
    selection: Selection | None = None,
) -> Calibration:
    """Calibrate the tick-spread market from a level-1 tape.

    Parameters
    ----------
    path : str, Path, sequence of them, or DataFrame
        The files of a tape, in any format of `mmgym.tapes`, or what `mmgym.tapes.read_tape` returned.
    own_quotes : str, Path or DataFrame, optional
        A log of own quotes and fills on the clock of the tape (`mmgym.calibration.own_quotes`), or what
        `read_own_quotes` returned.
    tick : float, optional
        Unit of the spread, in price: states are ``ceil(spread / tick)``. By default the smallest difference between
        two best prices of the tape; a larger one merges spreads.
    num_spreads : int, optional
        m, from 2 to 32: spreads of m ticks or more are one state, and moves within a state are no jumps. By default
        the largest m for which every state is left 100 times at least (so that no transition probability has a
        standard error above 0.05), and 2 where there is none.
    clock_pieces : int or sequence of float, optional
        Number of pieces of equal length on which the clock is constant, or the times (seconds of the tape, inside the
        window, rising) at which it may change. By default one piece an hour.
    holding_times : {"auto", "equal", "by_spread"}
        Whether all spreads are left at one rate, as in the paper, or each at its own. ``"auto"``: each at its own where
        the tape rejects one rate.
    own_size : float, optional
        ``V_0`` of the proxy, in the unit of the tape's sizes. By default the mean size of its market orders.
    volatility_interval : float, optional
        Seconds between the sampled mid prices, the shortest scale of the volatility; by default 1, or more where quotes
        are rare.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Unit of ``time_s`` of tape and log. By default seconds, and what looks like another unit is refused.
    selection : Selection, optional
        What is used of the tape; all by default. The spread and the queues at the start of its window are those of the
        last quote at or before it.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If an argument is out of range, a file breaks its format (the message names file, line and column), no right
        number can be given from it, the spread never jumps, or a state of it is never visited or never left (the
        message says what to change).
    """
    _require(holding_times, num_spreads, own_size=own_size, volatility_interval=volatility_interval, tick=tick)
    checked = check_level1(path, selection, time_unit=time_unit)
    name = checked.name
    cut = " All times are observed ones, the gaps cut out."
    findings = [replace(each, text=each.text + cut) if each.name == "gaps" else each for each in checked.findings]
    parts = checked.quotes
    quotes = pd.concat([part.assign(session=number) for number, part in enumerate(parts)], ignore_index=True)
    if len(quotes) < 2:
        raise ValueError(f"{name}: a tape needs quotes at two times at least, got {len(quotes)}")
    first, last = float(checked.bounds[0, 0]), float(checked.bounds[-1, 1])
    if not last > first:
        raise ValueError(f"{name}: nothing follows the first quote: a tape needs events at two times at least")
    edges = _clock_edges(name, clock_pieces, first, last, checked)
    begin, finish = float(edges[0]), float(edges[-1])
    step = price_step(quotes) if tick is None else float(tick)
    quotes["time_s"] = checked.observed(quotes["time_s"])
    states = None if num_spreads is None else int(num_spreads)
    try:
        spread = spread_path(quotes, tick=step, num_spreads=states, start=begin, end=finish)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    chain, warnings = _chain(name, spread, edges, checked, holding_times)
    findings += warnings
    orders = checked.orders
    orders = orders[(orders["time_s"] > first) & (orders["time_s"] <= last)]
    size = _mean_size(orders) if own_size is None else float(own_size)
    proxy, warnings = _proxy(spread, edges, checked, size)
    findings += warnings
    logged = None
    if own_quotes is not None:
        logged, warnings = _logged(_own_log(own_quotes, time_unit), spread, edges, checked, first, last)
        findings += warnings
    findings += check_own_size(name, size, orders, proxy.counts.sum(axis=2)[:, 1], needed=logged is None)
    bounds = np.clip(checked.bounds, first, last)
    own = np.flatnonzero(bounds[:, 1] > bounds[:, 0])
    within, prices = [parts[number] for number in own], price_step(quotes)
    mid, interval, noisy = sampled_volatility(within, bounds[own], volatility_interval, grid=prices)
    return Calibration(
        source=checked.label,
        tick=step,
        start=begin,
        end=finish,
        chain=chain,
        own_size=size,
        proxy=proxy,
        own_quotes=logged,
        flow=_order_flow(orders, spread, finish - begin),
        sizes=book_sizes(within, bounds[own], orders, prices),
        mid=mid,
        volatility_interval=float(interval),
        initial_price=float(sample_mid(parts[own[0]], start=first, end=first, interval=1.0)[1][0]),
        findings=(*findings, *noisy, *rejection(chain.rejected, ("spread_", "clock_", "exit_"))),
    )


def _require(holding_times: str, num_spreads: int | None, **positive: float | None) -> None:
    """Refuse arguments of `calibrate` that are out of range."""
    for word, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{word} must be positive and finite, got {value}")
    if holding_times not in HOLDING_TIMES:
        raise ValueError(f"holding_times must be one of {', '.join(HOLDING_TIMES)}, got {holding_times!r}")
    if num_spreads is not None and (num_spreads != int(num_spreads) or not 2 <= num_spreads <= MOST_SPREADS):
        raise ValueError(f"num_spreads must be a whole number from 2 to {MOST_SPREADS}, got {num_spreads}")


def _mean_size(orders: pd.DataFrame) -> float:
    """Mean size of the market orders, to three digits; without orders nothing fills, whatever its size."""
    return float(f"{orders['size'].mean():.3g}") if len(orders) else 1.0


def _chain(
    name: str, spread: SpreadPath, edges: Array, checked: CheckedTape, holding_times: str
) -> tuple[SpreadChain, list[Finding]]:
    """The spread and its clock, and what is to be said of them."""
    concerned = ("clock_rate", "spread_transitions", "exit_rate")
    transitions, seconds = spread.transitions_in(edges), spread.seconds_in(edges)
    exits = transitions.sum(axis=2)
    total, duration = int(exits.sum()), float(edges[-1] - edges[0])
    hidden, coarse = coarse_clock(name, "jumps of the spread", total, duration, checked.quote_clock(), concerned)
    findings = [] if coarse is None else [coarse]
    plain = fit_clock(exits, seconds, False)[0]
    one_clock = one_clock_test(spread, edges, plain)
    by_spread = holding_times == "by_spread" or (holding_times == "auto" and one_clock.p_value < REJECTION)
    rates, shares = fit_clock(exits, seconds, by_spread)
    tests = {
        "clock": clock_test(spread, edges, shares),
        "holding_times": holding_times_test(spread, edges, rates, shares),
        "one_clock": one_clock,
        "markov": markov_test(spread),
    }
    stretches, pieces = _stretches(edges)
    jumps, time = spread.transitions_in(stretches), spread.seconds_in(stretches) * rates[pieces][:, None]
    exit_dispersion, freedom = count_dispersion(jumps.sum(axis=2), time)
    clock_dispersion = float(count_dispersion(jumps.sum(axis=(1, 2)), time @ shares, pieces)[0])
    excess = tests["clock"]
    findings += overdispersion("jumps of the spread", excess.dispersion, excess.degrees_of_freedom, ("clock_rate",))
    return SpreadChain(
        edges=edges,
        transitions=transitions,
        seconds=seconds,
        by_spread=by_spread,
        hidden_jumps=hidden,
        transition_dispersion=transition_dispersion(jumps),
        exit_dispersion=exit_dispersion,
        clock_dispersion=clock_dispersion,
        freedom=freedom,
        tests=tests,
    ), findings


def _stretches(edges: Array) -> tuple[Array, Counts]:
    """Edges of the stretches of time in which executions are counted, and the piece of the clock of each."""
    pieces = edges.size - 1
    each = max(BLOCKS // pieces, 2)
    ends = np.append(np.linspace(edges[:-1], edges[1:], each, endpoint=False).T.ravel(), edges[-1])
    return ends, np.repeat(np.arange(pieces), each)


def _proxy(spread: SpreadPath, edges: Array, checked: CheckedTape, own_size: float) -> tuple[Executions, list[Finding]]:
    """Executions by the volume rule; they follow the clock."""
    stretches, pieces = _stretches(edges)
    trades = checked.in_observed_time(pd.concat([part[part["event"] == "trade"] for part in checked.sessions]))
    counts, seconds = proxy_counts(spread, trades, own_size, stretches)
    exposed = np.broadcast_to(seconds[:, None, None], counts.shape)
    return _executions(counts, exposed, pieces, "proxy", "counts of the proxy")


def _logged(
    log: pd.DataFrame, spread: SpreadPath, edges: Array, checked: CheckedTape, first: float, last: float
) -> tuple[Executions, list[Finding]]:
    """Executions of a log of own quotes; nothing says that they follow the clock."""
    outside = _outside(log, checked, first, last)
    stretches, pieces = _stretches(edges)
    counts, exposed = own_counts(checked.in_observed_time(log), spread, stretches)
    if not exposed.any():
        raise ValueError(
            f"the log of own quotes has no quote between {first:g} and {last:g} s, the window of the tape: both "
            "files must be on one clock"
        )
    executions, findings = _executions(counts, exposed, 0 * pieces, "fill_rate", "fills of own quotes")
    return executions, findings if outside is None else [outside, *findings]


def _own_log(path: str | Path | pd.DataFrame, time_unit: str | None) -> pd.DataFrame:
    """The log of own quotes, its times in seconds."""
    if isinstance(path, pd.DataFrame):
        check_own_quotes("the log of own quotes", path)
    log = path if isinstance(path, pd.DataFrame) else read_own_quotes(path)
    return log.assign(time_s=log["time_s"] * TIME_UNITS[time_unit or "s"])


def _order_flow(orders: pd.DataFrame, spread: SpreadPath, duration: float) -> tuple[OrderFlow, OrderFlow]:
    """The market orders of both aggressors within a duration, and the queues that they meet."""
    flow = []
    for aggressor, queue in zip(AGGRESSORS, spread.queues, strict=True):
        sizes = orders.loc[orders["side"] == aggressor, "size"]
        mean = float(sizes.mean()) if len(sizes) else math.nan
        flow.append(OrderFlow(len(sizes) / duration, mean, float(queue[:-1].mean())))
    return flow[0], flow[1]


def _executions(
    counts: Counts, seconds: Array, pieces: Counts, prefix: str, what: str
) -> tuple[Executions, list[Finding]]:
    """Executions over all stretches of time, with what their counts in stretches say of dispersion."""
    findings = []
    dispersion, freedom = count_dispersion(counts, seconds, pieces)
    for q, s in np.ndindex(2, 2):
        together = count_dispersion(counts[:, s, q].sum(axis=1), seconds[:, s, q].sum(axis=1), pieces)
        words = f"{what} ({SIDES[s]}, {QUOTES[q]})"
        findings += overdispersion(words, float(together[0]), freedom, (f"{prefix}_{QUOTES[q]}_{SIDES[s]}",))
    return Executions(counts.sum(axis=0), seconds.sum(axis=0), dispersion, freedom), findings


def _outside(log: pd.DataFrame, checked: CheckedTape, first: float, last: float) -> Finding | None:
    """Fills of a log that are not in the window of the tape, if they are many."""
    times = log.loc[log["event"] == "fill", "time_s"].to_numpy(dtype=float)
    left_out = int((~(checked.seen(times) & (times >= first) & (times <= last))).sum())
    if left_out < 5 or left_out < 0.05 * times.size:
        return None
    text = f"{left_out} of {times.size} fills of the log lie outside the tape or in its gaps, and are left out: "
    return Finding("time_unit", f"{text}are both on one clock and in one unit?", ("fill_rate",))


def _clock_edges(
    name: str, pieces: int | Sequence[float] | None, start: float, end: float, checked: CheckedTape
) -> Array:
    """Where the pieces of the clock begin and end, in observed time."""
    begin, finish = (float(value) for value in checked.observed([start, end]))
    if pieces is None:
        pieces = min(max(round((finish - begin) / HOUR), 1), MAX_PIECES)
    if isinstance(pieces, (int, np.integer)):
        if not 1 <= pieces <= MAX_PIECES:
            raise ValueError(f"clock_pieces must be a number from 1 to {MAX_PIECES} or a list of times, got {pieces}")
        return np.linspace(begin, finish, pieces + 1)
    edges = np.array([start, *pieces, end], dtype=float)
    if not (np.diff(edges) > 0).all() or edges.size > MAX_PIECES + 1:
        raise ValueError(
            f"clock_pieces = {list(pieces)} is not allowed: the times must rise and lie strictly between {start:g} and "
            f"{end:g} s, {MAX_PIECES - 1} of them at most"
        )
    edges = checked.observed(edges)
    if not (np.diff(edges) > 0).all():
        raise ValueError(f"{name}: clock_pieces = {list(pieces)} is not allowed: a piece lies in a gap of the tape")
    return edges


TITLE = "spread chain, its clock and execution intensities"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym calibrate tick_spread``: those of `calibrate`."""
    add_file_options(parser, "tick_spread", "level-1 tape")
    pieces = parser.add_mutually_exclusive_group()
    parser.add_argument("--own-quotes", metavar="LOG.csv", help="log of own quotes and fills")
    parser.add_argument("--tick", type=float, help="unit of the spread in price (default: that of the tape)")
    text = "M ticks or more are one spread"
    parser.add_argument("--spreads", dest="num_spreads", type=int, metavar="M", help=text)
    pieces.add_argument("--clock-pieces", type=int, metavar="N", help="pieces of the clock (default: one an hour)")
    text = "all spreads left at one rate, or each at its own (default: as the tape has it)"
    parser.add_argument("--holding-times", choices=HOLDING_TIMES, default="auto", help=text)
    text = "of the proxy (default: mean size of the market orders)"
    parser.add_argument("--own-size", type=float, metavar="V0", help=text)
    parser.add_argument("--volatility-interval", type=float, metavar="SECONDS", help=INTERVAL)
    add_tape_options(parser)
    text = "times of the tape at which the clock may change"
    pieces.add_argument("--clock-changes", dest="clock_pieces", nargs="+", type=float, metavar="SECONDS", help=text)


def run(options: argparse.Namespace) -> None:
    """Run ``mmgym calibrate tick_spread``."""
    options.selection = selection_of(options)
    fit_and_show(calibrate, lambda fit: {"mmgym/TickSpread-v0": fit.kwargs()}, options)
