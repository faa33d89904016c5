"""The explorer: settings in addresses, sliders, what is computed, the process that computes, the page, snapshots."""

import logging
import re
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy import stats

from mmgym import baselines
from mmgym.baselines.baseline import environment_of
from mmgym.registration import ENVIRONMENTS

dash = pytest.importorskip("dash", reason="needs the extra explore")

from werkzeug.serving import make_server  # noqa: E402

from mmgym.agents.cli import main, make_parser  # noqa: E402
from mmgym.agents.commands.explore import settings_of  # noqa: E402
from mmgym.agents.explore import cards  # noqa: E402
from mmgym.agents.explore.computation import compute, parts_of  # noqa: E402
from mmgym.agents.explore.controls import controls_of  # noqa: E402
from mmgym.agents.explore.figures import control_groups  # noqa: E402
from mmgym.agents.explore.page import given_arguments, make_app  # noqa: E402
from mmgym.agents.explore.settings import (  # noqa: E402
    Settings,
    checked_params,
    known_environments,
    read_address,
    value_of,
    write_address,
)
from mmgym.agents.explore.snapshot import write_snapshot  # noqa: E402
from mmgym.agents.explore.views import quotes_view, values_view  # noqa: E402
from mmgym.agents.explore.worker import Worker  # noqa: E402
from mmgym.agents.train import train  # noqa: E402

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 10, "inventory_limit": 3.0}
DEFAULT = Settings(AS)


def last(settings, name):
    """The complete result of a part."""
    *_, result = compute(settings, name)
    return result


@pytest.fixture(scope="module")
def small():
    """The parts of a small market but for the laws, next to a formula."""
    settings = Settings(AS, SMALL, policy="avellaneda_stoikov", seed=3)
    return settings, {name: last(settings, name) for name in ("optimum", "comparison", "episode", "scores")}


# --- addresses


def test_an_address_holds_the_settings():
    settings = Settings(
        AS, {"fill_decay": [1.2, 1.3], "utility": "cara", "num_steps": 7}, agent="runs/a b&c", policy="hjb", seed=4,
        across="inventory", times=(0.25, 1.0), at={"signal": -2.0},
    )  # fmt: skip
    assert read_address(write_address(settings), DEFAULT) == settings
    assert read_address("", DEFAULT) == DEFAULT
    assert read_address(f"?env={AS}&fill_decay=1.2", DEFAULT) == Settings(AS, {"fill_decay": 1.2})


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("env=os:mmgym/GLFT-v0", "not known here"),
        ("env=mmgym/Nothing-v0", "not known here"),
        (f"env={AS}&env={AS}", "a name twice"),
        (f"env={AS}&view.seed=-1", "whole number"),
        (f"env={AS}&view.times=0,2", "from 0 to 1"),
        (f"env={AS}&view.times=nan", "from 0 to 1"),
        (f"env={AS}&view.nothing=1", "view.agent"),
        (f"env={AS}&at.inventory=inf", "a level of the coordinate"),
        (f"env={AS}&volatility={'9' * 5000}", "characters"),
        ("x=" + "1" * 100_000, "characters"),
    ],
)
def test_a_bad_address_is_refused_in_words(query, said):
    with pytest.raises(ValueError, match=said):
        read_address(query, DEFAULT)


@pytest.mark.parametrize(
    ("env", "arguments", "said"),
    [
        (AS, {"fill_decay": -1.0}, "fill_decay = -1.0"),
        (AS, {"fill_decay": "__import__('os')"}, "fill_decay"),
        (AS, {"nothing": 1}, "'nothing' of"),
        (AS, {"info": "full"}, "'info' of"),
        (AS, {"volatility": float("inf")}, "volatility"),
        (AS, {"num_steps": 1.5}, "num_steps"),
        (AS, {"randomise": {"volatility": ["uniform", 1.0, 2.0]}}, "'randomise' of"),
        ("mmgym/MeanFieldTaker-v0", {"population": "/etc/passwd"}, "population"),
    ],
)
def test_arguments_are_checked_as_those_of_a_foreign_file(env, arguments, said):
    with pytest.raises(ValueError, match=said):
        checked_params(Settings(env, arguments))


def test_what_is_typed_is_a_value():
    assert [value_of(text) for text in ("1", "1.5", ".5", "true", "[1, 2]", "cara", " x ")] == [
        1, 1.5, 0.5, True, [1, 2], "cara", "x",
    ]  # fmt: skip
    assert value_of("[" * 3000) == "[" * 3000  # no recursion
    with pytest.raises(ValueError, match="characters"):
        value_of("1" * 5000)


# --- controls


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.id)
def test_both_ends_of_every_slider_are_allowed(row):
    """Where an end is refused, another parameter must be the reason: the message names two."""
    settings = Settings(row.id)
    controls = controls_of(settings, checked_params(settings))
    assert {control.name for control in controls} >= {"horizon", "num_steps"}
    for control in controls:
        assert control.help
        if control.slider is None:
            continue
        low, high, step, value = control.slider
        assert low < high
        assert low <= value <= high
        assert abs((value - low) / step - round((value - low) / step)) < 1e-6  # the default is on the slider's grid
        for end in (low, high):
            given = value_of(f"{end:.12g}")
            try:
                checked_params(Settings(row.id, {control.name: given}))
            except ValueError as error:
                others = [other.name for other in controls if other.name != control.name]
                assert any(other in str(error) for other in others), f"{control.name} = {given}: {error}"


def test_every_registered_market_can_be_explored():
    assert set(known_environments()) >= {row.id for row in ENVIRONMENTS}


def test_controls_give_what_is_typed_and_nothing_else():
    controls = controls_of(DEFAULT, checked_params(DEFAULT))
    typed = {control.name: control.shown if control.options else "" for control in controls}
    assert given_arguments(controls, typed) == {}
    typed |= {"fill_decay": "1.2", "utility": "cara", "max_depth": " "}
    assert given_arguments(controls, typed) == {"fill_decay": 1.2, "utility": "cara"}


def test_controls_that_differ_in_their_side_are_drawn_together():
    assert control_groups(["bid_depth", "ask_depth"]) == {"depth": [0, 1]}
    assert control_groups(["drift", "fill_rate_bid", "fill_rate_ask"]) == {"drift": [0], "fill rate": [1, 2]}
    assert control_groups(["bid_depth_0", "bid_depth_1", "ask_depth_0"]) == {"depth 0": [0, 2], "depth 1": [1]}


# --- what is computed


def test_quotes_and_values_are_those_of_the_solver(small):
    settings, results = small
    best = baselines.optimal_policy(AS, **SMALL)
    env = environment_of(AS, **SMALL)
    view = quotes_view(results["optimum"], results["comparison"], settings)
    assert view.across == "inventory"
    assert view.levels.tolist() == [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert view.times == [0.0, 0.5, 0.9]
    formula = baselines.paper_policies(env)["avellaneda_stoikov"]
    for t, step in enumerate((0, 5, 9)):
        for i, inventory in enumerate(view.levels):
            observation = np.array([step / 10, inventory / 3.0], np.float32)
            assert env.to_state(observation) == (step, inventory)
            assert env.to_quotes(best.predict(observation)[0]) == pytest.approx(view.best[t, :, i], abs=1e-6)
            assert env.to_quotes(formula.predict(observation)[0]) == pytest.approx(view.compared[t, :, i], abs=1e-6)
    values = values_view(results["optimum"], settings)
    assert values.values[3, 0] == pytest.approx(best.optimum, rel=1e-12)
    assert values.values[:, -1].tolist() == [0.0] * 7


def test_scores_and_regret_are_those_of_score(small):
    _settings, results = small
    expected = {
        name: baselines.score(AS, policy, **SMALL) for name, policy in baselines.paper_policies(AS, **SMALL).items()
    }
    scores = results["scores"].scores
    assert set(scores) == set(expected) - {"random"}
    for name, score in scores.items():
        assert score.value == pytest.approx(expected[name].value, rel=1e-12)
    regret = results["comparison"].regret.cells["inventory"].sum()
    assert regret == pytest.approx(expected["avellaneda_stoikov"].regret, rel=1e-9)


def test_an_episode_is_that_of_the_seed_and_its_losses_are_advantages(small):
    _settings, results = small
    episode = results["episode"]
    best, env = baselines.optimal_policy(AS, **SMALL), gymnasium.make(AS, **SMALL)
    formula = baselines.paper_policies(env)["avellaneda_stoikov"]
    for played, policy in ((episode.policy, formula), (episode.optimum, best)):
        observation, _ = env.reset(seed=3)
        for n in range(10):
            action, _ = policy.predict(observation)
            assert env.unwrapped.to_quotes(action) == pytest.approx(played.quotes[n], abs=1e-12)
            observation, reward, *_ = env.step(action)
            assert reward == played.during["reward"][n]
    solution, problem = best.solution, baselines.catalogue.problem_of(env)
    for n, inventory in enumerate(episode.policy.before["inventory"]):
        state = int(inventory + 3)
        quotes = episode.policy.quotes[n][None]
        worth = problem.backward(n, np.array([state]), quotes, solution.values[n + 1][:, None], problem.criterion)
        assert episode.loss[n] == pytest.approx(solution.values[n, state] - worth[0, 0], abs=1e-12)
        assert episode.loss[n] >= -1e-12


def test_the_same_step_of_the_optimum_has_the_same_random_numbers(small):
    """Where the compared policy is the optimum, what the optimum does instead is what was done."""
    settings = Settings(AS, SMALL, policy="hjb", seed=5)
    from mmgym.agents.explore.computation import market_of
    from mmgym.agents.explore.episode import play

    env, baseline = market_of(settings)
    best = baseline.best_policy()
    episode = play(env, baseline, "same", best, "optimal", best, 5)
    for name, values in episode.policy.during.items():
        np.testing.assert_array_equal(values, episode.instead.during[name])
        np.testing.assert_array_equal(values, episode.optimum.during[name])


@pytest.mark.long
def test_a_law_has_the_quantiles_of_a_simulation():
    """The probability of at most the 5 % quantile is within four standard errors of 5 % (false alarms 6e-5)."""
    settings = Settings(AS, SMALL)
    law = last(settings, "law")
    assert law.method == "exact"
    gains = baselines.risk.path_risks(AS, baselines.optimal_policy(AS, **SMALL), 20_000, seed=1, **SMALL).gains
    below = float((gains <= -law.risk["VaR 95%"][0]).mean())
    assert abs(below - 0.05) < 4.0 * np.sqrt(0.05 * 0.95 / 20_000)
    assert abs(gains.mean() - law.mean) < 4.0 * stats.sem(gains)
    mass = float(law.atoms[:, 1].sum() + np.trapezoid(law.density, law.x))
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_a_policy_that_is_not_known_is_named():
    for policy, agent, said in (("nothing", "", "must be one of hjb"), ("", "no/such/folder", "not a folder")):
        with pytest.raises(ValueError, match=said):
            last(Settings(AS, SMALL, policy=policy, agent=agent), "comparison")


@pytest.mark.long
def test_quotes_of_a_bracketed_market_are_known_before_its_bounds():
    tiny = {"observe": "fills", "horizon": 2.0, "num_steps": 4, "inventory_limit": 2}
    *before, end = compute(Settings("mmgym/HawkesFlow-v0", tiny), "optimum")
    early = [known for known in before if known.sample is not None and known.lower is None]
    assert early[0].best.endswith(", so far") and early[0].best.split(",")[0] in early[0].origins
    assert (end.level, end.best.split(" (")[0]) == ("bracketed", "best known") and end.lower < end.upper
    shown = cards.CARDS["quotes"].draw({"optimum": early[0]}, Settings("mmgym/HawkesFlow-v0", tiny))
    assert shown.figure is not None and "so far" in shown.table.columns[1]


def test_parts_depend_on_what_they_show():
    one = {part.name: part.key for part in parts_of(Settings(AS, SMALL))}
    other = {part.name: part.key for part in parts_of(Settings(AS, SMALL, policy="hjb", seed=1, times=(0.0,)))}
    same = {name for name in one if one[name] == other[name]}
    assert same == {"optimum", "scores", "law"}


def test_cards_show_what_is_known(small):
    settings, results = small
    assert cards.CARDS["quotes"].draw({}, settings) is None
    for card in cards.CARDS.values():
        shown = card.draw(results, settings)
        assert shown is None or shown.figure is not None or shown.table is not None
    table = cards.CARDS["scores"].draw(results, settings).table
    best = max(results["scores"].scores.items(), key=lambda item: item[1].value)[0]
    assert table["policy"][0] == best
    assert table["skill"][0] == f"{results['scores'].scores[best].skill:.4f}"
    assert cards.facts_of(results)["optimum"].startswith(f"{baselines.optimal_policy(AS, **SMALL).optimum:.10g}")
    shown = cards.CARDS["value"].draw(results, Settings(AS, SMALL, across="signal"))
    assert shown.refused
    assert "must be one of inventory" in shown.note
    drawn, line = cards.episode_card(results, 99)
    assert line.startswith("step 10 of 10")
    assert "reward" in set(drawn.table["of the step"])


# --- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "mmgym/Nothing-v0"], "no such environment"),
        (["--set", "fill_decay=-1"], "fill_decay = -1"),
        (["--set", "nothing=1"], "'nothing' of"),
        (["--agent", "no/such/folder"], "no such folder"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--env", "no_such_module:x/Y-v0"], "no_such_module"),
    ],
)
def test_the_command_says_what_cannot_be_used(words, said, capsys):
    assert main(["explore", "--no-browser", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_market_of_somebody_else_can_be_explored(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "third_party"))
    words = ["explore", "--env", "mylab.linear_fills:mylab/LinearFills-v0", "--set", "num_steps=5"]
    settings, imports = settings_of(make_parser(words).parse_args(words))
    assert imports == ["mylab.linear_fills"]
    assert settings == Settings("mylab/LinearFills-v0", {"num_steps": 5})
    assert "fee" in {control.name for control in controls_of(settings, checked_params(settings))}
    assert read_address("?env=mylab/LinearFills-v0", DEFAULT).env == "mylab/LinearFills-v0"


# --- the process that computes


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"nothing came in {seconds:g} s")


@pytest.fixture(scope="module")
def worker():
    made = Worker()
    yield made
    made.close()


@pytest.mark.long
def test_a_long_computation_shows_its_progress_and_can_be_cancelled(worker):
    worker.want("one", Settings(AS, {"num_steps": 20_000, "inventory_limit": 100.0}))
    state = wait_for(lambda: (s := worker.state("one")).line and s)
    assert state.running
    worker.cancel("one")
    state = worker.state("one")
    assert state.cancelled and state.finished
    worker.want("one", Settings(AS, SMALL, policy="hjb"))  # the next one is not held up
    state = wait_for(lambda: "comparison" in (s := worker.state("one")).complete and s)
    assert state.results["comparison"].score.value <= state.results["optimum"].upper + 1e-9


@pytest.mark.long
def test_what_is_refused_is_said_and_what_is_known_is_kept(worker):
    worker.want("two", Settings(AS, {"num_steps": 10**6, "inventory_limit": 10.0**6}))
    state = wait_for(lambda: (s := worker.state("two")).failed and s)
    assert state.finished
    assert "lower" in state.results["optimum"].text
    assert "Traceback" not in state.results["optimum"].text
    settings = Settings(AS, SMALL, policy="hjb")
    worker.want("two", settings)
    first = wait_for(lambda: "comparison" in (s := worker.state("two")).complete and s)
    worker.want("three", settings)
    assert worker.state("three").versions["optimum"] == first.versions["optimum"]  # not computed again


# --- the page in a browser


@pytest.fixture(scope="module")
def page(worker):
    """The address of the explorer's page."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, make_app(Settings(AS, SMALL), worker).server, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def errors_of(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def quotes_shown(browser):
    """The table of quotes: (inventory, column) -> number."""
    script = (
        "return Array.from(document.querySelectorAll('#table-quotes tr'))"
        ".map(row => Array.from(row.children).map(cell => cell.textContent))"
    )
    head, *rows = browser.execute_script(script) or [[]]
    return {
        (float(row[0].replace("−", "-")), name): float(cell.replace("−", "-"))
        for row in rows
        for name, cell in zip(head[1:], row[1:], strict=True)
    }


def entry(browser, kind, name):
    return browser.find_element("css selector", f'[id=\'{{"kind":"{kind}","name":"{name}"}}\']')


def text(browser, element):
    """The text of an element, or "" while it is not there."""
    return "".join(node.text for node in browser.find_elements("id", element))


def shows(browser, quotes):
    """Wait until the page shows the bid at no inventory at the start."""
    wait_for(lambda: quotes_shown(browser).get((0.0, "bid depth at 0, optimal")) == pytest.approx(quotes[0], rel=1e-5))


def bid_at_start(**arguments):
    env = environment_of(AS, **SMALL | arguments)
    return env.to_quotes(baselines.optimal_policy(env).predict(np.zeros(2, np.float32))[0])


@pytest.mark.long
def test_a_slider_is_moved_and_the_page_shows_what_the_solver_gives(browser, page):
    browser.set_window_size(1200, 900)
    browser.get(page)
    shows(browser, bid_at_start())
    from selenium.webdriver.common.keys import Keys

    entry(browser, "slider", "fill_decay").find_element("css selector", "[role=slider]").send_keys(Keys.ARROW_LEFT * 4)
    wait_for(lambda: "fill_decay=1.3" in browser.current_url)
    assert entry(browser, "value", "fill_decay").get_attribute("value") == "1.3"
    shows(browser, bid_at_start(fill_decay=1.3))
    address = browser.current_url
    typed = entry(browser, "value", "fill_decay")
    typed.send_keys(Keys.CONTROL, "a")
    typed.send_keys("-2", Keys.ENTER)
    wait_for(lambda: "fill_decay = -2" in text(browser, "problem"))
    assert "Traceback" not in browser.page_source
    shows(browser, bid_at_start(fill_decay=1.3))  # what was shown stays
    browser.get(address)  # a link to it
    shows(browser, bid_at_start(fill_decay=1.3))
    assert text(browser, "problem") == ""
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith((page, "data:")) for name in loaded)
    assert not errors_of(browser)


@pytest.mark.long
def test_a_narrow_window_needs_no_scrolling_sideways_and_dark_is_dark(browser, page):
    """At the width of a telephone; light text on a dark ground, where the reader's system asks for it, in plots too."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    grounds = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page)
        shows(browser, bid_at_start())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        colours = browser.execute_script(
            "const of = getComputedStyle(document.body);"
            "const label = getComputedStyle(document.querySelector('#quotes text, .js-plotly-plot text'));"
            "return [of.backgroundColor, of.color, label.fill]"
        )
        grounds[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765.0 for colour in colours]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds["light"][0] > 0.8 > 0.4 > max(grounds["light"][1:])
    assert grounds["dark"][0] < 0.2 < 0.6 < min(grounds["dark"][1:])
    assert not errors_of(browser)


@pytest.mark.long
def test_a_bad_address_is_answered_in_words(browser, page):
    browser.get(page + "?env=os:x&fill_decay=%3Cscript%3Ealert(1)%3C/script%3E")
    wait_for(lambda: "not known here" in text(browser, "problem"))
    shows(browser, bid_at_start())  # what the command line said
    browser.get(page + f"?env={AS}&fill_decay=%3Cimg%20src=x%20onerror=alert(1)%3E")
    wait_for(lambda: "fill_decay" in text(browser, "problem"))
    assert not browser.find_elements("css selector", "#problem img")
    assert not errors_of(browser)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """The folder of a trained network."""
    folder = tmp_path_factory.mktemp("agent")
    file = folder / "exact_gradient.yml"
    file.write_text(f"{AS}:\n  n_timesteps: 4\n  net_arch: [4]\n  gamma: 1.0\n  inner_steps: 2\n", encoding="utf-8")
    return train(str(file), AS, seed=0, folder=folder, arguments=SMALL, timesteps=4, progress=False)[0]


@pytest.mark.long
def test_an_agent_is_loaded_and_its_episode_is_stepped(browser, page, agent):
    from selenium.webdriver.common.keys import Keys

    browser.get(page)
    shows(browser, bid_at_start())
    browser.find_element("id", "agent").send_keys(str(agent), Keys.ENTER)
    name = f"bid depth at 0, {agent.name}"
    quotes = wait_for(lambda: quotes_shown(browser).get((0.0, name)))
    from mmgym.agents.commands.command import load_policy

    env, (policy, _) = environment_of(AS, **SMALL), load_policy(agent)
    expected = env.to_quotes(policy.predict(np.zeros(2, np.float32))[0])[0]
    assert quotes == pytest.approx(expected, rel=1e-5)
    regret = baselines.score(env, policy).regret
    wait_for(lambda: f"regret {regret:.6g} in all" in text(browser, "note-regret"))
    wait_for(lambda: text(browser, "step-text").startswith("step 10 of 10"))
    browser.find_element("css selector", "#step [role=slider]").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    wait_for(lambda: text(browser, "step-text").startswith("step 2 of 10"))
    assert "view.agent=" in browser.current_url
    folder = browser.find_element("id", "agent")
    folder.send_keys(Keys.CONTROL, "a")
    folder.send_keys("no/such/folder", Keys.ENTER)
    wait_for(lambda: "is not a folder" in text(browser, "note-quotes"))
    assert not errors_of(browser)


@pytest.mark.long
def test_a_snapshot_opens_without_a_network(browser, tmp_path):
    settings = Settings(AS, SMALL)
    path = write_snapshot(tmp_path / "deep" / "slides", settings)
    assert "<script src" not in path.read_text(encoding="utf-8")
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        browser.get(path.as_uri())
        charts = browser.find_elements("css selector", ".js-plotly-plot .main-svg")
        assert len(charts) >= 10  # two layers each
        optimum = f"{baselines.optimal_policy(settings.env, **settings.arguments).optimum:.10g}"
        assert optimum in browser.find_element("css selector", ".facts").text
        assert not errors_of(browser)
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
