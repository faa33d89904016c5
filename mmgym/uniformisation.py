"""Uniformisation: ``exp(h K) = sum_j Poisson(j; c h) (1 + K / c)^j``, how many terms it takes and their weights."""

import math

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL

__all__ = ["fill_poisson_weights", "num_terms", "poisson_weights"]

MAX_TERMS = 200_000


@njit(**KERNEL)
def num_terms(norm):
    """Terms of ``exp(norm)``'s Taylor series until the rest is below 1e-17 of the sum.

    Raises
    ------
    ArithmeticError
        If they are more than ``MAX_TERMS``, or the norm is not a number: the sum would be cut off before its end.
    """
    log_term, terms = 0.0, 0
    if not norm < MAX_TERMS:
        raise ArithmeticError(
            "a decision step of these parameters cannot be computed exactly: its law takes a series of more than "
            "200,000 terms; raise num_steps, or lower the rates, risk_aversion or inventory_limit"
        )
    while terms < norm or log_term > norm - 41.0:
        terms += 1
        log_term += math.log(norm / terms) if norm > 0.0 else -50.0
    return terms + 1


@njit(**KERNEL)
def fill_poisson_weights(mean, weights):
    """Fill ``weights`` with ``exp(-mean) mean^j / j!`` for ``j = 0, 1, ..``, which must hold all but 1e-16 of the law.

    Large means from the largest weight on, then scaled to the sum 1: ``exp(-mean)`` is inexact beyond 708, 0 from 746.
    """
    if mean < 500.0:
        weights[0] = math.exp(-mean)
        for j in range(1, weights.shape[0]):
            weights[j] = weights[j - 1] * (mean / j)
        return
    top = min(int(mean), weights.shape[0] - 1)
    weights[top] = total = 1.0
    for j in range(top, 0, -1):
        weights[j - 1] = weights[j] * (j / mean)
        total += weights[j - 1]
    for j in range(top + 1, weights.shape[0]):
        weights[j] = weights[j - 1] * (mean / j)
        total += weights[j]
    for j in range(weights.shape[0]):
        weights[j] /= total


@njit(**KERNEL)
def poisson_weights(mean, terms):
    """``exp(-mean) mean^j / j!`` for ``j = 0 .. terms - 1``, which must hold all but 1e-16 of the law."""
    weights = np.empty(terms)
    fill_poisson_weights(mean, weights)
    return weights
