"""Datasets for offline learning: episodes of known policies in Minari's format, with exact reference scores.

Episodes are played on the batched kernels. Episode ``i`` of a dataset is, bit for bit, what a single environment plays
that is reset with the seed stored with the episode and given the stored actions.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.agents.runs import derived_seed
from mmgym.baselines import score
from mmgym.baselines.baseline import baseline_of, environment_of
from mmgym.baselines.catalogue import best_known_policy, level_of, random_policy
from mmgym.baselines.episodes import episodes
from mmgym.baselines.frozen import criterion_value
from mmgym.baselines.perturbed import NoisyPolicy, perturbed_optimum
from mmgym.baselines.table_policy import tabulated
from mmgym.provenance import provenance

__all__ = ["POLICIES", "ExactScore", "Recording", "exact_score", "play", "record", "recorded_policy"]

Array = NDArray[Any]

POLICIES = ("optimal", "medium", "random")
MEDIUM_SKILL = 0.5
BATCH = 1_000  # episodes that are played together: part of what a seed means
SIMULATED_EPISODES = 10_000  # of a score that has to be simulated


@dataclass(frozen=True)
class ExactScore:
    """What a recorded policy is worth, and the scale that makes returns comparable.

    ``value`` and the two ends of the scale, ``reference`` (skill 0) and ``optimum`` (skill 1; the best known value
    where only bounds are known), are in the market's criterion: under CARA certainty equivalents. ``mean_return``,
    ``reference_return`` and ``optimum_return`` are the expected sums of rewards: under CARA expected utilities,
    otherwise the same. ``error`` is a bound of the numerical error of ``value``, ``stderr`` the standard error where it
    is ``simulated``.
    """

    value: float
    skill: float
    error: float
    stderr: float
    method: str
    level: str
    reference: float
    optimum: float
    mean_return: float
    reference_return: float
    optimum_return: float


@dataclass(frozen=True)
class Recording:
    """A dataset that was written."""

    policy: str
    dataset_id: str
    folder: Path  # of the dataset: ``minari.MinariDataset(folder / "data")``
    episodes: int
    steps: int
    mean_return: float  # of the recorded episodes
    stderr: float
    score: ExactScore


def exact_score(env: Any, policy: Any) -> ExactScore:
    """What a policy is worth at its mode (without one: as it acts); exactly where states are finitely many."""
    base = environment_of(env)
    baseline = baseline_of(base)
    bounds, reference, problem = baseline.bounds(), baseline.reference_value(), baseline.problem
    optimum, aversion = bounds.lower, 0.0
    if problem is None or not policy.markov:  # nothing to tabulate
        result = score(base, policy, episodes=SIMULATED_EPISODES)
        value, error, stderr, method = result.value, result.value_error, result.stderr, result.method
    else:
        table, method = tabulated(problem, policy, True)
        value, error, stderr = criterion_value(problem, table), problem.tolerance, 0.0
        aversion = 0.0 if problem.criterion.exponents is None else -float(problem.criterion.exponents[0])

    def summed(equivalent: float) -> float:
        with np.errstate(over="ignore"):
            return float(-np.exp(-aversion * equivalent)) if aversion else equivalent

    return ExactScore(
        value=value,
        skill=(value - reference) / (optimum - reference) if optimum > reference else float("nan"),
        error=error,
        stderr=stderr,
        method=method,
        level=bounds.level,
        reference=reference,
        optimum=optimum,
        mean_return=summed(value),
        reference_return=summed(reference),
        optimum_return=summed(optimum),
    )


def recorded_policy(env: Any, name: str, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """A policy to record by name, one of `POLICIES`, and what is to be said of it.

    Raises
    ------
    ValueError
        For another name.
    """
    base = environment_of(env)
    if name == "optimal":
        word = "optimum" if level_of(base) != "bracketed" else "best known policy"
        return best_known_policy(base), {"description": f"the {word}"}
    if name == "medium":
        policy = perturbed_optimum(base, MEDIUM_SKILL, seed)
        if isinstance(policy, NoisyPolicy):
            text = f"the optimum's action with uniform noise up to {policy.noise:g} in each component"
            return policy, {"description": text, "noise": policy.noise}
        text = f"the optimum's action, or with the probability {policy.probability:g} the random policy's"
        return policy, {"description": text, "probability": policy.probability}
    if name == "random":
        return random_policy(base, seed), {"description": "random actions"}
    raise ValueError(f"policy {name!r} is not allowed: it must be one of {', '.join(POLICIES)}")


def play(env: Any, policy: Any, count: int, seed: int) -> list[dict[str, Array]]:
    """Episodes of ``count`` rows of a batch; row ``i`` is seeded ``seed + i``.

    Returns
    -------
    list of dict
        ``observations`` (T + 1, D), ``actions`` (T, A), ``rewards`` (T,) and ``terminations`` (T,) of each episode.
    """
    envs = environment_of(env).make_batch(count)
    seen, played, earned, ended = [], [], [], []
    lengths, space = np.zeros(count, dtype=np.int64), envs.single_action_space
    for step in episodes(envs, policy, seed):
        actions = np.asarray(step.decision.actions, dtype=space.dtype)
        seen.append(step.decision.observations)
        played.append(actions.clip(space.low, space.high) if isinstance(space, gymnasium.spaces.Box) else actions)
        earned.append(step.rewards)
        ended.append(step.terminated)
        lengths += step.running
    seen.append(step.observations)
    envs.close()
    return [
        {
            "observations": np.stack([step[i] for step in seen[: length + 1]]),
            "actions": np.stack([step[i] for step in played[:length]]),
            "rewards": np.array([step[i] for step in earned[:length]]),
            "terminations": np.array([step[i] for step in ended[:length]]),
        }
        for i, length in enumerate(lengths)
    ]


@contextmanager
def _minari_root(folder: Path) -> Iterator[None]:
    """Minari keeps everything below this folder, and nothing in the home directory."""
    name = "MINARI_DATASETS_PATH"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _write(
    root: Path, dataset_id: str, env: Any, episodes: list[dict[str, Array]], seeds: list[int], entry: Mapping[str, Any]
) -> None:
    """One dataset below a folder, through Minari."""
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(id=i, seed=seed, truncations=np.zeros(len(part["rewards"]), dtype=np.bool_), **part)
        for i, (seed, part) in enumerate(zip(seeds, episodes, strict=True))
    ]
    with _minari_root(root), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`(code_permalink|author_email)` is set to None")
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env,
            eval_env=env,
            algorithm_name=entry["policy"],
            author="mmgym",
            description=f"{entry['environment']['id']}: {entry['description']}",
            ref_min_score=entry["score"]["reference_return"],
            ref_max_score=entry["score"]["optimum_return"],
            num_episodes_average_score=0,  # they are not averages
        )
    dataset.storage.update_metadata({"mmgym": entry})


def record(
    env_id: str,
    folder: str | Path,
    *,
    policies: Mapping[str, Any] | Sequence[str] = POLICIES,
    episodes: int = 1_000,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Recording]:
    """Write one Minari dataset for each policy.

    Parameters
    ----------
    env_id : str
    folder : path
        Root of the datasets, which are ``<env_id>/<policy>-v0`` below it; what `minari` knows as
        ``MINARI_DATASETS_PATH``.
    policies : list of str, or mapping of str to (Policy or str), optional
        What to record, at its mode if it has one: names of `POLICIES` (all three by default: the optimum, the optimum
        perturbed to skill 0.5, and the random policy), or policies by the name of their dataset.
    episodes : int
        Of each dataset.
    seed : int
        Of the recording, >= 0: environments and policies get seeds derived from it and from the policy's place.
    arguments : mapping, optional
        Constructor arguments of the environment.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    list of Recording
        Reference scores are in each dataset's metadata: Minari's ``ref_min_score`` is the return of skill 0 and
        ``ref_max_score`` that of the optimum, so that ``minari.get_normalized_score`` is skill; ``mmgym`` has the
        policy's own score (see `ExactScore`), the seed and the versions. Nothing is written outside ``folder``.

    Raises
    ------
    ValueError
        If an argument is out of range, or a dataset is there already.
    ImportError
        Without the extra ``offline``.
    """
    try:
        import_module("minari")
        import_module("h5py")  # Minari's default format
    except ImportError as error:
        raise ImportError("recording needs Minari and h5py: pip install 'mmgym[offline]'") from error
    if episodes < 1 or seed < 0:
        raise ValueError(f"episodes = {episodes} must be >= 1 and seed = {seed} must be >= 0")
    root, arguments = Path(folder).resolve(), dict(arguments or {})  # Minari takes whole paths only
    env = gymnasium.make(env_id, **arguments)
    env_id = env_id.rpartition(":")[2]  # datasets name no module
    wanted: dict[str, Any] = dict(policies) if isinstance(policies, Mapping) else {name: name for name in policies}
    _check_names(root / env_id, wanted)
    root.mkdir(parents=True, exist_ok=True)
    about = {"environment": {"id": env_id, "arguments": arguments}, "seed": seed, "episodes": episodes}
    with tqdm(total=len(wanted) * episodes, unit="episode", desc=env_id, disable=not progress) as bar:
        written = [_record_one(root, env, place, *named, about, bar) for place, named in enumerate(wanted.items())]
    env.close()
    return written


def _check_names(home: Path, names: Iterable[str]) -> None:
    """Refuse names of policies that are not plain, and datasets that are there."""
    for name in names:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"policy name {name!r} is not allowed: letters, digits, - and _ only")
        if (home / f"{name}-v0").exists():
            raise ValueError(f"{home / f'{name}-v0'} is there already: choose another folder")


def _record_one(
    root: Path, env: Any, place: int, name: str, policy: Any, recording: dict[str, Any], bar: Any
) -> Recording:
    """Play and write the dataset of one policy; its place among the others is part of its seeds."""
    places = np.random.SeedSequence([derived_seed(recording["seed"], "recording"), place])
    base_seed, policy_seed = map(int, places.generate_state(2, np.uint64))
    notes: dict[str, Any] = {"description": f"the policy {name!r}"}
    if isinstance(policy, str):
        policy, notes = recorded_policy(env, policy, policy_seed)
    seeds = [(base_seed + i) % 2**64 for i in range(recording["episodes"])]
    about = {"policy": name, **notes, **recording}
    exact, parts = exact_score(env, policy), []
    for first in range(0, len(seeds), BATCH):
        count = min(BATCH, len(seeds) - first)
        parts += play(env, policy, count, seeds[first])
        bar.update(count)
    entry = {**about, "score": dict(vars(exact)), **provenance()}
    dataset_id = f"{about['environment']['id']}/{about['policy']}-v0"
    with tempfile.TemporaryDirectory(dir=root, prefix=".recording-") as scratch:
        _write(Path(scratch), dataset_id, env, parts, seeds, json.loads(json.dumps(entry)))
        target = root / dataset_id
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(scratch) / dataset_id, target)
    returns = np.array([part["rewards"].sum() for part in parts])
    spread = float(returns.std(ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else float("nan")
    steps = sum(len(part["rewards"]) for part in parts)
    return Recording(about["policy"], dataset_id, target, len(seeds), steps, float(returns.mean()), spread, exact)
