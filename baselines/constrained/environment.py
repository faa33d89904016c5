"""Limits in an environment: schedules of the finite market as its policies, what they risk there, and policies of it.

`limit_risks` maximises the criterion over the quotes of every step and state, which do not see wealth or drawdown,
under limits on them (sequential quadratic programming: stationary points of the Lagrangian). A risk of the final P&L is
a sum over its characteristic function; for others the drawdown, or the loss so far, is carried on a grid, and what a
step does to it follows from the characteristic function of its gain. A quote changes a risk by the mass that reaches
its cell times what the step and the rest make of it: so the gradient is exact, of the risk smoothed by a normal error
that is small against the P&L. The smoothed limits are moved until the risks themselves, from the exact law or from
simulated episodes, keep to the limits.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mmgym.baselines.catalogue import TablePolicy, environment_of, problem_of, table_policy
from mmgym.baselines.constrained.model import OFF, Chain, Quotes, Schedule
from mmgym.baselines.constrained.problem import EnvironmentSettings
from mmgym.baselines.frozen import (
    PNL,
    FrozenProblem,
    Functional,
    Table,
    criterion_value,
    evaluate,
    moments,
    solve,
    state_laws,
)
from mmgym.baselines.pnl_law import EXACT, PnlLaw
from mmgym.baselines.risk import Estimate, path_risks, pnl_distribution, proportion_estimate, shortfall_estimate

__all__ = ["LimitedPolicy", "limit_risks", "limit_verdict", "limited_risks", "schedule_policy"]

Array = NDArray[Any]
SMOOTHING = 0.2  # standard deviation of the normal error of all steps, in those of the P&L
NODES = 1.5  # grid points in a standard deviation of that error
TERMS = 2.5  # standard deviations of its characteristic function that the transforms have
NUDGE = 1e-5  # of a depth, in lengths of the box, for the derivative of a risk
LARGEST = 10_000  # steps times squared states that `limit_risks` takes: a gradient takes seconds there
MOST_VARIABLES = 400  # of the quadratic programs: where there are more cells, quotes are moved by blocks of steps
LEAST_PROBABILITY = 1e-3  # a limit below is met to 2 % of this, and a CVaR within a tick to 2 % of a tick
PRECISION = 0.02  # of a limit that binds
MOST_ATTEMPTS = 8  # of moving the limits on smoothed risks
MOST_ITERATIONS = 15  # of each


def schedule_policy(schedule: Schedule, settings: EnvironmentSettings, chain: Chain) -> tuple[Any, Any]:
    """A schedule as a policy of an environment with quotes on both sides of a mid, and that environment.

    Ticks become depths. Cells that the finite market never reaches have the quotes of the nearest inventory of the step
    that it reaches. A side that is off at the inventory bound posts the quote of the inventory next to it, as it may
    become active within the step.

    Parameters
    ----------
    schedule : mapping
        Probabilities of quotes by step and inventory.
    settings : EnvironmentSettings
    chain : Chain
        Whose schedule it is.

    Returns
    -------
    env, policy
        A `TablePolicy`, or a `MixedTablePolicy` if the schedule draws its quotes.

    Raises
    ------
    ValueError
        If the environment does not quote a bid and an ask depth, or has other steps, inventories or another start
        than the chain.
    """
    env = environment_of(settings.id, **settings.arguments)
    if tuple(env.control_names) != ("bid_depth", "ask_depth") or set(problem_of(env).coordinates) != {"inventory"}:
        raise ValueError(
            f"environment.id = {settings.id!r} is not allowed: its controls must be a bid and an ask depth"
        )
    problem, steps, first = problem_of(env), chain.market.num_steps, chain.market.initial_inventory
    bound, states = (problem.num_states - 1) // 2, problem.num_states
    if problem.num_steps != steps or bound != chain.inventory_limit:
        raise ValueError(
            f"the environment has {problem.num_steps} steps and an inventory limit of {bound} orders, but the finite "
            f"market has num_steps = {steps} and, under its limits, inventories up to {chain.inventory_limit}: they "
            "must be the same"
        )
    if problem.initial[bound + first] < 1.0:
        raise ValueError(
            f"the environment does not start from market.initial_inventory = {first} orders, as it must: set its "
            "initial_inventory"
        )
    size = float(np.diff(problem.coordinates["inventory"])[0])
    if size != 1.0:
        raise ValueError(
            f"the environment has orders of {size:g}, but the finite market those of 1: set order_size to 1"
        )
    drawn = max(len(cell) for cell in schedule.values())
    controls, weights = np.empty((steps, states, drawn, 2)), np.zeros((steps, states, drawn))
    for n in range(steps):
        known = sorted(q for step, q in schedule if step == n)
        for s in range(states):
            q = min(known, key=lambda other: (abs(other - (s - bound)), abs(other)))
            cell = list(schedule[n, q].items())
            controls[n, s] = _depths(schedule, chain, n, q, cell[0][0])
            for m, (pair, weight) in enumerate(cell):
                controls[n, s, m] = _depths(schedule, chain, n, q, pair)
                weights[n, s, m] = float(weight)
    controls *= settings.tick
    if drawn == 1:
        return env, TablePolicy(problem, controls[:, :, 0])
    return env, table_policy(problem, Table(controls, weights))


def _depths(schedule: Schedule, chain: Chain, n: int, q: int, pair: Quotes) -> NDArray[np.float64]:
    """Ticks of both sides; in place of `OFF` those of the inventory next to it, or the widest."""
    widest = max(chain.market.fill_probabilities)

    def inner(side: int, step: int) -> int:
        cell = schedule.get((n, q + step))
        ticks = [quotes[side] for quotes in cell] if cell else []
        return max((t for t in ticks if t != OFF), default=widest)

    bid = pair.bid if pair.bid != OFF else inner(0, -1)
    ask = pair.ask if pair.ask != OFF else inner(1, 1)
    return np.array([bid, ask], dtype=np.float64)


def _loss_probability(law: PnlLaw, amount: float) -> Estimate:
    """``P(loss >= amount)``, a point where it is exact (error below 1e-8)."""
    value, error = float(law.probability(-amount)), law.probability_error(-amount)
    error = 0.0 if error <= EXACT else error
    return Estimate(value, max(value - error, 0.0), min(value + error, 1.0))


def limited_risks(
    env: Any, policy: Any, chain: Chain, tick: float, episodes: int, seed: int = 0, law: PnlLaw | None = None
) -> dict[str, Estimate]:
    """The risks that a chain limits, of a policy of an environment, with intervals.

    The final loss and its conditional value at risk come from the exact law of the P&L, where it is known (points, or
    its error), the others from simulated episodes (confidence 0.95). ``law``: that of the P&L, if it is known already.
    """
    limits, risks = chain.limits, dict[str, Estimate]()
    if law is None and not (limits.loss is None and limits.cvar is None):
        try:
            law = pnl_distribution(env, policy, deterministic=isinstance(policy, TablePolicy))
        except ValueError:  # no price noise, hence no density
            law = None
    paths = None
    final = law is None and not (limits.loss is None and limits.cvar is None)
    if final or limits.drawdown is not None or limits.floor is not None:
        paths = path_risks(env, policy, episodes, seed, deterministic=isinstance(policy, TablePolicy))
    if limits.loss is not None:
        amount = tick * limits.loss.amount
        simulated = None if paths is None else proportion_estimate(paths.gains <= -amount)
        risks["loss"] = simulated if law is None else _loss_probability(law, amount)  # type: ignore[assignment]
    if limits.drawdown is not None and paths is not None:
        risks["drawdown"] = proportion_estimate(paths.drawdowns > tick * limits.drawdown.amount)
    if limits.floor is not None and paths is not None:
        risks["floor"] = proportion_estimate(paths.lowest < -tick * limits.floor.amount)
    if limits.cvar is not None:
        confidence = float(limits.cvar.confidence)
        if law is None and paths is not None:
            shortfall = shortfall_estimate(-paths.gains, confidence)
        elif law is not None:
            value, error = law.expected_shortfall(confidence), law.accuracy(confidence)[1]
            shortfall = Estimate(value, value - error, value + error)
        risks["cvar"] = Estimate(*(number / tick for number in shortfall))
    return {name: risks[name] for name in chain.bounds}


def limit_verdict(risks: Mapping[str, Estimate], chain: Chain) -> str:
    """Whether limits are kept: "yes", "NO: " and those that are broken, or "not known" where intervals reach over."""
    broken = [name for name, bound in chain.bounds.items() if risks[name].low > bound]
    if broken:
        return f"NO: {', '.join(broken)}"
    return "yes" if all(risks[name].high <= bound for name, bound in chain.bounds.items()) else "not known"


class LimitedPolicy(NamedTuple):
    """A policy that keeps to limits in an environment: a local maximum among those that do, or near one.

    ``value`` is exact, ``risks`` as `limited_risks` has them. ``keeps``: the intervals lie within the limits; otherwise
    no policy was found that does, and this one exceeds them least. ``solved``: limits that bind are met to 2 %, or it
    is a local minimum of the excess; otherwise the search ended early. That no other policy is better is not proved.
    """

    policy: Any
    value: float
    risks: dict[str, Estimate]
    keeps: bool
    solved: bool


class _Risk:
    """A limited risk of controls, smoothed, and its gradient: what both kinds share."""

    u: Array  # (U,) arguments of the characteristic function of a gain
    functional: Functional

    def __init__(self, problem: FrozenProblem) -> None:
        self.problem, self.states = problem, np.arange(problem.num_states)
        ends = problem.controls(np.stack([-np.ones(problem.num_controls), np.ones(problem.num_controls)]))
        self.ends = ends.min(axis=0), ends.max(axis=0)
        self.nudge = NUDGE * (self.ends[1] - self.ends[0])

    def _set_arguments(self, u: Array) -> None:
        self.u, self.functional = u, PNL._replace(exponents=1j * u)

    def _backward(self, n: int, controls: Array, waves: Array) -> Array:
        return self.problem.backward(n, self.states, controls, waves, self.functional)

    def _kernel(self, n: int, controls: Array) -> Array:
        """(S, U, S): what a state contributes to each state after a step, at each argument."""
        count = len(self.states)
        unit, columns = np.tile(np.eye(count, dtype=complex), len(self.u)), np.repeat(1j * self.u, count)
        kernel = self.problem.backward(n, self.states, controls, unit, PNL._replace(exponents=columns))
        return np.asarray(kernel.reshape(count, len(self.u), count))

    def _sides(self, n: int, controls: Array, waves: Array) -> Iterator[tuple[int, Array]]:
        """The derivatives of `_backward` in each control."""
        for c, nudge in enumerate(self.nudge):
            moves = nudge * np.eye(self.problem.num_controls)[c]
            up, down = (self._backward(n, controls + sign * moves, waves) for sign in (1.0, -1.0))
            yield c, (up - down) / (2.0 * nudge)


class _FinalRisk(_Risk):
    """A risk of the final P&L, ``E[f(R)]`` by a cosine series: ``loss``, ``P(R <= -amount)``, or ``cvar``, that beyond
    ``amount``: ``amount + E[(-R - amount)^+] / (1 - confidence)``.
    """

    def __init__(self, problem: FrozenProblem, kind: str, amount: float, mean: float, std: float, confidence: float):
        super().__init__(problem)
        error, reach = SMOOTHING * std, max(8.0 * std, 2.0 * abs(mean + amount))
        low, width = mean - reach, 2.0 * reach
        self._set_arguments(np.arange(math.ceil(TERMS / error * width / math.pi)) * math.pi / width)
        below, u = -amount - low, self.u[1:]
        if kind == "loss":
            series, self.constant = np.append(below, np.sin(u * below) / u), 0.0
        else:
            series = np.append(0.5 * below**2, (1.0 - np.cos(u * below)) / u**2) / (1.0 - confidence)
            self.constant = amount
        series *= 2.0 / width * np.exp(-0.5 * (error * self.u) ** 2)
        series[0] *= 0.5
        self.weights = series * np.exp(-1j * self.u * low)

    def value(self, controls: Array) -> float:
        """The risk of controls (N, S, C)."""
        values = self.problem.terminal(self.functional)
        for n in reversed(range(self.problem.num_steps)):
            values = self._backward(n, controls[n], values)
        return self.constant + float((self.problem.initial @ values @ self.weights).real)

    def gradient(self, controls: Array) -> Array:
        """Derivatives (N, S, C) of the risk in the controls."""
        problem, slopes = self.problem, np.empty_like(controls)
        measures = [np.repeat(problem.initial[:, None], len(self.u), axis=1).astype(complex)]  # law times exp(i u gain)
        for n in range(problem.num_steps - 1):
            measures.append(np.einsum("su,sut->tu", measures[-1], self._kernel(n, controls[n])))
        values = problem.terminal(self.functional)
        for n in reversed(range(problem.num_steps)):
            for c, moved in self._sides(n, controls[n], values):
                slopes[n, :, c] = (measures[n] * moved @ self.weights).real
            values = self._backward(n, controls[n], values)
        return slopes


class _PathRisk(_Risk):
    """The probability of a drawdown, or of a loss at some step end (``floor``), of more than an amount.

    The state is ``x``, the drawdown or the loss so far, on a grid. A step takes it to ``x - gain``, and a drawdown not
    below 0; beyond the amount it is broken for good (the last place). A step is a product of discrete Fourier
    transforms, with a normal error that is small against the P&L and the amount.
    """

    def __init__(self, problem: FrozenProblem, kind: str, amount: float, mean: float, std: float) -> None:
        super().__init__(problem)
        error = SMOOTHING * (min(std, amount) if amount > 0.0 else std) / math.sqrt(problem.num_steps)
        width = error / NODES if amount <= 0.0 else amount / (math.ceil(amount * NODES / error) + 0.5)
        around = math.ceil(self._reach() / width)
        high = math.floor(amount / width)
        low = 0 if kind == "drawdown" else -math.ceil((8.0 * std + 2.0 * abs(mean) + amount) / width)
        places, padded = np.arange(low, high + 1), np.arange(low - around, high + around + 1)
        self.kept = len(places)
        self.source = np.where(padded > high, self.kept, np.clip(padded - low, 0, self.kept - 1))
        self.place, self.start = places - padded[0], -low
        waves = -2.0 * np.pi * np.fft.rfftfreq(len(padded), width)
        self._set_arguments(waves[-waves * error <= TERMS])
        self.fade = np.exp(-0.5 * (error * self.u) ** 2)

    def _reach(self) -> float:
        """What the gain of a step hardly exceeds."""
        problem, reach, none = self.problem, 0.0, np.zeros((len(self.states), 2))
        for n in (0, problem.num_steps - 1):
            for end in self.ends:
                controls = np.repeat(end[None], len(self.states), axis=0)
                first, second = problem.backward(n, self.states, controls, none, PNL._replace(moments=2)).T
                spread = np.sqrt(np.maximum(second - first**2, 0.0))
                reach = max(reach, float((np.abs(first) + 8.0 * spread).max()))
        return reach

    def _waves(self, values: Array) -> Array:
        """Transforms (S, U) of values on the whole grid, smoothed."""
        return np.asarray(np.fft.rfft(values)[:, : len(self.u)] * self.fade)

    def _before(self, n: int, controls: Array, waves: Array) -> Array:
        """Values (S, X) before a step, from the transforms (S, U) of those after it."""
        return np.asarray(np.fft.irfft(self._backward(n, controls, waves), len(self.source))[:, self.place])

    def _laws(self, controls: Array) -> list[Array]:
        """Laws (S, X) at each step."""
        problem, count = self.problem, self.problem.num_states
        law = np.zeros((count, self.kept))
        law[:, self.start] = problem.initial
        laws = [law]
        for n in range(problem.num_steps - 1):
            kernel = self._kernel(n, controls[n])
            placed = np.zeros((count, len(self.source)))
            placed[:, self.place] = laws[-1]
            waves = np.einsum("su,sut->tu", self._waves(placed), kernel.conj())
            after = np.fft.irfft(waves, len(self.source))
            laws.append(np.stack([np.bincount(self.source, row, self.kept + 1)[:-1] for row in after]))
        return laws

    def _after(self, values: Array) -> Array:
        """Transforms (S, U) of the values (S, X) after a step, wherever it leads."""
        return self._waves(np.hstack([values, np.ones((len(values), 1))])[:, self.source])

    def value(self, controls: Array) -> float:
        """The risk of controls (N, S, C)."""
        values = np.zeros((self.problem.num_states, self.kept))
        for n in reversed(range(self.problem.num_steps)):
            values = self._before(n, controls[n], self._after(values))
        return float(self.problem.initial @ values[:, self.start])

    def gradient(self, controls: Array) -> Array:
        """Derivatives (N, S, C) of the risk in the controls."""
        problem, slopes = self.problem, np.empty_like(controls)
        laws, values = self._laws(controls), np.zeros((problem.num_states, self.kept))
        for n in reversed(range(problem.num_steps)):
            waves = self._after(values)
            for c, moved in self._sides(n, controls[n], waves):
                places = np.fft.irfft(moved, len(self.source))[:, self.place]
                slopes[n, :, c] = (laws[n] * places).sum(axis=1)
            values = self._before(n, controls[n], waves)
        return slopes


class _LateError(Exception):
    """The deadline came while controls were improved."""


def _improved(
    problem: FrozenProblem,
    controls: Array,
    risks: list[_FinalRisk | _PathRisk],
    targets: Array,
    scales: Array,
    deadline: float,
) -> tuple[Array, Array]:
    """Controls (N, S, C) of a local maximum of the criterion with risks (K,) up to targets, and their risks.

    Unknown is what is added to the controls of a block of steps; a block is one step where there are few cells.
    """
    low, high = risks[0].ends
    steps, states = problem.num_steps, np.arange(problem.num_states)
    blocks = max(min(steps, MOST_VARIABLES // controls[0].size), 1)
    block = np.arange(steps) * blocks // steps
    firsts = np.searchsorted(block, np.arange(blocks))
    start = np.clip(controls, low, high)
    shape, last = (blocks, *start.shape[1:]), start

    def moved(flat: Array) -> Array:
        return np.asarray(np.clip(start + flat.reshape(shape)[block], low, high))

    def gathered(slopes: Array, flat: Array) -> Array:
        """Derivatives in the unknowns, from those in the controls: none where a control is clipped."""
        there = start + flat.reshape(shape)[block]
        free = (there >= low - 1e-9) & (there <= high + 1e-9)
        return np.asarray(np.add.reduceat(slopes * free, firsts, axis=0).ravel())

    def worth(flat: Array) -> tuple[float, Array]:
        table = moved(flat)
        values, _ = evaluate(problem, table)
        laws, slopes = state_laws(problem, table), np.empty_like(table)
        for n in range(steps):
            _, slope = problem.gradient(n, states, table[n], values[n + 1])
            slopes[n] = laws[n][:, None] * slope
        return -float(problem.initial @ values[0, :, 0]), -gathered(slopes, flat)

    def check_time() -> None:
        if time.perf_counter() > deadline:
            raise _LateError

    def excess(flat: Array) -> Array:
        check_time()
        return (np.array([risk.value(moved(flat)) for risk in risks]) - targets) / scales

    def slopes_of_excess(flat: Array) -> Array:
        check_time()
        table = moved(flat)
        return np.array([gathered(risk.gradient(table), flat) for risk in risks]) / scales[:, None]

    def remember(flat: Array) -> None:
        nonlocal last
        last = moved(flat)

    limits = {"type": "ineq", "fun": lambda flat: -excess(flat), "jac": lambda flat: -slopes_of_excess(flat)}
    lowest = np.minimum.reduceat(low - start, firsts, axis=0).ravel()
    highest = np.maximum.reduceat(high - start, firsts, axis=0).ravel()
    with contextlib.suppress(_LateError):
        optimum: Any = minimize(  # type: ignore[call-overload]
            worth, np.zeros(lowest.size), jac=True, method="SLSQP", bounds=list(zip(lowest, highest, strict=True)),
            constraints=[limits], callback=remember, options={"maxiter": MOST_ITERATIONS, "ftol": 1e-7},
        )  # fmt: skip
        last = moved(optimum.x)
    return last, np.array([risk.value(last) for risk in risks])


def limit_risks(
    env: Any, chain: Chain, tick: float, *, episodes: int = 100_000, deadline: float = math.inf, **arguments: Any
) -> LimitedPolicy:
    """A good policy of an environment that keeps to a chain's limits on risk there.

    The criterion is maximised under limits on smoothed risks, which are moved until the risks themselves keep to the
    limits: those of the final P&L from its exact law, drawdown and floor at the confidence 0.95 of simulated episodes.

    Parameters
    ----------
    env : environment or id
        With ``arguments``; its criterion must not be exponential, and its controls continuous.
    chain : Chain
        Whose limits on loss, drawdown, floor and conditional value at risk are meant.
    tick : float
        Currency.
    episodes : int
        Simulated episodes of a drawdown or floor.
    deadline : float
        On the clock of `time.perf_counter`; the best policy found by then is returned.

    Returns
    -------
    LimitedPolicy

    Raises
    ------
    ValueError
        If the criterion is exponential, or steps times squared states are more than 10,000.
    """
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    if problem.criterion.exponents is not None:
        raise ValueError("utility = 'cara' is not allowed: limits on risk need a criterion that is an expectation")
    if problem.num_steps * problem.num_states**2 > LARGEST:
        raise ValueError(
            f"num_steps = {problem.num_steps} with {problem.num_states} inventories is not allowed: limits on risk "
            f"take num_steps x inventories^2 <= {LARGEST:,}, and here it is "
            f"{problem.num_steps * problem.num_states**2:,}; lower num_steps or inventory_limit"
        )
    limits, names = chain.limits, list(chain.bounds)
    asked = np.array([float(bound) for bound in chain.bounds.values()])
    units = np.array([tick if name == "cvar" else 1.0 for name in names])
    scales = np.maximum(np.abs(asked), [1.0 if name == "cvar" else LEAST_PROBABILITY for name in names])
    controls, best, best_rank = solve(problem).controls, None, (False, -math.inf)
    targets, smoothed = np.full(len(names), math.inf), np.zeros(len(names))
    confidence = 0.0 if limits.cvar is None else float(limits.cvar.confidence)
    for attempt in range(MOST_ATTEMPTS):
        policy = TablePolicy(problem, controls)
        value = criterion_value(problem, policy.controls)
        law = None if limits.loss is None and limits.cvar is None else pnl_distribution(base, policy)
        found = limited_risks(base, policy, chain, tick, episodes, seed=attempt + 1, law=law)
        true = np.array([found[name].value for name in names])
        # another sample has another interval: twice the distance keeps it within the limit
        allowed = asked - 2.0 * np.array([found[name].high for name in names]) + 2.0 * true
        keeps, binds = bool((true <= allowed).all()), smoothed >= targets - 0.01 * scales
        rank = (keeps, value if keeps else -float((np.maximum(true - allowed, 0.0) / scales).sum()))
        if best is None or rank > best_rank:
            best, best_rank = LimitedPolicy(policy, value, found, keeps, False), rank
        if keeps and bool((~binds | (true >= allowed - PRECISION * scales)).all()):
            return best._replace(solved=True)
        if time.perf_counter() > deadline:
            return best
        if not keeps and not best.keeps and bool((smoothed > targets + 0.01 * scales).any()):
            return best._replace(solved=True)  # a local minimum of the excess lies above the limits
        mean, std = moments(problem, policy.controls, PNL)
        risks: list[_FinalRisk | _PathRisk] = []
        for name in names:
            if name in ("drawdown", "floor"):
                risks.append(_PathRisk(problem, name, tick * getattr(limits, name).amount, mean, std))
            else:
                amount = tick * limits.loss.amount if name == "loss" and limits.loss is not None else 0.0
                if name == "cvar" and law is not None:
                    amount = law.value_at_risk(confidence)
                risks.append(_FinalRisk(problem, name, amount, mean, std, confidence))
        smoothed = np.array([risk.value(policy.controls) for risk in risks]) / units
        targets = smoothed + allowed - 0.5 * PRECISION * scales - true
        probabilities = np.array([name != "cvar" for name in names])
        targets = np.where(probabilities, np.maximum(targets, 0.1 * scales), targets)
        controls, smoothed = _improved(problem, policy.controls, risks, targets * units, scales * units, deadline)
        smoothed = smoothed / units
    assert best is not None
    return best
