"""Baselines under stochastic volatility, against the model file, affine closed forms and the GLFT market.

`check_baseline` states its false-alarm rate: 1e-3 a call, with fixed seeds.
"""

import gymnasium
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import mmgym  # noqa: F401  # registers the ids
from mmgym.baselines import optimal_policy, paper_policies, score
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.frozen import Functional, solve
from mmgym.baselines.glft.continuous import continuous_values as plain_values
from mmgym.baselines.stochastic_volatility import (
    VarianceGrid,
    VarianceProblem,
    blind_values,
    continuous_value,
    continuous_values,
)
from mmgym.baselines.stochastic_volatility.continuous import plain_params
from mmgym.models.stochastic_volatility import Params

ID = "mmgym/StochasticVolatility-v0"


@pytest.mark.parametrize(
    ("variance", "expected", "blind"),
    [
        (1.0, 65.8118727924, 65.8094407059),
        (4.0, 65.6346237729, 65.6313772868),
        (9.0, 65.3542278739, 65.3498212321),
    ],
)
def test_continuous_time_values_are_those_of_the_model_file(variance, expected, blind):
    params = Params.create(initial_variance=variance)
    assert continuous_value(params) == pytest.approx(expected, abs=1e-9)
    assert continuous_value(params, nodes=19) == pytest.approx(expected, abs=1e-9)
    assert blind_values(params, 1)[0, params.limit] == pytest.approx(blind, abs=1e-9)


@pytest.mark.parametrize(("volatility", "correlation"), [(1.5, -0.5), (1.5, 0.8), (5.0, -0.2)])
@pytest.mark.filterwarnings("ignore:Feller")
def test_cara_without_fills_is_the_affine_transform_of_heston(volatility, correlation):
    """``E[exp(z (S_T - S_0))] = exp(C + B nu_0)``, Riccati in B (Heston 1993); the last case violates Feller."""
    params = Params.create(
        fill_rate=1e-12,
        fill_decay=0.01,  # fills stay rare at any value of the inventory
        variance_volatility=volatility,
        correlation=correlation,
        initial_variance=2.0,
        drift=0.3,
    )
    values, grid = continuous_values(params, "cara", nodes=9)
    interpolated = values[0] @ grid.interpolation(np.array([2.0]))[0]
    for index, q in enumerate(range(-5, 6)):
        z = -0.1 * q

        def riccati(_, y, z=z):
            b = y[0]
            slope = 0.5 * z * z + (correlation * volatility * z - 3.0) * b + 0.5 * volatility**2 * b * b
            return [slope, 12.0 * b]

        b, c = solve_ivp(riccati, (0.0, 1.0), [0.0, 0.0], rtol=1e-12, atol=1e-14).y[:, -1]
        assert interpolated[index] == pytest.approx(0.3 * q - (c + 2.0 * b) / 0.1, abs=1e-8)


@pytest.mark.filterwarnings("ignore:Feller")
def test_a_utility_near_its_explosion_is_refused():
    with pytest.raises(ArithmeticError, match="nodes of the variance"):
        continuous_value(Params.create(variance_volatility=8.0, initial_inventory=5.0, risk_aversion=0.4), "cara")


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_constant_variance_is_the_glft_market(utility):
    params = Params.create(variance_volatility=0.0, drift=0.4, fill_rate=[140.0, 100.0], terminal_penalty=0.05)
    expected = plain_values(plain_params(params, utility), 1)[0, params.limit]
    assert continuous_value(params, utility) == pytest.approx(expected, abs=1e-8)


@pytest.mark.filterwarnings("ignore:Feller")
@pytest.mark.parametrize("volatility", [1.5, 7.0])
def test_expectations_of_polynomials_are_exact(volatility):
    """Mean and second moment of the square-root process (Cox, Ingersoll & Ross 1985, eq. 19)."""
    grid = VarianceGrid(Params.create(variance_volatility=volatility), 9)
    fade = np.exp(-3.0 * 0.2)
    mean = 4.0 + (grid.nodes - 4.0) * fade
    variance = volatility**2 / 3.0 * (grid.nodes * (fade - fade**2) + 2.0 * (1.0 - fade) ** 2)
    step = grid.expectation(0.2)
    size = grid.largest**2
    assert step @ grid.nodes == pytest.approx(mean, rel=1e-9)
    assert step @ grid.nodes**2 == pytest.approx(mean**2 + variance, abs=1e-10 * size)
    points = np.array([0.0, 0.7, grid.nodes[3], grid.largest])
    assert grid.interpolation(points) @ grid.nodes**3 == pytest.approx(points**3, abs=1e-9 * grid.largest**3)


def test_one_step_is_that_of_the_kolmogorov_equation():
    """The fading reward rate and the chain's fills, against an ODE in time."""
    params = Params.create(num_steps=4, inventory_limit=2.0, drift=0.5)
    problem = VarianceProblem(params, 5)
    depths, variance, h = np.array([0.3, 0.7]), 9.0, params.step_length
    ahead = np.array([[-1.0], [0.5], [1.0], [0.2], [-2.0]])
    up, down = 140.0 * np.exp(-1.5 * depths)
    generator = np.zeros((5, 5))
    for q in range(5):
        if q < 4:
            generator[q, q + 1] += up
        if q > 0:
            generator[q, q - 1] += down
        generator[q, q] -= generator[q].sum()
    lots = np.arange(-2, 3)
    earned = up * depths[0] * (lots < 2) + down * depths[1] * (lots > -2) + 0.5 * lots

    def slope(left, f):
        nu = 4.0 + 5.0 * np.exp(-3.0 * (h - left))
        return generator @ f + earned - 0.05 * nu * lots**2

    expected = solve_ivp(slope, (0.0, h), ahead[:, 0], rtol=1e-12, atol=1e-13).y[:, -1]
    functional = Functional(gain=1.0, penalty=1.0)
    means = problem.means(
        np.arange(5), np.zeros(5, dtype=int), np.full(5, variance), np.tile(depths, (5, 1)), ahead, functional
    )
    assert means == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("observed", [True, False])
def test_no_depths_are_better_than_the_best(observed):
    params = Params.create(num_steps=6, inventory_limit=2.0, initial_variance=16.0, observe_variance=observed)
    problem = VarianceProblem(params, 5)
    values = problem.terminal(problem.criterion) - 0.3 * problem.observations(1)[:, 1:2].astype(float) ** 2
    controls, best = problem.improve(0, values)
    for state in range(problem.num_states):

        def loss(depths, state=state):
            return -problem.backward(0, np.array([state]), depths[None, :], values, problem.criterion)[0, 0]

        searched = minimize(loss, controls[state], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13})
        assert -searched.fun <= best[state, 0] + 5e-8  # a step of eight fills: the polishing converges slowly


def test_hidden_or_constant_variance_has_the_optimum_of_the_glft_market():
    """At the long-run variance its expectation never moves, so that the penalty is the constant ``gamma theta / 2``."""
    arguments = {"fill_rate": 140.0, "fill_decay": 1.5, "inventory_limit": 5.0, "horizon": 1.0, "num_steps": 50}
    expected = optimal_policy("mmgym/GLFT-v0", volatility=2.0, risk_aversion=0.1, **arguments).optimum
    assert optimal_policy(ID, num_steps=50, observe_variance=False).optimum == pytest.approx(expected, abs=1e-8)
    assert optimal_policy(ID, num_steps=50, variance_volatility=0.0).optimum == pytest.approx(expected, abs=1e-8)


@pytest.mark.long
def test_the_optimum_tends_to_the_continuous_one():
    coarse, fine = (optimal_policy(ID, num_steps=n).optimum for n in (100, 200))
    assert coarse < fine < 65.6346237729
    assert 2.0 * fine - coarse == pytest.approx(65.6346237729, abs=5e-3)  # the error is of first order


def test_seeing_the_variance_is_worth_something_and_the_blind_are_scored_below():
    env = gymnasium.make(ID, num_steps=50)
    policies = paper_policies(env)
    best = optimal_policy(env)
    scores = {name: score(env, policies[name], episodes=200) for name in ("hjb", "variance_blind", "constant")}
    assert scores["constant"].skill == pytest.approx(0.0, abs=1e-12)
    assert scores["constant"].value < scores["variance_blind"].value < scores["hjb"].value < best.optimum
    hidden = optimal_policy(ID, num_steps=50, observe_variance=False).optimum
    assert 0.001 < best.optimum - hidden < 0.01
    seen = score(env, best, method="simulated", episodes=200)
    assert seen.stderr < 1e-4
    assert seen.value == pytest.approx(best.optimum, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Feller")
@pytest.mark.parametrize(
    "arguments", [{"observe_variance": False}, {"variance_volatility": 8.0, "variance_reversion": 5.0}]
)
def test_conformance_hidden_and_with_feller_violated(arguments):
    check_baseline(ID, episodes=1_000, num_steps=6, horizon=0.2, inventory_limit=2.0, **arguments)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Feller")
def test_an_optimum_that_is_not_resolved_is_refused():
    with pytest.raises(ArithmeticError, match="variance spreads too far"):
        optimal_policy(ID, num_steps=20, variance_volatility=300.0, fill_rate=5.0)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Feller")
@pytest.mark.parametrize(
    ("arguments", "nodes"),
    [
        ({"variance_volatility": 1.5, "inventory_limit": 5.0}, 19),
        ({"variance_volatility": 8.0, "inventory_limit": 2.0}, 15),
        pytest.param({"variance_volatility": 8.0, "inventory_limit": 5.0}, 15, marks=pytest.mark.long),
        pytest.param({"variance_volatility": 8.0, "inventory_limit": 5.0}, 19, marks=pytest.mark.long),
        pytest.param({"variance_volatility": 8.0, "fill_rate": 35.0}, 15, marks=pytest.mark.long),
    ],
)
def test_the_stated_error_covers_a_finer_grid(arguments, nodes):
    """At a volatility of 8 the values converge up to 15 nodes, and on more the matrices magnify rounding."""
    env = gymnasium.make(ID, num_steps=20, **arguments)
    bounds = optimal_policy(env).bounds
    problem = VarianceProblem(env.unwrapped.params, nodes)
    assert abs(float(problem.initial @ solve(problem).values[0]) - bounds.upper) <= bounds.error
