"""Whatever a constructor is given: an environment that works, or an error that says what was given and what is allowed.

Every argument of every id, one at a time and in pairs, at extreme and odd values, beside a small market's own values.
The draws have fixed seeds; nothing here is statistical.
"""

import math
import re
import warnings

import gymnasium
import numpy as np
import pytest

import mmgym  # noqa: F401
from mmgym.arguments import shown
from mmgym.baselines import score
from mmgym.baselines.catalogue import baseline_of, problem_of
from mmgym.parameters import argument_names
from mmgym.registration import ENVIRONMENTS

SMALL = {  # arguments that make a market of few states and steps, so that it is built, played and scored at once
    "glft": {"num_steps": 4, "horizon": 2.0, "inventory_limit": 2.0},
    "multi_asset_glft": {"num_steps": 3, "horizon": 0.1, "inventory_limit": 1.0},
    "stochastic_volatility": {"num_steps": 4, "horizon": 0.1, "inventory_limit": 2.0},
    "tick_spread": {"num_steps": 4, "horizon": 4.0, "lot": 100.0, "inventory_limit": 300.0},
    "hawkes_flow": {"num_steps": 4, "horizon": 1.0, "inventory_limit": 2},
    "hawkes_power": {"num_steps": 4, "horizon": 1.0, "inventory_limit": 2},
    "mean_field": {
        "num_steps": 4,
        "horizon": 0.04,
        "inventory_limit": 20.0,
        "signal_limit": 1,
        "population": "constant",
    },
    "robust_glft": {"num_steps": 4, "horizon": 0.02, "inventory_limit": 2.0},
    **{row.market: {"num_steps": 4, "horizon": 0.04, "inventory_limit": 4.0} for row in ENVIRONMENTS if row.declared},
}
NUMBERS = [
    0, 0.0, -0.0, 1, 2, 3, 7, -1, 0.5, 1.5, -0.5, 1e-3, 10.0, 100.0, 1e3, 1e6, 1_000_000, 1e9, 1e12, 1e15, 1e18, 1e100,
    1e300, 1.7e308, -1e3, -1e12, -1e300, 1e-6, 1e-9, 1e-12, 1e-15, 1e-100, 1e-300, 5e-324, -5e-324, 2**63, 10**400,
]  # fmt: skip
LISTS = [
    [], [1.0], [1.0, 2.0], [0.5, 0.0], [1e-9, 1e9], [5e-324, 1.0], [1.0, math.nan], [1.0, 2.0, 3.0], [[1.0, 2.0]],
    [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]], [[0.0, 1.0], [1e9, 2.0]], [[[1.0]]], [None, None], [1.0] * 6,
    [[1e-300, 0.0], [0.0, 1e-300]], [[0.1] * 60] * 60, [[1e18, 0.0], [0.0, 1e18]], (1.0, 2.0), (),
]  # fmt: skip
ODD = [
    None, True, False, math.nan, math.inf, -math.inf, "", "1", "nan", "mean", "cara", "geometric", "clock", "expected",
    "stationary", "constant", "equilibrium", {}, {"a": 1}, b"x", 1j, 10**5000, np.float64(0.3), np.float32(2.0),
    np.int64(3), int, np.True_, np.array(1.0), np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.0, 1.0]]),
    np.zeros((60, 60)), object(), range(2),
]  # fmt: skip
PAIRS = 400  # of each id
VALUES = [*NUMBERS, *LISTS, *ODD]
IDS = [row.id for row in ENVIRONMENTS]
WALKED = [  # the robust market solves a game for every environment: minutes
    pytest.param(row.id, marks=pytest.mark.slow) if row.market == "robust_glft" else row.id for row in ENVIRONMENTS
]
ROWS = {row.id: row for row in ENVIRONMENTS}


def class_of(env_id):
    """The class of an id's single environment."""
    return gymnasium.envs.registration.load_env_creator(gymnasium.spec(env_id).entry_point)


def small(env_id):
    """Arguments of a small market of the id's kind."""
    market = ROWS[env_id].market
    return SMALL[market] | ({"initial_law": "origin"} if market == "mean_field" else {})


def names_of(env_id):
    """Constructor arguments of an id's market."""
    return argument_names(class_of(env_id).market.params_type)


def texts_of(value):
    """How an error may show a value: as it is, as a number, or the first of its entries."""
    texts = [shown(value)]
    number = value.item() if isinstance(value, np.number) else value
    if isinstance(number, (int, float)) and -(2**1023) < number < 2**1023:
        texts += [repr(float(number)), f"{float(number):g}", repr(int(number))]
    return texts


def explained(error, given):
    """Whether an error names an argument that was given, with its value (or an entry of it), and what is allowed."""
    text = str(error)
    if not re.search(r"must be|must sum|allowed", text) or len(text) > 900 or "\n" in text:
        return False
    for name, value in given.items():
        if re.search(rf"\b{name}\b", text) is None:
            continue
        if (
            f"{name}[" in text
            or isinstance(value, (list, tuple, np.ndarray))
            or any(t in text for t in texts_of(value))
        ):
            return True
    return False


def built(env_id, given):
    """The environment, or None where the arguments are refused as they should be."""
    arguments = {**small(env_id), **given}
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **arguments).unwrapped
    except (ValueError, MemoryError) as error:
        assert explained(error, given), f"{env_id} {given!r}: {type(error).__name__}: {error}"
        return None


def play(env):
    """Some steps at the bounds of the action space and inside it: all numbers finite."""
    space = env.action_space
    space.seed(1)
    corners = [space.low, space.high] if hasattr(space, "low") else [space.nvec - 1 if hasattr(space, "nvec") else 0]
    observation, _ = env.reset(seed=3)
    assert np.isfinite(observation).all()
    for action in [*corners, space.sample(), space.sample()]:
        observation, reward, terminated, _, info = env.step(action)
        assert np.isfinite(observation).all() and math.isfinite(reward), (observation, reward)
        assert all(np.isfinite(value).all() for value in info.values()), info
        if terminated:
            env.reset()


def check(env_id, given):
    """One set of arguments: whether it made an environment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Feller's condition
        env = built(env_id, given)
        if env is None:
            return None
        try:
            play(env)
        except AssertionError as error:
            raise AssertionError(f"{env_id} {given!r}: {error}") from error
    return env


def drawn_pairs(env_id, count):
    """Pairs of arguments with values, by a fixed seed of the id: mostly such as each is allowed alone."""
    draws = np.random.default_rng([20, IDS.index(env_id)])
    names = names_of(env_id)
    usable = {name: [value for value in VALUES if allowed_alone(env_id, name, value)] for name in names}
    for _ in range(count):
        chosen = draws.choice(len(names), 2, replace=False)
        pools = [usable[names[k]] if draws.random() < 0.9 and usable[names[k]] else VALUES for k in chosen]
        yield {names[k]: pool[draws.integers(len(pool))] for k, pool in zip(chosen, pools, strict=True)}


def allowed_alone(env_id, name, value):
    """Whether a value is refused neither alone nor for any reason but the other arguments'."""
    params_type = class_of(env_id).market.params_type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            params_type.create(**{**small(env_id), name: value})
        except ValueError as error:
            return "not allowed together" in str(error)
    return True


SCORED = ("glft", "multi_asset_glft", "tick_spread", "mean_field")


def scored(env):
    """Whether the score of a constant action is finite, or refused with a way on; None where that would take long."""
    if baseline_of(env).problem is None:  # more states than can be solved exactly
        return None
    problem = problem_of(env)
    if problem.num_states * problem.num_steps > 400:
        return None
    space = env.action_space
    action = space.high if hasattr(space, "high") else space.nvec - 1 if hasattr(space, "nvec") else np.int64(0)
    shape = np.shape(action)
    try:
        result = score(env, lambda x: np.broadcast_to(action, (*np.shape(x)[:-1], *shape)), markov=True)
    except (ValueError, ArithmeticError) as error:
        assert re.search(r"lower|raise|give", str(error)), f"{type(error).__name__}: {error}"
        return False
    assert all(math.isfinite(x) for x in (result.value, result.std, result.pnl, result.fills, result.optimum_upper)), (
        result
    )
    return True


def fuzz(env_id, cases, every=0):
    """Number of cases, of environments made, of finite scores and of refused ones; every so many are scored."""
    made = finite = refused = 0
    for k, given in enumerate(cases):
        env = check(env_id, given)
        made += env is not None
        if every and env is not None and k % every == 0 and ROWS[env_id].market in SCORED:
            with np.errstate(all="ignore"):
                answer = scored(env)
            finite, refused = finite + (answer is True), refused + (answer is False)
    return made, finite, refused


def single_values(env_id):
    """Every argument at every value."""
    return [{name: value} for name in names_of(env_id) for value in VALUES]


@pytest.mark.parametrize("env_id", ["mmgym/GLFT-v0", "mmgym/TickSpread-v0", "mmgym/HawkesFlow-v0"])
def test_some_arguments(env_id):
    cases = single_values(env_id)
    made, _, _ = fuzz(env_id, cases[:: len(cases) // 150])
    assert made > 10


@pytest.mark.long
@pytest.mark.parametrize("env_id", WALKED)
def test_all_arguments_one_at_a_time(env_id):
    cases = single_values(env_id)
    made, _, _ = fuzz(env_id, cases)
    assert 100 < made < len(cases) // 2


@pytest.mark.long
@pytest.mark.parametrize("env_id", WALKED)
def test_arguments_in_pairs(env_id):
    made, finite, refused = fuzz(env_id, drawn_pairs(env_id, PAIRS), every=10)
    assert made > PAIRS // 5
    if ROWS[env_id].market in SCORED:
        assert finite > 10 * refused


def test_a_game_whose_best_responses_would_take_minutes_is_refused_at_once():
    arguments = {"num_steps": 5000, "horizon": 50.0, "inventory_limit": 500.0, "signal_limit": 10, "impact": 0.05}
    with pytest.raises(
        ValueError, match=r"num_steps = 5000, signal_limit = 10, inventory_limit = 500.* at most 3e\+07"
    ):
        gymnasium.make("mmgym/MeanFieldTaker-v0", **arguments)
