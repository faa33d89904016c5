"""What ``mmgym calibrate MARKET`` asks and prints where a market is fitted to one file.

A market declares its command in ``mmgym.calibration.<market>``: ``TITLE`` says what is fitted, ``add_options(parser)``
adds the options, and ``run(options)`` fits, prints and writes.
"""

import argparse
import inspect
import json
from collections.abc import Callable
from typing import Any

from mmgym.printing import show

__all__ = ["INTERVAL", "add_file_options", "fit_and_show"]

INTERVAL = "between mids (default 1, or more where bid-ask noise asks for it)"


def add_file_options(parser: argparse.ArgumentParser, market: str, kind: str) -> None:
    """The file, of this kind, the picture and the output."""
    text = f"{kind}: one or several files of any known format (see mmgym tape formats, mmgym.calibration.{market})"
    parser.add_argument("file", nargs="+", help=text)
    parser.add_argument("--plot", metavar="FILE.png", help="picture of the fit")
    parser.add_argument("--output", metavar="FILE", help="also write the table, as .csv or .json")


def fit_and_show(calibrate: Callable[..., Any], env_id: str, options: argparse.Namespace) -> None:
    """Fit a file, with the options that are keyword arguments of ``calibrate``, and print what `gymnasium.make` takes.

    Raises
    ------
    ValueError
        As ``calibrate``.
    """
    parameters = inspect.signature(calibrate).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    fit = calibrate(options.file, **{name: getattr(options, name) for name in names})
    show(fit.table(), options.output, index=True)
    print()
    print(fit.summary())
    if options.plot:
        fit.plot(options.plot)
        print(f"\nwritten: {options.plot}")
    arguments = json.dumps(fit.kwargs(), allow_nan=False)
    if fit.findings:
        print(f"\nwith warnings (above): {', '.join(dict.fromkeys(item.name for item in fit.findings))}")
    print(f'\ngymnasium.make("{env_id}", **{arguments})')
