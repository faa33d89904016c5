"""How a declared market is played on a recorded book: its state is the inventory, it quotes a bid and an ask."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare
from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.declared import register
from mmgym.baselines.frozen import FrozenProblem
from mmgym.baselines.replay.rules import ReplayRules, quadratic

Array = NDArray[Any]

__all__ = ["rules"]


def rules(declared: declare.Market, params: Any) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for: quotes are depths from the mid, the unit of time is the second.

    Raises
    ------
    TypeError
        If the market has another coordinate than the inventory, or controls that are not the depths of one bid and one
        ask.
    """
    p = params
    names = [coordinate.name for coordinate in declared.coordinates]
    if names != ["inventory"]:
        others = ", ".join(name for name in names if name != "inventory") or "no inventory"
        raise TypeError(f"{declared.name} cannot be replayed: its state has {others}, which a book does not show")
    fills = [k for k, (event, _) in enumerate(declared.moves) if event.counts in ("bid", "ask")]
    if [declared.moves[k][0].counts for k in fills] != ["bid", "ask"] or not declared.boxed.all() or len(names) != 1:
        raise TypeError(f"{declared.name} cannot be replayed: it does not quote the depths of one bid and one ask")
    if len(declared.controls) != 2 or declared.impulse is not None:
        raise TypeError(f"{declared.name} cannot be replayed: its controls are not the depths of one bid and one ask")
    register(declared)
    problem: FrozenProblem = baseline_for(p).problem  # type: ignore[assignment]
    held = np.unique(problem.coordinates["inventory"])
    unit, limit = float(np.diff(held).min()), round(np.abs(held).max() / np.diff(held).min())

    def orders(controls: Array) -> Array:
        return np.concatenate([controls, np.full_like(controls, unit), np.zeros_like(controls[..., :1])], axis=-1)

    def intensity(side: int, depth: Array, offset: Array, spread: Array) -> Array:
        distinct, place = np.unique(np.round(depth, 12), return_inverse=True)
        low, high, _ = declared.boxes(p)
        found = [
            declare.rates_of(declared, p, 0, np.clip([d, d], low, high))[0][fills[side]].max()
            for d in distinct.tolist()
        ]
        return np.asarray(found)[place].reshape(np.shape(depth))

    middle = 0.5 * (declared.boxes(p)[0] + declared.boxes(p)[1])
    pays = declare.rates_of(declared, p, 0, middle)[1][fills].max(axis=1)
    fees = (float(np.mean(middle - pays / unit)), 0.0)
    running, terminal = getattr(p, "running_penalty", None), getattr(p, "terminal_penalty", 0.0)
    return ReplayRules(
        seconds=1.0,
        unit=unit,
        limit=limit,
        from_mid=True,
        ending="pass_on" if declared.liquidation is None else "liquidate",
        orders=orders,
        intensity=intensity,
        fees=fees,
        penalties=None if running is None else quadratic(running, terminal),
    )
