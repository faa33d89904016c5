"""The baseline of the mean-field market: the optimum of its frozen-control problem, and the paper's policies."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import FiniteBaseline, PaperPolicies, make_baseline
from mmgym.baselines.mean_field.continuous import continuous_depths
from mmgym.baselines.mean_field.one_step import MeanFieldProblem
from mmgym.models.mean_field import Params

__all__ = ["mean_field_baseline"]

Array = NDArray[np.float64]


@make_baseline.register
def mean_field_baseline(params: Params) -> FiniteBaseline:
    """The baseline of these parameters."""
    states = (2 * params.signal_levels + 1) * len(params.lots)
    shape = (params.num_steps, states, 2)
    tables: dict[str, Callable[[], Array]] = {
        "hjb": lambda: continuous_depths(params),
        "constant": lambda: np.broadcast_to(1.0 / params.fill_decay, shape),
    }
    papers = PaperPolicies(tables, reference="constant", ours=("constant",))
    return FiniteBaseline(params, MeanFieldProblem(params), papers)
