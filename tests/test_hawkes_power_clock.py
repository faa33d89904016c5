"""The dual bound of the intraday power market's quotes that rest between ticks of the clock.

Expected values are those of the certified optimum of the reduced market, and of episodes that an environment plays.
Statistical checks use fixed seeds; were they redrawn, each would fail with probability at most 1e-4.
"""

import math

import numpy as np
import pytest

from mmgym.baselines import optimal_policy
from mmgym.baselines.episodes import simulated_columns
from mmgym.baselines.hawkes_flow.reach import best_offsets, reach_laws
from mmgym.baselines.hawkes_power import HawkesPowerBaseline, solved
from mmgym.baselines.hawkes_power.baseline import DistancePolicy
from mmgym.baselines.hawkes_power.clock import held_bounds, offset_nodes
from mmgym.models.hawkes_power import Params

MOVING = {
    "base_rate": [1.0, 1.5, 1.2, 2.0, 0.8, 0.5],
    "excitation": [0.5, 1.2, 1.0, 0.8, 1.0, 2.0],
    "decay": [2.0, 3.0, 2.5, 4.0, 2.0, 4.0],
    "improvement": [0.3, 0.6],
    "mean_move": [5.0, 4.0, 6.0, 7.0, 9.0, 3.0],
    "first_level_share": [0.5, 0.3],
    "largest_spread": 40,
    "initial_spread": 20,
    "fill_decay": [6.0, 9.0],
    "running_penalty": 0.02,
    "horizon": 3.0,
    "num_steps": 10,
    "inventory_limit": 2,
    "decision": "clock",
}


@pytest.mark.long
@pytest.mark.parametrize("excitation", [[1.5, 1.0], [0.0, 0.0]])
def test_a_book_that_never_moves_has_the_certified_optimum_below(excitation):
    shared = {"fill_decay": [4.0, 5.0], "running_penalty": 0.02, "inventory_limit": 2, "horizon": 3.0, "num_steps": 12}
    shared["decision"] = "clock"
    pair = {"base_rate": [0.6, 0.9], "excitation": excitation, "decay": [3.0, 2.0], "initial_rates": [2.0, 0.9]}
    optimum = optimal_policy("mmgym/HawkesFlow-v0", **shared, **pair, impact=0.0, half_spread=0.3).optimum
    still = {"base_rate": 1e-6, "excitation": 0.0, "decay": 1.0, "initial_rates": 1e-6}
    arguments = {name: [still[name]] * 4 + list(pair[name]) for name in still}
    p = Params.create(**shared, **arguments, first_level_share=1.0)
    found = held_bounds(p, solved(p, "fitted"), 300, 2)
    upper, lower = found.mean(axis=0)
    errors = 4.0 * found.std(axis=0) / math.sqrt(len(found)) + 2e-4
    assert lower - errors[1] < optimum < upper + errors[0]
    assert upper < 1.15 * optimum  # an inventory of two lots at most: what several fills of a step change is large


@pytest.mark.long
def test_the_policy_of_the_bound_is_what_an_environment_plays():
    """Path by path: with the penalty, the policy's estimates have the mean of its returns, and lie below the bound."""
    p, paths, seed = Params.create(**MOVING), 1_000, 40
    function, nodes = solved(p, "fitted"), offset_nodes(p)
    found = held_bounds(p, function, paths, seed, 20)
    assert (found[:, 0] >= found[:, 1]).all()

    def distances(time_left, inventory, spread, rates):
        flat = [np.ravel(x) for x in (time_left, inventory, spread)]
        edges = function.at(p, *flat, np.reshape(rates, (-1, 6)))[:, :2].reshape(*np.shape(rates)[:-1], 2)
        offsets = best_offsets(edges, *reach_laws(p))
        return np.rint(offsets / nodes[1]) * nodes[1] + p.half_tick * np.asarray(spread)[..., None]

    policy, baseline = DistancePolicy(p, distances), HawkesPowerBaseline(p)
    played = simulated_columns(baseline.environment(), policy, baseline.control_variate(policy), paths, seed)
    difference = found[:, 1] - played["estimate"]
    assert abs(difference.mean()) < 4.0 * difference.std(ddof=1) / math.sqrt(paths) + 1e-4


@pytest.mark.parametrize(
    "other", [{"decision": "event"}, {"decision": "order"}, {"reach_atom": 0.1}, {"num_steps": 1}, {"max_offset": 1e3}]
)
def test_markets_that_the_bound_is_not_made_for(other):
    p = Params.create(**{**MOVING, **other})
    assert offset_nodes(p) is None
    with pytest.raises(ValueError, match="offset_nodes has none"):
        held_bounds(p, solved(Params.create(**MOVING), "fitted"), 1, 0)
