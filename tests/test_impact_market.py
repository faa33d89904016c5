"""Impact of fills: against the GLFT market, a market with a fee, and dense matrix exponentials."""

import numpy as np
import pytest

from mmgym import baselines
from mmgym.baselines.catalogue import params_of
from mmgym.models import impact, quoting

ID = "mmgym/Impact-v0"
FEW = {"num_steps": 6, "horizon": 0.1, "inventory_limit": 4.0, "order_size": 2.0, "initial_inventory": 2.0}


@pytest.fixture(params=["mean", "cara"])
def utility(request):
    return request.param


def test_without_impact_it_is_the_glft_market(utility):
    arguments = FEW | {"utility": utility, "fill_rate": 40.0, "fill_decay": 1.2, "terminal_penalty": 0.1}
    arguments |= {"volatility": 1.5, "risk_aversion": 0.1, "min_depth": -0.5, "max_depth": 2.0}
    glft = baselines.optimal_policy("mmgym/GLFT-v0", **arguments)
    policy = baselines.optimal_policy(ID, impact=0.0, pressure_drift=0.0, **arguments)
    assert policy.optimum == pytest.approx(glft.optimum, rel=1e-10)
    grid = policy.solution.values.reshape(7, 5, 5)
    assert np.allclose(grid, glft.solution.values[:, :, None], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", range(3))
def test_impact_is_a_fee_and_a_terminal_penalty(number, utility):
    """v = xi q^2 / (2 D) + w: the other market has a fee of xi / 2 and alpha + xi / (2 D)."""
    random = np.random.default_rng([23, number])
    shared = FEW | {"utility": utility, "fill_rate": random.uniform(5.0, 60.0), "volatility": random.uniform(0.0, 3.0)}
    xi, alpha = random.uniform(0.05, 0.5), random.uniform(0.0, 0.2)
    other = baselines.optimal_policy("mmgym/FillCurves-v0", fee=xi / 2, terminal_penalty=alpha + xi / 4, **shared)
    policy = baselines.optimal_policy(ID, impact=xi, pressure_limit=0, terminal_penalty=alpha, **shared)
    assert policy.optimum == pytest.approx(other.optimum + xi * 2.0**2 / 4, rel=1e-10)
    assert np.abs(policy.solution.controls - other.solution.controls).max() < 1e-5


def test_optimum_with_a_drift_that_follows(utility, check_optimum):
    xi, beta, kappa, lots = 0.15, 2.0, 7.0, 2.0
    states = [(q, m) for q in (-2, -1, 0, 1, 2) for m in (-1, 0, 1)]
    q, m = lots * np.array([q for q, _ in states]), np.array([m for _, m in states])

    def moves(depths):
        for i, (q, m) in enumerate(states):
            for depth, step in zip(depths, (1, -1), strict=True):
                after = (q + step, int(np.clip(m - step, -1, 1)))
                if after in states:  # the depth from the old mid, the inventory after the fill at the new one
                    pays = lots * depth + lots * (q + step) * -step * xi
                    yield i, states.index(after), 12.0 * np.exp(-1.5 * depth), pays
            if m:
                yield i, states.index((q, 0)), kappa, 0.0

    flow = beta * m * q - 0.5 * 0.2 * 1.1**2 * q**2 * (utility == "mean")
    arguments = {"num_steps": 2, "horizon": 0.2, "order_size": lots, "inventory_limit": 4.0, "fill_rate": 12.0}
    arguments |= {"impact": xi, "pressure_drift": beta, "pressure_decay": kappa, "pressure_limit": 1}
    arguments |= {"utility": utility, "risk_aversion": 0.2, "volatility": 1.1, "terminal_penalty": 0.05}
    check_optimum(ID, moves, flow, 1.1**2 * q**2, -0.05 * q**2, [1, 6, 7], **arguments)


def test_shift_of_the_quotes_in_continuous_time():
    """At flat inventory: by xi / 2 far from the end, and by xi just before it."""
    arguments = {"horizon": 4.0, "num_steps": 4000, "inventory_limit": 6.0, "pressure_limit": 0, "risk_aversion": 0.02}
    depths = [quoting.continuous_depths(impact.MARKET, params_of(ID, impact=xi, **arguments)) for xi in (0.0, 0.05)]
    shift = (depths[1] - depths[0])[:, 6]  # flat
    assert np.abs(shift[-1] - 0.05).max() < 0.003  # a step of 1e-3, 0.05 fills, is left
    assert np.abs(shift[0] - 0.025).max() < 0.003
