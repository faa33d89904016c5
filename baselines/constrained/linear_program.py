r"""The occupancy-measure linear program: the optimum over all randomised policies of the full state.

Its unknowns are the probabilities ``x(n, s, a)`` of being in state ``s`` at step ``n`` and posting the quotes ``a``;
flow is kept, and objective and limits are linear in them (Altman 1999, chapter 3). A policy may look at wealth and
drawdown here, so the optimum is an upper bound of what a schedule of quotes can reach.

It is solved by columns (Dantzig & Wolfe 1960): the points of the flow are mixtures of policies that draw nothing, so a
master program (HiGHS) has one row for each limit and one column for each policy found so far, and the policy that the
master's prices ``lambda`` ask for is found by dynamic programming on the `Lattice`. By weak duality

    max_policy (E[objective] - sum_i lambda_i risk_i) + sum_i lambda_i bound_i

is an upper bound for any ``lambda >= 0``, solved or not: it is what `RandomisedOptimum.bound` states, raised by an a
priori bound of the rounding of the dynamic program. A mixture of at most ``K + 1`` policies attains the optimum.
"""

import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mmgym.baselines.constrained.lattice import Lattice
from mmgym.baselines.constrained.model import Chain, Quotes

__all__ = ["LinearProgram", "RandomisedOptimum", "shortfall_candidates"]

Array = NDArray[Any]
DIGITS = 12  # of the probabilities in a marginal schedule
TOLERANCE = 1e-10  # of the distance between the bound and the value, relative to 1 + |value|
SLACK = 1e-8  # of a limit, where only rounding keeps it from being met
Progress = Callable[[float, float, float], None]  # seconds, best value so far (nan: none), bound


class RandomisedOptimum(NamedTuple):
    """The optimum over randomised policies of the full state.

    ``value`` is attained by a mixture of policies that keeps to the limits (nan if none was found in time), ``bound`` a
    certified upper bound; they meet unless the time limit came first. ``prices`` are the objective's derivatives in the
    bounds of the limits. ``schedule`` has the probabilities of quotes given step and inventory under the mixture: a
    policy of (step, inventory) with the same value, whose risks may differ. ``worst`` is the ``t`` of the conditional
    value at risk.
    """

    value: float
    bound: float
    risks: dict[str, float]
    prices: dict[str, float]
    schedule: dict[tuple[int, int], dict[Quotes, Fraction]]
    worst: int

    @property
    def solved(self) -> bool:
        """Whether value and bound meet."""
        return self.bound - self.value <= 10.0 * TOLERANCE * (1.0 + abs(self.value))


class _Mixture(NamedTuple):
    """What columns gave: value and bound of a maximum, weights of the policies, prices and excesses of the limits."""

    value: float
    bound: float
    weights: Array
    prices: Array
    excess: Array


class _Columns:
    """Policies found so far for one ``t`` of the conditional value at risk."""

    def __init__(self, lattice: Lattice, worst: int, deadline: float) -> None:
        self.lattice, self.worst, self.deadline = lattice, worst, deadline
        self.limits = np.array([float(bound) for bound in lattice.chain.bounds.values()])
        self.functionals: list[Array] = []  # (F,) of each policy
        self.policies: list[list[list[Array]]] = []  # step, inventory: index (W, M) of the quotes

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def price(self, weights: Array) -> float | None:
        """Add the policy with the largest weighted functionals; that maximum, raised by its rounding. None if late."""
        lattice = self.lattice
        market, lattice.worst = lattice.chain.market, self.worst
        values, policy = lattice.terminal(), []
        largest = np.abs(values).max(axis=(0, 1))
        for n in reversed(range(market.num_steps)):
            if self.late:
                return None
            choices, values = lattice.best(lattice.parts(n, values), weights)
            policy.append(choices)
            largest = np.maximum(largest, np.abs(values).max(axis=(0, 1)))
        self.functionals.append(values[lattice.start, 0])
        self.policies.append(policy[::-1])
        summands = len(market.mid_moves) + max(mixture.shape[1] for mixture in lattice.mixtures)
        roundings = 32.0 * summands * market.num_steps  # of an expectation, an argmax and a sum
        return float(weights @ self.functionals[-1] + roundings * 2.0**-53 * (np.abs(weights) @ largest))

    def _master(self, objective: Array, kept: Array, relaxed: bool) -> _Mixture:
        """Best mixture of the policies so far; ``relaxed``: limits may be exceeded, at a price of 1."""
        table = np.array(self.functionals).T
        count, rows = table.shape[1], int(kept.sum())
        extra = rows if relaxed else 0
        for slack in (0.0, SLACK):
            result: Any = linprog(  # type: ignore[call-overload]
                np.concatenate([-(objective @ table), np.ones(extra)]),
                A_ub=np.hstack([table[1:][kept], -np.eye(rows)[:, :extra]]) if rows else None,
                b_ub=(self.limits + slack * (1.0 + np.abs(self.limits)))[kept] if rows else None,
                A_eq=np.concatenate([np.ones(count), np.zeros(extra)])[None],
                b_eq=[1.0],
                bounds=(0.0, None),
                method="highs",
            )
            if result.status != 2:  # limits that are kept but for rounding: infeasible to HiGHS
                break
        if result.status != 0:
            raise RuntimeError(f"HiGHS did not solve the master program: {result.message}")
        prices = np.zeros(len(self.limits))
        if rows:
            prices[kept] = np.maximum(-result.ineqlin.marginals, 0.0)
        return _Mixture(-float(result.fun), math.inf, result.x[:count], prices, result.x[count:])

    def maximise(
        self,
        objective: Array,
        kept: Array,
        *,
        relaxed: bool = False,
        enough: float = math.inf,
        hopeless: float = -math.inf,
        progress: Progress | None = None,
    ) -> _Mixture | None:
        """Add policies until the mixture is the best one; None if it is late before there is one.

        Stops when the value reaches ``enough``, or the bound falls to ``hopeless``.
        """
        bound = math.inf
        if not self.functionals and self.price(np.concatenate([[1.0], np.zeros(len(self.limits))])) is None:
            return None
        while True:
            mixture = self._master(objective, kept, relaxed)
            done = self.late or mixture.value >= enough or bound <= hopeless
            if done or bound - mixture.value <= TOLERANCE * (1.0 + abs(mixture.value)):
                return mixture._replace(bound=bound)
            weights = objective - np.concatenate([[0.0], mixture.prices])
            worth = self.price(weights)
            if worth is not None:
                bound = min(bound, worth + float(mixture.prices @ self.limits))
                if progress is not None:
                    progress(math.nan, mixture.value, bound)
            column = self.functionals[-1]
            if worth is not None and any(np.array_equal(column, other) for other in self.functionals[:-1]):
                return self._master(objective, kept, relaxed)._replace(bound=bound)  # nothing new: rounding is left

    def feasible(self) -> bool | None:
        """Whether some mixture keeps to the limits; None if it is too late to say. Columns that do are kept."""
        rows = np.ones(len(self.limits), dtype=bool)
        optimum = self.maximise(np.zeros(1 + len(rows)), rows, relaxed=True, enough=-1e-12, hopeless=-1e-9)
        if optimum is None or (optimum.value < -1e-9 and optimum.bound > -1e-9):
            return None
        return optimum.value >= -1e-9

    def marginal(self, weights: Array) -> dict[tuple[int, int], dict[Quotes, Fraction]]:
        """Probabilities of quotes by step and inventory under a mixture."""
        lattice, mass = self.lattice, dict[tuple[int, int], Array]()
        for weight, policy in zip(weights, self.policies, strict=True):
            if weight <= 0.0:
                continue
            law = lattice.initial()
            for n, choices in enumerate(policy):
                for i, q in enumerate(lattice.inventories):
                    count = len(lattice.chain.quotes[q])
                    row = np.bincount(choices[i], weights=law[i], minlength=count)
                    mass[n, q] = mass.get((n, q), np.zeros(count)) + weight * row
                law = lattice.forward(n, law, lattice.chosen(choices))
        mixtures = {}
        for n, inventories in enumerate(lattice.chain.reachable_inventories):
            for q in inventories:
                cell, pairs = np.maximum(mass[n, q], 0.0), lattice.chain.quotes[q]
                if cell.sum() <= 0.0:  # never visited: any quotes will do
                    cell = np.eye(len(pairs))[0]
                parts = {pair: round(p * 10**DIGITS) for pair, p in zip(pairs, cell / cell.sum(), strict=True)}
                whole = sum(parts.values())
                mixtures[n, q] = {pair: Fraction(part, whole) for pair, part in parts.items() if part}
        return mixtures


def shortfall_candidates(chain: Chain) -> list[int]:
    """The ``t`` at which a conditional value at risk may be kept, the largest first; [0] without such a limit."""
    market, limit = chain.market, chain.limits.cvar
    if limit is None:
        return [0]
    best = max(p * ticks for ticks, p in market.fill_probabilities.items())
    drift = abs(sum((move * p for move, p in market.mid_moves.items()), Fraction(0)))
    earned = market.num_steps * (2 * best + chain.inventory_limit * drift)  # more than any expected wealth
    low = -market.num_steps * max(step for steps in chain.outcomes.values() for _, step, _ in steps)
    if limit.confidence > 0:  # t + (E[loss] - t) / (1 - confidence) <= amount
        low = max(low, math.ceil(-((1 - limit.confidence) * limit.amount + earned) / limit.confidence))
    return list(range(math.floor(limit.amount), low - 1, -1)) or [math.floor(limit.amount)]


class LinearProgram:
    """The program of a chain; `solve` maximises the objective, `least` minimises one risk.

    A conditional value at risk is kept if ``t + E[(loss - t)^+] / (1 - confidence) <= amount`` for some ``t``, which
    may be taken from the whole numbers: the program is solved for each ``t`` that can do. Where the limit is not kept,
    any loss may be the ``t`` of the least one.

    Parameters
    ----------
    chain : Chain
    deadline : float
        On the clock of `time.perf_counter`; what is found by then is returned.
    """

    def __init__(self, chain: Chain, deadline: float = math.inf) -> None:
        self.chain, self._lattice, self._deadline = chain, Lattice(chain), deadline
        self._programs = [_Columns(self._lattice, worst, deadline) for worst in shortfall_candidates(chain)]

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return any(program.late for program in self._programs)

    def _unkept(self) -> Iterator[_Columns]:
        """Programs of every ``t`` of a policy that need not keep the limit on it, those nearest to the limit first."""
        limit = self.chain.limits.cvar
        if limit is None:
            yield from self._programs
            return
        count, amount = self.chain.market.num_steps, limit.amount
        losses = range(-count * self._lattice.high, 1 - count * self._lattice.low)
        known = {program.worst: program for program in self._programs}
        for worst in sorted(losses, key=lambda loss: abs(loss - amount)):
            yield known.get(worst) or _Columns(self._lattice, worst, self._deadline)

    def _rows(self, names: list[str]) -> Array:
        return np.array([name in names for name in self.chain.bounds], dtype=bool)

    def solve(self, *, progress: Progress | None = None) -> RandomisedOptimum | None:
        """The optimum under the limits; None if no policy keeps to them."""
        objective, kept = np.eye(1 + len(self.chain.bounds))[0], self._rows(list(self.chain.bounds))
        best: tuple[_Columns, _Mixture] | None = None
        bound, possible = -math.inf, False
        for program in self._programs:
            keeps = program.feasible()
            if keeps is False:
                continue
            possible = True
            optimum = None
            if keeps:
                value = -math.inf if best is None else best[1].value
                optimum = program.maximise(objective, kept, hopeless=value, progress=progress)
            if optimum is None:
                bound = math.inf
                continue
            bound = max(bound, optimum.bound)
            if best is None or optimum.value > best[1].value:
                best = program, optimum
        if not possible:
            return None
        if best is None:
            return RandomisedOptimum(math.nan, self._unlimited(), {}, {}, {}, 0)
        program, mixture = best
        risks = mixture.weights @ np.array(program.functionals)[:, 1:]
        return RandomisedOptimum(
            mixture.value,
            min(bound, self._unlimited()),
            dict(zip(self.chain.bounds, risks.tolist(), strict=True)),
            dict(zip(self.chain.bounds, mixture.prices.tolist(), strict=True)),
            program.marginal(mixture.weights),
            program.worst,
        )

    def _unlimited(self) -> float:
        """The first policy of every program is the best without limits on risk; up to rounding."""
        values = [program.functionals[0][0] for program in self._programs if program.functionals]
        return float(max(values) + TOLERANCE * (1.0 + abs(max(values)))) if values else math.inf

    def least(self, name: str, kept: list[str]) -> float | None:
        """Smallest risk over all policies that keep to the limits on the others named; None if none does."""
        row = 1 + list(self.chain.bounds).index(name)
        smallest: list[float] = []
        for program in self._unkept() if name == "cvar" else self._programs:
            if name == "cvar" and program.worst >= min(smallest, default=math.inf):
                continue  # the shortfall is at least t
            rows = self._rows(kept)
            none = np.zeros(1 + len(rows))
            first = program.maximise(none, rows, relaxed=True, enough=-1e-12, hopeless=-1e-9)
            if first is not None and first.value >= -1e-9:
                optimum = program.maximise(-np.eye(len(none))[row], rows)
                smallest += [] if optimum is None else [-optimum.value]
        return min(smallest, default=None)

    def relax(self) -> dict[str, float] | None:
        """Bounds that some policy keeps to, raised above those asked by as little as possible in all."""
        best: _Mixture | None = None
        rows, limit = self._rows(list(self.chain.bounds)), self.chain.limits.cvar
        for program in self._unkept():
            if best is not None and limit is not None and program.worst - float(limit.amount) >= -best.value:
                continue  # the shortfall is at least t
            optimum = program.maximise(np.zeros(1 + len(rows)), rows, relaxed=True)
            if optimum is not None and (best is None or optimum.value > best.value):
                best = optimum
        if best is None:
            return None
        return {name: float(bound) + e for (name, bound), e in zip(self.chain.bounds.items(), best.excess, strict=True)}
