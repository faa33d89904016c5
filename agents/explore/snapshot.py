"""The explorer's views as one HTML page that needs neither a server nor a network."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from plotly.offline import get_plotlyjs

from mmgym.agents.explore import cards
from mmgym.agents.explore.computation import Failure, compute, parts_of
from mmgym.agents.explore.controls import controls_of
from mmgym.agents.explore.settings import Settings, checked_params
from mmgym.agents.explore.style import GRAPH, style
from mmgym.plain_files import replacing

__all__ = ["write_snapshot"]

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<div class="page">
<aside class="side">
<h1>{env}</h1>
<p class="hint">A snapshot of mmgym explore. Steer it with:</p>
<p class="command"><code>{command}</code></p>
<h2>Parameters</h2>
{parameters}
</aside>
<main class="main">
{sections}
</main>
</div>
</body>
</html>
"""


def known_results(settings: Settings, progress: TextIO | None) -> dict[str, Any]:
    """All parts of settings, computed here; a part that cannot be found is a `Failure`.

    Raises
    ------
    ValueError, TypeError and others
        Where the market itself is refused.
    """
    results: dict[str, Any] = {}
    for part in parts_of(settings):
        if progress is not None:
            print(f"computing {cards.PARTS[part.name]} ...", file=progress, flush=True)
        try:
            for result in compute(settings, part.name):
                results[part.name] = result
        except (ValueError, TypeError, LookupError, OSError, ArithmeticError, RuntimeError) as error:
            if part.name == "optimum":
                raise
            results[part.name] = Failure(" ".join(str(error).split()))
    return results


def _table(frame: pd.DataFrame | None) -> str:
    if frame is None:
        return ""
    return f'<div class="scroll">{frame.to_html(index=False, border=0, justify="unset")}</div>'


def _drawn(name: str, shown: cards.Drawn) -> str:
    figure = ""
    if shown.figure is not None:
        figure = shown.figure.to_html(full_html=False, include_plotlyjs=False, config=GRAPH, div_id=name)
    kind = 'class="problem" role="alert"' if shown.refused else 'class="note"'
    note = "<br>".join(html.escape(line) for line in shown.note.splitlines())
    table = _table(shown.table)
    if name == "quotes" and table:
        table = f"<details><summary>The same as numbers</summary>{table}</details>"
    return f"<div {kind}>{note}</div>{figure}{table}" if note else f"{figure}{table}"


def _sections(settings: Settings, results: dict[str, Any]) -> list[str]:
    facts = cards.facts_of(results)
    pairs = facts.items() if isinstance(facts, dict) else ()
    rows = "".join(f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>" for key, value in pairs)
    sections = [f'<section class="card"><dl class="facts">{rows}</dl></section>']
    for name, title in cards.TITLES.items():
        if name == "episode":
            shown, text = cards.episode_card(results, (cards.steps_of_episode(results) or 1) - 1)
        else:
            shown, text = cards.CARDS[name].draw(results, settings), ""
        if shown is not None:
            head = f"<h2>{title.title}</h2><p class='hint'>{html.escape(title.hint)} {html.escape(text)}</p>"
            sections.append(f'<section class="card" id="card-{name}">{head}{_drawn(name, shown)}</section>')
    return sections


def _command(settings: Settings) -> str:
    given = "".join(f" --set '{name}={value}'" for name, value in settings.arguments.items())
    return f"mmgym explore --env {settings.env}{given}"


def write_snapshot(folder: Path, settings: Settings, progress: TextIO | None = None) -> Path:
    """Compute all views of settings and write them as one HTML file.

    Parameters
    ----------
    folder : Path
        Made if it is not there; the file's name is that of the environment.
    settings : Settings
    progress : text file, optional
        Where a line is written for each part.

    Returns
    -------
    Path
        Of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = known_results(settings, progress)
    params = checked_params(settings, settings.arguments)
    controls = controls_of(settings, params)
    shown = pd.DataFrame({"parameter": [c.name for c in controls], "value": [c.shown for c in controls]})
    page = PAGE.format(
        title=html.escape(f"mmgym explore: {settings.env}"),
        style=style(),
        plotly=get_plotlyjs(),
        env=html.escape(settings.env),
        command=html.escape(_command(settings)),
        parameters=_table(shown),
        sections="\n".join(_sections(settings, results)),
    )
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', settings.env)}.html"
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")
    return path
