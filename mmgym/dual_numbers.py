"""Dual numbers in kernels: a scalar function, called with them, gives its derivative along with its value, exactly.

A dual number is ``value + slope e`` with ``e^2 = 0``. Arithmetic, comparisons (of values), ``min``, ``max``, ``abs``
and the functions of `math` and their namesakes in `numpy` take it; where a function bends, the slope is that of the
branch that its value is on. (Griewank & Walther 2008, Evaluating Derivatives, chapter 3.)
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.typeconv.castgraph import Conversion
from numba.extending import intrinsic, lower_cast, make_attribute_wrapper, models, overload, register_model

__all__ = ["DualType", "dual", "overload_dual", "slope_of", "value_of"]

ROOT_PI = math.sqrt(math.pi)
LOG_2, LOG_10 = math.log(2.0), math.log(10.0)


class DualType(types.Type):
    """The type of dual numbers in kernels; plain numbers become dual ones where both may come."""

    def __init__(self) -> None:
        super().__init__("Dual")

    def unify(self, context: Any, other: Any) -> Any:
        return self if _is_plain(other) else None

    def can_convert_from(self, context: Any, other: Any) -> Any:
        return Conversion.safe if _is_plain(other) else None


def _is_plain(kind: Any) -> bool:
    return isinstance(kind, types.Float | types.Integer | types.Boolean)


DUAL = DualType()


@register_model(DualType)
class _DualModel(models.StructModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, [("value", types.float64), ("slope", types.float64)])


make_attribute_wrapper(DualType, "value", "value")
make_attribute_wrapper(DualType, "slope", "slope")


@intrinsic
def dual(typing_context, value, slope):
    """The dual number of a value and a slope."""

    def generate(context, builder, signature, arguments):
        made = cgutils.create_struct_proxy(DUAL)(context, builder)
        made.value, made.slope = arguments
        return made._getvalue()

    return DUAL(types.float64, types.float64), generate


@lower_cast(types.Float, DualType)
@lower_cast(types.Integer, DualType)
@lower_cast(types.Boolean, DualType)
def _widen(context, builder, given, wanted, number):
    made = cgutils.create_struct_proxy(DUAL)(context, builder)
    made.value = context.cast(builder, number, given, types.float64)
    made.slope = context.get_constant(types.float64, 0.0)
    return made._getvalue()


def overload_dual(function: Callable[..., Any], implementation: Callable[..., Any]) -> None:
    """Let kernels call ``function`` of one dual number, by this implementation."""

    @overload(function)
    def find(x):
        return implementation if isinstance(x, DualType) else None


def _binary(functions: tuple[Callable[..., Any], ...], both: Any, left: Any, right: Any) -> None:
    """Implementations for two dual numbers, and for the left or the right one of two numbers."""

    def find(a, b):
        if isinstance(a, DualType):
            return both if isinstance(b, DualType) else left if _is_plain(b) else None
        return right if isinstance(b, DualType) and _is_plain(a) else None

    for function in functions:
        overload(function)(find)


_binary(
    (operator.add, operator.iadd),
    lambda a, b: dual(a.value + b.value, a.slope + b.slope),
    lambda a, b: dual(a.value + b, a.slope),
    lambda a, b: dual(a + b.value, b.slope),
)
_binary(
    (operator.sub, operator.isub),
    lambda a, b: dual(a.value - b.value, a.slope - b.slope),
    lambda a, b: dual(a.value - b, a.slope),
    lambda a, b: dual(a - b.value, -b.slope),
)
_binary(
    (operator.mul, operator.imul),
    lambda a, b: dual(a.value * b.value, a.slope * b.value + a.value * b.slope),
    lambda a, b: dual(a.value * b, a.slope * b),
    lambda a, b: dual(a * b.value, a * b.slope),
)
_binary(
    (operator.truediv, operator.itruediv),
    lambda a, b: dual(a.value / b.value, (a.slope - a.value / b.value * b.slope) / b.value),
    lambda a, b: dual(a.value / b, a.slope / b),
    lambda a, b: dual(a / b.value, -a / b.value * b.slope / b.value),
)


def _dual_power(a, b):
    power = a.value**b.value
    slope = b.value * a.value ** (b.value - 1.0) * a.slope if a.slope != 0.0 else 0.0
    return dual(power, slope + power * math.log(a.value) * b.slope if b.slope != 0.0 else slope)


def _left_power(a, b):
    return dual(a.value**b, b * a.value ** (b - 1.0) * a.slope if b != 0 else 0.0)


def _right_power(a, b):
    power = a**b.value
    return dual(power, power * math.log(a) * b.slope if b.slope != 0.0 else 0.0)


_binary((operator.pow, operator.ipow, pow, math.pow, np.power), _dual_power, _left_power, _right_power)


def _compare(compared: Callable[..., Any]) -> None:
    _binary(
        (compared,),
        lambda a, b: compared(a.value, b.value),
        lambda a, b: compared(a.value, b),
        lambda a, b: compared(a, b.value),
    )


for _function in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
    _compare(_function)


def _choose(functions: tuple[Callable[..., Any], ...], first_wins: Callable[..., Any]) -> None:
    _binary(
        functions,
        lambda a, b: a if first_wins(a.value, b.value) else b,
        lambda a, b: a if first_wins(a.value, b) else dual(b + 0.0, 0.0),
        lambda a, b: dual(a + 0.0, 0.0) if first_wins(a, b.value) else b,
    )


_choose((max, np.maximum), operator.ge)
_choose((min, np.minimum), operator.le)


@overload(max)
def _max_of_three(a, b, c):
    return (lambda a, b, c: max(max(a, b), c)) if DUAL in (a, b, c) else None


@overload(min)
def _min_of_three(a, b, c):
    return (lambda a, b, c: min(min(a, b), c)) if DUAL in (a, b, c) else None


def _exp(x):
    value = math.exp(x.value)
    return dual(value, value * x.slope)


def _sqrt(x):
    value = math.sqrt(x.value)
    return dual(value, 0.5 * x.slope / value if x.slope != 0.0 else 0.0)


def _tanh(x):
    value = math.tanh(x.value)
    return dual(value, (1.0 - value * value) * x.slope)


_UNARY: tuple[tuple[tuple[Any, ...], Callable[..., Any]], ...] = (
    ((operator.neg,), lambda x: dual(-x.value, -x.slope)),
    ((operator.pos,), lambda x: x),
    ((abs, math.fabs, np.abs, np.fabs), lambda x: dual(-x.value, -x.slope) if x.value < 0.0 else x),
    ((math.exp, np.exp), _exp),
    ((math.expm1, np.expm1), lambda x: dual(math.expm1(x.value), math.exp(x.value) * x.slope)),
    ((math.log, np.log), lambda x: dual(math.log(x.value), x.slope / x.value)),
    ((math.log2, np.log2), lambda x: dual(math.log2(x.value), x.slope / x.value / LOG_2)),
    ((math.log10, np.log10), lambda x: dual(math.log10(x.value), x.slope / x.value / LOG_10)),
    ((math.log1p, np.log1p), lambda x: dual(math.log1p(x.value), x.slope / (1.0 + x.value))),
    ((math.sqrt, np.sqrt), _sqrt),
    ((math.sin, np.sin), lambda x: dual(math.sin(x.value), math.cos(x.value) * x.slope)),
    ((math.cos, np.cos), lambda x: dual(math.cos(x.value), -math.sin(x.value) * x.slope)),
    ((math.sinh, np.sinh), lambda x: dual(math.sinh(x.value), math.cosh(x.value) * x.slope)),
    ((math.cosh, np.cosh), lambda x: dual(math.cosh(x.value), math.sinh(x.value) * x.slope)),
    ((math.tanh, np.tanh), _tanh),
    ((math.atan, np.arctan), lambda x: dual(math.atan(x.value), x.slope / (1.0 + x.value * x.value))),
    ((math.erf,), lambda x: dual(math.erf(x.value), 2.0 / ROOT_PI * math.exp(-x.value * x.value) * x.slope)),
    ((math.erfc,), lambda x: dual(math.erfc(x.value), -2.0 / ROOT_PI * math.exp(-x.value * x.value) * x.slope)),
)

for _functions, _implementation in _UNARY:
    for _function in _functions:
        overload_dual(_function, _implementation)


def value_of(x):
    """The value of a number, dual or plain: in kernels."""
    raise TypeError("only for use in kernels")


def slope_of(x):
    """The slope of a number, 0 of a plain one: in kernels."""
    raise TypeError("only for use in kernels")


@overload(value_of)
def _value_of(x):
    return (lambda x: x.value) if isinstance(x, DualType) else (lambda x: np.float64(x))


@overload(slope_of)
def _slope_of(x):
    return (lambda x: x.slope) if isinstance(x, DualType) else (lambda x: 0.0)
