"""A short-term alpha: against the GLFT market and dense matrix exponentials."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines.catalogue import params_of
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values
from mmgym.declare import rates_of
from mmgym.models import quoting, short_term_alpha

ID, GLFT = "mmgym/ShortTermAlpha-v0", "mmgym/GLFT-v0"
FEW = {"num_steps": 6, "horizon": 0.1, "inventory_limit": 4.0, "order_size": 2.0, "initial_inventory": 2.0}
WIDE = {
    "risk_aversion": 0.1,
    "min_depth": -6.0,
    "max_depth": 9.0,
    "fill_decay": 1.2,
    "fill_rate": 10.0,
    "volatility": 0.5,
}


@pytest.fixture(params=["mean", "cara"])
def utility(request):
    return request.param


def test_without_alpha_it_is_the_glft_market(utility):
    arguments = FEW | {"utility": utility, "fill_rate": 40.0, "fill_decay": 1.2, "terminal_penalty": 0.1}
    arguments |= {"volatility": 1.5, "risk_aversion": 0.1, "min_depth": -0.5, "max_depth": 2.0}
    glft = baselines.optimal_policy(GLFT, **arguments)
    policy = baselines.optimal_policy(ID, alpha=0.0, **arguments)
    assert policy.optimum == pytest.approx(glft.optimum, rel=1e-10)
    grid = policy.solution.values.reshape(7, 5, 3)
    assert np.allclose(grid, glft.solution.values[:, :, None], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", range(3))
def test_optimum(number, utility, check_optimum):
    random = np.random.default_rng([24, number])
    alpha, eta, rate, penalty = random.uniform(0.5, 5.0), random.uniform(1.0, 20.0), random.uniform(5.0, 20.0), 0.1
    states = [(q, m) for q in (-2, -1, 0, 1, 2) for m in (-1, 0, 1)]
    q, m = np.transpose(states)

    def moves(depths):
        for i, (q, m) in enumerate(states):
            for depth, step in zip(depths, (1, -1), strict=True):
                if abs(q + step) <= 2:
                    yield i, states.index((q + step, m)), rate * np.exp(-1.5 * depth), depth
            for after in (0,) if m else (-1, 1):
                yield i, states.index((q, after)), eta if m else eta / 2, 0.0

    flow = alpha * m * q - 0.5 * 0.2 * 1.1**2 * q**2 * (utility == "mean")
    arguments = {"num_steps": 2, "horizon": 0.3, "inventory_limit": 2.0, "fill_rate": rate, "alpha": alpha}
    arguments |= {"switching_rate": eta, "utility": utility, "risk_aversion": 0.2, "volatility": 1.1}
    check_optimum(ID, moves, flow, 1.1**2 * q**2, -penalty * q**2, [0, 6], terminal_penalty=penalty, **arguments)
    best = baselines.optimal_policy(ID, terminal_penalty=penalty, **arguments)
    value = best.solution.values[0, 6:9]  # from the stationary law of the drift, at flat inventory
    law = np.array([0.25, 0.5, 0.25])
    expected = -np.log(law @ np.exp(-0.2 * value)) / 0.2 if utility == "cara" else law @ value
    assert best.optimum == pytest.approx(expected, rel=1e-12)


def test_alpha_blind_is_the_continuous_optimum_without_alpha(utility):
    arguments = FEW | WIDE | {"utility": utility}
    glft = params_of(GLFT, **arguments)
    expected = continuous_depths(glft, continuous_values(glft)[:-1])
    policy = baselines.paper_policies(ID, **arguments)["alpha_blind"]
    assert np.abs(np.reshape(policy.controls, (6, 5, 3, 2)) - expected[:, :, None]).max() < 2e-6  # float32 actions


def test_the_drift_moves_the_quotes():
    """Buying pays where the price is to rise; and the mirror image is the same market."""
    controls = baselines.optimal_policy(ID, **FEW).solution.controls.reshape(6, 5, 3, 2)
    assert (controls[0, 1:-1, 2, 0] < controls[0, 1:-1, 0, 0] - 0.1).all()
    assert np.abs(controls - controls[:, ::-1, ::-1, ::-1]).max() < 1e-5


@pytest.mark.parametrize("levels", [1, 2, 9])
def test_moments_of_the_drift_are_those_of_an_ornstein_uhlenbeck_process(levels):
    """Given any level, after any time: mean and variance; the stationary kurtosis is less by 1 / levels."""
    a, eta, market = 3.0, 2.5, short_term_alpha.MARKET
    p = params_of(ID, alpha=a, switching_rate=eta, signal_levels=levels, inventory_limit=1.0, num_steps=1000)
    following, rates = market.transitions(p), rates_of(market, p, 0, np.zeros(2))[0]
    size, middle = 2 * levels + 1, 2 * levels + 1  # the states at inventory 0
    chain = np.zeros((size, size))
    for k in (2, 3):
        for m in range(size):
            if following[k, middle + m] >= 0:
                chain[m, following[k, middle + m] - middle] += rates[k, middle + m]
    chain -= np.diag(chain.sum(axis=1))
    drift = a * np.arange(-levels, levels + 1) / np.sqrt(levels)
    for time in (0.1, 1.0):
        law = expm(chain * time)
        assert np.allclose(law @ drift, drift * np.exp(-eta * time), atol=1e-12)
        variance = law @ drift**2 - (law @ drift) ** 2
        assert np.allclose(variance, 0.5 * a**2 * (1.0 - np.exp(-2.0 * eta * time)), rtol=1e-11)
    chances = market.starts(p)[1]
    assert np.abs(chances @ chain).max() < 1e-14 * np.abs(chain).max() * size
    assert chances @ drift**4 / (chances @ drift**2) ** 2 == pytest.approx(3.0 - 1.0 / levels, rel=1e-12)


def test_many_levels_converge_to_the_ornstein_uhlenbeck_drift():
    """Quotes at drift 0 against Hermite collocation of the true process: first order in 1 / levels."""
    a, eta, phi, rate, decay, horizon = 3.0, 2.0, 0.4, 4.0, 1.0, 1.0
    arguments = {"alpha": a, "switching_rate": eta, "running_penalty": phi, "fill_rate": rate, "fill_decay": decay}
    arguments |= {"horizon": horizon, "inventory_limit": 2.0, "min_depth": -15.0, "max_depth": 20.0}
    grids = []
    for levels in (8, 16):
        p = params_of(ID, **arguments, num_steps=100_000, signal_levels=levels)._replace(num_steps=1)
        depths = quoting.continuous_depths(short_term_alpha.MARKET, p)[0].reshape(5, 2 * levels + 1, 2)[:, levels]
        grids.append(np.concatenate([depths[:-1, 0], depths[1:, 1]]))
    size, hermite = 17, np.polynomial.hermite_e
    z, _ = hermite.hermegauss(size)
    basis = hermite.hermevander(z, size - 1)
    degree = np.arange(size)
    moved = -eta * basis * degree @ np.linalg.inv(basis)  # of the standardised process: He_k at the rate eta k
    q, mu = np.arange(-2.0, 3.0)[:, None], a / np.sqrt(2.0) * z

    def derivative(_, flat):
        v = flat.reshape(5, size)
        change = v @ moved.T + mu * q - phi * q**2
        steps = np.diff(v, axis=0)
        change[:-1] += rate / (decay * np.e) * np.exp(decay * steps)
        change[1:] += rate / (decay * np.e) * np.exp(-decay * steps)
        return change.ravel()

    path = solve_ivp(derivative, (0.0, horizon), np.zeros(5 * size), "DOP853", rtol=1e-10, atol=1e-10)
    steps = np.diff(path.y[:, -1].reshape(5, size)[:, size // 2])
    limit = np.concatenate([1.0 / decay - steps, 1.0 / decay + steps])
    errors = [np.abs(one - limit).max() for one in (*grids, 2.0 * grids[1] - grids[0])]
    assert 0.4 * errors[0] < errors[1] < 0.6 * errors[0] < 0.05
    assert errors[2] < 0.1 * errors[1]
