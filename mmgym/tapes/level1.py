"""Level-1 tapes: best quotes and trades of a market in one table.

One row per event, in the order of the exchange. In a file, mmgym's own format: a CSV file in UTF-8 whose first line is
a header.

=========== ===================== =================================================================================
column      in the rows           meaning
=========== ===================== =================================================================================
time_s      all                   seconds; never falls, and several rows may bear one time stamp
event       all                   ``quote`` (new best quotes) or ``trade``
bid, ask    quote                 best prices, ``bid < ask``
bid_size    quote                 size at the best bid, positive
ask_size    quote                 size at the best ask, positive
price, size trade                 price and positive size of one trade
side        trade                 side of the aggressor, ``buy`` or ``sell``
=========== ===================== =================================================================================

The cells of the columns that do not belong to a row's event are empty (NaN, or the empty word). Further columns are
ignored.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

TAPE_NUMBERS = ("time_s", "bid", "bid_size", "ask", "ask_size", "price", "size")
TAPE_WORDS = ("event", "side")
TAPE_COLUMNS = ("time_s", "event", "bid", "bid_size", "ask", "ask_size", "price", "size", "side")

Array = NDArray[np.float64]


def best_quotes(tape: pd.DataFrame) -> pd.DataFrame:
    """Best quotes once the events of each time stamp are over.

    Parameters
    ----------
    tape : pandas.DataFrame
        What `mmgym.tapes.read_tape` returned.

    Returns
    -------
    pandas.DataFrame
        ``time_s`` (strictly rising), ``bid``, ``bid_size``, ``ask``, ``ask_size`` and ``mid``, one row per time stamp
        that has quotes.
    """
    quotes = tape.loc[tape["event"] == "quote", ["time_s", "bid", "bid_size", "ask", "ask_size"]]
    quotes = quotes.drop_duplicates("time_s", keep="last", ignore_index=True)
    return quotes.assign(mid=(quotes["bid"] + quotes["ask"]) / 2)


def price_step(quotes: pd.DataFrame) -> float:
    """Smallest difference between two best prices of `best_quotes`, rounded to six digits: the tick of a long tape."""
    prices = np.unique(quotes[["bid", "ask"]].to_numpy(dtype=float))
    steps = np.diff(prices)
    return float(f"{steps[steps > 1e-9 * np.abs(prices).max()].min():.6g}")


def sample_mid(quotes: pd.DataFrame, *, start: float, end: float, interval: float) -> tuple[Array, Array]:
    """The mid every `interval` seconds from `start` on: that of the last quote at or before.

    Parameters
    ----------
    quotes : pandas.DataFrame
        What `best_quotes` returned; its first row stands at `start` or before.
    start, end, interval : float
        Seconds.

    Returns
    -------
    samples, mid : array, shape (n,)
        Times (s) from `start` to `end` at most, and mid prices.
    """
    number = math.floor((end - start) / interval + 1e-9) + 1
    samples: Array = start + interval * np.arange(number, dtype=float)
    latest = np.searchsorted(quotes["time_s"], samples + 1e-9 * interval, side="right") - 1
    return samples, quotes["mid"].to_numpy(dtype=float)[latest]


def market_orders(tape: pd.DataFrame) -> pd.DataFrame:
    """Market orders: the trades of one aggressor side at one time stamp, taken together.

    Parameters
    ----------
    tape : pandas.DataFrame
        What `mmgym.tapes.read_tape` returned.

    Returns
    -------
    pandas.DataFrame
        ``time_s``, ``side`` (of the aggressor), ``size``, ``touch``: the best price for the aggressor, and ``reach``:
        the distance of the worst price from the mid before the time stamp, in units of price; NaN where no quote comes
        before.
    """
    trades = tape[tape["event"] == "trade"]
    orders = trades.groupby(["time_s", "side"], as_index=False).agg(
        size=("size", "sum"), lowest=("price", "min"), highest=("price", "max")
    )
    quotes = best_quotes(tape)
    before = np.searchsorted(quotes["time_s"], orders["time_s"])  # quotes before the time stamp
    mid = np.concatenate([[np.nan], quotes["mid"]])[before]
    buy = orders["side"] == "buy"
    touch = np.where(buy, orders["lowest"], orders["highest"])
    reach = np.where(buy, orders["highest"] - mid, mid - orders["lowest"])
    return orders[["time_s", "side", "size"]].assign(touch=touch, reach=reach)
