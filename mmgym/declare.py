r"""A market from one statement: coordinates, controls and events of a controlled Markov chain with price noise on top.

The author states a `Market`; simulation, spaces, maps, the exact one-step law (`mmgym.baselines.declared`), optimum,
scores and gradients are derived from it. Between decisions the controls ``u`` are frozen, and in the state ``x``

    event e happens at the intensity lambda_e(p, x, u), moves x to its effect and pays its payoff,
    the gain grows by (income(p, x, u) + position(p, x) drift(p, x)) dt + position(p, x) sqrt(variance(p, x)) dW,
    the penalty grows by running_penalty(p, x, u) dt;

at a decision, before time runs, an impulse may move ``x`` and pay; at the end liquidation and a terminal penalty are
taken off. Where coordinates tell the price, ``mid(p, x)``, what moves them revalues the position after it. "mean"
maximises the expectation of gain minus penalties; with an aversion ``gamma`` it is their certainty equivalent ``-ln
E[exp(-gamma (gain - penalties))] / gamma``.

All functions are scalar functions whose parameters are named ``p`` (the parameters), ``x`` (``x.step`` and the
coordinates) and ``u`` (the controls), as many of them as they need: an intensity of ``p`` and ``u`` alone is computed
once a step. They may use `math` and each other; where they are differentiated in continuous controls, `exp` of this
module, `math` and ``min``, ``max``, ``abs`` are all right.
"""

import functools
import hashlib
import inspect
import linecache
import math
import re
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, get_type_hints

import gymnasium
import numpy as np
from numba import njit
from numba.core.errors import TypingError
from numpy.typing import NDArray

from mmgym import declared_kernels, market
from mmgym.arguments import check_memory
from mmgym.compiling import kernel_rows
from mmgym.declared_kernels import exp
from mmgym.dual_numbers import dual, slope_of
from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace

__all__ = ["Box", "Choice", "Coordinate", "Event", "Impulse", "Market", "exp"]
Function = Callable[..., Any]
Array = NDArray[Any]

MOST_STATES = 5_000_000
MOST_WIDTH = 4_000_000  # of a coordinate's range: a float32 observation tells so many values apart
MOST_STARTS = 64
MOST_MARKS = 64
COUNTS = {None: 0, "bid": 1, "ask": 2, "order": 3}
PARAMETERS = ("p", "x", "u")
COLUMNS = (
    ("gain", "f8"),  # payoffs and income since the reset, without price noise
    ("price_gain", "f8"),  # int q sqrt(v) dW
    ("penalty", "f8"),  # running and terminal
    ("price_square", "f8"),  # int q^2 v dt
    ("mid", "f8"),
    ("position", "f8"),  # q, assets
    ("start_position", "f8"),
    ("step", "i4"),
    ("bid_fills", "i4"),  # in the last step
    ("ask_fills", "i4"),
    ("market_orders", "i4"),
    ("masked_actions", "i4"),  # since the reset
)
CHECKED_POINTS = 5  # per box control, at which intensities are checked in every state
MOST_CHECKED = 256  # combinations of controls that are checked
AT_ONCE = 2_000_000  # numbers of one kind that a check works out before it looks at them


def _of(params: Any, value: Any) -> Any:
    """A number, or what a function makes of the parameters."""
    return value(params) if callable(value) else value


@dataclass(frozen=True)
class Coordinate:
    """A whole number that events move, from ``low`` to ``high`` (numbers, or functions of the parameters).

    Where it is not ``observed`` (False, or a function of the parameters that says so) observations leave it out; all
    else stays, `info` too. What is observed then takes it to be `Market.guess`.
    """

    name: str
    low: int | Function
    high: int | Function
    unit: float | Function = 1.0  # model units of one, for what is shown
    observed: bool | Function = True


@dataclass(frozen=True)
class Box:
    """A continuous control from ``low`` to ``high`` (numbers, or functions of the parameters).

    ``unit`` is a length on which the criterion bends, such as 1 / fill_decay: an eighth of the box by default.
    """

    name: str
    low: float | Function
    high: float | Function
    unit: float | Function | None = None


@dataclass(frozen=True)
class Choice:
    """A whole number from ``low`` to ``high`` that is decided on; ``allowed(p, x, entry)`` masks some of them.

    A masked entry is played as the nearest allowed one, of two the lower. Where all controls are choices actions are
    `MultiDiscrete`; beside a `Box` a choice is a column of the action box, cut into as many equal parts as it has
    entries.
    """

    name: str
    low: int | Function
    high: int | Function
    allowed: Function | None = None


@dataclass(frozen=True)
class Event:
    """What happens at an intensity while ``when`` is true.

    Attributes
    ----------
    name : str
    intensity : function of p, x, u
        1 / time, finite and >= 0.
    effect : function of p, x
        The coordinates after it, within their ranges: a tuple, or a number where there is one coordinate.
    payoff : function of p, x, u, optional
        What it pays.
    when : function of p, x, optional
        Whether it can happen.
    counts : {None, "bid", "ask", "order"}
        What it is counted as: a fill of a bid or an ask, or a market order.
    marks : int
        How many kinds of it there are, such as sizes or jumps of a signal: when it happens, ``mark`` is drawn from 0 to
        ``marks - 1``, and effect, payoff and ``when`` may read it; what is not open then does not happen.
    chance : function of p, x, mark
        With ``marks``: the probability of each, >= 0 and with the sum 1 where one of them is open.
    """

    name: str
    intensity: Function
    effect: Function
    payoff: Function | None = None
    when: Function | None = None
    counts: str | None = None
    marks: int = 0
    chance: Function | None = None


@dataclass(frozen=True)
class Impulse:
    """What a decision does before time runs: it is counted as a market order where it moves the coordinates.

    Of the controls its functions see the choices only.

    Attributes
    ----------
    effect : function of p, x, u
        The coordinates after it, within their ranges whatever is allowed.
    payoff : function of p, x, u
        What it pays.
    """

    effect: Function
    payoff: Function


@dataclass(frozen=True, eq=False)
class Market:
    """A market as its author states it.

    Attributes
    ----------
    name : str
        One word, which names the market.
    params : type
        NamedTuple of float, int, bool and ``Literal`` fields with their rows (`mmgym.parameters`); functions also read
        its properties that are said to return one of these types. ``horizon`` and
        ``num_steps`` are needed. ``reward`` ("pnl" or "expected") tells whether rewards have
        price noise, ``initial_price`` where the price starts; with ``utility`` ("mean" or "cara") and ``risk_aversion``
        the criterion is theirs.
    coordinates, controls, events : sequences
        Of `Coordinate`; of `Box` and `Choice`; of `Event`.
    policies : dict of str to function ``(params, coordinates, step) -> controls``
        Named policies, the first of which is the reference. ``coordinates`` are arrays by name, of all states;
        controls (S, C), or (C,) for all. Where coordinates are hidden they play what they play at `Market.guess`.
    start : function ``(params) -> tuple``, optional
        Coordinates at the start, or a list of pairs of them and their probabilities; zeros by default.
    position, variance, drift : functions of p, x, optional
        Assets exposed to the price, its variance and its expected change per unit of time; 0 by default.
    mid : function of p, x, optional
        What the coordinates add to the mid price, the same at every step: the events (and the impulse) that move it
        revalue the position after them, beside their payoffs. Under "mean" what such events bring beyond their
        expectation is price noise, which ``reward`` "expected" leaves out; under "cara" all of it belongs to the gain.
    income, running_penalty : functions of p, x, u, optional
        Per unit of time, part of the gain or of the criterion only; 0 by default.
    liquidation, terminal_penalty : functions of p, x, optional
        Paid at the end, taken off the gain or the criterion only; 0 by default.
    impulse : Impulse, optional
        For markets with choices among their controls.
    tables : dict of str to (function ``(params) -> array``, shape)
        Arrays that functions read as fields of ``p``, such as ``p.flow[x.step]``, and the shape that has room for all.
    papers : tuple of str
        Which of the policies are a paper's; the others are called ours.
    title, description, references : str
        For the docstring of the environment.
    """

    name: str
    params: Any
    coordinates: Sequence[Coordinate]
    controls: Sequence[Box | Choice]
    events: Sequence[Event]
    policies: Mapping[str, Function]
    start: Function | None = None
    position: Function | None = None
    variance: Function | None = None
    drift: Function | None = None
    mid: Function | None = None
    income: Function | None = None
    running_penalty: Function | None = None
    liquidation: Function | None = None
    terminal_penalty: Function | None = None
    impulse: Impulse | None = None
    tables: Mapping[str, tuple[Function, tuple[int, ...]]] = field(default_factory=dict)
    papers: tuple[str, ...] = ()
    title: str = ""
    description: str = ""
    references: str = "- None given."
    kernels: Any = field(init=False)
    engine: market.Market = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        if not hasattr(self.params, "step_length"):
            self.params.step_length = property(_step_length)
        object.__setattr__(self, "kernels", _compiled(self.name, *_Source(self).text()))
        object.__setattr__(self, "engine", _engine(self))

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """A hash of what the declaration computes with, the files of its functions included."""
        return _fingerprint(*_Source(self).text())

    @functools.cached_property
    def reads_step(self) -> bool:
        """Whether a function may read ``x.step``. Where none does, ``x`` has no such field: all steps are alike."""
        parts = [self, *self.events, *self.controls, *([self.impulse] if self.impulse else [])]
        functions = [value for part in parts for value in vars(part).values() if callable(value)]
        return any("step" in names for function in functions for names in _names(function, set()))

    # What follows from parameters

    @functools.cached_property
    def boxed(self) -> NDArray[np.bool_]:
        """Which controls (C,) are boxes."""
        return np.array([isinstance(control, Box) for control in self.controls])

    @functools.cached_property
    def moves(self) -> tuple[tuple[Event, int | None], ...]:
        """The events as kernels count them, one with marks as often as it has marks: pairs of event and mark."""
        marks = [(event, range(event.marks) if event.marks else (None,)) for event in self.events]
        return tuple((event, mark) for event, numbers in marks for mark in numbers)

    def ranges(self, params: Any) -> Array:
        """Lowest and highest of every coordinate, int (C, 2)."""
        limits = np.array([[_of(params, c.low), _of(params, c.high)] for c in self.coordinates], dtype=np.float64)
        for coordinate, (low, high) in zip(self.coordinates, limits, strict=True):
            if not low <= high or high - low > MOST_WIDTH or low != round(low) or high != round(high):
                raise ValueError(
                    f"{self.name}: the coordinate {coordinate.name} from {low:g} to {high:g} is not allowed: both must "
                    f"be whole numbers, in order, and no further apart than {MOST_WIDTH:,}"
                )
        return limits.astype(np.int64)

    def shape(self, params: Any) -> tuple[int, ...]:
        """Number of values of every coordinate.

        Raises
        ------
        MemoryError
            If there are more than 5,000,000 states.
        """
        ranges = self.ranges(params)
        shape = tuple(int(n) for n in ranges[:, 1] - ranges[:, 0] + 1)
        if math.prod(shape) > MOST_STATES:
            raise MemoryError(
                f"{self.name}: the coordinates {', '.join(c.name for c in self.coordinates)} have "
                f"{' x '.join(f'{n:,}' for n in shape)} = {math.prod(shape):,} states, allowed are {MOST_STATES:,}: "
                "narrow their ranges"
            )
        return shape

    def states(self, params: Any) -> Array:
        """Coordinates of all states, int (S, C): the last one runs first."""
        low, shape = self.ranges(params)[:, 0], self.shape(params)
        return np.ascontiguousarray(np.indices(shape).reshape(len(shape), -1).T + low)

    def index(self, params: Any, coordinates: Array) -> Array:
        """States of coordinates (..., C)."""
        low, shape = self.ranges(params)[:, 0], self.shape(params)
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(coordinates - low, -1, 0)), shape))

    @functools.cached_property
    def may_hide(self) -> bool:
        """Whether there are parameters with which a coordinate is not observed."""
        return any(coordinate.observed is not True for coordinate in self.coordinates)

    def observed(self, params: Any) -> NDArray[np.bool_]:
        """Which coordinates (C,) are observed."""
        return np.array([bool(_of(params, coordinate.observed)) for coordinate in self.coordinates])

    def guess(self, params: Any) -> Array:
        """What coordinates that are not observed are taken to be: the mean of the start, rounded; int (C,)."""
        places, chances = self.starts(params)
        return np.asarray(np.rint(chances @ places).astype(np.int64))

    def alike(self, params: Any) -> Array:
        """The state (S,) that stands for those which are observed as each one is: that with hidden ones guessed."""
        rows = np.where(self.observed(params), self.states(params), self.guess(params))
        return self.index(params, rows)

    def scales(self, params: Any) -> tuple[Array, Array]:
        """Shift and width (C,) of coordinates in observations: [-1, 1] around 0, or [0, 1]."""
        ranges = self.ranges(params)
        (low, high), signed = ranges.T.astype(np.float64), _signed(ranges)
        shift = np.where(signed, 0.0, low)
        return shift, np.maximum(np.where(signed, np.maximum(-low, high), high - low), 1.0)

    def starts(self, params: Any) -> tuple[Array, Array]:
        """Coordinates (K, C) at the start, and their probabilities (K,)."""
        given = tuple(0 for _ in self.coordinates) if self.start is None else self.start(params)
        pairs = given if isinstance(given, list) else [(given, 1.0)]
        ranges, wrong = self.ranges(params), None
        places = np.array([np.atleast_1d(np.asarray(place)) for place, _ in pairs], dtype=np.int64)
        chances = np.array([chance for _, chance in pairs], dtype=np.float64)
        if places.shape != (len(pairs), len(self.coordinates)) or len(pairs) > MOST_STARTS:
            wrong = f"at most {MOST_STARTS} tuples of {len(self.coordinates)} coordinates"
        elif ((places < ranges[:, 0]) | (places > ranges[:, 1])).any():
            wrong = "within the ranges of the coordinates"
        elif not (chances >= 0.0).all() or abs(chances.sum() - 1.0) > 1e-9:
            wrong = "with probabilities that are >= 0 and sum to 1"
        if wrong:
            raise ValueError(f"{self.name}: start = {given} is not allowed: it must be {wrong}")
        return places, chances / chances.sum()

    def boxes(self, params: Any) -> tuple[Array, Array, Array]:
        """Lowest and highest of every control and its unit, (C,) each."""
        low, high = (np.array([_of(params, getattr(c, end)) for c in self.controls], float) for end in ("low", "high"))
        for control, box, a, b in zip(self.controls, self.boxed, low, high, strict=True):
            whole = box or (a == round(a) and b == round(b)) if math.isfinite(a) and math.isfinite(b) else False
            if not whole or not (a < b if box else a <= b):
                raise ValueError(
                    f"{self.name}: the control {control.name} from {a:g} to {b:g} is not allowed: "
                    + ("no range" if box else "both must be whole numbers, in order")
                )
        units = [(b - a) / 8.0 for a, b in zip(low, high, strict=True)]
        for j, control in enumerate(self.controls):
            if isinstance(control, Box) and control.unit is not None:
                units[j] = float(_of(params, control.unit))
        return low, high, np.array(units)

    def aversion(self, params: Any) -> float:
        """``gamma`` of the criterion, 0 for the mean."""
        return float(params.risk_aversion) if getattr(params, "utility", "mean") == "cara" else 0.0

    def describe_state(self, params: Any, state: int) -> str:
        """A state in words."""
        values = self.states(params)[state]
        return ", ".join(f"{c.name} {value}" for c, value in zip(self.coordinates, values, strict=True))

    @functools.cached_property
    def rates(self) -> Any:
        """`mmgym.declared_kernels.rates_function` of this market."""
        return declared_kernels.rates_function(self.engine.record_dtypes[-1])

    @functools.cached_property
    def slopes(self) -> Any:
        """`mmgym.declared_kernels.slopes_function` of this market."""
        return declared_kernels.slopes_function(self.engine.record_dtypes[-1])

    def transitions(self, params: Any) -> Array:
        """States that `moves` lead to, int (E, S); -1 where one is not open.

        Raises
        ------
        ValueError
            If a function of the declaration does what it may not: the message names it and the state.
        """
        return _transitions(self, params)

    def register(self, id: str, **arguments: Any) -> None:  # noqa: A002  # gymnasium's word
        """Register the market with Gymnasium, with ``arguments`` of its parameters as a preset."""
        module, single = self.params.__module__, self.environment.__name__
        if id not in gymnasium.registry:
            gymnasium.register(
                id=id,
                entry_point=f"{module}:{single}",
                vector_entry_point=f"{module}:{self.environment.vector_class.__name__}",
                kwargs=arguments,
            )

    @property
    def environment(self) -> Any:
        """The environment's class; its ``vector_class`` is that of batches."""
        return getattr(sys.modules[self.params.__module__], f"{_camel(self.name)}Env")


def _signed(ranges: Array) -> Array:
    """Which coordinates (C, 2) may be negative and positive."""
    return np.asarray((ranges[:, 0] < 0) & (ranges[:, 1] > 0))


def _step_length(params: Any) -> float:
    """Length of a decision step (time)."""
    return float(params.horizon / params.num_steps)


def _readable(params_type: Any) -> tuple[str, ...]:
    """Properties that kernels can read: those that are said to return a number."""
    names = []
    for name, member in inspect.getmembers(params_type, lambda member: isinstance(member, property)):
        if get_type_hints(member.fget).get("return") in (float, int, bool):
            names.append(name)
    return tuple(names)


# From a declaration to its kernels


def _check(declared: Market) -> None:
    """Refuse a declaration that cannot be one, whatever the parameters."""
    name = declared.name
    if not name.isidentifier():
        raise ValueError(f"name = {name!r} is not allowed: it must be one word")
    for kind in ("coordinates", "controls", "events", "policies"):
        if not getattr(declared, kind):
            raise ValueError(f"{name}: {kind} are missing: one is needed at least")
    columns = [*(column for column, _ in COLUMNS), "s0", "s1", "needs_reset"]
    for kind in ("coordinates", "controls", "events"):
        names = [part.name for part in getattr(declared, kind)]
        wrong = [word for word in names if not word.isidentifier() or names.count(word) > 1 or word.startswith("_")]
        wrong += [word for word in names if kind == "coordinates" and word in columns]
        if wrong:
            raise ValueError(
                f"{name}: {wrong[0]!r} among the names of the {kind} is not allowed: each must be one word, there once"
                + (f", and none of {', '.join(columns)}" if kind == "coordinates" else "")
            )
    if declared.impulse is not None and declared.boxed.all():
        raise ValueError(f"{name}: an impulse needs a control that is a Choice")
    for event in declared.events:
        if event.counts not in COUNTS:
            raise ValueError(f"{name}: counts = {event.counts!r} of {event.name} must be one of {list(COUNTS)}")
        if not 0 <= event.marks <= MOST_MARKS:
            raise ValueError(f"{name}: marks = {event.marks} of {event.name} must be from 0 to {MOST_MARKS}")
        if (event.chance is not None) != (event.marks > 0):
            raise ValueError(f"{name}: {event.name} needs both of marks and chance, or none of them")
    missing = [word for word in ("horizon", "num_steps") if word not in declared.params._fields]
    if missing:
        raise ValueError(f"{name}: the parameters have no {missing[0]}: horizon and num_steps are needed")


def function_name(function: Any) -> str:
    """What errors call a function of a declaration."""
    return str(getattr(function, "__name__", function))


class _Source:
    """The text of the functions that `mmgym.declared_kernels` calls, and the author's functions in it, by name."""

    def __init__(self, declared: Market) -> None:
        self.declared = declared
        self.functions: dict[str, Any] = {}

    def call(self, function: Function | None, default: str, allowed: Sequence[str] = PARAMETERS) -> str:
        """A call of the author's function, by the names of its parameters."""
        if function is None:
            return default
        plain = getattr(function, "py_func", function)
        given = list(inspect.signature(plain).parameters)
        if not set(given) <= set(allowed):
            raise ValueError(
                f"{self.declared.name}: the parameters ({', '.join(given)}) of {function_name(function)} are not "
                f"allowed: they must be among {', '.join(allowed)}"
            )
        known = next((name for name, listed in self.functions.items() if listed is function), None)
        name = known or f"{plain.__name__ if plain.__name__.isidentifier() else 'function'}_{len(self.functions)}"
        self.functions[name] = function
        return f"{name}({', '.join(given)})"

    def number(self, function: Function | None, allowed: Sequence[str] = PARAMETERS) -> str:
        call = self.call(function, "0.0", allowed)
        return call if call == "0.0" else f"0.0 + {call}"

    def of_moves(self, part: str, default: str, allowed: Sequence[str]) -> list[str]:
        """Calls of the function that events have as ``part``, with the marks of `Market.moves`."""
        calls = []
        for event, mark in self.declared.moves:
            call = self.call(getattr(event, part), default, allowed if mark is None else (*allowed, "mark"))
            calls.append(call if mark is None else re.sub(r"\bmark\b(?=[,)])", str(mark), call))
        return calls

    def intensities(self, opened: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """What is computed once a step; lines that are needed in a state; and the intensities of all moves."""
        fixed, lines, rates = [], [], []
        for e, event in enumerate(self.declared.events):
            rate = self.number(event.intensity)
            alone = "x" not in inspect.signature(getattr(event.intensity, "py_func", event.intensity)).parameters
            fixed.append(rate if alone else "0.0")
            once = f"fixed[{e}]" if alone else rate
            if event.marks and not alone:
                here = [when for when, (other, _) in zip(opened, self.declared.moves, strict=True) if other is event]
                lines.append(f"    once_{e} = ({once} if {' or '.join(dict.fromkeys(here))} else 0.0)")
                once = f"once_{e}"
            rates += [once] * max(event.marks, 1)
        chances = self.of_moves("chance", "", ("p", "x"))
        return fixed, lines, [f"{r} * {c}" if c else r for r, c in zip(rates, chances, strict=True)]

    def text(self) -> tuple[str, dict[str, Any]]:
        d = self.declared
        names, controls = [c.name for c in d.coordinates], [c.name for c in d.controls]
        count = len(d.moves)
        pays = [f"0.0 + {call}" for call in self.of_moves("payoff", "0.0", PARAMETERS)]
        opened = self.of_moves("when", "True", ("p", "x"))
        moves = self.of_moves("effect", "", ("p", "x"))
        fixed, before, rates = self.intensities(opened)
        integers = ", ".join("np.int64({})" for _ in names)

        def lines(pattern: str, *columns: Sequence[str]) -> str:
            return "\n".join("    " + pattern.format(k, *row) for k, row in enumerate(zip(*columns, strict=True)))

        def choose(name: str, arguments: str, results: Sequence[str], last: str) -> str:
            cases = lines("if k == {0}: return {1}", results)
            return f"def {name}({arguments}, k):\n{cases}\n    return {last}"

        def moved(target: str) -> str:
            return f"X({same}" + integers.format(*(f"{target}[{j}]" for j in range(len(names)))) + ")"

        row = ", ".join(f"row[{j}]" if box else f"np.int64(row[{j}])" for j, box in enumerate(d.boxed))
        duals = ", ".join(
            f"dual(row[{j}], 1.0 if j == {j} else 0.0)" if box else f"np.int64(row[{j}])"
            for j, box in enumerate(d.boxed)
        )
        choices = [name for name, box in zip(controls, d.boxed, strict=True) if not box]
        chosen = f"V({', '.join(f'u.{name}' for name in choices)})" if d.impulse else "u"
        masks = [getattr(control, "allowed", None) for control in d.controls]
        conditional = [f"({rate} if {when} else 0.0)" for rate, when in zip(rates, opened, strict=True)]
        chances = "\n".join(
            f"    cumulative = cumulative + r[{k}]\n    if draw < cumulative: return {k}" for k in range(count)
        )
        impulse = d.impulse
        landed = "x" if impulse is None else f"landed(p, {self.call(impulse.effect, '')}, x)"
        needed = "".join(f"{line}\n" for line in before)
        fields = ["step" if d.reads_step else "unread", *names]  # a place in any case: x[1] is the first coordinate
        at, same = ("np.int64({}), ", "x.step, ") if d.reads_step else ("np.int64(-1), ", "np.int64(-1), ")
        blocks = [
            f"def load(p, s): return X({at.format('s.step')}{integers.format(*(f's.{name}' for name in names))})",
            "def place(p, s, x):\n" + lines("s.{1} = x.{1}", names),
            f"def from_row(p, step, row): return X({at.format('step')}"
            f"{integers.format(*(f'row[{j}]' for j in range(len(names))))})",
            "def to_row(p, x, row):\n" + lines("row[{0}] = x.{1}", names),
            f"def at_step(p, step, x): return X({at.format('step')}{', '.join(f'x.{name}' for name in names)})",
            f"def differs(p, x, y): return {' or '.join(f'x.{name} != y.{name}' for name in names)}",
            "def observe_one(p, s, observation):\n    observation[0] = s.step / p.num_steps\n"
            + "\n".join(_written(j, name, d.may_hide) for j, name in enumerate(names)),
            f"def to_controls(p, row): return U({row})",
            f"def to_duals(p, row, j): return U({duals})",
            f"def some_boxes(p): return {bool(d.boxed.any())}",
            f"def is_box(p, j): return ({', '.join(str(bool(box)) for box in d.boxed)},)[j]",
            "def allowed(p, x, j, entry):\n"
            + lines("if j == {0}: return bool({1})", [self.call(m, "True", ("p", "x", "entry")) for m in masks])
            + "\n    return True",
            f"def fixed_rates(p, u): return ({', '.join(fixed)},)",
            f"def rates(p, x, u, fixed):\n{needed}    return ({', '.join(conditional)},)",
            f"def fill_rates(p, x, u, fixed, values):\n{needed}"
            + lines("values[{0}] = {1} if {2} else 0.0", rates, opened),
            f"def fill_rate_slopes(p, x, u, fixed, slopes):\n{needed}"
            + lines("slopes[{0}] = slope_of({1}) if {2} else 0.0", rates, opened),
            "def fill_chances(p, x, values):\n"
            + lines("values[{0}] = {1}", self.of_moves("chance", "1.0", ("p", "x"))),
            choose("payoff", "p, x, u", pays, "0.0"),
            "def fill_payoffs(p, x, u, values):\n" + lines("values[{0}] = {1} if {2} else 0.0", pays, opened),
            "def fill_payoff_slopes(p, x, u, slopes):\n"
            + lines("slopes[{0}] = slope_of({1}) if {2} else 0.0", pays, opened),
            f"def chosen(p, r, draw):\n    cumulative = 0.0\n{chances}\n    return {count - 1}",
            f"def total(p, r): return {' + '.join(f'r[{k}]' for k in range(count))}",
            choose("is_open", "p, x", [f"bool({when})" for when in opened], "False"),
            f"def landed(p, found, x):\n    found = as_tuple(found)\n    return {moved('found')}",
            choose("effect", "p, x", [f"landed(p, {move}, x)" for move in moves], "x"),
            f"def counts_as(p, k): return ({', '.join(str(COUNTS[event.counts]) for event, _ in d.moves)},)[k]",
            f"def num_events(p): return {count}",
            f"def has_impulse(p): return {impulse is not None}",
            f"def has_mid(p): return {d.mid is not None}",
            f"def paid(p, x, u): return {self.number(impulse.payoff if impulse else None)}",
            f"def moved(p, x, u): return {landed}",
            f"def impulse_payoff(p, x, u): return paid(p, x, {chosen})",
            f"def impulse_effect(p, x, u): return moved(p, x, {chosen})",
        ]
        blocks += [
            f"def {name}(p, x, u): return {self.number(getattr(d, name))}" for name in ("income", "running_penalty")
        ]
        blocks += [
            f"def {name}(p, x): return {self.number(getattr(d, name), ('p', 'x'))}"
            for name in ("position", "variance", "drift", "liquidation", "terminal_penalty", "mid")
        ]
        self.functions["X"] = namedtuple("X", fields)
        self.functions["U"] = namedtuple("U", controls)
        self.functions["V"] = namedtuple("V", choices)
        return "\n\n\n".join(blocks) + "\n", self.functions


def _written(j: int, name: str, may_hide: bool) -> str:
    """The line that writes a coordinate into an observation, unless it is hidden."""
    entry = f"(s.{name} - p.shift[{j}]) / p.width[{j}]"
    return (
        f"    if p.columns[{j}] > 0: observation[int(p.columns[{j}])] = {entry}"
        if may_hide
        else (f"    observation[{j + 1}] = {entry}")
    )


def _compiled(name: str, source: str, functions: Mapping[str, Any]) -> SimpleNamespace:
    """The functions of the source, compiled on demand; those of the author that are not are made scalar functions."""
    scalar = njit(forceinline=True, error_model="numpy")  # what calls them is kept on disk, they need not be
    space: dict[str, Any] = {"np": np, "dual": dual, "slope_of": slope_of, "as_tuple": declared_kernels.as_tuple}
    for word, function in functions.items():
        plain = inspect.isfunction(function)
        space[word] = scalar(function) if plain else function
    path = f"<declaration of {name}>"
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    before = set(space)
    exec(compile(source, path, "exec"), space)
    made = {word: scalar(function) for word, function in space.items() if word not in before and word[0] != "_"}
    space.update(made)
    return SimpleNamespace(**made)


def _code(function: Any) -> Iterator[bytes]:
    """Everything that a function computes with, as far as Python tells."""
    plain = getattr(function, "py_func", function)
    if not inspect.isfunction(plain):
        return
    code = plain.__code__
    yield repr((code.co_code, [c for c in code.co_consts if not inspect.iscode(c)], code.co_names)).encode()
    for cell in plain.__closure__ or ():
        inner = cell.cell_contents
        yield from _code(inner) if callable(inner) else [repr(inner).encode()]


def _names(function: Any, seen: set[Any]) -> Iterator[tuple[str, ...]]:
    """The names that a function and those that it calls use, as far as Python tells."""
    if isinstance(function, tuple | list):
        for each in function:
            yield from _names(each, seen)
    plain = getattr(function, "py_func", function)
    if not inspect.isfunction(plain) or plain in seen:
        return
    seen.add(plain)
    codes = [plain.__code__]
    for code in codes:
        yield code.co_names
        yield tuple(constant for constant in code.co_consts if isinstance(constant, str))  # getattr(x, "step")
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
        named = [plain.__globals__.get(name) for name in code.co_names]
        homes = [home for home in named if inspect.ismodule(home)]
        for home in homes:  # a package, its module, a function of that
            inside = [getattr(home, name, None) for name in code.co_names]
            homes += [part for part in inside if inspect.ismodule(part) and part not in homes]
            named += inside
        for other in named:
            yield from _names(other, seen)
    for cell in plain.__closure__ or ():
        yield from _names(cell.cell_contents, seen)


def _fingerprint(source: str, functions: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(source.encode())
    for name, function in functions.items():
        digest.update(name.encode())
        for part in _code(function):
            digest.update(part)
        home = inspect.getmodule(getattr(function, "py_func", function))
        path = getattr(home, "__file__", None)
        if path:
            digest.update(Path(path).read_bytes())
    return digest.digest()


def _engine(declared: Market) -> market.Market:
    """The market as the engine takes it."""
    d, count, states = declared, len(declared.controls), len(declared.coordinates)

    def padded(values: Array, length: int) -> Array:
        return np.concatenate([values, np.full((length - len(values), *values.shape[1:]), values[-1])])

    def chances(params: Any) -> Array:
        cumulative = np.cumsum(d.starts(params)[1])
        cumulative[np.flatnonzero(d.starts(params)[1])[-1] :] = 2.0
        return np.append(cumulative, 2.0)[: max(len(cumulative), 1)]

    functions: dict[str, Any] = {
        "aversion": d.aversion,
        "expected": lambda params: float(getattr(params, "reward", "pnl") == "expected"),
        "start_price": lambda params: float(getattr(params, "initial_price", 0.0)),
        "starts": lambda params: padded(d.starts(params)[0], MOST_STARTS),
        "start_chances": lambda params: padded(chances(params), MOST_STARTS),
        "shift": lambda params: d.scales(params)[0],
        "width": lambda params: d.scales(params)[1],
        "control_low": lambda params: d.boxes(params)[0],
        "control_center": lambda params: 0.5 * (d.boxes(params)[0] + d.boxes(params)[1]),
        "control_reach": lambda params: 0.5 * (d.boxes(params)[1] - d.boxes(params)[0]),
        "control_count": lambda params: d.boxes(params)[1] - d.boxes(params)[0] + 1.0,
    }
    arrays: dict[str, tuple[int, ...]] = {
        "starts": (MOST_STARTS, states),
        "start_chances": (MOST_STARTS,),
        "shift": (states,),
        "width": (states,),
        **dict.fromkeys(("control_low", "control_center", "control_reach", "control_count"), (count,)),
    }
    if d.may_hide:
        functions["columns"] = lambda params: np.cumsum(d.observed(params)) * d.observed(params)
        arrays["columns"] = (states,)
    for name, (function, shape) in d.tables.items():
        functions[name], arrays[name] = function, shape

    def ranges(params: Any) -> dict[str, tuple[float, float]]:
        coordinates = {c.name: (float(a), float(b)) for c, (a, b) in zip(d.coordinates, d.ranges(params), strict=True)}
        counts = ("bid_fills", "ask_fills", "market_orders", "masked_actions", "price_square")
        return {**coordinates, "step": (0, params.num_steps), **dict.fromkeys(counts, (0.0, math.inf))}

    engine = market.Market(
        name=d.name,
        params_type=d.params,
        state=np.dtype([*COLUMNS, *((c.name, "i4") for c in d.coordinates)]),
        num_controls=count,
        num_intensities=0,
        reset_one=declared_kernels.reset_one,
        controls_one=declared_kernels.controls_one,
        step_one=declared_kernels.step_one,
        observe_one=d.kernels.observe_one,
        modules=("mmgym.declare", "mmgym.declared_kernels", "mmgym.dual_numbers", "mmgym.models.wealth"),
        derived=_readable(d.params),
        arrays=arrays,
        functions=functions,
        ranges=ranges,
        observation_low=lambda params: [0.0, *np.where(_signed(d.ranges(params)), -1.0, 0.0)[d.observed(params)]],
        to_quotes=functools.partial(to_quotes, d),
        from_quotes=functools.partial(from_quotes, d),
        locate=functools.partial(_state_of, d),
        declaration=d,
    )
    _environments(d, engine)
    return engine


# Checks with parameters


def sampled_controls(declared: Market, params: Any, most: int) -> Array:
    """Controls (M, C): a grid over boxes with their bounds, or combinations of choices, all of them if so few."""
    low, high, _ = declared.boxes(params)
    combinations = math.prod(int(b - a) + 1 for a, b, box in zip(low, high, declared.boxed, strict=True) if not box)
    points = 2 if combinations * CHECKED_POINTS ** int(declared.boxed.sum()) > most else CHECKED_POINTS
    axes = [
        np.linspace(a, b, points) if box else np.arange(a, b + 1.0)
        for a, b, box in zip(low, high, declared.boxed, strict=True)
    ]
    count = math.prod(len(axis) for axis in axes)
    chosen = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
    return np.stack(
        [axis[i] for axis, i in zip(axes, np.unravel_index(chosen, [len(a) for a in axes]), strict=True)], 1
    )


@functools.lru_cache(maxsize=16)
@np.errstate(all="ignore")  # without a compiler numbers overflow in silence as well
def _transitions(declared: Market, params: Any) -> Array:
    d, record = declared, kernel_rows(declared.engine.record(params))
    states, count = math.prod(d.shape(params)), len(d.moves)
    check_memory(
        states * count * (9.0 + 24.0 * len(d.coordinates)),
        f"{d.name}: what {count} events do in {states:,} states",
        "the ranges of " + ", ".join(c.name for c in d.coordinates),
    )
    rows = d.states(params)
    reachable, reached = np.empty((count, len(rows)), dtype=np.bool_), np.empty((count, *rows.shape), dtype=np.int64)
    declared_kernels.find_transitions(record, rows, reachable, reached)

    def refuse(function: Any, state: int, what: str) -> None:
        raise ValueError(f"{d.name}: {function_name(function)} at {d.describe_state(params, state)} {what}")

    for (event, mark), places in zip(d.moves, reached, strict=True):
        _require_inside(d, params, event.effect, places, mark)
    low, _, _ = d.boxes(params)
    _require_observed(d, params)
    if not d.boxed.all():
        entries = allowed_entries(d, params, 0)
        for j, control in enumerate(d.controls):
            none = np.flatnonzero(~entries[:, j].any(axis=1))
            if len(none) and not d.boxed[j]:
                refuse(getattr(control, "allowed", None), int(none[0]), f"allows no entry of {control.name}")
    sample = sampled_controls(d, params, max(min(MOST_CHECKED, AT_ONCE // (len(rows) * count)), 2 ** len(low)))
    words = ("income", "running_penalty", "position", "variance", "drift", "liquidation", "terminal_penalty", "mid")
    numbers, first_mid = np.empty((len(words), len(rows))), np.empty(0)
    for step in sorted({0, params.num_steps // 2, params.num_steps - 1}):
        _require_chances(d, params, step, reachable)
        _require_rates(d, record, rows, step, sample, refuse)
        for controls in sample:
            declared_kernels.find_state_rates(record, step, rows, controls, numbers)
            bad = ~np.isfinite(numbers)
            bad[words.index("variance")] |= numbers[words.index("variance")] < 0.0
            if bad.any():
                k, state = np.argwhere(bad)[0]
                ends = " and >= 0" if words[k] == "variance" else ""
                refuse(getattr(d, words[k]), int(state), f"is {numbers[k, state]}: it must be finite{ends}")
        first_mid = numbers[-1].copy() if step == 0 else first_mid
        moved = np.flatnonzero(numbers[-1] != first_mid)
        if len(moved):
            refuse(d.mid, int(moved[0]), f"is not at step {step} what it is at step 0: only a drift may depend on it")
    if d.impulse is not None:
        for controls in sample:
            impulse_of(d, params, 0, controls)
    following = np.where(reachable, np.array([d.index(params, places) for places in reached]), -1)
    following.setflags(write=False)
    return following


def _require_rates(declared: Market, record: Array, rows: Array, step: int, sample: Array, refuse: Function) -> None:
    """Refuse intensities that are not finite and >= 0, and payoffs that are not finite, under a sample of controls."""
    size = max(AT_ONCE // (len(declared.moves) * len(rows)), 1)
    numbers = np.empty((2, min(size, len(sample)), len(declared.moves), len(rows)))
    for first in range(0, len(sample), size):
        part = sample[first : first + size]
        rate, pay = numbers[:, : len(part)]
        declared_kernels.find_sampled_rates(declared.rates, record.view(np.uint8), step, rows, part, rate, pay)
        for wrong, what, values, ends in (
            (~((rate >= 0.0) & np.isfinite(rate)), "intensity", rate, "finite and >= 0"),
            (~np.isfinite(pay), "payoff", pay, "finite"),
        ):
            if wrong.any():
                m, k, state = np.argwhere(wrong)[0]
                reason = f"with {_in_words(declared, part[m])} is {values[m, k, state]}: it must be {ends}"
                refuse(getattr(declared.moves[k][0], what), int(state), reason)


def _require_observed(declared: Market, params: Any) -> None:
    """Refuse hidden coordinates that are all there are, that a mask reads, or under a utility."""
    d, seen = declared, declared.observed(params)
    if seen.all():
        return
    hidden = ", ".join(c.name for c, known in zip(d.coordinates, seen, strict=True) if not known)
    if not seen.any():
        raise ValueError(f"{d.name}: {hidden} are all coordinates: one must be observed at least")
    if d.aversion(params):
        raise ValueError(f"{d.name}: utility = 'cara' is not allowed where {hidden} is not observed: it must be 'mean'")
    alike, masked = d.alike(params), any(isinstance(c, Choice) and c.allowed is not None for c in d.controls)
    for step in range((params.num_steps if d.reads_step else 1) if masked else 0):
        entries = allowed_entries(d, params, step)
        differs = (entries != entries[alike]).any(axis=2)
        if differs.any():
            state, j = np.argwhere(differs)[0].tolist()
            function = function_name(getattr(d.controls[j], "allowed", None))
            raise ValueError(
                f"{d.name}: {function} at {d.describe_state(params, state)} allows other entries of "
                f"{d.controls[j].name} than at {d.describe_state(params, int(alike[state]))}, which is observed as the "
                f"same: a mask must not depend on {hidden}"
            )


def _require_chances(declared: Market, params: Any, step: int, reachable: Array) -> None:
    """Refuse chances of marks that are no probabilities, in states where one of the marks is open: ``found`` (E, S)."""
    d, chances = declared, np.ones(reachable.shape)
    if not any(event.marks for event in d.events):
        return
    declared_kernels.find_chances(kernel_rows(d.engine.record(params)), step, d.states(params), chances)
    for event in d.events:
        of_event = [k for k, (other, _) in enumerate(d.moves) if other is event]
        total, least = chances[of_event].sum(axis=0), chances[of_event].min(axis=0)
        wrong = np.flatnonzero(~((least >= 0.0) & (np.abs(total - 1.0) <= 1e-9)) & reachable[of_event].any(axis=0))
        if len(wrong):
            state = int(wrong[0])
            raise ValueError(
                f"{d.name}: {function_name(event.chance)} at {d.describe_state(params, state)} is "
                f"{chances[of_event, state].tolist()} for the marks of {event.name}: they must be >= 0 and sum to 1"
            )


def rates_of(declared: Market, params: Any, step: int, controls: Array) -> tuple[Array, Array, Array, Array]:
    """Intensities and payoffs (E, S), flow of the criterion and variance of its noise (S,), under controls (C,)."""
    return _rates(declared, declared.engine.record(params), declared.states(params), step, controls)


def _rates(
    declared: Market, record: Array, rows: Array, step: int, controls: Array
) -> tuple[Array, Array, Array, Array]:
    count, states = len(declared.moves), len(rows)
    rate, pay, flow, noise = np.empty((count, states)), np.empty((count, states)), np.empty(states), np.empty(states)
    weights = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    declared_kernels.find_rates(
        declared.rates, record.view(np.uint8), step, rows, np.arange(states),
        np.ascontiguousarray(controls, np.float64), weights, rate, pay, flow, noise,
    )  # fmt: skip
    return rate, pay, flow, noise


def _in_words(declared: Market, controls: Array) -> str:
    return ", ".join(f"{c.name} {value:g}" for c, value in zip(declared.controls, controls, strict=True))


def _require_inside(declared: Market, params: Any, function: Any, places: Array, mark: int | None = None) -> None:
    """Refuse coordinates (S, C) after each state that leave their ranges."""
    ranges = declared.ranges(params)
    wrong = np.flatnonzero(((places < ranges[:, 0]) | (places > ranges[:, 1])).any(axis=1))
    if len(wrong):
        state = int(wrong[0])
        after = ", ".join(f"{c.name} {v}" for c, v in zip(declared.coordinates, places[state], strict=True))
        raise ValueError(
            f"{declared.name}: {function_name(function)} leads from {declared.describe_state(params, state)}"
            f"{'' if mark is None else f' with mark {mark}'} to {after}, out of the ranges "
            f"{[(int(a), int(b)) for a, b in ranges]}: let it happen within them only"
        )


def allowed_entries(declared: Market, params: Any, step: int) -> Array:
    """Which entries of every choice are allowed: bool (S, controls, entries), False beyond the last and of boxes."""
    low, high, _ = declared.boxes(params)
    rows, most = declared.states(params), int((high - low)[~declared.boxed].max(initial=0.0)) + 1
    entries = np.zeros((len(rows), len(low), most), dtype=np.bool_)
    declared_kernels.find_allowed(kernel_rows(declared.engine.record(params)), step, rows, entries)
    return entries


def impulse_of(declared: Market, params: Any, step: int, controls: Array) -> tuple[Array, Array]:
    """States (S,) after the impulse of choices that are allowed, the same ones elsewhere, and what it pays (S,).

    Raises
    ------
    ValueError
        If it leads out of the ranges, does not pay a finite number, or reads a control that is no choice.
    """
    d, rows = declared, declared.states(params)
    places, paid = np.empty_like(rows), np.empty(len(rows))
    try:
        declared_kernels.find_impulses(
            kernel_rows(d.engine.record(params)), step, rows, np.asarray(controls, np.float64), places, paid
        )
    except (TypingError, AttributeError) as error:
        boxes = [control.name for control, box in zip(d.controls, d.boxed, strict=True) if box]
        if not any(name in str(error) for name in boxes):
            raise
        raise ValueError(f"{d.name}: the impulse reads one of {', '.join(boxes)}: it sees the choices only") from error
    chosen = np.flatnonzero(~d.boxed)
    entries = (controls - d.boxes(params)[0])[chosen].astype(np.int64)
    reachable = allowed_entries(d, params, step)[:, chosen, entries].all(axis=1)
    places[~reachable], paid[~reachable] = rows[~reachable], 0.0
    if d.impulse is not None:
        _require_inside(d, params, d.impulse.effect, places)
        wrong = np.flatnonzero(~np.isfinite(paid))
        if len(wrong):
            raise ValueError(
                f"{d.name}: {function_name(d.impulse.payoff)} at {d.describe_state(params, int(wrong[0]))} with "
                f"{_in_words(d, controls)} is {paid[wrong[0]]}: it must be finite"
            )
    return d.index(params, places), paid


# The environments


class DeclaredFace(MarketFace):
    """Spaces, public maps, masks and info entries of a declared market."""

    declaration: ClassVar[Market]

    def check_parameters(self) -> None:
        """Refuse parameters with which the declaration is wrong."""
        self.declaration.transitions(self.params)

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash, mid, inventory (assets), coordinates, fills of the last step; `full` adds the rest."""
        gain, start = state.gain + state.price_gain, getattr(self.params, "initial_price", 0.0)
        entries = {
            "cash": state.start_position * start + gain - state.position * state.mid,
            "mid": state.mid,
            "inventory": state.position,
        }
        for coordinate in self.declaration.coordinates:
            if coordinate.name != "inventory":
                entries[coordinate.name] = getattr(state, coordinate.name) * _of(self.params, coordinate.unit)
        entries |= {name: getattr(state, name) for name in ("bid_fills", "ask_fills")}
        if self.declaration.impulse or any(event.counts == "order" for event in self.declaration.events):
            entries["market_orders"] = state.market_orders
        if not self.declaration.boxed.all():
            entries["masked_actions"] = state.masked_actions
        if full:
            entries |= {"gain": gain, "price_gain": state.price_gain, "penalty": state.penalty}
            entries["price_square"] = state.price_square
            nothing = np.full(np.shape(gain), np.nan)[()]
            entries |= dict.fromkeys(("bid_depth", "ask_depth"), nothing)
            entries |= dict(zip(self.control_names, controls, strict=True))
        return entries


def to_quotes(declared: Market, params: Any, actions: Any) -> NDArray[np.float64]:
    """Controls (..., C) of actions, in model units."""
    low, high, _ = declared.boxes(params)
    if not declared.boxed.any():
        return np.asarray(low + np.asarray(actions), dtype=np.float64)
    clipped = np.clip(np.asarray(actions), -1.0, 1.0).astype(np.float32).astype(np.float64)
    entry = np.minimum(np.floor((0.5 * clipped + 0.5) * (high - low + 1.0)), high - low)
    return np.asarray(np.where(declared.boxed, 0.5 * (low + high) + 0.5 * (high - low) * clipped, low + entry))


def from_quotes(declared: Market, params: Any, quotes: Any) -> Array:
    """Actions whose controls are the nearest to ``quotes`` (..., C)."""
    low, high, _ = declared.boxes(params)
    wanted = np.asarray(quotes, dtype=np.float64)
    entry = np.clip(np.rint(wanted - low), 0, high - low)
    if not declared.boxed.any():
        return entry.astype(np.int64)
    reach = np.where(declared.boxed, 0.5 * (high - low), 1.0)
    placed = np.clip((wanted - 0.5 * (low + high)) / reach, -1.0, 1.0)
    return np.where(declared.boxed, placed, (2.0 * entry + 1.0) / (high - low + 1.0) - 1.0).astype(np.float32)


def observe(declared: Market, params: Any, step: int) -> NDArray[np.float32]:
    """Observations (S, 1 + V) of all states at a step, bit for bit those of the environment."""
    shift, width = declared.scales(params)
    rows = declared.states(params)
    elapsed = np.full((len(rows), 1), step / params.num_steps)
    seen = ((rows - shift) / width)[:, declared.observed(params)]
    return np.concatenate([elapsed, seen], axis=1).astype(np.float32)


def locate(declared: Market, params: Any, observations: Any) -> tuple[Array, Array]:
    """Step and coordinates (..., C) of observations: the inverse of `observe`, with hidden ones at `Market.guess`."""
    columns = np.asarray(observations, dtype=np.float64)
    shift, width = declared.scales(params)
    ranges, seen = declared.ranges(params), declared.observed(params)
    step = np.clip(np.rint(columns[..., 0] * params.num_steps), 0, params.num_steps).astype(np.int64)
    rows = np.empty((*columns.shape[:-1], len(seen)))
    rows[...] = 0 if seen.all() else declared.guess(params)
    rows[..., seen] = np.rint(columns[..., 1:] * width[seen] + shift[seen])
    return step, np.clip(rows, ranges[:, 0], ranges[:, 1]).astype(np.int64)


def _state_of(declared: Market, params: Any, observations: Any) -> tuple[Array, ...]:
    """Step and coordinates of observations, one array each."""
    step, rows = locate(declared, params, observations)
    return step, *np.moveaxis(rows, -1, 0)


def _masks_of(env: Any, states: Array, steps: Array) -> Array:
    """Which entries are allowed in states (M,) at steps (M,), flat over the choices: bool (M, entries)."""
    d, p = env.declaration, env.one_params
    low, high, _ = d.boxes(p)
    chosen = np.flatnonzero(~d.boxed)
    sizes = (high - low + 1)[chosen].astype(np.int64)
    masks = np.empty((len(states), int(sizes.sum())), dtype=np.bool_)
    for step in np.unique(steps):
        here = np.flatnonzero(steps == step)
        entries = allowed_entries(d, p, int(step))[states[here]]
        masks[here] = np.concatenate([entries[:, j, :n] for j, n in zip(chosen, sizes, strict=True)], axis=1)
    return masks


class _Discrete:
    """Space and map of environments whose controls are choices, all of them."""

    def single_spaces(self: Any) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Observation box and action space of one environment."""
        low, high, _ = self.declaration.boxes(self.one_params)
        sizes = (high - low + 1).astype(np.int64)
        return DeclaredFace.single_spaces(self)[0], gymnasium.spaces.MultiDiscrete(sizes)

    def to_quotes(self: Any, actions: Any) -> NDArray[np.float64]:
        """Choices of actions, shape ``(..., C)``."""
        return to_quotes(self.declaration, self.one_params, actions)


class _Choices:
    """Masks of environments with choices among their controls."""

    def masks(self: Any, observations: Any) -> Array:
        """Which entries are allowed at observations ``(..., D)``, flat over the choices."""
        step, coordinates = locate(self.declaration, self.one_params, self.without_values(observations))
        states = self.declaration.index(self.one_params, coordinates)
        return _masks_of(self, np.ravel(states), np.ravel(step)).reshape(*np.shape(step), -1)

    def action_masks(self: Any) -> Array:
        """Which entries are allowed now, flat over the choices, with a row per environment in a batch."""
        self.require_started("action_masks()")
        state = self._rows.state
        rows = np.stack([state[c.name] for c in self.declaration.coordinates], axis=1).astype(np.int64)
        masks = _masks_of(self, self.declaration.index(self.one_params, rows), state["step"].astype(np.int64))
        return masks[0] if isinstance(self, KernelEnv) else masks


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _environments(declared: Market, engine: market.Market) -> None:
    """Make the environments' classes and put them into the module of the parameters, where Gymnasium finds them."""
    module, word = declared.params.__module__, _camel(declared.name)
    entries = ["bid_fills", "ask_fills", "market_orders", "bid_depth", "ask_depth"]
    controls = tuple(control.name for control in declared.controls)
    space = {
        "__module__": module,
        "market": engine,
        "declaration": declared,
        "control_names": controls,
        "merged_actions": tuple(np.flatnonzero(~declared.boxed).tolist()) if declared.boxed.any() else (),
        "step_entries": tuple(dict.fromkeys([*entries, *controls])),
    }
    masked, discrete = not declared.boxed.all(), not declared.boxed.any()
    bases: tuple[type, ...] = (*([_Discrete] * discrete), *([_Choices] * masked), DeclaredFace)
    summary = f"A batch of `{word}Env`, with `num_envs`, `threads`, `autoreset_mode` and `copy`."
    batch = type(f"{word}VectorEnv", (*bases, KernelVectorEnv), {**space, "__doc__": summary})
    single = type(f"{word}Env", (*bases, KernelEnv), {**space, "__doc__": _docstring(declared), "vector_class": batch})
    for made in (batch, single):
        setattr(sys.modules[module], made.__name__, made)


def _docstring(declared: Market) -> str:
    """The docstring of the environment, in Gymnasium's sections."""
    d = declared
    controls = ", ".join(f"`{control.name}`" for control in d.controls)
    space = "`MultiDiscrete`:"
    if d.boxed.any():
        space = f"`Box(-1, 1, ({len(d.controls)},), float32)`, scaled to the bounds of"
    cut = ", ".join(f"`{control.name}`" for control, box in zip(d.controls, d.boxed, strict=True) if not box)
    binned = f" {cut}: cut into equal parts, one for each entry." if cut and d.boxed.any() else ""
    events = ", ".join(f"`{event.name}`" for event in d.events)
    hidden = ", ".join(f"`{c.name}`" for c in d.coordinates if c.observed is not True)
    sections = {
        "Description": f"{d.description or d.title}\n\nA declared market (`mmgym.declare`) with the events {events}.",
        "Action Space": f"{space} {controls}.{binned}",
        "Observation Space": "`Box`, float32: elapsed fraction of the horizon, "
        + ", ".join(f"`{c.name}`" for c in d.coordinates)
        + "; a coordinate is over its largest absolute value, or from 0 to 1 where it has one sign."
        + (f" Not always observed: {hidden}; `info` has them all the same." if hidden else ""),
        "Rewards": "The gain less penalties, undiscounted; under CARA all of it on the last step.",
        "Starting State": "Step 0 and the declared law of the coordinates.",
        "Episode End": "`terminated` after `num_steps` steps; never `truncated`.",
        "Arguments": '[parameters]\n- `info` (None): "full" adds gain, penalty and controls.',
        "Version History": "- v0: first version.",
        "References": d.references,
    }
    body = "\n\n".join(f"## {name}\n{text}" for name, text in sections.items())
    return f"{d.title or d.name}\n\n{body}\n"
