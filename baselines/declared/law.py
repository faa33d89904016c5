"""What a step of a declared market does under frozen controls, by whichever way is the cheapest.

- *Pairs*: a sum for each pair of state and controls, over the states within its reach.
- *Sweeps*: where pairs share their controls, one sum over all states for each of them.
- *Interpolation*: where there are many pairs, sweeps at the Chebyshev points of the box of their controls. A one-step
  law is analytic in controls where intensities and payoffs are; whether a degree gives it to rounding is seen in every
  state, by the last coefficients and at points off the nodes, and where no degree does, pairs are summed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare
from mmgym.arguments import check_memory
from mmgym.baselines.declared import kernels
from mmgym.baselines.declared.interpolation import (
    FIRST_DEGREE,
    LEAST_DEGREE,
    MOST_DEGREE,
    Interpolation,
    Skeleton,
    num_nodes,
)
from mmgym.baselines.declared.nested import NestedSweeps
from mmgym.baselines.declared.vectors import LANES, aligned
from mmgym.baselines.frozen import Functional, columns_of
from mmgym.uniformisation import num_terms

__all__ = ["SURVEYED", "RunningLaw", "unique_rows"]

Array = NDArray[Any]
Functionals = tuple[Functional, ...]  # several sums (`mmgym.baselines.frozen.columns_of`), or one with exponents

SURVEYED = 20_000_000  # values of a grid of controls that are kept at once
ACCURATE = 64.0 * np.finfo(np.float64).eps  # of the values around: the largest error of interpolation
OF_FEW = 4.0  # of that: where few nodes tell it
CHOICE, SAVED, RISKED = 3.0, 0.3, 0.1  # sweeps of a grid: to choose its few nodes, what these save, a step's to lose
SMALL = 1e-2  # of the largest value: those of moments that are smaller need not be as exact
OFF_NODES = np.random.default_rng(0).random((2, 16))  # shares of the box: where interpolation is held against sweeps
HAPPEN = 10.0  # terms: what it costs to find what happens in a state
MARGIN = 0.75  # of the costs of two ways: sweeps of many controls go side by side
FEWER = 0.7  # of the nodes of a grid: those that are few
KEPT = 3  # sets of controls of which what happens is kept, where all steps are alike
KEPT_MEMORY = 64_000_000  # bytes, of each of them
WIDENED, TOO_WIDE = 0.2, 3.0  # shares of a box of controls: how far it is taken for the next steps
KEYS = np.random.default_rng(1).normal(size=64)


def unique_rows(rows: Array) -> tuple[Array, Array]:
    """The rows (G, C) that differ among rows (M, C), and which of them each one is (M,)."""
    if (rows == rows[0]).all():
        return rows[:1], np.zeros(len(rows), dtype=np.int64)
    if rows.shape[1] <= len(KEYS):
        _, first, which = np.unique(rows @ KEYS[: rows.shape[1]], return_index=True, return_inverse=True)
        distinct, which = rows[first], which.ravel()
        if (distinct[which] == rows).all():
            return distinct, which
    distinct, which = np.unique(rows, axis=0, return_inverse=True)
    return distinct, which.ravel()


class RunningLaw:
    """Expectations over the time of a step, after the impulse of its decision.

    Parameters
    ----------
    declared : mmgym.declare.Market
    params : NamedTuple

    Raises
    ------
    MemoryError
        If the tables of all states would not fit into this machine.
    """

    def __init__(self, declared: declare.Market, params: Any) -> None:
        self.declared, self.params = declared, params
        shape, count = declared.shape(params), len(declared.moves)
        self.num_states = int(np.prod(shape))
        controls, free = len(declared.controls), int(declared.boxed.sum())
        ranges = "the ranges of " + ", ".join(c.name for c in declared.coordinates)
        check_memory(
            self.num_states * (count * (60.0 + 8.0 * free) + 8.0 * len(shape) + 16.0 * controls + 160.0),
            f"{declared.name}: the one-step law of {self.num_states:,} states x {count} events x {controls} controls",
            ranges,
        )
        self.following, self.rows = declared.transitions(params), declared.states(params)
        self.low, self.high, self.units = declared.boxes(params)
        self.market = kernels.Chain(
            declared.rates, declared.engine.record(params).view(np.uint8), float(params.step_length)
        )
        self.chain = (self.rows, self.following)
        self.boxed = declared.boxed
        self.length = float(params.step_length)
        self._set_scales()
        self._degrees: dict[str, Array | None] = {}
        self._kept: dict[Any, Any] = {}
        self._boxes: dict[Any, tuple[Array, Array]] = {}
        self._few: dict[Any, NestedSweeps] = {}
        self._lost: dict[Any, float] = {}

    def _set_scales(self) -> None:
        """What a payoff and the other rewards of a step are worth at most, how many events it has, and costs."""
        pays, flows, events = 0.0, 0.0, np.zeros(self.num_states)
        aversion = self.declared.aversion(self.params)
        for controls in declare.sampled_controls(self.declared, self.params, 64):
            rates, payoffs, flow, noise = declare.rates_of(self.declared, self.params, 0, controls)
            pays, events = max(pays, float(np.abs(payoffs).max())), np.maximum(events, rates.sum(axis=0))
            if aversion:
                flow = -aversion * flow + 0.5 * aversion**2 * noise
            flows = max(flows, float(np.abs(flow).max()))
        self.unit_value, self.step_reward, self.most_events = pays or 1.0, self.length * flows, self.length * events
        terms = num_terms(float(self.most_events.max()))
        self.sweep_cost = self.num_states * (terms + HAPPEN)
        window = kernels.new_window(*self.following.shape)
        some = np.unique(np.linspace(0, self.num_states - 1, 5).astype(np.int64))
        self.pair_cost = 0.0
        for state in some:
            kernels.explore(self.following, state, min(terms, self.num_states), window)
            reached = window.ends[: window.numbers[kernels.LEVELS]].astype(np.float64)
            sums = reached[: terms + 1].sum() + reached[-1] * max(terms - len(reached), 0)
            self.pair_cost += (sums + HAPPEN * reached[-1]) / len(some)

    def run(
        self, kind: str, n: int, pairs: tuple[Array, ...], functionals: Functionals, values: Array, flat: Array
    ) -> Array:
        """Values of pairs, or of sweeps: (M, K), or (G, S, K)."""
        controls, values = pairs[-1], np.ascontiguousarray(values)
        columns = values.shape[1]
        shape = (len(controls), columns) if kind == "pair" else (len(controls), *values.shape)
        check_memory(
            (len(self.following) + 4.0) * values.nbytes,
            f"{self.declared.name}: a step of {self.num_states:,} states x {len(self.following)} events x {columns:,} "
            "exponents",
            "the ranges of " + ", ".join(c.name for c in self.declared.coordinates),
        )
        result = np.empty(shape, dtype=values.dtype)
        system, exponents, wrong = (self.market, n, *self.chain, *pairs), functionals[0].exponents, -1
        if exponents is not None:
            given = (weights(functionals[0]), exponents.astype(values.dtype), flat)
            wrong = getattr(kernels, f"{kind}_exponentials")(*system, *given, values, result)
        elif kind == "sweep" and len(controls) > kernels.FEW:
            self._sweep_lanes(n, controls, functionals, values, result)
        else:
            for own, functional in zip(columns_of(functionals), functionals, strict=True):
                part, moments = np.ascontiguousarray(values[:, own]), np.empty((*shape[:-1], len(own)))
                wrong = max(wrong, getattr(kernels, f"{kind}_moments")(*system, weights(functional), part, moments))
                result[..., own] = moments
        self.require_rates(n, wrong, controls)
        return result

    def _sweep_lanes(self, n: int, controls: Array, functionals: Functionals, values: Array, result: Array) -> None:
        terms, following = (
            tuple(aligned((1, self.num_states, LANES)) for _ in range(values.shape[1])) for _ in range(2)
        )
        for part, lanes in self._lanes(n, controls, functionals):
            kernels.sweep_lanes(self.length, lanes, values, terms, following, result[part])

    def _lanes(self, n: int, controls: Array, functionals: Functionals) -> Iterator[tuple[slice, Any]]:
        """What happens under controls (G, C), by parts of them: kept for later steps where all are alike."""
        size = LANES * max(1, int(KEPT_MEMORY / self._lane_memory(functionals)) // LANES)
        whole = len(controls) <= size and not self.declared.reads_step
        key = (given_by(functionals), controls.tobytes()) if whole else None
        if key is not None and key in self._kept:
            yield slice(None), self._kept[key]
            return
        for start in range(0, len(controls), size if whole else LANES):
            part = slice(start, start + (size if whole else LANES))
            lanes = self._filled(n, np.ascontiguousarray(controls[part]), functionals)
            if key is not None:
                if len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = lanes
            yield part, lanes

    def _lane_memory(self, functionals: Functionals) -> float:
        """Bytes of what happens under one control."""
        events, states = self.following.shape
        second = sum(functional.moments == 2 for functional in functionals)
        return float(8.0 * states * ((events + 1) * (1 + second) + len(functionals) + second))

    def _filled(self, n: int, controls: Array, functionals: Functionals) -> kernels.Lanes:
        events, states = self.following.shape
        count, second = len(functionals), sum(functional.moments == 2 for functional in functionals)
        one = (-(-len(controls) // LANES), states, LANES)
        each = (one[0], states, events + 1, LANES)
        sources = tuple(aligned(one) for _ in range(count + second))
        extras = tuple(aligned(each) for _ in range(second))
        lanes = kernels.Lanes(np.empty(each[1:3], np.uint32), aligned(each), sources, extras, np.empty(one[0]))
        for i, functional in enumerate(functionals):
            more = (extras[i], sources[count + i]) if i < second else (lanes.jump[:0], sources[i][:0])
            system = (self.market, n, *self.chain, controls, weights(functional))
            self.require_rates(n, kernels.fill_lanes(*system, *lanes[:2], lanes.shifts, sources[i], *more), controls)
        return lanes

    def _box(self, kind: str, controls: Array) -> tuple[Array, Array]:
        """A box around controls (M, C) that share their choices: where all steps are alike, that of the step before."""
        low, high = controls[:, self.boxed].min(axis=0), controls[:, self.boxed].max(axis=0)
        if self.declared.reads_step:
            return low, high
        key = (kind, controls[0, ~self.boxed].tobytes())
        if key in self._boxes:
            a, b = self._boxes[key]
            if (a <= low).all() and (high <= b).all() and (b - a <= TOO_WIDE * (high - low)).all():
                return a, b
            if (b - a <= TOO_WIDE * (high - low)).all():
                low, high = np.minimum(a, low), np.maximum(b, high)
        room = WIDENED * (high - low)
        free = self.boxed
        self._boxes[key] = np.maximum(low - room, self.low[free]), np.minimum(high + room, self.high[free])
        return self._boxes[key]

    def require_rates(self, n: int, wrong: int, controls: Array) -> None:
        """Refuse controls under which a kernel found a wrong intensity."""
        if wrong < 0:
            return
        rates = declare.rates_of(self.declared, self.params, n, controls[wrong])[0]
        event, state = np.argwhere(~((rates >= 0.0) & np.isfinite(rates)))[0]
        function = self.declared.moves[event][0].intensity
        raise ValueError(
            f"{self.declared.name}: {declare.function_name(function)} at "
            f"{self.declared.describe_state(self.params, state)} with the controls {controls[wrong].tolist()} is "
            f"{rates[event, state]}: it must be finite and >= 0"
        )

    def sweeps(self, n: int, controls: Array, functionals: Functionals, values: Array, flat: Array) -> Iterator[Any]:
        """Parts of controls (G, C), as slices, and their values (part, S, K)."""
        size = max(1, SURVEYED // max(values.size, 1))
        for start in range(0, len(controls), size):
            part = slice(start, min(start + size, len(controls)))
            yield part, self.run("sweep", n, (np.ascontiguousarray(controls[part]),), functionals, values, flat)

    def backward(
        self, n: int, states: Array, controls: Array, values: Array, functionals: Functionals, flat: Array
    ) -> Array:
        """Values (M, K) of states (M,) under controls (M, C)."""
        result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
        if len(states) == 0:
            return result
        unique, which = unique_rows(controls)
        if len(unique) * self.sweep_cost <= len(states) * self.pair_cost:
            for part, block in self.sweeps(n, unique, functionals, values, flat):
                here = np.flatnonzero((which >= part.start) & (which < part.stop))
                result[here] = block[which[here] - part.start, states[here]]
            return result
        for here in self._alike(controls):
            outcome = self._interpolated(n, states[here], controls[here], values, functionals, flat)
            if outcome is None:
                pairs = (np.ascontiguousarray(states[here]), np.ascontiguousarray(controls[here]))
                outcome = self.run("pair", n, pairs, functionals, values, flat)
            result[here] = outcome
        return result

    def _alike(self, controls: Array) -> list[Any]:
        """Pairs that share their choices."""
        if self.boxed.all():
            return [slice(None)]
        _, which = unique_rows(controls[:, ~self.boxed])
        order = np.argsort(which, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(which[order])) + 1)

    def _grid(self, kind: str, controls: Array) -> Interpolation | None:
        """Nodes for controls (M, C) that share their choices; None where pairs are cheaper, or all are choices."""
        if not self.boxed.any():
            return None
        degrees = self._degrees.get(kind, np.full(int(self.boxed.sum()), FIRST_DEGREE))
        if degrees is None or (degrees > MOST_DEGREE).any():
            self._degrees[kind] = None  # of this pass: what is not smooth is not tried again
            return None
        degrees = np.maximum(degrees, LEAST_DEGREE)
        free = controls[:, self.boxed]
        nodes = num_nodes(np.where(free.min(axis=0) < free.max(axis=0), degrees, 0))
        if MARGIN * float(nodes) * self.sweep_cost > len(controls) * self.pair_cost:
            return None
        return Interpolation(*self._box(kind, controls), degrees)

    def _placed(self, free: Array, like: Array) -> Array:
        """Controls (G, C) with the continuous ones (G, B) and the choices of ``like`` (C,)."""
        placed = np.tile(like, (len(free), 1))
        placed[:, self.boxed] = free
        return placed

    def _interpolated(
        self, n: int, states: Array, controls: Array, values: Array, functionals: Functionals, flat: Array
    ) -> Array | None:
        """Values (M, K) of pairs that share their choices, or None."""
        plain = functionals[0].exponents is None
        kind = "moments" if plain else "exponentials"
        key = (kind, controls[0, ~self.boxed].tobytes(), given_by(functionals))
        if n == self.params.num_steps - 1:  # a new pass: what it takes is learned from step to step
            self._degrees.pop(kind, None)
            self._boxes.pop(key[:2], None)
            self._few = {other: few for other, few in self._few.items() if other[2] == key[2] and other != key}
            self._lost[key] = 0.0
        while (grid := self._grid(kind, controls)) is not None:
            most = max(1, SURVEYED // (len(grid.nodes) * self.num_states))
            if values.shape[1] > most and not plain:
                return self._by_columns(n, states, controls, values, functionals, flat, most)
            free, few = controls[:, self.boxed], self._few.get(key)
            if few is not None and few.grid.alike(grid):
                result, exact, told = few.at(states, free, values)
                if (np.abs(told - exact) <= OF_FEW * tolerated(exact, plain)).all():
                    self._lost[key] -= SAVED
                    return result
            points = grid.low + (grid.high - grid.low) * OFF_NODES[:, : len(grid.low)]
            placed = self._placed(np.concatenate([points, grid.nodes]), controls[0])
            swept = self.run("sweep", n, (placed,), functionals, values, flat)
            exact, heights = swept[: len(points)], swept[len(points) :]
            tolerance = tolerated(heights, plain)
            excesses = grid.excesses(heights, tolerance)
            better = grid.better(excesses)
            if better is None:
                error = np.abs(np.tensordot(grid.basis(points), heights, 1) - exact)
                if (error <= tolerance).all():
                    self._degrees[kind] = grid.enough(excesses)
                    if plain and not self.declared.reads_step:
                        self._choose_few(n, key, grid, placed, functionals, values, heights)
                    result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
                    kernels.interpolate(grid.basis(free), heights, np.asarray(states), result)
                    return result
                better = grid.degrees + 4
            self._degrees[kind] = better
        return None

    def _choose_few(
        self, n: int, key: Any, grid: Interpolation, placed: Array, functionals: Functionals, values: Array, told: Array
    ) -> None:
        """Look for the few nodes that tell heights ``told`` of a grid: all tries may cost a tenth of a pass."""
        self._few.pop(key, None)
        self._lost[key] = self._lost.get(key, 0.0) + CHOICE
        if self._lost[key] > RISKED * self.params.num_steps:
            self._lost[key] -= CHOICE
            return
        points = placed[: len(placed) - len(grid.nodes)]
        rough = self.run("sweep", n, (placed,), functionals, roughened(values), np.empty(0))[len(points) :]
        alike = [(heights / tolerated(heights, True)).reshape(len(heights), -1) for heights in (told, rough)]
        nodes = Skeleton(grid, np.concatenate(alike, axis=1), LANES, len(points))
        count = len(points) + len(nodes.nodes)
        if count % LANES or count > FEWER * len(placed):  # they are not few
            return
        kept = sum(few.memory for few in self._few.values())
        if kept + count * self._lane_memory(functionals) > KEPT * KEPT_MEMORY:
            return
        lanes = self._filled(n, np.concatenate([points, self._placed(nodes.nodes, placed[0])]), functionals)
        self._few[key] = NestedSweeps(grid, nodes, points[:, self.boxed], lanes, self.length)
        self._degrees[key[0]] = grid.degrees

    def _by_columns(
        self, n: int, states: Array, controls: Array, values: Array, functionals: Functionals, flat: Array, most: int
    ) -> Array | None:
        """As `_interpolated`, of so many columns at once."""
        (functional,) = functionals
        assert functional.exponents is not None
        parts = []
        for start in range(0, values.shape[1], most):
            part = functional._replace(exponents=functional.exponents[start : start + most])
            block = self._interpolated(n, states, controls, values[:, start : start + most], (part,), flat)
            if block is None:
                return None
            parts.append(block)
        return np.concatenate(parts, axis=1)

    # Laws

    def forward(self, n: int, states: Array, controls: Array, masses: Array) -> Array:
        """The law (S,) after the step from masses (M,) in states (M,) under controls (M, C)."""
        result = np.zeros(self.num_states)
        unique, which = unique_rows(controls)
        if len(unique) * self.sweep_cost <= len(states) * self.pair_cost:
            placed = np.zeros((len(unique), self.num_states))
            np.add.at(placed, (which, states), masses)
            self._sweep_laws(n, unique, placed, result)
            return result
        for here in self._alike(controls):
            at, played, mass = states[here], np.ascontiguousarray(controls[here]), masses[here]
            if not self._interpolated_law(n, at, played, mass, result):
                self.laws(n, at, played, mass, np.zeros(len(at), dtype=np.int64), result[None])
        return result

    def laws(self, n: int, states: Array, controls: Array, masses: Array, into: Array, result: Array) -> None:
        """Add to laws (G, S), those ``into`` (M,), what the step makes of masses (M,) under controls (M, C)."""
        order = np.argsort(states, kind="stable")  # what is within reach of a state is found once
        pairs = [np.ascontiguousarray(part[order]) for part in (states, controls, masses, into)]
        wrong = kernels.pair_laws(self.market, n, *self.chain, *pairs, result)
        self.require_rates(n, wrong, pairs[1])

    def _sweep_laws(self, n: int, controls: Array, masses: Array, result: Array) -> None:
        controls = np.ascontiguousarray(controls)
        if len(controls) > kernels.FEW:
            for part, lanes in self._lanes(n, controls, (Functional(),)):
                kernels.law_lanes(self.length, lanes, masses[part], result)
            return
        wrong = kernels.sweep_laws(self.market, n, *self.chain, controls, masses, result)
        self.require_rates(n, wrong, controls)

    def _interpolated_law(self, n: int, states: Array, controls: Array, masses: Array, result: Array) -> bool:
        """Add the law after the step of pairs that share their choices; False if it has to be done otherwise."""
        if n == 0:
            self._degrees.pop("laws", None)
        while (grid := self._grid("laws", controls)) is not None:
            nodes = self._placed(grid.nodes, controls[0])
            total = np.bincount(states, weights=masses, minlength=self.num_states)
            points = grid.low + (grid.high - grid.low) * OFF_NODES[:1, : len(grid.low)]
            exact, rough = np.zeros(self.num_states), np.zeros(self.num_states)
            self._sweep_laws(n, self._placed(points, controls[0]), total[None], exact)  # the same controls everywhere
            self._sweep_laws(n, nodes, grid.basis(points).T * total, rough)
            if np.abs(rough - exact).max() > ACCURATE * exact.max():
                self._degrees["laws"] = grid.degrees + 4
                continue
            self._degrees["laws"] = grid.degrees
            placed = np.zeros((self.num_states, len(nodes)))
            np.add.at(placed, states, grid.basis(controls[:, self.boxed]) * masses[:, None])
            self._sweep_laws(n, nodes, np.ascontiguousarray(placed.T), result)
            return True
        return False


def given_by(functionals: Functionals) -> Any:
    """What tells sums of moments apart."""
    return tuple((weights(functional).tobytes(), functional.moments) for functional in functionals)


def tolerated(heights: Array, plain: bool) -> Array:
    """The error (S, K) that is tolerated in heights (G, S, K), of moments or (not ``plain``) of exponentials."""
    tolerance = ACCURATE * kernels.largest(heights)
    if plain:
        tolerance = np.maximum(tolerance, SMALL * tolerance.max(axis=0))
    return np.asarray(np.maximum(tolerance, np.finfo(np.float64).tiny))


def roughened(values: Array) -> Array:
    """Values (S, K) as large as these, of random signs."""
    size = np.abs(values)
    most = size.max(axis=0)
    size = np.maximum(size, np.where(most > 0.0, SMALL * most, 1.0))
    return np.asarray(size * np.random.default_rng(2).choice([-1.0, 1.0], size.shape))


def weights(functional: Functional) -> Array:
    """Of a functional, as kernels take them."""
    f = functional
    return np.array([f.gain, f.price, f.penalty, f.fills, f.orders, f.absolute_inventory, f.price if f.jumps else 0.0])
