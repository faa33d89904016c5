r"""Exact evaluation of quotes that react to the inventory at once, in continuous time.

The papers' market maker moves her depths the moment an order is filled; the environment's hold them for a whole step.
Here a table of depths ``(N, S, 2)`` gives the quote of every inventory in each of ``N`` equal cells of the horizon, so
inside a cell the inventory is a Markov chain with constant rates ``lambda_bid(q), lambda_ask(q)`` (zero at the bound)
and every expectation solves a linear system with constant coefficients. For the mean ``f`` and the second moment ``m``
of an additive functional that gains ``c(q)`` per unit of time, ``g_side(q)`` per fill, and has price noise of variance
``s(q)^2`` per unit of time,

    -f_t = c + sum_sides lambda (g + f(q +- 1) - f),
    -m_t = s^2 + 2 c f + sum_sides lambda (g^2 + 2 g f(q +- 1) + m(q +- 1) - m),

and ``chi = E[exp(z R)]`` solves

    -chi_t = (z c + z^2 s^2 / 2) chi + sum_sides lambda (exp(z g) chi(q +- 1) - chi)

(where the mid jumps, its whole cumulant stands in the place of ``z^2 s^2 / 2``).

The exponential of each cell's system is summed as a Taylor series, in pieces of norm at most 1: exact to rounding.

Sources: Guéant, Lehalle & Fernandez-Tapia (2013), eqs. (2.1)-(2.3), for the market; the equations are the Kolmogorov
backward equations of its controlled chain.
"""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines import frozen
from mmgym.baselines.frozen import Functional
from mmgym.baselines.glft import kernels
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.baselines.pnl_law import PnlLaw, pnl_law
from mmgym.models.glft import MAX_EVENTS, Params

Array = NDArray[Any]

__all__ = [
    "FeedbackProblem",
    "feedback_certainty_equivalent",
    "feedback_moments",
    "feedback_pnl_law",
    "feedback_problem",
]


class FeedbackProblem(GLFTProblem):
    """The GLFT market where depths follow the inventory inside a step too.

    A `mmgym.baselines.frozen.FrozenProblem` for evaluation: `evaluate`, `moments` and `state_laws` of
    `mmgym.baselines.frozen`, and `mmgym.baselines.pnl_law`, take tables of raw depths (N, S, 2). The best such quotes
    are those of `mmgym.baselines.glft.continuous_depths`.
    """

    def _active_rates(self, depths: Array) -> tuple[Array, Array]:
        """Bid and ask intensities (S,), (S,) of depths (S, 2), zero at the bound (1 / time)."""
        rates = self.intensities(depths)
        rates[-1, 0] = rates[0, 1] = 0.0
        bid, ask = np.ascontiguousarray(rates.T)
        return bid, ask

    def backward(
        self, n: int, states: NDArray[np.int64], controls: Array, values: Array, functional: Functional
    ) -> Array:
        """Values (S, K) at the start of a cell, from those at its end and the depths (S, 2) of all inventories.

        Raises
        ------
        ValueError
            If ``states`` are not all the inventories, in order: a value depends on the depths of all. For second
            moments with the noise of a geometric mid.
        """
        if not np.array_equal(states, np.arange(self.num_states)):
            raise ValueError("states must be all inventories in order: a value depends on the depths of all of them")
        if self.params.price == "geometric" and functional.price and functional.moments == 2:
            raise ValueError("second moments with the noise of price='geometric' are known for frozen depths only")
        bid, ask = self._active_rates(controls)
        gain_bid, gain_ask = (functional.gain * self.params.order_size * controls + functional.fills).T
        leave, coupling = bid + ask, np.empty((0, 3))
        if functional.exponents is not None:
            z = functional.exponents
            stay = self.growth(functional, z) - leave[:, None]
            up = bid[:, None] * np.exp(np.multiply.outer(gain_bid, z))
            down = ask[:, None] * np.exp(np.multiply.outer(gain_ask, z))
            source = np.zeros(values.shape)
        else:
            drift, variance = self._rates(functional)
            stay, up, down = -leave[:, None], bid[:, None], ask[:, None]
            earned_bid, earned_ask = bid * gain_bid, ask * gain_ask
            squares = variance + earned_bid * gain_bid + earned_ask * gain_ask
            source = np.stack([drift + earned_bid + earned_ask, squares][: functional.moments], axis=1)
            if functional.moments == 2:
                coupling = 2.0 * np.stack([drift, earned_bid, earned_ask], axis=1)
        start = np.ascontiguousarray(values)
        return np.asarray(kernels.integrate(self.params.step_length, stay, up, down, coupling, source, start))

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """Law (S,) of the inventory at the end of a cell from the law at its start and the depths (S, 2)."""
        bid, ask = self._active_rates(controls)
        stay, from_above, from_below = -(bid + ask), np.roll(ask, -1), np.roll(bid, 1)
        coupling, source = np.empty((0, 3)), np.zeros((len(law), 1))
        columns = (stay[:, None], from_above[:, None], from_below[:, None])
        moved = kernels.integrate(self.params.step_length, *columns, coupling, source, np.array(law)[:, None])
        return np.asarray(moved[:, 0])

    def improve(self, n: int, values: Array, guess: Array | None = None) -> NoReturn:
        """Not offered.

        Raises
        ------
        TypeError
            Always: the optimum of quotes that react at once is `mmgym.baselines.glft.continuous_values`.
        """
        raise TypeError("quotes that react at once are only evaluated here; their optimum is continuous_values(params)")


def feedback_problem(params: Params, depths: Array) -> FeedbackProblem:
    """The problem on as many cells as a table of depths (N, 2 limit + 1, 2) has rows; ``params.num_steps`` is not used.

    Raises
    ------
    ValueError
        If the table has another shape, depths are not finite, or so low that an order would be filled more than
        `mmgym.models.glft.MAX_EVENTS` times in a cell.
    """
    states = 2 * params.limit + 1
    if np.ndim(depths) != 3 or np.shape(depths)[1:] != (states, 2) or not len(depths):
        raise ValueError(f"depths have shape {np.shape(depths)}: it must be (cells, {states}, 2)")
    if not np.isfinite(depths).all():
        raise ValueError("depths must be finite")
    problem = FeedbackProblem(params._replace(num_steps=len(depths)))
    with np.errstate(over="ignore"):
        fills = float(problem.intensities(depths).max()) * problem.params.step_length
    if fills > MAX_EVENTS:
        raise ValueError(f"depths are too low: {fills:g} fills in a cell, at most {MAX_EVENTS:g} are allowed")
    return problem


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
        As `feedback_problem`.
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
        If ``risk_aversion`` is not positive, or as `feedback_problem`.
    """
    problem = feedback_problem(params._replace(running_penalty=0.0), depths)
    return frozen.certainty_equivalent(problem, depths, Functional(gain=1.0, price=1.0, penalty=1.0), risk_aversion)


def feedback_pnl_law(params: Params, depths: Array) -> PnlLaw:
    """Law of the final P&L ``W_T - W_0`` (currency) under quotes that react at once: density, VaR and CVaR.

    Parameters and errors are those of `feedback_moments`.
    """
    return pnl_law(feedback_problem(params, depths), depths)
