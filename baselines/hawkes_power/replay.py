"""How the full Hawkes market is played on a recorded book: offsets from the best prices, in minutes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.hawkes_flow.reach import fill_probability, reach_laws
from mmgym.baselines.hawkes_power.book import mean_rates
from mmgym.baselines.replay.rules import Processes, ReplayRules, make_replay_rules, quadratic
from mmgym.models import hawkes_power
from mmgym.models.hawkes_power import BUY, SELL, Params

Array = NDArray[Any]


def book_events(times: Array, ticks: Array, orders: Array, sides: Array) -> tuple[Array, Array]:
    """Events of the six processes: moves of a best price are an order's where one of its side bears the same time."""
    found = [(orders, np.where(sides > 0, BUY, SELL))]
    for column, hit, up, down in ((0, SELL, 0, 1), (1, BUY, 2, 3)):
        moves, after = np.diff(ticks[:, column]), times[1:]
        own = orders[(sides < 0) == (hit == SELL)]
        away = -1 if hit == SELL else 1
        by_order = np.isin(after, own) & (np.sign(moves) == away)
        kept = (moves != 0) & ~by_order
        found.append((after[kept], np.where(moves[kept] > 0, up, down)))
    stamps, kinds = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(stamps, kind="stable")
    return stamps[order], kinds[order]


@make_replay_rules.register
def rules(params: Params) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for. Intensities of fills are those at the mean intensity of orders.

    Raises
    ------
    TypeError
        If the tape is observed, which has the event of each step: on a book decisions come by the clock.
    """
    p = params
    if p.observe == "tape":
        raise TypeError("observe = 'tape' cannot be replayed: decisions on a book come by the clock; give 'state'")
    mean, laws = mean_rates(p)[[SELL, BUY]], list(zip(*reach_laws(p), strict=True))

    def observe(time_left: Any, inventory: Any, spread: Any, rates: Array) -> Array:
        return hawkes_power.observe(p, time_left, inventory, np.minimum(spread, p.largest_spread), rates)

    def orders(controls: Array) -> Array:
        sizes, none = np.ones_like(controls), np.zeros_like(controls[..., :1])
        return np.concatenate([controls, sizes, none], axis=-1)

    def intensity(side: int, depth: Any, offset: Any, spread: Any) -> Array:
        return np.asarray(mean[side] * fill_probability(np.maximum(offset, 0.0), *laws[side]))

    return ReplayRules(
        seconds=60.0,
        unit=1.0,
        limit=p.inventory_limit,
        from_mid=False,
        ending="liquidate",
        orders=orders,
        intensity=intensity,
        tick=p.tick,
        observe=observe,
        processes=Processes(p.base_rates, p.excitations, p.decays, np.array(p.initial_rates), book_events),
        penalties=quadratic(p.running_penalty, p.terminal_penalty),
    )
