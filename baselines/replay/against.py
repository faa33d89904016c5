"""Model against book: what the calibrated environment promises of a policy, beside what the book paid, in parts.

All amounts are those of an episode. The first replay is as the model has it: own orders stand first in their queues
(`mmgym.adapters.hftbacktest.first_in_queue`), are filled whole, nothing takes time, and fees are the model's. Its P&L
is split by the price at which each fill was made,

    P&L = sum size (depth from the mid just before the fill)                 -> "fills", less the promise
        + sum signed size (mid some time after the fill - mid before it)     -> "adverse selection"
        + the rest: what the mid moved after that, on what was held          -> "later moves of the mid", 0 in the mean

then the queue, the latency and the fees of the assumptions are put in, one after the other: each part is what that
changes. The parts add up to the difference. In the model all but the first are 0, the moves of the mid in the mean:
what they are by chance is of the size that the standard deviation of the promise tells. Where the market's own mid
moves after fills or has a drift, its promise has those moves, and the first part takes them back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.adapters.hftbacktest import Assumptions, Recording, first_in_queue, without_feed_latency
from mmgym.baselines.baseline import environment_of
from mmgym.baselines.replay.metrics import adverse_moves, interval_of_ratio
from mmgym.baselines.replay.rules import ReplayRules, rules_of
from mmgym.baselines.replay.session import Costs, Ending, Session, replay
from mmgym.baselines.scoring import Score, score

Array = NDArray[Any]

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """A policy on recordings, beside its promise.

    Attributes
    ----------
    score : Score
        The promise.
    sessions : tuple of Session
        With all assumptions.
    table : DataFrame
        Index ``figure`` (P&L, its standard deviation, value, fills, market orders, mean absolute inventory, of an
        episode): ``model``, ``book``, ``lower`` and ``upper`` (95 % interval of the book's mean), ``unit``.
    parts : DataFrame
        Index ``part``; ``amount`` from the model's P&L to the book's: the first is the promise, the last the sum.
    """

    score: Score
    sessions: tuple[Session, ...]
    table: pd.DataFrame
    parts: pd.DataFrame


def compare(
    env: Any,
    policy: Any,
    recordings: Sequence[Recording],
    assumptions: Assumptions | None = None,
    *,
    costs: Costs | None = None,
    interval: float | None = None,
    ending: Ending | None = None,
    horizon: float = 1.0,
    promise: Score | None = None,
) -> Comparison:
    """Replay a policy with and without queue, latency and fees, and lay it beside its score.

    Parameters
    ----------
    env, policy, assumptions, costs, interval, ending
        As `mmgym.baselines.replay.session.replay` takes them.
    recordings : sequence of Recording
        Each a session of its own.
    horizon : float
        Seconds after a fill that count as adverse selection.
    promise : Score, optional
        Of the policy, where it is known.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        As `replay`, or if the horizon is not positive.
    """
    if not (math.isfinite(horizon) and horizon > 0.0):
        raise ValueError(f"horizon = {horizon!r} is not allowed: it must be positive (seconds after a fill)")
    env = environment_of(env)
    full, rules = assumptions or Assumptions(), rules_of(env)
    options: dict[str, Any] = {"interval": interval, "ending": ending}
    still = [without_feed_latency(recording) for recording in recordings]
    instant = replace(full, order_latency=0.0, response_latency=0.0, feed_latency=0.0)

    def played(played_on: Sequence[Recording], assumed: Assumptions) -> list[Session]:
        return [replay(env, policy, recording, assumed, **options) for recording in played_on]

    first = played([first_in_queue(recording) for recording in still], replace(instant, fills="whole"))
    queued = played(still, instant)
    late = played(recordings, full)
    charged = [session.charged(costs or Costs(), rules) for session in late]
    promise = score(env, policy) if promise is None else promise
    episodes = sum(session.episodes for session in charged)
    sums = [sum(float(one.pnl.sum()) for one in each) / episodes for each in (first, queued, late, charged)]
    edge = sum(float(_edges(one).sum()) for one in first) / episodes
    adverse = sum(float(adverse_moves(one, horizon).sum()) for one in first) / episodes
    parts = {
        "model: P&L of an episode": promise.pnl,
        "fills: recorded orders against the law": edge - promise.pnl,
        f"adverse selection within {horizon:g} s": adverse,
        "later moves of the mid": sums[0] - edge - adverse,
        "queue, size of orders": sums[1] - sums[0],
        "latency": sums[2] - sums[1],
        "fees beyond the model's": sums[3] - sums[2],
        "book: P&L of an episode": sums[3],
    }
    frame = pd.DataFrame({"amount": pd.Series(parts)}).rename_axis("part")
    return Comparison(promise, tuple(charged), _beside(promise, charged, rules, env.params), frame)


def _edges(session: Session) -> Array:
    """Depth times size less the fee of each fill."""
    fills = session.fills
    return np.asarray(fills["depth"] * fills["size"] - fills["fee"])


def _beside(promise: Score, sessions: Sequence[Session], rules: ReplayRules, params: Any) -> pd.DataFrame:
    """Model and book side by side."""
    pnl = np.concatenate([session.pnl for session in sessions])
    taker, quotes, held, penalty = [], [], [], []
    for session in sessions:
        orders = session.fills[~session.fills["order"].duplicated()]
        count = session.episodes
        own = ~orders["taker"].to_numpy(dtype=bool)
        place = np.minimum(orders["episode"].to_numpy(), count - 1)
        quotes.append(np.bincount(place, weights=own, minlength=count))
        taker.append(np.bincount(place, weights=~own, minlength=count))
        held.append(np.abs(session.inventory[:-1]).reshape(count, -1).mean(axis=1))
        if rules.penalties is not None:
            penalty.append(rules.penalties(session.squares / rules.seconds, session.closing))
    ones = np.ones(len(pnl))
    rows: dict[str, tuple[float, Array, str]] = {
        "P&L": (promise.pnl, pnl, "currency"),
        "fills": (promise.fills, np.concatenate(quotes), "orders"),
        "market orders": (promise.orders, np.concatenate(taker), "orders"),
        "mean |inventory|": (promise.mean_absolute_inventory, np.concatenate(held), "assets"),
    }
    figures = {}
    for name, (model, values, unit) in rows.items():
        low, high = interval_of_ratio(values, ones)
        figures[name] = [model, float(values.mean()), low, high, unit]
    std = float(pnl.std(ddof=1)) if len(pnl) > 1 else math.nan
    figures["P&L, standard deviation"] = [promise.pnl_std, std, math.nan, math.nan, "currency"]
    if penalty:
        figures["value (criterion)"] = [promise.value, *_criterion(pnl - np.concatenate(penalty), params), "currency"]
    else:
        figures["value (criterion)"] = [promise.value, math.nan, math.nan, math.nan, "currency"]
    columns = ["model", "book", "lower", "upper", "unit"]
    table = pd.DataFrame.from_dict(figures, orient="index", columns=columns).rename_axis("figure")
    order = ["P&L", "P&L, standard deviation", "value (criterion)", "fills", "market orders", "mean |inventory|"]
    return table.loc[[name for name in order if name in table.index]]


def _criterion(values: Array, params: Any) -> list[float]:
    """The criterion of episodes with its interval: the mean, or under CARA the certainty equivalent (no interval)."""
    if getattr(params, "utility", "mean") != "cara":
        return [float(values.mean()), *interval_of_ratio(values, np.ones(len(values)))]
    aversion = params.risk_aversion
    least = values.min()
    return [float(least - np.log(np.exp(-aversion * (values - least)).mean()) / aversion), math.nan, math.nan]
