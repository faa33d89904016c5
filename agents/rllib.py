"""An example: RLlib's PPO on the native vector environment, scored exactly.

    from mmgym.agents.rllib import RLlibPolicy, ppo_config

    algorithm = ppo_config("mmgym/AvellanedaStoikov-v0", num_envs=512, reward="expected").build_algo()
    for _ in range(100):
        algorithm.train()
    print(score("mmgym/AvellanedaStoikov-v0", RLlibPolicy(algorithm)).skill)

RLlib is the extra ``scale``: Ray with what ``ray.rllib`` imports besides.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

try:
    from ray.rllib.algorithms.ppo import PPOConfig
except ImportError as error:
    raise ImportError(f"RLlib cannot be imported ({error}): pip install 'mmgym[scale]'") from error

__all__ = ["RLlibPolicy", "ppo_config"]


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


class RLlibPolicy:
    """An RLlib algorithm's network at its mode: a function of the observation.

    Parameters
    ----------
    algorithm : ray.rllib.algorithms.Algorithm
        Trained on a market whose actions are a box.
    """

    markov = True

    def __init__(self, algorithm: Any) -> None:
        self._module = algorithm.get_module()

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[NDArray[Any], Any]:
        """Actions of one observation or a batch: the mean of the Gaussian head, or one draw of it."""
        import torch

        rows = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        with torch.no_grad():
            heads = self._module.forward_inference({"obs": torch.from_numpy(rows)})["action_dist_inputs"]
            law = self._module.get_inference_action_dist_cls().from_logits(heads)
            chosen = law.to_deterministic().sample() if deterministic else law.sample()
        actions = np.clip(chosen.numpy(), -1.0, 1.0)
        return actions.reshape(*np.shape(observation)[:-1], actions.shape[-1]), state
