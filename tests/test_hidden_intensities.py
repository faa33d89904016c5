"""The Hawkes markets with hidden intensities: what is dropped, what is expected, and what can be earned.

Second methods: the matrix exponential of the linear equation of the mean, means of simulated intensities, the other
way to score, and a filter that remembers. Statistical checks have fixed seeds; were they redrawn, each test function
would fail with probability at most 1e-3.
"""

import math

import gymnasium
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

import mmgym  # noqa: F401  # registers the ids
from mmgym import baselines
from mmgym.agents.cli import main
from mmgym.agents.train import load_model
from mmgym.baselines.catalogue import baseline_of, environment_of, expansions_of, level_of, reference_value
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.hawkes_flow import FilteredPolicy
from mmgym.baselines.policy import CallablePolicy
from mmgym.checking import check_market
from mmgym.envs.hawkes_flow import HawkesFlowVectorEnv
from mmgym.envs.hawkes_power import HawkesPowerVectorEnv
from mmgym.models import hawkes_flow, hawkes_power

FLOW, POWER = "mmgym/HawkesFlow-v0", "mmgym/HawkesPower-v0"
HIDDEN = {"observe_intensities": False}
FALSE_ALARMS = 1e-3
FLOW_UNEQUAL = {
    "base_rate": [0.8, 0.5],
    "excitation": [1.0, 2.0],
    "decay": [2.0, 4.0],
    "initial_rates": [2.5, 0.5],
}
POWER_UNEQUAL = {
    "base_rate": [1.0, 1.5, 1.2, 2.0, 0.8, 0.5],
    "excitation": [0.5, 1.2, 1.0, 0.8, 1.0, 2.0],
    "decay": [2.0, 3.0, 2.5, 4.0, 2.0, 4.0],
    "initial_rates": [1.5, 1.5, 3.0, 2.0, 2.5, 0.5],
}
UNEQUAL = {FLOW: FLOW_UNEQUAL, POWER: POWER_UNEQUAL}
SEEN = {FLOW: 2, POWER: 3}  # columns that are left
SMALL = {"horizon": 2.0, "num_steps": 8, "inventory_limit": 2}


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """Solutions of these tests are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGYM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


class Tilted:
    """A smooth function of the columns that are always there."""

    markov = True

    def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
        seen = np.asarray(observation, dtype=np.float64)
        tilt = 0.3 * seen[..., 1] - 0.2 * seen[..., 0]
        return np.stack([tilt - 0.3, -0.5 - tilt], axis=-1).astype(np.float32), state


# --- What is dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["event", "clock"])
@pytest.mark.parametrize("env_id", [FLOW, POWER])
def test_only_the_columns_of_the_intensities_are_dropped(env_id, decision):
    """Rewards, infos and the other columns are the same, bit for bit."""
    arguments = {**UNEQUAL[env_id], "horizon": 3.0, "num_steps": 12, "decision": decision, "info": "full"}
    whole = gymnasium.make(env_id, **arguments).unwrapped
    hidden = gymnasium.make(env_id, **arguments, **HIDDEN).unwrapped
    width = SEEN[env_id]
    assert hidden.observation_space == gymnasium.spaces.Box(
        whole.observation_space.low[:width], whole.observation_space.high[:width]
    )
    assert whole.observation_space.shape == ({FLOW: 4, POWER: 9}[env_id],)
    (first, info), (second, same) = whole.reset(seed=4), hidden.reset(seed=4)
    terminated, random, model = False, np.random.default_rng(0), {FLOW: hawkes_flow, POWER: hawkes_power}[env_id]
    while True:
        assert np.array_equal(first[:width], second)
        assert second.dtype == np.float32
        assert info == pytest.approx(same, rel=0.0, abs=0.0, nan_ok=True)
        if terminated:
            break
        action = random.uniform(-1.0, 0.0, 2).astype(np.float32)
        (first, reward, terminated, _, info), (second, *found, same) = whole.step(action), hidden.step(action)
        assert found == [reward, terminated, False]
        state = hidden.to_state(second)
        assert state[: width - 1] == pytest.approx(whole.to_state(first)[: width - 1], abs=1e-12)
        shaped = state if env_id == FLOW else (*state[:3], np.stack(state[3:], axis=-1))
        assert np.array_equal(model.observe(hidden.params, *shaped), second)


@pytest.mark.parametrize("env_id", [FLOW, POWER])
def test_the_market_conforms(env_id):
    check_market(env_id, horizon=1.5, num_steps=5, **HIDDEN)


@pytest.mark.parametrize("env_id", [FLOW, POWER])
@pytest.mark.parametrize("value", ["no", None, 2])
def test_bad_input(env_id, value):
    with pytest.raises(ValueError, match=f"observe_intensities = {value!r} is not allowed: it must be one of"):
        gymnasium.make(env_id, observe_intensities=value)


def test_arguments_make_the_same_parameters():
    for model in (hawkes_flow, hawkes_power):
        params = model.Params.create(**HIDDEN)
        assert model.Params.create(**params.arguments()) == params
        assert not params.observe_intensities


# --- What is expected ------------------------------------------------------------------------------------------------


def mean_by_exponential(base_rate, excitation, decay, start, time):
    """``m' = rho mu - (rho - zeta) m`` as a matrix exponential."""
    pull = np.array([[excitation - decay, decay * base_rate], [0.0, 0.0]])
    return (expm(pull * time) @ [start, 1.0])[0]


@pytest.mark.parametrize("excitation", [0.0, 1.5, 3.0, 3.5], ids=["Poisson", "stable", "critical", "explosive"])
@pytest.mark.parametrize("env_id", [FLOW, POWER])
def test_expected_rates_solve_their_equation(env_id, excitation):
    count = {FLOW: 2, POWER: 6}[env_id]
    starts = np.linspace(2.0, 5.0, count).tolist()
    arguments = {"base_rate": 0.7, "excitation": excitation, "decay": 3.0, "initial_rates": starts, "horizon": 5.0}
    hidden = environment_of(env_id, **arguments, allow_explosive=True, num_steps=10, **HIDDEN)
    times = np.array([[0.0, 0.1, 2.0], [4.0, 4.5, 5.0]])
    found = hidden.params.expected_rates(times)
    assert found.shape == (2, 3, count)
    expected = [[mean_by_exponential(0.7, excitation, 3.0, start, time) for start in starts] for time in times.flat]
    np.testing.assert_allclose(found.reshape(6, count), expected, rtol=1e-12)
    left = 5.0 - times
    seen = np.stack([left / 5.0, *[np.full_like(left, 0.2)] * (SEEN[env_id] - 1)], axis=-1).astype(np.float32)
    rates = np.stack(hidden.to_state(seen)[-count:], axis=-1)
    np.testing.assert_allclose(rates, found, rtol=1e-5)


@pytest.mark.parametrize(("env_id", "vector"), [(FLOW, HawkesFlowVectorEnv), (POWER, HawkesPowerVectorEnv)])
def test_expected_rates_are_the_means_of_the_simulated_ones(env_id, vector):
    count, names = 4_000, {FLOW: ("buy", "sell"), POWER: hawkes_power.PROCESSES}[env_id]
    arguments = {**UNEQUAL[env_id], "horizon": 2.0, "num_steps": 3, "decision": "clock", **HIDDEN}
    envs = vector(count, info="full", **arguments)
    envs.reset(seed=3)
    bound = stats.norm.isf(0.5 * FALSE_ALARMS / (2 * 3 * len(names)))
    for _ in range(3):
        observations, *_, info = envs.step(np.zeros((count, 2), np.float32))
        expected = envs.to_state(observations)[-len(names) :]
        for name, mean in zip(names, expected, strict=True):
            rates = info[f"{name}_rate"]
            assert abs(rates.mean() - mean[0]) < bound * rates.std() / math.sqrt(count)


# --- What can be earned ----------------------------------------------------------------------------------------------


def test_levels_and_bounds():
    seen, hidden = baselines.optimal_policy(FLOW, **SMALL), baselines.best_known_policy(FLOW, **SMALL, **HIDDEN)
    assert (level_of(FLOW, **SMALL), level_of(FLOW, **SMALL, **HIDDEN)) == ("certified", "bracketed")
    assert (seen.level, hidden.level) == ("certified", "bracketed")
    assert hidden.optimum == seen.optimum == hidden.bounds.upper
    assert hidden.bounds.lower < seen.optimum - 0.005
    with pytest.raises(baselines.NoOptimum, match="best_known_policy"):
        baselines.optimal_policy(FLOW, **SMALL, **HIDDEN)
    start, _ = environment_of(FLOW, **SMALL, **HIDDEN).reset(seed=0)
    assert float(hidden.value(start)) == pytest.approx(hidden.optimum, abs=1e-5)


def test_the_solution_does_not_depend_on_what_is_observed(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))
    arguments = {**SMALL, "horizon": 1.3}
    values = {baselines.best_known_policy(FLOW, **arguments, **more).optimum for more in ({}, HIDDEN)}
    assert len(values) == len(list((tmp_path / "solutions").iterdir())) == 1


@pytest.mark.long
@pytest.mark.parametrize("decision", ["event", "clock"])
def test_the_best_known_policy_is_worth_what_the_bounds_say(decision):
    arguments = {**SMALL, "decision": decision, **HIDDEN}
    best = baselines.best_known_policy(FLOW, **arguments)
    found = baselines.score(FLOW, best, episodes=500, **arguments)
    assert (found.method, found.level) == ("simulated", "bracketed")
    assert best.name in (["filtered"] if decision == "event" else ["hjb", "event_optimum", "signal_poisson", "poisson"])
    assert found.optimum_lower <= found.value + 4.0 * found.stderr
    assert found.value < found.optimum_upper
    assert found.regret == (found.optimum_lower - found.value, found.optimum_upper - found.value)
    assert found.skill == pytest.approx(1.0, abs=0.02)


@pytest.mark.long
def test_the_baseline_conforms():
    figures = check_baseline(FLOW, horizon=1.0, num_steps=3, inventory_limit=1, episodes=300, **HIDDEN)
    assert figures["best suboptimal table"] < figures["optimum"]


@pytest.mark.long
def test_what_is_blind_anyway_has_the_same_score():
    constant = CallablePolicy(lambda seen: np.tile(np.float32([-0.4, -0.6]), (len(seen), 1)), markov=True)
    for policy in (constant, Tilted()):
        seen, hidden = (
            baselines.score(FLOW, policy, method="exact", episodes=20, **SMALL, **more) for more in ({}, HIDDEN)
        )
        assert hidden.value == pytest.approx(seen.value, abs=1e-12)
        assert (hidden.reference, hidden.pnl, hidden.fills) == pytest.approx((seen.reference, seen.pnl, seen.fills))
    sampled = [
        baselines.score(FLOW, Tilted(), method="simulated", episodes=50, **SMALL, **more) for more in ({}, HIDDEN)
    ]
    assert sampled[0].value == sampled[1].value


@pytest.mark.long
def test_the_full_market_with_hidden_intensities():
    """One value function and upper bound for both; blind policies have the same scores."""
    arguments = {"horizon": 0.5, "num_steps": 2, "inventory_limit": 1}
    assert reference_value(POWER, **arguments) == reference_value(POWER, **arguments, **HIDDEN)
    blind = [baselines.score(POWER, Tilted(), episodes=100, **arguments, **more) for more in ({}, HIDDEN)]
    assert blind[0].value == blind[1].value
    assert blind[0].optimum_upper == blind[1].optimum_upper
    best = baselines.best_known_policy(POWER, **arguments, **HIDDEN)
    found = baselines.score(POWER, best, episodes=200, **arguments, **HIDDEN)
    assert found.level == best.level == "bracketed"
    assert found.optimum_lower <= found.value + 4.0 * found.stderr
    assert found.value < found.optimum_upper
    for name, policy in baselines.paper_policies(POWER, **arguments, **HIDDEN).items():
        action, _ = policy.predict(np.array([[1.0, 0.5, 0.2], [0.0, -1.0, 0.1]], np.float32))
        assert action.shape == (2, 2), name


def played(envs, policy, seed, steps):
    """Rows (steps, B) of what is remembered of the intensities and of what they are, of episodes that all run."""
    observations, info = envs.reset(seed=seed)
    state, rows = None, []
    for _ in range(steps):
        actions, state = policy.predict(observations, state=state)
        rows.append((state.rates, np.stack([info["buy_rate"], info["sell_rate"]], axis=-1)))
        observations, _, ended, _, info = envs.step(actions)
        assert not ended.any()
    return np.array(rows)


def test_the_filter_knows_what_it_can_know():
    """Quotes at the best prices are always filled, so that each order's side is seen, and so are the intensities."""
    arguments = {**FLOW_UNEQUAL, "horizon": 20.0, "num_steps": 80, "inventory_limit": 100, **HIDDEN}
    envs = HawkesFlowVectorEnv(30, info="full", **arguments)

    def join(time_left, inventory, buy_rate, sell_rate):
        return np.full((*np.shape(time_left), 2), 0.3)

    rows = played(envs, FilteredPolicy(envs.params, join), 1, 60)
    np.testing.assert_allclose(rows[:, 0], rows[:, 1], rtol=1e-4)
    assert rows[-1, 1].std() > 0.3


def test_the_filter_knows_the_sum_where_sides_are_alike():
    """Deep quotes are hardly ever filled: sides are not seen, but each order lifts the sum by the same."""
    envs = HawkesFlowVectorEnv(500, info="full", **HIDDEN)

    def deep(time_left, inventory, buy_rate, sell_rate):
        return np.full((*np.shape(time_left), 2), 1e3)

    guess, truth = played(envs, FilteredPolicy(envs.params, deep), 2, 40)[-1]
    np.testing.assert_allclose(guess.sum(axis=-1), truth.sum(axis=-1), rtol=1e-4)


def test_the_filter_begins_again_with_an_episode():
    env = environment_of(FLOW, **SMALL, **HIDDEN)
    policy = baselines.paper_policies(FLOW, **SMALL, **HIDDEN)["filtered"]
    start, _ = env.reset(seed=0)
    action, state = policy.predict(start)
    assert action.shape == (2,)
    later, *_ = env.step(action)
    _, state = policy.predict(later, state=state)
    again, fresh = policy.predict(start, state=state)
    assert np.array_equal(again, action)
    assert fresh.rates.tolist() == [1.2, 1.2]
    _, marked = policy.predict(later, state=state, episode_start=np.ones(1, dtype=bool))
    assert marked.rates.tolist() == [1.2, 1.2]
    assert "filtered" not in baselines.paper_policies(FLOW, **SMALL)
    with pytest.raises(ValueError, match="decision = 'clock' is not allowed"):
        FilteredPolicy(hawkes_flow.Params.create(decision="clock", **HIDDEN), None)


@pytest.mark.long
def test_memory_is_worth_something():
    """The filter is above the best depths without memory, and below the upper bound."""
    arguments = {"horizon": 6.0, "num_steps": 24, "inventory_limit": 2, **HIDDEN}
    policies = baselines.paper_policies(FLOW, **arguments)
    found = baselines.score(FLOW, policies["filtered"], episodes=2_000, **arguments)
    forgetful = baselines.score(FLOW, policies["event_optimum"], method="exact", episodes=20, **arguments)
    assert found.method == "simulated"
    margin = stats.norm.isf(FALSE_ALARMS / 2) * found.stderr
    assert forgetful.value + forgetful.value_error + margin < found.value < found.optimum_upper - margin


# --- Training on the exact value -------------------------------------------------------------------------------------


class Affine:
    """Actions that are an affine function of the observation."""

    markov = True

    def __init__(self, weights):
        self.weights = weights

    def actions(self, observations):
        return np.asarray(observations, dtype=np.float64) @ self.weights[:, :2].T + self.weights[:, 2]

    def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
        return self.actions(observation).astype(np.float32), state


@pytest.mark.long
def test_exact_slopes_are_those_of_the_value():
    """As with observed intensities (tests/test_expansion.py): 5 standard errors of the mean of 12 expansions."""
    expansions = expansions_of(environment_of(FLOW, horizon=4.0, num_steps=8, inventory_limit=2, **HIDDEN))
    assert expansions.observations.shape[1] == 2
    random = np.random.default_rng(1)
    base, direction = Affine(random.uniform(-0.2, 0.2, (2, 3))), Affine(random.uniform(0.1, 0.3, (2, 3)))
    slopes = []
    for _ in range(12):
        found = expansions.around(base, random)
        slopes.append(float((found.slopes * direction.actions(found.observations)).sum()))
    up, down = (expansions.value(Affine(base.weights + size * direction.weights)) for size in (0.02, -0.02))
    error = np.std(slopes, ddof=1) / np.sqrt(len(slopes))
    assert error < 0.1 * abs(up - down) / 0.04
    assert abs(np.mean(slopes) - (up - down) / 0.04) < 5.0 * error


def test_markets_without_derivatives_are_named():
    with pytest.raises(TypeError, match="no exact derivatives in the market hawkes_power"):
        expansions_of(environment_of(POWER, **HIDDEN))
    with pytest.raises(TypeError, match="decision = 'event'"):
        expansions_of(environment_of(FLOW, decision="clock", **HIDDEN))
    assert baseline_of(FLOW, decision="clock", **HIDDEN).evaluate(Tilted()) is None


# --- From the command line -------------------------------------------------------------------------------------------

WORDS = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
WORDS += ["--set", "observe_intensities=false"]


def test_the_argument_is_understood_on_the_command_line(capsys):
    assert main(["score", "--env", FLOW, *WORDS, "corollary_3", "--episodes", "100"]) == 0
    assert "optimum between" in capsys.readouterr().out
    assert main(["solve", "--env", FLOW, "--set", "observe_intensities=no"]) == 2
    assert "observe_intensities = 'no' is not allowed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recurrent_agent_trains(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", "recurrent_ppo", "--env", FLOW, *WORDS, "--timesteps", "40000", "--folder", folder]) == 0
    found = baselines.score(FLOW, load_model(tmp_path / "run" / "model")[0], episodes=200, **SMALL, **HIDDEN)
    assert found.method == "simulated"
    assert found.value < found.optimum_upper
