"""The compact menu of the tick-spread market: its loss, masks and observations (its optimum by a second method is in
`test_tick_spread_baseline`)."""

import itertools

import gymnasium
import numpy as np
import pytest
from scipy import stats

from mmgym import baselines
from mmgym.baselines.tick_spread import TickSpreadProblem
from mmgym.models import tick_spread
from mmgym.models.tick_spread import Params

ID = "mmgym/TickSpreadCompact-v0"
OPTIMUM = 22.17585  # of mmgym/TickSpread-v0: tick_spread.md, section 3
FALSE_ALARM = 1e-4  # of the one statistical check, with a fixed seed


@pytest.fixture(scope="module")
def env():
    return gymnasium.make(ID).unwrapped


def test_what_the_menu_loses(env):
    """0.16 % of the optimum; that orders only reduce the inventory costs nothing of it."""
    best = baselines.optimal_policy(env)
    assert best.optimum / OPTIMUM == pytest.approx(0.9984, abs=5e-5)
    problem = TickSpreadProblem(env.params._replace(actions="multi"))  # whose orders may go anywhere
    menu = tick_spread.to_quotes(env.params, env.params.menu)
    states, controls = np.repeat(np.arange(problem.num_states), len(menu)), np.tile(menu, (problem.num_states, 1))
    values = problem.terminal(problem.criterion)
    for n in reversed(range(problem.num_steps)):
        after = problem.backward(n, states, controls, values, problem.criterion)
        values = after.reshape(problem.num_states, -1).max(axis=1, keepdims=True)
    assert float(problem.initial @ values[:, 0]) == pytest.approx(best.optimum, abs=1e-10)


@pytest.mark.parametrize("arguments", [{}, {"lot": 20.0, "market_order_max": 60.0, "inventory_limit": 80.0}])
def test_masks_are_the_actions_that_are_played_as_they_are(arguments):
    """By playing every action in every state; what is masked is played as another one, which is not."""
    envs = gymnasium.make_vec(ID, 32, "vector_entry_point", info="full", **arguments).unwrapped
    one = gymnasium.make(ID, **arguments).unwrapped
    params, moves = one.params, np.arange(32)
    observations, _ = envs.reset(seed=0)
    for lots, spread in itertools.product(range(-params.limit, params.limit + 1), range(6)):
        state = envs.get_state()
        state["inventory"][:], state["spread"][:], state["step"][:] = lots, spread, 0
        state["masked_actions"][:] = 0
        observations = envs.set_state(state)
        allowed = envs.action_masks()[0]
        np.testing.assert_array_equal(envs.masks(observations)[0], allowed)
        *_, info = envs.step(moves)
        np.testing.assert_array_equal(info["masked_actions"] == 0, allowed)
        order = info["market_order"] / params.lot
        assert (np.abs(lots + order) == abs(lots) - np.abs(order)).all()  # towards 0, and not beyond
        asked = params.menu[:, 4] - params.order_max
        wanted = (np.abs(lots + asked) == abs(lots) - np.abs(asked)) & ((spread > 0) | (params.menu[:, :2] == 0).all(1))
        assert (allowed <= wanted).all()
        if abs(lots) + params.size_max <= params.limit:  # sizes have room
            np.testing.assert_array_equal(allowed, wanted)


def test_the_optimum_sends_no_masked_action(env):
    best, problem = baselines.optimal_policy(env), TickSpreadProblem(env.params)
    for n in (0, 150, 299):
        seen = problem.observations(n)
        chosen = best.predict(seen)[0]
        assert env.masks(seen)[np.arange(len(chosen)), chosen].all()


@pytest.mark.parametrize("spreads", [2, 6])
def test_observations_tell_the_state(spreads):
    chain = np.full((spreads, spreads), 1.0 / spreads).tolist()
    rates = {"fill_rate_best": 0.1, "fill_rate_improved": 0.2}
    arguments = {"spread_transitions": chain, "num_steps": 17, **rates}
    envs = gymnasium.make_vec(ID, 50, "vector_entry_point", **arguments).unwrapped
    params = envs.params
    assert envs.single_observation_space.shape == (2 + spreads,)
    cells = np.array([*itertools.product(range(18), range(-params.limit, params.limit + 1), range(spreads))])
    seen = tick_spread.observe(params, *cells.T)
    np.testing.assert_array_equal(np.stack(envs.to_state(seen), axis=1), cells)
    observations, _ = envs.reset(seed=1)
    for n in range(10):
        assert observations in envs.observation_space
        state = envs.get_state()
        np.testing.assert_array_equal(tick_spread.observe(params, n, state["inventory"], state["spread"]), observations)
        observations, *_ = envs.step(envs.action_space.sample())


def test_simulation_agrees_with_exact_scores(env):
    policy = baselines.paper_policies(env)["random"]
    exact, score = baselines.score(env, policy), baselines.score(env, policy, method="simulated", episodes=1000)
    assert abs(score.value - exact.value) < stats.norm.isf(FALSE_ALARM / 2) * score.stderr


def test_encodings_and_menus_are_checked():
    with pytest.raises(ValueError, match="spread_encoding = 'both' is not allowed"):
        Params.create(spread_encoding="both")
    assert len(Params.create(actions="compact", lot=100.0).menu) == 15  # no half of one lot
    assert len(Params.create(actions="compact", market_order_max=0.0).menu) == 16
