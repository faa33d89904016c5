"""The baseline of the tick-spread market: the optimum of its frozen-control problem, and the paper's policies."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import PaperPolicies, TogetherBaseline, make_baseline, optimal_controls
from mmgym.baselines.frozen import Table
from mmgym.baselines.tick_spread.continuous import continuous_controls
from mmgym.baselines.tick_spread.one_step import TickSpreadProblem
from mmgym.models.tick_spread import Params

__all__ = ["tick_spread_baseline"]

Array = NDArray[np.float64]


@make_baseline.register
def tick_spread_baseline(params: Params) -> TogetherBaseline:
    """The baseline of these parameters."""
    limit, size = params.inventory_limit, params.limit_order_max
    inventory: Array = np.tile(np.arange(-params.limit, params.limit + 1.0) * params.lot, params.num_spreads)
    everywhere: Array = np.full(len(inventory), size, dtype=np.float64)
    shape = (params.num_steps, len(inventory), 5)

    def quoting(bid: NDArray[Any], ask: NDArray[Any], improved: tuple[float, float] = (0.0, 0.0)) -> Array:
        """The same sizes (shares, by state) at all steps, without market orders."""
        quotes = np.broadcast_to(np.array(improved), (len(inventory), 2))
        return np.broadcast_to(np.column_stack([quotes, bid, ask, np.zeros_like(bid)]), shape)

    def constant() -> Array:
        return quoting(everywhere, everywhere)

    def inventory_capped() -> Array:
        cap = min(size, limit)
        return quoting(size * (inventory + size <= cap), size * (inventory - size >= -cap))

    def random() -> Table:
        tables = [quoting(everywhere, everywhere, (b, a)) for b in (0.0, 1.0) for a in (0.0, 1.0)]
        return Table(np.stack(tables, axis=2), np.full((*shape[:2], 4), 0.25))

    def without_market_orders() -> Array:
        return optimal_controls(params._replace(market_order_max=0.0))

    papers = PaperPolicies(
        {
            "qvi": lambda: continuous_controls(params),
            "without_market_orders": without_market_orders,
            "inventory_capped": inventory_capped,
            "constant": constant,
            "random": random,
        },
        reference="inventory_capped",
        ours=("inventory_capped",),
    )
    return TogetherBaseline(params, TickSpreadProblem(params), papers)
