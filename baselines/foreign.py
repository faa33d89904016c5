"""Policies of other libraries, and plain functions, as policies that can be scored.

Nothing of those libraries is imported here: what is given brings its own.
"""

import math
import sys
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.baseline import environment_of
from mmgym.baselines.choices import component_sizes
from mmgym.baselines.gaussian import clipped_gaussian_nodes
from mmgym.baselines.policy import (
    CallablePolicy,
    GivenPolicy,
    MemoryPolicy,
    Policy,
    RememberingPolicy,
    StatelessPolicy,
    title,
)
from mmgym.baselines.through_wrappers import ThroughWrappers
from mmgym.baselines.wrappers import Wrapped, changing_layers, innermost, is_function, refuse_policy_wrappers

__all__ = ["ModelPolicy", "ModulePolicy", "all_actions", "as_policy", "model_policy", "opened", "player_in"]

Array = NDArray[Any]

MOST_ACTIONS = 256  # discrete ones, whose probabilities are tabulated
PROBE = 7  # observations that tell whether a function takes a batch


def player_in(env: Any, policy: Any, markov: bool | None, **arguments: Any) -> tuple[Any, Any]:
    """The mmgym environment inside an environment, and the policy as one that plays there.

    Wrappers of observations and actions around the environment, which change one at a time and remember nothing, are
    taken to belong to the policy: it sees and does through them.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    policy : Policy, callable, torch module or Stable-Baselines3 model
    markov : bool or None
        What a callable says of itself.

    Raises
    ------
    TypeError
        If the environment is not one of mmgym's or in another wrapper, or the policy is none.
    """
    env, base, layers = opened(env, **arguments)
    for layer in layers:
        if not is_function(layer):
            raise Wrapped(
                f"the environment is wrapped in {type(layer).__module__}.{type(layer).__qualname__}, which is no "
                "function of one observation or action: `score` alone can simulate behind it"
            )
    player = as_policy(policy, markov, env if layers else base, wrapped=bool(layers))
    return base, ThroughWrappers(player, layers) if layers else player


def opened(env: Any, **arguments: Any) -> tuple[Any, Any, list[Any]]:
    """An environment, that of mmgym inside it, and the wrappers, from the outermost on, that change what a policy does.

    Raises
    ------
    TypeError
        As `environment_of`.
    """
    if isinstance(env, str):
        import mmgym  # noqa: F401  # registers the ids

        env, arguments = gymnasium.make(env, **arguments), {}
    base, layers = changing_layers(env)
    return env, environment_of(base, **arguments), layers


def as_policy(policy: Any, markov: bool | None = None, env: Any = None, *, wrapped: bool = False) -> Policy:
    """A policy made from what can act.

    Parameters
    ----------
    policy : object with predict, callable, torch module, model of Stable-Baselines3 or SBX, TorchRL actor, RLlib's
        A model brings the statistics of the `VecNormalize` around its environment, and its action masks. A function
        takes a batch of observations, or one; with ``env``, a call tells which. Transforms of a TorchRL environment
        are no part of its actor: give a function that has both.
    markov : bool, optional
        Whether what does not say so itself depends on nothing but the observation.
    env : environment or vector environment, optional
        Where it is to play.
    wrapped : bool
        Whether that has the wrappers which a model's own environment has.

    Raises
    ------
    TypeError
        If it is no policy, or a model behind wrappers that change what it sees or does.
    ValueError
        If a function answers neither a batch nor one observation with actions of the environment.
    """
    if hasattr(policy, "get_vec_normalize_env") and not hasattr(policy, "markov"):
        return model_policy(policy, wrapped=wrapped)
    if isinstance(policy, Policy):
        return policy
    if hasattr(policy, "predict"):
        return GivenPolicy(policy, bool(markov))
    policy = _module_of(policy)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(policy, torch.nn.Module):
        return ModulePolicy(policy, None if env is None else _spaces(env)[1])
    if not callable(policy):
        raise TypeError(f"{type(policy).__name__} is not a policy: it needs predict(observation), or be callable")
    return CallablePolicy(policy, bool(markov), env is not None and _takes_one(policy, env))


def _module_of(policy: Any) -> Any:
    """The RLModule of an RLlib algorithm; anything else as it is.

    Raises
    ------
    TypeError
        If the algorithm has several modules, or the module has not the observations of the environment, or a memory.
    """
    algorithms, modules = (
        sys.modules.get(f"ray.rllib.{name}") for name in ("algorithms.algorithm", "core.rl_module.rl_module")
    )
    if algorithms is not None and isinstance(policy, algorithms.Algorithm):
        if policy.config._env_to_module_connector is not None:
            raise TypeError(
                f"{type(policy).__name__} has connectors of its own between environment and module, which are not "
                "scored: give a function of the observations that applies them"
            )
        names = list(policy.config.policies)
        if len(names) != 1:
            raise TypeError(f"{type(policy).__name__} has the modules {', '.join(names)}: give get_module() of one")
        policy = policy.get_module(names[0])
    if modules is not None and isinstance(policy, modules.RLModule) and policy.is_stateful():
        raise TypeError(f"{type(policy).__name__} has a memory: give an object with predict(), as Stable-Baselines3's")
    return policy


def _spaces(env: Any) -> tuple[Any, Any]:
    """Observation and action space of one environment."""
    if hasattr(env, "single_action_space"):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


def _takes_one(function: Any, env: Any) -> bool:
    """Whether a function takes one observation and returns one action: only where it does not answer a batch."""
    seen, space = _spaces(env)
    low, high = (np.broadcast_to(np.clip(end, -1.0, 1.0), seen.shape) for end in (seen.low, seen.high))
    observations = np.linspace(0.5 * (low + high), high, PROBE).astype(seen.dtype)

    def answer(given: Array) -> tuple[int, ...] | Exception:
        try:
            return tuple(np.shape(function(given)))
        except Exception as error:  # whatever a function does that is given another shape than it expects
            return error

    of_batch = answer(observations)
    if of_batch == (PROBE, *space.shape):
        return False
    of_one = answer(observations[0])
    if of_one == space.shape:
        return True
    name = title(CallablePolicy(function))
    told = [
        f"raised {type(reply).__name__}: {reply}" if isinstance(reply, Exception) else f"returned shape {reply}"
        for reply in (of_batch, of_one)
    ]
    raise ValueError(
        f"{name} {told[0]} for a batch of {PROBE} observations, shape {observations.shape}, and {told[1]} for one of "
        f"shape {seen.shape}: it must return actions of shape {(PROBE, *space.shape)}, one for every row "
        f"(observations[:, i] is the i-th entry of all rows), or one action of shape {space.shape}"
    )


def _answer(module: Any, observations: Any, deterministic: bool) -> Any:
    """What a torch module answers to observations: TorchRL's actors and RLModules at the mode of their law or drawn."""
    tensordict, rllib = sys.modules.get("tensordict"), sys.modules.get("ray.rllib.core.rl_module.rl_module")
    if tensordict is not None and isinstance(module, tensordict.nn.TensorDictModuleBase):
        if len(module.in_keys) != 1 or "action" not in module.out_keys:
            raise TypeError(
                f"{type(module).__name__} maps {module.in_keys} to {module.out_keys}: it must map the observation "
                "alone to the action; give a function that takes the part that is meant"
            )
        given = tensordict.TensorDict({module.in_keys[0]: observations}, observations.shape[:-1])
        kinds = tensordict.nn.InteractionType
        with tensordict.nn.set_interaction_type(kinds.DETERMINISTIC if deterministic else kinds.RANDOM):
            return module(given)["action"]
    if rllib is not None and isinstance(module, rllib.RLModule):
        heads = module.forward_inference({"obs": observations.reshape(-1, observations.shape[-1])})
        law = module.get_inference_action_dist_cls().from_logits(heads["action_dist_inputs"])
        sample = (law.to_deterministic() if deterministic else law).sample()
        return sample.reshape(*observations.shape[:-1], *sample.shape[1:])
    return module(observations)


class ModulePolicy(StatelessPolicy):
    """A torch module from a batch of observations to actions, or to logits where actions are discrete.

    It is asked in evaluation mode, without gradients. Actors of TorchRL and modules of RLlib draw their actions where
    they are not to be deterministic.

    Parameters
    ----------
    module : torch.nn.Module
    space : gymnasium.Space or None
        Of one action.
    """

    def __init__(self, module: Any, space: Any = None) -> None:
        self.module, self._space = module, space
        torch = sys.modules["torch"]
        self.markov = not any(isinstance(part, torch.nn.RNNBase | torch.nn.RNNCellBase) for part in module.modules())

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions of one observation or a batch, and the state as it was given."""
        return self.act(observation, deterministic), state

    def act(self, observation: Any, deterministic: bool = True) -> Array:
        """Actions of one observation or a batch."""
        torch = sys.modules["torch"]
        first = next(iter(self.module.parameters()), torch.zeros(1))
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                given = torch.as_tensor(np.asarray(observation), dtype=first.dtype, device=first.device)
                answer = _answer(self.module, given, deterministic)
        finally:
            self.module.train(training)
        if not isinstance(answer, torch.Tensor):
            raise TypeError(
                f"{type(self.module).__name__} returned {type(answer).__name__}: a module must return one tensor of "
                "actions, or of logits where actions are discrete; give a function that takes the part that is meant"
            )
        actions: Array = answer.cpu().numpy()
        sizes = None if self._space is None else component_sizes(self._space)
        logits = actions.dtype.kind == "f" or actions.ndim == np.ndim(observation)  # TorchRL's are one-hot integers
        if sizes is None or actions.shape[-1:] != (sum(sizes),) or not logits:
            return actions
        parts = np.split(actions, np.cumsum(sizes)[:-1], axis=-1)
        entries = np.stack([part.argmax(axis=-1) for part in parts], axis=-1)
        return entries[..., 0] if isinstance(self._space, gymnasium.spaces.Discrete) else entries


class ModelPolicy(RememberingPolicy):
    """A Stable-Baselines3 model with its normalisation: a function of the observation, unless it is recurrent.

    Parameters
    ----------
    model : stable_baselines3 algorithm
    normalisation : VecNormalize or None
        Whose running statistics of observations the model saw.
    masks : callable or None
        Observations -> action masks, for a model that was trained with them.
    quotes_of : callable or None
        Actions -> quotes in model units, in the environment that it was trained in.
    """

    def __init__(self, model: Any, normalisation: Any = None, masks: Any = None, quotes_of: Any = None) -> None:
        self.quotes_of = quotes_of
        self.model = model
        self.markov = "Recurrent" not in type(model).__name__
        self._normalisation = normalisation
        self._masks = masks

    def _seen(self, observations: Any) -> Any:
        return observations if self._normalisation is None else self._normalisation.normalize_obs(observations)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """The model's actions, clipped to the action space; masks that are not given are those of the observations."""
        if action_masks is None and self._masks is not None:
            action_masks = self._masks(observation)
        masks = {} if action_masks is None else {"action_masks": action_masks}
        actions, state = self.model.predict(
            self._seen(observation), state=state, episode_start=episode_start, deterministic=deterministic, **masks
        )
        return actions, state

    def distribution(self, observations: Array) -> tuple[Array, Array]:
        """How the model acts: actions (B, M, A) and their weights (B, M).

        Of a clipped Gaussian head on a box, and of one that has ``nodes()``, they are quadrature nodes; of discrete
        heads all actions, (B, M) if an action is one number, with their probabilities.

        Raises
        ------
        TypeError
            If the model has neither head, or more than `MOST_ACTIONS` discrete actions.
        """
        space = self.model.action_space
        if not hasattr(self.model.policy, "get_distribution"):
            raise TypeError(f"{type(self.model).__name__} has no action distribution: use method='simulated'")
        masks = {} if self._masks is None else {"action_masks": self._masks(observations)}
        with sys.modules["torch"].no_grad():
            tensor, _ = self.model.policy.obs_to_tensor(self._seen(observations))
            head = self.model.policy.get_distribution(tensor, **masks)
        if isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete):
            return all_actions(head, space)
        if hasattr(head, "nodes"):
            nodes: tuple[Array, Array] = head.nodes()
            return nodes
        if type(head).__name__ != "DiagGaussianDistribution" or not isinstance(space, gymnasium.spaces.Box):
            raise TypeError(f"{type(head).__name__} has no quadrature: use method='simulated'")
        mean, std = head.distribution.mean.numpy(), head.distribution.stddev.numpy()
        return clipped_gaussian_nodes(mean.astype(np.float64), std.astype(np.float64), space.low, space.high)


def all_actions(head: Any, space: Any) -> tuple[Array, Array]:
    """All actions of independent categorical heads, and their probabilities.

    Raises
    ------
    TypeError
        If they are more than `MOST_ACTIONS`.
    """
    sizes = component_sizes(space)
    count = 0 if sizes is None else math.prod(sizes)
    if sizes is None or count > MOST_ACTIONS:
        raise TypeError(
            f"{space} has too many actions to score them all (at most {MOST_ACTIONS}): use method='simulated'"
        )
    heads = getattr(head, "distributions", None) or head.distribution
    heads = heads if isinstance(heads, list) else [heads]
    weights = np.ones((len(heads[0].probs), 1))
    for part in heads:
        chances = part.probs.numpy().astype(np.float64)
        chances /= chances.sum(axis=1, keepdims=True)
        weights = (weights[:, :, None] * chances[:, None]).reshape(len(weights), -1)
    single = isinstance(space, gymnasium.spaces.Discrete)
    actions = np.arange(count) if single else np.indices(sizes).reshape(len(sizes), -1).T
    return np.broadcast_to(actions, (len(weights), *actions.shape)), weights


def model_policy(model: Any, *, wrapped: bool = False) -> Policy:
    """A Stable-Baselines3 model as a policy, with the normalisation of the `VecNormalize` around its environment.

    If that has memory traces, so has the policy.

    Raises
    ------
    TypeError
        If it is none; if it uses action masks and has no environment, which tells them; or if its environment has a
        wrapper that changes what it sees or does, besides `VecNormalize`, unless it is to play behind wrappers.
    """
    if not hasattr(model, "get_vec_normalize_env"):
        raise TypeError(f"{type(model).__name__} is not a Stable-Baselines3 model")
    if not wrapped:
        refuse_policy_wrappers(model)
    venv = model.get_env()
    normalisation = model.get_vec_normalize_env() if venv is not None else None
    batch = getattr(innermost(venv), "envs", None)  # of an `mmgym.adapters.sb3.SB3VecEnv`
    traces = None if wrapped else getattr(batch, "traces", None)
    masks = None
    if "Maskable" in type(model).__name__:
        if venv is None:
            raise TypeError("a model with action masks needs its environment: set_env() first")
        masks = venv.get_attr("masks", 0)[0]
    if normalisation is not None and not normalisation.norm_obs:
        normalisation = None
    quotes_of = None if wrapped else getattr(innermost(venv), "to_quotes", None)
    if traces is None:
        return ModelPolicy(model, normalisation, masks, quotes_of)
    of_observed = None if masks is None else lambda seen: masks(seen[..., : traces.observed])
    return MemoryPolicy(ModelPolicy(model, normalisation, of_observed, quotes_of), traces)
