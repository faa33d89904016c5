"""A conformance suite for markets, this package's and your own.

`check_market` plays a market through every door that the engine promises to keep and raises an ``AssertionError`` that
names the first thing that is wrong. Run it in a test of each market that you write::

    from mmgym.checking import check_market

    def test_my_market():
        check_market(MyVectorEnv, num_steps=20)
"""

import copy
import inspect
import itertools
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv
from mmgym.parameters import argument_names

__all__ = ["check_market"]

Array = NDArray[Any]

SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
    "References",
)
SEED = 2**63 + 12345
EPISODES = 3  # compared in full, one after the other, without a seed in between
LONGEST = 100_000  # steps of an episode

# (rows, threads, autoreset mode, copy)
BATCHES = (
    (1, 1, AutoresetMode.NEXT_STEP, True),
    (4, 1, AutoresetMode.NEXT_STEP, False),
    (4, 1, AutoresetMode.SAME_STEP, True),
    (4, 1, AutoresetMode.DISABLED, True),
    (4, 2, AutoresetMode.NEXT_STEP, True),
    (4, 2, AutoresetMode.SAME_STEP, False),
    (4, 3, AutoresetMode.DISABLED, False),
)


def check_market(market: str | type[KernelEnv] | type[KernelVectorEnv], **arguments: Any) -> None:
    """Check that a market keeps the engine's promises.

    Checked are: spaces and observations; the sections of the docstring; finite rewards; ends by ``terminated`` alone;
    the equality, bit for bit, of row ``i`` of a batch seeded ``s`` with a single environment seeded ``s + i`` over
    successive episodes, for several batch sizes, numbers of threads and all autoreset modes; masked resets;
    ``to_quotes``, ``from_quotes`` and ``to_state``; ``get_state`` and ``set_state``, also between batches and single
    environments; refused actions; ``copy``; specifications; environments that must not influence each other.

    Parameters
    ----------
    market : str or class
        A registered id, or the single or the vector environment class of a market.
    **arguments
        The market's constructor arguments. Choose them such that episodes are short.

    Raises
    ------
    AssertionError
        If something is wrong; the message names it.
    """
    suite = _Suite.of(market, arguments)
    for check in (
        _check_docstring,
        _check_construction,
        _check_spaces,
        _check_episodes,
        _check_seeding,
        _check_quotes,
        _check_batches,
        _check_masked_resets,
        _check_order_of_calls,
        _check_refused_actions,
        _check_state,
        _check_copy,
        _check_independence,
        _check_pickling,
        _check_specification,
    ):
        check(suite)


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _equal(first: Any, second: Any) -> bool:
    """Equality bit for bit, but for the sign and payload of not-a-number."""
    if isinstance(first, float) and isinstance(second, float):  # the hot path; np.float64 is one
        return first == second or (first != first and second != second)
    first, second = np.asarray(first), np.asarray(second)
    inexact = first.dtype.kind == "f" and second.dtype.kind == "f"
    return first.shape == second.shape and bool(np.array_equal(first, second, equal_nan=inexact))


@dataclass
class _Episode:
    """What a single environment did in an episode of length L: L + 1 observations and infos, L actions and rewards."""

    observations: list[Array]
    infos: list[dict[str, Any]]
    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.rewards)


@dataclass
class _Suite:
    """A market under test: how to make its environments, and what single environments do from some seeds."""

    env_class: type[KernelEnv]
    make_single: Callable[..., Any]
    make_batch: Callable[..., Any]
    id: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    episodes_of: dict[int, list[_Episode]] = field(default_factory=dict)

    @classmethod
    def of(cls, market: Any, arguments: dict[str, Any]) -> "_Suite":
        if isinstance(market, str):

            def make_single(**options: Any) -> Any:
                return gymnasium.make(market, **arguments, **options).unwrapped

            def make_batch(count: int, **options: Any) -> Any:
                return gymnasium.make_vec(
                    market, count, vectorization_mode="vector_entry_point", **arguments, **options
                ).unwrapped

            _require(market in gymnasium.registry, f"{market!r} is not registered with Gymnasium")
            single, batch = make_single(), make_batch(1)
            _require(isinstance(single, KernelEnv), f"{market}: {type(single).__name__} is not a KernelEnv")
            _require(isinstance(batch, KernelVectorEnv), f"{market}: {type(batch).__name__} is not a KernelVectorEnv")
            return cls(type(single), make_single, make_batch, market, arguments)
        env_class = _single_class(market)
        return cls(
            env_class,
            lambda **options: env_class(**arguments, **options),
            lambda count, **options: env_class.vector_class(count, **arguments, **options),
            None,
            arguments,
        )

    def reference(self, seed: int) -> list[_Episode]:
        """Successive episodes of a single environment with this seed, played with random actions."""
        if seed not in self.episodes_of:
            self.episodes_of[seed] = _play_single(self.make_single(info="full"), seed)
        return self.episodes_of[seed]


def _single_class(market: Any) -> type[KernelEnv]:
    if isinstance(market, type) and issubclass(market, KernelEnv):
        _require(hasattr(market, "vector_class"), f"{market.__name__} has no vector_class")
        return market
    if isinstance(market, type) and issubclass(market, KernelVectorEnv):
        classes = [KernelEnv]
        for candidate in classes:
            classes += candidate.__subclasses__()
            if getattr(candidate, "vector_class", None) is market:
                return candidate
        raise AssertionError(f"no single environment class has vector_class = {market.__name__}")
    raise AssertionError(f"{market!r} is neither a registered id nor an environment class of the engine")


def _random_actions(space: gymnasium.Space[Any], seed: int, count: int) -> list[Array]:
    space = copy.deepcopy(space)
    space.seed(seed & 0xFFFFFFFF)
    return [np.asarray(space.sample()) for _ in range(count)]


def _play_single(env: Any, seed: int) -> list[_Episode]:
    source = copy.deepcopy(env.action_space)
    source.seed(seed & 0xFFFFFFFF)
    episodes = []
    for number in range(EPISODES):
        observation, info = env.reset(seed=seed) if number == 0 else env.reset()
        episode = _Episode([observation], [info])
        terminated = False
        while not terminated:
            _require(episode.length < LONGEST, f"an episode has not terminated after {LONGEST} steps")
            action = np.asarray(source.sample())
            observation, reward, terminated, truncated, info = env.step(action)
            _require(
                truncated is False, f"step() returned truncated = {truncated!r}: an episode ends by terminated alone"
            )
            _require(isinstance(terminated, bool), f"step() returned terminated = {terminated!r}: it must be a bool")
            _require(isinstance(reward, float), f"step() returned a reward of type {type(reward).__name__}, not float")
            _require(np.isfinite(reward), f"step() returned the reward {reward}, which is not finite")
            episode.actions.append(action)
            episode.rewards.append(reward)
            episode.observations.append(observation)
            episode.infos.append(info)
        episodes.append(episode)
    return episodes


# Checks, in the order in which they run -----------------------------------------------------------------------------


def _check_docstring(suite: _Suite) -> None:
    name, text = suite.env_class.__name__, inspect.cleandoc(suite.env_class.__doc__ or "")
    headings = re.findall(r"^## (.+?)\s*$", text, flags=re.MULTILINE)
    missing = [section for section in SECTIONS if section not in headings]
    _require(not missing, f"the docstring of {name} has no section {', '.join(f'## {section}' for section in missing)}")
    _require(headings == list(SECTIONS), f"the docstring of {name} has the sections {headings}, not {list(SECTIONS)}")
    listed = text.split("## Arguments")[1].split("\n## ")[0]
    known = argument_names(suite.env_class.market.params_type)
    unlisted = [argument for argument in (*known, "info", "render_mode") if f"`{argument}`" not in listed]
    _require(not unlisted, f"the section ## Arguments of {name} does not mention `{'`, `'.join(unlisted)}`")


def _check_construction(suite: _Suite) -> None:
    options: dict[str, Any] = {"num_envs": 2, "threads": 1, "autoreset_mode": "NextStep", "copy": True}
    for name, value in options.items():
        try:
            suite.env_class(**{**suite.arguments, name: value})
        except TypeError as error:
            _require(name in str(error), f"the error for the vector-only argument {name!r} does not name it: {error}")
        else:
            raise AssertionError(f"the single environment accepts {name!r}, an argument of the vector environment only")
    for count in ((), (2,)):
        try:
            (suite.make_batch if count else suite.make_single)(*count, no_such_argument=1)
        except TypeError as error:
            _require(
                "unexpected keyword argument 'no_such_argument'" in str(error),  # other libraries read this
                f"the error for an unknown argument does not say so: {error}",
            )
        else:
            raise AssertionError("an unknown argument was accepted")


def _check_spaces(suite: _Suite) -> None:
    single, batch = suite.make_single(), suite.make_batch(3)
    observations, actions = single.observation_space, single.action_space
    _require(
        isinstance(observations, gymnasium.spaces.Box)
        and observations.dtype == np.float32
        and observations.is_bounded(),
        f"the observation space {observations} is not a bounded float32 Box",
    )
    if isinstance(actions, gymnasium.spaces.Box):
        _require(
            actions.dtype == np.float32 and bool((actions.low == -1.0).all() and (actions.high == 1.0).all()),
            f"the action space {actions} is not a float32 Box from -1 to 1",
        )
    else:
        _require(
            isinstance(actions, gymnasium.spaces.MultiDiscrete | gymnasium.spaces.Discrete),
            f"the action space {actions} is neither a Box nor discrete",
        )
    for name, space in (("observation", observations), ("action", actions)):
        part = getattr(batch, f"single_{name}_space")
        _require(part == space, f"single_{name}_space of the batch is {part}, but the single environment has {space}")
        space_of_batch = getattr(batch, f"{name}_space")
        _require(space_of_batch == batch_space(space, 3), f"{name}_space of a batch of 3 is {space_of_batch}")
    for mode in AutoresetMode:
        declared = suite.make_batch(1, autoreset_mode=mode).metadata.get("autoreset_mode")
        _require(declared is mode, f"metadata['autoreset_mode'] of a batch with {mode} is {declared!r}")


def _check_episodes(suite: _Suite) -> None:
    space = suite.make_single().observation_space
    for episode in suite.reference(SEED):
        for step, observation in enumerate(episode.observations):
            _require(
                isinstance(observation, np.ndarray) and observation.dtype == space.dtype and observation in space,
                f"the observation {observation!r} of step {step} is not in {space}",
            )
        for step, info in enumerate(episode.infos):
            _require(isinstance(info, dict), f"info of step {step} is a {type(info).__name__}, not a dict")
            _require("episode" not in info, "info has the key 'episode', which belongs to Gymnasium's wrappers")
    batch = suite.make_batch(2)
    _, info = batch.reset(seed=SEED)
    _require(info == {}, f"reset() of a batch without info='full' returned the info {info}, not an empty one")
    observations, rewards, terminated, truncated, info = batch.step(batch.action_space.sample())
    _require(info == {}, f"step() of a batch without info='full' returned the info {info}, not an empty one")
    _require(observations in batch.observation_space, f"the observations {observations!r} are not in the batch's space")
    for name, array, dtype in (
        ("rewards", rewards, np.float64),
        ("terminated", terminated, np.bool_),
        ("truncated", truncated, np.bool_),
    ):
        _require(
            isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == (2,),
            f"{name} of a batch of 2 are {array!r}, not a {np.dtype(dtype)} array of shape (2,)",
        )


def _streams(env: Any, **options: Any) -> Array:
    env.reset(**options)
    return np.asarray(env.get_state()["streams"])


def _check_seeding(suite: _Suite) -> None:
    env, batch = suite.make_single(), suite.make_batch(3)
    for seed in (0, 1, 2**64 - 2):
        expected = [_streams(env, seed=(seed + i) % 2**64)[0] for i in range(3)]
        _require(
            _equal(_streams(batch, seed=seed), expected), f"row i of a batch seeded {seed} is not seeded {seed} + i"
        )
        streams = _streams(batch, seed=[seed, None, (seed + 2) % 2**64])
        _require(
            _equal(streams[[0, 2]], [expected[0], expected[2]]), "a list of seeds does not seed the rows that it names"
        )
    _require(not _equal(_streams(env, seed=0), _streams(env, seed=1)), "seeds 0 and 1 start the same stream")
    fresh = np.concatenate(
        [_streams(suite.make_single()), _streams(suite.make_single()), _streams(suite.make_batch(3))]
    )
    _require(len(np.unique(fresh[:, 0])) == len(fresh), "environments reset without a seed share a stream")


def _check_quotes(suite: _Suite) -> None:
    env = suite.make_single()
    actions = np.stack(_random_actions(env.action_space, 1, 2_000))
    if isinstance(env.action_space, gymnasium.spaces.Box):
        corners = list(itertools.product((-1.0, 0.0, 1.0), repeat=actions.shape[1]))[:81]
        actions = np.concatenate([actions, np.array(corners, dtype=np.float32)])
    quotes = env.to_quotes(actions)
    _require(
        isinstance(quotes, np.ndarray) and quotes.dtype == np.float64 and len(quotes) == len(actions),
        f"to_quotes() of {len(actions)} actions returned {type(quotes).__name__}, not a float64 array of as many rows",
    )
    _require(_equal(quotes, env.to_quotes(actions)), "to_quotes() of the same actions differs between two calls")
    _require(_equal(quotes, suite.make_batch(2).to_quotes(actions)), "to_quotes() differs between single and batch")
    _require(_equal(quotes[0], env.to_quotes(actions[0])), "to_quotes() of one action differs from that of a batch")
    back = np.asarray(env.from_quotes(quotes))
    _require(
        back.dtype == actions.dtype and back.shape == actions.shape,
        f"from_quotes() returned {back.dtype} of shape {back.shape}, not {actions.dtype} of shape {actions.shape}",
    )
    differ = back != actions
    if env.merged_actions:  # several actions stand for the same quote
        differ[:, list(env.merged_actions)] = (env.to_quotes(back) != quotes)[:, list(env.merged_actions)]
    wrong = np.flatnonzero(differ.reshape(len(back), -1).any(axis=1))
    _require(not len(wrong), f"from_quotes(to_quotes(a)) is {back[wrong[:1]]}, not a = {actions[wrong[:1]]}")
    _require(_equal(env.from_quotes(quotes[0]), back[0]), "from_quotes() of one quote differs from that of a batch")
    for episode in suite.reference(SEED):
        coordinates = env.to_state(np.stack(episode.observations))
        _check_coordinates(env, episode, coordinates)
        single = env.to_state(episode.observations[0])
        _require(
            [float(value) for value in single] == [float(coordinate[0]) for coordinate in coordinates],
            f"to_state() of one observation is {single}, but {[c[0] for c in coordinates]} as part of a batch",
        )


def _check_coordinates(env: Any, episode: _Episode, coordinates: Any) -> None:
    """What `to_state` recovers along an episode: the steps, or the time that is left at each."""
    for i, coordinate in enumerate(coordinates):
        real = not env.counts_steps or i >= len(coordinates) - env.real_coordinates
        kind = np.asarray(coordinate).dtype.kind
        _require(
            (kind == "i" or (kind == "f" and real)) and np.shape(coordinate) == (episode.length + 1,),
            f"to_state() of {episode.length + 1} observations returned {coordinate!r}, not as many integers",
        )
    if env.counts_steps:
        _require(
            _equal(coordinates[0], np.arange(episode.length + 1)),
            f"to_state() recovers the steps {coordinates[0]} of an episode, not 0, 1, ..., {episode.length}",
        )
        return
    elapsed = np.cumsum([0.0, *(info["elapsed"] for info in episode.infos[1:])])
    horizon, left = env.params.horizon, coordinates[0]
    _require(
        bool(np.abs(horizon - elapsed - left).max() <= 1e-6 * horizon and left[-1] == 0.0 and (left[:-1] > 0.0).all()),
        f"to_state() recovers the times left {left}, but {horizon - elapsed} are left after the steps of the episode",
    )


@dataclass
class _Cursor:
    """Where a row of a batch is in its reference episodes."""

    episodes: list[_Episode]
    episode: int = 0
    step: int = 0
    waiting: bool = False  # terminated, not restarted yet

    @property
    def finished(self) -> bool:
        return self.episode >= len(self.episodes)

    @property
    def current(self) -> _Episode:
        return self.episodes[min(self.episode, len(self.episodes) - 1)]

    @property
    def action(self) -> Array:
        return self.current.actions[min(self.step, self.current.length - 1)]

    def restart(self) -> None:
        self.episode, self.step, self.waiting = self.episode + 1, 0, False

    def check_start(self, observations: Array, info: Mapping[str, Any], row: int, where: str) -> None:
        if not self.finished:
            self._compare("observation", observations[row], self.current.observations[self.step], row, where)
            self._compare_info(info, row, where)

    def check_step(self, outputs: Any, row: int, where: str) -> None:
        observations, rewards, terminated, _, info = outputs
        self.step += 1
        self.waiting = self.step == self.current.length
        self._compare("reward", rewards[row], self.current.rewards[self.step - 1], row, where)
        self._compare("terminated", terminated[row], self.waiting, row, where)
        same_step = "final_obs" in info and info["_final_obs"][row]
        observation = info["final_obs"][row] if same_step else observations[row]
        self._compare("observation", observation, self.current.observations[self.step], row, where)
        self._compare_info(info["final_info"] if same_step else info, row, where)

    def _compare_info(self, info: Mapping[str, Any], row: int, where: str) -> None:
        for name, value in self.current.infos[self.step].items():
            _require(name in info, f"{where}: info has no {name!r}, which the single environment's has")
            self._compare(f"info[{name!r}]", info[name][row], value, row, where)

    def _compare(self, name: str, actual: Any, expected: Any, row: int, where: str) -> None:
        if not _equal(actual, expected):
            raise AssertionError(
                f"{where}: {name} of row {row} at step {self.step} of episode {self.episode} is {actual}, but a single "
                f"environment seeded alike has {expected}"
            )


def _check_batches(suite: _Suite) -> None:
    for count, threads, mode, kept in BATCHES:
        envs = suite.make_batch(count, threads=threads, autoreset_mode=mode, copy=kept, info="full")
        where = f"num_envs = {count}, threads = {threads}, autoreset_mode = {mode.value!r}, copy = {kept}"
        _compare_batch(suite, envs, mode, where)
        envs.close()
    alone, shared = (suite.make_batch(37, threads=threads) for threads in (1, 4))
    alone.reset(seed=SEED), shared.reset(seed=SEED)
    for actions in _random_actions(alone.action_space, 2, 20):
        for first, second in zip(alone.step(actions), shared.step(actions), strict=True):
            same = first == second if isinstance(first, dict) else _equal(first, second)
            _require(same, "a batch of 37 rows plays differently with 1 and with 4 threads")
    shared.close()


def _compare_batch(suite: _Suite, envs: Any, mode: AutoresetMode, where: str) -> None:
    cursors = [_Cursor(suite.reference(SEED + i)) for i in range(envs.num_envs)]
    observations, info = envs.reset(seed=SEED)
    for row, cursor in enumerate(cursors):
        cursor.check_start(observations, info, row, where)
    while not all(cursor.finished for cursor in cursors):
        outputs = envs.step(np.stack([cursor.action for cursor in cursors]))
        observations, rewards, terminated, truncated, info = outputs
        _require(not truncated.any(), f"{where}: a row was truncated")
        _require("episode" not in info, f"{where}: info has the key 'episode', which belongs to Gymnasium's wrappers")
        for row, cursor in enumerate(cursors):
            if cursor.waiting:
                _require(
                    mode is AutoresetMode.NEXT_STEP and rewards[row] == 0.0 and not terminated[row],
                    f"{where}: row {row} restarts with reward {rewards[row]} and terminated {terminated[row]}",
                )
                cursor.restart()
                cursor.check_start(observations, info, row, where)
            elif not cursor.finished:
                cursor.check_step(outputs, row, where)
                if cursor.waiting and mode is AutoresetMode.SAME_STEP:
                    cursor.restart()
                    cursor.check_start(observations, info, row, where)
        if mode is AutoresetMode.DISABLED and terminated.any():
            mask = terminated.copy()
            observations, info = envs.reset(options={"reset_mask": mask})
            for row in map(int, np.flatnonzero(mask)):
                cursors[row].restart()
                cursors[row].check_start(observations, info, row, where)


def _check_masked_resets(suite: _Suite) -> None:
    steps = min(3, min(suite.reference(SEED)[0].length, suite.reference(SEED + 1)[0].length))
    mask = np.array([True, False, True, False])
    for seed in (None, 77):
        envs, singles = suite.make_batch(4), [suite.make_single() for _ in range(4)]
        envs.reset(seed=SEED)
        for i, single in enumerate(singles):
            single.reset(seed=SEED + i)
        draws = _random_actions(envs.action_space, 3, 2 * steps)
        for part, actions in enumerate(draws):
            if part == steps - 1:
                before = envs.get_state()
                observations, _ = envs.reset(seed=seed, options={"reset_mask": mask})
                after = envs.get_state()
                for name in _columns(before):
                    _require(
                        _equal(before[name][~mask], after[name][~mask]),
                        f"a masked reset changed {name!r} of a row that is not in the mask",
                    )
                for i in map(int, np.flatnonzero(mask)):
                    expected, _ = singles[i].reset(seed=None if seed is None else seed + i)
                    _require(_equal(observations[i], expected), f"a masked reset started row {i} at {observations[i]}")
            observations, rewards, terminated, _, _ = envs.step(actions)
            for i, single in enumerate(singles):
                expected, reward, _, _, _ = single.step(actions[i])
                _require(
                    _equal(observations[i], expected) and rewards[i] == reward,
                    f"after a masked reset with seed {seed}, row {i} plays differently from a single environment",
                )
            if terminated.any():
                break


def _check_order_of_calls(suite: _Suite) -> None:
    single, batch = suite.make_single(), suite.make_batch(2, autoreset_mode="Disabled")
    for env in (single, batch):
        _expect_reset_needed(env, "before the first reset()")
    last = suite.reference(SEED)[0]
    single.reset(seed=SEED)
    for action in last.actions:
        single.step(action)
    _expect_reset_needed(single, "past the end of the episode")
    batch.reset(seed=SEED)
    batch.set_state(single.get_state(), rows=[1])
    before = batch.get_state()
    _expect_reset_needed(batch, "with a row past the end of its episode")
    _require_same_state(before, batch.get_state(), "a step refused for a row past its end")


def _expect_reset_needed(env: Any, where: str) -> None:
    try:
        env.step(env.action_space.sample())
    except ResetNeeded:
        return
    raise AssertionError(f"step() of {type(env).__name__} {where} did not raise gymnasium.error.ResetNeeded")


def _columns(state: Mapping[str, Any]) -> list[str]:
    return [name for name, value in state.items() if isinstance(value, np.ndarray)]


def _require_same_state(before: Mapping[str, Any], after: Mapping[str, Any], what: str) -> None:
    changed = [name for name in before if not _equal(before[name], after[name])]
    _require(list(before) == list(after) and not changed, f"{what} changed the state: {', '.join(changed)}")


def _check_refused_actions(suite: _Suite) -> None:
    for threads in (1, 2):
        envs, untouched = suite.make_batch(3, threads=threads), suite.make_batch(3)
        envs.reset(seed=SEED), untouched.reset(seed=SEED)
        for actions in _random_actions(envs.action_space, 4, 2):
            before = envs.get_state()
            refused = actions.astype(np.float64)
            refused[2] = np.nan
            _expect_value_error(envs, refused, "row 2" if actions.dtype.kind == "f" else "")
            if actions.dtype.kind == "i":
                for outside in (-1, 1_000_000):
                    refused = actions.copy()
                    refused[2] = outside
                    _expect_value_error(envs, refused, "row 2")
            _expect_value_error(envs, actions[:2], "shape")
            _require_same_state(before, envs.get_state(), "a refused batch of actions")
            for first, second in zip(envs.step(actions)[:4], untouched.step(actions)[:4], strict=True):
                _require(_equal(first, second), "a batch plays differently after it has refused actions")
        envs.close()
    env, untouched = suite.make_single(), suite.make_single()
    env.reset(seed=SEED), untouched.reset(seed=SEED)
    action = _random_actions(env.action_space, 5, 1)[0]
    before = env.get_state()
    _expect_value_error(env, np.full(action.shape, np.nan), "")
    _expect_value_error(env, np.stack([action, action]), "shape")
    _require_same_state(before, env.get_state(), "a refused action")
    _require(
        _equal(env.step(action)[0], untouched.step(action)[0]),
        "an environment plays differently after a refused action",
    )


def _expect_value_error(env: Any, actions: Array, named: str) -> None:
    try:
        env.step(actions)
    except ValueError as error:
        _require(named in str(error), f"the error for refused actions does not name the {named}: {error}")
        return
    raise AssertionError(f"step() of {type(env).__name__} accepted the actions {actions}")


def _continuation(envs: Any, rows: list[int], actions: list[Array]) -> list[list[Array]]:
    """What rows of a batch do with actions of shape (len(rows), ...)."""
    played, outputs = np.stack([actions[0][0]] * envs.num_envs), []
    for chosen in actions:
        played[rows] = chosen
        outputs.append([np.array(array[rows]) for array in envs.step(played)[:4]])
    return outputs


def _check_state(suite: _Suite) -> None:
    lengths = [suite.reference(SEED + i)[0].length for i in range(4)]
    envs = suite.make_batch(4)
    observations, _ = envs.reset(seed=SEED)
    for actions in _random_actions(envs.action_space, 6, min(2, min(lengths) - 1)):
        observations = envs.step(actions)[0]
    state = envs.get_state()
    for name, value in state.items():
        _require(
            isinstance(value, int | str) or (isinstance(value, np.ndarray) and len(value) == 4),
            f"get_state() of 4 rows has {name!r} of type {type(value).__name__}: it must be an int, a str or 4 rows",
        )
    kept = copy.deepcopy(state)
    space = suite.make_single().action_space
    later = [np.stack(_random_actions(space, 7 + n, 4)) for n in range(max(lengths) + 3)]  # past the end of the episode
    expected = _continuation(envs, [0, 1, 2, 3], later)
    _require_same_state(kept, state, "a step after get_state()")
    _require(
        _equal(envs.set_state(state), observations), "set_state() returned other observations than those of the state"
    )
    _require_same_state(state, envs.get_state(), "set_state()")
    _require_continued(envs, [0, 1, 2, 3], later, expected, [0, 1, 2, 3], "the same batch")
    _check_moved_rows(suite, envs, state, observations, later, expected)
    for wrong in (
        {**state, "market": "another"},
        {**state, "parameters": 1},
        {**state, "streams": state["streams"][:2]},
    ):
        try:
            envs.set_state(wrong)
        except ValueError:
            continue
        raise AssertionError(
            "set_state() accepted the state of another market, other parameters or another number of rows"
        )


def _require_continued(
    envs: Any, rows: list[int], later: list[Array], expected: list[list[Array]], original: list[int], what: str
) -> None:
    """Rows of a batch play on as those that their states were taken from did."""
    actions = [step[original] for step in later]
    for step, (first, second) in enumerate(zip(_continuation(envs, rows, actions), expected, strict=False)):
        for one, other in zip(first, second, strict=True):
            _require(_equal(one, other[original]), f"{what}: step {step} after set_state() differs from the original's")


def _check_moved_rows(
    suite: _Suite, envs: Any, state: Any, observations: Array, later: list[Array], expected: list[list[Array]]
) -> None:
    """Rows play on in another batch, in a single environment and back in a batch."""
    other = suite.make_batch(3, threads=2)
    other.reset(seed=1)
    before = other.get_state(rows=[1])
    envs.set_state(state)
    restored = other.set_state(envs.get_state(rows=[3, 0]), rows=[2, 0])
    _require(_equal(restored[[2, 0]], observations[[3, 0]]), "set_state(rows=...) returned other observations")
    _require_same_state(before, other.get_state(rows=[1]), "set_state() of other rows")
    _require_continued(other, [2, 0], later, expected, [3, 0], "rows moved to another batch")
    other.close()

    single = suite.make_single()
    restored = single.set_state(envs.get_state(rows=[1]))
    _require(_equal(restored, observations[1]), "set_state() of a single environment returned another observation")
    moved = single.get_state()
    for step, actions in enumerate(later):
        observation, reward, terminated, _, _ = single.step(actions[1])
        one = [observation, reward, terminated]
        _require(
            all(_equal(value, array[1]) for value, array in zip(one, expected[step], strict=False)),
            f"a row moved to a single environment: step {step} differs from the original's",
        )
        if terminated:
            break
    back = suite.make_batch(2)
    back.reset(seed=2)
    back.set_state(moved, rows=[1])
    _require_continued(back, [1], later, expected, [1], "a single environment moved to a batch")


def _check_copy(suite: _Suite) -> None:
    reused, fresh = suite.make_batch(2, copy=False), suite.make_batch(2)
    start = reused.reset(seed=SEED)[0]
    fresh.reset(seed=SEED)
    first_actions, second_actions = _random_actions(reused.action_space, 8, 2)
    first = reused.step(first_actions)[:4]
    _require(first[0] is start, "copy=False: step() returns another observation array than reset()")
    second = reused.step(second_actions)[:4]
    _require(all(a is b for a, b in zip(first, second, strict=True)), "copy=False: step() returns new arrays")
    first = fresh.step(first_actions)[:4]
    kept = [array.copy() for array in first]
    second = fresh.step(second_actions)[:4]
    _require(
        not any(np.shares_memory(a, b) for a, b in zip(first, second, strict=True)),
        "copy=True: two steps return arrays that share memory",
    )
    _require(all(map(_equal, first, kept)), "copy=True: a step changed the arrays that the step before had returned")


def _check_independence(suite: _Suite) -> None:
    """Environments that take turns play as each does alone."""
    envs = [suite.make_single() for _ in range(3)]
    episodes = [suite.reference(SEED + i)[0] for i in range(3)]
    for i, env in enumerate(envs):
        env.reset(seed=SEED + i)
    for step in range(max(episode.length for episode in episodes)):
        for env, episode in zip(envs, episodes, strict=True):
            if step < episode.length:
                observation, reward, _, _, _ = env.step(episode.actions[step])
                _require(
                    _equal(observation, episode.observations[step + 1]) and reward == episode.rewards[step],
                    "environments that take turns play differently from one alone: they share state",
                )


def _check_pickling(suite: _Suite) -> None:
    for env in (suite.make_single(), suite.make_batch(3)):
        env.reset(seed=SEED)
        again = pickle.loads(pickle.dumps(env))
        action = _random_actions(env.action_space, 9, 1)[0]
        _require(
            _equal(env.step(action)[0], again.step(action)[0]), f"a pickled {type(env).__name__} plays differently"
        )


def _check_specification(suite: _Suite) -> None:
    if suite.id is None:
        return
    spec = gymnasium.make(suite.id, **suite.arguments).spec
    vector_spec = suite.make_batch(2).spec
    if spec is None or vector_spec is None:
        raise AssertionError("an environment made by Gymnasium has no spec")
    _require(
        spec.max_episode_steps is None, f"{suite.id} is registered with max_episode_steps: the market ends episodes"
    )
    episode = suite.reference(SEED)[0]
    for copied in (pickle.loads(pickle.dumps(spec)), type(spec).from_json(spec.to_json())):
        env = gymnasium.make(copied)
        observation, _ = env.reset(seed=SEED)
        _require(
            _equal(observation, episode.observations[0]), "an environment made of a copied spec starts differently"
        )
        observation, reward, _, _, _ = env.step(episode.actions[0])
        _require(
            _equal(observation, episode.observations[1]) and reward == episode.rewards[0],
            "an environment made of a copied spec plays differently",
        )
    again = gymnasium.make_vec(pickle.loads(pickle.dumps(vector_spec)))
    _require(again.num_envs == 2, f"a copied vector spec makes {again.num_envs} rows, not 2")
