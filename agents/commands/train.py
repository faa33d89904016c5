"""``mmgym train``, ``benchmark`` and ``demo``: agents that learn."""

import argparse
from pathlib import Path

from mmgym.agents.commands.command import Command, UsageError, add_environment, add_plot, environment_arguments

__all__ = ["BENCHMARK", "DEMO", "TRAIN"]


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timesteps", type=int, help="environment steps, instead of the configuration's")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1: reproducible bit for bit)")


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    from mmgym.agents.config import config_names

    add_environment(parser)
    text = f"path of a configuration, or the name of a shipped one: {', '.join(config_names())}"
    parser.add_argument("config", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
    parser.add_argument("--folder", help="of the run (default runs/ENVIRONMENT/ALGORITHM-SEED)")
    parser.add_argument("--reward", choices=["expected", "pnl"], default="expected", help="rewards to train on")
    _add_size(parser)
    text = "steps between checkpoints (default 1e6)"
    parser.add_argument("--checkpoint-steps", type=int, default=1_000_000, help=text)
    text = "steps between two exact scores (default a twentieth of the run)"
    parser.add_argument("--score-steps", type=int, help=text)
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="train anew where the folder holds a finished run")
    add_plot(parser, "the exact skill during training")


def _train(options: argparse.Namespace) -> None:
    from mmgym.agents.train import train

    folder, score = train(
        options.config,
        options.env,
        seed=options.seed,
        folder=options.folder,
        arguments=environment_arguments(options.set),
        reward=options.reward,
        timesteps=options.timesteps,
        threads=options.threads,
        checkpoint_steps=options.checkpoint_steps,
        score_steps=options.score_steps,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    print(f"skill {score.skill:.4f}, regret {score.regret}, optimum {score.optimum_upper:.6f}; saved in {folder}")
    if score.skill < 0.0:
        print(
            "worse than the reference policy: often too few steps, too much initial noise (log_std_init), a discount "
            "below 1, or price noise in the rewards (--reward pnl); --plot FILE.png shows the course"
        )
    if options.plot:
        from mmgym import plot
        from mmgym.plain_files import read_json

        run = read_json(folder / "run.json")
        last = {"steps": run["steps"], "skill": score.skill}
        points = [*(run["curve"] or []), last]
        lowest = min(-0.3, *(1.05 * point["skill"] for point in points))
        axis = plot.learning_curves({run["settings"]["config"]["algorithm"]: points}, lowest=lowest)
        plot.write_figure(axis.figure, options.plot)
        print(f"written: {options.plot}")


def _add_benchmark_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="path of a benchmark file, or the name of a shipped one (benchmark_quick)")
    text = "of the benchmark (default results/benchmark-TITLE); what it has is not run again"
    parser.add_argument("--folder", help=text)
    text = "ray: cluster at RAY_ADDRESS"
    parser.add_argument("--engine", choices=["processes", "ray"], default="processes", help=text)
    parser.add_argument("--workers", type=int, help="worker processes (default one for each core)")
    parser.add_argument("--retry-failed", action="store_true", help="run cells again that failed")
    text = (
        "score agents of others instead, and put their rows beside those of the benchmark that was run (in the folder, "
    )
    text += (
        "or as it is shipped): a folder of policies, or module:function (see mmgym.agents.leaderboard; may be repeated)"
    )
    parser.add_argument("--add", nargs=2, action="append", metavar=("NAME", "SOURCE"), help=text)


def _benchmark(options: argparse.Namespace) -> None:
    from mmgym.agents.benchmark import load_benchmark, run_benchmark
    from mmgym.agents.benchmark_report import markdown_table, write_report

    benchmark = load_benchmark(options.config)
    if options.add:
        from mmgym.agents.leaderboard import add_agents

        names = [name for name, _ in options.add]
        if len(set(names)) < len(names):
            raise UsageError(f"--add {max(names, key=names.count)} is there twice: choose another name for one of them")
        folder = Path(options.folder or Path("results") / f"leaderboard-{benchmark.title}")
        print(markdown_table(add_agents(benchmark, dict(options.add), folder)))
        print(f"\nwritten: {folder}/report.html, README.md, profiles.png, results.csv, summary.csv, benchmark.json")
        return
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
    print(f"\nwritten: {folder}/report.html, README.md, profiles.png, results.csv, summary.csv, benchmark.json")
    if failures:
        raise SystemExit(1)


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default="runs/demo")
    parser.add_argument("--seed", type=int, default=0)
    _add_size(parser)


def _demo(options: argparse.Namespace) -> None:
    from mmgym.agents.demo import demo

    demo(Path(options.folder), seed=options.seed, timesteps=options.timesteps, threads=options.threads)


TRAIN = Command("train", "train an agent and score it exactly", _add_train_options, _train)
BENCHMARK = Command(
    "benchmark",
    "train and score algorithms in many markets, and compare them with the papers and the optimum",
    _add_benchmark_options,
    _benchmark,
)
DEMO = Command(
    "demo",
    "train an agent in the Avellaneda-Stoikov market and compare it with the optimum",
    _add_demo_options,
    _demo,
)
