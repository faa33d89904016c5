"""``mmgym fictitious_play``: learning in the mean-field game."""

import argparse
from pathlib import Path

from mmgym.agents.commands.command import Command
from mmgym.printing import show

__all__ = ["FICTITIOUS_PLAY"]


def _add_game_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="configuration: a path, or the name of a shipped one (fictitious_play)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the results (default runs/<config>)")


def _fictitious_play(options: argparse.Namespace) -> None:
    from mmgym.agents.fictitious_play import load_game, play_game

    settings, source = load_game(options.config)
    folder = options.folder or Path("runs") / Path(source).stem
    result = play_game(settings, folder, seed=options.seed)
    print(f"{settings.environment}: the constant quote's population has the exploitability {result.constant:.8g}\n")
    show(result.curve)
    print(f"\nwritten: {folder}")


GAME = """\
Crowds of takers learn, by one algorithm after another; after each round the exploitability of the population, what one
of its takers could still gain against the flow that all of them make, is computed exactly. With strong impact the best
answer to a crowd overshoots: a crowd that plays it is more exploitable than the one before. (At the paper's own impact,
`mmgym fictitious_play fictitious_play_decoupled`, the game is virtually decoupled, and any algorithm ends at once.)

$ mmgym fictitious_play fictitious_play

`help(mmgym.baselines.mean_field.learning)` says what the algorithms are and where they come from.

In Python, of the population that plays one policy:

    from mmgym.baselines import paper_policies
    from mmgym.baselines.mean_field import population_exploitability

    env_id = "mmgym/MeanFieldTaker-v0"
    print(population_exploitability(env_id, paper_policies(env_id)["constant"]).exploitability)  # 645.28...
"""

TEXT = "takers of the mean field learn against their own population"
FICTITIOUS_PLAY = Command("fictitious_play", TEXT, _add_game_options, _fictitious_play, GAME)
