"""Learning in the mean-field game: populations that answer themselves, exactly or by training.

The algorithms are those of `mmgym.baselines.mean_field.learning`. With ``learner: exact`` they take best answers; else,
in each round, a learner trains one taker against the flow of the population so far (a table file, `population=`), and
her depths join the mixture. After each round the population's exploitability is computed exactly; with ``maker`` the
maker is trained along, against the population's flow, which does not depend on her.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.agents.config import Config, load_config, read_yaml
from mmgym.agents.runs import MOST_SEED, derived_seed
from mmgym.arguments import integer
from mmgym.baselines.catalogue import environment_of, params_of, problem_of, table_policy
from mmgym.baselines.frozen import Table, tabulate
from mmgym.baselines.mean_field import maker_exploitability, population_exploitability, taker_exploitability
from mmgym.baselines.mean_field.learning import Population, checked_rate, learn
from mmgym.baselines.tables import write_table
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.plain_files import replacing, shortened, write_json
from mmgym.plot import new_figure, write_figure
from mmgym.provenance import provenance
from mmgym.registration import check_foreign_environment

__all__ = ["GameResult", "Settings", "load_game", "play_game"]

Array = NDArray[np.float64]
NAMES = ("fictitious_play",)  # what the names of shipped configurations start with
KEYS = ("environment", "arguments", "algorithms", "learner", "rounds", "timesteps", "maker", "maker_timesteps")


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


class GameResult(NamedTuple):
    """What was learned."""

    curve: pd.DataFrame  # a row per algorithm and round
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
    for key, env_id, role in (("environment", environment, TakerParams), ("maker", maker, MakerParams)):
        if key == "environment" or env_id is not None:
            check_foreign_environment(env_id, arguments, source)
        if env_id is not None and not isinstance(params_of(env_id, **arguments), role):
            raise ValueError(f"{source}: {key} = {env_id!r} must be an id of the mean field's {key.replace('env', '')}")
    learner = content.get("learner", "exact")
    if not isinstance(learner, str):
        raise ValueError(f"{source}: learner = {shortened(learner)} must be exact, or a configuration's name or path")
    algorithms = content.get("algorithms", {"fictitious_play": None})
    if not isinstance(algorithms, dict) or not algorithms:
        raise ValueError(f"{source}: algorithms = {shortened(algorithms)} must be a mapping of names to rates")
    if learner == "exact" and maker is not None:
        raise ValueError(f"{source}: maker = {maker!r} is trained along: it needs a learner that trains")
    try:
        for name, rate in algorithms.items():
            checked_rate(name, rate, learner != "exact")
        for env_id in (environment, maker):
            if env_id is not None and learner != "exact":
                load_config(learner, env_id)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: algorithms or learner = {shortened(learner)} are not allowed: {error}") from error
    settings = Settings(
        environment, arguments, algorithms, learner, whole("rounds", 5), whole("timesteps", 500_000), maker,
        whole("maker_timesteps", 500_000),
    )  # fmt: skip
    return settings, source


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


def _learner(settings: Settings, env_id: str, seed: int) -> _ExactLearner | _SampledLearner:
    config = load_config(settings.learner, env_id)
    kind = _ExactLearner if config.algorithm == "exact_gradient" else _SampledLearner
    return kind(config, env_id, seed)


def play_game(settings: Settings, folder: str | Path, *, seed: int = 0, progress: bool = True) -> GameResult:
    """Learn a game: rounds of answers, the exact exploitability after each of them.

    The folder gets ``rounds.csv`` (rewritten after each round), ``exploitability.png``, ``<algorithm>.npz`` (the last
    population, a table file: `population=` of an environment), ``maker.npz`` (with a maker) and ``game.json``
    (settings, versions and results).

    Parameters
    ----------
    settings : Settings
    folder : path
        Made if it is missing; files of an earlier game in it are replaced.
    seed : int
        From 0 to 2^32 - 1, of the learners.
    progress : bool

    Raises
    ------
    ValueError
        If the seed is out of range.
    """
    integer("seed", seed, low=0, high=MOST_SEED)
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    plain = environment_of(settings.environment, population="constant", **settings.arguments)
    problem = problem_of(plain)
    depths = np.full((problem.num_steps, problem.num_states, 2), 1.0 / plain.params.taker_fill_decay)
    constant = population_exploitability(plain, depths).exploitability
    rows: list[dict[str, Any]] = []
    total = settings.rounds * len(settings.algorithms)
    with tqdm(total=total, unit="round", desc=str(home), disable=not progress) as bar:
        for algorithm in settings.algorithms:
            started = time.perf_counter()
            for row in _Game(settings, algorithm, home, seed).rounds(plain.params.game):
                row["relative"] = row["exploitability"] / constant
                row["seconds"] = time.perf_counter() - started
                rows.append(row)
                with replacing(home / "rounds.csv") as part:
                    pd.DataFrame(rows).to_csv(part, index=False)
                bar.update(1)
                bar.set_postfix(exploitability=f"{row['exploitability']:.6g}", relative=f"{row['relative']:.4%}")
    curve = pd.DataFrame(rows)
    _draw(curve, constant, home / "exploitability.png")
    record = {"settings": settings._asdict(), "seed": seed, "constant": constant, "rounds": rows, **provenance()}
    write_json(home / "game.json", record)
    return GameResult(curve, constant, home)


class _Game:
    """A game that one algorithm plays: who learns, and the crowd that the next answer meets."""

    def __init__(self, settings: Settings, algorithm: str, home: Path, seed: int) -> None:
        self._settings, self._algorithm, self._home, self._crowd = settings, algorithm, home, "constant"
        self._taker = None if settings.learner == "exact" else _learner(settings, settings.environment, seed)
        self._maker = None if settings.maker is None else _learner(settings, settings.maker, seed)
        self._gap = 0.0

    def rounds(self, game: Any) -> Iterator[dict[str, Any]]:
        """Answers to the population; the tables that it leads to are written."""
        settings, file = self._settings, self._home / f"{self._algorithm}.npz"
        env = environment_of(settings.environment, population="constant", **settings.arguments)
        respond = None if self._taker is None else self._respond
        rate = settings.algorithms[self._algorithm]
        for number, found in enumerate(learn(game, self._algorithm, settings.rounds, rate, respond), 1):
            population = found.population
            row: dict[str, Any] = {
                "algorithm": self._algorithm,
                "round": number,
                "answers": found.answers,
                "exploitability": population.exploitability,
                "value": population.value,
            }
            _write_population(file, env, population.table)
            self._crowd = str(file)
            if self._taker is not None:
                row["answer_regret"] = self._gap
            if self._maker is not None and settings.maker is not None:
                row["maker_gap"] = self._train_maker(settings.maker)
                row["total"] = population.exploitability + row["maker_gap"]
            yield row

    def _respond(self, _: Population) -> Array:
        """A trained answer to the crowd."""
        assert self._taker is not None
        market = {**self._settings.arguments, "population": self._crowd}
        env = environment_of(self._settings.environment, **market)
        table = tabulate(problem_of(env), self._taker.respond(market, self._settings.timesteps))
        self._gap = taker_exploitability(env, table).exploitability
        return table.controls

    def _train_maker(self, maker: str) -> float:
        """The maker's regret against the crowd, after training; her table is written."""
        assert self._maker is not None
        market = {**self._settings.arguments, "population": self._crowd}
        env = environment_of(maker, **market)
        table = tabulate(problem_of(env), self._maker.respond(market, self._settings.maker_timesteps))
        _write_population(self._home / "maker.npz", env, table)
        return float(maker_exploitability(env, table).exploitability)


def _write_population(path: Path, env: Any, table: Table) -> None:
    """A table file."""
    write_table(table_policy(problem_of(env), table), env, path, deterministic=table.weights is None)


def _draw(curve: pd.DataFrame, constant: float, path: Path) -> None:
    """Exploitability by round, relative to the constant quote's population."""
    figure = new_figure(6.0, 3.8)
    axes = figure.subplots()
    for algorithm, rows in curve.groupby("algorithm", sort=False):
        axes.semilogy(rows["round"], np.maximum(rows["relative"], 1e-12), "o-", label=algorithm)
        for column, style in (("answer_regret", "s:"), ("maker_gap", "^--")):
            if column in rows:
                label = f"{algorithm}: {column.replace('_', ' ')}"
                axes.semilogy(rows["round"], np.maximum(rows[column], 1e-12) / constant, style, label=label)
    axes.axhline(0.02, color="gray", linewidth=0.8)
    axes.annotate("2 %", (curve["round"].max(), 0.02), ha="right", va="bottom", color="gray")
    axes.set_xlabel("round")
    axes.set_ylabel(f"exploitability / {constant:.2f}")
    axes.set_title("Exploitability, exact; 1 is the constant quote's population")
    axes.legend(fontsize="small")
    write_figure(figure, path)
