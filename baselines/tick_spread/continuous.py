r"""The continuous-time optimum of the tick-spread market: its quasi-variational inequality.

Quotes react at every instant and market orders are sent at any. Mean criterion: ``v_i = x + y p + phi_i(t, y)`` (3.8),

    min{ -d_t phi_i - sum_j r_ij (phi_j - phi_i) + c y^2
         - sup_(q, l) lambda_bid_i(q) [phi_i(y + l) - phi_i(y) + h_i(q) l]
         - sup_(q, l) lambda_ask_i(q) [phi_i(y - l) - phi_i(y) + h_i(q) l] ;
         phi_i(y) - sup_e [phi_i(y + e) - |e| (i d / 2 + fee) - fixed_fee] } = 0,
    phi_i(T, y) = -|y| (i d / 2 + fee) - fixed_fee 1{y != 0},

with ``r_ij = lambda(t) rho_ij``. CARA: ``v_i = -exp(-eta (x + y p)) phi_i`` (3.10), the same with ``inf``, the factors
``exp(-eta h l)`` and ``exp(eta cost)`` in place of the summands, and ``-sigma^2 eta^2 y^2 / 2 phi`` in place of
``c y^2``. Here values are ``phi`` or ``-ln(phi) / eta`` (euro). Sizes are whole lots; near the bound a side offers what
room is left, and nothing where there is none.

The scheme is explicit, ``phi(t) = M[phi(t + dt) + dt (...)]`` with ``M`` the best of any number of market orders, and
monotone where ``dt (lambda + lambda_bid + lambda_ask) <= 1``. Its error is of first order in ``dt``: values are
``2 phi(dt / 4) - phi(dt / 2)``, and how much that differs from ``2 phi(dt / 2) - phi(dt)`` is the stated accuracy.
The order region moves by whole lots, so the differences do not shrink regularly; the stated accuracy is an estimate.

Source: Guilbaud & Pham (2013), section 3.3.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.tick_spread import continuous_kernels as kernels
from mmgym.models.tick_spread import Params

Array = NDArray[Any]

__all__ = [
    "ContinuousSolution",
    "continuous_controls",
    "continuous_solution",
    "continuous_values",
    "scheme",
    "splitting",
    "stable_step",
]

MARGIN = 0.4  # of the longest stable step


@dataclass(frozen=True)
class ContinuousSolution:
    """The continuous-time optimum at the times ``n T / N``; states are ``spread * (2 limit + 1) + lots + limit``.

    Attributes
    ----------
    values : (N + 1, S)
        What can still be reached (euro; a certainty equivalent under CARA).
    errors : (N + 1, S)
        Estimate of their absolute error (euro).
    controls : (N, S, 5)
        Best controls ``[bid improved, ask improved, bid size, ask size, market order]``, sizes in shares. The market
        order is the first of those that follow each other at that instant, and the quotes are those for the inventory
        after it. Of equal choices it is the simplest: no market order, no limit order, the best quote, small sizes.
    """

    values: Array
    errors: Array
    controls: Array


def stable_step(params: Params) -> float:
    """Longest step for which the scheme is monotone (s): ``1 / (lambda + lambda_bid + lambda_ask)``, all at most."""
    fastest = max(params.clock_rates) + float((params.bid_rates.max(axis=0) + params.ask_rates.max(axis=0)).max())
    return 1.0 / fastest if fastest > 0.0 else math.inf


def mean_clock(params: Params, times: Array) -> Array:
    """Mean rate of the clock between consecutive ``times`` (1 / s)."""
    starts, rates = np.array(params.clock_starts), np.array(params.clock_rates)
    knots = np.append(starts, max(float(times[-1]), float(starts[-1])) + 1.0)
    ticks = np.append(0.0, np.cumsum(rates * np.diff(knots)))
    return np.asarray(np.diff(np.interp(times, knots, ticks)) / np.diff(times))


class _Scheme:
    """The inequality in the kernels' terms: one maximisation, of ``phi`` or of ``-phi``, in lots."""

    def __init__(self, params: Params) -> None:
        p = self.params = params
        self.eta = eta = p.risk_aversion if p.utility == "cara" else 0.0
        self.lots = np.arange(-p.limit, p.limit + 1)
        sizes = np.arange(p.size_max + 1)
        earned = np.multiply.outer(p.edges.T, sizes)  # (m, 2, sizes + 1)
        crossing = np.multiply.outer(p.crossing_costs, self.lots)  # (m, Y)
        inventory = p.lot * self.lots.astype(np.float64)
        liquidation = np.abs(crossing) + p.fixed_fee * (self.lots != 0)
        one, nothing = np.ones_like(crossing), np.zeros_like(crossing)
        if eta:
            with np.errstate(over="ignore"):
                self.last = -np.exp(eta * liquidation)
                self.orders = (np.exp(-eta * crossing), nothing, np.exp(eta * (crossing + p.fixed_fee)), nothing)
            self.factors, self.addends = np.exp(-eta * earned), np.zeros_like(earned)
            self.growth = 0.5 * (p.volatility * eta * inventory) ** 2
            self.source, self.floor = np.zeros(len(inventory)), 0.0
        else:
            self.last = -liquidation
            self.factors, self.addends = np.ones_like(earned), earned
            self.growth, self.source = np.zeros(len(inventory)), -p.running_penalty * inventory**2
            self.orders = (one, crossing, one, -crossing - p.fixed_fee)
            self.floor = 10.0 * kernels.TIE * float(p.crossing_costs.max())

    def values(self, w: Array, log_scale: float) -> Array:
        """Values in euro, flat, of the kernels' ones.

        Raises
        ------
        ValueError
            If they leave the range of floating point.
        """
        if not self.eta:
            return w.ravel()
        if not (np.isfinite(w).all() and w.max() < -1e-300):
            raise ValueError(
                "the exponential criterion leaves the range of floating point: risk_aversion is too large for what the "
                "inventories of this market can lose; lower risk_aversion or inventory_limit"
            )
        return np.asarray(-(np.log(-w.ravel()) + log_scale) / self.eta)

    def march(self, step: float, clock: Array, block: int, w: Array, choices: Array) -> float:
        """`continuous_kernels.march` in this market, with market orders of at most ``block`` lots."""
        p = self.params
        market = (np.array(p.spread_transitions), p.bid_rates, p.ask_rates)
        value = (self.factors, self.addends, self.growth, self.source)
        log_scale: float = kernels.march(
            step, clock, *market, *value, block, *self.orders, self.floor, bool(self.eta), w, choices
        )
        return log_scale

    def after_one_order(self, w: Array) -> tuple[Array, Array]:
        """Best value (m, Y) of exactly one market order, and its size in lots (negative: sold), a small one."""
        scale, shift, back, cost = self.orders
        best, size = np.full_like(w, -1e300), np.zeros(w.shape, dtype=np.int64)  # where none fits
        for sign, values in ((-1, w), (1, w[:, ::-1])):  # a purchase is a sale with the inventory mirrored
            key = values * scale + shift
            for lots in range(1, min(self.params.order_max, w.shape[1] - 1) + 1):
                traded = np.full_like(w, -np.inf)
                traded[:, lots:] = key[:, :-lots] * back[:, lots:] + cost[:, lots:]
                traded = traded[:, ::-sign]
                better = traded > best + kernels.TIE * np.abs(best) + self.floor
                best[better], size[better] = traded[better], sign * lots
        return best, size

    def controls(self, choices: Array) -> Array:
        """Controls (m, Y, 5) in shares of the kernels' choices."""
        p, columns = self.params, np.arange(len(self.lots))
        order = np.clip(choices[..., 4] - columns, -p.order_max, p.order_max)
        posting = np.take_along_axis(choices[..., :4], (columns + order)[..., None], axis=1)
        lots = np.concatenate([posting, order[..., None]], axis=-1)
        return np.asarray(lots * np.array([1.0, 1.0, p.lot, p.lot, p.lot]))


def scheme(params: Params, num_steps: int, substeps: int, *, with_controls: bool = True) -> tuple[Array, Array | None]:
    """The explicit scheme at one step, ``horizon / (num_steps * substeps)``, without extrapolation.

    Parameters
    ----------
    params : Params
    num_steps : int
        Times at which values and controls are wanted: ``n T / num_steps``.
    substeps : int
        Steps of the scheme between them.
    with_controls : bool

    Returns
    -------
    values : (num_steps + 1, S)
        Euro; certainty equivalents under CARA.
    controls : (num_steps, S, 5) or None
        As in `ContinuousSolution`: those of the scheme's step that starts at each time.

    Raises
    ------
    ValueError
        If the step is so long that the scheme is not monotone, or values leave the range of floating point.
    """
    step = params.horizon / (num_steps * substeps)
    if step > stable_step(params):
        raise ValueError(
            f"a step of {step:g} s is too long for the scheme: at most {stable_step(params):g} s; raise substeps"
        )
    problem = _Scheme(params)
    states = problem.last.size
    clock = mean_clock(params, np.linspace(0.0, params.horizon, num_steps * substeps + 1)).reshape(num_steps, substeps)
    w, log_scale = problem.last.copy(), 0.0
    choices = np.zeros((*w.shape, 5), dtype=np.int64)
    values = np.empty((num_steps + 1, states))
    controls = np.empty((num_steps, states, 5)) if with_controls else None
    values[num_steps] = problem.values(w, 0.0)
    for n in reversed(range(num_steps)):
        log_scale += problem.march(step, clock[n], params.order_max, w, choices)
        values[n] = problem.values(w, log_scale)
        if controls is not None:
            controls[n] = problem.controls(choices).reshape(states, 5)
    return values, controls


def splitting(params: Params, num_steps: int) -> Array:
    """Controls of the explicit backward splitting ``phi(t) = max(T phi(t + dt), M phi(t + dt))``, mean criterion.

    ``T`` is a step of `scheme` without market orders and ``M`` one market order, against the value a step later: who
    sends an order forgoes what the step would earn, so orders are rarer and larger than in the limit of short steps.
    This is how the abstract of Guilbaud & Pham (2013) describes their scheme.

    Parameters
    ----------
    params : Params
    num_steps : int
        Steps of equal length ``dt`` in the horizon.

    Returns
    -------
    (num_steps, S, 5)
        As `ContinuousSolution.controls`, but for one market order an instant.

    Raises
    ------
    ValueError
        If ``dt`` is so long that ``T`` is not monotone, or the criterion is not the mean.
    """
    step = params.horizon / num_steps
    if params.utility != "mean":
        raise ValueError(f"utility = {params.utility!r} is not allowed: the splitting is for the mean criterion")
    if step > stable_step(params):
        raise ValueError(f"a step of {step:g} s is too long: at most {stable_step(params):g} s; raise num_steps")
    problem = _Scheme(params)
    clock = mean_clock(params, np.linspace(0.0, params.horizon, num_steps + 1))
    w = problem.last.copy()
    choices = np.zeros((*w.shape, 5), dtype=np.int64)
    controls = np.empty((num_steps, w.size, 5))
    for n in reversed(range(num_steps)):
        ordered, size = problem.after_one_order(w)
        problem.march(step, clock[n : n + 1], 0, w, choices)
        sent = ordered > w + kernels.TIE * np.abs(w) + problem.floor
        choices[..., 4] = np.arange(w.shape[1]) + sent * size
        controls[n] = problem.controls(choices).reshape(w.size, 5)
        w[sent] = ordered[sent]
    return controls


def continuous_solution(
    params: Params, num_steps: int | None = None, *, time_step: float | None = None
) -> ContinuousSolution:
    """The continuous-time optimum, extrapolated to a scheme without time step.

    Parameters
    ----------
    params : Params
        Without market orders where ``market_order_max`` is 0.
    num_steps : int, optional
        Values and controls are given at ``n T / num_steps``; the environment's steps by default.
    time_step : float, optional
        Longest step of the coarsest of the three schemes (s); 0.4 of the longest stable one by default.

    Raises
    ------
    ValueError
        If ``time_step`` is not positive or the scheme would not be monotone, or under CARA the values leave the range
        of floating point.
    """
    steps = params.num_steps if num_steps is None else num_steps
    longest = MARGIN * stable_step(params) if time_step is None else time_step
    if not 0.0 < longest <= stable_step(params):
        raise ValueError(
            f"time_step = {time_step!r} is not allowed: it must be > 0 and at most {stable_step(params):g} s"
        )
    substeps = max(1, math.ceil(params.horizon / steps / longest * (1.0 - 1e-12)))
    coarse, _ = scheme(params, steps, substeps, with_controls=False)
    middle, _ = scheme(params, steps, 2 * substeps, with_controls=False)
    fine, controls = scheme(params, steps, 4 * substeps)
    assert controls is not None
    values = 2.0 * fine - middle
    return ContinuousSolution(values, np.abs(values - (2.0 * middle - coarse)), controls)


def continuous_values(params: Params, num_steps: int | None = None, *, time_step: float | None = None) -> Array:
    """`ContinuousSolution.values` of `continuous_solution`: what can be reached from each time and state (euro)."""
    return continuous_solution(params, num_steps, time_step=time_step).values


def continuous_controls(params: Params, num_steps: int | None = None, *, time_step: float | None = None) -> Array:
    """`ContinuousSolution.controls`: the continuous-time optimum at the start of each step, to be played in steps."""
    return continuous_solution(params, num_steps, time_step=time_step).controls
