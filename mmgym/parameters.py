"""A market's parameters, stated once: the fields of its ``Params`` carry default, range, unit, symbol and a line.

``Params`` is a NamedTuple whose fields are annotated with rows of this table::

    class Params(NamedTuple):
        volatility: Annotated[float, Real(0.3, 0.0, 1e9, "price / sqrt(time)", "sigma"), "of the mid"]
        fill_rate_bid: Annotated[float, Pair(0.9, TINY, 1e12, "1 / time", "A")]
        fill_rate_ask: OtherSide
        utility: Annotated[Literal["mean", "cara"], Choice("mean")]

        @classmethod
        def create(cls, **arguments: Any) -> "Params":
            return create(cls, arguments)

A field without a row has no argument of its own. An argument without a field is a property with a row in the annotation
of what it returns: the argument's value, as the other fields tell it. What depends on several parameters - defaults,
and checks of one against another - is a method ``completed(given)``, which gets all arguments as they were given and
returns the parameters; fields that are left to it are None until then.
"""

import dataclasses
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import repeat
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

import numpy as np

from mmgym.arguments import choice, integer, multiple, pair, real, together

__all__ = [
    "SAME_ROW", "Choice", "Integer", "Multiple", "OtherSide", "Pair", "Real", "Row", "argument_names", "arguments_of",
    "arguments_section", "box_ends", "check_within", "create", "pinned_box", "row_of",
]  # fmt: skip

WIDTH = 116  # of the lines of a docstring, without its indentation

AnyParams = TypeVar("AnyParams")


@dataclass(frozen=True)
class Row:
    """One argument: its default, range, unit, paper symbol and a line about it.

    A market with an argument of its own kind derives from it and defines `check` and, where the fields do not hold the
    argument as it was given, `argument_of`.

    Attributes
    ----------
    default : None, bool, int, float, str or list
    low, high : float
        The range, both ends included; infinite where there is none.
    unit, symbol : str
        As the docstring of the environment shows them.
    text : str
        The line about it: the string beside the row, where it is annotated.
    none : bool
        Whether None is allowed: the method ``completed`` then puts in what it stands for.
    argument : str
        The argument's name, where it is not that of the field.
    end : {"", "low", "high"}
        Which end of the action box it is. Where parameters differ by row or episode and it is left to them, it is the
        outermost of what they make it (see `mmgym.variation`).
    varies : bool
        Whether it may differ by row or episode, where its kind allows that.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    symbol: str = ""
    _: KW_ONLY
    text: str = ""
    none: bool = False
    argument: str = ""
    end: str = ""
    varies: bool = True

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """The checked value, or one for each field; ``values`` are those of the arguments before this one."""
        return value

    def allowed(self) -> str:
        """The range or the choices, in words."""
        return f"from {self.low:g} to {self.high:g}" if self.high < math.inf else ""

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """The argument that makes these values of the row's fields, as JSON types."""
        return list(values) if len(values) > 1 else values[0]


@dataclass(frozen=True)
class Real(Row):
    """A finite number from `low` to `high`."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A float."""
        return real(name, value, low=self.low, high=self.high)


@dataclass(frozen=True)
class Pair(Row):
    """A number for both sides, or a pair of numbers; its fields end in the first side, and are an `OtherSide`."""

    sides: tuple[str, str] = ("bid", "ask")

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Two floats."""
        return pair(name, value, self.sides, low=self.low, high=self.high)

    def allowed(self) -> str:
        """The range."""
        return f"{super().allowed()}, a number or a pair `[{', '.join(self.sides)}]`"


@dataclass(frozen=True)
class Integer(Row):
    """A whole number from `low` to `high`."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """An int."""
        return integer(name, value, low=int(self.low), high=int(self.high))

    def allowed(self) -> str:
        """The range."""
        return f"a whole number from {self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Multiple(Row):
    """A whole number of times the argument `of`, from `low` to `high` times it."""

    _: KW_ONLY
    of: str

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A float."""
        return multiple(name, value, self.of, values[self.of], low=self.low, high=self.high)

    def allowed(self) -> str:
        """The range."""
        times = super().allowed()
        return f"a multiple of `{self.of}`" + (f", {times} times it" if times else "")


@dataclass(frozen=True)
class Choice(Row):
    """One of the values of the field's ``Literal``, or False or True."""

    _: KW_ONLY
    options: tuple[Any, ...] = ()

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """The value."""
        return choice(name, value, self.options)

    def allowed(self) -> str:
        """The choices."""
        shown = [_shown(option) for option in self.options]
        return f"{', '.join(shown[:-1])} or {shown[-1]}"


SAME_ROW = object()  # marks a field that belongs to the row of the field before it
OtherSide = Annotated[float, SAME_ROW]


class _Argument(NamedTuple):
    row: Row
    fields: tuple[str, ...]  # that it fills; none where it is a property


def _read(params_type: Any) -> dict[str, _Argument]:
    """The arguments by name, in the order of the fields."""
    table: dict[str, _Argument] = {}
    last = ""
    hints: dict[str, Any] = get_type_hints(params_type, include_extras=True)
    places: list[tuple[str, Any, tuple[str, ...]]] = [(field, hints[field], (field,)) for field in params_type._fields]
    for name, attribute in inspect.getmembers(params_type, lambda member: isinstance(member, property)):
        places.append((name, get_type_hints(attribute.fget, include_extras=True).get("return"), ()))
    for place, hint, fields in places:
        marks = getattr(hint, "__metadata__", ())
        text = "".join(mark for mark in marks if isinstance(mark, str))
        for mark in marks:
            if mark is SAME_ROW:
                table[last] = _Argument(table[last].row, table[last].fields + fields)
            elif isinstance(mark, Row):
                mark = dataclasses.replace(mark, text=text or mark.text)
                if isinstance(mark, Choice) and not mark.options:
                    mark = dataclasses.replace(mark, options=get_args(hint.__origin__) or (False, True))
                last = mark.argument or (place.removesuffix(f"_{mark.sides[0]}") if isinstance(mark, Pair) else place)
                table[last] = _Argument(mark, fields)
    return table


_table: Callable[[Any], dict[str, _Argument]] = functools.cache(_read)


def argument_names(params_type: Any) -> list[str]:
    """Names of the arguments of ``params_type.create``."""
    return list(_table(params_type))


def row_of(params_type: Any, argument: str, **changes: Any) -> Row:
    """The row of an argument of other parameters, with changes: ``row_of(Params, "volatility", default=2.0)``."""
    return dataclasses.replace(_table(params_type)[argument].row, **changes)


def create(params_type: type[AnyParams], arguments: Mapping[str, Any]) -> AnyParams:
    """Checked parameters from constructor arguments; those that are not given have their defaults.

    Raises
    ------
    TypeError
        If there is no argument of a name.
    ValueError
        If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
    """
    kind = cast(Any, params_type)
    table = _table(kind)
    unknown = [name for name in arguments if name not in table]
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}: allowed are {', '.join(table)}")
    given = {name: arguments.get(name, argument.row.default) for name, argument in table.items()}
    values: dict[str, Any] = {}
    fields = {field: kind._field_defaults.get(field) for field in kind._fields}
    for name, (row, filled) in table.items():
        value = values[name] = None if row.none and given[name] is None else row.check(name, given[name], values)
        parts = repeat(value) if value is None or len(filled) < 2 else value
        fields.update(zip(filled, parts, strict=False))
    params = kind._make(fields.values())
    return params.completed(given) if hasattr(params, "completed") else params  # type: ignore[no-any-return]


def arguments_of(params: Any) -> dict[str, Any]:
    """Constructor arguments that make these parameters, as JSON types: the inverse of `create`."""
    return {
        name: row.argument_of([getattr(params, field) for field in fields or (name,)], params)
        for name, (row, fields) in _table(type(params)).items()
    }


def box_ends(params_type: Any, arguments: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Ends of the action box that hold the boxes of all variants of arguments: those that ``arguments`` leave out."""
    rows = {name: row for name, (row, _) in _table(params_type).items()}
    ends = [name for name, row in rows.items() if row.end and arguments.get(name, row.default) is None]
    boxes = [arguments_of(create(params_type, variant)) for variant in variants] if ends else []
    outermost = {"low": np.min, "high": np.max}
    return {name: outermost[rows[name].end]([box[name] for box in boxes], axis=0).tolist() for name in ends}


def pinned_box(params: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with the ends of the action box as parameters have them."""
    known = arguments_of(params)
    return {**arguments, **{name: known[name] for name, (row, _) in _table(type(params)).items() if row.end}}


def arguments_section(params_type: Any) -> list[str]:
    """Lines for the section "Arguments" of a docstring: a bullet for each argument."""
    lines = []
    for name, (row, _) in _table(params_type).items():
        what = ", ".join(filter(None, (row.unit, row.allowed())))
        head = f"- `{name}` ({_shown(row.default)})" + (f", {row.symbol}" if row.symbol else "")
        text = f"{head}: {'; '.join(filter(None, (what, row.text)))}."
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines


def check_within(params: Any, name: str, limit: str) -> None:
    """Refuse a parameter whose absolute value is above that of its limit.

    Raises
    ------
    ValueError
        If it is; the message names both.
    """
    value, bound = getattr(params, name), getattr(params, limit)
    if abs(value) > bound:
        raise together({name: value, limit: bound}, f"{name} must be from -{limit} to {limit}")


def _shown(value: Any) -> str:
    """A value as a docstring shows it."""
    return f'"{value}"' if isinstance(value, str) else repr(value)
