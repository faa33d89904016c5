r"""Exact evaluation of strategies that react at every instant, in continuous time.

The paper's market maker changes quotes and sends market orders the moment a quote is filled or the spread jumps; the
environment's decides once a step. Here a table of controls ``(N, S, 5)`` says what is done in every state (spread,
inventory) in each of ``N`` equal cells of the horizon: quotes and sizes where no market order is sent; otherwise the
order, at once, and another one if the table wants it where that lands. So inside a cell the state is a Markov chain on
the states without market order, and a jump into another state goes on to where the orders land. For the mean ``f`` and
the second moment ``m`` of an additive functional that gains ``c(y)`` per unit of time and ``g`` by a jump (of the
spread or by a fill, at rate ``r``, orders included), with a Brownian part of variance ``s(y)^2`` per unit of time,

    -f_t = c + sum_jumps r (g + f(after) - f),
    -m_t = s^2 + 2 c f + sum_jumps r (g^2 + 2 g f(after) + m(after) - m),

and ``chi = E[exp(z R)]`` solves

    -chi_t = (z c + z^2 s^2 / 2) chi + sum_jumps r (exp(z g) chi(after) - chi).

The exponential of each cell's system is summed as Taylor series over pieces of norm at most 4: exact to rounding.

Source: Guilbaud & Pham (2013), section 2; the equations are the Kolmogorov backward equations of its controlled chain.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines import frozen
from mmgym.baselines.frozen import Functional
from mmgym.baselines.pnl_law import PnlLaw, pnl_law
from mmgym.baselines.tick_spread import continuous_kernels as kernels
from mmgym.baselines.tick_spread.one_step import TickSpreadProblem
from mmgym.models.tick_spread import Params

Array = NDArray[Any]
Integers = NDArray[np.int64]

__all__ = [
    "FeedbackProblem",
    "feedback_certainty_equivalent",
    "feedback_moments",
    "feedback_pnl_law",
    "feedback_problem",
]


@dataclass(frozen=True)
class _Chain:
    """The Markov chain of a cell: bid and ask fills (2, S), and where market orders land (S,) and what they cost."""

    rates: Array
    targets: Integers
    sizes: Integers
    edges: Array
    landing: Integers
    order_costs: Array
    orders: Integers


class FeedbackProblem(TickSpreadProblem):
    """The tick-spread market where quotes and market orders follow the state inside a step too.

    A `mmgym.baselines.frozen.FrozenProblem` for evaluation: `evaluate`, `moments` and `state_laws` of
    `mmgym.baselines.frozen`, and `mmgym.baselines.pnl_law`, take tables of controls (N, S, 5), sizes in shares. The
    best such controls are those of `mmgym.baselines.tick_spread.continuous_controls`.
    """

    def _chain(self, controls: Array) -> _Chain:
        p, states = self.params, np.arange(self.num_states)
        postings, order, after = self.admitted(states, np.asarray(controls, dtype=np.float64))
        postings[order != 0, 2:] = 0
        sizes = np.ascontiguousarray(postings[:, 2:].T)
        quotes = (postings[:, :2].T, self.spread)
        rates = np.stack([table[quotes[0][side], self.spread] for side, table in enumerate((p.bid_rates, p.ask_rates))])
        cost = self._order_costs(states, order)
        landing, total, orders = states, np.zeros(self.num_states), np.zeros(self.num_states, dtype=np.int64)
        for _ in range(self.count + 1):
            if not order[landing].any():
                break
            total, orders = total + cost[landing], orders + (order[landing] != 0)
            landing = after[landing]
        else:
            raise ValueError("controls are not allowed: market orders would follow each other for ever")
        targets = np.stack([states + sizes[0], states - sizes[1]])
        return _Chain(rates * (sizes > 0), targets, sizes, p.edges[quotes], landing, total, orders)

    def backward(self, n: int, states: Integers, controls: Array, values: Array, functional: Functional) -> Array:
        """Values (S, K) at the start of a cell, from those at its end and the controls (S, 5) of all states.

        Raises
        ------
        ValueError
            If ``states`` are not all states in order, as a value depends on the controls of all; or if market orders
            would follow each other for ever.
        """
        if not np.array_equal(states, np.arange(self.num_states)):
            raise ValueError("states must be all states in order: a value depends on the controls of all of them")
        chain = self._chain(controls)
        gains = functional.gain * chain.sizes * chain.edges + functional.fills * (chain.sizes > 0)
        order_gains = functional.orders * chain.orders - functional.gain * chain.order_costs
        jumps = (self.transitions, chain.rates, chain.targets, gains, chain.landing, order_gains)
        flow = self._rates(functional)
        values = np.ascontiguousarray(values)
        for clock, length in self.steps(n)[::-1]:
            if functional.exponents is None:
                values = kernels.feedback_moments(length, clock, *jumps, *flow, values)
            else:
                exponents = functional.exponents.astype(values.dtype)
                values = kernels.feedback_exponential(length, clock, *jumps, *flow, exponents, values)
        return values

    def backward_without_inventory(
        self, n: int, states: Integers, controls: Array, values: Array, functional: Functional
    ) -> Array:
        """0, a lower bound: fills that a market order undoes at once give such paths many gains."""
        return np.zeros((len(states), values.shape[1]), dtype=values.dtype)

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """Law (S,) of the state at the end of a cell from the law at its start and the controls (S, 5)."""
        chain = self._chain(controls)
        after = np.bincount(chain.landing, weights=law, minlength=self.num_states)
        for clock, length in self.steps(n):
            after = kernels.feedback_law(
                length, clock, self.transitions, chain.rates, chain.targets, chain.landing, after
            )
        return np.asarray(after)

    def improve(self, n: int, values: Array, guess: Array | None = None) -> NoReturn:
        """Not offered.

        Raises
        ------
        TypeError
            Always: the optimum of controls that react at once is `mmgym.baselines.tick_spread.continuous_values`.
        """
        raise TypeError(
            "controls that react at once are only evaluated here; their optimum is continuous_values(params)"
        )


def feedback_problem(params: Params, controls: Array) -> FeedbackProblem:
    """The problem on as many cells as a table of controls (N, S, 5) has; ``params.num_steps`` is not used.

    Raises
    ------
    ValueError
        If the table has another shape, or a control is not allowed: quotes are 0 or 1, sizes whole lots within the
        market's bounds.
    """
    states = params.num_spreads * (2 * params.limit + 1)
    if np.ndim(controls) != 3 or np.shape(controls)[1:] != (states, 5) or not len(controls):
        raise ValueError(f"controls have shape {np.shape(controls)}: it must be (cells, {states}, 5)")
    table = np.asarray(controls)
    bounds = (1.0, 1.0, params.limit_order_max, params.limit_order_max, params.market_order_max)
    units = (1.0, 1.0, params.lot, params.lot, params.lot)
    for k, name in enumerate(("bid quotes", "ask quotes", "bid sizes", "ask sizes", "market orders")):
        entries, low = table[..., k], -bounds[4] if k == 4 else 0.0
        with np.errstate(invalid="ignore"):
            whole = np.abs(entries / units[k] - np.rint(entries / units[k])) < 1e-9
        if not (whole & (entries >= low) & (entries <= bounds[k])).all():
            raise ValueError(
                f"{name} of the controls are not allowed: they must be multiples of {units[k]:g} from {low:g} to "
                f"{bounds[k]:g}"
            )
    return FeedbackProblem(params._replace(num_steps=len(table)))


def feedback_moments(params: Params, controls: Array, functional: Functional = frozen.PNL) -> tuple[float, float]:
    """Mean and standard deviation of a functional under controls that react at once.

    Parameters
    ----------
    params : Params
        The market.
    controls : (N, S, 5)
        ``[bid improved, ask improved, bid size, ask size, market order]`` (shares) of every state in each of N equal
        cells of the horizon.
    functional : Functional
        What is summed; the gain in wealth ``L_T - W_0`` by default. Its weights ``gain=1, penalty=1`` give the mean
        criterion.

    Raises
    ------
    ValueError
        As `feedback_problem`, or if market orders would follow each other for ever.
    """
    return frozen.moments(feedback_problem(params, controls), controls, functional)


def feedback_certainty_equivalent(params: Params, controls: Array, risk_aversion: float) -> float:
    """``-ln E[exp(-eta (L_T - W_0))] / eta`` under controls that react at once (euro).

    Parameters
    ----------
    params : Params
        The market; its running penalty, utility and risk aversion play no role.
    controls : (N, S, 5)
        As for `feedback_moments`.
    risk_aversion : float
        ``eta > 0`` (1 / euro).

    Raises
    ------
    ValueError
        If ``risk_aversion`` is not positive, or as `feedback_moments`.
    """
    problem = feedback_problem(params, controls)
    return frozen.certainty_equivalent(problem, controls, Functional(gain=1.0, price=1.0), risk_aversion)


def feedback_pnl_law(params: Params, controls: Array) -> PnlLaw:
    """Law of the gain in wealth ``L_T - W_0`` (euro) under controls that react at once: density, VaR and CVaR.

    Parameters and errors are those of `feedback_moments`.
    """
    return pnl_law(feedback_problem(params, controls), controls)
