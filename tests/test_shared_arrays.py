"""Large arrays that rows share: the opponent's table of the robust market, the crowd's flow of the mean-field one."""

import pickle

import gymnasium
import numpy as np
import pytest

import mmgym  # noqa: F401
from mmgym import arguments
from mmgym.models.robust_glft import MakerParams
from mmgym.parameters import argument_names

ROBUST, TAKER = "mmgym/RobustGLFT-v0", "mmgym/MeanFieldTaker-v0"
TINY = {"num_steps": 3, "horizon": 0.02, "inventory_limit": 2.0}


@pytest.mark.parametrize(
    ("env_id", "given"),
    [
        (ROBUST, TINY),
        ("mmgym/RobustGLFTAdversary-v0", TINY | {"maker": "nominal"}),
        (TAKER, {"num_steps": 50, "population": "constant"}),
        ("mmgym/MeanFieldMaker-v0", {"num_steps": 50, "population": "constant"}),
    ],
)
def test_rows_of_one_key_have_one_array(env_id: str, given: dict[str, object]) -> None:
    """Whatever argument differs: where the key does not change, neither does the array that is made anew."""
    base = gymnasium.make(env_id, **given).unwrapped
    shared, first = base.market.shared, base.params
    array, alike, apart = shared.array(first), set(), set()
    for name in argument_names(base.market.params_type):
        value = getattr(first, name, None)
        if not isinstance(value, float):
            continue
        try:
            other = type(first).create(**given | {name: 1.03 * value + 0.01})
        except ValueError:  # inventories that are no multiples
            continue
        if shared.key(other) == shared.key(first):
            alike.add(name)
            np.testing.assert_array_equal(shared.array(other), array, err_msg=name)
        else:
            apart.add(name)
    assert alike and apart
    assert "volatility" in alike


def test_an_opponent_of_each_distinct_game(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of rows of one game need one table; as many of distinct ones are refused for what they would need."""
    many = {"volatility": np.linspace(1.0, 3.0, 4096), "fill_decay": np.tile([1.4, 1.5], 2048)}
    envs = gymnasium.make_vec(ROBUST, 4096, parameters=many, **TINY).unwrapped
    assert len(envs._rows.shared.arrays) == 2
    asked = 4096 * envs._rows.shared.arrays[0].nbytes
    monkeypatch.setattr(arguments.os, "sysconf", lambda name: asked - 1 if name == "SC_PHYS_PAGES" else 1)
    with pytest.raises(MemoryError, match="4,096 tables of what opponents play in distinct games"):
        gymnasium.make_vec(ROBUST, 4096, parameters={"fill_decay": np.linspace(1.4, 1.6, 4096)}, **TINY)


@pytest.mark.parametrize("threads", [1, 2])
def test_opponents_of_drawn_games(threads: int) -> None:
    """Episodes of games that are drawn anew, more of them in all than rows: a row plays what one environment plays."""
    given = TINY | {"randomise": {"fill_decay": ["uniform", 1.2, 1.8], "volatility": ["uniform", 1.0, 3.0]}}
    envs = gymnasium.make_vec(ROBUST, 3, threads=threads, **given)
    env = gymnasium.make(ROBUST, **given)
    observations, (observation, info) = envs.reset(seed=4)[0], env.reset(seed=6)
    action, drawn = np.array([0.1, -0.2], np.float32), set()
    for _ in range(8):
        drawn.add(info["parameters"]["fill_decay"])
        for _ in range(TINY["num_steps"]):
            assert np.array_equal(observations[2], observation)
            observations, rewards, *_ = envs.step(np.tile(action, (3, 1)))
            observation, reward, *_ = env.step(action)
            assert rewards[2] == reward
        observations = envs.step(np.tile(action, (3, 1)))[0]
        observation, info = env.reset()
    assert len(drawn) == 8
    assert len(envs.unwrapped._rows.shared.arrays) <= 4  # places are used again
    one, other = envs, pickle.loads(pickle.dumps(envs))
    for _ in range(6):  # the copy has tables of its own
        assert np.array_equal(one.step(np.tile(action, (3, 1)))[1], other.step(np.tile(action, (3, 1)))[1])


def test_a_row_whose_game_cannot_be_solved_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the table that it has, and others do not write over it."""
    laws = {"fill_decay": ["uniform", 1.2, 1.8]}
    envs = gymnasium.make_vec(ROBUST, 2, randomise=laws, autoreset_mode="Disabled", **TINY).unwrapped
    envs.reset(seed=1, options={"parameters": {"fill_decay": [1.3, 1.6]}})
    wanted = MakerParams.create(**envs.arguments_of_row(0)).opponent_rows
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(MakerParams, "opponent_rows", property(lambda p: 1 / 0))
        envs.reset(options={"reset_mask": np.array([True, False]), "parameters": {"fill_decay": [1.4, 1.6]}})
    for fill_decay in (1.5, 1.7):
        envs.reset(options={"reset_mask": np.array([False, True]), "parameters": {"fill_decay": [1.4, fill_decay]}})
    rows = envs._rows
    assert envs.params.fill_decay.tolist() == [1.3, 1.7]
    np.testing.assert_array_equal(rows.shared.arrays[rows.record["place"][0]], wanted)
    assert len(rows.shared.arrays) == 3
