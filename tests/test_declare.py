"""What a declaration refuses, by the names of function and state; and the third-party package, played and solved."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, NamedTuple

import numpy as np
import pytest
import yaml

from mmgym import arguments, declare
from mmgym.agents.benchmark import load_benchmark, plan
from mmgym.agents.cli import main
from mmgym.baselines.declared import DeclaredProblem
from mmgym.baselines.frozen import Functional
from mmgym.parameters import Integer, Real, create

PACKAGE = Path(__file__).parent / "third_party"


class Params(NamedTuple):
    """Of a small market."""

    slope: Annotated[float, Real(1.0, -10.0, 10.0)]
    limit: Annotated[int, Integer(2, 0, 10**7)]
    horizon: Annotated[float, Real(1.0, 0.1, 10.0)]
    num_steps: Annotated[int, Integer(3, 1, 10)]


def intensity(p, u):
    return 1.0 - p.slope * u.depth


def steep(p, x, u):
    return 1.0 / (1.0 - x.held) if x.held != 1 else np.inf


def further(x):
    return x.held + 1


def room(p, x):
    return x.held < p.limit


def pays(x, u):
    return np.log(x.held + 1.5) if x.held != -2 else np.nan


def never(x, entry):
    return x.held != 1


def jump(x, u):
    return x.held + u.order


def small(**changes):
    """A declaration with changes of it."""
    parts = {
        "name": "small",
        "params": Params,
        "coordinates": [declare.Coordinate("held", lambda p: -p.limit, lambda p: p.limit)],
        "controls": [declare.Box("depth", 0.0, 1.0)],
        "events": [declare.Event("fill", intensity, further, when=room)],
        "policies": {"still": lambda p, x, n: (0.5,)},
    }
    return declare.Market(**{**parts, **changes})


CHOICE = {
    "controls": [declare.Choice("order", -1, 1)],
    "events": [declare.Event("fill", lambda p: p.slope, further, when=room)],
}

# what is wrong: changes of the declaration, arguments, and words of the error
WITH_PARAMETERS = {
    "an effect that leaves the ranges": (
        {"events": [declare.Event("fill", intensity, further)]}, {}, "further.*held 2 to held 3"
    ),
    "a negative intensity": ({}, {"slope": 2.0}, "intensity at held -2 with depth 0.75 is -0.5"),
    "an infinite intensity": (
        {"events": [declare.Event("fill", steep, further, when=room)]}, {}, "steep at held 1.*inf"
    ),
    "a payoff that is not a number": (
        {"events": [declare.Event("fill", intensity, further, pays, room)]}, {}, "pays at held -2.*nan"
    ),
    "a mask without an action": (
        {**CHOICE, "controls": [declare.Choice("order", -1, 1, allowed=never)]}, {},
        "never at held 1 allows no entry of order"
    ),
    "an impulse out of the ranges": (
        {**CHOICE, "impulse": declare.Impulse(jump, lambda u: 0.0)}, {}, "jump leads from held -2 to held -3"
    ),
    "an impulse that pays NaN": (
        {**CHOICE, "impulse": declare.Impulse(lambda x: x.held, pays)}, {}, "pays at held -2 with order -1 is nan"
    ),
    "a start outside": ({"start": lambda p: (5,)}, {}, "start = .*within the ranges"),
    "probabilities": ({"start": lambda p: [((0,), 0.5)]}, {}, "sum to 1"),
    "bounds": ({"controls": [declare.Box("depth", 1.0, 0.0)]}, {}, "depth from 1 to 0"),
    "a mid that runs with the clock": ({"mid": lambda x: 2.0 * x.step}, {}, "lambda.* at held -2 is not at step 1"),
    "a variance": ({"variance": lambda x: -1.0}, {}, "variance|lambda.*>= 0"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_refused_with_parameters(name):
    changes, arguments, words = WITH_PARAMETERS[name]
    environment = small(**changes).environment
    with pytest.raises(ValueError, match=words):
        environment(**arguments)


def test_refused_as_stated():
    two = [declare.Coordinate("held", 0, 1)] * 2
    for changes, words in (
        ({"name": "two words"}, "one word"),
        ({"coordinates": two}, "held"),
        ({"coordinates": [declare.Coordinate("mid", 0, 1)]}, "mid"),
        ({"controls": []}, "controls are missing"),
        ({"impulse": declare.Impulse(jump, pays)}, "Choice"),
        ({"events": [declare.Event("fill", lambda p, q: 1.0, further)]}, r"\(p, q\).*p, x, u"),
        ({"events": [declare.Event("fill", intensity, further, counts="both")]}, "counts = 'both'"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**changes)


@pytest.mark.long
def test_too_many_states_and_choices():
    with pytest.raises(MemoryError, match="held, other have 4,001 x 4,001 = 16,008,001 states, allowed are 5,000,000"):
        small(coordinates=[
            declare.Coordinate("held", 0, 4000), declare.Coordinate("other", 0, 4000)
        ]).states(create(Params, {}))  # fmt: skip
    wide = small(**{**CHOICE, "controls": [declare.Choice("order", 0, 10**6)]})
    with pytest.raises(MemoryError, match="order have 1,000,001 combinations, allowed are 100,000"):
        _ = DeclaredProblem(wide, create(Params, {})).choices


@pytest.mark.long
def test_what_does_not_fit_into_memory_is_refused_beforehand(monkeypatch):
    params = create(Params, {"limit": 1000})
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 50_000}
    monkeypatch.setattr(arguments, "os", SimpleNamespace(sysconf=pages.get))
    market = small()
    with pytest.raises(MemoryError, match=r"what 1 events do in 2,001 states would take .*lower the ranges of held"):
        market.transitions(params)
    pages["SC_PHYS_PAGES"] = 300_000
    market.transitions(params)
    with pytest.raises(MemoryError, match="one-step law of 2,001 states x 1 events x 1 controls would take"):
        DeclaredProblem(market, params)
    pages["SC_PHYS_PAGES"] = 600_000
    problem = DeclaredProblem(market, params)
    many = Functional(gain=1.0, exponents=1j * np.arange(10.0))
    with pytest.raises(MemoryError, match="2,001 states x 1 events x 10 exponents would take"):
        problem.backward(0, np.arange(3), np.zeros((3, 1)), np.ones((2001, 10), complex), many)
    choices = small(**{**CHOICE, "controls": [declare.Choice("order", -1, 1), declare.Choice("size", 1, 9)]})
    with pytest.raises(MemoryError, match=r"27 combinations of choices x 2,001 states would take .*of order, size"):
        _ = DeclaredProblem(choices, params).choices


@pytest.mark.long
def test_checks_do_not_keep_the_numbers_of_all_controls(monkeypatch):
    """Intensities of millions of states under all corners of boxes would not fit into memory: a part at a time."""
    kept, find = [], declare.declared_kernels.find_sampled_rates
    monkeypatch.setattr(declare, "AT_ONCE", 10)
    monkeypatch.setattr(declare.declared_kernels, "find_sampled_rates", lambda *a: kept.append(a[-1].size) or find(*a))
    market = small(controls=[declare.Box("depth", 0.0, 1.0), declare.Box("other", 0.0, 1.0)])
    market.transitions(create(Params, {}))
    assert kept == [10, 10] * 3  # at three steps, 4 controls x 5 states
    with pytest.raises(ValueError, match=r"intensity at held -2 with depth 1, other 0 is -0.5"):
        market.transitions(create(Params, {"slope": 1.5}))


@pytest.mark.long
def test_a_wrong_intensity_between_the_checked_points():
    narrow = small(events=[declare.Event("fill", lambda u: abs(u.depth - 0.3) - 0.01, further, when=room)])
    problem = DeclaredProblem(narrow, create(Params, {}))
    with pytest.raises(ValueError, match=r"held -2 with the controls \[0.3\] is -0.01"):
        problem.backward(0, np.arange(5), np.full((5, 1), 0.3), np.zeros((5, 1)), problem.criterion)


TINY = {"n_envs": 4, "n_timesteps": 32, "n_steps": 8, "batch_size": 16, "gamma": 1.0}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, caplog):
    """Runs ``mmgym``: what it prints, and its log; an error is among what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PACKAGE)

    def run(line, status=0):
        caplog.clear()
        assert main(line.split()) == status
        return "".join(capsys.readouterr()) + caplog.text

    return run


@pytest.mark.long
def test_every_command_takes_a_market_of_somebody_else(command):
    module, plain = "mylab.linear_fills", "mylab/LinearFills-v0"
    env = f"--env {module}:{plain} --set num_steps=4 --set horizon=1.0 --set limit=2"
    Path("mine.yml").write_text(yaml.safe_dump({"algorithm": "ppo", "default_box": TINY}))
    assert "mine.yml has no entry mylab/LinearFills-v0: training takes default_box" in command(f"train mine.yml {env}")
    Path("mine.yml").write_text(yaml.safe_dump({"algorithm": "ppo", plain: TINY}))
    assert "default" not in command(f"train mine.yml {env} --folder other")
    assert "training takes default_box" in command(f"train exact_gradient {env} --timesteps 2")
    assert "no settings for 'mylab/LinearFills-v0'" in command(f"train dqn {env}", 2)
    runs = f"runs/mylab-LinearFills-v0/ppo-0 runs/mylab-LinearFills-v0/exact_gradient-0 {env}"
    assert "exact_gradient-0" in command(f"score optimal constant {runs}")
    assert "optimum" in command(f"solve {env}")
    assert "mylab/LinearFills-v0/optimal-v0" in command(f"record optimal --episodes 2 --folder data {env}")
    market = {"arguments": {"num_steps": 4, "limit": 2}, "algorithms": ["mine.yml"], "policies": []}
    for name in (plain, f"{module}:{plain}"):
        Path(f"{len(name)}.yml").write_text(yaml.safe_dump({"seeds": [0], "environments": {name: market}}))
    refused = command(f"benchmark {len(module) + 1 + len(plain)}.yml", 2)
    assert f"mmgym --import {module} ..." in refused
    assert len(plan(load_benchmark(f"{len(plain)}.yml"))) == 2


@pytest.mark.long
def test_throughput_and_benchmark_of_a_market_of_somebody_else(command, monkeypatch):
    assert "end to end" in command("throughput --env mylab.linear_fills:mylab/LinearFills-v0 --seconds 0.01")
    market = {"arguments": {"num_steps": 4, "limit": 2}, "algorithms": ["mine.yml"], "policies": []}
    Path("mine.yml").write_text(yaml.safe_dump({"algorithm": "ppo", "default_box": TINY}))
    Path("b.yml").write_text(yaml.safe_dump({"seeds": [0], "environments": {"mylab/LinearFills-v0": market}}))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    assert "mine" in command("--import mylab.linear_fills benchmark b.yml --folder found --workers 1")


@pytest.mark.long
def test_third_party_package_tests_itself():
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PACKAGE / "tests")],
        cwd=PACKAGE, env={**os.environ, "PYTHONPATH": str(PACKAGE)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout


INTERACTIVE = """
import sys
source = open(PAGE).read().replace("mylab/LinearFills-v0", "typed/LinearFills-v0")
del sys.modules["__main__"].__file__  # as in a notebook
exec(source)
from mmgym.baselines import optimal_policy
print(optimal_policy("typed/LinearFills-v0", limit=2, num_steps=3).optimum)
"""


@pytest.mark.long
def test_a_market_that_is_typed_in_is_solved_and_not_kept(run_script):
    page = PACKAGE / "mylab" / "linear_fills.py"
    assert float(run_script(f"PAGE = {str(page)!r}\n{INTERACTIVE}", timeout=180.0)) > 0.0
