"""The occupancy-measure linear program: the optimum over all randomised policies of the full state.

Unknowns are the probabilities ``x(n, s, a)`` of being in state ``s`` at step ``n`` and posting the quotes ``a``; flow
is kept, and objective and limits are linear in them (Altman 1999, chapter 3). A policy may look at wealth and drawdown
here, so the optimum is an upper bound of what a schedule of quotes can reach.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array, hstack

from mmgym.baselines.constrained.model import Chain, Quotes

__all__ = ["LinearProgram", "RandomisedOptimum"]

Array = NDArray[np.float64]
DIGITS = 12  # of the probabilities in a marginal schedule


class RandomisedOptimum(NamedTuple):
    """The optimum over randomised policies of the full state.

    ``schedule`` has the probabilities of quotes given step and inventory under it: a policy of (step, inventory) with
    the same value, whose final loss and drawdown may differ.
    """

    value: float
    probabilities: dict[str, float]
    schedule: dict[tuple[int, int], dict[Quotes, Fraction]]


class LinearProgram:
    """The program of a chain; `solve` maximises the objective, `least` minimises the probability of one limit."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.keys: list[tuple[int, int, Quotes]] = []  # step, inventory and quotes of each unknown
        rows: list[int] = []
        columns: list[int] = []
        entries: list[float] = []
        value: list[float] = []
        counted: dict[str, list[float]] = {name: [] for name in chain.risk_limits}
        offset, scale = 0, 1.0 / chain.denominator
        for n, layer in enumerate(chain.layers[:-1]):
            after_offset = offset + len(layer)
            index = {state: after_offset + i for i, state in enumerate(chain.layers[n + 1])}
            last = n == chain.market.num_steps - 1
            for i, state in enumerate(layer):
                for quotes in chain.quotes[state.inventory]:
                    column = len(self.keys)
                    self.keys.append((n, state.inventory, quotes))
                    rows.append(offset + i)
                    columns.append(column)
                    entries.append(1.0)
                    worth, chances = 0.0, dict.fromkeys(counted, 0.0)
                    for after, parts in chain.successors(state, quotes):
                        worth += scale * parts * float(chain.step_reward(after.inventory))
                        if last:
                            worth += scale * parts * float(chain.final_reward(after))
                            for name in counted:
                                chances[name] += scale * parts * chain.violates(name, after)
                        else:
                            rows.append(index[after])
                            columns.append(column)
                            entries.append(-scale * parts)
                    value.append(worth)
                    for name in counted:
                        counted[name].append(chances[name])
            offset = after_offset
        self._flow = coo_array((entries, (rows, columns)), shape=(offset, len(self.keys))).tocsr()
        self._inflow = np.zeros(offset)
        self._inflow[0] = 1.0
        self._value: Array = np.array(value)
        self._counted = {name: np.array(column) for name, column in counted.items()}

    def _minimise(self, cost: Array, kept: list[str]) -> Array | None:
        limits = self.chain.risk_limits
        result: Any = linprog(  # type: ignore[call-overload]
            cost,
            A_ub=np.stack([self._counted[name] for name in kept]) if kept else None,
            b_ub=[float(limits[name].probability) for name in kept] if kept else None,
            A_eq=self._flow,
            b_eq=self._inflow,
            bounds=(0.0, None),
            method="highs",
        )
        if result.status == 2:
            return None
        if result.status != 0:
            raise RuntimeError(f"HiGHS did not solve the linear program: {result.message}")
        return np.asarray(result.x)

    def solve(self, *, limited: bool = True) -> RandomisedOptimum | None:
        """The optimum under the limits (or without the limits on probabilities); None if no policy keeps to them."""
        x = self._minimise(-self._value, list(self.chain.risk_limits) if limited else [])
        if x is None:
            return None
        probabilities = {name: float(column @ x) for name, column in self._counted.items()}
        return RandomisedOptimum(float(self._value @ x), probabilities, self._marginal(x))

    def least(self, name: str, kept: list[str]) -> float | None:
        """Smallest probability of a limit over all policies that keep to the others named; None if none does."""
        x = self._minimise(self._counted[name], kept)
        return None if x is None else float(self._counted[name] @ x)

    def relax(self) -> dict[str, float]:
        """Probabilities that some policy keeps to, raised above those asked by as little as possible in all."""
        limits, unknowns = self.chain.risk_limits, len(self.keys)
        names = list(limits)
        excess = -np.eye(len(names))
        result: Any = linprog(  # type: ignore[call-overload]
            np.concatenate([np.zeros(unknowns), np.ones(len(names))]),
            A_ub=np.hstack([np.stack([self._counted[name] for name in names]), excess]),
            b_ub=[float(limits[name].probability) for name in names],
            A_eq=hstack([self._flow, csr_array((self._flow.shape[0], len(names)))]),
            b_eq=self._inflow,
            bounds=(0.0, None),
            method="highs",
        )
        if result.status != 0:
            raise RuntimeError(f"HiGHS did not solve the linear program: {result.message}")
        return {name: float(limits[name].probability + result.x[unknowns + i]) for i, name in enumerate(names)}

    def _marginal(self, x: Array) -> dict[tuple[int, int], dict[Quotes, Fraction]]:
        mass: dict[tuple[int, int], dict[Quotes, float]] = {}
        for (n, inventory, quotes), weight in zip(self.keys, x, strict=True):
            cell = mass.setdefault((n, inventory), {})
            cell[quotes] = cell.get(quotes, 0.0) + max(float(weight), 0.0)
        mixtures = {}
        for cell_key, cell in mass.items():
            total = sum(cell.values())
            if total > 0.0:
                rounded = {pair: Fraction(round(w / total * 10**DIGITS), 10**DIGITS) for pair, w in cell.items()}
            else:  # never visited: any quotes will do
                rounded = {min(cell): Fraction(1)}
            whole = sum(rounded.values())
            mixtures[cell_key] = {quotes: w / whole for quotes, w in rounded.items() if w}
        return mixtures
