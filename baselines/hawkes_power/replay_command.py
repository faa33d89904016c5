"""``mmgym replay hawkes_power`` of event tapes: the draft's Table 2 from tapes of one's own, with price-time priority.

The command line reads ``KIND``, ``OPTIONS``, ``reads``, ``add_options`` and ``run``.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mmgym.baselines.catalogue import environment_of
from mmgym.baselines.hawkes_power.backtest import ALPHAS, backtest, named_rule, observed, table_2
from mmgym.calibration.hawkes_power import FLOW, POWER, calibrate, market_arguments
from mmgym.calibration.hawkes_power_tape import (
    PowerTape,
    add_gap_option,
    read_power_tape,
    selected,
    side_file,
    tape_gaps,
)
from mmgym.models import hawkes_flow, hawkes_power
from mmgym.plain_files import json_value
from mmgym.printing import table_text, write_result
from mmgym.tapes.findings import described
from mmgym.tapes.gaps import gap_finding

__all__ = ["KIND", "OPTIONS", "add_options", "reads", "run"]

KIND = "event tapes of the power market"
OPTIONS = ("alpha", "fit_on", "allow_explosive", "windows", "gap")
Loader = Callable[[Path], tuple[Any, Mapping[str, Any]]]


def reads(files: Sequence[str]) -> bool:
    """Whether files are event tapes: the first has their columns, or its side file is there."""
    path = Path(files[0])
    if side_file(path).is_file():
        return True
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline(1000).strip().split(",")
    return {"t_min", "worst_price"} <= set(header)


def add_options(group: Any) -> None:
    """The options of `run` that replays of books do not have."""
    text = "terminal penalties, EUR/MWh per lot (default 0 0.01 0.05 0.1); a model has its own"
    group.add_argument("--alpha", nargs="+", type=float, help=text)
    text = "fit the parameters of the policies to these tapes (default: to those of the replay)"
    group.add_argument("--fit-on", nargs="+", metavar="TAPE", help=text)
    group.add_argument("--allow-explosive", action="store_true", help="accept estimates with excitation >= decay")
    group.add_argument("--windows", metavar="FILE.csv", help="also write each tape's result")
    add_gap_option(group)


def run(options: argparse.Namespace, changes: Mapping[str, Any], load_model: Loader) -> None:
    """Replay the tapes against policies; print the draft's Table 2 for each policy and window ("Mid", "Late").

    Of each tape the part from ``start`` to ``end`` is played (seconds of the window), and what lies between gaps in the
    record is a window of its own; intensities and inventory start anew in each.

    Parameters
    ----------
    options : argparse.Namespace
        ``file``, ``policy`` (default corollary_3; corollary_3_as_printed, join_best, another policy of the environment,
        best, or a folder), ``env`` (HawkesPower, default, or HawkesFlow), ``interval`` (minutes between quotes, default
        0.25; after an own fill there are new ones at once), ``output``, and those of `add_options`.
    changes : mapping
        Constructor arguments of the environment, instead of the fitted ones.
    load_model : callable
        Folder of a run or model -> its policy, and what it was trained in (``env`` and ``arguments``).

    Raises
    ------
    ValueError, TypeError
        If a tape, a policy, an argument, or the name of the windows' file cannot be used.
    """
    if options.windows and Path(options.windows).suffix != ".csv":
        raise ValueError(f"--windows {options.windows}: the name must end in .csv")
    options = _completed(options)
    selection = selected(options)
    groups: dict[tuple[str, str], list[Any]] = {}
    for path in options.file:
        tape = read_power_tape(path, selection.gap).within(selection)
        groups.setdefault((tape.product, tape.window), []).append(tape)
    count = len(options.file)
    for key, own in groups.items():
        groups[key] = _without_gaps(own, selection.gap)
    rows = []
    replays = _replays(options, groups, changes, load_model)
    for policy, alpha, own, make_rule in tqdm(replays, desc="replay", disable=not sys.stderr.isatty()):
        frame = backtest(own, make_rule(), interval=options.interval).windows
        frame.insert(0, "policy", policy)
        frame.insert(1, "alpha", alpha)
        rows.append(frame)
    windows = pd.concat(rows, ignore_index=True)

    source = "the same tapes (in sample)" if not options.fit_on else f"{len(options.fit_on)} other tapes"
    source = f"parameters of named policies fitted to {source}"
    print(f"{count} tapes: " + ", ".join(f"{' '.join(key)} ({len(own)})" for key, own in groups.items()))
    print(f"new quotes every {options.interval:g} min and after own fills; {source}\n")
    tables = _print_tables(windows)
    if options.output:
        records = {
            name: json_value(t.to_dict(orient="records")) for name, t in (("tables", tables), ("windows", windows))
        }
        write_result(options.output, tables, {"interval": options.interval, "parameters": source, **records})
    if options.windows:
        write_result(options.windows, windows, {})


def _without_gaps(tapes: list[PowerTape], longest: float | None) -> list[PowerTape]:
    """The parts of tapes between gaps, each a window of its own, and lines about what was found."""
    gaps, parts = tape_gaps(tapes, longest), []
    for line in described(dict.fromkeys(item for tape in tapes for item in tape.findings)):
        print(f"{tapes[0].product} {tapes[0].window}: {line}")
    for number, tape in enumerate(tapes):
        own = gaps[gaps[:, 0] == number, 1:]
        edges = np.append(np.insert(own.ravel(), 0, 0.0), tape.horizon).reshape(-1, 2)
        parts += [tape.between(start, end) for start, end in edges if end > start] if len(own) else [tape]
    if len(gaps):
        observed = sum(part.horizon for part in parts)
        name = f"{tapes[0].product} {tapes[0].window}"
        for line in described([gap_finding(gaps[:, 1], gaps[:, 2] - gaps[:, 1], observed, "min")]):
            print(f"{name}: {line}")
    return parts


def _completed(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults."""
    defaults = {"policy": ["corollary_3"], "env": POWER, "interval": 0.25, "alpha": list(ALPHAS)}
    given = {name: value for name, value in vars(options).items() if value is not None}
    completed = argparse.Namespace(**{**vars(options), **defaults, **given})
    if completed.env not in (POWER, FLOW):
        raise ValueError(f"--env {completed.env}: event tapes are replayed with {POWER} or {FLOW}")
    return completed


def _print_tables(windows: pd.DataFrame) -> pd.DataFrame:
    """Print Table 2 of each policy and window; all of them as one table."""
    tables = []
    for (policy, window), own in windows.groupby(["policy", "window"], sort=False):
        columns = {f"alpha = {alpha:g}": frame for alpha, frame in own.groupby("alpha", sort=False)}
        table = table_2(columns)
        counts = sorted({len(frame) for frame in columns.values()})
        print(f"{policy}, {window} ({' or '.join(map(str, counts))} windows, one observation each)\n")
        print(table_text(table, missing="") + "\n")
        tables.append(table.assign(policy=str(policy), window=str(window)))
    whole = pd.concat(tables, ignore_index=True)
    first = ["policy", "window"]
    return whole[[*first, *(name for name in whole.columns if name not in first)]]


def _replays(
    options: argparse.Namespace,
    groups: Mapping[tuple[str, str], list[Any]],
    changes: Mapping[str, Any],
    load_model: Loader,
) -> list[tuple[Any, ...]]:
    """What to play: (policy, terminal penalty, tapes, function that makes the rule)."""
    replays: list[tuple[Any, ...]] = []
    fits = None
    if not all(Path(name).is_dir() for name in options.policy):
        files = options.fit_on or options.file
        fits = calibrate(files, allow_explosive=options.allow_explosive, selection=selected(options))
    for name in options.policy:
        if Path(name).is_dir():
            policy, about = load_model(Path(name))
            params = environment_of(about["env"], **about["arguments"]).params
            if not isinstance(params, hawkes_power.Params | hawkes_flow.Params):
                raise TypeError(f"{name}: a model of {about['env']} cannot see these tapes; {POWER} and {FLOW} can")
            replays += [
                (name, params.terminal_penalty, tapes, functools.partial(observed, policy, params, tick=tapes[0].tick))
                for tapes in groups.values()
            ]
            continue
        assert fits is not None
        for alpha in options.alpha:
            for (product, window), tapes in groups.items():
                fit = fits.group(product, window)
                if options.env == POWER:
                    arguments = market_arguments(fit, tapes) | {"terminal_penalty": alpha, **changes}
                    params = hawkes_power.Params.create(**arguments)
                else:
                    arguments = fit.kwargs(allow_explosive=options.allow_explosive)
                    params = hawkes_flow.Params.create(**(arguments | {"terminal_penalty": alpha, **changes}))
                rule = functools.partial(named_rule, name, params, tick=tapes[0].tick)
                replays.append((name, params.terminal_penalty, tapes, rule))
    return replays
