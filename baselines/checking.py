"""A conformance suite for baselines: a market's optimum, exact evaluation and simulation must agree.

Run it in a test of each market that you write a `mmgym.baselines.frozen.FrozenProblem` for::

    from mmgym.baselines.checking import check_baseline

    def test_my_baseline():
        check_baseline("mmgym/GLFT-v0", num_steps=10, horizon=10.0)
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
import scipy
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mmgym.baselines import frozen
from mmgym.baselines.baseline import baseline_of, environment_of
from mmgym.baselines.episodes import episodes as played_episodes
from mmgym.baselines.frozen import FrozenProblem, Functional, Solution
from mmgym.baselines.policy import RememberingPolicy
from mmgym.baselines.scoring import rollout, score
from mmgym.baselines.table_policy import TablePolicy

__all__ = ["check_baseline"]

Array = NDArray[Any]

FALSE_ALARMS = 1e-3  # of all statistical comparisons of one call together
LARGEST_SKEW_ERROR = 0.03  # relative: beyond, the mean of utilities is not nearly normal
ROUNDING = 1e-9  # relative
SUBOPTIMAL = 8  # random and perturbed tables that are held against the optimum
SCATTERED, TRIALS = 24, 3  # random actions, from the best of which a climb starts, and moves of each size in a climb


def check_baseline(env: Any, *, episodes: int = 2_000, seed: int = 0, **arguments: Any) -> dict[str, float]:
    """Check that the optimum, the exact evaluation and the simulation of an environment agree.

    Checked are: the exact value of the optimal policy is the optimum; no random or perturbed table is worth more, and
    no control of a single step that is found by climbing uphill at random, from the optimum or from anywhere; forward
    laws sum to 1 and give the values that backward recursions give; along simulated paths the problem's observations
    are those of the environment bit for bit, states are visited as often as the laws say, and returns, final P&L and
    the control-variate scores have the exact expectations.

    In a market with continuous coordinates the same is checked to the stated errors, of
    smooth perturbations of the optimum and of constant quotes: values, simulated returns and control-variate scores
    agree, and nothing is worth more than the optimum. Where only bounds are known, the best known policy and the upper
    bound take its place.

    Statistical comparisons have a false-alarm rate of 1e-3 all together; with the same arguments they give the same
    result every time.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor. Choose them such that episodes are short.
    episodes : int
        Simulated episodes of each policy, at least 100.
    seed : int
        Of the simulations and the random tables.

    Returns
    -------
    dict of str to float
        The figures that were compared: optimum, exact values, simulated values with their z-scores, the best of the
        suboptimal tables, the smallest p-value of the state frequencies.

    Raises
    ------
    AssertionError
        If something disagrees; the message names it.
    ValueError
        If there are too few episodes.
    """
    if episodes < 100:
        raise ValueError(f"episodes = {episodes} is not allowed: it must be a whole number >= 100")
    base = environment_of(env, **arguments)
    problem = baseline_of(base).problem
    if problem is None:
        return SmoothSuite(base, episodes, seed).run()
    return FiniteSuite(base, problem, episodes, seed).run()


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


class FiniteSuite:
    """The suite for markets with finitely many states."""

    def __init__(self, base: Any, problem: FrozenProblem, episodes: int, seed: int) -> None:
        self.base, self.episodes, self.seed = base, episodes, seed
        self.baseline, self.problem = baseline_of(base), problem
        self.optimal = self.baseline.best_policy()
        self.solution: Solution = self.optimal.solution
        self.space = base.single_spaces()[1]
        self.random = np.random.default_rng([seed, 1])
        self.slack = self.problem.tolerance + ROUNDING * (1.0 + abs(self.optimal.optimum))
        self.figures: dict[str, float] = {"optimum": self.optimal.optimum}
        self.p_values: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        self.check_optimum()
        self.check_suboptimal_tables()
        self.check_hill_climb()
        policies = {
            "optimal": self.optimal,
            "reference": self.baseline.policies()[self.baseline.reference](),
            "random": self.random_table(),
            "perturbed": self.perturbed_table(0.3),
        }
        for number, (name, policy) in enumerate(policies.items()):
            self.check_law(name, policy)
            self.check_simulation(name, policy, number)
        for name, p in self.p_values.items():
            bound = FALSE_ALARMS / len(self.p_values)
            _require(p > bound, f"{name} disagrees with the exact one: p-value {p:.2g}, not above {bound:.2g}")
        self.figures["smallest p-value"] = min(self.p_values.values())
        return self.figures

    # Tables

    def random_actions(self, count: int) -> Array:
        space = batch_space(self.space, count)
        space.seed(int(self.random.integers(2**31)))
        return np.asarray(space.sample())

    def random_table(self) -> TablePolicy:
        """Another random action in every cell."""
        problem = self.problem
        controls = problem.controls(self.random_actions(problem.num_steps * problem.num_states))
        return TablePolicy(problem, controls.reshape(problem.num_steps, problem.num_states, -1))

    def perturbed_table(self, size: float) -> TablePolicy:
        """The optimum with actions moved by up to ``size``; discrete ones redrawn in that fraction of the cells."""
        actions = self.optimal.actions
        controls = self.problem.controls(self.moved(actions.reshape(-1, *(self.space.shape or ())), size))
        return TablePolicy(self.problem, controls.reshape(*actions.shape[:2], -1))

    def moved(self, actions: Array, size: float) -> Array:
        """Actions (M, ...) moved by up to ``size``; discrete ones redrawn in that fraction of the rows."""
        drawn = self.random_actions(len(actions))
        if isinstance(self.space, gymnasium.spaces.Box):
            return np.clip(actions + size * drawn, self.space.low, self.space.high).astype(actions.dtype)
        redrawn = self.random.random(len(actions)) < size
        return np.where(redrawn.reshape(-1, *[1] * (actions.ndim - 1)), drawn, actions)

    def value(self, controls: Array) -> float:
        return frozen.criterion_value(self.problem, controls)

    # Exact comparisons

    def check_optimum(self) -> None:
        optimum = self.optimal.optimum
        for name, controls in (("controls", self.solution.controls), ("actions", self.optimal.controls)):
            value = self.value(controls)
            _require(
                abs(value - optimum) <= self.slack,
                f"the exact value of the optimal {name} is {value!r}, but the optimum is {optimum!r}",
            )
            self.figures[f"exact value of the optimal {name}"] = value
        initial = self.problem.initial
        start = float(np.ravel(self.optimal.value(self.problem.observations(0)[np.argmax(initial)]))[0])
        if initial.max() == 1.0:
            _require(
                abs(start - optimum) <= self.slack, f"value() of the initial observation is {start!r}, not {optimum!r}"
            )

    def check_suboptimal_tables(self) -> None:
        tables = {f"random table {i}": self.random_table() for i in range(SUBOPTIMAL // 2)}
        sizes = np.geomspace(1e-3, 0.5, SUBOPTIMAL // 2)
        tables |= {f"optimum perturbed by {size:.2g}": self.perturbed_table(float(size)) for size in sizes}
        values = {name: self.value(table.controls) for name, table in tables.items()}
        best = max(values, key=lambda name: values[name])
        optimum = self.optimal.optimum
        _require(
            values[best] <= optimum + self.slack,
            f"the {best} has the exact value {values[best]!r}, above the optimum {optimum!r}",
        )
        self.figures["best suboptimal table"] = values[best]

    def check_hill_climb(self) -> None:
        """One step's action moved uphill at random, then the optimum: never above it, from any state of a few steps.

        The climbs start from the optimal actions, and from random ones: another hill may be higher.
        """
        problem, solution = self.problem, self.solution
        states = np.arange(problem.num_states)
        for n in np.unique(np.linspace(0, problem.num_steps - 1, 5).astype(int)).tolist():

            def worth(actions: Array, n: int = n) -> Array:
                raw = frozen.advantages(problem, solution, n, states, problem.controls(actions))
                return np.asarray(problem.to_value(raw, solution.log_scale[n]))

            def uphill(actions: Array, trials: Iterable[Callable[[Array], Array]]) -> tuple[Array, Array]:
                height = worth(actions)
                for trial in trials:
                    moved = trial(actions)
                    reached = worth(moved)
                    better = reached > height
                    actions = np.where(better.reshape(-1, *[1] * (moved.ndim - 1)), moved, actions)
                    height = np.maximum(height, reached)
                return actions, height

            slack = problem.tolerance + ROUNDING * (1.0 + abs(solution.values[n]).max())
            anywhere, _ = uphill(
                self.random_actions(len(states)), [lambda actions: self.random_actions(len(actions))] * SCATTERED
            )
            sizes = np.repeat(np.geomspace(1.0, 1e-3, 7), TRIALS)
            steps = [functools.partial(self.moved, size=float(size)) for size in sizes]
            for start in (self.optimal.actions[n], anywhere):
                actions, height = uphill(start, steps)
                worst = int(np.argmax(height - solution.values[n]))
                gap = float(height[worst] - solution.values[n][worst])
                _require(
                    gap <= slack,
                    f"at step {n}, state {worst}, the controls {problem.controls(actions)[worst]} are better than the "
                    f"optimal ones {solution.controls[n, worst]} by {gap:.3g}",
                )

    def check_law(self, name: str, policy: TablePolicy) -> None:
        """Laws sum to 1, and the value that they give is that of the backward recursion."""
        problem = self.problem
        laws = frozen.state_laws(problem, policy.controls)
        error = float(np.abs(laws.sum(axis=1) - 1.0).max())
        _require(error <= 1e-9, f"a law of the state under the {name} policy misses the sum 1 by {error:.3g}")
        _require(laws.min() >= -1e-12, f"a law of the state under the {name} policy has the entry {laws.min():.3g}")
        functional = Functional(gain=1.0, penalty=1.0, fills=0.5, orders=0.25, absolute_inventory=0.125)
        nothing, states = np.zeros((problem.num_states, 1)), np.arange(problem.num_states)
        forward = float(laws[-1] @ problem.terminal(functional)[:, 0])
        for n in range(problem.num_steps):
            step = problem.backward(n, states, policy.controls[n], nothing, functional)
            forward += float(laws[n] @ step[:, 0])
        values, _ = frozen.evaluate(problem, policy.controls, functional)
        backward = float(problem.initial @ values[0, :, 0])
        slack = problem.tolerance + ROUNDING * (1.0 + abs(values).max())
        _require(
            abs(forward - backward) <= slack,
            f"gain, penalties, fills and inventory of the {name} policy: {forward!r} forward, {backward!r} backward",
        )
        self.figures[f"exact value of the {name} policy"] = self.value(policy.controls)

    # Simulation

    def check_simulation(self, name: str, policy: TablePolicy, number: int) -> None:
        problem = self.problem
        base_seed = int(np.random.SeedSequence([self.seed, 2, number]).generate_state(1, np.uint64)[0])
        laws = frozen.state_laws(problem, policy.controls)
        compared = set(np.unique(np.linspace(0, problem.num_steps, 5).astype(int)[1:]).tolist())
        envs = self.base.make_batch(self.episodes, info="full", autoreset_mode="Disabled")
        returns = np.zeros(self.episodes)

        def see(n: int, observations: Array) -> None:
            steps, cells = problem.locate(observations)
            _require((steps == n).all(), f"locate() puts observations of step {n} at the steps {np.unique(steps)}")
            expected = problem.observations(n)[cells]
            same = expected.dtype == observations.dtype and np.array_equal(expected, observations)
            _require(same, f"the problem's observations of step {n} are not those of the environment bit for bit")
            if n in compared:
                counts = np.bincount(cells, minlength=problem.num_states)
                label = f"frequency of states at step {n} under the {name} policy"
                self.p_values[label] = _frequency_p_value(counts, laws[n])

        for step in played_episodes(envs, policy, base_seed):
            n, last = step.decision.number, step.decision.number == problem.num_steps - 1
            see(n, step.decision.observations)
            terminated = step.terminated
            _require((terminated == last).all(), f"step {n} of {problem.num_steps}: terminated is {terminated}")
            returns += step.rewards
        see(problem.num_steps, step.observations)
        info = step.info
        self.check_means(name, policy, returns, np.asarray(info["gain"], dtype=np.float64))
        drawn = score(self.base, policy, method="simulated", episodes=self.episodes, seed=self.seed)
        self.compare(
            f"control-variate score of the {name} policy", drawn.value, drawn.stderr, self.value(policy.controls)
        )

    def check_means(self, name: str, policy: TablePolicy, returns: Array, pnl: Array) -> None:
        problem, root = self.problem, math.sqrt(self.episodes)
        mean, std = frozen.moments(problem, policy.controls, frozen.PNL)
        self.compare(f"mean P&L of the {name} policy", float(pnl.mean()), std / root, mean)
        exponents = problem.criterion.exponents
        if exponents is None:
            stderr = float(returns.std(ddof=1)) / root
            self.compare(
                f"mean return of the {name} policy", float(returns.mean()), stderr, self.value(policy.controls)
            )
            return
        values, log_scale = frozen.evaluate(problem, policy.controls)
        utility = -float(problem.initial @ values[0, :, 0] * np.exp(log_scale[0]))
        stderr = float(returns.std(ddof=1)) / root
        if stderr < LARGEST_SKEW_ERROR * abs(utility):
            self.compare(f"mean utility of the {name} policy", float(returns.mean()), stderr, utility)

    def compare(self, name: str, value: float, stderr: float, exact: float) -> None:
        excess = max(abs(value - exact) - self.problem.tolerance - ROUNDING * (1.0 + abs(exact)), 0.0)
        z = excess / stderr if stderr > 0.0 else (math.inf if excess > 0.0 else 0.0)
        self.figures[name], self.figures[f"z of the {name}"] = value, z
        self.p_values[name] = float(2.0 * scipy.stats.norm.sf(z))


class _Smooth(RememberingPolicy):
    """The best known policy's actions, moved and tilted by the observation, or a constant action."""

    def __init__(self, optimal: Any, random: np.random.Generator, size: float, constant: bool) -> None:
        self.optimal, self.size, self.constant = optimal, size, constant
        self.random = random
        self.weights: Array | None = None
        self.markov = constant or optimal.markov

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Any, Any]:
        seen = np.asarray(observation, dtype=np.float64)
        action, state = self.optimal.predict(observation, state=state, episode_start=episode_start)
        return self._moved(seen, np.asarray(action)), state

    def _moved(self, seen: Array, actions: Array) -> Any:
        if self.weights is None:
            self.weights = self.random.uniform(-1.0, 1.0, (seen.shape[-1] + 1, actions.shape[-1]))
        if self.constant:
            return np.broadcast_to(self.weights[-1], actions.shape).astype(actions.dtype)
        moved = actions + self.size * np.tanh(seen @ self.weights[:-1] + self.weights[-1])
        return np.clip(moved, -1.0, 1.0).astype(actions.dtype)


class SmoothSuite:
    """The suite for markets with continuous coordinates; their action space is a box."""

    def __init__(self, base: Any, episodes: int, seed: int) -> None:
        self.base, self.episodes, self.seed = base, episodes, seed
        self.baseline = baseline_of(base)
        self.optimal = self.baseline.best_policy()
        self.figures: dict[str, float] = {"optimum": self.optimal.optimum}
        self.p_values: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        random = np.random.default_rng([self.seed, 1])
        policies: dict[str, Any] = {
            "optimal": self.optimal,
            "reference": self.baseline.policies()[self.baseline.reference](),
        }
        sizes = np.geomspace(0.01, 0.5, SUBOPTIMAL // 2)
        policies |= {f"perturbed by {size:.2g}": _Smooth(self.optimal, random, size, False) for size in sizes}
        policies |= {f"constant {i}": _Smooth(self.optimal, random, 0.0, True) for i in range(SUBOPTIMAL // 4)}
        scores = {name: self.check_policy(name, policy) for name, policy in policies.items()}
        for name, p in self.p_values.items():
            bound = FALSE_ALARMS / len(self.p_values)
            _require(p > bound, f"{name} disagrees: p-value {p:.2g}, not above {bound:.2g}")
        lower, upper, error = self.optimal.bounds
        _require(lower <= upper, f"the bounds of the optimum are {lower!r} and {upper!r}")
        if lower == upper:
            gap = abs(scores["optimal"].value - upper)
            slack = error + scores["optimal"].value_error
            _require(gap <= slack, f"the optimal policy is worth {scores['optimal'].value!r}, not {upper!r}")
        others = {name: each.value for name, each in scores.items() if name != "optimal"}
        self.figures["best suboptimal table"] = max(others.values())
        self.figures["smallest p-value"] = min(self.p_values.values())
        return self.figures

    def check_policy(self, name: str, policy: Any) -> Any:
        """Score by every method (none may be above the optimum), against plain returns on other seeds."""
        result = score(self.base, policy, episodes=self.episodes, seed=self.seed)
        sampled = score(self.base, policy, method="simulated", episodes=self.episodes, seed=self.seed + 1)
        rows = rollout(self.base, policy, episodes=self.episodes, seed=10**6 * (self.seed + 1))
        returns = rows.groupby("episode")["reward"].sum().to_numpy()
        error = float(returns.std(ddof=1)) / math.sqrt(self.episodes)
        slack = result.value_error + sampled.value_error
        stderr = math.hypot(result.stderr, sampled.stderr)
        self.compare(f"control-variate score of the {name} policy", result.value, sampled.value, stderr, slack)
        mean = float(returns.mean())
        if result.utility is None:
            error = math.hypot(result.stderr, error)
            self.compare(f"mean return of the {name} policy", result.value, mean, error, slack)
        else:
            aversion = self.base.params.risk_aversion
            utility = -math.exp(-aversion * result.value)
            scale = aversion * abs(utility)  # of a difference in certainty equivalents
            if error < LARGEST_SKEW_ERROR * abs(utility):
                error = math.hypot(scale * result.stderr, error)
                self.compare(f"mean utility of the {name} policy", utility, mean, error, scale * slack)
        self.figures[f"value of the {name} policy"] = result.value
        return result

    def compare(self, name: str, wanted: float, other: float, error: float, slack: float) -> None:
        excess = max(abs(other - wanted) - slack - ROUNDING * (1.0 + abs(other)), 0.0)
        z = excess / error if error > 0.0 else (math.inf if excess > 0.0 else 0.0)
        self.figures[name], self.figures[f"z of the {name}"] = other, z
        self.p_values[name] = float(2.0 * scipy.stats.norm.sf(z))


def _frequency_p_value(counts: Array, law: Array) -> float:
    """Chi-square test of counts against a law; cells that expect fewer than 5 are pooled."""
    if counts[law <= 0.0].any():
        return 0.0
    total = int(counts.sum())
    expected = law / law.sum() * total
    order = np.argsort(expected)
    pooled = max(int(np.searchsorted(np.cumsum(expected[order]), 5.0)), int((expected < 5.0).sum()) - 1)
    small, large = order[: pooled + 1], order[pooled + 1 :]
    seen = np.append(counts[large], counts[small].sum())
    wanted = np.append(expected[large], expected[small].sum())
    return float(scipy.stats.chisquare(seen, wanted).pvalue) if len(seen) > 1 else 1.0
