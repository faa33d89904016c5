"""Scores: exact against simulated, bounds, and what a user can pass."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmgym import baselines
from mmgym.baselines import frozen
from mmgym.baselines.baseline import Bounds, FiniteBaseline, baseline_of
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.gaussian import clipped_gaussian_nodes

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {
    "volatility": 1.0,
    "fill_rate": [12.0, 8.0],
    "fill_decay": [1.5, 2.0],
    "drift": 0.3,
    "terminal_penalty": 0.1,
    "running_penalty": 0.2,
    "horizon": 1.0,
    "inventory_limit": 3.0,
    "num_steps": 20,
}
FAMILY_FALSE_ALARM = 1e-3  # of each parametrised statistical test below, all its cases together
SIZES = [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
POLICIES = [
    "optimal", "hjb", "riccati", "glft_asymptotic", "stationary", "avellaneda_stoikov", "zero_skew", "constant",
    "random",
]  # fmt: skip


def policies(env, **arguments):
    return {"optimal": baselines.optimal_policy(env, **arguments), **baselines.paper_policies(env, **arguments)}


def test_the_list_of_policies_is_complete():
    assert set(policies(AS)) == set(POLICIES)


@pytest.mark.long
@pytest.mark.parametrize("episodes", SIZES)
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_kernel_monte_carlo_agrees_with_exact_values(utility, episodes):
    """Raw means and control variates of the kernel, every named policy, every figure that a score has."""
    arguments = {"utility": utility, "num_steps": 50}
    deviations = {}
    for name, policy in policies(AS, **arguments).items():
        deterministic = name != "random"
        exact = baselines.score(AS, policy, deterministic=deterministic, **arguments)
        simulated = baselines.score(
            AS, policy, method="simulated", episodes=episodes, seed=3, deterministic=deterministic, **arguments
        )
        root = np.sqrt(episodes)
        if name != "optimal":
            deviations[name, "control variate"] = (simulated.value - exact.value) / simulated.stderr
        deviations[name, "P&L"] = (simulated.pnl - exact.pnl) / (exact.pnl_std / root)
        spread = simulated.pnl_std / exact.pnl_std - 1.0
        deviations[name, "P&L std"] = spread / np.sqrt(1.0 / (2 * episodes))  # near-Gaussian P&L
        fills_std = frozen.moments(problem_of(AS, **arguments), table(name, policy, arguments), FILLS)[1]
        deviations[name, "fills"] = (simulated.fills - exact.fills) / (fills_std / root)
        if name == "optimal":
            assert simulated.value == pytest.approx(exact.value, rel=1e-7)
            assert simulated.stderr < 1e-7
    limit = stats.norm.isf(FAMILY_FALSE_ALARM / 2 / len(deviations) / 4)  # two utilities, two sizes
    worst = max(deviations, key=lambda key: abs(deviations[key]))
    assert abs(deviations[worst]) < limit, (worst, deviations[worst])


FILLS = frozen.Functional(fills=1.0)


def table(name, policy, arguments):
    problem = problem_of(AS, **arguments)
    return frozen.tabulate_distribution(problem, policy) if name == "random" else frozen.tabulate(problem, policy)


@pytest.mark.parametrize("reward", ["pnl", "expected"])
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_sum_of_rewards_has_the_exact_mean(utility, reward, check_mean):
    arguments = {**SMALL, "utility": utility, "reward": reward, "risk_aversion": 0.2}
    if utility == "cara":
        arguments["running_penalty"] = None
    policy = baselines.paper_policies("mmgym/GLFT-v0", **arguments)["constant"]
    envs = gymnasium.make_vec("mmgym/GLFT-v0", num_envs=20_000, vectorization_mode="vector_entry_point", **arguments)
    observations, _ = envs.reset(seed=11)
    returns = np.zeros(20_000)
    for _ in range(20):
        observations, rewards, *_ = envs.step(policy.predict(observations)[0])
        returns += rewards
    exact = baselines.score("mmgym/GLFT-v0", policy, **arguments)
    expected = exact.value if utility == "mean" else exact.utility
    check_mean(returns, expected, alarms=FAMILY_FALSE_ALARM, checks=4)


def test_history_dependent_policies_are_scored_by_simulation_without_bias():
    """A policy that remembers its last inventory; the advantage sum and plain returns must agree."""

    class Follower:
        markov = False

        def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
            last = observation[:, 1] if state is None else state
            change = observation[:, 1] - last
            actions = np.stack([observation[:, 1] + change, -observation[:, 1] - change], axis=1).astype(np.float32)
            return actions, observation[:, 1].copy()

    score = baselines.score(AS, Follower(), episodes=4000, seed=5)
    assert score.method == "simulated"
    assert score.episodes == 4000
    rows = baselines.rollout(AS, Follower(), episodes=4000, seed=17)
    returns = rows.groupby("episode")["reward"].sum()
    z = (returns.mean() - score.value) / np.hypot(returns.sem(), score.stderr)
    assert abs(z) < stats.norm.isf(FAMILY_FALSE_ALARM / 2)
    assert score.stderr < 0.5 * returns.sem()


@pytest.mark.parametrize("name", ["GLFT", "MultiAssetGLFT", "TickSpread", "MeanFieldTaker", "Impact", "RobustGLFT"])
def test_the_simulated_deviation_has_the_price_noise_whatever_rewards_have(name):
    """The same episodes, with rewards that have it and rewards that leave it out."""

    def deviation(reward):
        env = gymnasium.make(f"mmgym/{name}-v0", num_steps=5, horizon=0.5, reward=reward)
        policy = next(iter(baselines.paper_policies(env).values()))

        class Remembering:
            def predict(self, observation):
                return policy.predict(observation)[0]

        return baselines.score(env, Remembering(), episodes=200).std

    plain = deviation("pnl")
    assert plain > 0.0 and deviation("expected") == pytest.approx(plain, rel=1e-9)


def test_simulation_stops_at_the_standard_error():
    policy = baselines.paper_policies(AS)["constant"]
    score = baselines.score(AS, policy, method="simulated", episodes=500, stderr=0.08)
    assert score.stderr <= 0.08
    assert score.episodes % 500 == 0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.0, 1.0),
    utility=st.sampled_from(["mean", "cara"]),
    steps=st.integers(1, 30),
    limit=st.integers(1, 5),
    rates=st.tuples(st.floats(0.5, 60.0), st.floats(0.5, 60.0)),
    decays=st.tuples(st.floats(0.3, 4.0), st.floats(0.3, 4.0)),
    drift=st.floats(-2.0, 2.0),
)
def test_no_policy_scores_above_the_optimum(seed, spread, utility, steps, limit, rates, decays, drift):
    """Random tables, from wild ones to small perturbations of the optimum, in random markets."""
    arguments = {
        "volatility": 1.5,
        "fill_rate": list(rates),
        "fill_decay": list(decays),
        "drift": drift,
        "horizon": 1.0,
        "num_steps": steps,
        "inventory_limit": float(limit),
        "terminal_penalty": 0.05,
        "utility": utility,
        "risk_aversion": 0.3,
    }
    env = gymnasium.make("mmgym/GLFT-v0", **arguments)
    best, problem = baselines.optimal_policy(env), problem_of(env)
    random = np.random.default_rng(seed)
    wild = problem.controls(random.uniform(-1, 1, best.actions.shape))
    mixed = spread * wild + (1 - spread) * best.solution.controls
    value = frozen.criterion_value(problem, mixed)
    assert value <= best.optimum + 1e-9 * max(1.0, abs(best.optimum))
    if spread == 0.0:
        assert value == pytest.approx(best.optimum, rel=1e-10)


def test_stochastic_evaluation_is_the_average_over_random_tables():
    """How a Gaussian policy acts, against simulation of the same clipped Gaussian actions."""

    class Gaussian:
        markov = True

        def __init__(self):
            self.random = np.random.default_rng(8)

        def mean(self, observations):
            return np.stack([0.6 * observations[:, 1], 0.9 - observations[:, 0]], axis=1)

        def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
            mean = self.mean(observation)
            noise = 0.0 if deterministic else self.random.normal(0.0, 0.4, mean.shape)
            return np.clip(mean + noise, -1, 1).astype(np.float32), state

        def distribution(self, observations):
            mean = self.mean(observations)
            return clipped_gaussian_nodes(mean, np.full_like(mean, 0.4), [-1, -1], [1, 1])

    exact = baselines.score("mmgym/GLFT-v0", Gaussian(), deterministic=False, **SMALL)
    assert exact.method == "exact, as it acts"
    simulated = baselines.score(
        "mmgym/GLFT-v0", Gaussian(), method="simulated", deterministic=False, episodes=20_000, **SMALL
    )
    assert abs(simulated.value - exact.value) < stats.norm.isf(FAMILY_FALSE_ALARM / 2) * simulated.stderr
    assert exact.value < baselines.score("mmgym/GLFT-v0", Gaussian(), **SMALL).value + 1.0


def test_clipped_gaussian_quadrature():
    """Moments of clipped Gaussians against closed forms of the truncated normal."""
    mean, std = np.array([[0.2, -0.95], [3.0, 0.0]]), np.array([[0.3, 0.5], [0.2, 1e-3]])
    points, weights = clipped_gaussian_nodes(mean, std, [-1, -1], [1, 1])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-13)
    for row in range(2):
        for side in range(2):
            m, s = mean[row, side], std[row, side]
            a, b = (-1 - m) / s, (1 - m) / s
            inside = m * (stats.norm.cdf(b) - stats.norm.cdf(a)) - s * (stats.norm.pdf(b) - stats.norm.pdf(a))
            expected = inside - stats.norm.cdf(a) + stats.norm.sf(b)
            assert weights[row] @ points[row, :, side] == pytest.approx(expected, abs=1e-9)


def test_what_can_be_scored():
    env = gymnasium.make(AS)
    wrapped = gymnasium.wrappers.RecordEpisodeStatistics(env)
    envs = gymnasium.make_vec(AS, num_envs=3, vectorization_mode="vector_entry_point")
    constant = baselines.paper_policies(AS)["constant"]
    values = {baselines.score(target, constant).value for target in (env, wrapped, envs, AS)}
    assert len(values) == 1

    def quote(observations):
        return np.zeros((len(observations), 2), dtype=np.float32)

    assert baselines.score(AS, quote).method == "simulated"
    exact = baselines.score(AS, quote, markov=True)
    assert exact.method == "exact"
    assert exact.value == pytest.approx(61.0384347660, abs=1e-6)  # action 0 is 1/k
    assert exact.skill == pytest.approx(0.0, abs=1e-6)
    best = baselines.score(AS, baselines.best_known_policy(AS))
    assert best.skill == pytest.approx(1.0, abs=1e-9)
    assert best.regret == pytest.approx(0.0, abs=1e-9)
    observation, _ = env.reset(seed=0)
    policy = baselines.optimal_policy(env)
    assert policy.value(observation) == pytest.approx(policy.optimum)
    action, state = policy.predict(observation)
    assert env.action_space.contains(action)
    assert state is None
    terminal = np.array([1.0, 0.3], dtype=np.float32)
    assert env.action_space.contains(policy.predict(terminal)[0])


def test_refusals_name_what_is_allowed():
    constant = baselines.paper_policies(AS)["constant"]
    with pytest.raises(ValueError, match="method = 'guess' is not allowed"):
        baselines.score(AS, constant, method="guess")
    with pytest.raises(ValueError, match="pass markov=True"):
        baselines.score(AS, lambda observations: observations, method="exact")
    random = np.random.default_rng(1)

    class Drawing:
        markov = True

        def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
            noise = 0.0 if deterministic else random.normal(size=(len(observation), 2))
            return np.float32(noise) + np.zeros((len(observation), 2), np.float32), state

    with pytest.raises(ValueError, match="draws its actions, but has no distribution"):
        baselines.score(AS, Drawing(), deterministic=False)
    assert baselines.score(AS, Drawing()).method == "exact"
    assert baselines.score(AS, constant, deterministic=False).method == "exact"
    with pytest.raises(TypeError, match="is not a policy"):
        baselines.score(AS, 3)
    with pytest.raises(TypeError, match="is not an mmgym environment"):
        baselines.optimal_policy(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="episodes"):
        baselines.score(AS, constant, episodes=0)


def test_a_score_above_the_optimum_is_refused(monkeypatch):
    """The guard itself: an optimum that is too low must be noticed."""
    honest, (optimum, _, _) = baselines.optimal_policy(AS), baseline_of(AS).bounds()
    monkeypatch.setattr(FiniteBaseline, "bounds", lambda baseline: Bounds(optimum - 0.01, optimum - 0.01, 0.0))
    with pytest.raises(baselines.AboveOptimum, match="bug"):
        baselines.score(AS, honest)


def test_rollout_is_the_single_environment():
    policy = baselines.paper_policies(AS)["avellaneda_stoikov"]
    rows = baselines.rollout(AS, policy, episodes=2, seed=40)
    env = gymnasium.make(AS)
    observation, info = env.reset(seed=41)
    second = rows[rows["episode"] == 1].reset_index(drop=True)
    for n in range(200):
        assert second.loc[n, "mid"] == info["mid"]
        assert second.loc[n, "inventory"] == info["inventory"]
        quotes = env.unwrapped.to_quotes(policy.predict(observation)[0])
        np.testing.assert_array_equal(second.loc[n, ["bid_depth", "ask_depth"]].to_numpy(float), quotes)
        observation, reward, *_, info = env.step(policy.predict(observation)[0])
        assert second.loc[n, "reward"] == reward
        assert second.loc[n, "bid_fills"] == info["bid_fills"]
    assert second["time"].to_numpy() == pytest.approx(np.arange(200) / 200)
