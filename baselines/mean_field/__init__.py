"""Baselines of the mean-field market: its frozen-control problems, exploitability and the paper's policies."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.catalogue import PaperPolicies, paper_tables
from mmgym.baselines.mean_field.continuous import continuous_depths
from mmgym.baselines.mean_field.exploitability import (
    Exploitability,
    consistency_error,
    continuous_maker_exploitability,
    continuous_population_exploitability,
    continuous_taker_exploitability,
    flow_of_policy,
    maker_exploitability,
    population_exploitability,
    taker_exploitability,
)
from mmgym.baselines.mean_field.one_step import MeanFieldProblem
from mmgym.models.mean_field import Params

__all__ = [
    "Exploitability",
    "MeanFieldProblem",
    "consistency_error",
    "continuous_depths",
    "continuous_maker_exploitability",
    "continuous_population_exploitability",
    "continuous_taker_exploitability",
    "flow_of_policy",
    "maker_exploitability",
    "population_exploitability",
    "taker_exploitability",
]

Array = NDArray[np.float64]


@paper_tables.register
def _(params: Params) -> PaperPolicies:
    states = (2 * params.signal_levels + 1) * (2 * params.limit + 1)
    shape = (params.num_steps, states, 2)
    tables: dict[str, Callable[[], Array]] = {
        "hjb": lambda: continuous_depths(params),
        "constant": lambda: np.broadcast_to(1.0 / params.fill_decay, shape),
    }
    return PaperPolicies(tables, reference="constant", ours=("constant",))
