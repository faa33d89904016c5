"""EPEX SPOT's continuous orders and trades (M7): the book is rebuilt, aggressors are joined, windows are cut.

=========== =========================================================================================================
file        columns (since 2021: commas, a line of comment first; before: semicolons and names in words, ``Order ID``)
=========== =========================================================================================================
orders      OrderId, Side, Product, DeliveryStart, DeliveryEnd, RevisionNo, ActionCode, TransactionTime, ValidityTime,
            Price, Quantity, UserDefinedBlock, ExecutionRestriction, and further ones
trades      TradeId, Side, DeliveryStart, DeliveryEnd, ExecutionTime, Price, Volume, OrderID (a row for each leg),
            SelfTrade, and further ones
=========== =========================================================================================================

A row of an order is what it is after an action: ``A`` added, ``C`` changed, ``I`` next slice of an iceberg, ``P``
partly matched (the rest stands), ``M`` matched, ``D`` deleted, ``H`` hibernated. Orders end at their validity. Blocks,
and orders that must be filled as a whole (``AON``), are no part of the book. All actions of one time are one change of
the book; while they leave it crossed the next time belongs to it.

The aggressor of a trade is the leg whose order was entered or changed last; of a trade with one leg here it is the
other side, if the order stood before. The trades of one aggressor side at one time are one market order, and its worst
price is the last one traded. A trade within a second of its order's match stands at the time of that. The events of a
window are those of `mmgym.calibration.hawkes_power_tape`: market orders, and moves of the best bid and ask that no
market order made. "Late" is the hour that ends 30 minutes before delivery, "Mid" the hour before it. Products are named
by their place in the local day: H11 is delivered from 10:00 to 11:00, Q41 from 10:00 to 10:15.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from mmgym.plain_files import replacing, write_json
from mmgym.tapes.findings import Finding
from mmgym.tapes.order_book import LevelBook
from mmgym.tapes.pieces import Reader
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import Source, fail, open_source, read_columns
from mmgym.tapes.units import iso_nanoseconds

ORDERS = ("orderid", "side", "deliverystart", "deliveryend", "actioncode", "transactiontime", "price", "quantity")
TRADES = ("tradeid", "side", "deliverystart", "deliveryend", "executiontime", "price", "volume", "orderid")
HEADERS = {
    "orders": ("deliverystart", "actioncode", "transactiontime", "orderid"),
    "trades": ("deliverystart", "executiontime", "tradeid"),
}
ACTIONS = "acipmdhx"
REMOVED = "mdhx"
LENGTHS = {60: "H", 30: "HH", 15: "Q"}  # minutes
MINUTE, SECOND = 60 * 10**9, 10**9
STANDING = 10**8  # ns that an order has stood, to be the one that was met
WINDOWS = ("Mid", "Late")
YES = ("y", "yes", "1", "true")

Row = tuple[str, bool, float, float, str]  # order, whether it buys, price, quantity, action


@dataclass(frozen=True)
class PowerWindow:
    """One window of one product and day.

    Attributes
    ----------
    events : pandas.DataFrame
        ``seq, t_min, type, best_bid, best_ask, worst_price, volume`` (`mmgym.calibration.hawkes_power_tape`).
    about : dict
        The content of the side file.
    findings : tuple of Finding
    """

    events: pd.DataFrame = field(repr=False)
    about: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def name(self) -> str:
        """``H11_Late_2015-04-01``."""
        return f"{self.about['product']}_{self.about['window']}_{self.about['delivery_date']}"


def write_tape(folder: str | Path, events: pd.DataFrame, about: Mapping[str, Any]) -> Path:
    """Write events and, beside them, their side file: ``PRODUCT_WINDOW_DATE.csv`` and ``.json``; the CSV file."""
    path = Path(folder) / f"{about['product']}_{about['window']}_{about['delivery_date']}.csv"
    with replacing(path) as part:
        events.assign(worst_price=pd.to_numeric(events["worst_price"]).astype("Int64")).to_csv(part, index=False)
    write_json(path.with_suffix(".json"), dict(about))
    return path


def kind(source: Source) -> str | None:
    """``"orders"`` or ``"trades"``, by the header."""
    header = set(_plain(source))
    return next((k for k, columns in HEADERS.items() if header >= {*columns}), None)


def _plain(source: Source) -> list[str]:
    """The header without spaces, and ``isuserdefinedblock`` as it is called now."""
    words = [cell.replace(" ", "") for cell in source.header]
    return [{"isuserdefinedblock": "userdefinedblock"}.get(word, word) for word in words]


def read(files: Sequence[tuple[str, Source]], selection: Selection) -> NoReturn:
    """Refuse: these files hold many products, and are no level-1 tape."""
    raise ValueError(
        f"{files[0][1].name}: orders or trades of the power market, no level-1 tape: mmgym tape convert writes a tape "
        "of each product, day and window, and mmgym calibrate hawkes_power reads them as they are"
    )


READER = Reader("EPEX", "continuous orders and trades of the power market (M7)", kind, read, HEADERS)


def read_windows(
    paths: Sequence[str | Path],
    *,
    product: str | None = None,
    gate_closure: float = 30.0,
    length: float = 60.0,
    tick: float = 0.01,
    zone: str = "Europe/Berlin",
) -> list[PowerWindow]:
    """The windows of all products and days in files of orders and of trades.

    Parameters
    ----------
    paths : sequence of str or Path
        Files of orders and files of trades, of one or several days.
    product : str, optional
        Such as ``"H11"``; all by default.
    gate_closure : float
        Minutes from the end of the window "Late" to delivery.
    length : float
        Of each window, minutes.
    tick : float
        EUR/MWh.
    zone : str
        Whose hours name the products.

    Returns
    -------
    list of PowerWindow
        In the order of delivery; windows at whose start a side of the book is empty are left out, and named in the
        findings of the first one.

    Raises
    ------
    ValueError
        If files of orders or of trades are lacking, a cell cannot be read, or no window is left.
    """
    for name, value in {"gate_closure": gate_closure, "length": length, "tick": tick}.items():
        if not (np.isfinite(value) and value >= 0 and (value > 0 or name == "gate_closure")):
            raise ValueError(f"{name} = {value} is not allowed: it must be a positive number")
    sources = _by_kind(paths)
    orders, said = _orders(sources["orders"])
    trades = _trades(sources["trades"])
    place = zoneinfo.ZoneInfo(zone)
    windows: list[PowerWindow] = []
    left_out: list[str] = []
    keys: Any = orders.groupby(["deliverystart", "deliveryend"], sort=True)
    for (start, end), own in keys:
        name, date = _product(int(start), int(end), place)
        if product is not None and name != product:
            continue
        matched = trades[(trades["deliverystart"] == start) & (trades["deliveryend"] == end)]
        book = list(_events(own, _join(own, matched), tick))
        for number, window in enumerate(WINDOWS):
            ends = int(start) - round(gate_closure * MINUTE) - round((1 - number) * length * MINUTE)
            about = {"tick": tick, "product": name, "delivery_date": date, "window": window, "horizon": float(length)}
            cut = _window(book, ends - round(length * MINUTE), ends, about)
            windows += [cut] if cut is not None else []
            left_out += [f"{name} {window} {date}"] if cut is None else []
    if not windows:
        wanted = "" if product is None else f" of {product}"
        raise ValueError(f"{paths[0]}: no window{wanted} at whose start both sides of the book have orders")
    if left_out:
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        text = f"{len(left_out)} windows begin with an empty side of the book ({shown}): left out."
        said.append(Finding("empty_book", text))
    first = windows[0]
    return [PowerWindow(first.events, first.about, (*said, *first.findings)), *windows[1:]]


def _by_kind(paths: Sequence[str | Path]) -> dict[str, list[Source]]:
    """The files of orders and those of trades; both must be there."""
    sources: dict[str, list[Source]] = {"orders": [], "trades": []}
    for source in (own for path in paths for own in open_source(path)):
        what = kind(source)
        if what is None:
            raise ValueError(f"{source.name}: neither orders nor trades of EPEX: no columns {', '.join(ORDERS)}")
        sources[what].append(source)
    if not all(sources.values()):
        lacking = next(what for what, own in sources.items() if not own)
        raise ValueError(f"{paths[0]}: files of {lacking} are lacking: orders build the book, trades join its matches")
    return sources


def _product(start: int, end: int, place: zoneinfo.ZoneInfo) -> tuple[str, str]:
    """Name and date of a delivery."""
    local = pd.Timestamp(start, tz="UTC").tz_convert(place)
    minutes = (end - start) // MINUTE
    letter = LENGTHS.get(minutes, f"B{minutes}_")
    again = "B" * local.fold  # the hour that comes twice in autumn
    return f"{letter}{(local.hour * 60 + local.minute) // minutes + 1:02d}{again}", f"{local:%Y-%m-%d}"


# Reading


def _table(source: Source, numbers: Sequence[str], words: Sequence[str]) -> pd.DataFrame:
    """Columns of a file, by their names without spaces; those of it that are lacking are left out."""
    header = _plain(source)
    present = [word for word in words if word in header]
    return read_columns(source, numbers, present, header=header, keep_case=("orderid", "tradeid", *TIMES))


TIMES = ("deliverystart", "deliveryend", "transactiontime", "validitytime", "executiontime")


def _dated(source: Source, table: pd.DataFrame) -> pd.DataFrame:
    """A table with its times in nanoseconds; an order without validity has 0."""
    for column in (name for name in TIMES if name in table):
        empty = (table[column] == "").to_numpy()
        if column == "validitytime" and empty.any():
            stamps = np.zeros(len(table), dtype=np.int64)
            stamps[~empty] = iso_nanoseconds(source.name, table.loc[~empty, column])
            table[column] = stamps
        else:
            table[column] = iso_nanoseconds(source.name, table[column])
    return table


def _one_of(source: Source, table: pd.DataFrame, column: str, allowed: Sequence[str]) -> None:
    wrong = np.flatnonzero(~table[column].isin(allowed))
    if wrong.size:
        cell = table[column].iloc[wrong[0]]
        fail(source.name, int(table.index[wrong[0]]) + 2, column, f"{cell!r} is not one of {', '.join(allowed)}")


def _orders(sources: Sequence[Source]) -> tuple[pd.DataFrame, list[Finding]]:
    """All actions on orders in the order of time, ends of validity among them."""
    parts = []
    words = (*ORDERS[:6], "validitytime", "userdefinedblock", "executionrestriction")
    for source in sources:
        table = _dated(source, _table(source, ("price", "quantity"), words))
        _one_of(source, table, "side", ("buy", "sell"))
        _one_of(source, table, "actioncode", tuple(ACTIONS))
        parts.append(table)
    orders = pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)
    findings = []
    for column, allowed, what in (
        ("userdefinedblock", YES, "blocks"),
        ("executionrestriction", ("aon",), "all or none"),
    ):
        if column in orders:
            apart = orders[column].isin(allowed)
            if apart.any():
                text = f"{orders.loc[apart, 'orderid'].nunique()} orders are {what}: no part of the book."
                findings.append(Finding("no_book_order", text))
                orders = orders[~apart]
    orders = orders.sort_values("transactiontime", kind="stable", ignore_index=True)
    if "validitytime" in orders:
        last = orders.drop_duplicates("orderid", keep="last")
        last = last[~last["actioncode"].isin(list(REMOVED)) & (last["validitytime"] > last["transactiontime"])]
        ends = last.assign(transactiontime=last["validitytime"], actioncode="d")
        orders = pd.concat([orders, ends], ignore_index=True)
        orders = orders.sort_values("transactiontime", kind="stable", ignore_index=True)
    return orders, findings


def _trades(sources: Sequence[Source]) -> pd.DataFrame:
    """Legs of trades."""
    parts = []
    for source in sources:
        table = _dated(source, _table(source, ("price", "volume"), (*TRADES[:5], "orderid", "selftrade")))
        _one_of(source, table, "side", ("buy", "sell"))
        parts.append(table)
    trades = pd.concat(parts, ignore_index=True).drop_duplicates(["tradeid", "side"], ignore_index=True)
    return trades[~trades["selftrade"].isin(YES)] if "selftrade" in trades else trades


def _join(orders: pd.DataFrame, legs: pd.DataFrame) -> pd.DataFrame:
    """Market orders: time, whether they buy, worst price and volume."""
    columns = ["time", "buys", "worst", "volume"]
    if not len(legs):
        return pd.DataFrame({name: pd.Series(dtype=float) for name in columns})
    actions = orders.assign(stamp=orders["transactiontime"].astype("Int64"))
    entered, matched = (
        actions.loc[actions["actioncode"].isin(codes), ["orderid", "transactiontime", "stamp"]]
        for codes in (["a", "c"], ["p", "m"])
    )
    legs = legs.sort_values("executiontime", kind="stable")
    known = pd.merge_asof(legs, entered, left_on="executiontime", right_on="transactiontime", by="orderid")
    near = pd.merge_asof(
        legs[["orderid", "executiontime"]],
        matched,
        left_on="executiontime",
        right_on="transactiontime",
        by="orderid",
        direction="nearest",
        tolerance=SECOND,
    )
    known["entry"] = known["stamp"].fillna(0).astype(np.int64)  # of a leg elsewhere: it was there before
    known["time"] = near["stamp"].fillna(known["executiontime"].astype("Int64")).astype(np.int64).to_numpy()
    last = known.sort_values(["entry", "time"], kind="stable").drop_duplicates("tradeid", keep="last")
    legs_known = known.groupby("tradeid")["entry"].max()
    alone = known.groupby("tradeid")["side"].transform("size") == 1
    buys = last["side"] == "buy"
    # a single leg whose order stood before the trade was met by the other side
    stood = last["tradeid"].isin(known.loc[alone, "tradeid"]) & (
        last["tradeid"].map(legs_known) < last["time"] - STANDING
    )
    last = last.assign(buys=np.where(stood, ~buys, buys))
    signed = np.where(last["buys"], 1.0, -1.0)
    last = last.assign(reach=last["price"] * signed)
    orders_met = last.groupby(["time", "buys"], as_index=False).agg(reach=("reach", "max"), volume=("volume", "sum"))
    orders_met["worst"] = orders_met["reach"] * np.where(orders_met["buys"], 1.0, -1.0)
    return orders_met[columns]


# The book

Event = tuple[int, str, int, int, int | None, float]  # time, type, best bid, best ask, worst price, volume


def _events(orders: pd.DataFrame, market: pd.DataFrame, tick: float) -> Iterator[Event]:
    """The events of a product in the order of time."""
    book, standing = LevelBook(), dict[str, tuple[bool, float, float]]()
    met: dict[int, list[tuple[bool, float, float]]] = {}
    for time, buys, worst, volume in market.itertuples(index=False, name=None):
        met.setdefault(int(time), []).append((bool(buys), float(worst), float(volume)))
    rows = _batches(orders)
    times = sorted({*rows, *met})
    bid = ask = None
    waiting: list[tuple[bool, float, float]] = []
    for time in times:
        for row in rows.get(time, ()):
            _act(book, standing, row)
        waiting += met.get(time, [])
        new_bid, bid_size, new_ask, ask_size = book.best()
        if np.isnan(new_bid) or np.isnan(new_ask) or new_bid >= new_ask:
            if np.isnan(new_bid) or np.isnan(new_ask):
                yield time, "EMPTY", 0, 0, None, 0.0
            continue
        now = (round(new_bid / tick), round(new_ask / tick))
        if bid is None or ask is None:
            bid, ask = now
            waiting.clear()
            yield time, "START", bid, ask, None, 0.0
            continue
        orders_now = [(buys, round(worst / tick), volume) for buys, worst, volume in waiting]
        yield from _changes(time, (bid, ask), now, orders_now, (bid_size, ask_size))
        bid, ask = now
        waiting.clear()


def _batches(orders: pd.DataFrame) -> dict[int, list[Row]]:
    """The actions of each time."""
    rows: dict[int, list[Row]] = {}
    columns = ["transactiontime", "orderid", "side", "price", "quantity", "actioncode"]
    for time, order, side, price, quantity, action in orders[columns].itertuples(index=False, name=None):
        rows.setdefault(int(time), []).append((order, side == "buy", price, quantity, action))
    return rows


def _act(book: LevelBook, standing: dict[str, tuple[bool, float, float]], row: Row) -> None:
    """One action on an order."""
    order, buys, price, quantity, action = row
    old = standing.pop(order, None)
    if old is not None:
        book.add(old[0], old[1], -old[2])
    if action not in REMOVED and quantity > 0 and price == price:
        standing[order] = (buys, price, quantity)
        book.add(buys, price, quantity)


def _changes(
    time: int,
    before: tuple[int, int],
    after: tuple[int, int],
    market: Sequence[tuple[bool, int, float]],
    sizes: tuple[float, float],
) -> Iterator[Event]:
    """Market orders, then what else moved the best quotes; each event moves one side, and leaves a tick of spread."""
    bid, ask = before
    for buys, worst, volume in market:
        if (buys and worst < ask) or (not buys and worst > bid):
            yield time, "INSIDE", bid, ask, worst, volume
            continue
        if buys:
            ask = max(ask, after[1])
        else:
            bid = min(bid, after[0])
        yield time, "MO_BUY" if buys else "MO_SELL", bid, ask, worst, volume
    if after[1] > ask:
        ask = after[1]
        yield time, "ASK_UP", bid, ask, None, sizes[1]
    if after[0] < bid:
        bid = after[0]
        yield time, "BID_DOWN", bid, ask, None, sizes[0]
    if after[1] < ask:
        ask = after[1]
        yield time, "ASK_DOWN", bid, ask, None, sizes[1]
    if after[0] > bid:
        bid = after[0]
        yield time, "BID_UP", bid, ask, None, sizes[0]


def _window(events: Sequence[Event], start: int, end: int, about: dict[str, Any]) -> PowerWindow | None:
    """The events within a window, or None where a side of the book is empty at its start."""
    before = [event for event in events if event[0] < start and event[1] != "INSIDE"]
    if not before or before[-1][1] == "EMPTY":
        return None
    inside = [event for event in events if start <= event[0] < end]
    kept = [event for event in inside if event[1] not in ("START", "INSIDE", "EMPTY")]
    rows = [
        [number, (time - start) / MINUTE, kind_, bid, ask, worst, volume]
        for number, (time, kind_, bid, ask, worst, volume) in enumerate(kept)
    ]
    columns = ["seq", "t_min", "type", "best_bid", "best_ask", "worst_price", "volume"]
    table = pd.DataFrame(rows, columns=columns)
    table["worst_price"] = table["worst_price"].astype(float)
    name = f"{about['product']} {about['window']} {about['delivery_date']}"
    findings = []
    odd = sum(event[1] == "INSIDE" for event in inside)
    orders = odd + int(table["type"].isin(["MO_BUY", "MO_SELL"]).sum())
    if odd:
        text = f"{name}: {odd} of {orders} market orders trade inside the best quotes (orders elsewhere): left out."
        findings.append(Finding("inside_quotes", text))
    empty = sum(event[1] == "EMPTY" for event in inside)
    if empty:
        text = f"{name}: after {empty} actions a side of the book is empty: the best quotes before are taken to stand."
        findings.append(Finding("empty_book", text))
    about = {"start_bid": before[-1][2], "start_ask": before[-1][3], **about}
    return PowerWindow(table, about, tuple(findings))
