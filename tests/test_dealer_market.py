"""A dealer's requests of several sizes: against the GLFT market and dense matrix exponentials."""

import numpy as np
import pytest

from mmgym import baselines

ID = "mmgym/Dealer-v0"
ONE_SIZE = {"fill_curve": "exponential", "small_share": 1.0, "medium_share": 0.0, "large_share": 0.0}


@pytest.fixture(params=["mean", "cara"])
def utility(request):
    return request.param


@pytest.mark.long
def test_one_size_is_the_glft_market(utility):
    arguments = {"num_steps": 6, "horizon": 0.1, "inventory_limit": 8.0, "order_size": 2.0, "initial_inventory": 2.0}
    arguments |= {"utility": utility, "fill_rate": 40.0, "fill_decay": 1.2, "terminal_penalty": 0.1}
    arguments |= {"volatility": 1.5, "risk_aversion": 0.1, "min_depth": -0.5, "max_depth": 2.0}
    glft = baselines.optimal_policy("mmgym/GLFT-v0", **arguments)
    policy = baselines.optimal_policy(ID, **ONE_SIZE, **arguments)
    assert policy.optimum == pytest.approx(glft.optimum, rel=1e-10)
    assert np.allclose(policy.solution.values, glft.solution.values, rtol=1e-10, atol=1e-12)


@pytest.mark.long
def test_optimum(utility, check_optimum):
    shares, sizes, lots = (0.5, 0.3, 0.2), (1, 2, 4), 0.5
    q = lots * np.arange(-4, 5)

    def moves(depths):
        for i in range(9):
            for k, (share, size) in enumerate(zip(shares, sizes, strict=True)):
                for depth, step in ((depths[2 * k], size), (depths[2 * k + 1], -size)):
                    if 0 <= i + step < 9:
                        yield i, i + step, 2.0 * share * 15.0 / (1.0 + np.exp(3.0 * depth)), size * lots * depth - 0.1

    flow = -0.5 * 0.2 * 1.1**2 * q**2 * (utility == "mean")
    arguments = {"num_steps": 2, "horizon": 0.2, "order_size": lots, "inventory_limit": 2.0, "fill_rate": 15.0}
    arguments |= {
        "utility": utility,
        "risk_aversion": 0.2,
        "volatility": 1.1,
        "terminal_penalty": 0.1,
        "fixed_fee": 0.1,
    }
    check_optimum(ID, moves, flow, 1.1**2 * q**2, -0.1 * q**2, [4], fill_curve="logistic", **arguments)


@pytest.mark.long
def test_the_continuous_optimum_is_the_limit_of_many_steps(utility):
    regrets = []
    for steps in (10, 20):
        arguments = {"utility": utility, "horizon": 0.1, "inventory_limit": 6.0, "num_steps": steps}
        regrets.append(baselines.score(ID, baselines.paper_policies(ID, **arguments)["hjb"], **arguments).regret)
    assert 0.0 < regrets[1] < 0.35 * regrets[0] < 1e-2
