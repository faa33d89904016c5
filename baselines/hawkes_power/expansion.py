r"""What policies near a policy of the power market gain, or far from it, where decisions are at events.

Offsets ``d`` that are frozen until the next event earn ``W_k exp(-kappa d) (d + c_k)`` a side, with the probability
``W_k`` that the next event is an order of that side and the policy's own mean edge ``c_k`` then. Edges come from a
value function (`mmgym.baselines.hawkes_power.values`) that is fitted to the policy itself: no optimum is needed, and it
is not exact. It is sought in a smaller space than that of the baseline, and as if offsets followed the state between
events too: at the defaults, values of trained networks are 0.6 % too low. States in which the policy has to decide are
simulated; no reward is sampled.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import mmgym.models.hawkes_power as model
from mmgym.baselines.hawkes_flow.reach import require_no_atom
from mmgym.baselines.hawkes_power.basis import fitted_space
from mmgym.baselines.hawkes_power.bounds import expected_events
from mmgym.baselines.hawkes_power.values import ValueFunction, march, slice_borders
from mmgym.baselines.policy import Policy
from mmgym.envs.hawkes_power import HawkesPowerVectorEnv
from mmgym.models.hawkes_power import BUY, LAST, SELL, Params

Array = NDArray[Any]

__all__ = ["PowerExpansions", "PowerGains"]

WEIGHT, PER_PATH = 2.0, 1  # of the space
GROWTH, LARGEST_SLICE = 0.1, 1.0  # of the slices of the time left
NODES = 5  # of the time until the next event
EPISODES, DECISIONS = 100, 200_000  # whose decisions are the cells: so many episodes, or decisions if those are fewer


class PowerGains(NamedTuple):
    """The sum of ``chances exp(-kappa d) (d + edges)`` over sides and cells: see `mmgym.baselines.expansion.Gains`."""

    params: Params
    value: float  # the fitted one
    observations: Array  # (B, D)
    chances: Array  # (B, 2) of an order that bid and ask can reach, per episode
    edges: Array  # (B, 2), EUR / MWh

    def slopes(self, cells: Array, actions: Array) -> Array:
        """Derivatives of the gain in the actions (M, 2) of some of the cells (M,)."""
        decays = np.array([self.params.fill_decay_sell, self.params.fill_decay_buy])
        scaled = decays * model.to_quotes(self.params, actions)
        slopes: Array = np.exp(-scaled) * (1.0 - scaled - decays * self.edges[cells])
        return self.params.offset_reach * self.chances[cells] * slopes


class PowerExpansions:
    """What policies with decisions at events gain: `mmgym.baselines.expansion.Expansions`.

    Parameters
    ----------
    params : Params

    Raises
    ------
    TypeError
        If decisions are rarer: the book then moves while quotes are frozen; or with ``observe="tape"``: the policy then
        is no function of the state; or with a `reach_atom`: values jump where a quote meets the best.
    """

    def __init__(self, params: Params) -> None:
        if params.decision != "event" or params.observe == "tape":
            raise TypeError("derivatives in this market need decision = 'event', and observe = 'state' or 'fills'")
        require_no_atom(params)
        self.params = params
        self._space = fitted_space(params, WEIGHT, PER_PATH)
        self._borders = slice_borders(params, GROWTH, LARGEST_SLICE)
        expected = params.num_steps + float(expected_events(params).sum())
        self.episodes = int(np.clip(DECISIONS / expected, 2, EPISODES))
        self.observations, _ = self._visited(lambda seen: np.zeros((len(seen), 2), dtype=np.float32), 0)

    def _visited(self, act: Any, seed: int) -> tuple[Array, tuple[Array, ...]]:
        """Observations (B, D) at the decisions of some episodes; time left, inventory, spread (B,), rates (B, 6)."""
        envs = HawkesPowerVectorEnv(self.episodes, info="full", **self.params.arguments())
        observations, info = envs.reset(seed=seed)
        running, seen, states = np.ones(self.episodes, dtype=np.bool_), [], []
        while running.any():
            rates = np.stack([info[f"{name}_rate"] for name in model.PROCESSES], axis=-1)
            state = (info["time_left"], info["inventory"], info["spread"], rates)
            seen.append(observations[running])
            states.append([column[running] for column in state])
            observations, _, ended, _, info = envs.step(act(observations))
            running &= ~ended
        return np.concatenate(seen), tuple(np.concatenate(column) for column in zip(*states, strict=True))

    def _actions(self, policy: Policy, observations: Array) -> Array:
        """What a policy plays, in float64 (B, 2)."""
        return np.asarray(policy.predict(observations, deterministic=True)[0], dtype=np.float64)

    def fitted(self, policy: Policy) -> ValueFunction:
        """The value function of a policy of the observation."""
        p, space = self.params, self._space
        lots = np.arange(-p.inventory_limit, p.inventory_limit + 1)

        def offsets(time_left: float) -> Array:
            state = time_left, lots, space.spreads[:, None], space.rates[:, None]
            observations = model.observe(p, *state)
            shape = len(space.spreads), len(lots), observations.shape[-1]
            flat = np.broadcast_to(observations, shape).reshape(-1, shape[-1])
            quotes = model.to_quotes(p, self._actions(policy, flat)).reshape(*shape[:2], 2)
            return np.ascontiguousarray(np.moveaxis(quotes, -1, 0))

        return march(p, space, offsets=offsets, borders=self._borders)

    def value(self, policy: Policy) -> float:
        """The fitted value at the start."""
        return self.fitted(policy).initial(self.params)

    def orders(self, function: ValueFunction, states: tuple[Array, ...]) -> tuple[Array, Array]:
        """Chances (B, 2) that an order which bid or ask can reach ends the step, and mean edges (B, 2), EUR / MWh."""
        p, (left, lots, spread, rates) = self.params, states
        lengths = np.where(left <= p.step_length * LAST, left, p.step_length)
        points, weights = np.polynomial.legendre.leggauss(NODES)
        base, excess = p.total_base_rate, rates - p.base_rates
        sides = np.array([SELL, BUY])
        is_open = np.stack([lots < p.inventory_limit, lots > -p.inventory_limit], axis=-1)
        chances, edges = np.zeros((2, len(left), 2))
        for point, weight in zip(0.5 + 0.5 * points, 0.5 * weights, strict=True):  # evenly over the clock of base rates
            share = -np.expm1(-base * lengths)
            wait = -np.log1p(-point * share) / base
            faded = np.exp(-p.decays * wait[:, None])
            bursts = (excess * (1.0 - faded) / p.decays).sum(axis=1)
            now = p.base_rates + excess * faded
            chance = (weight * share / base * np.exp(-bursts))[:, None] * now[:, sides] * is_open
            chances += chance
            edges += chance * function.at(p, left - wait, lots, spread, now)[:, :2]
        return chances, edges / np.where(chances > 0.0, chances, 1.0)

    def around(self, policy: Policy, random: np.random.Generator) -> PowerGains:
        """What all offsets gain at the decisions of a policy of the observation, which it follows afterwards."""
        p, function = self.params, self.fitted(policy)
        seed = int(random.integers(2**63))
        observations, states = self._visited(lambda seen: policy.predict(seen, deterministic=True)[0], seed)
        chances, edges = self.orders(function, states)
        return PowerGains(p, function.initial(p), observations, chances / self.episodes, edges)
