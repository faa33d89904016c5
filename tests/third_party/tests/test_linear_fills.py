"""What a market of one's own is tested by: the two conformance suites, and a number known by other means."""

import numpy as np
from mylab import linear_fills

from mmgym.baselines import optimal_policy, score
from mmgym.baselines.checking import check_baseline
from mmgym.checking import check_market

ID = "mylab/LinearFills-v0"


def test_market():
    check_market(ID, num_steps=5, horizon=3.0)


def test_baseline():
    check_baseline(ID, num_steps=5, horizon=3.0, limit=3)


def test_optimum_without_inventory_risk():
    # far from the limit, without penalties, every fill is best at (c + fee) / 2 and earns (c - fee) / 2
    best = optimal_policy(ID, running_penalty=0.0, limit=200, horizon=1.0, num_steps=4)
    assert abs(best.optimum - 2.0 * 2.0 * 0.475 * 0.475) < 1e-9
    assert np.abs(best.solution.controls[0, 200] - 0.525).max() < 1e-6
    assert abs(score(ID, best, running_penalty=0.0, limit=200, horizon=1.0, num_steps=4).regret) < 1e-6


assert linear_fills.MARKET.name == "linear_fills"
