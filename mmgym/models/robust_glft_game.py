r"""A market maker against nature: the parameters of the game, and its minimax solution by dynamic programming.

The market is that of `mmgym.models.glft`. At every decision the maker chooses the depths ``d = (d_bid, d_ask)`` in
their box and, at the same time, an adversary chooses the drift of the mid and the fill parameters of both sides,

    u = (mu, A_bid, A_ask, k_bid, k_ask),    |mu - mu_0| <= R_mu,  |A - A_0| <= R_A A_0,  |k - k_0| <= R_k k_0,

all frozen until the next decision. The maker earns her criterion, the adversary its negative (Spooner & Savani 2020,
section 3, with the frozen decision steps of this suite and choices of the adversary on each side). Both see time and
inventory ``q``, and nothing else counts: with ``J(n, q; d, u)`` the expected criterion of a step plus the rest,

    lower value:  v_n(q) = max_d min_u J(n, q; d, u),    upper value:  w_n(q) = min_u max_d J(n, q; d, u) >= v_n(q).

The lower one is what the maker can guarantee with quotes that the adversary knows, the upper one what the adversary can
hold her down to with choices that she knows. Where they agree, the pair of policies is a saddle point in pure
strategies, and nobody gains by drawing at random. That is no theorem here (`J` is not concave in the depths where many
fills are expected in a step): `mmgym.baselines.robust_glft.game_value` finds what either policy guarantees, exactly,
and says whether the two figures are one.

What is solved is the upper problem, since ``F(u) = max_d J`` is smooth (its derivative is that of ``J`` at the best
depths), where ``min_u J`` has kinks. In a step of few fills `F` is monotone in the fill rates, and convex in the drift
and in the logarithm of its size along a fill decay; the best choice lies on bounds but for drifts at inventories near 0
and decays where the best depth is 0, where it makes the maker want exactly the depth at which she is indifferent to it.
So it is found coordinate by coordinate, by the sign of the derivative at the bounds and bisection between them.
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

__all__ = ["CONTROLS", "MAX_CELLS", "Game", "Minimax", "minimax", "parameters", "step_slopes"]

Array = NDArray[np.float64]
MAX_CELLS = 100_000  # decisions of an episode times inventories: a player's table has a row for each
CONTROLS = ("bid_depth", "ask_depth", "drift", "fill_rate_bid", "fill_rate_ask", "fill_decay_bid", "fill_decay_ask")
QUOTES, NATURE = slice(0, 2), slice(2, 7)  # the maker's and the adversary's
SWEEPS, MOST_TRIALS = 40, 100


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
        float, Real(None, -1e9, 1e9, "price", none=True), "None is ``-1 / fill_decay``, of the nominal decay"
    ],
    "max_depth": Annotated[
        float, Real(None, -1e9, 1e9, "price", none=True), "None is ``3 / fill_decay``, of the nominal decay"
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
            where = f"at the adversary's highest fill rate and {word} fill decay"
            glft.check_depths(where, rate, decay, p.min_depth, p.max_depth, p.horizon, p.num_steps)
        return p

    @property
    def game(self: Any) -> "Game":
        """The game without a role."""
        found: Game = Game._make(self[: len(FIELDS)])
        return found

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
    def opponent_rows(self: Any) -> Array:
        """What the opponent plays, a row for each decision and inventory: the inventories of a decision follow."""
        return np.zeros((0, 5))

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
    nature: Array  # (N, S, 5): what holds the maker down most
    values: Array  # (N + 1, S): of the upper problem


@functools.lru_cache(maxsize=16)
def minimax(game: Game) -> Minimax:
    """The upper problem of the game, by dynamic programming; see the module.

    The search is local in the depths: what the policies guarantee is for `mmgym.baselines.robust_glft` to find.
    """
    p = game
    depths, nature = np.empty((p.num_steps, p.levels, 2)), np.empty((p.num_steps, p.levels, 5))
    values = np.empty((p.num_steps + 1, p.levels))
    values[-1] = -p.terminal_penalty * p.inventory**2
    box = np.array([[p.min_depth] * 2, [p.max_depth] * 2])
    flow = -p.running_penalty * p.inventory**2
    solve_game(
        p.step_length, p.order_size, p.inventory, flow, box, p.nature_low, p.nature_high, p.nominal, values, depths,
        nature,
    )  # fmt: skip
    for array in (depths, nature, values):
        array.setflags(write=False)
    return Minimax(depths, nature, values)


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
            n0, n1, n2, n3, n4, n5 = nature[0] * assets[s] + flow[s], 0.0, 0.0, 0.0, 0.0, assets[s]
            if s < count - 1:
                gain = y[0, s + 1] - y[0, s] + bid_gain
                n0 += x * gain
                n1 += x * (y[1, s + 1] - y[1, s]) + gain
                n2 += x * (y[2, s + 1] - y[2, s])
                n3 += x * (y[3, s + 1] - y[3, s] + 1.0)
                n4 += x * (y[4, s + 1] - y[4, s])
                n5 += x * (y[5, s + 1] - y[5, s])
            if s > 0:
                gain = y[0, s - 1] - y[0, s] + ask_gain
                n0 += z * gain
                n1 += z * (y[1, s - 1] - y[1, s])
                n2 += z * (y[2, s - 1] - y[2, s]) + gain
                n3 += z * (y[3, s - 1] - y[3, s])
                n4 += z * (y[4, s - 1] - y[4, s] + 1.0)
                n5 += z * (y[5, s - 1] - y[5, s])
            n[0, s], n[1, s], n[2, s] = y[0, s] + w * n0, y[1, s] + w * n1, y[2, s] + w * n2
            n[3, s], n[4, s], n[5, s] = y[3, s] + w * n3, y[4, s] + w * n4, y[5, s] + w * n5
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


# A cell of the game at a step: `step_slopes` has the names; ``noise`` is the rounding error of a value.
Cell = namedtuple("Cell", ["step", "size", "q", "assets", "flow", "values", "blocks", "out", "box", "noise", "search"])


@njit(**KERNEL)
def _evaluate(cell, depths, nature):
    step_slopes(
        cell.step, cell.size, cell.q, depths, nature, cell.assets, cell.flow, cell.values, cell.blocks, cell.out
    )  # fmt: skip


@njit(**KERNEL)
def _reply(cell, depths, nature):
    """Put the best depths near ``depths`` against what nature chooses in their place, and fill ``out`` there."""
    none, unit, search, out = np.empty((0, 0)), np.empty(2), cell.search, cell.out
    _evaluate(cell, depths, nature)
    for side in range(2):
        unit[side] = 1.0 / nature[3 + side]
        intensity = nature[1 + side] * math.exp(-nature[3 + side] * depths[side])
        search.curvature[side, side] = -nature[3 + side] * cell.size * intensity * cell.step
    search.curvature[0, 1] = search.curvature[1, 0] = 0.0
    begin(search, depths)
    while not advance(search, out[0], out[1:3], none, cell.box[0], cell.box[1], unit, cell.noise):
        _evaluate(cell, search.trial, nature)
    depths[:] = search.point
    _evaluate(cell, depths, nature)


@njit(**KERNEL)
def _balance(cell, depths, nature, j, low, fall, high, rise, small):
    """Nature's ``j``-th choice between two at which the derivative of `F` is below and above 0, by the Illinois method.

    It ends where what is left of the derivative does not count (``small``), or nothing is left between the two.
    """
    last = 0
    for _ in range(MOST_TRIALS):
        nature[j] = (low * rise - high * fall) / (rise - fall)
        if not low < nature[j] < high:
            nature[j] = 0.5 * (low + high)
            if not low < nature[j] < high:
                break
        _reply(cell, depths, nature)
        found = cell.out[3 + j]
        if abs(found) <= small:
            break
        if found > 0.0:
            high, rise, fall, last = nature[j], found, 0.5 * fall if last > 0 else fall, 1
        else:
            low, fall, rise, last = nature[j], found, 0.5 * rise if last < 0 else rise, -1


@njit(**KERNEL)
def _solve_cell(cell, depths, nature, lowest, highest):
    """Nature's best choices from those given, and the maker's reply: in their place, and ``out`` there."""
    _reply(cell, depths, nature)
    for _ in range(SWEEPS):
        settled = True
        for j in range(5):
            rise, here = cell.out[3 + j], nature[j]
            end = lowest[j] if rise > 0.0 else highest[j]
            small = 0.1 * cell.noise / max(highest[j] - lowest[j], 1e-300)
            if here == end or abs(rise) <= small:
                continue
            settled = False
            nature[j] = end
            _reply(cell, depths, nature)
            there = cell.out[3 + j]
            if there * rise < 0.0 and rise > 0.0:
                _balance(cell, depths, nature, j, end, there, here, rise, small)
            elif there * rise < 0.0:
                _balance(cell, depths, nature, j, here, rise, end, there, small)
        if settled:
            break


@njit(**KERNEL)
def solve_game(step, size, assets, flow, box, lowest, highest, nominal, values, depths, nature):
    """Solve the upper problem backwards in time.

    Parameters
    ----------
    step, size, assets, flow
        As in `step_slopes`.
    box : (2, 2)
        Lowest and highest depths.
    lowest, highest, nominal : (5,)
        Bounds of nature's choices, and where the search starts at the last step.
    values : (N + 1, S)
        In: the last row. Out: all.
    depths, nature : (N, S, 2), (N, S, 5)
        Out.
    """
    steps, count = depths.shape[0], depths.shape[1]
    search, blocks, out = new_search(2), np.empty((2, 6, count)), np.empty(8)
    quotes, choice = np.empty(2), np.empty(5)
    for n in range(steps - 1, -1, -1):
        ahead = values[n + 1]
        noise = rounding(ahead, size / lowest[3])
        for q in range(count):
            quotes[:] = depths[n + 1, q] if n < steps - 1 else np.minimum(np.maximum(1.0 / nominal[3], box[0]), box[1])
            choice[:] = nature[n + 1, q] if n < steps - 1 else nominal
            cell = Cell(step, size, q, assets, flow, ahead, blocks, out, box, noise, search)
            _solve_cell(cell, quotes, choice, lowest, highest)
            values[n, q] = out[0]
            depths[n, q] = quotes
            nature[n, q] = choice
