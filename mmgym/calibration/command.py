"""What ``mmgym calibrate MARKET`` asks and prints where a market is fitted to one file.

A market declares its command in ``mmgym.calibration.<market>``: ``TITLE`` says what is fitted, ``add_options(parser)``
adds the options, and ``run(options)`` fits, prints and writes.
"""

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgym.plain_files import write_json
from mmgym.printing import show, write_output
from mmgym.provenance import provenance

__all__ = ["INTERVAL", "add_file_options", "add_force", "fit_and_show", "may_offer"]

INTERVAL = "between mids, the shortest scale (default 1, or more where quotes are rare)"


def add_file_options(parser: argparse.ArgumentParser, market: str, kind: str) -> None:
    """The file, of this kind, the picture and the output."""
    text = f"{kind}: one or several files of any known format (see mmgym tape formats, mmgym.calibration.{market})"
    parser.add_argument("file", nargs="+", help=text)
    parser.add_argument("--plot", metavar="FILE.png", help="picture of the fit")
    parser.add_argument("--output", metavar="FILE", help="also write the table, as .csv or .json")
    text = "write the arguments of the environments that are offered, as `mmgym replay --params` takes them"
    parser.add_argument("--params", metavar="FILE.json", help=text)
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """``--force``."""
    parser.add_argument("--force", action="store_true", help="offer an environment although a law is rejected")


def fit_and_show(
    calibrate: Callable[..., Any], environments: Callable[[Any], Mapping[str, Any]], options: argparse.Namespace
) -> Any:
    """Fit a file, with the options that are keyword arguments of ``calibrate``, and print what `gymnasium.make` takes.

    Parameters
    ----------
    calibrate : callable
    environments : callable
        ``environments(fit)`` gives the arguments of each environment by its id.
    options : argparse.Namespace

    Returns
    -------
    object
        The fit.

    Raises
    ------
    ValueError
        As ``calibrate``.
    """
    parameters = inspect.signature(calibrate).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    fit = calibrate(options.file, **{name: getattr(options, name) for name in names})
    table = fit.table()
    show(table, index=True)
    if options.output:
        write_output(options.output, table, "parameter")
    print()
    print(fit.summary())
    if options.plot:
        fit.plot(options.plot)
        print(f"\nwritten: {options.plot}")
    if fit.findings:
        print(f"\nwith warnings (above): {', '.join(dict.fromkeys(item.name for item in fit.findings))}")
    if may_offer(fit.rejected, options.force):
        offered = environments(fit)
        for env_id, arguments in offered.items():
            print(f'\ngymnasium.make("{env_id}", **{json.dumps(arguments, allow_nan=False)})')
        if options.params:
            write_json(Path(options.params), {"arguments": offered, "provenance": provenance()})
            print(f"\nwritten: {options.params}")
    elif options.params:
        raise ValueError(f"{options.params} is not written: the data reject the fit (--force writes it all the same)")
    return fit


def may_offer(rejected: Sequence[str], force: bool) -> bool:
    """Say that laws are rejected; whether an environment is offered all the same."""
    if not rejected:
        return True
    text = f"\nREJECTED: {', '.join(rejected)}; the record is not of this market"
    print(f"{text}:" if force else f"{text}, and no gymnasium.make is offered (--force offers it all the same).")
    return force
