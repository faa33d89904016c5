"""Policies: what can be asked for an action, functions of the observation, and policies that want quotes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.memory_traces import MemoryTraces

Array = NDArray[Any]

__all__ = [
    "CallablePolicy",
    "Float64Policy",
    "GivenPolicy",
    "MemoryPolicy",
    "Policy",
    "PolicyThrough",
    "QuotingPolicy",
    "RandomPolicy",
    "RememberingPolicy",
    "StatePolicy",
    "StatelessPolicy",
    "checked_actions",
    "draws_actions",
    "title",
    "uniform_nodes",
]


Distribution = Callable[[Array], tuple[Array, Array]]  # observations -> nodes (B, M, action) and weights (B, M)


@runtime_checkable
class Policy(Protocol):
    """Something that acts, and what is known of how: Stable-Baselines3's `predict` with five properties.

    `mmgym.baselines.foreign.as_policy` makes one of whatever has `predict`, or is called.
    """

    @property
    def markov(self) -> bool:
        """Whether it is a function of the observation alone."""

    @property
    def has_mode(self) -> bool:
        """Whether `predict` finds one action, its mode; if not, it draws one, whatever ``deterministic`` says."""

    @property
    def distribution(self) -> Distribution | None:
        """Of a stochastic policy: observations -> quadrature nodes of its actions and their weights."""

    @property
    def quotes_of(self) -> Callable[[Any], Array] | None:
        """Actions -> the quotes in model units that they stand for where it was made (`mmgym.baselines.quotes`)."""

    @property
    def clips(self) -> Callable[[Any], Array] | None:
        """Observations -> whether the quotes that it wants lie outside the action box."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions of one observation or of a batch, and the next hidden state."""


class RememberingPolicy:
    """A policy with a hidden state: subclasses define `respond`.

    `predict` ignores its other arguments: a policy that draws its actions does so whatever ``deterministic`` says.
    """

    markov = False
    has_mode = True
    distribution: Distribution | None = None
    quotes_of: Callable[[Any], Array] | None = None
    clips: Callable[[Any], Array] | None = None

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Any, Any]:
        """Action of one observation, or actions of a batch, and the next hidden state."""
        raise TypeError(f"{type(self).__name__} must define respond()")

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Action of one observation, or actions of a batch, and the next hidden state."""
        return self.respond(observation, state, episode_start)


class StatelessPolicy(RememberingPolicy):
    """A policy without a hidden state: subclasses define `act`, from observations to actions."""

    markov = True

    def act(self, observation: Any) -> Any:
        """Action of one observation, or actions of a batch."""
        raise TypeError(f"{type(self).__name__} must define act()")

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Any, Any]:
        """The actions, and the hidden state as it was given."""
        return self.act(observation), state


class Float64Policy(StatelessPolicy):
    """A policy of a box of actions whose actions are found in float64, by `actions`, and rounded where they are played.

    Its exact value is that of the unrounded ones.
    """

    def actions(self, observations: Any) -> Array:
        """Actions (B, A) in float64, before clipping to the box."""
        raise TypeError(f"{type(self).__name__} must define actions()")

    def act(self, observation: Any) -> Array:
        """The actions, clipped to the box."""
        return self.actions(observation).clip(-1.0, 1.0).astype(np.float32)


class QuotingPolicy(StatelessPolicy):
    """A policy that wants quotes: where they lie outside the action box, the nearest ones are played.

    Subclasses define `wanted`, and ``model``, with the maps of the market: ``from_quotes(params, quotes)`` and
    ``to_quotes(params, actions)``.
    """

    model: Any
    params: Any

    def wanted(self, observation: Any) -> Array:
        """Quotes of one observation or of a batch, in model units, inside the box or not."""
        raise TypeError(f"{type(self).__name__} must define wanted()")

    def act(self, observation: Any) -> Array:
        """Action of one observation, or actions of a batch: the nearest ones in the box."""
        return np.asarray(self.model.from_quotes(self.params, self.wanted(observation)))

    def quotes_of(self, actions: Any) -> Array:
        """Quotes in model units that its actions stand for."""
        return np.asarray(self.model.to_quotes(self.params, actions))

    def clips(self, observation: Any) -> Array:
        """Whether the quotes of an observation, or of each of a batch, lie outside the box."""
        wanted = np.asarray(self.wanted(observation))
        played = self.model.to_quotes(self.params, self.model.from_quotes(self.params, wanted))
        return np.asarray((np.abs(played - wanted) > 1e-6 * (1.0 + np.abs(wanted))).any(axis=-1))


class StatePolicy(QuotingPolicy):
    """A function of the state behind `predict`: its arguments are what ``model.locate`` reads off observations.

    Parameters
    ----------
    params : NamedTuple
    depths : callable
        Quotes of a state, or of each of a batch.
    """

    def __init__(self, params: Any, depths: Callable[..., Array]) -> None:
        self.params, self.depths = params, depths

    def wanted(self, observation: Any) -> Array:
        """Quotes of one observation, or of each of a batch."""
        return np.asarray(self.depths(*self.model.locate(self.params, observation)))


class PolicyThrough:
    """A policy that acts through another one: subclasses change what that sees, or what is played for its actions.

    Parameters
    ----------
    policy : Policy
    """

    quotes_of: Callable[[Any], Array] | None = None
    clips: Callable[[Any], Array] | None = None

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def markov(self) -> bool:
        """As the policy."""
        return self._policy.markov

    @property
    def has_mode(self) -> bool:
        """As the policy."""
        return self._policy.has_mode

    @property
    def distribution(self) -> Distribution | None:
        """That of the policy, through what is changed."""
        return None if self._policy.distribution is None else self._distribution

    def seen(self, observations: Any) -> Any:
        """What the policy sees: the observations."""
        return observations

    def played(self, actions: Any) -> Any:
        """What is played for its actions: they."""
        return actions

    def predict(self, observation: Any, *rest: Any, **keywords: Any) -> tuple[Any, Any]:
        """What is played, and the policy's next hidden state."""
        actions, state = self._policy.predict(self.seen(observation), *rest, **keywords)
        return self.played(actions), state

    def _distribution(self, observations: Array) -> tuple[Array, Array]:
        assert self._policy.distribution is not None
        nodes, weights = self._policy.distribution(self.seen(observations))
        return self.played(nodes), weights


class MemoryPolicy(PolicyThrough):
    """A policy of observations with memory traces, as one of observations that remembers.

    Parameters
    ----------
    policy : Policy
    traces : MemoryTraces
        As those that it was trained with.
    """

    markov = False
    distribution = None

    def __init__(self, policy: Policy, traces: MemoryTraces) -> None:
        super().__init__(policy)
        self.traces, self.quotes_of = traces, policy.quotes_of

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """The policy's actions; the hidden state is what it saw last, and its own."""
        before, own = (None, None) if state is None else state
        seen = self.traces.seen(before, observation, episode_start)
        actions, own = self._policy.predict(seen, own, episode_start, deterministic, action_masks)
        return actions, (seen, own)


def uniform_nodes(nodes: int, dimensions: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes (nodes^D, D) and weights of the uniform law on ``[-1, 1]^D``."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    grid = np.stack(np.meshgrid(*[x] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    return grid, functools.reduce(np.multiply.outer, [w / 2.0] * dimensions).ravel()


class RandomPolicy(StatelessPolicy):
    """Actions uniform on the action box.

    Parameters
    ----------
    action_space : gymnasium.spaces.Box
        Of one environment.
    seed : int
        Of the actions drawn by `predict`.

    Attributes
    ----------
    markov : bool
        True for up to two actions. For more its quadrature would have too many nodes: scores are then simulated.
    """

    has_mode = False  # a score must not be taken at one draw of its actions
    nodes = 12  # per dimension: 1e-9 of the value where a step has few fills, 1e-4 where it has fifty

    def __init__(self, action_space: gymnasium.spaces.Box, seed: int = 0) -> None:
        self._space = action_space
        self._random = np.random.default_rng(seed)
        self.markov = action_space.low.size <= 2

    def act(self, observation: Any) -> Array:
        """Uniform actions."""
        batch = np.shape(observation)[:-1]
        low, high = self._space.low, self._space.high
        return self._random.uniform(low, high, (*batch, *low.shape)).astype(self._space.dtype)

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """Gauss-Legendre nodes (B, M, A) and weights (B, M) of the uniform law."""
        grid, weights = uniform_nodes(self.nodes, self._space.low.size)
        center, reach = 0.5 * (self._space.high + self._space.low), 0.5 * (self._space.high - self._space.low)
        batch = len(observations)
        nodes = np.broadcast_to(center + reach * grid, (batch, *grid.shape))
        return nodes, np.broadcast_to(weights, (batch, len(weights)))


class CallablePolicy(StatelessPolicy):
    """A bare function of the batch of observations, or of one.

    Parameters
    ----------
    function : callable
    markov : bool
        Whether it depends on nothing but the observation.
    takes_one : bool
        Whether it takes one observation at a time.
    """

    def __init__(self, function: Any, markov: bool = False, takes_one: bool = False) -> None:
        self._function, self.markov, self._takes_one = function, markov, takes_one

    def act(self, observation: Any) -> Any:
        """The function's actions."""
        if self._takes_one and np.ndim(observation) > 1:
            return np.stack([np.asarray(self._function(row)) for row in observation])
        return self._function(observation)


def _further(predict: Callable[..., Any]) -> set[str]:
    """Names of the arguments besides observations that can be given to a `predict` by name."""
    try:
        first, *others = inspect.signature(predict).parameters.values()
    except ValueError:  # it takes nothing, or is compiled and does not say what
        return set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(each.kind is each.VAR_KEYWORD for each in others):
        return {"state", "episode_start", "deterministic", "action_masks"} - {first.name}
    return {each.name for each in others if each.kind in named}


class GivenPolicy(RememberingPolicy):
    """Somebody else's object with ``predict``, which may have the other members of a `Policy` or not.

    Parameters
    ----------
    policy : object
    markov : bool
        Whether it is a function of the observation, if it does not say so itself.
    """

    def __init__(self, policy: Any, markov: bool = False) -> None:
        self._policy = policy
        self._taken = _further(policy.predict)
        self.markov, self.has_mode = bool(getattr(policy, "markov", markov)), getattr(policy, "has_mode", True)
        self.distribution = getattr(policy, "distribution", None)
        self.quotes_of, self.clips = (getattr(policy, name, None) for name in ("quotes_of", "clips"))

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """As the object, which is given those of the arguments that it takes, and may return actions alone."""
        given = {"state": state, "episode_start": episode_start, "deterministic": deterministic}
        given |= {} if action_masks is None else {"action_masks": action_masks}
        taken = {name: value for name, value in given.items() if name in self._taken}
        answer = self._policy.predict(observation, **taken)
        return answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, state)


def draws_actions(policy: Policy, deterministic: bool) -> bool:
    """Whether a policy is to be scored as it draws its actions: it has no mode, or that is not what is asked for."""
    return not policy.has_mode or (not deterministic and policy.distribution is not None)


def title(policy: Any) -> str:
    """What errors call a policy: its function's name, or the class of what acts in the end."""
    while isinstance(policy, PolicyThrough | GivenPolicy):
        policy = policy._policy
    function = policy._function if isinstance(policy, CallablePolicy) else policy
    return str(getattr(function, "__name__", type(function).__name__))


def checked_actions(policy: Policy, actions: Any, observations: Any, shape: tuple[int, ...]) -> Array:
    """Actions of shape ``(B, *shape)`` as a policy gave them for a batch of observations.

    Raises
    ------
    ValueError
        If they have another shape, or are not finite numbers.
    """
    given, count = np.asarray(actions), len(observations)
    name = title(policy)
    if given.shape != (count, *shape):
        raise ValueError(
            f"{name} returned actions of shape {given.shape} for a batch of {count} observations: it must return "
            f"{(count, *shape)}, an action for every row (observations[:, i] is the i-th entry of all rows)"
        )
    if given.dtype.kind not in "fiub":
        raise ValueError(f"{name} returned actions of type {given.dtype}: they must be numbers")
    good = np.isfinite(given)
    if not good.all():
        row = int(np.flatnonzero(~good.reshape(count, -1).all(axis=1))[0])
        raise ValueError(
            f"{name} returned the action {given[row].tolist()} for the observation "
            f"{np.asarray(observations[row]).tolist()}: actions must be finite"
        )
    return given
