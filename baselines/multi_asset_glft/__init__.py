"""Baselines of several assets: the frozen-quote problem, the continuous-time optimum and the papers' policies."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.catalogue import PaperPolicies, paper_tables
from mmgym.baselines.multi_asset_glft.bracketed import BracketedBaseline, RiccatiPolicy
from mmgym.baselines.multi_asset_glft.continuous import (
    continuous_depths,
    continuous_values,
    riccati_depths,
    riccati_matrices,
)
from mmgym.baselines.multi_asset_glft.one_step import MultiAssetProblem, grid
from mmgym.models.multi_asset_glft import Params

__all__ = [
    "BracketedBaseline",
    "MultiAssetProblem",
    "RiccatiPolicy",
    "continuous_depths",
    "continuous_values",
    "riccati_depths",
    "riccati_matrices",
]

Array = NDArray[np.float64]


@paper_tables.register
def _(params: Params) -> PaperPolicies:
    lots = grid(params)
    shape = (params.num_steps, len(lots), 2 * params.num_assets)

    def riccati(of: Params) -> Array:
        a, b = riccati_matrices(of)
        return riccati_depths(of, (a[:-1, None], b[:-1, None]), lots)

    def separate() -> Array:
        alone = tuple(
            tuple(row[i] if i == j else 0.0 for j in range(len(row))) for i, row in enumerate(params.covariance)
        )
        return continuous_depths(params._replace(covariance=alone))

    tables: dict[str, Callable[[], Array]] = {
        "hjb": lambda: continuous_depths(params),
        "riccati": lambda: riccati(params),
        "separate": separate,
        "constant": lambda: np.broadcast_to(1.0 / params.decays, shape),
    }
    return PaperPolicies(tables, reference="constant", ours=("separate", "constant"))
