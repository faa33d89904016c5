"""Players who cannot be told apart: the states of ``k`` of them together are a multiset of their states.

Of ``S`` states there are ``C(S + k - 1, k)`` multisets, where there are ``S^k`` tuples.
"""

import itertools
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Multisets", "num_multisets"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def num_multisets(states: int, players: int) -> int:
    """Joint states of so many exchangeable players."""
    return comb(states + players - 1, players)


class Multisets:
    """The multisets of up to ``players`` of the states ``0 .. S - 1``, in the order of their ascending tuples.

    Attributes
    ----------
    members : list of (M_k, k) int
        The multisets of ``k`` players, ascending.
    added : list of (M_k, S) int
        The multiset of ``k + 1`` players with one more state.
    """

    def __init__(self, states: int, players: int) -> None:
        self.states = states
        self.members: list[Integers] = [np.zeros((1, 0), np.int64)]
        self.added: list[Integers] = []
        for count in range(1, players + 1):
            chosen = itertools.combinations_with_replacement(range(states), count)
            self.members.append(np.array(list(chosen), np.int64).reshape(-1, count))
            fewer = np.repeat(self.members[-2], states, axis=0)
            every = np.column_stack([fewer, np.tile(np.arange(states), len(self.members[-2]))])
            self.added.append(self.place(every).reshape(-1, states))

    def place(self, tuples: Integers) -> Integers:
        """Which multisets tuples (T, k) are, in any order."""
        powers = self.states ** np.arange(tuples.shape[1])[::-1]
        codes = self.members[tuples.shape[1]] @ powers
        return np.asarray(np.searchsorted(codes, np.sort(tuples, axis=1) @ powers))

    def without_each(self, count: int) -> Integers:
        """Of the multisets of ``count`` players: those of the others, by the place of the one left out, (M_k, k)."""
        members = self.members[count]
        return np.stack([self.place(np.delete(members, k, axis=1)) for k in range(count)], axis=1)

    def law(self, single: Array, count: int) -> Array:
        """Law (M_k,) of ``count`` players whose states are independent, with the law ``single`` (S,) each."""
        law: Array = np.ones(1)
        for added in self.added[:count]:
            law = np.bincount(added.ravel(), np.outer(law, single).ravel()).astype(np.float64)
        return law

    def behind(self, values: Array, moves: Array, count: int) -> Array:
        """Expectations (A, M_k) of values (A, M_k) behind moves (S, S) of each of ``count`` players: rows are laws."""
        values = values[:, :, None]
        for added, last, parent in self._moved(count):
            before = np.einsum("st,amtp->amsp", moves, values[:, added], optimize=True)
            values = before[:, :, last, parent]
        return np.asarray(values[:, 0])

    def forward(self, law: Array, moves: Array, count: int) -> Array:
        """Laws (A, M_k) after these moves of laws (A, M_k) before them: the transpose of `behind`."""
        law = law[:, None]
        for added, last, parent in reversed(self._moved(count)):
            apart = np.zeros((len(law), *added.shape, int(parent.max()) + 1))
            apart[:, :, last, parent] = law
            moved = np.einsum("st,amsp->amtp", moves, apart, optimize=True)
            law = np.zeros((len(law), int(added.max()) + 1, moved.shape[-1]))
            where: Any = slice(None), added
            np.add.at(law, where, moved)
        return np.asarray(law[:, :, 0])

    def _moved(self, count: int) -> list[Any]:
        """One player moves after another: how those who have moved get one more; the others' last, and rest."""
        steps = []
        for others in range(1, count + 1):
            members = self.members[others]
            steps.append((self.added[count - others], members[:, -1], self.place(members[:, :-1])))
        return steps
