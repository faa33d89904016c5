r"""The best schedule of quotes, proved: branch and bound with bounds from dynamic programming.

A node has the quotes of the steps before ``n``; hence the law of the states at ``n`` and what was earned are known.
Whatever follows is worth no more, for any prices ``lambda >= 0`` of the limits, than

    earned + lambda . bounds + sum_q max_a sum_{s with inventory q} law(s) Q_lambda(s, a),

where ``Q_lambda`` is what the quotes ``a`` earn, less the prices of the risks, with the best policy after them: one
that may see wealth and drawdown (weak duality; the relaxation of information of Haugh & Kogan 2004). The quotes of the
step itself have to be the same at all wealths, so the bound is a sum over inventories, and the choices of a step whose
bound reaches the best schedule known are found one inventory after the other. At the last step nothing is relaxed but
the limits. Prices are added where a node is not cut off, by cutting planes (Kelley 1960), until there are enough.

Bounds are floating point, with an a priori bound of their rounding; a schedule that is returned is evaluated in whole
numbers. Every value is a multiple of a `granule`, so a node whose bound is below the best value plus that has none
that is better.
"""

import itertools
import math
import time
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mmgym.baselines.constrained.kernels import next_choices
from mmgym.baselines.constrained.lattice import Lattice
from mmgym.baselines.constrained.linear_program import Progress, shortfall_candidates
from mmgym.baselines.constrained.model import Chain, Quotes, Table, evaluate_table

__all__ = ["Proof", "prove_schedule"]

Array = NDArray[Any]
MOST_PRICES = 200
MOST_MEMORY = 2.0**28  # bytes of the tables of all prices
CUTS = 8  # cutting planes at a node
ENOUGH = 0.02  # of the distance to the threshold: with less from a plane there are no more
TRUST = 4.0  # prices may grow by this factor with every plane
CHUNK = 256  # choices of a step that are found at once
MARGIN = 1e-9  # of a risk, in floating point, of schedules that are checked in whole numbers


class Proof(NamedTuple):
    """What a search left.

    ``table`` is the best schedule that keeps to the limits, None if there is none (or none was found). ``bound``: none
    is worth more. ``complete``: the search ended, so the schedule is the best one, or there is none; otherwise the
    deadline came first. ``nodes`` were looked at.
    """

    table: dict[tuple[int, int], Quotes] | None
    bound: float
    complete: bool
    nodes: int


class _Node:
    """Steps before ``n`` are chosen: the law after them, and what is left of the choices at ``n``."""

    def __init__(self, n: int, law: Array, earned: float, table: dict[tuple[int, int], Quotes]) -> None:
        self.n, self.law, self.earned, self.table = n, law, earned, table
        self.decisions: list[tuple[list[int], list[dict[int, Quotes]]]] = []
        self.bound = math.inf
        self.level, self.starts = 0, np.zeros(1, dtype=np.int64)
        self.gains = self.most = self.sums = np.zeros((0, 0))
        self.place = np.zeros(0, dtype=np.int64)


class _Search:
    def __init__(self, chain: Chain, worst: int, deadline: float) -> None:
        self.chain, self.deadline, self.lattice = chain, deadline, Lattice(chain)
        lattice, market = self.lattice, chain.market
        lattice.worst = worst
        self.limits = np.array([float(bound) for bound in chain.bounds.values()])
        self.last = lattice.parts(market.num_steps - 1, lattice.terminal())
        options, sizes = len(lattice.options), [lattice.size(n) for n in range(market.num_steps)]
        self.capacity = int(min(MOST_PRICES, max(MOST_MEMORY // (8.0 * options * sum(sizes)), 2.0)))
        self.tables = [np.empty((options, self.capacity, size)) for size in sizes]  # (O, prices, W) of each step
        self.prices = np.zeros((0, len(self.limits)))
        self.roundings = np.zeros(0)  # of the bounds at these prices
        self.symmetric = _mirrored(chain)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def add(self, prices: Array) -> list[Array]:
        """Tables of new prices; functionals (Q, W, F) of their best policy at every step."""
        lattice, steps = self.lattice, self.chain.market.num_steps
        weights = np.concatenate([[1.0], -prices])
        values = lattice.terminal()
        policy = [values]
        largest = np.abs(values).max(axis=(0, 1))
        for n in reversed(range(steps)):
            parts = lattice.parts(n, values)
            self.tables[n][:, len(self.prices)] = parts @ weights
            _, values = lattice.best(parts, weights)
            policy.append(values)
            largest = np.maximum(largest, np.abs(parts).max(axis=(0, 1)))
        self.prices = np.concatenate([self.prices, prices[None]])
        self.roundings = np.append(self.roundings, self._rounding(weights, largest))
        return policy[::-1]

    def _rounding(self, weights: Array, largest: Array) -> float:
        """A bound of the rounding of weighted functionals (F,) that are no larger than these."""
        lattice, market = self.lattice, self.chain.market
        summands = lattice.size(market.num_steps) + len(market.mid_moves) + max(map(len, lattice.mixtures))
        return 32.0 * summands * market.num_steps * 2.0**-53 * float(np.abs(weights) @ (largest + 1.0))

    def lowest(self) -> float:
        """Every policy is worth at least this."""
        values, weights = self.lattice.terminal(), -np.eye(1 + len(self.limits))[0]
        largest = np.abs(values).max(axis=(0, 1))
        for n in reversed(range(self.chain.market.num_steps)):
            parts = self.lattice.parts(n, values)
            _, values = self.lattice.best(parts, weights)
            largest = np.maximum(largest, np.abs(parts).max(axis=(0, 1)))
        return float(values[self.lattice.start, 0, 0]) - self._rounding(weights, largest)

    def bounds(self, node: _Node, first: int = 0) -> Array:
        """What every choice at a node adds to the bounds, of prices from the first on: (R, L), decision by decision."""
        masses, tables = node.law[self.lattice.sources], self.tables[node.n][:, first : len(self.prices)]
        return self._rows(node, (tables @ masses[:, :, None])[:, :, 0])

    def _rows(self, node: _Node, totals: Array) -> Array:
        """From sums (O, L) of options to rows (R, L) of choices."""
        lattice = self.lattice
        by_pair = {
            q: mixture @ totals[start : start + mixture.shape[1]]
            for q, mixture, start in zip(lattice.inventories, lattice.mixtures, lattice.starts, strict=True)
        }
        rows = [
            sum(by_pair[q][lattice.number[q][choice[q]]] for q in inventories)
            for inventories, choices in node.decisions
            for choice in choices
        ]
        return np.array(rows)

    def _decide(self, node: _Node) -> None:
        """The decisions at the inventories that a node reaches."""
        reached = {q for q, mass in zip(self.lattice.inventories, node.law, strict=True) if mass.any()}
        for inventories, choices in self.chain.decisions[node.n]:
            visited = [q for q in inventories if q in reached]
            if visited:
                kept = choices
                if node.n == 0 and self.symmetric:  # a schedule is worth what its mirror image is
                    kept = [choice for choice in choices if all(pair.bid <= pair.ask for pair in choice.values())]
                node.decisions.append((visited, kept))
        node.starts = np.cumsum([0, *(len(choices) for _, choices in node.decisions)], dtype=np.int64)

    def _base(self, node: _Node) -> Array:
        """The bounds (L,) at a node, raised by their rounding, without what its choices add."""
        return np.asarray(node.earned + self.prices @ self.limits + self.roundings)

    def open(self, node: _Node, threshold: float) -> bool:
        """Prepare a node's choices; False if its bound is below the threshold."""
        self._decide(node)
        gains, ends = self.bounds(node), node.starts

        def most_of(rows: Array) -> Array:
            return np.array([rows[i:j].max(axis=0) for i, j in itertools.pairwise(ends)])

        totals = self._base(node) + most_of(gains).sum(axis=0)
        best = int(totals.argmin())
        node.bound, prices = float(totals[best]), self.prices[best]
        cuts: list[Array] = []
        while node.bound >= threshold and len(self.prices) < self.capacity and len(cuts) < CUTS and not self.late:
            cut, row, total = self._cut(node, prices)
            cuts.append(cut)
            gains = np.concatenate([gains, row], axis=1)
            gained, node.bound = node.bound - total, min(node.bound, total)
            if len(cuts) > 2 and gained < ENOUGH * (node.bound - threshold):
                break
            prices = self._lowest(cuts, self.prices[best])
        if node.bound < threshold:
            return False
        order = np.concatenate([i + np.argsort(-gains[i:j, best], kind="stable") for i, j in itertools.pairwise(ends)])
        node.gains = np.ascontiguousarray(gains[order])
        node.decisions = [
            (visited, [choices[k - i] for k in order[i : i + len(choices)]])
            for (visited, choices), i in zip(node.decisions, ends[:-1], strict=True)
        ]
        most = most_of(node.gains)
        node.most = np.concatenate([np.cumsum(most[::-1], axis=0)[::-1], np.zeros((1, most.shape[1]))])
        node.sums = np.zeros_like(node.most)
        node.sums[0] = self._base(node)
        node.place = np.zeros(len(node.decisions), dtype=np.int64)
        return True

    def _cut(self, node: _Node, prices: Array) -> tuple[Array, Array, float]:
        """Add prices: the functionals (F,) of the best policy from a node, its rows (R, 1), and its bound there."""
        lattice, n = self.lattice, node.n
        policy = self.add(prices)
        row = self.bounds(node, len(self.prices) - 1)
        parts = np.einsum("owf,ow->of", lattice.parts(n, policy[n + 1]), node.law[lattice.sources])
        functionals = self._rows(node, parts)
        ends = node.starts
        best = [i + int(row[i:j, 0].argmax()) for i, j in itertools.pairwise(ends)]
        cut = functionals[best].sum(axis=0)
        cut[0] += node.earned
        return cut, row, float(self._base(node)[-1] + row[best, 0].sum())

    def _lowest(self, cuts: list[Array], centre: Array) -> Array:
        """Prices at which the largest of the cutting planes is lowest, not too far from where they began."""
        table = np.array(cuts)
        scale = np.maximum(centre, 1.0 + np.abs(table[:, 0]).max())
        # minimise y, subject to y >= objective - prices . (risks - limits)
        slopes = np.hstack([-(table[:, 1:] - self.limits), -np.ones((len(table), 1))])
        high = [(0.0, TRUST ** len(cuts) * s) for s in scale]
        result: Any = linprog(  # type: ignore[call-overload]
            np.eye(len(self.limits) + 1)[-1], A_ub=slopes, b_ub=-table[:, 0], bounds=[*high, (None, None)]
        )
        return np.asarray(result.x[:-1] if result.status == 0 else centre)

    def child(self, node: _Node, chosen: Array) -> _Node:
        """The node after some choices."""
        lattice, n = self.lattice, node.n
        table, cells = dict(node.table), dict[int, dict[Quotes, float]]()
        for (visited, choices), row, start in zip(node.decisions, chosen, node.starts, strict=False):
            for q, pair in choices[row - start].items():
                table[n, q] = pair
                if q in visited:
                    cells[q] = {pair: 1.0}
        shares = lattice.shares(cells)
        earned = float((node.law.sum(axis=1)[lattice.sources] * shares) @ lattice.earned)
        return _Node(n + 1, lattice.forward(n, node.law, shares), node.earned + earned, table)

    def offer(self, node: _Node, found: Array, best: "_Best") -> bool:
        """Whether one of the choices (M, C) at the last step makes a better schedule, which is kept."""
        parts = np.einsum("owf,ow->of", self.last, node.law[self.lattice.sources])
        functionals = self._rows(node, parts)[found].sum(axis=1)
        worths, better = functionals[:, 0] + node.earned, False
        keeps = (functionals[:, 1:] <= self.limits + MARGIN * (1.0 + np.abs(self.limits))).all(axis=1)
        for k in np.flatnonzero(keeps)[np.argsort(-worths[keeps], kind="stable")]:
            if worths[k] + self.roundings[0] < best.threshold(-math.inf):
                break
            better = best.offer(self.child(node, found[k]).table) or better
        return better


class _Best:
    """The best schedule known."""

    def __init__(self, chain: Chain, first: Table | None) -> None:
        penalties = (chain.market.terminal_penalty, chain.market.running_penalty)
        scale = math.lcm(*(penalty.denominator for penalty in penalties))
        self.chain, self.granule = chain, Fraction(1, scale * chain.denominator**chain.market.num_steps)
        self.table: dict[tuple[int, int], Quotes] | None = None
        self.value: Fraction | None = None
        if first is not None:
            self.offer(first)

    def offer(self, table: Table) -> bool:
        """Whether a schedule is better and keeps to the limits, in whole numbers: then it is kept."""
        full = {
            (n, q): table.get((n, q), pair)  # where it never comes, any quotes will do
            for n, step in enumerate(self.chain.decisions)
            for _, choices in step
            for q, pair in choices[0].items()
        }
        worth = evaluate_table(self.chain, full)
        if not worth.meets(self.chain) or (self.value is not None and worth.value <= self.value):
            return False
        self.table, self.value = full, worth.value
        return True

    def threshold(self, low: float) -> float:
        """Bounds below this have no better schedule; ``low``: what every schedule is worth at least."""
        return low if self.value is None else float(self.value + self.granule)


def _mirrored(chain: Chain) -> bool:
    """Whether bids and asks, long and short are the same."""
    market = chain.market
    return market.initial_inventory == 0 and all(market.mid_moves.get(-m) == p for m, p in market.mid_moves.items())


def prove_schedule(
    chain: Chain,
    prices: Array,
    first: Table | None,
    deadline: float,
    progress: Progress | None = None,
) -> Proof:
    """The best schedule that keeps to the limits.

    Parameters
    ----------
    chain : Chain
    prices : (K,)
        Of the limits, to begin with: those of the linear program, or zeros.
    first : mapping, optional
        A schedule that keeps to the limits: only better ones are looked for.
    deadline : float
        On the clock of `time.perf_counter`.
    progress : callable, optional
        Called with nan, the best value so far (nan: none) and nan.
    """
    best, bound, nodes, complete = _Best(chain, first), -math.inf, 0, True
    for worst in shortfall_candidates(chain):
        search = _Search(chain, worst, deadline)
        search.add(np.zeros(len(chain.bounds)))
        if prices.any():
            search.add(prices)
        low = search.lowest()
        root = _Node(0, search.lattice.initial(), 0.0, {})
        stack = [root] if search.open(root, best.threshold(low)) else []
        while stack:
            if search.late:
                complete, bound = False, max([bound, *(node.bound for node in stack)])
                break
            node, threshold = stack[-1], best.threshold(low)
            found = np.empty((CHUNK, len(node.place)), dtype=np.int64)
            state = (node.sums, node.place, node.level)
            count, node.level = next_choices(node.gains, node.starts, node.most, threshold, *state, found)
            nodes += int(count)
            if node.level < 0:
                stack.pop()
            if node.n == chain.market.num_steps - 1:
                if search.offer(node, found[:count], best) and progress is not None:
                    progress(math.nan, float(best.value or 0), math.nan)
                continue
            for row in found[:count][::-1]:
                child = search.child(node, row)
                if search.late or search.open(child, best.threshold(low)):
                    child.bound = min(child.bound, node.bound)
                    stack.append(child)
    return Proof(best.table, max(bound, -math.inf if best.value is None else float(best.value)), complete, nodes)
