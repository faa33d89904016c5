"""The chain on a full grid of states: all its sums at once, in floating point.

Wealth after ``n`` steps lies between ``n`` times the least and the largest change of a step; with the drawdown (its
last entry: `BREACHED`) and whether the floor was broken, that is an array of states for each inventory. What can happen
in a step are `options`: no fill, or a fill of one side at some ticks; a sparse matrix takes the expectation over the
mid's moves for all options and states, and a pair of quotes is a mixture of options, as one order is filled at most:

    F(bid, ask) = (1 - p(bid) - p(ask)) F_none + p(bid) F_bid + p(ask) F_ask.

``F`` are the functionals ``(objective, risk_1, ..., risk_K)`` in the order of `Chain.bounds`. The conditional value at
risk is ``t + E[(-w_N - t)^+] / (1 - confidence)`` for a given ``t``: at least the CVaR, and equal to it at the best.
Shapes: ``Q`` inventories, ``W`` wealths (of a step) times memories, ``O`` options of all inventories.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mmgym.arguments import check_memory
from mmgym.baselines.constrained.model import OFF, Chain, Quotes

__all__ = ["Lattice"]

Array = NDArray[Any]


class Lattice:
    """The chain on a grid; ``worst`` is the ``t`` of the conditional value at risk.

    Raises
    ------
    MemoryError
        If the grid would not fit into this machine.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain, self.worst = chain, 0
        market, limits = chain.market, chain.limits
        self.inventories = sorted(chain.quotes)
        self.names = list(chain.bounds)
        changes = {step for outcomes in chain.outcomes.values() for _, step, _ in outcomes}
        self.sees_wealth = not (limits.loss is None and limits.floor is None and limits.cvar is None)
        self.low, self.high = (min(changes), max(changes)) if self.sees_wealth else (0, 0)
        self.depth = 1 if limits.drawdown is None else limits.drawdown.amount + 2
        self.memory = self.depth * (1 if limits.floor is None else 2)
        self.options: list[tuple[int, int, int]] = []  # index of the inventory, of the one after, ticks earned
        self.mixtures: list[Array] = []  # by inventory: (pairs, its options)
        for i, q in enumerate(self.inventories):
            bids = sorted({pair.bid for pair in chain.quotes[q]} - {OFF})
            asks = sorted({pair.ask for pair in chain.quotes[q]} - {OFF})
            options = [(i, 0), *((i + 1, ticks) for ticks in bids), *((i - 1, ticks) for ticks in asks)]
            self.options += [(i, *option) for option in options]
            mixture = np.zeros((len(chain.quotes[q]), len(options)))
            for row, pair in zip(mixture, chain.quotes[q], strict=True):
                for change, p in chain.fills(pair).items():
                    row[options.index((i + change, (0, pair.bid, pair.ask)[change]))] = float(p)
            self.mixtures.append(mixture)
        self.sources = np.array([i for i, _, _ in self.options])
        self.starts = np.searchsorted(self.sources, np.arange(len(self.inventories)))
        self.number = {q: {pair: k for k, pair in enumerate(pairs)} for q, pairs in chain.quotes.items()}
        widest = market.num_steps * (self.high - self.low) + 1
        entries = float(widest) * self.memory * len(self.options)
        check_memory(
            entries * (12.0 * len(market.mid_moves) * market.num_steps + 24.0 * (1 + len(self.names))),
            f"a grid of {widest:,} wealths x {self.memory} drawdowns x {len(self.inventories)} inventories",
            "num_steps, inventory_limit, the ticks, the mid moves or the limits' amounts",
        )

    @property
    def start(self) -> int:
        """Index of the initial inventory."""
        return self.inventories.index(self.chain.market.initial_inventory)

    def _wealth(self, n: int) -> Array:
        return np.arange(n * self.low, n * self.high + 1)

    def size(self, n: int) -> int:
        """``W``: wealths times memories before step ``n``."""
        return len(self._wealth(n)) * self.memory

    @functools.cached_property
    def earned(self) -> Array:
        """(O,): expected gain of an option, less the running penalty."""
        market = self.chain.market
        drift = float(sum(move * p for move, p in market.mid_moves.items()))
        after = np.array([self.inventories[j] for _, j, _ in self.options])
        ticks = np.array([ticks for _, _, ticks in self.options])
        return np.asarray(ticks + drift * after - float(market.running_penalty) * after**2)

    @functools.cached_property
    def _steps(self) -> list[csr_array]:
        return [self._step(n) for n in range(self.chain.market.num_steps)]

    def _step(self, n: int) -> csr_array:
        """(O * W, Q * W'): probabilities of states after an option, over the mid's moves."""
        wealth, following = self._wealth(n), self._wealth(n + 1)
        memory, floor = np.arange(self.memory), self.chain.limits.floor
        broken, drawdown = memory // self.depth, memory % self.depth
        columns, entries = [], []
        for move, p in self.chain.market.mid_moves.items():
            for _, j, ticks in self.options:
                step = ticks + self.inventories[j] * move
                place = (wealth + step - following[0] if self.sees_wealth else 0 * wealth)[:, None]
                deeper = np.maximum(drawdown - step, 0)
                deeper = np.where((drawdown == self.depth - 1) | (deeper > self.depth - 2), self.depth - 1, deeper)
                fell = broken if floor is None else broken | ((wealth + step)[:, None] < -floor.amount)
                column = (j * len(following) + place) * self.memory + fell * self.depth + deeper
                columns.append(column.ravel())
            entries.append(np.full(len(self.options) * len(wealth) * self.memory, float(p)))
        rows = np.tile(np.arange(len(entries[0])), len(entries))
        shape = (len(entries[0]), len(self.inventories) * len(following) * self.memory)
        return csr_array((np.concatenate(entries), (rows, np.concatenate(columns))), shape=shape)

    def use_worst_of(self, law: Array) -> None:
        """Set ``worst`` to what attains the conditional value at risk of a law (Q, W) at the end."""
        limit = self.chain.limits.cvar
        if limit is not None:
            below = np.cumsum(law.sum(axis=0).reshape(-1, self.memory).sum(axis=1))
            tail = min(int(np.searchsorted(below, float(1 - limit.confidence))), len(below) - 1)
            self.worst = -int(self._wealth(self.chain.market.num_steps)[tail])

    # Backward

    def terminal(self) -> Array:
        """Functionals (Q, W, F) at the end; the wealth is counted as it is earned."""
        market, limits = self.chain.market, self.chain.limits
        wealth = self._wealth(market.num_steps)
        values = np.zeros((len(self.inventories), len(wealth), self.memory, 1 + len(self.names)))
        values[..., 0] = -float(market.terminal_penalty) * np.square(self.inventories)[:, None, None]
        for row, name in enumerate(self.names, start=1):
            if name == "loss" and limits.loss is not None:
                values[:, wealth <= -limits.loss.amount, :, row] = 1.0
            elif name == "cvar" and limits.cvar is not None:
                beyond = np.maximum(-wealth - self.worst, 0) / float(1 - limits.cvar.confidence)
                values[..., row] = (self.worst + beyond)[:, None]
            elif name == "floor":
                values[:, :, self.depth :, row] = 1.0
            else:
                values[:, :, self.depth - 1 :: self.depth, row] = 1.0
        return values.reshape(len(self.inventories), -1, 1 + len(self.names))

    def parts(self, n: int, values: Array) -> Array:
        """Functionals (O, W, F) of every option at step ``n``, from those (Q, W', F) at step ``n + 1``."""
        parts = (self._steps[n] @ values.reshape(-1, values.shape[-1])).reshape(len(self.options), -1, values.shape[-1])
        parts[..., 0] += self.earned[:, None]
        return np.asarray(parts)

    def best(self, parts: Array, weights: Array) -> tuple[list[Array], Array]:
        """Indices (W,) by inventory of the quotes with the largest weighted functionals, and these (Q, W, F)."""
        weighted, choices = parts @ weights, []
        values = np.empty((len(self.inventories), *parts.shape[1:]))
        for i, (mixture, start) in enumerate(zip(self.mixtures, self.starts, strict=True)):
            own = slice(start, start + mixture.shape[1])
            choice = (mixture @ weighted[own]).argmax(axis=0)
            values[i] = np.einsum("wo,owf->wf", mixture[choice], parts[own])
            choices.append(choice.astype(np.int32))
        return choices, values

    def shares(self, cells: Mapping[int, Mapping[Quotes, float]]) -> Array:
        """Probabilities (O,) of options under probabilities of quotes by inventory (0 where there are none)."""
        shares = []
        for q, mixture in zip(self.inventories, self.mixtures, strict=True):
            share = np.zeros(mixture.shape[1])
            for pair, weight in cells.get(q, {}).items():
                share += weight * mixture[self.number[q][pair]]
            shares.append(share)
        return np.concatenate(shares)

    def play(self, parts: Array, shares: Array) -> Array:
        """Functionals (Q, W, F) of options drawn with probabilities (O,)."""
        return np.asarray(np.add.reduceat(parts * shares[:, None, None], self.starts, axis=0))

    def gains(self, parts: Array, law: Array) -> dict[int, Array]:
        """What each pair of quotes contributes with the masses (Q, W): (pairs, F) by inventory."""
        total = np.einsum("owf,ow->of", parts, law[self.sources])
        return {
            q: mixture @ total[start : start + mixture.shape[1]]
            for q, mixture, start in zip(self.inventories, self.mixtures, self.starts, strict=True)
        }

    # Forward

    def initial(self) -> Array:
        """The law (Q, W) at step 0."""
        law = np.zeros((len(self.inventories), self.memory))
        law[self.start, 0] = 1.0
        return law

    def forward(self, n: int, law: Array, shares: Array) -> Array:
        """The law (Q, W') at step ``n + 1``, of options drawn with probabilities (O,) or, by state, (O, W)."""
        mass = law[self.sources] * (shares if shares.ndim == 2 else shares[:, None])
        return np.asarray((self._steps[n].T @ mass.ravel()).reshape(len(self.inventories), -1))

    def chosen(self, choices: list[Array]) -> Array:
        """Probabilities (O, W) of options where states post the quotes of these indices."""
        return np.concatenate([mixture[choice].T for mixture, choice in zip(self.mixtures, choices, strict=True)])

    def laws(self, shares: list[Array]) -> list[Array]:
        """Laws of the states at each decision and at the end, under probabilities (O,) of options at each step."""
        laws = [self.initial()]
        for n, share in enumerate(shares):
            laws.append(self.forward(n, laws[-1], share))
        return laws

    def count_states(self) -> int:
        """States that some policy can reach, at all steps."""
        likely = self.shares({q: dict.fromkeys(pairs, 1.0 / len(pairs)) for q, pairs in self.chain.quotes.items()})
        return sum(int(np.count_nonzero(law)) for law in self.laws([likely] * self.chain.market.num_steps))
