"""The demonstration: an agent trained from rewards alone, next to the optimum, the papers' and naive quotes."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmgym.agents.benchmark_pictures import AGENT, PAPER
from mmgym.agents.config import shipped_folder
from mmgym.agents.train import load_model, train
from mmgym.baselines import optimal_policy, paper_policies, score, score_table
from mmgym.baselines.catalogue import OptimalPolicy, environment_of, problem_of
from mmgym.baselines.frozen import tabulate
from mmgym.baselines.regret import regret_by_state
from mmgym.plot import new_figure, plain, write_figure
from mmgym.printing import table_text, write_table

__all__ = ["demo", "plot_quotes", "plot_regret", "skills_over_seeds"]

ENV = "mmgym/AvellanedaStoikov-v0"
LEARNER = "natural_gradient"
SEEDS = "benchmark_unseen"  # the benchmark of seeds that no setting was chosen on


def plot_quotes(path: Path, env: Any, policy: Any, best: OptimalPolicy, title: str) -> None:
    """Picture of a policy's depths against the optimal ones, over inventory, at three times (PNG).

    Raises
    ------
    ImportError
        Without matplotlib, the extra ``plot``.
    """
    params = env.params
    played = tabulate(problem_of(env), policy).controls
    inventory = np.arange(-params.limit, params.limit + 1) * params.order_size
    figure = new_figure(9, 3.3)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for axis, n in zip(axes, [0, int(0.9 * params.num_steps), params.num_steps - 1], strict=True):
        for side, color, name in ((0, PAPER, "bid"), (1, AGENT, "ask")):
            optimal, learned = best.controls[n, :, side], played[n, :, side]
            axis.plot(inventory, optimal, color=color, linewidth=3, alpha=0.4, label=f"{name}, optimal")
            axis.plot(inventory, learned, ".", color=color, markersize=6, label=f"{name}, learned")
        axis.set_title(f"t = {n * params.step_length:g} of {params.horizon:g}", fontsize=10)
        axis.set_xlabel("inventory (assets)")
        plain(axis)
    axes[0].set_ylabel("distance from the mid (price)")
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    write_figure(figure, path)


def plot_regret(path: Path, env: Any, policies: Mapping[str, Any], best: OptimalPolicy) -> None:
    """Where policies lose value, exactly: maps of their regret over time and inventory, on one scale (PNG).

    Raises
    ------
    ImportError
        Without matplotlib, the extra ``plot``.
    """
    params, problem = env.params, problem_of(env)
    figure = new_figure(9, 3.3)
    from matplotlib.colors import LogNorm

    axes = figure.subplots(1, len(policies), sharex=True, sharey=True)
    tables = {name: tabulate(problem, policy) for name, policy in policies.items()}
    maps = {name: regret_by_state(problem, best.solution, table) for name, table in tables.items()}
    largest = max(float(regret.max()) for regret in maps.values())
    shades = {"cmap": "OrRd", "norm": LogNorm(1e-4 * largest, largest, clip=True)}
    half = 0.5 * params.order_size
    ends = (0.0, params.horizon, -params.inventory_limit - half, params.inventory_limit + half)
    for axis, (name, regret) in zip(axes, maps.items(), strict=True):
        image = axis.imshow(regret.T, origin="lower", aspect="auto", extent=ends, interpolation="nearest", **shades)
        axis.set_title(f"{name.replace('_', ' ')}: regret {regret.sum():.4f}", fontsize=10)
        axis.set_xlabel("time")
    axes[0].locator_params(axis="y", nbins=5, integer=True)
    axes[0].set_ylabel("inventory (assets)")
    figure.colorbar(image, ax=axes, label="regret of a cell (currency)", extend="min")
    figure.suptitle("Where value is lost, by step and inventory", fontsize=11)
    write_figure(figure, path)


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
    plot_quotes(folder / "quotes.png", env, agent, best, title)
    formula = "avellaneda_stoikov"
    plot_regret(folder / "regret.png", env, {LEARNER: agent, formula: papers[formula]}, best)
    print(f"\nThis run: skill {result.skill:.4f}, {result.value:.4f} of the optimum {result.optimum_upper:.4f}.")
    skills = skills_over_seeds()
    print(
        f"{len(skills)} seeds that no setting was chosen on: {np.mean(skills):.4f} on average, {min(skills):.4f} to "
        f"{max(skills):.4f}."
    )
    print(f"written: {folder}/quotes.png, regret.png and scores.csv, {home}/model")
