"""Depths of the papers' closed forms in the GLFT market, on every inventory and decision time.

All take ``gamma sigma^2 = 2 phi`` under the mean criterion, where the base depth is 1 / k. Where the mid jumps,
``sigma^2`` is the whole variance of the mid and its drift has the jumps' trend.
"""

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.glft.continuous import base_depths, effective_rates, inventory_cost
from mmgym.models.glft import Params

Array = NDArray[np.float64]

__all__ = ["avellaneda_stoikov_depths", "glft_asymptotic_depths", "riccati_depths"]


def _grid(params: Params) -> tuple[Array, Array]:
    """Time left at each decision (N, 1) and inventory in assets (1, S)."""
    left = params.horizon - np.arange(params.num_steps) * params.step_length
    inventory = np.asarray(np.arange(-params.limit, params.limit + 1) * params.order_size, dtype=np.float64)
    return np.asarray(left[:, None], dtype=np.float64), inventory[None, :]


def avellaneda_stoikov_depths(params: Params) -> Array:
    """Depths (N, S, 2) of Avellaneda & Stoikov (2008), eqs. (3.17)-(3.18): a short-horizon expansion (price).

    Reservation price ``S - q gamma sigma^2 (T - t)``, total spread ``gamma sigma^2 (T - t) D`` plus the base depths.
    The formula has no drift and no terminal penalty.
    """
    left, q = _grid(params)
    skew = 2.0 * inventory_cost(params) * left
    bid, ask = base_depths(params)
    half = 0.5 * params.order_size
    return np.stack([bid + skew * (q + half), ask - skew * (q - half)], axis=-1)


def glft_asymptotic_depths(params: Params) -> Array:
    """Depths (N, S, 2) of Guéant, Lehalle & Fernandez-Tapia (2013), Proposition 3, with drift (price).

    Unequal fill rates enter through the exact symmetrisation. Unequal decays have no closed form: their geometric mean
    takes the place of ``k`` in the slope. A drift with costless inventory has infinite depths, which the box clips.
    """
    left, q = _grid(params)
    cost, size = inventory_cost(params), params.order_size
    decay = np.sqrt(params.fill_decay_bid * params.fill_decay_ask)
    rate_bid, rate_ask = effective_rates(params)
    slope = np.sqrt(cost / (decay * size * np.sqrt(rate_bid * rate_ask)))
    tilt = np.log(rate_bid / rate_ask) / (2.0 * decay)
    if params.trend == 0.0:
        lean = 0.0
    else:
        lean = slope * params.trend / (2.0 * cost) if cost else np.copysign(np.inf, params.trend)
    bid, ask = base_depths(params)
    bids = bid + tilt + slope * (q + 0.5 * size) - lean + 0.0 * left
    asks = ask - tilt - slope * (q - 0.5 * size) + lean + 0.0 * left
    return np.stack([bids, asks], axis=-1)


def riccati_depths(params: Params) -> Array:
    """Depths (N, S, 2) from the quadratic value ``b(tau) q - a(tau) q^2`` of Bergault & Guéant (2021) (price).

    The Hamiltonians are replaced by their second-order Taylor polynomials at 0, which gives a Riccati equation for
    ``a`` and a linear one for ``b`` (drift, and sides that differ); ``tau`` is the time left.
    """
    left, q = _grid(params)
    size = params.order_size
    decays = np.array([params.fill_decay_bid, params.fill_decay_ask])
    first = effective_rates(params) * size  # -H'(0) of each side
    second = first * decays  # H''(0)
    cost, drift = inventory_cost(params), params.trend

    def slopes(_: float, y: Array) -> list[float]:
        a, b = y
        return [
            cost - 2.0 * a * a * second.sum(),
            drift
            + 2.0 * a * (first[1] - first[0])
            - 2.0 * a * b * second.sum()
            + 2.0 * a * a * size * (second[0] - second[1]),
        ]

    start, times = np.array([params.terminal_penalty, 0.0]), left[::-1, 0]
    path = solution_at(slopes, start, times, "the Riccati equation", 1e-11, method="LSODA", atol=1e-13)
    a, b = (column[:, None] for column in path.T)
    bid, ask = base_depths(params)
    return np.stack([bid - b + a * (2.0 * q + size), ask + b - a * (2.0 * q - size)], axis=-1)
