"""``mmgym explore``: a market's optimum, formulas and agents on a local web page."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from mmgym.agents.commands.command import Command, UsageError, environment_arguments

__all__ = ["EXPLORE"]

FIRST = "mmgym/AvellanedaStoikov-v0"  # what is shown where nothing is asked for
EXTRA = "explore needs dash: pip install 'mmgym[explore]'"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default=FIRST, metavar="ID", help=f"environment id (default {FIRST})")
    text = "constructor argument of the environment (may be repeated)"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    parser.add_argument("--agent", metavar="FOLDER", help="folder of a run or model, next to the optimum")
    parser.add_argument("--port", type=int, default=8050, help="of the page on this machine (default 8050; 0: any)")
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    text = "write the page once, as one HTML file that needs no network, instead of serving it"
    parser.add_argument("--snapshot", metavar="DIR", help=text)


def settings_of(options: argparse.Namespace) -> tuple[Any, list[str]]:
    """Settings of the command line, and the modules that the process that computes must import."""
    from mmgym.agents.explore.settings import Settings, checked_params, known_environments

    module, colon, name = options.env.rpartition(":")
    if colon:
        importlib.import_module(module)  # the user's own word, unlike an address
    if name not in known_environments():
        raise UsageError(f"--env {options.env}: not a market that is known here; `mmgym list` has the ids")
    arguments = environment_arguments(options.set)
    agent = "" if options.agent is None else str(Path(options.agent).resolve())
    if agent and not Path(agent).is_dir():
        raise UsageError(f"--agent {options.agent}: there is no such folder")
    settings = Settings(name, arguments, agent=agent)
    checked_params(settings, arguments)
    return settings, [*options.imports, *([module] if colon else [])]


def _explore(options: argparse.Namespace) -> None:
    try:
        import dash  # noqa: F401  # the extra
    except ImportError as error:
        raise ImportError(EXTRA) from error
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: must be from 0 to 65535")
    settings, imports = settings_of(options)
    if options.snapshot is not None:
        from mmgym.agents.explore.snapshot import write_snapshot

        print(f"written: {write_snapshot(Path(options.snapshot), settings, sys.stderr)}")
        return
    from mmgym.agents.explore.serving import serve_page

    serve_page(settings, imports, port=options.port, browser=not options.no_browser)


EXAMPLE = """\
The address of the page holds its settings: link to ?env=mmgym/AvellanedaStoikov-v0&fill_decay=1.2 from a lesson.
Nothing is loaded from a network, and nothing but this machine can reach the page.
"""
EXPLORE = Command("explore", "steer a market on a local web page, next to its optimum", _add_options, _explore, EXAMPLE)
