r"""Intraday power market: six self-exciting processes move a book, and market orders reach into it.

von Luckner, Cartea, Jaimungal & Kiesel (2017), section 2, with the corrections of the project's notes. Six independent
Hawkes processes, in the order of `PROCESSES`, each move one side of the book by ``G_k`` ticks:

    =====================  ====  =========  =========  ==============
    process                      mid ``S``  ``H``      side that moves
    =====================  ====  =========  =========  ==============
    bid improvement        K+    ``+xi``    ``-xi``    bid, up
    bid cancellation       K-    ``-xi``    ``+xi``    bid, down
    ask cancellation       L+    ``+xi``    ``+xi``    ask, up
    ask improvement        L-    ``-xi``    ``-xi``    ask, down
    market order to buy    M+    ``+xi``    ``+xi``    ask, up
    market order to sell   M-    ``-xi``    ``+xi``    bid, down
    =====================  ====  =========  =========  ==============

    dy_k = rho_k (mu_k - y_k) dt + zeta_k dN_k,    xi_k = G_k tick / 2,    H = (spread in ticks) tick / 2.

Improvements move by a Binomial(spread - 1, p) number of ticks ("binomial") or a geometric one ("geometric"),
cancellations by a geometric one; a market order moves the book with probability ``1 - first_level_share``, then by a
geometric number. Moves are cut so that the spread stays within ``1 .. largest_spread`` ticks: the event still excites
its process, so that all six are exact Hawkes processes.

A market order reaches a distance ``E`` beyond the best quote, 0 with probability ``a`` (never, in the paper) and else
exponential of mean ``1 / kappa``: an ask (bid) at the distance ``d`` from the mid is filled by an order to buy (sell)
iff ``d <= H + E``, one lot, unless the inventory would leave ``[-Q, Q]``. ``E`` is independent of the move. Left limits
are meant: the fill is tested and paid at ``S_{u-} +- d``, then the book moves, then the intensity jumps. With ``W = X +
q S``,

    dW = fill d - (fills of asks - fills of bids) dS + q dS,    q the inventory before the order.

Quotes are offsets from the best quotes at the time of the decision; they are then pegged to the mid until the next
decision (``d`` is frozen: where the half-spread rises above it, the fill is certain, still at ``S +- d``). Decisions
are taken after every event ("event": then only time passes between two decisions), after every market order ("order"),
each at the latest ``horizon / num_steps`` after the last decision, or so often ("clock"). Everything is simulated
event by event in continuous time, without a time step.

Criterion: ``E[W_T - W_0 - |q_T| H_T - alpha q_T^2 - phi int q^2 dt]``: the liquidation crosses the half-spread.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, real, refusal, together
from mmgym.market import Market, scalar_kernel
from mmgym.models import hawkes, hawkes_flow
from mmgym.models.hawkes import excess_wait
from mmgym.models.hawkes_flow import FLOWS, MAX_RATE, MOST_DECISIONS, REACH
from mmgym.parameters import Choice, Integer, OtherSide, Pair, Real, Row, arguments_of, create, row_of
from mmgym.random_streams import exponential, uniform
from mmgym.vector_exp import fast_exp

PROCESSES = ("bid_improvement", "bid_cancellation", "ask_cancellation", "ask_improvement", "buy", "sell")
MID_SIGN = np.array([1, -1, 1, -1, 1, -1])
SPREAD_SIGN = np.array([-1, 1, 1, -1, 1, 1])
BUY, SELL = 4, 5

EVENT, ORDER, CLOCK = 0, 1, 2  # codes of `decision` in kernels, in the order of the Literal below
BINOMIAL, GEOMETRIC = 0, 1  # codes of `placement`
SEE_STATE, SEE_TAPE, SEE_FILLS = 0, 1, 2  # codes of `observe`

MAX_EVENTS = 1_000_000.0  # expected events in an episode
MAX_SPREAD = 1000  # ticks
LAST = 1.0 + 1e-9  # a decision interval that much longer than the time left is the last one

Array = NDArray[Any]
Six = tuple[float, float, float, float, float, float]


# An illustrative late window of an hourly product (H11 Late), not estimates
DEFAULT_BASE_RATE = [1.5, 1.35, 1.35, 1.5, 0.6, 0.6]
DEFAULT_EXCITATION = [1.2, 1.2, 1.2, 1.2, 1.5, 1.5]
DEFAULT_MEAN_MOVE = [36.0, 20.0, 20.0, 36.0, 40.0, 40.0]

as_flow = functools.partial(row_of, hawkes_flow.Params)


class EachProcess(Row):
    """A number for all processes, or six numbers."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Six floats."""
        given = self.default if value is None and isinstance(self.default, list) else value
        if not isinstance(given, Sequence) or isinstance(given, str):
            return (real(name, given, low=self.low, high=self.high),) * len(PROCESSES)
        if len(given) != len(PROCESSES):
            raise refusal(name, given, f"a number, or six numbers [{', '.join(PROCESSES)}]")
        names = [f"{name}[{k}] ({process})" for k, process in enumerate(PROCESSES)]
        return tuple(real(*entry, low=self.low, high=self.high) for entry in zip(names, given, strict=True))

    def allowed(self) -> str:
        """The range."""
        return f"{super().allowed()}, a number or six"

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """Six numbers."""
        return list(values[0])


class InitialRates(EachProcess):
    """Intensities at the start, or "stationary", which is None until the others are known."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Six floats, or None."""
        if not isinstance(value, str):
            return super().check(name, value, values)
        if value != "stationary":
            raise refusal(name, value, "'stationary' or six rates")
        return None


class Params(NamedTuple):
    """Parameters of the market. Build them with `Params.create`, which checks them.

    Tuples of six are in the order of `PROCESSES`.
    """

    base_rate: Annotated[Six, EachProcess(DEFAULT_BASE_RATE, TINY, MAX_RATE, "1 / minute", "mu")]
    excitation: Annotated[
        Six,
        EachProcess(DEFAULT_EXCITATION, 0.0, MAX_RATE, "1 / minute", "zeta"),
        "below decay (each event then brings on ``excitation / decay`` < 1 further ones directly), or see "
        "`allow_explosive`",
    ]
    decay: Annotated[Six, EachProcess(3.0, TINY, MAX_RATE, "1 / minute", "rho")]
    placement: Annotated[
        Literal["binomial", "geometric"],
        Choice("binomial"),
        "the law of the ticks by which improvements narrow the spread",
    ]
    improvement_bid: Annotated[
        float, Pair(0.36, 0.0, 1.0, symbol="p"), "the binomial share of the room in the spread (all but one tick of it)"
    ]
    improvement_ask: OtherSide
    mean_move: Annotated[
        Six,
        EachProcess(DEFAULT_MEAN_MOVE, 1.0, 1e6, "ticks", "E G"),
        'mean of the geometric moves (of improvements with ``placement="geometric"`` only; of market orders where '
        "they move the book)",
    ]
    first_level_share_buy: Annotated[
        float, Pair(0.8, 0.0, 1.0, symbol="p_0", sides=FLOWS), "of the market orders: it does not move the book"
    ]
    first_level_share_sell: OtherSide
    tick: Annotated[float, Real(0.01, TINY, 1e9, "EUR / MWh")]
    largest_spread: Annotated[int, Integer(300, 1, MAX_SPREAD, "ticks")]
    fill_decay_buy: Annotated[float, as_flow("fill_decay")]
    fill_decay_sell: OtherSide
    reach_atom_buy: Annotated[float, as_flow("reach_atom")]
    reach_atom_sell: OtherSide
    max_offset_bid: Annotated[
        float,
        Pair(None, TINY, 1e9, "EUR / MWh", none=True, end="high"),
        "beyond the best quotes, at least ``4 / fill_decay`` of each side, which None stands for",
    ]
    max_offset_ask: OtherSide
    running_penalty: Annotated[float, as_flow("running_penalty")]
    terminal_penalty: Annotated[float, as_flow("terminal_penalty")]
    inventory_limit: Annotated[int, Integer(10, 1, 100, "lots", "Q")]
    horizon: Annotated[float, as_flow("horizon")]
    num_steps: Annotated[int, as_flow("num_steps")]
    decision: Annotated[Literal["event", "order", "clock"], Choice("event")]
    initial_inventory: Annotated[int, Integer(0, -100, 100, "lots", "q_0"), "within `inventory_limit`"]
    initial_spread: Annotated[int, Integer(60, 1, MAX_SPREAD, "ticks"), "within `largest_spread`"]
    initial_rates: Annotated[
        Six,
        InitialRates("stationary", 0.0, MAX_RATE, "1 / minute", "y"),
        'or "stationary"; each at least its base rate',
    ]
    observe: Annotated[
        Literal["state", "tape", "fills"],
        Choice("state"),
        "beside time, inventory and spread: the intensities, the event that ended the last step (needs "
        '``decision="event"``), or nothing; `info` has the intensities either way',
    ]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.hawkes_power.HawkesPowerEnv`."""
        return create(cls, arguments)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `create` that make these parameters."""
        return arguments_of(self)

    @property
    def allow_explosive(self) -> Annotated[bool, hawkes.ALLOW_EXPLOSIVE]:
        """Whether an excitation is not below its decay."""
        return any(jump >= decay for jump, decay in zip(self.excitation, self.decay, strict=True))

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with the defaults that depend on others, checked against each other."""
        base, jumps, decays, start = self.base_rate, self.excitation, self.decay, self.initial_rates
        for name, limit in (("initial_inventory", "inventory_limit"), ("initial_spread", "largest_spread")):
            value, bound = getattr(self, name), getattr(self, limit)
            if abs(value) > bound:
                raise together({name: value, limit: bound}, f"{name} must be within {limit}")
        if self.observe == "tape" and self.decision != "event":
            raise together(
                {"observe": self.observe, "decision": self.decision},
                "the tape has the one event that a step ends with: it needs decision = 'event'",
            )
        if self.allow_explosive and not given["allow_explosive"]:
            raise ValueError(hawkes.explosive(jumps, decays))
        if isinstance(given["initial_rates"], str):
            if self.allow_explosive:
                raise ValueError(
                    "initial_rates = 'stationary' is not allowed with excitation >= decay, which has no stationary "
                    "rate: give six rates per minute"
                )
            rates: Any = (mu / (1.0 - zeta / rho) for mu, zeta, rho in zip(base, jumps, decays, strict=True))
            start = tuple(rates)
        for name, rate, least in zip(PROCESSES, start, base, strict=True):
            if rate < least:
                raise together(
                    {"initial_rates": given["initial_rates"], "base_rate": list(base)},
                    f"the rate of {name} must be at least its base_rate {least:g}",
                )
        with np.errstate(over="ignore"):
            events = float(np.sum(hawkes.expected_count(base, jumps, decays, start, self.horizon)))
        if not events <= MAX_EVENTS:
            raise together(
                {
                    "base_rate": list(base),
                    "excitation": list(jumps),
                    "decay": given["decay"],
                    "initial_rates": given["initial_rates"],
                    "horizon": self.horizon,
                },
                f"{events:.3g} events would be expected in an episode, and at most {MAX_EVENTS:g} are allowed",
            )
        default = [REACH / self.fill_decay_sell, REACH / self.fill_decay_buy]
        widths = default if given["max_offset"] is None else [self.max_offset_bid, self.max_offset_ask]
        if any(width < low for width, low in zip(widths, default, strict=True)):
            raise together(
                {name: given[name] for name in ("max_offset", "fill_decay")},
                f"max_offset must be at least {default}, {REACH:g} / fill_decay: the bounds of the optimum are "
                "those of boxes that wide",
            )
        return self._replace(initial_rates=start, max_offset_bid=widths[0], max_offset_ask=widths[1])

    # Derived constants. Those that kernels read are listed in MARKET below.

    @property
    def step_length(self) -> float:
        """Longest time between two decisions (minutes)."""
        return self.horizon / self.num_steps

    @property
    def log_behind_buy(self) -> float:
        """Logarithm of the share of buy orders that get behind the best price: ``log(1 - a)``."""
        return hawkes_flow.log_behind(self.reach_atom_buy)

    @property
    def log_behind_sell(self) -> float:
        """Logarithm of the share of sell orders that get behind the best price."""
        return hawkes_flow.log_behind(self.reach_atom_sell)

    @property
    def half_tick(self) -> float:
        """Half a tick (EUR / MWh): the unit of the mid and of the half-spread."""
        return 0.5 * self.tick

    @property
    def total_base_rate(self) -> float:
        """Sum of the base rates (1 / minute)."""
        return sum(self.base_rate)

    @property
    def cumulative_base_rates(self) -> Array:
        """Cumulative sums of the base rates (1 / minute), shape (6,)."""
        return np.cumsum(self.base_rate)

    @property
    def base_rates(self) -> Array:
        """mu, shape (6,)."""
        return np.array(self.base_rate)

    @property
    def excitations(self) -> Array:
        """zeta, shape (6,)."""
        return np.array(self.excitation)

    @property
    def decays(self) -> Array:
        """rho, shape (6,)."""
        return np.array(self.decay)

    @property
    def initial_excess(self) -> Array:
        """y - mu at the start, shape (6,)."""
        return np.array(self.initial_rates) - self.base_rate

    @property
    def geometric_scales(self) -> Array:
        """``s_k`` of ``G = 1 + floor(s E)``, ``E`` unit exponential: a geometric number of mean `mean_move`."""
        with np.errstate(divide="ignore"):
            return np.asarray(-1.0 / np.log1p(-1.0 / np.array(self.mean_move)))

    @property
    def rate_scales(self) -> Array:
        """Rates that are observed as 1/2: the stationary ones, or base rate plus one jump where there is none."""
        base, jump, decay = self.base_rates, self.excitations, self.decays
        stable = jump < decay
        return np.where(stable, base / np.where(stable, 1.0 - jump / decay, 1.0), base + jump)

    @property
    def offset_reach(self) -> Array:
        """Half widths ``[bid, ask]`` of the offset box (EUR / MWh)."""
        return 0.5 * np.array([self.max_offset_bid, self.max_offset_ask])

    @property
    def reach_bid(self) -> float:
        """Half width of the bid's offset box (EUR / MWh)."""
        return float(self.offset_reach[0])

    @property
    def reach_ask(self) -> float:
        """Half width of the ask's offset box (EUR / MWh)."""
        return float(self.offset_reach[1])

    def expected_rates(self, time: Any) -> Array:
        """Expected intensities, shape ``(..., 6)``, at times ``(...)`` since the start (1 / minute)."""
        start = np.array(self.initial_rates)
        return hawkes.mean_rate(self.base_rates, self.excitations, self.decays, start, np.asarray(time)[..., None])


# One row of state. Amounts of money are sums since the reset, in EUR / MWh times lots; excesses are y - mu, 1 / minute.
STATE = np.dtype(
    [
        ("time_left", "f8"),  # T - t, minutes
        ("elapsed", "f8"),  # length of the last step, minutes
        *((f"excess_{name}", "f8") for name in PROCESSES),
        ("depth_gain", "f8"),  # sum of distances from the mid at which orders were filled
        ("price_gain", "f8"),  # int q dS
        ("inventory_square", "f8"),  # int q^2 dt, lots^2 minutes
        ("mid_moves", "i8"),  # S - S_0, half ticks
        ("step", "i4"),  # decisions
        ("inventory", "i4"),  # q, lots
        ("spread", "i4"),  # 2 H, ticks
        ("book_events", "i4"),  # improvements and cancellations in the last step
        ("buy_orders", "i4"),
        ("sell_orders", "i4"),
        ("bid_fills", "i4"),
        ("ask_fills", "i4"),
        ("last_event", "i4"),  # process whose event ended the last step, -1: none
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.time_left = p.horizon
    s.elapsed = 0.0
    s.excess_bid_improvement = p.initial_excess[0]
    s.excess_bid_cancellation = p.initial_excess[1]
    s.excess_ask_cancellation = p.initial_excess[2]
    s.excess_ask_improvement = p.initial_excess[3]
    s.excess_buy = p.initial_excess[4]
    s.excess_sell = p.initial_excess[5]
    s.depth_gain = 0.0
    s.price_gain = 0.0
    s.inventory_square = 0.0
    s.mid_moves = 0
    s.step = 0
    s.inventory = p.initial_inventory
    s.spread = p.initial_spread
    s.book_events = 0
    s.buy_orders = 0
    s.sell_orders = 0
    s.bid_fills = 0
    s.ask_fills = 0
    s.last_event = -1


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Offsets [bid, ask] from the best quotes; False if the action is not finite. `step_one` adds the distances."""
    bid, ask = np.float64(action[0]), np.float64(action[1])
    finite = abs(bid) + abs(ask) < np.inf
    controls[0] = p.reach_bid * (1.0 + min(max(bid, -1.0), 1.0))
    controls[1] = p.reach_ask * (1.0 + min(max(ask, -1.0), 1.0))
    return finite


@scalar_kernel
def _burst(excess, decay, k, wait, process, s0, s1):
    """The earlier of an event of process ``k``'s excess intensity and another one: (wait, process, s0, s1)."""
    if excess > 0.0:
        burst, s0, s1 = excess_wait(excess, decay, s0, s1)
        if burst < wait:
            return burst, k, s0, s1
    return wait, process, s0, s1


@scalar_kernel
def next_event(p, s, left, s0, s1):
    """The next event within ``left`` minutes: (wait, process, s0, s1); process -1 for none, after ``left``.

    ``s`` has the excess intensities now (left alone).
    """
    wait, process = left, -1
    clock, s0, s1 = exponential(s0, s1)
    if clock < p.total_base_rate * wait:
        wait = clock / p.total_base_rate
        mark, s0, s1 = uniform(s0, s1)
        mark *= p.total_base_rate
        process = 0
        while process < 5 and mark >= p.cumulative_base_rates[process]:
            process += 1
    wait, process, s0, s1 = _burst(s.excess_bid_improvement, p.decays[0], 0, wait, process, s0, s1)
    wait, process, s0, s1 = _burst(s.excess_bid_cancellation, p.decays[1], 1, wait, process, s0, s1)
    wait, process, s0, s1 = _burst(s.excess_ask_cancellation, p.decays[2], 2, wait, process, s0, s1)
    wait, process, s0, s1 = _burst(s.excess_ask_improvement, p.decays[3], 3, wait, process, s0, s1)
    wait, process, s0, s1 = _burst(s.excess_buy, p.decays[4], 4, wait, process, s0, s1)
    wait, process, s0, s1 = _burst(s.excess_sell, p.decays[5], 5, wait, process, s0, s1)
    return wait, process, s0, s1


@scalar_kernel
def relax(p, s, elapsed):
    """Let the excess intensities decay over a time without events."""
    s.excess_bid_improvement *= fast_exp(-p.decays[0] * elapsed)
    s.excess_bid_cancellation *= fast_exp(-p.decays[1] * elapsed)
    s.excess_ask_cancellation *= fast_exp(-p.decays[2] * elapsed)
    s.excess_ask_improvement *= fast_exp(-p.decays[3] * elapsed)
    s.excess_buy *= fast_exp(-p.decays[4] * elapsed)
    s.excess_sell *= fast_exp(-p.decays[5] * elapsed)


@scalar_kernel
def excite(p, s, process):
    """Let an event lift its own intensity."""
    jump = p.excitations[process]
    if process == 0:
        s.excess_bid_improvement += jump
    elif process == 1:
        s.excess_bid_cancellation += jump
    elif process == 2:
        s.excess_ask_cancellation += jump
    elif process == 3:
        s.excess_ask_improvement += jump
    elif process == 4:
        s.excess_buy += jump
    else:
        s.excess_sell += jump


@scalar_kernel
def binomial(trials, probability, s0, s1):
    """A Binomial(trials, probability) number by inversion: (number, s0, s1)."""
    few = min(probability, 1.0 - probability)
    u, s0, s1 = uniform(s0, s1)
    odds = few / (1.0 - few)
    mass = math.exp(trials * math.log1p(-few))
    number = 0
    while u >= mass and number < trials:
        u -= mass
        number += 1
        mass *= odds * np.float64(trials - number + 1) / np.float64(number)
    return (number if probability <= 0.5 else trials - number), s0, s1


@scalar_kernel
def ticks_moved(p, process, spread, s0, s1):
    """Ticks by which an event moves its side of the book, cut to what the spread allows: (ticks, s0, s1)."""
    narrows = process == 0 or process == 3
    if narrows and p.placement == BINOMIAL:
        return binomial(spread - 1, p.improvement_bid if process == 0 else p.improvement_ask, s0, s1)
    if process >= BUY:
        share = p.first_level_share_buy if process == BUY else p.first_level_share_sell
        u, s0, s1 = uniform(s0, s1)
        if u < share:
            return 0, s0, s1
    draw, s0, s1 = exponential(s0, s1)
    room = spread - 1 if narrows else p.largest_spread - spread
    return np.int64(min(1.0 + math.floor(p.geometric_scales[process] * draw), np.float64(room))), s0, s1


@scalar_kernel
def order_reach(p, process, s0, s1):
    """How far behind the best price an order gets (EUR / MWh): (distance, s0, s1).

    With ``E`` unit exponential ``E + log(1 - a)`` is positive with probability ``1 - a``, and exponential then.
    """
    draw, s0, s1 = exponential(s0, s1)
    if process == BUY:
        return max(draw + p.log_behind_buy, 0.0) / p.fill_decay_buy, s0, s1
    return max(draw + p.log_behind_sell, 0.0) / p.fill_decay_sell, s0, s1


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated). Puts the distances from the mid into ``controls[2:]``."""
    q, spread, s0, s1 = np.int64(s.inventory), np.int64(s.spread), s.s0, s.s1
    bid_depth = p.half_tick * spread + controls[0]
    ask_depth = p.half_tick * spread + controls[1]
    controls[2] = bid_depth
    controls[3] = ask_depth
    last = s.time_left <= p.step_length * LAST
    length = s.time_left if last else p.step_length

    left = length
    earned = int_qq = 0.0
    moved = gained = 0  # half ticks; times lots
    book = buys = sells = bids = asks = 0
    decided = False
    while True:
        wait, process, s0, s1 = next_event(p, s, left, s0, s1)
        relax(p, s, wait)
        int_qq += np.float64(q * q) * wait
        left -= wait
        if process < 0:
            break
        if process >= BUY:
            reach, s0, s1 = order_reach(p, process, s0, s1)
            if process == BUY:
                buys += 1
                if q > -p.inventory_limit and ask_depth - p.half_tick * spread <= reach:
                    q -= 1
                    asks += 1
                    earned += ask_depth
            else:
                sells += 1
                if q < p.inventory_limit and bid_depth - p.half_tick * spread <= reach:
                    q += 1
                    bids += 1
                    earned += bid_depth
        else:
            book += 1
        ticks, s0, s1 = ticks_moved(p, process, spread, s0, s1)
        spread += SPREAD_SIGN[process] * ticks
        moved += MID_SIGN[process] * ticks
        gained += q * MID_SIGN[process] * ticks
        excite(p, s, process)
        if p.decision == EVENT or (p.decision == ORDER and process >= BUY):
            decided = True
            break
    s.step += 1
    s.elapsed = length - left if decided else length
    if decided:
        last = False
        s.time_left -= s.elapsed
    elif last:
        s.time_left = 0.0
    elif p.decision == CLOCK:
        s.time_left = p.step_length * (p.num_steps - s.step)
    else:
        s.time_left -= length
    price_gain = p.half_tick * np.float64(gained)
    s.depth_gain += earned
    s.price_gain += price_gain
    s.inventory_square += int_qq
    s.mid_moves += moved
    s.inventory = q
    s.spread = spread
    s.book_events = book
    s.buy_orders = buys
    s.sell_orders = sells
    s.bid_fills = bids
    s.ask_fills = asks
    s.last_event = process
    s.s0 = s0
    s.s1 = s1
    reward = earned + price_gain - p.running_penalty * int_qq
    if last:
        reward -= p.half_tick * np.float64(abs(q) * spread) + p.terminal_penalty * np.float64(q * q)
    return reward, last


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [time left / horizon, inventory / limit, spread / largest] and what `observe` says.

    Rates as y / (y + scale), or which process ended the last step (1 of six, or none) and its length / longest length.
    """
    observation[0] = s.time_left / p.horizon
    observation[1] = s.inventory / p.inventory_limit
    observation[2] = s.spread / p.largest_spread
    if p.observe == SEE_TAPE:
        for k in range(6):
            observation[3 + k] = 1.0 if s.last_event == k else 0.0
        observation[9] = s.elapsed / p.step_length
    if p.observe != SEE_STATE:
        return
    y = p.base_rates[0] + s.excess_bid_improvement
    observation[3] = y / (y + p.rate_scales[0])
    y = p.base_rates[1] + s.excess_bid_cancellation
    observation[4] = y / (y + p.rate_scales[1])
    y = p.base_rates[2] + s.excess_ask_cancellation
    observation[5] = y / (y + p.rate_scales[2])
    y = p.base_rates[3] + s.excess_ask_improvement
    observation[6] = y / (y + p.rate_scales[3])
    y = p.base_rates[4] + s.excess_buy
    observation[7] = y / (y + p.rate_scales[4])
    y = p.base_rates[5] + s.excess_sell
    observation[8] = y / (y + p.rate_scales[5])


def state_ranges(params: Params) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    p = params
    counts = ("book_events", "buy_orders", "sell_orders", "bid_fills", "ask_fills")
    most = map(hawkes.most_excess, p.initial_rates, p.excitation)
    return {
        "time_left": (0.0, p.horizon),
        "elapsed": (0.0, p.horizon),
        **{f"excess_{name}": (0.0, highest) for name, highest in zip(PROCESSES, most, strict=True)},
        "inventory_square": (0.0, math.inf),
        "step": (0, p.num_steps if p.decision == "clock" else MOST_DECISIONS),
        "inventory": (-p.inventory_limit, p.inventory_limit),
        "spread": (1, p.largest_spread),
        **dict.fromkeys(counts, (0, math.inf)),
        "last_event": (-1, len(PROCESSES) - 1),
    }


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Offsets ``[bid, ask]`` from the best quotes (EUR / MWh), shape ``(..., 2)``, of actions of that shape."""
    clipped = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
    return params.offset_reach * (1.0 + clipped)


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions whose offsets are the nearest to ``quotes`` (EUR / MWh) in the box, to float32 rounding."""
    actions = np.asarray(quotes, dtype=np.float64) / params.offset_reach - 1.0
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(
    params: Params, time_left: Any, inventory: Any, spread: Any, rates: Any, event: Any = -1, elapsed: Any = 0.0
) -> NDArray[np.float32]:
    """Observations of minutes left, lots, ticks, intensities ``(..., 6)`` (1 / minute), and the last step.

    That is the process whose event ended it (-1: none) and its length (minutes), as at the start by default. The shape
    is ``(..., 9)``, ``(..., 10)`` of the tape, or ``(..., 3)`` where only fills are observed.
    """
    rates = np.asarray(rates, dtype=np.float64)
    columns = [
        np.asarray(time_left) / params.horizon,
        np.asarray(inventory) / params.inventory_limit,
        np.asarray(spread) / params.largest_spread,
        *np.moveaxis(rates / (rates + params.rate_scales), -1, 0),
    ]
    if params.observe == "tape":
        happened = [np.asarray(event) == k for k in range(len(PROCESSES))]
        columns += [*happened, np.asarray(elapsed) / params.step_length]
    shown = np.broadcast_arrays(*columns)
    kept = shown if params.observe == "state" else shown[:3] + shown[3 + len(PROCESSES) :]
    return np.stack(kept, axis=-1).astype(np.float32)


def last_event(params: Params, observations: Any) -> tuple[NDArray[np.int64], Array]:
    """The process whose event ended the last step (-1: none) and the step's minutes, of observations of the tape."""
    seen = np.asarray(observations, dtype=np.float64)
    happened = seen[..., 3:9] > 0.5
    event = np.where(happened.any(axis=-1), happened.argmax(axis=-1), -1)
    return event, np.clip(seen[..., 9], 0.0, 1.0) * params.step_length


def locate(params: Params, observations: Any) -> tuple[Array, Array, Array, Array]:
    """Minutes left, inventory (lots), spread (ticks) and intensities ``(..., 6)`` of observations ``(..., 9)``.

    Inventory and spread are exact; with decisions by the clock the time is too; the rest is good to float32 rounding.
    Where the intensities are not observed, they are those that are to be expected then (`last_event` has what else the
    tape shows).
    """
    seen = np.asarray(observations, dtype=np.float64)
    time_left = np.clip(seen[..., 0], 0.0, 1.0) * params.horizon
    if params.decision == "clock":
        time_left = np.rint(time_left / params.step_length) * params.step_length
    limit = params.inventory_limit
    inventory = np.clip(np.rint(seen[..., 1] * limit), -limit, limit).astype(np.int64)
    spread = np.clip(np.rint(seen[..., 2] * params.largest_spread), 1, params.largest_spread).astype(np.int64)
    if params.observe != "state":
        return time_left, inventory, spread, params.expected_rates(params.horizon - time_left)
    shares = np.clip(seen[..., 3:], 0.0, 1.0 - 2.0**-24)
    rates = np.maximum(shares / (1.0 - shares) * params.rate_scales, params.base_rates)
    return time_left, inventory, spread, rates


MARKET = Market(
    name="hawkes_power",
    params_type=Params,
    state=STATE,
    derived=(
        *("step_length", "half_tick", "total_base_rate", "reach_bid", "reach_ask"),
        *("log_behind_buy", "log_behind_sell"),
    ),
    arrays={
        "base_rates": (6,),
        "cumulative_base_rates": (6,),
        "excitations": (6,),
        "decays": (6,),
        "initial_excess": (6,),
        "geometric_scales": (6,),
        "rate_scales": (6,),
    },
    modules=("mmgym.models.hawkes",),
    num_controls=4,
    num_intensities=0,
    reset_one=reset_one,
    controls_one=controls_one,
    step_one=step_one,
    observe_one=observe_one,
    ranges=state_ranges,
    observation_low=lambda params: (0, -1, *[0] * {"state": 7, "tape": 8, "fills": 1}[params.observe]),
    to_quotes=to_quotes,
    from_quotes=from_quotes,
    locate=locate,
)
