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
Each round trains an answer to the population so far and adds it to it; then the population's exploitability, what one
of its takers could still gain against the flow that all of them make, is computed exactly.

$ mmgym fictitious_play fictitious_play
mmgym/MeanFieldTaker-v0: the constant quote's population has the exploitability 645.28372

 round  exploitability    relative  answer_regret   value  maker_gap      total  seconds
     1       0.0990934 0.000153566      0.0990935 1552.09 0.00052361   0.099617  41.3029
     2      0.00847688 1.31367e-05     0.00847703 1552.18  0.0090132  0.0174901  84.7691
     3      0.00391427 6.06597e-06     0.00391437 1552.18 0.00226951 0.00618378  127.028

In Python, of the population that plays one policy:

    from mmgym.baselines import paper_policies
    from mmgym.baselines.mean_field import population_exploitability

    env_id = "mmgym/MeanFieldTaker-v0"
    print(population_exploitability(env_id, paper_policies(env_id)["constant"]).exploitability)  # 645.28...
"""

TEXT = "takers of the mean field learn against their own population"
FICTITIOUS_PLAY = Command("fictitious_play", TEXT, _add_game_options, _fictitious_play, GAME)
