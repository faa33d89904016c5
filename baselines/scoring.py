"""Scores: how far a policy is from the optimum, exactly where the policy is a function of the observation."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from baselines import frozen
from baselines.catalogue import OptimalPolicy, environment_of, optimal_policy, problem_of, reference_value
from baselines.frozen import Functional, PnlLaw, Table
from baselines.policy import CallablePolicy

__all__ = ["AboveOptimum", "Score", "exact_skill", "pnl_distribution", "rollout", "score", "score_table"]

Array = NDArray[Any]


class AboveOptimum(RuntimeError):  # noqa: N818  # the public name
    """A policy scored above the optimum, beyond rounding and sampling error: there is a bug somewhere."""


@dataclass(frozen=True)
class Score:
    """What a policy is worth and how far that is from the optimum.

    Amounts are in the currency of the market and, under CARA, certainty equivalents.

    Attributes
    ----------
    value : float
        The criterion from the environment's initial state.
    value_error : float
        Bound of its numerical error (0 where the market is exact).
    stderr : float
        Standard error of sampling (0 for an exact score).
    optimum_lower, optimum_upper : float
        Bounds of the optimum; equal where it is known.
    level : str
        "exact", "certified" or "bracketed".
    method : str
        "exact", "exact, as it acts" (a stochastic policy) or "simulated".
    reference : float
        Value of the reference policy, whose skill is 0.
    std : float
        Standard deviation of the return with price noise (under CARA: of ``W_T - W_0`` minus penalties).
    pnl, pnl_std : float
        Mean and standard deviation of the final P&L, ``W_T - W_0``.
    fills, orders : float
        Expected limit orders filled and market orders sent in an episode.
    mean_absolute_inventory : float
        Time average, in assets (simulated: at step ends).
    utility : float or None
        Expected utility, under CARA.
    episodes : int
        Simulated episodes (0 for an exact score).
    """

    value: float
    value_error: float
    stderr: float
    optimum_lower: float
    optimum_upper: float
    level: str
    method: str
    reference: float
    std: float
    pnl: float
    pnl_std: float
    fills: float
    orders: float
    mean_absolute_inventory: float
    utility: float | None = None
    episodes: int = 0

    @property
    def regret(self) -> float | tuple[float, float]:
        """What is missing to the optimum: one number where it is known, else the pair of gaps to its bounds."""
        gaps = (self.optimum_lower - self.value, self.optimum_upper - self.value)
        return gaps[0] if self.optimum_lower == self.optimum_upper else gaps

    @property
    def skill(self) -> float:
        """0 at the reference policy, 1 at the optimum (its lower bound); nan if the two coincide."""
        span = self.optimum_lower - self.reference
        return (self.value - self.reference) / span if span > 0.0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """All attributes, regret and skill as JSON types."""
        return {**asdict(self), "regret": self.regret, "skill": self.skill}


def _as_policy(policy: Any, markov: bool | None) -> Any:
    if not hasattr(policy, "predict"):
        if not callable(policy):
            raise TypeError(f"{type(policy).__name__} is not a policy: it needs predict(observation), or be callable")
        return CallablePolicy(policy, bool(markov))
    return policy


def _table(problem: frozen.FrozenProblem, policy: Any, deterministic: bool) -> tuple[Table, str]:
    if deterministic and getattr(policy, "has_mode", True):
        return frozen.tabulate(problem, policy), "exact"
    if hasattr(policy, "distribution"):
        return frozen.tabulate_distribution(problem, policy), "exact, as it acts"
    if deterministic:
        raise ValueError(f"{type(policy).__name__} has no mode and no distribution(): use method='simulated'")
    mode = frozen.tabulate(problem, policy)
    if not np.array_equal(mode.controls, frozen.tabulate(problem, policy, deterministic=False).controls):
        raise ValueError(
            f"{type(policy).__name__} draws its actions, but has no distribution(): use method='simulated'"
        )
    return mode, "exact"


def score(
    env: Any,
    policy: Any,
    *,
    method: str = "auto",
    deterministic: bool = True,
    markov: bool | None = None,
    episodes: int = 2_000,
    stderr: float | None = None,
    seed: int = 0,
    progress: bool = False,
    **arguments: Any,
) -> Score:
    """Score a policy in an environment.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    policy : Policy or callable
        A callable gets a batch of observations and returns a batch of actions.
    method : {"auto", "exact", "simulated"}
        "auto" is exact where the policy is a function of the observation (``policy.markov``). "simulated" plays
        episodes with the advantage-sum control variate: unbiased for any policy, also a history-dependent one, and
        without sampling error at the optimum.
    deterministic : bool
        Whether a stochastic policy is scored at its mode (True) or as it acts (False; exactly where it has a
        ``distribution``).
    markov : bool, optional
        Overrides what the policy says of itself.
    episodes : int
        Simulated episodes; with ``stderr``, the least number (the most is 1000 times as many).
    stderr : float, optional
        Standard error at which a simulation stops.
    seed : int
        Of a simulation.
    progress : bool
        Whether to show a progress bar of a simulation.

    Raises
    ------
    ValueError
        If an argument is out of range, or an exact score is asked for a policy that is not a function of the
        observation.
    AboveOptimum
        If the policy scores above the optimum: a bug, please report it.
    """
    if method not in ("auto", "exact", "simulated"):
        raise ValueError(f"method = {method!r} is not allowed: it must be 'auto', 'exact' or 'simulated'")
    if episodes < 2 or (stderr is not None and not stderr > 0.0):
        raise ValueError(f"episodes = {episodes} must be >= 2 and stderr = {stderr} must be > 0")
    base = environment_of(env, **arguments)
    problem, optimal = problem_of(base), optimal_policy(base)
    player = _as_policy(policy, markov)
    is_markov = bool(getattr(player, "markov", False)) if markov is None else markov
    if method == "exact" and not is_markov:
        raise ValueError("an exact score needs a function of the observation: pass markov=True if the policy is one")
    if method == "simulated" or not is_markov:
        found = _simulate(base, player, optimal, deterministic, episodes, stderr, seed, progress)
    else:
        table, how = _table(problem, player, deterministic)
        found = _evaluate(base, table, optimal, how)
    slack = found.value_error + 4.0 * found.stderr + 1e-9 * abs(found.optimum_upper) + 1e-12
    if found.value > found.optimum_upper + slack:
        raise AboveOptimum(
            f"the policy scored {found.value!r}, above the optimum {found.optimum_upper!r} by more than {slack:.3g}: "
            "this is a bug, please report it"
        )
    return found


def exact_skill(env: Any, policy: Any) -> tuple[float, float]:
    """Skill and regret of a policy of the observation at its mode: the part of `score` that is quick to find."""
    base = environment_of(env)
    problem, optimum, reference = problem_of(base), optimal_policy(base).optimum, reference_value(base)
    value = frozen.criterion_value(problem, frozen.tabulate(problem, policy))
    return (value - reference) / (optimum - reference) if optimum > reference else math.nan, optimum - value


def _evaluate(base: Any, table: Table, optimal: OptimalPolicy, how: str) -> Score:
    problem = problem_of(base)
    criterion = problem.criterion
    mean, std = frozen.moments(problem, table, criterion)
    value, utility = mean, None
    if criterion.exponents is not None:
        values, log_scale = frozen.evaluate(problem, table)
        raw = problem.initial @ values[0, :, 0]
        value = float(problem.to_value(raw, log_scale[0]))
        with np.errstate(over="ignore"):
            utility = float(-raw * np.exp(log_scale[0]))
    pnl, pnl_std = frozen.moments(problem, table, frozen.PNL)
    wanted = {
        "fills": Functional(fills=1.0),
        "orders": Functional(orders=1.0),
        "absolute_inventory": Functional(absolute_inventory=1.0),
    }
    counts = dict.fromkeys(wanted, 0.0)
    for name, functional in wanted.items():
        if name == "orders" and not problem.has_market_orders:
            continue
        found, _ = frozen.evaluate(problem, table, functional)
        counts[name] = float(problem.initial @ found[0, :, 0])
    return Score(
        value=value,
        value_error=problem.tolerance,
        stderr=0.0,
        optimum_lower=optimal.optimum,
        optimum_upper=optimal.optimum,
        level=problem.level,
        method=how,
        reference=reference_value(base),
        std=std,
        pnl=pnl,
        pnl_std=pnl_std,
        fills=counts["fills"],
        orders=counts["orders"],
        mean_absolute_inventory=counts["absolute_inventory"] / base.params.horizon,
        utility=utility,
    )


def _play(
    base: Any, player: Any, optimal: OptimalPolicy, deterministic: bool, count: int, seed: int
) -> Mapping[str, Array]:
    """Episodes of ``count`` rows: control-variate estimates of the criterion, raw returns, P&L and counts."""
    problem, solution = problem_of(base), optimal.solution
    envs = base.make_batch(count, info="full")
    observations, info = envs.reset(seed=seed)
    exponential = problem.criterion.exponents is not None
    estimate = np.full(count, float(problem.initial @ solution.raw[0]))
    totals = {name: np.zeros(count) for name in ("returns", "fills", "orders", "absolute_inventory")}
    state, start = None, np.ones(count, dtype=bool)
    for n in range(problem.num_steps):
        actions, state = player.predict(observations, state=state, episode_start=start, deterministic=deterministic)
        _, cells = problem.locate(observations)
        quotes = envs.to_quotes(actions)
        gap = frozen.advantages(problem, solution, n, cells, quotes) - solution.raw[n, cells]
        if exponential:
            gap = gap * np.exp(problem.log_weight(info) + solution.log_scale[n] - solution.log_scale[0])
        estimate += gap
        observations, rewards, _, _, info = envs.step(actions)
        totals["returns"] += rewards
        totals["fills"] += info["bid_fills"] + info["ask_fills"]
        if problem.has_market_orders:
            totals["orders"] += info["market_orders"]
        totals["absolute_inventory"] += np.abs(info["inventory"])
        start = np.zeros(count, dtype=bool)
    totals["absolute_inventory"] *= base.params.step_length
    return {**totals, "estimate": estimate, "pnl": info["gain"]}


def _simulate(
    base: Any,
    player: Any,
    optimal: OptimalPolicy,
    deterministic: bool,
    episodes: int,
    stderr: float | None,
    seed: int,
    progress: bool,
) -> Score:
    problem = problem_of(base)
    batch = min(episodes, 10_000)
    most = episodes if stderr is None else 1000 * episodes
    parts: list[Mapping[str, Array]] = []
    done, error = 0, math.inf
    bases = np.random.SeedSequence([seed, 0x5C0]).generate_state(1, np.uint64)
    with tqdm(total=most if stderr is None else None, desc="score", unit="episode", disable=not progress) as bar:
        while done < episodes or (stderr is not None and error > stderr and done < most):
            count = min(batch, most - done)
            parts.append(_play(base, player, optimal, deterministic, count, int(bases[0]) + done))
            done += count
            sample = np.concatenate([part["estimate"] for part in parts])
            raw, raw_error = float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(done))
            value = float(problem.to_value(np.array(raw), optimal.solution.log_scale[0]))
            aversion = 0.0 if problem.criterion.exponents is None else -float(problem.criterion.exponents[0])
            error = raw_error / (aversion * raw) if aversion else raw_error  # delta method for the certainty equivalent
            bar.update(count)
            bar.set_postfix(value=f"{value:.6g}", stderr=f"{error:.2g}")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Score(
        value=value,
        value_error=problem.tolerance,
        stderr=error,
        optimum_lower=optimal.optimum,
        optimum_upper=optimal.optimum,
        level=problem.level,
        method="simulated",
        reference=reference_value(base),
        std=float(joined["returns"].std(ddof=1)) if not aversion else float(joined["pnl"].std(ddof=1)),
        pnl=float(joined["pnl"].mean()),
        pnl_std=float(joined["pnl"].std(ddof=1)),
        fills=float(joined["fills"].mean()),
        orders=float(joined["orders"].mean()),
        mean_absolute_inventory=float(joined["absolute_inventory"].mean() / base.params.horizon),
        utility=float(joined["returns"].mean()) if aversion else None,
        episodes=done,
    )


def pnl_distribution(env: Any, policy: Any, *, deterministic: bool = True, **arguments: Any) -> PnlLaw:
    """Exact law of the final P&L ``W_T - W_0`` under a policy of the observation: density, VaR and CVaR."""
    base = environment_of(env, **arguments)
    problem = problem_of(base)
    return frozen.pnl_law(problem, _table(problem, _as_policy(policy, True), deterministic)[0])


def score_table(scores: Mapping[str, Score]) -> pd.DataFrame:
    """Scores as a table, best first: one row per name."""
    rows = {}
    for name, found in scores.items():
        rows[name] = {
            "value": found.value,
            "regret": found.regret if isinstance(found.regret, float) else found.regret[0],
            "skill": found.skill,
            "stderr": found.stderr,
            "P&L std": found.pnl_std,
            "fills": found.fills,
            "market orders": found.orders,
            "mean |inventory|": found.mean_absolute_inventory,
            "method": found.method,
        }
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("value", ascending=False)


def rollout(
    env: Any, policy: Any, episodes: int = 1, seed: int = 0, *, deterministic: bool = True, **arguments: Any
) -> pd.DataFrame:
    """Play episodes and return one row per step, in model units.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    policy : Policy or callable
    episodes : int
        Number of episodes; episode ``i`` is that of a single environment seeded ``seed + i``.
    seed : int

    Returns
    -------
    DataFrame
        ``episode``, ``step``, ``time`` (at the start of the step), the market's `info` entries (prices and inventory at
        the start of the step; quotes, fills and ``reward`` of the step), sorted by episode and step.
    """
    if episodes < 1:
        raise ValueError(f"episodes = {episodes} is not allowed: it must be a whole number >= 1")
    base = environment_of(env, **arguments)
    player = _as_policy(policy, False)
    envs = base.make_batch(episodes, info="full")
    observations, info = envs.reset(seed=seed)
    state, start = None, np.ones(episodes, dtype=bool)
    frames = []
    for n in range(base.params.num_steps):
        actions, state = player.predict(observations, state=state, episode_start=start, deterministic=deterministic)
        before = info
        observations, rewards, _, _, info = envs.step(actions)
        entries = {name: info[name] if name in base.step_entries else before[name] for name in info}
        frames.append(
            pd.DataFrame(
                {
                    "episode": np.arange(episodes),
                    "step": n,
                    "time": n * base.params.step_length,
                    **entries,
                    "reward": rewards,
                }
            )
        )
        start = np.zeros(episodes, dtype=bool)
    return pd.concat(frames).sort_values(["episode", "step"], ignore_index=True)
