"""Sums of products of eight numbers side by side, which vector instructions take at once.

LLVM does not find them in loops over short rows by itself: it neither knows that arrays do not overlap, nor does numba
let it join what is unrolled.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

__all__ = ["LANES", "scatter_products", "sum_products"]

LANES = 8
_NUMBERS = ir.VectorType(ir.DoubleType(), LANES)


def sum_products(i: Any, start: Any, weights: Any, places: Any, values: Any, target: Any) -> None:
    """``target[i] = start[i] + sum_k weights[i, k] values[places[i, k]]``.

    Parameters
    ----------
    i : int
    start, values, target : (S, LANES)
    weights : (S, E, LANES)
    places : (S, E) uint32
    """
    target[i] = start[i] + (weights[i] * values[places[i]]).sum(axis=0)


def scatter_products(i: Any, weights: Any, places: Any, values: Any, target: Any) -> None:
    """``target[places[i, k]] += weights[i, k] values[i]`` for every ``k``; otherwise as `sum_products`."""
    np.add.at(target, places[i], weights[i] * values[i])


class _Rows:
    """Rows of LANES numbers, and places, of arrays that lie contiguous in memory."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        self.builder, found = builder, context.make_array(kind)(context, builder, array)
        self.data, self.shape = found.data, cgutils.unpack_tuple(builder, found.shape)  # type: ignore[no-untyped-call]

    def pointer(self, row: Any) -> Any:
        first = self.builder.gep(self.data, [self.builder.mul(row, row.type(LANES))])
        return self.builder.bitcast(first, _NUMBERS.as_pointer())

    def load(self, row: Any) -> Any:
        return self.builder.load(self.pointer(row), align=8)

    def store(self, numbers: Any, row: Any) -> None:
        self.builder.store(numbers, self.pointer(row), align=8)

    def place(self, number: Any) -> Any:
        return self.builder.zext(self.builder.load(self.builder.gep(self.data, [number])), number.type)

    def plus_product(self, numbers: Any, one: Any, other: Any) -> Any:
        product = self.builder.fmul(one, other, flags=("contract",))
        return self.builder.fadd(numbers, product, flags=("contract",))


@intrinsic  # type: ignore[misc]
def _sum_products(typing: Any, i: Any, start: Any, weights: Any, places: Any, values: Any, target: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args[1:]
        row = arguments[0]
        begun, factors, number, found, result = (
            _Rows(context, builder, kind, array) for kind, array in zip(kinds, arguments[1:], strict=True)
        )
        total = cgutils.alloca_once_value(builder, begun.load(row))  # type: ignore[no-untyped-call]
        events = number.shape[1]
        with cgutils.for_range(builder, events) as loop:
            pair = builder.add(builder.mul(row, events), loop.index)
            other = found.load(number.place(pair))
            builder.store(found.plus_product(builder.load(total), factors.load(pair), other), total)
        result.store(builder.load(total), row)
        return context.get_dummy_value()

    return types.none(types.intp, start, weights, places, values, target), codegen


@intrinsic  # type: ignore[misc]
def _scatter_products(typing: Any, i: Any, weights: Any, places: Any, values: Any, target: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args[1:]
        row = arguments[0]
        factors, number, found, result = (
            _Rows(context, builder, kind, array) for kind, array in zip(kinds, arguments[1:], strict=True)
        )
        here, events = found.load(row), number.shape[1]
        with cgutils.for_range(builder, events) as loop:
            pair = builder.add(builder.mul(row, events), loop.index)
            to = number.place(pair)
            result.store(result.plus_product(result.load(to), factors.load(pair), here), to)
        return context.get_dummy_value()

    return types.none(types.intp, weights, places, values, target), codegen


@overload(sum_products, strict=False)  # the annotations differ
def _compiled_sum(i: Any, start: Any, weights: Any, places: Any, values: Any, target: Any) -> Any:
    return lambda i, start, weights, places, values, target: _sum_products(  # type: ignore[call-arg]
        i, start, weights, places, values, target
    )


@overload(scatter_products, strict=False)
def _compiled_scatter(i: Any, weights: Any, places: Any, values: Any, target: Any) -> Any:
    return lambda i, weights, places, values, target: _scatter_products(  # type: ignore[call-arg]
        i, weights, places, values, target
    )
