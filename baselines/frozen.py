"""Frozen-control problems: the one-step law of a market, and everything exact that is written once on top of it.

A step freezes the agent's controls; what the market does inside it is a Markov chain on finitely many states, plus
price noise. A market provides a `FrozenProblem`: expectations over one step for a list of (state, control) pairs, the
law after a step, and the best controls of every state. On it stand, once for all markets: the optimum (`solve`), the
exact evaluation of any policy of the observation (`evaluate`), laws (`state_laws`, `distribution_function`), tables of
policies (`tabulate`) and one-step advantages.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.arguments import check_memory
from mmgym.baselines.policy import Policy, checked_actions, title

__all__ = [
    "PNL",
    "ActionValues",
    "FrozenProblem",
    "Functional",
    "Solution",
    "Table",
    "TogetherProblem",
    "advantages",
    "backward_step",
    "certainty_equivalent",
    "characteristic_function",
    "check_tables",
    "columns_of",
    "criterion_value",
    "deviation",
    "evaluate",
    "moments",
    "require_probabilities",
    "solve",
    "state_laws",
    "tabulate",
    "tabulate_distribution",
    "terminal_values",
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


def columns_of(functionals: tuple[Functional, ...]) -> list[list[int]]:
    """Where the columns of each sum are among those of several: first moments of all, then the second moments.

    Of one functional with exponents they are all columns.

    Raises
    ------
    ValueError
        If sums with second moments do not come before the others.
    """
    if functionals[0].exponents is not None:
        return [list(range(functionals[0].columns))]
    second = sum(functional.moments == 2 for functional in functionals)
    if any(functional.moments == 1 for functional in functionals[:second]):
        raise ValueError("sums with second moments must come before those without")
    return [[i, len(functionals) + i][: functional.moments] for i, functional in enumerate(functionals)]


class ActionValues(NamedTuple):
    """What every action is worth in every state at one step.

    Attributes
    ----------
    last : (S, E)
        Values of all entries of the last component of an action, each with the best of the others. An entry that is not
        allowed has the value of the nearest one that is, which is what is played.
    others : callable
        From states (M,) and entries (M,) of the last component to the values (M, J) of all combinations of the others.
    """

    last: Array
    others: Callable[[Array, Array], Array]


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

    @property
    def action_values(self) -> Callable[[int, Array], ActionValues] | None:
        """What every action is worth in every state at a step, from the values (S, 1) of the next one.

        None where actions are not discrete.
        """

    def to_value(self, values: Array, log_scale: Any) -> Array:
        """The criterion in model units (a certainty equivalent under CARA), from the values of its functional."""

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        """Logarithm of the factor of an exponential criterion that rows have earned so far, from their full `info`.

        The Brownian part of the price is integrated out. Only for criteria with an exponent.
        """

    def binding(self, controls: Array) -> Array:
        """Where continuous controls lie on the bounds of the action space: bool, shape of ``controls``."""


class TogetherProblem(FrozenProblem, Protocol):
    """A problem that knows one-step expectations of several sums at once."""

    def backward_together(
        self, n: int, states: Array, controls: Array, values: Array, functionals: tuple[Functional, ...]
    ) -> Array:
        """`backward` of several sums; the columns of values are those of `columns_of`."""


def terminal_values(reward: Array, functional: Functional) -> Array:
    """Values (S, K) at the end of the episode, where all that is left is a reward (S,) of each state."""
    if functional.exponents is not None:
        return np.asarray(np.exp(np.multiply.outer(reward, functional.exponents)))
    return np.stack([reward**power for power in range(1, functional.moments + 1)], axis=1)


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


def backward_step(backward: Callable[..., Array], n: int, table: Table, values: Array, functional: Any) -> Array:
    """A step of `evaluate`, by a problem's `FrozenProblem.backward` or another method of its arguments."""
    states = np.arange(len(values))
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
        step = backward_step(problem.backward, n, table, values[n + 1], functional)
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


def visits(problem: FrozenProblem, controls: Array) -> tuple[float, Array, Array]:
    """The criterion of a policy table from the initial law, its values, and what a cell counts in it.

    By the policy-gradient theorem that is the probability of being there; under CARA it is weighted by the factor of
    the criterion earned before.

    Returns
    -------
    value, raw, weights : float, (N + 1, S), (N, S)
        ``raw`` as in `Solution`. The derivative of the criterion in the controls of (n, s) is ``weights[n, s]`` times
        that of `FrozenProblem.gradient` at the values ``raw[n + 1]``.
    """
    values, log_scale = evaluate(problem, controls)
    raw, law, exponents = values[..., 0], problem.initial, problem.criterion.exponents
    value = float(problem.to_value(law @ raw[0], log_scale[0]))
    weights = np.empty((problem.num_steps, problem.num_states))
    for n in range(problem.num_steps):
        if exponents is not None:  # the certainty equivalent is -log(raw) / risk aversion; law @ raw stays 1
            law = law / (law @ raw[n])
        factor = 1.0 if exponents is None else float(np.exp(log_scale[n + 1] - log_scale[n]) / exponents[0])
        weights[n] = law * factor
        law = _adjoint(problem, n, controls[n], law)
    return value, raw, weights


def moments(
    problem: FrozenProblem,
    table: Table | Array,
    functional: Functional,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of a functional from the initial law; ``progress`` is called after each step."""
    values, _ = evaluate(problem, table, functional._replace(moments=2, exponents=None), progress)
    first, second = problem.initial @ values[0]
    return float(first), deviation(first, second)


def deviation(first: float, second: float) -> float:
    """Standard deviation from the first and second moment."""
    return math.sqrt(max(second - first**2, 0.0))


def certainty_equivalent(
    problem: FrozenProblem, table: Table | Array, functional: Functional, risk_aversion: float
) -> float:
    """``-ln E[exp(-gamma R)] / gamma`` of a functional from the initial law, for the risk aversion ``gamma``.

    Raises
    ------
    ValueError
        If ``risk_aversion`` is not positive.
    """
    if not 0.0 < risk_aversion < math.inf:
        raise ValueError(f"risk_aversion = {risk_aversion!r} is not allowed: it must be a finite number > 0")
    values, log_scale = evaluate(problem, table, functional._replace(exponents=np.array([-risk_aversion])))
    return -float(np.log(problem.initial @ values[0, :, 0]) + log_scale[0]) / risk_aversion


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


def _all_observations(problem: FrozenProblem) -> Array:
    return np.stack([problem.observations(n) for n in range(problem.num_steps)])


def tabulate(
    problem: FrozenProblem,
    policy: Policy,
    *,
    deterministic: bool = True,
    steps: Array | None = None,
    chunk: int = 262_144,
) -> Table:
    """The table that a policy of the observation plays, at its mode or as one draw of its actions.

    Of some of the steps (N,) if they are given.

    Raises
    ------
    ValueError
        If its actions have another shape than those of a batch, or are not finite.
    """
    observations = np.stack([problem.observations(n) for n in (range(problem.num_steps) if steps is None else steps)])
    flat = observations.reshape(-1, observations.shape[-1])
    shape = problem.actions(np.zeros((1, problem.num_controls))).shape[1:]
    parts = []
    for i in range(0, len(flat), chunk):
        part = flat[i : i + chunk]
        parts.append(checked_actions(policy, policy.predict(part, deterministic=deterministic)[0], part, shape))
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
    assert policy.distribution is not None
    actions, weights = [], []
    for i in range(0, len(flat), chunk):
        nodes, mass = policy.distribution(flat[i : i + chunk])
        if not np.isfinite(nodes).all():
            raise ValueError(f"the distribution of {title(policy)} has nodes that are not finite")
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
