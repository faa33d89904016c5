"""How kernels are compiled: numba's options, in one place.

Compiled kernels are kept on disk where numba finds a folder that it can write: `NUMBA_CACHE_DIR`, the package's own
folders, or the user's cache. Where there is none, every process compiles what it needs, and one warning says so.
"""

import warnings
from typing import Any

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

__all__ = ["COMPILED", "KERNEL", "SCALAR", "kernel_rows"]

COMPILED: bool = not vars(config)["DISABLE_JIT"]  # False with NUMBA_DISABLE_JIT=1: kernels are then plain Python


def _is_kept_on_disk() -> bool:
    try:
        njit(cache=True)(_is_kept_on_disk)  # compiles nothing: numba looks for the folder when it decorates
    except RuntimeError:
        warnings.warn(
            "kernels are compiled again in every process, which takes seconds to minutes: there is no folder to keep "
            "them in; set NUMBA_CACHE_DIR to one that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


KERNEL: dict[str, Any] = {"cache": _is_kept_on_disk(), "error_model": "numpy", "nogil": True}
SCALAR: dict[str, Any] = {
    "cache": KERNEL["cache"],
    "error_model": "numpy",
    "forceinline": True,
}  # a scalar function of the hot path


def kernel_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """A structured array as loops take it: without a compiler, one whose rows have their columns as attributes."""
    return rows if COMPILED else rows.view(np.recarray)
