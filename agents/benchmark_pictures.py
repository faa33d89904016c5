"""Pictures of a benchmark as PNG data URIs, from the results of its cells alone."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmgym.agents.benchmark_tables import curve_of
from mmgym.plot import COLORS, new_figure, plain

__all__ = [
    "AGENT",
    "PAPER",
    "picture_of_curves",
    "picture_of_profiles",
    "picture_of_quotes",
    "picture_of_regret",
    "picture_of_skill",
]

AGENT, OPTIMUM, PAPER = "#b8442c", "#7a8794", "#2f6690"
WORST = -0.5  # where the axis of skill ends: lower ones are drawn there, with their number
Result = Mapping[str, Any]


def _uri(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_of_skill(summary: pd.DataFrame) -> str:
    """Skill of each policy of a market with its interval."""
    rows = summary[summary["skill"].notna()].iloc[::-1]
    figure = new_figure(7.5, 0.9 + 0.32 * len(rows))
    axis = figure.subplots()
    for height, (_, row) in enumerate(rows.iterrows()):
        color = {"agent": AGENT, "optimum": OPTIMUM}.get(row["kind"], PAPER)
        if row["kind"] == "agent" and row["skill high"] > WORST:
            ends = [max(row["skill low"], WORST), row["skill high"]]
            axis.plot(ends, [height] * 2, color=color, linewidth=5, alpha=0.35)
        if row["skill"] < WORST:
            axis.plot(WORST, height, "<", color=color, markersize=6)
            axis.annotate(
                f"{row['skill']:.2f}", (WORST, height), (8, 0), textcoords="offset points", va="center", fontsize=8
            )
        else:
            axis.plot(row["skill"], height, "o" if row["kind"] == "agent" else "D", color=color, markersize=6)
    axis.axvline(1.0, color=OPTIMUM, linewidth=1)
    axis.axvline(0.0, color=OPTIMUM, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(rows)), list(rows["policy"]))
    axis.set_xlabel("skill (0: reference policy, 1: optimum)")
    plain(axis)
    return _uri(figure)


def picture_of_curves(results: Sequence[Result]) -> str:
    """Skill during training, one line for each run: over steps (rounds of exact learners) and over seconds."""
    figure = new_figure(7.5, 3.2)
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(result["cell"]["name"] for result in results))
    for result in results:
        color = COLORS[names.index(result["cell"]["name"]) % len(COLORS)]
        label = result["cell"]["name"] if result["cell"]["seed"] == results[0]["cell"]["seed"] else None
        steps, skills = curve_of(result)
        axes[0].plot(steps[steps > 0], skills[steps > 0], color=color, linewidth=1.3, label=label)
        axes[1].plot(steps * result["seconds"] / result["steps"], skills, color=color, linewidth=1.3)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("skill")
    for axis, what in zip(axes, ("steps", "seconds"), strict=True):
        axis.axhline(1.0, color=OPTIMUM, linewidth=1)
        axis.set_ylim(-0.3, 1.05)
        axis.set_xlabel(what)
        plain(axis)
    if names:
        axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="lower right")
    return _uri(figure)


def picture_of_profiles(skills: Mapping[str, Sequence[float]]) -> str:
    """Performance profiles (Agarwal et al. 2021): the share of an algorithm's runs whose skill is above a threshold."""
    figure = new_figure(8.5, 3.4)
    axis, thresholds, seen = figure.subplots(), np.linspace(0.0, 1.0, 501), list[str]()
    for name, runs in skills.items():
        algorithm = name.partition("-")[0]  # configurations of one algorithm share a colour
        seen.append(algorithm)
        color, style = COLORS[list(dict.fromkeys(seen)).index(algorithm) % len(COLORS)], seen.count(algorithm) - 1
        share = (np.asarray(runs)[:, None] > thresholds).mean(axis=0)
        label = f"{name} ({len(runs)})"
        axis.plot(thresholds, share, color=color, linestyle=("-", "--", ":")[style % 3], linewidth=1.5, label=label)
    axis.set(xlabel="skill", ylabel="share of runs above it", ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plain(axis)
    return _uri(figure)


def _place(where: Mapping[str, float]) -> str:
    if "third" in where:
        return f"{('first', 'middle', 'last')[int(where['third']) - 1]} third (means)"
    rest = ", ".join(f"{name} {value:g}" for name, value in where.items() if name != "fraction")
    when = f"at {where['fraction']:.0%} of the episode" if where["fraction"] else "at the start"
    return when + (f", {rest}" if rest else "")


def picture_of_quotes(result: Result) -> str:
    """Quotes of an agent against the best ones, over inventory: a row for each control, a column for each time."""
    analysis = result["analysis"]
    names, panels = analysis["controls"], analysis["quotes"]
    figure = new_figure(3.4 * len(panels), 2.0 * len(names) + 0.4)
    axes = figure.subplots(len(names), len(panels), sharex=True, sharey="row", squeeze=False)
    for column, panel in enumerate(panels):
        for row, name in enumerate(names):
            axis = axes[row, column]
            axis.plot(panel["inventory"], panel["optimal"][row], color=OPTIMUM, linewidth=3, alpha=0.6, label="best")
            axis.plot(panel["inventory"], panel["learned"][row], ".", color=AGENT, markersize=5, label="learned")
            plain(axis)
            if column == 0:
                axis.set_ylabel(name.replace("_", " "))
        axes[0, column].set_title(_place(panel["where"]), fontsize=9)
        axes[-1, column].set_xlabel("inventory")
    axes[0, 0].legend(fontsize=8)
    return _uri(figure)


def picture_of_regret(regret: Mapping[str, Any], paper: tuple[str, Mapping[str, Any]] | None, name: str) -> str:
    """Where regret is incurred: over time and over each coordinate of the state, and as a map of time and inventory."""
    coordinates, times = regret["coordinates"], np.asarray(regret["times"])
    figure = new_figure(4.0 * (2 + len(coordinates)), 3.4)
    axes = figure.subplots(1, 2 + len(coordinates))
    shown = [(name, regret, AGENT)] + ([] if paper is None else [(*paper, PAPER)])
    for label, of_policy, color in shown:
        cells = np.asarray(of_policy["coordinates"]["inventory"]["cells"])
        axes[0].stairs(cells.sum(axis=1), np.asarray(of_policy["times"]), color=color, label=label, linewidth=1.6)
        for axis, (coordinate, part) in zip(axes[1:], of_policy["coordinates"].items(), strict=False):
            by_level = np.asarray(part["cells"]).sum(axis=0)
            axis.plot(part["levels"], by_level, ".-", color=color, linewidth=1, markersize=4)
            axis.set_xlabel(coordinate)
            axis.set_title(f"by {coordinate}", fontsize=9)
    axes[0].set_title("by time (a fortieth of the episode each)", fontsize=9)
    axes[0].set_xlabel("fraction of the episode")
    axes[0].set_ylabel("regret (currency)")
    axes[0].legend(fontsize=8)
    for axis in axes[:-1]:
        plain(axis)
    levels = np.asarray(coordinates["inventory"]["levels"])
    edges = np.concatenate([[levels[0]], 0.5 * (levels[1:] + levels[:-1]), [levels[-1]]])
    cells = np.asarray(coordinates["inventory"]["cells"]).T
    mesh = axes[-1].pcolormesh(times, edges, np.maximum(cells, 0.0), cmap="OrRd")
    axes[-1].set_title(f"{name}: by time and inventory", fontsize=9)
    axes[-1].set_xlabel("fraction of the episode")
    axes[-1].set_ylabel("inventory")
    figure.colorbar(mesh, ax=axes[-1])
    return _uri(figure)


def median_run(results: Sequence[Result]) -> Result | None:
    """The finished run whose skill is the median (the lower one of two)."""
    finished = sorted(
        (r for r in results if r["status"] == "finished" and not math.isnan(r["score"]["skill"])),
        key=lambda r: r["score"]["skill"],
    )
    return finished[(len(finished) - 1) // 2] if finished else None
