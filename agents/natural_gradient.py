"""Natural policy gradient from rewards alone: what keeps a first-order learner with Gaussian noise from the optimum.

Quotes of a market maker are continuous, and a step tells little about them: a fill or none. Three things decide how
near sampling comes to the optimum, each found with the exact tools of this suite (`configs/natural_gradient.yml`):

- **Two-point exploration.** Actions are ``mean + s z`` with ``z = +-1`` in each component (random directions: Spall
  1992). The gradient ``E[A z] / s`` is that of the value at the mean up to ``s^2 / 6`` times its third derivatives;
  Gaussian noise of the same size, hence the same variance, has ``s^2 / 2``: quotes that are three times as far off.
  At the edge of the box exploration goes inwards alone, to first order in ``s``.
- **A critic that resolves inventory.** Most of a value is time left. The critic is a table over time, of running means
  of returns, plus a network for the rest, fitted to TD(lambda) targets by Gauss-Newton with running curvature. Adam on
  whole returns leaves five times the error in what one unit of inventory is worth, and training ends where that is.
- **Steps in the metric of the actions** (natural gradient: Kakade 2001): each round the mean actions move by
  ``step_size * s`` (root mean square), less and less over the run, so that all directions settle.

The networks see, beside the observation, time on scales that resolve both ends of an episode.

References: S. Kakade (2001), A natural policy gradient, eq. (2); J. Schulman et al. (2016), High-dimensional continuous
control using generalized advantage estimation, eq. (16); J. C. Spall (1992), IEEE Transactions on Automatic
Control 37, eq. (2.2).
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mmgym.agents.model_files import ModelFileError, flatten
from mmgym.agents.network import NetworkPolicy, StandardisedNetwork, jacobian_of, restore_network
from mmgym.baselines.baseline import baseline_of
from mmgym.memory_traces import MemoryTraces
from mmgym.plain_files import shortened

try:
    import torch

    from mmgym.agents.checkpoints import stored_state
    from mmgym.agents.stored_tensors import check_tensors
except ImportError as error:
    raise ImportError("training needs torch: pip install 'mmgym[agents]'") from error

__all__ = ["NaturalGradient", "actor_of"]

Array = NDArray[Any]

VIEW = {"clock": True, "single": True}  # of actor and critic
MOST_TIMES = 2000  # cells of the table over time
SEEN = 50  # steps of the first episodes, up to twice as many, whose observations are standardised
CURVATURE_SAMPLES = 2048  # of a round, for the metric of a network
MEMORY = 0.9  # of what was known of a metric before, in a round
DAMPING = 1e-3  # of a metric, relative to its largest entry
SLOWEST_TABLE = 0.1  # least weight of a round in the table over time
CRITIC_REACH = 0.3  # of a step of the critic, in standard deviations of what it explains
FIRST_FITS = 30  # steps of the critic on the first round, whose rewards say how large values are


def discounted_sums(surprises: Any, goes_on: Any, discount: float) -> Any:
    """Sums (T, E) of later surprises within the episode, discounted: eq. (16) of Schulman et al. (2016) at gamma 1."""
    sums, ahead = torch.empty_like(surprises), torch.zeros_like(surprises[0])
    for i in reversed(range(len(surprises))):
        ahead = sums[i] = surprises[i] + discount * goes_on[i] * ahead
    return sums


def returns_of(rewards: Any, goes_on: Any, values: Any) -> Any:
    """Returns (T, E): later rewards of the episode, and the value (T + 1, E) where the round ends before it."""
    sums, ahead = torch.empty_like(rewards), values[-1]
    for i in reversed(range(len(rewards))):
        ahead = sums[i] = rewards[i] + goes_on[i] * ahead
    return sums


class Metric:
    """The running Gauss-Newton matrix ``E[J'J]`` of a network's outputs, and steps in it."""

    def __init__(self, network: Any, damping: float) -> None:
        self.network, self._damping = network, damping
        self.matrix: Any = None
        self._jacobian = jacobian_of(network)

    def update(self, inputs: Any) -> None:
        """Learn from inputs (B, D)."""
        jacobian = self._jacobian(inputs).flatten(0, 1)
        product = jacobian.T @ jacobian / len(inputs)
        self.matrix = product if self.matrix is None else MEMORY * self.matrix + (1.0 - MEMORY) * product

    def step(self, objective: Any) -> Any:
        """The direction (P,) in which an objective grows fastest for its size."""
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(objective, self.network.parameters())])
        diagonal = self.matrix.diagonal()
        damped = self.matrix + torch.diag(self._damping * diagonal.max() + DAMPING * diagonal)
        return torch.linalg.solve(damped, gradient)

    def length(self, step: Any) -> float:
        """How far a step moves the outputs: the root of the mean sum of squares."""
        return float((step @ self.matrix @ step).clamp(min=0.0) ** 0.5)


class NaturalGradient:
    """Rounds of play, a fit of the critic and a step of the actor. A ``step`` of the run is one of an environment.

    Parameters
    ----------
    envs : KernelVectorEnv or RememberingVectorEnv
        A batch with a box of actions, ``autoreset_mode="Disabled"``: finished rows are restarted here.
    policy : NetworkPolicy
        The actor, with the network's view of time (``clock=True``). It is trained.
    settings : mapping
        ``net_arch`` (widths of ``pi`` and ``vf``), ``n_steps`` of each row in a round, ``exploration`` (``s`` at the
        start and at the end, in units of actions), ``step_size``, ``critic_step_size``, ``gae_lambda`` of advantages
        and ``value_lambda`` of the critic's targets.
    total : int
        Environment steps of the run, over which the exploration and the steps shrink.
    seed : int
        Of exploration and of the batch.
    expected : bool
        Whether rewards are used without their price noise where it is known (`Baseline.price_noise`).
    """

    value = float("nan")  # of the actor: rewards do not tell it

    def __init__(
        self,
        envs: Any,
        policy: NetworkPolicy,
        settings: Mapping[str, Any],
        total: int,
        seed: int,
        *,
        expected: bool = True,
    ) -> None:
        self.envs, self.policy, self.settings, self.total, self.steps = envs, policy, settings, total, 0
        inputs = envs.single_observation_space.shape[0]
        self.critic = StandardisedNetwork(inputs, 1, settings["net_arch"]["vf"], seed, **VIEW)
        self._noise = baseline_of(envs.unwrapped).price_noise() if expected else None
        self._random = torch.Generator().manual_seed(seed)
        self._metrics = {"actor": Metric(policy.network, 1e-3), "critic": Metric(self.critic.network, 1e-5)}
        self.table = torch.zeros(min(envs.params.num_steps, MOST_TIMES) + 1)  # values, by time
        self.unit = 1.0  # of what the critic adds to the table
        self._seed = seed
        self._observations: Array | None = None  # of the batch, once it has started
        policy.calm()

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """What a step leads to, finished rows restarted: observations (E, D), rewards (E,), and which finished (E,)."""
        batch = self.envs.unwrapped
        before = {} if self._noise is None else batch.get_state()
        observations, rewards, finished, *_ = self.envs.step(actions)
        if self._noise is not None:
            rewards = rewards - self._noise(before, batch.get_state())
        if finished.any():
            finished = finished.copy()
            observations, _ = self.envs.reset(options={"reset_mask": finished})
        return observations, rewards, finished

    def _first_episodes(self) -> int:
        """Play until every row has ended once, and standardise what the networks see; how many decisions that took."""
        observations, _ = self.envs.reset(seed=self._seed)
        ended = np.zeros(self.envs.num_envs, dtype=np.bool_)
        seen, stride, count = [], 1, 0
        while not ended.all():
            if count % stride == 0:
                seen.append(observations)
            if len(seen) == 2 * SEEN:
                seen, stride = seen[::2], 2 * stride
            observations, _, finished = self.step(self._played(self.policy.outputs(observations))[0])
            ended |= finished
            count += 1
        for network in (self.policy, self.critic):
            network.standardise(np.concatenate(seen))
        return count

    def spread_out(self) -> Array:
        """Observations (E, D) of rows at different times of their episodes."""
        count = self._first_episodes()
        observations, _ = self.envs.reset()
        ages = torch.randint(1, count + 1, (self.envs.num_envs,), generator=self._random).numpy()
        for step in range(1, count + 1):
            observations, _, _ = self.step(self._played(self.policy.outputs(observations))[0])
            if (ages == step).any():
                observations, _ = self.envs.reset(options={"reset_mask": ages == step})
        last: Array = observations
        return last

    @property
    def left(self) -> float:
        """The part of the run that is left."""
        return max(1.0 - self.steps / self.total, 0.0)

    def _exploration(self) -> float:
        first, last = self.settings["exploration"]
        return float(last * (first / last) ** self.left)

    def _played(self, mean: Array) -> tuple[Array, Any]:
        """Actions (E, A) around the nearest mean in the box, clipped to it, and their signs (E, A)."""
        signs = 2.0 * torch.randint(0, 2, mean.shape, generator=self._random).float() - 1.0
        actions = mean.clip(-1.0, 1.0) + self._exploration() * signs.numpy()
        return actions.clip(-1.0, 1.0).astype(np.float32), signs

    def _play(self) -> tuple[Any, Any, Any, Any]:
        """Observations (T + 1, E, D), signs (T, E, A), rewards (T, E) and which go on (T, E)."""
        length, rows = self.settings["n_steps"], self.envs.num_envs
        observations, signs = [self.spread_out() if self._observations is None else self._observations], []
        rewards, goes_on = np.empty((2, length, rows), dtype=np.float32)
        for i in range(length):
            actions, sign = self._played(self.policy.outputs(observations[-1]))
            seen, rewards[i], finished = self.step(actions)
            goes_on[i] = ~finished
            signs.append(sign)
            observations.append(seen)
        self._observations = observations[-1]
        return np.stack(observations), torch.stack(signs), torch.from_numpy(rewards), torch.from_numpy(goes_on)

    def iterate(self) -> bool:
        """One round: whether the run goes on."""
        observations, signs, rewards, goes_on = self._play()
        cells = torch.from_numpy(np.rint(observations[..., 0] * (len(self.table) - 1)).astype(np.int64))
        inputs = self.critic.inputs(observations)
        if self.steps == 0:
            self._learn_table(rewards, goes_on, cells, torch.zeros(cells.shape))
            self.unit = float(returns_of(rewards, goes_on, self.table[cells]).sub(self.table[cells[:-1]]).std()) or 1.0
        with torch.no_grad():
            extra = self.critic.network(inputs)[..., 0]
        if self.steps > 0:
            self._learn_table(rewards, goes_on, cells, extra * self.unit)
        values = self.table[cells] / self.unit + extra
        surprise = rewards / self.unit + goes_on * values[1:] - values[:-1]
        targets = discounted_sums(surprise, goes_on, self.settings["value_lambda"]) + extra[:-1]
        advantages = discounted_sums(surprise, goes_on, self.settings["gae_lambda"])
        self._fit_critic(inputs[:-1].flatten(0, 1), targets.flatten())
        if self.steps > 0:  # before, the critic knew nothing
            self._improve_actor(inputs[:-1].flatten(0, 1), signs.flatten(0, 1), advantages.flatten())
        self.steps += rewards.numel()
        return self.steps < self.total

    def _learn_table(self, rewards: Any, goes_on: Any, cells: Any, extra: Any) -> None:
        """Move the table over time towards the mean of returns less what the critic adds."""
        returns = returns_of(rewards, goes_on, self.table[cells] + extra) - extra[:-1]
        played = cells[:-1].flatten()
        count = torch.zeros_like(self.table).index_add_(0, played, torch.ones(len(played)))
        total = torch.zeros_like(self.table).index_add_(0, played, returns.flatten())
        seen = count > 0
        rounds = self.steps / rewards.numel()
        self.table[seen] += max(SLOWEST_TABLE, 1.0 / (rounds + 1.0)) * (total[seen] / count[seen] - self.table[seen])

    def _drawn(self, inputs: Any) -> Any:
        """Some of the inputs, for a metric."""
        return inputs[torch.randint(0, len(inputs), (min(CURVATURE_SAMPLES, len(inputs)),), generator=self._random)]

    def _fit_critic(self, inputs: Any, targets: Any) -> None:
        metric, network = self._metrics["critic"], self.critic.network
        for _ in range(FIRST_FITS if self.steps == 0 else 1):
            metric.update(self._drawn(inputs))
            outputs = network(inputs)[:, 0]
            step = metric.step((outputs * (targets - outputs).detach()).mean())
            length = metric.length(step)
            if length > 0.0:
                size = min(self.settings["critic_step_size"] * max(self.left, 0.02), CRITIC_REACH / length)
                self.critic.set_weights(self.critic.weights() + size * step)

    def _improve_actor(self, inputs: Any, signs: Any, advantages: Any) -> None:
        metric, spread = self._metrics["actor"], self._exploration()
        metric.update(self._drawn(inputs))
        weights = (advantages - advantages.mean()) / (advantages.std() + 1e-12)
        mean, pull = self.policy.network(inputs), weights[:, None] * signs
        outward = (mean.abs() > 1.0) & (mean * pull > 0.0)  # of what is outside the box already
        pull = torch.where(outward, 0.0, pull)
        step = metric.step((pull * mean).sum(1).mean())
        length = metric.length(step)
        if length > 0.0:
            reach = self.settings["step_size"] * spread * self.left * signs.shape[1] ** 0.5
            self.policy.set_weights(self.policy.weights() + step * (reach / length))

    def finish(self) -> None:
        """Nothing to do: the weights are the last ones."""

    def state(self, arrays: dict[str, Array], *, training: bool) -> dict[str, Any]:
        """JSON layout of actor and critic (and of what a run needs to go on); their arrays go to ``arrays``."""
        tree: dict[str, Any] = {
            "network": dict(self.policy.network.state_dict()),
            "critic": dict(self.critic.network.state_dict()),
        }
        if training:
            tree |= {"table": self.table, "unit": self.unit, "random": self._random.get_state()}
            tree |= {f"metric of {name}": metric.matrix for name, metric in self._metrics.items()}
            arrays |= {f"env.{name}": np.asarray(value) for name, value in self.envs.get_state().items()}
        layout: dict[str, Any] = flatten(tree, arrays, "parameters")
        return layout

    def restore(self, description: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Go back to where a checkpoint was written.

        Raises
        ------
        ModelFileError
            If it is not one of such a run.
        """
        tree = restore_network(self.policy, description, arrays)
        own = {"table": self.table, "random": self._random.get_state()}
        try:
            check_tensors(tree["critic"], self.critic.network.state_dict(), "critic")
            if not bool((tree["critic"]["scale"] > 0.0).all()):
                raise ModelFileError("critic.scale must be above 0: train without --resume")
            check_tensors({name: tree[name] for name in own}, own, "the run")
            for name, metric in self._metrics.items():
                metric.matrix = tree[f"metric of {name}"]
                if metric.matrix is not None:
                    size = len(torch.nn.utils.parameters_to_vector(metric.network.parameters()))
                    check_tensors({name: metric.matrix}, {name: torch.zeros(size, size)}, "the run")
            unit = tree["unit"]
            observations = self.envs.set_state(stored_state(arrays))
        except KeyError as error:
            raise ModelFileError(f"the checkpoint lacks {error}: train without --resume") from error
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"the checkpoint is damaged: {error}; train without --resume") from error
        if type(unit) is not float or not 0.0 < unit < np.inf:
            raise ModelFileError(f"unit = {shortened(unit)} must be a finite number above 0")
        self.critic.network.load_state_dict(tree["critic"])
        self.table.copy_(tree["table"])
        self._random.set_state(tree["random"])
        self.unit, self.steps = unit, int(description["steps"])
        self._observations = observations


def actor_of(env: Any, widths: list[int], seed: int = 0, memory: Mapping[str, Any] | None = None) -> NetworkPolicy:
    """A fresh network of an environment with a box of actions, for observations with memory traces if they are told.

    Raises
    ------
    TypeError
        If the actions are no box.
    """
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise TypeError(f"natural_gradient needs a box of actions, not {space}")
    seen = env.observation_space if memory is None else MemoryTraces(env.observation_space, **memory).space
    policy = NetworkPolicy(seen.shape[0], space.shape[0], list(widths), seed, **VIEW)
    policy.quotes_of = env.to_quotes
    return policy
