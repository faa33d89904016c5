"""The baseline of several assets: exact where the grid holds them, otherwise bracketed (`BracketedBaseline`)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import Baseline, FiniteBaseline, PaperPolicies, make_baseline
from mmgym.baselines.multi_asset_glft.bracketed import BracketedBaseline
from mmgym.baselines.multi_asset_glft.closed_forms import riccati_depths, riccati_matrices
from mmgym.baselines.multi_asset_glft.continuous import continuous_depths
from mmgym.baselines.multi_asset_glft.one_step import MAX_STATES, MultiAssetProblem, grid
from mmgym.baselines.multi_asset_glft.separate import CoupledDepths, FactorDepths
from mmgym.models.multi_asset_glft import Params

__all__ = ["multi_asset_glft_baseline"]

Array = NDArray[np.float64]


@make_baseline.register
def multi_asset_glft_baseline(params: Params) -> Baseline:
    """The baseline of these parameters."""
    if np.prod(2.0 * params.limits + 1.0) > MAX_STATES:
        return BracketedBaseline(params)
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

    def tabled(depths: Callable[[Array, Array], Array]) -> Array:
        return np.stack([depths(np.full(len(lots), n), lots) for n in range(params.num_steps)])

    tables: dict[str, Callable[[], Array]] = {
        "hjb": lambda: continuous_depths(params),
        "riccati": lambda: riccati(params),
        "factor": lambda: tabled(FactorDepths(params)),
        "coupled": lambda: tabled(CoupledDepths(params)),
        "separate": separate,
        "constant": lambda: np.broadcast_to(1.0 / params.decays, shape),
    }
    papers = PaperPolicies(tables, reference="constant", ours=("coupled", "separate", "constant"))
    return FiniteBaseline(params, MultiAssetProblem(params), papers)
