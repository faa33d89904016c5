"""`mmgym/GLFT-v0` and `mmgym/AvellanedaStoikov-v0`: quoting with bounded inventory around a Brownian mid."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import glft


class GLFTFace(MarketFace):
    """Spaces, public maps and info entries of the GLFT market."""

    market = glft.MARKET
    step_entries = ("bid_fills", "ask_fills", "bid_depth", "ask_depth")
    control_names = ("bid_depth", "ask_depth")
    params: glft.Params

    def single_spaces(self) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
        """Observation and action box of one environment."""
        observations = gymnasium.spaces.Box(np.array([0, -1], np.float32), np.array([1, 1], np.float32))
        return observations, gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def to_quotes(self, actions: Any) -> NDArray[np.float64]:
        """Depths ``[bid, ask]`` (price), shape ``(..., 2)``, that the environment plays for actions of that shape."""
        return glft.to_quotes(self.params, np.clip(actions, -1.0, 1.0).astype(np.float32))

    def from_quotes(self, quotes: Any) -> NDArray[np.float32]:
        """Actions whose depths are the nearest to ``quotes`` (price), to float32 rounding; beyond the box: its edge."""
        return glft.from_quotes(self.params, quotes)

    def to_state(self, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Step and inventory (in orders of ``order_size`` assets) of observations of shape ``(..., 2)``."""
        return glft.locate(self.params, observations)

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid (price), inventory (assets), fills of the last step; `full` adds the rest."""
        p, mid = self.params, state.mid
        inventory = state.inventory * p.order_size
        gain = state.spread_gain + state.price_gain
        entries = {
            "cash": p.initial_inventory * p.initial_price + gain - inventory * mid,
            "mid": mid,
            "inventory": inventory,
            "bid_fills": state.bid_fills,
            "ask_fills": state.ask_fills,
        }
        if full:
            entries["gain"] = gain
            entries["price_gain"] = state.price_gain
            entries["inventory_square"] = state.inventory_square
            entries["jump_exponent"] = state.jump_exponent
            entries["bid_depth"], entries["ask_depth"] = controls
        return entries


class GLFTVectorEnv(GLFTFace, KernelVectorEnv):
    """A batch of `GLFTEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""


class GLFTEnv(GLFTFace, KernelEnv):
    r"""Market making in one asset with bounded inventory (inventory in assets, traded in orders of `order_size`).

    ## Description
    The agent quotes a bid and an ask around a mid price that follows an arithmetic Brownian motion, ``dS = drift dt
    + volatility dW``. A quote at depth ``d`` (its distance from the *moving* mid) is filled at intensity
    ``fill_rate * exp(-fill_decay * d)``; a filled order is replaced at once, and a side is inactive exactly while
    the inventory is at its limit. This is the market of Avellaneda & Stoikov (2008) with the inventory bounds of
    Guéant, Lehalle & Fernandez-Tapia (2013).

    A step freezes both depths for ``horizon / num_steps`` and simulates the rest exactly, in continuous time:
    several fills may happen in a step, there is no discretisation bias, and a constant quote has the same value for
    every number of steps. `mmgym.baselines.optimal_policy` returns the exact optimum of this environment as built.

    With `jump_rate` the mid also jumps (Merton 1976) by normal amounts of mean `jump_mean` and standard deviation
    `jump_volatility`, on average `jump_rate` times per unit of time; `compensated` takes their trend ``jump_rate *
    jump_mean`` out of the drift. All stays exact, the law of the P&L included. Under ``utility="mean"`` compensated
    jumps change the risk but neither the optimum nor its value; others are a drift. Under ``utility="cara"`` the whole
    law of the jumps counts.

    With ``price="geometric"`` the mid is a geometric Brownian motion without drift, ``dS = volatility S dW``. What
    does not change: fills, observations, the optimum and its value, which see the mid only through its trend, and the
    exact scores. What does: `volatility` is relative (1 / sqrt(time)), the mid stays positive, the default
    `running_penalty` is ``risk_aversion * (volatility * initial_price)^2 / 2``, the P&L is more variable (its standard
    deviation is still exact) and its law has no closed form, so that VaR and CVaR are simulated. A drift, jumps or
    ``utility="cara"`` would let the best policy depend on the price, which is not observed, and are refused.

    Units: prices in the currency, inventory in assets, time in the unit of `horizon`.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: bid and ask depth, scaled from ``[min_depth, max_depth]`` of each side. With the
    default box ``[-1/k, 3/k]``, ``k = fill_decay``, action 0 is the depth ``1/k``. Finite values outside the box
    are clipped to it. `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1], [1, 1], (2,), float32)`: elapsed fraction of the horizon, inventory over `inventory_limit`.
    `to_state` recovers the step and the inventory exactly.

    ## Rewards
    With ``utility="mean"`` the reward of a step is the gain of marked-to-mid wealth minus ``running_penalty * int
    inventory^2 dt``, and the last reward also has ``-terminal_penalty * inventory^2``. With ``reward="expected"``
    the price noise (Brownian motion and compensated jumps) is integrated out: same expectation, less variance. The
    same seed gives the same fills and prices for both.

    With ``utility="cara"`` every reward is 0 except the last, ``-exp(-risk_aversion * (W_T - W_0 - terminal_penalty
    * inventory^2))``; ``reward="expected"`` integrates the price noise out of it. That reward depends on wealth,
    which is not observed: the best policy is still a function of the observation, but a critic that bootstraps from
    the observation is not valid. The exponent is cut at 700.

    Rewards are undiscounted and add up to the criterion.

    ## Starting State
    Step 0, `initial_inventory`, `initial_price`, no cash.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    - `price` ("arithmetic"): "arithmetic" or "geometric".
    - `volatility` (0.3): price / sqrt(time), or 1 / sqrt(time) where the mid is geometric, >= 0.
    - `fill_rate` (0.9), `fill_decay` (0.3): fills / time at depth 0 and 1 / price, > 0; a number or a `[bid, ask]`
      pair.
    - `drift` (0.0): of the mid, price / time.
    - `order_size` (1.0): assets of an order, > 0.
    - `inventory_limit` (30.0), `initial_inventory` (0.0): assets, multiples of `order_size`.
    - `initial_price` (100.0).
    - `horizon` (600.0), `num_steps` (600): time and number of decisions.
    - `running_penalty` (None): price / (assets * time), >= 0; None is ``risk_aversion * volatility^2 / 2`` under
      "mean" (the variance of jumps is not in it). Under "cara" it must be None or 0.
    - `terminal_penalty` (0.0): price / assets, >= 0.
    - `utility` ("mean"): "mean" or "cara".
    - `risk_aversion` (0.01): 1 / currency, >= 0 (> 0 under "cara"). Under "mean" it only sets the default of
      `running_penalty`.
    - `min_depth` (None), `max_depth` (None): price, a number or a `[bid, ask]` pair; None is ``-1 / fill_decay``
      and ``3 / fill_decay`` of each side.
    - `jump_rate` (0.0), `jump_mean` (0.0), `jump_volatility` (0.0): jumps / time >= 0, and price. Under "cara" their
      exponential moment at the inventory limit must not leave the range of floating point.
    - `compensated` (False): whether the jumps' trend is taken out of the drift.
    - `reward` ("pnl"): "pnl" or "expected".
    - `info` (None): "full" adds the gain, its price noise `price_gain`, the integral of squared inventory, the
      `jump_exponent` (under "cara": ln E[exp(-risk_aversion * gain from compensated jumps)] given the inventories) and
      the depths to `info`, which always has cash, mid, inventory and the fills of the last step.
    - `render_mode` (None): "ansi" or "rgb_array".
    - vector environment only: `num_envs`, `threads` (1), `autoreset_mode` ("NextStep"), `copy` (True); `info` is
      empty there unless "full".

    The defaults are the parameter set of Guéant, Lehalle & Fernandez-Tapia (2013). `mmgym/AvellanedaStoikov-v0` has
    those of Avellaneda & Stoikov (2008): volatility 2, fill_rate 140, fill_decay 1.5, horizon 1, 200 steps,
    inventory_limit 10, risk_aversion 0.1 (hence running_penalty 0.2).

    ## Version History
    - v0: first version.

    ## References
    - Avellaneda, M. & Stoikov, S. (2008). High-frequency trading in a limit order book. Quantitative Finance 8(3).
    - Guéant, O., Lehalle, C.-A. & Fernandez-Tapia, J. (2013). Dealing with the inventory risk: a solution to the market
      making problem. Mathematics and Financial Economics 7(4).
    - Cartea, Á., Jaimungal, S. & Penalva, J. (2015). Algorithmic and High-Frequency Trading, chapter 10.
    - Merton, R. C. (1976). Option pricing when underlying stock returns are discontinuous. Journal of Financial
      Economics 3(1-2).
    """

    vector_class = GLFTVectorEnv
