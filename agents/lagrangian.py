"""Penalised reinforcement learning of risk-constrained quoting: exact policy gradient with dual variables.

The policy draws its quotes from softmax probabilities of every step and inventory (or, ``time_only``, of every step).
Each iteration takes the exact gradient of the Lagrangian ``E[objective] - sum_i lambda_i (risk_i - bound_i)`` through
the law of the chain (no sampling: a forward and a backward pass on the `Lattice` give what every pair of quotes
contributes), one Adam step on the logits, and one step of projected dual ascent, ``lambda_i <- max(lambda_i + rate
(risk_i - bound_i), 0)``. Kept is the best iterate that keeps to the limits (Altman 1999; Tessler, Mankowitz & Mannor
2019).
"""

import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from mmgym.baselines.constrained.lattice import Lattice
from mmgym.baselines.constrained.model import Chain, Evaluation, Quotes, evaluate_schedule
from mmgym.baselines.constrained.problem import AgentSettings

try:
    import torch
except ImportError as error:
    raise ImportError("the penalised agent needs torch: pip install 'mmgym[agents]'") from error

__all__ = ["LagrangianRun", "train_lagrangian"]

DIGITS = 12  # of the probabilities of the schedule that is returned
MARGIN = 1e-9  # below the limits, so that rounding the probabilities breaks none


class LagrangianRun(NamedTuple):
    """What training left.

    ``schedule`` has the probabilities of quotes by step and inventory; it and ``evaluation`` (exact) are None if no
    iterate kept to the limits. ``multipliers`` are the last ones; ``iterations`` are fewer than asked for where the
    deadline came first.
    """

    schedule: dict[tuple[int, int], dict[Quotes, Fraction]] | None
    evaluation: Evaluation | None
    multipliers: dict[str, float]
    iterations: int
    best_iteration: int | None


class Decisions:
    """What the agent draws: one choice for each decision, hence quotes for one inventory or (time only) for all."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.lattice = chain, Lattice(chain)
        self.list = [(n, choices) for n, step in enumerate(chain.decisions) for _, choices in step]
        self.places = [
            (n, list(choices[0]), [[self.lattice.number[q][choice[q]] for choice in choices] for q in choices[0]])
            for n, choices in self.list
        ]
        widest = max(len(choices) for _, choices in self.list)
        self.allowed = torch.zeros(len(self.list), widest, dtype=torch.bool)
        for j, (_, choices) in enumerate(self.list):
            self.allowed[j, : len(choices)] = True

    def schedule(self, probabilities: Any) -> dict[tuple[int, int], dict[Quotes, Any]]:
        """Probabilities of quotes by step and inventory, from those (decisions, choices) of the choices."""
        schedule: dict[tuple[int, int], dict[Quotes, Any]] = {}
        for (n, choices), row in zip(self.list, probabilities, strict=True):
            for choice, p in zip(choices, row, strict=False):
                for q, pair in choice.items():
                    cell = schedule.setdefault((n, q), {})
                    cell[pair] = cell.get(pair, 0) + p
        return schedule

    def __call__(self, probabilities: Any) -> tuple[Any, Any]:
        """Functionals (F,) of probabilities (decisions, choices), and their derivatives (decisions, choices, F)."""
        lattice, schedule = self.lattice, self.schedule(probabilities.tolist())
        cells: list[dict[int, Any]] = [{} for _ in range(self.chain.market.num_steps)]
        for (n, q), weights in schedule.items():
            cells[n][q] = weights
        shares = [lattice.shares(step) for step in cells]
        laws = lattice.laws(shares)
        lattice.use_worst_of(laws[-1])
        values = lattice.terminal()
        gains: dict[int, dict[int, Any]] = {}
        for n in reversed(range(self.chain.market.num_steps)):
            parts = lattice.parts(n, values)
            gains[n] = lattice.gains(parts, laws[n])
            values = lattice.play(parts, shares[n])
        slopes = np.zeros((*self.allowed.shape, values.shape[-1]))
        for row, (n, inventories, numbers) in zip(slopes, self.places, strict=True):
            for q, number in zip(inventories, numbers, strict=True):
                row[: len(number)] += gains[n][q][number]
        return torch.from_numpy(values[lattice.start, 0].copy()), torch.from_numpy(slopes)


def train_lagrangian(
    chain: Chain,
    settings: AgentSettings,
    progress: Callable[[int, float], object] | None = None,
    deadline: float = math.inf,
) -> LagrangianRun:
    """Train the penalised agent on a chain.

    Parameters
    ----------
    chain : Chain
    settings : AgentSettings
        ``iterations``, ``learning_rate`` (of Adam, falling linearly to a tenth), ``dual_rate`` and ``seed`` (of the
        first logits).
    progress : callable, optional
        Called after each iteration with its number and the best value so far (nan: no iterate kept to the limits).
    deadline : float
        On the clock of `time.perf_counter`: training stops there.

    Returns
    -------
    LagrangianRun
    """
    decisions = Decisions(chain)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = decisions.allowed.shape
    logits = (0.01 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=settings.learning_rate)
    asked = torch.tensor([float(bound) for bound in chain.bounds.values()], dtype=torch.float64)
    multipliers = torch.zeros(len(asked), dtype=torch.float64)
    best, best_value, best_iteration, iteration = None, float("nan"), None, -1
    for iteration in range(settings.iterations):
        if time.perf_counter() > deadline:
            iteration -= 1
            break
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1.0 - 0.9 * iteration / settings.iterations)
        probabilities = torch.softmax(logits.masked_fill(~decisions.allowed, -torch.inf), dim=1)
        functionals, slopes = decisions(probabilities.detach())
        excess, worth = functionals[1:] - asked, functionals[0].item()
        if bool((excess <= -MARGIN).all()) and not worth <= best_value:
            best, best_value, best_iteration = probabilities.detach().clone(), worth, iteration
        optimiser.zero_grad()
        slope = slopes[..., 1:] @ multipliers - slopes[..., 0]
        (probabilities * slope).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        multipliers = (multipliers + settings.dual_rate * excess).clamp(min=0.0)
        if progress is not None:
            progress(iteration, best_value)
    last = dict(zip(chain.bounds, multipliers.tolist(), strict=True))
    if best is None:
        return LagrangianRun(None, None, last, iteration + 1, None)
    parts = [[Fraction(round(p * 10**DIGITS)) for p in row] for row in best.tolist()]
    schedule = decisions.schedule([[p / sum(row) for p in row] for row in parts])
    schedule = {cell: {pair: p for pair, p in weights.items() if p} for cell, weights in schedule.items()}
    return LagrangianRun(schedule, evaluate_schedule(chain, schedule), last, iteration + 1, best_iteration)
