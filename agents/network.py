"""Small tanh networks, as policies of a box of actions, and Gauss-Newton on them.

A network of a thousand weights that is to fit a smooth table has a least-squares problem of which Gauss-Newton finds
the minimum in tens of steps, where first-order methods take thousands. The damping is Marquardt's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgym.agents.model_files import ModelFileError, unflatten
from mmgym.baselines.expansion import Expansion, Gains
from mmgym.baselines.policy import Float64Policy
from mmgym.plain_files import shortened

try:
    import torch
    from torch.func import functional_call, jacrev, vmap

    from mmgym.agents.stored_tensors import check_tensors
except ImportError as error:
    raise ImportError("training needs torch: pip install 'mmgym[agents]'") from error

__all__ = ["GaussNewton", "NetworkPolicy", "StandardisedNetwork", "ascend", "jacobian_of", "restore_network"]

Array = NDArray[Any]

FARTHEST = 0.3  # that a target may lie from what is played, in units of actions
RESOLUTION = 0.005  # of an episode, of networks that see a clock
REACH = 0.1  # of actions: how far a policy may move before it is evaluated again
TRIES = 8  # dampings of one step
LARGEST_DAMPING = 1e6
BATCH = 2_048  # cells of a step of Adam
RATE = 5e-3  # of Adam's first step


class StandardisedNetwork:
    """A tanh network on standardised observations.

    Parameters
    ----------
    observations, outputs : int
        Lengths of their vectors.
    net_arch : list of int
        Widths of the hidden layers.
    seed : int
        Of the initial weights.
    clock : bool
        Whether it sees, beside the observation, the logarithms of its first entry and of what that lacks to 1: of time
        since the start and time left, on scales that resolve both ends of an episode.
    single : bool
        Whether it computes in float32, which is faster, and not in float64.
    """

    markov = True

    def __init__(
        self,
        observations: int,
        outputs: int,
        net_arch: list[int],
        seed: int = 0,
        *,
        clock: bool = False,
        single: bool = False,
    ) -> None:
        self.clock = clock
        self.dtype = torch.float32 if single else torch.float64
        widths = [observations + 2 * clock, *net_arch]
        observations = widths[0]
        generator = torch.Generator().manual_seed(seed)
        layers: list[torch.nn.Module] = []
        for wide, narrow in zip(widths, [*net_arch, outputs], strict=True):
            layer = torch.nn.Linear(wide, narrow, dtype=self.dtype)
            for tensor in (layer.weight, layer.bias):
                torch.nn.init.uniform_(tensor, -(wide**-0.5), wide**-0.5, generator=generator)
            layers += [layer, torch.nn.Tanh()]
        self.network = torch.nn.Sequential(*layers[:-1])
        self.network.register_buffer("mean", torch.zeros(observations, dtype=self.dtype))
        self.network.register_buffer("scale", torch.ones(observations, dtype=self.dtype))

    def _seen(self, observations: Array) -> Array:
        """What the network sees of observations (..., D), before it is standardised."""
        seen = np.asarray(observations, dtype=np.float64)
        if not self.clock:
            return seen
        share = np.clip(seen[..., :1], 0.0, 1.0)
        return np.concatenate([seen, np.log(share + RESOLUTION), np.log(1.0 - share + RESOLUTION)], axis=-1)

    def standardise(self, observations: Array) -> None:
        """Take mean and standard deviation from observations (B, D); a constant column keeps the scale 1."""
        seen = self._seen(observations)
        spread = seen.std(axis=0)
        self.network.mean.copy_(torch.from_numpy(seen.mean(axis=0)))  # type: ignore[operator,union-attr]
        scale = np.where(spread > 1e-9, spread, 1.0)
        self.network.scale.copy_(torch.from_numpy(scale))  # type: ignore[operator,union-attr]

    def inputs(self, observations: Array) -> Any:
        """Standardised observations as a tensor."""
        seen = torch.from_numpy(self._seen(observations)).to(self.dtype)
        return (seen - self.network.mean) / self.network.scale  # type: ignore[operator]

    def outputs(self, observations: Array) -> Array:
        """What the network says of observations (..., D), as float64."""
        with torch.no_grad():
            values: Array = self.network(self.inputs(observations)).double().numpy()
        return values

    def calm(self) -> None:
        """Start near zero: outputs a hundredth as large."""
        with torch.no_grad():
            for tensor in self.network[-1].parameters():
                tensor.mul_(0.01)

    def weights(self) -> Any:
        """A copy of all weights, as one vector."""
        return torch.nn.utils.parameters_to_vector(self.network.parameters()).detach().clone()

    def set_weights(self, weights: Any) -> None:
        """Put a vector of weights into the network."""
        torch.nn.utils.vector_to_parameters(weights, self.network.parameters())


class NetworkPolicy(StandardisedNetwork, Float64Policy):
    """A network as a policy of a box of actions: see `StandardisedNetwork`.

    Attributes
    ----------
    quotes_of : callable or None
        Actions -> quotes in model units, in the environment that it was trained in.
    """

    quotes_of: Callable[[Any], Array] | None = None

    def actions(self, observations: Array) -> Array:
        """Actions in float64, before clipping to the box."""
        return self.outputs(observations)


def jacobian_of(network: Any) -> Callable[[Any], Any]:
    """From inputs (B, D) to the derivatives (B, outputs, weights) of a network's outputs at its present weights."""
    derivatives = vmap(jacrev(lambda weights, x: functional_call(network, weights, (x,))), in_dims=(None, 0))

    def jacobian(inputs: Any) -> Any:
        parts = derivatives(dict(network.named_parameters()), inputs)
        return torch.cat([part.detach().flatten(2) for part in parts.values()], dim=2)

    return jacobian


class GaussNewton:
    """Weights of a network that maximise expansions of its gain.

    Parameters
    ----------
    policy : NetworkPolicy
    damping : float
        Of the first step, relative to the curvature in each weight.
    """

    def __init__(self, policy: NetworkPolicy, damping: float = 1e-2) -> None:
        self.policy, self.damping = policy, damping
        self._jacobian = jacobian_of(policy.network)

    @property
    def exhausted(self) -> bool:
        """Whether no damping is left that would help."""
        return self.damping >= LARGEST_DAMPING

    def state(self) -> dict[str, Any]:
        """What a later step depends on, besides the weights."""
        return {"damping": float(self.damping)}

    def restore(self, tree: dict[str, Any]) -> None:
        """Go back to a state."""
        damping = tree["damping"]
        if type(damping) is not float or not 0.0 < damping <= LARGEST_DAMPING:
            raise ModelFileError(f"damping = {shortened(damping)} must be a number in (0, {LARGEST_DAMPING:g}]")
        self.damping = damping

    def climb(self, expansion: Expansion, steps: int, reach: float = REACH) -> int:
        """Take steps of Gauss-Newton on one expansion; the number of those that were taken.

        They end early once the actions have moved by ``reach`` (root mean square, where it counts): the expansion is
        only known to be right near what it was made around. Where it is not concave, curvatures change their sign, and
        targets lie at most `FARTHEST` away. Actions outside the box that are to move farther out stay.
        """
        curvature, axes = np.linalg.eigh(expansion.curvatures)
        slope = np.einsum("bji,bj->bi", axes, expansion.slopes)
        curvature = np.maximum(np.abs(curvature), np.linalg.norm(slope, axis=1, keepdims=True) / FARTHEST)
        curvature = np.maximum(curvature, max(1e-9 * float(curvature.max()), 1e-300))
        total = float(curvature.sum())  # a residual is a distance of actions, weighted by its part of the curvature
        target = torch.from_numpy(slope / np.sqrt(curvature * total))
        frame = torch.from_numpy(np.swapaxes(axes, 1, 2) * np.sqrt(curvature / total)[:, :, None])
        played, inputs = torch.from_numpy(expansion.actions), self.policy.inputs(expansion.observations)
        network, taken = self.policy.network, 0

        def residuals() -> tuple[Any, Any]:
            with torch.no_grad():
                raw = network(inputs)
            moved = torch.einsum("bij,bj->bi", frame, raw.clamp(-1.0, 1.0) - played)
            return raw, moved - target

        raw, rest = residuals()
        for _ in range(steps):
            jacobian = self._jacobian(inputs)
            pull = torch.einsum("bij,bi->bj", frame, rest)  # downhill is against it
            outward = (raw.abs() > 1.0) & (pull * raw < 0.0)
            jacobian = torch.bmm(frame, jacobian * (~outward)[:, :, None]).flatten(0, 1)
            before, flat = self.policy.weights(), rest.flatten()
            gradient, normal = jacobian.T @ flat, jacobian.T @ jacobian
            largest = normal.diagonal().max()
            loss, better = float(flat @ flat), False
            for _ in range(TRIES):
                damped = normal + torch.diag(self.damping * normal.diagonal() + 1e-10 * largest)
                factor, failed = torch.linalg.cholesky_ex(damped)
                if int(failed) == 0:
                    step = -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
                    self.policy.set_weights(before + step)
                    raw, rest = residuals()
                    promised = loss - float(((jacobian @ step + flat) ** 2).sum())
                    ratio = (loss - float((rest**2).sum())) / promised if promised > 0.0 else -1.0
                    if ratio > 0.05:
                        better = True
                        self.damping = self.damping * (0.25 if ratio > 0.75 else 2.0 if ratio < 0.25 else 1.0)
                        self.damping = max(self.damping, 1e-10)
                        break
                self.damping = min(4.0 * self.damping, LARGEST_DAMPING)
            if not better:
                self.policy.set_weights(before)
                break
            taken += 1
            if float((((rest + target) ** 2).sum()) ** 0.5) > reach:
                break
        return taken


def ascend(policy: StandardisedNetwork, gains: Gains, steps: int, seed: Sequence[int]) -> int:
    """Take steps of Adam uphill on a gain, each on some of its cells, at a rate that falls to 0; their number.

    Actions outside the box that are to move farther out stay: an atom at the edge of the box costs the network nothing.
    """
    random, inputs = np.random.default_rng(seed), policy.inputs(gains.observations)
    optimizer = torch.optim.Adam(policy.network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        cells = random.integers(len(inputs), size=BATCH)
        raw = policy.network(inputs[cells])
        played = raw.detach().numpy()
        slopes = gains.slopes(cells, played.clip(-1.0, 1.0)) * (len(inputs) / BATCH)
        slopes[(np.abs(played) > 1.0) & (slopes * played > 0.0)] = 0.0
        optimizer.zero_grad()
        raw.backward(torch.from_numpy(-slopes))
        optimizer.step()
        schedule.step()
    return steps


def restore_network(
    policy: StandardisedNetwork, description: dict[str, Any], arrays: dict[str, Array]
) -> dict[str, Any]:
    """Set the weights of a model folder; the whole tree that it holds.

    Raises
    ------
    ModelFileError
        If they do not fit.
    """
    tree = unflatten(description["layout"], arrays, lambda array: torch.from_numpy(np.array(array)))
    if not isinstance(tree, dict) or "network" not in tree:
        raise ModelFileError(f"the parameters do not fit the model of model.json: they are {shortened(tree)}")
    check_tensors(tree["network"], policy.network.state_dict(), "network")
    if not bool((tree["network"]["scale"] > 0.0).all()):
        raise ModelFileError("the parameters do not fit the model of model.json: network.scale must be above 0")
    policy.network.load_state_dict(tree["network"])
    stored: dict[str, Any] = tree
    return stored
