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
from numpy.typing import NDArray

__all__ = ["LANES", "aligned", "next_sums", "scatter_products"]

LANES = 8
_NUMBERS = ir.VectorType(ir.DoubleType(), LANES)


def aligned(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Memory for rows of LANES numbers that do not lie across two lines of the cache."""
    size = int(np.prod(shape))
    memory = np.empty(size + LANES)
    begin = -memory.ctypes.data // memory.itemsize % LANES
    return memory[begin : begin + size].reshape(shape)


def next_sums(
    g: Any, h: Any, i: Any, weight: Any, rest: Any, values: Any, sources: Any, jump: Any, extras: Any, places: Any,
    terms: Any, target: Any,
) -> None:  # fmt: skip
    """One more term of sums over events, of F first moments, then of the second moments of the first M of them.

    ``target[c][h, i] = weight values[i, c] + rest sources[c][g, i] + sum_k jump[g, i, k] terms[c][h, places[i, k]]``,
    and in the second moments ``sum_k extras[m][g, i, k] terms[m][h, places[i, k]]`` too.

    Parameters
    ----------
    g, h, i : int
        A group of lanes, where its terms are, and a state.
    weight, rest : float
    values : (S, F + M)
    sources : tuple of F + M arrays (G, S, LANES)
    jump : (G, S, E, LANES)
    extras : tuple of M arrays (G, S, E, LANES)
    places : (S, E) uint32
    terms, target : tuple of F + M arrays (H, S, LANES)
    """
    first = len(terms) - len(extras)
    for c in range(len(terms)):
        total = weight * values[i, c] + rest * sources[c][g, i] + (jump[g, i] * terms[c][h, places[i]]).sum(axis=0)
        if c >= first:
            total += (extras[c - first][g, i] * terms[c - first][h, places[i]]).sum(axis=0)
        target[c][h, i] = total


def scatter_products(i: Any, weights: Any, places: Any, values: Any, target: Any) -> None:
    """``target[places[i, k]] += weights[i, k] values[i]`` for every ``k``.

    Parameters
    ----------
    i : int
    weights : (S, E, LANES)
    places : (S, E) uint32
    values, target : (S, LANES)
    """
    np.add.at(target, places[i], weights[i] * values[i])


class _Rows:
    """Rows of LANES numbers, and places, of arrays that lie contiguous in memory."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        self.builder, loaded = builder, context.make_array(kind)(context, builder, array)
        self.data, self.shape = loaded.data, cgutils.unpack_tuple(builder, loaded.shape)  # type: ignore[no-untyped-call]

    def pointer(self, row: Any) -> Any:
        first = self.builder.gep(self.data, [self.builder.mul(row, row.type(LANES))])
        return self.builder.bitcast(first, _NUMBERS.as_pointer())

    def load(self, row: Any) -> Any:
        return self.builder.load(self.pointer(row), align=8)

    def store(self, numbers: Any, row: Any) -> None:
        self.builder.store(numbers, self.pointer(row), align=8)

    def spread(self, number: Any) -> Any:
        """A number in all lanes."""
        one = self.builder.insert_element(ir.Constant(_NUMBERS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, ir.Constant(_NUMBERS, ir.Undefined), mask)

    def place(self, number: Any) -> Any:
        return self.builder.zext(self.builder.load(self.builder.gep(self.data, [number])), number.type)

    def plus_product(self, numbers: Any, one: Any, other: Any) -> Any:
        product = self.builder.fmul(one, other, flags=("contract",))
        return self.builder.fadd(numbers, product, flags=("contract",))


def _members(context: Any, builder: Any, kind: Any, array: Any) -> list[_Rows]:
    """Rows of the arrays of a tuple."""
    parts = cgutils.unpack_tuple(builder, array, len(kind))  # type: ignore[no-untyped-call]
    return [_Rows(context, builder, own, part) for own, part in zip(kind, parts, strict=True)]


@intrinsic  # type: ignore[misc]
def _next_sums(
    typing: Any, g: Any, h: Any, i: Any, weight: Any, rest: Any, values: Any, sources: Any, jump: Any, extras: Any,
    places: Any, terms: Any, target: Any,
) -> Any:  # fmt: skip
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (group, at, row, share, left) = signature.args, arguments[:5]
        value, jumps, place = (_Rows(context, builder, kinds[j], arguments[j]) for j in (5, 7, 9))
        source, extra, found, result = (_members(context, builder, kinds[j], arguments[j]) for j in (6, 8, 10, 11))
        grouped = builder.add(builder.mul(group, place.shape[0]), row)
        begin = builder.mul(at, place.shape[0])
        count, first, totals = len(found), len(found) - len(extra), []
        for c in range(count):
            cell = builder.add(builder.mul(row, row.type(count)), row.type(c))
            begun = builder.fmul(share, builder.load(builder.gep(value.data, [cell])))
            start = jumps.plus_product(jumps.spread(begun), jumps.spread(left), source[c].load(grouped))
            totals.append(cgutils.alloca_once_value(builder, start))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, place.shape[1]) as loop:
            pair = builder.add(builder.mul(row, place.shape[1]), loop.index)
            there, pair = (
                builder.add(begin, place.place(pair)),
                builder.add(builder.mul(grouped, place.shape[1]), loop.index),
            )
            factor = jumps.load(pair)
            ahead = [rows.load(there) for rows in found]
            for c, total in enumerate(totals):
                more = jumps.plus_product(builder.load(total), factor, ahead[c])
                if c >= first:
                    more = jumps.plus_product(more, extra[c - first].load(pair), ahead[c - first])
                builder.store(more, total)
        for rows, total in zip(result, totals, strict=True):
            rows.store(builder.load(total), builder.add(begin, row))
        return context.get_dummy_value()

    numbers = (types.intp, types.intp, types.intp, types.float64, types.float64)
    return types.none(*numbers, values, sources, jump, extras, places, terms, target), codegen


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


@overload(next_sums, strict=False)  # the annotations differ
def _compiled_sums(
    g: Any, h: Any, i: Any, weight: Any, rest: Any, values: Any, sources: Any, jump: Any, extras: Any, places: Any,
    terms: Any, target: Any,
) -> Any:  # fmt: skip
    return lambda g, h, i, weight, rest, values, sources, jump, extras, places, terms, target: _next_sums(  # type: ignore[call-arg]
        g, h, i, weight, rest, values, sources, jump, extras, places, terms, target
    )


@overload(scatter_products, strict=False)
def _compiled_scatter(i: Any, weights: Any, places: Any, values: Any, target: Any) -> Any:
    return lambda i, weights, places, values, target: _scatter_products(  # type: ignore[call-arg]
        i, weights, places, values, target
    )
