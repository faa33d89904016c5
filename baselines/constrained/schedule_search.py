"""Local search over schedules of quotes, for a good one where the best cannot be certified.

Where the quotes of one step change alone, value and risks change by sums over its inventories, exactly: the law of the
states before the step and the functionals after it stay. So one pass prices all changes of a step, and those of two
inventories at once by adding; the search takes the steps backwards, in sweeps, until nothing improves, and starts
again from the best schedule with a few cells drawn anew (iterated local search; Lourenco, Martin & Stutzle 2003).
"""

import itertools
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.constrained.lattice import Lattice
from mmgym.baselines.constrained.linear_program import Progress
from mmgym.baselines.constrained.model import Chain, Quotes, Schedule, Table, evaluate_table

__all__ = ["search_schedule"]

Array = NDArray[Any]
ROUNDING = 1e-12  # of a risk; the schedule that is returned is checked in whole numbers
EXCESS = 1e4  # what exceeding the limits costs in an exchange
KEPT = 20  # best schedules that are checked

Merit = tuple[float, float]  # minus the excess over the limits, the value


class _Search:
    def __init__(self, chain: Chain, deadline: float) -> None:
        self.chain, self.deadline = chain, deadline
        self.lattice = Lattice(chain)
        self.limits = np.array([float(bound) for bound in chain.bounds.values()])

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def merit(self, functionals: Array) -> Merit:
        excess = np.maximum(functionals[1:] - self.limits, 0.0)
        return -float(np.where(excess > ROUNDING, excess, 0.0).sum()), float(functionals[0])

    def ascend(self, table: dict[tuple[int, int], Quotes]) -> tuple[Merit, dict[tuple[int, int], Quotes]]:
        """Sweeps from a schedule until nothing improves: the merit, and the schedule that has it."""
        best = (-math.inf, -math.inf)
        while True:
            laws = self.lattice.laws([self._shares(n, table) for n in range(self.chain.market.num_steps)])
            self.lattice.use_worst_of(laws[-1])
            values, table = self.lattice.terminal(), dict(table)
            for n in reversed(range(self.chain.market.num_steps)):
                parts = self.lattice.parts(n, values)
                if not self.late:
                    self._improve(n, table, parts, laws[n])
                values = self.lattice.play(parts, self._shares(n, table))
            merit = self.merit(values[self.lattice.start, 0])
            if self.late or (merit[0] <= best[0] and merit[1] <= best[1] + ROUNDING):
                return merit, table
            best = merit

    def _shares(self, n: int, table: Table) -> Array:
        return self.lattice.shares({q: {table[n, q]: 1.0} for q in self.chain.reachable_inventories[n]})

    def _improve(self, n: int, table: dict[tuple[int, int], Quotes], parts: Array, law: Array) -> None:
        """Give a step its best quotes, with those of other steps as they are."""
        number, gains = self.lattice.number, self.lattice.gains(parts, law)
        reached = {q for q, mass in zip(self.lattice.inventories, law, strict=True) if mass.any()}
        options, current = [], []
        for inventories, choices in self.chain.decisions[n]:
            visited = [q for q in inventories if q in reached]
            if visited:
                rows = [sum(gains[q][number[q][choice[q]]] for q in visited) for choice in choices]
                options.append((choices, np.array(rows)))
                same = [all(choice[q] == table[n, q] for q in visited) for choice in choices]
                current.append(same.index(True))
        rows = [option for _, option in options]
        for (choices, _), k in zip(options, self._exchange(rows, current), strict=True):
            table.update({(n, q): pair for q, pair in choices[k].items()})

    def _score(self, functionals: Array) -> Array:
        excess = functionals[..., 1:] - self.limits
        return np.asarray(functionals[..., 0] - EXCESS * np.where(excess > ROUNDING, excess, 0.0).sum(axis=-1))

    def _exchange(self, options: list[Array], chosen: list[int]) -> list[int]:
        """One row of each option for a large sum within the limits: exchanges of two rows until none is better."""
        total = np.sum([rows[k] for rows, k in zip(options, chosen, strict=True)], axis=0)
        score, better = float(self._score(total)), True
        while better and not self.late:
            better = False
            for i, j in itertools.combinations_with_replacement(range(len(options)), 2):
                rest = total - options[i][chosen[i]]
                if i == j:
                    sums = (rest + options[i])[:, None]
                else:
                    sums = rest - options[j][chosen[j]] + options[i][:, None] + options[j]
                scores = self._score(sums)
                k, m = np.unravel_index(scores.argmax(), scores.shape)
                if scores[k, m] > score + ROUNDING:
                    total, score, better = sums[k, m], float(scores[k, m]), True
                    chosen[i] = int(k)
                    if i != j:
                        chosen[j] = int(m)
        return chosen


def search_schedule(
    chain: Chain,
    starts: list[Schedule],
    deadline: float,
    *,
    enough: float = math.inf,
    patience: int = 60,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[tuple[int, int], Quotes] | None:
    """The best schedule found that keeps to the limits (checked in whole numbers); None if none was found.

    Parameters
    ----------
    chain : Chain
    starts : list of schedules
        Where the search starts, at their likeliest quotes; they need not keep to the limits.
    deadline : float
        On the clock of `time.perf_counter`.
    enough : float
        The search ends when it has a schedule that is worth this.
    patience : int
        New starts without a better schedule after which the search ends.
    seed : int
    progress : callable, optional
        Called with nan, the best value (nan: none) and nan after every start.
    """
    search, draw = _Search(chain, deadline), np.random.default_rng(seed)
    decisions = [(n, choices) for n, step in enumerate(chain.decisions) for _, choices in step]
    ranked: list[tuple[Merit, dict[tuple[int, int], Quotes]]] = []
    tried, failures = 0, 0
    while failures < patience and not (tried and (search.late or ranked[0][0] >= (0.0, enough - ROUNDING))):
        if tried < len(starts):
            start = _likeliest(chain, starts[tried])
        else:
            start = dict(ranked[0][1])
            for k in draw.choice(len(decisions), min(1 + draw.geometric(0.4), len(decisions)), replace=False):
                n, choices = decisions[k]
                start.update({(n, q): pair for q, pair in choices[draw.integers(len(choices))].items()})
        merit, table = search.ascend(start)
        tried += 1
        better = not ranked or merit > (ranked[0][0][0], ranked[0][0][1] + ROUNDING)
        failures = 0 if better else failures + (tried > len(starts))
        if all(table != other for _, other in ranked):
            ranked = sorted([*ranked, (merit, table)], key=lambda item: item[0], reverse=True)[:KEPT]
        if progress is not None:
            progress(math.nan, ranked[0][0][1] if ranked[0][0][0] == 0.0 else math.nan, math.nan)
    for merit, table in ranked:
        if merit[0] == 0.0 and evaluate_table(chain, table).meets(chain):
            return table
    return None


def _likeliest(chain: Chain, schedule: Schedule) -> dict[tuple[int, int], Quotes]:
    """The likeliest quotes of every decision."""
    table = {}
    for n, step in enumerate(chain.decisions):
        for inventories, choices in step:
            chances = [sum(float(schedule[n, q].get(choice[q], 0)) for q in inventories) for choice in choices]
            table.update({(n, q): pair for q, pair in choices[int(np.argmax(chances))].items()})
    return table
