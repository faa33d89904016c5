"""Calibration of the GLFT market from a recorded market.

The mid price follows ``dS = drift dt + volatility dW``; an order quoted at depth ``d`` from the mid is filled at rate
``fill_rate * exp(-fill_decay * d)`` per second, bid and ask each with parameters of their own. `calibrate` estimates
all of them by maximum likelihood from one of two kinds of file.

Quotes file
-----------
What a market maker's own quotes did, in the format of `mmgym.calibration.quotes`: ``time, mid, bid_depth, ask_depth,
bid_exposure, ask_exposure, bid_fills, ask_fills`` and optionally ``episode``, one row per interval.

Level-1 tape
------------
Best quotes and trades of a whole market, in any format of `mmgym.tapes`. Choices made in reading it:

- Trades of one aggressor side at one time stamp are one market order. Sell orders fill bids, buy orders fill asks.
- Its reach is the distance of its worst price from the mid *before that time stamp*: within a time stamp a tape may
  print the new quotes ahead of the trades that caused them.
- The depths that are fitted are chosen by the rule of `mmgym.calibration.depth_window`: from the touch (the median
  half-spread, weighted by time) on where the law holds there, farther out or in a window where it does not.
  ``fill_rate`` is an extrapolation to depth 0. Orders that do not get so far are left out, and counted.
- The mid is sampled every ``volatility_interval`` seconds (the last quote at or before). Rounding to ticks and the
  bounce between bid and ask are no volatility: it is that of two scales (`mmgym.calibration.volatility`).
- A quote at depth ``d`` is taken to be filled by every order that reaches ``d``: first in its queue, and too small to
  change what the others do.

The estimators and the test of the exponential law are in `mmgym.calibration.exponential`, the intervals, which hold the
clustering of orders, in `mmgym.calibration.block_intervals`. What the mid does after fills, and the parameters of
`mmgym/Impact-v0`, are in `mmgym.calibration.adverse_selection`; what can be wrong with a file, and what is done about
it, is in `mmgym.tapes.checker` and `mmgym.calibration.tape_checks`.

References
----------
Guéant, O., Lehalle, C.-A. and Fernandez-Tapia, J. (2013). Dealing with the inventory risk: a solution to the market
making problem. *Mathematics and Financial Economics* 7(4).

Avellaneda, M. and Stoikov, S. (2008). High-frequency trading in a limit order book. *Quantitative Finance* 8(3).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.adverse_selection import AdverseSelection, measure, pressure_limit
from mmgym.calibration.block_intervals import BLOCKS
from mmgym.calibration.book_sizes import BookSizes, book_sizes
from mmgym.calibration.command import INTERVAL, add_file_options, fit_and_show
from mmgym.calibration.depth_window import choose_window
from mmgym.calibration.exponential import ExponentialFit, fit_fills, fit_reaches
from mmgym.calibration.quotes import read_quotes
from mmgym.calibration.report import (
    as_json,
    estimate_table,
    logarithmic_axis,
    rejected_laws,
    save_figure,
    shown_p_value,
    verdict,
)
from mmgym.calibration.tape_checks import (
    check_own_record,
    overdispersion,
    rejection,
    require_finite,
    unhidden_rate,
)
from mmgym.calibration.volatility import BrownianFit, draw_signature, recorded_volatility, sampled_volatility
from mmgym.plot import new_figure
from mmgym.tapes import CheckedTape, Finding, Selection, check_level1
from mmgym.tapes.clocks import coarse_clock
from mmgym.tapes.findings import described
from mmgym.tapes.level1 import price_step
from mmgym.tapes.recording import Paths
from mmgym.tapes.selection import add_tape_options, selection_of
from mmgym.tapes.text_files import open_source

UNITS = {
    "fill_rate": "1/s",
    "log_fill_rate": "log(1/s)",
    "fill_decay": "1/price",
    "volatility": "price/sqrt(s)",
    "drift": "price/s",
    "impact": "price",
    "pressure_drift": "price/s",
    "pressure_decay": "1/s",
}

SIDES = (("bid", "sell"), ("ask", "buy"))  # and the aggressor that fills it
FIRM_COUNT = 25  # fills from which the summary compares a rate with the fitted one


@dataclass(frozen=True)
class Calibration:
    """Parameters of the GLFT market with standard errors, 95 % intervals and tests of the model.

    Attributes
    ----------
    source : str
        Name of the file, without its folder.
    kind : str
        ``"quotes"`` or ``"tape"``.
    bid, ask : ExponentialFit
        Fill rate and decay of each side.
    mid : BrownianFit
        Volatility and drift.
    volatility_interval : float or None
        Seconds between the sampled mid prices of a tape; None for a quotes file, whose rows are used as they are.
    minimum_depth : float or None
        Smallest depth fitted on a tape, units of price; None for a quotes file.
    maximum_depth : float or None
        Depth at which the reaches of a tape were censored; None where they were not.
    depths_by_rule : bool
        Whether these were chosen by the rule of `mmgym.calibration.depth_window`.
    orders_left_out : int
        Market orders of a tape that have no quote before them, or do not get to ``minimum_depth``.
    sizes : BookSizes or None
        Tick, queues at the best prices and market orders of a tape.
    adverse_selection : AdverseSelection or None
        What the mid of a tape does after fills, where there are enough.
    findings : tuple of Finding
        Warnings (see `mmgym.tapes.checker`).
    """

    source: str
    kind: str
    bid: ExponentialFit
    ask: ExponentialFit
    mid: BrownianFit
    volatility_interval: float | None = None
    minimum_depth: float | None = None
    maximum_depth: float | None = None
    depths_by_rule: bool = False
    orders_left_out: int = 0
    sizes: BookSizes | None = None
    adverse_selection: AdverseSelection | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def rejected(self) -> list[str]:
        """The laws that the record rejects: the exponential one of a side."""
        return rejected_laws(_p_values(self.bid, self.ask))

    def table(self) -> pd.DataFrame:
        """One row per parameter: ``estimate, standard_error, lower, upper, unit`` (95 % interval).

        Where there are findings, their names stand in a column ``warning``.
        """
        estimates = {}
        for name in ("fill_rate", "log_fill_rate", "fill_decay"):
            for label, side in (("bid", self.bid), ("ask", self.ask)):
                estimates[f"{name}_{label}"] = (getattr(side, name), UNITS[name])
        for name in ("volatility", "drift"):
            estimates[name] = (getattr(self.mid, name), UNITS[name])
        if self.sizes is not None:
            estimates |= self.sizes.estimates()
        if self.adverse_selection is not None:
            for name in ("impact", "pressure_drift", "pressure_decay"):
                estimates[name] = (getattr(self.adverse_selection.law, name), UNITS[name])
        return estimate_table(estimates, self.findings)

    def kwargs(self, *, drift: bool = False) -> dict[str, float | list[float]]:
        """Arguments for ``gymnasium.make("mmgym/GLFT-v0", **kwargs)``.

        Parameters
        ----------
        drift : bool
            Whether to pass the drift on. Left out by default: over any usual sample it is noise.

        Raises
        ------
        ValueError
            If a fill_decay is not positive: then the fills did not thin out with depth, and GLFT is no model for them.
        """
        decay = [self.bid.fill_decay.value, self.ask.fill_decay.value]
        if min(decay) <= 0:
            raise ValueError(f"fill_decay must be positive for the GLFT market, estimated [bid, ask] = {decay}")
        arguments: dict[str, float | list[float]] = {
            "volatility": self.mid.volatility.value,
            "fill_rate": [self.bid.fill_rate.value, self.ask.fill_rate.value],
            "fill_decay": decay,
        }
        if drift:
            arguments["drift"] = self.mid.drift.value
        require_finite(arguments)
        return arguments

    def impact_kwargs(self) -> dict[str, float]:
        """Arguments for ``gymnasium.make("mmgym/Impact-v0", **kwargs)``, in seconds; both sides are taken together.

        The decay is the mean of the sides, and the rate is theirs together where they are fitted. The pressure is
        bounded where such fills hardly take it.

        Raises
        ------
        ValueError
            As `kwargs`, or if the record does not tell the impact.
        """
        if self.adverse_selection is None:
            raise ValueError("the impact market needs a tape with 50 fills or more on each side")
        self.kwargs()  # refuses what makes no market
        law = self.adverse_selection.law
        sides, depth = (self.bid, self.ask), self.minimum_depth or 0.0
        decay = sum(side.fill_decay.value for side in sides) / 2
        at_depth = sum(side.fill_rate.value * math.exp(-side.fill_decay.value * depth) for side in sides) / 2
        impact = {
            "volatility": self.mid.volatility.value,
            "fill_rate": at_depth * math.exp(decay * depth),
            "fill_decay": decay,
            "impact": law.impact.value,
            "pressure_drift": law.pressure_drift.value,
            "pressure_decay": law.pressure_decay.value,
            "pressure_limit": pressure_limit(at_depth, law.pressure_decay.value),
        }
        require_finite(impact)
        return impact

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, the rates by depth included (a list of rows); NaN becomes None."""
        content: dict[str, Any] = as_json(self)
        return content

    def summary(self) -> str:
        """A few sentences: warnings, the estimates, and how well the model holds."""
        sampled = (
            "" if self.volatility_interval is None else f" The mid is sampled every {self.volatility_interval:g} s."
        )
        sentences = [f"{self.source} ({self.kind}): {self.mid.sentence()}{sampled}"]
        if self.minimum_depth is not None:
            depths = "on" if self.maximum_depth is None else f"to {self.maximum_depth:g}"
            if self.depths_by_rule and not self.rejected:
                depths += ", the nearest and widest window in which the law holds"
            sentences.append(
                f"Fitted from depth {self.minimum_depth:g} {depths} (price units); left out: {self.orders_left_out} "
                "market orders that do not get so far or have no quote before them."
            )
        sentences += [_side_summary("Bid", self.bid, self.kind), _side_summary("Ask", self.ask, self.kind)]
        if self.adverse_selection is not None:
            sentences.append(self.adverse_selection.sentence())
        return "\n".join([*described(self.findings), *sentences])

    def plot(self, path: str | Path) -> Path:
        """Write a PNG: rates by depth with 95 % intervals and the fitted law for each side, and the signature plot.

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
        event = "fills" if self.kind == "quotes" else "market orders"
        figure = new_figure(14, 4.5)
        *panels, signature = figure.subplots(1, 3)
        panels[1].sharex(panels[0])
        panels[1].sharey(panels[0])
        draw_signature(self.mid, signature)
        for panel, name, side in zip(panels, ("bid", "ask"), (self.bid, self.ask), strict=True):
            rates = side.rates[side.rates["fills"] > 0]
            errors = [rates["rate"] - rates["lower"], rates["upper"] - rates["rate"]]
            panel.errorbar(
                rates["depth"], rates["rate"], errors, fmt="o", markersize=4, capsize=2, label="observed, 95 %"
            )
            depth = np.linspace(min(0.0, rates["depth"].min()), rates["depth"].max(), 200)
            rate, decay = side.fill_rate.value, side.fill_decay.value
            panel.plot(depth, rate * np.exp(-decay * depth), label=f"{rate:.3g} exp(-{decay:.3g} d)")
            panel.set_title(f"{name}: {side.fills} {event} in {side.exposure:.4g} s")
            panel.set_xlabel("depth d from the mid (price units)")
            panel.grid(alpha=0.3)
            panel.legend()
        shown = pd.concat([self.bid.rates, self.ask.rates])
        highest = max(shown["upper"].max(), self.bid.fill_rate.value, self.ask.fill_rate.value)
        logarithmic_axis(panels[0])
        panels[0].set_ylim(shown["lower"][shown["fills"] > 0].min() / 1.5, highest * 1.5)
        panels[0].set_ylabel("fills per second" if self.kind == "quotes" else "orders reaching depth d, per second")
        return save_figure(figure, path, self.findings, width=200)


def calibrate(
    path: Paths,
    *,
    kind: str = "auto",
    volatility_interval: float | None = None,
    minimum_depth: float | None = None,
    maximum_depth: float | None = None,
    time_unit: str | None = None,
    selection: Selection | None = None,
) -> Calibration:
    """Calibrate the GLFT market from a file.

    Parameters
    ----------
    path : str, Path or sequence of them
        A quotes file, or the files of a tape in any format of `mmgym.tapes`.
    kind : {"auto", "quotes", "tape"}
        Kind of file; ``"auto"`` looks at the header.
    volatility_interval : float, optional
        Seconds between the sampled mid prices of a tape, the shortest scale of the volatility; by default 1, or more
        where quotes are rare. Of a quotes file all rows are used.
    minimum_depth, maximum_depth : float, optional
        Depths of a tape between which the law is fitted, units of price: best those where quotes will stand. By default
        those of the rule of `mmgym.calibration.depth_window`. A quotes file takes neither.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Unit of ``time_s`` of a tape. By default seconds, and what looks like another unit is refused.
    selection : Selection, optional
        What is used of a tape; all by default.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If an argument is out of range, the file breaks its format (the message names file, line and column), no right
        number can be given from it, or the data do not identify the parameters (the message says what is needed).
    """
    if kind not in ("auto", "quotes", "tape"):
        raise ValueError(f"kind must be 'auto', 'quotes' or 'tape', got {kind!r}")
    paths = [path] if isinstance(path, str | Path) else list(path)
    if kind == "auto":
        header = open_source(paths[0])[0].header if paths else []
        kind = "quotes" if "bid_depth" in header or "ask_depth" in header else "tape"
    if kind == "tape":
        return calibrate_tape(
            path,
            volatility_interval=volatility_interval,
            minimum_depth=minimum_depth,
            maximum_depth=maximum_depth,
            time_unit=time_unit,
            selection=selection,
        )
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} quotes files: one is allowed; mark runs in it by the column episode")
    if time_unit is not None:
        raise ValueError("time_unit is for tapes; times and exposures of a quotes file are seconds")
    if selection is not None and selection != Selection():
        raise ValueError("window, session, gap, symbol, clock and trade_lag are for tapes, not for a quotes file")
    if minimum_depth is not None or maximum_depth is not None:
        raise ValueError("minimum_depth and maximum_depth are for tapes; a quotes file is fitted at its own depths")
    return calibrate_quotes(paths[0])


def calibrate_quotes(path: str | Path) -> Calibration:
    """Calibrate from a quotes file (see `calibrate`)."""
    path = Path(path)
    quotes = read_quotes(path)
    episode, findings = check_own_record(path, quotes)
    sides = []
    for side in ("bid", "ask"):
        live = quotes[quotes[f"{side}_exposure"] > 0]
        if live.empty:
            raise ValueError(f"{path}: {side}: never quoted; fill_rate and fill_decay need rows of positive exposure")
        try:
            fit = fit_fills(live[f"{side}_depth"], live[f"{side}_exposure"], live[f"{side}_fills"])
        except ValueError as error:
            raise ValueError(f"{path}: {side}: {error}") from error
        findings += overdispersion(f"{side}: fills", fit.dispersion, min(BLOCKS, len(live)) - 1, _rate_names(side))
        sides.append(fit)
    try:
        mid, noisy = recorded_volatility(quotes["time"], quotes["mid"], episode)
    except ValueError as error:
        raise ValueError(f"{path}: mid: {error}") from error
    findings += [*noisy, *rejection(rejected_laws(_p_values(*sides)), ("fill_", "log_fill"))]
    return Calibration(source=path.name, kind="quotes", bid=sides[0], ask=sides[1], mid=mid, findings=tuple(findings))


def calibrate_tape(
    path: Paths,
    *,
    volatility_interval: float | None = None,
    minimum_depth: float | None = None,
    maximum_depth: float | None = None,
    tick: float | None = None,
    time_unit: str | None = None,
    selection: Selection | None = None,
) -> Calibration:
    """Calibrate from a level-1 tape (see `calibrate`).

    Parameters
    ----------
    path : str, Path or sequence of them
        The files of the tape.
    volatility_interval : float, optional
        Seconds between the sampled mid prices, the shortest scale of the volatility; by default 1, or more where quotes
        are rare.
    minimum_depth : float, optional
        Smallest depth fitted, units of price; by default by rule.
    maximum_depth : float, optional
        Reaches are censored here; by default by rule.
    tick : float, optional
        Price grid; by default the smallest difference between two best quotes of the tape.
    time_unit : {"s", "ms", "us", "ns"}, optional
        See `calibrate`.
    selection : Selection, optional
        See `calibrate`.
    """
    if volatility_interval is not None and not (math.isfinite(volatility_interval) and volatility_interval > 0):
        raise ValueError(f"volatility_interval must be positive and finite (seconds), got {volatility_interval}")
    checked = check_level1(path, selection, time_unit=time_unit, reach=True)
    name = checked.name
    findings = list(checked.findings)
    parts, orders = checked.quotes, checked.orders
    quotes = pd.concat(parts, ignore_index=True)
    if len(quotes) < 2:
        raise ValueError(f"{name}: a tape needs quotes at two times at least, got {len(quotes)}")
    bounds = checked.bounds
    if not checked.seconds > 0:
        raise ValueError(f"{name}: nothing follows the first quote: a tape needs events at two times at least")
    tick = price_step(quotes) if tick is None else tick
    touch, clock = _touch(parts, bounds[:, 1], tick), checked.trade_clock()

    def fit(low: float, high: float | None) -> list[ExponentialFit]:
        return [_fit_side(str(path), checked, *side, clock, tick, low, high)[0] for side in SIDES]

    by_rule = minimum_depth is None or maximum_depth is None
    minimum_depth, maximum_depth = choose_window(fit, touch, tick, minimum_depth, maximum_depth)
    sides = []
    for label, aggressor in SIDES:
        side, coarse = _fit_side(name, checked, label, aggressor, clock, tick, minimum_depth, maximum_depth)
        findings += [*overdispersion(f"{label}: orders", side.dispersion, BLOCKS - 1, _rate_names(label)), *coarse]
        sides.append(side)
    try:
        mid, interval, noisy = sampled_volatility(parts, bounds, volatility_interval, grid=tick, required=True)
    except ValueError as error:
        raise ValueError(f"{name}: mid, {error}") from error
    assert mid is not None
    findings += [*noisy, *rejection(rejected_laws(_p_values(*sides)), ("fill_", "log_fill"))]
    return Calibration(
        source=checked.label,
        kind="tape",
        bid=sides[0],
        ask=sides[1],
        mid=mid,
        volatility_interval=interval,
        minimum_depth=minimum_depth,
        maximum_depth=maximum_depth,
        depths_by_rule=by_rule,
        orders_left_out=len(orders) - sides[0].fills - sides[1].fills,
        sizes=book_sizes(parts, bounds, orders, tick),
        adverse_selection=measure(parts, bounds, orders, tick=tick, minimum_depth=minimum_depth),
        findings=tuple(findings),
    )


def _p_values(bid: ExponentialFit, ask: ExponentialFit) -> dict[str, float]:
    """Of the tests of the exponential law."""
    return {"exponential law of the bid": bid.p_value, "exponential law of the ask": ask.p_value}


def _rate_names(side: str) -> tuple[str, ...]:
    return f"fill_rate_{side}", f"log_fill_rate_{side}"


def _fit_side(
    path: str,
    checked: CheckedTape,
    name: str,
    aggressor: str,
    clock: float,
    tick: float,
    minimum_depth: float,
    maximum_depth: float | None,
) -> tuple[ExponentialFit, list[Finding]]:
    """The law of one side of a tape, as wide as its clock says, with what is to be said of that."""
    orders, bounds = checked.orders, checked.bounds
    own = orders[orders["reach"].notna() & (orders["side"] == aggressor)]
    concerned = (f"fill_rate_{name}", f"log_fill_rate_{name}", f"fill_decay_{name}")
    hidden, coarse = coarse_clock(path, f"{aggressor} orders", len(own), checked.seconds, clock, concerned)
    try:
        side = fit_reaches(
            checked.observed(own["time_s"]),
            own["reach"],
            start=float(bounds[0, 0]),
            end=float(checked.observed(bounds[-1, 1])),
            tick=tick,
            minimum_depth=minimum_depth,
            maximum_depth=maximum_depth,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {name}: {error}") from error
    return (side, []) if coarse is None else (unhidden_rate(side, hidden), [coarse])


def _touch(parts: Sequence[pd.DataFrame], ends: NDArray[np.float64], tick: float) -> float:
    """Median half-spread, weighted by the time it stood."""
    half_spread = np.concatenate([((part["ask"] - part["bid"]) / 2).to_numpy(dtype=float) for part in parts])
    seconds = np.concatenate(
        [np.diff(part["time_s"].to_numpy(dtype=float), append=end) for part, end in zip(parts, ends, strict=True)]
    )
    order = np.argsort(half_spread)
    elapsed = seconds[order].cumsum()
    median = half_spread[order][np.searchsorted(elapsed, elapsed[-1] / 2)]
    return float(f"{round(median / tick, 6) * tick:.10g}")


def _side_summary(name: str, side: ExponentialFit, kind: str) -> str:
    """How well the exponential and the Poisson law hold on one side."""
    rate, decay = side.fill_rate, side.fill_decay
    events = "fills" if kind == "quotes" else "market orders"
    text = (
        f"{name}: fill_rate {rate.value:.4g} +- {rate.stderr:.2g} per s, fill_decay {decay.value:.4g} +- "
        f"{decay.stderr:.2g} per price unit, from {side.fills} {events} "
        f"in {side.exposure:.5g} s. "
    )
    if side.degrees_of_freedom == 0:
        text += "The data leave nothing to test the exponential law with. "
    else:
        text += (
            f"The exponential law is {verdict(side.p_value, 2)}: deviance {side.deviance:.4g} on "
            f"{side.degrees_of_freedom} degrees of freedom, p {shown_p_value(side.p_value)}. "
        )
    firm = side.rates[side.rates["fills"] >= FIRM_COUNT]
    if not firm.empty:
        ratio, depth = firm["ratio"].to_numpy(dtype=float), firm["depth"].to_numpy(dtype=float)
        low, high = ratio.argmin(), ratio.argmax()
        text += (
            f"Empirical over fitted rate runs from {ratio[low]:.3g} (depth {depth[low]:.3g}) to {ratio[high]:.3g} "
            f"(depth {depth[high]:.3g}) over the depths with {FIRM_COUNT} {events} or more. "
        )
    if math.isfinite(side.dispersion):
        text += f"Counts over time vary {side.dispersion:.3g} times as much as Poisson counts."
    return text.rstrip()


TITLE = "exponential fill rates and a Brownian mid"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym calibrate glft``: those of `calibrate`."""
    add_file_options(parser, "glft", "quotes or level-1 tape")
    parser.add_argument("--kind", choices=["auto", "quotes", "tape"], default="auto")
    parser.add_argument("--volatility-interval", type=float, metavar="SECONDS", help=f"tape: {INTERVAL}")
    parser.add_argument("--minimum-depth", type=float, help="tape: smallest depth of the fit (default: by rule)")
    parser.add_argument("--maximum-depth", type=float, help="tape: largest depth of the fit (default: by rule)")
    text = "tape: drift of the mid after fills, as .csv or .json, or .png; may be given twice"
    parser.add_argument("--adverse-selection", action="append", default=[], metavar="FILE", help=text)
    add_tape_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run ``mmgym calibrate glft``.

    Raises
    ------
    ValueError
        As `calibrate`, or if adverse selection is asked for and cannot be told.
    """
    options.selection = selection_of(options)
    fit = fit_and_show(calibrate, _environments, options)
    for file in options.adverse_selection:
        if fit.adverse_selection is None:
            raise ValueError(f"{fit.source}: adverse selection needs a tape with 50 fills or more on each side")
        fit.adverse_selection.write(file)
        if file.endswith(".png"):
            print(f"\nwritten: {file}")


def _environments(fit: Calibration) -> dict[str, Any]:
    """Arguments of the environments of a fit."""
    own = {"mmgym/GLFT-v0": fit.kwargs()}
    return own if fit.adverse_selection is None else own | {"mmgym/Impact-v0": fit.impact_kwargs()}
