"""The frozen-quote problem S1 of the GLFT market, exact to rounding.

Inside a step the inventory is a birth-death chain with constant rates, so one-step expectations are exponentials of
tridiagonal matrices; the best depths of each inventory are searched for in the two intensities. Continuous-time
counterparts: Guéant, Lehalle & Fernandez-Tapia (2013), eqs. (2.4)-(2.8).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import Functional, check_tables, terminal_values
from mmgym.baselines.glft import kernels
from mmgym.baselines.maximise import Region, best_controls, depth_region, in_box, inventory_slopes, rounding
from mmgym.models import glft

Array = NDArray[np.float64]


def price_cumulant(params: glft.Params, exposure: Array, jumps: bool = True) -> Array:
    """``ln E[exp(z (S_1 - S_0 - trend))]`` at exposures ``z`` (1 / price), real or complex, with the jumps or without.

    Raises
    ------
    ValueError
        If the mid is geometric, or a real exposure is one at which the exponential moment of the jumps is infinite.
    """
    p = params
    if p.price == "geometric":
        raise ValueError("the P&L under price='geometric' has no exact law: it is known for arithmetic mids only")
    diffusion = np.asarray(0.5 * (exposure * p.volatility) ** 2)
    if not jumps or p.jump_rate == 0.0:
        return diffusion
    return np.asarray(diffusion + p.jump_rate * p.jump_sizes.compensated(exposure))


def best_depths(decays: Array, xi: Any) -> Array:
    """Best depths where a fill does not change the value of the rest (price): 1 / k, or ln(1 + xi / k) / xi.

    ``xi`` is risk aversion times order size, 0 under the mean criterion (model 1a and 1b).
    """
    return np.asarray(np.log1p(xi / decays) / xi if np.any(xi) else 1.0 / decays)


def best_rate_constants(decays: Array, xi: Any) -> Array:
    """``C`` of the best rate of gain ``A C D / k``: 1 / e, or (1 + xi / k)^-(1 + k / xi), of each of the decays."""
    if not np.any(xi):
        return np.full(decays.shape, np.exp(-1.0))
    return np.asarray(np.exp(-(decays / xi + 1.0) * np.log1p(xi / decays)))


class GLFTProblem:
    """The GLFT market as a `FrozenProblem`. States are the inventories from ``-limit`` to ``limit`` orders."""

    num_controls = 2
    tolerance = 0.0
    search_tolerance = 1e-12
    action_values = None
    has_market_orders = False

    def __init__(self, params: glft.Params) -> None:
        p = self.params = params
        self.num_steps = p.num_steps
        check_tables(p.num_steps, 2 * p.limit + 1, 2, "num_steps or inventory_limit, or raise order_size")
        self.lots = np.arange(-p.limit, p.limit + 1)
        self.num_states = len(self.lots)
        self.inventory: Array = np.asarray(self.lots * p.order_size, dtype=np.float64)  # assets
        self.coordinates: Mapping[str, NDArray[Any]] = {"inventory": self.inventory}
        self.initial = (self.lots == p.start).astype(np.float64)
        self.aversion = p.risk_aversion if p.utility == "cara" else 0.0
        exponents = np.array([-self.aversion]) if self.aversion else None
        self.criterion = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=exponents)
        self.fill_rates = np.array([p.fill_rate_bid, p.fill_rate_ask])
        self.decays = np.array([p.fill_decay_bid, p.fill_decay_ask])
        self.low_controls = np.array([p.min_depth_bid, p.min_depth_ask])
        self.high_controls = np.array([p.max_depth_bid, p.max_depth_ask])
        self.control_units = 1.0 / self.decays
        self.unit_value = p.order_size * float(self.control_units.max())
        self.step_reward = p.step_length * float(max(np.abs(rates).max() for rates in self._growth()))

    def observations(self, n: int) -> NDArray[np.float32]:
        return glft.observe(self.params, n, self.lots)

    def locate(self, observations: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        step, lots = glft.locate(self.params, observations)
        return step, lots + self.params.limit

    def controls(self, actions: Array) -> Array:
        return glft.to_quotes(self.params, actions)

    def actions(self, controls: Array) -> NDArray[np.float32]:
        return glft.from_quotes(self.params, controls)

    def intensities(self, depths: Array) -> Array:
        """Fill intensities (1 / time), shape (..., 2), of depths of that shape, while both sides are active."""
        return np.asarray(self.fill_rates * np.exp(-self.decays * depths))

    def _rates(self, functional: Functional) -> tuple[Array, Array]:
        """Gain of the functional per unit of time besides fills (S,), and variance of its price noise (S,)."""
        p, q = self.params, self.inventory
        drift = functional.gain * p.trend * q - functional.penalty * p.running_penalty * q**2
        drift = drift + functional.absolute_inventory * np.abs(q)
        variance = 0.0 if p.price == "geometric" else p.variance_rate  # see `_add_geometric_variance`
        return drift, functional.price**2 * variance * q**2

    def _add_geometric_variance(
        self, n: int, states: NDArray[np.int64], rates: Array, functional: Functional, second: Array
    ) -> None:
        """Add to second moments (M,) the variance of a geometric mid's gain over the step.

        Its rate, given ``q``, grows as ``E[S_t^2]``: the more so the later. Fills do not depend on the price.
        """
        p, none = self.params, np.zeros(self.num_states)
        growth = p.volatility**2
        square = functional.price**2 * p.variance_rate * np.exp(growth * n * p.step_length)
        added = np.empty(len(states))
        kernels.backward_means(
            p.step_length,
            -growth,
            np.asarray(states),
            np.zeros(len(states), dtype=np.int64),
            np.full(len(states), square),
            rates,
            np.zeros_like(rates),
            none,
            self.inventory**2,
            none[:, None],
            added,
        )
        second += added

    def growth(self, functional: Functional, exponents: Array) -> Array:
        """Logarithm of ``E[exp(z R)]`` per unit of time besides fills, for exponents (K,): (S, K)."""
        drift, _ = self._rates(functional)
        exposure = np.multiply.outer(functional.price * self.inventory, exponents)
        return np.asarray(np.multiply.outer(drift, exponents) + price_cumulant(self.params, exposure, functional.jumps))

    def terminal(self, functional: Functional) -> Array:
        reward = -functional.penalty * self.params.terminal_penalty * self.inventory**2
        return terminal_values(reward, functional)

    def backward(
        self, n: int, states: NDArray[np.int64], controls: Array, values: Array, functional: Functional
    ) -> Array:
        depths = np.ascontiguousarray(controls, dtype=np.float64)
        rates = self.intensities(depths)
        gains = functional.gain * self.params.order_size * depths + functional.fills
        values = np.ascontiguousarray(values)
        result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
        system = (self.params.step_length, np.asarray(states), rates, gains)
        if functional.exponents is None:
            kernels.backward_moments(*system, *self._rates(functional), values, result)
            if self.params.price == "geometric" and functional.price and functional.moments == 2:
                self._add_geometric_variance(n, states, rates, functional, result[:, 1])
        else:
            exponents = functional.exponents.astype(values.dtype)
            growth = np.ascontiguousarray(self.growth(functional, exponents))
            kernels.backward_exponential(*system, growth, exponents, values, result)
        return result

    def backward_without_inventory(
        self, n: int, states: NDArray[np.int64], controls: Array, values: Array, functional: Functional
    ) -> Array:
        no_fill = np.exp(-self.params.step_length * self.intensities(np.asarray(controls)).sum(axis=-1))
        return np.asarray(np.where(self.lots[states] == 0, no_fill, 0.0)[:, None] * values[states])

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        result = np.empty(self.num_states)
        kernels.forward_law(self.params.step_length, self.intensities(controls), np.ascontiguousarray(law), result)
        return result

    def _base(self) -> Array:
        """Best depths (2,) where a fill does not change the value of the rest."""
        return best_depths(self.decays, self.aversion * self.params.order_size)

    def first_order_depths(self, values: Array) -> Array:
        """Best depths (S, 2) of a short step before the criterion's values (S,) in model units.

        A side at its bound takes the depth of the neighbouring inventory: it may reactivate inside the step.
        """
        base, slope = self._base(), np.diff(values) / self.params.order_size
        bid, ask = base[0] - slope, base[1] + slope
        return np.stack([np.append(bid, bid[-1]), np.append(ask[0], ask)], axis=1)

    def gradient(self, n: int, states: NDArray[np.int64], controls: Array, values: Array) -> tuple[Array, Array]:
        depths = np.ascontiguousarray(controls, dtype=np.float64)
        rates = self.intensities(depths)
        result, slopes = np.empty(len(states)), np.empty((len(states), 2))
        kernels.backward_gradient(
            self.params.step_length,
            np.asarray(states),
            rates,
            self.fill_rates,
            self.decays,
            self.params.order_size,
            self.aversion,
            *self._growth(),
            np.ascontiguousarray(values[:, 0]),
            result,
            slopes,
        )
        return result[:, None], slopes * -self.decays * rates

    def _growth(self) -> tuple[Array, Array]:
        """Growth rate and reward rate of the criterion's values by inventory (S,), besides fills."""
        functional = self.criterion
        if functional.exponents is not None:
            return self.growth(functional, functional.exponents)[:, 0], np.zeros(self.num_states)
        return np.zeros(self.num_states), self._rates(functional)[0]

    def region(self, n: int, values: Array) -> Region:
        """As `mmgym.baselines.maximise.ContinuousProblem` has it."""
        diagonal, source = self._growth()
        reward = source - diagonal / self.aversion if self.aversion else source
        ahead = self.to_value(values, 0.0)
        return self._region(np.stack([ahead, ahead + self.params.step_length * reward])[None])

    def _region(self, ahead: Array) -> Region:
        """As `region`, from values (G, V, S) that bound the differences of those inside the step."""
        fills = self.params.step_length * self.fill_rates
        return depth_region(self, self._base(), fills, *inventory_slopes(ahead, self.params.order_size))

    def cell(self, state: int) -> str:
        return f"inventory {self.inventory[state]:g}"

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        column = np.ascontiguousarray(values[:, 0])
        depths = self.first_order_depths(self.to_value(column, 0.0)) if guess is None else guess
        depths = np.clip(depths, self.low_controls, self.high_controls)
        best, shortfalls = np.empty(self.num_states), np.empty(self.num_states)
        kernels.improve(
            self.params.step_length,
            self.fill_rates,
            self.decays,
            self.params.order_size,
            self.aversion,
            *self._growth(),
            self.intensities(self.high_controls),
            self.intensities(self.low_controls),
            column,
            rounding(self, column),
            depths,
            best,
            shortfalls,
        )
        return best_controls(self, n, values, in_box(self, depths), best, shortfalls)

    def to_value(self, values: Array, log_scale: float | Array) -> Array:
        return -(np.log(values) + log_scale) / self.aversion if self.aversion else np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        gamma = self.aversion
        noise = 0.5 * (gamma * self.params.volatility) ** 2 * info["inventory_square"] + info["jump_exponent"]
        return np.asarray(-gamma * (info["gain"] - info["price_gain"]) + noise)

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        slack = 1e-9 * (self.high_controls - self.low_controls)
        return np.asarray((controls <= self.low_controls + slack) | (controls >= self.high_controls - slack))
