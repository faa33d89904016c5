"""``mmgym list``, ``solve`` and ``score``: what there is, what is best, and how good something is."""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pandas as pd

from mmgym.agents.commands.command import Command, add_environment, add_output, environment_arguments, named_policies
from mmgym.printing import show, write_output

__all__ = ["LIST", "SCORE", "SOLVE"]


def _list(options: argparse.Namespace) -> None:
    from mmgym.registration import ENVIRONMENTS

    rows = [{"id": row.id, "market": row.market, "optimum": row.level, "source": row.title} for row in ENVIRONMENTS]
    show(pd.DataFrame(rows), options.output)


def _add_solve_options(parser: argparse.ArgumentParser) -> None:
    add_environment(parser)
    add_output(parser)


def _solve(options: argparse.Namespace) -> None:
    from mmgym.baselines import best_known_policy
    from mmgym.baselines.catalogue import environment_of, numerical_of, problem_of, reference_value
    from mmgym.baselines.numerical import BestKnownPolicy

    env = environment_of(options.env, **environment_arguments(options.set))
    started = time.perf_counter()
    best = best_known_policy(env)
    seconds = time.perf_counter() - started
    numerical = numerical_of(env)
    if numerical is not None:
        lower, upper, error = best.bounds
        seconds = time.perf_counter() - started
        known = f"optimum {upper:.6f}" if lower == upper else f"optimum between {lower:.6f} and {upper:.6f}"
        if isinstance(best, BestKnownPolicy):
            known += f", best known policy {best.name}"
        print(f"{options.env}: {known} ({best.level}, error {error:.2g}), reference policy {reference_value(env):.6f}")
        print(f"solved or read from disk in {seconds:.2f} s (compilation included)\n")
        show(pd.DataFrame(numerical.examples()), options.output)
        return
    steps, states, _ = best.controls.shape
    print(f"{options.env}: optimum {best.optimum:.10f} ({best.level}), reference policy {reference_value(env):.10f}")
    print(f"{steps} steps x {states} states, solved or read from disk in {seconds:.2f} s (compilation included)")
    if isinstance(env.action_space, gymnasium.spaces.Box):  # discrete controls have no bounds that could bind
        binding = best.binding.any(axis=-1)
        print(f"the bounds of the action space bind in {int(binding.sum())} of {binding.size} cells")
    coordinates = problem_of(env).coordinates
    rows = []
    for n in range(0, steps, max(steps // 4, 1)):
        for s in _shown(coordinates):
            state = {name: values[s] for name, values in coordinates.items()}
            controls = dict(zip(env.control_names, best.solution.controls[n, s], strict=True))
            rows.append({"step": n, **state, "value": best.solution.values[n, s], **controls})
    print()
    show(pd.DataFrame(rows), options.output)


def _shown(coordinates: Mapping[str, Any]) -> list[int]:
    """Some states to print: about seven inventories, at each value of the other coordinates (three at most)."""
    inventory = coordinates["inventory"]
    levels = np.unique(inventory)
    chosen = np.isin(inventory, levels[:: max((len(levels) - 1) // 6, 1)])
    for name, values in coordinates.items():
        if name != "inventory":
            others = np.unique(values)
            chosen &= np.isin(values, others[np.unique(np.linspace(0, len(others) - 1, 3).astype(int))])
    return [int(s) for s in np.flatnonzero(chosen)]


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    add_environment(parser)
    text = "optimal (best, where it is bracketed), a policy of a paper or ours by name, all, a table (.npz), or the "
    parser.add_argument("policy", nargs="+", help=f"{text}folder of a run or model")
    parser.add_argument("--simulated", action="store_true", help="simulate with the advantage-sum control variate")
    text = "score a stochastic policy as it acts, not at its mode"
    parser.add_argument("--as-it-acts", action="store_true", help=text)
    parser.add_argument("--episodes", type=int, default=2000, help="simulated episodes (default 2000)")
    parser.add_argument("--stderr", type=float, help="standard error at which a simulation stops")
    parser.add_argument("--seed", type=int, default=0, help="seed of a simulation (default 0)")
    text = "add VaR and CVaR of the final P&L and the drawdown, with 95 %% intervals of what is simulated"
    parser.add_argument("--risk", action="store_true", help=text)
    text = (
        "of VaR and CVaR, with --risk: by the exact law of the P&L where it takes seconds (auto, default), or always "
    )
    text += "(exact), or simulated"
    parser.add_argument("--risk-method", choices=["auto", "exact", "simulated"], default="auto", help=text)
    add_output(parser)


def _score(options: argparse.Namespace) -> None:
    from mmgym.baselines import risk_table, score, score_table
    from mmgym.baselines.catalogue import environment_of, policy_origins

    env = environment_of(options.env, **environment_arguments(options.set))
    scores = {
        name: score(
            env,
            policy,
            method="simulated" if options.simulated else "auto",
            episodes=options.episodes,
            stderr=options.stderr,
            seed=options.seed,
            deterministic=not options.as_it_acts,
            progress=sys.stderr.isatty(),
            risk=options.risk and (options.risk_method if options.risk_method != "auto" else True),
        )
        for name, policy in named_policies(options.policy, env).items()
    }
    table = score_table(scores)
    origins = policy_origins(env)
    table["from"] = [origins.get(name, "") for name in table.index]  # of a paper, or ours
    lower, upper = (getattr(next(iter(scores.values())), f"optimum_{side}") for side in ("lower", "upper"))
    known = f"{upper:.10f}" if lower == upper else f"between {lower:.6f} and {upper:.6f}"
    print(f"{options.env}: optimum {known}\n")
    if not options.risk:
        show(table, options.output, index=True)
        return
    measures = risk_table(scores)
    show(table.drop(columns=[name for name in table.columns if name in measures.columns]), index=True)
    print()
    show(measures, index=True)
    print(
        "\nVaR and CVaR: losses of the final P&L (negative: a profit). drawdown: the largest at step ends, its mean "
        f"and quantiles.\nBrackets: 95 % intervals of what is simulated, from {max(options.episodes, 10_000)} episodes."
    )
    if options.output:
        write_output(options.output, table, index=True)


LIST = Command("list", "list the environments and how exactly their optimum is known", add_output, _list)
SOLVE = Command("solve", "solve an environment exactly and print its optimum", _add_solve_options, _solve)
SCORE = Command("score", "score policies or trained models against the optimum", _add_score_options, _score)
