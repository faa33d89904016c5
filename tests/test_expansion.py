"""Expansions of the gain around a policy: against differences of exact values, in both kinds of markets."""

import numpy as np
import pytest

import mmgym.baselines.expansion as module
import mmgym.baselines.hawkes_flow.expansion as flow
import mmgym.baselines.hawkes_power.expansion as power
from mmgym.baselines import drawn_cells
from mmgym.baselines.catalogue import environment_of, expansions_of, problem_of
from mmgym.baselines.drawn_cells import sampled
from mmgym.baselines.episodes import simulated_columns
from mmgym.baselines.expansion import Expansion, FrozenExpansions
from mmgym.baselines.frozen import criterion_value
from mmgym.baselines.hawkes_power.baseline import Replay
from mmgym.baselines.policy import Float64Policy

SMALL = {"num_steps": 12, "inventory_limit": 4.0}
FROZEN = [
    ("mmgym/AvellanedaStoikov-v0", {**SMALL, "horizon": 0.06}),
    ("mmgym/AvellanedaStoikov-v0", {**SMALL, "horizon": 0.06, "utility": "cara"}),
    ("mmgym/MeanFieldTaker-v0", {"num_steps": 12, "horizon": 0.024}),
]


class Affine(Float64Policy):
    """Actions that are an affine function of the observation."""

    def __init__(self, actions, seed, size=0.2, width=8):
        self.weights = np.random.default_rng(seed).uniform(-size, size, (actions, width))

    def actions(self, observations):
        seen = np.asarray(observations, dtype=np.float64)
        return seen @ self.weights[:, : seen.shape[1]].T + self.weights[:, -1]


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments"), FROZEN)
def test_slopes_and_curvatures_are_those_of_the_value_where_all_cells_are_drawn(env_id, arguments, monkeypatch):
    """Along a direction that moves one step only, in which the value is what the expansion says, to second order."""
    monkeypatch.setattr(module, "CELLS", 10**9)
    monkeypatch.setattr(drawn_cells, "SLICES", 10**4)  # every step is drawn
    problem = problem_of(env_id, **arguments)
    expansions, policy = FrozenExpansions(problem), Affine(2, 3)
    around = expansions.around(policy, np.random.default_rng(0))
    controls = expansions.controls(policy)
    assert around.value == pytest.approx(criterion_value(problem, controls), rel=1e-12)
    count = problem.num_steps * problem.num_states
    assert around.slopes.shape == (count, 2)
    random = np.random.default_rng(4)
    # the middle of the episode, and for a utility only one state: curvatures across its states are not in the expansion
    cells = np.arange(problem.num_states) + 6 * problem.num_states
    if arguments.get("utility") == "cara":
        cells = cells[problem.num_states // 2 :][:1]
    direction = np.zeros((count, 2))
    direction[cells] = random.uniform(-1.0, 1.0, (len(cells), 2))
    size = 1e-3
    step = size * expansions.reach * direction.reshape(controls.shape)
    up, here, down = (criterion_value(problem, controls + sign * step) for sign in (1.0, 0.0, -1.0))
    slope = float((around.slopes * direction).sum())
    curve = float(np.einsum("bi,bij,bj->", direction, around.curvatures, direction))
    scale = np.abs(around.slopes[cells]).sum()
    assert slope == pytest.approx((up - down) / (2.0 * size), abs=1e-5 * scale)
    assert curve == pytest.approx((up - 2.0 * here + down) / size**2, abs=2e-3 * np.abs(around.curvatures[cells]).sum())


def test_drawn_cells_estimate_the_sum_over_all_without_bias():
    """4,000 draws of 30 of 200 numbers; 5 standard errors: a false alarm in a million."""
    random = np.random.default_rng(1)
    importance, amounts = random.exponential(size=200), random.normal(1.0, 1.0, 200)
    totals = []
    for _ in range(4000):
        drawn, inverse = sampled(importance, 30, random)
        totals.append(float((inverse * amounts[drawn]).sum()))
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - amounts.sum()) < 5.0 * error
    drawn, inverse = sampled(importance, 200, random)
    assert np.array_equal(drawn, np.arange(200))
    assert (inverse == 1.0).all()


@pytest.mark.long
def test_slopes_in_the_hawkes_flow_are_those_of_the_value(monkeypatch):
    """The derivative of the solved value along a direction of policies, and the mean of 24 drawn expansions.

    5 standard errors (Student's, 23 degrees of freedom): a false alarm in 20,000.
    """
    monkeypatch.setattr(flow, "EPISODES", 100)
    expansions = expansions_of(environment_of("mmgym/HawkesFlow-v0", horizon=20.0, inventory_limit=3))
    base, direction = Affine(2, 3), Affine(2, 4)
    random, slopes = np.random.default_rng(0), []
    for _ in range(24):
        expansion: Expansion = expansions.around(base, random)
        slopes.append(float((expansion.slopes * direction.actions(expansion.observations)).sum()))

    def value(size):
        policy = Affine(2, 3)
        policy.weights = base.weights + size * direction.weights
        return expansions.value(policy)

    slope = (value(0.02) - value(-0.02)) / 0.04
    error = np.std(slopes, ddof=1) / np.sqrt(len(slopes))
    assert error < 0.1 * abs(slope)
    assert abs(np.mean(slopes) - slope) < 5.0 * error


UNEQUAL = {
    "base_rate": [1.0, 1.5, 1.2, 2.0, 0.8, 0.5],
    "excitation": [0.5, 1.2, 1.0, 0.8, 1.0, 2.0],
    "decay": [2.0, 3.0, 2.5, 4.0, 2.0, 4.0],
    "mean_move": [5.0, 4.0, 6.0, 7.0, 9.0, 3.0],
    "largest_spread": 40,
    "initial_spread": 20,
    "fill_decay": [6.0, 9.0],
    "observe": "fills",
}


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{"inventory_limit": 3, "num_steps": 12}, {**UNEQUAL, "num_steps": 2}])
def test_slopes_in_the_power_market_are_those_of_simulated_values(arguments, monkeypatch):
    """On common paths, along a direction of policies; where actions are outside the box, nothing moves.

    5 standard errors, a false alarm in a million, and 2 % for the fit of the values.
    """
    monkeypatch.setattr(power, "PER_PATH", 4)
    monkeypatch.setattr(power, "EPISODES", 1_000)
    env = environment_of("mmgym/HawkesPower-v0", horizon=3.0, **arguments)
    expansions, base, direction = expansions_of(env), Affine(2, 3, width=10), Affine(2, 4, width=10)
    base.weights[:, -1] -= 0.8
    direction.weights = np.abs(direction.weights)
    slopes = []
    for seed in range(4):
        gains = expansions.around(base, np.random.default_rng(seed))
        actions = base.actions(gains.observations)
        moved = direction.actions(gains.observations) * (np.abs(actions) < 1.0)
        slopes.append(float((gains.slopes(np.arange(len(actions)), actions.clip(-1.0, 1.0)) * moved).sum()))
    variate, estimates = Replay(env.params, expansions.fitted(base)), []
    for size in (0.02, -0.02):
        policy = Affine(2, 3, width=10)
        policy.weights = base.weights + size * direction.weights
        estimates.append(simulated_columns(env, policy, variate, 4_000, 5)["estimate"])
    differences = (estimates[0] - estimates[1]) / 0.04
    error = np.hypot(np.std(slopes, ddof=1) / 2.0, differences.std() / np.sqrt(len(differences)))
    assert error < 0.05 * abs(differences.mean())
    assert abs(np.mean(slopes) - differences.mean()) < 5.0 * error + 0.02 * abs(differences.mean())


def test_markets_without_derivatives_are_named():
    with pytest.raises(TypeError, match="decision = 'event'"):
        expansions_of(environment_of("mmgym/HawkesPower-v0", decision="order"))
    with pytest.raises(TypeError, match="decision = 'event'"):
        expansions_of(environment_of("mmgym/HawkesFlow-v0", decision="clock"))
