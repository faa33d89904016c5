"""General fill curves: against the GLFT market, dense matrix exponentials and searches over quotes."""

import math

import numpy as np
import pytest

from mmgym import baselines
from mmgym.baselines.catalogue import params_of
from mmgym.baselines.glft.closed_forms import glft_asymptotic_depths
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values
from mmgym.models import fill_curves, quoting

ID, GLFT = "mmgym/FillCurves-v0", "mmgym/GLFT-v0"
CURVES = {
    "exponential": lambda y: math.exp(-y),
    "linear": lambda y: max(1.0 - y, 0.0),
    "logistic": lambda y: 2.0 / (1.0 + math.exp(2.0 * y)),
    "power": lambda y: (1.0 + y / 2.5) ** -2.5,
}


@pytest.fixture(params=["mean", "cara"])
def utility(request):
    return request.param


def drawn(number, utility):
    """Random arguments that both markets have."""
    random = np.random.default_rng([22, number])
    decay = random.uniform(0.5, 3.0)
    return {
        "volatility": random.uniform(0.0, 1.5), "fill_rate": random.uniform(0.5, 20.0), "fill_decay": decay,
        "order_size": 0.5, "inventory_limit": 2.0, "initial_inventory": 0.5 * int(random.integers(-4, 5)),
        "horizon": 2.0, "num_steps": int(random.integers(3, 20)), "terminal_penalty": random.uniform(0.0, 0.5),
        "running_penalty": random.uniform(0.0, 1.0) if utility == "mean" else None, "utility": utility,
        "risk_aversion": random.uniform(0.05, 0.8), "min_depth": -random.uniform(0.0, 1.0) / decay,
        "max_depth": random.uniform(1.5, 4.0) / decay,
    }  # fmt: skip


@pytest.mark.parametrize("number", range(5))
def test_exponential_fills_without_a_fee_are_the_glft_market(number, utility):
    arguments = drawn(number, utility)
    ours = baselines.optimal_policy(ID, fee=0.0, **arguments)
    theirs = baselines.optimal_policy(GLFT, **arguments)
    assert ours.optimum == pytest.approx(theirs.optimum, rel=1e-10)
    assert np.allclose(ours.solution.values, theirs.solution.values, rtol=1e-10, atol=1e-12)
    score = baselines.score(ID, baselines.reference_policy(ID, fee=0.0, **arguments), fee=0.0, **arguments)
    other = baselines.score(GLFT, baselines.reference_policy(GLFT, **arguments), **arguments)
    for name in ("value", "std", "fills", "mean_absolute_inventory"):
        assert getattr(score, name) == pytest.approx(getattr(other, name), rel=1e-10)


def test_the_papers_policies_of_exponential_fills(utility):
    """In a box so wide that the optimum without bounds lies in it."""
    arguments = {"utility": utility, "min_depth": -6.0, "max_depth": 9.0, "num_steps": 50, "risk_aversion": 0.1}
    arguments |= {"horizon": 0.5, "inventory_limit": 5.0, "fill_rate": 8.0, "volatility": 0.7, "fill_decay": 1.2}
    glft, p = params_of(GLFT, **arguments), params_of(ID, fee=0.0, **arguments)
    expected = continuous_depths(glft, continuous_values(glft)[:-1])
    assert np.abs(quoting.continuous_depths(fill_curves.MARKET, p) - expected).max() < 1e-7
    inventory = {"inventory": np.arange(-5, 6)}
    depths = fill_curves.asymptotic(p, inventory, 0)
    assert np.abs(depths - glft_asymptotic_depths(glft)[0]).max() < 1e-6


@pytest.mark.parametrize("kind", CURVES)
def test_optimum(kind, utility, check_optimum):
    q = 2.0 * np.arange(-2, 3)
    arguments = {"num_steps": 2, "horizon": 0.2, "order_size": 2.0, "inventory_limit": 4.0, "fill_rate": 12.0}
    arguments |= {"fill_curve": kind, "fill_power": 2.5, "fee": 0.03, "utility": utility, "risk_aversion": 0.2}
    arguments |= {"volatility": 1.1, "terminal_penalty": 0.05, "fixed_fee": 0.08}

    def moves(depths):
        for i in range(5):
            for depth, step in zip(depths, (1, -1), strict=True):
                if 0 <= i + step < 5:
                    yield i, i + step, 12.0 * CURVES[kind](1.5 * depth), 2.0 * (depth - 0.03) - 0.08

    flow = -0.5 * 0.2 * 1.1**2 * q**2 * (utility == "mean")
    check_optimum(ID, moves, flow, 1.1**2 * q**2, -0.05 * q**2, [0, 2], **arguments)


@pytest.mark.parametrize("kind", CURVES)
def test_the_reference_is_the_best_of_one_fill(kind):
    arguments = {"fill_curve": kind, "fill_power": 2.5, "fee": 0.06, "fixed_fee": 0.02, "order_size": 0.5}
    depth = baselines.reference_policy(ID, num_steps=1, **arguments).controls[0, 0, 0]
    grid = np.linspace(-0.5, 1.9, 24_001)
    earned = [CURVES[kind](1.5 * d) * (d - 0.1) for d in grid]
    assert depth == pytest.approx(grid[np.argmax(earned)], abs=2e-4)


@pytest.mark.parametrize("kind", CURVES)
def test_the_continuous_optimum_is_the_limit_of_many_steps(kind, utility):
    """The regret of its quotes falls as 1 / steps^2, within the box too."""
    regrets = []
    for steps in (20, 40):
        arguments = {"fill_curve": kind, "utility": utility, "horizon": 0.2, "inventory_limit": 4.0, "num_steps": steps}
        arguments |= {"fixed_fee": 0.03}
        regrets.append(baselines.score(ID, baselines.paper_policies(ID, **arguments)["hjb"], **arguments).regret)
    assert 0.0 < regrets[1] < 0.35 * regrets[0] < 1e-2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fill_curve": "power", "fill_power": 1.5, "min_depth": -1.0}, "must be above -1, -fill_power / fill_decay"),
        ({"min_depth": 1.0, "max_depth": 0.5}, "min_depth must be below max_depth"),
        ({"max_depth": 201.0}, "from -200 to 200, 300 / fill_decay"),
        ({"fill_rate": 1e7, "num_steps": 1}, "expected fills of a quote at min_depth"),
        ({"initial_inventory": 11.0}, "initial_inventory must be from -inventory_limit to inventory_limit"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        params_of(ID, **arguments)
