"""Policies near a policy: the second-order expansion of its one-step values in its actions.

By the advantage identity, what a nearby policy gains is the sum of its one-step advantages over the states that it
visits. To second order around the actions ``a`` of a policy, with its own values and visits,

    gain(b) = sum_i [g_i . (b_i - a_i) + (b_i - a_i)' H_i (b_i - a_i) / 2],

over (step, state) cells ``i``; ``g`` is the exact policy gradient. Maximising that and expanding again is policy
iteration by Newton's method: a handful of rounds.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.drawn_cells import sampled, time_slices
from mmgym.baselines.frozen import FrozenProblem, visits
from mmgym.baselines.policy import Float64Policy, Policy

__all__ = ["Expansion", "Expansions", "FrozenExpansions", "Gains"]

Array = NDArray[Any]

CELLS = 2_500  # of an expansion: those that count most are the likeliest to be drawn
DIFFERENCE = 1e-4  # of actions, for curvatures


class Expansion(NamedTuple):
    """The gain around a policy as a sum over drawn cells, unbiased for the sum over all of them."""

    value: float  # the criterion of the policy
    observations: Array  # (B, D)
    actions: Array  # (B, A), inside the box
    slopes: Array  # (B, A)
    curvatures: Array  # (B, A, A)


class Gains(Protocol):
    """The gain where it is known for all actions, not only near those of the policy: a sum over drawn cells."""

    @property
    def value(self) -> float:
        """The criterion of the policy."""

    @property
    def observations(self) -> Array:
        """Of the cells (B, D)."""

    def slopes(self, cells: Array, actions: Array) -> Array:
        """Derivatives of the gain in the actions (M, A), inside the box, of some of the cells (M,)."""


class Expansions(Protocol):
    """Expansions around policies of one environment."""

    observations: Array  # (M, D): what policies see, to standardise it

    def value(self, policy: Policy) -> float:
        """The criterion of a deterministic policy of the observation."""

    def around(self, policy: Policy, random: np.random.Generator) -> Expansion | Gains:
        """The expansion around a deterministic policy of the observation, on drawn cells; or the gain itself."""


class FrozenExpansions:
    """Expansions in a market with finitely many states: values, visits and slopes are exact.

    Parameters
    ----------
    problem : FrozenProblem
        With continuous controls that are an affine function of the action.

    Raises
    ------
    TypeError
        If the controls are not an affine function of a box of actions.
    """

    def __init__(self, problem: FrozenProblem) -> None:
        places = np.array([[-1.0], [0.0], [1.0], [-0.6875], [0.3125]])
        try:
            corners = problem.controls((places * np.ones(problem.num_controls)).astype(np.float32))
        except (IndexError, ValueError) as error:
            raise TypeError("exact_gradient needs a box of actions") from error
        low, middle, high = corners[:3]
        affine = corners.shape[1:] == (problem.num_controls,)
        if not affine or not np.allclose(corners, middle + places * 0.5 * (high - low), rtol=1e-9, atol=1e-9):
            raise TypeError(
                "exact_gradient needs controls that are an affine function of a box of actions: there is no gradient "
                "in a choice beside continuous controls"
            )
        self.problem = problem
        self.center, self.reach = middle, 0.5 * (high - low)
        self.observations = np.concatenate([problem.observations(n) for n in range(problem.num_steps)])

    def controls(self, policy: Any) -> Array:
        """What a policy plays, in model units (N, S, C); a network is not rounded to float32."""
        if isinstance(policy, Float64Policy):
            actions = policy.actions(self.observations)
        else:
            actions = policy.predict(self.observations)[0]
        shape = (self.problem.num_steps, self.problem.num_states, self.problem.num_controls)
        played: Array = self.center + self.reach * np.asarray(actions, dtype=np.float64).clip(-1.0, 1.0).reshape(shape)
        return played

    def value(self, policy: Policy) -> float:
        return visits(self.problem, self.controls(policy))[0]

    def around(self, policy: Policy, random: np.random.Generator) -> Expansion:
        problem, controls = self.problem, self.controls(policy)
        value, raw, weights = visits(problem, controls)
        count, states = problem.num_steps, np.arange(problem.num_states)
        steps, lengths = time_slices(count, random)
        slopes = np.empty((len(steps), problem.num_states, problem.num_controls))
        curvatures = np.empty((*slopes.shape, problem.num_controls))
        for i, (n, length) in enumerate(zip(steps, lengths, strict=True)):
            ahead, scale = raw[n + 1][:, None], (weights[n] * length)[:, None]
            slopes[i] = scale * problem.gradient(n, states, controls[n], ahead)[1]
            for k in range(problem.num_controls):
                shift = DIFFERENCE * self.reach * np.eye(problem.num_controls)[k]
                up, down = (problem.gradient(n, states, controls[n] + sign * shift, ahead)[1] for sign in (1.0, -1.0))
                curvatures[i, :, :, k] = scale * (up - down) / (2.0 * DIFFERENCE * self.reach[k])
        slopes *= self.reach
        curvatures *= self.reach[:, None] * self.reach
        curvatures = 0.5 * (curvatures + np.swapaxes(curvatures, -1, -2))
        importance = np.sqrt(np.abs(curvatures).max(axis=(-1, -2))).ravel()
        drawn, inverse = sampled(importance, CELLS, random)
        actions = (controls[steps] - self.center) / self.reach
        observations = self.observations.reshape(count, problem.num_states, -1)[steps]
        return Expansion(
            value,
            observations.reshape(importance.size, -1)[drawn],
            actions.reshape(importance.size, -1)[drawn],
            inverse[:, None] * slopes.reshape(importance.size, -1)[drawn],
            inverse[:, None, None] * curvatures.reshape(importance.size, *curvatures.shape[-2:])[drawn],
        )
