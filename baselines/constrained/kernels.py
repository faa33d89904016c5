"""Choices of one step, one for each decision, whose bound is not below a threshold: depth first, resumable."""

from numba import njit

from mmgym.compiling import KERNEL

__all__ = ["next_choices"]


@njit(**KERNEL)
def next_choices(gains, starts, most, threshold, sums, place, level, found):
    """Fill ``found`` (M, C) with the next choices in lexicographic order; how many, and the level to go on from.

    Row ``r`` of ``gains`` (R, L) is what a choice adds to each of ``L`` upper bounds; decision ``c`` has the rows from
    ``starts[c]`` to ``starts[c + 1]``, and ``most`` (C + 1, L) is what the decisions from ``c`` on add at most.
    ``sums`` (C + 1, L), ``place`` (C,) and ``level`` are where the last call stopped: at first ``sums[0]`` has the
    bounds without the step, ``place[0]`` is 0 and ``level`` too. Level -1: there are no more.
    """
    decisions, bounds, count = starts.shape[0] - 1, gains.shape[1], 0
    while level >= 0 and count < found.shape[0]:
        row = place[level]
        if row == starts[level + 1]:
            level -= 1
            if level >= 0:
                place[level] += 1
            continue
        keeps = True
        for i in range(bounds):
            sums[level + 1, i] = sums[level, i] + gains[row, i]
            if sums[level + 1, i] + most[level + 1, i] < threshold:
                keeps = False
                break
        if keeps and level < decisions - 1:
            level += 1
            place[level] = starts[level]
            continue
        if keeps:
            found[count] = place
            count += 1
        place[level] += 1
    return count, level
