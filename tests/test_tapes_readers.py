"""One story of seven events, told in the layout of every vendor, is one tape; what cannot be read says why.

The story: quotes, an order to buy that empties the ask, a better bid, an order to sell into it, a better ask.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmgym.tapes import Selection, read_recording, read_tape
from mmgym.tapes.level1 import TAPE_COLUMNS
from mmgym.tapes.order_book import LevelBook

FOLDER = Path(__file__).parent / "tapes"
RECORDINGS = Path(__file__).parents[2] / "shared" / "data"
MIDNIGHT = 1_709_251_200 * 10**9  # 2024-03-01
NONE = np.nan
STORY = pd.DataFrame(
    [
        (34200.0, "quote", 99.99, 5.0, 100.01, 7.0, NONE, NONE, ""),
        (34200.25, "trade", NONE, NONE, NONE, NONE, 100.01, 7.0, "buy"),
        (34200.25, "quote", 99.99, 5.0, 100.02, 4.0, NONE, NONE, ""),
        (34201.5, "quote", 100.00, 3.0, 100.02, 4.0, NONE, NONE, ""),
        (34202.0, "trade", NONE, NONE, NONE, NONE, 100.00, 1.0, "sell"),
        (34202.0, "quote", 100.00, 2.0, 100.02, 4.0, NONE, NONE, ""),
        (34203.125, "quote", 100.00, 2.0, 100.01, 6.0, NONE, NONE, ""),
    ],
    columns=list(TAPE_COLUMNS),
)


def files(*names: str) -> list[Path]:
    return [FOLDER / name for name in names]


def assert_story(tape: pd.DataFrame, *, late: float = 0.0) -> None:
    """The story, all of it by so many seconds later."""
    expected = STORY.assign(time_s=STORY["time_s"] + late)
    pd.testing.assert_frame_equal(tape, expected, check_exact=late == 0, rtol=1e-13, atol=1e-8)


def names(tape: pd.DataFrame) -> list[str]:
    return [finding.name for finding in tape.attrs["findings"]]


WHOLE = {
    "mmgym": ["mmgym.csv"],
    "futures": ["binance_bookTicker.csv", "binance_aggTrades.csv"],
    "spot": ["binance_spot_aggTrades_no_header.csv", "binance_bookTicker_no_header.csv"],
    "spot trades": ["binance_bookTicker.csv", "binance_spot_trades_no_header.csv"],
    "stream": ["binance_futures_stream.txt"],
    "depth": ["binance_depth_stream.txt"],
    "lobster": ["lobster_orderbook.csv", "lobster_message.csv"],
    "mbp-1": ["databento_mbp-1.csv"],
    "mbp-1 integers": ["databento_mbp-1_integers.csv"],
    "tardis": ["tardis_trades.csv", "tardis_book_ticker.csv"],
    "tardis snapshots": ["tardis_trades.csv", "tardis_book_snapshot_5.csv"],
}
FORMATS = {"mmgym": "mmgym", "lobster": "LOBSTER", "futures": "Binance", "spot": "Binance", "spot trades": "Binance"}
FORMATS |= {"stream": "Binance stream", "depth": "Binance stream", "mbp-1": "Databento", "mbp-1 integers": "Databento"}
FORMATS |= {"tardis": "Tardis", "tardis snapshots": "Tardis"}
SAID = {"stream": ["off_book"], "lobster": ["hidden_trades"]}


@pytest.mark.parametrize("layout", list(WHOLE))
def test_every_layout_tells_the_story(layout: str) -> None:
    tape = read_tape(files(*WHOLE[layout]))
    assert_story(tape)
    assert tape.attrs["formats"] == [FORMATS[layout]]
    dated = layout not in ("mmgym", "lobster")
    assert tape.attrs["origin"] == ("2024-03-01 00:00:00+00:00" if dated else None)
    assert names(tape) == SAID.get(layout, [])


@pytest.mark.parametrize("layout", list(WHOLE))
def test_what_a_file_is_called_and_packed_with_does_not_matter(layout: str, tmp_path: Path) -> None:
    packed = []
    for number, path in enumerate(files(*WHOLE[layout])):
        packed.append(tmp_path / f"file{number}")
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    assert_story(read_tape(packed))
    with zipfile.ZipFile(tmp_path / "all.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files(*WHOLE[layout]):
            archive.write(path, path.name)
    assert_story(read_tape(tmp_path / "all.bin"))


def test_spot_streams_have_local_times_only() -> None:
    tape = read_tape(files("binance_spot_stream.txt"))
    assert_story(tape, late=0.004)
    assert names(tape) == ["local_clock"]


def test_spot_trades_are_not_put_behind_the_quotes_that_they_cause(tmp_path: Path) -> None:
    """A trade that comes 30 ms later than others, after its quotes, stands before them."""
    text = (FOLDER / "binance_spot_stream.txt").read_text()
    late = text.replace(
        "1709285402004000000 " + '{"stream":"abcusd@trade"', "1709285402034000000 " + '{"stream":"abcusd@trade"'
    )
    assert late != text
    (tmp_path / "stream").write_text(late)
    assert_story(read_tape(tmp_path / "stream"), late=0.004)


@pytest.mark.parametrize("layout", ["stream", "depth", "tardis", "mbp-1", "mbp-1 integers"])
def test_the_local_clock_can_be_chosen(layout: str) -> None:
    tape = read_tape(files(*WHOLE[layout]), Selection(clock="local"))
    assert_story(tape, late=1e-4 if layout.startswith("mbp") else 0.004)


def test_trades_of_makers_are_trades() -> None:
    tape = read_tape(files("binance_trades.csv", "binance_bookTicker.csv"))
    assert tape.loc[tape["event"] == "trade", "size"].tolist() == [5.0, 2.0, 1.0]
    pd.testing.assert_frame_equal(tape[tape["event"] == "quote"].reset_index(drop=True), quotes_of(STORY))


def quotes_of(tape: pd.DataFrame) -> pd.DataFrame:
    return tape[tape["event"] == "quote"].reset_index(drop=True)


def test_the_book_of_tbbo_stands_before_its_trade() -> None:
    tape = read_tape(files("databento_tbbo.csv"))
    assert tape["event"].tolist() == ["quote", "trade", "quote", "trade"]
    assert tape["time_s"].tolist() == [34200.249999999, 34200.25, 34201.999999999, 34202.0]
    assert tape.loc[0, "ask"] == 100.01
    assert tape.loc[2, ["bid", "bid_size"]].tolist() == [100.0, 3.0]
    assert names(tape) == ["quotes_at_trades"]


def test_trades_alone_are_read() -> None:
    tape = read_tape(files("databento_trades.csv"))
    assert tape[["time_s", "price", "size", "side"]].to_numpy().tolist() == [
        [34200.25, 100.01, 7.0, "buy"],
        [34202.0, 100.0, 1.0, "sell"],
    ]


# hftbacktest

EVENT = np.dtype([(name, "<u8" if name in ("ev", "order_id") else "<i8") for name in ("ev", "exch_ts", "local_ts")])
EVENT = np.dtype([*EVENT.descr, ("px", "<f8"), ("qty", "<f8"), ("order_id", "<u8"), ("ival", "<i8"), ("fval", "<f8")])
BOTH, BUY, SELL = (1 << 31) | (1 << 30), 1 << 29, 1 << 28


def npz(path: Path, rows: list[tuple[int, int, float, float, float, int]]) -> Path:
    """A file of (code, side, second, price, size, order)."""
    stamps = [MIDNIGHT + round(row[2] * 10**9) for row in rows]
    data = [
        (BOTH | side | code, stamp, stamp + 4_000_000, price, size, order, 0, 0.0)
        for (code, side, _, price, size, order), stamp in zip(rows, stamps, strict=True)
    ]
    np.savez_compressed(path, data=np.array(data, dtype=EVENT))
    return path


LEVELS = [
    (3, BUY, 34200.0, 99.98, 0.0, 0), (3, SELL, 34200.0, 100.02, 0.0, 0), (4, BUY, 34200.0, 99.99, 5.0, 0),
    (4, BUY, 34200.0, 99.98, 9.0, 0), (4, SELL, 34200.0, 100.02, 4.0, 0), (4, SELL, 34200.0, 100.01, 7.0, 0),
    (2, BUY, 34200.25, 100.01, 7.0, 0), (1, SELL, 34200.25, 100.01, 0.0, 0), (1, BUY, 34201.0, 99.98, 8.0, 0),
    (1, BUY, 34201.5, 100.0, 3.0, 0), (2, SELL, 34202.0, 100.0, 1.0, 0), (1, BUY, 34202.0, 100.0, 2.0, 0),
    (5, SELL, 34203.125, 100.01, 6.0, 0),
]  # fmt: skip
ORDERS = [
    (3, 0, 34200.0, 0.0, 0.0, 0), (10, BUY, 34200.0, 99.99, 2.0, 1), (10, BUY, 34200.0, 99.99, 3.0, 2),
    (10, SELL, 34200.0, 100.02, 4.0, 3), (10, SELL, 34200.0, 100.01, 7.0, 4), (2, BUY, 34200.25, 100.01, 7.0, 0),
    (13, SELL, 34200.25, 100.01, 7.0, 4), (11, SELL, 34200.25, 100.01, 7.0, 4), (10, BUY, 34201.5, 100.0, 3.0, 5),
    (2, SELL, 34202.0, 100.0, 1.0, 0), (13, BUY, 34202.0, 100.0, 1.0, 5), (11, BUY, 34202.0, 100.0, 1.0, 5),
    (12, SELL, 34203.125, 100.01, 6.0, 6),
]  # fmt: skip


@pytest.mark.parametrize("rows", [LEVELS, ORDERS], ids=["levels", "orders"])
def test_the_book_of_an_npz_is_built(rows: list[tuple[int, int, float, float, float, int]], tmp_path: Path) -> None:
    path = npz(tmp_path / "events.npz", rows)
    tape = read_tape(path)
    assert_story(tape)
    assert_story(read_tape(path, Selection(clock="local")), late=0.004)


def test_a_wrong_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", data=np.zeros(3))
    with pytest.raises(ValueError, match="it needs events with ev, exch_ts, local_ts, px, qty; it has no fields"):
        read_tape(tmp_path / "other.npz")
    whole = npz(tmp_path / "events.npz", LEVELS).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete zip file"):
        read_tape(tmp_path / "half.npz")


def test_the_best_of_a_book_is_that_of_all_its_levels() -> None:
    """Against the extremes of plain dictionaries, over random changes."""
    random, book = np.random.default_rng(3), LevelBook()
    bids: dict[float, float] = {}
    asks: dict[float, float] = {}
    for _ in range(2000):
        bid, price, size = bool(random.integers(2)), float(random.integers(1, 15)), float(random.integers(0, 3))
        own = bids if bid else asks
        book.set(bid, price, size)
        own[price] = size
        if random.random() < 0.02:
            bids.clear(), asks.clear(), book.clear()
        expected = []
        for levels, best in ((bids, max), (asks, min)):
            standing = [level for level, amount in levels.items() if amount > 0]
            expected += [best(standing), levels[best(standing)]] if standing else [NONE, NONE]
        assert book.best() == pytest.approx(tuple(expected), nan_ok=True)


# DBN


def test_dbn_tells_what_csv_tells(tmp_path: Path) -> None:
    dbn = pytest.importorskip("databento_dbn", reason="the extra databento is not installed")
    table = pd.read_csv(FOLDER / "databento_mbp-1_integers.csv")
    content = dbn.Metadata(
        dataset="XNAS.ITCH", schema=dbn.Schema.MBP_1, start=MIDNIGHT, stype_in=dbn.SType.RAW_SYMBOL,
        stype_out=dbn.SType.INSTRUMENT_ID, symbols=["ABC"], partial=[], not_found=[], mappings=[],
    ).encode()  # fmt: skip
    for row in table.itertuples():
        level = dbn.BidAskPair(row.bid_px_00, row.ask_px_00, row.bid_sz_00, row.ask_sz_00, 1, 1)
        record = dbn.MBP1Msg(
            publisher_id=2, instrument_id=77, ts_event=row.ts_event, price=row.price, size=row.size,
            action=dbn.Action.from_str(row.action), side=dbn.Side.from_str(row.side), depth=0, ts_recv=row.ts_recv,
            flags=128, ts_in_delta=0, sequence=5, levels=level,
        )  # fmt: skip
        content += bytes(record)
    (tmp_path / "day.dbn").write_bytes(content)
    assert_story(read_tape(tmp_path / "day.dbn"))
    (tmp_path / "half.dbn").write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"half\.dbn"):
        read_tape(tmp_path / "half.dbn")


# Real recordings


@pytest.mark.long
@pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings are not part of the project")
def test_a_recorded_stream_is_its_converted_tape() -> None:
    """The tape was converted by somebody else's program."""
    stream = read_tape(RECORDINGS / "ethusdt_perpetual_20240808_stream.gz")
    tape = read_tape(RECORDINGS / "ethusdt_perpetual_20240808_level1.csv.gz")
    begin = stream["time_s"].iloc[0]
    assert begin == pytest.approx(23 * 3600 + 54 * 60 + 16.31, abs=1e-6)
    pd.testing.assert_frame_equal(stream.assign(time_s=stream["time_s"] - begin), tape, rtol=0, atol=1e-9)


@pytest.mark.long
@pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings are not part of the project")
def test_the_depth_of_a_recorded_stream_has_its_best_quotes(tmp_path: Path) -> None:
    """Without bookTicker the quotes are those of the book: at its last stamps they agree with bookTicker's."""
    lines = gzip.decompress((RECORDINGS / "ethusdt_perpetual_20240808_stream.gz").read_bytes()).splitlines()[:20_000]
    (tmp_path / "all").write_bytes(b"\n".join(lines))
    (tmp_path / "depth").write_bytes(b"\n".join(line for line in lines if b"bookTicker" not in line))
    best = quotes_of(read_tape(tmp_path / "all")).drop_duplicates("time_s", keep="last")
    built = quotes_of(read_tape(tmp_path / "depth")).drop_duplicates("time_s", keep="last")
    both = best.merge(built, on="time_s", suffixes=("", "_built"))
    assert len(both) > 200
    for side in ("bid", "ask"):
        assert (both[side] == both[f"{side}_built"]).mean() > 0.97
        assert (both[f"{side}_size"] == both[f"{side}_size_built"]).mean() > 0.8


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"colour,shape\nred,round\n", "line 1, column 'colour': no known format; mmgym: time_s"),
        (
            "a.csv",
            b"exchange,symbol,timestamp,ask_amount,ask_price,bid_price,bid_amount\nx,A,1,1,2,1,1\n",
            r"nearest is Tardis \(quotes\), of which 'local_timestamp' is missing",
        ),
        (
            "a.csv",
            b"time_s,Bid,bid_size,ask,ask_size,price,size,side\n",
            r"mmgym \(tape\), of which 'event' is missing",
        ),
        ("a.csv", b"id,price,qty,quote_qty,is_buyer_maker\n", r"Binance \(trades\), of which 'time' is missing"),
        ("a.csv", b"colour,price,size\n", "'colour': no known format; mmgym: time_s"),
        ("a.csv", b"", "line 1: the file is empty"),
        ("a.csv.gz", b"", "line 1: the file is empty"),
        ("a.zip", b"PK\x03\x04" + bytes(50), "not a complete zip file"),
        ("a.csv", bytes(200), "nor another known format"),
    ],
)
def test_unknown_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_tape(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_a_missing_file_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder; name the files in it"):
        read_tape(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_tape(tmp_path / "absent")
    with pytest.raises(ValueError, match="at least one"):
        read_tape([])


def changed(path: Path, folder: Path, *pairs: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (folder / path.name).write_text(text)
    return folder / path.name


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("binance_aggTrades.csv", "1709285400250,false", "17092854002,false", r"'transact_time': stamps from .* mix"),
        ("binance_aggTrades.csv", "100.01", "x", "line 2, column 'price': 'x' is not allowed"),
        ("binance_aggTrades.csv", ",false", ",maybe", "line 2, column 'is_buyer_maker': 'maybe' is not allowed"),
        ("binance_aggTrades.csv", ",false", ",false,1", "line 2: 8 cells where the header has 7"),
        (
            "tardis_trades.csv",
            "1709285402000000,",
            "170928540200000x,",
            "line 3, column 'timestamp': '170928",
        ),
        ("databento_mbp-1.csv", "2024-03-01T09:30:01.5", "2024-13-01T09:30:01.5", "line 5: .* is no time such as"),
        ("databento_mbp-1.csv", ",ABC", ",", None),
        ("lobster_message.csv", ",4,12,", ",9,12,", "line 2, column 'type': 9; it is 1 to 7"),
        ("binance_futures_stream.txt", '{"stream"', '{stream"', "line 2: no message; 8 of 9 lines"),
    ],
)
def test_damaged_cells_name_file_line_and_column(
    name: str, old: str, new: str, message: str | None, tmp_path: Path
) -> None:
    own = next(list(group) for group in WHOLE.values() if name in group)
    paths = [changed(FOLDER / one, tmp_path, (old, new)) if one == name else FOLDER / one for one in own]
    if message is None:
        assert_story(read_tape(paths))
        return
    with pytest.raises(ValueError, match=message) as caught:
        read_tape(paths)
    assert str(tmp_path / name) in str(caught.value)


def test_several_symbols_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("tardis_trades.csv", "databento_mbp-1.csv", "binance_futures_stream.txt"):
        text = (FOLDER / name).read_text().splitlines()
        other = text[-1].replace("ABCUSD", "XYZUSD").replace(",ABC", ",XYZ")
        path = tmp_path / name
        path.write_text("\n".join([*text, other]) + "\n")
        own = [path] if name != "tardis_trades.csv" else [path, FOLDER / "tardis_book_ticker.csv"]
        with pytest.raises(ValueError, match=r"2 symbols \(.*; say which one with symbol"):
            read_tape(own)
        symbol = "abc" if "databento" in name else "ABCUSD"
        assert_story(read_tape(own, Selection(symbol=symbol)))
        with pytest.raises(ValueError, match="symbol = 'nothing' is not there; there are"):
            read_tape(own, Selection(symbol="nothing"))


def test_a_lobster_pair_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 message and 0 orderbook files"):
        read_tape(FOLDER / "lobster_message.csv")
    short = tmp_path / "lobster_orderbook.csv"
    short.write_text("\n".join((FOLDER / short.name).read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"has 7 rows, .* 6: they are no pair"):
        read_tape([FOLDER / "lobster_message.csv", short])


def test_a_lobster_halt_and_an_empty_side_are_not_observed(tmp_path: Path) -> None:
    message = (FOLDER / "lobster_message.csv").read_text().splitlines()
    book = (FOLDER / "lobster_orderbook.csv").read_text().splitlines()
    message[3:3] = ["34201.000000000,7,0,0,-1,-1", "34201.200000000,7,0,0,1,-1"]
    book[3:3] = [book[2]] * 2
    (tmp_path / "AB_2024-03-01_34200000_57600000_message_2.csv").write_text("\n".join(message))
    (tmp_path / "AB_2024-03-01_34200000_57600000_orderbook_2.csv").write_text("\n".join(book))
    recording = read_recording(sorted(tmp_path.iterdir()))
    assert_story(recording.tape)
    assert recording.cuts.tolist() == [[34201.0, 34201.2]]
    assert recording.origin == MIDNIGHT
    assert [finding.name for finding in recording.findings] == ["hidden_trades", "halt"]


def test_a_missing_depth_update_leaves_the_book_unknown(tmp_path: Path) -> None:
    lines = (FOLDER / "binance_depth_stream.txt").read_text().splitlines()
    ends = [line for line in lines if '"u":104' not in line]
    ends.append(lines[1].replace("1709285400000", "1709285404000").replace('"lastUpdateId":99', '"lastUpdateId":200'))
    path = tmp_path / "stream"
    path.write_text("\n".join(ends))
    with pytest.raises(ValueError, match=r"quote rows need a number .*book with an empty side"):
        read_tape(path)  # one row of six: more than one in twenty
    many = ends
    for number in range(100):
        text = json.loads(lines[4].partition(" ")[2])
        text["data"] |= {"T": 1709285406000 + number, "U": 201 + number, "u": 201 + number, "pu": 200 + number}
        text["data"]["b"] = [["99.99", str(6 + number)]]
        many.append(f"{MIDNIGHT + (34206 * 1000 + number) * 10**6} {json.dumps(text)}")
    path.write_text("\n".join(many))
    recording = read_recording(path)
    assert recording.cuts.tolist() == [[34202.0, 34204.0]]
    assert [finding.name for finding in recording.findings] == ["lost_messages", "empty_book", "empty_book"]
    assert recording.findings[0].text.startswith("1 times a depthUpdate is missing")


# Damaged files


WORDS = [
    "",
    "x",
    "nan",
    "inf",
    "-1",
    "0",
    "1e308",
    "1e999",
    "99999999999999999999",
    '"',
    "true",
    "2024-03-01T09:30:00Z",
]


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """A cell, a line, a few bytes or an end of a file changed."""
    kind = int(random.integers(5))
    lines = content.decode().splitlines()
    row = int(random.integers(len(lines)))
    cells = lines[row].split(",")
    if kind == 0:
        cells[int(random.integers(len(cells)))] = str(random.choice(WORDS))
        lines[row] = ",".join(cells)
    elif kind == 1:
        lines.insert(int(random.integers(len(lines))), lines.pop(row))
    elif kind == 2:
        lines[row] = lines[row][: int(random.integers(len(lines[row]) + 1))]
    elif kind == 3:
        lines = lines[:row]
    else:
        raw = bytearray(content)
        for place in random.integers(len(raw), size=3):
            raw[int(place)] = int(random.integers(256))
        return bytes(raw)
    return ("\n".join(lines) + "\n").encode()


def read_damaged(tmp_path: Path, trials: int, seed: int) -> dict[str, int]:
    """Read damaged files; a tape without nonsense, or a ValueError that names a file."""
    random, ended = np.random.default_rng(seed), {"tape": 0, "error": 0}
    layouts = [*WHOLE.values(), ["binance_spot_stream.txt"], ["databento_tbbo.csv"], ["binance_trades.csv"]]
    for trial in range(trials):
        group = files(*layouts[trial % len(layouts)])
        target = int(random.integers(len(group)))
        paths = [tmp_path / path.name for path in group]
        for number, (path, own) in enumerate(zip(group, paths, strict=True)):
            own.write_bytes(damage(path.read_bytes(), random) if number == target else path.read_bytes())
        try:
            tape = read_tape(paths)
        except ValueError as error:
            assert str(tmp_path) in str(error), error
            ended["error"] += 1
            continue
        ended["tape"] += 1
        quotes = quotes_of(tape)
        assert (quotes["bid"] < quotes["ask"]).all()
        assert tape["time_s"].is_monotonic_increasing
        assert (tape[["bid_size", "ask_size", "size"]].min().dropna() > 0).all()
        assert np.isfinite(tape["time_s"]).all()
    return ended


def test_damaged_files_give_a_tape_or_an_error_that_names_them(tmp_path: Path) -> None:
    ended = read_damaged(tmp_path, 70, 1)
    assert min(ended.values()) > 10, ended


@pytest.mark.slow
def test_many_damaged_files_give_a_tape_or_an_error_that_names_them(tmp_path: Path) -> None:
    ended = read_damaged(tmp_path, 5000, 2)
    assert min(ended.values()) > 500, ended
