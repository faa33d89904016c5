"""``mmgym replay``: policies on recorded books, beside what the model promises of them.

Markets may replay files of their own kind otherwise: ``mmgym.baselines.<market>.replay_command`` with its ``KIND`` of
files, ``reads(files)``, ``add_options(group)`` and their names ``OPTIONS``, and ``run(options, arguments,
load_policy)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmgym
from mmgym.agents.commands.command import (
    Command,
    UsageError,
    environment_arguments,
    load_policy,
    named_policies,
)
from mmgym.plain_files import json_value, read_json
from mmgym.printing import show, table_text, write_result, write_table

if TYPE_CHECKING:
    from mmgym.tapes.findings import Finding

__all__ = ["REPLAY"]


def _own_commands() -> dict[str, Any]:
    """Modules of the markets that replay files of their own kind."""
    from mmgym.registration import ENVIRONMENTS

    markets = dict.fromkeys(row.market for row in ENVIRONMENTS if not row.declared)
    folder = Path(mmgym.__file__).parent / "baselines"  # find_spec would import every market
    own = [market for market in markets if (folder / market / "replay_command.py").exists()]
    return {market: import_module(f"mmgym.baselines.{market}.replay_command") for market in own}


def _add_options(parser: argparse.ArgumentParser) -> None:
    text = "a market (its first id of `mmgym list`; not with --env alone), then the files: hftbacktest's .npz, a "
    text += "recorded stream of Binance (.gz), or a level-1 tape (.csv, .csv.gz); each is a session of its own"
    parser.add_argument("words", nargs="+", metavar="MARKET|FILE", help=text)
    parser.add_argument("--env", metavar="ID", help="environment id instead of a market's first one")
    text = "optimal (best, where it is bracketed; default), a policy by name, all, a table (.npz), or the folder of a "
    parser.add_argument("--policy", nargs="+", metavar="POLICY", help=f"{text}run or model")
    text = "constructor arguments of the environment: a JSON file with them, or one that `calibrate --output` wrote"
    parser.add_argument("--params", metavar="FIT.json", help=text)
    text = "constructor argument of the environment (may be repeated), instead of what --params has"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "between decisions, in the market's unit of time (default 0.1 s, or a step where that is shorter)"
    parser.add_argument("--interval", type=float, metavar="TIME", help=text)
    text = "inventory at the end of an episode (default: what the market's criterion does)"
    parser.add_argument("--ending", choices=["carry", "pass_on", "liquidate"], help=text)
    text = "of the window that is played: its seconds, or such as 2024-08-08T10:00 (what was before is known)"
    parser.add_argument("--start", metavar="TIME", help=text)
    parser.add_argument("--end", metavar="TIME", help="of the window")
    parser.add_argument("--session", metavar="HH:MM-HH:MM", help="of every day, each a session of its own")
    _add_assumptions(parser.add_argument_group("assumptions"))
    group = parser.add_argument_group("output")
    group.add_argument("--adverse", type=float, metavar="SECONDS", help="after a fill (default 1)")
    group.add_argument("--block", type=float, metavar="SECONDS", help="of the bootstrap (default: 30 a session)")
    text = "write replay.csv, fills.csv, the tables, replay.json and replay.png there"
    group.add_argument("--folder", metavar="DIR", help=text)
    group.add_argument("--plot", metavar="FILE.png", help="picture of the replay")
    group.add_argument("--output", metavar="FILE", help="write the table model against book as .csv, or all as .json")
    for market, module in _own_commands().items():
        module.add_options(parser.add_argument_group(f"{module.KIND} ({market})"))


def _add_assumptions(group: Any) -> None:
    text = "how an order gets on in its queue: only by trades (default), or with a share of what is cancelled"
    group.add_argument("--queue", choices=["risk_averse", "log", "power"], help=text)
    group.add_argument("--queue-power", type=float, help="exponent of `power` (default 3)")
    text = "filled by what is left of a trade (default), or whole once one gets there"
    group.add_argument("--fills", choices=["partial", "whole"], help=text)
    text = "milliseconds to the exchange, and back (default 10)"
    group.add_argument("--order-latency", type=float, metavar="MS", help=text)
    text = "milliseconds of market data beyond what the recording has (default 0)"
    group.add_argument("--feed-latency", type=float, metavar="MS", help=text)
    text = "fee of quotes that are filled, of the traded value; negative: a rebate (default: the model's)"
    group.add_argument("--maker-fee", type=float, metavar="SHARE", help=text)
    text = "the same of market orders (default: the model's)"
    group.add_argument("--taker-fee", type=float, metavar="SHARE", help=text)
    text = "what fees are of: the traded value (default), or an asset"
    group.add_argument("--fee-per", choices=["value", "asset"], help=text)
    group.add_argument("--tick", type=float, help="step of prices (default: the smallest in the file)")
    group.add_argument("--lot", type=float, help="step of sizes (default: the smallest in the file)")


OF_BOOKS = (
    "params", "ending", "queue", "queue_power", "fills", "order_latency", "feed_latency", "maker_fee", "taker_fee",
    "fee_per", "tick", "lot", "adverse", "block", "folder", "plot",
)  # fmt: skip


def _refuse(options: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Refuse options that would do nothing."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]
    if given:
        raise UsageError(f"{', '.join(given)}: not for a replay of {what}")


def _market_and_files(options: argparse.Namespace) -> tuple[str | None, str, list[str]]:
    """Market (None: only an id is given), environment id and files."""
    from mmgym.registration import ENVIRONMENTS

    ids: dict[str, str] = {}
    for row in ENVIRONMENTS:
        ids.setdefault(row.market, row.id)
    first, *rest = options.words
    if first in ids and not Path(first).exists():
        market, files = first, rest
    else:
        market, files = None, list(options.words)
    if market is None and options.env is None:
        raise UsageError(f"name a market ({', '.join(ids)}) before the files, or an environment by --env")
    if not files:
        raise UsageError("no files: at least one recording is needed")
    return market, options.env or ids[market or ""], files


def _run(options: argparse.Namespace) -> None:
    market, env_id, files = _market_and_files(options)
    arguments = environment_arguments(options.set)
    own = _own_commands()
    if market in own and own[market].reads(files):
        _refuse(options, OF_BOOKS, own[market].KIND)
        options.file = files
        own[market].run(options, arguments, load_policy)
        return
    for module in own.values():
        _refuse(options, module.OPTIONS, "a book")
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    fitted = {} if options.params is None else _parameters(Path(options.params), env_id)
    _replay(options, env_id, files, fitted | arguments)


def _parameters(path: Path, env_id: str) -> dict[str, Any]:
    """Constructor arguments of a JSON file: they themselves, or the entry ``arguments``, by id or one fit by id."""
    content = read_json(path)
    arguments = content
    if isinstance(content, dict) and isinstance(content.get("arguments"), dict):
        arguments = content["arguments"]
        inner = list(arguments.values())
        if env_id not in arguments and len(inner) == 1 and isinstance(inner[0], dict) and env_id in inner[0]:
            arguments = inner[0]  # of the one group of tapes
        arguments = arguments.get(env_id, arguments)
    if not isinstance(arguments, dict) or any(isinstance(value, dict) for value in arguments.values()):
        raise UsageError(f"--params {path}: there are no constructor arguments of {env_id} in it")
    return arguments


def _replay(options: argparse.Namespace, env_id: str, files: list[str], arguments: dict[str, Any]) -> None:
    from mmgym.adapters.hftbacktest import Assumptions, read_recordings
    from mmgym.baselines.catalogue import environment_of, level_of
    from mmgym.baselines.replay import Costs, compare, rules_of
    from mmgym.baselines.replay.session import ENDING_WORDS
    from mmgym.tapes import Selection
    from mmgym.tapes.findings import described

    env = environment_of(env_id, **arguments)
    rules = rules_of(env)
    given = {name: value for name in ("queue", "queue_power", "fills") if (value := getattr(options, name)) is not None}
    if options.order_latency is not None:
        given |= dict.fromkeys(("order_latency", "response_latency"), options.order_latency / 1e3)
    if options.feed_latency is not None:
        given["feed_latency"] = options.feed_latency / 1e3
    assumptions = Assumptions(**given)
    costs = Costs(options.maker_fee, options.taker_fee, options.fee_per or "value")
    selection = Selection(start=options.start, end=options.end, session=options.session)
    by_file = {file: read_recordings([file], selection, tick=options.tick, lot=options.lot) for file in files}
    recordings = [one for parts in by_file.values() for one in parts]
    findings = {file: dict.fromkeys(item for one in parts for item in one.findings) for file, parts in by_file.items()}
    horizon = env.params.horizon * rules.seconds
    long = [r for r in recordings if r.seconds >= horizon] or recordings
    short = [
        f"{r.source}: left out, {r.seconds:.6g} s are less than an episode" for r in recordings if r.seconds < horizon
    ]
    recordings = long
    names = options.policy or ["best" if level_of(env) == "bracketed" else "optimal"]
    interval = None if options.interval is None else options.interval * rules.seconds
    comparisons = {
        name: compare(
            env, policy, recordings, assumptions, costs=costs, interval=interval, ending=options.ending,
            horizon=1.0 if options.adverse is None else options.adverse,
        )
        for name, policy in named_policies(names, env).items()
    }  # fmt: skip
    sessions = next(iter(comparisons.values())).sessions
    said = [
        *(f"{r.source}: {r.seconds:.6g} s, tick {r.tick:g}, lot {r.lot:g}" + "".join(f"; {x}" for x in r.remarks)
          for r in recordings),
        *short,
        f"{env_id}: {sum(s.episodes for s in sessions)} episodes of {sessions[0].steps * sessions[0].interval:g} s, "
        f"a decision every {sessions[0].interval:g} s; at the end of an episode "
        f"{ENDING_WORDS[options.ending or rules.ending]}",
        *([rules.words] if rules.words else []), *([rules.state.words] if rules.state is not None else []),
        assumptions.sentence(),
        costs.sentence(rules),
    ]  # fmt: skip
    print("\n".join(said))
    print("".join(f"{Path(file).name}: {line}\n" for file, own in findings.items() for line in described(own)), end="")
    results = _shown(comparisons, rules, options.block)
    warned = [item for own in findings.values() for item in own]
    warnings = [{"file": file, "name": item.name, "text": item.text} for file, own in findings.items() for item in own]
    about = {"assumptions": said, "warnings": warnings, "env": env_id, "arguments": arguments}
    _write(options, results, about, warned)


def _shown(comparisons: dict[str, Any], rules: Any, block: float | None) -> dict[str, Any]:
    """Print the tables of each policy; they by name: its comparison, its figures, its fills by depth."""
    from mmgym.baselines.replay.metrics import fills_by_depth, metrics

    results = {}
    for name, comparison in comparisons.items():
        figures, blocks = metrics(comparison.sessions, block)
        depths = fills_by_depth(comparison.sessions, rules)
        results[name] = (comparison, figures, depths)
        print(f"\n{name}, an episode: model ({comparison.score.method}) against book\n")
        show(comparison.table, index=True)
        print()
        show(comparison.parts, index=True)
        print(f"\n{name}: {blocks}\n")
        show(figures, index=True)
        print(f"\n{name}: fills by depth, beside the law's (95 % intervals, by the dispersion of counts)\n")
        print(table_text(depths, digits=4))
    return results


def _write(
    options: argparse.Namespace, results: dict[str, Any], about: dict[str, Any], warned: Sequence[Finding]
) -> None:
    """Write what was asked for; the tables of figures and the picture name what is warned of."""
    import pandas as pd

    if not (options.output or options.folder or options.plot):
        return

    def together(place: int, attribute: str | None = None) -> Any:
        tables = {k: getattr(v[place], attribute) if attribute else v[place] for k, v in results.items()}
        return pd.concat(tables, names=["policy"]).reset_index()

    tables = {
        "model_against_book": together(0, "table"),
        "parts": together(0, "parts"),
        "metrics": together(1),
        "fills_by_depth": together(2).drop(columns="level_1"),
    }
    if warned:
        names = ", ".join(dict.fromkeys(item.name for item in warned))
        tables = {name: table.assign(warning=names) for name, table in tables.items()}
    records = {name: json_value(table.to_dict(orient="records")) for name, table in tables.items()}
    print()
    if options.output:
        write_result(options.output, tables["model_against_book"], {**about, **records})
    if options.plot:
        _picture(results, Path(options.plot), warned)
    if options.folder:
        folder = Path(options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_table(table, folder / f"{name}.csv")
        sessions = {name: row[0].sessions for name, row in results.items()}
        frames = {name: pd.concat([one.frame() for one in each]) for name, each in sessions.items()}
        fills = {
            name: pd.concat([one.fills.assign(file=one.recording.source) for one in each])
            for name, each in sessions.items()
        }
        for file, parts in (("replay.csv", frames), ("fills.csv", fills)):
            write_table(pd.concat(parts, names=["policy"]).reset_index(level=0), folder / file)
        write_result(str(folder / "replay.json"), tables["parts"], {**about, **records})
        _picture(results, folder / "replay.png", warned)


def _picture(results: dict[str, Any], path: Path, warned: Sequence[Finding]) -> None:
    from mmgym.baselines.replay.picture import picture

    comparisons, depths = ({name: row[place] for name, row in results.items()} for place in (0, 2))
    picture(comparisons, depths, path, warned)
    print(f"written: {path}")


EXAMPLE = """\
$ mmgym replay --env mmgym/GLFT-v0 ethusdt_stream.gz --set fill_rate=0.8 --set fill_decay=6 --set volatility=0.15 \\
    --set horizon=60 --set num_steps=600 --set inventory_limit=3 --policy optimal constant --folder replay

What --params takes is what a calibration of the same recordings found: `mmgym calibrate MARKET TAPE --output FIT.json`.
"""

REPLAY = Command("replay", "policies on recorded books, beside what the model promises", _add_options, _run, EXAMPLE)
