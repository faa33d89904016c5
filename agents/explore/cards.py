"""The explorer's cards: what each shows of the results that are known, for the page and for snapshots alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from mmgym.agents.explore import figures
from mmgym.agents.explore.computation import Comparison, Failure, Law, Optimum, Scores, agent_name
from mmgym.agents.explore.episode import Episode
from mmgym.agents.explore.settings import Settings, write_address
from mmgym.agents.explore.tables import facts, law_table, quotes_table, score_rows, step_table
from mmgym.agents.explore.views import Values, chosen_coordinate, coordinates_of, levels_of, quotes_view, values_view

__all__ = [
    "CARDS", "EMPTY", "PARTS", "TITLES", "Card", "Drawn", "axes_of", "episode_card", "facts_of", "policies_of",
    "steps_of_episode",
]  # fmt: skip

Results = Mapping[str, Any]  # part -> result, or a `Failure`

PARTS = {  # what the progress line calls them
    "optimum": "the optimum",
    "comparison": "the policy that is compared",
    "episode": "an episode",
    "scores": "the formulas' scores",
    "law": "the law of the P&L under the optimum",
    "law_compared": "the law of the P&L under the other policy",
}
EMPTY = go.Figure(
    layout={
        "height": 120,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"visible": False},
        "yaxis": {"visible": False},
    }
)
MOST_LEVELS = 60  # of a coordinate that can be chosen


class Drawn(NamedTuple):
    """What a card shows."""

    figure: go.Figure | None = None
    table: pd.DataFrame | None = None
    note: str = ""
    link: str = ""  # an address, to where an agent was trained
    refused: bool = False  # whether the note says why there is nothing


class Title(NamedTuple):
    """How a card is headed, and whether it has a chart."""

    title: str
    hint: str
    graph: bool = True


class Card(NamedTuple):
    """A card: the parts that it shows, whether it has a chart, and what draws it (None: not known yet)."""

    parts: tuple[str, ...]
    graph: bool
    draw: Callable[[Results, Settings], Drawn | None]


TITLES = {
    "quotes": Title("Quotes", "Lines: the optimum. Dots: the policy that is compared with it."),
    "value": Title("Value", "What the optimum can still reach."),
    "cost": Title("What a level costs", "How far its value lies below that of the best level, at the chosen times."),
    "scores": Title(
        "Formulas and agents",
        "Skill is 0 at the reference policy and 1 at the optimum; regret is what is missing to the optimum.",
        graph=False,
    ),
    "regret": Title("Where value is lost", "Regret of the policy that is compared; the cells add up to all of it."),
    "law": Title("Law of the final P&L", "VaR and CVaR are losses: a negative one is a profit."),
    "episode": Title(
        "An episode, step by step",
        "Both play the same seed. In the table: one step from the same state, with the same random numbers.",
    ),
}


def _known(results: Results, name: str, kind: type) -> Any:
    """A result of a part, or None where it is not known or a `Failure`."""
    result = results.get(name)
    return result if isinstance(result, kind) else None


def _refusal(results: Results, *names: str) -> Drawn | None:
    """The reason why a part has no result."""
    for name in names:
        result = results.get(name)
        if isinstance(result, Failure):
            return Drawn(note=result.text, refused=True)
    return None


def facts_of(results: Results) -> dict[str, str] | str:
    """Facts of the market, with the compared policy's skill and regret; a text where it is refused."""
    optimum, refused = _known(results, "optimum", Optimum), _refusal(results, "optimum")
    if refused is not None:
        return refused.note
    if optimum is None:
        return {}
    lines = facts(optimum)
    comparison = _known(results, "comparison", Comparison)
    if comparison is not None:
        row = score_rows(None, optimum, comparison).iloc[0]
        lines[f"{comparison.name}"] = f"skill {row['skill']}, regret {row['regret']}"
    return lines


def policies_of(results: Results, settings: Settings) -> dict[str, str]:
    """What can be compared: value -> label; "" is the agent or, without one, the reference policy."""
    optimum = _known(results, "optimum", Optimum)
    if optimum is None:
        return {"": "..."}
    names = {
        name: f"{name.replace('_', ' ')} ({'reference, ' if name == optimum.reference else ''}{origin})"
        for name, origin in optimum.origins.items()
    }
    if settings.agent:
        return {"": f"agent {agent_name(settings.agent)}", **names}
    reference = names[optimum.reference]
    return {"": reference, **{name: label for name, label in names.items() if name != optimum.reference}}


def axes_of(results: Results, settings: Settings) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Coordinates that can be on the axis, value -> label, and levels at which the others can be held."""
    optimum = _known(results, "optimum", Optimum)
    names = [] if optimum is None else coordinates_of(optimum)
    if optimum is None or not names:
        return {"": "..."}, {}
    labels = {"": names[0].replace("_", " "), **{name: name.replace("_", " ") for name in names[1:]}}
    across = settings.across if settings.across in names else names[0]
    held = {}
    for name, levels in levels_of(optimum).items():
        if name != across:
            stride = max(1, -(-len(levels) // MOST_LEVELS))
            held[name] = [f"{level:.10g}" for level in levels[::stride]]
    return labels, held


def _examples(optimum: Optimum) -> Drawn | None:
    """What is known before the bounds are: values and controls at some states."""
    if not optimum.examples:
        return None
    table = pd.DataFrame(optimum.examples).map(lambda value: f"{value:.5g}")
    return Drawn(table=table, note="Known so far: values and best known controls at some states.")


def _quotes(results: Results, settings: Settings) -> Drawn | None:
    optimum = _known(results, "optimum", Optimum)
    if optimum is None:
        return _refusal(results, "optimum")
    if optimum.grid is None and optimum.sample is None:
        return _examples(optimum)
    comparison = _known(results, "comparison", Comparison)
    try:
        view = quotes_view(optimum, comparison, settings)
    except ValueError as error:
        return Drawn(note=str(error), refused=True)
    other = "" if comparison is None else comparison.name
    held = ", ".join(f"{name.replace('_', ' ')} {level:g}" for name, level in view.at.items())
    lines = [f"With {held}."] if held else []
    if view.sampled:
        lines.append("Means over decisions in simulated episodes of the best policy: the optimum is no table.")
    if comparison is not None and view.compared is None:
        lines.append(f"{comparison.name} is no function of the observation: it has no table of quotes.")
    lines += [] if comparison is None else list(comparison.notes)
    refused = _refusal(results, "comparison")
    lines += [] if refused is None else [f"Nothing is compared: {refused.note}"]
    figure = figures.quotes_figure(view, optimum, optimum.best, other)
    return Drawn(
        figure, quotes_table(view, optimum, optimum.best, other), "\n".join(lines), _home(comparison, settings)
    )


def _home(comparison: Comparison | None, settings: Settings) -> str:
    """An address where an agent plays the market that it was trained in, if that is another one."""
    if comparison is None or comparison.home is None:
        return ""
    env, arguments = comparison.home
    if env == settings.env and dict(arguments) == dict(settings.arguments):
        return ""
    return write_address(Settings(env, arguments, agent=settings.agent))


def _of_values(draw: Callable[[Values, Settings, Optimum], go.Figure]) -> Callable[[Results, Settings], Drawn | None]:
    """What draws a card of the value function."""

    def drawn(results: Results, settings: Settings) -> Drawn | None:
        optimum = _known(results, "optimum", Optimum)
        if optimum is None or (optimum.grid is None and optimum.sample is None):
            return _refusal(results, "optimum")
        try:
            view = values_view(optimum, settings)
        except ValueError as error:
            return Drawn(note=str(error), refused=True)
        notes = ["Means over simulated decisions."] if view.sampled else []
        notes += ["Certainty equivalents of what is still to come."] if optimum.expected_utility else []
        return Drawn(draw(view, settings, optimum), note=" ".join(notes))

    return drawn


def _value(view: Values, settings: Settings, optimum: Optimum) -> go.Figure:
    return figures.value_figure(view)


def _cost(view: Values, settings: Settings, optimum: Optimum) -> go.Figure:
    return figures.cost_figure(view, [fraction * optimum.horizon for fraction in settings.times])


def _scores(results: Results, settings: Settings) -> Drawn | None:
    optimum, scores = _known(results, "optimum", Optimum), _known(results, "scores", Scores)
    if optimum is None or scores is None:
        return _refusal(results, "optimum", "scores")
    comparison = _known(results, "comparison", Comparison)
    missing = scores.total - len(scores.scores) - len(scores.failed)
    lines = [f"{missing} more to come."] if missing else []
    lines += [f"{name} has no score here: {why}" for name, why in scores.failed.items()]
    return Drawn(table=score_rows(scores, optimum, comparison), note="\n".join(lines))


def _law(results: Results, settings: Settings) -> Drawn | None:
    laws = [_known(results, name, Law) for name in ("law", "law_compared")]
    drawn = [law for law in laws if law is not None]
    if not drawn:
        return _refusal(results, "optimum", "law")
    refused = _refusal(results, "law_compared")
    note = "" if refused is None else f"The other policy has no law here: {refused.note}"
    return Drawn(figures.law_figure(drawn), law_table(drawn), note)


def _regret(results: Results, settings: Settings) -> Drawn | None:
    optimum, comparison = _known(results, "optimum", Optimum), _known(results, "comparison", Comparison)
    if optimum is None or comparison is None:
        return _refusal(results, "optimum", "comparison")
    if comparison.regret is None:
        return Drawn(note=comparison.why)
    try:
        across = chosen_coordinate(optimum, settings)
    except ValueError as error:
        return Drawn(note=str(error), refused=True)
    others = [name.replace("_", " ") for name in comparison.regret.cells if name != across]
    total = float(comparison.regret.cells[across].sum())
    note = f"{comparison.name}: regret {total:.6g} in all"
    note += f", summed over {', '.join(others)}." if others else "."
    return Drawn(figures.regret_figure(comparison.regret, across, optimum.horizon, comparison.name), note=note)


CARDS = {
    "quotes": Card(("optimum", "comparison"), True, _quotes),
    "value": Card(("optimum",), True, _of_values(_value)),
    "cost": Card(("optimum",), True, _of_values(_cost)),
    "scores": Card(("optimum", "scores", "comparison"), False, _scores),
    "law": Card(("optimum", "law", "law_compared"), True, _law),
    "regret": Card(("optimum", "comparison"), True, _regret),
}


def steps_of_episode(results: Results) -> int | None:
    """Steps of the episode; None where it is not known."""
    episode = _known(results, "episode", Episode)
    return None if episode is None else len(episode.policy.quotes)


def episode_card(results: Results, step: int) -> tuple[Drawn | None, str]:
    """The episode up to a step, and a line on that step."""
    optimum, episode = _known(results, "optimum", Optimum), _known(results, "episode", Episode)
    if optimum is None or episode is None:
        return _refusal(results, "optimum", "episode"), ""
    step = min(max(step, 0), len(episode.policy.quotes) - 1)
    before = {name: values[step] for name, values in episode.policy.before.items()}
    names = [name for head in ("mid", "inventory") for name in figures.columns_of(before, head)]
    shown = [f"{name.replace('_', ' ')} {before[name]:.5g}" for name in names]
    text = f"step {step + 1} of {len(episode.policy.quotes)}: time {before['time']:.4g}, {', '.join(shown)}"
    lines = []
    if episode.loss is not None:
        lines.append(
            f"This step of {episode.policy.name} is worth {max(episode.loss[step], 0.0):.4g} less than the best one; "
            f"all steps so far: {max(float(episode.loss[: step + 1].sum()), 0.0):.4g}."
        )
    earned = {played.name: float(played.during["reward"].sum()) for played in (episode.policy, episode.optimum)}
    lines.append("Whole episode: " + ", ".join(f"{name} earns {value:.5g}" for name, value in earned.items()) + ".")
    table = step_table(episode, step, optimum.control_names)
    return Drawn(figures.episode_figure(episode, step), table, "\n".join(lines)), text
