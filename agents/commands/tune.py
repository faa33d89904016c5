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
    text = f"whose settings: {names}; or a benchmark file with the key tuning, without --env and what it says itself"
    parser.add_argument("algorithm", metavar="ALGORITHM", help=text)
    add_environment(parser, required=False)
    text = "of the study in all (default 20); what the folder has is not run again"
    parser.add_argument("--trials", type=int, help=text)
    text = "environment steps of each run (default 1e6)"
    parser.add_argument("--timesteps", type=int, help=text)
    text = "of each trial's runs (default 100,101); seeds that are reported must be others"
    parser.add_argument("--seeds", help=text)
    text = "of the study (default runs/tune/ENVIRONMENT/ALGORITHM, of a benchmark runs/tune/TITLE)"
    parser.add_argument("--folder", help=text)
    parser.add_argument("--workers", type=int, help="studies of a benchmark at a time (default one for each core)")
    add_output(parser)


def _tune(options: argparse.Namespace) -> None:
    if options.algorithm.endswith((".yml", ".yaml")) or options.algorithm.startswith("benchmark"):
        _tune_benchmark(options)
        return
    if options.env is None:
        raise UsageError("--env is missing: an algorithm is tuned in a market, see `mmgym list`")
    if options.workers is not None:
        raise UsageError(f"--workers {options.workers}: only with a benchmark file; {options.algorithm} is one study")
    seeds = _seeds(options.seeds or "100,101")
    from mmgym.agents.tune import tune

    folder, best = tune(
        options.algorithm,
        options.env,
        trials=20 if options.trials is None else options.trials,
        timesteps=1_000_000 if options.timesteps is None else options.timesteps,
        seeds=seeds,
        folder=options.folder,
        arguments=environment_arguments(options.set),
        progress=sys.stderr.isatty(),
    )
    show(best, options.output)
    other = next(seed for seed in range(len(seeds) + 1) if seed not in seeds)
    words = ["mmgym", "train", str(folder / "best.yml"), "--env", options.env]
    for pair in options.set:
        words += ["--set", pair]
    print(f"\nwritten: {folder}/study.json, study.db, best.yml")
    print(f"the best on another seed: {shlex.join(words)} --seed {other}")


def _tune_benchmark(options: argparse.Namespace) -> None:
    """Every study that a benchmark file asks for."""
    for name in ("env", "set", "trials", "timesteps", "seeds"):
        if getattr(options, name) not in (None, []):
            raise UsageError(f"--{name} is not allowed with a benchmark file, which says it itself")
    from mmgym.agents.benchmark import load_benchmark
    from mmgym.agents.studies import tune_benchmark

    benchmark = load_benchmark(options.algorithm)
    folder = options.folder or f"runs/tune/{benchmark.title}"
    table = tune_benchmark(
        benchmark, folder, workers=options.workers, imports=options.imports, progress=sys.stderr.isatty()
    )
    show(table, options.output)
    written = ", ".join(dict.fromkeys(f"{name}-tuned.yml" for name in table["algorithm"]))
    print(f"\nwritten: {folder}/{written}, and a folder for each market")


STUDY = """\
A trial trains on every seed and counts with its mean exact skill at the end. Once five are complete it is pruned
where the best skill of its curves so far is below the median of earlier trials' at that point. Algorithms of one family
have the same search space; trials that fail are counted. After Ctrl-C, or with more --trials, the same command goes on.

With a benchmark file there is a study of each of its algorithms whose names end with -tuned, in each market, all with
the same trials and seeds (`mmgym tune benchmark` is the one whose results are shipped).
"""

TEXT = "search an algorithm's settings in a market: trials pruned by exact skill"
TUNE = Command("tune", TEXT, _add_tune_options, _tune, STUDY)
