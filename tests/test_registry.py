"""The table of ids, the conformance suites over every id, and what the suites find in markets that are broken.

`check_baseline` states its false-alarm rate: 1e-3 a call, with fixed seeds.
"""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import gymnasium
import numpy as np
import pytest
import yaml

import mmgym
from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.checking import check_baseline
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.checking import check_market
from mmgym.envs.glft import GLFTEnv, GLFTFace, GLFTVectorEnv
from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.market import Market, scalar_kernel
from mmgym.parameters import Choice, Integer, Real, create
from mmgym.random_streams import uniform
from mmgym.registration import ENVIRONMENTS, register_all

REPOSITORY = Path(__file__).parents[1]

IDS = [row.id for row in ENVIRONMENTS]
SHORT = {  # arguments that shorten episodes, by market
    "glft": {"num_steps": 7},
    "multi_asset_glft": {"num_steps": 7, "horizon": 0.07},
    "stochastic_volatility": {"num_steps": 7},
    "tick_spread": {"num_steps": 7},
    "hawkes_flow": {"horizon": 2.0, "num_steps": 7},
    "hawkes_power": {"horizon": 1.5, "num_steps": 7},
    "mean_field": {"num_steps": 7, "horizon": 0.07},
    "robust_glft": {"num_steps": 7, "horizon": 0.035},
    **{row.market: {"num_steps": 7, "horizon": 0.05} for row in ENVIRONMENTS if row.declared},
}
BASELINE = {
    "glft": {"num_steps": 8, "inventory_limit": 4.0, "min_depth": 0.0},
    "multi_asset_glft": {"num_steps": 8, "horizon": 0.2, "inventory_limit": [2.0, 3.0], "min_depth": 0.0},
    "stochastic_volatility": {"num_steps": 8, "horizon": 0.2, "inventory_limit": 3.0},
    "tick_spread": {"num_steps": 8, "horizon": 8.0, "lot": 50.0, "inventory_limit": 200.0},
    "hawkes_flow": {"num_steps": 6, "horizon": 2.0, "inventory_limit": 2},
    "hawkes_power": {"num_steps": 4, "horizon": 1.0, "inventory_limit": 2},
    "mean_field": {"num_steps": 8, "horizon": 0.4, "inventory_limit": 80.0, "signal_limit": 2},
    "robust_glft": {"num_steps": 5, "horizon": 0.025, "inventory_limit": 3.0},
    **{row.market: {"num_steps": 4, "horizon": 0.04, "inventory_limit": 4.0} for row in ENVIRONMENTS if row.declared},
}
QUICK = (
    "mmgym/GLFT-v0",
    "mmgym/AvellanedaStoikov-v0",
    "mmgym/MeanFieldTaker-v0",
    "mmgym/MeanFieldMaker-v0",
)  # in the fast suite


@pytest.fixture(params=ENVIRONMENTS, ids=IDS)
def row(request):
    return request.param


# --- The table -------------------------------------------------------------------------------------------------------


def test_ids_are_unique():
    assert len(set(IDS)) == len(IDS)


def test_a_row_names_what_exists(row):
    assert gymnasium.spec(row.id).entry_point == f"{row.module}:{row.env}"
    module = import_module(row.module)
    env_class, vector_class = getattr(module, row.env), getattr(module, row.vector_env)
    assert issubclass(env_class, KernelEnv)
    assert issubclass(vector_class, KernelVectorEnv)
    assert env_class.vector_class is vector_class
    assert env_class.market.name == row.market
    assert row.level in ("exact", "certified", "bracketed")
    assert row.title


def test_a_market_has_a_file_on_every_floor(row):
    """What the design asks of a market; a new row fails here until all of it is there."""
    wanted = [f"mmgym/models/{row.market}.py", f"tests/test_{row.market}_market.py"]
    if not row.declared:  # what a declaration has of itself
        wanted += [
            f"mmgym/envs/{row.market}.py",
            f"baselines/{row.market}/__init__.py",
            f"tests/test_{row.market}_baseline.py",
        ]
    missing = [file for file in wanted if not (REPOSITORY / file).is_file()]
    assert not missing, f"{row.id} lacks {missing}"
    configured = set()
    for file in sorted((REPOSITORY / "configs").glob("*.yml")):
        configured |= set(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert row.id in configured, f"no file of configs/ has the key {row.id}"


def test_preset_arguments_are_those_of_the_environment(row):
    made = gymnasium.make(row.id).unwrapped
    again = type(made)(**row.arguments)
    assert made.params == again.params


def test_registering_twice_changes_nothing():
    before = {row.id: gymnasium.spec(row.id) for row in ENVIRONMENTS}
    register_all()
    assert {row.id: gymnasium.spec(row.id) for row in ENVIRONMENTS} == before


def test_the_first_line_of_a_docstring_states_the_unit_of_inventory(row):
    env_class = getattr(import_module(row.module), row.env)
    assert "inventory in" in env_class.__doc__.split("\n\n")[0]


# --- The suites over every id ----------------------------------------------------------------------------------------


def test_conformance_of_the_market(row):
    check_market(row.id, **SHORT[row.market])


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 1},
        {"num_steps": 3, "utility": "cara", "risk_aversion": 0.05},
        {"num_steps": 4, "reward": "expected", "order_size": 2.5, "inventory_limit": 5.0, "initial_inventory": -5.0},
        {"num_steps": 5, "min_depth": [0.1, -0.2], "max_depth": [1.0, 7.0], "fill_decay": [0.3, 1.1]},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_conformance_of_the_glft_market_with_other_arguments(arguments):
    check_market(GLFTVectorEnv, **arguments)
    check_market(GLFTEnv, horizon=3.0, **arguments)


@pytest.mark.slow
def test_conformance_of_the_market_at_full_length(row):
    check_market(row.id)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.id, marks=() if row.id in QUICK else pytest.mark.long) for row in ENVIRONMENTS],
)
def test_conformance_of_the_baseline(row):
    crowd = {"population": "constant"} if "StrongImpact" in row.id else {}  # few steps have no equilibrium there
    figures = check_baseline(row.id, **BASELINE[row.market], **crowd)
    assert figures["best suboptimal table"] < figures["optimum"]


@pytest.mark.slow
def test_conformance_of_the_baseline_at_full_length(row):
    check_baseline(row.id)


# --- A market of one's own -------------------------------------------------------------------------------------------


class CoinParams(NamedTuple):
    bias: Annotated[float, Real(0.5, 0.0, 1.0, text="probability that a coin shows heads")]
    num_steps: Annotated[int, Integer(5, 1, 1000, text="coins")]
    payoff: Annotated[Literal["linear", "square"], Choice("linear")]

    @classmethod
    def create(cls, **arguments):
        return create(cls, arguments)


COIN_STATE = np.dtype([("step", "i4"), ("heads", "i4"), ("stake", "i4")])


@scalar_kernel
def coin_reset(p, s):
    s.step = 0
    s.heads = 0
    s.stake = 0


@scalar_kernel
def coin_controls(p, action, controls, log_intensities):
    controls[0] = action[0]
    controls[1] = action[1]
    return 0 <= action[0] < 3 and 0 <= action[1] < 2


@scalar_kernel
def coin_step(p, s, controls, intensities):
    """Stake 0, 1 or 2 on heads or tails; the episode also ends early, at the third head."""
    draw, s.s0, s.s1 = uniform(s.s0, s.s1)
    heads = draw < p.bias
    s.heads += heads
    s.stake = np.int64(controls[0])
    s.step += 1
    reward = controls[0] if heads == (controls[1] == 1.0) else -controls[0]
    if p.payoff == 1:
        reward *= abs(reward)
    return reward, s.step >= p.num_steps or s.heads >= 3


@scalar_kernel
def coin_observe(p, s, observation):
    observation[0] = s.step / p.num_steps
    observation[1] = s.heads / 3.0


COIN = Market(
    name="coin",
    params_type=CoinParams,
    state=COIN_STATE,
    num_controls=2,
    num_intensities=1,
    reset_one=coin_reset,
    controls_one=coin_controls,
    step_one=coin_step,
    observe_one=coin_observe,
)


class CoinFace(MarketFace):
    market = COIN

    def single_spaces(self):
        return gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32), gymnasium.spaces.MultiDiscrete([3, 2])

    def to_quotes(self, actions):
        return np.asarray(actions, dtype=np.float64)

    def from_quotes(self, quotes):
        return np.asarray(quotes).astype(np.int64)

    def to_state(self, observations):
        observations = np.asarray(observations, dtype=np.float64)
        step = np.rint(observations[..., 0] * self.params.num_steps).astype(int)
        return step, np.rint(observations[..., 1] * 3.0).astype(int)

    def describe(self, state, controls, full):
        return {"heads": state.heads, "stake": state.stake}


class CoinVectorEnv(CoinFace, KernelVectorEnv):
    """A batch of coins."""


class CoinEnv(CoinFace, KernelEnv):
    """A coin.

    ## Description
    ## Action Space
    ## Observation Space
    ## Rewards
    ## Starting State
    ## Episode End
    ## Arguments
    [parameters]
    - `info`
    ## Version History
    ## References
    """

    vector_class = CoinVectorEnv


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments", [{}, {"bias": 0.9, "num_steps": 30, "payoff": "square"}], ids=["coin", "early ends"]
)
def test_conformance_of_a_market_of_ones_own(arguments):
    """Discrete actions, and rows that end at different times."""
    check_market(CoinVectorEnv, **arguments)


def test_discrete_actions_out_of_range_are_refused():
    envs = CoinVectorEnv(3)
    envs.reset(seed=0)
    before = envs.get_state()
    for action in ([3, 0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="row 1"):
            envs.step(np.array([[0, 0], action, [1, 1]]))
    with pytest.raises(ValueError, match="integers"):
        envs.step(np.zeros((3, 2)))
    assert (envs.get_state()["step"] == before["step"]).all()
    envs.step(np.array([[2, 1], [0, 0], [1, 1]], dtype=np.int8))
    assert envs.get_state()["stake"].tolist() == [2, 0, 1]


# --- What the suite finds in broken markets --------------------------------------------------------------------------


def broken(env=None, vector=None, face=None, docstring=GLFTEnv.__doc__):
    """The GLFT market with some methods replaced in its environments."""
    face, vector, env = face or {}, vector or {}, env or {}
    vector_class = type("BrokenVectorEnv", (GLFTFace, KernelVectorEnv), {**face, **vector})
    content = {"vector_class": vector_class, "__doc__": docstring}
    return type("BrokenEnv", (GLFTFace, KernelEnv), {**content, **face, **env})


def step_with(change):
    """A single environment's step whose outputs go through ``change(env, action, outputs)``."""

    def step(self, action):
        return change(self, action, KernelEnv.step(self, action))

    return step


def vector_step_with(change):
    def step(self, actions):
        return change(self, actions, KernelVectorEnv.step(self, actions))

    return step


def spaces_with(change):
    return lambda self: change(*GLFTFace.single_spaces(self))


def changed_rewards(outputs, rows, by):
    rewards = outputs[1].copy()
    rewards[rows] += by
    return (outputs[0], rewards, *outputs[2:])


def box(low, high, dtype=np.float32, size=2):
    return gymnasium.spaces.Box(low, high, (size,), dtype)


def seeded_with_gaps(self, *, seed=None, options=None):
    if isinstance(seed, int):
        seed = [(seed + 2 * i) % 2**64 for i in range(self.num_envs)]
    return KernelVectorEnv.reset(self, seed=seed, options=options)


def reseeding_everything(self, *, seed=None, options=None):
    if options and seed is not None:
        KernelVectorEnv.reset(self, seed=seed)
    return KernelVectorEnv.reset(self, seed=seed, options=options)


def refusing_too_late(self, actions):
    good = np.isfinite(np.asarray(actions)).all(axis=-1)
    if np.shape(actions) == (self.num_envs, 2) and not good.all() and self._rows.started:
        KernelVectorEnv.step(self, np.where(good[:, None], actions, 0.0))
        raise ValueError(f"row {np.flatnonzero(~good)[0]} is wrong")
    return KernelVectorEnv.step(self, actions)


def state_without_streams(self, state, rows=None):
    own = KernelVectorEnv.get_state(self, rows)
    return KernelVectorEnv.set_state(self, {**state, "streams": own["streams"][: len(state["streams"])]}, rows)


def without_checks_of_parameters(self, state, rows=None):
    own = KernelVectorEnv.get_state(self, rows)
    kept = {name: own[name] for name in ("format", "market", "parameters")}
    return KernelVectorEnv.set_state(self, {**state, **kept}, rows)


def views_of_state(self, rows=None):
    state = KernelVectorEnv.get_state(self, rows)
    return state if rows is not None else {**state, "mid": self._rows.state["mid"]}


def sharing_rows(self, **arguments):
    KernelEnv.__init__(self, **arguments)
    self._rows = type(self).__dict__.get("shared") or self._rows
    type(self).shared = self._rows


def observation_after_restart(self, actions, outputs):
    if "final_obs" in outputs[4]:
        for row in np.flatnonzero(outputs[4]["_final_obs"]):
            outputs[4]["final_obs"][row] = outputs[0][row]
    return outputs


def accepting_vector_arguments(self, **arguments):
    for name in ("num_envs", "threads", "autoreset_mode", "copy"):
        arguments.pop(name, None)
    KernelEnv.__init__(self, **arguments)


def accepting_anything(self, **arguments):
    arguments.pop("no_such_argument", None)
    KernelEnv.__init__(self, **arguments)


def after_the_end(self, action):
    return KernelEnv.step(self, action) if not self._rows.state["needs_reset"][0] else (None, 0.0, True, False, {})


def truncating_state(self, observations):
    observations = np.asarray(observations, dtype=np.float64)
    return tuple(
        np.trunc(observations[..., i] * n).astype(int) for i, n in enumerate((self.params.num_steps, self.params.limit))
    )


BROKEN = {
    "no section": (broken(docstring=GLFTEnv.__doc__.replace("## Episode End", "")), "Episode End"),
    "sections in another order": (
        broken(
            docstring=GLFTEnv.__doc__.replace("## Rewards", "## R")
            .replace("## Starting State", "## Rewards")
            .replace("## R\n", "## Starting State\n")
        ),
        "sections",
    ),
    "an argument that is not listed": (broken(docstring=GLFTEnv.__doc__.replace("`drift`", "drift")), "`drift`"),
    "vector arguments accepted": (broken(env={"__init__": accepting_vector_arguments}), "vector environment only"),
    "unknown argument accepted": (broken(env={"__init__": accepting_anything}), "unknown argument"),
    "observation space of float64": (
        broken(face={"single_spaces": spaces_with(lambda o, a: (box(-1, 1, np.float64), a))}),
        "bounded float32",
    ),
    "unbounded observation space": (
        broken(face={"single_spaces": spaces_with(lambda o, a: (box(-np.inf, np.inf), a))}),
        "bounded float32",
    ),
    "action space in model units": (
        broken(face={"single_spaces": spaces_with(lambda o, a: (o, box(0, 10)))}),
        "from -1 to 1",
    ),
    "observations outside the space": (
        broken(face={"single_spaces": spaces_with(lambda o, a: (box(0, 1), a))}),
        "is not in",
    ),
    "another space in the batch": (
        broken(vector={"single_spaces": spaces_with(lambda o, a: (box(-2, 2), a))}),
        "single_observation_space",
    ),
    "truncated at the horizon": (
        broken(env={"step": step_with(lambda env, action, o: (o[0], o[1], o[2], o[2], o[4]))}),
        "truncated",
    ),
    "rows truncated at the horizon": (
        broken(vector={"step": vector_step_with(lambda env, actions, o: (*o[:3], o[2], o[4]))}),
        "was truncated",
    ),
    "infinite reward": (
        broken(env={"step": step_with(lambda env, action, o: (o[0], -np.inf if o[2] else o[1], *o[2:]))}),
        "not finite",
    ),
    "reward of NumPy's float32": (
        broken(env={"step": step_with(lambda env, action, o: (o[0], np.float32(o[1]), *o[2:]))}),
        "reward of type",
    ),
    "key episode": (
        broken(env={"step": step_with(lambda env, action, o: (*o[:4], {**o[4], "episode": 1}))}),
        "'episode'",
    ),
    "info on the hot path": (
        broken(
            vector={"step": vector_step_with(lambda env, actions, o: (*o[:4], o[4] or {"mid": np.zeros(len(o[1]))}))}
        ),
        "not an empty one",
    ),
    "seeds with gaps": (broken(vector={"reset": seeded_with_gaps}), "is not seeded"),
    "masked reset that reseeds everything": (broken(vector={"reset": reseeding_everything}), "masked reset changed"),
    "from_quotes that shifts": (
        broken(face={"from_quotes": lambda self, quotes: GLFTFace.from_quotes(self, quotes + 1e-5)}),
        "from_quotes",
    ),
    "to_quotes of the batch in float32": (
        broken(vector={"to_quotes": lambda self, a: GLFTFace.to_quotes(self, a).astype(np.float32).astype(float)}),
        "between single and batch",
    ),
    "to_state by truncation": (broken(face={"to_state": truncating_state}), "recovers the steps"),
    "to_state of floats": (
        broken(face={"to_state": lambda self, o: tuple(map(np.float64, GLFTFace.to_state(self, o)))}),
        "integers",
    ),
    "a row that differs": (
        broken(
            vector={"step": vector_step_with(lambda env, a, o: changed_rewards(o, [-1], 1e-12 * (env.num_envs > 1)))}
        ),
        "reward of row",
    ),
    "rows that differ with threads": (
        broken(vector={"step": vector_step_with(lambda env, a, o: changed_rewards(o, [0], 1e-12 * (env.threads > 1)))}),
        "threads = 2",
    ),
    "restart with a reward": (
        broken(vector={"step": vector_step_with(lambda env, a, o: changed_rewards(o, o[0][:, 0] == 0, 1e-12))}),
        "restarts with reward",
    ),
    "final observation of the next episode": (
        broken(vector={"step": vector_step_with(observation_after_restart)}),
        "SameStep.*observation of row",
    ),
    "step past the end": (broken(env={"step": after_the_end}), "past the end"),
    "refused too late": (broken(vector={"step": refusing_too_late}), "refused"),
    "state without streams": (broken(vector={"set_state": state_without_streams}), "set_state"),
    "state of other parameters": (broken(vector={"set_state": without_checks_of_parameters}), "accepted the state"),
    "state that moves on": (broken(vector={"get_state": views_of_state}), "changed the state"),
    "copy=False that copies": (
        broken(vector={"step": vector_step_with(lambda env, actions, o: (o[0].copy(), *o[1:]))}),
        "copy=False",
    ),
    "copy=True that does not": (
        broken(vector={"_new_outputs": lambda self: vars(self).setdefault("kept", KernelVectorEnv._new_outputs(self))}),
        "copy=True",
    ),
    "environments that share state": (broken(env={"__init__": sharing_rows}), "share"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_the_suite_finds_what_is_broken(name):
    env_class, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        check_market(env_class, num_steps=10, horizon=10.0)


def test_the_suite_refuses_what_is_not_a_market():
    for market in ("CartPole-v1", "mmgym/NoSuchMarket-v0", int, 3):
        with pytest.raises(AssertionError):
            check_market(market)


# --- What the suite finds in broken baselines ------------------------------------------------------------------------

SMALL = {"fill_rate": 10.0, "fill_decay": 1.5, "volatility": 1.0, "running_penalty": 0.2, "inventory_limit": 3.0}
SMALL |= {"horizon": 1.0, "num_steps": 6}


def method(name, change):
    """A method of the problem whose result goes through ``change(problem, arguments, result)``."""
    original = getattr(GLFTProblem, name)
    return {name: lambda self, *arguments: change(self, arguments, original(self, *arguments))}


def constant_improve(problem, arguments, result):
    """Consistent values of a policy that is not optimal."""
    n, values = arguments[:2]
    depths = np.full((problem.num_states, 2), 0.5)
    states = np.arange(problem.num_states)
    return depths, problem.backward(n, states, depths, values, problem.criterion)


def other_market(problem, params):
    GLFT_INIT(problem, params._replace(fill_rate_bid=params.fill_rate_bid * 1.1))


GLFT_INIT = GLFTProblem.__init__

BROKEN_BASELINES = {
    "values that are not those of the controls": (
        method("improve", lambda problem, arguments, answer: (answer[0] + 0.1, answer[1])),
        "exact value of the optimal",
    ),
    "an optimum that is not one": (method("improve", constant_improve), "above the optimum"),
    "observations": (
        method("observations", lambda problem, arguments, answer: np.nextafter(answer, np.float32(2))),
        "bit for bit",
    ),
    "forward law": (method("forward", lambda problem, arguments, answer: answer * 1.000001), "misses the sum 1"),
    "forward law shifted": (method("forward", lambda problem, arguments, answer: np.roll(answer, 1)), "forward"),
    "another market": ({"__init__": other_market}, "p-value"),
}


@pytest.mark.parametrize("name", list(BROKEN_BASELINES))
def test_the_suite_finds_broken_baselines(name, monkeypatch, tmp_path):
    methods, message = BROKEN_BASELINES[name]
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))  # a broken solution that took long is kept on disk
    baseline_for.cache_clear()
    for attribute, function in methods.items():
        monkeypatch.setattr(GLFTProblem, attribute, function)
    try:
        with pytest.raises(AssertionError, match=message):
            check_baseline("mmgym/GLFT-v0", **SMALL)
    finally:
        baseline_for.cache_clear()


def test_check_baseline_is_repeatable():
    first, second = (check_baseline("mmgym/GLFT-v0", episodes=200, **SMALL) for _ in range(2))
    assert first == second


def test_version():
    assert mmgym.__version__
