"""The law of the final P&L under a policy table, from its characteristic function: atoms, density, VaR and CVaR."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mmgym.baselines.frozen import (
    PNL,
    FrozenProblem,
    Functional,
    Table,
    backward_step,
    characteristic_function,
    evaluate,
    moments,
)

__all__ = ["EXACT", "PnlLaw", "pnl_law"]

Array = NDArray[Any]

EXACT = 1e-8  # the largest error of a probability, and of a quantile in standard deviations, that is called exact
NEGLIGIBLE = 1e-12  # probability outside the series, and modulus of a term at which it is cut
MOST_TERMS = 512
MOST_PROBES = 64  # of the characteristic function beyond the series
MEANINGLESS = 1e-2  # probability of too little price noise at which the series tells nothing
CUTS = (0.9, 0.8, 0.7)  # shorter series that a smoothed one is compared with
CAUTION = 4.0  # times their distance: the error that is stated
TILTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # exponents of Chernoff's bound, in 1 / standard deviation


@dataclass(frozen=True)
class PnlLaw:
    """The law of a functional: atoms, and the cosine series of the rest on ``[low, high]`` (Fang & Oosterlee 2008).

    An atom is a value that is taken with a probability of its own: that of the paths without inventory, hence without
    price noise. ``truncation`` is about the error of a probability. Where the characteristic function of the rest has
    vanished when the series is cut, it is a bound of what is cut. Otherwise the series is ``smoothed`` (its last terms
    fade: away from kinks of the distribution function the error falls exponentially in the number of terms), and it is
    an estimate: four times how far shorter series are from it.
    """

    low: float
    high: float
    coefficients: Array  # (terms,)
    mean: float
    std: float
    truncation: float
    atoms: Array  # (A, 2) values in increasing order, and their probabilities
    smoothed: bool = False

    def _frequencies(self) -> Array:
        return np.arange(len(self.coefficients)) * np.pi / (self.high - self.low)

    def _terms(self) -> Array:
        if not self.smoothed:
            return self.coefficients
        count = len(self.coefficients)
        return np.asarray(self.coefficients * np.exp(-36.0 * (np.arange(count) / count) ** 8))

    def _shorter(self) -> list["PnlLaw"]:
        counts = [int(share * len(self.coefficients)) for share in CUTS]
        return [replace(self, coefficients=self.coefficients[:count]) for count in counts]

    def density(self, x: Any) -> Array:
        """Density at ``x`` (1 / currency), without the atoms."""
        x = np.asarray(x, dtype=float)
        angle = np.multiply.outer(x - self.low, self._frequencies())
        return np.asarray(np.where((x >= self.low) & (x <= self.high), np.cos(angle) @ self._terms(), 0.0))

    def _rest_below(self, x: Any) -> Array:
        """Probability at most ``x``, without the atoms."""
        shifted, u = np.clip(np.asarray(x, dtype=float), self.low, self.high) - self.low, self._frequencies()
        waves, terms = np.sin(np.multiply.outer(shifted, u[1:])) / u[1:], self._terms()
        return np.asarray(shifted * terms[0] + waves @ terms[1:])

    def probability(self, x: Any) -> Array:
        """``P(R <= x)``."""
        values, weights = self.atoms.T
        return np.asarray(self._rest_below(x) + (np.asarray(x, dtype=float)[..., None] >= values) @ weights)

    def probability_error(self, x: float) -> float:
        """About the error of `probability` at ``x``: away from atoms a smoothed series has less than ``truncation``."""
        if not self.smoothed:
            return self.truncation
        return CAUTION * max(abs(float(other.probability(x) - self.probability(x))) for other in self._shorter())

    def quantile(self, probability: float) -> float:
        """The least ``x`` with ``P(R <= x) >= probability``."""
        low, passed = self.low, 0.0
        for value, weight in self.atoms:
            below = float(self._rest_below(value)) + passed
            if probability < below:
                break
            if probability <= below + weight:
                return float(value)
            low, passed = float(value), passed + weight

        def excess(x: float) -> float:
            return float(self._rest_below(x)) + passed - probability

        if excess(low) >= 0.0 or excess(self.high) <= 0.0:  # by rounding
            return low if excess(low) >= 0.0 else self.high
        return float(scipy.optimize.brentq(excess, low, self.high, xtol=1e-13 * (self.high - self.low)))

    def value_at_risk(self, confidence: float) -> float:
        """Loss that is not exceeded with this confidence (negative: a profit)."""
        return 0.0 - self.quantile(1.0 - confidence)

    def expected_shortfall(self, confidence: float) -> float:
        """CVaR: expected loss beyond the value at risk."""
        x = self.quantile(1.0 - confidence)
        # int_low^x y dF(y), as much of an atom at x as it takes, = x (1 - c) - int_low^x F
        values, weights = self.atoms.T
        integral = float(np.maximum(x - values, 0.0) @ weights)
        shifted, u, terms = x - self.low, self._frequencies()[1:], self._terms()
        integral += float(0.5 * shifted**2 * terms[0] + (1.0 - np.cos(shifted * u)) / u**2 @ terms[1:])
        return 0.0 - (x * (1.0 - confidence) - integral) / (1.0 - confidence)

    def accuracy(self, confidence: float) -> tuple[float, float]:
        """About the errors of `value_at_risk` and `expected_shortfall` (currency)."""
        if self.smoothed:
            at_risk, shortfall = self.value_at_risk(confidence), self.expected_shortfall(confidence)
            others = [(law.value_at_risk(confidence), law.expected_shortfall(confidence)) for law in self._shorter()]
            errors = np.abs(np.array(others) - (at_risk, shortfall)).max(axis=0)
            return float(CAUTION * errors[0]), float(CAUTION * errors[1])
        tail = 1.0 - confidence
        low, high = (self.quantile(min(max(tail + error, 0.0), 1.0)) for error in (-self.truncation, self.truncation))
        integral = 2.0 * (self.high - self.low) / (np.pi**2 * len(self.coefficients)) * self.truncation
        return high - low, float(integral + self.truncation * (high - low)) / tail


def _flat_paths(problem: FrozenProblem, table: Table, functional: Functional, std: float) -> Array:
    """Atoms (A, 2) of the paths without inventory: values in increasing order, and their probabilities.

    Those that start in a state have one value, whose exponential moments are powers of each other, and otherwise are
    left out.
    """
    tilt = 1.0 / std if std > 0.0 else 1.0
    exponents = np.array([0.0, tilt, 2.0 * tilt])
    weighted = functional._replace(moments=1, exponents=exponents)
    values = problem.terminal(weighted)
    for n in reversed(range(problem.num_steps)):
        values = backward_step(problem.backward_without_inventory, n, table, values, weighted)
    chances: dict[float, float] = {}
    for chance, (mass, once, twice) in zip(problem.initial, values, strict=True):
        if chance > 0.0 and mass > 1e-300:
            value, other = np.log(once / mass) / tilt, np.log(twice / mass) / (2.0 * tilt)
            if abs(value - other) <= 1e-9 * (abs(value) + 1.0 / tilt):
                chances[float(value)] = chances.get(float(value), 0.0) + float(chance * mass)
    return np.array(sorted(chances.items())).reshape(-1, 2)


def _reach(
    problem: FrozenProblem, table: Table, functional: Functional, atoms: Array, center: float, std: float
) -> tuple[float, float]:
    """Bounds that the functional leaves with a probability of about `NEGLIGIBLE`, besides its atoms (Chernoff)."""
    reach = []
    for sign in (-1.0, 1.0):
        best = np.inf
        for tilt in TILTS:
            z = np.array([sign * tilt / std])
            try:
                with np.errstate(all="ignore"):
                    values, log_scale = evaluate(problem, table, functional._replace(moments=1, exponents=z))
                    log_moment = float(np.log(problem.initial @ values[0, :, 0]) + log_scale[0] - z[0] * center)
            except (ValueError, ArithmeticError):  # beyond floating point, or more terms than can be summed
                break
            if not np.isfinite(log_moment):
                break
            logs = z[0] * (atoms[:, 0] - center) - log_moment
            share = float(np.exp(np.minimum(logs, 700.0)) @ atoms[:, 1])  # of the moment that is the atoms'
            log_moment += np.log(max(1.0 - share, 1e-15))
            best = min(best, (log_moment - np.log(NEGLIGIBLE)) * std / tilt)
        if not best < np.inf:
            raise ValueError("the law has no exponential moments within floating point: it has no series")
        reach.append(center + sign * max(best, std))
    return reach[0], reach[1]


class _Rest:
    """The characteristic function of a functional without its atoms, ``u -> E[exp(i u R); no atom]``."""

    def __init__(self, problem: FrozenProblem, table: Table, functional: Functional, atoms: Array) -> None:
        self.problem, self.table, self.functional = problem, table, functional
        self.values, self.weights = atoms.T
        self.mass = 1.0 - float(self.weights.sum())
        self.noise = Functional(price=functional.price, jumps=False)

    def __call__(self, u: Array) -> Array:
        whole = characteristic_function(self.problem, self.table, self.functional, u)
        return np.asarray(whole - np.exp(1j * np.multiply.outer(u, self.values)) @ self.weights)

    def bound(self, u: float) -> float:
        """Of the modulus from ``u`` on; infinity where it leaves the range of floating point."""
        try:
            with np.errstate(all="ignore"):
                whole = characteristic_function(self.problem, self.table, self.noise, np.array([u]))[0]
        except ArithmeticError:  # more terms than can be summed
            return np.inf
        modulus = float(abs(whole)) - 1.0 + self.mass
        return max(modulus, 0.0) if modulus > -NEGLIGIBLE else np.inf

    def most_terms(self, width: float) -> int:
        """Terms of a series on an interval of this width at which the bound is still in range.

        Raises
        ------
        ValueError
            If there is too little price noise for a series.
        """
        most = MOST_TERMS
        while (least := self.bound(most * np.pi / width)) == np.inf and most > 32:
            most //= 2
        if least > MEANINGLESS:
            raise ValueError(
                f"the law of the P&L has too little price noise for a density: with the probability {least:.2g} there "
                "is next to none, and the law is nearly discrete"
            )
        return most

    def beyond(self, u: float, std: float) -> float:
        """About the largest modulus beyond ``u``: its `bound`, and probes before it holds."""
        end, last = u, u + MOST_PROBES / std
        while (limit := self.bound(end)) > 1e-2 * EXACT and end < last:
            end = min(1.25 * end, last)
        probes = np.arange(u, end, 1.0 / std)
        parts = [part for part in np.array_split(probes, 8) if len(part)]
        return max([limit, *(float(np.abs(self(part)).max()) for part in parts)])

    def series(
        self, width: float, most: int, std: float, progress: Callable[[int], object] | None
    ) -> tuple[Array, float]:
        """Terms of the series on an interval of this width, and about the modulus of the first that is cut."""
        terms, cut = np.empty(0, dtype=complex), 1.0
        while len(terms) < most and cut > NEGLIGIBLE:
            u = np.arange(len(terms), len(terms) + 32) * np.pi / width
            for part in np.split(u, 8):
                terms = np.concatenate([terms, self(part)])
                if progress is not None:
                    progress(len(part))
            cut = float(np.abs(terms[-8:]).max())
            if cut <= NEGLIGIBLE:
                cut = max(cut, self.beyond(float(u[-1]), std))
        return terms, cut


def pnl_law(
    problem: FrozenProblem,
    table: Table | Array,
    functional: Functional = PNL,
    progress: Callable[[int], object] | None = None,
) -> PnlLaw:
    """Law of the final P&L (or of another functional with price noise) from its characteristic function.

    Paths that never have an inventory carry no price noise: they are atoms, found apart. The rest stands in a cosine
    series, which has as many terms as it takes for its characteristic function to fall below 1e-12 for good, but 512
    at most. For good: with the variance ``V`` of the price noise given the fills, ``|E exp(i u R)| <= E exp(-u^2 V /
    2)``, which never rises; up to where this bound is small the characteristic function is probed, since it returns
    where the law is nearly that of a lattice. ``progress`` is called with the number of terms since the last call.

    Raises
    ------
    ValueError
        If the functional has too little price noise for a series: the probability of next to none, besides the atoms,
        is above 1 %.
    """
    table = table if isinstance(table, Table) else Table(np.asarray(table, dtype=np.float64))
    mean, std = moments(problem, table, functional)
    atoms = _flat_paths(problem, table, functional, std)
    rest = _Rest(problem, table, functional, atoms)
    values, weights, mass = rest.values, rest.weights, rest.mass
    if mass <= NEGLIGIBLE:
        return PnlLaw(float(values[0]) - 1.0, float(values[-1]), np.zeros(1), mean, std, max(mass - 1e-14, 0.0), atoms)
    center = (mean - float(weights @ values)) / mass
    spread = ((std**2 + mean**2) - float(weights @ values**2)) / mass - center**2
    if not spread > 0.0:
        raise ValueError("the law of a constant has no density")
    characteristic_function(problem, table, functional, np.zeros(1))  # raises where the market has none
    low, high = _reach(problem, table, functional, atoms, center, float(np.sqrt(spread)))
    terms, cut = rest.series(high - low, rest.most_terms(high - low), std, progress)
    u = np.arange(len(terms)) * np.pi / (high - low)
    coefficients = 2.0 / (high - low) * (terms * np.exp(-1j * u * low)).real
    coefficients[0] *= 0.5
    law = PnlLaw(low, high, coefficients, mean, std, 2.0 * cut, atoms)
    if law.truncation <= EXACT:
        return law
    law = replace(law, smoothed=True)
    x = np.linspace(low, high, 1001)
    errors = [float(np.abs(law.probability(x) - other.probability(x)).max()) for other in law._shorter()]
    return replace(law, truncation=CAUTION * max(errors))
