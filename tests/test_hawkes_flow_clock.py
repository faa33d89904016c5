"""The Hawkes flow market with decisions by the clock: the optimum of depths that are frozen while orders come.

Second methods: without excitation the matrix exponential of the inventory's chain, maximised by scipy; constant depths,
which are worth the same whenever they are decided on; and simulation, with a false-alarm rate of 1e-3 a test function.
"""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm
from scipy.optimize import minimize

from mmgym import baselines
from mmgym.baselines.frozen import Functional
from mmgym.baselines.hawkes_flow import FINE, HawkesFlowBaseline, Resolution, clock_march, march, solve
from mmgym.baselines.hawkes_flow.rates import rate_grids
from mmgym.models.hawkes_flow import Params

pytestmark = pytest.mark.usefixtures("solutions_of_its_own")
ID = "mmgym/HawkesFlow-v0"
FALSE_ALARMS = 1e-3
SMALL = {"decision": "clock", "horizon": 2.0, "num_steps": 8, "inventory_limit": 2}
UNEQUAL = {
    "base_rate": [0.8, 0.5],
    "excitation": [1.0, 2.0],
    "decay": [2.0, 4.0],
    "impact": [0.05, 0.15],
    "fill_decay": [3.0, 5.0],
    "initial_rates": [2.5, 0.5],
    "running_penalty": 0.02,
}


def at_start(params, tables):
    """The value of the last level at the initial state."""
    p, field = params, tables.values[-1]
    buy, sell = rate_grids(p, tables.largest, *field.shape[1:])
    across = buy.matrix(np.array([p.initial_rate_buy - p.base_rate_buy]))
    along = sell.matrix(np.array([p.initial_rate_sell - p.base_rate_sell]))
    return float((across @ field[p.initial_inventory + p.inventory_limit] @ along.T)[0, 0])


def step_worth(p, offsets, values):
    """Worth of a step of Poisson orders at offsets [bid, ask], from each inventory: the exponential of a chain."""
    atoms = np.array([p.reach_atom_sell, p.reach_atom_buy])
    decays = np.array([p.fill_decay_sell, p.fill_decay_buy])
    fills = np.where(offsets > 0.0, (1.0 - atoms) * np.exp(-decays * offsets), 1.0)
    limit, rates = p.inventory_limit, (p.base_rate_sell, p.base_rate_buy)
    impacts = (p.impact_sell, p.impact_buy)
    size = 2 * limit + 1
    chain = np.zeros((size + 1, size + 1))  # the last column: what is earned
    for i in range(size):
        q = i - limit
        chain[i, size] -= p.running_penalty * q * q + q * (rates[0] * impacts[0] - rates[1] * impacts[1])
        for k, step in enumerate((1, -1)):
            if abs(q + step) <= limit:
                rate = rates[k] * fills[k]
                chain[i, i + step] += rate
                chain[i, i] -= rate
                chain[i, size] += rate * (p.half_spread + offsets[k] - impacts[k])
    return expm(p.step_length * chain)[:size] @ np.append(values, 1.0)


def best_by_hand(params):
    """Values of the best depths from each inventory, without excitation."""
    limit, high = params.inventory_limit, 2.0 * params.depth_reach
    q = np.arange(-limit, limit + 1.0)
    values = -params.half_spread * np.abs(q) - params.terminal_penalty * q**2
    starts = [np.array([x, y]) for x in (0.1, 0.4) for y in (0.1, 0.4)]
    for _ in range(params.num_steps):
        before = np.empty(len(values))
        for i in range(len(values)):
            tried = [
                minimize(
                    lambda d, i=i, v=values: -step_worth(params, d, v)[i], start * box, bounds=[(0.0, x) for x in box]
                )
                for box in (high, high * [0.0, 1.0], high * [1.0, 0.0])  # with one of them at the best price
                for start in starts
            ]
            before[i] = max(-min(t.fun for t in tried), step_worth(params, np.zeros(2), values)[i])
        values = before
    return values


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_rate": [1.0, 1.5], "horizon": 2.0, "num_steps": 3, "inventory_limit": 1},
        {"base_rate": [6.0, 4.0], "horizon": 1.0, "num_steps": 2, "inventory_limit": 3, "terminal_penalty": 0.5},
        {"base_rate": [2.0, 3.0], "horizon": 1.0, "num_steps": 2, "inventory_limit": 2, "reach_atom": [0.3, 0.6]},
        {"base_rate": [0.7, 0.4], "horizon": 1.1, "num_steps": 4, "inventory_limit": 1, "reach_atom": [0.4, 1.0]},
        {"base_rate": [0.2, 0.8], "horizon": 3.0, "inventory_limit": 2, "reach_atom": 1.0, "terminal_penalty": 1.0},
        {"base_rate": [9.0, 9.0], "horizon": 0.4, "num_steps": 1, "inventory_limit": 2, "impact": 0.5},
    ],
    ids=str,
)
def test_without_excitation_the_optimum_is_that_of_the_inventory_chain(arguments):
    shared = {"decision": "clock", "num_steps": 1, "excitation": 0.0, "initial_rates": arguments["base_rate"]}
    params = Params.create(**shared | arguments)
    optimum = best_by_hand(params)[params.inventory_limit]
    solved = solve(params, True)
    assert abs(solved.value - optimum) <= solved.error
    assert solved.value == pytest.approx(optimum, abs=2e-6)


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, UNEQUAL, {"horizon": 3.0, "num_steps": 2, "inventory_limit": 3}], ids=str)
def test_constant_depths_are_worth_the_same_whenever_they_are_decided_on(arguments):
    params = Params.create(**{**SMALL, **arguments})

    def constant(time_left, inventory, buy_rate, sell_rate):
        return np.array([params.half_spread + 0.05, params.half_spread + 0.2])

    for functional in (Functional(gain=1.0, penalty=1.0), Functional(fills=1.0), Functional(absolute_inventory=1.0)):
        by_clock = clock_march(params, FINE, depths=constant, functional=functional)
        at_once = march(params, Resolution(20, 0.05, 1e-5), held=False, depths=constant, functional=functional)
        assert at_start(params, by_clock) == pytest.approx(at_start(params, at_once), rel=2e-5, abs=2e-5)


@pytest.mark.long
def test_more_frequent_decisions_are_worth_more_and_in_the_end_as_much_as_depths_that_move_at_once():
    values = [solve(Params.create(**{**SMALL, "num_steps": steps}), True).value for steps in (2, 8, 32)]
    limit = solve(Params.create(**SMALL), False).value
    assert values[0] < values[1] < values[2] < limit
    gaps = limit - np.array(values)
    assert gaps[2] < 0.35 * gaps[1]  # of first order in the step


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, {"impact": 0.3}, {"num_steps": 2}, {"reach_atom": 0.3}], ids=str)
def test_the_stated_error_bounds_the_distance_to_a_finer_solution(arguments):
    params = Params.create(**{**SMALL, **arguments})
    solved = solve(params, True)
    finer = at_start(params, clock_march(params, Resolution(28, 0.12, 1e-6)))
    assert abs(solved.value - finer) <= solved.error
    assert solved.error <= 3e-3


@pytest.mark.long
def test_the_optimum_by_the_clock_is_what_its_policy_earns():
    arguments = {**SMALL, "horizon": 4.0, "num_steps": 16, "inventory_limit": 3}
    best = baselines.optimal_policy(ID, **arguments)
    assert best.level == "certified"
    score = baselines.score(ID, best, **arguments)
    assert score.method == "numerical"
    assert abs(score.value - best.optimum) <= best.bounds.error
    event = solve(Params.create(**{**arguments, "decision": "event"}), True).value
    assert best.optimum < event
    rows = baselines.rollout(ID, best, episodes=10_000, seed=33, **arguments)
    returns = rows.groupby("episode")["reward"].sum()
    bound = stats.norm.isf(0.5 * FALSE_ALARMS / 2)
    assert abs(returns.mean() - best.optimum) < bound * returns.sem()
    joined = HawkesFlowBaseline(Params.create(**arguments)).policies()["event_optimum"]()
    simulated = baselines.score(ID, joined, method="simulated", episodes=2_000, **arguments)
    exact = baselines.score(ID, joined, **arguments)
    z = (simulated.value - exact.value) / math.hypot(simulated.stderr, exact.value_error)
    assert abs(z) < bound


@pytest.mark.long
def test_no_policy_is_above_the_optimum_by_the_clock():
    """Tilts of the optimum, to and fro: none is better, and the loss is of second order."""
    best = baselines.optimal_policy(ID, **SMALL)
    random = np.random.default_rng(12)

    params = Params.create(**SMALL)

    def worth(size, weights):
        def tilted(*state):
            left, inventory, buy, sell = np.broadcast_arrays(*state)
            seen = np.stack([left / 2.0, inventory / 2.0, buy / (buy + 1.2), sell / (sell + 1.2)], axis=-1)
            depths = best.depths(*state) + size * np.tanh(seen @ weights[:4] + weights[4])
            return np.clip(depths, params.half_spread, params.half_spread + 2.0 * params.depth_reach)

        return at_start(params, clock_march(params, FINE, depths=tilted))

    for _ in range(3):
        weights = random.uniform(-1.0, 1.0, (5, 2))
        losses = [best.optimum - worth(size, weights) for size in (0.02, -0.02, 0.1, -0.1)]
        assert min(losses) > -1e-6
        assert max(losses[:2]) < 0.15 * max(losses[2:])


@pytest.mark.long
@pytest.mark.parametrize("atom", [0.3, [0.3, 1.0]])
def test_where_the_best_depths_jump_the_optimum_is_bracketed(atom):
    """They jump with the intensities, and between nodes nobody knows where: tables of edges lost 24 of 6 there."""
    shared = {"decision": "clock", "reach_atom": atom, "inventory_limit": 1, "terminal_penalty": 30.0}
    poisson = {"base_rate": [1.5, 0.9], "excitation": 0.0, "initial_rates": [1.5, 0.9], "horizon": 4.0, "num_steps": 3}
    params = Params.create(**shared, **poisson)
    bounds = HawkesFlowBaseline(params).bounds()
    assert bounds.lower < best_by_hand(params)[params.inventory_limit] < bounds.upper + bounds.error
    excited = {**SMALL, **shared}
    best = baselines.best_known_policy(ID, **excited)
    assert best.level == "bracketed"
    returns = baselines.rollout(ID, best, episodes=10_000, seed=34, **excited).groupby("episode")["reward"].sum()
    bound = stats.norm.isf(FALSE_ALARMS / 2)
    assert best.bounds.lower - bound * returns.sem() < returns.mean() < best.bounds.upper + bound * returns.sem()
