"""Quotes from a table on a recorded book: the loop over hftbacktest's backtest, and the book without own orders."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

__all__ = ["CARRY", "LIQUIDATE", "NOTHING", "PASS_ON", "AfterFills", "Book", "Player", "Quotes", "book_of"]

CARRY, PASS_ON, LIQUIDATE = 0, 1, 2  # what becomes of the inventory at the end of an episode
NOTHING = -(2**62)  # a price, in ticks, where there is no quote
POST_ONLY, IMMEDIATE = 1, 3  # hftbacktest's codes: time in force,
LIMIT, MARKET = 0, 1  # kinds of orders
NEW, FILLED, PARTLY, NO_REQUEST = 1, 3, 5, 0  # states of an order, and of what is asked of it
SLOTS = 32  # orders that may be under way at a time
ROUNDING = 1e-9  # ticks
SHORT = (
    0.25  # lots that an order is sent short: hftbacktest 2.4.4 stops where the last fill is all that was left (#312)
)
GRAINS = 1024  # pieces of an interval between decisions, for the times of fills within it
NEXT, CASH, POSITION, ANSWER = range(4)  # places of the next order's number, what is held, what hftbacktest answered


class Book(NamedTuple):
    """Best prices of a recording, one row a change.

    Attributes
    ----------
    times : int64 (n,)
        ns, not falling.
    ticks : int64 (n, 2)
        Best bid and best ask, in ticks, bid below ask.
    """

    times: Array
    ticks: Array

    def mid(self, times: Any, *, before: bool = False) -> Array:
        """Mid in ticks at times (or just before them); the first one where there is none yet."""
        row = np.searchsorted(self.times, times, side="left" if before else "right") - 1
        return np.asarray(self.ticks[np.maximum(row, 0)].sum(axis=-1) / 2.0)


class Quotes(NamedTuple):
    """What is quoted: a table, and how decisions read it.

    Attributes
    ----------
    table : float64 (R, 2 L + 1, M, Y, 5)
        By row, inventory (-L to L units), spread (1 to M ticks, M stands for more) and state of `AfterFills` (one where
        there is none): distances of bid and ask (price, infinite for none), their sizes and the market order (assets).
    rows : int64 (D,)
        Row of the table at each decision.
    unit : float
        Assets of a unit of inventory.
    from_mid : bool
        Whether distances are from the mid, else from the best price of the side.
    """

    table: Array
    rows: Array
    unit: float
    from_mid: bool


class AfterFills(NamedTuple):
    """A state that own fills move, and that goes on by itself: a Markov chain of which only the fills are seen.

    What is played is its most likely state: its law runs on by the chain, and a fill of a part of a unit moves that
    part of it.

    Attributes
    ----------
    generator : float64 (Y, Y)
        Of the chain between fills, 1 / s.
    moved : int64 (2, Y)
        State after a fill of a bid, and of an ask, of a unit.
    start : float64 (Y,)
        Its law at the first decision.
    unit : float
        Assets of a unit.
    """

    generator: Array
    moved: Array
    start: Array
    unit: float


NOT_MOVED = AfterFills(np.zeros((1, 1)), np.zeros((2, 1), dtype=np.int64), np.ones(1), 1.0)


def book_of(backtest: Any, most: int) -> Book:
    """Best prices of a backtest whenever they change, as they arrive here; ``most`` is the number of its events."""
    times, ticks = np.empty(most + 1, dtype=np.int64), np.empty((most + 1, 2), dtype=np.int64)
    count = _watch(backtest, times, ticks)
    backtest.close()
    return Book(times[:count].copy(), ticks[:count].copy())


@njit
def _watch(backtest, times, ticks):
    """Write changes of the best prices; their number."""
    count = 0
    while count < len(times):
        answer = backtest.wait_next_feed(False, 1 << 60)
        depth = backtest.depth(0)
        bid, ask = depth.best_bid_tick, depth.best_ask_tick
        if np.isfinite(depth.best_bid) and np.isfinite(depth.best_ask) and bid < ask:
            now = backtest.current_timestamp
            if count == 0 or bid != ticks[count - 1, 0] or ask != ticks[count - 1, 1]:
                if count == 0 or times[count - 1] != now:
                    count += 1
                times[count - 1], ticks[count - 1, 0], ticks[count - 1, 1] = now, bid, ask
        if answer != 2:
            break
    return count


class Player:
    """A backtest that is played decision by decision.

    At a decision the quotes follow from the table: bids are rounded down to a tick and asks up, sizes down to a lot and
    cut to the room that the inventory's limit leaves; a quote stands at least a tick from the best price of the other
    side, is post-only, and is replaced only when its price changes (the old order is cancelled and the new one sent at
    once, so that for a latency both may be filled, unless that would break the limit). A market order is sent at the
    decisions marked as fresh only. The table sees the inventory that is known here, partial fills rounded to the
    nearest unit.

    Parameters
    ----------
    backtest
        Of hftbacktest.
    times : int64 (D,)
        Of decisions, ns.
    ends, fresh : bool (D,)
        Whether an episode ends at a decision, before it, and whether a step of the market begins.
    limit : int
        Largest inventory, units.
    tick, lot : float
    ending : int
        `CARRY`, `PASS_ON` (the inventory counts as passed on at the mid) or `LIQUIDATE` (all quotes are cancelled and a
        market order closes the position; both are waited for).
    after : AfterFills, optional

    Attributes
    ----------
    own : int64 (D, 2)
        Own bid and ask after each decision, ticks, `NOTHING` for none.
    best : int64 (D, 2)
        Best prices as known here, ticks.
    inventory, wealth : float64 (D,)
        Assets held at a decision (after the end of an episode), and cash with them at the mid, without fees.
    closing : float64 (D,)
        At ends: assets held before they were closed.
    """

    def __init__(
        self,
        backtest: Any,
        times: Array,
        ends: Array,
        fresh: Array,
        limit: int,
        tick: float,
        lot: float,
        ending: int,
        after: AfterFills = NOT_MOVED,
    ) -> None:
        count = len(times)
        self._backtest, self._times, self._ends, self._fresh = backtest, times, ends, fresh
        self._fixed = (limit, tick, lot, ending)
        self.own, self.best = np.full((count, 2), NOTHING), np.zeros((count, 2), dtype=np.int64)
        self.inventory, self.wealth, self.closing = np.zeros(count), np.zeros(count), np.full(count, np.nan)
        self._slots = np.zeros((SLOTS, 5))  # id, side (2, 3: market order), price in ticks, size, filled
        self._live = np.full(2, -1, dtype=np.int64)  # slots of the quotes
        self._numbers = np.array([1.0, 0.0, 0.0, 0.0])
        self._fills, self._count = np.empty((1024, 7)), 0
        grain = max((times[-1] - times[0]) / max(count - 1, 1) / GRAINS, 1.0)  # ns
        pieces = [scipy.linalg.expm(after.generator * (grain / 1e9 * 2**k)) for k in range(GRAINS.bit_length())]
        clock = np.array([times[0], grain, after.unit])
        self._after = (after.start.astype(np.float64), np.stack(pieces), after.moved.astype(np.int64), clock)

    def play(self, quotes: Quotes, first: int, last: int) -> None:
        """Play decisions ``first`` to ``last - 1``.

        Raises
        ------
        RuntimeError
            If more orders are under way than can be followed, or hftbacktest refuses to go on.
        """
        self._fills, self._count, good = _play(
            self._backtest, first, last, self._times, self._ends, self._fresh, quotes.table, quotes.rows, quotes.unit,
            quotes.from_mid, *self._fixed, self._after, self.own, self.best, self.inventory, self.wealth, self.closing,
            self._slots, self._live, self._numbers, self._fills, self._count,
        )  # fmt: skip
        self._require_success()
        if not good:
            raise RuntimeError(f"more than {SLOTS} orders are under way: the latency is too long for this interval")

    def _require_success(self) -> None:
        if self._numbers[ANSWER] > 1.0:
            raise RuntimeError(
                f"hftbacktest stopped at {self._backtest.current_timestamp} ns with its error "
                f"{self._numbers[ANSWER]:g}: are the sizes whole lots, and the times in order?"
            )

    def inventory_at(self, decision: int) -> float:
        """Assets that are known to be held before a decision, for policies that remember."""
        self._fills, self._count = _meet(
            self._backtest, decision, self._times, self._fixed[1], self._after, self._slots, self._live,
            self._numbers, self._fills, self._count,
        )  # fmt: skip
        self._require_success()
        if self._ends[decision] and self._fixed[3] != CARRY:
            return 0.0
        return float(self._numbers[POSITION])

    @property
    def likeliest(self) -> int:
        """The most likely state of `AfterFills`, as known here."""
        return int(self._after[0].argmax())

    def close(self) -> Array:
        """Fills (F, 7), as they became known.

        Decision at which, ns of the exchange since the first decision, sign, price, size, whether by a market order
        (which is charged its worst price), number of the order.
        """
        self._backtest.close()
        return self._fills[: self._count].copy()


@njit
def _reach(backtest, time):
    """Let the backtest run to a time; what it answers."""
    now = backtest.current_timestamp
    if now <= 0 or now > 1 << 62:  # not begun yet
        backtest.elapse(0)
        now = backtest.current_timestamp
    return backtest.elapse(time - now) if time > now else 0


@njit
def _run_on(after, time):
    """Let the law of the state go on to a time (ns)."""
    law, pieces, _, clock = after
    grains = np.int64(np.rint((time - clock[0]) / clock[1]))
    if len(law) == 1 or grains <= 0:
        return
    clock[0] += grains * clock[1]
    while grains > 0:
        k = min(np.int64(np.log2(grains)), len(pieces) - 1)
        law[:] = np.maximum(np.dot(law, pieces[k]), 0.0)
        grains -= 1 << k


@njit
def _filled(after, side, amount, time):
    """Move the law of the state by a fill."""
    law, _, moved, clock = after
    if len(law) == 1:
        return
    _run_on(after, time)
    share, before = min(amount / clock[2], 1.0), law.copy()
    law *= 1.0 - share
    for y in range(len(law)):
        law[moved[side, y]] += share * before[y]


@njit
def _collect(backtest, decision, start, tick, after, slots, live, numbers, fills, count):
    """Write what was filled since the last time, and forget orders that are over.

    Position and cash are kept here: those of hftbacktest miss all fills of an order but the one that completes it.
    """
    orders, known = backtest.orders(0), count
    if count + len(slots) >= len(fills):
        fills = np.concatenate((fills, np.empty_like(fills)))
    for j in range(len(slots)):
        if slots[j, 0] == 0.0:
            continue
        order = orders.get(np.uint64(slots[j, 0]))
        if order is None:
            continue
        amount = (slots[j, 3] if order.status == FILLED else order.qty - order.leaves_qty) - slots[j, 4]
        if amount > 1e-12:
            slots[j, 4] += amount
            sign, taken = 1.0 if order.side == 1 else -1.0, slots[j, 1] >= 2.0
            price = tick * (order.exec_price_tick if taken else slots[j, 2])
            fills[count, 0], fills[count, 1], fills[count, 2] = decision, order.exch_timestamp - start, sign
            fills[count, 3], fills[count, 4] = price, amount
            fills[count, 5], fills[count, 6] = 1.0 if taken else 0.0, slots[j, 0]
            count += 1
            numbers[CASH] -= sign * amount * price
            numbers[POSITION] += sign * amount
        if order.status != NEW and order.status != PARTLY and order.req == NO_REQUEST:
            for side in range(2):
                if live[side] == j:
                    live[side] = -1
            slots[j, 0] = 0.0
    for k in known + np.argsort(fills[known:count, 1], kind="mergesort"):  # orders are not in the order of their fills
        if fills[k, 5] == 0.0:
            _filled(after, 0 if fills[k, 2] > 0.0 else 1, fills[k, 4], start + fills[k, 1])
    backtest.clear_inactive_orders(0)
    return fills, count


@njit
def _meet(backtest, decision, times, tick, after, slots, live, numbers, fills, count):
    """Go on to a decision and write what was filled."""
    numbers[ANSWER] = max(numbers[ANSWER], _reach(backtest, times[decision]))
    fills, count = _collect(backtest, decision, times[0], tick, after, slots, live, numbers, fills, count)
    _run_on(after, times[decision])
    return fills, count


@njit
def _send(backtest, side, kind, price, size, tick, lot, slots, numbers, wait):
    """Send an order; its slot, or -1 if there is none left."""
    for j in range(len(slots)):
        if slots[j, 0] == 0.0:
            number, force = np.uint64(numbers[NEXT]), POST_ONLY if kind == LIMIT else IMMEDIATE
            numbers[NEXT] += 1.0
            slots[j, 0], slots[j, 1], slots[j, 2] = np.float64(number), side if kind == LIMIT else side + 2.0, price
            slots[j, 3], slots[j, 4] = size, 0.0
            sent = size - SHORT * lot
            if side == 0:
                backtest.submit_buy_order(0, number, price * tick, sent, force, kind, wait)
            else:
                backtest.submit_sell_order(0, number, price * tick, sent, force, kind, wait)
            return j
    return -1


@njit
def _under_way(slots, side, but):
    """Assets of a side's orders that may still be filled, but those of one slot."""
    size = 0.0
    for j in range(len(slots)):
        if slots[j, 0] != 0.0 and j != but and np.int64(slots[j, 1]) % 2 == side:
            size += slots[j, 3] - slots[j, 4]
    return size


@njit
def _cancel(backtest, j, slots, wait):
    """Cancel the order of a slot, if it can be; whether it could."""
    order = backtest.orders(0).get(np.uint64(slots[j, 0]))
    if order is not None and order.cancellable:
        backtest.cancel(0, np.uint64(slots[j, 0]), wait)
        return True
    return False


@njit
def _play(
    backtest, first, last, times, ends, fresh, table, rows, unit, from_mid, limit, tick, lot, ending, after, own,
    best, inventory, wealth, closing, slots, live, numbers, fills, count,
):  # fmt: skip
    """Decisions ``first`` to ``last - 1``; the fills, their number, and whether all orders could be followed."""
    middle, good = (table.shape[1] - 1) // 2, True
    for d in range(first, last):
        fills, count = _meet(backtest, d, times, tick, after, slots, live, numbers, fills, count)
        depth = backtest.depth(0)
        bid, ask = depth.best_bid_tick, depth.best_ask_tick
        whole = np.isfinite(depth.best_bid) and np.isfinite(depth.best_ask) and bid < ask
        if not whole:
            bid, ask = (best[d - 1, 0], best[d - 1, 1]) if d > 0 else (0, 0)
        mid = 0.5 * (bid + ask)
        if ends[d]:
            closing[d] = numbers[POSITION]
            if ending == LIQUIDATE:
                fills, count = _liquidate(
                    backtest, d, times[0], tick, lot, after, slots, live, numbers, fills, count, bid, ask
                )
            if ending != CARRY:
                numbers[CASH] += numbers[POSITION] * mid * tick
                numbers[POSITION] = 0.0
        held = numbers[POSITION]
        best[d, 0], best[d, 1], inventory[d] = bid, ask, held
        wealth[d] = numbers[CASH] + held * mid * tick
        q = min(max(int(np.rint(inventory[d] / unit)), -limit), limit)
        wanted = table[rows[d], q + middle, min(max(ask - bid, 1), table.shape[2]) - 1, np.argmax(after[0])]
        if whole and fresh[d] and wanted[4] != 0.0:
            side = 0 if wanted[4] > 0.0 else 1
            room = limit * unit - (1 - 2 * side) * inventory[d] - _under_way(slots, side, -1)
            size = lot * np.floor(min(abs(wanted[4]), room) / lot + 1e-6)
            if size > 0.0:
                good &= (
                    _send(backtest, side, MARKET, ask if side == 0 else bid, size, tick, lot, slots, numbers, False)
                    >= 0
                )
        for side in range(2):
            sign = 1 - 2 * side
            price, size = np.int64(NOTHING), 0.0
            if whole and np.isfinite(wanted[side]):
                distance, edge = wanted[side] / tick, mid if from_mid else np.float64(bid if side == 0 else ask)
                room = limit * unit - sign * inventory[d] - _under_way(slots, side, live[side])
                size = lot * np.floor(min(wanted[2 + side], room) / lot + 1e-6)
                if size > 0.0 and distance < 1e9:
                    if side == 0:
                        price = min(np.int64(np.floor(edge - distance + ROUNDING)), ask - 1)
                    else:
                        price = max(np.int64(np.ceil(edge + distance - ROUNDING)), bid + 1)
            j = live[side]
            if not whole and j >= 0:
                price = np.int64(slots[j, 2])  # nothing is known: what stands, stands
            if j >= 0 and price != slots[j, 2] and _cancel(backtest, j, slots, False):
                live[side] = -1
                if sign * inventory[d] + _under_way(slots, side, -1) + size > limit * unit + 1e-9:
                    price = np.int64(NOTHING)  # both may be filled: not before the old one is gone
            if live[side] < 0 and price != NOTHING:
                live[side] = _send(backtest, side, LIMIT, price, size, tick, lot, slots, numbers, False)
                good &= live[side] >= 0
            own[d, side] = np.int64(slots[live[side], 2]) if live[side] >= 0 else NOTHING
    return fills, count, good


@njit
def _liquidate(backtest, d, start, tick, lot, after, slots, live, numbers, fills, count, bid, ask):
    """Cancel all quotes and close the position by a market order, waiting for both."""
    for _ in range(2):  # an order that has not arrived yet can be cancelled once it has
        for j in range(len(slots)):
            if slots[j, 0] != 0.0 and slots[j, 1] < 2.0 and not _cancel(backtest, j, slots, True):
                backtest.wait_order_response(0, np.uint64(slots[j, 0]), 10_000_000_000)
        fills, count = _collect(backtest, d, start, tick, after, slots, live, numbers, fills, count)
    held = numbers[POSITION]
    size = lot * np.rint(abs(held) / lot)
    if size > 0.0:
        side, price = (1, bid) if held > 0.0 else (0, ask)
        _send(backtest, side, MARKET, price, size, tick, lot, slots, numbers, True)
        fills, count = _collect(backtest, d, start, tick, after, slots, live, numbers, fills, count)
    return fills, count
