"""``mmgym learn_game``: learning in the mean-field game."""

import argparse
from pathlib import Path

from mmgym.agents.commands.command import Command
from mmgym.printing import show

__all__ = ["LEARN_GAME"]


def _add_game_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="configuration: a path, or the name of a shipped one (learn_game)")
    parser.add_argument("--seed", type=int, default=0, help="of learners that train (default 0)")
    parser.add_argument("--folder", type=Path, help="of the results (default runs/<config>)")
    parser.add_argument("--tables", action="store_true", help="write the last populations too, for population=FILE")


def _learn_game(options: argparse.Namespace) -> None:
    from mmgym.agents.learn_game import load_game, play_game

    settings, source = load_game(options.config)
    folder = options.folder or Path("runs") / Path(source).stem
    result = play_game(settings, folder, seed=options.seed, tables=options.tables)
    print(f"{settings.environment}: the constant quote's population has the exploitability {result.constant:.8g}\n")
    show(result.summary)
    print(f"\nwritten: {folder} (README.md, rounds.csv, exploitability.png, game.json)")


GAME = """\
Crowds of takers learn, by one algorithm after another; after each round the exploitability of the population, what one
of its takers could still gain against the flow that all of them make, is computed exactly. Where a crowd pushes the
price hard, the best answer to it overshoots: a crowd that plays it is more exploitable than the one before. (With the
paper's parameters, `mmgym fictitious_play fictitious_play_decoupled`, the game is virtually decoupled, and the first
best answer ends it.)

$ mmgym fictitious_play fictitious_play

Of the constant quote's 553.01, these leave in their first rounds (with the rates of the file):

 round  best_response  fictitious_play  damped_fictitious_play  prior_descent  mirror_descent
     1          64.25            64.25                   64.25          91.98           60.08
     2         835.00           315.21                   68.81          57.83           38.16
     3        2052.36           594.05                   73.05          45.43           29.92
     4        3062.02           631.45                   76.29          37.94           26.12
     5        4164.09           629.82                   77.83          32.31           23.96
     6        4883.61           616.10                   77.40          28.64           22.14

`help(mmgym.baselines.mean_field.learning)` says what the algorithms are and where they come from.

In Python, of the population that plays one policy:

    from mmgym.baselines import paper_policies
    from mmgym.baselines.mean_field import population_exploitability

    env_id = "mmgym/MeanFieldTaker-v0"
    print(population_exploitability(env_id, paper_policies(env_id)["constant"]).exploitability)  # 645.28...
"""

TEXT = "takers of the mean field learn against their own population"
LEARN_GAME = Command("learn_game", TEXT, _add_game_options, _learn_game, GAME)
