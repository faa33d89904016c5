r"""Declared markets with coordinates that are not observed: beliefs over them, and the best controls under a belief.

States that are observed alike are a row of cells (H,), one for each combination of what is hidden. A belief is the law
of what is hidden given everything observed so far. One step of the chain under the controls that were played has the
law ``P(v', h' | v, h, u)``, so that Bayes' rule is a sum over finitely many states:

    b'(h')  ~  sum_h b(h) P(v', h' | v, h, u),

to rounding, without particles. The expectation of the criterion under a belief is linear in it.
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym import declare, declared_kernels
from mmgym.baselines.declared import kernels
from mmgym.baselines.declared.boxes import Boxes
from mmgym.baselines.declared.law import SURVEYED, unique_rows
from mmgym.baselines.declared.one_step import DeclaredProblem
from mmgym.baselines.frozen import Functional, criterion_value, state_laws
from mmgym.baselines.maximise import Region, best_controls, climb, in_box, rounding
from mmgym.baselines.policy import RememberingPolicy
from mmgym.compiling import kernel_rows

Array = NDArray[Any]

__all__ = ["BeliefPolicy", "Beliefs", "best_memoryless"]

GRAIN = 2.0**-40  # of beliefs: histories that tell the same have the same one
MOST_ROUNDS = 50
ENOUGH = 1e-12  # of the value: what a round of improvements must bring


class _Averaged:
    """The search for the continuous controls of rows, averages over cells (R, H), as `Boxes` is that of states.

    Parameters
    ----------
    search : Boxes
    cells, shares : (R, H)
        States after the impulse of a decision, and their probabilities.
    """

    aversion = 0.0
    search_tolerance = Boxes.search_tolerance

    def __init__(self, search: Boxes, cells: Array, shares: Array) -> None:
        self.search, self.cells, self.shares = search, cells, shares
        self.num_states = len(cells)
        self.low_controls, self.high_controls = search.low_controls, search.high_controls
        self.control_units = search.control_units
        self.unit_value, self.step_reward = search.unit_value, search.step_reward
        self._polynomials: Array | None = None

    def cell(self, state: int) -> str:
        """A row in words."""
        return f"{self.search.cell(int(self.cells[state, 0]))}, whatever is hidden"

    def _mean(self, rows: Array, each: Array) -> Array:
        """Averages (M, ..) of rows (M,) from ``each`` of their cells, (M H, ..)."""
        shares = self.shares[rows]
        return np.asarray(np.einsum("mh,mh...->m...", shares, each.reshape(*shares.shape, *each.shape[1:])))

    def _pairs(self, rows: Array, controls: Array) -> tuple[Array, Array]:
        return self.cells[rows].ravel(), np.repeat(controls, self.cells.shape[1], axis=0)

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        """One-step values (M, 1) of rows."""
        pairs = self._pairs(states, controls)
        return self._mean(states, self.search.backward(n, *pairs, self._values, functional))

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        """One-step values (M, 1) of rows, and their derivatives (M, B)."""
        if self._polynomials is not None:
            value, slope = np.empty(len(states)), np.empty(np.shape(controls))
            box = (self.low_controls, self.high_controls)
            kernels.polynomial_slopes(self._polynomials, *box, states, np.ascontiguousarray(controls), value, slope)
            return value[:, None], slope
        worth, slopes = self.search.gradient(n, *self._pairs(states, controls), self._values)
        return self._mean(states, worth), self._mean(states, slopes)

    def region(self, n: int, values: Array) -> Region:
        """The box, and rows with a cell that may have several maxima."""
        crowded = self.search.region(n, self._values[:, 0]).crowded
        return Region(self.low_controls, self.high_controls, np.asarray(crowded[self.cells].any(axis=1)))

    def improve(self, n: int, values: Array, guess: Array, everywhere: bool) -> tuple[Array, Array]:
        """Best controls (R, B) and their values (R,), near a guess or ``everywhere`` in the box."""
        noise = rounding(self, values[:, 0])  # type: ignore[arg-type]  # of a problem it needs what searches need only
        look, coefficients = self.search.surveyed(n, values, noise)
        self._values, rows = values, np.arange(self.num_states)
        sizes = np.full((self.num_states, 1), np.abs(values).max())  # what searches need of the values
        controls = np.clip(guess, self.low_controls, self.high_controls)
        if coefficients is not None:
            weighted = (
                share[:, None, None] * coefficients[at] for at, share in zip(self.cells.T, self.shares.T, strict=True)
            )
            self._polynomials = np.ascontiguousarray(sum(weighted))
            best, shortfalls = np.empty(self.num_states), np.empty(self.num_states)
            box = (self.low_controls, self.high_controls, self.control_units)
            noises = np.full(self.num_states, noise[0])
            kernels.improve_polynomials(self._polynomials, 0.0, *box, noises, controls, best, shortfalls)
        else:
            controls, best, shortfalls = climb(self, n, rows, controls, sizes)  # type: ignore[arg-type]
        if not everywhere:
            return in_box(self, controls), best  # type: ignore[arg-type]

        def survey(states: Array, grid: Array) -> Array:
            return self._mean(states, look(self.cells[states].ravel(), grid))

        chosen, worth = best_controls(self, n, sizes, in_box(self, controls), best, shortfalls, survey=survey)  # type: ignore[arg-type]
        return chosen, worth[:, 0]


class Beliefs:
    """What is observed of a declared market, and what is to be expected under beliefs over what is hidden.

    Parameters
    ----------
    problem : DeclaredProblem

    Attributes
    ----------
    cells : (G, H)
        States that are observed alike.
    group : (S,)
        Which of them a state is one of.
    prior : (G, H)
        The belief at the first decision.
    """

    def __init__(self, problem: DeclaredProblem) -> None:
        self.problem = problem
        _, self.group = np.unique(problem.declared.alike(problem.params), return_inverse=True)
        self.cells = np.argsort(self.group, kind="stable").reshape(int(self.group.max()) + 1, -1)
        self.prior = self.given(problem.initial)

    def given(self, law: Array) -> Array:
        """Laws (G, H) of what is hidden given what is observed, from the law (S,) of both.

        Given what has no chance it is what it is without looking.
        """
        masses = law[self.cells]
        total = masses.sum(axis=1, keepdims=True)
        return np.where(total > 0.0, masses / np.where(total > 0.0, total, 1.0), masses.sum(axis=0) / masses.sum())

    def updated(self, n: int, group: Array, belief: Array, controls: Array, following: Array) -> Array:
        """Beliefs (B, H) after the step ``n`` from those (B, H) before it.

        Parameters
        ----------
        n : int
        group, following : (B,)
            What is observed before and after the step.
        belief : (B, H)
        controls : (B, C)
            What was played.
        """
        unique, which = unique_rows(np.column_stack([group, following, belief, controls]))
        count, result = belief.shape[1], np.empty((len(unique), belief.shape[1]))
        size = max(1, SURVEYED // self.problem.num_states)
        for start in range(0, len(unique), size):
            part = unique[start : start + size]
            before, after = part[:, :2].astype(np.int64).T
            laws = self.problem.laws(n, self.cells[before], part[:, 2 + count :], part[:, 2 : 2 + count])
            masses = np.take_along_axis(laws, self.cells[after], axis=1)
            total = masses.sum(axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                likely = np.where(total > 0.0, masses / total, 1.0 / count)  # nothing is known after the impossible
            result[start : start + size] = np.round(likely / GRAIN) * GRAIN
        return np.asarray(result[which])

    @functools.cached_property
    def never_move(self) -> bool:
        """Whether what is observed tells nothing of what is hidden, whatever is played, so that its law is the prior.

        Then the best table of what is observed is the optimum. It is so where at the start both are independent, no
        event moves both, those that move what is observed do it alike whatever is hidden, and those that move what is
        hidden do it alike whatever is observed and played. Intensities that read the state and the controls, impulses
        and functions of the step are not looked into: False.
        """
        problem = self.problem
        d, law = problem.declared, problem.initial[self.cells]
        if d.impulse is not None or d.reads_step:
            return False
        apart = np.outer(law.sum(axis=1), law.sum(axis=0))
        return bool(np.allclose(law, apart, rtol=0.0, atol=1e-15)) and all(map(self._moves_one, range(len(d.moves))))

    def _moves_one(self, k: int) -> bool:
        """Whether a move is of what is observed or of what is hidden alone, and alike whatever the other is."""
        problem, cells = self.problem, self.cells
        d, following = problem.declared, problem.following[k]
        intensity = d.moves[k][0].intensity
        reads = inspect.signature(getattr(intensity, "py_func", intensity)).parameters
        if {"x", "u"} <= set(reads):
            return False
        chances = np.ones((len(d.moves), problem.num_states))
        declared_kernels.find_chances(kernel_rows(d.engine.record(problem.params)), 0, problem.rows, chances)
        once = declare.rates_of(d, problem.params, 0, problem.low_controls)[0][k] if "x" in reads else chances[k]
        rate = np.where(following >= 0, once, 0.0)
        after = np.where(rate > 0.0, following, np.arange(problem.num_states))
        place = np.argsort(self.cells, axis=None) % cells.shape[1]  # (S,) what is hidden
        seen, hidden, rate = self.group[after][cells], place[after][cells], rate[cells]
        stays = bool((hidden == np.arange(cells.shape[1])).all())
        if stays and (seen == seen[:, :1]).all() and (rate == rate[:, :1]).all():
            return True
        alone = bool((seen == np.arange(len(cells))[:, None]).all()) and "u" not in reads
        return alone and bool((hidden == hidden[:1]).all() and (rate == rate[:1]).all())

    def _worths(
        self, n: int, group: Array, belief: Array, values: Array, guess: Array, everywhere: bool
    ) -> Iterator[tuple[Array, Array]]:
        """Of every combination of choices: its value (R,), NaN where it is masked, and the best controls (R, C)."""
        problem, cells = self.problem, self.cells[group]
        boxed = problem.declared.boxed
        if not boxed.any():
            for worths, controls in problem.combinations(n, values):
                yield (belief * worths[cells]).sum(axis=1), controls[cells[:, 0]]
            return
        for search, (allowed, landed, paid) in zip(problem.searches, problem.decisions(n), strict=True):
            averaged = _Averaged(search, landed[cells], belief)
            free, worth = averaged.improve(n, values, guess[:, boxed], everywhere)
            worth = worth + (belief * paid[cells]).sum(axis=1)
            yield np.where(allowed[cells[:, 0]], worth, np.nan), search.placed(free)

    def best(
        self, n: int, group: Array, belief: Array, values: Array, guess: Array, everywhere: bool
    ) -> tuple[Array, Array]:
        """Best controls (R, C) under beliefs, and what they are worth (R,).

        Parameters
        ----------
        n : int
        group, belief : (R,), (R, H)
        values : (S, 1)
            Of step n + 1: what the rest is worth in every state, hidden or not.
        guess : (R, C)
            Where the search for continuous controls begins.
        everywhere : bool
            Whether it looks all over the box.
        """
        best, controls = np.full(len(group), np.nan), np.array(guess, dtype=np.float64)
        for worth, played in self._worths(n, group, belief, values, guess, everywhere):
            here = (worth > best) | (np.isnan(best) & ~np.isnan(worth))
            best[here], controls[here] = worth[here], played[here]
        return controls, best


def best_memoryless(beliefs: Beliefs, guess: Array) -> Array:
    """A table (N, S, C) of controls that depend on what is observed only, better than which no one step can make it.

    The criterion is linear in what is played at one step, with weights that are the exact law of the state there: steps
    are improved one after the other, the last one first, each over the whole box, until a round brings nothing. No
    round makes it worse. Other tables may be better: it is a maximum in the controls of every step by itself.

    Parameters
    ----------
    beliefs : Beliefs
    guess : (N, S, C)
        Where the search begins: at its mean under the prior belief.
    """
    problem, groups = beliefs.problem, np.arange(len(beliefs.cells))
    mean = (beliefs.prior[..., None] * guess[:, beliefs.cells]).sum(axis=2)
    controls, everyone = mean[:, beliefs.group], np.arange(problem.num_states)
    value = criterion_value(problem, controls)
    for _ in range(MOST_ROUNDS):
        laws, values = state_laws(problem, controls), problem.terminal(problem.criterion)
        for n in reversed(range(problem.num_steps)):
            belief, before = beliefs.given(laws[n]), controls[n][beliefs.cells[:, 0]]
            chosen, worth = beliefs.best(n, groups, belief, values, before, True)
            kept = problem.backward(n, everyone, controls[n], values, problem.criterion)[:, 0]
            better = worth > (belief * kept[beliefs.cells]).sum(axis=1)
            controls[n] = np.where(better[:, None], chosen, before)[beliefs.group]
            values = problem.backward(n, everyone, controls[n], values, problem.criterion)
        last, value = value, float(problem.initial @ values[:, 0])
        if not value - last > ENOUGH * max(abs(value), problem.law.unit_value):
            break
    return np.asarray(controls)


class _Memory(NamedTuple):
    step: Array  # (B,)
    group: Array  # (B,)
    belief: Array  # (B, H)
    controls: Array  # (B, C), as they were played


class BeliefPolicy(RememberingPolicy):
    """What is best for one step under the belief, if the rest is worth what values say.

    With the values of a policy of the observation it is worth at least as much as that one, and more wherever the
    belief moves its controls: the expectation of those values under the belief is what it is worth to go on with it.
    With the values of who sees everything it takes for granted that everything will be seen after the step (Littman,
    Cassandra & Kaelbling 1995, QMDP).

    Parameters
    ----------
    beliefs : Beliefs
    values : (N + 1, S)
    controls : (N, S, C)
        Where the search for continuous controls begins: at their expectation under the belief.
    """

    def __init__(self, beliefs: Beliefs, values: Array, controls: Array) -> None:
        self.beliefs, self._values, self._controls = beliefs, values, controls

    def quotes_of(self, actions: Any) -> Array:  # type: ignore[override]
        """Quotes in model units that its actions stand for."""
        return self.beliefs.problem.controls(actions)

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Array, Any]:
        """Action of one observation, or actions of a batch, and the belief with what it rests on."""
        problem, beliefs = self.beliefs.problem, self.beliefs
        seen = np.asarray(observation)
        step, cells = problem.locate(np.atleast_2d(seen))
        step, group = np.minimum(step, problem.num_steps - 1), beliefs.group[cells]
        belief = beliefs.prior[group]
        if state is not None:
            begun = step <= state.step
            if episode_start is not None:
                begun = begun | np.reshape(episode_start, begun.shape).astype(np.bool_)
            for n in np.unique(state.step[~begun]).tolist():
                at = np.flatnonzero(~begun & (state.step == n))
                belief[at] = beliefs.updated(n, state.group[at], state.belief[at], state.controls[at], group[at])
        actions = problem.actions(self._best(step, group, belief))
        memory = _Memory(step, group, belief, problem.controls(actions))
        return (actions if seen.ndim > 1 else actions[0]), memory

    def _best(self, step: Array, group: Array, belief: Array) -> Array:
        """Best controls (B, C), found once for decisions that are the same."""
        unique, which = unique_rows(np.column_stack([step, group, belief]))
        controls = np.empty((len(unique), self._controls.shape[-1]))
        for n in np.unique(unique[:, 0]).astype(int).tolist():
            at = np.flatnonzero(unique[:, 0] == n)
            groups, likely = unique[at, 1].astype(np.int64), unique[at, 2:]
            guess = (likely[..., None] * self._controls[n][self.beliefs.cells[groups]]).sum(axis=1)
            controls[at], _ = self.beliefs.best(n, groups, likely, self._values[n + 1][:, None], guess, False)
        return np.asarray(controls[which])
