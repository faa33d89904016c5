"""An example: RLlib's PPO on the native vector environment, scored exactly.

    from mmgym.agents.rllib import ppo_config

    algorithm = ppo_config("mmgym/AvellanedaStoikov-v0", num_envs=512, reward="expected").build_algo()
    for _ in range(100):
        algorithm.train()
    print(score("mmgym/AvellanedaStoikov-v0", algorithm).skill)

RLlib is the extra ``scale``: Ray with what ``ray.rllib`` imports besides.
"""

from typing import Any

import gymnasium

try:
    from ray.rllib.algorithms.ppo import PPOConfig
except ImportError as error:
    raise ImportError(f"RLlib cannot be imported ({error}): pip install 'mmgym[scale]'") from error

__all__ = ["ppo_config"]


def ppo_config(env_id: str, *, num_envs: int, train_batch_size: int = 51_200, seed: int = 0, **arguments: Any) -> Any:
    """A PPO configuration whose environment is one native batch, in the process of the algorithm.

    Parameters
    ----------
    env_id : str
        Of a market whose actions are a box.
    num_envs : int
        Rows of the batch, >= 1.
    train_batch_size : int
        Steps between updates, >= 1.
    seed : int
    **arguments
        Of the environment's constructor.

    Returns
    -------
    PPOConfig
        ``build_algo()`` makes the algorithm; everything can still be changed.
    """
    if num_envs < 1 or train_batch_size < 1:
        raise ValueError(f"num_envs = {num_envs} and train_batch_size = {train_batch_size} must be >= 1")
    return (
        PPOConfig()
        .environment(f"mmgym:{env_id}", env_config=arguments)  # "mmgym:" imports the package, hence registers the ids
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=num_envs,
            gym_env_vectorize_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT,
        )
        .training(
            gamma=1.0,
            train_batch_size_per_learner=train_batch_size,
            minibatch_size=max(train_batch_size // 10, 1),
            num_epochs=4,
            lr=1e-3,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
