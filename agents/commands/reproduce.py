"""``mmgym reproduce`` and ``throughput``: tables of papers, and the speed of this machine."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from mmgym.agents.commands.command import Command, add_output, environment_arguments
from mmgym.printing import show

__all__ = ["REPRODUCE", "THROUGHPUT"]


def _add_reproduce_options(parser: argparse.ArgumentParser) -> None:
    from mmgym.baselines.reproduce import PAPERS

    parser.add_argument("paper", choices=sorted(PAPERS))
    parser.add_argument("--folder", help="where to write (default results/PAPER)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")


def _reproduce(options: argparse.Namespace) -> None:
    from mmgym.baselines.reproduce import PAPERS

    folder = Path(options.folder or Path("results") / options.paper)
    module = import_module(f"mmgym.baselines.reproduce.{PAPERS[options.paper]}")
    print(module.reproduce(folder, quick=options.quick, progress=sys.stderr.isatty()))
    print(f"\nwritten: {folder}")


def _add_throughput_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default="mmgym/AvellanedaStoikov-v0", metavar="ID")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement (default 1)")
    add_output(parser)


def _throughput(options: argparse.Namespace) -> None:
    from mmgym.agents.throughput import throughput

    table = throughput(options.env, seconds=options.seconds, **environment_arguments(options.set))
    show(table, options.output)


REPRODUCE = Command("reproduce", "recompute a paper's tables and figures", _add_reproduce_options, _reproduce)
TEXT = "measure environment and training speed on this machine"
THROUGHPUT = Command("throughput", TEXT, _add_throughput_options, _throughput)
