"""The loops over the rows of a batch, written once for all markets.

Inside them `reset_one`, `controls_one`, `step_one` and `observe_one` stand for the functions of a market: numba looks
them up by the type of the parameter record when it compiles a loop, and inlines them. With `NUMBA_DISABLE_JIT=1` the
same loops and functions run as plain Python, for a debugger.

``params[which[i]]`` are the parameters of row ``i``: one record for all rows, or several. Of a market whose rows share
large arrays (`mmgym.market.Shared`), ``params`` is a pair: the records and, by their ``place``, those arrays, one of
which `step_one` and `observe_one` take last.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.extending import intrinsic, overload

from mmgym import random_streams
from mmgym.compiling import COMPILED, KERNEL
from mmgym.vector_exp import fast_exp

__all__ = [
    "advance_rows",
    "draw_rows",
    "market_function",
    "markets",
    "prepare_rows",
    "register",
    "reset_rows",
    "start_rows",
    "step_row",
    "step_rows",
]

AHEAD = np.uint64(4)  # rows, between asking for parameters and using them
LINE, MOST_LINES = 64, 20  # bytes of a cache line; lines of a record that are asked for


_markets: dict[Any, Any] = {}  # numba type of the parameter record -> market


def register(record_type: Any, market: Any) -> None:
    """Make a market's functions known for its type of parameter record."""
    _markets[record_type] = market


def markets() -> list[Any]:
    """The registered markets, the latest first."""
    return list(reversed(_markets.values()))


@functools.cache
def _market_of(dtype: Any) -> Any:
    return _markets[from_dtype(dtype)]


def market_function(name: str, part: Callable[[Any], Any] = lambda market: market) -> Callable[..., Any]:
    """What kernels call as the function of that name of the market, or a part of it, to which a record belongs."""

    def play(p, *rest):  # without a compiler
        return getattr(part(_market_of(p.dtype)), name)(p, *rest)

    @overload(play, jit_options={"forceinline": True, "error_model": "numpy"}, strict=False)
    def compiled(p, *rest):
        market = _markets.get(p)
        if market is None:
            return None
        function = getattr(part(market), name)
        return lambda p, *rest: function(p, *rest)

    return play


def _loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled loop; without a compiler, a loop whose numbers overflow and divide by zero in silence as well."""
    return njit(**KERNEL)(function) if COMPILED else np.errstate(all="ignore")(function)


@intrinsic
def _prefetch(typing_context, address):
    """Ask for the cache line at an address; nothing waits for it."""

    def generate(context, builder, signature, arguments):
        place, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place, word, word, word])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", (place,), kind)
        numbers = [ir.Constant(word, number) for number in (0, 3, 1)]  # for reading, into all caches, data
        builder.call(prefetch, [builder.inttoptr(arguments[0], place), *numbers])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


def _prefetch_parameters(params, which, row):
    """Ask for the parameters of a row that is stepped soon, where rows have their own: a third faster at 4,096 rows."""


@overload(_prefetch_parameters, jit_options={"forceinline": True}, strict=False)
def _compiled_prefetch(params, which, row):
    if isinstance(params, types.BaseTuple):
        return lambda params, which, row: _prefetch_parameters(params[0], which, row)
    size = params.dtype.size
    lines = min(-(-size // LINE), MOST_LINES)

    def ask(params, which, row):
        if params.shape[0] > 1 and row < which.shape[0]:
            start = params.ctypes.data + which[row] * size
            for line in range(lines):
                _prefetch(np.uintp(start + LINE * line))

    return ask


def _record(params, place):
    """The record at a place."""
    return params[0][place] if isinstance(params, tuple) else params[place]


@overload(_record, jit_options={"forceinline": True}, strict=False)
def _compiled_record(params, place):
    if isinstance(params, types.BaseTuple):
        return lambda params, place: params[0][place]
    return lambda params, place: params[place]


def _play(params, p, s, controls, intensities):
    """A step of a row, with what it shares."""
    if isinstance(params, tuple):
        return step_one(p, s, controls, intensities, params[1][p.place])
    return step_one(p, s, controls, intensities)


@overload(_play, jit_options={"forceinline": True, "error_model": "numpy"}, strict=False)
def _compiled_play(params, p, s, controls, intensities):
    if isinstance(params, types.BaseTuple):
        return lambda params, p, s, controls, intensities: step_one(p, s, controls, intensities, params[1][p.place])
    return lambda params, p, s, controls, intensities: step_one(p, s, controls, intensities)


def _observe(params, p, s, observation):
    """Observe a row, with what it shares."""
    if isinstance(params, tuple):
        observe_one(p, s, observation, params[1][p.place])
    else:
        observe_one(p, s, observation)


@overload(_observe, jit_options={"forceinline": True, "error_model": "numpy"}, strict=False)
def _compiled_observe(params, p, s, observation):
    if isinstance(params, types.BaseTuple):
        return lambda params, p, s, observation: observe_one(p, s, observation, params[1][p.place])
    return lambda params, p, s, observation: observe_one(p, s, observation)


reset_one = market_function("reset_one")
controls_one = market_function("controls_one")
step_one = market_function("step_one")
observe_one = market_function("observe_one")


@_loop
def prepare_rows(params, which, state, controls, intensities, actions, autoreset):
    """Controls and intensities of every row's action; the first row that cannot be stepped, or -1. No state changes.

    A row with ``needs_reset`` can be stepped only with ``autoreset``.
    """
    for i in range(np.uint64(state.shape[0])):
        p = _record(params, which[i])
        acceptable = controls_one(p, actions[i], controls[i], intensities[i])
        if not acceptable or (state[i].needs_reset != 0 and not autoreset):
            return np.int64(i)
    flat = intensities.reshape(-1)
    for j in range(flat.shape[0]):
        flat[j] = fast_exp(flat[j])
    return -1


@_loop
def advance_rows(params, which, state, controls, intensities, observations, rewards, terminated):
    """Step every row with its prepared controls, or start its next episode; the number of rows that terminated."""
    finished = 0
    for i in range(np.uint64(state.shape[0])):
        _prefetch_parameters(params, which, i + AHEAD)
        p, s = _record(params, which[i]), state[i]
        if s.needs_reset != 0:
            reset_one(p, s)
            controls[i, :] = np.nan  # the action was not played
            s.needs_reset = 0
            rewards[i] = 0.0
            terminated[i] = False
        else:
            reward, done = _play(params, p, s, controls[i], intensities[i])
            rewards[i] = reward
            terminated[i] = done
            s.needs_reset = done
            finished += done
        _observe(params, p, s, observations[i])
    return finished


@_loop
def step_rows(params, which, state, controls, intensities, actions, observations, rewards, terminated, autoreset):
    """`prepare_rows`, then `advance_rows`: rows that terminated, or ``-1 - row`` for a row that cannot be stepped."""
    row = prepare_rows(params, which, state, controls, intensities, actions, autoreset)
    if row >= 0:
        return -1 - row
    return advance_rows(params, which, state, controls, intensities, observations, rewards, terminated)


@_loop
def step_row(params, which, state, controls, intensities, action, observation):
    """Step a batch of one: (status, reward), status -1 if it cannot be stepped, 1 if it terminated, else 0."""
    p, s = _record(params, which[0]), state[0]
    if s.needs_reset != 0 or not controls_one(p, action, controls[0], intensities[0]):
        return -1, 0.0
    for j in range(intensities.shape[1]):
        intensities[0, j] = fast_exp(intensities[0, j])
    reward, done = _play(params, p, s, controls[0], intensities[0])
    s.needs_reset = done
    _observe(params, p, s, observation)
    return np.int64(done), reward


@_loop
def reset_rows(params, which, state, mask, observations):
    """Start a new episode in the rows of ``mask`` and observe every row."""
    for i in range(np.uint64(state.shape[0])):
        p, s = _record(params, which[i]), state[i]
        if mask[i]:
            reset_one(p, s)
            s.needs_reset = 0
        _observe(params, p, s, observations[i])


@_loop
def draw_rows(state, mask, numbers):
    """Uniform numbers in [0, 1) from the streams of the rows of ``mask``, into their rows of ``numbers``."""
    for i in range(np.uint64(state.shape[0])):
        if mask[i]:
            s0, s1 = state[i].s0, state[i].s1
            for j in range(numbers.shape[1]):
                numbers[i, j], s0, s1 = random_streams.uniform(s0, s1)
            state[i].s0 = s0
            state[i].s1 = s1


@_loop
def start_rows(state, mask, seeds):
    """Start the streams of the rows of ``mask`` from 64-bit seeds."""
    for i in range(np.uint64(state.shape[0])):
        if mask[i]:
            s0, s1 = random_streams.start_stream(seeds[i])
            state[i].s0 = s0
            state[i].s1 = s1
