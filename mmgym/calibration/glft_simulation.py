r"""A simulated level-1 tape of the GLFT market: market orders by the exponential law around a Brownian mid.

- The mid is Brownian with drift, exact at every quote row; quotes follow it at Poisson times. The best prices are whole
  ticks around the point of the grid that is nearest to it, ``spread`` ticks apart, with exponential sizes.
- Market orders of each side are Poisson of rate ``fill_rate``, and reach an exponential distance ``D`` of rate
  ``fill_decay`` from the mid of the quotes: a limit order at depth ``d`` is filled at rate ``fill_rate exp(-fill_decay
  d)`` (Guéant, Lehalle & Fernandez-Tapia 2013, eq. (2)). An order trades at the best price, and once more at the last
  price of the grid within ``D`` if that is a further one; an order with ``D`` below the half-spread meets nothing and
  leaves no trace.
- Orders do not move the quotes: the tape serves to check estimators, not to backtest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.models.glft import Params
from mmgym.plain_files import replacing
from mmgym.tapes.level1 import TAPE_COLUMNS

Array = NDArray[np.float64]


def simulate_tape(
    params: Params,
    path: str | Path | None = None,
    *,
    seed: int,
    duration: float | None = None,
    tick: float = 0.01,
    spread: int = 1,
    quote_rate: float = 5.0,
    mean_order_size: float = 1.0,
    mean_queue: float = 10.0,
) -> pd.DataFrame:
    """Simulate a level-1 tape.

    Parameters
    ----------
    params : Params
        The market; its fill rates and decays, volatility, drift and initial price are used.
    path : str or Path, optional
        Where to write the tape as ``.csv`` or ``.csv.gz``; it is returned in any case.
    seed : int
        Of the generator.
    duration : float, optional
        Length of the tape in seconds, by default the horizon of the market.
    tick : float
        Price grid.
    spread : int
        Ticks between the best prices.
    quote_rate : float
        Quote rows (1 / s).
    mean_order_size, mean_queue : float
        Mean of the exponential sizes of trades, and of those at each best price.

    Returns
    -------
    pandas.DataFrame
        As `mmgym.tapes.read_tape` returns it.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    duration = params.horizon if duration is None else float(duration)
    named = {"duration": duration, "tick": tick, "mean_order_size": mean_order_size, "mean_queue": mean_queue}
    for name, value in {**named, "quote_rate": quote_rate}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if spread != int(spread) or spread < 1:
        raise ValueError(f"spread must be a whole number of ticks, 1 or more, got {spread}")
    if params.price != "arithmetic":
        raise ValueError(f"price = {params.price!r} is not allowed: only an arithmetic mid is simulated")
    random = np.random.default_rng(seed)
    quotes = _quotes(params, duration, quote_rate, tick, spread, mean_queue, random)
    times, bid = quotes["time_s"].to_numpy(), np.rint(quotes["bid"].to_numpy() / tick).astype(np.int64)
    frames = [quotes]
    laws = (
        ("sell", -1, params.fill_rate_bid, params.fill_decay_bid),
        ("buy", 1, params.fill_rate_ask, params.fill_decay_ask),
    )
    for side, sign, rate, decay in laws:
        own = np.sort(duration * (1 - random.random(random.poisson(rate * duration))))
        touch = bid[np.searchsorted(times, own) - 1] + (spread if sign > 0 else 0)
        beyond = np.floor(random.exponential(1 / decay, own.size) / tick - spread / 2)
        frames.append(_trades(own, touch, beyond, sign, side, tick, random, mean_order_size))
    tape = pd.concat(frames, ignore_index=True)[list(TAPE_COLUMNS)]
    tape = tape.sort_values("time_s", kind="stable", ignore_index=True)
    if path is not None:
        with replacing(Path(path)) as part:
            tape.to_csv(part, index=False)
    return tape


def _quotes(
    params: Params,
    duration: float,
    rate: float,
    tick: float,
    spread: int,
    mean_queue: float,
    random: np.random.Generator,
) -> pd.DataFrame:
    """Quotes that follow a Brownian mid, from 0 to the end."""
    count = random.poisson(rate * duration)
    times = np.concatenate([[0.0], np.sort(duration * (1 - random.random(count))), [duration]])
    steps = random.normal(size=times.size) * params.volatility * np.sqrt(np.diff(times, prepend=0.0))
    mid = params.initial_price + params.drift * times + steps.cumsum()
    bid = np.rint(mid / tick - spread / 2).astype(np.int64)
    return pd.DataFrame(
        {
            "time_s": times,
            "event": "quote",
            "bid": np.round(bid * tick, 10),
            "bid_size": random.exponential(mean_queue, times.size),
            "ask": np.round((bid + spread) * tick, 10),
            "ask_size": random.exponential(mean_queue, times.size),
            "price": np.nan,
            "size": np.nan,
            "side": "",
        }
    )


def _trades(
    times: Array,
    touch: NDArray[np.int64],
    beyond: Array,
    sign: int,
    side: str,
    tick: float,
    random: np.random.Generator,
    mean_size: float,
) -> pd.DataFrame:
    """Trades of the orders that get to the best price, ``beyond`` so many ticks."""
    met = beyond >= 0
    level = np.stack([touch[met], touch[met] + sign * beyond[met].astype(np.int64)], axis=1)
    shown = np.stack([np.ones(level.shape[0], dtype=bool), beyond[met] > 0], axis=1)
    price = np.round(level[shown] * tick, 10)
    time = np.repeat(times[met], shown.sum(axis=1))
    size = random.exponential(mean_size, price.size)
    return pd.DataFrame({"time_s": time, "event": "trade", "price": price, "size": size, "side": side})


TITLE = "market orders by the exponential law around a Brownian mid: a level-1 tape"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym simulate glft``: those of `simulate_tape`."""
    parser.add_argument("--duration", type=float, default=3600.0, metavar="SECONDS", help="of the tape (default 3600)")
    parser.add_argument("--tick", type=float, default=0.01, help="price grid (default 0.01)")
    parser.add_argument("--spread", type=int, default=1, metavar="TICKS", help="between the best prices (default 1)")
    parser.add_argument("--quote-rate", type=float, default=5.0, metavar="PER_SECOND", help="of quote rows (default 5)")
    parser.add_argument("--mean-order-size", type=float, default=1.0, help="of trades (default 1)")
    parser.add_argument("--mean-queue", type=float, default=10.0, help="at each best price (default 10)")


def run(options: argparse.Namespace, arguments: Mapping[str, Any]) -> list[Path]:
    """Run ``mmgym simulate glft``; ``arguments`` are those of the environment."""
    names = ("seed", "duration", "tick", "spread", "quote_rate", "mean_order_size", "mean_queue")
    simulate_tape(Params.create(**arguments), options.out, **{name: getattr(options, name) for name in names})
    return [Path(options.out)]
