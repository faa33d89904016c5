r"""The continuous-time optimum of several assets.

With ``u = x + q' S + v(t, q)`` and quotes that move at once,

    v_t + mu' q - (gamma / 2) q' Sigma q - kappa_J(-gamma q) / gamma
        + sum_j (A_j C_j D_j / k_j) exp((k_j / D_j) (v(q +- D_j e_j) - v)) = 0

over all open sides ``j``, ``v(T) = -alpha |q|^2``, ``mu`` the trends, ``kappa_J`` the cumulant of compensated jumps,
under CARA only, ``C_j = 1 / e``; under CARA ``v`` is the certainty equivalent and
``C_j = (1 + gamma D_j / k_j)^-(1 + k_j / (gamma D_j))``, as in `mmgym.baselines.glft.continuous`. Where ``k_j / D_j``
is the same for all sides, ``omega = exp(k v / D)`` makes it linear.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.multi_asset_glft.one_step import (
    aversion_of,
    depths_of_values,
    effective_rates,
    grid,
    jump_growth,
    moves_of,
)
from mmgym.models.multi_asset_glft import Params

Array = NDArray[np.float64]

__all__ = ["continuous_depths", "continuous_values"]


def _flow(params: Params) -> Array:
    """What each state earns besides fills, per unit of time (S,)."""
    q, gamma = grid(params) * params.sizes, params.risk_aversion
    jumps = jump_growth(params, -gamma * q) / gamma if aversion_of(params) else 0.0
    return np.asarray(q @ params.trends - 0.5 * gamma * np.einsum("si,ij,sj->s", q, params.matrix, q) - jumps)


def _terminal(params: Params) -> Array:
    q = grid(params) * params.sizes
    return np.asarray(-params.terminal_penalty * (q**2).sum(axis=1))


def continuous_values(params: Params, num_steps: int | None = None, *, linear: bool | None = None) -> Array:
    """``v`` at the times of so many equal steps, shape (N + 1, S), price * assets.

    Parameters
    ----------
    params : Params
    num_steps : int, optional
        Of the environment by default.
    linear : bool, optional
        Whether to take the matrix exponential, which needs one ``fill_decay / order_size`` for all sides (by default
        wherever it is so and stays in range), or the nonlinear equation (Runge-Kutta of order 8, to 1e-12).

    Raises
    ------
    ValueError
        If the equation is not linear.
    """
    steps = params.num_steps if num_steps is None else num_steps
    units = params.decays / np.tile(params.sizes, 2)
    equal = bool(np.ptp(units) <= 1e-14 * units.max())
    flow, last = _flow(params), _terminal(params)
    reach = units[0] * (np.ptp(last) + params.horizon * np.ptp(flow))
    if linear and not equal:
        raise ValueError("the equation is not linear: fill_decay / order_size must be the same on all sides")
    if linear or (linear is None and equal and reach < 300.0):
        return _by_exponential(params, steps, float(units[0]), flow, last)
    return _by_runge_kutta(params, steps, units, flow, last)


def _weights(params: Params) -> Array:
    """``A_j C_j D_j / k_j``, shape (2 n,)."""
    return np.asarray(effective_rates(params) * np.tile(params.sizes, 2) / params.decays)


def _by_exponential(params: Params, steps: int, unit: float, flow: Array, last: Array) -> Array:
    moves, weights = moves_of(params), _weights(params)
    system = np.diag(unit * flow)
    for j, to in enumerate(moves):
        here = np.flatnonzero(to >= 0)
        system[here, to[here]] += unit * weights[j]
    once = expm(system * params.horizon / steps)
    values = np.empty((steps + 1, len(flow)))
    values[steps] = last
    scale = float(last.max())
    omega = np.exp(unit * (last - scale))
    for n in range(steps - 1, -1, -1):
        omega = once @ omega
        size = float(omega.max())
        scale += np.log(size) / unit
        omega /= size
        values[n] = scale + np.log(omega) / unit
    return values


def _by_runge_kutta(params: Params, steps: int, units: Array, flow: Array, last: Array) -> Array:
    moves, weights = moves_of(params), _weights(params)
    sides = [(j, np.flatnonzero(to >= 0)) for j, to in enumerate(moves)]

    def slope(_: float, v: Array) -> Array:
        total = flow.copy()
        for j, here in sides:
            total[here] += weights[j] * np.exp(units[j] * (v[moves[j][here]] - v[here]))
        return total

    times = np.linspace(0.0, params.horizon, steps + 1)
    return solution_at(slope, last, times, "the continuous-time value", 1e-12)


def continuous_depths(params: Params) -> Array:
    """Depths (N, S, 2 n) of the continuous-time optimum at the environment's decision times."""
    return depths_of_values(params, moves_of(params), continuous_values(params)[:-1])
