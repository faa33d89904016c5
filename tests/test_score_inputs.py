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
DOORS = [baselines.optimal_policy, baselines.best_known_policy, baselines.paper_policies]


class Bold(gymnasium.ActionWrapper):
    def action(self, action):
        return action + np.float32(0.5)


class Counting(wrappers.RecordEpisodeStatistics):
    """A subclass may do anything."""


class Remembering(gymnasium.ObservationWrapper):
    """Shows the mean of what it has shown so far and the observation."""

    shown = 0.0

    def observation(self, observation):
        self.shown = 0.5 * (self.shown + observation)
        return self.shown.astype(np.float32)


FUNCTIONS = {
    "Bold": Bold,
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda seen: -seen, env.observation_space),
    "RescaleAction": lambda env: wrappers.RescaleAction(env, np.float32(0.0), np.float32(1.0)),
    "FlattenObservation": wrappers.FlattenObservation,
    "ClipAction": wrappers.ClipAction,
}
OTHERS = {
    "Counting": Counting,
    "Remembering": Remembering,
    "NormalizeObservation": wrappers.NormalizeObservation,
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "FrameStackObservation": lambda env: wrappers.FlattenObservation(wrappers.FrameStackObservation(env, 2)),
}
REFUSED = {
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2.0 * reward),
    "NormalizeReward": wrappers.NormalizeReward,
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 7),
}
OTHERS_BY_NAME = {name: wrap for name, wrap in OTHERS.items() if name != "FrameStackObservation"}
CHANGING = {**FUNCTIONS, **OTHERS_BY_NAME, **REFUSED}


@pytest.mark.parametrize("door", DOORS)
def test_a_wrapper_that_changes_something_is_refused_by_name(door):
    for name, wrap in CHANGING.items():
        for env in (
            wrap(gymnasium.make(AS, **SMALL)),
            wrappers.RecordEpisodeStatistics(wrap(gymnasium.make(AS, **SMALL))),
        ):
            with pytest.raises(Wrapped, match=name):
                door(env)


def towards_flat(seen):
    """Depths that are linear in the last entries of an observation, of a batch of them."""
    return np.clip(0.3 + np.stack([0.8 * seen[:, -1], -0.5 * seen[:, -1]], axis=1), -1.0, 1.0).astype(np.float32)


def test_wrappers_that_are_functions_belong_to_the_policy():
    """The exact score is that of the policy with what the wrappers do before and after it."""
    env = gymnasium.make(AS, **SMALL)
    by_hand = {
        "Bold": lambda seen: towards_flat(seen) + np.float32(0.5),
        "TransformObservation": lambda seen: towards_flat(-seen),
        "RescaleAction": lambda seen: 2.0 * towards_flat(seen) - 1.0,
        "FlattenObservation": towards_flat,
        "ClipAction": towards_flat,
    }
    for name, wrap in FUNCTIONS.items():
        score = baselines.score(wrappers.RecordEpisodeStatistics(wrap(env)), towards_flat, markov=True)
        expected = baselines.score(env, by_hand[name], markov=True)
        assert score.method == "exact" and score.value == pytest.approx(expected.value, rel=1e-7), name
    both = Bold(FUNCTIONS["TransformObservation"](env))
    expected = baselines.score(env, lambda seen: towards_flat(-seen) + np.float32(0.5), markov=True)
    assert baselines.score(both, towards_flat, markov=True).value == pytest.approx(expected.value, rel=1e-7)
    assert baselines.score(both, towards_flat, episodes=10).method == "simulated"
    envs = gymnasium.make_vec(AS, num_envs=3, vectorization_mode="vector_entry_point", **SMALL)
    wrapped = vector.TransformAction(envs, lambda actions: actions + np.float32(0.5), None, None)
    expected = baselines.score(env, by_hand["Bold"], markov=True)
    assert baselines.score(wrapped, towards_flat, markov=True).value == pytest.approx(expected.value, rel=1e-7)


def test_behind_other_wrappers_a_policy_is_simulated():
    """Against episodes that are played here, one by one: the same streams, the same rewards."""
    env = gymnasium.make(AS, **SMALL)
    for name, wrap in OTHERS.items():
        with pytest.raises(Wrapped, match="simulated"):
            baselines.score(wrap(env), towards_flat, method="exact", markov=True)
        score = baselines.score(wrap(env), towards_flat, markov=True, episodes=20, seed=3)
        first = int(np.random.SeedSequence([3, 0x5C0]).generate_state(1, np.uint64)[0])
        totals = []
        for episode in range(20):
            wrapped = wrap(gymnasium.make(AS, **SMALL))
            seen, ended, total = wrapped.reset(seed=first + episode)[0], False, 0.0
            while not ended:
                seen, reward, ended, _, _ = wrapped.step(towards_flat(seen[None])[0])
                total += reward
            totals.append(total)
        assert (score.method, score.episodes) == ("simulated", 20)
        assert score.value == pytest.approx(np.mean(totals), rel=1e-6), name
        assert score.stderr == pytest.approx(np.std(totals, ddof=1) / np.sqrt(20), rel=1e-6)
    cara = {**SMALL, "utility": "cara"}
    exact = baselines.score(AS, towards_flat, markov=True, **cara)
    seen_through = baselines.score(Counting(gymnasium.make(AS, **cara)), towards_flat, episodes=2000)
    assert seen_through.method == "simulated" and 0.0 < seen_through.stderr < 0.5
    assert abs(seen_through.value - exact.value) < 3.3 * seen_through.stderr  # false alarm 1e-3
    batch = gymnasium.make_vec(AS, num_envs=10, vectorization_mode="vector_entry_point", **SMALL)
    score = baselines.score(vector.NormalizeObservation(batch), towards_flat, episodes=20, seed=3)
    assert (score.method, score.episodes) == ("simulated", 20)
    assert batch.unwrapped.step.__name__ == "step" and not vars(batch.unwrapped).get("step")  # it is left as it was


@pytest.mark.parametrize("name", REFUSED)
def test_other_criteria_are_refused(name):
    with pytest.raises(Wrapped, match=name):
        baselines.score(REFUSED[name](gymnasium.make(AS, **SMALL)), towards_flat, markov=True)


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


def alone(seen):
    """Takes one observation only."""
    left, inventory = seen
    return [0.5 * inventory + 0.1 * left, -0.5 * inventory]


def whole(seen):
    return np.stack([0.5 * seen[:, 1] + 0.1 * seen[:, 0], -0.5 * seen[:, 1]], axis=1)


def test_a_function_may_take_one_observation():
    for markov in (True, False):
        singly, expected = (baselines.score(AS, act, markov=markov, episodes=10, **SMALL) for act in (alone, whole))
        assert singly.value == pytest.approx(expected.value, rel=1e-12)
    frame = baselines.rollout(AS, alone, episodes=2, **SMALL)
    pd.testing.assert_frame_equal(frame, baselines.rollout(AS, whole, episodes=2, **SMALL))


class Bare:
    """Somebody's object whose `predict` knows nothing of states."""

    def predict(self, seen):
        return whole(seen)


class Half:
    markov = True

    def predict(self, seen, deterministic=False):
        assert deterministic
        return whole(seen), None


class Everything:
    def predict(self, seen, **given):
        assert set(given) == {"state", "episode_start", "deterministic"}
        return whole(seen), given["state"]


class CallsItState:
    """What others call observations is the name of the hidden state here."""

    def predict(self, state, deterministic=False):
        assert deterministic
        return whole(state)


class CallsItStateToo:
    def predict(self, state, **given):
        assert set(given) == {"episode_start", "deterministic"}
        return whole(state)


class ByPlace:
    def predict(self, seen, state=None, /, *, deterministic=False):
        assert deterministic
        return whole(seen), state


class Silent:
    """A function whose signature nothing tells, as that of compiled ones."""

    @property
    def __signature__(self):
        raise ValueError("no signature found")

    def __call__(self, seen):
        return whole(seen)


class Compiled:
    predict = Silent()


def test_an_object_is_given_what_its_predict_takes():
    expected = baselines.score(AS, whole, markov=True, **SMALL).value
    for given in (Bare(), Half(), Everything(), CallsItState(), CallsItStateToo(), ByPlace(), Compiled()):
        assert baselines.score(AS, given, markov=True, **SMALL).value == pytest.approx(expected, rel=1e-12)
    simulated = baselines.score(AS, whole, episodes=10, **SMALL).value
    assert baselines.score(AS, Bare(), episodes=10, **SMALL).value == pytest.approx(simulated, rel=1e-12)
    assert baselines.score(AS, Half(), **SMALL).method == "exact"


@pytest.mark.parametrize("env_id", [AS, TICK])
@pytest.mark.parametrize("markov", [True, False])
def test_a_function_that_answers_neither_is_told_the_shapes(env_id, markov):
    arguments = SMALL if env_id == AS else {"num_steps": 3, "lot": 100.0, "inventory_limit": 200.0}
    size = gymnasium.make(env_id, **arguments).action_space.shape[0]

    def short(seen):
        return np.zeros(size - 1, dtype=np.int64)

    wanted = rf"short returned shape \({size - 1},\) for a batch.*it must return actions of shape \(\d+, {size}\)"
    with pytest.raises(ValueError, match=wanted):
        baselines.score(env_id, short, markov=markov, episodes=10, **arguments)

    def broken(seen):
        return seen.no_such_entry

    with pytest.raises(ValueError, match=r"broken raised AttributeError: .*no_such_entry"):
        baselines.score(env_id, broken, markov=markov, episodes=10, **arguments)


def test_a_score_says_skill_first():
    score = baselines.score(AS, whole, markov=True, **SMALL)
    assert repr(score).startswith(f"Score(skill={score.skill!r}, regret={score.regret!r}, value=")
    assert "utility=" not in repr(score)  # there is none


def test_torch_modules_are_policies():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    score = baselines.score(AS, network, **SMALL)
    first, last = network[0], network[3]
    weights = [each.detach().numpy() for each in (first.weight, first.bias, last.weight, last.bias)]
    by_hand = baselines.score(
        AS, lambda seen: np.tanh(seen @ weights[0].T + weights[1]) @ weights[2].T + weights[3], markov=True, **SMALL
    )
    assert score.method == "exact" and score.value == pytest.approx(by_hand.value, rel=1e-6)
    assert network.training  # it is left as it was
    flat = {"num_steps": 3, "lot": 100.0, "inventory_limit": 200.0, "actions": "flat"}
    size = gymnasium.make(TICK, **flat).action_space.n
    logits = torch.nn.Linear(3, int(size))
    matrix, shift = logits.weight.detach().numpy(), logits.bias.detach().numpy()
    by_hand = baselines.score(TICK, lambda seen: (seen @ matrix.T + shift).argmax(axis=1), markov=True, **flat)
    assert baselines.score(TICK, logits, **flat).value == pytest.approx(by_hand.value, rel=1e-9)
    with pytest.raises(TypeError, match="GRU returned tuple"):
        baselines.score(AS, torch.nn.GRU(2, 2), episodes=10, **SMALL)


def test_no_figure_of_a_score_is_infinite(monkeypatch):
    policy = baselines.paper_policies(AS, **SMALL)["constant"]
    for name in ("value", "fills", "std"):
        broken = baseline_of(AS, **SMALL).evaluate(policy, True, None)._replace(**{name: np.nan})
        monkeypatch.setattr(FiniteBaseline, "evaluate", lambda *_, broken=broken: broken)
        with pytest.raises(ArithmeticError, match=f"{name} = nan"):
            baselines.score(AS, policy, **SMALL)
        monkeypatch.undo()


def test_the_table_begins_with_skill_and_is_printed_whole():
    scores = {name: baselines.score(AS, policy, risk="simulated", **SMALL) for name, policy in
             list(baselines.paper_policies(AS, **SMALL).items())[:2]}  # fmt: skip
    table = baselines.score_table(scores)
    assert list(table.columns[:3]) == ["skill", "regret", "value"]
    with pd.option_context("display.width", 40, "display.max_columns", 3):
        for text in (str(table), repr(table.round(2)), str(baselines.risk_table(scores))):
            assert "..." not in text
        for column in table.columns:
            assert column in str(table)
            assert html.escape(column) in table._repr_html_()
    assert str(table).splitlines()[0].split()[:2] == ["skill", "regret"]


class Seen(gymnasium.ObservationWrapper):
    def observation(self, observation):
        return -observation


@pytest.mark.long
def test_a_model_brings_its_normalisation():
    """The statistics of the `VecNormalize` around a model's environment are a part of its policy."""
    stable = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

    from mmgym.agents.policies import as_policy

    def model(venv):
        return stable.PPO("MlpPolicy", venv, n_steps=8, batch_size=8, device="cpu", seed=0)

    def make():
        return gymnasium.make(AS, **SMALL)

    normalised = model(VecNormalize(DummyVecEnv([make]), gamma=1.0))
    normalised.learn(64)
    honoured = baselines.score(AS, normalised, **SMALL)
    assert honoured.method == "exact"
    assert honoured.value == baselines.score(AS, as_policy(normalised), **SMALL).value
    statistics = normalised.get_vec_normalize_env()
    by_hand = baselines.score(
        AS, lambda seen: normalised.predict(statistics.normalize_obs(seen), deterministic=True)[0], markov=True, **SMALL
    )
    assert honoured.value == pytest.approx(by_hand.value, abs=1e-12)
    rewards_only = model(VecNormalize(DummyVecEnv([make]), norm_obs=False, gamma=1.0))
    assert baselines.score(AS, rewards_only, **SMALL).method == "exact"
    bold = model(DummyVecEnv([lambda: Bold(make())]))
    by_hand = baselines.score(AS, lambda seen: bold.predict(seen, deterministic=True)[0] + 0.5, markov=True, **SMALL)
    assert baselines.score(Bold(make()), bold).value == pytest.approx(by_hand.value, rel=1e-9)
    for venv, name in (
        (VecFrameStack(DummyVecEnv([make]), 2), "VecFrameStack"),
        (DummyVecEnv([lambda: Seen(make())]), "Seen"),
        (DummyVecEnv([lambda: Bold(make())]), "Bold"),
    ):
        for given in (lambda trained: baselines.score(AS, trained, **SMALL), as_policy):
            with pytest.raises(Wrapped, match=name):
                given(model(venv))
