"""The mean-field game's parameters, in the words that its solver, its environments and the N-player game share.

The game of Baldacci, Bergault & Possamai: a market-maker and a crowd of market-takers who believe in private signals
``b`` and whose fills move the price, ``dS = sigma dW + kappa d(mean inventory of the takers)``. Money in dollars, time
in days, inventory in assets, traded in orders of ``order_size`` assets; a depth is a distance to the mid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, integer, multiple, normalised, real, refusal, shown, together
from mmgym.parameters import Choice, Integer, Multiple, OtherSide, Pair, Real, Row, create

__all__ = ["BOUNDARY_QUOTES", "MAX_JUMP", "MAX_LEVELS", "MAX_SIGNAL", "MAX_STEPS", "PRESETS", "Game"]

MAX_STEPS = 5_000  # decisions of an episode: the crowd's flow has a row for each
MAX_LEVELS = 50  # orders on one side
MAX_SIGNAL = 10  # levels of the signal on one side
MAX_JUMP = 2 * MAX_SIGNAL  # levels in a jump of the signal
MAX_EVENTS = 600.0  # expected events a step at the smallest depths
MAX_EXPONENT = 50.0  # fill_decay * max_depth
MAX_WORK = 3e7  # num_steps * signals * inventories^2: a minute at most for each best response to a crowd
MAX_PRESSURE = 0.5  # impact * order_size, price: equilibria have been looked for up to here
PRESETS: dict[str, dict[str, Any]] = {  # the registered games
    "paper": {},
    "fast_signals": {"signal_rate": 15.0},
    "coupled": {"impact": 0.02, "initial_law": [80.0, 2]},
    "strong_impact": {"impact": 0.05, "initial_law": [80.0, 2]},
}
BOUNDARY_QUOTES = ("quoting", "zero", "risk_neutral")

Array = NDArray[np.float64]


def _initial_law(given: Any, size: float, long: int, short: int, levels: int) -> tuple[tuple[float, ...], ...]:
    """The law's cells with mass, as (inventory in orders, signal, probability)."""
    allowed = (
        f"'origin', a point [inventory, signal], or a table of {long + short + 1} rows (inventories up to "
        f"inventory_limit, ascending) of {2 * levels + 1} probabilities (signals up to signal_limit, ascending)"
    )
    if isinstance(given, str) and given == "origin":
        return ((0.0, 0.0, 1.0),)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise refusal("initial_law", given, allowed)
    nested = [isinstance(row, Sequence) and not isinstance(row, str) for row in given]
    if not any(nested):
        if len(given) != 2:
            raise refusal("initial_law", given, allowed)
        inventory = multiple("initial_law[0] (inventory)", given[0], "order_size", size)
        level = round(given[1]) if isinstance(given[1], float) and given[1].is_integer() else given[1]
        signal = integer("initial_law[1] (signal)", level, low=-MAX_SIGNAL, high=MAX_SIGNAL)
        for name, value, bound, least, most in (
            ("initial_law[0] (inventory)", inventory, "inventory_limit", -short * size, long * size),
            ("initial_law[1] (signal)", signal, "signal_limit", -levels, levels),
        ):
            _check_from_to(name, value, bound, least, most)
        return ((float(round(inventory / size)), float(signal), 1.0),)
    if not all(nested) or len(given) != long + short + 1 or any(len(row) != 2 * levels + 1 for row in given):
        raise refusal("initial_law", given, allowed)
    cells = []
    for i, row in enumerate(given):
        for j, value in enumerate(row):
            probability = real(f"initial_law[{i}][{j}]", value, low=0.0, high=1.0)
            if probability > 0.0:
                cells.append((float(i - short), float(j - levels), probability))
    total = math.fsum(cell[2] for cell in cells)
    if abs(total - 1.0) > 1e-9:
        raise ValueError(
            f"initial_law = {shown(given)} is not allowed: its probabilities must sum to 1, but sum to {total!r}"
        )
    law = normalised([cell[2] for cell in cells])
    return tuple((inventory, signal, share) for (inventory, signal, _), share in zip(cells, law, strict=True))


def _check_from_to(name: str, value: float, bound: str, least: float, most: float) -> None:
    if not least * (1.0 + 1e-9) <= value <= most * (1.0 + 1e-9):
        shown_bound = most if least == -most else [most, -least]
        raise together({name: value, bound: shown_bound}, f"the {name} must be from {least:g} to {most:g}")


@dataclass(frozen=True)
class Limits(Multiple):
    """Inventory limits of both sides: a multiple of `of`, or a pair of them."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Two floats, the most that is held and the most that is owed."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != 2:
                raise refusal(name, value, f"a number, or a pair [long, short] of multiples of {self.of}")
            places = f"{name}[0] (long)", f"{name}[1] (short)"
            return tuple(super(Limits, self).check(*pair, values) for pair in zip(places, value, strict=True))
        number = super().check(name, value, values)
        return number, number

    def allowed(self) -> str:
        """The range."""
        return f"{super().allowed()}, a number or a pair `[long, short]`"


class InitialLaw(Row):
    """The word "origin", a point [inventory, signal], or a table of probabilities."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """The cells with mass, as (inventory in orders, signal, probability)."""
        long, short = (round(limit / values["order_size"]) for limit in values["inventory_limit"])
        return _initial_law(value, values["order_size"], long, short, values["signal_limit"])

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A point or a table."""
        cells, levels, size = values[0], params.signal_limit, params.order_size
        if len(cells) == 1:
            return [cells[0][0] * size, round(cells[0][1])]
        long, short = round(params.inventory_limit_long / size), round(params.inventory_limit_short / size)
        table = np.zeros((long + short + 1, 2 * levels + 1))
        for inventory, signal, probability in cells:
            table[round(inventory) + short, round(signal) + levels] = probability
        return table.tolist()


class JumpSizes(Row):
    """Probabilities of jumps by 1, 2, ... levels."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Probabilities that sum to 1, as many as the largest jump has levels."""
        most = max(2 * values["signal_limit"], 1)
        allowed = f"1 to {most} probabilities of jumps by 1, 2, ... levels (at most 2 signal_limit), the last above 0"
        if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= most:
            raise refusal(name, value, allowed)
        law = [real(f"{name}[{k}]", share, low=0.0, high=1.0) for k, share in enumerate(value)]
        if abs(math.fsum(law) - 1.0) > 1e-9 or law[-1] == 0.0:
            raise refusal(name, value, f"{allowed}, with the sum 1")
        return tuple(normalised(law)) if len(law) > 1 else (1.0,)

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list."""
        return list(values[0])


class Game(NamedTuple):
    """Parameters of the game. Build them with `Game.create`, which checks them."""

    volatility: Annotated[float, Real(8.0, 0.0, 1e9, "dollars / sqrt(day)", "sigma")]
    impact: Annotated[
        float,
        Real(5e-5, 0.0, 1e12, "dollars / asset", "kappa"),
        f"at most ``{MAX_PRESSURE:g} / order_size``. An equilibrium is played only if its residual is small; where "
        "the solver does not find it, `mmgym.models.mean_field_limit.NotConverged` is raised, after some minutes: with "
        "``signal_rate=[3, 0]`` from an impact of 0.04 on. `mmgym.models.mean_field_flow.solve_equilibrium_flow` says "
        "which games were tested",
    ]
    signal_rate_up: Annotated[
        float, Pair(1.5, 0.0, 1e6, "1 / day", "lambda", sides=("up", "down")), "jumps of the takers' signals"
    ]
    signal_rate_down: OtherSide
    signal_limit: Annotated[int, Integer(4, 0, MAX_SIGNAL, "units", "b"), "levels of the signal on either side of 0"]
    signal_unit: Annotated[float, Real(1.0, TINY, 1e9, "dollars / day"), "the drift that a level of the signal is"]
    signal_jump_sizes: Annotated[
        tuple[float, ...],
        JumpSizes((1.0,)),
        "a list of the probabilities of jumps by 1, 2, ... levels, at most ``2 signal_limit`` of them, the last above "
        "0, with the sum 1; jumps beyond the limit do not happen",
    ]
    taker_fill_rate_bid: Annotated[float, Pair(70.0, TINY, 1e9, "fills / day", "A^m"), "the takers', at depth 0"]
    taker_fill_rate_ask: OtherSide
    taker_fill_decay_bid: Annotated[float, Pair(2.375, 1e-9, 1e9, "1 / dollar", "k^m / sigma")]
    taker_fill_decay_ask: OtherSide
    maker_fill_rate_bid: Annotated[
        float, Pair(100.0, TINY, 1e9, "fills / day", "A"), "the maker's, where the takers' mean quote is 0"
    ]
    maker_fill_rate_ask: OtherSide
    maker_fill_decay_bid: Annotated[float, Pair(2.375, 1e-9, 1e9, "1 / dollar", "k / sigma")]
    maker_fill_decay_ask: OtherSide
    order_size: Annotated[float, Real(10.0, TINY, 1e9, "assets", "z")]
    inventory_limit_long: Annotated[
        float,
        Limits(120.0, 1, MAX_LEVELS, "assets", "q~", of="order_size", argument="inventory_limit"),
        "of each taker: bids are off at the long limit, asks at the short one",
    ]
    inventory_limit_short: OtherSide
    maker_inventory_limit_long: Annotated[
        float,
        Limits(None, 1, MAX_LEVELS, "assets", of="order_size", argument="maker_inventory_limit", none=True),
        "of the maker, by default the takers'",
    ]
    maker_inventory_limit_short: OtherSide
    maker_initial_inventory: Annotated[float, Multiple(0.0, -MAX_LEVELS, MAX_LEVELS, "assets", of="order_size")]
    taker_risk_aversion: Annotated[float, Real(1e-4, 0.0, 1e6, "1 / dollar", "gamma")]
    maker_risk_aversion: Annotated[float, Real(5e-4, 0.0, 1e6, "1 / dollar", "phi")]
    max_depth: Annotated[
        float, Real(1.5, TINY, 1e12, "dollars", "d_inf"), "the box of depths is ``[-max_depth, max_depth]``"
    ]
    horizon: Annotated[float, Real(5.0, TINY, 1e9, "days", "T")]
    num_steps: Annotated[int, Integer(500, 1, MAX_STEPS, symbol="N"), "decisions of an episode"]
    initial_law: Annotated[
        tuple[tuple[float, ...], ...],
        InitialLaw((0.0, 0)),
        'of the takers\' inventory and signal: a point ``[inventory, signal]``, "origin" for ``[0, 0]``, or a table of '
        "probabilities with a row per inventory and a column per signal, both ascending",
    ]
    boundary_quotes: Annotated[
        Literal["quoting", "zero", "risk_neutral"],
        Choice("quoting"),
        "which quotes enter the takers' mean quotes, that the maker meets: of the takers who quote on that "
        "side (if nobody does, the maker is not filled); or of all, where a taker at the inventory limit counts as "
        '0 ("zero") or as ``1 / taker_fill_decay`` ("risk_neutral")',
    ]

    @classmethod
    def create(cls, **arguments: Any) -> "Game":
        """Checked parameters; the arguments are those of `mmgym.envs.mean_field.MeanFieldTakerEnv`."""
        return create(cls, arguments)

    def completed(self, given: Mapping[str, Any]) -> "Game":
        """These parameters, checked against each other."""
        if self.maker_inventory_limit_long is None:
            limits = self.inventory_limit_long, self.inventory_limit_short
            self = self._replace(maker_inventory_limit_long=limits[0], maker_inventory_limit_short=limits[1])
        least, most = -self.maker_inventory_limit_short, self.maker_inventory_limit_long
        _check_from_to("maker_initial_inventory", self.maker_initial_inventory, "maker_inventory_limit", least, most)
        impact, size, depth, steps = self.impact, self.order_size, self.max_depth, self.num_steps
        if impact * size > MAX_PRESSURE * (1.0 + 1e-12):
            raise together(
                {"impact": impact, "order_size": size},
                f"the solver of the equilibrium is tested up to impact * order_size = {MAX_PRESSURE:g} only, which is "
                f"impact = {MAX_PRESSURE / size:g} here",
            )
        decay = float(max(self.taker_fill_decay.max(), self.maker_fill_decay.max()))
        if depth * decay > MAX_EXPONENT * (1.0 + 1e-12):
            raise together(
                {name: given[name] for name in ("max_depth", "taker_fill_decay", "maker_fill_decay")},
                f"max_depth must be at most {MAX_EXPONENT / decay:g}, {MAX_EXPONENT:g} over the larger decay",
            )
        work = steps * self.shape[0] * self.shape[1] ** 2
        if work > MAX_WORK:
            raise together(
                {name: given[name] for name in ("num_steps", "signal_limit", "inventory_limit", "order_size")},
                "a best response to the crowd would take minutes, and the equilibrium many of them: num_steps * "
                f"(2 signal_limit + 1) * ((long + short limit) / order_size + 1)^2 = {work:g} must be at most "
                f"{MAX_WORK:g}",
            )
        events = (self.fastest_fills + self.signal_rate_up + self.signal_rate_down) * self.horizon / steps
        if events > MAX_EVENTS:
            names = ("num_steps", "taker_fill_rate", "taker_fill_decay", "max_depth")
            raise together(
                {name: given[name] for name in (*names, "signal_rate", "horizon")},
                f"a taker's expected events a step at the depth -max_depth, {events:g}, must be at most "
                f"{MAX_EVENTS:g}; raise num_steps or lower max_depth",
            )
        return self

    @property
    def step_length(self) -> float:
        """Length ``h`` of a decision step (time)."""
        return self.horizon / self.num_steps

    @property
    def taker_fill_rate(self) -> Array:
        """Of bid and ask (1 / time), shape (2,)."""
        return np.array([self.taker_fill_rate_bid, self.taker_fill_rate_ask])

    @property
    def taker_fill_decay(self) -> Array:
        """Of bid and ask (1 / price), shape (2,)."""
        return np.array([self.taker_fill_decay_bid, self.taker_fill_decay_ask])

    @property
    def maker_fill_rate(self) -> Array:
        """Of bid and ask (1 / time), shape (2,)."""
        return np.array([self.maker_fill_rate_bid, self.maker_fill_rate_ask])

    @property
    def maker_fill_decay(self) -> Array:
        """Of bid and ask (1 / price), shape (2,)."""
        return np.array([self.maker_fill_decay_bid, self.maker_fill_decay_ask])

    @property
    def fastest_fills(self) -> float:
        """Intensity of a taker's fills at the depths ``-max_depth`` (1 / time)."""
        return float(self.taker_fill_rate @ np.exp(self.taker_fill_decay * self.max_depth))

    @property
    def inventory_limit(self) -> float:
        """The larger limit of a taker (assets)."""
        return max(self.inventory_limit_long, self.inventory_limit_short)

    @property
    def limit(self) -> int:
        """The larger limit of a taker in orders."""
        return round(self.inventory_limit / self.order_size)

    @property
    def short(self) -> int:
        """Orders that a taker may owe: the level of the inventory 0."""
        return round(self.inventory_limit_short / self.order_size)

    @property
    def maker_short(self) -> int:
        """Orders that the maker may owe: the level of the inventory 0."""
        return round(self.maker_inventory_limit_short / self.order_size)

    @property
    def maker_start(self) -> int:
        """The level of the maker's initial inventory."""
        return round(self.maker_initial_inventory / self.order_size) + self.maker_short

    @property
    def shape(self) -> tuple[int, int]:
        """Levels ``(B, Q)`` of the signal and of a taker's inventory."""
        return 2 * self.signal_limit + 1, len(self.inventory)

    @property
    def inventory(self) -> Array:
        """Inventories of a taker (assets), shape (Q,)."""
        lots = np.arange(-self.short, round(self.inventory_limit_long / self.order_size) + 1)
        return np.asarray(lots * self.order_size, dtype=np.float64)

    @property
    def maker_inventory(self) -> Array:
        """Inventories of the maker (assets), shape (M,)."""
        lots = np.arange(-self.maker_short, round(self.maker_inventory_limit_long / self.order_size) + 1)
        return np.asarray(lots * self.order_size, dtype=np.float64)

    @property
    def signal(self) -> Array:
        """Signals (price / time), shape (B,)."""
        return self.signal_unit * np.arange(-self.signal_limit, self.signal_limit + 1, dtype=np.float64)

    @property
    def jumps(self) -> Array:
        """Rates at which the signal rises and falls by 1, 2, ... levels (1 / time), shape (2, J)."""
        return np.outer([self.signal_rate_up, self.signal_rate_down], self.signal_jump_sizes)

    @property
    def signal_generator(self) -> Array:
        """Generator of the signal, shape (B, B), rows sum to 0."""
        count = self.shape[0]
        rates = np.zeros((count, count))
        for size, (up, down) in enumerate(self.jumps.T[: count - 1], 1):
            rates += np.diag(np.full(count - size, up), size) + np.diag(np.full(count - size, down), -size)
        return np.asarray(rates - np.diag(rates.sum(axis=1)))

    @property
    def initial(self) -> Array:
        """Law of the takers at time 0, shape (B, Q)."""
        law = np.zeros(self.shape)
        for inventory, signal, probability in self.initial_law:
            law[round(signal) + self.signal_limit, round(inventory) + self.short] = probability
        return law

    @property
    def taker_penalty(self) -> float:
        """``gamma sigma^2`` (price / (assets^2 time))."""
        return self.taker_risk_aversion * self.volatility**2

    @property
    def maker_penalty(self) -> float:
        """``phi sigma^2`` (price / (assets^2 time))."""
        return self.maker_risk_aversion * self.volatility**2
