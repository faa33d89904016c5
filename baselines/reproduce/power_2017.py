r"""von Luckner, Cartea, Jaimungal & Kiesel (2017), "Optimal market maker pricing in the German intraday power market".

A working paper of 15 January 2017 with blank tables and figures of exchange data that are not public. Its procedures
are run here on simulated tapes of illustrative parameters (`mmgym.calibration.hawkes_power_tape.illustrative`:
plausible numbers, not estimates), with the errors of the draft corrected:

- Figures 2 and 3: how often orders to buy arrive over the last two trading hours, and how orders to sell cluster.
- Table 1: the six Hawkes processes and mean impacts for three products and two windows, fitted and as simulated; PP and
  QQ plots of residuals, which the draft announces.
- Figures 4 and 5: components of the optimal markup (Corollary 3) over inventory, and what an arriving order does to the
  quotes.
- Table 2 and the three pictures of section 5 that the draft announces: the backtest
(`mmgym.baselines.hawkes_power.backtest`)
  for terminal penalties 0, 0.01, 0.05 and 0.1; and what the draft's formula as printed, other quotes, and parameters
  that do not come from the tapes themselves do on the same tapes.
"""

import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.hawkes_power.backtest import (
    ALPHAS,
    Backtest,
    QuoteRule,
    backtest,
    closed_form,
    named_rule,
    table_2,
)
from mmgym.baselines.hawkes_power.book import effective_impacts
from mmgym.baselines.hawkes_power.closed_forms import corollary_3
from mmgym.baselines.reproduce.artifacts import paragraph, text_table, write_artifacts
from mmgym.calibration.hawkes import draw_residuals
from mmgym.calibration.hawkes_power import Calibration, calibrate, market_arguments
from mmgym.calibration.hawkes_power_tape import (
    EVENT_TYPES,
    ILLUSTRATIVE_SETS,
    PowerTape,
    TapeParameters,
    illustrative,
    read_power_tape,
    simulate_power_tapes,
)
from mmgym.models import hawkes, hawkes_flow
from mmgym.models.hawkes_power import BUY, SELL, Params
from mmgym.plot import new_figure

Array = NDArray[np.float64]
Tapes = dict[tuple[str, str], list[PowerTape]]

__all__ = ["known_parameters", "markup_components", "reproduce"]

SHOWN = "H15"  # product of the figures (the draft: H14); alpha of the figures
SHOWN_ALPHA = 0.05
SEED = 2017
BIN = 5.0  # minutes, Figure 2
HOUR = 60.0
POLICIES = {
    "corollary_3": "Corollary 3, corrected, parameters fitted to the same tapes",
    "corollary_3, known parameters": "Corollary 3, corrected, with the parameters that made the tapes",
    "corollary_3_as_printed": "Corollary 3 as printed, fitted parameters",
    "corollary_3_as_printed, 1/kappa = 0": "the same with the draft's 1/kappa = 0",
    "signal_poisson": "quotes of the reduced market (HawkesFlow), fitted parameters",
    "join_best": "the best quotes of the book, always",
}


def known_parameters(made: TapeParameters, **changes: Any) -> Params:
    """Parameters of `mmgym/HawkesPower-v0` that simulated tapes were made with.

    Parameters
    ----------
    made : TapeParameters
    changes
        Other arguments, such as ``terminal_penalty``.
    """
    arguments: dict[str, Any] = {
        "base_rate": list(made.base_rate),
        "excitation": list(made.excitation),
        "decay": list(made.decay),
        "improvement": made.improvement,
        "mean_move": [1.0, made.cancellation_move, made.cancellation_move, 1.0, made.order_move, made.order_move],
        "first_level_share": made.first_level_share,
        "fill_decay": made.fill_decay,
        "initial_spread": made.start_spread,
        "largest_spread": made.largest_spread,
        "tick": made.tick,
        "horizon": made.horizon,
    }
    return Params.create(**(arguments | changes))


def markup_components(params: Params, time_left: Any, inventory: Any, half_spread: Any, rates: Any) -> dict[str, Array]:
    """Components of the optimal markup of the ask, eq. (29) corrected, before it is floored at the half-spread.

    Parameters
    ----------
    params : Params
    time_left, inventory, half_spread : array_like
        Minutes, lots, EUR / MWh; they broadcast.
    rates : array_like, shape (..., 6)
        Intensities before the order that fills the quote, 1 / minute.

    Returns
    -------
    dict
        EUR / MWh: ``risk-neutral`` (1 / kappa), ``impact``, ``half-spread``, ``terminal penalty``, ``running penalty``,
        ``market activity`` (the first six terms of eq. (27)) and ``order flow`` (its last two).
    """
    p = params
    tau, q, h = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (time_left, inventory, half_spread)))
    jumped = np.broadcast_to(np.asarray(rates, dtype=np.float64), (*tau.shape, 6)) + p.excitations * (
        np.arange(6) == BUY
    )
    process = p.base_rates, p.excitations, p.decays, jumped, tau[..., None]
    counts, weighted = hawkes.expected_count(*process), hawkes.weighted_count(*process)
    impacts = effective_impacts(p)
    moves = 2.0 * impacts * counts
    bid, ask = moves[..., 0] - moves[..., 1] - moves[..., SELL], moves[..., 2] - moves[..., 3] + moves[..., BUY]
    long = q >= 1
    net, late = counts[..., BUY] - counts[..., SELL], weighted[..., BUY] - weighted[..., SELL]
    return {
        "risk-neutral": np.full(tau.shape, 1.0 / p.fill_decay_buy),
        "impact": np.where(long, 0.0, 2.0 * impacts[BUY]),
        "half-spread": np.where(long, -h, h),
        "terminal penalty": p.terminal_penalty * (1.0 - 2.0 * q),
        "running penalty": p.running_penalty * tau * (1.0 - 2.0 * q),
        "market activity": np.where(long, bid, ask),
        "order flow": 2.0 / np.e * (p.terminal_penalty * net + p.running_penalty * late),
    }


# Figures 2 and 3


def _both_windows(tapes: Tapes, event_type: str) -> list[Array]:
    """Minutes of the events of each day of the shown product, from the start of Mid to the end of Late."""
    days = zip(tapes[SHOWN, "Mid"], tapes[SHOWN, "Late"], strict=True)
    return [np.concatenate([mid.times(event_type), HOUR + late.times(event_type)]) for mid, late in days]


def _buy_orders(tapes: Tapes) -> pd.DataFrame:
    """Figure 2: mean number of orders to buy in five minutes, with its standard error and the expected number."""
    edges = np.arange(0.0, 2 * HOUR + BIN / 2, BIN)
    counts = np.stack([np.histogram(times, edges)[0] for times in _both_windows(tapes, "MO_BUY")])
    expected = []
    for window in ("Mid", "Late"):
        made = illustrative(SHOWN, window)
        mu, zeta, rho = made.base_rate[BUY], made.excitation[BUY], made.decay[BUY]
        expected.append(np.diff(hawkes.expected_count(mu, zeta, rho, mu, np.arange(0.0, HOUR + BIN / 2, BIN))))
    return pd.DataFrame(
        {
            "start": edges[:-1],
            "end": edges[1:],
            "mean": counts.mean(axis=0),
            "standard_error": counts.std(axis=0, ddof=1) / np.sqrt(len(counts)),
            "expected": np.concatenate(expected),
        }
    )


def _buy_picture(table: pd.DataFrame) -> Any:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    middle = 0.5 * (table["start"] + table["end"])
    axes.bar(middle, table["mean"], width=0.9 * BIN, color="tab:blue", alpha=0.5, label="mean of the days")
    axes.errorbar(
        middle, table["mean"], table["standard_error"], fmt="none", ecolor="tab:blue", capsize=2.0, label="+- 1 s.e."
    )
    axes.step(
        [*table["start"], 2 * HOUR], [*table["expected"], table["expected"].iloc[-1]],
        where="post", color="black", linewidth=1.2, label="expected",
    )  # fmt: skip
    axes.axvline(HOUR, color="gray", linestyle=":", linewidth=1.0)
    axes.set(xlabel="minutes: Mid, then Late", ylabel="orders to buy in five minutes", xlim=(0.0, 2 * HOUR))
    axes.set_title(f"Figure 2: orders to buy, {SHOWN} (simulated)")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _sell_orders(tapes: Tapes) -> pd.DataFrame:
    """Figure 3: orders to sell in each minute of the first day."""
    edges = np.arange(0.0, 2 * HOUR + 0.5)
    counts = np.histogram(_both_windows(tapes, "MO_SELL")[0], edges)[0]
    return pd.DataFrame({"minute": np.arange(len(counts)), "orders": counts})


def _sell_picture(table: pd.DataFrame, times: Array, date: str) -> Any:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    axes.bar(table["minute"] + 0.5, table["orders"], width=0.9, color="tab:red", alpha=0.6, label="orders in a minute")
    axes.plot(times, np.full(len(times), -0.35), "|", color="black", markersize=7.0, label="one order")
    axes.axvline(HOUR, color="gray", linestyle=":", linewidth=1.0)
    axes.set(
        xlabel="minutes: Mid, then Late", ylabel="orders to sell in a minute", xlim=(0.0, 2 * HOUR), ylim=(-0.8, None)
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"Figure 3: orders to sell, {SHOWN} on {date} (simulated)")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _dispersion(tapes: Tapes) -> pd.DataFrame:
    """Variance over mean of the number of market orders of a window: over the days, and as the parameters have it."""
    rows = []
    for (product, window), days in tapes.items():
        made = illustrative(product, window)
        for name, k in (("MO_BUY", BUY), ("MO_SELL", SELL)):
            counts = np.array([len(tape.times(name)) for tape in days], dtype=np.float64)
            mu, zeta, rho = made.base_rate[k], made.excitation[k], made.decay[k]
            exact = hawkes.moments(mu, zeta, rho, mu, made.horizon)
            row = {"product": product, "window": window, "orders": name, "mean": counts.mean()}
            row["expected_mean"] = float(exact.integral)
            row["dispersion"] = counts.var(ddof=1) / counts.mean()
            rows.append(row | {"expected_dispersion": float(exact.count_variance / exact.integral)})
    return pd.DataFrame(rows)


# Table 1


def _table_1(calibration: Calibration) -> pd.DataFrame:
    """The draft's Table 1, long: estimates with standard errors beside the parameters that made the tapes."""
    rows = []
    for (product, window), fit in calibration.groups.items():
        made = illustrative(product, window)
        impacts = effective_impacts(known_parameters(made))
        for k, name in enumerate(EVENT_TYPES):
            process = fit.processes[name]
            entries: dict[str, tuple[str, Any, float]] = {
                "mu": ("1/min", process.base_rate, made.base_rate[k]),
                "zeta": ("1/min", process.excitation, made.excitation[k]),
                "rho": ("1/min", process.decay, made.decay[k]),
                "epsilon": ("EUR/MWh", fit.impacts[name], float(impacts[k])),
            }
            if name in fit.reaches:
                entries["kappa"] = ("MWh/EUR", fit.reaches[name].fill_decay, made.fill_decay)
            for symbol, (unit, estimate, value) in entries.items():
                row: dict[str, Any] = {"product": product, "window": window, "process": name, "parameter": symbol}
                row |= {"unit": unit, "estimate": estimate.value, "standard_error": estimate.stderr, "made_with": value}
                rows.append(row | {"z": (estimate.value - value) / estimate.stderr})
    return pd.DataFrame(rows)


def _table_1_text(table: pd.DataFrame) -> str:
    """Products and windows side by side: ``estimate (standard error)``."""
    cells = [f"{x:.3g} ({e:.2g})" for x, e in zip(table["estimate"], table["standard_error"], strict=True)]
    shown = table.assign(cell=cells, group=table["product"] + " " + table["window"])
    wide = shown.pivot_table(
        index=["process", "parameter", "unit"], columns="group", values="cell", aggfunc="first", sort=False
    )
    wide.columns.name = None
    return wide.reset_index().to_string(index=False)


def _residual_picture(calibration: Calibration) -> Any:
    late = {key: fit for key, fit in calibration.groups.items() if key[1] == "Late"}
    figure = new_figure(9.0, 3.6 * len(late))
    for (left, right), (key, fit) in zip(figure.subplots(len(late), 2), late.items(), strict=True):
        process = fit.processes["MO_BUY"]
        draw_residuals(left, right, {"Hawkes": process.residuals, "Poisson": process.poisson.residuals})
        for axes, kind in ((left, "PP"), (right, "QQ")):
            axes.set_title(f"{' '.join(key)}, orders to buy (simulated): {kind}", fontsize=10)
    return figure


# Figures 4 and 5


def _scenarios(params: Params) -> dict[str, Array]:
    """Intensities: at their mean, and with twice the mean of what tightens or of what widens the spread."""
    mean = params.rate_scales
    return {
        "mean intensities": mean,
        "spread tightens": mean * [2.0, 1.0, 1.0, 2.0, 1.0, 1.0],
        "spread widens": mean * [1.0, 2.0, 2.0, 1.0, 1.0, 1.0],
    }


def _components(params: Params, half_spread: float) -> pd.DataFrame:
    """Figure 4: components of the markup over inventory at the start of the window."""
    inventory = np.arange(-6, 7)
    frames = []
    for name, rates in _scenarios(params).items():
        parts = markup_components(params, params.horizon, inventory, half_spread, rates)
        total = sum(parts.values(), np.zeros(len(inventory)))
        columns = {"inventory": inventory, **parts, "markup": total, "floored": np.maximum(total, half_spread)}
        frames.append(pd.DataFrame({"intensities": name, **columns}))
    return pd.concat(frames, ignore_index=True)


def _components_picture(table: pd.DataFrame, half_spread: float) -> Any:
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    mean = table[table["intensities"] == "mean intensities"]
    for name in ("impact", "half-spread", "terminal penalty", "running penalty", "order flow"):
        left.plot(mean["inventory"], mean[name], ".-", label=name)
    left.plot(mean["inventory"], mean["floored"], "o-", color="black", markersize=3.5, label="markup, at least h")
    left.axhline(half_spread, color="gray", linestyle=":", linewidth=0.9)
    left.set_title("Components at mean intensities (dotted: half-spread h)", fontsize=10)
    for scenario, own in table.groupby("intensities", sort=False):
        right.plot(own["inventory"], own["market activity"], ".-", label=str(scenario))
    right.set_title("Market activity component", fontsize=10)
    for axes in (left, right):
        axes.set(xlabel="inventory (MW)", ylabel="EUR/MWh")
        axes.axvspan(0.0, 1.0, color="0.93", zorder=0)
        axes.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.72))
    figure.suptitle(
        f"Figure 4: optimal markup of the ask, {SHOWN} Late, 60 min left (illustrative parameters)", fontsize=11
    )
    return figure


BUY_MINUTE, SELL_MINUTE, LAST_MINUTE = 1.0, 4.0, 7.0


def arrival_table(params: Params) -> pd.DataFrame:
    """Figure 5: the terms of eq. (29) with ``g`` at inventory 0, around an order to buy and one to sell.

    There is no history, and nothing else arrives, so intensities are at their base and return to it.
    """
    minutes = np.arange(0.0, LAST_MINUTE + 1e-9, 0.02)
    rates = np.tile(params.base_rates, (len(minutes), 1))
    for start, k in ((BUY_MINUTE, BUY), (SELL_MINUTE, SELL)):
        since = np.maximum(minutes - start, 0.0)
        rates[:, k] += np.where(minutes >= start, params.excitations[k] * np.exp(-params.decays[k] * since), 0.0)
    left = params.horizon - minutes
    quiet = np.tile(params.base_rates, (len(minutes), 1))
    flat, still = (_g_terms(params, left, of) for of in (rates, quiet))
    columns = {"minute": minutes, "buy_rate": rates[:, BUY], "sell_rate": rates[:, SELL]}
    for side, name in enumerate(("markdown", "markup")):
        columns |= {f"{name}_terms": flat[:, side], f"{name}_change": flat[:, side] - still[:, side]}
    return pd.DataFrame(columns)


def _g_terms(params: Params, time_left: Array, rates: Array) -> Array:
    """Terms with ``g`` of markdown and markup at inventory 0: everything but 1/kappa, 2 epsilon, h and alpha."""
    spread = np.full(len(time_left), params.initial_spread)
    quotes = corollary_3(params, time_left, np.zeros(len(time_left)), spread, rates, floored=False)
    impacts = effective_impacts(params)
    fixed = params.half_tick * params.initial_spread + params.terminal_penalty
    return np.asarray(
        quotes
        - fixed
        - [1.0 / params.fill_decay_sell + 2 * impacts[SELL], 1.0 / params.fill_decay_buy + 2 * impacts[BUY]]
    )


def _arrivals_picture(table: pd.DataFrame) -> Any:
    figure = new_figure(8.0, 4.4)
    axes = figure.subplots()
    axes.plot(table["minute"], table["markup_change"], color="tab:red", label="markup of the ask")
    axes.plot(table["minute"], table["markdown_change"], "--", color="tab:blue", label="markdown of the bid")
    for minute, name in ((BUY_MINUTE, "order to buy"), (SELL_MINUTE, "order to sell")):
        axes.axvline(minute, color="gray", linestyle=":", linewidth=1.0)
        axes.text(minute + 0.05, 0.97, name, transform=axes.get_xaxis_transform(), va="top", fontsize=9)
    axes.set(xlabel="minutes", ylabel="change of the terms with g (EUR/MWh)", xlim=(0.0, LAST_MINUTE))
    axes.set_title(
        f"Figure 5: what an order does to the quotes at inventory 0, {SHOWN} Late (illustrative)", fontsize=11
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.9))
    return figure


# Table 2 and the backtest


def _rules(
    calibration: Calibration, tapes: Tapes, key: tuple[str, str], alpha: float
) -> dict[str, Callable[[], QuoteRule]]:
    """Quotes to play on the tapes of one product and window, in the order of `POLICIES`."""
    fit = calibration.group(*key)
    fitted = Params.create(**market_arguments(fit, tapes[key]), terminal_penalty=alpha)
    known = known_parameters(illustrative(*key), terminal_penalty=alpha)
    no_premium = fitted._replace(fill_decay_buy=np.inf, fill_decay_sell=np.inf)  # the draft, section 4: 1 / kappa = 0
    printed = functools.partial(corollary_3, as_printed=True)
    reduced = hawkes_flow.Params.create(**fit.kwargs(), terminal_penalty=alpha)
    return {
        "corollary_3": lambda: named_rule("corollary_3", fitted),
        "corollary_3, known parameters": lambda: named_rule("corollary_3", known),
        "corollary_3_as_printed": lambda: closed_form(fitted, printed),
        "corollary_3_as_printed, 1/kappa = 0": lambda: closed_form(no_premium, printed),
        "signal_poisson": lambda: named_rule("signal_poisson", reduced, tick=fit.tick),
        "join_best": lambda: named_rule("join_best", fitted),
    }


def _backtests(
    calibration: Calibration, tapes: Tapes, interval: float, quick: bool, progress: bool
) -> tuple[pd.DataFrame, tuple[PowerTape, Backtest]]:
    """Every result of a tape (with ``policy`` and ``alpha``), and what happened on the tapes of the figure."""
    runs = []
    for key, alpha in itertools.product(tapes, ALPHAS):
        for name, make in _rules(calibration, tapes, key, alpha).items():
            if key[1] == "Mid" and name != "corollary_3":
                continue
            if name == "signal_poisson" and (quick or alpha != SHOWN_ALPHA):  # seconds to solve, each
                continue
            runs.append((key, alpha, name, make))
    frames, shown = [], None
    for key, alpha, name, make in tqdm(runs, desc="power-2017: backtest", disable=not progress):
        if name == "join_best" and alpha != ALPHAS[0]:  # the same for every alpha
            continue
        result = backtest(tapes[key], make(), interval=interval)
        if (key, alpha, name) == ((SHOWN, "Late"), SHOWN_ALPHA, "corollary_3, known parameters"):
            shown = result
        columns = ALPHAS if name == "join_best" else (alpha,)
        frames += [result.windows.assign(policy=name, alpha=column) for column in columns]
    assert shown is not None
    return pd.concat(frames, ignore_index=True), (tapes[SHOWN, "Late"][0], shown)


def _table_2_of(windows: pd.DataFrame, policy: str, window: str) -> pd.DataFrame:
    own = windows[(windows["policy"] == policy) & (windows["window"] == window)]
    return table_2({f"alpha = {alpha:g}": own[own["alpha"] == alpha] for alpha in ALPHAS})


def _policy_table(windows: pd.DataFrame) -> pd.DataFrame:
    """Late windows of all products: mean profit of each policy with its standard error, and what it trades."""
    rows = []
    for name in POLICIES:
        for alpha in ALPHAS:
            own = windows[(windows["policy"] == name) & (windows["alpha"] == alpha) & (windows["window"] == "Late")]
            if own.empty:
                continue
            row: dict[str, Any] = {"policy": name, "alpha": alpha, "windows": len(own), "mean_pnl": own["pnl"].mean()}
            row["standard_error"] = own["pnl"].std(ddof=1) / np.sqrt(len(own))
            row |= {"std_pnl": own["pnl"].std(ddof=1), "mean_volume": own["volume"].mean()}
            rows.append(row | {"mean_absolute_inventory": own["inventory"].abs().mean()})
    return pd.DataFrame(rows)


def _path_picture(tape: PowerTape, played: Backtest) -> Any:
    decisions = played.decisions[played.decisions["tape"] == 0]
    fills = played.fills[played.fills["tape"] == 0]
    minutes = np.append(0.0, tape.events["t_min"].to_numpy(dtype=float))
    end = tape.horizon
    figure = new_figure(9.0, 6.6)
    prices, inventory = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for column, start, color in (("best_bid", tape.start_bid, "0.45"), ("best_ask", tape.start_ask, "0.45")):
        best = tape.tick * np.append(float(start), tape.events[column].to_numpy(dtype=float))
        prices.step(
            np.append(minutes, end), np.append(best, best[-1]), where="post", color=color, linewidth=0.9,
            label="best quotes" if column == "best_bid" else None,
        )  # fmt: skip
    for column, color in (("bid", "tab:blue"), ("ask", "tab:red")):
        own = tape.tick * decisions[column]
        prices.step(
            [*decisions["time"], end], [*own, own.iloc[-1]], where="post", color=color, linewidth=0.9, alpha=0.8,
            label=f"own {column}",
        )  # fmt: skip
    for name, color, label in (("MO_BUY", "tab:red", "buy"), ("MO_SELL", "tab:blue", "sell")):
        rows = tape.rows(name)
        worst = tape.tick * tape.events["worst_price"].to_numpy(dtype=float)[rows]
        prices.plot(
            tape.times(name),
            worst,
            ".",
            color=color,
            markersize=3.0,
            alpha=0.6,
            label=f"deepest price, orders to {label}",
        )
    for sign, marker, label in ((-1, "v", "own sales"), (1, "^", "own purchases")):
        ours = fills[fills["change"] == sign]
        prices.plot(
            ours["time"],
            tape.tick * ours["price"],
            marker,
            color="black",
            markersize=5.0,
            linestyle="none",
            label=label,
        )
    prices.set_ylabel("EUR/MWh")
    title = f"Backtest: {tape.product} {tape.window} on {tape.delivery_date} (simulated), Corollary 3"
    prices.set_title(f"{title}, alpha = {SHOWN_ALPHA:g}", fontsize=11)
    figure.legend(*prices.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    held = np.append(0, fills["change"].cumsum())
    inventory.step([0.0, *fills["time"], end], np.append(held, held[-1]), where="post", color="black", linewidth=1.0)
    inventory.axhline(0.0, color="gray", linewidth=0.6)
    inventory.set(xlabel="minutes", ylabel="inventory (MW)", xlim=(0.0, end))
    return figure


def _distribution_picture(windows: pd.DataFrame) -> Any:
    figure = new_figure(9.6, 5.6)
    panels = figure.subplots(2, 3, sharex="col")
    own = windows[(windows["policy"] == "corollary_3") & (windows["alpha"] == SHOWN_ALPHA)]
    for row, window in enumerate(("Late", "Mid")):
        of_window = own[own["window"] == window]
        for axes, (name, label) in zip(
            panels[row],
            {"pnl": "profit (EUR)", "inventory": "terminal inventory (MW)", "volume": "volume (MW)"}.items(),
            strict=True,
        ):
            every = own[name]
            if name == "inventory":
                bins: Any = np.arange(every.min() - 0.5, every.max() + 1.0)
            else:
                bins = np.linspace(every.min(), every.max(), 25)
            axes.hist(of_window[name], bins=bins, color="tab:blue", alpha=0.7)
            axes.axvline(of_window[name].mean(), color="black", linewidth=1.0)
            axes.set_title(f"{window}: {label}", fontsize=10)
            axes.set_ylabel("windows" if name == "pnl" else "")
            axes.yaxis.get_major_locator().set_params(integer=True)
    for axes, label in zip(panels[1], ("EUR", "MW", "MW"), strict=True):
        axes.set_xlabel(label)
    figure.suptitle(
        f"Corollary 3, alpha = {SHOWN_ALPHA:g}: all products, one window one observation (line: mean)", fontsize=11
    )
    return figure


# What the draft says of its figures


def _claims(params: Params, components: pd.DataFrame, arrivals: pd.DataFrame) -> pd.DataFrame:
    """Sentences of section 3.3 and whether they hold here."""

    def at(scenario: str, inventory: int) -> float:
        own = components[(components["intensities"] == scenario) & (components["inventory"] == inventory)]
        mean = components[(components["intensities"] == "mean intensities") & (components["inventory"] == inventory)]
        return float(own["market activity"].iloc[0] - mean["market activity"].iloc[0])

    def change(name: str, minute: float) -> float:
        return float(arrivals[name].iloc[int(np.argmin(np.abs(arrivals["minute"] - minute)))])

    tight, wide = [at("spread tightens", q) for q in (0, 2)], [at("spread widens", q) for q in (0, 2)]
    buy, sell = change("markup_change", BUY_MINUTE), change("markup_change", SELL_MINUTE)
    left = change("markup_change", BUY_MINUTE + 2.0) / buy
    rows = [
        ("a tightening spread lowers the markup at q <= 0", f"{tight[0]:+.3f} EUR/MWh", tight[0] < 0),
        ("and raises it at q > 0", f"{tight[1]:+.3f} EUR/MWh", tight[1] > 0),
        ("a widening spread does the reverse", f"{wide[0]:+.3f} and {wide[1]:+.3f} EUR/MWh", wide[0] > 0 > wide[1]),
        ("an order to buy raises the markup", f"{buy:+.3f} EUR/MWh", buy > 0),
        ("an order to sell lowers it slightly", f"{sell:+.3f} EUR/MWh", -buy < sell < 0),
        ("that is over in less than two minutes", f"{100 * left:.2g} % left after 2 min", left < 0.05),
    ]
    return pd.DataFrame(rows, columns=["claim", "here", "holds"])


def _drifts(calibration: Calibration, tapes: Tapes) -> pd.DataFrame:
    """Late: how far bid and ask are expected to move in the window from mean intensities, and how far they did."""
    rows = []
    for key, days in tapes.items():
        if key[1] != "Late":
            continue
        row: dict[str, Any] = {"product": key[0]}
        for source, p in (
            ("known", known_parameters(illustrative(*key))),
            ("fitted", Params.create(**market_arguments(calibration.group(*key), days))),
        ):
            counts = hawkes.expected_count(p.base_rates, p.excitations, p.decays, p.rate_scales, p.horizon)
            moves = 2.0 * effective_impacts(p) * counts
            row[f"bid_{source}"] = moves[0] - moves[1] - moves[SELL]
            row[f"ask_{source}"] = moves[2] - moves[3] + moves[BUY]
        ends = [(tape.events["best_bid"].iloc[-1], tape.events["best_ask"].iloc[-1], tape) for tape in days]
        row["bid_moved"] = np.mean([tape.tick * (bid - tape.start_bid) for bid, _, tape in ends])
        row["ask_moved"] = np.mean([tape.tick * (ask - tape.start_ask) for _, ask, tape in ends])
        rows.append(row | {"up_and_down": moves[[0, 1, SELL]].sum()})
    return pd.DataFrame(rows)


def _paired(windows: pd.DataFrame, first: str, second: str) -> str:
    """Mean profit of one policy less that of another on the same Late windows, with its standard error."""
    own = windows[(windows["alpha"] == SHOWN_ALPHA) & (windows["window"] == "Late")]
    pnl = own.pivot(index=["product", "delivery_date"], columns="policy", values="pnl")
    gap = pnl[first] - pnl[second]
    return f"{gap.mean():+.2f} EUR (standard error {gap.std(ddof=1) / np.sqrt(len(gap)):.2f})"


def _simulated(days: int, progress: bool) -> tuple[Tapes, Calibration]:
    """Simulated tapes of all products and windows, and the parameters fitted to them."""
    tapes: Tapes = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for product, window in tqdm(ILLUSTRATIVE_SETS, desc="power-2017: tapes", disable=not progress):
            made = simulate_power_tapes(temporary, product=product, window=window, days=days, seed=SEED)
            tapes[product, window] = [read_power_tape(path) for path in made]
            paths += made
        return tapes, calibrate(paths)


def _tables_2(windows: pd.DataFrame) -> tuple[dict[tuple[str, str], pd.DataFrame], pd.DataFrame]:
    """Table 2 of some policies and windows, and all of them as one table."""
    by_policy = {
        (policy, window): _table_2_of(windows, policy, window)
        for policy, window in (
            ("corollary_3", "Late"), ("corollary_3", "Mid"), ("corollary_3, known parameters", "Late"),
            ("corollary_3_as_printed", "Late"),
        )
    }  # fmt: skip
    parts = [table.assign(policy=policy, window=window) for (policy, window), table in by_policy.items()]
    return by_policy, pd.concat(parts, ignore_index=True)


def _tape_report(
    interval: float, days: int, table_1: pd.DataFrame, dispersion: pd.DataFrame, claims: pd.DataFrame
) -> list[str]:
    """Paragraphs on the tapes, the estimates and what section 3.3 says."""
    z, of_impact = table_1["z"].abs(), table_1["parameter"] == "epsilon"
    smaller = 100 * (1 - (table_1["estimate"] / table_1["made_with"])[of_impact].mean())
    return [
        paragraph(
            """Worst price, volume and move of a simulated order belong together: one that gets behind the best price
            takes it away, and none trades through a quote that still stands. The draft's model draws reach and move
            apart, so that its quotes behind the best price are filled by orders that no book would have let through;
            here one order in five gets there. What follows tests the procedures and says nothing of a real market."""
        ),
        paragraph(
            f"""Illustrative parameters, not estimates; {days} simulated days of H11, H15 and H18, windows Mid and Late
            of 60 min. kappa 4 MWh/EUR, phi 0.001 EUR/MWh per lot and minute, at most 10 lots; new quotes every
            {interval:g} min and after own fills."""
        ),
        "Table 1: estimates (standard errors)\n" + _table_1_text(table_1),
        paragraph(
            f"""Of {int((~of_impact).sum())} rates and kappas {int((z[~of_impact] > 2).sum())} are more than 2 standard
            errors from what made the tapes, the farthest {z[~of_impact].max():.1f}; of {int(of_impact.sum())} impacts
            (epsilon) {int((z[of_impact] > 2).sum())}, the farthest {z[of_impact].max():.1f}. Impacts are compared with
            their mean over the law of the spread at constant intensities, as Corollary 3 takes them; on the tapes they
            are {smaller:.1f} % smaller on average: clusters of events take the spread to its limits."""
        ),
        "Number of market orders in a window: mean, and variance over mean (1 for Poisson)\n"
        + text_table(dispersion, 2),
        f"What section 3.3 says, {SHOWN} Late, alpha = {SHOWN_ALPHA:g}\n" + claims.to_string(index=False),
    ]


def _backtest_report(
    windows: pd.DataFrame,
    policies: pd.DataFrame,
    drifts: pd.DataFrame,
    by_policy: dict[tuple[str, str], pd.DataFrame],
    count: int,
) -> list[str]:
    """Paragraphs on the backtests; ``count`` Late windows were played."""
    return [
        *(
            f"Table 2, {window}, {POLICIES[policy]} ({count} windows)\n" + text_table(table, 2)
            for (policy, window), table in by_policy.items()
        ),
        "All policies on the Late windows (EUR, MW)\n" + text_table(policies, 3),
        "Moves of bid and ask in a Late window (EUR/MWh): expected from mean intensities by known and by fitted\n"
        "parameters, mean on the tapes, and all moves of the bid up and down\n" + text_table(drifts, 2),
        paragraph(
            f"""The quotes of Corollary 3 carry the expected moves of bid and ask until the end, small differences of
            large numbers: errors of the estimates move them far. A backtest on the tapes that the parameters were
            fitted to, as in the draft, can look ahead in this way. At alpha = {SHOWN_ALPHA:g} the mean profit of a
            window with fitted parameters less that with known ones is
            {_paired(windows, "corollary_3", "corollary_3, known parameters")}."""
        ),
        paragraph(
            """NOT matched, or not to be matched: the draft's tables are blank and the EPEX data are not public, so no
            number of it stands beside ours. Figures 2 and 3 show H15 instead of H14. In Figure 2 the simulated rate
            steps up between the windows and is constant within them (after a minute without history), where the draft's
            rises gradually. Figure 1 (a day of exchange data) is left out; the picture of the backtest shows a
            simulated day. The draft does not state the time step of its backtest, its inventory limit, or phi."""
        ),
        paragraph(
            f"""The draft sets 1/kappa = 0 because 80 % of the orders stay in the first level. The others reach an
            exponential distance, here with 1/kappa about the half-spread, and they alone fill a quote behind the best
            price: Corollary 3, whose fill rate has no atom there, quotes too wide. With 1/kappa = 0 its mean profit
            changes by {_paired(windows, "corollary_3_as_printed, 1/kappa = 0", "corollary_3_as_printed")}; the best
            quotes of the book, always, earn {_paired(windows, "join_best", "corollary_3")} more than it, at the risk of
            the inventory in the table. As printed less corrected:
            {_paired(windows, "corollary_3_as_printed", "corollary_3")}. Corollary 3 is no optimum; `mmgym score` tells
            how much it leaves in the two Hawkes markets; with their `reach_atom` they have the atom, though not its
            link with the moves."""
        ),
    ]


def reproduce(folder: Path, *, quick: bool = False, progress: bool = True) -> str:
    """The tables and figures, and the tables as text: see `mmgym.baselines.reproduce`.

    Parameters
    ----------
    folder : Path
        Made if missing. It gets nine tables and seven pictures; the simulated tapes are not kept.
    quick : bool
        4 days instead of 60, new quotes every two minutes instead of every 15 seconds, and without the quotes of the
        reduced market.
    """
    new_figure()  # fails early where matplotlib is missing
    days, interval = (4, 2.0) if quick else (60, 0.25)
    tapes, calibration = _simulated(days, progress)
    windows, (tape, played) = _backtests(calibration, tapes, interval, quick, progress)

    shown = known_parameters(illustrative(SHOWN, "Late"), terminal_penalty=SHOWN_ALPHA)
    half_spread = shown.half_tick * shown.initial_spread
    buy_orders, sell_orders, dispersion = _buy_orders(tapes), _sell_orders(tapes), _dispersion(tapes)
    table_1, components, arrivals = _table_1(calibration), _components(shown, half_spread), arrival_table(shown)
    claims, policies, drifts = _claims(shown, components, arrivals), _policy_table(windows), _drifts(calibration, tapes)
    by_policy, second = _tables_2(windows)
    sells = _both_windows(tapes, "MO_SELL")[0]
    tables = {
        "figure_2_buy_orders": buy_orders,
        "figure_3_sell_orders": sell_orders,
        "dispersion": dispersion,
        "table_1_parameters": table_1,
        "figure_4_components": components,
        "figure_5_arrivals": arrivals,
        "table_2_backtest": second,
        "policies": policies,
        "windows": windows,
    }
    figures = {
        "figure_2_buy_orders": _buy_picture(buy_orders),
        "figure_3_sell_orders": _sell_picture(sell_orders, sells, tape.delivery_date),
        "figure_4_components": _components_picture(components, half_spread),
        "figure_5_arrivals": _arrivals_picture(arrivals),
        "residuals": _residual_picture(calibration),
        "backtest_path": _path_picture(tape, played),
        "backtest_distributions": _distribution_picture(windows),
    }
    write_artifacts(folder, tables, figures)
    late = days * sum(key[1] == "Late" for key in tapes)
    parts = [
        "von Luckner, Cartea, Jaimungal & Kiesel (2017): market making in the German intraday power market.",
        *_tape_report(interval, days, table_1, dispersion, claims),
        *_backtest_report(windows, policies, drifts, by_policy, late),
    ]
    return "\n\n".join(parts)
