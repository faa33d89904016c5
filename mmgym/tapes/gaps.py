"""Gaps of a record: pauses that are so long beside all others that nothing was recorded in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmgym.tapes.findings import Finding

FEWEST_PAUSES = 100  # before a gap can be told
GAP_RATIO = 8.0  # of the shortest gap to the longest other pause
GAP_SHARE = 0.002  # of the whole time: less does no harm


def find_gaps(pauses: ArrayLike) -> NDArray[np.intp]:
    """The pauses that are gaps in the record, if any.

    Parameters
    ----------
    pauses : array_like, shape (n,)
        Times between neighbouring events, positive.

    Returns
    -------
    array of int
        Places of the few (one in a hundred at most, or three) that are all `GAP_RATIO` times as long as any other
        pause, or longer. Under exponential tails, clusters or not, that does not happen.
    """
    pauses = np.asarray(pauses, dtype=float)
    if pauses.size < FEWEST_PAUSES:
        return np.empty(0, dtype=np.intp)
    most = max(3, pauses.size // 100)
    order = np.argpartition(-pauses, most)[: most + 1]
    order = order[np.argsort(-pauses[order], kind="stable")]
    longest = pauses[order]
    breaks = np.flatnonzero(longest[:-1] >= GAP_RATIO * longest[1:])
    if not breaks.size:
        return np.empty(0, dtype=np.intp)
    gaps = order[: breaks[-1] + 1]
    return np.sort(gaps) if pauses[gaps].sum() >= GAP_SHARE * pauses.sum() else np.empty(0, dtype=np.intp)


def gap_finding(starts: ArrayLike, lengths: ArrayLike, observed: float, unit: str, what: str = "events") -> Finding:
    """The finding of gaps.

    Parameters
    ----------
    starts, lengths : array_like, shape (n,)
        When the gaps begin, and their lengths.
    observed : float
        Time that is left.
    unit : str
        Of time.
    what : str
        What is missing in them.
    """
    starts, lengths = np.atleast_1d(starts), np.atleast_1d(lengths)
    first = zip(starts[:5], lengths[:5], strict=True)
    shown = ", ".join(f"{length:.6g} {unit} from {start:.6g}" for start, length in first)
    more = f" and {starts.size - 5} more" if starts.size > 5 else ""
    return Finding(
        "gaps",
        f"{starts.size} gap{'s' * (starts.size > 1)} without {what} ({shown}{more}): the record is split there, rates "
        f"are over the {observed:.6g} {unit} that are observed, and nothing is taken across.",
    )
