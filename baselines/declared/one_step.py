"""The frozen-control problem of a declared market, exact to rounding: uniformisation over the states within reach."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare, declared_kernels
from mmgym.baselines.declared import kernels
from mmgym.baselines.frozen import ActionValues, Functional, check_tables
from mmgym.baselines.maximise import CROWDED, Region, best_controls, in_box, rounding

Array = NDArray[Any]

__all__ = ["DeclaredProblem"]

MOST_ACTIONS = 100_000  # combinations of choices
SURVEYED = 20_000_000  # values of a grid of controls that are kept at once
DEGREES = (8, 12, 16, 20, 24, 28, 32)  # of polynomials in a control
MOST_SWEEPS = 4  # times the states, for polynomials: beyond, pairs are cheaper
ACCURATE = 50.0  # rounding errors of values: the largest error of polynomials
OFF_NODES = np.random.default_rng(0).random((4, 2))  # shares of the box: where polynomials are held against sweeps


@functools.cache
def chebyshev_transform(degree: int) -> Array:
    """From values at the Chebyshev points ``cos(pi j / degree)`` to coefficients: (degree + 1, degree + 1)."""
    place = np.arange(degree + 1)
    found = 2.0 / degree * np.cos(np.pi * np.outer(place, place) / degree)
    found[:, [0, -1]] *= 0.5
    found[[0, -1]] *= 0.5
    return found


class DeclaredProblem:
    """A declared market as a `FrozenProblem`. States are all combinations of the coordinates, the last runs first."""

    tolerance = 0.0
    search_tolerance = 1e-12

    def __init__(self, declared: declare.Market, params: Any) -> None:
        d, p = self.declared, self.params = declared, params
        self.num_steps, self.num_controls = p.num_steps, len(d.controls)
        self.num_states = math.prod(d.shape(p))
        ranges = "num_steps or the ranges of " + ", ".join(c.name for c in d.coordinates)
        check_tables(p.num_steps, self.num_states, self.num_controls, ranges)
        self.following = d.transitions(p)
        self.rows = d.states(p)
        self.record = d.engine.record(p)
        self.coordinates: Mapping[str, Array] = {
            c.name: column * (c.unit(p) if callable(c.unit) else c.unit)
            for c, column in zip(d.coordinates, self.rows.T, strict=True)
        }
        places, chances = d.starts(p)
        self.initial = np.bincount(d.index(p, places), weights=chances, minlength=self.num_states)
        self.has_market_orders = d.impulse is not None or any(event.counts == "order" for event in d.events)
        self.aversion = d.aversion(p)
        exponents = np.array([-self.aversion]) if self.aversion else None
        self.criterion = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=exponents)
        self.low_controls, self.high_controls, self.control_units = d.boxes(p)
        raw = self.record.view(np.uint8)
        self._market = kernels.Chain(d.rates, raw, p.step_length)
        self._chain = (self.rows, self.following)
        self._step = p.step_length
        self._state_rates = self._state_numbers(self.num_steps, self.low_controls)
        self.flat = (self._state_rates[2] ** 2 * self._state_rates[3] == 0.0).astype(np.float64)
        self._set_scales()
        self._degree = DEGREES[0]

    def _state_numbers(self, step: int, controls: Array) -> Array:
        found = np.empty((7, self.num_states))
        played = np.ascontiguousarray(np.broadcast_to(controls, (self.num_states, self.num_controls)), dtype=np.float64)
        declared_kernels.find_state_rates(self.record, step, self.rows, played, found)
        return found

    def _set_scales(self) -> None:
        """What a payoff and the other rewards of a step are worth at most: of rounding errors."""
        pays, flows, events = 0.0, 0.0, np.zeros(self.num_states)
        for controls in declare.sampled_controls(self.declared, self.params, 64):
            rates, payoffs, flow, noise = declare.rates_of(self.declared, self.params, 0, controls)
            pays, events = max(pays, float(np.abs(payoffs).max())), np.maximum(events, rates.sum(axis=0))
            if self.aversion:
                flow = -self.aversion * flow + 0.5 * self.aversion**2 * noise
            flows = max(flows, float(np.abs(flow).max()))
        self.unit_value, self.step_reward, self._most_events = pays or 1.0, self._step * flows, self._step * events

    # States, observations, actions

    def observations(self, n: int) -> NDArray[np.float32]:
        return declare.observe(self.declared, self.params, n)

    def locate(self, observations: Array) -> tuple[Array, Array]:
        step, coordinates = declare.locate(self.declared, self.params, observations)
        return step, self.declared.index(self.params, coordinates)

    def controls(self, actions: Array) -> Array:
        return declare.to_quotes(self.declared, self.params, actions)

    def actions(self, controls: Array) -> Array:
        return declare.from_quotes(self.declared, self.params, controls)

    def cell(self, state: int) -> str:
        """A state in words, for messages."""
        return self.declared.describe_state(self.params, state)

    # Choices: what is played, and the impulse

    @functools.cached_property
    def choices(self) -> Array:
        """All combinations of choices, (A, C).

        Raises
        ------
        MemoryError
            If there are more than 100,000.
        """
        low, high = self.low_controls, self.high_controls
        count = int(np.prod(high - low + 1))
        if count > MOST_ACTIONS:
            raise MemoryError(
                f"{self.declared.name}: the choices {', '.join(c.name for c in self.declared.controls)} have {count:,} "
                f"combinations, allowed are {MOST_ACTIONS:,}: narrow their ranges"
            )
        return np.array(list(itertools.product(*map(np.arange, low, high + 1.0))))

    def _admitted(self, n: int, states: Array, controls: Array) -> Array:
        """The choices (M, C) that are played for those asked for in states (M,): the nearest allowed ones."""
        low, high = self.low_controls, self.high_controls
        asked = np.clip(np.rint(controls - low), 0, high - low).astype(np.int64)
        masks = [getattr(control, "allowed", None) for control in self.declared.controls]
        if all(mask is None for mask in masks):
            return np.asarray(low + asked)
        entries = declare.allowed_entries(self.declared, self.params, n)
        number = np.arange(entries.shape[2])
        for j in range(self.num_controls):
            distance = np.abs(number - asked[:, j, None]) + 0.25 * (number > asked[:, j, None])
            asked[:, j] = np.where(entries[states, j], distance, np.inf).argmin(axis=1)
        return np.asarray(low + asked)

    def _landed(self, n: int, states: Array, controls: Array) -> tuple[Array, Array]:
        """States (M,) after the impulse of choices (M, C) that are played, and what it pays (M,)."""
        paid = np.zeros(len(states))
        if self.declared.impulse is None:
            return states, paid
        unique, which = np.unique(controls, axis=0, return_inverse=True)
        landed = np.empty_like(states)
        for g, choice in enumerate(unique):
            here = np.flatnonzero(which.ravel() == g)
            reached, pays = declare.impulse_of(self.declared, self.params, n, choice)
            landed[here], paid[here] = reached[states[here]], pays[states[here]]
        return landed, paid

    @staticmethod
    def _with_constant(constant: Array, values: Array, functional: Functional) -> Array:
        """Values (M, K) of ``constant + R`` from those of ``R``."""
        if functional.exponents is not None:
            return np.asarray(values * np.exp(np.multiply.outer(constant, functional.exponents)))
        first = values[:, 0] + constant
        if functional.moments == 1:
            return first[:, None]
        return np.stack([first, values[:, 1] + constant * (2.0 * values[:, 0] + constant)], axis=1)

    # The protocol

    @staticmethod
    def _weights(functional: Functional) -> Array:
        f = functional
        return np.array([f.gain, f.price, f.penalty, f.fills, f.orders, f.absolute_inventory])

    def terminal(self, functional: Functional) -> Array:
        _, _, _, _, _, liquidation, penalty = self._state_rates
        reward = -functional.gain * liquidation - functional.penalty * penalty
        nothing = np.zeros((self.num_states, functional.columns))
        if functional.exponents is not None:
            nothing = nothing.astype(functional.exponents.dtype) + 1.0
        return self._with_constant(reward, nothing, functional)

    def _run(
        self, kind: str, n: int, pairs: tuple[Array, ...], functional: Functional, values: Array, flat: Array
    ) -> Array:
        """Values of pairs, or of sweeps: (M, K), or (G, S, K)."""
        controls, values = pairs[-1], np.ascontiguousarray(values)
        shape = (len(controls), values.shape[1]) if kind == "pair" else (len(controls), *values.shape)
        weights, result = self._weights(functional), np.empty(shape, dtype=values.dtype)
        system = (self._market, n, *self._chain, *pairs, weights)
        if functional.exponents is None:
            wrong = getattr(kernels, f"{kind}_moments")(*system, values, result)
        else:
            exponents = functional.exponents.astype(values.dtype)
            wrong = getattr(kernels, f"{kind}_exponentials")(*system, exponents, flat, values, result)
        self._require_rates(n, wrong, controls)
        return result

    def _require_rates(self, n: int, wrong: int, controls: Array) -> None:
        """Refuse controls under which a kernel found a wrong intensity."""
        if wrong < 0:
            return
        rates = declare.rates_of(self.declared, self.params, n, controls[wrong])[0]
        event, state = np.argwhere(~((rates >= 0.0) & np.isfinite(rates)))[0]
        function = self.declared.events[event].intensity
        raise ValueError(
            f"{self.declared.name}: {declare.function_name(function)} at {self.cell(state)} with the controls "
            f"{controls[wrong].tolist()} is {rates[event, state]}: it must be finite and >= 0"
        )

    def _running(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional, flat: Array
    ) -> Array:
        """Values (M, K) of what runs in time, after the impulse."""
        if len(states) == 0:
            return np.empty((0, values.shape[1]), dtype=values.dtype)
        shared = bool((controls == controls[0]).all())
        if shared or not self.declared.continuous:
            unique, which = (controls[:1], 0) if shared else np.unique(controls, axis=0, return_inverse=True)
            if shared and len(states) < 3:
                return self._run("pair", n, (states, controls), functional, values, flat)
            result = np.empty((len(states), values.shape[1]), dtype=values.dtype)
            for part in np.array_split(np.arange(len(unique)), max(1, len(unique) * values.size // SURVEYED)):
                found = self._run("sweep", n, (np.ascontiguousarray(unique[part]),), functional, values, flat)
                rows = np.broadcast_to(which, len(states)).ravel()
                here = np.flatnonzero((rows >= part[0]) & (rows <= part[-1]))
                result[here] = found[rows[here] - part[0], states[here]]
            return result
        return self._run("pair", n, (states, controls), functional, values, flat)

    def _backward(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional, flat: Array
    ) -> Array:
        states, controls = np.asarray(states), np.ascontiguousarray(controls, dtype=np.float64)
        if self.declared.continuous:
            return self._running(n, states, controls, values, functional, flat)
        controls = self._admitted(n, states, controls)
        landed, paid = self._landed(n, states, controls)
        found = self._running(n, landed, controls, values, functional, flat)
        return self._with_constant(self._constant(functional, states, landed, paid), found, functional)

    @staticmethod
    def _constant(functional: Functional, states: Array, landed: Array, paid: Array) -> Array:
        return np.asarray(functional.gain * paid + functional.orders * (landed != states))

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        return self._backward(n, states, controls, values, functional, np.ones(self.num_states))

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        return self._backward(n, states, controls, values, functional, self.flat)

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        states = np.flatnonzero(law)
        played, result = np.ascontiguousarray(controls[states], dtype=np.float64), np.zeros(self.num_states)
        landed = states
        if not self.declared.continuous:
            played = self._admitted(n, states, played)
            landed, _ = self._landed(n, states, played)
        shared = bool((played == played[0]).all())
        if shared or not self.declared.continuous:
            unique, which = np.unique(played, axis=0, return_inverse=True)
            masses = np.zeros((len(unique), self.num_states))
            np.add.at(masses, (which.ravel(), landed), law[states])
            wrong = kernels.sweep_laws(self._market, n, *self._chain, unique, masses, result)
            self._require_rates(n, wrong, unique)
        else:
            wrong = kernels.pair_laws(self._market, n, *self._chain, landed, played, law[states], result)
            self._require_rates(n, wrong, played)
        return result

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        if not self.declared.continuous:
            raise TypeError(f"the controls of {self.declared.name} are choices: there is no gradient in them")
        played = np.ascontiguousarray(controls, dtype=np.float64)
        result, slopes = np.empty(len(states)), np.empty(played.shape)
        wrong = kernels.pair_slopes(
            self._market, self.declared.slopes, n, *self._chain, np.asarray(states), played,
            self._weights(self.criterion), self.aversion, np.ascontiguousarray(values[:, 0]), result, slopes,
        )  # fmt: skip
        self._require_rates(n, wrong, played)
        return result[:, None], slopes

    def region(self, n: int, values: Array) -> Region:
        """As `mmgym.baselines.maximise.ContinuousProblem` has it: the box, and where many events change what the next
        ones are worth (`mmgym.baselines.maximise.CROWDED`)."""
        ahead = self.to_value(values, 0.0)
        here = np.arange(self.num_states)
        places = np.where(self.following >= 0, self.following, here)
        worth = ahead[places] - ahead  # (E, S) of an event
        bend = max(float(np.abs(found[places] - found).max()) for found in worth)
        crowded = self._most_events * max(bend / self.unit_value, 1.0) > CROWDED
        return Region(self.low_controls, self.high_controls, crowded)

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        return self._improve_boxes(n, values, guess) if self.declared.continuous else self._improve_choices(n, values)

    def _survey(self, n: int, values: Array) -> Callable[[Array, Array], Array]:
        """One-step values (M, G) of states (M,) under each of the controls (G, C)."""
        kept: dict[int, Array] = {}

        def look(states: Array, grid: Array) -> Array:
            if len(grid) * self.num_states > SURVEYED:
                pairs = (np.repeat(states, len(grid)), np.tile(grid, (len(states), 1)))
                found = self._run("pair", n, pairs, self.criterion, values, np.ones(self.num_states))
                return found.reshape(len(states), len(grid))
            if len(grid) not in kept:
                kept[len(grid)] = self._sweeps(n, grid, values)
            return kept[len(grid)][states]

        return look

    def _sweeps(self, n: int, grid: Array, values: Array) -> Array:
        """One-step values (S, G) of the criterion in all states under each of the controls (G, C)."""
        return self._run("sweep", n, (grid,), self.criterion, values, np.ones(self.num_states))[..., 0].T

    def _polynomials(self, n: int, values: Array, noise: Array) -> Array | None:
        """The criterion of all states as polynomials in the controls, (S, K, L) Chebyshev coefficients of the box.

        None where another way is cheaper, or where no degree up to the last of `DEGREES` gives it to rounding, seen in
        every state at points off the nodes: an intensity with a kink, say.
        """
        count, low, high = self.num_controls, self.low_controls, self.high_controls
        degrees = [degree for degree in DEGREES if degree >= self._degree]
        for degree in degrees:
            if count > 2 or (degree + 1) ** count > MOST_SWEEPS * self.num_states:
                return None
            nodes = np.cos(np.pi * np.arange(degree + 1) / degree)
            transform = chebyshev_transform(degree)
            axes = [0.5 * (a + b) + 0.5 * (b - a) * nodes for a, b in zip(low, high, strict=True)]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, count)
            heights = self._sweeps(n, grid, values).reshape(self.num_states, degree + 1, -1)
            found = np.einsum("kj,sjl->skl", transform, heights)
            if count == 2:
                found = found @ transform.T
            points = low + (high - low) * OFF_NODES[:, :count]
            error = np.abs(self._at(found, points) - self._sweeps(n, points, values)).max(axis=1)
            if (error <= ACCURATE * noise).all():
                return np.ascontiguousarray(found)
            self._degree = degree + 1
        return None

    def _at(self, polynomials: Array, points: Array) -> Array:
        """Values (S, G) of polynomials (S, K, L) at controls (G, C)."""
        scaled = 2.0 * (points - self.low_controls) / (self.high_controls - self.low_controls) - 1.0
        first = np.polynomial.chebyshev.chebvander(scaled[:, 0], polynomials.shape[1] - 1)
        if self.num_controls == 1:
            return np.asarray(polynomials[..., 0] @ first.T)
        second = np.polynomial.chebyshev.chebvander(scaled[:, 1], polynomials.shape[2] - 1)
        return np.asarray(np.einsum("skl,gk,gl->sg", polynomials, first, second, optimize=True))

    def _improve_boxes(self, n: int, values: Array, guess: Array | None) -> tuple[Array, Array]:
        column = np.ascontiguousarray(values[:, 0])
        noise = rounding(self, column)
        survey, polynomials = self._survey(n, values), self._polynomials(n, values, noise)
        if polynomials is not None:
            survey = lambda states, grid: self._at(polynomials[states], grid)  # noqa: E731
        if guess is None:
            grid = declare.sampled_controls(self.declared, self.params, 1024)
            heights = survey(np.arange(self.num_states), grid)
            guess = grid[heights.argmin(axis=1) if self.aversion else heights.argmax(axis=1)]
        controls = np.clip(guess, self.low_controls, self.high_controls)
        best, shortfalls = np.empty(self.num_states), np.empty(self.num_states)
        box = (self.low_controls, self.high_controls, self.control_units)
        if polynomials is not None:
            kernels.improve_polynomials(polynomials, self.aversion, *box, noise, controls, best, shortfalls)
        else:
            wrong = kernels.improve(
                self._market, self.declared.slopes, n, *self._chain, self._weights(self.criterion), self.aversion,
                column, *box, noise, controls, best, shortfalls,
            )  # fmt: skip
            self._require_rates(n, wrong, controls)
        return best_controls(self, n, values, in_box(self, controls), best, shortfalls, survey=survey)

    def action_table(self, n: int, values: Array) -> Array:
        """One-step values (A, S) of every combination of choices in every state, NaN where it is masked."""
        flat, states = np.ones(self.num_states), np.arange(self.num_states)
        entries = declare.allowed_entries(self.declared, self.params, n)
        table = np.full((len(self.choices), self.num_states), np.nan)
        found = np.empty((0, 0))
        for a, choice in enumerate(self.choices):
            open_ = entries[:, np.arange(self.num_controls), (choice - self.low_controls).astype(np.int64)].all(axis=1)
            found = self._run("sweep", n, (choice[None],), self.criterion, values, flat)[0]
            landed, paid = states, np.zeros(self.num_states)
            if self.declared.impulse is not None:
                landed, paid = declare.impulse_of(self.declared, self.params, n, choice)
            constant = self._constant(self.criterion, states, landed, paid)
            table[a, open_] = self._with_constant(constant, found[landed], self.criterion)[open_, 0]
        return table

    @property
    def action_values(self) -> Callable[[int, Array], ActionValues] | None:
        return None if self.declared.continuous else self._action_values

    def _action_values(self, n: int, values: Array) -> ActionValues:
        table, sizes = self.action_table(n, values), (self.high_controls - self.low_controls + 1).astype(np.int64)
        states, actions = np.divmod(np.arange(table.size), len(self.choices))
        played = (self._admitted(n, states, self.choices[actions]) - self.low_controls).astype(np.int64)
        played = np.ravel_multi_index(tuple(played.T), tuple(sizes))
        found = table[played, states].reshape(self.num_states, -1, sizes[-1])
        best = found.min(axis=1) if self.aversion else found.max(axis=1)
        return ActionValues(best, lambda states, entries: found[states, :, entries])

    def _improve_choices(self, n: int, values: Array) -> tuple[Array, Array]:
        table = self.action_table(n, values)
        best = np.nanargmin(table, axis=0) if self.aversion else np.nanargmax(table, axis=0)
        return self.choices[best], np.take_along_axis(table, best[None], axis=0)[0][:, None]

    def to_value(self, values: Array, log_scale: float | Array) -> Array:
        return -(np.log(values) + log_scale) / self.aversion if self.aversion else np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        gamma = self.aversion
        gain = info["gain"] - info["price_gain"] - info["penalty"]
        return np.asarray(-gamma * gain + 0.5 * gamma**2 * info["price_square"])

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        if not self.declared.continuous:
            return np.zeros(np.shape(controls), dtype=np.bool_)
        slack = 1e-9 * (self.high_controls - self.low_controls)
        return np.asarray((controls <= self.low_controls + slack) | (controls >= self.high_controls - slack))
