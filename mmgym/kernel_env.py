"""The Gymnasium face of a kernel market: batches of rows, seeding, autoreset, info, state and rendering.

`KernelVectorEnv` steps a batch of independent rows; `KernelEnv` is a batch of one. A market adds a subclass of each,
with its spaces and its docstring, by way of a common base that derives from `MarketFace`.

Seeding: row ``i`` of a batch seeded ``s`` owns a random stream that depends on ``s + i`` alone, and plays bit for bit
what a single environment seeded ``s + i`` plays over successive resets without a seed.
"""

import functools
import inspect
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mmgym.arguments import check_memory, choice, integer
from mmgym.batch_kernels import advance_rows, prepare_rows, step_row, step_rows
from mmgym.market import Market
from mmgym.parameters import argument_names, arguments_section, create
from mmgym.rendering import EpisodeHistory
from mmgym.rows import Rows, row_reader
from mmgym.variation import ParametersOfRows, Values, Variation, laws_of, refuse_rows, rows_of

__all__ = ["KernelEnv", "KernelVectorEnv", "MarketFace"]

RENDERED = 4  # rows of a batch, at most
_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)  # ready-made: cheaper per array than the types

_SHARED_ARGUMENTS = (
    '- `randomise` (None): laws of arguments that are drawn anew at every reset, by name: `{"volatility": ["uniform",',
    "  1.0, 3.0]}`; see `mmgym.variation`.",
    "- `observe_parameters` (False): whether observations end in the arguments that differ, scaled from their ranges",
    "  to [-1, 1].",
    '- `render_mode` (None): "ansi", "rgb_array", or, of a single environment, "human": a window of matplotlib.',
    '- vector environment only: `num_envs`, `threads` (1), `autoreset_mode` ("NextStep"), `copy` (True), `parameters`',
    '  (None: arguments of which each row has its own, as `{"volatility": [one value a row]}`); `info` is empty there',
    '  unless "full".',
)

_GIVEN_ONCE = (
    *("params", "arguments", "parameters", "info", "randomise", "observe_parameters", "render_mode"),
    *("num_envs", "threads", "autoreset_mode", "copy"),
)
Array = NDArray[Any]


class MarketFace:
    """What the single and the vector environment of a market share: its parameters and public maps.

    A market's subclass sets `market`, `step_entries` and `control_names` and defines the info entries; spaces and maps
    are those of the market. In the docstring of a subclass the line ``[parameters]`` stands for the bullets of the
    market's parameters and of the arguments that all environments have, but for `info`.
    """

    market: ClassVar[Market]
    step_entries: ClassVar[tuple[str, ...]] = ()  # info entries that belong to the step, not to the time after it
    counts_steps: ClassVar[bool] = True  # whether `to_state` begins with the number of decisions so far, else time left
    real_coordinates: ClassVar[int] = 0  # how many of the last coordinates of `to_state` are no integers
    control_names: ClassVar[tuple[str, ...]] = ()  # of the columns of `to_quotes`
    merged_actions: ClassVar[tuple[int, ...]] = ()  # columns of an action of which several stand for the same quote
    file_arguments: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # that take the path of a file, or one of these words
    params: Any
    arguments: dict[str, Any]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        market: Market | None = getattr(cls, "market", None)
        if market is None:
            return
        if cls.__doc__ and "[parameters]" in cls.__doc__:
            lines = "\n".join([*arguments_section(market.params_type), *_SHARED_ARGUMENTS])
            cls.__doc__ = re.sub(
                r"^( *)\[parameters\]$", lambda match: textwrap.indent(lines, match[1]), cls.__doc__, flags=re.M
            )
        for name, source in (("to_quotes", "to_quotes"), ("from_quotes", "from_quotes"), ("to_state", "locate")):
            method, function = getattr(MarketFace, name), getattr(market, source)
            if function is not None and inspect.unwrap(getattr(cls, name)) is method:
                setattr(cls, name, _documented(method, function.__doc__))

    def _take_arguments(
        self, arguments: dict[str, Any], randomise: Any, observe_parameters: Any, rows: list[Values] | None = None
    ) -> None:
        """Keep the market's constructor arguments and the parameters that they make."""
        self.arguments, self.variation = dict(arguments), None
        observed = choice("observe_parameters", observe_parameters, (False, True))
        if randomise is not None and rows is not None:
            raise TypeError(
                "randomise and parameters are not allowed together: values by row are for good; give one of the two"
            )
        if observed and randomise is None and rows is None:
            raise ValueError("observe_parameters = True needs arguments that differ: give randomise or parameters")
        if randomise is None and rows is None:
            self.params = create(self.market.params_type, arguments)
            self.check_parameters()
            return
        self.arguments |= {"observe_parameters": True} if observed else {}
        self.arguments |= {} if randomise is None else {"randomise": randomise}
        laws = () if randomise is None else laws_of(randomise)
        batch = getattr(self, "vector_class", type(self))
        self.variation = variation = Variation(
            self.market.params_type, arguments, laws, rows or (), observed, functools.partial(batch, **self.arguments)
        )
        self.params = variation.params(variation.middle())
        self._require_alike(variation)

    def _require_alike(self, variation: Variation) -> None:
        """Refuse arguments that change more than numbers when they differ: states, spaces or the meaning of actions."""
        middle = self.params
        actions = self.single_spaces()[1]
        if isinstance(actions, gymnasium.spaces.Box):
            probes: list[Array] = [actions.low, actions.high]
        else:
            probes = [self.resting_action(), actions.sample()]
        whole = [name for name in self.market.state.names or () if self.market.state[name].kind in "iu"]

        def shape() -> tuple[Any, ...]:
            ranges = self.market.ranges(self.params)
            return *self.single_spaces(), {name: ranges[name] for name in whole if name in ranges}

        expected, quotes = shape(), [self.to_quotes(probe) for probe in probes]
        for name, values in variation.examples():
            self.params = variation.params(values)
            self.check_parameters()
            same = [np.allclose(self.to_quotes(p), q, 1e-9, 0.0, True) for p, q in zip(probes, quotes, strict=True)]
            if shape() != expected or not all(same):
                what = "the quotes that actions stand for" if shape() == expected else "the states or the spaces"
                raise ValueError(
                    f"{name} cannot differ by row or episode: it changes {what} ({values} against {variation.middle()})"
                )
        for values in variation.corners() if variation.laws else ():
            self.params = variation.params(values)
            self.check_parameters()
        self.params = middle

    def check_parameters(self) -> None:
        """Refuse parameters that the table of parameters does not: by default none."""

    @property
    def one_params(self) -> Any:
        """Parameters of the first row: for what is the same in all rows."""
        return self.params.rows[0] if isinstance(self.params, ParametersOfRows) else self.params

    def _spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """`single_spaces`, with the values that differ where they are observed."""
        observations, actions = self.single_spaces()
        width = self.variation.width if self.variation else 0
        if not width:
            return observations, actions
        assert isinstance(observations, gymnasium.spaces.Box)
        ends = np.ones(width, np.float32)
        low, high = np.concatenate([observations.low, -ends]), np.concatenate([observations.high, ends])
        return gymnasium.spaces.Box(low, high), actions

    def without_values(self, observations: Any) -> Array:
        """Observations without the values that differ, where they are observed."""
        width = self.variation.width if self.variation else 0
        return np.asarray(observations)[..., : np.shape(observations)[-1] - width]

    @property
    def parameters(self) -> dict[str, Any]:
        """Arguments that differ by episode or row, and their values now: numbers, or arrays over rows."""
        rows: Rows = self.__dict__["_rows"]
        if self.variation is None:
            return {}
        if not isinstance(self.params, ParametersOfRows):
            return dict(rows.values[0])
        columns = self.variation.columns(rows.values)
        return {name: column[:, 0] if column.shape[1] == 1 else column for name, column in columns.items()}

    def arguments_of_row(self, row: int = 0) -> dict[str, Any]:
        """Constructor arguments of an environment with the parameters that a row has now, and its action box."""
        if self.variation is None:
            return dict(self.arguments)
        rows: Rows = self.__dict__["_rows"]
        return {**self.variation.fixed, **rows.values[row]}

    def _of_market(self, function: str, method: str) -> Callable[..., Any]:
        """A function of the market that an environment's method calls."""
        kernel: Callable[..., Any] | None = getattr(self.market, function)
        if kernel is None:
            raise TypeError(f"{type(self).__name__} must define {method}()")
        return kernel

    def single_spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Observation and action space of one environment."""
        low = np.array(self._of_market("observation_low", "single_spaces")(self.one_params), np.float32)
        observations = gymnasium.spaces.Box(low, np.ones(len(low), np.float32))
        return observations, gymnasium.spaces.Box(-1.0, 1.0, (len(self.control_names),), np.float32)

    def to_quotes(self, actions: Any) -> NDArray[np.float64]:
        """Quotes in model units that actions stand for."""
        played = np.clip(actions, -1.0, 1.0).astype(np.float32)
        quotes: Array = self._of_market("to_quotes", "to_quotes")(self.one_params, played)
        return quotes

    def from_quotes(self, quotes: Any) -> Array:
        """Actions that stand for quotes in model units."""
        actions: Array = self._of_market("from_quotes", "from_quotes")(self.one_params, quotes)
        return actions

    def to_state(self, observations: Any) -> tuple[Array, ...]:
        """Coordinates of observations: step (or time left) first, integer ones recovered exactly."""
        coordinates: tuple[Array, ...] = self._of_market("locate", "to_state")(
            self.params, self.without_values(observations)
        )
        return coordinates

    def time_of(self, observation: Any) -> float:
        """Time since the start of the episode at an observation."""
        first = self.to_state(observation)[0]
        if not self.counts_steps:
            return float(self.params.horizon) - float(first)
        return int(first) * float(self.params.step_length)

    def encode_actions(self, actions: Array) -> Array:
        """Actions of the action space (checked type and shape) as the kernel takes them: as they are by default."""
        return actions

    def resting_action(self) -> Array:
        """An action that can be played in any state without a thought: zeros by default."""
        space = self.single_spaces()[1]
        return np.zeros(space.shape or (), dtype=space.dtype)

    def measurements(self) -> dict[str, tuple[Callable[[], None], int]]:
        """What ``mmgym throughput`` times of this market alone: label -> a function, and how many steps it makes."""
        return {}

    def _given_parameters(
        self, options: Mapping[str, Any] | None, others: tuple[str, ...], count: int | None
    ) -> list[Values] | None:
        """Values of the reset option ``parameters`` for each of ``count`` rows (None: a single environment).

        Options of other names are refused.
        """
        randomised = self.variation if self.variation is not None and self.variation.laws else None
        allowed = (*others, "parameters") if randomised else others
        unknown = sorted(set(options or {}) - set(allowed))
        if unknown:
            only = f"allowed are {', '.join(allowed)}" if allowed else "this environment has none"
            hint = " (parameters needs an environment with randomise)" if "parameters" in unknown else ""
            raise ValueError(f"reset options {unknown} are not allowed: {only}{hint}")
        if randomised is None or not options or "parameters" not in options:
            return None
        given = options["parameters"]
        return [randomised.checked(row) for row in ([given] if count is None else rows_of(given, count))]

    def require_started(self, what: str) -> None:
        """Refuse what needs a first reset."""
        rows: Rows = self.__dict__["_rows"]
        if not rows.started:
            raise ResetNeeded(f"{what} before reset(): call reset() first")

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries from the state columns and the controls of the last step: numbers, or arrays over rows."""
        raise TypeError(f"{type(self).__name__} must define describe()")


def _documented(method: Callable[..., Any], doc: str | None) -> Callable[..., Any]:
    """A method with another docstring."""

    @functools.wraps(method)
    def documented(self: Any, values: Any) -> Any:
        return method(self, values)

    documented.__doc__ = doc
    return documented


def _as_actions(actions: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Actions as a contiguous array of the kernel's type and shape; finite values survive the cast."""
    given = np.asarray(actions)
    allowed = f"{'numbers' if dtype.kind == 'f' else 'integers'} of shape {shape}"
    kinds = "fiu" if dtype.kind == "f" else "iu"
    if given.dtype.kind not in kinds:
        raise ValueError(f"actions of type {given.dtype} are not allowed: they must be {allowed}")
    if given.shape != shape:
        raise ValueError(f"actions of shape {given.shape} are not allowed: they must be {allowed}")
    if given.dtype != dtype and dtype.kind == "f":
        bound = np.finfo(dtype).max
        given = np.where(np.isfinite(given), np.clip(given, -bound, bound), given)
    return np.asarray(given, dtype=dtype, order="C")  # keeps a scalar a scalar


class KernelEnv(MarketFace, gymnasium.Env[Any, Any]):
    """A single environment: a batch of one row.

    Parameters
    ----------
    info : None or "full"
        With "full", `info` has every entry that the market knows; otherwise the usual ones.
    render_mode : None, "ansi", "rgb_array" or "human"
        "ansi" is one line of text, "rgb_array" a picture of the episode so far (needs matplotlib), "human" shows it in
        a window at every reset and step (needs an interactive backend of matplotlib).
    randomise : mapping, optional
        Laws of arguments that are drawn at every reset from the environment's random stream, by name (see
        `mmgym.variation`). `info` has the values as ``parameters``, and `params` are those of the episode.
    observe_parameters : bool
        Whether observations end in those values, scaled from their ranges to [-1, 1].
    **arguments
        The market's own arguments.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 10}  # noqa: RUF012
    vector_class: ClassVar[type["KernelVectorEnv"]]

    def make_batch(self, num_envs: int, **options: Any) -> "KernelVectorEnv":
        """A batch of environments with this one's arguments; ``options`` are those of the vector environment only."""
        return self.vector_class(num_envs, **self.arguments, **options)

    def __init__(
        self,
        *,
        info: str | None = None,
        render_mode: str | None = None,
        randomise: Mapping[str, Any] | None = None,
        observe_parameters: bool = False,
        **arguments: Any,
    ) -> None:
        for name in ("num_envs", "threads", "autoreset_mode", "copy", "parameters"):
            if name in arguments:
                raise TypeError(f"{name!r} is an argument of the vector environment only: use gymnasium.make_vec")
        self._take_arguments(arguments, randomise, observe_parameters)
        self._full_info = choice("info", info, (None, "full")) == "full"
        self.render_mode = choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.observation_space, self.action_space = self._spaces()
        self._action_shape = tuple(self.action_space.shape or ())
        self._action_dtype = np.dtype(self.action_space.dtype)
        self._rows = Rows(self.market, self.params, self.variation, 1)
        self._width = self._rows.entries.shape[1]
        self._unpack = row_reader(self.market.row_dtype)
        self._observation_shape = tuple(self.observation_space.shape or ())
        self._closed = False
        self._history = EpisodeHistory() if self.render_mode else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; with a seed, also restart the random stream.

        Parameters
        ----------
        seed : int, optional
        options : dict, optional
            ``parameters``: where parameters are randomised, values for this episode in the place of drawn ones.

        Raises
        ------
        ValueError
            If another option is given, or a value is out of the range of its law.
        """
        if self._closed:
            raise ClosedEnvironmentError("reset() after close(): make a new environment")
        given = self._given_parameters(options, (), None)
        super().reset(seed=seed)
        mask = np.ones(1, dtype=np.bool_)
        self._rows.seed([seed], mask)
        observation = self._observe(mask, given)
        self._rows.controls[:] = np.nan
        if self._history is not None:
            self._history.start(self.params, self._entries(True))
            self._show()
        return observation, self._entries(self._full_info)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play one decision step.

        Raises
        ------
        ValueError
            If the action has the wrong shape or type or is not finite. The environment has then not moved.
        gymnasium.error.ResetNeeded
            Before the first reset and after the end of the episode.
        """
        if type(action) is not np.ndarray or action.shape != self._action_shape or action.dtype != self._action_dtype:
            action = _as_actions(action, self._action_shape, self._action_dtype)
        if self._closed or not self._rows.started:
            self._refuse_step(action)
        observation = np.empty(self._observation_shape, np.float32)
        status, reward = step_row(*self._rows.arrays, self.encode_actions(action), observation)
        if status < 0:
            self._refuse_step(action)
        if self._width:
            observation[-self._width :] = self._rows.entries[0]
        if self._history is not None:
            self._history.add(self._entries(True), reward)
            self._show()
        return observation, reward, bool(status), False, self._entries(self._full_info)

    def _refuse_step(self, action: Array) -> None:
        if self._closed:
            raise ClosedEnvironmentError("step() after close(): make a new environment")
        if not self._rows.started:
            raise ResetNeeded("step() before reset(): call reset() first")
        if self._rows.state["needs_reset"][0]:
            raise ResetNeeded("step() past the end of the episode: call reset() first")
        raise ValueError(f"action {action} is not allowed: it must be finite and within {self.action_space}")

    def _observe(self, reset_mask: Array, given: list[Values] | None = None) -> Array:
        observations = np.empty((1, *self._observation_shape), np.float32)
        self._rows.reset(reset_mask, observations, given)
        if self.variation is not None:
            self.params = self._rows.params.rows[0]
        observation: Array = observations[0]
        return observation

    def _entries(self, full: bool) -> dict[str, Any]:
        row = self.market.row_type._make(self._unpack(self._rows.state.data))
        controls: list[float] = self._rows.controls[0].tolist() if full else []
        entries = self.describe(row, controls, full)
        return entries if self.variation is None else {**entries, "parameters": self.parameters}

    def _show(self) -> None:
        if self._history is not None and self.render_mode == "human":
            self._history.show(1.0 / self.metadata["render_fps"])

    def render(self) -> Any:
        """The episode so far, as text ("ansi") or as an RGB array of shape (height, width, 3), uint8.

        None with "human", which shows every step by itself.
        """
        if self._history is None:
            gymnasium.logger.warn("render() needs render_mode='ansi' or 'rgb_array' at construction")
            return None
        if not self._rows.started:
            raise ResetNeeded("render() before reset(): call reset() first")
        if self.render_mode == "human":
            return None
        return self._history.text() if self.render_mode == "ansi" else self._history.picture()

    def close(self) -> None:
        """End the environment: no step or reset is possible afterwards."""
        self._closed = True
        if self._history is not None:
            self._history.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpack": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unpack = row_reader(self.market.row_dtype)

    def get_state(self) -> dict[str, Any]:
        """The complete state, as a flat dict of arrays (one row each), ints and the market's name."""
        return self._rows.get_state(np.array([0]))

    def set_state(self, state: Mapping[str, Any]) -> Array:
        """Restore a state from `get_state`, of this or a vector environment (one row); returns the observation.

        Raises
        ------
        ValueError
            If the state is of another market, of other parameters or of another number of rows, or a number in it is
            outside of what the market declares for it.
        """
        self._rows.set_state(state, np.array([0]))
        observation = self._observe(np.zeros(1, dtype=np.bool_))
        if self._history is not None:
            self._history.start(self.params, self._entries(True), self.time_of(observation))
        return observation


class KernelVectorEnv(MarketFace, gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A batch of independent environments, stepped by one kernel call.

    Parameters
    ----------
    num_envs : int
        Number of rows, from 1 to 100,000,000.
    threads : int
        Number of threads that share a step, from 1 to 1024; the results do not depend on it.
    autoreset_mode : gymnasium.vector.AutoresetMode or its value
        "NextStep" (default), "SameStep" or "Disabled".
    copy : bool
        False returns the same arrays at every step instead of new ones.
    info : None or "full"
        With "full", `info` has every entry that the market knows, as arrays; otherwise it is empty.
    randomise, observe_parameters
        As in `KernelEnv`; each row draws from its own stream. Then `params` has arrays over the rows.
    parameters : mapping, optional
        Arguments of which each row has its own value for good: name -> list or array of ``num_envs`` values.
    **arguments
        The market's own arguments.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 10,
    }

    def make_batch(self, num_envs: int, **options: Any) -> "KernelVectorEnv":
        """Another batch with this one's arguments."""
        return type(self)(num_envs, **self.arguments, **options)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        threads: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        info: str | None = None,
        render_mode: str | None = None,
        randomise: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        observe_parameters: bool = False,
        **arguments: Any,
    ) -> None:
        self.num_envs = integer("num_envs", num_envs, low=1, high=100_000_000)
        refuse_rows(self.market.params_type, arguments, self.num_envs)
        rows = None if parameters is None else rows_of(parameters, self.num_envs)
        self._take_arguments(arguments, randomise, observe_parameters, rows)
        self.arguments |= {} if parameters is None else {"parameters": parameters}
        self.threads = min(integer("threads", threads, low=1, high=1024), self.num_envs)
        modes = {mode.value: mode for mode in AutoresetMode}
        mode = autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        self.autoreset_mode = modes[choice("autoreset_mode", mode, tuple(modes))]
        self._copy: bool = choice("copy", copy, (True, False))
        self._full_info = choice("info", info, (None, "full")) == "full"
        self.render_mode = choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self._histories = [EpisodeHistory() for _ in range(min(self.num_envs, RENDERED) if self.render_mode else 0)]
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = self._spaces()
        entries = sum(
            math.prod(space.shape or ()) for space in (self.single_observation_space, self.single_action_space)
        )
        row = self.market.row_dtype.itemsize + 8 * sum(self.market.lengths(self.params))
        check_memory(self.num_envs * (row + 12.0 * entries), f"{self.num_envs:,} environments", "num_envs")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._action_shape = (self.num_envs, *(self.single_action_space.shape or ()))
        self._action_dtype = np.dtype(self.single_action_space.dtype)
        self._observation_shape = (self.num_envs, *(self.single_observation_space.shape or ()))
        self._rows = Rows(self.market, self.params, self.variation, self.num_envs)
        self.params = self._rows.params
        self._autoreset = self.autoreset_mode is AutoresetMode.NEXT_STEP
        self._draws = self._autoreset and self._rows.randomised
        self._same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        self._kept = None if self._copy else self._new_outputs()
        bounds = np.linspace(0, self.num_envs, self.threads + 1).astype(int)
        self._parts = [slice(low, high) for low, high in pairwise(bounds)]
        self._part_arrays = self._share_arrays()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0

    def _share_arrays(self) -> list[tuple[Array, ...]]:
        """Each thread's share of the rows, as views."""
        return [tuple(array[part] for array in self._rows.arrays[1:]) for part in self._parts]

    def _new_outputs(self) -> tuple[Array, Array, Array, Array]:
        count = self.num_envs
        return (
            np.empty(self._observation_shape, _FLOAT32),
            np.empty(count),
            np.empty(count, _BOOL),
            np.zeros(count, _BOOL),
        )

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every row, or in the rows of ``options["reset_mask"]``.

        Parameters
        ----------
        seed : int, list of (int or None), or None
            ``seed + i`` for row ``i``, or one seed a row. Only the rows that are reset are reseeded; a row without a
            seed goes on with its stream.
        options : dict, optional
            ``reset_mask``: bool array of shape ``(num_envs,)``. ``parameters``: where parameters are randomised, a
            mapping of names to arrays of ``num_envs`` values, which take the place of drawn ones for this episode.

        Raises
        ------
        ValueError
            For an unknown option, a mask of another shape or type or without a True, a wrong number of seeds, or
            parameters out of the range of their law.
        """
        if self.closed:
            raise ClosedEnvironmentError("reset() after close(): make a new environment")
        given = self._given_parameters(options, ("reset_mask",), self.num_envs)
        mask = self._reset_mask(options)
        if seed is not None:
            seeds = self._seeds(seed)
            super().reset(seed=seed if isinstance(seed, int) else None)
            self._rows.seed(seeds, mask)
        elif not self._rows.seeded:
            self._rows.seed([None] * self.num_envs, mask)
        observations = self._new_outputs()[0] if self._kept is None else self._kept[0]
        self._rows.reset(mask, observations, given)
        self._rows.controls[mask] = np.nan
        self._note(mask, None)
        return observations, self._info() or ({"parameters": self.parameters} if self.variation else {})

    def _seeds(self, seed: Any) -> list[int | None]:
        def acceptable(value: Any) -> bool:
            return bool(isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0)

        if acceptable(seed):
            return [int(seed) + i for i in range(self.num_envs)]
        if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str):
            raise ValueError(f"seed = {seed!r} is not allowed: it must be a whole number >= 0, or a list of seeds")
        if len(seed) != self.num_envs or not all(value is None or acceptable(value) for value in seed):
            raise ValueError(f"a list of seeds must have {self.num_envs} entries, each a whole number >= 0 or None")
        return [None if value is None else int(value) for value in seed]

    def _reset_mask(self, options: dict[str, Any] | None) -> Array:
        if not options or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = np.asarray(options["reset_mask"])
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"reset_mask of type {mask.dtype} and shape {mask.shape} is not allowed: it must be a bool array of "
                f"shape ({self.num_envs},) with at least one True"
            )
        if not self._rows.started and not mask.all():
            raise ResetNeeded("the first reset must be of every row: a reset_mask can leave out rows later")
        return mask

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Play one decision step in every row.

        Parameters
        ----------
        actions : array of shape ``(num_envs, ...)``
            Finite values outside the action box are clipped to it.

        Raises
        ------
        ValueError
            If the actions have the wrong shape or type, or a row is not finite (the message names the row). No row has
            then moved, and the batch can be stepped again.
        gymnasium.error.ResetNeeded
            Before the first reset and, without autoreset, when a row is past the end of its episode.
        """
        if (
            type(actions) is not np.ndarray
            or actions.dtype != self._action_dtype
            or actions.shape != self._action_shape
            or not actions.flags.c_contiguous
        ):
            actions = _as_actions(actions, self._action_shape, self._action_dtype)
        rows = self._rows
        if self.closed or not rows.started:
            self._refuse_step()
        outputs = self._new_outputs() if self._kept is None else self._kept
        encoded = self.encode_actions(actions)
        if self.threads == 1 and not self._draws:
            code = step_rows(*rows.arrays, encoded, *outputs[:3], self._autoreset)
        else:
            code = self._step_in_parts(encoded, outputs)
        if code < 0:
            self._refuse_row(-1 - code, actions)
        rows.observe_values(outputs[0])
        if self._histories:
            started = np.isnan(rows.controls[: len(self._histories)]).all(axis=1)
            self._note(np.atleast_1d(started), outputs[1])
        if code and self._same_step:
            return *outputs, self._restart(outputs[0], outputs[2])
        return *outputs, self._info() if self._full_info else {}

    def _step_in_parts(self, actions: Array, outputs: tuple[Array, ...]) -> int:
        """`step_rows` with the rows shared among threads: all rows are checked before any moves.

        Between the two, rows that start an episode draw their parameters.
        """
        if self.threads > 1 and (self._pool is None or self._pool_process != os.getpid()):
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="mmgym")
            self._pool_process = os.getpid()  # threads do not survive a fork
        pool, rows, parts = self._pool, self._rows, self._parts

        def share(task: Callable[[int], int]) -> list[int]:
            others = [pool.submit(task, i) for i in range(1, len(parts))] if pool else []
            return [task(0), *(other.result() for other in others)]

        def prepare(i: int) -> int:
            return int(prepare_rows(rows.arrays[0], *self._part_arrays[i], actions[parts[i]], self._autoreset))

        def advance(i: int) -> int:
            own = (output[parts[i]] for output in outputs[:3])
            return int(advance_rows(rows.arrays[0], *self._part_arrays[i], *own))

        for part, row in zip(parts, share(prepare), strict=True):
            if row >= 0:
                return -1 - (int(part.start) + row)
        if self._draws:
            starting = self._rows.state["needs_reset"] != 0
            if starting.any():
                self._rows.draw(starting)
        return sum(share(advance))

    def _restart(self, observations: Array, terminated: Array) -> dict[str, Any]:
        """Same-step autoreset: keep the final observations and infos, and start new episodes."""
        final_observations = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(terminated):
            final_observations[row] = observations[row].copy()
        info: dict[str, Any] = {"final_obs": final_observations, "_final_obs": terminated.copy()}
        final_info = self._info()
        self._rows.reset(terminated, observations)
        self._rows.controls[terminated] = np.nan
        self._note(terminated, None)
        info["final_info"] = {**final_info, **{f"_{name}": terminated.copy() for name in final_info}}
        info["_final_info"] = terminated.copy()
        return {**info, **self._info()}

    def _refuse_step(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("step() after close(): make a new environment")
        raise ResetNeeded("step() before reset(): call reset() first")

    def _refuse_row(self, row: int, actions: Array) -> None:
        if not self._autoreset and self._rows.state["needs_reset"][row]:
            raise ResetNeeded(f"row {row} is past the end of its episode: reset it, with a reset_mask")
        raise ValueError(
            f"action {actions[row]} of row {row} is not allowed: it must be finite, within {self.single_action_space}"
        )

    def _info(self) -> dict[str, Any]:
        if not self._full_info:
            return {}
        state = self._rows.state
        columns = self.market.row_type._make(state[name].copy() for name in state.dtype.names or ())
        entries = self.describe(columns, list(self._rows.controls.T.copy()), True)
        return entries if self.variation is None else {**entries, "parameters": self.parameters}

    def _note(self, started: Array, rewards: Array | None, observations: Array | None = None) -> None:
        """Keep what is rendered of the first rows: the start of an episode, or a state to go on from; or a step."""
        for row, history in enumerate(self._histories):
            if rewards is None and not started[row]:
                continue
            state = self._rows.state[row : row + 1]
            columns = self.market.row_type._make(state[name].copy() for name in state.dtype.names or ())
            whole = self.describe(columns, list(self._rows.controls[row : row + 1].T.copy()), True)
            entries = {name: values[0] for name, values in whole.items()}
            if started[row]:
                params = self.params if self.variation is None else self.params.rows[row]
                history.start(params, entries, 0.0 if observations is None else self.time_of(observations[row]))
            else:
                assert rewards is not None
                history.add(entries, float(rewards[row]))

    def render(self) -> tuple[Any, ...] | None:
        """The episodes of the first rows (at most `RENDERED`) so far: a text ("ansi") or an RGB array of each.

        Those of the other rows are empty, one for all, as Gymnasium's ``RecordVideo`` wants one of each row; of a large
        batch give it ``record_first_only=True``.
        """
        if not self._histories:
            gymnasium.logger.warn("render() needs render_mode='ansi' or 'rgb_array' at construction")
            return None
        if not self._rows.started:
            raise ResetNeeded("render() before reset(): call reset() first")
        shown = [each.text() if self.render_mode == "ansi" else each.picture() for each in self._histories]
        empty = "" if self.render_mode == "ansi" else np.full_like(shown[0], 255)
        return (*shown, *[empty] * (self.num_envs - len(shown)))

    def call(self, name: str, *arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        """What the batch's method returns, or its attribute, for each row, as Gymnasium's vector environments give it.

        The method is called once. An array whose length is the number of rows is handed out by rows, and so is what
        `render` gives; everything else is the same for all rows.
        """
        member = getattr(self, name)
        if callable(member):
            member = member(*arguments, **keywords)
        if name == "render":
            return member or (None,) * self.num_envs
        by_row = isinstance(member, np.ndarray) and member.ndim > 0 and len(member) == self.num_envs
        return tuple(member) if by_row else (member,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute for each row, as `call` gives it."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of the batch: one value, or a list or tuple of equal ones.

        Raises
        ------
        ValueError
            If the values differ: the rows are one batch; if the attribute is an argument of the constructor, which
            would have no effect; or if the number of values is not that of the rows.
        """
        arguments = argument_names(self.market.params_type)
        if name in (*arguments, *_GIVEN_ONCE):
            raise ValueError(
                f"{name!r} cannot be set: it is given when the batch is made; parameters that differ by row are "
                "make_vec(..., parameters=...), by episode randomise=... and reset(options={'parameters': ...})"
            )
        given = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(given) != self.num_envs:
            raise ValueError(f"{len(given)} values of {name!r} are not allowed: there are {self.num_envs} rows")
        if any(value is not given[0] and not np.array_equal(value, given[0]) for value in given):
            raise ValueError(f"{name!r} can be set for all rows only: they are one batch")
        setattr(self, name, given[0])

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        if self._pool is not None and self._pool_process == os.getpid():
            self._pool.shutdown()
        self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_part_arrays": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._part_arrays = self._share_arrays()  # views of this copy's rows

    def get_state(self, rows: Any = None) -> dict[str, Any]:
        """The complete state of all rows, or of the rows with these indices, as a flat dict of arrays and ints."""
        return self._rows.get_state(self._row_indices(rows))

    def set_state(self, state: Mapping[str, Any], rows: Any = None) -> Array:
        """Restore a state from `get_state`, of this or another environment, into all rows or into ``rows``.

        Returns
        -------
        array of shape ``(num_envs, ...)``
            Observations of all rows.

        Raises
        ------
        ValueError
            If the state is of another market, of other parameters or of another number of rows, or a number in it is
            outside of what the market declares for it.
        """
        chosen = self._row_indices(rows)
        if not self._rows.started and len(chosen) < self.num_envs:
            raise ResetNeeded("set_state() of some rows before reset(): call reset() first")
        self._rows.set_state(state, chosen)
        observations = self._new_outputs()[0]
        self._rows.reset(np.zeros(self.num_envs, dtype=np.bool_), observations)
        self._note(np.isin(np.arange(self.num_envs), chosen), None, observations)
        return observations

    def _row_indices(self, rows: Any) -> Array:
        everything = np.arange(self.num_envs)
        if rows is None:
            return everything
        try:
            chosen = everything[np.atleast_1d(np.asarray(rows))]
        except IndexError as error:
            raise ValueError(
                f"rows = {rows!r} is not allowed: indices must be from 0 to {self.num_envs - 1}"
            ) from error
        return np.atleast_1d(chosen)
