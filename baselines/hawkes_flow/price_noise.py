"""What chance adds to a step's gain where prices move with the order flow: a control variate for learning.

In the Hawkes markets rewards have the moves of the price in them, which cannot be integrated out without the market's
mathematics. With ``q`` the inventory at the start of a step, ``dS`` the move of the mid over the step, and ``A`` what
was to be expected of it, ``q (dS - A)`` has the mean 0 whatever is quoted: rewards without it have the same
expectations and far less variance. Between events only the intensities decay, so that in a step that ends with its
first event ``A`` is the compensator: the sum over the processes of the mean move times the intensity's integral.
"""

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import PriceNoise, State
from mmgym.models import hawkes
from mmgym.models.hawkes_flow import Params, base_rates_at

__all__ = ["integral_without_events", "price_noise"]

Array = NDArray[np.float64]


def integral_without_events(base_rate: float | Array, excess: Array, decay: float, elapsed: Array) -> Array:
    """Integral of an intensity over a time without events."""
    return base_rate * elapsed - excess * np.expm1(-decay * elapsed) / decay


def price_noise(params: Params) -> PriceNoise:
    """The price noise of the market's steps, of states before and after."""
    p = params
    sides = (
        (p.impact_buy, p.excitation_buy, p.decay_buy, "excess_buy"),
        (-p.impact_sell, p.excitation_sell, p.decay_sell, "excess_sell"),
    )

    def noise(before: State, after: State) -> Array:
        elapsed, expected = after["elapsed"], np.zeros(len(after["elapsed"]))
        rates = base_rates_at(p, before["time_left"])
        for k, (impact, jump, decay, name) in enumerate(sides):
            base = rates[..., k]
            if p.decision == "event":
                expected += impact * integral_without_events(base, before[name], decay, elapsed)
            else:
                expected += impact * hawkes.expected_count(base, jump, decay, base + before[name], elapsed)
        return np.asarray(before["inventory"] * (after["mid"] - before["mid"] - expected))

    return noise
