"""The robust GLFT market as environments: what is played, against whom, and what it pays.

Statistical tests use fixed seeds; `test_the_corners_of_the_random_adversary` and
`test_simulated_returns_have_the_dense_expectation` have a false-alarm rate of 5e-4 each.
"""

import gymnasium
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

from mmgym.baselines import write_table
from mmgym.baselines.robust_glft import RobustProblem
from mmgym.baselines.table_policy import TablePolicy
from mmgym.envs.robust_glft import RobustGLFTGameVectorEnv
from mmgym.models.robust_glft import AdversaryParams, MakerParams
from mmgym.models.robust_glft_game import CONTROLS, corners

MAKER, ADVERSARY = "mmgym/RobustGLFT-v0", "mmgym/RobustGLFTAdversary-v0"
SHORT = {"num_steps": 6, "horizon": 0.09, "inventory_limit": 3.0, "running_penalty": 0.7, "terminal_penalty": 0.1}
NAMED = {"maker": "constant"}, {"adversary": "none"}  # opponents that are not solved for


def random_tables(seed=0):
    """Tables of both players from random float32 actions, with the actions."""
    random, tables = np.random.default_rng(seed), []
    for kind, arguments in ((MakerParams, NAMED[1]), (AdversaryParams, NAMED[0])):
        params = kind.create(**SHORT, **arguments)
        shape = (params.num_steps, params.levels, params.num_own_controls)
        actions = random.uniform(-1.0, 1.0, shape).astype(np.float32)
        problem = RobustProblem(params)
        tables.append((TablePolicy(problem, problem.controls(actions)), problem.controls(actions), actions))
    return tables


@pytest.fixture
def played_tables(tmp_path):
    """Files of both tables, and their actions."""
    (maker, _, depths), (adversary, _, choices) = random_tables()
    files = tmp_path / "maker.npz", tmp_path / "adversary.npz"
    write_table(maker, MAKER, files[0], **SHORT, **NAMED[1])
    write_table(adversary, ADVERSARY, files[1], **SHORT, **NAMED[0])
    return str(files[0]), str(files[1]), depths, choices


@pytest.mark.long
def test_both_roles_and_the_game_play_the_same(played_tables):
    """What one earns the other loses, whoever of them is the agent; the opponent plays her table."""
    maker_file, adversary_file, depths, choices = played_tables
    count = 40
    maker = gymnasium.make_vec(MAKER, count, adversary=adversary_file, info="full", **SHORT)
    adversary = gymnasium.make_vec(ADVERSARY, count, maker=maker_file, info="full", **SHORT)
    both = RobustGLFTGameVectorEnv(count, info="full", **SHORT)
    for envs in (maker, adversary, both):
        envs.reset(seed=3)
    observations = maker.reset(seed=3)[0]
    limit = maker.unwrapped.params.limit
    for n in range(SHORT["num_steps"]):
        state = np.rint(observations[:, 1] * limit).astype(int) + limit
        mine, hers = depths[n, state], choices[n, state]
        steps = [
            maker.step(mine), adversary.step(hers), both.step(np.concatenate([mine, hers], axis=1))
        ]  # fmt: skip
        for step in steps[1:]:
            assert np.array_equal(step[0], steps[0][0])
            for name in ("mid", "inventory", "bid_fills", "ask_fills"):
                assert np.array_equal(step[4][name], steps[0][4][name])
            for name in CONTROLS:
                np.testing.assert_allclose(step[4][name], steps[0][4][name], rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(steps[1][1], -steps[0][1], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(steps[2][1], steps[0][1], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(steps[1][4]["gain"], -steps[0][4]["gain"], rtol=1e-12, atol=1e-12)
        quotes = np.stack([steps[0][4][name] for name in CONTROLS[2:]], axis=1)
        np.testing.assert_allclose(quotes, adversary.unwrapped.to_quotes(hers), rtol=1e-14, atol=1e-14)
        observations = steps[0][0]


def test_without_an_adversary_it_is_the_nominal_market():
    """The same seed plays the same episode as the market of Avellaneda & Stoikov."""
    ours = gymnasium.make_vec(MAKER, 20, adversary="none", **SHORT)
    theirs = gymnasium.make_vec("mmgym/AvellanedaStoikov-v0", 20, **SHORT)
    pair = [envs.reset(seed=1)[0] for envs in (ours, theirs)]
    ours.action_space.seed(2)
    for _ in range(2 * SHORT["num_steps"]):
        assert np.array_equal(*pair)
        actions = ours.action_space.sample()
        steps = [envs.step(actions) for envs in (ours, theirs)]
        np.testing.assert_allclose(steps[0][1], steps[1][1], rtol=1e-12, atol=1e-12)
        pair = [step[0] for step in steps]


def dense_values(params, depths, choices, weights):
    """Expected criterion of the maker (N + 1, S) under tables, by exponentials of dense matrices."""
    q = np.arange(-params.limit, params.limit + 1) * params.order_size
    count, h = len(q), params.horizon / params.num_steps
    values = np.empty((params.num_steps + 1, count))
    values[-1] = -params.terminal_penalty * q**2
    for n in reversed(range(params.num_steps)):
        for s in range(count):
            values[n, s] = 0.0
            for (mu, *fills), weight in zip(choices[n, s], weights[n, s], strict=True):
                system = np.zeros((count + 1, count + 1))
                system[:count, count] = mu * q - params.running_penalty * q**2
                for side, move in ((0, 1), (1, -1)):
                    rate = fills[side] * np.exp(-fills[2 + side] * depths[n, s, side])
                    for i in range(count):
                        if 0 <= i + move < count:
                            system[i, i] -= rate
                            system[i, i + move] += rate
                            system[i, count] += rate * params.order_size * depths[n, s, side]
                values[n, s] += weight * (expm(h * system) @ np.append(values[n + 1], 1.0))[s]
    return values


def test_simulated_returns_have_the_dense_expectation(check_mean):
    """Of a random maker against a random table of the adversary, and against the one who draws corners."""
    (maker, depths, _), (_, choices, _) = random_tables(1)
    params = MakerParams.create(adversary="random", **SHORT)
    drawn = np.broadcast_to(corners(params), (*choices.shape[:2], 32, 5))
    cases = [("random", drawn, np.full(drawn.shape[:3], 1 / 32)), ("none", None, None)]
    for adversary, points, weights in cases:
        if points is None:
            points = np.broadcast_to(params.nominal, (*choices.shape[:2], 1, 5))
            weights = np.ones(points.shape[:3])
        expected = dense_values(params, depths, points, weights)[0, params.limit]
        count = 20_000
        envs = gymnasium.make_vec(MAKER, count, adversary=adversary, reward="expected", **SHORT)
        observations, total = envs.reset(seed=11)[0], np.zeros(count)
        for _ in range(SHORT["num_steps"]):
            observations, rewards, *_ = envs.step(maker.predict(observations)[0])
            total += rewards
        check_mean(total, expected, alarms=1e-3, checks=4)


def test_the_corners_of_the_random_adversary():
    params = MakerParams.create(adversary="random", **SHORT)
    envs = gymnasium.make_vec(MAKER, 4_000, adversary="random", info="full", **SHORT)
    envs.reset(seed=5)
    info = envs.step(np.zeros((4_000, 2), np.float32))[4]
    played = np.stack([info[name] for name in CONTROLS[2:]], axis=1)
    low, high = params.nature_low, params.nature_high
    assert (np.isclose(played, low, rtol=1e-14) | np.isclose(played, high, rtol=1e-14)).all()
    number = ((played > 0.5 * (low + high)) * 2 ** np.arange(5)).sum(axis=1)
    assert stats.chisquare(np.bincount(number, minlength=32)).pvalue > 5e-4


@pytest.mark.parametrize(
    ("env_id", "name", "value", "message"),
    [
        (MAKER, "adversary", "robust", "'worst', 'none', 'random' or the path"),
        (MAKER, "adversary", 3, "'worst', 'none', 'random' or a path"),
        (ADVERSARY, "maker", "worst", "'robust', 'nominal', 'constant' or the path"),
        (MAKER, "fill_decay_reach", 1.0, "fill_decay_reach = 1.0 is not allowed"),
        (MAKER, "num_steps", 20_000, "must be at most 50,000"),
    ],
)
def test_refused_arguments(env_id, name, value, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make(env_id, **{**SHORT, "inventory_limit": 10.0, name: value})


def test_refused_tables(played_tables, tmp_path):
    maker_file, adversary_file, *_ = played_tables
    with pytest.raises(ValueError, match="must be a table of the adversary"):
        gymnasium.make(MAKER, adversary=maker_file, **SHORT)
    with pytest.raises(ValueError, match=r"shape \(6, 7, 5\), but this game needs \(7, 7, 5\)"):
        gymnasium.make(MAKER, adversary=adversary_file, **{**SHORT, "num_steps": 7})
    with pytest.raises(ValueError, match="within the box of this game"):
        gymnasium.make(MAKER, adversary=adversary_file, **SHORT, drift_reach=0.5)
    with np.load(adversary_file) as stored:
        arrays = dict(stored)
    mixed = tmp_path / "mixed.npz"
    np.savez(mixed, **arrays, weights=np.ones((6, 7, 1)))
    with pytest.raises(ValueError, match="draws its actions"):
        gymnasium.make(MAKER, adversary=str(mixed), **SHORT)
    params = MakerParams.create(
        adversary=adversary_file, horizon=0.091, **{k: SHORT[k] for k in SHORT if k != "horizon"}
    )
    np.savez(adversary_file, **{**arrays, "controls": arrays["controls"][::-1]})
    with pytest.raises(ValueError, match="has changed since"):
        _ = params.opponent_rows


def test_the_game_of_two():
    """PettingZoo's own test, zero sums, and the same episode as the batch of games."""
    pytest.importorskip("pettingzoo")
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    from mmgym.adapters.pettingzoo import ZeroSumParallelEnv

    parallel_api_test(ZeroSumParallelEnv(MAKER, **SHORT), num_cycles=20)
    parallel_seed_test(lambda: ZeroSumParallelEnv(ADVERSARY, **SHORT), num_cycles=20)
    game, batch = ZeroSumParallelEnv(MAKER, info="full", **SHORT), RobustGLFTGameVectorEnv(1, **SHORT)
    observations, _ = game.reset(seed=4)
    batch.reset(seed=4)
    while game.agents:
        actions = {agent: game.action_space(agent).sample() for agent in game.agents}
        observations, rewards, terminated, truncated, infos = game.step(actions)
        seen, reward, ended, *_ = batch.step(np.concatenate([actions["maker"], actions["adversary"]])[None])
        assert rewards["maker"] == reward[0] == -rewards["adversary"]
        assert np.array_equal(observations["maker"], seen[0]) and np.array_equal(observations["adversary"], seen[0])
        assert terminated == dict.fromkeys(("maker", "adversary"), bool(ended[0]))
        assert not any(truncated.values())
        assert infos["adversary"]["drift"] == pytest.approx(5.0 * float(actions["adversary"][0]), rel=1e-6)
    with pytest.raises(RuntimeError, match="reset"):
        game.step(actions)
    game.reset()
    with pytest.raises(ValueError, match="adversary is missing"):
        game.step({"maker": actions["maker"]})
    with pytest.raises(ValueError, match="5 finite numbers"):
        game.step({"maker": actions["maker"], "adversary": np.zeros(2)})
    with pytest.raises(TypeError, match="zero-sum game"):
        ZeroSumParallelEnv("mmgym/GLFT-v0")
