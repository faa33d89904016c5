"""`mmgym/GLFT-v0` and `mmgym/AvellanedaStoikov-v0`: quoting with bounded inventory around a Brownian mid."""

from collections.abc import Sequence
from typing import Any

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import glft


def account(params: Any, state: Any) -> dict[str, Any]:
    """Info entries of a maker of one asset: cash and mid (price), inventory (assets), and fills of the last step."""
    inventory = state.inventory * params.order_size
    gain = state.spread_gain + state.price_gain
    return {
        "cash": params.initial_inventory * params.initial_price + gain - inventory * state.mid,
        "mid": state.mid,
        "inventory": inventory,
        "bid_fills": state.bid_fills,
        "ask_fills": state.ask_fills,
    }


class GLFTFace(MarketFace):
    """Info entries of the GLFT market."""

    market = glft.MARKET
    step_entries = ("bid_fills", "ask_fills", "bid_depth", "ask_depth")
    control_names = ("bid_depth", "ask_depth")
    params: glft.Params

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid (price), inventory (assets), fills of the last step; `full` adds the rest."""
        entries = account(self.params, state)
        if full:
            entries["gain"] = state.spread_gain + state.price_gain
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

    With `jump_rate` the mid also jumps, on average `jump_rate` times per unit of time: by normal amounts of mean
    `jump_mean` and standard deviation `jump_volatility` (Merton 1976), or with ``jump_law="double_exponential"`` (Kou
    2002) by exponential ones, upward with probability `jump_up_share`, of means `jump_up_mean` and `jump_down_mean`.
    `compensated` takes their trend, `jump_rate` times their mean, out of the drift. All stays exact, the law of the
    P&L included. Under ``utility="mean"`` compensated jumps change the risk but neither the optimum nor its value;
    others are a drift. Under ``utility="cara"`` the whole law of the jumps counts.

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
    [parameters]
    - `info` (None): "full" adds the gain, its price noise `price_gain`, the integral of squared inventory, the
      `jump_exponent` (under "cara": ln E[exp(-risk_aversion * gain from compensated jumps)] given the inventories) and
      the depths to `info`, which always has cash, mid, inventory and the fills of the last step.

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
    - Kou, S. G. (2002). A jump-diffusion model for option pricing. Management Science 48(8).
    - Merton, R. C. (1976). Option pricing when underlying stock returns are discontinuous. Journal of Financial
      Economics 3(1-2).
    """

    vector_class = GLFTVectorEnv
