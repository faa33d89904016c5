r"""Avellaneda-Stoikov / Guéant-Lehalle-Fernandez-Tapia market: continuous quotes, bounded inventory.

The mid is an arithmetic Brownian motion, and orders of size ``D`` quoted at depths ``d`` (distances from the moving
mid) are filled at the intensities (Avellaneda & Stoikov 2008, eqs. 2.1 and 2.11; Guéant, Lehalle & Fernandez-Tapia
2013, eqs. 2.1-2.3)

    dS = mu dt + sigma dW,
    lambda_bid = A_bid exp(-k_bid d_bid) 1{q < Q},    lambda_ask = A_ask exp(-k_ask d_ask) 1{q > -Q},
    dq = D (dN_bid - dN_ask),    dX = -D (S - d_bid) dN_bid + D (S + d_ask) dN_ask,

so the wealth ``W = X + q S`` obeys ``dW = D d_bid dN_bid + D d_ask dN_ask + q dS``.

The mid may also jump (see `mmgym.models.jumps`): ``dS = mu dt + sigma dW + J dN``, ``N`` Poisson of intensity
``lambda_J``. Compensated, ``- lambda_J m dt`` is added, ``m = E[J]``. Then ``S`` has the trend ``mu + lambda_J m``
(compensated: ``mu``), and what is left of it is a martingale with ``ln E[exp(z S_1)]`` equal to ``sigma^2 z^2 / 2 +
lambda_J (E[exp(z J)] - 1 - z m)``.

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
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, together
from mmgym.market import Market, scalar_kernel
from mmgym.models.jumps import (
    JUMP_EXPONENT_TOO_LARGE,
    JUMP_LAWS,
    MAX_JUMP_EXPONENT,
    JumpSizes,
    check_jump_law,
    draw_jump,
    jump_exponent_rate,
)
from mmgym.models.wealth import CARA, checked_penalty, price_noise, step_reward
from mmgym.parameters import Choice, Integer, Multiple, OtherSide, Pair, Real, check_within, create
from mmgym.random_streams import exponential, normal, uniform

MAX_STEPS = 1_000_000  # a float32 observation tells so many steps apart
MAX_EVENTS = 10_000.0  # expected fills a step at the smallest depths, and expected jumps
MAX_EXPONENT = 600.0  # |fill_decay * depth|: beyond, an intensity leaves the range of floating point
MAX_PENALTY = 1e9  # price / (assets * time)
MAX_LOG_VARIANCE = 50.0  # of a geometric mid over the horizon
GEOMETRIC = 1  # code of `price` in kernels


class Params(NamedTuple):
    """Parameters of the market. Build them with `Params.create`, which checks them."""

    price: Annotated[Literal["arithmetic", "geometric"], Choice("arithmetic"), "of the mid"]
    volatility: Annotated[
        float, Real(0.3, 0.0, 1e9, "price / sqrt(time), or 1 / sqrt(time) where the mid is geometric", "sigma")
    ]
    drift: Annotated[float, Real(0.0, -1e9, 1e9, "price / time", "mu"), "of the mid"]
    fill_rate_bid: Annotated[float, Pair(0.9, TINY, 1e12, "fills / time", "A"), "at depth 0"]
    fill_rate_ask: OtherSide
    fill_decay_bid: Annotated[float, Pair(0.3, 1e-9, 1e9, "1 / price", "k")]
    fill_decay_ask: OtherSide
    order_size: Annotated[float, Real(1.0, TINY, 1e9, "assets", "D")]
    inventory_limit: Annotated[float, Multiple(30.0, 1, 1e6, "assets", "Q", of="order_size")]
    initial_inventory: Annotated[
        float, Multiple(0.0, unit="assets", symbol="q_0", of="order_size"), "within `inventory_limit`"
    ]
    initial_price: Annotated[float, Real(100.0, -1e12, 1e12, "price", "S_0")]
    horizon: Annotated[float, Real(600.0, TINY, 1e9, "time", "T")]
    num_steps: Annotated[int, Integer(600, 1, MAX_STEPS, symbol="N"), "decisions of an episode"]
    running_penalty: Annotated[
        float,
        Real(None, 0.0, MAX_PENALTY, "price / (assets * time)", "phi", none=True),
        'None is ``risk_aversion * volatility^2 / 2`` under "mean" (the variance of jumps is not in it); under "cara" '
        "it must be None or 0",
    ]
    terminal_penalty: Annotated[float, Real(0.0, 0.0, 1e9, "price / assets", "alpha")]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[
        float,
        Real(0.01, 0.0, 1e6, "1 / (price * assets)", "gamma"),
        '> 0 under "cara"; under "mean" it only sets the default of `running_penalty`',
    ]
    min_depth_bid: Annotated[
        float, Pair(None, -1e12, 1e12, "price", none=True, end="low"), "None is ``-1 / fill_decay`` of each side"
    ]
    min_depth_ask: OtherSide
    max_depth_bid: Annotated[
        float, Pair(None, -1e12, 1e12, "price", none=True, end="high"), "None is ``3 / fill_decay`` of each side"
    ]
    max_depth_ask: OtherSide
    jump_rate: Annotated[float, Real(0.0, 0.0, 1e12, "1 / time", "lambda_J"), "of jumps of the mid"]
    jump_law: Annotated[Literal["normal", "double_exponential"], Choice("normal"), "of the size of a jump"]
    jump_mean: Annotated[float, Real(0.0, -1e9, 1e9, "price", "m"), 'of "normal" jumps']
    jump_volatility: Annotated[
        float,
        Real(0.0, 0.0, 1e9, "price", "s"),
        'of "normal" jumps, 0: of one size; under "cara" jumps are limited together with the inventory limit',
    ]
    jump_up_share: Annotated[float, Real(0.5, 0.0, 1.0, symbol="p"), 'of upward ones among "double_exponential" jumps']
    jump_up_mean: Annotated[float, Real(0.0, 0.0, 1e9, "price", "eta_up"), "mean size of an upward one"]
    jump_down_mean: Annotated[float, Real(0.0, 0.0, 1e9, "price", "eta_down"), "mean size of a downward one"]
    compensated: Annotated[bool, Choice(False), "whether the jumps' trend is taken out of the drift"]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.glft.GLFTEnv`, errors those of `create`."""
        return create(cls, arguments)

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with the defaults that depend on others, checked against each other."""
        check_within(self, "initial_inventory", "inventory_limit")
        geometric = self.price == "geometric"
        scale = self.initial_price if geometric else 1.0
        penalty = 0.5 * self.risk_aversion * (self.volatility * scale) ** 2
        if self.utility != "cara" and given["running_penalty"] is None and not penalty <= MAX_PENALTY:
            priced = {"initial_price": self.initial_price} if geometric else {}
            raise together(
                {"volatility": self.volatility, **priced, "risk_aversion": self.risk_aversion},
                f"running_penalty, by default risk_aversion times half the mid's variance per unit of time, would be "
                f"{penalty:g} and must be at most {MAX_PENALTY:g}; give it, or lower one of them",
            )
        depths: dict[str, Any] = {
            f"{name}_{side}": factor / decay
            for name, factor in (("min_depth", -1.0), ("max_depth", 3.0))
            for side, decay in (("bid", self.fill_decay_bid), ("ask", self.fill_decay_ask))
            if given[name] is None
        }
        p = self._replace(running_penalty=checked_penalty(self, given["running_penalty"], penalty), **depths)
        for side, rate, decay, low, high in (
            ("bid", p.fill_rate_bid, p.fill_decay_bid, p.min_depth_bid, p.max_depth_bid),
            ("ask", p.fill_rate_ask, p.fill_decay_ask, p.min_depth_ask, p.max_depth_ask),
        ):
            check_depths(f"on the {side} side", rate, decay, low, high, p.horizon, p.num_steps)
        if p.jump_rate * p.horizon / p.num_steps > MAX_EVENTS:
            raise together(
                {"jump_rate": p.jump_rate, "horizon": p.horizon, "num_steps": p.num_steps},
                f"the expected jumps a step, jump_rate * horizon / num_steps, must be at most {MAX_EVENTS:g}",
            )
        if geometric:
            p._check_geometric()
        check_jump_law(p.jump_law, p._asdict())
        if p.jump_rate > 0.0 and p.utility == "cara":
            p._check_jump_exponent()
        return p

    def _check_jump_exponent(self) -> None:
        """Refuse jumps whose exponential moments at the largest inventory leave the range of floating point."""
        growth = self.jump_sizes.largest_growth(self.risk_aversion * self.inventory_limit)
        if self.jump_rate * growth * self.horizon > MAX_JUMP_EXPONENT:
            names = ("jump_rate", *JUMP_LAWS[self.jump_law], "risk_aversion", "inventory_limit", "horizon")
            raise together({name: getattr(self, name) for name in names}, JUMP_EXPONENT_TOO_LARGE)

    def _check_geometric(self) -> None:
        """Refuse what a geometric mid does not go with."""
        observed = (
            "or the best policy would depend on the price, which is not observed here; mmgym/GeometricPrice-v0 "
            "observes it, with drift and under CARA"
        )
        for name, value, allowed in (
            ("drift", self.drift, 0.0),
            ("jump_rate", self.jump_rate, 0.0),
            ("utility", self.utility, "mean"),
        ):
            if value != allowed:
                only = f"{allowed:g}" if isinstance(allowed, float) else f"{allowed!r}"
                raise ValueError(
                    f"{name} = {value!r} is not allowed with price='geometric': it must be {only}, {observed}"
                )
        if self.initial_price <= 0.0:
            raise ValueError(
                f"initial_price = {self.initial_price!r} is not allowed with price='geometric': it must be > 0"
            )
        if self.volatility**2 * self.horizon > MAX_LOG_VARIANCE:
            raise ValueError(
                f"volatility = {self.volatility!r} and horizon = {self.horizon!r} are not allowed together with "
                "price='geometric', where volatility is relative to the price: volatility^2 * horizon must be at most "
                f"{MAX_LOG_VARIANCE:g}"
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
        return self.drift if self.compensated else self.drift + self.jump_rate * self.average_jump

    @property
    def jump_sizes(self) -> JumpSizes:
        """The law of the jumps' sizes."""
        sizes = (self.jump_mean, self.jump_volatility, self.jump_up_share, self.jump_up_mean, self.jump_down_mean)
        return JumpSizes(self.jump_law, *sizes)

    @property
    def average_jump(self) -> float:
        """``m`` (price)."""
        return self.jump_sizes.average

    @property
    def variance_rate(self) -> float:
        """Variance of the mid per unit of time, jumps included (price^2 / time); geometric: at the start."""
        if self.price == "geometric":
            return (self.volatility * self.initial_price) ** 2
        return self.volatility**2 + self.jump_rate * self.jump_sizes.square

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
def exponent_rate_of(p, q):
    """Growth of the jumps' exponent at ``z = -gamma D q``, under CARA, for an inventory of ``q`` orders."""
    if p.jump_rate == 0.0 or p.utility != CARA:
        return 0.0
    return jump_exponent_rate(
        p.jump_law,
        p.jump_rate,
        p.jump_mean,
        p.jump_volatility,
        p.jump_up_share,
        p.jump_up_mean,
        p.jump_down_mean,
        p.average_jump,
        -p.risk_aversion * p.order_size * q,
    )


@scalar_kernel
def jump_of(p, s0, s1):
    """The size of a jump (price)."""
    return draw_jump(
        p.jump_law, p.jump_mean, p.jump_volatility, p.jump_up_share, p.jump_up_mean, p.jump_down_mean, s0, s1
    )


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
    exponent_rate = exponent_rate_of(p, q)
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
            jump, s0, s1 = jump_of(p, s0, s1)
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
            exponent_rate = exponent_rate_of(p, q)
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
    jump_trend = p.jump_rate * p.average_jump
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


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Depths ``[bid, ask]`` (price), shape ``(..., 2)``, that the environment plays for actions of that shape."""
    clipped = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
    return params.depth_center + params.depth_reach * clipped


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions whose depths are the nearest to ``quotes`` (price), to float32 rounding; beyond the box: its edge."""
    actions = (np.asarray(quotes, dtype=np.float64) - params.depth_center) / params.depth_reach
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(params: Params, step: Any, inventory: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., 2)``, of steps and inventories (in orders): bit for bit those of the environment."""
    step, inventory = np.broadcast_arrays(step, inventory)
    return np.stack([step / params.num_steps, inventory / params.limit], axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Step and inventory (in orders of ``order_size`` assets) of observations of shape ``(..., 2)``."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.rint(observations[..., 0] * params.num_steps).astype(np.int64)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    return np.clip(step, 0, params.num_steps), np.clip(inventory, -params.limit, params.limit)


MARKET = Market(
    name="glft",
    modules=("mmgym.models.wealth", "mmgym.models.jumps"),
    params_type=Params,
    state=STATE,
    derived=(
        "step_length",
        "inverse_step",
        "root_step",
        "limit",
        "start",
        "trend",
        "average_jump",
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
    observation_low=lambda params: (0, -1),
    to_quotes=to_quotes,
    from_quotes=from_quotes,
    locate=locate,
)
