"""``mmgym calibrate`` and ``backtest``: commands of the markets that declare them.

A market declares its calibration in ``mmgym.calibration.<market>`` and its backtest in
``mmgym.baselines.<market>.backtest_command``: ``TITLE``, ``add_options(parser)`` and ``run``.
"""

import argparse
import functools
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmgym.agents.commands.command import Command, environment_arguments, load_policy

__all__ = ["BACKTEST", "CALIBRATE", "declared"]


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


def _add_backtests(parser: argparse.ArgumentParser) -> None:
    for sub, module in declared(parser, "mmgym.baselines.{market}.backtest_command"):
        sub.set_defaults(run=functools.partial(_backtest, module.run))


def _backtest(run: Any, options: argparse.Namespace) -> None:
    run(options, environment_arguments(options.set), load_policy)


CALIBRATE = Command("calibrate", "fit a market's parameters to a file", _add_calibrations)
BACKTEST = Command("backtest", "replay event tapes against policies", _add_backtests)
