"""What chance adds to a step's gain where prices move with the order flow: a control variate for learning.

In the Hawkes markets rewards have the moves of the price in them, which cannot be integrated out without the market's
mathematics. With ``q`` the inventory at the start of a step, ``dS`` the move of the mid over the step, and ``A`` what
was to be expected of it, ``q (dS - A)`` has the mean 0 whatever is quoted: rewards without it have the same
expectations and far less variance. Between events only the intensities decay, so that in a step that ends with its
first event ``A`` is the compensator: the sum over the processes of the mean move times the intensity's integral.
"""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.hawkes_power.book import mean_impacts
from mmgym.models import hawkes, hawkes_flow, hawkes_power

__all__ = ["PriceNoise", "price_noise"]

Array = NDArray[np.float64]
State = Mapping[str, Any]  # of a batch: `KernelVectorEnv.get_state`
PriceNoise = Callable[[State, State], Array]  # states before and after a step -> (B,), EUR / MWh lots


def _integral(base_rate: float, excess: Array, decay: float, elapsed: Array) -> Array:
    """Integral of an intensity over a time without events."""
    return base_rate * elapsed - excess * np.expm1(-decay * elapsed) / decay


@singledispatch
def price_noise(params: Any) -> PriceNoise | None:
    """The price noise of a market's steps, of states before and after; None where it is not known in closed form.

    Known in the Hawkes markets with ``decision="event"``, and in the one with a constant half-spread by the clock too.
    """
    return None


@price_noise.register
def _(params: hawkes_flow.Params) -> PriceNoise:
    p = params
    sides = (
        (p.impact_buy, p.base_rate_buy, p.excitation_buy, p.decay_buy, "excess_buy"),
        (-p.impact_sell, p.base_rate_sell, p.excitation_sell, p.decay_sell, "excess_sell"),
    )

    def noise(before: State, after: State) -> Array:
        elapsed, expected = after["elapsed"], np.zeros(len(after["elapsed"]))
        for impact, base, jump, decay, name in sides:
            if p.decision == "event":
                expected += impact * _integral(base, before[name], decay, elapsed)
            else:
                expected += impact * hawkes.expected_count(base, jump, decay, base + before[name], elapsed)
        return np.asarray(before["inventory"] * (after["mid"] - before["mid"] - expected))

    return noise


@price_noise.register
def _(params: hawkes_power.Params) -> PriceNoise | None:
    p = params
    if p.decision != "event":
        return None
    moves = np.array(hawkes_power.MID_SIGN)[:, None] * mean_impacts(p)

    def noise(before: State, after: State) -> Array:
        elapsed, spread = after["elapsed"], before["spread"] - 1
        expected = np.zeros(len(elapsed))
        for k, name in enumerate(hawkes_power.PROCESSES):
            integral = _integral(p.base_rate[k], before[f"excess_{name}"], p.decay[k], elapsed)
            expected += moves[k][spread] * integral
        moved = p.half_tick * (after["mid_moves"] - before["mid_moves"])
        return np.asarray(before["inventory"] * (moved - expected))

    return noise
