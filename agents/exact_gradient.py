"""Training on the exact value: no sampling, no critic.

The value of a table of quotes and its derivatives are exact (`baselines.frozen.policy_gradient`); back-propagation goes
through the network only, and L-BFGS does the rest. A "step" of such a run is one evaluation of value and gradient. The
network is a function of the float32 observation, in float64; its actions are clipped to the box, and a gradient that
points back into the box passes the clipping.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from agents.model_files import ModelFileError, flatten, unflatten
from baselines.frozen import FrozenProblem, policy_gradient

try:
    import torch
except ImportError as error:
    raise ImportError("training needs torch: pip install 'mmgym[agents]'") from error

__all__ = ["ExactGradient", "NetworkPolicy", "network_of", "restore_network"]

Array = NDArray[Any]


class NetworkPolicy:
    """A tanh network on standardised observations, as a policy.

    Parameters
    ----------
    observations, actions : int
        Lengths of their vectors.
    net_arch : list of int
        Widths of the hidden layers.
    seed : int
        Of the initial weights.
    """

    markov = True

    def __init__(self, observations: int, actions: int, net_arch: list[int], seed: int = 0) -> None:
        widths = [observations, *net_arch]
        generator = torch.Generator().manual_seed(seed)
        layers: list[torch.nn.Module] = []
        for wide, narrow in zip(widths, [*net_arch, actions], strict=True):
            layer = torch.nn.Linear(wide, narrow, dtype=torch.float64)
            for tensor in (layer.weight, layer.bias):
                torch.nn.init.uniform_(tensor, -(wide**-0.5), wide**-0.5, generator=generator)
            layers += [layer, torch.nn.Tanh()]
        self.network = torch.nn.Sequential(*layers[:-1])
        self.network.register_buffer("mean", torch.zeros(observations, dtype=torch.float64))
        self.network.register_buffer("scale", torch.ones(observations, dtype=torch.float64))

    def standardise(self, observations: Array) -> None:
        """Take mean and standard deviation from observations (B, D); a constant column keeps the scale 1."""
        seen = np.asarray(observations, dtype=np.float64)
        spread = seen.std(axis=0)
        self.network.mean.copy_(torch.from_numpy(seen.mean(axis=0)))  # type: ignore[operator,union-attr]
        scale = np.where(spread > 1e-9, spread, 1.0)
        self.network.scale.copy_(torch.from_numpy(scale))  # type: ignore[operator,union-attr]

    def __call__(self, observations: Array) -> Any:
        """Actions before clipping, as a tensor with gradients."""
        seen = torch.from_numpy(np.asarray(observations, dtype=np.float64))
        return self.network((seen - self.network.mean) / self.network.scale)  # type: ignore[operator]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Array, Any]:
        """The network's actions, clipped to the box."""
        with torch.no_grad():
            return self(observation).clamp(-1.0, 1.0).numpy().astype(np.float32), state


class ExactGradient:
    """L-BFGS on the exact value of a network.

    Parameters
    ----------
    problem : FrozenProblem
        With continuous controls that are an affine function of the action.
    policy : NetworkPolicy
    history_size : int
        Of L-BFGS.

    Raises
    ------
    TypeError
        If the controls are not an affine function of a box of actions.
    """

    def __init__(self, problem: FrozenProblem, policy: NetworkPolicy, history_size: int = 100) -> None:
        corners = np.array([[-1.0], [0.0], [1.0]]) * np.ones(problem.num_controls)
        try:
            low, middle, high = problem.controls(corners.astype(np.float32))
        except (IndexError, ValueError) as error:
            raise TypeError("exact_gradient needs a box of actions") from error
        if low.shape != (problem.num_controls,) or not np.allclose(0.5 * (low + high), middle, rtol=1e-9, atol=1e-9):
            raise TypeError("exact_gradient needs controls that are an affine function of a box of actions")
        self.problem, self.policy = problem, policy
        self.center, self.reach = middle, 0.5 * (high - low)
        self.observations = np.concatenate([problem.observations(n) for n in range(problem.num_steps)])
        policy.standardise(self.observations)
        self.shape = (problem.num_steps, problem.num_states, problem.num_controls)
        self.history_size = history_size
        self.steps, self.value, self.scale = 0, -np.inf, 1.0  # evaluations, the last value, factor of the loss
        self.optimiser = self._fresh_optimiser()

    def _fresh_optimiser(self) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(
            self.policy.network.parameters(),
            max_iter=1,
            max_eval=25,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=self.history_size,
            line_search_fn="strong_wolfe",
        )

    def _loss(self) -> Any:
        self.optimiser.zero_grad()
        actions = self.policy(self.observations)
        played = actions.detach().numpy()
        controls = (self.center + self.reach * played.clip(-1.0, 1.0)).reshape(self.shape)
        self.value, gradient = policy_gradient(self.problem, controls)
        slopes = (gradient * self.reach).reshape(played.shape)
        outward = (np.abs(played) > 1.0) & (slopes * played > 0.0)
        if self.steps == 0:
            self.scale = 1.0 / max(abs(self.value), 1e-12)
        (-self.scale * torch.from_numpy(np.where(outward, 0.0, slopes)) * actions).sum().backward()
        self.steps += 1
        return torch.tensor(-self.scale * self.value, dtype=torch.float64)

    def _weights(self) -> Any:
        return torch.nn.utils.parameters_to_vector(self.policy.network.parameters()).detach().clone()

    def iterate(self) -> bool:
        """One iteration of L-BFGS, one evaluation or more: whether the weights changed.

        Where the line search finds nothing better, L-BFGS forgets what it has gathered and tries once more.
        """
        for _ in range(2):
            before = self._weights()
            self.optimiser.step(self._loss)  # type: ignore[no-untyped-call]
            if not torch.equal(before, self._weights()):
                return True
            self.optimiser = self._fresh_optimiser()
        return False

    def state(self, arrays: dict[str, Array], *, training: bool) -> dict[str, Any]:
        """JSON layout of the network (and of the optimiser); their arrays go to ``arrays``."""
        tree: dict[str, Any] = {"network": dict(self.policy.network.state_dict())}
        if training:
            tree |= {"optimiser": self.optimiser.state_dict(), "scale": float(self.scale)}
        layout: dict[str, Any] = flatten(tree, arrays, "parameters")
        return layout

    def restore(self, description: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Put network, optimiser and number of steps where a checkpoint left them."""
        tree = restore_network(self.policy, description, arrays)
        try:
            self.optimiser.load_state_dict(tree["optimiser"])
            self.scale = float(tree["scale"])
        except (KeyError, ValueError, TypeError) as error:
            raise ModelFileError(f"the checkpoint lacks a usable state of the optimiser: {error}") from error
        self.steps = int(description["steps"])


def network_of(env: Any, net_arch: list[int], seed: int = 0) -> NetworkPolicy:
    """A fresh network for an environment with a box of actions.

    Raises
    ------
    TypeError
        If the actions are not a box.
    """
    if not isinstance(env.action_space, gymnasium.spaces.Box):
        raise TypeError(f"exact_gradient needs a box of actions, not {env.action_space}")
    return NetworkPolicy(env.observation_space.shape[0], env.action_space.shape[0], list(net_arch), seed)


def restore_network(policy: NetworkPolicy, description: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """Set the weights of a model folder; the whole tree that it holds.

    Raises
    ------
    ModelFileError
        If they do not fit.
    """
    tree = unflatten(description["layout"], arrays, lambda array: torch.from_numpy(np.array(array)))
    try:
        policy.network.load_state_dict(tree["network"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"the parameters do not fit the model of model.json: {error}") from error
    found: dict[str, Any] = tree
    return found
