"""Exact optima, paper policies and exact scores."""

from baselines.catalogue import NoOptimum, best_known_policy, optimal_policy, paper_policies, reference_policy
from baselines.policy import Policy
from baselines.scoring import AboveOptimum, Score, pnl_distribution, rollout, score, score_table
from baselines.tables import load_policy, read_table, write_table

__all__ = [
    "AboveOptimum",
    "NoOptimum",
    "Policy",
    "Score",
    "best_known_policy",
    "load_policy",
    "optimal_policy",
    "paper_policies",
    "pnl_distribution",
    "read_table",
    "reference_policy",
    "rollout",
    "score",
    "score_table",
    "write_table",
]
