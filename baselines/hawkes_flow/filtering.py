"""Policies that remember, for the Hawkes flow market with decisions at events and intensities that are not observed.

On the tape every order is seen, with its side and its time. Between orders intensities decay, and each order lifts its
own side's by ``excitation``: from the initial ones, which are parameters, a policy knows them to float32 rounding, and
the best depths of who sees them are its optimum. (Where parameters are drawn at every reset it starts from wrong ones;
of wrong initial intensities it forgets the error at the rate ``decay``.)

Of fills alone a decision that comes early tells of an order. If it filled a quote, its side is known; if not, the sides
are weighed by the intensities and by how likely their orders are to pass the quotes. `FilteredPolicy` lifts each
intensity by its share of ``excitation``: its expectation given the orders as long as all sides are known, and close to
it otherwise, since the intensities' own uncertainty is not carried along. `ParticlePolicy` carries it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import mmgym.models.hawkes_flow as model
from mmgym.baselines.hawkes_flow import kernels
from mmgym.baselines.hawkes_flow.reach import fill_probability, reach_laws
from mmgym.baselines.hawkes_flow.solver import DepthFunction
from mmgym.baselines.policy import RememberingPolicy
from mmgym.models.hawkes_flow import Params
from mmgym.random_streams import start_stream

Array = NDArray[Any]

__all__ = ["FilteredPolicy", "ParticlePolicy"]

ROUNDING = 2.0**-22  # of the time left, in units of the horizon, as a difference of two observations
PARTICLES = 100
LEAST = 1e-12  # chance that an order passes quotes which it always fills


class _Memory(NamedTuple):
    rates: Array  # (..., 2): what is expected of buy and sell intensity, 1 / minute
    belief: tuple[Array, ...]  # (..., *): what they may be
    time_left: Array
    inventory: Array
    depths: Array  # (..., 2): bid, ask


class _Seen(NamedTuple):
    """What a decision tells of the step before it."""

    elapsed: Array  # (...), minutes
    ordered: Array  # (...) bool: whether it ended with an order
    side: Array  # (...): 1 for a buy, -1 for a sell, 0 where it is not known
    passed: Array  # (..., 2): chances that a buy and that a sell fill no quote


class FilteredPolicy(RememberingPolicy):
    """Depths for the intensities that the orders so far tell, or make likely.

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
        self._decays = np.array([params.decay_buy, params.decay_sell])
        self._jumps = np.array([params.excitation_buy, params.excitation_sell])

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Array, Any]:
        """Action of one observation, or actions of a batch, and what is remembered."""
        p, (left, inventory, *_) = self.params, model.locate(self.params, observation)
        belief = self._at_start(left.shape)
        if state is not None:
            begun = left > state.time_left
            if episode_start is not None:
                begun = begun | np.reshape(episode_start, left.shape).astype(np.bool_)
            updated = self._updated(state, self._seen(state, observation, left, inventory), left)
            belief = tuple(
                np.where(begun.reshape(begun.shape + (1,) * (first.ndim - begun.ndim)), first, then)
                for first, then in zip(belief, updated, strict=True)
            )
        rates = self._expected(belief, left)
        actions = model.from_quotes(p, self._depths(left, inventory, rates[..., 0], rates[..., 1]))
        return actions, _Memory(rates, belief, left, inventory, model.to_quotes(p, actions))

    def _at_start(self, shape: tuple[int, ...]) -> tuple[Array, ...]:
        """The belief of a first decision."""
        start = [self.params.initial_rate_buy, self.params.initial_rate_sell]
        return (np.broadcast_to(start, (*shape, 2)),)

    def _expected(self, belief: tuple[Array, ...], left: Array) -> Array:
        """Expected rates (..., 2)."""
        return belief[0]

    def _updated(self, last: _Memory, seen: _Seen, left: Array) -> tuple[Array, ...]:
        """The belief after a step, with so much time left."""
        base = model.base_rates_at(self.params, last.time_left)
        rates = base + (last.rates - base) * np.exp(-self._decays * seen.elapsed[..., None])
        likely = rates * seen.passed
        known = seen.side[..., None] * [1, -1] > 0
        share = np.where(seen.side[..., None] == 0, likely / likely.sum(axis=-1, keepdims=True), known)
        jumps = seen.ordered[..., None] * share * self._jumps
        return (rates + jumps + (model.base_rates_at(self.params, left) - base),)

    def _seen(self, last: _Memory, observation: Any, left: Array, inventory: Array) -> _Seen:
        p, filled = self.params, inventory - last.inventory
        is_open = np.stack([last.inventory > -p.inventory_limit, last.inventory < p.inventory_limit], axis=-1)
        filled_by = fill_probability(last.depths - p.half_spread, *reach_laws(p))
        passed = 1.0 - is_open * filled_by[..., ::-1]  # buys meet the ask
        passed = np.maximum(passed, LEAST)
        if p.observe == "tape":
            side, elapsed = model.last_order(p, observation)
            return _Seen(elapsed, side != 0, side, passed)
        elapsed = np.maximum(last.time_left - left, 0.0)
        longest = np.minimum(p.step_length, last.time_left - model.piece_end(p, last.time_left))
        ordered = (filled != 0) | (elapsed < longest - ROUNDING * p.horizon)
        return _Seen(elapsed, ordered, -filled, passed)


class ParticlePolicy(FilteredPolicy):
    """Depths for the expected intensities under a particle filter of the sides that are not seen.

    Each particle is a pair of intensities with a weight: the likelihood of the waiting times and fills so far. At an
    order of unknown side both sides of all particles are weighed, and as many as before are drawn systematically. What
    is drawn depends on an episode's own history alone, not on the batch: the policy is a fixed function of the history.

    Parameters
    ----------
    params, depths
        As in `FilteredPolicy`.
    particles : int
    """

    def __init__(self, params: Params, depths: DepthFunction, particles: int = PARTICLES) -> None:
        super().__init__(params, depths)
        self.particles = particles

    def _at_start(self, shape: tuple[int, ...]) -> tuple[Array, ...]:
        p = self.params
        excess = [p.initial_excess_buy, p.initial_excess_sell]
        stream = np.array(start_stream(np.uint64(0)), dtype=np.uint64)
        return (
            np.broadcast_to(excess, (*shape, self.particles, 2)),
            np.full((*shape, self.particles), 1.0 / self.particles),
            np.broadcast_to(stream, (*shape, 2)),
        )

    def _expected(self, belief: tuple[Array, ...], left: Array) -> Array:
        return np.asarray(model.base_rates_at(self.params, left) + np.einsum("...pk,...p->...k", *belief[:2]))

    def _updated(self, last: _Memory, seen: _Seen, left: Array) -> tuple[Array, ...]:
        base = np.broadcast_to(model.base_rates_at(self.params, last.time_left), (*np.shape(left), 2)).reshape(-1, 2)
        excess, weights, streams = (np.array(part, order="C") for part in last.belief)
        flat = excess.reshape(-1, self.particles, 2), weights.reshape(-1, self.particles), streams.reshape(-1, 2)
        told = (np.ravel(seen.elapsed), np.ravel(seen.ordered), np.ravel(seen.side), seen.passed.reshape(-1, 2))
        kernels.update_particles(base, self._jumps, self._decays, *told, *flat)
        return excess, weights, streams
