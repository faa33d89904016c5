"""Jumps of the mid under stochastic volatility and in several assets (in one: `tests/test_glft_prices.py`).

Expected values are the GLFT market, Heston's transform, quadrature of the law of a jump and dense exponentials. False
alarms: with fixed seeds a check always passes or never does; were they redrawn, all statistical tests together would
fail with probability at most 1e-3.
"""

import gymnasium
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.stats import norm

import mmgym  # noqa: F401  # registers the ids
from mmgym.baselines import frozen, optimal_policy, paper_policies, score
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.frozen import Functional, criterion_value, solve
from mmgym.baselines.multi_asset_glft import MultiAssetProblem, continuous_values
from mmgym.baselines.pnl_law import pnl_law
from mmgym.baselines.stochastic_volatility.continuous import blind_values, continuous_value
from mmgym.baselines.stochastic_volatility.tilted import TiltedVarianceProblem
from mmgym.checking import check_market
from mmgym.models import multi_asset_glft
from mmgym.models.stochastic_volatility import Params

MULTI = "mmgym/MultiAssetGLFT-v0"
HESTON = "mmgym/StochasticVolatility-v0"
TESTS = 20  # statistical comparisons in this file
DEVIATIONS = norm.isf(0.5e-3 / TESTS)
NORMAL = {"jump_rate": 3.0, "jump_mean": 0.6, "jump_volatility": 0.7}
KOU = {
    "jump_rate": 2.0,
    "jump_law": "double_exponential",
    "jump_up_share": 0.7,
    "jump_up_mean": 0.8,
    "jump_down_mean": 0.5,
}
FIXED = {"jump_rate": 5.0, "jump_mean": -0.9}
CARA = {"utility": "cara", "risk_aversion": 0.3}
LAWS = {"normal": NORMAL, "kou": KOU, "fixed": FIXED}
SHORT = {"inventory_limit": 2.0, "num_steps": 10, "horizon": 0.5, "fill_rate": [40.0, 30.0]}


def compensated_growth(z, jump_rate, jump_law="normal", **sizes):
    """``lambda (E[exp(z J)] - 1 - z E[J])`` by quadrature of the law of a jump."""
    if jump_law == "normal":
        x, w = np.polynomial.hermite_e.hermegauss(60)
        jumps, w = sizes["jump_mean"] + sizes.get("jump_volatility", 0.0) * x, w / w.sum()
    else:
        size, w = np.polynomial.laguerre.laggauss(80)
        jumps = np.concatenate([sizes["jump_up_mean"] * size, -sizes["jump_down_mean"] * size])
        w = np.concatenate([sizes["jump_up_share"] * w, (1.0 - sizes["jump_up_share"]) * w])
    return jump_rate * (w @ (np.exp(z * jumps) - 1.0 - z * jumps))


def average(law):
    return law.get("jump_mean", 0.0) if law is not KOU else 0.7 * 0.8 - 0.3 * 0.5


def square(law):
    mean, spread = law.get("jump_mean", 0.0), law.get("jump_volatility", 0.0)
    return mean**2 + spread**2 if law is not KOU else 2.0 * (0.7 * 0.8**2 + 0.3 * 0.5**2)


def played(env_id, actions, count, seed, **arguments):
    """Rewards of whole episodes and the last info, of one action throughout."""
    envs = gymnasium.make_vec(
        env_id, num_envs=count, vectorization_mode="vector_entry_point", info="full", autoreset_mode="Disabled",
        **arguments,
    )  # fmt: skip
    envs.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        _, rewards, terminated, _, info = envs.step(np.tile(np.float32(actions), (count, 1)))
        total, done = total + rewards, terminated.all()
    return total, info


def agrees(sample, expected):
    return abs(sample.mean() - expected) < DEVIATIONS * sample.std() / np.sqrt(len(sample))


# Under stochastic volatility


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("utility", ["mean", "cara"])
@pytest.mark.parametrize("compensated", [False, True])
def test_with_a_constant_variance_it_is_the_glft_market(law, utility, compensated):
    arguments = {**SHORT, **LAWS[law], "compensated": compensated, "utility": utility, "risk_aversion": 0.3}
    plain = optimal_policy("mmgym/GLFT-v0", volatility=2.0, fill_decay=1.5, running_penalty=None if utility == "cara"
                           else 0.6, **arguments)  # fmt: skip
    found = optimal_policy(HESTON, variance_volatility=0.0, **arguments)
    assert found.optimum == pytest.approx(plain.optimum, abs=1e-8)


def test_compensated_jumps_change_nothing_under_the_mean_criterion_and_others_are_a_drift():
    best = optimal_policy(HESTON, **SHORT)
    assert optimal_policy(HESTON, **SHORT, **NORMAL, compensated=True).optimum == pytest.approx(best.optimum, abs=1e-12)
    drift = optimal_policy(HESTON, **SHORT, drift=3.0 * 0.6)
    assert optimal_policy(HESTON, **SHORT, **NORMAL).optimum == pytest.approx(drift.optimum, abs=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_without_fills_the_utility_is_that_of_the_transform(law):
    """Heston's transform of the mid (1993), times that of the jumps by quadrature."""
    arguments = {"utility": "cara", "fill_rate": 1e-12, "fill_decay": 0.01, "initial_inventory": 3.0, "num_steps": 50}
    params = Params.create(**arguments, **LAWS[law], drift=0.2)
    problem = TiltedVarianceProblem(params, 13)
    z = -0.3

    def slopes(_, y):
        return [0.5 * z**2 + (-0.5 * 1.5 * z - 3.0) * y[0] + 0.5 * (1.5 * y[0]) ** 2, 12.0 * y[0]]

    b, c = solve_ivp(slopes, (0.0, 1.0), [0.0, 0.0], rtol=1e-12, atol=1e-15).y[:, -1]
    trend = 0.2 + LAWS[law]["jump_rate"] * average(LAWS[law])
    expected = -(c + 4.0 * b + compensated_growth(z, **LAWS[law]) + z * trend) / 0.1
    table = np.full((50, problem.num_states, 2), 100.0)
    assert criterion_value(problem, table) == pytest.approx(expected, abs=1e-8)


def test_the_frozen_optimum_approaches_the_continuous_one():
    def value(steps):
        problem = TiltedVarianceProblem(Params.create(**SHORT | {"num_steps": steps}, **KOU, **CARA), 7)
        found = solve(problem)
        return float(problem.to_value(problem.initial @ found.raw[0], found.log_scale[0]))

    limit = continuous_value(Params.create(**SHORT, **KOU, **CARA))
    coarse, middle, fine = value(20), value(40), value(80)
    assert coarse < middle < fine < limit
    once = 2.0 * np.array([middle, fine]) - np.array([coarse, middle])
    assert (4.0 * once[1] - once[0]) / 3.0 == pytest.approx(limit, abs=3e-4)  # Richardson, twice
    still = Params.create(**SHORT, **KOU, **CARA, variance_volatility=0.0)
    assert blind_values(still)[0, 2] == pytest.approx(continuous_value(still), abs=1e-8)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_simulated_criteria_are_those_of_the_solver(law, utility):
    arguments = {**SHORT, **LAWS[law], "utility": utility, "risk_aversion": 0.3, "initial_inventory": 1.0}
    env = gymnasium.make(HESTON, **arguments)
    value = score(env, paper_policies(env)["constant"], episodes=2).value
    expected = -np.exp(-0.3 * value) if utility == "cara" else value
    for reward in ("pnl", "expected"):
        rewards, info = played(HESTON, [0.0, 0.0], 20_000, 5, **arguments, reward=reward)
        assert agrees(rewards, expected), reward
    assert agrees(info["price_gain"], 0.0)


def test_the_variance_of_a_held_inventory_has_that_of_the_jumps():
    """No fills: the P&L is the mid's move; its variance is that of the diffusion and ``lambda E[J^2] T``."""
    arguments = {**SHORT, "fill_rate": 1e-12, "initial_inventory": 2.0, "correlation": 0.0}
    for law in LAWS.values():
        _, info = played(HESTON, [0.0, 0.0], 20_000, 6, **arguments, **law)
        squares = (info["price_gain"] / 2.0) ** 2
        assert agrees(squares, 4.0 * 0.5 + law["jump_rate"] * square(law) * 0.5)
        assert agrees(info["mid"] - 100.0, law["jump_rate"] * average(law) * 0.5)


def test_a_jump_rate_of_zero_plays_the_same_episodes():
    plain = played(HESTON, [0.3, -0.2], 50, 3, **SHORT)
    other = played(HESTON, [0.3, -0.2], 50, 3, **SHORT, **{**KOU, "jump_rate": 0.0})
    np.testing.assert_array_equal(plain[0], other[0])
    for name, values in plain[1].items():
        np.testing.assert_array_equal(values, other[1][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**NORMAL, "jump_up_mean": 1.0}, "jump_up_mean = 1.0 is not allowed with jump_law='normal'"),
        ({**KOU, **CARA, "jump_up_mean": 3.0}, "the expected utility of the jumps leaves the range"),
    ],
)
def test_what_is_refused_under_stochastic_volatility(arguments, message):
    with pytest.raises(ValueError, match=message):
        Params.create(**{**SHORT, **arguments})


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_the_market_with_stochastic_volatility_conforms(utility):
    arguments = {**SHORT, **KOU, "num_steps": 4, "utility": utility, "risk_aversion": 0.1}
    check_market(HESTON, **arguments)
    check_baseline(HESTON, episodes=400, **arguments)


# In several assets

TWO = {
    "covariance": [[2.0, 0.8], [0.8, 1.0]],
    "fill_rate": [[14.0, 9.0], 8.0],
    "fill_decay": [1.5, [2.0, 1.7]],
    "order_size": [1.0, 0.5],
    "inventory_limit": [2.0, 1.0],
    "initial_inventory": [1.0, 0.0],
    "drift": [0.3, -0.1],
    "horizon": 0.6,
    "num_steps": 3,
    "terminal_penalty": 0.1,
    "risk_aversion": 0.5,
}
BOTH = {  # a law for each asset
    "normal": {"jump_rate": [3.0, 1.0], "jump_mean": [0.6, -0.4], "jump_volatility": [0.7, 0.0]},
    "kou": {**KOU, "jump_rate": [0.0, 2.0], "jump_up_mean": [0.1, 0.8], "jump_down_mean": [0.2, 0.5]},
}


def law_of(name, asset):
    """The arguments of one asset alone."""
    return {key: value[asset] if isinstance(value, list) else value for key, value in BOTH[name].items()}


def alone(asset, arguments):
    """The market of one asset alone, with the penalty of its variance."""
    own = {name: value[asset] if isinstance(value, list) else value for name, value in arguments.items()}
    variance = own.pop("covariance")[asset]
    penalty = None if arguments.get("utility") == "cara" else 0.25 * variance
    return {**own, "volatility": variance**0.5, "running_penalty": penalty}


@pytest.mark.parametrize("law", BOTH)
@pytest.mark.parametrize("utility", ["mean", "cara"])
@pytest.mark.parametrize("compensated", [False, True])
def test_uncorrelated_assets_with_jumps_are_plain_markets_side_by_side(law, utility, compensated):
    arguments = {**TWO, "covariance": [[2.0, 0.0], [0.0, 1.0]], "utility": utility, **BOTH[law]}
    arguments["compensated"] = compensated
    parts = [optimal_policy("mmgym/GLFT-v0", **alone(i, arguments)).optimum for i in range(2)]
    assert optimal_policy(MULTI, **arguments).optimum == pytest.approx(sum(parts), rel=1e-11)


@pytest.mark.parametrize("law", BOTH)
@pytest.mark.parametrize("z", [-0.5, 0.7j])
def test_a_step_of_several_assets_is_a_dense_exponential_with_jumps_by_quadrature(law, z):
    problem = MultiAssetProblem(multi_asset_glft.Params.create(**TWO, **BOTH[law]))
    p, q, depths = problem.params, problem.inventory, np.array([0.4, 0.2, 0.9, 0.6])
    growth = z * (q @ np.array([0.3, -0.1]) - 0.25 * np.einsum("si,ij,sj->s", q, p.matrix, q))
    growth = growth + 0.5 * z * z * np.einsum("si,ij,sj->s", q, p.matrix, q)
    for i in range(2):
        own = law_of(law, i)
        trend = own["jump_rate"] * (own["jump_mean"] if law == "normal" else 0.7 * own["jump_up_mean"]
                                    - 0.3 * own["jump_down_mean"])  # fmt: skip
        growth = growth + z * q[:, i] * trend
        growth = growth + np.array([compensated_growth(z * held, **own) for held in q[:, i]])
    system, rates = np.diag(growth), problem.intensities(depths)
    for j, moves in enumerate(problem.moves):
        for x, to in enumerate(moves):
            if to >= 0:
                system[x, to] += rates[j] * np.exp(z * problem.sizes[j] * depths[j])
                system[x, x] -= rates[j]
    functional = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([z]))
    last, states = problem.terminal(functional), np.arange(problem.num_states)
    found = problem.backward(0, states, np.tile(depths, (len(states), 1)), last, functional)
    np.testing.assert_allclose(found, expm(system * p.step_length) @ last, rtol=1e-11)


def test_jumps_of_several_assets_change_the_risk_alone_under_the_mean_criterion():
    still, jumping = TWO, {**TWO, **BOTH["normal"], "compensated": True}
    best = optimal_policy(MULTI, **still)
    assert optimal_policy(MULTI, **jumping).optimum == pytest.approx(best.optimum, rel=1e-13)
    problem, noise = problem_of(MULTI, **jumping), Functional(price=1.0)
    variance = frozen.moments(problem, best.controls, noise)[1] ** 2
    law, squares = pnl_law(problem, best.controls), np.array([3.0 * (0.6**2 + 0.7**2), 0.4**2])
    plain = frozen.moments(problem_of(MULTI, **still), best.controls, noise)[1] ** 2
    _, info = played(MULTI, [0.0] * 4, 2, 1, **jumping)
    assert set(info) >= {"jump_exponent", "risk"}
    held = [  # a covariance that is 1 for one asset: its expected integral of squared inventory
        frozen.moments(problem_of(MULTI, **{**TWO, "covariance": np.diag(unit).tolist()}), best.controls, noise)[1] ** 2
        for unit in np.eye(2)
    ]
    assert variance == pytest.approx(plain + squares @ held, rel=1e-10)
    low, high = law.quantile(1e-3), law.quantile(0.999)
    assert low < frozen.moments(problem, best.controls, Functional(gain=1.0))[0] < high


@pytest.mark.parametrize("law", BOTH)
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_simulated_criteria_of_several_assets_are_those_of_the_solver(law, utility):
    arguments = {**TWO, **BOTH[law], "utility": utility}
    problem, params = problem_of(MULTI, **arguments), multi_asset_glft.Params.create(**arguments)
    depths = multi_asset_glft.to_quotes(params, np.zeros(4, np.float32))
    value = criterion_value(problem, np.broadcast_to(depths, (3, problem.num_states, 4)))
    expected = -np.exp(-0.5 * value) if utility == "cara" else value
    for reward in ("pnl", "expected"):
        rewards, info = played(MULTI, [0.0] * 4, 40_000, 5, **arguments, reward=reward)
        assert agrees(rewards, expected), reward
    assert agrees(info["price_gain"], 0.0)
    wealth = info["cash"] + (info["inventory"] * info["mid"]).sum(axis=1)
    np.testing.assert_allclose(wealth - 100.0, info["gain"], rtol=0, atol=1e-9)
    for i in range(2):
        own = law_of(law, i)
        average = own["jump_mean"] if law == "normal" else 0.7 * own["jump_up_mean"] - 0.3 * own["jump_down_mean"]
        assert agrees(info["mid"][:, i] - 100.0, 0.6 * (TWO["drift"][i] + own["jump_rate"] * average))


def test_the_linear_and_the_nonlinear_equation_agree_on_jumps():
    arguments = {**TWO, "fill_decay": [1.5, 0.75], "order_size": [1.0, 0.5], **BOTH["kou"], "utility": "cara"}
    params = multi_asset_glft.Params.create(**arguments)
    linear, other = (continuous_values(params, 2, linear=linear) for linear in (True, False))
    np.testing.assert_allclose(linear, other, rtol=0, atol=1e-9)


def test_a_jump_rate_of_zero_plays_the_same_episodes_in_several_assets():
    plain = played(MULTI, [0.3, -0.2, 0.1, 0.0], 50, 3, **TWO)
    other = played(MULTI, [0.3, -0.2, 0.1, 0.0], 50, 3, **TWO, **{**BOTH["normal"], "jump_rate": 0.0})
    np.testing.assert_array_equal(plain[0], other[0])
    for name, values in plain[1].items():
        np.testing.assert_array_equal(values, other[1][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**NORMAL, "jump_up_mean": [0.0, 1.0]}, r"jump_up_mean\[1\] = 1.0 is not allowed with jump_law='normal'"),
        ({"jump_rate": [1.0, -1.0]}, r"jump_rate\[1\] = -1.0"),
        ({"jump_rate": 1e5}, "expected jumps of all assets a step"),
        ({**KOU, "utility": "cara", "jump_up_mean": [0.1, 3.0]}, "the expected utility of the jumps leaves the range"),
    ],
)
def test_what_is_refused_in_several_assets(arguments, message):
    with pytest.raises(ValueError, match=message):
        multi_asset_glft.Params.create(**{**TWO, **arguments})


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_the_market_of_several_assets_with_jumps_conforms(utility):
    arguments = {**TWO, **BOTH["normal"], "utility": utility}
    check_market(MULTI, **arguments)
    check_baseline(MULTI, episodes=400, **arguments)
