"""Frozen-control problems: the one-step law of a market, and everything exact that is written once on top of it.

A step freezes the agent's controls; what the market does inside it is a Markov chain on finitely many states, plus
price noise. A market provides a `FrozenProblem`: expectations over one step for a list of (state, control) pairs, the
law after a step, and the best controls of every state. On it stand, once for all markets: the optimum (`solve`), the
exact evaluation of any policy of the observation (`evaluate`), laws (`state_laws`, `distribution_function`), tables of
policies (`tabulate`) and one-step advantages.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from baselines.policy import Policy
from mmgym.arguments import check_memory

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
    "frozen_problem",
    "moments",
    "pnl_law",
    "policy_gradient",
    "solve",
    "state_laws",
    "tabulate",
    "tabulate_distribution",
    "visits",
]

Array = NDArray[Any]


class Functional(NamedTuple):
    """A weighted sum of what an episode accumulates, and which expectation of it is wanted.

    ``gain`` weighs the marked-to-market gain without its Brownian part, ``price`` the Brownian part, ``penalty`` the
    (negative) running and terminal penalties, ``fills`` the number of limit orders filled, ``orders`` the number of
    market orders, ``absolute_inventory`` the time integral of absolute inventory.

    ``exponents`` None: the expectation (``moments`` 1: one column) or it and the second moment (``moments`` 2: two
    columns). Otherwise ``E[exp(z R)]``, one column per exponent ``z``; complex ones give the law of ``R``.
    """

    gain: float = 0.0
    price: float = 0.0
    penalty: float = 0.0
    fills: float = 0.0
    orders: float = 0.0
    absolute_inventory: float = 0.0
    moments: int = 1
    exponents: Array | None = None

    @property
    def columns(self) -> int:
        """Number of columns of the values."""
        return self.moments if self.exponents is None else len(self.exponents)


class FrozenProblem(Protocol):
    """The exact one-step law of a market: one class per market, found by `frozen_problem` on its parameters.

    ``S`` states, ``C`` controls in model units, ``K`` columns of values, ``M`` (state, control) pairs.
    """

    num_steps: int
    num_states: int
    num_controls: int
    tolerance: float  # error of a value; 0.0 where it is exact to rounding
    level: str  # "exact", "certified" or "bracketed"
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

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """Law (S,) at step n + 1 from the law at step n and the controls (S, C) of each state."""

    def improve(self, n: int, values: Array) -> tuple[Array, Array]:
        """Best controls (S, C) and their values (S, 1) for the criterion, from the values (S, 1) of step n + 1."""

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
        """Where controls lie on the bounds of the action space: bool, shape of ``controls``."""


@singledispatch
def frozen_problem(params: Any) -> FrozenProblem:
    """The frozen-control problem of a market's parameters.

    Raises
    ------
    TypeError
        If the market has none.
    """
    raise TypeError(f"no baseline is known for parameters of type {type(params).__name__}")


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


def _ticks(steps: int, progress: Callable[[int], None] | None) -> Iterator[int]:
    for n in reversed(range(steps)):
        yield n
        if progress is not None:
            progress(1)


def solve(problem: FrozenProblem, progress: Callable[[int], None] | None = None) -> Solution:
    """Dynamic programming on the one-step law: the optimum over all policies, of any information."""
    steps, states = problem.num_steps, problem.num_states
    controls = np.empty((steps, states, problem.num_controls))
    raw, log_scale = np.empty((steps + 1, states)), np.zeros(steps + 1)
    values, log_scale[steps] = _rescaled(problem.terminal(problem.criterion), problem.criterion)
    raw[steps] = values[:, 0]
    for n in _ticks(steps, progress):
        controls[n], values = problem.improve(n, values)
        values, scale = _rescaled(values, problem.criterion)
        log_scale[n] = log_scale[n + 1] + scale
        raw[n] = values[:, 0]
    return Solution(controls, problem.to_value(raw, log_scale[:, None]), raw, log_scale)


def _backward_step(problem: FrozenProblem, n: int, table: Table, values: Array, functional: Functional) -> Array:
    states = np.arange(problem.num_states)
    controls = table.controls[n]
    if table.weights is None:
        return problem.backward(n, states, controls, values, functional)
    nodes = controls.shape[1]
    flat = problem.backward(n, np.repeat(states, nodes), controls.reshape(-1, controls.shape[-1]), values, functional)
    mixed: Array = np.einsum("smk,sm->sk", flat.reshape(len(states), nodes, -1), table.weights[n])
    return mixed


def evaluate(problem: FrozenProblem, table: Table | Array, functional: Functional | None = None) -> tuple[Array, Array]:
    """Exact expectation of a functional under a policy table.

    Parameters
    ----------
    problem : FrozenProblem
    table : Table or array (N, S, C)
        Controls in model units, float64: nothing is rounded to actions.
    functional : Functional, optional
        The problem's criterion by default.

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
    for n in _ticks(problem.num_steps, None):
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


def moments(problem: FrozenProblem, table: Table | Array, functional: Functional) -> tuple[float, float]:
    """Mean and standard deviation of a functional from the initial law."""
    values, _ = evaluate(problem, table, functional._replace(moments=2, exponents=None))
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


@dataclass(frozen=True)
class PnlLaw:
    """The law of a functional, as its cosine series on ``[low, high]`` (Fang & Oosterlee 2008).

    ``truncation`` is the largest modulus of the characteristic function where the series was cut: about the error of a
    probability. It is rounding error unless the law is nearly discrete (few fills).
    """

    low: float
    high: float
    coefficients: Array  # (terms,)
    mean: float
    std: float
    truncation: float

    def _frequencies(self) -> Array:
        return np.arange(len(self.coefficients)) * np.pi / (self.high - self.low)

    def density(self, x: Any) -> Array:
        """Density at ``x`` (1 / currency)."""
        angle = np.multiply.outer(np.asarray(x, dtype=float) - self.low, self._frequencies())
        return np.asarray(np.cos(angle) @ self.coefficients)

    def probability(self, x: Any) -> Array:
        """``P(R <= x)``."""
        shifted, u = np.asarray(x, dtype=float) - self.low, self._frequencies()
        waves = np.sin(np.multiply.outer(shifted, u[1:])) / u[1:]
        return np.asarray(shifted * self.coefficients[0] + waves @ self.coefficients[1:])

    def quantile(self, probability: float) -> float:
        """``x`` with ``P(R <= x) = probability``."""
        from scipy.optimize import brentq

        return float(brentq(lambda x: float(self.probability(x)) - probability, self.low, self.high, xtol=1e-11))

    def value_at_risk(self, confidence: float) -> float:
        """Loss that is not exceeded with this confidence (negative: a profit)."""
        return -self.quantile(1.0 - confidence)

    def expected_shortfall(self, confidence: float) -> float:
        """CVaR: expected loss beyond the value at risk."""
        x = self.quantile(1.0 - confidence)
        shifted, u = x - self.low, self._frequencies()[1:]
        # int_low^x y f(y) dy = x F(x) - int_low^x F
        waves = (1.0 - np.cos(shifted * u)) / u**2
        integral = 0.5 * shifted**2 * self.coefficients[0] + waves @ self.coefficients[1:]
        return -(x * (1.0 - confidence) - float(integral)) / (1.0 - confidence)


def pnl_law(
    problem: FrozenProblem,
    table: Table | Array,
    functional: Functional = PNL,
    width: float = 12.0,
    progress: Callable[[int], object] | None = None,
) -> PnlLaw:
    """Law of the final P&L (or of another functional with price noise) from its characteristic function.

    The series stands on the mean plus or minus ``width`` standard deviations and has as many terms as it takes for the
    characteristic function to fall below 1e-12, but 512 at most. ``progress`` is called with the number of terms that
    have been found since the last call.

    Raises
    ------
    ValueError
        If the functional is constant, or so nearly discrete that probabilities would be wrong by more than 1 %.
    """
    mean, std = moments(problem, table, functional)
    if not std > 0.0:
        raise ValueError("the law of a constant has no density")
    low, high = mean - width * std, mean + width * std
    found = np.empty(0, dtype=complex)
    truncation = 1.0
    while len(found) < 512 and truncation > 1e-12:
        u = np.arange(len(found), len(found) + 32) * np.pi / (high - low)
        for part in np.split(u, 8):
            found = np.concatenate([found, characteristic_function(problem, table, functional, part)])
            if progress is not None:
                progress(len(part))
        truncation = float(np.abs(found[-8:]).max())
    if truncation > 1e-2:
        raise ValueError("the characteristic function does not vanish: the law is too nearly discrete for a density")
    u = np.arange(len(found)) * np.pi / (high - low)
    coefficients = 2.0 / (high - low) * (found * np.exp(-1j * u * low)).real
    coefficients[0] *= 0.5
    return PnlLaw(low, high, coefficients, mean, std, truncation)


def _all_observations(problem: FrozenProblem) -> Array:
    return np.stack([problem.observations(n) for n in range(problem.num_steps)])


def tabulate(problem: FrozenProblem, policy: Policy, *, deterministic: bool = True, chunk: int = 262_144) -> Table:
    """The table that a policy of the observation plays, at its mode or as one draw of its actions."""
    observations = _all_observations(problem)
    flat = observations.reshape(-1, observations.shape[-1])
    parts = [
        np.asarray(policy.predict(flat[i : i + chunk], deterministic=deterministic)[0])
        for i in range(0, len(flat), chunk)
    ]
    actions = np.concatenate(parts)
    if actions.dtype.kind == "f":
        actions = actions.astype(np.float32)  # as the environment takes them
    controls = problem.controls(actions)
    return Table(controls.reshape(*observations.shape[:2], problem.num_controls))


def tabulate_distribution(problem: FrozenProblem, policy: Policy, chunk: int = 32_768) -> Table:
    """The table of a stochastic policy as it acts, from its `distribution`: quadrature nodes and weights."""
    observations = _all_observations(problem)
    flat = observations.reshape(-1, observations.shape[-1])
    actions, weights = [], []
    for i in range(0, len(flat), chunk):
        nodes, mass = policy.distribution(flat[i : i + chunk])  # type: ignore[attr-defined]
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
