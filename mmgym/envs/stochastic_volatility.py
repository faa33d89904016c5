"""`mmgym/StochasticVolatility-v0`: quoting with bounded inventory around a mid of Heston variance."""

from collections.abc import Sequence
from typing import Any

from mmgym.envs.glft import account
from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import stochastic_volatility


class StochasticVolatilityFace(MarketFace):
    """Info entries of the market with Heston's variance."""

    market = stochastic_volatility.MARKET
    step_entries = ("bid_fills", "ask_fills", "bid_depth", "ask_depth")
    control_names = ("bid_depth", "ask_depth")
    real_coordinates = 1
    params: stochastic_volatility.Params

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid (price), inventory (assets), variance, last fills; `full` adds more."""
        entries = account(self.params, state) | {"variance": state.variance}
        if full:
            entries["gain"] = state.spread_gain + state.price_gain
            entries["price_gain"] = state.price_gain
            entries["variance_gain"] = state.variance_gain
            entries["weighted_square"] = state.weighted_square
            entries["jump_exponent"] = state.jump_exponent
            entries["bid_depth"], entries["ask_depth"] = controls
        return entries


class StochasticVolatilityVectorEnv(StochasticVolatilityFace, KernelVectorEnv):
    """A batch of `StochasticVolatilityEnv`, with the arguments of `KernelVectorEnv`."""


class StochasticVolatilityEnv(StochasticVolatilityFace, KernelEnv):
    r"""Market making with bounded inventory under Heston's variance (inventory in assets, in orders of `order_size`).

    ## Description
    The market of `mmgym/GLFT-v0` around a mid whose variance follows Heston (1993): ``dS = drift dt + sqrt(nu) dW``,
    ``dnu = variance_reversion (variance_mean - nu) dt + variance_volatility sqrt(nu) dZ``, the two Brownian motions
    with `correlation`. Inventory costs ``risk_aversion / 2 * nu * inventory^2`` per unit of time: the more, the more
    volatile the mid is now.

    A step freezes both depths. Fills have exact clocks, and the variance is drawn from its non-central chi-square law
    at every fill and step end, whether or not Feller's condition holds (where it does not, construction warns). The
    criterion is simulated without bias, and the variance of the P&L too at zero correlation; with correlation that
    variance is off by a relative ``(variance_reversion * step)^2 / 12`` at most (see the model's docstring).

    With `jump_rate` the mid also jumps, as in `mmgym/GLFT-v0`, independently of its variance and of the fills: under
    ``utility="mean"`` jumps that are compensated change the risk alone, and the penalty stays on ``nu``; under
    ``utility="cara"`` their whole law counts.

    With ``utility="mean"`` the correlation does not change the optimum: the mid is a martingale but for its drift.
    Seeing the variance is worth little (0.003 of 65.5 with the defaults); ``observe_variance=False`` hides it,
    and the optimum then is that of an agent who knows its expectation only.

    With ``utility="cara"`` the criterion is the expected utility ``E[-exp(-risk_aversion (W_T - W_0 - terminal_penalty
    * inventory^2))]``, scores are certainty equivalents, and `correlation` counts: inventory hedges the variance. The
    variance is then also drawn between fills where those are far apart, so that the simulated certainty equivalent is
    unbiased to 1e-6 of what quoting ``1 / fill_decay`` earns, at any inventory. Where the variance is hidden, the best
    policy depends on the whole path of the inventory: the optimum is then known between bounds, with that of an agent
    who sees the variance above.

    Units: prices in the currency, inventory in assets, time in the unit of `horizon`.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: bid and ask depth, scaled from ``[min_depth, max_depth]`` of each side; the default box
    is ``[-1/k, 3/k]``, ``k = fill_decay``. Finite values outside the box are clipped to it. `to_quotes` and
    `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, 0], [1, 1, 1], (3,), float32)`: elapsed fraction of the horizon, inventory over `inventory_limit`, and
    the variance as ``nu / (nu + variance_mean)``; without the last if ``observe_variance=False``. `to_state` converts.

    ## Rewards
    The gain of marked-to-mid wealth minus ``risk_aversion / 2 * int nu inventory^2 dt``; the last reward also has
    ``-terminal_penalty * inventory^2``. With ``reward="expected"`` the price noise is left out: same expectation, less
    variance. Rewards are undiscounted and add up to the criterion.

    With ``utility="cara"`` every reward is 0 except the last, ``-exp(-risk_aversion * (W_T - W_0 - terminal_penalty *
    inventory^2))``; ``reward="expected"`` integrates the price noise that is independent of the variance, jumps
    included, out of it.

    ## Starting State
    Step 0, `initial_inventory`, `initial_price`, `initial_variance`, no cash.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    [parameters]
    - `info` (None): "full" adds the gain, its price noise `price_gain`, the part `variance_gain` of it that follows
      from the variance's path, the integral `weighted_square` of variance times squared inventory, the `jump_exponent`
      of `mmgym/GLFT-v0` and the depths to `info`, which always has cash, mid, inventory, variance and the fills of the
      last step.

    ## Version History
    - v0: first version.

    ## References
    - Heston, S. L. (1993). A closed-form solution for options with stochastic volatility. Review of Financial Studies
      6(2).
    - Cox, J. C., Ingersoll, J. E. & Ross, S. A. (1985). A theory of the term structure of interest rates. Econometrica
      53(2).
    - Andersen, L. & Piterbarg, V. (2007). Moment explosions in stochastic volatility models. Finance and Stochastics
      11(1).
    - Guéant, O., Lehalle, C.-A. & Fernandez-Tapia, J. (2013). Dealing with the inventory risk: a solution to the market
      making problem. Mathematics and Financial Economics 7(4).
    - Bates, D. S. (1996). Jumps and stochastic volatility: exchange rate processes implicit in Deutsche mark options.
      Review of Financial Studies 9(1).
    """

    vector_class = StochasticVolatilityVectorEnv
