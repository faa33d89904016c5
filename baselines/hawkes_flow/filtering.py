"""A policy that remembers, for the Hawkes flow market with hidden intensities and decisions at events.

A decision that comes early tells of an order. If it filled a quote, its side is known; if not, the sides are weighed by
the intensities and by how likely their orders are to pass the quotes. Each side's intensity jumps by its share of
``excitation`` and decays in between. That is the intensity's expectation given the orders as long as all sides are
known, and close to it otherwise: the intensities' own uncertainty is not carried along.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import mmgym.models.hawkes_flow as model
from mmgym.baselines.hawkes_flow.solver import DepthFunction
from mmgym.baselines.policy import RememberingPolicy
from mmgym.models.hawkes_flow import Params

Array = NDArray[Any]

__all__ = ["FilteredPolicy"]

ROUNDING = 2.0**-22  # of the time left, in units of the horizon, as a difference of two observations


class _Memory(NamedTuple):
    rates: Array  # (..., 2): buy, sell
    time_left: Array
    inventory: Array
    depths: Array  # (..., 2): bid, ask


class FilteredPolicy(RememberingPolicy):
    """Depths for the intensities that the orders so far make likely.

    Parameters
    ----------
    params : Params
        With ``decision="event"``.
    depths : callable
        ``(time_left, inventory, buy_rate, sell_rate) -> (..., 2)`` depths [bid, ask], EUR / MWh.

    Raises
    ------
    ValueError
        If decisions are taken by the clock: orders between two of them are not observed.
    """

    def __init__(self, params: Params, depths: DepthFunction) -> None:
        if params.decision != "event":
            raise ValueError("decision = 'clock' is not allowed: orders are only observed with 'event'")
        self.params, self._depths = params, depths

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Array, Any]:
        """Action of one observation, or actions of a batch, and what is remembered."""
        p, (left, inventory, *_) = self.params, model.locate(self.params, observation)
        rates = np.broadcast_to([p.initial_rate_buy, p.initial_rate_sell], (*left.shape, 2))
        if state is not None:
            begun = left > state.time_left
            if episode_start is not None:
                begun = begun | np.reshape(episode_start, left.shape).astype(np.bool_)
            rates = np.where(begun[..., None], rates, self._updated(state, left, inventory))
        actions = model.from_quotes(p, self._depths(left, inventory, rates[..., 0], rates[..., 1]))
        return actions, _Memory(rates, left, inventory, model.to_quotes(p, actions))

    def _updated(self, last: _Memory, left: Array, inventory: Array) -> Array:
        p = self.params
        elapsed, moved = np.maximum(last.time_left - left, 0.0), inventory - last.inventory
        base = np.array([p.base_rate_buy, p.base_rate_sell])
        decays = np.array([p.decay_buy, p.decay_sell])
        rates = base + (last.rates - base) * np.exp(-decays * elapsed[..., None])
        longest = np.minimum(p.step_length, last.time_left)
        ordered = (moved != 0) | (elapsed < longest - ROUNDING * p.horizon)
        is_open = np.stack([last.inventory > -p.inventory_limit, last.inventory < p.inventory_limit], axis=-1)
        kappa = np.array([p.fill_decay_buy, p.fill_decay_sell])
        passed = 1.0 - is_open * np.exp(-kappa * (last.depths[..., ::-1] - p.half_spread))  # buys meet the ask
        likely = rates * np.maximum(passed, 1e-12)
        share = np.where(moved[..., None] == 0, likely / likely.sum(axis=-1, keepdims=True), moved[..., None] * [-1, 1])
        return np.asarray(rates + ordered[..., None] * np.clip(share, 0.0, 1.0) * [p.excitation_buy, p.excitation_sell])
