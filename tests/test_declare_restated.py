"""Shipped markets restated as declarations, against their hand-written one-step laws: several assets, mean-field roles
and the tick spread (`test_declare_glft` has the market of one asset)."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from mmgym import declare
from mmgym.baselines.declared import DeclaredProblem
from mmgym.baselines.frozen import PNL, Functional, criterion_value, evaluate, solve, state_laws, visits
from mmgym.baselines.mean_field import MeanFieldProblem
from mmgym.baselines.multi_asset_glft import MultiAssetProblem
from mmgym.baselines.tick_spread import TickSpreadProblem
from mmgym.baselines.tick_spread.one_step import clock_profile
from mmgym.models import mean_field, multi_asset_glft, tick_spread
from mmgym.models.mean_field_flow import Flow


def functionals(problem):
    """What is compared: the exponents are over the largest inventory."""
    most = max(np.abs(column).max() for column in problem.coordinates.values())
    return (
        PNL,
        Functional(gain=0.7, price=1.3, penalty=0.4, fills=0.2, orders=0.3, absolute_inventory=0.6, moments=2),
        Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([-0.3, 0.2]) / most),
        Functional(gain=1.0, price=0.5, fills=0.1, exponents=np.array([0.4j, -2.0j, 0.1 + 1.0j]) / most),
    )


# Several assets


class Assets(NamedTuple):
    """What the market of several assets is; sides are all bids, then all asks."""

    horizon: float
    num_steps: int
    risk_aversion: float
    terminal_penalty: float
    covariance: tuple[tuple[float, ...], ...]
    drift: tuple[float, ...]
    fill_rate: tuple[float, ...]
    fill_decay: tuple[float, ...]
    order_size: tuple[float, ...]
    limits: tuple[int, ...]
    starting: tuple[int, ...]
    min_depth: tuple[float, ...]
    max_depth: tuple[float, ...]


def assets_market(n):
    """The market of two or three assets: bids first, then asks."""

    def side(i, sign):
        j = i if sign > 0 else n + i
        a, b, c = (sign * (i == k) for k in range(3))
        moves = {2: lambda x: (x[1] + a, x[2] + b), 3: lambda x: (x[1] + a, x[2] + b, x[3] + c)}
        return declare.Event(
            f"{'bid' if sign > 0 else 'ask'}_{i}",
            intensity=lambda p, u: p.rates[j] * declare.exp(-p.decays[j] * u[j]),
            effect=moves[n],
            payoff=lambda p, u: p.sizes[i] * u[j],
            when=lambda p, x: sign * x[1 + i] < p.most[i],
            counts="bid" if sign > 0 else "ask",
        )

    def exposure(p, x):
        total = 0.0
        for i in range(n):
            total += p.sizes[i] * abs(x[1 + i])
        return total

    def risk(p, x):
        total = 0.0
        for i in range(n):
            for k in range(n):
                total += p.sizes[i] * x[1 + i] * p.matrix[i, k] * p.sizes[k] * x[1 + k]
        return total

    def variance(p, x):
        return max(risk_of(p, x), 0.0) / max(exposure_of(p, x) ** 2, 1e-300)

    def income(p, x):
        total = 0.0
        for i in range(n):
            total += p.sizes[i] * x[1 + i] * p.drifts[i]
        return total

    def terminal_penalty(p, x):
        total = 0.0
        for i in range(n):
            total += (p.sizes[i] * x[1 + i]) ** 2
        return p.terminal_penalty * total

    risk_of, exposure_of = declare.njit(risk), declare.njit(exposure)
    sides = [(i, sign) for sign in (1, -1) for i in range(n)]

    def end(name, j):
        return lambda p: getattr(p, name)[j]

    def limit(i, sign):
        return lambda p: sign * p.limits[i]

    return declare.Market(
        name=f"restated_assets_{n}",
        params=Assets,
        coordinates=[declare.Coordinate(f"inventory_{i}", limit(i, -1), limit(i, 1)) for i in range(n)],
        controls=[
            declare.Box(f"depth_{j}", end("min_depth", j), end("max_depth", j), lambda p, j=j: 1.0 / p.fill_decay[j])
            for j in range(2 * n)
        ],
        events=[side(*given) for given in sides],
        position=exposure,
        variance=variance,
        income=income,
        running_penalty=lambda p, x: 0.5 * p.risk_aversion * risk_of(p, x),
        terminal_penalty=terminal_penalty,
        start=lambda p: p.starting,
        tables={
            "matrix": (lambda p: p.covariance, (n, n)),
            "drifts": (lambda p: p.drift, (n,)),
            "rates": (lambda p: p.fill_rate, (2 * n,)),
            "decays": (lambda p: p.fill_decay, (2 * n,)),
            "sizes": (lambda p: p.order_size, (n,)),
            "most": (lambda p: p.limits, (n,)),
        },
        policies={"constant": lambda p, x, n: 1.0 / np.array(p.fill_decay)},
    )


ASSETS = {n: assets_market(n) for n in (2, 3)}


def drawn_assets(number):
    random = np.random.default_rng([221, number])
    n = 3 if number % 3 == 2 else 2
    root = random.normal(size=(n, random.integers(1, n + 1)))  # singular too
    size = random.uniform(0.3, 2.0, n)
    lots = random.integers(1, 4 if n == 2 else 2, n)
    decay = random.uniform(0.5, 3.0, (n, 2))
    return {
        "covariance": (root @ root.T).tolist(),
        "drift": random.uniform(-1.0, 1.0, n).tolist(),
        "fill_rate": random.uniform(0.5, 30.0, (n, 2)).tolist(),
        "fill_decay": decay.tolist(),
        "order_size": size.tolist(),
        "inventory_limit": (size * lots).tolist(),
        "initial_inventory": (size * [random.integers(-most, most + 1) for most in lots]).tolist(),
        "horizon": random.uniform(0.1, 1.0),
        "num_steps": int(random.integers(2, 8)),
        "risk_aversion": random.uniform(0.0, 1.0),
        "terminal_penalty": random.uniform(0.0, 0.5),
        "min_depth": (-random.uniform(0.0, 1.0, (n, 2)) / decay).tolist(),
        "max_depth": (random.uniform(1.5, 4.0, (n, 2)) / decay).tolist(),
    }


def assets(number):
    p = multi_asset_glft.Params.create(**drawn_assets(number))
    given = {name: getattr(p, name) for name in Assets._fields if name in p._fields}
    lots = {name: tuple(map(int, values)) for name, values in (("limits", p.limits), ("starting", p.starts))}
    return MultiAssetProblem(p), DeclaredProblem(ASSETS[p.num_assets], Assets(**given, **lots))


# The roles of the mean-field market: the crowd is a table over steps of fill rates at depth 0 and of drifts


class Player(NamedTuple):
    """What a role is, against a crowd: rates (N, 2) and drifts (N,) by step, the law (inventory, signal, chance)."""

    volatility: float
    bid_decay: float
    ask_decay: float
    order_size: float
    long: int
    short: int
    signal_levels: int
    signal_unit: float
    signal_rates: tuple[tuple[float, float], ...]  # up and down, by 1, 2, ... levels
    running_penalty: float
    max_depth: float
    horizon: float
    num_steps: int
    crowd_rates: tuple[tuple[float, float], ...]
    crowd_drift: tuple[float, ...]
    law: tuple[tuple[float, float, float], ...]


def quote(name, sign, j):
    return declare.Event(
        name,
        intensity=lambda p, x, u: p.crowd_rate[x.step, j] * declare.exp(-(p.bid_decay, p.ask_decay)[j] * u[j]),
        effect=lambda x: (x.signal, x.inventory + sign),
        payoff=lambda p, u: p.order_size * u[j],
        when=(lambda p, x: x.inventory < p.long) if sign > 0 else (lambda p, x: x.inventory > -p.short),
        counts=name,
    )


def belief(name, sign, size):
    return declare.Event(
        f"{name}_{size}",
        intensity=lambda p: p.jump[size - 1, (1 - sign) // 2],
        effect=lambda x: (x.signal + sign * size, x.inventory),
        when=lambda p, x: sign * x.signal + size <= p.signal_levels,
    )


SIZES = 4  # of jumps of the signal, in levels


PLAYER = declare.Market(
    name="restated_mean_field",
    params=Player,
    coordinates=[
        declare.Coordinate("signal", lambda p: -p.signal_levels, lambda p: p.signal_levels),
        declare.Coordinate("inventory", lambda p: -p.short, lambda p: p.long),
    ],
    controls=[
        declare.Box("bid_depth", lambda p: -p.max_depth, lambda p: p.max_depth, lambda p: 1.0 / p.bid_decay),
        declare.Box("ask_depth", lambda p: -p.max_depth, lambda p: p.max_depth, lambda p: 1.0 / p.ask_decay),
    ],
    events=[
        quote("bid", 1, 0),
        quote("ask", -1, 1),
        *(belief(name, sign, size) for size in range(1, SIZES + 1) for name, sign in (("up", 1), ("down", -1))),
    ],
    position=lambda p, x: p.order_size * x.inventory,
    variance=lambda p: p.volatility**2,
    drift=lambda p, x: p.signal_unit * x.signal + p.drift_of[x.step],
    running_penalty=lambda p, x: p.running_penalty * (p.order_size * x.inventory) ** 2,
    start=lambda p: [((int(signal), int(lots)), chance) for lots, signal, chance in p.law],
    tables={
        "crowd_rate": (lambda p: p.crowd_rates, (2048, 2)),
        "drift_of": (lambda p: p.crowd_drift, (2048,)),
        "jump": (lambda p: p.signal_rates, (SIZES, 2)),
    },
    policies={"constant": lambda p, x, n: (1.0 / p.bid_decay, 1.0 / p.ask_decay)},
)


def player(p, flow, parts=1):
    """A role against a flow, each step in so many parts, in which the crowd moves the price at an even pace."""
    moved = p.impact * np.diff(flow.powers(np.linspace(0.0, 1.0, parts + 1)), axis=1)
    law = p.initial_law if p.role == "taker" else ((p.maker_initial_inventory / p.order_size, 0.0, 1.0),)
    shares = [*p.signal_jump_sizes, *[0.0] * (SIZES - len(p.signal_jump_sizes))]
    rates = tuple((p.signal_rate_up * share, p.signal_rate_down * share) for share in shares)
    return Player(
        p.volatility, *p.fill_decay.tolist(), p.order_size, p.long, p.short, p.signal_levels, p.signal_unit, rates,
        p.running_penalty, p.max_depth, p.horizon, parts * p.num_steps,
        tuple(map(tuple, np.repeat(p.factors(flow), parts, axis=0).tolist())),
        tuple((moved * parts / p.step_length).ravel().tolist()), law,
    )  # fmt: skip


def drawn_player(number, degree):
    """A role with random parameters against a random crowd, whose movement is a polynomial of that degree."""
    random = np.random.default_rng([222, number])
    limits, levels = random.integers(1, 6, (2, 2)), int(random.integers(0, 4))
    shape = int(limits[0].sum()) + 1, 2 * levels + 1
    law = random.random(shape) * (random.random(shape) < 0.3)
    law[0, 0] = 0.1
    decay = random.uniform(0.5, 3.0, (2, 2))
    shares = random.dirichlet(np.ones(max(min(int(random.integers(1, SIZES + 1)), 2 * levels), 1)))
    shares[: int(random.integers(0, len(shares)))] = 0.0
    kind = (mean_field.TakerParams, mean_field.MakerParams)[number % 2]
    p = kind.create(
        volatility=random.uniform(0.0, 3.0),
        impact=random.uniform(0.0, 0.05),
        signal_rate=random.uniform(0.0, 5.0, 2).tolist(),
        signal_limit=levels,
        signal_unit=random.uniform(0.2, 3.0),
        signal_jump_sizes=(shares / shares.sum()).tolist(),
        taker_fill_rate=random.uniform(0.5, 20.0, 2).tolist(),
        taker_fill_decay=decay[0].tolist(),
        maker_fill_rate=random.uniform(0.5, 20.0, 2).tolist(),
        maker_fill_decay=decay[1].tolist(),
        order_size=4.0,
        inventory_limit=(4.0 * limits[0]).tolist(),
        maker_inventory_limit=(4.0 * limits[1]).tolist(),
        maker_initial_inventory=4.0 * int(random.integers(-limits[1, 1], limits[1, 0] + 1)),
        taker_risk_aversion=random.uniform(0.0, 0.02),
        maker_risk_aversion=random.uniform(0.0, 0.02),
        max_depth=random.uniform(0.8, 3.0) / decay.max(),
        horizon=random.uniform(0.2, 2.0),
        num_steps=int(random.integers(2, 8)),
        initial_law=(law / law.sum()).tolist(),
        population="constant",
    )
    movement = np.zeros((p.num_steps, 17))
    movement[:, 1 : degree + 1] = random.normal(size=(p.num_steps, degree)) * 10.0 / np.arange(1, degree + 1)
    quotes = random.uniform(-0.5, 1.0, (p.num_steps, 2)) * p.max_depth
    return p, Flow(movement, quotes, random.random((p.num_steps, 2)))


def players(number):
    p, flow = drawn_player(number, 1)
    return MeanFieldProblem(p, flow), DeclaredProblem(PLAYER, player(p, flow))


# The tick spread: one choice is a whole action, whose market order is the impulse


class SpreadParams(tick_spread.Params):
    """Those of the hand-written market, of another type."""

    @property
    def sizes(self) -> int:
        """Sizes of an order: 0 is one of them."""
        return self.size_max + 1

    @property
    def num_actions(self) -> int:
        """Combinations of quotes, sizes and market order."""
        return 4 * self.sizes**2 * (2 * self.order_max + 1)


def spread_market(largest, spreads):
    """With room for sizes and numbers of spreads up to these."""

    @declare.njit
    def parts(p, action):
        """Improved bid and ask, bid and ask size, market order (lots)."""
        orders = 2 * p.order_max + 1
        rest, order = action // orders, action % orders - p.order_max
        rest, ask = rest // p.sizes, rest % p.sizes
        return rest // p.sizes // 2, rest // p.sizes % 2, rest % p.sizes, ask, order

    def allowed(p, x, entry):
        bid_quote, ask_quote, bid, ask, order = parts(p, entry)
        after = x.inventory + order
        inside = abs(after) <= p.limit and after + bid <= p.limit and after - ask >= -p.limit
        return inside and (x.spread > 0 or bid_quote + ask_quote == 0)

    def order_cost(p, spread, lots):
        return abs(lots) * p.crossing[spread] + p.fixed_fee if lots != 0 else 0.0

    order_cost = declare.njit(order_cost)

    def fills(size, sign):
        @declare.njit
        def room(p, x):
            return min(size, p.limit - sign * x.inventory)

        def intensity(p, x, u):
            bid_quote, ask_quote, bid, ask, _ = parts(p, u.action)
            if sign > 0:
                return p.bid_rate[bid_quote, x.spread] if bid == size else 0.0
            return p.ask_rate[ask_quote, x.spread] if ask == size else 0.0

        def payoff(p, x, u):
            bid_quote, ask_quote, _, _, _ = parts(p, u.action)
            return room(p, x) * p.edge[bid_quote if sign > 0 else ask_quote, x.spread]

        return declare.Event(
            f"{'bid' if sign > 0 else 'ask'}_{size}",
            intensity=intensity,
            effect=lambda p, x: (x.spread, x.inventory + sign * room(p, x)),
            payoff=payoff,
            when=lambda p, x: size <= p.size_max and sign * x.inventory < p.limit,
            counts="bid" if sign > 0 else "ask",
        )

    def jump(target):
        return declare.Event(
            f"spread_{target + 1}",
            intensity=lambda p, x: p.clock[x.step] * p.transition[x.spread, target],
            effect=lambda x: (target, x.inventory),
            when=lambda p, x: x.spread != target and target < p.num_spreads,
        )

    def clock(p):
        return [clock_profile(p, n * p.step_length, (n + 1) * p.step_length)[0, 0] for n in range(p.num_steps)]

    return declare.Market(
        name=f"restated_tick_spread_{largest}_{spreads}",
        params=SpreadParams,
        coordinates=[
            declare.Coordinate("spread", 0, lambda p: p.num_spreads - 1),
            declare.Coordinate("inventory", lambda p: -p.limit, lambda p: p.limit),
        ],
        controls=[declare.Choice("action", 0, lambda p: p.num_actions - 1, allowed)],
        events=[
            *(fills(size, sign) for sign in (1, -1) for size in range(1, largest + 1)),
            *map(jump, range(spreads)),
        ],
        impulse=declare.Impulse(
            effect=lambda p, x, u: (x.spread, x.inventory + parts(p, u.action)[4]),
            payoff=lambda p, x, u: -order_cost(p, x.spread, parts(p, u.action)[4]),
        ),
        position=lambda p, x: p.lot * x.inventory,
        variance=lambda p: p.volatility**2,
        running_penalty=lambda p, x: p.running_penalty * (p.lot * x.inventory) ** 2,
        liquidation=lambda p, x: order_cost(p, x.spread, x.inventory),
        start=lambda p: [((i, p.start), chance) for i, chance in enumerate(p.initial_spread_law.tolist())],
        tables={
            "bid_rate": (lambda p: p.bid_rates, (2, spreads)),
            "ask_rate": (lambda p: p.ask_rates, (2, spreads)),
            "edge": (lambda p: p.edges, (2, spreads)),
            "crossing": (lambda p: p.crossing_costs, (spreads,)),
            "transition": (lambda p: p.spread_transitions, (spreads, spreads)),
            "clock": (clock, (1024,)),
        },
        policies={"nothing": lambda p, x, n: (p.order_max,)},
    )


SPREAD = spread_market(2, 4)


def drawn_spread(number):
    random = np.random.default_rng([223, number])
    spreads, steps, lot = int(random.integers(2, 5)), int(random.integers(2, 6)), random.uniform(1.0, 20.0)
    limit, cara = int(random.integers(1, 6)), bool(random.random() < 0.5)
    horizon, tick = random.uniform(0.5, 5.0), random.uniform(0.002, 0.02)
    changes = sorted(random.choice(steps, int(random.integers(1, steps)), replace=False).tolist())
    pieces = [[0.0, random.uniform(0.0, 3.0)]]
    pieces += [[n * horizon / steps, random.uniform(0.0, 3.0)] for n in changes if n > 0]
    return {
        "tick": tick,
        "spread_transitions": random.dirichlet(np.ones(spreads), spreads).tolist(),
        "clock_rate": pieces,
        "fill_rate_best": random.uniform(0.0, 2.0, (2, spreads)).tolist(),
        "fill_rate_improved": random.uniform(0.0, 4.0, (2, spreads)).tolist(),
        "rebate": random.uniform(-0.2, 0.5) * tick,
        "fee": random.uniform(-0.4, 0.5) * tick,
        "fixed_fee": random.uniform(0.0, 0.1) * tick,
        "running_penalty": None if cara else 10.0 ** random.uniform(-6.0, -3.0),
        "lot": lot,
        "limit_order_max": lot * random.integers(1, 3),
        "market_order_max": lot * random.integers(0, 3),
        "inventory_limit": lot * limit,
        "initial_inventory": lot * random.integers(-limit, limit + 1),
        "volatility": random.uniform(0.0, 0.02),
        "horizon": horizon,
        "num_steps": steps,
        "initial_spread": "stationary",
        "utility": "cara" if cara else "mean",
        "risk_aversion": random.uniform(0.01, 0.5),
    }


def spreads(number):
    given = drawn_spread(number)
    return (
        TickSpreadProblem(tick_spread.Params.create(**given)),
        DeclaredProblem(SPREAD, SpreadParams.create(**given)),
    )


def as_action(hand, states, controls):
    """The action (M, 1) of the declared tick spread that plays controls (M, 5) of the hand-written one."""
    postings, order, _ = hand.admitted(states, controls)
    p = hand.params
    bid_quote, ask_quote, bid, ask = postings.T
    number = ((bid_quote * 2 + ask_quote) * (p.size_max + 1) + bid) * (p.size_max + 1) + ask
    return (number * (2 * p.order_max + 1) + order + p.order_max)[:, None].astype(np.float64)


# The comparisons

MARKETS = {"several assets": assets, "mean field": players, "tick spread": spreads}
LONG = pytest.mark.long
COUNT = 50  # random sets of parameters


def late(market, number):
    """Marks of a set: the fast suite has one of the market that compiles quickly, the long one three of each."""
    if number > 2:
        return [pytest.mark.slow]
    return [] if market == "mean field" and number == 0 else [LONG]


def cases(*markets):
    """Markets and numbers of sets."""
    pairs = [(market, number) for market in markets for number in range(COUNT)]
    return [pytest.param(*case, marks=late(*case)) for case in pairs]


def played(hand, stated, states, random):
    """Random controls (M, C) of states (M,), as the hand-written and as the declared market take them."""
    if hand.num_controls == stated.num_controls:
        controls = random.uniform(hand.low_controls, hand.high_controls, (len(states), hand.num_controls))
        return controls, controls
    actions = random.integers(0, hand.params.action_sizes, (len(states), 5))
    controls = hand.controls(actions)
    return controls, as_action(hand, states, controls)


def require_equal(actual, expected, tolerance=1e-10):
    assert np.abs(actual - expected).max() <= tolerance * (1e-3 + np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize(("market", "number"), cases(*MARKETS))
def test_one_step_law(market, number):
    hand, stated = MARKETS[market](number)
    random = np.random.default_rng([1, number])
    n, states = int(random.integers(hand.num_steps)), random.integers(0, hand.num_states, 40)
    controls, others = played(hand, stated, states, random)
    for functional in functionals(hand):
        assert np.allclose(hand.terminal(functional), stated.terminal(functional), rtol=1e-13, atol=1e-15)
        values = hand.terminal(functional) + random.normal(size=(hand.num_states, functional.columns)) * 0.1
        if functional.moments == 2:
            values[:, 1] += values[:, 0] ** 2
        expected = hand.backward(n, states, controls, values, functional)
        require_equal(stated.backward(n, states, others, values, functional), expected)
        if functional.exponents is not None:
            expected = hand.backward_without_inventory(n, states, controls, values, functional)
            require_equal(stated.backward_without_inventory(n, states, others, values, functional), expected)


@pytest.mark.long
@pytest.mark.parametrize(("market", "number"), cases(*MARKETS))
def test_optimum_and_scores(market, number):
    """The optimum, and the exact value, moments and law of it and of a random policy."""
    hand, stated = MARKETS[market](number)
    expected, solution = solve(hand), solve(stated)
    require_equal(stated.initial, hand.initial, 1e-12)
    require_equal(solution.values, expected.values)
    random = np.random.default_rng([2, number])
    everywhere = np.arange(hand.num_states)
    tables = [[played(hand, stated, everywhere, random) for _ in range(hand.num_steps)]]
    best = expected.controls
    tables.append([(c, c if c.shape[1] == stated.num_controls else as_action(hand, everywhere, c)) for c in best])
    for table in tables:
        first, second = (np.array(column) for column in zip(*table, strict=True))
        require_equal(state_laws(stated, second), state_laws(hand, first), 1e-12)
        require_equal(criterion_value(stated, second), criterion_value(hand, first))
        for functional in functionals(hand):
            require_equal(evaluate(stated, second, functional)[0], evaluate(hand, first, functional)[0])
    assert criterion_value(stated, second) == pytest.approx(criterion_value(hand, best), rel=1e-10)


@pytest.mark.long
@pytest.mark.parametrize(("market", "number"), cases("several assets", "mean field"))
def test_gradients(market, number):
    hand, stated = MARKETS[market](number)
    random = np.random.default_rng([3, number])
    shape = (hand.num_steps, hand.num_states, hand.num_controls)
    table, states = random.uniform(hand.low_controls, hand.high_controls, shape), np.arange(hand.num_states)
    both = []
    for problem in (hand, stated):
        value, raw, weights = visits(problem, table)
        slopes = [problem.gradient(n, states, table[n], raw[n + 1][:, None])[1] for n in range(problem.num_steps)]
        both.append((value, weights[..., None] * np.array(slopes)))
    require_equal(both[1][0], both[0][0])
    require_equal(both[1][1], both[0][1])


@pytest.mark.parametrize("number", [pytest.param(number, marks=late("crowd", number)) for number in range(COUNT)])
def test_a_crowd_that_speeds_up_inside_a_step(number):
    """A declared drift is even in a step: steps are cut into 2, 4, ... parts, and what is left is extrapolated away.

    The quotes are those of a step in all states, as those of a state stand for the whole step.
    """
    p, flow = drawn_player(number, 5)
    hand = MeanFieldProblem(p, flow)
    quotes = np.random.default_rng([4, number]).uniform(0.0, p.max_depth, (p.num_steps, 1, 2))
    table = np.repeat(quotes, hand.num_states, axis=1)
    columns = [[]]
    for parts in (2, 4, 8, 16, 32, 64):
        stated = DeclaredProblem(PLAYER, player(p, flow, parts))
        columns[0].append(evaluate(stated, np.repeat(table, parts, axis=0), stated.criterion)[0][0])
    for power in range(1, 6):  # Romberg: the error has even powers of the length
        last = columns[-1]
        columns.append([b + (b - a) / (4**power - 1.0) for a, b in pairwise(last)])
    expected = evaluate(hand, table, hand.criterion)[0][0]
    assert np.abs(columns[0][0] - expected).max() > 1e-6 * np.abs(expected).max()  # it matters
    require_equal(columns[-1][-1], expected)
