"""Numba kernel of the one-step law under stochastic volatility: a chain whose reward rate fades with time."""

import math

import numpy as np
from numba import njit

from mmgym.uniformisation import KERNEL, num_terms, poisson_weights

__all__ = ["backward_means"]


@njit(**KERNEL)
def _time_weights(rate, fade, step, terms):
    """``int_0^step exp(-fade s) Poisson(j; rate s) ds`` for ``j = 0 .. terms - 1``, from positive terms."""
    ends = math.exp(-fade * step) * poisson_weights(rate * step, terms + 1)
    weights = np.empty(terms)
    later = 0.0
    for j in range(terms, 0, -1):
        later = ((rate + fade) * later + ends[j]) / rate
        weights[j - 1] = later
    return weights


@njit(**KERNEL)
def backward_means(step, fade, lots, columns, excess, rates, gains, flow, fading, values, result):
    """Expectation of an additive functional over one step plus the rest of the episode.

    Parameters
    ----------
    step, fade : float
        Length of the step, and decay of the fading part of the flow (1 / time).
    lots, columns, excess : (M,)
        Index of the inventory, column of ``values``, and ``nu - theta`` at the start of the step.
    rates, gains : (M, 2)
        Intensities of bid and ask fills while active, and what a fill adds.
    flow, fading : (S,)
        What the functional gains per unit of time, and what it gains at ``nu - theta = 1``.
    values : (S, C)
        Expectation of the rest by inventory at the end of the step, given the variance at its start.
    result : (M,)
    """
    count = len(flow)
    law, new = np.empty(count), np.empty(count)
    for i in range(len(lots)):
        up, down = rates[i, 0], rates[i, 1]
        shift, column = up + down, columns[i]
        terms = num_terms(shift * step)
        at_end = poisson_weights(shift * step, terms)
        steady, fades = _time_weights(shift, 0.0, step, terms), _time_weights(shift, fade, step, terms)
        law[:] = 0.0
        law[lots[i]] = 1.0
        total = 0.0
        for j in range(terms):
            new[:] = 0.0
            for s in range(count):
                mass = law[s]
                if mass == 0.0:
                    continue
                reward = flow[s]
                if s < count - 1:
                    reward += up * gains[i, 0]
                    new[s + 1] += mass * up / shift
                else:
                    new[s] += mass * up / shift
                if s > 0:
                    reward += down * gains[i, 1]
                    new[s - 1] += mass * down / shift
                else:
                    new[s] += mass * down / shift
                total += mass * (at_end[j] * values[s, column] + steady[j] * reward + fades[j] * excess[i] * fading[s])
            law, new = new, law
        result[i] = total
