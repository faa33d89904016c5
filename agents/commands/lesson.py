"""``mmgym lesson``: notebooks that teach what the project is about."""

import argparse
import shutil
import subprocess
from pathlib import Path

from mmgym.agents.commands.command import Command, UsageError

__all__ = ["LESSON", "LESSONS"]

LESSONS = {
    1: "what market making is, and what is optimal",
    2: "train an agent, score it, and see where it loses value",
    3: "calibrate, randomise, replay",
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    text = "; ".join(f"{number}: {title}" for number, title in LESSONS.items())
    parser.add_argument("number", type=int, choices=list(LESSONS), help=text)
    text = "write the notebook there, and do not open it (by default it is opened in this folder)"
    parser.add_argument("--write", metavar="FILE.ipynb", help=text)


def _run(options: argparse.Namespace) -> None:
    name = f"lesson_{options.number}.ipynb"
    target = Path(options.write or name)
    if target.suffix != ".ipynb":
        raise UsageError(f"--write {target}: the name must end in .ipynb")
    if options.write or not target.exists():  # what was worked on is opened as it is
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).parents[1] / "lessons" / name, target)
        print(f"written: {target} ({LESSONS[options.number]})")
    if options.write:
        return
    for command in ("jupyter-lab", "jupyter-notebook"):
        if shutil.which(command):
            subprocess.run([command, str(target)], check=False)
            return
    print("open it in an editor that reads notebooks, or: pip install jupyterlab, then mmgym lesson again")


LESSON = Command("lesson", "open one of three lessons, notebooks with exercises and answers", _add_options, _run)
