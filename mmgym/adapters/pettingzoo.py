"""The N-player game of the mean-field market as a PettingZoo `ParallelEnv`."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

try:
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError("mmgym.adapters.pettingzoo needs PettingZoo: pip install 'mmgym[multiagent]'") from error

from mmgym.envs.mean_field_players import MeanFieldPlayers

__all__ = ["MeanFieldParallelEnv"]

Array = NDArray[Any]
MAKER = "maker"


class MeanFieldParallelEnv(ParallelEnv):  # type: ignore[misc]
    """One game of ``maker`` and ``taker_0`` ... ``taker_{N-1}``: `MeanFieldPlayers` with a dict entry for each player.

    Observations, actions and rewards are those of `mmgym.envs.mean_field_players.MeanFieldPlayers`. All players
    terminate together, after `num_steps` steps; nobody is truncated. One policy of a taker's observation can play all
    takers; `MeanFieldPlayers` does that faster, with arrays.

    Infos: the maker's has ``mid`` (since the reset, price), ``inventory`` (assets), ``bid_fills``, ``ask_fills``,
    ``mean_bid``, ``mean_ask`` (the takers' mean depths of the last step; 0 at a reset) and
    ``mean_inventory`` (of the takers, assets); a taker's has ``inventory`` (assets) and ``signal``.

    Parameters
    ----------
    num_takers : int
        N, from 1 to 10,000.
    reward : {"pnl", "expected"}
    forecast : str
        The crowd whose flow the maker sees: "constant", "equilibrium" or the path of a table file.
    **arguments
        Those of `mmgym.models.mean_field_game.Game.create`.

    Raises
    ------
    ValueError
        If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
    """

    metadata = {"name": "mean_field_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self, *, num_takers: int = 100, reward: str = "pnl", forecast: str = "constant", **arguments: Any
    ) -> None:
        self.players = MeanFieldPlayers(1, num_takers=num_takers, reward=reward, forecast=forecast, **arguments)
        self.render_mode = None
        self.takers = [f"taker_{i}" for i in range(num_takers)]
        self.possible_agents = [MAKER, *self.takers]
        self.agents: list[str] = []
        one = np.float32(1.0)
        box = gymnasium.spaces.Box
        low = {MAKER: np.array([0, -1, -1, -1, -1, -1, -1, -1], np.float32)}
        low |= {taker: np.array([0, -1, -1], np.float32) for taker in self.takers}
        self.observation_spaces = {agent: box(low[agent], one, dtype=np.float32) for agent in self.possible_agents}
        self.action_spaces = {agent: box(-1.0, 1.0, (2,), np.float32) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> gymnasium.spaces.Box:
        """Observation space of a player, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Box:
        """Action space of a player, always the same object."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Start an episode: observations and infos of all players.

        Raises
        ------
        ValueError
            If the seed is not a whole number >= 0. There are no options: what is given is ignored.
        """
        takers, makers = self.players.reset(seed)
        self.agents = list(self.possible_agents)
        return self._by_player(takers[0], makers[0]), self._infos()

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Play one decision step: observations, rewards, terminations, truncations and infos of all players.

        Parameters
        ----------
        actions : mapping
            Bid and ask depth over `max_depth`, shape (2,), for every player.

        Raises
        ------
        ValueError
            If a player's action is missing, has another shape or is not finite; nothing has then moved.
        """
        if not self.agents:
            raise RuntimeError("step() before reset() or after the last step: call reset() first")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"actions of {missing[:3]} are missing: every player needs one in every step")
        for agent in self.agents:
            if np.shape(actions[agent]) != (2,) or not np.isfinite(actions[agent]).all():
                raise ValueError(
                    f"the action {actions[agent]!r} of {agent} is not allowed: it must be two finite numbers"
                )
        played = np.array([actions[taker] for taker in self.takers], np.float32)[None]
        outcome = self.players.step(played, np.asarray(actions[MAKER], np.float32)[None])
        agents = self.agents
        rewards = {MAKER: float(outcome.maker_rewards[0])}
        rewards |= dict(zip(self.takers, outcome.taker_rewards[0].tolist(), strict=True))
        observations = self._by_player(outcome.taker_observations[0], outcome.maker_observations[0])
        infos = self._infos()
        if outcome.terminated:
            self.agents = []
        return (
            observations,
            rewards,
            dict.fromkeys(agents, outcome.terminated),
            dict.fromkeys(agents, False),
            infos,
        )

    def _by_player(self, takers: Array, maker: Array) -> dict[str, Array]:
        return {MAKER: maker, **dict(zip(self.takers, takers, strict=True))}

    def _infos(self) -> dict[str, dict[str, Any]]:
        players, size = self.players, self.players.params.game.order_size
        infos: dict[str, dict[str, Any]] = {
            MAKER: {
                "mid": float(players.mid[0]),
                "inventory": float(players.maker_inventory[0] * size),
                "bid_fills": int(players.maker_fills[0, 0]),
                "ask_fills": int(players.maker_fills[0, 1]),
                "mean_bid": float(players.mean_quotes[0, 0]),
                "mean_ask": float(players.mean_quotes[0, 1]),
                "mean_inventory": float(players.inventory[0].mean() * size),
            }
        }
        states = zip(self.takers, (players.inventory[0] * size).tolist(), players.signal[0].tolist(), strict=True)
        return infos | {taker: {"inventory": inventory, "signal": signal} for taker, inventory, signal in states}

    def render(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing is held."""
