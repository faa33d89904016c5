"""The random numbers used inside kernels: xoroshiro128++ with ziggurat normals and exponentials.

A stream is two 64-bit words ``(s0, s1)``, carried through kernels as scalars: every function takes the words and
returns ``(value, s0, s1)``. A stream is started from one 64-bit seed by SplitMix64, so it depends on the seed alone.

Sources: Blackman & Vigna (2021), Scrambled linear pseudorandom number generators (xoroshiro128++ 1.0); Steele, Lea &
Flood (2014), Fast splittable pseudorandom number generators (SplitMix64); Marsaglia & Tsang (2000), The ziggurat
method for generating random variables, here with 256 layers and 52/53-bit abscissae.
"""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL, SCALAR

NORMAL_EDGE = 3.6541528853610088  # start of the tail, for 256 layers of equal area
EXPONENTIAL_EDGE = 7.69711747013104972

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LAYER = np.uint64(0xFF)
_ONE = np.uint64(1)
_UNIT = 2.0**-53


def _ziggurat(density, inverse, edge, area, bits):
    """Tables of a 256-layer ziggurat: acceptance thresholds, scales of the abscissae and ordinates of the layers."""
    x = np.zeros(257)
    x[0], x[1] = area / density(edge), edge
    for i in range(2, 256):
        x[i] = inverse(density(x[i - 1]) + area / x[i - 1])
    accept = np.array([int(x[i + 1] / x[i] * 2.0**bits) for i in range(256)], dtype=np.uint64)
    height = np.array([density(value) for value in x])
    height[0] = 0.0
    return accept, x[:256] / 2.0**bits, height


_NORMAL_AREA = NORMAL_EDGE * math.exp(-0.5 * NORMAL_EDGE**2) + math.sqrt(math.pi / 2) * math.erfc(
    NORMAL_EDGE / math.sqrt(2)
)
NORMAL_ACCEPT, NORMAL_SCALE, NORMAL_HEIGHT = _ziggurat(
    lambda x: math.exp(-0.5 * x * x), lambda y: math.sqrt(-2.0 * math.log(y)), NORMAL_EDGE, _NORMAL_AREA, 52
)
_EXPONENTIAL_AREA = (EXPONENTIAL_EDGE + 1.0) * math.exp(-EXPONENTIAL_EDGE)
EXPONENTIAL_ACCEPT, EXPONENTIAL_SCALE, EXPONENTIAL_HEIGHT = _ziggurat(
    lambda x: math.exp(-x), lambda y: -math.log(y), EXPONENTIAL_EDGE, _EXPONENTIAL_AREA, 53
)


@njit(**SCALAR)
def split_mix(state):
    """One SplitMix64 output of ``state`` (uint64); the next state is ``state + 0x9E3779B97F4A7C15``."""
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@njit(**SCALAR)
def start_stream(seed):
    """The stream ``(s0, s1)`` of a 64-bit seed: two SplitMix64 outputs, never both zero in practice."""
    s0 = split_mix(seed)
    s1 = split_mix(seed + _GOLDEN)
    if s0 == np.uint64(0) and s1 == np.uint64(0):
        s1 = _GOLDEN
    return s0, s1


@njit(**SCALAR)
def next_uint64(s0, s1):
    """64 random bits (xoroshiro128++ 1.0)."""
    total = s0 + s1
    result = ((total << np.uint64(17)) | (total >> np.uint64(47))) + s0
    s1 ^= s0
    rotated = (s0 << np.uint64(49)) | (s0 >> np.uint64(15))
    return result, rotated ^ s1 ^ (s1 << np.uint64(21)), (s1 << np.uint64(28)) | (s1 >> np.uint64(36))


@njit(**SCALAR)
def uniform(s0, s1):
    """A uniform number in [0, 1) with 53 random bits."""
    bits, s0, s1 = next_uint64(s0, s1)
    return (bits >> np.uint64(11)) * _UNIT, s0, s1


@njit(**KERNEL)  # kept out of line: 1 to 2 % of the draws
def _exponential_rare(bits, s0, s1):
    """The rest of `exponential` for a draw outside its layer's rectangle."""
    layer = bits & _LAYER
    x = (bits >> np.uint64(11)) * EXPONENTIAL_SCALE[layer]
    u, s0, s1 = uniform(s0, s1)
    while layer != np.uint64(0):
        low = EXPONENTIAL_HEIGHT[layer]
        if low + u * (EXPONENTIAL_HEIGHT[layer + _ONE] - low) < math.exp(-x):
            return x, s0, s1
        bits, s0, s1 = next_uint64(s0, s1)
        layer = bits & _LAYER
        mantissa = bits >> np.uint64(11)
        x = mantissa * EXPONENTIAL_SCALE[layer]
        if mantissa < EXPONENTIAL_ACCEPT[layer]:
            return x, s0, s1
        u, s0, s1 = uniform(s0, s1)
    return EXPONENTIAL_EDGE - math.log1p(-u), s0, s1


@njit(**SCALAR)
def exponential(s0, s1):
    """An exponential number of mean 1."""
    bits, s0, s1 = next_uint64(s0, s1)
    layer = bits & _LAYER
    mantissa = bits >> np.uint64(11)
    if mantissa < EXPONENTIAL_ACCEPT[layer]:
        return mantissa * EXPONENTIAL_SCALE[layer], s0, s1
    return _exponential_rare(bits, s0, s1)


@njit(**KERNEL)
def normal_tail(s0, s1):
    """A standard normal number conditioned on exceeding `NORMAL_EDGE` (Marsaglia 1964)."""
    u, s0, s1 = uniform(s0, s1)
    v, s0, s1 = uniform(s0, s1)
    excess = -math.log1p(-u) / NORMAL_EDGE
    while -2.0 * math.log1p(-v) <= excess * excess:
        u, s0, s1 = uniform(s0, s1)
        v, s0, s1 = uniform(s0, s1)
        excess = -math.log1p(-u) / NORMAL_EDGE
    return NORMAL_EDGE + excess, s0, s1


@njit(**KERNEL)
def _normal_rare(bits, s0, s1):
    """The absolute value and the sign bits of `normal` for a draw outside its layer's rectangle."""
    layer = bits & _LAYER
    x = (bits >> np.uint64(12)) * NORMAL_SCALE[layer]
    while layer != np.uint64(0):
        u, s0, s1 = uniform(s0, s1)
        low = NORMAL_HEIGHT[layer]
        if low + u * (NORMAL_HEIGHT[layer + _ONE] - low) < math.exp(-0.5 * x * x):
            return x, bits, s0, s1
        bits, s0, s1 = next_uint64(s0, s1)
        layer = bits & _LAYER
        mantissa = bits >> np.uint64(12)
        x = mantissa * NORMAL_SCALE[layer]
        if mantissa < NORMAL_ACCEPT[layer]:
            return x, bits, s0, s1
    x, s0, s1 = normal_tail(s0, s1)
    return x, bits, s0, s1


@njit(**SCALAR)
def normal(s0, s1):
    """A standard normal number."""
    bits, s0, s1 = next_uint64(s0, s1)
    layer = bits & _LAYER
    mantissa = bits >> np.uint64(12)
    x = mantissa * NORMAL_SCALE[layer]
    if mantissa >= NORMAL_ACCEPT[layer]:
        x, bits, s0, s1 = _normal_rare(bits, s0, s1)
    return (-x if (bits >> np.uint64(8)) & _ONE else x), s0, s1
