"""Uniformisation: ``exp(h K) = sum_j Poisson(j; c h) (1 + K / c)^j``, how many terms it takes and their weights."""

import math
from typing import Any

import numpy as np
from numba import njit

__all__ = ["KERNEL", "num_terms", "poisson_weights"]

KERNEL: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
MAX_TERMS = 200_000


@njit(**KERNEL)
def num_terms(norm):
    """Terms of ``exp(norm)``'s Taylor series until the rest is below 1e-17 of the sum."""
    log_term, terms = 0.0, 0
    while terms < norm or log_term > norm - 41.0:
        terms += 1
        log_term += math.log(norm / terms) if norm > 0.0 else -50.0
        if terms >= MAX_TERMS:
            break
    return terms + 1


@njit(**KERNEL)
def poisson_weights(mean, terms):
    """``exp(-mean) mean^j / j!`` for ``j = 0 .. terms - 1``."""
    weights = np.empty(terms)
    log_weight = -mean
    for j in range(terms):
        if j > 0:
            log_weight += math.log(mean / j) if mean > 0.0 else -np.inf
        weights[j] = math.exp(log_weight)
    return weights
