"""Learning in the mean-field game: a population that answers itself, and a maker who answers the population.

In each round a learner trains one taker against the flow of the population so far (a table file, `population=`); her
depths join the population. With ``averaging: uniform`` the population is the mixture of all answers so far (fictitious
play: Cardaliaguet & Hadikhanlou 2017; Perrin et al. 2020); with a number ``a`` in (0, 1] it moves to ``(1 - a)`` of
itself and ``a`` of the answer, so that 1 is iterated best response. A mixture is played as one table of weights: in
each step and state every kind counts by the part of it that is there, so that the flow is that of the mixture. After
each round the population's exploitability is computed exactly; with ``maker`` the maker is trained along, against the
population's flow, which does not depend on her.
"""

import time
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
from mmgym.baselines.frozen import FrozenProblem, Table, state_laws, tabulate
from mmgym.baselines.mean_field import maker_exploitability, population_exploitability, taker_exploitability
from mmgym.baselines.tables import write_table
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.plain_files import replacing, shortened, write_json
from mmgym.plot import new_figure, write_figure
from mmgym.provenance import provenance
from mmgym.registration import check_foreign_environment

__all__ = ["GameResult", "Mixture", "Settings", "load_game", "play_game"]

Array = NDArray[np.float64]
NAMES = ("fictitious_play",)  # what the names of shipped configurations start with
KEYS = ("environment", "arguments", "learner", "rounds", "timesteps", "averaging", "maker", "maker_timesteps")


class Settings(NamedTuple):
    """A game to learn."""

    environment: str  # id of the taker
    arguments: dict[str, Any]  # of the game
    learner: str  # name or path of a training configuration
    rounds: int
    timesteps: int  # of the learner in a round
    averaging: float | None  # None for uniform
    maker: str | None  # id of the maker, trained along
    maker_timesteps: int


class GameResult(NamedTuple):
    """What was learned."""

    curve: pd.DataFrame  # a row per round
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

    averaging = content.get("averaging", "uniform")
    if averaging != "uniform" and not (type(averaging) in (int, float) and 0.0 < averaging <= 1.0):
        raise ValueError(f"{source}: averaging = {shortened(averaging)} must be 'uniform' or a number in (0, 1]")
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
    learner = content.get("learner", "ppo")
    if not isinstance(learner, str):
        raise ValueError(f"{source}: learner = {shortened(learner)} must be the name or the path of a configuration")
    try:
        for env_id in (environment, maker):
            if env_id is not None:
                load_config(learner, env_id)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{source}: learner = {shortened(learner)} is not allowed: {error}") from error
    settings = Settings(
        environment, arguments, learner, whole("rounds", 5), whole("timesteps", 500_000),
        None if averaging == "uniform" else float(averaging), maker, whole("maker_timesteps", 500_000),
    )  # fmt: skip
    return settings, source


class Mixture:
    """A population of several kinds of takers, each with a table of depths and a share.

    Parameters
    ----------
    problem : FrozenProblem
        Of a taker: what one kind does in it does not depend on the crowd.
    """

    def __init__(self, problem: FrozenProblem) -> None:
        self.problem = problem
        self.tables: list[Array] = []
        self.laws: list[Array] = []
        self.shares: list[float] = []

    def add(self, table: Array, share: float) -> None:
        """Let a kind with this table (N, S, 2) have a share in (0, 1], and the others the rest."""
        self.shares = [old * (1.0 - share) for old in self.shares] if share < 1.0 else []
        if not self.shares:
            self.tables, self.laws, share = [], [], 1.0
        self.tables.append(table)
        self.laws.append(state_laws(self.problem, table)[:-1])
        self.shares.append(share)

    def table(self) -> Table:
        """The population as one table (N, S, M, 2) with weights (N, S, M)."""
        weights: Array = np.stack([share * law for share, law in zip(self.shares, self.laws, strict=True)], axis=-1)
        total = weights.sum(axis=-1, keepdims=True)
        shares = np.broadcast_to(np.array(self.shares), weights.shape)
        weights = np.where(
            total > 0.0, np.divide(weights, total, out=np.zeros_like(weights), where=total > 0.0), shares
        )
        weights /= weights.sum(axis=-1, keepdims=True)
        return Table(np.stack(self.tables, axis=2), weights)


class _ExactLearner:
    """Trains a network on its exact value, from where it was in the last round."""

    def __init__(self, config: Config, env_id: str, seed: int) -> None:
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

    The folder gets ``rounds.csv`` (rewritten after each round), ``exploitability.png``, ``population.npz`` (a table
    file: `population=` of an environment), ``maker.npz`` (with a maker) and ``game.json`` (settings, versions and
    results).

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
    import torch

    integer("seed", seed, low=0, high=MOST_SEED)
    torch.set_num_threads(1)
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    game = _Game(settings, home, seed)
    rows: list[dict[str, float]] = []
    with tqdm(total=settings.rounds, unit="round", desc=str(home), disable=not progress) as bar:
        for round_number in range(1, settings.rounds + 1):
            row = game.play_round(round_number)
            row["seconds"] = time.perf_counter() - started
            rows.append(row)
            with replacing(home / "rounds.csv") as part:
                pd.DataFrame(rows).to_csv(part, index=False)
            bar.update(1)
            bar.set_postfix(exploitability=f"{row['exploitability']:.6g}", relative=f"{row['relative']:.4%}")
    curve, constant = pd.DataFrame(rows), game.constant
    _draw(curve, constant, home / "exploitability.png")
    record = {"settings": settings._asdict(), "seed": seed, "constant": constant, "rounds": rows, **provenance()}
    write_json(home / "game.json", record)
    return GameResult(curve, constant, home)


class _Game:
    """A game between its rounds: who learns, the population so far and the crowd that the next answer meets."""

    def __init__(self, settings: Settings, home: Path, seed: int) -> None:
        self._settings, self._home, self._crowd = settings, home, "constant"
        plain = environment_of(settings.environment, population=self._crowd, **settings.arguments)
        problem = problem_of(plain)
        depths = np.full((problem.num_steps, problem.num_states, 2), 1.0 / plain.params.taker_fill_decay)
        self.constant = population_exploitability(plain, depths).exploitability
        self._taker = _learner(settings, settings.environment, seed)
        self._maker = None if settings.maker is None else _learner(settings, settings.maker, seed)
        self._population = Mixture(problem)

    def play_round(self, number: int) -> dict[str, float]:
        """Answers to the population; the tables that it leads to are written."""
        settings, file = self._settings, self._home / "population.npz"
        market = {**settings.arguments, "population": self._crowd}
        env = environment_of(settings.environment, **market)
        table = tabulate(problem_of(env), self._taker.respond(market, settings.timesteps))
        gap = taker_exploitability(env, table).exploitability
        self._population.add(table.controls, 1.0 / number if settings.averaging is None else settings.averaging)
        mixed = self._population.table()
        result = population_exploitability(env, mixed)
        row = {
            "round": number,
            "exploitability": result.exploitability,
            "relative": result.exploitability / self.constant,
            "answer_regret": gap,
            "value": result.value,
        }
        _write_population(file, env, mixed)
        self._crowd = str(file)
        if self._maker is not None and settings.maker is not None:
            market = {**settings.arguments, "population": self._crowd}
            env = environment_of(settings.maker, **market)
            table = tabulate(problem_of(env), self._maker.respond(market, settings.maker_timesteps))
            row["maker_gap"] = maker_exploitability(env, table).exploitability
            row["total"] = result.exploitability + row["maker_gap"]
            _write_population(self._home / "maker.npz", env, table)
        return row


def _write_population(path: Path, env: Any, table: Table) -> None:
    """A table file."""
    write_table(table_policy(problem_of(env), table), env, path, deterministic=table.weights is None)


def _draw(curve: pd.DataFrame, constant: float, path: Path) -> None:
    """Exploitability by round, relative to the constant quote's population."""
    figure = new_figure(6.0, 3.8)
    axes = figure.subplots()
    axes.semilogy(curve["round"], curve["relative"], "o-", label="population")
    axes.semilogy(
        curve["round"], np.maximum(curve["answer_regret"], 1e-12) / constant, "s:", label="answer to the crowd before"
    )
    if "maker_gap" in curve:
        axes.semilogy(curve["round"], np.maximum(curve["maker_gap"], 1e-12) / constant, "^--", label="maker")
    axes.axhline(0.02, color="gray", linewidth=0.8)
    axes.annotate("2 %", (curve["round"].iloc[-1], 0.02), ha="right", va="bottom", color="gray")
    axes.set_xlabel("round")
    axes.set_ylabel(f"exploitability / {constant:.2f}")
    axes.set_title("Exploitability, exact; 1 is the constant quote's population")
    axes.set_xticks(curve["round"])
    axes.legend()
    write_figure(figure, path)
