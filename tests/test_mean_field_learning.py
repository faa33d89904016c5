"""Algorithms of mean-field games: their fixed point is the equilibrium, and their curves are exact."""

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import minimize

from mmgym.baselines.frozen import Table
from mmgym.baselines.mean_field import population_exploitability
from mmgym.baselines.mean_field.learning import learn
from mmgym.models.mean_field_flow import best_response, constant_flow, solve_equilibrium_flow
from mmgym.models.mean_field_game import Game

TINY = {"inventory_limit": 10.0, "signal_limit": 0, "horizon": 0.2, "num_steps": 2, "impact": 0.05}
SMALL = {
    "inventory_limit": 30.0, "signal_limit": 1, "initial_law": [20.0, 1], "horizon": 0.4, "num_steps": 10,
    "impact": 0.05,
}  # fmt: skip


class Dense:
    """The tiny game by dense matrices on (inventory, moments of the crowd): nothing of the package is used."""

    def __init__(self, game):
        self.game, self.h = game, game.horizon / game.num_steps
        self.q = np.array([-10.0, 0.0, 10.0])
        self.parts = 100  # Simpson intervals of a step

    def generator(self, depths):
        rates = self.game.taker_fill_rate * np.exp(-self.game.taker_fill_decay * depths)
        move = np.zeros((3, 3))
        move[:2, 1:] += np.diag(rates[:2, 0])
        move[1:, :2] += np.diag(rates[1:, 1])
        return move - np.diag(move.sum(axis=1)), rates

    def rows(self, depths):
        """Generators of a taker in each state: her depths stand for the step, wherever she goes."""
        return [self.generator(np.tile(depths[s], (3, 1))) for s in range(3)]

    def drifts(self, tables):
        """``kappa d E[q] / dt`` at the Simpson points of each step, of a crowd that plays the tables with shares."""
        laws, drifts = [share * np.array([0.0, 0.0, 1.0]) for share, _ in tables], []
        for n in range(self.game.num_steps):
            times, drift = np.linspace(0.0, self.h, 2 * self.parts + 1), 0.0
            for k, (_, table) in enumerate(tables):
                after = 0.0
                for s, (move, _) in enumerate(self.rows(table[n])):
                    walk = laws[k][s] * np.eye(3)[s]
                    step = expm(move * times[1])
                    path = np.empty((len(times), 3))
                    for i in range(len(times)):
                        path[i] = walk
                        walk = walk @ step
                    drift = drift + self.game.impact * path @ move @ self.q
                    after = after + path[-1]
                laws[k] = after
            drifts.append(drift)
        return drifts

    def action_value(self, depths, state, drift, after):
        move, rates = self.generator(np.tile(depths, (3, 1)))
        z, penalty = self.game.order_size, self.game.taker_penalty
        earned = np.array([rates[0, 0] * depths[0], rates[0, 0] * depths[0] + rates[0, 1] * depths[1], 0.0]) * z
        earned[2] = z * rates[0, 1] * depths[1]
        step, law = expm(move * self.h / (2 * self.parts)), np.eye(3)[state]
        weights = np.ones(2 * self.parts + 1)
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        total = 0.0
        for i, weight in enumerate(weights * self.h / (6 * self.parts)):
            total += weight * law @ (earned - penalty * self.q**2 + drift[i] * self.q)
            last, law = law, law @ step
        return total + last @ after

    def exploitability(self, tables):
        drifts, best, own = self.drifts(tables), np.zeros(3), [np.zeros(3) for _ in tables]
        for n in reversed(range(self.game.num_steps)):
            own = [
                np.array([self.action_value(table[n, s], s, drifts[n], own[k]) for s in range(3)])
                for k, (_, table) in enumerate(tables)
            ]
            best = np.array([-self.least(s, drifts[n], best) for s in range(3)])
        return best[2] - sum(share * values[2] for (share, _), values in zip(tables, own, strict=True))

    def least(self, state, drift, after):
        def loss(depths):
            return -self.action_value(depths, state, drift, after)

        return minimize(loss, [0.4, 0.4], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).fun


@pytest.mark.long
def test_exploitability_of_a_mixture_by_dense_matrices():
    game = Game.create(**TINY, initial_law=[10.0, 0])
    rounds = list(learn(game, "damped_fictitious_play", 2, 0.3))
    table = rounds[-1].population.table  # (N, S, M, 2): the kinds, 0.7 and 0.3
    kinds = [np.asarray(table.controls[:, :, m]) for m in range(table.controls.shape[2])]
    assert len(kinds) == 2
    dense = Dense(game).exploitability(list(zip((0.7, 0.3), kinds, strict=True)))
    assert rounds[-1].population.exploitability == pytest.approx(dense, abs=1e-5)
    assert dense > 1e-3


LONG = (("mirror_descent", 0.2, 120), ("prior_descent", 0.3, 200), ("anderson", None, 60))


@pytest.mark.parametrize(
    ("algorithm", "rate", "rounds"),
    [("newton", None, 12), *(pytest.param(*given, marks=pytest.mark.long) for given in LONG)],
)
def test_fixed_points_are_the_equilibrium(algorithm, rate, rounds):
    """Each against the equilibrium's own solver, and by the search of the optima."""
    game = Game.create(**SMALL)
    *_, last = learn(game, algorithm, rounds, rate)
    quotes, values = best_response(game, solve_equilibrium_flow(game))
    equilibrium = float((game.initial * values[0]).sum())
    assert last.population.value == pytest.approx(equilibrium, rel=1e-6)
    judged = population_exploitability(game, last.population.table)
    assert judged.exploitability == pytest.approx(last.population.exploitability, abs=1e-8)
    assert abs(judged.exploitability) < 1e-6 * equilibrium
    reached = last.population.problem.initial > 0.0
    learned = np.asarray(last.population.table.controls)[0][reached]
    np.testing.assert_allclose(learned, quotes.reshape(game.num_steps, -1, 2)[0][reached], atol=1e-3)


def test_shares_of_mixtures():
    game = Game.create(**SMALL)
    answers = {name: [r.population for r in learn(game, name, 3)] for name in ("best_response", "fictitious_play")}
    assert answers["best_response"][2].table.controls.shape[2] == 1
    np.testing.assert_array_equal(answers["fictitious_play"][2].table.controls.shape[2], 3)
    again = population_exploitability(game, Table(answers["best_response"][0].answer)).exploitability
    assert answers["best_response"][1].exploitability == pytest.approx(again, abs=1e-8)


def laws_by_matrices(game, table):
    """Laws (N, S) of a taker with depths (N, S, 2) that stand for each step, from the game's parameters."""
    levels, count = game.shape[1], game.shape[0] * game.shape[1]
    signals, laws = expm(game.signal_generator * game.step_length), [game.initial.ravel()]
    for depths in table[:-1]:
        after = np.zeros(count)
        for s in range(count):
            rates = 70.0 * np.exp(-2.375 * depths[s])
            walk = np.diag(np.full(levels - 1, rates[0]), 1) + np.diag(np.full(levels - 1, rates[1]), -1)
            walk -= np.diag(walk.sum(axis=1))
            moved = expm(walk * game.step_length)[s % levels]
            after += laws[-1][s] * np.outer(signals[s // levels], moved).ravel()
        laws.append(after)
    return np.array(laws)


def test_what_networks_learn():
    game, given = Game.create(**SMALL), []

    def keep(depths, laws):
        given.append((depths, laws))
        return depths

    deep, plain = ([r.population for r in learn(game, "mirror_descent", 3, 0.2, network=n)] for n in (keep, None))
    for one, other in zip(deep, plain, strict=True):  # a network that learns all is a table
        np.testing.assert_array_equal(one.table.controls, other.table.controls)
    np.testing.assert_allclose(given[2][1], laws_by_matrices(game, deep[1].table.controls), atol=1e-10)
    given.clear()
    played = [r.population for r in learn(game, "damped_fictitious_play", 3, 0.3, network=keep)]
    first = best_response(game, constant_flow(game))[0].reshape(game.num_steps, -1, 2)
    kinds = [first, played[0].answer, played[1].answer]
    laws = np.stack([laws_by_matrices(game, kind) for kind in kinds])
    takers = np.array([0.49, 0.21, 0.3])[:, None, None] * laws
    fills = sum(there[..., None] * np.exp(-2.375 * kind) for there, kind in zip(takers, kinds, strict=True))
    there = takers.sum(axis=0)
    np.testing.assert_allclose(given[2][1], there, atol=1e-10)
    some = there > 1e-6
    shares = np.exp(-2.375 * played[2].table.controls)
    np.testing.assert_allclose(shares[some], fills[some] / there[some][:, None], rtol=1e-6)


def test_what_is_refused():
    game = Game.create(**SMALL)
    for arguments, message in (
        (("deep_play", 3), "must be one of best_response"),
        (("newton", 3, None, lambda population: population.answer), "with learned answers"),
        (("newton", 3, 0.5), "newton has none"),
        (("mirror_descent", 3, 0.0), "rate = 0.0"),
        (("mirror_descent", 0), "rounds = 0"),
        (("newton", 3, None, None, lambda depths, laws: depths), "is not allowed with a network"),
        (("fictitious_play", 3, None, lambda population: population.answer, lambda depths, laws: depths), "with best"),
    ):
        with pytest.raises(ValueError, match=message):
            learn(game, *arguments)
