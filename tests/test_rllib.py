"""RLlib's PPO on the native vector environment."""

import pytest

from mmgym import baselines
from mmgym.envs.glft import GLFTVectorEnv

rllib = pytest.importorskip(
    "mmgym.agents.rllib",
    reason="needs RLlib: ray, dm-tree and pyarrow",
    exc_type=ImportError,
)

AS = "mmgym/AvellanedaStoikov-v0"

# Ray's own.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_ppo_trains_on_the_native_batch_and_is_scored_exactly():
    import ray

    algorithm = rllib.ppo_config(
        AS, num_envs=256, train_batch_size=25_600, reward="expected", num_steps=100
    ).build_algo()
    try:
        assert isinstance(algorithm.env_runner.env.unwrapped, GLFTVectorEnv)
        returns = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(4)]
        assert returns[-1] > returns[0] + 20.0  # from about -62 to about -20
        score = baselines.score(AS, algorithm, num_steps=100)
        assert score.method == "exact"
        assert score.value < score.optimum_upper
        simulated = baselines.score(AS, algorithm, method="simulated", num_steps=100, episodes=2000)
        assert abs(simulated.value - score.value) < 4 * simulated.stderr
    finally:
        algorithm.stop()
        ray.shutdown()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="must be >= 1"):
        rllib.ppo_config(AS, num_envs=0)
