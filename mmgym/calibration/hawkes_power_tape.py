"""Event tapes of the intraday power market: format, reader, and a generator of simulated days.

One tape is one product, delivery day and trading window: a ``.csv`` (or ``.csv.gz``) file in UTF-8 whose first line is
a header, and beside it a side file of the same name that ends in ``.json``. One row per event, in the order of the
exchange:

=========== ================ ======================================================================================
column      in the rows      meaning
=========== ================ ======================================================================================
seq         all              whole number, rising
t_min       all              minutes since the start of the window; never falls, from 0 to the horizon
type        all              BID_UP, BID_DOWN, ASK_UP, ASK_DOWN (new best quotes and cancelled ones) or MO_BUY, MO_SELL
best_bid    all              best bid after the event, in whole ticks
best_ask    all              best ask after the event, in whole ticks, above the bid
worst_price MO_BUY, MO_SELL  deepest price level traded (the highest for a buy), in whole ticks, and not beyond the
                             best price that stands after the order; else empty
volume      all              positive
=========== ================ ======================================================================================

Every event moves one side of the book at most, and in its own direction: BID_UP, BID_DOWN and MO_SELL the bid, the
others the ask. An event that leaves its price where it is still is one: most market orders do not exhaust the first
level, and a move may be cut short where the spread is at its floor. An order trades level by level, so that one that
gets behind the best price takes it away: no order trades through a price that still stands.

The side file is a JSON object with ``start_bid`` and ``start_ask`` (whole ticks, before the first event), ``tick``
(EUR/MWh), ``product`` (such as ``"H11"``), ``delivery_date`` (``"2015-04-01"``), ``window`` (``"Mid"`` or ``"Late"``)
and ``horizon`` (length of the window, minutes, a day at most).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mmgym.calibration.hawkes_likelihood import Windows
from mmgym.calibration.tape_checks import find_window_gaps
from mmgym.models import hawkes
from mmgym.tapes import epex
from mmgym.tapes.findings import Finding
from mmgym.tapes.selection import Selection
from mmgym.tapes.text_files import open_source, read_columns, require

Array = NDArray[np.float64]

# Processes in the order of the model: K+, K-, L+, L-, M+, M- of von Luckner et al. (2017)
EVENT_TYPES = ("BID_UP", "BID_DOWN", "ASK_UP", "ASK_DOWN", "MO_BUY", "MO_SELL")
MOVES_BID = (True, True, False, False, False, True)
DIRECTION = (1, -1, 1, -1, 1, -1)  # of the price that moves
NUMBERS = ("seq", "t_min", "best_bid", "best_ask", "worst_price", "volume")
TAPE_COLUMNS = ("seq", "t_min", "type", "best_bid", "best_ask", "worst_price", "volume")
WINDOW_NAMES = ("Mid", "Late")
LONGEST_HORIZON = 1440.0  # minutes
OUTAGE = "but for an outage of the record before it (gap = SECONDS tells which pauses are)"
LEVEL_VOLUME, LEVEL_DISTANCE = 5.0, 10.0  # mean volume of a price level, and ticks between levels, in simulated days


@dataclass(frozen=True)
class PowerTape:
    """One tape.

    Attributes
    ----------
    path : Path
        The CSV file.
    events : pandas.DataFrame
        The columns of the format; row ``i`` is line ``i + 2`` of the file, ``worst_price`` NaN where it is empty.
    start_bid, start_ask : int
        Best quotes before the first event, ticks.
    tick : float
        EUR/MWh.
    product, delivery_date, window : str
        As in the side file.
    horizon : float
        Minutes.
    findings : tuple of Finding
        What was said when it was cut from an exchange's files.
    pauses : tuple of (float, float)
        Gaps in the record, minutes. What the book was before the first event after one is not known.
    """

    path: Path
    events: pd.DataFrame = field(repr=False)
    start_bid: int
    start_ask: int
    tick: float
    product: str
    delivery_date: str
    window: str
    horizon: float
    findings: tuple[Finding, ...] = ()
    pauses: tuple[tuple[float, float], ...] = ()

    def before(self) -> tuple[Array, Array]:
        """Best bid and best ask before each event, ticks, shapes (events,)."""
        bid, ask = (self.events[column].to_numpy(dtype=float) for column in ("best_bid", "best_ask"))
        return np.append(float(self.start_bid), bid)[:-1], np.append(float(self.start_ask), ask)[:-1]

    def rows(self, event_type: str) -> NDArray[np.intp]:
        """Rows of the events of one type."""
        return np.flatnonzero(self.events["type"] == event_type)

    def resumed(self) -> NDArray[np.intp]:
        """Rows of the first events after gaps."""
        ends = [end for _, end in self.pauses if end < self.horizon]
        return np.searchsorted(self.events["t_min"].to_numpy(dtype=float), ends)

    def known_rows(self, event_type: str) -> NDArray[np.intp]:
        """Rows of the events of one type before which the book is known."""
        return np.setdiff1d(self.rows(event_type), self.resumed())

    def times(self, event_type: str) -> Array:
        """Minutes at which events of one type happen."""
        return self.events["t_min"].to_numpy(dtype=float)[self.rows(event_type)]

    def moves(self, event_type: str) -> Array:
        """Ticks by which the best price moves at the `known_rows` of one type, 0 or more."""
        bid, ask = self.before()
        index = EVENT_TYPES.index(event_type)
        start, column = (bid, "best_bid") if MOVES_BID[index] else (ask, "best_ask")
        return (DIRECTION[index] * (self.events[column].to_numpy(dtype=float) - start))[self.known_rows(event_type)]

    def reaches(self, event_type: str) -> Array:
        """Ticks by which market orders (MO_BUY or MO_SELL, `known_rows`) go beyond the best price before them."""
        bid, ask = self.before()
        worst = self.events["worst_price"].to_numpy(dtype=float)
        return (worst - ask if event_type == "MO_BUY" else bid - worst)[self.known_rows(event_type)]

    def room(self, event_type: str) -> Array:
        """Ticks of the spread before the `known_rows` of one type, less the one that always stays."""
        bid, ask = self.before()
        return (ask - bid - 1)[self.known_rows(event_type)]

    def mean_half_spread(self, gaps: ArrayLike = ()) -> float:
        """Half-spread averaged over the time of the window, EUR/MWh.

        Parameters
        ----------
        gaps : array_like, shape (gaps, 2)
            Start and end of pauses between events, minutes, that are left out.
        """
        spread = (self.events["best_ask"] - self.events["best_bid"]).to_numpy(dtype=float)
        length = np.diff(self.events["t_min"].to_numpy(dtype=float), prepend=0.0, append=self.horizon)
        starts = np.append(0.0, self.events["t_min"].to_numpy(dtype=float))
        for start, end in np.reshape(np.asarray(gaps, dtype=float), (-1, 2)):
            length[(starts >= start) & (starts < end) & (length > 0)] = 0.0
        spread = np.append(float(self.start_ask - self.start_bid), spread)
        return float(spread @ length / length.sum() * self.tick / 2)

    def within(self, selection: Selection) -> PowerTape:
        """The part from the selection's start to its end (seconds of the window), a window of its own without history.

        Raises
        ------
        ValueError
            If nothing lies there, or for a part of a selection that these tapes do not have.
        """
        unknown = {"session": None, "symbol": None, "clock": "exchange", "trade_lag": 0.0}
        given = [name for name, default in unknown.items() if getattr(selection, name) != default]
        if given:
            raise ValueError(
                f"{', '.join(given)} is not allowed with event tapes, which are windows of one product and day, on one "
                "clock and without the time of the day: start, end and gap are (seconds of the window)"
            )
        windows, beyond = selection.windows(str(self.path), 0.0, 60.0 * self.horizon, None)
        if windows is None:
            return self
        part = self.between(*(windows[0] / 60.0).tolist())
        return replace(part, findings=(*part.findings, *beyond))

    def between(self, start: float, end: float) -> PowerTape:
        """The part after one time and up to another (minutes), a window of its own.

        It starts with the quotes that stand after what happens at the start.
        """
        minutes = self.events["t_min"].to_numpy(dtype=float)
        first = np.searchsorted(minutes, start, side="right") if start > 0.0 else 0
        last = np.searchsorted(minutes, end, side="right")
        pauses = [(max(low, start) - start, min(high, end) - start) for low, high in self.pauses]
        quotes = self.events[["best_bid", "best_ask"]].to_numpy(dtype=float)
        bid, ask = np.concatenate([[[self.start_bid, self.start_ask]], quotes])[first]
        events = self.events.iloc[first:last]
        return replace(
            self,
            events=events.assign(t_min=events["t_min"] - start).reset_index(drop=True),
            start_bid=int(bid),
            start_ask=int(ask),
            horizon=end - start,
            pauses=tuple((low, high) for low, high in pauses if high > low),
        )


def tape_gaps(tapes: Sequence[PowerTape], longest: float | None = None) -> Array:
    """Gaps in all that happens: tape, start and end (minutes), shape (gaps, 3).

    Parameters
    ----------
    tapes : sequence of PowerTape
    longest : float, optional
        Seconds: all longer pauses are gaps, besides those that are found, in all tapes together or in one.
    """
    own = [(number, *pause) for number, tape in enumerate(tapes) for pause in tape.pauses]
    times = [np.unique(tape.events["t_min"].to_numpy(dtype=float)) for tape in tapes]
    every = Windows.gather(times, np.array([tape.horizon for tape in tapes]))
    if not every.count:
        return np.empty((0, 3))
    gaps = find_window_gaps(every, math.inf if longest is None else longest / 60.0)
    return np.unique(np.concatenate([np.reshape(own, (-1, 3)), gaps]), axis=0)


def add_window_options(parser: Any) -> None:
    """The options of commands that read event tapes, for `selected`."""
    parser.add_argument("--start", metavar="SECONDS", help="of the part of each window that is used")
    parser.add_argument("--end", metavar="SECONDS", help="of that part")
    parser.add_argument("--session", help=argparse.SUPPRESS)  # of other markets' tapes; `PowerTape.within` says why not
    add_gap_option(parser)


def add_gap_option(parser: Any) -> None:
    """The one of them that replays of books do not have."""
    text = "longer pauses are gaps, besides those found; they are left out"
    parser.add_argument("--gap", type=float, metavar="SECONDS", help=text)


def selected(options: argparse.Namespace) -> Selection:
    """The selection of a command line."""
    return Selection(start=options.start, end=options.end, gap=options.gap, session=options.session)


def side_file(path: str | Path) -> Path:
    """The JSON file beside a tape."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".json")


def read_power_tape(path: str | Path, gap: float | None = None) -> PowerTape:
    """Read and check a tape and its side file (the format is in the module's docstring).

    Parameters
    ----------
    path : str or Path
        The ``.csv`` or ``.csv.gz`` file.
    gap : float, optional
        Seconds: all longer pauses are gaps in the record, besides those that are found.

    Returns
    -------
    PowerTape

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    ValueError
        If anything breaks the format; the message names file, line and column (or entry of the side file), what is
        there and what is allowed.
    """
    path = Path(path)
    about = _read_side_file(side_file(path))
    events = read_columns(path, NUMBERS, ("type",), keep_case=("type",), allow_empty=True)[list(TAPE_COLUMNS)]
    return check_power_tape(PowerTape(path=path, events=events, **about), gap)


def read_power_tapes(paths: Sequence[str | Path], gap: float | None = None) -> list[PowerTape]:
    """Read tapes, and the windows of EPEX's orders and trades (`mmgym.tapes.epex`), which are named by their product.

    Raises
    ------
    ValueError
        As `read_power_tape` and `mmgym.tapes.epex.read_windows`.
    """
    exchange = [path for path in paths if any(epex.kind(source) for source in open_source(path))]
    tapes = [read_power_tape(path, gap) for path in paths if path not in exchange]
    for window in epex.read_windows(exchange) if exchange else []:
        tape = PowerTape(path=Path(window.name), events=window.events, findings=window.findings, **window.about)
        tapes.append(check_power_tape(tape, gap))
    return tapes


def check_power_tape(tape: PowerTape, gap: float | None = None) -> PowerTape:
    """Refuse a tape that breaks the format, as `read_power_tape` does; the tape with its gaps.

    An event after a gap may find any book.
    """
    path, events = tape.path, tape.events
    for column in ("seq", "t_min", "best_bid", "best_ask", "volume"):
        require(path, events, column, events[column].notna(), "every row needs a number")
    for column in ("seq", "best_bid", "best_ask", "worst_price"):
        whole = events[column].isna() | (events[column] == np.floor(events[column]))
        require(path, events, column, whole, "it must be a whole number (prices are in ticks)")
    require(path, events, "seq", ~(events["seq"].diff() <= 0), "seq must rise from one row to the next")
    inside = (events["t_min"] >= 0) & (events["t_min"] <= tape.horizon)
    require(path, events, "t_min", inside, f"a time lies between 0 and the horizon, {tape.horizon:g} min")
    require(path, events, "t_min", ~(events["t_min"].diff() < 0), "time must not fall from one row to the next")
    require(path, events, "type", events["type"].isin(EVENT_TYPES), f"a type is one of {', '.join(EVENT_TYPES)}")
    require(path, events, "volume", events["volume"] > 0, "a volume must be positive")
    crossed = events["best_bid"] >= events["best_ask"]
    require(path, events, "best_bid", ~crossed, "the bid must lie below the ask of the same row (a crossed book)")

    tape = replace(tape, pauses=tuple((low, high) for _, low, high in tape_gaps([tape], gap).tolist()))
    bid, ask = tape.before()
    known = np.ones(len(events), dtype=np.bool_)
    known[tape.resumed()] = False
    for index, name in enumerate(EVENT_TYPES):
        here = (events["type"] == name).to_numpy() & known
        sides = (("best_bid", bid), ("best_ask", ask))
        (moved, start), (still, rest) = sides if MOVES_BID[index] else sides[::-1]
        verb = "fall" if DIRECTION[index] > 0 else "rise"
        backwards = DIRECTION[index] * (events[moved] - start) < 0
        rule = f"{name} must not make the {moved} {verb}, {OUTAGE}"
        require(path, events, moved, ~(here & backwards), rule)
        rule = f"{name} leaves the {still} as it was, {OUTAGE}"
        require(path, events, still, ~(here & (events[still] != rest)), rule)
    order = events["type"].isin(["MO_BUY", "MO_SELL"])
    worst = events["worst_price"]
    require(path, events, "worst_price", worst.notna() == order, "market orders have one, other events an empty cell")
    short = ((events["type"] == "MO_BUY") & (worst < ask)) | ((events["type"] == "MO_SELL") & (worst > bid))
    require(
        path, events, "worst_price", ~(short & known), "a market order trades at the best price before it, or beyond"
    )
    buys, sells = events["type"] == "MO_BUY", events["type"] == "MO_SELL"
    through = (buys & (worst > events["best_ask"])) | (sells & (worst < events["best_bid"]))
    rule = "a market order does not trade beyond the best price that stands after it (it would have taken that first)"
    require(path, events, "worst_price", ~through, rule)
    return tape


def _read_side_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must hold a JSON object")

    def refuse(name: str, rule: str) -> NoReturn:
        shown = repr(content[name]) if name in content else "missing"
        raise ValueError(f"{path}, entry {name!r}: {shown} is not allowed; {rule}")

    about: dict[str, Any] = {}
    for name in ("start_bid", "start_ask"):
        about[name] = content.get(name)
        if type(about[name]) is not int:
            refuse(name, "it must be a whole number of ticks")
    if about["start_bid"] >= about["start_ask"]:
        refuse("start_bid", f"it must lie below start_ask = {about['start_ask']} (a crossed book)")
    for name, unit in (("tick", "EUR/MWh"), ("horizon", "minutes")):
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            refuse(name, f"it must be a positive number ({unit})")
        about[name] = float(value)
    if about["horizon"] > LONGEST_HORIZON:
        refuse("horizon", f"a window has {LONGEST_HORIZON:g} minutes at most (wrong time unit?)")
    about["product"] = content.get("product")
    if not isinstance(about["product"], str) or not about["product"]:
        refuse("product", "it must be the name of a product, such as 'H11'")
    about["delivery_date"] = content.get("delivery_date")
    try:
        datetime.date.fromisoformat(about["delivery_date"])
    except (TypeError, ValueError):
        refuse("delivery_date", "it must be a date such as '2015-04-01'")
    about["window"] = content.get("window")
    if about["window"] not in WINDOW_NAMES:
        refuse("window", f"it must be one of {', '.join(WINDOW_NAMES)}")
    return about


# Simulated days


@dataclass(frozen=True)
class TapeParameters:
    """Parameters of simulated days (section 1 of the model), one entry per process in the order of `EVENT_TYPES`.

    Worst price, volume and move of a market order belong together. An order that does not exhaust the first level
    trades a part of it and moves nothing. One that does trades on to a level that is an exponential distance of mean
    ``1 / fill_decay`` behind the best price, and leaves the book at a level farther still: the move is geometric, the
    sum of the distance and of a rest that is nothing in a share of the cases, else geometric too. Where a spread at its
    largest cuts the move, it cuts the distance.

    Attributes
    ----------
    base_rate, excitation, decay : tuple of float
        mu, zeta, rho, 1/min.
    improvement : float
        A new quote in a spread of ``j`` ticks improves the price by a Binomial(``j - 1``, improvement) number of ticks.
    cancellation_move, order_move : float
        Mean ticks, 1 or more, by which a cancellation, or a market order that moves the book, moves the best price
        (geometric).
    first_level_share : float
        Share of market orders that do not move the book; their worst price is the best one.
    fill_decay : float
        kappa: the others reach an exponential distance of mean ``1 / fill_decay`` beyond the best price, 1/(EUR/MWh);
        in whole ticks its mean is below ``order_move``.
    start_spread, largest_spread : int
        Ticks; no move widens the spread beyond the largest.
    tick : float
        EUR/MWh.
    horizon : float
        Minutes.
    """

    base_rate: tuple[float, ...]
    excitation: tuple[float, ...]
    decay: tuple[float, ...]
    improvement: float
    cancellation_move: float
    order_move: float
    first_level_share: float = 0.8
    fill_decay: float = 4.0
    start_spread: int = 60
    largest_spread: int = 300
    tick: float = 0.01
    horizon: float = 60.0

    @property
    def mean_reach(self) -> float:
        """Mean ticks that an order which moves the book gets beyond the best price before it."""
        passed = math.exp(-self.fill_decay * self.tick)
        return passed / (1 - passed)


# [base rate, excitation, decay] of M+, M-, K+ and L-, K- and L+ (1/min), and in EUR/MWh the mean impacts of market
# orders, cancellations and new quotes, and the half-spread. Illustrative: plausible numbers, not estimates.
_ILLUSTRATIVE: dict[tuple[str, str], tuple[tuple[float, ...], ...]] = {
    ("H11", "Mid"): ((0.3, 1.0, 2.5), (0.3, 1.0, 2.5), (0.9, 0.9, 3.0), (0.8, 0.9, 3.0), (0.06, 0.14, 0.14, 0.45)),
    ("H11", "Late"): ((0.6, 1.5, 3.0), (0.6, 1.5, 3.0), (1.5, 1.2, 3.0), (1.35, 1.2, 3.0), (0.04, 0.1, 0.11, 0.3)),
    ("H15", "Mid"): ((0.35, 1.1, 2.75), (0.38, 1.1, 2.75), (1.0, 0.9, 3.0), (0.9, 0.9, 3.0), (0.06, 0.14, 0.14, 0.45)),
    ("H15", "Late"): ((0.7, 1.6, 3.2), (0.75, 1.6, 3.2), (1.7, 1.2, 3.0), (1.5, 1.2, 3.0), (0.04, 0.1, 0.11, 0.3)),
    ("H18", "Mid"): ((0.28, 0.9, 2.5), (0.27, 0.9, 2.5), (0.8, 0.9, 3.0), (0.7, 0.9, 3.0), (0.07, 0.16, 0.16, 0.55)),
    ("H18", "Late"): ((0.55, 1.4, 3.0), (0.52, 1.4, 3.0), (1.3, 1.2, 3.0), (1.15, 1.2, 3.0), (0.05, 0.12, 0.13, 0.38)),
}
ILLUSTRATIVE_SETS = tuple(_ILLUSTRATIVE)


def illustrative(product: str = "H11", window: str = "Late") -> TapeParameters:
    """An illustrative parameter set: plausible numbers, not estimates.

    Parameters
    ----------
    product : {"H11", "H15", "H18"}
    window : {"Mid", "Late"}

    Raises
    ------
    ValueError
        If there is no such set.
    """
    if (product, window) not in _ILLUSTRATIVE:
        known = ", ".join(" ".join(key) for key in _ILLUSTRATIVE)
        raise ValueError(f"there is no illustrative set {product!r}, {window!r}; there are {known}")
    buy, sell, place, cancel, (order_impact, cancel_impact, place_impact, half_spread) = _ILLUSTRATIVE[product, window]
    tick, share = 0.01, 0.8
    base_rate, excitation, decay = zip(place, cancel, cancel, place, buy, sell, strict=True)
    return TapeParameters(
        base_rate=base_rate,
        excitation=excitation,
        decay=decay,
        improvement=place_impact / (half_spread - tick / 2),
        cancellation_move=2 * cancel_impact / tick,
        order_move=2 * order_impact / (tick * (1 - share)),
        first_level_share=share,
        start_spread=round(2 * half_spread / tick),
        tick=tick,
    )


def simulate_power_tapes(
    folder: str | Path,
    *,
    product: str = "H11",
    window: str = "Late",
    days: int = 5,
    seed: int = 0,
    first_date: str = "2015-04-01",
    start_bid: int = 3470,
    parameters: TapeParameters | None = None,
    allow_explosive: bool = False,
) -> list[Path]:
    """Write tapes of simulated days, with their side files, for tests and demonstrations.

    The six Hawkes processes are simulated exactly and start without history, the book follows section 1 of the model.

    Parameters
    ----------
    folder : str or Path
        Where to write; made if it is missing. The files are ``PRODUCT_WINDOW_DATE.csv``.
    product, window : str
        Written to the side files; without `parameters` they choose the illustrative set.
    days : int
        Number of tapes.
    seed : int
        Of everything random.
    first_date : str
        Delivery date of the first tape; the others follow day by day.
    start_bid : int
        Best bid before the first event, ticks.
    parameters : TapeParameters, optional
        By default `illustrative` ones.
    allow_explosive : bool
        Whether processes with ``excitation >= decay`` are accepted.

    Returns
    -------
    list of Path
        The CSV files.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if window not in WINDOW_NAMES:
        raise ValueError(f"window = {window!r} is not allowed: it must be one of {', '.join(WINDOW_NAMES)}")
    if days < 1:
        raise ValueError(f"days = {days} is not allowed: it must be 1 or more")
    p = illustrative(product, window) if parameters is None else parameters
    if not p.mean_reach <= p.order_move - 1:
        raise ValueError(
            f"fill_decay = {p.fill_decay:g} and order_move = {p.order_move:g} are not allowed together: orders that "
            f"move the book by {p.order_move:g} ticks on average cannot reach {p.mean_reach:.4g} ticks, on average, "
            "behind the best price; a larger fill_decay or order_move is needed"
        )
    sequence = np.random.SeedSequence([seed, *f"{product} {window}".encode()])
    draws = np.random.default_rng(sequence)
    stream = int(sequence.generate_state(1, np.uint64)[0])
    processes = p.base_rate, p.excitation, p.decay
    events = hawkes.simulate(*processes, p.horizon, seed=stream, windows=days, allow_explosive=allow_explosive)
    paths = []
    for day in range(days):
        here = slice(events.offsets[day], events.offsets[day + 1])
        date = (datetime.date.fromisoformat(first_date) + datetime.timedelta(days=day)).isoformat()
        rows = _play(events.times[here].tolist(), events.processes[here].tolist(), start_bid, p, draws)
        about = {"start_bid": start_bid, "start_ask": start_bid + p.start_spread, "tick": p.tick, "product": product}
        about |= {"delivery_date": date, "window": window, "horizon": p.horizon}
        paths.append(epex.write_tape(folder, pd.DataFrame(rows, columns=list(TAPE_COLUMNS)), about))
    return paths


def _play(
    times: Sequence[float], processes: Sequence[int], bid: int, p: TapeParameters, draws: np.random.Generator
) -> list[list[object]]:
    """Rows of a tape: the book moves that the events of six processes bring on."""
    ask = bid + p.start_spread
    rows: list[list[object]] = []
    for number, (time, process) in enumerate(zip(times, processes, strict=True)):
        name, spread = EVENT_TYPES[process], ask - bid
        worst: int | str = ""
        volume = _rounded(draws.exponential(LEVEL_VOLUME))
        if name in ("MO_BUY", "MO_SELL"):
            move, reach, volume = _order(p, p.largest_spread - spread, volume, draws)
            worst = ask + reach if name == "MO_BUY" else bid - reach
        elif name in ("BID_UP", "ASK_DOWN"):
            move = -int(draws.binomial(spread - 1, p.improvement))
        else:
            move = min(int(draws.geometric(1 / p.cancellation_move)), p.largest_spread - spread)
        if MOVES_BID[process]:
            bid -= move
        else:
            ask += move
        rows.append([number, time, name, bid, ask, worst, volume])
    return rows


def _order(p: TapeParameters, room: int, level: float, draws: np.random.Generator) -> tuple[int, int, float]:
    """Move, reach behind the best price (ticks) and volume of a market order that finds so much at the best price."""
    if draws.random() < p.first_level_share:
        return 0, 0, _rounded(level * draws.random())
    reach = int(draws.exponential(1 / p.fill_decay) / p.tick)
    rest = 0
    if draws.random() * (p.order_move - 1) > p.mean_reach:
        rest = int(draws.geometric(1 / p.order_move)) - 1
    move = min(1 + reach + rest, room)
    reach = min(reach, move)
    levels = 1 + int(draws.poisson(reach / LEVEL_DISTANCE)) if reach else 0  # behind the best price
    return move, reach, _rounded(level + draws.gamma(levels, LEVEL_VOLUME) if levels else level)


def _rounded(volume: float) -> float:
    """A volume in steps of 0.1, which is the least."""
    return max(round(volume, 1), 0.1)
