r"""Values of the Hawkes market with a constant half-spread, marched backwards along the characteristics.

The wealth to come is ``x + q S + theta(r, q, y+, y-)``, ``r`` the time left. Between market orders nothing random
happens, so with ``S(u)`` the probability of no order in ``u`` and intensities ``y_k(u)`` that decay meanwhile,

    theta(r) = int_0^m S(u) sum_k y_k(u) [nofill_k + fill_k] du - phi q^2 int_0^m S(u) du + S(m) theta(r - m; y(m)),
    nofill_+ = q eps_+ + theta(r - u, q, y_+ + zeta_+),
    fill_+ = f(d - h) (d + c_+),    c_+ = theta(r - u, q - 1, y_+ + zeta_+) - theta(r - u, q, ...) - eps_+,

and with the signs changed for sell orders. If depths move at once with the intensities (the Hamilton-Jacobi-Bellman
equation of the paper) this holds for every ``m``, and the best depth at each moment maximises ``fill``: it is ``max(h,
1/kappa - c)`` cut at the depth box, or the best quote (`mmgym.baselines.hawkes_flow.reach`). If they are frozen from
one decision to the next, ``m`` is the longest time between decisions (or what is left), ``d`` is one number a side, and
what it earns is ``W_k f(d - h) (d + mean of c_k)`` with the probability ``W_k = int S y_k du`` of an order and the mean
over its time: the same maximisation, at the mean of ``c``. The difference, Jensen's gap, is what decisions at events
only cost.

Where base rates vary, every piece is marched through by itself, from the values at the start of the next one: they are
functions of the excesses, which do not jump. A piece ends with a decision.

Numbers: polynomials in both intensities (`mmgym.baselines.hawkes_flow.rates`), for which transport is exact; steps of
length ``d`` in ``r``, each an integral over the characteristic by Gauss-Legendre, whose integrand at a fixed intensity
is the cubic in ``r`` through the last four levels. Far from the horizon that hardly changes, and steps may be long.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.arguments import check_memory
from mmgym.baselines.frozen import Functional
from mmgym.baselines.hawkes_flow.rates import RateGrid, largest_excess
from mmgym.baselines.hawkes_flow.reach import best_offsets, fill_probability, reach_laws
from mmgym.models.hawkes_flow import Params

Array = NDArray[np.float64]
DepthFunction = Callable[[Any, Any, Any, Any], Array]  # (r, q, y+, y-) -> depths (..., 2): bid, ask

__all__ = ["COARSE", "FINE", "DepthFunction", "Resolution", "Tables", "march"]

CRITERION = Functional(gain=1.0, penalty=1.0)
ORDER = 4  # levels that a polynomial in the time left goes through
GAUSS = 4  # nodes of the integral over a step
STARTING = 16  # short steps that stand for one of the first three
PREDICTION = 2  # levels that the unknown one is first extrapolated from
CORRECTIONS = 3
WIDEST = 5.0  # jumps that a grid spans at most, for each node: beyond, it would resolve none
MOST_ORDERS = 2.6  # expected in a step at the highest intensities: more, and the iteration is not stable


class Resolution(NamedTuple):
    """How finely the state is resolved."""

    nodes: int  # of each intensity
    step: float  # longest step, in units of the shortest time 1 / decay or 1 / rate
    tail: float  # probability that an intensity is beyond its grid at the horizon


FINE = Resolution(20, 0.2, 1e-5)
COARSE = Resolution(14, 0.3, 1e-4)


@dataclass(frozen=True)
class Tables:
    """Values and continuation gains on the grid, at levels of the time left.

    Attributes
    ----------
    times : (L,)
        Time left of each level, rising from 0 (minutes).
    segments : (M, 2)
        First and last level of each stretch of times on which functions of them are smooth: a piece, cut where what is
        left of it is the longest time between decisions. A time at which two stretches meet belongs to the earlier one.
    values : (L, S, n+, n-)
        theta, EUR / MWh lots.
    gains : (2, L, S, n+, n-)
        Continuation gains c of bid and ask; with frozen depths, their means over the time of the next order.
    largest : (2,)
        X of the buy and the sell grid (1 / minute).
    nodes : (2, ...)
        Numbers of nodes of the grids.
    """

    times: Array
    segments: NDArray[np.int64]
    values: Array
    gains: Array
    largest: tuple[float, float]


class FlowGrid:
    """Arrays of shape (n+, S, n-): buy intensity, inventory, sell intensity; several of them stand side by side.

    Excesses at the nodes are the same in all pieces of the horizon, intensities those of one.
    """

    def __init__(
        self, params: Params, resolution: Resolution, depth_bounds: tuple[Array, Array] | None, piece: int
    ) -> None:
        p = self.params = params
        self.piece = piece
        sides = (
            (p.base_rates[:, 0], p.excitation_buy, p.decay_buy, p.initial_excess_buy),
            (p.base_rates[:, 1], p.excitation_sell, p.decay_sell, p.initial_excess_sell),
        )
        nodes = resolution.nodes
        reach = [
            largest_excess(float(mu.max()), zeta, rho, start, p.horizon, resolution.tail)
            for mu, zeta, rho, start in sides
        ]
        self.buy, self.sell = (
            RateGrid(float(mu[piece]), zeta, rho, max(min(x, WIDEST * nodes * zeta), start), nodes)
            for x, (mu, zeta, rho, start) in zip(reach, sides, strict=True)
        )
        self.inventory: Array = np.arange(-p.inventory_limit, p.inventory_limit + 1.0)[None, :, None]
        self.buy_rate, self.sell_rate = self.buy.rates[:, None, None], self.sell.rates[None, None, :]
        self.shape = (len(self.buy.rates), 2 * p.inventory_limit + 1, len(self.sell.rates))
        self.low, self.high = np.zeros(2), 2.0 * p.depth_reach
        if depth_bounds is not None:
            self.low, self.high = (bound - p.half_spread for bound in depth_bounds)
        self.laws = list(zip(*reach_laws(p), strict=True))

    def apply(self, buy: Array, fields: Array, sell: Array) -> Array:
        """Matrices on the intensities of fields (n+, any, n-)."""
        n, k, m = fields.shape
        return ((buy @ fields.reshape(n, k * m)).reshape(n * k, m) @ sell.T).reshape(n, k, m)

    def jumped(self, values: Array) -> tuple[Array, Array]:
        """Values after a buy and after a sell order, at the same inventory."""
        n, k, m = values.shape
        return (
            (self.buy.jump @ values.reshape(n, k * m)).reshape(n, k, m),
            (values.reshape(n * k, m) @ self.sell.jump.T).reshape(n, k, m),
        )

    def sources(self, values: Array, functional: Functional) -> tuple[Array, Array, Array]:
        """What comes per unit of time without fills, and continuation gains of bid and ask (0 on a closed side)."""
        p, q, f = self.params, self.inventory, functional
        bought, sold = self.jumped(values)
        idle = self.buy_rate * (f.gain * p.impact_buy * q + bought) + self.sell_rate * (
            sold - f.gain * p.impact_sell * q
        )
        idle += f.absolute_inventory * np.abs(q) - f.penalty * p.running_penalty * q**2
        bid, ask = np.zeros(self.shape), np.zeros(self.shape)
        bid[:, :-1] = sold[:, 1:] - sold[:, :-1] + (f.fills - f.gain * p.impact_sell)
        ask[:, 1:] = bought[:, :-1] - bought[:, 1:] + (f.fills - f.gain * p.impact_buy)
        return idle, bid, ask

    def terminal(self, functional: Functional) -> Array:
        """Values at the end."""
        p, q = self.params, self.inventory
        penalty = functional.penalty * (p.half_spread * np.abs(q) + p.terminal_penalty * q**2)
        return np.broadcast_to(-penalty, self.shape).copy()

    def best_depths(self, bid_gain: Array, ask_gain: Array) -> tuple[Array, Array]:
        """Depths of bid and ask that maximise what a fill earns, for continuation gains."""
        half_spread = self.params.half_spread
        bid, ask = (
            half_spread + best_offsets(half_spread + gain, *law, low, high)
            for gain, law, low, high in zip((bid_gain, ask_gain), self.laws, self.low, self.high, strict=True)
        )
        return bid, ask

    def fills(
        self, depths: tuple[Array, Array], weights: tuple[Array, Array], gains: tuple[Array, Array], gain: float
    ) -> Array:
        """``weight f(d - h) (gain d + c)``, summed over both sides."""
        bids, asks = (
            fill_probability(depth - self.params.half_spread, *law) * (gain * depth * weight + own)
            for depth, law, weight, own in zip(depths, self.laws, weights, gains, strict=True)
        )
        earned = np.zeros(self.shape)
        earned[:, :-1] += bids[:, :-1]
        earned[:, 1:] += asks[:, 1:]
        return earned

    def order_probabilities(self, time: float) -> tuple[Array, Array]:
        """Probabilities that the next order comes within ``time`` and is a sell, or a buy: ``int S y_k du``."""
        x, w = np.polynomial.legendre.leggauss(24)
        sell, buy = np.zeros((self.shape[0], 1, self.shape[2])), np.zeros((self.shape[0], 1, self.shape[2]))
        for u, weight in zip(0.5 * time * (x + 1.0), 0.5 * time * w, strict=True):
            buy_alone, sell_alone = self.buy.survival(u)[:, None, None], self.sell.survival(u)[None, None, :]
            survival = weight * buy_alone * sell_alone
            sell += survival * self.sell.rates_after(u)[None, None, :]
            buy += survival * self.buy.rates_after(u)[:, None, None]
        return sell, buy


def _lagrange(nodes: Array, x: float) -> Array:
    """Values at ``x`` of the polynomials that are 1 at one node and 0 at the others."""
    distance = nodes[:, None] - nodes
    np.fill_diagonal(distance, 1.0)
    factors = (x - nodes)[None, :] / distance
    np.fill_diagonal(factors, 1.0)
    return np.asarray(factors.prod(axis=1))


class _Stepper:
    """``carried(r) = int_0^d S F(r - u) du + S(d) carried(r - d)`` along the characteristics, for one length ``d``."""

    def __init__(self, grid: FlowGrid, length: float) -> None:
        self.grid, self.length = grid, length
        x, w = np.polynomial.legendre.leggauss(GAUSS)
        self.times, self.weights = 0.5 * length * (x + 1.0), 0.5 * length * w
        self.paths = [(grid.buy.relaxation(u), grid.sell.relaxation(u)) for u in self.times]
        self.whole = (grid.buy.relaxation(length), grid.sell.relaxation(length))

    def shares(self, past: int) -> Array:
        """Weights (GAUSS, past + 1) of the unknown and the last ``past`` levels of F at the Gauss nodes."""
        nodes = self.length * np.arange(past + 1.0)
        return np.stack([w * _lagrange(nodes, u) for u, w in zip(self.times, self.weights, strict=True)])

    def known(self, carried: Array, history: list[Array], shares: Array) -> Array:
        """The part that does not depend on the unknown level."""
        known = self.grid.apply(self.whole[0], carried, self.whole[1])
        for (buy, sell), share in zip(self.paths, shares, strict=True):
            mixed = share[1] * history[0]
            for j in range(1, len(share) - 1):
                mixed += share[j + 1] * history[j]
            known += self.grid.apply(buy, mixed, sell)
        return known

    def unknown(self, source: Array, shares: Array) -> Array:
        """The part of the unknown level."""
        unknown = np.zeros_like(source)
        for (buy, sell), share in zip(self.paths, shares, strict=True):
            unknown += self.grid.apply(buy, share[0] * source, sell)
        return unknown


class _March:
    """The state of a march through a piece: the levels so far that the next one needs. Times are those left of it."""

    def __init__(
        self,
        grid: FlowGrid,
        held: float,
        functional: Functional,
        depths: DepthFunction | None,
        after: Array | None,
    ) -> None:
        self.grid, self.held, self.functional, self.depths = grid, held, functional, depths
        self.after = after
        self.terminal: Array = grid.terminal(functional) if after is None else after
        self.end = float(grid.params.piece_ends[grid.piece])
        self.time, self.values = 0.0, self.terminal
        self.given: tuple[float, tuple[Array, Array]] | None = None
        self.gains: tuple[Array, Array] = grid.sources(self.values, functional)[1:]
        self.carried = np.concatenate([np.zeros(grid.shape)] * 3, axis=1) if held else self.terminal
        self.history = [self.source(self.values, 0.0)]
        self.window: list[Array] = [self.tail_start()] if held else []
        if held:
            self.whole_orders = grid.order_probabilities(held)
            self.whole_window = grid.buy.relaxation(held), grid.sell.relaxation(held)

    def tail_start(self) -> Array:
        """What a window of frozen depths ends with: value without what is carried, and the carried gains."""
        tail = -self.carried
        tail[:, : self.grid.shape[1]] += self.values
        return tail

    def played(self, time: float, gains: tuple[Array, Array]) -> tuple[Array, Array]:
        """Depths of bid and ask at all nodes."""
        grid = self.grid
        if self.depths is None:
            return grid.best_depths(*gains)
        if self.given is None or self.given[0] != time:
            depths = self.depths(self.end + time, grid.inventory, grid.buy_rate, grid.sell_rate)
            depths = np.broadcast_to(depths, (*grid.shape, 2))
            self.given = time, (depths[..., 0], depths[..., 1])
        return self.given[1]

    def source(self, values: Array, time: float) -> Array:
        """F: all that comes per unit of time, or (frozen depths) without fills, and both gains times intensities."""
        grid = self.grid
        idle, bid, ask = grid.sources(values, self.functional)
        if self.held:
            return np.concatenate([idle, grid.sell_rate * bid, grid.buy_rate * ask], axis=1)
        self.gains = bid, ask
        rates = grid.sell_rate, grid.buy_rate
        earned = rates[0] * bid, rates[1] * ask
        return np.asarray(idle + grid.fills(self.played(time, (bid, ask)), rates, earned, self.functional.gain))

    def close(self, carried: Array, tail: Array, orders: tuple[Array, Array], time: float) -> Array:
        """Values from what is carried over a window of frozen depths that ends in ``tail``."""
        grid, size = self.grid, self.grid.shape[1]
        window = carried + tail
        bid, ask = window[:, size : 2 * size], window[:, 2 * size :]
        self.gains = bid / orders[0], ask / orders[1]
        depths = self.played(time, self.gains)
        return np.asarray(window[:, :size] + grid.fills(depths, orders, (bid, ask), self.functional.gain))

    def step(self, stepper: _Stepper, time: float, tail: Array | None, orders: tuple[Array, Array] | None) -> None:
        """The level ``time``, one step after the last."""
        past = min(len(self.history), ORDER - 1)
        shares = stepper.shares(past)
        known = stepper.known(self.carried, self.history, shares)
        nodes = stepper.length * np.arange(1.0, min(len(self.history), PREDICTION) + 1.0)
        source = sum(w * f for w, f in zip(_lagrange(nodes, 0.0), self.history, strict=False))
        corrections = CORRECTIONS if len(self.history) >= ORDER else CORRECTIONS + 2
        for _ in range(corrections):
            carried = known + stepper.unknown(np.asarray(source), shares)
            values = carried if tail is None or orders is None else self.close(carried, tail, orders, time)
            source = self.source(values, time)
        self.time, self.carried, self.values = time, carried, values
        self.history = [np.asarray(source), *self.history[: ORDER - 1]]

    def advance(self, stepper: _Stepper, level: int, wide: int) -> None:
        """One step to the level ``level``, ``wide`` of which make a window (0: depths move at once)."""
        grid, time = self.grid, level * stepper.length
        tail = orders = None
        if wide and level <= wide:
            orders = grid.order_probabilities(time)
            tail = np.zeros_like(self.carried)
            tail[:, : grid.shape[1]] = self.terminal_after(time)
        elif wide:
            orders = self.whole_orders
            tail = grid.apply(self.whole_window[0], self.window[-wide], self.whole_window[1])
        self.step(stepper, time, tail, orders)
        if wide:
            self.window.append(self.tail_start())

    def terminal_after(self, time: float) -> Array:
        """What the end is worth if no order comes until then."""
        buy, sell = self.grid.buy, self.grid.sell
        if self.after is not None:
            return self.grid.apply(buy.relaxation(time), self.after, sell.relaxation(time))
        return np.asarray(buy.survival(time)[:, None, None] * sell.survival(time) * self.terminal)

    def start(self, length: float, wide: int) -> Iterator[int]:
        """Short steps to the first levels, which are told of, of this length; ``wide`` levels make a window."""
        short = _Stepper(self.grid, length / STARTING)
        history = [self.history[0]]
        for i in range(1, (ORDER - 1) * STARTING + 1):
            self.advance(short, i, wide * STARTING)
            if i % STARTING == 0:
                history.insert(0, self.history[0])
                yield i // STARTING
        self.history, self.window = history, self.window[::STARTING]

    def level(self) -> tuple[float, Array, Array, Array]:
        """Time left of the horizon, values and continuation gains."""
        return self.end + self.time, self.values, *self.gains


def _step_counts(grid: FlowGrid, resolution: Resolution, held: bool) -> tuple[int, int]:
    """Steps of the march over a piece, and in the longest time between decisions (0 if depths are not frozen)."""
    p = grid.params
    fastest = max(p.decay_buy, p.decay_sell, float(p.typical_rates[grid.piece].sum()))
    highest = float(grid.buy.rates[-1] + grid.sell.rates[-1])
    longest = min(resolution.step / fastest, MOST_ORDERS / highest)
    if not held:
        return max(int(np.ceil(p.piece_length / longest)), 2 * ORDER), 0
    window = max(int(np.ceil(p.step_length / longest)), -(-2 * ORDER // p.piece_steps))
    return window * p.piece_steps, window


def march(
    params: Params,
    resolution: Resolution,
    *,
    held: bool,
    depths: DepthFunction | None = None,
    functional: Functional = CRITERION,
    depth_bounds: tuple[Array, Array] | None = None,
) -> Tables:
    """Values at all levels, of the best depths or of given ones.

    Parameters
    ----------
    params : Params
    resolution : Resolution
    held : bool
        Whether depths are frozen between decisions (``decision="event"``), or move at once.
    depths : callable, optional
        Depths ``[bid, ask]`` (..., 2) to play, of the time left (minutes) and arrays of inventories (lots), buy and
        sell rates (1 / minute) that broadcast; by default the best ones of the criterion.
    functional : Functional
        Expectation wanted: weights of gain, penalty, fills and absolute inventory.
    depth_bounds : pair of (2,) arrays, optional
        Smallest and largest depth of bid and ask; by default the depth box of the environment.

    Returns
    -------
    Tables
        Without rounding to actions.
    """
    levels: list[tuple[float, Array, Array, Array]] = []
    segments: list[tuple[int, int]] = []
    after = None
    for piece in reversed(range(params.pieces)):
        grid = FlowGrid(params, resolution, depth_bounds, piece)
        steps, window = _step_counts(grid, resolution, held)
        _require_memory(grid, steps, window)
        march = _March(grid, window * (params.piece_length / steps), functional, depths, after)
        own = _march_piece(march, steps, window)
        own[-1] = float(params.piece_ends[piece - 1]) if piece else own[-1][0], *own[-1][1:]
        segments += _segments(len(levels), np.array([level[0] - march.end for level in own]), march.held)
        levels, after = levels + own, march.values
    columns = [np.stack(column) for column in zip(*levels, strict=True)]
    values, bid, ask = (np.ascontiguousarray(np.moveaxis(column, 2, 1)) for column in columns[1:])
    largest = (grid.buy.largest, grid.sell.largest)
    return Tables(columns[0], np.array(segments), values, np.stack([bid, ask]), largest)


def _march_piece(march: _March, steps: int, window: int) -> list[tuple[float, Array, Array, Array]]:
    """Levels of a piece that are kept."""
    grid, p = march.grid, march.grid.params
    length = p.piece_length / steps
    kept = _kept_levels(steps, window, _relaxation(p, steps))
    levels = [march.level()]
    levels += [march.level() for level in march.start(length, window) if level in kept]
    stepper = _Stepper(grid, length)
    for level in tqdm(range(ORDER, steps + 1), "solution", delay=2.0, unit="step", leave=False, disable=None):
        march.advance(stepper, level, window)
        del march.window[:-window]
        if level in kept:
            levels.append(march.level())
    return levels


def _segments(first: int, times: Array, kink: float) -> list[tuple[int, int]]:
    """Stretches of the levels of a piece, from the level ``first`` on, at such times left of it."""
    last, middle = len(times) - 1, int(np.argmin(np.abs(times - kink)))
    ends = [0, middle, last] if 0 < middle < last else [0, last]
    return [(first + low, first + high) for low, high in itertools.pairwise(ends)]


def _relaxation(params: Params, steps: int) -> float:
    """Steps of a march through a piece in which the faster excess decays."""
    return 1.0 / max(params.decay_buy, params.decay_sell) / (params.piece_length / steps)


def _require_memory(grid: FlowGrid, steps: int, window: int) -> None:
    relaxation = _relaxation(grid.params, steps)
    levels_held = 3.0 * window + 6.0 * min(steps, 10.0 * relaxation + steps / max(0.75 * relaxation, 1.0)) + 60.0
    check_memory(
        8.0 * grid.params.pieces * levels_held * math.prod(grid.shape),
        f"a solution of {steps:,} times x {grid.shape[0] * grid.shape[2]} intensities x {grid.shape[1]:,} inventories",
        "inventory_limit, horizon, num_steps or the rates",
    )


def _kept_levels(steps: int, window: int, relaxation: float) -> set[int]:
    """Levels that are kept: all of the first ones, later some in each relaxation time, and the kink."""
    early = int(np.ceil(8.0 * relaxation))
    stride = max(int(0.75 * relaxation), 1)
    kept = set(range(min(early, steps) + 1)) | set(range(early, steps + 1, stride)) | {steps}
    if window:
        kept |= set(range(window, min(window + 2 * ORDER, steps) + 1))
    return kept
