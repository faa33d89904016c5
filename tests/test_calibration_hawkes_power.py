"""Calibration of the intraday power market: tapes by hand, recovery from simulated days, wrong files.

False alarms. Seeds are fixed, so a check either always passes or never does; the rates say how likely a change of seed
is to fail. An estimate within 4.5 standard errors: 6.8e-6 each by the normal law, 3e-4 for the 47 of a calibration; the
standard errors of averages come from 60 days, which makes that about 2e-3. Scores over 50 replications: means within
4 standard errors and an allowance of a tenth, 6.3e-5 each, 2e-3 for the 30 of them.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

import mmgym  # noqa: F401
from mmgym.calibration.block_intervals import Estimate
from mmgym.calibration.hawkes import fit_hawkes
from mmgym.calibration.hawkes_power import Calibration, ProductFit, calibrate, market_arguments
from mmgym.calibration.hawkes_power_tape import (
    EVENT_TYPES,
    ILLUSTRATIVE_SETS,
    TAPE_COLUMNS,
    TapeParameters,
    illustrative,
    read_power_tape,
    side_file,
    simulate_power_tapes,
)
from mmgym.models import hawkes_flow as flow
from mmgym.tapes.selection import Selection

DAYS = 60
REPLICATIONS = 50

# The full model's default parameters, in the order K+, K-, L+, L-, M+, M-, and what the reference says of them
DEFAULT = TapeParameters(
    base_rate=(1.5, 1.35, 1.35, 1.5, 0.6, 0.6),
    excitation=(1.2, 1.2, 1.2, 1.2, 1.5, 1.5),
    decay=(3.0,) * 6,
    improvement=0.36,
    cancellation_move=20.0,
    order_move=40.0,
)
EFFECTIVE_IMPACTS = [
    0.10862180626145888, 0.09959374500256132, 0.09959374500256132, 0.10862180626145888, 0.03955715783157256,
    0.03955715783157256,
]  # fmt: skip
STATIONARY_HALF_SPREAD = 0.3067272396151635

# The backtest tape of the reference: 3480 / 3520 at the start
HAND_LINES = [
    ",".join(TAPE_COLUMNS),
    "0,0.2,MO_BUY,3480,3520,3520,5.0",
    "1,0.4,ASK_DOWN,3480,3510,,1.0",
    "2,0.7,MO_SELL,3470,3510,3475,8.0",
    "3,1.1,MO_SELL,3470,3510,3470,2.0",
    "4,1.3,BID_UP,3480,3510,,1.0",
    "5,1.6,MO_BUY,3480,3530,3525,9.0",
    "6,1.9,MO_SELL,3480,3530,3480,1.0",
]
HAND_SIDE = {
    "start_bid": 3480,
    "start_ask": 3520,
    "tick": 0.01,
    "product": "H11",
    "delivery_date": "2015-04-01",
    "window": "Late",
    "horizon": 2.0,
}


def write(path: Path, lines: list[str] = HAND_LINES, **changes: Any) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    side_file(path).write_text(json.dumps(HAND_SIDE | changes), encoding="utf-8")
    return path


def errors(estimate: Estimate, truth: float) -> float:
    return abs(estimate.value - truth) / estimate.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tapes")


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[Path]:
    return simulate_power_tapes(folder / "default", days=DAYS, seed=1, parameters=DEFAULT)


@pytest.fixture(scope="module")
def late(paths: list[Path]) -> ProductFit:
    return calibrate(paths).group()


@pytest.fixture(scope="module")
def several(folder: Path) -> Calibration:
    """Three days each of two products and both windows, in no order."""
    tapes: list[Path] = []
    for product, window in (("H15", "Late"), ("H11", "Late"), ("H15", "Mid"), ("H11", "Mid")):
        tapes += simulate_power_tapes(folder / "several", product=product, window=window, days=3, seed=2)
    return calibrate(tapes[::-1])


# Tapes


def test_the_hand_tape_is_read_as_documented(tmp_path: Path) -> None:
    tape = read_power_tape(write(tmp_path / "tape.csv"))
    assert (tape.start_bid, tape.start_ask, tape.tick, tape.horizon) == (3480, 3520, 0.01, 2.0)
    assert (tape.product, tape.delivery_date, tape.window) == ("H11", "2015-04-01", "Late")
    bid, ask = tape.before()
    assert bid.tolist() == [3480, 3480, 3480, 3470, 3470, 3480, 3480]
    assert ask.tolist() == [3520, 3520, 3510, 3510, 3510, 3510, 3530]
    assert tape.times("MO_BUY").tolist() == [0.2, 1.6]
    assert tape.times("ASK_UP").tolist() == []
    assert tape.moves("MO_BUY").tolist() == [0, 20]
    assert tape.moves("MO_SELL").tolist() == [10, 0, 0]
    assert tape.moves("ASK_DOWN").tolist() == [10]
    assert tape.moves("BID_UP").tolist() == [10]
    assert tape.reaches("MO_BUY").tolist() == [0, 15]
    assert tape.reaches("MO_SELL").tolist() == [5, 0, 0]
    assert tape.room("ASK_DOWN").tolist() == [39]
    # spread in ticks by time: 40 for 0.4 min, 30 for 0.3, 40 for 0.6, 30 for 0.3, 50 for 0.4
    assert tape.mean_half_spread() == pytest.approx((16 + 9 + 24 + 9 + 20) / 2.0 * 0.01 / 2)


def test_packed_tapes_and_tapes_without_events(tmp_path: Path) -> None:
    plain, packed = write(tmp_path / "tape.csv"), tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "packed.json").write_bytes(side_file(plain).read_bytes())
    assert read_power_tape(packed).events.equals(read_power_tape(plain).events)
    empty = read_power_tape(write(tmp_path / "empty.csv", HAND_LINES[:1]))
    assert empty.times("MO_BUY").tolist() == []
    assert empty.mean_half_spread() == pytest.approx(0.2)


def test_simulated_days_follow_the_model(paths: list[Path]) -> None:
    """Every event moves one side at most; narrower by the room at most; seeds and dates."""
    assert len(paths) == DAYS
    for day, path in enumerate(paths[:5]):
        tape = read_power_tape(path)
        assert tape.delivery_date == f"2015-04-0{day + 1}"
        (bid, ask), events = tape.before(), tape.events
        moved = (events["best_bid"] != bid).astype(int) + (events["best_ask"] != ask).astype(int)
        assert set(moved) == {0, 1}
        spread = events["best_ask"] - events["best_bid"]
        assert spread.min() >= 1
        assert set(events["type"]) == set(EVENT_TYPES)
        assert events["t_min"].max() > 50
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_simulated_days_depend_on_the_seed_alone(paths: list[Path], tmp_path: Path) -> None:
    again = simulate_power_tapes(tmp_path / "again", days=DAYS, seed=1, parameters=DEFAULT)
    other = simulate_power_tapes(tmp_path / "other", days=1, seed=2, parameters=DEFAULT)
    assert again[7].read_bytes() == paths[7].read_bytes()
    assert side_file(again[7]).read_bytes() == side_file(paths[7]).read_bytes()
    assert other[0].read_bytes() != paths[0].read_bytes()


def test_without_excitation_the_half_spread_is_that_of_the_reference(tmp_path: Path) -> None:
    """The reference's stationary law holds at constant intensities; bursts of new quotes make the mean wider."""
    rates = tuple(
        mu / (1 - zeta / rho)
        for mu, zeta, rho in zip(DEFAULT.base_rate, DEFAULT.excitation, DEFAULT.decay, strict=True)
    )
    constant = replace(DEFAULT, base_rate=rates, excitation=(0.0,) * 6, horizon=200.0)
    tapes = [read_power_tape(path) for path in simulate_power_tapes(tmp_path, days=25, seed=4, parameters=constant)]
    spreads = np.array([tape.mean_half_spread() for tape in tapes])
    assert abs(spreads.mean() - STATIONARY_HALF_SPREAD) < 4.5 * spreads.std(ddof=1) / np.sqrt(spreads.size)
    for name, impact in zip(EVENT_TYPES, EFFECTIVE_IMPACTS, strict=True):
        moves = np.concatenate([tape.moves(name) for tape in tapes]) * 0.005
        days = np.array([tape.moves(name).mean() for tape in tapes]) * 0.005
        assert abs(moves.mean() - impact) < 4.5 * days.std(ddof=1) / np.sqrt(days.size), name


def test_illustrative_sets_are_those_of_the_reference() -> None:
    """The Late set of H11 rounds to the full model's default parameters."""
    assert {key[0] for key in ILLUSTRATIVE_SETS} == {"H11", "H15", "H18"}
    assert len(ILLUSTRATIVE_SETS) == 6
    late = illustrative("H11", "Late")
    assert (late.base_rate, late.excitation, late.decay) == (DEFAULT.base_rate, DEFAULT.excitation, DEFAULT.decay)
    assert (late.cancellation_move, late.order_move) == pytest.approx((20.0, 40.0))
    assert late.improvement == pytest.approx(0.36, abs=0.02)
    assert late.start_spread == 60
    rates = {  # mean rates of M+, M-, K+, K- in the reference
        ("H11", "Mid"): [0.5, 0.5, 1.2857142857142858, 1.142857142857143],
        ("H11", "Late"): [1.2, 1.2, 2.5, 2.25],
        ("H15", "Mid"): [0.5833333333333334, 0.6333333333333334, 1.4285714285714286, 1.2857142857142858],
        ("H15", "Late"): [1.4, 1.5, 2.8333333333333335, 2.5],
        ("H18", "Mid"): [0.4375, 0.421875, 1.142857142857143, 1.0],
        ("H18", "Late"): [1.03125, 0.975, 2.1666666666666665, 1.9166666666666667],
    }
    for key, expected in rates.items():
        p = illustrative(*key)
        stationary = [p.base_rate[k] / (1 - p.excitation[k] / p.decay[k]) for k in (4, 5, 0, 1)]
        assert stationary == pytest.approx(expected)
        assert p.base_rate[2:4] == p.base_rate[1::-1]  # ask cancellations like bid cancellations, and so on


# Recovery


def truths() -> dict[str, float]:
    """What the parameters of simulated days are, by the names of the estimates."""
    values = {}
    for k, name in enumerate(EVENT_TYPES):
        mu, zeta, rho = DEFAULT.base_rate[k], DEFAULT.excitation[k], DEFAULT.decay[k]
        values |= {f"base_rate_{name}": mu, f"excitation_{name}": zeta, f"decay_{name}": rho}
        values |= {f"branching_ratio_{name}": zeta / rho, f"stationary_rate_{name}": mu / (1 - zeta / rho)}
        values[f"impact_{name}"] = EFFECTIVE_IMPACTS[k]
    for name in ("MO_BUY", "MO_SELL"):
        values |= {f"fill_decay_{name}": 4.0, f"first_level_share_{name}": 0.8, f"reach_atom_{name}": 0.8}
    for name in ("BID_UP", "ASK_DOWN"):
        values[f"improvement_{name}"] = 0.36
    return values


def test_simulated_days_recover_the_parameters(late: ProductFit) -> None:
    estimates = late.estimates()
    expected = truths()
    assert len(expected) == 44
    for name, truth in expected.items():
        assert errors(estimates[name][0], truth) < 4.5, name
    for name, mean in (("BID_DOWN", 20), ("ASK_UP", 20), ("MO_BUY", 40), ("MO_SELL", 40)):  # cut short at 300 ticks
        assert estimates[f"mean_move_{name}"][0].value == pytest.approx(mean, rel=0.1)
    assert len(late.dates) == DAYS
    assert (late.horizon, late.tick) == (60.0, 0.01)
    tests = late.tests().xs("hawkes", level="model")
    assert (tests[["gap_p_value", "point_p_value", "order_p_value"]] > 1e-4).all(axis=None)
    assert all(reach.fit.p_value > 1e-4 for reach in late.reaches.values())


@pytest.mark.parametrize("replications", [3, pytest.param(REPLICATIONS, marks=pytest.mark.slow)])
def test_recovery_over_replications(tmp_path: Path, replications: int) -> None:
    """Scores of the Hawkes parameters, mean impacts of market orders and kappa, of 20 days each."""
    names = [name for name in truths() if name.startswith(("base_rate", "excitation", "decay", "branching", "fill"))]
    scores: dict[str, list[float]] = {name: [] for name in names}
    for replication in range(replications):
        paths = simulate_power_tapes(tmp_path / str(replication), days=20, seed=100 + replication, parameters=DEFAULT)
        estimates = calibrate(paths).group().estimates()
        for name in names:
            estimate, _ = estimates[name]
            scores[name].append((estimate.value - truths()[name]) / estimate.stderr)
    for name, sample in scores.items():
        assert abs(np.mean(sample)) < 4 / np.sqrt(replications) + 0.1, name
        assert np.sqrt(np.mean(np.square(sample))) < 1 + 4 / np.sqrt(2 * replications), name


def test_estimates_by_hand(tmp_path: Path) -> None:
    """Two days of the hand tape with an event of the missing type added, one day shifted."""
    lines = [*HAND_LINES, "7,1.95,ASK_UP,3480,3534,,1", "8,1.96,BID_DOWN,3474,3534,,1"]
    second = [line.replace("0.2,MO_BUY,3480,3520,3520", "0.3,MO_BUY,3480,3526,3522") for line in lines]
    second[2] = "1,0.4,ASK_DOWN,3480,3510,,1.0"
    paths = [write(tmp_path / "a.csv", lines), write(tmp_path / "b.csv", second, delivery_date="2015-04-02")]
    fit = calibrate(paths, allow_explosive=True).group()
    # buys move 0, 20 and 6, 20 ticks; half of that, at 0.01
    assert fit.impacts["MO_BUY"].value == pytest.approx(46 / 4 * 0.005)
    assert fit.impacts["MO_BUY"].stderr == pytest.approx(np.std([0.05, 0.065], ddof=1) / np.sqrt(2))
    assert fit.impacts["MO_SELL"].value == pytest.approx(20 / 6 * 0.005)
    assert fit.impacts["ASK_DOWN"].value == pytest.approx((10 + 16) / 2 * 0.005)
    assert fit.first_level_shares["MO_BUY"].value == pytest.approx(1 / 4)
    assert fit.first_level_shares["MO_SELL"].value == pytest.approx(4 / 6)
    assert fit.mean_moves["MO_BUY"].value == pytest.approx(46 / 3)
    assert fit.mean_moves["BID_DOWN"].value == pytest.approx(6)
    assert fit.improvements["ASK_DOWN"].value == pytest.approx(26 / (39 + 45))
    # ticks beyond the best price: buys 0, 15 and 2, 15, so 32 passed and 4 stops
    plain = calibrate(paths, allow_explosive=True, reach="exponential").group()
    assert plain.reaches["MO_BUY"].fill_decay.value == pytest.approx(np.log1p(4 / 32) / 0.01)
    # three get behind the best price; beyond the first tick there they pass 29 and stop 3 times
    assert fit.reaches["MO_BUY"].fill_decay.value == pytest.approx(np.log1p(3 / 29) / 0.01)
    atom = fit.reaches["MO_BUY"].atom
    assert atom is not None and atom.value == pytest.approx(1 - (3 / 4) / (29 / 32))
    assert fit.reaches["MO_BUY"].independence_p_value == pytest.approx(1 / 4)  # the one that does not move stays there
    # spread: 40 for 0.3 min, 46 for 0.1, then as on the first day, with 54 and 60 at the end
    first = 16 + 9 + 24 + 9 + 50 * 0.35 + 54 * 0.01 + 60 * 0.04
    assert fit.half_spread.value == pytest.approx((2 * first + 6 * 0.1) / 4 * 0.005)
    assert fit.processes["MO_BUY"].poisson.rate.value == pytest.approx(4 / 4)


def test_a_process_is_fitted_by_itself_over_the_days(paths: list[Path], late: ProductFit) -> None:
    """Against a general optimiser of the recursion written out for one type."""
    days = [read_power_tape(path).times("MO_SELL") for path in paths]

    def loss(logs: Any) -> float:
        mu, zeta, rho = np.exp(logs)
        total = 0.0
        for times in days:
            past, rates = 0.0, []
            for gap in np.diff(times):
                rates.append(mu + zeta * past)
                past = np.exp(-rho * gap) * (1 + past)
            rates.append(mu + zeta * past)
            total += np.log(rates).sum() - mu * 60.0 + zeta / rho * np.expm1(-rho * (60.0 - times)).sum()
        return -float(total)

    fit = late.processes["MO_SELL"]
    point = np.array([fit.base_rate.value, fit.excitation.value, fit.decay.value])
    assert fit.log_likelihood == pytest.approx(-loss(np.log(point)), rel=1e-10)
    options = {"xatol": 1e-4, "fatol": 1e-6}
    best = optimize.minimize(loss, np.log(point * [1.1, 0.9, 0.9]), method="Nelder-Mead", options=options)
    assert point == pytest.approx(np.exp(best.x), rel=1e-3)


def test_mirror_images_are_fitted_together(paths: list[Path]) -> None:
    """As if there were twice as many days: on days whose sides are exchanged the same comes out."""
    fit = calibrate(paths[:6], symmetric=True).group()
    both = [read_power_tape(path).times(name) for name in ("MO_BUY", "MO_SELL") for path in paths[:6]]
    alone = fit_hawkes(both, 60.0)
    for name in ("MO_BUY", "MO_SELL"):
        assert fit.processes[name].decay == alone.decay
        assert fit.reaches[name] == fit.reaches["MO_BUY"]
    moves = np.concatenate([read_power_tape(path).moves(name) for name in ("BID_UP", "ASK_DOWN") for path in paths[:6]])
    assert fit.impacts["BID_UP"] == fit.impacts["ASK_DOWN"]
    assert fit.impacts["BID_UP"].value == pytest.approx(0.005 * moves.mean())
    arguments = market_arguments(fit)
    assert arguments["base_rate"][:2] == arguments["base_rate"][3:1:-1]
    with pytest.raises(ValueError, match="not allowed together"):
        calibrate(paths[:2], symmetric=True, drift_neutral=True)


def test_a_drift_neutral_fit_does_not_drift(paths: list[Path]) -> None:
    """Rates times moves add up to nothing on each side, and no impact moves by more than two errors."""
    free = calibrate(paths[:20]).group()
    fit = calibrate(paths[:20], drift_neutral=True).group()
    rate = {name: process.events / process.exposure for name, process in fit.processes.items()}

    def drift(of: ProductFit, ups: str, downs: tuple[str, ...]) -> float:
        return rate[ups] * of.impacts[ups].value - sum(rate[name] * of.impacts[name].value for name in downs)

    assert abs(drift(free, "BID_UP", ("BID_DOWN", "MO_SELL"))) > 1e-4
    assert drift(fit, "BID_UP", ("BID_DOWN", "MO_SELL")) == pytest.approx(0.0, abs=1e-12)
    assert rate["ASK_DOWN"] * fit.impacts["ASK_DOWN"].value == pytest.approx(
        rate["ASK_UP"] * fit.impacts["ASK_UP"].value + rate["MO_BUY"] * fit.impacts["MO_BUY"].value
    )
    for name in EVENT_TYPES:
        before, after = free.impacts[name], fit.impacts[name]
        assert abs(after.value - before.value) < 2 * before.stderr
        assert after.stderr < before.stderr
    ratio = fit.impacts["MO_BUY"].value / free.impacts["MO_BUY"].value
    assert fit.mean_moves["MO_BUY"].value == pytest.approx(ratio * free.mean_moves["MO_BUY"].value)
    buy, sell = fit.kwargs()["impact"]  # the reduced market, whose mid moves at orders alone
    assert rate["MO_BUY"] * buy == pytest.approx(rate["MO_SELL"] * sell)
    with pytest.raises(ValueError, match="one day does not tell"):
        calibrate(paths[:1], drift_neutral=True, allow_explosive=True)


def test_base_rates_in_pieces_are_estimated_and_offered(paths: list[Path]) -> None:
    """To the reduced market as they are, to the full one as their mean."""
    fit = calibrate(paths[:10], base_pieces=2).group()
    rates = [estimate.value for estimate in fit.processes["MO_BUY"].base_rates]
    assert len(rates) == 2
    assert fit.processes["MO_BUY"].base_rate.value == pytest.approx(np.mean(rates))
    assert market_arguments(fit)["base_rate"][4] == pytest.approx(np.mean(rates))
    params = flow.Params.create(**fit.kwargs())
    assert params.base_rates[:, 0] == pytest.approx(rates)
    assert params.num_steps == 240 and params.pieces == 2
    with pytest.raises(ValueError, match="base_pieces = 49 is not allowed"):
        calibrate(paths[:2], base_pieces=49)
    assert fit.estimates()["base_rate_MO_BUY[2]"][0].value == rates[1]
    assert "Base rates are constant over the window with p" in fit.summary()
    assert min(process.constant_p_value for process in fit.processes.values()) > 1e-4  # they are


def test_a_single_day_has_no_errors_between_days(paths: list[Path]) -> None:
    fit = calibrate(paths[0]).group()
    assert np.isnan(fit.impacts["MO_BUY"].stderr)
    assert fit.impacts["BID_UP"].value > 0
    assert fit.processes["BID_UP"].decay.stderr > 0


# Parts of tapes


def test_a_part_of_a_tape_by_hand(tmp_path: Path) -> None:
    """From 0.4 min on, where the ask has just improved, to 1.6 min."""
    tape = read_power_tape(write(tmp_path / "a.csv")).within(Selection(start=24.0, end=96.0))
    assert (tape.start_bid, tape.start_ask, tape.horizon) == (3480, 3510, pytest.approx(1.2))
    assert tape.times("MO_SELL") == pytest.approx([0.3, 0.7])
    assert tape.moves("MO_BUY").tolist() == [20] and tape.reaches("MO_SELL").tolist() == [5, 0]
    assert read_power_tape(write(tmp_path / "b.csv")).within(Selection()).horizon == 2.0
    with pytest.raises(ValueError, match="session, trade_lag is not allowed with event tapes"):
        tape.within(Selection(session="08:00-09:00", trade_lag=1.0))
    with pytest.raises(ValueError, match="nothing lies there; the tape runs from 0 to 72 s"):
        tape.within(Selection(start=100.0))
    with pytest.raises(ValueError, match="no date; give seconds"):
        tape.within(Selection(start="2015-04-01T10:00"))


def lossy(path: Path, start: float, end: float) -> None:
    """Lose all that happens from ``start`` to ``end`` minutes."""
    events = pd.read_csv(path)
    events[~events["t_min"].between(start, end)].to_csv(path, index=False)


def test_an_outage_is_left_out(tmp_path: Path) -> None:
    """The book has moved meanwhile, and the first event after it tells neither a move nor a reach."""
    whole, cut = (simulate_power_tapes(tmp_path / name, days=2, seed=3) for name in ("whole", "cut"))
    for path in cut:
        lossy(path, 20.0, 35.0)
    expected = [read_power_tape(path) for path in whole]
    for tape, before in zip((read_power_tape(path) for path in cut), expected, strict=True):
        assert tape.pauses == ((pytest.approx(20.0, abs=1.0), pytest.approx(35.0, abs=1.0)),)
        first = int(tape.events["t_min"].searchsorted(35.0))
        assert tape.resumed().tolist() == [first]
        for name in EVENT_TYPES:
            times = before.times(name)
            seen = (times < 20.0) | (times > 35.0) & (times != tape.events["t_min"][first])
            assert tape.moves(name).tolist() == before.moves(name)[seen].tolist()
        later = tape.between(tape.pauses[0][1], 60.0)
        assert later.start_ask == tape.events["best_ask"][first] and len(later.events) == len(tape.events) - first - 1
    fit = calibrate(cut, allow_explosive=True).group()
    assert fit.findings[0].name == "gaps"
    assert fit.processes["MO_BUY"].exposure == pytest.approx(90.0, abs=3.0)
    assert fit.reaches["MO_BUY"].fit.exposure == pytest.approx(90.0, abs=3.0)
    lossy(cut[0], 50.0, 51.5)  # too short to be found
    with pytest.raises(ValueError, match="is not allowed"):
        calibrate(cut, allow_explosive=True)
    calibration = calibrate(cut, allow_explosive=True, selection=Selection(gap=80.0)).group()
    assert calibration.processes["MO_BUY"].exposure == pytest.approx(88.5, abs=3.0)


# The result


def test_groups_are_sorted_and_found(several: Calibration) -> None:
    assert list(several.groups) == [("H11", "Mid"), ("H11", "Late"), ("H15", "Mid"), ("H15", "Late")]
    assert several.group("H15", "Mid") is several.groups["H15", "Mid"]
    assert several.groups["H15", "Mid"].dates == ("2015-04-01", "2015-04-02", "2015-04-03")
    with pytest.raises(ValueError, match="does not tell which one is meant"):
        several.group("H15")
    with pytest.raises(ValueError, match=r"'H18'.*is not calibrated; there are H11 Mid, H11 Late"):
        several.kwargs("H18", "Late")


def test_table(several: Calibration) -> None:
    table = several.table()
    assert list(table.columns) == ["estimate", "standard_error", "lower", "upper", "unit"]
    assert table.index.names == ["product", "window", "parameter"]
    assert len(table) == 4 * 49
    assert table.loc[("H15", "Late", "decay_MO_BUY"), "estimate"] == several.groups["H15", "Late"].processes[
        "MO_BUY"
    ].decay.value  # fmt: skip
    assert set(table["unit"]) == {"1/min", "1", "EUR/MWh", "1/(EUR/MWh)", "ticks"}


def test_paper_table(several: Calibration) -> None:
    """Rows and columns of the draft's Table 1, kappa added."""
    table = several.paper_table()
    assert list(table.columns) == list(several.groups)
    symbols = [symbol for symbol, _ in table.index]
    assert symbols[:6] == ["mu+", "zeta+", "rho+", "mu-", "zeta-", "rho-"]
    assert symbols[6:9] == ["mu_nu+", "zeta_nu+", "rho_nu+"]
    assert symbols[18:] == ["eps+", "eps-", "eps_nu+", "eps_nu-", "eps_upsilon+", "eps_upsilon-", "kappa+", "kappa-"]
    late = several.groups["H11", "Late"]
    row = table.loc[("rho_upsilon-", "1/min"), ("H11", "Late")]
    decay = late.processes["ASK_DOWN"].decay
    assert row == f"{decay.value:.3g} ({decay.stderr:.2g})"
    impact = late.impacts["ASK_UP"]
    assert table.loc[("eps_upsilon+", "EUR/MWh"), ("H11", "Late")] == f"{impact.value:.3g} ({impact.stderr:.2g})"


def test_kwargs_are_those_of_the_reduced_market(late: ProductFit) -> None:
    arguments = json.loads(json.dumps(late.kwargs()))
    buy, sell = late.processes["MO_BUY"], late.processes["MO_SELL"]
    assert arguments == {
        "base_rate": [buy.base_rate.value, sell.base_rate.value],
        "excitation": [buy.excitation.value, sell.excitation.value],
        "decay": [buy.decay.value, sell.decay.value],
        "half_spread": late.half_spread.value,
        "impact": [late.impacts["MO_BUY"].value, late.impacts["MO_SELL"].value],
        "fill_decay": [late.reaches["MO_BUY"].fill_decay.value, late.reaches["MO_SELL"].fill_decay.value],
        "reach_atom": [late.estimates()[f"reach_atom_{name}"][0].value for name in ("MO_BUY", "MO_SELL")],
        "horizon": 60.0,
    }
    if "mmgym/HawkesFlow-v0" not in gymnasium.registry:
        pytest.skip("mmgym/HawkesFlow-v0 is not registered")
    environment = gymnasium.make("mmgym/HawkesFlow-v0", **arguments)
    environment.reset(seed=0)
    environment.close()


def test_to_dict_is_json(several: Calibration) -> None:
    content = several.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert sorted(content) == ["H11 Late", "H11 Mid", "H15 Late", "H15 Mid"]
    value = content["H15 Mid"]["processes"]["MO_BUY"]["decay"]["value"]
    assert value == several.groups["H15", "Mid"].processes["MO_BUY"].decay.value


def test_summary_says_how_well_the_model_holds(several: Calibration, late: ProductFit) -> None:
    assert len(several.summary().splitlines()) == 4
    summary = late.summary()
    assert summary.startswith("H11 Late: ")
    assert "for 6 of 6 processes" in summary
    assert summary.count("not rejected") == 2
    assert late.rejected == [f"reach of {name} that does not depend on its move" for name in ("MO_BUY", "MO_SELL")]
    assert f"{late.processes['MO_BUY'].branching_ratio.value:.3g}" in summary


def test_plot_writes_a_png(several: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = several.plot(tmp_path / "fits.png", process="MO_SELL")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    with pytest.raises(ValueError, match="one of BID_UP"):
        several.plot(path, process="TRADE")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"mmgym\[plot\]"):
        several.plot(path)


# Data that do not identify the parameters


@pytest.mark.long
def test_explosive_orders_must_be_asked_for(tmp_path: Path) -> None:
    explosive = replace(DEFAULT, excitation=(1.2, 1.2, 1.2, 1.2, 4.0, 1.5), horizon=3.0)
    with pytest.raises(ValueError, match="branching ratio"):
        simulate_power_tapes(tmp_path, days=80, seed=3, parameters=explosive)
    paths = simulate_power_tapes(tmp_path, days=80, seed=3, parameters=explosive, allow_explosive=True)
    with pytest.raises(ValueError, match=r"H11 Late: MO_BUY: the estimates are explosive: .*branching ratio"):
        calibrate(paths)
    fit = calibrate(paths, allow_explosive=True).group()
    for name, truth in (("base_rate", 0.6), ("excitation", 4.0), ("decay", 3.0)):
        assert errors(getattr(fit.processes["MO_BUY"], name), truth) < 4.5
    with pytest.raises(ValueError, match="no stationary rate"):
        fit.kwargs()
    arguments = fit.kwargs(allow_explosive=True)
    assert arguments["allow_explosive"] is True
    assert arguments["initial_rates"] == arguments["base_rate"]


def test_a_type_without_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="H11 Late: BID_DOWN: all 1 windows are empty"):
        calibrate(write(tmp_path / "tape.csv"), allow_explosive=True)


def test_orders_that_do_not_go_beyond_the_first_level_are_named(tmp_path: Path) -> None:
    lines = [*HAND_LINES, "7,1.95,ASK_UP,3480,3534,,1", "8,1.96,BID_DOWN,3474,3534,,1"]
    lines[6] = lines[6].replace("3525", "3510")
    with pytest.raises(ValueError, match="H11 Late: MO_BUY: no market order goes on beyond"):
        calibrate(write(tmp_path / "tape.csv", lines), allow_explosive=True)


def test_empty_days_count(paths: list[Path], tmp_path: Path) -> None:
    about = json.loads(side_file(paths[0]).read_text())
    empty = tmp_path / "empty.csv"
    empty.write_text(HAND_LINES[0] + "\n")
    side_file(empty).write_text(json.dumps(about | {"delivery_date": "2016-01-01"}))
    few = calibrate(paths[:3]).group()
    more = calibrate([*paths[:3], empty], allow_explosive=True).group()
    for name in EVENT_TYPES:
        here, there = few.processes[name].poisson.rate, more.processes[name].poisson.rate
        assert there.value == pytest.approx(0.75 * here.value)
        assert more.impacts[name].value == pytest.approx(few.impacts[name].value)


def test_tapes_that_do_not_go_together_are_refused(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tapes"):
        calibrate([])
    with pytest.raises(ValueError, match=r"are both of H11 Late on 2015-04-01"):
        calibrate([paths[0], paths[1], write(tmp_path / "again.csv")])
    with pytest.raises(ValueError, match=r"coarse\.csv: its tick is 0.1, that of .* is 0.01"):
        calibrate([paths[0], write(tmp_path / "coarse.csv", tick=0.1, delivery_date="2016-01-01")])


def test_two_events_of_one_type_at_one_time_are_refused(tmp_path: Path) -> None:
    lines = [*HAND_LINES[:3], "2,0.4,ASK_DOWN,3480,3505,,1"]
    path = write(tmp_path / "tape.csv", lines)
    assert len(read_power_tape(path).events) == 3  # a backtest has no trouble with it
    lines = [*lines, "3,0.5,BID_UP,3481,3505,,1", "4,0.6,BID_DOWN,3480,3505,,1", "5,0.7,ASK_UP,3480,3506,,1"]
    path = write(tmp_path / "tape.csv", lines)
    with pytest.raises(ValueError, match=r"tape.csv, line 4, column 't_min': 0.4 is not allowed; no two ASK_DOWN"):
        calibrate(path, allow_explosive=True)


def test_generator_arguments_are_refused(tmp_path: Path) -> None:
    for arguments, message in (
        ({"product": "H99"}, "no illustrative set 'H99'"),
        ({"window": "Early"}, "window = 'Early'"),
        ({"days": 0}, "days = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_power_tapes(tmp_path, **arguments)  # type: ignore[arg-type]


# Wrong files: the message names file, line and column


@pytest.mark.parametrize(
    ("line", "row", "column", "rule"),
    [
        (3, "0,0.4,ASK_DOWN,3480,3510,,1.0", "seq", "must rise"),
        (3, "0.5,0.4,ASK_DOWN,3480,3510,,1.0", "seq", "whole number"),
        (3, ",0.4,ASK_DOWN,3480,3510,,1.0", "seq", "needs a number"),
        (3, "1,0.1,ASK_DOWN,3480,3510,,1.0", "t_min", "must not fall"),
        (3, "1,2.1,ASK_DOWN,3480,3510,,1.0", "t_min", "between 0 and the horizon, 2 min"),
        (3, "1,,ASK_DOWN,3480,3510,,1.0", "t_min", "needs a number"),
        (3, "1,nan,ASK_DOWN,3480,3510,,1.0", "t_min", "needs a number"),
        (2, "0,-0.1,MO_BUY,3480,3520,3520,5.0", "t_min", "between 0 and the horizon"),
        (3, "1,0.4,ASK_SIDEWAYS,3480,3510,,1.0", "type", "one of BID_UP"),
        (3, "1,0.4,,3480,3510,,1.0", "type", "one of BID_UP"),
        (3, "1,0.4,ASK_DOWN,3480,3480,,1.0", "best_bid", "crossed book"),
        (3, "1,0.4,ASK_DOWN,3480,3470,,1.0", "best_bid", "crossed book"),
        (3, "1,0.4,ASK_DOWN,3480,3510.5,,1.0", "best_ask", "whole number"),
        (3, "1,0.4,ASK_DOWN,3480,,,1.0", "best_ask", "needs a number"),
        (3, "1,0.4,ASK_DOWN,3480,3530,,1.0", "best_ask", "must not make the best_ask rise"),
        (3, "1,0.4,ASK_DOWN,3481,3510,,1.0", "best_bid", "leaves the best_bid as it was"),
        (3, "1,0.4,ASK_UP,3480,3510,,1.0", "best_ask", "must not make the best_ask fall"),
        (3, "1,0.4,BID_UP,3470,3520,,1.0", "best_bid", "must not make the best_bid fall"),
        (3, "1,0.4,BID_DOWN,3490,3520,,1.0", "best_bid", "must not make the best_bid rise"),
        (3, "1,0.4,BID_DOWN,3470,3519,,1.0", "best_ask", "leaves the best_ask as it was"),
        (4, "2,0.7,MO_SELL,3490,3510,3475,8.0", "best_bid", "must not make the best_bid rise"),
        (2, "0,0.2,MO_BUY,3480,3510,3520,5.0", "best_ask", "must not make the best_ask fall"),
        (3, "1,0.4,ASK_DOWN,3480,3510,3500,1.0", "worst_price", "other events an empty cell"),
        (4, "2,0.7,MO_SELL,3470,3510,,8.0", "worst_price", "market orders have one"),
        (4, "2,0.7,MO_SELL,3470,3510,3475.5,8.0", "worst_price", "whole number"),
        (4, "2,0.7,MO_SELL,3470,3510,3481,8.0", "worst_price", "trades at the best price before it, or beyond"),
        (2, "0,0.2,MO_BUY,3480,3520,3519,5.0", "worst_price", "trades at the best price before it, or beyond"),
        (2, "0,0.2,MO_BUY,3480,3520,3521,5.0", "worst_price", "beyond the best price that stands after it"),
        (4, "2,0.7,MO_SELL,3470,3510,3469,8.0", "worst_price", "beyond the best price that stands after it"),
        (3, "1,0.4,ASK_DOWN,3480,3510,,0", "volume", "positive"),
        (3, "1,0.4,ASK_DOWN,3480,3510,,", "volume", "needs a number"),
        (3, "1,0.4,ASK_DOWN,3480,3510,,x", "volume", "a finite number is"),
    ],
)
def test_tape_row_that_is_refused(tmp_path: Path, line: int, row: str, column: str, rule: str) -> None:
    path = write(tmp_path / "tape.csv", [*HAND_LINES[: line - 1], row, *HAND_LINES[line:]])
    with pytest.raises(ValueError, match=rule) as caught:
        calibrate(path)
    assert str(caught.value).startswith(f"{path}, line {line}, column {column!r}: ")


@pytest.mark.parametrize("column", TAPE_COLUMNS)
def test_tape_column_that_is_missing(tmp_path: Path, column: str) -> None:
    header = ",".join("other" if name == column else name for name in TAPE_COLUMNS)
    path = write(tmp_path / "tape.csv", [header, *HAND_LINES[1:]])
    with pytest.raises(ValueError, match=f"line 1, column '{column}': missing"):
        read_power_tape(path)


@pytest.mark.parametrize(
    ("changes", "entry", "rule"),
    [
        ({"start_bid": 3480.5}, "start_bid", "whole number of ticks"),
        ({"start_ask": None}, "start_ask", "whole number of ticks"),
        ({"start_ask": True}, "start_ask", "whole number of ticks"),
        ({"start_bid": 3520}, "start_bid", "crossed book"),
        ({"tick": 0}, "tick", "positive number"),
        ({"tick": "0.01"}, "tick", "positive number"),
        ({"horizon": float("inf")}, "horizon", "positive number"),
        ({"product": ""}, "product", "name of a product"),
        ({"delivery_date": "01.04.2015"}, "delivery_date", "a date such as"),
        ({"delivery_date": 20150401}, "delivery_date", "a date such as"),
        ({"window": "late"}, "window", "one of Mid, Late"),
    ],
)
def test_side_file_that_is_refused(tmp_path: Path, changes: dict[str, Any], entry: str, rule: str) -> None:
    path = write(tmp_path / "tape.csv", **changes)
    with pytest.raises(ValueError, match=rule) as caught:
        read_power_tape(path)
    assert str(caught.value).startswith(f"{side_file(path)}, entry {entry!r}: {changes[entry]!r} is not allowed; ")


def test_side_file_that_is_missing_or_no_object(tmp_path: Path) -> None:
    path = write(tmp_path / "tape.csv")
    content = json.loads(side_file(path).read_text())
    for name in content:
        side_file(path).write_text(json.dumps({key: value for key, value in content.items() if key != name}))
        with pytest.raises(ValueError, match=f"entry '{name}': missing is not allowed"):
            read_power_tape(path)
    for text, message in (("[1]", "JSON object"), ("{", "not a JSON file"), ("", "not a JSON file")):
        side_file(path).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_power_tape(path)
    side_file(path).unlink()
    with pytest.raises(FileNotFoundError, match=r"tape\.json"):
        read_power_tape(path)
