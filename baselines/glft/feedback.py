r"""Exact evaluation of quotes that react to the inventory at once, in continuous time.

The papers' market maker moves her depths the moment an order is filled; the environment's hold them for a whole step.
Here a table of depths ``(N, S, 2)`` gives the quote of every inventory in each of ``N`` equal cells of the horizon, so
inside a cell the inventory is a Markov chain with constant rates ``lambda_bid(q), lambda_ask(q)`` (zero at the bound)
and every expectation solves a linear system with constant coefficients. For the mean ``f`` and the second moment ``m``
of an additive functional that gains ``c(q)`` per unit of time, ``g_side(q)`` per fill, and has Brownian variance
``s(q)^2`` per unit of time,

    -f_t = c + sum_sides lambda (g + f(q +- 1) - f),
    -m_t = s^2 + 2 c f + sum_sides lambda (g^2 + 2 g f(q +- 1) + m(q +- 1) - m),

and ``chi = E[exp(z R)]`` solves

    -chi_t = (z c + z^2 s^2 / 2) chi + sum_sides lambda (exp(z g) chi(q +- 1) - chi).

The exponential of each cell's system is applied by its Taylor series, in pieces of norm at most 1: exact to rounding.

Sources: Guéant, Lehalle & Fernandez-Tapia (2013), eqs. (2.1)-(2.3), for the market; the equations are the Kolmogorov
backward equations of its controlled chain.
"""

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from baselines import frozen
from baselines.frozen import Functional, PnlLaw
from baselines.glft.problem import GLFTProblem
from mmgym.models.glft import Params

Array = NDArray[Any]

__all__ = [
    "FeedbackProblem",
    "feedback_certainty_equivalent",
    "feedback_moments",
    "feedback_pnl_law",
    "feedback_problem",
]

TAYLOR_TERMS = 20  # of an exponential of norm at most 1: the rest is below 1 / 21! = 2e-20


def _tridiagonal(diagonal: Array, up: Array, down: Array) -> Array:
    """Matrices (..., S, S) whose row ``q`` has ``down, diagonal, up`` of shape (..., S); beyond the bounds nothing."""
    index = np.arange(diagonal.shape[-1])
    matrix = np.zeros((*diagonal.shape, len(index)), dtype=diagonal.dtype)
    matrix[..., index, index] = diagonal
    matrix[..., index[:-1], index[1:]] = up[..., :-1]
    matrix[..., index[1:], index[:-1]] = down[..., 1:]
    return matrix


def _apply_exponential(matrix: Array, vector: Array, length: float, norm: float) -> Array:
    """``exp(length * matrix) @ vector``, where ``norm`` bounds the matrix up to a change of units."""
    pieces = max(1, math.ceil(length * norm))
    step = matrix * (length / pieces)
    for _ in range(pieces):
        term = vector
        for j in range(1, TAYLOR_TERMS + 1):
            term = step @ term / j
            vector = vector + term
    return vector


class FeedbackProblem(GLFTProblem):
    """The GLFT market where depths follow the inventory inside a step too.

    A `baselines.frozen.FrozenProblem` for evaluation: `evaluate`, `moments`, `pnl_law` and `state_laws` of
    `baselines.frozen` take tables of raw depths (N, S, 2). The best such quotes are those of
    `baselines.glft.continuous_depths`.
    """

    def _active_rates(self, depths: Array) -> tuple[Array, Array]:
        """Bid and ask intensities (S,), (S,) of depths (S, 2), zero at the bound (1 / time)."""
        rates = self.intensities(depths)
        rates[-1, 0] = rates[0, 1] = 0.0
        return rates[:, 0], rates[:, 1]

    def backward(
        self, n: int, states: NDArray[np.int64], controls: Array, values: Array, functional: Functional
    ) -> Array:
        """Values (S, K) at the start of a cell, from those at its end and the depths (S, 2) of all inventories.

        Raises
        ------
        ValueError
            If ``states`` are not all the inventories, in order: a value depends on the depths of all.
        """
        if not np.array_equal(states, np.arange(self.num_states)):
            raise ValueError("states must be all inventories in order: a value depends on the depths of all of them")
        length, size = self.params.step_length, self.num_states
        bid, ask = self._active_rates(controls)
        leave = bid + ask
        gain_bid, gain_ask = (functional.gain * self.params.order_size * controls + functional.fills).T
        drift, variance = self._rates(functional)

        if functional.exponents is not None:
            z = functional.exponents[:, None]
            up, down = bid * np.exp(z * gain_bid), ask * np.exp(z * gain_ask)
            stay = z * drift + 0.5 * z**2 * variance - leave
            norm = float((np.abs(stay) + np.abs(up) + np.abs(down)).max())
            columns = values.T[:, :, None]
            return _apply_exponential(_tridiagonal(stay, up, down), columns, length, norm)[:, :, 0].T

        # Columns and rows: the constant 1, f at every inventory, m at every inventory.
        mean, square = slice(1, 1 + size), slice(1 + size, 1 + 2 * size)
        matrix = np.zeros((1 + values.shape[1] * size,) * 2)
        matrix[mean, 0] = drift + bid * gain_bid + ask * gain_ask
        matrix[mean, mean] = generator = _tridiagonal(-leave, bid, ask)
        if values.shape[1] == 2:
            matrix[square, 0] = variance + bid * gain_bid**2 + ask * gain_ask**2
            matrix[square, mean] = 2.0 * _tridiagonal(drift, bid * gain_bid, ask * gain_ask)
            matrix[square, square] = generator
        vector = np.concatenate([[1.0], values.T.ravel()])
        found = _apply_exponential(matrix, vector, length, 2.0 * float(leave.max()))
        return found[1:].reshape(-1, size).T

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """Law (S,) of the inventory at the end of a cell from the law at its start and the depths (S, 2)."""
        bid, ask = self._active_rates(controls)
        generator = _tridiagonal(-bid - ask, bid, ask)
        return _apply_exponential(generator.T, law, self.params.step_length, 2.0 * float((bid + ask).max()))

    def improve(self, n: int, values: Array) -> NoReturn:
        """Not offered.

        Raises
        ------
        TypeError
            Always: the optimum of quotes that react at once is `baselines.glft.continuous_values`.
        """
        raise TypeError("quotes that react at once are only evaluated here; their optimum is continuous_values(params)")


def feedback_problem(params: Params, depths: Array) -> FeedbackProblem:
    """The problem on as many cells as a table of depths (N, 2 limit + 1, 2) has rows; ``params.num_steps`` is not used.

    Raises
    ------
    ValueError
        If the table has another shape, or depths are not finite.
    """
    states = 2 * params.limit + 1
    if np.ndim(depths) != 3 or np.shape(depths)[1:] != (states, 2) or not len(depths):
        raise ValueError(f"depths have shape {np.shape(depths)}: it must be (cells, {states}, 2)")
    if not np.isfinite(depths).all():
        raise ValueError("depths must be finite")
    return FeedbackProblem(params._replace(num_steps=len(depths)))


def feedback_moments(params: Params, depths: Array, functional: Functional = frozen.PNL) -> tuple[float, float]:
    """Mean and standard deviation of a functional under quotes that react to the inventory at once.

    Parameters
    ----------
    params : Params
        The market; the depth box plays no role.
    depths : (N, S, 2)
        Bid and ask depths (price) of every inventory in each of N equal cells of the horizon.
    functional : Functional
        What is summed; the P&L ``W_T - W_0`` by default. Its weights ``gain=1, penalty=1`` give the mean criterion.

    Raises
    ------
    ValueError
        If the table has the wrong shape, or depths are not finite.
    """
    return frozen.moments(feedback_problem(params, depths), depths, functional)


def feedback_certainty_equivalent(params: Params, depths: Array, risk_aversion: float) -> float:
    """``-ln E[exp(-gamma (W_T - W_0 - alpha q_T^2))] / gamma`` under quotes that react at once (currency).

    Parameters
    ----------
    params : Params
        The market; its running penalty, utility and risk aversion play no role.
    depths : (N, S, 2)
        As for `feedback_moments` (price).
    risk_aversion : float
        ``gamma > 0`` (1 / currency).

    Raises
    ------
    ValueError
        If ``risk_aversion`` is not positive, the table has the wrong shape, or depths are not finite.
    """
    if not 0.0 < risk_aversion < math.inf:
        raise ValueError(f"risk_aversion = {risk_aversion!r} is not allowed: it must be a finite number > 0")
    problem = feedback_problem(params._replace(running_penalty=0.0), depths)
    functional = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([-risk_aversion]))
    values, log_scale = frozen.evaluate(problem, depths, functional)
    return -float(np.log(problem.initial @ values[0, :, 0]) + log_scale[0]) / risk_aversion


def feedback_pnl_law(params: Params, depths: Array) -> PnlLaw:
    """Law of the final P&L ``W_T - W_0`` (currency) under quotes that react at once: density, VaR and CVaR.

    Parameters and errors are those of `feedback_moments`.
    """
    return frozen.pnl_law(feedback_problem(params, depths), depths)
