"""``mmgym robustness``: what policies are worth where the parameters are others."""

import argparse
import ast
import sys
from typing import Any

from mmgym.agents.commands.command import (
    POLICIES,
    Command,
    UsageError,
    add_environment,
    add_output,
    environment_arguments,
    named_policies,
)
from mmgym.printing import show

__all__ = ["ROBUSTNESS"]


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_environment(parser)
    parser.add_argument("policy", nargs="+", help=f"optimal (best, where it is bracketed), {POLICIES}")
    text = "values of a parameter: LOW:HIGH:COUNT, or a list with commas (may be repeated: all combinations)"
    parser.add_argument("--over", action="append", required=True, metavar="NAME=VALUES", help=text)
    text = "a law to take the mean over, as fill_decay=['uniform', 1, 2] (may be repeated); see mmgym.variation"
    parser.add_argument("--law", action="append", default=[], metavar="NAME=LAW", help=text)
    text = "play the quotes that a policy from another environment wants, not its actions"
    parser.add_argument("--quotes", action="store_true", help=text)
    parser.add_argument("--plot", metavar="FILE", help="a picture: curves over one parameter, a map over two")
    add_output(parser)


def values_of(pair: str) -> tuple[str, list[Any]]:
    """Name and values of ``name=low:high:count`` or ``name=value,value,...``."""
    import numpy as np

    name, equals, text = pair.partition("=")
    values: list[Any] = []
    try:
        if text.count(":") == 2:
            low, high, count = (float(part) for part in text.split(":"))
            values = np.linspace(low, high, int(count)).tolist() if 2 <= count <= 4096 and count == int(count) else []
        else:
            values = list(ast.literal_eval(f"({text},)"))
    except (ValueError, SyntaxError):
        values = []
    if not equals or not name.isidentifier() or not values:
        raise UsageError(f"--over {pair!r}: must be name=low:high:count, as fill_decay=1:2:9, or name=value,value,...")
    return name, values


def _run(options: argparse.Namespace) -> None:
    import pandas as pd

    from mmgym.baselines import robustness, score_table
    from mmgym.baselines.catalogue import environment_of

    env = environment_of(options.env, **environment_arguments(options.set))
    over, law = dict(map(values_of, options.over)), environment_arguments(options.law, "--law") or None
    if options.plot and len(over) > 2:
        raise UsageError("--plot shows one parameter or two: give fewer --over")
    results = {
        name: robustness(policy, env, over, law, quotes=options.quotes, progress=sys.stderr.isatty())
        for name, policy in named_policies(options.policy, env).items()
    }
    tables = [each.table.assign(policy=name)[["policy", *each.table.columns]] for name, each in results.items()]
    whole = pd.concat(tables, ignore_index=True)
    print(f"{options.env}: action box as there, at all points\n")
    show(whole, options.output)
    print("\nlargest regret of each policy:")
    show(pd.DataFrame([{"policy": name, **each.worst} for name, each in results.items()]))
    if law is not None:
        means = {name: each.mean for name, each in results.items() if each.mean is not None}
        first = next(iter(means.values()))
        print(
            f"\nmean over the law (error of the quadrature about {max(m.value_error for m in means.values()):.2g}): a "
            f"policy that knows the parameters reaches {first.optimum_upper:.6f}, the best known without "
            f"{first.optimum_lower:.6f}"
        )
        show(score_table(means), index=True)
    if options.plot:
        from mmgym import plot

        plot.write_figure(plot.robustness(whole, list(over))[0].figure, options.plot)
        print(f"\nwritten: {options.plot}")


EXAMPLE = """\
$ mmgym robustness --env mmgym/AvellanedaStoikov-v0 optimal --over fill_decay=1:2:5 --plot robustness.png
"""

ROBUSTNESS = Command(
    "robustness", "score policies where parameters are others than they were made for", _add_options, _run, EXAMPLE
)
