"""The baseline of the GLFT market: the optimum of its frozen-quote problem, and the papers' policies."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import FiniteBaseline, PaperPolicies, make_baseline
from mmgym.baselines.glft.closed_forms import avellaneda_stoikov_depths, glft_asymptotic_depths, riccati_depths
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values, stationary_depths
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.models.glft import Params

__all__ = ["glft_baseline"]


@make_baseline.register
def glft_baseline(params: Params) -> FiniteBaseline:
    """The baseline of these parameters."""
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
    papers = PaperPolicies(tables, reference="constant", ours=("constant",))
    return FiniteBaseline(params, GLFTProblem(params), papers)
