r"""The mean-field market: one taker, or the market-maker, against the crowd of takers (Baldacci, Bergault & Possamai).

The crowd's mean inventory moves the price, ``dS = sigma dW + kappa d(mean inventory)``; its flow is that of
`mmgym.models.mean_field_flow` and one player does not change it. A quote at depth ``d`` is filled at the intensities

    taker:  A^m exp(-k^m d),
    maker:  A exp(-k (x + d)),    x = the takers' mean ask for her bid, their mean bid for her ask,

in orders of ``z`` assets; bids are off at the upper inventory bound, asks at the lower one. ``A``, ``k`` and the bounds
may differ between the sides (Remark 3.1) and between the roles. A taker believes in a
signal ``b``, a walk on ``-B .. B`` with jumps up and down at rates ``lambda+`` and ``lambda-``: for her the mid also
drifts by ``b dt``. The criteria, with the penalty ``c = gamma sigma^2`` or ``phi sigma^2``, are (2.4)-(2.8) of the
paper,

    E[sum z d_bid dN_bid + sum z d_ask dN_ask + int q dS - int c q^2 dt],    nothing at the horizon.

One step freezes both depths for ``h = horizon / num_steps`` and simulates the rest exactly: competing exponential
clocks for bids, asks and the signal. The maker meets mean quotes as they are at the start of the step. Between two
fills the crowd's impact is known, so it adds ``q (I(t') - I(t))`` with its path ``I``, a polynomial within each step.
Given the inventory path, ``(int q dW, W_h)`` is Gaussian with covariance ``[[int q^2, int q], [int q, h]]``.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.arguments import together
from mmgym.market import Market, Shared, scalar_kernel
from mmgym.models.mean_field_flow import DEGREE, Flow
from mmgym.models.mean_field_game import MAX_EVENTS, MAX_JUMP, MAX_LEVELS, MAX_SIGNAL, Game
from mmgym.models.mean_field_limit import maker_factors
from mmgym.models.mean_field_population import flow_of, population_of
from mmgym.parameters import Choice, OtherSide, Row, create, row_of
from mmgym.random_streams import exponential, normal, uniform

PNL, EXPECTED = 0, 1  # codes of `reward`

# Columns of `flow_rows`, one row a step; the last row stands for the horizon and has observations only.
BID_FACTOR, ASK_FACTOR, SEEN_BID, SEEN_ASK, SEEN_IMPACT, STEP_IMPACT, TERMS, FIRST_TERM = range(8)


of_game = functools.partial(row_of, Game)


class Population(Row):
    """What the crowd plays; the fields are completed when the game is known."""

    def argument_of(self, values: Sequence[Any], params: Any) -> Any:
        """The name or path, without the hash."""
        return values[0][0]


class Params(NamedTuple):
    """Parameters of a role in the game: those of `Game`, the role, the crowd and the reward."""

    volatility: Annotated[float, of_game("volatility")]
    impact: Annotated[float, of_game("impact")]
    signal_rate_up: Annotated[float, of_game("signal_rate")]
    signal_rate_down: OtherSide
    signal_limit: Annotated[int, of_game("signal_limit")]
    signal_unit: Annotated[float, of_game("signal_unit")]
    signal_jump_sizes: Annotated[tuple[float, ...], of_game("signal_jump_sizes")]
    taker_fill_rate_bid: Annotated[float, of_game("taker_fill_rate")]
    taker_fill_rate_ask: OtherSide
    taker_fill_decay_bid: Annotated[float, of_game("taker_fill_decay")]
    taker_fill_decay_ask: OtherSide
    maker_fill_rate_bid: Annotated[float, of_game("maker_fill_rate")]
    maker_fill_rate_ask: OtherSide
    maker_fill_decay_bid: Annotated[float, of_game("maker_fill_decay")]
    maker_fill_decay_ask: OtherSide
    order_size: Annotated[float, of_game("order_size")]
    inventory_limit_long: Annotated[float, of_game("inventory_limit")]
    inventory_limit_short: OtherSide
    maker_inventory_limit_long: Annotated[float, of_game("maker_inventory_limit")]
    maker_inventory_limit_short: OtherSide
    maker_initial_inventory: Annotated[float, of_game("maker_initial_inventory")]
    taker_risk_aversion: Annotated[float, of_game("taker_risk_aversion")]
    maker_risk_aversion: Annotated[float, of_game("maker_risk_aversion")]
    max_depth: Annotated[float, of_game("max_depth")]
    horizon: Annotated[float, of_game("horizon")]
    num_steps: Annotated[int, of_game("num_steps")]
    initial_law: Annotated[tuple[tuple[float, ...], ...], of_game("initial_law")]
    boundary_quotes: Annotated[Literal["quoting", "zero", "risk_neutral"], of_game("boundary_quotes")]
    population: Annotated[
        tuple[str, str],
        Population("equilibrium"),
        'what the crowd plays: "equilibrium", "constant" (``1 / taker_fill_decay``), or the path of a table '
        "file by `mmgym.baselines.write_table`",
    ]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]
    role: Literal["taker", "maker"]

    @classmethod
    def create(cls, **arguments: Any) -> "Params":
        """Checked parameters; the arguments are those of `mmgym.envs.mean_field.MeanFieldTakerEnv`."""
        return create(cls, arguments)

    def completed(self, given: Mapping[str, Any]) -> "Params":
        """These parameters with role and crowd, checked against each other."""
        role: Literal["taker", "maker"] = "maker" if isinstance(self, MakerParams) else "taker"
        game = self.game.completed(given)
        population = population_of(game, given["population"])
        return self._replace(**game._asdict(), population=population, role=role)

    @property
    def game(self) -> Game:
        """The game without the role."""
        return Game._make(self[: len(Game._fields)])

    @property
    def flow(self) -> Flow:
        """The crowd's flow."""
        return flow_of(self.game, self.population)

    # Derived constants. Those that kernels read are listed in the markets below.

    @property
    def step_length(self) -> float:
        """Length ``h`` of a decision step (time)."""
        return self.horizon / self.num_steps

    @property
    def inverse_step(self) -> float:
        """``1 / h`` (1 / time)."""
        return self.num_steps / self.horizon

    @property
    def root_step(self) -> float:
        """``sqrt(h)`` (sqrt(time))."""
        return math.sqrt(self.step_length)

    @property
    def lots(self) -> NDArray[np.int64]:
        """The player's inventories in orders, shape (Q,)."""
        game = self.game
        return np.rint((game.inventory if self.role == "taker" else game.maker_inventory) / self.order_size).astype(int)

    @property
    def long(self) -> int:
        """Orders that the player may hold."""
        return int(self.lots[-1])

    @property
    def short(self) -> int:
        """Orders that the player may owe: the level of the inventory 0."""
        return -int(self.lots[0])

    @property
    def limit(self) -> int:
        """The player's larger limit in orders."""
        return max(self.long, self.short)

    @property
    def signal_levels(self) -> int:
        """The player's signal lies in ``-signal_levels .. signal_levels``: 0 for the maker, who has none."""
        return self.signal_limit if self.role == "taker" else 0

    @property
    def fill_decay(self) -> NDArray[np.float64]:
        """Of the player's bid and ask (1 / price), shape (2,)."""
        return self.game.taker_fill_decay if self.role == "taker" else self.game.maker_fill_decay

    @property
    def bid_decay(self) -> float:
        """Of the player's bid (1 / price)."""
        return float(self.fill_decay[0])

    @property
    def ask_decay(self) -> float:
        """Of the player's ask (1 / price)."""
        return float(self.fill_decay[1])

    @property
    def running_penalty(self) -> float:
        """``gamma sigma^2`` or ``phi sigma^2`` (price / (assets^2 time))."""
        return self.game.taker_penalty if self.role == "taker" else self.game.maker_penalty

    @property
    def impact_scale(self) -> float:
        """A drift ``m`` is observed as ``m / (|m| + impact_scale)`` (price / time): the largest signal, at least 1."""
        return float(max(self.signal_unit * self.signal_limit, 1))

    @property
    def signal_sizes(self) -> int:
        """Levels in the largest jump of the signal."""
        return len(self.signal_jump_sizes)

    @property
    def signal_jumps(self) -> NDArray[np.float64]:
        """Rates at which the signal rises and falls by 1, 2, ... levels (1 / time), shape (2, J)."""
        return self.game.jumps

    @property
    def initial(self) -> NDArray[np.float64]:
        """Law of the player's state at step 0, shape (B, Q)."""
        if self.role == "taker":
            return self.game.initial
        return np.asarray(np.eye(1, len(self.lots), self.game.maker_start))

    @property
    def start_inventory(self) -> int:
        """Initial inventory in orders, where the initial law is a point."""
        return round(self.initial_law[0][0]) if self.role == "taker" else self.game.maker_start - self.short

    @property
    def start_signal(self) -> int:
        """Initial signal, where the initial law is a point."""
        return round(self.initial_law[0][1]) if self.role == "taker" else 0

    @property
    def draws_start(self) -> int:
        """Whether the initial state is drawn: 1 or 0."""
        return int(self.role == "taker" and len(self.initial_law) > 1)

    @property
    def cumulative_initial_law(self) -> NDArray[np.float64]:
        """Cumulative initial law over cells (B, Q); from the last cell with mass on it is above 1."""
        law = self.initial.ravel()
        total = np.cumsum(law)
        total[np.flatnonzero(law)[-1] :] = 2.0
        return total

    def factors(self, flow: Flow | None = None) -> NDArray[np.float64]:
        """The player's fill intensities ``[bid, ask]`` at depth 0 (1 / time), shape (N, 2), against a crowd.

        Raises
        ------
        ValueError
            If the crowd's quotes give the maker more fills a step than can be computed with.
        """
        if self.role == "taker":
            return np.tile(self.game.taker_fill_rate, (self.num_steps, 1))
        flow = self.flow if flow is None else flow
        rates = maker_factors(self.game, flow.mean_quotes, flow.quoting)
        events = (rates @ np.exp(self.fill_decay * self.max_depth)).max() * self.step_length
        if events > 4.0 * MAX_EVENTS:
            g = self.game
            raise together(
                {
                    "population": self.population[0],
                    "maker_fill_rate": g.maker_fill_rate.tolist(),
                    "maker_fill_decay": g.maker_fill_decay.tolist(),
                    "max_depth": g.max_depth,
                    "horizon": g.horizon,
                    "num_steps": g.num_steps,
                },
                f"the quotes of the population give the maker {events:g} expected fills a step at the depth "
                f"-max_depth, which must be at most {4.0 * MAX_EVENTS:g}; raise num_steps or lower max_depth",
            )
        return rates

    @property
    def flow_rows(self) -> NDArray[np.float64]:
        """What kernels know of the crowd, shape (N + 1, columns)."""
        return _flow_rows(self)


class TakerParams(Params):
    """Parameters of one taker against the crowd."""

    __slots__ = ()


class MakerParams(Params):
    """Parameters of the market-maker against the crowd."""

    __slots__ = ()


def _crowd(p: Params) -> Params:
    """The parameters, with those that `flow_rows` do not depend on at one and the same value."""
    alike: dict[str, Any] = {"reward": "pnl", "maker_risk_aversion": 0.0, "maker_initial_inventory": 0.0}
    if p.role == "taker":
        sides = [f"maker_fill_{what}_{side}" for what in ("rate", "decay") for side in ("bid", "ask")]
        alike |= dict.fromkeys(sides, 1.0)
    if p.population[0] != "equilibrium":
        alike |= {"volatility": 1.0, "taker_risk_aversion": 0.0}
    return p._replace(**alike)


@functools.lru_cache(maxsize=16)
def _flow_rows(params: Params) -> NDArray[np.float64]:
    game, flow, count = params.game, params.flow, params.num_steps
    rows = np.zeros((count + 1, FIRST_TERM + DEGREE))
    rows[:-1, BID_FACTOR : ASK_FACTOR + 1] = params.factors(flow)
    path = game.impact * flow.movement
    rows[:-1, STEP_IMPACT] = path.sum(axis=1)
    rows[:-1, FIRST_TERM:] = path[:, 1:]
    used = (path[:, 1:] != 0.0) * np.arange(1, DEGREE + 1)
    rows[:-1, TERMS] = used.max(axis=1)
    rows[:-1, SEEN_BID : SEEN_ASK + 1] = flow.mean_quotes / game.max_depth
    drift = rows[:-1, STEP_IMPACT] / game.step_length
    rows[:-1, SEEN_IMPACT] = drift / (np.abs(drift) + params.impact_scale)
    rows[-1, SEEN_BID : SEEN_IMPACT + 1] = rows[-2, SEEN_BID : SEEN_IMPACT + 1]
    rows.setflags(write=False)
    return rows


# One row of state. Inventory is counted in orders; amounts of money are sums since the reset.
STATE = np.dtype(
    [
        ("drift_gain", "f8"),  # depths earned, and what impact and signal gave the inventory, price * assets
        ("price_gain", "f8"),  # sigma int q dW, price * assets
        ("inventory_square", "f8"),  # int q^2 dt, assets^2 * time
        ("mid", "f8"),  # S since the reset, price
        ("step", "i4"),
        ("inventory", "i4"),  # q / z
        ("signal", "i4"),  # b
        ("bid_fills", "u2"),  # in the last step
        ("ask_fills", "u2"),
    ]
)


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    s.drift_gain = 0.0
    s.price_gain = 0.0
    s.inventory_square = 0.0
    s.mid = 0.0
    s.step = 0
    s.bid_fills = 0
    s.ask_fills = 0
    if p.draws_start == 0:
        s.inventory = p.start_inventory
        s.signal = p.start_signal
    else:
        cell = 0
        draw, s.s0, s.s1 = uniform(s.s0, s.s1)
        while draw >= p.cumulative_initial_law[cell]:
            cell += 1
        levels = p.long + p.short + 1
        s.inventory = cell % levels - p.short
        s.signal = cell // levels - p.signal_levels


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Depths [bid, ask] and log-intensities of an action, clipped to the box; False if it is not finite."""
    bid, ask = np.float64(action[0]), np.float64(action[1])
    finite = abs(bid) + abs(ask) < np.inf
    controls[0] = p.max_depth * min(max(bid, -1.0), 1.0)
    controls[1] = p.max_depth * min(max(ask, -1.0), 1.0)
    log_intensities[0] = -p.bid_decay * controls[0]
    log_intensities[1] = -p.ask_decay * controls[1]
    return finite


@scalar_kernel
def impact_one(row, x):
    """The crowd's impact since the step began, at ``x`` in [0, 1] (price)."""
    total = 0.0
    for j in range(np.int64(row[TERMS]) - 1, -1, -1):
        total = (total + row[FIRST_TERM + j]) * x
    return total


@scalar_kernel
def signal_rates(p, b, most):
    """Rates at which the signal rises and falls from a level (1 / time): jumps beyond the limit do not happen."""
    rise = p.signal_rate_up if b < most else 0.0
    fall = p.signal_rate_down if b > -most else 0.0
    if p.signal_sizes == 1:
        return rise, fall
    rise = fall = 0.0
    for size in range(1, p.signal_sizes + 1):
        rise += p.signal_jumps[0, size - 1] if b + size <= most else 0.0
        fall += p.signal_jumps[1, size - 1] if b - size >= -most else 0.0
    return rise, fall


@scalar_kernel
def signal_jump(p, draw, fills, rise, b, most):
    """How far the signal jumps from a level: the draw, uniform on the sum of rates, is beyond that of the fills."""
    side = 0 if draw < fills + rise else 1
    size = 1
    if p.signal_sizes > 1:
        draw -= fills if side == 0 else fills + rise
        largest = min(p.signal_sizes, most - b if side == 0 else most + b)
        while size < largest and draw >= p.signal_jumps[side, size - 1]:
            draw -= p.signal_jumps[side, size - 1]
            size += 1
        while p.signal_jumps[side, size - 1] == 0.0:  # rounding, at the end of the draws
            size -= 1
    return size if side == 0 else -size


@scalar_kernel
def step_one(p, s, controls, intensities, flow_rows):
    """One exact step: (reward, terminated)."""
    row = flow_rows[s.step]
    bid_depth, ask_depth = controls[0], controls[1]
    bid_rate, ask_rate = row[BID_FACTOR] * intensities[0], row[ASK_FACTOR] * intensities[1]
    q, b, s0, s1 = np.int64(s.inventory), np.int64(s.signal), s.s0, s.s1

    left = p.step_length
    int_q = int_qq = int_b = int_bq = earned = pushed = moved = 0.0
    bids = asks = 0
    active_bid = bid_rate if q < p.long else 0.0
    active_ask = ask_rate if q > -p.short else 0.0
    rise, fall = signal_rates(p, b, p.signal_levels)
    rate = active_bid + active_ask + (rise + fall)
    clock, s0, s1 = exponential(s0, s1)
    while clock < rate * left:
        elapsed = clock / rate
        left -= elapsed
        length = q * elapsed
        int_q += length
        int_qq += q * length
        int_b += b * elapsed
        int_bq += b * length
        draw, s0, s1 = uniform(s0, s1)
        draw *= rate
        if draw < active_bid + active_ask:
            is_bid = draw < active_bid
            if row[TERMS] > 0.0:
                now = impact_one(row, 1.0 - left * p.inverse_step)
                moved += q * (now - pushed)
                pushed = now
            bids += is_bid
            asks += not is_bid
            q += 1 if is_bid else -1
            earned += bid_depth if is_bid else ask_depth
            active_bid = bid_rate if q < p.long else 0.0
            active_ask = ask_rate if q > -p.short else 0.0
        else:
            b += signal_jump(p, draw, active_bid + active_ask, rise, b, p.signal_levels)
            rise, fall = signal_rates(p, b, p.signal_levels)
        rate = active_bid + active_ask + (rise + fall)
        clock, s0, s1 = exponential(s0, s1)
    length = q * left
    int_q += length
    int_qq += q * length
    int_b += b * left
    int_bq += b * length
    moved += q * (row[STEP_IMPACT] - pushed)

    z, s0, s1 = normal(s0, s1)
    brownian = p.root_step * z  # W_h
    int_q_dw = q * brownian  # int q dW where q did not move
    if bids + asks > 0:
        mean_q = int_q * p.inverse_step
        z, s0, s1 = normal(s0, s1)
        int_q_dw = mean_q * brownian + math.sqrt(max(int_qq - int_q * mean_q, 0.0)) * z

    size = p.order_size
    drift_gain = size * (earned + moved + p.signal_unit * int_bq)
    price_gain = size * p.volatility * int_q_dw
    inventory_square = size * size * int_qq
    s.drift_gain += drift_gain
    s.price_gain += price_gain
    s.inventory_square += inventory_square
    s.mid += row[STEP_IMPACT] + p.signal_unit * int_b + p.volatility * brownian
    s.inventory = q
    s.signal = b
    s.bid_fills = bids
    s.ask_fills = asks
    s.s0 = s0
    s.s1 = s1
    s.step += 1
    reward = drift_gain - p.running_penalty * inventory_square
    if p.reward == PNL:
        reward += price_gain
    return reward, s.step >= p.num_steps


@scalar_kernel
def observe_taker(p, s, observation, flow_rows):
    """Observation [elapsed fraction of the horizon, inventory / limit, signal / limit]."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit
    observation[2] = s.signal / max(p.signal_levels, 1)


@scalar_kernel
def observe_maker(p, s, observation, flow_rows):
    """Observation [elapsed fraction, inventory / limit, takers' mean bid and ask / max_depth, squashed impact]."""
    observation[0] = s.step / p.num_steps
    observation[1] = s.inventory / p.limit
    observation[2] = flow_rows[s.step, SEEN_BID]
    observation[3] = flow_rows[s.step, SEEN_ASK]
    observation[4] = flow_rows[s.step, SEEN_IMPACT]


def state_ranges(params: Params) -> dict[str, tuple[float, float]]:
    """What columns of a state may be (see `mmgym.market.Market`)."""
    levels = params.signal_levels
    return {
        "step": (0, params.num_steps),
        "inventory": (-params.short, params.long),
        "signal": (-levels, levels),
        "inventory_square": (0.0, math.inf),
    }


def to_quotes(params: Params, actions: Any) -> NDArray[np.float64]:
    """Depths ``[bid, ask]`` (price), shape ``(..., 2)``, that the environment plays for actions of that shape."""
    return np.asarray(params.max_depth * np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0))


def from_quotes(params: Params, quotes: Any) -> NDArray[np.float32]:
    """Actions whose depths are the nearest to ``quotes`` (price), to float32 rounding; beyond the box: its edge."""
    actions = np.asarray(quotes, dtype=np.float64) / params.max_depth
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def observe(params: Params, step: Any, inventory: Any, signal: Any) -> NDArray[np.float32]:
    """Observations of steps, inventories (orders) and, for a taker, signals: bit for bit those of the environment.

    Shape ``(..., 3)`` for a taker, ``(..., 5)`` for the maker.
    """
    step, inventory, signal = np.broadcast_arrays(step, inventory, signal)
    columns = [step / params.num_steps, inventory / params.limit]
    if params.role == "taker":
        columns.append(signal / max(params.signal_levels, 1))
    else:
        rows = _flow_rows(params)[step]
        columns += [rows[..., SEEN_BID], rows[..., SEEN_ASK], rows[..., SEEN_IMPACT]]
    return np.stack(columns, axis=-1).astype(np.float32)


def locate(params: Params, observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Step, inventory (in orders of ``order_size`` assets) and signal (0 for the maker) of observations."""
    observations = np.asarray(observations, dtype=np.float64)
    step = np.rint(observations[..., 0] * params.num_steps).astype(np.int64)
    inventory = np.rint(observations[..., 1] * params.limit).astype(np.int64)
    levels = params.signal_levels
    signal = np.rint(observations[..., 2] * levels).astype(np.int64) if levels else np.zeros_like(step)
    return (
        np.clip(step, 0, params.num_steps),
        np.clip(inventory, -params.short, params.long),
        np.clip(signal, -levels, levels),
    )


def _market(params_type: Any, observe_one: Any, low: tuple[int, ...]) -> Market:
    return Market(
        name="mean_field",
        params_type=params_type,
        state=STATE,
        derived=(
            "step_length",
            "inverse_step",
            "root_step",
            "limit",
            "long",
            "short",
            "signal_levels",
            "signal_sizes",
            "bid_decay",
            "ask_decay",
            "running_penalty",
            "start_inventory",
            "start_signal",
            "draws_start",
        ),
        arrays={
            "cumulative_initial_law": ((2 * MAX_LEVELS + 1) * (2 * MAX_SIGNAL + 1),),
            "signal_jumps": (2, MAX_JUMP),
        },
        shared=Shared(_crowd, _flow_rows, "flows of distinct crowds"),
        num_controls=2,
        num_intensities=2,
        reset_one=reset_one,
        controls_one=controls_one,
        step_one=step_one,
        observe_one=observe_one,
        ranges=state_ranges,
        observation_low=lambda params: low,
        to_quotes=to_quotes,
        from_quotes=from_quotes,
        locate=locate,
    )


TAKER = _market(TakerParams, observe_taker, (0, -1, -1))
MAKER = _market(MakerParams, observe_maker, (0, -1, -1, -1, -1))
