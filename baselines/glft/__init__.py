"""Baselines of the GLFT market: its frozen-quote problem, the continuous-time optimum and the papers' policies."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.catalogue import PaperPolicies, paper_tables
from mmgym.baselines.glft.closed_forms import avellaneda_stoikov_depths, glft_asymptotic_depths, riccati_depths
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values, stationary_depths
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.models.glft import Params

__all__ = [
    "GLFTProblem",
    "avellaneda_stoikov_depths",
    "continuous_depths",
    "continuous_values",
    "glft_asymptotic_depths",
    "riccati_depths",
    "stationary_depths",
]


@paper_tables.register
def _(params: Params) -> PaperPolicies:
    shape = (params.num_steps, 2 * params.limit + 1, 2)

    def everywhere(depths: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(depths, shape)

    def hjb() -> NDArray[np.float64]:
        return continuous_depths(params, continuous_values(params)[:-1])

    tables: dict[str, Callable[[], NDArray[np.float64]]] = {
        "hjb": hjb,
        "riccati": lambda: riccati_depths(params),
        "glft_asymptotic": lambda: glft_asymptotic_depths(params),
        "stationary": lambda: everywhere(stationary_depths(params)),
        "avellaneda_stoikov": lambda: avellaneda_stoikov_depths(params),
        "zero_skew": lambda: everywhere(hjb()[:, params.limit, None, :]),
        "constant": lambda: everywhere(np.array([1.0 / params.fill_decay_bid, 1.0 / params.fill_decay_ask])),
    }
    return PaperPolicies(tables, reference="constant", ours=("constant",))
