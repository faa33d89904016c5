"""Markets with continuous coordinates: what their baselines supply in place of a finite `FrozenProblem`.

The optimum is then known to a numerical error ("certified") or between bounds ("bracketed"). A market registers a class
for its parameters with `numerical_baseline`; `baselines.catalogue` and `baselines.scoring` ask it first, and go on to
the market's frozen-control problem where there is none.
"""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from baselines.policy import Policy

__all__ = ["Bounds", "Evaluation", "NumericalBaseline", "NumericalPolicy", "numerical_baseline"]

Array = NDArray[Any]


class Bounds(NamedTuple):
    """What is known of the optimum: equal bounds where it is computed, to within ``error``."""

    lower: float
    upper: float
    error: float


class Evaluation(NamedTuple):
    """Expectations under a policy, found without sampling."""

    value: float  # the criterion
    error: float  # of the value
    pnl: float  # W_T - W_0
    fills: float
    absolute_inventory: float  # its integral over time


class NumericalPolicy(Policy, Protocol):
    """The best policy known of such a market."""

    @property
    def optimum(self) -> float:
        """The optimum of the environment as built, or the certified upper bound where only bounds are known."""

    @property
    def bounds(self) -> Bounds:
        """Bounds of the optimum."""

    @property
    def level(self) -> str:
        """ "certified" or "bracketed"."""

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch."""


class NumericalBaseline(Protocol):
    """Optimum, policies and evaluation of a market with continuous coordinates.

    Where the criterion is not the mean of the ``estimate`` of `play`, a method ``converted(mean, stderr)`` makes
    criterion and standard error of its mean and standard error.
    """

    @property
    def level(self) -> str:
        """ "certified" or "bracketed"."""

    @property
    def reference(self) -> str:
        """Name of the policy whose skill is 0."""

    def best_policy(self) -> NumericalPolicy:
        """The optimum, or the best policy known."""

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """The papers' policies by name, made on demand."""

    def reference_value(self) -> float:
        """The criterion of the reference policy."""

    def evaluate(self, policy: Policy) -> Evaluation | None:
        """Expectations under a deterministic policy of the observation, or None where they must be sampled."""

    def play(self, base: Any, policy: Policy, deterministic: bool, count: int, seed: int) -> Mapping[str, Array]:
        """Episodes of ``count`` rows, played with the control variate of the known values.

        Returns
        -------
        mapping of str to array (count,)
            ``estimate`` of the criterion, and ``returns``, ``pnl``, ``fills``, ``orders``, ``absolute_inventory``.
        """

    def examples(self) -> list[dict[str, float]]:
        """Some states with their values and best controls, to print."""


@singledispatch
def numerical_baseline(params: Any) -> NumericalBaseline | None:
    """The numerical baseline of a market's parameters, or None if its states are finitely many."""
    return None
