"""``mmgym list``, ``solve`` and ``score``: what there is, what is best, and how good something is."""

import argparse
import sys
import time
from typing import Any

import gymnasium

from mmgym.agents.commands.command import (
    POLICIES,
    Command,
    add_environment,
    add_output,
    add_plot,
    draw_quotes,
    environment_arguments,
    named_policies,
)
from mmgym.printing import show, write_output

__all__ = ["LIST", "SCORE", "SOLVE"]


def _list(options: argparse.Namespace) -> None:
    import pandas as pd

    from mmgym.registration import ENVIRONMENTS

    rows = [{"id": row.id, "market": row.market, "optimum": row.level, "source": row.title} for row in ENVIRONMENTS]
    show(pd.DataFrame(rows), options.output)


def _add_solve_options(parser: argparse.ArgumentParser) -> None:
    add_environment(parser)
    text = "write values and best controls as .csv or .json: of all steps and states where these are finitely many"
    parser.add_argument("--output", metavar="FILE", help=text)
    add_plot(parser, "the best quotes, beside those of the reference policy")


def _solve(options: argparse.Namespace) -> None:
    import pandas as pd

    from mmgym.baselines.baseline import BestKnownPolicy, OptimalPolicy, baseline_of, environment_of

    env = environment_of(options.env, **environment_arguments(options.set))
    started = time.perf_counter()
    baseline = baseline_of(env)
    best, (lower, upper, error) = baseline.best_policy(), baseline.bounds()
    seconds, problem = time.perf_counter() - started, baseline.problem
    digits = 6 if problem is None else 10
    known = f"{upper:.{digits}f}" if lower == upper else f"between {lower:.{digits}f} and {upper:.{digits}f}"
    if isinstance(best, BestKnownPolicy):
        known += f", best known policy {best.name}"
        if best.paired_gap:
            known += " (on the same paths {:.4f} +- {:.4f} apart)".format(*best.paired_gap)
    level = best.level if problem is not None else f"{best.level}, error {error:.2g}"
    print(f"{options.env}: optimum {known} ({level}), reference policy {baseline.reference_value():.{digits}f}")
    size = "" if problem is None else f"{problem.num_steps} steps x {problem.num_states} states, "
    print(f"{size}solved or read from disk in {seconds:.2f} s (compilation included)")
    if isinstance(best, OptimalPolicy) and isinstance(env.action_space, gymnasium.spaces.Box):  # others have no bounds
        binding = best.binding.any(axis=-1)
        print(f"the bounds of the action space bind in {int(binding.sum())} of {binding.size} cells")
    print()
    show(pd.DataFrame(baseline.examples(env.control_names)))
    if options.output:
        write_output(options.output, pd.DataFrame(baseline.cells(env.control_names)))
    if options.plot:
        draw_quotes(options.plot, env, {"optimal": best, baseline.reference: baseline.policies()[baseline.reference]()})


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    add_environment(parser)
    parser.add_argument("policy", nargs="+", help=f"optimal (best, where it is bracketed), {POLICIES}")
    text = "of a .zip file: mean and var of its VecNormalize, as mmgym.agents.sb3_files has them"
    parser.add_argument("--normalisation", metavar="FILE.npz", help=text)
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
    add_plot(parser, "the quotes of the policies beside the best ones")


def _score(options: argparse.Namespace) -> None:
    from mmgym.baselines import risk_table, score, score_table
    from mmgym.baselines.catalogue import environment_of, policy_origins

    env = environment_of(options.env, **environment_arguments(options.set))
    scores: dict[str, Any] = {}
    policies = named_policies(options.policy, env, options.normalisation)
    for name, policy in policies.items():
        started = time.perf_counter()
        scores[name] = scored = score(
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
        seconds = time.perf_counter() - started
        if seconds > 2.0 and len(policies) > 1:  # the table comes when all are scored
            print(f"{name}: skill {scored.skill:.6g} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    table = score_table(scores)
    origins = policy_origins(env)
    table["from"] = [origins.get(name, "") for name in table.index]  # of a paper, or ours
    lower, upper = (getattr(next(iter(scores.values())), f"optimum_{side}") for side in ("lower", "upper"))
    known = f"{upper:.10f}" if lower == upper else f"between {lower:.6f} and {upper:.6f}"
    print(f"{options.env}: optimum {known}\n")
    if options.plot:
        from mmgym.baselines import best_known_policy

        others = {name: policy for name, policy in policies.items() if name not in ("optimal", "best")}
        draw_quotes(options.plot, env, {"best": best_known_policy(env), **others})
    if not options.risk:
        show(table, index=True)
        if options.output:
            write_output(options.output, table, "policy")
        return
    measures = risk_table(scores)
    show(table.drop(columns=[name for name in table.columns if name in measures.columns]), index=True)
    print()
    show(measures, index=True)
    print(
        "\nVaR and CVaR: losses of the final P&L (negative: a profit). drawdown: the largest at step ends, its mean "
        "and quantiles.\nmax |inventory|: the mean of the largest at step ends.\n"
        f"Brackets: 95 % intervals of what is simulated, from {max(options.episodes, 10_000)} episodes."
    )
    if options.output:
        write_output(options.output, table, "policy")


RISK = """\
VaR and CVaR are "exact" where the law of the P&L is known to 1e-8 (of a probability, and of a standard deviation), else
"numerical", with the estimated error beside them: so where fills are few, since then the law has kinks. A law with next
to no price noise is simulated. `--risk-method exact` insists on the law (many minutes on mmgym/TickSpread-v0).

$ mmgym score --env mmgym/AvellanedaStoikov-v0 optimal constant --risk
mmgym/AvellanedaStoikov-v0: optimum 66.2438786910

          skill       regret   value  stderr  P&L std   fills  market orders  mean |inventory| method  from
optimal       1 -5.68434e-14 66.2439       0  8.48657 100.936              0           2.00789  exact
constant      0      5.20544 61.0384       0  12.6574 99.8254              0           4.29844  exact  ours

           VaR 95%  CVaR 95%   VaR 99%  CVaR 99%              drawdown          drawdown 95%          drawdown 99%       max |inventory| VaR by
optimal   -53.8797  -50.4342  -48.2788  -45.4095   2.213 [2.19, 2.236]  4.386 [4.308, 4.511]     6.45 [6.236, 6.7]   6.062 [6.034, 6.09]  exact
constant  -45.2455  -38.3258  -33.9815  -27.8801  5.432 [5.368, 5.495]  11.71 [11.51, 11.93]  16.18 [15.65, 16.76]  9.007 [8.977, 9.037]  exact

VaR and CVaR: losses of the final P&L (negative: a profit). drawdown: the largest at step ends, its mean and quantiles.
max |inventory|: the mean of the largest at step ends.
Brackets: 95 % intervals of what is simulated, from 10000 episodes.
"""  # noqa: E501

LIST = Command("list", "list the environments and how exactly their optimum is known", add_output, _list)
KEPT = "Solutions that took more than half a second are kept in the user's cache folder, or in MMGYM_CACHE_DIR."
SOLVE = Command("solve", "solve an environment exactly and print its optimum", _add_solve_options, _solve, KEPT)
SCORE = Command("score", "score policies or trained models against the optimum", _add_score_options, _score, RISK)
