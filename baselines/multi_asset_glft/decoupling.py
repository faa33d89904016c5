r"""Separate markets that bound several assets from above.

``Sigma - diag(d)`` positive semi-definite makes the penalty at least that of ``diag(d)``, with which the assets are
separate markets, whose optima add up to a bound of every policy's value. To second order their costs are ``w_i
sqrt(d_i)``, ``w_i = D_i F_i / sqrt(S_i)`` up to a factor (`mmgym.baselines.multi_asset_glft.closed_forms`: a
stationary ``A_ii = sqrt(gamma d_i / (4 S_i))`` costs ``D_i F_i A_ii`` per unit of time); the ``d`` with the largest sum
is the tightest bound to that order. It is found by Newton's method with the barrier ``log det(Sigma - diag(d))``, and
any error in it only makes the bound wider: the result is scaled until the condition holds.
"""

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.multi_asset_glft.one_step import effective_rates
from mmgym.models.multi_asset_glft import SINGULAR, Params

Array = NDArray[np.float64]

__all__ = ["decoupled_variances"]

BARRIERS = 0.1 ** np.arange(1.0, 9.0)  # of the weights
MOST_STEPS = 50


def decoupled_variances(params: Params) -> Array:
    """Variances ``d`` (n,) of separate markets with ``diag(d) <= Sigma`` (price^2 / time)."""
    p, n = params, params.num_assets
    scale = np.sqrt(np.where(np.diag(p.matrix) > 0.0, np.diag(p.matrix), 1.0))
    correlation = p.matrix / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    least = float(np.linalg.eigvalsh(correlation)[0])
    if least <= SINGULAR:
        return np.zeros(n)
    rates = effective_rates(p)
    total, bend = rates[:n] + rates[n:], (rates * p.decays)[:n] + (rates * p.decays)[n:]
    weights = p.sizes**1.5 * total / np.sqrt(bend) * scale
    shares = _largest_shares(correlation, weights / weights.max(), 0.5 * least)
    root, rounding = np.sqrt(shares), SINGULAR * n  # of eigenvalues of matrices with entries up to 1
    largest = float(np.linalg.eigvalsh(correlation / np.outer(root, root))[0]) - rounding / shares.min()
    # Shares themselves may be above by rounding: (1 - e) (correlation - shares) + e correlation >= e least - rounding.
    return np.asarray(max(largest, 1.0 - rounding / least, 0.0) * shares * np.diag(p.matrix))


def _largest_shares(correlation: Array, weights: Array, start: float) -> Array:
    """``x`` (n,) with nearly the largest ``sum w_i sqrt(x_i)`` where ``correlation - diag(x)`` is positive definite."""
    shares = np.full(len(weights), start)

    def objective(x: Array, barrier: float) -> float:
        if (x <= 0.0).any():
            return -np.inf
        sign, logarithm = np.linalg.slogdet(correlation - np.diag(x))
        if sign <= 0.0 or np.linalg.eigvalsh(correlation - np.diag(x))[0] <= 0.0:
            return -np.inf
        return float(weights @ np.sqrt(x) + barrier * logarithm)

    for barrier in BARRIERS:
        for _ in range(MOST_STEPS):
            inverse = np.linalg.inv(correlation - np.diag(shares))
            slope = 0.5 * weights / np.sqrt(shares) - barrier * np.diag(inverse)
            curve = np.diag(0.25 * weights / shares**1.5) + barrier * inverse**2
            move = np.linalg.solve(curve, slope)
            gain = float(slope @ move)
            if gain <= 1e-12:
                break
            here, length = objective(shares, barrier), 1.0
            while not objective(shares + length * move, barrier) >= here + 0.1 * length * gain and length > 1e-9:
                length *= 0.5
            if length <= 1e-9:
                break
            shares = shares + length * move
    return shares
