"""Risk of a policy: value at risk, expected shortfall and drawdown of marked-to-mid wealth, with intervals.

Losses are positive: a negative value at risk is a profit that is exceeded with that confidence. VaR and CVaR are those
of the final P&L ``W_T - W_0``, from its law where it is cheap to have, and otherwise simulated; the drawdown
``max_t (max_{s <= t} W_s - W_t)`` depends on the whole path and is always simulated, with ``W`` observed at the start
and at step ends, as is the largest absolute inventory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.arguments import choice, integer, real
from mmgym.baselines.baseline import baseline_of
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.episodes import episodes as played_episodes
from mmgym.baselines.foreign import as_policy, player_in
from mmgym.baselines.pnl_law import EXACT, PnlLaw, pnl_law
from mmgym.baselines.table_policy import tabulated

__all__ = [
    "Estimate",
    "PathRisks",
    "RiskMeasures",
    "frozen_position_risk",
    "path_risks",
    "pnl_distribution",
    "proportion_estimate",
    "risk_measures",
]

Array = NDArray[Any]

LEVELS = (0.95, 0.99)
COVERAGE = 0.95  # of intervals
EXACT_CELLS = 100_000  # steps times states, up to which the exact law takes seconds
BATCH = 10_000  # rows simulated at once


class Estimate(NamedTuple):
    """A number and an interval that covers it with the probability 0.95.

    Where the number is exact it is a point; where it is numerical it reaches as far as the estimated error.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.6g}"
        error = 0.5 * (self.high - self.low)
        if error < 5e-5 * abs(self.value):
            return f"{self.value:.6g} +- {error:.1g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class PathRisks(NamedTuple):
    """Of simulated episodes, each of shape (episodes,)."""

    gains: Array  # final P&L
    drawdowns: Array  # the largest, at step ends
    inventories: Array  # the largest absolute one at step ends, over all assets
    lowest: Array  # the lowest P&L since the start, at step ends and at the start


@dataclass(frozen=True)
class RiskMeasures:
    """Risk of a policy from an environment's initial state, in its currency.

    Attributes
    ----------
    value_at_risk : dict of float to Estimate
        By confidence: the loss of final P&L that is not exceeded with it.
    expected_shortfall : dict of float to Estimate
        CVaR by confidence: the expected loss beyond the value at risk.
    drawdown : Estimate
        Expected largest drawdown, observed at step ends.
    drawdown_quantile : dict of float to Estimate
        By confidence: the largest drawdown that is not exceeded with it.
    largest_inventory : Estimate
        Expected largest absolute inventory at step ends (assets, over all of them).
    method : str
        How VaR and CVaR were found: "exact" (from the law of the P&L, with errors below 1e-8 of a probability and of
        a standard deviation), "numerical" (from the law, as well as the intervals say) or "simulated". Drawdowns and
        inventories are simulated.
    truncation : float
        About the error of a probability of the law (0 for a simulation).
    episodes : int
        Simulated episodes.
    """

    value_at_risk: Mapping[float, Estimate]
    expected_shortfall: Mapping[float, Estimate]
    drawdown: Estimate
    drawdown_quantile: Mapping[float, Estimate]
    largest_inventory: Estimate
    method: str
    truncation: float
    episodes: int

    def rows(self) -> dict[str, Estimate]:
        """Every measure by the name that tables give it."""
        rows: dict[str, Estimate] = {}
        for level, estimate in self.value_at_risk.items():
            rows[f"VaR {100.0 * level:.6g}%"] = estimate
            rows[f"CVaR {100.0 * level:.6g}%"] = self.expected_shortfall[level]
        rows["drawdown"] = self.drawdown
        for level, estimate in self.drawdown_quantile.items():
            rows[f"drawdown {100.0 * level:.6g}%"] = estimate
        rows["max |inventory|"] = self.largest_inventory
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON types."""
        plain = asdict(self)
        for name in ("value_at_risk", "expected_shortfall", "drawdown_quantile"):
            plain[name] = {str(level): estimate._asdict() for level, estimate in getattr(self, name).items()}
        for name in ("drawdown", "largest_inventory"):
            plain[name] = getattr(self, name)._asdict()
        return plain


def frozen_position_risk(
    inventory: float, volatility: float, time: float, confidence: float, drift: float = 0.0
) -> tuple[float, float]:
    """VaR and CVaR of holding a position in a Brownian mid, closed form.

    ``VaR = |q| sigma sqrt(tau) z - q mu tau`` and ``CVaR = |q| sigma sqrt(tau) pdf(z) / (1 - c) - q mu tau``, with the
    normal quantile ``z`` of the confidence ``c``, for a short position as for a long one.

    Parameters
    ----------
    inventory : float
        Assets, negative when short.
    volatility, drift : float
        Of the mid, price / sqrt(time) and price / time.
    time : float
        How long the position is held, >= 0.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    value_at_risk, expected_shortfall : float
        Losses, in currency.
    """
    inventory, drift = real("inventory", inventory), real("drift", drift)
    volatility, time = real("volatility", volatility, low=0.0), real("time", time, low=0.0)
    z = float(scipy.stats.norm.ppf(_checked_confidence(confidence)))
    scale, gain = abs(inventory) * volatility * math.sqrt(time), inventory * drift * time
    return scale * z - gain, scale * float(scipy.stats.norm.pdf(z)) / (1.0 - confidence) - gain


def _checked_confidence(confidence: Any) -> float:
    number = real("confidence", confidence, low=0.0, high=1.0)
    if not 0.0 < number < 1.0:
        raise ValueError(f"confidence = {confidence!r} is not allowed: it must be > 0 and < 1")
    return number


def pnl_distribution(
    env: Any, policy: Any, *, deterministic: bool = True, progress: bool = False, **arguments: Any
) -> PnlLaw:
    """Law of the final P&L ``W_T - W_0`` under a policy of the observation: density, VaR and CVaR.

    It takes one evaluation per term of its series, mostly 64: minutes where the market has a thousand states. What it
    is good to: `mmgym.baselines.pnl_law.PnlLaw.truncation` and `mmgym.baselines.pnl_law.PnlLaw.accuracy`.
    """
    base, player = player_in(env, policy, True, **arguments)
    problem = problem_of(base)
    table, _ = tabulated(problem, player, deterministic)
    with tqdm(desc="law of the P&L", unit="term", disable=not progress) as bar:
        return pnl_law(problem, table, progress=bar.update)


def path_risks(
    env: Any,
    policy: Any,
    episodes: int,
    seed: int = 0,
    *,
    deterministic: bool = True,
    progress: bool = False,
    **arguments: Any,
) -> PathRisks:
    """Final P&L, largest drawdown, largest absolute inventory and lowest P&L at step ends of simulated episodes."""
    base, player = player_in(env, policy, False, **arguments)
    first = int(np.random.SeedSequence([seed, 0x715C]).generate_state(1, np.uint64)[0])
    risks = np.empty((4, episodes))
    with tqdm(total=episodes, desc="risk", unit="episode", disable=not progress) as bar:
        for start in range(0, episodes, BATCH):
            count = min(BATCH, episodes - start)
            risks[:, start : start + count] = _play(base, player, deterministic, count, first + start)
            bar.update(count)
    return PathRisks(*risks)


def _play(base: Any, player: Any, deterministic: bool, count: int, seed: int) -> tuple[Array, Array, Array, Array]:
    gain, peak, drawdown, held, lowest = np.zeros((5, count))
    for step in played_episodes(base.make_batch(count, info="full"), player, seed, deterministic=deterministic):
        gain[step.running] = step.info["gain"][step.running]
        np.maximum(peak, gain, out=peak)
        np.maximum(drawdown, peak - gain, out=drawdown)
        np.minimum(lowest, gain, out=lowest)
        if step.decision.number == 0:
            held = np.abs(step.decision.info["inventory"]).reshape(count, -1).sum(axis=1)
        inventory = np.abs(step.info["inventory"]).reshape(count, -1).sum(axis=1)
        held = np.where(step.running, np.maximum(held, inventory), held)
    return gain, drawdown, held, lowest


def mean_estimate(sample: Array) -> Estimate:
    """Mean of a sample, with a normal interval."""
    value = float(sample.mean())
    reach = float(scipy.stats.norm.isf((1.0 - COVERAGE) / 2) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return Estimate(value, value - reach, value + reach)


def proportion_estimate(happened: Array) -> Estimate:
    """Probability of an event from a sample of bools, with the Clopper-Pearson interval."""
    test = scipy.stats.binomtest(int(happened.sum()), len(happened))
    interval = test.proportion_ci(COVERAGE)
    return Estimate(float(test.statistic), float(interval.low), float(interval.high))


def quantile_estimate(sample: Array, probability: float) -> Estimate:
    """Quantile of a sample, with the distribution-free interval between two order statistics.

    Raises
    ------
    ValueError
        If the sample is too small for such an interval.
    """
    ordered, count = np.sort(sample), len(sample)
    tail = (1.0 - COVERAGE) / 2
    low, high = (int(scipy.stats.binom.ppf(p, count, probability)) for p in (tail, 1.0 - tail))
    if low < 1 or high >= count:
        raise ValueError(f"episodes = {count} are too few for an interval of the {probability:g} quantile")
    return Estimate(float(ordered[math.ceil(probability * count) - 1]), float(ordered[low - 1]), float(ordered[high]))


def shortfall_estimate(losses: Array, confidence: float) -> Estimate:
    """Expected loss beyond the value at risk of a sample (Rockafellar & Uryasev 2000), with a normal interval."""
    threshold = quantile_estimate(losses, confidence).value
    return mean_estimate(threshold + np.maximum(losses - threshold, 0.0) / (1.0 - confidence))


def risk_measures(
    env: Any,
    policy: Any,
    *,
    method: str = "auto",
    levels: Sequence[float] = LEVELS,
    deterministic: bool = True,
    markov: bool | None = None,
    episodes: int = 10_000,
    seed: int = 0,
    progress: bool = False,
    **arguments: Any,
) -> RiskMeasures:
    """VaR, CVaR, drawdown and largest inventory of a policy in an environment.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    policy : Policy or callable
    method : {"auto", "exact", "simulated"}
        Of VaR and CVaR. "auto" takes the law of the P&L where the policy is a function of the observation and the
        market has finitely many states, 100 000 cells (steps times states) at most, and price noise enough for the law
        to have a density beside its atoms; "exact" takes it however long it takes (many minutes on
        `mmgym/TickSpread-v0`). `RiskMeasures.method` tells how exact that was.
    levels : sequence of float
        Confidences, between 0 and 1.
    deterministic : bool
        Whether a stochastic policy plays its mode (True) or as it acts (False).
    markov : bool, optional
        Overrides what the policy says of itself.
    episodes : int
        Simulated episodes, >= 1000, for drawdowns, inventories and what has no exact law.
    seed : int
        Of the simulation.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    RiskMeasures

    Raises
    ------
    ValueError
        If an argument is out of range, there is no law of the P&L where one is asked for, or the episodes are too few
        for the levels.
    """
    choice("method", method, ("auto", "exact", "simulated"))
    integer("episodes", episodes, low=1000, high=10**9)
    levels = [_checked_confidence(level) for level in levels]
    base, player = player_in(env, policy, markov, **arguments)
    is_markov = player.markov if markov is None else markov
    law = None
    if method != "simulated":
        law = _exact_law(base, player, is_markov, deterministic, method == "exact", progress)
    paths = path_risks(base, player, episodes, seed, deterministic=deterministic, progress=progress)
    at_risk, shortfall, found_by = _simulated_tails(paths.gains, levels) if law is None else _tails_of_law(law, levels)
    return RiskMeasures(
        value_at_risk=at_risk,
        expected_shortfall=shortfall,
        drawdown=mean_estimate(paths.drawdowns),
        drawdown_quantile={level: quantile_estimate(paths.drawdowns, level) for level in levels},
        largest_inventory=mean_estimate(paths.inventories),
        method=found_by,
        truncation=0.0 if law is None else law.truncation,
        episodes=episodes,
    )


Tails = tuple[dict[float, Estimate], dict[float, Estimate], str]  # VaR and CVaR by confidence, and how they were found


def _simulated_tails(gains: Array, levels: Sequence[float]) -> Tails:
    at_risk = {level: quantile_estimate(-gains, level) for level in levels}
    return at_risk, {level: shortfall_estimate(-gains, level) for level in levels}, "simulated"


def _tails_of_law(law: PnlLaw, levels: Sequence[float]) -> Tails:
    """They are exact where the errors of all levels are small enough to be called so."""
    accurate = law.truncation <= EXACT and not law.smoothed
    exact = accurate and all(max(law.accuracy(level)) <= EXACT * law.std for level in levels)
    reach = {level: (0.0, 0.0) if exact else law.accuracy(level) for level in levels}
    at_risk = {level: _around(law.value_at_risk(level), reach[level][0]) for level in levels}
    shortfall = {level: _around(law.expected_shortfall(level), reach[level][1]) for level in levels}
    return at_risk, shortfall, "exact" if exact else "numerical"


def _around(value: float, error: float) -> Estimate:
    return Estimate(value, value - error, value + error)


def _exact_law(
    base: Any, player: Any, markov: bool, deterministic: bool, insisted: bool, progress: bool
) -> PnlLaw | None:
    """The law of the P&L; None where it has to be simulated, unless one is insisted on."""
    law = None
    if markov:
        with tqdm(desc="law of the P&L", unit="term", disable=not progress) as bar:
            try:
                law = baseline_of(base).pnl_law(
                    as_policy(player, True), deterministic, bar.update, math.inf if insisted else EXACT_CELLS
                )
            except ValueError:
                if insisted:
                    raise
    if law is None and insisted:
        why = "a function of the observation" if not markov else "a market with finitely many states"
        raise ValueError(f"method = 'exact' is not allowed: the exact law of the P&L needs {why}")
    return law
