"""Limits in an environment: schedules of the finite market as its policies, what they risk there, and policies of it.

`limit_loss` maximises the Lagrangian ``E[criterion] - multiplier * P(W_T - W_0 <= -amount)`` over the quotes of every
step and state. The law of the P&L follows from ``phi(u) = E[exp(i u (W_T - W_0))]``, and a quote changes ``phi(u)`` by
the mass that reaches its cell, twisted by the P&L so far, times what the step and the rest make of it: so the gradient
is exact, of the probability smoothed by a normal error that is small against the P&L. The multiplier is raised until
the probability itself, from the exact law, keeps to the limit.
"""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mmgym.baselines.catalogue import TablePolicy, environment_of, problem_of, table_policy
from mmgym.baselines.constrained.model import OFF, Chain, Quotes, Schedule
from mmgym.baselines.constrained.problem import EnvironmentSettings
from mmgym.baselines.frozen import PNL, FrozenProblem, Table, criterion_value, evaluate, solve, state_laws
from mmgym.baselines.pnl_law import EXACT, PnlLaw
from mmgym.baselines.risk import Estimate, path_risks, pnl_distribution, proportion_estimate, shortfall_estimate

__all__ = ["LossLimitedPolicy", "limit_loss", "limit_verdict", "limited_risks", "schedule_policy"]

Array = NDArray[Any]
SMOOTHING = 0.15  # standard deviation of the normal error, in those of the P&L
TERMS = 3.0  # standard deviations of that error's characteristic function that the series has
NUDGE = 1e-5  # of a depth, in lengths of the box, for the derivative of the characteristic function
LARGEST = 2_000  # steps times squared states that `limit_loss` takes: a gradient takes seconds there
PRECISION = 0.02  # of the multiplier
MOST_MULTIPLIERS = 24  # that are tried
MOST_MULTIPLIER = 1e4  # in standard deviations of the P&L


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


def limited_risks(env: Any, policy: Any, chain: Chain, tick: float, episodes: int) -> dict[str, Estimate]:
    """The risks that a chain limits, of a policy of an environment, with intervals.

    The final loss and its conditional value at risk come from the exact law of the P&L, where it is known (points, or
    its error), the others from simulated episodes (confidence 0.95).
    """
    limits, risks = chain.limits, dict[str, Estimate]()
    law = None
    if limits.loss is not None or limits.cvar is not None:
        try:
            law = pnl_distribution(env, policy, deterministic=isinstance(policy, TablePolicy))
        except ValueError:  # no price noise, hence no density
            law = None
    paths = None
    if law is None or limits.drawdown is not None or limits.floor is not None:
        paths = path_risks(env, policy, episodes, deterministic=isinstance(policy, TablePolicy))
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


class LossLimitedPolicy(NamedTuple):
    """A policy that keeps ``P(loss >= amount)`` within a limit: a stationary point of its Lagrangian, or near one.

    ``value`` and ``probability`` are exact; that no other policy is better is not proved. ``solved``: the multiplier
    was found to 2 %, or is 0; otherwise the deadline came first.
    """

    policy: Any
    multiplier: float  # criterion per unit of probability
    value: float
    probability: Estimate
    solved: bool


class _Lagrangian:
    """Criterion less multiplier times the smoothed probability of a loss, and its gradient in the controls."""

    def __init__(self, problem: FrozenProblem, law: PnlLaw, amount: float) -> None:
        self.problem = problem
        error = SMOOTHING * law.std
        reach = max(8.0 * law.std, 2.0 * (abs(law.mean) + amount))
        low, high = law.mean - reach, law.mean + reach
        terms = math.ceil(TERMS / error * (high - low) / math.pi)
        self.u = np.arange(terms) * math.pi / (high - low)
        below = -amount - low  # of the cosine series' terms on [low, -amount]
        waves = np.append(below, np.sin(self.u[1:] * below) / self.u[1:])
        waves *= 2.0 / (high - low) * np.exp(-0.5 * (error * self.u) ** 2)
        waves[0] *= 0.5
        self.weights = waves * np.exp(-1j * self.u * low)  # probability = Re(weights @ phi)
        self.functional = PNL._replace(exponents=1j * self.u)
        ends = problem.controls(np.stack([-np.ones(problem.num_controls), np.ones(problem.num_controls)]))
        self.low, self.high = ends.min(axis=0), ends.max(axis=0)

    def __call__(self, flat: Array, multiplier: float) -> tuple[float, Array]:
        """Minus the Lagrangian of controls (N * S * C,), and its gradient."""
        problem = self.problem
        controls = flat.reshape(problem.num_steps, problem.num_states, problem.num_controls)
        worth, _ = evaluate(problem, controls)
        laws, twisted = state_laws(problem, controls), self._twisted(controls)
        states, slopes = np.arange(problem.num_states), np.empty_like(controls)
        values = problem.terminal(self.functional)
        for n in reversed(range(problem.num_steps)):
            _, slope = problem.gradient(n, states, controls[n], worth[n + 1])
            slopes[n] = laws[n][:, None] * slope
            for c in range(problem.num_controls):
                nudge = NUDGE * (self.high[c] - self.low[c])
                sides = [controls[n] + sign * nudge * np.eye(problem.num_controls)[c] for sign in (1.0, -1.0)]
                up, down = (problem.backward(n, states, side, values, self.functional) for side in sides)
                chance = (twisted[n] * (up - down) @ self.weights).real / (2.0 * nudge)
                slopes[n, :, c] -= multiplier * chance
            values = problem.backward(n, states, controls[n], values, self.functional)
        chance = float((problem.initial @ values @ self.weights).real)
        return multiplier * chance - float(problem.initial @ worth[0, :, 0]), -slopes.ravel()

    def _twisted(self, controls: Array) -> list[Array]:
        """Measures (S, U) at each step: the law, times ``exp(i u P&L so far)``."""
        problem, states = self.problem, np.arange(self.problem.num_states)
        measure = np.repeat(problem.initial[:, None], len(self.u), axis=1).astype(complex)
        measures = [measure]
        columns = PNL._replace(exponents=np.repeat(1j * self.u, len(states)))
        unit = np.tile(np.eye(len(states), dtype=complex), len(self.u))
        for n in range(problem.num_steps - 1):
            kernel = problem.backward(n, states, controls[n], unit, columns).reshape(len(states), len(self.u), -1)
            measure = np.einsum("su,sut->tu", measure, kernel)
            measures.append(measure)
        return measures

    def maximise(self, controls: Array, multiplier: float, deadline: float) -> Array:
        """Controls (N, S, C) of a local maximum, from these, or the best by the deadline."""

        def stop(_: Array) -> None:
            if time.perf_counter() > deadline:
                raise StopIteration

        bounds = list(zip(self.low, self.high, strict=True)) * (controls.size // len(self.low))
        start = np.clip(controls, self.low, self.high).ravel()
        optimum: Any = minimize(  # type: ignore[call-overload]
            self, start, (multiplier,), "L-BFGS-B", jac=True, bounds=bounds, callback=stop, options={"maxiter": 30}
        )
        return np.asarray(optimum.x.reshape(controls.shape))


def limit_loss(
    env: Any, amount: float, probability: float, *, deadline: float = math.inf, **arguments: Any
) -> LossLimitedPolicy | None:
    """A good policy of an environment with ``P(W_T - W_0 <= -amount) <= probability``.

    Parameters
    ----------
    env : environment or id
        With ``arguments``; its criterion must not be exponential, and its controls continuous.
    amount : float
        Loss, currency.
    probability : float
        That the loss is at least this.
    deadline : float
        On the clock of `time.perf_counter`; the best policy found by then is returned.

    Returns
    -------
    LossLimitedPolicy or None
        None if none was found.

    Raises
    ------
    ValueError
        If the criterion is exponential, or steps times squared states are more than 2,000.
    """
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    if problem.criterion.exponents is not None:
        raise ValueError("utility = 'cara' is not allowed: a limit on losses needs a criterion that is an expectation")
    if problem.num_steps * problem.num_states**2 > LARGEST:
        raise ValueError(
            f"num_steps = {problem.num_steps} with {problem.num_states} inventories is not allowed: a limit on losses "
            f"takes num_steps x inventories^2 <= {LARGEST:,}; lower num_steps or inventory_limit"
        )
    controls, best, lagrangian = solve(problem).controls, None, None
    low, multiplier, high = 0.0, 0.0, math.inf
    for _ in range(MOST_MULTIPLIERS):
        policy = TablePolicy(problem, controls)
        law = pnl_distribution(base, policy)
        chance, value = _loss_probability(law, amount), criterion_value(problem, policy.controls)
        if chance.high <= probability:
            if best is None or value > best.value:
                best = LossLimitedPolicy(policy, multiplier, value, chance, False)
            high = multiplier
        else:
            low = multiplier
        if best is not None and high - low <= PRECISION * high:
            return best._replace(solved=True)
        if low > MOST_MULTIPLIER * law.std or time.perf_counter() > deadline:
            break
        lagrangian = lagrangian or _Lagrangian(problem, law, amount)
        multiplier = max(4.0 * low, 2.0 * law.std) if high == math.inf else 0.5 * (low + high)
        controls = lagrangian.maximise(controls, multiplier, deadline)
    return best
