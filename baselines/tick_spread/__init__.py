"""Baselines of the tick-spread market: its frozen-control problem, the continuous-time QVI and the paper's policies."""

from mmgym.baselines.tick_spread.baseline import tick_spread_baseline
from mmgym.baselines.tick_spread.continuous import continuous_controls, continuous_solution, continuous_values
from mmgym.baselines.tick_spread.one_step import TickSpreadProblem

__all__ = [
    "TickSpreadProblem",
    "continuous_controls",
    "continuous_solution",
    "continuous_values",
    "tick_spread_baseline",
]
