"""Baselines of the robust GLFT market: best replies, the value of the game and exact exploitability."""

from mmgym.baselines.robust_glft.baseline import robust_glft_baseline
from mmgym.baselines.robust_glft.exploitability import (
    Exploitability,
    GameValue,
    WorstCase,
    exploitability,
    game_value,
    worst_case,
)
from mmgym.baselines.robust_glft.one_step import RobustProblem

__all__ = [
    "Exploitability",
    "GameValue",
    "RobustProblem",
    "WorstCase",
    "exploitability",
    "game_value",
    "robust_glft_baseline",
    "worst_case",
]
