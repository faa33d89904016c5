r"""One intensity on a Chebyshev grid: what a market order and the passing of time do to functions of it.

Functions of the excess ``x = y - mu`` in ``[0, X]`` are polynomials through Chebyshev-Lobatto nodes. Decay maps the
interval into itself, and a polynomial of ``x exp(-rho u)`` is one of ``x``, so transport along the characteristics is
exact. A jump may leave the interval: there the polynomial goes on as the straight line through its values at ``X`` and
at ``3 X / 4``, which is stable and exact for what is linear in the intensity, as most of the value is.
"""

import math
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.baselines.chebyshev import chebyshev_nodes, interpolation_rows
from mmgym.models.hawkes_flow import Params, base_rates_at

Array = NDArray[np.float64]

__all__ = ["RateGrid", "largest_excess", "rate_grids", "states_of"]

CHORD = 0.25  # length of the chord that extends a function beyond X, as a part of X


class RateGrid:
    """Chebyshev-Lobatto nodes for one intensity, and the matrices that act on values there.

    Parameters
    ----------
    base_rate, excitation, decay : float
        mu, zeta and rho (1 / minute).
    largest : float
        X (1 / minute); 0 if the intensity never leaves the base rate.
    nodes : int
        Number of nodes, at least 2; a grid with X = 0 has one.
    """

    def __init__(self, base_rate: float, excitation: float, decay: float, largest: float, nodes: int) -> None:
        self.base_rate, self.decay, self.largest = base_rate, decay, largest
        count = nodes if largest > 0.0 else 1
        self.excess, self.weights = chebyshev_nodes(largest, count)
        self.rates: Array = base_rate + self.excess
        self.jump = self.matrix(self.excess + excitation)

    def matrix(self, excess: Array) -> Array:
        """Values at the nodes -> values at ``excess`` (m,), with the straight line beyond X: shape (m, nodes)."""
        if len(self.excess) == 1:
            return np.ones((len(excess), 1))
        inside = interpolation_rows(self.excess, self.weights, np.minimum(excess, self.largest))
        beyond = np.maximum(excess - self.largest, 0.0) / (CHORD * self.largest)
        chord = np.array([self.largest, (1.0 - CHORD) * self.largest])
        ends = interpolation_rows(self.excess, self.weights, chord)
        return np.asarray(inside + beyond[:, None] * (ends[0] - ends[1]))

    def drift(self) -> Array:
        """``f -> rho (mu - y) f'`` without orders, shape (nodes, nodes)."""
        if len(self.excess) == 1:
            return np.zeros((1, 1))
        distance = self.excess[:, None] - self.excess
        np.fill_diagonal(distance, np.inf)
        slopes = self.weights / self.weights[:, None] / distance
        np.fill_diagonal(slopes, -slopes.sum(axis=1))
        return np.asarray(-self.decay * self.excess[:, None] * slopes)

    def rates_after(self, time: float) -> Array:
        """Intensity after ``time`` minutes without an order, from each node (1 / minute)."""
        return self.base_rate + self.excess * math.exp(-self.decay * time)

    def survival(self, time: float) -> Array:
        """Probability of no order in ``time`` minutes, from each node."""
        burst = self.excess * -math.expm1(-self.decay * time) / self.decay
        return np.asarray(np.exp(-self.base_rate * time - burst))

    def relaxation(self, time: float) -> Array:
        """``f -> E[f(excess after time); no order]``, shape (nodes, nodes)."""
        return self.survival(time)[:, None] * self.matrix(self.excess * math.exp(-self.decay * time))


def largest_excess(
    base_rate: float, excitation: float, decay: float, start: float, horizon: float, probability: float
) -> float:
    """An excess that the intensity is above at the horizon with at most this probability (Chernoff bound).

    The exponential moment of the excess is affine: ``log E exp(theta x_T) = b(T) x_0 + mu int (exp(zeta b) - 1)`` with
    ``b' = exp(zeta b) - 1 - rho b``, ``b(0) = theta``.

    Parameters
    ----------
    base_rate, excitation, decay : float
        mu, zeta and rho (1 / minute).
    start : float
        Excess now (1 / minute).
    horizon : float
        Minutes.
    probability : float
    """
    if excitation == 0.0:
        return start

    def slope(_: float, y: Array) -> list[float]:
        growth = math.expm1(min(excitation * y[0], 50.0))
        return [growth - decay * y[0], base_rate * growth]

    def too_large(_: float, y: Array) -> float:
        return float(y[0]) - 20.0 / excitation

    too_large.terminal = True  # type: ignore[attr-defined]
    best = math.inf
    for theta in np.geomspace(1e-4, 3.0, 60) / excitation:
        path = scipy.integrate.solve_ivp(
            slope, (0.0, horizon), [theta, 0.0], method="LSODA", events=too_large, rtol=1e-6, atol=1e-9
        )
        if path.status == 0:
            log_moment = path.y[0, -1] * start + path.y[1, -1]
            best = min(best, (log_moment - math.log(probability)) / theta)
    if not best < math.inf:
        best = 1e3 * excitation * math.exp(min((excitation - decay) * horizon, 20.0))
    return max(best, start + 2.0 * excitation)


def rate_grids(p: Params, largest: tuple[float, float], buys: int, sells: int) -> tuple[RateGrid, RateGrid]:
    """Grids of the excess of buys and of sells in the first piece, with so many nodes up to the largest excesses."""
    base_buy, base_sell = p.base_rates[0]
    return (
        RateGrid(base_buy, p.excitation_buy, p.decay_buy, largest[0], buys),
        RateGrid(base_sell, p.excitation_sell, p.decay_sell, largest[1], sells),
    )


def states_of(params: Params, time_left: Any, inventory: Any, buy_rate: Any, sell_rate: Any) -> Array:
    """States (B, 4) as kernels take them: time left, inventory index, excess of buys and of sells."""
    base = base_rates_at(params, time_left)
    columns = np.broadcast_arrays(
        time_left,
        np.asarray(inventory) + params.inventory_limit,
        np.maximum(np.asarray(buy_rate) - base[..., 0], 0.0),
        np.maximum(np.asarray(sell_rate) - base[..., 1], 0.0),
    )
    return np.ascontiguousarray(np.stack([np.ravel(column) for column in columns], axis=-1), dtype=np.float64)
