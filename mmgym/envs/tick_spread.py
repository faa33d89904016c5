"""`mmgym/TickSpread-v0`: limit and market orders in a spread of a few ticks."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import tick_spread


class TickSpreadFace(MarketFace):
    """Spaces, public maps, masks and info entries of the tick-spread market."""

    market = tick_spread.MARKET
    step_entries = (
        "bid_fills", "ask_fills", "market_orders", "bid_depth", "ask_depth", "bid_size", "ask_size", "market_order"
    )  # fmt: skip
    control_names = ("bid_improved", "ask_improved", "bid_size", "ask_size", "market_order")
    params: tick_spread.Params

    def resting_action(self) -> NDArray[Any]:
        """Best quotes of the largest size, no market order."""
        size = self.one_params.limit_order_max
        return np.asarray(self.from_quotes(np.array([0.0, 0.0, size, size, 0.0])))

    def single_spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Observation box and action space of one environment."""
        observations, _ = super().single_spaces()
        if self.one_params.actions == "multi":
            return observations, gymnasium.spaces.MultiDiscrete(self.one_params.action_sizes)
        return observations, gymnasium.spaces.Discrete(len(self.one_params.menu))

    def encode_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions of a menu as full ones; full ones as they are. One out of range gets entries out of range."""
        if self.one_params.actions == "multi":
            return actions
        table = self._menu_table
        return np.asarray(table[np.clip(actions, -1, len(table) - 1)])

    @property
    def _menu_table(self) -> NDArray[np.int64]:
        """The menu as full actions and, at the end, what stands for one out of range."""
        table: NDArray[np.int64] | None = self.__dict__.get("_menu_entries")
        if table is None:
            table = np.vstack([self.one_params.menu, np.full((1, 5), -1)])
            self.__dict__["_menu_entries"] = table
        return table

    def to_quotes(self, actions: Any) -> NDArray[np.float64]:
        """Controls ``[bid improved, ask improved, bid size, ask size, market order]`` of actions, shape ``(..., 5)``.

        The first two are 0 or 1, sizes are in shares, a market order to sell is negative. They are what is asked for:
        a step cuts them to what the inventory and the spread allow.
        """
        return tick_spread.to_quotes(self.one_params, self.encode_actions(np.asarray(actions)))

    def from_quotes(self, quotes: Any) -> NDArray[np.int64]:
        """Actions whose controls (see `to_quotes`) are nearest to ``quotes``; of a menu by the distance in lots."""
        full = tick_spread.from_quotes(self.one_params, quotes)
        return full if self.one_params.actions == "multi" else tick_spread.nearest_of_menu(self.one_params, full)

    def masks(self, observations: Any) -> NDArray[np.bool_]:
        """Which action entries are allowed at observations ``(..., D)``, flat over the components: ``(..., entries)``.

        An entry is masked iff it is not allowed whatever the other components are.
        """
        _, inventory, spread = self.to_state(observations)
        return tick_spread.action_masks(self.one_params, inventory, spread)

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid (euro), inventory (shares), spread (euro), fills; `full` adds the rest."""
        p, mid = self.params, state.mid
        inventory = state.inventory * p.lot
        spread = (state.spread + 1) * p.tick
        gain = state.order_gain + state.price_gain
        entries = {
            "cash": p.initial_inventory * p.initial_price + gain - inventory * mid,
            "mid": mid,
            "inventory": inventory,
            "spread": spread,
            "bid_fills": state.bid_fills,
            "ask_fills": state.ask_fills,
            "market_orders": state.market_orders,
            "masked_actions": state.masked_actions,
        }
        if full:
            bid_improved, ask_improved, bid_size, ask_size, order, before = controls
            entries["gain"] = gain
            entries["price_gain"] = state.price_gain
            entries["inventory_square"] = state.inventory_square
            best = before * p.tick / 2
            entries["bid_depth"] = np.where(np.asarray(bid_size) > 0, best - bid_improved * p.tick, np.nan)[()]
            entries["ask_depth"] = np.where(np.asarray(ask_size) > 0, best - ask_improved * p.tick, np.nan)[()]
            entries["bid_size"] = bid_size * p.lot
            entries["ask_size"] = ask_size * p.lot
            entries["market_order"] = order * p.lot
        return entries


class TickSpreadVectorEnv(TickSpreadFace, KernelVectorEnv):
    """A batch of `TickSpreadEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""

    def action_masks(self) -> NDArray[np.bool_]:
        """Which action entries are allowed now, shape ``(num_envs, entries)``: see `masks`."""
        self.require_started("action_masks()")
        state = self._rows.state
        return tick_spread.action_masks(self.one_params, state["inventory"], state["spread"])


class TickSpreadEnv(TickSpreadFace, KernelEnv):
    r"""Market making with limit and market orders in a spread of a few ticks (inventory in shares, traded in lots).

    ## Description
    The agent of Guilbaud & Pham (2013): the spread is a Markov chain on 1 to m ticks that jumps at the ticks of a
    Poisson clock; limit orders stand at the best price or one tick better, are filled at intensities that depend on
    the spread and the quote, and earn a rebate; market orders cross the spread and pay a fee.

    A step sends at most one market order at the current spread, then freezes quotes and sizes for ``horizon /
    num_steps`` seconds and simulates the rest exactly, in continuous time: the spread may jump and several fills may
    happen, each at the *current* spread; a filled order is posted again with the same size; an improved quote counts
    as best while the spread is one tick. `mmgym.baselines.optimal_policy` returns the exact optimum of this environment
    as built.

    The market order is cut so that the inventory stays within `inventory_limit`, then the sizes to the room that is
    left. Inside the step a fill executes ``min(size, room left)``, and a side without room is off.

    Units: euro, shares, seconds.

    ## Action Space
    `MultiDiscrete([2, 2, B + 1, B + 1, 2 M + 1])` with ``B = limit_order_max / lot`` and ``M = market_order_max /
    lot``: bid quote and ask quote (0 best, 1 one tick better), bid size and ask size (lots), market order (entry
    ``M`` is none, ``M + k`` buys and ``M - k`` sells ``k`` lots).

    `action_masks()` returns the entries that are allowed, one flat array as sb3-contrib's MaskablePPO takes it. An
    entry is masked iff it is not allowed whatever the other components are: an improved quote at a spread of one
    tick, a market order beyond the limit, a size that no market order would make room for. A masked entry, if sent,
    is played as the nearest allowed one and counted in ``info["masked_actions"]``.

    With ``actions="flat"`` it is `Discrete(15)` (9 without market orders), for agents with one discrete action: each
    side off, at best or improved with the largest size (9), or half the largest size bought by market order with the
    bid off, at best or improved and the ask off (3), or the same sold (3). Its optimum is that of these actions: 21.83
    of 22.18.

    With ``actions="compact"`` it is `Discrete(32)`: each side off, at best with half or all of the largest size, or
    improved with all of it (16), or half or all of the largest market order, each with the four quotes of its own side
    (16). Market orders only reduce the inventory there: what increases it or goes beyond 0 is masked, and cut.
    `mmgym/TickSpreadCompact-v0` has these, a lot of 50, an `inventory_limit` of 300 and the spread one-hot. Its
    optimum, 22.14127, is 99.84 % of that of `mmgym/TickSpread-v0`; that orders only reduce costs nothing of it.

    ## Observation Space
    `Box([0, -1, 0], [1, 1, 1], (3,), float32)`: elapsed fraction of the horizon, inventory over `inventory_limit`,
    and ``(i - 1) / (m - 1)`` of the spread of ``i`` ticks; with ``spread_encoding="one_hot"`` an entry for each of the
    ``m`` spreads instead, 1 for this one and else 0. `to_state` recovers the integers exactly.

    ## Rewards
    With ``utility="mean"`` the reward of a step is the gain of marked-to-mid wealth (edges earned, minus the cost of
    the market order, plus the Brownian gain of the inventory) minus ``running_penalty * int inventory^2 dt``; the
    last reward also has the cost of liquidating the inventory at the final spread. With ``reward="expected"`` the
    Brownian part is integrated out: same expectation, far less variance. The same seed gives the same fills for both.

    With ``utility="cara"`` every reward is 0 except the last, ``-exp(-risk_aversion * (W_T - W_0))`` with the wealth
    after liquidation; ``reward="expected"`` integrates the Brownian part out of it. That reward depends on wealth,
    which is not observed: the best policy is still a function of the observation, but a critic that bootstraps from
    the observation is not valid. The exponent is cut at 700.

    Rewards are undiscounted and add up to the criterion.

    ## Starting State
    Step 0, `initial_inventory`, `initial_price`, no cash; the spread is `initial_spread` ticks or drawn from its
    stationary law.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`. The inventory of the last observation is what was
    liquidated.

    ## Arguments
    [parameters]
    - `info` (None): "full" adds the gain, its Brownian part `price_gain`, the integral of squared inventory, and the
      depths (NaN without a quote), sizes and market order that were played to `info`, which always has cash, mid,
      inventory, spread, fills and market orders of the last step, and `masked_actions` since the reset.

    ## Version History
    - v0: first version.

    ## References
    - Guilbaud, F. & Pham, H. (2013). Optimal high-frequency trading with limit and market orders. Quantitative Finance
      13(1). arXiv:1106.5040.
    """

    vector_class = TickSpreadVectorEnv

    def action_masks(self) -> NDArray[np.bool_]:
        """Which action entries are allowed now, shape ``(entries,)``: see `masks`."""
        self.require_started("action_masks()")
        state = self._rows.state[0]
        return tick_spread.action_masks(self.one_params, int(state["inventory"]), int(state["spread"]))
