"""The Guéant-Lehalle-Fernandez-Tapia market restated as a declaration, against its hand-written one-step law."""

import functools
import math

import numpy as np
import pytest

from mmgym import declare
from mmgym.baselines.declared import DeclaredProblem
from mmgym.baselines.frozen import PNL, Functional, evaluate, solve, state_laws, visits
from mmgym.baselines.glft import GLFTProblem
from mmgym.models import glft


def side(name, sign):
    """Fills of one side."""
    return declare.Event(
        name,
        intensity=bid_intensity if sign > 0 else ask_intensity,
        when=room_to_buy if sign > 0 else room_to_sell,
        effect=bought if sign > 0 else sold,
        payoff=bid_payoff if sign > 0 else ask_payoff,
        counts=name,
    )


def bid_intensity(p, u):
    return p.fill_rate_bid * declare.exp(-p.fill_decay_bid * u.bid_depth)


def ask_intensity(p, u):
    return p.fill_rate_ask * math.exp(-p.fill_decay_ask * u.ask_depth)


def room_to_buy(p, x):
    return x.inventory < p.limit


def room_to_sell(p, x):
    return x.inventory > -p.limit


def bought(x):
    return x.inventory + 1


def sold(x):
    return x.inventory - 1


def bid_payoff(p, u):
    return p.order_size * u.bid_depth


def ask_payoff(p, u):
    return p.order_size * u.ask_depth


def unit_bid(p):
    return 1.0 / p.fill_decay_bid


def unit_ask(p):
    return 1.0 / p.fill_decay_ask


class Params(glft.Params):
    """Those of the hand-written market, of another type."""


def restated():
    return declare.Market(
        name="restated_glft",
        params=Params,
        coordinates=[declare.Coordinate("inventory", lambda p: -p.limit, lambda p: p.limit)],
        controls=[
            declare.Box(
                "bid_depth", lambda p: p.min_depth_bid, lambda p: p.max_depth_bid, lambda p: 1 / p.fill_decay_bid
            ),
            declare.Box(
                "ask_depth", lambda p: p.min_depth_ask, lambda p: p.max_depth_ask, lambda p: 1 / p.fill_decay_ask
            ),
        ],
        events=[side("bid", 1), side("ask", -1)],
        position=lambda p, x: p.order_size * x.inventory,
        variance=lambda p: p.volatility**2,
        drift=lambda p: p.drift,
        running_penalty=lambda p, x: p.running_penalty * (p.order_size * x.inventory) ** 2,
        terminal_penalty=lambda p, x: p.terminal_penalty * (p.order_size * x.inventory) ** 2,
        start=lambda p: (p.start,),
        policies={"constant": lambda p, x, n: (1.0 / p.fill_decay_bid, 1.0 / p.fill_decay_ask)},
    )


MARKET = restated()


def drawn(number):
    """A random set of arguments."""
    random = np.random.default_rng([22, number])
    decay = random.uniform(0.5, 3.0, 2)
    cara = bool(random.random() < 0.5)
    limit = int(random.integers(1, 9))
    return {
        "volatility": random.uniform(0.0, 1.5),
        "fill_rate": random.uniform(0.5, 20.0, 2).tolist(),
        "fill_decay": decay.tolist(),
        "drift": random.uniform(-0.5, 0.5),
        "order_size": 0.5,
        "inventory_limit": 0.5 * limit,
        "initial_inventory": 0.5 * float(random.integers(-limit, limit + 1)),
        "horizon": 1.0,
        "num_steps": int(random.integers(3, 30)),
        "terminal_penalty": random.uniform(0.0, 0.5),
        "running_penalty": None if cara else random.uniform(0.0, 1.0),
        "utility": "cara" if cara else "mean",
        "risk_aversion": random.uniform(0.05, 0.8),
        "min_depth": (-random.uniform(0.0, 1.0, 2) / decay).tolist(),
        "max_depth": (random.uniform(1.5, 4.0, 2) / decay).tolist(),
    }


@functools.cache
def problems(number):
    arguments = drawn(number)
    return GLFTProblem(glft.Params.create(**arguments)), DeclaredProblem(MARKET, Params.create(**arguments)), number


def policy_gradient(problem, table):
    """The criterion of a table and its derivatives in every control."""
    value, raw, weights = visits(problem, table)
    states = np.arange(problem.num_states)
    slopes = [problem.gradient(n, states, table[n], raw[n + 1][:, None])[1] for n in range(problem.num_steps)]
    return value, weights[..., None] * np.array(slopes)


FUNCTIONALS = {
    "P&L": PNL,
    "all": Functional(gain=0.7, price=1.3, penalty=0.4, fills=0.2, absolute_inventory=0.6, moments=2),
    "real": Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([-0.3, 0.2])),
    "complex": Functional(gain=1.0, price=0.5, exponents=np.array([0.4j, -2.0j, 0.1 + 1.0j])),
}


@pytest.mark.long
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", FUNCTIONALS)
def test_one_step_law(number, name):
    functional = FUNCTIONALS[name]
    hand, stated, _ = problems(number)
    random = np.random.default_rng([1, number])
    states = random.integers(0, hand.num_states, 40)
    controls = random.uniform(hand.low_controls, hand.high_controls, (40, 2))
    assert np.allclose(hand.terminal(functional), stated.terminal(functional), rtol=1e-14, atol=0.0)
    values = hand.terminal(functional) + random.normal(size=(hand.num_states, functional.columns)) * 0.1
    expected = hand.backward(1, states, controls, values, functional)
    earlier = stated.backward(1, states, controls, values, functional)
    scale = 1.0 + np.abs(expected).max()
    assert np.abs(earlier - expected).max() < 1e-12 * scale
    controls[:] = controls[0]  # the same for all: another way is taken
    expected = hand.backward(1, states, controls, values, functional)
    earlier = stated.backward(1, states, controls, values, functional)
    assert np.abs(earlier - expected).max() < 1e-12 * scale
    if functional.exponents is not None:
        expected = hand.backward_without_inventory(1, states, controls, values, functional)
        earlier = stated.backward_without_inventory(1, states, controls, values, functional)
        assert np.abs(earlier - expected).max() < 1e-12 * scale


@pytest.mark.parametrize("number", [*range(12), *(pytest.param(k, marks=pytest.mark.long) for k in range(12, 50))])
def test_optimum(number):
    hand, stated, _ = problems(number)
    expected, solution = solve(hand), solve(stated)
    assert np.abs(solution.values - expected.values).max() < 1e-10 * (1.0 + np.abs(expected.values).max())


@pytest.mark.parametrize("number", range(6))
def test_laws_and_gradients(number):
    hand, stated, _ = problems(number)
    random = np.random.default_rng([2, number])
    table = random.uniform(hand.low_controls, hand.high_controls, (hand.num_steps, hand.num_states, 2))
    assert np.abs(state_laws(hand, table) - state_laws(stated, table)).max() < 1e-12
    expected, slopes = policy_gradient(hand, table)
    mine, others = policy_gradient(stated, table)
    assert abs(mine - expected) < 1e-12 * (1.0 + abs(expected))
    assert np.abs(slopes - others).max() < 1e-11 * (1.0 + np.abs(slopes).max())
    functional = hand.criterion
    assert np.allclose(evaluate(hand, table, functional)[0], evaluate(stated, table, functional)[0], rtol=1e-12)


def test_maps():
    hand, stated, _ = problems(3)
    for n in (0, 1, hand.num_steps):
        assert np.array_equal(hand.observations(n), stated.observations(n))
        for expected, actual in zip(
            hand.locate(hand.observations(n)), stated.locate(stated.observations(n)), strict=True
        ):
            assert np.array_equal(expected, actual)
    actions = np.random.default_rng(0).uniform(-1.1, 1.1, (100, 2)).astype(np.float32)
    assert np.array_equal(hand.controls(actions), stated.controls(actions))
    assert np.array_equal(hand.actions(hand.controls(actions)), stated.actions(stated.controls(actions)))
