"""The exact policy gradient: against finite differences of the evaluation, and flat at the optimum."""

import numpy as np
import pytest

from mmgym import baselines
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.frozen import criterion_value, visits

SMALL = {"num_steps": 12, "inventory_limit": 4.0}
MARKETS = [
    ("mmgym/AvellanedaStoikov-v0", {**SMALL, "horizon": 0.06}),
    ("mmgym/AvellanedaStoikov-v0", {**SMALL, "horizon": 0.06, "utility": "cara"}),
    ("mmgym/GLFT-v0", {"num_steps": 5}),
    ("mmgym/MeanFieldTaker-v0", {"num_steps": 12, "horizon": 0.024}),
    ("mmgym/MeanFieldMaker-v0", {"num_steps": 12, "horizon": 0.024}),
]


def policy_gradient(problem, controls):
    """The criterion of a table (N, S, C) from the initial law, and its derivatives in all controls."""
    value, raw, weights = visits(problem, controls)
    states = np.arange(problem.num_states)
    slopes = [problem.gradient(n, states, controls[n], raw[n + 1][:, None])[1] for n in range(problem.num_steps)]
    return value, np.stack(slopes) * weights[..., None]


@pytest.mark.parametrize(("env_id", "arguments"), MARKETS)
def test_gradient_agrees_with_finite_differences_of_the_evaluation(env_id, arguments):
    problem = problem_of(env_id, **arguments)
    random = np.random.default_rng(5)
    shape = (problem.num_steps, problem.num_states, 2)
    controls = problem.controls(random.uniform(-0.4, 0.6, shape).astype(np.float32))
    value, gradient = policy_gradient(problem, controls)
    assert value == pytest.approx(criterion_value(problem, controls), rel=1e-12)
    scale = np.abs(gradient).sum()
    for _ in range(3):
        direction, size = random.uniform(-1.0, 1.0, shape), 1e-5
        ahead, behind = (criterion_value(problem, controls + sign * size * direction) for sign in (1.0, -1.0))
        slope = (ahead - behind) / (2.0 * size)
        assert (gradient * direction).sum() == pytest.approx(slope, abs=1e-7 * (scale + abs(value)))


def test_gradient_vanishes_at_the_optimum():
    env_id, arguments = MARKETS[0]
    problem, best = problem_of(env_id, **arguments), baselines.optimal_policy(env_id, **arguments)
    value, gradient = policy_gradient(problem, best.solution.controls)
    assert value == pytest.approx(best.optimum, rel=1e-12)
    assert np.abs(gradient).max() < 1e-9
    controls = np.full((problem.num_steps, problem.num_states, 2), 0.3)
    slopes = policy_gradient(problem, controls)[1]
    assert np.abs(slopes).max() > 1e-3


def test_discrete_controls_have_no_gradient():
    problem = problem_of("mmgym/TickSpread-v0", num_steps=2, horizon=2.0, lot=50.0, inventory_limit=100.0)
    with pytest.raises(TypeError, match="not continuous"):
        policy_gradient(problem, np.zeros((2, problem.num_states, 5)))
