r"""How crowds of takers learn: exact tabular algorithms of mean-field games, with exact curves of exploitability.

An algorithm makes one population after another. Each is a table of depths that all takers play; its flow, its value and
the best answer to it are those of the frozen-control game, without sampling, so that its exploitability

    (value of the best answer to the population's flow) - (value of the population in its own flow)

is exact. Best answers are those of `mmgym.models.mean_field_flow.best_response`, which the equilibrium is found with;
`mmgym.baselines.mean_field.population_exploitability` judges a population with a search on a grid besides.

What is averaged are populations, never depths or flows alone: a `Mixture` of kinds of takers is played as one
table, in which each step and state draws a kind by its part of those who are there, so that its flow is the mixture of
the kinds' flows (Perrin et al. 2020, "Fictitious play for mean field games: continuous time analysis and applications",
section 3).

- ``best_response``: all takers play the best answer to the population before.
- ``fictitious_play``: the uniform mixture of all best answers so far (Perrin et al. 2020, in discrete rounds).
- ``damped_fictitious_play``: the newest answer has the share ``rate`` of the mixture, the others the rest.
- ``mirror_descent``: online mirror descent (Perolat et al. 2021, "Scaling up mean field games with online mirror
  descent", algorithm 1). Their convex set is that of laws on finitely many actions, ours that of both fill intensities
  ``l = A exp(-k d)``, with its entropy ``sum l log l - l``. The logarithm of the intensities is the sum ``y`` of the
  gradients of ``Q``, the population's own action values, clipped to the box,

      y <- y + (k rate / (h z)) dQ/dl,    l = exp(y),

  so that in short steps depths move by the part ``rate`` of the way to the best ones, given the population's values.
- ``prior_descent`` (Cui & Koeppl 2021, "Approximately solving mean field games via entropy-regularized deep
  reinforcement learning", section 5): the best answer with a penalty for leaving the prior, which is the population
  before: ``z (1 - rate) / (k rate)`` times the relative entropy ``sum l log(l / prior) - l + prior``, by time. In short
  steps the answer's depths are the part ``rate`` of the way from the prior to the best ones, given its own values.
- ``independent``, with learned answers only: the population is the last answer, as with ``best_response``; but it was
  learned among others who learn, not against the population before.
- With a ``network`` (any function from the table that the next population is to play to the one that it plays), in the
  words of Lauriere et al. 2022, "Scalable deep reinforcement learning algorithms for mean field games": fictitious play
  becomes its average-network form (their algorithm 1), where the network learns the average of all answers and the
  mixture is not played; mirror descent its Munchausen form (their algorithm 2), where the sum ``y`` is not kept: it is
  the last network's, so that each sees the last one and a gradient. Answers and gradients stay exact. The average is
  that of fill intensities, by the number of takers who are there, in the convex set of mirror descent: where answers
  lie far apart and several fills fall in one step, its crowd is another one than their mixture.
- ``anderson``, ``newton``: `scipy.optimize.anderson` and `newton_krylov` on the fixed point of (movement of the mean
  inventory) -> (movement of the crowd that plays best against it). A round takes several best answers or many.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import NoConvergence, anderson, newton_krylov

from mmgym.arguments import integer, real
from mmgym.baselines.frozen import Table, evaluate, state_laws
from mmgym.baselines.mean_field.exploitability import flow_of_policy
from mmgym.baselines.mean_field.one_step import MeanFieldProblem
from mmgym.models.mean_field import TakerParams
from mmgym.models.mean_field_flow import POINTS, best_response, frozen_map
from mmgym.models.mean_field_game import Game
from mmgym.plain_files import shortened

__all__ = ["ALGORITHMS", "LEARNING", "NETWORKS", "Mixture", "Population", "Round", "checked_rate", "learn"]

Array = NDArray[np.float64]
Network = Callable[[Array, Array], Array]  # depths (N, S, 2) to play, and laws (N, S) -> depths that it has learned
FOUND = 1e-10  # largest residual of the movement (assets) at which a fixed point is one


class Population(NamedTuple):
    """A crowd of takers that play one table, in the flow that they make."""

    table: Table
    problem: MeanFieldProblem  # of one taker against their flow
    answer: Array  # best depths against it, (N, S, 2)
    values: Array  # of the table, (N + 1, S)
    value: float
    best: float  # value of the best answer

    @property
    def exploitability(self) -> float:
        """What one taker gains who leaves the table for the best answer."""
        return self.best - self.value


class Round(NamedTuple):
    """A population, and how many best answers it has taken to come to it."""

    population: Population
    answers: int


class Mixture:
    """A population of several kinds of takers, each with a table of depths and a share.

    Parameters
    ----------
    problem : MeanFieldProblem
        Of a taker: what one kind does in it does not depend on the crowd.
    """

    def __init__(self, problem: MeanFieldProblem) -> None:
        self.problem = problem
        self.tables: list[Array] = []
        self.laws: list[Array] = []
        self.shares: list[float] = []

    def add(self, table: Array, share: float) -> None:
        """Let a kind with this table (N, S, 2) have a share in (0, 1], and the others the rest."""
        self.shares = [old * (1.0 - share) for old in self.shares] if share < 1.0 else []
        if not self.shares:
            self.tables, self.laws, share = [], [], 1.0
        self.tables.append(table)
        self.laws.append(state_laws(self.problem, table)[:-1])
        self.shares.append(share)

    def table(self) -> Table:
        """The population as one table (N, S, M, 2) with weights (N, S, M)."""
        weights: Array = np.stack([share * law for share, law in zip(self.shares, self.laws, strict=True)], axis=-1)
        total = weights.sum(axis=-1, keepdims=True)
        shares = np.broadcast_to(np.array(self.shares), weights.shape)
        weights = np.where(
            total > 0.0, np.divide(weights, total, out=np.zeros_like(weights), where=total > 0.0), shares
        )
        weights /= weights.sum(axis=-1, keepdims=True)
        return Table(np.stack(self.tables, axis=2), weights)

    def average(self) -> tuple[Array, Array]:
        """Depths (N, S, 2) with the kinds' mean fill intensities, by those who are there, and the law (N, S)."""
        table, decay = self.table(), self.problem.params.fill_decay
        assert table.weights is not None
        share = np.einsum("nsmi,nsm->nsi", np.exp(-decay * table.controls), table.weights)
        return -np.log(share) / decay, np.einsum("m,mns->ns", self.shares, self.laws)


def _met(params: TakerParams, table: Table) -> Population:
    """The population that plays a table."""
    game, flow = params.game, flow_of_policy(params.game, table)
    problem = MeanFieldProblem(params, flow)
    values = evaluate(problem, table)[0][:, :, 0]
    answer, worth = best_response(game, flow)
    value, best = float(problem.initial @ values[0]), float((game.initial * worth[0]).sum())
    return Population(table, problem, answer.reshape(game.num_steps, -1, 2), values, value, best)


# Algorithms: from the first population and a rate to tables; each is sent back as the population that plays it.


def _mixing(first: Population, network: Network | None, share: Callable[[int], float]) -> Any:
    mixture, population, number = Mixture(first.problem), first, 0
    while True:
        number += 1
        mixture.add(population.answer, share(number))
        table = mixture.table() if network is None else Table(network(*mixture.average()))
        population = yield table


def _best_response(first: Population, rate: float, network: Network | None) -> Any:
    return _mixing(first, network, lambda number: 1.0)


def _fictitious_play(first: Population, rate: float, network: Network | None) -> Any:
    return _mixing(first, network, lambda number: 1.0 / number)


def _damped_fictitious_play(first: Population, rate: float, network: Network | None) -> Any:
    return _mixing(first, network, lambda number: rate)


def _mirror_descent(first: Population, rate: float, network: Network | None) -> Any:
    problem, population = first.problem, first
    p, states = problem.params, np.arange(problem.num_states)
    depths = first.table.controls.copy()  # -y / k, up to a constant
    while True:
        played = population.table.controls
        for n in range(problem.num_steps):
            slopes = population.problem.gradient(n, states, played[n], population.values[n + 1][:, None])[1]
            pull = slopes / (p.fill_decay * problem.intensities(n, played[n]))  # -dQ/dl
            depths[n] += rate / (p.step_length * p.order_size) * pull
        if network is not None:
            depths = network(depths, state_laws(problem, played)[:-1])
        population = yield Table(np.clip(depths, problem.low_controls, problem.high_controls))


def _prior_descent(first: Population, rate: float, network: Network | None) -> Any:
    population, p = first, first.problem.params
    penalty = p.order_size * (1.0 - rate) / (p.fill_decay * rate)  # by side
    while True:
        problem, prior = population.problem, population.table.controls
        depths, values = np.empty(prior.shape), np.zeros((problem.num_states, 1))
        for n in reversed(range(problem.num_steps)):
            depths[n], values = problem.improve_near(n, values, prior[n], penalty)
        if network is not None:
            depths = network(depths, state_laws(problem, depths)[:-1])
        population = yield Table(depths)


def _solving(solver: Callable[..., Any]) -> Callable[[TakerParams, Population, float, int], Iterator[Round]]:
    """Rounds of a solver of `scipy.optimize`: it plays the best answers to the movements that it comes to."""

    def rounds(params: TakerParams, first: Population, rate: float, count: int) -> Iterator[Round]:
        game = params.game
        shape, none = (game.num_steps, len(POINTS) - 1), np.zeros((game.num_steps, 1))
        reached: list[Round] = []
        guess = first.answer.reshape(game.num_steps, *game.shape, 2)
        answers = 0

        def answer(moved: Array) -> tuple[Array, Array]:
            image, _, quotes, _ = frozen_map(game, np.concatenate([none, moved.reshape(shape)], axis=1), guess)
            return image[:, 1:].ravel(), quotes.reshape(game.num_steps, -1, 2)

        def residual(moved: Array) -> Array:
            nonlocal answers
            answers += 1
            return np.asarray(answer(moved)[0] - moved)

        def keep(moved: Array, _: Array) -> None:
            reached.append(Round(_met(params, Table(answer(moved)[1])), answers))

        start = flow_of_policy(game, first.table).powers(POINTS)[:, 1:].ravel()
        with contextlib.suppress(NoConvergence):
            solver(residual, start, maxiter=count, f_tol=FOUND, callback=keep)
        yield from reached

    return rounds


LEARNING: dict[
    str, Callable[[Population, float, Network | None], Any]
] = {  # mixtures of answers, which may be learned ones
    "best_response": _best_response,
    "fictitious_play": _fictitious_play,
    "damped_fictitious_play": _damped_fictitious_play,
    "independent": _best_response,  # who learns among the others replaces them all
}
_PLAYED = {**LEARNING, "mirror_descent": _mirror_descent, "prior_descent": _prior_descent}
NETWORKS = ("fictitious_play", "damped_fictitious_play", "mirror_descent", "prior_descent")  # that a network plays
_SOLVED = {"anderson": _solving(anderson), "newton": _solving(newton_krylov)}
ALGORITHMS: dict[str, float | None] = {  # default rates
    "best_response": None,
    "fictitious_play": None,
    "damped_fictitious_play": 0.09,
    "mirror_descent": 0.05,
    "prior_descent": 0.1,
    "anderson": None,
    "newton": None,
}


def checked_rate(algorithm: str, rate: float | None, learned: bool = False) -> float:
    """The rate of an algorithm, 1 where it has none, if both are allowed, with answers that are learned or exact ones.

    Raises
    ------
    ValueError
        If they are not.
    """
    allowed = LEARNING if learned else ALGORITHMS
    if algorithm not in allowed:
        kind = "learned" if learned else "exact"
        raise ValueError(
            f"algorithm = {shortened(algorithm)} is not allowed: with {kind} answers it must be one of "
            f"{', '.join(allowed)}"
        )
    usual = ALGORITHMS.get(algorithm)
    if usual is None and rate is not None:
        raise ValueError(f"rate = {shortened(rate)} is not allowed: {algorithm} has none")
    return 1.0 if usual is None else real("rate", usual if rate is None else rate, low=1e-6, high=1.0)


def learn(
    game: Game,
    algorithm: str,
    rounds: int,
    rate: float | None = None,
    respond: Callable[[Population], Array] | None = None,
    network: Network | None = None,
) -> Iterator[Round]:
    """Rounds of an algorithm, from the population that quotes ``1 / taker_fill_decay``.

    A solver (``anderson``, ``newton``) works all its rounds before the first is there, and stops where it has found the
    equilibrium, or finds no way on.

    Parameters
    ----------
    game : Game
    algorithm : str
        Of `ALGORITHMS`, or of `LEARNING` with ``respond``.
    rounds : int
    rate : float, optional
        In (0, 1]; that of `ALGORITHMS` by default.
    respond : function, optional
        What answers a population with depths (N, S, 2), instead of the best answer; for those in `LEARNING`.
    network : function, optional
        What learns the depths (N, S, 2) that the next population is to play, given where takers are, laws (N, S), and
        returns those that it plays; for those in `NETWORKS`, with best answers.

    Raises
    ------
    ValueError
        If an argument is out of range, or does not go with the algorithm.
    """
    step = checked_rate(algorithm, rate, respond is not None)
    if network is not None and (algorithm not in NETWORKS or respond is not None):
        answers = "" if respond is None else " with learned answers"
        raise ValueError(
            f"algorithm = {algorithm!r}{answers} is not allowed with a network: it must be one of "
            f"{', '.join(NETWORKS)}, with best answers"
        )
    return _rounds(game, algorithm, integer("rounds", rounds, low=1, high=10**6), step, respond, network)


def _rounds(
    game: Game,
    algorithm: str,
    rounds: int,
    rate: float,
    respond: Callable[[Population], Array] | None,
    network: Network | None,
) -> Iterator[Round]:
    params = TakerParams(*game, population=("constant", ""), reward="pnl", role="taker")
    depths = np.tile(1.0 / game.taker_fill_decay, (game.num_steps, game.shape[0] * game.shape[1], 1))
    first = _met(params, Table(depths))
    if algorithm in _SOLVED:
        yield from _SOLVED[algorithm](params, first, rate, rounds)
        return

    def answered(population: Population) -> Population:
        return population if respond is None else population._replace(answer=respond(population))

    play = _PLAYED[algorithm](answered(first), rate, network)
    table = next(play)
    for number in range(1, rounds + 1):
        population = _met(params, table)
        yield Round(population, number)
        if number < rounds:
            table = play.send(answered(population))
