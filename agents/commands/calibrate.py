"""``mmgym calibrate``: of the markets that declare it.

A market declares its calibration in ``mmgym.calibration.<market>``: ``TITLE``, ``add_options(parser)`` and ``run``.
"""

import argparse
from importlib import import_module
from importlib.util import find_spec

from mmgym.agents.commands.command import Command

__all__ = ["CALIBRATE"]


def _add_calibrations(parser: argparse.ArgumentParser) -> None:
    """A parser with its options for each market that has a calibration."""
    from mmgym.registration import ENVIRONMENTS

    markets = parser.add_subparsers(dest="market", required=True, metavar="MARKET")
    for market in dict.fromkeys(row.market for row in ENVIRONMENTS if not row.declared):
        name = f"mmgym.calibration.{market}"
        if find_spec(name) is not None:
            module = import_module(name)
            sub = markets.add_parser(market, help=module.TITLE, description=module.TITLE)
            module.add_options(sub)
            sub.set_defaults(run=module.run)


CALIBRATE = Command("calibrate", "fit a market's parameters to a file", _add_calibrations)
