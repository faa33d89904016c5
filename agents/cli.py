"""The command line: ``mmgym COMMAND``."""

import argparse
import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence

import gymnasium

import mmgym
from mmgym.agents.commands import (
    calibrate,
    constrain,
    explore,
    learn_game,
    lesson,
    record,
    replay,
    reproduce,
    robustness,
    score,
    tape,
    train,
    tune,
)
from mmgym.agents.commands.command import UsageError, check_endings, environment_id

__all__ = ["COMMANDS", "main", "make_parser"]

COMMANDS = {
    command.name: command
    for command in (
        score.LIST,
        score.SOLVE,
        score.SCORE,
        robustness.ROBUSTNESS,
        train.TRAIN,
        train.BENCHMARK,
        tune.TUNE,
        record.RECORD,
        train.DEMO,
        tape.TAPE,
        tape.SIMULATE,
        calibrate.CALIBRATE,
        learn_game.LEARN_GAME,
        explore.EXPLORE,
        constrain.CONSTRAIN,
        lesson.LESSON,
        replay.REPLAY,
        reproduce.REPRODUCE,
        reproduce.THROUGHPUT,
    )
}


def make_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line; only the commands that are among its words have their options."""
    description = "Market making in which the best possible result is known."
    parser = argparse.ArgumentParser(prog="mmgym", description=description)
    parser.add_argument("--version", action="version", version=f"mmgym {mmgym.__version__}")
    text = "import a module first, which registers markets of your own (may be repeated): files may then name their ids"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=text)
    parser.add_argument("--traceback", action="store_true", help="of an error, show where it comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=command.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run)
        if command.name in words:
            command.add_options(sub)
    return parser


RESUMED = {  # what an interrupted command leaves, and how to go on
    "train": "the same command with --resume goes on from the last checkpoint, if there is one",
    "benchmark": "the same command goes on with the cells that are missing",
    "tune": "the same command goes on with the trials that are missing",
}


def _explanation(error: BaseException, command: str) -> tuple[str, int]:
    """One line about an error, with a way on, and the exit status."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = " ".join(str(text).split())
    line = line if len(line) <= 2000 else f"{line[:2000]} ..."
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {RESUMED.get(command, 'nothing is kept of what was not written: run it again')}", 130
    if isinstance(error, MemoryError):
        way = "lower num_steps, inventory_limit, num_envs or what else makes the tables large"
        return (line if "lower " in line else f"not enough memory: {line or kind}; {way}"), 2
    expected = (UsageError, ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError, ArithmeticError)
    if isinstance(error, zlib.error):
        return f"a compressed file is damaged ({line}): delete it and make it again", 2
    if isinstance(error, (*expected, gymnasium.error.Error, zipfile.BadZipFile, EOFError)) and line:
        return line, 2
    return (
        f"{kind}: {line or 'no more is known'}; please report it, with the output of mmgym --traceback {command} ...",
        1,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 2 is returned where something given cannot be used, 130 on Ctrl-C, 1 for an unexpected error.

    Where the output is closed before its end (by ``head``, say), 141 is.

    Every error is one line on standard error; ``--traceback`` shows where it comes from.
    """
    options = argparse.Namespace(command="", traceback=False)
    try:
        words = sys.argv[1:] if arguments is None else arguments
        options = make_parser(words).parse_args(words)
        check_endings(options)
        for name in options.imports:
            importlib.import_module(name)
        if getattr(options, "env", None) is not None:
            options.env = environment_id(options.env)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is anything at Python's end
        print(f"mmgym {options.command}: the output was closed; files to be written after it are not", file=sys.stderr)
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if options.traceback:
            raise
        line, status = _explanation(error, options.command)
        print(f"mmgym {options.command}: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
