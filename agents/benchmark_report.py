"""What a benchmark leaves to read: CSV, JSON provenance, a page of tables, and one HTML file without outside links."""

import base64
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mmgym.agents.benchmark import Benchmark, plan
from mmgym.agents.benchmark_pictures import (
    median_run,
    picture_of_curves,
    picture_of_profiles,
    picture_of_quotes,
    picture_of_regret,
    picture_of_skill,
)
from mmgym.agents.benchmark_tables import (
    efficiency_table,
    overall_table,
    pairwise_table,
    skills_of,
    summary_table,
    tidy_table,
)
from mmgym.plain_files import replacing, write_json
from mmgym.printing import write_table
from mmgym.provenance import provenance

__all__ = ["markdown_table", "results_page", "write_pages", "write_report"]

_INTERVALS = ("skill", "regret", "P(improvement)")


def _number(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def _clipped(row: Mapping[Any, Any]) -> str:
    """What is said of a policy whose quotes the action box clips."""
    share = row.get("clipped")
    return "" if share is None or pd.isna(share) or share == 0.0 else f", clipped {100.0 * share:.2g} %"


def _cells(row: Mapping[Any, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Cells of a table: text to show, and what to sort by."""
    cells = []
    for column in columns:
        value = row[column]
        digits = (
            0 if column in ("runs", "failed", "steps", "seconds", "markets") else 4 if column != "P(improvement)" else 2
        )
        text = _number(value, digits)
        low = row.get(f"{column} low")
        if column in _INTERVALS and text and low is not None and not pd.isna(low):
            text += f" [{_number(low, digits)}, {_number(row[f'{column} high'], digits)}]"
        missing = value is None or pd.isna(value)
        sort = value if isinstance(value, str) else "" if missing else repr(float(value))
        cells.append({"text": text, "sort": sort, "number": not isinstance(value, str)})
    return cells


def _text_table(table: pd.DataFrame) -> dict[str, Any]:
    """A table as text, for HTML and Markdown alike."""
    columns = [c for c in table.columns if not c.endswith((" low", " high")) and c != "clipped"]
    if "failed" in columns and not table["failed"].any():
        columns.remove("failed")
    if "clipped" in table:
        kinds = [f"{row['kind']}{_clipped(row)}" for row in table.to_dict("records")]
        shown = table.assign(kind=kinds)
    else:
        shown = table
    rows = [
        {"kind": kind, "cells": _cells(row, columns)}
        for kind, row in zip(table.get("kind", [""] * len(table)), shown.to_dict("records"), strict=True)
    ]
    return {"columns": columns, "rows": rows}


def markdown_table(summaries: Mapping[str, pd.DataFrame]) -> str:
    """The table of all markets: their learners, the best policy of the papers, and ours where it is better."""
    lines = ["| environment | policy | runs | skill | regret | better than the papers' best | seconds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for env_id, summary in summaries.items():
        fixed = summary[summary["kind"].isin(["paper", "ours"]) & (summary["policy"] != "random")]
        papers = fixed[fixed["kind"] == "paper"].head(1)
        better = fixed[fixed["kind"] == "ours"].head(1)
        if len(papers) and len(better) and better["skill"].iloc[0] <= papers["skill"].iloc[0]:
            better = better.head(0)
        chosen = pd.concat([summary[summary["kind"].isin(["agent", "added"])], better, papers])
        for row in chosen.to_dict("records"):
            columns = ("policy", "runs", "skill", "regret", "P(improvement)", "seconds")
            texts = [cell["text"] for cell in _cells(row, columns)]
            if row["kind"] != "agent":
                texts[1] = f"{texts[1]}, added" if row["kind"] == "added" else f"{row['kind']}{_clipped(row)}"
            if row["failed"]:
                texts[1] += f", {row['failed']} failed"
            lines.append(f"| `{env_id}` | {' | '.join(texts)} |")
    return "\n".join(lines)


_READ = """\
**Skill** is 0 at the market's reference policy and 1 at the optimum (the lower end, where only bounds are known);
**regret** is what is missing to it, in currency. Agents have the interquartile mean over their seeds and its 95 %
stratified bootstrap interval (which covers less with few: of normal runs, 76 % with three, 89 % with five, 94 % with
ten; in simulations); **better than the papers' best** is the probability that a run beats the best policy of
the papers, which is the market's last row (Agarwal et al. 2021). A row "ours" is the best fixed policy that no paper
has, where it is better than theirs; "clipped" is the share of decisions at which the action box clips what a policy
wants. **Seconds** are those of training, the median of the seeds. A failed run counts as an infinite loss."""


def _markdown(table: pd.DataFrame) -> str:
    shown = _text_table(table)
    rows = [shown["columns"], ["---"] * len(shown["columns"])]
    rows += [[cell["text"] for cell in row["cells"]] for row in shown["rows"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def results_page(folder: Path) -> str:
    """The tables of a benchmark's folder as Markdown, from its ``benchmark.json`` and ``results.csv`` alone."""
    about = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    tidy = pd.read_csv(folder / "results.csv").astype({"seed": "Int64"})
    summaries = {str(env_id): summary_table(tidy, str(env_id)) for env_id in dict.fromkeys(tidy["env"])}
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    pairwise = pairwise_table(tidy)
    parts = [
        f"# How far from optimal? Benchmark “{about['title']}”",
        f"{about['finished']} of {about['cells']} cells finished, {about['failed']} failed; "
        f"seeds {', '.join(map(str, about['seeds']))}; {about['core_seconds'] / 3600:.1f} core hours; written "
        f"{about['written']}. "
        "`mmgym benchmark` wrote this page from `results.csv` (every run) and `benchmark.json` (settings, budgets, "
        "commits).",
        _READ,
        *([f"Note: {about['rescored']}."] if "rescored" in about else []),
        *_said_of_added(about),
        "## Markets",
        markdown_table(summaries),
        "## Optima",
        _markdown(pd.DataFrame([{"environment": f"`{env_id}`", **_facts(tidy, env_id)} for env_id in summaries])),
        "## All markets together\n\nInterquartile mean of the skill over the runs of all markets that an algorithm was "
        "trained in.",
        _markdown(overall_table(tidy)),
        *(["![Performance profiles](profiles.png)"] if (folder / "profiles.png").is_file() else []),
    ]
    if len(pairwise):
        text = "Probability that a run of the first algorithm beats one of the second, over the markets that both have."
        parts += [f"## Pairs\n\n{text}", _markdown(pairwise)]
    if "steps_to_0.9" in tidy:  # folders of older versions lack it
        text = "Runs that reach skill 0.9 during training, and medians over all runs of when they first do."
        tables = [efficiency_table(tidy, env_id).assign(environment=f"`{env_id}`") for env_id in summaries]
        efficiency = pd.concat(tables).set_index("environment").reset_index()
        parts += [f"## What it takes\n\n{text}", _markdown(efficiency)]
    return "\n\n".join([*parts, f"Made with {versions}."]) + "\n"


def _said_of_added(about: Mapping[str, Any]) -> list[str]:
    """Where added agents come from."""
    sources = [
        f"{name} from {added['source']} (SHA-256 {added['sha256'][:16]})"
        for name, added in about.get("added", {}).items()
    ]
    if not sources:
        return []
    text = "They were trained by others and scored here; their seconds are those of scoring."
    return [f"Added to the benchmark: {'; '.join(sources)}. {text}"]


def _facts(tidy: pd.DataFrame, env_id: str) -> dict[str, str]:
    """What a market's optimum and the values of skill 1 and 0 are; nothing if no cell of it is finished."""
    rows = tidy[(tidy["env"] == env_id) & (tidy["status"] == "finished")]
    if not len(rows):
        return {}
    row = rows.iloc[0]
    lower, upper = row["optimum_lower"], row["optimum_upper"]
    known = f"{lower:.6f}" if lower == upper else f"between {lower:.4f} and {upper:.4f}"
    return {"optimum": known, "level": str(row["level"]), "reference policy (skill 0)": f"{row['reference']:.6f}"}


def _market(
    env_id: str, summary: pd.DataFrame, tidy: pd.DataFrame, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    mine = [result for result in results if result["cell"]["market"] == env_id]
    agents = [result for result in mine if result["cell"]["kind"] == "agent"]
    finished = [result for result in agents if result["status"] == "finished"]
    papers: dict[str, Any] = next(
        (r["policies"] for r in mine if r["cell"]["kind"] == "policies" and r["status"] == "finished"), {}
    )
    best_paper = next(
        (n for n in summary[summary["kind"] == "paper"]["policy"] if papers.get(n, {}).get("regret")), None
    )
    pictures = []
    if finished:
        pictures.append({"title": "Skill, with 95 % intervals", "uri": picture_of_skill(summary)})
        pictures.append({"title": "Skill during training", "uri": picture_of_curves(finished)})
    for name in dict.fromkeys(result["cell"]["name"] for result in finished):
        run = median_run([result for result in finished if result["cell"]["name"] == name])
        if run is None:
            continue
        label = f"{name}, seed {run['cell']['seed']} (the median run)"
        if run["analysis"].get("quotes"):
            pictures.append({"title": f"Quotes of {label} against the best ones", "uri": picture_of_quotes(run)})
        if run["analysis"].get("regret"):
            paper = None if best_paper is None else (best_paper, papers[best_paper]["regret"])
            uri = picture_of_regret(run["analysis"]["regret"], paper, name)
            pictures.append({"title": f"Where {label} loses value, exactly", "uri": uri})
    facts = _facts(tidy, env_id)
    arguments = mine[0]["cell"]["arguments"] if mine else {}
    if arguments:
        facts["arguments"] = ", ".join(f"{name} = {value}" for name, value in arguments.items())
    decomposed = any(result["analysis"].get("regret") for result in finished)
    return {
        "id": env_id,
        "anchor": re.sub(r"\W+", "-", env_id),
        "facts": facts,
        "table": _text_table(summary),
        "efficiency": _text_table(efficiency_table(tidy, env_id)) if finished else None,
        "pictures": pictures,
        "undecomposed": bool(finished) and not decomposed,
    }


def _about(
    benchmark: Benchmark, cells: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What was run, when, by which versions, and how much of it ended."""
    return {
        "title": benchmark.title,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seeds": benchmark.seeds,
        "budgets": {f"{c['market']} {c['name']}": c["timesteps"] for c in cells if c["kind"] == "agent"},
        "cells": len(cells),
        "finished": sum(result["status"] == "finished" for result in results),
        "failed": sum(result["status"] == "failed" for result in results),
        "core_seconds": sum(result["wall_seconds"] for result in results),
        **provenance(),
        "commits_of_cells": sorted({str(result["commit"]) for result in results}),
    }


def write_report(benchmark: Benchmark, results: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, pd.DataFrame]:
    """Write ``results.csv``, ``summary.csv``, ``benchmark.json``, ``README.md``, ``profiles.png`` and ``report.html``.

    Returns
    -------
    dict
        The summary of each market.

    Raises
    ------
    ImportError
        Without Jinja2 or matplotlib, the extras ``agents`` and ``plot``.
    """
    cells = plan(benchmark)
    failures = [
        {"key": result["cell"]["key"], "error": result["error"], "traceback": result.get("traceback", "")}
        for result in results
        if result["status"] == "failed"
    ]
    about = {**_about(benchmark, cells, results), "benchmark": benchmark._asdict(), "failures": failures}
    missing = [cell["key"] for cell in cells if cell["key"] not in {result["cell"]["key"] for result in results}]
    return write_pages(tidy_table(results), about, folder, results, missing)


def write_pages(
    tidy: pd.DataFrame,
    about: Mapping[str, Any],
    folder: Path,
    results: Sequence[Mapping[str, Any]] = (),
    missing: Sequence[str] = (),
) -> dict[str, pd.DataFrame]:
    """Write a benchmark's files from its tidy table; pictures are those of the results.

    Raises
    ------
    ImportError
        Without Jinja2 or matplotlib, the extras ``agents`` and ``plot``.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ImportError("the report needs Jinja2: pip install 'mmgym[agents]'") from error
    markets = [str(env_id) for env_id in about["benchmark"]["environments"] if (tidy["env"] == env_id).any()]
    summaries = {env_id: summary_table(tidy, env_id) for env_id in markets}
    write_table(tidy, folder / "results.csv")
    if summaries:
        frames = [summary.assign(env=env_id).set_index("env").reset_index() for env_id, summary in summaries.items()]
        write_table(pd.concat(frames), folder / "summary.csv")
    write_json(folder / "benchmark.json", dict(about))
    skills = skills_of(tidy)
    profiles = picture_of_profiles(skills) if skills else None
    if profiles:
        with replacing(folder / "profiles.png") as part:
            part.write_bytes(base64.b64decode(profiles.partition(",")[2]))
    with replacing(folder / "README.md") as part:
        part.write_text(results_page(folder), encoding="utf-8")
    template = (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    pairwise = pairwise_table(tidy)
    facts = {name: value for name, value in about.items() if name not in ("benchmark", "failures")}
    html = page.render(
        about=about,
        added=_said_of_added(about),
        overall=_text_table(overall_table(tidy)),
        pairwise=_text_table(pairwise) if len(pairwise) else None,
        profiles=profiles,
        markets=[_market(env_id, summary, tidy, results) for env_id, summary in summaries.items()],
        failures=about["failures"],
        missing=missing,
        provenance=json.dumps(facts, indent=1),
    )
    with replacing(folder / "report.html") as part:
        part.write_text(html, encoding="utf-8")
    return summaries
