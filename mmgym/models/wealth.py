"""What markets with a Brownian mid and the criteria "mean" and "cara" share: price noise, rewards, their arguments.

Given the inventory path ``q``, ``(int q dW, W_h)`` is Gaussian with covariance ``[[int q^2, int q], [int q, h]]``.
"""

import math
from typing import Any

from mmgym.market import scalar_kernel
from mmgym.random_streams import normal

MEAN, CARA = 0, 1  # codes of `utility` in kernels: Literal["mean", "cara"]
PNL, EXPECTED = 0, 1  # codes of `reward`: Literal["pnl", "expected"]
MAX_EXPONENT = 700.0  # of a CARA reward

__all__ = ["CARA", "EXPECTED", "MEAN", "PNL", "checked_penalty", "price_noise", "require_aversion", "step_reward"]


def checked_penalty(params: Any, given: Any, default: float) -> float:
    """The running penalty of parameters: None is ``default`` under "mean" and 0 under "cara".

    Raises
    ------
    ValueError
        If risk aversion and running penalty, which was ``given`` so, do not go with the utility.
    """
    if params.utility == "cara":
        require_aversion(params.risk_aversion)
        if params.running_penalty:
            raise ValueError(
                f"running_penalty = {given!r} is not allowed with utility='cara', whose criterion has none: it must be "
                "0 or None"
            )
        return 0.0
    return default if params.running_penalty is None else float(params.running_penalty)


def require_aversion(risk_aversion: float) -> None:
    """Refuse a risk aversion of 0 under "cara".

    Raises
    ------
    ValueError
        If it is 0.
    """
    if risk_aversion == 0.0:
        raise ValueError("risk_aversion = 0.0 is not allowed with utility='cara': it must be a finite number > 0")


@scalar_kernel
def price_noise(p, q, moved, int_q, int_qq, s0, s1):
    """``(int q dW, W_h)`` over a step that ends with inventory ``q``; ``moved`` is False where ``q`` was constant."""
    z, s0, s1 = normal(s0, s1)
    brownian = p.root_step * z
    int_q_dw = q * brownian
    if moved:
        mean_q = int_q * p.inverse_step
        z, s0, s1 = normal(s0, s1)
        int_q_dw = mean_q * brownian + math.sqrt(max(int_qq - int_q * mean_q, 0.0)) * z
    return int_q_dw, brownian, s0, s1


@scalar_kernel
def step_reward(p, terminated, gain, price_gain, penalty, total_gain, total_price_gain, total_exponent):
    """Reward of a step from its gain without price noise, its price gain and its running penalty.

    The totals of the episode are those of the gain, of the price gain, and of the logarithm of
    ``E[exp(-risk_aversion * price gain)]`` given the inventory's path. Terminal costs are part of the last gain.
    """
    if p.utility == MEAN:
        reward = gain - penalty
        if p.reward == PNL:
            reward += price_gain
        return reward
    if not terminated:
        return 0.0
    exponent = -p.risk_aversion * total_gain
    if p.reward == PNL:
        exponent -= p.risk_aversion * total_price_gain
    else:
        exponent += total_exponent
    return -math.exp(min(exponent, MAX_EXPONENT))
