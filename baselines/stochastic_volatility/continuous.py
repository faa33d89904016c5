r"""The continuous-time optimum under stochastic volatility, without bounds on depths.

With ``u = x + q S + v(t, q, nu)`` (mean criterion with the penalty ``(gamma / 2) nu q^2``), or ``u = -exp(-gamma (x +
q S + v))`` (CARA),

    v_t + mu q - (gamma / 2) nu q^2 + kappa (theta - nu) v_nu + (xi^2 / 2) nu v_nunu
        [CARA: - gamma rho xi nu q v_nu - (gamma / 2) xi^2 nu v_nu^2]
        + sum_sides (A D C / k) exp(k (v(q +- D) - v) / D) = 0,    v(T, q, nu) = -alpha q^2,

with ``- kappa_J(-gamma q) / gamma`` beside ``mu q`` under CARA where the mid jumps, ``kappa_J`` the cumulant of the
compensated jumps; ``C = 1 / e`` or ``(1 + gamma D / k)^-(1 + k / (gamma D))``. ``v_nunu`` keeps it from being linear in
``exp(k v / D)``.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.glft.continuous import continuous_depths, effective_rates
from mmgym.baselines.stochastic_volatility.variance_grid import VarianceGrid
from mmgym.models import glft
from mmgym.models.stochastic_volatility import Params

Array = NDArray[np.float64]

__all__ = ["best_depths", "blind_values", "continuous_value", "continuous_values", "plain_params"]

RESOLVED = 1e-6  # relative


def plain_params(params: Params, utility: Literal["mean", "cara"] = "mean", variance: float | None = None) -> Any:
    """The GLFT market with constant variance (the long-run one by default), which has the same fills (glft.Params)."""
    p = params
    variance = p.variance_mean if variance is None else variance
    names = (
        *("drift", "order_size", "inventory_limit", "initial_inventory", "initial_price", "horizon", "num_steps"),
        *(name for name in Params._fields if name.startswith("jump_")),
        "compensated",
    )
    return glft.Params.create(
        volatility=float(np.sqrt(variance)),
        fill_rate=[p.fill_rate_bid, p.fill_rate_ask],
        fill_decay=[p.fill_decay_bid, p.fill_decay_ask],
        terminal_penalty=p.terminal_penalty,
        utility=utility,
        risk_aversion=p.risk_aversion,
        min_depth=[p.min_depth_bid, p.min_depth_ask],
        max_depth=[p.max_depth_bid, p.max_depth_ask],
        **{name: getattr(p, name) for name in names},
    )


def jump_growth(params: Params, inventory: Array) -> Array:
    """What compensated jumps add to the logarithm of ``E[exp(-gamma gain)]`` per unit of time, for inventories."""
    p = params
    if not p.jump_rate:
        return np.zeros(np.shape(inventory))
    return np.asarray(p.jump_rate * p.jump_sizes.compensated(-p.risk_aversion * inventory))


def _fills(plain: glft.Params) -> Any:
    """What optimal fills add to ``-v_t``, for values (S, ...)."""
    weights = effective_rates(plain) * plain.order_size / [plain.fill_decay_bid, plain.fill_decay_ask]
    exponents = np.array([plain.fill_decay_bid, plain.fill_decay_ask]) / plain.order_size

    def gain(values: Array) -> Array:
        slope, result = np.diff(values, axis=0), np.zeros_like(values)
        result[:-1] += weights[0] * np.exp(exponents[0] * slope)
        result[1:] += weights[1] * np.exp(-exponents[1] * slope)
        return result

    return gain


def _integrate(derivative: Any, start: Array, times: Array) -> Array:
    return solution_at(derivative, start, times, "the continuous-time value", 1e-11)


def continuous_values(
    params: Params, utility: Literal["mean", "cara"] | None = None, num_steps: int = 1, nodes: int = 15
) -> tuple[Array, VarianceGrid]:
    """``v(t_n, q, nu)`` on the grid ``t_n = n T / num_steps``: shape (num_steps + 1, 2 limit + 1, nodes), and the grid.

    ``utility`` is that of the parameters by default.

    Raises
    ------
    RuntimeError
        If the system could not be integrated.
    """
    utility = params.utility if utility is None else utility
    p, grid, plain = params, VarianceGrid(params, nodes), plain_params(params, utility)
    fills, nu, gamma, xi = _fills(plain), grid.nodes, p.risk_aversion, p.variance_volatility
    q = (np.arange(-p.limit, p.limit + 1) * p.order_size)[:, None]
    flow = p.trend * q - 0.5 * gamma * nu * q**2
    linear = np.broadcast_to(grid.generator, (len(q), nodes, nodes))
    if utility == "cara":
        flow = flow - jump_growth(p, q) / gamma
        linear = linear - (gamma * p.correlation * xi * q * nu)[:, :, None] * grid.slope

    def derivative(_: float, values: Array) -> Array:
        result = flow + np.einsum("qij,qj->qi", linear, values) + fills(values)
        if utility == "cara":
            result = result - 0.5 * gamma * xi**2 * nu * (values @ grid.slope.T) ** 2
        return np.asarray(result)

    start = np.broadcast_to(-p.terminal_penalty * q**2, (len(q), nodes)).copy()
    return _integrate(derivative, start, np.linspace(0.0, p.horizon, num_steps + 1)), grid


def continuous_value(params: Params, utility: Literal["mean", "cara"] | None = None, nodes: int = 15) -> float:
    """``v`` at the initial state (currency); under CARA the certainty equivalent of the whole game.

    ``utility`` is that of the parameters by default.

    Raises
    ------
    ArithmeticError
        If four nodes less change it by more than 1e-6: under CARA, close to where the utility is infinite.
    RuntimeError
        If the system could not be integrated.
    """
    at_start = []
    for count in (nodes - 4, nodes):
        values, grid = continuous_values(params, utility, nodes=count)
        row = grid.interpolation(np.array([params.initial_variance]))[0]
        at_start.append(float(values[0, params.limit + params.start] @ row))
    if not abs(at_start[1] - at_start[0]) <= RESOLVED * max(1.0, abs(at_start[1])):
        raise ArithmeticError(
            f"the value is {at_start[0]!r} with {nodes - 4} nodes of the variance and {at_start[1]!r} with {nodes}: "
            "lower risk_aversion, inventory_limit or variance_volatility, or change the number of nodes"
        )
    return at_start[1]


def blind_values(params: Params, num_steps: int | None = None) -> Array:
    """``v(t_n, q)`` of quotes that do not see the variance: the penalty is ``(gamma / 2) E[nu_t] q^2``.

    Shape (num_steps + 1, 2 limit + 1). Under the mean criterion the quotes are the best ones and the value is attained:
    it is a lower bound of the optimum.

    Raises
    ------
    RuntimeError
        If the system could not be integrated.
    """
    p, fills = params, _fills(plain_params(params, params.utility))
    q = np.arange(-p.limit, p.limit + 1) * p.order_size
    flow = p.trend * q - (jump_growth(p, q) / p.risk_aversion if p.utility == "cara" else 0.0)

    def derivative(left: float, values: Array) -> Array:
        variance = p.expected_variance(p.horizon - left)
        return np.asarray(flow - 0.5 * p.risk_aversion * variance * q**2 + fills(values))

    steps = p.num_steps if num_steps is None else num_steps
    return _integrate(derivative, -p.terminal_penalty * q**2, np.linspace(0.0, p.horizon, steps + 1))


def best_depths(params: Params, values: Array) -> Array:
    """Depths (..., S, 2) optimal for values (..., S) of the criterion, by `mmgym.baselines.glft.continuous_depths`."""
    return continuous_depths(plain_params(params, params.utility), values)
