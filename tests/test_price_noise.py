"""Price noise of the Hawkes markets: it has the mean 0 from every state and action, and much of the rewards' variance.

Each mean of independent rows is within 4.5 standard errors of 0 with a false-alarm rate of 7e-6; there are about 120.
"""

import gymnasium
import numpy as np
import pytest

import mmgym  # noqa: F401
from mmgym.baselines.baseline import baseline_of

FLOW, POWER = "mmgym/HawkesFlow-v0", "mmgym/HawkesPower-v0"
UNEVEN_FLOW = {
    "base_rate": [0.9, 0.4],
    "excitation": [2.0, 1.0],
    "decay": [3.0, 2.0],
    "impact": [0.15, 0.05],
    "horizon": 10.0,
    "num_steps": 40,
    "initial_inventory": 4,
    "initial_rates": [5.0, 0.5],
}
UNEVEN_POWER = {
    "base_rate": [2.0, 1.0, 1.5, 0.5, 0.9, 0.4],
    "decay": [3.0, 2.0, 2.5, 3.5, 3.0, 4.0],
    "initial_rates": [6.0, 1.0, 3.0, 0.5, 5.0, 0.5],
    "first_level_share": [0.6, 0.9],
    "largest_spread": 90,  # moves are often cut short
    "horizon": 10.0,
    "num_steps": 40,
    "initial_inventory": -4,
}
CASES = [
    (FLOW, UNEVEN_FLOW),
    (FLOW, {**UNEVEN_FLOW, "decision": "clock"}),
    (POWER, UNEVEN_POWER),
    (POWER, {**UNEVEN_POWER, "placement": "geometric"}),
]


@pytest.mark.parametrize(("env_id", "arguments"), CASES)
def test_noise_has_mean_zero_at_every_step_and_much_of_the_variance(env_id, arguments):
    rows = 20_000
    envs = gymnasium.make_vec(env_id, num_envs=rows, autoreset_mode="Disabled", **arguments).unwrapped
    noise_of = baseline_of(envs).price_noise()
    assert noise_of is not None
    envs.reset(seed=3)
    generator = np.random.default_rng(4)
    plain = quiet = 0.0
    for _ in range(30):  # no episode is over before step 40
        before = envs.get_state()
        actions = generator.uniform(-1, 0, (rows, 2)).astype(np.float32)
        _, rewards, *_ = envs.step(actions)
        noise = noise_of(before, envs.get_state())
        assert abs(noise.mean()) < 4.5 * noise.std() / np.sqrt(rows)
        plain += rewards.var()
        quiet += (rewards - noise).var()
    assert quiet < 0.7 * plain


def test_there_is_none_without_inventory_or_where_it_is_not_known():
    envs = gymnasium.make_vec(FLOW, num_envs=50).unwrapped
    envs.reset(seed=0)
    before = envs.get_state()
    envs.step(np.zeros((50, 2), np.float32))
    assert (baseline_of(envs).price_noise()(before, envs.get_state()) == 0.0).all()
    for env_id, arguments in ((POWER, {"decision": "order"}), (POWER, {"decision": "clock"}), ("mmgym/GLFT-v0", {})):
        assert baseline_of(env_id, **arguments).price_noise() is None
