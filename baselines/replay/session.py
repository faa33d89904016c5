"""A policy on a recorded book: its decisions, quotes and fills, and the money that they make.

Decisions are taken every ``interval``, in episodes of the market's horizon one after the other; what is left of a
recording after the last whole episode is not played. The time left and the step of the market are those of the episode.
At the end of an episode the inventory is what the market's criterion does with it, or is carried into the next one:

- "pass_on": it is passed on at the mid, and the next episode starts without;
- "liquidate": all quotes are cancelled and a market order closes it (what the book has no room for is passed on);
- "carry": it stays.

A policy of finitely many states plays its table; another one that is a function of the observation is asked for all
inventories of many decisions at once, since prices and intensities do not depend on it; one that remembers is asked at
every decision.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from mmgym.adapters.hftbacktest import (
    BUY,
    KIND,
    LOCAL,
    SECOND,
    TRADE,
    Assumptions,
    Recording,
    backtest_of,
)
from mmgym.adapters.hftbacktest_play import (
    CARRY,
    LIQUIDATE,
    NOT_MOVED,
    NOTHING,
    PASS_ON,
    Book,
    Player,
    Quotes,
    book_of,
)
from mmgym.baselines.baseline import baseline_of, environment_of
from mmgym.baselines.foreign import as_policy
from mmgym.baselines.frozen import tabulate
from mmgym.baselines.policy import checked_actions
from mmgym.baselines.replay.rules import Processes, ReplayRules, rules_of
from mmgym.compiling import KERNEL

Array = NDArray[Any]
Ending = Literal["carry", "pass_on", "liquidate"]

__all__ = ["Costs", "Session", "replay", "schedule"]

ENDINGS = {"carry": CARRY, "pass_on": PASS_ON, "liquidate": LIQUIDATE}
ENDING_WORDS = {
    "carry": "the inventory is carried into the next one",
    "pass_on": "the inventory is passed on at the mid",
    "liquidate": "the inventory is closed by a market order",
}
AT_ONCE = 200_000  # observations that a policy is asked for at a time
DEFAULT_INTERVAL = 0.1  # seconds
MOST_DECISIONS = 20_000_000
NEAR = 0.1  # what a recording's first mid may differ by, relative, from the price that a market counts from


@dataclass(frozen=True)
class Costs:
    """Fees of quotes that are filled and of market orders; negative ones are rebates.

    Attributes
    ----------
    maker, taker : float or None
        None: what the market itself charges.
    per : {"value", "asset"}
        A share of the traded value, or an amount for an asset.
    """

    maker: float | None = None
    taker: float | None = None
    per: Literal["value", "asset"] = "value"

    def of(self, fills: pd.DataFrame, rules: ReplayRules) -> Array:
        """Fee of each fill."""
        base = fills["size"].to_numpy(dtype=np.float64)
        value = base * fills["price"].to_numpy(dtype=np.float64) if self.per == "value" else base
        maker, taker = (
            base * own if given is None else value * given
            for own, given in zip(rules.fees, (self.maker, self.taker), strict=True)
        )
        return np.where(fills["taker"].to_numpy(dtype=bool), taker, maker)

    def sentence(self, rules: ReplayRules) -> str:
        """What is charged, in words."""
        per = "of the traded value" if self.per == "value" else "for an asset"
        words = []
        for name, own, given in (("maker", rules.fees[0], self.maker), ("taker", rules.fees[1], self.taker)):
            words.append(
                f"{name} {own + 0.0:g} for an asset (the model's own)" if given is None else f"{name} {given:g} {per}"
            )
        return "fees: " + ", ".join(words)


@dataclass(frozen=True)
class Session:
    """What a policy did on one recording.

    Attributes
    ----------
    recording : Recording
    times : int64 (D,)
        Of decisions, ns; the last one is the end of the last episode.
    steps : int
        Decisions of an episode.
    own, best : int64 (D, 2)
        Own quotes after each decision (`NOTHING`: none) and best prices as known at it, ticks.
    inventory : float64 (D,)
        Assets held at each decision, after an episode's end was dealt with.
    closing : float64 (E,)
        Assets held at the end of each episode, before.
    gains : float64 (D,)
        Cash with the inventory at the mid, before fees.
    fills : DataFrame
        ``decision`` at which it was known, ``episode``, ``time_s``, ``side`` ("buy", "sell"), ``price``, ``size``,
        ``taker``, ``order``, ``mid`` (just before it at the exchange), ``depth`` (from that mid), ``fee``.
    """

    recording: Recording
    times: Array
    steps: int
    own: Array
    best: Array
    inventory: Array
    closing: Array
    gains: Array
    fills: pd.DataFrame = field(repr=False)

    @property
    def interval(self) -> float:
        """Seconds between decisions."""
        return float(self.times[1] - self.times[0]) / SECOND

    @property
    def episodes(self) -> int:
        """Whole episodes that were played."""
        return (len(self.times) - 1) // self.steps

    @property
    def wealth(self) -> Array:
        """Cash with the inventory at the mid, fees paid (D,)."""
        paid = np.bincount(self.fills["decision"], weights=self.fills["fee"], minlength=len(self.times))
        return np.asarray(self.gains - np.cumsum(paid))

    @property
    def pnl(self) -> Array:
        """P&L of each episode (E,)."""
        return np.diff(self.wealth[:: self.steps])

    @property
    def squares(self) -> Array:
        """Time integral of the squared inventory of each episode, assets^2 seconds (E,)."""
        held = self.inventory[:-1].reshape(self.episodes, self.steps)
        return np.asarray((held**2).sum(axis=1) * self.interval)

    def charged(self, costs: Costs, rules: ReplayRules) -> Session:
        """The same with other fees."""
        return replace(self, fills=self.fills.assign(fee=costs.of(self.fills, rules)))

    def frame(self) -> pd.DataFrame:
        """One row a decision: what stands in ``replay.csv``."""
        tick = self.recording.tick
        own = np.where(self.own == NOTHING, np.nan, self.own * tick)
        filled = np.bincount(
            self.fills["decision"],
            weights=self.fills["size"] * np.where(self.fills["side"] == "buy", 1.0, -1.0),
            minlength=len(self.times),
        )
        episode = np.minimum(np.arange(len(self.times)) // self.steps, self.episodes - 1)
        columns = {
            "file": self.recording.source,
            "episode": episode,
            "time_s": (self.times - self.recording.start) / SECOND,
            "best_bid": self.best[:, 0] * tick,
            "best_ask": self.best[:, 1] * tick,
            "bid": own[:, 0],
            "ask": own[:, 1],
            "filled": filled,
            "inventory": self.inventory,
            "wealth": self.wealth,
        }
        return pd.DataFrame(columns)


def schedule(recording: Recording, horizon: float, num_steps: int, interval: float) -> tuple[Array, int, Array]:
    """Times of decisions (ns), their number in an episode, and the step of the market at each (the end has the last).

    Parameters
    ----------
    recording : Recording
    horizon : float
        Of an episode, seconds.
    num_steps : int
        Decisions of an episode in the market.
    interval : float
        Seconds between decisions; the nearest one of which an episode has a whole number.

    Raises
    ------
    ValueError
        If the interval is not positive, or the recording has no whole episode, or too many decisions.
    """
    if not (math.isfinite(interval) and interval > 0.0):
        raise ValueError(f"interval = {interval!r} is not allowed: it must be positive")
    count = max(1, round(horizon / interval))
    length = int(horizon * SECOND / count + 1e-3)  # rounded down: a window of whole episodes has all of them
    episodes = int((recording.end - recording.start) // max(length * count, 1)) if length else 0
    if length < 1 or episodes * count > MOST_DECISIONS:
        raise ValueError(
            f"{recording.source}: a decision every {interval:g} s is too often: at most {MOST_DECISIONS:,} in a file"
        )
    if episodes < 1:
        raise ValueError(
            f"{recording.source}: {recording.seconds:.6g} s are less than one episode of {horizon:g} s: give the "
            "environment a shorter horizon (--set horizon=...) with a num_steps to match"
        )
    decisions = np.arange(episodes * count + 1)
    step = ((decisions % count) * num_steps) // count
    step[-1] = num_steps
    return recording.start + decisions * length, count, step


def replay(
    env: Any,
    policy: Any,
    recording: Recording,
    assumptions: Assumptions | None = None,
    *,
    costs: Costs | None = None,
    interval: float | None = None,
    ending: Ending | None = None,
) -> Session:
    """Play a policy on a recorded book.

    Parameters
    ----------
    env : environment
        Of mmgym, its parameters those that the policy is to see.
    policy : Policy or callable
        Of the environment.
    recording : Recording
    assumptions : Assumptions, optional
    costs : Costs, optional
        By default those of the market.
    interval : float, optional
        Seconds between decisions; by default 0.1, or a step of the market where that is shorter.
    ending : {"carry", "pass_on", "liquidate"}, optional
        What becomes of the inventory at the end of an episode; by default what the market's criterion does.

    Returns
    -------
    Session

    Raises
    ------
    TypeError
        If the market cannot be replayed.
    ValueError
        If an argument is out of range, the ticks differ, or the recording is too short.
    """
    env = environment_of(env)
    rules, p = rules_of(env), env.params
    _check(recording, rules, getattr(p, "initial_inventory", 0))
    step_seconds = p.horizon / p.num_steps * rules.seconds
    wanted = min(DEFAULT_INTERVAL, step_seconds) if interval is None else interval
    times, count, step = schedule(recording, p.horizon * rules.seconds, p.num_steps, wanted)
    ends = np.arange(len(times)) % count == 0
    ends[0] = False
    fresh = np.diff(step, prepend=-1) != 0
    fresh[-1] = False
    fresh |= ends & (np.arange(len(times)) < len(times) - 1)
    player = Player(
        backtest_of(recording, assumptions or Assumptions()),
        times,
        ends,
        fresh,
        rules.limit,
        recording.tick,
        recording.lot,
        ENDINGS[ending or rules.ending],
        NOT_MOVED if rules.state is None or rules.state.after is None else rules.state.after,
    )
    late = 0.0 if assumptions is None else assumptions.feed_latency
    _Asked(env, as_policy(policy, None, env), rules, recording, late, times, count, step, ends).play(player)
    fills = _fills(player.close(), recording, times, count)
    session = Session(
        recording=recording,
        times=times,
        steps=count,
        own=player.own,
        best=player.best,
        inventory=player.inventory,
        closing=player.closing[count::count],
        gains=player.wealth,
        fills=fills.assign(fee=0.0),
    )
    return session.charged(costs or Costs(), rules)


def _check(recording: Recording, rules: ReplayRules, start: float) -> None:
    if start != 0:
        raise ValueError(f"initial_inventory = {start:g} is not allowed: a replay starts without inventory")
    if rules.tick is not None and not math.isclose(rules.tick, recording.tick, rel_tol=1e-6):
        raise ValueError(f"{recording.source}: its tick is {recording.tick:g}, that of the market {rules.tick:g}")
    if rules.unit < recording.lot * (1.0 - 1e-9):
        raise ValueError(
            f"{recording.source}: its lot is {recording.lot:g}, more than an order of the market, {rules.unit:g} assets"
        )
    price = None if rules.state is None else rules.state.initial_price
    if price is not None:
        mid = float(recording.book.mid(recording.start)) * recording.tick
        if not abs(mid - price) <= NEAR * abs(mid):
            raise ValueError(
                f"{recording.source}: its mid is {mid:g} at the start, initial_price = {price:g} is not allowed: they "
                f"must be within {100 * NEAR:g} %"
            )


def _fills(rows: Array, recording: Recording, times: Array, count: int) -> pd.DataFrame:
    """Fills with the mid just before each."""
    sign, tick = rows[:, 2], recording.tick
    stamps = times[0] + rows[:, 1].astype(np.int64)
    mid = recording.book.mid(stamps, before=True) * tick
    decision = rows[:, 0].astype(np.int64)
    return pd.DataFrame(
        {
            "decision": decision,
            "episode": np.maximum(decision - 1, 0) // count,
            "time_s": (stamps - recording.start) / SECOND,
            "side": np.where(sign > 0, "buy", "sell"),
            "price": rows[:, 3],
            "size": rows[:, 4],
            "taker": rows[:, 5] > 0,
            "order": rows[:, 6].astype(np.int64),
            "mid": mid,
            "depth": sign * (mid - rows[:, 3]),
        }
    )


class _Asked:
    """A policy, and how it is asked for quotes."""

    def __init__(
        self,
        env: Any,
        policy: Any,
        rules: ReplayRules,
        recording: Recording,
        late: float,
        times: Array,
        count: int,
        step: Array,
        ends: Array,
    ) -> None:
        self._env, self._policy, self._rules = env, policy, rules
        self._recording, self._times, self._count, self._step, self._ends = recording, times, count, step, ends
        self._late = late  # seconds of market data beyond what the recording has
        self._problem = baseline_of(env).problem
        self._remembers = not policy.markov
        if self._problem is None and rules.observe is None:
            raise TypeError(f"the market {env.market.name} cannot be replayed: nothing says what it observes of a book")

    def play(self, player: Player) -> None:
        """Play all decisions."""
        if self._problem is not None and not self._remembers:
            return player.play(self._tabulated(), 0, len(self._times))
        spreads, rates = self._seen()
        return self._remembering(player, spreads, rates) if self._remembers else self._batches(player, spreads, rates)

    def _tabulated(self) -> Quotes:
        """The table that the policy plays, by step, inventory and spread."""
        problem, rules = self._problem, self._rules
        assert problem is not None
        controls = tabulate(problem, self._policy).controls
        seen, moved = self._numbers_of_states()
        count = rules.state.count if rules.state is not None else 1
        after = rules.state is not None and rules.state.after is not None
        seen_count, moved_count = (1, count) if after else (count, 1)
        table = np.zeros((len(controls) + 1, seen_count, 2 * rules.limit + 1, rules.spreads, moved_count, 5))
        table[..., :2] = np.inf
        held = np.rint(problem.coordinates["inventory"] / rules.unit).astype(np.int64) + rules.limit
        table[:-1, seen, held, self._spread_of_states(), moved] = rules.orders(controls)
        rows = self._step * seen_count + self._followed()
        return Quotes(table.reshape(-1, *table.shape[2:]), rows, rules.unit, rules.from_mid)

    def _numbers_of_states(self) -> tuple[Array, Array]:
        """Number of what the book tells, and of what own fills move, in every state."""
        assert self._problem is not None
        none, state = np.zeros(self._problem.num_states, dtype=np.int64), self._rules.state
        if state is None:
            return none, none
        return (none, state.numbers) if state.after is not None else (state.numbers, none)

    @functools.cached_property
    def _action_shape(self) -> tuple[int, ...]:
        return tuple(self._env.make_batch(1).single_action_space.shape)

    def _known(self) -> Book:
        """Best prices as they are known here."""
        return book_of(backtest_of(self._recording, Assumptions(feed_latency=self._late)), len(self._recording.events))

    @property
    def _seconds(self) -> float:
        """Between decisions."""
        return float(self._times[1] - self._times[0]) / SECOND

    def _followed(self) -> Array:
        """Number of what the book tells at each decision."""
        state = self._rules.state
        if state is None or state.follow is None:
            return np.zeros(len(self._times), dtype=np.int64)
        mids = self._known().mid(self._times) * self._recording.tick
        return state.follow(mids, np.arange(len(self._times)) % self._count == 0, self._seconds)

    def _spread_of_states(self) -> Array:
        assert self._problem is not None
        if self._rules.spreads == 1:
            return np.zeros(self._problem.num_states, dtype=np.int64)
        assert self._rules.tick is not None
        return np.rint(self._problem.coordinates["spread"] / self._rules.tick).astype(np.int64) - 1

    def _seen(self) -> tuple[Array, Array]:
        """Spreads (ticks) and intensities, or what else is estimated (D, K), as known here at the decisions."""
        recording, rules, book = self._recording, self._rules, self._known()
        row = np.maximum(np.searchsorted(book.times, self._times, side="right") - 1, 0)
        spreads = np.diff(book.ticks[row], axis=1)[:, 0]
        if rules.estimate is not None:
            return spreads, rules.estimate(book.mid(self._times) * recording.tick, self._seconds)
        if rules.processes is None:
            return spreads, np.zeros((len(self._times), 0))
        orders, sides = _market_orders(recording)
        stamps, kinds = rules.processes.events(book.times, book.ticks, orders + round(self._late * SECOND), sides)
        return spreads, intensities(rules.processes, stamps, kinds, self._times, rules.seconds)

    def _time_left(self, decisions: Array) -> Array:
        horizon = self._env.params.horizon
        return np.asarray(horizon * (1.0 - (decisions % self._count) / self._count))

    def _observations(
        self, decisions: Array, inventory: Array, spreads: Array, rates: Array, followed: int = 0, moved: int = 0
    ) -> Array:
        """Observations of decisions and inventories (units), arrays of one shape; rates (..., K)."""
        if self._rules.observe is not None:
            return self._rules.observe(self._time_left(decisions), inventory, spreads, rates)
        assert self._problem is not None
        held = np.rint(self._problem.coordinates["inventory"] / self._rules.unit).astype(np.int64)
        where, seen = self._spread_of_states(), np.minimum(spreads, self._rules.spreads) - 1
        told, own = self._numbers_of_states()
        here = (told == followed) & (own == moved)
        rows = [
            self._problem.observations(int(self._step[d]))[np.flatnonzero((held == q) & (where == s) & here)[0]]
            for d, q, s in zip(decisions, inventory, seen, strict=True)
        ]
        return np.stack(rows)

    def _quoted(self, actions: Any, observations: Array) -> Array:
        """Orders (B, 5) of actions."""
        checked = checked_actions(self._policy, actions, observations, self._action_shape)
        taken = checked.astype(np.float32) if checked.dtype.kind == "f" else checked
        return self._rules.orders(self._env.to_quotes(taken))

    def _batches(self, player: Player, spreads: Array, rates: Array) -> None:
        """Ask for all inventories of many decisions at once."""
        limit, total = self._rules.limit, len(self._times)
        each = max(1, AT_ONCE // (2 * limit + 1))
        for first in range(0, total, each):
            decisions = np.arange(first, min(first + each, total))
            shape = (len(decisions), 2 * limit + 1)
            inventory = np.broadcast_to(np.arange(-limit, limit + 1), shape)
            observations = self._observations(
                np.broadcast_to(decisions[:, None], shape),
                inventory,
                np.broadcast_to(spreads[decisions][:, None], shape),
                rates[decisions][:, None],
            )
            flat = observations.reshape(-1, observations.shape[-1])
            actions = self._policy.predict(flat, deterministic=True)[0]
            table = self._quoted(actions, flat).reshape(*shape, 1, 1, 5)
            if decisions[-1] == total - 1:
                table[-1, ..., :2] = np.inf
            rows = np.maximum(np.arange(total) - first, 0)
            player.play(Quotes(table, rows, self._rules.unit, self._rules.from_mid), first, first + len(decisions))

    def _remembering(self, player: Player, spreads: Array, rates: Array) -> None:
        """Ask at every decision, the hidden state anew in every episode."""
        limit, rows, followed = self._rules.limit, np.zeros(len(self._times), dtype=np.int64), self._followed()
        states = 1 if self._rules.state is None else self._rules.state.count
        memory: Any = None
        for d in range(len(self._times)):
            begins = d % self._count == 0
            memory = None if begins else memory
            q = int(np.clip(np.rint(player.inventory_at(d) / self._rules.unit), -limit, limit))
            one = np.array([d])
            observation = self._observations(
                one, np.array([q]), spreads[one], rates[one], int(followed[d]), player.likeliest
            )
            actions, memory = self._policy.predict(
                observation, state=memory, episode_start=np.array([begins]), deterministic=True
            )
            table = np.broadcast_to(self._quoted(actions, observation), (1, 2 * limit + 1, 1, states, 5)).copy()
            if d == len(self._times) - 1:
                table[..., :2] = np.inf
            player.play(Quotes(table, rows, self._rules.unit, self._rules.from_mid), d, d + 1)


def _market_orders(recording: Recording) -> tuple[Array, Array]:
    """Times at which market orders are known here (ns), and their sides: trades of a side at one time are one order."""
    events = recording.events
    trades = events[((events["ev"] & KIND) == TRADE) & (events["ev"] & LOCAL != 0)]
    sides = np.where(trades["ev"] & BUY != 0, 1, -1)
    frame = pd.DataFrame({"sent": trades["exch_ts"], "side": sides, "known": trades["local_ts"]})
    orders = frame.groupby(["sent", "side"], as_index=False).agg(known=("known", "min"))
    orders = orders.sort_values("known", kind="stable")
    return orders["known"].to_numpy(), orders["side"].to_numpy()


def intensities(processes: Processes, stamps: Array, kinds: Array, times: Array, seconds: float) -> Array:
    """Intensities (D, K) at times, from the events at or before each; they start at the first time.

    Parameters
    ----------
    processes : Processes
    stamps, kinds : arrays (n,)
        Times (ns, rising) and processes of events.
    times : array (D,)
        ns, rising.
    seconds : float
        Of a unit of the processes' time.
    """
    scale = seconds * SECOND
    kept = stamps >= times[0]
    after, at = (stamps[kept] - times[0]) / scale, (times - times[0]) / scale
    start = np.asarray(processes.initial, dtype=np.float64) - processes.base_rate
    excess = _excesses(
        after, kinds[kept].astype(np.int64), at, start, np.asarray(processes.excitation, dtype=np.float64),
        np.asarray(processes.decay, dtype=np.float64),
    )  # fmt: skip
    return np.asarray(processes.base_rate + excess)


@njit(**KERNEL)
def _excesses(stamps: Array, kinds: Array, times: Array, start: Array, excitation: Array, decay: Array) -> Array:
    """What intensities exceed their base rates by (D, K)."""
    found, excess, now, i = np.empty((len(times), len(start))), start.copy(), 0.0, 0
    for d in range(len(times)):
        while i < len(stamps) and stamps[i] <= times[d]:
            excess *= np.exp(-decay * (stamps[i] - now))
            now = stamps[i]
            excess[kinds[i]] += excitation[kinds[i]]
            i += 1
        excess *= np.exp(-decay * (times[d] - now))
        now = times[d]
        found[d] = excess
    return found
