"""Exploitability, computed with this project's dynamic programming, against MFGLib's on games of its own suite.

The games are finite, with other rewards and transitions than ours: what is compared is the machinery - best answer,
value of a stochastic policy, flow - on which `mmgym.baselines.mean_field` stands.
"""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch (extra agents) is not installed")
pytest.importorskip("mfglib.env", reason="mfglib is not installed")

import mfglib.alg  # noqa: F401  # before mfglib.scoring, which cannot be imported first
import torch
from mfglib.env import Environment
from mfglib.scoring import exploitability_score

from mmgym.baselines.frozen import Functional, Table, evaluate, solve

GAMES = {
    "rock_paper_scissors": {},
    "susceptible_infected": {"T": 20},
    "beach_bar": {"T": 6, "n": 10, "bar_loc": 3, "p_still": 0.6},
}


class GivenFlow:
    """A player of an MFGLib game against a flow: `mmgym.baselines.frozen.FrozenProblem`; the control is the action."""

    num_controls = 1

    def __init__(self, game, flow):
        self.num_steps, self.num_states, self.num_actions = game.T + 1, game.n_states, game.n_actions
        self.initial = game.mu0.double().numpy().ravel()
        self.criterion = Functional(gain=1.0)
        shape = (self.num_states, self.num_actions)
        laws = [torch.from_numpy(law).reshape(*game.S, *game.A) for law in flow]
        self.rewards = np.stack([game.reward(t, law).double().numpy().reshape(shape) for t, law in enumerate(laws)])
        self.moves = np.stack(
            [game.prob(t, law).double().numpy().reshape(self.num_states, *shape) for t, law in enumerate(laws)]
        )

    def terminal(self, functional):
        return np.zeros((self.num_states, 1))

    def backward(self, n, states, controls, values, functional):
        actions = controls[:, 0].astype(int)
        worth = self.rewards[n, states, actions] + values[:, 0] @ self.moves[n][:, states, actions]
        return worth[:, None]

    def improve(self, n, values, guess=None):
        total = self.rewards[n] + np.einsum("tsa,t->sa", self.moves[n], values[:, 0])
        return total.argmax(axis=1)[:, None].astype(float), total.max(axis=1)[:, None]

    def to_value(self, values, log_scale):
        return values


def exploitability(game, policy):
    """Exploitability of a policy (T + 1, S, A), and the best answer to its flow."""
    steps, states, actions = policy.shape
    flow, law = np.empty(policy.shape), game.mu0.double().numpy().ravel()
    for n in range(steps):
        flow[n] = law[:, None] * policy[n]
        moves = game.prob(n, torch.from_numpy(flow[n]).reshape(*game.S, *game.A)).double().numpy()
        law = np.einsum("tsa,sa->t", moves.reshape(states, states, actions), flow[n])
    problem = GivenFlow(game, flow)
    controls = np.broadcast_to(np.arange(actions, dtype=float)[:, None], (steps, states, actions, 1))
    value = problem.initial @ evaluate(problem, Table(controls, policy))[0][0, :, 0]
    answer = solve(problem)
    return float(problem.initial @ answer.raw[0] - value), answer.controls[..., 0].astype(int), flow


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def theirs(game, policy):
    shaped = torch.from_numpy(policy).reshape(game.T + 1, *game.S, *game.A)
    return exploitability_score(game, shaped)


@pytest.mark.parametrize("name", GAMES)
def test_random_policies_are_as_exploitable_as_mfglib_says(name):
    game = getattr(Environment, name)(**GAMES[name])
    generator = np.random.default_rng(0)
    for concentration in (0.2, 1.0, 10.0):
        shape = (game.T + 1, game.n_states, game.n_actions)
        policy = generator.dirichlet(np.full(game.n_actions, concentration), size=shape[:2])
        assert exploitability(game, policy)[0] == pytest.approx(theirs(game, policy), rel=1e-6, abs=1e-7)
        assert exploitability(game, policy)[0] > 0.0


@pytest.mark.parametrize("name", ["rock_paper_scissors", "beach_bar"])  # moves do not depend on the crowd
def test_fictitious_play_solves_their_games(name):
    """Our best answers, averaged: the mixture that our code calls hardly exploitable is so for MFGLib too."""
    game = getattr(Environment, name)(**GAMES[name])
    policy = np.full((game.T + 1, game.n_states, game.n_actions), 1.0 / game.n_actions)
    first, answer, flow = exploitability(game, policy)
    average = flow.copy()
    for k in range(2, 302):
        pure = np.eye(game.n_actions)[answer]
        _, _, other = exploitability(game, pure)
        average += (other - average) / k
        mass = average.sum(axis=2, keepdims=True)
        policy = np.divide(average, mass, out=np.full_like(average, 1.0 / game.n_actions), where=mass > 0.0)
        last, answer, _ = exploitability(game, policy)
    assert last < 0.05 * first
    assert last == pytest.approx(theirs(game, policy), rel=1e-6, abs=1e-7)
