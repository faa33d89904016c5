"""Backtest on event tapes of the intraday power market: von Luckner et al. (2017), section 5, with the corrections.

A tape (`mmgym.calibration.hawkes_power_tape`) is one product, delivery day and trading window; it is replayed as it is,
and own orders never change it. With ``dt`` the length of the time windows:

- At the times ``k dt``, and at once after an own fill, both sides are quoted: the ask at ``ceil(S + d_ask)``, the bid
  at ``floor(S - d_bid)`` in whole ticks, from mid ``S``, spread, inventory, time left and the six intensities at that
  time. These follow from the events so far and the rule's own parameters, and start at the rule's initial intensities.
  After a fill the state is the one after the order that made it: the book has moved, the intensity has jumped.
- In between, the prices are fixed. An order to buy whose deepest price ``worst_price`` is at or above the own ask buys
  one lot at the own price; an order to sell at or below the own bid sells one. Nothing else fills, even where the best
  bid comes to stand above the own ask.
- An event at exactly ``(k + 1) dt`` (to 1e-9 min) still belongs to the window that ends there.
- A side is not quoted where a fill would take the inventory beyond its limit.
- At the end the inventory is closed at the best quotes after the last event. The profit is in EUR (lots are 1 MW for an
  hour), without any penalty. Inventory is the one before it is closed, volume counts fills and not the closing trade.

The draft says first that the terminal inventory is valued at the mid and then at the best quotes: the second holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.hawkes_flow.replay import require_constant_rates
from mmgym.baselines.hawkes_power.closed_forms import corollary_3, join_best
from mmgym.baselines.policy import Policy
from mmgym.calibration.hawkes_power_tape import EVENT_TYPES, PowerTape
from mmgym.compiling import KERNEL
from mmgym.models import hawkes_flow, hawkes_power

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

__all__ = ["Backtest", "QuoteRule", "backtest", "closed_form", "measures", "named_rule", "observed", "table_2"]

CLOSED_FORMS: dict[str, Callable[..., Array]] = {
    "corollary_3": corollary_3,
    "corollary_3_as_printed": functools.partial(corollary_3, as_printed=True),
    "join_best": join_best,
}
ALPHAS = (0.0, 0.01, 0.05, 0.1)  # terminal penalties of Table 2, EUR / MWh / lot
BUY, SELL = hawkes_power.BUY, hawkes_power.SELL
SAME_TIME = 1e-9  # minutes
ROUNDING = 1e-9  # ticks
FAR = 1e9  # ticks: a distance that is not bounded stands there

INDICATORS = {"pnl": ("PnL", "EUR"), "inventory": ("Inventory", "MW"), "volume": ("Volume", "MW")}
WITHOUT_UNIT = ("skewness", "kurtosis")

# Quotes

Distances = Callable[[Array, Integers, Integers, Array], Array]


@dataclass(frozen=True)
class QuoteRule:
    """Quotes as a function of what a tape shows, and the processes whose intensities it wants to see.

    Attributes
    ----------
    start : callable
        ``start() -> distances``, anew for every backtest (a policy may remember something). ``distances(time_left,
        inventory, spread, rates)`` takes minutes, lots and ticks, shapes (B,), and intensities (B, 6), 1 / minute, and
        returns distances [bid, ask] from the mid, (B, 2), EUR / MWh: at least 0, infinite where there is no quote.
    base_rate, excitation, decay, initial_rates : arrays (6,)
        Of the processes in the order of `EVENT_TYPES`, 1 / minute.
    inventory_limit : int
        Lots.
    tick : float
        EUR / MWh.
    longest : float
        Largest time left that the rule can see, minutes.
    """

    start: Callable[[], Distances]
    base_rate: Array
    excitation: Array
    decay: Array
    initial_rates: Array
    inventory_limit: int
    tick: float
    longest: float = math.inf


def _power_rule(params: hawkes_power.Params, start: Callable[[], Distances], longest: float = math.inf) -> QuoteRule:
    return QuoteRule(
        start=start,
        base_rate=params.base_rates,
        excitation=params.excitations,
        decay=params.decays,
        initial_rates=np.array(params.initial_rates),
        inventory_limit=params.inventory_limit,
        tick=params.tick,
        longest=longest,
    )


def closed_form(params: hawkes_power.Params, distances: Callable[..., Array]) -> QuoteRule:
    """Quotes of a formula like `mmgym.baselines.hawkes_power.closed_forms.corollary_3`, outside any box.

    Parameters
    ----------
    params : mmgym.models.hawkes_power.Params
        Its parameters; intensities start at ``initial_rates``.
    distances : callable
        ``(params, time_left, inventory, spread, rates) -> (..., 2)``, EUR / MWh.
    """
    return _power_rule(params, lambda: functools.partial(distances, params))


def observed(policy: Policy, params: Any, *, tick: float = 0.01) -> QuoteRule:
    """Quotes of any policy of the observation of `mmgym/HawkesPower-v0` or `mmgym/HawkesFlow-v0`, a trained agent too.

    The observation is built from the state of the tape; a spread above the largest of the environment is shown as that.
    The actions are offsets from the best quotes, in the reduced market (whose half-spread is constant) depths less its
    half-spread, and stand at that offset from the best quotes of the tape.

    Parameters
    ----------
    policy : Policy
    params : mmgym.models.hawkes_power.Params or mmgym.models.hawkes_flow.Params
        Of the environment that the policy was made for.
    tick : float
        EUR / MWh, with the reduced market, which has none.

    Raises
    ------
    TypeError
        If the parameters are those of another market, or observe the last event of each step: here decisions come by
        the clock; or if base rates vary.
    """
    if isinstance(params, hawkes_power.Params | hawkes_flow.Params) and params.observe == "tape":
        raise TypeError("observe = 'tape' cannot be played by the clock; give 'state' or 'fills'")
    if isinstance(params, hawkes_power.Params):
        return _power_rule(params, lambda: _PowerPolicy(policy, params), params.horizon)
    if isinstance(params, hawkes_flow.Params):
        p = params
        require_constant_rates(p)
        zeros = np.zeros(4)
        return QuoteRule(
            start=lambda: _FlowPolicy(policy, p, tick),
            base_rate=np.array([*zeros, *p.base_rates[0]]),
            excitation=np.array([*zeros, p.excitation_buy, p.excitation_sell]),
            decay=np.array([*zeros, p.decay_buy, p.decay_sell]),
            initial_rates=np.array([*zeros, p.initial_rate_buy, p.initial_rate_sell]),
            inventory_limit=p.inventory_limit,
            tick=tick,
            longest=p.horizon,
        )
    raise TypeError(f"parameters of type {type(params).__name__} are not those of HawkesPower or HawkesFlow")


class _PowerPolicy:
    """A policy of HawkesPower's observation, with its memory."""

    def __init__(self, policy: Policy, params: hawkes_power.Params) -> None:
        self._policy, self._params = policy, params
        self._memory: Any = None
        self._first = True

    def _offsets(self, observations: Any, to_quotes: Callable[[Any, Any], Array]) -> Array:
        begins = np.full(len(observations), self._first)
        actions, self._memory = self._policy.predict(
            observations, state=self._memory, episode_start=begins, deterministic=True
        )
        self._first = False
        return to_quotes(self._params, np.clip(actions, -1.0, 1.0).astype(np.float32))

    def __call__(self, time_left: Array, inventory: Integers, spread: Integers, rates: Array) -> Array:
        p = self._params
        seen = np.minimum(spread, p.largest_spread)
        offsets = self._offsets(hawkes_power.observe(p, time_left, inventory, seen, rates), hawkes_power.to_quotes)
        return np.asarray(p.half_tick * spread[:, None] + offsets)


class _FlowPolicy(_PowerPolicy):
    """A policy of HawkesFlow's observation, with its memory."""

    def __init__(self, policy: Policy, params: Any, tick: float) -> None:
        super().__init__(policy, params)
        self._half_tick = tick / 2

    def __call__(self, time_left: Array, inventory: Integers, spread: Integers, rates: Array) -> Array:
        p: Any = self._params
        observations = hawkes_flow.observe(p, time_left, inventory, rates[:, BUY], rates[:, SELL])
        depths = self._offsets(observations, hawkes_flow.to_quotes)
        return np.asarray(self._half_tick * spread[:, None] + (depths - p.half_spread))


def named_rule(name: str, params: Any, *, tick: float = 0.01) -> QuoteRule:
    """Quotes of a policy by its name, for parameters of `mmgym/HawkesPower-v0` or `mmgym/HawkesFlow-v0`.

    Parameters
    ----------
    name : str
        ``"corollary_3"``, ``"corollary_3_as_printed"``, ``"join_best"`` (for the full market these are not bounded by
        an action space), another policy of the market's baseline, or ``"best"``: the best policy known. Some of these
        are solved first, which can take minutes.
    params : mmgym.models.hawkes_power.Params or mmgym.models.hawkes_flow.Params
    tick : float
        As in `observed`.

    Raises
    ------
    ValueError
        If there is no such policy.
    TypeError
        If the parameters are those of another market.
    """
    if isinstance(params, hawkes_power.Params) and name in CLOSED_FORMS:
        return closed_form(params, CLOSED_FORMS[name])
    if not isinstance(params, hawkes_power.Params | hawkes_flow.Params):
        raise TypeError(f"parameters of type {type(params).__name__} are not those of HawkesPower or HawkesFlow")
    import_module(f"mmgym.baselines.{type(params).__module__.rpartition('.')[2]}")  # registers itself
    baseline = baseline_for(params)
    policies: dict[str, Callable[[], Policy]] = {"best": baseline.best_policy, **baseline.policies()}
    if name not in policies:
        raise ValueError(f"policy {name!r} is not one of: {', '.join(sorted(policies))}")
    return observed(policies[name](), params, tick=tick)


# Replay


@dataclass(frozen=True)
class Backtest:
    """What a rule did on tapes.

    Attributes
    ----------
    windows : DataFrame
        One row a tape: ``product, delivery_date, window``, ``pnl`` (EUR), ``inventory`` before it is closed, ``volume``
        and its two parts ``bought`` and ``sold`` (MW).
    fills : DataFrame
        ``tape`` (row of `windows`), ``time`` (minutes), ``change`` of the inventory (+1, -1), ``price`` (ticks).
    decisions : DataFrame
        ``tape``, ``time`` (minutes), ``inventory`` (MW) and the book (``best_bid, best_ask``) when quotes were set, and
        the quotes ``bid`` and ``ask`` (ticks; NaN for a side that is not quoted).
    """

    windows: pd.DataFrame
    fills: pd.DataFrame
    decisions: pd.DataFrame


@njit(**KERNEL)
def _advance(
    times: Array,
    kinds: Integers,
    events: Integers,  # (events, 3): best bid and best ask after the event, deepest price
    row: Integers,  # next event of each tape
    last: Integers,
    horizons: Array,
    interval: float,
    excitation: Array,
    decay: Array,
    limit: int,
    quotes: Integers,  # (tapes, 2): bid and ask
    window: Integers,
    now: Array,
    book: Integers,  # (tapes, 2)
    inventory: Integers,
    cash: Integers,
    excess: Array,  # (tapes, 6)
    change: Integers,
    active: NDArray[np.bool_],
) -> None:
    """Play each active tape until its next fill, the end of its time window, or its end."""
    for b in range(row.size):
        if not active[b]:
            continue
        change[b] = 0
        end = interval * (window[b] + 1)
        if end > horizons[b] - SAME_TIME:
            end = horizons[b]
        while row[b] < last[b] and times[row[b]] <= end + SAME_TIME:
            i = row[b]
            kind = kinds[i]
            for k in range(6):
                excess[b, k] *= math.exp(-decay[k] * max(times[i] - now[b], 0.0))
            now[b] = max(times[i], now[b])
            excess[b, kind] += excitation[kind]
            book[b, 0], book[b, 1] = events[i, 0], events[i, 1]
            row[b] = i + 1
            if kind == BUY and inventory[b] > -limit and events[i, 2] >= quotes[b, 1]:
                change[b] = -1
                cash[b] += quotes[b, 1]
            elif kind == SELL and inventory[b] < limit and events[i, 2] <= quotes[b, 0]:
                change[b] = 1
                cash[b] -= quotes[b, 0]
            if change[b] != 0:
                inventory[b] += change[b]
                break
        if change[b] == 0:
            for k in range(6):
                excess[b, k] *= math.exp(-decay[k] * max(end - now[b], 0.0))
            now[b] = end
            window[b] += 1
            active[b] = end < horizons[b]


def backtest(tapes: Sequence[PowerTape], rule: QuoteRule, *, interval: float = 0.25) -> Backtest:
    """Replay tapes against a rule (the procedure is in the module's docstring). All tapes are played side by side.

    Parameters
    ----------
    tapes : sequence of PowerTape
        Of any days, products and windows.
    rule : QuoteRule
    interval : float
        ``dt``, minutes. The last time window of a tape is shorter where this does not divide its horizon.

    Returns
    -------
    Backtest

    Raises
    ------
    ValueError
        If there is no tape, the interval is not positive, the tick of a tape is not the rule's, a tape is longer than
        the rule can see, or the rule returns distances that are negative, not numbers, or of another shape.
    """
    _check(tapes, rule, interval)
    count = len(tapes)
    frame = pd.concat([tape.events for tape in tapes], ignore_index=True)
    times = frame["t_min"].to_numpy(dtype=np.float64)
    kinds: Integers = np.array([EVENT_TYPES.index(name) for name in frame["type"]], dtype=np.int64)
    prices = frame[["best_bid", "best_ask", "worst_price"]].fillna(0).to_numpy(dtype=np.int64)
    last = np.cumsum([len(tape.events) for tape in tapes])
    row = np.concatenate([[0], last[:-1]])
    horizons = np.array([tape.horizon for tape in tapes])
    book = np.array([[tape.start_bid, tape.start_ask] for tape in tapes], dtype=np.int64)

    now, excess = np.zeros(count), np.tile(rule.initial_rates - rule.base_rate, (count, 1))
    window, inventory, cash, change = (np.zeros(count, dtype=np.int64) for _ in range(4))
    active = np.ones(count, dtype=np.bool_)
    distances, numbers = rule.start(), np.arange(count)
    decided: list[Array] = []
    filled: list[Array] = []
    while active.any():
        playing = active.copy()
        spread = book[:, 1] - book[:, 0]
        wanted = distances(horizons - now, inventory.copy(), spread, rule.base_rate + excess)
        quotes = _quotes(wanted, book, rule.tick)
        shown = np.where(np.abs(inventory[:, None] + [1, -1]) <= rule.inventory_limit, quotes, np.nan)
        decided.append(np.column_stack([numbers, now, inventory, book, shown])[playing])
        step = (row, last, horizons, float(interval), rule.excitation, rule.decay, rule.inventory_limit)
        _advance(times, kinds, prices, *step, quotes, window, now, book, inventory, cash, excess, change, active)
        hit = playing & (change != 0)
        if hit.any():
            price = np.where(change > 0, quotes[:, 0], quotes[:, 1])
            filled.append(np.column_stack([numbers, now, change, price])[hit])

    fills = _frame(filled, ["tape", "time", "change", "price"])
    decisions = _frame(decided, ["tape", "time", "inventory", "best_bid", "best_ask", "bid", "ask"])
    closing = np.where(inventory > 0, book[:, 0], book[:, 1])
    return Backtest(_windows(tapes, fills, inventory, cash + inventory * closing), fills, decisions)


def _check(tapes: Sequence[PowerTape], rule: QuoteRule, interval: float) -> None:
    """Refuse tapes that the rule is not made for."""
    if not tapes:
        raise ValueError("no tapes: at least one is needed")
    if not (math.isfinite(interval) and interval > 0):
        raise ValueError(f"interval = {interval!r} is not allowed: it must be positive (minutes)")
    for tape in tapes:
        if not math.isclose(tape.tick, rule.tick, rel_tol=1e-9):
            raise ValueError(f"{tape.path}: its tick is {tape.tick:g}, that of the policy {rule.tick:g}")
        if tape.horizon > rule.longest * (1 + 1e-9):
            raise ValueError(f"{tape.path}: its horizon is {tape.horizon:g} min, the policy knows {rule.longest:g} min")


def _quotes(distances: Any, book: Integers, tick: float) -> Integers:
    """Bid and ask in whole ticks, not nearer to the mid than the distances; shape (tapes, 2)."""
    wanted = np.asarray(distances, dtype=float)
    if wanted.shape != book.shape or not (wanted >= 0).all():
        raise ValueError(
            f"the policy's distances, shape {wanted.shape}, are not allowed: they must be numbers >= 0, shape "
            f"{book.shape}"
        )
    ticks = np.minimum(wanted / tick, FAR)
    mid = 0.5 * (book[:, 0] + book[:, 1])
    bid, ask = np.floor(mid - ticks[:, 0] + ROUNDING), np.ceil(mid + ticks[:, 1] - ROUNDING)
    return np.stack([bid, ask], axis=1).astype(np.int64)


def _windows(tapes: Sequence[PowerTape], fills: pd.DataFrame, inventory: Integers, wealth: Integers) -> pd.DataFrame:
    """A row a tape; the wealth is in ticks."""
    bought, sold = (
        np.bincount(fills["tape"][fills["change"] == sign].to_numpy(dtype=np.int64), minlength=len(tapes))
        for sign in (1, -1)
    )
    return pd.DataFrame(
        {
            "product": [tape.product for tape in tapes],
            "delivery_date": [tape.delivery_date for tape in tapes],
            "window": [tape.window for tape in tapes],
            "pnl": np.array([tape.tick for tape in tapes]) * wealth,
            "inventory": inventory,
            "volume": bought + sold,
            "bought": bought,
            "sold": sold,
        }
    )


def _frame(parts: list[Array], columns: list[str]) -> pd.DataFrame:
    """Rows of all rounds, tape by tape in the order of time; whole numbers as such."""
    rows = np.concatenate(parts) if parts else np.empty((0, len(columns)))
    frame = pd.DataFrame(rows, columns=columns).sort_values("tape", kind="stable", ignore_index=True)
    whole = [name for name in columns if name not in ("time", "bid", "ask")]
    return frame.astype(dict.fromkeys(whole, np.int64))


# Table 2


def measures(sample: Any) -> dict[str, float]:
    """The measures of the draft's Table 2.

    Parameters
    ----------
    sample : array_like, shape (n,)
        One number a tape.

    Returns
    -------
    dict
        ``mean``, ``std`` (n - 1 in the denominator; NaN for one number), ``Q5`` and ``Q95`` (linear between order
        statistics), ``skewness`` (g1, not corrected for its bias) and ``kurtosis`` (3 for the normal law); the last two
        are NaN where all numbers are equal.

    Raises
    ------
    ValueError
        If there is no number.
    """
    x = np.asarray(sample, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no numbers: at least one is needed")
    centred = x - x.mean()
    variance = float(np.mean(centred**2))
    varies = variance > 1e-24 * max(1.0, float(np.abs(x).max()) ** 2)
    low, high = np.quantile(x, [0.05, 0.95])
    return {
        "mean": float(x.mean()),
        "std": float(x.std(ddof=1)) if x.size > 1 else math.nan,
        "Q5": float(low),
        "Q95": float(high),
        "skewness": float(np.mean(centred**3) / variance**1.5) if varies else math.nan,
        "kurtosis": float(np.mean(centred**4) / variance**2) if varies else math.nan,
    }


def table_2(samples: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The draft's Table 2.

    Parameters
    ----------
    samples : mapping
        Head of a column, such as ``"alpha = 0.05"``, to the `Backtest.windows` that it summarises, one row a tape.

    Returns
    -------
    DataFrame
        ``indicator``, ``measure``, ``unit`` and the columns; 18 rows.
    """
    summaries = {
        (head, name): measures(windows[name].to_numpy()) for head, windows in samples.items() for name in INDICATORS
    }
    rows = []
    for name, (indicator, unit) in INDICATORS.items():
        for measure in ("mean", "std", "Q5", "Q95", "skewness", "kurtosis"):
            row: dict[str, Any] = {"indicator": indicator, "measure": measure}
            row["unit"] = "n/a" if measure in WITHOUT_UNIT else unit
            rows.append(row | {head: summaries[head, name][measure] for head in samples})
    return pd.DataFrame(rows)
