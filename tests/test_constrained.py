"""Risk-constrained quoting: model-file figures, brute force over all schedules, a dense linear program, policies."""

import copy
import itertools
import json
import math
import random
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
import yaml
from scipy.optimize import linprog
from scipy.sparse import lil_array
from scipy.stats import binomtest

from mmgym import baselines
from mmgym.agents.cli import main
from mmgym.agents.config import read_yaml
from mmgym.baselines.catalogue import environment_of, problem_of
from mmgym.baselines.constrained import (
    Chain,
    FiniteMarket,
    Limits,
    Quotes,
    RiskLimit,
    ShortfallLimit,
    constrain,
    environment,
    evaluate_schedule,
    limit_risks,
    limit_verdict,
    limited_risks,
    read_problem,
    schedule_policy,
)
from mmgym.baselines.constrained.lattice import Lattice
from mmgym.baselines.constrained.linear_program import LinearProgram
from mmgym.baselines.constrained.model import as_schedule, best_unlimited, evaluate_table
from mmgym.baselines.constrained.problem import AgentSettings
from mmgym.baselines.constrained.schedule_program import ScheduleProgram
from mmgym.baselines.constrained.schedule_proof import prove_schedule
from mmgym.baselines.constrained.schedule_search import search_schedule
from mmgym.baselines.risk import path_risks, pnl_distribution

# Reference mathematics, section 6: without limits, linear program, optimum, P(loss), P(drawdown)
FIGURES = {
    "constrain_3_2_2": (1.828125, 1.7387118056, Fraction(221, 128), Fraction(81, 4096), Fraction(45, 1024)),
    "constrain_3_3_3": (1.828125, 1.7898706897, Fraction(227, 128), Fraction(81, 4096), Fraction(43, 1024)),
    "constrain_4_3_4": (2.578125, 2.5014005636, Fraction(4997, 2048), Fraction(1263, 65536), Fraction(475, 16384)),
}
SMALL = {
    "market": {
        "num_steps": 2,
        "fill_probabilities": {1: "3/8", 2: "1/4"},
        "mid_moves": {-2: "1/2", 2: "1/2"},
        "inventory_limit": 1,
        "terminal_penalty": 0.5,
    },
    "limits": {"loss": {"amount": 1, "probability": "1/12"}, "drawdown": {"amount": 1, "probability": "1/5"}},
}

ONLY_RANDOMISED = {  # limits that no schedule keeps to
    "market": {
        **SMALL["market"],
        "initial_inventory": 1,
        "fill_probabilities": {1: "3/8", 3: "1/8"},
        "inventory_limit": 2,
    },
    "limits": {
        "loss": {"amount": 1, "probability": "3/16"},
        "drawdown": {"amount": 2, "probability": "17/128"},
    },
}


def changed(path, value, base=SMALL):
    content = copy.deepcopy(base)
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return content


def shipped_content(name):
    return read_yaml(name, ("constrain_",))[0]


def shipped(name):
    return read_problem(shipped_content(name), name)


@pytest.mark.parametrize("name", FIGURES)
def test_bounds_of_the_model_file(name):
    chain = shipped(name).chain
    unlimited, bound, optimum, _, _ = FIGURES[name]
    assert float(evaluate_table(chain, best_unlimited(chain)).value) == unlimited
    program = LinearProgram(chain)
    randomised = program.solve()
    assert randomised.value == pytest.approx(bound, abs=1e-10)  # printed to ten digits, the last one cut
    assert randomised.value >= optimum
    assert randomised.solved
    first = search_schedule(chain, [as_schedule(best_unlimited(chain))], time.perf_counter() + 20.0)
    assert evaluate_table(chain, first).value == optimum  # the local search finds the best, without a certificate
    marginal = evaluate_schedule(chain, randomised.schedule)  # same law of (step, inventory), hence the same objective
    assert float(marginal.value) == pytest.approx(bound, abs=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["constrain_3_2_2", "constrain_3_3_3", pytest.param("constrain_4_3_4", marks=pytest.mark.slow)]
)
def test_certified_optima_of_the_model_file(name):
    solution = constrain(shipped(name))
    _, _, optimum, loss, drawdown = FIGURES[name]
    assert solution.schedule.status == "optimal"
    assert solution.schedule.evaluation.value == optimum == solution.bound
    assert solution.gap == 0
    # optimal schedules need not be unique: the probabilities of the model file are those of one
    assert solution.schedule.evaluation.risks["loss"] <= Fraction(1, 50)
    assert solution.schedule.evaluation.risks["drawdown"] <= Fraction(1, 20)
    assert loss <= Fraction(1, 50)
    assert drawdown <= Fraction(1, 20)
    assert solution.schedule.evaluation == by_paths(solution.problem.chain, solution.schedule.schedule)


def by_paths(chain, table):
    """Value and risk of a schedule, path by path: a second method, from the definitions."""
    market, limits = chain.market, chain.limits
    value, loss, drawn, broken = Fraction(0), Fraction(0), Fraction(0), Fraction(0)
    paths = [
        (Fraction(1), market.initial_inventory, (0,), Fraction(0))
    ]  # probability, inventory, wealth so far, penalties
    for n in range(market.num_steps):
        longer = []
        for probability, q, wealth, penalty in paths:
            bid, ask = table[n, q]
            events = [
                (1, bid, market.fill_probabilities.get(bid, Fraction(0))),
                (-1, ask, market.fill_probabilities.get(ask, Fraction(0))),
            ]
            events.append((0, 0, 1 - events[0][2] - events[1][2]))
            for change, gain, fill in events:
                for move, p in market.mid_moves.items():
                    if fill * p:
                        after = q + change
                        w = wealth[-1] + gain + after * move
                        cost = penalty + market.running_penalty * after**2
                        longer.append((probability * fill * p, after, (*wealth, w), cost))
        paths = longer
    for probability, q, wealth, penalty in paths:
        value += probability * (wealth[-1] - penalty - market.terminal_penalty * q**2)
        peaks = itertools.accumulate(wealth, max)
        largest = max(peak - w for peak, w in zip(peaks, wealth, strict=True))
        loss += probability * (limits.loss is not None and wealth[-1] <= -limits.loss.amount)
        drawn += probability * (limits.drawdown is not None and largest > limits.drawdown.amount)
        broken += probability * (limits.floor is not None and min(wealth) < -limits.floor.amount)
    named = {"loss": loss, "drawdown": drawn, "floor": broken}
    if limits.cvar is not None:  # the mean of the worst share of outcomes, one by one
        left, named["cvar"] = 1 - limits.cvar.confidence, Fraction(0)
        for w, probability in sorted((wealth[-1], probability) for probability, _, wealth, _ in paths):
            named["cvar"] -= w * min(probability, left) / (1 - limits.cvar.confidence)
            left -= min(probability, left)
    return type(evaluate_table(chain, table))(value, {name: named[name] for name in chain.bounds})


def all_schedules(chain):
    cells = [(n, q) for n, inventories in enumerate(chain.reachable_inventories) for q in inventories]
    if chain.limits.time_only:
        bound = chain.inventory_limit
        for choice in itertools.product(chain.quotes[0], repeat=chain.market.num_steps):
            yield {(n, q): Quotes(choice[n].bid * (q < bound), choice[n].ask * (q > -bound)) for n, q in cells}
        return
    for choice in itertools.product(*(chain.quotes[q] for _, q in cells)):
        yield dict(zip(cells, choice, strict=True))


def occupancy_program(chain):
    """The linear program over ``x(n, s, a)`` itself, all states and pairs of quotes: a second method. None: infeasible.

    A conditional value at risk is tried at every whole number that a final loss can be.
    """
    row = {(n, state): i for i, (n, state) in enumerate((n, s) for n, layer in enumerate(chain.layers) for s in layer)}
    unknowns = [
        (n, s, a) for n, layer in enumerate(chain.layers[:-1]) for s in layer for a in chain.quotes[s.inventory]
    ]
    unknowns += [(chain.market.num_steps, s, None) for s in chain.layers[-1]]
    flow, worth = lil_array((len(row), len(unknowns))), np.zeros(len(unknowns))
    for k, (n, state, pair) in enumerate(unknowns):
        flow[row[n, state], k] = 1.0
        if pair is None:
            worth[k] = float(chain.final_reward(state))
            continue
        for after, parts in chain.successors(state, pair):
            flow[row[n + 1, after], k] -= parts / chain.denominator
            worth[k] += parts / chain.denominator * float(chain.step_reward(after.inventory))
    start = np.eye(len(row))[row[0, chain.start]]

    def cost(name, state, t):
        if name == "cvar":
            return t + max(-state.wealth - t, 0) / float(1 - chain.limits.cvar.confidence)
        return float(chain.violates(name, state))

    best = None
    for t in {-state.wealth for state in chain.layers[-1]} if chain.limits.cvar else {0}:
        rows = [[cost(name, s, t) if pair is None else 0.0 for _, s, pair in unknowns] for name in chain.bounds]
        limits = [float(bound) for bound in chain.bounds.values()]
        optimum = linprog(-worth, A_ub=rows or None, b_ub=limits or None, A_eq=flow.tocsr(), b_eq=start)
        if optimum.status == 0 and (best is None or -optimum.fun > best):
            best = -optimum.fun
    return best


def random_chain(seed):
    draw = random.Random(seed)
    moves = draw.choice(
        [
            {-1: Fraction(1, 2), 1: Fraction(1, 2)},
            {-2: Fraction(1, 4), 0: Fraction(1, 4), 1: Fraction(1, 2)},
            {-1: Fraction(3, 8), 2: Fraction(5, 8)},
        ]
    )
    market = FiniteMarket(
        num_steps=2,
        fill_probabilities={1: Fraction(3, 8), draw.choice([2, 3]): Fraction(1, 8)},
        mid_moves=moves,
        inventory_limit=draw.choice([1, 2]),
        terminal_penalty=Fraction(draw.randint(0, 3), 2),
        running_penalty=Fraction(draw.randint(0, 2), 4),
        initial_inventory=draw.choice([0, 0, 1]),
    )
    return Chain(
        market,
        Limits(
            loss=RiskLimit(draw.randint(1, 2), Fraction(draw.randint(1, 12), 64)),
            drawdown=RiskLimit(draw.randint(0, 2), Fraction(draw.randint(4, 24), 64)) if draw.random() < 0.8 else None,
            floor=RiskLimit(draw.randint(0, 2), Fraction(draw.randint(8, 32), 64)) if seed % 3 == 1 else None,
            cvar=ShortfallLimit(Fraction(draw.choice([0, 3, 5]), 6), Fraction(draw.randint(1, 6), 2))
            if seed % 3 == 2
            else None,
            inventory=draw.choice([None, 1]),
            spread=draw.choice([None, (2, 4)]),
            time_only=seed % 4 == 3,
        ),
    )


@pytest.mark.parametrize("seed", range(12))
def test_certified_optimum_is_the_best_of_all_schedules(seed):
    """Brute force: every schedule, path by path; and the smallest probabilities where none keeps to the limits."""
    chain = random_chain(seed)
    best, least = None, dict.fromkeys(chain.bounds, Fraction(99))
    for table in all_schedules(chain):
        evaluation = by_paths(chain, table)
        assert evaluation == evaluate_table(chain, table)
        least = {name: min(p, evaluation.risks[name]) for name, p in least.items()}
        if evaluation.meets(chain) and (best is None or evaluation.value > best):
            best = evaluation.value
    program = ScheduleProgram(chain)
    result = program.solve(time_limit=30.0)
    bound = LinearProgram(chain).solve()
    for name, smallest in least.items():
        assert program.least(name, []) == ("optimal", smallest)
        assert LinearProgram(chain).least(name, []) <= smallest + Fraction(1, 10**9)
    reference = occupancy_program(chain)
    assert (bound is None) == (reference is None)
    if bound is not None:
        assert bound.value == pytest.approx(reference, abs=1e-6)  # HiGHS keeps rows to 1e-7
        assert bound.value <= bound.bound <= bound.value + 1e-8
    proof = prove_schedule(chain, np.zeros(len(chain.bounds)), None, time.perf_counter() + 30.0)
    assert proof.complete
    if best is None:
        assert (result.status, proof.table) == ("infeasible", None)
        return
    assert proof.bound == best == by_paths(chain, proof.table).value
    assert by_paths(chain, proof.table).meets(chain)
    assert result.status == "optimal"
    assert result.evaluation.value == best
    assert bound.value >= best - Fraction(1, 10**9)
    searched = search_schedule(chain, [as_schedule(best_unlimited(chain))], time.perf_counter() + 10.0)
    assert evaluate_table(chain, searched).value == best


def test_limit_on_shortfall_that_asks_for_a_profit():
    """The best of all schedules where only two reach the CVaR asked, exactly, and every other limit is 0."""
    market = FiniteMarket(
        num_steps=4,
        fill_probabilities={2: Fraction(1, 15), 3: Fraction(3, 7)},
        mid_moves={1: Fraction(1)},
        inventory_limit=1,
        terminal_penalty=Fraction(2, 3),
        initial_inventory=1,
    )
    never = {"drawdown": RiskLimit(4, Fraction(0)), "floor": RiskLimit(2, Fraction(0))}
    cvar = ShortfallLimit(Fraction(1, 5), Fraction(-64315, 9604))
    chain = Chain(market, Limits(**never, cvar=cvar, time_only=True))
    worths = [by_paths(chain, table) for table in all_schedules(chain)]
    kept = [worth.value for worth in worths if worth.meets(chain)]
    assert len(kept) == 2
    proof = prove_schedule(chain, np.zeros(3), None, math.inf)
    assert proof.complete
    assert by_paths(chain, proof.table).value == max(kept)
    assert proof.bound == float(max(kept))


def test_some_random_chains_are_infeasible_and_some_are_not():
    statuses = {ScheduleProgram(random_chain(seed)).solve().status for seed in range(12)}
    assert statuses == {"optimal", "infeasible"}


def test_time_limit_returns_the_best_schedule_and_its_gap(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # whatever else the machine does
    content = shipped_content("constrain_4_3_4")
    content["market"]["num_steps"] = 8
    content["limits"] |= {"loss": {"amount": 5, "probability": "1/50"}, "drawdown": {"amount": 6, "probability": "1/8"}}
    started = time.perf_counter()
    solution = constrain(read_problem(content), time_limit=2.0)
    assert time.perf_counter() - started < 2.2
    assert solution.schedule.status == "feasible"
    assert solution.schedule.evaluation.meets(solution.problem.chain)
    assert solution.randomised.bound >= solution.bound >= solution.schedule.evaluation.value
    assert solution.gap == solution.bound - solution.schedule.evaluation.value > 0
    assert "gap" in solution.comparison().to_string()


@pytest.mark.parametrize("stop", [1, 3])
def test_bound_of_a_search_that_was_stopped(monkeypatch, stop):
    """At a few nodes the clock stops: what is left is worth no more than the bound (the optimum by CP-SAT)."""
    chain = shipped("constrain_3_2_2").chain
    ticks = itertools.count()
    monkeypatch.setattr("mmgym.baselines.constrained.schedule_proof.time.perf_counter", lambda: next(ticks) // 20)
    proof = prove_schedule(chain, np.zeros(2), None, stop)
    optimum = FIGURES["constrain_3_2_2"][2]
    assert not proof.complete
    assert float(optimum) <= proof.bound < 1.828125
    assert proof.table is None or by_paths(chain, proof.table).meets(chain)


@pytest.mark.long
def test_five_steps_are_certified():
    """Local searches with other seeds find nothing better."""
    content = shipped_content("constrain_4_3_4")
    content["market"]["num_steps"] = 5
    solution = constrain(read_problem({**content, "environment": None}), time_limit=60.0)
    assert (solution.schedule.status, solution.gap) == ("optimal", 0)
    assert solution.schedule.evaluation == by_paths(solution.problem.chain, solution.schedule.schedule)
    assert solution.schedule.evaluation.value == Fraction(6209, 2048)
    assert solution.certificate().endswith("nodes)")
    chain = solution.problem.chain
    for seed in (1, 2):
        found = search_schedule(chain, [as_schedule(best_unlimited(chain))], time.perf_counter() + 20.0, seed=seed)
        assert by_paths(chain, found).value <= Fraction(6209, 2048)


def test_infeasible_for_every_policy_is_explained():
    content = changed("limits.loss.probability", "1/1000")
    solution = constrain(read_problem(content))
    why = solution.infeasibility
    assert why.of == "policies"
    assert why.alone["loss"] > Fraction(1, 1000)
    assert "loss: 1/1000 = 0.001 is asked" in why.text()
    assert "impossible by itself" in why.text()
    assert solution.to_dict()["status"] == "infeasible"
    relaxed = changed("limits.loss.probability", why.relaxation["loss"] + 1e-9)
    relaxed["limits"]["drawdown"]["probability"] = why.relaxation["drawdown"] + 1e-9
    assert LinearProgram(read_problem(relaxed).chain).solve() is not None


@pytest.mark.parametrize("confidence", ["9/10", "1/3", "1/10000", "0"])
def test_least_shortfall_above_the_limit(confidence):
    """In one step a policy is a mixture of quotes, and a mixture has no less shortfall than the best of them."""
    market = {**SMALL["market"], "num_steps": 1, "initial_inventory": 1, "mid_moves": {-2: "7/8", 2: "1/8"}}
    content = {"market": market, "limits": {"cvar": {"confidence": confidence, "amount": "1/4"}}}
    chain = read_problem(content).chain
    least = min(evaluate_table(chain, table).risks["cvar"] for table in all_schedules(chain))
    assert least > Fraction(1, 4)
    for parts in (("lp",), ("schedule",)):
        why = constrain(read_problem(content), parts=parts).infeasibility
        for least_risks in (why.alone, why.with_others, why.relaxation):
            assert float(least_risks["cvar"]) == pytest.approx(float(least), abs=1e-9)


def test_infeasible_for_schedules_only_is_explained():
    """A start from one lot long, where a policy that sees its wealth can trade loss for drawdown: brute force."""
    problem = read_problem(ONLY_RANDOMISED)
    solution, limits = constrain(problem), problem.chain.bounds
    why = solution.infeasibility
    assert (why.of, why.proved) == ("schedules", True)
    assert solution.schedule.status == "infeasible"
    assert solution.randomised is not None
    assert (solution.bound, solution.gap) == (None, None)
    risks = [by_paths(problem.chain, table).risks for table in all_schedules(problem.chain)]
    for name, other in (("loss", "drawdown"), ("drawdown", "loss")):
        assert why.alone[name] == min(p[name] for p in risks)
        assert why.with_others[name] == min(p[name] for p in risks if p[other] <= limits[other])
    over = min(sum(max(p[name] - limit, 0) for name, limit in limits.items()) for p in risks)
    assert sum(why.relaxation[name] - limit for name, limit in limits.items()) == over
    assert "no schedule" in why.text()
    assert "raising this limit to that is enough" in why.text()
    json.dumps(solution.to_dict())


BAD = [
    ("market.ticks", 3, "market: unknown key 'ticks': allowed are num_steps"),
    ("limit", {}, "unknown key 'limit': allowed are market, limits"),
    (
        "limits.var",
        {},
        "limits: unknown key 'var': allowed are loss, drawdown, floor, cvar, inventory, spread, time_only",
    ),
    ("limits.cvar.level", 0.95, "limits.cvar: unknown key 'level': allowed are confidence, amount"),
    ("limits.cvar", {"confidence": 1, "amount": 2}, "limits.cvar.confidence = 1 is not allowed"),
    ("limits.time_only", 1, "limits.time_only = 1 is not allowed"),
    ("limits.loss.level", 0.95, "limits.loss: unknown key 'level': allowed are amount, probability"),
    ("limits.loss.amount", 1.5, "limits.loss.amount = 1.5 is not allowed: it must be a whole number"),
    ("limits.loss.probability", "1/0", "limits.loss.probability = '1/0' is not allowed"),
    ("limits.loss.probability", 1.5, "limits.loss.probability = 1.5 is not allowed"),
    ("limits.inventory", 2, "limits.inventory = 2 is not allowed: it must be a whole number from 0 to 1"),
    ("limits.spread", [5, 9], "leaves no quotes at inventory 0: the ticks allow total spreads of 2, 3, 4"),
    ("limits.spread", 3, "limits.spread = 3 is not allowed"),
    ("market.fill_probabilities", {1.5: "3/8"}, "1.5 is not allowed: ticks must be whole numbers"),
    ("market.fill_probabilities", {"one": "3/8"}, "'one' is not allowed: ticks must be whole numbers"),
    ("market.fill_probabilities", {1: True}, "True is not allowed"),
    ("market.fill_probabilities", {1: "7/8"}, "add up to more than 1"),
    ("market.mid_moves", {1: "1/2"}, "add up to 1/2, but must add up to 1"),
    ("market.num_steps", 2.0, "num_steps = 2.0 is not allowed"),
    ("market.num_steps", 0, "num_steps = 0 is not allowed"),
    ("market.terminal_penalty", -1, "terminal_penalty = -1 is not allowed"),
    ("market.initial_inventory", 2, "initial_inventory = 2 is not allowed"),
    ("solver.time_limit", 0, "solver.time_limit = 0 is not allowed"),
    ("solver.threads", 2, "solver: unknown key 'threads': allowed are time_limit, workers"),
    ("environment.id", 3, "environment must have an id that is text"),
    ("agent.dual_rate", -1, "agent.dual_rate = -1 is not allowed"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{path}={value}" for path, value, _ in BAD])
def test_bad_input_is_named(path, value, message):
    with pytest.raises(ValueError, match=r"^test") as caught:
        read_problem(changed(path, value), "test")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [None, [], "text", {}, {"market": 3}, {"market": {"num_steps": 2}}])
def test_what_is_no_problem_is_refused(content):
    with pytest.raises(ValueError, match="keys"):
        read_problem(content)


def test_too_many_parts_for_whole_numbers_are_refused():
    content = changed("market.fill_probabilities", {1: "12345/100003"})
    content["market"]["num_steps"] = 4
    with pytest.raises(OverflowError, match=r"leave the whole numbers up to 2\^53"):
        ScheduleProgram(read_problem(content).chain)


def test_missing_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ortools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ortools", None)
    with pytest.raises(ImportError, match=r"mmgym\[constraints\]"):
        ScheduleProgram(read_problem(SMALL).chain)
    assert constrain(read_problem(SMALL), time_limit=5.0).schedule.status == "optimal"  # needs none
    solution = constrain(read_problem(ONLY_RANDOMISED), time_limit=5.0)
    assert (solution.schedule.status, solution.infeasibility.of) == ("infeasible", "schedules")
    assert "loss: 3/16 = 0.1875 is asked\n" in solution.infeasibility.text()
    assert "mmgym[constraints]" in solution.certificate()
    json.dumps(solution.to_dict())


def test_schedule_is_a_policy_of_the_environment(tmp_path):
    problem = shipped("constrain_3_2_2")
    chain, settings = problem.chain, problem.environment._replace(tick=0.5)
    arguments = {**settings.arguments, "min_depth": 0.5, "max_depth": 1.5}
    settings = settings._replace(arguments=arguments)
    table = best_unlimited(chain)
    env, policy = schedule_policy({cell: {pair: Fraction(1)} for cell, pair in table.items()}, settings, chain)
    assert policy.clipped == 0
    for (n, q), pair in table.items():
        for side, ticks in enumerate(pair):
            if ticks:
                assert policy.controls[n, q + 2, side] == pytest.approx(0.5 * ticks, abs=1e-6)
    file = baselines.write_table(policy, env, tmp_path / "schedule.npz")
    again = baselines.load_policy(file, env)
    assert baselines.score(env, again).value == baselines.score(env, policy).value
    observation, _ = env.reset(seed=3)
    done = False
    while not done:
        action, _ = again.predict(observation)
        observation, _, done, _, _ = env.step(action)
    other = {**arguments, "num_steps": 4}
    with pytest.raises(ValueError, match="3 steps and 5 states, but the environment has 4 and 5"):
        baselines.load_policy(file, settings.id, **other)
    with pytest.raises(ValueError, match="they must be the same"):
        schedule_policy({}, settings._replace(arguments=other), chain)
    with pytest.raises(ValueError, match=r"limit of 2 orders, but .* under its limits, inventories up to 1"):
        schedule_policy({}, settings, Chain(chain.market, chain.limits._replace(inventory=1)))
    double = {**arguments, "order_size": 2.0, "inventory_limit": 4.0}
    with pytest.raises(ValueError, match="orders of 2, but the finite market those of 1: set order_size to 1"):
        schedule_policy({}, settings._replace(arguments=double), chain)
    with pytest.raises(ValueError, match=r"does not start from market\.initial_inventory = 1"):
        schedule_policy({}, settings, Chain(chain.market._replace(initial_inventory=1), chain.limits))
    with pytest.raises(ValueError, match="not of 'tick_spread'"):
        baselines.load_policy(file, "mmgym/TickSpread-v0", num_steps=3)
    (tmp_path / "broken.npz").write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a readable npz file of plain arrays"):
        baselines.load_policy(tmp_path / "broken.npz", env)


def test_randomised_schedule_is_a_policy_of_the_environment(tmp_path):
    """A policy that draws between two schedules at step 0 is worth the weighted mean of both."""
    problem = shipped("constrain_3_2_2")
    chain, settings = problem.chain, problem.environment
    plain = {cell: {pair: Fraction(1)} for cell, pair in best_unlimited(chain).items()}
    low, high = Quotes(1, 1), Quotes(3, 3)
    values = []
    for first in ({low: Fraction(1)}, {high: Fraction(1)}, {low: Fraction(1, 4), high: Fraction(3, 4)}):
        env, policy = schedule_policy({**plain, (0, 0): first}, settings, chain)
        values.append(baselines.score(env, policy).value)
    assert values[2] == pytest.approx(0.25 * values[0] + 0.75 * values[1], abs=1e-12)
    file = baselines.write_table(policy, env, tmp_path / "mixed.npz", deterministic=False)
    assert baselines.score(env, baselines.load_policy(file, env)).value == pytest.approx(values[2], abs=1e-12)


def run(capsys, *arguments):
    status = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.long
def test_command_writes_what_it_prints(capsys, tmp_path):
    content = changed("environment", {"id": "mmgym/GLFT-v0", "arguments": {}})
    content["environment"]["arguments"] = {
        "horizon": 2.0, "num_steps": 2, "fill_rate": 0.9, "fill_decay": 0.6, "inventory_limit": 1.0, "min_depth": 1.0,
        "max_depth": 2.0,
    }  # fmt: skip
    content |= {"agent": {"iterations": 300}, "solver": {"time_limit": 300}}
    config = tmp_path / "two_steps.yml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    folder = tmp_path / "found"
    status, out, _ = run(capsys, "constrain", config, "--folder", folder, "--agent")
    assert status == 0
    for text in (
        "best schedule",
        "optimum, certified",
        "upper bound",
        "penalised agent",
        "played in mmgym/GLFT-v0",
        "price",
    ):
        assert text in out
    written = json.loads((folder / "solution.json").read_text())
    chain = read_problem(content).chain
    best = max((e for e in (by_paths(chain, t) for t in all_schedules(chain)) if e.meets(chain)), key=lambda e: e.value)
    assert Fraction(written["schedule"]["exact"]) == best.value == Fraction(written["bound"])
    assert written["problem"]["limits"] == content["limits"]
    assert written["versions"]["ortools"]
    assert Fraction(written["gap"]) == 0
    arguments = content["environment"]["arguments"].items()
    pairs = [word for name, value in arguments for word in ("--set", f"{name}={value}")]
    tables = [folder / f"{name}.npz" for name in ("schedule", "randomised", "agent", "lagrangian")]
    status, out, err = run(capsys, "score", "--env", "mmgym/GLFT-v0", *pairs, *tables)
    assert status == 0, err
    assert f"{written['environment']['schedule']['value']:.6g}" in out


def test_command_refuses_bad_configurations(capsys, tmp_path):
    config = tmp_path / "bad.yml"
    config.write_text(yaml.safe_dump(changed("limits.var", 1)), encoding="utf-8")
    status, _, err = run(capsys, "constrain", config)
    assert status == 2
    assert "unknown key 'var'" in err
    status, _, err = run(capsys, "constrain", tmp_path / "missing.yml")
    assert status == 2
    assert "constrain_3_2_2" in err


def test_command_explains_infeasible_limits(capsys, tmp_path):
    config = tmp_path / "strict.yml"
    config.write_text(yaml.safe_dump(changed("limits.loss.probability", "1/1000")), encoding="utf-8")
    status, out, _ = run(capsys, "constrain", config, "--folder", tmp_path / "strict")
    assert status == 0
    assert "infeasible: no policy keeps to all limits" in out
    assert json.loads((tmp_path / "strict" / "solution.json").read_text())["infeasibility"]["of"] == "policies"


@pytest.mark.long
def test_penalised_agent_keeps_to_the_limits_below_the_bound():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from mmgym.agents.lagrangian import Decisions, train_lagrangian

    chain = read_problem(changed("limits.cvar", {"confidence": "3/4", "amount": 1})).chain
    decisions = Decisions(chain)
    random_law = np.random.default_rng(0).random(decisions.allowed.shape) * decisions.allowed.numpy()
    random_law /= random_law.sum(axis=1, keepdims=True)
    functionals, slopes = decisions(torch.from_numpy(random_law))
    exact = evaluate_schedule(chain, decisions.schedule([[Fraction(p) for p in row] for row in random_law.tolist()]))
    assert functionals.tolist() == pytest.approx([float(exact.value), *map(float, exact.risks.values())], abs=1e-12)
    moved = random_law.copy()
    moved[0, :2] += [1e-6, -1e-6]
    change = (decisions(torch.from_numpy(moved))[0] - functionals) / 1e-6
    assert change.tolist() == pytest.approx((slopes[0, 0] - slopes[0, 1]).tolist(), abs=1e-7)

    chain = shipped("constrain_3_2_2").chain
    trained = train_lagrangian(chain, AgentSettings(iterations=1500))
    unlimited, bound, optimum, _, _ = FIGURES["constrain_3_2_2"]
    assert trained.evaluation.meets(chain)
    assert optimum - Fraction(1, 50) < trained.evaluation.value <= bound + 1e-9 < unlimited
    again = train_lagrangian(chain, AgentSettings(iterations=1500))
    assert again == trained


@pytest.mark.parametrize("time_only", [False, True])
@pytest.mark.parametrize("confidence", ["1/2", "9/10"])
@pytest.mark.parametrize("kind", ["cvar", "floor"])
def test_limits_that_bind(kind, confidence, time_only):
    """Limits that are the risk of some schedule, exactly: the best of all schedules, and the dense program."""
    limit = {"confidence": confidence, "amount": 0} if kind == "cvar" else {"amount": 1, "probability": 0}
    number = "amount" if kind == "cvar" else "probability"
    content = {"market": {**SMALL["market"], "num_steps": 3}, "limits": {kind: limit, "time_only": time_only}}
    if not time_only:
        content["market"]["num_steps"] = 2
    worths = sorted(
        (by_paths(read_problem(content).chain, table) for table in all_schedules(read_problem(content).chain)),
        key=lambda worth: worth.value,
    )
    middle = next(worth for worth in worths[len(worths) // 2 :] if worth.risks[kind] >= 0)
    chain = read_problem(changed(f"limits.{kind}.{number}", str(middle.risks[kind]), content)).chain
    best = max(worth.value for worth in worths if worth.meets(chain))
    assert ScheduleProgram(chain).solve().evaluation.value == best
    proof = prove_schedule(chain, np.zeros(1), None, time.perf_counter() + 30.0)
    assert (proof.complete, proof.bound, by_paths(chain, proof.table).value) == (True, best, best)
    searched = search_schedule(chain, [as_schedule(best_unlimited(chain))], time.perf_counter() + 10.0)
    assert evaluate_table(chain, searched).value == best
    bound = LinearProgram(chain).solve()
    assert bound.value == pytest.approx(occupancy_program(chain), abs=1e-6)
    assert bound.bound >= best


@pytest.mark.parametrize("name", ["constrain_3_2_2", pytest.param("constrain_10_6_8", marks=pytest.mark.long)])
def test_prices_give_a_bound_in_whole_numbers(name):
    """Weak duality by dynamic programming on the chain itself, at the linear program's prices, nothing rounded."""
    chain = shipped(name).chain
    randomised = LinearProgram(chain).solve()
    prices = {limit: Fraction(price) for limit, price in randomised.prices.items()}
    worth = {
        state: chain.final_reward(state) - sum(p for limit, p in prices.items() if chain.violates(limit, state))
        for state in chain.layers[-1]
    }
    whole = math.lcm(*(value.denominator for value in worth.values()))
    values = {state: int(value * whole) for state, value in worth.items()}
    for layer in reversed(chain.layers[:-1]):
        values = {
            state: max(
                sum(parts * values[after] for after, parts in chain.successors(state, pair))
                for pair in chain.quotes[state.inventory]
            )
            for state in layer
        }
        whole *= chain.denominator
    assert not chain.market.running_penalty
    dual = Fraction(values[chain.start], whole) + sum(prices[limit] * bound for limit, bound in chain.bounds.items())
    assert randomised.value - 1e-11 <= dual <= randomised.bound <= randomised.value + 1e-9


def test_prices_are_derivatives_of_the_bound():
    content = shipped_content("constrain_3_2_2")
    randomised, moved = LinearProgram(shipped("constrain_3_2_2").chain).solve(), {}
    for name in ("loss", "drawdown"):
        probability = Fraction(content["limits"][name]["probability"]) + Fraction(1, 10**5)
        other = LinearProgram(read_problem(changed(f"limits.{name}.probability", str(probability), content)).chain)
        moved[name] = (other.solve().value - randomised.value) * 10**5
    assert randomised.prices == pytest.approx(moved, abs=1e-6)


@pytest.mark.long
def test_ten_steps_and_five_ticks(monkeypatch):
    """25,272 states: value from exact masses of the mixture's quotes; a schedule near the bound; no CP-SAT, and why."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    started = time.perf_counter()
    solution = constrain(shipped("constrain_10_6_8"), time_limit=8.0)
    assert time.perf_counter() - started < 8.8
    assert Lattice(solution.problem.chain).count_states() == sum(map(len, solution.problem.chain.layers)) == 25_272
    assert solution.randomised.solved
    assert float(solution.marginal.value) == pytest.approx(solution.randomised.value, abs=1e-8)
    assert solution.schedule.status == "feasible"
    assert solution.schedule.evaluation == evaluate_table(solution.problem.chain, solution.schedule.schedule)
    assert 0 < solution.gap < 0.2
    assert "2^53" in solution.certificate()


def test_what_would_not_fit_into_memory_is_named():
    ten_steps = shipped_content("constrain_10_6_8")
    content = changed("market", {**ten_steps["market"], "mid_moves": {-999: 1}, "inventory_limit": 60}, ten_steps)
    with pytest.raises(MemoryError, match=r"wealths x 10 drawdowns x 121 inventories would take .* lower num_steps"):
        constrain(read_problem(content), time_limit=1.0)


def test_only_one_part(capsys, tmp_path):
    config = tmp_path / "small.yml"
    config.write_text(
        yaml.safe_dump(changed("limits.time_only", True, changed("limits.loss.probability", "1/6"))), encoding="utf-8"
    )
    for only, shown, hidden in (("lp", "linear program", "best schedule"), ("schedule", "best schedule", "linear")):
        status, out, _ = run(capsys, "constrain", config, "--only", only, "--folder", tmp_path / only)
        assert status == 0
        assert "quotes by step alone" in out
        assert shown in out
        assert hidden not in out
    written = json.loads((tmp_path / "schedule" / "solution.json").read_text())
    chain = read_problem(changed("limits.time_only", True, changed("limits.loss.probability", "1/6"))).chain
    worths = [by_paths(chain, table) for table in all_schedules(chain)]
    assert Fraction(written["schedule"]["exact"]) == max(worth.value for worth in worths if worth.meets(chain))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["loss", "drawdown", "floor", "cvar"])
def test_smoothed_risks_of_an_environment(monkeypatch, kind):
    """Value against simulation (false alarms: 1e-5 each), with little smoothing; gradient against differences."""
    monkeypatch.setattr(environment, "SMOOTHING", 0.07)
    settings = shipped("constrain_3_2_2").environment
    env = environment_of(settings.id, **settings.arguments, initial_inventory=1.0)
    problem, policy = problem_of(env), baselines.optimal_policy(env)
    law, worst = pnl_distribution(env, policy), 1.2

    def risk_of():
        if kind in ("drawdown", "floor"):
            return environment._PathRisk(problem, kind, 2.0, law.mean, law.std)
        return environment._FinalRisk(problem, kind, 2.0 if kind == "loss" else worst, law.mean, law.std, 0.9)

    risk = risk_of()
    paths = path_risks(env, policy, 20_000, seed=3)
    happened = {
        "loss": paths.gains <= -2.0,
        "drawdown": paths.drawdowns > 2.0,
        "floor": paths.lowest < -2.0,
        "cvar": worst + np.maximum(-paths.gains - worst, 0.0) / 0.1,
    }[kind]
    spread = 4.5 * happened.std() / math.sqrt(len(happened))
    assert risk.value(policy.controls) == pytest.approx(
        happened.mean(), abs=spread + (0.02 if kind == "cvar" else 1e-3)
    )
    monkeypatch.setattr(environment, "SMOOTHING", 0.2)
    risk = risk_of()
    slopes = risk.gradient(policy.controls)
    for cell in ((0, 3, 1), (1, 2, 0), (2, 4, 0), (2, 1, 1)):
        up, down = policy.controls.copy(), policy.controls.copy()
        up[cell] += 1e-4
        down[cell] -= 1e-4
        assert slopes[cell] == pytest.approx((risk.value(up) - risk.value(down)) / 2e-4, abs=1e-7)


@pytest.mark.long
def test_floor_and_shortfall_in_the_environment():
    """Limits are met and bind; both against simulation (false alarms: 1e-6 each). A profit may be asked for."""
    problem = shipped("constrain_3_2_2")
    env, episodes = environment_of(problem.environment.id, **problem.environment.arguments), 20_000
    market = problem.chain.market
    floor = Chain(market, Limits(floor=RiskLimit(2, Fraction(25, 1000))))
    limited = limit_risks(env, floor, 1.0, episodes=episodes)
    assert limited.keeps
    assert limited.value > 2.03  # 2.0623 without a limit
    broken = path_risks(env, limited.policy, episodes, seed=98).lowest < -2.0
    assert binomtest(int(broken.sum()), episodes, 0.025, alternative="greater").pvalue > 1e-6
    for confidence, amount in ((Fraction(9, 10), Fraction(1)), (Fraction(1, 10), Fraction(-211, 100))):
        chain = Chain(market, Limits(cvar=ShortfallLimit(confidence, amount)))
        limited = limit_risks(env, chain, 1.0)
        assert limited.keeps
        assert limited.risks["cvar"].value == pytest.approx(float(amount), abs=0.05)
        losses = -path_risks(env, limited.policy, episodes, seed=97).gains
        worst = pnl_distribution(env, limited.policy).value_at_risk(float(confidence))
        tails = worst + np.maximum(losses - worst, 0.0) / float(1 - confidence)
        error = 5.0 * tails.std() / math.sqrt(episodes)
        assert tails.mean() == pytest.approx(limited.risks["cvar"].value, abs=error)


@pytest.mark.long
@pytest.mark.parametrize(("limits", "least"), [({"loss": 0.015}, 0.014), ({"drawdown": 0.085}, 0.079)])
def test_limits_in_the_environment(limits, least):
    """Limits are met, and bind; a loss against simulation (false alarms: 1e-6 each); broken limits are told."""
    problem = shipped("constrain_3_2_2")
    settings, episodes = problem.environment, 20_000
    chain = Chain(problem.chain.market, Limits(**{k: RiskLimit(2, Fraction(str(p))) for k, p in limits.items()}))
    env, schedule = schedule_policy(as_schedule(best_unlimited(chain)), settings, chain)
    limited, (name, bound) = limit_risks(env, chain, settings.tick), *limits.items()
    assert limited.keeps
    assert limited.risks[name].high <= bound
    assert limited.risks[name].value > least  # the limit binds
    assert limited.value == pytest.approx(baselines.score(env, limited.policy).value, abs=1e-9)
    assert limited.value < baselines.optimal_policy(env).optimum
    if name == "loss":  # a drawdown within the limit costs more than the schedule, which breaks it
        assert limited.value > baselines.score(env, schedule).value
    broken = limited_risks(env, schedule, chain, settings.tick, 100_000, seed=1)
    for policy, risk in ((limited.policy, limited.risks[name].value), (schedule, broken[name].value)):
        paths = path_risks(env, policy, episodes, seed=99)
        happened = {"loss": paths.gains <= -2.0, "drawdown": paths.drawdowns > 2.0}[name]
        if name == "loss" or policy is limited.policy:  # the schedule's drawdown is simulated itself
            assert binomtest(int(happened.sum()), episodes, risk).pvalue > 1e-6
    assert limit_verdict(limited_risks(env, limited.policy, chain, settings.tick, 100_000), chain) == "yes"
    assert limit_verdict(limited_risks(env, schedule, chain, settings.tick, 10_000), chain) == f"NO: {name}"
    with pytest.raises(ValueError, match=r"num_steps = 600 with 61 inventories is not allowed: .* lower num_steps"):
        limit_risks("mmgym/GLFT-v0", chain, 1.0)
