"""Records that keep to their format and are wrong: each fault is made on a simulated record of known truth, and named.

False alarms. Seeds are fixed, so a check either always passes or never does; the rates say how likely a change of seed
is to fail. Counts of intervals that hold the truth: a binomial bound of 1e-4 each, about 1e-3 for all. Estimates within
4.5 standard errors: 7e-6 each. Clean records: the checker warns of one in a hundred thousand at most for each finding.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mmgym.agents.cli import main
from mmgym.calibration import glft, hawkes_power, tick_spread
from mmgym.calibration.block_intervals import Estimate, count_dispersion
from mmgym.calibration.hawkes import fit_hawkes, fit_market_orders, fit_poisson, plot_residuals
from mmgym.calibration.hawkes_power_tape import read_power_tape, side_file, simulate_power_tapes
from mmgym.calibration.tape_checks import (
    marked,
    require_finite,
)
from mmgym.calibration.tick_spread_simulation import simulate_own_quotes, simulate_tape
from mmgym.models import hawkes
from mmgym.models.tick_spread import Params
from mmgym.tapes import Finding, read_tape
from mmgym.tapes.clocks import clock_grid, shared_stamps
from mmgym.tapes.gaps import find_gaps
from mmgym.tapes.level1 import TAPE_COLUMNS

REAL_TAPE = Path(__file__).parents[2] / "shared" / "data" / "ethusdt_perpetual_20240808_level1.csv.gz"
TICK, RATE, DECAY, VOLATILITY = 0.01, 0.86, 49.0, 0.05
HOUR, DAY = 3600.0, 86400.0
CLUSTERED = (0.25, 45.0, 60.0)  # base rate, excitation, decay: counts vary 16 times as much as Poisson counts


def simulate(
    seed: int, seconds: float = HOUR, *, rate: float = RATE, decay: float = DECAY, clustered: bool = False
) -> pd.DataFrame:
    """A spread of one tick; an order of exponential reach moves the quotes as far as it goes, for a third of a second.

    Trades stand above the quotes that they cause, at one time stamp.
    """
    random = np.random.default_rng(seed)
    touch_rate = rate * np.exp(-decay * TICK / 2)
    orders = []
    for sign in (-1, 1):
        times = random.uniform(0, seconds, random.poisson(touch_rate * seconds))
        if clustered:
            times = hawkes.simulate(*CLUSTERED, seconds, seed=2 * seed + (sign > 0)).times
        steps = np.floor(random.exponential(1 / decay, times.size) / TICK)
        orders.append(pd.DataFrame({"time_s": times, "sign": sign, "steps": steps}))
    table = pd.concat(orders)
    back = table[table["steps"] > 0].assign(
        time_s=lambda own: own["time_s"] + random.exponential(0.3, len(own)), steps=lambda own: -own["steps"], kind=1
    )
    drift = pd.DataFrame({"time_s": np.sort(random.uniform(0, seconds, int(seconds))), "kind": 2})
    ends = pd.DataFrame({"time_s": [0.0, seconds], "kind": 2})
    table = pd.concat([table.assign(kind=0), back[back["time_s"] < seconds], drift, ends])
    table = table.fillna({"sign": 0.0, "steps": 0.0}).sort_values("time_s", kind="stable", ignore_index=True)
    gaps = np.diff(table["time_s"], prepend=0.0)
    fair = VOLATILITY * (np.sqrt(gaps) * random.normal(size=gaps.size)).cumsum()
    level = np.where(table["kind"] == 2, np.rint(fair / TICK), np.nan)
    after = 10_000 + pd.Series(level).ffill().to_numpy() + (table["sign"] * table["steps"]).cumsum().to_numpy()
    before = np.append(after[0], after[:-1])
    times = table["time_s"].to_numpy()
    is_order = (table["kind"] == 0).to_numpy()
    buy = (table["sign"] > 0).to_numpy()[is_order]
    best = np.where(buy, before[is_order] + 1, before[is_order])
    worst = best + (table["sign"] * table["steps"]).to_numpy()[is_order]
    trades = pd.DataFrame(
        {
            "time_s": times[is_order], "event": "trade", "price": np.round(best * TICK, 2),
            "size": random.exponential(0.6, is_order.sum()) + 1e-3, "side": np.where(buy, "buy", "sell"),
        }
    )  # fmt: skip
    trades = pd.concat([trades, trades.assign(price=np.round(worst * TICK, 2))[worst != best]], ignore_index=True)
    quotes = pd.DataFrame(
        {
            "time_s": times, "event": "quote", "bid": np.round(after * TICK, 2), "bid_size": 1.0,
            "ask": np.round((after + 1) * TICK, 2), "ask_size": 1.0, "side": "",
        }
    )  # fmt: skip
    tape = pd.concat([trades, quotes], ignore_index=True)[list(TAPE_COLUMNS)]
    return tape.sort_values("time_s", kind="stable", ignore_index=True)


def market(**changes: object) -> Params:
    arguments = {"clock_rate": 1.0, "horizon": 7200.0, "num_steps": 7200}
    return Params.create(**(arguments | changes))


def write(tape: pd.DataFrame, path: Path) -> Path:
    tape.to_csv(path, index=False)
    return path


def names(findings: tuple[Finding, ...]) -> list[str]:
    return sorted({item.name for item in findings})


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.lower <= truth <= estimate.upper


def assert_covers(hits: list[bool]) -> None:
    """95 % intervals: so few hits have a chance below 1e-4."""
    assert sum(hits) >= stats.binom(len(hits), 0.95).ppf(1e-4), hits


def sides(fit: glft.Calibration, rate: float = RATE, decay: float = DECAY) -> list[bool]:
    return [
        covers(estimate, truth)
        for side in (fit.bid, fit.ask)
        for estimate, truth in ((side.fill_rate, rate), (side.fill_decay, decay))
    ]


# Gaps


@pytest.mark.long
@pytest.mark.parametrize("kind", ["two_days", "outage", "no_trades"])
def test_gaps_are_split_and_rates_are_over_observed_time(tmp_path: Path, kind: str) -> None:
    hits = []
    for seed in range(6):
        first = simulate(seed)
        if kind == "two_days":
            second = simulate(seed + 100)
            second["time_s"] += DAY
            second[["bid", "ask", "price"]] += 50.0  # a jump overnight is no volatility
            tape = pd.concat([first, second], ignore_index=True)
        else:
            inside = first["time_s"].between(1000, 2200)
            tape = first[~(inside & ((first["event"] == "trade") | (kind == "outage")))]
        fit = glft.calibrate(write(tape, tmp_path / "tape.csv"))
        assert "gaps" in names(fit.findings)
        assert fit.bid.exposure == pytest.approx(2 * HOUR if kind == "two_days" else HOUR - 1200, abs=30)
        assert fit.mid.volatility.value < 3 * VOLATILITY
        hits += sides(fit)
    assert_covers(hits)


def test_gaps_of_the_spread_chain_are_no_jumps_and_no_time(tmp_path: Path) -> None:
    params = market(clock_rate=1.3)
    parts = [simulate_tape(params, seed=seed, duration=HOUR) for seed in (1, 2)]
    parts[1]["time_s"] += DAY
    tape = pd.concat(parts, ignore_index=True)
    log = [simulate_own_quotes(params, part, seed=seed) for seed, part in zip((3, 4), parts, strict=True)]
    calibration = tick_spread.calibrate(tape, own_quotes=pd.concat(log, ignore_index=True))
    same = {"num_spreads": calibration.num_spreads, "own_size": calibration.own_size}
    alone = [tick_spread.calibrate(part, **same) for part in parts]
    assert names(calibration.findings) == ["gaps"]
    assert calibration.transition_counts.tolist() == (alone[0].transition_counts + alone[1].transition_counts).tolist()
    assert calibration.seconds == pytest.approx(alone[0].seconds + alone[1].seconds, abs=1e-6)
    assert calibration.end - calibration.start == pytest.approx(2 * HOUR)
    np.testing.assert_array_equal(calibration.proxy.counts, alone[0].proxy.counts + alone[1].proxy.counts)
    rates = calibration.chain.clock_rates
    assert (np.abs(rates.value - 1.3) < 4.5 * rates.stderr).all()
    assert calibration.own_quotes is not None
    assert calibration.own_quotes.counts.sum() == sum((part["event"] == "fill").sum() for part in log)
    with pytest.raises(ValueError, match="a piece lies in a gap"):
        tick_spread.calibrate(tape, clock_pieces=[40_000.0, 50_000.0])


def test_gaps_of_windows_split_them() -> None:
    times = hawkes.simulate(0.6, 1.5, 3.0, 2000.0, seed=1).times
    lost = times[(times < 500) | (times > 900)]
    fit = fit_hawkes([lost], 2000.0)
    assert names(fit.findings) == ["gaps"]
    assert fit.exposure == pytest.approx(1600, abs=10)
    for estimate, truth in ((fit.base_rate, 0.6), (fit.excitation, 1.5), (fit.decay, 3.0)):
        assert abs(estimate.value - truth) < 4.5 * estimate.stderr
    assert fit.to_dict()["warnings"][0]["name"] == "gaps"
    assert (fit.table()["warning"] == "gaps").all()


@pytest.mark.long
def test_gaps_of_power_tapes_are_cut_out(tmp_path: Path) -> None:
    paths = simulate_power_tapes(tmp_path, days=5, seed=1)
    whole = hawkes_power.calibrate(paths).group()
    assert not whole.findings
    lines = paths[0].read_text().splitlines()
    kept = [line for line in lines[1:] if not 10 < float(line.split(",")[1]) < 40]
    bid, ask = kept[0].split(",")[3:5]  # nothing moves: a book without its past must not contradict it
    flat = [",".join([*line.split(",")[:2], *_still(line, int(bid), int(ask))]) for line in kept]
    paths[0].write_text("\n".join([lines[0], *flat]) + "\n")
    about = json.loads(side_file(paths[0]).read_text())
    side_file(paths[0]).write_text(json.dumps(about | {"start_bid": int(bid), "start_ask": int(ask)}))
    fit = hawkes_power.calibrate(paths).group()
    assert "gaps" in names(fit.findings)
    for name, process in fit.processes.items():
        assert process.exposure == pytest.approx(270, abs=2), name
        assert abs(process.base_rate.value - whole.processes[name].base_rate.value) < 3 * process.base_rate.stderr
    side_file(paths[0]).write_text(json.dumps(about | {"horizon": 3600.0}))
    with pytest.raises(ValueError, match=r"'horizon'.*1440 minutes at most \(wrong time unit"):
        hawkes_power.calibrate(paths)


def _still(line: str, bid: int, ask: int) -> list[str]:
    name, volume = line.split(",")[2], line.split(",")[-1]
    worst = {"MO_BUY": str(ask), "MO_SELL": str(bid)}.get(name, "")
    return [name, str(bid), str(ask), worst, volume]


def test_a_gap_in_a_quotes_file_is_no_volatility(tmp_path: Path) -> None:
    quotes = own_quotes_file(1)
    quotes.loc[quotes.index >= 1500, "time"] += DAY
    quotes.loc[quotes.index >= 1500, "mid"] += 300.0
    fit = glft.calibrate(write(quotes, tmp_path / "quotes.csv"))
    assert names(fit.findings) == ["gaps"]
    assert abs(fit.mid.volatility.value - 0.8) < 4.5 * fit.mid.volatility.stderr


def own_quotes_file(seed: int, rows: int = 3000, noise: float = 0.0) -> pd.DataFrame:
    """Depths at random, one second each; the mid is a Brownian motion, with noise on every row."""
    random = np.random.default_rng(seed)
    mid = 100 + 0.8 * random.normal(size=rows).cumsum() + noise * random.normal(size=rows)
    quotes = pd.DataFrame({"time": np.arange(rows, dtype=float), "mid": mid})
    for side in ("bid", "ask"):
        depth = random.uniform(0.1, 2.0, rows)
        fills = random.poisson(1.4 * np.exp(-1.5 * depth))
        quotes = quotes.assign(**{f"{side}_depth": depth, f"{side}_exposure": 1.0, f"{side}_fills": fills})
    return quotes


def test_gaps_are_few_and_far_longer_than_all_else() -> None:
    random = np.random.default_rng(1)
    pauses = random.exponential(1.0, 2000)
    assert find_gaps(pauses).size == 0
    pauses[[30, 700]] = 500.0, 90_000.0
    assert find_gaps(pauses).tolist() == [30, 700]
    assert find_gaps(pauses[:50]).size == 0  # too few to say
    pauses[[30, 700]] = 70.0, 1.0  # the longest other pause is about 8
    assert find_gaps(np.full(500, 0.25)).size == 0
    clusters = np.where(random.random(2000) < 0.05, random.exponential(100.0, 2000), random.exponential(0.01, 2000))
    assert find_gaps(clusters).size == 0  # one in twenty: two scales, no outages


# Time stamps


@pytest.mark.long
def test_one_second_stamps_are_refused_and_finer_ones_corrected(tmp_path: Path) -> None:
    tape = simulate(1, 1800.0, rate=2.0, decay=60.0)
    path = tmp_path / "tape.csv"
    for step in (1.0, 0.2):
        write(tape.assign(time_s=np.floor(tape["time_s"] / step) * step), path)
        with pytest.raises(ValueError, match=rf"coarse clock: time stamps are multiples of {step:g} s.*or finer"):
            glft.calibrate(path)
    hits = []
    for seed in range(4):
        tape = simulate(seed, rate=2.0, decay=60.0)
        write(tape.assign(time_s=np.round(np.floor(tape["time_s"] / 0.03) * 0.03, 9)), path)
        fit = glft.calibrate(path)
        assert "coarse_clock" in names(fit.findings)
        hits += sides(fit, 2.0, 60.0)
    assert_covers(hits)
    write(tape.assign(time_s=np.floor(tape["time_s"] * 1e4) / 1e4), path)
    assert not glft.calibrate(path).findings


def test_a_coarse_clock_hides_jumps_and_kernels(tmp_path: Path) -> None:
    tape = simulate_tape(market(), seed=1)
    rounded = tape.assign(time_s=np.floor(tape["time_s"]))
    with pytest.raises(ValueError, match=r"coarse clock: .*multiples of 1 s.*jumps of the spread"):
        tick_spread.calibrate(rounded)
    times = hawkes.simulate(2.0, 30.0, 60.0, 3000.0, seed=2).times
    with pytest.raises(ValueError, match=r"coarse clock: .* the kernel decays at"):
        fit_hawkes([np.unique(np.floor(times / 0.02) * 0.02)], 3000.0)
    fit = fit_hawkes([np.unique(np.floor(times * 500) / 500)], 3000.0)
    assert names(fit.findings) == ["coarse_clock"]
    for estimate, truth in ((fit.base_rate, 2.0), (fit.excitation, 30.0), (fit.decay, 60.0)):
        assert covers(estimate, truth)


def test_the_clock_is_found() -> None:
    random = np.random.default_rng(2)
    times = np.sort(random.uniform(0, 1e4, 500))
    assert clock_grid(np.diff(times), 1e4) == 0.0
    for step in (1.0, 0.25, 0.001):
        assert clock_grid(np.diff(np.floor(times / step) * step), 1e4) == pytest.approx(step)
    # of Poisson events at one per stamp, 1 - exp(-1) stamps are occupied
    assert shared_stamps(6321, 1e4, 1.0) == pytest.approx(0.368, abs=1e-3)


def test_late_trades_are_named_with_their_lag(tmp_path: Path) -> None:
    tape = simulate(3)
    late = tape["event"] == "trade"
    moved = tape.assign(time_s=tape["time_s"] + 0.003 * late).sort_values("time_s", kind="stable")
    moved.loc[moved.index[-1], "time_s"] += 1.0
    with pytest.raises(ValueError, match=r"late trades: .*if trades were 3 ms earlier.*take 0.003 from time_s"):
        glft.calibrate(write(moved, tmp_path / "tape.csv"))
    mended = moved.assign(time_s=moved["time_s"] - 0.003 * late.loc[moved.index])
    mended = mended.sort_values(["time_s", "event"], ascending=[True, False], kind="stable")
    assert_covers(sides(glft.calibrate(write(mended[mended["time_s"] >= 0], tmp_path / "tape.csv"))))


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_flipped_sides_are_refused(tmp_path: Path, share: float) -> None:
    random = np.random.default_rng(4)
    for tape in (simulate(4, 900.0), simulate_tape(market(), seed=4, duration=900.0)):
        flip = random.random(len(tape)) < share
        sides = tape["side"].map({"buy": "sell", "sell": "buy", "": ""}).where(flip, tape["side"])
        path = write(tape.assign(side=sides), tmp_path / "tape.csv")
        for calibrate in (glft.calibrate, tick_spread.calibrate, fit_market_orders):
            with pytest.raises(ValueError, match=r"column 'side': flipped sides: .* must be exchanged"):
                calibrate(path)


def test_some_flipped_sides_are_warned_of(tmp_path: Path) -> None:
    tape = simulate(5, 900.0)
    flip = np.random.default_rng(5).random(len(tape)) < 0.1
    sides = tape["side"].map({"buy": "sell", "sell": "buy", "": ""}).where(flip, tape["side"])
    assert "inside_quotes" in names(glft.calibrate(write(tape.assign(side=sides), tmp_path / "tape.csv")).findings)


# Units


@pytest.mark.parametrize(("unit", "factor"), [("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
@pytest.mark.parametrize("start", [0.0, 1.72e9])
def test_other_time_units_are_refused_and_taken_when_said(
    tmp_path: Path, unit: str, factor: float, start: float
) -> None:
    tape = simulate(6, 900.0)
    times = np.round((tape["time_s"] + start) * factor)
    path = write(tape.assign(time_s=times), tmp_path / "tape.csv")
    for calibrate in (glft.calibrate, tick_spread.calibrate, fit_market_orders):
        with pytest.raises(ValueError, match=r"column 'time_s': wrong time unit.*time_unit"):
            calibrate(path)
    with pytest.raises(ValueError, match="time_unit must be one of s, ms, us, ns"):
        glft.calibrate(path, time_unit="min")
    fit = glft.calibrate(path, time_unit=unit)
    assert not fit.findings
    assert_covers(sides(fit))


def test_whole_numbers_are_warned_of(tmp_path: Path) -> None:
    tape = simulate(7, 60.0, rate=5.0)
    fit = glft.calibrate(write(tape.assign(time_s=np.round(1000 * tape["time_s"])), tmp_path / "tape.csv"))
    assert "time_unit" in names(fit.findings)
    assert not glft.calibrate(tmp_path / "tape.csv", time_unit="ms").findings


def test_a_log_and_a_quotes_file_in_other_units_are_named(tmp_path: Path) -> None:
    tape = simulate_tape(market(), seed=8)
    log = simulate_own_quotes(market(), tape, seed=9)
    calibration = tick_spread.calibrate(tape, own_quotes=log.assign(time_s=1000 * log["time_s"]), num_spreads=2)
    assert "time_unit" in names(calibration.findings)
    quotes = own_quotes_file(2)
    for column, factor, message in (
        ("bid_exposure", 1000.0, "line 2, column 'bid_exposure': .*are both in seconds"),
        ("time", 1e9, "column 'time': wrong time unit"),
    ):
        with pytest.raises(ValueError, match=message):
            glft.calibrate(write(quotes.assign(**{column: factor * quotes[column]}), tmp_path / "quotes.csv"))
    fit = glft.calibrate(write(quotes.assign(time=1000 * quotes["time"]), tmp_path / "quotes.csv"))
    assert names(fit.findings) == ["time_unit"]


def test_a_flat_list_of_times_is_no_list_of_windows() -> None:
    times = hawkes.simulate(1.25, 0.0, 1.0, 4000.0, seed=3).times
    for fit in (fit_hawkes, fit_poisson):
        for flat in (times, times.tolist()):
            with pytest.raises(ValueError, match=r"flat list of times; .*pass \[times\]"):
                fit(flat, 4000.0)
    with pytest.raises(ValueError, match=r"windows hold one event each: a flat list"):
        fit_hawkes([[time] for time in times], 4000.0)
    assert fit_poisson([times], 4000.0).rate.value == pytest.approx(1.25, abs=4.5 * np.sqrt(1.25 / 4000))


def test_an_own_size_in_another_unit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tape = simulate_tape(market(), seed=10, mean_order_size=0.6, mean_queue=1.0)
    path = write(tape, tmp_path / "tape.csv")
    with pytest.raises(ValueError, match=r"own size: own_size = 100 .*unit of the tape's sizes, 6\.\d* at most"):
        tick_spread.calibrate(path, own_size=100.0)
    assert main(["calibrate", "tick_spread", str(path), "--own-size", "100"]) == 2
    output = capsys.readouterr()
    assert "own_size = 100" in output.err and "gymnasium.make" not in output.out
    assert not tick_spread.calibrate(path, own_size=0.5).findings
    assert tick_spread.calibrate(path).own_size == pytest.approx(0.6, rel=0.02)  # the mean of the orders
    log = simulate_own_quotes(market(), tape, seed=11)
    assert names(tick_spread.calibrate(path, own_quotes=log, own_size=100.0).findings) == ["own_size"]


# Noise and dispersion


def noisy_tape(seed: int) -> pd.DataFrame:
    """Best quotes every second; the mid bounces by half a tick about a Brownian motion."""
    random = np.random.default_rng(seed)
    times = np.arange(0.0, 1801.0) + 1e-3 * random.random(1801)
    mid = 100 + 0.004 * random.normal(size=times.size).cumsum() + random.choice([-0.005, 0.005], times.size)
    quotes = pd.DataFrame({"time_s": times, "event": "quote", "bid": mid - 0.005, "ask": mid + 0.005, "side": ""})
    tape = quotes.assign(bid_size=1.0, ask_size=1.0, price=np.nan, size=np.nan)
    orders = []
    for sign, side, column in ((-1, "sell", "bid"), (1, "buy", "ask")):
        when = random.uniform(0, 1800, 600)
        best = tape[column].to_numpy()[np.searchsorted(times, when) - 1]
        price = best + sign * np.floor(random.exponential(2.0, when.size)) * TICK
        orders.append(pd.DataFrame({"time_s": when, "event": "trade", "price": price, "size": 1.0, "side": side}))
    return pd.concat([tape, *orders])[list(TAPE_COLUMNS)].sort_values("time_s", kind="stable", ignore_index=True)


@pytest.mark.long
def test_bid_ask_noise_is_not_volatility(tmp_path: Path) -> None:
    chosen, asked, plain = [], [], 0
    for seed in range(12):
        path = write(noisy_tape(seed), tmp_path / "tape.csv")
        fit = glft.calibrate(path)
        assert "noise" not in names(fit.findings)  # it is told from the volatility, nothing is wrong
        assert fit.mid.signature is not None
        chosen.append(covers(fit.mid.volatility, 0.004))
        asked.append(covers(glft.calibrate(path, volatility_interval=3.0).mid.volatility, 0.004))
        at_one_second = fit.mid.signature["volatility"].iloc[0]
        plain += at_one_second - 0.004 < 4 * at_one_second / np.sqrt(2 * 1800)
    assert plain == 0
    assert_covers(chosen)
    assert_covers(asked)
    quotes = own_quotes_file(3, noise=1.5)
    assert covers(glft.calibrate(write(quotes, tmp_path / "quotes.csv")).mid.volatility, 0.8)


@pytest.mark.long
def test_intervals_hold_the_measured_overdispersion(tmp_path: Path) -> None:
    base, excitation, decay = CLUSTERED
    truth = base / (1 - excitation / decay) * np.exp(DECAY * TICK / 2)
    hits, dispersions = [], []
    for seed in range(12):
        fit = glft.calibrate(write(simulate(seed, clustered=True), tmp_path / "tape.csv"))
        assert names(fit.findings) == ["overdispersed"]
        hits += [covers(side.fill_rate, truth) for side in (fit.bid, fit.ask)]
        dispersions += [fit.bid.dispersion, fit.ask.dispersion]
    assert_covers(hits)
    assert 8 < np.mean(dispersions) < 20  # 1 / (1 - 3/4)^2
    summary, table = fit.summary(), fit.table()
    assert "WARNING (overdispersed): bid: orders vary" in summary
    assert table.loc["fill_rate_bid", "warning"] == "overdispersed" and table.loc["volatility", "warning"] == ""
    assert fit.to_dict()["warnings"][0]["name"] == "overdispersed"


def test_dispersion_of_counts_is_that_of_poisson_counts() -> None:
    random = np.random.default_rng(6)
    seconds = random.uniform(0, 100, (30, 400))
    rate = np.linspace(0.1, 0.5, 400)
    counts = random.poisson(seconds * rate)
    dispersion, freedom = count_dispersion(counts, seconds)
    assert freedom == 29
    # the mean of 400 of them, each of variance about 2 / 29
    assert abs(dispersion.mean() - 1) < 4 * np.sqrt(2 / 29 / 400)
    assert count_dispersion(10 * counts, seconds)[0] == pytest.approx(10 * dispersion)
    halves = np.repeat([0, 1], 15)
    steps = random.poisson(seconds * rate * np.where(halves == 0, 1.0, 3.0)[:, None])
    assert count_dispersion(steps, seconds)[0].mean() > 3
    assert abs(count_dispersion(steps, seconds, halves)[0].mean() - 1) < 4 * np.sqrt(2 / 28 / 400)
    assert np.isnan(count_dispersion(np.ones((30, 1)) * (np.arange(30) < 9)[:, None], np.ones((30, 1)))[0])


# Where warnings stand


@pytest.mark.long
def test_warnings_stand_in_table_json_and_on_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = simulate(1, 900.0), simulate(2, 900.0)
    second["time_s"] += DAY
    gapped = pd.concat([first, second], ignore_index=True)
    path = write(gapped, tmp_path / "tape.csv")
    drawn: list[str] = []

    def keep(figure: object, findings: tuple[Finding, ...], width: int = 150) -> None:
        drawn.extend(item.name for item in findings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmgym.calibration.report.draw_findings", keep)
        glft.calibrate(path).plot(tmp_path / "glft.png")
        fit = fit_market_orders(path)["buy"]
        fit.plot(tmp_path / "hawkes.png")
    assert drawn == ["gaps", "gaps"]
    before = glft.calibrate(write(first, tmp_path / "clean.csv")).plot(tmp_path / "clean.png").read_bytes()
    assert (
        plot_residuals(tmp_path / "plain.png", {"Hawkes": fit.residuals}).read_bytes()
        != fit.plot(tmp_path / "warned.png").read_bytes()
    )
    assert main(["calibrate", "glft", str(path), "--output", str(tmp_path / "fit.json")]) == 0
    output = capsys.readouterr().out
    assert "WARNING (gaps): 1 gap without events" in output and "with warnings (above): gaps" in output
    rows = {row["parameter"]: row for row in json.loads((tmp_path / "fit.json").read_text())}
    assert rows["fill_rate_bid"]["warning"] == "gaps"
    assert before.startswith(b"\x89PNG")
    table = pd.DataFrame({"estimate": [1.0, 2.0]}, index=["rate", "decay"])
    assert marked(table, ()) is table
    assert marked(table, [Finding("noise", "", ("decay",))])["warning"].tolist() == ["", "noise"]


def test_numbers_that_are_not_finite_never_make_an_environment() -> None:
    require_finite({"a": 1.0, "b": [[0.0, 2], [3, 4]], "c": "x", "d": True, "e": None})
    for value in (np.nan, [1.0, np.inf], [[0.0, np.nan]]):
        with pytest.raises(ValueError, match=r"fill_rate = .* only finite"):
            require_finite({"fill_rate": value})


def test_what_the_data_leave_open_is_warned_of(tmp_path: Path) -> None:
    one_day = hawkes_power.calibrate(simulate_power_tapes(tmp_path, days=1, seed=3), allow_explosive=True)
    assert "not_identified" in names(one_day.group().findings)
    cells = one_day.paper_table().to_numpy().ravel()
    assert not any("nan" in cell for cell in cells)
    assert any(cell.endswith("(-)!") for cell in cells)
    table = one_day.table()
    hidden = table[["estimate", "standard_error"]].isna().any(axis=1)
    assert (table.loc[hidden, "warning"] != "").all()
    regular = fit_hawkes([np.arange(0.5, 100.0) + 1e-3 * np.random.default_rng(1).random(100)], 101.0)
    assert regular.excitation.value == 0 and names(regular.findings) == ["not_identified"]


def test_no_simulated_order_trades_through_a_quote_that_stands(tmp_path: Path) -> None:
    """Row by row: worst price, volume and move belong together. Those that move nothing stay at the best price."""
    moved_volumes, others = [], []
    for path in simulate_power_tapes(tmp_path, days=20, seed=4):
        about = json.loads(side_file(path).read_text())
        before = {"MO_BUY": about["start_ask"], "MO_SELL": about["start_bid"]}
        for line in path.read_text().splitlines()[1:]:
            _, _, name, bid, ask, worst, volume = line.split(",")
            after = {"MO_BUY": int(ask), "MO_SELL": int(bid)}
            if worst:
                sign = 1 if name == "MO_BUY" else -1
                assert sign * before[name] <= sign * int(worst) <= sign * after[name]
                (others if after[name] == before[name] else moved_volumes).append(float(volume))
            before = after
        read_power_tape(path)
    assert len(others) / (len(others) + len(moved_volumes)) == pytest.approx(0.8, abs=0.03)
    assert np.mean(moved_volumes) > 3 * np.mean(others)
    lines = path.read_text().splitlines()
    row = next(k for k, line in enumerate(lines) if "MO_BUY" in line)
    cells = lines[row].split(",")
    cells[5] = str(int(cells[4]) + 1)
    path.write_text("\n".join([*lines[:row], ",".join(cells), *lines[row + 1 :]]))
    with pytest.raises(ValueError, match=rf"line {row + 1}, column 'worst_price': .*beyond the best price that stands"):
        read_power_tape(path)


# Clean records


@pytest.mark.long
def test_clean_records_are_not_warned_of(tmp_path: Path) -> None:
    for seed in range(4):
        params = market(clock_rate=[[0.0, 1.6], [3600.0, 0.5]], horizon=7200.0)
        tape = simulate_tape(params, seed=seed)
        assert not tick_spread.calibrate(tape, own_quotes=simulate_own_quotes(params, tape, seed=seed + 50)).findings
        orders = glft.calibrate(write(simulate(seed), tmp_path / "tape.csv")).findings
        assert all(item.parameters == ("volatility",) for item in orders)  # impact that decays is no Brownian motion
        assert not glft.calibrate(write(own_quotes_file(seed), tmp_path / "quotes.csv")).findings
        for fit in fit_market_orders(tmp_path / "tape.csv", allow_explosive=True).values():
            assert names(fit.findings) in ([], ["not_identified"])
    fits = hawkes_power.calibrate(simulate_power_tapes(tmp_path, days=5, seed=5))
    assert not fits.group().findings


@pytest.mark.long
@pytest.mark.skipif(not REAL_TAPE.exists(), reason="the real tape is not part of the project")
def test_the_real_tape_is_warned_of_what_is_true(tmp_path: Path) -> None:
    """No gap, late trade or flipped side; its orders cluster. A millisecond is coarse to the Hawkes fit."""
    fit = glft.calibrate(REAL_TAPE)
    assert names(fit.findings) == ["overdispersed"]
    rows = pd.read_csv(REAL_TAPE)
    quotes = rows[rows["event"] == "quote"].drop_duplicates("time_s", keep="last")
    quotes = quotes.assign(mid=(quotes["bid"] + quotes["ask"]) / 2)[["time_s", "mid"]]
    for side, sign, furthest, own in (("sell", -1, "min", fit.bid), ("buy", 1, "max", fit.ask)):
        orders = rows[rows["side"] == side].groupby("time_s", as_index=False)["price"].agg(furthest)
        orders = pd.merge_asof(orders, quotes, on="time_s", allow_exact_matches=False).dropna()
        reached = sign * (orders["price"] - orders["mid"]) >= fit.minimum_depth - 1e-6
        window = (quotes["time_s"].min(), rows["time_s"].max())
        counts = np.histogram(orders["time_s"][reached], bins=30, range=window)[0]
        assert own.dispersion == pytest.approx(counts.var(ddof=1) / counts.mean(), rel=1e-9)
        assert own.dispersion > 5
    with pytest.raises(ValueError, match="own size: own_size = 100"):
        tick_spread.calibrate(REAL_TAPE, own_size=100.0)
    assert names(tick_spread.calibrate(REAL_TAPE).findings) == ["overdispersed", "rejected"]
    assert names(fit_market_orders(REAL_TAPE)["buy"].findings)[-1] == "overdispersed"
    tape = read_tape(REAL_TAPE)
    late = tape["event"] == "trade"
    moved = tape.assign(time_s=tape["time_s"] + 0.003 * late).sort_values("time_s", kind="stable")
    with pytest.raises(ValueError, match=r"late trades: .*if trades were 3 ms earlier"):
        glft.calibrate(write(moved, tmp_path / "tape.csv"))
    lost = tape[~tape["time_s"].between(100, 200)]
    assert "gaps" in names(glft.calibrate(write(lost, tmp_path / "tape.csv")).findings)
    milliseconds = tape.assign(time_s=np.round(1000 * tape["time_s"]))
    with pytest.raises(ValueError, match=r"wrong time unit: .*all are whole numbers"):
        glft.calibrate(write(milliseconds, tmp_path / "tape.csv"))
    seconds = tape.assign(time_s=np.floor(tape["time_s"]))
    with pytest.raises(ValueError, match="coarse clock"):
        glft.calibrate(write(seconds, tmp_path / "tape.csv"))


# Damaged files


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A file with one fault: cut short, bytes or cells changed, rows out of order, doubled or lost, columns wrong."""
    kind = random.integers(9)
    if kind == 0:
        return content[: random.integers(len(content))]
    if kind == 1:
        own = bytearray(content)
        for place in random.integers(len(own), size=random.integers(1, 4)):
            own[place] = random.integers(256)
        return bytes(own)
    lines = content.decode().split("\n")[:-1]
    row = int(random.integers(1, len(lines)))
    cells = lines[row].split(",")
    if kind == 2:
        words = ["nan", "inf", "-inf", "", "x", "-1", "0", "1e308", "1e-320", "-1e308", "1e999", "1_0", " 5", "trade"]
        cells[random.integers(len(cells))] = str(random.choice(words))
        lines[row] = ",".join(cells)
    elif kind == 3:
        other = int(random.integers(1, len(lines)))
        lines[row], lines[other] = lines[other], lines[row]
    elif kind == 4:
        lines.insert(row, lines[row])
    elif kind == 5:
        lines = [lines[0], *lines[row:]] if random.random() < 0.5 else lines[: max(row, 1)]
    elif kind == 6:
        header = lines[0].split(",")
        header[random.integers(len(header))] = str(random.choice(["", "other", header[0], "side"]))
        lines[0] = ",".join(header)
    elif kind == 7:
        column = int(random.integers(len(cells)))
        factor = float(random.choice([1e-300, 1e-9, 0.0, -1.0, 1e3, 1e9, 1e300]))
        for number in range(1, len(lines)):
            own = lines[number].split(",")
            try:
                own[column] = repr(float(own[column]) * factor)
            except (ValueError, IndexError):
                continue
            lines[number] = ",".join(own)
    else:
        lines = lines[:1] if random.random() < 0.5 else []
    return ("\n".join(lines) + "\n" * bool(lines)).encode()


def small_files(folder: Path) -> dict[str, bytes]:
    """One short file of every kind that is read."""
    tape = simulate(1, 60.0, rate=3.0)
    params = market(clock_rate=2.0)
    chain = simulate_tape(params, seed=1, duration=60.0)
    log = simulate_own_quotes(params, chain, seed=2)
    (power,) = simulate_power_tapes(folder, days=1, seed=2)
    side = side_file(power).read_bytes()
    frames = {"tape": tape, "quotes": own_quotes_file(1, 60), "chain": chain, "log": log}
    files = {name: frame.to_csv(index=False).encode() for name, frame in frames.items()}
    return files | {"power": power.read_bytes(), "side": side}


def fuzz(folder: Path, number: int, seed: int) -> dict[str, int]:
    """Calibrate damaged files: finite numbers, or numbers that are warned of, or a ValueError that names the fault."""
    random = np.random.default_rng(seed)
    files = small_files(folder)
    ended = {"result": 0, "error": 0}
    for trial in range(number):
        kind = list(files)[trial % len(files)]
        paths = {name: folder / (f"{name}.csv" if name != "side" else "power.json") for name in files}
        for name, content in files.items():
            paths[name].write_bytes(damaged(content, random) if name == kind else content)
        try:
            if kind in ("tape", "quotes"):
                calibration = glft.calibrate(paths[kind])
                fits = fit_market_orders(paths[kind]) if kind == "tape" and trial % 7 == 0 else {}
                tables = [calibration.table(), *(fit.table() for fit in fits.values())]
            elif kind in ("chain", "log"):
                calibration = tick_spread.calibrate(
                    paths["chain"], own_quotes=paths["log"], num_spreads=2, own_size=20.0
                )
                tables = [calibration.table()]
            else:
                read_power_tape(paths["power"])
                tables = []
        except ValueError as error:
            assert any(word in str(error) for word in (str(folder), "log of own quotes", "H11", "tick", "line")), error
            ended["error"] += 1
            continue
        for table in tables:
            numbers = table[["estimate", "standard_error", "lower", "upper"]]
            open_ones = ~np.isfinite(numbers.to_numpy(dtype=float)).all(axis=1)
            warned = table["warning"] != "" if "warning" in table else np.zeros(len(table), dtype=bool)
            assert (np.asarray(warned) | ~open_ones).all(), (kind, trial, table[open_ones])
        ended["result"] += 1
    return ended


@pytest.mark.long
def test_damaged_files_give_results_or_errors_that_name_them(tmp_path: Path) -> None:
    ended = fuzz(tmp_path, 72, 1)
    assert min(ended.values()) > 10, ended


@pytest.mark.slow
def test_many_damaged_files_give_results_or_errors_that_name_them(tmp_path: Path) -> None:
    ended = fuzz(tmp_path, 10_000, 2)
    assert min(ended.values()) > 1000, ended
