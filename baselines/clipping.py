"""How often a policy's quotes lie outside the action box, so that others are played than it wants."""

from typing import Any

import numpy as np

from mmgym.baselines.catalogue import environment_of, numerical_of, problem_of
from mmgym.baselines.frozen import state_laws

__all__ = ["clipped_share"]

EPISODES = 200  # of the share where it is simulated


def clipped_share(env: Any, policy: Any, seed: int = 0, **arguments: Any) -> float | None:
    """Share of a policy's decisions at which the quotes that it wants lie outside the action box.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    policy : Policy
        One of the baselines': others do not tell what they want.
    seed : int
        Of the episodes that are played in a market with continuous coordinates.

    Returns
    -------
    float or None
        By the law of the states where they are finitely many, otherwise of 200 episodes; None where the policy does not
        tell.
    """
    base = environment_of(env, **arguments)
    if numerical_of(base) is None:
        problem, cells = problem_of(base), getattr(policy, "clipped_cells", None)
        if cells is None or cells.shape != (problem.num_steps, problem.num_states):
            return None
        if not cells.any():
            return 0.0
        return float((state_laws(problem, policy.controls)[:-1] * cells).sum() / problem.num_steps)
    if not hasattr(policy, "clips"):
        return None
    envs = base.make_batch(EPISODES)
    observations, _ = envs.reset(seed=seed)
    running, clipped, decisions = np.ones(EPISODES, dtype=np.bool_), 0, 0
    while running.any():
        clipped += int(policy.clips(observations)[running].sum())
        decisions += int(running.sum())
        observations, _, ended, _, _ = envs.step(policy.predict(observations)[0])
        running &= ~ended
    return clipped / decisions
