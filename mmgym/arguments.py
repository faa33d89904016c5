"""Checks of constructor arguments: each error names the argument, its value and what is allowed."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["choice", "integer", "pair", "real"]


def _refuse(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name} = {value!r} is not allowed: it must be {allowed}")


def real(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> float:
    """A finite number with ``low <= value <= high`` and ``value > above``, as a float."""
    bounds = [f"> {above:g}"] if above > -math.inf else []
    bounds += [f">= {low:g}"] if low > -math.inf else []
    bounds += [f"<= {high:g}"] if high < math.inf else []
    allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _refuse(name, value, allowed)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high or not number > above:
        raise _refuse(name, value, allowed)
    return number


def integer(name: str, value: Any, *, low: int, high: int) -> int:
    """A whole number with ``low <= value <= high``, as an int."""
    allowed = f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise _refuse(name, value, allowed)
    return int(value)


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """One of the ``allowed`` values."""
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise _refuse(name, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def pair(name: str, value: Any, **bounds: float) -> tuple[float, float]:
    """A number for both sides, or a ``[bid, ask]`` pair of numbers, each as `real` checks it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise _refuse(name, value, "a number, or a pair [bid, ask] of numbers")
        return real(f"{name}[0] (bid)", value[0], **bounds), real(f"{name}[1] (ask)", value[1], **bounds)
    number = real(name, value, **bounds)
    return number, number
