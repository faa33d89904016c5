"""The best answer in continuous time to the crowd of an environment, as a table on its decision steps."""

import numpy as np
from numpy.typing import NDArray

from mmgym.models import mean_field_limit as limit
from mmgym.models.mean_field import Params

Array = NDArray[np.float64]

__all__ = ["continuous_depths"]

LARGEST = 65_536  # intervals


def continuous_depths(params: Params) -> Array:
    """Depths (N, S, 2) of the HJB's maximum at the start of each step, against the environment's crowd.

    The drift and, for the maker, the mean quotes are the crowd's on its decision steps; at the edge of two steps the
    drift is the mean of both.

    Raises
    ------
    ValueError
        If explicit time stepping is unstable on the finest grid.
    """
    game, flow, count = params.game, params.flow, params.num_steps
    parts = max(4, int(np.ceil(600.0 * params.step_length * game.taker_fill_rate.max() / 70.0)))
    while parts * count <= max(LARGEST, 4 * count):
        times = np.linspace(0.0, params.horizon, parts * count + 1)
        inside = np.arange(2 * parts + 1) / (2 * parts)
        speed = game.impact / params.step_length * flow.speed(inside)
        drift = np.empty(2 * parts * count + 1)
        drift[:-1] = speed[:, :-1].ravel()
        drift[-1] = speed[-1, -1]
        drift[2 * parts : -1 : 2 * parts] = 0.5 * (speed[:-1, -1] + speed[1:, 0])
        with np.errstate(all="ignore"):
            if params.role == "taker":
                quotes = limit.taker_optimum(game, times, drift)[1]
            else:
                pairs = (np.repeat(pair, 2 * parts, axis=0) for pair in (flow.mean_quotes, flow.quoting))
                means, masses = (np.concatenate([pair, pair[-1:]]) for pair in pairs)
                crowd = limit.ContinuousFlow(times, drift, np.empty(0), means, masses)
                quotes = limit.maker_optimum(game, crowd)[1][:, None]
        chosen = quotes[: -1 : 2 * parts].reshape(count, -1, 2)
        if np.isfinite(chosen).all():
            return chosen
        parts *= 4
    raise ValueError("the HJB equation of this market needs smaller steps than the solver takes")
