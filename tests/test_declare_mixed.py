"""Choices beside continuous controls, and events with marks: against dense matrices, search, and separate events.

The second method builds the generator of a step from the formulas of `Dense` and exponentiates block matrices; the
optimum is searched for under every combination of choices by scipy. Simulations are compared by `check_baseline`, whose
false-alarm rate is 1e-3 a call; seeds are fixed.
"""

import itertools
import math
from typing import Annotated, Literal, NamedTuple

import gymnasium
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import minimize

from mmgym import declare
from mmgym.baselines import score
from mmgym.baselines.catalogue import expansions_of, random_policy
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.declared import DeclaredProblem
from mmgym.baselines.frozen import Functional, criterion_value, solve, state_laws
from mmgym.checking import check_market
from mmgym.parameters import Choice, Integer, Real, create

LEVELS, LIMIT, STEPS = 2, 3, 3
HELD = 2 * LIMIT + 1
SIZES = (1, 2, -1)


class Params(NamedTuple):
    """A random market: two depths, an order and whether to pay for more asks."""

    seed: Annotated[int, Integer(0, 0, 10**6)]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[float, Real(0.3, 0.0, 10.0)]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]
    horizon: Annotated[float, Real(1.5, 0.1, 100.0)]
    num_steps: Annotated[int, Integer(STEPS, STEPS, STEPS)]

    @classmethod
    def create(cls, **arguments):
        return create(cls, arguments)


class SeparateParams(Params):
    """The same, of the market that states its marks as separate events."""


def shares(p):
    """Chances of the marks of trades, by level, and of a level's moves."""
    drawn = np.random.default_rng([p.seed, 1]).dirichlet(np.ones(3), LEVELS)
    return np.column_stack([drawn, np.random.default_rng([p.seed, 2]).uniform(0.2, 0.8, LEVELS)])


def rates(p):
    return np.random.default_rng([p.seed, 3]).uniform(0.5, 2.0, 3)


TABLES = {"shares": (shares, (LEVELS, 4)), "base": (rates, (3,))}


def trade(p, x, u):
    return p.base[0] * (1.0 + 0.3 * x.level) * declare.exp(-u.bid)


def sold(p, x, u):
    return p.base[1] * declare.exp(-1.1 * u.ask) * (1.5 if u.lure == 1 else 1.0)


def moved_rate(p):
    return p.base[2]


def chance(p, x, mark):
    return p.shares[x.level, mark]


def way(p, x, mark):
    return p.shares[x.level, 3] if mark == 0 else 1.0 - p.shares[x.level, 3]


def inside(x, mark):
    return abs(x.held + SIZES[mark]) <= LIMIT


def taken(x, mark):
    return x.level, x.held + SIZES[mark]


def earned(u, mark):
    return SIZES[mark] * u.bid + 0.1 * mark


def turned(x, mark):
    return (x.level if mark == 0 else 1 - x.level), x.held


SOLD = declare.Event(
    "sold", sold, lambda x: (x.level, x.held - 1), lambda u: u.ask, lambda x: x.held > -LIMIT, counts="ask"
)
MARKED = [
    declare.Event("trade", trade, taken, earned, inside, "bid", marks=3, chance=chance),
    SOLD,
    declare.Event("turn", moved_rate, turned, marks=2, chance=way),
]


def separate(mark):
    """A trade of one size as an event of its own."""
    size = SIZES[mark]
    return declare.Event(
        f"trade_{mark}",
        lambda p, x, u: p.base[0] * (1.0 + 0.3 * x.level) * declare.exp(-u.bid) * p.shares[x.level, mark],
        lambda x: (x.level, x.held + size),
        lambda u: size * u.bid + 0.1 * mark,
        lambda x: abs(x.held + size) <= LIMIT,
        "bid",
    )


SEPARATE = [
    *(separate(mark) for mark in range(3)),
    SOLD,
    declare.Event("stay", lambda p, x: p.base[2] * p.shares[x.level, 3], lambda x: (x.level, x.held)),
    declare.Event("turn", lambda p, x: p.base[2] * (1.0 - p.shares[x.level, 3]), lambda x: (1 - x.level, x.held)),
]
COMMON = {
    "coordinates": [declare.Coordinate("level", 0, LEVELS - 1), declare.Coordinate("held", -LIMIT, LIMIT)],
    "controls": [
        declare.Box("bid", -0.5, 2.0),
        declare.Choice("order", -1, 1, allowed=lambda x, entry: abs(x.held + entry) <= LIMIT),
        declare.Box("ask", -0.3, 2.0),
        declare.Choice("lure", 0, 1),
    ],
    "impulse": declare.Impulse(
        effect=lambda x, u: (x.level, x.held + u.order),
        payoff=lambda x, u: -0.07 * abs(u.order) * (1.0 + x.level) - 0.02 * u[1],
    ),
    "start": lambda p: [((0, 0), 0.6), ((1, -2), 0.4)],
    "position": lambda x: 0.8 * x.held,
    "variance": lambda x: 0.3 + 0.2 * x.level,
    "drift": lambda x: 0.2 - 0.3 * x.level,
    "running_penalty": lambda x, u: 0.1 * x.held**2 + 0.03 * u.bid**2 + 0.05 * u.lure,
    "terminal_penalty": lambda x: 0.1 * x.held**2,
    "policies": {"still": lambda p, x, n: (0.5, 0, 0.5, 0), "sells": lambda p, x, n: (1.0, -1, 0.2, 1)},
    "tables": TABLES,
}
MIXED = declare.Market(name="random_mixed", params=Params, events=MARKED, **COMMON)
APART = declare.Market(name="random_apart", params=SeparateParams, events=SEPARATE, **COMMON)


class Dense:
    """The market by dense matrix exponentials, in numpy."""

    def __init__(self, p):
        self.p, self.shares, self.base = p, shares(p), rates(p)
        self.states = list(itertools.product(range(LEVELS), range(-LIMIT, LIMIT + 1)))
        self.number = {state: i for i, state in enumerate(self.states)}
        self.h, self.gamma = p.horizon / p.num_steps, p.risk_aversion if p.utility == "cara" else 0.0

    def happenings(self, state, u):
        """Rate, next state and payoff of all that can happen."""
        (level, held), (bid, _, ask, lure) = state, u
        for mark, size in enumerate(SIZES):
            if abs(held + size) <= LIMIT:
                rate = self.base[0] * (1.0 + 0.3 * level) * math.exp(-bid) * self.shares[level, mark]
                yield rate, (level, held + size), size * bid + 0.1 * mark
        if held > -LIMIT:
            yield self.base[1] * math.exp(-1.1 * ask) * (1.5 if lure == 1 else 1.0), (level, held - 1), ask
        yield self.base[2] * (1.0 - self.shares[level, 3]), (1 - level, held), 0.0

    def played(self, state, u):
        """The order that is played, the state after it and what it pays."""
        level, held = state
        order = u[1] if abs(held + u[1]) <= LIMIT else 0
        return (level, held + order), -0.07 * abs(order) * (1.0 + level) - 0.02 * u[3]

    def matrices(self, u, z=None):
        """Generator and source of the mean; with an exponent the matrix of exponentials."""
        count = len(self.states)
        plain, source = np.zeros((count, count)), np.zeros(count)
        for i, (level, held) in enumerate(self.states):
            flow = 0.8 * held * (0.2 - 0.3 * level) - (0.1 * held**2 + 0.03 * u[0] ** 2 + 0.05 * u[3])
            noise = (0.3 + 0.2 * level) * (0.8 * held) ** 2
            source[i] = flow
            if z is not None:
                plain[i, i] += z * flow + 0.5 * z * z * noise
            for rate, after, pay in self.happenings((level, held), u):
                plain[i, i] -= rate
                plain[i, self.number[after]] += rate * (1.0 if z is None else math.exp(z * pay))
                source[i] += rate * pay
        return plain, source

    def running(self, u, values):
        """The criterion (S,) of the time that runs."""
        if self.gamma:
            return expm(self.h * self.matrices(u, -self.gamma)[0]) @ values
        plain, source = self.matrices(u)
        block = np.block([[plain, source[:, None]], [np.zeros((1, len(values) + 1))]])
        return (expm(self.h * block) @ np.append(values, 1.0))[:-1]

    def worth(self, state, u, values):
        """The criterion of a state."""
        after, paid = self.played(state, u)
        ahead = self.running(u, values)[self.number[after]]
        return ahead * math.exp(-self.gamma * paid) if self.gamma else ahead + paid


def problem_of(seed, **arguments):
    p = Params.create(seed=seed, **arguments)
    return DeclaredProblem(MIXED, p), Dense(p)


def random_controls(problem, count, seed):
    random = np.random.default_rng([9, seed])
    controls = random.uniform(problem.low_controls, problem.high_controls, (count, 4))
    controls[:, 1], controls[:, 3] = random.integers(-1, 2, count), random.integers(0, 2, count)
    return controls


@pytest.mark.parametrize("utility", ["mean", "cara"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_one_step_law_and_gradient(seed, utility):
    problem, dense = problem_of(seed, utility=utility)
    values = np.random.default_rng(seed).uniform(0.5, 1.5, (problem.num_states, 1))
    states, controls = np.arange(problem.num_states), random_controls(problem, problem.num_states, seed)
    expected = [dense.worth(dense.states[s], u, values[:, 0]) for s, u in zip(states, controls, strict=True)]
    earlier = problem.backward(1, states, controls, values, problem.criterion)[:, 0]
    assert np.abs(earlier - expected).max() < 1e-12
    earlier, slopes = problem.gradient(1, states, controls, values)
    assert np.abs(earlier[:, 0] - expected).max() < 1e-12
    assert (slopes[:, [1, 3]] == 0.0).all()
    step = 1e-4
    for j in (0, 2):
        ends = [
            np.array([dense.worth(dense.states[s], u + way * step * np.eye(4)[j], values[:, 0])
                      for s, u in zip(states, controls, strict=True)])
            for way in (-2, -1, 1, 2)
        ]  # fmt: skip
        assert np.abs(slopes[:, j] - (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)).max() < 1e-9
    law = np.random.default_rng(seed).dirichlet(np.ones(problem.num_states))
    after = np.zeros(problem.num_states)
    for s, u in enumerate(controls):
        place, _ = dense.played(dense.states[s], u)
        after += law[s] * expm(dense.h * dense.matrices(u)[0])[dense.number[place]]
    assert np.abs(problem.forward(1, controls, law) - after).max() < 1e-13


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_optimum_against_search(utility):
    problem, dense = problem_of(4, utility=utility)
    solution = solve(problem)
    sign = 1.0 if utility == "cara" else -1.0
    values = problem.terminal(problem.criterion)[:, 0]
    bounds = [(problem.low_controls[j], problem.high_controls[j]) for j in (0, 2)]
    starts = [(0.0, 0.0), (0.0, 1.5), (1.5, 0.0), (1.0, 1.0)]
    for n in (STEPS - 1, STEPS - 2):
        best = np.full(problem.num_states, np.inf)
        for order, lure in itertools.product((-1, 0, 1), (0, 1)):
            reached = [dense.played(state, (0.0, order, 0.0, lure)) for state in dense.states]
            peaks = np.empty(problem.num_states)
            for s in range(problem.num_states):  # what runs is the best of the state that the order leads to

                def height(u, s=s, order=order, lure=lure, values=values):
                    return sign * dense.running((u[0], order, u[1], lure), values)[s]

                start = min(starts, key=height)
                options = {"ftol": 1e-15, "gtol": 1e-10}
                peaks[s] = minimize(height, start, method="L-BFGS-B", bounds=bounds, options=options).fun
            for s, (after, paid) in enumerate(reached):
                peak = peaks[dense.number[after]]
                best[s] = min(best[s], peak * math.exp(-dense.gamma * paid) if dense.gamma else peak - paid)
        mine = solution.raw[n] * np.exp(solution.log_scale[n])
        assert (sign * mine - best).max() < 1e-9  # nothing that was found by search is better
        assert np.abs(sign * mine - best).max() < 1e-7
        values = mine
    random = np.random.default_rng(0)
    top = criterion_value(problem, solution.controls)
    for _ in range(20):  # nor is anything near the optimum, or elsewhere
        table = solution.controls + 0.1 * random.normal(size=solution.controls.shape) * problem.declared.boxed
        table[..., 1] = np.where(random.random(table.shape[:2]) < 0.2, random.integers(-1, 2), table[..., 1])
        assert criterion_value(problem, np.clip(table, problem.low_controls, problem.high_controls)) < top


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_marks_are_separate_events(utility):
    marked, _ = problem_of(5, utility=utility)
    apart = DeclaredProblem(APART, SeparateParams.create(seed=5, utility=utility))
    assert np.array_equal(marked.following, apart.following)
    states, controls = np.arange(marked.num_states), random_controls(marked, marked.num_states, 5)
    for functional in (
        Functional(gain=1.0, price=1.0, fills=0.3, orders=0.5, moments=2),
        Functional(gain=1.0, price=0.5, exponents=np.array([0.4j, -0.3])),
    ):
        values = marked.terminal(functional)
        together, expected = (p.backward(1, states, controls, values, functional) for p in (marked, apart))
        assert np.abs(together - expected).max() < 1e-13
    table = np.stack([random_controls(marked, marked.num_states, n) for n in range(STEPS)])
    assert np.abs(state_laws(marked, table) - state_laws(apart, table)).max() < 1e-13
    one, other = (m.environment(seed=5, utility=utility) for m in (MIXED, APART))
    for env in (one, other):
        env.action_space.seed(3)
    for episode in range(50):  # the same clocks, and the marks in the order of the events
        assert np.array_equal(one.reset(seed=episode)[0], other.reset(seed=episode)[0])
        for _ in range(STEPS):
            action = one.action_space.sample()
            first, second = one.step(action), other.step(action)
            assert np.array_equal(first[0], second[0]) and abs(first[1] - second[1]) < 1e-12


@pytest.mark.long
def test_columns_of_choices():
    env = MIXED.environment()
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    actions = np.tile(((2.0 * np.arange(600) + 1.0) / 600.0 - 1.0).astype(np.float32)[:, None], (1, 4))
    quotes = env.to_quotes(actions)
    assert [int((quotes[:, 1] == entry).sum()) for entry in (-1, 0, 1)] == [200, 200, 200]
    assert [int((quotes[:, 3] == entry).sum()) for entry in (0, 1)] == [300, 300]
    assert np.array_equal(env.to_quotes(env.from_quotes(quotes)), quotes)
    envs = MIXED.environment.vector_class(600, info="full")
    envs.reset(seed=0)
    info = envs.step(actions)[4]
    assert np.array_equal(info["lure"], quotes[:, 3])  # kernels cut the columns alike
    masks = envs.masks(envs.reset(seed=1)[0])
    assert masks.shape == (600, 5)
    assert masks.all()  # no start is at a limit
    with pytest.raises(TypeError, match="no gradient in a choice"):
        expansions_of(env)


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, {"utility": "cara", "reward": "expected"}])
def test_played(arguments):
    check_market(MIXED.environment, **arguments)
    check_baseline(MIXED.environment(**arguments), episodes=2_000)


def test_random_policy_is_summed():
    env = MIXED.environment()
    policy = random_policy(env)
    assert policy.markov
    problem, dense = problem_of(0)
    nodes, weights = policy.distribution(np.zeros((1, 3), np.float32))
    assert nodes.shape == (1, 6 * 144, 4)
    assert abs(weights.sum() - 1.0) < 1e-12
    # by trapezoids on a fine grid of both depths, of one step
    values = problem.terminal(problem.criterion)[:, 0]
    mean = problem.backward(
        STEPS - 1, np.repeat(7, 864), env.to_quotes(nodes[0]), values[:, None], problem.criterion
    )[:, 0] @ weights[0]  # fmt: skip
    axes = [np.linspace(problem.low_controls[j], problem.high_controls[j], 21) for j in (0, 2)]
    simpson = np.array([1.0, *([4.0, 2.0] * 9), 4.0, 1.0]) / 60.0
    heights = np.zeros((21, 21))
    for order, lure in itertools.product((-1, 0, 1), (0, 1)):
        for i, j in np.ndindex(21, 21):
            heights[i, j] += dense.worth(dense.states[7], (axes[0][i], order, axes[1][j], lure), values) / 6.0
    assert abs(mean - simpson @ heights @ simpson) < 1e-6
    assert score(env, policy).method != "simulation"


@pytest.mark.long
def test_refused():
    def wrong(p, x, mark):
        return 0.3 * (mark + 1.0)

    for changes, words in (
        ({"events": [declare.Event("trade", trade, taken, earned, inside, marks=3)]}, "both of marks and chance"),
        ({"events": [declare.Event("trade", trade, taken, marks=65, chance=chance)]}, "marks = 65.*from 0 to 64"),
        ({"controls": [declare.Box("bid", 0.0, 1.0)]}, "an impulse needs a control that is a Choice"),
    ):
        with pytest.raises(ValueError, match=words):
            declare.Market(name="refused", params=Params, **{**COMMON, "events": MARKED, **changes})
    reads = declare.Impulse(lambda x, u: (x.level, x.held), lambda x, u: u.bid)
    for changes, words in (
        ({"events": [declare.Event("turn", moved_rate, turned, marks=2, chance=wrong)]}, r"wrong at.*\[0.3, 0.6\] for"),
        ({"events": [declare.Event("trade", trade, taken, marks=3, chance=chance)]}, "with mark 0 to"),
        ({"impulse": reads}, "the impulse reads one of bid, ask"),
    ):
        market = declare.Market(name="refused", params=Params, **{**COMMON, "events": MARKED, **changes})
        with pytest.raises(ValueError, match=words):
            market.transitions(Params.create())
