"""The frozen-control problem of a declared market, exact to rounding: uniformisation over the states within reach."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym import declare, declared_kernels
from mmgym.arguments import check_memory
from mmgym.baselines.declared.boxes import Boxes, slopes
from mmgym.baselines.declared.law import RunningLaw, unique_rows
from mmgym.baselines.frozen import ActionValues, Functional, check_tables, columns_of

Array = NDArray[Any]

__all__ = ["DeclaredProblem"]

MOST_ACTIONS = 100_000  # combinations of choices


class DeclaredProblem:
    """A declared market as a `FrozenProblem`. States are all combinations of the coordinates, the last runs first."""

    tolerance = 0.0

    def __init__(self, declared: declare.Market, params: Any) -> None:
        d, p = self.declared, self.params = declared, params
        self.num_steps, self.num_controls = p.num_steps, len(d.controls)
        ranges = ", ".join(c.name for c in d.coordinates)
        self.num_states = int(np.prod(d.shape(p)))
        check_tables(p.num_steps, self.num_states, self.num_controls, f"num_steps or the ranges of {ranges}")
        self.law = RunningLaw(d, p)
        self.rows, self.following = self.law.rows, self.law.following
        self.low_controls, self.high_controls, self.control_units = d.boxes(p)
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
        numbers = np.empty((8, self.num_states))
        declared_kernels.find_state_rates(d.engine.record(p), p.num_steps, self.rows, self.low_controls, numbers)
        self._ends = numbers[5:7]
        self._all = np.ones(self.num_states)
        self._flat = (numbers[2] ** 2 * numbers[3] == 0.0).astype(np.float64)  # states without price noise

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
        """All combinations of choices, (A, C), the boxes at their lower bounds.

        Raises
        ------
        MemoryError
            If there are more than 100,000, or their values in all states would not fit into this machine.
        """
        d, high = self.declared, np.where(self.declared.boxed, self.low_controls, self.high_controls)
        count = int(np.prod(high - self.low_controls + 1))
        names = ", ".join(c.name for c, box in zip(d.controls, d.boxed, strict=True) if not box)
        if count > MOST_ACTIONS:
            raise MemoryError(
                f"{d.name}: the choices {names} have {count:,} combinations, allowed are {MOST_ACTIONS:,}: narrow "
                "their ranges"
            )
        what = f"{d.name}: the values of {count:,} combinations of choices x {self.num_states:,} states"
        check_memory(24.0 * count * self.num_states, what, f"the ranges of {names}")
        return np.array(list(itertools.product(*map(np.arange, self.low_controls, high + 1.0))))

    def _admitted(self, n: int, states: Array, controls: Array) -> Array:
        """The controls (M, C) that are played for those asked for in states (M,): choices are the nearest allowed."""
        chosen = np.flatnonzero(~self.declared.boxed)
        if len(chosen) == 0:
            return controls
        low, high = self.low_controls[chosen], self.high_controls[chosen]
        asked = np.clip(np.rint(controls[:, chosen] - low), 0, high - low).astype(np.int64)
        masks = [getattr(self.declared.controls[j], "allowed", None) for j in chosen.tolist()]
        if any(mask is not None for mask in masks):
            entries = declare.allowed_entries(self.declared, self.params, n)
            number = np.arange(entries.shape[2])
            for i, j in enumerate(chosen):
                distance = np.abs(number - asked[:, i, None]) + 0.25 * (number > asked[:, i, None])
                asked[:, i] = np.where(entries[states, j], distance, np.inf).argmin(axis=1)
        played = controls.copy()
        played[:, chosen] = low + asked
        return np.asarray(played)

    def _landed(self, n: int, states: Array, controls: Array) -> tuple[Array, Array]:
        """States (M,) after the impulse of choices (M, C) that are played, and what it pays (M,)."""
        paid = np.zeros(len(states))
        if self.declared.impulse is None:
            return states, paid
        unique, which = unique_rows(np.where(self.declared.boxed, self.low_controls, controls))
        landed = np.empty_like(states)
        for g, choice in enumerate(unique):
            here = np.flatnonzero(which == g)
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

    def terminal(self, functional: Functional) -> Array:
        liquidation, penalty = self._ends
        reward = -functional.gain * liquidation - functional.penalty * penalty
        nothing = np.zeros((self.num_states, functional.columns))
        if functional.exponents is not None:
            nothing = nothing.astype(functional.exponents.dtype) + 1.0
        return self._with_constant(reward, nothing, functional)

    def _backward(
        self, n: int, states: Array, controls: Array, values: Array, functionals: tuple[Functional, ...], flat: Array
    ) -> Array:
        states, controls = np.asarray(states), np.ascontiguousarray(controls, dtype=np.float64)
        if self.declared.boxed.all():
            return self.law.backward(n, states, controls, values, functionals, flat)
        controls = self._admitted(n, states, controls)
        landed, paid = self._landed(n, states, controls)
        before = self.law.backward(n, landed, controls, values, functionals, flat)
        for own, functional in zip(columns_of(functionals), functionals, strict=True):
            constant = self._constant(functional, states, landed, paid)
            before[:, own] = self._with_constant(constant, before[:, own], functional)
        return before

    @staticmethod
    def _constant(functional: Functional, states: Array, landed: Array, paid: Array) -> Array:
        return np.asarray(functional.gain * paid + functional.orders * (landed != states))

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        return self._backward(n, states, controls, values, (functional,), self._all)

    def backward_together(
        self, n: int, states: Array, controls: Array, values: Array, functionals: tuple[Functional, ...]
    ) -> Array:
        return self._backward(n, states, controls, values, functionals, self._all)

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        return self._backward(n, states, controls, values, (functional,), self._flat)

    def laws(self, n: int, states: Array, controls: Array, masses: Array) -> Array:
        """Laws (G, S) after the step from masses (G, H) in states (G, H), under controls (G, C)."""
        asked = np.repeat(np.asarray(controls, dtype=np.float64), states.shape[1], axis=0)
        played = self._admitted(n, states.ravel(), asked)
        landed, _ = self._landed(n, states.ravel(), played)
        result, into = np.zeros((len(states), self.num_states)), np.repeat(np.arange(len(states)), states.shape[1])
        self.law.laws(n, landed, played, masses.ravel(), into, result)
        return result

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        states = np.flatnonzero(law)
        played = self._admitted(n, states, np.ascontiguousarray(controls[states], dtype=np.float64))
        landed, _ = self._landed(n, states, played)
        return self.law.forward(n, landed, played, law[states])

    def gradient(self, n: int, states: Array, controls: Array, values: Array) -> tuple[Array, Array]:
        """As `FrozenProblem` has it; 0 in choices beside continuous controls."""
        boxed = self.declared.boxed
        if not boxed.any():
            raise TypeError(f"the controls of {self.declared.name} are choices: there is no gradient in them")
        states = np.asarray(states)
        played = self._admitted(n, states, np.ascontiguousarray(controls, dtype=np.float64))
        landed, paid = self._landed(n, states, played)
        worth, slope = slopes(self.law, self.criterion, n, landed, played, values)
        constant = self._constant(self.criterion, states, landed, paid)
        gradient = np.zeros(played.shape)
        gradient[:, boxed] = slope * (np.exp(-self.aversion * constant)[:, None] if self.aversion else 1.0)
        return self._with_constant(constant, worth, self.criterion), gradient

    # The optimum

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        if self.declared.boxed.all():
            return self.searches[0].improve(n, values, guess)
        best = np.full(self.num_states, np.nan)
        controls = np.empty((self.num_states, self.num_controls))
        for worth, played in self.combinations(n, values, guess):
            better = worth < best if self.aversion else worth > best
            here = better | (np.isnan(best) & ~np.isnan(worth))
            best[here], controls[here] = worth[here], played[here]
        return controls, best[:, None]

    @functools.cached_property
    def searches(self) -> list[Boxes]:
        """A search for the continuous controls under every combination of choices."""
        return [Boxes(self.law, self.criterion, choice) for choice in self.choices]

    def _running(self, n: int, values: Array, guess: Array | None) -> Iterator[tuple[Array, Array]]:
        """What runs in time is worth under every combination of choices, (S, 1), and the best controls (S, C) there."""
        if self.declared.boxed.any():
            for search in self.searches:
                free = None if guess is None else guess[:, self.declared.boxed]
                chosen, worth = search.improve(n, values, free)
                yield worth, search.placed(chosen)
        else:
            for part, sweeps in self.law.sweeps(n, self.choices, (self.criterion,), values, self._all):
                for choice, worth in zip(self.choices[part], sweeps, strict=True):
                    yield worth, np.broadcast_to(choice, self.rows.shape[:1] + choice.shape)

    def decisions(self, n: int) -> Iterator[tuple[Array, Array, Array]]:
        """Of every combination of choices: where it is allowed, the state after the impulse, its reward, (S,) each."""
        entries, states = declare.allowed_entries(self.declared, self.params, n), np.arange(self.num_states)
        chosen, nothing = np.flatnonzero(~self.declared.boxed), np.zeros(self.num_states)
        for choice in self.choices:
            place = (choice - self.low_controls)[chosen].astype(np.int64)
            landed, paid = states, nothing
            if self.declared.impulse is not None:
                landed, paid = declare.impulse_of(self.declared, self.params, n, choice)
            constant = self._constant(self.criterion, states, landed, paid)
            yield np.asarray(entries[:, chosen, place].all(axis=1)), landed, constant

    def combinations(self, n: int, values: Array, guess: Array | None = None) -> Iterator[tuple[Array, Array]]:
        """One-step values (S,) of every combination of choices, NaN where it is masked, and the controls (S, C)."""
        running = self._running(n, values, guess)
        for (allowed, landed, constant), (worth, controls) in zip(self.decisions(n), running, strict=True):
            column = self._with_constant(constant, worth[landed], self.criterion)[:, 0]
            yield np.where(allowed, column, np.nan), controls[landed]

    @property
    def action_values(self) -> Callable[[int, Array], ActionValues] | None:
        return None if self.declared.boxed.any() else self._action_values

    def _action_values(self, n: int, values: Array) -> ActionValues:
        table = np.array([worth for worth, _ in self.combinations(n, values)])
        sizes = (self.high_controls - self.low_controls + 1).astype(np.int64)
        states, actions = np.divmod(np.arange(table.size), len(self.choices))
        played = (self._admitted(n, states, self.choices[actions]) - self.low_controls).astype(np.int64)
        played = np.ravel_multi_index(tuple(played.T), tuple(sizes))
        shaped = table[played, states].reshape(self.num_states, -1, sizes[-1])
        best = shaped.min(axis=1) if self.aversion else shaped.max(axis=1)
        return ActionValues(best, lambda states, entries: shaped[states, :, entries])

    def to_value(self, values: Array, log_scale: float | Array) -> Array:
        return -(np.log(values) + log_scale) / self.aversion if self.aversion else np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        gamma = self.aversion
        gain = info["gain"] - info["price_gain"] - info["penalty"]
        return np.asarray(-gamma * gain + 0.5 * gamma**2 * info["price_square"])

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        slack = 1e-9 * (self.high_controls - self.low_controls)
        at_bounds = (controls <= self.low_controls + slack) | (controls >= self.high_controls - slack)
        return np.asarray(at_bounds & self.declared.boxed)
