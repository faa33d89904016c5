"""The explorer's charts, as plotly figures: colours of text and grids are those of the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from mmgym.agents.explore.computation import Law, Optimum
from mmgym.agents.explore.episode import Episode
from mmgym.agents.explore.views import Quotes, Values
from mmgym.baselines.regret import RegretMap

__all__ = [
    "columns_of",
    "control_groups",
    "cost_figure",
    "episode_figure",
    "law_figure",
    "quotes_figure",
    "regret_figure",
    "value_figure",
]

Array = NDArray[Any]

BID, ASK, OTHER = "#3d85c6", "#d1553a", "#5a9e6f"
BEST, COMPARED = "#4c8fd0", "#e0702f"
TIMES = ("#9aa5b1", "#5b8fc9", "#c4622d", "#7a5fb0", "#3f9a6b", "#b8860b")
SHARES = 4.0  # powers of ten of regret that a map shows
SIDES = ("bid", "ask")


def words(name: str) -> str:
    """A name as a title."""
    return name.replace("_", " ")


def control_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Controls that are drawn together: those that differ in their side only, "bid" and "ask"."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        head = " ".join(word for word in name.split("_") if word not in SIDES)
        groups.setdefault(head or name, []).append(i)
    return groups


def side_color(name: str) -> str:
    """The colour of a control's side."""
    parts = name.split("_")
    return BID if "bid" in parts else ASK if "ask" in parts else OTHER


def side_of(name: str) -> str:
    """The side of a control, or its name where it has none, in front of a policy's name."""
    return next((word for word in name.split("_") if word in SIDES), words(name)) + ", "


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "family": "system-ui, sans-serif", "color": "#808080"},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "bgcolor": "rgba(0,0,0,0)"},
        hovermode="closest",
        uirevision="kept",
    )
    figure.update_xaxes(gridcolor="#80808040", zerolinecolor="#80808080", automargin=True)
    figure.update_yaxes(gridcolor="#80808040", zerolinecolor="#80808080", automargin=True)
    return figure


def quotes_figure(view: Quotes, optimum: Optimum, best: str, compared: str) -> go.Figure:
    """Controls over a coordinate: a row for each kind, a column for each time; lines are best, dots are compared."""
    names, groups = optimum.control_names, control_groups(optimum.control_names)
    rows, columns = len(groups), len(view.times)
    kind = "near" if view.sampled else "time"  # the card's note has the rest
    figure = make_subplots(
        rows,
        columns,
        shared_xaxes=True,
        shared_yaxes="rows",
        horizontal_spacing=0.03,
        vertical_spacing=0.25 / rows if rows > 1 else 0.0,
        subplot_titles=[f"{kind} {t:.4g}" for t in view.times],
    )
    listed: set[str] = set()

    def draw(values: Array, name: str, policy: str, place: dict[str, int], **style: Any) -> None:
        label = f"{side_of(name)}{policy}"
        figure.add_scatter(
            x=view.levels, y=values, name=label, legendgroup=label, showlegend=label not in listed, **style, **place
        )
        listed.add(label)

    shape = "hvh" if optimum.discrete else "linear"
    for column in range(columns):
        for row, members in enumerate(groups.values()):
            place = {"row": row + 1, "col": column + 1}
            for i in members:
                color = side_color(names[i])
                line = {"color": color, "width": 2.5, "shape": shape}
                draw(view.best[column, i], names[i], best, place, mode="lines", line=line)
                if view.compared is not None:
                    marker = {"color": color, "size": 6}
                    draw(view.compared[column, i], names[i], compared, place, mode="markers", marker=marker)
    for row, head in enumerate(groups):
        figure.update_yaxes(title_text=words(head), row=row + 1, col=1)
    figure.update_xaxes(title_text=words(view.across), row=rows)
    _styled(figure, 180 + 190 * rows)
    figure.update_layout(margin={"t": 120}, legend={"yref": "container", "y": 1.0, "yanchor": "top"})
    return figure


def value_figure(view: Values) -> go.Figure:
    """The value surface as a map over time and a coordinate."""
    figure = go.Figure(
        go.Heatmap(
            x=view.times,
            y=view.levels,
            z=view.values,
            colorscale="Viridis",
            colorbar={"thickness": 10, "outlinewidth": 0},
            hovertemplate="time %{x:.4g}<br>" + words(view.across) + " %{y:.4g}<br>value %{z:.6g}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(title_text=words(view.across))
    return _styled(figure, 340)


def cost_figure(view: Values, marked: Sequence[float]) -> go.Figure:
    """How far the value of each level lies below that of the best one, at the marked times."""
    figure = go.Figure()
    for i, time in enumerate(marked):
        n = int(np.abs(view.times - time).argmin())
        column = view.values[:, n]
        top = np.nanmax(column) if np.isfinite(column).any() else 0.0
        color = TIMES[i % len(TIMES)]
        figure.add_scatter(
            x=view.levels,
            y=column - top,
            mode="lines+markers",
            line={"color": color},
            marker={"size": 4, "color": color},
            name=f"time {view.times[n]:.4g}",
        )
    figure.update_xaxes(title_text=words(view.across))
    figure.update_yaxes(title_text="value less the best")
    return _styled(figure, 340)


def law_figure(laws: Sequence[Law]) -> go.Figure:
    """Densities of the final P&L, their atoms as stems, and the VaR as dashed lines."""
    figure = go.Figure()
    for law, color in zip(laws, (BEST, COMPARED), strict=False):
        shape = "hvh" if law.method == "simulated" else "linear"
        figure.add_scatter(
            x=law.x,
            y=law.density,
            mode="lines",
            line={"color": color, "width": 2.5, "shape": shape},
            fill="tozeroy",
            fillcolor=color + "22",
            name=f"{law.name} ({law.method})",
        )
        top = float(np.max(law.density, initial=0.0))
        for value, chance in law.atoms:
            if chance > 1e-4:
                figure.add_scatter(
                    x=[value, value],
                    y=[0.0, top],
                    mode="lines+markers",
                    line={"color": color, "width": 2, "dash": "dot"},
                    name=f"probability {chance:.3g} of {value:.4g}",
                )
        at_risk = law.risk["VaR 95%"][0]
        figure.add_vline(x=-at_risk, line={"color": color, "dash": "dash", "width": 1.5})
    figure.update_xaxes(title_text="final P&L (dashed: its 5 % quantile, minus the VaR 95 %)")
    figure.update_yaxes(title_text="density")
    return _styled(figure, 340)


def regret_figure(regret: RegretMap, across: str, horizon: float, name: str) -> go.Figure:
    """Where a policy loses value, over time and one coordinate, in powers of ten; the cells add up to its regret."""
    cells = np.maximum(np.asarray(regret.cells[across]), 0.0).T
    times, levels = np.asarray(regret.times) * horizon, np.asarray(regret.levels[across])
    largest = float(cells.max(initial=0.0))
    if largest <= 0.0:
        figure = go.Figure()
        figure.add_annotation(text=f"{name} loses nothing", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
        return _styled(figure, 340)
    top = np.log10(largest)
    with np.errstate(divide="ignore"):
        shades = np.maximum(np.log10(cells), top - SHARES)
    ticks = np.arange(np.ceil(top - SHARES), np.floor(top) + 1)
    figure = go.Figure(
        go.Heatmap(
            x=0.5 * (times[1:] + times[:-1]),
            y=levels,
            z=shades,
            customdata=cells,
            zmin=top - SHARES,
            zmax=top,
            colorscale="OrRd",
            colorbar={
                "title": {"text": "regret"},
                "tickvals": ticks,
                "ticktext": [f"{10.0**t:g}" for t in ticks],
                "thickness": 10,
                "outlinewidth": 0,
            },
            hovertemplate="time %{x:.4g}<br>" + words(across) + " %{y:.4g}<br>regret %{customdata:.3g}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(title_text=words(across))
    return _styled(figure, 340)


def columns_of(columns: Iterable[str], head: str) -> list[str]:
    """Columns of one kind: ``mid``, or ``mid_0``, ``mid_1`` of several assets."""
    return [name for name in columns if name == head or name.removeprefix(f"{head}_").isdigit()]


def episode_figure(episode: Episode, step: int) -> go.Figure:
    """The episode up to a step: own quotes around the mid, inventory and what was earned, next to the optimum's."""
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.45, 0.25, 0.3])
    for played, color in ((episode.optimum, BEST), (episode.policy, COMPARED)):
        time = played.before["time"]
        count = int(np.searchsorted(time, episode.policy.before["time"][step], side="right"))
        part = slice(0, max(count, 1))
        common = {"legendgroup": played.name, "mode": "lines"}
        for i, name in enumerate(columns_of(played.before, "inventory")):
            figure.add_scatter(
                **common,
                x=time[part],
                y=played.before[name][part],
                line={"color": color, "shape": "hv", "width": 2, "dash": "solid" if i == 0 else "dot"},
                name=played.name,
                showlegend=i == 0,
                row=2,
                col=1,
            )
        figure.add_scatter(
            **common,
            x=time[part],
            y=np.cumsum(played.during["reward"])[part],
            line={"color": color, "width": 2},
            name=played.name,
            showlegend=False,
            row=3,
            col=1,
        )
    _add_prices(figure, episode, step)
    for row, title in enumerate(("price", "inventory", "reward so far"), start=1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text="time", row=3, col=1)
    first, last = episode.policy.before["time"][0], episode.policy.before["time"][-1]
    figure.update_xaxes(range=[first, last if last > first else first + 1.0])
    return _styled(figure, 520)


def _add_prices(figure: go.Figure, episode: Episode, step: int) -> None:
    """The mid of the policy's episode, and its own quotes and the optimum's in the same states."""
    before, part = episode.policy.before, slice(0, step + 1)
    time, mids = before["time"][part], columns_of(before, "mid")
    for i, name in enumerate(mids):
        mid = before[name][part]
        tail = name.removeprefix("mid")
        figure.add_scatter(
            x=time,
            y=mid,
            mode="lines",
            line={"color": "#808080", "width": 1.5},
            name="mid",
            legendgroup="mid",
            showlegend=i == 0,
            row=1,
            col=1,
        )
        for played, color in ((episode.instead, BEST), (episode.policy, COMPARED)):
            for sign, side in ((-1.0, "bid"), (1.0, "ask")):
                depth = played.during.get(f"{side}_depth{tail}")
                if depth is not None:
                    figure.add_scatter(
                        x=time,
                        y=mid + sign * depth[part],
                        mode="lines",
                        line={"color": color, "width": 1, "shape": "hv"},
                        legendgroup=played.name,
                        showlegend=False,
                        name=f"{side} of {played.name}",
                        row=1,
                        col=1,
                    )
