"""What chance adds to a step's gain in the power market: see `mmgym.baselines.hawkes_flow.price_noise`."""

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import PriceNoise, State
from mmgym.baselines.hawkes_flow.price_noise import integral_without_events
from mmgym.baselines.hawkes_power.book import mean_impacts
from mmgym.models.hawkes_power import MID_SIGN, PROCESSES, Params

__all__ = ["price_noise"]

Array = NDArray[np.float64]


def price_noise(params: Params) -> PriceNoise | None:
    """The price noise of the market's steps with decisions at events; None where it is not known in closed form."""
    p = params
    if p.decision != "event":
        return None
    moves = np.array(MID_SIGN)[:, None] * mean_impacts(p)

    def noise(before: State, after: State) -> Array:
        elapsed, spread = after["elapsed"], before["spread"] - 1
        expected = np.zeros(len(elapsed))
        for k, name in enumerate(PROCESSES):
            integral = integral_without_events(p.base_rate[k], before[f"excess_{name}"], p.decay[k], elapsed)
            expected += moves[k][spread] * integral
        moved = p.half_tick * (after["mid_moves"] - before["mid_moves"])
        return np.asarray(before["inventory"] * (moved - expected))

    return noise
