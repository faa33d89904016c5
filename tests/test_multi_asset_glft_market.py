"""The market of several assets: arguments, observations and the step law.

Statistical checks use fixed seeds; each has a false-alarm rate of 1e-4.
"""

import math

import numpy as np
import pytest
from scipy import stats

from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.frozen import criterion_value
from mmgym.envs.multi_asset_glft import MultiAssetGLFTEnv, MultiAssetGLFTVectorEnv
from mmgym.models import multi_asset_glft as model
from mmgym.models.multi_asset_glft import Params

FALSE_ALARM = 1e-4
THREE = {
    "covariance": [[4.0, 1.0, -0.5], [1.0, 2.0, 0.3], [-0.5, 0.3, 1.0]],
    "fill_rate": [40.0, [30.0, 20.0], 25.0],
    "fill_decay": [1.5, 2.0, [1.0, 1.2]],
    "order_size": [1.0, 0.5, 2.0],
    "inventory_limit": [2.0, 1.5, 4.0],
    "initial_inventory": [1.0, -0.5, 0.0],
    "drift": [0.2, 0.0, -0.1],
    "horizon": 0.5,
    "num_steps": 5,
    "terminal_penalty": 0.05,
}


def test_defaults_are_the_two_assets_of_the_reference():
    p = Params.create()
    assert p.num_assets == 2
    np.testing.assert_allclose(p.matrix, [[2.0**2, 0.5 * 2 * 1.5], [0.5 * 2 * 1.5, 1.5**2]])
    assert (p.fill_rate, p.fill_decay) == ((140.0, 100.0) * 2, (1.5,) * 4)
    assert (p.risk_aversion, p.horizon, p.inventory_limit, p.order_size) == (0.1, 1.0, (4.0, 4.0), (1.0, 1.0))


def test_sides_come_first_all_bids_then_all_asks():
    p = Params.create(**THREE)
    assert p.fill_rate == (40.0, 30.0, 25.0, 40.0, 20.0, 25.0)
    assert p.fill_decay == (1.5, 2.0, 1.0, 1.5, 2.0, 1.2)
    assert p.limits.tolist() == [2.0, 3.0, 2.0]
    np.testing.assert_allclose(p.root @ p.root.T, p.matrix, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correlation": 0.5}, "correlation = 0.5 is not allowed: it must be None without a volatility"),
        ({"volatility": [1, 2], "covariance": [[1, 0], [0, 1]]}, "it must be None where the volatility"),
        ({"volatility": 2.0}, "volatility = 2.0 is not allowed: it must be a list of 2 to 30 numbers"),
        ({"volatility": [1, 1, 1], "correlation": -0.9}, "correlation is not allowed: it must be positive semi"),
        ({"volatility": [1, 1], "correlation": [[2, 0], [0, 1]]}, "it must be a matrix whose diagonal is 1"),
        ({"covariance": [[1.0]]}, "a list of 2 to 30 rows"),
        ({"covariance": np.eye(31).tolist()}, "a list of 2 to 30 rows"),
        ({"covariance": [[1.0, 0.0], [0.0]]}, "a list of 2 to 30 rows"),
        ({"covariance": [[1.0, 0.5], [0.4, 1.0]]}, r"covariance\[0\]\[1\] = 0.5 and covariance\[1\]\[0\] = 0.4"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "has the eigenvalue -1"),
        ({"covariance": [[1.0, math.nan], [math.nan, 1.0]]}, r"covariance\[0\]\[1\] = nan"),
        ({"fill_rate": [1.0, 2.0, 3.0]}, "a list of 2 numbers"),
        ({"fill_rate": [1.0, -2.0]}, r"fill_rate\[1\] = -2.0"),
        ({"inventory_limit": 0.5}, r"inventory_limit\[0\] = 0.5"),
        (
            {"inventory_limit": [4.0, 2.5]},
            r"inventory_limit\[1\] = 2.5 and order_size\[1\] = 1.0 .* must be a multiple",
        ),
        ({"initial_inventory": [0.0, 5.0]}, r"initial_inventory\[1\] = 5.0"),
        ({"min_depth": 3.0}, "min_depth must be below max_depth of asset 0 on the bid side"),
        ({"min_depth": -100.0}, "expected fills a step"),
        ({"risk_aversion": -1.0}, "risk_aversion = -1.0"),
        ({"drift": [0.0]}, "drift = "),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiAssetGLFTEnv(**arguments)


def test_singular_covariances_are_allowed():
    """Two assets that move as one: a book of +1 and -1 has no price risk."""
    batch = MultiAssetGLFTVectorEnv(
        500, info="full", covariance=[[1.0, 1.0], [1.0, 1.0]], initial_inventory=[1.0, -1.0], fill_rate=1e-9
    )
    batch.reset(seed=0)
    _, _, _, _, info = batch.step(np.zeros((500, 4), np.float32))
    np.testing.assert_allclose(info["mid"][:, 0], info["mid"][:, 1], rtol=0, atol=1e-12)
    assert np.abs(info["price_gain"]).max() < 1e-12
    assert (info["risk"] == 0.0).all()
    assert info["mid"][:, 0].std() > 0.05


def test_observations_and_states_are_inverse():
    env = MultiAssetGLFTEnv(**THREE)
    lots = np.array([[-2, 3, 1], [0, -3, 2], [2, 0, -1]])
    observations = model.observe(env.params, 3, lots)
    step, *columns = env.to_state(observations)
    assert (step == 3).all()
    assert np.stack(columns, axis=-1).tolist() == lots.tolist()
    assert observations.dtype == np.float32
    observation, info = env.reset(seed=0)
    assert observation.tolist() == pytest.approx([0.0, 0.5, -1 / 3, 0.0])
    assert info["inventory"].tolist() == [1.0, -0.5, 0.0]


def test_moves_of_the_mids_have_the_covariance():
    count = 40_000
    batch = MultiAssetGLFTVectorEnv(count, info="full", **THREE)
    _, before = batch.reset(seed=1)
    _, _, _, _, info = batch.step(np.zeros((count, 6), np.float32))
    h = batch.params.step_length
    moved = info["mid"] - before["mid"] - h * np.array(THREE["drift"])
    root = np.linalg.cholesky(np.array(THREE["covariance"]) * h)
    white = np.linalg.solve(root, moved.T)
    for row in white:
        assert stats.kstest(row, "norm").pvalue > FALSE_ALARM
    for i in range(3):
        for j in range(i):
            assert stats.pearsonr(white[i], white[j]).pvalue > FALSE_ALARM


def test_price_gains_given_the_path_have_its_risk_and_go_with_the_mids(check_mean):
    """``int q' dB`` has the variance ``E int q' Sigma q``, and its covariance with the mids is ``Sigma E int q``."""
    count = 40_000
    batch = MultiAssetGLFTVectorEnv(count, info="full", **THREE)
    _, before = batch.reset(seed=2)
    _, _, _, _, info = batch.step(np.full((count, 6), -0.5, np.float32))
    ratio = info["price_gain"] ** 2 - info["risk"]
    check_mean(ratio, alarms=FALSE_ALARM)
    wealth = info["cash"] + (info["inventory"] * info["mid"]).sum(axis=1)
    start = before["cash"] + (before["inventory"] * before["mid"]).sum(axis=1)
    np.testing.assert_allclose(wealth - start, info["gain"], rtol=0, atol=1e-9)


def test_rewards_with_and_without_price_noise_have_the_same_fills(check_mean):
    outcomes = []
    for reward in ("pnl", "expected"):
        batch = MultiAssetGLFTVectorEnv(20_000, info="full", reward=reward, **THREE)
        batch.reset(seed=3)
        outcomes.append((batch.step(np.zeros((20_000, 6), np.float32))[1], batch.get_state()["inventory"]))
    assert np.array_equal(outcomes[0][1], outcomes[1][1])
    difference = outcomes[0][0] - outcomes[1][0]
    check_mean(difference, alarms=FALSE_ALARM)
    assert difference.std() > 0.1


def test_utilities_with_and_without_price_noise_have_the_same_mean(check_mean):
    rewards = []
    for reward in ("pnl", "expected"):
        batch = MultiAssetGLFTVectorEnv(20_000, reward=reward, **{**THREE, "num_steps": 2, "utility": "cara"})
        batch.reset(seed=3)
        first = batch.step(np.zeros((20_000, 6), np.float32))[1]
        assert (first == 0.0).all()
        rewards.append(batch.step(np.zeros((20_000, 6), np.float32))[1])
    difference = rewards[0] - rewards[1]
    check_mean(difference, alarms=FALSE_ALARM)
    assert rewards[1].std() < rewards[0].std()
    with pytest.raises(ValueError, match=r"risk_aversion = 0\.0 is not allowed with utility='cara'"):
        MultiAssetGLFTVectorEnv(2, utility="cara", risk_aversion=0.0)


def test_volatilities_and_correlations_are_a_covariance():
    sigma, rho = [2.0, 1.5, 0.5], [[1.0, 0.5, -0.2], [0.5, 1.0, 0.1], [-0.2, 0.1, 1.0]]
    params = Params.create(volatility=sigma, correlation=rho)
    assert np.array(params.covariance) == pytest.approx(np.diag(sigma) @ np.array(rho) @ np.diag(sigma))
    assert Params.create(**params.arguments()) == params
    assert params.arguments()["covariance"] is None
    plain = Params.create(volatility=[2.0, 1.5], correlation=0.5, fill_rate=[140.0, 100.0])
    assert plain.covariance == Params.create().covariance
    assert Params.create(volatility=[2.0, 1.5]).covariance == ((4.0, 0.0), (0.0, 2.25))
    given = {"volatility": [2.0, 1.5], "fill_rate": [140.0, 100.0]}
    batch = MultiAssetGLFTVectorEnv(3, **given, parameters={"correlation": [0.0, 0.5, 0.9]})
    batch.reset(seed=1)
    rewards = [batch.step(np.zeros((3, 4), np.float32))[1][1] for _ in range(5)]
    alone = MultiAssetGLFTVectorEnv(1)
    alone.reset(seed=2)
    assert rewards == [alone.step(np.zeros((1, 4), np.float32))[1][0] for _ in range(5)]


def test_four_assets_run():
    batch = MultiAssetGLFTVectorEnv(100, covariance=np.diag([1.0, 2.0, 3.0, 4.0]).tolist(), info="full")
    batch.reset(seed=0)
    for _ in range(100):
        _, rewards, terminated, _, info = batch.step(np.full((100, 8), -0.4, np.float32))
    assert terminated.all()
    assert np.isfinite(rewards).all()
    assert (np.abs(info["inventory"]) <= 4.0).all()
    assert info["bid_depth"].shape == (100, 4)


MANY = {"num_steps": 4, "horizon": 0.3, "inventory_limit": 2.0, "fill_decay": [1.2, 1.5, 2.0] * 10}


def test_thirty_uncorrelated_assets_are_thirty_plain_markets():
    """The mean of a constant quote's criterion is the sum of thirty exact ones."""
    volatility, rates = np.linspace(0.5, 2.0, 30), np.linspace(10.0, 40.0, 30)
    count, total, expected = 4_000, 0.0, 0.0
    arguments = {**MANY, "volatility": volatility.tolist(), "fill_rate": rates.tolist(), "reward": "expected"}
    batch = MultiAssetGLFTVectorEnv(count, info="full", **arguments)
    batch.reset(seed=4)
    for _ in range(4):
        _, rewards, _, _, info = batch.step(np.zeros((count, 60), np.float32))
        total = total + rewards
    for i in range(30):
        plain = {name: MANY[name] for name in ("num_steps", "horizon", "inventory_limit")}
        plain |= {"fill_decay": MANY["fill_decay"][i], "fill_rate": rates[i], "volatility": volatility[i]}
        problem = problem_of("mmgym/GLFT-v0", running_penalty=0.05 * volatility[i] ** 2, **plain)
        expected += criterion_value(problem, np.full((4, problem.num_states, 2), 1.0 / plain["fill_decay"]))
    assert abs(total.mean() - expected) < stats.norm.isf(FALSE_ALARM / 2) * total.std() / math.sqrt(count)
    assert info["mid"].shape == info["inventory"].shape == info["bid_depth"].shape == (count, 30)


def test_a_state_of_many_assets_goes_on_elsewhere():
    arguments = {**MANY, "volatility": np.linspace(0.5, 2.0, 30).tolist(), "correlation": 0.3}
    batch, other = (MultiAssetGLFTVectorEnv(3, **arguments) for _ in range(2))
    single = MultiAssetGLFTEnv(**arguments, info="full")
    batch.reset(seed=1)
    single.reset(seed=2)
    actions = np.linspace(-1.0, 1.0, 180, dtype=np.float32).reshape(3, 60)
    batch.step(actions)
    _, _, _, _, info = single.step(actions[1])
    state = batch.get_state()
    assert state["inventory"].shape == (3, 30)
    np.testing.assert_array_equal(state["mid"][1], info["mid"])
    np.testing.assert_array_equal(state["inventory"][1], info["inventory"])
    other.set_state(state)
    for _ in range(2):
        for left, right in zip(batch.step(actions)[:2], other.step(actions)[:2], strict=True):
            np.testing.assert_array_equal(left, right)
    state["inventory"][2, 7] = 3
    with pytest.raises(ValueError, match=r"state entry 'inventory' = 3 of row 2 .* a whole number from -2 to 2"):
        other.set_state(state)
