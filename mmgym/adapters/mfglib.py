"""The takers' game as an environment of MFGLib (Guo et al. 2023), whose algorithms then play it.

MFGLib works in PyTorch's default type, float32: call ``torch.set_default_dtype(torch.float64)`` first for more digits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    import mfglib.alg  # noqa: F401  # before its other parts, which import each other in a circle
    import torch
    from mfglib.env import Environment
except ImportError as error:
    raise ImportError("mmgym.adapters.mfglib needs MFGLib: pip install mfglib") from error

from mmgym.models.mean_field_finite import FiniteGame, finite_game
from mmgym.models.mean_field_game import Game

__all__ = ["mfglib_environment"]


class _Rewards:
    """A step's rewards by the joint law of the crowd's states and actions."""

    def __init__(self, game: FiniteGame) -> None:
        self.own, self.held, self.pace = (torch.tensor(part).to(_type()) for part in (game.own, game.held, game.pace))

    def __call__(self, env: Any, t: int, L_t: Any) -> Any:  # MFGLib's name
        drift = torch.einsum("sa,sak->k", L_t.reshape(self.own.shape), self.pace)
        return (self.own + self.held @ drift).reshape(*env.S, *env.A)


class _Transitions:
    """A step's transitions, shape (*S, *S, *A): where to first."""

    def __init__(self, game: FiniteGame) -> None:
        count = len(game.depths)
        self.table = torch.tensor(game.transitions).permute(2, 1, 0).to(_type())
        self.table = self.table.reshape(*game.shape, *game.shape, count, count).contiguous()

    def __call__(self, env: Any, t: int, L_t: Any) -> Any:  # MFGLib's name
        return self.table


def _type() -> Any:
    return torch.get_default_dtype()


def mfglib_environment(game: Game, depths: Sequence[float] | np.ndarray[Any, Any]) -> Any:
    """An `mfglib.env.Environment` of the takers of a game, with these depths for bids and for asks.

    Its states are (signal, inventory), both ascending, its actions (bid, ask), as places in ``depths``; its times are
    the ``num_steps`` decisions. `mfglib.scoring.exploitability_score` is in the currency of the game, and judges by the
    best answer with these depths.

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
    finite = finite_game(game, depths)
    count = len(finite.depths)
    return Environment(
        T=finite.num_steps - 1,
        S=finite.shape,
        A=(count, count),
        mu0=torch.tensor(finite.initial).to(_type()).reshape(finite.shape),
        r_max=finite.most,
        reward_fn=_Rewards(finite),
        transition_fn=_Transitions(finite),
    )
