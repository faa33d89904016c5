"""The baseline of a declared market whose coordinates are all observed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import PaperPolicies, TogetherBaseline
from mmgym.baselines.declared.one_step import DeclaredProblem
from mmgym.baselines.policy import Policy, RandomPolicy, uniform_nodes

__all__ = ["DeclaredBaseline", "RandomMixedPolicy"]

MOST_NODES = 2_000  # of a random policy whose value is summed, not simulated


class RandomMixedPolicy(RandomPolicy):
    """Actions uniform on a box with columns that are cut into the entries of choices, all equally likely.

    Parameters
    ----------
    action_space : gymnasium.spaces.Box
        Of one environment.
    problem : DeclaredProblem
    seed : int
        Of the actions drawn by `predict`.
    """

    def __init__(self, action_space: Any, problem: DeclaredProblem, seed: int) -> None:
        super().__init__(action_space, seed)
        self._problem = problem
        boxes = int(problem.declared.boxed.sum())
        self.markov = len(problem.choices) * self.nodes**boxes <= MOST_NODES

    def distribution(self, observations: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Every combination of choices with Gauss-Legendre nodes of the boxes (B, M, A), and weights (B, M)."""
        choices, boxed = self._problem.choices, self._problem.declared.boxed
        grid, weights = uniform_nodes(self.nodes, int(boxed.sum()))
        nodes = np.repeat(self._problem.actions(choices), len(grid), axis=0)
        nodes[:, boxed] = np.tile(grid, (len(choices), 1))
        shares = np.tile(weights, len(choices)) / len(choices)
        count = len(observations)
        return np.broadcast_to(nodes, (count, *nodes.shape)), np.broadcast_to(shares, (count, len(shares)))


class DeclaredBaseline(TogetherBaseline):
    """Of a declared market."""

    def __init__(self, params: Any, problem: DeclaredProblem, papers: PaperPolicies) -> None:
        super().__init__(params, problem, papers)
        self._declared = problem

    def random_policy(self, action_space: Any, seed: int) -> Policy:
        """As in `Baseline`; of boxes beside choices it is known exactly too."""
        boxed = self._declared.declared.boxed
        if boxed.any() and not boxed.all():
            return RandomMixedPolicy(action_space, self._declared, seed)
        return super().random_policy(action_space, seed)
