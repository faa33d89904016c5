r"""Bergault & Guéant's closed form for several assets.

With the Hamiltonian to second order, ``v = -q' A q - B' q - C`` (see `mmgym.baselines.multi_asset_glft.continuous`)
solves a Riccati equation (Bergault & Guéant 2021), ``A' = Sigma gamma / 2 - 4 A R A`` in the time left, ``R =
diag(k_i D_i C (A_i^bid + A_i^ask) / 2)``, ``C = 1 / e`` or that of CARA, whose ``Sigma`` has the jumps' variances.
"""

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.differential_equations import solution_at
from mmgym.baselines.multi_asset_glft.one_step import aversion_of, base_depths, effective_rates
from mmgym.models.multi_asset_glft import Params

Array = NDArray[np.float64]

__all__ = ["riccati_depths", "riccati_matrices", "riccati_skews"]


def riccati_matrices(params: Params, num_steps: int | None = None) -> tuple[Array, Array]:
    """``A`` (N + 1, n, n) and ``B`` (N + 1, n) of the quadratic approximation at the times of so many equal steps.

    With ``f = A C D`` (``C = 1 / e``, or that of CARA) and ``s = f k`` of each side and their sum ``S``: ``B' = -mu -
    2 A (S B - w)`` in the time left, ``w_i = f_bid - f_ask - (s_bid - s_ask) D_i A_ii``; with equal sides and no drift
    it vanishes.
    """
    p, n = params, params.num_assets
    steps = p.num_steps if num_steps is None else num_steps
    covariance = p.matrix + np.diag(p.jump_variances) if aversion_of(p) else p.matrix  # jumps to second order
    decay_bids, decay_asks = p.decays[:n], p.decays[n:]
    first_bid, first_ask = np.tile(p.sizes, (2, 1)) * effective_rates(p).reshape(
        2, n
    )  # slopes of Hamiltonians, times D
    second_bid, second_ask = first_bid * decay_bids, first_ask * decay_asks

    def slope(_: float, y: Array) -> Array:
        a, b = y[: n * n].reshape(n, n), y[n * n :]
        own = np.diag(a) * p.sizes  # a fill's own convexity: D A_ii
        total = second_bid + second_ask
        da = 0.5 * p.risk_aversion * covariance - 2.0 * (a * total) @ a
        # bid: (v(q + D e) - v) / D = -2 (A q)_i - B_i - own_i;  ask: (v(q - D e) - v) / D = 2 (A q)_i + B_i - own_i
        tilt = first_bid - first_ask - (second_bid - second_ask) * own
        db = -p.trends - 2.0 * a @ (total * b) + 2.0 * a @ tilt
        return np.concatenate([da.ravel(), db])

    start = np.concatenate([(p.terminal_penalty * np.eye(n)).ravel(), np.zeros(n)])
    times = np.linspace(0.0, p.horizon, steps + 1)
    table = solution_at(slope, start, times, "the Riccati equation", 1e-11, atol=1e-13)
    return table[:, : n * n].reshape(-1, n, n), table[:, n * n :]


def riccati_depths(params: Params, matrices: tuple[Array, Array], lots: Array) -> Array:
    """Depths (..., 2 n) of the quadratic approximation for inventories (..., n) in orders, cut to the depth box.

    ``matrices`` broadcast against the inventories: ``A`` (..., n, n) and ``B`` (..., n).
    """
    return np.asarray(
        np.clip(base_depths(params) + riccati_skews(params, matrices, lots), params.min_depth, params.max_depth)
    )


def riccati_skews(params: Params, matrices: tuple[Array, Array], lots: Array) -> Array:
    """What inventories add to the base depths, as in `riccati_depths`: (..., 2 n), bids, then asks."""
    p = params
    a, b = matrices
    lean = 2.0 * np.einsum("...ij,...j->...i", a, lots * p.sizes) + b
    own = np.diagonal(a, axis1=-2, axis2=-1) * p.sizes
    return np.concatenate([own + lean, own - lean], axis=-1)
