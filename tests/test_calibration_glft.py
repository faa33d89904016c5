"""Calibration of the GLFT market: recovery, coverage, independent optimisers, wrong files.

False alarms. Seeds are fixed, so a check either always passes or never does; the rates say how likely a change of seed
is to fail. An estimate within 4 standard errors: 6.3e-5 each, 1.4e-3 for the 21 of them. A goodness-of-fit p-value
above 1e-3: 4e-3 for four. A count of coverage or rejection: a two-sided binomial interval of 1e-3 each, 1.1e-2 for
eleven.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import mmgym  # noqa: F401
from mmgym.calibration.block_intervals import Estimate
from mmgym.calibration.exponential import ExponentialFit, fit_fills, fit_reaches
from mmgym.calibration.glft import Calibration, calibrate, calibrate_tape
from mmgym.calibration.quotes import QUOTES_COLUMNS
from mmgym.calibration.volatility import fit_brownian
from mmgym.tapes import read_tape
from mmgym.tapes.level1 import TAPE_COLUMNS, market_orders

REPLICATIONS = 300
REAL_TAPE = Path(__file__).parents[2] / "shared" / "data" / "ethusdt_perpetual_20240808_level1.csv.gz"

FILL_RATE = {"bid": 1.4, "ask": 2.3}
FILL_DECAY = {"bid": 1.5, "ask": 2.2}
VOLATILITY, DRIFT = 0.8, 0.05

TAPE_RATE = {"bid": 1.2, "ask": 0.9}
TAPE_DECAY = {"bid": 30.0, "ask": 20.0}
TAPE_VOLATILITY = 0.2
TICK = 0.01


def simulate_quotes(seed: int, rows: int = 4000) -> pd.DataFrame:
    """Random depths, irregular steps, and each side off in a tenth of the rows."""
    random = np.random.default_rng(seed)
    step = random.uniform(0.2, 1.0, rows)
    change = DRIFT * step + VOLATILITY * np.sqrt(step) * random.normal(size=rows)
    quotes = pd.DataFrame({"time": step.cumsum() - step, "mid": 100 + change.cumsum() - change})
    for side in ("bid", "ask"):
        depth = random.uniform(0.1, 2.0, rows)
        exposure = np.where(random.random(rows) < 0.1, 0.0, step)
        quotes[f"{side}_depth"] = np.where(exposure > 0, depth, np.nan)
        quotes[f"{side}_exposure"] = exposure
        quotes[f"{side}_fills"] = random.poisson(FILL_RATE[side] * np.exp(-FILL_DECAY[side] * depth) * exposure)
    return quotes


def simulate_tape(seed: int, seconds: int = 3000) -> pd.DataFrame:
    """Quotes a tick apart every quarter of a second; orders of exponential reach amid quotes of the same time stamp."""
    random = np.random.default_rng(seed)
    times = np.arange(0, seconds + 0.1, 0.25)
    bids = 100_000 + np.round(TAPE_VOLATILITY * 0.5 * random.normal(size=times.size).cumsum() / TICK).astype(int)
    rows = [quote(time, bid) for time, bid in zip(times, bids, strict=True)]
    for side, aggressor, sign in (("bid", "sell", -1), ("ask", "buy", 1)):
        touch_rate = TAPE_RATE[side] * np.exp(-TAPE_DECAY[side] * TICK / 2)
        for time in random.uniform(0, seconds, random.poisson(touch_rate * seconds)):
            bid = bids[int(time / 0.25)]
            best = bid if side == "bid" else bid + 1
            worst = best + sign * int(random.exponential(1 / TAPE_DECAY[side]) / TICK)
            rows.append(quote(time, bid + 5 * sign))
            rows += [trade(time, price, aggressor) for price in (best, worst)]
            rows.append(quote(time, bid))
    return pd.DataFrame(rows, columns=list(TAPE_COLUMNS)).sort_values("time_s", kind="stable", ignore_index=True)


def quote(time: float, bid: int) -> list[object]:
    return [time, "quote", round(bid * TICK, 2), 1.0, round((bid + 1) * TICK, 2), 1.0, np.nan, np.nan, ""]


def trade(time: float, price: int, side: str) -> list[object]:
    return [time, "trade", np.nan, np.nan, np.nan, np.nan, round(price * TICK, 2), 0.5, side]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def quotes_path(folder: Path) -> Path:
    path = folder / "quotes.csv"
    simulate_quotes(1).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def tape_path(folder: Path) -> Path:
    path = folder / "tape.csv.gz"
    simulate_tape(2).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def from_quotes(quotes_path: Path) -> Calibration:
    return calibrate(quotes_path)


@pytest.fixture(scope="module")
def from_tape(tape_path: Path) -> Calibration:
    return calibrate(tape_path)


@pytest.fixture(params=["quotes", "tape"])
def calibration(request: pytest.FixtureRequest) -> Calibration:
    result = request.getfixturevalue(f"from_{request.param}")
    assert isinstance(result, Calibration)
    return result


def errors(estimate: Estimate, truth: float) -> float:
    return abs(estimate.value - truth) / estimate.stderr


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.lower <= truth <= estimate.upper


def assert_binomial(successes: int, probability: float) -> None:
    """A count out of REPLICATIONS, two-sided at 1e-3."""
    law = stats.binom(REPLICATIONS, probability)
    assert law.ppf(5e-4) <= successes <= law.isf(5e-4), successes


# Recovery


def test_quotes_recover_the_parameters(from_quotes: Calibration) -> None:
    for side in ("bid", "ask"):
        fit: ExponentialFit = getattr(from_quotes, side)
        assert errors(fit.fill_rate, FILL_RATE[side]) < 4
        assert errors(fit.log_fill_rate, np.log(FILL_RATE[side])) < 4
        assert errors(fit.fill_decay, FILL_DECAY[side]) < 4
        assert fit.p_value > 1e-3
        assert fit.degrees_of_freedom == 10
    assert errors(from_quotes.mid.volatility, VOLATILITY) < 4
    assert errors(from_quotes.mid.drift, DRIFT) < 4
    assert from_quotes.kind == "quotes"


def test_tape_recovers_the_parameters(from_tape: Calibration) -> None:
    for side in ("bid", "ask"):
        fit: ExponentialFit = getattr(from_tape, side)
        assert errors(fit.fill_rate, TAPE_RATE[side]) < 4
        assert errors(fit.log_fill_rate, np.log(TAPE_RATE[side])) < 4
        assert errors(fit.fill_decay, TAPE_DECAY[side]) < 4
        assert fit.p_value > 1e-3
        assert fit.degrees_of_freedom >= 5
    assert errors(from_tape.mid.volatility, TAPE_VOLATILITY) < 4
    assert errors(from_tape.mid.drift, 0.0) < 4
    assert from_tape.kind == "tape"
    assert from_tape.minimum_depth == pytest.approx(TICK / 2)
    assert from_tape.mid.increments == 3000


def test_a_window_of_depths_recovers_the_parameters(tape_path: Path, from_tape: Calibration) -> None:
    local = calibrate(tape_path, minimum_depth=0.015, maximum_depth=0.065)
    for side in ("bid", "ask"):
        fit: ExponentialFit = getattr(local, side)
        assert errors(fit.fill_decay, TAPE_DECAY[side]) < 4
        assert fit.fill_decay.stderr > getattr(from_tape, side).fill_decay.stderr
        assert fit.rates["depth"].iloc[[0, -1]].tolist() == pytest.approx([0.015, 0.065])
    assert local.orders_left_out > from_tape.orders_left_out


def test_volatility_interval_is_the_sampling_interval(tape_path: Path) -> None:
    assert calibrate(tape_path, volatility_interval=5.0).mid.increments == 600


def test_kind_auto_is_the_stated_kind(quotes_path: Path, tape_path: Path, from_quotes: Calibration) -> None:
    assert calibrate(quotes_path, kind="quotes").to_dict() == from_quotes.to_dict()
    with pytest.raises(ValueError, match="line 1, column 'time': no known format; mmgym: time_s"):
        calibrate(quotes_path, kind="tape")
    with pytest.raises(ValueError, match="line 1, column 'time': missing"):
        calibrate(tape_path, kind="quotes")


def test_gzip_and_plain_files_give_the_same(folder: Path, quotes_path: Path, from_quotes: Calibration) -> None:
    path = folder / "packed" / "quotes.csv"
    path.parent.mkdir()
    packed = path.with_name("quotes.csv.gz")
    packed.write_bytes(gzip.compress(quotes_path.read_bytes()))
    assert calibrate(packed).table().equals(from_quotes.table())


def test_no_price_change_is_taken_across_episodes(tmp_path: Path) -> None:
    parts = [simulate_quotes(seed, rows=500).assign(episode=seed) for seed in (3, 4)]
    parts[1]["mid"] += 1e6
    path = tmp_path / "episodes.csv"
    pd.concat(parts).to_csv(path, index=False)
    fit = calibrate(path).mid
    assert fit.increments == 998
    assert errors(fit.volatility, VOLATILITY) < 4


# Maximum likelihood and standard errors against independent computations


def poisson_fit(fit: ExponentialFit, mean_counts: object, counts: np.ndarray) -> None:
    """Compare with a general optimiser of the Poisson likelihood and the inverse of its numerical Hessian."""
    rates, decay = fit.log_fill_rate, fit.fill_decay

    def loss(point: np.ndarray) -> float:
        mean = mean_counts(point[0], point[1])  # type: ignore[operator]
        return float((mean - counts * np.log(mean)).sum())

    start = np.array([rates.value + 0.3, decay.value * 1.2])
    scale = np.array([1.0, abs(decay.value)])
    best = optimize.minimize(
        lambda x: loss(x * scale), start / scale, method="Nelder-Mead", options={"fatol": 1e-11, "xatol": 1e-8}
    )
    assert best.success
    assert [rates.value, decay.value] == pytest.approx(best.x * scale, rel=1e-6)
    step = 1e-3 * scale
    hessian = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            a, b = np.eye(2)[i] * step, np.eye(2)[j] * step
            x = best.x * scale
            corners = loss(x + a + b) - loss(x + a - b) - loss(x - a + b) + loss(x - a - b)
            hessian[i, j] = corners / (4 * step[i] * step[j])
    assert list(fit.model_errors) == pytest.approx(np.sqrt(np.diag(np.linalg.inv(hessian))), rel=1e-3)


def test_fit_fills_is_the_maximum_of_the_plain_likelihood() -> None:
    quotes = simulate_quotes(5, rows=600).dropna()
    depth, exposure, fills = (quotes[f"bid_{name}"].to_numpy() for name in ("depth", "exposure", "fills"))
    fit = fit_fills(depth, exposure, fills)
    poisson_fit(fit, lambda log_rate, decay: np.exp(log_rate - decay * depth) * exposure, fills)


@pytest.mark.parametrize("maximum_depth", [None, 0.105])
def test_fit_reaches_is_the_maximum_of_the_plain_likelihood(maximum_depth: float | None) -> None:
    """The orders that stop at each tick are independent Poisson counts; the last cell holds those that go on."""
    random = np.random.default_rng(6)
    reach = 0.005 + TICK * np.floor(random.exponential(1 / 25.0, 400) / TICK)
    fit = fit_reaches(
        random.uniform(0, 500, 400),
        reach,
        start=0,
        end=500,
        tick=TICK,
        minimum_depth=0.005,
        maximum_depth=maximum_depth,
    )
    cells = 10 if maximum_depth else 200
    edges = 0.005 + TICK * np.arange(cells + 1)
    counts = np.append(np.histogram(reach, bins=edges - TICK / 2)[0], 0.0)
    counts[-1] = 400 - counts.sum()

    def mean_counts(log_rate: float, decay: float) -> np.ndarray:
        return -500 * np.diff(np.exp(log_rate - decay * edges), append=0.0)

    poisson_fit(fit, mean_counts, counts)


def test_fit_brownian_is_the_maximum_of_the_plain_likelihood() -> None:
    """With the unbiased divisor n - 1 in place of n."""
    random = np.random.default_rng(7)
    time = np.append(0.0, random.uniform(0.1, 2.0, 300).cumsum())
    mid = np.append(0.0, (0.7 * np.sqrt(np.diff(time)) * random.normal(size=300)).cumsum())
    fit = fit_brownian(time, mid)

    def loss(point: np.ndarray) -> float:
        scale = np.exp(point[1]) * np.sqrt(np.diff(time))
        return -float(stats.norm.logpdf(np.diff(mid), point[0] * np.diff(time), scale).sum())

    best = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11})
    assert fit.drift.value == pytest.approx(best.x[0], abs=1e-6)
    assert fit.volatility.value == pytest.approx(np.exp(best.x[1]) * np.sqrt(300 / 299), rel=1e-6)
    assert fit.volatility.stderr == pytest.approx(fit.volatility.value / np.sqrt(598))


def test_decay_may_have_either_sign_and_any_scale() -> None:
    random = np.random.default_rng(8)
    for decay in (-3e-3, 4e3):
        depth = random.uniform(0.5, 2.0, 2000) / abs(decay)
        fit = fit_fills(depth, np.full(2000, 2.0), random.poisson(2 * np.exp(-decay * depth)))
        assert errors(fit.fill_decay, decay) < 4


# Coverage of the intervals, level of the test


def test_coverage_of_the_intervals_from_fills() -> None:
    random = np.random.default_rng(9)
    depth, exposure = random.uniform(0.1, 2.0, 400), random.uniform(0.5, 1.5, 400)
    covered, rejected = np.zeros(2, dtype=int), 0
    for _ in range(REPLICATIONS):
        fit = fit_fills(depth, exposure, random.poisson(2.0 * np.exp(-1.2 * depth) * exposure))
        covered += [covers(fit.fill_rate, 2.0), covers(fit.fill_decay, 1.2)]
        rejected += fit.p_value < 0.05
    assert_binomial(covered[0], 0.95)
    assert_binomial(covered[1], 0.95)
    assert_binomial(rejected, 0.05)


@pytest.mark.parametrize("maximum_depth", [None, 0.075])
def test_coverage_of_the_intervals_from_reaches(maximum_depth: float | None) -> None:
    random = np.random.default_rng(10)
    touch = TICK / 2
    covered, rejected = np.zeros(2, dtype=int), 0
    for _ in range(REPLICATIONS):
        number = random.poisson(1.5 * np.exp(-25 * touch) * 300)
        reach = touch + TICK * np.floor(random.exponential(1 / 25, number) / TICK)
        time = random.uniform(0, 300, number)
        fit = fit_reaches(time, reach, start=0, end=300, tick=TICK, minimum_depth=touch, maximum_depth=maximum_depth)
        covered += [covers(fit.fill_rate, 1.5), covers(fit.fill_decay, 25)]
        rejected += fit.p_value < 0.05
    assert_binomial(covered[0], 0.95)
    assert_binomial(covered[1], 0.95)
    assert_binomial(rejected, 0.05)


def test_coverage_of_the_intervals_of_the_mid() -> None:
    random = np.random.default_rng(11)
    time = random.uniform(0.1, 2.0, 41).cumsum()
    covered = np.zeros(2, dtype=int)
    for _ in range(REPLICATIONS):
        change = 0.1 * np.diff(time) + 0.5 * np.sqrt(np.diff(time)) * random.normal(size=40)
        fit = fit_brownian(time, np.append(0.0, change.cumsum()))
        covered += [covers(fit.volatility, 0.5), covers(fit.drift, 0.1)]
    assert_binomial(covered[0], 0.95)
    assert_binomial(covered[1], 0.95)


def test_a_law_that_is_not_exponential_is_rejected() -> None:
    random = np.random.default_rng(12)
    time = random.uniform(0, 1000, 2000)
    reach = 0.005 + TICK * np.floor(random.exponential(np.where(random.random(2000) < 0.7, 0.01, 0.1)) / TICK)
    fit = fit_reaches(time, reach, start=0, end=1000, tick=TICK, minimum_depth=0.005)
    assert fit.p_value < 1e-6
    assert fit.rates["ratio"].iloc[-1] > 5
    depth = random.uniform(0.1, 2.0, 3000)
    fit = fit_fills(depth, np.ones(3000), random.poisson(0.5 / depth**2))
    assert fit.p_value < 1e-6


def test_dispersion_tells_clustered_orders() -> None:
    random = np.random.default_rng(13)
    reach = 0.005 + TICK * random.geometric(0.3, 3000)
    scattered, centres = random.uniform(0, 1000, 3000), random.uniform(0, 1000, 150)
    clustered = np.clip(np.repeat(centres, 20) + random.normal(size=3000), 0, 1000)
    window = {"start": 0.0, "end": 1000.0, "tick": TICK, "minimum_depth": 0.005}
    assert stats.chi2.ppf(5e-4, 29) < 29 * fit_reaches(scattered, reach, **window).dispersion < stats.chi2.isf(5e-4, 29)
    assert fit_reaches(clustered, reach, **window).dispersion > 8


def test_rates_by_depth() -> None:
    """Counts of orders that reach each depth, exact Poisson intervals, also over no events at all."""
    reach = np.repeat([0.005, 0.015, 0.025, 0.055], [60, 30, 15, 6])
    rates = fit_reaches(np.linspace(0, 99, 111), reach, start=0, end=100, tick=TICK, minimum_depth=0.005).rates
    for row in rates.itertuples():
        count = (reach > row.depth - 1e-9).sum()
        assert row.fills == count
        assert row.rate == pytest.approx(count / 100)
        assert stats.poisson.sf(count - 1, row.lower * 100) == pytest.approx(0.025)
        assert stats.poisson.cdf(count, row.upper * 100) == pytest.approx(0.025)
        assert row.ratio == pytest.approx(row.rate / row.fitted)
    rates = fit_fills([1, 2, 3], [10, 10, 10], [20, 10, 0]).rates
    assert (rates.loc[rates["fills"] == 0, "lower"] == 0).all()


# The result


def test_table(calibration: Calibration) -> None:
    table = calibration.table()
    assert list(table.columns) == ["estimate", "standard_error", "lower", "upper", "unit"]
    fitted = [
        *("fill_rate_bid", "fill_rate_ask", "log_fill_rate_bid", "log_fill_rate_ask"),
        *("fill_decay_bid", "fill_decay_ask", "volatility", "drift"),
    ]
    sizes = ["tick", "queue_bid", "queue_ask", "order_size_bid", "order_size_ask"]
    impact = ["impact", "pressure_drift", "pressure_decay"]
    assert list(table.index) == (fitted if calibration.kind == "quotes" else fitted + sizes + impact)
    assert ((table["lower"] <= table["estimate"]) & (table["estimate"] <= table["upper"])).all()
    own = table.loc[fitted]
    assert ((own["lower"] < own["estimate"]) & (own["estimate"] < own["upper"])).all()
    assert (own["standard_error"] > 0).all()
    if calibration.kind == "tape":
        assert table.loc[sizes, "estimate"].tolist() == [0.01, 1.0, 1.0, 1.0, 1.0]


def test_kwargs_make_an_environment(from_quotes: Calibration) -> None:
    arguments = json.loads(json.dumps(from_quotes.kwargs()))
    assert sorted(arguments) == ["fill_decay", "fill_rate", "volatility"]
    assert arguments["fill_rate"] == [from_quotes.bid.fill_rate.value, from_quotes.ask.fill_rate.value]
    assert from_quotes.kwargs(drift=True) == arguments | {"drift": from_quotes.mid.drift.value}
    environment = gymnasium.make("mmgym/GLFT-v0", **arguments)
    environment.reset(seed=0)
    environment.close()


def test_kwargs_refuse_fills_that_do_not_thin_out(tmp_path: Path) -> None:
    quotes = simulate_quotes(14, rows=500)
    quotes["bid_depth"] = 2.1 - quotes["bid_depth"]
    quotes.to_csv(tmp_path / "quotes.csv", index=False)
    with pytest.raises(ValueError, match="fill_decay must be positive"):
        calibrate(tmp_path / "quotes.csv").kwargs()


def test_to_dict_is_json(calibration: Calibration) -> None:
    content = calibration.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["bid"]["fill_rate"]["value"] == calibration.bid.fill_rate.value
    assert len(content["ask"]["rates"]) == len(calibration.ask.rates)


def test_to_dict_has_none_where_nothing_can_be_tested() -> None:
    fit = fit_fills([1.0, 2.0], [10.0, 10.0], [9, 4])
    assert fit.degrees_of_freedom == 0
    assert np.isnan(fit.p_value)
    result = Calibration("quotes.csv", "quotes", fit, fit, fit_brownian([0, 1, 2], [0, 1, 3]))
    assert result.to_dict()["bid"]["p_value"] is None
    assert "nothing to test" in result.summary()


def test_summary_says_how_well_the_law_holds(calibration: Calibration) -> None:
    summary = calibration.summary()
    assert summary.count("not rejected") == 2
    assert f"p = {calibration.bid.p_value:.2g}" in summary
    assert f"{calibration.ask.fill_decay.value:.4g}" in summary
    assert "Empirical over fitted rate runs from" in summary


def test_plot_writes_a_png(calibration: Calibration, tmp_path: Path) -> None:
    path = calibration.plot(tmp_path / "rates.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_plot_names_the_extra(from_quotes: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"mmgym\[plot\]"):
        from_quotes.plot(tmp_path / "rates.png")


# Data that do not identify the parameters


@pytest.mark.parametrize(
    ("depth", "exposure", "fills", "message"),
    [
        ([1, 2], [1, 1], [0, 0], "no fills"),
        ([1, 1], [1, 1], [3, 2], "two depths"),
        ([1, 2, 3], [1, 1, 1], [3, 0, 0], "all fills are at the smallest depth"),
        ([1, 2, 3], [1, 1, 1], [0, 0, 3], "all fills are at the largest depth"),
        ([1, 2], [1, 1], [3, -1], "whole numbers"),
        ([1, 2], [1, 1], [3, 0.5], "whole numbers"),
        ([1, 2], [1, 0], [3, 1], "exposure must be positive"),
        ([1, 2], [1, -1], [3, 1], "exposure must be positive"),
        ([1, np.nan], [1, 1], [3, 1], "depth must be finite"),
        ([1, 2], [1], [3, 1], "one shape"),
        ([], [], [], "one shape"),
    ],
)
def test_fit_fills_refuses(depth: list[float], exposure: list[float], fills: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_fills(depth, exposure, fills)


@pytest.mark.parametrize(
    ("reach", "changes", "message"),
    [
        ([0.005, 0.005], {}, "goes on beyond minimum_depth"),
        ([0.025, 0.035], {"maximum_depth": 0.015}, "stops before maximum_depth"),
        ([0.001, 0.002], {}, "reaches minimum_depth"),
        ([], {}, "reaches minimum_depth"),
        ([0.005, 0.015], {"maximum_depth": 0.01}, "maximum_depth must exceed"),
        ([0.005, 0.015], {"tick": 0.0}, "tick must be positive"),
        ([0.005, 0.015], {"end": 0.0}, "window"),
        ([0.005, np.nan], {}, "finite"),
    ],
)
def test_fit_reaches_refuses(reach: list[float], changes: dict[str, float], message: str) -> None:
    arguments = {"start": 0.0, "end": 10.0, "tick": TICK, "minimum_depth": 0.005} | changes
    with pytest.raises(ValueError, match=message):
        fit_reaches(np.ones(len(reach)), reach, **arguments)


@pytest.mark.parametrize(
    ("time", "mid", "message"),
    [
        ([0, 1], [1, 2], "two price changes"),
        ([0, 1, 1], [1, 2, 3], "rise strictly"),
        ([0, 1, 2], [1, 1, 1], "never moves"),
        ([0, 1, 2], [1, np.inf, 1], "finite"),
    ],
)
def test_fit_brownian_refuses(time: list[float], mid: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_brownian(time, mid)


def test_a_side_that_cannot_be_fitted_is_named(tmp_path: Path) -> None:
    quotes = simulate_quotes(15, rows=50)
    path = tmp_path / "quotes.csv"
    quotes.assign(ask_fills=0).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"quotes\.csv: ask: no fills"):
        calibrate(path)
    quotes.assign(bid_exposure=0, bid_fills=0).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"quotes\.csv: bid: never quoted"):
        calibrate(path)


def test_arguments_are_refused(quotes_path: Path, tape_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be"):
        calibrate(tape_path, kind="book")
    for interval in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="volatility_interval"):
            calibrate(tape_path, volatility_interval=interval)
    with pytest.raises(ValueError, match="two price changes"):
        calibrate(tape_path, volatility_interval=2000.0)
    with pytest.raises(ValueError, match="for tapes"):
        calibrate(quotes_path, minimum_depth=0.1)
    with pytest.raises(FileNotFoundError):
        calibrate(tmp_path / "absent.csv")


# Wrong files: the message names file, line and column

QUOTES_LINES = [
    ",".join(QUOTES_COLUMNS),
    "0,100,1,1,1,1,2,2",
    "1,101,2,2,1,1,1,1",
    "2,100,3,3,1,1,0,0",
]
TAPE_LINES = [
    ",".join(TAPE_COLUMNS),
    "0,quote,99,1,100,1,,,",
    "1,trade,,,,,99,1,sell",
    "1,quote,98,1,99,1,,,",
    "2,trade,,,,,99,1,buy",
]


def assert_refused(path: Path, lines: list[str], line: int, column: str, rule: str) -> None:
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rule) as caught:
        calibrate(path)
    assert str(caught.value).startswith(f"{path}, line {line}, column {column!r}: ")


@pytest.mark.parametrize("column", range(len(QUOTES_COLUMNS)))
@pytest.mark.parametrize("cell", ["x", "inf", "1e999", "0x1"])
def test_quotes_cell_that_is_no_number(tmp_path: Path, column: int, cell: str) -> None:
    cells = QUOTES_LINES[2].split(",")
    cells[column] = cell
    lines = [*QUOTES_LINES[:2], ",".join(cells), QUOTES_LINES[3]]
    assert_refused(tmp_path / "quotes.csv", lines, 3, QUOTES_COLUMNS[column], "a finite number is")


@pytest.mark.parametrize(
    ("row", "column", "rule"),
    [
        ("0.5,100,3,3,1,1,0,0", "time", "rise strictly"),
        ("1,100,3,3,1,1,0,0", "time", "rise strictly"),
        (",100,3,3,1,1,0,0", "time", "needs a number"),
        ("2,,3,3,1,1,0,0", "mid", "needs a number"),
        ("2,100,,3,1,1,0,0", "bid_depth", "needs a depth"),
        ("2,100,3,,1,1,0,0", "ask_depth", "needs a depth"),
        ("2,100,3,3,-1,1,0,0", "bid_exposure", "0 or more"),
        ("2,100,3,3,1,,0,0", "ask_exposure", "0 or more"),
        ("2,100,3,3,1,1,-1,0", "bid_fills", "whole number"),
        ("2,100,3,3,1,1,0,0.5", "ask_fills", "whole number"),
        ("2,100,3,3,1,1,,0", "bid_fills", "whole number"),
        ("2,100,3,3,1,0,0,1", "ask_fills", "without exposure"),
    ],
)
def test_quotes_row_that_is_refused(tmp_path: Path, row: str, column: str, rule: str) -> None:
    assert_refused(tmp_path / "quotes.csv", [*QUOTES_LINES[:3], row], 4, column, rule)


@pytest.mark.parametrize("column", QUOTES_COLUMNS)
def test_quotes_column_that_is_missing_or_twice(tmp_path: Path, column: str) -> None:
    path = tmp_path / "quotes.csv"
    for replacement, rule in (("other", "missing"), (f"{column},{column}", "named twice")):
        lines = [QUOTES_LINES[0].replace(column, replacement, 1), *QUOTES_LINES[1:]]
        path.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=f"line 1, column '{column}': {rule}"):
            calibrate(path, kind="quotes")


@pytest.mark.parametrize(
    ("line", "row", "column", "rule"),
    [
        (3, "-1,trade,,,,,99,1,sell", "time_s", "must not fall"),
        (3, ",trade,,,,,99,1,sell", "time_s", "needs a time"),
        (3, "nan,trade,,,,,99,1,sell", "time_s", "needs a time"),
        (3, "inf,trade,,,,,99,1,sell", "time_s", "a finite number is"),
        (3, "1,cancel,,,,,99,1,sell", "event", "'quote' or 'trade'"),
        (3, "1,trade,,,,,99,1,seller", "side", "'buy' or 'sell'"),
        (3, "1,trade,,,,,99,1,", "side", "'buy' or 'sell'"),
        (3, "1,trade,,,,,,1,sell", "price", "trade rows need a number"),
        (3, "1,trade,,,,,99,0,sell", "size", "positive"),
        (3, "1,trade,99,,,,99,1,sell", "bid", "trade rows an empty cell"),
        (3, "1,trade,,,,,9.9.9,1,sell", "price", "a finite number is"),
        (4, "1,quote,99,1,99,1,,,", "bid", "below the ask"),
        (4, "1,quote,99.5,1,99,1,,,", "bid", "below the ask"),
        (4, "1,quote,,1,99,1,,,", "bid", "quote rows need a number"),
        (4, "1,quote,98,1,99,,,,", "ask_size", "quote rows need a number"),
        (4, "1,quote,98,-1,99,1,,,", "bid_size", "positive"),
        (4, "1,quote,98,1,99,1,5,,", "price", "quote rows an empty cell"),
        (4, "1,quote,98,1,99,1,,,buy", "side", "no side"),
    ],
)
def test_tape_row_that_is_refused(tmp_path: Path, line: int, row: str, column: str, rule: str) -> None:
    assert_refused(tmp_path / "tape.csv", [*TAPE_LINES[: line - 1], row, *TAPE_LINES[line:]], line, column, rule)


@pytest.mark.parametrize("column", TAPE_COLUMNS)
def test_tape_column_that_is_missing(tmp_path: Path, column: str) -> None:
    path = tmp_path / "tape.csv"
    header = ",".join("other" if name == column else name for name in TAPE_COLUMNS)
    path.write_text("\n".join([header, *TAPE_LINES[1:]]))
    named = "'event': missing" if column != "event" else "'time_s': no known format"
    with pytest.raises(ValueError, match=f"line 1, column {named.replace('event', column, 1)}"):
        calibrate(path, kind="tape")


def test_line_numbers_hold_beyond_the_first_rows(tmp_path: Path) -> None:
    assert_refused(tmp_path / "tape.csv", [*TAPE_LINES, "3,trade,,,,,x,1,buy"], 6, "price", "a finite number is")
    assert_refused(tmp_path / "tape.csv", [*TAPE_LINES, "3,trade,,,,,1,1,x"], 6, "side", "'buy' or 'sell'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the file is empty"),
        (b"\n", "line 1: the header is empty"),
        (b"colour,shape\nred,round\n", "line 1, column 'colour': no known format"),
        ("\n".join(TAPE_LINES[:1]).encode(), "line 2: no rows"),
        ("\n".join([*TAPE_LINES[:2], "1,trade"]).encode(), "line 3: 2 cells where the header has 9"),
        ("\n".join([*TAPE_LINES[:2], TAPE_LINES[2] + ","]).encode(), "line 3: 10 cells where the header has 9"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a CSV file in UTF-8"),
        (("\n".join(TAPE_LINES)).encode() + b"\n\xff", "not a CSV file in UTF-8"),
        (b"event," + b"x" * 200_000, "no known format"),
        (("\n".join(TAPE_LINES)).encode() + b"\n\0", "not a CSV file"),
    ],
)
def test_file_that_is_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    for path, stored in ((tmp_path / "tape.csv", content), (tmp_path / "tape.csv.gz", gzip.compress(content))):
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=message) as caught:
            calibrate(path)
        assert str(caught.value).startswith(str(path))


def test_gzip_file_that_is_broken(tape_path: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "tape.csv.gz", tape_path.read_bytes()
    wrong_checksum = whole[:-8] + bytes(4) + whole[-4:]
    for content in (whole[: len(whole) // 2], wrong_checksum, whole[:-4], b"time_s,event\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"after line \d+: not a complete gzip file"):
            calibrate(path)


def test_small_tapes_are_read_as_documented(tmp_path: Path) -> None:
    """Trades at two prices are one order; its mid is the one before the time stamp, and may be lacking."""
    path = tmp_path / "tape.csv"
    rows = [
        "0,trade,,,,,99,1,sell",
        "0,quote,99,1,100,1,,,",
        "1,quote,90,1,91,1,,,",
        "1,trade,,,,,99,1,sell",
        "1,trade,,,,,97,2,sell",
        "1,trade,,,,,100,4,buy",
        "2,trade,,,,,93,1,buy",
    ]
    path.write_text("\ufeff" + "\r\n".join([TAPE_LINES[0], *rows]) + "\r\n", encoding="utf-8", newline="")
    orders = market_orders(read_tape(path)).sort_values(["time_s", "side"])
    assert orders[["time_s", "side", "size"]].to_numpy().tolist() == [
        [0.0, "sell", 1.0],
        [1.0, "buy", 4.0],
        [1.0, "sell", 3.0],
        [2.0, "buy", 1.0],
    ]
    assert orders["reach"].tolist() == pytest.approx([np.nan, 0.5, 2.5, 2.5], nan_ok=True)


# The real tape


@pytest.mark.skipif(not REAL_TAPE.exists(), reason="the real tape is not part of the project")
def test_real_tape_against_a_plain_loop(tmp_path: Path) -> None:
    result = calibrate_tape(REAL_TAPE, minimum_depth=0.005, maximum_depth=10.0)  # all depths
    mid = before = previous_time = None
    reaches: dict[tuple[float, str], float] = {}
    with gzip.open(REAL_TAPE, "rt") as stream:
        next(stream)
        for line in stream:
            time, event, bid, _, ask, _, price, _, side = line.rstrip("\n").split(",")
            if time != previous_time:
                before, previous_time = mid, time
            if event == "quote":
                mid = (float(bid) + float(ask)) / 2
            elif before is not None:
                distance = float(price) - before if side == "buy" else before - float(price)
                key = (float(time), side)
                reaches[key] = max(reaches.get(key, -np.inf), distance)
    assert len(reaches) == 3506
    assert result.minimum_depth == 0.005
    for side, aggressor in (("bid", "sell"), ("ask", "buy")):
        fit: ExponentialFit = getattr(result, side)
        reach = np.array([value for (_, who), value in reaches.items() if who == aggressor])
        ticks = np.floor((reach[reach > 0.004999] - 0.004999) / TICK)
        assert fit.fills == ticks.size
        assert fit.fill_decay.value == pytest.approx(np.log1p(1 / ticks.mean()) / TICK)
        assert fit.p_value < 1e-6
    assert result.mid.increments == 344
    assert "is rejected" in result.summary()
    assert result.rejected == ["exponential law of the bid", "exponential law of the ask"]
    assert result.plot(tmp_path / "tape.png").stat().st_size > 10_000

    local = calibrate(REAL_TAPE)  # by rule: from the first tick behind the best price
    assert (local.minimum_depth, local.maximum_depth) == (0.015, 0.165)
    assert not local.rejected
    local = calibrate_tape(REAL_TAPE, minimum_depth=0.015, maximum_depth=0.105)
    for fit in (local.bid, local.ask):
        assert fit.rates["ratio"].between(0.9, 1.1).all()
