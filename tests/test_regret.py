"""Regret by step and state adds up to the regret that evaluation finds."""

import numpy as np
import pytest

from mmgym import baselines
from mmgym.baselines.catalogue import environment_of, optimal_policy, problem_of
from mmgym.baselines.frozen import Table, criterion_value, tabulate_distribution
from mmgym.baselines.regret import regret_by_state, regret_map

MARKETS = [
    ("mmgym/AvellanedaStoikov-v0", {"num_steps": 30}),
    ("mmgym/TickSpread-v0", {"num_steps": 20, "horizon": 20.0, "lot": 50.0, "inventory_limit": 200.0}),
    ("mmgym/MeanFieldMaker-v0", {}),
]


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments"), MARKETS, ids=lambda value: str(value)[:25])
def test_the_cells_sum_to_the_regret(env_id, arguments):
    env = environment_of(env_id, **arguments)
    problem, best = problem_of(env), optimal_policy(env)
    for policy in list(baselines.paper_policies(env).values())[:2]:
        if not hasattr(policy, "controls"):
            continue
        cells = regret_by_state(problem, best.solution, Table(policy.controls))
        assert cells.min() > -1e-9  # nothing is better than the optimum, in any state
        expected = best.optimum - criterion_value(problem, policy.controls)
        assert cells.sum() == pytest.approx(expected, abs=1e-8 * abs(best.optimum))
        regret = regret_map(problem, cells, pieces=7)
        for name, part in regret.cells.items():
            assert part.sum() == pytest.approx(cells.sum())
            assert part.shape == (len(regret.times) - 1, len(np.unique(problem.coordinates[name])))
    assert abs(regret_by_state(problem, best.solution, Table(best.solution.controls)).sum()) < 1e-8 * abs(best.optimum)


def test_one_wrong_quote_is_found_where_it_is():
    env = environment_of("mmgym/AvellanedaStoikov-v0", num_steps=12)
    problem, best = problem_of(env), optimal_policy(env)
    controls = best.solution.controls.copy()
    controls[5, 12, 0] += 0.2
    cells = regret_by_state(problem, best.solution, Table(controls))
    assert np.unravel_index(cells.argmax(), cells.shape) == (5, 12)
    assert cells[5, 12] == pytest.approx(cells.sum(), rel=1e-6)


def test_a_stochastic_policy_is_decomposed_too():
    env = environment_of("mmgym/AvellanedaStoikov-v0", num_steps=8)
    problem, best = problem_of(env), optimal_policy(env)
    table = tabulate_distribution(problem, baselines.paper_policies(env)["random"])
    cells = regret_by_state(problem, best.solution, table)
    assert cells.sum() == pytest.approx(best.optimum - criterion_value(problem, table), rel=1e-9)


def test_cara_is_refused():
    env = environment_of("mmgym/AvellanedaStoikov-v0", num_steps=5, utility="cara")
    best = optimal_policy(env)
    with pytest.raises(ValueError, match="not a sum over steps"):
        regret_by_state(problem_of(env), best.solution, Table(best.solution.controls))
