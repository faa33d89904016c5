"""Commands of the intraday power market: ``mmgym calibrate hawkes_power`` and ``mmgym backtest hawkes_power``.

Each has a function that adds its arguments to a parser and one that runs it: `add_calibrate_arguments` and
`calibrate_command`, `add_backtest_arguments` and `backtest_command`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["add_backtest_arguments", "add_calibrate_arguments", "backtest_command", "calibrate_command"]

POWER, FLOW = "mmgym/HawkesPower-v0", "mmgym/HawkesFlow-v0"


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `calibrate_command`."""
    text = "event tapes of any days, products and windows, .csv or .csv.gz, each with its .json beside it"
    parser.add_argument("file", nargs="+", metavar="TAPE", help=f"{text} (see mmgym.calibration.hawkes_power_tape)")
    text = "accept estimates with excitation >= decay"
    parser.add_argument("--allow-explosive", action="store_true", help=text)
    parser.add_argument("--plot", metavar="FILE.png", help="PP and QQ plots of residuals")
    text = "event type of the plot (default MO_BUY)"
    parser.add_argument("--process", default="MO_BUY", metavar="TYPE", help=text)
    text = "also write all estimates as .csv, or everything as .json"
    parser.add_argument("--output", metavar="FILE", help=text)
    parser.set_defaults(run=calibrate_command)


def calibrate_command(options: argparse.Namespace) -> None:
    """Fit every product and window of the tapes; print the draft's Table 1, tests and constructor arguments.

    Parameters
    ----------
    options : argparse.Namespace
        As `add_calibrate_arguments` has them.

    Raises
    ------
    ValueError
        If a tape breaks the format, the data do not identify a parameter, or the name of the output has another ending;
        the message says where.
    ImportError
        Without matplotlib, if a plot is asked for.
    """
    import json

    from mmgym.baselines.backtest_hawkes_power import market_arguments
    from mmgym.calibration.hawkes_power import calibrate
    from mmgym.calibration.hawkes_power_tape import read_power_tape
    from mmgym.calibration.tape_checks import require_finite

    _check_ending(options.output)
    found = calibrate(options.file, allow_explosive=options.allow_explosive)
    tapes = [read_power_tape(path) for path in options.file]
    print("Estimates (standard errors); K: bid events, L: ask events, 1/min and EUR/MWh\n")
    print(_text(found.paper_table().reset_index(), 200))
    tests = pd.concat({" ".join(key): fit.tests() for key, fit in found.groups.items()}, names=["group"])
    print("\nResidual tests (gaps and points: Kolmogorov-Smirnov; order: gaps independent)\n")
    print(_text(tests.reset_index(), 200))
    if any(fit.findings for fit in found.groups.values()):
        print("\n! is warned of below, - is what the tapes do not tell")
    print(f"\n{found.summary()}")
    arguments: dict[str, dict[str, Any]] = {}
    for key, fit in found.groups.items():
        own = [tape for tape in tapes if (tape.product, tape.window) == key]
        arguments[" ".join(key)] = {
            POWER: market_arguments(fit, own),
            FLOW: fit.kwargs(allow_explosive=options.allow_explosive),
        }
    for group, of_group in arguments.items():
        print(f"\n{group}")
        for of_env in of_group.values():
            require_finite(of_env)
        for env, of_env in of_group.items():
            print(f'gymnasium.make("{env}", **{json.dumps(of_env)})')
    if options.plot:
        found.plot(options.plot, process=options.process)
        print(f"\nwritten: {options.plot}")
    content = {"calibration": found.to_dict, "arguments": lambda: arguments}
    _write(options.output, found.table().reset_index(), content)


def add_backtest_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `backtest_command`."""
    text = "event tapes of any days, products and windows, .csv or .csv.gz, each with its .json beside it"
    parser.add_argument("file", nargs="+", metavar="TAPE", help=f"{text} (see mmgym.calibration.hawkes_power_tape)")
    text = "corollary_3 (default), corollary_3_as_printed, join_best, another policy of the environment, best, or the "
    text += "folder of a run or model"
    parser.add_argument("--policy", nargs="+", default=["corollary_3"], metavar="POLICY", help=text)
    text = f"environment of the named policies, its arguments fitted to tapes (default {POWER})"
    parser.add_argument("--env", default=POWER, choices=[POWER, FLOW], help=text)
    text = "terminal penalties, EUR/MWh per lot (default 0 0.01 0.05 0.1); a model has its own"
    parser.add_argument("--alpha", nargs="+", type=float, default=[0.0, 0.01, 0.05, 0.1], help=text)
    text = "minutes between quotes (default 0.25); after an own fill there are new ones at once"
    parser.add_argument("--interval", type=float, default=0.25, metavar="MINUTES", help=text)
    text = "fit the parameters of the policies to these tapes (default: to those of the backtest)"
    parser.add_argument("--fit-on", nargs="+", metavar="TAPE", help=text)
    text = "constructor argument of the environment (may be repeated), instead of the fitted one"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    parser.add_argument("--allow-explosive", action="store_true", help="accept estimates with excitation >= decay")
    text = "also write the tables as .csv, or everything (each tape's result too) as .json"
    parser.add_argument("--output", metavar="FILE", help=text)
    parser.add_argument("--windows", metavar="FILE.csv", help="also write each tape's result")
    parser.set_defaults(run=backtest_command)


def backtest_command(options: argparse.Namespace) -> None:
    """Replay the tapes against policies; print the draft's Table 2 for each policy and window ("Mid", "Late").

    Parameters
    ----------
    options : argparse.Namespace
        As `add_backtest_arguments` has them.

    Raises
    ------
    ValueError
        If a tape breaks the format, a tape has no fitted parameters, a policy is not known, an argument is out of
        range, or the name of an output has another ending.
    TypeError
        If a model was trained in another market.
    """
    from tqdm.auto import tqdm

    from mmgym.baselines.backtest_hawkes_power import backtest, table_2
    from mmgym.calibration.hawkes_power_tape import read_power_tape

    _check_ending(options.output)
    if options.windows and Path(options.windows).suffix != ".csv":
        raise ValueError(f"--windows {options.windows}: the name must end in .csv")
    tapes = [read_power_tape(path) for path in options.file]
    groups: dict[tuple[str, str], list[Any]] = {}
    for tape in tapes:
        groups.setdefault((tape.product, tape.window), []).append(tape)
    runs = _runs(options, groups)
    rows = []
    for policy, alpha, of_run, make_rule in tqdm(runs, desc="backtest", disable=not sys.stderr.isatty()):
        frame = backtest(of_run, make_rule(), interval=options.interval).windows
        frame.insert(0, "policy", policy)
        frame.insert(1, "alpha", alpha)
        rows.append(frame)
    windows = pd.concat(rows, ignore_index=True)

    print(f"{len(tapes)} tapes: " + ", ".join(f"{' '.join(key)} ({len(own)})" for key, own in groups.items()))
    print(f"new quotes every {options.interval:g} min and after own fills; {_source(options)}\n")
    tables = []
    for (policy, window), own in windows.groupby(["policy", "window"], sort=False):
        columns = {f"alpha = {alpha:g}": frame for alpha, frame in own.groupby("alpha", sort=False)}
        table = table_2(columns)
        counts = sorted({len(frame) for frame in columns.values()})
        print(f"{policy}, {window} ({' or '.join(map(str, counts))} windows, one observation each)\n")
        print(_text(table, 200) + "\n")
        tables.append(table.assign(policy=str(policy), window=str(window)))
    found = pd.concat(tables, ignore_index=True)
    first = ["policy", "window"]
    found = found[[*first, *(name for name in found.columns if name not in first)]]
    content: dict[str, Callable[[], Any]] = {
        "interval": lambda: options.interval,
        "parameters": lambda: _source(options),
        "tables": lambda: _records(found),
        "windows": lambda: _records(windows),
    }
    _write(options.output, found, content)
    if options.windows:
        _write(options.windows, windows, {})


def _runs(options: argparse.Namespace, groups: dict[tuple[str, str], list[Any]]) -> list[tuple[Any, ...]]:
    """What to play: (policy, terminal penalty, tapes, function that makes the rule)."""
    import functools

    from mmgym.agents.cli import _environment_arguments
    from mmgym.baselines.backtest_hawkes_power import market_arguments, named_rule, observed
    from mmgym.baselines.catalogue import environment_of
    from mmgym.calibration.hawkes_power import calibrate
    from mmgym.models import hawkes_flow, hawkes_power

    folders = {name: Path(name) for name in options.policy if Path(name).is_dir()}
    runs: list[tuple[Any, ...]] = []
    fitted = None
    if len(folders) < len(options.policy):
        fitted = calibrate(options.fit_on or options.file, allow_explosive=options.allow_explosive)
    changes = _environment_arguments(options.set)
    for name in options.policy:
        if name in folders:
            from mmgym.agents.train import load_model

            folder = folders[name]
            policy, about = load_model(folder / "model" if (folder / "model" / "model.json").exists() else folder)
            params = environment_of(about["env"], **about["arguments"]).params
            if not isinstance(params, hawkes_power.Params | hawkes_flow.Params):
                raise TypeError(f"{folder}: a model of {about['env']} cannot see these tapes; {POWER} and {FLOW} can")
            runs += [
                (name, params.terminal_penalty, tapes, functools.partial(observed, policy, params, tick=tapes[0].tick))
                for tapes in groups.values()
            ]
            continue
        assert fitted is not None
        for alpha in options.alpha:
            for (product, window), tapes in groups.items():
                fit = fitted.group(product, window)
                if options.env == POWER:
                    arguments = market_arguments(fit, tapes) | {"terminal_penalty": alpha} | changes
                    params = hawkes_power.Params.create(**arguments)
                else:
                    arguments = fit.kwargs(allow_explosive=options.allow_explosive)
                    params = hawkes_flow.Params.create(**(arguments | {"terminal_penalty": alpha} | changes))
                rule = functools.partial(named_rule, name, params, tick=tapes[0].tick)
                runs.append((name, params.terminal_penalty, tapes, rule))
    return runs


def _source(options: argparse.Namespace) -> str:
    if options.fit_on:
        return f"parameters of named policies fitted to {len(options.fit_on)} other tapes"
    return "parameters of named policies fitted to the same tapes (in sample)"


def _text(table: pd.DataFrame, width: int) -> str:
    with pd.option_context("display.width", width, "display.max_columns", 40):
        return table.to_string(index=False, float_format=lambda x: f"{x:.6g}", na_rep="")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    from mmgym.calibration.hawkes import json_value

    records: list[dict[str, Any]] = json_value(table.to_dict(orient="records"))
    return records


def _check_ending(file: str | None) -> None:
    if file is not None and Path(file).suffix not in (".csv", ".json"):
        raise ValueError(f"--output {file}: the name must end in .csv or .json")


def _write(file: str | None, table: pd.DataFrame, content: dict[str, Callable[[], Any]]) -> None:
    """Write the table as CSV, or everything with versions and commit as JSON."""
    if file is None:
        return
    from mmgym.agents.runs import provenance, write_json
    from mmgym.baselines.reproduce.artifacts import write_table

    path = Path(file)
    if path.suffix == ".csv":
        write_table(table, path)
    else:
        write_json(path, {**{name: make() for name, make in content.items()}, "provenance": provenance()})
    print(f"written: {path}")
