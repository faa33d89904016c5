"""Quotes in whole ticks: against a search over all pairs with dense exponentials, and the market between ticks."""

import itertools
import math

import numpy as np
import pytest
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines.catalogue import params_of

ID, BETWEEN = "mmgym/TickQuotes-v0", "mmgym/FillCurves-v0"
CURVES = {
    "exponential": lambda y: math.exp(-y),
    "linear": lambda y: max(1.0 - y, 0.0),
    "logistic": lambda y: 2.0 / (1.0 + math.exp(2.0 * y)),
    "power": lambda y: (1.0 + y / 3.0) ** -3.0,
}


def brute_force(a, ticks, steps=3):
    """Best ticks (steps, 3, 2) of inventories -D, 0 and D, and the value from 0."""
    size, gamma, cara = a["order_size"], a["risk_aversion"], a["utility"] == "cara"
    held, dt = size * np.array([-1.0, 0.0, 1.0]), a["horizon"] / steps
    end = -a["terminal_penalty"] * held**2
    values, best = np.exp(-gamma * end) if cara else end, np.empty((steps, 3, 2))
    steps_of = {}
    for pair in itertools.product(ticks, ticks):
        generator = np.zeros((4, 4))  # the last column and row: what is earned meanwhile
        for i, (tick, way) in itertools.product(range(3), zip(pair, (1, -1), strict=True)):
            if 0 <= i + way < 3:
                depth = a["tick"] * tick
                rate = a["fill_rate"] * CURVES[a["fill_curve"]](a["fill_decay"] * depth)
                pay = size * (depth - a["fee"]) - a["fixed_fee"]
                generator[i, i] -= rate
                generator[i, i + way] += rate * (math.exp(-gamma * pay) if cara else 1.0)
                generator[i, 3] += 0.0 if cara else rate * pay
        noise = (a["volatility"] * held) ** 2
        if cara:
            generator[range(3), range(3)] += 0.5 * gamma**2 * noise
        else:
            generator[:3, 3] -= a["running_penalty"] * held**2
        steps_of[pair] = expm(generator * dt)
    pairs = list(steps_of)
    for n in reversed(range(steps)):
        worths = np.array([(steps_of[pair] @ np.append(values, 1.0))[:3] for pair in pairs])
        if cara:
            worths = np.array([steps_of[pair][:3, :3] @ values for pair in pairs])
        chosen = worths.argmin(axis=0) if cara else worths.argmax(axis=0)
        values, best[n] = worths[chosen, range(3)], np.array(pairs)[chosen]
    return best, -math.log(values[1]) / gamma if cara else values[1]


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_the_optimum_is_the_best_of_all_pairs(kind, utility):
    random = np.random.default_rng([list(CURVES).index(kind), utility == "cara"])
    size, decay = random.uniform(0.5, 2.0), random.uniform(0.5, 2.0)
    arguments = {
        "fill_curve": kind, "utility": utility, "order_size": size, "inventory_limit": size, "fill_decay": decay,
        "fill_rate": random.uniform(1.0, 20.0), "horizon": random.uniform(0.2, 1.0), "num_steps": 3,
        "volatility": random.uniform(0.1, 1.5), "risk_aversion": random.uniform(0.05, 0.5),
        "terminal_penalty": random.uniform(0.0, 0.3), "fee": random.uniform(-0.1, 0.1),
        "fixed_fee": random.uniform(-0.1, 0.2), "tick": 0.13 / decay, "min_depth": -0.7 / decay,
        "max_depth": random.uniform(0.8, 2.0) / decay,
        "running_penalty": random.uniform(0.0, 1.0) if utility == "mean" else None,
    }  # fmt: skip
    ticks = [i for i in range(-50, 50) if -0.7 <= 0.13 * i <= arguments["max_depth"] * decay]
    controls, value = brute_force(arguments, ticks)
    optimum = baselines.optimal_policy(ID, **arguments)
    assert optimum.optimum == pytest.approx(value, rel=1e-11, abs=1e-12)
    for state, side in ((0, 0), (1, 0), (1, 1), (2, 1)):  # sides that are open
        assert np.array_equal(optimum.controls[:, state, side], controls[:, state, side])
    assert optimum.level == "exact"


def test_small_ticks_are_no_ticks():
    arguments = {"num_steps": 10, "inventory_limit": 3.0, "horizon": 0.1, "fixed_fee": 0.1}
    between = baselines.optimal_policy(BETWEEN, **arguments).optimum
    lost = [between - baselines.optimal_policy(ID, tick=tick, **arguments).optimum for tick in (0.16, 0.08, 0.04, 0.02)]
    assert all(0.0 < fine < coarse for coarse, fine in itertools.pairwise(lost))
    assert lost[-1] < lost[0] / 16  # a quarter of it with half the tick, more or less


def test_ticks_at_the_bounds_of_the_box_are_in_it():
    p = params_of(ID, tick=0.1, min_depth=-0.3, max_depth=0.7)
    assert (p.lowest, p.highest) == (-3, 7)


@pytest.mark.parametrize(
    "arguments", [{"tick": 3.0}, {"tick": 1e-3}, {"tick": 0.9, "min_depth": 0.1, "max_depth": 1.1}]
)
def test_too_few_or_too_many_ticks_are_refused(arguments):
    with pytest.raises(ValueError, match="there must be 2 to 301 whole ticks"):
        params_of(ID, **arguments)
