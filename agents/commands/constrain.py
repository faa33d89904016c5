"""``mmgym constrain``: the best quotes under limits on loss, drawdown, inventory and spread, beside bounds."""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgym.agents.commands.command import Command
from mmgym.plain_files import write_json
from mmgym.printing import table_text
from mmgym.provenance import provenance

__all__ = ["CONSTRAIN"]

EPISODES = 100_000  # of the probabilities in the environment
PLAY = 0.5  # of the time limit, for the finite market, where a policy is sought in an environment too
EVERY = 5.0  # seconds between lines of progress where nobody watches


def _add_options(parser: argparse.ArgumentParser) -> None:
    text = "a problem: the path of a .yml file, or the name of a shipped one (constrain_3_2_2, ...)"
    parser.add_argument("config", metavar="CONFIG", help=text)
    text = "solve one part: the linear program's bound, a schedule, or the penalised agent (default: lp and schedule)"
    parser.add_argument("--only", choices=("lp", "schedule", "agent"), help=text)
    text = (
        "seconds for all solving and training, instead of the configuration's; what was found by then is returned, "
        "with its gap (the search in an environment looks at the clock once in a gradient, seconds in large ones; the "
        "last table, of what is played there, comes after)"
    )
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help=text)
    parser.add_argument("--workers", type=int, help="threads of CP-SAT (default: the configuration's)")
    text = "also train the penalised agent (policy gradient with dual variables; extra `agents`)"
    parser.add_argument("--agent", action="store_true", help=text)
    parser.add_argument("--folder", help="where to write (default results/CONFIG)")


def _constrain(options: argparse.Namespace) -> None:
    """Solve a risk-constrained problem; print what each policy is worth and risks, and write it.

    The folder gets ``solution.json`` (problem, values, bounds, gap, schedule, versions and commit) and, if the problem
    names an environment, ``schedule.npz``, ``randomised.npz``, ``agent.npz`` and ``lagrangian.npz``: tables that
    ``mmgym score`` plays.

    Raises
    ------
    ValueError
        If the configuration is not YAML, has an unknown key or a value that is not allowed.
    ImportError
        Without torch (extra ``agents``) where the agent is asked for.
    MemoryError
        If the states would not fit into this machine.
    """
    started = time.perf_counter()
    from mmgym.agents.config import read_yaml
    from mmgym.arguments import integer, real
    from mmgym.baselines.constrained import PARTS, constrain, read_problem
    from mmgym.registration import check_foreign_environment

    content, source = read_yaml(options.config, ("constrain_",))
    problem = read_problem(content, source)
    if problem.environment is not None:
        check_foreign_environment(problem.environment.id, problem.environment.arguments, source)
    limit = problem.time_limit if options.time_limit is None else real("--time-limit", options.time_limit, above=0.0)
    workers = problem.workers if options.workers is None else integer("--workers", options.workers, low=1, high=1024)
    folder = Path(options.folder or Path("results") / Path(source).stem)
    _print_problem(problem, Path(source).stem)
    parts = PARTS if options.only is None else tuple(part for part in PARTS if part == options.only)
    trains = options.agent or options.only == "agent"
    plays = problem.environment is not None and bool(problem.chain.bounds)
    remaining = (PLAY if plays else 1.0) * limit - (time.perf_counter() - started)
    share = (0.6 if trains else 1.0) if parts else 0.05
    solution = constrain(problem, parts=parts, time_limit=share * remaining, workers=workers, progress=_progress())
    agent: dict[str, Any] = {"schedule": None, "evaluation": None, "record": None}
    if trains and solution.infeasibility is None:
        agent = _train(problem, started + 0.95 * (PLAY if plays else 1.0) * limit)
    seconds = time.perf_counter() - started
    schedules = _print_solution(solution, agent, limit, seconds)
    result: dict[str, Any] = {
        "problem": content,
        "source": source,
        **solution.to_dict(),
        "seconds": seconds,
        "settings": {"time_limit": limit, "workers": workers, "parts": list(parts)},
        "agent": agent["record"],
        **provenance(),
    }
    if problem.environment is not None and schedules:
        result["environment"] = _play(problem, schedules, folder, started + 0.9 * limit)
    write_json(folder / "solution.json", result)
    print(f"\nwritten: {folder}")


def _print_problem(problem: Any, name: str) -> None:
    from mmgym.baselines.constrained.lattice import Lattice

    chain, market = problem.chain, problem.chain.market
    ticks = " ".join(map(str, market.fill_probabilities))
    print(
        f"{name}: {market.num_steps} steps, ticks {ticks}, |inventory| <= {chain.inventory_limit}, "
        f"{Lattice(chain).count_states()} states, masses in parts of {chain.denominator}^{market.num_steps}"
    )
    print(f"limits: {'; '.join(_limits(chain)) or 'none'}\n", flush=True)


def _print_solution(solution: Any, agent: Mapping[str, Any], limit: float, seconds: float) -> dict[str, Any]:
    """Print what was solved and trained; the schedules that can be played: name -> (label, schedule)."""
    from mmgym.baselines.constrained.model import as_schedule

    others = {} if agent["evaluation"] is None else {"penalised agent, drawn": agent["evaluation"]}
    _show(solution.comparison(others))
    if solution.certificate():
        print(f"\n{solution.certificate()}")
    prices = {} if solution.randomised is None else solution.randomised.prices
    for name, price in prices.items():
        unit = "tick of CVaR" if name == "cvar" else "0.01 of probability"
        print(f"price of the limit on {name}: {price * (1.0 if name == 'cvar' else 0.01):.6g} per {unit}")
    if solution.infeasibility is not None:
        print(f"\n{solution.infeasibility.text()}")
    if agent["record"] is not None and agent["evaluation"] is None:
        print("\nthe penalised agent found no policy that keeps to the limits: try other agent settings")
    if agent["record"] is not None and agent["record"]["iterations"] < agent["record"]["settings"]["iterations"]:
        print(f"\nthe penalised agent was stopped after {agent['record']['iterations']} iterations: time limit")
    schedules: dict[str, Any] = {}
    best = solution.schedule
    if best is not None and best.schedule is not None and best.evaluation is not None:
        gap, worth = float(solution.gap or 0), best.evaluation.value
        exact = worth if worth.denominator < 10**9 else f"{float(worth):.10g}"
        print(f"\nschedule ({best.status}, worth {exact}, gap {gap:.6g}, {seconds:.1f} s):\n")
        _show(solution.schedule_table())
        schedules["schedule"] = ("best schedule", as_schedule(best.schedule))
    elif best is not None and best.status == "unknown":
        most = float(solution.bound or 0)
        print(f"\nno schedule within the limits was found in {limit:g} s; none is worth more than {most:.8g}")
    if solution.randomised is not None and solution.randomised.schedule:
        schedules["randomised"] = ("linear program's quotes, drawn", solution.randomised.schedule)
    if agent["schedule"] is not None:
        schedules["agent"] = ("penalised agent, drawn", agent["schedule"])
    return schedules


def _limits(chain: Any) -> list[str]:
    texts = {
        "loss": "P(final loss >= {}) <= {}", "drawdown": "P(drawdown > {}) <= {}", "floor": "P(wealth < -{}) <= {}",
    }  # fmt: skip
    limits = [texts[name].format(*getattr(chain.limits, name)) for name in chain.bounds if name in texts]
    if chain.limits.cvar is not None:
        limits.append("CVaR({}) of the loss <= {}".format(*chain.limits.cvar))
    if chain.limits.spread is not None:
        limits.append("{} <= spread <= {}".format(*chain.limits.spread))
    return [*limits, "quotes by step alone"] if chain.limits.time_only else limits


def _progress() -> Any:
    """Shows on stderr what there is so far: one line on a terminal, elsewhere a line every few seconds."""
    terminal, last = sys.stderr.isatty(), [0.0, math.nan, math.nan]

    def show(seconds: float, value: float, bound: float) -> None:
        last[1] = last[1] if math.isnan(value) else value
        last[2] = last[2] if math.isnan(bound) else bound
        if not terminal and seconds - last[0] < EVERY:
            return
        last[0] = seconds
        best = "none yet" if math.isnan(last[1]) else f"{last[1]:.8g}"
        text = f"{seconds:6.1f} s: best so far {best}, bound {last[2]:.8g}"
        print(f"\r{text}   " if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    return show


def _show(table: Any) -> None:
    print(table_text(table, digits=8))


def _train(problem: Any, deadline: float) -> dict[str, Any]:
    import torch
    from tqdm.auto import tqdm

    from mmgym.agents.lagrangian import train_lagrangian

    torch.set_num_threads(1)
    settings, started = problem.agent, time.perf_counter()
    with tqdm(total=settings.iterations, desc="agent", mininterval=EVERY, delay=1.0) as bar:
        run = train_lagrangian(problem.chain, settings, lambda iteration, best: bar.update(1), deadline)
    evaluation = run.evaluation
    record = {
        "settings": settings._asdict(),
        "seconds": time.perf_counter() - started,
        "iterations": run.iterations,
        "best_iteration": run.best_iteration,
        "multipliers": run.multipliers,
        "value": None if evaluation is None else float(evaluation.value),
        "risks": None if evaluation is None else {name: float(p) for name, p in evaluation.risks.items()},
    }
    return {"schedule": run.schedule, "evaluation": evaluation, "record": record}


def _play(problem: Any, schedules: Mapping[str, tuple[str, Any]], folder: Path, deadline: float) -> dict[str, Any]:
    """Play schedules in the problem's environment, beside its own policy: print their risks, write them as tables."""
    import pandas as pd

    from mmgym.baselines import score, write_table
    from mmgym.baselines.catalogue import TablePolicy
    from mmgym.baselines.constrained import limit_risks, limit_verdict, limited_risks, schedule_policy
    from mmgym.baselines.constrained.solution import risk_label

    settings, chain = problem.environment, problem.chain
    played = {
        name: (label, *schedule_policy(schedule, settings, chain)) for name, (label, schedule) in schedules.items()
    }
    env = next(iter(played.values()))[1]
    if chain.bounds:
        try:
            limited = limit_risks(env, chain, settings.tick, deadline=deadline)
        except ValueError as error:  # too large, or not a criterion that has one
            print(f"\nno policy with limited risks was sought in {settings.id}: {error}", file=sys.stderr)
        else:
            label = "limited there, Lagrangian" if limited.keeps else "least excess there, Lagrangian"
            played["lagrangian"] = (label + ("" if limited.solved else " (stopped)"), env, limited.policy)
            if not limited.keeps:
                least = ", ".join(f"{risk_label(name)} {risk}" for name, risk in limited.risks.items())
                print(f"\nno policy of step and inventory was found that keeps to the limits in {settings.id}:")
                print(f"the one that exceeds them least has {least}")
    rows: list[dict[str, Any]] = []
    record = {}
    for name, (label, env, policy) in played.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_table(policy, env, folder / f"{name}.npz", deterministic=isinstance(policy, TablePolicy))
        exact = score(env, policy)
        risks = limited_risks(env, policy, chain, settings.tick, EPISODES)
        verdict = limit_verdict(risks, chain)
        texts = {risk_label(risk): str(estimate) for risk, estimate in risks.items()}
        rows.append(
            {"policy": label, "value": exact.value, "skill": round(exact.skill, 4), **texts, "keeps limits": verdict}
        )
        record[name] = {
            **exact.to_dict(),
            "keeps_limits": verdict,
            **{risk_label(risk): estimate._asdict() for risk, estimate in risks.items()},
        }
        optimum = exact.optimum_upper
    print(
        f"\nplayed in {settings.id}, where time is continuous and several orders may fill in a step, so that\n"
        f"values and risks are others (optimum there, without limits: {optimum:.8g}):\n"
    )
    _show(pd.DataFrame(rows))
    broken = [f"{row['policy']} ({row['keeps limits'][4:]})" for row in rows if row["keeps limits"].startswith("NO")]
    if broken:
        print(f"\nWARNING: limits are broken in {settings.id} by: {'; '.join(broken)}")
    print(
        "\nvalues are exact, P(loss) and CVaR from the exact law, +- its error; others from "
        f"{EPISODES} episodes, with 95 % intervals"
    )
    return {"id": settings.id, "arguments": settings.arguments, "optimum": optimum, **record}


EXAMPLE = """\
Hard limits - inventory, spread, probabilities of a final loss, of a drawdown and of falling below a floor,
conditional value at risk - in a finite market: whole ticks, rational fill probabilities, at most one fill a step. The
linear program over occupancy measures bounds what any policy can be worth, seeing wealth and drawdown and drawing its
quotes; its bound is certified by weak duality, and its multipliers are the prices of the limits. A local search finds
schedules of quotes by step and inventory (`time_only`: by step); branch and bound, on bounds from dynamic programming,
proves which is the best (6 steps in seconds), or else OR-Tools CP-SAT (extra `constraints`). The time limit is one for
all: it returns the best schedule and its gap, and limits that cannot be kept are explained. The penalised agent draws
its quotes, so it may lie between the best schedule and the bound. In an environment the schedules are played with their
limits checked, beside a policy that is made to keep to them there, or comes nearest to it.

$ mmgym constrain constrain_3_2_2 --agent
constrain_3_2_2: 3 steps, ticks 1 2 3, |inventory| <= 2, 322 states, masses in parts of 16^3
limits: P(final loss >= 2) <= 1/50; P(drawdown > 2) <= 1/20; 2 <= spread <= 6

                                 policy     value   exact     P(loss)  P(drawdown) keeps limits                how
                         without limits  1.828125  117/64 0.063476562  0.068359375           no              exact
linear program: may see wealth and draw 1.7387118                0.02         0.05          yes        upper bound
its quotes by step and inventory, drawn 1.7387118         0.022381224         0.05           no              exact
                 penalised agent, drawn 1.7278401         0.019999986  0.044357122          yes              exact
                          best schedule 1.7265625 221/128 0.019775391  0.043945312          yes optimum, certified

certified: no policy within the limits, drawing or seeing wealth, is worth more than 1.738711806 (weak duality; \\
    which a mixture of policies attains)
certified: the schedule's value and risks, in whole numbers; the best schedule (branch and bound, 2 nodes)
price of the limit on loss: 0.0432593 per 0.01 of probability
price of the limit on drawdown: 0.016 per 0.01 of probability

schedule (optimal, worth 221/128, gap 0, 25.1 s):

 step  inventory bid ask
    0          0   2   3
    1         -1   1   3
    1          0   3   3
    1          1   3   1
    2         -2   1
    2         -1   1   3
    2          0   2   2
    2          1   3   1
    2          2       1

no policy of step and inventory was found that keeps to the limits in mmgym/GLFT-v0:
the one that exceeds them least has P(loss) 0.00897634, P(drawdown) 0.06617 [0.06464, 0.06773]

played in mmgym/GLFT-v0, where time is continuous and several orders may fill in a step, so that
values and risks are others (optimum there, without limits: 2.0623283):

                        policy     value  skill            P(loss)                P(drawdown) keeps limits
                 best schedule 1.9413597 0.7313 0.0169078 +- 1e-07 0.08484 [0.08312, 0.08658] NO: drawdown
linear program's quotes, drawn 1.9421129  0.733 0.0180651 +- 1e-07 0.08858 [0.08683, 0.09036] NO: drawdown
        penalised agent, drawn 1.9453248 0.7401 0.0165416 +- 5e-08 0.08376 [0.08205, 0.08549] NO: drawdown
least excess there, Lagrangian 1.8959339 0.6305         0.00897634 0.06521 [0.06369, 0.06676] NO: drawdown

WARNING: limits are broken in mmgym/GLFT-v0 by: best schedule (drawdown); ...

values are exact, P(loss) and CVaR from the exact law, +- its error; others from 100000 episodes, with 95 % intervals

The finite market is not an environment, so the schedule is also played in one, and written as a table that can be
scored: `mmgym score --env mmgym/GLFT-v0 --set num_steps=3 ... results/constrain_3_2_2/schedule.npz`.
With 10 steps and 25,272 states: `mmgym constrain constrain_10_6_8`; the bound alone: `--only lp`.
"""

CONSTRAIN = Command(
    "constrain", "find the best quotes under limits on loss and drawdown", _add_options, _constrain, EXAMPLE
)
