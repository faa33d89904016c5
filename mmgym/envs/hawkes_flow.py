"""`mmgym/HawkesFlow-v0`: market making against self-exciting market orders, in its exactly solvable form."""

from collections.abc import Sequence
from typing import Any

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import hawkes_flow


class HawkesFlowFace(MarketFace):
    """Info entries of the Hawkes market with a constant half-spread."""

    market = hawkes_flow.MARKET
    step_entries = ("elapsed", "bid_fills", "ask_fills", "buy_orders", "sell_orders", "bid_depth", "ask_depth")
    control_names = ("bid_depth", "ask_depth")
    counts_steps = False
    params: hawkes_flow.Params

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid since the start, inventory (lots), rates, what the last step saw."""
        p, mid = self.params, state.mid
        gain = state.depth_gain + state.price_gain
        buy, sell = p.base_rate_buy * p.base_rate_profile_buy[0], p.base_rate_sell * p.base_rate_profile_sell[0]
        if p.pieces > 1:
            buy, sell = hawkes_flow.base_rates_at(p, state.time_left).T
        entries = {
            "cash": gain - state.inventory * mid,
            "mid": mid,
            "inventory": state.inventory,
            "buy_rate": buy + state.excess_buy,
            "sell_rate": sell + state.excess_sell,
            "time_left": state.time_left,
            "elapsed": state.elapsed,
            "buy_orders": state.buy_orders,
            "sell_orders": state.sell_orders,
            "bid_fills": state.bid_fills,
            "ask_fills": state.ask_fills,
        }
        if full:
            entries["gain"] = gain
            entries["price_gain"] = state.price_gain
            entries["inventory_square"] = state.inventory_square
            entries["bid_depth"], entries["ask_depth"] = controls
        return entries


class HawkesFlowVectorEnv(HawkesFlowFace, KernelVectorEnv):
    """A batch of `HawkesFlowEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""


class HawkesFlowEnv(HawkesFlowFace, KernelEnv):
    r"""Market making against self-exciting market orders (inventory in lots of 1 MW x 1 h).

    ## Description
    The reduced form of the intraday power market of von Luckner, Cartea, Jaimungal & Kiesel (2017): market orders to
    buy and to sell arrive as two Hawkes processes, each order lifts its own intensity by `excitation`, which decays at
    the rate `decay` to `base_rate`, and moves the mid by `impact` in its direction. The half-spread is constant. A
    quote at depth ``d`` (its distance from the moving mid, at least the half-spread) is filled by an order of the
    other side with probability ``(1 - reach_atom) * exp(-fill_decay * (d - half_spread))``, or 1 at the best price,
    ``d = half_spread``; one lot an order, before the mid moves. A side is inactive exactly while the inventory is at
    its limit. With a `base_rate_profile` the base rates are multiplied by other factors in each of some equal pieces of
    the horizon; what intensities have beyond them goes on across the pieces.

    With ``decision="event"`` the agent decides after every market order, and at the latest ``horizon / num_steps``
    minutes after its last decision; with ``decision="clock"`` every ``horizon / num_steps`` minutes. At the start of a
    piece it always decides. In between its depths are frozen, and everything else is simulated exactly, event by
    event, in continuous time. `mmgym.baselines.optimal_policy` returns the optimum of this environment as built, and
    its error is stated: after events 1e-4 of its value, with a `reach_atom` 4e-3, by the clock mostly 1e-3 of the
    largest values. By the clock with a `reach_atom`, or more than four orders of a side expected between two ticks,
    only bounds are known: `mmgym.baselines.best_known_policy` is the policy with the best lower bound, and depths that
    move at once are worth the upper one.

    ``observe="tape"`` shows, instead of the intensities, the market order that the last step ended with and the length
    of that step, which needs decisions after events. The initial intensities are parameters, and every change of them
    follows from the orders: the intensities are a function of the history, and the optimum is that of who sees them.
    Only memory can reach it.

    ``observe="fills"`` shows neither: an agent sees when orders come, but their sides only where they fill its quotes,
    and gains by remembering. `mmgym.baselines.best_known_policy` is then the policy with the best lower bound (skill
    1): with decisions after events, mostly a particle filter, which remembers. The upper bound is what the optimum is
    worth to who sees the intensities.

    Units: minutes, EUR / MWh, lots.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: bid and ask depth, scaled from ``[half_spread, half_spread + max_offset]``. Action
    -1 joins the best quote, which every order fills; 0 is filled with probability ``(1 - reach_atom) exp(-2)``. With a
    `reach_atom` what a quote earns jumps at -1. Finite values outside the box are clipped to it.
    `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, 0, 0], [1, 1, 1, 1], (4,), float32)`: time left over the horizon, inventory over `inventory_limit`, and
    the two intensities ``y``, buy first, as ``y / (y + scale)`` with the stationary intensity as the scale (base rate
    plus excitation where there is none). They are never clipped. With ``observe="tape"`` these two are the side of the
    market order that ended the last step (1: buy, -1: sell, 0: none, as at the start), at least -1, and the step's
    length over ``horizon / num_steps``. With ``observe="fills"`` they are missing, shape (2,). `to_state` converts.

    ## Rewards
    The gain of marked-to-mid wealth minus ``running_penalty * int inventory^2 dt`` over the step. The last reward also
    has ``-half_spread * |inventory| - terminal_penalty * inventory^2``: what is left is closed at the best quotes.
    Prices move with the order flow here, so there is no noise to integrate out of the rewards. They are undiscounted
    and add up to the criterion.

    ## Starting State
    The whole horizon is left; `initial_inventory`, `initial_rates`, no cash. The mid is counted from its start.

    ## Episode End
    `terminated` at the horizon, after `num_steps` steps with ``decision="clock"`` and after a random number of at least
    `num_steps` steps with ``decision="event"``; never `truncated`.

    ## Arguments
    [parameters]
    - `info` (None): "full" adds the gain, its part from price moves, the integral of squared inventory and the depths
      to `info`, which always has cash, mid, inventory, intensities, the time left, and of the last step its length
      `elapsed` (minutes), the market orders and the fills.

    The defaults are illustrative, not estimates (late window of an hourly product).

    ## Version History
    - v0: first version.

    ## References
    - von Luckner, N., Cartea, Á., Jaimungal, S. & Kiesel, R. (2017). Optimal market maker pricing in the German
      intraday power market. Working paper.
    - Cartea, Á., Jaimungal, S. & Ricci, J. (2014). Buy low, sell high: a high frequency trading perspective. SIAM
      Journal on Financial Mathematics 5(1).
    """

    vector_class = HawkesFlowVectorEnv
