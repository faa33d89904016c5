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
paper's parameters, `mmgym learn_game learn_game_decoupled`, the game is virtually decoupled, and the first best answer
ends it.)

$ mmgym learn_game learn_game

                  algorithm  rate  rounds  answers  least     last      end
              best_response             4        4  64.3      2.87e+03  diverged: above 5 times the constant quote's
            fictitious_play            12       12  64.3      507       all rounds played
     damped_fictitious_play  0.09      12       12  54.4      54.4      all rounds played
              prior_descent  0.03      12       12  23.6      23.6      all rounds played
             mirror_descent  0.05      12       12  12.9      12.9      all rounds played
       deep_fictitious_play            12       12  64.4      1.16e+03  all rounds played
deep_damped_fictitious_play  0.09      12       12  42.1      42.1      all rounds played
         deep_prior_descent  0.03      12       12  26.1      26.1      all rounds played
        deep_mirror_descent  0.05      12       12  15.3      15.3      all rounds played
                   anderson            12       27  8.25      8.25      all rounds played
                     newton             3       91  3.18e-12  3.18e-12  equilibrium found

Rates that are too large do not settle: mirror descent at 0.1 comes to 17 in ten rounds, and to 62 in forty; at 0.05 it
comes to 1.6. (With num_steps 60, damped fictitious play comes to 47.7 in twelve rounds, from 61.8 in the first.)

Of deep ones a network plays the populations: fictitious play with an average network, Munchausen mirror descent
(Lauriere et al. 2022), with exact answers and gradients. An average of intensities is not a mixture of takers: the
uniform one comes to 1,424 in six rounds with a table for the network too.

`mmgym learn_game learn_game_independent` lets 204 takers of one game learn together with PPO and one network.
`help(mmgym.baselines.mean_field.learning)` says what the algorithms are and where they come from.

In Python, of the population that plays one policy:

    from mmgym.baselines import paper_policies
    from mmgym.baselines.mean_field import population_exploitability

    env_id = "mmgym/MeanFieldTaker-v0"
    print(population_exploitability(env_id, paper_policies(env_id)["constant"]).exploitability)  # 645.28...

MFGLib and OpenSpiel take games as objects, not as files. The same game for their algorithms, with these depths:

    import gymnasium, mmgym
    from mmgym.adapters.mfglib import mfglib_environment
    from mmgym.adapters.open_spiel import open_spiel_game

    game = gymnasium.make(env_id).unwrapped.params.game
    theirs = mfglib_environment(game, depths=[0.2, 0.4, 0.6])  # of bids and of asks, in dollars
    theirs = open_spiel_game(game, depths=[0.2, 0.4, 0.6])
"""

TEXT = "takers of the mean field learn against their own population"
LEARN_GAME = Command("learn_game", TEXT, _add_game_options, _learn_game, GAME)
