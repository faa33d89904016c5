"""Parameters that differ by row and by episode: streams, states, spaces, errors, every id."""

import json
import math
import pickle

import gymnasium
import numpy as np
import pytest
from scipy import integrate, stats

import mmgym  # noqa: F401
from mmgym.parameters import argument_names, row_of
from mmgym.registration import ENVIRONMENTS
from mmgym.variation import laws_of

AS = "mmgym/AvellanedaStoikov-v0"
LAWS = {"volatility": ["uniform", 1.0, 3.0], "fill_decay": ["loguniform", 1.0, 2.0]}
IDS = [row.id for row in ENVIRONMENTS]


def small(env_id: str) -> dict[str, object]:
    """Arguments that make episodes short."""
    table = argument_names(gymnasium.make(env_id).unwrapped.market.params_type)
    arguments: dict[str, object] = {"num_steps": 60} if "num_steps" in table else {}
    if "population" in table:
        arguments["population"] = "constant"
    return arguments


def real_arguments(env_id: str) -> dict[str, list[float]]:
    """Three real arguments of an id that may differ, each with two values near its own that are allowed."""
    base = gymnasium.make(env_id, **small(env_id)).unwrapped
    known = base.params.arguments() if hasattr(base.params, "arguments") else {}
    values_of = {}
    for name in argument_names(base.market.params_type):
        value = known.get(name, row_of(base.market.params_type, name).default)
        if not isinstance(value, float) or value == 0.0:
            continue
        values = [value, value * 0.9375]
        try:
            gymnasium.make_vec(env_id, num_envs=2, parameters={name: values}, **small(env_id))
        except ValueError as error:
            assert name in str(error) or "together" in str(error), error
        else:
            values_of[name] = values
        if len(values_of) == 3:
            break
    return values_of


@pytest.mark.parametrize("env_id", IDS)
def test_a_row_plays_what_an_environment_with_its_parameters_plays(env_id: str) -> None:
    chosen = real_arguments(env_id)
    assert chosen, "no argument of this id may differ"
    envs = gymnasium.make_vec(env_id, num_envs=2, parameters=chosen, info="full", **small(env_id))
    observations, _ = envs.reset(seed=5)
    singles = [gymnasium.make(env_id, info="full", **envs.unwrapped.arguments_of_row(i)) for i in range(2)]
    starts = [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)]
    assert np.array_equal(observations, np.stack(starts))
    envs.action_space.seed(1)
    for _ in range(6):
        actions = envs.action_space.sample()
        observations, rewards, terminated, _, infos = envs.step(actions)
        for i, env in enumerate(singles):
            observation, reward, ended, _, info = env.step(actions[i])
            assert np.array_equal(observation, observations[i])
            assert reward == rewards[i] and ended == terminated[i]
            for name, value in info.items():
                np.testing.assert_array_equal(infos[name][i], value, err_msg=name)
        if terminated.any():
            break


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("threads", [1, 2])
def test_episodes_of_a_row_do_not_depend_on_the_batch(mode: str, threads: int) -> None:
    arguments = {"randomise": LAWS, "observe_parameters": True, "num_steps": 3}
    envs = gymnasium.make_vec(AS, num_envs=3, autoreset_mode=mode, threads=threads, **arguments)
    env = gymnasium.make(AS, **arguments)
    observations, _ = envs.reset(seed=10)
    observation, info = env.reset(seed=11)
    drawn = []
    for k in range(12):
        assert np.array_equal(observation, observations[1])
        assert envs.unwrapped.parameters["volatility"][1] == info["parameters"]["volatility"]
        drawn.append(info["parameters"]["volatility"])
        actions = np.full((3, 2), 0.1 * (k % 5), np.float32)
        observations, rewards, terminated, _, _ = envs.step(actions)
        observation, reward, ended, _, _ = env.step(actions[1])
        assert rewards[1] == reward and terminated[1] == ended
        if not ended:
            continue
        if mode == "NextStep":
            observations = envs.step(actions)[0]
        elif mode == "Disabled":
            observations, _ = envs.reset(options={"reset_mask": terminated})
        observation, info = env.reset()
    assert len(set(drawn)) == 4  # a value an episode


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (["uniform", 1.0, 3.0], stats.uniform(1.0, 2.0)),
        (["loguniform", 1.0, 3.0], stats.loguniform(1.0, 3.0)),
        (["normal", 2.0, 0.2], stats.truncnorm(-4.0, 4.0, 2.0, 0.2)),
    ],
)
def test_values_have_their_law(law: list[object], expected: object) -> None:
    """Kolmogorov-Smirnov on 4,000 rows; false-alarm rate 3e-4 each, 1e-3 for the family."""
    envs = gymnasium.make_vec(AS, num_envs=4000, randomise={"volatility": law})
    envs.reset(seed=7)
    drawn = envs.unwrapped.parameters["volatility"]
    assert stats.kstest(drawn, expected.cdf).pvalue > 3e-4  # type: ignore[attr-defined]


def test_choices_have_their_probabilities() -> None:
    """Chi-square on 4,000 rows, false-alarm rate 1e-3; a joint law never mixes its rows."""
    rows, weights = [[100.0, 1.0], [140.0, 1.5], [200.0, 2.0]], [0.5, 0.3, 0.2]
    envs = gymnasium.make_vec(AS, num_envs=4000, randomise={"fill_rate, fill_decay": ["choice", rows, weights]})
    envs.reset(seed=3)
    drawn = envs.unwrapped.parameters
    pairs = list(zip(drawn["fill_rate"].tolist(), drawn["fill_decay"].tolist(), strict=True))
    counts = [pairs.count(tuple(row)) for row in rows]
    assert sum(counts) == 4000
    assert stats.chisquare(counts, 4000 * np.array(weights)).pvalue > 1e-3


def test_the_action_box_holds_all_boxes_and_is_the_same_for_all() -> None:
    envs = gymnasium.make_vec(AS, num_envs=4, randomise=LAWS).unwrapped
    envs.reset(seed=0)
    quotes = envs.to_quotes(np.array([[-1.0, -1.0], [1.0, 1.0]], np.float32))
    assert quotes.tolist() == [[-1.0, -1.0], [3.0, 3.0]]  # -1/k and 3/k at k = 1, the widest of 1 ... 2
    rows = gymnasium.make_vec(AS, num_envs=2, parameters={"fill_decay": [[1.0, 2.0], 1.5]}).unwrapped
    quotes = rows.to_quotes(np.array([[-1.0, -1.0], [1.0, 1.0]], np.float32))
    np.testing.assert_allclose(quotes, [[-1.0, -1.0 / 1.5], [3.0, 2.0]], rtol=1e-15)
    given = gymnasium.make(AS, randomise=LAWS, max_depth=1.0).unwrapped
    np.testing.assert_allclose(given.to_quotes(np.ones(2, np.float32)), [1.0, 1.0])


def test_observed_values_are_scaled_to_their_ranges() -> None:
    env = gymnasium.make(AS, randomise=LAWS, observe_parameters=True)
    observation, _ = env.reset(seed=0, options={"parameters": {"volatility": 1.0, "fill_decay": 2.0}})
    assert observation.tolist() == [0.0, 0.0, -1.0, 1.0]
    observation, info = env.reset(options={"parameters": {"fill_decay": math.sqrt(2.0)}})
    assert abs(observation[3]) < 1e-7  # the middle, on the law's logarithmic scale
    assert env.unwrapped.to_state(observation) == (0, 0)
    assert env.observation_space.contains(observation)
    assert info["parameters"]["volatility"] != 1.0
    assert env.unwrapped.params.volatility == info["parameters"]["volatility"]


def test_fixed_values_leave_the_stream_as_it_is() -> None:
    env = gymnasium.make(AS, randomise=LAWS)
    env.reset(seed=4)
    free = env.unwrapped.get_state()["streams"]
    env.reset(seed=4, options={"parameters": {"volatility": 2.0}})
    assert np.array_equal(free, env.unwrapped.get_state()["streams"])
    envs = gymnasium.make_vec(AS, num_envs=2, randomise=LAWS)
    envs.reset(seed=4, options={"parameters": {"volatility": [1.5, 2.5]}})
    assert envs.unwrapped.parameters["volatility"].tolist() == [1.5, 2.5]


def test_states_and_copies_carry_the_parameters() -> None:
    envs = gymnasium.make_vec(AS, num_envs=3, randomise=LAWS, observe_parameters=True)
    envs.reset(seed=1)
    action = np.full((3, 2), 0.3, np.float32)
    envs.step(action)
    kept = envs.unwrapped.get_state()
    copy = pickle.loads(pickle.dumps(envs.unwrapped))
    expected = [envs.step(action) for _ in range(4)]
    for other in (copy, gymnasium.make_vec(AS, num_envs=3, randomise=LAWS, observe_parameters=True).unwrapped):
        if other is not copy:
            other.set_state(kept)
        for observations, rewards, *_ in expected:
            outcome = other.step(action)
            assert np.array_equal(outcome[0], observations) and np.array_equal(outcome[1], rewards)
    single = gymnasium.make(AS, randomise=LAWS, observe_parameters=True).unwrapped
    envs.unwrapped.set_state(kept)
    single.set_state(envs.unwrapped.get_state(rows=[2]))
    assert single.step(action[2])[1] == expected[0][1][2]
    plain = gymnasium.make(AS, **single.arguments_of_row()).unwrapped
    envs.unwrapped.set_state(kept)
    plain.set_state({k: v for k, v in envs.unwrapped.get_state(rows=[2]).items() if "." not in k})
    assert plain.step(action[2])[1] == expected[0][1][2]
    with pytest.raises(ValueError, match="parameters"):
        gymnasium.make(AS).unwrapped.set_state(kept | {"parameters": kept["parameters"][:1]})


def test_a_specification_makes_the_same_environment() -> None:
    env = gymnasium.make(AS, randomise=LAWS, observe_parameters=True)
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gymnasium.make(spec)
    assert np.array_equal(env.reset(seed=3)[0], again.reset(seed=3)[0])
    assert json.dumps(env.unwrapped.arguments)
    batch = env.unwrapped.make_batch(2)
    assert np.array_equal(batch.reset(seed=3)[0][0], again.reset(seed=3)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"randomise": {"volatility": ["uniform", 3.0, 1.0]}}, "low < high"),
        ({"randomise": {"volatility": ["loguniform", 0.0, 1.0]}}, "0 < low"),
        ({"randomise": {"volatility": ["normal", 2.0, 0.0]}}, "standard deviation > 0"),
        ({"randomise": {"volatility": ["triangular", 1.0, 2.0]}}, "uniform"),
        ({"randomise": {"volatility": ["choice", []]}}, "one or more values"),
        ({"randomise": {"volatility": ["choice", [1.0, 2.0], [1.0]]}}, "2 numbers"),
        ({"randomise": {"volatility, drift": ["uniform", 0.0, 1.0]}}, "several names"),
        ({"randomise": {"volatility, drift": ["choice", [[1.0]]]}}, "rows of 2 values"),
        ({"randomise": {"volatility": ["uniform", -1.0, 1.0]}}, "volatility = -1"),
        ({"randomise": {"num_steps": ["choice", [10, 20]]}}, "num_steps"),
        ({"randomise": {"utility": ["choice", ["mean", "cara"]]}}, "utility"),
        ({"randomise": {"max_depth": ["uniform", 1.0, 2.0]}}, "max_depth"),
        ({"randomise": {"inventory_limit": ["choice", [5.0, 10.0]]}}, "inventory_limit cannot differ"),
        ({"randomise": {"initial_inventory": ["uniform", -3.0, 3.0]}}, "initial_inventory"),
        ({"observe_parameters": True}, "observe_parameters"),
    ],
)
def test_laws_that_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gymnasium.make(AS, **arguments)


def test_mistakes_with_rows_are_named() -> None:
    for parameters, words in (
        ({"volatility": [1.0, 2.0]}, "2 entries, but there are 3 rows"),
        ({"volatility": 2.0}, "is one value"),
        ({"volatility": [1.0, 2.0, math.nan]}, "volatility = nan"),
        ({"inventory_limit": [1.0, 2.0, 3.0]}, "inventory_limit cannot differ"),
    ):
        with pytest.raises(ValueError, match=words):
            gymnasium.make_vec(AS, num_envs=3, parameters=parameters)
    for plain in ({"volatility": [1.0, 2.0, 3.0]}, {"fill_decay": np.ones(3)}):
        with pytest.raises(ValueError, match="values by row are given as parameters="):
            gymnasium.make_vec(AS, num_envs=3, **plain)
    for parameters in ([1.0, 2.0, 3.0], {}):
        with pytest.raises(TypeError, match="mapping"):
            gymnasium.make_vec(AS, num_envs=3, parameters=parameters)
    with pytest.raises(TypeError, match="unknown argument 'sigma'"):
        gymnasium.make_vec(AS, num_envs=3, parameters={"sigma": [1.0, 2.0, 3.0]})
    with pytest.raises(TypeError, match="randomise and parameters"):
        gymnasium.make_vec(AS, num_envs=3, parameters={"volatility": [1.0, 2.0, 3.0]}, randomise=LAWS)
    with pytest.raises(TypeError, match="vector environment only"):
        gymnasium.make(AS, parameters={"volatility": [1.0]})
    with pytest.raises(ValueError, match="randomise"):
        gymnasium.make(AS).reset(options={"parameters": {"volatility": 1.0}})
    env = gymnasium.make(AS, randomise=LAWS)
    for values in ({"volatility": 5.0}, {"drift": 0.1}, {"volatility": "high"}):
        with pytest.raises(ValueError, match="parameters"):
            env.reset(options={"parameters": values})


def test_quantiles_of_laws_against_their_integrals() -> None:
    (law,) = laws_of({"x": ["normal", 1.0, 0.5]})
    for q in (0.0, 1e-3, 0.2, 0.5, 0.9, 1.0):
        x = law.at(q)["x"]
        mass, _ = integrate.quad(stats.norm(1.0, 0.5).pdf, -1.0, x)
        assert mass / (stats.norm.cdf(4.0) - stats.norm.cdf(-4.0)) == pytest.approx(q, abs=1e-9)


def test_batches_of_stable_baselines3() -> None:
    sb3 = pytest.importorskip("mmgym.adapters.sb3")
    venv = sb3.make_sb3_env(AS, 3, randomise=LAWS, observe_parameters=True, num_steps=2)
    venv.seed(2)
    observations = venv.reset()
    assert observations.shape == (3, 4)
    drawn = [info["parameters"]["volatility"] for info in venv.reset_infos]
    assert drawn == venv.envs.parameters["volatility"].tolist()
    for _ in range(2):
        observations, _, finished, infos = venv.step(np.zeros((3, 2), np.float32))
    assert finished.all() and infos[0]["terminal_observation"][2] != observations[0, 2]


def test_rows_that_share_parameters_are_moved_alone() -> None:
    """A state brings its parameters along: the other rows keep theirs, and go on as they would have."""
    values = {"volatility": [1.0, 1.0, 3.0]}
    envs, same = (gymnasium.make_vec(AS, num_envs=3, parameters=values).unwrapped for _ in range(2))
    for batch in (envs, same):
        batch.reset(seed=6)
    envs.set_state(envs.get_state(rows=[2]), rows=[0])
    assert envs.parameters["volatility"].tolist() == [3.0, 1.0, 3.0]
    actions = np.zeros((3, 2), np.float32)
    for _ in range(20):
        (observations, rewards, *_), (others, paid, *_) = envs.step(actions), same.step(actions)
        assert np.array_equal(observations[1:], others[1:]) and np.array_equal(rewards[1:], paid[1:])
        assert rewards[0] == rewards[2]
    other = gymnasium.make_vec(AS, num_envs=3, parameters={"volatility": [2.0, 1.0, 3.0]}).unwrapped
    other.reset(seed=6)
    with pytest.raises(ValueError, match="must be those of a row"):
        envs.set_state(other.get_state(rows=[0]), rows=[1])


def test_rows_are_checked_as_they_are_and_not_in_combinations() -> None:
    values = {"excitation": [1.5, 5.0], "decay": [3.0, 6.0]}  # 5 with 3 would explode, which no row does
    envs = gymnasium.make_vec("mmgym/HawkesFlow-v0", num_envs=2, parameters=values).unwrapped
    assert envs.params.excitation_buy.tolist() == [1.5, 5.0]
    with pytest.raises(ValueError, match="excitation"):
        gymnasium.make_vec("mmgym/HawkesFlow-v0", num_envs=2, parameters={"excitation": [1.5, 5.0]})
