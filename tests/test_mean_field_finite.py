"""The mean-field game as tables, and for MFGLib and OpenSpiel: their passes against those of the environment."""

import numpy as np
import pytest
from scipy.linalg import expm

from mmgym.baselines.frozen import Table, criterion_value
from mmgym.baselines.mean_field import MeanFieldProblem, flow_of_policy
from mmgym.models.mean_field import TakerParams
from mmgym.models.mean_field_finite import finite_game
from mmgym.models.mean_field_flow import best_response, equilibrium_flow
from mmgym.models.mean_field_game import Game

ARGUMENTS = {
    "inventory_limit": [20.0, 10.0], "signal_limit": 1, "initial_law": [20.0, 1], "horizon": 0.4, "num_steps": 6,
    "impact": 0.05, "signal_rate": [3.0, 1.0], "taker_fill_rate": [70.0, 45.0], "taker_fill_decay": [2.0, 2.9],
}  # fmt: skip
DEPTHS = (-0.1, 0.3, 0.6, 1.2)


def test_a_finite_game_against_matrix_exponentials():
    """Transitions, and the reward with a crowd, by Simpson's rule on dense matrices."""
    game = Game.create(**ARGUMENTS)
    finite = finite_game(game, DEPTHS)
    law = np.random.default_rng(0).dirichlet(np.ones(12 * 16)).reshape(12, 16)
    times, held = np.linspace(0.0, game.step_length, 401), np.tile(game.inventory, 3)
    paths, laws, earned = np.empty((12, 16, 401)), np.empty((16, 12, 12)), np.empty((12, 16, 401))
    for a in range(16):
        depth = np.array([DEPTHS[a // 4], DEPTHS[a % 4]])
        rates = np.array([70.0, 45.0]) * np.exp(-np.array([2.0, 2.9]) * depth)
        walk = np.diag(np.full(3, rates[0]), 1) + np.diag(np.full(3, rates[1]), -1)
        walk -= np.diag(walk.sum(axis=1))
        generator = np.kron(game.signal_generator, np.eye(4)) + np.kron(np.eye(3), walk)
        laws[a] = expm(generator * game.step_length)
        gain = 10.0 * (rates[0] * depth[0] * (held < 20.0) + rates[1] * depth[1] * (held > -10.0))
        gain += np.repeat(game.signal, 4) * held - game.taker_penalty * held**2
        part, now = expm(generator * times[1]), np.eye(12)
        for i in range(401):
            paths[:, a, i], earned[:, a, i] = now @ held, now @ gain
            now = now @ part
    assert finite.transitions == pytest.approx(laws, abs=1e-12)
    weights = np.full(401, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    weights *= times[1] / 3.0
    mean = np.einsum("sa,sai->i", law, paths)
    drift = game.impact * np.gradient(mean, times, edge_order=2)
    expected = (earned + paths * drift) @ weights
    assert finite.reward(law) == pytest.approx(expected, abs=2e-4)  # the drift by finite differences
    assert np.abs(finite.reward(law) - finite.own).max() > 0.1
    assert np.abs(expected).max() < finite.most
    for depths, message in (([], "at least one depth"), ([2.0], r"depths\[0\] = 2.0")):
        with pytest.raises(ValueError, match=message):
            finite_game(game, depths)


@pytest.fixture
def doubles():
    pytest.importorskip("mfglib.alg", reason="mfglib is not installed")
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


def judged(game, policy, depths):
    """Exploitability of a policy (N, S, A) among policies on the depths, and its value, by the environment's law."""
    pairs = np.stack(np.meshgrid(depths, depths, indexing="ij"), axis=-1).reshape(-1, 2)
    states, actions = policy.shape[1:]
    table = Table(np.broadcast_to(pairs, (game.num_steps, states, actions, 2)).copy(), policy)
    flow = flow_of_policy(game, table)
    params = TakerParams(*game, population=("constant", ""), reward="pnl", role="taker")
    problem, best = MeanFieldProblem(params, flow), np.zeros((states, 1))
    for n in reversed(range(game.num_steps)):
        where, what = np.repeat(np.arange(states), actions), np.tile(pairs, (states, 1))
        best = problem.backward(n, where, what, best, problem.criterion).reshape(states, actions).max(axis=1)[:, None]
    value = criterion_value(problem, table)
    return float(problem.initial @ best[:, 0]) - value, value


def test_exploitability_by_mfglib_is_that_of_the_environment(doubles):
    from mfglib.scoring import exploitability_score

    from mmgym.adapters.mfglib import mfglib_environment

    game = Game.create(**ARGUMENTS)
    env = mfglib_environment(game, DEPTHS)
    for seed in range(3):
        policy = np.random.default_rng(seed).dirichlet(np.full(16, 0.3), (6, 12))
        scored = exploitability_score(env, doubles.tensor(policy.reshape(6, 3, 4, 4, 4)))
        gap, _ = judged(game, policy, DEPTHS)
        assert scored == pytest.approx(gap, abs=1e-9)
        assert gap > 1.0


@pytest.mark.long
def test_mfglib_finds_the_equilibrium(doubles):
    """Its mirror descent on depths between which those of the equilibrium lie comes near the equilibrium's value."""
    from mfglib.alg import OnlineMirrorDescent

    from mmgym.adapters.mfglib import mfglib_environment

    game = Game.create(**ARGUMENTS)
    depths = np.linspace(-0.3, 1.2, 9)
    policies, scores, _ = OnlineMirrorDescent(alpha=2.0).solve(mfglib_environment(game, depths), max_iter=60)
    gap, value = judged(game, policies[-1].numpy().reshape(6, 12, 81), depths)
    assert gap == pytest.approx(scores[-1], abs=1e-9)
    assert gap < 0.002 * scores[0]
    values = best_response(game, equilibrium_flow(game))[1]
    assert value == pytest.approx(float((game.initial * values[0]).sum()), rel=0.01)


def test_nash_conv_by_open_spiel_is_the_exploitability():
    """Its own forward and backward passes over the nodes of the game, with a policy drawn at random."""
    pytest.importorskip("pyspiel", reason="open_spiel is not installed")
    from open_spiel.python.mfg.algorithms.nash_conv import NashConv
    from open_spiel.python.policy import Policy

    from mmgym.adapters.open_spiel import open_spiel_game

    arguments = {**ARGUMENTS, "signal_limit": 0, "initial_law": [20.0, 0], "num_steps": 3, "horizon": 0.2}
    game, depths = Game.create(**arguments), (0.0, 0.4, 0.9)
    table = np.random.default_rng(0).dirichlet(np.full(9, 0.3), (3, 4))
    spiel = open_spiel_game(game, depths)

    class Drawn(Policy):
        def action_probabilities(self, state, player_id=None):
            if state.legal_actions() == [0]:
                return {0: 1.0}
            return dict(enumerate(table[state.step, state.place]))

    conv = NashConv(spiel, Drawn(spiel, [0]))
    gap, value = judged(game, table, depths)
    assert conv.nash_conv() == pytest.approx(gap, abs=1e-9)
    assert conv.br_values()[0] == pytest.approx(gap + value, abs=1e-9)
    assert gap > 1.0
    state = spiel.new_initial_state()
    for _ in range(3):
        state.apply_action(int(state.chance_outcomes()[0][0]))
        state.apply_action(4)
        state.update_distribution([1.0 / 36] * 36)
        state.apply_action(0)
    assert state.is_terminal()
    assert np.isfinite(state.returns()[0])
