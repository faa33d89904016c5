r"""Policies near a policy where decisions are at events, to second order (`mmgym.baselines.expansion`).

Depths that are frozen until the next order earn ``W_k exp(-kappa (d - h)) (d + c_k)`` a side, with the probability
``W_k`` of an order and the policy's own mean continuation gain ``c_k`` (`mmgym.baselines.hawkes_flow.solver`): slopes
and curvatures are closed forms of the tables of its values. The states in which the policy has to decide are simulated:
they are only where a fit is wanted, and no reward is sampled.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmgym.models.hawkes_flow as model
from mmgym.baselines.drawn_cells import sampled
from mmgym.baselines.expansion import CELLS, Expansion
from mmgym.baselines.hawkes_flow import kernels, solver
from mmgym.baselines.hawkes_flow.rates import rate_grids, states_of
from mmgym.baselines.hawkes_flow.reach import require_no_atom
from mmgym.baselines.hawkes_flow.solver import Resolution, Tables, march
from mmgym.baselines.policy import Policy
from mmgym.envs.hawkes_flow import HawkesFlowVectorEnv
from mmgym.models.hawkes_flow import Params

Array = NDArray[Any]

__all__ = ["FlowExpansions", "grid_actions"]

ROUGH = Resolution(10, 0.5, 1e-3)  # an error of about 1e-5 of the optimum, in a fifth of the time of a score
EPISODES = 50  # whose decisions are expanded around


def grid_actions(
    params: Params, policy: Policy, time_left: float, inventory: Array, buy_rate: Array, sell_rate: Array
) -> Array:
    """What a policy plays at a time left, float32 of the broadcast shape with two columns.

    Where they are not observed it plays the same at all intensities: the shape is that of ``inventory`` then.
    """
    if params.observe == "state":
        inventory, buy_rate, sell_rate = np.broadcast_arrays(inventory, buy_rate, sell_rate)
    else:
        buy_rate = sell_rate = np.ones(())
    observations = model.observe(params, time_left, inventory, buy_rate, sell_rate)
    actions = policy.predict(observations.reshape(-1, observations.shape[-1]), deterministic=True)[0]
    return np.asarray(actions).astype(np.float32).reshape(*inventory.shape, 2)


class FlowExpansions:
    """Expansions around policies with decisions at events.

    Parameters
    ----------
    params : Params

    Raises
    ------
    TypeError
        If decisions are taken by the clock, where orders change the state while depths are frozen; if the tape is
        observed: the last order is not on the grid; or with a `reach_atom`: values jump where a depth meets the best.
    """

    def __init__(self, params: Params) -> None:
        if params.decision != "event" or params.observe == "tape":
            raise TypeError("exact derivatives in this market need decision = 'event' and observe = 'state' or 'fills'")
        require_no_atom(params)
        self.params = params
        ends = model.to_quotes(params, np.array([[-1.0, -1.0], [1.0, 1.0]], dtype=np.float32))
        self._reach = 0.5 * (ends[1] - ends[0])
        half = (params.half_spread + self._reach, params.half_spread + self._reach)
        self.observations, _ = self._visited(lambda seen: model.from_quotes(params, np.stack(half[:1] * len(seen))), 0)

    def _visited(self, act: Any, seed: int) -> tuple[Array, Array]:
        """Observations (B, D) at the decisions of some episodes, and their states as kernels take them."""
        p = self.params
        envs = HawkesFlowVectorEnv(EPISODES, info="full", **p.arguments())
        observations, info = envs.reset(seed=seed)
        running, seen, states = np.ones(EPISODES, dtype=np.bool_), [], []
        while running.any():
            left, inventory, buy, sell = (info[name] for name in ("time_left", "inventory", "buy_rate", "sell_rate"))
            seen.append(observations[running])
            states.append(states_of(p, left, inventory, buy, sell)[running])
            observations, _, ended, _, info = envs.step(act(observations))
            running &= ~ended
        return np.concatenate(seen), np.concatenate(states)

    def _solve(self, policy: Policy) -> Tables:
        p = self.params

        def depths(time_left: float, inventory: Array, buy_rate: Array, sell_rate: Array) -> Array:
            return model.to_quotes(p, grid_actions(p, policy, time_left, inventory, buy_rate, sell_rate))

        return march(p, ROUGH, held=True, depths=depths, functional=solver.CRITERION)

    def _look_up(self, tables: Tables, states: Array) -> Array:
        """Gains of bid and ask, and values (B, 3)."""
        p = self.params
        shape = tables.values.shape[2:]
        buy, sell = rate_grids(p, tables.largest, shape[0], shape[1])
        table = np.stack([tables.gains[0], tables.gains[1], tables.values], axis=-1).astype(np.float32)
        rows = np.empty((len(states), 3))
        kernels.look_up_rows(
            table, tables.times, tables.segments, states, buy.excess, buy.weights, sell.excess, sell.weights, rows
        )
        return rows

    def _start(self) -> Array:
        p = self.params
        return states_of(p, p.horizon, p.initial_inventory, p.initial_rate_buy, p.initial_rate_sell)

    def value(self, policy: Policy) -> float:
        return float(self._look_up(self._solve(policy), self._start())[0, 2])

    def around(self, policy: Policy, random: np.random.Generator) -> Expansion:
        p, tables = self.params, self._solve(policy)
        seed = int(random.integers(2**63))
        observations, states = self._visited(lambda seen: policy.predict(seen, deterministic=True)[0], seed)
        chances = np.empty((len(states), 2))
        kernels.open_sides(model.MARKET.record(p), states, chances)
        actions = np.asarray(policy.predict(observations, deterministic=True)[0], dtype=np.float64)
        depths, gains = model.to_quotes(p, actions.astype(np.float32)), self._look_up(tables, states)[:, :2]
        decays = np.array([p.fill_decay_sell, p.fill_decay_buy])
        filled = chances * np.exp(-decays * (depths - p.half_spread)) / EPISODES
        slopes = self._reach * filled * (1.0 - decays * (depths + gains))
        curvatures = self._reach**2 * filled * decays * (decays * (depths + gains) - 2.0)
        drawn, inverse = sampled(np.sqrt(np.abs(curvatures).max(axis=1)), CELLS, random)
        matrices = curvatures[drawn, :, None] * np.eye(2)
        return Expansion(
            float(self._look_up(tables, self._start())[0, 2]),
            observations[drawn],
            actions[drawn],
            inverse[:, None] * slopes[drawn],
            inverse[:, None, None] * matrices,
        )
