"""The takers' game as a mean-field game of OpenSpiel (Lanctot et al. 2019), whose algorithms then play it.

OpenSpiel's crowds are laws on states, and its rewards are those of nodes. A reward here depends on the crowd's states
and actions together, so that a step is

    decision of an action -> mean-field node (state and action) -> one move, "settle", with the reward -> chance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    import pyspiel  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError as error:
    raise ImportError("mmgym.adapters.open_spiel needs OpenSpiel: pip install open_spiel") from error

from mmgym.models.mean_field_finite import FiniteGame, finite_game
from mmgym.models.mean_field_game import Game

__all__ = ["open_spiel_game"]

START, CHOICE, CROWD, SETTLE, MOVE, END = "start", "choice", "crowd", "settle", "move", "end"  # kinds of nodes
PLAYERS = {
    START: pyspiel.PlayerId.CHANCE,
    CHOICE: pyspiel.PlayerId.DEFAULT_PLAYER_ID,
    CROWD: pyspiel.PlayerId.MEAN_FIELD,
    SETTLE: pyspiel.PlayerId.DEFAULT_PLAYER_ID,
    MOVE: pyspiel.PlayerId.CHANCE,
    END: pyspiel.PlayerId.TERMINAL,
}
TYPE = pyspiel.GameType(
    short_name="mmgym_mean_field_takers",
    long_name="Strategic takers of a mean-field market",
    dynamics=pyspiel.GameType.Dynamics.MEAN_FIELD,
    chance_mode=pyspiel.GameType.ChanceMode.EXPLICIT_STOCHASTIC,
    information=pyspiel.GameType.Information.PERFECT_INFORMATION,
    utility=pyspiel.GameType.Utility.GENERAL_SUM,
    reward_model=pyspiel.GameType.RewardModel.REWARDS,
    max_num_players=1,
    min_num_players=1,
    provides_information_state_string=True,
    provides_information_state_tensor=False,
    provides_observation_string=True,
    provides_observation_tensor=False,
    parameter_specification={},
)


class _Tables:
    """Tables that all states share: a copy of a state does not copy them."""

    def __init__(self, game: FiniteGame) -> None:
        self.game = game

    def __deepcopy__(self, memo: Any) -> "_Tables":
        return self


class _TakersGame(pyspiel.Game):  # type: ignore[misc,unused-ignore]
    """One taker in a crowd of her kind."""

    def __init__(self, game: FiniteGame) -> None:
        self.tables = _Tables(game)
        most = game.num_steps * game.most
        states, actions = game.own.shape
        info = pyspiel.GameInfo(
            num_distinct_actions=actions,
            max_chance_outcomes=states,
            num_players=1,
            min_utility=-most,
            max_utility=most,
            utility_sum=None,
            max_game_length=2 * game.num_steps,
        )
        super().__init__(TYPE, info, {})

    def new_initial_state(self) -> Any:
        return _TakersState(self)

    def max_chance_nodes_in_history(self) -> int:
        return int(self.tables.game.num_steps) + 1


class _TakersState(pyspiel.State):  # type: ignore[misc,unused-ignore]
    """A node: its kind, the decision's number, the taker's state and action, and what they have earned."""

    def __init__(self, game: _TakersGame) -> None:
        super().__init__(game)
        self.tables = game.tables
        self.kind, self.step, self.place, self.action = START, 0, 0, 0
        self.earned = self.total = 0.0

    def current_player(self) -> Any:
        return PLAYERS[self.kind]

    def is_terminal(self) -> bool:
        return self.kind == END

    def _legal_actions(self, player: int) -> list[int]:
        return list(range(self.tables.game.own.shape[1])) if self.kind == CHOICE else [0]

    def chance_outcomes(self) -> list[tuple[int, float]]:
        game = self.tables.game
        law = game.initial if self.kind == START else game.transitions[self.action, self.place]
        return [(int(s), float(law[s])) for s in np.flatnonzero(law)]

    def _apply_action(self, action: int) -> None:
        self.total += self.earned
        self.earned = 0.0
        if self.kind in (START, MOVE):
            self.step += self.kind == MOVE
            self.kind, self.place, self.action = CHOICE, action, 0
        elif self.kind == CHOICE:
            self.kind, self.action = CROWD, action
        else:
            self.kind = MOVE if self.step < self.tables.game.num_steps - 1 else END

    def _named(self, place: int, action: int) -> str:
        return f"{self.kind} {self.step} {place} {action}"

    def distribution_support(self) -> list[str]:
        """Of a mean-field node: all states and actions of the step."""
        states, actions = self.tables.game.own.shape
        return [self._named(place, action) for place in range(states) for action in range(actions)]

    def update_distribution(self, distribution: list[float]) -> None:
        """The crowd's law on `distribution_support`: the reward follows."""
        shape = self.tables.game.own.shape
        rewards = self.tables.game.reward(np.array(distribution).reshape(shape))
        self.kind, self.earned = SETTLE, float(rewards[self.place, self.action])

    def _action_to_string(self, player: int, action: int) -> str:
        if self.kind != CHOICE:
            return "settle" if self.kind == SETTLE else f"state {action}"
        bid, ask = divmod(action, len(self.tables.game.depths))
        return f"bid {self.tables.game.depths[bid]:g}, ask {self.tables.game.depths[ask]:g}"

    def rewards(self) -> list[float]:
        """What the node pays."""
        return [self.earned]

    def returns(self) -> list[float]:
        """What was paid so far."""
        return [self.total + self.earned]

    def observation_string(self, player: int = 0) -> str:
        """What stands for the node in tables."""
        return str(self)

    def information_state_string(self, player: int = 0) -> str:
        """As `observation_string`: a taker knows no more."""
        return str(self)

    def __str__(self) -> str:
        return self.kind if self.kind in (START, END) else self._named(self.place, self.action)


def open_spiel_game(game: Game, depths: Sequence[float] | np.ndarray[Any, Any]) -> Any:
    """A mean-field `pyspiel.Game` of the takers of a game, with these depths for bids and for asks.

    In a decision, action ``i D + j`` bids at ``depths[i]`` and asks at ``depths[j]``; ``state.step`` is its number and
    ``state.place`` the taker's state, signals first, then inventories, both ascending.
    `open_spiel.python.mfg.algorithms.nash_conv` is in the currency of the game, and judges by the best answer with
    these depths.

    Parameters
    ----------
    game : Game
        ``env.unwrapped.params.game``, or `Game.create` with the arguments of an environment.
    depths : sequence of D floats
        Price, within ``max_depth``.

    Raises
    ------
    ValueError
        If there are no depths, or one is beyond ``max_depth``; if the tables need more memory than there is.
    """
    return _TakersGame(finite_game(game, depths))
