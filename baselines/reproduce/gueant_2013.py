r"""Guéant, Lehalle & Fernandez-Tapia (2013), "Dealing with the inventory risk", Math. Financ. Econ. 7(4), 477-507.

A market maker with risk aversion ``gamma`` (CARA utility) and inventory bounded by ``Q``. The paper turns its
Hamilton-Jacobi-Bellman equation into a linear system (Theorem 1), shows that optimal quotes become stationary far from
the horizon (Theorem 2), and approximates these in closed form,

    depth_bid = (1 / gamma) ln(1 + gamma / k) + s (q + 1/2),    depth_ask = (1 / gamma) ln(1 + gamma / k) - s (q - 1/2),
    s = sqrt( sigma^2 gamma / (2 k A) (1 + gamma / k)^(1 + k / gamma) ).

Here are its numerical example (prices in ticks, time in seconds), the comparative statics of the stationary quotes, and
what the quotes of this and earlier papers lose: exact certainty equivalents of quotes that react to each fill at once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.frozen import Functional
from mmgym.baselines.glft.closed_forms import avellaneda_stoikov_depths, glft_asymptotic_depths, riccati_depths
from mmgym.baselines.glft.continuous import base_depths, continuous_depths, continuous_values, stationary_depths
from mmgym.baselines.glft.feedback import feedback_certainty_equivalent, feedback_moments
from mmgym.baselines.reproduce.artifacts import paragraph, text_table, write_artifacts
from mmgym.models.glft import Params
from mmgym.plot import new_figure

Array = NDArray[np.float64]

__all__ = ["market", "policy_table", "reproduce", "statics_table"]

VOLATILITY, FILL_RATE, FILL_DECAY, RISK_AVERSION = 0.3, 0.9, 0.3, 0.01
HORIZON, LIMIT = 600.0, 30
SHOWN = (-20, -10, -5, 0, 5, 10, 20)  # inventories whose quotes are drawn over time

# What another computation of this example found, to the digits given (values and depths: 50-digit arithmetic).
REFERENCE = {
    "value v(0, 0)": "1290.6250952468",
    "bid depth (0, 0)": "3.3130454098",
    "bid depth (0, 1)": "3.3811680739",
    "ask depth (0, 1)": "3.2449191548",
    "closed form, bid depth (0)": "3.3129151986",
    "Avellaneda-Stoikov, bid depth (0, 0)": "3.5489822823",
    "loss of Riccati": "0.00013",
    "loss of closed form": "0.327",
    "loss of Avellaneda-Stoikov": "15.399",
    "loss of zero skew": "54.52",
    "loss of constant": "54.92",
}

# Parameter: its unit, and the fields of `Params` that hold it.
STATICS = {
    "sigma": ("tick / sqrt(s)", ("volatility",)),
    "A": ("1 / s", ("fill_rate_bid", "fill_rate_ask")),
    "k": ("1 / tick", ("fill_decay_bid", "fill_decay_ask")),
    "gamma": ("1 / tick", ("risk_aversion",)),
}


def market(num_steps: int) -> Params:
    """The paper's example on so many time steps: prices in ticks, time in seconds, lots of one asset."""
    return Params.create(
        volatility=VOLATILITY,
        fill_rate=FILL_RATE,
        fill_decay=FILL_DECAY,
        horizon=HORIZON,
        num_steps=num_steps,
        inventory_limit=LIMIT,
        utility="cara",
        risk_aversion=RISK_AVERSION,
    )


def _inventories(params: Params) -> NDArray[np.int64]:
    return np.arange(-params.limit, params.limit + 1)


def _gate(depths: Array) -> Array:
    """Depths (..., S, 2) without those of sides that are off: the bid at the upper bound, the ask at the lower one."""
    gated = np.array(depths)
    gated[..., -1, 0] = gated[..., 0, 1] = np.nan
    return gated


def policy_table(cells: int, progress: Any = None) -> pd.DataFrame:
    """What quotes are worth at inventory 0 and time 0, if they react to each fill at once.

    Parameters
    ----------
    cells : int
        Equal time cells; quotes are taken at their midpoints.
    progress : tqdm, optional
        Updated by one a policy.

    Returns
    -------
    DataFrame
        ``policy``, ``certainty_equivalent`` and ``loss`` against the optimum, ``profit`` and ``std_profit`` (ticks),
        and the expected number of ``fills``.
    """
    params = market(2 * cells)
    values = continuous_values(params)
    optimal = continuous_depths(params, values[1::2])
    tables = {
        "optimal": optimal,
        "Riccati": riccati_depths(params)[1::2],
        "closed form": glft_asymptotic_depths(params)[1::2],
        "stationary": np.broadcast_to(stationary_depths(params), optimal.shape),
        "Avellaneda-Stoikov": avellaneda_stoikov_depths(params)[1::2],
        "zero skew": np.broadcast_to(optimal[:, params.limit, None, :], optimal.shape),
        "constant": np.broadcast_to(base_depths(params), optimal.shape),
    }
    rows = []
    for name, depths in tables.items():
        equivalent = feedback_certainty_equivalent(params, depths, params.risk_aversion)
        profit, std = feedback_moments(params, depths)
        fills, _ = feedback_moments(params, depths, Functional(fills=1.0))
        loss = float(values[0, params.limit]) - equivalent
        rows.append(
            {
                "policy": name,
                "certainty_equivalent": equivalent,
                "loss": loss,
                "profit": profit,
                "std_profit": std,
                "fills": fills,
            }
        )
        if progress is not None:
            progress.update()
    return pd.DataFrame(rows)


def _changed(symbol: str, factor: float) -> Params:
    """The example with one parameter multiplied by a factor."""
    params = market(1)
    return params._replace(**{name: getattr(params, name) * factor for name in STATICS[symbol][1]})


def statics_table(points: int) -> pd.DataFrame:
    """Stationary quotes where one parameter at a time runs from a third to three times its value.

    Returns
    -------
    DataFrame
        ``parameter``, its ``value``, ``inventory`` (assets); ``bid, ask`` (ticks) exact and ``closed_bid, closed_ask``
        from the closed form.
    """
    frames = []
    for symbol, (_, names) in STATICS.items():
        for factor in np.geomspace(1.0 / 3.0, 3.0, points):
            params = _changed(symbol, float(factor))
            exact, closed = _gate(stationary_depths(params)), _gate(glft_asymptotic_depths(params)[0])
            columns = {"inventory": _inventories(params), "bid": exact[:, 0], "ask": exact[:, 1]}
            columns |= {"closed_bid": closed[:, 0], "closed_ask": closed[:, 1]}
            frames.append(pd.DataFrame({"parameter": symbol, "value": getattr(params, names[0]), **columns}))
    return pd.concat(frames, ignore_index=True)


def elasticities() -> pd.DataFrame:
    """Change of stationary depths (ticks) for a change of one parameter by 1 %, exact and by the closed form."""
    rows = []
    for symbol in STATICS:
        for formula in ("exact", "closed form"):
            low, high = (
                stationary_depths(changed) if formula == "exact" else glft_asymptotic_depths(changed)[0]
                for changed in (_changed(symbol, factor) for factor in (0.995, 1.005))
            )
            change = high - low
            row: dict[str, Any] = {"parameter": symbol, "formula": formula}
            row |= {f"bid, q = {q}": change[LIMIT + q, 0] for q in (-10, 0, 10)}
            rows.append({**row, "spread, q = 0": change[LIMIT].sum()})
    return pd.DataFrame(rows)


def _numbers(params: Params, values: Array, depths: Array, policies: pd.DataFrame) -> pd.DataFrame:
    """Our numbers beside the reference ones.

    They agree where they differ by no more than half a unit of the printed digit and the error of the time cells: that
    of a loss is what the optimal quotes lose in the same cells, which is 0 in the limit.
    """
    losses = policies.set_index("policy")["loss"]
    quantities = {
        "value v(0, 0)": values[0, LIMIT],
        "bid depth (0, 0)": depths[0, LIMIT, 0],
        "bid depth (0, 1)": depths[0, LIMIT + 1, 0],
        "ask depth (0, 1)": depths[0, LIMIT + 1, 1],
        "closed form, bid depth (0)": glft_asymptotic_depths(params)[0, LIMIT, 0],
        "Avellaneda-Stoikov, bid depth (0, 0)": avellaneda_stoikov_depths(params)[0, LIMIT, 0],
    } | {name: losses[name.removeprefix("loss of ")] for name in REFERENCE if name.startswith("loss of ")}
    rows = []
    for name, digits in REFERENCE.items():
        decimals = len(digits.partition(".")[2])
        printed = f"{quantities[name]:.{decimals}f}"
        difference = abs(quantities[name] - float(digits))
        error = abs(losses["optimal"]) if name.startswith("loss of ") else 0.0
        row = {"quantity": name, "here": quantities[name], "here_rounded": printed, "reference": digits, "error": error}
        rows.append({**row, "agrees": bool(difference <= 0.51 * 10.0**-decimals + error)})
    return pd.DataFrame(rows)


def _depth_table(params: Params, depths: Array) -> pd.DataFrame:
    columns: dict[str, Array] = {}
    for name, table in (
        ("exact", depths[0]),
        ("stationary", stationary_depths(params)),
        ("closed_form", glft_asymptotic_depths(params)[0]),
    ):
        gated = _gate(table)
        columns |= {f"bid_{name}": gated[:, 0], f"ask_{name}": gated[:, 1]}
    return pd.DataFrame({"inventory": _inventories(params), **columns})


def _depths_picture(table: pd.DataFrame) -> Any:
    figure = new_figure(8.0, 4.2)
    for axes, side in zip(figure.subplots(1, 2, sharey=True), ("bid", "ask"), strict=True):
        axes.plot(table["inventory"], table[f"{side}_exact"], ".", color="black", label="exact, t = 0")
        axes.plot(table["inventory"], table[f"{side}_stationary"], color="tab:blue", label="stationary")
        axes.plot(table["inventory"], table[f"{side}_closed_form"], "--", color="tab:orange", label="closed form")
        axes.set_title(f"Optimal {side} depth")
        axes.set_xlabel("inventory (assets)")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("distance from the mid (ticks)")
    figure.axes[0].legend(frameon=False)
    return figure


def _time_picture(time: Array, depths: Array, stationary: Array) -> Any:
    from matplotlib import colormaps

    figure = new_figure(8.0, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for side, (axes, name) in enumerate(zip(panels, ("bid", "ask"), strict=True)):
        for i, q in enumerate(SHOWN):
            color = colormaps["coolwarm"](i / (len(SHOWN) - 1)) if q else "black"
            axes.plot(time, depths[:, LIMIT + q, side], color=color, label=f"{q:+d}" if q else "0")
            axes.axhline(stationary[LIMIT + q, side], color=color, linestyle=":", linewidth=0.9)
        axes.set_title(f"Optimal {name} depth over time (dotted: stationary)")
        axes.title.set_fontsize(10)
        axes.set_xlabel("time (s)")
        axes.set_xlim(0.0, HORIZON)
    panels[0].set_ylabel("distance from the mid (ticks)")
    figure.legend(
        *panels[0].get_legend_handles_labels(), title="inventory (assets)", loc="outside lower center", ncols=7
    )
    return figure


def _value_picture(time: Array, values: Array) -> Any:
    figure = new_figure(9.0, 4.2)
    lines, surface = figure.subplots(1, 2)
    inventory = np.arange(-LIMIT, LIMIT + 1)
    for left, color in ((600.0, "black"), (300.0, "tab:blue"), (100.0, "tab:green"), (10.0, "tab:orange")):
        row = int(np.argmin(np.abs(HORIZON - time - left)))
        lines.plot(inventory, values[row], color=color, label=f"{left:g} s")
    lines.set_xlabel("inventory (assets)")
    lines.set_ylabel("v, certainty equivalent of what remains (ticks)")
    lines.legend(title="time left", frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.68), fontsize=8)
    lines.set_title("Value over inventory")
    mesh = surface.contourf(time, inventory, (values - values[:, LIMIT, None]).T, levels=20, cmap="viridis")
    figure.colorbar(mesh, ax=surface, label="v(t, q) - v(t, 0) (ticks)")
    surface.set_xlabel("time (s)")
    surface.set_ylabel("inventory (assets)")
    surface.set_title("Cost of holding inventory")
    return figure


def _statics_picture(table: pd.DataFrame) -> Any:
    figure = new_figure(8.0, 6.4)
    current = {"sigma": VOLATILITY, "A": FILL_RATE, "k": FILL_DECAY, "gamma": RISK_AVERSION}
    colors = {-10: "tab:blue", 0: "black", 10: "tab:red"}
    for axes, (symbol, (unit, _)) in zip(figure.subplots(2, 2).flat, STATICS.items(), strict=True):
        chosen = table[table["parameter"] == symbol]
        for q, color in colors.items():
            of_q = chosen[chosen["inventory"] == q]
            axes.plot(of_q["value"], of_q["bid"], color=color, linewidth=5.0, alpha=0.3, label=f"exact, q = {q}")
            axes.plot(of_q["value"], of_q["closed_bid"], "--", color=color, label=f"closed form, q = {q}")
        axes.axvline(current[symbol], color="gray", linestyle=":", linewidth=0.9)
        axes.set_xscale("log")
        ticks = [current[symbol] * factor for factor in (1.0 / 3.0, 1.0, 3.0)]
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(f"{symbol} ({unit})")
        axes.set_ylabel("stationary bid depth (ticks)")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _settled(time: Array, depths: Array, stationary: Array) -> float:
    """Least time left (s) from which on all depths of ``|q| <= 20`` are within 0.01 tick of the stationary ones."""
    inner = slice(LIMIT - 20, LIMIT + 21)
    distance = np.abs(depths[:, inner] - stationary[inner]).max(axis=(1, 2))
    return float(HORIZON - time[: len(depths)][distance <= 0.01].max())


def _disagreement(numbers: pd.DataFrame) -> str:
    """Names of the numbers that another computation has otherwise."""
    names = numbers.loc[~numbers["agrees"], "quantity"]
    if names.empty:
        return paragraph(
            f"""All agree, within half a unit of the last printed digit and the error of a loss by the time cells,
            {numbers["error"].max():.2g}: what the optimal quotes themselves lose in them."""
        )
    return paragraph(
        f"""NOT the same: {", ".join(names)}. The error of a loss by the time cells, {numbers["error"].max():.2g} (what
        the optimal quotes themselves lose in them), does not explain it."""
    )


def _report(
    at_start: pd.DataFrame, settled: float, policies: pd.DataFrame, changes: pd.DataFrame, numbers: pd.DataFrame
) -> str:
    """The tables as text; ``settled`` is the time left from which depths are nearly the stationary ones (s)."""
    shown_depths = at_start[at_start["inventory"].isin(SHOWN)].rename(columns=lambda name: name.replace("_", " "))
    shown_numbers = numbers[["quantity", "here_rounded", "reference", "agrees"]]
    parts = [
        "Guéant, Lehalle & Fernandez-Tapia (2013): optimal quotes with bounded inventory, CARA utility.",
        paragraph(
            f"""sigma {VOLATILITY:g} tick/sqrt(s), A {FILL_RATE:g} /s, k {FILL_DECAY:g} /tick, gamma {RISK_AVERSION:g}
            /tick, T {HORIZON:g} s, Q {LIMIT}; depths and amounts in ticks, inventory in assets."""
        ),
        "Depths at time 0 by inventory\n" + text_table(shown_depths, 4),
        paragraph(
            f"""Up to 20 assets the exact depths are within 0.01 tick of the stationary ones while at least
            {settled:.0f} s are left. The closed form is straight in the inventory; the exact
            depths bend away from it near the bounds."""
        ),
        "What quotes are worth that react to each fill at once (from inventory 0)\n" + text_table(policies, 4),
        "Change of stationary depths (ticks) for a parameter that is 1 % higher\n" + text_table(changes, 5),
        paragraph(
            """More volatility or risk aversion skews the quotes more, more orders (A) skew them less: the bid moves
            away from the mid when long and towards it when short, or the reverse. Risk aversion also lowers the base
            depth, and here that decides the spread at q = 0. A higher k lowers base depth and skew; all depths shown
            fall."""
        ),
        "Our numbers beside those of another computation\n" + text_table(shown_numbers, 4),
        _disagreement(numbers),
        paragraph(
            """Not checked: the paper shows its example in figures and no copy of them is at hand, so no printed digit
            stands beside ours, and the parameter values are the paper's as commonly quoted. Its backtests on exchange
            data are not attempted: the data are not public."""
        ),
    ]
    return "\n\n".join(parts)


def reproduce(folder: Path, *, quick: bool = False, progress: bool = True) -> str:
    """The tables and figures, and the tables as text: see `mmgym.baselines.reproduce`.

    Parameters
    ----------
    folder : Path
        Made if missing. It gets ``depths.csv``, ``depths_over_time.csv``, ``values.csv``, ``comparative_statics.csv``,
        ``policies.csv``, ``numbers.csv`` and four pictures.
    quick : bool
        Coarser time cells for what the policies lose (a few 1e-5 ticks) and fewer points of the comparative statics.
    """
    new_figure()  # fails early where matplotlib is missing
    params = market(600)
    inventory, time = _inventories(params), np.linspace(0.0, HORIZON, params.num_steps + 1)
    values = continuous_values(params)
    depths, stationary = _gate(continuous_depths(params, values)), stationary_depths(params)

    with tqdm(total=8, desc="gueant-2013", disable=not progress) as bar:
        policies = policy_table(600 if quick else 2000, bar)
        statics, changes = statics_table(9 if quick else 41), elasticities()
        bar.update()
    numbers, at_start = _numbers(params, values, depths, policies), _depth_table(params, depths)

    over_time = {f"{side}_{q:+d}": depths[:, LIMIT + q, i] for i, side in enumerate(("bid", "ask")) for q in SHOWN}
    of_values = pd.DataFrame(values, columns=[f"{q:+d}" for q in inventory])
    of_values.insert(0, "time", time)
    tables = {
        "depths": at_start,
        "depths_over_time": pd.DataFrame({"time": time, **over_time}),
        "values": of_values,
        "comparative_statics": statics,
        "policies": policies,
        "numbers": numbers,
    }
    figures = {
        "figure_1_depths": _depths_picture(at_start),
        "figure_2_depths_over_time": _time_picture(time, depths, stationary),
        "figure_3_value": _value_picture(time, values),
        "figure_4_comparative_statics": _statics_picture(statics),
    }
    write_artifacts(folder, tables, figures)
    settled = _settled(time, depths, stationary)
    return _report(at_start, settled, policies, changes, numbers)
