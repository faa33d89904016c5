"""Laws of the book's moves given the spread: tables that the value functions and the closed forms are built on."""

import functools

import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.models.hawkes_power import BUY, MID_SIGN, PROCESSES, SPREAD_SIGN, Params

Array = NDArray[np.float64]

__all__ = ["effective_impacts", "mean_rates", "move_law", "spread_law", "spread_transitions"]


def move_law(params: Params, process: int) -> Array:
    """Law of the ticks by which an event moves its side of the book.

    Returns
    -------
    array (L, L)
        Entry ``[j - 1, g]`` is the probability of ``g`` ticks where the spread is ``j`` ticks, ``L`` the largest.
    """
    p, largest = params, params.largest_spread
    law = np.zeros((largest, largest))
    spread, ticks = np.arange(1, largest + 1)[:, None], np.arange(largest)[None, :]
    narrows = SPREAD_SIGN[process] < 0
    if narrows and p.placement == "binomial":
        share = p.improvement_bid if MID_SIGN[process] > 0 else p.improvement_ask
        return np.asarray(scipy.stats.binom.pmf(ticks, spread - 1, share), dtype=np.float64)
    room = spread - 1 if narrows else largest - spread
    survive = 1.0 - 1.0 / p.mean_move[process]  # P(G > g) = survive^g
    beyond = np.power(survive, np.maximum(ticks - 1, 0))
    law = np.where((ticks >= 1) & (ticks < room), beyond * (1.0 - survive), 0.0)
    law = np.where((ticks == room) & (room > 0), beyond, law)
    law[(room == 0)[:, 0], 0] = 1.0
    if process >= BUY:
        share = p.first_level_share_buy if process == BUY else p.first_level_share_sell
        law *= 1.0 - share
        law[:, 0] += share
    return np.asarray(law, dtype=np.float64)


def spread_transitions(params: Params) -> Array:
    """Transition matrices of the spread at the events of each process, (6, L, L): row ``j - 1`` from ``j`` ticks."""
    largest = params.largest_spread
    laws = np.zeros((len(PROCESSES), largest, largest))
    rows = np.arange(largest)
    for process in range(len(PROCESSES)):
        law = move_law(params, process)
        for ticks in range(largest):
            to = rows + SPREAD_SIGN[process] * ticks
            inside = (to >= 0) & (to < largest)
            laws[process, rows[inside], to[inside]] += law[inside, ticks]
    return laws


def mean_impacts(params: Params) -> Array:
    """``E[xi_k | spread]`` (EUR / MWh), shape (6, L)."""
    ticks = np.arange(params.largest_spread)
    return np.stack([params.half_tick * move_law(params, process) @ ticks for process in range(len(PROCESSES))])


def mean_rates(params: Params) -> Array:
    """Long-run mean intensities (1 / minute), shape (6,); for explosive processes the initial ones."""
    stable = params.excitations < params.decays
    return np.where(stable, params.rate_scales, np.array(params.initial_rates))


def spread_law(params: Params) -> Array:
    """Stationary law of the spread at the mean intensities, shape (L,)."""
    return _spread_law(params._replace(running_penalty=0.0, terminal_penalty=0.0))  # penalties do not move the book


@functools.lru_cache(maxsize=8)
def _spread_law(params: Params) -> Array:
    rates = mean_rates(params)
    generator = np.einsum("k,kij->ij", rates, spread_transitions(params)) - rates.sum() * np.eye(params.largest_spread)
    system = np.vstack([generator.T, np.ones(params.largest_spread)])
    target = np.append(np.zeros(params.largest_spread), 1.0)
    law = np.linalg.lstsq(system, target, rcond=None)[0]
    law = np.maximum(law, 0.0)
    return np.asarray(law / law.sum(), dtype=np.float64)


@functools.lru_cache(maxsize=8)
def effective_impacts(params: Params) -> Array:
    """``eff_k``: mean half-moves over the stationary law of the spread (EUR / MWh), shape (6,)."""
    return mean_impacts(params) @ spread_law(params)
