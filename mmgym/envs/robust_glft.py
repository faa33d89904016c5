"""`mmgym/RobustGLFT-v0` and `mmgym/RobustGLFTAdversary-v0`: a market maker against nature, and nature against her."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmgym.envs.glft import account
from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import robust_glft
from mmgym.models.robust_glft_game import CONTROLS


class RobustGLFTFace(MarketFace):
    """What all roles share: info entries."""

    step_entries = ("bid_fills", "ask_fills", *CONTROLS)
    game: ClassVar[type[KernelEnv]]  # of both players
    players: ClassVar[Mapping[str, tuple[str, ...]]] = {"maker": CONTROLS[:2], "adversary": CONTROLS[2:]}

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: the maker's cash (price), inventory (assets) and fills of the last step, and the mid.

        `full` adds the player's gain and what both played.
        """
        entries = account(self.params, state)
        if full:
            entries["gain"] = self.params.sign * (state.spread_gain + state.price_gain)
            entries["price_gain"] = self.params.sign * state.price_gain
            entries["inventory_square"] = state.inventory_square
            entries |= dict(zip(CONTROLS, controls, strict=True))
        return entries


class RobustGLFTMakerFace(RobustGLFTFace):
    """The maker."""

    market = robust_glft.MAKER
    control_names = CONTROLS[:2]
    file_arguments = {"adversary": robust_glft.ADVERSARIES}  # noqa: RUF012


class RobustGLFTAdversaryFace(RobustGLFTFace):
    """The adversary."""

    market = robust_glft.ADVERSARY
    control_names = CONTROLS[2:]
    file_arguments = {"maker": robust_glft.MAKERS}  # noqa: RUF012


class RobustGLFTGameFace(RobustGLFTFace):
    """Both players."""

    market = robust_glft.BOTH
    control_names = CONTROLS


class RobustGLFTVectorEnv(RobustGLFTMakerFace, KernelVectorEnv):
    """A batch of `RobustGLFTEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""


class RobustGLFTAdversaryVectorEnv(RobustGLFTAdversaryFace, KernelVectorEnv):
    """A batch of `RobustGLFTAdversaryEnv`, with the arguments of `KernelVectorEnv`."""


class RobustGLFTGameVectorEnv(RobustGLFTGameFace, KernelVectorEnv):
    """A batch of `RobustGLFTGameEnv`, with the arguments of `KernelVectorEnv`."""


class RobustGLFTEnv(RobustGLFTMakerFace, KernelEnv):
    r"""Market making against an adversary who chooses the market (inventory in assets, in orders of `order_size`).

    ## Description
    The market is that of `mmgym/AvellanedaStoikov-v0`: a mid ``dS = mu dt + volatility dW``, and quotes that are filled
    at the intensity ``A exp(-k d)`` at the depth ``d`` from the mid. But at every decision nature chooses the drift
    ``mu`` and, for either side, the fill rate ``A`` and the fill decay ``k``, within `drift_reach`, `fill_rate_reach`
    and `fill_decay_reach` of their nominal values: the zero-sum game of Spooner & Savani (2020), whose bounds are the
    defaults. Both players choose at the same time, see time and inventory, and are held to what they chose until the
    next decision; the step between is simulated exactly, as in `mmgym/GLFT-v0`.

    `adversary` says what nature does, always a function of the observation (or a draw), so that
    `mmgym.baselines.optimal_policy` is the exact best reply to it and `mmgym.baselines.score` exact:

    - "worst": the minimax adversary. The best reply is the robust policy, and its value that of the game.
    - "none": nature always chooses the nominal parameters. The market is `mmgym/AvellanedaStoikov-v0`.
    - "random": at every decision one of the 32 corners of nature's box, with equal probabilities.
    - the path of a table: an adversary that was trained in `mmgym/RobustGLFTAdversary-v0` and written by
      `mmgym.baselines.write_table`.

    A score against a given adversary is not a guarantee. What a policy is worth against the adversary that is worst
    *for it* is `mmgym.baselines.robust_glft.worst_case`, what it leaves on the table in that sense
    `mmgym.baselines.robust_glft.exploitability`: both exact, by dynamic programming. The value of the game is
    `mmgym.baselines.robust_glft.game_value`, which also says whether the two minimax policies are a saddle point.
    `mmgym.baselines.paper_policies` has the robust policy as "robust" whatever the adversary. Of a learner, as trained
    by ``mmgym train exact_gradient --env mmgym/RobustGLFT-v0 --folder run``, that is
    ``exploitability("mmgym/RobustGLFT-v0", mmgym.agents.train.load_model("run/model")[0])``.

    For self-play `mmgym.adapters.pettingzoo.ZeroSumParallelEnv` is the game of both.

    Units: prices in the currency, inventory in assets, time in the unit of `horizon`.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: bid and ask depth, scaled from ``[min_depth, max_depth]``. Finite values outside the
    box are clipped to it. `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1], [1, 1], (2,), float32)`: elapsed fraction of the horizon, inventory over `inventory_limit`.
    `to_state` recovers the step and the inventory exactly.

    ## Rewards
    The gain of marked-to-mid wealth minus ``running_penalty * int inventory^2 dt``, and at the end
    ``-terminal_penalty * inventory^2``. With ``reward="expected"`` the Brownian part is integrated out: same
    expectation, less variance. Undiscounted, they add up to the criterion.

    ## Starting State
    Step 0, `initial_inventory`, `initial_price`, no cash.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    [parameters]
    - `info` (None): "full" adds the gain, its price noise `price_gain`, the integral of squared inventory, the depths
      and what nature chose to `info`, which always has cash, mid, inventory and the fills of the last step.

    ## Version History
    - v0: first version.

    ## References
    - Spooner, T. & Savani, R. (2020). Robust market making via adversarial reinforcement learning. IJCAI.
    - Avellaneda, M. & Stoikov, S. (2008). High-frequency trading in a limit order book. Quantitative Finance 8(3).
    - Cartea, Á., Donnelly, R. & Jaimungal, S. (2017). Algorithmic trading with model uncertainty. SIAM Journal on
      Financial Mathematics 8(1).
    """

    vector_class = RobustGLFTVectorEnv


class RobustGLFTAdversaryEnv(RobustGLFTAdversaryFace, KernelEnv):
    r"""Nature against a market maker (the maker's inventory in assets, traded in orders of `order_size`).

    ## Description
    The other side of `mmgym/RobustGLFT-v0`: at every decision the agent chooses the drift of the mid and, for bids and
    asks, the fill rate and the fill decay, within `drift_reach`, `fill_rate_reach` and `fill_decay_reach` of their
    nominal values, and earns what the maker loses. `maker` says whom she meets, whose quotes are a function of the
    observation:

    - "robust": the minimax quotes. The best reply holds them down to the value of the game, not below.
    - "nominal": the optimum of the nominal market. The best reply shows what ignoring the adversary costs.
    - "constant": ``1 / fill_decay`` on both sides.
    - the path of a table: a maker that was trained in `mmgym/RobustGLFT-v0` and written by
      `mmgym.baselines.write_table`.

    `mmgym.baselines.optimal_policy` is the exact worst case of that maker, its optimum minus what she is left with.

    Units: prices in the currency, inventory in assets, time in the unit of `horizon`.

    ## Action Space
    `Box(-1, 1, (5,), float32)`: drift, fill rate of bids, of asks, fill decay of bids, of asks, scaled from their
    ranges, so that action 0 is nominal. Finite values outside the box are clipped to it. `to_quotes` and `from_quotes`
    convert.

    ## Observation Space
    `Box([0, -1], [1, 1], (2,), float32)`: elapsed fraction of the horizon, the maker's inventory over
    `inventory_limit`. `to_state` recovers the step and the inventory exactly.

    ## Rewards
    The maker's, with the opposite sign: what her marked-to-mid wealth loses plus ``running_penalty * int inventory^2
    dt``, and at the end ``terminal_penalty * inventory^2``. With ``reward="expected"`` the Brownian part is integrated
    out: same expectation, less variance. Undiscounted, they add up to the criterion.

    ## Starting State
    Step 0, `initial_inventory`, `initial_price`, no cash.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    [parameters]
    - `info` (None): "full" adds the agent's gain (minus the maker's), its price noise `price_gain`, the integral of
      squared inventory, the depths and what nature chose to `info`, which always has the maker's cash, inventory and
      fills of the last step, and the mid.

    ## Version History
    - v0: first version.

    ## References
    - Spooner, T. & Savani, R. (2020). Robust market making via adversarial reinforcement learning. IJCAI.
    """

    vector_class = RobustGLFTAdversaryVectorEnv


class RobustGLFTGameEnv(RobustGLFTGameFace, KernelEnv):
    """Both players at once: seven actions, the maker's two first; rewards are the maker's. For self-play.

    It has no id of its own, and no optimum: `mmgym.adapters.pettingzoo.ZeroSumParallelEnv` is the game for two.
    """

    vector_class = RobustGLFTGameVectorEnv


RobustGLFTFace.game = RobustGLFTGameEnv
