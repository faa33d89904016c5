"""What `score` is given: wrappers, trained models, actions that are no answers; and how its table is printed."""

import html

import gymnasium
import numpy as np
import pandas as pd
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector

from mmgym import baselines
from mmgym.baselines.baseline import FiniteBaseline, baseline_of
from mmgym.baselines.wrappers import Wrapped

AS = "mmgym/AvellanedaStoikov-v0"
FLOW = "mmgym/HawkesFlow-v0"
TICK = "mmgym/TickSpread-v0"
SMALL = {"num_steps": 8, "inventory_limit": 3.0}
DOORS = [
    baselines.optimal_policy,
    baselines.best_known_policy,
    baselines.paper_policies,
    lambda env: baselines.score(env, lambda seen: np.zeros((len(seen), 2)), episodes=10),
    lambda env: baselines.risk_measures(env, lambda seen: np.zeros((len(seen), 2)), episodes=1000),
    lambda env: baselines.rollout(env, lambda seen: np.zeros((len(seen), 2))),
    lambda env: baselines.pnl_distribution(env, lambda seen: np.zeros((len(seen), 2))),
]


class Bold(gymnasium.ActionWrapper):
    def action(self, action):
        return action + np.float32(0.5)


class Counting(wrappers.RecordEpisodeStatistics):
    """A subclass may do anything."""


CHANGING = {
    "Bold": Bold,
    "Counting": Counting,
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2.0 * reward),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda seen: -seen, env.observation_space),
    "RescaleAction": lambda env: wrappers.RescaleAction(env, np.float32(0.0), np.float32(1.0)),
    "FlattenObservation": wrappers.FlattenObservation,
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "ClipAction": wrappers.ClipAction,
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 7),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_wrapper_that_changes_something_is_refused_by_name(door):
    for name, wrap in CHANGING.items():
        for env in (
            wrap(gymnasium.make(AS, **SMALL)),
            wrappers.RecordEpisodeStatistics(wrap(gymnasium.make(AS, **SMALL))),
        ):
            with pytest.raises(Wrapped, match=name):
                door(env)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda envs: vector.TransformAction(envs, lambda actions: actions + 0.5, None, None),
        lambda envs: vector.TransformReward(envs, lambda rewards: rewards),
        vector.NormalizeObservation,
        lambda envs: vector.RescaleObservation(envs, np.float32(-1.0), np.float32(1.0)),
    ],
)
def test_a_vector_wrapper_that_changes_something_is_refused(wrap):
    envs = gymnasium.make_vec(AS, num_envs=2, vectorization_mode="vector_entry_point", **SMALL)
    with pytest.raises(Wrapped, match=r"gymnasium\.wrappers\.vector"):
        baselines.optimal_policy(wrap(envs))


def test_transparent_wrappers_change_no_score():
    env = gymnasium.make(AS, render_mode="rgb_array", **SMALL)
    envs = gymnasium.make_vec(AS, num_envs=2, vectorization_mode="vector_entry_point", **SMALL)
    policy = baselines.paper_policies(AS, **SMALL)["constant"]
    given = [
        env,
        env.unwrapped,
        wrappers.Autoreset(wrappers.RecordEpisodeStatistics(env)),
        wrappers.TimeLimit(env, 8),
        wrappers.RenderCollection(env),
        vector.RecordEpisodeStatistics(envs),
        vector.DictInfoToList(envs),
    ]
    assert len({baselines.score(target, policy).value for target in given}) == 1


def test_an_id_goes_through_the_same_door():
    policy = baselines.paper_policies(AS, **SMALL)["constant"]
    with pytest.raises(Wrapped, match="TimeLimit"):
        baselines.score(AS, policy, max_episode_steps=3, **SMALL)
    with pytest.raises(Wrapped, match="TimeLimit"):  # decisions after events: no number of steps is enough
        baselines.best_known_policy(gymnasium.make("mmgym/HawkesPower-v0", max_episode_steps=10**6))


@pytest.mark.long
@pytest.mark.parametrize("env_id", [AS, FLOW])
@pytest.mark.parametrize("method", ["auto", "exact", "simulated"])
def test_actions_that_are_not_finite_are_refused(env_id, method):
    arguments = SMALL if env_id == AS else {"horizon": 4.0, "num_steps": 8, "inventory_limit": 2}
    size = gymnasium.make(env_id, **arguments).action_space.shape[0]

    def late(seen):  # only where the inventory is at a bound, or wherever time has passed
        return np.where(seen[:, :1] > 0.5, np.nan, 0.1) * np.ones((len(seen), size), dtype=np.float32)

    with pytest.raises(ValueError, match="finite"):
        baselines.score(env_id, late, markov=method != "simulated", method=method, episodes=20, **arguments)


@pytest.mark.long
@pytest.mark.parametrize("env_id", [AS, FLOW])
def test_a_function_that_draws_is_no_function_of_the_observation(env_id):
    arguments = SMALL if env_id == AS else {"horizon": 4.0, "num_steps": 8, "inventory_limit": 2}
    size = gymnasium.make(env_id, **arguments).action_space.shape[0]
    random = np.random.default_rng(1)

    def draw(seen):
        return random.uniform(-1.0, 1.0, (len(seen), size))

    for method in ("auto", "exact"):
        with pytest.raises(ValueError, match="differently when it is asked twice"):
            baselines.score(env_id, draw, markov=True, method=method, episodes=20, **arguments)
    assert baselines.score(env_id, draw, episodes=20, **arguments).method == "simulated"


@pytest.mark.parametrize("env_id", [AS, TICK])
@pytest.mark.parametrize("markov", [True, False])
def test_a_function_of_one_observation_is_told_the_shape(env_id, markov):
    arguments = SMALL if env_id == AS else {"num_steps": 3, "lot": 100.0, "inventory_limit": 200.0}
    size = gymnasium.make(env_id, **arguments).action_space.shape[0]

    def alone(seen):
        return np.zeros(size, dtype=np.int64)

    wanted = rf"alone returned actions of shape \({size},\).*it must return \(\d+, {size}\)"
    with pytest.raises(ValueError, match=wanted):
        baselines.score(env_id, alone, markov=markov, episodes=10, **arguments)


def test_no_figure_of_a_score_is_infinite(monkeypatch):
    policy = baselines.paper_policies(AS, **SMALL)["constant"]
    for name in ("value", "fills", "std"):
        broken = baseline_of(AS, **SMALL).evaluate(policy, True, None)._replace(**{name: np.nan})
        monkeypatch.setattr(FiniteBaseline, "evaluate", lambda *_, broken=broken: broken)
        with pytest.raises(ArithmeticError, match=f"{name} = nan"):
            baselines.score(AS, policy, **SMALL)
        monkeypatch.undo()


def test_the_table_begins_with_skill_and_is_printed_whole():
    found = {name: baselines.score(AS, policy, risk="simulated", **SMALL) for name, policy in
             list(baselines.paper_policies(AS, **SMALL).items())[:2]}  # fmt: skip
    table = baselines.score_table(found)
    assert list(table.columns[:3]) == ["skill", "regret", "value"]
    with pd.option_context("display.width", 40, "display.max_columns", 3):
        for text in (str(table), repr(table.round(2)), str(baselines.risk_table(found))):
            assert "..." not in text
        for column in table.columns:
            assert column in str(table)
            assert html.escape(column) in table._repr_html_()
    assert str(table).splitlines()[0].split()[:2] == ["skill", "regret"]


class Seen(gymnasium.ObservationWrapper):
    def observation(self, observation):
        return -observation


@pytest.mark.long
def test_a_model_behind_normalisation_is_refused_or_honoured():
    """The raw model sees unnormalised observations: `mmgym.agents.policies.as_policy` carries the statistics."""
    stable = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

    from mmgym.agents.policies import as_policy

    def model(venv):
        return stable.PPO("MlpPolicy", venv, n_steps=8, batch_size=8, device="cpu", seed=0)

    def make():
        return gymnasium.make(AS, **SMALL)

    normalised = model(VecNormalize(DummyVecEnv([make]), gamma=1.0))
    normalised.learn(64)
    with pytest.raises(Wrapped, match=r"VecNormalize.*agents\.policies\.as_policy"):
        baselines.score(AS, normalised, **SMALL)
    honoured = baselines.score(AS, as_policy(normalised), **SMALL)
    statistics = normalised.get_vec_normalize_env()
    by_hand = baselines.score(
        AS, lambda seen: normalised.predict(statistics.normalize_obs(seen), deterministic=True)[0], markov=True, **SMALL
    )
    assert honoured.value == pytest.approx(by_hand.value, abs=1e-12)
    rewards_only = model(VecNormalize(DummyVecEnv([make]), norm_obs=False, gamma=1.0))
    assert baselines.score(AS, rewards_only, episodes=10, **SMALL).method == "simulated"
    for venv, name in (
        (VecFrameStack(DummyVecEnv([make]), 2), "VecFrameStack"),
        (DummyVecEnv([lambda: Seen(make())]), "Seen"),
        (DummyVecEnv([lambda: Bold(make())]), "Bold"),
    ):
        for given in (lambda found: baselines.score(AS, found, **SMALL), as_policy):
            with pytest.raises(Wrapped, match=name):
                given(model(venv))
