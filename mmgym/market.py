"""What a market gives the engine: a `Market` names the parameters, the state columns and four scalar functions.

Kernels take the parameters as a record, whose type tells `mmgym.batch_kernels` which market's functions to compile. The
record carries a hash of the sources, so that the on-disk cache of compiled kernels never serves a market that has
changed.
"""

import contextlib
import hashlib
import inspect
from collections import namedtuple
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
from numba import from_dtype, njit
from numpy.typing import NDArray

from mmgym import batch_kernels, compiling, random_streams, vector_exp

__all__ = ["Market", "Shared", "scalar_kernel"]

scalar_kernel = njit(**compiling.SCALAR)

# Columns that the engine adds to every market's state.
ENGINE_COLUMNS = [("s0", "u8"), ("s1", "u8"), ("needs_reset", "i4")]


class Shared(NamedTuple):
    """A large array of which a step needs an entry or two, the same for many parameters: rows share it.

    Attributes
    ----------
    key : function ``(params) -> hashable``
        What it depends on: it is made once for rows of the same key.
    array : function ``(params) -> array``
        Of one shape for all rows of a batch.
    what : str
        Several of them, in a message.
    """

    key: Callable[[Any], Hashable]
    array: Callable[[Any], NDArray[np.float64]]
    what: str


@dataclass(frozen=True)
class Market:
    """A market's mathematics, as the engine needs it.

    Attributes
    ----------
    name : str
        The one word that names the market on every floor.
    params_type : type
        NamedTuple of float, int, bool and ``Literal`` fields. A ``Literal`` is its index in kernels, which do not see
        fields that are tuples.
    state : numpy.dtype
        Columns of one row of state. The engine adds the stream ``s0, s1`` and ``needs_reset``.
    unread : tuple of str
        Fields that kernels do not read: their records, which rows may have by thousands, leave them out.
    derived : tuple of str
        Properties of the parameters that kernels read like fields.
    arrays : dict of str to tuple of int
        Properties of the parameters that are arrays, and the shape to which they are padded for kernels: one shape
        for all parameters of a market, so that its kernels are compiled once.
    compact : dict of str to tuple of int
        Smaller shapes of ``arrays``, for records of parameters that fit into them: rows with parameters of their own
        are read faster. Kernels are compiled apart for them.
    shared : Shared or None
        An array that `step_one` and `observe_one` take last.
    modules : tuple of str
        Names of other modules whose scalar functions the market's own ones call: their sources count as its own.
    num_controls, num_intensities : int or function ``(params) -> int``
        Lengths of the rows that ``controls_one`` fills; in what it leaves of the controls, ``step_one`` may calculate.
    reset_one : function ``(p, s)``
        Starts an episode in the state row ``s``.
    controls_one : function ``(p, action, controls, log_intensities) -> bool``
        Turns an action into controls in model units and into logarithms of intensities, which the engine
        exponentiates for the whole batch at once; False if the action is not acceptable. It changes no state.
    step_one : function ``(p, s, controls, intensities) -> (reward, terminated)``
        One exact step; it takes the stream from ``s.s0, s.s1`` and puts it back.
    observe_one : function ``(p, s, observation)``
        Writes the float32 observation.
    ranges : function ``(params) -> {column: (lowest, highest)}``
        What columns of the state may be, both ends included, of a column of arrays as tuples; columns that are not
        named may be any finite number. A state from elsewhere is checked by it: kernels trust their state. A row that
        is not to be reset must have a ``step`` below the highest.
    observation_low : function ``(params) -> numbers``
        Lowest entries of an observation; the highest are 1.
    to_quotes, from_quotes : functions ``(params, actions)``, ``(params, quotes)``
        Quotes in model units (float64) of actions (float32, in their box), and back.
    locate : function ``(params, observations) -> tuple of arrays``
        Coordinates of observations: step (or time left) first, integer ones recovered exactly.
    functions : dict of str to function ``(params) -> float or array``
        What kernels read like fields and is no property of the parameters; arrays are named in ``arrays`` too.
    declaration : mmgym.declare.Market or None
        What the market was derived from.

    An environment whose market leaves out one of the four from ``observation_low`` on defines the method that would
    call it.
    """

    name: str
    params_type: Any
    state: np.dtype[Any]
    num_controls: int | Callable[[Any], int]
    num_intensities: int | Callable[[Any], int]
    reset_one: Callable[..., Any]
    controls_one: Callable[..., Any]
    step_one: Callable[..., Any]
    observe_one: Callable[..., Any]
    unread: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    compact: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shared: Shared | None = None
    modules: tuple[str, ...] = ()
    ranges: Callable[[Any], Mapping[str, tuple[Any, Any]]] = field(default=lambda params: {})
    observation_low: Callable[[Any], Sequence[float]] | None = None
    to_quotes: Callable[[Any, Any], NDArray[Any]] | None = None
    from_quotes: Callable[[Any, Any], NDArray[Any]] | None = None
    locate: Callable[[Any, Any], tuple[NDArray[Any], ...]] | None = None
    functions: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    declaration: Any = None
    row_type: Any = field(init=False)
    record_dtypes: tuple[np.dtype[Any], ...] = field(init=False)  # from the smallest to the largest
    literals: dict[str, tuple[Any, ...]] = field(init=False)  # fields that are a code in kernels, with their values
    numbers: tuple[str, ...] = field(init=False)  # other fields and properties that kernels read
    row_dtype: np.dtype[Any] = field(init=False)

    def __post_init__(self) -> None:
        hints = get_type_hints(self.params_type)
        names = [name for name in self.params_type._fields if name not in self.unread]
        plain = [name for name in names if get_origin(hints[name]) is not tuple]
        fields: list[Any] = [(name, _kernel_type(hints[name])) for name in plain]
        literals = {name: get_args(hints[name]) for name in plain if get_origin(hints[name]) is Literal}
        object.__setattr__(self, "literals", literals)
        object.__setattr__(self, "numbers", tuple(name for name in (*plain, *self.derived) if name not in literals))
        getters = {name: getattr(self.params_type, name).fget for name in self.derived}
        fields += [(name, _kernel_type(get_type_hints(getter)["return"])) for name, getter in getters.items()]
        fields += [(name, "f8") for name in self.functions if name not in self.arrays]
        fields += [("place", "i8")] if self.shared else []
        mark = (f"{self.name}_{self.params_type.__name__}_{self._source_hash()}", "u1")
        sizes = [{**self.arrays, **self.compact}, self.arrays] if self.compact else [self.arrays]
        shapes = [[(name, "f8", shape) for name, shape in size.items()] for size in sizes]
        dtypes = tuple(np.dtype([*fields, *columns, mark], align=True) for columns in shapes)
        object.__setattr__(self, "record_dtypes", dtypes)
        columns = ENGINE_COLUMNS[:2] + list(self.state.descr) + ENGINE_COLUMNS[2:]
        object.__setattr__(self, "row_dtype", np.dtype(columns, align=True))
        object.__setattr__(self, "row_type", namedtuple(f"{self.name}_row", self.row_dtype.names or ()))
        for dtype in dtypes:
            batch_kernels.register(from_dtype(dtype), self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _market_of, (self.name, self.params_type)  # unpickling the type imports the module that makes the market

    def _source_hash(self) -> str:
        shared = (batch_kernels, compiling, random_streams, vector_exp, *map(import_module, self.modules))
        sources = [inspect.getfile(module) for module in shared]
        digest = hashlib.sha256()
        with contextlib.suppress(TypeError, OSError):  # a class typed into a notebook has no file
            sources.append(inspect.getfile(self.params_type))
        for function in (self.reset_one, self.controls_one, self.step_one, self.observe_one):
            digest.update(getattr(function, "py_func", function).__code__.co_code)
        for source in sources:
            digest.update(Path(source).read_bytes())
        if self.declaration is not None:
            digest.update(self.declaration.fingerprint)
        return digest.hexdigest()[:16]

    def record(self, params: NamedTuple) -> np.ndarray[Any, Any]:
        """The parameters as kernels take them: a structured array of length 1."""
        arrays = {
            name: np.asarray(
                self.functions[name](params) if name in self.functions else getattr(params, name), np.float64
            )
            for name in self.arrays
        }
        record = np.zeros(1, dtype=next(dtype for dtype in self.record_dtypes if _holds(dtype, arrays)))
        for name, options in self.literals.items():
            record[name] = options.index(getattr(params, name))
        for name in self.numbers:
            record[name] = getattr(params, name)
        for name, function in self.functions.items():
            if name not in self.arrays:
                record[name] = function(params)
        for name, values in arrays.items():
            corner: Any = tuple(slice(length) for length in values.shape)
            record[name][0][corner] = values
        return record

    def lengths(self, params: Any) -> tuple[int, int]:
        """Numbers of controls and of intensities of a row with these parameters."""
        controls, intensities = (
            number if isinstance(number, int) else number(params)
            for number in (self.num_controls, self.num_intensities)
        )
        return controls, intensities

    def digest(self, params: NamedTuple) -> int:
        """A 63-bit number that tells parameters of this market apart."""
        text = f"{self.name}{params._asdict()!r}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _market_of(name: str, params_type: Any) -> Any:
    """The market of that name and type of parameters in this process."""
    for market in batch_kernels.markets():
        if market.name == name and market.params_type is params_type:
            return market
    raise LookupError(f"no market {name!r} with parameters {params_type!r} is known here")


def _holds(dtype: np.dtype[Any], arrays: Mapping[str, NDArray[Any]]) -> bool:
    return all(
        length <= place
        for name, values in arrays.items()
        for length, place in zip(values.shape, dtype[name].shape, strict=True)
    )


def _kernel_type(hint: Any) -> str:
    if hint is float:
        return "f8"
    if hint in (int, bool) or get_origin(hint) is Literal:
        return "i8"
    raise TypeError(f"a kernel parameter of type {hint!r} is not supported: use float, int, bool or Literal")
