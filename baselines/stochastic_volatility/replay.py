r"""How the market of stochastic volatility is played on a recorded book: depths from the mid, one size, seconds.

The variance that is observed is the best linear estimate, by the market's own law, of the squared moves ``Delta^2`` of
the mid over about a second (``t``), whose noise has the variance ``2 theta^2``: the stationary filter of Kalman,

    v' = theta + (v - theta) exp(-kappa t) + g (Delta^2 / t - that),    g = P / (P + 2 theta^2),

with ``P`` the variance of the error before a move, ``P = exp(-2 kappa t) (1 - g) P + Q``, and ``Q`` that of ``nu``
given its value a move before, in the stationary mean. The bounce of the mid between ticks is in its moves.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.baselines.glft.replay import rules as glft_rules
from mmgym.baselines.replay.rules import ReplayRules, make_replay_rules
from mmgym.baselines.stochastic_volatility.continuous import plain_params
from mmgym.compiling import KERNEL
from mmgym.models import stochastic_volatility
from mmgym.models.stochastic_volatility import Params

Array = NDArray[Any]

MOVE = 1.0  # seconds of a move of the mid


def variances(params: Params, mids: Array, seconds: float) -> Array:
    """Estimates (D, 1) of the variance at decisions ``seconds`` apart, from the mids until then."""
    p, each = params, max(1, round(MOVE / seconds))
    length = each * seconds
    kept = np.exp(-p.variance_reversion * length)
    lost = -np.expm1(-2.0 * p.variance_reversion * length)
    own = p.variance_volatility**2 * p.variance_mean / (2.0 * p.variance_reversion) * lost  # Q
    noise = 2.0 * p.variance_mean**2
    # P^2 + P (noise (1 - kept^2) - Q) - Q noise = 0
    half = 0.5 * (noise * lost - own)
    error = -half + np.sqrt(half**2 + own * noise)
    gain = error / (error + noise)
    squares = np.diff(mids[::each]) ** 2 / length
    estimates = _estimates(squares, p.initial_variance, p.variance_mean, kept, gain)
    return np.asarray(estimates[np.arange(len(mids)) // each][:, None])


@njit(**KERNEL)
def _estimates(squares: Array, start: float, mean: float, kept: float, gain: float) -> Array:
    """Estimates before the first move and after each."""
    estimates = np.empty(len(squares) + 1)
    estimates[0] = start
    for k in range(len(squares)):
        ahead = mean + (estimates[k] - mean) * kept
        estimates[k + 1] = max(ahead + gain * (squares[k] - ahead), 0.0)
    return estimates


@make_replay_rules.register
def rules(params: Params) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for. The criterion of a book is not stated: its variance is not known."""
    p = params

    def observe(time_left: Any, inventory: Any, spread: Any, rates: Array) -> Array:
        step = np.floor((1.0 - np.asarray(time_left) / p.horizon) * p.num_steps + 1e-6)
        return stochastic_volatility.observe(p, step, inventory, rates[..., 0])

    words = f"variance: Kalman's linear filter of the squared moves of the mid over about {MOVE:g} s"
    return replace(
        glft_rules(plain_params(p)),
        observe=observe,
        estimate=functools.partial(variances, p),
        words=words if p.observe_variance else "",
        penalties=None,
    )
