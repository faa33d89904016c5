"""`mmgym/MultiAssetGLFT-v0`: quoting in two to four correlated assets."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import multi_asset_glft as model


class MultiAssetGLFTFace(MarketFace):
    """Spaces, public maps and info entries of the market of several assets."""

    market = model.MARKET
    step_entries = ("bid_fills", "ask_fills", "bid_depth", "ask_depth")
    params: model.Params

    @property
    def control_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the depths: bids of all assets, then asks."""
        return tuple(f"{side}_depth_{i}" for side in ("bid", "ask") for i in range(self.params.num_assets))

    def single_spaces(self) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
        """Observation and action box of one environment."""
        n = self.params.num_assets
        observations = gymnasium.spaces.Box(np.array([0, *[-1] * n], np.float32), np.ones(1 + n, np.float32))
        return observations, gymnasium.spaces.Box(-1.0, 1.0, (2 * n,), np.float32)

    def to_quotes(self, actions: Any) -> NDArray[np.float64]:
        """Depths (price), bids then asks, shape ``(..., 2 n)``, that the environment plays for such actions."""
        return model.to_quotes(self.params, np.clip(actions, -1.0, 1.0).astype(np.float32))

    def from_quotes(self, quotes: Any) -> NDArray[np.float32]:
        """Actions whose depths are the nearest to ``quotes`` (price), to float32 rounding; beyond the box: its edge."""
        return model.from_quotes(self.params, quotes)

    def to_state(self, observations: Any) -> tuple[NDArray[np.int64], ...]:
        """Step and inventory of each asset (in orders) of observations of shape ``(..., 1 + n)``."""
        step, lots = model.locate(self.params, observations)
        return step, *np.moveaxis(lots, -1, 0)

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash, mids (price) and inventories (assets) of all assets, fills; `full` adds the rest."""
        p, n = self.params, self.params.num_assets
        mid = np.stack([getattr(state, f"mid_{i}") for i in range(n)], axis=-1)
        inventory = np.stack([getattr(state, f"inventory_{i}") for i in range(n)], axis=-1) * p.sizes
        gain = state.spread_gain + state.price_gain
        initial = float(np.dot(p.initial_inventory, p.initial_price))
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
            entries["bid_depth"], entries["ask_depth"] = depths[..., :n], depths[..., n:]
        return entries


class MultiAssetGLFTVectorEnv(MultiAssetGLFTFace, KernelVectorEnv):
    """A batch of `MultiAssetGLFTEnv`, with `num_envs`, `threads`, `autoreset_mode`, `copy` of `KernelVectorEnv`."""


class MultiAssetGLFTEnv(MultiAssetGLFTFace, KernelEnv):
    r"""Market making in two to four correlated assets (inventory in assets, traded in orders of `order_size`).

    ## Description
    Each asset is a market like `mmgym/GLFT-v0`: a bid and an ask around a mid, filled at intensity ``fill_rate *
    exp(-fill_decay * depth)``, a filled order replaced at once, a side inactive exactly while the inventory is at its
    limit. The mids are Brownian motions with a common covariance matrix, and the penalty ``risk_aversion / 2 * int q'
    covariance q dt`` is on the variance of the whole book: what hedges costs less. Fills in one asset do not move
    another's.

    A step freezes all depths for ``horizon / num_steps`` and simulates the rest exactly, in continuous time.
    `mmgym.baselines.optimal_policy` returns the exact optimum of this environment as built, for up to 3,000 inventory
    vectors: two assets, or three with narrow limits. Beyond that the optimum is bracketed:
    `mmgym.baselines.best_known_policy` is mostly the quadratic closed form, and the optima of separate markets with a
    smaller penalty bound all policies.

    Units are the user's: price, time and assets; amounts of money are price times assets.

    ## Action Space
    `Box(-1, 1, (2 n,), float32)`: depths of the bids of all assets, then of the asks, scaled from `[min_depth,
    max_depth]`. Finite values outside the box are clipped to it. `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, ..., -1], 1, (1 + n,), float32)`: elapsed fraction of the horizon, and the inventory of each asset over
    its `inventory_limit`. `to_state` recovers the integers exactly.

    ## Rewards
    The gain of marked-to-mid wealth minus ``risk_aversion / 2 * int q' covariance q dt`` over the step; the last reward
    also has ``-terminal_penalty * sum of inventory^2``. With ``reward="expected"`` the Brownian part of the gain is
    integrated out: same expectation, less variance. Undiscounted, they add up to the criterion.

    ## Starting State
    Step 0, `initial_inventory`, mids `initial_price`, no cash.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    Lists have an entry for each asset; one number stands for all of them.

    - `covariance` ([[4, 1.5], [1.5, 2.25]]): price^2 / time; two to four rows, symmetric, positive semi-definite (may
      be singular). It says how many assets there are.
    - `fill_rate` ([140, 100]; 100 with another covariance), `fill_decay` (1.5): 1 / time and 1 / price, > 0; an entry
      may be a pair [bid, ask].
    - `drift` (0.0): price / time.
    - `order_size` (1.0), `inventory_limit` (4.0), `initial_inventory` (0.0): assets; whole numbers of orders.
    - `initial_price` (100.0): price.
    - `horizon` (1.0), `num_steps` (100): time, and number of decisions.
    - `risk_aversion` (0.1): 1 / (price * assets), >= 0.
    - `terminal_penalty` (0.0): price / assets, >= 0.
    - `min_depth` (-1 over `fill_decay`), `max_depth` (3 over it): price; entries like those of `fill_rate`.
    - `reward` ("pnl"): "pnl" or "expected".
    - `info` (None): "full" adds the gain, its Brownian part `price_gain`, the integral `risk` of ``q' covariance q``
      and the depths to `info`, which always has cash, mids, inventories and the fills of the last step.
    - `render_mode` (None): "ansi" or "rgb_array".
    - vector environment only: `num_envs`, `threads` (1), `autoreset_mode` ("NextStep"), `copy` (True); `info` is
      empty there unless "full".

    ## Version History
    - v0: first version.

    ## References
    - Bergault, P. & Guéant, O. (2021). Size matters for OTC market makers: general results and dimensionality reduction
      techniques. Mathematical Finance 31(1).
    - Guéant, O. (2017). Optimal market making. Applied Mathematical Finance 24(2).
    """

    vector_class = MultiAssetGLFTVectorEnv
