"""Baselines of the intraday power market: the paper's policies, fitted value functions, and bounds of the optimum."""

from mmgym.baselines.hawkes_power.baseline import (
    BestPowerPolicy,
    DistancePolicy,
    FittedPolicy,
    HawkesPowerBaseline,
    ValuePolicy,
)
from mmgym.baselines.hawkes_power.book import effective_impacts, mean_impacts, move_law, spread_law, spread_transitions
from mmgym.baselines.hawkes_power.bounds import Interval, PathBounds, path_bounds, solved
from mmgym.baselines.hawkes_power.closed_forms import corollary_3, join_best
from mmgym.baselines.hawkes_power.values import KINDS, ValueFunction, value_function

__all__ = [
    "KINDS",
    "BestPowerPolicy",
    "DistancePolicy",
    "FittedPolicy",
    "HawkesPowerBaseline",
    "Interval",
    "PathBounds",
    "ValueFunction",
    "ValuePolicy",
    "corollary_3",
    "effective_impacts",
    "join_best",
    "mean_impacts",
    "move_law",
    "path_bounds",
    "solved",
    "spread_law",
    "spread_transitions",
    "value_function",
]
