"""Frozen-control problems: the one-step law of a market, and everything exact that is written once on top of it.

A step freezes the agent's controls; what the market does inside it is a Markov chain on finitely many states, plus
price noise. A market provides a `FrozenProblem`: expectations over one step for a list of (state, control) pairs, the
law after a step, and the best controls of every state. On it stand, once for all markets: the optimum (`solve`), the
exact evaluation of any policy of the observation (`evaluate`), laws (`state_laws`, `distribution_function`), tables of
policies (`tabulate`) and one-step advantages.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.arguments import check_memory
from mmgym.baselines.policy import Policy, checked_actions

__all__ = [
    "PNL",
    "FrozenProblem",
    "Functional",
    "PnlLaw",
    "Solution",
    "Table",
    "advantages",
    "characteristic_function",
    "check_tables",
    "criterion_value",
    "evaluate",
    "moments",
    "pnl_law",
    "policy_gradient",
    "require_probabilities",
    "solve",
    "state_laws",
    "tabulate",
    "tabulate_distribution",
    "visits",
]

Array = NDArray[Any]


class Functional(NamedTuple):
    """A weighted sum of what an episode accumulates, and which expectation of it is wanted.

    ``gain`` weighs the marked-to-market gain without its price noise, ``price`` the price noise (with the jumps of the
    mid only if ``jumps``), ``penalty`` the (negative) running and terminal penalties, ``fills`` the number of limit
    orders filled, ``orders`` the number of market orders, ``absolute_inventory`` the time integral of absolute
    inventory.

    ``exponents`` None: the expectation (``moments`` 1: one column) or it and the second moment (``moments`` 2: two
    columns). Otherwise ``E[exp(z R)]``, one column per exponent ``z``; complex ones give the law of ``R``.
    """

    gain: float = 0.0
    price: float = 0.0
    penalty: float = 0.0
    fills: float = 0.0
    orders: float = 0.0
    absolute_inventory: float = 0.0
    jumps: bool = True
    moments: int = 1
    exponents: Array | None = None

    @property
    def columns(self) -> int:
        """Number of columns of the values."""
        return self.moments if self.exponents is None else len(self.exponents)


class FrozenProblem(Protocol):
    """The exact one-step law of a market with finitely many states: one class per market.

    ``S`` states, ``C`` controls in model units, ``K`` columns of values, ``M`` (state, control) pairs.
    """

    num_steps: int
    num_states: int
    num_controls: int
    tolerance: float  # error of a value; 0.0 where it is exact to rounding
    has_market_orders: bool
    initial: Array  # (S,) law of the state at step 0
    criterion: Functional  # what is maximised (or, with an exponent, minimised)
    coordinates: Mapping[str, Array]  # name -> (S,), in model units: what the states are

    def observations(self, n: int) -> Array:
        """Observations (S, obs) of the states at step n, float32, bit for bit those of the environment."""

    def locate(self, observations: Array) -> tuple[Array, Array]:
        """Step and state index of each observation."""

    def controls(self, actions: Array) -> Array:
        """Controls in model units that actions stand for, float64."""

    def actions(self, controls: Array) -> Array:
        """Actions that stand for controls, nearest in the action space."""

    def terminal(self, functional: Functional) -> Array:
        """Values (S, K) at the end of the episode."""

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        """Values (M, K) at step n of states (M,) under controls (M, C), from the values (S, K) of step n + 1."""

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        """The part of `backward` that comes from paths without inventory all through the step: no price noise there.

        For exponential functionals. A lower bound of it is allowed, 0 too: it makes the law of the P&L less exact.
        """

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """Law (S,) at step n + 1 from the law at step n and the controls (S, C) of each state."""

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        """Best controls (S, C) and their values (S, 1) for the criterion, from the values (S, 1) of step n + 1.

        A search may start from the ``guess`` (S, C). Continuous controls are those of `mmgym.baselines.maximise`.
        """

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        """Values (M, 1) of `backward` for the criterion, and their derivatives (M, C) in the controls.

        Raises
        ------
        TypeError
            If the controls are not continuous.
        """

    def to_value(self, values: Array, log_scale: Any) -> Array:
        """The criterion in model units (a certainty equivalent under CARA), from the values of its functional."""

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        """Logarithm of the factor of an exponential criterion that rows have earned so far, from their full `info`.

        The Brownian part of the price is integrated out. Only for criteria with an exponent.
        """

    def binding(self, controls: Array) -> Array:
        """Where continuous controls lie on the bounds of the action space: bool, shape of ``controls``."""


def check_tables(steps: int, states: int, controls: int, lower: str) -> None:
    """Refuse a problem whose solution and policy would not fit into this machine, before memory is asked for.

    Parameters
    ----------
    steps, states, controls : int
        Sizes of the tables.
    lower : str
        The arguments that they depend on.

    Raises
    ------
    MemoryError
        If they would not.
    """
    size = float(steps) * states * (20 * controls + 16)  # controls twice and as actions, values twice
    check_memory(size, f"tables of {steps:,} steps x {states:,} states x {controls} controls", lower)


@dataclass(frozen=True)
class Table:
    """A policy as a table: controls (N, S, C), or (N, S, M, C) with weights (N, S, M) for a stochastic one."""

    controls: Array
    weights: Array | None = None


@dataclass(frozen=True)
class Solution:
    """The optimum of a frozen-control problem.

    Attributes
    ----------
    controls : (N, S, C)
        Best controls in model units.
    values : (N + 1, S)
        The criterion that can still be reached, in model units (a certainty equivalent under CARA).
    raw, log_scale : (N + 1, S), (N + 1,)
        The same as the criterion's functional has it, ``raw * exp(log_scale)``.
    """

    controls: Array
    values: Array
    raw: Array
    log_scale: Array


def _rescaled(values: Array, functional: Functional) -> tuple[Array, float]:
    """Exponential functionals are homogeneous: keep them in range, and the logarithm of the factor."""
    if functional.exponents is None:
        return values, 0.0
    size = float(np.abs(values).max())
    if not np.iscomplexobj(values) and not (size < np.inf and values.min() > 1e-300 * size):
        raise ValueError(
            "the exponential criterion leaves the range of floating point: risk_aversion is too large for what the "
            "inventories of this market can lose; lower risk_aversion or inventory_limit"
        )
    return values / size, float(np.log(size))


def _ticks(steps: int, progress: Callable[[int], object] | None) -> Iterator[int]:
    for n in reversed(range(steps)):
        yield n
        if progress is not None:
            progress(1)


def solve(problem: FrozenProblem) -> Solution:
    """Dynamic programming on the one-step law: the optimum over all policies, of any information.

    On a terminal a solution that takes long shows its progress.

    Raises
    ------
    ArithmeticError
        If the best controls of a cell are not found.
    """
    steps, states = problem.num_steps, problem.num_states
    controls = np.empty((steps, states, problem.num_controls))
    raw, log_scale = np.empty((steps + 1, states)), np.zeros(steps + 1)
    values, log_scale[steps] = _rescaled(problem.terminal(problem.criterion), problem.criterion)
    raw[steps] = values[:, 0]
    for n in tqdm(reversed(range(steps)), "optimum", steps, delay=2.0, unit="step", disable=None):
        guess = None  # the controls of the two steps after, continued
        if n + 2 < steps:
            guess = 2.0 * controls[n + 1] - controls[n + 2]
        controls[n], values = problem.improve(n, values, guess)
        values, scale = _rescaled(values, problem.criterion)
        log_scale[n] = log_scale[n + 1] + scale
        raw[n] = values[:, 0]
    return Solution(controls, problem.to_value(raw, log_scale[:, None]), raw, log_scale)


def _backward_step(
    problem: FrozenProblem, n: int, table: Table, values: Array, functional: Functional, inventory: bool = True
) -> Array:
    """A step of `evaluate`; without ``inventory``, of the paths that have none all through it."""
    backward = problem.backward if inventory else problem.backward_without_inventory
    states = np.arange(problem.num_states)
    controls = table.controls[n]
    if table.weights is None:
        return backward(n, states, controls, values, functional)
    nodes = controls.shape[1]
    flat = backward(n, np.repeat(states, nodes), controls.reshape(-1, controls.shape[-1]), values, functional)
    mixed: Array = np.einsum("smk,sm->sk", flat.reshape(len(states), nodes, -1), table.weights[n])
    return mixed


def evaluate(
    problem: FrozenProblem,
    table: Table | Array,
    functional: Functional | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Array, Array]:
    """Exact expectation of a functional under a policy table.

    Parameters
    ----------
    problem : FrozenProblem
    table : Table or array (N, S, C)
        Controls in model units, float64: nothing is rounded to actions.
    functional : Functional, optional
        The problem's criterion by default.
    progress : function, optional
        Called with 1 after each step.

    Returns
    -------
    values, log_scale : (N + 1, S, K), (N + 1,)
        The expectation of what remains from (step, state) is ``values * exp(log_scale)``.
    """
    table = table if isinstance(table, Table) else Table(np.asarray(table, dtype=np.float64))
    functional = problem.criterion if functional is None else functional
    last = problem.terminal(functional)
    values = np.empty((problem.num_steps + 1, *last.shape), dtype=last.dtype)
    log_scale = np.zeros(problem.num_steps + 1)
    values[-1], log_scale[-1] = _rescaled(last, functional)
    for n in _ticks(problem.num_steps, progress):
        step = _backward_step(problem, n, table, values[n + 1], functional)
        values[n], scale = _rescaled(step, functional)
        log_scale[n] = log_scale[n + 1] + scale
    return values, log_scale


def criterion_value(problem: FrozenProblem, table: Table | Array) -> float:
    """The criterion of a policy table from the initial law, in model units."""
    values, log_scale = evaluate(problem, table)
    return float(problem.to_value(problem.initial @ values[0, :, 0], log_scale[0]))


def _adjoint(problem: FrozenProblem, n: int, controls: Array, law: Array) -> Array:
    """The measure (S,) on states at step n + 1 that ``law`` at step n puts on the criterion's values there."""
    exponents = problem.criterion.exponents
    if exponents is None:
        return problem.forward(n, controls, law)
    states = np.arange(problem.num_states)
    columns = problem.criterion._replace(exponents=np.repeat(exponents, problem.num_states))
    return np.asarray(law @ problem.backward(n, states, controls, np.eye(problem.num_states), columns))


def policy_gradient(problem: FrozenProblem, controls: Array) -> tuple[float, Array]:
    """The criterion of a policy table from the initial law, and its derivatives in every control.

    By the policy-gradient theorem the derivative in the controls of (step, state) is the probability of being there
    times the derivative of the one-step value: one backward recursion and one forward law. (Under CARA the probability
    is weighted by the factor of the criterion earned before.)

    Parameters
    ----------
    problem : FrozenProblem
    controls : (N, S, C)
        In model units, float64.

    Returns
    -------
    value, derivatives : float, (N, S, C)
        In model units.

    Raises
    ------
    TypeError
        If the controls of the market are not continuous.
    """
    states = np.arange(problem.num_states)
    raw, log_scale = np.empty((problem.num_steps + 1, problem.num_states)), np.zeros(problem.num_steps + 1)
    derivatives = np.empty_like(controls)
    values, log_scale[-1] = _rescaled(problem.terminal(problem.criterion), problem.criterion)
    for n in _ticks(problem.num_steps, None):
        values, derivatives[n] = problem.gradient(n, states, controls[n], values)
        values, scale = _rescaled(values, problem.criterion)
        raw[n], log_scale[n] = values[:, 0], log_scale[n + 1] + scale
    derivatives *= _visits(problem, controls, raw, log_scale)[..., None]
    return float(problem.to_value(problem.initial @ raw[0], log_scale[0])), derivatives


def visits(problem: FrozenProblem, controls: Array) -> tuple[float, Array, Array]:
    """The criterion of a policy table from the initial law, its values, and what a cell counts in it.

    Returns
    -------
    value, raw, weights : float, (N + 1, S), (N, S)
        ``raw`` as in `Solution`. The derivative of the criterion in the controls of (n, s) is ``weights[n, s]`` times
        that of `FrozenProblem.gradient` at the values ``raw[n + 1]``.
    """
    values, log_scale = evaluate(problem, controls)
    raw = values[..., 0]
    value = float(problem.to_value(problem.initial @ raw[0], log_scale[0]))
    return value, raw, _visits(problem, controls, raw, log_scale)


def _visits(problem: FrozenProblem, controls: Array, raw: Array, log_scale: Array) -> Array:
    exponents, law = problem.criterion.exponents, problem.initial
    weights = np.empty((problem.num_steps, problem.num_states))
    for n in range(problem.num_steps):
        if exponents is not None:  # the certainty equivalent is -log(raw) / risk aversion; law @ raw stays 1
            law = law / (law @ raw[n])
        factor = 1.0 if exponents is None else float(np.exp(log_scale[n + 1] - log_scale[n]) / exponents[0])
        weights[n] = law * factor
        law = _adjoint(problem, n, controls[n], law)
    return weights


def moments(
    problem: FrozenProblem,
    table: Table | Array,
    functional: Functional,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of a functional from the initial law; ``progress`` is called after each step."""
    values, _ = evaluate(problem, table, functional._replace(moments=2, exponents=None), progress)
    first, second = problem.initial @ values[0]
    return float(first), float(np.sqrt(max(second - first**2, 0.0)))


def state_laws(problem: FrozenProblem, table: Table | Array) -> Array:
    """Law of the state at every step, shape (N + 1, S)."""
    table = table if isinstance(table, Table) else Table(np.asarray(table, dtype=np.float64))
    laws = np.empty((problem.num_steps + 1, problem.num_states))
    laws[0] = problem.initial
    for n in range(problem.num_steps):
        if table.weights is None:
            laws[n + 1] = problem.forward(n, table.controls[n], laws[n])
        else:
            laws[n + 1] = sum(
                problem.forward(n, table.controls[n, :, m], laws[n] * table.weights[n, :, m])
                for m in range(table.weights.shape[2])
            )
    return laws


def characteristic_function(problem: FrozenProblem, table: Table | Array, functional: Functional, u: Array) -> Array:
    """``E[exp(i u R)]`` of a functional from the initial law, for arguments ``u`` (1 / unit of the functional)."""
    values, log_scale = evaluate(problem, table, functional._replace(exponents=1j * np.asarray(u, dtype=np.float64)))
    return np.asarray(problem.initial @ values[0] * np.exp(log_scale[0]))


PNL = Functional(gain=1.0, price=1.0)  # W_T - W_0


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

    def quantile(self, probability: float) -> float:
        """The least ``x`` with ``P(R <= x) >= probability``."""
        from scipy.optimize import brentq

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
        return float(brentq(excess, low, self.high, xtol=1e-13 * (self.high - self.low)))

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
    for n in _ticks(problem.num_steps, None):
        values = _backward_step(problem, n, table, values, weighted, inventory=False)
    found: dict[float, float] = {}
    for chance, (mass, once, twice) in zip(problem.initial, values, strict=True):
        if chance > 0.0 and mass > 1e-300:
            value, other = np.log(once / mass) / tilt, np.log(twice / mass) / (2.0 * tilt)
            if abs(value - other) <= 1e-9 * (abs(value) + 1.0 / tilt):
                found[float(value)] = found.get(float(value), 0.0) + float(chance * mass)
    return np.array(sorted(found.items())).reshape(-1, 2)


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
    where the law is nearly that of a lattice. ``progress`` is called with the number of terms found since the last
    call.

    Raises
    ------
    ValueError
        If the functional has too little price noise for a series: the probability of next to none, besides the atoms,
        is above 1 %.
    """
    table = table if isinstance(table, Table) else Table(np.asarray(table, dtype=np.float64))
    mean, std = moments(problem, table, functional)
    atoms = _flat_paths(problem, table, functional, std)
    values, weights = atoms.T
    mass = 1.0 - float(weights.sum())
    if mass <= NEGLIGIBLE:
        return PnlLaw(float(values[0]) - 1.0, float(values[-1]), np.zeros(1), mean, std, max(mass - 1e-14, 0.0), atoms)
    center = (mean - float(weights @ values)) / mass
    spread = ((std**2 + mean**2) - float(weights @ values**2)) / mass - center**2
    if not spread > 0.0:
        raise ValueError("the law of a constant has no density")
    characteristic_function(problem, table, functional, np.zeros(1))  # raises where the market has none
    low, high = _reach(problem, table, functional, atoms, center, float(np.sqrt(spread)))
    noise = Functional(price=functional.price, jumps=False)

    def rest(u: Array) -> Array:
        found = characteristic_function(problem, table, functional, u)
        return np.asarray(found - np.exp(1j * np.multiply.outer(u, values)) @ weights)

    def bound(u: float) -> float:
        """Of the modulus of `rest` from ``u`` on; infinity where it leaves the range of floating point."""
        try:
            with np.errstate(all="ignore"):
                found = float(abs(characteristic_function(problem, table, noise, np.array([u]))[0])) - 1.0 + mass
        except ArithmeticError:  # more terms than can be summed
            return np.inf
        return max(found, 0.0) if found > -NEGLIGIBLE else np.inf

    most = MOST_TERMS
    while (least := bound(most * np.pi / (high - low))) == np.inf and most > 32:
        most //= 2
    if least > MEANINGLESS:
        raise ValueError(
            f"the law of the P&L has too little price noise for a density: with the probability {least:.2g} there is "
            "next to none, and the law is nearly discrete"
        )
    found = np.empty(0, dtype=complex)
    cut = 1.0
    while len(found) < most and cut > NEGLIGIBLE:
        u = np.arange(len(found), len(found) + 32) * np.pi / (high - low)
        for part in np.split(u, 8):
            found = np.concatenate([found, rest(part)])
            if progress is not None:
                progress(len(part))
        cut = float(np.abs(found[-8:]).max())
        if cut <= NEGLIGIBLE:
            cut = max(cut, _beyond(rest, bound, float(u[-1]), std))
    u = np.arange(len(found)) * np.pi / (high - low)
    coefficients = 2.0 / (high - low) * (found * np.exp(-1j * u * low)).real
    coefficients[0] *= 0.5
    law = PnlLaw(low, high, coefficients, mean, std, 2.0 * cut, atoms)
    if law.truncation <= EXACT:
        return law
    law = replace(law, smoothed=True)
    x = np.linspace(low, high, 1001)
    errors = [float(np.abs(law.probability(x) - other.probability(x)).max()) for other in law._shorter()]
    return replace(law, truncation=CAUTION * max(errors))


def _beyond(rest: Callable[[Array], Array], bound: Callable[[float], float], u: float, std: float) -> float:
    """About the largest modulus of a characteristic function beyond ``u``: its `bound`, and probes before it holds."""
    end, last = u, u + MOST_PROBES / std
    while (limit := bound(end)) > 1e-2 * EXACT and end < last:
        end = min(1.25 * end, last)
    probes = np.arange(u, end, 1.0 / std)
    parts = [part for part in np.array_split(probes, 8) if len(part)]
    return max([limit, *(float(np.abs(rest(part)).max()) for part in parts)])


def _all_observations(problem: FrozenProblem) -> Array:
    return np.stack([problem.observations(n) for n in range(problem.num_steps)])


def tabulate(problem: FrozenProblem, policy: Policy, *, deterministic: bool = True, chunk: int = 262_144) -> Table:
    """The table that a policy of the observation plays, at its mode or as one draw of its actions.

    Raises
    ------
    ValueError
        If its actions have another shape than those of a batch, or are not finite.
    """
    observations = _all_observations(problem)
    flat = observations.reshape(-1, observations.shape[-1])
    shape = problem.actions(np.zeros((1, problem.num_controls))).shape[1:]
    parts = []
    for i in range(0, len(flat), chunk):
        part = flat[i : i + chunk]
        parts.append(checked_actions(policy, policy.predict(part, deterministic=deterministic)[0], len(part), shape))
    actions = np.concatenate(parts)
    if actions.dtype.kind == "f":
        actions = actions.astype(np.float32)  # as the environment takes them
    controls = problem.controls(actions)
    return Table(controls.reshape(*observations.shape[:2], problem.num_controls))


def require_probabilities(weights: Any) -> None:
    """Refuse weights (..., M) that are not probabilities: >= 0, with the sum 1 over the last axis.

    Raises
    ------
    ValueError
        The message has the worst of them.
    """
    total = np.asarray(weights).sum(axis=-1)
    if not (np.asarray(weights) >= 0.0).all() or not (np.abs(total - 1.0) <= 1e-6).all():
        worst = total.flat[int(np.argmax(np.abs(total - 1.0)))] if total.size else 0.0
        raise ValueError(
            f"weights of a policy as it acts are not allowed: in each state they must be >= 0 and sum to 1, but the "
            f"least is {np.min(weights, initial=np.inf):g}, and a sum is {worst:g}"
        )


def tabulate_distribution(problem: FrozenProblem, policy: Policy, chunk: int = 32_768) -> Table:
    """The table of a stochastic policy as it acts, from its `distribution`: quadrature nodes and weights."""
    observations = _all_observations(problem)
    flat = observations.reshape(-1, observations.shape[-1])
    actions, weights = [], []
    for i in range(0, len(flat), chunk):
        nodes, mass = policy.distribution(flat[i : i + chunk])  # type: ignore[attr-defined]
        if not np.isfinite(nodes).all():
            raise ValueError(f"the distribution of {type(policy).__name__} has nodes that are not finite")
        require_probabilities(mass)
        actions.append(problem.controls(nodes))
        weights.append(mass)
    controls, masses = np.concatenate(actions), np.concatenate(weights)
    return Table(
        controls.reshape(*observations.shape[:2], -1, problem.num_controls), masses.reshape(*observations.shape[:2], -1)
    )


def advantages(problem: FrozenProblem, solution: Solution, n: int, states: Array, controls: Array) -> Array:
    """``Q*_n(s, a)`` of (state, control) pairs, shape (M,), in the scale of ``solution.raw[n]``."""
    pairs, inverse = np.unique(np.column_stack([states, controls]), axis=0, return_inverse=True)  # mostly few
    cells = pairs[:, 0].astype(np.int64)
    raw = problem.backward(n, cells, pairs[:, 1:], solution.raw[n + 1][:, None], problem.criterion)[:, 0]
    return np.asarray(raw[inverse.ravel()] * np.exp(solution.log_scale[n + 1] - solution.log_scale[n]))
