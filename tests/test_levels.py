"""What is claimed of every market follows from its own bounds, and skill 1 is the best lower bound that it knows.

Second methods: the rule of the levels written out here, scores on other seeds, and shares counted from closed forms.
Statistical checks have fixed seeds; were they redrawn, each test function would fail with probability at most 1e-3.
"""

import inspect
import itertools
import math
import shutil
from importlib import import_module
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy import stats

from mmgym import baselines
from mmgym.agents.cli import main
from mmgym.baselines.baseline import Bounds, best_lower
from mmgym.baselines.catalogue import (
    baseline_of,
    clipped_share,
    environment_of,
    expansions_of,
    level_of,
    policy_origins,
    reference_value,
)
from mmgym.baselines.hawkes_flow import closed_forms
from mmgym.baselines.kept import is_named, is_sample, kept, kept_file, save_arrays
from mmgym.parameters import argument_names, row_of
from mmgym.registration import ENVIRONMENTS
from mmgym.source_digest import source_digest

FLOW, POWER, AS = "mmgym/HawkesFlow-v0", "mmgym/HawkesPower-v0", "mmgym/AvellanedaStoikov-v0"
VOLATILITY, TICK, ASSETS = "mmgym/StochasticVolatility-v0", "mmgym/TickSpread-v0", "mmgym/MultiAssetGLFT-v0"
SHORT = {  # sizes of which solutions take seconds, by market
    "glft": {"num_steps": 7, "inventory_limit": 4.0},
    "multi_asset_glft": {"num_steps": 5, "inventory_limit": 2.0, "horizon": 0.2},
    "stochastic_volatility": {"num_steps": 5, "inventory_limit": 3.0, "horizon": 0.2},
    "tick_spread": {"num_steps": 4, "horizon": 4.0, "lot": 50.0, "inventory_limit": 200.0},
    "hawkes_flow": {"horizon": 1.0, "num_steps": 4, "inventory_limit": 1},
    "hawkes_power": {"horizon": 0.4, "num_steps": 2, "inventory_limit": 1},
    "mean_field": {"num_steps": 5, "horizon": 0.05},
    "robust_glft": {"num_steps": 3, "horizon": 0.015, "inventory_limit": 3.0},
    **{row.market: {"num_steps": 3, "horizon": 0.03, "inventory_limit": 3.0} for row in ENVIRONMENTS if row.declared},
}
CHANGING = {  # arguments on which the level depends, with all that they may be
    "decision": ("event", "order", "clock"),
    "observe": ("state", "tape", "fills"),
    "observe_variance": (True, False),
    "utility": ("mean", "cara"),
}
FOUR_ASSETS = {
    "covariance": np.diag([4.0, 2.0, 1.0, 1.5]).tolist(),
    "fill_rate": 20.0,
    "horizon": 0.1,
    "num_steps": 3,
    "inventory_limit": 4.0,
}


def cases():
    """Every id, with every combination of its arguments on which a level may depend."""
    for row in ENVIRONMENTS:
        params_type = getattr(import_module(row.module), row.env).market.params_type
        names = [name for name in CHANGING if name in argument_names(params_type)]
        preset = {name: row.arguments.get(name, row_of(params_type, name).default) for name in names}
        for values in itertools.product(*(CHANGING[name] for name in names)):
            arguments = dict(zip(names, values, strict=True))
            if row.market == "hawkes_flow" and arguments["decision"] == "order":
                continue
            if arguments.get("observe") == "tape" and arguments.get("decision") != "event":
                continue
            if row.declared and (arguments.get("observe"), arguments.get("utility")) == ("fills", "cara"):
                continue
            stated = row.level if arguments == preset else None
            marks = [pytest.mark.long] if row.market.startswith("hawkes") and stated is None else []
            yield pytest.param(row.id, SHORT[row.market] | arguments, stated, marks=marks, id=f"{row.id} {arguments}")
    yield pytest.param(ASSETS, FOUR_ASSETS, None, id=f"{ASSETS} four assets")
    yield pytest.param(
        FLOW,
        SHORT["hawkes_flow"] | {"excitation": 0.0, "observe": "fills"},
        None,
        marks=pytest.mark.long,
        id=f"{FLOW} Poisson",
    )


def level_by_hand(lower, upper, error):
    if lower == upper:
        return "exact" if error == 0.0 else "certified"
    return "bracketed"


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments", "stated"), list(cases()))
def test_a_level_is_what_the_bounds_say(env_id, arguments, stated, capsys):
    """And, for the arguments of the preset, what the table of ids states."""
    env = environment_of(env_id, **arguments)
    best = baselines.best_known_policy(env)
    lower, upper, error = best.bounds
    expected = level_by_hand(lower, upper, error)
    assert lower <= upper == best.optimum
    assert best.level == level_of(env) == expected
    assert stated in (None, expected)
    score = baselines.score(env, best, episodes=20)
    assert (score.level, score.optimum_lower, score.optimum_upper) == (expected, lower, upper)
    assert isinstance(score.regret, float) == (lower == upper)
    if expected == "bracketed":
        with pytest.raises(baselines.NoOptimum, match="best_known_policy"):
            baselines.optimal_policy(env)
    else:
        assert baselines.optimal_policy(env).level == expected
    words = [word for name, value in arguments.items() for word in ("--set", f"{name}={value}")]
    assert main(["solve", "--env", env_id, *words]) == 0
    out = capsys.readouterr().out
    assert f"({expected}" in out
    assert ("optimum between" in out) == (lower < upper)


def test_the_rule_of_levels():
    assert Bounds(1.0, 1.0, 0.0).level == "exact"
    assert Bounds(1.0, 1.0, 1e-9).level == "certified"
    assert Bounds(14.07, 16.45, 1e-4).level == Bounds(1.0, 1.0 + 1e-9, 0.0).level == "bracketed"
    assert Bounds(1.1, 1.0, 0.01).level == "bracketed"  # bounds that contradict each other certify nothing


# --- By the clock ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_by_the_clock_nothing_is_called_optimal_with_a_reach_atom():
    """Depths that are frozen for a minute are better a little wider than those that would move at once."""
    arguments = {"decision": "clock", "horizon": 6.0, "num_steps": 6, "reach_atom": 0.5}
    best = baselines.best_known_policy(FLOW, **arguments)

    def wider(observations):
        env = environment_of(FLOW, **arguments)
        return env.from_quotes(env.to_quotes(best.predict(observations)[0]) + 0.06)

    score = baselines.score(FLOW, wider, markov=True, episodes=4_000, **arguments)
    assert score.level == "bracketed"
    assert score.regret == (score.optimum_lower - score.value, score.optimum_upper - score.value)
    assert score.value < score.optimum_upper
    with pytest.raises(baselines.NoOptimum):
        baselines.optimal_policy(FLOW, **arguments)


# --- The best known policy -------------------------------------------------------------------------------------------

BRACKETED = [
    (FLOW, {"observe": "fills", "horizon": 6.0, "num_steps": 24, "inventory_limit": 2}),
    (FLOW, {"decision": "clock", "horizon": 3.0, "num_steps": 6, "inventory_limit": 2, "reach_atom": 0.5}),
    (POWER, {"horizon": 0.5, "num_steps": 2, "inventory_limit": 1, "observe": "fills"}),
    (VOLATILITY, {**SHORT["stochastic_volatility"], "utility": "cara", "observe_variance": False}),
    (ASSETS, {**FOUR_ASSETS, "horizon": 1.0, "num_steps": 10}),
]


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments"), BRACKETED)
def test_no_listed_policy_has_a_better_lower_bound(env_id, arguments):
    """Scores on other seeds: none is above the lower bound by more than both simulations can explain."""
    env = environment_of(env_id, **arguments)
    best, policies = baselines.best_known_policy(env), baselines.paper_policies(env)
    assert best.level == "bracketed" and best.name in policies
    own = baselines.score(env, best, episodes=2_000, seed=9)
    slack = 2.0 * own.value_error + 1e-9 * abs(own.value)
    assert best.bounds.lower <= own.value + 4.0 * own.stderr + slack
    assert own.skill > 0.9 or best.name == baseline_of(env).reference  # whose skill is not defined then
    bound = stats.norm.isf(1e-3 / len(policies))
    for name, policy in policies.items():
        score = baselines.score(env, policy, episodes=2_000, seed=9)
        noise = bound * math.hypot(score.stderr, own.stderr)
        assert score.value <= own.value + noise + score.value_error + slack, name


@pytest.mark.long
def test_of_fills_alone_the_particle_filter_is_the_best_known_policy():
    env_id, arguments = BRACKETED[0]
    best = baselines.best_known_policy(env_id, **arguments)
    assert best.name == "particle_filter" and not best.markov
    policies, origins = baselines.paper_policies(env_id, **arguments), policy_origins(env_id, **arguments)
    forgetful = baselines.score(env_id, policies["event_optimum"], episodes=200, **arguments)
    assert forgetful.method == "numerical"
    assert best.bounds.lower > forgetful.value + forgetful.value_error
    for name, policy in policies.items():
        score = baselines.score(env_id, policy, episodes=1_000, **arguments)
        margin = stats.norm.isf(1e-3 / len(policies)) * score.stderr / (score.optimum_lower - score.reference)
        assert score.skill < 1.0 + margin or origins[name] == "ours", name
        if name not in ("particle_filter", "filtered"):
            assert score.skill < 1.0, name


def test_the_best_lower_bound_is_looked_for_where_it_may_be():
    rough = {"a": (1.0, 0.1), "b": (1.1, 0.3), "c": (0.5, 0.2)}
    asked = []

    def fine(name):
        asked.append(name)
        return {"a": 0.99, "b": 0.97, "c": 7.0}[name]

    assert best_lower(list(rough), rough.__getitem__, fine) == ("a", 0.99)
    assert asked == ["a", "b"]  # c cannot be better than a
    assert best_lower(list(rough), rough.__getitem__) == ("a", 0.9)


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.id)
def test_every_listed_policy_is_a_paper_s_or_ours(row):
    env = gymnasium.make(row.id)
    origins = policy_origins(env)
    names = set(origins)
    numerical = baseline_of(env)
    listed = set(baselines.paper_policies(env)) if numerical is None else {*numerical.policies(), "random"}
    assert names == listed
    assert set(origins.values()) == {"paper", "ours"}
    assert origins["random"] == ("paper" if row.market == "tick_spread" else "ours")


def test_score_says_what_is_ours(capsys):
    assert main(["score", "--env", AS, "--set", "num_steps=5", "optimal", "hjb", "constant"]) == 0
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[3:]}
    assert (rows["hjb"], rows["constant"]) == ("paper", "ours")
    assert rows["optimal"] == "exact"  # its last word is the method


# --- What is kept ----------------------------------------------------------------------------------------------------

KEEPERS = """
import sys
sys.path.insert(0, FOLDER)
import mmgym.baselines
from mmgym.baselines.catalogue import environment_of, problem_of
from mmgym.baselines.kept import kept_file, solution_file
from mmgym.models.mean_field_flow import flow_file
from mmgym.models.mean_field_game import Game
assert mmgym.__file__.startswith(FOLDER) and mmgym.baselines.__file__.startswith(FOLDER)
print(solution_file(problem_of("mmgym/GLFT-v0")).name)
print(kept_file(environment_of("mmgym/HawkesFlow-v0").params, "held True").name)
print(kept_file(environment_of("mmgym/HawkesPower-v0").params, ("fitted", 1)).name)
print(flow_file(Game.create()).name)
"""


def test_markets_of_one_module_with_equal_parameters_are_kept_apart():
    params = environment_of("mmgym/GLFT-v0").params
    other = type("Other", (type(params),), {"__module__": type(params).__module__})(*params)
    assert other == params and inspect.getfile(type(other)) == inspect.getfile(type(params))
    assert kept_file(other) != kept_file(params)


@pytest.mark.long
def test_an_edit_of_any_source_makes_all_kept_values_stale(run_script, tmp_path):
    root = Path(baselines.__file__).resolve().parents[1]
    for package in ("mmgym", "baselines"):
        shutil.copytree(
            root / package, tmp_path / "tree" / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    script = f"FOLDER = {str(tmp_path / 'tree')!r}\n{KEEPERS}"
    before = run_script(script).split()
    assert len(set(before)) == 4
    assert run_script(script).split() == before
    edited = tmp_path / "tree" / "baselines" / "hawkes_power" / "baseline.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    after = run_script(script).split()
    assert all(one != other for one, other in zip(before[:3], after[:3], strict=True))
    assert before[3] == after[3]  # flows are solved in mmgym, which imports no baselines
    edited = tmp_path / "tree" / "mmgym" / "models" / "hawkes.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    last = run_script(script).split()
    assert all(one != other for one, other in zip(after, last, strict=True))


def test_the_digest_sees_every_file_below_a_folder(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    digests = set()
    for change in (
        lambda: (inner / "one.py").write_text("1"),
        lambda: (inner / "one.py").write_text("2"),
        lambda: (inner / "two.py").write_text("2"),
        lambda: (inner / "two.py").rename(inner / "three.py"),
        lambda: (inner / "three.py").rename(tmp_path / "three.py"),
    ):
        change()
        source_digest.cache_clear()
        digests.add(source_digest(tmp_path))
    assert len(digests) == 5
    (tmp_path / "notes.txt").write_text("no source")
    source_digest.cache_clear()
    assert source_digest(tmp_path) in digests
    source_digest.cache_clear()


# --- Expansions ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        *(
            pytest.param(row.id, SHORT[row.market], id=row.id)
            for row in ENVIRONMENTS
            if row.market not in ("hawkes_power", "stochastic_volatility", "multi_asset_glft")  # without derivatives
        ),
        pytest.param(AS, {"num_steps": 7, "utility": "cara"}, id="cara"),
        pytest.param(TICK, SHORT["tick_spread"] | {"actions": "flat"}, id="flat"),
    ],
)
def test_the_optimum_has_the_value_of_the_optimum_in_its_expansions(env_id, arguments):
    env = environment_of(env_id, **arguments)
    best, expansions = baselines.optimal_policy(env), expansions_of(env)
    assert expansions.value(best) == pytest.approx(best.optimum, rel=2e-5)
    assert expansions.around(best, np.random.default_rng(0)).value == pytest.approx(best.optimum, rel=2e-5)
    reference = baselines.reference_policy(env)
    assert expansions.value(reference) == pytest.approx(reference_value(env), rel=1e-4, abs=1e-4)


# --- Bounds of the action space --------------------------------------------------------------------------------------


def test_bounds_bind_only_where_controls_are_continuous(capsys):
    words = [word for name, value in SHORT["tick_spread"].items() for word in ("--set", f"{name}={value}")]
    assert main(["solve", "--env", TICK, *words]) == 0
    assert "bind" not in capsys.readouterr().out
    assert not baselines.optimal_policy(TICK, **SHORT["tick_spread"]).binding.any()
    assert main(["solve", "--env", AS, "--set", "num_steps=5", "--set", "max_depth=0.7"]) == 0
    assert "the bounds of the action space bind in" in capsys.readouterr().out


def test_the_share_of_clipped_decisions_is_that_of_played_episodes(check_mean):
    arguments = {"num_steps": 20, "max_depth": 0.9}
    policy = baselines.paper_policies(AS, **arguments)["hjb"]
    share = clipped_share(AS, policy, **arguments)
    score = baselines.score(AS, policy, **arguments)
    assert score.clipped == share
    wanted = baselines.paper_policies(AS, num_steps=20)["hjb"]  # the same quotes in a box that is wide enough
    plain = environment_of(AS, num_steps=20)
    rows, count = baselines.rollout(AS, policy, episodes=2_000, seed=1, **arguments), 2_000
    observation = np.stack([rows["step"] / 20, rows["inventory"] / 10.0], axis=1).astype(np.float32)
    _, cells = baselines.catalogue.problem_of(plain).locate(observation)
    beyond = (wanted.controls[rows["step"], cells] > 0.9).any(axis=1)
    shares = beyond.reshape(count, 20).mean(axis=1)
    assert 0.01 < share < 0.99
    check_mean(shares, share, alarms=1e-3)
    table = baselines.score_table({"hjb": score})
    assert table.loc["hjb", "method"] == f"exact, clipped {100.0 * share:.2g} %"
    assert clipped_share(AS, wanted, num_steps=20) == 0.0
    free = baselines.score(AS, wanted, num_steps=20)
    assert baselines.score_table({"hjb": free}).loc["hjb", "method"] == "exact"
    assert baselines.score(AS, lambda seen: np.zeros((len(seen), 2)), markov=True, num_steps=20).clipped is None


@pytest.mark.long
def test_the_clipped_share_of_corollary_3_in_hawkes_flow():
    """Counted from the closed form and the box of the docstring: at most 4 / fill_decay beyond the half-spread."""
    arguments = {"horizon": 10.0, "num_steps": 40}
    policy = baselines.paper_policies(FLOW, **arguments)["corollary_3"]
    share = clipped_share(FLOW, policy, **arguments)
    env = environment_of(FLOW, **arguments)
    p = env.params
    rows = baselines.rollout(FLOW, policy, episodes=300, seed=77, **arguments)
    state = (p.horizon - rows["time"], rows["inventory"], rows["buy_rate"], rows["sell_rate"])
    depths = closed_forms.corollary_3(p, *(np.asarray(column) for column in state))
    beyond = (depths > p.half_spread + 4.0 / np.array([p.fill_decay_sell, p.fill_decay_buy]) + 1e-6).any(axis=1)
    by_episode = beyond.astype(float)
    counts = rows.assign(beyond=by_episode).groupby("episode")["beyond"].agg(["sum", "count"])
    error = (counts["sum"] - share * counts["count"]).std() / counts["count"].mean() / math.sqrt(200)
    assert 0.0 < share < 1.0
    assert abs(by_episode.mean() - share) < stats.norm.isf(0.5e-3) * error * math.sqrt(1.0 + 200 / 300)
    best = baselines.optimal_policy(FLOW, **SHORT["hawkes_flow"])
    assert clipped_share(FLOW, best, **SHORT["hawkes_flow"]) == 0.0


def test_what_is_kept_is_made_again_whatever_its_damage(monkeypatch, tmp_path):
    """A value with its error and the name of a policy, as the Hawkes markets keep them: every byte changed in turn."""
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))
    params, made = gymnasium.make(FLOW).unwrapped.params, []

    def make_pair():
        made.append("value")
        return {"value": [1.25, 0.5]}

    def make_name():
        made.append("name")
        return {"name": "filtered", "lower": 2.5}

    def keep():
        pair = kept(params, "pair", make_pair, is_sample("value", 2))
        named = kept(params, "name", make_name, is_named(["filtered", "constant"]))
        return pair["value"].tolist(), str(named["name"]), float(named["lower"])

    expected = ([1.25, 0.5], "filtered", 2.5)
    assert keep() == keep() == expected
    assert made == ["value", "name"]
    files = sorted((tmp_path / "solutions").iterdir())
    assert len(files) == 2
    again = 0
    for file in files:
        content = file.read_bytes()
        for place in range(len(content)):
            file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
            made.clear()
            assert keep() == expected
            again += bool(made)
        for length in (0, 1, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:length])
            assert keep() == expected
    assert again > 0.5 * sum(len(file.read_bytes()) for file in files)


@pytest.mark.parametrize(
    "arrays",
    [
        {"value": [1.0]},
        {"value": [1.0, 2.0, 3.0]},
        {"value": [math.nan, 1.0]},
        {"value": ["1", "2"]},
        {"other": [1.0, 2.0]},
    ],
)
def test_what_is_kept_but_does_not_fit_is_made_again(monkeypatch, tmp_path, arrays):
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))
    params = gymnasium.make(FLOW).unwrapped.params
    save_arrays(kept_file(params, "pair"), {name: np.asarray(value) for name, value in arrays.items()})
    assert kept(params, "pair", lambda: {"value": [3.0, 4.0]}, is_sample("value", 2))["value"].tolist() == [3.0, 4.0]
