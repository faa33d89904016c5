"""The picture of a replay: wealth, inventory, fills by depth, and the way from the model's P&L to the book's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmgym.baselines.replay.against import Comparison
from mmgym.calibration.tape_checks import draw_findings
from mmgym.plot import new_figure, write_figure
from mmgym.tapes.findings import Finding

__all__ = ["picture"]

MOST_POINTS = 4000  # of a line


def picture(
    comparisons: dict[str, Comparison],
    depths: dict[str, pd.DataFrame],
    path: str | Path,
    findings: Sequence[Finding] = (),
) -> Any:
    """Draw replays of policies, by name, with their fills by depth; the figure, written as the name says.

    The findings stand below it.

    Raises
    ------
    ImportError
        Without matplotlib, the extra ``plot``.
    """
    figure = new_figure(11.0, 3.6 + 3.4 * len(comparisons))
    grid = figure.add_gridspec(1 + len(comparisons), 2)
    wealth, inventory = (figure.add_subplot(grid[0, k]) for k in range(2))
    for name, comparison in comparisons.items():
        seconds, money, held = _path(comparison)
        wealth.plot(seconds, money, label=name)
        inventory.plot(seconds, held, label=name, linewidth=0.9, drawstyle="steps-post")
    wealth.set(xlabel="time (s)", ylabel="wealth, fees paid", title="wealth at the mid")
    inventory.set(xlabel="time (s)", ylabel="assets", title="inventory")
    wealth.legend(frameon=False)
    for row, (name, comparison) in enumerate(comparisons.items(), start=1):
        _depths(figure.add_subplot(grid[row, 0]), depths[name], name)
        _parts(figure.add_subplot(grid[row, 1]), comparison.parts["amount"], name)
    draw_findings(figure, findings)
    write_figure(figure, Path(path))
    return figure


def _path(comparison: Comparison) -> tuple[Any, Any, Any]:
    """Time, wealth and inventory of all sessions, one after the other."""
    seconds, money, held, start, gained = [], [], [], 0.0, 0.0
    for session in comparison.sessions:
        time = np.arange(len(session.times)) * session.interval
        seconds.append(start + time)
        money.append(gained + session.wealth)
        held.append(session.inventory)
        start, gained = start + float(time[-1]), float(money[-1][-1])
    every = max(1, sum(map(len, seconds)) // MOST_POINTS)
    whole: Sequence[Any] = [np.concatenate(parts)[::every] for parts in (seconds, money, held)]
    return whole[0], whole[1], whole[2]


def _depths(axis: Any, table: pd.DataFrame, name: str) -> None:
    for side, colour in (("bid", "tab:blue"), ("ask", "tab:red")):
        own = table[table["side"] == side]
        law = own["expected"] / own["seconds"]
        axis.plot(own["depth"], law, color=colour, label=f"{side}, law")
        errors = [(own["ratio"] - own["lower"]) * law, (own["upper"] - own["ratio"]) * law]
        axis.errorbar(
            own["depth"], own["rate"], np.abs(errors), fmt="o", color=colour, markersize=4, label=f"{side}, book (95 %)"
        )
    axis.set(xlabel="depth from the mid", ylabel="fills a second", title=f"{name}: fills by depth")
    axis.legend(frameon=False, fontsize=8)


def _parts(axis: Any, amounts: pd.Series, name: str) -> None:
    values = amounts.to_numpy()
    ends = np.concatenate([np.cumsum(values[:-1]), values[-1:]])
    starts = np.concatenate([[0.0], ends[:-2], [0.0]])
    colours = np.where(ends >= starts, "tab:green", "tab:red")
    colours[[0, -1]] = "tab:grey"
    place = np.arange(len(values))[::-1]
    axis.barh(place, ends - starts, left=starts, color=colours)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set_yticks(place, [str(part).split(":")[0] for part in amounts.index], fontsize=8)
    for y, end, value in zip(place, np.maximum(starts, ends), values, strict=True):
        axis.annotate(f"{value:.4g}", (end, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axis.use_sticky_edges = False
    axis.margins(x=0.2)
    axis.set(xlabel="currency, an episode", title=f"{name}: from the model to the book")
