"""The result of a calibration of the tick-spread market: estimates, and what they say in words and in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.book_sizes import BookSizes
from mmgym.calibration.own_quotes import QUOTES, SIDES
from mmgym.calibration.report import REJECTION, as_json, logarithmic_axis, save_figure, shown_p_value, verdict
from mmgym.calibration.score_intervals import Estimates, rates
from mmgym.calibration.spread_chain import ENOUGH_VISITS, ModelTest
from mmgym.calibration.tape_checks import (
    marked,
    require_finite,
)
from mmgym.calibration.tick_spread_chain import LAWS, SpreadChain
from mmgym.calibration.volatility import BrownianFit, draw_signature
from mmgym.calibration.volume_proxy import proxy_limit, single_order_rate
from mmgym.plot import new_figure
from mmgym.tapes.findings import Finding, described

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

LOGARITHMIC = 20.0  # ratio of rates from which their axis is logarithmic

COLOURS = {"best": "tab:blue", "improved": "tab:orange"}


@dataclass(frozen=True, eq=False)
class Executions:
    """Counts and time of one way to estimate the execution intensities, each of shape (2, 2, m).

    The axes are side (bid, ask), quote (best, improved) and spread; seconds are 0 where nothing was seen. The
    dispersion is the measured variance of the counts over that of Poisson counts, on ``freedom`` degrees of freedom,
    NaN where it is not told.
    """

    counts: Counts
    seconds: Array
    dispersion: Array
    freedom: int

    @property
    def rates(self) -> Estimates:
        """Intensities (1 / s), NaN where there is no time; the dispersion is in standard errors and intervals."""
        return rates(self.counts, self.seconds, self.dispersion, self.freedom)


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
    chain : SpreadChain
        Jumps of the spread, its clock, their intervals and tests.
    own_size : float
        ``V_0`` of the proxy.
    proxy : Executions
        By the volume rule (2.13).
    own_quotes : Executions or None
        By (2.11) and (2.12), if a log was given.
    flow : tuple of OrderFlow
        Sell orders (they fill bids) and buy orders.
    sizes : BookSizes
        Price grid, queues at the best prices and market orders.
    mid : BrownianFit or None
        Volatility and drift; None where the sampled mid tells none.
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
    chain: SpreadChain
    own_size: float
    proxy: Executions
    own_quotes: Executions | None
    flow: tuple[OrderFlow, OrderFlow]
    sizes: BookSizes
    mid: BrownianFit | None
    volatility_interval: float
    initial_price: float
    findings: tuple[Finding, ...] = ()

    @property
    def num_spreads(self) -> int:
        """m."""
        return self.chain.num_spreads

    @property
    def rejected(self) -> list[str]:
        """The laws of the fitted chain that the tape rejects."""
        return self.chain.rejected

    @property
    def transition_counts(self) -> Counts:
        """Jumps of the spread, shape (m, m)."""
        counts: Counts = self.chain.transitions.sum(axis=0)
        return counts

    @property
    def seconds(self) -> Array:
        """Time at each spread, shape (m,)."""
        return np.asarray(self.chain.seconds.sum(axis=0))

    @property
    def clock_counts(self) -> Counts:
        """Jumps in each piece of the clock, shape (K,)."""
        counts: Counts = self.chain.exits.sum(axis=1)
        return counts

    def table(self) -> pd.DataFrame:
        """One row per parameter: ``estimate, standard_error, lower, upper, unit, count, exposure`` (95 % interval).

        Rows ``spread_transitions[i,j]`` (those of the diagonal, if spreads are left at rates of their own, with all
        jumps out of i), ``clock_rate[from..to]`` (seconds of the tape), ``exit_rate[i]``, ``fill_rate_QUOTE_SIDE[i]``
        from own quotes if a log was given, ``proxy_QUOTE_SIDE[i]``, ``volatility``, ``tick``, and mean sizes of queues
        and orders. Spreads are in ticks. The exposure is a number of jumps or seconds; an intensity that was never
        exposed has no row. Where there are findings, their names stand in a column ``warning``.
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

        Returns
        -------
        dict
            With the rates of the proxy the largest orders are `own_size`, the lot a tenth of it, and the inventory is
            limited to ten times it.

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
        edges, pace = self.chain.edges, self.chain.clock_rates.value
        pieces = [
            [max(float(low) - begin, 0.0), float(rate)]
            for low, high, rate in zip(edges[:-1], edges[1:], pace, strict=True)
            if high > begin
        ]
        arguments: dict[str, Any] = {
            "tick": self.tick,
            "spread_transitions": self.chain.spread_transitions.value.tolist(),
            "clock_rate": pieces if len(pieces) > 1 else pieces[0][1],
            "fill_rate_best": fill_rates[:, 0].tolist(),
            "fill_rate_improved": fill_rates[:, 1].tolist(),
            "initial_price": self.initial_price,
        }
        if source is self.proxy:  # lots and limits in the proportions of the market's defaults
            size = self.own_size
            arguments |= {"lot": size / 10, "limit_order_max": size, "market_order_max": size}
            arguments["inventory_limit"] = 10 * size
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
        tests = {name: as_json(test) | {"p_value": as_json(test.p_value)} for name, test in self.chain.tests.items()}
        content: dict[str, Any] = as_json(self)
        content["chain"]["tests"] = tests
        return content | {"rejected": self.rejected, "estimates": as_json(self.table().reset_index())}

    def summary(self) -> str:
        """A few sentences: warnings, what was seen, how well the model holds, and what the proxy is worth."""
        jumps, duration = int(self.clock_counts.sum()), self.end - self.start
        left = self.transition_counts.sum(axis=1)
        rare = int(left.argmin())
        sentences = [
            *described(self.findings),
            f"{self.source}: {jumps} jumps of the spread in {duration:.6g} s (from {self.start:g} to {self.end:g}), "
            f"{self.num_spreads} spreads of tick {self.tick:g}, the widest with all that are wider. The rarest spread, "
            f"{rare + 1} tick{'s' * (rare > 0)}, was left {left[rare]} times"
            + ("." if left[rare] >= ENOUGH_VISITS else f": few, {ENOUGH_VISITS} bound standard errors by 0.05."),
            _clock_sentence(self),
            _verdict(
                "Holding times on the clock's time are exponential",
                self.chain.tests["holding_times"],
                "needs 50 jumps or more",
            ),
            _one_clock_sentences(self),
            _verdict(
                "Given the spread, the next one does not depend on the one before (Markov)",
                self.chain.tests["markov"],
                "needs three spreads and more jumps",
            ),
            *_proxy_sentences(self),
        ]
        if self.own_quotes is not None:
            sentences += [_own_quotes_sentence(self.own_quotes, side) for side in range(2)]
        if self.mid is None:
            sentences.append("The sampled mid does not move, or does not spread with time: no volatility.")
        else:
            sentences.append(f"{self.mid.sentence()} The mid is sampled every {self.volatility_interval:g} s.")
        return "\n".join(sentences)

    def plot(self, path: str | Path) -> Path:
        """Write a PNG: clock, transition matrix, time and intensities by spread, and the signature plot.

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
        figure = new_figure(17, 9)
        (clock, matrix, shares), (*sides, signature) = figure.subplots(2, 3)
        _draw_clock(self, clock)
        _draw_matrix(self, matrix)
        sides[1].sharey(sides[0])
        for side, panel in enumerate(sides):
            _draw_rates(self, side, panel)
        _scale_rates(self, sides[0])
        _draw_shares(self, shares)
        if self.mid is None:
            signature.set_axis_off()
        else:
            draw_signature(self.mid, signature)
        figure.suptitle(f"{self.source}: tick {self.tick:g}, {self.num_spreads} spreads")
        return save_figure(figure, path, self.findings, width=250)

    def _rows(self) -> Iterator[tuple[str, list[Any]]]:
        """Rows of the table, by name."""
        chain, left = self.chain, self.transition_counts.sum(axis=1)
        rho, counts = chain.spread_transitions, self.transition_counts + np.diag(left)
        for i, j in np.ndindex(*counts.shape):
            if i != j or chain.by_spread:
                numbers = [float(part[i, j]) for part in rho]
                yield f"spread_transitions[{i + 1},{j + 1}]", [*numbers, "1", int(counts[i, j]), float(left[i])]
        for k, count in enumerate(self.clock_counts):
            low, high = chain.edges[k : k + 2]
            numbers = [float(part[k]) for part in chain.clock_rates]
            yield f"clock_rate[{low:.10g}..{high:.10g}]", [*numbers, "1/s", int(count), float(high - low)]
        for i, count in enumerate(left):
            numbers = [float(part[i]) for part in chain.exit_rates]
            yield f"exit_rate[{i + 1}]", [*numbers, "1/s", int(count), float(self.seconds[i])]
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
        for name, (size, unit) in self.sizes.estimates().items():
            yield name, [*vars(size).values(), unit, math.nan, self.end - self.start]


def _verdict(claim: str, test: ModelTest, lacking: str) -> str:
    if not test.degrees_of_freedom:
        return f"{claim}: not tested, that {lacking}."
    return (
        f"{claim}: {verdict(test.p_value, len(LAWS))} (chi-square {test.statistic:.4g} on {test.degrees_of_freedom} "
        f"degrees of freedom, p {shown_p_value(test.p_value)})."
    )


def _clock_sentence(calibration: Calibration) -> str:
    clock, test = calibration.chain.clock_rates.value, calibration.chain.tests["clock"]
    shown = f"{clock[0]:.4g} per s" if clock.size == 1 else f"{clock.min():.4g} to {clock.max():.4g} per s"
    text = f"Clock: {shown} on {clock.size} piece{'s' * (clock.size > 1)}. "
    text += _verdict("Jumps in stretches of time are Poisson", test, "needs ten jumps or more in a piece")
    if test.degrees_of_freedom and test.p_value < REJECTION and test.dispersion > 1:
        text += f" They vary {test.dispersion:.3g} times as much: the clock may need more pieces."
    return text


def _one_clock_sentences(calibration: Calibration) -> str:
    observed, model = calibration.seconds / calibration.seconds.sum(), calibration.chain.model_shares
    stays = calibration.seconds / calibration.transition_counts.sum(axis=1)
    widest = int(np.abs(observed - model).argmax())
    test, by_spread = calibration.chain.tests["one_clock"], calibration.chain.by_spread
    text = _verdict("All spreads are left at one rate (one clock)", test, "needs two spreads")
    text += " Each is left at a rate of its own, through the diagonal." if by_spread else " One rate is taken for all."
    return (
        f"{text} Shares of time at spreads 1 to {calibration.num_spreads}: {_shares(observed)} on the tape, "
        f"{_shares(model)} in the model; they differ most, by {abs(observed - model)[widest]:.3f}, at {widest + 1}. "
        f"Mean stays there: {' '.join(f'{stay:.3g}' for stay in stays)} s."
    )


def _shares(law: Any) -> str:
    return " ".join(f"{share:.3f}" for share in law)


def _proxy_sentences(calibration: Calibration) -> list[str]:
    counts = calibration.proxy.counts.sum(axis=2)
    text = (
        f"Proxy intensities (2.13), for orders of {calibration.own_size:g}: " + "; ".join(
            f"{side} {quote} {counts[s, q]} counts" for s, side in enumerate(SIDES) for q, quote in enumerate(QUOTES)
        ) + "."
    )  # fmt: skip
    if counts.min() == 0:
        text += " Some never count: is own_size in the unit of the tape's sizes?"
    ratios = "; ".join(
        f"{row.side} {row.quote} {row.proxy_limit:.3g} for {row.single_order_rate:.3g}"
        for row in calibration.proxy_bias().itertuples()
    )
    bias = (
        "The proxy is biased: an interval counts once at most (low), and volumes add up (high). If orders were Poisson "
        "with exponential sizes, at this tape's order rate, mean sizes and jump rate, it would tend to (per s, for "
        f"the true rate of single orders that large): {ratios}."
    )
    return [text, bias] if ratios else [text]


def _own_quotes_sentence(executions: Executions, side: int) -> str:
    parts = ", ".join(
        f"{executions.counts[side, q].sum()} fills in {executions.seconds[side, q].sum():.5g} s {quote}"
        for q, quote in enumerate(QUOTES)
    )
    return f"Own quotes, {SIDES[side]}: {parts}."


def _draw_clock(calibration: Calibration, panel: Any) -> None:
    hours = calibration.end - calibration.start > 2 * 3600
    edges = calibration.chain.edges / (3600 if hours else 1)
    value, _, lower, upper = calibration.chain.clock_rates
    panel.stairs(value, edges, color="tab:blue", linewidth=1.5, baseline=None)
    panel.errorbar(
        (edges[:-1] + edges[1:]) / 2, value, [value - lower, upper - value], fmt="o", markersize=4, capsize=3,
        color="tab:blue", label="95 %",
    )  # fmt: skip
    panel.set_ylim(0, 1.2 * float(upper.max()))
    panel.set_xlabel(f"time of the tape ({'hours' if hours else 's'})")
    by_spread = calibration.chain.by_spread
    panel.set_ylabel("ticks of the clock per second" if by_spread else "jumps of the spread per second")
    panel.set_title("clock: rate of the spread left fastest" if by_spread else "clock (2.9)")
    panel.grid(alpha=0.3)
    panel.legend()


def _draw_matrix(calibration: Calibration, panel: Any) -> None:
    rho, m = calibration.chain.spread_transitions, calibration.num_spreads
    panel.imshow(rho.value, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if m <= 10:
        for i, j in np.argwhere(~np.eye(m, dtype=bool) | calibration.chain.by_spread):
            share, error = rho.value[i, j], rho.stderr[i, j]
            text = f"{share:.3f}\n±{error:.3f}"
            panel.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if share > 0.5 else "black")
    labels = _spread_labels(m)
    left = calibration.transition_counts.sum(axis=1)
    panel.set_xticks(range(m), labels)
    panel.set_yticks(range(m), [f"{label}\n(n={n})" for label, n in zip(labels, left, strict=True)])
    panel.set_xlabel("to (ticks)")
    panel.set_ylabel("from (ticks)")
    panel.set_title("transition matrix, ± standard error")


def _draw_shares(calibration: Calibration, panel: Any) -> None:
    m = calibration.num_spreads
    place = np.arange(1, m + 1)
    panel.bar(place - 0.2, calibration.seconds / calibration.seconds.sum(), 0.4, color="tab:gray", label="tape")
    panel.bar(place + 0.2, calibration.chain.model_shares, 0.4, color="tab:orange", label="fitted chain")
    panel.set_xticks(place, _spread_labels(m))
    panel.set_xlabel("spread (ticks)")
    panel.set_ylabel("share of the time")
    panel.set_title("time at each spread")
    panel.grid(alpha=0.3, axis="y")
    panel.legend()


def _draw_rates(calibration: Calibration, side: int, panel: Any) -> None:
    spreads = np.arange(1, calibration.num_spreads + 1)
    drawn: list[tuple[str, Executions, str, str | None, str]] = [("proxy", calibration.proxy, "s", "none", ":")]
    if calibration.own_quotes is not None:
        drawn.append(("own quotes", calibration.own_quotes, "o", None, "-"))
    for k, (label, executions, marker, face, line) in enumerate(drawn):
        value, _, lower, upper = executions.rates
        for q, quote in enumerate(QUOTES):
            seen = executions.seconds[side, q] > 0
            if not seen.any():
                continue
            y = value[side, q][seen]
            errors = [y - lower[side, q][seen], upper[side, q][seen] - y]
            panel.errorbar(
                spreads[seen] + 0.06 * (2 * k + q - len(drawn) + 0.5), y, errors, fmt=marker, linestyle=line,
                markersize=5, capsize=3, markerfacecolor=face, color=COLOURS[quote], label=f"{quote}, {label}",
            )  # fmt: skip
    shares = 100 * calibration.seconds / calibration.seconds.sum()
    labels = [f"{n}\n{share:.3g} %" for n, share in zip(_spread_labels(calibration.num_spreads), shares, strict=True)]
    panel.set_xticks(spreads, labels)
    panel.set_xlim(0.5, calibration.num_spreads + 0.5)
    panel.set_xlabel("spread (ticks), share of the time")
    panel.set_ylabel("executions per second")
    panel.set_title(f"{SIDES[side]} intensities, 95 % (proxy: orders of {calibration.own_size:g})")
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", ncols=len(drawn), fontsize=9)


def _scale_rates(calibration: Calibration, panel: Any) -> None:
    """Room for the legend; a logarithmic axis where the rates differ by more than a factor of 20."""
    shown = [part.rates for part in (calibration.proxy, calibration.own_quotes) if part is not None]
    values = np.concatenate([part.value.ravel() for part in shown])
    positive = values[values > 0]
    highest = max(float(np.nanmax(part.upper)) for part in shown)
    if positive.size and positive.max() > LOGARITHMIC * positive.min():
        lowest = float(positive.min()) / 2
        logarithmic_axis(panel)
        panel.set_ylim(lowest, highest * (highest / lowest) ** 0.25)
    else:
        panel.set_ylim(0, 1.25 * highest)


def _spread_labels(m: int) -> list[str]:
    return [str(i) for i in range(1, m)] + [f"{m}+"]
