r"""Jumps of a mid, at the times of a Poisson process of intensity ``lambda_J``.

Their sizes ``J`` are normal with mean ``m`` and standard deviation ``s`` (Merton 1976; with ``s = 0`` all of one size),
or double exponential (Kou 2002): upward with probability ``p`` and mean ``eta_up``, else downward with mean
``eta_down``, ``m = p eta_up - (1 - p) eta_down``. Then

    E[exp(z J)] = exp(z m + z^2 s^2 / 2),    or    p / (1 - z eta_up) + (1 - p) / (1 + z eta_down).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.market import scalar_kernel
from mmgym.random_streams import exponential, normal, uniform

__all__ = [
    "JUMP_EXPONENT_TOO_LARGE",
    "JUMP_LAWS",
    "MAX_JUMP_EXPONENT",
    "JumpSizes",
    "check_jump_law",
    "draw_jump",
    "jump_exponent_rate",
]

DOUBLE_EXPONENTIAL = 1  # code of `jump_law` in kernels
MAX_EXPONENT = 600.0  # of a jump's exponential moment
MAX_JUMP_EXPONENT = 1e4  # of an episode's jumps at the inventory limit, under CARA

JUMP_EXPONENT_TOO_LARGE = (
    "with utility='cara' the expected utility of the jumps leaves the range of floating point at the inventory limit: "
    "jump_rate * horizon * E[exp(risk_aversion * inventory_limit * |J|)] must be at most "
    f"{MAX_JUMP_EXPONENT:g}; lower one of them"
)

JUMP_LAWS = {  # the parameters of each, and what they are under another one
    "normal": {"jump_mean": 0.0, "jump_volatility": 0.0},
    "double_exponential": {"jump_up_share": 0.5, "jump_up_mean": 0.0, "jump_down_mean": 0.0},
}


class JumpSizes(NamedTuple):
    """The law of the sizes of jumps (price)."""

    law: str
    mean: float
    volatility: float
    up_share: float
    up_mean: float
    down_mean: float

    @property
    def average(self) -> float:
        """``E[J]`` (price)."""
        if self.law == "normal":
            return self.mean
        return self.up_share * self.up_mean - (1.0 - self.up_share) * self.down_mean

    @property
    def square(self) -> float:
        """``E[J^2]`` (price^2)."""
        if self.law == "normal":
            return self.mean**2 + self.volatility**2
        return 2.0 * (self.up_share * self.up_mean**2 + (1.0 - self.up_share) * self.down_mean**2)

    def compensated(self, exposure: Any) -> NDArray[Any]:
        """``E[exp(z J)] - 1 - z E[J]`` at exposures ``z`` (1 / price), real or complex.

        Raises
        ------
        ValueError
            If a real exposure is one at which the exponential moment is infinite.
        """
        exposure = np.asarray(exposure)
        if self.law == "normal":
            growth = np.expm1(exposure * self.mean + 0.5 * (exposure * self.volatility) ** 2)
        else:
            up, down = exposure * self.up_mean, -exposure * self.down_mean
            happen = (self.up_share > 0.0, self.up_share < 1.0)
            if max(np.max(side.real) * exists for side, exists in zip((up, down), happen, strict=True)) >= 1.0:
                raise ValueError(
                    "the P&L has no exponential moment at this exponent: exposures to the jumps times their mean size, "
                    f"jump_up_mean = {self.up_mean:g} or jump_down_mean = {self.down_mean:g}, must be below 1"
                )
            growth = self.up_share * up / (1.0 - up) + (1.0 - self.up_share) * down / (1.0 - down)
        return np.asarray(growth - exposure * self.average)

    def largest_growth(self, exposure: float) -> float:
        """A bound of ``E[exp(z J)] - 1`` for ``|z|`` up to an exposure: infinite where it is, or beyond floats."""
        if self.law == "normal":
            exponent = abs(exposure * self.mean) + 0.5 * (exposure * self.volatility) ** 2
            return math.expm1(exponent) if exponent <= MAX_EXPONENT else math.inf
        mean = exposure * max(self.up_mean, self.down_mean)  # of the exponent of a jump against her
        return mean / (1.0 - mean) if mean < 1.0 else math.inf


def check_jump_law(law: str, values: Mapping[str, float], where: str = "") -> None:
    """Refuse parameters of another law of jumps than this one; ``where`` follows their names in a message.

    Raises
    ------
    ValueError
        If one of the ``values`` by name is not what it must be under this law.
    """
    (other,) = set(JUMP_LAWS) - {law}
    for name, neutral in JUMP_LAWS[other].items():
        if values[name] != neutral:
            raise ValueError(
                f"{name}{where} = {values[name]!r} is not allowed with jump_law={law!r}, whose parameters are "
                f"{', '.join(JUMP_LAWS[law])}: it must be {neutral:g}"
            )


@scalar_kernel
def jump_exponent_rate(law, rate, mean, volatility, up_share, up_mean, down_mean, average, z):
    """``lambda_J (E[exp(z J)] - 1 - z m)``."""
    if law == DOUBLE_EXPONENTIAL:
        up, down = z * up_mean, -z * down_mean
        growth = up_share * up / (1.0 - up) + (1.0 - up_share) * down / (1.0 - down)
    else:
        growth = math.expm1(z * mean + 0.5 * (z * volatility) ** 2)
    return rate * (growth - z * average)


@scalar_kernel
def draw_jump(law, mean, volatility, up_share, up_mean, down_mean, s0, s1):
    """The size of a jump (price)."""
    if law == DOUBLE_EXPONENTIAL:
        side, s0, s1 = uniform(s0, s1)
        size, s0, s1 = exponential(s0, s1)
        return (up_mean * size if side < up_share else -down_mean * size), s0, s1
    z, s0, s1 = normal(s0, s1)
    return mean + volatility * z, s0, s1
