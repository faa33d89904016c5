"""``mmgym tune``: settings of an algorithm, searched with a budget that others can have too."""

import argparse
import shlex
import sys

from mmgym.agents.commands.command import Command, UsageError, add_environment, add_output, environment_arguments
from mmgym.printing import show

__all__ = ["TUNE"]


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds {text}: must be whole numbers with commas, for example 100,101") from error


def _add_tune_options(parser: argparse.ArgumentParser) -> None:
    from mmgym.agents.algorithms import ALGORITHMS, EXACT_LEARNERS

    names = ", ".join(name for name in ALGORITHMS if name not in EXACT_LEARNERS)
    parser.add_argument("algorithm", metavar="ALGORITHM", help=f"whose settings: {names}")
    add_environment(parser)
    text = "of the study in all (default 20); what the folder has is not run again"
    parser.add_argument("--trials", type=int, default=20, help=text)
    text = "environment steps of each run (default 1e6)"
    parser.add_argument("--timesteps", type=int, default=1_000_000, help=text)
    text = "of each trial's runs (default 100,101); seeds that are reported must be others"
    parser.add_argument("--seeds", default="100,101", help=text)
    parser.add_argument("--folder", help="of the study (default runs/tune/ENVIRONMENT/ALGORITHM)")
    add_output(parser)


def _tune(options: argparse.Namespace) -> None:
    seeds = _seeds(options.seeds)
    from mmgym.agents.tune import tune

    folder, best = tune(
        options.algorithm,
        options.env,
        trials=options.trials,
        timesteps=options.timesteps,
        seeds=seeds,
        folder=options.folder,
        arguments=environment_arguments(options.set),
        progress=sys.stderr.isatty(),
    )
    show(best, options.output)
    words = ["mmgym", "train", str(folder / "best.yml"), "--env", options.env]
    for pair in options.set:
        words += ["--set", pair]
    print(f"\nwritten: {folder}/study.json, study.db, best.yml\nthe best on another seed: {shlex.join(words)} --seed 0")


STUDY = """\
A trial trains on every seed and counts with its mean exact skill at the end. From the sixth on it is pruned where the
best skill of its curve so far is below the median of earlier trials' at that point. Algorithms of one family have the
same search space; trials that fail are counted. After Ctrl-C, or with more --trials, the same command goes on.
"""

TEXT = "search an algorithm's settings in a market: trials pruned by exact skill"
TUNE = Command("tune", TEXT, _add_tune_options, _tune, STUDY)
