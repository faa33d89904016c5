"""Calibration of the tick-spread market: small tapes by hand, recovery, coverage, the proxy's bias, wrong files.

False alarms. Seeds are fixed, so a check either always passes or never does; the rates say how likely a change of seed
is to fail. Recovery: 1e-3 for all parameters of a day together. Coverage and level of the tests: a two-sided binomial
interval of 1e-3 for each of the seven counts, and 1e-3 for the parameters one by one together. The proxy against its
closed form: 1e-3 for all cells together. Power: no false alarms, p-values below 1e-6 where the law is broken.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mmgym  # noqa: F401
from mmgym.agents.cli import main
from mmgym.calibration.own_quotes import OWN_QUOTES_COLUMNS, read_own_quotes
from mmgym.calibration.score_intervals import Estimates, proportions, rates
from mmgym.calibration.spread_chain import (
    SpreadPath,
    clock_test,
    holding_times_test,
    largest_num_spreads,
    markov_test,
    one_clock_test,
    tick_states,
)
from mmgym.calibration.tick_spread import Calibration, calibrate
from mmgym.calibration.tick_spread_simulation import simulate_own_quotes, simulate_tape
from mmgym.calibration.volume_proxy import proxy_limit, single_order_rate
from mmgym.models.tick_spread import Params
from mmgym.tapes import Selection, read_tape
from mmgym.tapes.level1 import TAPE_COLUMNS, best_quotes

REAL_TAPE = Path(__file__).parents[2] / "shared" / "data" / "ethusdt_perpetual_20240808_level1.csv.gz"
DAYS = 100

# Guilbaud & Pham (2013): Table 2 and Table 1 (rows to be normalised), and the averages of Table 3
CLOCK = np.array([1.654, 0.799, 0.516, 0.377, 0.632, 1.305, 2.113])
RHO = np.array(
    [
        [0, 0.410, 0.220, 0.160, 0.142, 0.065],
        [0.201, 0, 0.435, 0.192, 0.103, 0.067],
        [0.113, 0.221, 0, 0.4582, 0.147, 0.059],
        [0.070, 0.085, 0.275, 0, 0.465, 0.102],
        [0.068, 0.049, 0.073, 0.363, 0, 0.446],
        [0.077, 0.057, 0.059, 0.112, 0.692, 0],
    ]
)
RHO /= RHO.sum(axis=1, keepdims=True)
BEST = np.array([[0.0718, 0.0520, 0.0419, 0.0409, 0.0452, 0.0614], [0.0539, 0.0465, 0.0401, 0.0360, 0.0435, 0.0554]])
IMPROVED = np.array(
    [[0.1763, 0.1144, 0.0915, 0.0896, 0.0930, 0.1255], [0.1485, 0.0979, 0.0846, 0.0856, 0.1009, 0.1202]]
)
FILL_RATES = np.stack([BEST, IMPROVED], axis=1)  # side, quote, spread
OFF_DIAGONAL = ~np.eye(6, dtype=bool)


def market(**changes: object) -> Params:
    arguments = {
        "spread_transitions": RHO.tolist(),
        "clock_rate": [[3600.0 * hour, rate] for hour, rate in enumerate(CLOCK)],
        "fill_rate_best": BEST.tolist(),
        "fill_rate_improved": IMPROVED.tolist(),
        "horizon": 25200.0,
        "num_steps": 25200,
    }
    return Params.create(**(arguments | changes))


@pytest.fixture(scope="module")
def tape() -> pd.DataFrame:
    return simulate_tape(market(), seed=1)


@pytest.fixture(scope="module")
def log(tape: pd.DataFrame) -> pd.DataFrame:
    return simulate_own_quotes(market(), tape, seed=2)


@pytest.fixture(scope="module")
def day(tape: pd.DataFrame, log: pd.DataFrame) -> Calibration:
    return calibrate(tape, own_quotes=log, volatility_interval=60.0)


# A small tape by hand. Spreads (tick 1) 1 2 1 3 2 1 from 0 3 6 8 10 12 to 15 s; at 6 s a spread of 3 that does not last
# out its time stamp, at 8.5 s a spread of 4 that is one state with 3 when num_spreads is 3.

HEADER = ",".join(TAPE_COLUMNS)
TAPE_ROWS = [
    "0,quote,100,5,101,7,,,",
    "1,trade,,,,,100,3,sell",
    "2,trade,,,,,100,4,sell",
    "3,quote,100,2,102,9,,,",
    "3,trade,,,,,100,2,sell",
    "4,quote,99,50,101,50,,,",
    "5,trade,,,,,101,12,buy",
    "6,quote,99,3,102,3,,,",
    "6,quote,100,4,101,1,,,",
    "7,trade,,,,,101,2,buy",
    "8,quote,100,1,103,1,,,",
    "8.5,quote,99,1,103,1,,,",
    "9,trade,,,,,99,100,sell",
    "10,quote,100,6,102,6,,,",
    "11,trade,,,,,102,11,buy",
    "12,quote,100,8,101,8,,,",
    "15,trade,,,,,101,1,buy",
]
LOG_HEADER = ",".join(OWN_QUOTES_COLUMNS)
LOG_ROWS = [
    "0.5,quote,bid,best",
    "1,quote,ask,best",
    "2,fill,bid,",
    "3,fill,bid,",
    "4,quote,bid,improved",
    "6,fill,bid,",
    "6,quote,bid,off",
    "7,quote,bid,improved",
    "9,fill,bid,",
    "10,quote,bid,off",
    "13,fill,ask,",
]


def write(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "tape.csv", HEADER, TAPE_ROWS)


def test_transitions_and_clock_of_a_small_tape(small: Path) -> None:
    calibration = calibrate(small, num_spreads=3, own_size=4.0)
    assert (calibration.tick, calibration.start, calibration.end, calibration.initial_price) == (1.0, 0.0, 15.0, 100.5)
    assert calibration.transition_counts.tolist() == [[0, 1, 1], [2, 0, 0], [0, 1, 0]]
    assert calibration.chain.spread_transitions.value.tolist() == [[0, 0.5, 0.5], [1, 0, 0], [0, 1, 0]]
    assert calibration.chain.spread_transitions.stderr[0].tolist() == pytest.approx([0, 0.3535533906, 0.3535533906])
    assert calibration.seconds.tolist() == [8.0, 5.0, 2.0]
    assert calibration.clock_counts.tolist() == [5]
    assert calibration.chain.clock_rates.value == pytest.approx([1 / 3])
    assert calibration.chain.clock_rates.stderr == pytest.approx([math.sqrt(5) / 15])

    pieces = calibrate(small, num_spreads=3, clock_pieces=[8.0])
    assert pieces.clock_counts.tolist() == [3, 2]  # the jump at 8 s belongs to the piece that ends there
    assert pieces.chain.clock_rates.value == pytest.approx([3 / 8, 2 / 7])
    assert pieces.kwargs()["clock_rate"] == [[0.0, 3 / 8], [8.0, 2 / 7]]
    assert pieces.kwargs(episode_start=6.0)["clock_rate"] == [[0.0, 3 / 8], [2.0, 2 / 7]]
    assert pieces.kwargs(episode_start=8.0)["clock_rate"] == 2 / 7
    equal = calibrate(small, num_spreads=3, clock_pieces=3)
    assert equal.chain.edges.tolist() == [0, 5, 10, 15]
    assert equal.clock_counts.tolist() == [1, 3, 1]


def test_proxy_of_a_small_tape(small: Path) -> None:
    """Volumes sold 9 0 0 100 0, bought 0 12 2 0 11; queues 5 2 4 1 6 at the bid, 7 9 1 1 6 at the ask.

    The first interval sells 9, which is not above 4 + 5. The last one has no end and is left out.
    """
    calibration = calibrate(small, num_spreads=3, own_size=4.0)
    assert calibration.proxy.seconds[0, 0].tolist() == [5.0, 5.0, 2.0]
    assert calibration.proxy.counts[0].tolist() == [[0, 0, 1], [1, 0, 1]]  # bid: best, improved
    assert calibration.proxy.counts[1].tolist() == [[0, 1, 0], [0, 2, 0]]
    assert calibration.proxy.rates.value[0, 1].tolist() == [0.2, 0.0, 0.5]
    assert calibration.proxy.rates.stderr[1, 1].tolist() == pytest.approx([0.0, math.sqrt(2) / 5, 0.0])
    assert calibrate(small, num_spreads=3, own_size=3.9).proxy.counts[0, 0].tolist() == [1, 0, 1]
    arguments = calibration.kwargs()
    assert arguments["fill_rate_best"] == [[0.0, 0.0, 0.5], [0.0, 0.2, 0.0]]
    assert arguments["fill_rate_improved"] == [[0.2, 0.0, 0.5], [0.0, 0.4, 0.0]]


def test_own_quotes_of_a_small_tape(small: Path, tmp_path: Path) -> None:
    """A fill at a jump belongs to the spread before it; an improved quote at a spread of one tick is best."""
    log = write(tmp_path / "log.csv", LOG_HEADER, LOG_ROWS)
    calibration = calibrate(small, own_quotes=log, num_spreads=3)
    assert calibration.own_quotes is not None
    assert calibration.own_quotes.seconds[0].tolist() == [[3.5, 1.0, 0.0], [0.0, 2.0, 2.0]]
    assert calibration.own_quotes.counts[0].tolist() == [[2, 0, 0], [0, 1, 1]]
    assert calibration.own_quotes.seconds[1].tolist() == [[7.0, 5.0, 2.0], [0.0, 0.0, 0.0]]
    assert calibration.own_quotes.counts[1].tolist() == [[1, 0, 0], [0, 0, 0]]
    table = calibration.table()
    assert table.loc["fill_rate_best_bid[1]", "estimate"] == pytest.approx(2 / 3.5)
    assert table.loc["fill_rate_best_bid[1]", "standard_error"] == pytest.approx(math.sqrt(2) / 3.5)
    assert "fill_rate_improved_bid[1]" not in table.index
    with pytest.raises(ValueError, match=r"bid never stood best at a spread of 3 ticks .*executions = 'proxy'"):
        calibration.kwargs()
    assert calibration.kwargs(executions="proxy") == calibrate(small, num_spreads=3).kwargs()
    with pytest.raises(ValueError, match="needs a log of own quotes"):
        calibrate(small, num_spreads=3).kwargs(executions="own_quotes")


def test_windows_and_merging_of_a_small_tape(small: Path) -> None:
    coarse = calibrate(small, tick=2.0)
    assert coarse.transition_counts.tolist() == [[0, 1], [1, 0]]
    assert coarse.seconds.tolist() == [13.0, 2.0]
    assert coarse.chain.spread_transitions.lower.tolist() == [[0, 1], [1, 0]]  # nothing to estimate
    merged = calibrate(small, num_spreads=2)
    assert merged.transition_counts.tolist() == [[0, 2], [2, 0]]
    assert merged.seconds.tolist() == [8.0, 7.0]
    window = calibrate(small, num_spreads=2, own_size=4.0, selection=Selection(start=4.0, end=12.0))
    assert window.seconds.tolist() == [2.0, 6.0]
    assert window.clock_counts.tolist() == [3]
    assert window.proxy.counts[1].tolist() == [[0, 1], [0, 2]]  # bought 12, 2, 11 behind queues of 50, 1, 1
    assert window.initial_price == 100.0


def test_default_number_of_spreads() -> None:
    """The largest for which every state is left often enough: 1 is left 150 times, 2 120, 3 20 and 4 10 times."""
    states = np.array([1, 2] * 120 + [1, 3] * 20 + [1, 4] * 10 + [1])
    assert largest_num_spreads(states, 100) == 2
    assert largest_num_spreads(states, 30) == 3
    assert largest_num_spreads(states, 10) == 4
    assert largest_num_spreads(states, 11) == 3
    assert largest_num_spreads(states, 1000) is None
    assert tick_states(np.array([0.01, 0.30000000000000004, 0.301]), 0.1).tolist() == [1, 3, 4]


def test_score_intervals() -> None:
    """The bounds are where the score test is at its quantile; some by hand, and the ends."""
    z = 1.959963985
    estimates = proportions([1, 30, 400], [2, 100, 1000])
    assert estimates.lower[0] == pytest.approx(0.0945312)
    assert estimates.upper[0] == pytest.approx(0.9054688)
    for bound in (estimates.lower, estimates.upper):
        score = (estimates.value - bound) / np.sqrt(bound * (1 - bound) / [2, 100, 1000])
        assert np.abs(score) == pytest.approx([z] * 3)
    estimates = rates([5, 50], [15.0, 10.0])
    assert [estimates.lower[0], estimates.upper[0]] == pytest.approx([0.1423801, 0.7803838])
    for bound in (estimates.lower, estimates.upper):
        assert np.abs(estimates.value - bound) / np.sqrt(bound / [15.0, 10.0]) == pytest.approx([z, z])
    none = rates([0, 0], [10.0, 0.0])
    assert [none.value[0], none.stderr[0], none.lower[0]] == [0, 0, 0]
    assert none.upper[0] == pytest.approx(z**2 / 10)
    assert np.isnan([part[1] for part in none]).all()
    ends = proportions([0, 8], [8, 8])
    assert [ends.lower[0], ends.upper[1]] == [0.0, 1.0]
    assert 0 < ends.upper[0] == pytest.approx(1 - ends.lower[1])


# A simulated day


def scores(estimates: Estimates, truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return (estimates.value[seen] - truth[seen]) / estimates.stderr[seen]


def test_a_day_recovers_the_parameters(day: Calibration) -> None:
    assert day.num_spreads == 6  # found, not given
    assert day.tick == 0.005
    assert day.chain.edges.tolist() == [3600.0 * k for k in range(8)]
    assert day.own_quotes is not None and day.mid is not None
    seen = day.own_quotes.seconds > 0
    assert seen.sum() == 22
    z = np.concatenate(
        [
            scores(day.chain.spread_transitions, RHO, OFF_DIAGONAL),
            scores(day.chain.clock_rates, CLOCK, np.ones(7, dtype=bool)),
            scores(day.own_quotes.rates, FILL_RATES, seen),
            [(day.mid.volatility.value - 0.008) / day.mid.volatility.stderr],
        ]
    )
    assert np.abs(z).max() < stats.norm.isf(1e-3 / 2 / z.size)
    assert 0.7 < math.sqrt((z**2).mean()) < 1.3
    for test in day.chain.tests.values():
        assert test.p_value > 1e-3
        assert test.degrees_of_freedom >= 5


@pytest.mark.long
def test_intervals_cover_and_tests_keep_their_level() -> None:
    """100 days: the intervals hold the truth about 95 times in 100, the tests reject about 5 times in 100."""
    params = market()
    covered = {"transitions": np.zeros(30), "clock": np.zeros(7), "fills": np.zeros(22)}
    rejected = dict.fromkeys(("clock", "holding_times", "one_clock", "markov"), 0)
    for number in range(DAYS):
        tape = simulate_tape(params, seed=1000 + number, order_rate=0.02, quote_rate=0.01)
        log = simulate_own_quotes(params, tape, seed=5000 + number)
        calibration = calibrate(tape, own_quotes=log, num_spreads=6)
        assert calibration.own_quotes is not None
        seen = calibration.own_quotes.seconds > 0
        for name, estimates, truth, mask in (
            ("transitions", calibration.chain.spread_transitions, RHO, OFF_DIAGONAL),
            ("clock", calibration.chain.clock_rates, CLOCK, np.ones(7, dtype=bool)),
            ("fills", calibration.own_quotes.rates, FILL_RATES, seen),
        ):
            covered[name] += ((estimates.lower <= truth) & (truth <= estimates.upper))[mask]
        for name, test in calibration.chain.tests.items():
            rejected[name] += test.p_value < 0.05
    for name, counts in covered.items():
        pooled = stats.binom(DAYS * counts.size, 0.95)
        assert pooled.ppf(5e-4) <= counts.sum() <= pooled.isf(5e-4), (name, counts.mean())
        assert counts.min() >= stats.binom(DAYS, 0.95).ppf(1e-3 / 59), (name, counts)
    level = stats.binom(DAYS, 0.05)
    for name, number in rejected.items():
        assert level.ppf(5e-4) <= number <= level.isf(5e-4), (name, number)


def test_files_say_what_the_frames_say(tape: pd.DataFrame, day: Calibration, tmp_path: Path) -> None:
    params = market()
    written = simulate_tape(params, tmp_path / "day.csv.gz", seed=1)
    pd.testing.assert_frame_equal(written, tape)
    pd.testing.assert_frame_equal(read_tape(tmp_path / "day.csv.gz")[list(TAPE_COLUMNS)], tape)
    log = simulate_own_quotes(params, tape, tmp_path / "log.csv", seed=2)
    pd.testing.assert_frame_equal(read_own_quotes(tmp_path / "log.csv"), log)
    calibration = calibrate(tmp_path / "day.csv.gz", own_quotes=tmp_path / "log.csv", volatility_interval=60.0)
    assert calibration.source == "day.csv.gz"
    assert calibration.to_dict() == day.to_dict() | {"source": "day.csv.gz"}
    assert not simulate_tape(params, seed=3).equals(tape)


def test_simulated_tape_is_what_it_says(tape: pd.DataFrame) -> None:
    """Prices in whole ticks, trades at the best price of their side, rates and mean sizes (4 standard errors)."""
    prices = tape[["bid", "ask", "price"]].to_numpy().ravel() / 0.005
    assert np.abs(prices[~np.isnan(prices)] - np.round(prices[~np.isnan(prices)])).max() < 1e-6
    trades = tape[tape["event"] == "trade"]
    quotes = tape[["bid", "ask"]].ffill()
    for side, column in (("sell", "bid"), ("buy", "ask")):
        own = trades[trades["side"] == side]
        assert (own["price"] == quotes.loc[own.index, column]).all()
        assert abs(len(own) - 0.5 * 25200) < 4 * math.sqrt(0.5 * 25200)
        assert abs(own["size"].mean() - 120) < 4 * 120 / math.sqrt(len(own))
    sizes = tape["bid_size"].dropna()
    assert abs(sizes.mean() - 200) < 4 * 200 / math.sqrt(len(sizes))
    best = best_quotes(tape)
    mid = best["mid"].to_numpy()
    assert mid[0] == pytest.approx(45.0, abs=0.005)
    assert set(tick_states((best["ask"] - best["bid"]).to_numpy(), 0.005)) == {1, 2, 3, 4, 5, 6}
    assert tape["time_s"].iloc[-1] == 25200.0


def test_the_result_plugs_into_the_environment(day: Calibration) -> None:
    arguments = json.loads(json.dumps(day.kwargs(), allow_nan=False))
    env = gymnasium.make("mmgym/TickSpread-v0", **arguments)
    assert day.own_quotes is not None and day.mid is not None
    params = env.unwrapped.params
    np.testing.assert_allclose(params.spread_transitions, day.chain.spread_transitions.value, rtol=1e-12)
    assert params.clock_starts == tuple(3600.0 * k for k in range(7))
    assert params.clock_rates == tuple(day.chain.clock_rates.value)
    for side, side_rates in enumerate((params.bid_rates, params.ask_rates)):
        np.testing.assert_array_equal(side_rates[0], day.own_quotes.rates.value[side, 0])
        np.testing.assert_array_equal(side_rates[1, 1:], day.own_quotes.rates.value[side, 1, 1:])
    assert params.volatility == day.mid.volatility.value
    env.reset(seed=0)
    assert np.isfinite(env.step(env.action_space.sample())[1])
    env.close()


# The proxy


@pytest.mark.parametrize(
    ("order_rate", "mean_order_size", "own_size", "clock_rate", "mean_queue"),
    [(0.5, 120.0, 100.0, 1.0, 0.0), (0.5, 120.0, 100.0, 1.0, 200.0), (2.0, 50.0, 300.0, 0.4, 80.0)],
)
def test_closed_form_of_the_proxy(
    order_rate: float, mean_order_size: float, own_size: float, clock_rate: float, mean_queue: float
) -> None:
    """Against intervals drawn one by one: Poisson orders in an exponential time, a gamma volume."""
    random = np.random.default_rng(3)
    number = 400_000
    orders = random.poisson(order_rate * random.exponential(1 / clock_rate, number))
    volume = np.where(orders > 0, random.gamma(np.maximum(orders, 1), mean_order_size), 0.0)
    counts = (volume > own_size + random.exponential(max(mean_queue, 1e-300), number)).mean()
    limit = proxy_limit(
        order_rate=order_rate,
        mean_order_size=mean_order_size,
        own_size=own_size,
        clock_rate=clock_rate,
        mean_queue=mean_queue,
    )
    assert abs(counts * clock_rate - limit) < 4 * clock_rate * math.sqrt(counts / number)


def test_bias_of_the_proxy() -> None:
    flow = {"order_rate": 0.5, "mean_order_size": 120.0}
    assert proxy_limit(own_size=100.0, clock_rate=1.0, **flow) == pytest.approx(0.1913, abs=5e-5)
    assert single_order_rate(own_size=100.0, **flow) == pytest.approx(0.2173, abs=5e-5)
    fast = proxy_limit(own_size=100.0, clock_rate=1e7, mean_queue=50.0, **flow)
    assert fast == pytest.approx(single_order_rate(own_size=100.0, mean_queue=50.0, **flow), rel=1e-6)
    high = proxy_limit(own_size=1000.0, clock_rate=0.1, **flow)
    assert high > 100 * single_order_rate(own_size=1000.0, **flow)  # volumes add up: not always low
    for name, value in (("order_rate", 0.0), ("mean_order_size", -1.0), ("own_size", -1.0), ("clock_rate", math.inf)):
        with pytest.raises(ValueError, match=name):
            proxy_limit(**({"own_size": 100.0, "clock_rate": 1.0} | flow | {name: value}))
    with pytest.raises(ValueError, match="mean_queue"):
        single_order_rate(own_size=1.0, mean_queue=math.nan, **flow)


def test_proxy_of_a_simulated_tape_tends_to_its_closed_form() -> None:
    """At a clock of 1 / s, at every spread alike; the improved proxy is far from the true rate of single orders."""
    tape = simulate_tape(market(clock_rate=1.0), seed=4, duration=40_000.0, mean_queue=200.0)
    calibration = calibrate(tape, own_size=100.0)
    limit = {"improved": 0.5 / 1.5 * math.exp(-100 / 180), "best": 0.5 / 1.5 * math.exp(-100 / 180) / (1 + 200 / 180)}
    quantile = stats.norm.isf(1e-3 / 2 / 28)
    for side in range(2):
        for quote, name in enumerate(("best", "improved")):
            z = (calibration.proxy.rates.value[side, quote] - limit[name]) / calibration.proxy.rates.stderr[side, quote]
            assert np.abs(z).max() < quantile
            counts, seconds = calibration.proxy.counts[side, quote].sum(), calibration.proxy.seconds[side, quote].sum()
            assert abs(counts / seconds - limit[name]) < quantile * math.sqrt(counts) / seconds
        improved = calibration.proxy.counts[side, 1].sum() / calibration.proxy.seconds[side, 1].sum()
        assert improved < 0.95 * 0.2173
    bias = calibration.proxy_bias().set_index(["side", "quote"])
    assert bias.loc[("bid", "improved"), "proxy_limit"] == pytest.approx(0.1913, rel=0.05)
    assert bias.loc[("ask", "improved"), "single_order_rate"] == pytest.approx(0.2173, rel=0.05)
    assert bias.loc[("ask", "best"), "proxy_limit"] == pytest.approx(limit["best"], rel=0.05)


# Laws that are broken are found out


def path_of(states: np.ndarray, holding: np.ndarray, num_spreads: int) -> SpreadPath:
    times = np.append(0.0, holding.cumsum())
    return SpreadPath(times[:-1], states, np.ones((2, states.size)), float(times[-1]), num_spreads)


def test_broken_laws_are_rejected() -> None:
    random = np.random.default_rng(5)
    number = 3000
    free = random.integers(1, 3, number).cumsum() % 3 + 1  # the next of three spreads, either with the same chance
    holding = random.exponential(1.0, number)
    alternating = (1 + np.arange(number)) % 2 + 1
    good = path_of(free, holding, 3)
    edges, clock = np.array([0.0, good.end]), np.array([(number - 1) / good.end])
    assert min(t.p_value for t in (clock_test(good, edges), holding_times_test(good, edges, clock))) > 1e-3
    assert min(one_clock_test(good, edges, clock).p_value, markov_test(good).p_value) > 1e-3

    slow_at_one = path_of(free, np.where(free == 1, 2.0, 0.5) * holding, 3)
    rate = np.array([(number - 1) / slow_at_one.end])
    assert one_clock_test(slow_at_one, np.array([0.0, slow_at_one.end]), rate).p_value < 1e-6
    regular = path_of(free, np.ones(number), 3)
    assert holding_times_test(regular, np.array([0.0, regular.end]), np.array([1.0])).p_value < 1e-6
    drifting = path_of(free, holding * np.linspace(0.2, 1.8, number), 3)
    test = clock_test(drifting, np.array([0.0, drifting.end]))
    assert test.p_value < 1e-6 and test.dispersion > 2
    turns = np.where(random.random(number) < 0.8, 1, 2)  # mostly goes on round: 1 2 3 1; remembers nothing
    assert markov_test(path_of(turns.cumsum() % 3 + 1, holding, 3)).p_value > 1e-3
    memory = np.where(random.random(number) < 0.8, 0, 1).cumsum() % 2 + 1  # mostly repeats its last turn
    assert markov_test(path_of(memory.cumsum() % 3 + 1, holding, 3)).p_value < 1e-6
    assert markov_test(path_of(alternating, holding, 2)).degrees_of_freedom == 0


# The result


def test_table_dict_summary_and_plot(day: Calibration, tmp_path: Path) -> None:
    table = day.table()
    assert list(table.columns) == ["estimate", "standard_error", "lower", "upper", "unit", "count", "exposure"]
    assert len(table) == 30 + 7 + 6 + 22 + 24 + 1 + 5
    assert ((table["lower"] <= table["estimate"]) & (table["estimate"] <= table["upper"])).all()
    row = table.loc["spread_transitions[5,6]"]
    assert row["estimate"] == row["count"] / row["exposure"] == day.chain.spread_transitions.value[4, 5]
    assert table.loc["clock_rate[3600..7200]", "count"] == day.clock_counts[1]
    content = day.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    summary = day.summary()
    assert summary.count(": not rejected") == 4
    assert "The proxy is biased" in summary
    assert "Own quotes, ask" in summary
    content = day.plot(tmp_path / "fit.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 30_000


def test_a_poor_tape_is_called_poor(small: Path, tmp_path: Path) -> None:
    rows = [row for row in TAPE_ROWS if "trade" not in row]
    silent = calibrate(write(tmp_path / "silent.csv", HEADER, rows), num_spreads=3)
    assert silent.proxy.counts.sum() == 0
    assert silent.proxy_bias().empty
    assert silent.mid is not None
    summary = silent.summary()
    for words in ("few, 100 bound", "Some never count", "not tested, that needs"):
        assert words in summary
    assert json.loads(json.dumps(silent.to_dict(), allow_nan=False)) == silent.to_dict()
    assert silent.plot(tmp_path / "silent.png").stat().st_size > 10_000
    still = calibrate(small, num_spreads=3, volatility_interval=10.0)
    assert still.mid is None
    assert "no volatility" in still.summary()
    assert "volatility" not in still.kwargs()


def test_plot_names_the_extra(day: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"mmgym\[plot\]"):
        day.plot(tmp_path / "fit.png")


# Tapes that do not identify the parameters, wrong files, wrong arguments


@pytest.mark.parametrize(
    ("spreads", "arguments", "message"),
    [
        ([1, 1, 1], {}, r"never changes its state \(always 1 of 2, with tick 1\).*smaller tick or a longer tape"),
        ([1, 3, 4, 3], {"num_spreads": 2}, r"2 ticks or more .* is never left; .*longer tape"),
        ([1, 2, 1, 3, 1], {"num_spreads": 4}, r"4 ticks or more .* never visited; num_spreads = 3 is the largest"),
        ([1, 2, 1, 2, 3], {"num_spreads": 3}, r"3 ticks or more .* never left; num_spreads = 2 is the largest"),
        ([1, 3, 1, 3, 1], {"num_spreads": 3}, r"of 2 ticks \(tick 1\) is never visited; num_spreads = 2"),
        ([3, 6, 3, 6, 3], {"tick": 1.0}, r"narrowest spread is 3, try tick = 3"),
    ],
)
def test_spreads_that_cannot_be_fitted(
    tmp_path: Path, spreads: list[int], arguments: dict[str, float], message: str
) -> None:
    rows = [f"{time},quote,{100 - spread},1,100,1,,," for time, spread in enumerate(spreads)]
    path = write(tmp_path / "tape.csv", HEADER, rows)
    with pytest.raises(ValueError, match=message) as caught:
        calibrate(path, **arguments)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("16,quote,101,1,100,1,,,", "bid", "below the ask"),
        ("16,trade,,,,,100,0,sell", "size", "positive"),
        ("14,trade,,,,,100,1,sell", "time_s", "must not fall"),
        ("16,trade,,,,,x,1,sell", "price", "a finite number is"),
    ],
)
def test_malformed_tapes_name_file_line_and_column(tmp_path: Path, row: str, column: str, message: str) -> None:
    path = write(tmp_path / "tape.csv", HEADER, [*TAPE_ROWS, row])
    with pytest.raises(ValueError, match=message) as caught:
        calibrate(path)
    assert str(caught.value).startswith(f"{path}, line {len(TAPE_ROWS) + 2}, column {column!r}: ")


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (",quote,bid,best", "time_s", "needs a time"),
        ("12,quote,bid,best", "time_s", "must not fall"),
        ("14,cancel,bid,", "event", "'quote' or 'fill'"),
        ("14,quote,buy,best", "side", "'bid' or 'ask'"),
        ("14,quote,bid,", "quote", "needs 'best', 'improved' or 'off'"),
        ("14,quote,bid,top", "quote", "needs 'best', 'improved' or 'off'"),
        ("14,fill,ask,best", "quote", "empty cell"),
        ("14,fill,bid,", "event", "the bid is off"),
        ("x,fill,ask,", "time_s", "a finite number is"),
    ],
)
def test_malformed_logs_name_file_line_and_column(
    small: Path, tmp_path: Path, row: str, column: str, message: str
) -> None:
    path = write(tmp_path / "log.csv", LOG_HEADER, [*LOG_ROWS, row])
    with pytest.raises(ValueError, match=message) as caught:
        calibrate(small, own_quotes=path, num_spreads=3)
    assert str(caught.value).startswith(f"{path}, line {len(LOG_ROWS) + 2}, column {column!r}: ")


def test_a_log_without_a_quote_row_or_on_another_clock(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2, column 'event': .*the ask is off"):
        calibrate(small, own_quotes=write(tmp_path / "log.csv", LOG_HEADER, ["1,fill,ask,"]), num_spreads=3)
    late = write(tmp_path / "late.csv", LOG_HEADER, ["100,quote,ask,best", "101,fill,ask,"])
    with pytest.raises(ValueError, match="both files must be on one clock"):
        calibrate(small, own_quotes=late, num_spreads=3)
    early = write(tmp_path / "early.csv", LOG_HEADER, ["-5,quote,ask,best", "-2,fill,ask,", "1,fill,ask,"])
    calibration = calibrate(small, own_quotes=early, num_spreads=3)
    assert calibration.own_quotes is not None
    assert calibration.own_quotes.counts[1, 0].tolist() == [1, 0, 0]
    assert calibration.own_quotes.seconds[1, 0].tolist() == [8.0, 5.0, 2.0]


def test_frames_are_checked_too(tape: pd.DataFrame, log: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="the tape, line 2, column 'event'"):
        calibrate(tape.assign(event="news"))
    with pytest.raises(ValueError, match="the log of own quotes, line 2, column 'side'"):
        calibrate(tape, own_quotes=log.assign(side="both"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"own_size": 0.0}, "own_size"),
        ({"tick": -0.01}, "tick"),
        ({"tick": math.nan}, "tick"),
        ({"volatility_interval": math.inf}, "volatility_interval"),
        ({"num_spreads": 1}, "num_spreads must be a whole number from 2 to 32"),
        ({"num_spreads": 33}, "num_spreads"),
        ({"num_spreads": 2.5}, "num_spreads"),
        ({"clock_pieces": 0}, "clock_pieces"),
        ({"clock_pieces": 65}, "clock_pieces"),
        ({"clock_pieces": [0.0, 5.0]}, "strictly between 0 and 15 s"),
        ({"clock_pieces": [7.0, 5.0]}, "must rise"),
        ({"selection": Selection(start=99.0)}, "nothing lies there"),
        ({"selection": Selection(start=9.0, end=8.0)}, "nothing lies there"),
    ],
)
def test_arguments_are_refused(small: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(small, **arguments)


def test_arguments_of_the_result_and_the_simulation_are_refused(small: Path, tape: pd.DataFrame) -> None:
    calibration = calibrate(small, num_spreads=3)
    with pytest.raises(ValueError, match="executions must be"):
        calibration.kwargs(executions="tape")
    for start in (-1.0, 15.0, math.nan):
        with pytest.raises(ValueError, match="episode_start"):
            calibration.kwargs(episode_start=start)
    for name, value in (("duration", 0.0), ("order_rate", -1.0), ("mean_queue", math.nan), ("quote_rate", math.inf)):
        with pytest.raises(ValueError, match=name):
            simulate_tape(market(), seed=0, **{name: value})
    with pytest.raises(ValueError, match="toggle_rate"):
        simulate_own_quotes(market(), tape, seed=0, toggle_rate=-1.0)


# The command line


def test_command_line(tape: pd.DataFrame, log: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tape[tape["time_s"] <= 7200].to_csv(tmp_path / "tape.csv", index=False)
    log[log["time_s"] <= 7200].to_csv(tmp_path / "log.csv", index=False)
    words = ["calibrate", "tick_spread", str(tmp_path / "tape.csv"), "--own-quotes", str(tmp_path / "log.csv")]
    files = ["--plot", str(tmp_path / "fit.png"), "--output", str(tmp_path / "fit.csv")]
    options = ["--tick", "0.01", "--spreads", "3", "--own-size", "50", "--clock-changes", "1000", "5000"]
    assert main([*words, *options, *files]) == 0
    output = capsys.readouterr().out
    calibration = calibrate(
        tmp_path / "tape.csv",
        own_quotes=tmp_path / "log.csv",
        tick=0.01,
        num_spreads=3,
        own_size=50.0,
        clock_pieces=[1000.0, 5000.0],
    )
    assert calibration.summary() in output
    assert calibration.rejected == ["Poisson clock", "Markov property"]  # spreads are merged, the pieces are wrong
    assert "REJECTED: Poisson clock, Markov property" in output and "gymnasium.make(" not in output
    assert main([*words, *options, "--force"]) == 0
    output = capsys.readouterr().out
    assert f'gymnasium.make("mmgym/TickSpread-v0", **{json.dumps(calibration.kwargs())})' in output
    assert "REJECTED: Poisson clock, Markov property" in output
    assert (tmp_path / "fit.png").stat().st_size > 30_000
    table = pd.read_csv(tmp_path / "fit.csv", index_col=0)
    assert table["estimate"].tolist() == pytest.approx(calibration.table()["estimate"].tolist())
    assert len([name for name in table.index if name.startswith("clock_rate")]) == 3

    assert main([*words[:3], "--clock-pieces", "4"]) == 0
    assert "on 4 pieces" in capsys.readouterr().out
    assert main([*words[:3], "--spreads", "9"]) == 2
    assert "num_spreads = 6 is the largest" in capsys.readouterr().err
    for wrong in (["--clock-pieces", "4", "--clock-changes", "9"], ["--minimum-depth", "1"]):
        with pytest.raises(SystemExit):
            main([*words[:3], *wrong])
    with pytest.raises(SystemExit):
        main(["calibrate", "glft", str(tmp_path / "tape.csv"), "--own-size", "1"])


# The real tape


@pytest.mark.skipif(not REAL_TAPE.exists(), reason="the real tape is not part of the project")
def test_real_tape_against_a_plain_loop(tmp_path: Path) -> None:
    """Spreads of 1, 2 and 3 ticks or more: counts and volumes, row by row in plain Python."""
    calibration = calibrate(REAL_TAPE, own_size=1.0)
    transitions, seconds = np.zeros((3, 3), dtype=int), np.zeros(3)
    counts = np.zeros((2, 2, 3), dtype=int)
    stamps: dict[float, dict[str, object]] = {}
    with gzip.open(REAL_TAPE, "rt") as stream:
        next(stream)
        for line in stream:
            time, event, bid, bid_size, ask, ask_size, _, size, side = line.rstrip("\n").split(",")
            stamp = stamps.setdefault(float(time), {"sell": 0.0, "buy": 0.0, "quote": None})
            if event == "quote":
                ticks = round((float(ask) - float(bid)) / 0.01)
                stamp["quote"] = (min(ticks, 3) - 1, float(bid_size), float(ask_size))
            else:
                stamp[side] += float(size)
    state = queues = since = None
    volume = [0.0, 0.0]
    for time, stamp in stamps.items():
        if state is not None:
            volume = [volume[0] + stamp["sell"], volume[1] + stamp["buy"]]
        if stamp["quote"] is None or stamp["quote"][0] == state:
            continue
        if state is not None:
            transitions[state, stamp["quote"][0]] += 1
            seconds[state] += time - since
            for side in range(2):
                counts[side, 0, state] += volume[side] > 1.0 + queues[side]
                counts[side, 1, state] += volume[side] > 1.0
        state, queues, since, volume = stamp["quote"][0], stamp["quote"][1:], time, [0.0, 0.0]
    assert transitions.sum(axis=1).tolist() == [366, 151, 285]
    assert calibration.tick == 0.01
    assert calibration.num_spreads == 3
    np.testing.assert_array_equal(calibration.transition_counts, transitions)
    np.testing.assert_array_equal(calibration.proxy.counts, counts)
    np.testing.assert_allclose(calibration.proxy.seconds[0, 0], seconds)
    exits = transitions.sum(axis=1) / seconds
    np.testing.assert_allclose(calibration.chain.exit_rates.value[1:], exits[1:])
    assert calibration.chain.clock_rates.value == pytest.approx([exits.max()])
    np.testing.assert_allclose(np.diag(calibration.chain.spread_transitions.value), 1 - exits / exits.max(), atol=1e-4)
    assert calibration.seconds[0] / calibration.seconds.sum() > 0.99
    np.testing.assert_allclose(
        calibration.chain.model_shares, calibration.seconds / calibration.seconds.sum(), atol=1e-3
    )
    paper = calibrate(REAL_TAPE, own_size=1.0, holding_times="equal")
    assert paper.chain.clock_rates.value == pytest.approx([802 / 344.744], rel=1e-6)
    assert paper.chain.model_shares[0] < 0.5  # one clock for all spreads is wrong here, and it is said
    summary = calibration.summary()
    assert "(one clock): rejected" in summary
    assert "0.991 0.003 0.006 on the tape" in summary
    env = gymnasium.make("mmgym/TickSpread-v0", num_steps=3000, **calibration.kwargs())
    env.reset(seed=0)
    env.close()
    assert calibration.plot(tmp_path / "fit.png").stat().st_size > 30_000
