"""What a market gives the engine, and the batch kernels that the engine makes of it.

A `Market` names the parameters, the state columns and four scalar functions of a model file. The batch loops below
are written once: inside them the functions are looked up by the type of the parameter record, at compile time, and
inlined. The record carries a hash of the model's source, so that the on-disk cache of compiled kernels never serves a
market whose source has changed.
"""

import functools
import hashlib
import inspect
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
from numba import from_dtype, njit
from numba.extending import overload

from mmgym import random_streams, vector_exp
from mmgym.vector_exp import fast_exp

__all__ = ["Market", "advance_rows", "prepare_rows", "reset_rows", "scalar_kernel", "start_rows", "step_row", "step_rows"]

scalar_kernel = njit(**random_streams.SCALAR)

_MARKETS: dict[Any, "Market"] = {}  # numba record type of the parameters -> market

# Columns that the engine adds to every market's state.
ENGINE_COLUMNS = [("s0", "u8"), ("s1", "u8"), ("needs_reset", "i4")]


@dataclass(frozen=True)
class Market:
    """A market's mathematics, as the engine needs it.

    Attributes
    ----------
    name : str
        The one word that names the market on every floor.
    params_type : type
        NamedTuple of float, int, bool and ``Literal`` fields. A ``Literal`` is its index in kernels.
    state : numpy.dtype
        Columns of one row of state. The engine adds the stream ``s0, s1`` and ``needs_reset``.
    derived : tuple of str
        Properties of the parameters that kernels read like fields.
    num_controls, num_intensities : int
        Lengths of the rows that ``controls_one`` fills.
    reset_one : function ``(p, s)``
        Starts an episode in the state row ``s``.
    controls_one : function ``(p, action, controls, log_intensities) -> bool``
        Turns an action into controls in model units and into logarithms of intensities, which the engine
        exponentiates for the whole batch at once; False if the action is not acceptable. It changes no state.
    step_one : function ``(p, s, controls, intensities) -> (reward, terminated)``
        One exact step; it takes the stream from ``s.s0, s.s1`` and puts it back.
    observe_one : function ``(p, s, observation)``
        Writes the float32 observation.
    """

    name: str
    params_type: Any
    state: np.dtype[Any]
    num_controls: int
    num_intensities: int
    reset_one: Callable[..., Any]
    controls_one: Callable[..., Any]
    step_one: Callable[..., Any]
    observe_one: Callable[..., Any]
    derived: tuple[str, ...] = ()
    row_type: Any = field(init=False)
    record_dtype: np.dtype[Any] = field(init=False)
    row_dtype: np.dtype[Any] = field(init=False)

    def __post_init__(self) -> None:
        hints = get_type_hints(self.params_type)
        fields = [(name, _kernel_type(hints[name])) for name in self.params_type._fields]
        for name in self.derived:
            fields.append((name, _kernel_type(get_type_hints(getattr(self.params_type, name).fget)["return"])))
        fields.append((f"{self.name}_{self._source_hash()}", "u1"))
        object.__setattr__(self, "record_dtype", np.dtype(fields))
        columns = ENGINE_COLUMNS[:2] + list(self.state.descr) + ENGINE_COLUMNS[2:]
        object.__setattr__(self, "row_dtype", np.dtype(columns, align=True))
        object.__setattr__(self, "row_type", namedtuple(f"{self.name}_row", self.row_dtype.names))  # noqa: PYI024
        _MARKETS[from_dtype(self.record_dtype)] = self

    def _source_hash(self) -> str:
        sources = [inspect.getfile(module) for module in (sys.modules[__name__], random_streams, vector_exp)]
        sources.append(inspect.getfile(self.params_type))
        digest = hashlib.sha256()
        for source in sources:
            digest.update(Path(source).read_bytes())
        return digest.hexdigest()[:16]

    def record(self, params: NamedTuple) -> np.ndarray[Any, Any]:
        """The parameters as kernels take them: a structured array of length 1."""
        hints = get_type_hints(self.params_type)
        values = [_kernel_value(hints[name], value) for name, value in params._asdict().items()]
        values += [getattr(params, name) for name in self.derived]
        return np.array([(*values, 0)], dtype=self.record_dtype)

    def digest(self, params: NamedTuple) -> int:
        """A 63-bit number that tells parameters of this market apart."""
        text = f"{self.name}{params._asdict()!r}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _kernel_type(hint: Any) -> str:
    if hint is float:
        return "f8"
    if hint in (int, bool) or get_origin(hint) is Literal:
        return "i8"
    raise TypeError(f"a kernel parameter of type {hint!r} is not supported: use float, int, bool or Literal")


def _kernel_value(hint: Any, value: Any) -> Any:
    return get_args(hint).index(value) if get_origin(hint) is Literal else value


# Stand-ins that the batch loops call; numba puts the functions of the record's market in their place.


def reset_one(p, s):  # type: ignore[no-untyped-def]
    raise TypeError("only for use in kernels")


def controls_one(p, action, controls, log_intensities):  # type: ignore[no-untyped-def]
    raise TypeError("only for use in kernels")


def step_one(p, s, controls, intensities):  # type: ignore[no-untyped-def]
    raise TypeError("only for use in kernels")


def observe_one(p, s, observation):  # type: ignore[no-untyped-def]
    raise TypeError("only for use in kernels")


def _resolve(stand_in: Callable[..., Any]) -> None:
    @overload(stand_in, jit_options={"forceinline": True, "error_model": "numpy"}, strict=False)
    @functools.wraps(stand_in)
    def find(p, *rest):  # type: ignore[no-untyped-def]
        market = _MARKETS.get(p)
        if market is None:
            return None
        function = getattr(market, stand_in.__name__)
        return lambda p, *rest: function(p, *rest)


for _stand_in in (reset_one, controls_one, step_one, observe_one):
    _resolve(_stand_in)


@njit(cache=True, error_model="numpy", nogil=True)
def prepare_rows(params, state, controls, intensities, actions, autoreset):  # type: ignore[no-untyped-def]
    """Controls and intensities of every row's action; the first row that cannot be stepped, or -1. No state changes.

    A row with ``needs_reset`` can be stepped only with ``autoreset``.
    """
    p = params[0]
    for i in range(np.uint64(state.shape[0])):
        acceptable = controls_one(p, actions[i], controls[i], intensities[i])
        if not acceptable or (state[i].needs_reset != 0 and not autoreset):
            return np.int64(i)
    flat = intensities.reshape(-1)
    for j in range(flat.shape[0]):
        flat[j] = fast_exp(flat[j])
    return -1


@njit(cache=True, error_model="numpy", nogil=True)
def advance_rows(params, state, controls, intensities, observations, rewards, terminated):  # type: ignore[no-untyped-def]
    """Step every row with its prepared controls, or start its next episode; the number of rows that terminated."""
    p = params[0]
    finished = 0
    for i in range(np.uint64(state.shape[0])):
        s = state[i]
        if s.needs_reset != 0:
            reset_one(p, s)
            controls[i, :] = np.nan  # the action was not played
            s.needs_reset = 0
            rewards[i] = 0.0
            terminated[i] = False
        else:
            reward, done = step_one(p, s, controls[i], intensities[i])
            rewards[i] = reward
            terminated[i] = done
            s.needs_reset = done
            finished += done
        observe_one(p, s, observations[i])
    return finished


@njit(cache=True, error_model="numpy", nogil=True)
def step_rows(params, state, controls, intensities, actions, observations, rewards, terminated, autoreset):  # type: ignore[no-untyped-def]
    """`prepare_rows`, then `advance_rows`: rows that terminated, or ``-1 - row`` for a row that cannot be stepped."""
    row = prepare_rows(params, state, controls, intensities, actions, autoreset)
    if row >= 0:
        return -1 - row
    return advance_rows(params, state, controls, intensities, observations, rewards, terminated)


@njit(cache=True, error_model="numpy", nogil=True)
def step_row(params, state, controls, intensities, action, observation):  # type: ignore[no-untyped-def]
    """Step a batch of one: (status, reward), status -1 if it cannot be stepped, 1 if it terminated, else 0."""
    p, s = params[0], state[0]
    if s.needs_reset != 0 or not controls_one(p, action, controls[0], intensities[0]):
        return -1, 0.0
    for j in range(intensities.shape[1]):
        intensities[0, j] = fast_exp(intensities[0, j])
    reward, done = step_one(p, s, controls[0], intensities[0])
    s.needs_reset = done
    observe_one(p, s, observation)
    return np.int64(done), reward


@njit(cache=True, error_model="numpy", nogil=True)
def reset_rows(params, state, mask, observations):  # type: ignore[no-untyped-def]
    """Start a new episode in the rows of ``mask`` and observe every row."""
    p = params[0]
    for i in range(np.uint64(state.shape[0])):
        s = state[i]
        if mask[i]:
            reset_one(p, s)
            s.needs_reset = 0
        observe_one(p, s, observations[i])


@njit(cache=True, error_model="numpy", nogil=True)
def start_rows(state, mask, seeds):  # type: ignore[no-untyped-def]
    """Start the streams of the rows of ``mask`` from 64-bit seeds."""
    for i in range(np.uint64(state.shape[0])):
        if mask[i]:
            s0, s1 = random_streams.start_stream(seeds[i])
            state[i].s0 = s0
            state[i].s1 = s1
