"""Learning in the mean-field game: populations that answer themselves, exactly or by training.

The algorithms are those of `mmgym.baselines.mean_field.learning`; of ``deep_`` ones a network plays the populations,
which learns their tables (`mmgym.agents.table_network`). With ``learner: exact`` they take best answers; else,
in each round, a learner trains one taker against the flow of the population so far (a table file, `population=`), and
her depths join the mixture; with ``independent``, a learner of Stable-Baselines3 trains all takers of one game together
(`mmgym.agents.independent_takers`). After each round the population's exploitability is computed exactly; with
``maker`` the maker is trained along, against the population's flow, which does not depend on her.

An algorithm ends before its rounds where it has found the equilibrium, or left it by far: see `DIVERGED`.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.agents.config import TABLE_NETWORK, Config, load_config, read_yaml, remembers
from mmgym.agents.runs import MOST_SEED, derived_seed
from mmgym.arguments import integer
from mmgym.baselines.catalogue import environment_of, problem_of, table_policy
from mmgym.baselines.frozen import Table, tabulate
from mmgym.baselines.mean_field import maker_exploitability, population_exploitability, taker_exploitability
from mmgym.baselines.mean_field.learning import ALGORITHMS, NETWORKS, Population, checked_rate, learn
from mmgym.baselines.tables import write_table
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.plain_files import replacing, shortened, write_json
from mmgym.plot import COLORS, new_figure, plain, write_figure
from mmgym.printing import write_table as write_csv
from mmgym.provenance import provenance
from mmgym.registration import check_foreign_environment

__all__ = ["GameResult", "Settings", "load_game", "play_game"]

Array = NDArray[np.float64]
NAMES = ("learn_game",)  # what the names of shipped configurations start with
DIVERGED = 5.0  # times the constant quote's exploitability: an algorithm with exact answers stops beyond
FOUND = 1e-8  # times the same: it stops below
LEAST = 1e-10  # in the picture
PARTS = ("answer_regret", "maker_gap")  # exploitabilities of learners beside the population's
KEYS = (
    "environment", "arguments", "algorithms", "learner", "rounds", "timesteps", "maker", "maker_timesteps", "network",
)  # fmt: skip
DEEP = "deep_"  # what the names of algorithms start with whose populations a network plays


class Settings(NamedTuple):
    """A game to learn."""

    environment: str  # id of the taker
    arguments: dict[str, Any]  # of the game
    algorithms: dict[str, float | None]  # rates by name; None for the usual one
    learner: str  # "exact", or name or path of a training configuration
    rounds: int
    timesteps: int  # of the learner in a round
    maker: str | None  # id of the maker, trained along
    maker_timesteps: int
    network: dict[str, Any]  # of deep algorithms: `net_arch` and `steps` of `TableNetwork`


class GameResult(NamedTuple):
    """What was learned."""

    curve: pd.DataFrame  # a row per algorithm and round
    summary: pd.DataFrame  # a row per algorithm
    constant: float  # exploitability of the constant quote's population
    folder: Path


def load_game(name_or_path: str) -> tuple[Settings, str]:
    """Settings of a game from a configuration file, and the file's name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a key or a value is not allowed.
    """
    content, source = read_yaml(name_or_path, NAMES)
    if not isinstance(content, dict) or not set(content) <= set(KEYS) or "environment" not in content:
        keys = shortened(sorted(map(str, content)) if isinstance(content, dict) else content)
        raise ValueError(f"{source}: the keys must be among {', '.join(KEYS)}, with environment, not {keys}")

    def whole(key: str, default: int) -> int:
        value = content.get(key, default)
        if type(value) is not int or not 1 <= value <= 10**15:
            raise ValueError(f"{source}: {key} = {shortened(value)} must be a whole number >= 1 and <= 10^15")
        return value

    arguments, environment, maker = content.get("arguments") or {}, content["environment"], content.get("maker")
    if not isinstance(arguments, dict) or {"population", "reward"} & set(arguments):
        raise ValueError(
            f"{source}: arguments = {shortened(arguments)} must be a mapping, without population and reward"
        )
    roles = ("environment", "taker", environment, TakerParams), ("maker", "maker", maker, MakerParams)
    for key, name, env_id, role in roles:
        if key == "environment" or env_id is not None:
            check_foreign_environment(env_id, arguments, source)
        if env_id is None:
            continue
        must = f"{source}: {key} = {env_id!r} must be an id of the mean field's {name}"
        try:  # against the constant quote: an equilibrium may take minutes
            params = environment_of(env_id, population="constant", **arguments).params
        except TypeError as error:
            raise ValueError(f"{must}: {error}") from error
        if not isinstance(params, role):
            raise ValueError(must)
    learner = content.get("learner", "exact")
    if not isinstance(learner, str):
        raise ValueError(f"{source}: learner = {shortened(learner)} must be exact, or a configuration's name or path")
    algorithms = content.get("algorithms", {"fictitious_play": None})
    if not isinstance(algorithms, dict) or not algorithms:
        raise ValueError(f"{source}: algorithms = {shortened(algorithms)} must be a mapping of names to rates")
    if learner == "exact" and maker is not None:
        raise ValueError(f"{source}: maker = {maker!r} is trained along: it needs a learner that trains")
    network = content.get("network", {})
    if not TABLE_NETWORK.allows(network):
        raise ValueError(f"{source}: network = {shortened(network)} must be {TABLE_NETWORK.words}")
    if network and not any(str(name).startswith(DEEP) for name in algorithms):
        raise ValueError(f"{source}: network = {shortened(network)} is used by none of the algorithms: {DEEP}... are")
    try:
        for name, rate in algorithms.items():
            _check_algorithm(name, rate, learner)
        for env_id in (environment, maker):
            if env_id is not None and learner != "exact":
                trained = load_config(learner, env_id)
                if remembers(trained.algorithm, trained.hyperparameters):
                    raise ValueError("it has a memory, but answers must be functions of the observation")
                if "independent" in algorithms and trained.algorithm not in ("a2c", "ppo"):
                    raise ValueError("independent takers need the learner ppo or a2c")
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: algorithms or learner = {shortened(learner)} are not allowed: {error}") from error
    settings = Settings(
        environment, arguments, algorithms, learner, whole("rounds", 5), whole("timesteps", 500_000), maker,
        whole("maker_timesteps", 500_000), network,
    )  # fmt: skip
    return settings, source


def _tabular(algorithm: Any) -> str:
    """The algorithm that a deep one is, or itself."""
    return str(algorithm).removeprefix(DEEP)


def _check_algorithm(algorithm: Any, rate: float | None, learner: str) -> None:
    deep = str(algorithm).startswith(DEEP)
    if deep and (_tabular(algorithm) not in NETWORKS or learner != "exact"):
        deep_ones = ", ".join(DEEP + name for name in NETWORKS)
        raise ValueError(
            f"algorithm = {shortened(algorithm)} is not allowed: deep ones are {deep_ones}, with the learner exact"
        )
    checked_rate(_tabular(algorithm) if deep else algorithm, rate, learner != "exact")


class _ExactLearner:
    """Trains a network on its exact value, from where it was in the last round."""

    def __init__(self, config: Config, env_id: str, seed: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.config, self.env_id, self.seed = config, env_id, seed
        self.network: Any = None

    def respond(self, arguments: dict[str, Any], timesteps: int) -> Any:
        from mmgym.agents.exact_gradient import ExactGradient, network_of
        from mmgym.baselines.catalogue import expansions_of

        env, settings = environment_of(self.env_id, **arguments), self.config.hyperparameters
        if self.network is None:
            self.network = network_of(env, settings["net_arch"], self.seed)
        learner = ExactGradient(expansions_of(env), self.network, settings["inner_steps"], self.seed)
        while learner.steps < timesteps and learner.iterate():
            pass
        learner.finish()
        return self.network


class _SampledLearner:
    """Trains a Stable-Baselines3 algorithm, from where it was in the last round."""

    def __init__(self, config: Config, env_id: str, seed: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.config, self.env_id, self.seed = config, env_id, seed
        self.model: Any = None
        self.rounds = 0

    def respond(self, arguments: dict[str, Any], timesteps: int) -> Any:
        from mmgym.agents.checkpoints import restore_statistics, statistics_of
        from mmgym.agents.policies import as_policy
        from mmgym.agents.train import build_env, build_model

        venv = build_env(self.config, self.env_id, {**arguments, "reward": "expected"}, 1)
        if self.model is None:
            self.model = build_model(self.config, venv, self.seed, None)
        else:
            restore_statistics(venv, statistics_of(self.model.get_env()))
            self.model.set_env(venv, force_reset=True)
        self.rounds += 1
        venv.seed(derived_seed(self.seed, "environment") + self.rounds * self.config.n_envs)
        self.model.learn(timesteps, reset_num_timesteps=True)
        return as_policy(self.model)


class _IndependentLearner:
    """Trains all takers of one game, with one network; rates of learning fall over all rounds together."""

    def __init__(self, config: Config, settings: Settings, seed: int) -> None:
        import torch
        from stable_baselines3.common.vec_env import VecNormalize

        from mmgym.agents.independent_takers import OneCrowd
        from mmgym.agents.train import build_model

        torch.set_num_threads(1)
        arguments = {**gymnasium.spec(settings.environment).kwargs, **settings.arguments}
        venv: Any = OneCrowd(config.n_envs, **arguments)
        venv.seed(derived_seed(seed, "environment") >> 1)
        if config.normalize:
            venv = VecNormalize(venv, **config.normalize)
        self.model = build_model(config, venv, seed, None)
        schedule, total = self.model.lr_schedule, settings.rounds * settings.timesteps
        self.model.lr_schedule = lambda _: schedule(max(1.0 - self.model.num_timesteps / total, 0.0))

    def respond(self, arguments: dict[str, Any], timesteps: int) -> Any:
        from mmgym.agents.policies import as_policy

        self.model.learn(timesteps, reset_num_timesteps=False)
        return as_policy(self.model)


def _learner(settings: Settings, env_id: str, seed: int, algorithm: str) -> Any:
    config = load_config(settings.learner, env_id)
    if algorithm == "independent" and env_id == settings.environment:
        return _IndependentLearner(config, settings, seed)
    kind = _ExactLearner if config.algorithm == "exact_gradient" else _SampledLearner
    return kind(config, env_id, seed)


def play_game(
    settings: Settings, folder: str | Path, *, seed: int = 0, tables: bool = False, progress: bool = True
) -> GameResult:
    """Learn a game: rounds of answers, the exact exploitability after each of them.

    The folder gets ``rounds.csv`` (rewritten after each round), ``exploitability.png``, ``README.md`` and ``game.json``
    (settings, versions, commit).

    Parameters
    ----------
    settings : Settings
    folder : path
        Made if it is missing; files of an earlier game in it are replaced.
    seed : int
        From 0 to 2^32 - 1, of the learners.
    tables : bool
        Also write ``<algorithm>.npz``, the last population, a table file: `population=` of an environment; and
        ``<algorithm>_maker.npz`` with a maker. Mixtures are large.
    progress : bool

    Raises
    ------
    ValueError
        If the seed is out of range.
    """
    integer("seed", seed, low=0, high=MOST_SEED)
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    plain_env = environment_of(settings.environment, population="constant", **settings.arguments)
    problem = problem_of(plain_env)
    depths = np.tile(1.0 / plain_env.params.fill_decay, (problem.num_steps, problem.num_states, 1))
    constant = population_exploitability(plain_env, depths).exploitability
    rows: list[dict[str, Any]] = []
    total = settings.rounds * len(settings.algorithms)
    with (
        tempfile.TemporaryDirectory() as passing,
        tqdm(total=total, unit="round", desc=str(home), disable=not progress) as bar,
    ):
        for done, algorithm in enumerate(settings.algorithms, 1):
            started = time.process_time()
            game = _Game(settings, algorithm, home if tables else Path(passing), seed)
            for row in game.rounds(plain_env.params.game):
                row["relative"] = row["exploitability"] / constant
                row["core_seconds"] = time.process_time() - started
                rows.append(row)
                write_csv(pd.DataFrame(rows), home / "rounds.csv")
                bar.update(1)
                bar.set_postfix_str(f"{algorithm}: {row['relative']:.4%}")
                if row["relative"] <= FOUND or (settings.learner == "exact" and row["relative"] >= DIVERGED):
                    break
            bar.update(done * settings.rounds - bar.n)
    curve = pd.DataFrame(rows)
    summary = _summary(curve, settings)
    _draw(curve, constant, home / "exploitability.png")
    record = {"settings": settings._asdict(), "seed": seed, "constant": constant, **provenance()}
    write_json(home / "game.json", record)
    with replacing(home / "README.md") as part:
        part.write_text(_page(summary, record), encoding="utf-8")
    return GameResult(curve, summary, constant, home)


class _Game:
    """A game that one algorithm plays: who learns, and the crowd that the next answer meets."""

    def __init__(self, settings: Settings, algorithm: str, home: Path, seed: int) -> None:
        self._settings, self._algorithm, self._home, self._crowd = settings, algorithm, home, "constant"
        self._taker = None if settings.learner == "exact" else _learner(settings, settings.environment, seed, algorithm)
        self._maker = None if settings.maker is None else _learner(settings, settings.maker, seed, algorithm)
        self._gap: float | None = None
        self._seed = seed

    def rounds(self, game: Any) -> Iterator[dict[str, Any]]:
        """Answers to the population; the tables that it leads to are written."""
        settings, file = self._settings, self._home / f"{self._algorithm}.npz"
        env = environment_of(settings.environment, population="constant", **settings.arguments)
        respond = None if self._taker is None else self._respond
        rate = settings.algorithms[self._algorithm]
        network = self._network(env) if self._algorithm.startswith(DEEP) else None
        played = learn(game, _tabular(self._algorithm), settings.rounds, rate, respond, network)
        for number, state in enumerate(played, 1):
            population = state.population
            row: dict[str, Any] = {
                "algorithm": self._algorithm,
                "round": number,
                "answers": state.answers,
                "exploitability": population.exploitability,
                "value": population.value,
            }
            _write_population(file, env, population.table)
            self._crowd = str(file)
            if self._gap is not None:
                row["answer_regret"] = self._gap
            if self._maker is not None and settings.maker is not None:
                row["maker_gap"] = self._train_maker(settings.maker)
                row["total"] = population.exploitability + row["maker_gap"]
            yield row

    def _network(self, env: Any) -> Any:
        from mmgym.agents.table_network import TableNetwork

        problem, params = problem_of(env), env.params
        seen = np.stack([problem.observations(n) for n in range(problem.num_steps)])
        return TableNetwork(seen, params.fill_decay, params.max_depth, **self._settings.network, seed=self._seed)

    def _respond(self, _: Population) -> Array:
        """A trained answer to the crowd."""
        assert self._taker is not None
        market = {**self._settings.arguments, "population": self._crowd}
        env = environment_of(self._settings.environment, **market)
        table = tabulate(problem_of(env), self._taker.respond(market, self._settings.timesteps))
        if self._algorithm != "independent":  # who learns against no given crowd
            self._gap = taker_exploitability(env, table).exploitability
        return table.controls

    def _train_maker(self, maker: str) -> float:
        """The maker's regret against the crowd, after training; her table is written."""
        assert self._maker is not None
        market = {**self._settings.arguments, "population": self._crowd}
        env = environment_of(maker, **market)
        table = tabulate(problem_of(env), self._maker.respond(market, self._settings.maker_timesteps))
        _write_population(self._home / f"{self._algorithm}_maker.npz", env, table)
        return float(maker_exploitability(env, table).exploitability)


def _write_population(path: Path, env: Any, table: Table) -> None:
    """A table file."""
    write_table(table_policy(problem_of(env), table), env, path, deterministic=table.weights is None)


def _summary(curve: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """What each algorithm came to: a row each."""
    table = []
    for algorithm, rows in curve.groupby("algorithm", sort=False):
        last, usual = rows.iloc[-1], ALGORITHMS.get(_tabular(algorithm))
        if settings.learner == "exact" and last["relative"] >= DIVERGED:
            end = f"diverged: above {DIVERGED:g} times the constant quote's"
        elif last["relative"] <= FOUND:
            end = "equilibrium found"
        else:
            end = "all rounds played" if len(rows) == settings.rounds else "no way on found"
        rate = settings.algorithms[str(algorithm)]
        named = {
            "algorithm": algorithm,
            "rate": "" if usual is None else f"{usual if rate is None else rate:g}",
            "rounds": len(rows),
            "answers": last["answers"],
        }
        worth = {
            "first": f"{rows['exploitability'].iloc[0]:.6g}",
            "least": f"{rows['exploitability'].min():.3g}",
            "last": f"{last['exploitability']:.3g}",
            **{f"last {name.replace('_', ' ')}": f"{last[name]:.3g}" for name in PARTS if name in rows},
        }
        table.append({**named, **worth, "core seconds": round(last["core_seconds"], 1), "end": end})
    return pd.DataFrame(table)


def _page(summary: pd.DataFrame, record: dict[str, Any]) -> str:
    """A page of a game: what was played, what came of it, and what it was made with."""
    settings, versions = record["settings"], record["versions"]
    rows = [list(summary.columns), ["---"] * summary.shape[1], *summary.astype(str).to_numpy().tolist()]
    arguments = "".join(f", {name} {value}" for name, value in settings["arguments"].items())
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""\
# Learning in {settings["environment"]}{arguments}

`mmgym learn_game` wrote this page, `rounds.csv` (every round) and `game.json` (settings, versions, commit). Learner:
{settings["learner"]}, seed {record["seed"]}. Exploitability is what one taker gains who leaves the population for the
best answer to its flow, exactly; the population of the constant quote has {record["constant"]:.6g}, an equilibrium 0.
`answers` counts the best answers that were taken until the last round. An algorithm with exact answers stops above
{DIVERGED:g} times the constant quote's exploitability.

![Exploitability of the populations](exploitability.png)

{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}

Made with {made}; commit {record["commit"]}.
"""


def _draw(curve: pd.DataFrame, constant: float, path: Path) -> None:
    """Exploitability by answers, relative to the constant quote's population."""
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    colors: dict[str, Any] = {}
    for algorithm, rows in curve.groupby("algorithm", sort=False):
        color = colors.setdefault(_tabular(algorithm), COLORS[len(colors) % len(COLORS)])
        named: Any = {"color": color, "markersize": 3.0}
        label = str(algorithm).replace("_", " ")
        line = "o--" if label.startswith("deep") else "o-"  # beside its table
        axes.loglog(rows["answers"], rows["relative"].clip(lower=LEAST), line, label=label, **named)
        for column, style in zip(PARTS, ("s:", "^--"), strict=True):
            if column in rows:
                beside = f"{label}: {column.replace('_', ' ')}"
                axes.loglog(rows["answers"], (rows[column] / constant).clip(lower=LEAST), style, label=beside, **named)
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_xlabel("best answers taken")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylabel(f"exploitability / {constant:.4g}")
    axes.set_title("Exploitability of the population, exact; 1: all quote constantly")
    axes.legend(fontsize="small")
    plain(axes)
    write_figure(figure, path)
