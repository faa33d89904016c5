r"""Calibration of the intraday power market from event tapes (von Luckner, Cartea, Jaimungal & Kiesel 2017, section 4).

The tapes are those of `mmgym.calibration.hawkes_power_tape`. For every product and window ("Mid", "Late") the days are
pooled, and these are estimated:

- the six Hawkes processes (new best quotes and cancelled ones on each side, market orders), each by itself, by maximum
  likelihood over the days (`mmgym.calibration.hawkes`). Every day starts without history, at the base rate, which may
  vary over the window: ``base_pieces`` pieces of equal length (`mmgym.calibration.hawkes_pieces`);
- the mean impacts: half the move of the best price, over all events of a type, those that move nothing included. They
  are the effective mean impacts of the model, the floor of the half-spread in them;
- the half-spread, averaged over time;
- the law of the deepest price that a market order trades at, by `Reach`: with probability ``reach_atom`` (p0) the best
  price before it, and else an exponential distance of decay ``fill_decay`` (kappa) behind that, in whole ticks a
  geometric one. The decay is that of the orders that get a tick at least behind the best price
  (`mmgym.calibration.exponential.fit_reaches`), and ``1 - p0`` their share over the chance of a tick. ``reach =
  "exponential"`` takes p0 = 0 and all orders, as the paper does. In the markets, as in the paper, the reach does not
  depend on the move; that is tested (Fisher, on whether orders get behind the best price and whether they move it). On
  an exchange they belong together, and a quote behind the best price is filled before larger moves than in the market;
- the laws of the moves in the model: the share of market orders that leave the best price alone, the mean move of those
  that do not, of cancellations that move it, and the share of the room in the spread by which new quotes improve it.

Two options tie estimates together. ``symmetric``: buys and sells, and the two sides of the book, are taken to be
mirror images, and pooled: nothing drifts. ``drift_neutral``: impacts are moved, by no more than their errors ask for,
until bid and ask do not drift at the mean rates of their events: with :math:`e` the impacts, :math:`V` their variances
and :math:`A e = 0` the two drifts, to :math:`e - V A^\top (A V A^\top)^{-1} A e`; improvements and mean moves go
along. A drift that is left is a small difference of large numbers, and Corollary 3 of the paper quotes on it.

Standard errors of the processes are those of the observed information; those of averages come from their spread over
the days (a ratio estimate with Student's interval; NaN for a single day); those of the reach hold the clustering of
orders.

The reduced market, `mmgym/HawkesFlow-v0`, moves its mid at market orders alone. `Calibration.kwargs` passes on the mean
impact of the market orders, without the quotes and cancellations that follow them.

References
----------
von Luckner, N., Cartea, Á., Jaimungal, S. and Kiesel, R. (2017). Optimal market maker pricing in the German intraday
power market. Working paper, section 4 and Table 1.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from mmgym.calibration.block_intervals import QUANTILE, Estimate, ratio_estimate, student
from mmgym.calibration.command import add_force, may_offer
from mmgym.calibration.exponential import ExponentialFit, fit_reaches
from mmgym.calibration.hawkes import HawkesFit, Windows, draw_residuals, fit_hawkes
from mmgym.calibration.hawkes_power_tape import (
    DIRECTION,
    EVENT_TYPES,
    MOVES_BID,
    WINDOW_NAMES,
    PowerTape,
    add_window_options,
    read_power_tapes,
    selected,
    tape_gaps,
)
from mmgym.calibration.report import (
    REJECTION,
    as_json,
    estimate_table,
    rejected_laws,
    save_figure,
    shown_p_value,
    verdict,
)
from mmgym.calibration.tape_checks import (
    require_finite,
    without_gaps,
)
from mmgym.models.hawkes import explosive
from mmgym.models.hawkes_flow import MOST_PIECES, Params
from mmgym.parameters import row_of
from mmgym.plot import new_figure
from mmgym.printing import table_text, write_result
from mmgym.tapes.findings import Finding, described
from mmgym.tapes.gaps import gap_finding
from mmgym.tapes.selection import Selection

Array = NDArray[np.float64]

ORDERS = ("MO_BUY", "MO_SELL")
AVERAGES = ("impact", "first_level_share", "mean_move", "improvement")
RATE, PRICE = "1/min", "EUR/MWh"
# Table 1 of the paper: market orders (mu+, ...), then bid events (nu: K+, K-), then ask events (upsilon: L+, L-)
SYMBOLS = {
    "MO_BUY": "{}+",
    "MO_SELL": "{}-",
    "BID_UP": "{}_nu+",
    "BID_DOWN": "{}_nu-",
    "ASK_UP": "{}_upsilon+",
    "ASK_DOWN": "{}_upsilon-",
}
PAIRS = (("BID_UP", "ASK_DOWN"), ("BID_DOWN", "ASK_UP"), ("MO_BUY", "MO_SELL"))  # mirror images
REACHES = ("atom", "exponential")
LETTERS = {"base_rate": "mu", "excitation": "zeta", "decay": "rho"}


@dataclass(frozen=True)
class Options:
    """What `calibrate` takes for granted (see there)."""

    allow_explosive: bool = False
    reach: Literal["atom", "exponential"] = "atom"
    symmetric: bool = False
    drift_neutral: bool = False
    base_pieces: int = 1
    gap: float | None = None


@dataclass(frozen=True)
class Reach:
    """Law of the deepest price that market orders trade at, behind the best price before them.

    Attributes
    ----------
    atom : Estimate or None
        Share of the orders that trade at the best price and nowhere else, beyond what the exponential law has there;
        None where it is taken to be 0.
    fit : ExponentialFit
        Of the others; ``fill_decay`` is kappa, 1/(EUR/MWh), and times are minutes.
    independence_p_value : float
        Chance of so strong a link with the moves where there is none.
    """

    atom: Estimate | None
    fit: ExponentialFit
    independence_p_value: float

    @property
    def fill_decay(self) -> Estimate:
        """kappa, 1/(EUR/MWh)."""
        return self.fit.fill_decay


@dataclass(frozen=True)
class ProductFit:
    """Parameters of one product and window. The dictionaries are keyed by event type.

    Attributes
    ----------
    product, window : str
        Such as ``"H11"`` and ``"Late"``.
    dates : tuple of str
        Delivery dates of the tapes.
    horizon : float
        Mean length of the window, minutes.
    tick : float
        EUR/MWh.
    processes : dict of str to HawkesFit
        The six processes, per minute.
    impacts : dict of str to Estimate
        Mean half-moves of the best price, EUR/MWh.
    half_spread : Estimate
        Mean over time, EUR/MWh.
    reaches : dict of str to Reach
        Of market orders.
    first_level_shares : dict of str to Estimate
        Share of the market orders that leave the best price where it is.
    mean_moves : dict of str to Estimate
        Mean ticks moved by those market orders and cancellations that move the best price.
    improvements : dict of str to Estimate
        Share of the room in the spread (all but one tick of it) by which new quotes improve the best price.
    findings : tuple of Finding
        Warnings (see `mmgym.calibration.tape_checks`).
    options : Options
        What was taken for granted.
    """

    product: str
    window: str
    dates: tuple[str, ...]
    horizon: float
    tick: float
    processes: dict[str, HawkesFit]
    impacts: dict[str, Estimate]
    half_spread: Estimate
    reaches: dict[str, Reach]
    first_level_shares: dict[str, Estimate] = field(repr=False)
    mean_moves: dict[str, Estimate] = field(repr=False)
    improvements: dict[str, Estimate] = field(repr=False)
    findings: tuple[Finding, ...] = ()
    options: Options = Options()

    @property
    def rejected(self) -> list[str]:
        """The laws that the tapes reject: Hawkes processes, exponential reaches, and that these are independent."""
        gaps = self.tests().xs("hawkes", level="model")["gap_p_value"]
        p_values = {f"Hawkes process of {name}": float(value) for name, value in gaps.items()}
        for name, reach in self.reaches.items():
            p_values[f"exponential reach of {name}"] = reach.fit.p_value
            p_values[f"reach of {name} that does not depend on its move"] = reach.independence_p_value
        return rejected_laws(p_values)

    def estimates(self) -> dict[str, tuple[Estimate, str]]:
        """All estimates with their units; the names end in the event type."""
        named: dict[str, tuple[Estimate, str]] = {}
        for name in EVENT_TYPES:
            for parameter, estimate in self.processes[name].estimates().items():
                word, piece = parameter.partition("[")[0], parameter.partition("[")[2]
                full = f"{word}_{name}[{piece}" if piece else f"{word}_{name}"
                named[full] = (estimate, "1" if parameter == "branching_ratio" else RATE)
        named |= {f"impact_{name}": (estimate, PRICE) for name, estimate in self.impacts.items()}
        named["half_spread"] = (self.half_spread, PRICE)
        named |= {f"fill_decay_{name}": (fit.fill_decay, f"1/({PRICE})") for name, fit in self.reaches.items()}
        atoms = {name: reach.atom for name, reach in self.reaches.items()}
        named |= {f"reach_atom_{name}": (atom, "1") for name, atom in atoms.items() if atom is not None}
        named |= {f"first_level_share_{name}": (share, "1") for name, share in self.first_level_shares.items()}
        named |= {f"mean_move_{name}": (move, "ticks") for name, move in self.mean_moves.items()}
        named |= {f"improvement_{name}": (share, "1") for name, share in self.improvements.items()}
        return named

    def kwargs(self, *, allow_explosive: bool = False) -> dict[str, Any]:
        """Arguments for ``gymnasium.make("mmgym/HawkesFlow-v0", **kwargs)``; pairs are ``[buy, sell]``.

        The decay of a process without excitation, which has no effect, is given as 1. Base rates that vary are given
        as their means and a profile, with decisions that its pieces divide. Of a drift-neutral fit, the impacts are
        those at which the mid of this market does not drift.

        Raises
        ------
        ValueError
            If market orders are explosive and that was not asked for.
        """
        orders = [self.processes[name] for name in ORDERS]
        excitation = [fit.excitation.value for fit in orders]
        decay = [fit.decay.value if fit.excitation.value > 0 else 1.0 for fit in orders]
        unstable = any(jump >= rate for jump, rate in zip(excitation, decay, strict=True))
        if unstable and not allow_explosive:
            raise ValueError(explosive(excitation, decay))
        arguments = {
            "base_rate": [fit.base_rate.value for fit in orders],
            "excitation": excitation,
            "decay": decay,
            "half_spread": self.half_spread.value,
            "impact": self._flow_impacts(),
            **_reach_arguments(self.reaches),
            "horizon": self.horizon,
            **_profile_arguments(orders),
        }
        if unstable:
            starts = [fit.base_rates[0] if fit.base_rates else fit.base_rate for fit in orders]
            arguments |= {"allow_explosive": True, "initial_rates": [start.value for start in starts]}
        require_finite(arguments)
        return arguments

    def _flow_impacts(self) -> list[float]:
        """Mean half-moves of market orders to buy and to sell."""
        impacts = [self.impacts[name] for name in ORDERS]
        if self.options.drift_neutral:
            rates = [self.processes[name].events / self.processes[name].exposure for name in ORDERS]
            impacts = neutral(impacts, np.array([[rates[0], -rates[1]]]))
        return [impact.value for impact in impacts]

    def tests(self) -> pd.DataFrame:
        """Residual tests of the six processes, under Hawkes and under Poisson (see `HawkesFit.tests`)."""
        return pd.concat({name: self.processes[name].tests() for name in EVENT_TYPES}, names=["process"])

    def summary(self) -> str:
        """A few sentences: how much there is to fit, and how well the model holds."""
        shared = 2 if self.options.symmetric else 1  # a fit of mirror images stands at both
        events = sum(fit.events for fit in self.processes.values()) // shared
        tests = self.tests().xs("hawkes", level="model")
        level = REJECTION / (len(tests) + 2 * len(self.reaches))
        rejected = [str(name) for name in tests.index[tests["gap_p_value"] < level]]
        gain = sum(fit.poisson.aic - fit.aic for fit in self.processes.values()) / shared
        ratios = [self.processes[name].branching_ratio for name in ORDERS]
        text = "".join(f"{self.product} {self.window}: {line}\n" for line in described(self.findings))
        text += (
            f"{self.product} {self.window}: {events} events on {len(self.dates)} days. Residual gaps are unit "
            f"exponential (Kolmogorov-Smirnov, p >= {level:g}) for {len(tests) - len(rejected)} of {len(tests)} "
            "processes"
        )
        text += f", rejected for {', '.join(rejected)}" if rejected else ""
        text += f"; in all the Hawkes processes lower the AIC of Poisson processes by {gain:.5g}. "
        text += "Branching ratio of buy and sell orders: " + " and ".join(
            f"{ratio.value:.3g} +- {ratio.stderr:.2g}" for ratio in ratios
        )
        shares = [self.first_level_shares[name].value for name in ORDERS]
        text += f". {100 * shares[0]:.3g} % and {100 * shares[1]:.3g} % of them leave the best price where it is. "
        for name, reach in self.reaches.items():
            if reach.atom is not None:
                share, error = 100 * reach.atom.value, 100 * reach.atom.stderr
                text += f"{share:.3g} +- {error:.2g} % of {name} are an atom at the best price. "
            if reach.fit.degrees_of_freedom:
                told = verdict(reach.fit.p_value, len(tests) + 2 * len(self.reaches))
                text += f"Exponential reach of {name} {told} (p = {reach.fit.p_value:.2g}). "
        pieces = {name: fit.constant_p_value for name, fit in self.processes.items() if fit.base_rates}
        if pieces:
            text += "Base rates are constant over the window with p " + ", ".join(
                f"{shown_p_value(p_value)} ({name})" for name, p_value in pieces.items()
            ) + f"; {FLOW} takes them as its base_rate_profile, {POWER} their means. "  # fmt: skip
        return text.rstrip()


@dataclass(frozen=True)
class Calibration:
    """Parameters of the intraday power market, one `ProductFit` for every product and window.

    Attributes
    ----------
    groups : dict of (product, window) to ProductFit
        In the order of products, "Mid" before "Late".
    """

    groups: dict[tuple[str, str], ProductFit]

    def group(self, product: str | None = None, window: str | None = None) -> ProductFit:
        """The fit of one product and window; what is not given must be clear.

        Raises
        ------
        ValueError
            If there is no such fit, or more than one.
        """
        fits = [
            fit
            for (own_product, own_window), fit in self.groups.items()
            if product in (None, own_product) and window in (None, own_window)
        ]
        if len(fits) != 1:
            known = ", ".join(" ".join(key) for key in self.groups)
            problem = "is not calibrated" if not fits else "does not tell which one is meant"
            raise ValueError(f"product {product!r} and window {window!r}: this {problem}; there are {known}")
        return fits[0]

    def kwargs(
        self, product: str | None = None, window: str | None = None, *, allow_explosive: bool = False
    ) -> dict[str, Any]:
        """Arguments for ``gymnasium.make("mmgym/HawkesFlow-v0", **kwargs)`` (see `ProductFit.kwargs`)."""
        return self.group(product, window).kwargs(allow_explosive=allow_explosive)

    def table(self) -> pd.DataFrame:
        """One row per product, window and parameter: ``estimate, standard_error, lower, upper, unit`` (95 %).

        Where there are findings, their names stand in a column ``warning``.
        """
        tables = {key: estimate_table(fit.estimates(), fit.findings) for key, fit in self.groups.items()}
        table = pd.concat(tables, names=["product", "window"])
        return table.fillna({"warning": ""}) if "warning" in table else table

    def paper_table(self) -> pd.DataFrame:
        """Table 1 of the paper with kappa added: rows are symbols, columns product and window, cells ``0.612 (0.041)``.

        ``mu``, ``zeta``, ``rho`` are base rate, excitation and decay, ``eps`` the mean impact; without index for market
        orders, with ``nu`` for the bid (new quotes +, cancellations -) and ``upsilon`` for the ask (cancellations +,
        new quotes -). A ``-`` stands for what the data do not tell, a ``!`` for what is warned of.
        """
        rows: dict[tuple[str, str], list[str]] = {}
        for fit in self.groups.values():
            cells: list[tuple[str, str, str, Estimate]] = []
            for name, symbol in SYMBOLS.items():
                for parameter, letter in LETTERS.items():
                    estimate = getattr(fit.processes[name], parameter)
                    cells.append((symbol.format(letter), RATE, f"{parameter}_{name}", estimate))
            for name, symbol in SYMBOLS.items():
                cells.append((symbol.format("eps"), PRICE, f"impact_{name}", fit.impacts[name]))
            for name in ORDERS:
                kappa = fit.reaches[name].fill_decay
                cells.append((SYMBOLS[name].format("kappa"), f"1/({PRICE})", f"fill_decay_{name}", kappa))
            for symbol, unit, parameter, estimate in cells:
                value, stderr = (
                    f"{number:.{digits}g}" if math.isfinite(number) else "-"
                    for number, digits in ((estimate.value, 3), (estimate.stderr, 2))
                )
                mark = "!" if any(item.concerns(parameter) for item in fit.findings) else ""
                rows.setdefault((symbol, unit), []).append(f"{value} ({stderr}){mark}")
        return pd.DataFrame(
            list(rows.values()),
            index=pd.MultiIndex.from_tuples(list(rows), names=["symbol", "unit"]),
            columns=pd.MultiIndex.from_tuples(list(self.groups), names=["product", "window"]),
        )

    def summary(self) -> str:
        """A few sentences for each product and window."""
        return "\n".join(fit.summary() for fit in self.groups.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, keyed by ``"PRODUCT WINDOW"``; NaN becomes None."""
        content = {}
        for (product, window), fit in self.groups.items():
            about = as_json(replace(fit, processes={}))
            about["processes"] = {name: process.to_dict() for name, process in fit.processes.items()}
            for reach in about["reaches"].values():
                del reach["fit"]["rates"]
            about["rejected"] = fit.rejected
            content[f"{product} {window}"] = about
        return content

    def plot(self, path: str | Path, *, process: str = "MO_BUY") -> Path:
        """Write a PNG: PP and QQ plots of one process, Hawkes and Poisson, one row per product and window.

        Parameters
        ----------
        path : str or Path
            Where to write.
        process : str
            An event type; the paper shows buy market orders.

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If there is no such event type.
        """
        if process not in EVENT_TYPES:
            raise ValueError(f"process = {process!r} is not allowed: it must be one of {', '.join(EVENT_TYPES)}")
        figure = new_figure(10, 4.2 * len(self.groups))
        panels = figure.subplots(len(self.groups), 2, squeeze=False)
        for (left, right), (key, fit) in zip(panels, self.groups.items(), strict=True):
            chosen = fit.processes[process]
            draw_residuals(left, right, {"Hawkes": chosen.residuals, "Poisson": chosen.poisson.residuals})
            left.set_title(f"{' '.join(key)}: {process}, PP")
            right.set_title(f"{' '.join(key)}: {process}, QQ")
        every = [item for fit in self.groups.values() for item in fit.findings]
        return save_figure(figure, path, list(dict.fromkeys(every)))


def calibrate(
    paths: str | Path | Sequence[str | Path],
    *,
    allow_explosive: bool = False,
    reach: Literal["atom", "exponential"] = "atom",
    symmetric: bool = False,
    drift_neutral: bool = False,
    base_pieces: int = 1,
    selection: Selection | None = None,
) -> Calibration:
    """Calibrate the intraday power market from tapes.

    Parameters
    ----------
    paths : str, Path, or sequence of them
        Tapes of any days, products and windows, each with its side file.
    allow_explosive : bool
        Whether estimates with ``excitation >= decay`` are accepted.
    reach : {"atom", "exponential"}
        Law of the deepest price of market orders: with an atom at the best price, or without.
    symmetric : bool
        Whether buys and sells are mirror images.
    drift_neutral : bool
        Whether impacts are moved until neither bid nor ask drifts; needs two days or more.
    base_pieces : int
        Pieces of equal length of the window, each with base rates of its own; at most 48.
    selection : Selection, optional
        ``start`` and ``end`` of the part of each window that is used, and ``gap``, all in seconds; it starts without
        history. The rest of a selection is refused.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If an argument is out of range, there is no tape, one breaks the format (the message names file, line and
        column), two tapes are of the same day, the ticks of a product differ, two events of one type bear one time, or
        the data do not identify a parameter (the message names product, window and event type).
    """
    if reach not in REACHES:
        raise ValueError(f"reach must be one of {', '.join(REACHES)}, got {reach!r}")
    if symmetric and drift_neutral:
        raise ValueError("symmetric and drift_neutral are not allowed together: a symmetric market does not drift")
    if base_pieces > MOST_PIECES:
        raise ValueError(f"base_pieces = {base_pieces} is not allowed: it must be at most {MOST_PIECES}")
    selection = selection or Selection()
    options = Options(allow_explosive, reach, symmetric, drift_neutral, base_pieces, selection.gap)
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    if not names:
        raise ValueError("no tapes: at least one is needed")
    by_day: dict[tuple[str, str], dict[str, PowerTape]] = {}
    for tape in read_power_tapes(names, selection.gap):
        days = by_day.setdefault((tape.product, tape.window), {})
        if tape.delivery_date in days:
            both = f"{days[tape.delivery_date].path} and {tape.path}"
            raise ValueError(f"{both} are both of {tape.product} {tape.window} on {tape.delivery_date}")
        days[tape.delivery_date] = tape.within(selection)
    order = sorted(by_day, key=lambda key: (key[0], WINDOW_NAMES.index(key[1])))
    return Calibration({key: _fit_group([tape for _, tape in sorted(by_day[key].items())], options) for key in order})


def _fit_group(tapes: list[PowerTape], options: Options) -> ProductFit:
    """Fit the days of one product and window."""
    first = tapes[0]
    group = f"{first.product} {first.window}"
    for tape in tapes:
        if tape.tick != first.tick:
            raise ValueError(f"{tape.path}: its tick is {tape.tick:g}, that of {first.path} is {first.tick:g}")
    horizons = np.array([tape.horizon for tape in tapes])
    gaps, pauses, observed, findings = _pauses(tapes, horizons, options.gap)
    findings = [*(item for tape in tapes for item in tape.findings), *findings]
    processes, warnings = _processes(group, tapes, horizons, gaps, options)
    findings += warnings
    reaches = _reaches(group, tapes, pauses, observed, options)
    averages = _averages(tapes, options.symmetric)
    if options.drift_neutral:
        averages = _without_drift(group, averages, processes, len(tapes))
    spreads = [tape.mean_half_spread(own) * length for tape, own, length in zip(tapes, pauses, observed, strict=True)]
    if len(tapes) == 1:
        text = "standard errors and intervals of averages come from their spread over days: one day has none."
        findings.append(Finding("not_identified", text, (*AVERAGES, "half_spread")))
    unseen = [
        f"{word}_{name}"
        for word, own in zip(AVERAGES, averages, strict=True)
        for name, item in own.items()
        if math.isnan(item.value)
    ]
    if unseen:
        findings.append(Finding("not_identified", f"{', '.join(unseen)}: nothing of the kind is seen.", tuple(unseen)))
    impacts, shares, means, improvements = averages
    return ProductFit(
        product=first.product,
        window=first.window,
        dates=tuple(tape.delivery_date for tape in tapes),
        horizon=float(horizons.mean()),
        tick=first.tick,
        processes=processes,
        impacts=impacts,
        half_spread=ratio_estimate(spreads, observed),
        reaches=reaches,
        first_level_shares=shares,
        mean_moves=means,
        improvements=improvements,
        findings=tuple(findings),
        options=options,
    )


def _pauses(
    tapes: Sequence[PowerTape], horizons: Array, longest: float | None
) -> tuple[Array, list[Array], Array, list[Finding]]:
    """Gaps in all that happens (day, start, end), those of each day, its observed time, and what is to be said."""
    gaps = tape_gaps(tapes, longest)
    pauses = [gaps[gaps[:, 0] == number, 1:] for number in range(len(tapes))]
    observed = horizons - [float(np.diff(own, axis=1).sum()) for own in pauses]
    findings = [gap_finding(gaps[:, 1], gaps[:, 2] - gaps[:, 1], float(observed.sum()), "min")] if len(gaps) else []
    return gaps, pauses, observed, findings


def _processes(
    group: str, tapes: Sequence[PowerTape], horizons: Array, gaps: Array, options: Options
) -> tuple[dict[str, HawkesFit], list[Finding]]:
    """The six processes, and their warnings; mirror images share a fit where they are taken to be the same."""
    if len(gaps) and options.base_pieces > 1:
        raise ValueError(f"{group}: the tapes have gaps, base rates in pieces need whole windows")
    processes: dict[str, HawkesFit] = {}
    findings: list[Finding] = []
    for names in PAIRS if options.symmetric else [(name,) for name in EVENT_TYPES]:
        parts: list[Array] = []
        lengths: list[Array] = []
        for name in names:
            windows = [tape.times(name) for tape in tapes]
            for tape, times in zip(tapes, windows, strict=True):
                _refuse_ties(tape, name, times)
            split = without_gaps(Windows.gather(windows, horizons), np.full(len(tapes), np.nan), gaps)[0]
            parts += split.parts()
            lengths.append(split.durations)
        try:
            fit = fit_hawkes(
                parts,
                np.concatenate(lengths),
                allow_explosive=options.allow_explosive,
                base_pieces=options.base_pieces,
                unit="min",
            )
        except ValueError as error:
            raise ValueError(f"{group}: {' and '.join(names)}: {error}") from error
        for name in names:
            processes[name] = fit
            for item in fit.findings:
                concerned = tuple(f"{parameter}_{name}" for parameter in fit.estimates() if item.concerns(parameter))
                findings.append(Finding(item.name, f"{name}: {item.text}", concerned))
    return {name: processes[name] for name in EVENT_TYPES}, findings


def _reaches(
    group: str, tapes: Sequence[PowerTape], pauses: Sequence[Array], observed: Array, options: Options
) -> dict[str, Reach]:
    """The reach of market orders, the days (of both sides, where they are mirror images) laid end to end."""
    reaches: dict[str, Reach] = {}
    for names in (ORDERS,) if options.symmetric else [(name,) for name in ORDERS]:
        days = [(tape, name) for name in names for tape in tapes]
        starts = np.concatenate([[0.0], np.cumsum(np.tile(observed, len(names)))])
        cuts = [own for _ in names for own in pauses]
        laid = []
        for start, (tape, name), own in zip(starts, days, cuts, strict=False):
            times = tape.events["t_min"].to_numpy(dtype=float)[tape.known_rows(name)]
            laid.append(start + _observed_times(times, own))
        ticks = [tape.reaches(name) for tape, name in days]
        tick, with_atom = tapes[0].tick, options.reach == "atom"
        if not any((day > 0).any() for day in ticks):
            named = f"{group}: {' and '.join(names)}"
            raise ValueError(f"{named}: no market order goes on beyond the best price: fill_decay needs some that do")
        try:
            fit = fit_reaches(
                np.concatenate(laid),
                np.concatenate(ticks) * tick,
                start=0.0,
                end=float(starts[-1]),
                tick=tick,
                minimum_depth=tick if with_atom else 0.0,
            )
        except ValueError as error:
            raise ValueError(f"{group}: {' and '.join(names)}: {error}") from error
        atom = _atom(ticks, fit, tick) if with_atom else None
        behind = np.concatenate(ticks) > 0
        moved = np.concatenate([tape.moves(name) for tape, name in days]) > 0
        table = np.histogram2d(behind, moved, bins=2, range=[[0, 1], [0, 1]])[0]
        reaches |= dict.fromkeys(names, Reach(atom, fit, float(scipy.stats.fisher_exact(table).pvalue)))
    return reaches


def _observed_times(times: Array, pauses: Array) -> Array:
    """Times of a day with its pauses (n, 2) cut out."""
    return times - sum((np.clip(times, start, end) - start for start, end in pauses), np.zeros_like(times))


def _atom(ticks: Sequence[Array], fit: ExponentialFit, tick: float) -> Estimate:
    """p0: one less the share of orders that get behind the best price over the chance of a tick."""
    behind = ratio_estimate([(day > 0).sum() for day in ticks], [day.size for day in ticks])
    passed = math.exp(-fit.fill_decay.value * tick)
    rest = behind.value / passed
    orders = sum(day.size for day in ticks)
    chance = math.sqrt(behind.value * (1 - behind.value) / orders)
    error = chance if math.isnan(behind.stderr) else max(behind.stderr, chance)
    stderr = rest * math.hypot(error / behind.value, tick * fit.fill_decay.stderr)
    length = student(max(len(ticks) - 1, 1)) * stderr if len(ticks) > 1 else QUANTILE * stderr
    return Estimate(1 - rest, stderr, 1 - rest - length, min(1 - rest + length, 1.0))


def _reach_arguments(reaches: dict[str, Reach]) -> dict[str, list[float]]:
    """Arguments of both environments: decays and, where they are fitted, atoms, which are 0 at least."""
    arguments = {"fill_decay": [reaches[name].fill_decay.value for name in ORDERS]}
    atoms = [reaches[name].atom for name in ORDERS]
    if all(atoms):
        arguments["reach_atom"] = [max(atom.value, 0.0) for atom in atoms if atom is not None]
    return arguments


def _profile_arguments(orders: Sequence[HawkesFit]) -> dict[str, Any]:
    """Factors of the mean base rates where they vary over the window, and a number of decisions that they divide."""
    pieces = len(orders[0].base_rates)
    if pieces < 2:
        return {}
    least, steps = (row_of(Params, name) for name in ("base_rate_profile", "num_steps"))
    profile = [[max(rate.value / fit.base_rate.value, least.low) for rate in fit.base_rates] for fit in orders]
    return {"base_rate_profile": profile, "num_steps": pieces * math.ceil(steps.default / pieces)}


def neutral(impacts: Sequence[Estimate], drifts: Array) -> list[Estimate]:
    """Impacts moved by no more than their errors ask for, until ``drifts @ impacts`` is 0.

    Parameters
    ----------
    impacts : sequence of Estimate
    drifts : array, shape (constraints, impacts)
        Signed rates of the events.
    """
    value, error = (np.array([getattr(item, name) for item in impacts]) for name in ("value", "stderr"))
    spread = np.diag(error**2)
    gain = spread @ drifts.T @ np.linalg.pinv(drifts @ spread @ drifts.T)
    moved, variance = value - gain @ (drifts @ value), np.diag(spread - gain @ drifts @ spread)
    reach = [(item.upper - item.lower) / 2 / item.stderr if item.stderr > 0 else 0.0 for item in impacts]
    return [
        Estimate(float(own), float(new), float(own - length * new), float(own + length * new))
        for own, new, length in zip(moved, np.sqrt(np.maximum(variance, 0.0)), reach, strict=True)
    ]


def _without_drift(
    group: str, averages: tuple[dict[str, Estimate], ...], processes: dict[str, HawkesFit], days: int
) -> tuple[dict[str, Estimate], ...]:
    """Averages of `_averages` whose impacts do not make bid or ask drift."""
    if days < 2:
        raise ValueError(f"{group}: drift_neutral needs the errors of impacts, which one day does not tell")
    impacts, shares, means, improvements = averages
    rates = np.array([processes[name].events / processes[name].exposure for name in EVENT_TYPES])
    drifts = np.where(np.stack([MOVES_BID, ~np.array(MOVES_BID)]), rates * DIRECTION, 0.0)
    moved = dict(zip(EVENT_TYPES, neutral([impacts[name] for name in EVENT_TYPES], drifts), strict=True))
    if min(item.value for item in moved.values()) <= 0:
        raise ValueError(f"{group}: no impacts of one sign leave bid and ask without drift: drift_neutral is no option")
    factors = {name: moved[name].value / impacts[name].value for name in EVENT_TYPES if impacts[name].value > 0}
    scaled = [
        {name: _times(item, factors.get(name, 1.0)) for name, item in part.items()} for part in (means, improvements)
    ]
    return moved, shares, scaled[0], scaled[1]


def _times(item: Estimate, factor: float) -> Estimate:
    return Estimate(*(factor * value for value in (item.value, item.stderr, item.lower, item.upper)))


def _averages(tapes: Sequence[PowerTape], symmetric: bool) -> tuple[dict[str, Estimate], ...]:
    """Averages over days by event type, in the order of `AVERAGES`; those of mirror images are of both together."""
    half_tick = tapes[0].tick / 2
    mirrors = {name: pair for pair in PAIRS for name in pair}
    impacts, shares, means, improvements = {}, {}, {}, {}
    for name in EVENT_TYPES:
        own = mirrors[name] if symmetric else (name,)
        moves = [np.concatenate([tape.moves(mirror) for mirror in own]) for tape in tapes]
        sums, sizes = [move.sum() for move in moves], [move.size for move in moves]
        impacts[name] = ratio_estimate([half_tick * total for total in sums], sizes)
        if name in ORDERS:
            shares[name] = ratio_estimate([(move == 0).sum() for move in moves], sizes)
        if name in ("BID_UP", "ASK_DOWN"):
            rooms = [sum(tape.room(mirror).sum() for mirror in own) for tape in tapes]
            improvements[name] = ratio_estimate(sums, rooms)
        else:
            means[name] = ratio_estimate(sums, [(move > 0).sum() for move in moves])
    return impacts, shares, means, improvements


def _refuse_ties(tape: PowerTape, name: str, times: Array) -> None:
    ties = np.flatnonzero(np.diff(times) == 0)
    if ties.size:
        line = int(tape.rows(name)[ties[0] + 1]) + 2
        raise ValueError(
            f"{tape.path}, line {line}, column 't_min': {times[ties[0]]:g} is not allowed; no two {name} happen at "
            "once (take those of one time stamp together, or spread them over the resolution of the clock)"
        )


def market_arguments(fit: ProductFit, tapes: Sequence[PowerTape] = ()) -> dict[str, Any]:
    """Arguments for ``gymnasium.make("mmgym/HawkesPower-v0", **arguments)`` from a calibration.

    Parameters
    ----------
    fit : ProductFit
    tapes : sequence of PowerTape
        Whose widest spread the market must hold; at least 300 ticks and at most 1000 are taken.

    Returns
    -------
    dict
        Penalties and limits are left to the defaults. Where nothing was observed (no cancellation moved the bid, say)
        the value that moves nothing more than it must stands in: one tick, or no improvement. The decay of a process
        without excitation, which has no effect, is given as 1. Explosive estimates come with ``allow_explosive`` and
        start at their base rates.
    """
    processes = [fit.processes[name] for name in EVENT_TYPES]
    excitation = [process.excitation.value for process in processes]
    decay = [process.decay.value if process.excitation.value > 0 else 1.0 for process in processes]
    widest = max((int((tape.events["best_ask"] - tape.events["best_bid"]).max()) for tape in tapes), default=0)
    largest = min(max(300, widest), 1000)

    def known(value: float, otherwise: float) -> float:
        return otherwise if math.isnan(value) else value

    arguments: dict[str, Any] = {
        "base_rate": [process.base_rate.value for process in processes],
        "excitation": excitation,
        "decay": decay,
        "improvement": [known(fit.improvements[name].value, 0.0) for name in ("BID_UP", "ASK_DOWN")],
        "mean_move": [
            max(known(fit.mean_moves[name].value, 1.0), 1.0) if name in fit.mean_moves else 1.0 for name in EVENT_TYPES
        ],
        "first_level_share": [fit.first_level_shares[name].value for name in ("MO_BUY", "MO_SELL")],
        "tick": fit.tick,
        "largest_spread": largest,
        **_reach_arguments(fit.reaches),
        "horizon": fit.horizon,
        "initial_spread": min(max(round(2 * fit.half_spread.value / fit.tick), 1), largest),
    }
    if any(jump >= rate for jump, rate in zip(excitation, decay, strict=True)):
        arguments |= {"allow_explosive": True, "initial_rates": arguments["base_rate"]}
    return arguments


TITLE = "six Hawkes processes, impacts and reach from event tapes"
FILES = "event tapes of any days, products and windows, .csv or .csv.gz, each with its .json beside it"
POWER, FLOW = "mmgym/HawkesPower-v0", "mmgym/HawkesFlow-v0"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym calibrate hawkes_power``."""
    text = f"{FILES} (see mmgym.calibration.hawkes_power_tape), or EPEX's orders and trades (mmgym.tapes.epex)"
    parser.add_argument("file", nargs="+", metavar="TAPE", help=text)
    text = "accept estimates with excitation >= decay"
    parser.add_argument("--allow-explosive", action="store_true", help=text)
    text = "law of the deepest price: with an atom at the best price (default), or exponential from there"
    parser.add_argument("--reach", choices=REACHES, default="atom", help=text)
    ties = parser.add_mutually_exclusive_group()
    ties.add_argument("--symmetric", action="store_true", help="buys and sells are mirror images")
    ties.add_argument("--drift-neutral", action="store_true", help="impacts that let neither bid nor ask drift")
    text = "pieces of the window with base rates of their own (default 1)"
    parser.add_argument("--base-pieces", type=int, default=1, metavar="N", help=text)
    add_window_options(parser)
    add_force(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="PP and QQ plots of residuals")
    text = "event type of the plot (default MO_BUY)"
    parser.add_argument("--process", default="MO_BUY", metavar="TYPE", help=text)
    text = "also write all estimates as .csv, or everything as .json"
    parser.add_argument("--output", metavar="FILE", help=text)


def run(options: argparse.Namespace) -> None:
    """Fit every product and window of the tapes; print the draft's Table 1, tests and constructor arguments.

    Raises
    ------
    ValueError
        If a tape breaks the format, or the data do not identify a parameter; the message says where.
    ImportError
        Without matplotlib, if a plot is asked for.
    """
    selection = selected(options)
    fits = calibrate(
        options.file,
        selection=selection,
        allow_explosive=options.allow_explosive,
        reach=options.reach,
        symmetric=options.symmetric,
        drift_neutral=options.drift_neutral,
        base_pieces=options.base_pieces,
    )
    tapes = [tape.within(selection) for tape in read_power_tapes(options.file, selection.gap)]
    print("Estimates (standard errors); K: bid events, L: ask events, 1/min and EUR/MWh\n")
    print(table_text(fits.paper_table().reset_index(), missing=""))
    tests = pd.concat({" ".join(key): fit.tests() for key, fit in fits.groups.items()}, names=["group"])
    print("\nResidual tests (gaps and points: Kolmogorov-Smirnov; order: gaps independent)\n")
    print(table_text(tests.reset_index(), missing=""))
    if any(fit.findings for fit in fits.groups.values()):
        print("\n! is warned of below, - is what the tapes do not tell")
    print(f"\n{fits.summary()}")
    arguments: dict[str, dict[str, Any]] = {}
    for key, fit in fits.groups.items():
        own = [tape for tape in tapes if (tape.product, tape.window) == key]
        flow = fit.kwargs(allow_explosive=options.allow_explosive)
        arguments[" ".join(key)] = {POWER: market_arguments(fit, own), FLOW: flow}
    for group, of_group in arguments.items():
        print(f"\n{group}")
        for of_env in of_group.values():
            require_finite(of_env)
        if not may_offer(fits.group(*group.rsplit(" ", 1)).rejected, options.force):
            continue
        for env, of_env in of_group.items():
            print(f'gymnasium.make("{env}", **{json.dumps(of_env)})')
    if options.plot:
        fits.plot(options.plot, process=options.process)
        print(f"\nwritten: {options.plot}")
    if options.output:
        write_result(
            options.output, fits.table().reset_index(), {"calibration": fits.to_dict(), "arguments": arguments}
        )
