"""The classical Runge-Kutta step of order 4."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["runge_kutta_step"]

Array = NDArray[Any]


def runge_kutta_step(slope: Callable[[Array, int], Array], values: Array, width: float) -> Array:
    """Values after a step of this width.

    Parameters
    ----------
    slope : callable
        ``(values, half_steps) -> derivative`` at the start of the step (``half_steps`` 0), its middle (1) and its end.
    values : array
    width : float
    """
    first = slope(values, 0)
    second = slope(values + 0.5 * width * first, 1)
    third = slope(values + 0.5 * width * second, 1)
    last = slope(values + width * third, 2)
    return np.asarray(values + width / 6.0 * (first + 2.0 * second + 2.0 * third + last))
