"""What the explorer shows, computed piece by piece: what is known first comes first.

Nothing here knows of the web. `compute` yields a part as it grows: a result that is complete comes last.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.agents.commands.command import load_policy
from mmgym.agents.explore.episode import play
from mmgym.agents.explore.settings import Settings
from mmgym.baselines import score
from mmgym.baselines.baseline import Baseline, BestKnownPolicy, baseline_of, environment_of
from mmgym.baselines.catalogue import policy_origins
from mmgym.baselines.episodes import episodes
from mmgym.baselines.frozen import FrozenProblem, Table
from mmgym.baselines.pnl_law import PnlLaw
from mmgym.baselines.regret import RegretMap, regret_by_state, regret_map
from mmgym.baselines.risk import EXACT_CELLS, LEVELS, path_risks, quantile_estimate, shortfall_estimate
from mmgym.baselines.scoring import Score
from mmgym.baselines.table_policy import tabulated

__all__ = ["Comparison", "Failure", "Grid", "Law", "Optimum", "Part", "Sample", "Scores", "compute", "parts_of"]

Array = NDArray[Any]

SAMPLE = 64  # episodes of the best policy on which quotes are looked at where the optimum is no table
EPISODES = 4_000  # of a law that is simulated
POINTS = 401  # of a density
BINS = 60  # of a histogram
ALIKE = 0.9999  # correlation of an entry of `info` with a coordinate that it is
CONSTANT = 1e-12  # spread of a coordinate that does not move


class Part(NamedTuple):
    """One piece of what is shown: its name, and what tells its results apart."""

    name: str
    key: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """Why a part has no result."""

    text: str


@dataclass(frozen=True)
class Grid:
    """Tables over steps and finitely many states.

    Attributes
    ----------
    coordinates : mapping of str to (S,)
    initial : (S,)
        Law of the state at the start.
    controls : (N, S, C)
        Best controls in model units.
    values : (N + 1, S)
        What can still be reached.
    """

    coordinates: Mapping[str, Array]
    initial: Array
    controls: Array
    values: Array


@dataclass(frozen=True)
class Sample:
    """Decisions of the best policy in simulated episodes, where coordinates are continuous or hidden.

    Attributes
    ----------
    time : (B,)
    coordinates : mapping of str to (B,)
        What is observed, in model units.
    controls : (B, C)
    values : (B,)
        What can still be reached (at most, where the optimum is bracketed).
    observations : (B, O)
    """

    time: Array
    coordinates: Mapping[str, Array]
    controls: Array
    values: Array
    observations: Array


@dataclass(frozen=True)
class Optimum:
    """What is known of a market: its size, its optimum or bounds, and best controls; None is not known yet."""

    control_names: tuple[str, ...]
    discrete: bool
    horizon: float
    num_steps: int
    num_states: int | None
    expected_utility: bool
    reference: str
    origins: Mapping[str, str]  # of the named policies: "paper" or "ours"
    units: Mapping[str, str] = field(default_factory=dict)
    examples: list[dict[str, float]] | None = None
    lower: float | None = None
    upper: float | None = None
    error: float = 0.0
    level: str = ""
    best: str = "optimal"  # how the best policy is called
    reference_value: float | None = None
    seconds: float = 0.0
    grid: Grid | None = None
    sample: Sample | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of the named policies, those that are known so far, and the reasons of those that have none."""

    scores: Mapping[str, Score]
    failed: Mapping[str, str]
    total: int


@dataclass(frozen=True)
class Comparison:
    """A policy next to the optimum.

    Attributes
    ----------
    name : str
    score : Score
    controls : (N, S, C) or (B, C) or None
        What it plays in the states of the optimum's `Grid` or `Sample` (the mean, where it draws); None where it is no
        function of the observation.
    regret : RegretMap or None
        Where it loses value; None where that is no sum over steps and states, for the reason ``why``.
    notes : tuple of str
        What a reader should know: warnings, and where an agent was trained.
    home : tuple or None
        Environment and arguments of an agent's training.
    """

    name: str
    score: Score
    controls: Array | None
    regret: RegretMap | None
    why: str
    notes: tuple[str, ...]
    home: tuple[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Law:
    """The law of the final P&L: a density at points (or of a histogram), atoms and risk."""

    name: str
    x: Array
    density: Array
    atoms: Array  # (A, 2) values and probabilities
    mean: float
    std: float
    risk: Mapping[str, tuple[float, float]]  # "VaR 95%" -> number and about its error
    method: str  # "exact", "numerical" or "simulated"


def parts_of(settings: Settings) -> list[Part]:
    """The parts that settings ask for, in the order in which they are computed."""
    market, compared = settings.market, (settings.policy, "" if settings.policy else settings.agent)
    return [
        Part("optimum", ("optimum", market)),
        Part("comparison", ("comparison", market, *compared)),
        Part("episode", ("episode", market, *compared, settings.seed)),
        Part("scores", ("scores", market)),
        Part("law", ("law", market)),
        Part("law_compared", ("law", market, *compared)),
    ]


def compute(settings: Settings, name: str) -> Iterator[Any]:
    """Results of a part, each more complete than the last.

    Raises
    ------
    ValueError, TypeError and others
        As the market, the policy or the agent's folder raise them.
    """
    kinds = {
        "optimum": _optimum,
        "comparison": _comparison,
        "episode": _episode,
        "scores": _scores,
        "law": _law_of_best,
        "law_compared": _law_of_compared,
    }
    return kinds[name](settings)


@functools.lru_cache(maxsize=16)
def _market(env_id: str, market: str) -> tuple[Any, Baseline]:
    """The environment and its baseline; ``market`` is the settings' word for both."""
    import json

    env = environment_of(env_id, **json.loads(market)[1])
    return env, baseline_of(env)


def market_of(settings: Settings) -> tuple[Any, Baseline]:
    """The environment of settings, and its baseline."""
    return _market(settings.env, settings.market)


def _optimum(settings: Settings) -> Iterator[Optimum]:
    env, baseline = market_of(settings)
    problem, params = baseline.problem, env.params
    known = Optimum(
        control_names=tuple(env.control_names),
        discrete=not isinstance(env.action_space, gymnasium.spaces.Box),
        horizon=float(params.horizon),
        num_steps=int(params.num_steps),
        num_states=None if problem is None else problem.num_states,
        expected_utility=baseline.expected_utility,
        reference=baseline.reference,
        origins={name: origin for name, origin in policy_origins(env).items() if name in baseline.policies()},
    )
    yield known
    started = time.perf_counter()
    if problem is None:
        known = replace(known, examples=baseline.examples(env.control_names))
        yield known
    best, solution = baseline.best_policy(), None if problem is None else baseline.solution
    if isinstance(best, BestKnownPolicy):
        if solution is None:  # which policy is best is known minutes later
            name, make = next(iter(baseline.policies().items()))
            known = replace(known, best=f"{name}, so far", sample=_sampled(env, make(), best.value))
            yield known
        known = replace(known, best=f"best known ({best.name})")
    if solution is None:
        known = replace(known, sample=_sampled(env, best, best.value))
        yield known
    bounds = baseline.bounds()
    known = replace(
        known,
        lower=bounds.lower,
        upper=bounds.upper,
        error=bounds.error,
        level=bounds.level,
        reference_value=baseline.reference_value(),
        seconds=time.perf_counter() - started,
    )
    if problem is not None and solution is not None:
        coordinates = {key: np.asarray(values, np.float64) for key, values in problem.coordinates.items()}
        known = replace(known, grid=Grid(coordinates, problem.initial, solution.controls, solution.values))
    yield known


def _is_coordinate(column: Array, states: Array) -> bool:
    """Whether an entry of `info` is one of the coordinates (B, K) that are observed."""
    if not np.isfinite(column).all() or column.std() <= CONSTANT:
        return False
    moving = states[:, states.std(axis=0) > CONSTANT]
    return any(abs(np.corrcoef(column, other)[0, 1]) > ALIKE for other in moving.T)


def _sampled(env: Any, policy: Any, value: Any) -> Sample:
    now, parts = np.zeros(SAMPLE), []
    for step in episodes(env.make_batch(SAMPLE, info="full"), policy, 0):
        decision, running = step.decision, step.running
        columns = {
            key: np.asarray(values, np.float64)[running]
            for key, values in decision.info.items()
            if key not in env.step_entries and np.ndim(values) == 1
        }
        quotes = np.asarray(env.to_quotes(decision.actions), np.float64)[running]
        parts.append((now[running], columns, quotes, np.asarray(decision.observations)[running]))
        now = now + step.info.get("elapsed", float(env.params.horizon) / int(env.params.num_steps))
    times, controls, observations = (np.concatenate([part[i] for part in parts]) for i in (0, 2, 3))
    columns = {key: np.concatenate([part[1][key] for part in parts]) for key in parts[0][1]}
    states = np.column_stack([np.asarray(c, np.float64).reshape(len(times), -1) for c in env.to_state(observations)])
    coordinates = {
        key: column
        for key, column in columns.items()
        if _is_coordinate(column, states) and abs(np.corrcoef(column, times)[0, 1]) < ALIKE
    }
    values = np.asarray(value(observations), np.float64)
    return Sample(times, coordinates, controls, values, observations)


class _Compared(NamedTuple):
    name: str
    policy: Any
    home: tuple[str, Mapping[str, Any]] | None


def agent_name(folder: str) -> str:
    """How an agent is called: its folder's name."""
    return Path(folder).resolve().name or folder


def _compared(settings: Settings, env: Any, baseline: Baseline) -> _Compared:
    if settings.policy in ("", baseline.reference) and (settings.policy or not settings.agent):
        return _Compared(baseline.reference, baseline.policies()[baseline.reference](), None)
    if settings.policy:
        policies = baseline.policies()
        if settings.policy not in policies:
            raise ValueError(
                f"the policy {settings.policy!r} is not known here: it must be one of {', '.join(policies)}"
            )
        return _Compared(settings.policy, policies[settings.policy](), None)
    folder = Path(settings.agent)
    if not folder.is_dir():
        raise ValueError(f"the agent {settings.agent!r} is not a folder of a run or of a model")
    policy, description = load_policy(folder)
    return _Compared(agent_name(settings.agent), policy, (description["env"], description["arguments"]))


def _mean_controls(table: Table) -> Array:
    if table.weights is None:
        return table.controls
    return np.asarray(np.einsum("nsmc,nsm->nsc", table.controls, table.weights))


def _table(problem: FrozenProblem, policy: Any) -> Table | None:
    """What a policy of the observation plays; None of another one."""
    return tabulated(problem, policy, True)[0] if policy.markov else None


def _home_notes(settings: Settings, compared: _Compared) -> list[str]:
    if compared.home is None:
        return []
    env, arguments = compared.home
    trained = f"trained in {env}" + "".join(f", {name} = {value}" for name, value in arguments.items())
    if env != settings.env or dict(arguments) != dict(settings.arguments):
        return [f"{compared.name} was {trained}: here it plays in another market"]
    return [f"{compared.name} was {trained}"]


def _comparison(settings: Settings) -> Iterator[Comparison]:
    env, baseline = market_of(settings)
    compared = _compared(settings, env, baseline)
    problem, solution, policy = baseline.problem, baseline.solution, compared.policy
    notes = _home_notes(settings, compared)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = score(env, policy, progress=True)
    notes += [str(warning.message) for warning in caught]
    regret, why, controls = None, "", None
    table = None if problem is None else _table(problem, policy)
    if table is not None:
        controls = _mean_controls(table)
    if problem is None or solution is None:
        states = "continuous" if problem is None else "not all observed, and what the best policy plays is no table"
        why = f"The states of this market are {states}: there is no exact map. The score has the regret as a whole."
        if policy.markov:
            best = baseline.best_policy()
            sample = _sampled(env, best, best.value)
            actions, _ = policy.predict(sample.observations)
            controls = np.asarray(env.to_quotes(np.asarray(actions)), np.float64)
    elif baseline.expected_utility:
        why = "The criterion is an expected utility: its regret is not a sum over steps and states."
    elif table is None:
        why = f"{compared.name} remembers more than the observation: where it loses value is no function of the state."
    else:
        regret = regret_map(problem, regret_by_state(problem, solution, table))
    yield Comparison(compared.name, result, controls, regret, why, tuple(notes), compared.home)


def _scores(settings: Settings) -> Iterator[Scores]:
    env, baseline = market_of(settings)
    policies = baseline.policies()
    scores: dict[str, Score] = {}
    failed: dict[str, str] = {}
    for name, make in policies.items():
        try:
            scores[name] = score(env, make(), progress=True)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            failed[name] = " ".join(str(error).split())
        yield Scores(dict(scores), dict(failed), len(policies))


def _episode(settings: Settings) -> Iterator[Any]:
    env, baseline = market_of(settings)
    compared, best = _compared(settings, env, baseline), baseline.best_policy()
    name = f"best known ({best.name})" if isinstance(best, BestKnownPolicy) else "optimal"
    yield play(env, baseline, compared.name, compared.policy, name, best, settings.seed)


def _law_of_best(settings: Settings) -> Iterator[Law]:
    env, baseline = market_of(settings)
    best = baseline.best_policy()
    name = f"best known ({best.name})" if isinstance(best, BestKnownPolicy) else "optimal"
    yield law_of_policy(env, baseline, name, best)


def _law_of_compared(settings: Settings) -> Iterator[Law]:
    env, baseline = market_of(settings)
    compared = _compared(settings, env, baseline)
    yield law_of_policy(env, baseline, compared.name, compared.policy)


def law_of_policy(env: Any, baseline: Baseline, name: str, policy: Any) -> Law:
    """The law of a policy's final P&L: as it is known where that takes seconds, else from simulated episodes."""
    law = None
    if policy.markov:
        from tqdm.auto import tqdm

        try:
            with tqdm(desc="law of the P&L", unit="term") as bar:
                law = baseline.pnl_law(policy, True, bar.update, EXACT_CELLS)
        except ValueError:  # next to no price noise: no density
            law = None
    return _simulated_law(env, name, policy) if law is None else _numerical_law(name, law)


def _numerical_law(name: str, law: PnlLaw) -> Law:
    reach = 5.0 * law.std
    x = np.linspace(max(law.low, law.mean - reach), min(law.high, law.mean + reach), POINTS)
    risk, exact = {}, not law.smoothed
    for level in LEVELS:
        errors = law.accuracy(level)
        exact &= max(errors) <= 1e-8 * law.std
        risk[f"VaR {100 * level:g}%"] = (law.value_at_risk(level), errors[0])
        risk[f"CVaR {100 * level:g}%"] = (law.expected_shortfall(level), errors[1])
    return Law(name, x, law.density(x), law.atoms, law.mean, law.std, risk, "exact" if exact else "numerical")


def _simulated_law(env: Any, name: str, policy: Any) -> Law:
    gains = path_risks(env, policy, EPISODES, progress=True).gains
    density, edges = np.histogram(gains, BINS, density=True)
    risk = {}
    for level in LEVELS:
        for word, estimate in (("VaR", quantile_estimate(-gains, level)), ("CVaR", shortfall_estimate(-gains, level))):
            error = max(estimate.high - estimate.value, estimate.value - estimate.low)
            risk[f"{word} {100 * level:g}%"] = (estimate.value, error)
    middle = 0.5 * (edges[1:] + edges[:-1])
    spread = float(gains.std(ddof=1)) if len(gains) > 1 else math.nan
    return Law(name, middle, density, np.empty((0, 2)), float(gains.mean()), spread, risk, "simulated")
