"""The explorer's tables: what the charts show, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmgym.agents.explore.computation import Comparison, Law, Optimum, Scores
from mmgym.agents.explore.episode import Episode, Played
from mmgym.agents.explore.views import Quotes
from mmgym.baselines.scoring import Score

__all__ = ["facts", "law_table", "quotes_table", "score_rows", "step_table"]


def digits(value: float | None, count: int = 6) -> str:
    """A number with so many significant digits; a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{count}g}".replace("-", "−")


def _interval(score: Score) -> str:
    if isinstance(score.regret, float):
        return digits(max(score.regret, 0.0) if abs(score.regret) < 1e-9 else score.regret, 5)
    return f"{digits(score.regret[0], 4)} to {digits(score.regret[1], 4)}"


def facts(optimum: Optimum) -> dict[str, str]:
    """What is known of a market, in a few numbers."""
    lines: dict[str, str] = {}
    if optimum.lower is not None and optimum.upper is not None:
        equal = optimum.lower == optimum.upper
        count = 10 if optimum.level == "exact" else 7
        text = digits(optimum.upper, count) if equal else f"{digits(optimum.lower, 5)} to {digits(optimum.upper, 5)}"
        lines["optimum"] = text
        error = f", error {optimum.error:.1g}" if optimum.error else ""
        lines["known"] = optimum.level + error
        lines[f"reference: {optimum.reference}"] = digits(optimum.reference_value, 7)
    states = "continuous states" if optimum.num_states is None else f"{optimum.num_states} states"
    lines["size"] = f"{optimum.num_steps} steps, {states}"
    if optimum.lower is not None:
        lines["solved in"] = f"{optimum.seconds:.{0 if optimum.seconds >= 10.0 else 2}f} s"
    return lines


def score_rows(scores: Scores | None, optimum: Optimum, comparison: Comparison | None) -> pd.DataFrame:
    """Scores of the named policies and of the one that is compared, best first, with where they come from."""
    known = {} if scores is None else dict(scores.scores)
    if comparison is not None:
        known[comparison.name] = comparison.score
    rows = []
    for name, score in sorted(known.items(), key=lambda item: -item[1].value):
        method = score.method + (f" ± {digits(score.stderr, 2)}" if score.stderr else "")
        rows.append(
            {
                "policy": name,
                "from": optimum.origins.get(name, "loaded"),
                "skill": f"{score.skill:.4f}".replace("-", "−") if np.isfinite(score.skill) else "–",
                "regret": _interval(score),
                "value": digits(score.value),
                "P&L std": digits(score.pnl_std, 4),
                "fills": digits(score.fills, 4),
                "scored": method + (f", {100 * score.clipped:.2g} % clipped" if score.clipped else ""),
            }
        )
    return pd.DataFrame(rows)


def quotes_table(view: Quotes, optimum: Optimum, best: str, compared: str) -> pd.DataFrame:
    """The quotes of a view as numbers: a row for each level, a column for each time, control and policy."""
    columns: dict[str, list[str]] = {view.across.replace("_", " "): [digits(level) for level in view.levels]}
    for t, time in enumerate(view.times):
        for i, name in enumerate(optimum.control_names):
            head = f"{name.replace('_', ' ')} at {time:.4g}"
            columns[f"{head}, {best}"] = [digits(value) for value in view.best[t, i]]
            if view.compared is not None:
                columns[f"{head}, {compared}"] = [digits(value) for value in view.compared[t, i]]
    return pd.DataFrame(columns)


def law_table(laws: Sequence[Law]) -> pd.DataFrame:
    """Mean, standard deviation and risk of laws: losses are positive, with about their errors."""
    rows = []
    for law in laws:
        row = {"policy": law.name, "mean": digits(law.mean), "std": digits(law.std, 5)}
        for name, (value, error) in law.risk.items():
            row[name] = digits(value) if law.method == "exact" else f"{digits(value, 5)} ± {digits(error, 1)}"
        rows.append(row | {"found": law.method})
    return pd.DataFrame(rows)


def _step(played: Played, step: int, names: Sequence[str]) -> dict[str, str]:
    quotes = {name: digits(value) for name, value in zip(names, played.quotes[step], strict=True)}
    others = {
        name: digits(values[step]) for name, values in played.during.items() if name not in quotes and name != "elapsed"
    }
    return {**quotes, **others}


def step_table(episode: Episode, step: int, names: Sequence[str]) -> pd.DataFrame:
    """One step: what the policy did, and what the optimum does in the same state with the same random numbers."""
    rows = {
        episode.policy.name: _step(episode.policy, step, names),
        f"{episode.instead.name}, same state": _step(episode.instead, step, names),
    }
    table = pd.DataFrame(rows)
    table.index = pd.Index([str(name).replace("_", " ") for name in table.index])
    return table.rename_axis("of the step").reset_index()
