"""The mean-field game's parameters, in the words that its solver, its environments and the N-player game share.

The game of Baldacci, Bergault & Possamai: a market-maker and a crowd of market-takers who believe in private signals
``b`` and whose fills move the price, ``dS = sigma dW + kappa d(mean inventory of the takers)``. Money in dollars, time
in days, inventory in assets, traded in orders of ``order_size`` assets; a depth is a distance to the mid.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, choice, integer, multiple, pair, real, refusal, shown, together

__all__ = ["BOUNDARY_QUOTES", "MAX_LEVELS", "MAX_SIGNAL", "MAX_STEPS", "PRESETS", "Game"]

MAX_STEPS = 5_000  # decisions of an episode: the crowd's flow has a row for each
MAX_LEVELS = 50  # orders on one side
MAX_SIGNAL = 10  # levels of the signal on one side
MAX_EVENTS = 600.0  # expected events a step at the smallest depths
MAX_EXPONENT = 50.0  # fill_decay * max_depth
MAX_WORK = 3e7  # num_steps * signals * inventories^2: a minute at most for each best response to a crowd
MAX_PRESSURE = 0.5  # impact * order_size, price: equilibria have been looked for up to here
PRESETS: dict[str, dict[str, Any]] = {  # the registered games
    "paper": {},
    "fast_signals": {"signal_rate": 15.0},
    "coupled": {"impact": 0.02, "initial_law": [80.0, 2]},
}
BOUNDARY_QUOTES = ("quoting", "zero", "risk_neutral")

Array = NDArray[np.float64]


class Game(NamedTuple):
    """Parameters of the game (paper symbol, unit). Build them with `Game.create`, which checks them."""

    volatility: float  # sigma, price / sqrt(time)
    impact: float  # kappa, price / asset
    signal_rate_up: float  # lambda+, 1 / time
    signal_rate_down: float  # lambda-, 1 / time
    signal_limit: int  # b limit, price / time, in steps of 1
    taker_fill_rate: float  # A^m, 1 / time
    taker_fill_decay: float  # k^m / sigma, 1 / price
    maker_fill_rate: float  # A, 1 / time
    maker_fill_decay: float  # k / sigma, 1 / price
    order_size: float  # z, assets
    inventory_limit: float  # assets
    taker_risk_aversion: float  # gamma, 1 / price
    maker_risk_aversion: float  # phi, 1 / price
    max_depth: float  # d_inf, price
    horizon: float  # T, time
    num_steps: int  # N, decisions
    initial_law: tuple[tuple[float, ...], ...]  # of the takers: (inventory in orders, signal, probability) with mass
    boundary_quotes: Literal["quoting", "zero", "risk_neutral"]

    @classmethod
    def create(
        cls,
        *,
        volatility: float = 8.0,
        impact: float = 5e-5,
        signal_rate: float | list[float] = 1.5,
        signal_limit: int = 4,
        taker_fill_rate: float = 70.0,
        taker_fill_decay: float = 2.375,
        maker_fill_rate: float = 100.0,
        maker_fill_decay: float = 2.375,
        order_size: float = 10.0,
        inventory_limit: float = 120.0,
        taker_risk_aversion: float = 1e-4,
        maker_risk_aversion: float = 5e-4,
        max_depth: float = 1.5,
        horizon: float = 5.0,
        num_steps: int = 500,
        initial_law: str | list[Any] = "origin",
        boundary_quotes: str = "quoting",
    ) -> "Game":
        """Checked parameters; the arguments are those of `mmgym.envs.mean_field.MeanFieldTakerEnv`.

        Raises
        ------
        ValueError
            If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
        """
        up, down = pair("signal_rate", signal_rate, low=0.0, high=1e6)
        signal_limit = integer("signal_limit", signal_limit, low=0, high=MAX_SIGNAL)
        rates = [
            real(name, value, low=TINY, high=1e9)
            for name, value in (("taker_fill_rate", taker_fill_rate), ("maker_fill_rate", maker_fill_rate))
        ]
        decays = [
            real(name, value, low=1e-9, high=1e9)
            for name, value in (("taker_fill_decay", taker_fill_decay), ("maker_fill_decay", maker_fill_decay))
        ]
        order_size = real("order_size", order_size, low=TINY, high=1e9)
        inventory_limit = multiple("inventory_limit", inventory_limit, "order_size", order_size, low=1, high=MAX_LEVELS)
        impact = real("impact", impact, low=0.0, high=1e12)
        if impact * order_size > MAX_PRESSURE * (1.0 + 1e-12):
            raise together(
                {"impact": impact, "order_size": order_size},
                f"the solver of the equilibrium is tested up to impact * order_size = {MAX_PRESSURE:g} only, which is "
                f"impact = {MAX_PRESSURE / order_size:g} here",
            )
        max_depth = real("max_depth", max_depth, low=TINY, high=1e12)
        if max_depth * max(decays) > MAX_EXPONENT * (1.0 + 1e-12):
            raise together(
                {"max_depth": max_depth, "taker_fill_decay": decays[0], "maker_fill_decay": decays[1]},
                f"max_depth must be at most {MAX_EXPONENT / max(decays):g}, {MAX_EXPONENT:g} over the larger decay",
            )
        horizon = real("horizon", horizon, low=TINY, high=1e9)
        num_steps = integer("num_steps", num_steps, low=1, high=MAX_STEPS)
        levels = 2 * round(inventory_limit / order_size) + 1
        work = num_steps * (2 * signal_limit + 1) * levels**2
        if work > MAX_WORK:
            raise together(
                {
                    "num_steps": num_steps,
                    "signal_limit": signal_limit,
                    "inventory_limit": inventory_limit,
                    "order_size": order_size,
                },
                "a best response to the crowd would take minutes, and the equilibrium many of them: num_steps * "
                f"(2 signal_limit + 1) * (2 inventory_limit / order_size + 1)^2 = {work:g} must be at most "
                f"{MAX_WORK:g}",
            )
        fastest = 2.0 * rates[0] * math.exp(decays[0] * max_depth) + up + down
        if fastest * horizon / num_steps > MAX_EVENTS:
            raise together(
                {
                    "num_steps": num_steps,
                    "taker_fill_rate": rates[0],
                    "taker_fill_decay": decays[0],
                    "max_depth": max_depth,
                    "signal_rate": signal_rate,
                    "horizon": horizon,
                },
                f"a taker's expected events a step at the depth -max_depth, {fastest * horizon / num_steps:g}, must be "
                f"at most {MAX_EVENTS:g}; raise num_steps or lower max_depth",
            )
        return cls(
            volatility=real("volatility", volatility, low=0.0, high=1e9),
            impact=impact,
            signal_rate_up=up,
            signal_rate_down=down,
            signal_limit=signal_limit,
            taker_fill_rate=rates[0],
            taker_fill_decay=decays[0],
            maker_fill_rate=rates[1],
            maker_fill_decay=decays[1],
            order_size=order_size,
            inventory_limit=inventory_limit,
            taker_risk_aversion=real("taker_risk_aversion", taker_risk_aversion, low=0.0, high=1e6),
            maker_risk_aversion=real("maker_risk_aversion", maker_risk_aversion, low=0.0, high=1e6),
            max_depth=max_depth,
            horizon=horizon,
            num_steps=num_steps,
            initial_law=_initial_law(initial_law, order_size, round(inventory_limit / order_size), signal_limit),
            boundary_quotes=choice("boundary_quotes", boundary_quotes, BOUNDARY_QUOTES),
        )

    @property
    def step_length(self) -> float:
        """Length ``h`` of a decision step (time)."""
        return self.horizon / self.num_steps

    @property
    def limit(self) -> int:
        """Inventory bound in orders."""
        return round(self.inventory_limit / self.order_size)

    @property
    def shape(self) -> tuple[int, int]:
        """Levels ``(B, Q)`` of the signal and of the inventory."""
        return 2 * self.signal_limit + 1, 2 * self.limit + 1

    @property
    def inventory(self) -> Array:
        """Inventories (assets), shape (Q,)."""
        return np.asarray(np.arange(-self.limit, self.limit + 1) * self.order_size, dtype=np.float64)

    @property
    def signal(self) -> Array:
        """Signals (price / time), shape (B,)."""
        return np.arange(-self.signal_limit, self.signal_limit + 1, dtype=np.float64)

    @property
    def jumps(self) -> Array:
        """Rates at which the signal rises and falls (1 / time), shape (2,)."""
        return np.array([self.signal_rate_up, self.signal_rate_down])

    @property
    def signal_generator(self) -> Array:
        """Generator of the signal, shape (B, B), rows sum to 0."""
        count = self.shape[0]
        rates = np.diag(np.full(count - 1, self.signal_rate_up), 1)
        rates += np.diag(np.full(count - 1, self.signal_rate_down), -1)
        return np.asarray(rates - np.diag(rates.sum(axis=1)))

    @property
    def initial(self) -> Array:
        """Law of the takers at time 0, shape (B, Q)."""
        law = np.zeros(self.shape)
        for inventory, signal, probability in self.initial_law:
            law[round(signal) + self.signal_limit, round(inventory) + self.limit] = probability
        return law

    @property
    def taker_penalty(self) -> float:
        """``gamma sigma^2`` (price / (assets^2 time))."""
        return self.taker_risk_aversion * self.volatility**2

    @property
    def maker_penalty(self) -> float:
        """``phi sigma^2`` (price / (assets^2 time))."""
        return self.maker_risk_aversion * self.volatility**2


def _initial_law(given: Any, size: float, limit: int, signal_limit: int) -> tuple[tuple[float, ...], ...]:
    """The law's cells with mass, as (inventory in orders, signal, probability)."""
    allowed = (
        f"'origin', a point [inventory, signal], or a table of {2 * limit + 1} rows (inventories up to "
        f"inventory_limit, ascending) of {2 * signal_limit + 1} probabilities (signals up to signal_limit, ascending)"
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
        signal = integer("initial_law[1] (signal)", given[1], low=-MAX_SIGNAL, high=MAX_SIGNAL)
        for name, value, bound, most in (
            ("initial_law[0] (inventory)", inventory, "inventory_limit", limit * size),
            ("initial_law[1] (signal)", signal, "signal_limit", signal_limit),
        ):
            if abs(value) > most * (1.0 + 1e-9):
                raise together({name: value, bound: most}, f"the {name} must be from -{bound} to {bound}")
        return ((float(round(inventory / size)), float(signal), 1.0),)
    if not all(nested) or len(given) != 2 * limit + 1 or any(len(row) != 2 * signal_limit + 1 for row in given):
        raise refusal("initial_law", given, allowed)
    cells = []
    for i, row in enumerate(given):
        for j, value in enumerate(row):
            probability = real(f"initial_law[{i}][{j}]", value, low=0.0, high=1.0)
            if probability > 0.0:
                cells.append((float(i - limit), float(j - signal_limit), probability))
    total = math.fsum(cell[2] for cell in cells)
    if abs(total - 1.0) > 1e-9:
        raise ValueError(
            f"initial_law = {shown(given)} is not allowed: its probabilities must sum to 1, but sum to {total!r}"
        )
    return tuple((inventory, signal, probability / total) for inventory, signal, probability in cells)
