"""The best deterministic schedule of quotes, certified: OR-Tools CP-SAT on whole numbers (extra ``constraints``).

A boolean ``y(n, q, a)`` says that the schedule posts the quotes ``a`` at step ``n`` and inventory ``q``, exactly one
for each cell. ``x(n, s, a)`` is the mass of state ``s``, in parts of ``B^n``, that plays ``a``: whole numbers, since a
schedule does not split masses, and 0 unless ``y``. The flow of masses, the limits and the objective are linear with
whole coefficients, so nothing is rounded and the optimum is a certified rational.
"""

import math
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from mmgym.baselines.constrained.model import Chain, Evaluation, Quotes, evaluate_table, first_table

__all__ = ["Progress", "ScheduleOptimum", "ScheduleProgram"]

LARGEST = 2**53  # whole numbers in the program stay below this

Progress = Callable[[float, float, float], None]  # seconds, best value so far (nan: none), bound


class ScheduleOptimum(NamedTuple):
    """What was found within the time limit.

    ``status`` is "optimal", "feasible" (the best found within the time limit), "infeasible" or "unknown" (nothing
    found, nothing proved). ``schedule`` and ``evaluation`` are None where there is no solution. ``bound`` is CP-SAT's
    upper bound of the optimum, or None where it stopped before it had one.
    """

    status: str
    schedule: dict[tuple[int, int], Quotes] | None
    evaluation: Evaluation | None
    bound: Fraction | None
    seconds: float


def _cp_model() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ImportError("certified schedules need OR-Tools: pip install 'mmgym[constraints]'") from error
    return cp_model


class ScheduleProgram:
    """The program of a chain; `solve` maximises the objective, `least` minimises the probability of one limit."""

    def __init__(self, chain: Chain) -> None:
        self._library = _cp_model()
        self.chain = chain
        self._whole = chain.denominator**chain.market.num_steps
        penalties = (chain.market.terminal_penalty, chain.market.running_penalty)
        self._objective_scale = math.lcm(*(penalty.denominator for penalty in penalties))
        steps, bound = chain.market.num_steps, chain.inventory_limit
        farthest = max(map(abs, chain.market.mid_moves))
        wealth = steps * (max(chain.market.fill_probabilities) + bound * farthest)
        reach = wealth + (penalties[0] + steps * penalties[1]) * bound**2 + 1
        if self._whole * self._objective_scale * reach > LARGEST:
            raise ValueError(
                f"num_steps = {steps} with probabilities in parts of {chain.denominator} is not allowed: masses in "
                f"parts of {chain.denominator}^{steps} leave the whole numbers up to 2^53; use fewer steps or "
                "probabilities with a smaller common denominator"
            )
        self._hint: dict[tuple[int, int], Quotes] | None = None
        self._build()

    def _build(self) -> None:
        chain, model = self.chain, self._library.CpModel()
        self._model = model
        self._chosen: dict[tuple[int, int], dict[Quotes, Any]] = {}
        for n, inventories in enumerate(chain.reachable_inventories):
            for q in inventories:
                cell = {pair: model.new_bool_var(f"y{n}_{q}_{pair.bid}_{pair.ask}") for pair in chain.quotes[q]}
                model.add_exactly_one(cell.values())
                self._chosen[n, q] = cell
        mass: dict[Any, Any] = {chain.start: 1}
        highest: dict[Any, int] = {chain.start: 1}
        rewards: list[tuple[Any, Any]] = []
        for n, layer in enumerate(chain.layers[:-1]):
            inflow: dict[Any, list[Any]] = {}
            reach: dict[Any, int] = {}
            by_cell: dict[tuple[int, Quotes], list[Any]] = {}
            total = chain.denominator**n
            for state in layer:
                q, most = state.inventory, highest[state]
                plays = []
                reach_of_state: dict[Any, int] = {}
                for pair in chain.quotes[q]:
                    x = model.new_int_var(0, most, "")
                    model.add(x <= most * self._chosen[n, q][pair])
                    plays.append(x)
                    by_cell.setdefault((q, pair), []).append(x)
                    for after, parts in chain.successors(state, pair):
                        inflow.setdefault(after, []).append(parts * x)
                        reach_of_state[after] = max(reach_of_state.get(after, 0), parts * most)
                model.add(sum(plays) == mass[state])
                for after, parts in reach_of_state.items():
                    reach[after] = reach.get(after, 0) + parts
            for (q, pair), plays in by_cell.items():  # redundant, and what makes it fast
                model.add(sum(plays) <= total * self._chosen[n, q][pair])
            whole = total * chain.denominator
            highest = {state: min(most, whole) for state, most in reach.items()}
            mass = {}
            for state, parts_of in inflow.items():
                mass[state] = model.new_int_var(0, highest[state], "")
                model.add(mass[state] == sum(parts_of))
            model.add(sum(mass.values()) == whole)  # redundant
            rest = self._whole // whole
            for state, variable in mass.items():
                reward = chain.step_reward(state.inventory) * self._objective_scale * rest
                if reward:
                    rewards.append((int(reward), variable))
        self._counted = {
            name: sum((variable for state, variable in mass.items() if chain.violates(name, state)), start=0)
            for name in chain.risk_limits
        }
        for state, variable in mass.items():
            rewards.append((chain.final_reward(state) * self._objective_scale, variable))
        self._worth = sum((int(reward) * variable for reward, variable in rewards), start=0)

    def _most(self, name: str) -> int:
        """The parts of ``B^N`` that a limit allows, a whole number."""
        parts: Fraction = self.chain.risk_limits[name].probability * self._whole
        return math.floor(parts)

    def _run(
        self,
        objective: Any,
        maximise: bool,
        kept: list[str],
        time_limit: float,
        workers: int,
        progress: Progress | None,
        unit: int,
    ) -> tuple[str, dict[tuple[int, int], Quotes] | None, Fraction | None, float]:
        model = self._model.clone()
        for name in kept:
            model.add(self._counted[name] <= self._most(name))
        (model.maximize if maximise else model.minimize)(objective)
        for cell, pair in (self._hint or {}).items():
            for other, variable in self._chosen[cell].items():
                model.add_hint(variable, other == pair)
        solver = self._library.CpSolver()
        solver.parameters.max_time_in_seconds = time_limit
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = 0
        watcher = _watcher(self._library, progress, unit) if progress is not None else None
        if watcher is not None:
            solver.best_bound_callback = watcher.on_bound
        code = solver.solve(model, watcher)
        names = {
            self._library.OPTIMAL: "optimal",
            self._library.FEASIBLE: "feasible",
            self._library.INFEASIBLE: "infeasible",
            self._library.UNKNOWN: "unknown",
        }
        if code not in names:
            raise RuntimeError(f"CP-SAT refused the program: {model.validate()}")
        status = names[code]
        if status == "infeasible":
            return status, None, None, solver.wall_time
        if status == "unknown":
            return status, None, None, solver.wall_time  # stopped before it had a bound, perhaps
        bound = Fraction(math.floor(solver.best_objective_bound + 0.5), unit)
        schedule = {
            cell: next(pair for pair, variable in choices.items() if solver.boolean_value(variable))
            for cell, choices in self._chosen.items()
        }
        return status, schedule, bound, solver.wall_time

    def solve(self, *, time_limit: float = 60.0, workers: int = 1, progress: Progress | None = None) -> ScheduleOptimum:
        """The best schedule under all limits, certified unless the time limit (seconds) comes first.

        The search starts from `first_table`. With one worker the result is reproducible, the time limit apart.
        """
        unit = self._whole * self._objective_scale
        kept = list(self.chain.risk_limits)
        started = time.perf_counter()
        self._hint = first_table(self.chain, seconds=time_limit / 4)
        time_limit = max(time_limit - (time.perf_counter() - started), 0.01)
        first = evaluate_table(self.chain, self._hint)
        status, table, bound, seconds = self._run(self._worth, True, kept, time_limit, workers, progress, unit)
        worth = None if table is None else evaluate_table(self.chain, table)
        if worth is not None and (not worth.meets(self.chain) or (status == "optimal" and worth.value != bound)):
            raise RuntimeError(
                f"CP-SAT's schedule is worth {worth.value} with {worth.probabilities}, and not {bound} within the "
                "limits: this is a bug, please report it"
            )
        if (
            status in ("unknown", "feasible")
            and first.meets(self.chain)
            and (worth is None or worth.value < first.value)
        ):
            status, table, worth = "feasible", self._hint, first
        return ScheduleOptimum(status, table, worth, bound, seconds)

    def least(
        self, name: str, kept: list[str], *, time_limit: float = 60.0, workers: int = 1
    ) -> tuple[str, Fraction | None]:
        """Smallest probability of a limit over the schedules that keep to the others named: status and probability.

        The probability is that of a schedule; None where there is none ("infeasible") or none was found ("unknown").
        """
        status, table, _, _ = self._run(self._counted[name], False, kept, time_limit, workers, None, self._whole)
        return status, None if table is None else evaluate_table(self.chain, table).probabilities[name]

    def relax(self, *, time_limit: float = 60.0, workers: int = 1) -> tuple[str, dict[str, Fraction] | None]:
        """Probabilities that some schedule keeps to, raised by as little as possible in all (to a part of ``B^N``)."""
        limits = self.chain.risk_limits
        excess = []
        for name in limits:
            raised = self._model.new_int_var(0, self._whole, "")
            self._model.add(self._counted[name] - self._most(name) <= raised)
            excess.append(raised)
        status, table, _, _ = self._run(sum(excess), False, [], time_limit, workers, None, self._whole)
        if table is None:
            return status, None
        probabilities = evaluate_table(self.chain, table).probabilities
        return status, {name: max(probabilities[name], limit.probability) for name, limit in limits.items()}


def _watcher(library: Any, progress: Progress, unit: int) -> Any:
    """A callback of CP-SAT that reports the time, the best value and the bound."""

    class Watcher(library.CpSolverSolutionCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()
            self._value, self._bound, self._seconds = math.nan, math.nan, 0.0

        def on_solution_callback(self) -> None:
            with self._lock:
                self._value = self.objective_value / unit
                self._bound, self._seconds = self.best_objective_bound / unit, self.wall_time
                progress(self._seconds, self._value, self._bound)

        def on_bound(self, bound: float) -> None:
            with self._lock:
                self._bound = bound / unit
                progress(math.nan, self._value, self._bound)

    return Watcher()
