"""How the tick-spread market is played on a recorded book: at the best price or a tick better, with market orders."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.replay.rules import ReplayRules, make_replay_rules, quadratic
from mmgym.models.tick_spread import Params

Array = NDArray[Any]


@make_replay_rules.register
def rules(params: Params) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for. A quote of size 0 is none; at a spread of one tick improved is best."""
    p, tables = params, (params.bid_rates, params.ask_rates)

    def orders(controls: Array) -> Array:
        rows = np.array(controls, dtype=np.float64)
        rows[..., :2] = np.where(rows[..., 2:4] > 0.0, -p.tick * rows[..., :2], np.inf)
        return rows

    def intensity(side: int, depth: Array, offset: Array, spread: Array) -> Array:
        state = np.clip(spread, 1, p.num_spreads).astype(np.int64) - 1
        rate = tables[side][(offset < -0.5 * p.tick).astype(np.int64), state]
        return np.where(offset > 0.5 * p.tick, 0.0, rate)  # none behind the best price

    return ReplayRules(
        seconds=1.0,
        unit=p.lot,
        limit=p.limit,
        from_mid=False,
        ending="liquidate",
        orders=orders,
        intensity=intensity,
        spreads=p.num_spreads,
        tick=p.tick,
        fees=(-p.rebate, p.fee),
        penalties=quadratic(p.running_penalty, 0.0),
    )
