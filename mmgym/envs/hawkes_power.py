"""`mmgym/HawkesPower-v0`: market making in the intraday power market, the full model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import hawkes_power

Array = NDArray[Any]


class HawkesPowerFace(MarketFace):
    """Coordinates and info entries of the intraday power market."""

    market = hawkes_power.MARKET
    step_entries = (
        *("elapsed", "book_events", "buy_orders", "sell_orders", "bid_fills", "ask_fills"),
        *("bid_offset", "ask_offset", "bid_depth", "ask_depth"),
    )
    control_names = ("bid_offset", "ask_offset")
    counts_steps = False
    params: hawkes_power.Params

    def to_state(self, observations: Any) -> tuple[Array, ...]:
        """Minutes left, inventory (lots), spread (ticks) and the six intensities (1 / minute), one array for each.

        Inventory and spread are exact, with ``decision="clock"`` the time too; the rest is good to float32 rounding.
        Where the intensities are hidden, they are those that are to be expected at that time.
        """
        time_left, inventory, spread, rates = hawkes_power.locate(self.params, self.without_values(observations))
        return time_left, inventory, spread, *np.moveaxis(rates, -1, 0)

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid since the start, inventory (lots), book, rates, what the last step saw."""
        p = self.params
        mid, half_spread = p.half_tick * state.mid_moves, p.half_tick * state.spread
        gain = state.depth_gain + state.price_gain
        entries = {
            "cash": gain - state.inventory * mid,
            "mid": mid,
            "inventory": state.inventory,
            "spread": state.spread,
            "best_bid": mid - half_spread,
            "best_ask": mid + half_spread,
        }
        for name, base in zip(hawkes_power.PROCESSES, np.moveaxis(np.asarray(p.base_rate), -1, 0), strict=True):
            entries[f"{name}_rate"] = base + getattr(state, f"excess_{name}")
        for name in ("time_left", "elapsed", "book_events", "buy_orders", "sell_orders", "bid_fills", "ask_fills"):
            entries[name] = getattr(state, name)
        if full:
            entries["gain"] = gain
            entries["price_gain"] = state.price_gain
            entries["inventory_square"] = state.inventory_square
            entries["bid_offset"], entries["ask_offset"], entries["bid_depth"], entries["ask_depth"] = controls
        return entries


class HawkesPowerVectorEnv(HawkesPowerFace, KernelVectorEnv):
    """A batch of `HawkesPowerEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""


class HawkesPowerEnv(HawkesPowerFace, KernelEnv):
    r"""Market making in the intraday power market (inventory in lots of 1 MW x 1 h).

    ## Description
    The model of von Luckner, Cartea, Jaimungal & Kiesel (2017): six Hawkes processes - improvements and cancellations
    of the best bid and of the best ask, market orders to buy and to sell - each move one side of a book on a tick
    grid by a random number of ticks. The mid drifts with the order flow, and the half-spread reverts to a mean. An
    event lifts the intensity of its process by `excitation`, which decays at the rate `decay` to `base_rate`.

    The agent quotes a bid and an ask, each at an offset from the best quote of the book at the time of the decision;
    until the next decision the quotes are pegged to the mid. A market order stops at the best quote of its side with
    probability `reach_atom`, and else reaches an exponential distance of mean ``1 / fill_decay`` beyond it; it fills
    the agent's quote, one lot, if that lies no deeper. It does so at the prices before the order moves the book, and
    how far it reaches does not depend on the move. A side is inactive exactly while the inventory is at its limit. The
    spread is never below a tick: moves are cut short there, and at `largest_spread`.

    With ``decision="event"`` the agent decides after every event of the six processes, with "order" after every market
    order, each at the latest ``horizon / num_steps`` minutes after the last decision; with "clock" every ``horizon /
    num_steps`` minutes. Everything is simulated exactly, event by event, in continuous time.

    The optimum is not known, only bounds: `mmgym.baselines.best_known_policy` has the certified interval, which holds
    for any `decision`: the lower bound is its own value in the environment as built. The upper bound
    is that of who sees the intensities: it holds for every `observe`.

    ``observe="tape"`` shows, instead of the intensities, the event that the last step ended with and the length of that
    step, which needs decisions after events: the intensities are then a function of the history, and who remembers it
    can play as if they were seen ("reconstructed"). ``observe="fills"`` shows neither; the best known policy is then
    played at the expected intensities.

    Units: minutes, EUR / MWh, lots.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: offsets of bid and ask from the best quotes, scaled from ``[0, max_offset]``.
    Action -1 joins the best quote, which every order fills; 0 is filled with probability ``(1 - reach_atom) exp(-2)``.
    With a `reach_atom` what a quote earns jumps at -1. Finite values outside the box are clipped to it. `to_quotes` and
    `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, 0, ..., 0], 1, (9,), float32)`: time left over the horizon, inventory over `inventory_limit`, spread
    over `largest_spread`, and the six intensities ``y`` as ``y / (y + scale)`` with the stationary intensity as the
    scale (base rate plus excitation where there is none), in the order below. They are never clipped. With
    ``observe="tape"``, shape (10,), these six are 1 for the process whose event ended the last step and otherwise 0,
    and the step's length over ``horizon / num_steps`` comes last. With ``observe="fills"`` they are missing, shape
    (3,). `to_state` converts.

    ## Rewards
    The gain of marked-to-mid wealth minus ``running_penalty * int inventory^2 dt`` over the step. The last reward also
    has ``-|inventory| * half-spread - terminal_penalty * inventory^2``: what is left is closed at the best quotes.
    Prices move with the order flow here, so there is no noise to integrate out of the rewards. They are undiscounted
    and add up to the criterion.

    ## Starting State
    The whole horizon is left; `initial_inventory`, `initial_spread`, `initial_rates`, no cash. The mid is counted from
    its start.

    ## Episode End
    `terminated` at the horizon, after `num_steps` steps with ``decision="clock"`` and after a random number of at least
    `num_steps` steps otherwise; never `truncated`.

    ## Arguments
    Lists of six are in the order bid improvement, bid cancellation, ask cancellation, ask improvement, market order to
    buy, market order to sell.

    [parameters]
    - `info` (None): "full" adds the gain, its part from price moves, the integral of squared inventory and the quotes
      (offsets, and distances from the mid) to `info`, which always has cash, mid, inventory, book, intensities, the
      time left, and of the last step its length `elapsed` (minutes), the book events, market orders and fills.

    The defaults are illustrative, not estimates (late window of an hourly product).

    ## Version History
    - v0: first version.

    ## References
    - von Luckner, N., Cartea, Á., Jaimungal, S. & Kiesel, R. (2017). Optimal market maker pricing in the German
      intraday power market. Working paper.
    - Brown, D. B., Smith, J. E. & Sun, P. (2010). Information relaxations and duality in stochastic dynamic programs.
      Operations Research 58(4) (the upper bound).
    """

    vector_class = HawkesPowerVectorEnv
