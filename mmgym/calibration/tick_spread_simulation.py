r"""A simulated day of the tick-spread market: a level-1 tape, and a log of own quotes that goes with it.

`simulate_tape` draws the spread chain of `mmgym.models.tick_spread.Params` on its (piecewise-constant) clock, a
Brownian mid rounded so that the best prices are whole ticks, exponential sizes at the best prices, and market orders of
both sides: Poisson, with exponential sizes, at the best price. `simulate_own_quotes` toggles own quotes at random times
between best, improved and off, and draws their fills at the intensities of the market. The formats are those of
`mmgym.tapes.level1` and `mmgym.calibration.own_quotes`; `mmgym.calibration.tick_spread.calibrate` reads both back.

Market orders do not move the quotes, and the fills of the own quotes are drawn beside them: the tape serves to check
estimators, not to backtest.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.own_quotes import OWN_QUOTES_COLUMNS, QUOTES, SIDES
from mmgym.calibration.spread_chain import tick_states
from mmgym.models.tick_spread import Params
from mmgym.tapes.level1 import TAPE_COLUMNS, best_quotes

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

OFF = 2  # code of no quote, after best and improved
OFF_SHARE = 0.1  # of the time


def simulate_tape(
    params: Params,
    path: str | Path | None = None,
    *,
    seed: int,
    duration: float | None = None,
    order_rate: float = 0.5,
    mean_order_size: float = 120.0,
    mean_queue: float = 200.0,
    quote_rate: float = 0.5,
) -> pd.DataFrame:
    """Simulate a level-1 tape.

    Parameters
    ----------
    params : Params
        The market; its tick, spread chain, clock, initial price and volatility are used.
    path : str or Path, optional
        Where to write the tape as ``.csv`` or ``.csv.gz``; it is returned in any case.
    seed : int
        Of the generator.
    duration : float, optional
        Length of the tape in seconds, by default the horizon of the market.
    order_rate : float
        Market orders of each side (1 / s).
    mean_order_size, mean_queue : float
        Mean of the exponential sizes of market orders, and of the exponential sizes at each best price (shares). The
        latter are drawn anew at every quote row.
    quote_rate : float
        Quote rows between jumps of the spread (1 / s): the best prices follow the mid, the sizes change.

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
    named = {"duration": duration, "mean_order_size": mean_order_size, "mean_queue": mean_queue}
    for name, value in named.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, value in {"order_rate": order_rate, "quote_rate": quote_rate}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite, 0 or more, got {value}")
    random = np.random.default_rng(seed)
    quotes = _quote_rows(params, duration, quote_rate, mean_queue, random)
    parts = [quotes]
    for aggressor, column in (("sell", "bid"), ("buy", "ask")):
        time = _poisson_times(order_rate, duration, random)
        price = quotes[column].to_numpy(dtype=float)[np.searchsorted(quotes["time_s"], time) - 1]
        size = random.exponential(mean_order_size, time.size)
        trades = {"time_s": time, "event": "trade", "price": price, "size": size, "side": aggressor}
        parts.append(pd.DataFrame(trades))
    return _in_order_of_time(parts, TAPE_COLUMNS, path)


def _quote_rows(
    params: Params, duration: float, quote_rate: float, mean_queue: float, random: np.random.Generator
) -> pd.DataFrame:
    """The quotes of a tape, in the order of time."""
    jumps = _clock_ticks(params, duration, random)
    states = _walk(params, jumps.size, random)
    updates = _poisson_times(quote_rate, duration, random)
    times = np.sort(np.concatenate([[0.0], jumps, updates, [duration]]))  # the last row says how long the tape is
    spread = states[np.searchsorted(jumps, times, side="right")]
    change = random.normal(size=times.size) * params.volatility * np.sqrt(np.diff(times, prepend=0.0))
    bid = np.rint((params.initial_price + change.cumsum()) / params.tick - spread / 2).astype(np.int64)
    return pd.DataFrame(
        {
            "time_s": times,
            "event": "quote",
            "bid": _prices(bid, params.tick),
            "bid_size": random.exponential(mean_queue, times.size),
            "ask": _prices(bid + spread, params.tick),
            "ask_size": random.exponential(mean_queue, times.size),
            "price": np.nan,
            "size": np.nan,
            "side": "",
        }
    )


def _in_order_of_time(parts: list[pd.DataFrame], columns: Sequence[str], path: str | Path | None) -> pd.DataFrame:
    """The rows of all parts in one frame, which is written where there is a path."""
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)[list(columns)]
    frame = frame.sort_values("time_s", kind="stable", ignore_index=True)
    if path is not None:
        frame.to_csv(path, index=False)
    return frame


def simulate_own_quotes(
    params: Params, tape: pd.DataFrame, path: str | Path | None = None, *, seed: int, toggle_rate: float = 0.2
) -> pd.DataFrame:
    """Simulate a log of own quotes on a tape.

    Each side changes at Poisson times to best, improved or off (with chances 0.45, 0.45 and 0.1, also to what it was),
    and is filled at the intensity of the market at its quote and the spread of that time.

    Parameters
    ----------
    params : Params
        The market; its fill rates are used. Spreads of the tape above its widest count as that.
    tape : pandas.DataFrame
        What `simulate_tape` or `mmgym.tapes.read_tape` returned.
    path : str or Path, optional
        Where to write the log as ``.csv`` or ``.csv.gz``; it is returned in any case.
    seed : int
        Of the generator; take another one than that of the tape.
    toggle_rate : float
        Changes of each side (1 / s).

    Returns
    -------
    pandas.DataFrame
        As `mmgym.calibration.own_quotes.read_own_quotes` returns it.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if not (math.isfinite(toggle_rate) and toggle_rate >= 0):
        raise ValueError(f"toggle_rate must be finite, 0 or more, got {toggle_rate}")
    random = np.random.default_rng(seed)
    best = best_quotes(tape)
    times = best["time_s"].to_numpy(dtype=float)
    ticks = tick_states((best["ask"] - best["bid"]).to_numpy(dtype=float), params.tick)
    spread = np.minimum(ticks, params.num_spreads) - 1
    start, duration = times[0], float(tape["time_s"].iloc[-1]) - times[0]
    names = np.array([*QUOTES, "off"], dtype=object)
    chances = [(1 - OFF_SHARE) / 2, (1 - OFF_SHARE) / 2, OFF_SHARE]
    parts = []
    for side, intensities in zip(SIDES, (params.bid_rates, params.ask_rates), strict=True):
        rates = np.vstack([intensities, np.zeros(params.num_spreads)])  # best, improved, off
        changes = np.append(start, start + _poisson_times(toggle_rate, duration, random))
        quotes = random.choice(3, size=changes.size, p=chances)
        fastest = float(rates.max())
        candidates = start + _poisson_times(fastest, duration, random)
        quote = quotes[np.searchsorted(changes, candidates) - 1]
        rate = rates[quote, spread[np.searchsorted(times, candidates) - 1]]
        fills = candidates[random.random(candidates.size) * fastest < rate]
        parts += [
            pd.DataFrame({"time_s": changes, "event": "quote", "side": side, "quote": names[quotes]}),
            pd.DataFrame({"time_s": fills, "event": "fill", "side": side, "quote": ""}),
        ]
    return _in_order_of_time(parts, OWN_QUOTES_COLUMNS, path)


def _clock_ticks(params: Params, duration: float, random: np.random.Generator) -> Array:
    """Ticks of the piecewise-constant clock in (0, duration], rising."""
    edges = np.minimum(params.pieces[:, 0], duration)
    parts = [
        low + _poisson_times(rate, high - low, random)
        for low, high, rate in zip(edges[:-1], edges[1:], params.pieces[:-1, 1], strict=True)
    ]
    return np.concatenate(parts)


def _poisson_times(rate: float, duration: float, random: np.random.Generator) -> Array:
    """Poisson times in (0, duration], rising."""
    return np.sort(duration * (1.0 - random.random(random.poisson(rate * duration))))


def _walk(params: Params, jumps: int, random: np.random.Generator) -> Counts:
    """The spread in ticks after 0, 1, ... jumps, from the market's initial law."""
    rows = params.cumulative_transitions.tolist()
    draws = random.random(jumps + 1).tolist()
    state = bisect_right(params.cumulative_initial_law.tolist(), draws[0])
    states = [state]
    for draw in draws[1:]:
        state = bisect_right(rows[state], draw)
        states.append(state)
    return np.array(states, dtype=np.int64) + 1


def _prices(ticks: Counts, tick: float) -> Array:
    """Whole ticks as prices, free of rounding noise beyond ten decimals."""
    return np.round(ticks * tick, 10)


TITLE = "the spread chain on its clock with market orders at the best prices: a level-1 tape"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym simulate tick_spread``: those of `simulate_tape`, and the log of own quotes."""
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of the tape (default: the horizon)")
    parser.add_argument(
        "--order-rate", type=float, default=0.5, metavar="PER_SECOND", help="of each side (default 0.5)"
    )
    parser.add_argument("--mean-order-size", type=float, default=120.0, help="of market orders (default 120)")
    parser.add_argument("--mean-queue", type=float, default=200.0, help="at each best price (default 200)")
    text = "of quote rows between jumps (default 0.5)"
    parser.add_argument("--quote-rate", type=float, default=0.5, metavar="PER_SECOND", help=text)
    parser.add_argument("--own-quotes", metavar="LOG.csv", help="also write a log of own quotes and fills")


def run(options: argparse.Namespace, arguments: Mapping[str, Any]) -> list[Path]:
    """Run ``mmgym simulate tick_spread``; ``arguments`` are those of the environment."""
    params = Params.create(**arguments)
    names = ("seed", "duration", "order_rate", "mean_order_size", "mean_queue", "quote_rate")
    tape = simulate_tape(params, options.out, **{name: getattr(options, name) for name in names})
    if options.own_quotes is None:
        return [Path(options.out)]
    simulate_own_quotes(params, tape, options.own_quotes, seed=options.seed + 1)
    return [Path(options.out), Path(options.own_quotes)]
