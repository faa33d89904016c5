"""How the reduced Hawkes market is played on a recorded book: offsets from the best prices, in minutes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.hawkes_flow.reach import fill_probability, reach_laws
from mmgym.baselines.replay.rules import Processes, ReplayRules, make_replay_rules, quadratic
from mmgym.models import hawkes_flow
from mmgym.models.hawkes_flow import Params

Array = NDArray[Any]


def order_events(times: Array, ticks: Array, orders: Array, sides: Array) -> tuple[Array, Array]:
    """Buys (0) and sells (1)."""
    return orders, (sides < 0).astype(np.int64)


def require_constant_rates(params: Params) -> None:
    """Refuse base rates that vary on a recorded book, which tells intensities by constant ones.

    Raises
    ------
    TypeError
        If they vary.
    """
    if params.pieces > 1:
        raise TypeError(
            f"base_rate_profile = {params.arguments()['base_rate_profile']} cannot be replayed: on a recorded book "
            "intensities are told by constant base rates; give [1.0]"
        )


@make_replay_rules.register
def rules(params: Params) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for. A depth's part beyond the half-spread is the offset from the best price.

    Intensities of fills are those at the mean intensity of orders, fees none.

    Raises
    ------
    TypeError
        If the tape is observed, which has the market order of each step: on a book decisions come by the clock; or if
        base rates vary.
    """
    p = params
    require_constant_rates(p)
    if p.observe == "tape":
        raise TypeError("observe = 'tape' cannot be replayed: decisions on a book come by the clock; give 'state'")
    both = np.array([p.initial_rate_sell, p.initial_rate_buy])  # of orders that fill bids and asks
    stable = np.array([p.excitation_sell < p.decay_sell, p.excitation_buy < p.decay_buy])
    base, jumps = p.base_rates[0, ::-1], np.array([p.excitation_sell, p.excitation_buy])
    decays, laws = np.array([p.decay_sell, p.decay_buy]), list(zip(*reach_laws(p), strict=True))
    mean = np.where(stable, base / np.where(stable, 1.0 - jumps / decays, 1.0), both)

    def observe(time_left: Any, inventory: Any, spread: Any, rates: Array) -> Array:
        return hawkes_flow.observe(p, time_left, inventory, rates[..., 0], rates[..., 1])

    def orders(controls: Array) -> Array:
        sizes, none = np.ones_like(controls), np.zeros_like(controls[..., :1])
        return np.concatenate([controls - p.half_spread, sizes, none], axis=-1)

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
        observe=observe,
        processes=Processes(base[::-1], jumps[::-1], decays[::-1], both[::-1], order_events),
        penalties=quadratic(p.running_penalty, p.terminal_penalty),
    )
