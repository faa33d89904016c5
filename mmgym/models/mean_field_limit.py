r"""The mean-field game in continuous time: HJB, forward equation and their fixed point.

With ``H(D) = max_{|d| <= d_inf} A^m exp(-k d) (z d + D)`` and the drift ``m`` that the crowd gives to the price,

    -dW/dt = (b + m) q - gamma sigma^2 q^2 + (signal jumps)
             + 1{q < L} H(W(q + z) - W(q)) + 1{q > -L} H(W(q - z) - W(q)),
    dp/dt = (the law under the best quotes ``d = clip(1 / k - D / z)``),        m = kappa d/dt sum q p,

from ``W(T) = 0`` and ``p(0) = P_0`` (Baldacci, Bergault & Possamai, system (4.6), corrected; ``A``, ``k`` and ``L`` may
differ between the sides, Remark 3.1). The fixed point is one curve ``m``. The market-maker faces ``m`` and the takers'
mean quotes, and nobody faces her.

Times lie on a graded grid with Runge-Kutta steps of order 4. A step must be shorter than the wait for two of the
players' fastest events, or the scheme explodes: the first grid is refined until that holds (`events_in_a_step`), and
from there until the values settle. Orders of convergence are observed, not assumed: bounds on the depths and a crowd
that starts at an inventory limit make them lower than 4.

A strong impact makes the fixed point hard to reach from a crowd that stays where it is. It is then approached from
weaker impacts, each starting from the one before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
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
    "stepping_error",
    "taker_optimum",
    "time_grid",
]

Array = NDArray[np.float64]

COARSE, FINEST = 1_000, 32_000  # intervals of the first grid and of the last
RUSH = 0.15  # density of the grid that goes to the first moments
STABLE = 2.0  # expected events a time step: Runge-Kutta steps of order 4 explode from 2.79 on
WEAKEST = 64.0  # the smallest step towards an impact is its share of 1 / 64
NEWTON_STEPS = 30
MOST_DIRECTIONS = 120  # in which the derivative of a map is known
KRYLOV, FORCING = 12, 0.03  # evaluations of a Newton step that has an approximate inverse, and its relative error
CONTRACTS = {"image": 0.3, "correction": 0.5, "newton": 0.95}  # largest share of the residual that a way may leave


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
    mean_quotes: Array  # [bid, ask], (2 n + 1, 2); the right limit at 0 if nobody quotes there at first
    quoting: Array  # mass of the takers who quote on each side, (2 n + 1, 2); the smallest number > 0 at such a limit


@dataclass(frozen=True)
class Equilibrium:
    """A solution of the game in continuous time.

    Attributes
    ----------
    flow : ContinuousFlow
    taker_values, maker_values : (n + 1, B, Q), (n + 1, M)
        ``W^m`` and ``W`` at the nodes ``flow.times``; the maker has ``M`` inventories.
    taker_quotes, maker_quotes : (2 n + 1, B, Q, 2), (2 n + 1, M, 2)
        Best depths.
    maker_start : int
        The level of the maker's initial inventory.
    residual : float
        ``int |Phi(m) - m| dt`` times the inventory limit (price * assets): what the fixed point is missed by.
    iterations : int
        Evaluations of the map on all grids.
    error : float
        Estimate of the relative error of both values by time stepping, with the order of convergence that the last
        three grids show.
    """

    flow: ContinuousFlow
    taker_values: Array
    maker_values: Array
    taker_quotes: Array
    maker_quotes: Array
    maker_start: int
    residual: float
    iterations: int
    error: float

    @property
    def taker_value(self) -> float:
        """``sum P_0 W^m(0)``."""
        return float((self.flow.laws[0] * self.taker_values[0]).sum())

    @property
    def maker_value(self) -> float:
        """``W(0, q_0)``."""
        return float(self.maker_values[0, self.maker_start])


def time_grid(game: Game, intervals: int) -> Array:
    """A grid of [0, T], shape (n + 1,), fine near 0, where an impatient crowd moves at once, and near T.

    An eighth of it lies in the time in which takers at ``-max_depth`` fill some ten orders.
    """
    horizon = game.horizon
    scale = horizon / 50.0
    rush = min(scale, float((10.0 / (game.taker_fill_rate * np.exp(game.taker_fill_decay * game.max_depth))).min()))
    x = np.unique(np.concatenate([np.linspace(0.0, horizon, 4001), np.linspace(0.0, min(20.0 * rush, horizon), 1001)]))
    total = x + 9.0 * scale * -np.expm1(-x / scale) + 2.0 * scale * np.exp(-(horizon - x) / scale)
    total += RUSH * horizon * -np.expm1(-x / rush)
    times = np.interp(np.linspace(total[0], total[-1], intervals + 1), total, x)
    times[0], times[-1] = 0.0, horizon
    return np.asarray(times)


def curve_times(times: Array) -> Array:
    """Nodes and middles of the intervals, shape (2 n + 1,)."""
    curve = np.empty(2 * len(times) - 1)
    curve[::2], curve[1::2] = times, 0.5 * (times[1:] + times[:-1])
    return curve


def curve_weights(times: Array) -> Array:
    """Simpson weights on `curve_times`."""
    weights, h = np.zeros(2 * len(times) - 1), np.diff(times)
    weights[1::2] = 4.0 * h / 6.0
    weights[:-1:2] += h / 6.0
    weights[2::2] += h / 6.0
    return weights


def feedback_of_quotes(quotes: Array, decay: float | Array, weights: Array | None = None) -> Feedback:
    """The feedback of depths (K, B, Q, 2), or of depths (K, B, Q, M, 2) drawn with weights (K, B, Q, M)."""
    hits = np.exp(-decay * quotes)
    if weights is None:
        return Feedback(hits, quotes * hits, quotes)
    mass = weights[..., None]
    return Feedback(*(np.ascontiguousarray((mass * part).sum(axis=-2)) for part in (hits, quotes * hits, quotes)))


def constant_feedback(depth: float | Array, decay: float | Array, shape: tuple[int, ...]) -> Feedback:
    """The same depth, or pair of bid and ask depth, always and everywhere."""
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
        mean = (law[..., inside] * quotes[..., inside, side]).sum(axis=(-2, -1)) / total
        if game.boundary_quotes == "quoting":
            mean = np.divide(mean, mass, out=np.zeros_like(mass), where=mass > 0.0)
        elif game.boundary_quotes == "risk_neutral":
            mean = mean + (1.0 - mass) / game.taker_fill_decay[side]
        means.append(mean)
        masses.append(mass)
    return np.stack(means, axis=-1), np.stack(masses, axis=-1)


def _taker_factors(game: Game) -> Array:
    return game.taker_fill_rate[None]


def maker_factors(game: Game, mean_quotes: Array, quoting: Array) -> Array:
    """The maker's fill rates ``[bid, ask]`` at depth 0 (1 / time): her bids meet the takers' asks; 0 without them."""
    rates = game.maker_fill_rate[::-1] * np.exp(-game.maker_fill_decay[::-1] * mean_quotes)
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
    """``W`` at the nodes, shape (n + 1, M), and best depths (2 n + 1, M, 2), of the maker against a crowd."""
    values = np.empty((len(flow.times), 1, len(game.maker_inventory)))
    slopes = np.empty_like(values)
    factors = maker_factors(game, flow.mean_quotes, flow.quoting)
    box = (game.order_size, game.maker_fill_decay)
    place = (np.zeros((2, 1)), np.zeros(1), game.maker_inventory)
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
    if game.boundary_quotes == "quoting":
        _start_quoting(laws[0], rates[0], feedback.quotes[0], means[0], masses[0])
    return ContinuousFlow(times, game.impact * game.order_size * net, laws, means, masses)


def _start_quoting(law: Array, rates: Array, quotes: Array, means: Array, masses: Array) -> None:
    """Right limits at time 0 on a side on which no taker quotes: that of those who leave the inventory limit first."""
    for side, limit, next_to in ((0, -1, -2), (1, 0, 1)):
        if masses[side] == 0.0:
            leaving = law[:, limit] * rates[:, limit, 1 - side]
            means[side] = leaving @ quotes[:, next_to, side] / leaving.sum()
            masses[side] = np.finfo(np.float64).tiny


def evaluate_taker(game: Game, times: Array, drift: Array, feedback: Feedback) -> Array:
    """Value (n + 1, B, Q) of a taker who plays a feedback under a drift."""
    values = np.empty((len(times), *game.shape))
    system = (game.jumps, game.signal, game.inventory, game.order_size, game.taker_penalty)
    ode.evaluate(times, drift, feedback.hits, feedback.earned, _taker_factors(game), *system, values)
    return values


def evaluate_maker(game: Game, flow: ContinuousFlow, feedback: Feedback) -> Array:
    """Value (n + 1, M) of a maker who plays a feedback of shape (K, 1, M, 2) against a crowd."""
    values = np.empty((len(flow.times), 1, len(game.maker_inventory)))
    factors = maker_factors(game, flow.mean_quotes, flow.quoting)
    system = (np.zeros((2, 1)), np.zeros(1), game.maker_inventory, game.order_size, game.maker_penalty)
    ode.evaluate(flow.times, flow.drift, feedback.hits, feedback.earned, factors, *system, values)
    return values[:, 0]


class _Equation:
    """The equation ``x = Phi(x)``, and what its solution has taken so far."""

    def __init__(
        self,
        apply: Callable[[Array], Array],
        weights: Array,
        tolerance: float,
        correct: Callable[[Array, Array], Array] | None,
        most: int,
    ) -> None:
        self.apply, self.weights, self.tolerance, self.correct, self.most = apply, weights, tolerance, correct, most
        self.evaluations = 0
        self.history: list[float] = []  # norms of the residuals

    def missed(self) -> NotConverged:
        """What is raised where the residual does not get there."""
        return NotConverged(
            f"no equilibrium found: after {self.evaluations} evaluations the residuals are "
            f"{', '.join(f'{value:.3g}' for value in self.history[-4:])}, not below {self.tolerance:.3g}; lower the "
            "impact, raise the tolerance, or start from the equilibrium of a game like this one"
        )

    def phi(self, x: Array) -> Array:
        """One more evaluation of ``Phi``."""
        if self.evaluations >= self.most:
            raise self.missed()
        self.evaluations += 1
        return self.apply(x)

    def norm(self, x: Array) -> float:
        return float(self.weights @ np.abs(x))

    def newton_direction(self, x: Array, image: Array, residual: Array, size: float) -> Array:
        """Newton's direction by GMRES, with differences of ``Phi``."""
        correct, root = self.correct, np.sqrt(self.weights)
        length = float(np.sqrt(self.weights @ x**2)) + 1e-3 * float(np.sqrt(self.weights.sum()))

        def product(scaled: Array) -> Array:
            direction = scaled / root if correct is None else correct(x, scaled / root)
            step = 1e-6 * length / max(float(np.linalg.norm(root * direction)), 1e-300)
            return np.asarray(root * (direction - (self.phi(x + step * direction) - image) / step))

        operator: Any = LinearOperator((len(x), len(x)), matvec=product, dtype=np.float64)
        forcing = min(0.1, max(1e-4, 0.1 * self.tolerance / size)) if correct is None else FORCING
        restart = 40 if correct is None else KRYLOV
        solution, _ = gmres(operator, root * residual, rtol=forcing, restart=restart, maxiter=1)
        return np.asarray(solution / root if correct is None else correct(x, solution / root))


def fixed_point(
    apply: Callable[[Array], Array],
    start: Array,
    weights: Array,
    tolerance: float,
    correct: Callable[[Array, Array], Array] | None = None,
    most: int = 100_000,
) -> tuple[Array, Array, float, int]:
    """A fixed point ``x = Phi(x)``: Picard while it contracts well, corrections while they do, then Newton-Krylov.

    Parameters
    ----------
    apply : function
        ``Phi`` on arrays of shape (n,).
    start, weights : (n,)
        First guess, and the weights of the norm ``sum weights |x|``.
    tolerance : float
        Norm of the residual at which to stop.
    correct : function, optional
        Of an ``x`` that was reached and of a residual, to which it applies an approximate ``(1 - DPhi)^-1``. Where such
        steps contract no more, it preconditions the GMRES with differences of ``Phi`` that Newton's directions come
        from.
    most : int
        Evaluations of ``Phi`` after which to give up.

    Returns
    -------
    x, Phi(x), residual, iterations
        ``iterations`` counts evaluations of ``Phi``.

    Raises
    ------
    NotConverged
        If the residual does not get there.
    """
    equation = _Equation(apply, weights, tolerance, correct, most)
    x = start
    image = equation.phi(x)
    residual = image - x
    size = equation.norm(residual)
    equation.history.append(size)
    ways = ["image", "correction", "newton"] if correct is not None else ["image", "newton"]
    for _ in range(NEWTON_STEPS):
        if size <= tolerance:
            return x, image, size, equation.evaluations
        if not np.isfinite(size):
            break
        if ways[0] == "image":
            step = residual
        elif ways[0] == "correction" and correct is not None:
            step = correct(x, residual)
        else:
            step = equation.newton_direction(x, image, residual, size)
        for _ in range(1 if len(ways) > 1 else 5):
            trial = x + step
            trial_image = equation.phi(trial)
            trial_size = equation.norm(trial_image - trial)
            if trial_size < CONTRACTS[ways[0]] * size:
                break
            step = 0.5 * step
        else:
            if len(ways) == 1:
                break
            ways.pop(0)
            continue
        x, image, size = trial, trial_image, trial_size
        residual = image - x
        equation.history.append(size)
    raise equation.missed()


def events_in_a_step(times: Array, rates: Array, jumps: Array | None = None) -> float:
    """The largest expected number of fills and signal jumps in a time step, of all states: inf if not finite.

    Parameters
    ----------
    times : (n + 1,)
    rates : (2 n + 1, B, Q, 2)
        Fill rates (1 / time); blocked sides do not count.
    jumps : (2, J), optional
        Rates of the signal's jumps by 1, 2, ... levels (1 / time).
    """
    total = np.zeros(rates.shape[:-1])
    total[..., :-1] += rates[..., :-1, 0]
    total[..., 1:] += rates[..., 1:, 1]
    if jumps is not None:
        for size, (up, down) in enumerate(jumps.T, 1):
            total[:, :-size] += up
            total[:, size:] += down
    fastest = total.max(axis=(1, 2))
    events = np.diff(times) * np.maximum(np.maximum(fastest[:-1:2], fastest[1::2]), fastest[2::2])
    return float(events.max()) if np.isfinite(events).all() else np.inf


class _TooCoarse(Exception):  # noqa: N818  # leads to a finer grid
    """Time steps are too long for the rates of a role: Runge-Kutta steps explode."""

    def __init__(self, role: str, events: float, drift: Array | None) -> None:
        super().__init__(role)
        self.role, self.events, self.drift = role, events, drift  # of an equilibrium, if there is one


def solve_equilibrium(game: Game, tolerance: float = 1e-8, start: Equilibrium | None = None) -> Equilibrium:
    """The equilibrium in continuous time.

    Parameters
    ----------
    game : Game
    tolerance : float
        Relative error of the values ``sum P_0 W^m(0)`` and ``W(0, q_0)`` by time stepping, at least 1e-12.
    start : Equilibrium, optional
        Of a game like this one with the same horizon: where to start from, instead of a price without drift.

    Raises
    ------
    ValueError
        If the tolerance is not between 1e-12 and 1, or the start has another horizon.
    NotConverged
        If the game's rates ask for more than 32,000 time steps, the fixed point is not found, or the tolerance is not
        reached on the finest grid. The message says which.
    """
    if not 1e-12 <= tolerance < 1.0:
        raise ValueError(f"tolerance = {tolerance!r} is not allowed: it must be from 1e-12 to below 1")
    if start is not None and start.flow.times[-1] != game.horizon:
        raise ValueError(
            f"start is not allowed: its horizon is {start.flow.times[-1]:g}, but that of this game is {game.horizon:g}"
        )
    return _refined(game, tolerance, 0.01 * tolerance, start)


def rough_equilibrium(game: Game, tolerance: float, start: Equilibrium | None = None) -> Equilibrium:
    """An equilibrium on the coarsest grid that is stable, to start from: its residual, not its error, is bounded.

    The tolerance of the residual is relative to the takers' value; `NotConverged` as from `solve_equilibrium`.
    """
    return _refined(game, np.inf, tolerance, start)


def _refined(game: Game, tolerance: float, residual: float, start: Equilibrium | None) -> Equilibrium:
    """Equilibria on finer and finer grids, until the error is tolerable."""
    known = None if start is None else (curve_times(start.flow.times), start.flow.drift)
    intervals, iterations = COARSE, 0
    coarse: Linearised | None = None
    history: list[tuple[float, float]] = []  # values on grids of doubled fineness
    error, cause = np.inf, ""
    while intervals <= FINEST:
        times = time_grid(game, intervals)
        curve = curve_times(times)
        drift = np.zeros(len(curve)) if known is None else np.interp(curve, *known)
        try:
            equilibrium = _solve_on(game, times, drift, residual, coarse)
        except _TooCoarse as problem:
            cause = (
                f"the {problem.role}s' fills and signal jumps are too fast for {intervals} time steps over the horizon "
                f"({problem.events:.3g} in the busiest step, where {STABLE:g} are allowed), and {FINEST} are the most; "
                "lower the horizon, the fill rates, the signal rates or max_depth"
            )
            known = known if problem.drift is None else (curve, problem.drift)
            intervals, history, coarse = 2 * intervals, [], None
            continue
        iterations += equilibrium.iterations
        history.append((equilibrium.taker_value, equilibrium.maker_value))
        error = max(stepping_error([pair[role] for pair in history]) for role in (0, 1))
        if error <= tolerance:
            return replace(equilibrium, iterations=iterations, error=error)
        known = curve, equilibrium.flow.drift
        coarse = Linearised(game, times, equilibrium.taker_quotes, equilibrium.flow.laws) if coarse is None else coarse
        cause = (
            f"the values have a relative error of about {error:.3g} on the finest grid of {intervals} time steps, not "
            f"{tolerance:.3g}; raise the tolerance"
        )
        intervals *= 2
    raise NotConverged(cause)


def stepping_error(values: list[float]) -> float:
    """Relative error of the last of values on grids of doubled fineness, with the order of convergence they show.

    Two values show no order: the error is then their whole difference, as with order 1.
    """
    if len(values) < 2:
        return np.inf
    size = max(abs(values[-1]), 1e-300)
    last = abs(values[-1] - values[-2])
    if len(values) == 2 or last <= 1e-14 * size:
        return max(last / size, 1e-16)
    order = np.log2(max(abs(values[-2] - values[-3]), 1e-300) / last)
    return float(last / (2.0 ** min(max(order, 0.25), 4.0) - 1.0) / size)


def _solve_on(
    game: Game,
    times: Array,
    start: Array,
    tolerance: float,
    coarse: "Linearised | None" = None,
    euler: bool = False,
) -> Equilibrium:
    """The equilibrium on a grid; ``tolerance`` of the residual is relative to the value.

    If it is not found from the start, from equilibria of weaker impacts.
    """
    drift, reached, step = start, 0.0, game.impact
    while True:
        impact = min(reached + step, game.impact)
        try:
            equilibrium = _solve_from(game._replace(impact=impact), times, drift, tolerance, coarse, euler)
        except NotConverged:
            step *= 0.5
            if euler or step < game.impact / WEAKEST:
                raise
            if reached == 0.0:
                drift, coarse = np.zeros_like(start), None
            continue
        if impact == game.impact:
            return equilibrium
        reached = impact
        drift = equilibrium.flow.drift * min(reached + step, game.impact) / reached


def _solve_from(
    game: Game, times: Array, start: Array, tolerance: float, coarse: "Linearised | None", euler: bool
) -> Equilibrium:
    scale = game.inventory_limit
    kept: dict[str, Any] = {}

    def apply(drift: Array) -> Array:
        with np.errstate(all="ignore"):
            values, quotes = taker_optimum(game, times, drift, euler)
            feedback = feedback_of_quotes(quotes, game.taker_fill_decay)
            flow = induced_flow(game, times, feedback, euler)
            if "events" not in kept:
                kept["events"] = events_in_a_step(times, game.taker_fill_rate * feedback.hits, game.jumps)
        if np.isfinite(flow.drift).all():
            kept["value"] = float((flow.laws[0] * values[0]).sum())
        kept["last"] = drift, quotes, flow.laws
        return flow.drift

    def correct(drift: Array, residual: Array) -> Array:
        """About ``(1 - DPhi)^-1 residual`` at a drift that was reached: Newton's step."""
        if coarse is not None:
            return coarse.correct(curve_times(times), residual)
        if kept.get("near") is not drift:
            if kept["last"][0] is not drift:
                apply(drift)
            kept["near"], kept["linearised"] = drift, Linearised(game, times, *kept["last"][1:])
        return np.asarray(residual + kept["linearised"].response(residual))

    def too_coarse(role: str, events: float, drift: Array | None = None) -> None:
        if not euler and not events <= STABLE:
            raise _TooCoarse(role, events, drift)

    too_coarse("taker", float(game.jumps.sum() * np.diff(times).max()) if game.signal_limit > 0 else 0.0)
    weights = scale * curve_weights(times)
    first = apply(start)
    too_coarse("taker", kept["events"])
    size = max(abs(kept.get("value", 0.0)), 1e-6 * scale)
    drift, _, residual, evaluations = fixed_point(
        lambda x: first if x is start else apply(x), start, weights, tolerance * size, None if euler else correct
    )
    values, quotes = taker_optimum(game, times, drift, euler)
    feedback = feedback_of_quotes(quotes, game.taker_fill_decay)
    too_coarse("taker", events_in_a_step(times, game.taker_fill_rate * feedback.hits, game.jumps), drift)
    flow = induced_flow(game, times, feedback, euler)
    with np.errstate(all="ignore"):
        maker_values, maker_quotes = maker_optimum(game, flow, euler)
        rates = maker_factors(game, flow.mean_quotes, flow.quoting)[:, None] * np.exp(
            -game.maker_fill_decay * maker_quotes
        )
        too_coarse("maker", events_in_a_step(times, rates[:, None]), drift)
    start_level = game.maker_start
    return Equilibrium(flow, values, maker_values, quotes, maker_quotes, start_level, residual, evaluations + 1, np.nan)


class Linearised:
    """The map of the fixed point near a drift, on a grid: an approximate ``(1 - DPhi)^-1``.

    Parameters
    ----------
    game : Game
    times : (n + 1,)
    quotes, laws : (2 n + 1, B, Q, 2), (2 n + 1, B, Q)
        Best depths under the drift, and the law of the crowd that plays them.
    """

    def __init__(self, game: Game, times: Array, quotes: Array, laws: Array) -> None:
        self.game, self.times = game, times
        self.curve = curve_times(times)
        self._root = np.sqrt(curve_weights(times))
        rates = np.zeros((len(self.curve), 2, quotes.shape[1], quotes.shape[2] + 2))
        bends = np.zeros_like(rates)
        for side, (fill, decay) in enumerate(zip(game.taker_fill_rate, game.taker_fill_decay, strict=True)):
            here = slice(None, -1) if side == 0 else slice(1, None)  # who can trade on this side
            depths, to = quotes[:, :, here, side], slice(1, -2) if side == 0 else slice(2, -1)
            rates[:, side, :, to] = fill * np.exp(-decay * depths)
            free = np.abs(depths) < game.max_depth
            bends[:, side, :, to] = free * rates[:, side, :, to] * laws[:, :, here] * (decay / game.order_size)
        self._system = rates, bends, game.signal_generator, game.inventory
        self._known: list[tuple[Array, Array]] = []  # directions and their images, times the root of the weights

    def derivative(self, change: Array) -> Array:
        """``DPhi`` in the direction of a drift curve (2 n + 1,)."""
        bought = np.empty(len(self.curve))
        ode.response(self.times, *self._system, change, bought)
        return np.asarray(self.game.impact * self.game.order_size * bought)

    def response(self, source: Array) -> Array:
        """``x - source`` where ``x`` is about ``(1 - DPhi)^-1 source``, to 1e-3; both are drift curves (2 n + 1,).

        By the generalised conjugate residual method (Eisenstat, Elman & Schultz 1983), which converges as GMRES does;
        what is known of ``1 - DPhi`` in the directions of one source serves the next.
        """
        solution, left = np.zeros(len(source)), self._root * source
        goal, known = 1e-3 * float(np.linalg.norm(left)), 0
        while True:
            for direction, image in self._known[known:]:
                part = float(image @ left)
                solution += part * direction
                left -= part * image
            known = len(self._known)
            if not np.linalg.norm(left) > goal or known == MOST_DIRECTIONS:
                return np.asarray(solution / self._root - source)
            self._known.append(self._explored(left))

    def _explored(self, direction: Array) -> tuple[Array, Array]:
        """A direction like this one, and its image under ``1 - DPhi``: of norm 1, orthogonal to the images known."""
        direction, image = direction.copy(), direction - self._root * self.derivative(direction / self._root)
        for other, known in self._known + self._known:  # twice, against rounding
            part = float(known @ image)
            direction -= part * other
            image -= part * known
        size = max(float(np.linalg.norm(image)), 1e-300)
        return direction / size, image / size

    def correct(self, curve: Array, residual: Array) -> Array:
        """About ``(1 - DPhi)^-1 residual`` for drifts on other times ``curve``."""
        response = self.response(np.interp(self.curve, curve, residual))
        return np.asarray(residual + CubicSpline(self.curve, response)(curve))


def best_drift(game: Game, times: Array, drift: Array) -> Array:
    """The drift of a crowd of takers who play best under a drift: the map whose fixed point is the equilibrium."""
    quotes = taker_optimum(game, times, drift)[1]
    return induced_flow(game, times, feedback_of_quotes(quotes, game.taker_fill_decay)).drift


def euler_equilibrium(game: Game, steps: int) -> Equilibrium:
    """The equilibrium by the paper's explicit Euler scheme on ``steps`` equal steps: for reproduction only.

    Raises
    ------
    NotConverged
        If the scheme is unstable at that step, or the fixed point is not found.
    """
    times = np.linspace(0.0, game.horizon, steps + 1)
    return _solve_on(game, times, np.zeros(2 * steps + 1), 1e-10, euler=True)
