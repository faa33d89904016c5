"""Populations whose initial law is drawn at reset, and takers who see it: against the games of the single laws."""

import gymnasium as gym
import numpy as np
import pytest

from mmgym.baselines import optimal_policy, paper_policies, score
from mmgym.baselines.mean_field import population_exploitabilities, population_exploitability, taker_exploitability

TAKER, MAKER = "mmgym/MeanFieldTaker-v0", "mmgym/MeanFieldMaker-v0"
SMALL = {"inventory_limit": 20.0, "signal_limit": 1, "horizon": 0.4, "num_steps": 6, "impact": 0.05}
POINTS, SHARES = [[20.0, 1], [-10.0, -1], [0.0, 0]], [0.5, 0.2, 0.3]


def mixtures():
    """Two laws, and what is half of each: tables (5, 3)."""
    first, second = np.zeros((5, 3)), np.zeros((5, 3))
    first[4, 2], first[2, 1], second[0, 0] = 0.75, 0.25, 1.0
    return [(w * first + (1.0 - w) * second).tolist() for w in (1.0, 0.5, 0.0)]


FAMILIES = {"points": POINTS, "mixtures": mixtures()}


def seeing(actions):
    """A policy of inventory, signal and the entries that tell the law, in a game with or without these."""

    def policy(observations):
        return np.tanh(np.asarray(observations, np.float64)[..., 1:] @ actions).astype(np.float32)

    return policy


@pytest.mark.parametrize("family", ["points", pytest.param("mixtures", marks=pytest.mark.long)])
def test_scores_and_exploitabilities_by_law(family):
    laws = FAMILIES[family]
    randomise = {"initial_law": ["choice", laws, SHARES]}
    env = gym.make(TAKER, randomise=randomise, observe_parameters=True, **SMALL)
    width = env.observation_space.shape[0] - 3
    assert width == np.size(laws[0])
    flat = np.reshape(laws, (3, -1)).astype(np.float64)
    spread = np.ptp(flat, axis=0)
    told = np.where(spread > 0.0, 2.0 * (flat - flat.min(axis=0)) / np.where(spread > 0.0, spread, 1.0) - 1.0, 0.0)
    actions = np.random.default_rng(0).normal(0.0, 0.4, (2 + width, 2))
    by_law = population_exploitabilities(env, seeing(actions))
    scored, best, values = score(env, seeing(actions), markov=True), [], []
    ours = population_exploitabilities(env, optimal_policy(env))
    for k, law in enumerate(laws):
        alone = gym.make(TAKER, initial_law=law, **SMALL)

        def one(observations, shown=told[k]):
            end = np.broadcast_to(shown, (*np.shape(observations)[:-1], width))
            return seeing(actions)(np.concatenate([observations, end], axis=-1))

        expected = population_exploitability(alone, one)
        assert by_law[k].values == {"initial_law": law}
        assert by_law[k].weight == SHARES[k]
        assert by_law[k].gap.exploitability == pytest.approx(expected.exploitability, abs=1e-5)  # float32 depths
        assert expected.exploitability > 0.1
        single = score(alone, one, markov=True)
        best.append(single.optimum_upper), values.append(single.value)
        assert taker_exploitability(alone, one).best == pytest.approx(best[-1], rel=1e-9)
        assert abs(ours[k].gap.exploitability) < 1e-4  # all play the best answer to the equilibrium of their law
    assert scored.value == pytest.approx(np.dot(SHARES, values), abs=1e-5)
    assert scored.optimum_lower == scored.optimum_upper == pytest.approx(np.dot(SHARES, best), rel=1e-9)
    assert scored.method == "exact"


def test_what_does_not_see_the_law_is_bracketed():
    env = gym.make(TAKER, randomise={"initial_law": ["choice", POINTS, SHARES]}, **SMALL)
    scored = score(env, paper_policies(env)["constant"])
    assert scored.optimum_lower < scored.optimum_upper - 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("env_id", [TAKER, MAKER])
def test_rows_with_laws_of_their_own_play_the_games_of_these(env_id, family):
    laws = FAMILIES[family]
    envs = gym.make_vec(env_id, num_envs=3, parameters={"initial_law": laws}, **SMALL)
    alone = [gym.make(env_id, initial_law=law, **SMALL) for law in laws]
    seen, _ = envs.reset(seed=5)
    np.testing.assert_array_equal(seen, [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)])
    random = np.random.default_rng(0)
    for n in range(6):
        actions = random.uniform(-0.5, 1.0, (3, 2)).astype(np.float32)
        if n == 3:  # a state carries the laws
            state = envs.unwrapped.get_state()
            envs = gym.make_vec(env_id, num_envs=3, parameters={"initial_law": laws[::-1]}, **SMALL)
            envs.reset(seed=0)
            envs.unwrapped.set_state(state)
        seen, paid, *_ = envs.step(actions)
        single = [env.step(action) for env, action in zip(alone, actions, strict=True)]
        np.testing.assert_array_equal(seen, [step[0] for step in single])
        np.testing.assert_array_equal(paid, [step[1] for step in single])


def test_laws_are_drawn_with_their_shares_and_starts_from_them():
    """2,000 episodes; false alarms: 1e-3 over the seven counts together."""
    randomise = {"initial_law": ["choice", mixtures(), SHARES]}
    envs = gym.make_vec(TAKER, num_envs=2_000, randomise=randomise, observe_parameters=True, **SMALL)
    seen, _ = envs.reset(seed=3)
    heavy = seen[:, 3 + 4 * 3 + 2]  # of the cell with 0.75, 0.375 or 0
    place = np.rint(1.0 - heavy).astype(int)
    counts = np.zeros((3, 5, 3))
    np.add.at(counts, (place, np.rint(seen[:, 1] * 2 + 2).astype(int), np.rint(seen[:, 2] + 1).astype(int)), 1)
    expected = np.array(SHARES)[:, None, None] * np.array(mixtures())
    some = expected > 0.0
    assert counts[~some].sum() == 0
    assert some.sum() == 6
    z = (counts[some] / 2_000 - expected[some]) / np.sqrt(expected[some] * (1.0 - expected[some]) / 2_000)
    assert np.abs(z).max() < 3.8


@pytest.mark.parametrize(
    ("laws", "words"),
    [
        (["origin", [10.0, 1]], "no words"),
        ([mixtures()[0], [10.0, 1]], "one and the same shape"),
        ([[10.0, 1], [30.0, 1]], "initial_law"),
    ],
)
def test_laws_that_are_refused(laws, words):
    with pytest.raises(ValueError, match=words):
        gym.make(TAKER, randomise={"initial_law": ["choice", laws]}, **SMALL)


def test_one_game_is_not_many():
    many = gym.make(TAKER, randomise={"initial_law": ["choice", POINTS]}, **SMALL)
    table = np.full((6, 15, 2), 1.0 / 2.375)
    for judge in (population_exploitability, taker_exploitability):
        with pytest.raises(ValueError, match="population_exploitabilities"):
            judge(many, table)
    with pytest.raises(ValueError, match="randomise is missing"):
        population_exploitabilities(TAKER, table, **SMALL)
    with pytest.raises(TypeError, match="a taker's environment"):
        population_exploitabilities(MAKER, table, randomise={"initial_law": ["choice", POINTS]}, **SMALL)
