"""Bounds of the optimum of the intraday power market, and what is kept on disk.

*Below*: what the best policy known is worth in the environment as built, played with the control variate of its value
function.

*Above*: an information relaxation (Brown, Smith & Sun 2010) that holds for every policy, in continuous time too, hence
for every choice of decision times. Let all events of the book be known in advance, the fills not. For a value function
``Theta`` and a policy with quotes ``d`` the penalty

    Pi = sum over events of  q sgn xi + Theta(j', q, y') - Theta(j, q, y)
         [+ at orders, f(d) (-xi + E xi + D Theta - E D Theta) + psi(c)],  less its compensator,

with ``D Theta`` the change of ``Theta`` by a fill, has the mean zero for every policy that does not look ahead. Hence
``V <= E max_d (reward - Pi)``, the maximum over policies that know the events. It is found by a recursion over the
orders of a path from its end: ``B(q)``, what is left above ``Theta``, grows by ``int Res(q) dt`` between orders,

    Res = d Theta/dt along the path between events + A Theta + q sum sgn y E xi - phi q^2 + sum y psi(c),

and at an order it goes up from ``B(q)`` to ``B(q) + psi(c + B(q -+ 1) - B(q)) - psi(c)``. As ``psi`` is convex with
slopes from 0 to 1, with a `reach_atom` too, this is at most ``max(B(q), B(q -+ 1))``, the bound of the project's notes,
where fills are known in advance too; and where ``Theta`` is good, it exceeds the value of the policy of ``Theta`` by
second-order terms only, but for the kink that ``psi`` then has.

Quotes that rest while the book moves are worth less, and this bound does not know of it: by the clock that of
`mmgym.baselines.hawkes_power.clock` is simulated too, where it is made for the market, and the lower one counts: with
the defaults 34.35 +- 0.06 on 60 paths in place of 40.1, and 0.240 +- 0.016 above the best known policy there.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.hawkes_power import clock, kernels
from mmgym.baselines.hawkes_power.kernels import Basis
from mmgym.baselines.hawkes_power.values import ValueFunction, value_function
from mmgym.baselines.kept import is_sample, kept
from mmgym.models import hawkes
from mmgym.models.hawkes_power import MARKET, PROCESSES, Params

Array = NDArray[np.float64]

__all__ = [
    "Interval",
    "PathBounds",
    "expected_events",
    "held_estimates",
    "mean_of",
    "path_bounds",
    "paths_for",
    "solved",
    "upper_estimates",
]

EVENTS = 1_500_000  # simulated for a bound
FEWEST, MOST = 200, 2_000  # paths
TOGETHER = 100  # paths of a kernel's call
HELD_STEPS = 14_400  # simulated for a bound of quotes that rest, on as many paths as that makes, and 50 at least
CERTAIN = 4.0  # standard errors


class Interval(NamedTuple):
    """Estimates of a lower and an upper bound of the optimum, with their standard errors (EUR / MWh lots).

    Both are means over paths of the book that they have in common, or the first ones: their difference is known better
    than either.
    """

    lower: float
    lower_stderr: float
    upper: float
    upper_stderr: float
    gap: float  # of upper and lower on the paths that they have in common
    gap_stderr: float

    @classmethod
    def of(cls, lower: Array, upper: Array) -> "Interval":
        """From estimates (paths,) that have their first paths in common."""
        common = min(len(lower), len(upper))
        return cls(*mean_of(lower), *mean_of(upper), *mean_of(upper[:common] - lower[:common]))

    @property
    def certified(self) -> tuple[float, float]:
        """Bounds that hold but for sampling errors of more than four standard errors."""
        return self.lower - CERTAIN * self.lower_stderr, self.upper + CERTAIN * self.upper_stderr

    @property
    def width(self) -> float:
        """Relative width of the certified bounds."""
        return (self.certified[1] - self.certified[0]) / abs(self.upper)


def mean_of(sample: Array) -> tuple[float, float]:
    """Mean of a sample and its standard error."""
    return float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(len(sample)))


class PathBounds(NamedTuple):
    """Pathwise estimates, shape (paths,) each."""

    upper: Array  # the dual bound
    revealed: Array  # the dual bound with fills known in advance
    policy: Array  # the policy of the value function, its quotes moving at once


def path_bounds(params: Params, function: ValueFunction, paths: int, seed: int) -> PathBounds:
    """Simulate bounds of the optimum with a value function.

    Parameters
    ----------
    params : Params
    function : ValueFunction
        Any one gives valid bounds; the better it is, the tighter they are.
    paths : int
    seed : int
        Path ``i`` has the events of the episode that an environment with these parameters plays from ``seed + i``,
        whatever is played: value functions and policies can be compared on common paths.

    Returns
    -------
    PathBounds
    """
    values, seeds = np.empty((paths, 3)), np.uint64(seed) + np.arange(paths, dtype=np.uint64)
    record, rows = MARKET.record(params), np.zeros(1, MARKET.row_dtype)
    most = 64 + int(4.0 * expected_events(params)[4:].sum())
    with tqdm(total=paths, desc="bound", unit="path", delay=2.0, leave=False, disable=None) as bar:
        for first in range(0, paths, TOGETHER):
            part = slice(first, first + TOGETHER)
            kernels.bound_paths(record, rows, *function, seeds[part], most, values[part])
            bar.update(len(seeds[part]))
    while (missing := np.flatnonzero(np.isnan(values[:, 0]))).size:
        most *= 4
        again = np.empty((missing.size, 3))
        kernels.bound_paths(record, rows, *function, seeds[missing], most, again)
        values[missing] = again
    values += function.initial(params)
    return PathBounds(*values.T)


def expected_events(params: Params) -> Array:
    """Expected events of each process in an episode, shape (6,)."""
    p = params
    return hawkes.expected_count(p.base_rates, p.excitations, p.decays, np.array(p.initial_rates), p.horizon)


def paths_for(params: Params) -> int:
    """Paths to simulate for a bound."""
    return int(np.clip(EVENTS / expected_events(params).sum(), FEWEST, MOST))


# Kept in memory and on disk


def _continuous(params: Params) -> Params:
    """The same market for all choices of decision times, its intensities observed."""
    return params._replace(decision="event", num_steps=1, observe="state")


@functools.lru_cache(maxsize=16)
def solved(params: Params, kind: str) -> ValueFunction:
    """A value function, kept in memory and on disk.

    One of `mmgym.baselines.hawkes_power.values.KINDS`, or ``held``, that of quotes that rest between ticks of the clock
    (`mmgym.baselines.hawkes_power.clock.held_value`).
    """
    market = params._replace(observe="state") if kind == "held" else _continuous(params)

    def make() -> Mapping[str, Any]:
        if kind == "held":
            function = clock.held_value(market, solved(market, "fitted"))
        else:
            function = value_function(market, kind)
        return {**function.basis._asdict(), "borders": function.borders, "table": function.table}

    def fits(arrays: dict[str, NDArray[Any]]) -> bool:
        table, degrees = arrays["table"], arrays["degrees"]
        ranks = {"active": 2, "spread_table": 2, "moved_table": 3, "impacts": 2, "shapes": 2}
        return (
            table.shape == (len(arrays["borders"]) - 1, len(degrees), 2 * params.inventory_limit + 1)
            and degrees.shape[1:] == (len(PROCESSES) + 1,)
            and all(arrays[name].ndim == rank for name, rank in ranks.items())
        )

    arrays = kept(market, kind, make, fits)
    return ValueFunction(Basis(**{name: arrays[name] for name in Basis._fields}), arrays["borders"], arrays["table"])


def held_estimates(params: Params, seed: int) -> tuple[Array, Array]:
    """Estimates (paths,) of the bound of quotes that rest, and of the policy that looks ahead, kept on disk.

    Both on the paths from a seed, intensities observed.
    """
    market = params._replace(observe="state")
    count = min(max(HELD_STEPS // market.num_steps, 50), paths_for(market))

    def make() -> Mapping[str, Any]:
        upper, policy = clock.held_bounds(market, solved(market, "held"), count, seed).T
        return {"upper": upper, "policy": policy}

    def fits(arrays: dict[str, NDArray[Any]]) -> bool:
        return all(arrays[name].shape == (count,) for name in ("upper", "policy"))

    arrays = kept(market, ("held", seed), make, fits)
    return arrays["upper"], arrays["policy"]


def upper_estimates(params: Params, seed: int) -> Array:
    """Estimates (paths,) of the lower one of the dual bounds that are made for a market, on the paths from a seed.

    They are kept on disk.
    """
    market = params._replace(observe="state")
    count = paths_for(market)

    def make() -> Mapping[str, Any]:
        return {"estimates": path_bounds(market, solved(market, "fitted"), count, seed).upper}

    free: Array = kept(market, ("upper", seed), make, is_sample("estimates", count))["estimates"]
    if clock.offset_nodes(market) is None:
        return free
    held = held_estimates(market, seed)[0]

    def end(sample: Array) -> float:
        value, error = mean_of(sample)
        return value + CERTAIN * error

    return min(free, held, key=end)
