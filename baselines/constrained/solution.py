"""Solving a risk-constrained problem: bounds, the certified schedule or why there is none, the schedule as a policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.baselines.catalogue import TablePolicy, environment_of, problem_of, table_policy
from mmgym.baselines.constrained.linear_program import LinearProgram, RandomisedOptimum
from mmgym.baselines.constrained.model import (
    OFF,
    Chain,
    Evaluation,
    Quotes,
    best_unlimited,
    evaluate_schedule,
    evaluate_table,
)
from mmgym.baselines.constrained.problem import ConstrainedProblem, EnvironmentSettings
from mmgym.baselines.constrained.schedule_program import Progress, ScheduleOptimum, ScheduleProgram
from mmgym.baselines.frozen import Table

__all__ = ["ConstrainedSolution", "Infeasibility", "constrain", "schedule_policy"]

ROUNDING = Fraction(1, 10**9)  # of the linear program's floating-point optimum, where it serves as a bound
Schedule = Mapping[tuple[int, int], Mapping[Quotes, Fraction]]


@dataclass(frozen=True)
class Infeasibility:
    """Why no policy, or no schedule, keeps to the limits.

    Attributes
    ----------
    of : str
        "policies" (none at all does) or "schedules" (randomised policies do, or may).
    asked : dict
        The probability of each limit.
    alone : dict
        Its smallest probability without the other limits.
    with_others : dict
        Its smallest probability where the others are kept: what it has to be raised to; None where nothing keeps them.
    relaxation : dict or None
        Probabilities that can be kept, raised above those asked by as little as possible in all.
    proved : bool
        Whether every figure is a proved minimum; otherwise the time limit came first, and smaller may be possible.
    """

    of: str
    asked: dict[str, Fraction]
    alone: dict[str, Any]
    with_others: dict[str, Any]
    relaxation: dict[str, Any] | None
    proved: bool

    def text(self) -> str:
        """The explanation in sentences."""
        lines = [f"infeasible: no {'policy' if self.of == 'policies' else 'schedule'} keeps to all limits"]
        at = "" if self.proved else "at most "
        for name, asked in self.asked.items():
            alone, others = self.alone[name], self.with_others[name]
            line = f"  {name}: {_number(asked)} is asked; the smallest alone is {at}{_number(alone)}"
            if len(self.asked) > 1:
                kept = (
                    "nothing keeps the other limit"
                    if others is None
                    else f"beside the other limit {at}{_number(others)}"
                )
                line += f"; {kept}"
            if alone is not None and alone > asked:
                line += " (impossible by itself)"
            elif others is not None and others > asked:
                line += " (raising this limit to that is enough)"
            lines.append(line)
        if self.relaxation is not None:
            raised = ", ".join(
                f"{name} {_number(p)}" for name, p in self.relaxation.items() if p - self.asked[name] > ROUNDING
            )
            lines.append(f"  smallest relaxation in all: {raised}")
        return "\n".join(lines)


def _number(value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value} = {float(value):.6g}" if isinstance(value, Fraction) else f"{value:.9g}"


@dataclass(frozen=True)
class ConstrainedSolution:
    """Everything that was found for a problem.

    Attributes
    ----------
    problem : ConstrainedProblem
    unlimited : Evaluation
        The best schedule without limits on probabilities.
    randomised : RandomisedOptimum or None
        The optimum over randomised policies that see wealth and drawdown: an upper bound.
    marginal : Evaluation or None
        What the randomised optimum's quotes by step and inventory are worth and risk when they cannot see more.
    schedule : ScheduleOptimum or None
        The best schedule; None where no policy keeps to the limits.
    infeasibility : Infeasibility or None
    """

    problem: ConstrainedProblem
    unlimited: Evaluation
    randomised: RandomisedOptimum | None
    marginal: Evaluation | None
    schedule: ScheduleOptimum | None
    infeasibility: Infeasibility | None

    @property
    def bound(self) -> Fraction | None:
        """The least upper bound known of what a schedule can be worth within the limits."""
        if self.schedule is None or self.randomised is None:
            return None
        if self.schedule.status == "infeasible":
            return None
        bounds = [Fraction(self.randomised.value) + ROUNDING * (1 + abs(Fraction(self.randomised.value)))]
        if self.schedule.bound is not None:
            bounds.append(self.schedule.bound)
        return min(bounds)

    @property
    def gap(self) -> Fraction | None:
        """How much better than the schedule found the best one may be; 0 where it is proved to be the best."""
        evaluation = None if self.schedule is None else self.schedule.evaluation
        return None if evaluation is None or self.bound is None else max(self.bound - evaluation.value, Fraction(0))

    def comparison(self, others: Mapping[str, Evaluation] | None = None) -> pd.DataFrame:
        """What each policy is worth and risks in the finite market, best first; ``others`` adds rows."""
        chain = self.problem.chain
        rows = [("without limits", self.unlimited, "exact")]
        if self.randomised is not None:
            bound = Evaluation(self.randomised.value, self.randomised.probabilities)  # type: ignore[arg-type]
            rows.append(("linear program: may see wealth and draw", bound, "upper bound"))
        if self.marginal is not None:
            rows.append(("its quotes by step and inventory, drawn", self.marginal, "exact"))
        if self.schedule is not None and self.schedule.evaluation is not None:
            how = "optimum, certified" if self.schedule.status == "optimal" else f"gap {float(self.gap or 0):.6g}"
            rows.append(("CP-SAT schedule", self.schedule.evaluation, how))
        rows += [(name, worth, "exact") for name, worth in (others or {}).items()]
        table: list[dict[str, Any]] = []
        for name, worth, how in rows:
            probabilities = {f"P({limit})": float(worth.probabilities[limit]) for limit in chain.risk_limits}
            keeps = all(worth.probabilities[k] <= p.probability + ROUNDING for k, p in chain.risk_limits.items())
            exact = str(worth.value) if isinstance(worth.value, Fraction) and worth.value.denominator < 10**9 else ""
            table.append(
                {
                    "policy": name,
                    "value": float(worth.value),
                    "exact": exact,
                    **probabilities,
                    "keeps limits": "yes" if keeps else "no",
                    "how": how,
                }
            )
        order = sorted(range(len(table)), key=lambda i: -round(table[i]["value"], 9))
        return pd.DataFrame([table[i] for i in order])

    def schedule_table(self) -> pd.DataFrame:
        """The schedule: quotes by step and inventory, in ticks; empty where a side is off."""
        table = None if self.schedule is None else self.schedule.schedule
        rows = [
            {"step": n, "inventory": q, "bid": pair.bid or "", "ask": pair.ask or ""}
            for (n, q), pair in sorted((table or {}).items())
        ]
        return pd.DataFrame(rows, columns=["step", "inventory", "bid", "ask"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; exact numbers as text, "a/b"."""
        schedule, randomised = self.schedule, self.randomised
        content: dict[str, Any] = {
            "status": "infeasible" if schedule is None else schedule.status,
            "without_limits": _evaluation(self.unlimited),
            "linear_program": None
            if randomised is None
            else {"value": randomised.value, "probabilities": randomised.probabilities},
            "linear_program_by_step_and_inventory": _evaluation(self.marginal),
            "bound": _exact(self.bound),
            "gap": _exact(self.gap),
        }
        if schedule is not None:
            content["schedule"] = {
                **(_evaluation(schedule.evaluation) or {}),
                "seconds": schedule.seconds,
                "quotes": [
                    {"step": n, "inventory": q, "bid": pair.bid or None, "ask": pair.ask or None}
                    for (n, q), pair in sorted((schedule.schedule or {}).items())
                ],
            }
        if self.infeasibility is not None:
            why = self.infeasibility
            content["infeasibility"] = {
                "of": why.of,
                "proved": why.proved,
                **{
                    name: None if part is None else {key: _exact(value) for key, value in part.items()}
                    for name, part in (
                        ("asked", why.asked),
                        ("alone", why.alone),
                        ("with_others", why.with_others),
                        ("relaxation", why.relaxation),
                    )
                },
            }
        return content


def _exact(value: Any) -> Any:
    return str(value) if isinstance(value, Fraction) else value


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "value": float(evaluation.value),
        "exact": str(evaluation.value),
        "probabilities": {name: str(p) for name, p in evaluation.probabilities.items()},
    }


def constrain(
    problem: ConstrainedProblem,
    *,
    time_limit: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ConstrainedSolution:
    """Solve a risk-constrained problem: without limits, over randomised policies, and over schedules.

    Parameters
    ----------
    problem : ConstrainedProblem
    time_limit : float, optional
        Of the search for a schedule, seconds; the problem's by default.
    workers : int, optional
        Of that search; with one its result is reproducible. The problem's by default.
    progress : callable, optional
        Called with seconds, best value and bound when CP-SAT finds better ones.

    Raises
    ------
    ImportError
        Without OR-Tools, the extra ``constraints``.
    """
    chain = problem.chain
    limit = problem.time_limit if time_limit is None else time_limit
    workers = problem.workers if workers is None else workers
    schedules = ScheduleProgram(chain)
    unlimited = evaluate_table(chain, best_unlimited(chain))
    policies = LinearProgram(chain)
    randomised = policies.solve()
    if randomised is None:
        return ConstrainedSolution(problem, unlimited, None, None, None, _why_no_policy(chain, policies))
    optimum = schedules.solve(time_limit=limit, workers=workers, progress=progress)
    marginal = evaluate_schedule(chain, randomised.schedule)
    why = _why_no_schedule(chain, schedules, limit, workers) if optimum.status == "infeasible" else None
    return ConstrainedSolution(problem, unlimited, randomised, marginal, optimum, why)


def _others(chain: Chain, name: str) -> list[str]:
    return [other for other in chain.risk_limits if other != name]


def _why_no_policy(chain: Chain, policies: LinearProgram) -> Infeasibility:
    limits = chain.risk_limits
    return Infeasibility(
        of="policies",
        asked={name: limit.probability for name, limit in limits.items()},
        alone={name: policies.least(name, []) for name in limits},
        with_others={name: policies.least(name, _others(chain, name)) for name in limits},
        relaxation=policies.relax(),
        proved=True,
    )


def _why_no_schedule(chain: Chain, schedules: ScheduleProgram, time_limit: float, workers: int) -> Infeasibility:
    limits = chain.risk_limits
    search: Any = {"time_limit": time_limit, "workers": workers}
    alone = {name: schedules.least(name, [], **search) for name in limits}
    with_others = {name: schedules.least(name, _others(chain, name), **search) for name in limits}
    status, relaxation = schedules.relax(**search)
    statuses = [status, *(outcome[0] for outcome in (*alone.values(), *with_others.values()))]
    return Infeasibility(
        of="schedules",
        asked={name: limit.probability for name, limit in limits.items()},
        alone={name: outcome[1] for name, outcome in alone.items()},
        with_others={name: outcome[1] for name, outcome in with_others.items()},
        relaxation=relaxation,
        proved=all(status in ("optimal", "infeasible") for status in statuses),
    )


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
        If the environment does not quote a bid and an ask depth, or has other steps or inventories than the chain.
    """
    env = environment_of(settings.id, **settings.arguments)
    if tuple(env.control_names) != ("bid_depth", "ask_depth") or set(problem_of(env).coordinates) != {"inventory"}:
        raise ValueError(
            f"environment.id = {settings.id!r} is not allowed: its controls must be a bid and an ask depth"
        )
    problem, steps = problem_of(env), chain.market.num_steps
    bound, states = (problem.num_states - 1) // 2, problem.num_states
    if problem.num_steps != steps or bound != chain.market.inventory_limit:
        raise ValueError(
            f"the environment has {problem.num_steps} steps and an inventory limit of {bound} orders, but the market "
            f"has num_steps = {steps} and inventory_limit = {chain.market.inventory_limit}: they must be the same"
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
