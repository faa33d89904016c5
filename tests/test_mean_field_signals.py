"""Signals of several units in the mean-field game: a unit of their own, and jumps by several levels.

The second method has its generator from the rule itself, level by level. Statistical checks use fixed seeds; each has a
false-alarm rate of 1e-4.
"""

import gymnasium
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from mmgym.baselines.frozen import Functional, Table, criterion_value, solve, state_laws
from mmgym.baselines.mean_field import MeanFieldProblem, population_exploitability
from mmgym.baselines.mean_field.joint import deviation_on_steps
from mmgym.envs.mean_field_players import MeanFieldPlayers
from mmgym.models import mean_field_limit as limit
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.models.mean_field_flow import best_response, flow_file, solve_equilibrium_flow, step_system
from mmgym.models.mean_field_game import PRESETS, Game

FALSE_ALARM = 1e-4  # of each statistical check
JUMPS = {
    "signal_limit": 3, "signal_unit": 0.7, "signal_jump_sizes": [0.5, 0.0, 0.3, 0.2], "signal_rate": [6.0, 3.0],
    "inventory_limit": [30.0, 20.0], "horizon": 0.4, "num_steps": 10, "impact": 0.03, "initial_law": [10.0, -2],
    "taker_risk_aversion": 1e-3, "taker_fill_rate": [60.0, 45.0],
}  # fmt: skip


def generator(levels, rates, sizes):
    """Of the signal's levels, rows sum to 0: a jump beyond the limit does not happen."""
    count = 2 * levels + 1
    matrix = np.zeros((count, count))
    for start in range(count):
        for sign, rate in ((1, rates[0]), (-1, rates[1])):
            for size, share in enumerate(sizes, 1):
                end = start + sign * size
                if 0 <= end < count:
                    matrix[start, end] += rate * share
                    matrix[start, start] -= rate * share
    return matrix


OWN = generator(3, (6.0, 3.0), (0.5, 0.0, 0.3, 0.2))
SIGNAL = 0.7 * np.arange(-3.0, 4.0)


def test_generator_and_step():
    game = Game.create(**JUMPS)
    np.testing.assert_allclose(game.signal_generator, OWN, atol=1e-13)
    np.testing.assert_allclose(game.signal, SIGNAL)
    system = step_system(game)
    np.testing.assert_allclose(system.moves, expm(0.04 * OWN), atol=1e-13)
    for node, belief in zip(system.nodes, system.beliefs.T, strict=True):
        np.testing.assert_allclose(belief, expm(0.04 * node * OWN) @ SIGNAL, atol=1e-12)


def chain(game, depths):
    """Generator of the joint chain (signal, inventory) at fixed depths, the gain of its fills, and both coordinates."""
    count = game.shape[1]
    rates = game.taker_fill_rate * np.exp(-game.taker_fill_decay * depths)
    up, down = np.diag(np.full(count - 1, rates[0]), 1), np.diag(np.full(count - 1, rates[1]), -1)
    up, down = np.kron(np.eye(7), up), np.kron(np.eye(7), down)
    matrix = np.kron(OWN, np.eye(count)) + up + down - np.diag((up + down).sum(axis=1))
    return matrix, up, down, np.repeat(SIGNAL, count), np.tile(game.inventory, 7)


def test_moments_and_exponentials_of_a_step():
    """Against dense matrix exponentials of the joint chain, without impact."""
    params = TakerParams.create(**{**JUMPS, "impact": 0.0, "population": "constant"})
    game, problem = params.game, MeanFieldProblem(params)
    depths, rng = np.array([0.1, 0.35]), np.random.default_rng(2)
    matrix, up, down, signal, held = chain(game, depths)
    count, h, states = len(matrix), game.step_length, np.arange(len(matrix))
    rest = rng.normal(size=count)
    reward = signal * held - game.taker_penalty * held**2
    gains = game.order_size * depths
    variance = (game.volatility * held) ** 2
    controls = np.tile(depths, (count, 1))
    earned = reward + gains[0] * up.sum(axis=1) + gains[1] * down.sum(axis=1)
    first = np.block([[matrix, earned[:, None]], [np.zeros((1, count + 1))]])
    expected = (expm(h * first) @ [*rest, 1.0])[:-1]
    criterion = problem.criterion
    found = problem.backward(0, states, controls, rest[:, None], criterion)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-11, atol=1e-11)
    zero = np.zeros((count, count))
    cross = 2.0 * (np.diag(reward) + gains[0] * up + gains[1] * down)
    square = gains[0] ** 2 * up.sum(axis=1) + gains[1] ** 2 * down.sum(axis=1) + variance
    second = np.block(
        [[matrix, cross, square[:, None]], [zero, matrix, earned[:, None]], [np.zeros((1, 2 * count + 1))]]
    )
    both = expm(h * second) @ [*(rest**2 + 1.0), *rest, 1.0]
    moments = Functional(gain=1.0, price=1.0, penalty=1.0, moments=2)
    found = problem.backward(0, states, controls, np.stack([rest, rest**2 + 1.0], axis=1), moments)
    np.testing.assert_allclose(found, np.stack([both[count:-1], both[:count]], axis=1), rtol=1e-10, atol=1e-10)
    for z in (-0.02, 0.01 + 0.03j):
        tilted = matrix + (np.exp(z * gains[0]) - 1.0) * up + (np.exp(z * gains[1]) - 1.0) * down
        tilted = tilted + np.diag(z * reward + 0.5 * z * z * variance)
        expected = expm(h * tilted) @ np.exp(z * rest)
        values = np.exp(z * rest)[:, None]
        functional = Functional(gain=1.0, price=1.0, penalty=1.0, exponents=np.array([z]))
        found = problem.backward(0, states, controls, values, functional)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-10)


def test_equations_in_continuous_time():
    """HJB and forward equation by DOP853, with the signal's generator from its rule."""
    game = Game.create(**{**JUMPS, "impact": 0.0})
    times = limit.time_grid(game, 1000)
    values, quotes = limit.taker_optimum(game, times, np.zeros(2 * len(times) - 1))
    q, z, box = game.inventory, game.order_size, game.max_depth

    def best(values):
        w = values.reshape(7, -1)
        gaps = np.diff(w, axis=1)
        depths = np.stack(
            [
                np.clip(1.0 / k - sign * gaps / z, -box, box)
                for k, sign in zip(game.taker_fill_decay, (1, -1), strict=True)
            ]
        )
        rates = game.taker_fill_rate[:, None, None] * np.exp(-game.taker_fill_decay[:, None, None] * depths)
        return w, gaps, depths, rates

    def backward(_, flat):
        w, gaps, depths, rates = best(flat)
        slope = SIGNAL[:, None] * q - game.taker_penalty * q**2 + OWN @ w
        slope[:, :-1] += rates[0] * (z * depths[0] + gaps)
        slope[:, 1:] += rates[1] * (z * depths[1] - gaps)
        return slope.ravel()

    tight = {"method": "DOP853", "rtol": 1e-9, "atol": 1e-9}
    solved = solve_ivp(backward, (0.0, game.horizon), np.zeros(values[0].size), dense_output=True, **tight)
    np.testing.assert_allclose(values[0].ravel(), solved.y[:, -1], atol=1e-6)
    feedback = limit.feedback_of_quotes(quotes, game.taker_fill_decay)
    flow = limit.induced_flow(game, times, feedback)
    np.testing.assert_allclose(limit.evaluate_taker(game, times, flow.drift, feedback)[0], values[0], atol=1e-5)

    def forward(t, flat):
        p, rates = flat.reshape(7, -1), best(solved.sol(game.horizon - t))[3]
        slope = OWN.T @ p
        net = rates[0] * p[:, :-1] - rates[1] * p[:, 1:]
        slope[:, :-1] -= net
        slope[:, 1:] += net
        return slope.ravel()

    law = solve_ivp(forward, (0.0, game.horizon), game.initial.ravel(), **tight).y[:, -1]
    np.testing.assert_allclose(flow.laws[-1].ravel(), law, atol=1e-7)


def solved(steps):
    """The takers' value in the equilibrium on so many steps, which nobody gains by leaving."""
    game = Game.create(**{**JUMPS, "num_steps": steps})
    depths, values = best_response(game, solve_equilibrium_flow(game))
    gap = population_exploitability(game, depths.reshape(steps, -1, 2))
    assert abs(gap.exploitability) < 1e-7
    return float((game.initial * values[0]).sum())


@pytest.mark.long
def test_equilibria_on_steps_tend_to_that_of_continuous_time():
    """The distance is of first order in the step."""
    continuous = limit.solve_equilibrium(Game.create(**JUMPS), 1e-6)
    missed = [continuous.taker_value - solved(steps) for steps in (10, 40)]
    assert missed[0] / missed[1] == pytest.approx(4.0, rel=0.3)
    assert 0.0 < missed[1] < 0.05 * continuous.taker_value


def test_deviations_of_few_takers():
    game = Game.create(**{**JUMPS, "inventory_limit": 10.0, "signal_limit": 2, "num_steps": 4})
    deviation = deviation_on_steps(game, best_response(game, solve_equilibrium_flow(game))[0], 2)
    assert deviation.value < deviation.blind < deviation.seeing


@pytest.mark.long
@pytest.mark.parametrize("players", [False, True])
def test_play_follows_the_law(players, check_mean):
    """Signals and rewards of whole episodes against the exact law and score; of the game of many takers too."""
    arguments = {**JUMPS, "impact": 0.0 if players else 0.03, "reward": "expected"}
    own = {"population": "constant"}
    params = TakerParams.create(**arguments, **own)
    problem, quote = MeanFieldProblem(params), np.float32(0.2)
    depths = np.full((10, problem.num_states, 2), np.float64(quote) * params.max_depth)
    if players:
        batch = MeanFieldPlayers(400, num_takers=50, **arguments)
        batch.reset(6)
        total = np.zeros((400, 50))
        for _ in range(10):
            total += batch.step(np.full((400, 50, 2), quote), np.zeros((400, 2))).taker_rewards
        total, signal, lots = total.ravel(), batch.signal.ravel(), batch.inventory.ravel()
    else:
        envs = gymnasium.make_vec("mmgym/MeanFieldTaker-v0", num_envs=20_000, **arguments, **own)
        observations, _ = envs.reset(seed=6)
        total = np.zeros(20_000)
        for _ in range(10):
            observations, rewards, *_ = envs.step(np.full((20_000, 2), quote))
            total += rewards
        _, lots, signal = envs.unwrapped.to_state(observations)
    check_mean(total, criterion_value(problem, Table(depths)), alarms=FALSE_ALARM)
    law = state_laws(problem, depths)[-1]
    cells = (signal + 3) * problem.levels + lots + params.short
    counts, expected = np.bincount(cells, minlength=len(law)), 20_000 * law
    often = expected > 5
    scale = counts[often].sum() / expected[often].sum()
    assert stats.chisquare(counts[often], expected[often] * scale).pvalue > FALSE_ALARM
    direct = np.bincount(signal + 3, minlength=7)
    assert stats.chisquare(direct, 20_000 * expm(0.4 * OWN)[1]).pvalue > FALSE_ALARM


def test_observations_infos_and_arguments():
    env = gymnasium.make("mmgym/MeanFieldTaker-v0", population="constant", **JUMPS).unwrapped
    observation, info = env.reset(seed=1)
    assert env.to_state(observation)[1:] == (1, -2)
    assert info["signal"] == -2
    assert observation[2] == np.float32(-2.0 / 3.0)
    assert env.arguments["signal_jump_sizes"] == [0.5, 0.0, 0.3, 0.2]
    assert env.params == TakerParams.create(**env.arguments)
    maker = MakerParams.create(**{**JUMPS, "population": "constant", "signal_unit": 5.0})
    assert maker.impact_scale == 15.0
    assert float(solve(MeanFieldProblem(maker)).raw[0].max()) > 0.0


def test_games_with_signals_of_one_unit_keep_their_files():
    """The shipped equilibria, and the key under which one is kept, know nothing of the new arguments."""
    assert flow_file(Game.create()) == flow_file(Game.create(signal_unit=1.0, signal_jump_sizes=[1.0]))
    assert flow_file(Game.create()) != flow_file(Game.create(signal_unit=2.0))
    assert set(PRESETS) == {"paper", "fast_signals", "coupled", "strong_impact"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"signal_jump_sizes": 1.0}, "signal_jump_sizes = 1.0"),
        ({"signal_jump_sizes": []}, "1 to 6 probabilities"),
        ({"signal_jump_sizes": [0.5, 0.4]}, "with the sum 1"),
        ({"signal_jump_sizes": [1.0, 0.0]}, "the last above 0"),
        ({"signal_jump_sizes": [1.5, -0.5]}, "signal_jump_sizes"),
        ({"signal_jump_sizes": [0.0] * 6 + [1.0]}, "1 to 6 probabilities"),
        ({"signal_unit": 0.0}, "signal_unit = 0.0"),
    ],
)
def test_signals_that_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Game.create(**{**JUMPS, **wrong})
