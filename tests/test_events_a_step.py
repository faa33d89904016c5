"""Exact scores in steps of many events: against plain returns on random sets, and weights against another series.

The statistical comparisons of this file together raise a false alarm with probability 1e-3 at most; seeds are fixed.
"""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

import mmgym  # noqa: F401  # registers the ids
from mmgym.baselines import score
from mmgym.baselines.baseline import baseline_of
from mmgym.baselines.catalogue import environment_of
from mmgym.baselines.foreign import as_policy
from mmgym.baselines.mean_field.one_step import MeanFieldProblem
from mmgym.models import mean_field_steps
from mmgym.uniformisation import num_terms, poisson_weights

SETS = 6  # random sets of a market, two comparisons each
COMPARISONS = 5 * 2 * SETS + 4
LEVEL = 1e-3 / COMPARISONS
MAKER = "mmgym/MeanFieldMaker-v0"


def constant(action):
    """The policy that always plays an action."""

    def play(observations):
        return np.broadcast_to(action, (*np.shape(observations)[:-1], *np.shape(action))).astype(
            np.asarray(action).dtype
        )

    return play


def plain_returns(env, action, episodes, seed):
    """Sums of rewards of an action, without a control variate."""
    envs = env.make_batch(episodes)
    envs.reset(seed=seed)
    actions = np.broadcast_to(action, (episodes, *np.shape(action))).astype(np.asarray(action).dtype)
    return sum(envs.step(actions)[1] for _ in range(env.params.num_steps))


@pytest.fixture
def agree(check_mean):
    """Mean and standard deviation of an action's plain returns are the exact ones: its score."""

    def compare(env, action, episodes=1000, seed=5):
        scored = score(env, constant(action), markov=True, method="exact")
        returns = plain_returns(env, action, episodes, seed)
        check_mean(returns, scored.value, alarms=LEVEL, slack=1e-9 * (1.0 + abs(scored.value)) + scored.value_error)
        check_mean((returns - scored.value) ** 2, scored.std**2, alarms=LEVEL)
        assert scored.fills > 0.0
        return scored

    return compare


def test_a_maker_with_nine_hundred_fills_a_step(agree):
    """The set of the issue; its plain returns were -136231 +- 11, its exact value nan."""
    env = environment_of(MAKER, num_steps=10, horizon=0.2, maker_fill_rate=2000.0, inventory_limit=50.0)
    scored = agree(env, np.array([-1.0, -1.0], np.float32))
    assert abs(scored.value + 136231.0) < 4.0 * 11.0
    assert scored.fills > 9000.0


MEAN_FIELD = {"num_steps": 3, "population": "constant"}


def random_set(market, draws):
    """An id, arguments and an action with hundreds to thousands of expected events a step."""
    events = 10.0 ** draws.uniform(2.3, 3.3)  # at the action's depths, both sides
    bid, ask = draws.uniform(-1.0, 0.2, 2)
    action = np.array([bid, ask], np.float32)
    limit = float(draws.integers(2, 9))
    if market == "glft":
        sizes = {"num_steps": 3, "horizon": 3.0, "inventory_limit": limit, "fill_decay": 0.3, "min_depth": -1.0}
        rate = 0.5 * events / math.exp(-0.3 * (4.5 + 5.5 * bid))
        return "mmgym/GLFT-v0", {**sizes, "max_depth": 10.0, "fill_rate": rate}, action
    if market == "multi_asset_glft":
        sizes = {"num_steps": 2, "horizon": 0.2, "inventory_limit": [2.0, 1.0], "min_depth": -0.5, "max_depth": 2.0}
        return "mmgym/MultiAssetGLFT-v0", {**sizes, "fill_rate": 2.0 * events}, np.repeat(action, 2)
    if market == "tick_spread":
        sizes = {"num_steps": 2, "horizon": 2.0, "lot": 100.0, "inventory_limit": 100.0 * limit}
        rates = {"fill_rate_best": 0.2 * events, "fill_rate_improved": 0.4 * events, "clock_rate": 0.4 * events}
        return "mmgym/TickSpread-v0", {**sizes, **rates}, np.array([0, 1, 1, 1, 1])
    if market == "taker":  # up to 600 events a step at the depth -max_depth
        rate = draws.uniform(100.0, 570.0) / (2.0 * math.exp(2.375 * 1.5))
        sizes = {**MEAN_FIELD, "horizon": 3.0, "inventory_limit": 10.0 * limit, "signal_limit": 2}
        return "mmgym/MeanFieldTaker-v0", {**sizes, "taker_fill_rate": rate}, np.array([-1.0, ask], np.float32)
    sizes = {**MEAN_FIELD, "horizon": 0.06, "inventory_limit": 10.0 * limit, "signal_limit": 1}
    return MAKER, {**sizes, "maker_fill_rate": draws.uniform(300.0, 4000.0)}, np.array([-1.0, -0.9], np.float32)


@pytest.mark.long
@pytest.mark.parametrize("market", ["glft", "multi_asset_glft", "tick_spread", "taker", "maker"])
def test_steps_of_many_events_have_the_exact_law_of_their_simulation(market, agree):
    draws = np.random.default_rng([20, 2])
    for seed in range(SETS):
        env_id, arguments, action = random_set(market, draws)
        agree(environment_of(env_id, **arguments), action, episodes=1000, seed=seed)


def test_a_maker_at_the_allowed_maximum(agree):
    """Some 2400 expected fills a step, and a refusal beyond."""
    sizes = {"num_steps": 2, "horizon": 0.02, "inventory_limit": 30.0, "signal_limit": 1, "population": "constant"}
    rate = 2400.0 / environment_of(MAKER, **sizes).params.factors().sum(axis=1).max() * 100.0
    rate *= 0.999 * math.exp(-2.375 * 1.5) / 0.01
    scored = agree(environment_of(MAKER, **sizes, maker_fill_rate=rate), np.array([-1.0, -1.0], np.float32))
    assert scored.fills > 2.0 * 0.85 * 2400.0
    with pytest.raises(ValueError, match=r"maker_fill_rate = .* are not allowed together: .*2400"):
        score(MAKER, constant(np.zeros(2, np.float32)), markov=True, maker_fill_rate=1.01 * rate, **sizes)


@pytest.mark.long
def test_stochastic_volatility_at_the_allowed_maximum(check_mean):
    """9,999 expected fills a step on each side, and a refusal beyond: the mean of plain returns is the exact value."""
    sizes = {"num_steps": 2, "horizon": 2.0, "inventory_limit": 2.0, "fill_decay": 0.3, "min_depth": -1.0,
             "max_depth": 10.0}  # fmt: skip
    rate, action = 9999.0 / math.exp(0.3), np.array([-1.0, -1.0], np.float32)
    env = environment_of("mmgym/StochasticVolatility-v0", **sizes, fill_rate=rate)
    worth = baseline_of(env).evaluate(as_policy(constant(action), True))
    assert worth.fills > 2.0 * 0.79 * 2.0 * 9999.0  # a side is on in 4 of 5 inventories
    assert worth.error <= 1e-9
    returns = plain_returns(env, action, 1000, 7)
    check_mean(returns, worth.value, alarms=LEVEL)
    with pytest.raises(ValueError, match="must be at most 10000"):
        environment_of("mmgym/StochasticVolatility-v0", **sizes, fill_rate=1.001 * rate)


@pytest.mark.long
def test_hawkes_flow_with_five_hundred_orders_a_step(check_mean):
    """Quotes of the book's best: the mean of plain returns is the solver's value."""
    sizes = {"num_steps": 2, "horizon": 60.0, "inventory_limit": 2, "decision": "clock"}
    rates = {"base_rate": 1000.0 / 240.0, "excitation": 1.5, "decay": 3.0}  # twice the base rate a side and minute
    env = environment_of("mmgym/HawkesFlow-v0", **sizes, **rates)
    baseline = baseline_of(env)
    policy = baseline.policies()["join_best"]()
    worth = baseline.evaluate(policy)
    envs, returns = env.make_batch(4000), np.zeros(4000)
    observations, _ = envs.reset(seed=7)
    for _ in range(2):
        observations, rewards, *_ = envs.step(policy.predict(observations)[0])
        returns += rewards
    check_mean(returns, worth.value, alarms=LEVEL, slack=worth.error)


@pytest.mark.parametrize("mean", [0.0, 1e-3, 0.7, 30.0, 499.9, 500.1, 709.0, 745.0, 2400.0, 1e4, 1.5e5])
def test_poisson_weights_are_those_of_scipy(mean):
    """Both are right to some 1e-12: scipy's logarithms of factorials lose digits with the mean."""
    count = num_terms(mean)
    weights = poisson_weights(mean, count)
    expected = stats.poisson.pmf(np.arange(count), mean)
    assert weights == pytest.approx(expected, rel=1e-15 * (1000.0 + 10.0 * mean), abs=1e-30)
    assert weights.sum() == pytest.approx(1.0, rel=1e-12)
    assert stats.poisson.sf(count - 1, mean) < 1e-15


def test_a_series_that_would_be_cut_off_is_refused():
    with pytest.raises(ArithmeticError, match="raise num_steps"):
        num_terms(2e5)
    with pytest.raises(ArithmeticError):
        num_terms(math.nan)


@pytest.mark.parametrize("depth", [1.4, -0.6, -1.5])
def test_a_step_of_the_mean_field_market_is_a_matrix_exponential(depth):
    """Mean, second moment and characteristic function of one step, from 6 to 2390 expected fills."""
    sizes = {"num_steps": 2, "horizon": 0.02, "inventory_limit": 20.0, "signal_limit": 1, "population": "constant"}
    env = environment_of(MAKER, **sizes, maker_fill_rate=8400.0, impact=0.0)
    problem, p = MeanFieldProblem(env.params), env.params
    depths = np.array([depth, depth + 0.1])
    q, states, h = problem.inventory, np.arange(5), p.step_length
    rates = problem.intensities(0, depths)

    def generator(z):
        """Of ``E[exp(z R)]`` with fills' gains, the running penalty and the price's variance."""
        matrix = np.diag(-z * p.running_penalty * q**2 + 0.5 * z * z * (p.volatility * q) ** 2).astype(type(z))
        for i in states:
            for side, j in ((0, i + 1), (1, i - 1)):
                if 0 <= j < 5:
                    matrix[i, i] -= rates[side]
                    matrix[i, j] += rates[side] * np.exp(z * p.order_size * depths[side])
        return matrix

    controls = np.tile(depths, (5, 1))
    exponents = np.array([0.3j, 0.02j]) / (p.order_size * (1.0 + np.sqrt(rates.sum() * h)))
    functional = problem.criterion._replace(exponents=exponents)
    earlier = problem.backward(0, states, controls, problem.terminal(functional), functional)
    for k, z in enumerate(exponents):
        assert earlier[:, k] == pytest.approx(expm(h * generator(complex(z))).sum(axis=1), rel=1e-10, abs=1e-11)

    zero, size = generator(0.0), p.order_size
    first, second = np.diag(-p.running_penalty * q**2), 0.5 * np.diag((p.volatility * q) ** 2)
    for i in states:
        for side, j in ((0, i + 1), (1, i - 1)):
            if 0 <= j < 5:
                first[i, j] += rates[side] * size * depths[side]
                second[i, j] += 0.5 * rates[side] * (size * depths[side]) ** 2
    none = np.zeros((5, 5))
    scale = size * np.abs(depths).max()  # keeps the blocks of one size: the exponential is then right to 1e-11
    first, second = first / scale, second / scale**2
    powers = expm(h * np.block([[zero, first, second], [none, zero, first], [none, none, zero]]))  # of scale z, above
    both = problem.criterion._replace(moments=2)
    earlier = problem.backward(0, states, controls, problem.terminal(both), both)
    assert earlier[:, 0] == pytest.approx(scale * powers[:5, 5:10].sum(axis=1), rel=1e-10)
    assert earlier[:, 1] == pytest.approx(2.0 * scale**2 * powers[:5, 10:].sum(axis=1), rel=1e-10)
    once = problem.backward(0, states, controls, problem.terminal(problem.criterion), problem.criterion)
    assert once[:, 0] == pytest.approx(earlier[:, 0], rel=1e-11)

    law = problem.forward(0, controls, problem.initial)
    assert law == pytest.approx(problem.initial @ expm(h * zero), rel=1e-10)
    best_step = problem.gradient(0, states, controls, np.zeros((5, 1)))
    assert best_step[0][:, 0] == pytest.approx(earlier[:, 0], rel=1e-11)


def test_depths_far_below_the_box_are_refused_not_cut_off():
    env = environment_of(MAKER, num_steps=2, horizon=0.02, inventory_limit=20.0, signal_limit=1, population="constant")
    problem = MeanFieldProblem(env.params)
    with pytest.raises(ArithmeticError, match="3500"):
        mean_field_steps.forward(0.01, np.full((1, 5, 2), 2e5), np.eye(1, 5), np.ones(1), np.zeros((1, 5)), np.zeros(1))
    with pytest.raises(ArithmeticError, match="3500"):
        controls = np.full((1, 2), -4.0)
        problem.backward(0, np.zeros(1, np.int64), controls, np.zeros((5, 1)), problem.criterion)
