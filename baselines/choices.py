"""What can be gained by playing something else, where actions are discrete: exact one-step values on drawn cells.

By the advantage identity (`mmgym.baselines.expansion`) a policy gains over another one the sum over the (step, state)
cells that it visits of the other's one-step advantages ``A_i(action)``. Around a policy, these are known for all
actions from its own values; a policy that prefers what has the higher advantage, wherever it goes, is better, and
evaluating it and improving again is policy iteration. Nothing is known of the optimum.
"""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.drawn_cells import sampled, time_slices
from mmgym.baselines.frozen import FrozenProblem, tabulate, visits
from mmgym.baselines.policy import Policy

__all__ = ["Choices", "FrozenChoices", "component_sizes"]

Array = NDArray[Any]

CELLS = 3_000  # that are drawn, at most
MOST_COMBINATIONS = 10_000
NUMBERS = 8_000_000  # advantages that are kept


class Choices(NamedTuple):
    """Advantages of actions over the best one (<= 0, in units of the criterion) on drawn cells.

    The last component of an action has E entries, the others have J combinations (1 where there are no others).
    """

    value: float  # the criterion of the policy
    observations: Array  # (B, D)
    weights: Array  # (B,): how often the policy is there, sum 1; tilted by utility under CARA
    last: Array  # (B, E): entries of the last component, each with the best of the others
    others: Array  # (B, J): combinations of the others, with the best entry of the last


class FrozenChoices:
    """Choices in a market with finitely many states and discrete actions: all values are exact.

    Parameters
    ----------
    problem : FrozenProblem
        With `FrozenProblem.action_values`.
    sizes : tuple of int
        Numbers of entries of the components of an action.

    Raises
    ------
    TypeError
        If the market does not tell the values of all its actions.
    ValueError
        If there are more than `MOST_COMBINATIONS` combinations of all components but the last.
    """

    def __init__(self, problem: FrozenProblem, sizes: tuple[int, ...]) -> None:
        if problem.action_values is None:
            raise TypeError("exact_gradient needs a box of actions, or a market that tells the values of all actions")
        combinations = math.prod(sizes[:-1])
        if combinations > MOST_COMBINATIONS:
            raise ValueError(
                f"exact_gradient needs at most {MOST_COMBINATIONS} combinations of all components but the last, not "
                f"{combinations}, in the actions of {list(sizes)} entries: fewer sizes are needed, as of a larger "
                "lot"
            )
        self.problem, self.sizes, self.combinations = problem, sizes, combinations
        self.action_values = problem.action_values
        self.observations = np.concatenate([problem.observations(n) for n in range(problem.num_steps)])

    def value(self, policy: Policy) -> float:
        """The criterion of a policy, at its mode."""
        return visits(self.problem, tabulate(self.problem, policy).controls)[0]

    def around(self, policy: Policy, random: np.random.Generator) -> Choices:
        """The choices around a policy, at its mode."""
        problem = self.problem
        value, raw, weights = visits(problem, tabulate(problem, policy).controls)
        steps, lengths = time_slices(problem.num_steps, random)
        seen = self.observations.reshape(problem.num_steps, problem.num_states, -1)
        visited = np.abs(weights[steps]) * lengths[:, None]
        columns = self.combinations
        drawn, inverse = sampled(np.sqrt(visited).ravel(), max(min(CELLS, NUMBERS // columns), 1), random)
        counted = visited.ravel()[drawn] > 0.0
        drawn, inverse = drawn[counted], inverse[counted]
        slices, states = np.divmod(drawn, problem.num_states)
        last, others = np.empty((len(drawn), self.sizes[-1])), np.empty((len(drawn), columns))
        for i in np.unique(slices):
            here, n = np.flatnonzero(slices == i), int(steps[i])
            values = self.action_values(n, raw[n + 1][:, None])
            last[here] = problem.to_value(values.last[states[here]], 0.0)
            others[here] = problem.to_value(values.others(states[here], last[here].argmax(axis=1)), 0.0)
        highest = last.max(axis=1, keepdims=True)
        share = inverse * visited.ravel()[drawn]
        if problem.criterion.exponents is not None:  # weights are those of a factor of utility: of its logarithm
            share *= np.exp(-np.abs(problem.criterion.exponents[0]) * highest[:, 0])
        observations = seen[steps].reshape(visited.size, -1)[drawn]
        return Choices(value, observations, share / share.sum(), last - highest, others - highest)


def component_sizes(space: gymnasium.Space[Any]) -> tuple[int, ...] | None:
    """Numbers of entries of the components of a discrete action from 0 on; None for another space."""
    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        return (int(space.n),)
    if isinstance(space, gymnasium.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(space.start):
        return tuple(int(size) for size in space.nvec)
    return None
