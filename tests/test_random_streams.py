"""The generator of the kernels and their exponential.

Expected values: the authors' C code (by way of the vectors published with the rand_xoshiro crate), a pure-Python
implementation, SciPy's distribution functions and 40-digit decimals.

False alarms: seeds are fixed, so a check either always passes or never does. Were the seeds redrawn, each test function
below would fail with probability at most 1e-3: it divides that rate evenly over the p-values that it looks at.
"""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from numba import njit
from scipy import stats

from mmgym import random_streams
from mmgym.vector_exp import LIMIT, fast_exp

FALSE_ALARMS = 1e-3
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1

SIZES = [
    pytest.param(1_000_000, id="reduced"),
    pytest.param(10_000_000, id="full", marks=pytest.mark.slow),
]


@njit(cache=True)
def raw_draws(s0, s1, out):
    for i in range(out.size):
        out[i], s0, s1 = random_streams.next_uint64(s0, s1)
    return s0, s1


@njit(cache=True)
def uniform_draws(s0, s1, out):
    for i in range(out.size):
        out[i], s0, s1 = random_streams.uniform(s0, s1)


@njit(cache=True)
def normal_draws(s0, s1, out):
    for i in range(out.size):
        out[i], s0, s1 = random_streams.normal(s0, s1)


@njit(cache=True)
def exponential_draws(s0, s1, out):
    for i in range(out.size):
        out[i], s0, s1 = random_streams.exponential(s0, s1)


@njit(cache=True)
def normal_tail_draws(s0, s1, out):
    for i in range(out.size):
        out[i], s0, s1 = random_streams.normal_tail(s0, s1)


@njit(cache=True)
def start_streams(seeds, out):
    for i in range(seeds.size):
        out[i, 0], out[i, 1] = random_streams.start_stream(seeds[i])


@njit(cache=True)
def uniforms_of_streams(streams, out):
    """Row i: the first draws of stream i."""
    for i in range(out.shape[0]):
        s0, s1 = streams[i, 0], streams[i, 1]
        for j in range(out.shape[1]):
            out[i, j], s0, s1 = random_streams.uniform(s0, s1)


@njit(cache=True)
def exponentials_of(arguments, out):
    for i in range(arguments.size):
        out[i] = fast_exp(arguments[i])


def draws(kind, size, seed):
    """``size`` draws of one stream."""
    fill = {"uniform": uniform_draws, "normal": normal_draws, "exponential": exponential_draws}[kind]
    out = np.empty(size)
    fill(*streams_of([seed])[0], out)
    return out


def streams_of(seeds):
    seeds = np.array([seed & MASK for seed in map(int, seeds)], dtype=np.uint64)
    streams = np.empty((len(seeds), 2), dtype=np.uint64)
    start_streams(seeds, streams)
    return streams


def first_uniforms(seeds, count):
    out = np.empty((len(seeds), count))
    uniforms_of_streams(streams_of(seeds), out)
    return out


# --- A second implementation, on Python's integers -------------------------------------------------------------------


def rotate_left(x, bits):
    return ((x << bits) | (x >> (64 - bits))) & MASK


def python_xoroshiro(s0, s1):
    """xoroshiro128++ 1.0 as its authors' C code has it: output, next state."""
    result = (rotate_left((s0 + s1) & MASK, 17) + s0) & MASK
    s1 ^= s0
    return result, rotate_left(s0, 49) ^ s1 ^ ((s1 << 21) & MASK), rotate_left(s1, 28)


def python_split_mix(state):
    """SplitMix64 as its authors' C code has it: output, next state."""
    state = (state + GOLDEN) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31), state


# --- Bits ------------------------------------------------------------------------------------------------------------


def test_published_vectors_of_xoroshiro():
    expected = [
        393217,
        669327710093319,
        1732421326133921491,
        11394790081659126983,
        9555452776773192676,
        3586421180005889563,
        1691397964866707553,
        10735626796753111697,
        15216282715349408991,
        14247243556711267923,
    ]
    out = np.empty(10, dtype=np.uint64)
    raw_draws(np.uint64(1), np.uint64(2), out)
    assert out.tolist() == expected


def test_published_vectors_of_split_mix():
    expected = [
        1985237415132408290,
        2979275885539914483,
        13511426838097143398,
        8488337342461049707,
        15141737807933549159,
        17093170987380407015,
    ]
    state = 1477776061723855037
    for value in expected:
        assert int(random_streams.split_mix(np.uint64(state))) == value
        state = (state + GOLDEN) & MASK


def test_bits_equal_a_pure_python_implementation():
    random = np.random.default_rng(0)
    states = random.integers(0, MASK, (2000, 2), dtype=np.uint64, endpoint=True).tolist()
    states += [[0, 1], [1, 0], [MASK, MASK], [0, MASK], [MASK, 0], [1 << 63, 1 << 63], [1 << 63, 0]]
    for s0, s1 in states:
        out = np.empty(5, dtype=np.uint64)
        end = raw_draws(np.uint64(s0), np.uint64(s1), out)
        for drawn in out.tolist():
            expected, s0, s1 = python_xoroshiro(s0, s1)
            assert drawn == expected
        assert [int(word) for word in end] == [s0, s1]


def test_a_stream_starts_with_two_split_mix_outputs_of_its_seed():
    random = np.random.default_rng(1)
    seeds = [0, 1, 2, MASK, MASK - 1, 1 << 63, (-GOLDEN) & MASK]
    seeds += random.integers(0, MASK, 2000, dtype=np.uint64).tolist()
    for seed, stream in zip(seeds, streams_of(seeds).tolist(), strict=True):
        first, state = python_split_mix(seed)
        second, _ = python_split_mix(state)
        assert stream == [first, second]


def test_a_uniform_is_the_top_53_bits():
    raw = np.empty(1000, dtype=np.uint64)
    raw_draws(np.uint64(5), np.uint64(6), raw)
    out = np.empty(1000)
    uniform_draws(np.uint64(5), np.uint64(6), out)
    assert out.tolist() == [(bits >> 11) / 2.0**53 for bits in raw.tolist()]
    assert (np.uint64(MASK) >> np.uint64(11)) * 2.0**-53 < 1.0


# --- Distributions ---------------------------------------------------------------------------------------------------

LAWS = {"uniform": stats.uniform(), "normal": stats.norm(), "exponential": stats.expon()}


def moment_p_values(sample, law, orders):
    """Two-sided p-values of raw moments, with the exact variances of the law."""
    p_values = []
    for order in orders:
        expected, square = law.moment(order), law.moment(2 * order)
        z = (np.mean(sample**order) - expected) / math.sqrt((square - expected**2) / len(sample))
        p_values.append(2.0 * stats.norm.sf(abs(z)))
    return p_values


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", list(LAWS))
def test_law_of_the_draws(kind, size):
    law, sample = LAWS[kind], draws(kind, size, seed=20)
    p_values = {"Kolmogorov-Smirnov": stats.kstest(sample, law.cdf).pvalue}
    p_values |= {f"moment {i + 1}": p for i, p in enumerate(moment_p_values(sample, law, (1, 2, 3, 4)))}
    counts, _ = np.histogram(law.cdf(sample), bins=1000, range=(0.0, 1.0))
    p_values["chi-square, 1000 bins"] = stats.chisquare(counts).pvalue
    for name, p in p_values.items():
        assert p > FALSE_ALARMS / len(p_values), f"{name}: p = {p:.2g}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "edge"), [("normal", random_streams.NORMAL_EDGE), ("exponential", random_streams.EXPONENTIAL_EDGE)]
)
def test_tails_of_the_ziggurats(kind, edge, size):
    """Counts on both sides of the edge where the ziggurat's table ends, by the exact binomial law."""
    law, sample = LAWS[kind], draws(kind, size, seed=21)
    levels = [0.25 * edge, 0.5 * edge, 0.75 * edge, 0.9 * edge, edge, 1.05 * edge, 1.2 * edge, 1.5 * edge]
    signs = (1.0, -1.0) if kind == "normal" else (1.0,)
    for sign in signs:
        for level in levels:
            count = int(np.sum(sign * sample > level))
            p = stats.binomtest(count, size, law.sf(level)).pvalue
            assert p > FALSE_ALARMS / (len(levels) * len(signs)), f"beyond {sign * level:.3f}: p = {p:.2g}"
    beyond = sample[sample > edge]  # the law of the tail itself
    assert stats.kstest((law.sf(beyond)) / law.sf(edge), "uniform").pvalue > FALSE_ALARMS


@pytest.mark.parametrize("size", SIZES)
def test_tail_of_the_normal_by_itself(size):
    """Too rare among normals for their own tests to see its shape."""
    edge, sample = random_streams.NORMAL_EDGE, np.empty(size)
    normal_tail_draws(np.uint64(3), np.uint64(4), sample)
    assert sample.min() >= edge
    assert stats.kstest(stats.norm.sf(sample) / stats.norm.sf(edge), "uniform").pvalue > FALSE_ALARMS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", list(LAWS))
def test_consecutive_draws_are_independent(kind, size):
    quantiles = LAWS[kind].cdf(draws(kind, size, seed=22))
    centered = quantiles - 0.5
    p_values = {}
    for lag in (1, 2, 3, 7):
        z = np.mean(centered[:-lag] * centered[lag:]) * 12.0 * math.sqrt(size - lag)
        p_values[f"lag {lag}"] = 2.0 * stats.norm.sf(abs(z))
        spread = centered**2 - 1.0 / 12.0
        z = np.mean(spread[:-lag] * spread[lag:]) * 180.0 * math.sqrt(size - lag)
        p_values[f"squares, lag {lag}"] = 2.0 * stats.norm.sf(abs(z))
    pairs = quantiles[: size // 2 * 2].reshape(-1, 2)  # disjoint pairs, so that the chi-square law is exact
    counts, _, _ = np.histogram2d(pairs[:, 0], pairs[:, 1], bins=32, range=((0, 1), (0, 1)))
    p_values["pairs, 32 x 32 cells"] = stats.chisquare(counts.ravel()).pvalue
    for name, p in p_values.items():
        assert p > FALSE_ALARMS / len(p_values), f"{name}: p = {p:.2g}"


def test_the_sign_of_a_normal_does_not_tell_its_size():
    sample = draws("normal", 1_000_000, seed=23)
    z = np.mean(np.sign(sample) * (np.abs(sample) - math.sqrt(2 / math.pi))) / math.sqrt(
        (1 - 2 / math.pi) / len(sample)
    )
    assert 2.0 * stats.norm.sf(abs(z)) > FALSE_ALARMS


# --- Streams against each other --------------------------------------------------------------------------------------

RUN_SEEDS = [
    int(np.random.SeedSequence([run, purpose]).generate_state(1, np.uint64)[0])
    for run in range(60)
    for purpose in (0, 1)
]

SEED_FAMILIES = {
    "rows of a batch seeded 0": range(120),
    "rows of a batch near the end of the range": range(2**64 - 60, 2**64 + 60),
    "seeds a bit apart": [1 << bit for bit in range(64)],
    "seeds a SplitMix step apart": [5 + i * GOLDEN for i in range(120)],
    "run seeds": RUN_SEEDS,
}


@pytest.mark.parametrize("name", list(SEED_FAMILIES))
def test_streams_of_different_seeds_are_uncorrelated(name):
    """All pairs of streams, at equal positions and one draw apart: the largest of the correlations, by Bonferroni."""
    seeds, length = list(SEED_FAMILIES[name]), 5_000
    uniforms = first_uniforms(seeds, length) - 0.5
    aligned = uniforms @ uniforms.T * 12.0 / math.sqrt(length)
    shifted = uniforms[:, 1:] @ uniforms[:, :-1].T * 12.0 / math.sqrt(length - 1)
    z = np.concatenate([aligned[np.triu_indices(len(seeds), 1)], shifted[~np.eye(len(seeds), dtype=bool)]])
    assert np.abs(z).max() < stats.norm.isf(0.5 * FALSE_ALARMS / len(z))


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(200_000), id="neighbouring seeds"),
        pytest.param(range(1 << 40, (1 << 40) + 200_000), id="neighbouring seeds from 2^40"),
        pytest.param([i << 32 for i in range(200_000)], id="seeds that differ in high bits"),
    ],
)
def test_first_draws_of_many_seeds(seeds):
    """Draw j of seeds s, s + 1, ...: uniform, and without serial correlation from seed to seed."""
    uniforms = first_uniforms(seeds, 4)
    p_values = []
    for column in uniforms.T:
        p_values.append(stats.kstest(column, "uniform").pvalue)
        for lag in (1, 2, 16):
            z = np.mean((column[lag:] - 0.5) * (column[:-lag] - 0.5)) * 12.0 * math.sqrt(len(column) - lag)
            p_values.append(2.0 * stats.norm.sf(abs(z)))
    z = (uniforms.T - 0.5) @ (uniforms - 0.5) * 12.0 / math.sqrt(len(uniforms))
    p_values += (2.0 * stats.norm.sf(np.abs(z[np.triu_indices(4, 1)]))).tolist()
    assert min(p_values) > FALSE_ALARMS / len(p_values)


def test_no_two_seeds_share_a_stream():
    streams = streams_of(list(range(100_000)) + list(range(2**64 - 100_000, 2**64)))
    assert len(np.unique(streams[:, 0])) == len(streams)
    assert (streams.any(axis=1)).all()


# --- The exponential -------------------------------------------------------------------------------------------------


def fast_exponentials(arguments):
    arguments = np.asarray(arguments, dtype=np.float64)
    out = np.empty(arguments.shape)
    exponentials_of(arguments, out)
    return out


def decimal_error(arguments):
    """Largest relative error of `fast_exp`, by 40-digit decimals."""
    worst = Decimal(0)
    with localcontext() as context:
        context.prec = 40
        for argument, value in zip(arguments.tolist(), fast_exponentials(arguments).tolist(), strict=True):
            worst = max(worst, abs(Decimal(value) / Decimal(argument).exp() - 1))
    return float(worst)


@pytest.mark.parametrize(("low", "high"), [(-690.0, 690.0), (-20.0, 20.0), (-1.0, 1.0), (-0.01, 0.01)])
def test_exponential_has_the_documented_relative_error(low, high):
    assert decimal_error(np.random.default_rng(3).uniform(low, high, 5_000)) < 4e-16


def test_exponential_at_the_edges_of_its_tables():
    """Where the nearest multiple of ln 2 / 128 changes, and where the power of two does."""
    multiples = np.arange(-3000, 3000) * (math.log(2.0) / 256.0)
    assert decimal_error(np.concatenate([multiples, np.nextafter(multiples, np.inf)])) < 4e-16


@pytest.mark.parametrize(
    "size", [pytest.param(200_000, id="reduced"), pytest.param(20_000_000, id="full", marks=pytest.mark.slow)]
)
def test_exponential_against_the_c_library(size):
    arguments = np.random.default_rng(4).uniform(-690.0, 690.0, size)
    error = np.abs(fast_exponentials(arguments) / np.exp(arguments) - 1.0)
    assert error.max() < 4e-16 + 2.0**-52  # the library's own error is below one unit in the last place


def test_exponential_is_cut_at_its_limit():
    beyond = fast_exponentials([LIMIT, 690.1, 709.0, 1e300, np.inf])
    assert (beyond == beyond[0]).all()
    assert beyond[0] == pytest.approx(math.exp(690.0), rel=1e-15)
    below = fast_exponentials([-LIMIT, -690.1, -745.0, -1e300, -np.inf])
    assert (below == below[0]).all()
    assert below[0] == pytest.approx(math.exp(-690.0), rel=1e-15)


def test_exponential_of_not_a_number_stays_in_its_tables():
    assert fast_exponentials([np.nan, -np.nan, -690.0]).tolist() == [fast_exponentials([-690.0])[0]] * 3


def test_exponential_of_tiny_arguments():
    tiny = [0.0, -0.0, 5e-324, -5e-324, 2.2e-308, -2.2e-308, 1e-300, 1e-17, -1e-17]
    assert (fast_exponentials(tiny) == 1.0).all()
    assert decimal_error(np.array([1e-8, -1e-8, 1e-12, -1e-12, 3e-16, -3e-16])) < 4e-16
