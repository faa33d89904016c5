r"""Market making against self-exciting order flow, in its exactly solvable form (intraday power).

Market orders to buy (+) and to sell (-) are two Hawkes processes; a fixed half-spread ``h`` and mean impacts take the
place of the book (von Luckner, Cartea, Jaimungal & Kiesel 2017, sections 2-3, with constant half-spread):

    dy_k = rho_k (mu_k - y_k) dt + zeta_k dN_k,    k = +, -,
    dS = eps_+ dN_+ - eps_- dN_-,

and an ask (bid) at the depth ``d >= h`` from the mid is filled by a market order to buy (sell) with the probability
``exp(-kappa (d - h))``, one lot an order, unless the inventory would leave ``[-Q, Q]``. Left limits are meant: an order
at ``u`` is filled at ``S_{u-} +- d``, then the mid moves, then the intensity jumps. With ``W = X + q S``,

    dW = [fill (d - eps_+) + q eps_+] dN_+ + [fill (d - eps_-) - q eps_-] dN_-,    q the inventory before the order.

Depths are frozen from one decision to the next. Decisions are taken every ``horizon / num_steps`` ("clock"), or after
every market order and at the latest so long after the last decision ("event"): then nothing random happens between two
decisions. Everything is simulated event by event, exactly, without a time step (see `next_order`).

Criterion: ``E[W_T - W_0 - |q_T| h - alpha q_T^2 - phi int q^2 dt]``: the liquidation crosses the half-spread.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, choice, integer, real, refusal, together
from mmgym.market import Market, scalar_kernel
from mmgym.models import hawkes
from mmgym.random_streams import exponential, uniform

EVENT, CLOCK = 0, 1  # codes of `decision` in kernels, in the order of the Literal below

MAX_STEPS = 1_000_000
MAX_ORDERS = 1_000_000.0  # expected market orders in an episode
MAX_RATE = 1e6  # per minute
MOST_DECISIONS = 2**31 - 2  # that a state counts
REACH = 4.0  # width of the depth box, in units of 1 / fill_decay
LAST = 1.0 + 1e-9  # a decision interval that much longer than the time left is the last one


class Params(NamedTuple):
    """Parameters of the market (paper symbol, unit). Build them with `Params.create`, which checks them."""

    base_rate_buy: float  # mu+, 1 / minute
    base_rate_sell: float  # mu-, 1 / minute
    excitation_buy: float  # zeta+, 1 / minute
    excitation_sell: float  # zeta-, 1 / minute
    decay_buy: float  # rho+, 1 / minute
    decay_sell: float  # rho-, 1 / minute
    half_spread: float  # h, EUR / MWh
    impact_buy: float  # eps+, EUR / MWh
    impact_sell: float  # eps-, EUR / MWh
    fill_decay_buy: float  # kappa+, MWh / EUR: of asks
    fill_decay_sell: float  # kappa-, MWh / EUR: of bids
    running_penalty: float  # phi, EUR / MWh / (lot minute)
    terminal_penalty: float  # alpha, EUR / MWh / lot
    inventory_limit: int  # Q, lots
    horizon: float  # T, minutes
    num_steps: int  # N
    decision: Literal["event", "clock"]
    initial_inventory: int  # q_0, lots
    initial_rate_buy: float  # lambda+ at 0, 1 / minute
    initial_rate_sell: float  # lambda- at 0, 1 / minute
    observe_intensities: bool

    @classmethod
    def create(
        cls,
        *,
        base_rate: float | list[float] = 0.6,
        excitation: float | list[float] = 1.5,
        decay: float | list[float] = 3.0,
        half_spread: float = 0.3,
        impact: float | list[float] = 0.1,
        fill_decay: float | list[float] = 4.0,
        running_penalty: float = 0.001,
        terminal_penalty: float = 0.05,
        inventory_limit: int = 10,
        horizon: float = 60.0,
        num_steps: int = 240,
        decision: str = "event",
        initial_inventory: int = 0,
        initial_rates: str | list[float] = "stationary",
        allow_explosive: bool = False,
        observe_intensities: bool = True,
    ) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.hawkes_flow.HawkesFlowEnv`.

        Raises
        ------
        ValueError
            If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
        """
        base = _sides("base_rate", base_rate, low=TINY, high=MAX_RATE)
        jumps = _sides("excitation", excitation, low=0.0, high=MAX_RATE)
        decays = _sides("decay", decay, low=TINY, high=MAX_RATE)
        half_spread = real("half_spread", half_spread, low=0.0, high=1e9)
        impacts = _sides("impact", impact, low=0.0, high=1e9)
        fill_decays = _sides("fill_decay", fill_decay, low=1e-9, high=1e9)
        running_penalty = real("running_penalty", running_penalty, low=0.0, high=1e9)
        terminal_penalty = real("terminal_penalty", terminal_penalty, low=0.0, high=1e9)
        inventory_limit = integer("inventory_limit", inventory_limit, low=1, high=1_000_000)
        horizon = real("horizon", horizon, low=TINY, high=1e9)
        num_steps = integer("num_steps", num_steps, low=1, high=MAX_STEPS)
        initial_inventory = integer("initial_inventory", initial_inventory, low=-1_000_000, high=1_000_000)
        if abs(initial_inventory) > inventory_limit:
            raise together(
                {"initial_inventory": initial_inventory, "inventory_limit": inventory_limit},
                "initial_inventory must be from -inventory_limit to inventory_limit",
            )
        choice("allow_explosive", allow_explosive, (False, True))
        unstable = any(jump >= decay for jump, decay in zip(jumps, decays, strict=True))
        if unstable and not allow_explosive:
            raise ValueError(hawkes.explosive(jumps, decays))
        if isinstance(initial_rates, str) and initial_rates == "stationary":
            if unstable:
                raise ValueError(
                    "initial_rates = 'stationary' is not allowed with excitation >= decay, which has no stationary "
                    "rate: give a pair [buy, sell] of rates per minute"
                )
            start = (
                base[0] / (1.0 - jumps[0] / decays[0]),
                base[1] / (1.0 - jumps[1] / decays[1]),
            )
        else:
            if isinstance(initial_rates, str):
                raise refusal("initial_rates", initial_rates, "'stationary' or a pair [buy, sell]")
            start = _sides("initial_rates", initial_rates, low=0.0, high=MAX_RATE)
            for name, rate, least in zip(("buy", "sell"), start, base, strict=True):
                if rate < least:
                    raise together(
                        {"initial_rates": initial_rates, "base_rate": base_rate},
                        f"the {name} rate must be at least its base_rate {least:g}",
                    )
        with np.errstate(over="ignore"):
            orders = float(
                sum(hawkes.expected_count(*side, horizon) for side in zip(base, jumps, decays, start, strict=True))
            )
        if not orders <= MAX_ORDERS:
            raise together(
                {
                    "base_rate": base_rate,
                    "excitation": excitation,
                    "decay": decay,
                    "initial_rates": initial_rates,
                    "horizon": horizon,
                },
                f"{orders:.3g} market orders would be expected in an episode, and at most {MAX_ORDERS:g} are allowed",
            )
        return cls(
            base_rate_buy=base[0],
            base_rate_sell=base[1],
            excitation_buy=jumps[0],
            excitation_sell=jumps[1],
            decay_buy=decays[0],
            decay_sell=decays[1],
            half_spread=half_spread,
            impact_buy=impacts[0],
            impact_sell=impacts[1],
            fill_decay_buy=fill_decays[0],
            fill_decay_sell=fill_decays[1],
            running_penalty=running_penalty,
            terminal_penalty=terminal_penalty,
            inventory_limit=inventory_limit,
            horizon=horizon,
            num_steps=num_steps,
            decision=choice("decision", decision, ("event", "clock")),
            initial_inventory=initial_inventory,
            initial_rate_buy=start[0],
            initial_rate_sell=start[1],
            observe_intensities=choice("observe_intensities", observe_intensities, (False, True)),
        )

    def arguments(self) -> dict[str, Any]:
        """Arguments of `create` that make these parameters."""
        names = ("base_rate", "excitation", "decay", "impact", "fill_decay")
        found: dict[str, Any] = {name: [getattr(self, f"{name}_buy"), getattr(self, f"{name}_sell")] for name in names}
        found["initial_rates"] = [self.initial_rate_buy, self.initial_rate_sell]
        found["allow_explosive"] = self.excitation_buy >= self.decay_buy or self.excitation_sell >= self.decay_sell
        plain = ("half_spread", "running_penalty", "terminal_penalty", "inventory_limit", "horizon", "num_steps")
        found |= {name: getattr(self, name) for name in (*plain, "decision", "initial_inventory")}
        found["observe_intensities"] = self.observe_intensities
        return found

    # Derived constants. Those that kernels read are listed in MARKET below.

    @property
    def step_length(self) -> float:
        """Longest time between two decisions (minutes)."""
        return self.horizon / self.num_steps

    @property
    def relaxation_buy(self) -> float:
        """Factor of the buy excess ``y - mu`` over a full step."""
        return math.exp(-self.decay_buy * self.step_length)

    @property
    def relaxation_sell(self) -> float:
        """Factor of the sell excess over a full step."""
        return math.exp(-self.decay_sell * self.step_length)

    @property
    def rate_scale_buy(self) -> float:
        """Buy rate that is observed as 1/2: the stationary one, or base rate plus one jump where there is none."""
        return _scale(self.base_rate_buy, self.excitation_buy, self.decay_buy)

    @property
    def rate_scale_sell(self) -> float:
        """Sell rate that is observed as 1/2."""
        return _scale(self.base_rate_sell, self.excitation_sell, self.decay_sell)

    @property
    def depth_reach(self) -> NDArray[np.float64]:
        """Half widths ``[bid, ask]`` of the depth boxes (EUR / MWh)."""
        return np.array([0.5 * REACH / self.fill_decay_sell, 0.5 * REACH / self.fill_decay_buy])

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
        return hawkes.mean_rate(
            np.array([self.base_rate_buy, self.base_rate_sell]),
            np.array([self.excitation_buy, self.excitation_sell]),
            np.array([self.decay_buy, self.decay_sell]),
            np.array([self.initial_rate_buy, self.initial_rate_sell]),
            np.asarray(time)[..., None],
        )


def _sides(name: str, value: Any, **bounds: float) -> tuple[float, float]:
    """A number for both processes, or a ``[buy, sell]`` pair of numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise refusal(name, value, "a number, or a pair [buy, sell] of numbers")
        return real(f"{name}[0] (buy)", value[0], **bounds), real(f"{name}[1] (sell)", value[1], **bounds)
    number = real(name, value, **bounds)
    return number, number


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
    s.excess_buy = p.initial_rate_buy - p.base_rate_buy
    s.excess_sell = p.initial_rate_sell - p.base_rate_sell
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
def controls_one(p, action, controls, log_intensities):
    """Depths [bid, ask] and logarithms of their fill probabilities; False if the action is not finite."""
    bid, ask = np.float64(action[0]), np.float64(action[1])
    finite = abs(bid) + abs(ask) < np.inf
    bid = p.reach_bid * (1.0 + min(max(bid, -1.0), 1.0))
    ask = p.reach_ask * (1.0 + min(max(ask, -1.0), 1.0))
    controls[0] = p.half_spread + bid
    controls[1] = p.half_spread + ask
    log_intensities[0] = -p.fill_decay_sell * bid
    log_intensities[1] = -p.fill_decay_buy * ask
    return finite


@scalar_kernel
def next_order(p, inventory, buy, sell, left, fill_bid, fill_ask, s0, s1):
    """The next market order within ``left`` minutes: (wait, side, whether it fills a quote, s0, s1).

    ``buy`` and ``sell`` are excess intensities now, ``fill_bid`` and ``fill_ask`` fill probabilities; the side is 1 for
    a buy, -1 for a sell and 0 for none, after ``left``. Between orders intensities only fall, so that the present total
    bounds them: a Poisson clock of that rate, of which each tick is kept with the probability that is left of it, is
    exact (Ogata 1981) and mostly costs one exponential number.
    """
    wait, fading_buy, fading_sell = 0.0, buy, sell
    while True:
        bound = p.base_rate_buy + p.base_rate_sell + fading_buy + fading_sell
        clock, s0, s1 = exponential(s0, s1)
        wait += clock / bound
        if not wait < left:
            return left, 0, False, s0, s1
        fading_buy = buy * math.exp(-p.decay_buy * wait)
        fading_sell = sell * math.exp(-p.decay_sell * wait)
        mark, s0, s1 = uniform(s0, s1)
        mark *= bound
        rate = p.base_rate_buy + fading_buy
        if mark < rate:
            return wait, 1, inventory > -p.inventory_limit and mark < rate * fill_ask, s0, s1
        mark -= rate
        rate = p.base_rate_sell + fading_sell
        if mark < rate:
            return wait, -1, inventory < p.inventory_limit and mark < rate * fill_bid, s0, s1


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated)."""
    q, s0, s1 = np.int64(s.inventory), s.s0, s.s1
    bid_depth, ask_depth = controls[0], controls[1]  # arrays that are read inside the loop cost reference counts
    fill_bid, fill_ask = intensities[0], intensities[1]
    buy, sell = s.excess_buy, s.excess_sell
    last = s.time_left <= p.step_length * LAST
    length = s.time_left if last else p.step_length

    left = length
    whole = not last
    earned = moved = int_qq = price_gain = 0.0
    buys = sells = bids = asks = 0
    while True:
        wait, side, filled, s0, s1 = next_order(p, q, buy, sell, left, fill_bid, fill_ask, s0, s1)
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
        s.time_left = 0.0
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
    """Observation [time left / horizon, inventory / limit] and, unless hidden, both rates as y / (y + scale)."""
    observation[0] = s.time_left / p.horizon
    observation[1] = s.inventory / p.inventory_limit
    if p.observe_intensities:
        buy, sell = p.base_rate_buy + s.excess_buy, p.base_rate_sell + s.excess_sell
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


MARKET = Market(
    name="hawkes_flow",
    params_type=Params,
    state=STATE,
    derived=(
        "step_length",
        "relaxation_buy",
        "relaxation_sell",
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
)


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Depths ``[bid, ask]`` (EUR / MWh), shape ``(..., 2)``, that the environment plays for actions of that shape."""
    clipped = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
    return params.half_spread + params.depth_reach * (1.0 + clipped)


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions, shape ``(..., 2)`` in [-1, 1], whose depths are the nearest to ``quotes`` (EUR / MWh) in the box."""
    actions = (np.asarray(quotes, dtype=np.float64) - params.half_spread) / params.depth_reach - 1.0
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(params: Params, time_left: Any, inventory: Any, buy_rate: Any, sell_rate: Any) -> NDArray[np.float32]:
    """Observations of minutes left, inventories (lots) and intensities (1 / minute).

    Their shape is ``(..., 4)``, or ``(..., 2)`` where the intensities are hidden.
    """
    time_left, inventory, buy, sell = np.broadcast_arrays(time_left, inventory, buy_rate, sell_rate)
    columns = [time_left / params.horizon, inventory / params.inventory_limit]
    if params.observe_intensities:
        columns += [buy / (buy + params.rate_scale_buy), sell / (sell + params.rate_scale_sell)]
    return np.stack(columns, axis=-1).astype(np.float32)


def locate(
    params: Params, observations: Any
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Minutes left, inventory (lots), buy and sell rate (1 / minute) of observations ``(..., 4)``.

    The inventory is exact; with decisions by the clock the time is too; the rest is good to float32 rounding. Where the
    intensities are hidden, observations are ``(..., 2)`` and rates those that are to be expected at that time.
    """
    seen = np.asarray(observations, dtype=np.float64)
    time_left = np.clip(seen[..., 0], 0.0, 1.0) * params.horizon
    if params.decision == "clock":
        time_left = np.rint(time_left / params.step_length) * params.step_length
    limit = params.inventory_limit
    inventory = np.clip(np.rint(seen[..., 1] * limit), -limit, limit).astype(np.int64)
    if not params.observe_intensities:
        expected = params.expected_rates(params.horizon - time_left)
        return time_left, inventory, expected[..., 0], expected[..., 1]
    shares = np.clip(seen[..., 2:], 0.0, 1.0 - 2.0**-24)
    rates = shares / (1.0 - shares) * [params.rate_scale_buy, params.rate_scale_sell]
    rates = np.maximum(rates, [params.base_rate_buy, params.base_rate_sell])
    return time_left, inventory, rates[..., 0], rates[..., 1]
