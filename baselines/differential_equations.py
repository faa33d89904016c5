"""Ordinary differential equations: the classical Runge-Kutta step, and solutions at given times."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ["runge_kutta_step", "solution_at"]

Array = NDArray[Any]


def runge_kutta_step(slope: Callable[[Array, int], Array], values: Array, width: float) -> Array:
    """Values after a step: ``slope(values, half_steps)`` is their derivative at its start (0), middle (1) and end."""
    first = slope(values, 0)
    second = slope(values + 0.5 * width * first, 1)
    third = slope(values + 0.5 * width * second, 1)
    last = slope(values + width * third, 2)
    return np.asarray(values + width / 6.0 * (first + 2.0 * second + 2.0 * third + last))


def solution_at(
    slope: Callable[[float, Array], Any], start: Array, times: Array, what: str, tolerance: float, **options: Any
) -> Array:
    """Solution (T, *start.shape) of ``y' = slope(time left, y)`` at rising times left (T,), latest first.

    ``tolerance`` is the relative and the absolute one, and ``options`` those of `scipy.integrate.solve_ivp`, whose
    method is ``DOP853`` here.

    Raises
    ------
    RuntimeError
        If ``what`` could not be integrated.
    """

    def flat_slope(left: float, y: Array) -> Array:
        return np.asarray(slope(left, y.reshape(start.shape))).ravel()

    options = {"method": "DOP853", "rtol": tolerance, "atol": tolerance, **options}
    path = scipy.integrate.solve_ivp(flat_slope, (0.0, float(times[-1])), start.ravel(), t_eval=times, **options)
    if not path.success:
        raise RuntimeError(f"{what} could not be integrated: {path.message}")
    return np.asarray(path.y.T.reshape(len(times), *start.shape)[::-1])
