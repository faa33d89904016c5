"""One-step values of all actions of the tick-spread market, given the values at the next step."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.tick_spread import kernels
from mmgym.models import tick_spread

if TYPE_CHECKING:
    from mmgym.baselines.tick_spread.one_step import TickSpreadProblem

Array = NDArray[Any]

__all__ = ["FlatActionValues", "FullActionValues"]


class FlatActionValues:
    """Values of the actions of ``actions="flat"`` at one step; ``last`` has them, shape (S, F).

    Parameters
    ----------
    problem : TickSpreadProblem
    n : int
        The step.
    values : (S, 1)
        The criterion's functional at step n + 1.
    """

    def __init__(self, problem: "TickSpreadProblem", n: int, values: Array) -> None:
        actions = tick_spread.to_quotes(problem.params, problem.params.flat_actions)
        states = np.repeat(np.arange(problem.num_states), len(actions))
        repeated = np.tile(actions, (problem.num_states, 1))
        found = problem.backward(n, states, repeated, values, problem.criterion)
        self.last: Array = found.reshape(problem.num_states, len(actions))

    def others(self, states: Array, entries: Array) -> Array:
        """There are no other components: values (M, 1)."""
        return self.last[states, entries][:, None]


class FullActionValues:
    """Values of the actions of ``actions="multi"`` at one step.

    ``last`` has those of all entries of the last component, the market order, each with the best quotes and sizes,
    shape (S, E). An entry that is not allowed has the value of the nearest one that is, which is what is played.

    Parameters
    ----------
    problem : TickSpreadProblem
    n : int
        The step.
    values : (S, 1)
        The criterion's functional at step n + 1.
    """

    def __init__(self, problem: "TickSpreadProblem", n: int, values: Array) -> None:
        p = problem.params
        self.problem, self.sizes = problem, p.size_max + 1
        quads = problem.every_quad(both=True)
        found = problem.quad_values(n, quads, values, problem.criterion)[:, 0]
        self._found = found.reshape(len(quads), -1)
        self._index = np.zeros((2, 2, self.sizes, self.sizes), dtype=np.int64)
        self._index[tuple(quads.T)] = np.arange(len(quads))
        after, quad_of = np.empty(problem.shape), np.empty(problem.shape, dtype=np.int64)
        kernels.best_quads(quads, np.ascontiguousarray(found), -1.0 if problem.aversion else 1.0, quad_of, after)
        states = np.repeat(np.arange(problem.num_states), 2 * p.order_max + 1)
        entries = np.tile(np.arange(2 * p.order_max + 1), problem.num_states)
        order, landed = self._ordered(states, entries)
        best = problem.with_order(states, order, after.ravel()[landed][:, None], problem.criterion)
        self.last: Array = best.reshape(problem.num_states, -1)

    def _ordered(self, states: Array, entries: Array) -> tuple[Array, Array]:
        p, lots = self.problem.params, self.problem.lots[states]
        order = np.clip(entries - p.order_max, -p.limit - lots, p.limit - lots)
        return order, states + order

    def others(self, states: Array, entries: Array) -> Array:
        """Values (M, J) of all (bid quote, ask quote, bid size, ask size), with entries (M,) of the market order."""
        p, problem = self.problem.params, self.problem
        order, landed = self._ordered(states, entries)
        room = np.stack([p.limit - problem.lots[landed], p.limit + problem.lots[landed]])[:, :, None]
        bid, ask = np.minimum(np.arange(self.sizes), room)  # (M, sizes)
        bid, ask = bid[:, None, None, :, None], ask[:, None, None, None, :]
        improved = (problem.spread[landed] > 0)[:, None, None, None, None] * np.arange(2)[:, None, None]
        bid_quote, ask_quote = improved.swapaxes(1, 2) * (bid > 0), improved * (ask > 0)
        which = self._index[bid_quote, ask_quote, bid, ask].reshape(len(landed), -1)
        found = self._found[which, landed[:, None]]
        columns = found.shape[1]
        flat = problem.with_order(
            np.repeat(states, columns), np.repeat(order, columns), found.reshape(-1, 1), problem.criterion
        )
        return np.asarray(flat).reshape(found.shape)
