r"""Depths of the paper and of Poisson order flow, as functions of the state.

All take the time left (minutes), the inventory (lots) and the buy and sell intensities (1 / minute), arrays of one
shape, and return depths ``[bid, ask]`` of that shape and 2 (EUR / MWh), at least the half-spread.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.hawkes_flow.reach import best_offsets, fill_probability, reach_laws
from mmgym.models import hawkes
from mmgym.models.hawkes_flow import Params, base_rates_at

Array = NDArray[np.float64]

__all__ = ["PoissonValues", "corollary_3", "join_best", "poisson", "price_drift", "signal_poisson"]

POINTS = 20  # of the Poisson values in the shortest of their time scales


def price_drift(params: Params, time_left: Any, buy_rate: Any, sell_rate: Any) -> Array:
    """``G = eps+ I+ - eps- I-``: expected move of the mid until the horizon, given the intensities (EUR / MWh)."""
    buys, sells = _expected_orders(params, time_left, buy_rate, sell_rate)
    return np.asarray(params.impact_buy * buys - params.impact_sell * sells)


def adverse_moves(params: Params, time_left: Any, buy_rate: Any, sell_rate: Any) -> tuple[Array, Array]:
    """Expected moves of the mid against a bid and an ask that are filled now, at once and until the horizon: ``A``."""
    p = params
    bought = price_drift(p, time_left, np.asarray(buy_rate) + p.excitation_buy, sell_rate)
    sold = price_drift(p, time_left, buy_rate, np.asarray(sell_rate) + p.excitation_sell)
    return p.impact_sell - sold, p.impact_buy + bought


def _orders(p: Params, time_left: Any, buy_rate: Any, sell_rate: Any) -> tuple[tuple[Array, Array], ...]:
    """Expected buy and sell orders until the horizon, each with those weighted by the time left: ``I, J``."""
    time_left = np.asarray(time_left, dtype=np.float64)
    ends = p.piece_ends
    lengths = [np.clip(time_left - end, 0.0, p.piece_length) for end in ends[1:]]
    lengths.insert(0, np.maximum(time_left - ends[0], 0.0))
    base = p.base_rates
    shift = base[0] - base_rates_at(p, time_left)
    sides = (
        (base[:, 0], p.excitation_buy, p.decay_buy, buy_rate + shift[..., 0]),
        (base[:, 1], p.excitation_sell, p.decay_sell, sell_rate + shift[..., 1]),
    )
    return tuple(hawkes.through_pieces(*side, lengths)[1:] for side in sides)


def _expected_orders(p: Params, time_left: Any, buy_rate: Any, sell_rate: Any) -> tuple[Array, Array]:
    """Expected buy and sell orders until the horizon, ``I`` of the paper."""
    (buys, _), (sells, _) = _orders(p, time_left, buy_rate, sell_rate)
    return buys, sells


def join_best(params: Params, time_left: Any, inventory: Any, buy_rate: Any, sell_rate: Any) -> Array:
    """The best quotes of the book on both sides, always."""
    shape = np.broadcast_shapes(*map(np.shape, (time_left, inventory, buy_rate, sell_rate)))
    return np.full((*shape, 2), params.half_spread)


def corollary_3(
    params: Params, time_left: Any, inventory: Any, buy_rate: Any, sell_rate: Any, *, as_printed: bool = False
) -> Array:
    """The asymptotic depths of von Luckner, Cartea, Jaimungal & Kiesel (2017), Corollary 3, at a constant half-spread.

    ``1/kappa + eps + h (|q -+ 1| - |q|) + (alpha + phi tau) (1 -+ 2 q) +- g1``, floored at the half-spread, with ``g1 =
    G + (2/e) [alpha (I+ - I-) + phi (J+ - J-)]`` at the intensities after the order that fills the quote. A
    `reach_atom`, which the paper does not have, is not in it.

    Parameters
    ----------
    as_printed : bool
        The draft pulls ``phi (T - t)`` out of the integral of eq. (27): ``(alpha + phi tau) (I+ - I-)`` in the bracket.
    """
    p, tau, q = params, np.asarray(time_left, dtype=np.float64), np.asarray(inventory, dtype=np.float64)
    penalty = p.terminal_penalty + p.running_penalty * tau

    def slope(buy: Any, sell: Any) -> Array:
        (buys, weighted_buys), (sells, weighted_sells) = _orders(p, tau, buy, sell)
        if as_printed:
            control = penalty * (buys - sells)
        else:
            control = p.terminal_penalty * (buys - sells) + p.running_penalty * (weighted_buys - weighted_sells)
        return np.asarray(p.impact_buy * buys - p.impact_sell * sells + 2.0 * np.exp(-1.0) * control)

    bid = 1.0 / p.fill_decay_sell + p.impact_sell + p.half_spread * (np.abs(q + 1.0) - np.abs(q))
    ask = 1.0 / p.fill_decay_buy + p.impact_buy + p.half_spread * (np.abs(q - 1.0) - np.abs(q))
    bid = bid + penalty * (1.0 + 2.0 * q) - slope(buy_rate, np.asarray(sell_rate) + p.excitation_sell)
    ask = ask + penalty * (1.0 - 2.0 * q) + slope(np.asarray(buy_rate) + p.excitation_buy, sell_rate)
    return np.asarray(np.maximum(np.stack(np.broadcast_arrays(bid, ask), axis=-1), p.half_spread))


class PoissonValues:
    """``v(r, q)`` of ``theta = q G + v`` for Poisson order flow of the expected rates; exact without excitation.

    ``v' = -phi q^2 + sum_k y_k max_d f(d - h) (d - A_k + v(q -+ 1) - v(q))`` with ``f`` of
    `mmgym.baselines.hawkes_flow.reach`, where an order moves the mid at once by all that it brings on in the long run,
    ``A = eps rho / (rho - zeta) +- G``. The rates are the stationary ones of the base rates at that time. Where there
    are none, they are the initial ones, less or more by what base rates are, and ``A`` is what an order brings on until
    the horizon.

    Parameters
    ----------
    params : Params
    depth_bounds : pair of float, optional
        Smallest and largest depth; by default the depth box. ``(-inf, inf)`` is the case with a closed form.
    """

    def __init__(self, params: Params, depth_bounds: tuple[float, float] | None = None) -> None:
        p = self.params = params
        sides = (
            (p.base_rates[:, 0], p.excitation_buy, p.decay_buy, p.initial_rate_buy),
            (p.base_rates[:, 1], p.excitation_sell, p.decay_sell, p.initial_rate_sell),
        )
        self.rates = np.stack(
            [mu / (1.0 - zeta / rho) if zeta < rho else start + (mu - mu[0]) for mu, zeta, rho, start in sides], axis=-1
        )
        low, high = np.zeros(2), 2.0 * p.depth_reach
        if depth_bounds is not None:
            low, high = (np.full(2, bound - p.half_spread) for bound in depth_bounds)
        decays, log_behind = (law[:, None] for law in reach_laws(p))
        q = np.arange(-p.inventory_limit, p.inventory_limit + 1.0)

        def slope(time_left: float, values: Array) -> Array:
            buy, sell = self._rates_at(time_left)
            sold, bought = self.adverse_moves(time_left)
            step = np.diff(values)
            edges = p.half_spread + np.stack([step - sold, -step - bought])
            offsets = best_offsets(edges, decays, log_behind, low[:, None], high[:, None])
            bids, asks = fill_probability(offsets, decays, log_behind) * (offsets + edges)
            change = -p.running_penalty * q**2
            change[:-1] += sell * bids
            change[1:] += buy * asks
            return change

        terminal = -p.half_spread * np.abs(q) - p.terminal_penalty * q**2
        fastest = max(float(self.rates.sum(axis=1).max()), p.decay_buy, p.decay_sell)
        points = int(np.clip(POINTS * p.horizon * fastest, 200, 20_000)) // p.pieces + 1
        self._starts = np.append(p.horizon, p.piece_ends[:-1])
        self._values: list[scipy.interpolate.CubicHermiteSpline] = []
        for start, end in zip(self._starts[::-1], p.piece_ends[::-1], strict=True):
            first = np.nextafter(end, start) if end else end  # at the end itself the next piece begins

            def own(time: float, values: Array, first: float = first) -> Array:
                return slope(first + time, values)

            times = np.linspace(0.0, start - end, points)
            values = solution_at(own, terminal, times, "the Poisson values", 1e-11, method="LSODA", atol=1e-12)[::-1]
            slopes = np.stack([own(time, column) for time, column in zip(times, values, strict=True)])
            self._values.insert(0, scipy.interpolate.CubicHermiteSpline(times, values, slopes))
            terminal = values[-1]

    def adverse_moves(self, time_left: Any) -> tuple[Array, Array]:
        """``A`` of a bid and of an ask (EUR / MWh)."""
        p, rates = self.params, self._rates_at(time_left)
        buy, sell = rates[..., 0], rates[..., 1]
        if p.excitation_buy >= p.decay_buy or p.excitation_sell >= p.decay_sell:
            return adverse_moves(p, time_left, buy, sell)
        drift = price_drift(p, time_left, buy, sell)
        bought = p.impact_buy / (1.0 - p.excitation_buy / p.decay_buy)
        sold = p.impact_sell / (1.0 - p.excitation_sell / p.decay_sell)
        return sold - drift, bought + drift

    def _piece(self, time_left: Any) -> Any:
        return (np.asarray(time_left)[..., None] <= self.params.piece_ends[:-1]).sum(axis=-1)

    def _rates_at(self, time_left: Any) -> Array:
        return np.asarray(self.rates[self._piece(time_left)])

    def __call__(self, time_left: Any) -> Array:
        """``v`` at times left (minutes), of shape ``(...)``: shape ``(..., S)``, inventories from -Q to Q."""
        pieces, result = self._piece(time_left)[..., None], np.zeros(2 * self.params.inventory_limit + 1)
        for k, (values, start, end) in enumerate(zip(self._values, self._starts, self.params.piece_ends, strict=True)):
            result = np.where(pieces == k, values(np.clip(time_left, end, start) - end), result)
        return np.asarray(result)

    def differences(self, time_left: Any, inventory: Any) -> tuple[Array, Array]:
        """``v(q + 1) - v(q)`` and ``v(q - 1) - v(q)`` (0 beyond the limit), of one shape."""
        time_left, index = np.broadcast_arrays(time_left, np.asarray(inventory).astype(np.int64))
        index = index + self.params.inventory_limit
        padded = np.diff(self(time_left), axis=-1)
        padded = np.concatenate([np.zeros_like(padded[..., :1]), padded, np.zeros_like(padded[..., :1])], axis=-1)
        up = np.take_along_axis(padded, index[..., None] + 1, axis=-1)[..., 0]
        down = -np.take_along_axis(padded, index[..., None], axis=-1)[..., 0]
        return up, down


DepthFunction = Callable[[Any, Any, Any, Any], Array]


def poisson(params: Params, values: PoissonValues) -> DepthFunction:
    """Depths that are optimal for Poisson order flow of the expected rates: blind to the intensities."""

    def depths(time_left: Any, inventory: Any, buy_rate: Any, sell_rate: Any) -> Array:
        depths = _depths(params, values, time_left, inventory, *values.adverse_moves(time_left))
        shape = np.broadcast_shapes(depths.shape[:-1], np.shape(buy_rate), np.shape(sell_rate))
        return np.broadcast_to(depths, (*shape, 2))

    return depths


def signal_poisson(params: Params, values: PoissonValues) -> DepthFunction:
    """Depths for the drift of the mid as the intensities foretell it, and the inventory's value under Poisson flow."""

    def depths(time_left: Any, inventory: Any, buy_rate: Any, sell_rate: Any) -> Array:
        moves = adverse_moves(params, time_left, buy_rate, sell_rate)
        return _depths(params, values, time_left, inventory, *moves)

    return depths


def _depths(p: Params, values: PoissonValues, time_left: Any, inventory: Any, sold: Array, bought: Array) -> Array:
    """``max(h, 1 / kappa + A - (v(q +- 1) - v(q)))``, or ``h`` where that is better."""
    up, down = values.differences(time_left, inventory)
    gains = np.stack(np.broadcast_arrays(up - sold, down - bought), axis=-1)
    return p.half_spread + best_offsets(p.half_spread + gains, *reach_laws(p))
