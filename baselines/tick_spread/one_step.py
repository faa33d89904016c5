"""The frozen-control problem of the tick-spread market, exact to rounding (the step law: `mmgym.models.tick_spread`).

The market order and the quotes separate: after the order the quotes face an inventory, whatever it was before. Of the
hundreds of combinations of quotes and sizes those are evaluated, for all states at once, that can be the best of one: a
bound of how fast their values drift apart leaves some dozens, but for the last steps of an episode, which see all.
Where both sides fill alike, bid and ask are exchanged with the sign of the inventory, and one half is the mirror image
of the other. Continuous-time counterpart: Guilbaud & Pham (2013), eqs. (3.8), (3.10).
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from mmgym.baselines.frozen import ActionValues, Functional, check_tables, columns_of, terminal_values
from mmgym.baselines.tick_spread import kernels
from mmgym.baselines.tick_spread.rows import Gains, PostingRows
from mmgym.models import tick_spread

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

__all__ = ["TickSpreadProblem", "clock_profile"]

ROWS_PER_POSTING = 1.0  # rows of single states that take as long to find as all states of a posting
MOST_SYSTEMS = 64  # of rows that are kept: kinds of steps times functionals
MIRROR = [1, 0, 3, 2, 4]  # controls with bid and ask exchanged, but for the sign of the market order


def clock_profile(params: tick_spread.Params, start: float, end: float) -> Array:
    """Rate (1 / s) and length (s) of the clock's pieces in a time interval, shape (pieces, 2), in order of time."""
    edges = np.array([*params.clock_starts, np.inf])
    low, high = np.maximum(edges[:-1], start), np.minimum(edges[1:], end)
    inside = high - low > 1e-12 * (end - start)
    return np.stack([np.array(params.clock_rates)[inside], (high - low)[inside]], axis=1)


class TickSpreadProblem:
    """The tick-spread market as a `FrozenProblem`.

    State ``(i - 1) (2 L + 1) + L + y`` has the spread of ``i`` ticks and the inventory of ``y`` lots, ``-L <= y <= L``.
    Controls are ``[bid improved, ask improved, bid size, ask size, market order]``: 0 or 1, and shares.
    """

    num_controls = 5
    tolerance = 0.0
    has_market_orders = True

    def __init__(self, params: tick_spread.Params) -> None:
        p = self.params = params
        self.num_steps = p.num_steps
        self.count = 2 * p.limit + 1
        self.shape = (p.num_spreads, self.count)
        self.num_states = p.num_spreads * self.count
        check_tables(
            p.num_steps, self.num_states, 5, "num_steps, inventory_limit or the number of spreads, or raise lot"
        )
        self.lots = np.tile(np.arange(-p.limit, p.limit + 1), p.num_spreads)
        self.spread = np.repeat(np.arange(p.num_spreads), self.count)
        self.inventory: Array = np.asarray(np.arange(-p.limit, p.limit + 1) * p.lot, np.float64)  # shares, (Y,)
        self.coordinates: Mapping[str, NDArray[Any]] = {
            "spread": p.spreads[self.spread],
            "inventory": self.lots * p.lot,
        }
        self.initial = (p.initial_spread_law[:, None] * (self.inventory == p.lot * p.start)).ravel()
        self.aversion = p.risk_aversion if p.utility == "cara" else 0.0
        exponents = np.array([-self.aversion]) if self.aversion else None
        self.criterion = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=exponents)
        self.transitions = np.array(p.spread_transitions)
        self.bid_rates, self.ask_rates = p.bid_rates, p.ask_rates
        self._kept_rows: dict[tuple[Any, ...], PostingRows] = {}
        # steps and symmetry that margins of postings hold for, the values that they were found with, and they, (G, Y)
        self._eliminated: tuple[tuple[bytes, bool], Array, Array] = ((b"", False), np.empty(0), np.empty(0))

    # States, observations, actions

    def observations(self, n: int) -> NDArray[np.float32]:
        return tick_spread.observe(self.params, n, self.lots, self.spread)

    def locate(self, observations: Array) -> tuple[Integers, Integers]:
        step, lots, spread = tick_spread.locate(self.params, observations)
        return step, spread * self.count + lots + self.params.limit

    def controls(self, actions: Array) -> Array:
        p, entries = self.params, np.asarray(actions)
        return tick_spread.to_quotes(p, entries if p.actions == "multi" else p.menu[entries])

    def actions(self, controls: Array) -> Integers:
        full = tick_spread.from_quotes(self.params, controls)
        return full if self.params.actions == "multi" else tick_spread.nearest_of_menu(self.params, full)

    def binding(self, controls: Array) -> NDArray[np.bool_]:
        return np.zeros(np.shape(controls), dtype=np.bool_)  # they are discrete: there is nothing beyond the largest

    def admitted(self, states: Integers, controls: Array) -> tuple[Integers, Integers, Integers]:
        """What is played of controls (M, 5): postings (M, 4), market orders (M,) and the states (M,) these lead to.

        A posting is the limit orders of a step, [bid improved, ask improved, bid lots, ask lots]; the quote of a size 0
        is best.
        """
        p = self.params
        asked = np.rint(controls[:, 2:] / p.lot).astype(np.int64)
        lots, spread = self.lots[states], self.spread[states]
        order = np.clip(asked[:, 2], *tick_spread.order_bounds(p, lots))
        after = lots + order
        postings = np.empty((len(states), 4), dtype=np.int64)
        postings[:, 2] = np.minimum(asked[:, 0], p.limit - after)
        postings[:, 3] = np.minimum(asked[:, 1], p.limit + after)
        postings[:, :2] = (controls[:, :2] > 0.5) & (spread > 0)[:, None] & (postings[:, 2:] > 0)
        return postings, order, states + order

    def _grouped(self, postings: Integers) -> tuple[Integers, Integers]:
        """Different postings (G, 4), and the index of each row's."""
        sizes = self.params.size_max + 1
        code = ((postings[:, 0] * 2 + postings[:, 1]) * sizes + postings[:, 2]) * sizes + postings[:, 3]
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        return np.ascontiguousarray(postings[first]), inverse.ravel()

    # Functionals

    def _order_costs(self, states: Integers, order: Integers) -> Array:
        """What market orders of so many lots cost over mid (euro), by state."""
        p = self.params
        return np.asarray(np.abs(order) * p.crossing_costs[self.spread[states]] + p.fixed_fee * (order != 0))

    def _rates(self, functional: Functional) -> tuple[Array, Array]:
        """Gain of the functional per second besides fills (Y,), and variance of its Brownian part (Y,)."""
        p, y = self.params, self.inventory
        drift = functional.absolute_inventory * np.abs(y) - functional.penalty * p.running_penalty * y**2
        return drift, (functional.price * p.volatility * y) ** 2

    def _with_constant(self, constant: Array, values: Array, functional: Functional) -> Array:
        """Values (M, K) of ``constant + R`` from those of ``R``."""
        if functional.exponents is not None:
            return np.asarray(values * np.exp(np.multiply.outer(constant, functional.exponents)))
        first = values[:, 0] + constant
        if functional.moments == 1:
            return first[:, None]
        return np.stack([first, values[:, 1] + constant * (2.0 * values[:, 0] + constant)], axis=1)

    def terminal(self, functional: Functional) -> NDArray[np.float64] | NDArray[np.complex128]:
        cost = self._order_costs(np.arange(self.num_states), -self.lots)
        return terminal_values(0.0 - functional.gain * cost, functional)

    def steps(self, n: int) -> Array:
        """Clock rates and lengths within step n: see `clock_profile`."""
        p = self.params
        pieces = clock_profile(p, n * p.step_length, (n + 1) * p.step_length)
        if len(pieces) == 1:  # alike in all steps, whatever the rounding of their ends
            pieces[0, 1] = p.step_length
        return pieces

    # The protocol

    def backward(self, n: int, states: Integers, controls: Array, values: Array, functional: Functional) -> Array:
        exponents = functional.exponents
        if exponents is None or (np.isrealobj(values) and np.ptp(exponents) == 0.0):
            return self.backward_together(n, states, controls, values, (functional,))
        postings, order, landed = self.admitted(np.asarray(states), np.asarray(controls, dtype=np.float64))
        return self.with_order(states, order, self._by_posting(n, postings, landed, values, functional), functional)

    def backward_together(
        self, n: int, states: Integers, controls: Array, values: Array, functionals: tuple[Functional, ...]
    ) -> Array:
        """`backward` of several sums at once, or of one functional whose exponents are one real number.

        Columns of values are the first moments of all, then the second moments of those that have them.
        """
        if n == self.num_steps - 1:  # what is kept decides how sums are rounded: each pass begins without
            self._kept_rows.clear()
        postings, order, landed = self.admitted(np.asarray(states), np.asarray(controls, dtype=np.float64))
        rows, columns = self._rows(n, functionals), columns_of(functionals)
        codes = rows.coded(postings, landed)
        worth = rows.are_worth(codes, ROWS_PER_POSTING * len(np.unique(codes // self.num_states)), n + 1)
        after = rows.values(codes, values) if worth else np.empty((len(states), values.shape[1]))
        for functional, own in zip(functionals, columns, strict=True):
            if not worth:
                after[:, own] = self._by_posting(n, postings, landed, values[:, own], functional)
            after[:, own] = self.with_order(states, order, after[:, own], functional)
        return after

    def _rows(self, n: int, functionals: tuple[Functional, ...]) -> PostingRows:
        """Rows of a step for functionals."""
        exponents, steps = functionals[0].exponents, self.steps(n)
        exponent = 0.0 if exponents is None else float(exponents[0])
        key = (steps.tobytes(), exponent, *(functional._replace(exponents=None) for functional in functionals))
        if key not in self._kept_rows:
            if len(self._kept_rows) >= MOST_SYSTEMS:
                self._kept_rows.clear()
            drift, variance = (np.stack(part) for part in zip(*map(self._rates, functionals), strict=True))
            gains = Gains(
                np.stack([functional.gain * self.params.edges for functional in functionals]),
                np.array([functional.fills for functional in functionals]),
                drift,
                variance,
                np.flatnonzero([functional.moments == 2 for functional in functionals]),
                exponent,
            )
            market = (steps, self.transitions, self.bid_rates, self.ask_rates)
            self._kept_rows[key] = PostingRows(market, gains, self.params.size_max)
        return self._kept_rows[key]

    def _by_posting(
        self, n: int, postings: Integers, landed: Integers, values: Array, functional: Functional
    ) -> NDArray[Any]:
        """Values (M, K) of postings (M, 4) in states (M,), from those of each different posting in all states."""
        groups, which = self._grouped(postings)
        of_groups = self.posting_values(n, groups, values, functional)
        return np.ascontiguousarray(of_groups.reshape(*of_groups.shape[:2], -1)[which, :, landed])

    def with_order(self, states: Integers, order: Integers, after: Array, functional: Functional) -> Array:
        """Values (M, K) of market orders (lots) in states (M,), from those after them (M, K)."""
        constant = -functional.gain * self._order_costs(states, order) + functional.orders * (order != 0)
        return self._with_constant(constant, after, functional)

    def posting_values(self, n: int, postings: Integers, values: Array, functional: Functional) -> Array:
        """Values (G, K, m, Y) after the market order, for each posting and all states."""
        columns = np.ascontiguousarray(values.T).reshape(values.shape[1], *self.shape)
        system = (
            self.steps(n),
            self.transitions,
            self.bid_rates,
            self.ask_rates,
            functional.gain * self.params.edges,
            self.params.limit,
            functional.fills,
            *self._rates(functional),
            postings,
        )
        if functional.exponents is None:
            result = np.empty((len(postings), *columns.shape))
            kernels.moments_of_postings(*system, columns, result)
            return result
        parts = np.stack([columns.real, columns.imag])
        split = np.empty((len(postings), *parts.shape))
        kernels.exponentials_of_postings(*system, functional.exponents.astype(np.complex128), parts, split)
        return np.asarray(split[:, 0] + 1j * split[:, 1] if np.iscomplexobj(values) else split[:, 0])

    def backward_without_inventory(
        self, n: int, states: Integers, controls: Array, values: Array, functional: Functional
    ) -> Array:
        postings, order, landed = self.admitted(np.asarray(states), np.asarray(controls, dtype=np.float64))
        result = np.zeros((len(states), values.shape[1]), dtype=values.dtype)
        flat = np.flatnonzero(landed % self.count == self.params.limit)
        groups, which = self._grouped(postings[flat])
        at_zero = values.reshape(*self.shape, -1)[:, self.params.limit]
        stayed = np.empty((len(groups), *at_zero.shape), dtype=values.dtype)
        for g, (bid, ask, bid_size, ask_size) in enumerate(groups):
            fills = self.bid_rates[bid] * (bid_size > 0) + self.ask_rates[ask] * (ask_size > 0)
            stayed[g] = at_zero
            for clock, length in self.steps(n)[::-1]:  # the spread moves, and nothing is filled
                generator = clock * (self.transitions - np.eye(len(fills))) - np.diag(fills)
                stayed[g] = expm(length * generator) @ stayed[g]
        result[flat] = self.with_order(states[flat], order[flat], stayed[which, self.spread[states[flat]]], functional)
        return result

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        states = np.flatnonzero(law)
        postings, _, landed = self.admitted(states, np.asarray(controls, dtype=np.float64)[states])
        groups, which = self._grouped(postings)
        by_posting = np.zeros((len(groups), self.num_states))
        np.add.at(by_posting, (which, landed), law[states])
        laws = by_posting.reshape(-1, *self.shape)
        result = np.empty(self.shape)
        kernels.law_of_postings(self.steps(n), self.transitions, self.bid_rates, self.ask_rates, groups, laws, result)
        return result.ravel()

    def gradient(self, n: int, states: Integers, controls: Array, values: Array) -> tuple[Array, Array]:
        raise TypeError("the controls of the tick-spread market are not continuous: there is no gradient in them")

    def improve(self, n: int, values: Array, guess: Array | None = None) -> tuple[Array, Array]:
        p, flat = self.params, values[:, 0].reshape(self.shape)
        if p.actions != "multi":
            return self._improve_in_menu(n, values)
        mirrored = bool(np.array_equal(self.bid_rates, self.ask_rates) and np.array_equal(flat, flat[:, ::-1]))
        postings, best_after = self._best_after(n, values, mirrored)
        order, best = np.empty(self.shape, dtype=np.int64), np.empty(self.shape)
        kernels.best_orders(p.crossing_costs, p.fixed_fee, p.order_max, self.aversion, best_after, order, best)
        chosen = postings.reshape(-1, 4)[np.arange(self.num_states) + order.ravel()]
        controls = np.column_stack([chosen, order.ravel()]).astype(np.float64)
        controls[:, 2:] *= p.lot
        if mirrored:
            sides, half = controls.reshape(*self.shape, 5), p.limit
            sides[:, :half] = sides[:, :half:-1, MIRROR] * np.array([1.0, 1.0, 1.0, 1.0, -1.0]) + 0.0
            best[:, :half] = best[:, :half:-1]
        return controls, best.reshape(-1, 1)

    def _best_after(self, n: int, values: Array, mirrored: bool) -> tuple[Integers, Array]:
        """Best posting of each state after the market order, (m, Y, 4), and its value (m, Y).

        Left out are postings that cannot be the best of any state, by the margin that they missed it by when they were
        last evaluated and by what values at the end of the step have changed since: `_drift_apart`. Under CARA, where
        those are factors ``exp(d(state))``, the parts of two postings' values with a point of `_fills` differ, and
        their ratio changes by at most ``exp(max d - min d)``.
        """
        everything = self._half if mirrored else self.postings
        key, before, margin = self._eliminated
        if key == (self.steps(n).tobytes(), mirrored):
            margin = margin - (np.ptp(np.log(values / before)) if self.aversion else self._drift_apart(values - before))
        else:
            margin = np.full((len(everything), self.count), -1.0)
        margin[0] = -1.0  # no posting is always evaluated
        left = np.flatnonzero((margin <= 0.0).any(axis=1))
        postings = everything[left]
        after = self.posting_values(n, postings, values, self.criterion)[:, 0]
        posting_of, best = self._best_postings(postings, after)
        chosen = postings[posting_of]
        if mirrored:
            other = best[:, ::-1]
            better = other < best if self.aversion else other > best
            chosen = np.where(better[..., None], chosen[:, ::-1, MIRROR[:4]], chosen)
            best = np.where(better, other, best)
        common = self._fills[0] * after[0] if self.aversion else np.empty((0, 0))
        margin[left] = kernels.margins(postings, np.ascontiguousarray(after), best, common)
        self._eliminated = ((self.steps(n).tobytes(), mirrored), values.copy(), margin)
        return chosen, best

    @cached_property
    def _fills(self) -> tuple[float, Array, float]:
        """Points in a step of a Poisson process that has the fills of both sides among its points.

        Chance of none; of 1, 2, .. until both bounds are in reach or the rest does not matter; and of more.
        """
        mean = float(self.bid_rates.max() + self.ask_rates.max()) * self.params.step_length
        reach = -(-2 * self.params.limit // self.params.size_max)
        most = min(reach, int(scipy.stats.poisson.isf(1e-15, mean)) if mean > 0.0 else 0)
        return (
            math.exp(-mean),
            scipy.stats.poisson.pmf(np.arange(1, most + 1), mean),
            float(scipy.stats.poisson.sf(most, mean)),
        )

    def _drift_apart(self, change: Array) -> Array:
        """By how much two postings' values may drift apart as values (S, 1) at the end of the step change, (Y,).

        After ``k`` points of `_fills` both have led to within ``k`` largest sizes, and after none to the same.
        """
        high, low = change.reshape(self.shape).max(axis=0), change.reshape(self.shape).min(axis=0)
        _, chances, more = self._fills
        reach, apart = 2 * self.params.size_max + 1, np.full(self.count, more * np.ptp(change))
        for chance in chances:
            high, low = maximum_filter1d(high, reach, mode="nearest"), minimum_filter1d(low, reach, mode="nearest")
            apart += chance * (high - low)
        return apart

    def _best_postings(self, postings: Integers, after: Array) -> tuple[Integers, Array]:
        """Index of the best posting of each state after the market order, and its value, both (m, Y)."""
        posting_of, best = np.empty(self.shape, dtype=np.int64), np.empty(self.shape)
        sign = -1.0 if self.aversion else 1.0
        kernels.best_postings(postings, np.ascontiguousarray(after), sign, posting_of, best)
        return posting_of, best

    def action_values(self, n: int, values: Array) -> ActionValues:
        """What every action is worth in every state at step n, from the values (S, 1) of step n + 1."""
        if self.params.actions != "multi":
            table = self._menu_values(n, values)
            return ActionValues(table, lambda states, entries: table[states, entries][:, None])
        return self._full_values(n, values)

    def _menu_values(self, n: int, values: Array) -> Array:
        """Values (S, F) of the actions of a menu."""
        actions = tick_spread.to_quotes(self.params, self.params.menu)
        states = np.repeat(np.arange(self.num_states), len(actions))
        controls = np.tile(actions, (self.num_states, 1))
        return self.backward(n, states, controls, values, self.criterion).reshape(self.num_states, len(actions))

    def _improve_in_menu(self, n: int, values: Array) -> tuple[Array, Array]:
        actions = tick_spread.to_quotes(self.params, self.params.menu)
        table = self._menu_values(n, values)
        best = table.argmin(axis=1) if self.aversion else table.argmax(axis=1)
        return actions[best], np.take_along_axis(table, best[:, None], axis=1)

    def _full_values(self, n: int, values: Array) -> ActionValues:
        """Of ``actions="multi"``: the last component is the market order."""
        p, sizes, postings = self.params, self.params.size_max + 1, self.postings
        after = self.posting_values(n, postings, values, self.criterion)[:, 0]
        best_after = self._best_postings(postings, after)[1].ravel()
        after = after.reshape(len(postings), -1)
        index = np.zeros((2, 2, sizes, sizes), dtype=np.int64)
        index[tuple(postings.T)] = np.arange(len(postings))

        def admitted(states: Integers, entries: Integers) -> tuple[Integers, Integers]:
            """Market orders (M,) that are played, and the states (M,) that they lead to."""
            lots = self.lots[states]
            order = np.clip(entries - p.order_max, -p.limit - lots, p.limit - lots)
            return order, states + order

        def others(states: Integers, entries: Integers) -> Array:
            """By bid quote, ask quote, bid size and ask size."""
            order, landed = admitted(states, entries)
            room = np.stack([p.limit - self.lots[landed], p.limit + self.lots[landed]])[:, :, None]
            bid, ask = np.minimum(np.arange(sizes), room)  # (M, sizes)
            bid, ask = bid[:, None, None, :, None], ask[:, None, None, None, :]
            improved = (self.spread[landed] > 0)[:, None, None, None, None] * np.arange(2)[:, None, None]
            bid_quote, ask_quote = improved.swapaxes(1, 2) * (bid > 0), improved * (ask > 0)
            which = index[bid_quote, ask_quote, bid, ask].reshape(len(landed), -1)
            reached = after[which, landed[:, None]]
            states, order = (np.repeat(column, reached.shape[1]) for column in (states, order))
            return self.with_order(states, order, reached.reshape(-1, 1), self.criterion).reshape(reached.shape)

        states = np.repeat(np.arange(self.num_states), 2 * p.order_max + 1)
        order, landed = admitted(states, np.tile(np.arange(2 * p.order_max + 1), self.num_states))
        last = self.with_order(states, order, best_after[landed][:, None], self.criterion)
        return ActionValues(last.reshape(self.num_states, -1), others)

    @cached_property
    def postings(self) -> Integers:
        """All postings whose quotes matter, (G, 4): none, bids, asks, then both, by quote and size."""
        sides = [(quote, size) for quote in (0, 1) for size in range(1, self.params.size_max + 1)]
        alone = [(0, 0, 0, 0), *((quote, 0, size, 0) for quote, size in sides)]
        alone += [(0, quote, 0, size) for quote, size in sides]
        return np.array(alone + [(b, a, k, size) for b, k in sides for a, size in sides])

    @cached_property
    def _half(self) -> Integers:
        """One of two postings that are mirror images of each other."""
        bid, ask = (2 * self.postings[:, side + 2] + self.postings[:, side] for side in (0, 1))
        return self.postings[bid >= ask]

    def to_value(self, values: Array, log_scale: float | Array) -> Array:
        return -(np.log(values) + log_scale) / self.aversion if self.aversion else np.asarray(values)

    def log_weight(self, info: Mapping[str, Array]) -> Array:
        gamma = self.aversion
        variance = self.params.volatility**2 * info["inventory_square"]
        return np.asarray(-gamma * (info["gain"] - info["price_gain"]) + 0.5 * gamma**2 * variance)
