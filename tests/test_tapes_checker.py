"""Faults made on simulated tapes of known truth: named with their rows, left out, and the right numbers come out.

False alarms. Seeds are fixed. Estimates lie within 4.5 standard errors of the truth (7e-6 each, about 3e-4 for all).
Where a fault is left out as a whole, the numbers are those of the clean tape, to rounding.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmgym.agents.cli import main
from mmgym.calibration import glft, tick_spread
from mmgym.calibration.glft_simulation import simulate_tape
from mmgym.models.glft import Params
from mmgym.tapes import Selection, check_level1, read_recording, read_tape
from mmgym.tapes.level1 import TAPE_COLUMNS

RATE, DECAY, VOLATILITY = 2.0, 20.0, 0.05
DAY = 86_400.0


def market(**changes: float) -> Params:
    return Params.create(**({"fill_rate": RATE, "fill_decay": DECAY, "volatility": VOLATILITY} | changes))


def simulated(seed: int, seconds: float = 600.0, begin: float = 0.0, **changes: float) -> pd.DataFrame:
    tape = simulate_tape(market(**changes), seed=seed, duration=seconds)
    return tape.assign(time_s=(tape["time_s"] + begin).round(6))


def write(tape: pd.DataFrame, path: Path) -> Path:
    tape.to_csv(path, index=False)
    return path


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def names(fit: glft.Calibration) -> list[str]:
    return [finding.name for finding in fit.findings]


def text(fit: glft.Calibration, name: str) -> str:
    return next(finding.text for finding in fit.findings if finding.name == name)


def assert_true(fit: glft.Calibration, rate: float = RATE) -> None:
    for side in (fit.bid, fit.ask):
        for estimate, truth in ((side.log_fill_rate, np.log(rate)), (side.fill_decay, DECAY)):
            assert abs(estimate.value - truth) < 4.5 * estimate.stderr


def assert_same(fit: glft.Calibration, other: glft.Calibration) -> None:
    for mine, others in ((fit.bid, other.bid), (fit.ask, other.ask)):
        assert mine.fills == others.fills
        assert mine.fill_rate.value == pytest.approx(others.fill_rate.value, rel=1e-9)
        assert mine.fill_decay.value == pytest.approx(others.fill_decay.value, rel=1e-9)
    assert fit.mid.volatility.value == pytest.approx(other.mid.volatility.value, rel=1e-9)


def test_a_clean_tape_is_not_warned_of_and_its_law_is_recovered(tmp_path: Path) -> None:
    fit = glft.calibrate(write(simulated(1, 1800.0), tmp_path / "tape.csv"))
    assert names(fit) == []
    assert_true(fit)
    assert abs(fit.mid.volatility.value - VOLATILITY) < 4.5 * fit.mid.volatility.stderr


# Sessions, windows, gaps


def test_only_the_session_is_used(tmp_path: Path) -> None:
    """Two days: between 09:00 and 09:15 orders come at the rate asked for, before and after at four times that."""
    parts = []
    for day in (0, 1):
        begin = day * DAY + 9 * 3600.0
        parts += [
            simulated(3 * day, 100.0, begin - 100, fill_rate=4 * RATE),
            simulated(3 * day + 1, 900.0, begin),
            simulated(3 * day + 2, 100.0, begin + 900, fill_rate=4 * RATE),
        ]
    path = write(joined(*parts), tmp_path / "tape.csv")
    fit = glft.calibrate(path, selection=Selection(session="09:00-09:15"))
    assert fit.bid.exposure == pytest.approx(1800.0, abs=1e-6)
    assert "gaps" in names(fit)
    assert_true(fit)
    chain = check_level1(path, Selection(session="9:00-9:15"))
    assert chain.bounds.tolist() == [[32400.0, 33300.0], [DAY + 32400.0, DAY + 33300.0]]


def test_a_session_may_pass_midnight_and_be_that_of_a_place(tmp_path: Path) -> None:
    tape = simulated(5, 7200.0, 23 * 3600.0)
    over = check_level1(tape, Selection(session="23:30-00:30"))
    assert over.bounds.tolist() == [[23.5 * 3600, 24.5 * 3600]]
    with pytest.raises(ValueError, match="the stamps of this tape have no date"):
        check_level1(tape, Selection(session="09:30-16:00 America/New_York"))
    stamps = [1709908200 + 60 * step for step in range(-600, 2 * 1440)]  # 2024-03-08 14:30 UTC, 09:30 in New York
    rows = [f"x,ABC,{stamp}000000,{stamp}000000,1,10{number % 2}.01,100,1" for number, stamp in enumerate(stamps)]
    header = "exchange,symbol,timestamp,local_timestamp,ask_amount,ask_price,bid_price,bid_amount"
    path = tmp_path / "quotes.csv"
    path.write_text("\n".join([header, *rows]))
    recording = read_recording(path, Selection(session="09:30-16:00 America/New_York"))
    times = recording.tape["time_s"].to_numpy()
    starts = times[np.flatnonzero(np.diff(times, prepend=-np.inf) > 3600)]
    # the clocks go forward on March 10: the session begins an hour earlier in UTC
    assert starts.tolist() == [14.5 * 3600, DAY + 14.5 * 3600, 2 * DAY + 13.5 * 3600][: starts.size]
    assert starts.size >= 2


def test_a_window_begins_with_the_quotes_before_it(tmp_path: Path) -> None:
    tape = simulated(6, 700.0)
    window = Selection(start=300.05, end="600.05")
    checked = check_level1(tape, window)
    assert checked.bounds.tolist() == [[300.05, 600.05]]
    before = tape[(tape["event"] == "quote") & (tape["time_s"] < 300.05)].iloc[-1]
    assert checked.quotes[0].iloc[0][["bid", "ask"]].tolist() == before[["bid", "ask"]].tolist()
    fit = glft.calibrate(write(tape, tmp_path / "tape.csv"), selection=window)
    inside = tape[(tape["event"] == "trade") & tape["time_s"].between(300.05, 600.05)]
    assert fit.bid.fills == inside[inside["side"] == "sell"]["time_s"].nunique()
    assert fit.bid.exposure == pytest.approx(300.0)
    dated = Path(__file__).parent / "tapes" / "tardis_book_ticker.csv"
    cut = read_tape(dated, Selection(start="2024-03-01T09:30:01", end="2024-03-01 10:30:03+01:00"))
    assert cut["time_s"].tolist() == [34201.0, 34201.5, 34202.0, 34203.0]


def test_what_of_a_window_is_not_there_is_said() -> None:
    tape = simulated(6, 100.0, 34_200.0)
    first, last = tape["time_s"].iloc[[0, -1]]
    runs = f"the tape runs from {first:.10g} to {last:.10g} s"
    for arguments, begins in (
        ({"start": 172}, "start = 172 lies before its first event"),
        ({"start": 34_250, "end": "40000"}, "end = 40000 lies after its last event"),
        ({"start": 0.0, "end": 9e9}, "start = 0.0 lies before its first event, end = 9000000000.0 lies after its last"),
    ):
        checked = check_level1(tape, Selection(**arguments))
        (found,) = checked.findings
        assert found.name == "window"
        assert begins in found.text
        assert runs in found.text
        assert checked.bounds[0, 0] == max(first, arguments["start"])
    assert check_level1(tape, Selection(start=first, end=last)).findings == []
    for arguments in ({"end": 172}, {"start": last + 1.0}):
        with pytest.raises(ValueError, match=f"nothing lies there; {runs}"):
            check_level1(tape, Selection(**arguments))
    quiet = tape[~tape["time_s"].between(34_240, 34_260)]
    with pytest.raises(ValueError, match=f"no events in the chosen window or session; {runs}"):
        check_level1(quiet, Selection(start=34_245, end=34_255))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gap": 0.0}, "gap = 0.0 is not allowed"),
        ({"session": "9-17"}, "it must be HH:MM-HH:MM"),
        ({"session": "09:00-25:00"}, "it must be HH:MM-HH:MM"),
        ({"session": "09:00-09:00"}, "it must be HH:MM-HH:MM"),
        ({"session": "09:00-17:00 Mars/Olympus"}, "is no time zone"),
        ({"clock": "wall"}, "one of exchange, local"),
        ({"trade_lag": np.inf}, "finite"),
        ({"start": "soon"}, "a number of seconds, or a time such as"),
        ({"start": "2024-01-01"}, "the stamps of this tape have no date"),
        ({"start": 1e6}, "nothing lies there; the tape runs from 0 to 60 s"),
        ({"session": "12:00-13:00"}, "nothing lies there"),
        ({"symbol": "X"}, None),
    ],
)
def test_selections_are_refused(arguments: dict[str, object], message: str | None) -> None:
    tape = simulated(7, 60.0)
    if message is None:
        check_level1(tape, Selection(**arguments))
        return
    with pytest.raises(ValueError, match=message):
        check_level1(tape, Selection(**arguments))


def test_pauses_longer_than_a_gap_are_left_out(tmp_path: Path) -> None:
    """A feed that is lost for half a minute again and again: too often to be found, and named by its length."""
    tape = simulated(8, 1800.0)
    lost = (tape["time_s"] % 60) < 30
    path = write(tape[~lost], tmp_path / "tape.csv")
    fit = glft.calibrate(path, selection=Selection(gap=20.0))
    assert fit.bid.exposure == pytest.approx(900.0, rel=0.02)
    assert_true(fit)
    assert "29 gaps" in text(fit, "gaps")


def test_files_are_joined_by_their_dates_or_as_days(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "tapes"
    second = tmp_path / "second.csv"
    lines = (folder / "tardis_book_ticker.csv").read_text()
    second.write_text(lines.replace("17092854", "17093718"))  # a day later
    tape = read_tape([second, folder / "tardis_book_ticker.csv"])
    assert tape["time_s"].tolist()[:1] + tape["time_s"].tolist()[5:6] == [34200.0, DAY + 34200.0]
    days = [write(simulated(seed), tmp_path / f"{seed}.csv") for seed in (1, 2)]
    fit = glft.calibrate(days)
    assert {"days", "gaps"} <= set(names(fit))
    assert fit.bid.exposure == pytest.approx(1200.0, abs=1.0)
    assert_true(fit)
    alone = [glft.calibrate(day) for day in days]
    assert fit.bid.fills == sum(one.bid.fills for one in alone)
    later = write(simulated(2, begin=600.2), tmp_path / "later.csv")
    assert "gaps" not in names(glft.calibrate([days[0], later]))


def test_the_same_events_twice_are_refused_or_count_once(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "tapes"
    tape = simulated(9)
    path = write(tape, tmp_path / "a.csv")
    with pytest.raises(ValueError, match="are the same file twice"):
        read_tape([path, path])
    with pytest.raises(ValueError, match=r"both have trades from 34200\.25 s to 34202 s"):
        read_tape([folder / name for name in ("binance_trades.csv", "binance_aggTrades.csv", "binance_bookTicker.csv")])
    doubled = tape.loc[tape.index.repeat(2)]
    fit = glft.calibrate(write(doubled, tmp_path / "b.csv"))
    assert names(fit) == ["doubled"]
    assert "every trade stands twice or more" in text(fit, "doubled")
    assert_same(fit, glft.calibrate(path))


# Rows that say nothing


def faulty(tape: pd.DataFrame, every: int, **cells: object) -> tuple[pd.DataFrame, int]:
    """Repeats of one row in so many, a microsecond later, with other cells; the line of the first."""
    event = "trade" if {"size", "side", "price"} & set(cells) else "quote"
    own = tape[tape["event"] == event].iloc[every // 2 :: every]
    wrong = own.assign(**cells, time_s=own["time_s"] + 1e-6)
    mixed = joined(tape, wrong).sort_values("time_s", kind="stable")
    place = int(np.flatnonzero(mixed.index >= len(tape))[0])
    return mixed, place + 2


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("locked_book", {"bid": 100.0, "ask": 100.0}),
        ("crossed_book", {"bid": 100.02, "ask": 100.0}),
        ("empty_book", {"bid": np.nan, "bid_size": np.nan}),
        ("zero_size", {"ask_size": 0.0}),
        ("zero_size", {"size": 0.0}),
        ("no_side", {"side": ""}),
        ("empty_trade", {"price": np.nan}),
    ],
)
def test_rows_that_say_nothing_are_named_and_left_out(name: str, cells: dict[str, object], tmp_path: Path) -> None:
    tape = simulated(10)
    mixed, line = faulty(tape, 100, **cells)
    fit = glft.calibrate(write(mixed, tmp_path / "tape.csv"))
    assert names(fit) == [name]
    assert f"(line {line}, line " in text(fit, name)
    assert_same(fit, glft.calibrate(write(tape, tmp_path / "clean.csv")))
    many, _ = faulty(tape, 5, **cells)
    with pytest.raises(ValueError, match=r"tape\.csv, line \d+, column '.*': .* one in twenty is left out"):
        glft.calibrate(write(many, tmp_path / "tape.csv"))


def test_a_book_that_stays_empty_is_not_observed(tmp_path: Path) -> None:
    tape = simulated(11, 1800.0)
    quiet = tape["time_s"].between(600.0, 900.0)
    empty = pd.DataFrame({"time_s": [600.0], "event": "quote", "ask": 100.0, "ask_size": 1.0, "side": ""})
    mixed = joined(tape[~quiet], empty).sort_values("time_s", kind="stable")[list(TAPE_COLUMNS)]
    fit = glft.calibrate(write(mixed, tmp_path / "tape.csv"))
    assert names(fit) == ["empty_book", "empty_book", "gaps"]
    assert fit.bid.exposure == pytest.approx(1500.0, abs=1.0)
    assert_true(fit)


def test_stamps_out_of_order_are_set_right_or_refused(tmp_path: Path) -> None:
    tape = simulated(12)
    clean = glft.calibrate(write(tape, tmp_path / "clean.csv"))
    order = np.arange(len(tape))
    places = np.arange(50, len(tape) - 50, 100)
    places = places[(np.diff(tape["time_s"])[places] > 1e-4) & (np.diff(tape["time_s"])[places] < 0.5)]
    order[places], order[places + 1] = places + 1, places
    fit = glft.calibrate(write(tape.iloc[order], tmp_path / "tape.csv"))
    assert names(fit) == ["unordered"]
    assert f"{places.size} rows stand up to" in text(fit, "unordered")
    assert f"(first: line {places[0] + 3})" in text(fit, "unordered")
    assert_same(fit, clean)
    with pytest.raises(ValueError, match="time must not fall from one row to the next"):
        glft.calibrate(write(joined(tape.iloc[500:], tape.iloc[:500]), tmp_path / "tape.csv"))


def test_capitals_quotation_marks_blanks_and_na_are_simply_read(tmp_path: Path) -> None:
    tape = simulated(13, 120.0)
    lines = write(tape, tmp_path / "clean.csv").read_text().splitlines()
    lines[0] = ",".join(f'"{name.upper()}"' for name in lines[0].split(","))
    lines[1:] = [line.replace("trade", "Trade").replace(",,", ",NA,").replace(",,", ",NaN,") for line in lines[1:]]
    lines[1:] = [
        line.replace("buy", '"BUY"').removesuffix(",") + ("," if line.endswith(",") else "") for line in lines[1:]
    ]
    lines.insert(20, "")
    lines.insert(40, ",,,,,,,,")
    (tmp_path / "tape.csv").write_text("\r\n".join(lines))
    pd.testing.assert_frame_equal(read_tape(tmp_path / "tape.csv"), read_tape(tmp_path / "clean.csv"))


# Clocks


@pytest.mark.parametrize("lag", [0.003, 0.0125])
def test_late_trades_are_named_and_set_right(lag: float, tmp_path: Path) -> None:
    """Quotes that jump at every order, for a while: late trades are seen against the quotes they caused."""
    tape = moving(14)
    clean = glft.calibrate(write(tape, tmp_path / "clean.csv"))
    trade = tape["event"] == "trade"
    moved = tape.assign(time_s=(tape["time_s"] + lag * trade).round(6)).sort_values("time_s", kind="stable")
    path = write(moved, tmp_path / "tape.csv")
    with pytest.raises(
        ValueError, match=rf"late trades: .*if trades were {1000 * lag:g} ms earlier.*trade_lag = {lag:g}"
    ):
        glft.calibrate(path)
    fit = glft.calibrate(path, selection=Selection(trade_lag=lag))
    assert names(fit) == names(clean)
    assert fit.bid.fill_decay.value == pytest.approx(clean.bid.fill_decay.value, rel=0.01)
    assert fit.ask.fill_rate.value == pytest.approx(clean.ask.fill_rate.value, rel=0.01)


def test_early_trades_are_named(tmp_path: Path) -> None:
    tape = moving(15)
    early = tape.assign(time_s=(tape["time_s"] + 1.0 - 0.5 * (tape["event"] == "trade")).round(6))
    path = write(early.sort_values("time_s", kind="stable"), tmp_path / "tape.csv")
    with pytest.raises(ValueError, match=r"early trades: .*if trades were 500 ms later"):
        glft.calibrate(path)
    assert [finding.name for finding in check_level1(path).findings] == ["early_trades"]
    later = check_level1(path, Selection(trade_lag=-0.5))
    assert later.findings == []
    assert later.orders["reach"].to_numpy() == pytest.approx(check_level1(tape).orders["reach"].to_numpy(), nan_ok=True)


def moving(seed: int) -> pd.DataFrame:
    """Orders at 1 per s move the quotes to where they traded, to stay for at least 50 ms; mids step by 3 ticks."""
    random = np.random.default_rng(seed)
    times = np.round(np.cumsum(0.05 + random.exponential(1.0, 800)), 3)
    signs = random.choice([-1, 1], times.size)
    steps = np.floor(random.exponential(5.0, times.size)).astype(int)
    level = 10_000 + np.cumsum(signs * (steps + 1))
    before = np.append(10_000, level[:-1])
    touch = np.where(signs > 0, before + 1, before)
    quotes = pd.DataFrame({"time_s": np.append(0.0, times), "event": "quote", "bid": np.append(10_000, level) / 100})
    quotes = quotes.assign(ask=(np.append(10_000, level) + 1) / 100, bid_size=1.0, ask_size=1.0, side="")
    worst = touch + signs * steps
    trades = [
        pd.DataFrame({"time_s": times, "event": "trade", "price": price / 100, "size": 1.0}) for price in (touch, worst)
    ]
    trades = [one.assign(side=np.where(signs > 0, "buy", "sell")) for one in trades]
    tape = joined(*trades, quotes)
    tape["order"] = (tape["event"] == "quote").astype(int)
    return tape.sort_values(["time_s", "order"], kind="stable", ignore_index=True)[list(TAPE_COLUMNS)]


# The command line


def test_check_convert_and_calibrate_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = Path(__file__).parent / "tapes"
    pair = [str(folder / name) for name in ("lobster_message.csv", "lobster_orderbook.csv")]
    assert main(["tape", "convert", *pair, str(tmp_path / "tape.csv.gz")]) == 0
    shown = capsys.readouterr().out
    assert "(LOBSTER): 7 rows, 5 quotes and 2 trades, from 34200 to 34203.125 s" in shown
    assert "WARNING (hidden_trades): " in shown
    first = gzip.decompress((tmp_path / "tape.csv.gz").read_bytes()).decode().splitlines()
    assert first[:2] == [",".join(TAPE_COLUMNS), "34200.0,quote,99.99,5.0,100.01,7.0,,,"]
    pd.testing.assert_frame_equal(read_tape(tmp_path / "tape.csv.gz"), read_tape(pair))
    assert main(["tape", "check", str(tmp_path / "tape.csv.gz"), "--output", str(tmp_path / "sessions.csv")]) == 0
    shown = capsys.readouterr().out
    assert "prices are multiples of 0.01; median spread 2 of them" in shown
    assert "nothing is wrong with it" in shown
    sessions = pd.read_csv(tmp_path / "sessions.csv")
    assert sessions.loc[0, ["seconds", "quote_stamps", "trades", "market_orders"]].tolist() == [3.125, 5, 2, 2]
    for out, problem in (
        ("tape.txt", "must end in .csv or .csv.gz"),
        ("tape.csv.gz", "one of the files that are read"),
    ):
        assert main(["tape", "convert", str(tmp_path / "tape.csv.gz"), str(tmp_path / out)]) == 2
        assert problem in capsys.readouterr().err
    assert main(["tape", "formats"]) == 0
    assert "LOBSTER" in capsys.readouterr().out
    assert main(["tape", "check", str(folder / "databento_trades.csv")]) == 0
    shown = capsys.readouterr().out
    assert "0 quotes and 2 trades" in shown
    assert "WARNING (no_quotes): the files hold no quotes" in shown
    seconds = simulated(16, 1000.0)
    coarse = write(seconds.assign(time_s=np.floor(seconds["time_s"])), tmp_path / "coarse.csv")
    assert main(["tape", "check", str(coarse)]) == 0
    shown = capsys.readouterr().out
    assert "stamps of trades are multiples of 1 s" in shown
    assert "WARNING (time_unit): all times are whole numbers" in shown
    assert "REFUSED where distances of orders from the mid are fitted" in shown
    assert "coarse clock: time stamps are multiples of 1 s" in shown


@pytest.mark.long
def test_simulated_tapes_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = ["--set", "fill_rate=2", "--set", "fill_decay=20", "--set", "volatility=0.05", "--duration", "800"]
    path = str(tmp_path / "glft.csv.gz")
    assert main(["simulate", "glft", path, "--seed", "3", *own]) == 0
    assert f"written: {path}" in capsys.readouterr().out
    pd.testing.assert_frame_equal(read_tape(path), simulate_tape(market(), seed=3, duration=800.0))
    whole = glft.calibrate(path)
    assert_true(whole)
    output = str(tmp_path / "fit.csv")
    window = ["--start", "100", "--end", "700", "--gap", "60", "--session", "00:00-12:00", "--trade-lag", "0"]
    assert main(["calibrate", "glft", path, *window, "--output", output]) == 0
    assert "in 600 s" in capsys.readouterr().out
    chain, log = str(tmp_path / "chain.csv"), str(tmp_path / "log.csv")
    assert main(["simulate", "tick_spread", chain, "--duration", "900", "--own-quotes", log]) == 0
    capsys.readouterr()
    assert main(["calibrate", "tick_spread", chain, "--own-quotes", log, "--session", "00:05-00:10"]) == 0
    assert "(from 300 to 600)" in capsys.readouterr().out
    assert tick_spread.calibrate(chain).end == pytest.approx(900.0)
    assert main(["simulate", "hawkes_power", str(tmp_path / "days"), "--days", "2", "--set", "horizon=30"]) == 0
    days = sorted(str(day) for day in (tmp_path / "days").glob("*.csv"))
    assert len(days) == 2
    assert main(["simulate", "hawkes_power", str(tmp_path / "days"), "--set", "speed=1"]) == 2
    assert "speed: no parameter of these tapes" in capsys.readouterr().err
    for arguments in (["--spread", "0"], ["--tick", "0"], ["--duration", "nan"], ["--set", "price=geometric"]):
        assert main(["simulate", "glft", str(tmp_path / "x.csv"), *arguments]) == 2
        assert "must be" in (said := capsys.readouterr().err) or "only an arithmetic mid" in said
