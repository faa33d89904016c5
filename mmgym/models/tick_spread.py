r"""Guilbaud-Pham market: limit and market orders in a spread of a few ticks (Guilbaud & Pham 2013).

The mid is a martingale, ``dP = sigma dW``. The spread is ``S = i d`` for a Markov chain ``i`` on ``1..m`` with
transition matrix ``rho``, which jumps at the ticks of a Poisson clock of rate ``lambda(t)`` (2.1). Limit orders of
``l`` shares stand at the best price or, where the spread is two ticks or more, one tick better; they are filled whole
at the intensities ``lambda_i(q)``, ``q`` in {best, improved}, and re-posted at once. Each share filled earns over mid

    h_i(q) = i d / 2 - d 1{q improved} + rebate,

and a market order of ``e`` shares costs ``|e| (i d / 2 + fee) + fixed_fee`` over mid (2.7). The inventory ``Y`` and the
wealth ``W = X + Y P`` obey

    dY = l_bid dN_bid - l_ask dN_ask + (market orders),
    dW = l_bid h_i(q_bid) dN_bid + l_ask h_i(q_ask) dN_ask - (cost of market orders) + Y dP,

and what is left at the horizon is liquidated at that cost: ``L(x, y, p, s)`` of the paper. The criterion "mean"
maximises ``E[L_T - W_0 - c int Y^2 dt]`` (3.2), (3.7); "cara" maximises ``E[-exp(-eta (L_T - W_0))]`` (3.9).

One step of length ``h = horizon / num_steps`` is the frozen-control problem:

1. One market order, cut so that the inventory stays within its limit, at the current spread.
2. Quotes and sizes, frozen for the step. Sizes are cut to the room that the inventory then has. An improved quote
   counts as best where the spread is one tick: for the whole step if it is so when the order is sent, and otherwise
   only while the spread is so narrow.
3. Competing exponential clocks: spread jumps, bid fills and ask fills, at the intensities and edges of the *current*
   spread. A fill executes ``min(size, room left)``; a side without room is off until the inventory returns.
4. After the last step, liquidation at the spread of that time.

Given the inventory path, ``(int Y dW, W_h)`` is Gaussian with covariance ``[[int Y^2, int Y], [int Y, h]]``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.arguments import TINY, choice, integer, normalised, real, refusal, shown, together
from mmgym.market import Market, scalar_kernel
from mmgym.models.wealth import checked_penalty, price_noise, step_reward
from mmgym.parameters import SAME_ROW, Choice, Integer, Multiple, Real, Row, create
from mmgym.random_streams import exponential, uniform

MAX_STEPS = 1_000_000  # a float32 observation tells so many steps apart
MAX_EVENTS = 10_000.0  # expected events a step
MAX_SPREADS = 32
MAX_PIECES = 64  # of the clock
MAX_LOTS = 127  # of an order
MAX_INVENTORY = 1_000_000  # lots
BID_RATES, ASK_RATES, EDGES, CROSSING = 0, 2, 4, 6  # columns of Params.spread_table: best and improved, and the cost

# Table 1 as printed (rows sum to 0.997..0.999), and Table 3 averaged over bid and ask (1 / s).
TABLE_1 = (
    (0.0, 0.410, 0.220, 0.160, 0.142, 0.065),
    (0.201, 0.0, 0.435, 0.192, 0.103, 0.067),
    (0.113, 0.221, 0.0, 0.4582, 0.147, 0.059),
    (0.070, 0.085, 0.275, 0.0, 0.465, 0.102),
    (0.068, 0.049, 0.073, 0.363, 0.0, 0.446),
    (0.077, 0.057, 0.059, 0.112, 0.692, 0.0),
)
TABLE_3_BEST = (0.06285, 0.04925, 0.04100, 0.03845, 0.04435, 0.05840)
TABLE_3_IMPROVED = (0.16240, 0.10615, 0.08805, 0.08760, 0.09695, 0.12285)

Array = NDArray[Any]


def _rows(name: str, value: Any) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise refusal(name, value, "a list")
    return list(value)


def _transitions(given: Any) -> tuple[tuple[float, ...], ...]:
    """A checked transition matrix; Table 1, its rows normalised, by default."""
    if given is None:
        return tuple(tuple(value / math.fsum(row) for value in row) for row in TABLE_1)
    rows = [_rows(f"spread_transitions[{i}]", row) for i, row in enumerate(_rows("spread_transitions", given))]
    if not 2 <= len(rows) <= MAX_SPREADS or any(len(row) != len(rows) for row in rows):
        raise ValueError(
            f"spread_transitions = {shown(given)} of {len(rows)} rows of {shown([len(row) for row in rows])} entries "
            f"is not allowed: it must be a square matrix of 2 to {MAX_SPREADS} rows"
        )
    checked = []
    for i, row in enumerate(rows):
        values = [real(f"spread_transitions[{i}][{j}]", value, low=0.0, high=1.0) for j, value in enumerate(row)]
        total = math.fsum(values)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(
                f"spread_transitions[{i}] = {shown(row)} is not allowed: the row must sum to 1, its sum is {total:.9g} "
                "(divide it by that to normalise it)"
            )
        checked.append(normalised(values))
    return tuple(checked)


def _clock(given: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Starts and rates of the clock's pieces from a number, or from a list of [start, rate] pairs."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return (0.0,), (real("clock_rate", given, low=0.0, high=1e12),)
    pairs = [_rows(f"clock_rate[{k}]", pair) for k, pair in enumerate(given)]
    if not 1 <= len(pairs) <= MAX_PIECES or any(len(pair) != 2 for pair in pairs):
        allowed = f"a number, or a list of 1 to {MAX_PIECES} pairs [start in seconds, rate]"
        raise refusal("clock_rate", given, allowed)
    starts = [real(f"clock_rate[{k}][0] (start)", start, low=0.0, high=1e9) for k, (start, _) in enumerate(pairs)]
    rates = [real(f"clock_rate[{k}][1] (rate)", rate, low=0.0, high=1e12) for k, (_, rate) in enumerate(pairs)]
    if starts[0] != 0.0 or any(b <= a for a, b in pairwise(starts)):
        raise refusal("clock_rate", given, "a list whose starts rise from 0")
    return tuple(starts), tuple(rates)


class Transitions(Row):
    """Rows of a transition matrix; None is Table 1, its rows normalised."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A tuple of rows."""
        return _transitions(value)

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list of rows."""
        return [list(row) for row in values[0]]


class Clock(Row):
    """A rate, or a list of [start, rate] pairs."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Starts and rates of the clock's pieces."""
        return _clock(value)

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list of pairs."""
        return [list(piece) for piece in zip(*values, strict=True)]


@dataclass(frozen=True)
class SideRates(Row):
    """Bid and ask rates per spread: a number, one list for both sides, or a pair of lists; None is a table."""

    _: KW_ONLY
    table: tuple[float, ...]

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Tuples of a float for each spread: bid and ask."""
        return _side_rates(name, value, self.table, len(values["spread_transitions"]))

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A pair of lists."""
        return [list(side) for side in values]


def _side_rates(
    name: str, given: Any, default: tuple[float, ...], spreads: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if given is None:
        if spreads != len(default):
            raise ValueError(
                f"{name} = None is not allowed with {spreads} spreads, as spread_transitions has: its default is for "
                f"the {len(default)} spreads of the paper; give a rate per spread"
            )
        given = default
    if not isinstance(given, Sequence) or isinstance(given, str):
        given = [given] * spreads
    nested = [isinstance(value, Sequence) and not isinstance(value, str) for value in given]
    sides = list(given) if nested and all(nested) else [given, given]
    if len(sides) != 2 or any(len(side) != spreads for side in sides):
        raise refusal(
            name,
            given,
            f"a number, a list of {spreads} numbers (one for each row of spread_transitions), or a pair [bid, ask] of "
            "such lists",
        )
    bid, ask = (
        tuple(real(f"{name}[{i}] ({label})", value, low=0.0, high=1e12) for i, value in enumerate(side))
        for label, side in zip(("bid", "ask"), sides, strict=True)
    )
    return bid, ask


class InitialSpread(Row):
    """A number of ticks, or "stationary", which is 0 as a field."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """An int."""
        if not isinstance(value, str):
            return integer(name, value, low=1, high=len(values["spread_transitions"]))
        choice(name, value, ("stationary",))
        stationary_law(values["spread_transitions"])
        return 0

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """The number, or "stationary"."""
        return values[0] or "stationary"


class Params(NamedTuple):
    """Parameters of the market. Build them with `Params.create`, which checks them."""

    tick: Annotated[float, Real(0.005, TINY, 1e9, "euro", "delta")]
    spread_transitions: Annotated[
        tuple[tuple[float, ...], ...],
        Transitions(None, symbol="rho"),
        f"transition matrix of the spread at the ticks of the clock, 2 to {MAX_SPREADS} rows of as many "
        "numbers that sum to 1; at a tick on the diagonal nothing moves, so a spread can last longer than others; "
        "None is Table 1 of the paper, its rows normalised (6 spreads)",
    ]
    clock_starts: Annotated[
        tuple[float, ...],
        Clock(1.0, 0.0, 1e12, "1 / s", "lambda", argument="clock_rate"),
        f"ticks of the clock; or a list of up to {MAX_PIECES} pairs [start, rate], starts in seconds since the "
        "reset rising from 0",
    ]
    clock_rates: Annotated[tuple[float, ...], SAME_ROW]
    best_bid_rates: Annotated[
        tuple[float, ...],
        SideRates(
            None, 0.0, 1e12, "1 / s", "lambda_i(Bb), lambda_i(Ba)", argument="fill_rate_best", table=TABLE_3_BEST
        ),
        "fills of a quote at the best price: a number, a list with one for each spread, or a pair [bid, ask] of "
        "such lists; None is Table 3, bid and ask averaged",
    ]
    best_ask_rates: Annotated[tuple[float, ...], SAME_ROW]
    improved_bid_rates: Annotated[
        tuple[float, ...],
        SideRates(
            None,
            0.0,
            1e12,
            "1 / s",
            "lambda_i(Bb+), lambda_i(Ba-)",
            argument="fill_rate_improved",
            table=TABLE_3_IMPROVED,
        ),
        "of a quote one tick inside it, the same; it counts as best at a spread of one tick, whose entry is not "
        "used; None is Table 3, bid and ask averaged",
    ]
    improved_ask_rates: Annotated[tuple[float, ...], SAME_ROW]
    rebate: Annotated[float, Real(0.0008, -1e9, 1e9, "euro / share", "rho of remark 2.1"), "of limit orders filled"]
    fee: Annotated[float, Real(0.0012, -1e9, 1e9, "euro / share", "epsilon"), "of market orders, >= -tick / 2"]
    fixed_fee: Annotated[
        float, Real(1e-6, 0.0, 1e9, "euro", "epsilon_0"), "of each market order, and of the liquidation"
    ]
    running_penalty: Annotated[
        float,
        Real(None, 0.0, 1e9, "**euro per share squared per second**", "c", none=True),
        "holding 100 shares for one second costs ``running_penalty * 10^4`` euro. It is not the bare gamma of the "
        "paper, whose unit is unstated and whose value cannot be read in shares or lots; ``gamma = 5`` corresponds "
        'to 3e-6. None is 3e-6 under "mean"; under "cara" it must be None or 0',
    ]
    lot: Annotated[float, Real(10.0, TINY, 1e9, "shares"), "sizes and inventories are whole lots"]
    limit_order_max: Annotated[float, Multiple(100.0, 1, MAX_LOTS, "shares", "l_bar", of="lot"), "largest size"]
    market_order_max: Annotated[
        float, Multiple(100.0, 0, MAX_LOTS, "shares", "e_bar", of="lot"), "largest size; without market orders: 0"
    ]
    inventory_limit: Annotated[
        float,
        Multiple(1000.0, 1, MAX_INVENTORY, "shares", of="lot", none=True),
        "None is further from `initial_inventory` than the fills of a side reach in an episode, but with probability "
        "1e-12 (market orders are still cut to it)",
    ]
    initial_inventory: Annotated[float, Multiple(0.0, unit="shares", of="lot"), "within `inventory_limit`"]
    initial_price: Annotated[float, Real(45.0, -1e12, 1e12, "euro", "P_0")]
    volatility: Annotated[float, Real(0.008, 0.0, 1e9, "euro / sqrt(s)", "sigma"), "of the mid"]
    horizon: Annotated[float, Real(300.0, TINY, 1e9, "s", "T")]
    num_steps: Annotated[
        int, Integer(300, 1, MAX_STEPS), "decisions of an episode (the paper's backtest steps by 0.3 s)"
    ]
    initial_spread: Annotated[
        int, InitialSpread("stationary", unit="ticks"), 'from 1 to m, or "stationary": drawn from that law'
    ]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[
        float,
        Real(0.09375, 0.0, 1e6, "1 / euro", "eta"),
        '> 0 under "cara" (the default charges price risk like the running penalty 3e-6 does); not used under "mean"',
    ]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]
    actions: Annotated[
        Literal["multi", "flat", "compact"],
        Choice("multi"),
        '"flat" and "compact" are menus; with "compact" market orders only reduce the inventory',
    ]
    spread_encoding: Annotated[
        Literal["number", "one_hot"], Choice("number"), "of observations: one entry, or one for each spread"
    ]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.tick_spread.TickSpreadEnv`."""
        return create(cls, arguments)

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with the defaults that depend on others, checked against each other."""
        lot, start = self.lot, self.initial_inventory
        if self.fee < -0.5 * self.tick:
            raise together(
                {"fee": self.fee, "tick": self.tick},
                f"fee must be >= {-0.5 * self.tick:g} (minus half a tick), or market orders would earn money",
            )
        fastest = max(map(max, self[4:8]))
        events = (max(self.clock_rates) + 2.0 * fastest) * self.horizon / self.num_steps
        rates_given = {name: given[name] for name in ("fill_rate_best", "fill_rate_improved")}
        rates_given["horizon"] = self.horizon
        if events > MAX_EVENTS:
            raise together(
                {"clock_rate": given["clock_rate"], **rates_given, "num_steps": self.num_steps},
                f"{events:g} expected events a step must be at most {MAX_EVENTS:g}; raise num_steps",
            )
        limit = self.inventory_limit
        if given["inventory_limit"] is None:  # more fills than a side ever gets
            fills = 1 + round(scipy.stats.poisson.isf(1e-12, fastest * self.horizon))
            lots = fills * self.size_max + math.ceil(abs(start) / lot)
            if lots > MAX_INVENTORY:
                raise together(
                    {
                        "inventory_limit": None,
                        **rates_given,
                        "limit_order_max": given["limit_order_max"],
                        "lot": lot,
                        "initial_inventory": given["initial_inventory"],
                    },
                    f"{fills} fills of the largest size are more than the {MAX_INVENTORY} lots that an inventory can "
                    "have; give an inventory_limit",
                )
            limit = lot * lots
        p = self._replace(
            running_penalty=checked_penalty(self, given["running_penalty"], 3e-6),
            limit_order_max=lot * self.size_max,
            market_order_max=lot * self.order_max,
            inventory_limit=lot * round(limit / lot),
            initial_inventory=lot * self.start,
        )
        if abs(p.start) > p.limit:
            raise together(
                {"initial_inventory": given["initial_inventory"], "inventory_limit": p.inventory_limit},
                "initial_inventory must be from -inventory_limit to inventory_limit",
            )
        return p

    # Derived constants. Those that kernels read are listed in MARKET below; money is per lot there.

    @property
    def step_length(self) -> float:
        """Length ``h`` of a decision step (s)."""
        return self.horizon / self.num_steps

    @property
    def inverse_step(self) -> float:
        """``1 / h`` (1 / s)."""
        return self.num_steps / self.horizon

    @property
    def root_step(self) -> float:
        """``sqrt(h)`` (sqrt(s))."""
        return math.sqrt(self.step_length)

    @property
    def num_spreads(self) -> int:
        """``m``."""
        return len(self.spread_transitions)

    @property
    def num_pieces(self) -> int:
        """Pieces on which the clock's rate is constant."""
        return len(self.clock_starts)

    @property
    def limit(self) -> int:
        """Inventory bound in lots."""
        return round(self.inventory_limit / self.lot)

    @property
    def start(self) -> int:
        """Initial inventory in lots."""
        return round(self.initial_inventory / self.lot)

    @property
    def size_max(self) -> int:
        """Largest limit order in lots."""
        return round(self.limit_order_max / self.lot)

    @property
    def order_max(self) -> int:
        """Largest market order in lots."""
        return round(self.market_order_max / self.lot)

    @property
    def one_hot(self) -> bool:
        """Whether observations have an entry for each spread."""
        return self.spread_encoding == "one_hot"

    @property
    def spreads(self) -> NDArray[np.float64]:
        """``i d`` (euro), shape (m,)."""
        return np.asarray(self.tick * np.arange(1, self.num_spreads + 1), dtype=np.float64)

    @property
    def bid_rates(self) -> NDArray[np.float64]:
        """Bid intensities (1 / s), shape (2, m): best and improved, which is best at a spread of one tick."""
        return _effective(self.best_bid_rates, self.improved_bid_rates)

    @property
    def ask_rates(self) -> NDArray[np.float64]:
        """Ask intensities (1 / s), shape (2, m), like `bid_rates`."""
        return _effective(self.best_ask_rates, self.improved_ask_rates)

    @property
    def edges(self) -> NDArray[np.float64]:
        """``h_i(q)`` of a lot (euro), shape (2, m)."""
        best = 0.5 * self.spreads + self.rebate
        return self.lot * _effective(best, best - self.tick)

    @property
    def crossing_costs(self) -> NDArray[np.float64]:
        """Cost over mid of a market order, per lot and without the fixed fee (euro), shape (m,)."""
        return self.lot * (0.5 * self.spreads + self.fee)

    @property
    def cumulative_transitions(self) -> NDArray[np.float64]:
        """Cumulative rows of ``rho``, shape (m, m); the last entry of a row that can be reached is above 1."""
        return _cumulative(np.array(self.spread_transitions))

    @property
    def initial_spread_law(self) -> NDArray[np.float64]:
        """Law of the spread at step 0, shape (m,)."""
        if self.initial_spread:
            return np.asarray(np.eye(1, self.num_spreads, self.initial_spread - 1)[0])
        return stationary_law(self.spread_transitions)

    @property
    def cumulative_initial_law(self) -> NDArray[np.float64]:
        """Cumulative `initial_spread_law`."""
        return np.asarray(_cumulative(self.initial_spread_law[None])[0])

    @property
    def pieces(self) -> NDArray[np.float64]:
        """Start (s) and rate (1 / s) of the clock's pieces and, after the last, infinity, shape (pieces + 1, 2)."""
        return np.array([*zip(self.clock_starts, self.clock_rates, strict=True), (math.inf, 0.0)])

    @property
    def spread_table(self) -> NDArray[np.float64]:
        """What an event needs at a spread, side by side in memory, shape (m, 8); see `BID_RATES` and its like."""
        rows = [*self.bid_rates, *self.ask_rates, *self.edges, self.crossing_costs, np.zeros(self.num_spreads)]
        return np.stack(rows, axis=1)

    @property
    def action_sizes(self) -> NDArray[np.int64]:
        """Numbers of choices of the full action: bid quote, ask quote, bid size, ask size, market order."""
        return np.array([2, 2, self.size_max + 1, self.size_max + 1, 2 * self.order_max + 1])

    @property
    def orders_reduce(self) -> bool:
        """Whether market orders are cut so that they bring the inventory towards 0, and not beyond it."""
        return self.actions == "compact"

    @property
    def menu(self) -> NDArray[np.int64]:
        """The actions of "flat" or "compact" as full ones, shape (F, 5): quotes and, with a market order, its side's.

        A larger order comes after a smaller one, so that of actions that are played alike the first is not masked.
        """
        full, none = self.size_max, self.order_max
        if self.actions == "flat":
            sides, orders = [(0, 0), (0, full), (1, full)], [max(min(full, none) // 2, min(1, none))]
        else:
            sides, orders = [(0, 0), (0, (full + 1) // 2), (0, full), (1, full)], [(none + 1) // 2, none]
        actions = [(bid, ask, b, a, none) for bid, b in sides for ask, a in sides]
        for order in filter(None, orders):
            actions += [(bid, 0, b, 0, none + order) for bid, b in sides]
            actions += [(0, ask, 0, a, none - order) for ask, a in sides]
        return np.array(list(dict.fromkeys(actions)))


def _effective(best: Any, improved: Any) -> NDArray[np.float64]:
    """What best and improved quotes have at each spread: at one tick the improved quote is the best one."""
    table = np.array([best, improved], dtype=np.float64)
    table[1, 0] = table[0, 0]
    return table


def _cumulative(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cumulative rows whose entries from the last possible one on are above 1, so that no draw passes them."""
    total = np.cumsum(rows, axis=1)
    for row, law in zip(total, rows, strict=True):
        row[np.flatnonzero(law)[-1] :] = 2.0
    return total


def stationary_law(transitions: Any) -> NDArray[np.float64]:
    """Stationary law (m,) of a transition matrix: of the spread in calendar time too, as its clock has one rate.

    Raises
    ------
    ValueError
        If there are several.
    """
    rho = np.array(transitions)
    system = np.vstack([rho.T - np.eye(len(rho)), np.ones(len(rho))])
    if np.linalg.matrix_rank(system, tol=1e-12) < len(rho):
        raise ValueError(
            "initial_spread = 'stationary' is not allowed: spread_transitions has several stationary laws; give the "
            "spread in ticks"
        )
    right = np.append(np.zeros(len(rho)), 1.0)
    law = np.clip(np.linalg.lstsq(system, right, rcond=None)[0], 0.0, None)
    law[law < 1e-14] = 0.0
    return np.asarray(law / law.sum())


# One row of state. Inventory is counted in lots; amounts of money are sums since the reset.
STATE = np.dtype(
    [
        ("order_gain", "f8"),  # edges earned minus costs of market orders and of liquidation, euro
        ("price_gain", "f8"),  # sigma int Y dW, euro
        ("inventory_square", "f8"),  # int Y^2 dt, share^2 s
        ("mid", "f8"),  # P, euro
        ("step", "i4"),
        ("inventory", "i4"),  # Y / lot
        ("spread", "i4"),  # i - 1
        ("masked_actions", "i4"),  # since the reset
        ("bid_fills", "i4"),  # in the last step
        ("ask_fills", "i4"),
        ("market_orders", "i4"),  # in the last step: 0 or 1
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.order_gain = 0.0
    s.price_gain = 0.0
    s.inventory_square = 0.0
    s.mid = p.initial_price
    s.step = 0
    s.inventory = p.start
    s.masked_actions = 0
    s.bid_fills = 0
    s.ask_fills = 0
    s.market_orders = 0
    spread = p.initial_spread - 1
    if spread < 0:
        spread = 0
        draw, s.s0, s.s1 = uniform(s.s0, s.s1)
        while draw >= p.cumulative_initial_law[spread]:
            spread += 1
    s.spread = spread


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Controls [bid improved, ask improved, bid lots, ask lots, market order in lots]; False if out of range."""
    acceptable = True
    controls[5] = 0.0
    for i in range(5):
        acceptable &= 0 <= action[i] < (2 if i < 2 else p.size_max + 1 if i < 4 else 2 * p.order_max + 1)
        controls[i] = action[i]
    controls[4] -= p.order_max
    return acceptable


@scalar_kernel
def admit_one(p, inventory, spread, controls):
    """Cut controls to what the state allows, in place; the number of entries that were masked.

    An entry is masked if it is not allowed whatever the others are. The market order is cut first, then the sizes to
    the room that it leaves.
    """
    limit, masked = p.limit, 0
    lowest, highest = -limit - inventory, limit - inventory
    if p.orders_reduce:
        lowest, highest = min(-inventory, 0), max(-inventory, 0)
    order = min(max(controls[4], lowest), highest)
    masked += order != controls[4]
    controls[4] = order
    if spread == 0:
        masked += (controls[0] != 0.0) + (controls[1] != 0.0)
        controls[0] = 0.0
        controls[1] = 0.0
    masked += controls[2] > limit - inventory + min(p.order_max, -lowest)
    masked += controls[3] > limit + inventory + min(p.order_max, highest)
    controls[2] = min(controls[2], limit - inventory - order)
    controls[3] = min(controls[3], limit + inventory + order)
    return masked


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated). Puts the controls that were played in place of those asked for."""
    q, spread = np.int64(s.inventory), np.int64(s.spread)
    controls[5] = spread + 1.0
    s.masked_actions += np.int32(admit_one(p, q, spread, controls))
    bid_quote, ask_quote = np.int64(controls[0]), np.int64(controls[1])
    bid_size, ask_size = np.int64(controls[2]), np.int64(controls[3])
    order = np.int64(controls[4])
    s0, s1 = s.s0, s.s1

    earned = 0.0
    if order != 0:
        earned = -abs(order) * p.spread_table[spread, CROSSING] - p.fixed_fee
        q += order

    piece, boundary, last = 0, p.step_length, True
    if p.num_pieces > 1:
        started = s.step * p.step_length
        while piece + 1 < p.num_pieces and p.pieces[piece + 1, 0] <= started:
            piece += 1
        last = p.pieces[piece + 1, 0] >= started + p.step_length
        boundary = p.step_length if last else p.pieces[piece + 1, 0] - started

    time = int_q = int_qq = 0.0
    bids = asks = 0
    clock, s0, s1 = exponential(s0, s1)
    while True:
        tick_rate = p.pieces[piece, 1]
        active_bid = p.spread_table[spread, BID_RATES + bid_quote] if bid_size > 0 and q < p.limit else 0.0
        active_ask = p.spread_table[spread, ASK_RATES + ask_quote] if ask_size > 0 and q > -p.limit else 0.0
        rate = tick_rate + active_bid + active_ask
        left = boundary - time
        if clock >= rate * left:
            clock -= rate * left
            int_q += q * left
            int_qq += np.float64(q * q) * left
            if last:
                break
            time = boundary
            started = s.step * p.step_length
            piece += 1
            last = p.pieces[piece + 1, 0] >= started + p.step_length
            boundary = p.step_length if last else p.pieces[piece + 1, 0] - started
            continue
        elapsed = clock / rate
        time += elapsed
        int_q += q * elapsed
        int_qq += np.float64(q * q) * elapsed
        draw, s0, s1 = uniform(s0, s1)
        draw *= rate
        if draw < tick_rate:
            target = np.int64(0)
            while draw >= tick_rate * p.cumulative_transitions[spread, target]:
                target += 1
            spread = target
        elif draw < tick_rate + active_bid:
            size = min(bid_size, p.limit - q)
            bids += 1
            q += size
            earned += size * p.spread_table[spread, EDGES + bid_quote]
        else:
            size = min(ask_size, p.limit + q)
            asks += 1
            q -= size
            earned += size * p.spread_table[spread, EDGES + ask_quote]
        clock, s0, s1 = exponential(s0, s1)

    int_q_dw, brownian, s0, s1 = price_noise(p, q, bids + asks > 0, int_q, int_qq, s0, s1)
    s.step += 1
    terminated = s.step >= p.num_steps
    if terminated and q != 0:
        earned -= abs(q) * p.spread_table[spread, CROSSING] + p.fixed_fee
    price_gain = p.lot * p.volatility * int_q_dw
    inventory_square = p.lot * p.lot * int_qq
    s.order_gain += earned
    s.price_gain += price_gain
    s.inventory_square += inventory_square
    s.mid += p.volatility * brownian
    s.inventory = q
    s.spread = spread
    s.bid_fills = bids
    s.ask_fills = asks
    s.market_orders = order != 0
    s.s0 = s0
    s.s1 = s1

    reward = step_reward(
        p,
        terminated,
        earned,
        price_gain,
        p.running_penalty * inventory_square,
        s.order_gain,
        s.price_gain,
        0.5 * (p.risk_aversion * p.volatility) ** 2 * s.inventory_square,
    )
    return reward, terminated


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [elapsed fraction of the horizon, inventory / limit, (spread - 1) / (m - 1)], or the last one-hot."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit
    if p.one_hot:
        observation[2:] = 0.0
        observation[2 + s.spread] = 1.0
    else:
        observation[2] = s.spread / (p.num_spreads - 1)


def state_ranges(params: Params) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    limit = params.limit
    counts = ("masked_actions", "bid_fills", "ask_fills")
    return {
        "step": (0, params.num_steps),
        "inventory": (-limit, limit),
        "spread": (0, params.num_spreads - 1),
        "inventory_square": (0.0, math.inf),
        "market_orders": (0, 1),
        **dict.fromkeys(counts, (0, math.inf)),
    }


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Controls ``[bid improved, ask improved, bid size, ask size, market order]`` of full actions, sizes in shares."""
    controls = np.array(actions, dtype=np.float64)
    controls[..., 4] -= params.order_max
    controls[..., 2:] *= params.lot
    return controls


def from_quotes(params: Params, quotes: Any) -> NDArray[np.int64]:
    """Full actions, shape ``(..., 5)``, whose controls are the nearest to ``quotes`` (sizes in shares)."""
    entries = np.array(quotes, dtype=np.float64)
    entries[..., 2:] /= params.lot
    entries[..., 4] += params.order_max
    return np.clip(np.rint(entries), 0, params.action_sizes - 1).astype(np.int64)


def nearest_of_menu(params: Params, full: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices in the menu nearest to full actions of shape ``(..., 5)``, by the sum of distances of their entries."""
    menu = params.menu
    entries = full.reshape(-1, 5)
    nearest = np.empty(len(entries), dtype=np.int64)
    for low in range(0, len(entries), 65_536):
        part = entries[low : low + 65_536]
        nearest[low : low + 65_536] = np.abs(part[:, None] - menu).sum(axis=-1).argmin(axis=1)
    return nearest.reshape(full.shape[:-1])


def observe(params: Params, step: Any, inventory: Any, spread: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., D)``, of steps, inventories (lots) and spreads (ticks - 1), bit for bit."""
    step, inventory, spread = np.broadcast_arrays(step, inventory, spread)
    m = params.num_spreads
    encoded = [spread == i for i in range(m)] if params.one_hot else [spread / (m - 1)]
    return np.stack([step / params.num_steps, inventory / params.limit, *encoded], axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Step, inventory (lots) and spread (ticks - 1) of observations of shape ``(..., D)``."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.rint(observations[..., 0] * params.num_steps).astype(np.int64)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    if params.one_hot:
        spread = observations[..., 2:].argmax(axis=-1)
    else:
        spread = np.rint(observations[..., 2] * (params.num_spreads - 1)).astype(np.int64)
    return (
        np.clip(step, 0, params.num_steps),
        np.clip(inventory, -params.limit, params.limit),
        np.clip(spread, 0, params.num_spreads - 1),
    )


def order_bounds(params: Params, inventory: Any) -> tuple[Any, Any]:
    """Lowest and highest market order (lots) that is played at inventories (lots), of their shape."""
    if params.orders_reduce:
        return np.minimum(-inventory, 0), np.maximum(-inventory, 0)
    return -params.limit - inventory, params.limit - inventory


def masks(params: Params, inventory: Any, spread: Any) -> NDArray[np.bool_]:
    """Which entries of the full action are allowed, flat: shape ``(..., sum of action_sizes)``.

    An entry is masked iff it is not allowed whatever the other components are; size 0 and no market order never are.

    Parameters
    ----------
    inventory, spread : int arrays of one shape
        Lots, and ticks - 1.
    """
    inventory, spread = (np.asarray(value)[..., None] for value in np.broadcast_arrays(inventory, spread))
    limit, order_max = params.limit, params.order_max
    size, order = np.arange(params.size_max + 1), np.arange(-order_max, order_max + 1)
    quote = np.concatenate([np.ones_like(spread, dtype=bool), spread > 0], axis=-1)
    lowest, highest = order_bounds(params, inventory)
    bids = size <= limit - inventory + np.minimum(order_max, -lowest)
    asks = size <= limit + inventory + np.minimum(order_max, highest)
    return np.concatenate([quote, quote, bids, asks, (lowest <= order) & (order <= highest)], axis=-1)


def action_masks(params: Params, inventory: Any, spread: Any) -> NDArray[np.bool_]:
    """What is allowed in the action space: `masks`, or of a menu the actions with no masked entry, ``(..., F)``."""
    allowed = masks(params, inventory, spread)
    if params.actions == "multi":
        return allowed
    offsets = np.concatenate([[0], np.cumsum(params.action_sizes)[:-1]])
    return np.asarray(allowed[..., params.menu + offsets].all(axis=-1))


MARKET = Market(
    name="tick_spread",
    modules=("mmgym.models.wealth",),
    params_type=Params,
    state=STATE,
    derived=(
        "step_length",
        "inverse_step",
        "root_step",
        "num_spreads",
        "num_pieces",
        "limit",
        "start",
        "size_max",
        "order_max",
        "orders_reduce",
        "one_hot",
    ),
    arrays={
        "spread_table": (MAX_SPREADS, 8),
        "pieces": (MAX_PIECES + 1, 2),
        "cumulative_transitions": (MAX_SPREADS, MAX_SPREADS),
        "cumulative_initial_law": (MAX_SPREADS,),
    },
    compact={
        "spread_table": (6, 8),
        "pieces": (3, 2),
        "cumulative_transitions": (6, 6),
        "cumulative_initial_law": (6,),
    },
    num_controls=6,  # the last is the spread in ticks that the step started with
    num_intensities=0,
    reset_one=reset_one,
    controls_one=controls_one,
    step_one=step_one,
    observe_one=observe_one,
    ranges=state_ranges,
    observation_low=lambda params: (0, -1, *[0] * (params.num_spreads if params.one_hot else 1)),
    to_quotes=to_quotes,
    from_quotes=from_quotes,
    locate=locate,
)
