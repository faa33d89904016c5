"""Replays on recorded books: made books whose outcome is computed by hand, a book of the model itself, recordings.

False alarms. Seeds are fixed. The book that the model itself makes is within 4 standard errors in two figures: a change
of seed fails it with probability 1.3e-4.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import scipy

import mmgym
from mmgym import declare
from mmgym.adapters.hftbacktest import (
    Assumptions,
    Recording,
    first_in_queue,
    read_recording,
    read_recordings,
    within,
    without_feed_latency,
)
from mmgym.adapters.hftbacktest_play import CARRY, LIQUIDATE, NOT_MOVED, NOTHING, PASS_ON, AfterFills, Player, Quotes
from mmgym.agents.cli import main
from mmgym.agents.commands.command import UsageError
from mmgym.baselines import optimal_policy, paper_policies
from mmgym.baselines.declared.book_state import most_likely
from mmgym.baselines.declared.replay import rules as declared_rules
from mmgym.baselines.policy import CallablePolicy, PolicyThrough
from mmgym.baselines.replay import Costs, compare, replay, rules_of
from mmgym.baselines.replay.metrics import adverse_moves, fills_by_depth, interval_of_ratio, metrics
from mmgym.baselines.replay.session import intensities, schedule
from mmgym.baselines.stochastic_volatility.replay import variances
from mmgym.models import impact
from mmgym.models import quoting as quoted
from mmgym.tapes import Selection, check_level1
from mmgym.tapes.level1 import TAPE_COLUMNS

hftbacktest = pytest.importorskip("hftbacktest", reason="the extra replay is not installed")

BUY, SELL = 1 << 29, 1 << 28
DEPTH, TRADE = 1, 2
BOTH = (1 << 31) | (1 << 30)
SECOND = 10**9
NOW = Assumptions(order_latency=0.0, response_latency=0.0)
FOLDER = Path(os.environ.get("MMGYM_RECORDINGS", Path(mmgym.__file__).parents[2] / "shared" / "data"))


def recording(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"the recording {name} is not there: MMGYM_RECORDINGS names its folder")
    return path


def made(rows: list[tuple[Any, ...]], *, end: float = 10.0, late: float = 0.0, lot: float = 0.1) -> Recording:
    """A recording of rows (seconds, kind, side, price, size), whose data arrive so many seconds late; the tick is 1."""
    events = np.zeros(len(rows), dtype=hftbacktest.types.event_dtype)
    for event, (time, kind, side, price, size) in zip(events, rows, strict=True):
        stamp = SECOND + round(time * SECOND)
        event["ev"], event["exch_ts"], event["local_ts"] = kind | side | BOTH, stamp, stamp + round(late * SECOND)
        event["px"], event["qty"] = price, size
    return Recording("made", events, 1.0, lot, SECOND + round(late * SECOND), SECOND + round(end * SECOND))


BOOK = [(0.0, DEPTH, BUY, 100, 5), (0.0, DEPTH, BUY, 99, 2), (0.0, DEPTH, SELL, 102, 5), (0.0, DEPTH, SELL, 103, 2)]
LAST = [(9.9, DEPTH, SELL, 110, 1)]


def orders(bid: float, ask: float, *, sizes: float = 1.0, market: float = 0.0, limit: int = 3) -> np.ndarray:
    """A table that quotes the same whatever the inventory."""
    return np.tile([bid, ask, sizes, sizes, market], (1, 2 * limit + 1, 1, 1, 1)).astype(float)


def play(
    played: Recording,
    table: np.ndarray,
    assumptions: Assumptions = NOW,
    *,
    decisions: int = 10,
    step: float = 1.0,
    from_mid: bool = False,
    ends: tuple[int, ...] = (),
    ending: int = CARRY,
    rows: Any = 0,
    start: float = 0.0,
    after: AfterFills = NOT_MOVED,
) -> tuple[Player, list[tuple[Any, ...]]]:
    """A table played every so many seconds; the fills as (decision, second, sign, price, size, market order)."""
    from mmgym.adapters.hftbacktest import backtest_of

    times = SECOND + np.round((start + step * np.arange(decisions)) * SECOND).astype(np.int64)
    where = np.isin(np.arange(decisions), ends)
    limit = (table.shape[1] - 1) // 2
    player = Player(
        backtest_of(played, assumptions),
        times,
        where,
        np.arange(decisions) == 0,
        limit,
        played.tick,
        played.lot,
        ending,
        after,
    )
    number = np.broadcast_to(np.asarray(rows, dtype=np.int64), decisions)
    player.play(Quotes(table, number, 1.0, from_mid), 0, decisions)
    fills = player.close()
    seconds = (fills[:, 1] + times[0] - SECOND) / SECOND
    return player, [
        (int(f[0]), round(float(s), 6), int(f[2]), float(f[3]), round(float(f[4]), 9), bool(f[5]))
        for f, s in zip(fills, seconds, strict=True)
    ]


# By hand


@pytest.mark.long
def test_a_state_after_own_fills() -> None:
    """A fill of the bid moves 0 to 1, which goes back at the rate ln 2: it is the more likely for a second."""
    generator = np.array([[0.0, 0.0], [math.log(2.0), -math.log(2.0)]])
    after = AfterFills(generator, np.array([[1, 1], [0, 0]]), np.array([1.0, 0.0]), 1.0)
    table = np.concatenate([orders(0, np.inf), orders(1, np.inf)], axis=3)  # a tick behind the best in state 1
    trades = [(1.1, TRADE, SELL, 100, 5.6), (3.1, TRADE, SELL, 100, 0.4), (5.1, TRADE, SELL, 100, 9)]
    player, fills = play(made([*BOOK, *trades, *LAST]), table, decisions=40, step=0.25, after=after)
    # 0.6 of the order after the 5 before it: the law has 0.6 in state 1 until it is halved, 0.26 s later
    assert fills[0][:5] == (5, 1.1, 1, 100.0, 0.6)
    behind = player.own[:, 0] == 99
    assert behind[5]  # 1.25 s: 0.6 exp(-0.15 ln 2) = 0.54
    assert not behind[6]  # 1.5 s: 0.45
    # the quote went back behind 5 others: of the trade of 0.4 nothing reaches it; the last one fills it
    assert fills[1][:5] == (21, 5.1, 1, 100.0, 1.0)
    # then 1 - (1 - 0.6 / 2^4) * 0 = 1 in state 1, for a second: decisions at 5.25 to 6 s
    assert behind[21:26].tolist() == [True, True, True, True, False]
    assert not behind[:5].any()
    assert not behind[6:21].any()


@pytest.mark.long
@pytest.mark.parametrize("first", [BUY, SELL])
def test_fills_of_an_interval_move_the_state_in_their_order(first: int) -> None:
    """A unit of pressure decays at 3 / s: of the first of two opposite fills little is left at the second."""
    generator = np.zeros((5, 5))
    for m in (-2, -1, 1, 2):
        generator[m + 2, m + 2 - int(np.sign(m))], generator[m + 2, m + 2] = 3.0 * abs(m), -3.0 * abs(m)
    moved = np.array([[0, 0, 1, 2, 3], [1, 2, 3, 4, 4]])
    after = AfterFills(generator, moved, np.eye(5)[2], 1.0)
    prices = {BUY: 102, SELL: 100}
    trades = [(t, TRADE, side, prices[side], 9) for t, side in ((1.05, first), (1.95, BUY + SELL - first))]
    table = np.tile(orders(0, 0), (1, 1, 1, 5, 1))
    player, fills = play(made([*BOOK, *trades, *LAST]), table, decisions=3, after=after)
    assert sorted(fill[1] for fill in fills) == [1.05, 1.95]
    kept = math.exp(-3.0 * 0.9)
    sign = 1 if first == BUY else -1  # of the pressure after the first
    expected = np.zeros(5)
    expected[2], expected[2 - sign] = kept, 1.0 - kept  # at the second fill, which moves it back by one
    expected = expected @ scipy.linalg.expm(generator * 0.05)
    assert player.likeliest == 2 - sign == int(expected.argmax())


@pytest.mark.long
def test_queue_position_and_partial_fills() -> None:
    trades = [(1.5, TRADE, SELL, 100, 5), (2.5, TRADE, SELL, 100, 0.3), (3.5, TRADE, SELL, 100, 9)]
    book = made([*BOOK, *trades, *LAST])
    player, fills = play(book, orders(0, np.inf), decisions=6)
    # the 5 that stood before it go first; then 0.3 of the order, then its rest: the second order is behind 5 again
    assert fills == [(3, 2.5, 1, 100.0, 0.3, False), (4, 3.5, 1, 100.0, 0.7, False)]
    np.testing.assert_allclose(player.inventory, [0, 0, 0, 0.3, 1.0, 1.0])
    np.testing.assert_allclose(player.wealth, [0, 0, 0, 0.3, 1.0, 1.0])  # bought at 100, the mid is 101
    whole = play(book, orders(0, np.inf), Assumptions(fills="whole", order_latency=0, response_latency=0), decisions=4)[
        1
    ]
    assert whole == [(3, 2.5, 1, 100.0, 1.0, False)]
    _, front = play(first_in_queue(book), orders(0, np.inf), decisions=4)
    assert front[0] == (2, 1.5, 1, 100.0, 1.0, False)  # only a lot of 0.1 stands before it


@pytest.mark.long
@pytest.mark.parametrize("queue", ["risk_averse", "log", "power"])
def test_cancellations_advance_an_order_as_the_queue_model_says(queue: Any) -> None:
    """5 stand before the order and 10 come behind it; 5 of the 15 go away; then trades of 0.1 come every 10 ms."""
    share = {"risk_averse": 0.0, "log": 1 - math.log(1 + 10) / math.log(1 + 15), "power": (5 / 15) ** 3}[queue]
    before = 5 - share * 5
    number = math.floor(before / 0.1 + 1e-9)  # of trades that pass by
    rows = [(1.2, DEPTH, BUY, 100, 15), (1.5, DEPTH, BUY, 100, 10)]
    rows += [(2.5 + 0.01 * k, TRADE, SELL, 100, 0.1) for k in range(60)]
    assumptions = Assumptions(queue=queue, order_latency=0.0, response_latency=0.0)
    _, fills = play(made([*BOOK, *rows, *LAST]), orders(0, np.inf), assumptions, decisions=320, step=0.01)
    assert fills[0][1] == pytest.approx(2.5 + 0.01 * number)


@pytest.mark.long
def test_latency() -> None:
    book = made([*BOOK, (0.5, TRADE, SELL, 99, 1), (2.5, TRADE, SELL, 99, 1), *LAST])  # through the best bid
    assert play(book, orders(0, np.inf), decisions=4)[1][0] == (1, 0.5, 1, 100.0, 1.0, False)
    late = Assumptions(order_latency=0.7, response_latency=0.6)
    player, fills = play(book, orders(0, np.inf), late, decisions=6)
    # sent at 0, there at 0.7: the first trade is missed; of the fill at 2.5 one hears at 3.1, at the decision at 4
    assert fills == [(4, 2.5, 1, 100.0, 1.0, False)]
    assert player.inventory.tolist() == [0, 0, 0, 0, 1, 1]
    moved = [*BOOK, (0.5, DEPTH, BUY, 101, 1), (2.5, TRADE, SELL, 101, 9), *LAST]
    for seconds, price in ((0.0, 101), (0.7, 100)):  # of market data: the quote of 1.0 knows of the move at 0.5, or not
        feed = Assumptions(order_latency=0, response_latency=0, feed_latency=seconds)
        player, _ = play(made(moved), orders(0, np.inf), feed, decisions=3, start=1.0, step=0.1)
        assert player.own[0, 0] == price


@pytest.mark.long
def test_an_order_is_replaced_only_when_its_price_moves() -> None:
    rows = [(1.5, DEPTH, BUY, 101, 4), (2.5, DEPTH, BUY, 101, 0), (4.5, TRADE, SELL, 100, 5.5)]
    player, fills = play(made([*BOOK, *rows, *LAST]), orders(0, np.inf), decisions=7)
    assert player.own[:, 0].tolist() == [100, 100, 101, 100, 100, 100, 100]
    # cancelled at 2 and sent again at 3: behind the 5 again, of which one heard nothing since
    assert fills == [(5, 4.5, 1, 100.0, 0.5, False)]
    kept = made([*BOOK, (1.5, DEPTH, BUY, 100, 8), (4.5, TRADE, SELL, 100, 5.5), *LAST])
    assert play(kept, orders(0, np.inf), decisions=7)[1] == [(5, 4.5, 1, 100.0, 0.5, False)]  # 3 came behind it


@pytest.mark.long
def test_rounding_to_ticks_and_lots_and_no_crossing() -> None:
    book = made([*BOOK, *LAST])
    player, _ = play(book, orders(1.4, 1.4, sizes=0.97), from_mid=True, decisions=2)
    assert player.own[1].tolist() == [99, 103]  # 101 -+ 1.4, away from the mid
    player, _ = play(book, orders(1.0, 1.0), from_mid=True, decisions=2)
    assert player.own[1].tolist() == [100, 102]
    player, _ = play(book, orders(-9.0, -9.0), from_mid=True, decisions=2)
    assert player.own[1].tolist() == [101, 101]  # a tick from the other side's best price
    player, _ = play(book, orders(np.inf, 1.0, sizes=0.05), from_mid=True, decisions=2)
    assert player.own[1].tolist() == [NOTHING, NOTHING]  # none wanted; less than a lot
    trade = made([*BOOK, (0.5, TRADE, SELL, 98, 9), *LAST])
    assert play(trade, orders(0, np.inf, sizes=0.97), decisions=2)[1] == [(1, 0.5, 1, 100.0, 0.9, False)]
    # the room up to the limit of 1 unit: after 0.9 there is a lot left
    twice = made([*BOOK, (0.5, TRADE, SELL, 98, 9), (1.5, TRADE, SELL, 98, 9), (2.5, TRADE, SELL, 98, 9), *LAST])
    _, fills = play(twice, orders(0, np.inf, sizes=0.97, limit=1), decisions=4)
    assert [fill[4] for fill in fills] == [0.9, 0.1]


@pytest.mark.long
def test_market_orders_and_the_end_of_an_episode() -> None:
    book = made([*BOOK, *LAST])
    player, fills = play(book, orders(np.inf, np.inf, market=2.0), decisions=5, ends=(3,), ending=LIQUIDATE)
    # two at 102 at once, sold at the best bid at the end
    assert fills == [(1, 0.0, 1, 102.0, 2.0, True), (3, 3.0, -1, 100.0, 2.0, True)]
    assert player.inventory.tolist() == [0, 2, 2, 0, 0]
    assert player.closing[3] == 2.0
    np.testing.assert_allclose(player.wealth, [0, -2, -2, -4, -4])
    player, fills = play(book, orders(np.inf, np.inf, market=2.0), decisions=5, ends=(3,), ending=PASS_ON)
    assert len(fills) == 1
    assert player.inventory.tolist() == [0, 2, 2, 0, 0]
    np.testing.assert_allclose(player.wealth, -2.0 * (np.arange(5) > 0))
    player, _ = play(book, orders(np.inf, np.inf, market=2.0), decisions=5, ends=(3,))
    assert player.inventory.tolist() == [0, 2, 2, 2, 2]
    _, fills = play(book, orders(np.inf, np.inf, market=6.0, limit=9), decisions=3)
    assert fills == [(1, 0.0, 1, 103.0, 6.0, True)]  # it walked the book: charged its worst price


@pytest.mark.long
def test_a_quote_that_the_market_crosses_is_filled_at_its_price() -> None:
    book = made([*BOOK, (0.5, DEPTH, BUY, 100, 0), (0.5, DEPTH, SELL, 99, 3), (0.5, DEPTH, BUY, 99, 0), *LAST])
    _, fills = play(book, orders(0, np.inf), decisions=2)
    assert fills == [(1, 0.5, 1, 100.0, 1.0, False)]


# Sessions


def glft(**changes: Any) -> Any:
    arguments = {"fill_rate": 1.0, "fill_decay": 1.0, "volatility": 0.3, "horizon": 4.0, "num_steps": 4}
    return gymnasium.make("mmgym/GLFT-v0", **(arguments | {"inventory_limit": 3} | changes)).unwrapped


def quoting(*depths: float) -> Any:
    def constant(observations: Any) -> Any:
        return env.from_quotes(np.tile(depths, (len(observations), 1)))

    env = glft()
    return CallablePolicy(constant, markov=True)


HAND = [
    *BOOK,
    (0.5, TRADE, SELL, 98, 9),  # fills the bid at 100
    (1.5, DEPTH, BUY, 100, 0),
    (1.5, DEPTH, BUY, 99, 0),
    (1.5, DEPTH, BUY, 98, 5),
    (1.5, DEPTH, SELL, 100, 5),  # the mid falls from 101 to 99
    (2.5, TRADE, BUY, 101, 9),  # fills the ask at 100
    (8.5, DEPTH, SELL, 101, 1),
]


@pytest.mark.long
def test_a_session_by_hand() -> None:
    session = replay(glft(), quoting(1.0, 1.0), made(HAND, end=9.0), NOW, costs=Costs(0.01, 0.0), interval=1.0)
    assert (session.episodes, session.steps, session.interval) == (2, 4, 1.0)
    fills = session.fills
    # the bid at 100 is filled by the trade, then, posted again at 1, by the book that comes down to it
    assert fills["side"].tolist() == ["buy", "buy", "sell"]
    assert fills["time_s"].tolist() == [0.5, 1.5, 2.5]
    assert fills["price"].tolist() == [100.0, 100.0, 100.0]
    assert fills["mid"].tolist() == [101.0, 101.0, 99.0]
    assert fills["depth"].tolist() == [1.0, 1.0, 1.0]
    assert fills["fee"].tolist() == [1.0, 1.0, 1.0]
    assert fills["episode"].tolist() == [0, 0, 0]
    # with fees, marked at 101 (known at 1), then 99; the one left is passed on at 4
    np.testing.assert_allclose(session.wealth, [0, 0, -4, -4, -4, -4, -4, -4, -4])
    assert session.inventory.tolist() == [0, 1, 2, 1, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(session.pnl, [-4.0, 0.0])
    assert session.closing.tolist() == [1.0, 0.0]
    assert session.squares.tolist() == [0 + 1 + 4 + 1, 0.0]
    # a second later: the book fell by 2 at 1.5, after the first fill at 0.5 and at the second
    assert adverse_moves(session, 1.0).tolist() == [-2.0, -2.0, 0.0]
    frame = session.frame()
    assert frame["filled"].tolist() == [0, 1, 1, -1, 0, 0, 0, 0, 0]
    assert frame["bid"].iloc[:3].tolist() == [100, 100, 98]
    assert np.isnan(frame["bid"].iloc[-1])
    carried = replay(glft(), quoting(1.0, 1.0), made(HAND, end=9.0), NOW, interval=1.0, ending="carry")
    assert carried.inventory.tolist() == [0, 1, 2, 1, 1, 1, 1, 1, 1]
    closed = replay(glft(), quoting(1.0, 1.0), made(HAND, end=9.0), NOW, interval=1.0, ending="liquidate")
    assert closed.fills.iloc[3][["side", "price", "taker"]].tolist() == ["sell", 98.0, True]
    np.testing.assert_allclose(closed.pnl, [-2.0, 0.0])  # 98 + 100 - 200


@pytest.mark.long
def test_figures_and_fills_by_depth_of_the_session_by_hand() -> None:
    env = glft()
    session = replay(env, quoting(1.0, 1.0), made(HAND, end=9.0), NOW, costs=Costs(0.01, 0.0), interval=1.0)
    figures, text = metrics([session], 1.0)
    assert "8 blocks of 1 s" in text
    value = figures["value"]
    assert value["fills an hour"] == 3 / 8 * 3600
    assert value["P&L an hour"] == -4 / 8 * 3600
    assert value["P&L a fill"] == pytest.approx(-4 / 3)
    assert value["depth of a fill"] == 1.0
    assert value["move after a fill, 1 s"] == pytest.approx(-4 / 3)
    assert value["fees an hour"] == 3 / 8 * 3600
    assert value["mean |inventory|"] == 4 / 8
    assert value["market orders an hour"] == 0.0
    assert (figures["lower"] <= value).all()
    assert (figures["upper"] >= value).all()
    table = fills_by_depth([session], rules_of(env))
    # bids stand at a depth of 1 all the time but the 8th second, asks too: exp(-1) fills a second
    assert table["fills"].sum() == 3
    assert table["expected"].sum() == pytest.approx(math.exp(-1.0) * table["seconds"].sum())
    np.testing.assert_allclose(table["ratio"], table["fills"] / table["expected"])
    few, said = metrics([session], 4.0)
    assert "no intervals" in said
    assert few["lower"].isna().all()


def test_costs() -> None:
    rules = rules_of(glft())
    fills = pd.DataFrame({"size": [2.0, 3.0], "price": [10.0, 20.0], "taker": [False, True]})
    assert Costs(0.1, -0.5).of(fills, rules).tolist() == [2.0, -30.0]
    assert Costs(0.1, -0.5, "asset").of(fills, rules).tolist() == pytest.approx([0.2, -1.5])
    assert Costs().of(fills, rules).tolist() == [0.0, 0.0]
    assert Costs(0.1).of(fills, rules).tolist() == [2.0, 0.0]


# The model's own book


def model_tape(path: Path, env: Any, *, seconds: float, tick: float, seed: int) -> Path:
    """A tape by the law of the GLFT market: wide best quotes, a mid that moves every 0.2 s, orders by their reach.

    The sides' best prices are 8 / k from the mid; an order of size 1 trades at the last tick that its reach covers.
    """
    p, random = env.params, np.random.default_rng(seed)
    half = round(8.0 / p.fill_decay_bid / tick)
    rows = []
    count = round(seconds / 0.2)
    mids = 100_000 + np.rint(np.cumsum(random.normal(0.0, p.volatility * math.sqrt(0.2), count + 1)) / tick)
    times = np.maximum(0.2 * np.arange(count + 1) - 1e-6, 0.0)  # just before decisions
    for time, mid in zip(times, mids, strict=True):
        rows.append((time, "quote", mid - half, 1.0, mid + half, 1.0, np.nan, np.nan, ""))
    for side, sign in (("sell", -1), ("buy", 1)):
        stamps = np.sort(random.uniform(0.0, seconds, random.poisson(p.fill_rate_bid * seconds)))
        reach = np.floor(random.exponential(1.0 / p.fill_decay_bid, len(stamps)) / tick)
        mid = mids[np.searchsorted(times, stamps, side="right") - 1]
        prices = mid + sign * np.minimum(reach, half - 1)
        rows += [(t, "trade", *[np.nan] * 4, x, 1.0, side) for t, x in zip(stamps, prices, strict=True)]
    tape = pd.DataFrame(rows, columns=list(TAPE_COLUMNS)).sort_values("time_s", kind="stable")
    for name in ("bid", "ask", "price"):
        tape[name] *= tick
    tape.to_csv(path, index=False, float_format="%.9f")
    return path


@pytest.mark.long
def test_on_the_models_own_book_the_replay_earns_the_exact_score(tmp_path: Path) -> None:
    env = glft(horizon=10.0, num_steps=100)
    path = model_tape(tmp_path / "tape.csv", env, seconds=2400.0, tick=0.001, seed=5)
    played = read_recording(path, tick=0.001, lot=0.001)
    assumed = Assumptions(fills="whole", order_latency=0.0, response_latency=0.0)
    comparison = compare(env, optimal_policy(env), [played], assumed, interval=0.02)
    session = comparison.sessions[0]
    assert session.episodes == 239  # the last event comes just before the end of the 240th
    for figure, values in (("P&L", session.pnl), ("fills", np.bincount(session.fills["episode"], minlength=239))):
        stderr = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(comparison.table.loc[figure, "model"] - values.mean()) < 4 * stderr
        assert comparison.table.loc[figure, "book"] == pytest.approx(values.mean(), rel=1e-9)
    assert comparison.table.loc["P&L, standard deviation", "book"] == pytest.approx(comparison.score.pnl_std, rel=0.2)
    amounts = comparison.parts["amount"]
    assert amounts["queue, size of orders"] == amounts["latency"] == amounts["fees beyond the model's"] == 0.0
    assert amounts.iloc[:-1].sum() == pytest.approx(amounts.iloc[-1], abs=1e-9)
    ratios = fills_by_depth([session], rules_of(env))
    total = ratios["fills"].sum() / ratios["expected"].sum()
    assert abs(total - 1.0) < 4 / math.sqrt(ratios["expected"].sum()) + 0.01  # an order is posted again 10 ms late


@pytest.mark.long
def test_the_parts_add_up_to_the_difference() -> None:
    rows = [*HAND, (6.2, TRADE, SELL, 97, 0.4), (7.3, TRADE, BUY, 103, 9), (8.2, DEPTH, BUY, 98, 2)]
    played = made(sorted(rows, key=lambda row: row[0]), end=9.0, late=0.05)
    costs = Costs(0.001, 0.002)
    assumed = Assumptions(order_latency=0.3, response_latency=0.2)
    for ending in ("carry", "pass_on", "liquidate"):
        comparison = compare(glft(), quoting(1.0, 1.0), [played], assumed, costs=costs, interval=0.5, ending=ending)  # type: ignore[arg-type]
        amounts = comparison.parts["amount"]
        assert amounts.iloc[:-1].sum() == pytest.approx(amounts.iloc[-1], abs=1e-9)
        assert amounts.iloc[0] == comparison.score.pnl
        fees = comparison.sessions[0].fills["fee"].sum() / comparison.sessions[0].episodes
        assert amounts["fees beyond the model's"] == pytest.approx(-fees)
        assert amounts.iloc[-1] == pytest.approx(comparison.sessions[0].pnl.mean())


# Policies and markets


class Remembering(PolicyThrough):
    """A policy that says it remembers, and counts how often it was asked."""

    markov = False

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.starts: list[bool] = []

    def predict(self, observation: Any, *rest: Any, **keywords: Any) -> Any:
        self.starts.append(bool(keywords["episode_start"][0]))
        return super().predict(observation, *rest, **keywords)


def busy(seconds: float = 200.0, seed: int = 1) -> Recording:
    """A random book around 100 with a tick of 1, orders of all sizes and a moving mid, whose data arrive 20 ms late."""
    random, rows = np.random.default_rng(seed), []
    bid, time = 100, 0.0
    rows += [(0.0, DEPTH, BUY, 100 - k, 5) for k in range(8)] + [(0.0, DEPTH, SELL, 102 + k, 5) for k in range(8)]
    while time < seconds - 1.0:
        time += round(float(random.exponential(0.2)), 3)
        if random.random() < 0.7:
            sell = random.random() < 0.5
            reach = int(random.geometric(0.5)) - 1
            rows.append(
                (
                    time,
                    TRADE,
                    SELL if sell else BUY,
                    bid - reach if sell else bid + 2 + reach,
                    round(random.uniform(0.1, 3), 1),
                )
            )
        else:
            move = 1 if random.random() < 0.5 else -1
            gone, new = ((SELL, bid + 2), (BUY, bid + 1)) if move > 0 else ((BUY, bid), (SELL, bid + 1))
            far = (SELL, bid + 10) if move > 0 else (BUY, bid - 8)
            rows += [
                (time, DEPTH, *gone, 0),
                (time, DEPTH, *new, round(random.uniform(1, 5), 1)),
                (time, DEPTH, *far, 5),
            ]
            bid += move
    return made(rows, end=seconds, late=0.02)


SHORT = {"horizon": 20.0, "num_steps": 20}
CURVE = {"fill_rate": 1.0, "fill_decay": 0.5, "inventory_limit": 2.0, **SHORT}
MINUTES = {"horizon": 0.5, "num_steps": 30, "inventory_limit": 3, "fill_decay": 0.7}
SIZES = {"lot": 1.0, "limit_order_max": 2.0, "market_order_max": 1.0, "inventory_limit": 4.0}
PLAYED = [
    ("mmgym/GLFT-v0", {"fill_rate": 1.0, "fill_decay": 0.5, "inventory_limit": 2, **SHORT}, "hjb"),
    ("mmgym/Impact-v0", {**CURVE, "impact": 0.5, "pressure_drift": 0.5, "pressure_decay": 0.5}, "hjb"),
    ("mmgym/TickQuotes-v0", {**CURVE, "tick": 1.0}, "rounded"),
    ("mmgym/GeometricPrice-v0", {**CURVE, "initial_price": 101.0, "volatility": 0.01, "drift": 0.0}, "hjb"),
    ("mmgym/ShortTermAlpha-v0", {**CURVE, "alpha": 0.5, "switching_rate": 0.2}, "hjb"),
    ("mmgym/StochasticVolatility-v0", {"fill_rate": 1.0, "fill_decay": 0.5, "inventory_limit": 2.0, **SHORT}, "hjb"),
    ("mmgym/HawkesFlow-v0", {"half_spread": 1.0, **MINUTES}, "corollary_3"),
    ("mmgym/HawkesPower-v0", {"tick": 1.0, **MINUTES}, "join_best"),
    ("mmgym/TickSpread-v0", {"tick": 1.0, **SIZES, **SHORT}, "qvi"),
]


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments", "name"), PLAYED, ids=[row[0] for row in PLAYED])
def test_a_policy_plays_the_same_asked_once_or_at_every_decision(
    env_id: str, arguments: dict[str, Any], name: str
) -> None:
    env = gymnasium.make(env_id, **arguments).unwrapped
    policies = paper_policies(env)
    policy = policies[name]
    played = busy()
    session = replay(env, policy, played, interval=0.25)
    asked = Remembering(policy)
    again = replay(env, asked, played, interval=0.25)
    pd.testing.assert_frame_equal(session.fills, again.fills)
    np.testing.assert_array_equal(session.own, again.own)
    assert len(session.fills) > 20
    assert sum(asked.starts) >= session.episodes > 3
    assert np.abs(session.inventory).max() <= rules_of(env).limit * rules_of(env).unit + 1e-9
    signed = session.fills["size"] * np.where(session.fills["side"] == "buy", 1.0, -1.0)
    if rules_of(env).ending == "liquidate":
        assert signed.sum() == pytest.approx(0.0, abs=1e-9)
        paid = -(signed * session.fills["price"]).sum()
        assert session.gains[-1] == pytest.approx(paid, abs=1e-7)


@pytest.mark.long
def test_a_declared_market() -> None:
    arguments = {"horizon": 20.0, "num_steps": 20, "fill_rate": 1.0, "fill_decay": 0.5, "inventory_limit": 2.0}
    one = gymnasium.make("mmgym/FillCurves-v0", fee=0.25, **arguments).unwrapped
    rules = rules_of(one)
    assert rules.fees == (pytest.approx(0.25), 0.0)
    depth = np.array([[1.0, 2.0], [0.5, 1.0]])
    np.testing.assert_allclose(rules.intensity(1, depth, depth, depth), np.exp(-0.5 * depth))
    session = replay(one, optimal_policy(one), busy(), interval=0.25)
    np.testing.assert_allclose(session.fills["fee"], 0.25 * session.fills["size"])


def test_the_state_of_the_impact_market_after_fills() -> None:
    env = gymnasium.make("mmgym/Impact-v0", pressure_limit=3, pressure_decay=0.7, order_size=0.5, inventory_limit=2.0)
    state = rules_of(env.unwrapped).state
    assert state is not None
    after = state.after
    assert after is not None
    assert state.count == 7
    assert after.unit == 0.5
    pressure = impact.MARKET.states(env.unwrapped.params)[:, 1]
    np.testing.assert_array_equal(state.numbers, pressure + 3)
    expected = np.zeros((7, 7))
    for m in range(-3, 4):
        if m:
            expected[m + 3, m + 3 - int(np.sign(m))] = 0.7 * abs(m)
            expected[m + 3, m + 3] = -0.7 * abs(m)
    np.testing.assert_allclose(after.generator, expected, rtol=1e-12)
    np.testing.assert_array_equal(after.moved, [[0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 6]])
    np.testing.assert_array_equal(after.start, np.arange(7) == 3)


def test_the_price_on_its_grid() -> None:
    env = gymnasium.make(
        "mmgym/GeometricPrice-v0", initial_price=100.0, volatility=0.01, drift=0.0, price_levels=5
    ).unwrapped
    state = rules_of(env).state
    assert state is not None
    assert state.follow is not None
    assert (state.count, state.initial_price) == (11, 100.0)
    moves = np.array([0.0, 0.3, -0.6, 2.2, 99.0, -99.0, 0.0, 1.1])
    begins = np.array([True, False, False, False, False, False, True, False])
    mids = 100.0 + moves
    mids[6:] += 7.0  # another episode, which starts elsewhere
    grid = 100.0 * (np.exp(env.params.spacing * np.arange(-5, 6)) - 1.0)
    expected = [int(np.abs(grid - move).argmin()) for move in moves]
    np.testing.assert_array_equal(state.follow(mids, begins, 0.1), expected)
    with pytest.raises(ValueError, match=r"its mid is 101 at the start, initial_price = 112 .*within 10 %"):
        replay(gymnasium.make("mmgym/GeometricPrice-v0", initial_price=112.0).unwrapped, None, made([*BOOK, *LAST]))


def test_the_signal_is_filtered_from_the_mid() -> None:
    """Beside Bayes' rule for a chain that moves at 8 points of each step of the filter."""
    arguments = {"alpha": 3.0, "switching_rate": 0.8, "signal_levels": 2, "volatility": 1.5}
    env = gymnasium.make("mmgym/ShortTermAlpha-v0", **arguments).unwrapped
    state = rules_of(env).state
    assert state is not None
    assert state.follow is not None
    assert state.count == 5
    random, seconds, count, fine = np.random.default_rng(5), 0.05, 2000, 8
    levels = np.arange(-2, 3)
    drift = 3.0 * levels / math.sqrt(2)
    generator = np.diag(0.4 * (2.0 - levels[:-1]), 1) + np.diag(0.4 * (2.0 + levels[1:]), -1)
    generator -= np.diag(generator.sum(axis=1))
    step = scipy.linalg.expm(generator * seconds / fine)
    m, moves, truth = 2, np.empty(count), np.empty(count, dtype=np.int64)
    for d in range(count):
        moves[d] = random.normal(0.0, 1.5 * math.sqrt(seconds))
        for _ in range(fine):
            moves[d] += drift[m] * seconds / fine
            m = int(random.choice(5, p=step[m]))
        truth[d] = m
    followed = state.follow(100.0 + np.concatenate([[0.0], moves.cumsum()]), np.zeros(count + 1, dtype=bool), seconds)
    law = np.array([1, 4, 6, 4, 1]) / 16.0
    assert followed[0] == 2
    likeliest = np.empty(count, dtype=np.int64)
    for d in range(count):  # the mean drift over a step, by the fine chain from each start
        means = sum(np.linalg.matrix_power(step, k) @ drift for k in range(fine)) / fine
        seen = scipy.stats.norm.pdf(moves[d], means * seconds, 1.5 * math.sqrt(seconds))
        law = (law * seen) @ np.linalg.matrix_power(step, fine)
        law /= law.sum()
        likeliest[d] = law.argmax()
    assert (followed[1:] == likeliest).mean() > 0.99  # but for the fineness of the chain
    assert (followed[1:] == truth).mean() > (truth == 2).mean() + 0.05


def test_a_filter_that_starts_where_it_is_known() -> None:
    """Moves that are as good as impossible at the start: what is known does not become not-a-number."""
    generator, drift, variance = np.array([[-1.0, 1.0], [1.0, -1.0]]), np.array([-5.0, 5.0]), np.full(2, 1e-4)
    mids = np.array([0.0, 1.0, 2.0, 3.0, 2.0, 1.0])
    found = most_likely(generator, np.array([1.0, 0.0]), drift, variance, mids, np.zeros(6, dtype=bool), 0.1)
    assert found[2:].tolist() == [1, 1, 0, 0]


class Regimes(quoted.parameters()):
    """Of a market of our own: fills, a regime, and what it moves."""


def own_market(name: str, sides: tuple[str, ...] = ("bid", "ask"), decay: float = 0.0, **changes: Any) -> Any:
    """Rules of a market with a regime of the drift, or as changed."""

    def fills(side: str) -> declare.Event:
        j, sign = (0, 1) if side == "bid" else (1, -1)
        return declare.Event(
            side,
            intensity=lambda p, x, u: declare.exp(-(1.0 + decay * x.regime) * (u[j] - p.min_depth)),
            effect=lambda x: (x.inventory + sign, x.regime),
            payoff=lambda p, u: p.order_size * u[j],
            when=lambda p, x: abs(x.inventory + sign) <= p.limit,
            counts=side,
        )

    market = declare.Market(
        name=name,
        title=name,
        params=type(name, (Regimes,), {}),
        coordinates=[quoted.inventory(), declare.Coordinate("regime", 0, 2)],
        controls=[quoted.depth_box("bid_depth"), quoted.depth_box("ask_depth")],
        events=[
            *[fills(side) for side in sides],
            declare.Event("next", intensity=lambda p: 1.0, effect=lambda x: (x.inventory, (x.regime + 1) % 3)),
        ],
        start=lambda p: (p.start, 0),
        policies={"constant": lambda p, x, n: (1.0, 2.0)},
        position=quoted.position,
        **changes,
    )
    parameters = {"horizon": 5.0, "num_steps": 5, "inventory_limit": 2.0, "fill_decay": 0.5}
    return declared_rules(market, market.params.create(**parameters))


@pytest.mark.long
def test_markets_of_our_own_that_a_book_tells_or_not() -> None:
    told: Any = {"drift": lambda p, x: 1.0 * x.regime, "variance": lambda p: p.volatility**2}
    usual, turned = own_market("Usual", **told), own_market("Turned", ("ask", "bid"), **told)
    controls = np.array([0.5, 1.5])
    for one in (usual, turned):
        assert one.orders(controls).tolist() == [0.5, 1.5, 1.0, 1.0, 0.0]
        assert one.state.count == 3
    with pytest.raises(TypeError, match="fills depend on it"):
        own_market("Decays", decay=0.5, **told)  # alike at the smallest depth
    with pytest.raises(TypeError, match="several of its states have the same mid"):
        own_market("Hidden", mid=lambda p, x: 1.0 * (x.regime == 2))


@pytest.mark.parametrize("reversion", [1e-18, 0.3])
def test_the_error_of_the_variance_before_a_move(reversion: float) -> None:
    arguments = {"variance_mean": 0.5, "initial_variance": 0.5, "variance_volatility": 0.3}
    p = gymnasium.make("mmgym/StochasticVolatility-v0", variance_reversion=0.4, **arguments).unwrapped.params
    p = p._replace(variance_reversion=reversion)
    added = 0.3**2 * 0.5 * scipy.integrate.quad(lambda s: math.exp(-2.0 * reversion * s), 0.0, 1.0)[0]
    kept, error = math.exp(-reversion), 0.0
    for _ in range(1000):
        error = kept**2 * error * 0.5 / (error + 0.5) + added
    found = variances(p, np.array([50.0, 52.0]), 1.0)[:, 0]
    np.testing.assert_allclose(found, [0.5, 0.5 + error / (error + 0.5) * (4.0 - 0.5)], rtol=1e-9)


def test_the_variance_is_filtered_from_the_mid() -> None:
    arguments = {"variance_mean": 0.5, "initial_variance": 0.2, "variance_volatility": 0.3, "variance_reversion": 0.4}
    p = gymnasium.make("mmgym/StochasticVolatility-v0", **arguments).unwrapped.params
    mids = 50.0 + np.random.default_rng(2).normal(0.0, 0.3, 101).cumsum()
    filtered = variances(p, mids, 0.25)[:, 0]
    kept, noise = math.exp(-0.4), 2.0 * 0.5**2
    error = 0.0  # known at the start; the filter is the stationary one
    for _ in range(1000):
        error = kept**2 * error * noise / (error + noise) + 0.3**2 * 0.5 / 0.8 * (1.0 - kept**2)
    gain, expected = error / (error + noise), [0.2]
    for move in np.diff(mids[::4]):
        ahead = 0.5 + (expected[-1] - 0.5) * kept
        expected.append(max(ahead + gain * (move**2 - ahead), 0.0))
    np.testing.assert_allclose(filtered, np.repeat(expected, 4)[: len(mids)], rtol=1e-9)
    calm = p._replace(variance_volatility=0.0)
    np.testing.assert_allclose(variances(calm, mids, 1.0)[:, 0], 0.5 - 0.3 * kept ** np.arange(101), rtol=1e-9)


def test_intensities_are_the_sum_over_past_events() -> None:
    rules = rules_of(gymnasium.make("mmgym/HawkesFlow-v0").unwrapped)
    processes = rules.processes
    assert processes is not None
    stamps, kinds = SECOND * np.array([1, 70, 70, 100]), np.array([0, 1, 0, 1])
    times = SECOND * np.array([60, 70, 90, 130])
    rates = intensities(processes, stamps, kinds, times, 60.0)
    for time, row in zip(times, rates, strict=True):
        left = processes.initial - processes.base_rate
        expected = processes.base_rate + left * np.exp(-processes.decay * (time - times[0]) / 60 / SECOND)
        for stamp, kind in zip(stamps, kinds, strict=True):
            if times[0] <= stamp <= time:
                gap = (time - stamp) / 60 / SECOND
                expected[kind] += processes.excitation[kind] * math.exp(-processes.decay[kind] * gap)
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_events_of_the_power_market_on_a_book() -> None:
    from mmgym.baselines.hawkes_power.replay import book_events

    times = np.array([0, 1, 2, 3, 4])
    ticks = np.array([[10, 12], [11, 12], [10, 12], [10, 13], [10, 12]])
    stamps, kinds = book_events(times, ticks, np.array([2, 3]), np.array([-1, -1]))
    # 1: a better bid; 2: it falls by the sell order; 3: the ask rises, not by the sell order; 4: a better ask
    assert list(zip(stamps.tolist(), kinds.tolist(), strict=True)) == [(1, 0), (2, 5), (3, 5), (3, 2), (4, 3)]


def test_markets_that_a_book_does_not_show() -> None:
    for env_id, why in (
        ("mmgym/Dealer-v0", "of one size: 3 bids and 3 asks"),
        ("mmgym/MultiAssetGLFT-v0", "on a book of one asset"),
    ):
        with pytest.raises(TypeError, match=f"cannot be replayed.*{why}"):
            rules_of(gymnasium.make(env_id).unwrapped)
    drawn = gymnasium.make("mmgym/GLFT-v0", randomise={"volatility": ["uniform", 0.1, 0.2]}).unwrapped
    with pytest.raises(TypeError, match="differ by row or episode"):
        rules_of(drawn)


def test_the_schedule() -> None:
    played = made([*BOOK, *LAST], end=10.0)
    times, count, step = schedule(played, 4.0, 2, 1.0)
    assert (times - SECOND).tolist() == [k * SECOND for k in range(9)]
    assert (count, step.tolist()) == (4, [0, 0, 1, 1, 0, 0, 1, 1, 2])
    with pytest.raises(ValueError, match="10 s are less than one episode of 20 s"):
        schedule(played, 20.0, 2, 1.0)
    for interval in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            schedule(played, 4.0, 2, interval)
    with pytest.raises(ValueError, match="too often"):
        schedule(played, 4.0, 2, 1e-8)


def test_wrong_arguments() -> None:
    played = made([*BOOK, *LAST])
    with pytest.raises(ValueError, match=r"its tick is 1, that of the market 0\.005"):
        replay(gymnasium.make("mmgym/TickSpread-v0").unwrapped, None, played)
    with pytest.raises(ValueError, match=r"its lot is 0\.1, more than an order of the market, 0\.01"):
        replay(glft(order_size=0.01, inventory_limit=0.1), None, played)
    with pytest.raises(ValueError, match="starts without inventory"):
        replay(glft(initial_inventory=1.0), None, played)
    for wrong in ({"queue": "fifo"}, {"fills": "none"}, {"order_latency": -1.0}, {"feed_latency": math.nan}):
        with pytest.raises(ValueError, match="must be"):
            Assumptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        compare(glft(), None, [played], horizon=0.0)


def test_intervals_of_ratios() -> None:
    random = np.random.default_rng(3)
    values, ones = random.normal(5.0, 2.0, 400), np.ones(400)
    low, high = interval_of_ratio(values, ones)
    stderr = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * stderr, abs=0.15 * stderr)
    assert high == pytest.approx(values.mean() + 1.96 * stderr, abs=0.15 * stderr)
    assert interval_of_ratio(2.0 * ones, ones) == (2.0, 2.0)
    assert all(map(math.isnan, interval_of_ratio(values[:4], ones[:4])))
    assert all(map(math.isnan, interval_of_ratio(values, 0 * ones)))


# Files


def test_a_level_1_tape_becomes_a_book(tmp_path: Path) -> None:
    text = """time_s,event,bid,bid_size,ask,ask_size,price,size,side
5.0,quote,99,3,101,4,,,
6.0,quote,100,2,101,4,,,
6.5,trade,,,,,100,2,sell
6.5,quote,98,7,101,1,,,
7.0,quote,99,1,100,5,,,
"""
    (tmp_path / "tape.csv").write_text(text, encoding="utf-8")
    read = read_recording(tmp_path / "tape.csv", lot=0.5)
    kinds = {DEPTH | BUY: "bid", DEPTH | SELL: "ask", TRADE | SELL: "sold"}
    rows = [((e["exch_ts"] - SECOND) / SECOND, kinds[int(e["ev"]) & ~BOTH], e["px"], e["qty"]) for e in read.events]
    assert rows == [
        (0.0, "bid", 99, 3), (0.0, "ask", 101, 4),
        (1.0, "bid", 100, 2), (1.0, "ask", 101, 4),
        (1.5, "sold", 100, 2),
        (1.5, "bid", 100, 0), (1.5, "bid", 99, 0), (1.5, "bid", 98, 7), (1.5, "ask", 101, 1),
        (2.0, "bid", 99, 1), (2.0, "ask", 100, 5),
    ]  # fmt: skip
    assert (read.tick, read.lot, read.seconds) == (1.0, 0.5, 2.0)
    np.testing.assert_array_equal(read.events["local_ts"], read.events["exch_ts"])


def test_windows_of_a_recording(tmp_path: Path) -> None:
    text = "time_s,event,bid,bid_size,ask,ask_size,price,size,side\n" + "".join(
        f"{100 + k},quote,{99 + k % 2},3,{101 + k % 2},4,,,\n" for k in range(20)
    )
    (tmp_path / "tape.csv").write_text(text, encoding="utf-8")
    whole = read_recording(tmp_path / "tape.csv")
    assert within(whole, Selection()) == [whole]
    (part,) = within(whole, Selection(start=104, end="112"))
    assert part.source == "tape.csv, 104 to 112 s"
    assert ((part.start - whole.start) / SECOND, part.seconds) == (4.0, 8.0)
    assert without_feed_latency(part).end == part.end
    with pytest.raises(ValueError, match=r"start = 130 .*runs from 100 to 119 s"):
        within(whole, Selection(start=130))
    with pytest.raises(ValueError, match="have no date"):
        within(whole, Selection(start="2024-08-08T10:00"))
    played = made([*BOOK, (3.0, TRADE, SELL, 100, 1), (9.9, DEPTH, SELL, 101, 1)], end=9.95)
    events = played.events.copy()
    midnight = 1_723_075_200 * SECOND  # 2024-08-08
    for column in ("exch_ts", "local_ts"):
        events[column] += midnight + 36_000 * SECOND - SECOND
    np.savez(tmp_path / "a.npz", data=events)
    (dated,) = read_recordings([tmp_path / "a.npz"], Selection(start="2024-08-08T10:00:02", end=36_005))
    assert (dated.start - midnight, dated.seconds) == (36_002 * SECOND, 3.0)


def test_what_is_missing_at_the_ends_of_a_window() -> None:
    sides = [(0.0, DEPTH, BUY, 99, 3), (0.0, DEPTH, SELL, 101, 3)]
    rows = [*sides, *[(500 + k / 2, DEPTH, BUY, 99, 3 + k % 2) for k in range(300)], (5000.0, DEPTH, BUY, 99, 3)]
    whole = made(rows, end=5000.0)  # its seconds begin at 1
    (part,) = within(whole, Selection(start=101, end=701))
    assert [(stamp - SECOND) / SECOND for stamp in (part.start, part.end)] == [500.0, 649.5]
    assert part.findings[-1].name == "gaps" and part.findings[-1].text.startswith("2 gaps")


def test_a_window_of_whole_episodes_has_all_of_them() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        horizon, steps, count = (
            float(random.integers(1, 100)),
            int(random.integers(1, 3000)),
            int(random.integers(1, 9)),
        )
        window = made(BOOK, end=horizon * count)
        times, each, _ = schedule(window, horizon, steps, horizon / steps)
        assert (len(times) - 1) // each == count
        assert 0 <= window.end - times[-1] <= len(times)


@pytest.mark.long
@pytest.mark.parametrize("env_id", ["mmgym/ShortTermAlpha-v0", "mmgym/StochasticVolatility-v0", "mmgym/HawkesFlow-v0"])
def test_what_a_policy_is_told_comes_as_late_as_market_data(env_id: str) -> None:
    """Later data, or data recorded later, tell the same."""
    arguments = next(given for name, given, _ in PLAYED if name == env_id)
    env = gymnasium.make(env_id, **arguments).unwrapped
    played, late = busy(60.0), 1.5
    events = played.events.copy()
    events["local_ts"] += round(late * SECOND)
    policy = optimal_policy(env) if env_id != "mmgym/HawkesFlow-v0" else paper_policies(env)["corollary_3"]
    for _ in range(2):  # what was played stays as it was
        by_option = replay(env, policy, played, Assumptions(feed_latency=late), interval=0.25)
    by_data = replay(env, policy, replace(played, events=events), interval=0.25)
    np.testing.assert_array_equal(by_option.own, by_data.own)
    pd.testing.assert_frame_equal(by_option.fills, by_data.fills)


@pytest.mark.long
def test_gaps_split_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played = busy(100.0)
    events = played.events.copy()
    for column in ("exch_ts", "local_ts"):  # a first and a second outage of ten minutes, after 40 s and after 45 s
        since = (events[column] - SECOND) / SECOND
        events[column] += 600 * SECOND * ((since > 40).astype(np.int64) + (since > 45))
    np.savez(tmp_path / "a.npz", data=events)
    parts = read_recordings([tmp_path / "a.npz"], lot=0.1)
    assert [part.source for part in parts] == ["a.npz (1)", "a.npz (2)", "a.npz (3)"]
    assert [part.seconds for part in parts] == pytest.approx([40.0, 5.0, 54.0], abs=1.0)
    assert [finding.name for finding in parts[0].findings] == ["gaps"]
    assert "2 gaps without events" in parts[0].findings[-1].text
    words = ["--set", "horizon=20", "--set", "num_steps=20", "--set", "fill_decay=0.5", "--set", "inventory_limit=2"]
    command("glft", tmp_path / "a.npz", "--lot", 0.1, *words)
    out = capsys.readouterr().out
    assert "a.npz (2): left out, " in out
    assert "GLFT-v0: 3 episodes of 20 s" in out


def test_what_is_found_in_a_tape_is_said(tmp_path: Path) -> None:
    text = "time_s,event,bid,bid_size,ask,ask_size,price,size,side\n" + "".join(
        f"{k},quote,{99 + k % 2},3,{101 + k % 2 if k != 7 else 90},4,,,\n" for k in range(30)
    )
    (tmp_path / "tape.csv").write_text(text, encoding="utf-8")
    read = read_recording(tmp_path / "tape.csv")
    assert [finding.name for finding in read.findings] == ["crossed_book"]


def jumping(path: Path, *, late: float = 0.0, flipped: bool = False) -> Path:
    """Orders of every second that take the best price, which moves there at once; trades may be stamped late."""
    random, rows = np.random.default_rng(4), []
    bid = 1000
    for time in np.round(np.arange(1.0, 401.0) + random.uniform(0.0, 0.8, 400), 3):
        rows.append((time - 0.1, 1, ("quote", bid, 2, bid + 1, 2, np.nan, np.nan, "")))
        sign = int(random.choice([-1, 1]))
        side, price = ("buy", bid + 1) if sign > 0 else ("sell", bid)
        named = {"buy": "sell", "sell": "buy"}[side] if flipped else side
        rows.append((time + late, 0, ("trade", *[np.nan] * 4, price, 2, named)))
        bid += 3 * sign
        rows.append((time, 1, ("quote", bid, 2, bid + 1, 2, np.nan, np.nan, "")))
    tape = pd.DataFrame([(round(row[0], 6), *row[2]) for row in sorted(rows)], columns=list(TAPE_COLUMNS))
    tape.to_csv(path, index=False)
    return path


@pytest.mark.long
def test_the_checker_of_calibrations_warns_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lot", 1, "--set", "horizon=20", "--set", "num_steps=20", "--set", "fill_decay=0.5"]
    words += ["--set", "inventory_limit=2"]
    late = jumping(tmp_path / "late.csv", late=0.012)
    command("glft", late, *words, "--start", -5, "--folder", tmp_path / "out")
    out = capsys.readouterr().out
    assert "late.csv: WARNING (late_trades): " in out
    assert "if trades were 12 ms earlier" in out
    assert "WARNING (window): " in out
    assert "start = -5 lies before its first event" in out
    content = json.loads((tmp_path / "out" / "replay.json").read_text(encoding="utf-8"))
    assert [warning["name"] for warning in content["warnings"]] == ["window", "late_trades"]
    assert content["warnings"][1]["text"] == check_level1(late).findings[0].text
    for name in ("metrics", "parts", "model_against_book", "fills_by_depth"):
        table = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        assert (table["warning"] == "window, late_trades").all()
    command("glft", jumping(tmp_path / "clean.csv"), *words)
    assert "WARNING" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"flipped\.csv, column 'side': flipped sides"):
        command("glft", jumping(tmp_path / "flipped.csv", flipped=True), *words)


def test_an_npz_file_of_hftbacktest(tmp_path: Path) -> None:
    played = made(HAND, late=0.25)
    np.savez(tmp_path / "a.npz", data=played.events)
    read = read_recording(tmp_path / "a.npz", lot=0.1)
    np.testing.assert_array_equal(read.events, played.events)
    assert (read.start, read.tick) == (SECOND + SECOND // 4, 1.0)
    still = without_feed_latency(read)
    np.testing.assert_array_equal(still.events["local_ts"], played.events["exch_ts"])
    late = played.events.copy()
    late["exch_ts"][3] = 0
    for name, arrays, message in (
        ("b.npz", {"other": np.ones(3)}, "an array 'data'"),
        ("c.npz", {"data": np.ones(3)}, "with the fields ev, exch_ts"),
        ("d.npz", {"data": late}, "the time exch_ts falls"),
        ("e.npz", {"data": played.events[played.events["ev"] & 0xFF == TRADE]}, "no event of the book"),
        ("f.npz", {"data": played.events[:2]}, "one side only"),
    ):
        np.savez(tmp_path / name, **arrays)
        with pytest.raises(ValueError, match=message):
            read_recording(tmp_path / name)
    (tmp_path / "g.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="not a file of hftbacktest"):
        read_recording(tmp_path / "g.npz")
    with pytest.raises(ValueError, match="tick = -1"):
        read_recording(tmp_path / "a.npz", tick=-1.0)


def stream(path: Path, spot: bool) -> Path:
    """A short stream: a snapshot, a change of the book, a trade, best quotes."""
    stamp = {} if spot else {"T": 1_000}
    lines = [
        {"lastUpdateId": 1, **stamp, "bids": [["10.0", "2"]], "asks": [["10.5", "3"]]},
        {"stream": "x@depth", "data": {"e": "depthUpdate", "E": 1_000, **stamp, "b": [["10.1", "1"]], "a": []}},
        {"stream": "x@bookTicker", "data": {"u": 1, "b": "10.1", "B": "1", "a": "10.5", "A": "3"}
         | ({} if spot else {"e": "bookTicker", "E": 1_001, "T": 1_001})},
        {"stream": "x@trade", "data": {"e": "trade", "E": 3_000, "T": 3_000, "p": "10.1", "q": "0.5", "m": True}
         | ({} if spot else {"X": "MARKET"})},
    ]  # fmt: skip
    with gzip.open(path, "wt", encoding="utf-8") as target:
        for number, line in enumerate(lines):
            target.write(f"{1_723_161_255_088_156_767 + 700_000_000 * number} {json.dumps(line)}\n")
    return path


@pytest.mark.long
@pytest.mark.parametrize("spot", [False, True])
def test_a_stream_of_binance(tmp_path: Path, spot: bool) -> None:
    read = read_recording(stream(tmp_path / "s.gz", spot), tick=0.1, lot=0.1)
    trades = read.events[read.events["ev"] & 0xFF == TRADE]
    assert trades["px"].tolist() == [10.1]
    assert trades["exch_ts"].tolist() == [3_000_000_000]
    assert any("left out" in remark for remark in read.remarks) == spot
    assert (read.events["local_ts"] >= read.events["exch_ts"]).all()
    (tmp_path / "t.gz").write_bytes((tmp_path / "s.gz").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"t\.gz"):
        read_recording(tmp_path / "t.gz")
    with gzip.open(tmp_path / "u.gz", "wt", encoding="utf-8") as target:
        target.write("1723161255088156767 {broken\n")
    with pytest.raises(ValueError, match="line 1: a line is a local time and a message"):
        read_recording(tmp_path / "u.gz")


# The shared recordings


@pytest.mark.long
def test_the_recording_of_a_future() -> None:
    path = recording("ethusdt_perpetual_20240808_stream.gz")
    read = read_recording(path)
    assert (read.tick, read.lot) == (0.01, 0.001)
    tape = pd.read_csv(recording("ethusdt_perpetual_20240808_level1.csv.gz"))
    level_1 = read_recording(recording("ethusdt_perpetual_20240808_level1.csv.gz"))
    trades = [r.events[r.events["ev"] & 0xFF == TRADE] for r in (read, level_1)]
    assert len(trades[1]) == (tape["event"] == "trade").sum()
    arguments = {"fill_rate": 0.8, "fill_decay": 6.0, "volatility": 0.15, "horizon": 30.0, "num_steps": 30}
    env = glft(**arguments)
    sessions = [replay(env, optimal_policy(env), one, interval=0.1) for one in (read, level_1)]
    for session in sessions:
        assert session.episodes == 11
        signed = session.fills["size"] * np.where(session.fills["side"] == "buy", 1.0, -1.0)
        rest = np.add.reduceat(session.fills["size"].to_numpy(), [0]).sum()
        assert rest > 50
        cash = -(signed * session.fills["price"]).groupby(session.fills["episode"]).sum()
        mids = session.best[:: session.steps].mean(axis=1)[1:] * read.tick
        np.testing.assert_allclose(
            session.pnl, cash.reindex(range(11), fill_value=0.0) + session.closing * mids, atol=1e-6
        )
        # the adverse selection of these minutes: a fill is followed by more than its depth
        depth = (session.fills["depth"] * session.fills["size"]).sum()
        assert adverse_moves(session, 1.0).sum() < -depth
    # of the full book and of its best prices one plays much the same
    assert sessions[0].fills["size"].sum() == pytest.approx(sessions[1].fills["size"].sum(), rel=0.25)


@pytest.mark.long
def test_the_recording_of_a_spot_market() -> None:
    read = read_recording(recording("btcusdt_spot_20240808_stream.gz"))
    assert (read.tick, read.lot) == (0.01, 1e-6)
    assert any("left out" in remark for remark in read.remarks)
    env = glft(
        fill_rate=0.5, fill_decay=0.5, volatility=3.0, horizon=30.0, num_steps=30, order_size=0.01, inventory_limit=0.03
    )
    session = replay(env, optimal_policy(env), read)
    assert session.episodes >= 10
    assert len(session.fills) > 20
    assert np.abs(session.inventory).max() < 0.03 + 1e-9


# The command


def command(*words: Any) -> None:
    assert main(["--traceback", "replay", *(str(word) for word in words)]) == 0


@pytest.mark.long
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", data=busy().events)
    arguments = {"fill_rate": 1.0, "fill_decay": 0.5, "horizon": 20.0, "num_steps": 20, "inventory_limit": 2}
    (tmp_path / "fit.json").write_text(json.dumps({"arguments": {"mmgym/GLFT-v0": arguments}}), encoding="utf-8")
    folder = tmp_path / "out"
    words = [
        "--params",
        tmp_path / "fit.json",
        "--set",
        "volatility=0.5",
        "--lot",
        0.1,
        "--policy",
        "optimal",
        "constant",
    ]
    words += ["--order-latency", 5, "--maker-fee", 0.001, "--folder", folder, "--output", tmp_path / "r.csv"]
    command("glft", tmp_path / "a.npz", *words)
    out = capsys.readouterr().out
    for text in (
        "queue risk_averse (only trades advance it), partial fills", "latency 5 ms to the exchange",
        "maker 0.001 of the traded value", "9 episodes of 20 s, a decision every 0.1 s", "passed on at the mid",
        "model (exact) against book", "adverse selection within 1 s", "constant: fills by depth",
    ):  # fmt: skip
        assert text in out
    env = glft(**arguments, volatility=0.5)
    assumed = Assumptions(order_latency=0.005, response_latency=0.005)
    played = read_recording(tmp_path / "a.npz", lot=0.1)
    expected = compare(env, optimal_policy(env), [played], assumed, costs=Costs(0.001))
    table = pd.read_csv(tmp_path / "r.csv")
    own = table[table["policy"] == "optimal"].set_index("figure")
    np.testing.assert_allclose(own["book"], expected.table["book"], rtol=1e-9)
    files = {"replay.csv", "fills.csv", "metrics.csv", "parts.csv", "model_against_book.csv", "fills_by_depth.csv"}
    assert {file.name for file in folder.iterdir()} == files | {"replay.json", "replay.png"}
    rows = pd.read_csv(folder / "replay.csv")
    assert len(rows) == 2 * len(expected.sessions[0].times)
    np.testing.assert_allclose(rows[rows["policy"] == "optimal"]["wealth"], expected.sessions[0].wealth, atol=1e-9)
    assert (folder / "replay.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "replay.json").read_text(encoding="utf-8"))
    assert content["arguments"] == arguments | {"volatility": 0.5}
    assert "numpy" in content["provenance"]["versions"]


def test_wrong_commands(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=made(HAND).events)
    with pytest.raises(UsageError, match="name a market"):
        command(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="no files"):
        command("glft")
    with pytest.raises(FileNotFoundError, match="no such file"):
        command("glft", tmp_path / "none.npz")
    with pytest.raises(UsageError, match="--alpha: not for a replay of a book"):
        command("glft", tmp_path / "a.npz", "--alpha", 0)
    with pytest.raises(UsageError, match="--output"):
        command("glft", tmp_path / "a.npz", "--output", tmp_path / "r.txt")
    (tmp_path / "fit.json").write_text('{"volatility": {"estimate": 1.0}}', encoding="utf-8")
    with pytest.raises(UsageError, match="no constructor arguments"):
        command("glft", tmp_path / "a.npz", "--params", tmp_path / "fit.json")
    with pytest.raises(ValueError, match=r"none\.json: there is no such file"):
        command("glft", tmp_path / "a.npz", "--params", tmp_path / "none.json")
    with pytest.raises(ValueError, match="less than one episode of 600 s"):
        command("glft", tmp_path / "a.npz")
    (tmp_path / "text.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="time_s"):
        command("glft", tmp_path / "text.csv")
