r"""Values of the Hawkes market with depths that are frozen from one tick of the clock to the next.

Orders come while depths are frozen, and change intensities and inventory. With fill probabilities ``f-`` of the bid and
``f+`` of the ask, a step of length ``m`` at depths ``d`` is worth

    Q(d) = E theta(r - m; q_m, y_m) + E int_0^m (q dS - fills eps - phi q^2 du) + d- f- o- + d+ f+ o+,

``o`` the expected orders that meet an open side. All expectations depend on the depths through ``f(d)`` alone, and are
power series in ``f-`` and ``f+``: they are found at Chebyshev nodes of both and interpolated, and ``Q`` is maximised at
every node of the state. With the slope ``dQ/dd = f o (1 - kappa (d - h + e))`` that defines the edge ``e``, the best
depth is that of one order with this edge (`mmgym.baselines.hawkes_flow.reach`): tables have ``c = e - h``.

Intensities do not depend on fills, buys are independent of sells, and each order is filled with probability ``f``
independently. With asks alone the inventory goes from ``q`` to ``max(q - K, -Q)``, ``K`` the number of thinned orders:

    E[g(q_s, y_s)] = sum_k A_k(s) g(max(q - k, -Q)),    A_k(s) g = E[g(y_s); K_s = k],

with matrices ``A_k`` on the nodes of one intensity, from the exponential of the generator of ``(y, K)``. Bids alone
likewise. With both, it matters whether bids or asks come first where a limit is met within the step, and for what is
earned meanwhile: they are taken in turns, symmetrically (Strang), several times a step, and what is earned with twice
as many turns and extrapolated.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.arguments import check_memory
from mmgym.baselines.chebyshev import chebyshev_nodes
from mmgym.baselines.frozen import Functional
from mmgym.baselines.hawkes_flow import kernels
from mmgym.baselines.hawkes_flow.rates import RateGrid
from mmgym.baselines.hawkes_flow.reach import reach_laws
from mmgym.baselines.hawkes_flow.solver import CRITERION, DepthFunction, FlowGrid, Resolution, Tables
from mmgym.models.hawkes_flow import Params

Array = NDArray[np.float64]

__all__ = ["MOST_IN_STEP", "ClockStep", "clock_march", "orders_in_step"]

MOST_IN_STEP = 4.0  # orders of a side in a step for which this is meant

TURN = 2.5  # length of a turn, in units of a resolution's step
GAUSS = 4  # nodes of the integral over a turn
SPARE = 3.5  # standard deviations of a Poisson number of fills in a turn, beyond which they count as one number


def counting(grid: RateGrid, fill: float, count: int, time: float) -> Array:
    """``A_k`` (count + 1, n, n) after a time; the last one is of so many fills or more."""
    n, size = len(grid.excess), len(grid.excess) * (count + 1)
    jumped, stay = grid.rates[:, None] * grid.jump, grid.drift() - np.diag(grid.rates)
    generator = np.zeros((count + 1, n, count + 1, n))
    for k in range(count):
        generator[k, :, k] = stay + (1.0 - fill) * jumped
        generator[k, :, k + 1] = fill * jumped
    generator[count, :, count] = stay + jumped
    moves = scipy.linalg.expm(time * generator.reshape(size, size))[:n].reshape(n, count + 1, n)
    return np.ascontiguousarray(moves.swapaxes(0, 1))


class _Side:
    """The buys with the ask, or, from the other end of the inventory, the sells with the bid.

    Fields of it have the shape (n, S, any), the axis ``n`` of its own intensity.
    """

    def __init__(self, params: Params, grid: RateGrid, impact: float) -> None:
        self.grid, self.impact, self.limit = grid, impact, params.inventory_limit

    def moves(self, fill: float, time: float) -> Array:
        """The ``A_k`` of a turn."""
        most = float(self.grid.rates[-1]) * time
        count = math.ceil(most + SPARE * (1.0 + math.sqrt(most)))
        return counting(self.grid, fill, max(1, min(count, 2 * self.limit)), time)

    def turn(self, moves: Array, values: Array) -> Array:
        """Values after a turn."""
        count, n, _ = moves.shape
        moved = (moves.reshape(count * n, n) @ values.reshape(n, -1)).reshape(count, *values.shape)
        result = moved[0]
        for k in range(1, count):
            result[:, k:] += moved[k, :, :-k]
            result[:, :k] += moved[k, :, :1]
        return np.asarray(result)

    def earned(self, fill: float, time: float) -> Array:
        """What a turn earns, (n, S, 4): of the price, orders that the open side meets, halves of q^2 and |q|."""
        q = np.arange(-self.limit, self.limit + 1.0)
        is_open, rates = np.where(q > -self.limit, 1.0, 0.0), self.grid.rates[:, None]
        price, ones = rates * self.impact * (q - fill * is_open), np.ones_like(rates)
        fields = np.stack([price, rates * is_open, 0.5 * ones * q**2, 0.5 * ones * np.abs(q)], axis=-1)
        x, w = np.polynomial.legendre.leggauss(GAUSS)
        halves = zip(0.5 * time * (x + 1.0), 0.5 * time * w, strict=True)
        return np.asarray(sum(weight * self.turn(self.moves(fill, u), fields) for u, weight in halves))


class _Turns(NamedTuple):
    """The ``A_k`` of so many turns in a step, at each fill probability."""

    number: int
    halves: list[Array]  # of half a turn of buys
    buys: list[Array]
    sells: list[Array]


def _mirrored(fields: Array) -> Array:
    """Fields (n+, S, n-, any) as the other side has them, and back."""
    return np.ascontiguousarray(fields.transpose(2, 1, 0, 3)[:, ::-1])


def orders_in_step(params: Params) -> float:
    """Orders of one side that come in a step at the initial intensities, or at those of a busier piece."""
    return params.step_length * float(params.typical_rates.max())


def _extrapolated(rough: Array, fine: Array) -> Array:
    """What turns half as long as the fine ones and twice as many would come to, their error being of second order."""
    return (4.0 * fine - rough) / 3.0


class ClockStep:
    """The law of a step of a piece, at fill probabilities that are Chebyshev nodes.

    Attributes
    ----------
    grid : FlowGrid
    earned : array, shape (F, F, n+, S, n-, 5)
        Of the price, expected orders that meet the bid, and the ask, and the integrals of q^2 and |q|; at the fill
        probabilities of bid and ask.
    """

    def __init__(self, params: Params, resolution: Resolution, piece: int) -> None:
        p = self.params = params
        self.grid = FlowGrid(p, resolution, None, piece)
        fastest = max(p.decay_buy, p.decay_sell, float(p.typical_rates[piece].sum()))
        count = max(1, round(p.step_length * fastest / (TURN * resolution.step)))
        self.fills, _ = chebyshev_nodes(1.0, 1 + math.ceil(resolution.nodes / 5 + 2.0 * orders_in_step(p)))
        last = len(self.fills) - 1
        series = np.cos(np.pi * np.outer(np.arange(last, -1, -1), np.arange(last + 1)) / last)
        self.to_series = np.linalg.inv(series)
        self.sides = _Side(p, self.grid.buy, p.impact_buy), _Side(p, self.grid.sell, p.impact_sell)
        self.turns = self._taken(count), self._taken(2 * count)
        self.earned = _extrapolated(*map(self._earned, self.turns))

    def _taken(self, count: int) -> _Turns:
        """So many turns."""
        length, (buy, sell) = self.params.step_length / count, self.sides
        times = ((buy, 0.5 * length), (buy, length), (sell, length))
        return _Turns(count, *([side.moves(fill, time) for fill in self.fills] for side, time in times))

    def _earned(self, turns: _Turns) -> Array:
        """``earned`` with such turns."""
        (buy, sell), half = self.sides, 0.5 * self.params.step_length / turns.number
        bought = [np.insert(buy.earned(fill, half), 1, 0.0, axis=-1)[:, :, None] for fill in self.fills]
        sold = [np.insert(sell.earned(fill, 2.0 * half), 2, 0.0, axis=-1)[:, :, None] for fill in self.fills]
        earned = np.zeros((len(self.fills), len(self.fills), *self.grid.shape, 5))
        for i, j in np.ndindex(earned.shape[:2]):
            fields = earned[i, j]
            for _ in range(turns.number):
                fields = buy.turn(turns.halves[j], fields) + bought[j]
                fields = _mirrored(sell.turn(turns.sells[i], _mirrored(fields)) + sold[i])
                fields = buy.turn(turns.halves[j], fields) + bought[j]
            earned[i, j] = fields
        return earned

    def ahead(self, values: Array) -> Array:
        """Expected values (n+, S, n-) after the step, (F, F, n+, S, n-)."""
        return _extrapolated(*(self._ahead(values, turns) for turns in self.turns))

    def _ahead(self, values: Array, turns: _Turns) -> Array:
        """``ahead`` with such turns."""
        buy, sell = self.sides
        result = np.empty((len(self.fills), len(self.fills), *values.shape))
        for j, half in enumerate(turns.halves):
            first = buy.turn(half, values)
            for i, whole in enumerate(turns.sells):
                fields = first[..., None]
                for left in reversed(range(turns.number)):
                    fields = _mirrored(sell.turn(whole, _mirrored(fields)))
                    fields = buy.turn(turns.buys[j] if left else half, fields)
                result[i, j] = fields[..., 0]
        return result

    def series(self, fields: Array) -> Array:
        """Chebyshev coefficients (cells, F, F) of fields (F, F, n+, S, n-)."""
        size = len(self.fills)
        across = np.tensordot(self.to_series, fields.reshape(size, size, -1), 1)
        return np.ascontiguousarray(np.einsum("jk,ikc->cij", self.to_series, across, optimize=True))


@functools.lru_cache(maxsize=12)
def clock_step(params: Params, resolution: Resolution, piece: int) -> ClockStep:
    """The law of a step of a piece, kept in memory."""
    return ClockStep(params, resolution, piece)


def clock_march(
    params: Params,
    resolution: Resolution,
    *,
    depths: DepthFunction | None = None,
    functional: Functional = CRITERION,
) -> Tables:
    """Values at all ticks of the clock, of the best depths or of given ones: see `march`, whose arguments they are."""
    p, f, last = params, functional, params.pieces - 1
    grid, laws = FlowGrid(p, resolution, None, last), np.stack([*reach_laws(p), 2.0 * p.depth_reach], axis=-1)
    _require_memory(grid, p.num_steps)
    values = grid.terminal(f)
    offsets = np.tile(np.clip(1.0 / laws[:, 0], 0.0, laws[:, 2]), (values.size, 1))
    edges, levels = np.zeros((values.size, 2)), [np.stack([values, *grid.sources(values, f)[1:]])]
    for n in range(1, p.num_steps + 1):
        if n % p.piece_steps == 1 or p.piece_steps == 1:
            step = clock_step(params._replace(observe="state"), resolution, last - (n - 1) // p.piece_steps)
            own, grid = _own(step, f), step.grid
        worth = own[0] + step.series(step.ahead(values))
        if depths is not None:
            played = depths(n * p.step_length, grid.inventory, grid.buy_rate, grid.sell_rate) - p.half_spread
            offsets[:] = np.broadcast_to(played, (*grid.shape, 2)).reshape(-1, 2)
        flat = np.empty(values.size)
        prices = np.array([f.gain * p.half_spread + f.fills, f.gain])
        kernels.choose_offsets(worth, own[1], own[2], laws, prices, depths is None, offsets, edges, flat)
        values = flat.reshape(grid.shape)
        gains = edges.T.reshape(2, *grid.shape) - p.half_spread
        levels.append(np.concatenate([values[None], gains]))
    columns = np.moveaxis(np.stack(levels, axis=1), 3, 2)
    times = p.step_length * np.arange(p.num_steps + 1.0)
    values, bid, ask = (np.ascontiguousarray(column) for column in columns)
    return Tables(
        times, np.array([[0, p.num_steps]]), values, np.stack([bid, ask]), (grid.buy.largest, grid.sell.largest)
    )


def _own(step: ClockStep, functional: Functional) -> tuple[Array, Array, Array]:
    """Series of what a step is worth by itself, and of the orders that meet the bid, and the ask."""
    f, price, bids, asks, square, absolute = functional, *(step.earned[..., k] for k in range(5))
    earned = f.gain * price - f.penalty * step.params.running_penalty * square + f.absolute_inventory * absolute
    return step.series(earned), step.series(bids), step.series(asks)


def _require_memory(grid: FlowGrid, steps: int) -> None:
    nodes = grid.shape[0] * grid.shape[2]
    check_memory(
        96.0 * steps * math.prod(grid.shape),
        f"a solution of {steps:,} times x {nodes} intensities x {grid.shape[1]:,} inventories",
        "inventory_limit, num_steps or the rates",
    )
