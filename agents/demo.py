"""The demonstration: an agent trained from rewards alone, next to the optimum, the papers' and naive quotes."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmgym import plot
from mmgym.agents.config import shipped_folder
from mmgym.agents.train import load_model, train
from mmgym.baselines import optimal_policy, paper_policies, policy_cells, regret_maps, score, score_table
from mmgym.baselines.catalogue import environment_of
from mmgym.printing import table_text, write_table

__all__ = ["demo", "skills_over_seeds"]

ENV = "mmgym/AvellanedaStoikov-v0"
LEARNER = "natural_gradient"
SEEDS = "benchmark_unseen"  # the benchmark of seeds that no setting was chosen on


def draw(folder: Path, env: Any, policies: Mapping[str, Any], formula: Any, title: str) -> None:
    """Pictures of what was learned beside the optimum, and of where value is lost, next to a formula: two PNGs."""
    quoted = plot.quotes(policy_cells(env, policies, (0.0, 0.9, 0.995)), list(env.control_names))
    quoted.flat[0].figure.suptitle(title, fontsize=11)
    plot.write_figure(quoted.flat[0].figure, folder / "quotes.png")
    lost = plot.regret(regret_maps(env, {LEARNER: policies[LEARNER], "avellaneda_stoikov": formula}))
    lost[0].figure.suptitle("Where value is lost, by step and inventory", fontsize=11)
    plot.write_figure(lost[0].figure, folder / "regret.png")


def skills_over_seeds() -> list[float]:
    """Skills of the runs of `LEARNER` in this market in the benchmark of unseen seeds, as it is shipped."""
    runs = pd.read_csv(shipped_folder() / "results" / SEEDS / "results.csv")
    return [float(skill) for skill in runs[(runs["env"] == ENV) & (runs["name"] == LEARNER)]["skill"]]


def demo(folder: Path, *, seed: int = 0, timesteps: int | None = None, threads: int = 1) -> None:
    """Train, score and draw; everything is written to ``folder``.

    Parameters
    ----------
    folder : Path
    seed : int
        Of the run.
    timesteps : int, optional
        Environment steps, instead of the configuration's.
    threads : int
        Threads of torch.
    """
    env = environment_of(ENV)
    p = env.params
    print(
        f"{ENV}: sigma {p.volatility:g}, A {p.fill_rate_bid:g}, k {p.fill_decay_bid:g}, T {p.horizon:g}, "
        f"{p.num_steps} steps, inventory limit {p.inventory_limit:g}"
    )
    best = optimal_policy(env)
    print(f"exact optimum of this environment: {best.optimum:.6f}\n\ntraining {LEARNER} ...", flush=True)
    started = time.perf_counter()
    home, result = train(LEARNER, ENV, seed=seed, folder=folder, timesteps=timesteps, threads=threads, overwrite=True)
    print(f"trained in {time.perf_counter() - started:.0f} s\n")
    agent, _ = load_model(home / "model")
    papers = paper_policies(env)
    scores = {"optimal": score(env, best), LEARNER: result}
    for name, policy in papers.items():
        scores[name] = score(env, policy)
    table = score_table(scores)
    print(table_text(table, index=True, digits=5))
    write_table(table.rename_axis("policy").reset_index(), folder / "scores.csv")
    title = f"After training from rewards alone: skill {result.skill:.4f} (0: constant quotes, 1: optimum)"
    draw(folder, env, {"optimal": best, LEARNER: agent}, papers["avellaneda_stoikov"], title)
    print(f"\nThis run: skill {result.skill:.4f}, {result.value:.4f} of the optimum {result.optimum_upper:.4f}.")
    skills = skills_over_seeds()
    print(
        f"{len(skills)} seeds that no setting was chosen on: {np.mean(skills):.4f} on average, {min(skills):.4f} to "
        f"{max(skills):.4f}."
    )
    print(f"written: {folder}/quotes.png, regret.png and scores.csv, {home}/model")
