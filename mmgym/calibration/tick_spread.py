r"""Calibration of the tick-spread market from a level-1 tape (Guilbaud & Pham 2013, section 2.3).

The spread is a Markov chain with transition matrix :math:`\rho` that jumps at the ticks of a Poisson clock of rate
:math:`\lambda(t)`; a quote at the best price or one tick better is filled at the intensity :math:`\lambda_i(q)` of the
spread :math:`i` and the quote :math:`q`. `calibrate` estimates all of them, with standard errors and 95 % intervals:

=========================== ================================================ ========================================
parameter                   estimate                                         standard error
=========================== ================================================ ========================================
transition matrix, (2.8)    jumps from i to j over jumps from i              ``sqrt(p (1 - p) / jumps from i)``
clock, (2.9)                jumps in a piece over its length                 ``sqrt(jumps) / length``
intensities, (2.11), (2.12) fills over the time in (spread, own quote)       ``sqrt(fills) / time``
proxy intensities, (2.13)   intervals of much traded volume over their time  ``sqrt(intervals) / time``
volatility                  sampled mid prices                               see `mmgym.calibration.exponential`
=========================== ================================================ ========================================

The first two and the last come from the tape (`mmgym.calibration.tape`); execution intensities from a log of one's own
quotes (`mmgym.calibration.own_quotes`) or, without one, from the volumes on the tape, by a rule that is biased
(`mmgym.calibration.volume_proxy` has its closed form). States of the spread and the tests of the model are in
`mmgym.calibration.spread_chain`, the intervals in `mmgym.calibration.score_intervals`.

Choices made in reading a tape: the spread is the one once all events of a time stamp are over; the trades of a time
stamp belong to the interval that ends there; gaps of a tape are cut out; sizes, fees and penalties of the market are no
estimates and are left to the user. The intensities by proxy are those of orders of `own_size` shares: set
``limit_order_max`` accordingly. What can be wrong with a tape, and what is done about it, is in
`mmgym.calibration.tape_checks`.

References
----------
Guilbaud, F. and Pham, H. (2013). Optimal high-frequency trading with limit and market orders. *Quantitative Finance*
13(1).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.command import INTERVAL, TIME_UNIT, add_file_options, fit_and_show
from mmgym.calibration.exponential import WINDOWS, BrownianFit
from mmgym.calibration.own_quotes import QUOTES, SIDES, check_own_quotes, own_counts, read_own_quotes
from mmgym.calibration.score_intervals import Estimates, proportions, rates
from mmgym.calibration.spread_chain import (
    MOST_SPREADS,
    ModelTest,
    clock_test,
    holding_times_test,
    markov_test,
    one_clock_test,
    spread_path,
)
from mmgym.calibration.tape import check_tape, price_step, read_tape, sample_mid
from mmgym.calibration.tape_checks import (
    TIME_UNITS,
    CheckedTape,
    Finding,
    check_level1,
    check_own_size,
    coarse_clock,
    excessive,
    json_value,
    marked,
    require_finite,
    sampled_volatility,
    spread_of_counts,
)
from mmgym.calibration.tick_spread_report import draw, summarise
from mmgym.calibration.volume_proxy import AGGRESSORS, proxy_counts, proxy_limit, single_order_rate
from mmgym.models.tick_spread import MAX_PIECES, stationary_law

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Tape = str | Path | pd.DataFrame

HOUR = 3600.0


@dataclass(frozen=True, eq=False)
class Executions:
    """Counts and time of one way to estimate the execution intensities, each of shape (2, 2, m).

    The axes are side (bid, ask), quote (best, improved) and spread; seconds are 0 where nothing was seen. The
    dispersion of each side is the measured variance of its counts over that of Poisson counts, 1 where chance explains
    it.
    """

    counts: Counts
    seconds: Array
    dispersion: tuple[float, float] = (1.0, 1.0)

    @property
    def rates(self) -> Estimates:
        """Intensities (1 / s), NaN where there is no time; the dispersion is in standard errors and intervals."""
        dispersion = np.reshape(self.dispersion, (2, 1, 1))
        return rates(self.counts / dispersion, self.seconds / dispersion)


@dataclass(frozen=True)
class OrderFlow:
    """Market orders of one aggressor side, and the queue that they meet: what the bias of the proxy depends on."""

    order_rate: float  # 1 / s
    mean_order_size: float  # NaN where there is no order
    mean_queue: float  # at the best price, at the jumps of the spread


@dataclass(frozen=True, eq=False)
class Calibration:
    """Parameters of the tick-spread market with standard errors, 95 % intervals and tests of the model.

    Attributes
    ----------
    source : str
        Name of the tape, without its folder.
    tick : float
        Unit of the spread, price.
    start, end : float
        The window of the tape, seconds.
    transition_counts : array of int, shape (m, m)
        Jumps of the spread.
    seconds : array, shape (m,)
        Time at each spread.
    clock_edges : array, shape (K + 1,)
        Where the pieces of the clock begin and end, seconds of the tape.
    clock_counts : array of int, shape (K,)
        Jumps in each piece.
    clock_dispersion : float
        Measured variance of the jumps in stretches of time over that of Poisson counts, 1 where chance explains it.
    hidden_jumps : float
        Share of the jumps that a coarse clock of the tape hides.
    own_size : float
        ``V_0`` of the proxy.
    proxy : Executions
        By the volume rule (2.13).
    own_quotes : Executions or None
        By (2.11) and (2.12), if a log was given.
    flow : tuple of OrderFlow
        Sell orders (they fill bids) and buy orders.
    tests : dict of str to ModelTest
        ``clock, holding_times, one_clock, markov``: see `mmgym.calibration.spread_chain`.
    mid : BrownianFit or None
        Volatility and drift; None where the sampled mid does not move.
    volatility_interval : float
        Seconds between the sampled mid prices.
    initial_price : float
        Mid at the start of the window.
    findings : tuple of Finding
        Warnings (see `mmgym.calibration.tape_checks`).

    Where the tape has gaps, they are cut out of all times: these are observed time.
    """

    source: str
    tick: float
    start: float
    end: float
    transition_counts: Counts
    seconds: Array
    clock_edges: Array
    clock_counts: Counts
    own_size: float
    proxy: Executions
    own_quotes: Executions | None
    flow: tuple[OrderFlow, OrderFlow]
    tests: dict[str, ModelTest]
    mid: BrownianFit | None
    volatility_interval: float
    initial_price: float
    clock_dispersion: float = 1.0
    hidden_jumps: float = 0.0
    findings: tuple[Finding, ...] = ()

    @property
    def num_spreads(self) -> int:
        """m."""
        return len(self.seconds)

    @property
    def spread_transitions(self) -> Estimates:
        """Transition matrix (2.8), each array of shape (m, m)."""
        found = proportions(self.transition_counts, self.transition_counts.sum(axis=1, keepdims=True))
        if self.num_spreads == 2:  # nothing to estimate: the other spread follows
            return Estimates(found.value, found.stderr, found.value, found.value)
        for bound in (found.lower, found.upper):
            np.fill_diagonal(bound, 0.0)
        return found

    @property
    def model_shares(self) -> Array:
        """Share of time at each spread under the model, shape (m,): the stationary law of the transition matrix."""
        return np.asarray(stationary_law(self.spread_transitions.value), dtype=float)

    @property
    def clock_rates(self) -> Estimates:
        """Clock (2.9) of each piece (1 / s), each array of shape (K,); dispersion and hidden jumps are in it."""
        length, hidden = np.diff(self.clock_edges), self.hidden_jumps
        value, stderr, lower, upper = rates(self.clock_counts / self.clock_dispersion, length / self.clock_dispersion)
        shown = 1 - hidden
        return Estimates(value / shown, np.hypot(stderr, hidden * value) / shown, lower, upper / shown * (1 + hidden))

    def table(self) -> pd.DataFrame:
        """One row per parameter: ``estimate, standard_error, lower, upper, unit, count, exposure`` (95 % interval).

        Rows ``spread_transitions[i,j]``, ``clock_rate[from..to]`` (seconds of the tape), ``fill_rate_QUOTE_SIDE[i]``
        from own quotes if a log was given, ``proxy_QUOTE_SIDE[i]``, and ``volatility``. Spreads are in ticks. The
        exposure is a number of jumps or seconds; an intensity that was never exposed has no row. Where there are
        findings, their names stand in a column ``warning``.
        """
        columns = ["estimate", "standard_error", "lower", "upper", "unit", "count", "exposure"]
        rows = dict(self._rows())
        table = pd.DataFrame(list(rows.values()), columns=columns, index=pd.Index(list(rows), name="parameter"))
        return marked(table, self.findings)

    def kwargs(
        self, *, executions: Literal["auto", "own_quotes", "proxy"] = "auto", episode_start: float | None = None
    ) -> dict[str, Any]:
        """Arguments for ``gymnasium.make("mmgym/TickSpread-v0", **kwargs)``.

        Parameters
        ----------
        executions : {"auto", "own_quotes", "proxy"}
            Where the fill rates come from; ``"auto"``: own quotes if a log was given, else the proxy.
        episode_start : float, optional
            Time of the tape at which an episode begins, seconds; by default the start of the window. The clock is
            shifted to it, and its last rate goes on after the end of the window.

        Raises
        ------
        ValueError
            If an argument is out of range, or a quote never stood at some spread in the log.
        """
        if executions not in ("auto", "own_quotes", "proxy"):
            raise ValueError(f"executions must be 'auto', 'own_quotes' or 'proxy', got {executions!r}")
        if executions == "own_quotes" and self.own_quotes is None:
            raise ValueError("executions = 'own_quotes' needs a log of own quotes, and none was given")
        begin = self.start if episode_start is None else episode_start
        if not self.start <= begin < self.end:
            window = f"from {self.start:g} to below {self.end:g} s"
            raise ValueError(f"episode_start must lie in the window of the tape ({window}), got {episode_start}")
        source = self.proxy if executions == "proxy" or self.own_quotes is None else self.own_quotes
        fill_rates = source.rates.value.copy()
        fill_rates[:, 1, 0] = np.where(np.isnan(fill_rates[:, 1, 0]), fill_rates[:, 0, 0], fill_rates[:, 1, 0])
        for side, quote, state in np.argwhere(np.isnan(fill_rates)):
            raise ValueError(
                f"the {SIDES[side]} never stood {QUOTES[quote]} at a spread of {state + 1} ticks in the log: quote "
                "there, merge spreads (a smaller num_spreads), or take executions = 'proxy'"
            )
        pieces = [
            [max(float(low) - begin, 0.0), float(rate)]
            for low, high, rate in zip(self.clock_edges[:-1], self.clock_edges[1:], self.clock_rates.value, strict=True)
            if high > begin
        ]
        arguments: dict[str, Any] = {
            "tick": self.tick,
            "spread_transitions": self.spread_transitions.value.tolist(),
            "clock_rate": pieces if len(pieces) > 1 else pieces[0][1],
            "fill_rate_best": fill_rates[:, 0].tolist(),
            "fill_rate_improved": fill_rates[:, 1].tolist(),
            "initial_price": self.initial_price,
        }
        if self.mid is not None:
            arguments["volatility"] = self.mid.volatility.value
        require_finite(arguments)
        return arguments

    def proxy_bias(self) -> pd.DataFrame:
        """What the proxy tends to if market orders were Poisson with exponential sizes, beside what it stands for.

        Returns
        -------
        pandas.DataFrame
            One row per ``side, quote``: ``proxy_limit``, ``single_order_rate`` (1 / s, see
            `mmgym.calibration.volume_proxy`) and their ``ratio``, at the order flow, queue and jump rate of the tape.
            A side without orders has no row.
        """
        clock = float(self.clock_counts.sum()) / (self.end - self.start)
        rows = []
        for side, flow in zip(SIDES, self.flow, strict=True):
            if flow.order_rate == 0:
                continue
            for quote, queue in zip(QUOTES, (flow.mean_queue, 0.0), strict=True):
                given = {
                    "order_rate": flow.order_rate,
                    "mean_order_size": flow.mean_order_size,
                    "own_size": self.own_size,
                    "mean_queue": queue,
                }
                limit, single = proxy_limit(clock_rate=clock, **given), single_order_rate(**given)
                rows.append([side, quote, limit, single, limit / single if single > 0 else math.inf])
        return pd.DataFrame(rows, columns=["side", "quote", "proxy_limit", "single_order_rate", "ratio"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; NaN becomes None."""
        return {
            "source": self.source,
            "tick": self.tick,
            "start": self.start,
            "end": self.end,
            "transition_counts": self.transition_counts.tolist(),
            "seconds": self.seconds.tolist(),
            "clock_edges": self.clock_edges.tolist(),
            "clock_counts": self.clock_counts.tolist(),
            "clock_dispersion": self.clock_dispersion,
            "hidden_jumps": self.hidden_jumps,
            "own_size": self.own_size,
            "proxy": _json_executions(self.proxy),
            "own_quotes": None if self.own_quotes is None else _json_executions(self.own_quotes),
            "flow": [json_value(asdict(flow)) for flow in self.flow],
            "tests": {name: json_value(asdict(test) | {"p_value": test.p_value}) for name, test in self.tests.items()},
            "mid": None if self.mid is None else json_value(asdict(self.mid)),
            "volatility_interval": self.volatility_interval,
            "initial_price": self.initial_price,
            "warnings": [asdict(item) | {"parameters": list(item.parameters)} for item in self.findings],
            "estimates": json_value(self.table().reset_index().to_dict(orient="records")),
        }

    def summary(self) -> str:
        """A few sentences: warnings, what was seen, how well the model holds, and what the proxy is worth."""
        return summarise(self)

    def plot(self, path: str | Path) -> Path:
        """Write a PNG: clock over time, transition matrix, and intensities over the spread, with 95 % intervals.

        Parameters
        ----------
        path : str or Path
            Where to write.

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        return draw(self, Path(path))

    def _rows(self) -> Iterator[tuple[str, list[Any]]]:
        """Rows of the table, by name."""
        rho, left = self.spread_transitions, self.transition_counts.sum(axis=1)
        for i, j in np.argwhere(~np.eye(self.num_spreads, dtype=bool)):
            numbers = [float(part[i, j]) for part in rho]
            yield (
                f"spread_transitions[{i + 1},{j + 1}]",
                [*numbers, "1", int(self.transition_counts[i, j]), float(left[i])],
            )
        for k, count in enumerate(self.clock_counts):
            low, high = self.clock_edges[k : k + 2]
            numbers = [float(part[k]) for part in self.clock_rates]
            yield f"clock_rate[{low:.10g}..{high:.10g}]", [*numbers, "1/s", int(count), float(high - low)]
        for prefix, executions in (("fill_rate", self.own_quotes), ("proxy", self.proxy)):
            if executions is None:
                continue
            for q, s, i in np.ndindex(2, 2, self.num_spreads):
                if executions.seconds[s, q, i] > 0:
                    numbers = [float(part[s, q, i]) for part in executions.rates]
                    seen = [int(executions.counts[s, q, i]), float(executions.seconds[s, q, i])]
                    yield f"{prefix}_{QUOTES[q]}_{SIDES[s]}[{i + 1}]", [*numbers, "1/s", *seen]
        if self.mid is not None:
            v = self.mid.volatility
            numbers = [v.value, v.stderr, v.lower, v.upper]
            yield "volatility", [*numbers, "price/sqrt(s)", self.mid.increments, self.mid.duration]


def calibrate(
    path: Tape,
    *,
    own_quotes: Tape | None = None,
    tick: float | None = None,
    num_spreads: int | None = None,
    clock_pieces: int | Sequence[float] | None = None,
    own_size: float = 100.0,
    start: float | None = None,
    end: float | None = None,
    volatility_interval: float | None = None,
    time_unit: str | None = None,
) -> Calibration:
    """Calibrate the tick-spread market from a level-1 tape.

    Parameters
    ----------
    path : str, Path or DataFrame
        A tape (`mmgym.calibration.tape`), or what `read_tape` returned.
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
    own_size : float
        ``V_0`` of the proxy, in the unit of the tape's sizes.
    start, end : float, optional
        Window of the tape that is used, seconds. By default from the first quote to the last event. The spread and
        the queues at `start` are those of the last quote at or before it.
    volatility_interval : float, optional
        Seconds between the sampled mid prices; by default 1, or more where bid-ask noise asks for it.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Unit of ``time_s`` of tape and log. By default seconds, and what looks like another unit is refused.

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
    name = "the tape" if isinstance(path, pd.DataFrame) else str(path)
    _require_positive("own_size", own_size)
    if volatility_interval is not None:
        _require_positive("volatility_interval", volatility_interval)
    if tick is not None:
        _require_positive("tick", tick)
    if num_spreads is not None and (num_spreads != int(num_spreads) or not 2 <= num_spreads <= MOST_SPREADS):
        raise ValueError(f"num_spreads must be a whole number from 2 to {MOST_SPREADS}, got {num_spreads}")
    if isinstance(path, pd.DataFrame):
        tape = path
        check_tape(name, tape)
    else:
        tape = read_tape(path)
    checked = check_level1(name, tape, time_unit=time_unit)
    findings = list(checked.findings)
    if len(checked.sessions) > 1:
        findings[0] = replace(findings[0], text=f"{findings[0].text} All times are observed ones, the gaps cut out.")
    parts = checked.quotes
    quotes = pd.concat([part.assign(session=number) for number, part in enumerate(parts)], ignore_index=True)
    if len(quotes) < 2:
        raise ValueError(f"{name}: a tape needs quotes at two times at least, got {len(quotes)}")
    first, last = _window(name, quotes, float(checked.bounds[-1, 1]), start, end)
    begin, finish = (float(value) for value in checked.observed([first, last]))
    edges = _clock_edges(name, clock_pieces, first, last, checked)
    step = price_step(quotes) if tick is None else float(tick)
    quotes["time_s"] = checked.observed(quotes["time_s"])
    try:
        spread = spread_path(
            quotes, tick=step, num_spreads=None if num_spreads is None else int(num_spreads), start=begin, end=finish
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error

    counts = spread.jumps_between(edges)
    concerned = ("clock_rate", "spread_transitions")
    hidden, coarse = coarse_clock(
        name, "jumps of the spread", int(counts.sum()), finish - begin, checked.quote_clock(), concerned
    )
    findings += [] if coarse is None else [coarse]
    clock = counts / np.diff(edges)
    tests = {
        "clock": clock_test(spread, edges),
        "holding_times": holding_times_test(spread, edges, clock),
        "one_clock": one_clock_test(spread, edges, clock),
        "markov": markov_test(spread),
    }
    clock_dispersion = _excess(tests["clock"].dispersion, tests["clock"].degrees_of_freedom)
    if clock_dispersion > 1:
        findings.append(_overdispersed("jumps of the spread", clock_dispersion, ("clock_rate",)))
    each = max(WINDOWS // counts.size, 2)  # stretches of a piece
    stretches = np.append(np.linspace(edges[:-1], edges[1:], each, endpoint=False).T.ravel(), finish)
    pieces = np.repeat(np.arange(counts.size), each)
    trades = checked.in_observed_time(pd.concat([part[part["event"] == "trade"] for part in checked.sessions]))
    proxied, seconds = proxy_counts(spread, trades, own_size, stretches)
    seconds = np.broadcast_to(seconds[:, None, None], proxied.shape)
    proxy, wide = _executions(proxied, seconds, pieces, "proxy", "counts of the proxy")  # it follows the clock
    findings += wide
    logged = None
    if own_quotes is not None:
        if isinstance(own_quotes, pd.DataFrame):
            log = own_quotes
            check_own_quotes("the log of own quotes", log)
        else:
            log = read_own_quotes(own_quotes)
        log = log.assign(time_s=log["time_s"] * TIME_UNITS[time_unit or "s"])
        outside = _outside(log, checked, first, last)
        findings += [] if outside is None else [outside]
        logged, wide = _executions(
            *own_counts(checked.in_observed_time(log), spread, stretches),
            0 * pieces,
            "fill_rate",
            "fills of own quotes",
        )
        findings += wide
        if not logged.seconds.any():
            raise ValueError(
                f"the log of own quotes has no quote between {first:g} and {last:g} s, the window of the tape: both "
                "files must be on one clock"
            )
    orders = checked.orders
    orders = orders[(orders["time_s"] > first) & (orders["time_s"] <= last)]
    findings += check_own_size(name, own_size, orders, proxy.counts.sum(axis=2)[:, 1], needed=logged is None)
    flow = []
    for aggressor, queue in zip(AGGRESSORS, spread.queues, strict=True):
        sizes = orders.loc[orders["side"] == aggressor, "size"]
        mean = float(sizes.mean()) if len(sizes) else math.nan
        flow.append(OrderFlow(len(sizes) / (finish - begin), mean, float(queue[:-1].mean())))
    bounds = np.clip(checked.bounds, first, last)
    own = np.flatnonzero(bounds[:, 1] > bounds[:, 0])
    mid, interval, noisy = sampled_volatility([parts[number] for number in own], bounds[own], volatility_interval)
    return Calibration(
        source="tape" if isinstance(path, pd.DataFrame) else Path(path).name,
        tick=step,
        start=begin,
        end=finish,
        transition_counts=spread.transition_counts,
        seconds=spread.seconds,
        clock_edges=edges,
        clock_counts=counts,
        own_size=float(own_size),
        proxy=proxy,
        own_quotes=logged,
        flow=(flow[0], flow[1]),
        tests=tests,
        mid=mid,
        volatility_interval=float(interval),
        initial_price=float(sample_mid(parts[own[0]], start=first, end=first, interval=1.0)[1][0]),
        clock_dispersion=clock_dispersion,
        hidden_jumps=hidden,
        findings=(*findings, *noisy),
    )


def _excess(dispersion: float, freedom: int) -> float:
    """A measured dispersion, 1 where chance explains it."""
    return dispersion if excessive(dispersion, freedom) else 1.0


def _overdispersed(what: str, dispersion: float, parameters: tuple[str, ...]) -> Finding:
    text = (
        f"{what} vary {dispersion:.3g} times as much over time as Poisson counts; standard errors and intervals are "
        f"{math.sqrt(dispersion):.3g} times those of the model."
    )
    return Finding("overdispersed", text, parameters)


def _executions(
    counts: Counts, seconds: Array, pieces: Counts, prefix: str, what: str
) -> tuple[Executions, list[Finding]]:
    """Executions over all stretches of time, with what their counts in stretches say of dispersion."""
    findings, dispersions = [], []
    kept = slice(1 if prefix == "proxy" else 0, None)  # an interval that counts for best counts for improved
    for side, name in enumerate(SIDES):
        seen, time = (table[:, side, kept].reshape(len(table), -1) for table in (counts, seconds))
        dispersions.append(_excess(*spread_of_counts(seen, time, pieces)))
        if dispersions[-1] > 1:
            concerned = tuple(f"{prefix}_{quote}_{name}" for quote in QUOTES)
            findings.append(_overdispersed(f"{what} ({name})", dispersions[-1], concerned))
    return Executions(counts.sum(axis=0), seconds.sum(axis=0), (dispersions[0], dispersions[1])), findings


def _outside(log: pd.DataFrame, checked: CheckedTape, first: float, last: float) -> Finding | None:
    """Fills of a log that are not in the window of the tape, if they are many."""
    times = log.loc[log["event"] == "fill", "time_s"].to_numpy(dtype=float)
    left_out = int((~(checked.seen(times) & (times >= first) & (times <= last))).sum())
    if left_out < 5 or left_out < 0.05 * times.size:
        return None
    text = f"{left_out} of {times.size} fills of the log lie outside the tape or in its gaps, and are left out: "
    return Finding("time_unit", f"{text}are both on one clock and in one unit?", ("fill_rate",))


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _window(
    name: str, quotes: pd.DataFrame, last: float, start: float | None, end: float | None
) -> tuple[float, float]:
    """The window that is used."""
    first = float(quotes["time_s"].iloc[0])
    begin, finish = first if start is None else float(start), last if end is None else float(end)
    if not first <= begin < finish <= last:
        raise ValueError(
            f"{name}: start = {begin:g} and end = {finish:g} are not allowed: the window must have positive length and "
            f"lie between the first quote ({first:g} s) and the last event ({last:g} s)"
        )
    return begin, finish


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


def _json_executions(executions: Executions) -> dict[str, Any]:
    return {
        "counts": executions.counts.tolist(),
        "seconds": executions.seconds.tolist(),
        "dispersion": list(executions.dispersion),
    }


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
    parser.add_argument("--own-size", type=float, default=100.0, metavar="V0", help="of the proxy (default 100)")
    parser.add_argument("--start", type=float, metavar="SECONDS", help="of the window (default: first quote)")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="of the window (default: last event)")
    parser.add_argument("--volatility-interval", type=float, metavar="SECONDS", help=INTERVAL)
    parser.add_argument("--time-unit", choices=["s", "ms", "us", "ns"], help=TIME_UNIT)
    text = "times of the tape at which the clock may change"
    pieces.add_argument("--clock-changes", dest="clock_pieces", nargs="+", type=float, metavar="SECONDS", help=text)


def run(options: argparse.Namespace) -> None:
    """Run ``mmgym calibrate tick_spread``."""
    fit_and_show(calibrate, "mmgym/TickSpread-v0", options)
