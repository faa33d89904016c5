"""The explorer's page: a Dash application on this machine, with all its scripts served from here."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from dash import ALL, MATCH, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from mmgym.agents.explore import cards
from mmgym.agents.explore.controls import Control, controls_of
from mmgym.agents.explore.settings import (
    Settings,
    checked_params,
    known_environments,
    read_address,
    seed_of,
    times_of,
    value_of,
    write_address,
)
from mmgym.agents.explore.style import GRAPH, style
from mmgym.agents.explore.worker import State as Known
from mmgym.agents.explore.worker import Worker

__all__ = ["make_app"]

POLL = 250  # milliseconds between questions to the process that computes
PLAY = 180  # milliseconds a step of a played episode
DEFAULT = "default"  # in a choice: what settings leave to the market

INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
{%css%}
<style>[style]</style>
</head>
<body>
{%app_entry%}
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""

SYNCHRONISE = """
function(slid, typed, place) {
    const same = window.dash_clientside.no_update;
    const from = window.dash_clientside.callback_context.triggered_id;
    if (!from) { return [same, same]; }
    if (from.kind === "slider") { return [String(Number(slid)), same]; }
    const number = Number(typed === "" || typed === null || typed === undefined ? place : typed);
    return [same, Number.isFinite(number) ? number : same];
}
"""
REMEMBER = """
function(query) {
    if (query) { window.history.replaceState(null, "", query); }
    return window.dash_clientside.no_update;
}
"""
ADVANCE = """
function(ticks, step, last) {
    return Math.min(Number(step) + 1, Number(last));
}
"""


def table_of(frame: pd.DataFrame, element: str = "") -> html.Table:
    """A table of text."""
    head = html.Thead(html.Tr([html.Th(str(name), scope="col") for name in frame.columns]))
    rows = [html.Tr([html.Td(str(value)) for value in row]) for row in frame.itertuples(index=False)]
    return html.Table([head, html.Tbody(rows)], **({"id": element} if element else {}))


def _labelled(text: str, child: Any, **keywords: Any) -> html.Div:
    return html.Div([html.Label(text, htmlFor=child.id), child], **keywords)


def _identifier(kind: str, name: str) -> dict[str, str]:
    return {"kind": kind, "name": name}


def _element(identifier: Mapping[str, str]) -> str:
    """The id that Dash gives the element of a pattern's component."""
    return json.dumps(identifier, sort_keys=True, separators=(",", ":"))


def _slider(element: Any, low: float, high: float, step: float, value: float) -> dcc.Slider:
    return dcc.Slider(
        id=element,
        min=low,
        max=high,
        step=step,
        value=value,
        marks=None,
        included=True,
        updatemode="drag",
        allow_direct_input=False,
    )


def _parameter(control: Control) -> html.Div:
    """A parameter's label, slider and entry."""
    value = _identifier("value", control.name)
    label = html.Label(
        [html.Span(control.name.replace("_", " ")), html.Span(control.unit, className="unit")],
        htmlFor=_element(value),
    )
    if control.options:
        entry: Any = dcc.RadioItems(
            id=value, options=list(control.options), value=control.shown, inline=True, className="choice"
        )
        return html.Div([label, entry], className="parameter", title=control.help)
    entry = dcc.Input(
        id=value, type="text", value=control.text, placeholder=control.shown, debounce=True, autoComplete="off"
    )
    if control.slider is None:
        return html.Div([label, entry], className="parameter", title=control.help)
    low, high, step, position = control.slider
    slider = _slider(_identifier("slider", control.name), low, high, step, position)
    pair = html.Div([html.Div(slider, className="slider"), entry], className="pair")
    return html.Div([label, pair], className="parameter", title=control.help)


def _side() -> html.Aside:
    options = [{"label": f"{env_id}: {title}", "value": env_id} for env_id, title in known_environments().items()]
    return html.Aside(
        [
            html.H1("mmgym explore"),
            html.Div(
                [
                    _labelled("Market", dcc.Dropdown(id="env", options=options, clearable=False, optionHeight=46)),
                    _labelled("Compare the optimum with", dcc.Dropdown(id="policy", options=[], clearable=False)),
                    html.Div(
                        [
                            html.Label("Agent: folder of a run or model", htmlFor="agent"),
                            dcc.Input(id="agent", type="text", debounce=True, placeholder="runs/...", value=""),
                        ]
                    ),
                ],
                className="group",
            ),
            html.Div(id="problem", className="problem", role="alert"),
            html.H2("Parameters"),
            html.P("An empty entry is the default. Entries take what sliders do not reach.", className="hint"),
            html.Button("All defaults", id="defaults", n_clicks=0),
            html.Div(id="parameters", style={"marginTop": "0.8rem"}),
        ],
        className="side",
    )


def _main() -> html.Main:
    progress = [
        html.Div(id="progress", className="text", **{"aria-live": "polite"}),
        html.Button("Cancel", id="cancel", disabled=True, n_clicks=0),
        html.Button("Go on", id="again", disabled=True, n_clicks=0),
    ]
    above = {"quotes": _view_options(), "episode": _player()}
    folded = {"quotes": "The same as numbers"}
    sections = []
    for name, card in cards.TITLES.items():
        table = html.Div(id=f"table-{name}", className="scroll")
        children = [
            *above.get(name, []),
            html.Div(id=f"note-{name}"),
            *(
                [dcc.Graph(id=f"graph-{name}", config=GRAPH, responsive="auto", figure=cards.EMPTY)]
                if card.graph
                else []
            ),
            html.Details([html.Summary(folded[name]), table]) if name in folded else table,
        ]
        head = [html.H2(card.title), html.P(card.hint, className="hint")]
        sections.append(html.Section([*head, *children], className="card waiting", id=f"card-{name}"))
    top = html.Section([html.Div(id="facts"), html.Div(progress, className="progress")], className="card")
    return html.Main([top, *sections], className="main")


def _graph(name: str) -> dcc.Graph:
    style = {"height": f"{cards.EMPTY.layout.height}px"}
    return dcc.Graph(id=f"graph-{name}", config=GRAPH, responsive="auto", figure=cards.EMPTY, style=style)


def _height(figure: Any) -> dict[str, str]:
    return {"height": f"{figure.layout.height}px"}


def _view_options() -> list[Any]:
    times = dcc.Input(id="times", type="text", debounce=True, value="0, 0.5, 0.9")
    across = dcc.Dropdown(id="across", options=[], clearable=False)
    boxes = [
        _labelled("Over", across, className="choose"),
        html.Div(id="held", className="options"),
        _labelled("At fractions of the episode", times),
    ]
    return [html.Div(boxes, className="options")]


def _player() -> list[Any]:
    seed = _labelled("Seed", dcc.Input(id="seed", type="text", debounce=True, value="0"))
    slider = _slider("step", 0, 1, 1, 0)
    boxes = [seed, html.Button("Play", id="play", n_clicks=0), html.Span(id="step-text", className="hint")]
    return [
        html.Div(boxes, className="options"),
        html.Div([html.Span("Step", className="hint"), slider], className="slider"),
    ]


def _shell() -> html.Div:
    stores = [dcc.Store(id=f"version-{name}") for name in cards.PARTS]
    return html.Div(
        [
            dcc.Location(id="address", refresh=False),
            dcc.Store(id="page", data=uuid.uuid4().hex),
            dcc.Store(id="opened"),
            dcc.Store(id="settings"),
            dcc.Store(id="query"),
            dcc.Store(id="last-step", data=0),
            *stores,
            dcc.Interval(id="clock", interval=POLL, disabled=True),
            dcc.Interval(id="player", interval=PLAY, disabled=True),
            _side(),
            _main(),
        ],
        className="page",
    )


def settings_of(stored: Mapping[str, Any]) -> Settings:
    """Settings from what the page keeps."""
    return Settings(**{**stored, "times": tuple(stored["times"])})


def stored(settings: Settings) -> dict[str, Any]:
    """Settings as the page keeps them."""
    return {**asdict(settings), "arguments": dict(settings.arguments), "at": dict(settings.at)}


def make_app(default: Settings, worker: Worker) -> Dash:
    """The explorer's web application.

    Parameters
    ----------
    default : Settings
        What an address without a query shows; its arguments are the user's own, and may name files.
    worker : Worker
        Computes what is shown.
    """
    app = Dash(
        "mmgym.agents.explore",
        title="mmgym explore",
        update_title="",
        serve_locally=True,
        assets_ignore=".*",
        index_string=INDEX.replace("[style]", style()),
        suppress_callback_exceptions=True,
    )
    app.layout = _shell
    _add_opening(app, default)
    _add_settings(app, default, worker)
    _add_progress(app, worker)
    _add_choices(app, worker)
    _add_cards(app, worker)
    _add_episode(app, worker)
    _add_player(app)
    return app


def _add_opening(app: Dash, default: Settings) -> None:
    """What an address or another market puts into the controls."""

    @app.callback(
        Output("opened", "data"),
        Output("env", "value"),
        Output("parameters", "children"),
        Output("agent", "value"),
        Output("policy", "options"),
        Output("policy", "value"),
        Output("across", "options"),
        Output("across", "value"),
        Output("held", "children"),
        Output("seed", "value"),
        Output("times", "value"),
        Input("address", "search"),
        Input("env", "value"),
        Input("defaults", "n_clicks"),
        State("opened", "data"),
        State("settings", "data"),
    )
    def opened(search: str | None, env: str | None, _: int, before: Any, now: Any) -> tuple[Any, ...]:
        problem = ""
        if ctx.triggered_id == "defaults" and now:
            settings = replace(settings_of(now), arguments={})
        elif before is not None and env and env != before["settings"]["env"]:
            settings = Settings(env, times=settings_of(before["settings"]).times)
        elif before is not None:
            raise PreventUpdate
        else:
            try:
                settings = read_address(search or "", default)
                checked_params(settings, default.arguments)
            except (ValueError, TypeError) as error:
                settings, problem = default, f"The address cannot be shown: {error}"
        controls = controls_of(settings, checked_params(settings, default.arguments))
        return (
            {"settings": stored(settings), "problem": problem},
            settings.env,
            [_parameter(control) for control in controls],
            settings.agent,
            *_choice(settings.policy),
            *_choice(settings.across),
            [],
            str(settings.seed),
            ", ".join(f"{value:g}" for value in settings.times),
        )

    app.clientside_callback(
        SYNCHRONISE,
        Output({"kind": "value", "name": MATCH}, "value"),
        Output({"kind": "slider", "name": MATCH}, "value"),
        Input({"kind": "slider", "name": MATCH}, "value"),
        Input({"kind": "value", "name": MATCH}, "value"),
        State({"kind": "value", "name": MATCH}, "placeholder"),
        prevent_initial_call=True,
    )
    app.clientside_callback(REMEMBER, Output("query", "storage_type"), Input("query", "data"))


def _choice(chosen: str) -> tuple[list[dict[str, str]], str]:
    """Options and value of a choice whose options are not known yet."""
    options = [{"label": "...", "value": DEFAULT}]
    return options + ([{"label": chosen, "value": chosen}] if chosen else []), chosen or DEFAULT


def _chosen(value: str | None) -> str:
    return "" if value in (None, DEFAULT) else str(value)


def given_arguments(controls: list[Control], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the controls give: entries that are not empty, and choices other than the default."""
    given = {}
    for control in controls:
        text = typed.get(control.name)
        text = "" if text is None else str(text).strip()
        if text and not (control.options and text == control.default):
            given[control.name] = value_of(text)
    return given


def _read_controls(base: Settings, default: Settings, typed: Mapping[str, Any], view: Mapping[str, Any]) -> Settings:
    """Settings that the controls say.

    Raises
    ------
    ValueError, TypeError
        If one of them cannot be used.
    PreventUpdate
        If the controls are still those of another market.
    """
    controls = controls_of(base, checked_params(base, default.arguments))
    if set(typed) != {control.name for control in controls}:
        raise PreventUpdate
    levels = {name: level for name, level in view["held"].items() if _chosen(level)}
    return replace(
        base,
        arguments=given_arguments(controls, typed),
        agent=(view["agent"] or "").strip(),
        policy=_chosen(view["policy"]),
        seed=seed_of(view["seed"] or "0"),
        times=times_of(view["times"] or ""),
        across=_chosen(view["across"]),
        at={name: float(level) for name, level in levels.items()} if view["held"] else base.at,
    )


def _add_settings(app: Dash, default: Settings, worker: Worker) -> None:
    """From the controls to settings: what cannot be used is said, and what was shown stays."""

    @app.callback(
        Output("settings", "data"),
        Output("query", "data"),
        Output("problem", "children"),
        Output({"kind": "value", "name": ALL}, "placeholder"),
        Input("opened", "data"),
        Input({"kind": "value", "name": ALL}, "value"),
        inputs_of_view(),
        State({"kind": "held", "name": ALL}, "id"),
        State({"kind": "value", "name": ALL}, "id"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    def changed(
        opened: Any, values: list[Any], view: dict[str, Any], held: list[Any], names: list[Any], page: str
    ) -> tuple[Any, ...]:
        if not opened or not names:
            raise PreventUpdate
        typed = {name["name"]: value for name, value in zip(names, values, strict=True)}
        view = {**view, "held": {name["name"]: level for name, level in zip(held, view["held"], strict=True)}}
        try:
            settings = _read_controls(settings_of(opened["settings"]), default, typed, view)
            params = checked_params(settings, default.arguments)
            shown = {control.name: control.shown for control in controls_of(settings, params)}
        except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
            return no_update, no_update, str(error), [no_update] * len(names)
        worker.want(page, settings)
        placeholders = [no_update if value else shown[name] for name, value in typed.items()]
        problem = opened["problem"] if settings == settings_of(opened["settings"]) else ""
        return stored(settings), write_address(settings), problem, placeholders

    @app.callback(
        Output("clock", "n_intervals"),
        Input("cancel", "n_clicks"),
        Input("again", "n_clicks"),
        State("page", "data"),
        State("settings", "data"),
        prevent_initial_call=True,
    )
    def stopped(_: int, __: int, page: str, now: Any) -> int:
        if ctx.triggered_id == "cancel":
            worker.cancel(page)
        elif now:
            worker.want(page, settings_of(now), again=True)
        return 0


def inputs_of_view() -> dict[str, Any]:
    """The controls of the view, by the names of settings."""
    single = {name: Input(name, "value") for name in ("agent", "policy", "seed", "across", "times")}
    return {**single, "held": Input({"kind": "held", "name": ALL}, "value")}


def progress_of(known: Known) -> Any:
    """What the progress line says."""
    if known.cancelled:
        return "Cancelled: what was known by then is shown."
    if not known.running:
        return "All of it is computed." if known.complete else ""
    bar = html.Progress(**({} if known.share is None else {"value": f"{known.share:.2f}"}), max="1")
    seconds = f", {known.seconds:.0f} s" if known.seconds >= 1.0 else ""
    hint = " (first uses of a market compile its kernels)" if known.seconds > 5.0 and not known.line else ""
    return [bar, f" {cards.PARTS[known.running]}{seconds}{hint} ", html.Small(known.line[:90])]


def _add_progress(app: Dash, worker: Worker) -> None:
    """Ask again and again what is known, until all of it is."""

    @app.callback(
        *(Output(f"version-{name}", "data") for name in cards.PARTS),
        Output("progress", "children"),
        Output("cancel", "disabled"),
        Output("again", "disabled"),
        Output("clock", "disabled"),
        Input("clock", "n_intervals"),
        Input("settings", "data"),
        State("page", "data"),
        *(State(f"version-{name}", "data") for name in cards.PARTS),
        prevent_initial_call=True,
    )
    def asked(_: Any, now: Any, page: str, *versions: Any) -> tuple[Any, ...]:
        if now and not worker.knows(page):  # the server has been started anew
            worker.want(page, settings_of(now))
        known = worker.state(page)
        current = [known.versions.get(name) for name in cards.PARTS]
        news = [no_update if old == new else new for old, new in zip(versions, current, strict=True)]
        finished = known.finished
        return *news, progress_of(known), finished, not (known.cancelled or known.failed), finished


def _add_choices(app: Dash, worker: Worker) -> None:
    """What can be compared, put on the axis and held, as the market has it."""

    @app.callback(
        Output("policy", "options", allow_duplicate=True),
        Output("across", "options", allow_duplicate=True),
        Output("held", "children", allow_duplicate=True),
        Input("version-optimum", "data"),
        Input("settings", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    def choices(_: Any, now: Any, page: str) -> tuple[Any, ...]:
        results = worker.state(page).results
        if not now or "optimum" not in results:
            raise PreventUpdate
        settings = settings_of(now)
        across, held = cards.axes_of(results, settings)
        boxes = []
        for name, levels in held.items():
            likeliest = {"label": "as at the start", "value": DEFAULT}
            options = [likeliest, *({"label": text, "value": text} for text in levels)]
            value = f"{settings.at[name]:.10g}" if name in settings.at else DEFAULT
            options += [] if value in (DEFAULT, *levels) else [{"label": value, "value": value}]
            box = dcc.Dropdown(id=_identifier("held", name), options=options, value=value, clearable=False)
            label = html.Label(f"{name.replace('_', ' ')} held at", htmlFor=_element(box.id))
            boxes.append(html.Div([label, box], className="choose"))
        return _options(cards.policies_of(results, settings), settings.policy), _options(across, settings.across), boxes


def _options(labels: Mapping[str, str], chosen: str) -> list[dict[str, str]]:
    """Options by value, the one that settings leave to the market first ("")."""
    options = [{"label": label, "value": value or DEFAULT} for value, label in labels.items()]
    known = [option["value"] for option in options]
    return options + ([{"label": chosen, "value": chosen}] if chosen and chosen not in known else [])


def _add_cards(app: Dash, worker: Worker) -> None:
    """Each card is drawn when what it shows is known, or the view is another one."""

    @app.callback(
        Output("facts", "children"),
        Input("version-optimum", "data"),
        Input("version-comparison", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    def facts(_: Any, __: Any, page: str) -> Any:
        lines = cards.facts_of(worker.state(page).results)
        if isinstance(lines, str):
            return html.Div(lines, className="problem", role="alert")
        return html.Dl([html.Div([html.Dt(name), html.Dd(value)]) for name, value in lines.items()], className="facts")

    for name, card in cards.CARDS.items():
        _add_card(app, worker, name, card)


def _add_card(app: Dash, worker: Worker, name: str, card: cards.Card) -> None:
    """One card: its figure, note and table; it is pale while what it shows is not known."""
    chart = [Output(f"graph-{name}", "figure"), Output(f"graph-{name}", "style")] if card.graph else []

    @app.callback(
        Output(f"note-{name}", "children"),
        Output(f"table-{name}", "children"),
        Output(f"card-{name}", "className"),
        *chart,
        *(Input(f"version-{part}", "data") for part in card.parts),
        Input("settings", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    def drawn(*given: Any) -> tuple[Any, ...]:
        now, page = given[-2:]
        if not now:
            raise PreventUpdate
        shown = card.draw(worker.state(page).results, settings_of(now))
        if shown is None:
            return no_update, no_update, "card waiting", *(no_update for _ in chart)
        table = [] if shown.table is None else table_of(shown.table)
        figure = shown.figure or cards.EMPTY
        return _note(shown), table, "card", *((figure, _height(figure)) if chart else ())


def _note(shown: cards.Drawn) -> Any:
    link = [] if not shown.link else [html.A("Open the market that it was trained in", href=shown.link)]
    if shown.refused:
        return html.Div(shown.note, className="problem", role="alert")
    return html.P([*(html.Span([line, html.Br()]) for line in shown.note.splitlines()), *link], className="note")


def _add_episode(app: Dash, worker: Worker) -> None:
    """The episode, step by step."""

    @app.callback(
        Output("step", "max"),
        Output("step", "value"),
        Output("last-step", "data"),
        Input("version-episode", "data"),
        State("page", "data"),
        State("step", "value"),
        State("last-step", "data"),
        prevent_initial_call=True,
    )
    def arrived(_: Any, page: str, step: Any, last: int) -> tuple[Any, ...]:
        steps = cards.steps_of_episode(worker.state(page).results)
        if steps is None:
            raise PreventUpdate
        chosen = steps - 1 if int(step or 0) >= last else min(int(step), steps - 1)
        return max(steps - 1, 1), chosen, steps - 1

    @app.callback(
        Output("graph-episode", "figure"),
        Output("graph-episode", "style"),
        Output("note-episode", "children"),
        Output("table-episode", "children"),
        Output("step-text", "children"),
        Output("card-episode", "className"),
        Input("step", "value"),
        Input("version-episode", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    def stepped(step: Any, _: Any, page: str) -> tuple[Any, ...]:
        shown, text = cards.episode_card(worker.state(page).results, int(step or 0))
        if shown is None:
            return *(no_update for _ in range(5)), "card waiting"
        table = [] if shown.table is None else table_of(shown.table)
        figure = shown.figure or cards.EMPTY
        return figure, _height(figure), _note(shown), table, text, "card"


def _add_player(app: Dash) -> None:
    """What moves the episode's step as time goes."""

    @app.callback(
        Output("player", "disabled"),
        Output("play", "children"),
        Output("step", "value", allow_duplicate=True),
        Input("play", "n_clicks"),
        Input("last-step", "data"),
        Input("step", "value"),
        State("player", "disabled"),
        prevent_initial_call=True,
    )
    def played(_: int, last: int, step: Any, resting: bool) -> tuple[Any, ...]:
        ended = int(step or 0) >= last
        if ctx.triggered_id == "play" and resting:
            return False, "Pause", 0 if ended else no_update
        if ctx.triggered_id == "step" and not (ended and not resting):
            raise PreventUpdate
        return True, "Play", no_update

    app.clientside_callback(
        ADVANCE,
        Output("step", "value", allow_duplicate=True),
        Input("player", "n_intervals"),
        State("step", "value"),
        State("last-step", "data"),
        prevent_initial_call=True,
    )
