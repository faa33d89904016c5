"""Checks of constructor arguments: each error names the argument, its value and what is allowed."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = [
    "TINY",
    "check_memory",
    "choice",
    "integer",
    "multiple",
    "normalised",
    "pair",
    "real",
    "refusal",
    "shown",
    "together",
]

TINY = 1e-12  # the least length, rate or size: far below any use, and far above where squares and ratios leave floats
SHOWN = 80  # characters of a value in an error


def shown(value: Any) -> str:
    """A value as an error shows it: its first characters, on one line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def refusal(name: str, value: Any, allowed: str) -> ValueError:
    """The error of one argument."""
    return ValueError(f"{name} = {shown(value)} is not allowed: it must be {allowed}")


def together(values: Mapping[str, Any], reason: str) -> ValueError:
    """The error of arguments that are allowed one by one, but not with each other."""
    words = [f"{name} = {shown(value)}" for name, value in values.items()]
    return ValueError(f"{', '.join(words[:-1])} and {words[-1]} are not allowed together: {reason}")


def real(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> float:
    """A finite number with ``low <= value <= high`` and ``value > above``, as a float."""
    if type(value) is float and low <= value <= high and value > above and abs(value) < math.inf:
        return value
    bounds = [f"> {above:g}"] if above > -math.inf else []
    bounds += [f">= {low:g}"] if low > -math.inf else []
    bounds += [f"<= {high:g}"] if high < math.inf else []
    allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise refusal(name, value, allowed)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high or not number > above:
        raise refusal(name, value, allowed)
    return number


def integer(name: str, value: Any, *, low: int, high: int) -> int:
    """A whole number with ``low <= value <= high``, as an int."""
    allowed = f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise refusal(name, value, allowed)
    return int(value)


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """One of the ``allowed`` values."""
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise refusal(name, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def pair(name: str, value: Any, sides: tuple[str, str] = ("bid", "ask"), **bounds: float) -> tuple[float, float]:
    """A number for both sides, or a pair of numbers, each as `real` checks it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise refusal(name, value, f"a number, or a pair [{', '.join(sides)}] of numbers")
        first, second = (real(f"{name}[{k}] ({sides[k]})", value[k], **bounds) for k in range(2))
        return first, second
    number = real(name, value, **bounds)
    return number, number


def multiple(
    name: str, value: Any, unit_name: str, unit: float, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """A number that is a multiple of a ``unit``, which is an argument too, from ``low`` to ``high`` times it.

    Raises
    ------
    ValueError
        If it is no finite number, or no such multiple; the error then names both arguments.
    """
    number = real(name, value)
    count = number / unit
    if not low - 1e-9 <= count <= high + 1e-9 or abs(count - round(count)) > 1e-9:
        bounds = f" from {low * unit:g} to {high * unit:g}" if high < math.inf else ""
        raise together({name: value, unit_name: unit}, f"{name} must be a multiple of {unit_name}{bounds}")
    return number


def normalised(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers over their sum, or as they are where it is 1 but for rounding: what was normalised once stays."""
    total = math.fsum(values)
    return tuple(values if abs(total - 1.0) <= sys.float_info.epsilon else (value / total for value in values))


def check_memory(size: float, what: str, lower: str) -> None:
    """Refuse to ask for more memory than the machine has.

    Parameters
    ----------
    size : float
        Bytes that are needed.
    what, lower : str
        What needs them, and which arguments make it smaller.

    Raises
    ------
    MemoryError
        If they are more than the machine has, as far as the system tells.
    """
    try:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return
    if size > limit:
        raise MemoryError(
            f"{what} would take {size / 2**30:,.1f} GiB, and this machine has {limit / 2**30:,.1f} GiB: lower {lower}"
        )
