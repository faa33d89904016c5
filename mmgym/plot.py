"""Pictures of matplotlib, the extra ``plot``: each from a table, in one style, as axes that can be drawn on further.

The tables are those of `mmgym.baselines`: `policy_cells`, `rollout`, `regret_maps`, `pnl_distribution`, `robustness`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmgym.plain_files import replacing

__all__ = [
    "COLORS",
    "episode",
    "learning_curves",
    "new_figure",
    "plain",
    "pnl_law",
    "quotes",
    "regret",
    "robustness",
    "value",
    "write_figure",
]

COLORS = ("#b8442c", "#2f6690", "#3c7a4e", "#8a5a9e", "#c08a1e", "#444444", "#d67ba8", "#35a0a6")
OPTIMUM = "#7a8794"
MARKS = ("-", ".", "--", ":", "-.")  # of policies
NOT_CONTROLS = ("policy", "step", "time", "value", "chance")


def new_figure(width: float = 7.0, height: float = 4.5) -> Any:
    """An empty matplotlib figure of that size (inches) that lays itself out.

    Raises
    ------
    ImportError
        Without matplotlib, the extra ``plot``.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'mmgym[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure as its name says (.png, .pdf, .svg, .jpg), so many dots an inch."""
    with replacing(Path(path)) as part:
        figure.savefig(part, format=Path(path).suffix[1:], dpi=dpi)


def plain(axis: Any) -> None:
    """Draw axes without a box, on a faint grid."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(alpha=0.25)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _legend(figure: Any, axis: Any) -> None:
    """One legend for all axes, below them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, [_words(label) for label in labels], loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )


def _shown(cells: pd.DataFrame, across: str | None, controls: Sequence[str]) -> tuple[str, list[tuple[Any, Any, str]]]:
    """The coordinate on the axis, and for each step its cells where the other coordinates are most often."""
    if cells.empty:
        raise ValueError("there are no cells to draw: give policy_cells(env, policies)")
    coordinates = [c for c in cells.columns if c not in (*NOT_CONTROLS, *controls)]
    across = across or ("inventory" if "inventory" in coordinates else coordinates[0])
    if across not in coordinates:
        raise ValueError(f"across = {across!r} is not allowed: it must be one of {', '.join(coordinates)}")
    others = [name for name in coordinates if name != across]
    panels = []
    for step, part in cells.groupby("step"):
        likely = part.iloc[int(np.argmax(np.nan_to_num(part["chance"].to_numpy())))]
        for name in others:
            part = part[part[name] == likely[name]]
        where = ", ".join([f"t = {likely['time']:g}", *(f"{_words(name)} {likely[name]:g}" for name in others)])
        panels.append((step, part.sort_values(across), where))
    return across, panels


def quotes(cells: pd.DataFrame, controls: Sequence[str], *, across: str | None = None) -> Any:
    """What policies quote over a coordinate of the state: a row of axes for each control, a column for each step.

    Parameters
    ----------
    cells : DataFrame
        Of `mmgym.baselines.policy_cells`.
    controls : sequence of str
        Columns of the quotes: ``env.unwrapped.control_names``.
    across : str, optional
        Coordinate on the axis; the inventory by default. Others are held where the optimum is most often.

    Returns
    -------
    array of matplotlib axes, shape (controls, steps)
    """
    across, panels = _shown(cells, across, controls)
    figure = new_figure(0.8 + 3.0 * len(panels), 0.6 + 2.1 * len(controls))
    axes = figure.subplots(len(controls), len(panels), sharex=True, sharey="row", squeeze=False)
    for column, (_, part, where) in enumerate(panels):
        for row, control in enumerate(controls):
            axis = axes[row, column]
            for k, (name, own) in enumerate(part.groupby("policy", sort=False)):
                line, mark = MARKS[k % len(MARKS)], {"linewidth": 3, "alpha": 0.5} if k == 0 else {"markersize": 5}
                axis.plot(
                    own[across], own[control], line, color=OPTIMUM if k == 0 else COLORS[k - 1], label=name, **mark
                )
            plain(axis)
            if column == 0:
                axis.set_ylabel(_words(control))
        axes[0, column].set_title(where, fontsize=9)
        axes[-1, column].set_xlabel(_words(across))
    _legend(figure, axes[0, 0])
    return axes


def value(cells: pd.DataFrame, controls: Sequence[str], *, across: str | None = None) -> Any:
    """What policies are still worth over a coordinate of the state, one axes for each step; arguments of `quotes`.

    Returns
    -------
    array of matplotlib axes, shape (steps,)
    """
    across, panels = _shown(cells, across, controls)
    figure = new_figure(0.8 + 3.0 * len(panels), 2.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (_, part, where) in zip(axes, panels, strict=True):
        for k, (name, own) in enumerate(part.groupby("policy", sort=False)):
            axis.plot(own[across], own["value"], color=OPTIMUM if k == 0 else COLORS[(k - 1) % len(COLORS)], label=name)
        axis.set(title=where, xlabel=_words(across))
        axis.title.set_fontsize(9)
        plain(axis)
    axes[0].set_ylabel("value (currency)")
    _legend(figure, axes[0])
    return axes


def episode(frame: pd.DataFrame, number: int = 0) -> Any:
    """An episode: mid, quotes and fills over time, and the inventory below.

    Parameters
    ----------
    frame : DataFrame
        Of `mmgym.baselines.rollout`.
    number : int
        Of the episode.

    Returns
    -------
    array of matplotlib axes, shape (2,)
    """
    own = frame[frame["episode"] == number]
    if own.empty or not {"mid", "bid_depth", "ask_depth", "inventory"} <= set(own.columns):
        raise ValueError(f"there is no episode {number} with mid, bid_depth, ask_depth and inventory in the table")
    figure = new_figure(7.5, 4.6)
    prices, inventory = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    prices.step(own["time"], own["mid"], where="post", color="black", linewidth=1.0, label="mid")
    for side, sign, color, mark in (("bid", -1, COLORS[1], "^"), ("ask", 1, COLORS[0], "v")):
        price = own["mid"] + sign * own[f"{side}_depth"]
        prices.step(own["time"], price, where="post", color=color, linewidth=0.9, label=side)
        filled = own[f"{side}_fills"] > 0
        prices.plot(own["time"][filled], price[filled], mark, color=color, markersize=5)
    inventory.step(own["time"], own["inventory"], where="post", color=COLORS[2])
    inventory.axhline(0.0, color="black", linewidth=0.6)
    prices.set_ylabel("price")
    inventory.set(xlabel="time", ylabel="inventory")
    prices.legend(fontsize=8, frameon=False, ncols=3)
    for axis in (prices, inventory):
        plain(axis)
    return np.array([prices, inventory])


def regret(maps: Mapping[str, Any], *, across: str | None = None) -> Any:
    """Where policies lose value, over time and a coordinate of the state, on one scale.

    Parameters
    ----------
    maps : mapping of str to RegretMap
        Of `mmgym.baselines.regret_maps`.
    across : str, optional
        The coordinate; the inventory by default.

    Returns
    -------
    array of matplotlib axes, shape (policies,)
    """
    from matplotlib.colors import LogNorm

    if not maps:
        raise ValueError("there is no map to draw: give regret_maps(env, policies)")
    first = next(iter(maps.values()))
    across = across or ("inventory" if "inventory" in first.levels else next(iter(first.levels)))
    if across not in first.levels:
        raise ValueError(f"across = {across!r} is not allowed: it must be one of {', '.join(first.levels)}")
    figure = new_figure(1.0 + 3.6 * len(maps), 3.3)
    axes = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    largest = max(max(float(each.cells[across].max()) for each in maps.values()), 1e-300)
    for axis, (name, each) in zip(axes, maps.items(), strict=True):
        levels = np.asarray(each.levels[across], float)
        middle = 0.5 * (levels[1:] + levels[:-1]) if len(levels) > 1 else np.array([])
        edges = np.concatenate([[levels[0] - 0.5], middle, [levels[-1] + 0.5]])
        cells = np.maximum(each.cells[across].T, 1e-300)
        norm = LogNorm(1e-4 * largest, largest, clip=True)
        mesh = axis.pcolormesh(each.times, edges, cells, cmap="OrRd", norm=norm)
        axis.set_title(f"{_words(name)}: regret {each.cells[across].sum():.4g}", fontsize=10)
        axis.set_xlabel("fraction of the episode")
    axes[0].set_ylabel(_words(across))
    figure.colorbar(mesh, ax=list(axes), label="regret of a cell (currency)", extend="min")
    return axes


def pnl_law(laws: Mapping[str, Any], *, confidence: float = 0.95) -> Any:
    """Densities of the final P&L, with the value at risk of each; atoms as stems.

    Parameters
    ----------
    laws : mapping of str to PnlLaw
        Of `mmgym.baselines.pnl_distribution`.
    confidence : float
        Of the value at risk.

    Returns
    -------
    matplotlib axes
    """
    if not laws:
        raise ValueError("there is no law to draw: give {name: pnl_distribution(env, policy)}")
    axis = new_figure(7.0, 3.6).subplots()
    low = min(law.mean - 5.0 * law.std for law in laws.values())
    high = max(law.mean + 5.0 * law.std for law in laws.values())
    x = np.linspace(low, high, 600)
    for color, (name, law) in zip(COLORS * (1 + len(laws) // len(COLORS)), laws.items(), strict=False):
        axis.plot(x, law.density(x), color=color, label=f"{_words(name)}: mean {law.mean:.4g}, std {law.std:.4g}")
        at_risk = law.value_at_risk(confidence)
        axis.axvline(-at_risk, color=color, linestyle=":", label=f"VaR {100 * confidence:g} %: {at_risk:.4g}")
        for place, chance in law.atoms:
            axis.plot([place, place], [0.0, chance], color=color, linewidth=2.0)
    axis.set(xlabel="final P&L (currency)", ylabel="density; atoms: probability", ylim=(0.0, None))
    axis.legend(fontsize=8, frameon=False)
    plain(axis)
    return axis


def learning_curves(curves: Mapping[str, Sequence[Mapping[str, float]]], *, lowest: float = -0.3) -> Any:
    """Exact skill during training, over environment steps.

    Parameters
    ----------
    curves : mapping of str to sequence of mappings
        Points with ``steps`` and ``skill``, as ``run.json`` has them (``curve``); names that are equal up to what
        follows a blank have one colour.
    lowest : float
        Where the axis of skill ends.

    Returns
    -------
    matplotlib axes
    """
    axis = new_figure(7.0, 3.4).subplots()
    kinds = list(dict.fromkeys(name.split()[0] for name in curves))
    for name, points in curves.items():
        kind = name.split()[0]
        first = name == next(other for other in curves if other.split()[0] == kind)
        axis.plot(
            [point["steps"] for point in points],
            [point["skill"] for point in points],
            color=COLORS[kinds.index(kind) % len(COLORS)],
            linewidth=1.4,
            label=kind if first else None,
        )
    axis.axhline(1.0, color=OPTIMUM, linewidth=1.0)
    axis.axhline(0.0, color=OPTIMUM, linewidth=1.0, linestyle=":")
    axis.set(xlabel="environment steps", ylabel="skill (1: optimum, 0: reference)", ylim=(lowest, 1.05))
    axis.legend(fontsize=8, frameon=False)
    plain(axis)
    return axis


def robustness(table: pd.DataFrame, parameters: Sequence[str]) -> Any:
    """What policies are worth over one parameter, as curves, or over two, as a map of the skill of each.

    Parameters
    ----------
    table : DataFrame
        Of `mmgym.baselines.robustness`, with a column ``policy`` where there are several.
    parameters : one or two names
        Columns of the table.

    Returns
    -------
    array of matplotlib axes
        Of value and skill, or of each policy.
    """
    table = table if "policy" in table else table.assign(policy="policy")
    groups = list(table.groupby("policy", sort=False))
    if len(parameters) == 1:
        axes = new_figure(9.0, 4.0).subplots(1, 2)
        values, skills = axes
        name = parameters[0]
        best = groups[0][1]
        values.plot(best[name], best["optimum"], color=OPTIMUM, linewidth=2.0, label="optimum at each point")
        values.plot(best[name], best["reference"], color=OPTIMUM, linestyle=":", label="reference policy")
        for color, (policy, part) in zip(COLORS * (1 + len(groups) // len(COLORS)), groups, strict=False):
            for axis, column in ((values, "value"), (skills, "skill")):
                axis.plot(part[name], part[column], color=color, marker="o", markersize=3.0, label=str(policy))
        skills.axhline(1.0, color=OPTIMUM, linewidth=2.0)
        skills.axhline(0.0, color=OPTIMUM, linestyle=":")
        for axis, what in ((values, "value"), (skills, "skill (1: optimum, 0: reference)")):
            axis.set(xlabel=_words(name), ylabel=what)
            plain(axis)
        _legend(values.figure, values)
        return axes
    figure = new_figure(1.0 + 4.5 * len(groups), 4.2)
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    across, up = parameters
    low = min(0.0, float(table["skill"].min()))
    for axis, (policy, part) in zip(axes, groups, strict=True):
        grid = part.pivot_table(index=up, columns=across, values="skill")
        mesh = axis.pcolormesh(grid.columns, grid.index, grid, shading="nearest", vmin=low, vmax=1.0)
        axis.set(xlabel=_words(across), ylabel=_words(up), title=_words(str(policy)))
    figure.colorbar(mesh, ax=axes, label="skill (1: optimum, 0: reference)")
    return axes
