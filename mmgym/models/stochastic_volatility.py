r"""The GLFT market under stochastic volatility: Heston's variance, and inventory that costs in proportion to it.

Fills, inventory and cash are those of `mmgym.models.glft`; the mid and its variance follow (Heston 1993)

    dS = mu dt + sqrt(nu) dW,    dnu = kappa (theta - nu) dt + xi sqrt(nu) dZ,    d<W, Z> = rho dt,

and the criterion is "mean", ``E[W_T - W_0 - (gamma / 2) int nu q^2 dt - alpha q_T^2]``, or "cara", ``E[-exp(-gamma (W_T
- W_0 - alpha q_T^2))]``, reported as the certainty equivalent ``-(1 / gamma) ln E[exp(...)]``. The mid may also jump,
independently of all else, as in `mmgym.models.glft`: the jumps' trend adds to ``mu``, and under "cara" their exponent.
The penalty of "mean" is on the variance ``nu`` alone.

One step freezes both depths. Fills and jumps have exponential clocks; at every one and at the end of the step
``nu`` is drawn from its transition law, a multiple of a non-central chi-square (Cox, Ingersoll & Ross 1985), whether or
not Feller's condition ``2 kappa theta >= xi^2`` holds. Over an interval of length ``t`` without fills the integral
``I = int nu dt`` is, given both ends, replaced by

    theta t + g (nu(0) + nu(t) - 2 theta),    g = tanh(kappa t / 2) / kappa,

which is non-negative and has the exact expectation given ``nu(0)``, and the mid moves by ``mu t + (rho / xi) (nu(t) -
nu(0) - kappa theta t + kappa I) + sqrt((1 - rho^2) I) Z``. So all expectations that are linear in ``I`` are exact: the
criterion, and with ``rho = 0`` the variance of the P&L. The correlated part of the P&L has its variance wrong by a
relative ``(kappa t)^2 / 12`` at most, and the kurtosis of the mid within an interval is that of a mixture over the ends
alone.

Under "cara" the variance of ``I`` given both ends counts, to leading order ``xi^2 nu t^3 / 12``: it is what the scheme
leaves out. Intervals longer than `Params.longest_piece` are therefore cut, such that the certainty equivalent is wrong
by `Params.cara_bias` at most, even with the inventory at its limit all the time. The expected utility may be infinite:
``E[exp(z (S_T - S_0))]`` explodes in finite time (Andersen & Piterbarg 2007, proposition 3.1), which is refused.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, refusal, together
from mmgym.market import Market, scalar_kernel
from mmgym.models import glft
from mmgym.models.square_root import next_variance
from mmgym.models.wealth import CARA, step_reward
from mmgym.parameters import Choice, OtherSide, Real, argument_names, create, row_of
from mmgym.random_streams import exponential, normal, uniform

CARA_BIAS = 1e-6  # of the certainty equivalent, relative to what an unhurried maker earns
NEAR_EXPLOSION = 1.01  # horizons of utilities that are accepted


def explosion_time(reversion: float, volatility: float, correlation: float, exposure: float) -> float:
    """Time until ``E[exp(z (S_t - S_0))]`` is infinite at the exposure ``z`` (1 / price); infinite if it never is.

    The Riccati equation ``b' = z^2 / 2 + (rho xi z - kappa) b + xi^2 b^2 / 2``, ``b(0) = 0`` (Andersen & Piterbarg
    2007, proposition 3.1).
    """
    pull = correlation * volatility * exposure - reversion
    root = pull**2 - (volatility * exposure) ** 2
    if exposure == 0.0 or volatility == 0.0 or (root >= 0.0 and pull < 0.0):
        return math.inf
    if root > 0.0:
        root = math.sqrt(root)
        return math.log((pull + root) / (pull - root)) / root
    if root == 0.0:
        return 2.0 / pull
    root = math.sqrt(-root)
    return 2.0 / root * (math.pi / 2.0 - math.atan(pull / root))


as_glft = functools.partial(row_of, glft.Params)


class Params(NamedTuple):
    """Parameters of the market. Build them with `Params.create`, which checks them."""

    variance_reversion: Annotated[float, Real(3.0, TINY, 1e6, "1 / time", "kappa")]
    variance_mean: Annotated[float, Real(4.0, TINY, 1e12, "price^2 / time", "theta")]
    variance_volatility: Annotated[float, Real(1.5, 0.0, 1e9, "price / time", "xi")]
    initial_variance: Annotated[float, Real(4.0, 0.0, 1e12, "price^2 / time", "nu_0")]
    correlation: Annotated[float, Real(-0.5, -1.0, 1.0, symbol="rho"), "of price and variance"]
    observe_variance: Annotated[bool, Choice(True), "whether the variance is observed"]
    drift: Annotated[float, as_glft("drift")]
    fill_rate_bid: Annotated[float, as_glft("fill_rate", default=140.0)]
    fill_rate_ask: OtherSide
    fill_decay_bid: Annotated[float, as_glft("fill_decay", default=1.5)]
    fill_decay_ask: OtherSide
    order_size: Annotated[float, as_glft("order_size")]
    inventory_limit: Annotated[float, as_glft("inventory_limit", default=5.0)]
    initial_inventory: Annotated[float, as_glft("initial_inventory")]
    initial_price: Annotated[float, as_glft("initial_price")]
    horizon: Annotated[float, as_glft("horizon", default=1.0)]
    num_steps: Annotated[int, as_glft("num_steps", default=200)]
    terminal_penalty: Annotated[float, as_glft("terminal_penalty")]
    utility: Annotated[Literal["mean", "cara"], as_glft("utility")]
    risk_aversion: Annotated[
        float, as_glft("risk_aversion", default=0.1), '> 0 under "cara", and so low that the expected utility is finite'
    ]
    min_depth_bid: Annotated[float, as_glft("min_depth")]
    min_depth_ask: OtherSide
    max_depth_bid: Annotated[float, as_glft("max_depth")]
    max_depth_ask: OtherSide
    jump_rate: Annotated[float, as_glft("jump_rate")]
    jump_law: Annotated[Literal["normal", "double_exponential"], as_glft("jump_law")]
    jump_mean: Annotated[float, as_glft("jump_mean")]
    jump_volatility: Annotated[float, as_glft("jump_volatility")]
    jump_up_share: Annotated[float, as_glft("jump_up_share")]
    jump_up_mean: Annotated[float, as_glft("jump_up_mean")]
    jump_down_mean: Annotated[float, as_glft("jump_down_mean")]
    compensated: Annotated[bool, as_glft("compensated")]
    reward: Annotated[Literal["pnl", "expected"], as_glft("reward")]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.stochastic_volatility.StochasticVolatilityEnv`.

        Warns
        -----
        UserWarning
            If Feller's condition is violated: the variance then touches 0, which is simulated and solved all the same.
        """
        return create(cls, arguments)

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with the defaults that depend on others, checked against each other."""
        reversion, mean, volatility = self.variance_reversion, self.variance_mean, self.variance_volatility
        if 0.0 < volatility < TINY:
            wanted = f"0, or a finite number >= {TINY:g} and <= 1e+09"
            raise refusal("variance_volatility", given["variance_volatility"], wanted)
        if 2.0 * reversion * mean < volatility**2:
            warnings.warn(
                f"Feller's condition is violated: 2 * variance_reversion * variance_mean = {2.0 * reversion * mean:g} "
                f"is below variance_volatility^2 = {volatility**2:g}, and the variance touches 0",
                stacklevel=4,
            )
        plain = glft.Params.create(
            volatility=math.sqrt(mean),
            running_penalty=0.0,  # the criterion's own, of the variance as it is, is not this one
            **{name: given[name] for name in argument_names(glft.Params) if name in given},
        )
        p = self._replace(**{name: value for name, value in plain._asdict().items() if name in self._fields})
        if p.utility == "cara":  # no inventory path is worse than one that stays at the limit
            exposure = math.copysign(p.risk_aversion * p.inventory_limit, p.correlation)
            lasts = explosion_time(reversion, volatility, p.correlation, exposure)
            if not lasts > NEAR_EXPLOSION * p.horizon:
                raise together(
                    {
                        "variance_volatility": volatility,
                        "variance_reversion": reversion,
                        "correlation": p.correlation,
                        "risk_aversion": p.risk_aversion,
                        "inventory_limit": p.inventory_limit,
                        "horizon": p.horizon,
                    },
                    "with utility='cara' and the inventory at its limit the expected utility is infinite after a time "
                    f"of {lasts:.6g}, which must be above {NEAR_EXPLOSION:g} * horizon; lower risk_aversion, "
                    "inventory_limit, variance_volatility or horizon",
                )
        return p

    # Derived constants: those of the GLFT market.
    step_length = glft.Params.step_length
    limit = glft.Params.limit
    start = glft.Params.start
    trend = glft.Params.trend
    jump_sizes = glft.Params.jump_sizes
    average_jump = glft.Params.average_jump
    center_bid = glft.Params.center_bid
    center_ask = glft.Params.center_ask
    reach_bid = glft.Params.reach_bid
    reach_ask = glft.Params.reach_ask
    depth_center = glft.Params.depth_center
    depth_reach = glft.Params.depth_reach

    @property
    def independent_share(self) -> float:
        """Part of the price noise's variance that is independent of the variance."""
        return 1.0 - self.correlation**2 if self.variance_volatility > 0.0 else 1.0

    @property
    def _utility_scale(self) -> tuple[float, float]:
        """What a maker at depths ``1 / k`` earns (currency), and the bias of "cara" per squared length of a piece.

        Given the ends, ``ln E[exp(-gamma (...))]`` is linear in ``I`` with a coefficient ``c``; leaving out the
        variance of ``I`` costs ``c^2 xi^2 nu t^3 / 24`` in an interval of length ``t``.
        """
        earned = self.order_size * self.horizon / math.e
        earned *= self.fill_rate_bid / self.fill_decay_bid + self.fill_rate_ask / self.fill_decay_ask
        if self.utility == "mean" or self.variance_volatility == 0.0:
            return earned, 0.0
        exposure = self.risk_aversion * self.inventory_limit
        pull = abs(self.correlation) * self.variance_reversion / self.variance_volatility
        coefficient = exposure * pull + 0.5 * self.independent_share * exposure**2
        highest = max(self.variance_mean, self.initial_variance)
        bias = (coefficient * self.variance_volatility) ** 2 * highest * self.horizon / (24.0 * self.risk_aversion)
        return earned, bias

    @property
    def longest_piece(self) -> float:
        """Time (at most a step) after which the variance is drawn anew, fills or not."""
        earned, bias = self._utility_scale
        step = float(self.step_length)
        if bias * step**2 <= CARA_BIAS * earned:
            return step
        return max(math.sqrt(CARA_BIAS * earned / bias), 1e-4 * step)

    @property
    def cara_bias(self) -> float:
        """Bound of what the simulation's certainty equivalent is wrong by (currency); 0 under "mean"."""
        return self._utility_scale[1] * self.longest_piece**2

    def expected_variance(self, time: Any) -> NDArray[np.float64]:
        """``E[nu_t]`` at times ``t`` since the start (price^2 / time)."""
        excess = self.initial_variance - self.variance_mean
        return np.asarray(self.variance_mean + excess * np.exp(-self.variance_reversion * np.asarray(time)))


# One row of state. Inventory is counted in orders; amounts of money are sums since the reset.
STATE = np.dtype(
    [
        ("spread_gain", "f8"),  # sum of depths earned plus gains from the drift, price * assets
        ("price_gain", "f8"),  # int q d(S - trend t), price * assets
        ("variance_gain", "f8"),  # the part of price_gain that follows from the path of the variance
        ("weighted_square", "f8"),  # int nu q^2 dt, price^2 * assets^2
        ("jump_exponent", "f8"),  # under CARA: ln E[exp(-gamma int q dJ)] given q, J the compensated jumps
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
    s.variance_gain = 0.0
    s.weighted_square = 0.0
    s.jump_exponent = 0.0
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
def variance_move(p, before, after, integral, length):
    """The part of ``S(t) - S(0) - mu t`` over an interval that follows from the variance's path."""
    if p.variance_volatility == 0.0:
        return 0.0
    brownian = after - before + p.variance_reversion * (integral - p.variance_mean * length)
    return p.correlation / p.variance_volatility * brownian


@scalar_kernel
def pieces_of(p, elapsed):
    """Pieces of equal length, not above the longest allowed one, that an interval is cut into."""
    if p.utility != CARA or elapsed <= p.longest_piece:
        return 1
    return math.ceil(elapsed / p.longest_piece)


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One step: (reward, terminated)."""
    bid_depth, ask_depth = controls[0], controls[1]
    bid_rate, ask_rate = p.fill_rate_bid * intensities[0], p.fill_rate_ask * intensities[1]
    q, s0, s1, variance = np.int64(s.inventory), s.s0, s.s1, s.variance
    left = p.step_length
    int_q = earned = moved = price_gain = variance_gain = weighted = exponent = 0.0
    bids = asks = 0
    while left > 0.0:
        active_bid = bid_rate if q < p.limit else 0.0
        fill_rate = active_bid + (ask_rate if q > -p.limit else 0.0)
        rate = fill_rate + p.jump_rate
        clock, s0, s1 = exponential(s0, s1)
        happened = clock < rate * left
        elapsed = clock / rate if happened else left
        pieces = pieces_of(p, elapsed)
        for _ in range(pieces):
            length = elapsed / pieces
            after, s0, s1 = next_variance(
                variance, p.variance_reversion, p.variance_mean, p.variance_volatility, length, s0, s1
            )
            integral = integrated_variance(p, variance, after, length)
            z, s0, s1 = normal(s0, s1)
            known = variance_move(p, variance, after, integral, length)
            move = known + math.sqrt(max(p.independent_share * integral, 0.0)) * z
            variance = after
            moved += move
            price_gain += q * move
            variance_gain += q * known
            weighted += np.float64(q * q) * integral
        int_q += q * elapsed
        exponent += glft.exponent_rate_of(p, q) * elapsed
        if not happened:
            break
        left -= elapsed
        side, s0, s1 = uniform(s0, s1)
        side *= rate
        if p.jump_rate > 0.0 and side >= fill_rate:
            jump, s0, s1 = glft.jump_of(p, s0, s1)
            moved += jump
            price_gain += q * jump
            continue
        is_bid = side < active_bid
        bids += is_bid
        asks += not is_bid
        q += 1 if is_bid else -1
        earned += bid_depth if is_bid else ask_depth

    size = p.order_size
    jump_trend = p.jump_rate * p.average_jump
    price_gain -= jump_trend * int_q
    gain = size * (earned + p.trend * int_q)
    s.spread_gain += gain
    s.price_gain += size * price_gain
    s.variance_gain += size * variance_gain
    s.weighted_square += size * size * weighted
    s.jump_exponent += exponent
    s.variance = variance
    s.mid += (p.trend - jump_trend) * p.step_length + moved
    s.inventory = q
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    s.step += 1
    terminated = s.step >= p.num_steps
    cost = p.terminal_penalty * (size * q) ** 2 if terminated else 0.0
    reward = step_reward(
        p,
        terminated,
        gain - cost,
        size * price_gain,
        0.5 * p.risk_aversion * size * size * weighted,
        s.spread_gain - cost,
        s.price_gain,
        p.risk_aversion * (0.5 * p.risk_aversion * p.independent_share * s.weighted_square - s.variance_gain)
        + s.jump_exponent,
    )
    return reward, terminated


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [elapsed fraction of the horizon, inventory / limit] and, unless hidden, nu / (nu + theta)."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit
    if p.observe_variance:
        observation[2] = s.variance / (s.variance + p.variance_mean)


def state_ranges(params: Params) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    p, limit = params, params.limit
    usual = max(p.initial_variance, p.variance_mean, p.variance_volatility**2 / (2.0 * p.variance_reversion))
    return {
        "step": (0, p.num_steps),
        "inventory": (-limit, limit),
        "variance": (0.0, 1e4 * usual),  # its law's tails are those of an exponential of that scale
        "weighted_square": (0.0, math.inf),
    }


def observe(params: Params, step: Any, inventory: Any, variance: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., 3)``, or ``(..., 2)`` where the variance is hidden."""
    step, inventory, variance = np.broadcast_arrays(step, inventory, variance)
    columns = [step / params.num_steps, inventory / params.limit]
    if params.observe_variance:
        columns.append(variance / (variance + params.variance_mean))
    return np.stack(columns, axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Step, inventory (in orders of ``order_size`` assets) and variance (its expectation where it is hidden)."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.clip(np.rint(observations[..., 0] * params.num_steps).astype(np.int64), 0, params.num_steps)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    inventory = np.clip(inventory, -params.limit, params.limit)
    if not params.observe_variance:
        return step, inventory, params.expected_variance(step * params.step_length)
    share = np.clip(observations[..., 2], 0.0, 1.0 - 2.0**-24)
    return step, inventory, np.asarray(share / (1.0 - share) * params.variance_mean)


# The depth box has the same names there.
to_quotes: Callable[[Any, Any], NDArray[np.float64]] = glft.to_quotes
from_quotes: Callable[[Any, Any], NDArray[np.float32]] = glft.from_quotes


MARKET = Market(
    name="stochastic_volatility",
    modules=("mmgym.models.wealth", "mmgym.models.glft", "mmgym.models.jumps", "mmgym.models.square_root"),
    params_type=Params,
    state=STATE,
    derived=(
        *("step_length", "limit", "start", "center_bid", "center_ask", "reach_bid", "reach_ask"),
        *("trend", "average_jump", "independent_share", "longest_piece"),
    ),
    num_controls=2,
    num_intensities=2,
    reset_one=reset_one,
    controls_one=glft.controls_one,
    step_one=step_one,
    observe_one=observe_one,
    ranges=state_ranges,
    observation_low=lambda params: (0, -1, 0) if params.observe_variance else (0, -1),
    to_quotes=to_quotes,
    from_quotes=from_quotes,
    locate=locate,
)
