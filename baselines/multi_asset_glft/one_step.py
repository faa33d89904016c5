"""The frozen-quote problem of several assets, exact to rounding on the product grid of inventories."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import Functional, check_tables, terminal_values
from mmgym.baselines.glft.one_step import best_depths, best_rate_constants
from mmgym.baselines.maximise import Region, best_controls, depth_region, rounding
from mmgym.baselines.multi_asset_glft import kernels
from mmgym.models import multi_asset_glft as model

Array = NDArray[Any]

__all__ = [
    "MAX_STATES",
    "MultiAssetProblem",
    "aversion_of",
    "base_depths",
    "depths_of_values",
    "effective_rates",
    "grid",
    "jump_growth",
    "moves_of",
]

MAX_STATES = 3_000  # beyond, a solution takes minutes to hours


def grid(params: model.Params) -> Array:
    """Inventories in orders of all states, shape (S, n): the last asset's changes fastest."""
    axes = [np.arange(-limit, limit + 1) for limit in params.limits.astype(np.int64)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, params.num_assets)


def moves_of(params: model.Params) -> Array:
    """State after a fill of each side, bids first, or -1 where it is closed: shape (2 n, S)."""
    lots, limits = grid(params), params.limits.astype(np.int64)
    shape = 2 * limits + 1
    strides = np.array([np.prod(shape[i + 1 :], dtype=np.int64) for i in range(params.num_assets)])
    states = np.arange(len(lots))
    bids = [np.where(lots[:, i] < limits[i], states + strides[i], -1) for i in range(params.num_assets)]
    asks = [np.where(lots[:, i] > -limits[i], states - strides[i], -1) for i in range(params.num_assets)]
    return np.ascontiguousarray(np.stack(bids + asks), dtype=np.int64)


def aversion_of(params: model.Params) -> float:
    """Risk aversion of the criterion: 0 for the mean criterion."""
    return params.risk_aversion if params.utility == "cara" else 0.0


def jump_growth(params: model.Params, exposures: Array) -> Array:
    """What compensated jumps add to ``ln E[exp(z' S)]`` per unit of time at exposures (..., n), real or complex."""
    total = np.zeros(exposures.shape[:-1], exposures.dtype)
    for i, (rate, sizes) in enumerate(zip(params.jump_rate, params.jump_sizes, strict=True)):
        if rate > 0.0:
            total = total + rate * sizes.compensated(exposures[..., i])
    return total


def base_depths(params: model.Params) -> Array:
    """Best depths (2 n,) where inventory has no cost (price): 1 / k, or ln(1 + gamma D / k) / (gamma D) under CARA."""
    return best_depths(params.decays, aversion_of(params) * np.tile(params.sizes, 2))


def effective_rates(params: model.Params) -> Array:
    """``A C`` of all sides (1 / time), ``C = 1 / e`` or ``(1 + gamma D / k)^-(1 + k / (gamma D))`` under CARA."""
    return np.asarray(params.rates * best_rate_constants(params.decays, aversion_of(params) * np.tile(params.sizes, 2)))


def depths_of_values(params: model.Params, moves: Array, values: Array) -> Array:
    """Best depths (..., S, 2 n) of a short step before values (..., S), in the box; a closed side has its neighbour's.

    ``moves`` are those of `moves_of`.
    """
    p, n, states, base = params, params.num_assets, np.arange(values.shape[-1]), base_depths(params)
    sizes, depths = np.tile(p.sizes, 2), np.empty((*values.shape, 2 * n))
    for j in range(2 * n):
        back = moves[j + n if j < n else j - n]  # where a closed side reopens
        here = np.where(moves[j] >= 0, states, back)
        depths[..., j] = base[j] - (values[..., moves[j][here]] - values[..., here]) / sizes[j]
    return np.clip(depths, p.min_depth, p.max_depth)


class MultiAssetProblem:
    """The market of several assets as a `FrozenProblem`. States are the vectors of inventories (see `grid`).

    Raises
    ------
    ValueError
        If there are too many states.
    """

    tolerance = 0.0
    search_tolerance = 1e-12
    action_values = None
    has_market_orders = False

    def __init__(self, params: model.Params) -> None:
        p = self.params = params
        self.num_steps = p.num_steps
        self.num_states = int(np.prod(2.0 * p.limits + 1.0))
        if self.num_states > MAX_STATES:
            raise ValueError(
                f"inventory_limit = {list(p.inventory_limit)} is not allowed for an exact solution: it makes "
                f"{self.num_states} states, at most {MAX_STATES} are; raise order_size or lower inventory_limit"
            )
        self.num_controls = 2 * p.num_assets
        lower = "num_steps or inventory_limit, or raise order_size"
        check_tables(p.num_steps, self.num_states, self.num_controls, lower)
        self.lots = grid(p)
        self.inventory = self.lots * p.sizes  # assets, (S, n)
        self.moves = moves_of(p)
        self.sizes = np.tile(p.sizes, 2)
        self.variance = np.einsum("si,ij,sj->s", self.inventory, p.matrix, self.inventory)
        names = ["inventory", *(f"inventory_{i}" for i in range(1, p.num_assets))]
        self.coordinates: Mapping[str, Array] = {name: self.inventory[:, i] for i, name in enumerate(names)}
        self.initial = np.zeros(self.num_states)
        self.initial[self._cells(p.starts.astype(np.int64))] = 1.0
        self.aversion = aversion_of(p)
        exponents = np.array([-self.aversion]) if self.aversion else None
        self.criterion = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=exponents)
        self.low_controls, self.high_controls = np.array(p.min_depth), np.array(p.max_depth)
        self.control_units = 1.0 / np.array(p.decays)
        self.unit_value = float((self.sizes * self.control_units).max())
        self.step_reward = p.step_length * float(max(np.abs(rates).max() for rates in self._growth()))
        # Second derivatives at the depths that were found last: the next search starts from them.
        self._curvatures = np.zeros((self.num_states, self.num_controls, self.num_controls))

    def _cells(self, lots: Array) -> Array:
        limits = self.params.limits.astype(np.int64)
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(lots + limits, -1, 0)), tuple(2 * limits + 1)))

    # States, observations, actions

    def observations(self, n: int) -> NDArray[np.float32]:
        return model.observe(self.params, n, self.lots)

    def locate(self, observations: Array) -> tuple[Array, Array]:
        step, lots = model.locate(self.params, observations)
        return step, self._cells(lots)

    def controls(self, actions: Array) -> Array:
        return model.to_quotes(self.params, actions)

    def actions(self, controls: Array) -> NDArray[np.float32]:
        return model.from_quotes(self.params, controls)

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        p = self.params
        slack = 2e-9 * p.depth_reach
        return np.asarray((controls <= np.array(p.min_depth) + slack) | (controls >= np.array(p.max_depth) - slack))

    def intensities(self, depths: Array) -> Array:
        """Fill intensities (1 / time) of depths (..., 2 n), while the sides are open."""
        return np.asarray(self.params.rates * np.exp(-self.params.decays * depths))

    # Functionals

    def _rates(self, functional: Functional) -> tuple[Array, Array]:
        """Gain of the functional per unit of time besides fills (S,), and variance of its price noise (S,)."""
        p = self.params
        drift = functional.gain * (self.inventory @ p.trends)
        if not self.aversion:  # the noise of an exponential criterion is its penalty
            drift = drift - 0.5 * functional.penalty * p.risk_aversion * self.variance
        drift = drift + functional.absolute_inventory * np.abs(self.inventory).sum(axis=1)
        return drift, functional.price**2 * (self.variance + self.inventory**2 @ p.jump_variances)

    def growth(self, functional: Functional, exponents: Array) -> Array:
        """Logarithm of ``E[exp(z R)]`` per unit of time besides fills, for exponents (K,): (S, K)."""
        drift, _ = self._rates(functional)
        variance = functional.price**2 * self.variance
        growth = np.multiply.outer(drift, exponents) + 0.5 * np.multiply.outer(variance, exponents**2)
        if functional.jumps and self.params.all_jumps > 0.0:
            exposures = functional.price * self.inventory[:, None] * exponents[:, None]
            growth = growth + jump_growth(self.params, exposures)
        return np.asarray(growth)

    def _growth(self) -> tuple[Array, Array]:
        """Growth rate and reward rate of the criterion's values (S,), besides fills."""
        functional, none = self.criterion, np.zeros(self.num_states)
        if functional.exponents is not None:
            return self.growth(functional, functional.exponents)[:, 0], none
        return none, self._rates(functional)[0]

    def terminal(self, functional: Functional) -> Array:
        reward = -functional.penalty * self.params.terminal_penalty * (self.inventory**2).sum(axis=1)
        return terminal_values(reward, functional)

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        depths = np.ascontiguousarray(controls, dtype=np.float64)
        rates = self.intensities(depths)
        gains = functional.gain * self.sizes * depths + functional.fills
        values = np.ascontiguousarray(values)
        result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
        system = (self.params.step_length, np.ascontiguousarray(states, dtype=np.int64), rates, gains)
        if functional.exponents is None:
            kernels.backward_moments(*system, *self._rates(functional), self.moves, values, result)
        else:
            z = functional.exponents.astype(values.dtype)
            growth = np.ascontiguousarray(self.growth(functional, z))
            kernels.backward_exponential(*system, growth, z, self.moves, values, result)
        return result

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        no_fill = np.exp(-self.params.step_length * self.intensities(np.asarray(controls)).sum(axis=-1))
        return np.asarray(np.where(self.lots[states].any(axis=1), 0.0, no_fill)[:, None] * values[states])

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        result = np.empty(self.num_states)
        rates = np.ascontiguousarray(self.intensities(controls))
        kernels.forward_law(self.params.step_length, rates, self.moves, np.ascontiguousarray(law), result)
        return result

    def region(self, n: int, values: Array) -> Region:
        """As `mmgym.baselines.maximise.ContinuousProblem` has it."""
        p, sides = self.params, 2 * self.params.num_assets
        diagonal, source = self._growth()
        reward = source - diagonal / self.aversion if self.aversion else source
        values = self.to_value(values, 0.0)
        ahead = np.stack([values, values + p.step_length * reward])
        slopes, bends = np.empty((1, sides, 2)), np.zeros(1)
        for j in range(sides):
            here = np.flatnonzero(self.moves[j] >= 0)
            gains = (ahead[:, self.moves[j][here]] - ahead[:, here]) / self.sizes[j]
            slopes[0, j] = gains.min(), gains.max()
            change = np.full(ahead.shape, np.nan)
            change[:, here] = gains
            for move in self.moves[:sides]:
                at = np.flatnonzero(move >= 0)
                bend = np.abs(change[:, move[at]] - change[:, at])
                bends = np.maximum(bends, np.nan_to_num(bend).max(initial=0.0))
        return depth_region(self, base_depths(p), p.step_length * p.rates, slopes, bends)

    def cell(self, state: int) -> str:
        return f"inventories {self.inventory[state]}"

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        p, column = self.params, np.ascontiguousarray(values[:, 0])
        first = depths_of_values(p, self.moves, self.to_value(column, 0.0)) if guess is None else guess
        depths = np.ascontiguousarray(first)
        best, shortfalls = np.empty(self.num_states), np.empty(self.num_states)
        if self.aversion:
            self._curvatures[:] = 0.0  # they are of values whose scale has changed
        kernels.improve(
            p.step_length, p.rates, p.decays, self.sizes, self.aversion, self.low_controls, self.high_controls,
            *self._growth(), self.moves, column, self.control_units, rounding(self, column), self._curvatures, depths,
            best, shortfalls,
        )  # fmt: skip
        return best_controls(self, n, values, depths, best, shortfalls)

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        p = self.params
        depths = np.ascontiguousarray(controls, dtype=np.float64)
        result, slopes = np.empty(len(states)), np.empty(depths.shape)
        kernels.backward_gradient(
            p.step_length, np.asarray(states), np.ascontiguousarray(self.intensities(depths)), depths, p.decays,
            self.sizes, self.aversion, *self._growth(), self.moves, np.ascontiguousarray(values[:, 0]), result, slopes,
        )  # fmt: skip
        return result[:, None], slopes

    def to_value(self, values: Array, log_scale: Any) -> Array:
        return -(np.log(values) + log_scale) / self.aversion if self.aversion else np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        gamma = self.aversion
        noise = 0.5 * gamma**2 * info["risk"] + info["jump_exponent"]
        return np.asarray(-gamma * (info["gain"] - info["price_gain"]) + noise)
