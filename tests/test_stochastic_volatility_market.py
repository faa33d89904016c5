"""The stochastic-volatility market: draws of the variance, moments of the mid, arguments.

Statistical tests together raise a false alarm with probability 1e-3 at most; seeds are fixed.
"""

import warnings

import gymnasium
import numpy as np
import pytest
from numba import njit
from scipy import stats

import mmgym  # noqa: F401  # registers the ids
from mmgym.checking import check_market
from mmgym.envs.stochastic_volatility import StochasticVolatilityEnv, StochasticVolatilityVectorEnv
from mmgym.models.square_root import gamma_number, next_variance, poisson_number
from mmgym.models.stochastic_volatility import Params, observe
from mmgym.random_streams import start_stream

TESTS = 24  # statistical comparisons in this file
LEVEL = 1e-3 / TESTS


@njit
def draws(count, variance, reversion, mean, volatility, length, seed):
    s0, s1 = start_stream(np.uint64(seed))
    sample = np.empty(count)
    for i in range(count):
        sample[i], s0, s1 = next_variance(variance, reversion, mean, volatility, length, s0, s1)
    return sample


@njit
def poisson_draws(count, mean, seed):
    s0, s1 = start_stream(np.uint64(seed))
    sample = np.empty(count)
    for i in range(count):
        sample[i], s0, s1 = poisson_number(mean, s0, s1)
    return sample


@njit
def gamma_draws(count, shape, seed):
    s0, s1 = start_stream(np.uint64(seed))
    sample = np.empty(count)
    for i in range(count):
        sample[i], s0, s1 = gamma_number(shape, s0, s1)
    return sample


@pytest.mark.parametrize(
    ("variance", "reversion", "mean", "volatility", "length"),
    [
        (4.0, 3.0, 4.0, 1.5, 0.5),
        (4.0, 3.0, 4.0, 1.5, 0.001),
        (1.0, 1.0, 1.0, 1.7, 0.4),  # 1 < d < 2: Feller's condition violated
        (0.3, 1.0, 0.2, 2.0, 0.7),  # d < 1, few
        (9.0, 1.0, 0.2, 2.0, 0.01),  # d < 1, many
        (0.0, 1.0, 2.0, 1.0, 0.3),  # from 0
    ],
)
def test_the_variance_has_its_non_central_chi_square_law(variance, reversion, mean, volatility, length):
    sample = draws(40_000, variance, reversion, mean, volatility, length, 11)
    scale = volatility**2 * (1.0 - np.exp(-reversion * length)) / (4.0 * reversion)
    degrees = 4.0 * reversion * mean / volatility**2
    shift = variance * np.exp(-reversion * length) / scale
    law = stats.ncx2(degrees, shift, scale=scale) if shift else stats.chi2(degrees, scale=scale)
    assert (sample >= 0.0).all()
    assert stats.kstest(sample, law.cdf).pvalue > LEVEL


@pytest.mark.parametrize("mean", [0.7, 11.0, 5e4])
def test_poisson_numbers(mean):
    sample = poisson_draws(40_000, mean, 3)
    edges = stats.poisson.ppf(np.linspace(0.0, 1.0, 12)[1:-1], mean)
    edges = np.unique(edges)
    counts = np.histogram(sample, np.concatenate([[-0.5], edges + 0.5, [np.inf]]))[0]
    expected = np.diff(np.concatenate([[0.0], stats.poisson.cdf(edges, mean), [1.0]])) * len(sample)
    assert stats.chisquare(counts, expected).pvalue > LEVEL


@pytest.mark.parametrize("shape", [0.2, 3.5])
def test_gamma_numbers(shape):
    assert stats.kstest(gamma_draws(40_000, shape, 5), stats.gamma(shape).cdf).pvalue > LEVEL


@pytest.mark.parametrize("mean", [1.5e8, 1e12, 1e16, 1e20])
def test_poisson_numbers_beyond_integers(mean):
    """Kolmogorov-Smirnov against the law of the standardised number: normal, with the skewness 1 / sqrt(mean)."""
    z = (poisson_draws(40_000, mean, 4) - mean) / np.sqrt(mean)
    assert stats.kstest(z, "norm").pvalue > LEVEL
    assert np.isfinite(z).all()


@pytest.mark.parametrize("shape", [0.5e8, 3e8, 1e16, 1e20])
def test_gamma_numbers_of_large_shapes(shape):
    z = (gamma_draws(40_000, shape, 6) - shape) / np.sqrt(shape)
    assert stats.kstest(z, stats.norm.cdf).pvalue > LEVEL


@pytest.mark.filterwarnings("ignore:Feller")
def test_a_huge_variance_in_a_tiny_time_is_drawn_at_once():
    """The set of the issue, which looped for ever: a non-centrality of 4e20, and twice its mean as Poisson mean."""
    sample = draws(4_000, 1e12, 0.1, 4.0, 1.5, 1e-8, 2)
    std = 1.5 * np.sqrt(1e12 * 1e-8)  # xi sqrt(nu t)
    assert stats.kstest((sample - (1e12 - 0.1 * 1e12 * 1e-8)) / std, "norm").pvalue > LEVEL
    env = gymnasium.make(
        "mmgym/StochasticVolatility-v0",
        num_steps=100,
        horizon=1e-6,
        variance_reversion=0.1,
        initial_variance=1e12,
        variance_volatility=1.5,
    ).unwrapped
    env.reset(seed=0)
    for _ in range(100):
        observation, reward, *_ = env.step(np.zeros(2, np.float32))
        assert np.isfinite(observation).all() and np.isfinite(reward)


def test_without_variance_volatility_the_variance_relaxes():
    assert draws(1, 9.0, 2.0, 4.0, 0.0, 0.5, 0)[0] == pytest.approx(4.0 + 5.0 * np.exp(-1.0), rel=1e-14)


def held(**arguments):
    """Returns, P&L and full info of episodes in which no quote is ever filled and 2 assets are held."""
    envs = StochasticVolatilityVectorEnv(
        30_000, info="full", fill_rate=1e-9, initial_inventory=2.0, initial_variance=9.0, **arguments
    )
    envs.reset(seed=5)
    returns = 0.0
    for _ in range(envs.params.num_steps):
        _, rewards, *_, info = envs.step(np.ones((30_000, 2), np.float32))
        returns = returns + rewards
    return envs.params, returns, info


INTEGRAL = 4.0 + 5.0 * (1.0 - np.exp(-3.0)) / 3.0  # of E[nu_t] from 0 to 1, from nu_0 = 9 with kappa 3 and theta 4


@pytest.mark.parametrize("correlation", [0.0, -0.9])
def test_a_held_inventory_has_the_exact_cost_and_variance(correlation, check_mean):
    """Penalty and P&L variance at one step of the whole horizon, whatever the step; z-tests."""
    steps = 1 if correlation == 0.0 else 20
    _, returns, info = held(num_steps=steps, correlation=correlation, reward="expected")
    check_mean(returns, -0.5 * 0.1 * 4.0 * INTEGRAL, alarms=LEVEL)
    check_mean(info["price_gain"] ** 2, 4.0 * INTEGRAL, alarms=LEVEL)
    assert info["price_gain"] == pytest.approx(2.0 * (info["mid"] - 100.0), rel=1e-9, abs=1e-9)


def test_the_correlation_is_that_of_price_and_variance(check_mean):
    """``E[S_T nu_T] - E[S_T] E[nu_T] = rho xi int E[nu_s] exp(-kappa (T - s)) ds``."""
    _, _, info = held(num_steps=20, correlation=-0.9)
    moved = info["mid"] - 100.0
    expected = -0.9 * 1.5 * (4.0 * (1.0 - np.exp(-3.0)) / 3.0 + 5.0 * np.exp(-3.0))
    product = moved * (info["variance"] - (4.0 + 5.0 * np.exp(-3.0)))
    check_mean(product, expected, alarms=LEVEL)


def test_the_variance_can_be_hidden():
    seen = gymnasium.make("mmgym/StochasticVolatility-v0").unwrapped
    hidden = gymnasium.make("mmgym/StochasticVolatility-v0", observe_variance=False).unwrapped
    assert seen.observation_space.shape == (3,)
    assert hidden.observation_space.shape == (2,)
    first, second = seen.reset(seed=4)[0], hidden.reset(seed=4)[0]
    for _ in range(50):
        assert np.array_equal(first[:2], second)
        action = np.array([0.1, -0.2], np.float32)
        (first, *one, seen_info), (second, *other, hidden_info) = seen.step(action), hidden.step(action)
        assert one == other
        assert seen_info == hidden_info
    step, lots, variance = seen.to_state(first)
    assert variance == pytest.approx(seen_info["variance"], rel=1e-6)
    assert np.array_equal(observe(seen.params, step, lots, seen_info["variance"]), first)
    excess = hidden.params.initial_variance - hidden.params.variance_mean
    assert hidden.to_state(second)[2] == pytest.approx(4.0 + excess)


@pytest.mark.parametrize("arguments", [{"observe_variance": False, "reward": "expected"}, {"num_steps": 1}])
def test_conformance_with_other_arguments(arguments):
    check_market(StochasticVolatilityEnv, **{"num_steps": 5, **arguments})


def test_feller_violated_is_warned_of_and_plays():
    with pytest.warns(UserWarning, match=r"Feller.*variance_volatility\^2"):
        envs = StochasticVolatilityVectorEnv(50, variance_volatility=8.0, num_steps=20)
    envs.reset(seed=0)
    for _ in range(20):
        _, rewards, *_ = envs.step(np.zeros((50, 2), np.float32))
        assert np.isfinite(rewards).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Params.create(variance_volatility=np.sqrt(24.0) - 1e-9)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("variance_reversion", 0.0),
        ("variance_mean", -1.0),
        ("variance_volatility", -0.1),
        ("initial_variance", np.inf),
        ("correlation", 1.01),
        ("observe_variance", "yes"),
        ("risk_aversion", -1.0),
        ("inventory_limit", 0.5),
    ],
)
def test_bad_arguments_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=argument):
        Params.create(**{argument: value})
