"""The takers' game on finitely many depths, as tables: for other people's solvers of mean-field games.

The game of `mmgym.models.mean_field_flow` on decision steps, where takers choose among the pairs of given depths. A
step's transition does not depend on the crowd. Its reward does, by the drift that the crowd's own fills give to the mid
inside the step, ``kappa int E[q_s] dE_L[q_s]``: a bilinear form in the taker's state and action and the joint law ``L``
of the crowd's. All steps are alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import check_memory, real, refusal
from mmgym.models import mean_field_steps
from mmgym.models.mean_field_flow import step_system
from mmgym.models.mean_field_game import Game

__all__ = ["FiniteGame", "finite_game", "inventory_steps"]

Array = NDArray[np.float64]


class FiniteGame(NamedTuple):
    """A taker's decisions as tables: ``S`` states, signals first, then inventories; ``A`` actions, bids first.

    Attributes
    ----------
    num_steps : int
        Decisions.
    shape : (B, Q)
        Levels of the signal and of the inventory.
    depths : (D,)
        Of bids and of asks (price): action ``i D + j`` bids at ``depths[i]`` and asks at ``depths[j]``.
    initial : (S,)
        Law at the start.
    transitions : (A, S, S)
        Rows are laws after a step.
    own : (S, A)
        Expected reward of a step, without the crowd (price * assets).
    held, pace : (S, A, K)
        At the nodes of a quadrature: expected inventory (assets), and ``kappa`` times its derivative by the elapsed
        part of the step, with the nodes' weights.
    """

    num_steps: int
    shape: tuple[int, int]
    depths: Array
    initial: Array
    transitions: Array
    own: Array
    held: Array
    pace: Array

    def reward(self, law: Array) -> Array:
        """Expected reward of a step (S, A) in a crowd whose states and actions have a joint law (S, A)."""
        drift = np.einsum("sa,sak->k", law, self.pace)
        return np.asarray(self.own + self.held @ drift)

    @property
    def most(self) -> float:
        """A bound on the absolute reward of a step."""
        drifts = np.abs(self.pace).max(axis=(0, 1))
        return float((np.abs(self.own) + np.abs(self.held) @ drifts).max())


def finite_game(game: Game, depths: Sequence[float] | Array) -> FiniteGame:
    """The game with these depths.

    Parameters
    ----------
    game : Game
    depths : sequence of D floats
        At which takers may bid and ask (price).

    Raises
    ------
    ValueError
        If there are no depths, or one is beyond ``max_depth``; if the tables need more memory than there is.
    """
    levels = np.array([real(f"depths[{k}]", d, low=-game.max_depth, high=game.max_depth) for k, d in enumerate(depths)])
    if not len(levels):
        raise refusal("depths", list(depths), "at least one depth")
    pairs = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1, 2)
    states, actions = game.shape[0] * game.shape[1], len(pairs)
    check_memory(16.0 * actions * states**2, "the transitions of a finite game", "depths, inventory_limit")
    levels_q, choices = np.repeat(np.arange(game.shape[1]), actions), np.tile(pairs, (game.shape[1], 1))
    laws, held, pace = inventory_steps(game, levels_q, choices)
    walks = laws.reshape(game.shape[1], actions, -1)
    transitions = np.einsum("bc,qar->abqcr", step_system(game).moves, walks).reshape(actions, states, states)
    pace = game.impact * step_system(game).weights * pace
    shape, repeat = (game.shape[1], actions, -1), (game.shape[0], 1, 1)
    return FiniteGame(
        game.num_steps, game.shape, levels, game.initial.ravel(), transitions, _own_rewards(game, pairs),
        np.tile(held.reshape(shape), repeat), np.tile(pace.reshape(shape), repeat),
    )  # fmt: skip


def inventory_steps(
    game: Game, levels: NDArray[np.int64], depths: Array, nodes: Array | None = None
) -> tuple[Array, Array, Array]:
    """What a step does to a taker's inventory, from levels (M,) with depths (M, 2).

    ``nodes`` (K,) are times in [0, 1], by default those of `step_system`.

    Returns
    -------
    laws : (M, Q)
        Of the level after the step.
    held, pace : (M, K)
        Expected inventory (assets) at the nodes, and its derivative by the elapsed part of the step.
    """
    nodes = step_system(game).nodes if nodes is None else nodes
    shape, highest = (len(levels), 3), game.shape[1] - 1
    laws, moved = np.zeros((*shape, 1, game.shape[1])), np.zeros((*shape, len(nodes)))
    rates = game.taker_fill_rate * np.exp(-game.taker_fill_decay * depths)
    starts = np.clip(levels[:, None] + np.array([0, 1, -1]), 0, highest)  # where she is, and where a fill takes her
    for m, k in np.ndindex(shape):
        every, start = np.tile(rates[m], (1, game.shape[1], 1)), np.eye(1, game.shape[1], starts[m, k])
        mean_field_steps.forward(game.step_length, every, start, nodes, laws[m, k], moved[m, k])
    held = game.inventory[starts][..., None] + game.order_size * moved
    pace = game.step_length * (rates[:, :, None] * (held[:, 1:] - held[:, :1])).sum(axis=1)  # Kolmogorov's backward one
    return laws[:, 0, 0], held[:, 0], pace


def _own_rewards(game: Game, pairs: Array) -> Array:
    """Expected reward of a step without a crowd, shape (S, A)."""
    system, states = step_system(game), game.shape[0] * game.shape[1]
    own = np.empty((len(pairs), states))
    for a, depth in enumerate(pairs):
        rates = game.taker_fill_rate * np.exp(-game.taker_fill_decay * depth)
        mean_field_steps.backward_mean(
            game.step_length,
            np.arange(states + 1),
            np.tile(np.arange(game.shape[1]), game.shape[0]),
            np.repeat(np.arange(game.shape[0]), game.shape[1]),
            np.tile(rates, (states, 1)),
            np.tile(game.order_size * depth, (states, 1)),
            -game.taker_penalty * game.inventory**2,
            system.nodes,
            system.weights,
            system.beliefs,
            np.zeros(game.shape),
            game.inventory,
            own[a],
        )
    return np.ascontiguousarray(own.T)
