"""`mmgym/MeanFieldTaker-v0` and `mmgym/MeanFieldMaker-v0`: one player against a crowd of strategic takers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.kernel_env import KernelEnv, KernelVectorEnv, MarketFace
from mmgym.models import mean_field


class MeanFieldFace(MarketFace):
    """What both roles share: info entries."""

    step_entries = ("bid_fills", "ask_fills", "bid_depth", "ask_depth")
    control_names = ("bid_depth", "ask_depth")
    file_arguments = {"population": ("equilibrium", "constant")}  # noqa: RUF012
    params: mean_field.Params

    def measurements(self) -> dict[str, tuple[Callable[[], None], int]]:
        """As in `MarketFace`: the game of N takers."""
        from mmgym.envs.mean_field_players import measurement

        game = {name: value for name, value in self.arguments.items() if name != "population"}
        return {
            "N-player game, 4 of 1,000 takers, player-steps": measurement(4, 1_000, **game),
            "N-player game, 400 of 10 takers, player-steps": measurement(400, 10, **game),
        }

    def describe(self, state: Any, controls: Sequence[Any], full: bool) -> dict[str, Any]:
        """Info entries: cash and mid since the reset (price), inventory (assets), signal (levels), fills; or all."""
        p, mid = self.params, state.mid
        inventory = state.inventory * p.order_size
        gain = state.drift_gain + state.price_gain
        entries = {
            "cash": gain - inventory * mid,
            "mid": mid,
            "inventory": inventory,
            "bid_fills": state.bid_fills,
            "ask_fills": state.ask_fills,
        }
        if p.role == "taker":
            entries["signal"] = state.signal
        if full:
            entries["gain"] = gain
            entries["price_gain"] = state.price_gain
            entries["inventory_square"] = state.inventory_square
            entries["bid_depth"], entries["ask_depth"] = controls
        return entries


class MeanFieldTakerFace(MeanFieldFace):
    """A taker."""

    market = mean_field.TAKER


class MeanFieldMakerFace(MeanFieldFace):
    """The maker."""

    market = mean_field.MAKER

    def to_state(self, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Step and inventory (in orders of ``order_size`` assets) of observations of shape ``(..., 5)``."""
        return mean_field.locate(self.params, self.without_values(observations))[:2]


class MeanFieldTakerVectorEnv(MeanFieldTakerFace, KernelVectorEnv):
    """A batch of `MeanFieldTakerEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""


class MeanFieldMakerVectorEnv(MeanFieldMakerFace, KernelVectorEnv):
    """A batch of `MeanFieldMakerEnv`, with `num_envs`, `threads`, `autoreset_mode` and `copy` of `KernelVectorEnv`."""


class MeanFieldTakerEnv(MeanFieldTakerFace, KernelEnv):
    r"""One strategic taker in a crowd of them (inventory in assets, traded in orders of `order_size`).

    ## Description
    The minor player of Baldacci, Bergault & Possamai. She quotes a bid and an ask to a market-maker, is filled at
    intensity ``taker_fill_rate * exp(-taker_fill_decay * depth)`` on each side, and believes in a private signal: for
    her the mid drifts by the signal, a walk on the multiples of `signal_unit` up to `signal_limit` of them, with
    `signal_rate` jumps a day either way, by as many levels as `signal_jump_sizes` says. A crowd of takers like her
    plays `population` and moves the mid by ``impact`` times the change of its mean inventory; she is too small to move
    it. So the mid obeys ``dS = signal dt + impact d(mean inventory) + volatility dW``: the drift by the signal is her
    belief, and other players do not see it.

    A step freezes both depths for ``horizon / num_steps`` and simulates the rest exactly, in continuous time: several
    fills may happen, the signal may jump, and the crowd goes on moving inside the step. With
    ``population="equilibrium"`` the crowd plays the equilibrium of this very game with frozen depths, so the best
    policy against it is the crowd's own. `mmgym.baselines.optimal_policy` returns the exact optimum of this environment
    as built, `mmgym.baselines.mean_field.population_exploitability` what a whole crowd leaves on the table. An
    equilibrium that is not found, as with ``signal_rate=[3, 0]`` from an impact of 0.04 on, is a
    `mmgym.models.mean_field_limit.NotConverged` after some minutes;
    `mmgym.models.mean_field_flow.solve_equilibrium_flow` says which games were tested.

    Units: dollars, assets, days.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: bid and ask depth over `max_depth`; negative depths cross the mid. Finite values
    outside the box are clipped to it. `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, -1], [1, 1, 1], (3,), float32)`: elapsed fraction of the horizon, inventory over the
    larger `inventory_limit`, signal over `signal_limit`. `to_state` recovers the integers exactly.

    ## Rewards
    The gain of marked-to-mid wealth, under her belief, minus ``taker_risk_aversion * volatility^2 * int inventory^2
    dt``; nothing is added at the end. With ``reward="expected"`` the Brownian part of the gain is integrated out: same
    expectation, less variance. The same seed gives the same fills for both. Undiscounted, they add up to the criterion.

    ## Starting State
    Step 0; inventory and signal from `initial_law`. The mid is counted from its start and the cash from the start's
    wealth: ``cash + inventory * mid`` is the gain. With ``randomise={"initial_law": ["choice", laws]}`` a reset draws
    the law that the crowd starts from, and with it its flow; with ``observe_parameters=True`` takers see it, so that
    their policies are functions of the population (`mmgym.baselines.mean_field.population_exploitabilities`).

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    The same for both roles and the solver.

    [parameters]
    - `info` (None): "full" adds the gain, its Brownian part `price_gain`, the integral of squared inventory and the
      depths to `info`, which always has cash, mid, inventory, signal and the fills of the last step.

    The defaults are the paper's table, with orders of 10 assets. `mmgym/MeanFieldTakerFastSignals-v0` has signals ten
    times faster (signal_rate 15), `mmgym/MeanFieldTakerCoupled-v0` an impact of 0.02 and a crowd that starts with 80
    assets and the signal 2: its members hurry and hold each other up. `mmgym/MeanFieldTakerStrongImpact-v0` is the same
    at 0.05, the strongest impact that is solved. At the default impact, 5e-5, the game is virtually decoupled: best
    answers hardly depend on the crowd.

    ## Version History
    - v0: first version.

    ## References
    - Baldacci, B., Bergault, P. & Possamaï, D. A mean-field game of market-making against strategic traders.
    """

    vector_class = MeanFieldTakerVectorEnv


class MeanFieldMakerEnv(MeanFieldMakerFace, KernelEnv):
    r"""The market-maker against a crowd of strategic takers (inventory in assets, traded in orders of `order_size`).

    ## Description
    The major player of Baldacci, Bergault & Possamai. Her bid at depth ``d`` is filled at intensity ``maker_fill_rate
    * exp(-maker_fill_decay * (d + x))``, where ``x`` is the takers' mean ask, and her ask with their mean bid. The
    crowd of takers, who have private signals, plays `population` and moves the mid by ``impact`` times the change of
    its mean inventory: ``dS = impact d(mean inventory) + volatility dW``. She does not change what the crowd does.

    A step freezes both depths and the crowd's mean quotes for ``horizon / num_steps`` and simulates the rest exactly,
    in continuous time. With ``population="equilibrium"`` the crowd plays the equilibrium of the game with frozen
    depths, or `mmgym.models.mean_field_limit.NotConverged` is raised, as `MeanFieldTakerEnv` says.
    `mmgym.baselines.optimal_policy` returns the exact optimum of this environment as built.

    Units: dollars, assets, days.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: bid and ask depth over `max_depth`; negative depths cross the mid. Finite values
    outside the box are clipped to it. `to_quotes` and `from_quotes` convert.

    ## Observation Space
    `Box([0, -1, -1, -1, -1], 1, (5,), float32)`: elapsed fraction of the horizon, inventory over her larger
    limit, the takers' mean bid and mean ask over `max_depth`, and ``m / (|m| + s)`` where ``m`` is the mean drift of
    the mid by the crowd in the coming step (dollars / day) and ``s`` the largest signal, at least 1. `to_state`
    recovers step and inventory exactly. At the horizon the crowd's entries are those of the last step.

    ## Rewards
    The gain of marked-to-mid wealth minus ``maker_risk_aversion * volatility^2 * int inventory^2 dt``; nothing is added
    at the end. With ``reward="expected"`` the Brownian part of the gain is integrated out: same expectation, less
    variance. The same seed gives the same fills for both. Undiscounted, they add up to the criterion.

    ## Starting State
    Step 0, `maker_initial_inventory`. The mid is counted from its start and the cash from the start's wealth.

    ## Episode End
    `terminated` after `num_steps` steps; never `truncated`.

    ## Arguments
    The same for both roles and the solver.

    [parameters]
    - `info` (None): "full" adds the gain, its Brownian part `price_gain`, the integral of squared inventory and the
      depths to `info`, which always has cash, mid, inventory and the fills of the last step.

    The defaults are the paper's table, with orders of 10 assets. `mmgym/MeanFieldMakerFastSignals-v0` has signals ten
    times faster (signal_rate 15), `mmgym/MeanFieldMakerCoupled-v0` an impact of 0.02 and a crowd that starts with 80
    assets and the signal 2, `mmgym/MeanFieldMakerStrongImpact-v0` the same at 0.05.

    ## Version History
    - v0: first version.

    ## References
    - Baldacci, B., Bergault, P. & Possamaï, D. A mean-field game of market-making against strategic traders.
    """

    vector_class = MeanFieldMakerVectorEnv
