"""Baselines of the GLFT market under Heston's variance: the optimum, seen or hidden, and the variance-blind quotes."""

from mmgym.baselines.stochastic_volatility.baseline import (
    OptimalVariancePolicy,
    StochasticVolatilityBaseline,
    VariancePolicy,
)
from mmgym.baselines.stochastic_volatility.continuous import blind_values, continuous_value, continuous_values
from mmgym.baselines.stochastic_volatility.one_step import VarianceProblem
from mmgym.baselines.stochastic_volatility.variance_grid import VarianceGrid

__all__ = [
    "OptimalVariancePolicy",
    "StochasticVolatilityBaseline",
    "VarianceGrid",
    "VariancePolicy",
    "VarianceProblem",
    "blind_values",
    "continuous_value",
    "continuous_values",
]
