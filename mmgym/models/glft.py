r"""Avellaneda-Stoikov / Guéant-Lehalle-Fernandez-Tapia market: continuous quotes, bounded inventory.

The mid is an arithmetic Brownian motion, and orders of size ``D`` quoted at depths ``d`` (distances from the moving
mid) are filled at the intensities (Avellaneda & Stoikov 2008, eqs. 2.1 and 2.11; Guéant, Lehalle & Fernandez-Tapia
2013, eqs. 2.1-2.3)

    dS = mu dt + sigma dW,
    lambda_bid = A_bid exp(-k_bid d_bid) 1{q < Q},    lambda_ask = A_ask exp(-k_ask d_ask) 1{q > -Q},
    dq = D (dN_bid - dN_ask),    dX = -D (S - d_bid) dN_bid + D (S + d_ask) dN_ask,

so the wealth ``W = X + q S`` obeys ``dW = D d_bid dN_bid + D d_ask dN_ask + q dS``.

The mid may also jump (Merton 1976): ``dS = mu dt + sigma dW + J dN``, ``N`` Poisson of intensity ``lambda_J`` and ``J``
normal with mean ``m`` and standard deviation ``s``; compensated, ``- lambda_J m dt`` is added. Then ``S`` has the trend
``mu + lambda_J m`` (compensated: ``mu``), and what is left of it is a martingale with ``ln E[exp(z S_1)]`` equal to

    sigma^2 z^2 / 2 + lambda_J (exp(z m + z^2 s^2 / 2) - 1 - z m).

Or the mid is geometric, ``dS = sigma S dW``: it is drawn at every fill and step end, exactly, and given the inventory
path ``q`` the P&L it brings has mean 0 and variance ``sigma^2 S_0^2 int q^2 exp(sigma^2 t) dt``. Fills do not see the
price, so that under the mean criterion neither optimum nor value change. With a trend, or under "cara", both would
depend on the price, which is not observed: these are refused, and so are jumps.

One step freezes both depths for ``h = horizon / num_steps`` and simulates the rest exactly: competing exponential
clocks, several fills a step, a filled order replaced at once, and a side inactive exactly while the inventory is at
its bound; jumps have a clock of their own. Given the inventory path, ``(int q dW, W_h)`` is Gaussian with covariance
``[[int q^2, int q], [int q, h]]``.

Criteria: "mean" maximises ``E[W_T - W_0 - phi int q^2 dt - alpha q_T^2]``; "cara" maximises
``E[-exp(-gamma (W_T - W_0 - alpha q_T^2))]``.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, choice, integer, multiple, pair, real, together
from mmgym.market import Market, scalar_kernel
from mmgym.models.wealth import CARA, criterion_arguments, price_noise, step_reward
from mmgym.random_streams import exponential, normal, uniform

MAX_STEPS = 1_000_000  # a float32 observation tells so many steps apart
MAX_EVENTS = 10_000.0  # expected fills a step at the smallest depths, and expected jumps
MAX_EXPONENT = 600.0  # |fill_decay * depth|: beyond, an intensity leaves the range of floating point
MAX_PENALTY = 1e9  # price / (assets * time)
MAX_LOG_VARIANCE = 50.0  # of a geometric mid over the horizon
GEOMETRIC = 1  # code of `price` in kernels
MAX_JUMP_EXPONENT = 1e4  # of an episode's jumps at the inventory limit, under CARA


class Params(NamedTuple):
    """Parameters of the market (paper symbol, unit). Build them with `Params.create`, which checks them."""

    price: Literal["arithmetic", "geometric"]
    volatility: float  # sigma, price / sqrt(time); geometric: 1 / sqrt(time)
    drift: float  # mu, price / time
    fill_rate_bid: float  # A_bid, 1 / time
    fill_rate_ask: float  # A_ask, 1 / time
    fill_decay_bid: float  # k_bid, 1 / price
    fill_decay_ask: float  # k_ask, 1 / price
    order_size: float  # D, assets
    inventory_limit: float  # Q, assets
    initial_inventory: float  # q_0, assets
    initial_price: float  # S_0, price
    horizon: float  # T, time
    num_steps: int  # N, decisions
    running_penalty: float  # phi, price / (assets * time)
    terminal_penalty: float  # alpha, price / assets
    utility: Literal["mean", "cara"]
    risk_aversion: float  # gamma, 1 / (price * assets)
    min_depth_bid: float  # price
    min_depth_ask: float  # price
    max_depth_bid: float  # price
    max_depth_ask: float  # price
    jump_rate: float  # lambda_J, 1 / time
    jump_mean: float  # m, price
    jump_volatility: float  # s, price
    compensated: bool  # whether the jumps' trend is taken out
    reward: Literal["pnl", "expected"]

    @classmethod
    def create(
        cls,
        *,
        price: str = "arithmetic",
        volatility: float = 0.3,
        fill_rate: float | list[float] = 0.9,
        fill_decay: float | list[float] = 0.3,
        drift: float = 0.0,
        order_size: float = 1.0,
        inventory_limit: float = 30.0,
        initial_inventory: float = 0.0,
        initial_price: float = 100.0,
        horizon: float = 600.0,
        num_steps: int = 600,
        running_penalty: float | None = None,
        terminal_penalty: float = 0.0,
        utility: str = "mean",
        risk_aversion: float = 0.01,
        min_depth: float | list[float] | None = None,
        max_depth: float | list[float] | None = None,
        jump_rate: float = 0.0,
        jump_mean: float = 0.0,
        jump_volatility: float = 0.0,
        compensated: bool = False,
        reward: str = "pnl",
    ) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.glft.GLFTEnv`.

        Raises
        ------
        ValueError
            If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
        """
        choice("price", price, ("arithmetic", "geometric"))
        volatility = real("volatility", volatility, low=0.0, high=1e9)
        rate_bid, rate_ask = pair("fill_rate", fill_rate, low=TINY, high=1e12)
        decay_bid, decay_ask = pair("fill_decay", fill_decay, low=1e-9, high=1e9)
        drift = real("drift", drift, low=-1e9, high=1e9)
        order_size = real("order_size", order_size, low=TINY, high=1e9)
        inventory_limit = multiple("inventory_limit", inventory_limit, "order_size", order_size, low=1, high=1e6)
        initial_inventory = multiple("initial_inventory", initial_inventory, "order_size", order_size)
        if abs(initial_inventory) > inventory_limit:
            raise together(
                {"initial_inventory": initial_inventory, "inventory_limit": inventory_limit},
                "initial_inventory must be from -inventory_limit to inventory_limit",
            )
        initial_price = real("initial_price", initial_price, low=-1e12, high=1e12)
        horizon = real("horizon", horizon, low=TINY, high=1e9)
        num_steps = integer("num_steps", num_steps, low=1, high=MAX_STEPS)
        terminal_penalty = real("terminal_penalty", terminal_penalty, low=0.0, high=1e9)
        risk_aversion = real("risk_aversion", risk_aversion, low=0.0, high=1e6)
        choice("utility", utility, ("mean", "cara"))
        scale = initial_price if price == "geometric" else 1.0
        default = 0.5 * risk_aversion * (volatility * scale) ** 2
        if utility != "cara" and running_penalty is None and not default <= MAX_PENALTY:
            priced = {"initial_price": initial_price} if price == "geometric" else {}
            raise together(
                {"volatility": volatility, **priced, "risk_aversion": risk_aversion},
                f"running_penalty, by default risk_aversion times half the mid's variance per unit of time, would be "
                f"{default:g} and must be at most {MAX_PENALTY:g}; give it, or lower one of them",
            )
        risk_aversion, running_penalty = criterion_arguments(utility, risk_aversion, running_penalty, default=default)
        depths = {}
        for name, given, default in (("min_depth", min_depth, -1.0), ("max_depth", max_depth, 3.0)):
            chosen = [default / decay_bid, default / decay_ask] if given is None else given
            depths[name] = pair(name, chosen, low=-1e12, high=1e12)
        for side, decay, rate, low, high in zip(
            ("bid", "ask"), (decay_bid, decay_ask), (rate_bid, rate_ask), *depths.values(), strict=True
        ):
            check_depths(f"on the {side} side", rate, decay, low, high, horizon, num_steps)
        jump_rate = real("jump_rate", jump_rate, low=0.0, high=1e12)
        if jump_rate * horizon / num_steps > MAX_EVENTS:
            raise together(
                {"jump_rate": jump_rate, "horizon": horizon, "num_steps": num_steps},
                f"the expected jumps a step, jump_rate * horizon / num_steps, must be at most {MAX_EVENTS:g}",
            )
        jump_mean = real("jump_mean", jump_mean, low=-1e9, high=1e9)
        jump_volatility = real("jump_volatility", jump_volatility, low=0.0, high=1e9)
        if price == "geometric":
            _check_geometric(volatility, initial_price, horizon, drift, jump_rate, utility)
        if jump_rate > 0.0 and utility == "cara":
            _check_jump_exponent(jump_rate, jump_mean, jump_volatility, risk_aversion, inventory_limit, horizon)
        return cls(
            price="geometric" if price == "geometric" else "arithmetic",
            volatility=volatility,
            drift=drift,
            fill_rate_bid=rate_bid,
            fill_rate_ask=rate_ask,
            fill_decay_bid=decay_bid,
            fill_decay_ask=decay_ask,
            order_size=order_size,
            inventory_limit=inventory_limit,
            initial_inventory=initial_inventory,
            initial_price=initial_price,
            horizon=horizon,
            num_steps=num_steps,
            running_penalty=running_penalty,
            terminal_penalty=terminal_penalty,
            utility=choice("utility", utility, ("mean", "cara")),
            risk_aversion=risk_aversion,
            min_depth_bid=depths["min_depth"][0],
            min_depth_ask=depths["min_depth"][1],
            max_depth_bid=depths["max_depth"][0],
            max_depth_ask=depths["max_depth"][1],
            jump_rate=jump_rate,
            jump_mean=jump_mean,
            jump_volatility=jump_volatility,
            compensated=choice("compensated", compensated, (False, True)),
            reward=choice("reward", reward, ("pnl", "expected")),
        )

    # Derived constants. Those that kernels read are listed in MARKET below.

    @property
    def step_length(self) -> float:
        """Length ``h`` of a decision step (time)."""
        return self.horizon / self.num_steps

    @property
    def inverse_step(self) -> float:
        """``1 / h`` (1 / time)."""
        return self.num_steps / self.horizon

    @property
    def root_step(self) -> float:
        """``sqrt(h)`` (sqrt(time))."""
        return math.sqrt(self.step_length)

    @property
    def limit(self) -> int:
        """Inventory bound in orders."""
        return round(self.inventory_limit / self.order_size)

    @property
    def start(self) -> int:
        """Initial inventory in orders."""
        return round(self.initial_inventory / self.order_size)

    @property
    def trend(self) -> float:
        """Expected change of the mid per unit of time, jumps included (price / time)."""
        return self.drift if self.compensated else self.drift + self.jump_rate * self.jump_mean

    @property
    def variance_rate(self) -> float:
        """Variance of the mid per unit of time, jumps included (price^2 / time); geometric: at the start."""
        if self.price == "geometric":
            return (self.volatility * self.initial_price) ** 2
        return self.volatility**2 + self.jump_rate * (self.jump_mean**2 + self.jump_volatility**2)

    @property
    def center_bid(self) -> float:
        """Bid depth of action 0 (price)."""
        return 0.5 * (self.min_depth_bid + self.max_depth_bid)

    @property
    def center_ask(self) -> float:
        """Ask depth of action 0 (price)."""
        return 0.5 * (self.min_depth_ask + self.max_depth_ask)

    @property
    def reach_bid(self) -> float:
        """Half the width of the bid's depth box (price)."""
        return 0.5 * (self.max_depth_bid - self.min_depth_bid)

    @property
    def reach_ask(self) -> float:
        """Half the width of the ask's depth box (price)."""
        return 0.5 * (self.max_depth_ask - self.min_depth_ask)

    @property
    def depth_center(self) -> NDArray[np.float64]:
        """Depths ``[bid, ask]`` of action 0 (price)."""
        return np.array([self.center_bid, self.center_ask])

    @property
    def depth_reach(self) -> NDArray[np.float64]:
        """Half widths ``[bid, ask]`` of the depth boxes (price)."""
        return np.array([self.reach_bid, self.reach_ask])


def check_depths(
    where: str, rate: float, decay: float, low: float, high: float, horizon: float, num_steps: int
) -> None:
    """Refuse the depths of a side that are no interval, or at which intensities cannot be computed with."""
    if not low < high:
        raise together({"min_depth": low, "max_depth": high}, f"min_depth must be below max_depth {where}")
    for name, value in (("min_depth", low), ("max_depth", high)):
        if abs(value) * decay > MAX_EXPONENT * (1.0 + 1e-12):
            reach = MAX_EXPONENT / decay
            raise together(
                {name: value, "fill_decay": decay},
                f"{name} must be from {-reach:g} to {reach:g} {where}, {MAX_EXPONENT:g} / fill_decay",
            )
    events = rate * math.exp(-decay * low) * horizon / num_steps
    if events > MAX_EVENTS:
        raise together(
            {"fill_rate": rate, "fill_decay": decay, "min_depth": low, "horizon": horizon, "num_steps": num_steps},
            f"the expected fills a step at min_depth {where}, fill_rate * exp(-fill_decay * min_depth) * horizon / "
            f"num_steps = {events:g}, must be at most {MAX_EVENTS:g}; raise min_depth or num_steps",
        )


def _check_jump_exponent(
    rate: float, mean: float, volatility: float, risk_aversion: float, inventory_limit: float, horizon: float
) -> None:
    """Refuse jumps whose exponential moments at the largest inventory leave the range of floating point."""
    exposure = risk_aversion * inventory_limit
    exponent = abs(exposure * mean) + 0.5 * (exposure * volatility) ** 2
    if exponent > MAX_EXPONENT or rate * math.expm1(exponent) * horizon > MAX_JUMP_EXPONENT:
        raise together(
            {
                "jump_rate": rate,
                "jump_mean": mean,
                "jump_volatility": volatility,
                "risk_aversion": risk_aversion,
                "inventory_limit": inventory_limit,
                "horizon": horizon,
            },
            "with utility='cara' the expected utility of the jumps leaves the range of floating point at the inventory "
            "limit: jump_rate * horizon * E[exp(risk_aversion * inventory_limit * |J|)] must be at most "
            f"{MAX_JUMP_EXPONENT:g}; lower one of them",
        )


def _check_geometric(
    volatility: float, initial_price: float, horizon: float, drift: float, jump_rate: float, utility: str
) -> None:
    """Refuse what a geometric mid does not go with."""
    for name, value in (("drift", drift), ("jump_rate", jump_rate)):
        if value != 0.0:
            raise ValueError(
                f"{name} = {value!r} is not allowed with price='geometric': it must be 0, or the best policy would "
                "depend on the price, which is not observed"
            )
    if utility != "mean":
        raise ValueError(
            f"utility = {utility!r} is not allowed with price='geometric': it must be 'mean', or the best policy would "
            "depend on the price, which is not observed"
        )
    if initial_price <= 0.0:
        raise ValueError(f"initial_price = {initial_price!r} is not allowed with price='geometric': it must be > 0")
    if volatility**2 * horizon > MAX_LOG_VARIANCE:
        raise ValueError(
            f"volatility = {volatility!r} and horizon = {horizon!r} are not allowed together with price='geometric', "
            "where volatility is relative to the price: volatility^2 * horizon must be at most "
            f"{MAX_LOG_VARIANCE:g}"
        )


# One row of state. Inventory is counted in orders; amounts of money are sums since the reset.
STATE = np.dtype(
    [
        ("spread_gain", "f8"),  # sum of depths earned plus gains from the trend, price * assets
        ("price_gain", "f8"),  # int q d(S - trend t), price * assets
        ("inventory_square", "f8"),  # int q^2 dt, assets^2 * time
        ("jump_exponent", "f8"),  # under CARA: ln E[exp(-gamma int q dJ)] given q, J the compensated jumps
        ("mid", "f8"),  # S, price
        ("step", "i4"),
        ("inventory", "i4"),  # q / D
        ("bid_fills", "u2"),  # in the last step
        ("ask_fills", "u2"),
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.spread_gain = 0.0
    s.price_gain = 0.0
    s.inventory_square = 0.0
    s.jump_exponent = 0.0
    s.mid = p.initial_price
    s.step = 0
    s.inventory = p.start
    s.bid_fills = 0
    s.ask_fills = 0


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Depths [bid, ask] and log-intensities of an action, clipped to the box; False if it is not finite."""
    bid, ask = np.float64(action[0]), np.float64(action[1])
    finite = abs(bid) + abs(ask) < np.inf
    controls[0] = p.center_bid + p.reach_bid * min(max(bid, -1.0), 1.0)
    controls[1] = p.center_ask + p.reach_ask * min(max(ask, -1.0), 1.0)
    log_intensities[0] = -p.fill_decay_bid * controls[0]
    log_intensities[1] = -p.fill_decay_ask * controls[1]
    return finite


@scalar_kernel
def jump_exponent_rate(p, q):
    """``lambda_J (E[exp(z J)] - 1 - z m)`` at ``z = -gamma D q``, under CARA, for an inventory of ``q`` orders."""
    if p.jump_rate == 0.0 or p.utility != CARA:
        return 0.0
    z = -p.risk_aversion * p.order_size * q
    return p.jump_rate * (math.expm1(z * p.jump_mean + 0.5 * (z * p.jump_volatility) ** 2) - z * p.jump_mean)


@scalar_kernel
def geometric_move(p, mid, elapsed, s0, s1):
    """``S(t) - S(0)`` of a geometric mid over a time ``elapsed``."""
    z, s0, s1 = normal(s0, s1)
    deviation = p.volatility * math.sqrt(elapsed)
    return mid * math.expm1(deviation * (z - 0.5 * deviation)), s0, s1


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated)."""
    bid_depth, ask_depth = controls[0], controls[1]
    bid_rate, ask_rate = p.fill_rate_bid * intensities[0], p.fill_rate_ask * intensities[1]
    q, s0, s1 = np.int64(s.inventory), s.s0, s.s1

    left = p.step_length
    int_q = int_qq = earned = jumped = q_jumped = exponent = 0.0
    bids = asks = 0
    active_bid = bid_rate if q < p.limit else 0.0
    fill_rate = active_bid + (ask_rate if q > -p.limit else 0.0)
    rate = fill_rate + p.jump_rate
    exponent_rate = jump_exponent_rate(p, q)
    clock, s0, s1 = exponential(s0, s1)
    while clock < rate * left:
        elapsed = clock / rate
        left -= elapsed
        int_q += q * elapsed
        int_qq += np.float64(q * q) * elapsed
        exponent += exponent_rate * elapsed
        if p.price == GEOMETRIC:
            move, s0, s1 = geometric_move(p, s.mid + jumped, elapsed, s0, s1)
            jumped += move
            q_jumped += q * move
        side, s0, s1 = uniform(s0, s1)
        side *= rate
        if p.jump_rate > 0.0 and side >= fill_rate:
            jump, s0, s1 = normal(s0, s1)
            jump = p.jump_mean + p.jump_volatility * jump
            jumped += jump
            q_jumped += q * jump
        else:
            is_bid = side < active_bid
            bids += is_bid
            asks += not is_bid
            q += 1 if is_bid else -1
            earned += bid_depth if is_bid else ask_depth
            active_bid = bid_rate if q < p.limit else 0.0
            fill_rate = active_bid + (ask_rate if q > -p.limit else 0.0)
            rate = fill_rate + p.jump_rate
            exponent_rate = jump_exponent_rate(p, q)
        clock, s0, s1 = exponential(s0, s1)
    int_q += q * left
    int_qq += np.float64(q * q) * left
    exponent += exponent_rate * left

    if p.price == GEOMETRIC:
        int_q_dw = brownian = 0.0
        move, s0, s1 = geometric_move(p, s.mid + jumped, left, s0, s1)
        jumped += move
        q_jumped += q * move
    else:
        int_q_dw, brownian, s0, s1 = price_noise(p, q, bids + asks > 0, int_q, int_qq, s0, s1)
    size = p.order_size
    jump_trend = p.jump_rate * p.jump_mean
    spread_gain = size * (earned + p.trend * int_q)
    price_gain = size * (p.volatility * int_q_dw + q_jumped - jump_trend * int_q)
    inventory_square = size * size * int_qq
    s.spread_gain += spread_gain
    s.price_gain += price_gain
    s.inventory_square += inventory_square
    s.jump_exponent += exponent
    s.mid += (p.trend - jump_trend) * p.step_length + p.volatility * brownian + jumped
    s.inventory = q
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    s.step += 1
    terminated = s.step >= p.num_steps

    penalty = p.terminal_penalty * (size * q) ** 2 if terminated else 0.0
    reward = step_reward(
        p,
        terminated,
        spread_gain - penalty,
        price_gain,
        p.running_penalty * inventory_square,
        s.spread_gain - penalty,
        s.price_gain,
        0.5 * (p.risk_aversion * p.volatility) ** 2 * s.inventory_square + s.jump_exponent,
    )
    return reward, terminated


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [elapsed fraction of the horizon, inventory / limit]."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit


def state_ranges(params: Params) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    limit = params.limit
    return {
        "step": (0, params.num_steps),
        "inventory": (-limit, limit),
        "inventory_square": (0.0, math.inf),
    }


MARKET = Market(
    name="glft",
    modules=("mmgym.models.wealth",),
    params_type=Params,
    state=STATE,
    derived=(
        "step_length",
        "inverse_step",
        "root_step",
        "limit",
        "start",
        "trend",
        "center_bid",
        "center_ask",
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
    """Depths ``[bid, ask]`` (price), shape ``(..., 2)``, that the environment plays for actions of that shape."""
    clipped = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
    return params.depth_center + params.depth_reach * clipped


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions, shape ``(..., 2)`` in [-1, 1], whose depths are the nearest to ``quotes`` (price) in the depth box."""
    actions = (np.asarray(quotes, dtype=np.float64) - params.depth_center) / params.depth_reach
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(params: Params, step: Any, inventory: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., 2)``, of steps and inventories (in orders): bit for bit those of the environment."""
    step, inventory = np.broadcast_arrays(step, inventory)
    return np.stack([step / params.num_steps, inventory / params.limit], axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Step and inventory (in orders) of observations of shape ``(..., 2)``: the inverse of `observe`."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.rint(observations[..., 0] * params.num_steps).astype(np.int64)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    return np.clip(step, 0, params.num_steps), np.clip(inventory, -params.limit, params.limit)
