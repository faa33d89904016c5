r"""Value functions of the intraday power market.

Apart from cash and the marked inventory, ``V = x + q s + Theta(tau, j, q, y)`` with

.. math::
    \partial_\tau\Theta = A\Theta + q \sum_k \mathrm{sgn}_k\,y_k\,E[\xi_k | j] - \phi q^2
    + y_+ \psi(c_+) + y_- \psi(c_-), \quad
    c_\pm = h - E\xi_\pm + E\{\Theta(j', q \mp 1, y + \zeta_\pm) - \Theta(j', q, y + \zeta_\pm)\},

``A`` the generator of the spread ``j`` and the intensities, ``psi(c) = max_{d >= 0} f(d) (d + c)`` attained at the
offset ``d = max(0, 1 / kappa - c)`` or at 0 (`mmgym.baselines.hawkes_flow.reach`), and ``Theta(0) = -|q| h - alpha
q^2`` (section 4 of the notes, for the full state). Six intensities are too many for a grid: ``Theta`` is sought in a
`mmgym.baselines.hawkes_power.basis.Space`. What that costs is measured, not assumed, by
`mmgym.baselines.hawkes_power.bounds`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.differential_equations import runge_kutta_step
from mmgym.baselines.hawkes_flow.reach import reach_laws
from mmgym.baselines.hawkes_power import kernels
from mmgym.baselines.hawkes_power.basis import Space, expansion_space, features_at, fitted_space
from mmgym.baselines.hawkes_power.kernels import Basis
from mmgym.models.hawkes_power import BUY, MARKET, MID_SIGN, SELL, Params

Array = NDArray[np.float64]

__all__ = ["KINDS", "ValueFunction", "value_function"]

KINDS = ("fitted", "first_order", "frozen", "join_best")

FIRST_SLICE, LARGEST_SLICE, GROWTH = 0.02, 0.25, 0.05  # of the time left, in units of the fastest time scale / 1/3
STABLE = 2.2  # largest step times the fastest rate; 2.78 is the limit


class ValueFunction(NamedTuple):
    """A value function, as kernels take it.

    Attributes
    ----------
    basis : Basis
    borders : array, shape (slices + 1,)
        Of the slices of the time left (minutes), rising from 0.
    table : array, shape (slices, B, 2 Q + 1)
        Coefficients in the middle of each slice (EUR / MWh lots).
    """

    basis: Basis
    borders: Array
    table: Array

    def at(self, params: Params, time_left: Array, inventory: Array, spread: Array, rates: Array) -> Array:
        """Edges of bid and ask, and the value, shape (S, 3), at states (S,) with rates (S, 6)."""
        result = np.empty((len(time_left), 3))
        kernels.look_up(
            MARKET.record(params),
            *self,
            np.ascontiguousarray(time_left, dtype=np.float64),
            np.ascontiguousarray(inventory, dtype=np.int64) + params.inventory_limit,
            np.ascontiguousarray(spread, dtype=np.int64),
            np.ascontiguousarray(rates, dtype=np.float64),
            result,
        )
        return result

    def initial(self, params: Params) -> float:
        """The last slice's value at the initial state, from which simulations with control variates count."""
        p = params
        features = features_at(p, self.basis, np.array([p.initial_spread]), np.array([p.initial_rates]))
        return float(features[0, 0] @ self.table[-1, :, p.initial_inventory + p.inventory_limit])


def slice_borders(params: Params, growth: float = GROWTH, largest: float = LARGEST_SLICE) -> Array:
    """Borders of the slices of the time left: short ones at the end of the episode."""
    unit = 3.0 / float(params.decays.max())
    borders = [0.0]
    while borders[-1] < params.horizon:
        width = min(max(FIRST_SLICE * unit, growth * borders[-1]), max(largest * unit, params.horizon / 2_000))
        borders.append(borders[-1] + width)
    return np.array(borders) * (params.horizon / borders[-1])


class _RightHandSide:
    """The equation of ``Theta``, projected on a space.

    Attributes
    ----------
    offsets : pair of arrays (S, 2 Q + 1) or None
        Of bid and ask at the states and inventories (EUR / MWh); None for the best ones.
    losses : array (S, 2 Q + 1) or float
        What else is earned at the states and inventories (EUR lots / MWh / minute).
    """

    def __init__(self, params: Params, space: Space) -> None:
        self.laws = list(zip(*reach_laws(params), strict=True))
        self.offsets: tuple[Array | None, Array | None] = (None, None)
        self.losses: Array | float = 0.0
        features = features_at(params, space.basis, space.spreads, space.rates)
        self.bought, self.sold = (np.ascontiguousarray(features[:, row]) for row in (2, 3))
        self.projection = space.projection
        self.generator = space.projection @ features[:, 1]
        impacts = space.basis.impacts[:, space.spreads - 1]
        q = np.arange(-params.inventory_limit, params.inventory_limit + 1.0)
        drift = (MID_SIGN[:, None] * space.rates.T * impacts).sum(axis=0)
        ones = np.ones(len(space.spreads))
        self.source = np.outer(self.projection @ drift, q)
        self.source -= params.running_penalty * np.outer(self.projection @ ones, q**2)
        half_spread = params.half_tick * space.spreads
        self.asks, self.bids = half_spread - impacts[BUY], half_spread - impacts[SELL]
        self.buys, self.sells = (np.ascontiguousarray(space.rates[:, k]) for k in (BUY, SELL))
        terminal = -np.outer(half_spread, np.abs(q)) - params.terminal_penalty * q**2
        self.terminal = self.projection @ terminal
        given = ~np.isnan(space.linear)
        self.generator[given] = np.diag(np.where(given, space.linear, 0.0))[given]
        self.source[given] = np.outer(space.forcing, q)[given]
        self.total = np.empty((len(space.spreads), len(q)))

    def __call__(self, table: Array, half_steps: int = 0) -> Array:
        steps = np.diff(table, axis=1)
        self.total[:] = self.losses
        asks = self.asks[:, None] - self.bought @ steps
        kernels.add_order_gains(self.buys, asks, self.laws[1], True, self.offsets[1], self.total)
        bids = self.bids[:, None] + self.sold @ steps
        kernels.add_order_gains(self.sells, bids, self.laws[0], False, self.offsets[0], self.total)
        return np.asarray(self.generator @ table + self.source + self.projection @ self.total)

    def fastest(self) -> float:
        """The fastest rate: where every order fills, of values that alternate from one inventory to the next."""
        orders = self.buys[:, None] * self.bought + self.sells[:, None] * self.sold
        alternating = self.generator - 2.0 * self.projection @ orders
        return float(max(np.abs(np.linalg.eigvals(a)).max() for a in (self.generator, alternating)))


def march(
    params: Params,
    space: Space,
    *,
    offsets: Callable[[float], Array] | None = None,
    losses: Callable[[float], Array] | None = None,
    borders: Array | None = None,
) -> ValueFunction:
    """Solve for ``Theta`` in a space, by fourth-order Runge-Kutta steps.

    Parameters
    ----------
    params : Params
    space : Space
    offsets : callable, optional
        Time left in the middle of a slice -> offsets (2, S, 2 Q + 1) of bid and ask, at the states of the space and all
        inventories, EUR / MWh, of the policy whose value is meant; the best ones by default.
    losses : callable, optional
        Time left in the middle of a slice -> what is earned besides, (S, 2 Q + 1), EUR lots / MWh / minute, at the
        states of the space and all inventories; nothing by default.
    borders : array, optional
        Of the slices of the time left; `slice_borders` by default.

    Raises
    ------
    ArithmeticError
        If the solution is not finite.
    """
    slope = _RightHandSide(params, space)
    borders, fastest = slice_borders(params) if borders is None else borders, slope.fastest()
    tables, table = [], slope.terminal
    slices = list(zip(borders, 0.5 * np.diff(borders), strict=False))
    for left, half in tqdm(slices, "value function", unit="slice", delay=2.0, leave=False, disable=None):
        if offsets is not None:
            slope.offsets = tuple(offsets(left + half))
        if losses is not None:
            slope.losses = losses(left + half)
        steps = max(1, int(np.ceil(half * fastest / STABLE)))
        width = half / steps
        for part in range(2):
            for _ in range(steps):
                table = runge_kutta_step(slope, table, width)
            if part == 0:
                tables.append(table)
    coefficients = np.stack(tables)
    if not np.isfinite(coefficients).all():
        raise ArithmeticError("the value function is not finite: intensities grow too fast for so long a horizon")
    return ValueFunction(space.basis, borders, coefficients)


@functools.lru_cache(maxsize=8)
def value_function(params: Params, kind: str) -> ValueFunction:
    """The value function of one of the `KINDS`; the decision times and initial inventory make no difference to it."""
    if kind == "fitted":
        return march(params, fitted_space(params))
    if kind == "join_best":
        space = fitted_space(params)
        best_quotes = np.zeros((2, len(space.spreads), 2 * params.inventory_limit + 1))
        return march(params, space, offsets=lambda left: best_quotes)
    return march(params, expansion_space(params, 1 if kind == "first_order" else 0))
