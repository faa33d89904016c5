"""One cell of a benchmark, in a process of its own: train an agent, or score the policies of a market.

``python -m mmgym.agents.benchmark_cell`` reads a cell as one line of JSON, and ends when its standard input is closed:
a benchmark that is killed takes its workers along.
"""

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.agents.config import Config, remembers
from mmgym.baselines import best_known_policy, paper_policies, score
from mmgym.baselines.baseline import Baseline, baseline_of, environment_of
from mmgym.baselines.catalogue import policy_origins
from mmgym.baselines.episodes import episodes
from mmgym.baselines.frozen import FrozenProblem, state_laws, tabulate
from mmgym.baselines.regret import regret_by_state, regret_map
from mmgym.plain_files import write_json
from mmgym.provenance import provenance

__all__ = ["ONE_THREAD", "lost_cell", "result_file", "run_cell", "run_folder"]

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
FRACTIONS = (0.0, 0.5, 0.9)  # of the episode, at which quotes are drawn
POINTS, SIMULATED_POINTS = 10, 5  # of the curve of skill during training: exact ones are quick
SAMPLE = 64  # episodes of the best policy on which quotes are compared in a market with continuous coordinates

Array = NDArray[Any]


def _digits(values: Any) -> Any:
    """Seven significant digits, as nested lists."""
    return [_digits(part) for part in values] if np.ndim(values) else float(f"{float(values):.7g}")


def _state_quotes(problem: FrozenProblem, policy: Any, best: Any) -> list[dict[str, Any]]:
    """Quotes over inventory at a few times; other coordinates of the state where the optimum is most often."""
    played, optimal = (tabulate(problem, each).controls for each in (policy, best))
    laws = state_laws(problem, optimal)
    inventory, others = problem.coordinates["inventory"], [c for c in problem.coordinates if c != "inventory"]
    panels = []
    for fraction in FRACTIONS:
        n = int(fraction * problem.num_steps)
        likely = int(np.argmax(laws[n]))
        fixed = {name: float(problem.coordinates[name][likely]) for name in others}
        chosen = np.ones(problem.num_states, dtype=bool)
        for name, value in fixed.items():
            chosen &= problem.coordinates[name] == value
        rows = np.flatnonzero(chosen)[np.argsort(inventory[chosen])]
        where = {"fraction": fraction, **fixed}
        curves = {"inventory": inventory[rows], "optimal": optimal[n, rows].T, "learned": played[n, rows].T}
        panels.append({"where": where, **{name: _digits(values) for name, values in curves.items()}})
    return panels


def _sampled_quotes(env: Any, policy: Any, best: Any) -> list[dict[str, Any]]:
    """Mean quotes over inventory in the thirds of episodes that the best policy plays, on the same observations."""
    now, rows = np.zeros(SAMPLE), []
    for step in episodes(env.make_batch(SAMPLE, info="full"), best, 0):
        decision = step.decision
        learned, _ = policy.predict(decision.observations)
        quotes = [np.asarray(env.to_quotes(a), dtype=np.float64) for a in (decision.actions, learned)]
        rows.append(np.column_stack([now, decision.info["inventory"], *quotes])[step.running])
        now = now + step.info.get("elapsed", env.params.horizon / env.params.num_steps)
    panels, table = [], np.concatenate(rows)
    third = np.minimum((3.0 * table[:, 0] / env.params.horizon).astype(int), 2)
    controls = len(env.control_names)
    for piece in range(3):
        part = table[third == piece]
        levels, where, count = np.unique(part[:, 1], return_inverse=True, return_counts=True)
        sums = np.zeros((len(levels), 2 * controls))
        np.add.at(sums, where, part[:, 2:])
        means = (sums / count[:, None])[count >= 5].T
        curves = {"inventory": levels[count >= 5], "optimal": means[:controls], "learned": means[controls:]}
        panels.append({"where": {"third": piece + 1}, **{name: _digits(values) for name, values in curves.items()}})
    return panels


def _regret(baseline: Baseline, policy: Any) -> dict[str, Any] | None:
    """The regret by time and coordinate (see `mmgym.baselines.regret`); None where no such identity is at hand."""
    table = policy.markov and policy.has_mode
    problem, solution = baseline.problem, baseline.solution
    if problem is None or solution is None or baseline.expected_utility or not table:
        return None
    regret = regret_map(problem, regret_by_state(problem, solution, tabulate(problem, policy)))
    coordinates = {
        name: {"levels": _digits(v), "cells": _digits(regret.cells[name])} for name, v in regret.levels.items()
    }
    return {"times": _digits(regret.times), "coordinates": coordinates}


def _train(cell: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from mmgym.agents.train import load_model, train

    env = environment_of(cell["env"], **cell["arguments"])
    config = Config(**cell["settings"])
    simulated = baseline_of(env).problem is None or remembers(config.algorithm, config.hyperparameters)
    points = SIMULATED_POINTS if simulated else POINTS
    home, result = train(
        config,
        cell["env"],
        seed=cell["seed"],
        folder=folder,
        arguments=cell["arguments"],
        threads=1,
        score_steps=max(cell["timesteps"] // points, 1),
        resume=True,
        progress=False,
    )
    run = json.loads((home / "run.json").read_text(encoding="utf-8"))
    policy, _ = load_model(home / "model")
    trained = dict(run["settings"]["arguments"])  # flat actions, say
    env = environment_of(cell["env"], **trained)
    baseline = baseline_of(env)
    best, problem = baseline.best_policy(), baseline.problem
    analysis: dict[str, Any] = {"regret": _regret(baseline, policy), "controls": list(env.control_names)}
    if policy.markov:
        quotes = _sampled_quotes(env, policy, best) if problem is None else _state_quotes(problem, policy, best)
        analysis["quotes"] = quotes
    kept = ("steps", "seconds", "steps_per_second", "curve")
    return {"score": result.to_dict(), "analysis": analysis, **{name: run.get(name) for name in kept}}


def _policies(cell: Mapping[str, Any]) -> dict[str, Any]:
    env = environment_of(cell["env"], **cell["arguments"])
    best, papers = best_known_policy(env), paper_policies(env)
    wanted = list(papers) if cell["policies"] is None else cell["policies"]
    unknown = [name for name in wanted if name not in papers]
    if unknown:
        raise ValueError(
            f"policy {unknown[0]!r} of {cell['env']} is not allowed: it must be one of {', '.join(papers)}"
        )
    policies = {}
    origins = policy_origins(env)
    for name, policy in {"best known" if best.level == "bracketed" else "optimal": best, **papers}.items():
        if name in wanted or policy is best:
            result = score(env, policy)
            policies[name] = {
                "kind": origins.get(name, "optimum"),
                "score": result.to_dict(),
                "regret": None if policy is best else _regret(baseline_of(env), policy),
            }
    return {"policies": policies, "controls": list(env.control_names)}


def run_cell(cell: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Result of a cell: what it measured, or the error that it ended with; never an exception."""
    started = time.perf_counter()
    result: dict[str, Any] = {"cell": dict(cell), **provenance()}
    try:
        measured = _train(cell, folder) if cell["kind"] == "agent" else _policies(cell)
        scores = [measured["score"]] if "score" in measured else [p["score"] for p in measured["policies"].values()]
        if any(math.isnan(figures["skill"]) for figures in scores):
            raise ValueError("no policy is better there than the one with skill 0, so there is nothing to compare")
        result |= {"status": "finished", **measured}
    except Exception as error:
        result |= {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return result | {"wall_seconds": time.perf_counter() - started}


def lost_cell(cell: Mapping[str, Any], error: str, log: str, seconds: float) -> dict[str, Any]:
    """The result of a cell whose worker did not live to write one."""
    failure = {"status": "failed", "error": error, "traceback": log, "wall_seconds": seconds}
    return {"cell": dict(cell), **provenance(), **failure}


def result_file(folder: Path, cell: Mapping[str, Any]) -> Path:
    """Where a benchmark's folder keeps the result of a cell."""
    return folder / "cells" / f"{cell['key']}.json"


def run_folder(folder: Path, cell: Mapping[str, Any]) -> Path:
    """Where a benchmark's folder keeps the agent of a cell."""
    return folder / "runs" / str(cell["key"])


def _die_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


def main() -> None:
    """Run the cell of the first line of standard input: {"cell", "folder", "file", "imports"}."""
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for name in order.get("imports", ()):  # as the user asked for
        import_module(name)
    write_json(Path(order["file"]), run_cell(order["cell"], Path(order["folder"])))
    sys.stdout.flush()
    os._exit(0)  # the thread that reads standard input would hold the interpreter


if __name__ == "__main__":
    main()
