"""``mmgym tape`` and ``simulate``: `mmgym.agents.tape_files`, which takes seconds to import, when they are called."""

import argparse

from mmgym.agents.commands.command import Command

__all__ = ["SIMULATE", "TAPE"]


def _add_options(parser: argparse.ArgumentParser) -> None:
    from mmgym.agents.tape_files import add_options

    add_options(parser)


def _add_simulations(parser: argparse.ArgumentParser) -> None:
    from mmgym.agents.tape_files import add_simulations

    add_simulations(parser)


TAPE = Command("tape", "read, check and convert recorded markets", _add_options)
SIMULATE = Command("simulate", "write the tape of a simulated market", _add_simulations)
