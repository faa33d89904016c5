"""Scores: how far a policy is from the optimum, exactly where the policy is a function of the observation."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.baseline import Baseline, Evaluation, baseline_of, environment_of
from mmgym.baselines.episodes import ControlVariate, Rewards, simulated_columns
from mmgym.baselines.episodes import episodes as played_episodes
from mmgym.baselines.foreign import as_policy, opened, player_in
from mmgym.baselines.policy import checked_actions
from mmgym.baselines.quotes import as_quotes, warn_of_another_box
from mmgym.baselines.risk import RiskMeasures, risk_measures
from mmgym.baselines.table_policy import require_repeated
from mmgym.baselines.through_wrappers import WrappedEnvironment
from mmgym.baselines.wrappers import Wrapped, is_function

__all__ = ["AboveOptimum", "Score", "exact_skill", "risk_table", "rollout", "score", "score_table", "skill_of_value"]

Array = NDArray[Any]

QUICK_EPISODES = 500  # of a skill that is watched during training
DISAGREEMENT = 5.0  # standard errors between an evaluation and a simulation
FEWEST_TO_DOUBT = 100  # episodes: the standard error of fewer is no measure of what they may be off
PROBES = 16  # episodes and steps on which a policy is asked twice
COARSENESS = 1e-3  # error of an evaluation, of the span between reference and optimum, that is always accepted


class AboveOptimum(RuntimeError):  # noqa: N818  # the public name
    """A policy scored above the optimum, beyond rounding and sampling error: there is a bug somewhere."""


@dataclass(frozen=True, repr=False)
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
        Bounds of the optimum; equal where it is known. Where parameters are randomised (`mmgym.baselines.randomised`):
        the best policy known that does not know them, and the best one that does.
    level : str
        "exact", "certified" or "bracketed".
    method : str
        "exact", "exact, as it acts" (a stochastic policy), "quadrature" (the mean over a continuous law of parameters,
        ``value_error`` its estimated error), "numerical" (to ``value_error``; what is not an expectation is simulated)
        or "simulated".
    reference : float
        Value of the reference policy, whose skill is 0.
    std : float
        Standard deviation of the return with price noise (under CARA: of ``W_T - W_0`` minus
        penalties; where it is simulated, of ``W_T - W_0``).
    pnl, pnl_std : float
        Mean and standard deviation of the final P&L, ``W_T - W_0``.
    fills, orders : float
        Expected limit orders filled and market orders sent in an episode.
    mean_absolute_inventory : float
        Time average, in assets (simulated: at step ends).
    utility : float or None
        Expected utility, under CARA (None too where it is beyond floating point: the certainty equivalent is not).
    utility_stderr : float
        Standard error of its sampling (0 where it is exact, or there is none).
    episodes : int
        Simulated episodes (0 for an exact score).
    risk : RiskMeasures or None
        VaR, CVaR, drawdown and largest inventory, where they were asked for.
    clipped : float or None
        Share of decisions at which the quotes that a baseline policy wants lie outside the action box, so that the
        nearest ones are played (see `mmgym.baselines.catalogue.clipped_share`); None of a policy that does not tell
        what it wants.
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
    utility_stderr: float = 0.0
    episodes: int = 0
    risk: RiskMeasures | None = None
    clipped: float | None = None

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

    @property
    def information_ratio(self) -> float | None:
        """Mean by standard deviation of an episode's final P&L; None where it does not vary."""
        return self.pnl / self.pnl_std if self.pnl_std > 0.0 else None

    def __repr__(self) -> str:
        """Skill and regret first, then the attributes that there are."""
        shown = {"skill": self.skill, "regret": self.regret, **vars(self)}
        return f"Score({', '.join(f'{name}={value!r}' for name, value in shown.items() if value is not None)})"

    def to_dict(self) -> dict[str, Any]:
        """All attributes, regret, skill and information ratio as JSON types."""
        risk = None if self.risk is None else self.risk.to_dict()
        derived = {"regret": self.regret, "skill": self.skill, "information_ratio": self.information_ratio}
        return {**asdict(self), **derived, "risk": risk}


def score(
    env: Any,
    policy: Any,
    *,
    method: str = "auto",
    deterministic: bool = True,
    markov: bool | None = None,
    quotes: bool = False,
    episodes: int = 2_000,
    stderr: float | None = None,
    seed: int = 0,
    progress: bool = False,
    risk: bool | str = False,
    **arguments: Any,
) -> Score:
    """Score a policy in an environment.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor. Wrappers that turn one observation or action into
        another are honoured exactly; behind others the policy is simulated (`mmgym.baselines.through_wrappers`).
    policy : Policy, callable, torch module or Stable-Baselines3 model
        A callable gets a batch of observations and returns a batch of actions, or one and one: a call tells. A model
        brings the statistics of the `VecNormalize` around its environment.
    method : {"auto", "exact", "simulated"}
        "auto" is exact where the policy is a function of the observation (``policy.markov``). "simulated" plays
        episodes with the advantage-sum control variate: unbiased for any policy, also a history-dependent one, and
        without sampling error at the optimum. In a market with continuous coordinates "exact" is a numerical
        evaluation with a stated error; "auto" also simulates, and takes the simulation where there is no such
        evaluation, its error is large (a policy that the grid does not resolve), or the two disagree.
    deterministic : bool
        Whether a stochastic policy is scored at its mode (True) or as it acts (False; exactly where it has a
        ``distribution``).
    markov : bool, optional
        Overrides what the policy says of itself.
    quotes : bool
        Whether the policy's quotes are played, where its actions stood for others than they do in this environment (see
        `mmgym.baselines.quotes`); without it, its actions are played, and a warning says so.
    episodes : int
        Simulated episodes; with ``stderr``, the least number (the most is 1000 times as many).
    stderr : float, optional
        Standard error at which a simulation stops.
    seed : int
        Of a simulation.
    progress : bool
        Whether to show a progress bar.
    risk : bool or {"auto", "exact", "simulated"}
        Whether to add VaR, CVaR, drawdown and largest inventory (see `mmgym.baselines.risk.risk_measures`; True is
        "auto", "simulated" where ``method`` is), from ``episodes`` episodes or 10 000 if those are fewer.

    Raises
    ------
    ValueError
        If an argument is out of range; an exact score is asked for a policy that is not a function of the observation;
        or one that says it is answers the same observations differently, or its actions are not finite or have not the
        shape of a batch.
    TypeError
        If the environment is in a wrapper that changes rewards or cuts episodes short, or the policy is a model that
        was trained behind wrappers and ``env`` has none.
    ArithmeticError
        If a figure of the score is not finite.
    AboveOptimum
        If the policy scores above the optimum: a bug, please report it.
    """
    if method not in ("auto", "exact", "simulated"):
        raise ValueError(f"method = {method!r} is not allowed: it must be 'auto', 'exact' or 'simulated'")
    if episodes < 2 or (stderr is not None and not stderr > 0.0):
        raise ValueError(f"episodes = {episodes} must be >= 2 and stderr = {stderr} must be > 0")
    simulation = _Simulation(deterministic, episodes, stderr, seed, progress)
    env, base, layers = opened(env, **arguments)
    if not all(map(is_function, layers)):
        if method == "exact" or quotes or risk:
            raise _exact_behind(layers)
        played = simulation.behind_wrappers(env, baseline_of(base), as_policy(policy, markov, env, wrapped=True))
        return _checked(_score(baseline_of(base), None, played, trusted=False))
    base, player = player_in(env, policy, markov)
    if quotes:
        player = as_quotes(player, base)
    else:
        warn_of_another_box(player, base)
    is_markov = player.markov if markov is None else markov
    if method == "exact" and not is_markov:
        raise ValueError("an exact score needs a function of the observation: pass markov=True if the policy is one")
    baseline, evaluation = baseline_of(base), None
    if is_markov and method != "simulated":
        evaluation = _evaluated(base, baseline, player, deterministic, progress)
    if method == "exact" and evaluation is None:
        raise ValueError("this policy has no numerical evaluation in this environment: use method='simulated'")
    sample = None
    if evaluation is None or evaluation.std is None:
        wanted = simulation if evaluation is None else replace(simulation, stderr=None)
        sample = wanted.sample(base, player, baseline.control_variate(player), baseline.converted)
    result = _checked(_score(baseline, evaluation, sample, trusted=method == "exact"))
    result = replace(result, clipped=baseline.clipped_share(base, player, 0))
    if risk is False:
        return result
    measures = risk_measures(
        base,
        player,
        method=risk if isinstance(risk, str) else "simulated" if method == "simulated" else "auto",
        deterministic=deterministic,
        markov=markov,
        episodes=max(episodes, 10_000),
        seed=seed,
        progress=progress,
    )
    return replace(result, risk=measures)


def _exact_behind(layers: Sequence[Any]) -> Wrapped:
    names = ", ".join(type(layer).__name__ for layer in layers if not is_function(layer))
    return Wrapped(
        f"behind {names}, which is no function of one observation or action, a policy is simulated: allowed are method "
        "'auto' or 'simulated', without quotes and risk"
    )


def _evaluated(base: Any, baseline: Baseline, player: Any, deterministic: bool, progress: bool) -> Evaluation | None:
    """The evaluation of a policy that says it is a function of the observation, which is looked at if it has a mode."""
    if player.has_mode:
        _require_function(base, player)
    steps = baseline.evaluation_steps
    with tqdm(total=steps, desc="score", unit="step", delay=2.0, disable=not progress) as bar:
        return baseline.evaluate(player, deterministic, bar.update)


def _checked(result: Score) -> Score:
    """The score, refused if it has a figure that is not finite, or is above the optimum."""
    _require_finite(result)
    slack = result.value_error + 4.0 * result.stderr + 1e-9 * abs(result.optimum_upper) + 1e-12
    if result.value > result.optimum_upper + slack:
        raise AboveOptimum(
            f"the policy scored {result.value!r}, above the optimum {result.optimum_upper!r} by more than {slack:.3g}: "
            "this is a bug, please report it"
        )
    return result


def _require_finite(result: Score) -> None:
    """Refuse a score with a figure that is not finite, by an ArithmeticError that names it."""
    figures = {name: value for name, value in vars(result).items() if isinstance(value, float)}
    wrong = {name: value for name, value in figures.items() if not math.isfinite(value)}
    if wrong:
        names = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        raise ArithmeticError(f"the score is not finite: {names}; the policy's actions or the market leave its range")


def _require_function(base: Any, player: Any) -> None:
    """Refuse a policy that answers the same observations differently, on those of `PROBES` short episodes."""
    envs = base.make_batch(PROBES)
    shape = envs.single_action_space.shape
    for step in islice(played_episodes(envs, player, 0), PROBES):
        again = player.predict(step.decision.observations, deterministic=True)[0]
        require_repeated(
            player, step.decision.actions, checked_actions(player, again, step.decision.observations, shape)
        )


def exact_skill(env: Any, policy: Any) -> tuple[float, float]:
    """Skill and regret of a policy at its mode: the part of `score` that is quick to find.

    Of a policy that remembers, and in a market with continuous coordinates, from a short simulation, and to the best
    policy known.
    """
    base = environment_of(env)
    value = baseline_of(base).criterion_value(policy) if policy.markov else None
    if value is None:
        value = score(base, policy, method="simulated", episodes=QUICK_EPISODES).value
    return skill_of_value(base, value)


def skill_of_value(env: Any, value: float) -> tuple[float, float]:
    """Skill and regret of a value of the criterion, to the best policy known."""
    baseline = baseline_of(env)
    optimum, reference = baseline.bounds().lower, baseline.reference_value()
    return (value - reference) / (optimum - reference) if optimum > reference else math.nan, optimum - value


@dataclass(frozen=True)
class _Sample:
    """Simulated episodes: their columns, and the criterion with its standard error."""

    columns: Mapping[str, Array]
    value: float
    stderr: float

    @property
    def episodes(self) -> int:
        return len(self.columns["estimate"])

    def mean(self, name: str) -> float:
        return float(self.columns[name].mean())

    def std(self, *names: str) -> float:
        """Of the sum of some columns."""
        return float(np.sum([self.columns[name] for name in names], axis=0).std(ddof=1))

    def stderr_of(self, name: str) -> float:
        return self.std(name) / math.sqrt(self.episodes)


Converted = Callable[[float, float], tuple[float, float]]  # mean and its standard error -> the criterion's


@dataclass(frozen=True)
class _Simulation:
    """How episodes are simulated: see `score`."""

    deterministic: bool
    episodes: int
    stderr: float | None
    seed: int
    progress: bool

    def sample(self, base: Any, player: Any, variate: ControlVariate, converted: Converted) -> _Sample:
        """Episodes with a control variate, until there are enough."""
        most = self.episodes if self.stderr is None else 1000 * self.episodes
        parts: list[Mapping[str, Array]] = []
        done, error = 0, math.inf
        first = int(np.random.SeedSequence([self.seed, 0x5C0]).generate_state(1, np.uint64)[0])
        total = most if self.stderr is None else None
        with tqdm(total=total, desc="score", unit="episode", disable=not self.progress) as bar:
            while done < self.episodes or (self.stderr is not None and error > self.stderr and done < most):
                count = min(self.episodes, 10_000, most - done)
                part = simulated_columns(base, player, variate, count, first + done, deterministic=self.deterministic)
                parts.append(part)
                done += len(part["estimate"])
                sample = np.concatenate([part["estimate"] for part in parts])
                value, error = converted(float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(done)))
                bar.update(len(part["estimate"]))
                bar.set_postfix(value=f"{value:.6g}", stderr=f"{error:.2g}")
        return _Sample({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, value, error)

    def behind_wrappers(self, env: Any, baseline: Baseline, player: Any) -> _Sample:
        """Episodes in a wrapped environment, without a control variate; the market's own rewards count."""
        aversion = float(baseline.params.risk_aversion) if baseline.expected_utility else 0.0
        converted = functools.partial(Rewards.converted, risk_aversion=aversion)
        return self.sample(WrappedEnvironment(env), player, Rewards(), converted)


def _score(baseline: Baseline, evaluation: Evaluation | None, sample: _Sample | None, trusted: bool) -> Score:
    """The score of an evaluation, of a simulation, or of both, unless the simulation speaks against the evaluation."""
    bounds, reference, taken = baseline.bounds(), baseline.reference_value(), evaluation
    if taken is not None and sample is not None and not trusted:
        tolerance = taken.error + bounds.error + DISAGREEMENT * sample.stderr
        agrees = sample.episodes < FEWEST_TO_DOUBT or abs(taken.value - sample.value) <= tolerance
        fine = taken.error <= max(COARSENESS * abs(bounds.upper - reference), 4.0 * sample.stderr)
        taken = taken if agrees and fine else None
    if taken is None:
        assert sample is not None
        taken = Evaluation(
            value=sample.value,
            error=0.0,
            pnl=sample.mean("pnl"),
            fills=sample.mean("fills"),
            absolute_inventory=sample.mean("absolute_inventory"),
            method="simulated",
        )
    if sample is not None:  # what is not an expectation, or not in the evaluation
        utility = baseline.expected_utility and taken.utility is None
        taken = taken._replace(
            orders=sample.mean("orders"),
            std=sample.std(*(["pnl"] if baseline.expected_utility else ["returns", "price_noise"])),
            pnl_std=sample.std("pnl"),
            utility=sample.mean("returns") if utility else taken.utility,
        )
    assert taken.orders is not None and taken.std is not None and taken.pnl_std is not None
    return Score(
        value=taken.value,
        value_error=bounds.error + taken.error,
        stderr=sample.stderr if sample is not None and taken.method == "simulated" else 0.0,
        optimum_lower=bounds.lower,
        optimum_upper=bounds.upper,
        level=bounds.level,
        method=taken.method,
        reference=reference,
        std=taken.std,
        pnl=taken.pnl,
        pnl_std=taken.pnl_std,
        fills=taken.fills,
        orders=taken.orders,
        mean_absolute_inventory=taken.absolute_inventory / baseline.params.horizon,
        utility=taken.utility,
        utility_stderr=sample.stderr_of("returns") if sample is not None and baseline.expected_utility else 0.0,
        episodes=0 if sample is None else sample.episodes,
    )


class WholeTable(pd.DataFrame):
    """A table that is printed whole: pandas leaves out columns that do not fit the terminal."""

    @property
    def _constructor(self) -> type["WholeTable"]:
        return WholeTable

    def __repr__(self) -> str:
        return self.to_string()

    def _repr_html_(self) -> str:
        return self.to_html()


def score_table(scores: Mapping[str, Score]) -> pd.DataFrame:
    """Scores as a table, best first: one row per name, with the risk measures of scores that have them.

    Skill and regret (to the lower bound where the optimum has two) come first, and printing shows every column.
    Where the action box clips what a policy wants, its method says so, with the share of decisions.
    """
    rows = {}
    for name, each in scores.items():
        rows[name] = {
            "skill": each.skill,
            "regret": each.regret if isinstance(each.regret, float) else each.regret[0],
            "value": each.value,
            "stderr": each.stderr,
            "P&L std": each.pnl_std,
            "fills": each.fills,
            "market orders": each.orders,
            "mean |inventory|": each.mean_absolute_inventory,
            "method": each.method + (f", clipped {100.0 * each.clipped:.2g} %" if each.clipped else ""),
        }
        if each.risk is not None:
            rows[name] |= {measure: estimate.value for measure, estimate in each.risk.rows().items()}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("value", ascending=False)
    return WholeTable(table)


def risk_table(scores: Mapping[str, Score]) -> pd.DataFrame:
    """Risk measures of scores as text, best score first: one row per name.

    With intervals (95 %) of what was simulated, and the accuracy of what is numerical.
    """
    ordered = sorted(scores.items(), key=lambda item: -item[1].value)
    rows = {
        name: {**{measure: str(estimate) for measure, estimate in each.risk.rows().items()}, "VaR by": each.risk.method}
        for name, each in ordered
        if each.risk is not None
    }
    return WholeTable(pd.DataFrame.from_dict(rows, orient="index"))


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
        the start of the step; quotes, fills and ``reward`` of the step) and parameters that are drawn for an episode,
        sorted by episode and step.
    """
    if episodes < 1:
        raise ValueError(f"episodes = {episodes} is not allowed: it must be a whole number >= 1")
    base, player = player_in(env, policy, False, **arguments)
    envs = base.make_batch(episodes, info="full")
    frames, now = [], np.zeros(episodes)
    for step in played_episodes(envs, player, seed, deterministic=deterministic):
        before, after, n = step.decision.info, step.info, step.decision.number
        entries = {name: after[name] if name in base.step_entries else before[name] for name in after}
        for name, values in entries.pop("parameters", {}).items():  # of the episode; a pair in two columns
            entries |= {name: values} if values.ndim == 1 else {f"{name}_{i}": v for i, v in enumerate(values.T)}
        columns = {
            "episode": np.arange(episodes),
            "step": np.full(episodes, n),
            "time": now.copy() if "elapsed" in after else np.full(episodes, n * envs.params.step_length),
            **entries,
            "reward": step.rewards,
        }
        frames.append(pd.DataFrame({name: values[step.running] for name, values in columns.items()}))
        now += after.get("elapsed", 0.0)
    return pd.concat(frames).sort_values(["episode", "step"], ignore_index=True)
