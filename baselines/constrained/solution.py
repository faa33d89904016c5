"""Solving a risk-constrained problem: bounds, the best schedule found, what is certified, or why there is none."""

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from mmgym.baselines.constrained.lattice import Lattice
from mmgym.baselines.constrained.linear_program import LinearProgram, Progress, RandomisedOptimum
from mmgym.baselines.constrained.model import (
    Chain,
    Evaluation,
    Quotes,
    Schedule,
    as_schedule,
    best_unlimited,
    evaluate_schedule,
    evaluate_table,
)
from mmgym.baselines.constrained.problem import ConstrainedProblem
from mmgym.baselines.constrained.schedule_program import ScheduleOptimum, ScheduleProgram, check_program
from mmgym.baselines.constrained.schedule_proof import prove_schedule
from mmgym.baselines.constrained.schedule_search import search_schedule

__all__ = ["PARTS", "ConstrainedSolution", "Infeasibility", "constrain"]

PARTS = ("lp", "schedule")  # what `constrain` solves
ROUNDING = Fraction(1, 10**9)  # of a risk of the linear program's mixture
RESERVE = 0.1  # of the time limit, for exact evaluations and output after the searches
PATIENCE = 60  # new starts of the local search without a better schedule
SEARCH = 0.4  # of the time limit, at most, for the local search
PROOF = 0.5  # of what is left then, at most, for branch and bound; CP-SAT or more local searches follow


@dataclass(frozen=True)
class Infeasibility:
    """Why no policy, or no schedule, keeps to the limits.

    Attributes
    ----------
    of : str
        "policies" (none at all does) or "schedules" (randomised policies do, or may).
    asked : dict
        The bound of each limit: a probability, or ticks for ``cvar``.
    alone : dict
        The smallest risk without the other limits; empty where that could not be asked (see ``uncertified``).
    with_others : dict
        The smallest risk where the others are kept: what the bound has to be raised to; None where nothing keeps them.
    relaxation : dict or None
        Bounds that can be kept, raised above those asked by as little as possible in all.
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
            if name not in self.alone:
                lines.append(f"  {name}: {_number(asked)} is asked")
                continue
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
        if not self.proved:
            lines.append("  the time limit came first: smaller figures may be possible")
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
        The best schedule without limits on risk (that may look at the inventory): exact, and an upper bound.
    randomised : RandomisedOptimum or None
        The optimum over randomised policies that see wealth and drawdown; None where it was not asked for, or no policy
        keeps to the limits.
    marginal : Evaluation or None
        What the randomised optimum's quotes by step and inventory are worth and risk when they cannot see more.
    schedule : ScheduleOptimum or None
        The best schedule; None where it was not asked for, or no policy keeps to the limits.
    infeasibility : Infeasibility or None
    uncertified : str or None
        Why CP-SAT could not be asked.
    proof : str or None
        What proved the schedule the best one, or was the last to try.
    """

    problem: ConstrainedProblem
    unlimited: Evaluation
    randomised: RandomisedOptimum | None = None
    marginal: Evaluation | None = None
    schedule: ScheduleOptimum | None = None
    infeasibility: Infeasibility | None = None
    uncertified: str | None = None
    proof: str | None = None

    @property
    def bound(self) -> Fraction | None:
        """The least upper bound known of what a schedule can be worth within the limits; None if there is none."""
        if self.infeasibility is not None:
            return None
        bounds = [self.unlimited.value]
        if self.randomised is not None and math.isfinite(self.randomised.bound):
            bounds.append(Fraction(self.randomised.bound))
        if self.schedule is not None and self.schedule.bound is not None:
            bounds.append(self.schedule.bound)
        return min(bounds)

    @property
    def gap(self) -> Fraction | None:
        """How much better than the schedule found the best one may be; 0 where it is proved to be the best."""
        evaluation = None if self.schedule is None else self.schedule.evaluation
        return None if evaluation is None or self.bound is None else max(self.bound - evaluation.value, Fraction(0))

    def certificate(self) -> str:
        """What is certified, in sentences."""
        lines = []
        randomised, schedule = self.randomised, self.schedule
        if randomised is not None:
            met = "which a mixture of policies attains" if randomised.solved else "the time limit came first"
            lines.append(
                f"certified: no policy within the limits, drawing or seeing wealth, is worth more than "
                f"{randomised.bound:.10g} (weak duality; {met})"
            )
        if schedule is not None and schedule.evaluation is not None:
            how = f"the best schedule ({self.proof})" if schedule.status == "optimal" else "found, not proved the best"
            lines.append(f"certified: the schedule's value and risks, in whole numbers; {how}")
        if self.uncertified is not None:
            lines.append(f"CP-SAT was not asked: {self.uncertified}")
        return "\n".join(lines)

    def comparison(self, others: Mapping[str, Evaluation] | None = None) -> pd.DataFrame:
        """What each policy is worth and risks in the finite market, best first; ``others`` adds rows."""
        chain = self.problem.chain
        rows = [("without limits", self.unlimited, "exact")]
        if self.randomised is not None and self.randomised.risks:
            bound = Evaluation(self.randomised.value, self.randomised.risks)  # type: ignore[arg-type]
            how = "upper bound" if self.randomised.solved else f"bound {self.randomised.bound:.6g}"
            rows.append(("linear program: may see wealth and draw", bound, how))
        if self.marginal is not None:
            rows.append(("its quotes by step and inventory, drawn", self.marginal, "exact"))
        if self.schedule is not None and self.schedule.evaluation is not None:
            how = "optimum, certified" if self.schedule.status == "optimal" else f"gap {float(self.gap or 0):.6g}"
            rows.append(("best schedule", self.schedule.evaluation, how))
        rows += [(name, worth, "exact") for name, worth in (others or {}).items()]
        table: list[dict[str, Any]] = []
        for name, worth, how in rows:
            risks = {risk_label(name): float(worth.risks[name]) for name in chain.bounds}
            keeps = all(worth.risks[name] <= bound + ROUNDING for name, bound in chain.bounds.items())
            exact = str(worth.value) if isinstance(worth.value, Fraction) and worth.value.denominator < 10**9 else ""
            table.append(
                {
                    "policy": name,
                    "value": float(worth.value),
                    "exact": exact,
                    **risks,
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
        status = "not asked" if schedule is None else schedule.status
        content: dict[str, Any] = {
            "status": "infeasible" if self.infeasibility is not None else status,
            "without_limits": _evaluation(self.unlimited),
            "linear_program": None
            if randomised is None
            else {name: _plain(value) for name, value in randomised._asdict().items() if name != "schedule"},
            "linear_program_by_step_and_inventory": _evaluation(self.marginal),
            "certificate": self.certificate(),
            "bound": _exact(self.bound),
            "gap": _exact(self.gap),
        }
        if schedule is not None:
            content["schedule"] = {
                **(_evaluation(schedule.evaluation) or {}),
                "seconds": schedule.seconds,
                "proof": self.proof,
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


def risk_label(name: str) -> str:
    """The heading of a limited risk."""
    return "CVaR" if name == "cvar" else f"P({name})"


def _exact(value: Any) -> Any:
    return str(value) if isinstance(value, Fraction) else value


def _plain(value: Any) -> Any:
    """A number that JSON has, or None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "value": float(evaluation.value),
        "exact": str(evaluation.value),
        "risks": {name: str(risk) for name, risk in evaluation.risks.items()},
    }


def constrain(
    problem: ConstrainedProblem,
    *,
    parts: tuple[str, ...] = PARTS,
    time_limit: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ConstrainedSolution:
    """Solve a risk-constrained problem: without limits, over randomised policies, and over schedules.

    Parameters
    ----------
    problem : ConstrainedProblem
    parts : tuple of str
        "lp", the linear program over randomised policies; "schedule", local search, branch and bound, and CP-SAT, over
        schedules.
    time_limit : float, optional
        Of everything, seconds; the problem's by default. What was found by then is returned, with its status.
    workers : int, optional
        Threads of CP-SAT; with one its result is reproducible, the time limit apart. The problem's by default.
    progress : callable, optional
        Called with seconds since the start, best value so far (nan: none) and bound (nan: none).

    Raises
    ------
    MemoryError
        If the states would not fit into this machine.
    """
    started = time.perf_counter()
    limit = problem.time_limit if time_limit is None else time_limit
    workers = problem.workers if workers is None else workers
    deadline = started + (1.0 - RESERVE) * limit
    chain = problem.chain
    Lattice(chain)  # refuses what would not fit into memory, before anything is computed
    solution = ConstrainedSolution(problem, evaluate_table(chain, best_unlimited(chain)))

    def show(_: float, value: float, bound: float) -> None:
        if progress is not None:
            progress(time.perf_counter() - started, value, bound)

    if "lp" in parts:
        share = 0.5 if "schedule" in parts else 1.0
        policies = LinearProgram(chain, started + share * (deadline - started))
        randomised = policies.solve(progress=show)
        if randomised is None:
            return replace(solution, infeasibility=_why_no_policy(chain, policies))
        solution = replace(solution, randomised=randomised)
        if randomised.schedule:
            solution = replace(solution, marginal=evaluate_schedule(chain, randomised.schedule))
    if "schedule" in parts:
        solution = _with_schedule(solution, deadline, SEARCH * limit, workers, show)
    return solution


def _with_schedule(
    solution: ConstrainedSolution, deadline: float, seconds: float, workers: int, progress: Progress
) -> ConstrainedSolution:
    """Local search from the solutions there are, for so many seconds at most; then branch and bound, then CP-SAT."""
    chain, started, randomised = solution.problem.chain, time.perf_counter(), solution.randomised
    starts: list[Schedule] = [as_schedule(best_unlimited(chain))]
    if randomised is not None and randomised.schedule:
        starts.insert(0, randomised.schedule)
    enough = float(solution.bound or math.inf)
    first = search_schedule(
        chain, starts, min(deadline, started + seconds), enough=enough, patience=PATIENCE, progress=progress
    )
    uncertified = None
    try:
        check_program(chain)
    except (ImportError, OverflowError) as error:
        uncertified = str(error)
    prices = [0.0 if randomised is None else randomised.prices.get(name, 0.0) for name in chain.bounds]
    now = time.perf_counter()
    proof = prove_schedule(chain, np.array(prices), first, now + PROOF * (deadline - now), progress)
    if uncertified is not None and not proof.complete:
        again = _search_again(chain, starts, proof.table, deadline, enough, progress)
        proof = proof._replace(table=again)
    worth = None if proof.table is None else evaluate_table(chain, proof.table)
    bound = Fraction(proof.bound) if math.isfinite(proof.bound) else None
    if proof.complete and worth is not None:
        bound = worth.value
    status = ("optimal", "infeasible") if proof.complete else ("feasible", "unknown")
    found = ScheduleOptimum(status[worth is None], proof.table, worth, bound, time.perf_counter() - started)
    solution = replace(solution, schedule=found, proof=f"branch and bound, {proof.nodes} nodes")
    if found.status == "optimal":
        return solution
    if uncertified is None:
        try:
            return _with_program(solution, found, ScheduleProgram(chain, deadline), deadline, workers, progress)
        except (TimeoutError, MemoryError) as error:
            uncertified = str(error)
    why = Infeasibility("schedules", dict(chain.bounds), {}, {}, None, True) if found.status == "infeasible" else None
    return replace(solution, uncertified=uncertified, infeasibility=why)


def _search_again(
    chain: Chain,
    starts: list[Schedule],
    best: dict[tuple[int, int], Quotes] | None,
    deadline: float,
    enough: float,
    progress: Progress,
) -> dict[tuple[int, int], Quotes] | None:
    """The best of a schedule and what local searches with other draws find until the deadline."""
    value = -math.inf if best is None else evaluate_table(chain, best).value
    for seed in itertools.count(1):
        if time.perf_counter() > deadline or value >= enough:
            break
        table = search_schedule(chain, starts, deadline, enough=enough, patience=PATIENCE, seed=seed, progress=progress)
        if table is not None and evaluate_table(chain, table).value > value:
            best, value = table, evaluate_table(chain, table).value
    return best


def _with_program(
    solution: ConstrainedSolution,
    found: ScheduleOptimum,
    program: ScheduleProgram,
    deadline: float,
    workers: int,
    progress: Progress,
) -> ConstrainedSolution:
    """CP-SAT where branch and bound has not ended, and why there is no schedule."""
    if found.status != "infeasible":
        remaining = max(deadline - time.perf_counter(), 0.01)
        optimum = program.solve(time_limit=remaining, workers=workers, progress=progress, first=found.schedule)
        bounds = [number for number in (found.bound, optimum.bound) if number is not None]
        seconds = found.seconds + optimum.seconds
        solution = replace(
            solution, schedule=optimum._replace(bound=min(bounds, default=None), seconds=seconds), proof="CP-SAT"
        )
        if optimum.status != "infeasible":
            return solution
    why = _why_no_schedule(solution.problem.chain, program, deadline, workers)
    return replace(solution, infeasibility=why)


def _others(chain: Chain, name: str) -> list[str]:
    return [other for other in chain.bounds if other != name]


def _why_no_policy(chain: Chain, policies: LinearProgram) -> Infeasibility:
    return Infeasibility(
        of="policies",
        asked=dict(chain.bounds),
        alone={name: policies.least(name, []) for name in chain.bounds},
        with_others={name: policies.least(name, _others(chain, name)) for name in chain.bounds},
        relaxation=policies.relax(),
        proved=not policies.late,
    )


def _why_no_schedule(chain: Chain, schedules: ScheduleProgram, deadline: float, workers: int) -> Infeasibility:
    questions = 2 * len(chain.bounds) + 1  # which share the time that is left

    def search() -> dict[str, Any]:
        nonlocal questions
        share = max(deadline - time.perf_counter(), 0.01) / max(questions, 1)
        questions -= 1
        return {"time_limit": share, "workers": workers}

    alone = {name: schedules.least(name, [], **search()) for name in chain.bounds}
    with_others = {name: schedules.least(name, _others(chain, name), **search()) for name in chain.bounds}
    status, relaxation = schedules.relax(**search())
    statuses = [status, *(outcome[0] for outcome in (*alone.values(), *with_others.values()))]
    return Infeasibility(
        of="schedules",
        asked=dict(chain.bounds),
        alone={name: outcome[1] for name, outcome in alone.items()},
        with_others={name: outcome[1] for name, outcome in with_others.items()},
        relaxation=relaxation,
        proved=all(status in ("optimal", "infeasible") for status in statuses),
    )
