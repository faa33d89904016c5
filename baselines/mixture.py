"""Several markets with the same states and actions, one of which is played: a frozen problem of their union.

Which market it is, is drawn at the start and stays. Where observations end in the parameters that differ, a policy
knows it, and the optimum is that of the union; otherwise a policy acts alike in all of them, and the optimum of the
union, which knows it, is an upper bound. A fixed table for all of them is improved on the exact mean of exact values, a
lower bound: by Newton's method where controls are continuous, and where they are choices by trying in every cell what
is best in each of the problems.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.frozen import (
    ActionValues,
    FrozenProblem,
    Functional,
    Solution,
    check_tables,
    criterion_value,
    visits,
)

__all__ = ["MixtureProblem", "best_fixed_table", "mean_value", "union_solution"]

Array = NDArray[Any]

DIFFERENCE = 1e-4  # of actions, for curvatures
MOST_ROUNDS = 60  # of Newton's method
ENOUGH = 1e-10  # relative to the value: what a further round must promise
DAMPING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)  # of a step that gains nothing


class MixtureProblem:
    """The union of frozen problems: state ``k S + s`` is the state ``s`` of the problem ``k``.

    Parameters
    ----------
    parts : sequence of FrozenProblem
        With as many steps, states and controls each, and the same actions.
    weights : (K,)
        Their probabilities.
    seen : (K, W), optional
        What observations end in; without it, they do not tell the problems apart.
    coordinates : mapping of str to (K,)
        What the problems are, for tables of states.
    """

    def __init__(
        self,
        parts: Sequence[FrozenProblem],
        weights: Array,
        seen: Array | None,
        coordinates: Mapping[str, Array],
    ) -> None:
        self.parts, self.weights, self.seen = list(parts), np.asarray(weights, np.float64), seen
        first = self.parts[0]
        self.num_steps, self.num_controls, self.size = first.num_steps, first.num_controls, first.num_states
        self.num_states = len(self.parts) * self.size
        check_tables(self.num_steps, self.num_states, self.num_controls, "the number of values in randomise")
        self.tolerance = float(self.weights @ [part.tolerance for part in self.parts])
        self.has_market_orders = first.has_market_orders
        self.criterion = first.criterion
        self.initial = np.concatenate([w * part.initial for w, part in zip(self.weights, self.parts, strict=True)])
        self.coordinates: Mapping[str, Array] = {
            **{name: np.concatenate([part.coordinates[name] for part in self.parts]) for name in first.coordinates},
            **{name: np.repeat(values, self.size) for name, values in coordinates.items()},
        }

    def blocks(self, array: Array) -> list[Array]:
        """Arrays of the states of each problem, as views."""
        return list(array.reshape(len(self.parts), self.size, *array.shape[1:]))

    def _by_part(self, states: Array, of: Callable[[int, Array], Array], like: Array) -> Array:
        """What ``of`` a part and the places of its states gives, in the order of the states."""
        whole = np.empty_like(like)
        owners = states // self.size
        for k in range(len(self.parts)):
            places = np.flatnonzero(owners == k)
            if len(places):
                whole[places] = of(k, places)
        return whole

    def observations(self, n: int) -> Array:
        """As in `FrozenProblem`; with what is seen of the problem at the end."""
        parts = [part.observations(n) for part in self.parts]
        if self.seen is not None:
            parts = [
                np.hstack([part, np.broadcast_to(row, (len(part), len(row)))])
                for part, row in zip(parts, self.seen.astype(np.float32), strict=True)
            ]
        return np.concatenate(parts)

    def locate(self, observations: Array) -> tuple[Array, Array]:
        """As in `FrozenProblem`: states of the first problem where observations do not tell which it is."""
        observations = np.asarray(observations)
        if self.seen is None:
            step, state = self.parts[0].locate(observations)
            return step, state
        width = self.seen.shape[1]
        step, state = self.parts[0].locate(observations[..., :-width])
        gaps = np.abs(observations[..., None, -width:] - self.seen).sum(axis=-1)
        return step, gaps.argmin(axis=-1) * self.size + state

    def controls(self, actions: Array) -> Array:
        """As in `FrozenProblem`."""
        return self.parts[0].controls(actions)

    def actions(self, controls: Array) -> Array:
        """As in `FrozenProblem`."""
        return self.parts[0].actions(controls)

    def binding(self, controls: Array) -> Array:
        """As in `FrozenProblem`."""
        return self.parts[0].binding(controls)

    def to_value(self, values: Array, log_scale: Any) -> Array:
        """As in `FrozenProblem`."""
        return self.parts[0].to_value(values, log_scale)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        """Not known: rows do not tell which problem is theirs."""
        raise TypeError("the criterion earned so far depends on parameters that differ from row to row")

    def terminal(self, functional: Functional) -> Array:
        """As in `FrozenProblem`."""
        return np.concatenate([part.terminal(functional) for part in self.parts])

    def _backward(self, name: str, n: int, states: Array, controls: Array, values: Array, of: Functional) -> Array:
        blocks = self.blocks(values)

        def one(k: int, places: Array) -> Array:
            step: Callable[..., Array] = getattr(self.parts[k], name)
            return step(n, states[places] - k * self.size, controls[places], blocks[k], of)

        return self._by_part(states, one, np.empty((len(states), values.shape[1]), values.dtype))

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        """As in `FrozenProblem`."""
        return self._backward("backward", n, states, controls, values, functional)

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        """As in `FrozenProblem`."""
        return self._backward("backward_without_inventory", n, states, controls, values, functional)

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """As in `FrozenProblem`."""
        blocks = zip(self.parts, self.blocks(controls), self.blocks(law), strict=True)
        return np.concatenate([part.forward(n, played, own) for part, played, own in blocks])

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        """As in `FrozenProblem`: of the union, which knows the problem."""
        guesses = [None] * len(self.parts) if guess is None else self.blocks(guess)
        best = [
            part.improve(n, own, start)
            for part, own, start in zip(self.parts, self.blocks(values), guesses, strict=True)
        ]
        return np.concatenate([controls for controls, _ in best]), np.concatenate([own for _, own in best])

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        """As in `FrozenProblem`."""
        blocks = self.blocks(values)

        def one(k: int, places: Array) -> Array:
            own = self.parts[k].gradient(n, states[places] - k * self.size, controls[places], blocks[k])
            return np.hstack(own)

        both = self._by_part(states, one, np.empty((len(states), 1 + self.num_controls)))
        return both[:, :1], both[:, 1:]

    @property
    def action_values(self) -> Callable[[int, Array], ActionValues] | None:
        """As in `FrozenProblem`."""
        known = [part.action_values for part in self.parts]
        if any(of is None for of in known):
            return None

        def of_parts(n: int, values: Array) -> ActionValues:
            own = [of(n, block) for of, block in zip(known, self.blocks(values), strict=True) if of is not None]

            def others(states: Array, entries: Array) -> Array:
                width = own[0].others(states[:1] % self.size, entries[:1]).shape[1]
                return self._by_part(
                    states,
                    lambda k, places: own[k].others(states[places] - k * self.size, entries[places]),
                    np.empty((len(states), width)),
                )

            return ActionValues(np.concatenate([part.last for part in own]), others)

        return of_parts


def union_solution(problem: MixtureProblem, solutions: Sequence[Solution]) -> Solution:
    """The optimum of a union from those of its parts, whose exponential values are brought to one scale."""
    log_scale = np.max([solution.log_scale for solution in solutions], axis=0)
    raw = [solution.raw * np.exp(solution.log_scale - log_scale)[:, None] for solution in solutions]
    return Solution(
        np.concatenate([solution.controls for solution in solutions], axis=1),
        np.concatenate([solution.values for solution in solutions], axis=1),
        np.concatenate(raw, axis=1),
        log_scale,
    )


def best_fixed_table(problem: MixtureProblem, starts: Sequence[Array]) -> Array:
    """The best table (N, S, C) that is the same for all problems: a local optimum of the exact mean.

    Each of the ``starts`` is improved, and the best result kept. Choices beside continuous controls stay those of the
    start.
    """
    improve = _smooth_table if problem.action_values is None else _sweeping_table
    tables = [improve(problem, start) for start in starts]
    return max(tables, key=lambda table: mean_value(problem, table))


def mean_value(problem: MixtureProblem, table: Array) -> float:
    """The criterion of a table (N, S, C) that is the same for all problems."""
    return criterion_value(problem, np.tile(table, (1, len(problem.parts), 1)))


def _sweeping_table(problem: MixtureProblem, start: Array) -> Array:
    """Sweeps backwards over the steps: each cell takes the best of its candidates, what was played before it kept.

    Every sweep raises the mean, as long as any cell gains.
    """
    table = np.array(start)
    value, _, weights = visits(problem, np.tile(table, (1, len(problem.parts), 1)))
    for _ in range(MOST_ROUNDS):
        trial = _swept(problem, table, weights)
        gained, _, trial_weights = visits(problem, np.tile(trial, (1, len(problem.parts), 1)))
        if gained - value <= ENOUGH * abs(value):
            break
        table, value, weights = trial, gained, trial_weights
    return table


def _swept(problem: MixtureProblem, table: Array, weights: Array) -> Array:
    """One sweep; candidates are the best controls in each problem, also one by one in place of those of the table."""
    count, size = len(problem.parts), problem.size
    states, swept = np.arange(problem.num_states), table.copy()
    values = problem.terminal(problem.criterion)
    for n in reversed(range(problem.num_steps)):
        if problem.criterion.exponents is not None:
            values = values / np.abs(values).max()
        own = problem.blocks(problem.improve(n, values)[0])
        candidates = [table[n], *own]
        for c in range(problem.num_controls):
            for controls in own:
                mixed = table[n].copy()
                mixed[:, c] = controls[:, c]
                candidates.append(problem.controls(problem.actions(mixed)))  # which may be no action
        played = [np.tile(each, (count, 1)) for each in candidates]
        worth = np.stack([problem.backward(n, states, each, values, problem.criterion)[:, 0] for each in played])
        means = (weights[n] * worth).reshape(len(candidates), count, size).sum(axis=1)
        gains = means - means[0]
        best = np.where(gains.max(axis=0) > 0.0, gains.argmax(axis=0), 0)
        swept[n] = np.stack(candidates)[best, np.arange(size)]
        values = worth[np.tile(best, count), states][:, None]
    return swept


def _smooth_table(problem: MixtureProblem, start: Array) -> Array:
    """Newton's method.

    Every round expands the mean of the exact values in the controls of each cell, to second order, and moves to the top
    of the expansion, or part of the way where that gains nothing. Controls stay in the box of actions.
    """
    ends = np.array([[-1.0], [1.0]], np.float32) * np.ones(problem.num_controls, np.float32)
    low, high = problem.controls(ends)
    reach = 0.5 * (high - low)
    controls = np.clip(start, low, high)
    value, slopes, bends = _expanded(problem, controls, reach)
    for _ in range(MOST_ROUNDS):
        step = _newton_step(controls, slopes, bends, low, high)
        if float((slopes * step).sum()) <= ENOUGH * abs(value):
            break
        for share in DAMPING:
            trial = np.clip(controls + share * step, low, high)
            gained, trial_slopes, trial_bends = _expanded(problem, trial, reach)
            if gained > value:
                break
        else:
            break
        controls, value, slopes, bends = trial, gained, trial_slopes, trial_bends
    return controls


def _expanded(problem: MixtureProblem, table: Array, reach: Array) -> tuple[float, Array, Array]:
    """Value of a fixed table, and first and second derivatives of each cell's part, (N, S, C) and (N, S, C, C)."""
    count, everything, width = len(problem.parts), np.arange(problem.num_states), problem.num_controls
    controls = np.tile(table, (1, count, 1))
    value, raw, weights = visits(problem, controls)
    slopes, bends = np.empty_like(table), np.empty((*table.shape, width))

    def summed(n: int, shifted: Array) -> Array:
        own = weights[n][:, None] * problem.gradient(n, everything, shifted, raw[n + 1][:, None])[1]
        return np.asarray(own.reshape(count, problem.size, width).sum(axis=0))

    for n in range(problem.num_steps):
        slopes[n] = summed(n, controls[n])
        for c in range(width):
            shift = DIFFERENCE * reach * np.eye(width)[c]
            bends[n, :, :, c] = (summed(n, controls[n] + shift) - summed(n, controls[n] - shift)) / (2.0 * shift[c])
    return value, slopes, 0.5 * (bends + np.swapaxes(bends, -1, -2))


def _newton_step(controls: Array, slopes: Array, bends: Array, low: Array, high: Array) -> Array:
    """Where the expansion of each cell has its top: along the directions in which it bends down, within the box."""
    held = ((controls <= low) & (slopes < 0.0)) | ((controls >= high) & (slopes > 0.0))
    free = np.where(held, 0.0, slopes)
    bends = np.where(held[..., :, None] | held[..., None, :], 0.0, bends)
    sizes, directions = np.linalg.eigh(bends)
    along = np.einsum("...ij,...i->...j", directions, free)
    least = 1e-12 * np.abs(sizes).max(axis=-1, keepdims=True) + 1e-300
    lengths = along / np.maximum(np.abs(sizes), least)
    step = np.einsum("...ij,...j->...i", directions, lengths)
    return np.where(held, 0.0, np.clip(step, low - high, high - low))
