"""Baselines of several assets: the frozen-quote problem, the continuous-time optimum and the papers' policies."""

from mmgym.baselines.multi_asset_glft.baseline import multi_asset_glft_baseline
from mmgym.baselines.multi_asset_glft.bracketed import BracketedBaseline, RiccatiPolicy
from mmgym.baselines.multi_asset_glft.closed_forms import riccati_depths, riccati_matrices
from mmgym.baselines.multi_asset_glft.continuous import continuous_depths, continuous_values
from mmgym.baselines.multi_asset_glft.decoupling import decoupled_variances
from mmgym.baselines.multi_asset_glft.one_step import MultiAssetProblem
from mmgym.baselines.multi_asset_glft.separate import CoupledDepths, FactorDepths, SeparateMarkets

__all__ = [
    "BracketedBaseline",
    "CoupledDepths",
    "FactorDepths",
    "MultiAssetProblem",
    "RiccatiPolicy",
    "SeparateMarkets",
    "continuous_depths",
    "continuous_values",
    "decoupled_variances",
    "multi_asset_glft_baseline",
    "riccati_depths",
    "riccati_matrices",
]
