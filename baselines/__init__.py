"""Exact optima, paper policies and exact scores."""

from mmgym.baselines.catalogue import NoOptimum, best_known_policy, optimal_policy, paper_policies, reference_policy
from mmgym.baselines.cells import policy_cells, regret_maps
from mmgym.baselines.policy import Policy
from mmgym.baselines.quotes import as_quotes
from mmgym.baselines.risk import RiskMeasures, frozen_position_risk, pnl_distribution, risk_measures
from mmgym.baselines.robustness import Robustness, robustness
from mmgym.baselines.scoring import AboveOptimum, Score, risk_table, rollout, score, score_table
from mmgym.baselines.tables import load_policy, read_table, write_table

__all__ = [
    "AboveOptimum",
    "NoOptimum",
    "Policy",
    "RiskMeasures",
    "Robustness",
    "Score",
    "as_quotes",
    "best_known_policy",
    "frozen_position_risk",
    "load_policy",
    "optimal_policy",
    "paper_policies",
    "pnl_distribution",
    "policy_cells",
    "read_table",
    "reference_policy",
    "regret_maps",
    "risk_measures",
    "risk_table",
    "robustness",
    "rollout",
    "score",
    "score_table",
    "write_table",
]
