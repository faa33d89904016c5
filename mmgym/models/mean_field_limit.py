r"""The mean-field game in continuous time: HJB, forward equation and their fixed point.

With ``H(D) = max_{|d| <= d_inf} A^m exp(-k d) (z d + D)`` and the drift ``m`` that the crowd gives to the price,

    -dW/dt = (b + m) q - gamma sigma^2 q^2 + (signal jumps)
             + 1{q < L} H(W(q + z) - W(q)) + 1{q > -L} H(W(q - z) - W(q)),
    dp/dt = (the law under the best quotes ``d = clip(1 / k - D / z)``),        m = kappa d/dt sum q p,

from ``W(T) = 0`` and ``p(0) = P_0`` (Baldacci, Bergault & Possamai, system (4.6), corrected). The fixed point is one
curve ``m``. The market-maker faces ``m`` and the takers' mean quotes, and nobody faces her.

Times lie on a graded grid with Runge-Kutta steps of order 4; the grid is refined until the values settle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, gmres

from mmgym.models import mean_field_ode as ode
from mmgym.models.mean_field_game import Game

__all__ = [
    "ContinuousFlow",
    "Equilibrium",
    "Feedback",
    "NotConverged",
    "boundary_means",
    "constant_feedback",
    "euler_equilibrium",
    "evaluate_maker",
    "evaluate_taker",
    "feedback_of_quotes",
    "fixed_point",
    "induced_flow",
    "maker_factors",
    "maker_optimum",
    "solve_equilibrium",
    "taker_optimum",
    "time_grid",
]

Array = NDArray[np.float64]

COARSE, FINEST = 1_000, 16_000  # intervals of the first grid and of the last
NEWTON_STEPS = 30


class NotConverged(RuntimeError):  # noqa: N818  # the public name
    """A fixed point was not found: no equilibrium is returned."""


class Feedback(NamedTuple):
    """A policy in continuous time, on ``2 n + 1`` times or constant (one row): arrays (K, B, Q, 2) for bid and ask."""

    hits: Array  # E[exp(-decay d)]
    earned: Array  # E[d exp(-decay d)]
    quotes: Array  # E[d]


class ContinuousFlow(NamedTuple):
    """What the takers' crowd does, on ``2 n + 1`` times."""

    times: Array  # (n + 1,)
    drift: Array  # m, (2 n + 1,)
    laws: Array  # (2 n + 1, B, Q)
    mean_quotes: Array  # [bid, ask], (2 n + 1, 2); 0 where nobody quotes
    quoting: Array  # mass of the takers who quote on each side, (2 n + 1, 2)


@dataclass(frozen=True)
class Equilibrium:
    """A solution of the game in continuous time.

    Attributes
    ----------
    flow : ContinuousFlow
    taker_values, maker_values : (n + 1, B, Q), (n + 1, Q)
        ``W^m`` and ``W`` at the nodes ``flow.times``.
    taker_quotes, maker_quotes : (2 n + 1, B, Q, 2), (2 n + 1, Q, 2)
        Best depths.
    residual : float
        ``int |Phi(m) - m| dt`` times the inventory limit (price * assets): what the fixed point is missed by.
    iterations : int
        Evaluations of the map on all grids.
    error : float
        Estimate of the error of time stepping, relative: the change by the last refinement, divided by 15.
    """

    flow: ContinuousFlow
    taker_values: Array
    maker_values: Array
    taker_quotes: Array
    maker_quotes: Array
    residual: float
    iterations: int
    error: float

    @property
    def taker_value(self) -> float:
        """``sum P_0 W^m(0)``."""
        return float((self.flow.laws[0] * self.taker_values[0]).sum())

    @property
    def maker_value(self) -> float:
        """``W(0, 0)``."""
        return float(self.maker_values[0, self.maker_values.shape[1] // 2])


def time_grid(game: Game, intervals: int) -> Array:
    """A grid of [0, T], shape (n + 1,), fine near 0, where an impatient crowd moves at once, and near T."""
    x = np.linspace(0.0, game.horizon, 4001)
    scale = game.horizon / 50.0
    density = 1.0 + 9.0 * np.exp(-x / scale) + 2.0 * np.exp(-(game.horizon - x) / scale)
    total = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    times = np.interp(np.linspace(0.0, total[-1], intervals + 1), total, x)
    times[0], times[-1] = 0.0, game.horizon
    return times


def curve_times(times: Array) -> Array:
    """Nodes and middles of the intervals, shape (2 n + 1,)."""
    found = np.empty(2 * len(times) - 1)
    found[::2], found[1::2] = times, 0.5 * (times[1:] + times[:-1])
    return found


def curve_weights(times: Array) -> Array:
    """Simpson weights on `curve_times`."""
    weights, h = np.zeros(2 * len(times) - 1), np.diff(times)
    weights[1::2] = 4.0 * h / 6.0
    weights[:-1:2] += h / 6.0
    weights[2::2] += h / 6.0
    return weights


def feedback_of_quotes(quotes: Array, decay: float, weights: Array | None = None) -> Feedback:
    """The feedback of depths (K, B, Q, 2), or of depths (K, B, Q, M, 2) drawn with weights (K, B, Q, M)."""
    hits = np.exp(-decay * quotes)
    if weights is None:
        return Feedback(hits, quotes * hits, quotes)
    mass = weights[..., None]
    return Feedback(*(np.ascontiguousarray((mass * part).sum(axis=-2)) for part in (hits, quotes * hits, quotes)))


def constant_feedback(depth: float, decay: float, shape: tuple[int, ...]) -> Feedback:
    """The same depth on both sides, always and everywhere."""
    return feedback_of_quotes(np.full((1, *shape, 2), depth), decay)


def boundary_means(game: Game, law: Array, quotes: Array) -> tuple[Array, Array]:
    """Mean quotes ``[bid, ask]`` of a crowd and the mass that quotes on each side, shape (..., 2) each.

    Parameters
    ----------
    law, quotes : (..., B, Q), (..., B, Q, 2)

    Notes
    -----
    A taker at the upper (lower) inventory bound has no bid (ask). With ``boundary_quotes="quoting"`` the mean is over
    those who quote; with "zero" and "risk_neutral" it is over all, with 0 or ``1 / taker_fill_decay`` for the others.
    """
    total = law.sum(axis=(-2, -1))
    means, masses = [], []
    for side, inside in ((0, slice(None, -1)), (1, slice(1, None))):
        mass = law[..., inside].sum(axis=(-2, -1)) / total
        found = (law[..., inside] * quotes[..., inside, side]).sum(axis=(-2, -1)) / total
        if game.boundary_quotes == "quoting":
            found = np.divide(found, mass, out=np.zeros_like(mass), where=mass > 0.0)
        elif game.boundary_quotes == "risk_neutral":
            found = found + (1.0 - mass) / game.taker_fill_decay
        means.append(found)
        masses.append(mass)
    return np.stack(means, axis=-1), np.stack(masses, axis=-1)


def _taker_factors(game: Game) -> Array:
    return np.full((1, 2), game.taker_fill_rate)


def maker_factors(game: Game, mean_quotes: Array, quoting: Array) -> Array:
    """The maker's fill rates ``[bid, ask]`` at depth 0 (1 / time): her bids meet the takers' asks; 0 without them."""
    rates = game.maker_fill_rate * np.exp(-game.maker_fill_decay * mean_quotes)
    if game.boundary_quotes == "quoting":
        rates = np.where(quoting > 0.0, rates, 0.0)
    return np.ascontiguousarray(rates[..., ::-1])


def taker_optimum(game: Game, times: Array, drift: Array, euler: bool = False) -> tuple[Array, Array]:
    """``W^m`` at the nodes, shape (n + 1, B, Q), and best depths (2 n + 1, B, Q, 2), of one taker under a drift."""
    values = np.empty((len(times), *game.shape))
    slopes = np.empty_like(values)
    box = (game.order_size, game.taker_fill_decay)
    place = (game.jumps, game.signal, game.inventory)
    ode.hjb(times, drift, _taker_factors(game), *place, *box, game.taker_penalty, game.max_depth, euler, values, slopes)
    quotes = np.empty((len(drift), *game.shape, 2))
    ode.best_quotes(times, values, slopes, *box, game.max_depth, quotes)
    return values, quotes


def maker_optimum(game: Game, flow: ContinuousFlow, euler: bool = False) -> tuple[Array, Array]:
    """``W`` at the nodes, shape (n + 1, Q), and best depths (2 n + 1, Q, 2), of the maker against a crowd."""
    values = np.empty((len(flow.times), 1, game.shape[1]))
    slopes = np.empty_like(values)
    factors = maker_factors(game, flow.mean_quotes, flow.quoting)
    box = (game.order_size, game.maker_fill_decay)
    place = (np.zeros(2), np.zeros(1), game.inventory)
    ode.hjb(flow.times, flow.drift, factors, *place, *box, game.maker_penalty, game.max_depth, euler, values, slopes)
    quotes = np.empty((len(flow.drift), *values.shape[1:], 2))
    ode.best_quotes(flow.times, values, slopes, *box, game.max_depth, quotes)
    return values[:, 0], quotes[:, 0]


def induced_flow(game: Game, times: Array, feedback: Feedback, euler: bool = False) -> ContinuousFlow:
    """The flow of a crowd that plays a feedback."""
    rates = game.taker_fill_rate * feedback.hits
    laws = np.empty((2 * len(times) - 1, *game.shape))
    ode.law(times, rates, game.jumps, game.initial, euler, laws)
    net = np.empty(len(laws))
    ode.buying(laws, rates, net)
    means, masses = boundary_means(game, laws, np.broadcast_to(feedback.quotes, (*laws.shape, 2)))
    return ContinuousFlow(times, game.impact * game.order_size * net, laws, means, masses)


def evaluate_taker(game: Game, times: Array, drift: Array, feedback: Feedback) -> Array:
    """Value (n + 1, B, Q) of a taker who plays a feedback under a drift."""
    values = np.empty((len(times), *game.shape))
    system = (game.jumps, game.signal, game.inventory, game.order_size, game.taker_penalty)
    ode.evaluate(times, drift, feedback.hits, feedback.earned, _taker_factors(game), *system, values)
    return values


def evaluate_maker(game: Game, flow: ContinuousFlow, feedback: Feedback) -> Array:
    """Value (n + 1, Q) of a maker who plays a feedback of shape (K, 1, Q, 2) against a crowd."""
    values = np.empty((len(flow.times), 1, game.shape[1]))
    factors = maker_factors(game, flow.mean_quotes, flow.quoting)
    system = (np.zeros(2), np.zeros(1), game.inventory, game.order_size, game.maker_penalty)
    ode.evaluate(flow.times, flow.drift, feedback.hits, feedback.earned, factors, *system, values)
    return values[:, 0]


def fixed_point(
    apply: Callable[[Array], Array],
    start: Array,
    weights: Array,
    tolerance: float,
    correct: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, float, int]:
    """A fixed point ``x = Phi(x)``: Picard while it contracts well, then Newton-Krylov.

    Parameters
    ----------
    apply : function
        ``Phi`` on arrays of shape (n,).
    start, weights : (n,)
        First guess, and the weights of the norm ``sum weights |x|``.
    tolerance : float
        Norm of the residual at which to stop.
    correct : function, optional
        An approximate ``(1 - DPhi)^-1``; by default GMRES with differences of ``Phi`` finds it.

    Returns
    -------
    x, Phi(x), residual, iterations
        ``iterations`` counts evaluations of ``Phi``.

    Raises
    ------
    NotConverged
        If the residual does not get there.
    """
    evaluations = 0
    root = np.sqrt(weights)

    def phi(x: Array) -> Array:
        nonlocal evaluations
        evaluations += 1
        return apply(x)

    def norm(x: Array) -> float:
        return float(weights @ np.abs(x))

    def newton_direction(x: Array, image: Array, residual: Array, forcing: float) -> Array:
        size = float(np.sqrt(weights @ x**2)) + 1e-3 * float(np.sqrt(weights.sum()))

        def product(scaled: Array) -> Array:
            direction = scaled / root
            step = 1e-6 * size / max(float(np.linalg.norm(scaled)), 1e-300)
            return np.asarray(scaled - root * (phi(x + step * direction) - image) / step)

        operator: Any = LinearOperator((len(x), len(x)), matvec=product, dtype=np.float64)
        found, _ = gmres(operator, root * residual, rtol=forcing, restart=40, maxiter=1)
        return np.asarray(found / root)

    x = start
    image = phi(x)
    residual = image - x
    size = norm(residual)
    picard, history = True, [size]
    for _ in range(NEWTON_STEPS):
        if size <= tolerance:
            return x, image, size, evaluations
        if not np.isfinite(size):
            break
        if picard:
            trial = image
        elif correct is not None:
            trial = x + correct(residual)
        else:
            trial = x + newton_direction(x, image, residual, min(0.1, max(1e-4, 0.1 * tolerance / size)))
        step, accepted = trial - x, False
        for _ in range(5):
            trial_image = phi(x + step)
            trial_size = norm(trial_image - x - step)
            if trial_size < (0.3 if picard else 0.95) * size:
                accepted = True
                break
            if picard:
                break
            step = 0.5 * step
        if not accepted:
            if picard:
                picard = False
                continue
            break
        x = x + step
        image, size = trial_image, trial_size
        residual = image - x
        history.append(size)
    raise NotConverged(
        f"no equilibrium found: after {evaluations} evaluations the residuals are "
        f"{', '.join(f'{value:.3g}' for value in history[-4:])}, not below {tolerance:.3g}; this market lies outside "
        "the range in which the solver is certified (lower impact, or more takers' patience)"
    )


def solve_equilibrium(game: Game, tolerance: float = 1e-8) -> Equilibrium:
    """The equilibrium in continuous time.

    Parameters
    ----------
    game : Game
    tolerance : float
        Relative error of the values ``sum P_0 W^m(0)`` and ``W(0, 0)`` by time stepping, at least 1e-12.

    Raises
    ------
    NotConverged
        If the fixed point is not found, or the tolerance is not reached on the finest grid.
    """
    intervals, total, drift = COARSE, 0, None
    before: Equilibrium | None = None
    while intervals <= FINEST:
        times = time_grid(game, intervals)
        start = np.zeros(2 * intervals + 1)
        if before is not None and drift is not None:
            start = np.interp(curve_times(times), curve_times(before.flow.times), drift)
        found, drift = _solve_on(game, times, start, 0.01 * max(tolerance, 1e-12))
        total += found.iterations
        if before is not None:
            pairs = ((found.taker_value, before.taker_value), (found.maker_value, before.maker_value))
            error = max(abs(new - old) / max(abs(new), 1e-300) for new, old in pairs) / 15.0
            found = Equilibrium(**{**found.__dict__, "iterations": total, "error": error})
            if error <= tolerance:
                return found
        before, intervals = found, 2 * intervals
    raise NotConverged(
        f"the values have a relative error of about {before.error if before else np.nan:.3g} on the finest grid, not "
        f"{tolerance:.3g}"
    )


def _solve_on(
    game: Game, times: Array, start: Array, tolerance: float, euler: bool = False
) -> tuple[Equilibrium, Array]:
    """The equilibrium on a grid, and its drift curve; ``tolerance`` of the residual is relative to the value."""
    scale = game.inventory_limit
    kept: dict[str, Any] = {}

    def apply(drift: Array) -> Array:
        with np.errstate(all="ignore"):
            values, quotes = taker_optimum(game, times, drift, euler)
            flow = induced_flow(game, times, feedback_of_quotes(quotes, game.taker_fill_decay), euler)
        if np.isfinite(flow.drift).all():
            kept["value"] = float((flow.laws[0] * values[0]).sum())
        return flow.drift

    weights = scale * curve_weights(times)
    first = apply(start)
    size = max(abs(kept.get("value", 0.0)), 1e-6 * scale)
    drift, _, residual, evaluations = fixed_point(
        lambda x: first if x is start else apply(x), start, weights, tolerance * size
    )
    values, quotes = taker_optimum(game, times, drift, euler)
    flow = induced_flow(game, times, feedback_of_quotes(quotes, game.taker_fill_decay), euler)
    maker_values, maker_quotes = maker_optimum(game, flow, euler)
    found = Equilibrium(flow, values, maker_values, quotes, maker_quotes, residual, evaluations + 1, np.nan)
    return found, drift


def best_drift(game: Game, times: Array, drift: Array) -> Array:
    """The drift of a crowd of takers who play best under a drift: the map whose fixed point is the equilibrium."""
    quotes = taker_optimum(game, times, drift)[1]
    return induced_flow(game, times, feedback_of_quotes(quotes, game.taker_fill_decay)).drift


def equilibrium_drift(game: Game, times: Array) -> Array:
    """The equilibrium's drift on one grid, shape (2 n + 1,)."""
    return _solve_on(game, times, np.zeros(2 * len(times) - 1), 1e-10)[1]


def euler_equilibrium(game: Game, steps: int) -> Equilibrium:
    """The equilibrium by the paper's explicit Euler scheme on ``steps`` equal steps: for reproduction only.

    Raises
    ------
    NotConverged
        If the scheme is unstable at that step, or the fixed point is not found.
    """
    times = np.linspace(0.0, game.horizon, steps + 1)
    return _solve_on(game, times, np.zeros(2 * steps + 1), 1e-10, euler=True)[0]
