"""The best deterministic schedule of quotes, certified: OR-Tools CP-SAT on whole numbers (extra ``constraints``).

A boolean ``y(n, q, a)`` says that the schedule posts the quotes ``a`` at step ``n`` and inventory ``q``, exactly one
for each cell (with ``time_only`` one for each step). ``x(n, s, a)`` is the mass of state ``s``, in parts of ``B^n``,
that plays ``a``: whole numbers, since a schedule does not split masses, and 0 unless ``y``. The flow of masses, the
limits and the objective are linear with whole coefficients, so nothing is rounded and the optimum is a certified
rational. A conditional value at risk is the least of ``t + E[(-w_N - t)^+] / (1 - confidence)`` over final losses
``t``: a boolean for each says which one is used.
"""

import math
import threading
import time
from fractions import Fraction
from typing import Any, NamedTuple

from mmgym.baselines.constrained.linear_program import Progress
from mmgym.baselines.constrained.model import Chain, Evaluation, Quotes, Table, evaluate_table

__all__ = ["ScheduleOptimum", "ScheduleProgram", "check_program"]

LARGEST = 2**53  # whole numbers in the program stay below this


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


def _scales(chain: Chain) -> tuple[int, int]:
    """What makes the shortfall and the objective whole numbers, beside the parts of ``B^N``."""
    cvar, market = chain.limits.cvar, chain.market
    penalties = (market.terminal_penalty, market.running_penalty)
    return 1 if cvar is None else cvar.confidence.denominator, math.lcm(*(p.denominator for p in penalties))


def check_program(chain: Chain) -> None:
    """Raise ImportError without OR-Tools, OverflowError if masses leave the whole numbers up to 2^53."""
    _cp_model()
    market, steps, bound = chain.market, chain.market.num_steps, chain.inventory_limit
    farthest = max(map(abs, market.mid_moves))
    wealth = steps * (max(market.fill_probabilities) + bound * farthest)
    reach = wealth + (market.terminal_penalty + steps * market.running_penalty) * bound**2 + 1
    shortfall, objective = _scales(chain)
    if chain.denominator**steps * max(objective, 2 * shortfall) * reach > LARGEST:
        raise OverflowError(
            f"num_steps = {steps} with probabilities in parts of {chain.denominator} is not allowed: masses in "
            f"parts of {chain.denominator}^{steps} leave the whole numbers up to 2^53; use fewer steps or "
            "probabilities with a smaller common denominator"
        )


class ScheduleProgram:
    """The program of a chain; `solve` maximises the objective, `least` minimises one risk.

    Parameters
    ----------
    chain : Chain
    deadline : float
        On the clock of `time.perf_counter`.

    Raises
    ------
    ImportError
        Without OR-Tools, the extra ``constraints``.
    OverflowError
        If masses leave the whole numbers up to 2^53.
    TimeoutError
        If the program is not built by the deadline.
    """

    def __init__(self, chain: Chain, deadline: float = math.inf) -> None:
        check_program(chain)
        self._library = _cp_model()
        self.chain, self._deadline = chain, deadline
        self._whole = whole = chain.denominator**chain.market.num_steps
        cvar = chain.limits.cvar
        self._units = dict.fromkeys(chain.bounds, whole)
        self._shortfall_scale, self._objective_scale = _scales(chain)
        if cvar is not None:
            self._units["cvar"] = whole * int(self._shortfall_scale * (1 - cvar.confidence))
        self._build()

    def _build(self) -> None:
        chain = self.chain
        self._model = self._library.CpModel()
        self._choose()
        mass: dict[Any, Any] = {chain.start: 1}
        highest: dict[Any, int] = {chain.start: 1}
        rewards: list[tuple[Any, Any]] = []
        for n in range(len(chain.layers) - 1):
            mass, highest = self._play(n, mass, highest)
            rest = self._whole // chain.denominator ** (n + 1)
            for state, variable in mass.items():
                reward = chain.step_reward(state.inventory) * self._objective_scale * rest
                if reward:
                    rewards.append((int(reward), variable))
        self._counted = {
            name: sum((variable for state, variable in mass.items() if chain.violates(name, state)), start=0)
            for name in chain.bounds
            if name != "cvar"
        }
        if chain.limits.cvar is not None:
            self._counted["cvar"] = self._shortfall(mass)
        for state, variable in mass.items():
            rewards.append((chain.final_reward(state) * self._objective_scale, variable))
        self._worth = sum((int(reward) * variable for reward, variable in rewards), start=0)

    def _choose(self) -> None:
        """A boolean for every choice of a decision, exactly one of them true."""
        model = self._model
        self._booleans: list[tuple[Any, dict[tuple[int, int], Quotes]]] = []
        self._chosen: dict[tuple[int, int], dict[Quotes, Any]] = {}
        for n, decisions in enumerate(self.chain.decisions):
            for _, choices in decisions:
                booleans = [model.new_bool_var("") for _ in choices]
                model.add_exactly_one(booleans)
                for boolean, choice in zip(booleans, choices, strict=True):
                    self._booleans.append((boolean, {(n, q): pair for q, pair in choice.items()}))
                    for q, pair in choice.items():
                        cell = self._chosen.setdefault((n, q), {})
                        cell[pair] = cell[pair] + boolean if pair in cell else boolean

    def _play(self, n: int, mass: dict[Any, Any], highest: dict[Any, int]) -> tuple[dict[Any, Any], dict[Any, int]]:
        """Masses of the states after step ``n``, and the most that each can be, from those before it."""
        chain, model = self.chain, self._model
        inflow: dict[Any, list[Any]] = {}
        reach: dict[Any, int] = {}
        by_cell: dict[tuple[int, Quotes], list[Any]] = {}
        total = chain.denominator**n
        for state in chain.layers[n]:
            if time.perf_counter() > self._deadline:
                raise TimeoutError("the program was not built within the time limit")
            q, most = state.inventory, highest[state]
            plays = []
            reach_of_state: dict[Any, int] = {}
            for pair in self._chosen[n, q]:
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
        return mass, highest

    def _shortfall(self, mass: dict[Any, Any]) -> Any:
        """A variable that is at least the conditional value at risk, in its unit."""
        model, unit, scale = self._model, self._units["cvar"], self._shortfall_scale
        losses = sorted({-state.wealth for state in mass})
        shortfall = model.new_int_var(losses[0] * unit, losses[-1] * unit, "")
        used = [model.new_bool_var("") for _ in losses]
        model.add_exactly_one(used)
        for t, boolean in zip(losses, used, strict=True):
            beyond = [(-state.wealth - t, variable) for state, variable in mass.items() if -state.wealth > t]
            excess = sum((loss * variable for loss, variable in beyond), start=0)
            model.add(t * unit + scale * excess <= shortfall).only_enforce_if(boolean)
        return shortfall

    def _most(self, name: str) -> int:
        """The units of a risk that a limit allows, a whole number."""
        most: Fraction = self.chain.bounds[name] * self._units[name]
        return math.floor(most)

    def _run(
        self,
        objective: Any,
        maximise: bool,
        kept: list[str],
        time_limit: float,
        workers: int,
        progress: Progress | None = None,
        unit: int = 1,
    ) -> tuple[str, dict[tuple[int, int], Quotes] | None, Fraction | None, float]:
        model = self._model.clone()
        for name in kept:
            model.add(self._counted[name] <= self._most(name))
        (model.maximize if maximise else model.minimize)(objective)
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
        schedule: dict[tuple[int, int], Quotes] = {}
        for boolean, cells in self._booleans:
            if solver.boolean_value(boolean):
                schedule.update(cells)
        return status, schedule, bound, solver.wall_time

    def solve(
        self,
        *,
        time_limit: float = 60.0,
        workers: int = 1,
        progress: Progress | None = None,
        first: Table | None = None,
    ) -> ScheduleOptimum:
        """The best schedule under all limits, certified unless the time limit (seconds) comes first.

        It is not worse than a table that keeps to the limits, if one is given (as a hint it made the proof four times
        slower). With one worker the result is reproducible, the time limit apart.
        """
        unit, kept = self._whole * self._objective_scale, list(self.chain.bounds)
        status, table, bound, seconds = self._run(self._worth, True, kept, time_limit, workers, progress, unit)
        worth = None if table is None else evaluate_table(self.chain, table)
        if worth is not None and (not worth.meets(self.chain) or (status == "optimal" and worth.value != bound)):
            raise RuntimeError(
                f"CP-SAT's schedule is worth {worth.value} with {worth.risks}, and not {bound} within the limits: this "
                "is a bug, please report it"
            )
        if first is not None and status in ("unknown", "feasible"):
            known = evaluate_table(self.chain, first)
            if known.meets(self.chain) and (worth is None or worth.value < known.value):
                status, table, worth = "feasible", dict(first), known
        return ScheduleOptimum(status, table, worth, bound, seconds)

    def least(
        self, name: str, kept: list[str], *, time_limit: float = 60.0, workers: int = 1
    ) -> tuple[str, Fraction | None]:
        """Smallest risk over the schedules that keep to the limits on the others named: status and risk.

        The risk is that of a schedule; None where there is none ("infeasible") or none was found ("unknown").
        """
        status, table, _, _ = self._run(self._counted[name], False, kept, time_limit, workers)
        return status, None if table is None else evaluate_table(self.chain, table).risks[name]

    def relax(self, *, time_limit: float = 60.0, workers: int = 1) -> tuple[str, dict[str, Fraction] | None]:
        """Bounds that some schedule keeps to, raised by as little as possible in all (to a part of ``B^N``)."""
        excess, largest = [], max(self._units.values())
        for name, unit in self._units.items():
            weight = largest // unit
            raised = self._model.new_int_var(0, LARGEST // weight, "")
            self._model.add(self._counted[name] - self._most(name) <= raised)
            excess.append(weight * raised)
        status, table, _, _ = self._run(sum(excess), False, [], time_limit, workers)
        if table is None:
            return status, None
        risks = evaluate_table(self.chain, table).risks
        return status, {name: max(risks[name], bound) for name, bound in self.chain.bounds.items()}


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
