"""Baselines of the Hawkes flow market: the optimum at events, its continuous-time limit, and the paper's policies."""

from mmgym.baselines.hawkes_flow.baseline import (
    DepthPolicy,
    HawkesFlowBaseline,
    OptimalFlowPolicy,
    OptimalTapePolicy,
    solve,
)
from mmgym.baselines.hawkes_flow.clock import clock_march
from mmgym.baselines.hawkes_flow.closed_forms import (
    PoissonValues,
    corollary_3,
    join_best,
    poisson,
    price_drift,
    signal_poisson,
)
from mmgym.baselines.hawkes_flow.filtering import FilteredPolicy, ParticlePolicy
from mmgym.baselines.hawkes_flow.solver import COARSE, FINE, Resolution, march

__all__ = [
    "COARSE",
    "FINE",
    "DepthPolicy",
    "FilteredPolicy",
    "HawkesFlowBaseline",
    "OptimalFlowPolicy",
    "OptimalTapePolicy",
    "ParticlePolicy",
    "PoissonValues",
    "Resolution",
    "clock_march",
    "corollary_3",
    "join_best",
    "march",
    "poisson",
    "price_drift",
    "signal_poisson",
    "solve",
]
