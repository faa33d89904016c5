r"""The robust GLFT market: a market maker against nature, as an environment of either, or of both.

The mid and the fills are those of `mmgym.models.glft`, with a drift, fill rates and fill decays that an adversary
chooses at every decision, at the same time as the maker chooses her depths (`mmgym.models.robust_glft_game` has the
game and its solution):

    dS = mu_n dt + sigma dW,    lambda_bid = A_bid,n exp(-k_bid,n d_bid) 1{q < Q},   lambda_ask likewise,

all frozen for ``h = horizon / num_steps``; the rest is simulated exactly: competing exponential clocks, several fills a
step, and Gaussian price noise given the inventory path. The maker's criterion is ``E[W_T - W_0 - phi int q^2 dt - alpha
q_T^2]``, and the adversary's its negative.

In the environment of one player the other one plays a table over decisions and inventories, or draws by one, so that
the market is a controlled Markov chain as all others are here: its optimum is the best reply to that table.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import refusal
from mmgym.market import Market, Shared, scalar_kernel
from mmgym.models.robust_glft_game import (
    CONTROLS,
    MOST_POINTS,
    NATURE,
    QUOTES,
    Game,
    corners,
    minimax,
    parameters,
)
from mmgym.models.wealth import EXPECTED, price_noise
from mmgym.parameters import Row
from mmgym.plain_files import UnreadableFile, numbers, parse_json, read_arrays, shortened
from mmgym.random_streams import exponential, uniform
from mmgym.vector_exp import fast_exp

__all__ = ["ADVERSARY", "BOTH", "MAKER", "AdversaryParams", "MakerParams", "opponent_table"]

Array = NDArray[np.float64]
FORMAT = 1  # of table files
ADVERSARIES = ("worst", "none", "random")
MAKERS = ("robust", "nominal", "constant")


class Opponent(Row):
    """Whom a player meets: a name, or the path of a table file; the field is completed when the game is known."""

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """The name or path, without the hash."""
        return values[0][0]


class _Role:
    """What the parameters of one player's environment can do."""

    def completed(self: Any, given: Mapping[str, Any]) -> Any:
        """These parameters with the defaults that depend on others, checked against each other."""
        p = super().completed(given)  # type: ignore[misc]
        name = self.opponent_name
        return p._replace(**{name: _checked_opponent(p, given[name])})

    @property
    def opponent(self: Any) -> tuple[str, str]:
        """Name or path of the opponent's policy, and a hash of the file ("" without one)."""
        pair: tuple[str, str] = getattr(self, self.opponent_name)
        return pair

    @property
    def draws_nature(self: Any) -> int:
        """Whether nature draws a corner of her box at every decision: 1 or 0."""
        return int(self.opponent[0] == "random")

    @property
    def opponent_rows(self: Any) -> Array:
        """What the opponent plays (N S, P, 6): a cell for each decision and inventory, of which the latter follow.

        Each of the P rows has the cumulative probability and the choices of one point of the law that she draws by.
        There are no cells where no table is read.
        """
        if self.draws_nature:
            return np.zeros((0, MOST_POINTS, 6))
        controls, weights = opponent_table(self)
        used = weights.shape[-1]
        rows = np.full((*weights.shape[:2], MOST_POINTS, 6), 2.0)
        rows[..., :used, 0] = np.cumsum(weights, axis=-1)
        rows[..., used - 1, 0] = 2.0
        rows[..., :used, 1 : 1 + controls.shape[-1]] = controls
        return rows.reshape(-1, MOST_POINTS, 6)


class MakerParams(
    _Role,
    parameters(
        adversary=Annotated[
            tuple[str, str],
            Opponent("worst"),
            'what nature chooses: "worst" (the minimax adversary), "none" (always the nominal parameters), "random" '
            "(at every decision one of the 32 corners of her box, drawn with equal probabilities), or the path of a "
            "table file by `mmgym.baselines.write_table`, of a policy for `mmgym/RobustGLFTAdversary-v0`",
        ]
    ),  # type: ignore[misc]
):
    """Parameters of the maker's environment."""

    __slots__ = ()
    role, opponent_name, opponent_role = "maker", "adversary", "adversary"
    opponents, opponent_controls = ADVERSARIES, NATURE


class AdversaryParams(
    _Role,
    parameters(
        maker=Annotated[
            tuple[str, str],
            Opponent("robust"),
            'what the maker plays: "robust" (the minimax quotes), "nominal" (the optimum of the nominal market), '
            '"constant" (``1 / fill_decay``, or the nearest depth in the box), or the path of a table file by '
            "`mmgym.baselines.write_table`, of a policy for `mmgym/RobustGLFT-v0`",
        ]
    ),  # type: ignore[misc]
):
    """Parameters of the adversary's environment."""

    __slots__ = ()
    role, opponent_name, opponent_role = "adversary", "maker", "maker"
    opponents, opponent_controls = MAKERS, QUOTES


def _checked_opponent(p: Any, given: Any) -> tuple[str, str]:
    """A checked name or path, and a hash of the file ("" without one).

    Raises
    ------
    ValueError
        If it is neither, or the file is not a table of the opponent in this game.
    """
    allowed = ", ".join(repr(name) for name in p.opponents)
    if not isinstance(given, str):
        raise refusal(p.opponent_name, given, f"{allowed} or a path")
    if given in p.opponents:
        return given, ""
    try:
        digest = hashlib.sha256(Path(given).read_bytes()).hexdigest()[:24]
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise refusal(
            p.opponent_name, given, f"{allowed} or the path of a table file that can be read ({error})"
        ) from error
    _read_opponent(p, given)
    return given, digest


def _read_opponent(p: Any, path: str) -> Array:
    """The opponent's controls (N, S, C) of a table file.

    Raises
    ------
    ValueError
        If the file is not a table of the opponent in this game.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{p.opponent_name} = {path!r} is not allowed: {reason}")

    try:
        arrays = read_arrays(path)
        description = parse_json(str(arrays["description"]), "description")
        controls = numbers(arrays["controls"], "controls", arrays["controls"].shape).astype(np.float64)
    except (KeyError, UnreadableFile) as error:
        raise refuse(f"it is not a table file ({error})") from error
    if (
        not isinstance(description, dict)
        or (description.get("format"), description.get("market")) != (FORMAT, "robust_glft")
        or description.get("role") != p.opponent_role
    ):
        raise refuse(
            f"it must be a table of the {p.opponent_role} of this market, of format {FORMAT}, but is described as "
            f"{shortened(description)}"
        )
    if "weights" in arrays:
        raise refuse("it is a table of a policy that draws its actions: write it with deterministic=True")
    center, reach = p.control_center[p.opponent_controls], p.control_reach[p.opponent_controls]
    wanted = (p.num_steps, p.levels, len(center))
    if controls.shape != wanted:
        raise refuse(f"its controls have shape {controls.shape}, but this game needs {wanted}")
    if not (np.abs(controls - center) <= reach + 1e-6 * (np.abs(center) + reach)).all():
        raise refuse(
            f"its controls must lie within the box of this game, from {(center - reach).tolist()} to "
            f"{(center + reach).tolist()}"
        )
    return np.clip(controls, center - reach, center + reach)


def opponent_table(p: Any) -> tuple[Array, Array]:
    """What the opponent plays: controls (N, S, P, C) and their probabilities (N, S, P).

    Raises
    ------
    ValueError
        If her table file has changed since it was checked.
    """
    role: Any = type(p)
    return _opponent_table(p.solved, role, p.opponent)


@functools.lru_cache(maxsize=16)
def _opponent_table(game: Game, role: Any, opponent: tuple[str, str]) -> tuple[Array, Array]:
    (name, digest), shape = opponent, (game.num_steps, game.levels)
    if name == "worst":
        return minimax(game).nature, minimax(game).weights
    if name == "random":
        points = corners(game)
        cells = (*shape, len(points))
        return np.broadcast_to(points, (*cells, 5)), np.broadcast_to(1.0 / len(points), cells)
    return _certain_table(game, role, name, digest)[:, :, None], np.ones((*shape, 1))


def _certain_table(game: Game, role: Any, name: str, digest: str) -> Array:
    """What an opponent plays (N, S, C) who does not draw."""
    p, shape = role(*game, (name, digest)), (game.num_steps, game.levels)
    if name == "none":
        return np.broadcast_to(game.nominal, (*shape, 5))
    if name == "robust":
        return minimax(game).depths
    if name == "nominal":
        return minimax(game._replace(drift_reach=0.0, fill_rate_reach=0.0, fill_decay_reach=0.0)).depths
    if name == "constant":
        return np.broadcast_to(np.clip(1.0 / game.fill_decay, game.min_depth, game.max_depth), (*shape, 2))
    if _checked_opponent(p, name)[1] != digest:
        raise ValueError(
            f"{p.opponent_name} = {name!r} is not allowed: the file has changed since the environment was made"
        )
    return _read_opponent(p, name)


# One row of state. Inventory is counted in orders; amounts of money are sums since the reset, and the maker's.
STATE = np.dtype(
    [
        ("spread_gain", "f8"),  # depths earned, and gains from the drift, price * assets
        ("price_gain", "f8"),  # sigma int q dW, price * assets
        ("inventory_square", "f8"),  # int q^2 dt, assets^2 * time
        ("mid", "f8"),  # S, price
        ("step", "i4"),
        ("inventory", "i4"),  # q / D
        ("bid_fills", "u2"),  # in the last step
        ("ask_fills", "u2"),
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.spread_gain = 0.0
    s.price_gain = 0.0
    s.inventory_square = 0.0
    s.mid = p.initial_price
    s.step = 0
    s.inventory = p.start
    s.bid_fills = 0
    s.ask_fills = 0


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """The player's controls of an action, clipped to their box; False if it is not finite."""
    total = 0.0
    for j in range(p.num_own_controls):
        entry, k = np.float64(action[j]), p.first_control + j
        total += abs(entry)
        controls[k] = p.control_center[k] + p.control_reach[k] * min(max(entry, -1.0), 1.0)
    return total < np.inf


@scalar_kernel
def meet_opponent(p, s, controls, opponent_rows):
    """Fill in the controls of the opponent."""
    if p.draws_nature != 0:
        draw, s.s0, s.s1 = uniform(s.s0, s.s1)
        corner = np.int64(32.0 * draw)
        for j in range(5):
            sign = 1.0 if (corner >> j) & 1 else -1.0
            controls[2 + j] = p.control_center[2 + j] + sign * p.control_reach[2 + j]
    elif p.num_own_controls < 7:
        cell, point = s.step * (2 * p.limit + 1) + s.inventory + p.limit, 0
        if opponent_rows[cell, 0, 0] < 1.0:
            draw, s.s0, s.s1 = uniform(s.s0, s.s1)
            while draw >= opponent_rows[cell, point, 0]:
                point += 1
        first = p.num_own_controls if p.first_control == 0 else 0
        for j in range(7 - p.num_own_controls):
            controls[first + j] = opponent_rows[cell, point, 1 + j]


@scalar_kernel
def step_one(p, s, controls, intensities, opponent_rows):
    """One exact step: (reward, terminated)."""
    meet_opponent(p, s, controls, opponent_rows)
    bid_depth, ask_depth, drift = controls[0], controls[1], controls[2]
    bid_rate = controls[3] * fast_exp(-controls[5] * bid_depth)
    ask_rate = controls[4] * fast_exp(-controls[6] * ask_depth)
    q, s0, s1 = np.int64(s.inventory), s.s0, s.s1

    left = p.step_length
    int_q = int_qq = earned = 0.0
    bids = asks = 0
    active_bid = bid_rate if q < p.limit else 0.0
    rate = active_bid + (ask_rate if q > -p.limit else 0.0)
    clock, s0, s1 = exponential(s0, s1)
    while clock < rate * left:
        elapsed = clock / rate
        left -= elapsed
        int_q += q * elapsed
        int_qq += np.float64(q * q) * elapsed
        side, s0, s1 = uniform(s0, s1)
        is_bid = side * rate < active_bid
        bids += is_bid
        asks += not is_bid
        q += 1 if is_bid else -1
        earned += bid_depth if is_bid else ask_depth
        active_bid = bid_rate if q < p.limit else 0.0
        rate = active_bid + (ask_rate if q > -p.limit else 0.0)
        clock, s0, s1 = exponential(s0, s1)
    int_q += q * left
    int_qq += np.float64(q * q) * left

    int_q_dw, brownian, s0, s1 = price_noise(p, q, bids + asks > 0, int_q, int_qq, s0, s1)
    size = p.order_size
    spread_gain = size * (earned + drift * int_q)
    price_gain = size * p.volatility * int_q_dw
    inventory_square = size * size * int_qq
    s.spread_gain += spread_gain
    s.price_gain += price_gain
    s.inventory_square += inventory_square
    s.mid += drift * p.step_length + p.volatility * brownian
    s.inventory = q
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    s.step += 1
    terminated = s.step >= p.num_steps
    reward = spread_gain - p.running_penalty * inventory_square
    if p.reward != EXPECTED:
        reward += price_gain
    if terminated:
        reward -= p.terminal_penalty * (size * q) ** 2
    return p.sign * reward, terminated


@scalar_kernel
def observe_one(p, s, observation, opponent_rows):
    """Observation [elapsed fraction of the horizon, the maker's inventory / limit]."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit


def state_ranges(params: Any) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    limit = params.limit
    return {
        "step": (0, params.num_steps),
        "inventory": (-limit, limit),
        "inventory_square": (0.0, math.inf),
    }


def _own(params: Any) -> tuple[Array, Array]:
    """Center and half widths of the player's own box."""
    own = slice(params.first_control, params.first_control + params.num_own_controls)
    return params.control_center[own], params.control_reach[own]


def to_quotes(params: Any, actions: Any) -> Array:
    """The player's controls, shape ``(..., C)``, that the environment plays for actions of that shape."""
    center, reach = _own(params)
    return np.asarray(center + reach * np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0))


def from_quotes(params: Any, quotes: Any) -> NDArray[np.float32]:
    """Actions whose controls are the nearest to ``quotes``, to float32 rounding; 0 where there is no choice."""
    center, reach = _own(params)
    away = np.asarray(quotes, dtype=np.float64) - center
    actions = np.divide(away, reach, out=np.zeros_like(away), where=np.broadcast_to(reach > 0.0, away.shape))
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(params: Any, step: Any, inventory: Any) -> NDArray[np.float32]:
    """Observations, shape ``(..., 2)``, of steps and inventories (in orders): bit for bit those of the environment."""
    step, inventory = np.broadcast_arrays(step, inventory)
    return np.stack([step / params.num_steps, inventory / params.limit], axis=-1).astype(np.float32)


def locate(params: Any, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Step and the maker's inventory (in orders of ``order_size`` assets) of observations of shape ``(..., 2)``."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.rint(observations[..., 0] * params.num_steps).astype(np.int64)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    return np.clip(step, 0, params.num_steps), np.clip(inventory, -params.limit, params.limit)


def _market(params_type: Any, shared: Shared) -> Market:
    """The market of a player, or of both."""
    return Market(
        name="robust_glft",
        params_type=params_type,
        modules=("mmgym.models.robust_glft_game", "mmgym.models.wealth"),
        state=STATE,
        unread=(
            "drift",
            "fill_rate",
            "fill_decay",
            "drift_reach",
            "fill_rate_reach",
            "fill_decay_reach",
            "inventory_limit",
            "initial_inventory",
            "horizon",
            "min_depth",
            "max_depth",
        ),
        derived=(
            "step_length",
            "inverse_step",
            "root_step",
            "limit",
            "start",
            "sign",
            "first_control",
            "num_own_controls",
            "draws_nature",
        ),
        arrays={"control_center": (7,), "control_reach": (7,)},
        shared=shared,
        num_controls=len(CONTROLS),
        num_intensities=0,
        reset_one=reset_one,
        controls_one=controls_one,
        step_one=step_one,
        observe_one=observe_one,
        ranges=state_ranges,
        observation_low=lambda params: (0, -1),
        to_quotes=to_quotes,
        from_quotes=from_quotes,
        locate=locate,
    )


OPPONENT = Shared(
    key=lambda p: (p.solved, p.opponent),
    array=lambda p: p.opponent_rows,
    what="tables of what opponents play in distinct games",
)
NOBODY = Shared(lambda p: None, lambda p: np.zeros((0, MOST_POINTS, 6)), "tables of nobody")  # of who plays both
MAKER = _market(MakerParams, OPPONENT)
ADVERSARY = _market(AdversaryParams, OPPONENT)
BOTH = _market(Game, NOBODY)
