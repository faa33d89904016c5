r"""What market orders are worth to a quote, in both Hawkes markets.

An order fills a quote at an offset ``d`` behind the best price with probability ``f(d) = (1 - a) exp(-kappa d)``, and
with probability 1 at the best price (``d <= 0``). A fill earns ``d`` and an edge ``c``, so that the order is worth

    psi(c) = max_{d >= 0} f(d) (d + c) = max(c, (1 - a) exp(kappa c - 1) / kappa)  for kappa c < 1, and else c,

at ``d = 0`` or at ``d = 1 / kappa - c``. It is convex with slopes from 0 to 1, and has a kink where ``a`` is positive.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.compiling import SCALAR
from mmgym.models import hawkes_power
from mmgym.models.hawkes_flow import Params, log_fill

Array = NDArray[np.float64]

__all__ = [
    "best_offset",
    "best_offsets",
    "fill_probability",
    "fill_worth",
    "order_gain",
    "reach_laws",
    "require_no_atom",
]


def reach_laws(params: Params | hawkes_power.Params) -> tuple[Array, Array]:
    """``kappa`` (MWh / EUR) and ``log(1 - a)`` of the orders that fill ``[bid, ask]``, shape (2,) each."""
    p = params
    return np.array([p.fill_decay_sell, p.fill_decay_buy]), np.array([p.log_behind_sell, p.log_behind_buy])


def require_no_atom(params: Params | hawkes_power.Params) -> None:
    """Refuse derivatives in quotes where what they earn jumps.

    Raises
    ------
    TypeError
        With a `reach_atom`.
    """
    if max(params.reach_atom_buy, params.reach_atom_sell) > 0.0:
        shown = [params.reach_atom_buy, params.reach_atom_sell]
        raise TypeError(f"reach_atom = {shown}: derivatives need 0, for what a quote earns jumps at the best price")


def fill_probability(offsets: Any, decays: Any, log_behind: Any) -> Array:
    """``f`` of arrays that broadcast; of negative offsets, which only a market without floor has, ``exp(-kappa d)``.

    Parameters
    ----------
    offsets : array_like
        EUR / MWh.
    decays, log_behind : array_like
        ``kappa`` (MWh / EUR) and ``log(1 - a)``.
    """
    offsets = np.asarray(offsets, dtype=np.float64)
    return np.asarray(np.exp(np.where(offsets > 0.0, log_behind, 0.0) - np.asarray(decays) * offsets))


def best_offsets(edges: Any, decays: Any, log_behind: Any, low: Any = 0.0, high: Any = np.inf) -> Array:
    """The offsets of `order_gain`, of arrays that broadcast, within ``[low, high]`` or 0 (EUR / MWh)."""
    edges, decays = np.asarray(edges, dtype=np.float64), np.asarray(decays, dtype=np.float64)
    offsets = np.clip(1.0 / decays - edges, low, high)
    joins = edges >= fill_probability(offsets, decays, log_behind) * (offsets + edges)
    return np.asarray(np.where(joins, 0.0, offsets))


@njit(**SCALAR)
def fill_worth(offset: float, edge: float, decay: float, log_behind: float) -> float:
    """``f(d) (d + c)``, also of an offset below 0: it is always filled."""
    return float(math.exp(log_fill(offset, decay, log_behind)) * (offset + edge))


@njit(**SCALAR)
def best_offset(edge: float, decay: float, log_behind: float, high: float) -> float:
    """The offset of `order_gain` within ``[0, high]``."""
    offset = min(max(1.0 / decay - edge, 0.0), high)
    joins: bool = edge >= fill_worth(offset, edge, decay, log_behind)
    return 0.0 if joins else offset


@njit(**SCALAR)
def order_gain(edge: float, decay: float, log_behind: float) -> float:
    """``psi(c)``: an order's worth at the best offset."""
    if edge * decay >= 1.0:
        return edge
    return max(edge, math.exp(decay * edge - 1.0 + log_behind) / decay)
