"""``mmgym calibrate``: of the markets that declare it.

A market declares its calibration in ``mmgym.calibration.<market>``: ``TITLE``, ``add_options(parser)`` and ``run``.
"""

import argparse
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmgym.agents.commands.command import Command

__all__ = ["CALIBRATE", "declared"]


def declared(parser: argparse.ArgumentParser, place: str) -> Iterator[tuple[argparse.ArgumentParser, Any]]:
    """A parser with its options for each market that has a module at this place, and the module."""
    from mmgym.registration import ENVIRONMENTS

    markets = parser.add_subparsers(dest="market", required=True, metavar="MARKET")
    for market in dict.fromkeys(row.market for row in ENVIRONMENTS if not row.declared):
        name = place.format(market=market)
        if find_spec(name) is not None:
            module = import_module(name)
            sub = markets.add_parser(market, help=module.TITLE, description=module.TITLE)
            module.add_options(sub)
            yield sub, module


def _add_calibrations(parser: argparse.ArgumentParser) -> None:
    for sub, module in declared(parser, "mmgym.calibration.{market}"):
        sub.set_defaults(run=module.run)


CALIBRATE = Command("calibrate", "fit a market's parameters to a file", _add_calibrations)
