"""The paper's quotes and the plainest ones, as distances from the mid.

All take the time left (minutes), the inventory (lots), the spread (ticks), arrays of one shape, and the intensities
(that shape and 6, in the order of `PROCESSES`; 1 / minute), and return distances ``[bid, ask]`` from the mid, of that
shape and 2 (EUR / MWh), at least the half-spread.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.hawkes_power.book import effective_impacts
from mmgym.models import hawkes
from mmgym.models.hawkes_power import BUY, SELL, Params

Array = NDArray[np.float64]

__all__ = ["corollary_3", "join_best"]


def join_best(params: Params, time_left: Any, inventory: Any, spread: Any, rates: Any) -> Array:
    """The best quotes of the book on both sides, always."""
    shape = np.broadcast_shapes(*map(np.shape, (time_left, inventory, spread)))
    half_spread = params.half_tick * np.broadcast_to(np.asarray(spread, dtype=np.float64), shape)
    return np.repeat(half_spread[..., None], 2, axis=-1)


def corollary_3(
    params: Params,
    time_left: Any,
    inventory: Any,
    spread: Any,
    rates: Any,
    *,
    as_printed: bool = False,
    floored: bool = True,
) -> Array:
    """The asymptotic quotes of von Luckner, Cartea, Jaimungal & Kiesel (2017), Corollary 3, corrected.

    With ``eps`` the effective mean impacts, ``I`` and ``J`` of `mmgym.models.hawkes` and ``penal = alpha + phi tau``,

        E dB = 2 (eps_K+ I_K+ - eps_K- I_K- - eps_M- I_M-),   E dA = 2 (eps_L+ I_L+ - eps_L- I_L- + eps_M+ I_M+),
        C = (2 / e) [alpha (I_M+ - I_M-) + phi (J_M+ - J_M-)],

    the ask stands at ``1/kappa - h + penal (1 - 2q) + E dB + C`` for ``q >= 1`` and at ``1/kappa + 2 eps + h + penal
    (1 - 2q) + E dA + C`` for ``q <= 0``, at the intensities after the order that fills it; the bid is its mirror image.

    Parameters
    ----------
    as_printed : bool
        The draft pulls ``phi (T - t)`` out of the integral of eq. (27): ``penal (I_M+ - I_M-)`` in ``C``'s bracket.
    floored : bool
        Whether the half-spread is the least distance.
    """
    p = params
    tau, q, spread = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (time_left, inventory, spread)))
    rates = np.broadcast_to(np.asarray(rates, dtype=np.float64), (*tau.shape, 6))
    impacts, half_spread = effective_impacts(p), p.half_tick * spread
    penalty = p.terminal_penalty + p.running_penalty * tau
    processes = p.base_rates, p.excitations, p.decays

    def slopes(order: int) -> tuple[Array, Array]:
        """``E dB + C`` and ``E dA + C`` after an order."""
        jumped = rates + p.excitations * (np.arange(6) == order)
        counts = hawkes.expected_count(*processes, jumped, tau[..., None])
        moves = 2.0 * impacts * counts
        net = counts[..., BUY] - counts[..., SELL]
        if as_printed:
            control = penalty * net
        else:
            weighted = hawkes.weighted_count(*processes, jumped, tau[..., None])
            control = p.terminal_penalty * net + p.running_penalty * (weighted[..., BUY] - weighted[..., SELL])
        control = 2.0 * np.exp(-1.0) * control
        bid = moves[..., 0] - moves[..., 1] - moves[..., SELL]
        ask = moves[..., 2] - moves[..., 3] + moves[..., BUY]
        return bid + control, ask + control

    bought, sold = slopes(BUY), slopes(SELL)
    out = 2.0 * impacts[BUY] + half_spread + bought[1]
    ask = 1.0 / p.fill_decay_buy + penalty * (1.0 - 2.0 * q) + np.where(q >= 1, bought[0] - half_spread, out)
    out = 2.0 * impacts[SELL] + half_spread - sold[0]
    bid = 1.0 / p.fill_decay_sell + penalty * (1.0 + 2.0 * q) + np.where(q <= -1, -sold[1] - half_spread, out)
    distances = np.stack([bid, ask], axis=-1)
    return np.maximum(distances, half_spread[..., None]) if floored else distances
