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
- The smallest depth is the median half-spread (weighted by time). Nothing can be seen nearer to the mid, so
  ``fill_rate`` is an extrapolation from there to depth 0. Orders that do not get so far are left out, and counted.
- The mid is sampled every ``volatility_interval`` seconds (the last quote at or before), because at the scale of
  milliseconds it is no Brownian motion: prices are rounded to ticks, and one large order moves them in several steps.
  The estimate depends on the interval: it is stated. By default it is one second, or more where changes are noisy.
- A quote at depth ``d`` is taken to be filled by every order that reaches ``d``: first in its queue, and too small to
  change what the others do.

The estimators, their standard errors and the test of the exponential law are in `mmgym.calibration.exponential`; what
can be wrong with a file, and what is done about it, in `mmgym.tapes.checker` and `mmgym.calibration.tape_checks`.

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

from mmgym.calibration.command import INTERVAL, add_file_options, fit_and_show
from mmgym.calibration.exponential import BrownianFit, ExponentialFit, fit_fills, fit_reaches
from mmgym.calibration.quotes import read_quotes
from mmgym.calibration.report import (
    as_json,
    estimate_table,
    logarithmic_axis,
    save_figure,
    shown_p_value,
    verdict,
)
from mmgym.calibration.tape_checks import (
    check_own_record,
    recorded_volatility,
    require_finite,
    sampled_volatility,
    unhidden_rate,
    widened_rate,
)
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
}

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
    orders_left_out : int
        Market orders of a tape that have no quote before them, or do not get to ``minimum_depth``.
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
    orders_left_out: int = 0
    findings: tuple[Finding, ...] = ()

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

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, the rates by depth included (a list of rows); NaN becomes None."""
        content: dict[str, Any] = as_json(self)
        return content

    def summary(self) -> str:
        """A few sentences: warnings, the estimates, and how well the model holds."""
        mid, volatility = self.mid, self.mid.volatility
        sampled = "" if self.volatility_interval is None else f", the mid sampled every {self.volatility_interval:g} s"
        sentences = [
            f"{self.source} ({self.kind}): volatility {volatility.value:.4g} +- {volatility.stderr:.2g} price/sqrt(s) "
            f"from {mid.increments} price changes over {mid.duration:.5g} s{sampled}; their excess kurtosis is "
            f"{mid.excess_kurtosis:.2g} (0 under the model)."
        ]
        if self.minimum_depth is not None:
            depths = "on" if self.maximum_depth is None else f"to {self.maximum_depth:g}"
            sentences.append(
                f"Fitted from depth {self.minimum_depth:g} {depths} (price units); left out: {self.orders_left_out} "
                "market orders that do not get so far or have no quote before them."
            )
        sentences += [_side_summary("Bid", self.bid, self.kind), _side_summary("Ask", self.ask, self.kind)]
        return "\n".join([*described(self.findings), *sentences])

    def plot(self, path: str | Path) -> Path:
        """Write a PNG: empirical rates by depth with 95 % intervals and the fitted law, one panel per side.

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
        figure = new_figure(10, 4.5)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
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
        return save_figure(figure, path, self.findings, dpi=150)


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
        Seconds between the sampled mid prices of a tape; by default 1, or more where bid-ask noise asks for it. Of a
        quotes file all rows are used, or every so many where they are noisy.
    minimum_depth, maximum_depth : float, optional
        Depths of a tape between which the law is fitted, units of price: best those where quotes will stand. By default
        from the median half-spread on. A quotes file takes neither.
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
        depths, fills = (live[f"{side}_{name}"].to_numpy(dtype=float) for name in ("depth", "fills"))
        mean_depth = float(depths @ fills) / fit.fills
        fit, wide = widened_rate(fit, mean_depth, side)
        findings += wide
        sides.append(fit)
    try:
        mid, noisy = recorded_volatility(quotes["time"], quotes["mid"], episode)
    except ValueError as error:
        raise ValueError(f"{path}: mid: {error}") from error
    return Calibration(
        source=path.name, kind="quotes", bid=sides[0], ask=sides[1], mid=mid, findings=(*findings, *noisy)
    )


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
        Seconds between the sampled mid prices; by default 1, or more where bid-ask noise asks for it.
    minimum_depth : float, optional
        Smallest depth fitted, units of price; by default the median half-spread, weighted by time.
    maximum_depth : float, optional
        Reaches are censored here; by default they are not.
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
    if minimum_depth is None:
        minimum_depth = _touch(parts, bounds[:, 1], tick)
    sides = []
    for label, aggressor in (("bid", "sell"), ("ask", "buy")):
        side, wide = _fit_side(name, checked, label, aggressor, tick, minimum_depth, maximum_depth)
        findings += wide
        sides.append(side)
    try:
        mid, interval, noisy = sampled_volatility(parts, bounds, volatility_interval, required=True)
    except ValueError as error:
        raise ValueError(f"{name}: mid, {error}") from error
    assert mid is not None
    return Calibration(
        source=checked.label,
        kind="tape",
        bid=sides[0],
        ask=sides[1],
        mid=mid,
        volatility_interval=interval,
        minimum_depth=minimum_depth,
        maximum_depth=maximum_depth,
        orders_left_out=len(orders) - sides[0].fills - sides[1].fills,
        findings=(*findings, *noisy),
    )


def _fit_side(
    path: str,
    checked: CheckedTape,
    name: str,
    aggressor: str,
    tick: float,
    minimum_depth: float,
    maximum_depth: float | None,
) -> tuple[ExponentialFit, list[Finding]]:
    """The law of one side of a tape, as wide as counts and clock say, with what is to be said of it."""
    orders, bounds = checked.orders, checked.bounds
    own = orders[orders["reach"].notna() & (orders["side"] == aggressor)]
    concerned = (f"fill_rate_{name}", f"log_fill_rate_{name}", f"fill_decay_{name}")
    hidden, coarse = coarse_clock(
        path, f"{aggressor} orders", len(own), checked.seconds, checked.trade_clock(), concerned
    )
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
    side, findings = widened_rate(side, minimum_depth, name)
    return (side, findings) if coarse is None else (unhidden_rate(side, hidden), [*findings, coarse])


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
            f"The exponential law is {verdict(side.p_value)}: deviance {side.deviance:.4g} on "
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
    parser.add_argument("--minimum-depth", type=float, help="tape: smallest depth of the fit")
    parser.add_argument("--maximum-depth", type=float, help="tape: largest depth of the fit")
    add_tape_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run ``mmgym calibrate glft``."""
    options.selection = selection_of(options)
    fit_and_show(calibrate, "mmgym/GLFT-v0", options)
