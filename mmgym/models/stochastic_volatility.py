r"""The GLFT market under stochastic volatility: Heston's variance, and inventory that costs in proportion to it.

Fills, inventory and cash are those of `mmgym.models.glft`; the mid and its variance follow (Heston 1993)

    dS = mu dt + sqrt(nu) dW,    dnu = kappa (theta - nu) dt + xi sqrt(nu) dZ,    d<W, Z> = rho dt,

and the criterion is ``E[W_T - W_0 - (gamma / 2) int nu q^2 dt - alpha q_T^2]``.

One step freezes both depths. Fills come from competing exponential clocks; at every fill and at the end of the step
``nu`` is drawn from its transition law, a multiple of a non-central chi-square (Cox, Ingersoll & Ross 1985), whether or
not Feller's condition ``2 kappa theta >= xi^2`` holds. Over an interval of length ``t`` without fills the integral
``I = int nu dt`` is, given both ends, replaced by

    theta t + g (nu(0) + nu(t) - 2 theta),    g = tanh(kappa t / 2) / kappa,

which is non-negative and has the exact expectation given ``nu(0)``, and the mid moves by ``mu t + (rho / xi) (nu(t) -
nu(0) - kappa theta t + kappa I) + sqrt((1 - rho^2) I) Z``. So all expectations that are linear in ``I`` are exact: the
criterion, and with ``rho = 0`` the variance of the P&L. The correlated part of the P&L has its variance wrong by a
relative ``(kappa t)^2 / 12`` at most, and the kurtosis of the mid within an interval is that of a mixture over the ends
alone.
"""

import math
import warnings
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import choice, real
from mmgym.market import Market, scalar_kernel
from mmgym.models import glft
from mmgym.models.square_root import next_variance
from mmgym.models.wealth import PNL
from mmgym.random_streams import exponential, normal, uniform


class Params(NamedTuple):
    """Parameters of the market (paper symbol, unit). Build them with `Params.create`, which checks them."""

    variance_reversion: float  # kappa, 1 / time
    variance_mean: float  # theta, price^2 / time
    variance_volatility: float  # xi, price / time
    initial_variance: float  # nu_0, price^2 / time
    correlation: float  # rho
    observe_variance: bool
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
    terminal_penalty: float  # alpha, price / assets
    risk_aversion: float  # gamma, 1 / (price * assets)
    min_depth_bid: float  # price
    min_depth_ask: float  # price
    max_depth_bid: float  # price
    max_depth_ask: float  # price
    reward: Literal["pnl", "expected"]

    @classmethod
    def create(
        cls,
        *,
        variance_reversion: float = 3.0,
        variance_mean: float = 4.0,
        variance_volatility: float = 1.5,
        initial_variance: float = 4.0,
        correlation: float = -0.5,
        observe_variance: bool = True,
        fill_rate: float | list[float] = 140.0,
        fill_decay: float | list[float] = 1.5,
        drift: float = 0.0,
        order_size: float = 1.0,
        inventory_limit: float = 5.0,
        initial_inventory: float = 0.0,
        initial_price: float = 100.0,
        horizon: float = 1.0,
        num_steps: int = 200,
        terminal_penalty: float = 0.0,
        risk_aversion: float = 0.1,
        min_depth: float | list[float] | None = None,
        max_depth: float | list[float] | None = None,
        reward: str = "pnl",
    ) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.stochastic_volatility.StochasticVolatilityEnv`.

        Raises
        ------
        ValueError
            If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.

        Warns
        -----
        UserWarning
            If Feller's condition is violated: the variance then touches 0, which is simulated and solved all the same.
        """
        reversion = real("variance_reversion", variance_reversion, above=0.0, high=1e6)
        mean = real("variance_mean", variance_mean, above=0.0, high=1e12)
        volatility = real("variance_volatility", variance_volatility, low=0.0, high=1e9)
        if 2.0 * reversion * mean < volatility**2:
            warnings.warn(
                f"Feller's condition is violated: 2 * variance_reversion * variance_mean = {2.0 * reversion * mean:g} "
                f"is below variance_volatility^2 = {volatility**2:g}, and the variance touches 0",
                stacklevel=2,
            )
        plain = glft.Params.create(
            volatility=math.sqrt(mean),
            fill_rate=fill_rate,
            fill_decay=fill_decay,
            drift=drift,
            order_size=order_size,
            inventory_limit=inventory_limit,
            initial_inventory=initial_inventory,
            initial_price=initial_price,
            horizon=horizon,
            num_steps=num_steps,
            terminal_penalty=terminal_penalty,
            risk_aversion=risk_aversion,
            min_depth=min_depth,
            max_depth=max_depth,
            reward=reward,
        )
        return cls(
            variance_reversion=reversion,
            variance_mean=mean,
            variance_volatility=volatility,
            initial_variance=real("initial_variance", initial_variance, low=0.0, high=1e12),
            correlation=real("correlation", correlation, low=-1.0, high=1.0),
            observe_variance=choice("observe_variance", observe_variance, (False, True)),
            **{name: value for name, value in plain._asdict().items() if name in cls._fields},
        )

    # Derived constants: those of the GLFT market.
    step_length = glft.Params.step_length
    limit = glft.Params.limit
    start = glft.Params.start
    trend = property(lambda self: self.drift)
    center_bid = glft.Params.center_bid
    center_ask = glft.Params.center_ask
    reach_bid = glft.Params.reach_bid
    reach_ask = glft.Params.reach_ask
    depth_center = glft.Params.depth_center
    depth_reach = glft.Params.depth_reach

    def expected_variance(self, time: Any) -> NDArray[np.float64]:
        """``E[nu_t]`` at times ``t`` since the start (price^2 / time)."""
        excess = self.initial_variance - self.variance_mean
        return np.asarray(self.variance_mean + excess * np.exp(-self.variance_reversion * np.asarray(time)))


# One row of state. Inventory is counted in orders; amounts of money are sums since the reset.
STATE = np.dtype(
    [
        ("spread_gain", "f8"),  # sum of depths earned plus gains from the drift, price * assets
        ("price_gain", "f8"),  # int q d(S - mu t), price * assets
        ("weighted_square", "f8"),  # int nu q^2 dt, price^2 * assets^2
        ("variance", "f8"),  # nu, price^2 / time
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
    s.weighted_square = 0.0
    s.variance = p.initial_variance
    s.mid = p.initial_price
    s.step = 0
    s.inventory = p.start
    s.bid_fills = 0
    s.ask_fills = 0


@scalar_kernel
def integrated_variance(p, before, after, length):
    """``int nu dt`` over an interval without fills, as the module says."""
    pull = math.tanh(0.5 * p.variance_reversion * length) / p.variance_reversion
    return p.variance_mean * length + pull * (before + after - 2.0 * p.variance_mean)


@scalar_kernel
def price_move(p, before, after, integral, length, z):
    """``S(t) - S(0) - mu t`` over an interval without fills; ``z`` is standard normal."""
    moved = math.sqrt(max((1.0 - p.correlation * p.correlation) * integral, 0.0)) * z
    if p.variance_volatility > 0.0:
        brownian = after - before + p.variance_reversion * (integral - p.variance_mean * length)
        moved += p.correlation / p.variance_volatility * brownian
    else:
        moved = math.sqrt(integral) * z
    return moved


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One step: (reward, terminated)."""
    bid_depth, ask_depth = controls[0], controls[1]
    bid_rate, ask_rate = p.fill_rate_bid * intensities[0], p.fill_rate_ask * intensities[1]
    q, s0, s1, variance = np.int64(s.inventory), s.s0, s.s1, s.variance
    left = p.step_length
    int_q = earned = moved = price_gain = weighted = 0.0
    bids = asks = 0
    while left > 0.0:
        active_bid = bid_rate if q < p.limit else 0.0
        rate = active_bid + (ask_rate if q > -p.limit else 0.0)
        clock, s0, s1 = exponential(s0, s1)
        filled = clock < rate * left
        elapsed = clock / rate if filled else left
        after, s0, s1 = next_variance(
            variance, p.variance_reversion, p.variance_mean, p.variance_volatility, elapsed, s0, s1
        )
        integral = integrated_variance(p, variance, after, elapsed)
        z, s0, s1 = normal(s0, s1)
        move = price_move(p, variance, after, integral, elapsed, z)
        variance = after
        moved += move
        price_gain += q * move
        int_q += q * elapsed
        weighted += np.float64(q * q) * integral
        if not filled:
            break
        left -= elapsed
        side, s0, s1 = uniform(s0, s1)
        is_bid = side * rate < active_bid
        bids += is_bid
        asks += not is_bid
        q += 1 if is_bid else -1
        earned += bid_depth if is_bid else ask_depth

    size = p.order_size
    gain = size * (earned + p.drift * int_q)
    s.spread_gain += gain
    s.price_gain += size * price_gain
    s.weighted_square += size * size * weighted
    s.variance = variance
    s.mid += p.drift * p.step_length + moved
    s.inventory = q
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    s.step += 1
    terminated = s.step >= p.num_steps
    reward = gain - 0.5 * p.risk_aversion * size * size * weighted
    if p.reward == PNL:
        reward += size * price_gain
    if terminated:
        reward -= p.terminal_penalty * (size * q) ** 2
    return reward, terminated


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [elapsed fraction of the horizon, inventory / limit] and, unless hidden, nu / (nu + theta)."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit
    if p.observe_variance:
        observation[2] = s.variance / (s.variance + p.variance_mean)


MARKET = Market(
    name="stochastic_volatility",
    modules=("mmgym.models.wealth", "mmgym.models.glft", "mmgym.models.square_root"),
    params_type=Params,
    state=STATE,
    derived=("step_length", "limit", "start", "center_bid", "center_ask", "reach_bid", "reach_ask"),
    num_controls=2,
    num_intensities=2,
    reset_one=reset_one,
    controls_one=glft.controls_one,
    step_one=step_one,
    observe_one=observe_one,
)


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Depths ``[bid, ask]`` (price), shape ``(..., 2)``: those of `mmgym.models.glft`."""
    return glft.to_quotes(cast(glft.Params, params), actions)


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions, shape ``(..., 2)``, whose depths are the nearest to ``quotes``: those of `mmgym.models.glft`."""
    return glft.from_quotes(cast(glft.Params, params), quotes)


def observe(params: Params, step: Any, inventory: Any, variance: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., 3)``, or ``(..., 2)`` where the variance is hidden."""
    step, inventory, variance = np.broadcast_arrays(step, inventory, variance)
    columns = [step / params.num_steps, inventory / params.limit]
    if params.observe_variance:
        columns.append(variance / (variance + params.variance_mean))
    return np.stack(columns, axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Step and inventory (in orders), exactly, and variance, to float32 rounding; if hidden, its expectation."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.clip(np.rint(observations[..., 0] * params.num_steps).astype(np.int64), 0, params.num_steps)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    inventory = np.clip(inventory, -params.limit, params.limit)
    if not params.observe_variance:
        return step, inventory, params.expected_variance(step * params.step_length)
    share = np.clip(observations[..., 2], 0.0, 1.0 - 2.0**-24)
    return step, inventory, np.asarray(share / (1.0 - share) * params.variance_mean)
