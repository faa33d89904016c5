"""The engine's promises: seeding, autoreset, infos, copies, threads, state, rendering, Gymnasium's and SB3's wrappers.

Batches are compared with single environments and with Gymnasium's own `SyncVectorEnv`.
"""

import copy
import itertools
import tracemalloc

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, RecordVideo
from gymnasium.wrappers import RecordEpisodeStatistics as RecordSingleStatistics
from gymnasium.wrappers.vector import (
    ClipReward,
    DictInfoToList,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
)
from gymnasium.wrappers.vector import RecordVideo as RecordBatchVideo
from matplotlib import pyplot

import mmgym  # noqa: F401
from mmgym.envs.glft import GLFTEnv, GLFTVectorEnv

ID = "mmgym/GLFT-v0"
SHORT = {"num_steps": 4, "horizon": 4.0}
MODES = list(AutoresetMode)


def random_actions(steps, count, seed=9):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, count, 2)).astype(np.float32)


def make_vec(count, mode="vector_entry_point", **options):
    return gymnasium.make_vec(ID, count, vectorization_mode=mode, **options)


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def assert_same_info(first, second):
    assert set(first) == set(second)
    for name in first:
        assert np.array_equal(first[name], second[name], equal_nan=True), name


def assert_same_state(first, second):
    assert list(first) == list(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def play(envs, seed, steps=11):
    """Copies of everything that an episode and a half puts out."""
    outputs = [envs.reset(seed=seed)[0].copy()]
    for actions in random_actions(steps, envs.num_envs):
        outputs += [np.array(array) for array in envs.step(actions)[:4]]
    return outputs


# --- Seeding ---------------------------------------------------------------------------------------------------------


def play_single(seed, actions, **arguments):
    """Observations and rewards of successive episodes of one environment, with the observation of each reset."""
    env = GLFTEnv(**arguments)
    outputs = [env.reset(seed=seed)[0]]
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        outputs += [observation, np.array(reward)]
        if terminated:
            outputs.append(env.reset()[0])
    return outputs


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63, 2**64 - 2])
def test_row_i_plays_as_a_single_environment_seeded_seed_plus_i(seed):
    actions = random_actions(10, 5)
    envs = GLFTVectorEnv(5, autoreset_mode="Disabled", **SHORT)
    outputs = [[row] for row in envs.reset(seed=seed)[0]]
    for chosen in actions:
        observations, rewards, terminated, _, _ = envs.step(chosen)
        for row in range(5):
            outputs[row] += [observations[row], rewards[row]]
        if terminated.any():
            for row, observation in enumerate(envs.reset(options={"reset_mask": terminated.copy()})[0]):
                outputs[row].append(observation)
    for row in range(5):
        assert_same(outputs[row], play_single((seed + row) % 2**64, actions[:, row], **SHORT))


def streams(env, **options):
    env.reset(**options)
    return env.get_state()["streams"]


def test_a_list_of_seeds():
    envs = GLFTVectorEnv(4, **SHORT)
    start = streams(envs, seed=5)
    rows = streams(envs, seed=[7, None, 0, None])
    assert np.array_equal(rows[[0, 2]], [streams(GLFTEnv(), seed=7)[0], streams(GLFTEnv(), seed=0)[0]])
    assert np.array_equal(rows[[1, 3]], start[[1, 3]])  # a reset draws nothing
    fresh = streams(GLFTVectorEnv(4, **SHORT), seed=[7, None, 0, None])
    assert np.array_equal(fresh[[0, 2]], rows[[0, 2]])
    assert len(np.unique(fresh[:, 0])) == 4
    for seeds in ((7, None, 0, None), np.array([7, 8, 9, 10]), [np.int64(7), np.uint64(2**64 - 1), 0, 1]):
        assert np.array_equal(streams(envs, seed=seeds)[0], rows[0])


def test_seed_zero_is_a_seed():
    assert np.array_equal(streams(GLFTEnv(), seed=0), streams(GLFTEnv(), seed=0))
    envs = GLFTVectorEnv(3)
    first = streams(envs, seed=0)
    envs.step(np.zeros((3, 2), dtype=np.float32))
    assert np.array_equal(streams(envs, seed=0), first)
    assert not np.array_equal(streams(envs, seed=1), first)


def test_environments_without_a_seed_differ():
    rows = np.concatenate([streams(GLFTEnv()) for _ in range(5)] + [streams(GLFTVectorEnv(20)) for _ in range(5)])
    assert len(np.unique(rows[:, 0])) == len(rows)
    assert len(np.unique(rows[:, 1])) == len(rows)


def test_a_reset_without_a_seed_goes_on_with_the_stream():
    env = GLFTEnv(**SHORT)
    env.reset(seed=3)
    rewards = []
    for _ in range(3):
        rewards.append([env.step(np.zeros(2, dtype=np.float32))[1] for _ in range(4)])
        env.reset()
    assert len({tuple(paid) for paid in rewards}) == 3


def test_numpys_global_generator_is_left_alone():
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = streams(GLFTEnv())
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert not np.array_equal(streams(GLFTEnv()), first)


@pytest.mark.parametrize(
    ("seed", "reseeded"), [(None, {}), (50, {0: 50, 3: 53}), ([60, None, 70, 80], {0: 60, 3: 80}), ([None] * 4, {})]
)
def test_a_masked_reset_touches_masked_rows_only(seed, reseeded):
    envs = GLFTVectorEnv(4, **SHORT)
    envs.reset(seed=1)
    envs.step(np.zeros((4, 2), dtype=np.float32))
    before = envs.get_state()
    mask = np.array([True, False, False, True])
    observations, _ = envs.reset(seed=seed, options={"reset_mask": mask})
    after = envs.get_state()
    for name in ("streams", "step", "inventory", "mid", "needs_reset"):
        assert np.array_equal(before[name][~mask], after[name][~mask]), name
    assert after["step"].tolist() == [0, 1, 1, 0]
    assert observations[:, 0].tolist() == [0.0, 0.25, 0.25, 0.0]
    expected = before["streams"].copy()
    for row, value in reseeded.items():
        expected[row] = streams(GLFTEnv(), seed=value)[0]
    assert np.array_equal(after["streams"], expected)


# --- Autoreset -------------------------------------------------------------------------------------------------------


class HandWritten:
    """The three autoreset modes as a loop over single environments, from Gymnasium's description of them."""

    def __init__(self, mode, count, **arguments):
        self.mode, self.num_envs = mode, count
        self.envs = [GLFTEnv(**arguments) for _ in range(count)]
        self.ended = [False] * count

    def reset(self, seed):
        return np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(self.envs)])

    def step(self, actions):
        rows, last = [], [None] * self.num_envs
        for i, env in enumerate(self.envs):
            if self.mode is AutoresetMode.NEXT_STEP and self.ended[i]:
                rows.append((env.reset()[0], 0.0, False))
                self.ended[i] = False
                continue
            observation, reward, terminated, _, _ = env.step(actions[i])
            self.ended[i] = terminated
            if terminated and self.mode is AutoresetMode.SAME_STEP:
                last[i], observation = observation, env.reset()[0]
            rows.append((observation, reward, terminated))
        observations, rewards, terminated = (np.array(column) for column in zip(*rows, strict=True))
        return observations, rewards, terminated, last

    def restart(self, rows):
        return [self.envs[row].reset()[0] for row in rows]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_autoreset_against_a_loop_over_single_environments(mode, threads):
    envs, loop = GLFTVectorEnv(3, autoreset_mode=mode, threads=threads, **SHORT), HandWritten(mode, 3, **SHORT)
    assert envs.metadata["autoreset_mode"] is mode
    assert_same([envs.reset(seed=4)[0]], [loop.reset(4)])
    for step, actions in enumerate(random_actions(14, 3)):
        observations, rewards, terminated, truncated, info = envs.step(actions)
        expected = loop.step(actions)
        assert_same([observations, rewards, terminated], expected[:3])
        assert truncated.dtype == bool and not truncated.any()
        if mode is AutoresetMode.SAME_STEP and terminated.any():
            assert set(info) == {"final_obs", "_final_obs", "final_info", "_final_info"}
            assert_same(list(info["final_obs"]), expected[3])
        else:
            assert info == {}
        if mode is AutoresetMode.DISABLED:
            if terminated.any():
                observations, _ = envs.reset(options={"reset_mask": terminated.copy()})
                assert_same(observations, loop.restart(range(3)))
            elif step == 5:  # rows that end at different times from now on
                observations, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
                assert_same([observations[1]], loop.restart([1]))
                break
    envs.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_rows_that_end_at_different_times(mode):
    envs = GLFTVectorEnv(3, autoreset_mode=mode, **SHORT)
    envs.reset(seed=4)
    actions = np.zeros((3, 2), dtype=np.float32)
    envs.step(actions)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    ends = []
    for _ in range(3):
        _, _, terminated, _, info = envs.step(actions)
        ends.append(terminated.tolist())
    assert ends == [[False] * 3, [False] * 3, [True, False, True]]
    if mode is AutoresetMode.SAME_STEP:
        assert info["_final_obs"].tolist() == [True, False, True]
        assert info["final_obs"][1] is None
    if mode is not AutoresetMode.DISABLED:
        _, rewards, terminated, _, _ = envs.step(actions)
        assert terminated.tolist() == [False, True, False]
        assert (rewards[[0, 2]] == 0.0).all() == (mode is AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_outputs_and_infos_against_sync_vector_env(mode):
    """With info="full": the keys, arrays and masks that Gymnasium makes of single environments."""
    native = GLFTVectorEnv(3, autoreset_mode=mode, info="full", **SHORT)
    sync = SyncVectorEnv([lambda: GLFTEnv(info="full", **SHORT)] * 3, autoreset_mode=mode)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    (first, info), (second, sync_info) = native.reset(seed=2), sync.reset(seed=2)
    assert_same([first], [second])
    compare_infos(info, sync_info)
    for actions in random_actions(10, 3):
        *outputs, info = native.step(actions)
        *expected, sync_info = sync.step(actions)
        assert_same(outputs, expected)
        compare_infos(info, sync_info)
        if mode is AutoresetMode.DISABLED and outputs[2].any():
            masks = [{"reset_mask": outputs[2].copy()} for _ in range(2)]
            (first, info), (second, sync_info) = native.reset(options=masks[0]), sync.reset(options=masks[1])
            assert_same([first], [second])
            compare_infos(info, sync_info)


def compare_infos(info, expected):
    """Every entry of Gymnasium's info, where its mask is set; a batch's own info has masks of final entries only."""
    assert {name for name in info if not name.startswith("_")} == {
        name for name in expected if not name.startswith("_")
    }
    for name, values in expected.items():
        if name.startswith("_"):
            assert np.array_equal(info.get(name, np.ones(3, dtype=bool)), values), name
        elif name == "final_info":
            for key, column in values.items():
                if key.startswith("_"):
                    assert np.array_equal(info[name][key], column)
                else:
                    mask = values[f"_{key}"]
                    assert np.array_equal(info[name][key][mask], column[mask], equal_nan=True), key
        elif name == "final_obs":
            assert info[name].dtype == object
            for given, wanted in zip(info[name], values, strict=True):
                assert (given is None) == (wanted is None)
                assert wanted is None or np.array_equal(given, wanted)
        else:
            assert np.array_equal(info[name], values, equal_nan=True), name


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_infos_are_empty_unless_full(mode):
    envs = GLFTVectorEnv(2, autoreset_mode=mode, **SHORT)
    assert envs.reset(seed=0)[1] == {}
    actions = np.zeros((2, 2), dtype=np.float32)
    infos = [envs.step(actions)[4] for _ in range(4)]
    assert infos[:3] == [{}] * 3
    if mode is AutoresetMode.SAME_STEP:
        assert infos[3]["final_info"] == {}
        assert infos[3]["_final_info"].tolist() == [True, True]
    else:
        assert infos[3] == {}


def test_infos_of_a_single_environment():
    usual = {"cash", "mid", "inventory", "bid_fills", "ask_fills"}
    more = {"gain", "price_gain", "inventory_square", "jump_exponent", "bid_depth", "ask_depth"}
    for options, names in (({}, usual), ({"info": "full"}, usual | more)):
        env = GLFTEnv(**options)
        _, info = env.reset(seed=0)
        assert set(info) == names
        _, _, _, _, info = env.step(np.zeros(2, dtype=np.float32))
        assert set(info) == names
        assert all(type(value) in (int, float) for value in info.values())


def test_depths_are_unknown_until_an_action_was_played():
    """At the start of an episode no quotes stand, whatever the autoreset mode."""
    for mode in MODES:
        envs = GLFTVectorEnv(2, info="full", autoreset_mode=mode, num_steps=1)
        _, info = envs.reset(seed=0)
        assert np.isnan(info["bid_depth"]).all()
        _, _, _, _, info = envs.step(np.zeros((2, 2), dtype=np.float32))
        if mode is AutoresetMode.SAME_STEP:
            assert np.isnan(info["bid_depth"]).all()
            info = info["final_info"]
        assert not np.isnan(info["bid_depth"]).any()
        if mode is AutoresetMode.NEXT_STEP:
            _, _, _, _, info = envs.step(np.zeros((2, 2), dtype=np.float32))
            assert np.isnan(info["ask_depth"]).all()


# --- Copies, memory and threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_copy_false_returns_the_same_arrays(threads):
    envs = GLFTVectorEnv(3, copy=False, threads=threads, **SHORT)
    observations, _ = envs.reset(seed=0)
    outputs = envs.step(np.zeros((3, 2), dtype=np.float32))[:4]
    assert outputs[0] is observations
    for actions in random_actions(6, 3):
        assert all(array is kept for array, kept in zip(envs.step(actions)[:4], outputs, strict=True))
    assert envs.reset()[0] is observations
    envs.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_copy_false_and_copy_true_play_the_same(mode):
    fresh, kept = (GLFTVectorEnv(3, copy=flag, autoreset_mode=mode, **SHORT) for flag in (True, False))
    steps = 4 if mode is AutoresetMode.DISABLED else 11
    assert_same(play(fresh, 3, steps), play(kept, 3, steps))


def peak_memory(envs):
    """Most bytes that a step holds beyond what was held before it."""
    actions = np.zeros((envs.num_envs, 2), dtype=np.float32)
    envs.reset(seed=0)
    for _ in range(3):
        envs.step(actions)
    tracemalloc.start()
    try:
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        outputs = envs.step(actions)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del outputs
    return peak - held


def test_a_step_allocates_no_array_beyond_those_that_it_returns():
    count = 100_000
    few_objects = 10_000  # bytes
    returned = count * (2 * 4 + 8 + 1 + 1)
    assert peak_memory(GLFTVectorEnv(count, copy=False)) < few_objects
    assert returned <= peak_memory(GLFTVectorEnv(count)) < returned + few_objects


def test_the_number_of_threads_changes_nothing():
    expected = play(GLFTVectorEnv(101, **SHORT), 8)
    for threads in (2, 3, 7, 101, 1024):
        envs = GLFTVectorEnv(101, threads=threads, **SHORT)
        assert_same(play(envs, 8), expected)
        envs.close()


def test_a_batch_of_one():
    assert_same(play(GLFTVectorEnv(1, **SHORT), 8)[:9], play(GLFTVectorEnv(1, threads=4, **SHORT), 8)[:9])
    single, batch = GLFTEnv(**SHORT), GLFTVectorEnv(**SHORT)
    assert batch.num_envs == 1
    assert np.array_equal(single.reset(seed=5)[0], batch.reset(seed=5)[0][0])


def test_a_million_environments():
    count = 1_000_000
    envs = GLFTVectorEnv(count, copy=False, threads=2, num_steps=2, horizon=2.0)
    envs.reset(seed=3)
    actions = random_actions(2, count)
    kept = [[array[[0, 1, 500_001, -1]].copy() for array in envs.step(chosen)[:3]] for chosen in actions]
    for position, row in enumerate((0, 1, 500_001, count - 1)):
        env = GLFTEnv(num_steps=2, horizon=2.0)
        env.reset(seed=3 + row)
        for chosen, outputs in zip(actions, kept, strict=True):
            observation, reward, terminated, _, _ = env.step(chosen[row])
            assert np.array_equal(outputs[0][position], observation)
            assert (outputs[1][position], outputs[2][position]) == (reward, terminated)
    envs.close()


# --- State and copies of environments --------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_deep_copy_plays_the_same_and_shares_nothing(threads):
    envs = GLFTVectorEnv(5, threads=threads, copy=False, **SHORT)
    play(envs, 3, steps=2)
    twin = copy.deepcopy(envs)
    assert_same_state(envs.get_state(), twin.get_state())
    actions = random_actions(7, 5)
    expected = [[array.copy() for array in envs.step(chosen)[:4]] for chosen in actions]
    for chosen, outputs in zip(actions, expected, strict=True):
        assert_same([array.copy() for array in twin.step(chosen)[:4]], outputs)
    assert_same_state(envs.get_state(), twin.get_state())
    envs.close(), twin.close()


def test_a_state_survives_a_file(tmp_path):
    envs = GLFTVectorEnv(3, **SHORT)
    play(envs, 3, steps=2)
    np.savez(tmp_path / "state.npz", **envs.get_state())
    expected = [array for actions in random_actions(6, 3) for array in envs.step(actions)[:4]]
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        envs.set_state(dict(file))
    assert_same([array for actions in random_actions(6, 3) for array in envs.step(actions)[:4]], expected)


def test_depths_are_not_part_of_a_state():
    """Rows that took a state do not report the quotes that stood in them before."""
    envs = GLFTVectorEnv(3, info="full", **SHORT)
    play(envs, 3, steps=2)
    envs.set_state(envs.get_state(rows=[0]), rows=[1])
    _, info = envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert np.isnan(info["bid_depth"]).tolist() == [True, True, False]


def test_common_random_numbers():
    """All rows take the state of one: they play alike under the same actions, and share fills under others' seeds."""
    env, envs = GLFTEnv(**SHORT), GLFTVectorEnv(4, **SHORT)
    env.reset(seed=5)
    env.step(np.zeros(2, dtype=np.float32))
    envs.reset(seed=0)
    state = env.get_state()
    for row in range(4):
        envs.set_state(state, rows=[row])
    observations, rewards, _, _, _ = envs.step(np.zeros((4, 2), dtype=np.float32))
    assert len(np.unique(rewards)) == 1
    assert len(np.unique(observations, axis=0)) == 1
    assert rewards[0] == env.step(np.zeros(2, dtype=np.float32))[1]


def test_a_batch_with_the_arguments_of_an_environment():
    env = GLFTEnv(volatility=0.7, fill_rate=[1.0, 2.0], **SHORT)
    envs = env.make_batch(3, autoreset_mode="SameStep")
    assert (envs.params, envs.num_envs, envs.autoreset_mode) == (env.params, 3, AutoresetMode.SAME_STEP)
    assert envs.make_batch(2, threads=2).params == env.params


# --- Rendering -------------------------------------------------------------------------------------------------------


def test_text():
    env = GLFTEnv(render_mode="ansi", info="full", **SHORT)
    _, before = env.reset(seed=1)
    assert env.render().startswith("t 0/4  mid 100.0000")
    total = 0.0
    for step in range(4):
        _, reward, _, _, info = env.step(np.zeros(2, dtype=np.float32))
        total += reward
        text = env.render()
        assert isinstance(text, str) and "\n" not in text
        assert text.startswith(f"t {step + 1}/4  mid {info['mid']:.4f}")
        assert f"bid {before['mid'] - info['bid_depth']:.4f}" in text
        assert f"ask {before['mid'] + info['ask_depth']:.4f}" in text
        assert f"fills {info['bid_fills']}+{info['ask_fills']}" in text
        assert f"inventory {info['inventory']:g}  cash {info['cash']:.4f}  return {total:.4f}" in text
        before = info
    env.reset()
    assert env.render().startswith("t 0/4")


def test_picture():
    env = GLFTEnv(render_mode="rgb_array", **SHORT)
    env.reset(seed=1)
    pictures = [env.render()]
    for _ in range(4):
        env.step(np.zeros(2, dtype=np.float32))
        pictures.append(env.render())
    for picture in pictures:
        assert picture.shape == (480, 640, 3)
        assert picture.dtype == np.uint8
    assert np.array_equal(pictures[-1], env.render())
    assert all((first != second).any() for first, second in itertools.pairwise(pictures))
    assert not np.shares_memory(pictures[-1], env.render())


WINDOW = """
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas

FigureManager = FigureManagerBase
"""


def test_a_window(monkeypatch, tmp_path):
    """A backend that draws into memory as if it had a window shows what `rgb_array` would; others are refused."""
    env = GLFTEnv(render_mode="human", **SHORT)
    with pytest.warns(UserWarning, match="shows nothing: matplotlib's backend here is 'agg'"):
        env.reset(seed=1)
    env = GLFTEnv(render_mode="human", **SHORT)
    (tmp_path / "window_of_tests.py").write_text(WINDOW, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = pyplot.get_backend()
    pyplot.switch_backend("module://window_of_tests")
    try:
        other = GLFTEnv(render_mode="rgb_array", **SHORT)
        for each in (env, other):
            each.reset(seed=1)
            each.step(np.zeros(2, dtype=np.float32))
        assert env.render() is None
        (number,) = pyplot.get_fignums()
        canvas = pyplot.figure(number).canvas
        canvas.draw()
        assert np.array_equal(np.asarray(canvas.buffer_rgba())[..., :3], other.render())
        pyplot.close("all")  # as a user may
        env.step(np.zeros(2, dtype=np.float32))
        assert pyplot.get_fignums() == []
        env.close()
    finally:
        pyplot.switch_backend(before)


def test_rendering_does_not_change_the_play():
    expected = play_single(3, random_actions(9, 1)[:, 0], **SHORT)
    env = GLFTEnv(render_mode="ansi", **SHORT)
    outputs = [env.reset(seed=3)[0]]
    for action in random_actions(9, 1)[:, 0]:
        observation, reward, terminated, _, _ = env.step(action)
        env.render()
        outputs += [observation, np.array(reward)]
        if terminated:
            outputs.append(env.reset()[0])
    assert_same(outputs, expected)


def test_rendering_after_a_state_was_set():
    """A picture starts where the state does."""
    env = GLFTEnv(render_mode="ansi", **SHORT)
    env.reset(seed=3)
    for _ in range(2):
        env.step(np.zeros(2, dtype=np.float32))
    other = GLFTEnv(render_mode="ansi", **SHORT)
    other.set_state(env.get_state())
    assert other.render().startswith("t 2/4")
    for rendered in (env, other):
        rendered.step(np.zeros(2, dtype=np.float32))
    assert other.render().split("return")[0] == env.render().split("return")[0]


def test_rendering_without_a_mode_warns():
    env = GLFTEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_a_video(tmp_path):
    env = gymnasium.make(ID, render_mode="rgb_array", num_steps=3, horizon=3.0)
    env = RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda episode: episode == 0, disable_logger=True)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2, dtype=np.float32))
    env.close()
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


# --- Gymnasium and Stable-Baselines3 ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*render_mode='human' shows nothing")  # where there is no window
@pytest.mark.parametrize("arguments", [{}, {"utility": "cara"}, {"info": "full", "render_mode": "rgb_array", **SHORT}])
def test_gymnasiums_checker(arguments):
    """Its warnings are errors here."""
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make(ID, **arguments).unwrapped)


def test_stable_baselines3s_checker():
    from stable_baselines3.common.env_checker import check_env

    for arguments in ({}, {"render_mode": "rgb_array", **SHORT}):
        check_env(gymnasium.make(ID, **arguments), warn=True)


def test_made_by_module_and_id_in_a_fresh_process(run_script):
    output = run_script(
        """
import gymnasium
env = gymnasium.make("mmgym:mmgym/GLFT-v0")
envs = gymnasium.make_vec("mmgym:mmgym/GLFT-v0", num_envs=3)
print(type(env.unwrapped).__name__, type(envs.unwrapped).__name__)
print(env.reset(seed=0)[0].tolist(), envs.reset(seed=0)[0].shape)
""",
        flags=("-W", "error"),
    )
    assert output.splitlines() == ["GLFTEnv GLFTVectorEnv", "[0.0, 0.0] (3, 2)"]


def test_make_vec_takes_the_native_batch_by_default():
    envs = gymnasium.make_vec(ID, num_envs=2)
    assert isinstance(envs.unwrapped, GLFTVectorEnv)
    assert envs.spec.id == ID


def test_make_vec_plays_the_same_in_every_mode():
    expected = play(make_vec(3, **SHORT), seed=6)
    for mode, kind in (("sync", SyncVectorEnv), ("async", AsyncVectorEnv)):
        options = {"vector_kwargs": {"context": "spawn"}} if mode == "async" else {}
        envs = gymnasium.make_vec(f"mmgym:{ID}", 3, vectorization_mode=mode, **options, **SHORT)
        assert isinstance(envs.unwrapped, kind)
        assert_same(play(envs, seed=6), expected)
        envs.close()


def test_wrappers_of_single_environments():
    env = FlattenObservation(RecordSingleStatistics(gymnasium.make(ID, **SHORT)))
    env.reset(seed=0)
    returns = 0.0
    for _ in range(4):
        _, reward, _, _, info = env.step(np.zeros(2, dtype=np.float32))
        returns += reward
    assert info["episode"]["l"] == 4
    assert info["episode"]["r"] == pytest.approx(returns, rel=1e-12)
    assert env.unwrapped.to_quotes(np.zeros(2)).shape == (2,)


def drive(envs, steps=11, seed=3):
    """Outputs and infos; with autoreset disabled, finished rows are reset by mask."""
    outputs, infos = [envs.reset(seed=seed)[0].copy()], []
    for actions in random_actions(steps, envs.num_envs):
        *arrays, info = envs.step(actions)
        outputs += [np.array(array) for array in arrays]
        infos.append(copy.deepcopy(info))  # wrappers change theirs later
        if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and arrays[2].any():
            outputs.append(envs.reset(options={"reset_mask": arrays[2].copy()})[0].copy())
    return outputs, infos


def native_and_sync(mode):
    native = GLFTVectorEnv(3, autoreset_mode=mode, **SHORT)
    return native, SyncVectorEnv([lambda: GLFTEnv(**SHORT)] * 3, autoreset_mode=mode)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_record_episode_statistics(mode):
    (outputs, infos), (expected, sync_infos) = (drive(RecordEpisodeStatistics(envs)) for envs in native_and_sync(mode))
    assert_same(outputs, expected)
    ends = 0
    for info, sync_info in zip(infos, sync_infos, strict=True):
        assert ("episode" in info) == ("episode" in sync_info)
        if "episode" in info:
            ends += 1
            assert np.array_equal(info["_episode"], sync_info["_episode"])
            for name in ("r", "l"):
                assert np.array_equal(info["episode"][name], sync_info["episode"][name])
            assert info["episode"]["l"].tolist() == [4, 4, 4]
    assert ends == 2
    rewards = np.stack([array for array in outputs if array.shape == (3,) and array.dtype == np.float64])
    first = next(info for info in infos if "episode" in info)
    assert np.allclose(first["episode"]["r"], rewards[:4].sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_normalize_reward(mode):
    (outputs, _), (expected, _) = (drive(NormalizeReward(envs, gamma=1.0)) for envs in native_and_sync(mode))
    assert_same(outputs, expected)


def test_normalize_observation():
    """Gymnasium supports it with next-step autoreset only."""
    native, sync = native_and_sync(AutoresetMode.NEXT_STEP)
    (outputs, _), (expected, _) = (drive(NormalizeObservation(envs)) for envs in (native, sync))
    assert_same(outputs, expected)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_other_vector_wrappers(mode):
    (outputs, _), (expected, _) = (drive(ClipReward(envs, -1.0, 1.0)) for envs in native_and_sync(mode))
    assert_same(outputs, expected)
    native = GLFTVectorEnv(3, autoreset_mode=mode, info="full", **SHORT)
    sync = SyncVectorEnv([lambda: GLFTEnv(info="full", **SHORT)] * 3, autoreset_mode=mode)
    (_, infos), (_, sync_infos) = (drive(DictInfoToList(envs)) for envs in (native, sync))
    for rows, sync_rows in zip(infos, sync_infos, strict=True):
        for info, sync_info in zip(rows, sync_rows, strict=True):
            entries, wanted = (
                {k: v for k, v in given.items() if not k.startswith("final")} for given in (info, sync_info)
            )
            assert_same_info(entries, wanted)
            assert ("final_obs" in info) == ("final_obs" in sync_info)


def test_a_batch_renders_its_first_rows():
    """As single environments with the rows' seeds do, over the end of episodes and states that are set."""
    for mode in ("next_step", "same_step"):
        envs = GLFTVectorEnv(6, render_mode="ansi", autoreset_mode=getattr(AutoresetMode, mode.upper()), **SHORT)
        singles = [GLFTEnv(render_mode="ansi", **SHORT) for _ in range(4)]
        envs.reset(seed=3)
        for i, env in enumerate(singles):
            env.reset(seed=3 + i)
        ended = [False] * 4
        for _ in range(7):
            actions = np.random.default_rng(1).uniform(-1, 1, (6, 2)).astype(np.float32)
            envs.step(actions)
            for i, env in enumerate(singles):
                if ended[i]:
                    env.reset()
                    ended[i] = False
                    continue
                ended[i] = env.step(actions[i])[2]
                if ended[i] and mode == "same_step":
                    env.reset()
                    ended[i] = False
            assert envs.render() == (*(env.render() for env in singles), "", "")
    pictures = GLFTVectorEnv(2, render_mode="rgb_array", **SHORT)
    pictures.reset(seed=0)
    assert [each.shape for each in pictures.render()] == [(480, 640, 3)] * 2
    other = GLFTVectorEnv(2, render_mode="ansi", **SHORT)
    other.reset(seed=5)
    envs.set_state(other.get_state(), rows=[0, 1])
    assert envs.render()[0].startswith("t 0/4")


@pytest.mark.long
def test_a_batch_is_recorded_as_video(tmp_path):
    envs = RecordBatchVideo(
        GLFTVectorEnv(6, render_mode="rgb_array", **SHORT), str(tmp_path / "new"), video_aspect_ratio=(2, 3), fps=10
    )
    envs.reset(seed=0)
    for _ in range(5):
        envs.step(np.zeros((6, 2), np.float32))
    *shown, empty, same = envs.env.render()
    assert empty is same and (empty == 255).all() and all((each < 255).any() for each in shown)
    envs.close()
    assert len(list((tmp_path / "new").glob("*.mp4"))) >= 1
