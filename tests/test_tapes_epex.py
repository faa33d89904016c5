"""The book of the power market rebuilt from orders and trades, against events worked by hand.

H11 of 2024-03-01 is delivered from 09:00 UTC: Mid runs from 06:30 to 07:30, Late from 07:30 to 08:30.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from mmgym.agents.cli import main
from mmgym.calibration.hawkes_power_tape import read_power_tape, read_power_tapes
from mmgym.tapes import read_tape
from mmgym.tapes.epex import PowerWindow, read_windows

FOLDER = Path(__file__).parent / "tapes"
ORDERS, OLD_ORDERS, TRADES = (FOLDER / f"epex_{name}.csv" for name in ("orders", "orders_2020", "trades"))
COLUMNS = ["t_min", "type", "best_bid", "best_ask", "worst_price", "volume"]
MID = [
    [10.0, "BID_UP", 5020, 5100, None, 3.0],
    [20.0, "MO_BUY", 5020, 5150, 5100, 8.0],  # takes the whole of 51.00
    [20.0, "BID_UP", 5120, 5150, None, 4.0],  # and what is left of it stands
    [30.0, "BID_DOWN", 5020, 5150, None, 3.0],
    [40.00005, "MO_SELL", 5000, 5150, 5000, 5.0],  # 3 at 50.20 and 2 at 50.00, three milliseconds after its entry
]
LATE = [
    [5.0, "ASK_DOWN", 5000, 5130, None, 5.0],
    [10.0, "ASK_DOWN", 5000, 5110, None, 1.0],
    [15.0, "ASK_UP", 5000, 5130, None, 5.0],  # the end of its validity
    [30.0, "MO_SELL", 5000, 5130, 5000, 2.0],  # by somebody elsewhere: a single leg, whose order stood
]


def assert_events(window: PowerWindow, expected: list[list[object]]) -> None:
    events = window.events
    assert events["seq"].tolist() == list(range(len(expected)))
    shown = [[None if cell != cell else cell for cell in row] for row in events[COLUMNS].to_numpy().tolist()]
    assert shown == [pytest.approx(row) if row[4] is None else row for row in expected]


@pytest.mark.parametrize("orders", [ORDERS, OLD_ORDERS], ids=["since 2021", "before"])
def test_the_book_is_rebuilt(orders: Path) -> None:
    mid, late = read_windows([TRADES, orders])
    assert_events(mid, MID)
    assert_events(late, LATE)
    assert mid.about == {
        "start_bid": 5000, "start_ask": 5100, "tick": 0.01, "product": "H11", "delivery_date": "2024-03-01",
        "window": "Mid", "horizon": 60.0,
    }  # fmt: skip
    assert (late.about["start_bid"], late.about["start_ask"]) == (5000, 5150)
    assert [finding.name for finding in mid.findings] == ["no_book_order"] * 2


def test_windows_follow_the_gate_and_prices_the_tick() -> None:
    mid, late = read_windows([ORDERS, TRADES], gate_closure=60.0, length=30.0, tick=0.05)
    assert mid.events["t_min"].tolist() == pytest.approx([0.0, 10.00005])  # from 07:00
    assert late.events["t_min"].tolist() == [5.0, 10.0, 15.0]  # from 07:30
    assert late.events["best_ask"].tolist() == [1026, 1022, 1026]
    with pytest.raises(ValueError, match="no window of H12 at whose start"):
        read_windows([ORDERS, TRADES], product="H12")
    with pytest.raises(ValueError, match="no window at whose start both sides"):
        read_windows([ORDERS, TRADES], gate_closure=300.0)
    with pytest.raises(ValueError, match=r"tick = 0\.0 is not allowed"):
        read_windows([ORDERS, TRADES], tick=0.0)


def test_quarters_have_their_own_names(tmp_path: Path) -> None:
    paths = []
    for path in (ORDERS, TRADES):
        text = path.read_text().replace("2024-03-01T10:00:00Z", "2024-03-01T09:15:00Z").replace("Hour", "Quarter_Hour")
        paths.append(tmp_path / path.name)
        paths[-1].write_text(text)
    assert [window.name for window in read_windows(paths)] == ["Q41_Mid_2024-03-01", "Q41_Late_2024-03-01"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",A,2024-03-01T06:40", ",Z,2024-03-01T06:40", r"line 6, column 'actioncode': 'z' is not one of"),
        ("o4,XBID_Hour_Power,BUY", "o4,XBID_Hour_Power,BY", r"line 6, column 'side': 'by' is not one of"),
        ("EUR,50.20,MW,3.0", "EUR,x,MW,3.0", r"line 6, column 'price': 'x' is not allowed"),
        ("2024-03-01T06:40:00.000Z,,EUR", "yesterday,,EUR", r"line 6: 'yesterday' is no time"),
        ("2024-03-01T06:40:00.000Z,,EUR", "0001-01-01,,EUR", r"line 6: '0001-01-01' is no time"),
    ],
)  # fmt: skip
def test_damaged_orders_name_line_and_column(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = ORDERS.read_text()
    assert old in text
    path = tmp_path / "orders.csv"
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        read_windows([path, TRADES])
    assert str(path) in str(caught.value)


def test_what_is_lacking_is_named() -> None:
    with pytest.raises(ValueError, match="files of trades are lacking"):
        read_windows([ORDERS])
    with pytest.raises(ValueError, match="neither orders nor trades of EPEX"):
        read_windows([ORDERS, FOLDER / "mmgym.csv"])
    with pytest.raises(ValueError, match="no level-1 tape: mmgym tape convert writes"):
        read_tape([ORDERS, TRADES])


def test_the_command_writes_tapes_that_are_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["tape", "convert", str(ORDERS), str(TRADES), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "H11_Mid_2024-03-01.csv" in shown
    assert "WARNING (no_book_order): 1 orders are blocks" in shown
    written = sorted(tmp_path.glob("*.csv"))
    tapes = [read_power_tape(path) for path in written]
    direct = {tape.window: tape for tape in read_power_tapes([ORDERS, TRADES])}
    for tape in tapes:
        pd.testing.assert_frame_equal(tape.events, direct[tape.window].events, check_dtype=False)
        assert json.loads(tape.path.with_suffix(".json").read_text())["start_ask"] == direct[tape.window].start_ask
    assert direct["Mid"].findings
    assert main(["tape", "convert", str(ORDERS), str(TRADES), str(tmp_path), "--session", "09:00-10:00"]) == 2
    assert "not for the power market" in capsys.readouterr().err
