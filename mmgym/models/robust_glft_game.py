r"""A market maker against nature: the parameters of the game, and its minimax solution by dynamic programming.

The market is that of `mmgym.models.glft`. At every decision the maker chooses the depths ``d = (d_bid, d_ask)`` in
their box and, at the same time, an adversary chooses the drift of the mid and the fill parameters of both sides,

    u = (mu, A_bid, A_ask, k_bid, k_ask),    |mu - mu_0| <= R_mu,  |A - A_0| <= R_A A_0,  |k - k_0| <= R_k k_0,

all frozen until the next decision. The maker earns her criterion, the adversary its negative (Spooner & Savani 2020,
section 3, with the frozen decision steps of this suite and choices of the adversary on each side). Both see time and
inventory ``q``, and nothing else counts. Let ``J_n(q; d, u)`` be the expected criterion of a step plus the rest. The
adversary may draw her choice by a law ``w`` on the box; the maker does not draw:

    lower value:  max_d min_u J_n(q; d, u),    upper value:  min_w max_d E_w[J_n(q; d, u)]    >= lower value.

The lower one is what the maker can guarantee with quotes that the adversary knows, the upper one what the adversary can
hold her down to with a law that the maker knows. Where they agree, the two policies are a saddle point: neither gains
by knowing the other's. Where a step is short that is so, and the adversary need not draw: her choices lie on the bounds
but for the drift near inventory 0, and for a decay where the best depth is 0, each of which then makes the maker want
just the depth at which the adversary is indifferent. Over long steps the worst drift and the worst fill rates go
together (buyers come before the mid falls), and she has to draw between such corners of her box. It is no theorem here
that the two agree (`E_w[J]` is not concave in the depths; where many fills are expected in a step the maker may have to
draw): `mmgym.baselines.robust_glft.game_value` finds what each policy guarantees, exactly, and says if both are one.

What is solved is the upper problem, backwards in time, for ``F(w) = max_d E_w[J]`` is convex in the law and as a rule
smooth, with the derivative of ``E_w[J]`` at the best depths, where ``min_u J`` has kinks. First the best law that is
one point is found, coordinate by coordinate, by the sign of the derivative at the bounds and a search for its root
between them. Then, as long as a corner of the box is worse for the maker's reply, that corner is added, and the weights
are balanced, two at a time.
"""

import functools
import math
from collections import namedtuple
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.arguments import together
from mmgym.compiling import KERNEL
from mmgym.models import glft
from mmgym.parameters import Choice, Real, check_within, create, row_of
from mmgym.trust_region import advance, begin, new_search, rounding
from mmgym.uniformisation import num_terms

__all__ = ["CONTROLS", "MAX_CELLS", "MOST_POINTS", "Game", "Minimax", "corners", "minimax", "parameters", "step_slopes"]

Array = NDArray[np.float64]
MAX_WORK = 3e8  # of the minimax solution: minutes
MAX_CELLS = 50_000  # decisions of an episode times inventories: a player's table has a row for each
CONTROLS = ("bid_depth", "ask_depth", "drift", "fill_rate_bid", "fill_rate_ask", "fill_decay_bid", "fill_decay_ask")
QUOTES, NATURE = slice(0, 2), slice(2, 7)  # the maker's and the adversary's
SWEEPS, MOST_TRIALS, ROUNDS = 12, 50, 10
MOST_POINTS = 4  # of the law by which the adversary draws: in two dimensions of depths three are enough as a rule
SCANNED = 9  # depths of each side from which the best reply is looked for where many fills are expected
MANY_FILLS = 3.0  # in a step, at the maker's best depths


def _of_glft(name: str, **changes: Any) -> Any:
    return row_of(glft.Params, name, **changes)


FIELDS: dict[str, Any] = {
    "volatility": Annotated[float, _of_glft("volatility", default=2.0, unit="price / sqrt(time)"), "of the mid"],
    "drift": Annotated[float, Real(0.0, -1e6, 1e6, "price / time", "mu_0"), "of the mid, nominal"],
    "fill_rate": Annotated[float, Real(140.0, 1e-9, 1e9, "fills / time", "A_0"), "of each side at depth 0, nominal"],
    "fill_decay": Annotated[float, Real(1.5, 1e-6, 1e6, "1 / price", "k_0"), "of each side, nominal"],
    "drift_reach": Annotated[
        float, Real(5.0, 0.0, 1e6, "price / time", "R_mu"), "how far the adversary may move the drift, up or down"
    ],
    "fill_rate_reach": Annotated[
        float, Real(0.25, 0.0, 0.99, "1", "R_A"), "how far she may move the fill rate of a side, relative to it"
    ],
    "fill_decay_reach": Annotated[
        float, Real(0.25, 0.0, 0.99, "1", "R_k"), "how far she may move the fill decay of a side, relative to it"
    ],
    "order_size": Annotated[float, _of_glft("order_size")],
    "inventory_limit": Annotated[float, _of_glft("inventory_limit", default=10.0)],
    "initial_inventory": Annotated[float, _of_glft("initial_inventory")],
    "initial_price": Annotated[float, _of_glft("initial_price")],
    "horizon": Annotated[float, _of_glft("horizon", default=1.0)],
    "num_steps": Annotated[
        int,
        _of_glft("num_steps", default=200),
        f"decisions of an episode, at most {MAX_CELLS:,} over the number of inventories",
    ],
    "running_penalty": Annotated[float, Real(0.2, 0.0, 1e9, "price / (assets * time)", "phi")],
    "terminal_penalty": Annotated[float, _of_glft("terminal_penalty")],
    "min_depth": Annotated[
        float,
        Real(None, -1e9, 1e9, "price", none=True, end="low"),
        "None is ``-1 / fill_decay``, of the nominal decay",
    ],
    "max_depth": Annotated[
        float,
        Real(None, -1e9, 1e9, "price", none=True, end="high"),
        "None is ``3 / fill_decay``, of the nominal decay",
    ],
    "reward": Annotated[Literal["pnl", "expected"], Choice("pnl")],
}


class _Game:
    """What parameters of the game can do, whoever's they are."""

    @classmethod
    def create(cls, **arguments: Any) -> Any:
        """Checked parameters; the arguments are those of the environment, errors those of `mmgym.parameters.create`."""
        return create(cls, arguments)

    def completed(self: Any, given: Mapping[str, Any]) -> Any:
        """These parameters with the defaults that depend on others, checked against each other."""
        check_within(self, "initial_inventory", "inventory_limit")
        cells = self.num_steps * self.levels
        if cells > MAX_CELLS:
            raise together(
                {name: getattr(self, name) for name in ("num_steps", "inventory_limit", "order_size")},
                f"a player's table would have {cells:,} cells, num_steps * (2 inventory_limit / order_size + 1), which "
                f"must be at most {MAX_CELLS:,}",
            )
        p = self._replace(
            min_depth=-1.0 / self.fill_decay if self.min_depth is None else self.min_depth,
            max_depth=3.0 / self.fill_decay if self.max_depth is None else self.max_depth,
        )
        rate = float(p.nature_high[1])
        for word, decay in (("highest", float(p.nature_high[3])), ("lowest", float(p.nature_low[3]))):
            where = (
                f"at the adversary's highest fill rate and {word} fill decay (from fill_rate = {p.fill_rate!r} and "
                f"fill_decay = {p.fill_decay!r})"
            )
            glft.check_depths(where, rate, decay, p.min_depth, p.max_depth, p.horizon, p.num_steps)
        p._check_work()
        return p

    def _check_work(self: Any) -> None:
        """Refuse a game whose minimax solution would take more than minutes."""
        lowest = min(self.min_depth * float(decay) for decay in (self.nature_low[3], self.nature_high[3]))
        events = 2.0 * float(self.nature_high[1]) * math.exp(-lowest) * self.step_length
        terms = events + 8.0 * math.sqrt(events) + 20.0  # of the series of a step, over inventories that it reaches
        work = self.num_steps * self.levels * min(self.levels, 2.0 * terms) * terms
        if work > MAX_WORK:
            names = ("num_steps", "inventory_limit", "order_size", "fill_rate", "fill_decay", "min_depth", "horizon")
            raise together(
                {name: getattr(self, name) for name in names},
                f"the minimax solution would take many minutes: num_steps * inventories * fills that a step may have * "
                f"inventories that it reaches = {work:g} must be at most {MAX_WORK:g}; raise min_depth, or lower the "
                "inventory limit or the fill rate",
            )

    @property
    def game(self: Any) -> "Game":
        """The game without a role."""
        game: Game = Game._make(self[: len(FIELDS)])
        return game

    @property
    def step_length(self: Any) -> float:
        """Length ``h`` of a decision step (time)."""
        return float(self.horizon / self.num_steps)

    @property
    def inverse_step(self: Any) -> float:
        """``1 / h`` (1 / time)."""
        return float(self.num_steps / self.horizon)

    @property
    def root_step(self: Any) -> float:
        """``sqrt(h)`` (sqrt(time))."""
        return math.sqrt(self.step_length)

    @property
    def limit(self: Any) -> int:
        """Inventory bound in orders."""
        count: int = round(self.inventory_limit / self.order_size)
        return count

    @property
    def levels(self: Any) -> int:
        """Number of inventories."""
        return 2 * int(self.limit) + 1

    @property
    def start(self: Any) -> int:
        """Initial inventory in orders."""
        count: int = round(self.initial_inventory / self.order_size)
        return count

    # Of a player, or of both

    @property
    def sign(self: Any) -> float:
        """Of the player's criterion, in the maker's: 1 or -1."""
        return -1.0 if self.role == "adversary" else 1.0

    @property
    def first_control(self: Any) -> int:
        """Where the player's controls begin."""
        return 2 if self.role == "adversary" else 0

    @property
    def num_own_controls(self: Any) -> int:
        """How many the player has."""
        return {"maker": 2, "adversary": 5, "both": 7}[self.role]

    @property
    def draws_nature(self: Any) -> int:
        """Whether nature draws a corner of her box at every decision: 1 or 0."""
        return 0

    @property
    def solved(self: Any) -> "Game":
        """The game, with what its minimax solution does not depend on at one and the same value."""
        game: Game = self.game._replace(volatility=1.0, initial_inventory=0.0, initial_price=0.0, reward="pnl")
        return game

    # Arrays

    @property
    def inventory(self: Any) -> Array:
        """Inventories (assets), shape (S,)."""
        return np.asarray(np.arange(-self.limit, self.limit + 1) * self.order_size, dtype=np.float64)

    @property
    def nominal(self: Any) -> Array:
        """The nominal choice of nature: drift, fill rates and fill decays, shape (5,)."""
        return np.array([self.drift, self.fill_rate, self.fill_rate, self.fill_decay, self.fill_decay])

    @property
    def _nature_reach(self: Any) -> Array:
        rate, decay = self.fill_rate_reach * self.fill_rate, self.fill_decay_reach * self.fill_decay
        return np.array([self.drift_reach, rate, rate, decay, decay])

    @property
    def nature_low(self: Any) -> Array:
        """Lowest choices of the adversary, shape (5,)."""
        return np.asarray(self.nominal - self._nature_reach)

    @property
    def nature_high(self: Any) -> Array:
        """Highest choices of the adversary, shape (5,)."""
        return np.asarray(self.nominal + self._nature_reach)

    @property
    def control_center(self: Any) -> Array:
        """What action 0 stands for, of both players (7,)."""
        return np.append(np.full(2, 0.5 * (self.min_depth + self.max_depth)), self.nominal)

    @property
    def control_reach(self: Any) -> Array:
        """Half widths of the boxes of both players (7,)."""
        return np.append(np.full(2, 0.5 * (self.max_depth - self.min_depth)), self._nature_reach)


def parameters(**fields: Any) -> Any:
    """The base class of a role's parameters: those of the game, and ``fields`` of its own (annotations)."""
    table: Any = NamedTuple("Fields", [*FIELDS.items(), *fields.items()])
    return type("Fields", (_Game, table), {})


class Game(parameters()):  # type: ignore[misc]
    """Parameters of the game without a role."""

    __slots__ = ()
    role = "both"


class Minimax(NamedTuple):
    """What `minimax` finds, in arrays that are not to be written to."""

    depths: Array  # (N, S, 2): the maker's best reply to what nature chooses
    nature: Array  # (N, S, P, 5): choices of nature
    weights: Array  # (N, S, P): and their probabilities
    values: Array  # (N + 1, S): of the upper problem


def minimax(game: Game) -> Minimax:
    """The upper problem of the game, by dynamic programming; see the module.

    The search is local in the depths, and in nature's choices but for the corners of her box: what the two policies
    guarantee is for `mmgym.baselines.robust_glft` to find.
    """
    return _minimax(game.solved)


@functools.lru_cache(maxsize=16)
def _minimax(p: Game) -> Minimax:
    depths, nature = np.empty((p.num_steps, p.levels, 2)), np.empty((p.num_steps, p.levels, MOST_POINTS, 5))
    weights, values = np.empty((p.num_steps, p.levels, MOST_POINTS)), np.empty((p.num_steps + 1, p.levels))
    values[-1] = -p.terminal_penalty * p.inventory**2
    box = np.array([[p.min_depth] * 2, [p.max_depth] * 2])
    flow = -p.running_penalty * p.inventory**2
    solve_game(
        p.step_length, p.order_size, p.inventory, flow, box, p.nature_low, p.nature_high, corners(p), values, depths,
        nature, weights,
    )  # fmt: skip
    used = int((weights > 0.0).sum(axis=-1).max())
    solution = Minimax(depths, nature[:, :, :used].copy(), weights[:, :, :used].copy(), values)
    for array in solution:
        array.setflags(write=False)
    return solution


def corners(p: Any) -> Array:
    """The corners (32, 5) of nature's box: bit ``j`` of a number says whether its ``j``-th choice is the highest."""
    bits = (np.arange(32)[:, None] >> np.arange(5)) & 1
    return np.asarray(np.where(bits == 1, p.nature_high, p.nature_low))


@njit(**KERNEL)
def step_slopes(step, size, q, depths, nature, assets, flow, values, blocks, out):
    """One-step value of the maker at an inventory and its derivatives in all seven controls.

    Parameters
    ----------
    step, size : float
        Length of the step, and of an order (assets).
    q : int
        Index of the inventory (0 is the lower bound) at the start of the step.
    depths, nature : (2,), (5,)
        Bid and ask depth; drift, fill rates and fill decays.
    assets, flow, values : (S,)
        Inventories, what they earn per unit of time besides fills and drift, and the value of the rest at step end.
    blocks : (2, 6, S)
        Scratch: value, its derivatives in the two intensities, expected bid fills and ask fills, and the integral of
        the inventory.
    out : (8,)
        Value, and derivatives in the order of `CONTROLS`.
    """
    count = len(values)
    x = nature[1] * math.exp(-nature[3] * depths[0])
    z = nature[2] * math.exp(-nature[4] * depths[1])
    bid_gain, ask_gain = size * depths[0], size * depths[1]
    shift = max(x + z, 0.01 / step)
    terms = num_terms(shift * step) + 1
    y, n = blocks[0], blocks[1]
    low, high = max(0, q - terms), min(count - 1, q + terms)
    y[0, low : high + 1] = values[low : high + 1]
    y[1:, low : high + 1] = 0.0
    log_weight = -shift * step
    weight, w = math.exp(log_weight), 1.0 / shift
    value, by_x, by_z, bids, asks, exposure = weight * values[q], 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(1, terms):
        log_weight += math.log(shift * step / j)
        weight = math.exp(log_weight)
        left = terms - j
        low, high = max(0, q - left), min(count - 1, q + left)
        for s in range(low, high + 1):
            up, down = min(s + 1, count - 1), max(s - 1, 0)
            bid, ask = (1.0 if s < count - 1 else 0.0), (1.0 if s > 0 else 0.0)
            for k in range(6):
                n[k, s] = y[k, s] + w * (x * (y[k, up] - y[k, s]) + z * (y[k, down] - y[k, s]))
            n[0, s] += w * (bid * x * bid_gain + ask * z * ask_gain + nature[0] * assets[s] + flow[s])
            n[1, s] += w * bid * (y[0, up] - y[0, s] + bid_gain)
            n[2, s] += w * ask * (y[0, down] - y[0, s] + ask_gain)
            n[3, s] += w * bid * x
            n[4, s] += w * ask * z
            n[5, s] += w * assets[s]
        y, n = n, y
        value += weight * y[0, q]
        by_x += weight * y[1, q]
        by_z += weight * y[2, q]
        bids += weight * y[3, q]
        asks += weight * y[4, q]
        exposure += weight * y[5, q]
    out[0] = value
    out[1], out[2] = size * bids - nature[3] * x * by_x, size * asks - nature[4] * z * by_z
    out[3] = exposure
    out[4], out[5] = by_x * x / nature[1], by_z * z / nature[2]
    out[6], out[7] = -depths[0] * x * by_x, -depths[1] * z * by_z


# A cell of the game at a step: `step_slopes` has the first names. ``points`` and ``weights`` are the law of nature, of
# which the first ``size_of[0]`` count; ``each`` has the value and slopes of every point, ``out`` the mean value and its
# slopes in the depths; ``noise`` is the rounding error of a value.
Cell = namedtuple(
    "Cell",
    [
        "step", "size", "q", "assets", "flow", "values", "blocks", "box", "noise", "search", "points", "weights",
        "count", "each", "out",
    ],
)  # fmt: skip


@njit(**KERNEL)
def _evaluate(cell, depths):
    cell.out[:] = 0.0
    for i in range(cell.count[0]):
        out, point = cell.each[i], cell.points[i]
        step_slopes(
            cell.step, cell.size, cell.q, depths, point, cell.assets, cell.flow, cell.values, cell.blocks, out
        )  # fmt: skip
        for k in range(3):
            cell.out[k] += cell.weights[i] * out[k]


@njit(**KERNEL)
def _reply(cell, depths):
    """Put the best depths near ``depths`` against the law of nature in their place, and evaluate there."""
    none, unit, search, out = np.empty((0, 0)), np.empty(2), cell.search, cell.out
    search.curvature[:] = 0.0
    for side in range(2):
        unit[side] = 1.0 / cell.points[0, 3 + side]
        for i in range(cell.count[0]):
            rate, decay = cell.points[i, 1 + side], cell.points[i, 3 + side]
            fills = rate * math.exp(-decay * depths[side]) * cell.step
            search.curvature[side, side] -= cell.weights[i] * decay * cell.size * fills
    begin(search, depths)
    advanced = False
    while True:  # one call of what is long to compile
        depths[:] = search.point if advanced else search.trial
        _evaluate(cell, depths)
        if advanced:
            break
        advanced = advance(search, out[0], out[1:3], none, cell.box[0], cell.box[1], unit, cell.noise)


@njit(**KERNEL)
def _scan(cell, depths):
    """Put the best of a grid of depths in the place of ``depths``, if it is better, where many fills are expected."""
    fills, trial, chosen = 0.0, np.empty(2), np.empty(2)
    for side in range(2):
        fills += cell.step * cell.points[0, 1 + side] * math.exp(-cell.points[0, 3 + side] * depths[side])
    if fills < MANY_FILLS:
        return
    best = -np.inf
    for i in range(SCANNED * SCANNED + 1):
        for side in range(2):
            place = (i // SCANNED if side == 0 else i % SCANNED) / (SCANNED - 1)
            if i < SCANNED * SCANNED:
                trial[side] = cell.box[0, side] + place * (cell.box[1, side] - cell.box[0, side])
            else:
                trial[side] = depths[side]
        _evaluate(cell, trial)
        if cell.out[0] > best:
            best = cell.out[0]
            chosen[:] = trial
    depths[:] = chosen


@njit(**KERNEL)
def _move(cell, depths, i, k, to):
    """Move the ``i``-th choice of the only point (``k`` < 0), or the ``i``-th weight at the cost of the ``k``-th.

    Returns the derivative of `F` in what is moved.
    """
    if k < 0:
        cell.points[0, i] = to
    else:
        both = cell.weights[i] + cell.weights[k]
        cell.weights[i], cell.weights[k] = to, both - to
    _reply(cell, depths)
    return cell.each[0, 3 + i] if k < 0 else cell.each[i, 0] - cell.each[k, 0]


@njit(**KERNEL)
def _descend(cell, depths, i, k, here, rise, low, high, small):
    """Move as in `_move`, to where `F` is lowest between ``low`` and ``high``; whether anything moved.

    The root of the derivative is found by the Illinois method, until what is left of it does not count (``small``) or
    nothing is left between its bounds (where `F` has a kink).
    """
    start = here
    end = low if rise > 0.0 else high
    if here == end or abs(rise) <= small:
        return False
    last, fall, trial, first = 0, rise, end, rise
    for number in range(MOST_TRIALS):
        slope = _move(cell, depths, i, k, trial)
        if number == 0:
            if slope * first >= 0.0:
                return True
            if first > 0.0:
                low, fall, high, rise = end, slope, here, first
            else:
                low, fall, high, rise = here, first, end, slope
        elif abs(slope) <= small:
            break
        elif slope > 0.0:
            high, rise, fall, last = trial, slope, 0.5 * fall if last > 0 else fall, 1
        else:
            low, fall, rise, last = trial, slope, 0.5 * rise if last < 0 else rise, -1
        trial = (low * rise - high * fall) / (rise - fall)
        if not low < trial < high:
            trial = 0.5 * (low + high)
            if not low < trial < high:
                break
    return abs(trial - start) > 1e-12 * (abs(end - start) + abs(start))


@njit(**KERNEL)
def _best_point(cell, depths, lowest, highest):
    """The best law that is one point, from the one given."""
    for _ in range(SWEEPS):
        settled = True
        for j in range(5):
            if lowest[j] < highest[j]:
                small = 0.1 * cell.noise / (highest[j] - lowest[j])
                here, rise = cell.points[0, j], cell.each[0, 3 + j]
                settled &= not _descend(cell, depths, j, -1, here, rise, lowest[j], highest[j], small)
        if settled:
            break


@njit(**KERNEL)
def _best_weights(cell, depths):
    """The best weights of the points of a law; those that get none are left out."""
    weights, each = cell.weights, cell.each
    for _ in range(SWEEPS):
        settled = True
        for i in range(cell.count[0]):
            for k in range(i):
                rise, both = each[i, 0] - each[k, 0], weights[i] + weights[k]
                settled &= not _descend(cell, depths, i, k, weights[i], rise, 0.0, both, 10.0 * cell.noise)
        if settled:
            break
    kept = 0
    for i in range(cell.count[0]):
        if weights[i] > 1e-14:
            weights[kept] = weights[i]
            cell.points[kept] = cell.points[i]
            kept += 1
    cell.count[0] = kept
    weights[:kept] /= weights[:kept].sum()
    weights[kept:] = 0.0


@njit(**KERNEL)
def _worst_corner(cell, depths, corners):
    """Add the corner that is worst for the maker's depths to the law, with weight 0; False if none is worse than it."""
    out, worst, lowest = np.empty(8), -1, cell.out[0] - 100.0 * cell.noise
    for c in range(len(corners)):
        step_slopes(
            cell.step, cell.size, cell.q, depths, corners[c], cell.assets, cell.flow, cell.values, cell.blocks, out
        )  # fmt: skip
        if out[0] < lowest:
            lowest, worst = out[0], c
    if worst < 0:
        return False
    if cell.count[0] == len(cell.points):  # no room: the least point goes
        least = np.argmin(cell.weights)
        cell.count[0] -= 1
        cell.points[least], cell.weights[least] = cell.points[-1], cell.weights[-1]
        cell.weights[-1] = 0.0
        cell.weights[:] /= cell.weights.sum()
    cell.points[cell.count[0]], cell.weights[cell.count[0]] = corners[worst], 0.0
    cell.count[0] += 1
    _evaluate(cell, depths)
    return True


@njit(**KERNEL)
def solve_game(step, size, assets, flow, box, lowest, highest, corners, values, depths, nature, weights):
    """Solve the upper problem backwards in time.

    Parameters
    ----------
    step, size, assets, flow
        As in `step_slopes`.
    box : (2, 2)
        Lowest and highest depths.
    lowest, highest, corners : (5,), (5,), (32, 5)
        Bounds of nature's choices, and the corners that they make.
    values : (N + 1, S)
        In: the last row. Out: all.
    depths, nature, weights : (N, S, 2), (N, S, P, 5), (N, S, P)
        Out.
    """
    steps, count = depths.shape[0], depths.shape[1]
    room = nature.shape[2]
    search, blocks, out, number = new_search(2), np.empty((2, 6, count)), np.empty(3), np.ones(1, np.int64)
    points, law, each, quotes = np.empty((room, 5)), np.empty(room), np.empty((room, 8)), np.empty(2)
    middle = 0.5 * (lowest + highest)
    first = np.minimum(np.maximum(1.0 / middle[3], box[0]), box[1])
    single = np.empty((count, 5))
    for n in range(steps - 1, -1, -1):
        ahead = values[n + 1]
        noise = rounding(ahead, size / lowest[3])
        for q in range(count):
            quotes[:] = depths[n + 1, q] if n < steps - 1 else first
            points[0] = single[q] if n < steps - 1 else middle
            law[:] = 0.0
            law[0], number[0] = 1.0, 1
            cell = Cell(
                step, size, q, assets, flow, ahead, blocks, box, noise, search, points, law, number, each, out
            )  # fmt: skip
            for turn in range(ROUNDS + 1):
                _scan(cell, quotes)
                _reply(cell, quotes)
                if turn == 0:
                    _best_point(cell, quotes, lowest, highest)
                    single[q] = points[0]
                if turn == ROUNDS or not _worst_corner(cell, quotes, corners):
                    break
                _best_weights(cell, quotes)
            values[n, q] = out[0]
            depths[n, q] = quotes
            for i in range(room):
                nature[n, q, i] = points[min(i, number[0] - 1)]
            weights[n, q] = law
