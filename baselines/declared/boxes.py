"""The best continuous controls of a declared market while its choices are fixed."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare
from mmgym.baselines.declared import kernels
from mmgym.baselines.declared.interpolation import FIRST_DEGREE, MOST_DEGREE, Interpolation
from mmgym.baselines.declared.law import SURVEYED, RunningLaw, weights
from mmgym.baselines.frozen import Functional
from mmgym.baselines.maximise import CROWDED, Region, best_controls, in_box, rounding

__all__ = ["Boxes"]

Array = NDArray[Any]

MOST_SWEEPS = 4  # times the states, for polynomials: beyond, pairs are cheaper
ACCURATE = 50.0  # rounding errors of values: the largest error of polynomials
OFF_NODES = np.random.default_rng(0).random((4, 2))  # shares of the box: where polynomials are held against sweeps
MOST_SURVEYED = 1024  # controls of the first guess


class Boxes:
    """The search for the continuous controls, as `mmgym.baselines.maximise.ContinuousProblem` has it.

    Parameters
    ----------
    law : RunningLaw
    criterion : Functional
    choices : (C,)
        Controls whose choices are played.
    """

    search_tolerance = 1e-12

    def __init__(self, law: RunningLaw, criterion: Functional, choices: Array) -> None:
        self.law, self.criterion, self._row = law, criterion, np.array(choices, dtype=np.float64)
        self.num_states, self.free = law.num_states, np.flatnonzero(law.boxed)
        self.num_controls = len(self.free)
        self.low_controls, self.high_controls = law.low[self.free], law.high[self.free]
        self.control_units = law.units[self.free]
        self.unit_value, self.step_reward = law.unit_value, law.step_reward
        self.aversion = law.declared.aversion(law.params)
        self._flat = np.ones(self.num_states)
        self._degrees = np.full(self.num_controls, FIRST_DEGREE)
        self._polynomial: Array | None = None  # of the step that is searched

    def cell(self, state: int) -> str:
        """A state in words, with the choices."""
        d = self.law.declared
        chosen = [f"{d.controls[j].name} {self._row[j]:g}" for j in np.flatnonzero(~self.law.boxed).tolist()]
        return ", ".join([d.describe_state(self.law.params, state), *chosen])

    def placed(self, controls: Array) -> Array:
        """All controls (M, C) with the continuous ones (M, B)."""
        whole = np.tile(self._row, (len(controls), 1))
        whole[:, self.free] = controls
        return whole

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        """One-step values (M, K), of the time that runs only."""
        return self.law.backward(n, states, self.placed(controls), values, (functional,), self._flat)

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        """One-step values (M, 1) of the criterion, and their derivatives (M, B)."""
        if self._polynomial is not None:
            worth, slope = np.empty(len(states)), np.empty(np.shape(controls))
            box = (self.low_controls, self.high_controls)
            kernels.polynomial_slopes(self._polynomial, *box, states, np.ascontiguousarray(controls), worth, slope)
            return worth[:, None], slope
        return slopes(self.law, self.criterion, n, states, self.placed(controls), values)

    def region(self, n: int, values: Array) -> Region:
        """The box, and where many events change what the next ones are worth (`mmgym.baselines.maximise.CROWDED`)."""
        ahead = -np.log(values) / self.aversion if self.aversion else values
        following = self.law.following
        places = np.where(following >= 0, following, np.arange(self.num_states))
        worth = ahead[places] - ahead  # (E, S) of an event
        bend = max(float(np.abs(middle[places] - middle).max()) for middle in worth)
        crowded = self.law.most_events * max(bend / self.unit_value, 1.0) > CROWDED
        return Region(self.low_controls, self.high_controls, crowded)

    def _sweeps(self, n: int, grid: Array, values: Array) -> Array:
        """One-step values (G, S) of all states under each of the controls (G, B)."""
        return self.law.run("sweep", n, (self.placed(grid),), (self.criterion,), values, self._flat)[..., 0]

    def _survey(self, n: int, values: Array) -> Callable[[Array, Array], Array]:
        """One-step values (M, G) of states (M,) under each of the controls (G, B)."""
        kept: dict[int, Array] = {}

        def look(states: Array, grid: Array) -> Array:
            if len(grid) * self.num_states > SURVEYED:
                worths = self.backward(
                    n, np.repeat(states, len(grid)), np.tile(grid, (len(states), 1)), values, self.criterion
                )
                return worths.reshape(len(states), len(grid))
            if len(grid) not in kept:
                kept[len(grid)] = self._sweeps(n, grid, values).T
            return kept[len(grid)][states]

        return look

    def _polynomials(self, n: int, values: Array, noise: Array) -> tuple[Interpolation, Array] | None:
        """The criterion of all states as polynomials in the controls: nodes, and coefficients (S, K, L).

        None where another way is cheaper, or where no degree gives it to rounding, seen in every state by the last
        coefficients and at points off the nodes: an intensity with a kink, say.
        """
        while self.num_controls <= 2 and self._degrees.max() <= MOST_DEGREE:
            grid = Interpolation(self.low_controls, self.high_controls, self._degrees)
            if len(grid.nodes) > MOST_SWEEPS * self.num_states:
                return None
            heights = self._sweeps(n, grid.nodes, values)
            excesses = grid.excesses(heights, ACCURATE * noise)
            better = grid.better(excesses)
            if better is None:
                points = grid.low + (grid.high - grid.low) * OFF_NODES[:, : self.num_controls]
                error = np.abs(grid.basis(points) @ heights - self._sweeps(n, points, values)).max(axis=0)
                if (error <= ACCURATE * noise).all():
                    self._degrees = grid.enough(excesses)
                    return grid, grid.coefficients(heights)
                better = self._degrees + 4
            self._degrees = better
        return None

    def _at(self, grid: Interpolation, coefficients: Array, points: Array) -> Array:
        """Values (S, G) of polynomials (S, K, L) at controls (G, B)."""
        scaled = 2.0 * (points - grid.low) / (grid.high - grid.low) - 1.0
        first = np.polynomial.chebyshev.chebvander(scaled[:, 0], coefficients.shape[1] - 1)
        if self.num_controls == 1:
            return np.asarray(coefficients[..., 0] @ first.T)
        second = np.polynomial.chebyshev.chebvander(scaled[:, 1], coefficients.shape[2] - 1)
        both = (first[:, :, None] * second[:, None, :]).reshape(len(points), -1)
        return np.asarray(coefficients.reshape(len(coefficients), -1) @ both.T)

    def surveyed(self, n: int, values: Array, noise: Array) -> tuple[Callable[[Array, Array], Array], Array | None]:
        """One-step values (M, G) of states (M,) under controls (G, B); polynomials (S, K, L) of them, or None.

        `gradient` is theirs from then on.
        """
        polynomials = self._polynomials(n, values, noise)
        if polynomials is None:
            self._polynomial = None
            return self._survey(n, values), None
        grid, coefficients = polynomials
        self._polynomial = coefficients
        return lambda states, points: self._at(grid, coefficients[states], points), coefficients

    def improve(self, n: int, values: Array, guess: Array | None) -> tuple[Array, Array]:
        """Best controls (S, B) and their values (S, 1), from the values (S, 1) of the step after."""
        column = np.ascontiguousarray(values[:, 0])
        noise = rounding(self, column)  # type: ignore[arg-type]  # of a problem it needs what searches need only
        survey, polynomials = self.surveyed(n, values, noise)
        if guess is None:
            points = self._first_grid()
            heights = survey(np.arange(self.num_states), points)
            guess = points[heights.argmin(axis=1) if self.aversion else heights.argmax(axis=1)]
        controls = np.clip(guess, self.low_controls, self.high_controls)
        best, shortfalls = np.empty(self.num_states), np.empty(self.num_states)
        box = (self.low_controls, self.high_controls, self.control_units)
        if polynomials is not None:
            kernels.improve_polynomials(polynomials, self.aversion, *box, noise, controls, best, shortfalls)
        else:
            law = self.law
            wrong = kernels.improve(
                law.market, law.declared.slopes, n, *law.chain, self._row, self.free, weights(self.criterion),
                self.aversion, column, *box, noise, controls, best, shortfalls,
            )  # fmt: skip
            law.require_rates(n, wrong, self.placed(controls))
        return best_controls(self, n, values, in_box(self, controls), best, shortfalls, survey=survey)  # type: ignore[arg-type]

    def _first_grid(self) -> Array:
        points = declare.CHECKED_POINTS if declare.CHECKED_POINTS**self.num_controls <= MOST_SURVEYED else 2
        axes = [np.linspace(a, b, points) for a, b in zip(self.low_controls, self.high_controls, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.num_controls)


def slopes(
    law: RunningLaw, criterion: Functional, n: int, states: Array, controls: Array, values: Array
) -> tuple[Array, Array]:
    """One-step values (M, 1) of the criterion under controls (M, C), and their derivatives (M, B) in the boxes."""
    free, played = np.flatnonzero(law.boxed), np.ascontiguousarray(controls, dtype=np.float64)
    result, slope = np.empty(len(states)), np.empty((len(states), len(free)))
    wrong = kernels.pair_slopes(
        law.market, law.declared.slopes, n, *law.chain, np.asarray(states), played, free, weights(criterion),
        law.declared.aversion(law.params), np.ascontiguousarray(values[:, 0]), result, slope,
    )  # fmt: skip
    law.require_rates(n, wrong, played)
    return result[:, None], slope
