"""A geometric price on a grid: against the GLFT market, dense exponentials and geometric Brownian motion itself."""

import math

import gymnasium
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines.catalogue import params_of
from mmgym.models import geometric_price, quoting

ID, GLFT = "mmgym/GeometricPrice-v0", "mmgym/GLFT-v0"
FEW = {"num_steps": 4, "horizon": 0.4, "inventory_limit": 2.0, "fill_rate": 6.0, "fill_decay": 1.2}


@pytest.fixture(params=["mean", "cara"])
def utility(request):
    return request.param


@pytest.mark.parametrize("number", range(3))
def test_a_martingale_is_the_glft_market_whatever_the_grid(number):
    """Under the mean criterion no policy gains from the price: the optimum is that of an arithmetic mid, everywhere."""
    random = np.random.default_rng([31, number])
    arguments = FEW | {"terminal_penalty": random.uniform(0.0, 0.3), "running_penalty": random.uniform(0.0, 2.0)}
    arguments |= {"min_depth": -0.5, "max_depth": 2.5, "initial_price": random.uniform(0.5, 500.0)}
    theirs = baselines.optimal_policy(GLFT, **arguments)
    grid = {"volatility": random.uniform(0.01, 1.0), "price_levels": 3 + 2 * number, "price_range": 3.0, "drift": 0.0}
    ours = baselines.optimal_policy(ID, **arguments, **grid)
    assert ours.optimum == pytest.approx(theirs.optimum, rel=1e-10)
    values = ours.solution.values.reshape(5, 5, -1)
    assert np.allclose(values, theirs.solution.values[:, :, None], rtol=1e-10, atol=1e-12)


def test_optimum(utility, check_optimum):
    sigma, mu, levels, gamma = 0.4, 0.3, 2, 0.2
    h = (2.0 * sigma * math.sqrt(0.3) + mu * 0.3) / levels
    up, down = math.exp(h) - 1.0, 1.0 - math.exp(-h)
    a, b = np.linalg.solve([[up, -down], [up**2, down**2]], [mu, sigma**2])
    states = [(q, i) for q in (-1, 0, 1) for i in range(-levels, levels + 1)]
    prices = [5.0 * math.exp(h * i) for _, i in states]

    def moves(depths):
        for here, (q, i) in enumerate(states):
            for depth, step in zip(depths, (1, -1), strict=True):
                if abs(q + step) <= 1:
                    yield here, states.index((q + step, i)), 10.0 * np.exp(-1.5 * depth), depth
            for step, rate in ((1, a), (-1, b)):
                if abs(i) < levels:
                    there = states.index((q, i + step))
                    yield here, there, rate, q * (prices[there] - prices[here])

    q = np.array([q for q, _ in states])
    flow = -0.5 * gamma * (sigma * 5.0) ** 2 * q**2 * (utility == "mean")
    arguments = {"num_steps": 2, "horizon": 0.3, "inventory_limit": 1.0, "fill_rate": 10.0, "drift": mu}
    arguments |= {"volatility": sigma, "initial_price": 5.0, "price_levels": levels, "price_range": 2.0}
    arguments |= {"utility": utility, "risk_aversion": gamma, "terminal_penalty": 0.1}
    check_optimum(ID, moves, flow, 0.0 * q, -0.1 * q**2, [1, 7], **arguments)


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_price_blind_moments_are_those_of_geometric_brownian_motion(mu):
    """However coarse the grid; paths that reach an edge, 7 standard deviations away, weigh less than 1e-9."""
    sigma, price, rate = 0.4, 3.0, 6.0 * math.exp(-1.0)
    shared = FEW | {"initial_inventory": 1.0, "volatility": sigma}
    arguments = shared | {"drift": mu, "initial_price": price, "price_levels": 12, "price_range": 7.0}
    score = baselines.score(ID, baselines.reference_policy(ID, **arguments), **arguments)
    still = {name: value for name, value in shared.items() if name != "volatility"} | {"volatility": 0.0}
    spreads = baselines.score(GLFT, baselines.reference_policy(GLFT, **still), **still)
    chain = np.diag(np.full(4, rate), 1) + np.diag(np.full(4, rate), -1)
    chain -= np.diag(chain.sum(axis=1))
    law = lambda t: expm(chain * t)[3]  # noqa: E731  # from one asset
    q = np.arange(-2, 3)
    gained = quad(lambda t: law(t) @ q * mu * price * math.exp(mu * t), 0.0, 0.4, epsabs=1e-12)[0]
    assert score.pnl == pytest.approx(spreads.pnl + gained, abs=1e-7)
    if mu == 0.0:
        noise = quad(lambda t: law(t) @ q**2 * (sigma * price) ** 2 * math.exp(sigma**2 * t), 0.0, 0.4, epsabs=1e-12)
        assert score.pnl_std**2 == pytest.approx(spreads.pnl_std**2 + noise[0], abs=1e-7)


def quotes_in_the_limit(p, gamma):
    """Depths (Q states, 2) at the start of the continuous-time market with a true GBM, by Chebyshev collocation.

    ``v_t + mu S q + (mu - sigma^2 / 2) v_x + sigma^2 / 2 v_xx - gamma sigma^2 / 2 (S q + v_x)^2 - phi q^2 + fills = 0``
    in ``x = ln(S / S_0)``; at both edges the price stays.
    """
    size = 41
    place = np.cos(np.pi * np.arange(size) / (size - 1))
    vander = np.polynomial.chebyshev.chebvander(place, size - 1)
    slope = np.array([np.polynomial.chebyshev.chebval(place, np.polynomial.chebyshev.chebder(row)) for row in
                      np.eye(size)]).T @ np.linalg.inv(vander)  # fmt: skip
    reach = p.spacing * p.price_levels
    slope /= reach
    bend, inner = slope @ slope, (np.abs(place) < 1.0).astype(float)
    q = np.arange(-p.limit, p.limit + 1.0)[:, None]
    worth = p.initial_price * np.exp(reach * place) * q
    mark = math.log1p(gamma / p.fill_decay) / gamma if gamma else 1.0 / p.fill_decay

    def depths(v):
        return mark - np.diff(v, axis=0), mark + np.diff(v, axis=0)  # bids of all but the last, asks but the first

    def derivative(_, flat):
        v = flat.reshape(len(q), size)
        along = v @ slope.T
        rate = p.drift * (worth + along) + 0.5 * p.volatility**2 * (v @ bend.T - along)
        rate = inner * (rate - 0.5 * gamma * p.volatility**2 * (worth + along) ** 2) - p.running_penalty * q**2
        earned = -np.expm1(-gamma * mark) / gamma if gamma else mark
        bids, asks = (p.fill_rate * np.exp(-p.fill_decay * depth) * earned for depth in depths(v))
        rate[:-1] += bids
        rate[1:] += asks
        return rate.ravel()

    path = solve_ivp(derivative, (0.0, p.horizon), np.zeros(len(q) * size), "Radau", rtol=1e-8, atol=1e-9)
    bids, asks = depths(path.y[:, -1].reshape(len(q), size)[:, size // 2])
    return bids, asks


def test_the_grid_converges_to_geometric_brownian_motion(utility):
    """Quotes of the continuous-time optimum: the error falls as the square of the grid, and Richardson removes it."""
    arguments = {"utility": utility, "volatility": 0.25, "drift": 0.15, "horizon": 1.0, "inventory_limit": 2.0}
    arguments |= {"initial_price": 3.0, "fill_rate": 4.0, "fill_decay": 1.0, "risk_aversion": 0.2, "num_steps": 1000}
    arguments |= {"min_depth": -8.0, "max_depth": 12.0, "price_range": 5.0}
    grids = []
    for levels in (12, 24):
        p = params_of(ID, **arguments, price_levels=levels)
        depths = quoting.continuous_depths(geometric_price.MARKET, p)[0].reshape(5, 2 * levels + 1, 2)[:, levels]
        grids.append(np.concatenate([depths[:-1, 0], depths[1:, 1]]))
    limit = np.concatenate(quotes_in_the_limit(p, 0.2 if utility == "cara" else 0.0))
    errors = [np.abs(one - limit).max() for one in (*grids, (4.0 * grids[1] - grids[0]) / 3.0)]
    assert errors[1] < 0.3 * errors[0] < (1e-2 if utility == "cara" else 1e-5)
    assert errors[2] < max(0.1 * errors[1], 1e-6)
    assert np.abs(grids[1] - grids[1][::-1]).max() > 0.05  # the drift moves them


def test_cash_moves_with_fills_only_and_expected_rewards_leave_out_the_ticks():
    arguments = FEW | {"num_steps": 20, "info": "full"}
    totals = {}
    for reward in ("pnl", "expected"):
        envs = gymnasium.make_vec(ID, num_envs=4000, reward=reward, **arguments)
        envs.reset(seed=3)
        before, total = np.zeros(4000), np.zeros(4000)
        for _ in range(20):
            _, rewards, _, _, info = envs.step(np.zeros((4000, 2), np.float32))
            idle = info["bid_fills"] + info["ask_fills"] == 0
            assert np.allclose(info["cash"][idle], before[idle], atol=1e-9)
            before, total = info["cash"], total + rewards
        totals[reward] = total
        assert np.allclose(info["mid"], 100.0 * np.exp(envs.unwrapped.one_params.spacing * info["price"]))
    noise = totals["pnl"] - totals["expected"]  # a martingale: the seeds and hence the paths are the same
    assert abs(noise.mean()) < 4.0 * noise.std() / np.sqrt(4000)  # false alarms: 6e-5
    assert noise.std() > 0.1
    exact = baselines.score(ID, baselines.paper_policies(ID, **arguments)["constant"], **arguments)
    assert exact.pnl_std > 0.0


def test_the_law_of_the_pnl_is_discrete_and_risk_is_simulated(utility):
    env = gymnasium.make(ID, utility=utility, price_levels=4, drift=0.001, **FEW)
    policy = baselines.paper_policies(env)["constant"]
    score = baselines.score(env, policy, risk=True, episodes=4_000)
    assert score.risk.method == "simulated"
    mean, std = score.pnl, score.pnl_std
    shortfall = score.risk.expected_shortfall[0.95]
    assert -mean < shortfall.value < std * math.sqrt(19.0) - mean  # Cantelli's bound of it
    with pytest.raises(ValueError, match="nearly discrete"):
        baselines.score(env, policy, risk="exact", episodes=10)


def test_the_glft_market_names_this_one():
    for arguments in ({"drift": 0.1}, {"utility": "cara"}):
        with pytest.raises(ValueError, match="mmgym/GeometricPrice-v0 observes it"):
            params_of(GLFT, price="geometric", volatility=0.02, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"drift": 1.0}, "must be below about volatility\\^2 / |drift|.*raise price_levels"),
        ({"volatility": 5.0}, "the log-price may reach 20 at most"),
        ({"price_levels": 5000, "num_steps": 1}, "expected ticks of the price in a step"),
        ({"initial_price": 0.0}, "initial_price"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        params_of(ID, **arguments)
