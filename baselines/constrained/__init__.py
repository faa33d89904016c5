"""Quoting under limits on final loss, drawdown, inventory and spread, in a finite market: exact optima and bounds."""

from mmgym.baselines.constrained.model import Chain, FiniteMarket, Limits, Quotes, RiskLimit, evaluate_schedule
from mmgym.baselines.constrained.problem import ConstrainedProblem, read_problem
from mmgym.baselines.constrained.solution import ConstrainedSolution, constrain, schedule_policy

__all__ = [
    "Chain",
    "ConstrainedProblem",
    "ConstrainedSolution",
    "FiniteMarket",
    "Limits",
    "Quotes",
    "RiskLimit",
    "constrain",
    "evaluate_schedule",
    "read_problem",
    "schedule_policy",
]
