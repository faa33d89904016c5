"""``mmgym tape`` and ``simulate``: recorded markets read, checked and converted, and tapes of simulated ones.

A market declares its simulation in ``mmgym.calibration.<market>_simulation``: ``TITLE``, ``add_options(parser)`` and
``run(options, arguments)``, which writes to ``options.out`` and returns the files.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmgym.agents.commands.calibrate import declared
from mmgym.agents.commands.command import UsageError, add_output, environment_arguments
from mmgym.plain_files import replacing
from mmgym.printing import show
from mmgym.tapes import CheckedTape, Selection, check_level1, epex, read_recording
from mmgym.tapes.findings import described
from mmgym.tapes.formats import READERS
from mmgym.tapes.level1 import price_step
from mmgym.tapes.recording import Recording
from mmgym.tapes.selection import add_tape_options, selection_of
from mmgym.tapes.text_files import open_source

__all__ = ["add_options", "add_simulations"]

ENDINGS = (".csv", ".csv.gz")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym tape``, and what runs."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="check|convert|formats")
    check = kinds.add_parser("check", help="what is in files, and what is wrong with them")
    check.add_argument("file", nargs="+", metavar="IN", help="files of any known format")
    add_output(check)
    add_tape_options(check)
    check.set_defaults(run=_check)
    convert = kinds.add_parser("convert", help="write files of any known format as one level-1 tape")
    convert.add_argument("file", nargs="+", metavar="IN", help="files of any known format")
    convert.add_argument("out", metavar="OUT", help="the tape, .csv or .csv.gz; of the power market: a folder")
    add_tape_options(convert)
    power = convert.add_argument_group("power market (EPEX orders and trades)")
    power.add_argument("--product", help="such as H11 (default: all)")
    text = "between the end of the window Late and delivery (default 30)"
    power.add_argument("--gate-closure", type=float, default=30.0, metavar="MINUTES", help=text)
    power.add_argument("--length", type=float, default=60.0, metavar="MINUTES", help="of each window (default 60)")
    power.add_argument("--tick", type=float, default=0.01, metavar="EUR/MWH", help="of prices (default 0.01)")
    convert.set_defaults(run=_convert)
    formats = kinds.add_parser("formats", help="the formats that are known")
    formats.set_defaults(run=_formats)


def _formats(options: argparse.Namespace) -> None:
    show(pd.DataFrame([[reader.name, reader.layout] for reader in READERS], columns=["format", "files"]))


def _check(options: argparse.Namespace) -> None:
    recording = read_recording(options.file, selection_of(options), time_unit=options.time_unit)
    print("\n".join(_described(recording)))
    checked = check_level1(recording)
    clocks = {"quotes": checked.quote_clock(), "trades": checked.trade_clock()}
    print("".join(f"stamps of {name} are multiples of {step:g} s\n" for name, step in clocks.items() if step))
    show(_sessions(checked), options.output)
    print()
    findings = described(checked.findings)
    for event in ("quote", "trade"):
        if not (recording.tape["event"] == event).any():
            findings.append(f"WARNING (no_{event}s): the files hold no {event}s; calibrations need quotes and trades.")
    try:
        more = described(check_level1(recording, reach=True).findings)
        findings += [line for line in more if line not in findings]
    except ValueError as error:
        findings.append(f"REFUSED where distances of orders from the mid are fitted: {error}")
    print("\n".join(findings) if findings else "nothing is wrong with it")


def _described(recording: Recording) -> list[str]:
    """Two lines about a recording."""
    tape = recording.tape
    times = tape["time_s"]
    quotes = tape[tape["event"] == "quote"]
    lines = [
        f"{recording.name} ({', '.join(recording.formats)}): {len(tape)} rows, {len(quotes)} quotes and "
        f"{len(tape) - len(quotes)} trades, from {times.iloc[0]:.10g} to {times.iloc[-1]:.10g} s"
    ]
    if recording.origin is not None:
        lines.append(f"0 s is {pd.Timestamp(recording.origin):%Y-%m-%d} 00:00 UTC")
    if quotes[["bid", "ask"]].stack().nunique() > 1:
        step = price_step(quotes)
        ticks = np.median((quotes["ask"] - quotes["bid"]) / step)
        lines.append(f"prices are multiples of {step:g}; median spread {ticks:.4g} of them")
    return lines


def _sessions(checked: CheckedTape) -> pd.DataFrame:
    """One row for each session: its ends, how much is in it, how often."""
    rows = []
    for part, quotes, (start, end) in zip(checked.sessions, checked.quotes, checked.bounds, strict=True):
        orders = checked.orders[checked.orders["time_s"].between(start, end)]
        trades = int((part["event"] == "trade").sum())
        seconds = end - start
        rate = len(orders) / seconds if seconds > 0 else np.nan
        rows.append([start, end, seconds, len(quotes), trades, len(orders), rate])
    columns = ["start", "end", "seconds", "quote_stamps", "trades", "market_orders", "orders_per_s"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(0, "session", np.arange(1, len(table) + 1))
    return table


def _convert(options: argparse.Namespace) -> None:
    out = Path(options.out)
    if any(epex.kind(source) for file in options.file for source in open_source(file)):
        _convert_power(options, out)
        return
    if not out.name.endswith(ENDINGS):
        raise UsageError(f"{out}: the name must end in {' or '.join(ENDINGS)}")
    if out.exists() and any(out.samefile(file) for file in options.file):
        raise UsageError(f"{out} is one of the files that are read")
    recording = read_recording(options.file, selection_of(options), time_unit=options.time_unit)
    with replacing(out) as part:
        recording.tape.to_csv(part, index=False)
    print("\n".join([*_described(recording), *described(recording.findings)]))
    if len(recording.cuts):
        shortest = float(np.diff(recording.cuts, axis=1).min())
        print(f"{len(recording.cuts)} stretches are not observed, {shortest:.6g} s or longer: read the tape with --gap")
    print(f"\nwritten: {out}")


def _convert_power(options: argparse.Namespace, folder: Path) -> None:
    """Write a tape and its side file for each product, day and window."""
    if selection_of(options) != Selection() or options.time_unit is not None:
        raise UsageError("the options of level-1 tapes (--start, --session, ...) are not for the power market")
    own = {name: getattr(options, name) for name in ("product", "gate_closure", "length", "tick")}
    windows = epex.read_windows(options.file, **own)
    rows = []
    for window in windows:
        path = epex.write_tape(folder, window.events, window.about)
        orders = int(window.events["type"].isin(["MO_BUY", "MO_SELL"]).sum())
        rows.append([path.name, len(window.events), orders, len(window.findings)])
    show(pd.DataFrame(rows, columns=["tape", "events", "market_orders", "findings"]))
    print("\n".join(["", *described(finding for window in windows for finding in window.findings)]))
    print(f"written: {folder}")


def add_simulations(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym simulate``, and what runs."""
    for sub, module in declared(parser, "mmgym.calibration.{market}_simulation"):
        sub.add_argument("out", metavar="OUT", help="where to write")
        sub.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
        text = "parameter of the market (may be repeated)"
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
        sub.set_defaults(run=functools.partial(_simulate, module.run))


def _simulate(run: Any, options: argparse.Namespace) -> None:
    files = run(options, environment_arguments(options.set))
    print("\n".join(f"written: {file}" for file in files))
