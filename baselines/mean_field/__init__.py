"""Baselines of the mean-field market: its frozen-control problems, exploitability and the paper's policies."""

from mmgym.baselines.mean_field.baseline import mean_field_baseline
from mmgym.baselines.mean_field.continuous import continuous_depths
from mmgym.baselines.mean_field.exploitability import (
    Exploitability,
    ExploitabilityOfLaw,
    consistency_error,
    continuous_maker_exploitability,
    continuous_population_exploitability,
    continuous_taker_exploitability,
    flow_of_policy,
    maker_exploitability,
    population_exploitabilities,
    population_exploitability,
    taker_exploitability,
)
from mmgym.baselines.mean_field.one_step import MeanFieldProblem

__all__ = [
    "Exploitability",
    "ExploitabilityOfLaw",
    "MeanFieldProblem",
    "consistency_error",
    "continuous_depths",
    "continuous_maker_exploitability",
    "continuous_population_exploitability",
    "continuous_taker_exploitability",
    "flow_of_policy",
    "maker_exploitability",
    "mean_field_baseline",
    "population_exploitabilities",
    "population_exploitability",
    "taker_exploitability",
]
