"""Policies replayed on recorded books, and what the model promised laid beside what the book paid."""

from mmgym.baselines.replay.against import Comparison, compare
from mmgym.baselines.replay.rules import Processes, ReplayRules, make_replay_rules, rules_of
from mmgym.baselines.replay.session import Costs, Session, replay

__all__ = [
    "Comparison",
    "Costs",
    "Processes",
    "ReplayRules",
    "Session",
    "compare",
    "make_replay_rules",
    "replay",
    "rules_of",
]
