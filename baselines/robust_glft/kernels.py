"""Numba kernels of the robust GLFT market's frozen step."""

import numpy as np
from numba import njit

from mmgym.compiling import KERNEL
from mmgym.models.robust_glft_game import step_slopes


@njit(**KERNEL)
def backward_slopes(step, size, states, controls, assets, flow, values, result):
    """One-step values of the maker and their derivatives in all controls: (M, 8) of states (M,) and controls (M, 7).

    The other parameters are those of `mmgym.models.robust_glft_game.step_slopes`.
    """
    blocks = np.empty((2, 6, len(values)))
    for i in range(len(states)):
        step_slopes(step, size, states[i], controls[i, :2], controls[i, 2:], assets, flow, values, blocks, result[i])
