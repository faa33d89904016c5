"""Other prices in the GLFT market: a mid that jumps, and a geometric one.

Expected values are the digits of the reference mathematics, the plain market, quadrature, and the law of a sum of
normals. False alarms: with fixed seeds a check always passes or never does; were they redrawn, each statistical test
would fail with probability at most 1e-3.
"""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines import frozen
from mmgym.baselines.catalogue import params_of, problem_of
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.frozen import Functional, criterion_value
from mmgym.baselines.glft import continuous_values
from mmgym.baselines.glft.feedback import feedback_certainty_equivalent, feedback_pnl_law
from mmgym.baselines.pnl_law import pnl_law
from mmgym.checking import check_market
from mmgym.envs.glft import GLFTEnv, GLFTVectorEnv

AS = "mmgym/AvellanedaStoikov-v0"
GLFT = "mmgym/GLFT-v0"
FALSE_ALARMS = 1e-3
MERTON = {"jump_rate": 1.0, "jump_volatility": 1.5}
SKEWED = {**MERTON, "volatility": 1.5**0.5, "jump_mean": -0.5}
SMALL = {
    "volatility": 0.8,
    "drift": 0.3,
    "fill_rate": [12.0, 8.0],
    "fill_decay": [1.5, 2.0],
    "horizon": 1.0,
    "num_steps": 4,
    "order_size": 0.5,
    "inventory_limit": 1.5,
    "initial_inventory": 0.5,
    "terminal_penalty": 0.1,
    "jump_rate": 3.0,
    "jump_mean": 0.6,
    "jump_volatility": 0.7,
}

MERTON_JUMPS = {"jump_mean": 0.6, "jump_volatility": 0.7}
KOU_JUMPS = {"jump_law": "double_exponential", "jump_up_share": 0.7, "jump_up_mean": 0.8, "jump_down_mean": 0.5}
LAWS = {"normal": MERTON_JUMPS, "double_exponential": KOU_JUMPS}
BARE = {name: value for name, value in SMALL.items() if name not in MERTON_JUMPS}

# Reference mathematics, section 5: AS_cara with jumps of the same variance.
CONTINUOUS = [
    ({}, 64.1284801551),
    ({**MERTON, "volatility": 1.75**0.5}, 64.0450551672),
    (SKEWED, 64.4092461814),
    ({**SKEWED, "compensated": True}, 64.0459322346),
]


@pytest.mark.parametrize(("arguments", "value"), CONTINUOUS)
def test_certainty_equivalents_have_the_reference_digits(arguments, value):
    params = params_of(AS, utility="cara", **arguments)
    assert continuous_values(params)[0, params.limit] == pytest.approx(value, abs=0.51e-10)


@pytest.mark.parametrize(("arguments", "value"), CONTINUOUS[1:])
def test_frozen_optimum_approaches_the_certainty_equivalent_at_first_order(arguments, value):
    gaps = [value - baselines.optimal_policy(AS, utility="cara", num_steps=n, **arguments).optimum for n in (500, 1000)]
    assert 0.0 < gaps[1] < 0.02
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("decays", [1.5, [1.5, 2.0]])
def test_equal_and_unequal_decays_agree_on_jumps(decays):
    """The linear system and the nonlinear equation: here at nearly equal decays."""
    arguments = {**SMALL, "utility": "cara", "risk_aversion": 0.4, "fill_decay": decays}
    exact = continuous_values(params_of(GLFT, **arguments))[0]
    near = [1.5, 1.5 + 1e-9] if decays == 1.5 else [1.5, 2.0 + 1e-9]
    np.testing.assert_allclose(
        continuous_values(params_of(GLFT, **{**arguments, "fill_decay": near}))[0], exact, rtol=0, atol=1e-7
    )


def test_compensated_jumps_change_nothing_under_the_mean_criterion():
    plain = {**SMALL, "jump_rate": 0.0}
    best = baselines.optimal_policy(GLFT, **plain)
    for arguments, other in (
        ({**SMALL, "compensated": True}, best),
        (SMALL, baselines.optimal_policy(GLFT, **{**plain, "drift": 0.3 + 3.0 * 0.6})),
    ):
        policy = baselines.optimal_policy(GLFT, **arguments)
        assert policy.optimum == pytest.approx(other.optimum, rel=1e-13)
        np.testing.assert_allclose(policy.controls, other.controls, rtol=0, atol=1e-12)


def test_variance_of_the_gain():
    """Jumps add their second moment times the expected integral of squared inventory, which the penalty measures."""
    problem, best = problem_of(GLFT, **SMALL), baselines.optimal_policy(GLFT, **SMALL)
    noise = Functional(price=1.0)
    mean, std = frozen.moments(problem, best.controls, noise)
    square = -frozen.moments(problem, best.controls, Functional(penalty=1.0 / problem.params.running_penalty))[
        0
    ]  # also the terminal penalty
    square -= (
        frozen.state_laws(problem, best.controls)[-1] @ problem.inventory**2 * 0.1 / problem.params.running_penalty
    )
    assert mean == pytest.approx(0.0, abs=1e-13)
    assert std**2 == pytest.approx((0.8**2 + 3.0 * (0.6**2 + 0.7**2)) * square, rel=1e-11)


def jump_nodes(p):
    """Quadrature nodes and weights of the size of a jump: Gauss-Hermite, or on a fine grid of exponential sizes."""
    if p.jump_law == "normal":
        x, w = np.polynomial.hermite_e.hermegauss(60)
        return p.jump_mean + p.jump_volatility * x, w / w.sum()
    x, w = np.polynomial.legendre.leggauss(4_000)
    size, weight = 40.0 * (x + 1.0), 40.0 * w * np.exp(-40.0 * (x + 1.0))
    share = p.jump_up_share
    jumps = np.concatenate([p.jump_up_mean * size, -p.jump_down_mean * size])
    return jumps, np.concatenate([share * weight, (1.0 - share) * weight])


@pytest.mark.long
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("z", [-0.5, 0.7j])
def test_exponentials_against_dense_exponentials_and_quadrature(law, compensated, z):
    """One step of a constant quote, the moments of the jumps from quadrature."""
    arguments = {**BARE, **LAWS[law], "compensated": compensated}
    problem = problem_of(GLFT, **arguments)
    p, q = problem.params, problem.inventory
    depths = np.array([0.4, 0.9])
    jumps, w = jump_nodes(p)
    expected = w @ (np.exp(np.multiply.outer(jumps, z * q)) - 1.0)
    trend = p.drift - (p.jump_rate * (w @ jumps) if compensated else 0.0)
    growth = z * trend * q + 0.5 * (z * p.volatility * q) ** 2 + p.jump_rate * expected
    growth = growth - z * (p.running_penalty * q**2)
    rates = [12.0 * math.exp(-1.5 * 0.4), 8.0 * math.exp(-2.0 * 0.9)]
    up, down = np.full(len(q) - 1, rates[0]), np.full(len(q) - 1, rates[1])
    system = np.diag(growth - np.append(up, 0.0) - np.append(0.0, down))
    system = system + np.diag(up * np.exp(z * 0.5 * 0.4), 1) + np.diag(down * np.exp(z * 0.5 * 0.9), -1)
    functional = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([z]))
    last = problem.terminal(functional)
    states = np.arange(problem.num_states)
    earlier = problem.backward(0, states, np.tile(depths, (len(states), 1)), last, functional)
    np.testing.assert_allclose(earlier[:, 0], expm(system * p.step_length) @ last[:, 0], rtol=1e-12)


def test_feedback_evaluation_of_a_constant_quote_agrees():
    params = params_of(GLFT, **{**SMALL, "utility": "cara", "risk_aversion": 0.5})
    problem = problem_of(GLFT, **{**SMALL, "utility": "cara", "risk_aversion": 0.5})
    quote = np.broadcast_to([0.4, 0.9], (4, problem.num_states, 2))
    assert feedback_certainty_equivalent(params, quote, 0.5) == pytest.approx(
        criterion_value(problem, quote), rel=1e-11
    )
    x = np.linspace(-3.0, 6.0, 7)
    law, other = pnl_law(problem, quote), feedback_pnl_law(params, quote)
    np.testing.assert_allclose(law.probability(x), other.probability(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_conformance_with_jumps(utility, law):
    arguments = {**BARE, **LAWS[law], "num_steps": 5, "utility": utility, "risk_aversion": 0.3}
    check_market(GLFTVectorEnv, **arguments)
    check_baseline(GLFT, **arguments)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_rewards_without_price_noise_have_the_same_mean(utility, check_mean):
    count, returns = 40_000, []
    for reward in ("pnl", "expected"):
        envs = GLFTVectorEnv(count, **SMALL, utility=utility, risk_aversion=0.3, reward=reward)
        envs.reset(seed=3)
        returns.append(sum(envs.step(np.zeros((count, 2), np.float32))[1] for _ in range(4)))
    difference = returns[0] - returns[1]
    assert returns[1].std() < 0.8 * returns[0].std()
    check_mean(difference, alarms=FALSE_ALARMS, checks=2)


def merton_cdf(x, p, length):
    """Law of the change of the mid over ``length``."""
    trend = p.drift - (p.jump_rate * p.jump_mean if p.compensated else 0.0)
    number = np.arange(60)[:, None]
    std = np.sqrt(p.volatility**2 * length + number * p.jump_volatility**2)
    return stats.poisson.pmf(number, p.jump_rate * length).T @ stats.norm.cdf(
        (x - trend * length - number * p.jump_mean) / std
    )


@pytest.mark.parametrize("compensated", [False, True])
def test_law_of_the_mid(compensated):
    count = 50_000
    envs = GLFTVectorEnv(count, info="full", **{**SMALL, "num_steps": 2, "compensated": compensated})
    _, before = envs.reset(seed=11)
    _, _, _, _, info = envs.step(np.zeros((count, 2), np.float32))
    moved = info["mid"] - before["mid"]
    result = stats.kstest(moved, lambda x: merton_cdf(x, envs.params, 0.5)[0])
    assert result.pvalue > 0.5 * FALSE_ALARMS


@pytest.mark.parametrize("compensated", [False, True])
def test_law_of_the_mid_with_double_exponential_jumps(compensated):
    """Against a sample of the same law that numpy draws."""
    count, random = 50_000, np.random.default_rng(17)
    envs = GLFTVectorEnv(count, info="full", **{**BARE, **KOU_JUMPS, "num_steps": 2, "compensated": compensated})
    _, before = envs.reset(seed=11)
    _, _, _, _, info = envs.step(np.zeros((count, 2), np.float32))
    number = random.poisson(3.0 * 0.5, count)
    up = random.binomial(number, 0.7)
    jumped = 0.8 * random.standard_gamma(up) - 0.5 * random.standard_gamma(number - up)
    trend = 0.3 - (3.0 * (0.7 * 0.8 - 0.3 * 0.5) if compensated else 0.0)
    drawn = 0.5 * trend + 0.8 * np.sqrt(0.5) * random.standard_normal(count) + jumped
    assert stats.ks_2samp(info["mid"] - before["mid"], drawn).pvalue > 0.5 * FALSE_ALARMS


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("compensated", [False, True])
def test_law_of_the_gain(compensated, law):
    """Many fills and jumps: the simulated P&L against its exact law."""
    count, arguments = 20_000, {**BARE, **LAWS[law], "num_steps": 2, "compensated": compensated}
    envs = GLFTVectorEnv(count, info="full", **arguments)
    envs.reset(seed=5)
    action = np.tile(np.array([-0.3, 0.2], np.float32), (count, 1))
    for _ in range(2):
        _, _, _, _, info = envs.step(action)
    problem = problem_of(GLFT, **arguments)
    table = np.broadcast_to(envs.to_quotes(action[0]), (2, problem.num_states, 2))
    law = pnl_law(problem, table)
    result = stats.kstest(info["gain"], law.probability)
    assert result.pvalue > 0.5 * FALSE_ALARMS


def test_jumps_do_not_touch_a_flat_book_or_the_plain_market():
    """Without inventory jumps earn nothing; at jump_rate 0 every bit is that of the market without jumps."""
    envs = [
        GLFTVectorEnv(50, info="full", num_steps=3, **arguments)
        for arguments in ({}, {"jump_mean": 2.0, "jump_volatility": 1.0, "compensated": True})
    ]
    outputs = []
    for env in envs:
        env.reset(seed=1)
        outputs.append([env.step(np.zeros((50, 2), np.float32)) for _ in range(3)])
    for first, second in zip(*outputs, strict=True):
        assert np.array_equal(first[1], second[1])
        assert all(np.array_equal(first[4][name], second[4][name]) for name in first[4])
    quiet = GLFTVectorEnv(50, info="full", num_steps=1, fill_rate=1e-9, jump_rate=15.0, jump_volatility=3.0)
    quiet.reset(seed=1)
    _, rewards, _, _, info = quiet.step(np.zeros((50, 2), np.float32))
    assert (rewards == 0.0).all()
    assert np.abs(info["mid"] - 100.0).min() > 0.0


def test_law_of_a_position_under_large_rare_jumps():
    """Its moments are infinite from ``1 / (q jump_down_mean)`` on. Against Poisson weights and Gamma sums of jumps."""
    rate, mean, q, volatility = 0.2, 10.0, 1.5, 4.0
    jumps = {"jump_law": "double_exponential", "jump_up_share": 0.0, "jump_up_mean": 1e3, "jump_down_mean": mean}
    held = {"drift": 0.0, "inventory_limit": q, "initial_inventory": q, "compensated": False, "jump_rate": rate}
    problem = problem_of(GLFT, **{**BARE, **jumps, **held, "volatility": volatility, "horizon": 1.0, "num_steps": 2})
    table = np.full((2, problem.num_states, 2), 100.0)  # nothing is filled
    law = pnl_law(problem, table)
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    for x in (-100.0, -60.0, -25.0, 0.5):
        fallen = volatility * z - x / q
        below = [stats.gamma.sf(fallen, n, scale=mean) @ weights / weights.sum() for n in range(1, 30)]
        chances = stats.poisson.pmf(np.arange(30), rate)
        exact = chances @ [stats.norm.cdf(x / (q * volatility)), *below]
        assert law.probability(x) == pytest.approx(exact, abs=1e-4 * exact)
    with pytest.raises(ValueError, match="no exponential moment at this exponent"):
        frozen.certainty_equivalent(problem, table, frozen.PNL, 1.01 / (q * mean))


def test_bad_jumps_are_refused():
    for arguments, message in (
        ({"jump_rate": -1.0}, "jump_rate = -1.0 is not allowed: it must be a finite number >= 0"),
        ({"jump_rate": 1e9}, "jump_rate = 1000000000.0, horizon = 600.0 and num_steps = 600 are not allowed together"),
        ({"jump_volatility": -0.1}, "jump_volatility = -0.1 is not allowed"),
        ({"jump_mean": math.nan}, "jump_mean = nan is not allowed"),
        ({"compensated": 1}, "compensated = 1 is not allowed: it must be one of False, True"),
        ({"utility": "cara", "jump_rate": 1.0, "jump_volatility": 40.0, "risk_aversion": 1.0}, "lower one of them"),
        ({"jump_law": "kou"}, "jump_law = 'kou' is not allowed: it must be one of 'normal', 'double_exponential'"),
        ({"jump_up_mean": 0.1}, "jump_up_mean = 0.1 is not allowed with jump_law='normal', whose parameters are"),
        ({**KOU_JUMPS, "jump_mean": 0.1}, "jump_mean = 0.1 is not allowed with jump_law='double_exponential'"),
        ({**KOU_JUMPS, "jump_rate": 1.0, "utility": "cara", "risk_aversion": 0.05}, "lower one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            GLFTEnv(**arguments)
    GLFTEnv(jump_rate=1.0, jump_volatility=40.0, risk_aversion=1.0)  # without CARA there is no exponential moment


# --- A geometric mid -------------------------------------------------------------------------------------------------

GEOMETRIC = {
    "price": "geometric",
    "volatility": 0.6,
    "initial_price": 2.0,
    "fill_rate": [12.0, 8.0],
    "fill_decay": [1.5, 2.0],
    "horizon": 1.0,
    "num_steps": 4,
    "order_size": 0.5,
    "inventory_limit": 1.5,
    "initial_inventory": 0.5,
    "terminal_penalty": 0.1,
    "running_penalty": 0.3,
}


def test_a_geometric_mid_changes_neither_optimum_nor_quotes():
    arithmetic = {**GEOMETRIC, "price": "arithmetic"}
    plain, geometric = (baselines.optimal_policy(GLFT, **arguments) for arguments in (arithmetic, GEOMETRIC))
    assert geometric.optimum == plain.optimum
    assert np.array_equal(geometric.solution.controls, plain.solution.controls)


def test_the_pnl_of_a_geometric_mid_has_the_exact_variance():
    """Against the Kolmogorov equation of both moments, with the rate ``sigma^2 S_0^2 exp(sigma^2 t) q^2``."""
    problem = problem_of(GLFT, **GEOMETRIC)
    p, depths = problem.params, np.array([0.4, 0.6])
    up, down = problem.intensities(depths)
    count, q = problem.num_states, problem.inventory
    generator = np.diag(np.full(count - 1, up), 1) + np.diag(np.full(count - 1, down), -1)
    generator -= np.diag(generator.sum(axis=1))

    def slope(left, y):
        f, m = y.reshape(2, count)
        new_f, new_m = generator @ f, generator @ m + (0.6 * 2.0 * q) ** 2 * math.exp(0.36 * (1.0 - left))
        for shift, rate, gain in ((1, up, 0.5 * depths[0]), (-1, down, 0.5 * depths[1])):
            for s in range(count):
                if 0 <= s + shift < count:
                    new_f[s] += rate * gain
                    new_m[s] += rate * (2.0 * gain * f[s + shift] + gain**2)
        return np.concatenate([new_f, new_m])

    moments = solve_ivp(slope, (0.0, 1.0), np.zeros(2 * count), rtol=1e-11, atol=1e-13).y[:, -1].reshape(2, count)
    start = p.limit + p.start
    table = np.broadcast_to(depths, (p.num_steps, count, 2))
    mean, std = frozen.moments(problem, table, frozen.PNL)
    assert mean == pytest.approx(moments[0, start], rel=1e-9)
    assert std == pytest.approx(math.sqrt(moments[1, start] - moments[0, start] ** 2), rel=1e-9)


def test_a_geometric_mid_is_lognormal_and_brings_what_the_inventory_earns():
    envs = GLFTVectorEnv(20_000, **{**GEOMETRIC, "num_steps": 3}, info="full")
    envs.reset(seed=2)
    for _ in range(3):
        *_, info = envs.step(np.zeros((20_000, 2), np.float32))
    logs = np.log(info["mid"] / 2.0)
    assert stats.kstest(logs, stats.norm(-0.18, 0.6).cdf).pvalue > FALSE_ALARMS
    held = GLFTVectorEnv(10, **{**GEOMETRIC, "num_steps": 1, "fill_rate": 1e-9}, info="full")
    held.reset(seed=2)
    *_, info = held.step(np.zeros((10, 2), np.float32))
    assert info["price_gain"] == pytest.approx(0.5 * (info["mid"] - 2.0), rel=1e-12)


def test_conformance_of_a_geometric_mid():
    check_market(GLFTEnv, **GEOMETRIC)
    check_market(GLFTEnv, **GEOMETRIC, reward="expected")
    figures = check_baseline(GLFT, episodes=2_000, **GEOMETRIC)
    assert figures["best suboptimal table"] < figures["optimum"]


def test_the_risk_of_a_geometric_mid_is_simulated():
    env = GLFTEnv(**GEOMETRIC)
    best = baselines.optimal_policy(env)
    score = baselines.score(env, best, risk=True, episodes=1_000)
    assert score.risk.method == "simulated"
    with pytest.raises(ValueError, match="price='geometric'"):
        baselines.score(env, best, risk="exact", episodes=1_000)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("drift", 0.1),
        ("jump_rate", 1.0),
        ("utility", "cara"),
        ("initial_price", -1.0),
        ("volatility", 8.0),
        ("price", "lognormal"),
    ],
)
def test_what_does_not_go_with_a_geometric_mid_is_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        params_of(GLFT, **{**GEOMETRIC, "running_penalty": None, argument: value})


def test_the_default_penalty_of_a_geometric_mid_is_that_of_its_first_variance():
    params = params_of(GLFT, **{**GEOMETRIC, "running_penalty": None, "risk_aversion": 0.5})
    assert params.running_penalty == pytest.approx(0.25 * 1.2**2)
