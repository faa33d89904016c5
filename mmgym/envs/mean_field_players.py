"""The N-player game of the mean-field market in batches: every taker and the maker have depths of their own.

`mmgym.adapters.pettingzoo` serves one game as a PettingZoo `ParallelEnv`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import integer
from mmgym.models import mean_field
from mmgym.models import mean_field_players as model
from mmgym.random_streams import split_mix

__all__ = ["MeanFieldPlayers", "PlayersStep", "measurement"]

Array = NDArray[Any]


class PlayersStep(NamedTuple):
    """What a step returns, for ``G`` games of ``N`` takers."""

    taker_observations: Array  # (G, N, 3) float32
    maker_observations: Array  # (G, 8) float32
    taker_rewards: Array  # (G, N), price * assets
    maker_rewards: Array  # (G,)
    terminated: bool  # all games have the same number of steps


class MeanFieldPlayers:
    """A batch of N-player games, stepped by one kernel call.

    Each game is the market of `mmgym.envs.mean_field.MeanFieldTakerEnv` with ``num_takers`` takers and a maker in it.
    A taker's fill moves the mid by ``impact * order_size / num_takers``, executed at the mid after the move. The
    maker's fills come at the intensities for the mean depths that the takers play in the same step; if nobody quotes
    on a side (``boundary_quotes="quoting"``), none come there.

    Observations: a taker sees what a `MeanFieldTakerEnv` shows her: the elapsed fraction of the horizon, her inventory
    over the larger `inventory_limit` and her signal over `signal_limit`. The maker sees what a `MeanFieldMakerEnv` with
    ``population=forecast`` shows her, bit for bit: the elapsed fraction, her inventory over her larger limit, and for
    the coming step mean bid and mean ask over `max_depth` and the squashed drift of the crowd that `forecast` names. A
    policy for these five entries plays both. Three more say what the takers of this game do: their mean bid and mean
    ask over `max_depth` in the step before (0 before the first one), and their mean inventory over `inventory_limit`.
    Actions are bid and ask depth over `max_depth`, float32, clipped to [-1, 1].

    Parameters
    ----------
    num_games : int
        G, from 1 to 1,000,000.
    num_takers : int
        N, from 1 to 10,000.
    reward : {"pnl", "expected"}
        With "expected" the Brownian part of the gains is left out: same expectation, less variance, same fills.
    forecast : str
        The crowd whose flow the maker sees: "constant" (takers quote ``1 / taker_fill_decay``), "equilibrium" (which
        is solved first, unless it is shipped or kept), or the path of a table file by `mmgym.baselines.write_table`.
    **arguments
        Those of `mmgym.models.mean_field_game.Game.create`.

    Raises
    ------
    ValueError
        If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
    mmgym.models.mean_field_limit.NotConverged
        If the equilibrium is the forecast and not found.
    """

    def __init__(
        self,
        num_games: int = 1,
        *,
        num_takers: int = 100,
        reward: str = "pnl",
        forecast: str = "constant",
        **arguments: Any,
    ) -> None:
        self.num_games = integer("num_games", num_games, low=1, high=1_000_000)
        self.params = p = model.Params.create(num_takers=num_takers, reward=reward, forecast=forecast, **arguments)
        self.num_takers = p.num_takers
        self._record, self._cumulative = p.record, p.cumulative_initial_law
        self._maker = p.maker
        mean_field.observe(self._maker, 0, 0, 0)  # the forecast is there before the first step, or refused now
        games, takers = self.num_games, self.num_takers
        self._streams: Array = np.zeros((games, 4), np.uint64)
        self.inventory: Array = np.zeros((games, takers), np.int32)  # of the takers, orders
        self.signal: Array = np.zeros((games, takers), np.int32)
        self.maker_inventory: Array = np.zeros(games, np.int32)  # orders
        self.mid: Array = np.zeros(games)  # since the reset, price
        self.mean_quotes: Array = np.zeros((games, 2))  # of the last step, price; 0 before the first one
        self.maker_fills: Array = np.zeros((games, 2), np.int32)  # at bid and ask in the last step
        self._steps: Array = np.zeros(games, np.int32)
        self._seeded = self._started = False

    @property
    def step_number(self) -> int:
        """Steps since the reset."""
        return int(self._steps[0])

    def reset(self, seed: int | None = None) -> tuple[Array, Array]:
        """Start an episode in every game: observations of takers (G, N, 3) and makers (G, 8).

        Parameters
        ----------
        seed : int, optional
            >= 0; game ``g`` gets the stream of ``seed + g``. Without one, streams go on; the first ones are drawn.

        Raises
        ------
        ValueError
            If the seed is not a whole number >= 0.
        """
        if seed is not None:
            integer("seed", seed, low=0, high=2**63 - 1)
        elif not self._seeded:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))
        if seed is not None:
            seeds = np.array([split_mix(np.uint64((seed + g) % 2**64)) for g in range(self.num_games)], np.uint64)
            model.seed_games(seeds, self._streams)
            self._seeded = True
        state = self._streams, self.inventory, self.signal, self.maker_inventory, self.mid, self._steps
        model.reset_games(self._record, self._cumulative, np.arange(self.num_games), *state)
        self.mean_quotes[:] = 0.0
        self.maker_fills[:] = 0
        self._started = True
        return self._observe()

    def _observe(self) -> tuple[Array, Array]:
        game = self.params.game
        elapsed, limit = self.step_number / game.num_steps, game.limit
        takers: Array = np.empty((self.num_games, self.num_takers, 3), np.float32)
        takers[..., 0] = elapsed
        takers[..., 1] = self.inventory / limit
        takers[..., 2] = self.signal / max(game.signal_limit, 1)
        makers: Array = np.empty((self.num_games, 8), np.float32)
        makers[:, :5] = mean_field.observe(self._maker, self.step_number, self.maker_inventory, 0)
        makers[:, 5:7] = self.mean_quotes / game.max_depth
        makers[:, 7] = self.inventory.mean(axis=1) / limit
        return takers, makers

    def _actions(self, name: str, actions: Any, shape: tuple[int, ...]) -> Array:
        checked = np.ascontiguousarray(actions, dtype=np.float32)
        if checked.shape != shape:
            raise ValueError(f"{name} of shape {checked.shape} are not allowed: the shape must be {shape}")
        if not np.isfinite(checked).all():
            row = tuple(int(k) for k in np.argwhere(~np.isfinite(checked))[0][:-1])
            raise ValueError(f"{name}{list(row)} = {checked[row]} is not allowed: it must be finite")
        return checked

    def step(self, taker_actions: Any, maker_actions: Any) -> PlayersStep:
        """Play one decision step in every game.

        Parameters
        ----------
        taker_actions, maker_actions : arrays (G, N, 2), (G, 2)
            Bid and ask depth over `max_depth`; finite values outside [-1, 1] are clipped to it.

        Raises
        ------
        ValueError
            If the actions have another shape or are not finite; nothing has then moved.
        RuntimeError
            Before the first reset and after the last step.
        """
        takers = self._actions("taker_actions", taker_actions, (self.num_games, self.num_takers, 2))
        makers = self._actions("maker_actions", maker_actions, (self.num_games, 2))
        if not self._started or self.step_number >= self.params.game.num_steps:
            raise RuntimeError("step() before reset() or after the last step: call reset() first")
        taker_rewards, maker_rewards = np.empty((self.num_games, self.num_takers)), np.empty(self.num_games)
        model.step_games(
            self._record,
            self._streams,
            self.inventory,
            self.signal,
            self.maker_inventory,
            self.mid,
            self._steps,
            self.mean_quotes,
            self.maker_fills,
            takers,
            makers,
            taker_rewards,
            maker_rewards,
        )
        return PlayersStep(
            *self._observe(), taker_rewards, maker_rewards, self.step_number >= self.params.game.num_steps
        )


def measurement(games: int, takers: int, **arguments: Any) -> tuple[Callable[[], None], int]:
    """Some steps of a batch of games in which everybody quotes the constant depth, as a function, and their number."""
    batch = MeanFieldPlayers(games, num_takers=takers, **arguments)
    quote = (1.0 / batch.params.game.taker_fill_decay / batch.params.game.max_depth).astype(np.float32)
    actions, maker = np.tile(quote, (games, takers, 1)), np.tile(quote, (games, 1))
    count = min(100, batch.params.game.num_steps)

    def run() -> None:
        batch.reset(0)
        for _ in range(count):
            batch.step(actions, maker)

    return run, count * games * (takers + 1)
