r"""Several correlated assets in the market of Guéant, Lehalle & Fernandez-Tapia: 2 to 30, each as in `glft`.

The mids move together, ``dS = mu dt + dB`` with ``E[dB dB'] = Sigma dt``, any covariance matrix, singular ones too;
every asset ``i`` has its own bid and ask, filled at the intensities

    A_i^bid exp(-k_i^bid d_i^bid) 1{q_i < Q_i},    A_i^ask exp(-k_i^ask d_i^ask) 1{q_i > -Q_i},

in orders of ``D_i`` assets. Criterion (Bergault & Guéant 2021 with a quadratic penalty; Guéant 2017, section 4):

    E[W_T - W_0 - int (gamma / 2) q' Sigma q dt - alpha sum_i q_i^2(T)],    W = X + q' S,

or under "cara" ``E[-exp(-gamma (W_T - W_0 - alpha sum_i q_i^2(T)))]``, whose certainty equivalent has the same penalty.

Every mid may also jump at times of its own, independently of the others and with sizes ``J_i`` of its own (see
`mmgym.models.jumps`): what assets have in common is ``Sigma``. As in `glft`, jumps that are not compensated are a
trend, the penalty of "mean" is on ``Sigma`` alone, and under "cara" jumps add ``-(1 / gamma) sum_i lambda_i
(E[exp(-gamma q_i J_i)] - 1 + gamma q_i E[J_i])`` to the flow of an inventory.

One step freezes all depths for ``h = horizon / num_steps`` and simulates the rest exactly: competing exponential clocks
of all sides and jumps. Given the inventory path, ``(int q' dB, B_h)`` is Gaussian with covariance ``[[int q' Sigma q,
m' Sigma], [Sigma m, Sigma h]]``, ``m = int q``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import TINY, multiple, pair, real, refusal, together
from mmgym.market import Market, scalar_kernel
from mmgym.models import glft
from mmgym.models.glft import MAX_EVENTS, MAX_STEPS, check_depths
from mmgym.models.jumps import (
    JUMP_EXPONENT_TOO_LARGE,
    JUMP_LAWS,
    MAX_JUMP_EXPONENT,
    JumpSizes,
    check_jump_law,
    draw_jump,
    jump_exponent_rate,
)
from mmgym.models.wealth import CARA, require_aversion, step_reward
from mmgym.parameters import Choice, Integer, Real, Row, arguments_of, create, row_of
from mmgym.random_streams import exponential, normal, uniform

MAX_ASSETS = 30
FEW = 4  # assets whose records of parameters are short
JUMP_COLUMNS = 7  # rate, the five parameters of the sizes, their average
JUMP_PARAMETERS = ("jump_mean", "jump_volatility", "jump_up_share", "jump_up_mean", "jump_down_mean")

Array = NDArray[np.float64]
Vector = tuple[float, ...]
SINGULAR = 1e-12  # an eigenvalue below this part of the largest one counts as 0


DEFAULT_COVARIANCE = [[4.0, 1.5], [1.5, 2.25]]  # volatilities 2 and 1.5, correlation 0.5
DEFAULT_FILL_RATE = (140.0, 100.0)
OTHER_FILL_RATE = 100.0  # with a covariance that is not the default


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _covariance(given: Any, name: str) -> tuple[Vector, ...]:
    """A checked covariance or correlation matrix, symmetric to the last bit."""
    wanted = f"a list of 2 to {MAX_ASSETS} rows of as many finite numbers, symmetric and positive semi-definite"
    if not _is_list(given) or not 2 <= len(given) <= MAX_ASSETS:
        raise refusal(name, given, wanted)
    n = len(given)
    if any(not _is_list(row) or len(row) != n for row in given):
        raise refusal(name, given, wanted)
    rows = [
        [real(f"{name}[{i}][{j}]", value, low=-1e18, high=1e18) for j, value in enumerate(row)]
        for i, row in enumerate(given)
    ]
    matrix = np.array(rows)
    scale = float(np.abs(matrix).max())
    if np.abs(matrix - matrix.T).max() > 1e-12 * scale:
        i, j = np.unravel_index(np.argmax(np.abs(matrix - matrix.T)), matrix.shape)
        raise ValueError(
            f"{name} is not allowed: it must be symmetric, but {name}[{i}][{j}] = {matrix[i, j]:g} and "
            f"{name}[{j}][{i}] = {matrix[j, i]:g}"
        )
    matrix = 0.5 * (matrix + matrix.T)
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    if lowest < -SINGULAR * scale:
        raise ValueError(f"{name} is not allowed: it must be positive semi-definite, but has the eigenvalue {lowest:g}")
    return tuple(tuple(float(value) for value in row) for row in matrix)


class Volatilities(Row):
    """A number for each asset; none where the covariance is given."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A float for each asset, or an empty tuple."""
        if value is None:
            return ()
        if not _is_list(value) or not 2 <= len(value) <= MAX_ASSETS:
            raise refusal(name, value, f"a list of 2 to {MAX_ASSETS} numbers, one for each asset, or None")
        return tuple(real(f"{name}[{i}]", entry, low=self.low, high=self.high) for i, entry in enumerate(value))

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list, or None."""
        return list(values[0]) or None


class Correlation(Row):
    """A number for all pairs of assets, or a matrix, beside the volatilities."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A tuple of rows, empty without volatilities."""
        n = len(values["volatility"])
        if value is not None and not n:
            raise refusal(name, value, "None without a volatility for each asset")
        if not _is_list(value):
            each = 0.0 if value is None else real(name, value, low=-1.0, high=1.0)
            value = [[1.0 if i == j else each for j in range(n)] for i in range(n)]
        if len(value) != n or any(not _is_list(row) or len(row) != n for row in value):
            raise refusal(name, value, f"a number, or {n} rows of {n} numbers, as there are volatilities")
        if any(value[i][i] != 1.0 for i in range(n)):
            raise refusal(name, value, "a matrix whose diagonal is 1")
        return _covariance(value, name) if n else ()

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list of rows, or None."""
        return [list(row) for row in values[0]] or None


class Covariance(Row):
    """Rows of a covariance matrix."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A tuple of rows: given, or made of volatilities and correlations."""
        volatility = np.array(values["volatility"])
        if not len(volatility):
            return _covariance(DEFAULT_COVARIANCE if value is None else value, name)
        if value is not None:
            raise refusal(name, value, "None where the volatility of each asset is given")
        return _covariance(np.outer(volatility, volatility) * np.array(values["correlation"]), name)

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list of rows; None where volatilities say it."""
        return None if params.volatility else [list(row) for row in values[0]]


class EachAsset(Row):
    """A number for all assets, or one for each."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A float for each asset."""
        n, bounds = len(values["covariance"]), {"low": self.low, "high": self.high}
        if not _is_list(value):
            return (real(name, value, **bounds),) * n
        if len(value) != n:
            raise refusal(name, value, f"a number, or a list of {n} numbers")
        return tuple(real(f"{name}[{i}]", entry, **bounds) for i, entry in enumerate(value))

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list with a number for each asset."""
        return list(values[0])


class EachSide(Row):
    """A number for all sides, or a number or a [bid, ask] pair for each asset."""

    def check(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """A float for each side: all bids, then all asks."""
        n = len(values["covariance"])
        entries = list(value) if _is_list(value) else [value] * n
        if len(entries) != n:
            raise refusal(name, value, f"a number, or a list of {n} numbers or [bid, ask] pairs")
        names = [f"{name}[{i}]" if _is_list(value) else name for i in range(n)]
        pairs = [pair(*named, low=self.low, high=self.high) for named in zip(names, entries, strict=True)]
        return (*(bid for bid, _ in pairs), *(ask for _, ask in pairs))

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """A list with a pair for each asset."""
        n = params.num_assets
        return [[values[0][i], values[0][n + i]] for i in range(n)]


class Params(NamedTuple):
    """Parameters of the market. Build them with `Params.create`, which checks them.

    Tuples have an entry for each asset, those of sides first all bids, then all asks.
    """

    num_assets: int  # n
    volatility: Annotated[
        Vector,
        Volatilities(None, 0.0, 1e9, "price / sqrt(time)", "sigma"),
        f"a list with one for each of 2 to {MAX_ASSETS} assets, in the place of a `covariance`",
    ]
    correlation: Annotated[
        tuple[Vector, ...],
        Correlation(None, -1.0, 1.0, symbol="rho"),
        "beside `volatility`: a number for all pairs, or a matrix; None is 0",
    ]
    covariance: Annotated[
        tuple[Vector, ...],
        Covariance(None, unit="price^2 / time", symbol="Sigma"),
        f"2 to {MAX_ASSETS} rows, symmetric, positive semi-definite (may be singular): it says how many assets there "
        f"are; None is that of `volatility` and `correlation`, without them {DEFAULT_COVARIANCE}",
    ]
    drift: Annotated[Vector, EachAsset(0.0, -1e9, 1e9, "price / time", "mu")]
    fill_rate: Annotated[
        Vector,
        EachSide(None, TINY, 1e12, "1 / time", "A", none=True),
        f"an entry may be a pair [bid, ask]; None is {list(DEFAULT_FILL_RATE)}, or {OTHER_FILL_RATE:g} where the "
        "covariance or the volatility is given",
    ]
    fill_decay: Annotated[Vector, EachSide(1.5, 1e-9, 1e9, "1 / price", "k"), "an entry may be a pair [bid, ask]"]
    order_size: Annotated[Vector, EachAsset(1.0, TINY, 1e9, "assets", "D")]
    inventory_limit: Annotated[Vector, EachAsset(4.0, TINY, 1e12, "assets", "Q"), "1 to 1,000 orders of the asset"]
    initial_inventory: Annotated[Vector, EachAsset(0.0, -1e12, 1e12, "assets", "q_0"), "whole numbers of orders"]
    initial_price: Annotated[Vector, EachAsset(100.0, -1e12, 1e12, "price", "S_0")]
    horizon: Annotated[float, Real(1.0, TINY, 1e9, "time", "T")]
    num_steps: Annotated[int, Integer(100, 1, MAX_STEPS, symbol="N"), "decisions of an episode"]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[float, Real(0.1, 0.0, 1e6, "1 / (price * assets)", "gamma"), '> 0 under "cara"']
    terminal_penalty: Annotated[float, Real(0.0, 0.0, 1e9, "price / assets", "alpha")]
    min_depth: Annotated[
        Vector,
        EachSide(None, -1e12, 1e12, "price", none=True, end="low"),
        "None is -1 over the `fill_decay` of each side",
    ]
    max_depth: Annotated[
        Vector,
        EachSide(None, -1e12, 1e12, "price", none=True, end="high"),
        "None is 3 over the `fill_decay` of each side",
    ]
    jump_rate: Annotated[Vector, EachAsset(0.0, 0.0, 1e12, "1 / time", "lambda_J"), "of jumps of the mid"]
    jump_law: Annotated[Literal["normal", "double_exponential"], row_of(glft.Params, "jump_law")]
    jump_mean: Annotated[Vector, EachAsset(0.0, -1e9, 1e9, "price", "m"), 'of "normal" jumps']
    jump_volatility: Annotated[
        Vector,
        EachAsset(0.0, 0.0, 1e9, "price", "s"),
        'of "normal" jumps, 0: of one size; under "cara" jumps are limited together with the inventory limits',
    ]
    jump_up_share: Annotated[
        Vector, EachAsset(0.5, 0.0, 1.0, symbol="p"), 'of upward ones among "double_exponential" jumps'
    ]
    jump_up_mean: Annotated[Vector, EachAsset(0.0, 0.0, 1e9, "price", "eta_up"), "mean size of an upward one"]
    jump_down_mean: Annotated[Vector, EachAsset(0.0, 0.0, 1e9, "price", "eta_down"), "mean size of a downward one"]
    compensated: Annotated[bool, row_of(glft.Params, "compensated")]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.multi_asset_glft.MultiAssetGLFTEnv`."""
        return create(cls, arguments)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `create` that make these parameters."""
        return arguments_of(self)

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with the defaults that depend on others, checked against each other."""
        n = len(self.covariance)
        changes: dict[str, Any] = {"num_assets": n}
        if self.utility == "cara":
            require_aversion(self.risk_aversion)
        for i, (size, limit, start) in enumerate(
            zip(self.order_size, self.inventory_limit, self.initial_inventory, strict=True)
        ):
            multiple(f"inventory_limit[{i}]", limit, f"order_size[{i}]", size, low=1, high=1e3)
            multiple(f"initial_inventory[{i}]", start, f"order_size[{i}]", size)
            if abs(start) > limit:
                raise together(
                    {f"initial_inventory[{i}]": start, f"inventory_limit[{i}]": limit},
                    "initial_inventory must be from -inventory_limit to inventory_limit",
                )
        if given["fill_rate"] is None:
            plain = given["covariance"] is None and given["volatility"] is None
            rates = DEFAULT_FILL_RATE if plain else (OTHER_FILL_RATE,) * n
            changes["fill_rate"] = 2 * rates
        for name, factor in (("min_depth", -1.0), ("max_depth", 3.0)):
            if given[name] is None:
                changes[name] = tuple(factor / decay for decay in self.fill_decay)
        p = self._replace(**changes)
        sides = zip(p.fill_rate, p.fill_decay, p.min_depth, p.max_depth, strict=True)
        for j, (rate, decay, low, high) in enumerate(sides):
            where = f"of asset {j % n} on the {'bid' if j < n else 'ask'} side"
            check_depths(where, rate, decay, low, high, p.horizon, p.num_steps)
        p._check_jumps()
        return p

    def _check_jumps(self) -> None:
        """Refuse parameters of another law of jumps, and jumps that cannot be computed with."""
        for i in range(self.num_assets):
            where = f"[{i}]"
            check_jump_law(self.jump_law, {name: getattr(self, name)[i] for name in JUMP_PARAMETERS}, where)
        if self.all_jumps * self.step_length > MAX_EVENTS:
            raise together(
                {"jump_rate": self.jump_rate, "horizon": self.horizon, "num_steps": self.num_steps},
                "the expected jumps of all assets a step, jump_rate * horizon / num_steps, must be at most "
                f"{MAX_EVENTS:g}",
            )
        if self.utility == "cara" and self.all_jumps > 0.0:
            exposures = self.risk_aversion * np.array(self.inventory_limit)
            growth = [
                rate * sizes.largest_growth(exposure) if rate > 0.0 else 0.0
                for rate, sizes, exposure in zip(self.jump_rate, self.jump_sizes, exposures.tolist(), strict=True)
            ]
            if sum(growth) * self.horizon > MAX_JUMP_EXPONENT:
                names = ("jump_rate", *JUMP_LAWS[self.jump_law], "risk_aversion", "inventory_limit", "horizon")
                raise together({name: getattr(self, name) for name in names}, JUMP_EXPONENT_TOO_LARGE)

    # Derived constants. Those that kernels read are listed in MARKET below.

    @property
    def step_length(self) -> float:
        """Length ``h`` of a decision step (time)."""
        return self.horizon / self.num_steps

    @property
    def sizes(self) -> Array:
        """Order sizes (assets), shape (n,)."""
        return np.array(self.order_size)

    @property
    def limits(self) -> Array:
        """Inventory bounds in orders, shape (n,), whole numbers."""
        return np.rint(np.array(self.inventory_limit) / self.sizes)

    @property
    def starts(self) -> Array:
        """Initial inventories in orders, shape (n,), whole numbers."""
        return np.rint(np.array(self.initial_inventory) / self.sizes)

    @property
    def jump_sizes(self) -> list[JumpSizes]:
        """The law of each asset's jumps."""
        columns = (getattr(self, name) for name in JUMP_PARAMETERS)
        return [JumpSizes(self.jump_law, *sizes) for sizes in zip(*columns, strict=True)]

    @property
    def jumps(self) -> Array:
        """Jump rates, the five parameters of the sizes, and their averages, shape (n, 7)."""
        return np.array(
            [[rate, *sizes[1:], sizes.average] for rate, sizes in zip(self.jump_rate, self.jump_sizes, strict=True)]
        )

    @property
    def all_jumps(self) -> float:
        """Rate of jumps of all assets (1 / time)."""
        return sum(self.jump_rate)

    @property
    def jump_variances(self) -> Array:
        """Variance of the jumps of each mid per unit of time (price^2 / time), shape (n,)."""
        return np.array(self.jump_rate) * [sizes.square for sizes in self.jump_sizes]

    @property
    def trends(self) -> Array:
        """Expected changes of the mids per unit of time, jumps included (price / time), shape (n,)."""
        drift, jumps = np.array(self.drift), self.jumps
        return drift if self.compensated else drift + jumps[:, 0] * jumps[:, -1]

    @property
    def prices(self) -> Array:
        """Initial mids, shape (n,)."""
        return np.array(self.initial_price)

    @property
    def matrix(self) -> Array:
        """``Sigma``, shape (n, n)."""
        return np.array(self.covariance)

    @property
    def root(self) -> Array:
        """A matrix ``L`` with ``L L' = Sigma``, shape (n, n)."""
        values, vectors = np.linalg.eigh(self.matrix)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))

    @property
    def rates(self) -> Array:
        """Fill rates at depth 0 (1 / time), shape (2 n,): bids, then asks."""
        return np.array(self.fill_rate)

    @property
    def decays(self) -> Array:
        """Fill decays (1 / price), shape (2 n,)."""
        return np.array(self.fill_decay)

    @property
    def depth_center(self) -> Array:
        """Depths of action 0 (price), shape (2 n,)."""
        return np.asarray(0.5 * (np.array(self.min_depth) + np.array(self.max_depth)))

    @property
    def depth_reach(self) -> Array:
        """Half widths of the depth boxes (price), shape (2 n,)."""
        return np.asarray(0.5 * (np.array(self.max_depth) - np.array(self.min_depth)))


# One row of state. Inventories are counted in orders; amounts of money are sums since the reset, price * assets.
STATE = np.dtype(
    [
        ("spread_gain", "f8"),  # depths earned plus gains from the drift
        ("price_gain", "f8"),  # int q' d(S - trend t)
        ("risk", "f8"),  # int q' Sigma q dt
        ("jump_exponent", "f8"),  # under CARA: ln E[exp(-gamma int q' dJ)] given q, J the compensated jumps
        ("mid", "f8", (MAX_ASSETS,)),  # price
        ("step", "i4"),
        ("inventory", "i4", (MAX_ASSETS,)),  # q_i / D_i
        ("bid_fills", "i4"),  # of all assets in the last step
        ("ask_fills", "i4"),
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.spread_gain = 0.0
    s.price_gain = 0.0
    s.risk = 0.0
    s.jump_exponent = 0.0
    s.step = 0
    for i in range(p.num_assets):
        s.mid[i] = p.prices[i]
        s.inventory[i] = np.int32(p.starts[i])
    s.bid_fills = 0
    s.ask_fills = 0


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Depths (bids, then asks) and log-intensities of an action, clipped to the box; False if it is not finite."""
    size = 0.0
    for j in range(2 * p.num_assets):
        value = np.float64(action[j])
        size += abs(value)
        controls[j] = p.depth_center[j] + p.depth_reach[j] * min(max(value, -1.0), 1.0)
        log_intensities[j] = -p.decays[j] * controls[j]
    return size < np.inf


@scalar_kernel
def _quadratic(p, q):
    """``q' Sigma q`` of inventories in assets."""
    total = 0.0
    for i in range(p.num_assets):
        for k in range(p.num_assets):
            total += q[i] * p.matrix[i, k] * q[k]
    return total


@scalar_kernel
def _exponent_rate(p, q):
    """Growth of the jumps' exponent, under CARA, of inventories in assets."""
    total = 0.0
    if p.all_jumps > 0.0 and p.utility == CARA:
        for i in range(p.num_assets):
            jump = p.jumps[i]
            total += jump_exponent_rate(
                p.jump_law, jump[0], jump[1], jump[2], jump[3], jump[4], jump[5], jump[6], -p.risk_aversion * q[i]
            )
    return total


@scalar_kernel
def _place_of(draw, weights, count):
    """Where a number below the sum of some weights falls among them."""
    j = 0
    while j < count - 1 and draw >= weights[j]:
        draw -= weights[j]
        j += 1
    while weights[j] == 0.0:  # rounding at the upper end
        j -= 1
    return j


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated). It calculates in the entries of ``controls`` after the depths."""
    n = p.num_assets
    q, total, moved = controls[2 * n : 3 * n], controls[3 * n : 4 * n], controls[4 * n : 5 * n]
    active = controls[5 * n : 7 * n]
    s0, s1, fill_rate = s.s0, s.s1, 0.0
    for i in range(n):
        q[i] = p.sizes[i] * s.inventory[i]
        total[i] = 0.0
        active[i] = p.rates[i] * intensities[i] if s.inventory[i] < p.limits[i] else 0.0
        active[n + i] = p.rates[n + i] * intensities[n + i] if s.inventory[i] > -p.limits[i] else 0.0
        fill_rate += active[i] + active[n + i]
    rate = fill_rate + p.all_jumps
    risk_rate, exponent_rate = _quadratic(p, q), _exponent_rate(p, q)

    left, risk, exponent, earned, jumped = p.step_length, 0.0, 0.0, 0.0, 0.0
    bids = asks = 0
    clock, s0, s1 = exponential(s0, s1)
    while clock < rate * left:
        elapsed = clock / rate
        left -= elapsed
        risk += risk_rate * elapsed
        exponent += exponent_rate * elapsed
        for i in range(n):
            total[i] += q[i] * elapsed
        draw, s0, s1 = uniform(s0, s1)
        draw *= rate
        if p.all_jumps > 0.0 and draw >= fill_rate:
            i = _place_of(draw - fill_rate, p.jumps[:, 0], n)
            jump = p.jumps[i]
            size, s0, s1 = draw_jump(p.jump_law, jump[1], jump[2], jump[3], jump[4], jump[5], s0, s1)
            s.mid[i] += size
            jumped += q[i] * size
        else:
            j = _place_of(draw, active, 2 * n)
            i = j if j < n else j - n
            earned += p.sizes[i] * controls[j]
            s.inventory[i] += 1 if j < n else -1
            q[i] = p.sizes[i] * s.inventory[i]
            bids += j < n
            asks += j >= n
            active[i] = p.rates[i] * intensities[i] if s.inventory[i] < p.limits[i] else 0.0
            active[n + i] = p.rates[n + i] * intensities[n + i] if s.inventory[i] > -p.limits[i] else 0.0
            fill_rate = 0.0
            for k in range(2 * n):
                fill_rate += active[k]
            rate = fill_rate + p.all_jumps
            risk_rate, exponent_rate = _quadratic(p, q), _exponent_rate(p, q)
        clock, s0, s1 = exponential(s0, s1)
    risk += risk_rate * left
    exponent += exponent_rate * left
    drift_gain = 0.0
    for i in range(n):
        total[i] += q[i] * left
        drift_gain += p.trends[i] * total[i]

    root_step, price_gain = math.sqrt(p.step_length), 0.0
    for i in range(n):  # independent normals, then the moves of the mids
        active[i], s0, s1 = normal(s0, s1)
    for i in range(n):
        moved[i] = 0.0
        for k in range(n):
            moved[i] += p.root[i, k] * active[k]
        moved[i] *= root_step
        price_gain += total[i] / p.step_length * moved[i]
    if bids + asks > 0:
        z, s0, s1 = normal(s0, s1)
        price_gain += math.sqrt(max(risk - _quadratic(p, total) / p.step_length, 0.0)) * z
    price_gain += jumped
    for i in range(n):
        jump_trend = p.jumps[i, 0] * p.jumps[i, 6]
        price_gain -= jump_trend * total[i]
        s.mid[i] += (p.trends[i] - jump_trend) * p.step_length + moved[i]

    s.spread_gain += earned + drift_gain
    s.price_gain += price_gain
    s.risk += risk
    s.jump_exponent += exponent
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    s.step += 1
    terminated = s.step >= p.num_steps
    penalty = 0.0
    if terminated:
        for i in range(n):
            penalty += p.terminal_penalty * q[i] * q[i]
    reward = step_reward(
        p,
        terminated,
        earned + drift_gain - penalty,
        price_gain,
        0.5 * p.risk_aversion * risk,
        s.spread_gain - penalty,
        s.price_gain,
        0.5 * p.risk_aversion**2 * s.risk + s.jump_exponent,
    )
    return reward, terminated


@scalar_kernel
def observe_one(p, s, observation):
    """Observation [elapsed fraction of the horizon, inventory / limit of each asset]."""
    observation[0] = s.step / p.num_steps
    for i in range(p.num_assets):
        observation[1 + i] = s.inventory[i] / p.limits[i]


def state_ranges(params: Params) -> dict[str, tuple[Any, Any]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    limits = (*params.limits.astype(int).tolist(), *[0] * (MAX_ASSETS - params.num_assets))
    return {
        "step": (0, params.num_steps),
        "inventory": (tuple(-limit for limit in limits), limits),
        "risk": (0.0, math.inf),
        "bid_fills": (0, math.inf),
        "ask_fills": (0, math.inf),
    }


# Depths (price), bids then asks, of actions (..., 2 n), and actions whose depths are the nearest to quotes.
to_quotes: Callable[[Any, Any], Array] = glft.to_quotes
from_quotes: Callable[[Any, Any], NDArray[np.float32]] = glft.from_quotes


def observe(params: Params, step: Any, inventories: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., 1 + n)``, of steps (...) and inventories (..., n) in orders."""
    lots = np.asarray(inventories, dtype=np.float64)
    elapsed = np.broadcast_to(np.asarray(step) / params.num_steps, lots.shape[:-1])
    return np.concatenate([elapsed[..., None], lots / params.limits], axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Step (...) and inventories (..., n) in orders of observations ``(..., 1 + n)``: the inverse of `observe`."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.rint(observations[..., 0] * params.num_steps).astype(np.int64)
    limits = params.limits.astype(np.int64)
    lots = np.rint(observations[..., 1:] * params.limits).astype(np.int64)
    return np.clip(step, 0, params.num_steps), np.clip(lots, -limits, limits)


def _arrays(count: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that kernels read, for so many assets."""
    assets, sides = (
        ("sizes", "limits", "starts", "trends", "prices"),
        ("rates", "decays", "depth_center", "depth_reach"),
    )
    return {
        **dict.fromkeys(assets, (count,)),
        **dict.fromkeys(sides, (2 * count,)),
        **dict.fromkeys(("matrix", "root"), (count, count)),
        "jumps": (count, JUMP_COLUMNS),
    }


MARKET = Market(
    name="multi_asset_glft",
    modules=("mmgym.models.wealth", "mmgym.models.jumps"),
    params_type=Params,
    state=STATE,
    derived=("step_length", "all_jumps"),
    arrays=_arrays(MAX_ASSETS),
    compact=_arrays(FEW),
    num_controls=lambda params: 7 * params.num_assets,
    num_intensities=lambda params: 2 * params.num_assets,
    reset_one=reset_one,
    controls_one=controls_one,
    step_one=step_one,
    observe_one=observe_one,
    ranges=state_ranges,
    observation_low=lambda params: (0, *[-1] * params.num_assets),
    to_quotes=to_quotes,
    from_quotes=from_quotes,
    locate=locate,
)
