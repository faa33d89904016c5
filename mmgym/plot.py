"""Figures of matplotlib, the extra ``plot``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mmgym.plain_files import replacing

__all__ = ["new_figure", "robustness", "write_figure"]


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


def write_figure(figure: Any, path: Path, *, dpi: int = 150) -> None:
    """Write a figure as its name says (.png, .pdf, .svg, .jpg), so many dots an inch."""
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=dpi)


def robustness(table: pd.DataFrame, parameters: Sequence[str], file: str | Path | None = None) -> Any:
    """What policies are worth over one parameter, as curves, or over two, as a map of the skill of each.

    Parameters
    ----------
    table : DataFrame
        Of `mmgym.baselines.robustness`, with a column ``policy`` where there are several.
    parameters : one or two names
        Columns of the table.
    file : str or Path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    table = table if "policy" in table else table.assign(policy="policy")
    groups = list(table.groupby("policy", sort=False))
    if len(parameters) == 1:
        figure = new_figure(9.0, 4.0)
        values, skills = figure.subplots(1, 2)
        name = parameters[0]
        best = groups[0][1]
        values.plot(best[name], best["optimum"], color="black", linewidth=2.0, label="optimum at each point")
        values.plot(best[name], best["reference"], color="grey", linestyle=":", label="reference policy")
        for policy, part in groups:
            values.plot(part[name], part["value"], marker="o", markersize=3.0, label=policy)
            skills.plot(part[name], part["skill"], marker="o", markersize=3.0, label=policy)
        skills.axhline(1.0, color="black", linewidth=1.0)
        skills.axhline(0.0, color="grey", linestyle=":")
        values.set(xlabel=name, ylabel="value", title="value")
        skills.set(xlabel=name, ylabel="skill", title="skill: 1 at the optimum, 0 at the reference")
        values.legend(frameon=False)
    else:
        figure = new_figure(1.0 + 4.5 * len(groups), 4.2)
        axes = figure.subplots(1, len(groups), squeeze=False)[0]
        across, up = parameters
        low = min(0.0, float(table["skill"].min()))
        for axis, (policy, part) in zip(axes, groups, strict=True):
            grid = part.pivot_table(index=up, columns=across, values="skill")
            mesh = axis.pcolormesh(grid.columns, grid.index, grid, shading="nearest", vmin=low, vmax=1.0)
            axis.set(xlabel=across, ylabel=up, title=policy)
        figure.colorbar(mesh, ax=axes, label="skill")
    if file is not None:
        write_figure(figure, Path(file), dpi=120)
    return figure
