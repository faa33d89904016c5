r"""What a declared market's states have beside the inventory, as a recorded book tells it.

The other coordinates are a Markov chain ``Y`` with the generator ``G`` that its events give, of three kinds:

- `mid` depends on ``Y``: it is the state whose ``mid`` is nearest to what the mid has moved by since the start of the
  episode; beyond the range that at its end;
- own fills move it: between fills its law runs on by ``G``, a fill moves it as declared, and nothing else is learnt of
  it (`mmgym.adapters.hftbacktest_play.AfterFills`);
- neither: it shows in drift and variance of the mid only. Its law given the moves ``Delta`` of the mid between
  decisions is that of Wonham's filter (1965), here of steps of the length ``t``,

      p'(y')  ~  sum_y p(y) n(Delta; m(y) t, v(y) t) exp(G t)(y, y'),

  with the means ``m`` and ``v`` of drift and variance over a step from ``y``: what both ends tell together is left
  out.

In the last two what is played is the most likely state.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy
from numba import njit
from numpy.typing import NDArray

from mmgym import declare, declared_kernels
from mmgym.adapters.hftbacktest_play import AfterFills
from mmgym.baselines.replay.rules import BookState
from mmgym.compiling import KERNEL

Array = NDArray[Any]

__all__ = ["book_state", "most_likely"]

MOST_FOLLOWED = 2_000  # states of a law
VARIANCE, DRIFT, MID = 3, 4, 7  # rows of `find_state_rates`


def book_state(declared: declare.Market, params: Any, fills: tuple[int, int], unit: float) -> BookState | None:
    """How a book tells the coordinates other than the inventory; None where there is none that is observed.

    Parameters
    ----------
    declared : Market
    params : its parameters
    fills : (int, int)
        Which of its moves are fills of the bid and of the ask.
    unit : float
        Assets of a fill.

    Raises
    ------
    TypeError
        If a book does not tell them.
    """
    d, p = declared, params
    own = [coordinate.name for coordinate in d.coordinates].index("inventory")
    if not np.delete(d.observed(p), own).any():
        return None
    others = _Others(d, p, own)
    shown, count = others.shown, others.count
    low, high, _ = d.boxes(p)
    state_numbers = np.empty((8, len(others.rows)))
    declared_kernels.find_state_rates(d.engine.record(p), 0, others.rows, low, state_numbers)
    about = state_numbers[:, others.places]
    if not (about[[VARIANCE, DRIFT, MID]] == about[[VARIANCE, DRIFT, MID], :1]).all():
        raise others.refusal("drift, variance or mid depend on the inventory")
    if d.mid is not None:
        levels = about[MID, 0]
        if len(np.unique(levels)) < count:
            raise others.refusal("several of its states have the same mid")
        words = f"{shown}: of the mid's move since the start of the episode, the nearest one of {count}"
        price = getattr(p, "initial_price", None)
        return BookState(words, others.numbers, count, functools.partial(_nearest, levels), initial_price=price)
    if count > MOST_FOLLOWED:
        raise others.refusal(f"its law has {count:,} states, at most {MOST_FOLLOWED:,} are followed")
    steps = sorted({0, p.num_steps // 2, p.num_steps - 1})
    rates = [declare.rates_of(d, p, step, u)[0] for step in steps for u in (low, high)]
    others.check_fills(fills, rates)
    generator = others.generator([e for e in range(len(d.moves)) if e not in fills], rates)
    moved = others.moved_by(fills)
    where, chances = d.starts(p)
    start = np.bincount(others.numbers[d.index(p, where)], weights=chances, minlength=count)
    if (moved != np.arange(count)).any():
        words = f"{shown}: the most likely one given own fills"
        return BookState(words, others.numbers, count, after=AfterFills(generator, moved, start, unit))
    drift, variance = about[DRIFT, 0], about[VARIANCE, 0]
    if not (variance > 0.0).all():
        raise others.refusal("its mid has no noise")
    words = f"{shown}: the most likely one given the moves of the mid between decisions (Wonham's filter)"
    filtered = functools.partial(most_likely, generator, start, drift, variance)
    return BookState(words, others.numbers, count, filtered)


class _Others:
    """The coordinates other than the inventory: their ``count`` joint states by number, and what moves them."""

    def __init__(self, declared: declare.Market, params: Any, own: int) -> None:
        self.name = declared.name
        self.shown = ", ".join(each.name for i, each in enumerate(declared.coordinates) if i != own)
        self.rows, self._following = declared.states(params), declared.transitions(params)
        _, numbers = np.unique(np.delete(self.rows, own, axis=1), axis=0, return_inverse=True)
        self.numbers, self.count = numbers.ravel(), int(numbers.max()) + 1
        self._held = self.rows[:, own] - self.rows[:, own].min()
        self.places = np.empty((int(self._held.max()) + 1, self.count), dtype=np.int64)  # state of inventory and number
        self.places[self._held, self.numbers] = np.arange(len(self.rows))

    def refusal(self, reason: str) -> TypeError:
        """An error that says why a book does not tell them."""
        return TypeError(
            f"{self.name} cannot be replayed: its state has {self.shown}, which a book does not tell: {reason}"
        )

    def check_fills(self, fills: tuple[int, int], rates: list[Array]) -> None:
        """Refuse fills that depend on them."""
        for e in fills:
            opened = (self._following[e] >= 0)[self.places]
            intensities = np.stack([one[e][self.places] for one in rates])
            alike = np.allclose(intensities, intensities[..., :1], rtol=1e-12, atol=0.0)
            if not ((opened == opened[:, :1]).all() and alike):
                raise self.refusal("fills depend on it")

    def generator(self, events: list[int], rates: list[Array]) -> Array:
        """That of their chain, by events of their own."""
        generator = np.zeros((self.count, self.count))
        for e in events:
            moves = self._following[e] >= 0
            to = np.where(moves, self._following[e], np.arange(len(self.rows)))
            rate, target = np.where(moves, rates[0][e], 0.0)[self.places], self.numbers[to][self.places]
            alike = all(np.array_equal(rates[0][e], one[e]) for one in rates)
            if not alike or not (rate == rate[:1]).all() or not (target == target[:1]).all():
                raise self.refusal("what moves it depends on controls, the step or the inventory")
            if (self._held[to] != self._held).any():
                raise self.refusal("what moves it moves the inventory, too")
            np.add.at(generator, (np.arange(self.count), target[0]), rate[0])
        return generator - np.diag(generator.sum(axis=1))

    def moved_by(self, fills: tuple[int, int]) -> Array:
        """Where (2, Y) fills of bid and ask lead."""
        moved = np.empty((2, self.count), dtype=np.int64)
        for side, e in enumerate(fills):
            open_rows = (self._following[e] >= 0)[self.places].all(axis=1)
            target = self.numbers[self._following[e]][self.places[open_rows]]
            if not open_rows.any() or not (target == target[:1]).all():
                raise self.refusal("what a fill does to it depends on the inventory")
            moved[side] = target[0]
        return moved


def _nearest(levels: Array, mids: Array, begins: Array, seconds: float) -> Array:
    """Numbers (D,) of the levels (Y,) nearest to what mids have moved by since the last begin."""
    first = np.maximum.accumulate(np.where(begins, np.arange(len(mids)), 0))
    order = np.argsort(levels, kind="stable")
    between = 0.5 * (levels[order][1:] + levels[order][:-1])
    return np.asarray(order[np.searchsorted(between, mids - mids[first])])


def most_likely(
    generator: Array, start: Array, drift: Array, variance: Array, mids: Array, begins: Array, seconds: float
) -> Array:
    """Most likely numbers (D,) given the moves of mids."""
    count = len(start)
    both = np.zeros((2 * count, 2 * count))
    both[:count, :count], both[:count, count:] = generator, np.eye(count)
    moved = scipy.linalg.expm(both * seconds)
    after, during = moved[:count, :count], moved[:count, count:]
    return np.asarray(
        _laws(np.diff(mids), start.astype(np.float64), during @ drift, during @ variance, np.ascontiguousarray(after))
    )


@njit(**KERNEL)
def _laws(moves: Array, start: Array, means: Array, variances: Array, after: Array) -> Array:
    """Most likely states (D,): of the start, and after each move."""
    modes, law = np.empty(len(moves) + 1, dtype=np.int64), np.maximum(start, 1e-300)  # none is impossible: no 0 / 0
    modes[0] = np.argmax(law)
    for d in range(len(moves)):
        logs = -0.5 * ((moves[d] - means) ** 2 / variances + np.log(variances))
        law = np.dot(law * np.exp(logs - logs.max()), after)
        law = np.maximum(law, 1e-300) / law.sum()
        modes[d + 1] = np.argmax(law)
    return modes
