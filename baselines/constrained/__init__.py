"""Quoting under limits on losses, drawdown, inventory and spread, in a finite market: exact optima and bounds."""

from mmgym.baselines.constrained.environment import (
    LimitedPolicy,
    limit_risks,
    limit_verdict,
    limited_risks,
    schedule_policy,
)
from mmgym.baselines.constrained.model import (
    Chain,
    FiniteMarket,
    Limits,
    Quotes,
    RiskLimit,
    ShortfallLimit,
    evaluate_schedule,
)
from mmgym.baselines.constrained.problem import ConstrainedProblem, read_problem
from mmgym.baselines.constrained.solution import PARTS, ConstrainedSolution, constrain

__all__ = [
    "PARTS",
    "Chain",
    "ConstrainedProblem",
    "ConstrainedSolution",
    "FiniteMarket",
    "LimitedPolicy",
    "Limits",
    "Quotes",
    "RiskLimit",
    "ShortfallLimit",
    "constrain",
    "evaluate_schedule",
    "limit_risks",
    "limit_verdict",
    "limited_risks",
    "read_problem",
    "schedule_policy",
]
