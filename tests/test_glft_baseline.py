"""The GLFT baselines against the digits of the reference mathematics and against second methods."""

import numpy as np
import pytest
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines import frozen
from mmgym.baselines.catalogue import params_of, problem_of
from mmgym.baselines.frozen import Functional, criterion_value
from mmgym.baselines.glft import (
    avellaneda_stoikov_depths,
    continuous_depths,
    continuous_values,
    glft_asymptotic_depths,
    stationary_depths,
)
from mmgym.baselines.pnl_law import pnl_law
from mmgym.models.glft import Params

AS = "mmgym/AvellanedaStoikov-v0"
GLFT = "mmgym/GLFT-v0"
SMALL = {
    "volatility": 1.0,
    "fill_rate": 10.0,
    "fill_decay": 1.5,
    "terminal_penalty": 0.1,
    "running_penalty": 0.2,
    "horizon": 1.0,
    "inventory_limit": 3.0,
    "num_steps": 100,
}
SMALL_DRIFT = {**SMALL, "drift": 0.3, "fill_rate": [12.0, 8.0]}
SMALL_ASYMMETRIC = {**SMALL_DRIFT, "fill_decay": [1.5, 2.0]}
CJP = {
    "fill_rate": 1.0,
    "fill_decay": 100.0,
    "terminal_penalty": 1e-4,
    "running_penalty": 1e-5,
    "horizon": 30.0,
    "inventory_limit": 3.0,
    "num_steps": 30,
}
MODELS = {
    "AS_mean": (AS, {}),
    "AS_cara": (AS, {"utility": "cara"}),
    "GLFT2013": (GLFT, {"utility": "cara"}),
    "CJP": (GLFT, CJP),
    "SMALL": (GLFT, SMALL),
    "SMALL_drift": (GLFT, SMALL_DRIFT),
    "SMALL_asym_k": (GLFT, SMALL_ASYMMETRIC),
}

# Reference mathematics, section 7: v(0,0), bid and ask at q=0, bid and ask at q=1.
CONTINUOUS = {
    "AS_mean": (66.289207976486634, 0.6924963602, 0.6924963602, 0.7441215768, 0.6408369731),
    "AS_cara": (64.128480155129499, 0.6716435783, 0.6716435783, 0.7241234960, 0.6191268445),
    "GLFT2013": (1290.62509524680, 3.3130454098, 3.3130454098, 3.3811680739, 3.2449191548),
    "CJP": (0.205348302124313730, 0.0108222412, 0.0108222412, 0.0127555701, 0.0091777588),
    "SMALL": (4.197127025329688142, 0.7723455164, 0.7723455164, 0.9892553596, 0.5609878169),
    "SMALL_drift": (4.197881239156644257, 0.7707488356, 0.7762342832, 1.0000584289, 0.5625844978),
    "SMALL_asym_k": (3.7474999952950, 0.7618046701, 0.6043311756, 0.9705486908, 0.4048619965),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_solution_has_the_reference_digits(name):
    env, arguments = MODELS[name]
    params = params_of(env, **arguments)
    value, *depths = CONTINUOUS[name]
    values = continuous_values(params)
    solved = continuous_depths(params, values[0])
    centre = params.limit
    assert values[0, centre] == pytest.approx(value, rel=5e-14 if "asym" not in name else 1e-12)
    ours = [solved[centre, 0], solved[centre, 1], solved[centre + 1, 0], solved[centre + 1, 1]]
    np.testing.assert_allclose(ours, depths, rtol=0, atol=6e-11)


def test_closed_forms_at_zero_inventory():
    cara, mean = params_of(GLFT, utility="cara"), params_of(AS, utility="cara")
    assert glft_asymptotic_depths(mean)[0, mean.limit, 0] == pytest.approx(0.6712438194, abs=1e-10)
    assert glft_asymptotic_depths(cara)[0, cara.limit, 0] == pytest.approx(3.3129151986, abs=1e-10)
    assert avellaneda_stoikov_depths(mean)[0, mean.limit, 0] == pytest.approx(0.8453852114, abs=1e-10)
    assert avellaneda_stoikov_depths(cara)[0, cara.limit, 0] == pytest.approx(3.5489822823, abs=1e-10)


@pytest.mark.parametrize("name", ["AS_mean", "AS_cara", "SMALL_drift", "SMALL_asym_k"])
def test_stationary_depths_are_the_limit_of_a_long_horizon(name):
    env, arguments = MODELS[name]
    params = params_of(env, **{**arguments, "horizon": 40.0, "num_steps": 400})
    far = continuous_depths(params, continuous_values(params)[0])
    np.testing.assert_allclose(stationary_depths(params), far, atol=1e-8)


# Section 3: optimum of the frozen-quote game at different numbers of steps, and the continuous quotes played in it.
FROZEN = [
    (AS, {"num_steps": 10}, 65.3233049766, 64.937486),
    (AS, {"num_steps": 100}, 66.1982321920, 66.196045),
    (AS, {"num_steps": 200}, 66.2438786910, 66.243337),
    (AS, {"num_steps": 1000}, 66.2801658840, 66.280144),
    (GLFT, {**SMALL, "num_steps": 10}, 4.1208892481, 4.1141163845),
    (GLFT, {**SMALL, "num_steps": 100}, 4.1893089103, 4.1892478115),
    (GLFT, {**SMALL, "num_steps": 1000}, 4.1963438795, 4.1963432755),
]


@pytest.mark.parametrize(("env", "arguments", "optimum", "hjb"), FROZEN)
def test_frozen_optimum_has_the_reference_digits(env, arguments, optimum, hjb):
    best, problem = baselines.optimal_policy(env, **arguments), problem_of(env, **arguments)
    assert best.optimum == pytest.approx(optimum, abs=1.01e-10)  # the last printed digit may be cut, not rounded
    assert not best.binding.any()
    params = params_of(env, **arguments)
    played = continuous_depths(params, continuous_values(params)[:-1])
    digits = 6e-7 if hjb > 60 else 6e-11
    assert criterion_value(problem, played) == pytest.approx(hjb, abs=digits)


@pytest.mark.parametrize("steps", [1, 7, 200])
@pytest.mark.parametrize(("env", "arguments", "value"), [(AS, {}, 61.0384347660), (GLFT, SMALL, 3.69126578156)])
def test_constant_quote_is_worth_the_same_for_any_number_of_steps(env, arguments, value, steps):
    arguments = {**arguments, "num_steps": steps}
    problem = problem_of(env, **arguments)
    table = np.full((steps, problem.num_states, 2), 1.0 / 1.5)
    assert criterion_value(problem, table) == pytest.approx(value, abs=6e-11)


@pytest.mark.parametrize(
    "arguments",
    [
        SMALL_ASYMMETRIC,
        {**SMALL, "num_steps": 3},  # long steps
        {**SMALL_DRIFT, "order_size": 2.5, "inventory_limit": 10.0, "running_penalty": 0.02},
        {**SMALL, "inventory_limit": 1.0},
        {**SMALL_DRIFT, "utility": "cara", "running_penalty": None, "risk_aversion": 0.7},
    ],
)
def test_best_depths_against_grid_search_and_dense_exponential(arguments):
    """The Newton iteration finds the global maximum of a one-step value, here from a dense exponential."""
    params = params_of(GLFT, **arguments)
    problem = problem_of(GLFT, **arguments)
    n = params.num_steps - 1
    last = problem.terminal(problem.criterion)
    controls, best = problem.improve(n, last)
    sign = -1.0 if problem.aversion else 1.0
    q = np.arange(-params.limit, params.limit + 1) * params.order_size

    def one_step(depths):
        """Values of all inventories: exponential of the augmented generator."""
        bid = params.fill_rate_bid * np.exp(-params.fill_decay_bid * depths[0])
        ask = params.fill_rate_ask * np.exp(-params.fill_decay_ask * depths[1])
        size, count = params.order_size, len(q)
        gamma = problem.aversion
        up, down = np.full(count, bid), np.full(count, ask)
        up[-1] = down[0] = 0.0
        system = np.zeros((count + 1, count + 1))
        weight = np.exp(-gamma * size * np.asarray(depths)) if gamma else np.ones(2)
        system[np.arange(count - 1), np.arange(1, count)] = (up * weight[0])[:-1]
        system[np.arange(1, count), np.arange(count - 1)] = (down * weight[1])[1:]
        growth = 0.5 * (gamma * params.volatility * q) ** 2 - gamma * params.drift * q
        system[np.arange(count), np.arange(count)] = growth - up - down
        if not gamma:
            flow = params.drift * q - params.running_penalty * q**2
            system[:count, count] = size * (up * depths[0] + down * depths[1]) + flow
        return (expm(system * params.step_length) @ np.append(last[:, 0], 1.0))[:count]

    for s in range(problem.num_states):
        assert one_step(controls[s])[s] == pytest.approx(best[s, 0], rel=1e-12)
    grid = [np.linspace(low, high, 41) for low, high in zip(problem.low_controls, problem.high_controls, strict=True)]
    tried = np.max([[sign * one_step((b, a)) for b in grid[0]] for a in grid[1]], axis=(0, 1))
    assert np.all(sign * best[:, 0] >= tried - 1e-12 * np.abs(tried))
    assert np.all(sign * best[:, 0] <= tried + 0.02 * np.abs(tried))  # and the grid comes close to it


def test_optimum_respects_the_depth_box():
    arguments = {"min_depth": 0.6, "max_depth": 0.8}
    best = baselines.optimal_policy(AS, **arguments)
    assert best.binding.any()
    assert best.solution.controls.min() >= 0.6
    assert best.solution.controls.max() <= 0.8
    assert best.optimum < 66.2438786910
    assert best.optimum > criterion_value(problem_of(AS, **arguments), np.full((200, 21, 2), 1 / 1.5))
    clipped = baselines.paper_policies(AS, **arguments)["hjb"]
    assert clipped.clipped > 0
    assert criterion_value(problem_of(AS, **arguments), clipped.controls) <= best.optimum


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_optimal_value_converges_to_the_continuous_one(utility):
    arguments = {"utility": utility}
    limit = continuous_values(params_of(AS, **arguments))[0, 10]
    gaps = [limit - baselines.optimal_policy(AS, num_steps=n, **arguments).optimum for n in (1000, 2000)]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.05)  # first order in the step
    assert limit - (limit - 2 * gaps[1] + gaps[0]) == pytest.approx(0.0, abs=2e-4)


@pytest.mark.long
def test_first_and_second_moments_and_law_against_each_other():
    """Moments, characteristic function and inventory law are three separate recursions."""
    env, arguments = AS, {"fill_rate": [150.0, 120.0], "fill_decay": [1.5, 1.7], "drift": 0.5, "num_steps": 200}
    arguments |= {"terminal_penalty": 0.1}
    problem, best = problem_of(env, **arguments), baselines.optimal_policy(env, **arguments)
    pnl = pnl_law(problem, best.controls)
    x = np.linspace(pnl.low, pnl.high, 20_001)
    density = pnl.density(x)
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=1e-9)
    assert np.trapezoid(density * x, x) == pytest.approx(pnl.mean, abs=1e-7)
    assert np.trapezoid(density * x**2, x) == pytest.approx(pnl.std**2 + pnl.mean**2, rel=1e-6)
    assert pnl.probability(pnl.quantile(0.05)) == pytest.approx(0.05, abs=1e-9)
    tail = np.linspace(pnl.low, -pnl.value_at_risk(0.95), 20_001)
    shortfall = -np.trapezoid(pnl.density(tail) * tail, tail) / 0.05
    assert pnl.expected_shortfall(0.95) == pytest.approx(shortfall, abs=1e-5)
    laws = frozen.state_laws(problem, best.controls)
    np.testing.assert_allclose(laws.sum(axis=1), 1.0, atol=1e-13)
    penalty, _ = frozen.moments(problem, best.controls, Functional(penalty=1.0))
    terminal = -0.1 * laws[-1] @ problem.inventory**2
    middle = (laws[:-1] + laws[1:]) @ problem.inventory**2 / 2 * problem.params.step_length
    assert penalty == pytest.approx(terminal - 0.2 * middle.sum(), rel=1e-3)  # trapezoidal in time


def test_small_risk_aversion_approaches_the_mean_criterion():
    """CARA at small gamma with gamma sigma^2 = 2 phi held fixed (section 1b)."""
    values = []
    for gamma in (1e-3, 1e-5):
        volatility = (2 * 0.2 / gamma) ** 0.5
        values.append(baselines.optimal_policy(AS, utility="cara", risk_aversion=gamma, volatility=volatility).optimum)
    assert abs(values[1] - 66.2438786910) < 1e-3
    assert abs(values[1] - 66.2438786910) < 0.02 * abs(values[0] - 66.2438786910)


@pytest.mark.long
def test_large_risk_aversion_stays_in_range_or_is_refused():
    """Without scaling ``exp(-gamma X)`` is beyond double precision: its exponent is about 800 at the bound."""
    few = {"utility": "cara", "fill_rate": 14.0, "num_steps": 50}
    with pytest.raises((ValueError, ArithmeticError), match=r"lower .*risk_aversion or inventory_limit"):
        baselines.optimal_policy(AS, risk_aversion=20.0, **few)
    arguments = {"risk_aversion": 2.0, "min_depth": -0.6, "max_depth": 4.0, **few}
    best, problem = baselines.optimal_policy(AS, **arguments), problem_of(AS, **arguments)
    assert np.isfinite(best.solution.values).all()
    assert criterion_value(problem, best.solution.controls) == pytest.approx(best.optimum, rel=1e-10)


@pytest.mark.long
def test_extreme_parameters_solve():
    for arguments in (
        {"num_steps": 1},
        {"num_steps": 1, "horizon": 50.0, "fill_rate": 3.0},
        {"volatility": 0.0, "running_penalty": 0.0},
        {"inventory_limit": 1.0},
        {"initial_inventory": 10.0},
        {"running_penalty": 1e4, "terminal_penalty": 1e4},
        {"drift": 50.0},
    ):
        arguments = {"num_steps": 50, **arguments}  # four times the fills a step of the default
        best = baselines.optimal_policy(AS, **arguments)
        value = criterion_value(problem_of(AS, **arguments), best.solution.controls)
        assert value == pytest.approx(best.optimum, rel=1e-9, abs=1e-9), arguments
        for name, policy in baselines.paper_policies(AS, **arguments).items():
            score = baselines.score(AS, policy, **arguments)
            assert score.value <= best.optimum + 1e-9 * abs(best.optimum), (arguments, name)


def test_params_are_hashable_and_create_is_checked():
    assert hash(Params.create()) == hash(Params.create())
    with pytest.raises(ValueError, match="num_steps = 0 is not allowed: it must be a whole number from 1"):
        Params.create(num_steps=0)
