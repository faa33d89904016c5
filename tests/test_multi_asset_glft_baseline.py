"""Baselines of several assets, against the reference mathematics, the plain market and dense matrix exponentials."""

import math

import numpy as np
import pytest
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines import frozen
from mmgym.baselines.catalogue import params_of, problem_of
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.frozen import Functional
from mmgym.baselines.glft import continuous_values as plain_values
from mmgym.baselines.multi_asset_glft import (
    BracketedBaseline,
    MultiAssetProblem,
    continuous_values,
    riccati_depths,
    riccati_matrices,
)
from mmgym.baselines.multi_asset_glft.bracketed import EPISODES
from mmgym.baselines.multi_asset_glft.continuous import continuous_depths
from mmgym.baselines.multi_asset_glft.decoupling import decoupled_variances
from mmgym.baselines.multi_asset_glft.one_step import depths_of_values, moves_of
from mmgym.baselines.multi_asset_glft.separate import FactorDepths
from mmgym.models.multi_asset_glft import Params

TWO = "mmgym/MultiAssetGLFT-v0"
SMALL = {
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


@pytest.mark.parametrize(
    ("decay", "limit", "value"),
    [(1.5, 4.0, 111.3149067061), ([1.5, 2.0], 4.0, 99.6177847679), (1.5, 8.0, 113.9245316302)],
)
def test_continuous_values_have_the_reference_digits(decay, limit, value):
    params = Params.create(fill_decay=decay, inventory_limit=limit)
    solutions = [continuous_values(params, 10)]
    if decay == 1.5:
        solutions.append(continuous_values(params, 10, linear=False))
    else:
        with pytest.raises(ValueError, match="not linear"):
            continuous_values(params, linear=True)
    for values in solutions:
        assert values[0, values.shape[1] // 2] == pytest.approx(value, abs=1e-9)


def test_the_frozen_optimum_approaches_the_continuous_one_at_first_order():
    gaps = [111.3149067061 - baselines.optimal_policy(TWO, num_steps=n).optimum for n in (100, 200)]
    assert 0.0 < gaps[1] < 0.4
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_uncorrelated_assets_are_plain_markets_side_by_side(utility):
    """With a diagonal covariance the optimum is the sum of two optima of `mmgym/GLFT-v0`, in steps too."""
    both = {**SMALL, "covariance": [[2.0, 0.0], [0.0, 1.0]], "inventory_limit": [2.0, 1.0], "utility": utility}
    optimum = baselines.optimal_policy(TWO, **both).optimum
    alone = []
    for i, variance in enumerate((2.0, 1.0)):
        alone.append(
            {
                "volatility": variance**0.5,
                "fill_rate": [[14.0, 9.0], [8.0, 8.0]][i],
                "fill_decay": [[1.5, 1.5], [2.0, 1.7]][i],
                "order_size": both["order_size"][i],
                "inventory_limit": both["inventory_limit"][i],
                "initial_inventory": both["initial_inventory"][i],
                "drift": both["drift"][i],
                "horizon": 0.6,
                "num_steps": 3,
                "terminal_penalty": 0.1,
                "running_penalty": 0.25 * variance if utility == "mean" else None,
                "utility": utility,
                "risk_aversion": 0.5,
            }
        )
    expected = sum(baselines.optimal_policy("mmgym/GLFT-v0", **arguments).optimum for arguments in alone)
    assert optimum == pytest.approx(expected, rel=1e-12)
    values = [plain_values(params_of("mmgym/GLFT-v0", **arguments))[0] for arguments in alone]
    joint = continuous_values(params_of(TWO, **both))[0].reshape(5, 5)
    np.testing.assert_allclose(joint, values[0][:, None] + values[1], rtol=0, atol=1e-9)


def test_assets_may_be_named_in_any_order():
    turned = {
        **SMALL,
        "covariance": [[1.0, 0.8], [0.8, 2.0]],
        **{name: SMALL[name][::-1] for name in
           ("fill_rate", "fill_decay", "order_size", "inventory_limit", "initial_inventory", "drift")},
    }  # fmt: skip
    first, second = (baselines.optimal_policy(TWO, **arguments).optimum for arguments in (SMALL, turned))
    assert first == pytest.approx(second, rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("z", [None, -0.4, 0.7j])
def test_a_step_is_a_dense_matrix_exponential(z):
    """Of the mean and the second moment, or of exponentials, of one step under constant depths."""
    problem = MultiAssetProblem(Params.create(**SMALL))
    p, depths = problem.params, np.array([0.4, 0.2, 0.9, 0.6])
    rates = problem.intensities(depths)
    gains = problem.sizes * depths
    q = problem.inventory
    drift = q @ p.trends - 0.25 * problem.variance
    count = problem.num_states
    moves = [(j, x, to) for j in range(4) for x, to in enumerate(problem.moves[j]) if to >= 0]
    if z is None:
        system = np.zeros((2 * count + 1, 2 * count + 1))
        for x in range(count):
            system[x, -1] += drift[x]
            system[count + x, x] += 2.0 * drift[x]
            system[count + x, -1] += problem.variance[x]
        for j, x, to in moves:
            for shift in (0, count):
                system[shift + x, shift + to] += rates[j]
                system[shift + x, shift + x] -= rates[j]
            system[x, -1] += rates[j] * gains[j]
            system[count + x, to] += 2.0 * rates[j] * gains[j]
            system[count + x, -1] += rates[j] * gains[j] ** 2
        functional = Functional(gain=1.0, price=1.0, penalty=1.0, moments=2)
        last = problem.terminal(functional)
        expected = expm(system * p.step_length) @ np.concatenate([last[:, 0], last[:, 1], [1.0]])
        expected = expected[:-1].reshape(2, count).T
    else:
        system = np.diag(z * drift + 0.5 * z * z * problem.variance).astype(np.complex128)
        for j, x, to in moves:
            system[x, to] += rates[j] * np.exp(z * gains[j])
            system[x, x] -= rates[j]
        functional = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([z]))
        last = problem.terminal(functional)
        expected = expm(system * p.step_length) @ last
    states = np.arange(count)
    earlier = problem.backward(0, states, np.tile(depths, (count, 1)), last, functional)
    np.testing.assert_allclose(earlier, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_forward_and_backward_are_adjoint_and_gradients_are_derivatives(utility):
    problem = problem_of(TWO, **SMALL, utility=utility)
    generator = np.random.default_rng(0)
    depths = generator.uniform(-0.2, 1.5, (problem.num_states, 4))
    values = generator.normal(size=(problem.num_states, 1)) if utility == "mean" else np.ones((problem.num_states, 1))
    law = generator.dirichlet(np.ones(problem.num_states))
    states = np.arange(problem.num_states)
    values = values + 0.3 * generator.random((problem.num_states, 1))
    count = problem.backward(0, states, depths, values, Functional())
    after = problem.forward(0, depths, law)
    assert after.sum() == pytest.approx(1.0, abs=1e-13)
    assert after.min() >= 0.0
    assert law @ count[:, 0] == pytest.approx(after @ values[:, 0], rel=1e-12)
    value, slopes = problem.gradient(0, states, depths, values)
    np.testing.assert_allclose(value, problem.backward(0, states, depths, values, problem.criterion), atol=1e-12)
    for j in range(4):
        step = np.zeros(4)
        step[j] = 1e-5
        ends = [problem.backward(0, states, depths + sign * step, values, problem.criterion) for sign in (1, -1)]
        np.testing.assert_allclose(slopes[:, j], (ends[0] - ends[1])[:, 0] / 2e-5, rtol=0, atol=1e-7)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_no_other_depths_are_better(utility):
    problem = problem_of(TWO, **SMALL, utility=utility)
    best = baselines.optimal_policy(TWO, **SMALL, utility=utility)
    generator = np.random.default_rng(1)
    low, high = np.array(problem.params.min_depth), np.array(problem.params.max_depth)
    for size in (1e-4, 1e-2, 1.0):
        moved = np.clip(best.controls + size * generator.normal(size=best.controls.shape), low, high)
        assert frozen.criterion_value(problem, moved) < best.optimum


@pytest.mark.long
@pytest.mark.parametrize("decay", [1.5, [1.5, 2.0]])
def test_certainty_equivalents_approach_those_of_quotes_that_move_at_once(decay):
    """At first order, by the linear system and by the nonlinear equation; the closed form is near; a small aversion
    leaves the mean."""
    cara = {"utility": "cara", "risk_aversion": 0.2, "fill_decay": decay, "inventory_limit": 3.0, "horizon": 0.5}
    params = params_of(TWO, **cara)
    limit = continuous_values(params)[0, 24]
    if decay == 1.5:
        assert continuous_values(params, linear=False)[0, 24] == pytest.approx(limit, abs=1e-9)
    best = [baselines.optimal_policy(TWO, num_steps=n, **cara).optimum for n in (40, 80)]
    assert 0.0 < limit - best[1] < 0.5
    assert (limit - best[0]) / (limit - best[1]) == pytest.approx(2.0, abs=0.15)
    problem = problem_of(TWO, num_steps=80, **cara)
    tables = {name: policy.controls for name, policy in baselines.paper_policies(TWO, num_steps=80, **cara).items()
              if name in ("hjb", "riccati", "constant")}  # fmt: skip
    values = {name: frozen.criterion_value(problem, table) for name, table in tables.items()}
    assert values["constant"] < values["riccati"] < best[1]
    assert best[1] - values["riccati"] < 0.4 * (best[1] - values["constant"])
    assert 0.0 <= best[1] - values["hjb"] < 0.02 * (best[1] - values["constant"])
    small = {**SMALL, "risk_aversion": 1e-7}
    optimum = baselines.optimal_policy(TWO, **small, utility="cara").optimum
    assert optimum == pytest.approx(baselines.optimal_policy(TWO, **small).optimum, abs=1e-5)


@pytest.mark.long
def test_conformance_under_cara():
    check_baseline(TWO, **SMALL, utility="cara")


def test_riccati_is_near_the_optimum_inside_and_solves_its_stationary_equation():
    params = Params.create(inventory_limit=8.0, horizon=3.0, num_steps=3, fill_decay=[1.5, 2.0])
    a, b = riccati_matrices(params)
    rates = np.diag(np.array([140.0 * 1.5, 100.0 * 2.0]) / np.e)
    np.testing.assert_allclose(4.0 * a[0] @ rates @ a[0], 0.05 * params.matrix, rtol=0, atol=1e-8)
    np.testing.assert_allclose(b, 0.0, atol=1e-14)
    problem = MultiAssetProblem(params)
    inside = (np.abs(problem.lots) <= 3).all(axis=1)
    near = riccati_depths(params, (a[0], b[0]), problem.lots[inside])
    exact = continuous_depths(params)[0][inside]
    assert np.abs(near - exact).max() == pytest.approx(0.009, abs=0.0006)


def test_riccati_follows_a_drift_and_unequal_sides():
    plain = Params.create(inventory_limit=8.0, num_steps=2, fill_decay=[1.5, 2.0])
    uneven = Params.create(
        inventory_limit=8.0, num_steps=2, fill_decay=[1.5, 2.0], drift=[0.3, -0.2], fill_rate=[[150.0, 130.0], 100.0]
    )
    lots = MultiAssetProblem(plain).lots
    inside = (np.abs(lots) <= 1).all(axis=1)
    near, exact = [], []
    for params in (plain, uneven):
        a, b = riccati_matrices(params)
        near.append(riccati_depths(params, (a[0], b[0]), lots[inside]))
        exact.append(continuous_depths(params)[0][inside])
    moved = exact[1] - exact[0]
    assert np.abs(moved).max() > 0.02
    np.testing.assert_allclose(near[1] - near[0], moved, rtol=0, atol=0.15 * np.abs(moved).max())


def test_three_assets_are_exact_too():
    three = {
        "covariance": [[2.0, 0.5, 0.3], [0.5, 1.0, -0.2], [0.3, -0.2, 1.5]],
        "fill_rate": 20.0,
        "inventory_limit": 1.0,
        "horizon": 0.2,
        "num_steps": 2,
    }
    figures = check_baseline(TWO, episodes=200, **three)
    assert figures["optimum"] > 0.0


FOUR = {
    "covariance": [[4.0, 1.0, 0.5, 0.0], [1.0, 2.0, 0.3, 0.2], [0.5, 0.3, 1.0, 0.1], [0.0, 0.2, 0.1, 1.5]],
    "fill_rate": [60.0, 50.0, [40.0, 45.0], 30.0],
    "num_steps": 20,
    "horizon": 0.5,
}


def test_four_assets_are_bracketed():
    bounds = baselines.best_known_policy(TWO, **FOUR).bounds
    assert bounds.lower < bounds.upper < 1.05 * bounds.lower
    scores = {
        n: baselines.score(TWO, p, episodes=1_000, **FOUR) for n, p in baselines.paper_policies(TWO, **FOUR).items()
    }
    assert all(score.level == "bracketed" and score.method == "simulated" for score in scores.values())
    assert scores["random"].value < scores["constant"].value < scores["riccati"].value < bounds.upper
    constant = scores["constant"]
    assert abs(constant.value - constant.reference) < 5.0 * constant.stderr  # false alarms: 1e-5, of two samples
    with pytest.raises(ValueError, match="it makes 6561 states, at most 3000 are"):
        MultiAssetProblem(Params.create(**FOUR))
    params = Params.create(**FOUR)
    assert Params.create(**params.arguments()) == params


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_uncorrelated_assets_close_the_bracket_from_above(utility):
    """With a diagonal covariance the separate markets are the market: the bound is what its halves are worth."""
    four = {**FOUR, "covariance": np.diag([4.0, 2.0, 1.0, 1.5]).tolist(), "utility": utility}
    bounds = baselines.best_known_policy(TWO, **four).bounds
    upper = bounds.upper
    assert 0.97 * upper < bounds.lower < upper
    halves = [
        {"covariance": np.diag(d).tolist(), "fill_rate": rates, "num_steps": 20, "horizon": 0.5, "utility": utility}
        for d, rates in (([4.0, 2.0], [60.0, 50.0]), ([1.0, 1.5], [[40.0, 45.0], 30.0]))
    ]
    assert upper == pytest.approx(sum(baselines.optimal_policy(TWO, **half).optimum for half in halves), rel=1e-9)


@pytest.mark.long
def test_hedges_are_worth_something():
    """Ignoring the covariance costs, and less than quoting constantly does."""
    skills = {name: baselines.score(TWO, policy).skill for name, policy in baselines.paper_policies(TWO).items()}
    assert skills["constant"] == pytest.approx(0.0, abs=1e-12)
    assert skills["riccati"] < skills["separate"] < skills["hjb"] < 1.0


def test_the_diagonal_below_a_covariance_is_tight_where_it_is_known():
    """Equal assets and correlations: by symmetry and concavity the smallest eigenvalue, ``1 - rho``, for each."""
    for n, rho in ((3, 0.6), (8, 0.3), (30, 0.05), (4, -0.2)):
        params = Params.create(volatility=[1.5] * n, correlation=rho)
        least = min(1.0 - rho, 1.0 + (n - 1) * rho)
        np.testing.assert_allclose(decoupled_variances(params), 2.25 * least, rtol=1e-6)
    assert (decoupled_variances(Params.create(volatility=[1.0, 2.0], correlation=1.0)) == 0.0).all()
    np.testing.assert_allclose(
        decoupled_variances(Params.create(volatility=[1.0, 2.0, 0.0])), [1.0, 4.0, 0.0], rtol=1e-7
    )


def test_the_diagonal_is_below_any_covariance_and_not_worse_than_the_smallest_eigenvalue():
    generator = np.random.default_rng(2)
    for _ in range(30):
        n = int(generator.integers(2, 31))
        factors = generator.normal(size=(n, int(generator.integers(1, n + 3))))
        covariance = factors @ factors.T + np.diag(10.0 ** generator.uniform(-3.0, 1.0, n))
        rates, decays = 10.0 ** generator.uniform(0.0, 2.0, n), 10.0 ** generator.uniform(-0.5, 0.5, n)
        params = Params.create(covariance=covariance.tolist(), fill_rate=rates.tolist(), fill_decay=decays.tolist())
        found = decoupled_variances(params)
        assert found.min() >= 0.0
        assert np.linalg.eigvalsh(params.matrix - np.diag(found))[0] >= -1e-11 * np.trace(covariance)
        scale = np.sqrt(np.diag(covariance))
        simple = np.linalg.eigvalsh(covariance / np.outer(scale, scale))[0] * scale**2
        weights = np.sqrt(rates / decays)
        assert weights @ np.sqrt(found) > (1.0 - 1e-6) * weights @ np.sqrt(simple)


def test_the_diagonal_stays_below_where_some_assets_hardly_trade():
    """Weights differ by many powers of ten: eigenvalues in units of the diagonal lose all digits."""
    generator = np.random.default_rng(5)
    for _ in range(40):
        n = int(generator.integers(2, 9))
        factors = generator.normal(size=(n, int(generator.integers(1, n + 2))))
        correlation = factors @ factors.T + np.diag(10.0 ** generator.uniform(-10.0, 1.0, n))
        scale = np.sqrt(np.diag(correlation))
        correlation = correlation / np.outer(scale, scale)
        sizes, rates = 10.0 ** generator.uniform(-3.0, 3.0, n), 10.0 ** generator.uniform(-12.0, 2.0, n)
        params = Params.create(
            covariance=correlation.tolist(), fill_rate=rates.tolist(), order_size=sizes.tolist(),
            inventory_limit=sizes.tolist(),
        )  # fmt: skip
        found = decoupled_variances(params)
        assert found.min() >= 0.0
        assert np.linalg.eigvalsh(params.matrix - np.diag(found))[0] >= -1e-14 * n


FIVE = {"fill_rate": [60.0, 50.0, 40.0, 30.0, 45.0], "num_steps": 20, "horizon": 0.5}


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_five_assets_have_their_optimum_in_the_bracket(utility):
    """A correlated pair and three others: the optimum is the sum of exact ones."""
    covariance = np.diag([4.0, 2.0, 1.0, 1.5, 0.5])
    covariance[0, 1] = covariance[1, 0] = 1.7
    exact = sum(
        baselines.optimal_policy(
            TWO, **{**FIVE, "fill_rate": FIVE["fill_rate"][part]}, covariance=covariance[part, part].tolist(),
            utility=utility,
        ).optimum
        for part in (slice(0, 2), slice(2, 4))
    )  # fmt: skip
    penalty = {"running_penalty": 0.025} if utility == "mean" else {}
    exact += baselines.optimal_policy(
        "mmgym/GLFT-v0", volatility=0.5**0.5, fill_rate=45.0, fill_decay=1.5, inventory_limit=4.0, num_steps=20,
        horizon=0.5, risk_aversion=0.1, utility=utility, **penalty,
    ).optimum  # fmt: skip
    five = {**FIVE, "covariance": covariance.tolist(), "utility": utility}
    best = baselines.best_known_policy(TWO, **five)
    assert best.level == "bracketed" and best.bounds.lower < exact < best.bounds.upper
    assert best.bounds.upper - best.bounds.lower < 0.02 * exact
    names = {"coupled", "factor", "riccati", "separate_optima", "constant"}
    assert set(baselines.paper_policies(TWO, **five)) >= names


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_coupled_quotes_are_the_optimum_where_nothing_couples(utility):
    arguments = {**SMALL, "covariance": [[2.0, 0.0], [0.0, 1.0]], "utility": utility}
    best, problem = baselines.optimal_policy(TWO, **arguments), problem_of(TWO, **arguments)
    table = baselines.paper_policies(TWO, **arguments)["coupled"].controls
    assert frozen.criterion_value(problem, table) == pytest.approx(best.optimum, rel=1e-11)


@pytest.mark.parametrize("correlation", [0.8, 0.3, -0.5])
def test_regrets_of_the_policies_for_many_assets_where_they_are_exact(correlation):
    """Beside the constant quote's: small, and coupled quotes lose less than the closed form."""
    arguments = {"volatility": [2.0, 1.5], "correlation": correlation, "fill_rate": 40.0, "num_steps": 40}
    arguments["inventory_limit"] = 3.0
    problem, best = problem_of(TWO, **arguments), baselines.optimal_policy(TWO, **arguments).optimum
    policies = baselines.paper_policies(TWO, **arguments)
    regret = {
        name: best - frozen.criterion_value(problem, policies[name].controls)
        for name in ("coupled", "factor", "riccati", "constant")
    }
    assert 0.0 < regret["coupled"] < 0.05 * regret["constant"]
    assert 0.0 < regret["factor"] < 0.2 * regret["constant"]
    assert regret["coupled"] < regret["riccati"]


def test_one_factor_is_all_there_is_of_a_covariance_of_rank_one():
    """Inside wide limits the value is a function of the factor: the quotes are those of the whole grid."""
    arguments = {"covariance": [[4.0, 2.0], [2.0, 1.0]], "fill_rate": 20.0, "inventory_limit": 12.0}
    params = Params.create(**arguments, num_steps=400, horizon=0.5)
    lots = MultiAssetProblem(params._replace(num_steps=1)).lots
    inside = (np.abs(lots) <= 2).all(axis=1)
    found = FactorDepths(params)(np.zeros(inside.sum(), np.int64), lots[inside])
    values = continuous_values(params, 1)
    exact = depths_of_values(params, moves_of(params), values[0])[inside]
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.01)
    assert np.ptp(exact) > 0.2


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_controlled_simulations_have_the_exact_value_and_little_noise(utility):
    """Of two assets, where values are exact: four standard errors, false alarms of 6e-5 each."""
    arguments = {**SMALL, "covariance": [[2.0, 1.1], [1.1, 1.0]], "jump_rate": 2.0, "jump_mean": [0.3, -0.1]}
    arguments["utility"] = utility
    bracketed, problem = BracketedBaseline(Params.create(**arguments)), problem_of(TWO, **arguments)
    policies = baselines.paper_policies(TWO, **arguments)
    for name in ("coupled", "factor", "riccati", "constant"):
        found, errors = bracketed.simulated_policy(name)
        assert abs(found - frozen.criterion_value(problem, policies[name].controls)) < errors, name
        noise = frozen.moments(problem, policies[name].controls, Functional(gain=1.0))[1]
        assert 0.0 < errors < 2.0 * noise / math.sqrt(EPISODES[utility])  # half of four standard errors of gains alone
    states, steps = np.arange(problem.num_states), range(3)
    alone = np.stack([bracketed.own.depths(np.full(len(states), n), problem.lots) for n in steps])
    found, errors = bracketed.simulated_policy("separate_optima")
    assert abs(found - frozen.criterion_value(problem, alone)) < errors
    assert bracketed.bounds().lower < baselines.optimal_policy(TWO, **arguments).optimum < bracketed.bounds().upper


def test_a_controlled_mean_of_utilities_that_is_not_negative_bounds_nothing():
    bracketed = BracketedBaseline(Params.create(**SMALL, utility="cara"))
    assert bracketed.converted(0.1, 0.2) == (-math.inf, math.inf)
    assert bracketed.converted(-1.0, 0.0) == (0.0, 0.0)
