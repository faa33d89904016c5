r"""What declared markets with quotes share: parameters, fill curves, and the continuous-time optimum in the action box.

A quote at the depth ``d`` is filled at the intensity ``A f(k d)``, whose curve ``f`` has ``f(0) = 1`` and
``f'(0) = -1``; ``f f'' < 2 f'^2``, the condition of Guéant (2017), makes best depths unique:

    "exponential"  f(y) = exp(-y),                  "linear"  f(y) = max(0, 1 - y),
    "logistic"     f(y) = 2 / (1 + exp(2 y)),       "power"   f(y) = (1 + y / n)^-n,  n = `fill_power` > 1.

Let a fill of the quote ``e`` trade ``D_e`` assets, bring ``D_e d - c_e(x)`` and move the state ``x`` to ``x_e``. In
continuous time the value solves (Guéant 2017; under "cara" it is a certainty equivalent)

    v_t + flow(x) + sum_e A D_e H_e(p_e(x)) + other events = 0,    p_e = (v(x) - v(x_e) + c_e(x)) / D_e,
    H_e(p) = max_d f(k d) (1 - exp(-gamma D_e (d - p))) / (gamma D_e)    (mean: max_d f(k d) (d - p)),

the maximum over the box of depths. At a maximiser inside it ``d = p + ln(1 + gamma D_e m(d)) / (gamma D_e)``, in the
mean ``d = p + m(d)``, with ``m = -f / f'`` in units of price.
"""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import scipy
from numba import njit
from numpy.typing import NDArray

from mmgym import declared_kernels
from mmgym.arguments import TINY, together
from mmgym.compiling import KERNEL
from mmgym.declare import Box, Coordinate, Market, exp, rates_of
from mmgym.market import scalar_kernel
from mmgym.models.glft import MAX_EVENTS, MAX_STEPS
from mmgym.models.wealth import checked_penalty
from mmgym.parameters import Choice, Integer, Multiple, Real, check_within, create

Array = NDArray[np.float64]

__all__ = [
    "INVENTORY", "best_depths", "continuous_depths", "curve", "depth_box", "hamiltonian_slopes", "intensity",
    "inventory", "parameters", "position",
]  # fmt: skip

Curve = Literal["exponential", "linear", "logistic", "power"]
EXPONENTIAL, LINEAR, LOGISTIC = range(3)  # codes of `fill_curve` in kernels
CURVES: tuple[str, ...] = get_args(Curve)
MAX_EXPONENT = 300.0  # |fill_decay * depth|

FIELDS: dict[str, Any] = {
    "volatility": Annotated[float, Real(2.0, 0.0, 1e3, "price / sqrt(time)", "sigma"), "of the mid"],
    "fill_rate": Annotated[float, Real(140.0, TINY, 1e9, "fills / time", "A"), "of each side at depth 0"],
    "fill_decay": Annotated[
        float, Real(1.5, 1e-6, 1e6, "1 / price", "k"), "relative slope of the intensity at depth 0"
    ],
    "fill_curve": Annotated[Curve, Choice("exponential"), "how the intensity falls with the depth"],
    "fill_power": Annotated[float, Real(3.0, 1.01, 100.0, "1", "n"), 'of `fill_curve` "power"'],
    "order_size": Annotated[float, Real(1.0, TINY, 1e6, "assets", "D")],
    "inventory_limit": Annotated[float, Multiple(10.0, 1, 1e4, "assets", "Q", of="order_size")],
    "initial_inventory": Annotated[
        float, Multiple(0.0, unit="assets", symbol="q_0", of="order_size"), "within `inventory_limit`"
    ],
    "initial_price": Annotated[float, Real(100.0, -1e9, 1e9, "price", "S_0")],
    "horizon": Annotated[float, Real(1.0, TINY, 1e6, "time", "T")],
    "num_steps": Annotated[int, Integer(200, 1, MAX_STEPS, symbol="N"), "decisions of an episode"],
    "running_penalty": Annotated[
        float,
        Real(None, 0.0, 1e9, "price / (assets * time)", "phi", none=True),
        'None is ``risk_aversion * volatility^2 / 2`` under "mean"; under "cara" it must be None or 0',
    ],
    "terminal_penalty": Annotated[float, Real(0.0, 0.0, 1e6, "price / assets", "alpha")],
    "utility": Annotated[Literal["mean", "cara"], Choice("mean")],
    "risk_aversion": Annotated[
        float,
        Real(0.1, 0.0, 1e3, "1 / (price * assets)", "gamma"),
        '> 0 under "cara"; under "mean" it only sets the default of `running_penalty`',
    ],
    "min_depth": Annotated[float, Real(None, -1e9, 1e9, "price", none=True, end="low"), "None is ``-1 / fill_decay``"],
    "max_depth": Annotated[
        float,
        Real(None, -1e9, 1e9, "price", none=True, end="high"),
        "None is ``3 / fill_decay``, or a third of it if linear",
    ],
    "reward": Annotated[Literal["pnl", "expected"], Choice("pnl")],
}


EVENT_ARGUMENTS = ("fill_curve", "fill_rate", "fill_decay", "fill_power", "min_depth", "horizon", "num_steps")


class _Quotes:
    """What parameters of these markets can do."""

    @classmethod
    def create(cls, **arguments: Any) -> Any:
        """Checked parameters; the arguments are those of the environment, errors those of `mmgym.parameters.create`."""
        return create(cls, arguments)

    def completed(self: Any, given: Mapping[str, Any]) -> Any:
        """These parameters with the defaults that depend on others, checked against each other."""
        check_within(self, "initial_inventory", "inventory_limit")
        far = 1.0 if self.fill_curve == "linear" else 3.0
        p = self._replace(
            running_penalty=checked_penalty(
                self, given["running_penalty"], 0.5 * self.risk_aversion * self.start_volatility**2
            ),
            min_depth=-1.0 / self.fill_decay if self.min_depth is None else self.min_depth,
            max_depth=far / self.fill_decay if self.max_depth is None else self.max_depth,
        )
        depths, low = {"min_depth": p.min_depth, "max_depth": p.max_depth}, p.fill_decay * p.min_depth
        if not p.min_depth < p.max_depth:
            raise together(depths, "min_depth must be below max_depth")
        if max(abs(low), abs(p.fill_decay * p.max_depth)) > MAX_EXPONENT * (1.0 + 1e-12):
            reach = MAX_EXPONENT / p.fill_decay
            raise together(
                {**depths, "fill_decay": p.fill_decay}, f"depths must be from {-reach:g} to {reach:g}, 300 / fill_decay"
            )
        if p.fill_curve == "power" and not low > -p.fill_power:
            raise together(
                {"min_depth": p.min_depth, "fill_power": p.fill_power},
                f"min_depth must be above {-p.fill_power / p.fill_decay:g}, -fill_power / fill_decay, with a power",
            )
        events = p.fill_rate * curve(CURVES.index(p.fill_curve), low, p.fill_power) * p.horizon / p.num_steps
        if events > MAX_EVENTS:
            raise together(
                {name: getattr(p, name) for name in EVENT_ARGUMENTS},
                f"the expected fills of a quote at min_depth in a step, {events:g}, must be at most {MAX_EVENTS:g}; "
                "raise min_depth or num_steps",
            )
        return p

    @property
    def start_volatility(self: Any) -> float:
        """Of the mid at the start (price / sqrt(time))."""
        return float(self.volatility)

    @property
    def limit(self: Any) -> int:
        """Inventory bound in orders."""
        count: int = round(self.inventory_limit / self.order_size)
        return count

    @property
    def start(self: Any) -> int:
        """Initial inventory in orders."""
        count: int = round(self.initial_inventory / self.order_size)
        return count


def parameters(**fields: Any) -> Any:
    """The base class of a market's parameters: those that all have, and ``fields`` of its own (annotations).

    A field of its own takes the place of one of the same name.
    """
    table: Any = NamedTuple("Fields", list({**FIELDS, **fields}.items()))
    return type("Fields", (_Quotes, table), {})


def depth_box(name: str) -> Box:
    """The control of a quote."""
    return Box(name, lambda p: p.min_depth, lambda p: p.max_depth, lambda p: 1.0 / p.fill_decay)


def inventory() -> Coordinate:
    """The inventory, in orders."""
    return Coordinate("inventory", lambda p: -p.limit, lambda p: p.limit, lambda p: p.order_size)


@scalar_kernel
def position(p, x):
    """``q``."""
    return p.order_size * x.inventory


def variance(p):
    """``sigma^2``."""
    return p.volatility**2


@scalar_kernel
def curve(kind, y, power):
    """``f(y)`` of the fill curve."""
    if kind == EXPONENTIAL:
        return exp(-y)
    if kind == LINEAR:
        return max(0.0, 1.0 - y)
    if kind == LOGISTIC:
        return 2.0 / (1.0 + exp(2.0 * y))
    return (1.0 + y / power) ** -power


@scalar_kernel
def intensity(p, depth):
    """``A f(k d)``."""
    return p.fill_rate * curve(p.fill_curve, p.fill_decay * depth, p.fill_power)


def running_penalty(p, x):
    """``phi q^2``."""
    return p.running_penalty * position(p, x) ** 2


def terminal_penalty(p, x):
    """``alpha q^2``."""
    return p.terminal_penalty * position(p, x) ** 2


INVENTORY: dict[str, Any] = {  # what a declaration says of it
    "position": position,
    "variance": variance,
    "running_penalty": running_penalty,
    "terminal_penalty": terminal_penalty,
}


@scalar_kernel
def _markup(kind, y, power):
    """``-f / f'`` and its derivative at ``y``."""
    if kind == EXPONENTIAL:
        return 1.0, 0.0
    if kind == LINEAR:
        return max(0.0, 1.0 - y), -1.0 if y < 1.0 else 0.0
    if kind == LOGISTIC:
        return 0.5 + 0.5 * math.exp(-2.0 * y), -math.exp(-2.0 * y)
    return 1.0 + y / power, 1.0 / power


@scalar_kernel
def _excess(kind, y, z, power, theta):
    """``y - z - ln(1 + theta m(y)) / theta``, which rises through 0 at the best ``y``, and its derivative."""
    markup, slope = _markup(kind, y, power)
    wanted = math.log1p(theta * markup) / theta if theta > 0.0 else markup
    return y - z - wanted, 1.0 - slope / (1.0 + theta * markup)


@njit(**KERNEL)
def _best(kind, reservations, power, thetas, low, high):
    """Best ``k d`` (E, S) from ``low`` to ``high`` at ``k p`` (E, S), with ``gamma D / k`` (E,), by Newton's method."""
    result = np.empty_like(reservations)
    for e in range(result.shape[0]):
        for i in range(result.shape[1]):
            z, y = reservations[e, i], low
            if _excess(kind, high, z, power, thetas[e])[0] <= 0.0:
                y = high
            elif _excess(kind, low, z, power, thetas[e])[0] < 0.0:
                for _ in range(1000):
                    excess, slope = _excess(kind, y, z, power, thetas[e])
                    following = min(max(y - excess / slope, low), high)
                    close = abs(following - y) <= 1e-14 * (1.0 + abs(y))
                    y = following
                    if close:
                        break
            result[e, i] = y
    return result


@njit(**KERNEL)
def _curves(kind, y, power):
    result = np.empty_like(y)
    for e in range(y.shape[0]):
        for i in range(y.shape[1]):
            result[e, i] = curve(kind, y[e, i], power)
    return result


def best_depths(p: Any, reservations: Array, aversions: Any = 0.0) -> Array:
    """Best depths (E, S) in the box at reservation prices (E, S), with ``gamma D`` (E,) or 0 for the mean (price)."""
    thetas = np.broadcast_to(np.asarray(aversions, dtype=np.float64) / p.fill_decay, len(reservations))
    low, high = p.fill_decay * p.min_depth, p.fill_decay * p.max_depth
    scaled = _best(CURVES.index(p.fill_curve), p.fill_decay * reservations, p.fill_power, thetas, low, high)
    return np.asarray(np.clip(scaled / p.fill_decay, p.min_depth, p.max_depth))


def hamiltonian_slopes(p: Any, reservations: Array, aversions: Any = 0.0) -> Array:
    """``H'`` (E, S) at reservation prices, as `best_depths` takes them."""
    depths = best_depths(p, reservations, aversions)
    fills = _curves(CURVES.index(p.fill_curve), p.fill_decay * depths, p.fill_power)
    return np.asarray(-fills * np.exp(-np.reshape(aversions, (-1, 1)) * (depths - reservations)))


class _System:
    """The continuous-time problem of a declared market: fills, bids and asks in turn, are quotes at its controls."""

    def __init__(self, market: Market, params: Any) -> None:
        p, record = params, market.engine.record(params)
        self.gamma = market.aversion(p)
        self.params, self.kind, self.power, self.decay = p, CURVES.index(p.fill_curve), p.fill_power, p.fill_decay
        following = market.transitions(p)
        self.next = np.where(following >= 0, following, np.arange(following.shape[1]))
        nothing = np.zeros(len(market.controls))
        self.rate, pay, flow, noise = rates_of(market, p, 0, nothing)
        counts = [event.counts for event, _ in market.moves]
        self.quotes = np.array([k for k, count in enumerate(counts) if count is not None])
        self.others = np.array([k for k, count in enumerate(counts) if count is None], dtype=np.int64)
        assert [counts[k] for k in self.quotes] == ["bid", "ask"] * (len(nothing) // 2)
        self.size = (rates_of(market, p, 0, nothing + 1.0)[1] - pay)[self.quotes].max(axis=1)
        self.pay, self.flow = pay, flow - 0.5 * self.gamma * noise
        self.open = following[self.quotes] >= 0
        ends = np.empty((8, following.shape[1]))
        declared_kernels.find_state_rates(record, p.num_steps, market.states(p), nothing, ends)
        self.end = -ends[5] - ends[6]

    def quoted(self, values: Array) -> tuple[Array, Array]:
        """Reservation prices and the best depths, (E, S) each, of continuous-time values (S,)."""
        reservations = -(values[self.next] - values + self.pay)[self.quotes] / self.size[:, None]
        return reservations, best_depths(self.params, reservations, self.gamma * self.size)

    def slope(self, _: float, values: Array) -> Array:
        """``-v_t``."""
        reservations, depths = self.quoted(values)
        earned = self.size[:, None] * (depths - reservations)
        moved = (values[self.next] - values + self.pay)[self.others]
        if self.gamma:
            earned, moved = (-np.expm1(-self.gamma * gain) / self.gamma for gain in (earned, moved))
        fills = self.rate[self.quotes] * _curves(self.kind, self.decay * depths, self.power) * earned
        return np.asarray(self.flow + fills.sum(axis=0) + (self.rate[self.others] * moved).sum(axis=0))


@functools.lru_cache(maxsize=8)
def continuous_depths(market: Market, params: Any) -> Array:
    """Depths (N, S, E) that are optimal in continuous time, by a Runge-Kutta method of order 8 (tolerance 1e-10).

    Where a side is closed, its depth is that of the state after a fill of the other side: what to post where it can
    open again inside a step.

    Raises
    ------
    RuntimeError
        If the equation could not be integrated.
    """
    system, horizon, steps = _System(market, params), params.horizon, params.num_steps
    left = horizon - np.arange(steps) * (horizon / steps)
    path = scipy.integrate.solve_ivp(
        system.slope, (0.0, horizon), system.end, "DOP853", left[::-1], rtol=1e-10, atol=1e-10
    )
    if not path.success:
        raise RuntimeError(f"the continuous-time value could not be integrated: {path.message}")
    table = np.empty((steps, len(system.end), len(system.quotes)))
    for n, values in enumerate(path.y.T[::-1]):
        depths = system.quoted(values)[1]
        for j in range(len(depths)):
            other = system.next[system.quotes[j ^ 1]]
            table[n, :, j] = np.where(system.open[j], depths[j], depths[j, other])
    table.setflags(write=False)
    return table
