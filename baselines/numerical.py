"""Markets with continuous coordinates: what their baselines supply in place of a finite `FrozenProblem`.

The optimum is then known to a numerical error ("certified") or between bounds ("bracketed"). A market registers a class
for its parameters with `numerical_baseline`; `mmgym.baselines.catalogue` and `mmgym.baselines.scoring` ask it first,
and go on to the market's frozen-control problem where there is none.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, singledispatch
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from mmgym.baselines.policy import Policy

__all__ = [
    "BestKnownPolicy",
    "Bounds",
    "Evaluation",
    "NumericalBaseline",
    "NumericalPolicy",
    "best_lower",
    "numerical_baseline",
]

Array = NDArray[Any]


class Bounds(NamedTuple):
    """What is known of the optimum: equal bounds where it is computed, to within ``error``."""

    lower: float
    upper: float
    error: float

    @property
    def level(self) -> str:
        """ "exact" where the bounds are one number or, with an error, "certified"; otherwise "bracketed"."""
        if self.lower != self.upper:
            return "bracketed"
        return "exact" if self.error == 0.0 else "certified"


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
        """That of the bounds."""

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch."""


class BestKnownPolicy:
    """The policy with the best lower bound of all that a bracketed market knows: it acts as that one does.

    Which one it is, is found when it is first asked for. What is not listed here is that policy's.

    Attributes
    ----------
    name : str
        Among the market's policies.
    policy : Policy
    bounds : Bounds
    level : str
    optimum : float
        The upper bound of the optimum.
    """

    def __init__(self, baseline: Any) -> None:
        self._baseline = baseline

    @property
    def name(self) -> str:
        found: str = self._baseline.best_known()[0]
        return found

    @cached_property
    def policy(self) -> Any:
        return self._baseline.policies()[self.name]()

    @property
    def bounds(self) -> Bounds:
        found: Bounds = self._baseline.bounds()
        return found

    @property
    def level(self) -> str:
        return self.bounds.level

    @property
    def optimum(self) -> float:
        found: float = self._baseline.upper()
        return found

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch, by the market's value function."""
        found: Array = self._baseline.value(observation)
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.policy, name)


def best_lower(
    names: Mapping[str, Any] | list[str],
    rough: Callable[[str], tuple[float, float]],
    fine: Callable[[str], float] | None = None,
) -> tuple[str, float]:
    """Name and lower bound of the policy whose lower bound is the best.

    Parameters
    ----------
    names : list of str
        Of the policies.
    rough : callable
        Value of a policy, and how far it may be from the true one: the lower bound is their difference.
    fine : callable, optional
        Lower bound of a policy, found with more work: asked for where ``rough`` says that it may be the best.
    """
    values = {name: rough(name) for name in names}
    bounds = {name: value - error for name, (value, error) in values.items()}
    if fine is not None:
        highest = max(bounds.values())
        bounds = {name: fine(name) for name, (value, error) in values.items() if value + error >= highest}
    best = max(bounds, key=lambda name: bounds[name])
    return best, bounds[best]


class NumericalBaseline(Protocol):
    """Optimum, policies and evaluation of a market with continuous coordinates.

    Where the criterion is not the mean of the ``estimate`` of `play`, a method ``converted(mean, stderr)`` makes
    criterion and standard error of its mean and standard error.
    """

    @property
    def only_bounds(self) -> bool:
        """Whether no policy of this market is ever claimed to be its optimum, whatever the bounds say."""

    @property
    def reference(self) -> str:
        """Name of the policy whose skill is 0."""

    @property
    def ours(self) -> tuple[str, ...]:
        """Names of the policies that no paper has."""

    def best_policy(self) -> Any:
        """The optimum, or the best policy known (`BestKnownPolicy`): a `NumericalPolicy`."""

    def bounds(self) -> Bounds:
        """Bounds of the optimum: below, what the best policy known is worth."""

    def policies(self) -> Mapping[str, Callable[[], Policy]]:
        """The papers' policies and ours by name, made on demand."""

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
