"""Games as PettingZoo environments: the N-player game of the mean-field market, and zero-sum games of two."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

try:
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError("mmgym.adapters.pettingzoo needs PettingZoo: pip install 'mmgym[multiagent]'") from error

from mmgym.arguments import refusal
from mmgym.envs.mean_field_players import MeanFieldPlayers

__all__ = ["MeanFieldParallelEnv", "ZeroSumParallelEnv"]

Array = NDArray[Any]
MAKER = "maker_0"  # names are <type>_<number>, as SuperSuit reads types off them


class _Game(ParallelEnv):  # type: ignore[misc]
    """A game with a state: all that the players see, each number once."""

    _state: Array | None = None

    def state(self) -> Array:
        """All that the players see, each number once, shape of `state_space`.

        In a mean-field game the maker's observation, and each taker's but for the time; in a game of two what both see.

        Raises
        ------
        RuntimeError
            Before the first reset.
        """
        if self._state is None:
            raise RuntimeError("state() before reset(): call reset() first")
        return self._state.copy()


class MeanFieldParallelEnv(_Game):
    """One game of ``maker_0`` and ``taker_0`` ... ``taker_{N-1}``: `MeanFieldPlayers`, a dict entry for each player.

    Observations, actions and rewards are those of `mmgym.envs.mean_field_players.MeanFieldPlayers`. All players
    terminate together, after `num_steps` steps; nobody is truncated. One policy of a taker's observation can play all
    takers; `MeanFieldPlayers` does that faster, with arrays. Without the maker all agents have the same spaces, as
    SuperSuit's `pettingzoo_env_to_vec_env_v1` asks for; takers do not feel her.

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
    maker : bool
        False: the takers are alone, and the maker of the market quotes the mid. The state still has what she would see.
    **arguments
        Those of `mmgym.models.mean_field_game.Game.create`.

    Raises
    ------
    ValueError
        If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
    """

    metadata = {"name": "mean_field_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self,
        *,
        num_takers: int = 100,
        reward: str = "pnl",
        forecast: str = "constant",
        maker: bool = True,
        **arguments: Any,
    ) -> None:
        if not isinstance(maker, bool):
            raise refusal("maker", maker, "true or false")
        self.players = MeanFieldPlayers(1, num_takers=num_takers, reward=reward, forecast=forecast, **arguments)
        self.render_mode = None
        self.takers = [f"taker_{i}" for i in range(num_takers)]
        self.possible_agents = [MAKER, *self.takers] if maker else list(self.takers)
        self.agents: list[str] = []
        one = np.float32(1.0)
        box = gymnasium.spaces.Box
        low = np.full(8 + 2 * num_takers, -1.0, np.float32)  # of the state; a taker's observation has 3 entries
        low[0] = 0.0
        widths = {agent: 8 if agent == MAKER else 3 for agent in self.possible_agents}
        self.observation_spaces = {agent: box(low[:width], one) for agent, width in widths.items()}
        self.action_spaces = {agent: box(-1.0, 1.0, (2,), np.float32) for agent in self.possible_agents}
        self.state_space = box(low, one)

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
        agents = self.agents
        quote = actions[MAKER] if MAKER in agents else (0.0, 0.0)
        outcome = self.players.step(played, np.asarray(quote, np.float32)[None])
        rewards = self._of_playing(float(outcome.maker_rewards[0]), outcome.taker_rewards[0].tolist())
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
        self._state = np.concatenate([maker, takers[:, 1:].ravel()])
        return self._of_playing(maker, takers)

    def _of_playing(self, maker: Any, takers: Iterable[Any]) -> dict[str, Any]:
        """What is the players', by name."""
        found = dict(zip(self.takers, takers, strict=True))
        return {MAKER: maker, **found} if MAKER in self.possible_agents else found

    def _infos(self) -> dict[str, dict[str, Any]]:
        players, size = self.players, self.players.params.game.order_size
        maker = {
            "mid": float(players.mid[0]),
            "inventory": float(players.maker_inventory[0] * size),
            "bid_fills": int(players.maker_fills[0, 0]),
            "ask_fills": int(players.maker_fills[0, 1]),
            "mean_bid": float(players.mean_quotes[0, 0]),
            "mean_ask": float(players.mean_quotes[0, 1]),
            "mean_inventory": float(players.inventory[0].mean() * size),
        }
        states = zip((players.inventory[0] * size).tolist(), players.signal[0].tolist(), strict=True)
        return self._of_playing(maker, ({"inventory": inventory, "signal": signal} for inventory, signal in states))

    def render(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing is held."""


class ZeroSumParallelEnv(_Game):
    """A market of two players, both of whom act: what one earns the other one loses.

    Observations and actions of a player are those of her own environment. Both terminate together; nobody is truncated.
    The infos of both are those of the market.

    Parameters
    ----------
    env_id : str
        Of either player's environment, such as ``mmgym/RobustGLFT-v0``: it names the game.
    info : None or "full"
        With "full", infos have every entry that the market knows.
    **arguments
        Those of the environment, but for the one that says whom the player meets.

    Raises
    ------
    TypeError
        If the environment is none of such a game.
    ValueError
        If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
    """

    metadata = {"name": "zero_sum_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012

    def __init__(self, env_id: str, *, info: str | None = None, **arguments: Any) -> None:
        spec = gymnasium.spec(env_id)
        face: Any = load_env_creator(str(spec.entry_point))
        if not hasattr(face, "game"):
            raise TypeError(f"{env_id} is not allowed: it must be the environment of a player of a zero-sum game")
        self.market = face.game(info=info, **{**spec.kwargs, **arguments})
        self.render_mode = None
        self.possible_agents = list(face.players)
        self.agents: list[str] = []
        self._sizes = {agent: len(controls) for agent, controls in face.players.items()}
        space = self.market.observation_space
        self.observation_spaces = {agent: gymnasium.spaces.Box(space.low, space.high) for agent in self._sizes}
        self.action_spaces = {
            agent: gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32) for agent, size in self._sizes.items()
        }
        self.state_space = gymnasium.spaces.Box(space.low, space.high)

    def observation_space(self, agent: str) -> gymnasium.spaces.Box:
        """Observation space of a player, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Box:
        """Action space of a player, always the same object."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Start an episode: observations and infos of both players. There are no options: what is given is ignored."""
        observation, info = self.market.reset(seed=seed)
        self.agents = list(self.possible_agents)
        self._state = observation
        return self._for_both(observation), self._for_both(info)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Play one decision step: observations, rewards, terminations, truncations and infos of both players.

        Parameters
        ----------
        actions : mapping
            An action of each player.

        Raises
        ------
        ValueError
            If an action is missing, has another shape or is not finite; nothing has then moved.
        """
        if not self.agents:
            raise RuntimeError("step() before reset() or after the last step: call reset() first")
        for agent, size in self._sizes.items():
            if agent not in actions:
                raise ValueError(f"the action of {agent} is missing: every player needs one in every step")
            if np.shape(actions[agent]) != (size,) or not np.isfinite(actions[agent]).all():
                raise ValueError(
                    f"the action {actions[agent]!r} of {agent} is not allowed: it must be {size} finite numbers"
                )
        played = np.concatenate([np.asarray(actions[agent], np.float64) for agent in self._sizes])
        observation, reward, terminated, _, info = self.market.step(played.clip(-1.0, 1.0).astype(np.float32))
        self._state = observation
        if terminated:
            self.agents = []
        first, second = self.possible_agents
        return (
            self._for_both(observation),
            {first: reward, second: -reward},
            self._for_both(terminated),
            self._for_both(False),
            self._for_both(info),
        )

    def _for_both(self, value: Any) -> dict[str, Any]:
        return {agent: copy.copy(value) for agent in self.possible_agents}

    def render(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Close the market."""
        self.market.close()
