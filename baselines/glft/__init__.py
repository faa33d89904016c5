"""Baselines of the GLFT market: its frozen-quote problem, the continuous-time optimum and the papers' policies."""

from mmgym.baselines.glft.baseline import glft_baseline
from mmgym.baselines.glft.closed_forms import avellaneda_stoikov_depths, glft_asymptotic_depths, riccati_depths
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values, stationary_depths
from mmgym.baselines.glft.one_step import GLFTProblem

__all__ = [
    "GLFTProblem",
    "avellaneda_stoikov_depths",
    "continuous_depths",
    "continuous_values",
    "glft_asymptotic_depths",
    "glft_baseline",
    "riccati_depths",
    "stationary_depths",
]
