r"""Market making against self-exciting order flow, in its exactly solvable form (intraday power).

Market orders to buy (+) and to sell (-) are two Hawkes processes; a fixed half-spread ``h`` and mean impacts take the
place of the book (von Luckner, Cartea, Jaimungal & Kiesel 2017, sections 2-3, with constant half-spread):

    y_k = mu_k(t) + x_k,    dx_k = -rho_k x_k dt + zeta_k dN_k,    k = +, -,
    dS = eps_+ dN_+ - eps_- dN_-,

and a market order to buy (sell) fills an ask (bid) at the depth ``d`` from the mid, one lot an order, with probability
1 where ``d = h`` and ``(1 - a) exp(-kappa (d - h))`` where ``d > h``, unless the inventory would leave ``[-Q, Q]``: a
share ``a`` of the orders trades at the best price and nowhere else (none in the paper). The base rates ``mu``, constant
in the paper, may be others in each of some equal pieces of the horizon. Left limits are meant: an order at ``u`` is
filled at ``S_{u-} +- d``, then the mid moves, then the intensity jumps. With ``W = X + q S``,

    dW = [fill (d - eps_+) + q eps_+] dN_+ + [fill (d - eps_-) - q eps_-] dN_-,    q the inventory before the order.

Depths are frozen from one decision to the next. Decisions are taken every ``horizon / num_steps`` ("clock"), or after
every market order and at the latest so long after the last decision ("event"): then nothing random happens between two
decisions. A piece begins with a decision. Everything is simulated event by event, exactly, without a time step (see
`next_order`).

What is observed beside time and inventory: the intensities ("state"); the side of the order that ended the last step,
if one did, and the step's length ("tape"); nothing ("fills"). Between orders intensities decay, and at an order one of
them jumps, by known amounts from known initial ones. Whoever remembers the tape therefore knows them, and the optimum
is that of "state".

Criterion: ``E[W_T - W_0 - |q_T| h - alpha q_T^2 - phi int q^2 dt]``: the liquidation crosses the half-spread.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, real, refusal, together
from mmgym.market import Market, scalar_kernel
from mmgym.models import hawkes
from mmgym.parameters import SAME_ROW, Choice, Integer, OtherSide, Pair, Real, Row, arguments_of, check_within, create
from mmgym.random_streams import exponential, uniform

EVENT, CLOCK = 0, 1  # codes of `decision` in kernels, in the order of the Literal below
SEE_STATE, SEE_TAPE, SEE_FILLS = 0, 1, 2  # codes of `observe`

MAX_STEPS = 1_000_000
MAX_ORDERS = 1_000_000.0  # expected market orders in an episode
MAX_RATE = 1e6  # per minute
MOST_DECISIONS = 2**31 - 2  # that a state counts
MOST_PIECES = 48  # of the horizon, with base rates of their own
ROUNDING = 2.0**-23  # of the time left as it is observed, in units of the horizon
REACH = 4.0  # width of the default depth box, in units of 1 / fill_decay
LAST = 1.0 + 1e-9  # a decision interval that much longer than the time left is the last one


class Profile(Row):
    """Factors of the base rates in equal pieces of the horizon: a list for both processes, or a pair of lists."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Two tuples of as many floats."""
        given = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        lists = [isinstance(part, Sequence) and not isinstance(part, str) for part in given]
        parts = given if len(given) == 2 and all(lists) else [given, given]
        if not parts[0] or len(parts[0]) != len(parts[1]) or len(parts[0]) > MOST_PIECES:
            raise refusal(name, value, self.allowed())
        return tuple(
            tuple(real(f"{name}[{k}]", factor, low=self.low, high=self.high) for k, factor in enumerate(part))
            for part in parts
        )

    def allowed(self) -> str:
        """What a profile is."""
        sides = ", ".join(FLOWS)
        return f"1 to {MOST_PIECES} factors from {self.low:g} to {self.high:g}, or a pair [{sides}] of such lists"

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """One list, or two."""
        return [list(part) for part in values] if values[0] != values[1] else list(values[0])


class InitialRates(Pair):
    """Intensities at the start, or "stationary", which is None until the others are known."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Two floats, or None."""
        if not isinstance(value, str):
            return super().check(name, value, values)
        if value != "stationary":
            raise refusal(name, value, "'stationary' or a pair [buy, sell]")
        return None


FLOWS = ("buy", "sell")


class Params(NamedTuple):
    """Parameters of the market. Build them with `Params.create`, which checks them."""

    base_rate_buy: Annotated[float, Pair(0.6, TINY, MAX_RATE, "1 / minute", "mu", sides=FLOWS)]
    base_rate_sell: OtherSide
    base_rate_profile_buy: Annotated[
        tuple[float, ...],
        Profile([1.0], 1e-6, 1e6, argument="base_rate_profile", varies=False),
        "of `base_rate` in as many equal pieces of the horizon, which divide `num_steps`; every piece begins with a "
        "decision",
    ]
    base_rate_profile_sell: Annotated[tuple[float, ...], SAME_ROW]
    excitation_buy: Annotated[
        float,
        Pair(1.5, 0.0, MAX_RATE, "1 / minute", "zeta", sides=FLOWS),
        "below decay (each order then brings on ``excitation / decay`` < 1 further ones directly), or see "
        "`allow_explosive`",
    ]
    excitation_sell: OtherSide
    decay_buy: Annotated[float, Pair(3.0, TINY, MAX_RATE, "1 / minute", "rho", sides=FLOWS)]
    decay_sell: OtherSide
    half_spread: Annotated[float, Real(0.3, 0.0, 1e9, "EUR / MWh", "h")]
    impact_buy: Annotated[float, Pair(0.1, 0.0, 1e9, "EUR / MWh", "eps", sides=FLOWS), "that an order moves the mid by"]
    impact_sell: OtherSide
    fill_decay_buy: Annotated[
        float,
        Pair(4.0, 1e-9, 1e9, "MWh / EUR", "kappa", sides=FLOWS),
        "of asks (filled by buys) and bids (filled by sells)",
    ]
    fill_decay_sell: OtherSide
    reach_atom_buy: Annotated[
        float,
        Pair(0.0, 0.0, 1.0, symbol="a", sides=FLOWS),
        "of the orders: they fill quotes at the best price alone, the others reach an exponential distance behind it",
    ]
    reach_atom_sell: OtherSide
    max_offset_bid: Annotated[
        float,
        Pair(None, TINY, 1e9, "EUR / MWh", none=True, end="high"),
        "beyond the half-spread; None is ``4 / fill_decay`` of each side",
    ]
    max_offset_ask: OtherSide
    running_penalty: Annotated[float, Real(0.001, 0.0, 1e9, "EUR / MWh / (lot minute)", "phi")]
    terminal_penalty: Annotated[float, Real(0.05, 0.0, 1e9, "EUR / MWh / lot", "alpha")]
    inventory_limit: Annotated[int, Integer(10, 1, 1_000_000, "lots", "Q")]
    horizon: Annotated[float, Real(60.0, TINY, 1e9, "minutes", "T")]
    num_steps: Annotated[int, Integer(240, 1, MAX_STEPS, symbol="N"), "decisions if nothing happens"]
    decision: Annotated[Literal["event", "clock"], Choice("event")]
    initial_inventory: Annotated[int, Integer(0, -1_000_000, 1_000_000, "lots", "q_0"), "within `inventory_limit`"]
    initial_rate_buy: Annotated[
        float,
        InitialRates("stationary", 0.0, MAX_RATE, "1 / minute", "lambda", argument="initial_rates", sides=FLOWS),
        'or "stationary" (for the first base rate); each at least its base rate',
    ]
    initial_rate_sell: OtherSide
    observe: Annotated[
        Literal["state", "tape", "fills"],
        Choice("state"),
        "beside time and inventory: the intensities, the order that ended the last step (needs "
        '``decision="event"``), or nothing; `info` has all of it either way',
    ]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.hawkes_flow.HawkesFlowEnv`."""
        return create(cls, arguments)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `create` that make these parameters."""
        return arguments_of(self)

    @property
    def allow_explosive(self) -> Annotated[bool, hawkes.ALLOW_EXPLOSIVE]:
        """Whether an excitation is not below its decay."""
        return self.excitation_buy >= self.decay_buy or self.excitation_sell >= self.decay_sell

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with the defaults that depend on others, checked against each other."""
        check_within(self, "initial_inventory", "inventory_limit")
        if self.observe == "tape" and self.decision != "event":
            raise together(
                {"observe": self.observe, "decision": self.decision},
                "the tape has the one order that a step ends with: it needs decision = 'event'",
            )
        if self.num_steps % self.pieces:
            raise together(
                {"num_steps": self.num_steps, "base_rate_profile": given["base_rate_profile"]},
                f"num_steps must be a multiple of the {self.pieces} pieces",
            )
        base = self.base_rates[0].tolist()
        jumps = self.excitation_buy, self.excitation_sell
        decays = self.decay_buy, self.decay_sell
        start = self.initial_rate_buy, self.initial_rate_sell
        if self.allow_explosive and not given["allow_explosive"]:
            raise ValueError(hawkes.explosive(jumps, decays))
        if isinstance(given["initial_rates"], str):
            if self.allow_explosive:
                raise ValueError(
                    "initial_rates = 'stationary' is not allowed with excitation >= decay, which has no stationary "
                    "rate: give a pair [buy, sell] of rates per minute"
                )
            start = base[0] / (1.0 - jumps[0] / decays[0]), base[1] / (1.0 - jumps[1] / decays[1])
        for name, rate, least in zip(FLOWS, start, base, strict=True):
            if rate < least:
                raise together(
                    {name: given[name] for name in ("initial_rates", "base_rate")},
                    f"the {name} rate must be at least its base_rate {least:g} at the start",
                )
        with np.errstate(over="ignore"):
            flows = zip(self.base_rates.T, jumps, decays, start, strict=True)
            lengths = [self.piece_length] * self.pieces
            orders = float(sum(hawkes.through_pieces(*flow, lengths)[1] for flow in flows))
        if not orders <= MAX_ORDERS:
            names = ("base_rate", "excitation", "decay", "initial_rates")
            raise together(
                {name: given[name] for name in names} | {"horizon": self.horizon},
                f"{orders:.3g} market orders would be expected in an episode, and at most {MAX_ORDERS:g} are allowed",
            )
        return self._replace(
            initial_rate_buy=start[0],
            initial_rate_sell=start[1],
            max_offset_bid=REACH / self.fill_decay_sell if given["max_offset"] is None else self.max_offset_bid,
            max_offset_ask=REACH / self.fill_decay_buy if given["max_offset"] is None else self.max_offset_ask,
        )

    # Derived constants. Those that kernels read are listed in MARKET below.

    @property
    def step_length(self) -> float:
        """Longest time between two decisions (minutes)."""
        return self.horizon / self.num_steps

    @property
    def pieces(self) -> int:
        """Pieces of the horizon with base rates of their own."""
        return len(self.base_rate_profile_buy)

    @property
    def piece_steps(self) -> int:
        """Decisions in a piece if nothing happens."""
        return self.num_steps // self.pieces

    @property
    def piece_length(self) -> float:
        """Length of a piece (minutes)."""
        return self.horizon / self.pieces

    @property
    def piece_ends(self) -> NDArray[np.float64]:
        """Time left at the end of each piece (minutes), shape (N,)."""
        return self.step_length * (self.piece_steps * np.arange(self.pieces - 1.0, -1.0, -1.0))

    @property
    def base_rates(self) -> NDArray[np.float64]:
        """Base rates [buy, sell] in each piece (1 / minute), shape (N, 2)."""
        profile = np.array([self.base_rate_profile_buy, self.base_rate_profile_sell])
        return np.ascontiguousarray(profile.T) * [self.base_rate_buy, self.base_rate_sell]

    @property
    def initial_excess_buy(self) -> float:
        """Buy rate beyond the base rate at the start (1 / minute)."""
        return float(self.initial_rate_buy - self.base_rates[0, 0])

    @property
    def initial_excess_sell(self) -> float:
        """Sell rate beyond the base rate at the start (1 / minute)."""
        return float(self.initial_rate_sell - self.base_rates[0, 1])

    @property
    def typical_rates(self) -> NDArray[np.float64]:
        """Rates [buy, sell] about which numbers of orders in each piece are (1 / minute), shape (N, 2)."""
        rates = [[self.initial_rate_buy, self.initial_rate_sell]]
        for buy, sell in self.base_rates[1:]:
            sides = (buy, self.excitation_buy, self.decay_buy), (sell, self.excitation_sell, self.decay_sell)
            rates.append([_scale(*side) for side in sides])
        return np.array(rates)

    @property
    def relaxation_buy(self) -> float:
        """Factor of the buy excess ``y - mu`` over a full step."""
        return math.exp(-self.decay_buy * self.step_length)

    @property
    def relaxation_sell(self) -> float:
        """Factor of the sell excess over a full step."""
        return math.exp(-self.decay_sell * self.step_length)

    @property
    def log_behind_buy(self) -> float:
        """Logarithm of the share of buy orders that get behind the best price: ``log(1 - a)``."""
        return log_behind(self.reach_atom_buy)

    @property
    def log_behind_sell(self) -> float:
        """Logarithm of the share of sell orders that get behind the best price."""
        return log_behind(self.reach_atom_sell)

    @property
    def rate_scale_buy(self) -> float:
        """Buy rate that is observed as 1/2: the stationary one, or base rate plus one jump where there is none.

        The base rate is the mean one.
        """
        return _scale(float(self.base_rates[:, 0].mean()), self.excitation_buy, self.decay_buy)

    @property
    def rate_scale_sell(self) -> float:
        """Sell rate that is observed as 1/2."""
        return _scale(float(self.base_rates[:, 1].mean()), self.excitation_sell, self.decay_sell)

    @property
    def depth_reach(self) -> NDArray[np.float64]:
        """Half widths ``[bid, ask]`` of the depth boxes (EUR / MWh)."""
        return 0.5 * np.array([self.max_offset_bid, self.max_offset_ask])

    @property
    def depth_center(self) -> NDArray[np.float64]:
        """Depths ``[bid, ask]`` of action 0 (EUR / MWh)."""
        return self.half_spread + self.depth_reach

    @property
    def reach_bid(self) -> float:
        """Half width of the bid's depth box (EUR / MWh)."""
        return float(self.depth_reach[0])

    @property
    def reach_ask(self) -> float:
        """Half width of the ask's depth box (EUR / MWh)."""
        return float(self.depth_reach[1])

    def expected_rates(self, time: Any) -> NDArray[np.float64]:
        """Expected intensities [buy, sell], shape ``(..., 2)``, at times ``(...)`` since the start (1 / minute)."""
        passed = np.asarray(time, dtype=np.float64)
        past = [np.clip(passed - k * self.piece_length, 0.0, self.piece_length) for k in range(self.pieces - 1)]
        past.append(np.maximum(passed - (self.pieces - 1) * self.piece_length, 0.0))
        base = self.base_rates
        sides = (
            (base[:, 0], self.excitation_buy, self.decay_buy, self.initial_rate_buy),
            (base[:, 1], self.excitation_sell, self.decay_sell, self.initial_rate_sell),
        )
        ends = np.stack([hawkes.through_pieces(*side, past)[0] for side in sides], axis=-1)
        return np.asarray(ends + (base_rates_at(self, self.horizon - passed) - base[-1]))


def base_rates_at(params: Any, time_left: Any) -> NDArray[np.float64]:
    """Base rates [buy, sell] (1 / minute), shape ``(..., 2)``, at times left ``(...)``, of parameters of rows too.

    Where a piece ends they are those of the next one.
    """
    base = params.base_rates
    if params.pieces == 1:
        return np.asarray(base[..., 0, :])
    piece = _piece(params, time_left)
    base = np.broadcast_to(base, (*piece.shape, *base.shape[-2:]))
    return np.asarray(np.take_along_axis(base, piece[..., None, None], axis=-2)[..., 0, :])


def piece_end(params: Params, time_left: Any) -> NDArray[np.float64]:
    """Time left (minutes) at which the base rates at times left end; at an end, those of what follows."""
    return np.asarray(params.piece_ends[_piece(params, time_left)])


def _piece(params: Any, time_left: Any) -> NDArray[np.int64]:
    """The piece in which a time left is."""
    return np.asarray((np.asarray(time_left)[..., None] <= params.piece_ends[..., :-1]).sum(axis=-1))


def log_behind(atom: float) -> float:
    """``log(1 - a)``, for all of the orders too."""
    return math.log1p(-atom) if atom < 1.0 else -math.inf


def _scale(base: float, jump: float, decay: float) -> float:
    return base / (1.0 - jump / decay) if jump < decay else base + jump


# One row of state. Amounts of money are sums since the reset, in EUR / MWh times lots.
STATE = np.dtype(
    [
        ("time_left", "f8"),  # T - t, minutes
        ("elapsed", "f8"),  # length of the last step, minutes
        ("excess_buy", "f8"),  # lambda+ - mu+, 1 / minute
        ("excess_sell", "f8"),  # lambda- - mu-
        ("depth_gain", "f8"),  # sum of depths earned
        ("price_gain", "f8"),  # int q dS
        ("inventory_square", "f8"),  # int q^2 dt, lots^2 minutes
        ("mid", "f8"),  # S - S_0, EUR / MWh
        ("step", "i4"),  # decisions
        ("inventory", "i4"),  # q, lots
        ("buy_orders", "i4"),  # in the last step
        ("sell_orders", "i4"),
        ("bid_fills", "i4"),
        ("ask_fills", "i4"),
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.time_left = p.horizon
    s.elapsed = 0.0
    s.excess_buy = p.initial_excess_buy
    s.excess_sell = p.initial_excess_sell
    s.depth_gain = 0.0
    s.price_gain = 0.0
    s.inventory_square = 0.0
    s.mid = 0.0
    s.step = 0
    s.inventory = p.initial_inventory
    s.buy_orders = 0
    s.sell_orders = 0
    s.bid_fills = 0
    s.ask_fills = 0


@scalar_kernel
def log_fill(offset, decay, log_behind):
    """Logarithm of the probability that an order fills a quote at this offset behind the best price (0 or less: 0)."""
    return log_behind - decay * offset if offset > 0.0 else 0.0


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Depths [bid, ask] and logarithms of their fill probabilities; False if the action is not finite."""
    bid, ask = np.float64(action[0]), np.float64(action[1])
    finite = abs(bid) + abs(ask) < np.inf
    bid = p.reach_bid * (1.0 + min(max(bid, -1.0), 1.0))
    ask = p.reach_ask * (1.0 + min(max(ask, -1.0), 1.0))
    controls[0] = p.half_spread + bid
    controls[1] = p.half_spread + ask
    log_intensities[0] = log_fill(bid, p.fill_decay_sell, p.log_behind_sell)
    log_intensities[1] = log_fill(ask, p.fill_decay_buy, p.log_behind_buy)
    return finite


@scalar_kernel
def piece_at(p, time_left):
    """Base rates of buys and of sells now, and the time left at which they end."""
    k = 0
    while k < p.pieces - 1 and time_left <= p.piece_ends[k]:
        k += 1
    return p.base_rates[k, 0], p.base_rates[k, 1], p.piece_ends[k]


@scalar_kernel
def next_order(p, base_buy, base_sell, inventory, buy, sell, left, fill_bid, fill_ask, s0, s1):
    """The next market order within ``left`` minutes: (wait, side, whether it fills a quote, s0, s1).

    ``buy`` and ``sell`` are excess intensities now, ``fill_bid`` and ``fill_ask`` fill probabilities; the side is 1 for
    a buy, -1 for a sell and 0 for none, after ``left``. Between orders intensities only fall (base rates hold for
    ``left`` at least), so that the present total bounds them: a Poisson clock of that rate, of which each tick is kept
    with the probability that is left of it, is exact (Ogata 1981) and mostly costs one exponential number.
    """
    wait, fading_buy, fading_sell = 0.0, buy, sell
    while True:
        bound = base_buy + base_sell + fading_buy + fading_sell
        clock, s0, s1 = exponential(s0, s1)
        wait += clock / bound
        if not wait < left:
            return left, 0, False, s0, s1
        fading_buy = buy * math.exp(-p.decay_buy * wait)
        fading_sell = sell * math.exp(-p.decay_sell * wait)
        mark, s0, s1 = uniform(s0, s1)
        mark *= bound
        rate = base_buy + fading_buy
        if mark < rate:
            return wait, 1, inventory > -p.inventory_limit and mark < rate * fill_ask, s0, s1
        mark -= rate
        rate = base_sell + fading_sell
        if mark < rate:
            return wait, -1, inventory < p.inventory_limit and mark < rate * fill_bid, s0, s1


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated)."""
    q, s0, s1 = np.int64(s.inventory), s.s0, s.s1
    bid_depth, ask_depth = controls[0], controls[1]  # arrays that are read inside the loop cost reference counts
    fill_bid, fill_ask = intensities[0], intensities[1]
    buy, sell = s.excess_buy, s.excess_sell
    base_buy, base_sell, end = piece_at(p, s.time_left)
    last = s.time_left - end <= p.step_length * LAST
    length = s.time_left - end if last else p.step_length

    left = length
    whole = not last
    earned = moved = int_qq = price_gain = 0.0
    buys = sells = bids = asks = 0
    while True:
        wait, side, filled, s0, s1 = next_order(p, base_buy, base_sell, q, buy, sell, left, fill_bid, fill_ask, s0, s1)
        if side == 0:
            break
        left -= wait
        whole = False
        int_qq += np.float64(q * q) * wait
        buy *= math.exp(-p.decay_buy * wait)
        sell *= math.exp(-p.decay_sell * wait)
        if side > 0:
            if filled:
                q -= 1
                asks += 1
                earned += ask_depth
            buys += 1
            moved += p.impact_buy
            price_gain += q * p.impact_buy
            buy += p.excitation_buy
        else:
            if filled:
                q += 1
                bids += 1
                earned += bid_depth
            sells += 1
            moved -= p.impact_sell
            price_gain -= q * p.impact_sell
            sell += p.excitation_sell
        if p.decision == EVENT:
            break
    if p.decision == EVENT and buys + sells > 0:
        length -= left
        last = False
    else:
        int_qq += np.float64(q * q) * left
        buy *= p.relaxation_buy if whole else math.exp(-p.decay_buy * left)
        sell *= p.relaxation_sell if whole else math.exp(-p.decay_sell * left)

    s.step += 1
    s.elapsed = length
    if last:
        s.time_left = end
        last = end == 0.0
    elif p.decision == EVENT:
        s.time_left -= length
    else:
        s.time_left = p.step_length * (p.num_steps - s.step)
    s.excess_buy = buy
    s.excess_sell = sell
    s.depth_gain += earned
    s.price_gain += price_gain
    s.inventory_square += int_qq
    s.mid += moved
    s.inventory = q
    s.buy_orders = buys
    s.sell_orders = sells
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    reward = earned + price_gain - p.running_penalty * int_qq
    if last:
        reward -= abs(q) * p.half_spread + p.terminal_penalty * np.float64(q * q)
    return reward, last


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [time left / horizon, inventory / limit] and what `observe` says.

    Both rates as y / (y + scale), or the side of the last step's order (0: none) and length / longest length.
    """
    observation[0] = s.time_left / p.horizon
    observation[1] = s.inventory / p.inventory_limit
    if p.observe == SEE_TAPE:
        observation[2] = s.buy_orders - s.sell_orders
        observation[3] = s.elapsed / p.step_length
    elif p.observe == SEE_STATE:
        base_buy, base_sell, _ = piece_at(p, s.time_left)
        buy, sell = base_buy + s.excess_buy, base_sell + s.excess_sell
        observation[2] = buy / (buy + p.rate_scale_buy)
        observation[3] = sell / (sell + p.rate_scale_sell)


def state_ranges(params: Params) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    p = params
    counts = ("buy_orders", "sell_orders", "bid_fills", "ask_fills")
    return {
        "time_left": (0.0, p.horizon),
        "elapsed": (0.0, p.horizon),
        "excess_buy": (0.0, hawkes.most_excess(p.initial_rate_buy, p.excitation_buy)),
        "excess_sell": (0.0, hawkes.most_excess(p.initial_rate_sell, p.excitation_sell)),
        "inventory_square": (0.0, math.inf),
        "step": (0, p.num_steps if p.decision == "clock" else MOST_DECISIONS),
        "inventory": (-p.inventory_limit, p.inventory_limit),
        **dict.fromkeys(counts, (0, math.inf)),
    }


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Depths ``[bid, ask]`` (EUR / MWh), shape ``(..., 2)``, that the environment plays for actions of that shape."""
    clipped = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
    return params.half_spread + params.depth_reach * (1.0 + clipped)


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions whose depths are the nearest to ``quotes`` (EUR / MWh) in the box, to float32 rounding."""
    actions = (np.asarray(quotes, dtype=np.float64) - params.half_spread) / params.depth_reach - 1.0
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(
    params: Params,
    time_left: Any,
    inventory: Any,
    buy_rate: Any,
    sell_rate: Any,
    side: Any = 0,
    elapsed: Any = 0.0,
) -> NDArray[np.float32]:
    """Observations of minutes left, inventories (lots), intensities (1 / minute), and the last step.

    That is the side of its order (1: buy, -1: sell, 0: none) and its length (minutes), as at the start by default. The
    shape is ``(..., 4)``, or ``(..., 2)`` where only fills are observed.
    """
    columns = [np.asarray(time_left) / params.horizon, np.asarray(inventory) / params.inventory_limit]
    if params.observe == "state":
        buy, sell = np.asarray(buy_rate), np.asarray(sell_rate)
        columns += [buy / (buy + params.rate_scale_buy), sell / (sell + params.rate_scale_sell)]
    elif params.observe == "tape":
        columns += [np.asarray(side), np.asarray(elapsed) / params.step_length]
    shape = np.broadcast_shapes(*(np.shape(value) for value in (time_left, inventory, buy_rate, sell_rate)))
    return np.stack([np.broadcast_to(column, shape) for column in columns], axis=-1).astype(np.float32)


def last_order(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Side of the order that ended the last step (0: none) and the step's minutes, of observations of the tape."""
    seen = np.asarray(observations, dtype=np.float64)
    return np.rint(seen[..., 2]).astype(np.int64), np.clip(seen[..., 3], 0.0, 1.0) * params.step_length


def locate(
    params: Params, observations: Any
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Minutes left, inventory (lots), buy and sell rate (1 / minute) of observations ``(..., 4)``.

    The inventory is exact; with decisions by the clock the time is too; the rest is good to float32 rounding, and times
    so near to the end of a piece are taken to be there. Where the
    intensities are not observed, the rates are those that are to be expected at that time (`last_order` has what else
    the tape shows).
    """
    seen = np.asarray(observations, dtype=np.float64)
    time_left = np.clip(seen[..., 0], 0.0, 1.0) * params.horizon
    if params.decision == "clock":
        time_left = np.rint(time_left / params.step_length) * params.step_length
    for end in params.piece_ends[:-1]:
        time_left = np.where(np.abs(time_left - end) <= ROUNDING * params.horizon, end, time_left)
    limit = params.inventory_limit
    inventory = np.clip(np.rint(seen[..., 1] * limit), -limit, limit).astype(np.int64)
    if params.observe != "state":
        expected = params.expected_rates(params.horizon - time_left)
        return time_left, inventory, expected[..., 0], expected[..., 1]
    shares = np.clip(seen[..., 2:], 0.0, 1.0 - 2.0**-24)
    rates = shares / (1.0 - shares) * [params.rate_scale_buy, params.rate_scale_sell]
    rates = np.maximum(rates, base_rates_at(params, time_left))
    return time_left, inventory, rates[..., 0], rates[..., 1]


MARKET = Market(
    name="hawkes_flow",
    params_type=Params,
    state=STATE,
    arrays={"base_rates": (MOST_PIECES, 2), "piece_ends": (MOST_PIECES,)},
    compact={"base_rates": (1, 2), "piece_ends": (1,)},
    derived=(
        "step_length",
        "pieces",
        "initial_excess_buy",
        "initial_excess_sell",
        "relaxation_buy",
        "relaxation_sell",
        "log_behind_buy",
        "log_behind_sell",
        "rate_scale_buy",
        "rate_scale_sell",
        "reach_bid",
        "reach_ask",
    ),
    num_controls=2,
    num_intensities=2,
    reset_one=reset_one,
    controls_one=controls_one,
    step_one=step_one,
    observe_one=observe_one,
    ranges=state_ranges,
    observation_low=lambda params: {"state": (0, -1, 0, 0), "tape": (0, -1, -1, 0), "fills": (0, -1)}[params.observe],
    to_quotes=to_quotes,
    from_quotes=from_quotes,
    locate=locate,
)
