r"""The crowd of takers on decision steps: the flow that a quote table induces, and the equilibrium flow.

What an environment plays is the frozen-control game: every taker chooses depths at ``t_n`` from inventory and signal,
and they stand for ``h = horizon / num_steps``, while inventories and signals move in continuous time. The crowd's mean
inventory moves the price, inside the step too, under the law of that moment:

    dS = sigma dW + kappa d(mean inventory).

A `Flow` has, for each step, the mean inventory's movement as a polynomial in ``x = (t - t_n) / h``, interpolated at
Chebyshev points and compared between them with what it stands for (for the registered markets it is exact to rounding;
a crowd with hundreds of fills in a step moves too fast for a polynomial), and the mean quotes that a market-maker
meets: of the takers who quote on a side at ``t_n``, for the whole step.

The equilibrium is a fixed point of (flow) -> (best frozen depths of a taker) -> (flow of a crowd with these depths). It
is found from that of continuous time, with the derivative of the continuous map as a preconditioner.
"""

import contextlib
import functools
import hashlib
import json
import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.polynomial import chebyshev, legendre
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.linalg import expm
from tqdm.auto import tqdm

from mmgym.models import mean_field_limit, mean_field_steps
from mmgym.models.mean_field_game import PRESETS, Game
from mmgym.plain_files import UnreadableFile, numbers, parse_json, read_arrays, replacing
from mmgym.source_digest import source_digest

__all__ = [
    "DEGREE",
    "Flow",
    "best_response",
    "constant_flow",
    "equilibrium_flow",
    "flow_file",
    "frozen_map",
    "induced_flow",
    "movement_through",
    "solve_equilibrium_flow",
    "step_system",
]

Array = NDArray[np.float64]

DEGREE = 16  # of the movement's polynomial
UNCLIMBED = 1e6  # of a best depth: what a further move promises, in units of the values' rounding error
WEAKEST = 8.0  # the smallest step towards an impact is its share of 1 / 8
MOST_EVALUATIONS = 200  # of the frozen map, after which an equilibrium is given up: minutes in the registered sizes
SLACK, MOST_SLACK = 100.0, 3e-8  # of best depths' values: times the square of the residual, and at most, both relative
START_TOLERANCE = (
    1e-3  # residual of the equilibrium in continuous time that a solution starts from, relative to a value
)
FIELDS = (  # of the game, that the crowd depends on
    "volatility", "impact", "signal_rate_up", "signal_rate_down", "signal_limit", "taker_fill_rate_bid",
    "taker_fill_rate_ask", "taker_fill_decay_bid", "taker_fill_decay_ask", "order_size", "inventory_limit_long",
    "inventory_limit_short", "taker_risk_aversion", "max_depth", "horizon", "num_steps", "initial_law",
    "boundary_quotes",
)  # fmt: skip

ADDED: dict[str, Any] = {"signal_unit": 1.0, "signal_jump_sizes": (1.0,)}  # named in files where they differ from this

# Chebyshev points of the second kind on [0, 1], and the map from values there to coefficients of 1, x, x^2, ...
POINTS: Array = 0.5 - 0.5 * np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
CHECKS: Array = 0.5 - 0.5 * np.cos(np.pi * np.arange(2 * DEGREE + 1) / (2 * DEGREE))  # these, and one between any two
_TO_CHEBYSHEV: Array = np.asarray(np.linalg.inv(chebyshev.chebvander(2.0 * POINTS - 1.0, DEGREE)), dtype=np.float64)


def _chebyshev_to_powers() -> Array:
    """Row k: coefficients of ``T_k(2 x - 1)`` in powers of x (whole numbers, exact)."""
    table = np.zeros((DEGREE + 1, DEGREE + 1))
    table[0, 0], table[1, :2] = 1.0, (-1.0, 2.0)
    for k in range(2, DEGREE + 1):
        table[k] = -2.0 * table[k - 1] - table[k - 2]
        table[k, 1:] += 4.0 * table[k - 1, :-1]
    return table


_TO_POWERS = _chebyshev_to_powers()


@dataclass(frozen=True)
class Flow:
    """What a crowd of takers does, on decision steps.

    Attributes
    ----------
    movement : (N, D + 1)
        Change of the mean inventory (assets) since the step began: coefficients of 1, x, x^2, ... on [0, 1].
    mean_quotes : (N, 2)
        Mean bid and ask depth (price) at the start of each step; 0 where nobody quotes.
    quoting : (N, 2)
        Mass of the takers who quote on each side.
    residual : float
        What the equilibrium is missed by: the total residual of the price path times the inventory limit (price *
        assets); nan for a flow that is not meant to be an equilibrium.
    iterations : int
        Evaluations of the frozen map.
    variation : float
        About twice the total variation in time of what the polynomials miss of the mean inventory (assets); steps with
        less than 1e-10 orders count as rounding. Times impact and inventory limit it bounds what a player's value is
        wrong by.
    """

    movement: Array
    mean_quotes: Array
    quoting: Array
    residual: float = float("nan")
    iterations: int = 0
    variation: float = 0.0

    def powers(self, points: Array) -> Array:
        """Movement at times ``points`` (P,) of [0, 1] of every step, shape (N, P)."""
        return np.asarray(self.movement @ points[None, :] ** np.arange(self.movement.shape[1])[:, None])

    def speed(self, points: Array) -> Array:
        """Derivative of the movement in x, shape (N, P)."""
        order = np.arange(1, self.movement.shape[1])
        return np.asarray(self.movement[:, 1:] @ (order[:, None] * points[None, :] ** (order - 1)[:, None]))


@dataclass(frozen=True)
class StepSystem:
    """What all steps of a game share.

    Attributes
    ----------
    nodes, weights : (K,)
        Gauss-Legendre quadrature on [0, 1].
    beliefs : (B, K)
        Expected signal at the nodes, by the signal at the start.
    moves : (B, B)
        Transition matrix of the signal over a step.
    """

    nodes: Array
    weights: Array
    beliefs: Array
    moves: Array


@functools.lru_cache(maxsize=64)
def _quadrature(count: int) -> tuple[Array, Array]:
    x, w = legendre.leggauss(count)
    return 0.5 * (x + 1.0), 0.5 * w


def quadrature_for(events: float) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1] that integrate Poisson weights of up to ``events`` expected events to rounding."""
    for count, most in ((16, 8.0), (32, 45.0), (64, 160.0), (128, 600.0)):
        if events <= most:
            return _quadrature(count)
    return _quadrature(512)


@functools.lru_cache(maxsize=64)
def step_system(game: Game) -> StepSystem:
    """Quadrature and signal of a game's steps."""
    nodes, weights = quadrature_for(float((game.fastest_fills + game.jumps.sum()) * game.step_length))
    generator, signal = game.signal_generator * game.step_length, game.signal
    beliefs = np.stack([expm(generator * x) @ signal for x in nodes], axis=1)
    return StepSystem(nodes, weights, np.ascontiguousarray(beliefs), np.maximum(expm(generator), 0.0))


def best_response(game: Game, flow: Flow, guess: Array | None = None, slack: float = 0.0) -> tuple[Array, Array]:
    """Best frozen depths of one taker against a flow, shape (N, B, Q, 2), and values (N + 1, B, Q).

    ``guess`` are depths of that shape near them, as those against a flow like this one. Where a step has many fills,
    the best of the local maxima that the corners of the box and the guesses lead to; `mmgym.baselines.frozen.solve`
    looks for others on a grid. With a ``slack`` (price * assets) gains of less than a thousandth of it a step are left.

    Raises
    ------
    ArithmeticError
        If the depths of a cell are not even that.
    """
    system = step_system(game)
    quotes = np.empty((game.num_steps, *game.shape, 2))
    quotes[:] = 1.0 / game.taker_fill_decay if guess is None else guess
    values = np.empty((game.num_steps + 1, *game.shape))
    worst = mean_field_steps.best_response(
        game.step_length,
        np.tile(game.taker_fill_rate, (game.num_steps, 1)),
        game.taker_fill_decay,
        game.order_size,
        game.max_depth,
        -game.taker_penalty * game.inventory**2,
        system.nodes,
        system.weights,
        np.ascontiguousarray(game.impact * flow.speed(system.nodes) / game.step_length),
        system.beliefs,
        system.moves,
        game.inventory,
        slack,
        quotes,
        values,
    )
    if not worst <= UNCLIMBED:
        raise ArithmeticError(
            f"the best depths of a taker were not found: a further move promises {worst:.3g} times the rounding error "
            f"of the values, allowed are {UNCLIMBED:g}; raise num_steps, or lower taker_fill_rate"
        )
    return quotes, values


def induced_flow(game: Game, quotes: Array, weights: Array | None = None) -> tuple[Flow, Array]:
    """The flow of a crowd that plays a quote table, and the laws (N + 1, B, Q) that it goes through.

    Parameters
    ----------
    game : Game
    quotes : (N, B, Q, 2) or (N, B, Q, M, 2)
        Depths (price).
    weights : (N, B, Q, M), optional
        Probabilities with which depths are drawn, anew at every step.
    """
    if weights is None:
        quotes, weights = quotes[..., None, :], np.ones((*quotes.shape[:-1], 1))
    flow, laws, moved = _crowd_flow(game, quotes, weights, CHECKS)
    missed = np.abs(np.diff(moved - flow.powers(CHECKS), axis=1)).sum(axis=1)
    return replace(flow, variation=float(2.0 * missed[missed > 1e-10 * game.order_size].sum())), laws


def _crowd_flow(game: Game, quotes: Array, weights: Array, points: Array) -> tuple[Flow, Array, Array]:
    """Flow, laws and movement (N, P) at points of [0, 1], `POINTS` or `CHECKS`, of a crowd that plays a table."""
    system, size = step_system(game), game.order_size
    laws = np.empty((game.num_steps + 1, *game.shape))
    laws[0] = game.initial
    moved = np.zeros((game.num_steps, len(points)))
    for n in range(game.num_steps):
        after = np.zeros(game.shape)
        for m in range(weights.shape[-1]):
            rates = game.taker_fill_rate * np.exp(-game.taker_fill_decay * quotes[n, :, :, m])
            law = laws[n] * weights[n, :, :, m]
            mean_field_steps.forward(game.step_length, rates, law, points, after, moved[n])
        laws[n + 1] = system.moves.T @ after
    means = (weights[..., None] * quotes).sum(axis=-2)
    mean_quotes, quoting = mean_field_limit.boundary_means(game, laws[:-1], means)
    moved *= size
    movement = movement_through(moved[:, :: (len(points) - 1) // DEGREE], size)
    return Flow(movement, mean_quotes, quoting), laws, moved


def movement_through(values: Array, size: float) -> Array:
    """Polynomials through values (N, D + 1) at `POINTS`, without terms that are only rounding."""
    coefficients = values @ _TO_CHEBYSHEV.T
    coefficients[np.abs(values).max(axis=1) < 1e-12 * size] = 0.0
    rest = np.cumsum(np.abs(coefficients[:, ::-1]), axis=1)[:, ::-1]
    coefficients[rest <= 1e-13 * size] = 0.0
    powers = coefficients @ _TO_POWERS
    powers[:, 0] = 0.0
    return np.asarray(powers)


def constant_flow(game: Game) -> Flow:
    """The flow of a crowd that quotes ``1 / taker_fill_decay``, the quote that ignores inventory and signal."""
    quotes = np.broadcast_to(1.0 / game.taker_fill_decay, (game.num_steps, *game.shape, 2))
    return induced_flow(game, quotes)[0]


def frozen_map(game: Game, moved: Array, guess: Array | None, slack: float = 0.0) -> tuple[Array, Flow, Array, Array]:
    """Movement at `POINTS` of the crowd that plays best against the movement ``moved`` (N, D + 1), and its parts.

    They are its flow, depths and values; guess and slack are those of `best_response`.
    """
    nothing = np.zeros((game.num_steps, 2))
    against = Flow(movement_through(moved, game.order_size), nothing, nothing)
    quotes, values = best_response(game, against, guess, slack)
    one = np.ones((*quotes.shape[:-1], 1))
    flow = _crowd_flow(game, quotes[..., None, :], one, POINTS)[0]
    return flow.powers(POINTS), flow, quotes, values


def solve_equilibrium_flow(
    game: Game, tolerance: float = 1e-10, start: mean_field_limit.Equilibrium | None = None
) -> Flow:
    """The equilibrium flow of the frozen-control game.

    Parameters
    ----------
    game : Game
    tolerance : float
        Of the flow: total residual of the price path times the inventory limit, over a taker's value. Rounding leaves
        some 2e-11.
    start : Equilibrium, optional
        Of a game like this one in continuous time, with the same horizon: where its solution starts from.

    Raises
    ------
    ValueError
        If the tolerance is not between 1e-13 and 1.
    mmgym.models.mean_field_limit.NotConverged
        If it is not found in 200 evaluations of the frozen map: no flow is returned. The message says how far it came.

    Notes
    -----
    Found and tested at the strongest impact that is allowed, 0.05 with orders of 10 assets: the default game with
    ``initial_law=[80, 2]``, with ``signal_rate`` 1.5 and 15; and 8 steps in half a day with
    ``inventory_limit=40`` and ``signal_limit=1``, from ``initial_law=[30, 1]`` or with ``signal_rate=[3, 0]``.

    Not found: the default game with ``signal_rate=[3, 0]`` at impacts 0.04 and 0.05; at 0.035 it was. All takers start
    in one state there and buy at once, so that in the first step their best answer jumps between two maxima. (In
    continuous time it is found: `mmgym.models.mean_field_limit.solve_equilibrium`.)
    """
    if not 1e-13 <= tolerance < 1.0:
        raise ValueError(f"tolerance = {tolerance!r} is not allowed: it must be from 1e-13 to below 1")
    quotes, residual, iterations = _still_equilibrium(game, tolerance) or _equilibrium(game, tolerance, start)
    flow, _ = induced_flow(game, quotes)
    return replace(flow, residual=residual, iterations=iterations)


def _still_equilibrium(game: Game, tolerance: float) -> tuple[Array, float, int] | None:
    """As `_equilibrium`, of games in which nobody moves the price, for one is as likely to buy as another to sell."""
    law, sides = game.initial, (game.jumps, game.taker_fill_rate, game.taker_fill_decay)
    mirrored = all(np.array_equal(*pair) for pair in (*sides, (game.inventory, -game.inventory[::-1])))
    if game.impact > 0.0 and not (mirrored and np.array_equal(law, law[::-1, ::-1])):
        return None
    image, _, quotes, values = frozen_map(game, np.zeros((game.num_steps, DEGREE + 1)), None)
    residual = float(game.impact * game.inventory_limit / DEGREE * np.abs(image).sum())
    size = max(abs(float((game.initial * values[0]).sum())), 1e-6 * game.inventory_limit)
    return (quotes, residual, 1) if residual <= tolerance * size else None


def _equilibrium(game: Game, tolerance: float, start: mean_field_limit.Equilibrium | None) -> tuple[Array, float, int]:
    """The equilibrium's quotes, residual and evaluations: from the continuous one, else from weaker impacts."""
    zeros, evaluations = np.zeros((game.num_steps, 1)), 0
    reached, step, beyond = 0.0, game.impact, np.zeros(game.num_steps * DEGREE)
    guess: Array | None = None
    size, missed = 1e-6 * game.inventory_limit, np.inf  # least value of a taker, and the residual relative to hers

    def frozen(part: Game, moved: Array) -> Array:
        nonlocal evaluations, guess, missed
        slack = min(MOST_SLACK, SLACK * missed**2) * size
        while True:
            evaluations += 1
            bar.update(1)
            answered = np.concatenate([zeros, moved.reshape(-1, DEGREE)], axis=1)
            image, _, guess, _ = frozen_map(part, answered, guess, slack)
            missed = float(part.impact * game.inventory_limit / DEGREE * np.abs(image - answered).sum() / size)
            if slack <= 1e-14 * size or missed > tolerance:
                return np.asarray(image[:, 1:].ravel())
            slack = 0.0  # what is near enough is worked out exactly

    with tqdm(desc="equilibrium", unit="evaluation", delay=2.0, disable=None) as bar:
        while True:
            impact = min(reached + step, game.impact)
            part = game._replace(impact=impact)
            weights = np.full(len(beyond), impact * game.inventory_limit / DEGREE)
            bar.set_postfix(impact=f"{impact:.3g}")

            def apply(moved: Array, part: Game = part) -> Array:
                return frozen(part, moved)

            try:
                start = mean_field_limit.rough_equilibrium(part, START_TOLERANCE, start)
                limit = _NearTheLimit(part, start)
                if guess is None:
                    guess, size = limit.quotes, max(abs(start.taker_value), size)
                first, left = limit.start.ravel(), MOST_EVALUATIONS - evaluations
                solution, _, residual, _ = mean_field_limit.fixed_point(
                    apply, first + beyond, weights, tolerance * size, limit.correct, left
                )
            except mean_field_limit.NotConverged as error:
                step *= 0.5
                if step < game.impact / WEAKEST or evaluations >= MOST_EVALUATIONS:
                    raise mean_field_limit.NotConverged(
                        f"on {game.num_steps} decision steps {error}; or raise num_steps, with which the game nears "
                        f"that in continuous time. Equilibria were found up to the impact {reached:.3g} of "
                        f"{game.impact:.3g}, with {evaluations} evaluations in all, at most {MOST_EVALUATIONS}"
                    ) from error
                continue
            if impact == game.impact:
                return guess, residual, evaluations
            beyond, reached = solution - first, impact


class _NearTheLimit:
    """The game in continuous time near its equilibrium: a first guess and an approximate inverse for the frozen one."""

    def __init__(self, game: Game, continuous: mean_field_limit.Equilibrium) -> None:
        self.game, times = game, continuous.flow.times
        self.linearised = mean_field_limit.Linearised(game, times, continuous.taker_quotes, continuous.flow.laws)
        self.steps = game.step_length * np.arange(game.num_steps)
        self.inside = (self.steps[:, None] + game.step_length * POINTS[None, :]).clip(0.0, game.horizon)
        self.start = self._moved(continuous.flow.drift)
        self.quotes = continuous.taker_quotes[np.searchsorted(self.linearised.curve, self.steps)]

    def _moved(self, drift: Array) -> Array:
        """Movement at `POINTS` but the first, shape (N, D), that gives a drift curve."""
        path = CubicSpline(self.linearised.curve, drift).antiderivative()(self.inside)
        return np.asarray((path[:, 1:] - path[:, :1]) / self.game.impact)

    def correct(self, _: Array, residual: Array) -> Array:
        """About ``(1 - DPhi)^-1 residual``, by GMRES on the continuous map's derivative."""
        game, curve = self.game, self.linearised.curve
        full = np.concatenate([np.zeros((game.num_steps, 1)), residual.reshape(game.num_steps, DEGREE)], axis=1)
        flow = Flow(movement_through(full, game.order_size), np.zeros((1, 2)), np.zeros((1, 2)))
        step = np.minimum((curve / game.step_length).astype(int), game.num_steps - 1)
        x = curve / game.step_length - step
        order = np.arange(1, DEGREE + 1)
        speed = (flow.movement[step, 1:] * order * x[:, None] ** (order - 1)).sum(axis=1)
        response = self.linearised.response(game.impact / game.step_length * speed)
        return np.asarray(residual + self._moved(response).ravel())


# Kept flows -----------------------------------------------------------------------------------------------------------


def _crowd(game: Game) -> dict[str, Any]:
    """The fields that the crowd depends on, as JSON types."""
    later = {name: value for name, value in ADDED.items() if getattr(game, name) != value}
    content: dict[str, Any] = json.loads(json.dumps({name: getattr(game, name) for name in (*FIELDS, *later)}))
    return content


def flow_file(game: Game) -> Path:
    """Where the equilibrium flow of a game is kept once it is solved: in the user's cache, or ``MMGYM_CACHE_DIR``."""
    folder = Path(os.environ.get("MMGYM_CACHE_DIR") or platformdirs.user_cache_dir("mmgym")) / "flows"
    digest = hashlib.sha256(json.dumps(_crowd(game), sort_keys=True).encode()).hexdigest()[:24]
    return folder / f"mean_field-{digest}-{source_digest(Path(__file__).parents[1])}.npz"


def save_flow(flow: Flow, game: Game, stream: Any) -> None:
    """Write a flow as npz, with the game that it belongs to as JSON."""
    np.savez_compressed(
        stream,
        movement=flow.movement[:, : _used(flow.movement)],
        mean_quotes=flow.mean_quotes,
        quoting=flow.quoting,
        residual=np.array(flow.residual),
        iterations=np.array(flow.iterations),
        variation=np.array(flow.variation),
        game=np.array(json.dumps(_crowd(game))),
    )


def _used(movement: Array) -> int:
    return int(np.flatnonzero(np.abs(movement).sum(axis=0)).max(initial=0)) + 1


def load_flow(stream: Any, game: Game) -> Flow | None:
    """A flow written by `save_flow` for this game, or None: whatever a file's damage, it is solved again."""
    count = game.num_steps
    try:
        stored = read_arrays(stream)
        if parse_json(str(stored["game"]), "game") != _crowd(game):
            return None
        used = stored["movement"].shape[-1]
        if used > DEGREE + 1:
            return None
        movement = np.zeros((count, DEGREE + 1))
        movement[:, :used] = numbers(stored["movement"], "movement", (count, used), "f")
        quotes, quoting = (numbers(stored[name], name, (count, 2), "f") for name in ("mean_quotes", "quoting"))
        residual, variation = (float(numbers(stored[name], name, (), "f")) for name in ("residual", "variation"))
        iterations = int(numbers(stored["iterations"], "iterations", (), "iu"))
        return Flow(movement, quotes, quoting, residual, iterations, variation)
    except (UnreadableFile, KeyError, IndexError, ValueError):
        return None


@functools.lru_cache(maxsize=32)
def equilibrium_flow(game: Game) -> Flow:
    """The equilibrium flow of the frozen-control game: shipped for the registered markets, else solved once and kept.

    Raises
    ------
    mmgym.models.mean_field_limit.NotConverged
        If it is not found.
    """
    for name, arguments in PRESETS.items():
        if _crowd(Game.create(**arguments)) == _crowd(game):
            with (resources.files("mmgym") / "data" / f"mean_field_{name}.npz").open("rb") as stream:
                kept = load_flow(stream, game)
            if kept is not None:
                return kept
    path = flow_file(game)
    with contextlib.suppress(OSError), path.open("rb") as stream:
        kept = load_flow(stream, game)
        if kept is not None:
            return kept
    flow = solve_equilibrium_flow(game)
    with contextlib.suppress(OSError), replacing(path) as part, part.open("wb") as stream:
        save_flow(flow, game, stream)
    return flow
