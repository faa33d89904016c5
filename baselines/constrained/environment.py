"""Limits in an environment: schedules of the finite market as its policies, what they risk there, and policies of it.

`limit_risks` maximises the criterion over the quotes of every step and state, which do not see wealth or drawdown,
under limits on them (sequential quadratic programming: stationary points of the Lagrangian). The loss so far, or the
drawdown, is carried on a grid; what a step does to it follows from the characteristic function of its gain, and a quote
changes a risk by the mass that reaches its cell times what the step and the rest make of it: so the gradient is exact,
of the risk smoothed by a normal error that is small against the P&L. The smoothed limits are moved until the risks
themselves, from the exact law or from simulated episodes, keep to the limits.
"""

import contextlib
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

__all__ = ["LimitedPolicy", "limit_risks", "limit_verdict", "limited_risks", "schedule_policy"]

Array = NDArray[Any]
SMOOTHING = 0.2  # standard deviation of the normal error of all steps, in those of the P&L
NODES = 1.5  # grid points in a standard deviation of that error
TERMS = 2.5  # standard deviations of its characteristic function that the transforms have
NUDGE = 1e-5  # of a depth, in lengths of the box, for the derivative of a risk
LARGEST = 2_000  # steps times squared states that `limit_risks` takes: a gradient takes seconds there
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
    env: Any, policy: Any, chain: Chain, tick: float, episodes: int, seed: int = 0
) -> dict[str, Estimate]:
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
    """A limited risk of controls, smoothed, and its gradient.

    The state is ``x``, the loss so far or the drawdown, on a grid. A step takes it to ``x - gain``, and a drawdown not
    below 0; beyond the amount of a drawdown or a floor it is broken for good (the last place). The law of the gain of a
    step, from every state to every state, has the Fourier transform that `FrozenProblem.backward` gives, so a step is a
    product of discrete Fourier transforms, with a normal error that is small against the P&L.
    """

    def __init__(self, problem: FrozenProblem, kind: str, amount: float, law: PnlLaw, confidence: float) -> None:
        self.problem, self.barrier = problem, kind in ("drawdown", "floor")
        error = SMOOTHING * law.std / math.sqrt(problem.num_steps)
        reach = 8.0 * law.std + 2.0 * abs(law.mean)  # of the gain, in a step or in all
        width = error / NODES if amount <= 0.0 else amount / (math.ceil(amount * NODES / error) + 0.5)
        around = math.ceil((reach + amount) / width)
        low, high = (0 if kind == "drawdown" else -around), around
        places = np.arange(low, high + 1)
        if self.barrier:
            places = places[places * width <= amount]
        padded = np.arange(low - around, high + around + 1)
        self.kept = len(places)
        source = np.clip(padded - low, 0, self.kept - 1)
        self.source = np.where(self.barrier & (padded * width > amount), self.kept, source)
        self.place = places - padded[0]
        self.start = -low
        waves = 2.0 * np.pi * np.fft.rfftfreq(len(padded), width)
        self.u = waves[waves * error <= TERMS]
        self.fade = np.exp(-0.5 * (error * self.u) ** 2)
        x = places * width
        if kind == "cvar":
            worst = law.value_at_risk(confidence)
            self.final = worst + np.maximum(x - worst, 0.0) / (1.0 - confidence)
        else:
            self.final = (x >= amount).astype(float) if kind == "loss" else np.zeros(len(x))
        self.functional = PNL._replace(exponents=-1j * self.u)
        ends = problem.controls(np.stack([-np.ones(problem.num_controls), np.ones(problem.num_controls)]))
        self.nudge = NUDGE * (ends.max(axis=0) - ends.min(axis=0))

    def _waves(self, values: Array) -> Array:
        """Transforms (S, U) of values on the whole grid, smoothed."""
        return np.asarray(np.fft.rfft(values)[:, : len(self.u)] * self.fade)

    def _before(self, n: int, controls: Array, waves: Array) -> Array:
        """Values (S, X) before a step, from the transforms (S, U) of those after it."""
        states = np.arange(self.problem.num_states)
        moved = self.problem.backward(n, states, controls, waves, self.functional)
        return np.asarray(np.fft.irfft(moved, len(self.source))[:, self.place])

    def _laws(self, controls: Array) -> list[Array]:
        """Laws (S, X) at each step."""
        problem, count = self.problem, self.problem.num_states
        law = np.zeros((count, self.kept))
        law[:, self.start] = problem.initial
        laws, unit = [law], np.tile(np.eye(count, dtype=complex), len(self.u))
        columns = PNL._replace(exponents=np.repeat(-1j * self.u, count))
        for n in range(problem.num_steps - 1):
            kernel = problem.backward(n, np.arange(count), controls[n], unit, columns).reshape(count, len(self.u), -1)
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
        values = np.repeat(self.final[None], self.problem.num_states, axis=0)
        for n in reversed(range(self.problem.num_steps)):
            values = self._before(n, controls[n], self._after(values))
        return float(self.problem.initial @ values[:, self.start])

    def gradient(self, controls: Array) -> Array:
        """Derivatives (N, S, C) of the risk in the controls."""
        problem, slopes = self.problem, np.empty_like(controls)
        laws, values = self._laws(controls), np.repeat(self.final[None], problem.num_states, axis=0)
        for n in reversed(range(problem.num_steps)):
            waves = self._after(values)
            for c, nudge in enumerate(self.nudge):
                moves = nudge * np.eye(problem.num_controls)[c]
                up, down = (self._before(n, controls[n] + sign * moves, waves) for sign in (1.0, -1.0))
                slopes[n, :, c] = (laws[n] * (up - down)).sum(axis=1) / (2.0 * nudge)
            values = self._before(n, controls[n], waves)
        return slopes


class _LateError(Exception):
    """The deadline came while controls were improved."""


def _improved(
    problem: FrozenProblem, controls: Array, risks: list[_Risk], targets: Array, deadline: float
) -> tuple[Array, Array]:
    """Controls (N, S, C) of a local maximum of the criterion with risks (K,) up to targets, and their risks."""
    ends = problem.controls(np.stack([-np.ones(problem.num_controls), np.ones(problem.num_controls)]))
    low, high = ends.min(axis=0), ends.max(axis=0)
    shape, states = controls.shape, np.arange(problem.num_states)
    last = np.clip(controls, low, high)

    def worth(flat: Array) -> tuple[float, Array]:
        table = flat.reshape(shape)
        values, _ = evaluate(problem, table)
        laws, slopes = state_laws(problem, table), np.empty(shape)
        for n in range(problem.num_steps):
            _, slope = problem.gradient(n, states, table[n], values[n + 1])
            slopes[n] = laws[n][:, None] * slope
        return -float(problem.initial @ values[0, :, 0]), -slopes.ravel()

    def excess(flat: Array) -> Array:
        if time.perf_counter() > deadline:
            raise _LateError
        return np.array([risk.value(flat.reshape(shape)) for risk in risks]) / targets - 1.0

    def slopes_of_excess(flat: Array) -> Array:
        return np.array([risk.gradient(flat.reshape(shape)).ravel() for risk in risks]) / targets[:, None]

    def remember(flat: Array) -> None:
        nonlocal last
        last = flat.reshape(shape).copy()

    limits = {"type": "ineq", "fun": lambda flat: -excess(flat), "jac": lambda flat: -slopes_of_excess(flat)}
    bounds = list(zip(low, high, strict=True)) * (last.size // len(low))
    with contextlib.suppress(_LateError):
        optimum: Any = minimize(  # type: ignore[call-overload]
            worth, last.ravel(), jac=True, method="SLSQP", bounds=bounds, constraints=[limits], callback=remember,
            options={"maxiter": MOST_ITERATIONS, "ftol": 1e-7},
        )  # fmt: skip
        last = np.clip(optimum.x.reshape(shape), low, high)
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
        If the criterion is exponential, or steps times squared states are more than 2,000.
    """
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    if problem.criterion.exponents is not None:
        raise ValueError("utility = 'cara' is not allowed: limits on risk need a criterion that is an expectation")
    if problem.num_steps * problem.num_states**2 > LARGEST:
        raise ValueError(
            f"num_steps = {problem.num_steps} with {problem.num_states} inventories is not allowed: limits on risk "
            f"take num_steps x inventories^2 <= {LARGEST:,}; lower num_steps or inventory_limit"
        )
    limits, names = chain.limits, list(chain.bounds)
    asked = np.array([float(bound) for bound in chain.bounds.values()])
    controls, best, best_rank = solve(problem).controls, None, (False, -math.inf)
    targets, smoothed = np.full(len(names), math.inf), np.zeros(len(names))
    for attempt in range(MOST_ATTEMPTS):
        policy = TablePolicy(problem, controls)
        value = criterion_value(problem, policy.controls)
        found = limited_risks(base, policy, chain, tick, episodes, seed=attempt + 1)
        true = np.array([found[name].value for name in names])
        # another sample has another interval: twice the distance keeps it within the limit
        allowed = asked - 2.0 * np.array([found[name].high for name in names]) + 2.0 * true
        keeps, binds = bool((true <= allowed).all()), smoothed >= 0.99 * targets
        excess = float(np.maximum(true - allowed, 0.0).sum())
        rank = (keeps, value if keeps else -excess)
        if best is None or rank > best_rank:
            best, best_rank = LimitedPolicy(policy, value, found, keeps, False), rank
        if keeps and bool((~binds | (true >= allowed - PRECISION * np.abs(asked))).all()):
            return best._replace(solved=True)
        if time.perf_counter() > deadline:
            return best
        if not keeps and not best.keeps and bool((smoothed > 1.01 * targets).any()):
            return best._replace(solved=True)  # a local minimum of the excess lies above the limits
        law = pnl_distribution(base, policy)
        risks = [
            _Risk(
                problem,
                name,
                0.0 if name == "cvar" else tick * getattr(limits, name).amount,
                law,
                0.0 if limits.cvar is None else float(limits.cvar.confidence),
            )
            for name in names
        ]
        units = np.array([tick if name == "cvar" else 1.0 for name in names])
        smoothed = np.array([risk.value(policy.controls) for risk in risks]) / units
        targets = np.maximum(smoothed + allowed - 0.5 * PRECISION * np.abs(asked) - true, 0.1 * np.abs(asked))
        controls, smoothed = _improved(problem, policy.controls, risks, targets * units, deadline)
        smoothed = smoothed / units
    assert best is not None
    return best
