"""Penalised reinforcement learning of risk-constrained quoting: exact policy gradient with dual variables.

The policy draws its quotes from softmax probabilities of every step and inventory. Each iteration takes the exact
gradient of the Lagrangian ``E[objective] - sum_i lambda_i (P_i - asked_i)`` through the forward law of the chain (no
sampling), one Adam step on the logits, and one step of projected dual ascent, ``lambda_i <- max(lambda_i + rate (P_i -
asked_i), 0)``. Kept is the best iterate that keeps to the limits (Altman 1999; Tessler, Mankowitz & Mannor 2019).
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

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
    iterate kept to the limits. ``multipliers`` are the last ones.
    """

    schedule: dict[tuple[int, int], dict[Quotes, Fraction]] | None
    evaluation: Evaluation | None
    multipliers: dict[str, float]
    iterations: int
    best_iteration: int | None


class _Unfolded:
    """The chain as tensors: for each step, which (state, quotes) pair sends which share of its mass where."""

    def __init__(self, chain: Chain) -> None:
        self.cells = [(n, q) for n, inventories in enumerate(chain.reachable_inventories) for q in inventories]
        number = {cell: i for i, cell in enumerate(self.cells)}
        self.widest = max(len(choices) for choices in chain.quotes.values())
        self.allowed = torch.zeros(len(self.cells), self.widest, dtype=torch.bool)
        for i, (_, q) in enumerate(self.cells):
            self.allowed[i, : len(chain.quotes[q])] = True
        self.steps: list[tuple[Any, Any, Any, Any, int, Any]] = []
        for n, layer in enumerate(chain.layers[:-1]):
            index = {state: i for i, state in enumerate(chain.layers[n + 1])}
            sources, targets, shares = [], [], []
            for i, state in enumerate(layer):
                for k, pair in enumerate(chain.quotes[state.inventory]):
                    for after, parts in chain.successors(state, pair):
                        sources.append(i * self.widest + k)
                        targets.append(index[after])
                        shares.append(parts / chain.denominator)
            rewards = [float(chain.step_reward(state.inventory)) for state in chain.layers[n + 1]]
            self.steps.append(
                (
                    torch.tensor([number[n, state.inventory] for state in layer]),
                    torch.tensor(sources),
                    torch.tensor(targets),
                    torch.tensor(shares, dtype=torch.float64),
                    len(index),
                    torch.tensor(rewards, dtype=torch.float64),
                )
            )
        last = chain.layers[-1]
        self.final = torch.tensor([float(chain.final_reward(state)) for state in last], dtype=torch.float64)
        counted = [[float(chain.violates(name, state)) for state in last] for name in chain.risk_limits]
        self.counted = torch.tensor(counted, dtype=torch.float64).reshape(len(counted), len(last))

    def __call__(self, probabilities: Any) -> tuple[Any, Any]:
        """Objective, and the probability of each limit, of probabilities (cells, quotes)."""
        law, value = torch.ones(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for cells, sources, targets, shares, count, rewards in self.steps:
            played = (law[:, None] * probabilities[cells]).reshape(-1)
            law = torch.zeros(count, dtype=torch.float64).index_add(0, targets, played[sources] * shares)
            value = value + law @ rewards
        return value + law @ self.final, self.counted @ law


def train_lagrangian(
    chain: Chain, settings: AgentSettings, progress: Callable[[int, float], object] | None = None
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

    Returns
    -------
    LagrangianRun
    """
    unfolded = _Unfolded(chain)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = unfolded.allowed.shape
    logits = (0.01 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=settings.learning_rate)
    asked = torch.tensor([float(p.probability) for p in chain.risk_limits.values()], dtype=torch.float64)
    multipliers = torch.zeros(len(asked), dtype=torch.float64)
    best, best_value, best_iteration = None, float("nan"), None
    for iteration in range(settings.iterations):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1.0 - 0.9 * iteration / settings.iterations)
        probabilities = torch.softmax(logits.masked_fill(~unfolded.allowed, -torch.inf), dim=1)
        value, counted = unfolded(probabilities)
        excess, worth = counted - asked, value.item()
        if bool((excess <= -MARGIN).all()) and not worth <= best_value:
            best, best_value, best_iteration = probabilities.detach().clone(), worth, iteration
        optimiser.zero_grad()
        (multipliers @ excess - value).backward()
        optimiser.step()
        multipliers = (multipliers + settings.dual_rate * excess.detach()).clamp(min=0.0)
        if progress is not None:
            progress(iteration, best_value)
    last = dict(zip(chain.risk_limits, multipliers.tolist(), strict=True))
    if best is None:
        return LagrangianRun(None, None, last, settings.iterations, None)
    schedule = {}
    for cell, row in zip(unfolded.cells, best.numpy(), strict=True):
        parts = {pair: Fraction(round(p * 10**DIGITS)) for pair, p in zip(chain.quotes[cell[1]], row, strict=False)}
        whole = sum(parts.values())
        schedule[cell] = {pair: p / whole for pair, p in parts.items() if p}
    return LagrangianRun(schedule, evaluate_schedule(chain, schedule), last, settings.iterations, best_iteration)
