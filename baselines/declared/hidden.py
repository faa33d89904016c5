"""The baselines of declared markets with coordinates that are not observed.

Where what is observed tells nothing of what is hidden (`Beliefs.never_move`), memory is of no use: the best table of
what is observed is the optimum. Otherwise it is bracketed. Above: the optimum of who sees everything. Below: the best
policy known, which is that with the best lower bound of all that are listed, exact for those without memory.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines import frozen
from mmgym.baselines.baseline import BestKnownPolicy, Bounds, PaperPolicies, best_lower
from mmgym.baselines.declared.baseline import DeclaredBaseline
from mmgym.baselines.declared.beliefs import BeliefPolicy, Beliefs, best_memoryless
from mmgym.baselines.declared.one_step import DeclaredProblem
from mmgym.baselines.episodes import ControlVariate, Decision, simulated_columns
from mmgym.baselines.frozen import Solution
from mmgym.baselines.kept import is_named, kept
from mmgym.baselines.policy import Policy
from mmgym.baselines.table_policy import TablePolicy, tabulated

Array = NDArray[Any]

__all__ = ["BlindBaseline", "HiddenBaseline"]

DECISIONS = 1_000_000  # simulated for the lower bound of a policy with memory
ROUGH, MOST_EPISODES = 100, 4_000
ROUNDING = 1e-9  # of a value that is simulated


class _Advantages(ControlVariate):
    """What a policy of the observation is worth, plus the one-step advantages over it of what is played.

    They are those in the true state: the estimate is unbiased for any policy.
    """

    def __init__(self, problem: DeclaredProblem, solution: Solution) -> None:
        self.problem, self.solution = problem, solution
        self.start = float(problem.initial @ solution.raw[0])

    def before(self, decision: Decision) -> Array:
        problem, n, state = self.problem, decision.number, decision.envs.get_state()
        names = [coordinate.name for coordinate in problem.declared.coordinates]
        rows = np.stack([state[name] for name in names], axis=1).astype(np.int64)
        cells = problem.declared.index(problem.params, rows)
        controls = decision.envs.to_quotes(decision.actions)
        advantages = frozen.advantages(problem, self.solution, n, cells, controls)
        return np.asarray(advantages - self.solution.raw[n, cells])


class _BestTable(DeclaredBaseline):
    """What baselines with hidden coordinates share: the best table of what is observed."""

    def __init__(self, params: Any, beliefs: Beliefs, papers: PaperPolicies) -> None:
        super().__init__(params, beliefs.problem, papers)
        self._seen = DeclaredBaseline(params, beliefs.problem, papers)  # of who sees everything
        self.beliefs = beliefs

    @functools.cached_property
    def memoryless(self) -> Solution:
        """The best table known of what is observed.

        ``raw`` is what it is worth in every state, ``values`` that given what is observed there.
        """
        problem = self._declared
        shape = (problem.num_steps, len(self.beliefs.cells), problem.num_controls)

        def make() -> Mapping[str, Any]:
            best = best_memoryless(self.beliefs, self._seen.solution.controls)
            return {"controls": best[:, self.beliefs.cells[:, 0]]}

        def fits(arrays: Mapping[str, Array]) -> bool:
            return arrays["controls"].shape == shape and arrays["controls"].dtype.kind == "f"

        controls = kept(self.params, "memoryless", make, fits)["controls"][:, self.beliefs.group]
        raw = frozen.evaluate(problem, controls)[0][..., 0]
        values = self._expected(controls, raw)[:, self.beliefs.group]
        return Solution(controls, values, raw, np.zeros(problem.num_steps + 1))

    def _expected(self, controls: Array, values: Array) -> Array:
        """Values (N + 1, G) given what is observed, under a table, from values (N + 1, S) of every state."""
        laws = np.stack([self.beliefs.given(law) for law in frozen.state_laws(self._declared, controls)])
        return np.asarray((laws * values[:, self.beliefs.cells]).sum(axis=2))

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`: without sampling error at ``memoryless``."""
        return _Advantages(self._declared, self.memoryless)

    def converted(self, mean: float, stderr: float) -> tuple[float, float]:
        """As in `Baseline`: an expectation."""
        return mean, stderr

    def _cells(self, control_names: Sequence[str], steps: Array, states: Array) -> dict[str, Array]:
        """As of a finite baseline, without the coordinates that are hidden: of the best table."""
        d, solution = self._declared.declared, self.memoryless
        stand = self.beliefs.cells[np.unique(self.beliefs.group[states]), 0]
        rows, columns = np.repeat(steps, len(stand)), np.tile(stand, len(steps))
        seen = [c.name for c, known in zip(d.coordinates, d.observed(self.params), strict=True) if known]
        return {
            "step": rows,
            **{name: self._declared.coordinates[name][columns] for name in seen},
            "value": solution.values[rows, columns],
            **dict(zip(control_names, solution.controls[rows, columns].T, strict=True)),
        }


class BlindBaseline(_BestTable):
    """Of a market that tells nothing of what is hidden: the best table is the optimum, with memory or without."""

    @property
    def solution(self) -> Solution:  # type: ignore[override]
        """The optimum; ``raw`` are its values in every state, which advantages are measured by."""
        return self.memoryless


class HiddenBaseline(_BestTable):
    """Bounds, policies and exact evaluation of policies of the observation, where memory may help."""

    only_bounds = True
    solution: Solution | None = None  # type: ignore[assignment]  # no policy of the observation plays that of states

    def __init__(self, params: Any, beliefs: Beliefs, papers: PaperPolicies) -> None:
        super().__init__(params, beliefs, papers)
        self.ours = ("filtered", "rollout", "memoryless", *papers.ours)

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """Those with memory, the best one without, and the author's, for which what is hidden is guessed.

        ``filtered`` and ``rollout`` are `BeliefPolicy`: with the values of who sees everything, and with those of
        ``memoryless``.
        """

        def believing(solution: Solution) -> Policy:
            return BeliefPolicy(self.beliefs, solution.raw, solution.controls)

        return {
            "filtered": lambda: believing(self._seen.solution),
            "rollout": lambda: believing(self.memoryless),
            "memoryless": lambda: TablePolicy(self._declared, self.memoryless.controls),
            **super().policies(),
        }

    def upper(self) -> float:
        """The optimum of who sees everything."""
        return self._seen.bounds().upper

    def bounds(self) -> Bounds:
        """The optimum of who sees everything, and the lower bound of the best policy known."""
        upper = self.upper()
        return Bounds(min(self.best_known()[1], upper), upper, self._declared.tolerance)

    @functools.cache  # noqa: B019  # baselines are kept anyway
    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound, kept on disk.

        It is exact for a function of the observation, otherwise the mean less four standard errors of a simulation.
        """
        count = int(np.clip(DECISIONS // self._declared.num_steps, ROUGH, MOST_EPISODES))

        def make() -> Mapping[str, Any]:
            name, lower = best_lower(
                list(self.policies()),
                lambda name: self._valued(name, ROUGH, 0x10BD),
                lambda name: float(np.subtract(*self._valued(name, count, 0x10BE))),
            )
            return {"name": name, "lower": lower}

        best = kept(self.params, "best known", make, is_named(self.policies()))
        return str(best["name"]), float(best["lower"])

    def _valued(self, name: str, count: int, seed: int) -> tuple[float, float]:
        """The criterion of a policy and four standard errors of it, 0 where it is exact."""
        problem, policy = self._declared, self.policies()[name]()
        if policy.markov:
            return frozen.criterion_value(problem, tabulated(problem, policy, policy.has_mode)[0]), 0.0
        base = problem.declared.environment.vector_class(1, **self.params._asdict())
        sample = simulated_columns(base, policy, self.control_variate(policy), count, seed)["estimate"]
        value, error = float(sample.mean()), 4.0 * float(sample.std(ddof=1)) / count**0.5
        return value, error + ROUNDING * abs(value)

    def best_policy(self) -> Any:
        """The best policy known."""
        return BestKnownPolicy(self)

    @functools.cached_property
    def _values(self) -> Array:
        """What it is worth to see everything, by step and what is observed, (N + 1, G)."""
        return self._expected(self.memoryless.controls, self._seen.solution.raw)

    def value(self, observation: Any) -> Array:
        """What can be reached from an observation, or from each of a batch, with all seen from then on.

        At the start it is at most that. Later it depends on what was played until then: what is hidden is given the law
        that it has there under ``memoryless``.
        """
        step, cells = self._declared.locate(observation)
        return np.asarray(self._values[step, self.beliefs.group[cells]])
