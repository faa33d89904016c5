"""The loop that plays episodes: whoever simulates a policy walks through it."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.policy import checked_actions

__all__ = ["ControlVariate", "Decision", "Rewards", "Step", "episodes", "simulated_columns"]

Array = NDArray[Any]


class Decision(NamedTuple):
    """What is about to be played, in rows that have all started together."""

    envs: Any  # the batch, not yet stepped
    number: int  # decisions before this one
    running: Array  # (B,) bool: rows that are still in their episode
    observations: Array  # (B, ...)
    info: Mapping[str, Any]
    actions: Array  # (B, ...) as the policy gave them


class Step(NamedTuple):
    """A decision and what came of it."""

    decision: Decision
    noted: Any  # what `episodes` was told to note before the step
    observations: Array  # (B, ...) after it
    rewards: Array  # (B,)
    terminated: Array  # (B,) bool
    info: Mapping[str, Any]

    @property
    def running(self) -> Array:
        """Rows that were in their episode."""
        return self.decision.running


def episodes(
    envs: Any,
    policy: Any,
    seed: int,
    *,
    deterministic: bool = True,
    note: Callable[[Decision], Any] = lambda decision: None,
) -> Iterator[Step]:
    """One episode of every row of a batch, step by step, until all of them have ended.

    Parameters
    ----------
    envs : KernelVectorEnv
        Row ``i`` is seeded ``seed + i``.
    policy : Policy
    seed : int
    deterministic : bool
        Passed on to the policy.
    note : function, optional
        Of a decision before it is played; what it returns is in the step.

    Raises
    ------
    ValueError
        If the policy's actions have another shape than those of a batch, or are not finite.
    """
    observations, info = envs.reset(seed=seed)
    shape = envs.single_action_space.shape
    running, start, state, number = np.ones(envs.num_envs, dtype=np.bool_), np.ones(envs.num_envs, np.bool_), None, 0
    while running.any():
        actions, state = policy.predict(observations, state=state, episode_start=start, deterministic=deterministic)
        actions = checked_actions(policy, actions, observations, shape)
        decision = Decision(envs, number, running, observations, info, actions)
        noted = note(decision)
        observations, rewards, terminated, _, info = envs.step(actions)
        yield Step(decision, noted, observations, rewards, terminated, info)
        running, start, number = running & ~terminated, np.zeros(envs.num_envs, np.bool_), number + 1


class ControlVariate:
    """An estimate of the criterion from a simulated episode: a value at the start, and what every step adds to it.

    Where the value function is known it is the value at the start plus the advantages of what is played: an unbiased
    estimate for any policy, and without sampling error at the optimum.
    """

    start: float = 0.0

    def before(self, decision: Decision) -> Any:
        """What a step adds, of each row: known before it is played."""
        return 0.0

    def after(self, step: Step) -> Any:
        """What a step adds besides, known after it is played; a place for checks too."""
        return 0.0


class Rewards(ControlVariate):
    """The estimate where nothing is known of values: the rewards themselves."""

    def after(self, step: Step) -> Array:
        return step.rewards

    @staticmethod
    def converted(mean: float, stderr: float, risk_aversion: float) -> tuple[float, float]:
        """The criterion and its standard error from those of returns: with an aversion, a certainty equivalent.

        Returns are then utilities, ``-exp(-risk_aversion * gain)``. A mean that chance has made positive says nothing.
        """
        if not risk_aversion:
            return mean, stderr
        if not mean < 0.0:
            return -math.inf, math.inf
        return -math.log(-mean) / risk_aversion, stderr / (-risk_aversion * mean)


def simulated_columns(
    base: Any, policy: Any, variate: ControlVariate, count: int, seed: int, *, deterministic: bool = True
) -> dict[str, Array]:
    """Episodes of ``count`` rows (or those that a batch has), played with a control variate.

    Returns
    -------
    dict of str to array (count,)
        ``estimate`` of the criterion, and ``returns``, ``pnl``, ``fills``, ``orders`` (market orders) and
        ``absolute_inventory`` (its time integral, from its values at step ends, over all assets); ``price_noise``
        that ``reward="expected"`` leaves out of the returns.
    """
    envs = base.make_batch(count, info="full")
    count = envs.num_envs
    names = ("returns", "pnl", "fills", "orders", "absolute_inventory", "price_noise")
    noiseless = getattr(envs.params, "reward", "pnl") == "expected"
    columns = {name: np.zeros(count) for name in names} | {"estimate": np.full(count, variate.start)}
    length: Any = None
    played = episodes(envs, policy, seed, deterministic=deterministic, note=variate.before)
    for step in tqdm(played, "simulation", delay=2.0, unit="step", leave=False, disable=None):
        info = step.info
        if "elapsed" in info:
            length = info["elapsed"]
        elif length is None:  # later, rows that have ended may have other parameters
            length = envs.params.step_length
        gained = {
            "estimate": step.noted + variate.after(step),
            "returns": step.rewards,
            "fills": np.asarray(info["bid_fills"], np.float64) + info["ask_fills"],
            "orders": info.get("market_orders", 0.0),
            "absolute_inventory": np.abs(info["inventory"]).reshape(count, -1).sum(axis=1) * length,
        }
        for name, amounts in gained.items():
            columns[name] += np.where(step.running, amounts, 0.0)
        columns["pnl"] = np.where(step.running, info["gain"], columns["pnl"])
        if noiseless:
            columns["price_noise"] = np.where(step.running, info["price_gain"], columns["price_noise"])
    return columns
