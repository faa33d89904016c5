r"""Exact draws of the square-root process ``dnu = kappa (theta - nu) dt + xi sqrt(nu) dZ``.

``nu(t)`` given ``nu(0)`` is ``c`` times a non-central chi-square with ``d = 4 kappa theta / xi^2`` degrees of freedom
and non-centrality ``nu(0) exp(-kappa t) / c``, ``c = xi^2 (1 - exp(-kappa t)) / (4 kappa)`` (Cox, Ingersoll & Ross
1985). For ``d > 1`` it is the square of a normal number plus a central chi-square of ``d - 1``; otherwise a chi-square
of ``d + 2 N``, ``N`` Poisson.

Numbers of arrivals beyond 2^53 have no neighbours among floats, and far below that a rejection's logarithms lose the
digits it decides by. From a mean of 1e8 on ``N`` is therefore its Cornish-Fisher quantile, and from a shape of 1e8 on a
gamma number is Marsaglia and Tsang's candidate, accepted with a probability of ``1 - 1e-10``: both laws are within 1e-8
of the exact ones.
"""

import math

from numba import njit

from mmgym.compiling import KERNEL
from mmgym.random_streams import exponential, normal, uniform

__all__ = ["next_variance"]

LARGE = 1e8  # a mean or a shape from which on the law is that of a function of one normal number, to 1e-8


@njit(**KERNEL)
def gamma_number(shape, s0, s1):
    """A gamma number of unit scale (Marsaglia & Tsang 2000)."""
    boost = 1.0
    if shape < 1.0:
        u, s0, s1 = uniform(s0, s1)
        boost = (1.0 - u) ** (1.0 / shape)
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x, s0, s1 = normal(s0, s1)
        v = 1.0 + c * x
        if v > 0.0:
            v = v * v * v
            if d > LARGE:
                return boost * d * v, s0, s1
            u, s0, s1 = uniform(s0, s1)
            if math.log(1.0 - u) < 0.5 * x * x + d - d * v + d * math.log(v):
                return boost * d * v, s0, s1


@njit(**KERNEL)
def poisson_number(mean, s0, s1):
    """A Poisson number: counted arrivals below mean 10, transformed rejection (Hoermann 1993, PTRS) above.

    From ``LARGE`` on it is a normal number and its first two corrections, not rounded to a whole number.
    """
    if mean > LARGE:
        z, s0, s1 = normal(s0, s1)
        return mean + math.sqrt(mean) * z + (z * z - 1.0) / 6.0, s0, s1
    if mean < 10.0:
        count, clock = 0, 0.0
        while True:
            wait, s0, s1 = exponential(s0, s1)
            clock += wait
            if not clock <= mean:  # also where the mean is not a number
                return float(count), s0, s1
            count += 1
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    edge = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        u, s0, s1 = uniform(s0, s1)
        v, s0, s1 = uniform(s0, s1)
        u, v = u - 0.5, 1.0 - v
        room = 0.5 - abs(u)
        if room <= 0.0:
            continue
        k = math.floor((2.0 * a / room + b) * u + mean + 0.43)
        if room >= 0.07 and v <= edge:
            return k, s0, s1
        if k < 0.0 or (room < 0.013 and v > room):
            continue
        bound = k * math.log(mean) - mean - math.lgamma(k + 1.0)
        if math.log(v * inverse_alpha / (a / (room * room) + b)) <= bound:
            return k, s0, s1


@njit(**KERNEL)
def next_variance(variance, reversion, mean, volatility, length, s0, s1):
    """``(nu(t), s0, s1)`` after a time ``length`` from ``nu(0) = variance``, from its exact law."""
    decay = math.exp(-reversion * length)
    scale = -volatility * volatility * math.expm1(-reversion * length) / (4.0 * reversion)
    if scale < 1e-290:
        return mean + (variance - mean) * decay, s0, s1
    degrees = 4.0 * reversion * mean / (volatility * volatility)
    noncentrality = variance * decay / scale
    if degrees > 1.0:
        z, s0, s1 = normal(s0, s1)
        z += math.sqrt(noncentrality)
        chi, s0, s1 = gamma_number(0.5 * (degrees - 1.0), s0, s1)
        return scale * (z * z + 2.0 * chi), s0, s1
    count, s0, s1 = poisson_number(0.5 * noncentrality, s0, s1)
    chi, s0, s1 = gamma_number(0.5 * degrees + count, s0, s1)
    return scale * 2.0 * chi, s0, s1
