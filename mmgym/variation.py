"""Parameters that differ: from row to row of a batch, or from one episode to the next.

``parameters={"volatility": [1.0, 2.0, 3.0]}`` gives each row of a batch its own value for good;
``randomise={"volatility": ["uniform", 1.0, 3.0]}`` draws it anew at every reset, from the row's own random stream. A
law is one of

    ["uniform", low, high]                 ["normal", mean, standard deviation]  (cut at 4 standard deviations)
    ["loguniform", low, high]              ["choice", [values, ...]], or with probabilities ["choice", [...], [...]]

and a joint one is a choice among rows of values, under the names with commas between:
``{"fill_rate, fill_decay": ["choice", [[100.0, 1.0], [140.0, 1.5]]]}``.

Actions mean the same quotes in all rows and episodes: an end of the action box that by default follows from other
parameters is the outermost of what it would be at the corners of the laws' ranges, or in all rows.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real as RealNumber
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import refusal, shown
from mmgym.parameters import Choice, Integer, Multiple, Pair, Real, argument_names, box_ends, create, row_of

__all__ = ["Law", "ParametersOfRows", "Variation", "laws_of", "refuse_rows", "rows_of"]

Values = dict[str, Any]  # of the arguments that differ, by name

CUT = 4.0  # standard deviations at which a normal law ends
MAX_LAWS = 10  # that are drawn independently of each other
MAX_CORNERS = 4096  # combinations of the ends of their ranges
KINDS = ("uniform", "loguniform", "normal", "choice")
LAWS = (
    '["uniform", low, high], ["loguniform", low, high], ["normal", mean, standard deviation], ["choice", values] or '
    '["choice", values, probabilities]'
)


@dataclass(frozen=True)
class Law:
    """The law of one argument, or of several together.

    Attributes
    ----------
    names : tuple of str
        The arguments.
    kind : str
        "uniform", "loguniform", "normal" or "choice".
    ends : tuple of float
        Of a continuous law: its range.
    values : tuple
        Of a choice: the values, or tuples of them where there are several names.
    weights : tuple of float
        Of a choice: their probabilities.
    normal : NormalDist or None
        Of "normal": before it is cut.
    """

    names: tuple[str, ...]
    kind: str
    ends: tuple[float, float] = (0.0, 0.0)
    values: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()
    normal: NormalDist | None = None

    def at(self, quantile: float) -> Values:
        """The values at a quantile, from 0 to 1."""
        if self.kind == "choice":
            place = bisect.bisect_right(tuple(itertools.accumulate(self.weights)), quantile)
            return self._named(self.values[min(place, len(self.values) - 1)])
        return {self.names[0]: self.value(self.coordinate(quantile))}

    def _named(self, value: Any) -> Values:
        return {self.names[0]: value} if len(self.names) == 1 else dict(zip(self.names, value, strict=True))

    def choices(self) -> list[tuple[Values, float]]:
        """Of a choice: its values, each with its probability."""
        return [(self._named(value), weight) for value, weight in zip(self.values, self.weights, strict=True)]

    def coordinate(self, quantile: float) -> float:
        """Of a continuous law: where in -1 ... 1, the range on the law's own scale, a quantile lies."""
        if self.normal is None:
            return 2.0 * quantile - 1.0
        low = NormalDist().cdf(-CUT)
        z = NormalDist().inv_cdf(low + quantile * (1.0 - 2.0 * low))
        return min(max(z / CUT, -1.0), 1.0)

    def density(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of a continuous law: its density at such coordinates, up to a factor."""
        if self.normal is None:
            return np.ones(len(coordinates))
        return np.exp(-0.5 * (CUT * coordinates) ** 2)

    def value(self, coordinate: float) -> float:
        """Of a continuous law: the value at such a coordinate."""
        low, high = self.ends
        if self.kind == "loguniform":
            middle, reach = 0.5 * (math.log(high) + math.log(low)), 0.5 * (math.log(high) - math.log(low))
            return min(max(math.exp(middle + reach * coordinate), low), high)
        return min(max(0.5 * (low + high) + 0.5 * (high - low) * coordinate, low), high)

    def ends_of_range(self) -> list[Values]:
        """The lowest and the highest value; of a choice among others than plain numbers all values."""
        if self.kind != "choice":
            return [{self.names[0]: end} for end in self.ends]
        plain = all(isinstance(value, RealNumber) for value in self.values)
        return [self._named(value) for value in ((min(self.values), max(self.values)) if plain else self.values)]

    def examples(self) -> list[Values]:
        """All values of a choice; of a continuous law its ends, and one between them that is no round number."""
        if self.kind == "choice":
            return [self._named(value) for value in self.values]
        return [*self.ends_of_range(), {self.names[0]: self.value(1.0 / math.pi)}]


def laws_of(randomise: Any) -> tuple[Law, ...]:
    """The laws of the argument `randomise`.

    Raises
    ------
    TypeError
        If it is no mapping of names to laws.
    ValueError
        If a law is none of those that there are.
    """
    if not isinstance(randomise, Mapping) or not randomise:
        raise TypeError(f'randomise = {shown(randomise)} is not allowed: it must be a mapping, {{"name": law, ...}}')
    laws = tuple(_law(key, law) for key, law in randomise.items())
    names = [name for law in laws for name in law.names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"randomise names {twice[0]} twice")
    if len(laws) > MAX_LAWS:
        raise ValueError(f"randomise has {len(laws)} laws: at most {MAX_LAWS} are allowed")
    return laws


def _law(key: Any, law: Any) -> Law:
    names = tuple(part.strip() for part in str(key).split(","))
    where = f"randomise[{key!r}]"
    given = list(law) if isinstance(law, Sequence) and not isinstance(law, str) else []
    kind = given[0] if given and isinstance(given[0], str) else None
    if kind not in KINDS or len(given) not in ((2, 3) if kind == "choice" else (3,)):
        raise refusal(where, law, f"one of {LAWS}")
    if kind == "choice":
        return _choice(names, where, *given[1:])
    if len(names) > 1:
        raise refusal(where, law, 'a "choice" among rows of values, as there are several names')
    if not all(isinstance(end, RealNumber) and math.isfinite(end) for end in given[1:]):
        raise refusal(where, law, f'["{kind}", number, number] with finite numbers')
    first, second = float(given[1]), float(given[2])
    if kind == "normal":
        if not second > 0.0:
            raise refusal(where, law, '["normal", mean, standard deviation] with a standard deviation > 0')
        ends = first - CUT * second, first + CUT * second
        return Law(names, kind, ends, normal=NormalDist(first, second))
    if not first < second or (kind == "loguniform" and not first > 0.0):
        least = "0 < low < high" if kind == "loguniform" else "low < high"
        raise refusal(where, law, f'["{kind}", low, high] with {least}')
    return Law(names, kind, (first, second))


def _choice(names: tuple[str, ...], where: str, values: Any, probabilities: Any = None) -> Law:
    rows = _plain(values)
    if not isinstance(rows, list) or not rows:
        raise refusal(where, values, "a choice among one or more values")
    if len(names) > 1 and not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise refusal(where, values, f"a choice among rows of {len(names)} values, for {', '.join(names)}")
    weights = [1.0] * len(rows) if probabilities is None else _plain(probabilities)
    positive = isinstance(weights, list) and all(isinstance(w, int | float) and 0.0 <= w < math.inf for w in weights)
    if not positive or len(weights) != len(rows) or not sum(weights) > 0.0:
        raise refusal(f"{where}: probabilities", probabilities, f"{len(rows)} numbers >= 0, not all of them 0")
    kept = [(row, float(weight)) for row, weight in zip(rows, weights, strict=True) if weight > 0.0]
    total = math.fsum(weight for _, weight in kept)
    return Law(names, "choice", values=tuple(row for row, _ in kept), weights=tuple(w / total for _, w in kept))


def _plain(value: Any) -> Any:
    """Arrays as lists, and numbers of numpy as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


class ParametersOfRows:
    """Parameters of the rows of a batch: an attribute that all rows share is that value, another an array over rows.

    Attributes
    ----------
    rows : list of the market's ``Params``
    """

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "rows":
            raise AttributeError(name)
        values = [getattr(row, name) for row in self.rows]
        first = values[0]
        if callable(first):
            raise AttributeError(f"{name}() is that of one row's parameters: params.rows[i].{name}()")
        if all(value is first or _same(value, first) for value in values):
            return first
        return ParametersOfRows(values) if hasattr(first, "_fields") else np.array(values)


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


class Variation:
    """Which arguments of a market differ by row or by episode, and what they may be.

    Parameters
    ----------
    params_type : type
        Of the market's parameters.
    arguments : dict
        The other arguments; values that it has for arguments that differ, as presets do, give way.
    laws : tuple of Law
        Of episodes; empty for rows.
    rows : list of dict
        Values of the rows, by name; empty for episodes.
    observed : bool
        Whether observations end in the values.

    Attributes
    ----------
    names : tuple of str
        The arguments that differ.
    fixed : dict
        The other arguments, with the action box that is the same for all.
    width : int
        Entries that the values take in an observation; 0 where they are not observed.
    environment : callable
        Makes a batch of one environment whose parameters differ so.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot differ, or its values are not allowed; the message names it.
    """

    def __init__(
        self,
        params_type: Any,
        arguments: Mapping[str, Any],
        laws: tuple[Law, ...] = (),
        rows: Sequence[Values] = (),
        observed: bool = False,
        environment: Callable[[], Any] | None = None,
    ) -> None:
        self.environment = environment
        self.params_type, self.laws, self.rows, self.observed = params_type, laws, list(rows), observed
        self.names = tuple(name for law in laws for name in law.names) if laws else tuple(self.rows[0])
        for name in self.names:
            self._require_real(name)
        self.fixed = {name: value for name, value in arguments.items() if name not in self.names}
        self.fixed |= box_ends(params_type, self.fixed, [self.fixed | values for values in self.corners()])
        self._low, self._high, self._logarithmic = self._ranges()
        self.width = len(self._low) if observed else 0

    def _key(self) -> tuple[Any, ...]:
        return self.params_type, repr(self.fixed), repr(self.laws), repr(self.rows), self.observed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variation) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _require_real(self, name: str) -> None:
        kind = "randomise" if self.laws else "parameters"
        known = argument_names(self.params_type)
        if name not in known:
            raise TypeError(f"{kind} has the unknown argument {name!r}: allowed are {', '.join(self.allowed())}")
        if name not in self.allowed():
            raise ValueError(
                f"{kind} = {{{name!r}: ...}} is not allowed: whole numbers, choices, profiles and the ends of the "
                f"action box are the same in all rows and episodes; allowed are {', '.join(self.allowed())}"
            )

    def allowed(self) -> list[str]:
        """Arguments that may differ, as far as their kind tells."""
        rows = {name: row_of(self.params_type, name) for name in argument_names(self.params_type)}
        words = [name for name, row in rows.items() if isinstance(row, Choice) or isinstance(row.default, str)]
        fixed = [name for name, row in rows.items() if isinstance(row, Integer) or row.end or not row.varies]
        return [name for name in rows if name not in words + fixed]

    def corners(self) -> Iterator[Values]:
        """Values of all rows that differ; of laws, all combinations of the ends of their ranges."""
        if not self.laws:
            yield from _distinct(self.rows)
            return
        ends = [law.ends_of_range() for law in self.laws]
        if math.prod(map(len, ends)) > MAX_CORNERS:
            raise ValueError(
                f"randomise has {math.prod(map(len, ends)):,} corners: at most {MAX_CORNERS:,} are allowed; give fewer "
                "laws, or choices among fewer values"
            )
        for parts in itertools.product(*ends):
            yield {name: value for part in parts for name, value in part.items()}

    def examples(self) -> Iterator[tuple[str, Values]]:
        """Values that do occur, with the names of those that are not the middle ones: of laws, one law's at a time."""
        middle = self.middle()
        parts = [part for law in self.laws for part in law.examples()] if self.laws else _distinct(self.rows)
        for part in parts:
            yield ", ".join(name for name in part if part[name] != middle[name]), middle | part

    def params(self, values: Mapping[str, Any]) -> Any:
        """The market's parameters with these values."""
        return create(self.params_type, self.fixed | dict(values))

    def drawn(self, quantiles: Sequence[float]) -> Values:
        """Values of an episode from one number in [0, 1) for each law."""
        drawn: Values = {}
        for law, quantile in zip(self.laws, quantiles, strict=True):
            drawn |= law.at(float(quantile))
        return drawn

    def middle(self) -> Values:
        """Values at the median of each law; those of the first row."""
        return self.drawn([0.5] * len(self.laws)) if self.laws else self.rows[0]

    def checked(self, values: Any) -> Values:
        """Values for an episode as a user gives them, each within its range.

        Raises
        ------
        ValueError
            If a name is not among those that differ, or a value is out of its range.
        """
        if not isinstance(values, Mapping) or set(values) - set(self.names):
            raise refusal("parameters", values, f"a mapping of {', '.join(self.names)} to values")
        given = {name: _plain(value) for name, value in values.items()}
        for name, value in given.items():
            place = self.names.index(name)
            start = sum(self._sizes[:place])
            entries = np.ravel(value)
            if entries.dtype.kind not in "fiu" or len(entries) not in (1, self._sizes[place]):
                raise refusal(f"parameters[{name!r}]", value, "a value as those of its law")
            low, high = (ends[start : start + self._sizes[place]] for ends in (self._low, self._high))
            if not ((entries >= low) & (entries <= high)).all():
                ends = ", ".join(f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True))
                raise refusal(f"parameters[{name!r}]", value, f"within the range of its law, {ends}")
        return given

    @property
    def few(self) -> bool:
        """Whether there are so few values that their parameters are worth keeping."""
        return all(law.kind == "choice" for law in self.laws)

    def columns(self, rows: Sequence[Values]) -> dict[str, NDArray[np.float64]]:
        """Values of rows by name: (rows, entries of a value) each."""
        table = np.array([self._entries(values) for values in rows])
        splits = np.cumsum(self._sizes)[:-1]
        return dict(zip(self.names, np.split(table, splits, axis=1), strict=True))

    def values_of(self, state: Mapping[str, Any], count: int) -> list[Values] | None:
        """Values of rows from a state that has all of them; None where it has none.

        Raises
        ------
        ValueError
            If an entry is missing, has another shape, or a value is out of its range.
        """
        entries = [f"parameters.{name}" for name in self.names]
        if not any(entry in state for entry in entries):
            return None
        rows: list[Values] = [{} for _ in range(count)]
        for name, entry, shape in zip(self.names, entries, self._shapes, strict=True):
            size = math.prod(shape)
            if entry not in state or np.shape(state[entry]) != (count, size):
                raise ValueError(f"state entry {entry!r} must have the shape {(count, size)}, for {count} rows")
            for row, value in zip(rows, np.asarray(state[entry]), strict=True):
                row[name] = value.reshape(shape).tolist()
        return [self.checked(row) for row in rows]

    def _ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Lowest and highest entries of the values, and which are on a logarithmic scale."""
        corners = list(self.corners())
        self._shapes = [self._shape(name, [corner[name] for corner in corners]) for name in self.names]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        table = np.array([self._entries(corner) for corner in corners])
        scales = [any(law.kind == "loguniform" and name in law.names for law in self.laws) for name in self.names]
        return table.min(axis=0), table.max(axis=0), np.repeat(scales, self._sizes)

    def _shape(self, name: str, values: Sequence[Any]) -> tuple[int, ...]:
        """That of the values of an argument: all have it, or are one number."""
        words = f"{'randomise' if self.laws else 'parameters'}: {name}"
        shapes = set()
        for value in values:
            try:
                shapes.add(np.shape(np.asarray(value, np.float64)))
            except ValueError as error:
                raise refusal(words, value, "numbers where values differ, no words") from error
        longer = shapes - {()}
        if len(longer) > 1:
            raise refusal(words, list(values), "numbers, or lists of one and the same shape")
        return longer.pop() if longer else ()

    def _entries(self, values: Mapping[str, Any]) -> NDArray[np.float64]:
        """The values in a row, a number for several sides repeated."""
        parts = [
            np.broadcast_to(np.ravel(np.asarray(values[name], np.float64)), (size,))
            for name, size in zip(self.names, self._sizes, strict=True)
        ]
        return np.concatenate(parts)

    def columns_of(self, law: Law) -> NDArray[np.int64]:
        """Which of the entries that observations end in are those of a law."""
        starts = np.cumsum([0, *self._sizes])
        names = [self.names.index(name) for name in law.names]
        return np.concatenate([np.arange(starts[k], starts[k + 1]) for k in names])

    def scaled(self, values: Mapping[str, Any]) -> NDArray[np.float32]:
        """What observations end in: values scaled from their ranges to -1 ... 1 (0 where all are equal)."""
        entries, low, high = self._entries(values), self._low, self._high
        if self._logarithmic.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                entries, low, high = (np.where(self._logarithmic, np.log(e), e) for e in (entries, low, high))
        width = np.where(high > low, high - low, 1.0)
        scaled = np.where(high > low, 2.0 * (entries - low) / width - 1.0, 0.0)
        return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def _distinct(rows: Sequence[Values]) -> list[Values]:
    """The rows that differ, in their order."""
    return list({repr(row): row for row in rows}.values())


def refuse_rows(params_type: Any, arguments: Mapping[str, Any], num_envs: int) -> None:
    """Refuse a list with a value for each row where an argument takes one for all of them.

    Raises
    ------
    ValueError
        The message says how rows get values of their own.
    """
    known = argument_names(params_type)
    for name, value in arguments.items():
        values = _plain(value)
        row = row_of(params_type, name) if name in known else None
        sides = 2 if isinstance(row, Pair) else 1
        if isinstance(values, list) and len(values) == num_envs != sides and isinstance(row, Pair | Real | Multiple):
            raise ValueError(
                f"{name} = {shown(values)} is not allowed: an argument holds for all rows; values by row are given as "
                f"parameters={{{name!r}: [...]}}"
            )


def rows_of(parameters: Any, num_envs: int) -> list[Values]:
    """The argument `parameters` of a batch, as the values of each row.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        If there is not one value for each row.
    """
    if not isinstance(parameters, Mapping) or not parameters:
        raise TypeError(
            f'parameters = {shown(parameters)} is not allowed: it must be a mapping, {{"name": one value a row, ...}}'
        )
    columns = {name: _plain(values) for name, values in parameters.items()}
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != num_envs:
            count = f"has {len(values)} entries" if isinstance(values, list) else "is one value"
            raise ValueError(
                f"parameters[{name!r}] {count}, but there are {num_envs} rows: it must be a list or array of one value "
                "a row; what all rows share is given as an argument of its own"
            )
    return [{name: values[i] for name, values in columns.items()} for i in range(num_envs)]
