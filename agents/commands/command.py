"""What a command is, and the words that several take: environments, policies, files."""

import argparse
import ast
import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "POLICIES",
    "Command",
    "UsageError",
    "add_environment",
    "add_output",
    "add_plot",
    "check_endings",
    "draw_quotes",
    "environment_arguments",
    "environment_id",
    "load_policy",
    "named_policies",
]


class Command(NamedTuple):
    """A command: its name, what it does in one line, its options, the function that runs it, an example."""

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], None] | None = None  # None: the options that are chosen set it
    example: str = ""  # what its help ends with


class UsageError(Exception):
    """Something in the command line cannot be used; the message says what is allowed."""


def add_environment(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """An environment and its arguments."""
    text = "environment id, see `mmgym list`; its mmgym/ and version may be left out"
    parser.add_argument("--env", required=required, metavar="ID", help=text)
    text = "constructor argument of the environment (may be repeated)"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def add_output(parser: argparse.ArgumentParser) -> None:
    """A file for the table that is printed."""
    parser.add_argument("--output", metavar="FILE", help="also write the table, as .csv or .json")


def add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    """A file for a picture."""
    parser.add_argument("--plot", metavar="FILE", help=f"also draw {what}, as .png, .pdf, .svg or .jpg")


def draw_quotes(file: str, env: Any, policies: Mapping[str, Any]) -> None:
    """Draw what policies quote over the inventory, the first as a broad line, and say where."""
    from mmgym import plot
    from mmgym.baselines import policy_cells

    axes = plot.quotes(policy_cells(env, policies), list(env.unwrapped.control_names))
    plot.write_figure(axes.flat[0].figure, file)
    print(f"\nwritten: {file}")


ENDINGS = {"output": (".csv", ".json"), "plot": (".png", ".pdf", ".svg", ".jpg")}  # of the files that options name


def check_endings(options: argparse.Namespace) -> None:
    """Refuse a file whose kind cannot be written before anything is computed."""
    for option, endings in ENDINGS.items():
        file = getattr(options, option, None)
        if file is not None and Path(file).suffix not in endings:
            raise UsageError(f"--{option} {file}: the name must end in {' or '.join(endings)}")


def environment_id(text: str) -> str:
    """The id that is meant: of this project without ``mmgym/`` and the version too; others as they are.

    Raises
    ------
    UsageError
        If none is; the message has those that look like it.
    """
    import gymnasium

    if ":" in text or text in gymnasium.registry:  # a module to import first, or an id
        return text
    ours = {_bare(name): name for name in gymnasium.registry if name.startswith("mmgym/")}
    bare = _bare(text)
    if bare in ours:
        return ours[bare]
    close = [name for name in ours if bare in name] or difflib.get_close_matches(bare, ours, n=3)
    hint = f"did you mean {' or '.join(ours[name] for name in close)}? " if close else ""
    raise UsageError(f"--env {text}: no such environment; {hint}`mmgym list` has them all")


def _bare(name: str) -> str:
    """An id of this project without its beginning, its version and capitals."""
    return name.removeprefix("mmgym/").removesuffix("-v0").lower()


def environment_arguments(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Arguments from an option's ``name=value`` words; values are Python literals, true or false; others are text."""
    arguments = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{option} {pair!r}: must be name=value, for example --set fill_decay=1.2")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = {"true": True, "false": False}.get(text, text)
    return arguments


def load_policy(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The policy of a run's or a model's folder, and its ``model.json``."""
    from mmgym.agents.train import load_model

    return load_model(folder / "model" if (folder / "model" / "model.json").exists() else folder)


POLICIES = (
    "a policy of a paper or ours by name, all, a table (.npz), the folder of a run or model, a .zip file of "
    "Stable-Baselines3, or module:function, which gets the environment and returns a policy"
)


def named_policies(names: Sequence[str], env: Any, normalisation: str | None = None) -> dict[str, Any]:
    """Policies by name: "optimal" ("best" in a bracketed market), and what `POLICIES` says.

    Observations of a .zip file are normalised by the statistics in the file ``normalisation``.
    """
    from mmgym.baselines import best_known_policy, paper_policies
    from mmgym.baselines import load_policy as load_table
    from mmgym.baselines.catalogue import level_of

    first = "best" if level_of(env) == "bracketed" else "optimal"
    papers: dict[str, Any] = {}
    policies: dict[str, Any] = {}
    for name in names:
        if name == first:
            policies[name] = best_known_policy(env)
        elif Path(name).suffix == ".npz" and Path(name).is_file():
            policies[name] = load_table(name, env)
        elif Path(name).suffix == ".zip" and Path(name).is_file():
            from mmgym.agents.sb3_files import load_sb3_file

            policies[name] = load_sb3_file(name, env, normalisation)
        elif Path(name).exists():
            policies[name], _ = load_policy(Path(name))
        elif ":" in name:
            policies[name] = _made_by(name, env)
        else:
            papers = papers or paper_policies(env)
            if name == "all":
                policies |= {first: best_known_policy(env), **papers}
            elif name in papers:
                policies[name] = papers[name]
            else:
                known = ", ".join(papers)
                raise UsageError(
                    f"policy {name!r} is neither a folder, a table (.npz), a model (.zip), module:function nor one "
                    f"of: all, {first}, {known}"
                )
    return policies


def _made_by(name: str, env: Any) -> Any:
    """The policy that ``module:function`` returns for an environment."""
    module, _, function = name.partition(":")
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"policy {name!r}: {error}; module:function must name a function that returns a policy"
        ) from error
    return make(env)
