r"""The continuous-time optimum of the GLFT market, without bounds on depths.

With ``u = x + q S + v(t, q)`` (mean criterion) or ``u = -exp(-gamma (x + q S + v(t, q)))`` (CARA) the value solves

    v_t + mu q - c q^2 + sum_sides (A D C / k) exp(k (v(t, q +- D) - v(t, q)) / D) = 0,    v(T, q) = -alpha q^2,

``c = phi, C = 1 / e`` (mean) or ``c = gamma sigma^2 / 2, C = (1 + gamma D / k)^-(1 + k / (gamma D))`` (CARA); a side
is dropped at its bound (Guéant, Lehalle & Fernandez-Tapia 2013, Theorem 1; Cartea, Jaimungal & Penalva 2015, section
10.2). Jumps of the mid add their trend to ``mu``; under CARA ``mu q - c q^2`` becomes ``-kappa(-gamma q) / gamma``,
``kappa(z) = ln E[exp(z (S_1 - S_0))]``: the flow of an inventory, below.
Where both sides have the same ``k``, ``omega = exp(k v / D)`` makes it linear: ``omega(t) = exp(M (T - t)) omega(T)``
with off-diagonals ``A C``. The exponential is summed from non-negative terms: even entries near e^-700 keep their
digits.
"""

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.glft.one_step import best_depths, best_rate_constants, price_cumulant
from mmgym.models.glft import Params

Array = NDArray[np.float64]

__all__ = ["continuous_depths", "continuous_values", "positive_exponential", "stationary_depths"]


def aversion(params: Params) -> float:
    """Risk aversion of the criterion: 0 for the mean criterion."""
    return params.risk_aversion if params.utility == "cara" else 0.0


def inventory_cost(params: Params) -> float:
    """``c``: cost of inventory, price / (assets * time); ``gamma sigma^2 = 2 c``. With jumps to second order in it."""
    gamma = aversion(params)
    return 0.5 * gamma * params.variance_rate if gamma else params.running_penalty


def inventory_flow(params: Params) -> Array:
    """``mu q - c q^2``, or with the whole cumulant of the mid under CARA, of every inventory (S,), currency / time."""
    q, gamma = _inventories(params), aversion(params)
    cost = price_cumulant(params, -gamma * q) / gamma if gamma else params.running_penalty * q**2
    return np.asarray(params.trend * q - cost)


def base_depths(params: Params) -> Array:
    """Best depths ``[bid, ask]`` where inventory has no cost (price): 1/k, or ln(1 + gamma D / k) / (gamma D)."""
    decays = np.array([params.fill_decay_bid, params.fill_decay_ask])
    return best_depths(decays, aversion(params) * params.order_size)


def effective_rates(params: Params) -> Array:
    """``A C`` of bid and ask (1 / time)."""
    decays = np.array([params.fill_decay_bid, params.fill_decay_ask])
    constants = best_rate_constants(decays, aversion(params) * params.order_size)
    return np.asarray(np.array([params.fill_rate_bid, params.fill_rate_ask]) * constants)


def _inventories(params: Params) -> Array:
    return np.asarray(np.arange(-params.limit, params.limit + 1) * params.order_size, dtype=np.float64)


def _linear_system(params: Params) -> tuple[Array, float]:
    """Tridiagonal matrix ``M`` (1 / time) and ``k / D``, for equal decays."""
    unit, jumps = params.fill_decay_bid / params.order_size, 2 * params.limit
    bid, ask = effective_rates(params)
    matrix = np.diag(unit * inventory_flow(params))
    return matrix + np.diag(np.full(jumps, bid), 1) + np.diag(np.full(jumps, ask), -1), unit


def positive_exponential(matrix: Array) -> tuple[Array, float]:
    """``exp(matrix)`` of a matrix with non-negative off-diagonals: (E, c) with ``exp(matrix) = e^c E``.

    Every sum and product has non-negative terms only, so each entry is accurate relative to itself.
    """
    shift = float(np.diag(matrix).min())
    positive = matrix - shift * np.eye(len(matrix))
    squarings = max(0, int(np.ceil(np.log2(max(positive.sum(axis=1).max(), 1e-300)))))
    positive = positive / 2.0**squarings
    term = result = np.eye(len(matrix))
    for j in range(1, 40):
        term = term @ positive / j
        result = result + term
    log_scale = 0.0
    for _ in range(squarings):
        result = result @ result
        size = result.max()
        result, log_scale = result / size, 2.0 * log_scale + float(np.log(size))
    return result, shift + log_scale


def continuous_values(params: Params, num_steps: int | None = None) -> Array:
    """``v(t_n, q)`` on the grid ``t_n = n T / num_steps`` (currency): shape (num_steps + 1, 2 limit + 1).

    From the linear system where both decays are equal (exact to rounding), otherwise from the nonlinear one by an
    adaptive Runge-Kutta method of order 8 (relative tolerance 1e-13).

    Raises
    ------
    RuntimeError
        If the nonlinear system could not be integrated.
    """
    steps = params.num_steps if num_steps is None else num_steps
    if params.fill_decay_bid != params.fill_decay_ask:
        return _integrate_nonlinear(params, np.linspace(0.0, params.horizon, steps + 1))
    matrix, unit = _linear_system(params)
    transition, step_scale = positive_exponential(matrix * (params.horizon / steps))
    log_omega = np.empty((steps + 1, len(matrix)))
    log_omega[steps] = -params.terminal_penalty * unit * _inventories(params) ** 2
    omega, log_scale = np.exp(log_omega[steps]), 0.0
    for n in reversed(range(steps)):
        omega = transition @ omega
        size = omega.max()
        omega, log_scale = omega / size, log_scale + step_scale + float(np.log(size))
        log_omega[n] = np.log(omega) + log_scale
    values: Array = log_omega / unit
    return values


def _slope(params: Params) -> tuple[Array, Array, Array]:
    """Weights ``A D C / k`` and exponents ``k / D`` of the sides, and the flow of each inventory per unit of time."""
    decays = np.array([params.fill_decay_bid, params.fill_decay_ask])
    weights = effective_rates(params) * params.order_size / decays
    return weights, decays / params.order_size, inventory_flow(params)


def _time_derivative(params: Params, values: Array) -> Array:
    """``-v_t`` of the nonlinear system."""
    weights, exponents, flow = _slope(params)
    slope = np.diff(values)
    result = flow.copy()
    result[:-1] += weights[0] * np.exp(exponents[0] * slope)
    result[1:] += weights[1] * np.exp(-exponents[1] * slope)
    return result


def _integrate_nonlinear(params: Params, times: Array) -> Array:
    start = -params.terminal_penalty * _inventories(params) ** 2
    return solution_at(lambda _, v: _time_derivative(params, v), start, times, "the continuous-time value", 1e-13)


def continuous_depths(params: Params, values: Array) -> Array:
    """Depths (..., S, 2) that are optimal for continuous-time values (..., S) (price).

    At its bound a side is inactive; it gets the depth of the neighbouring inventory, which is what to post in an
    environment where it can reactivate inside a step.
    """
    slope = np.diff(values, axis=-1) / params.order_size
    bid, ask = base_depths(params)
    bids = np.concatenate([bid - slope, (bid - slope)[..., -1:]], axis=-1)
    asks = np.concatenate([(ask + slope)[..., :1], ask + slope], axis=-1)
    return np.stack([bids, asks], axis=-1)


def stationary_depths(params: Params) -> Array:
    """Optimal depths (S, 2) far from the horizon (price).

    With equal decays they come from the Perron vector ``f`` of ``M``: the eigenvalue from the symmetrised matrix, the
    ratios of neighbouring entries from two continued fractions with positive terms. Otherwise from the zero of the
    nonlinear system's differences.

    Raises
    ------
    RuntimeError
        If the zero was not found (unequal decays only).
    """
    if params.fill_decay_bid == params.fill_decay_ask:
        matrix, unit = _linear_system(params)
        diagonal, bid, ask = np.diag(matrix), *effective_rates(params)
        size = len(diagonal)
        coupling = np.full(size - 1, np.sqrt(bid * ask))
        last = (size - 1, size - 1)
        top = float(eigh_tridiagonal(diagonal, coupling, eigvals_only=True, select="i", select_range=last)[0])
        peak = int(np.argmax(diagonal))
        log_ratio = np.empty(size - 1)  # ln f(q + 1) / f(q)
        ratio = 0.0
        for i in range(size - 1, peak, -1):
            ratio = ask / (top - diagonal[i] - bid * ratio)
            log_ratio[i - 1] = np.log(ratio)
        ratio = 0.0
        for i in range(peak):
            ratio = bid / (top - diagonal[i] - ask * ratio)
            log_ratio[i] = -np.log(ratio)
        values = np.concatenate([[0.0], np.cumsum(log_ratio)]) / unit
        return continuous_depths(params, values)

    def imbalance(slope: Array) -> Array:
        return np.diff(_time_derivative(params, np.concatenate([[0.0], np.cumsum(slope)])))

    long = max(params.horizon, 10.0 / float(effective_rates(params).min()))
    relaxed = _integrate_nonlinear(params, np.array([0.0, long]))[0]
    zero = scipy.optimize.root(imbalance, np.diff(relaxed), method="hybr", tol=1e-13)
    if np.abs(imbalance(zero.x)).max() > 1e-8 * effective_rates(params).max():
        raise RuntimeError(f"the stationary depths were not found: {zero.message}")
    return continuous_depths(params, np.concatenate([[0.0], np.cumsum(zero.x)]))
