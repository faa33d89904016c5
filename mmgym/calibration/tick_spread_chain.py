"""The fitted spread chain and its clock, with intervals (the laws are in `mmgym.calibration.spread_chain`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmgym.calibration.block_intervals import reach
from mmgym.calibration.report import rejected_laws
from mmgym.calibration.score_intervals import Estimates, proportions, rates
from mmgym.calibration.spread_chain import ModelTest, fit_clock
from mmgym.models.tick_spread import stationary_law

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

LAWS = {"clock": "Poisson clock", "holding_times": "exponential holding times", "markov": "Markov property"}


def transition_dispersion(jumps: Counts) -> Array:
    """Measured variance of transition counts over that of independent jumps, shape (m, m); NaN for ten jumps or fewer.

    Parameters
    ----------
    jumps : array of int, shape (S, m, m)
        Jumps in stretches of time.
    """
    left, total = jumps.sum(axis=2, keepdims=True), jumps.sum(axis=0)
    share = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    measured = ((jumps - share * left) ** 2).sum(axis=0) * len(jumps) / (len(jumps) - 1)
    chance = total * (1 - share)
    dispersion = np.divide(measured, chance, out=np.full(total.shape, math.nan), where=(total > 10) & (chance > 0))
    return np.asarray(dispersion, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class SpreadChain:
    """Jumps of the spread, and what follows from them.

    Attributes
    ----------
    edges : array, shape (K + 1,)
        Where the pieces of the clock begin and end, seconds of the tape.
    transitions : array of int, shape (K, m, m)
        Jumps of the spread in each piece.
    seconds : array, shape (K, m)
        Time at each spread in each piece.
    by_spread : bool
        Whether each spread is left at a rate of its own.
    hidden_jumps : float
        Share of the jumps that a coarse clock of the tape hides.
    transition_dispersion : array, shape (m, m)
        Measured variance over that of the model, NaN where it is not told; so are the next two.
    exit_dispersion : array, shape (m,)
        Of the jumps out of each spread.
    clock_dispersion : float
        Of all jumps.
    freedom : int
        Degrees of freedom of these.
    tests : dict of str to ModelTest
        ``clock, holding_times, one_clock, markov``: see `mmgym.calibration.spread_chain`.
    """

    edges: Array
    transitions: Counts
    seconds: Array
    by_spread: bool
    hidden_jumps: float
    transition_dispersion: Array
    exit_dispersion: Array
    clock_dispersion: float
    freedom: int
    tests: dict[str, ModelTest]

    @property
    def num_spreads(self) -> int:
        """m."""
        return int(self.seconds.shape[1])

    @property
    def rejected(self) -> list[str]:
        """The laws of the fitted chain that the tape rejects."""
        laws = LAWS if self.by_spread else LAWS | {"one_clock": "one clock for all spreads"}
        return rejected_laws({law: self.tests[name].p_value for name, law in laws.items()})

    @property
    def exits(self) -> Counts:
        """Jumps out of each spread in each piece, shape (K, m)."""
        counts: Counts = self.transitions.sum(axis=2)
        return counts

    @property
    def jump_probabilities(self) -> Estimates:
        """Chances of the next spread (2.8), each array of shape (m, m)."""
        counts = self.transitions.sum(axis=0)
        left = counts.sum(axis=1, keepdims=True)
        shares = proportions(counts, left, self.transition_dispersion, self.freedom)
        if self.num_spreads == 2:  # nothing to estimate: the other spread follows
            return shares._replace(lower=shares.value, upper=shares.value)
        for bound in (shares.lower, shares.upper):
            np.fill_diagonal(bound, 0.0)
        return shares

    @property
    def exit_rates(self) -> Estimates:
        """Jumps out of each spread over the time at it (1 / s), each array of shape (m,)."""
        return rates(self.exits.sum(axis=0), self.seconds.sum(axis=0), self.exit_dispersion, self.freedom)

    @property
    def spread_transitions(self) -> Estimates:
        """Transition matrix at the ticks of the clock, the diagonal included, each array of shape (m, m)."""
        jumps = self.jump_probabilities
        if not self.by_spread:
            return jumps
        shares = fit_clock(self.exits, self.seconds, True)[1]
        fastest, wide = int(shares.argmax()), np.fmax(self.exit_dispersion, 1.0)
        relative = wide / self.exits.sum(axis=0)  # variance of the logarithm of each exit rate
        error = np.sqrt(np.where(shares < 1, relative + relative[fastest], 0.0))
        length = error * reach(wide, self.freedom) / np.sqrt(wide)
        parts = []
        for bound, sign in ((jumps.lower, -1), (jumps.upper, 1)):
            away = np.log(np.divide(bound, jumps.value, out=np.ones_like(bound), where=jumps.value * bound > 0))
            reached = np.sqrt(away**2 + length[:, None] ** 2)
            part = shares[:, None] * np.where(jumps.value > 0, jumps.value * np.exp(sign * reached), bound)
            part = np.where(bound > 0, np.minimum(part, 1.0), 0.0)
            np.fill_diagonal(part, np.maximum(1 - shares * np.exp(-sign * length), 0.0))
            parts.append(part)
        value = shares[:, None] * jumps.value
        np.fill_diagonal(value, 1 - shares)
        relative_p = np.divide(jumps.stderr, jumps.value, out=np.zeros_like(value), where=jumps.value > 0)
        stderr = value * np.hypot(relative_p, error[:, None])
        np.fill_diagonal(stderr, shares * error)
        return Estimates(value, stderr, parts[0], parts[1])

    @property
    def clock_rates(self) -> Estimates:
        """Clock of each piece (1 / s), each array of shape (K,): (2.9), or the rate of the spread left fastest."""
        exits, hidden = self.exits, self.hidden_jumps
        counts, length, dispersion = exits.sum(axis=1).astype(float), self.seconds.sum(axis=1), self.clock_dispersion
        if self.by_spread:
            pace, shares = fit_clock(exits, self.seconds, True)
            counts, length = self._weight_of_pieces(pace, shares)
            fastest = float(self.exit_dispersion[int(shares.argmax())])
            dispersion = fastest if pace.size == 1 else float(np.fmax(dispersion, fastest))
        value, stderr, lower, upper = rates(counts, length, dispersion, self.freedom)
        shown = 1 - hidden
        return Estimates(value / shown, np.hypot(stderr, hidden * value) / shown, lower, upper / shown * (1 + hidden))

    def _weight_of_pieces(self, pace: Array, shares: Array) -> tuple[Array, Array]:
        """Jumps that each rate of the clock is worth (inverse variance of its logarithm), and seconds for them."""
        expected = pace[:, None] * shares * self.seconds
        others = np.delete(np.arange(shares.size), int(shares.argmax()))
        corner = expected[:, others]
        information = np.block([[np.diag(expected.sum(axis=1)), corner], [corner.T, np.diag(corner.sum(axis=0))]])
        variance = np.diag(np.linalg.pinv(information))[: pace.size]
        worth = np.divide(1.0, variance, out=np.zeros(pace.size), where=(pace > 0) & (variance > 0))
        return worth, np.divide(worth, pace, out=self.seconds @ shares, where=pace > 0)

    @property
    def model_shares(self) -> Array:
        """Share of time at each spread under the model, shape (m,): the stationary law of the transition matrix."""
        return np.asarray(stationary_law(self.spread_transitions.value), dtype=float)
