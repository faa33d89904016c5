"""The command line: ``mmgym COMMAND``."""

import argparse
import ast
import importlib
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pandas as pd

__all__ = ["main"]


class UsageError(Exception):
    """Something in the command line cannot be used; the message says what is allowed."""


def _environment_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments from ``name=value`` words; values are Python literals, true or false; others are text."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {pair!r}: must be name=value, for example --set fill_decay=1.2")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = {"true": True, "false": False}.get(text, text)
    return found


def _show(table: pd.DataFrame, file: str | None, *, index: bool = True) -> None:
    """Print a table and, if asked, write it as CSV or JSON."""
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_rows", 200):
        print(table.to_string(index=index, float_format=lambda x: f"{x:.6g}"))
    _write(table, file, index=index)


ENDINGS = {"output": (".csv", ".json"), "plot": (".png", ".pdf", ".svg", ".jpg")}  # of the files that options name


def _check_endings(options: argparse.Namespace) -> None:
    """Refuse a file whose kind cannot be written before anything is computed."""
    for option, endings in ENDINGS.items():
        file = getattr(options, option, None)
        if file is not None and Path(file).suffix not in endings:
            raise UsageError(f"--{option} {file}: the name must end in {' or '.join(endings)}")


def _write(table: pd.DataFrame, file: str | None, *, index: bool = True) -> None:
    """Write a table as CSV or JSON, if a file is named."""
    if file is None:
        return
    path = Path(file)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        part.write_text(table.to_json(orient="index" if index else "records", indent=1), encoding="utf-8")
    else:
        table.to_csv(part, index=index)
    part.replace(path)
    print(f"\nwritten: {path}")


def _list(options: argparse.Namespace) -> None:
    from mmgym.registration import ENVIRONMENTS

    rows = [{"id": row.id, "market": row.market, "optimum": row.level, "source": row.title} for row in ENVIRONMENTS]
    _show(pd.DataFrame(rows), options.output, index=False)


def _solve(options: argparse.Namespace) -> None:
    import time

    import gymnasium

    from mmgym.baselines.baseline import BestKnownPolicy, baseline_of, environment_of

    env = environment_of(options.env, **_environment_arguments(options.set))
    started = time.perf_counter()
    baseline = baseline_of(env)
    best, (lower, upper, error) = baseline.best_policy(), baseline.bounds()
    seconds, problem = time.perf_counter() - started, baseline.problem
    digits = 6 if problem is None else 10
    known = f"{upper:.{digits}f}" if lower == upper else f"between {lower:.{digits}f} and {upper:.{digits}f}"
    if isinstance(best, BestKnownPolicy):
        known += f", best known policy {best.name}"
    level = best.level if problem is not None else f"{best.level}, error {error:.2g}"
    print(f"{options.env}: optimum {known} ({level}), reference policy {baseline.reference_value():.{digits}f}")
    size = "" if problem is None else f"{problem.num_steps} steps x {problem.num_states} states, "
    print(f"{size}solved or read from disk in {seconds:.2f} s (compilation included)")
    if problem is not None and isinstance(env.action_space, gymnasium.spaces.Box):  # discrete ones have no bounds
        binding = best.binding.any(axis=-1)
        print(f"the bounds of the action space bind in {int(binding.sum())} of {binding.size} cells")
    print()
    _show(pd.DataFrame(baseline.examples(env.control_names)), options.output, index=False)


def _policies(options: argparse.Namespace, env: Any) -> dict[str, Any]:
    """Policies by name: "optimal" ("best" in a bracketed market), a paper policy, "all", a table (.npz), a folder."""
    from mmgym.baselines import best_known_policy, paper_policies
    from mmgym.baselines.catalogue import level_of

    first = "best" if level_of(env) == "bracketed" else "optimal"
    papers: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name in options.policy:
        if name == first:
            found[name] = best_known_policy(env)
        elif Path(name).suffix == ".npz" and Path(name).is_file():
            from mmgym.baselines import load_policy

            found[name] = load_policy(name, env)
        elif Path(name).exists():
            from mmgym.agents.train import load_model

            folder = Path(name) / "model" if (Path(name) / "model" / "model.json").exists() else Path(name)
            found[name], _ = load_model(folder)
        else:
            papers = papers or paper_policies(env)
            if name == "all":
                found |= {first: best_known_policy(env), **papers}
            elif name in papers:
                found[name] = papers[name]
            else:
                known = ", ".join(papers)
                raise UsageError(
                    f"policy {name!r} is neither a folder, a table (.npz) nor one of: all, {first}, {known}"
                )
    return found


def _score(options: argparse.Namespace) -> None:
    from mmgym.baselines import risk_table, score, score_table
    from mmgym.baselines.catalogue import environment_of, policy_origins

    env = environment_of(options.env, **_environment_arguments(options.set))
    policies = _policies(options, env)
    method = "simulated" if options.simulated else "auto"
    scores = {
        name: score(
            env,
            policy,
            method=method,
            episodes=options.episodes,
            stderr=options.stderr,
            seed=options.seed,
            deterministic=not options.as_it_acts,
            progress=sys.stderr.isatty(),
            risk=options.risk and (options.risk_method if options.risk_method != "auto" else True),
        )
        for name, policy in policies.items()
    }
    table = score_table(scores)
    origins = policy_origins(env)
    table["from"] = [origins.get(name, "") for name in table.index]  # of a paper, or ours
    lower, upper = (getattr(next(iter(scores.values())), f"optimum_{side}") for side in ("lower", "upper"))
    known = f"{upper:.10f}" if lower == upper else f"between {lower:.6f} and {upper:.6f}"
    print(f"{options.env}: optimum {known}\n")
    if not options.risk:
        _show(table, options.output)
        return
    measures = risk_table(scores)
    _show(table.drop(columns=[name for name in table.columns if name in measures.columns]), None)
    print()
    _show(measures, None)
    print(
        "\nVaR and CVaR: losses of the final P&L (negative: a profit). drawdown: the largest at step ends, its mean "
        f"and quantiles.\nBrackets: 95 % intervals of what is simulated, from {max(options.episodes, 10_000)} episodes."
    )
    _write(table, options.output)


def _train(options: argparse.Namespace) -> None:
    from mmgym.agents.train import train

    folder, found = train(
        options.config,
        options.env,
        seed=options.seed,
        folder=options.folder,
        arguments=_environment_arguments(options.set),
        reward=options.reward,
        timesteps=options.timesteps,
        threads=options.threads,
        checkpoint_steps=options.checkpoint_steps,
        score_steps=options.score_steps,
        resume=options.resume,
    )
    print(f"skill {found.skill:.4f}, regret {found.regret}, optimum {found.optimum_upper:.6f}; saved in {folder}")


def _benchmark(options: argparse.Namespace) -> None:
    from mmgym.agents.benchmark import load_benchmark, run_benchmark
    from mmgym.agents.benchmark_report import markdown_table, write_report

    benchmark = load_benchmark(options.config)
    folder = Path(options.folder or Path("results") / f"benchmark-{benchmark.title}")
    results = run_benchmark(
        benchmark,
        folder,
        engine=options.engine,
        workers=options.workers,
        retry_failed=options.retry_failed,
        imports=options.imports,
    )
    summaries = write_report(benchmark, results, folder)
    print(markdown_table(summaries))
    failures = [result for result in results if result["status"] == "failed"]
    for result in failures:
        print(f"failed: {result['cell']['key']}: {result['error']}")
    print(f"\nwritten: {folder}/report.html, results.csv, summary.csv, benchmark.json")
    if failures:
        raise SystemExit(1)


def _fictitious_play(options: argparse.Namespace) -> None:
    from mmgym.agents.fictitious_play import load_game, play_game

    settings, source = load_game(options.config)
    folder = options.folder or Path("runs") / Path(source).stem
    found = play_game(settings, folder, seed=options.seed)
    print(f"{settings.environment}: the constant quote's population has the exploitability {found.constant:.8g}\n")
    _show(found.curve, None, index=False)
    print(f"\nwritten: {folder}")


def _record(options: argparse.Namespace) -> None:
    from mmgym.agents.record import POLICIES, record
    from mmgym.baselines.catalogue import environment_of

    arguments = _environment_arguments(options.set)
    env = environment_of(options.env, **arguments)
    wanted = options.policy or list(POLICIES)
    others = argparse.Namespace(policy=[name for name in wanted if name not in POLICIES])
    given = _policies(others, env)
    found = record(
        options.env,
        options.folder,
        policies={Path(name).name: given.get(name, name) for name in wanted},
        episodes=options.episodes,
        seed=options.seed,
        arguments=arguments,
        progress=sys.stderr.isatty(),
    )
    rows = {
        part.policy: {
            "steps": part.steps,
            "mean return": part.mean_return,
            "stderr": part.stderr,
            "exact": part.score.mean_return,
            "skill": part.score.skill,
            "method": part.score.method,
            "dataset": part.dataset_id,
        }
        for part in found
    }
    first = found[0].score
    print(
        f"{options.env}: {options.episodes} episodes a policy; returns of skill 0 and 1: "
        f"{first.reference_return:.10g} and {first.optimum_return:.10g} ({first.level})\n"
    )
    _show(pd.DataFrame.from_dict(rows, orient="index"), options.output)
    folder = Path(options.folder).resolve()
    print(f"\nwritten: MINARI_DATASETS_PATH={folder}, then minari.load_dataset(DATASET)")


def _demo(options: argparse.Namespace) -> None:
    from mmgym.agents.demo import demo

    demo(Path(options.folder), seed=options.seed, timesteps=options.timesteps, threads=options.threads)


def _calibrate(options: argparse.Namespace) -> None:
    from importlib import import_module

    module = import_module(f"mmgym.calibration.{options.market}")
    found = module.calibrate(options.file, **{name: getattr(options, name) for name in options.calibration})
    _show(found.table(), options.output)
    print()
    print(found.summary())
    if options.plot:
        found.plot(options.plot)
        print(f"\nwritten: {options.plot}")
    arguments = json.dumps(found.kwargs(), allow_nan=False)
    if found.findings:
        print(f"\nwith warnings (above): {', '.join(dict.fromkeys(item.name for item in found.findings))}")
    print(f'\ngymnasium.make("{options.env}", **{arguments})')


def _add_calibrations(calibrate: argparse.ArgumentParser, output: Any) -> None:
    """A parser of its own for each market: its options, apart from file, plot and output, are those of `calibrate`."""
    from mmgym.agents.hawkes_commands import add_calibrate_arguments

    markets = calibrate.add_subparsers(dest="market", required=True, metavar="MARKET")

    def market(name: str, env: str, file_text: str, help_text: str) -> argparse.ArgumentParser:
        sub = markets.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(env=env)
        sub.add_argument("file", help=f"{file_text}, .csv or .csv.gz (columns: see mmgym.calibration.{name})")
        sub.add_argument("--plot", metavar="FILE.png", help="picture of the fit")
        output(sub)
        return sub

    interval = "between mids (default 1, or more where bid-ask noise asks for it)"
    unit = "of time_s (default s; what looks like another one is refused)"
    sub = market("glft", "mmgym/GLFT-v0", "quotes or level-1 tape", "exponential fill rates and a Brownian mid")
    options = [
        sub.add_argument("--kind", choices=["auto", "quotes", "tape"], default="auto"),
        sub.add_argument("--volatility-interval", type=float, metavar="SECONDS", help=f"tape: {interval}"),
        sub.add_argument("--minimum-depth", type=float, help="tape: smallest depth of the fit"),
        sub.add_argument("--maximum-depth", type=float, help="tape: largest depth of the fit"),
        sub.add_argument("--time-unit", choices=["s", "ms", "us", "ns"], help=f"tape: {unit}"),
    ]
    sub.set_defaults(calibration=[option.dest for option in options])

    text = "spread chain, its clock and execution intensities"
    sub = market("tick_spread", "mmgym/TickSpread-v0", "level-1 tape", text)
    pieces = sub.add_mutually_exclusive_group()
    options = [
        sub.add_argument("--own-quotes", metavar="LOG.csv", help="log of own quotes and fills"),
        sub.add_argument("--tick", type=float, help="unit of the spread in price (default: that of the tape)"),
        sub.add_argument("--spreads", dest="num_spreads", type=int, metavar="M", help="M ticks or more are one spread"),
        pieces.add_argument("--clock-pieces", type=int, metavar="N", help="pieces of the clock (default: one an hour)"),
        sub.add_argument("--own-size", type=float, default=100.0, metavar="V0", help="of the proxy (default 100)"),
        sub.add_argument("--start", type=float, metavar="SECONDS", help="of the window (default: first quote)"),
        sub.add_argument("--end", type=float, metavar="SECONDS", help="of the window (default: last event)"),
        sub.add_argument("--volatility-interval", type=float, metavar="SECONDS", help=interval),
        sub.add_argument("--time-unit", choices=["s", "ms", "us", "ns"], help=unit),
    ]
    text = "times of the tape at which the clock may change"
    pieces.add_argument("--clock-changes", dest="clock_pieces", nargs="+", type=float, metavar="SECONDS", help=text)
    sub.set_defaults(calibration=[option.dest for option in options])

    text = "six Hawkes processes, impacts and reach from event tapes"
    add_calibrate_arguments(markets.add_parser("hawkes_power", help=text, description=text))


def _reproduce(options: argparse.Namespace) -> None:
    from importlib import import_module

    from mmgym.baselines.reproduce import PAPERS

    folder = Path(options.folder or Path("results") / options.paper)
    module = import_module(f"mmgym.baselines.reproduce.{PAPERS[options.paper]}")
    print(module.reproduce(folder, quick=options.quick, progress=sys.stderr.isatty()))
    print(f"\nwritten: {folder}")


def _throughput(options: argparse.Namespace) -> None:
    from mmgym.agents.throughput import throughput

    arguments = _environment_arguments(options.set)
    _show(throughput(options.env, seconds=options.seconds, **arguments), options.output, index=False)


def _parser() -> argparse.ArgumentParser:
    from mmgym.agents.config import config_names
    from mmgym.agents.hawkes_commands import add_backtest_arguments
    from mmgym.baselines.reproduce import PAPERS

    description = "Market making in which the best possible result is known."
    parser = argparse.ArgumentParser(prog="mmgym", description=description)
    text = "import a module first, which registers markets of your own (may be repeated): files may then name their ids"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=text)
    parser.add_argument("--traceback", action="store_true", help="of an error, show where it comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_text: str, *, env: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(run=run)
        if env:
            sub.add_argument("--env", required=True, metavar="ID", help="environment id, see `mmgym list`")
            text = "constructor argument of the environment (may be repeated)"
            sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
        return sub

    def output(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--output", metavar="FILE", help="also write the table, as .csv or .json")

    output(command("list", _list, "list the environments and how exactly their optimum is known"))
    output(command("solve", _solve, "solve an environment exactly and print its optimum", env=True))

    sub = command("score", _score, "score policies or trained models against the optimum", env=True)
    sub.add_argument(
        "policy",
        nargs="+",
        help="optimal (best, where it is bracketed), a policy of a paper or ours by name, all, a table "
        "(.npz), or the folder of a run or model",
    )
    sub.add_argument("--simulated", action="store_true", help="simulate with the advantage-sum control variate")
    sub.add_argument("--as-it-acts", action="store_true", help="score a stochastic policy as it acts, not at its mode")
    sub.add_argument("--episodes", type=int, default=2000, help="simulated episodes (default 2000)")
    sub.add_argument("--stderr", type=float, help="standard error at which a simulation stops")
    sub.add_argument("--seed", type=int, default=0, help="seed of a simulation (default 0)")
    text = "add VaR and CVaR of the final P&L and the drawdown, with 95 %% intervals of what is simulated"
    sub.add_argument("--risk", action="store_true", help=text)
    text = (
        "of VaR and CVaR, with --risk: by the exact law of the P&L where it takes seconds (auto, default), or always "
    )
    text += "(exact), or simulated"
    sub.add_argument("--risk-method", choices=["auto", "exact", "simulated"], default="auto", help=text)
    output(sub)

    sub = command("train", _train, "train an agent and score it exactly", env=True)
    sub.add_argument(
        "config",
        help=f"path of a configuration, or the name of a shipped one: {', '.join(config_names())}",
    )
    sub.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
    sub.add_argument("--folder", help="of the run (default runs/ENVIRONMENT/ALGORITHM-SEED)")
    sub.add_argument("--reward", choices=["expected", "pnl"], default="expected", help="rewards to train on")
    sub.add_argument("--timesteps", type=int, help="environment steps, instead of the configuration's")
    sub.add_argument("--threads", type=int, default=1, help="threads (default 1: reproducible bit for bit)")
    sub.add_argument("--checkpoint-steps", type=int, default=1_000_000, help="steps between checkpoints (default 1e6)")
    sub.add_argument("--score-steps", type=int, help="steps between two exact scores (default a twentieth of the run)")
    sub.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")

    text = "train and score algorithms in many markets, and compare them with the papers and the optimum"
    sub = command("benchmark", _benchmark, text)
    sub.add_argument("config", help="path of a benchmark file, or the name of a shipped one (benchmark_quick)")
    sub.add_argument(
        "--folder", help="of the benchmark (default results/benchmark-TITLE); what it has is not run again"
    )
    sub.add_argument("--engine", choices=["processes", "ray"], default="processes", help="ray: cluster at RAY_ADDRESS")
    sub.add_argument("--workers", type=int, help="worker processes (default one for each core)")
    sub.add_argument("--retry-failed", action="store_true", help="run cells again that failed")

    text = "record episodes of known policies as Minari datasets, with exact reference scores"
    sub = command("record", _record, text, env=True)
    text = (
        "optimal, medium (the optimum perturbed to skill 0.5), random (these three by default), or what `score` takes "
        "but all: a paper policy, a table (.npz), or the folder of a run or model"
    )
    sub.add_argument("policy", nargs="*", help=text)
    sub.add_argument("--folder", default="datasets", help="root of the datasets (default datasets)")
    sub.add_argument("--episodes", type=int, default=1000, help="of each policy (default 1000)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the recording (default 0)")
    output(sub)

    sub = command("demo", _demo, "train PPO in the Avellaneda-Stoikov market and compare it with the optimum")
    sub.add_argument("--folder", default="runs/demo")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--timesteps", type=int, help="environment steps, instead of the configuration's")
    sub.add_argument("--threads", type=int, default=1, help="threads (default 1: reproducible bit for bit)")

    _add_calibrations(command("calibrate", _calibrate, "fit a market's parameters to a file"), output)

    sub = command("fictitious_play", _fictitious_play, "takers of the mean field learn against their own population")
    sub.add_argument("config", help="configuration: a path, or the name of a shipped one (fictitious_play)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--folder", type=Path, help="of the results (default runs/<config>)")
    from mmgym.agents.constrain_command import add_constrain_arguments

    add_constrain_arguments(command("constrain", None, "find the best quotes under limits on loss and drawdown"))

    text = "replay event tapes against policies"
    markets = command("backtest", None, text).add_subparsers(dest="market", required=True, metavar="MARKET")
    add_backtest_arguments(markets.add_parser("hawkes_power", help=text, description=text))

    sub = command("reproduce", _reproduce, "recompute a paper's tables and figures")
    sub.add_argument("paper", choices=sorted(PAPERS))
    sub.add_argument("--folder", help="where to write (default results/PAPER)")
    sub.add_argument("--quick", action="store_true", help="smaller sizes")

    sub = command("throughput", _throughput, "measure environment and training speed on this machine")
    sub.add_argument("--env", default="mmgym/AvellanedaStoikov-v0", metavar="ID")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    sub.add_argument("--seconds", type=float, default=1.0, help="per measurement (default 1)")
    output(sub)
    return parser


RESUMED = {  # what an interrupted command leaves, and how to go on
    "train": "the same command with --resume goes on from the last checkpoint, if there is one",
    "benchmark": "the same command goes on with the cells that are missing",
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

    Every error is one line on standard error; ``--traceback`` shows where it comes from.
    """
    options = argparse.Namespace(command="", traceback=False)
    try:
        options = _parser().parse_args(arguments)
        _check_endings(options)
        for name in options.imports:
            importlib.import_module(name)
        options.run(options)
    except (Exception, KeyboardInterrupt) as error:
        if options.traceback:
            raise
        line, status = _explanation(error, options.command)
        print(f"mmgym {options.command}: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
