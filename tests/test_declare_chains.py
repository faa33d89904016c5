"""Random declared chains against dense matrix exponentials and brute-force search, and played.

The second method knows nothing of the derivation: it builds the generator of every step from the formulas below, in
numpy, and exponentiates block matrices (Van Loan 1978). Statistical comparisons are those of `check_baseline`, whose
false-alarm rate is 1e-3 a call; seeds are fixed.
"""

import itertools
import types
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pytest
from numba import njit
from scipy.linalg import expm
from scipy.optimize import minimize

from mmgym import declare
from mmgym.agents.exact_gradient import ExactGradient, network_of
from mmgym.baselines import score
from mmgym.baselines.catalogue import expansions_of
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.declared import DeclaredProblem
from mmgym.baselines.declared.interpolation import Interpolation
from mmgym.baselines.declared.vectors import LANES, next_sums, scatter_products
from mmgym.baselines.frozen import PNL, Functional, columns_of, solve, state_laws, visits
from mmgym.baselines.pnl_law import pnl_law
from mmgym.checking import check_market
from mmgym.parameters import Choice, Integer, Real, create

LEVELS, LIMIT, EVENTS, STEPS = 3, 2, 4, 4
HELD = 2 * LIMIT + 1


class BoxParams(NamedTuple):
    """A random chain with two continuous controls."""

    seed: Annotated[int, Integer(0, 0, 10**6)]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[float, Real(0.3, 0.0, 10.0)]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]
    horizon: Annotated[float, Real(2.0, 0.1, 100.0)]
    num_steps: Annotated[int, Integer(STEPS, STEPS, STEPS)]

    @classmethod
    def create(cls, **arguments):
        return create(cls, arguments)


class ChoiceParams(BoxParams):
    """A random chain with choices and an impulse."""


def table(name, shape, low, high):
    """Random numbers of a chain, by its seed."""

    def draw(p):
        number = sum(map(ord, name))
        return np.random.default_rng([p.seed, number]).uniform(low, high, shape)

    return draw, shape


TABLES = {
    "base": table("base", (EVENTS, LEVELS, HELD), 0.0, 1.5),
    "reach": table("reach", (EVENTS, LEVELS, HELD), 0.0, LEVELS * HELD - 1e-9),  # floor: the state after
    "season": table("season", (STEPS,), 0.5, 1.5),
    "pays": table("pays", (EVENTS, LEVELS), -0.5, 0.8),
    "trend": table("trend", (LEVELS,), -0.4, 0.4),
    "spread": table("spread", (LEVELS,), 0.0, 0.5),
}


def intensity(k):
    if k < 2:

        def rate(p, x, u):
            depth = u.bid if k == 0 else u.ask
            return p.season[x.step] * p.base[k, x.level, x.held + LIMIT] / (1.0 + np.exp(2.0 * depth - 1.0))

    else:

        def rate(p, x, u):
            return p.base[k, x.level, x.held + LIMIT] * (0.3 + 0.1 * (u.bid - u.ask) ** 2)

    return rate


def payoff(k):
    def pay(p, x, u):
        return p.pays[k, x.level] + (u.bid if k == 0 else u.ask if k == 1 else 0.1 * u.bid * u.ask)

    return pay


def opened(k):
    return (lambda p, x: x.held < LIMIT) if k == 0 else None


def after(k):
    def move(p, x):
        place = int(p.reach[k, x.level, x.held + LIMIT])
        return place // HELD, place % HELD - LIMIT

    return move


def income(p, x, u):
    return 0.2 * x.level - 0.1 * u.ask * x.held


def penalty(p, x, u):
    return 0.1 * x.held**2 + 0.05 * u.bid**2


def exposure(p, x):
    return 0.7 * x.held + 0.1 * x.level


COMMON = {
    "coordinates": [declare.Coordinate("level", 0, LEVELS - 1), declare.Coordinate("held", -LIMIT, LIMIT)],
    "start": lambda p: [((0, 0), 0.5), ((2, -1), 0.3), ((1, 2), 0.2)],
    "position": exposure,
    "variance": lambda p, x: p.spread[x.level],
    "drift": lambda p, x: p.trend[x.level],
    "income": income,
    "running_penalty": penalty,
    "liquidation": lambda x: 0.1 * abs(x.held),
    "terminal_penalty": lambda x: 0.05 * x.held**2,
}
BOXES = declare.Market(
    name="random_boxes",
    params=BoxParams,
    controls=[declare.Box("bid", -0.5, 1.5), declare.Box("ask", -0.2, 2.0)],
    events=[
        declare.Event(f"event_{k}", intensity(k), after(k), payoff(k), opened(k), ("bid", "ask", None, "order")[k])
        for k in range(EVENTS)
    ],
    policies={"middle": lambda p, x, n: (0.5, 0.9)},
    tables=TABLES,
    **COMMON,
)
CHOICES = declare.Market(
    name="random_choices",
    params=ChoiceParams,
    controls=[
        declare.Choice("bid", 0, 2),
        declare.Choice("ask", -1, 1),
        declare.Choice("order", -1, 1, allowed=lambda p, x, entry: abs(x.held + entry) <= LIMIT),
    ],
    events=[
        declare.Event(f"event_{k}", intensity(k), after(k), payoff(k), opened(k), ("bid", "ask", None, None)[k])
        for k in range(EVENTS)
    ],
    impulse=declare.Impulse(
        effect=lambda x, u: (x.level, x.held + u.order), payoff=lambda x, u: -0.05 * abs(u.order) * (1.0 + x.level)
    ),
    policies={"still": lambda p, x, n: (1, 0, 0 * x["held"])},
    tables=TABLES,
    **COMMON,
)


# The second method


class Named:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Dense:
    """The one-step law of a chain by dense matrix exponentials."""

    def __init__(self, p):
        self.p = p
        self.t = {name: draw(p) for name, (draw, _) in TABLES.items()}
        self.states = list(itertools.product(range(LEVELS), range(-LIMIT, LIMIT + 1)))
        self.h = p.horizon / p.num_steps
        self.gamma = p.risk_aversion if p.utility == "cara" else 0.0

    def chain(self, n, u):
        """Intensities, next states and payoffs (E, S), income and penalty, exposure, variance and drift (S,)."""
        bid, ask = u[0], u[1]
        rates, following, pays = np.zeros((3, EVENTS, len(self.states)))
        lines = np.zeros((5, len(self.states)))
        for s, (level, held) in enumerate(self.states):
            base = self.t["base"][:, level, held + LIMIT]
            for k in range(EVENTS):
                following[k, s] = int(self.t["reach"][k, level, held + LIMIT])
                if k < 2:
                    rates[k, s] = self.t["season"][n] * base[k] / (1.0 + np.exp(2.0 * (bid, ask)[k] - 1.0))
                    pays[k, s] = self.t["pays"][k, level] + (bid, ask)[k]
                else:
                    rates[k, s] = base[k] * (0.3 + 0.1 * (bid - ask) ** 2)
                    pays[k, s] = self.t["pays"][k, level] + 0.1 * bid * ask
            if held == LIMIT:
                rates[0, s] = 0.0
            lines[:, s] = (
                0.2 * level - 0.1 * ask * held,
                0.1 * held**2 + 0.05 * bid**2,
                0.7 * held + 0.1 * level,
                self.t["spread"][level],
                self.t["trend"][level],
            )
        return rates, following.astype(int), pays, lines

    def pays(self, functional, pays, kinds):
        f = functional
        counts = np.array([{None: 0.0, "bid": f.fills, "ask": f.fills, "order": f.orders}[kind] for kind in kinds])
        return f.gain * pays + counts[:, None]

    def generator(self, n, u):
        rates, following, _, _ = self.chain(n, u)
        matrix = np.zeros((len(self.states),) * 2)
        for k, s in np.ndindex(*rates.shape):
            matrix[s, following[k, s]] += rates[k, s]
            matrix[s, s] -= rates[k, s]
        return matrix

    def flows(self, functional, lines):
        income, penalty, q, v, mu = lines
        f = functional
        return f.gain * (income + q * mu) - f.penalty * penalty + f.absolute_inventory * abs(q), f.price**2 * q**2 * v

    def backward(self, n, u, values, functional, kinds):
        """Values (S, K) of all states under one control."""
        rates, following, pays, lines = self.chain(n, u)
        pays = self.pays(functional, pays, kinds)
        flow, noise = self.flows(functional, lines)
        size = len(self.states)
        if functional.exponents is not None:
            columns = []
            for z, column in zip(functional.exponents, values.T, strict=True):
                matrix = np.diag((z * flow + 0.5 * z**2 * noise - rates.sum(axis=0)).astype(complex))
                for k, s in np.ndindex(*rates.shape):
                    matrix[s, following[k, s]] += rates[k, s] * np.exp(z * pays[k, s])
                columns.append(expm(self.h * matrix) @ column)
            stacked = np.stack(columns, axis=1)
            return stacked if np.iscomplexobj(values) else stacked.real
        plain, once, twice = self.generator(n, u), np.diag(flow), np.diag(noise)
        for k, s in np.ndindex(*rates.shape):
            once[s, following[k, s]] += rates[k, s] * pays[k, s]
            twice[s, following[k, s]] += rates[k, s] * pays[k, s] ** 2
        none = np.zeros_like(plain)
        block = np.block([[plain, 2.0 * once, twice], [none, plain, once], [none, none, plain]])
        first = values[:, 0]
        second = values[:, 1] if functional.moments == 2 else np.zeros(size)
        block_values = expm(self.h * block) @ np.concatenate([second, first, np.ones(size)])
        return np.stack([block_values[size : 2 * size], block_values[:size]], axis=1)[:, : functional.moments]


KINDS = {"boxes": ("bid", "ask", None, "order"), "choices": ("bid", "ask", None, None)}
FUNCTIONALS = {
    "first": Functional(gain=1.0, price=1.0, penalty=1.0),
    "second": Functional(gain=0.8, price=1.2, penalty=0.5, fills=0.3, orders=0.2, absolute_inventory=0.1, moments=2),
    "real": Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([-0.5, 0.3])),
    "complex": Functional(gain=1.0, price=0.7, fills=0.2, exponents=np.array([0.5j, -1.5j, 0.2 + 1j])),
}


def boxes(seed, **arguments):
    params = BoxParams.create(seed=seed, **arguments)
    return DeclaredProblem(BOXES, params), Dense(params)


def choices(seed, **arguments):
    params = ChoiceParams.create(seed=seed, **arguments)
    return DeclaredProblem(CHOICES, params), Dense(params)


def policy_gradient(problem, table):
    """The criterion of a table and its derivatives in every control."""
    value, raw, weights = visits(problem, table)
    states = np.arange(problem.num_states)
    slopes = [problem.gradient(n, states, table[n], raw[n + 1][:, None])[1] for n in range(problem.num_steps)]
    return value, weights[..., None] * np.array(slopes)


@pytest.mark.long
@pytest.mark.parametrize("name", FUNCTIONALS)
@pytest.mark.parametrize("seed", range(3))
def test_one_step_law_of_boxes(seed, name):
    functional = FUNCTIONALS[name]
    problem, dense = boxes(seed)
    random = np.random.default_rng(seed)
    values = random.normal(size=(problem.num_states, functional.columns))
    if functional.exponents is not None:
        values = np.exp(values).astype(functional.exponents.dtype)
    for n in (0, 3):
        controls = random.uniform(problem.low_controls, problem.high_controls, (6, 2))
        pairs = np.repeat(controls, problem.num_states, axis=0)
        states = np.tile(np.arange(problem.num_states), 6)
        expected = np.concatenate([dense.backward(n, u, values, functional, KINDS["boxes"]) for u in controls])
        earlier = problem.backward(n, states, pairs, values, functional)
        assert np.abs(earlier - expected).max() < 1e-12 * (1.0 + np.abs(expected).max())
        earlier = problem.backward(n, states[: problem.num_states], pairs[: problem.num_states], values, functional)
        assert np.abs(earlier - expected[: problem.num_states]).max() < 1e-12 * (1.0 + np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_laws_and_gradients_of_boxes(seed):
    for utility in ("mean", "cara"):
        problem, dense = boxes(seed, utility=utility)
        random = np.random.default_rng(seed)
        controls = random.uniform(problem.low_controls, problem.high_controls, (problem.num_states, 2))
        law = random.dirichlet(np.ones(problem.num_states))
        expected = sum(law[s] * expm(dense.h * dense.generator(1, u))[s] for s, u in enumerate(controls))
        assert np.abs(problem.forward(1, controls, law) - expected).max() < 1e-13
        shared = np.broadcast_to(controls[0], controls.shape)
        expected = law @ expm(dense.h * dense.generator(1, controls[0]))
        assert np.abs(problem.forward(1, shared, law) - expected).max() < 1e-13
        values = np.exp(0.3 * random.normal(size=(problem.num_states, 1)))
        _, slopes = problem.gradient(2, np.arange(problem.num_states), controls, values)
        step = 1e-4
        for j in range(2):
            ends = []
            for times in (-2, -1, 1, 2):  # a difference of fourth order: exact to about 1e-12
                moved = controls + times * step * np.eye(2)[j]
                ends.append(
                    [dense.backward(2, u, values, problem.criterion, KINDS["boxes"])[s, 0] for s, u in enumerate(moved)]
                )
            a, b, c, d = map(np.array, ends)
            assert np.abs(slopes[:, j] - (a - 8.0 * b + 8.0 * c - d) / (12.0 * step)).max() < 2e-10


@pytest.mark.long
def test_policy_gradient_of_boxes():
    problem, _ = boxes(1, utility="cara")
    random = np.random.default_rng(5)
    table_ = random.uniform(problem.low_controls + 0.1, problem.high_controls - 0.1, (STEPS, problem.num_states, 2))
    way = random.normal(size=table_.shape)
    _, slopes = policy_gradient(problem, table_)
    up, down = (policy_gradient(problem, table_ + sign * 1e-5 * way)[0] for sign in (1, -1))
    assert abs((slopes * way).sum() - (up - down) / 2e-5) < 1e-8


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
@pytest.mark.parametrize("seed", range(2))
def test_optimum_of_boxes(seed, utility):
    problem, dense = boxes(seed, utility=utility)
    solution = solve(problem)
    sign = 1.0 if utility == "cara" else -1.0
    values = problem.terminal(problem.criterion)
    axes = [np.linspace(a, b, 5) for a, b in zip(problem.low_controls, problem.high_controls, strict=True)]
    starts = np.array(list(itertools.product(*axes)))
    bounds = list(zip(problem.low_controls, problem.high_controls, strict=True))
    scale = 0.0
    for n in reversed(range(STEPS - 2, STEPS)):
        heights = np.stack([dense.backward(n, u, values, problem.criterion, KINDS["boxes"])[:, 0] for u in starts])
        best = np.empty(problem.num_states)
        for s in range(problem.num_states):
            ends = []
            for start in starts[np.argsort(sign * heights[:, s])[:2]]:
                done = minimize(
                    lambda u, s=s, n=n, values=values: sign
                    * dense.backward(n, u, values, problem.criterion, KINDS["boxes"])[s, 0],
                    start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-9},
                )  # fmt: skip
                ends.append(done.fun)
            best[s] = sign * min(ends)
        scale = solution.log_scale[n]
        mine = solution.raw[n] * np.exp(scale)
        assert (sign * (mine - best)).max() < 1e-9  # nothing that was found by search is better
        assert np.abs(mine - best).max() < 1e-7
        values = mine[:, None]


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
@pytest.mark.parametrize("seed", range(3))
def test_optimum_and_values_of_choices(seed, utility):
    problem, dense = choices(seed, utility=utility)
    solution = solve(problem)
    values = problem.terminal(problem.criterion)
    gamma, number = dense.gamma, {state: i for i, state in enumerate(dense.states)}
    actions = list(itertools.product((0, 1, 2), (-1, 0, 1), (-1, 0, 1)))
    for n in reversed(range(STEPS)):
        worth = np.empty((problem.num_states, len(actions)))
        for a, (bid, ask, asked) in enumerate(actions):
            after = dense.backward(n, (bid, ask), values, problem.criterion, KINDS["choices"])[:, 0]
            for s, (level, held) in enumerate(dense.states):
                order = asked if abs(held + asked) <= LIMIT else 0
                paid = -0.05 * abs(order) * (1.0 + level)
                reached = after[number[level, held + order]]
                worth[s, a] = reached * np.exp(-gamma * paid) if gamma else reached + paid
        best = worth.min(axis=1) if gamma else worth.max(axis=1)
        assert np.abs(solution.raw[n] * np.exp(solution.log_scale[n]) - best).max() < 1e-12
        last, others = problem.action_values(n, values)
        states, worth = np.arange(problem.num_states), worth.reshape(-1, 9, 3)
        assert np.abs(last - (worth.min(axis=1) if gamma else worth.max(axis=1))).max() < 1e-12
        for entry in range(3):
            assert np.abs(others(states, np.full(len(states), entry)) - worth[:, :, entry]).max() < 1e-12
        values = best[:, None]


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_exact_gradient_of_choices_comes_near_the_optimum(utility):
    env = CHOICES.environment(utility=utility)
    policy = network_of(env, [32, 32], seed=1)
    learner = ExactGradient(expansions_of(env), policy, inner_steps=100, seed=0)
    for _ in range(8):
        learner.iterate()
    learner.finish()
    assert score(env, policy).skill > 0.95


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, {"utility": "cara", "reward": "expected"}])
@pytest.mark.parametrize("market", [BOXES, CHOICES])
def test_played(market, arguments):
    check_market(market.environment, **arguments)
    check_baseline(market.environment(**arguments), episodes=2_000)


@pytest.mark.long
def test_law_of_the_gain():
    problem, _ = boxes(2, horizon=5.0)
    controls = np.broadcast_to([0.5, 0.5], (STEPS, problem.num_states, 2))
    law = pnl_law(problem, controls)
    assert abs(state_laws(problem, controls)[-1].sum() - 1.0) < 1e-12
    envs = BOXES.environment.vector_class(40_000, seed=2, horizon=5.0, info="full")
    envs.reset(seed=7)
    for _ in range(STEPS):
        info = envs.step(envs.from_quotes(np.tile([0.5, 0.5], (40_000, 1))))[4]
    # 9 points of the distribution function, each within 4.4 standard errors: false-alarm rate 1e-4
    for x in np.quantile(info["gain"], np.linspace(0.1, 0.9, 9)):
        share, error = float(law.probability(x)), 0.5 / 200.0
        assert abs((info["gain"] <= x).mean() - share) < 4.4 * error


def flat_market(name, season):
    """Fills in 150 states, at intensities that read the step or do not."""

    def fills(side, sign, j):
        return declare.Event(
            side,
            intensity=lambda p, x, u: season(p, x) * 4.0 * declare.exp(-u[j]) * (1.0 + 0.1 * sign * x.level),
            effect=lambda x: (x.held + sign, x.level),
            payoff=lambda u: u[j],
            when=lambda x: abs(x.held + sign) <= 12,
        )

    return declare.Market(
        name=name,
        params=BoxParams,
        coordinates=[declare.Coordinate("held", -12, 12), declare.Coordinate("level", -3, 2)],
        controls=[declare.Box("bid_depth", -0.5, 3.0, 1.0), declare.Box("ask_depth", -0.5, 3.0, 1.0)],
        events=[
            fills("bid", 1, 0),
            fills("ask", -1, 1),
            declare.Event("flip", intensity=lambda: 1.5, effect=lambda x: (x.held, -x.level - 1)),
        ],
        position=lambda x: 1.0 * x.held,
        variance=lambda: 0.5,
        drift=lambda x: 0.3 * x.level,
        running_penalty=lambda x: 0.1 * x.held**2,
        policies={"constant": lambda p, x, n: np.ones(2)},
    )


@njit
def constant(p, x):
    return 1.0


@njit
def by_step(p, x):
    return 1.0 if x.step < 1000 else 2.0


BY_STEP = (by_step,)
HOME = types.ModuleType("home")
HOME.inner = types.ModuleType("home.inner")
HOME.inner.by_step = by_step


def test_readers_of_the_step_are_found_where_they_are_hidden():
    """In a tuple, in a module of a module, by ``getattr``, and in what is called."""
    assert flat_market("plain", lambda p, x: p.rate).reads_step is False
    for function in (
        lambda p, x: BY_STEP[0](p, x),
        lambda p, x: HOME.inner.by_step(p, x),
        lambda p, x: getattr(x, "step"),  # noqa: B009
        lambda p, x: constant(p, x) + by_step(p, x),
    ):
        assert flat_market("hidden", function).reads_step


@pytest.mark.long
def test_what_happens_is_kept_between_steps_only_where_no_function_reads_them():
    """With controls that differ in every cell: the market whose steps are alike against the same one, read by step."""
    alike, stepwise = flat_market("alike", constant), flat_market("stepwise", by_step)
    assert (alike.reads_step, stepwise.reads_step) == (False, True)
    params = BoxParams.create(seed=0)
    one, other = DeclaredProblem(alike, params), DeclaredProblem(stepwise, params)
    random = np.random.default_rng(7)
    for moments in (1, 2):
        functional = one.criterion._replace(moments=moments)
        values = one.terminal(functional)
        for n in (3, 2, 1):
            controls, states = random.uniform(-0.2, 1.0 + 0.3 * n, (150, 2)), np.arange(150)
            expected = other.law.run("pair", n, (states, controls), (functional,), values, np.ones(150))
            for problem in (one, other):
                earlier = problem.backward(n, states, controls, values, functional)
                assert np.abs(earlier - expected).max() <= 1e-12 * np.abs(expected).max()
            law = random.dirichlet(np.ones(150))
            assert np.abs(one.forward(n, controls, law) - other.forward(n, controls, law)).max() < 1e-15
            values = expected
    assert one.law._kept
    assert not other.law._kept


@pytest.mark.long
@pytest.mark.parametrize(("seed", "horizon", "width"), [(1, 2.0, 0.2), (3, 1.0, 0.1)])
def test_few_nodes_tell_what_pairs_sum(seed, horizon, width):
    """Chosen at the last step, used before it: under other controls, of other values, smooth and rough ones."""
    last = 99  # where few steps are left of a pass, a choice does not pay
    params = BoxParams.create(seed=seed, horizon=horizon * 25)._replace(num_steps=last + 1)
    problem = DeclaredProblem(flat_market("few", constant), params)
    random, states, law = np.random.default_rng(seed), np.arange(problem.num_states), problem.law
    law.pair_cost = 0.9 * law.sweep_cost  # neither pairs nor a sweep each are cheaper
    sums = (problem.criterion._replace(moments=2), PNL._replace(moments=2), Functional(fills=1.0))
    smooth = np.cumsum(random.normal(size=(problem.num_states, 5)), axis=0)
    rough = random.normal(size=smooth.shape)
    for n, values in ((last, 0.1 * smooth), (last - 1, smooth), (last - 2, rough), (last - 3, smooth)):
        controls = random.uniform(0.1, 0.1 + width, (problem.num_states, 2))
        found = problem.backward_together(n, states, controls, values, sums)
        expected = law.run("pair", n, (states, controls), sums, values, np.ones(problem.num_states))
        assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    (few,) = law._few.values()
    assert len(few.nodes.nodes) < 0.7 * len(few.grid.nodes)


@pytest.mark.long
@pytest.mark.parametrize("market", [BOXES, CHOICES], ids=lambda market: market.name)
def test_sums_of_one_pass_are_those_of_a_pass_each(market):
    """Of boxes by interpolation too: 150 states against the sums of pairs."""
    random, chosen = np.random.default_rng(3), market is CHOICES
    problem = DeclaredProblem(market if chosen else flat_market("together", constant), BoxParams.create(seed=4))
    states, size = np.arange(problem.num_states), (problem.num_states, problem.num_controls)
    controls = random.integers(0, 2, size) if chosen else random.uniform(0.0, 1.0, size)
    sums = (
        problem.criterion._replace(moments=2), PNL._replace(moments=2), Functional(fills=1.0), Functional(orders=1.0),
    )  # fmt: skip
    values = random.uniform(0.5, 1.0, (problem.num_states, 6))
    earlier = problem.backward_together(2, states, controls, values, sums)
    for own, functional in zip(columns_of(sums), sums, strict=True):
        assert np.allclose(
            earlier[:, own], problem.backward(2, states, controls, values[:, own], functional), rtol=1e-12
        )
    with pytest.raises(ValueError, match="must come before"):
        columns_of(sums[::-1])


@pytest.mark.parametrize("degree", [2, 9, 14])
def test_padua_points_interpolate_polynomials_of_their_total_degree(degree):
    random = np.random.default_rng(degree)
    low, high = np.array([-1.0, 2.0]), np.array([0.5, 5.0])
    grid = Interpolation(low, high, np.array([degree, degree]))
    assert len(grid.nodes) == (degree + 1) * (degree + 2) // 2
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    factors = random.normal(size=len(powers))

    def height(points):
        x = 2.0 * (points - low) / (high - low) - 1.0
        return sum(f * x[:, 0] ** i * x[:, 1] ** j for f, (i, j) in zip(factors, powers, strict=True))

    points = random.uniform(low, high, (40, 2))
    x = 2.0 * (points - low) / (high - low) - 1.0
    heights = height(grid.nodes)[:, None]
    assert np.allclose(grid.basis(points) @ heights[:, 0], height(points), atol=1e-11)
    table = grid.coefficients(heights)[0]
    assert np.allclose(np.polynomial.chebyshev.chebval2d(*x.T, table), height(points), atol=1e-11)


@pytest.mark.parametrize(("moments", "squares"), [(1, 0), (3, 2)])
def test_sums_of_eight_numbers_side_by_side(moments, squares):
    random = np.random.default_rng(8)

    def draw(count, *shape):
        return tuple(random.normal(size=(count, *shape, LANES)))

    places, values = random.integers(0, 5, (5, 4)).astype(np.uint32), random.normal(size=(5, moments + squares))
    sources, terms = draw(moments + squares, 2, 5), draw(moments + squares, 2, 5)
    jump, extras, g = random.normal(size=(2, 5, 4, LANES)), draw(squares, 2, 5, 4), 1
    h = 1

    def both(target, scattered):
        for i in range(5):
            next_sums(g, h, i, 0.3, 0.6, values, sources, jump, extras, places, terms, target)
            scatter_products(i, jump[g], places, terms[0][h], scattered)

    plain, plainly = tuple(np.zeros((moments + squares, 2, 5, LANES))), np.zeros((5, LANES))
    both(plain, plainly)
    target, scattered = tuple(np.zeros((moments + squares, 2, 5, LANES))), np.zeros((5, LANES))

    @njit
    def compiled(values, sources, jump, extras, terms, target, scattered):
        for i in range(5):
            next_sums(g, h, i, 0.3, 0.6, values, sources, jump, extras, places, terms, target)
            scatter_products(i, jump[g], places, terms[0][h], scattered)

    compiled(values, sources, jump, extras, terms, target, scattered)
    for c in range(moments + squares):
        expected = 0.3 * values[:, c, None] + 0.6 * sources[c][g]
        expected += np.einsum("ikb,ikb->ib", jump[g], terms[c][h][places])
        if c >= moments:
            expected += np.einsum("ikb,ikb->ib", extras[c - moments][g], terms[c - moments][h][places])
        assert np.allclose(plain[c][h], expected, rtol=1e-13, atol=1e-14)
        assert np.allclose(target[c][h], expected, rtol=1e-13, atol=1e-14)
    assert np.allclose(scattered, plainly, rtol=1e-13, atol=1e-14)
