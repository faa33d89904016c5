"""What a market states so that its policies can be played on a recorded book.

A market registers a function of its parameters with `make_replay_rules`, in ``mmgym.baselines.<market>.replay``; what a
declared market (`mmgym.declare`) states is derived from its declaration. Generic code asks `rules_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgym.adapters.hftbacktest_play import AfterFills
from mmgym.baselines.baseline import environment_of

Array = NDArray[Any]

__all__ = ["BookState", "Processes", "ReplayRules", "make_replay_rules", "rules_of"]


@dataclass(frozen=True)
class Processes:
    """Self-exciting processes whose intensities an observation has, by unit of the market's time; arrays (K,).

    ``events(times, ticks, orders, sides)`` makes the times (ns) and numbers of their events from the times and the best
    prices (ticks, (n, 2)) of the book and the times and sides (1: buy, -1: sell) of market orders, in order.
    """

    base_rate: Array
    excitation: Array
    decay: Array
    initial: Array
    events: Callable[[Array, Array, Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class BookState:
    """What the states of a finite market have beside inventory and spread, and how a book tells it.

    Attributes
    ----------
    words : str
        How it is told.
    numbers : int64 (S,)
        Its number, 0 to ``count - 1``, in every state.
    count : int
    follow : callable or None
        ``follow(mids, begins, seconds)`` -> numbers (D,) at decisions that are so many seconds apart, from the mids
        (price) known at them and whether an episode begins there, arrays (D,).
    after : AfterFills or None
        Where own fills move it, instead of ``follow``.
    initial_price : float or None
        The mid that it counts from, if it matters: the recording's must be near it.
    """

    words: str
    numbers: Array
    count: int
    follow: Callable[[Array, Array, float], Array] | None = None
    after: AfterFills | None = None
    initial_price: float | None = None


@dataclass(frozen=True)
class ReplayRules:
    """How a market is played on a book.

    Attributes
    ----------
    seconds : float
        Of a unit of the market's time.
    unit : float
        Assets of a unit of inventory, as the observation counts it.
    limit : int
        Largest inventory, units.
    from_mid : bool
        Whether quotes keep a distance from the mid, else from the best price of their side.
    ending : {"pass_on", "liquidate"}
        What the market's criterion does with the inventory at the horizon: it is valued at the mid, or crosses the
        spread.
    orders : callable
        Controls (..., C) -> distances of bid and ask (price; infinite: no quote), their sizes, and the market order
        (assets, > 0 buys), (..., 5).
    intensity : callable
        Fills per unit of time by the market's law: ``intensity(side, depth, offset, spread)``, side 0 (bid) or 1, with
        depths from the mid and offsets from the best price of the side (price) and spreads (ticks), arrays of a shape.
    spreads : int
        Spreads in ticks that a finite market tells apart, the last stands for more; 1 where it observes none.
    tick : float or None
        The market's tick, if it has one: the recording must have it.
    fees : (float, float)
        What the market itself charges for an asset traded by a quote and by a market order (< 0: a rebate).
    observe : callable or None
        ``observe(time_left, inventory, spread, rates)`` -> observations, where the market's states are not finitely
        many: units, ticks and intensities (..., K); arrays that broadcast.
    processes : Processes or None
    estimate : callable or None
        ``estimate(mids, seconds)`` -> ``rates`` (D, K) at decisions so many seconds apart, instead of intensities.
    state : BookState or None
        What a finite market's states have besides.
    words : str
        How ``estimate`` is made.
    penalties : callable or None
        ``penalties(integral of squared inventory, last inventory)`` of an episode, in the criterion's currency; None
        where they are not known.
    """

    seconds: float
    unit: float
    limit: int
    from_mid: bool
    ending: Literal["pass_on", "liquidate"]
    orders: Callable[[Array], Array]
    intensity: Callable[[int, Array, Array, Array], Array]
    spreads: int = 1
    tick: float | None = None
    fees: tuple[float, float] = (0.0, 0.0)
    observe: Callable[[Any, Any, Any, Any], Array] | None = None
    processes: Processes | None = None
    estimate: Callable[[Array, float], Array] | None = None
    state: BookState | None = None
    words: str = ""
    penalties: Callable[[Array, Array], Array] | None = None


@singledispatch
def make_replay_rules(params: Any) -> ReplayRules:
    """The rules of a market's parameters.

    Raises
    ------
    TypeError
        If the market has none.
    """
    raise TypeError(f"parameters of type {type(params).__name__} have no rules for a replay")


def rules_of(env: Any) -> ReplayRules:
    """The rules of an environment of mmgym (`mmgym.baselines.baseline.environment_of`).

    Raises
    ------
    TypeError
        If its market cannot be played on a book.
    """
    env = environment_of(env)
    market = env.market
    if env.variation is not None:
        raise TypeError("parameters that differ by row or episode cannot be replayed: give one value of each")
    name = f"mmgym.baselines.{market.name}.replay"
    if find_spec(f"mmgym.baselines.{market.name}") is not None and find_spec(name) is not None:
        import_module(name)
    if make_replay_rules.dispatch(market.params_type) is not make_replay_rules.dispatch(object):
        return make_replay_rules(env.params)
    if market.declaration is not None:
        derived: ReplayRules = import_module("mmgym.baselines.declared.replay").rules(market.declaration, env.params)
        return derived
    raise TypeError(
        f"the market {market.name} cannot be replayed on a book of one asset: what it observes or quotes is not there"
    )


def quadratic(running: float, terminal: float) -> Callable[[Array, Array], Array]:
    """Penalties that are quadratic in the inventory."""
    return lambda square, last: np.asarray(running * square + terminal * last**2)
