"""Statistics of runs against known answers."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mmgym.agents.statistics import bootstrap_interval, probability_of_improvement


@pytest.mark.parametrize(
    ("strata", "expected"),
    [
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]], 4.5),  # the mean of 3, 4, 5, 6
        ([[100.0, 2.0, 3.0, 4.0, -50.0]], 3.0),  # five runs: one is cut off at each end
        ([[0.0, 1.0], [10.0, 11.0]], 5.5),  # cut over all strata, not in each: (1 + 10) / 2
        ([[7.0]], 7.0),
        ([[1.0, 2.0, 6.0]], 3.0),  # nothing is cut of three
        ([[1.0, 2.0, 3.0, -math.inf]], 1.5),
        ([[1.0, -math.inf, 3.0]], -math.inf),
    ],
)
def test_interquartile_mean(strata, expected):
    assert bootstrap_interval(strata, resamples=1).estimate == expected


def test_bootstrap_of_three_runs_is_that_of_all_their_resamples():
    """The 27 equally likely resamples of three runs: quantiles of the exact law of the mean."""
    runs = [0.0, 1.0, 5.0]
    law = sorted(sum(draw) / 3 for draw in itertools.product(runs, repeat=3))
    interval = bootstrap_interval([runs], confidence=0.8, resamples=20_000)
    assert interval.estimate == pytest.approx(2.0)
    assert interval.low == pytest.approx(law[int(0.1 * 27)])
    assert interval.high == pytest.approx(law[int(0.9 * 27)])


def test_bootstrap_is_that_of_scipy_in_one_stratum():
    runs = np.random.default_rng(1).normal(size=40)
    interval = bootstrap_interval([runs], resamples=50_000, seed=3)
    expected = stats.bootstrap(
        (runs,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=50_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert interval.estimate == pytest.approx(stats.trim_mean(runs, 0.25))
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_strata_are_resampled_apart():
    """Two strata of equal runs have no spread at all; as one stratum they would."""
    assert bootstrap_interval([[1.0, 1.0], [3.0, 3.0]]) == (2.0, 2.0, 2.0)
    assert bootstrap_interval([[1.0, 1.0, 3.0, 3.0]]).low < 2.0


def test_interval_covers_at_its_rate():
    """IQM of a normal sample of 20: the percentile interval covers 0 about nine times in ten (nominal 95 %).

    300 samples at a coverage of 0.9 or more fall below 252 with probability 1e-3.
    """
    random = np.random.default_rng(7)
    covered = 0
    for number in range(300):
        interval = bootstrap_interval([random.normal(size=20)], resamples=400, seed=number)
        covered += interval.low <= 0.0 <= interval.high
    assert covered >= 252


def test_a_failed_run_opens_the_interval():
    interval = bootstrap_interval([[0.9, 0.8, 0.95, 0.85, -math.inf]])
    assert interval.estimate == pytest.approx((0.8 + 0.85 + 0.9) / 3)
    assert interval.low == -math.inf
    assert math.isfinite(interval.high)
    regret = bootstrap_interval([[0.9, 0.8, 0.95, 0.85, math.inf]])
    assert regret.high == math.inf


def improvement(first, second):
    return probability_of_improvement([first], [second], resamples=1).estimate


def test_improvement_counts_pairs():
    assert improvement([1.0, 2.0, 3.0], [0.0, 0.5]) == 1.0
    assert improvement([1.0], [1.0]) == 0.5
    assert improvement([1.0, 3.0], [2.0, 3.0]) == (0.0 + 0.0 + 1.0 + 0.5) / 4
    x, y = np.random.default_rng(0).integers(0, 6, (2, 30)).astype(float)
    expected = stats.mannwhitneyu(x, y).statistic / 900
    assert improvement(x, y) == pytest.approx(expected)
    assert improvement(x, y) + improvement(y, x) == pytest.approx(1.0)


def test_probability_of_improvement_averages_markets():
    interval = probability_of_improvement([[1.0, 1.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]])
    assert interval.estimate == 0.75  # 1 in the first market, 1/2 in the second
    assert interval.low == pytest.approx(0.5)  # both draws of the second market are 0: probability 1/4
    assert interval.high == pytest.approx(1.0)


@pytest.mark.parametrize("strata", [[], [[]], [[1.0, math.nan]]])
def test_what_cannot_be_averaged_is_refused(strata):
    with pytest.raises(ValueError, match=r"at least one run|is nan"):
        bootstrap_interval(strata)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([[1.0]], confidence=1.0)
    with pytest.raises(ValueError, match="same markets"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
