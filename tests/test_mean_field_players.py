"""The N-player game behind the mean field: its law, its faces, and what it makes of the equilibrium.

Statistical checks use fixed seeds; each has a false-alarm rate of 1e-4.
"""

import functools
import itertools
import math

import gymnasium
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm
from scipy.optimize import approx_fprime, minimize

from mmgym.baselines import optimal_policy, write_table
from mmgym.baselines.frozen import Functional, Table, criterion_value, evaluate, solve, state_laws
from mmgym.baselines.mean_field import MeanFieldProblem, joint_maker
from mmgym.baselines.mean_field.exchangeable import Multisets
from mmgym.baselines.mean_field.joint import deviation_on_steps, nash_on_steps
from mmgym.baselines.mean_field.joint_maker import maker_deviation_on_steps
from mmgym.baselines.mean_field.players import best_deviation, inventory_fluctuations, loglog_slope
from mmgym.envs.mean_field_players import MeanFieldPlayers
from mmgym.models import mean_field
from mmgym.models import mean_field_limit as limit
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.models.mean_field_flow import Flow, best_response, constant_flow, induced_flow, solve_equilibrium_flow
from mmgym.models.mean_field_game import Game

SMALL = {"inventory_limit": 30.0, "signal_limit": 1, "horizon": 0.4, "num_steps": 10, "signal_rate": [4.0, 2.0]}
COUPLED = {**SMALL, "impact": 0.04, "initial_law": [20.0, 1], "taker_risk_aversion": 1e-3}
LOPSIDED = {  # every side and role with numbers of its own (the paper's Remark 3.1)
    **COUPLED, "taker_fill_rate": [70.0, 45.0], "taker_fill_decay": [2.0, 2.9], "maker_fill_rate": [110.0, 80.0],
    "maker_fill_decay": [2.6, 2.1], "inventory_limit": [30.0, 10.0], "maker_inventory_limit": [20.0, 60.0],
    "maker_initial_inventory": -30.0,
}  # fmt: skip
FALSE_ALARM = 1e-4  # of each statistical check


def quote_table(game):
    """Depths that depend on step, signal and inventory, as float32 actions show them: (N, B, Q, 2)."""
    n, b, q = np.meshgrid(np.arange(game.num_steps), game.signal, game.inventory, indexing="ij")
    bid = 0.35 + 0.01 * n - 0.1 * b + 0.006 * q
    actions = np.stack([bid, 0.7 - 0.02 * n + 0.1 * b - 0.004 * q], axis=-1) / game.max_depth
    return actions.astype(np.float32)


def play(games, takers, actions=None, seed=1, reward="expected", maker=(0.28, 0.28), **arguments):
    """Total rewards of takers (G, N) and makers (G,) of whole episodes, and the batch at the end."""
    batch = MeanFieldPlayers(games, num_takers=takers, reward=reward, **arguments)
    batch.reset(seed)
    game = batch.params.game
    total, maker_total = np.zeros((games, takers)), np.zeros(games)
    quotes = np.tile(np.array(maker, np.float32), (games, 1))
    for n in range(game.num_steps):
        if actions is None:
            quote = (1.0 / game.taker_fill_decay / game.max_depth).astype(np.float32)
            played = np.broadcast_to(quote, (games, takers, 2))
        else:
            played = actions[n][batch.signal + game.signal_limit, batch.inventory + game.short]
        step = batch.step(played, quotes)
        total += step.taker_rewards
        maker_total += step.maker_rewards
    assert step.terminated
    return total, maker_total, batch


# --- The step law -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("arguments", [COUPLED, LOPSIDED])
@pytest.mark.parametrize("takers", [1, 2, 7])
@pytest.mark.parametrize("reward", ["expected", "pnl"])
def test_takers_with_own_state_depths_are_worth_what_the_limit_and_their_own_impact_say(
    takers, reward, arguments, check_mean
):
    """Others' drift is (N - 1) / N of the limit's; own pushes make kappa / (2 N) (q_T^2 - q_0^2 - z^2 fills)."""
    game = Game.create(**arguments)
    actions = quote_table(game)
    depths = actions.astype(np.float64) * game.max_depth
    flow, _ = induced_flow(game, depths)
    share = (takers - 1) / takers
    problem = MeanFieldProblem(
        TakerParams.create(**arguments), Flow(share * flow.movement, flow.mean_quotes, flow.quoting)
    )
    table = Table(depths.reshape(game.num_steps, -1, 2))
    law = state_laws(problem, table.controls)[-1].reshape(game.shape).sum(axis=0)
    fills = float(problem.initial @ evaluate(problem, table, Functional(fills=1.0))[0][0, :, 0])
    squares = float(law @ game.inventory**2) - 20.0**2 - game.order_size**2 * fills
    expected = criterion_value(problem, table) + 0.5 * game.impact / takers * squares
    total, _, _ = play(20_000 // takers, takers, actions, reward=reward, **arguments)
    check_mean(total.mean(axis=1), expected, alarms=FALSE_ALARM)


@pytest.mark.long
@pytest.mark.parametrize("arguments", [COUPLED, LOPSIDED])
def test_the_maker_earns_what_the_limit_says_against_constant_quotes(arguments, check_mean):
    """Her fills do not depend on the takers' inventories then, and the mid's drift is that of the mean law."""
    params = MakerParams.create(population="constant", **arguments)
    problem = MeanFieldProblem(params)
    depths = np.array([0.3, 0.4], np.float32).astype(np.float64) * params.max_depth
    value = criterion_value(problem, np.broadcast_to(depths, (params.num_steps, problem.num_states, 2)))
    _, makers, batch = play(4_000, 12, maker=(0.3, 0.4), **arguments)
    check_mean(makers, value, alarms=FALSE_ALARM)
    law = problem.initial
    for n in range(params.num_steps):
        law = problem.forward(n, np.broadcast_to(depths, (problem.num_states, 2)), law)
    counts, expected = np.bincount(batch.maker_inventory + params.short, minlength=len(law)), 4_000 * law
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > FALSE_ALARM


@pytest.mark.long
def test_laws_of_inventory_and_signal_at_the_horizon():
    game = Game.create(**COUPLED)
    actions = quote_table(game)
    depths = actions.astype(np.float64) * game.max_depth
    problem = MeanFieldProblem(TakerParams.create(**COUPLED))
    law = state_laws(problem, depths.reshape(game.num_steps, -1, 2))[-1]
    _, _, batch = play(20_000, 1, actions, seed=2, **COUPLED)
    cells = (batch.signal + game.signal_limit) * game.shape[1] + batch.inventory + game.limit
    counts, expected = np.bincount(cells.ravel(), minlength=len(law)), 20_000 * law
    often = expected > 5
    seen = counts[often]
    assert stats.chisquare(seen, expected[often] * seen.sum() / expected[often].sum()).pvalue > FALSE_ALARM
    assert stats.binomtest(int(20_000 - seen.sum()), 20_000, max(1.0 - law[often].sum(), 0.0)).pvalue > FALSE_ALARM


def test_the_mid_moves_by_the_takers_fills_only_without_volatility():
    arguments = {**COUPLED, "volatility": 0.0}
    batch = MeanFieldPlayers(5, num_takers=40, **arguments)
    batch.reset(3)
    before = batch.inventory.copy()
    batch.step(np.zeros((5, 40, 2)), np.zeros((5, 2)))
    moved = 0.04 * 10.0 / 40 * (batch.inventory - before).sum(axis=1)
    np.testing.assert_allclose(batch.mid, moved, rtol=0, atol=1e-13)
    assert (moved != 0.0).any()


def test_both_rewards_have_the_same_fills_and_mean_and_the_mid_is_a_brownian_motion(check_mean):
    plays = [play(4_000, 3, reward=reward, seed=5, impact=0.0, **SMALL) for reward in ("pnl", "expected")]
    for name in ("inventory", "signal", "maker_inventory"):
        assert np.array_equal(getattr(plays[0][2], name), getattr(plays[1][2], name))
    for k in (0, 1):
        difference = (plays[0][k] - plays[1][k]).reshape(4_000, -1).mean(axis=1)
        check_mean(difference, 0.0, alarms=FALSE_ALARM)
        assert difference.std() > 1.0
    for _, _, batch in plays:
        assert stats.kstest(batch.mid / (8.0 * math.sqrt(0.4)), "norm").pvalue > FALSE_ALARM


def test_nobody_quotes_nobody_trades():
    """A single taker who is full, and hardly ever sells: no bid to sell to."""
    arguments = {**SMALL, "initial_law": [30.0, 0], "taker_fill_rate": 1e-9}
    for boundary, trades in (("quoting", False), ("zero", True), ("risk_neutral", True)):
        batch = MeanFieldPlayers(300, num_takers=1, boundary_quotes=boundary, **arguments)
        batch.reset(0)
        batch.step(np.zeros((300, 1, 2)), np.zeros((300, 2)))
        assert batch.maker_fills[:, 0].sum() > 0
        assert (batch.maker_fills[:, 1].sum() > 0) == trades
        expected = {"quoting": 0.0, "zero": 0.0, "risk_neutral": 1 / 2.375}[boundary]
        assert batch.mean_quotes[0].tolist() == [pytest.approx(expected), 0.0]


def test_starts_are_drawn_from_the_initial_law():
    table = np.zeros((7, 3))
    table[1, 0], table[5, 2], table[3, 1] = 0.5, 0.3, 0.2
    batch = MeanFieldPlayers(10, num_takers=1_000, **{**SMALL, "initial_law": table.tolist()})
    batch.reset(4)
    states, counts = np.unique(np.stack([batch.inventory.ravel(), batch.signal.ravel()]), axis=1, return_counts=True)
    assert states.T.tolist() == [[-2, -1], [0, 0], [2, 1]]
    assert stats.chisquare(counts, [5_000, 2_000, 3_000]).pvalue > FALSE_ALARM


def test_seeds_and_batches():
    runs = [play(games, 6, quote_table(Game.create(**COUPLED)), seed=7, **COUPLED) for games in (3, 3, 1)]
    assert np.array_equal(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][0][:1], runs[2][0])  # game 0 is the same in any batch
    assert not np.array_equal(runs[0][0][0], runs[0][0][1])


def test_what_players_see():
    batch = MeanFieldPlayers(2, num_takers=4, **COUPLED)
    takers, makers = batch.reset(0)
    assert takers.shape == (2, 4, 3)
    assert makers.shape == (2, 8)
    assert takers.dtype == makers.dtype == np.float32
    np.testing.assert_allclose(takers[0, 0], [0.0, 20.0 / 30.0, 1.0], rtol=1e-7)
    quote = 1.0 / batch.params.game.taker_fill_decay_bid / 1.5
    np.testing.assert_allclose(makers[0, [0, 1, 2, 3, 5, 6, 7]], [0, 0, quote, quote, 0, 0, 20.0 / 30.0], rtol=1e-6)
    actions = np.linspace(-0.3, 0.4, 16).reshape(2, 4, 2)
    _, makers = batch.step(actions, np.full((2, 2), 0.3))[:2]
    np.testing.assert_allclose(makers[:, 5:7], actions.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(makers[:, 7], batch.inventory.mean(axis=1) / 3, rtol=1e-6)
    assert makers[0, 0] == np.float32(0.1)


@pytest.mark.parametrize("forecast", ["constant", "equilibrium", "table"])
def test_the_maker_sees_what_the_maker_of_the_one_agent_environment_sees(forecast, tmp_path):
    """Her five entries mean the same in both: at every step and inventory they are equal bit for bit."""
    env_id = "mmgym/MeanFieldMaker-v0"
    if forecast == "table":
        crowd = write_table(lambda seen: 0.3 - 0.2 * seen[:, 1:], "mmgym/MeanFieldTaker-v0", tmp_path / "t", **COUPLED)
        forecast = str(crowd)
    batch = MeanFieldPlayers(50, num_takers=2, forecast=forecast, **COUPLED)
    one = gymnasium.make_vec(env_id, num_envs=50, population=forecast, **COUPLED).unwrapped
    policy = optimal_policy(env_id, population=forecast, **COUPLED)
    _, makers = batch.reset(3)
    seen = set()
    for n in range(batch.params.game.num_steps):
        wanted = mean_field.observe(one.params, n, batch.maker_inventory, 0)
        assert np.array_equal(makers[:, :5], wanted)
        if n == 0:
            assert np.array_equal(one.reset(seed=0)[0], wanted)
        seen.update(batch.maker_inventory.tolist())
        makers = batch.step(np.full((50, 2, 2), 0.2), policy.predict(makers[:, :5])[0]).maker_observations
    assert len(seen) > 3


def test_no_equilibrium_is_solved_unless_it_is_the_forecast(monkeypatch):
    """Five takers under a strong impact took 25 s to build."""
    from mmgym.models import mean_field_flow, mean_field_population

    def refuse(game):
        raise limit.NotConverged("solved")

    monkeypatch.setattr(mean_field_population, "equilibrium_flow", refuse)
    monkeypatch.setattr(mean_field_flow, "solve_equilibrium_flow", refuse)
    arguments = {"impact": 0.031, "initial_law": [80.0, 2], "num_takers": 5}
    _, makers = MeanFieldPlayers(1, **arguments).reset(0)
    assert makers[0, 5:7].tolist() == [0.0, 0.0]
    with pytest.raises(limit.NotConverged, match="solved"):
        MeanFieldPlayers(1, forecast="equilibrium", **arguments)


def test_bad_input_is_refused():
    for arguments, message in (
        ({"num_takers": 0}, "num_takers = 0 is not allowed"),
        ({"num_takers": 10_001}, "num_takers = 10001 is not allowed"),
        ({"num_takers": 2.5}, "num_takers = 2.5 is not allowed"),
        ({"impact": 0.06}, "tested up to impact"),
        ({"initial_law": [[0.5] * 9] * 25}, "sum to"),
        ({"reward": "x"}, "reward = 'x' is not allowed"),
        ({"population": "constant"}, "population is not allowed"),
        ({"forecast": "nothing"}, "forecast = 'nothing' is not allowed"),
        ({"forecast": 1}, "forecast = 1 is not allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            MeanFieldPlayers(1, **arguments)
    batch = MeanFieldPlayers(2, num_takers=3, **SMALL)
    with pytest.raises(RuntimeError, match="reset"):
        batch.step(np.zeros((2, 3, 2)), np.zeros((2, 2)))
    batch.reset(0)
    with pytest.raises(ValueError, match=r"taker_actions of shape \(2, 4, 2\)"):
        batch.step(np.zeros((2, 4, 2)), np.zeros((2, 2)))
    actions = np.zeros((2, 3, 2))
    actions[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match=r"taker_actions\[1, 2\]"):
        batch.step(actions, np.zeros((2, 2)))
    assert batch.step_number == 0
    with pytest.raises(ValueError, match="seed = -1"):
        batch.reset(-1)


# --- PettingZoo -------------------------------------------------------------------------------------------------------


def test_parallel_env_passes_pettingzoo_s_own_tests():
    testing = pytest.importorskip("pettingzoo.test", reason="pettingzoo (extra multiagent) is not installed")
    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    for maker in (True, False):
        testing.parallel_api_test(MeanFieldParallelEnv(num_takers=5, maker=maker, **SMALL), num_cycles=30)
    testing.parallel_seed_test(lambda: MeanFieldParallelEnv(num_takers=3, **SMALL))


def test_parallel_env_is_the_batch():
    pytest.importorskip("pettingzoo", reason="pettingzoo (extra multiagent) is not installed")
    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    env, batch = MeanFieldParallelEnv(num_takers=3, **COUPLED), MeanFieldPlayers(1, num_takers=3, **COUPLED)
    observations, infos = env.reset(seed=8)
    batch.reset(8)
    assert list(observations) == ["maker_0", "taker_0", "taker_1", "taker_2"]
    generator = np.random.default_rng(0)
    while env.agents:
        actions = {agent: generator.uniform(-0.2, 1.0, 2).astype(np.float32) for agent in env.agents}
        step = batch.step(np.stack([actions[f"taker_{i}"] for i in range(3)])[None], actions["maker_0"][None])
        observations, rewards, terminations, truncations, infos = env.step(actions)
        assert [rewards[f"taker_{i}"] for i in range(3)] == step.taker_rewards[0].tolist()
        assert rewards["maker_0"] == step.maker_rewards[0]
        assert np.array_equal(observations["taker_1"], step.taker_observations[0, 1])
        assert infos["maker_0"]["mid"] == batch.mid[0]
    assert all(terminations.values())
    assert not any(truncations.values())
    with pytest.raises(RuntimeError, match="reset"):
        env.step({})
    env.reset()
    with pytest.raises(ValueError, match="'maker_0'"):
        env.step({})
    with pytest.raises(ValueError, match="of taker_0"):
        env.step({agent: [math.nan, 0.0] if agent == "taker_0" else [0.0, 0.0] for agent in env.agents})


def test_takers_alone_play_the_same_game():
    pytest.importorskip("pettingzoo", reason="pettingzoo (extra multiagent) is not installed")
    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    alone, full = (MeanFieldParallelEnv(num_takers=3, maker=maker, **COUPLED) for maker in (False, True))
    assert alone.possible_agents == full.possible_agents[1:]
    observations = [env.reset(seed=8)[0] for env in (alone, full)]
    generator = np.random.default_rng(0)
    while alone.agents:
        assert alone.state().tolist()[8:] == full.state().tolist()[8:]
        actions = {agent: generator.uniform(-0.2, 1.0, 2).astype(np.float32) for agent in alone.agents}
        actions["maker_0"] = np.zeros(2, np.float32)
        (observations, rewards, *_), (_, expected, *_) = alone.step(actions), full.step(actions)
        assert list(observations) == alone.possible_agents
        assert rewards == {agent: expected[agent] for agent in alone.possible_agents}
    with pytest.raises(ValueError, match="maker = 'no'"):
        MeanFieldParallelEnv(maker="no")


def test_supersuit():
    """Agents' names have the types that it reads off them, and takers alone are the rows of its vector environments."""
    pytest.importorskip("pettingzoo", reason="pettingzoo (extra multiagent) is not installed")
    supersuit = pytest.importorskip("supersuit", reason="supersuit is not installed")
    from mmgym.adapters.pettingzoo import MeanFieldParallelEnv

    typed = supersuit.agent_indicator_v0(
        supersuit.pad_observations_v0(MeanFieldParallelEnv(num_takers=2, **COUPLED)), type_only=True
    )
    observations, _ = typed.reset(seed=1)
    assert {agent: seen[-2:].tolist() for agent, seen in observations.items()} == {
        "maker_0": [1.0, 0.0], "taker_0": [0.0, 1.0], "taker_1": [0.0, 1.0],
    }  # fmt: skip
    one = supersuit.pettingzoo_env_to_vec_env_v1(MeanFieldParallelEnv(num_takers=4, maker=False, **COUPLED))
    rows = supersuit.concat_vec_envs_v1(one, 3)
    assert rows.reset(seed=2)[0].shape == (12, 3)
    batch = MeanFieldPlayers(1, num_takers=4, **COUPLED)
    batch.reset(2)
    actions = np.random.default_rng(3).uniform(-0.2, 1.0, (12, 2)).astype(np.float32)
    observations, rewards, *_ = rows.step(actions)
    expected = batch.step(actions[None, :4], np.zeros((1, 2)))
    assert np.array_equal(observations[:4], expected.taker_observations[0])
    assert rewards[:4] == pytest.approx(expected.taker_rewards[0], rel=1e-6)


# --- Against the limit ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_gain_of_a_deviation_in_the_base_game():
    """Section 5 of the reference mathematics: 9.6e-6 for ten takers."""
    assert best_deviation(Game.create(), 10).gain == pytest.approx(9.6e-6, abs=0.06e-6)


@pytest.mark.slow
def test_gains_of_a_deviation_under_strong_impact():
    """Section 5 of the reference mathematics: gains 9.55, 0.100, 0.00100 and shifts -44.4, -4.44, -0.444."""
    game = Game.create(impact=0.05, initial_law=[80.0, 2])
    equilibrium = limit.solve_equilibrium(game)
    deviations = [best_deviation(game, count, equilibrium) for count in (10, 100, 1000)]
    assert [deviation.gain for deviation in deviations] == pytest.approx([9.55, 0.100, 0.00100], rel=6e-3)
    assert [deviation.shift for deviation in deviations] == pytest.approx([-44.4, -4.44, -0.444], rel=2e-3)
    assert loglog_slope(np.array([10, 100, 1000]), np.array([d.gain for d in deviations])) == pytest.approx(
        -2.0, abs=0.02
    )
    with pytest.raises(ArithmeticError, match="too strong"):
        best_deviation(game, 1, equilibrium)
    with pytest.raises(ValueError, match="num_takers = 0"):
        best_deviation(game, 0, equilibrium)


def brute_force(game, played_by, takers, searched=True):
    """Values of what all play, and of the best depths that see all, from the joint chain: dense matrices, Nelder-Mead.

    ``played_by(n, own, others)`` are depths by the levels of a taker and of the others. Not ``searched``, the best ones
    are left out.

    The mid moves at every taker's fill, and the first holds what she held before it: no part is worked out apart.
    """
    count, h = game.shape[1], game.step_length
    states = list(itertools.product(range(count), repeat=takers))
    place = {state: i for i, state in enumerate(states)}
    own = np.array([game.inventory[state[0]] for state in states])
    push = game.impact * game.order_size / takers

    def step(start, played, values):
        system = np.zeros((len(states) + 1, len(states) + 1))
        for state, i in place.items():
            system[i, -1] -= game.taker_penalty * own[i] ** 2
            for player, side in itertools.product(range(takers), range(2)):
                after = list(state)
                after[player] += 1 - 2 * side
                if not 0 <= after[player] < count:
                    continue
                depth = played[player][side]
                rate = game.taker_fill_rate[side] * math.exp(-game.taker_fill_decay[side] * depth)
                system[i, place[tuple(after)]] += rate
                system[i, i] -= rate
                system[i, -1] += rate * own[i] * push * (1 - 2 * side)
                if player == 0:
                    system[i, -1] += rate * game.order_size * depth
        return (expm(h * system) @ [*values, 1.0])[place[start]]

    value, best = np.zeros(len(states)), np.zeros(len(states))
    for n in reversed(range(game.num_steps)):
        played = [[played_by(n, s[i], s[:i] + s[i + 1 :]) for i in range(takers)] for s in states]
        value = np.array([step(s, play, value) for s, play in zip(states, played, strict=True)])
        optima = []
        for state, play in zip(states, played, strict=True) if searched else ():
            most = minimize(
                lambda d, s=state, play=play, after=best: -step(s, [d, *play[1:]], after), play[0] + 0.05,
                method="Nelder-Mead", bounds=[(-game.max_depth, game.max_depth)] * 2,
                options={"xatol": 1e-5, "fatol": 1e-9},
            )  # fmt: skip
            optima.append(-most.fun)
        best = np.array(optima) if searched else value
    law = functools.reduce(np.kron, [game.initial[0]] * takers)
    return law @ value, law @ best


FEW = {
    "inventory_limit": 10.0, "signal_limit": 0, "horizon": 0.4, "num_steps": 2, "impact": 0.05,
    "taker_risk_aversion": 1e-3, "taker_fill_rate": [20.0, 12.0], "taker_fill_decay": [2.0, 2.9],
    "initial_law": [[0.2], [0.3], [0.5]],
}  # fmt: skip


@pytest.mark.parametrize("takers", [2, pytest.param(3, marks=pytest.mark.long)])
def test_deviations_that_see_the_others_by_brute_force(takers):
    game = Game.create(**FEW)
    depths = best_response(game, solve_equilibrium_flow(game))[0]
    deviation = deviation_on_steps(game, depths, takers)
    value, best = brute_force(game, lambda n, own, others: depths[n, 0, own], takers)
    assert deviation.value == pytest.approx(value, abs=1e-9)
    assert deviation.seeing == pytest.approx(best, abs=1e-7)
    assert 1e-6 < deviation.gain < deviation.seeing_gain


def test_many_fills_a_step():
    """Up to some hundred, where the mean inventory rushes to its rest: joint chains say the same of both roles."""
    rates = {"taker_fill_rate": [400.0, 250.0], "maker_fill_rate": [300.0, 200.0]}
    game = Game.create(**{**MAKER_FEW, **rates, "max_depth": 0.4})
    rng = np.random.default_rng(4)
    depths = rng.uniform(-0.3, 0.4, (game.num_steps, *game.shape, 2))
    own = rng.uniform(-0.2, 0.4, (game.num_steps, len(game.maker_inventory), 2))
    value, _ = brute_force(game, lambda n, own, others: depths[n, 0, own], 2, searched=False)
    assert deviation_on_steps(game, depths, 2).value == pytest.approx(value, rel=1e-9)
    value, _ = maker_brute_force(game, depths, 1)
    assert maker_deviation_on_steps(game, depths, own, 1).value == pytest.approx(
        value(lambda n, s: own[n, s[0]]), rel=1e-9
    )


@pytest.mark.parametrize("takers", [2, *(pytest.param(number, marks=pytest.mark.long) for number in (3, 4))])
def test_nash_equilibria_by_brute_force(takers):
    """Nobody gains by other depths, and the value is that of the joint chain."""
    game = Game.create(**FEW)
    nash = nash_on_steps(game, takers)
    seen = {tuple(others): place for place, others in enumerate(nash.others.tolist())}
    value, best = brute_force(
        game, lambda n, own, others: nash.depths[n, own, seen[tuple(sorted(others))]], takers, searched=takers < 4
    )
    assert nash.value == pytest.approx(value, abs=1e-9)
    assert best == pytest.approx(value, abs=1e-6)
    assert nash.missed < 1e-8
    decoupled = game._replace(impact=0.0)
    alone = best_response(decoupled, constant_flow(decoupled))[0][:, 0]
    for seen in np.moveaxis(nash_on_steps(decoupled, takers).depths.reshape(2, 3, -1, 2), 2, 0):
        np.testing.assert_allclose(seen, alone, atol=1e-6)


@pytest.mark.parametrize("takers", [2, 3])
def test_deviations_with_signals(takers):
    """The table's value as the flow and the own impact say; a best answer of the others' mean is no deviation."""
    game = Game.create(**{**LOPSIDED, "inventory_limit": [10.0, 10.0], "initial_law": [10.0, 1], "num_steps": 4})
    depths = quote_table(game).astype(np.float64) * game.max_depth
    flow, _ = induced_flow(game, depths)
    params = TakerParams(*game, population=("constant", ""), reward="pnl", role="taker")
    share = (takers - 1) / takers
    problem = MeanFieldProblem(params, Flow(share * flow.movement, flow.mean_quotes, flow.quoting))
    table = Table(depths.reshape(game.num_steps, -1, 2))
    law = state_laws(problem, table.controls)[-1].reshape(game.shape).sum(axis=0)
    fills = float(problem.initial @ evaluate(problem, table, Functional(fills=1.0))[0][0, :, 0])
    squares = float(law @ game.inventory**2) - 10.0**2 - game.order_size**2 * fills
    deviation = deviation_on_steps(game, depths, takers)
    assert deviation.value == pytest.approx(criterion_value(problem, table) + 0.5 * game.impact / takers * squares)
    assert deviation.value < deviation.blind < deviation.seeing
    for count, message in ((0, "num_takers = 0"), (12, "680,238 joint states.* at most 200,000")):
        with pytest.raises(ValueError, match=message):
            deviation_on_steps(game, depths, count)
    with pytest.raises(ValueError, match="of shape"):
        deviation_on_steps(game, depths[1:], takers)


def test_inventory_fluctuates_like_independent_takers():
    table = inventory_fluctuations((5, 50), players=20_000, **COUPLED)
    z = stats.norm.isf(FALSE_ALARM / 2)
    assert (abs(table["rms"] - table["rms_exact"]) < z * table["rms_error"]).all()
    assert loglog_slope(table["num_takers"], table["rms_exact"]) == pytest.approx(-0.5)
    assert table["histogram"].iloc[1] == pytest.approx(table["histogram_normal"].iloc[1], rel=0.1)


# --- The maker among few takers ---------------------------------------------------------------------------------------


def maker_brute_force(game, depths, takers):
    """A function from the maker's depths by (step, joint state) to her value: one dense chain of all players.

    Joint states are (her level, takers' levels); the takers have no signals.
    """
    levels, count, h = len(game.maker_inventory), game.shape[1], game.step_length
    states = list(itertools.product(range(levels), *[range(count)] * takers))
    place = {state: i for i, state in enumerate(states)}
    push = game.impact * game.order_size / takers

    def step(start, played, own, values):
        """One step from a joint state, in which quotes and her intensities rest."""
        quoting = [[d[side] for d, q in zip(played, start[1:], strict=True) if q != closed]
                   for side, closed in ((0, count - 1), (1, 0))]  # fmt: skip
        system = np.zeros((len(states) + 1, len(states) + 1))
        for state, i in place.items():
            held = game.maker_inventory[state[0]]
            system[i, -1] -= game.maker_penalty * held**2
            for player, side in itertools.product(range(takers + 1), range(2)):
                sign, after = 1 - 2 * side, list(state)
                after[player] += sign
                if not 0 <= after[player] < (count if player else levels):
                    continue
                if player:
                    depth = played[player - 1][side]
                    rate = game.taker_fill_rate[side] * math.exp(-game.taker_fill_decay[side] * depth)
                    earned = sign * held * push
                else:
                    met = quoting[1 - side]
                    depth = own[side]
                    rate = game.maker_fill_rate[side] * math.exp(
                        -game.maker_fill_decay[side] * (depth + (sum(met) / len(met) if met else math.inf))
                    )
                    earned = game.order_size * depth
                system[i, place[tuple(after)]] += rate
                system[i, i] -= rate
                system[i, -1] += rate * earned
        return (expm(h * system) @ [*values, 1.0])[place[start]]

    def played(n, state):
        return [depths[n, 0, q] for q in state[1:]]

    def value(policy):
        values = np.zeros(len(states))
        for n in reversed(range(game.num_steps)):
            values = np.array([step(s, played(n, s), policy(n, s), values) for s in states])
        return law @ values

    def best():
        values = np.zeros(len(states))
        for n in reversed(range(game.num_steps)):
            found = [
                minimize(
                    lambda d, s=s, n=n, after=values: -step(s, played(n, s), d, after), [0.3, 0.3],
                    method="Nelder-Mead", bounds=[(-game.max_depth, game.max_depth)] * 2,
                    options={"xatol": 1e-5, "fatol": 1e-9},
                ).fun
                for s in states
            ]  # fmt: skip
            values = -np.array(found)
        return law @ values

    law = functools.reduce(np.kron, [np.eye(levels)[game.maker_start], *[game.initial[0]] * takers])
    return value, best


MAKER_FEW = {**FEW, "maker_fill_rate": [30.0, 22.0], "maker_inventory_limit": 10.0, "maker_risk_aversion": 2e-3}


def maker_table(game):
    """The maker's optimum against the equilibrium's flow, (N, M, 2), and the takers' depths."""
    flow = solve_equilibrium_flow(game)
    params = MakerParams(*game, population=("equilibrium", ""), reward="pnl", role="maker")
    return solve(MeanFieldProblem(params, flow)).controls, best_response(game, flow)[0]


@pytest.mark.parametrize("takers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_maker_s_deviations_by_brute_force(takers):
    """Values of the joint chain; blind depths that a quasi-Newton method on all of them at once does not improve."""
    game = Game.create(**MAKER_FEW)
    own, depths = maker_table(game)
    crowd = joint_maker._Crowd(game, depths.reshape(game.num_steps, -1, 2), takers)
    deviation = maker_deviation_on_steps(game, depths, own, takers)
    value, best = maker_brute_force(game, depths, takers)
    assert deviation.value == pytest.approx(value(lambda n, s: own[n, s[0]]), abs=1e-9)
    assert deviation.seeing == pytest.approx(best(), abs=1e-6)
    blind = crowd.blind(own)
    assert deviation.blind == pytest.approx(value(lambda n, s: blind[n, s[0]]), abs=1e-9)
    assert 1e-5 < deviation.gain < deviation.seeing_gain
    gradient = approx_fprime(blind.ravel(), lambda x: value(lambda n, s: x.reshape(blind.shape)[n, s[0]]), 1e-5)
    assert np.abs(gradient).max() < 1e-3


def test_without_impact_and_with_constant_quotes_the_maker_gains_nothing():
    """Her fills and the mid do not depend on the takers' states then: she has the optimum of the limit."""
    game = Game.create(**{**MAKER_FEW, "impact": 0.0, "signal_limit": 1, "initial_law": [0.0, 0]})
    depths = np.broadcast_to(1.0 / game.taker_fill_decay, (game.num_steps, *game.shape, 2))
    problem = MeanFieldProblem(
        MakerParams(*game, population=("constant", ""), reward="pnl", role="maker"), constant_flow(game)
    )
    optimum = solve(problem)
    expected = float(problem.initial @ optimum.raw[0])
    deviation = maker_deviation_on_steps(game._replace(boundary_quotes="risk_neutral"), depths, optimum.controls, 2)
    assert deviation == pytest.approx((2, *[expected] * 3), rel=1e-12)
    worse = maker_deviation_on_steps(
        game._replace(boundary_quotes="risk_neutral"), depths, np.full(optimum.controls.shape, 0.2), 2
    )
    assert worse.blind == pytest.approx(expected, rel=1e-9)
    assert worse.seeing == pytest.approx(expected, rel=1e-12)
    assert worse.value < expected - 1.0
    for wrong, message in (
        ({"num_takers": 0}, "num_takers = 0"),
        ({"num_takers": 20}, "have 9,324,315 joint states, 3 times the multisets of 20 of 9; at most 200,000"),
        ({"num_takers": 1, "maker_depths": depths}, "maker_depths of shape"),
        ({"num_takers": 1, "depths": depths[:1]}, "depths of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            maker_deviation_on_steps(game, **{"depths": depths, "maker_depths": optimum.controls, **wrong})


@pytest.mark.long
@pytest.mark.parametrize("takers", [1, 3])
def test_the_maker_earns_in_play_what_the_joint_chain_says(takers, check_mean):
    """By simulation of the N-player game, with takers whose depths depend on signals too."""
    arguments = {**LOPSIDED, "inventory_limit": [10.0, 10.0], "initial_law": [10.0, 1], "num_steps": 4}
    game = Game.create(**arguments)
    actions, quotes = quote_table(game), np.array([0.3, 0.4], np.float32)
    depths = actions.astype(np.float64) * game.max_depth
    own = np.broadcast_to(quotes.astype(np.float64) * game.max_depth, (game.num_steps, len(game.maker_inventory), 2))
    crowd = joint_maker._Crowd(game, depths.reshape(game.num_steps, -1, 2), takers)
    _, makers, _ = play(40_000, takers, actions, maker=quotes, **arguments)
    check_mean(makers, crowd.value(own), alarms=FALSE_ALARM)


@pytest.mark.parametrize(("states", "players"), [(1, 3), (4, 1), (3, 3), (5, 4)])
def test_players_who_cannot_be_told_apart(states, players):
    """Multisets against all tuples: what is behind a move of each player, its transpose, and their law."""
    rng = np.random.default_rng(states)
    sets = Multisets(states, players)
    tuples = np.array(list(itertools.product(range(states), repeat=players)))
    places, shape = sets.place(tuples), (states,) * players
    moves, values = rng.dirichlet(np.ones(states), states), rng.normal(size=(1, len(sets.members[players])))
    full = values[0, places].reshape(shape)
    for axis in range(players):
        full = np.moveaxis(np.tensordot(moves, full, axes=(1, axis)), 0, axis)
    behind = sets.behind(values, moves, players)
    np.testing.assert_allclose(behind[0, places], full.ravel(), atol=1e-14)
    law = sets.law(moves[0], players)[None]
    alone = functools.reduce(np.multiply.outer, [moves[0]] * players)
    np.testing.assert_allclose(law[0], np.bincount(places, alone.ravel()), atol=1e-14)
    assert (sets.forward(law, moves, players) * values).sum() == pytest.approx((law * behind).sum(), abs=1e-14)
