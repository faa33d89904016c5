"""The stochastic-volatility market under CARA, against affine closed forms, dense exponentials and the GLFT market."""

import gymnasium
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm
from scipy.stats import ncx2

import mmgym  # noqa: F401  # registers the ids
from mmgym.baselines import best_known_policy, optimal_policy, paper_policies, score
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.frozen import criterion_value, solve
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.baselines.stochastic_volatility.continuous import continuous_value, plain_params
from mmgym.baselines.stochastic_volatility.tilted import TiltedVarianceProblem
from mmgym.checking import check_market
from mmgym.models.stochastic_volatility import Params, explosion_time

ID = "mmgym/StochasticVolatility-v0"
SMALL = {"utility": "cara", "inventory_limit": 2.0, "num_steps": 20}


def riccati(params, exposure, length, slope=0.0):
    """``(b, c)`` with ``E[exp(z (S_t - S_0) + slope nu_t)] = exp(c + b nu_0)`` (Heston 1993), ``mu = 0``."""
    kappa, theta, xi, rho = 3.0, 4.0, params.variance_volatility, params.correlation

    def slopes(_, y):
        b = y[0]
        return [0.5 * exposure**2 + (rho * xi * exposure - kappa) * b + 0.5 * (xi * b) ** 2, kappa * theta * b]

    return solve_ivp(slopes, (0.0, length), [slope, 0.0], rtol=1e-12, atol=1e-15).y[:, -1]


@pytest.mark.parametrize(("correlation", "volatility"), [(-0.5, 1.5), (0.9, 2.0), (0.0, 0.0)])
def test_a_step_is_the_exponential_of_the_whole_system(correlation, volatility):
    params = Params.create(**SMALL, correlation=correlation, variance_volatility=volatility, drift=0.7)
    problem = TiltedVarianceProblem(params, 7)
    grid, q, gamma = problem.grid, np.arange(-2.0, 3.0), params.risk_aversion
    depths = np.array([0.3, 0.9])
    rates, factors = 140.0 * np.exp(-1.5 * depths), np.exp(-gamma * depths)
    size, whole = problem.num_states, np.zeros((35, 35))
    for i, inventory in enumerate(q):
        here = slice(7 * i, 7 * i + 7)
        block = grid.generator - gamma * correlation * volatility * inventory * grid.nodes[:, None] * grid.slope
        block += np.diag(0.5 * gamma**2 * inventory**2 * grid.nodes - gamma * 0.7 * inventory)
        whole[here, here] += block
        for side, to in ((0, i + 1), (1, i - 1)):
            if 0 <= to < 5:
                whole[here, here] -= rates[side] * np.eye(7)
                whole[here, 7 * to : 7 * to + 7] += rates[side] * factors[side] * np.eye(7)
    values = np.exp(-0.1 * np.outer(1.0 + 0.2 * q, np.ones(7)) + 0.003 * np.outer(q**2, grid.nodes)).reshape(-1, 1)
    earlier = problem.backward(0, np.arange(size), np.tile(depths, (size, 1)), values, problem.criterion)
    assert earlier == pytest.approx(expm(params.step_length * whole) @ values, rel=1e-12)


def test_without_fills_the_value_is_the_affine_transform():
    params = Params.create(utility="cara", fill_rate=1e-12, fill_decay=0.01, initial_inventory=3.0, num_steps=50)
    problem = TiltedVarianceProblem(params, 13)
    table = np.full((50, problem.num_states, 2), 100.0)
    b, c = riccati(params, -0.3, 1.0)
    assert criterion_value(problem, table) == pytest.approx(-(c + 4.0 * b) / 0.1, abs=1e-8)


def test_constant_variance_is_the_glft_market():
    params = Params.create(**SMALL, variance_volatility=0.0, fill_rate=[140.0, 100.0], terminal_penalty=0.05)
    problem, plain = TiltedVarianceProblem(params, 5), GLFTProblem(plain_params(params, "cara"))
    solution, expected = solve(problem), solve(plain)
    value = problem.to_value(problem.initial @ solution.raw[0], solution.log_scale[0])
    assert value == pytest.approx(expected.values[0, 2], abs=1e-9)


def test_the_continuous_optimum_is_the_limit_of_small_steps():
    def value(steps):
        params = Params.create(**SMALL | {"num_steps": steps}, correlation=0.6, fill_rate=14.0)
        problem = TiltedVarianceProblem(params, 7)
        solution = solve(problem)
        return float(problem.to_value(problem.initial @ solution.raw[0], solution.log_scale[0]))

    limit = continuous_value(Params.create(**SMALL, correlation=0.6, fill_rate=14.0))
    coarse, middle, fine = value(40), value(80), value(160)
    assert coarse < middle < fine < limit
    once = 2.0 * np.array([middle, fine]) - np.array([coarse, middle])
    assert (4.0 * once[1] - once[0]) / 3.0 == pytest.approx(limit, abs=2e-5)  # Richardson, twice


@pytest.mark.parametrize(("correlation", "exposure"), [(-0.5, -0.5), (-0.5, 0.5), (0.9, 0.5)])
def test_the_simulated_step_is_biased_by_no_more_than_is_said(correlation, exposure):
    """Quadrature over the exact law of the variance, against Heston's transform, with a slope in ``nu`` ahead."""
    params = Params.create(utility="cara", correlation=correlation, risk_aversion=0.1)
    length, start, slope, xi, kappa, theta = params.longest_piece, 4.0, 0.02, 1.5, 3.0, 4.0
    scale = xi**2 * -np.expm1(-kappa * length) / (4.0 * kappa)
    degrees, centre = 4.0 * kappa * theta / xi**2, start * np.exp(-kappa * length) / scale
    pull = np.tanh(0.5 * kappa * length) / kappa

    def integrand(x):
        after = scale * x
        integral = theta * length + pull * (start + after - 2.0 * theta)
        known = correlation / xi * (after - start + kappa * (integral - theta * length))
        exponent = exposure * known + 0.5 * exposure**2 * (1.0 - correlation**2) * integral + slope * after
        return ncx2.pdf(x, degrees, centre) * np.expm1(exponent - slope * start)

    middle, width = start / scale, 40.0 * xi * np.sqrt(start * length) / 4.0 / scale
    mean = quad(integrand, max(middle - width, 0.0), middle + width, points=[middle], epsabs=1e-15, epsrel=1e-13)[0]
    b, c = riccati(params, exposure, length, slope)
    error = abs(np.log1p(mean) - (c + b * start - slope * start)) / params.risk_aversion * params.horizon / length
    assert error <= params.cara_bias


@pytest.mark.parametrize(("reversion", "correlation"), [(3.0, 0.0), (0.5, 0.9), (1.0, 0.3), (3.0, 0.99)])
def test_the_utility_explodes_when_the_riccati_equation_does(reversion, correlation):
    explosion = explosion_time(reversion, 2.0, correlation, 4.0)

    def slopes(_, b):
        return 8.0 + (8.0 * correlation - reversion) * b + 2.0 * b * b

    def exploded(_, b):
        return b[0] - 1e9

    exploded.terminal = True
    run = solve_ivp(slopes, (0.0, 50.0), [0.0], events=exploded, rtol=1e-11)
    assert explosion == pytest.approx(run.t[-1], rel=1e-6)
    assert explosion_time(3.0, 0.0, 0.5, 4.0) == np.inf and explosion_time(3.0, 1.0, -0.5, 1.0) == np.inf


def test_the_sampled_utility_states_its_standard_error():
    """From 60 samples of 200 episodes: the stated error is their spread. False alarms: 1e-3 together."""
    env = gymnasium.make(ID, **{**SMALL, "num_steps": 4, "horizon": 0.05})
    policy = paper_policies(env)["constant"]
    scores = [score(env, policy, episodes=200, seed=seed) for seed in range(60)]
    spread = np.std([sampled.utility for sampled in scores], ddof=1)
    stated = np.mean([sampled.utility_stderr for sampled in scores])
    assert 0.7 < spread / stated < 1.4  # four of the spread's own errors of 1 / sqrt(2 * 59)
    exact = -np.exp(-env.unwrapped.params.risk_aversion * scores[0].value)
    assert abs(np.mean([sampled.utility for sampled in scores]) - exact) < 4.0 * stated / np.sqrt(60.0)
    assert scores[0].to_dict()["utility_stderr"] == scores[0].utility_stderr
    plain = gymnasium.make("mmgym/AvellanedaStoikov-v0", utility="cara", num_steps=4, horizon=0.02)
    assert score(plain, policy_of_zeros, markov=True).utility_stderr == 0.0


def policy_of_zeros(observations):
    return np.zeros((*np.shape(observations)[:-1], 2), np.float32)


@pytest.mark.filterwarnings("ignore:Feller")
def test_an_infinite_utility_is_refused():
    with pytest.raises(
        ValueError, match=r"variance_volatility = 8.0, .* are not allowed together: .*utility='cara'.*infinite"
    ):
        gymnasium.make(ID, utility="cara", variance_volatility=8.0, risk_aversion=0.4)
    with pytest.raises(ValueError, match=r"risk_aversion = 0.0 is not allowed"):
        gymnasium.make(ID, utility="cara", risk_aversion=0.0)


def test_steps_are_cut_only_where_the_bias_asks_for_it():
    assert Params.create(utility="mean", num_steps=2).longest_piece == 0.5
    short, long = Params.create(utility="cara"), Params.create(utility="cara", num_steps=10)
    assert short.longest_piece == short.step_length and long.longest_piece < 0.3 * long.step_length
    earned = 2.0 * 140.0 / 1.5 / np.e
    assert long.cara_bias == pytest.approx(1e-6 * earned)


@pytest.mark.long
@pytest.mark.parametrize(("steps", "horizon"), [(2, 0.25), (40, 1.0)])  # in several pieces a step, and in one
def test_simulated_utilities_are_those_of_the_solver(steps, horizon):
    """Four standard errors, two-sided: a false alarm of 6e-5 each."""
    arguments = SMALL | {"num_steps": steps, "horizon": horizon, "correlation": 0.8}
    env = gymnasium.make(ID, **arguments)
    constant = paper_policies(env)["constant"]
    exact = score(env, constant, method="exact", episodes=2)
    count, utilities = 20_000, {}
    for reward in ("pnl", "expected"):
        envs = gymnasium.make_vec(
            ID, num_envs=count, vectorization_mode="vector_entry_point", **arguments, reward=reward
        )
        observations, _ = envs.reset(seed=7)
        for _ in range(steps):
            observations, rewards, terminated, _, _ = envs.step(constant.predict(observations)[0])
        assert terminated.all() and (rewards < 0.0).all()
        utilities[reward] = rewards
        expected = -np.exp(-0.1 * exact.value)
        assert abs(rewards.mean() - expected) < 4.0 * rewards.std() / np.sqrt(count)
    assert utilities["expected"].std() < utilities["pnl"].std()
    simulated = score(env, constant, method="simulated", episodes=1_000)
    assert abs(simulated.value - exact.value) < 4.0 * simulated.stderr
    assert simulated.utility < 0.0 and simulated.stderr < 0.3


@pytest.mark.long
def test_the_optimum_is_scored_without_noise_and_nothing_beats_it():
    env = gymnasium.make(ID, **SMALL)
    best = optimal_policy(env)
    assert best.level == "certified"
    scored = score(env, best, method="simulated", episodes=200)
    assert scored.value == pytest.approx(best.optimum, abs=1e-5) and scored.stderr < 1e-5
    for name, policy in paper_policies(env).items():
        if name != "random":
            assert score(env, policy, episodes=200).value <= best.optimum + best.bounds.error, name


@pytest.mark.long
def test_a_hidden_variance_brackets_the_optimum():
    env = gymnasium.make(ID, **SMALL, observe_variance=False)
    seen = optimal_policy(gymnasium.make(ID, **SMALL))
    best = best_known_policy(env)
    assert best.level == "bracketed" and best.bounds.upper == pytest.approx(seen.optimum, abs=1e-12)
    assert seen.optimum - 0.05 < best.bounds.lower < seen.optimum
    blind = score(env, paper_policies(env)["variance_blind"], episodes=200)
    assert blind.value < best.bounds.upper
    played = score(env, best, episodes=200)
    assert played.value == pytest.approx(best.bounds.lower, abs=1e-9) and played.level == "bracketed"


@pytest.mark.long
@pytest.mark.parametrize("hidden", [False, True])
def test_market_and_baseline_conform(hidden):
    arguments = {**SMALL, "num_steps": 4, "horizon": 0.5, "risk_aversion": 0.03, "observe_variance": not hidden}
    check_market(ID, **arguments)
    figures = check_baseline(ID, episodes=400, **arguments)
    assert figures["best suboptimal table"] <= figures["optimum"]
    assert any(name.startswith("mean utility") for name in figures)
