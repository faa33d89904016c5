"""Tables of a benchmark: every run as a row, and the statistics of each market and of all markets together."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.agents.statistics import Interval, bootstrap_interval, probability_of_improvement

__all__ = [
    "added_row",
    "curve_of",
    "efficiency_table",
    "overall_table",
    "pairwise_table",
    "skills_of",
    "summary_table",
    "tidy_table",
]

Results = Sequence[Mapping[str, Any]]

_SCORE = (
    "value", "value_error", "stderr", "optimum_lower", "optimum_upper", "level", "method", "reference", "skill", "std",
    "pnl", "pnl_std", "fills", "orders", "mean_absolute_inventory", "clipped",
)  # fmt: skip
COLUMNS = (
    "env", "kind", "name", "seed", "status", *_SCORE[:9], "regret", "regret_upper", *_SCORE[9:], "steps", "seconds",
    "steps_per_second", "steps_to_0.9", "error",
)  # fmt: skip
ENOUGH = 0.9  # the skill whose cost `efficiency_table` tells


def _row(cell: Mapping[str, Any], kind: str, name: str, score: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    row = {"env": cell["market"], "kind": kind, "name": name, "seed": cell["seed"], "status": "finished"}
    row |= {column: score.get(column) for column in _SCORE}
    row["regret"], row["regret_upper"] = (score[f"optimum_{side}"] - score["value"] for side in ("lower", "upper"))
    return row | rest


def added_row(market: str, name: str, seed: int | None, score: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A row of `tidy_table` for a run of somebody else's agent: ``seconds`` are those of scoring it."""
    return _row({"market": market, "seed": seed}, "added", name, score, seconds=seconds)


def tidy_table(results: Results) -> pd.DataFrame:
    """One row for each run and each policy, failures included.

    Columns: `COLUMNS`. ``env`` is the market: an environment id, or the name that the benchmark gives it. ``kind`` is
    "agent", "paper", "ours" (a fixed policy that no paper has), "added" (`mmgym.agents.leaderboard`) or "optimum" (the
    best known policy, where only bounds are known); ``regret`` is the gap to ``optimum_lower``, ``regret_upper`` to
    ``optimum_upper``; ``clipped`` is the share of decisions at which the action box clips what a policy wants;
    ``seconds`` those of training; ``steps_to_0.9`` is where a run's curve of skill is first at 0.9 or above (the later
    of two points counts), infinite if it never is.
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        cell = result["cell"]
        if result["status"] == "failed":
            kind = "agent" if cell["kind"] == "agent" else "paper"
            row = {"env": cell["market"], "kind": kind, "name": cell["name"], "seed": cell["seed"], "status": "failed"}
            rows.append(row | {"error": result["error"], "seconds": result["wall_seconds"]})
        elif cell["kind"] == "agent":
            timing = {name: result[name] for name in ("steps", "seconds", "steps_per_second")}
            steps, skills = curve_of(result)
            reached = np.flatnonzero(skills >= ENOUGH)
            first = float(steps[reached[0]]) if len(reached) else math.inf
            rows.append(_row(cell, "agent", cell["name"], result["score"], **timing, **{"steps_to_0.9": first}))
        else:
            for number, (name, policy) in enumerate(result["policies"].items()):
                kind = policy.get("kind", "paper" if number else "optimum")  # folders of older versions lack it
                rows.append(_row(cell, kind, name, policy["score"]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"seed": "Int64"})


def _runs(rows: pd.DataFrame, column: str) -> list[float]:
    """A column of finished runs; failed ones as an infinite loss."""
    worst = math.inf if column == "regret" else -math.inf
    pairs = zip(rows["status"], rows[column], strict=True)
    return [worst if status == "failed" else float(value) for status, value in pairs]


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name} low": interval.low, f"{name} high": interval.high}


def summary_table(tidy: pd.DataFrame, env_id: str) -> pd.DataFrame:
    """A market's policies, best first: interquartile means with 95 % bootstrap intervals over the runs.

    ``P(improvement)`` is the probability that a run beats the best policy of the papers (other than random actions).
    A policy of the papers or ours is one row without an interval.
    """
    market = tidy[tidy["env"] == env_id]
    papers = market[(market["kind"] == "paper") & (market["status"] == "finished") & (market["name"] != "random")]
    rows = []
    for (kind, name), runs in market.groupby(["kind", "name"], sort=False):
        failed = int((runs["status"] == "failed").sum())
        row: dict[str, Any] = {"policy": name, "kind": kind, "runs": len(runs), "failed": failed}
        skill, regret = _runs(runs, "skill"), _runs(runs, "regret")
        if kind in ("agent", "added"):
            row |= _ends("skill", bootstrap_interval([skill])) | _ends("regret", bootstrap_interval([regret]))
            if len(papers):
                row |= _ends("P(improvement)", probability_of_improvement([skill], [[float(papers["skill"].max())]]))
            finished = runs[runs["status"] == "finished"]
            row |= {"steps": finished["steps"].median(), "seconds": finished["seconds"].median()}
        else:
            row |= {
                "skill": skill[0],
                "regret": regret[0],
                "clipped": runs["clipped"].iloc[0] if "clipped" in runs else math.nan,
            }
        rows.append(row)
    columns = [
        *(
            "policy",
            "kind",
            "runs",
            "failed",
            "skill",
            "skill low",
            "skill high",
            "regret",
            "regret low",
            "regret high",
        ),
        *("P(improvement)", "P(improvement) low", "P(improvement) high", "steps", "seconds", "clipped"),
    ]
    return pd.DataFrame(rows, columns=columns).sort_values("skill", ascending=False, ignore_index=True, kind="stable")


def curve_of(result: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and skills during the training of a run, its end included."""
    points = [(point["steps"], point["skill"]) for point in result.get("curve") or []]
    steps, skills = np.array([*points, (result["steps"], result["score"]["skill"])], dtype=np.float64).T
    return steps, skills


def efficiency_table(tidy: pd.DataFrame, env_id: str) -> pd.DataFrame:
    """What it takes to reach skill 0.9 in a market: runs that do, and medians of steps and seconds when they first do.

    Medians are over all runs: infinite where at most half of them get there. A run that failed never does.
    """
    market = tidy[(tidy["env"] == env_id) & (tidy["kind"] == "agent")]
    rows = []
    for name, runs in market.groupby("name", sort=False):
        first = runs["steps_to_0.9"].astype(float).where(runs["status"] == "finished", math.inf)
        there = f"{np.isfinite(first).sum()} of {len(runs)}"
        seconds = (first * runs["seconds"] / runs["steps"]).where(np.isfinite(first), math.inf)
        rows.append({"algorithm": name, "runs": there, "steps": first.median(), "seconds": seconds.median()})
    return pd.DataFrame(rows, columns=["algorithm", "runs", "steps", "seconds"])


def skills_of(tidy: pd.DataFrame) -> dict[str, list[float]]:
    """Skills of all runs of each algorithm, over all markets that it was trained in."""
    return {name: [skill for runs in markets.values() for skill in runs] for name, markets in _agents(tidy).items()}


def _agents(tidy: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Skills by algorithm and market."""
    agents = tidy[tidy["kind"].isin(["agent", "added"])]
    skills: dict[str, dict[str, list[float]]] = {}
    for (kind, name, env_id), runs in agents.groupby(["kind", "name", "env"], sort=False):
        shown = f"{name} (added)" if kind == "added" else str(name)
        skills.setdefault(shown, {})[str(env_id)] = _runs(runs, "skill")
    return skills


def overall_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Interquartile mean of the skill over all markets and runs of each algorithm; the markets are the strata."""
    rows = [
        {"algorithm": name, "markets": len(markets), "runs": sum(map(len, markets.values()))}
        | _ends("skill", bootstrap_interval(list(markets.values())))
        for name, markets in _agents(tidy).items()
    ]
    columns = ["algorithm", "markets", "runs", "skill", "skill low", "skill high"]
    return pd.DataFrame(rows, columns=columns).sort_values("skill", ascending=False, ignore_index=True)


def pairwise_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Probability that one algorithm's run beats another's, over the markets that both were trained in.

    A row for each pair, the better one first.
    """
    skills, rows = _agents(tidy), []
    for pair in itertools.combinations(skills, 2):
        shared = [env_id for env_id in skills[pair[0]] if env_id in skills[pair[1]]]
        if not shared:
            continue
        one, other = ([skills[name][env_id] for env_id in shared] for name in pair)
        better = probability_of_improvement(one, other)
        if better.estimate < 0.5:
            pair, better = pair[::-1], probability_of_improvement(other, one)
        rows.append({"first": pair[0], "second": pair[1], "markets": len(shared)} | _ends("P(improvement)", better))
    columns = ["first", "second", "markets", "P(improvement)", "P(improvement) low", "P(improvement) high"]
    return pd.DataFrame(rows, columns=columns)
