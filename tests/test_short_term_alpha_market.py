"""A short-term alpha: against the GLFT market and dense matrix exponentials."""

import numpy as np
import pytest

from mmgym import baselines
from mmgym.baselines.catalogue import params_of
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values

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
    found = baselines.optimal_policy(ID, alpha=0.0, **arguments)
    assert found.optimum == pytest.approx(glft.optimum, rel=1e-10)
    grid = found.solution.values.reshape(7, 5, 3)
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
