"""The demonstration: PPO in the Avellaneda-Stoikov market, next to the optimum, the papers' and naive quotes."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from mmgym.agents.train import load_model, train
from mmgym.baselines import optimal_policy, paper_policies, score, score_table
from mmgym.baselines.catalogue import OptimalPolicy, environment_of, problem_of
from mmgym.baselines.frozen import tabulate
from mmgym.baselines.reproduce.artifacts import new_figure, write_figure
from mmgym.printing import table_text, write_table

__all__ = ["demo", "plot_quotes"]

ENV = "mmgym/AvellanedaStoikov-v0"


def plot_quotes(path: Path, env: Any, policy: Any, best: OptimalPolicy, title: str) -> None:
    """Picture of a policy's depths against the optimal ones, over inventory, at four times (PNG).

    Raises
    ------
    ImportError
        Without matplotlib, the extra ``plot``.
    """
    params = env.params
    played = tabulate(problem_of(env), policy).controls
    inventory = np.arange(-params.limit, params.limit + 1) * params.order_size
    steps = [0, params.num_steps // 2, int(0.9 * params.num_steps), params.num_steps - 1]
    figure = new_figure(10, 6.4)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for axis, n in zip(axes.flat, steps, strict=True):
        for side, color, name in ((0, "tab:blue", "bid"), (1, "tab:red", "ask")):
            optimal, learned = best.controls[n, :, side], played[n, :, side]
            axis.plot(inventory, optimal, color=color, linewidth=2.2, alpha=0.45, label=f"{name}, optimal")
            axis.plot(inventory, learned, ".", color=color, markersize=7, label=f"{name}, learned")
        axis.set_title(f"t = {n * params.step_length:g} of {params.horizon:g}", fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("inventory (assets)")
    for axis in axes[:, 0]:
        axis.set_ylabel("depth: distance from the mid (price)")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    write_figure(figure, path)


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
    print(f"exact optimum of this environment: {best.optimum:.6f}\n\ntraining PPO ...", flush=True)
    started = time.perf_counter()
    home, result = train("ppo", ENV, seed=seed, folder=folder, timesteps=timesteps, threads=threads)
    print(f"trained in {time.perf_counter() - started:.0f} s\n")
    agent, _ = load_model(home / "model")
    scores = {"optimal": score(env, best), "PPO": result}
    scores["PPO, as it acts"] = score(env, agent, deterministic=False)
    for name, policy in paper_policies(env).items():
        scores[name] = score(env, policy)
    table = score_table(scores)
    print(table_text(table, index=True, digits=5))
    write_table(table.rename_axis("policy").reset_index(), folder / "scores.csv")
    title = f"PPO after training: skill {result.skill:.4f} (0: constant quotes, 1: optimum), regret {result.regret:.4f}"
    plot_quotes(folder / "quotes.png", env, agent, best, title)
    print(f"\nPPO reaches skill {result.skill:.4f}: {result.value:.4f} of the optimum {result.optimum_upper:.4f}.")
    print(f"written: {folder}/quotes.png, {folder}/scores.csv, {home}/model")
