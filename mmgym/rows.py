"""The rows of a batch: their state, streams and parameters, as the kernels take them."""

import math
import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import check_memory
from mmgym.batch_kernels import draw_rows, reset_rows, start_rows
from mmgym.compiling import kernel_rows
from mmgym.market import Market
from mmgym.variation import ParametersOfRows, Values, Variation

__all__ = ["Rows", "row_reader"]

STATE_FORMAT = 1
_MASK_64 = (1 << 64) - 1

Array = NDArray[Any]


def _aligned_rows(dtype: np.dtype[Any], count: int) -> Array:
    """A zeroed structured array whose first row starts at a cache line."""
    raw = np.zeros(count * dtype.itemsize + 64, dtype=np.uint8)
    offset = -raw.ctypes.data % 64
    rows: Array = raw[offset : offset + count * dtype.itemsize].view(dtype)
    return rows


_STRUCT_CODES = {"f8": "d", "f4": "f", "b1": "?"} | {
    f"{kind}{2**i}": code for kind, codes in (("i", "bhiq"), ("u", "BHIQ")) for i, code in enumerate(codes)
}


def row_reader(dtype: np.dtype[Any]) -> Callable[[Any], Sequence[Any]]:
    """What unpacks one structured row to Python numbers, three times faster than ``item()``; arrays become tuples."""
    text, position, places, count = "=", 0, [], 0
    for name in dtype.names or ():
        column, offset = dtype.fields[name][:2]  # type: ignore[index]
        length = math.prod(column.shape)
        text += "x" * (offset - position) + f"{length}{_STRUCT_CODES[column.base.str[1:]]}"
        position = offset + column.itemsize
        places.append(slice(count, count + length) if column.shape else count)
        count += length
    unpack = struct.Struct(text).unpack_from
    if count == len(places):
        return unpack

    def read(row: Any) -> Sequence[Any]:
        numbers = unpack(row)
        return [numbers[place] for place in places]

    return read


class SharedArrays:
    """Large arrays that rows share, each of them once (`mmgym.market.Shared`).

    Attributes
    ----------
    arrays : (K, ...)
        By place; one that no row has any more is written over when another is needed.
    most : int
        How many there can be: one for each row, and one that is made before a row leaves the one it had.
    """

    def __init__(self, market: Market, params: Any, count: int) -> None:
        assert market.shared is not None
        self.most = count + 1
        self.market, self.arrays = market, np.array(market.shared.array(params))[None]
        self._places: dict[Hashable, int] = {market.shared.key(params): 0}
        self._users = [0]

    def reserve(self, count: int) -> None:
        """Make room for ``count`` arrays in all.

        Raises
        ------
        MemoryError
            If they are more than the machine can hold.
        """
        assert self.market.shared is not None
        size, what = self.arrays[0].nbytes, self.market.shared.what
        check_memory(float(count) * size, f"{count:,} {what}, of {size / 2**20:.1f} MiB each,", "the number of them")
        grown = np.zeros((count, *self.arrays.shape[1:]))
        grown[: len(self.arrays)] = self.arrays
        self._users += [0] * (count - len(self.arrays))
        self.arrays = grown

    def take(self, params: Any) -> int:
        """The place of the array of these parameters, for a row more."""
        assert self.market.shared is not None
        key = self.market.shared.key(params)
        if key not in self._places:
            array = self.market.shared.array(params)
            if 0 not in self._users:
                self.reserve(min(2 * len(self.arrays), self.most))
            place = self._users.index(0)
            self._places = {other: at for other, at in self._places.items() if at != place} | {key: place}
            self.arrays[place] = array
        self._users[self._places[key]] += 1
        return self._places[key]

    def leave(self, place: int) -> None:
        """A row has the array at that place no more."""
        self._users[place] -= 1


class Rows:
    """The state of a batch and its kernels. Everything here is shared by the single and the vector environment.

    Attributes
    ----------
    params : the market's ``Params`` or ParametersOfRows
        Of all rows; with a variation, of each.
    values : list of dict
        With a variation: the arguments of each row that differ.
    arrays : tuple of arrays
        What the kernels take first: records of parameters, the record of each row, and what belongs to the rows.
    """

    def __init__(self, market: Market, params: Any, variation: Variation | None, count: int) -> None:
        self.market, self.variation = market, variation
        self.randomised = variation is not None and bool(variation.laws)
        self.which = np.zeros(count, np.uint32)
        self.values: list[Values] = []
        self._made: dict[str, tuple[Any, Array]] = {}
        self._slots: dict[int, int] = {}  # parameters that rows have for good: digest -> place of their record
        first = params if variation is None else variation.params(variation.middle())
        self.shared = SharedArrays(market, first, count) if market.shared else None
        if variation is None:
            self.params, self.record = params, kernel_rows(market.record(params))
        else:
            self._vary(variation, count)
        self.entries = np.zeros((count, variation.width if variation else 0), np.float32)
        self.ranges = dict(market.ranges(params))
        self.state = kernel_rows(_aligned_rows(market.row_dtype, count))
        self.controls, self.intensities = (np.zeros((count, length)) for length in market.lengths(first))
        self._arrange()
        self.seeded = False
        self.started = False
        if variation is not None and variation.width:
            self.entries[:] = [variation.scaled(values) for values in self.values]

    def _arrange(self) -> None:
        """What the kernels take, with the arrays that rows share now."""
        records = self.record if self.shared is None else (self.record, self.shared.arrays)
        self.arrays = (records, self.which, self.state, self.controls, self.intensities)

    def _vary(self, variation: Variation, count: int) -> None:
        """Parameters, their records and the record of each row: one for each row that may have its own."""
        self.values = [variation.middle()] * count if variation.laws else list(variation.rows)
        keys = [repr(values) for values in self.values]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        slots = count if variation.laws else len(places)
        dtype = self._making(self.values[0])[1].dtype  # of all rows: what they may differ in changes no shape
        check_memory(float(slots) * dtype.itemsize, f"parameters of {slots:,} rows", "num_envs")
        self.record = kernel_rows(_aligned_rows(dtype, slots))
        self.which[:] = np.arange(count) if variation.laws else [places[key] for key in keys]
        made = [self._making(values) for values in self.values]
        self.params = ParametersOfRows([params for params, _ in made])
        for slot, (params, record) in zip(self.which, made, strict=True):
            self.record[slot] = record[0]
            self._slots[self.market.digest(params)] = int(slot)
        if self.market.shared and self.shared:
            from tqdm.auto import tqdm  # import mmgym stays light

            self.shared.reserve(len({self.market.shared.key(params) for params, _ in made}))
            each = tqdm(self.which, self.market.shared.what, unit="row", leave=False, delay=2.0)
            for slot, (params, _) in zip(each, made, strict=True):
                self.record["place"][slot] = self.shared.take(params)

    def _making(self, values: Values) -> tuple[Any, Array]:
        """Parameters of a row and their record; kept where there are few."""
        assert self.variation is not None
        key = repr(values) if self.variation.few else ""
        if not key or key not in self._made:
            params = self.variation.params(values)
            made = params, self.market.record(params)
            if not key:
                return made
            self._made[key] = made
        return self._made[key]

    def give(self, row: int, values: Values) -> None:
        """Give a row its parameters: where they are for good, those of a row of this batch."""
        assert self.variation is not None
        params, record = self._making(values)
        if self.randomised:
            self._give_record(row, params, record)
        else:  # rows with the same parameters share a record
            self.which[row] = self._slots[self.market.digest(params)]
        self.params.rows[row] = params
        self.values[row] = values
        if self.variation.width:
            self.entries[row] = self.variation.scaled(values)

    def _give_record(self, row: int, params: Any, record: Array) -> None:
        """Give a row the record that is its own."""
        if self.shared is None:
            self.record[row] = record[0]
            return
        place = self.shared.take(params)  # where its array cannot be made, the row stays as it is
        self.shared.leave(int(self.record["place"][row]))
        self.record[row] = record[0]
        self.record["place"][row] = place
        self._arrange()

    def draw(self, mask: Array, given: Sequence[Values] | None = None) -> None:
        """New parameters for the rows of ``mask``, from their streams; ``given`` values take the place of drawn ones.

        The streams go on in the same way in either case.
        """
        assert self.variation is not None
        quantiles = np.zeros((len(mask), len(self.variation.laws)))
        draw_rows(self.state, mask, quantiles)
        for row in np.flatnonzero(mask).tolist():
            self.give(row, self.variation.drawn(quantiles[row]) | (given[row] if given else {}))

    def seed(self, seeds: Sequence[int | None], mask: Array) -> None:
        """Start the streams of masked rows; a seed of None leaves a row's stream, or draws one if it has none."""
        if not self.seeded:
            fresh = np.random.SeedSequence().generate_state(len(seeds), np.uint64)
            start_rows(self.state, np.ones(len(seeds), dtype=np.bool_), fresh)
            self.seeded = True
        given = np.array([seed is not None for seed in seeds]) & mask
        if given.any():
            values = np.array([(seed or 0) & _MASK_64 for seed in seeds], dtype=np.uint64)
            start_rows(self.state, given, values)

    def reset(self, mask: Array, observations: Array, given: Sequence[Values] | None = None) -> None:
        """Start episodes in the rows of ``mask``, with parameters drawn anew where they are random; observe all."""
        if self.randomised and mask.any():
            self.draw(mask, given)
        reset_rows(self.arrays[0], self.which, self.state, mask, observations)
        self.observe_values(observations)
        self.started = True

    def observe_values(self, observations: Array) -> None:
        """Put the values that differ into the last entries of observations, where they are observed."""
        width = self.entries.shape[1]
        if width:
            observations[:, -width:] = self.entries

    def digests(self, rows: Array) -> Any:
        """What tells parameters apart: one number, or one for each of the rows where they differ."""
        if self.variation is None:
            return self.market.digest(self.params)
        return np.array([self.market.digest(self.params.rows[row]) for row in rows], np.int64)

    def get_state(self, rows: Array) -> dict[str, Any]:
        chosen = self.state[rows]
        state: dict[str, Any] = {
            "format": STATE_FORMAT,
            "market": self.market.name,
            "parameters": self.digests(rows),
            "started": int(self.started),
            "streams": np.stack([chosen["s0"], chosen["s1"]], axis=1),
            "needs_reset": chosen["needs_reset"].copy(),
        }
        if self.variation is not None:
            columns = self.variation.columns([self.values[row] for row in rows])
            state |= {f"parameters.{name}": column for name, column in columns.items()}
        for name in self.market.state.names or ():
            state[name] = chosen[name].copy()
        return state

    def set_state(self, state: Mapping[str, Any], rows: Array) -> None:
        for name, value in {"format": STATE_FORMAT, "market": self.market.name}.items():
            given = state.get(name)
            if given is None or str(given) != str(value):
                raise ValueError(f"state has {name} = {given!r}, but this environment takes {value!r} only")
        values = None if self.variation is None else self.variation.values_of(state, len(rows))
        expected = self.digests(rows)
        if values is not None:
            expected = np.array([self.market.digest(self._making(each)[0]) for each in values], np.int64)
            if not self.randomised and not set(expected.tolist()) <= set(self._slots):
                raise ValueError("state has parameters of a row that are not allowed here: they must be those of a row")
        given = np.asarray(state.get("parameters"))
        if given.dtype.kind not in "iu" or given.shape not in ((), (len(rows),)) or (given != expected).any():
            raise ValueError(
                f"state has parameters = {state.get('parameters')!r}, but this environment takes {expected!r} only"
            )
        columns = {"streams": (len(rows), 2), "needs_reset": (len(rows),)}
        columns |= {name: (len(rows), *self.market.state[name].shape) for name in self.market.state.names or ()}
        ranges = {"streams": (0, _MASK_64), "needs_reset": (0, 1), **self.ranges}
        taken: dict[str, Array] = {}
        for name, shape in columns.items():
            if name not in state or np.shape(state[name]) != shape:
                what = np.shape(state[name]) if name in state else "missing"
                raise ValueError(f"state entry {name!r} is {what}, but {len(rows)} rows need shape {shape}")
            kind = "s0" if name == "streams" else name
            taken[name] = _as_column(name, state[name], self.state.dtype[kind].base, ranges.get(name))
        if not int(state.get("started", 0)):
            raise ValueError("state was taken before the first reset: reset the environment, then take its state")
        dead = np.flatnonzero(~taken["streams"].any(axis=1))
        if len(dead):
            raise ValueError(f"state entry 'streams' of row {dead[0]} is 0, 0, from which no stream goes on")
        if "step" in self.ranges and "step" in taken:
            last = self.ranges["step"][1]
            over = np.flatnonzero((taken["step"] >= last) & (taken["needs_reset"] == 0))
            if len(over):
                raise ValueError(
                    f"state entry 'step' = {taken['step'][over[0]]} of row {over[0]} is not allowed: it must be below "
                    f"{last}, or the row must need a reset"
                )
        for row, each in zip(rows, values or (), strict=values is not None):
            self.give(row, each)
        self.state["s0"][rows] = taken["streams"][:, 0]
        self.state["s1"][rows] = taken["streams"][:, 1]
        for name in ("needs_reset", *(self.market.state.names or ())):
            self.state[name][rows] = taken[name]
        self.controls[rows] = np.nan  # the last step's controls are not part of a state
        self.seeded = True
        self.started = True


def _as_column(name: str, given: Any, dtype: np.dtype[Any], bounds: tuple[Any, Any] | None) -> Array:
    """A column of a state from elsewhere, of the kernel's type: finite and within its range."""
    array = np.asarray(given)
    whole = dtype.kind in "iu"
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (-math.inf, math.inf)
    if bounds is not None and np.ndim(bounds[0]):  # of each entry
        low, high = bounds
    elif bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    if array.dtype.kind not in ("iu" if whole else "fiu"):
        raise ValueError(f"state entry {name!r} of type {array.dtype} is not allowed: it must be of {dtype}")
    wrong = ~((array >= low) & (array <= high) & np.isfinite(array))
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        value, low, high = (np.broadcast_to(each, array.shape)[wrong][0] for each in (array, low, high))
        what = "a whole number" if whole else "a finite number"
        ends = f" from {low} to {high}" if math.isfinite(low) or math.isfinite(high) else ""
        raise ValueError(f"state entry {name!r} = {value} of row {row} is not allowed: it must be {what}{ends}")
    return array.astype(dtype)
