"""Wrong arguments, actions, seeds, options and states are refused with an error that names what is wrong."""

import math
import re

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

import mmgym  # noqa: F401
from mmgym.envs.glft import GLFTEnv, GLFTVectorEnv
from mmgym.registration import ENVIRONMENTS

NUMBERS = {  # name: values out of range
    "volatility": [-1e-9, -1.0, 1.1e9],
    "fill_rate": [0.0, -1.0, 1.1e12],
    "fill_decay": [0.0, -0.3, 1.1e9],
    "drift": [1.1e9, -1.1e9],
    "order_size": [0.0, -1.0, 1.1e9],
    "inventory_limit": [0.0, -30.0, 0.5, 1.5, 30.1, 1.1e6],
    "initial_inventory": [-31.0, 31.0, 0.5],
    "initial_price": [1.1e12, -1.1e12],
    "horizon": [0.0, -1.0, 1.1e9],
    "running_penalty": [-1e-12, -1.0, 1.1e9],
    "terminal_penalty": [-1e-12, -1.0, 1.1e9],
    "risk_aversion": [-1e-12, -1.0, 1.1e6],
    "min_depth": [10.0, 11.0, -1e13, -1e6],
    "max_depth": [-3.4, 1e13, 1e6],
}
PAIRS = ("fill_rate", "fill_decay", "min_depth", "max_depth")
MAY_BE_NONE = ("running_penalty", "min_depth", "max_depth")
CHOICES = {"utility": ("mean", "cara"), "reward": ("pnl", "expected"), "info": (None, "full")}


def refused(env_class, named, **arguments):
    """The argument is refused by the class with an error that names it and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(named)) as refusal:
        env_class(**arguments)
    assert re.search(r"must be|allowed", str(refusal.value))
    assert len(str(refusal.value)) < 600 + max(len(repr(value)) for value in arguments.values())


@pytest.mark.parametrize("env_class", [GLFTEnv, GLFTVectorEnv])
@pytest.mark.parametrize("name", list(NUMBERS))
def test_a_number_out_of_range(name, env_class):
    for value in NUMBERS[name]:
        refused(env_class, "min_depth" if name == "max_depth" and value < 0 else name, **{name: value})


@pytest.mark.parametrize("name", list(NUMBERS))
def test_what_is_not_a_number(name):
    values = [
        math.nan,
        math.inf,
        -math.inf,
        np.float64("nan"),
        True,
        False,
        np.True_,
        "1",
        "",
        {},
        1j,
        10**400,
        object(),
    ]
    values += [] if name in MAY_BE_NONE else [None]
    for value in values:
        refused(GLFTEnv, name, **{name: value})


@pytest.mark.parametrize("name", PAIRS)
def test_a_wrong_pair(name):
    for value in ([], [1.0], [1.0, 2.0, 3.0], (1.0,)):
        refused(GLFTEnv, "pair [bid, ask]", **{name: value})
    for wrong in (math.nan, math.inf, None, True, "1", [1.0, 2.0]):
        refused(GLFTEnv, f"{name}[0] (bid)", **{name: [wrong, 1.0]})
        refused(GLFTEnv, f"{name}[1] (ask)", **{name: [1.0, wrong]})


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - set(PAIRS)))
def test_a_pair_where_a_number_is_wanted(name):
    for value in ([1.0, 2.0], (1.0, 2.0), np.array([1.0, 2.0])):
        refused(GLFTEnv, name, **{name: value})


@pytest.mark.parametrize("name", list(CHOICES))
def test_an_unknown_choice(name):
    for value in ("", "MEAN", "none", 0, 1, True, math.nan, ["mean"], *([] if None in CHOICES[name] else [None])):
        with pytest.raises(ValueError, match=name) as refusal:
            GLFTEnv(**{name: value})
        for allowed in CHOICES[name]:
            assert repr(allowed) in str(refusal.value)


def test_a_number_of_steps_is_a_whole_number():
    for value in (0, -1, 1_000_001, 1.0, 1.5, math.nan, None, True, "5", [5]):
        refused(GLFTEnv, "num_steps", num_steps=value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_envs", (0, -1, 100_000_001, 1.0, None, True, "2")),
        ("threads", (0, -1, 1025, 1.0, None, True, "2")),
        ("copy", (0, 1, None, "False")),
        ("autoreset_mode", ("next_step", "NEXT_STEP", "", None, 1, True)),
        ("render_mode", ("rgb", "", "window")),
    ],
)
def test_wrong_arguments_of_the_batch(name, values):
    for value in values:
        refused(GLFTVectorEnv, name, **{name: value})


def test_wrong_render_mode_of_a_single_environment():
    for value in ("window", "", "RGB_ARRAY", 0, True):
        refused(GLFTEnv, "render_mode", render_mode=value)


def test_unknown_and_vector_only_arguments():
    for env_class in (GLFTEnv, GLFTVectorEnv):
        with pytest.raises(TypeError, match=r"'volatillity'.*volatility"):
            env_class(volatillity=1.0)
    for name in ("num_envs", "threads", "autoreset_mode", "copy"):
        with pytest.raises(TypeError, match=rf"'{name}'.*vector environment only"):
            GLFTEnv(**{name: 1})
    with pytest.raises(TypeError):
        GLFTEnv(0.3)  # arguments are keyword-only


def test_combinations_that_are_not_allowed():
    refused(GLFTEnv, "risk_aversion", utility="cara", risk_aversion=0.0)
    refused(GLFTEnv, "running_penalty", utility="cara", running_penalty=0.1)
    refused(GLFTEnv, "min_depth", min_depth=1.0, max_depth=1.0)
    refused(GLFTEnv, "ask", min_depth=[0.0, 2.0], max_depth=[1.0, 1.0])
    refused(GLFTEnv, "initial_inventory", inventory_limit=5.0, order_size=2.5, initial_inventory=1.0)
    refused(GLFTEnv, "inventory_limit", inventory_limit=6.0, order_size=2.5)
    refused(GLFTEnv, "expected fills a step", fill_rate=1e9)
    refused(GLFTEnv, "min_depth", min_depth=-50.0, fill_decay=1.0)


def test_what_is_just_allowed():
    GLFTEnv(utility="cara", running_penalty=0.0)
    GLFTEnv(volatility=0, drift=-1, num_steps=np.int64(5), horizon=np.float32(5.0), fill_rate=(1, 2))
    GLFTEnv(inventory_limit=1.0, initial_inventory=-1.0, risk_aversion=0.0)
    GLFTEnv(inventory_limit=7.5, order_size=2.5, initial_inventory=-7.5)
    GLFTEnv(order_size=0.1, inventory_limit=0.3)  # 0.3 / 0.1 is not 3 in floating point
    GLFTVectorEnv(num_envs=2, threads=1024)


# --- Actions ---------------------------------------------------------------------------------------------------------

STEP = {"num_steps": 4, "horizon": 4.0}


@pytest.fixture
def env():
    env = GLFTEnv(**STEP)
    env.reset(seed=1)
    return env


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def envs(request):
    envs = GLFTVectorEnv(4, threads=request.param, **STEP)
    envs.reset(seed=1)
    yield envs
    envs.close()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_that_are_not_finite_name_the_row(envs, wrong, dtype):
    untouched = GLFTVectorEnv(4, **STEP)
    untouched.reset(seed=1)
    for row in range(4):
        for side in range(2):
            actions = np.zeros((4, 2), dtype=dtype)
            actions[row, side] = wrong
            with pytest.raises(ValueError, match=rf"row {row} .*finite"):
                envs.step(actions)
    actions = np.zeros((4, 2), dtype=np.float32)
    for first, second in zip(envs.step(actions), untouched.step(actions), strict=True):
        assert np.array_equal(first, second)


def test_the_first_of_several_wrong_rows_is_named(envs):
    actions = np.full((4, 2), math.nan)
    actions[0] = 0.0
    with pytest.raises(ValueError, match="row 1 "):
        envs.step(actions)


def test_a_wrong_action_of_a_single_environment(env):
    before = env.get_state()
    for action in (
        np.array([math.nan, 0.0]),
        np.array([0.0, math.inf], dtype=np.float32),
        [0.0, None],
        [0.0],
        0.0,
        [0.0, 0.0, 0.0],
        [[0.0, 0.0]],
        None,
        "ab",
        [True, False],
        [1j, 0.0],
        {"bid": 0.0},
    ):
        with pytest.raises(ValueError, match=r"finite|shape"):
            env.step(action)
    after = env.get_state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    env.step(np.zeros(2, dtype=np.float32))


def test_actions_of_the_wrong_shape(envs):
    for actions in (
        np.zeros(2),
        np.zeros((3, 2)),
        np.zeros((4, 1)),
        np.zeros((4, 3)),
        np.zeros((2, 4)),
        np.zeros((4, 2, 1)),
        0.0,
    ):
        with pytest.raises(ValueError, match=r"shape.*\(4, 2\)"):
            envs.step(np.asarray(actions, dtype=np.float32))
    with pytest.raises(ValueError):
        envs.step([[0.0, 0.0], [0.0]])
    assert envs.get_state()["step"].tolist() == [0] * 4


def reward_of(actions):
    envs = GLFTVectorEnv(2, **STEP)
    envs.reset(seed=8)
    return envs.step(actions)[1].tolist()


def test_actions_of_other_types_are_accepted():
    expected = reward_of(np.array([[1, 0], [0, -1]], dtype=np.float32))
    exact = np.array([[1, 0], [0, -1]])
    for dtype in (np.int8, np.int64, np.float16, np.float64, np.longdouble, ">f4", ">f8"):
        assert reward_of(exact.astype(dtype)) == expected
    assert reward_of(exact.tolist()) == expected
    assert reward_of(np.asfortranarray(exact.astype(np.float32))) == expected
    assert reward_of(np.repeat(exact.astype(np.float32), 2, axis=0)[::2]) == expected
    read_only = exact.astype(np.float32)
    read_only.flags.writeable = False
    assert reward_of(read_only) == expected


def test_finite_actions_outside_the_box_are_clipped():
    expected = reward_of(np.array([[1.0, -1.0], [-1.0, 1.0]], dtype=np.float32))
    for size in (1.5, 1e30, 1e300):
        assert reward_of(np.array([[size, -size], [-size, size]])) == expected
    assert reward_of(np.array([[100, -100], [-100, 100]])) == expected
    env = GLFTEnv(**STEP)
    assert env.to_quotes([1e300, -1e300]).tolist() == env.to_quotes([1.0, -1.0]).tolist()


# --- Calls in the wrong order ----------------------------------------------------------------------------------------


def test_step_before_reset():
    with pytest.raises(ResetNeeded, match="before reset"):
        GLFTEnv().step(np.zeros(2, dtype=np.float32))
    with pytest.raises(ResetNeeded, match="before reset"):
        GLFTVectorEnv(2).step(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ResetNeeded, match="before reset"):
        GLFTEnv(render_mode="ansi").render()


def test_step_past_the_end(env):
    for _ in range(4):
        env.step(np.zeros(2, dtype=np.float32))
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="past the end"):
            env.step(np.zeros(2, dtype=np.float32))
    env.reset()
    env.step(np.zeros(2, dtype=np.float32))


def test_step_of_a_row_past_its_end():
    for threads in (1, 2):
        envs = GLFTVectorEnv(3, autoreset_mode="Disabled", threads=threads, **STEP)
        envs.reset(seed=0)
        actions = np.zeros((3, 2), dtype=np.float32)
        for _ in range(2):
            envs.step(actions)
        envs.reset(options={"reset_mask": np.array([True, False, True])})
        for _ in range(2):
            terminated = envs.step(actions)[2]
        assert terminated.tolist() == [False, True, False]
        before = envs.get_state()
        with pytest.raises(ResetNeeded, match=r"row 1 .*reset_mask"):
            envs.step(actions)
        after = envs.get_state()
        assert all(np.array_equal(before[name], after[name]) for name in before)
        envs.reset(options={"reset_mask": np.array([False, True, False])})
        assert envs.step(actions)[2].tolist() == [False] * 3
        envs.close()


def test_nothing_works_after_close(env):
    envs = GLFTVectorEnv(2)
    envs.reset(seed=0)
    for closed, actions in ((env, np.zeros(2)), (envs, np.zeros((2, 2)))):
        closed.close()
        closed.close()
        with pytest.raises(ClosedEnvironmentError, match=r"step\(\) after close"):
            closed.step(actions)
        with pytest.raises(ClosedEnvironmentError, match=r"reset\(\) after close"):
            closed.reset()


# --- Seeds, options and states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, [1], [1, 2, 3], [1, -1], [1, 1.5], [1, True], [1, "2"], {1, 2}])
def test_wrong_seeds_of_a_batch(seed):
    envs = GLFTVectorEnv(2)
    envs.reset(seed=0)
    before = envs.get_state()
    with pytest.raises(ValueError, match="seed"):
        envs.reset(seed=seed)
    assert np.array_equal(envs.get_state()["streams"], before["streams"])


@pytest.mark.parametrize("seed", [-1, 1.5, "1", [1]])
def test_wrong_seeds_of_a_single_environment(seed, env):
    before = env.get_state()
    with pytest.raises((ValueError, gymnasium.error.Error), match=r"[Ss]eed"):
        env.reset(seed=seed)
    assert np.array_equal(env.get_state()["streams"], before["streams"])


def test_wrong_options_of_reset(env):
    envs = GLFTVectorEnv(3)
    for options in ({"mask": 1}, {"reset_mask": np.ones(3, dtype=bool), "mask": 1}):
        with pytest.raises(ValueError, match=r"mask.*reset_mask"):
            envs.reset(options=options)
    with pytest.raises(ResetNeeded, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    for mask in (
        np.zeros(3, dtype=bool),
        np.ones(2, dtype=bool),
        np.ones((3, 1), dtype=bool),
        np.ones(3),
        [1, 0, 1],
        None,
        True,
    ):
        with pytest.raises(ValueError, match=r"reset_mask.*bool array of shape"):
            envs.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True])})


def test_wrong_states(env):
    envs = GLFTVectorEnv(3, **STEP)
    with pytest.raises(ValueError, match="before the first reset"):
        GLFTVectorEnv(3, **STEP).set_state(envs.get_state())
    envs.reset(seed=0)
    state = envs.get_state()
    for changes, named in (
        ({"format": 99}, "format"),
        ({"market": "tick_spread"}, "market"),
        ({"parameters": 5}, "parameters"),
        ({"streams": state["streams"][:2]}, "streams"),
        ({"streams": state["streams"][:, 0]}, "streams"),
        ({"mid": state["mid"][:, None]}, "mid"),
        ({"needs_reset": 0}, "needs_reset"),
    ):
        with pytest.raises(ValueError, match=named):
            envs.set_state({**state, **changes})
    for name in state:
        with pytest.raises(ValueError, match=name if name != "started" else "reset"):
            envs.set_state({key: value for key, value in state.items() if key != name})
    other = GLFTVectorEnv(3, **{**STEP, "volatility": 0.31})
    other.reset(seed=0)
    with pytest.raises(ValueError, match="parameters"):
        envs.set_state(other.get_state())
    with pytest.raises(ValueError, match="3 rows"):
        envs.set_state(env.get_state())
    after = envs.get_state()
    assert all(np.array_equal(state[name], after[name]) for name in state)


def test_wrong_rows_of_a_state():
    envs = GLFTVectorEnv(3, **STEP)
    with pytest.raises(ResetNeeded):
        seeded = GLFTEnv(**STEP)
        seeded.reset(seed=0)
        envs.set_state(seeded.get_state(), rows=[1])
    envs.reset(seed=0)
    for rows in ([3], [-4], [0.5], "a", [[True, False]]):
        with pytest.raises(ValueError, match="rows"):
            envs.get_state(rows=rows)


# --- States from elsewhere, in every market --------------------------------------------------------------------------

IDS = [row.id for row in ENVIRONMENTS if not row.id.endswith(("Coupled-v0", "FastSignals-v0", "StrongImpact-v0"))]
SLOW = [
    f"mmgym/{name}-v0" for name in ("RobustGLFT", "TickQuotes", "Impact", "ShortTermAlpha", "GeometricPrice", "Dealer")
]
HOSTILE = (
    10**9,
    2 * 10**9,
    -(10**9),
    -1,
    2**31,
    -(2**63),
    2**64 - 1,
    1e300,
    -1e300,
    -100.0,
    math.nan,
    math.inf,
    -math.inf,
)


def stepped(env_id, steps=3):
    """A batch of two rows after some random steps, its state, and random actions for it."""
    envs = gymnasium.make_vec(env_id, num_envs=2).unwrapped
    envs.reset(seed=5)
    envs.action_space.seed(5)
    for _ in range(steps):
        envs.step(envs.action_space.sample())
    return envs, envs.get_state(), envs.action_space.sample()


@pytest.mark.parametrize("env_id", [pytest.param(i, marks=[pytest.mark.long] * (i in SLOW)) for i in IDS])
def test_a_state_is_taken_only_within_the_ranges_of_its_market(env_id):
    """Every column with every hostile value: refused by name, or played without leaving the finite numbers."""
    envs, state, actions = stepped(env_id)
    refused = 0
    for name in envs.market.row_dtype.names:
        if name in ("s0", "s1"):
            continue
        for value in HOSTILE:
            kind = "f8" if isinstance(value, float) else "u8" if value >= 2**63 else "i8"
            column = np.full(np.shape(state[name]), value, dtype=kind)
            try:
                observations = envs.set_state({**state, name: column})
            except ValueError as error:
                refused += 1
                assert f"state entry {name!r}" in str(error)
                assert "must be" in str(error)
                after = envs.get_state()
                assert all(np.array_equal(state[column], after[column]) for column in state)
                continue
            assert np.isfinite(observations).all(), (name, value)
            observations = envs.step(actions)[0]
            assert np.isfinite(observations).all(), (name, value)
            assert envs.single_observation_space.contains(observations[0])
            envs.set_state(state)
    assert refused > 5 * len(envs.market.row_dtype.names)


@pytest.mark.parametrize(
    ("env_id", "name", "value", "allowed"),
    [
        ("mmgym/TickSpread-v0", "spread", 10**9, "from 0 to 5"),
        ("mmgym/MeanFieldTaker-v0", "step", 2 * 10**9, "from 0 to 500"),
        ("mmgym/HawkesFlow-v0", "excess_buy", -100.0, "from 0.0 to "),
        ("mmgym/StochasticVolatility-v0", "variance", -1.0, "from 0.0 to "),
        ("mmgym/GLFT-v0", "inventory", 31, "from -30 to 30"),
        ("mmgym/MultiAssetGLFT-v0", "inventory", [0, 0, 1, *[0] * 27], "from 0 to 0"),
        ("mmgym/HawkesPower-v0", "spread", 0, "from 1 to "),
    ],
)
def test_a_state_out_of_range_is_refused_with_its_range(env_id, name, value, allowed):
    envs, state, _ = stepped(env_id)
    column = state[name].copy()
    column[0] = value
    value = np.max(value)
    with pytest.raises(ValueError, match=rf"state entry '{name}' = {value} of row 0 is not allowed: .*{allowed}"):
        envs.set_state({**state, name: column})


def test_a_row_past_its_last_step_must_need_a_reset():
    """Otherwise the mean field's kernel would read past its table of the crowd's flow."""
    for env_id in ("mmgym/MeanFieldTaker-v0", "mmgym/GLFT-v0"):
        envs, state, _ = stepped(env_id)
        last = np.full(2, envs.params.num_steps)
        with pytest.raises(ValueError, match=r"state entry 'step' = .* must be below"):
            envs.set_state({**state, "step": last})
        envs.set_state({**state, "step": last, "needs_reset": np.ones(2, dtype=int)})


def test_columns_of_the_wrong_type_and_dead_streams_are_refused():
    envs, state, _ = stepped("mmgym/GLFT-v0")
    for name, value in (
        ("step", np.array([0.5, 1.0])),
        ("mid", np.array(["a", "b"])),
        ("mid", np.array([None, None])),
        ("streams", state["streams"].astype(float)),
        ("needs_reset", np.array([2, 0])),
        ("streams", np.zeros((2, 2), dtype=np.uint64)),
    ):
        with pytest.raises(ValueError, match=f"state entry '{name}'"):
            envs.set_state({**state, name: value})
