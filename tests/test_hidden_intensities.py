"""The Hawkes markets with hidden intensities: what is seen instead, what is expected, and what can be earned.

Second methods: the matrix exponential of the linear equation of the mean, means of simulated intensities, intensities
as sums over the tape's orders, the law of the unseen sides by enumeration, and the other way to score. Statistical
checks have fixed seeds; were they redrawn, each test function would fail with probability at most 1e-3.
"""

import itertools
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
from mmgym.baselines.episodes import Rewards, simulated_columns
from mmgym.baselines.hawkes_flow import FilteredPolicy, ParticlePolicy
from mmgym.baselines.hawkes_power.backtest import observed
from mmgym.baselines.policy import CallablePolicy, StatelessPolicy
from mmgym.baselines.replay.rules import rules_of
from mmgym.checking import check_market
from mmgym.envs.hawkes_flow import HawkesFlowVectorEnv
from mmgym.envs.hawkes_power import HawkesPowerVectorEnv
from mmgym.models import hawkes_flow, hawkes_power

pytestmark = pytest.mark.usefixtures("solutions_of_its_own")
FLOW, POWER = "mmgym/HawkesFlow-v0", "mmgym/HawkesPower-v0"
HIDDEN, TAPE = {"observe": "fills"}, {"observe": "tape"}
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


class Tilted(StatelessPolicy):
    """A smooth function of the columns that are always there."""

    def act(self, observation):
        seen = np.asarray(observation, dtype=np.float64)
        tilt = 0.3 * seen[..., 1] - 0.2 * seen[..., 0]
        return np.stack([tilt - 0.3, -0.5 - tilt], axis=-1).astype(np.float32)


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
        (first, reward, terminated, _, info), (second, *outcome, same) = whole.step(action), hidden.step(action)
        assert outcome == [reward, terminated, False]
        state = hidden.to_state(second)
        assert state[: width - 1] == pytest.approx(whole.to_state(first)[: width - 1], abs=1e-12)
        shaped = state if env_id == FLOW else (*state[:3], np.stack(state[3:], axis=-1))
        assert np.array_equal(model.observe(hidden.params, *shaped), second)


@pytest.mark.parametrize(("env_id", "seen"), [(FLOW, HIDDEN), (FLOW, TAPE), (POWER, HIDDEN), (POWER, TAPE)])
def test_the_market_conforms(env_id, seen):
    check_market(env_id, horizon=1.5, num_steps=5, **seen)


def test_the_tape_shows_the_last_order_and_nothing_else_changes():
    arguments = {**FLOW_UNEQUAL, "horizon": 8.0, "num_steps": 10, "info": "full"}
    whole, tape = (HawkesFlowVectorEnv(5, **arguments, **seen) for seen in ({}, TAPE))
    (first, _), (second, info) = whole.reset(seed=4), tape.reset(seed=4)
    random, sides = np.random.default_rng(0), set()
    for _ in range(60):  # over several episodes
        assert np.array_equal(first[:, :2], second[:, :2])
        side, elapsed = np.subtract(info["buy_orders"], info["sell_orders"]), info["elapsed"]
        assert np.array_equal(second[:, 2:], np.stack([side, elapsed / 0.8], axis=-1).astype(np.float32))
        assert tape.single_observation_space.contains(second[0])
        state = (info[name] for name in ("time_left", "inventory", "buy_rate", "sell_rate"))
        assert np.array_equal(hawkes_flow.observe(tape.params, *state, side, elapsed), second)
        shown = hawkes_flow.last_order(tape.params, second)
        assert np.array_equal(shown[0], side) and np.allclose(shown[1], elapsed, rtol=1e-6, atol=0.0)
        sides.update(side.tolist())
        action = random.uniform(-1.0, 0.0, (5, 2)).astype(np.float32)
        (first, reward, *_), (second, same, *_, info) = whole.step(action), tape.step(action)
        assert np.array_equal(reward, same)
    assert sides == {-1, 0, 1}


@pytest.mark.parametrize("env_id", [FLOW, POWER])
@pytest.mark.parametrize("value", ["intensities", None, False])
def test_bad_input(env_id, value):
    with pytest.raises(ValueError, match=f"observe = {value!r} is not allowed: it must be one of"):
        gymnasium.make(env_id, observe=value)


def test_the_tape_is_refused_where_a_step_may_have_several_orders():
    for env_id, decision in ((FLOW, "clock"), (POWER, "clock"), (POWER, "order")):
        with pytest.raises(ValueError, match="it needs decision = 'event'"):
            gymnasium.make(env_id, decision=decision, **TAPE)
        with pytest.raises(TypeError, match="observe = 'tape' cannot be replayed"):
            rules_of(environment_of(env_id, **TAPE))
        with pytest.raises(TypeError, match="observe = 'tape' cannot be played by the clock"):
            observed(Tilted(), environment_of(env_id, **TAPE).params)
    with pytest.raises(TypeError, match="observe = 'state' or 'fills'"):
        expansions_of(environment_of(FLOW, **TAPE))


def test_arguments_make_the_same_parameters():
    for model in (hawkes_flow, hawkes_power):
        params = model.Params.create(**HIDDEN)
        assert model.Params.create(**params.arguments()) == params
        assert params.observe == "fills"


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
    solved = hidden.params.expected_rates(times)
    assert solved.shape == (2, 3, count)
    expected = [[mean_by_exponential(0.7, excitation, 3.0, start, time) for start in starts] for time in times.flat]
    np.testing.assert_allclose(solved.reshape(6, count), expected, rtol=1e-12)
    left = 5.0 - times
    seen = np.stack([left / 5.0, *[np.full_like(left, 0.2)] * (SEEN[env_id] - 1)], axis=-1).astype(np.float32)
    rates = np.stack(hidden.to_state(seen)[-count:], axis=-1)
    np.testing.assert_allclose(rates, solved, rtol=1e-5)


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
    values = {baselines.best_known_policy(FLOW, **arguments, **more).optimum for more in ({}, HIDDEN, TAPE)}
    assert len(values) == len(list((tmp_path / "solutions").iterdir())) == 1


@pytest.mark.long
@pytest.mark.parametrize("decision", ["event", "clock"])
def test_the_best_known_policy_is_worth_what_the_bounds_say(decision):
    arguments = {**SMALL, "decision": decision, **HIDDEN}
    best = baselines.best_known_policy(FLOW, **arguments)
    score = baselines.score(FLOW, best, episodes=500, **arguments)
    method = "simulated" if decision == "event" else "numerical"  # the best by the clock has no memory
    assert (score.method, score.level) == (method, "bracketed")
    without_memory = ["clock_optimum", "hjb", "event_optimum", "signal_poisson", "poisson"]
    assert best.name in (["particle_filter"] if decision == "event" else without_memory)
    assert score.optimum_lower <= score.value + 4.0 * score.stderr
    assert score.value < score.optimum_upper
    assert score.regret == (score.optimum_lower - score.value, score.optimum_upper - score.value)
    assert score.skill == pytest.approx(1.0, abs=0.02)


@pytest.mark.long
@pytest.mark.parametrize("seen", [HIDDEN, TAPE])
def test_the_baseline_conforms(seen):
    figures = check_baseline(FLOW, horizon=1.0, num_steps=3, inventory_limit=1, episodes=300, **seen)
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
    score = baselines.score(POWER, best, episodes=200, **arguments, **HIDDEN)
    assert score.level == best.level == "bracketed"
    assert score.optimum_lower <= score.value + 4.0 * score.stderr
    assert score.value < score.optimum_upper
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


# The tape

FLOWS = {
    "unequal": FLOW_UNEQUAL,
    "Poisson": {"excitation": 0.0, "initial_rates": [3.0, 0.7]},
    "slow": {"base_rate": 0.1, "excitation": 0.04, "decay": 0.05, "initial_rates": [0.1, 2.0]},
    "fast": {"base_rate": [4.0, 0.2], "excitation": [60.0, 100.0], "decay": [90.0, 101.0]},
    "explosive": {"excitation": [3.2, 1.0], "initial_rates": [1.0, 2.0], "allow_explosive": True},
}


def summed_rates(params, tape):
    """Intensities (2,) as sums over the orders of a tape: rows of side and length of each step so far."""
    p, now = params, tape[:, 1].sum()
    ages = now - np.cumsum(tape[:, 1])
    rates = []
    for side, base, jump, decay, start in (
        (1, p.base_rate_buy, p.excitation_buy, p.decay_buy, p.initial_rate_buy),
        (-1, p.base_rate_sell, p.excitation_sell, p.decay_sell, p.initial_rate_sell),
    ):
        fading = np.exp(-decay * ages[tape[:, 0] == side]).sum()
        rates.append(base + (start - base) * math.exp(-decay * now) + jump * fading)
    return rates


@pytest.mark.parametrize("name", FLOWS)
def test_the_tape_tells_the_intensities(name):
    """From what is observed alone: by the formula, and by the policy that remembers."""
    envs = HawkesFlowVectorEnv(4, info="full", horizon=6.0, num_steps=9, **FLOWS[name], **TAPE)

    def depths(time_left, inventory, buy_rate, sell_rate):
        return 0.3 + np.stack([buy_rate, sell_rate], axis=-1) / 50.0

    policy, state, ended, tapes = FilteredPolicy(envs.params, depths), None, np.zeros(4, dtype=bool), []
    observations, info = envs.reset(seed=1)
    while not ended.any():
        actions, state = policy.predict(observations, state=state)
        tapes.append(observations[:, 2:] * [1.0, envs.params.step_length])
        truth = np.stack([info["buy_rate"], info["sell_rate"]], axis=-1)
        summed = [summed_rates(envs.params, tape) for tape in np.stack(tapes, axis=1)]
        np.testing.assert_allclose(summed, truth, rtol=1e-5)
        np.testing.assert_allclose(state.rates, truth, rtol=1e-5)
        observations, _, ended, _, info = envs.step(actions)
    assert len(tapes) >= 9


@pytest.mark.long
def test_memory_plays_the_full_market_on_the_tape_as_if_it_saw_the_intensities():
    """Action for action, over whole episodes; the tape shows the event that the counts and the jumps tell of."""
    arguments = {**POWER_UNEQUAL, "horizon": 1.0, "num_steps": 3, "inventory_limit": 2, "info": "full"}
    whole, tape = (HawkesPowerVectorEnv(3, **arguments, **seen) for seen in ({}, TAPE))
    arguments.pop("info")
    sees = baselines.paper_policies(POWER, **arguments)["fitted"]
    remembers = baselines.paper_policies(POWER, **arguments, **TAPE)["reconstructed"]
    (first, _), (second, info) = whole.reset(seed=4), tape.reset(seed=4)
    state, ended, events, names = None, np.zeros(3, dtype=bool), set(), hawkes_power.PROCESSES
    while not ended.any():
        assert np.array_equal(first[:, :3], second[:, :3])
        actions, state = remembers.predict(second, state=state)
        np.testing.assert_allclose(actions, sees.predict(first)[0], atol=1e-4)
        rates = np.stack([info[f"{name}_rate"] for name in names], axis=-1)
        np.testing.assert_allclose(state.rates, rates, rtol=1e-5)
        event, elapsed = hawkes_power.last_event(tape.params, second)
        assert np.array_equal(np.isin(event, [4, 5]), info["buy_orders"] + info["sell_orders"] == 1)
        coordinates = (info[name] for name in ("time_left", "inventory", "spread"))
        assert np.array_equal(hawkes_power.observe(tape.params, *coordinates, rates, event, info["elapsed"]), second)
        np.testing.assert_allclose(elapsed, info["elapsed"], rtol=1e-6)
        events.update(event.tolist())
        (first, reward, *_), (second, same, ended, _, info) = whole.step(actions), tape.step(actions)
        assert np.array_equal(reward, same)
    assert events == set(range(-1, 6))


@pytest.mark.long
def test_memory_reaches_the_optimum_of_the_tape(check_mean):
    """By advantages, without noise, and by plain returns; without memory it is missed."""
    seen, tape = (baselines.optimal_policy(FLOW, **SMALL, **more) for more in ({}, TAPE))
    assert tape.bounds == seen.bounds and tape.level == "certified" and not tape.markov
    env = environment_of(FLOW, **SMALL, **TAPE)
    assert float(tape.value(env.reset(seed=0)[0])) == pytest.approx(tape.optimum, abs=1e-5)
    policies = baselines.paper_policies(FLOW, **SMALL, **TAPE)
    for policy in (tape, policies["reconstructed"]):
        score = baselines.score(FLOW, policy, episodes=100, **SMALL, **TAPE)
        assert score.skill == pytest.approx(1.0, abs=1e-6) and score.method == "simulated"
    returns = simulated_columns(env, tape, Rewards(), 4_000, 5)["estimate"]
    check_mean(returns, tape.optimum, alarms=FALSE_ALARMS, slack=tape.bounds.error)
    forgetful = baselines.score(FLOW, policies["event_optimum"], method="exact", episodes=20, **SMALL, **TAPE)
    blind = baselines.paper_policies(FLOW, **SMALL, **HIDDEN)["event_optimum"]
    assert forgetful.value == baselines.score(FLOW, blind, method="exact", episodes=20, **SMALL, **HIDDEN).value
    assert forgetful.skill < 0.999
    last = CallablePolicy(lambda rows: 0.1 * rows[:, 2:3] * np.float32([1.0, -1.0]) - 0.5, markov=True)
    assert baselines.score(FLOW, last, episodes=100, **SMALL, **TAPE).method == "simulated"


@pytest.mark.parametrize("seen", [HIDDEN, TAPE])
def test_no_named_policy_is_above_the_optimum(seen):
    """Four standard errors, as a score itself is checked, of fourteen or so policies: 5e-4."""
    for name, policy in baselines.paper_policies(FLOW, **SMALL, **seen).items():
        score = baselines.score(FLOW, policy, method="simulated", episodes=100, **SMALL, **seen)
        assert score.value < score.optimum_upper + score.value_error + 4.0 * score.stderr + 1e-9, name


# Fills


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


def expected_by_enumeration(params, steps):
    """Expected intensities (2,) given waits, whether orders came, fills, and chances that orders pass the quotes.

    Every history of sides has its likelihood: of a buy's filling nothing, and the like, times that of the wait.
    """
    p = params
    decays, jumps = np.array([p.decay_buy, p.decay_sell]), np.array([p.excitation_buy, p.excitation_sell])
    base = np.array([p.base_rate_buy, p.base_rate_sell])
    histories = [(1.0, np.array([p.initial_rate_buy, p.initial_rate_sell]) - base)]
    for wait, ordered, filled, passed in steps:
        longer = []
        for (weight, excess), side in itertools.product(histories, (0, 1) if ordered else (0,)):
            hazard = (base * wait + excess * -np.expm1(-decays * wait) / decays).sum()
            faded, weight = excess * np.exp(-decays * wait), weight * math.exp(-hazard)
            if ordered:
                if filled and (filled < 0) != (side == 0):
                    continue
                weight *= (base + faded)[side] * ((1.0 - passed[side]) if filled else passed[side])
                faded = faded + jumps * (np.arange(2) == side)
            longer.append((weight, faded))
        histories = longer
    weights = np.array([weight for weight, _ in histories])
    return base + weights @ np.array([excess for _, excess in histories]) / weights.sum()


def test_particles_have_the_law_of_the_unseen_sides():
    """10 000 of them against every history of sides, after up to a dozen orders."""
    envs = HawkesFlowVectorEnv(8, info="full", horizon=6.0, num_steps=12, **FLOW_UNEQUAL, **HIDDEN)
    p, particles = envs.params, 10_000

    def depths(time_left, inventory, buy_rate, sell_rate):
        return 0.3 + 0.1 * np.stack([buy_rate, sell_rate], axis=-1)

    policy, state, steps = ParticlePolicy(p, depths, particles), None, [[] for _ in range(8)]
    observations, info = envs.reset(seed=2)
    for _ in range(12):
        actions, state = policy.predict(observations, state=state)
        for row in range(8):
            np.testing.assert_allclose(state.rates[row], expected_by_enumeration(p, steps[row]), atol=2e-3)
        passed = 1.0 - np.exp(-4.0 * (envs.to_quotes(actions)[:, ::-1] - 0.3))
        before = info["inventory"].copy()
        observations, _, ended, _, info = envs.step(actions)
        assert not ended.any() and np.abs(info["inventory"]).max() < 10
        ordered = info["buy_orders"] + info["sell_orders"]
        for row in range(8):
            filled = info["inventory"][row] - before[row]
            steps[row].append((info["elapsed"][row], ordered[row], filled, passed[row]))
    one, _ = policy.predict(observations[3], state=type(state)(*(pick(part, 3) for part in state)))
    assert np.array_equal(one, policy.predict(observations, state=state)[0][3])  # whatever else is in the batch


def pick(part, row):
    return tuple(array[row] for array in part) if isinstance(part, tuple) else part[row]


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
    score = baselines.score(FLOW, policies["filtered"], episodes=2_000, **arguments)
    forgetful = baselines.score(FLOW, policies["event_optimum"], method="exact", episodes=20, **arguments)
    assert score.method == "simulated"
    margin = stats.norm.isf(FALSE_ALARMS / 2) * score.stderr
    assert forgetful.value + forgetful.value_error + margin < score.value < score.optimum_upper - margin


# --- Training on the exact value -------------------------------------------------------------------------------------


class Affine(StatelessPolicy):
    """Actions that are an affine function of the observation."""

    def __init__(self, weights):
        self.weights = weights

    def actions(self, observations):
        return np.asarray(observations, dtype=np.float64) @ self.weights[:, :2].T + self.weights[:, 2]

    def act(self, observation):
        return self.actions(observation).astype(np.float32)


@pytest.mark.long
def test_exact_slopes_are_those_of_the_value():
    """As with observed intensities (tests/test_expansion.py): 5 standard errors of the mean of 12 expansions."""
    expansions = expansions_of(environment_of(FLOW, horizon=4.0, num_steps=8, inventory_limit=2, **HIDDEN))
    assert expansions.observations.shape[1] == 2
    random = np.random.default_rng(1)
    base, direction = Affine(random.uniform(-0.2, 0.2, (2, 3))), Affine(random.uniform(0.1, 0.3, (2, 3)))
    slopes = []
    for _ in range(12):
        expansion = expansions.around(base, random)
        slopes.append(float((expansion.slopes * direction.actions(expansion.observations)).sum()))
    up, down = (expansions.value(Affine(base.weights + size * direction.weights)) for size in (0.02, -0.02))
    error = np.std(slopes, ddof=1) / np.sqrt(len(slopes))
    assert error < 0.1 * abs(up - down) / 0.04
    assert abs(np.mean(slopes) - (up - down) / 0.04) < 5.0 * error


def test_markets_without_derivatives_are_named():
    with pytest.raises(TypeError, match="decision = 'event'"):
        expansions_of(environment_of(POWER, decision="clock", **HIDDEN))
    with pytest.raises(TypeError, match="decision = 'event'"):
        expansions_of(environment_of(FLOW, decision="clock", **HIDDEN))


@pytest.mark.long
def test_by_the_clock_a_function_of_what_is_observed_has_a_numerical_value():
    """That of 20,000 episodes within four standard errors (false alarms: 1e-4) and the error that is stated."""
    env = environment_of(FLOW, decision="clock", **SMALL, **HIDDEN)
    score = baselines.score(env, Tilted())
    played = baselines.score(env, Tilted(), method="simulated", episodes=20_000)
    assert score.method == "numerical" and score.stderr == 0.0
    assert abs(score.value - played.value) < score.value_error + 4.0 * played.stderr


# --- From the command line -------------------------------------------------------------------------------------------

WORDS = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
WORDS += ["--set", "observe=fills"]


def test_the_argument_is_understood_on_the_command_line(capsys):
    assert main(["score", "--env", FLOW, *WORDS, "corollary_3", "--episodes", "100"]) == 0
    assert "optimum between" in capsys.readouterr().out
    assert main(["solve", "--env", FLOW, "--set", "observe=no"]) == 2
    assert "observe = 'no' is not allowed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recurrent_agent_trains(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", "recurrent_ppo", "--env", FLOW, *WORDS, "--timesteps", "40000", "--folder", folder]) == 0
    score = baselines.score(FLOW, load_model(tmp_path / "run" / "model")[0], episodes=200, **SMALL, **HIDDEN)
    assert score.method == "simulated"
    assert score.value < score.optimum_upper


@pytest.mark.long
def test_examples_of_the_power_market_have_the_value_of_their_intensities():
    """Whatever is observed, `solve` tells the values of rows that differ in their intensities as with all seen."""
    small = {"horizon": 0.5, "num_steps": 10, "inventory_limit": 3}
    shown = {}
    for observe in ("state", "tape", "fills"):
        rows = baseline_of(environment_of(POWER, observe=observe, **small)).examples(("bid", "ask"))
        shown[observe] = [row["value"] for row in rows]
    assert shown["tape"] == shown["fills"] == shown["state"]
    assert len(set(shown["state"])) > 0.7 * len(shown["state"])
