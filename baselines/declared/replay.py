"""How a declared market is played on a recorded book: it quotes a bid and an ask, and trades one size.

What its state has beside the inventory is told as `mmgym.baselines.declared.book_state` has it. Depths are what a fill
that ends without inventory pays for an asset, up to a constant, the fee: controls may count them in ticks.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare
from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.declared import register
from mmgym.baselines.declared.book_state import book_state
from mmgym.baselines.declared.hidden import HiddenBaseline
from mmgym.baselines.frozen import FrozenProblem
from mmgym.baselines.replay.rules import ReplayRules, quadratic

Array = NDArray[Any]

__all__ = ["rules"]


def rules(declared: declare.Market, params: Any) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for: quotes are depths from the mid, the unit of time is the second.

    Raises
    ------
    TypeError
        If the market has a coordinate that a book does not tell, or controls that are not the depths of one bid and one
        ask.
    """
    p = params
    names = [coordinate.name for coordinate in declared.coordinates]
    if "inventory" not in names:
        raise TypeError(f"{declared.name} cannot be replayed: its state has no inventory")
    moves = [event.counts for event, _ in declared.moves]
    fills = [k for side in ("bid", "ask") for k, counts in enumerate(moves) if counts == side]
    counts = [moves[k] for k in fills]
    if counts != ["bid", "ask"] or len(declared.controls) != 2 or declared.impulse is not None:
        quotes = f"{counts.count('bid')} bids and {counts.count('ask')} asks"
        if counts == ["bid", "ask"]:
            quotes = "other controls besides"
        raise TypeError(f"{declared.name} cannot be replayed: it quotes not one bid and one ask of one size: {quotes}")
    register(declared)
    baseline = baseline_for(p)
    if isinstance(baseline, HiddenBaseline):
        raise TypeError(f"{declared.name} cannot be replayed: what it hides is learnt from decision to decision")
    problem: FrozenProblem = baseline.problem  # type: ignore[assignment]
    held = np.unique(problem.coordinates["inventory"])
    unit, limit = float(np.diff(held).min()), round(np.abs(held).max() / np.diff(held).min())
    slopes, fees = _depths(declared, p, fills, unit)

    def orders(controls: Array) -> Array:
        depths = controls * slopes
        return np.concatenate([depths, np.full_like(depths, unit), np.zeros_like(depths[..., :1])], axis=-1)

    def intensity(side: int, depth: Array, offset: Array, spread: Array) -> Array:
        distinct, place = np.unique(np.round(depth, 12), return_inverse=True)
        low, high, _ = declared.boxes(p)
        rates = [
            declare.rates_of(declared, p, 0, np.clip(d / slopes, low, high))[0][fills[side]].max()
            for d in distinct.tolist()
        ]
        return np.asarray(rates)[place].reshape(np.shape(depth))

    running, terminal = getattr(p, "running_penalty", None), getattr(p, "terminal_penalty", 0.0)
    return ReplayRules(
        seconds=1.0,
        unit=unit,
        limit=limit,
        from_mid=True,
        ending="pass_on" if declared.liquidation is None else "liquidate",
        orders=orders,
        intensity=intensity,
        fees=(float(fees.mean()), 0.0),
        state=book_state(declared, p, (fills[0], fills[1]), unit),
        penalties=None if running is None else quadratic(running, terminal),
    )


def _depths(declared: declare.Market, params: Any, fills: list[int], unit: float) -> tuple[Array, Array]:
    """Price of a unit of each control, and fee for an asset, from what fills that end without inventory pay.

    Raises
    ------
    TypeError
        If they do not pay a depth: a number of their own control less a fee.
    """
    low, high, _ = declared.boxes(params)
    column = [coordinate.name for coordinate in declared.coordinates].index("inventory")
    flat = declared.states(params)[:, column] == 0
    following = declared.transitions(params)[fills]
    ends = (following >= 0) & flat[following]
    slopes, fees = np.empty(2), np.empty(2)
    for j, k in enumerate(fills):
        places, paid = [], []
        for own, other in ((0.0, 0.0), (0.3, 1.0), (1.0, 0.4)):
            controls = low + np.where(np.arange(2) == j, own, other) * (high - low)
            controls = np.where(declared.boxed, controls, np.rint(controls))
            places.append(controls[j])
            paid.append(declare.rates_of(declared, params, 0, controls)[1][k][ends[j]] / unit)
        if not ends[j].any() or places[0] == places[2]:
            what = f"no fill of the {('bid', 'ask')[j]} ends without inventory, or it has one depth only"
            raise TypeError(f"{declared.name} cannot be replayed: {what}")
        slopes[j] = (paid[2][0] - paid[0][0]) / (places[2] - places[0])
        fees[j] = slopes[j] * places[0] - paid[0][0]
        line = slopes[j] * np.array(places)[:, None] - fees[j]
        if not slopes[j] > 0.0 or not np.allclose(np.array(paid), line, rtol=1e-9, atol=1e-9 * np.abs(line).max()):
            raise TypeError(
                f"{declared.name} cannot be replayed: its controls are not the depths of one bid and one ask, which a "
                "fill pays less a fee"
            )
    return slopes, np.where(np.abs(fees) > 1e-12 * np.abs(slopes * high), fees, 0.0)
