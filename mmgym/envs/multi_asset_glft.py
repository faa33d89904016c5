"""`mmgym/MultiAssetGLFT-v0`: quoting in 2 to 30 correlated assets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import multi_asset_glft as model


class MultiAssetGLFTFace(MarketFace):
    """Coordinates and info entries of the market of several assets."""

    market = model.MARKET
    step_entries = ("bid_fills", "ask_fills", "bid_depth", "ask_depth")
    params: model.Params

    @property
    def control_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the depths: bids of all assets, then asks."""
        return tuple(f"{side}_depth_{i}" for side in ("bid", "ask") for i in range(self.params.num_assets))

    def to_state(self, observations: Any) -> tuple[NDArray[np.int64], ...]:
        """Step and inventory of each asset (in orders) of observations of shape ``(..., 1 + n)``."""
        step, lots = model.locate(self.params, self.without_values(observations))
        return step, *np.moveaxis(lots, -1, 0)

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash, mids (price) and inventories (assets) of all assets, fills; `full` adds the rest."""
        p, n = self.params, self.params.num_assets
        mid, inventory = np.asarray(state.mid)[..., :n], np.asarray(state.inventory)[..., :n] * p.sizes
        gain = state.spread_gain + state.price_gain
        initial = np.sum(np.multiply(p.initial_inventory, p.initial_price), axis=-1)
        entries = {
            "cash": initial + gain - (inventory * mid).sum(axis=-1),
            "mid": mid,
            "inventory": inventory,
            "bid_fills": state.bid_fills,
            "ask_fills": state.ask_fills,
        }
        if full:
            depths = np.stack(controls[: 2 * n], axis=-1)
            entries["gain"] = gain
            entries["price_gain"] = state.price_gain
            entries["risk"] = state.risk
            entries["jump_exponent"] = state.jump_exponent
            entries["bid_depth"], entries["ask_depth"] = depths[..., :n], depths[..., n:]
        return entries


class MultiAssetGLFTVectorEnv(MultiAssetGLFTFace, KernelVectorEnv):
    """A batch of `MultiAssetGLFTEnv`, with `num_envs`, `threads`, `autoreset_mode`, `copy` of `KernelVectorEnv`."""


class MultiAssetGLFTEnv(MultiAssetGLFTFace, KernelEnv):
    r"""Market making in 2 to 30 correlated assets (inventory in assets, traded in orders of `order_size`).

    ## Description
    Each asset is a market like `mmgym/GLFT-v0`: a bid and an ask around a mid, filled at intensity ``fill_rate *
    exp(-fill_decay * depth)``, a filled order replaced at once, a side inactive exactly while the inventory is at its
    limit. The mids are Brownian motions with a common covariance matrix, and the penalty ``risk_aversion / 2 * int q'
    covariance q dt`` is on the variance of the whole book: what hedges costs less. With ``utility="cara"`` the
    criterion is the expected utility ``-exp(-risk_aversion * ...)`` of wealth. Fills in one asset do not move
    another's. With `jump_rate` the mids also jump, each at times of its own and independently of the others, by the
    laws of `mmgym/GLFT-v0`; the penalty stays on the covariance.

    A step freezes all depths for ``horizon / num_steps`` and simulates the rest exactly, in continuous time.
    `mmgym.baselines.optimal_policy` returns the exact optimum of this environment as built, for up to 3,000 inventory
    vectors: two assets, or three with narrow limits. Beyond that the optimum is bracketed, within 0.3 to 0.4 % for 5 to
    20 assets of volatilities 1 to 2 with correlation 0.4: `mmgym.baselines.best_known_policy` quotes as in separate
    markets, with or without what the others' inventories change to second order, and the optima of separate markets
    with a smaller penalty bound all policies.

    Units are the user's: price, time and assets; amounts of money are price times assets.

    ## Action Space
    `Box(-1, 1, (2 n,), float32)`: depths of the bids of all assets, then of the asks, scaled from `[min_depth,
    max_depth]`. Finite values outside the box are clipped to it. `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, ..., -1], 1, (1 + n,), float32)`: elapsed fraction of the horizon, and the inventory of each asset over
    its `inventory_limit`. `to_state` recovers the integers exactly.

    ## Rewards
    The gain of marked-to-mid wealth minus ``risk_aversion / 2 * int q' covariance q dt`` over the step; the last reward
    also has ``-terminal_penalty * sum of inventory^2``. With ``reward="expected"`` the price noise of the gain is
    integrated out: same expectation, less variance. Undiscounted, they add up to the criterion.

    With ``utility="cara"`` every reward is 0 except the last, ``-exp(-risk_aversion * (W_T - W_0 - terminal_penalty *
    sum of inventory^2))``, its exponent cut at 700; ``reward="expected"`` integrates the price noise out of it. That
    reward depends on wealth, which is not observed; the best policy is still a function of the observation.

    ## Starting State
    Step 0, `initial_inventory`, mids `initial_price`, no cash.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    Lists have an entry for each asset; one number stands for all of them.

    [parameters]
    - `info` (None): "full" adds the gain, its price noise `price_gain`, the integral `risk` of ``q' covariance q``, the
      `jump_exponent` of `mmgym/GLFT-v0` and the depths to `info`, which always has cash, mids, inventories and the last
      step's fills.

    ## Version History
    - v0: first version.

    ## References
    - Bergault, P. & Guéant, O. (2021). Size matters for OTC market makers: general results and dimensionality reduction
      techniques. Mathematical Finance 31(1).
    - Guéant, O. (2017). Optimal market making. Applied Mathematical Finance 24(2).
    """

    vector_class = MultiAssetGLFTVectorEnv
