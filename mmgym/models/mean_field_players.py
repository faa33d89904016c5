r"""The game behind the mean-field limit: ``N`` takers and a market-maker, each with depths of their own.

As in `mmgym.models.mean_field`, but every taker's fill moves the mid by ``kappa z / N`` (Baldacci, Bergault &
Possamai, section 2: (2.8) with executions at the mid after the impact), and the maker's intensities are those at the
mean of the depths that the takers play in the same step:

    taker i:  A^m exp(-k^m d_i),            dS = sigma dW + (kappa z / N) sum_i (dN_i^bid - dN_i^ask),
    maker:    A exp(-k (x + d)),            x = mean ask of the takers for her bid, mean bid for her ask.

A step freezes all depths and simulates the rest exactly: given these no player's fills depend on another's, so that
each has competing exponential clocks of her own; the fills of all are then put in the order of time, and the mid is
walked through them, Brownian motion included. One stream a game draws fills and signals, another the Brownian motion:
the same seed gives the same fills for both rewards.

What the maker of `mmgym.models.mean_field` sees, she sees here too: the flow of a crowd without limit in the coming
step. It is a forecast here, of the crowd that is named, and the takers of the game may do something else.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mmgym.arguments import choice, integer
from mmgym.compiling import KERNEL
from mmgym.models.mean_field import MakerParams, signal_jump, signal_rates
from mmgym.models.mean_field_game import Game
from mmgym.models.mean_field_population import population_of
from mmgym.random_streams import exponential, normal, start_stream, uniform

__all__ = ["MAX_TAKERS", "Params", "reset_games", "seed_games", "step_games"]

MAX_TAKERS = 10_000
BROWNIAN_STREAM = np.uint64(0x5851F42D4C957F2D)  # added to a game's seed for its second stream
FEW = 40  # events that are sorted by insertion

Array = NDArray[np.float64]


class Params(NamedTuple):
    """Parameters of the N-player game. Build them with `Params.create`, which checks them."""

    game: Game
    num_takers: int  # N
    reward: Literal["pnl", "expected"]
    forecast: tuple[str, str]  # what the maker expects the takers to play: as `mean_field.Params.population`

    @classmethod
    def create(
        cls, *, num_takers: int = 100, reward: str = "pnl", forecast: str = "constant", **arguments: Any
    ) -> "Params":
        """Checked parameters; the other arguments are those of `mmgym.models.mean_field_game.Game.create`.

        Raises
        ------
        ValueError
            If an argument is of the wrong type or out of range; the message names it, its value and what is allowed.
        """
        if "population" in arguments:
            raise ValueError("population is not allowed: every taker of this game is a player of her own")
        game = Game.create(**arguments)
        return cls(
            game=game,
            num_takers=integer("num_takers", num_takers, low=1, high=MAX_TAKERS),
            reward=choice("reward", reward, ("pnl", "expected")),
            forecast=population_of(game, forecast, "forecast"),
        )

    @property
    def price_step(self) -> float:
        """``kappa z / N``: what a taker's fill moves the mid by (price)."""
        return self.game.impact * self.game.order_size / self.num_takers

    @property
    def maker(self) -> MakerParams:
        """The maker of `mmgym.models.mean_field` against the crowd of the forecast."""
        return MakerParams(*self.game, population=self.forecast, reward=self.reward, role="maker")

    @property
    def record(self) -> Any:
        """What kernels read, a record of one row."""
        g, codes = self.game, ("quoting", "zero", "risk_neutral")
        entries = {
            "bid_rate": g.taker_fill_rate_bid,
            "ask_rate": g.taker_fill_rate_ask,
            "bid_decay": g.taker_fill_decay_bid,
            "ask_decay": g.taker_fill_decay_ask,
            "maker_bid_rate": g.maker_fill_rate_bid,
            "maker_ask_rate": g.maker_fill_rate_ask,
            "maker_bid_decay": g.maker_fill_decay_bid,
            "maker_ask_decay": g.maker_fill_decay_ask,
            "signal_rate_up": g.signal_rate_up,
            "signal_rate_down": g.signal_rate_down,
            "taker_penalty": g.taker_penalty,
            "maker_penalty": g.maker_penalty,
            "max_depth": g.max_depth,
            "size": g.order_size,
            "volatility": g.volatility,
            "price_step": self.price_step,
            "length": g.step_length,
            "long": g.shape[1] - 1 - g.short,
            "short": g.short,
            "maker_long": len(g.maker_inventory) - 1 - g.maker_short,
            "maker_short": g.maker_short,
            "maker_start": g.maker_start - g.maker_short,
            "signal_limit": g.signal_limit,
            "signal_unit": g.signal_unit,
            "signal_sizes": len(g.signal_jump_sizes),
            "num_steps": g.num_steps,
            "boundary": codes.index(g.boundary_quotes),
            "expected": int(self.reward == "expected"),
        }
        kinds: list[Any] = [(name, "f8" if isinstance(value, float) else "i8") for name, value in entries.items()]
        kinds.append(("signal_jumps", "f8", g.jumps.shape))
        return np.array([(*entries.values(), g.jumps)], dtype=kinds)[0]

    @property
    def cumulative_initial_law(self) -> Array:
        """Cumulative initial law over the cells of (signals, inventories); from the last cell with mass on above 1."""
        law = self.game.initial.ravel()
        total = np.cumsum(law)
        total[np.flatnonzero(law)[-1] :] = 2.0
        return total


@njit(**KERNEL)
def seed_games(seeds, streams):
    """Start the streams (G, 4) of games from 64-bit seeds (G,)."""
    for g in range(len(seeds)):
        streams[g, 0], streams[g, 1] = start_stream(seeds[g])
        streams[g, 2], streams[g, 3] = start_stream(seeds[g] + BROWNIAN_STREAM)


@njit(**KERNEL)
def reset_games(p, cumulative, games, streams, inventory, signal, maker_inventory, mid, step):
    """Start episodes in the games with these indices: takers' states are drawn from the initial law."""
    levels = p.long + p.short + 1
    single = np.flatnonzero(cumulative > 1.0)[0] == np.flatnonzero(cumulative > 0.0)[0]
    start = np.flatnonzero(cumulative > 0.0)[0]
    for g in games:
        s0, s1 = streams[g, 0], streams[g, 1]
        for i in range(inventory.shape[1]):
            cell = start
            if not single:
                draw, s0, s1 = uniform(s0, s1)
                cell = np.searchsorted(cumulative, draw, side="right")
            inventory[g, i] = cell % levels - p.short
            signal[g, i] = cell // levels - p.signal_limit
        streams[g, 0], streams[g, 1] = s0, s1
        maker_inventory[g] = p.maker_start
        mid[g] = 0.0
        step[g] = 0


@njit(**KERNEL)
def _mean_quote(p, inventory, actions, side):
    """Mean depth of the takers on a side (0 bid, 1 ask), and how many quote there."""
    total, quoting = 0.0, 0
    closed = p.long if side == 0 else -p.short
    count = len(inventory)
    for i in range(count):
        if inventory[i] != closed:
            total += min(max(np.float64(actions[i, side]), -1.0), 1.0)
            quoting += 1
    total *= p.max_depth
    if p.boundary == 0:
        return (total / quoting if quoting > 0 else 0.0), quoting
    if p.boundary == 2:
        total += (count - quoting) / (p.bid_decay if side == 0 else p.ask_decay)
    return total / count, quoting


@njit(**KERNEL)
def _longer(array):
    """An array twice as long that starts like ``array``."""
    longer = np.empty(2 * len(array), array.dtype)
    longer[: len(array)] = array
    return longer


@njit(**KERNEL)
def step_games(
    p, streams, inventory, signal, maker_inventory, mid, step, seen, fills, taker_actions, maker_actions,
    taker_rewards, maker_rewards,
):  # fmt: skip
    """One exact step of every game.

    Parameters
    ----------
    p : record
        `Params.record`.
    streams, inventory, signal, maker_inventory, mid, step
        States of the games: (G, 4) uint64, (G, N) int32 twice, and (G,) each. Inventories count orders.
    seen : (G, 2)
        Takes the takers' mean bid and ask depths of the step.
    fills : (G, 2)
        Takes the maker's fills at bid and ask.
    taker_actions, maker_actions : (G, N, 2), (G, 2) float32
        Depths over ``max_depth``, finite.
    taker_rewards, maker_rewards : (G, N), (G,)
        Take the rewards.
    """
    count = inventory.shape[1]
    times, players, changes = np.empty(4 * count + 64), np.empty(4 * count + 64, np.int64), np.empty(4 * count + 64)
    held, last, moved = np.empty(count + 1), np.empty(count + 1), np.empty(count + 1)
    length, size, ceiling = p.length, p.size, p.signal_limit
    for g in range(inventory.shape[0]):
        s0, s1 = streams[g, 0], streams[g, 1]
        mean_bid, bids_quoted = _mean_quote(p, inventory[g], taker_actions[g], 0)
        mean_ask, asks_quoted = _mean_quote(p, inventory[g], taker_actions[g], 1)
        seen[g, 0], seen[g, 1] = mean_bid, mean_ask
        events = 0
        fills[g, 0] = fills[g, 1] = 0
        for i in range(count + 1):
            maker = i == count
            if maker:
                q, b = np.int64(maker_inventory[g]), np.int64(0)
                rise, fall, penalty, long, short = 0.0, 0.0, p.maker_penalty, p.maker_long, p.maker_short
                bid_depth = p.max_depth * min(max(np.float64(maker_actions[g, 0]), -1.0), 1.0)
                ask_depth = p.max_depth * min(max(np.float64(maker_actions[g, 1]), -1.0), 1.0)
                bid_rate = p.maker_bid_rate * math.exp(-p.maker_bid_decay * (mean_ask + bid_depth))
                ask_rate = p.maker_ask_rate * math.exp(-p.maker_ask_decay * (mean_bid + ask_depth))
                if p.boundary == 0:  # nobody to trade with
                    bid_rate *= asks_quoted > 0
                    ask_rate *= bids_quoted > 0
            else:
                q, b = np.int64(inventory[g, i]), np.int64(signal[g, i])
                penalty, long, short = p.taker_penalty, p.long, p.short
                bid_depth = p.max_depth * min(max(np.float64(taker_actions[g, i, 0]), -1.0), 1.0)
                ask_depth = p.max_depth * min(max(np.float64(taker_actions[g, i, 1]), -1.0), 1.0)
                bid_rate = p.bid_rate * math.exp(-p.bid_decay * bid_depth)
                ask_rate = p.ask_rate * math.exp(-p.ask_decay * ask_depth)
                rise, fall = signal_rates(p, b, ceiling)
            held[i], last[i], moved[i] = q, 0.0, 0.0
            active_bid = bid_rate if q < long else 0.0
            active_ask = ask_rate if q > -short else 0.0
            left, int_qq, int_bq, earned = length, 0.0, 0.0, 0.0
            rate = active_bid + active_ask + (rise + fall)
            clock, s0, s1 = exponential(s0, s1)
            while clock < rate * left:
                elapsed = clock / rate
                left -= elapsed
                int_qq += q * q * elapsed
                int_bq += b * q * elapsed
                draw, s0, s1 = uniform(s0, s1)
                draw *= rate
                if draw < active_bid + active_ask:
                    is_bid = draw < active_bid
                    change = 1 if is_bid else -1
                    earned += bid_depth if is_bid else ask_depth
                    if events == len(times):
                        times, players, changes = _longer(times), _longer(players), _longer(changes)
                    times[events], players[events], changes[events] = length - left, i, change
                    if maker:
                        fills[g, 0 if is_bid else 1] += 1
                    events += 1
                    q += change
                    active_bid = bid_rate if q < long else 0.0
                    active_ask = ask_rate if q > -short else 0.0
                else:
                    b += signal_jump(p, draw, active_bid + active_ask, rise, b, ceiling)
                    rise, fall = signal_rates(p, b, ceiling)
                rate = active_bid + active_ask + (rise + fall)
                clock, s0, s1 = exponential(s0, s1)
            int_qq += q * q * left
            int_bq += b * q * left
            reward = size * (earned + p.signal_unit * int_bq) - penalty * size * size * int_qq
            if maker:
                maker_inventory[g] = q
                maker_rewards[g] = reward
            else:
                inventory[g, i], signal[g, i] = q, b
                taker_rewards[g, i] = reward
        streams[g, 0], streams[g, 1] = s0, s1
        path = (times[:events], players[:events], changes[:events], held, last, moved)
        maker_moved, moves = _walk(p, streams[g], *path, taker_rewards[g])
        maker_rewards[g] += size * maker_moved
        mid[g] += moves
        step[g] += 1


@njit(**KERNEL)
def _in_order(times):
    """Indices that sort times: a few are quicker inserted one by one."""
    if len(times) > FEW:
        return np.argsort(times)
    order = np.empty(len(times), np.int64)
    for e in range(len(times)):
        k = e
        while k > 0 and times[order[k - 1]] > times[e]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = e
    return order


@njit(**KERNEL)
def _walk(p, stream, times, players, changes, held, last, moved, taker_rewards):
    """Walk the mid through fills in the order of time: ``int q dS`` to takers' rewards, the maker's, and the move."""
    count = len(taker_rewards)
    s0, s1 = stream[2], stream[3]
    brownian = p.expected == 0 and p.volatility > 0.0
    price, now = 0.0, 0.0
    for e in _in_order(times):
        i = players[e]
        if brownian:
            z, s0, s1 = normal(s0, s1)
            price += p.volatility * math.sqrt(times[e] - now) * z
            now = times[e]
        if i < count:
            price += p.price_step * changes[e]
        moved[i] += held[i] * (price - last[i])
        last[i] = price
        held[i] += changes[e]
    z, s0, s1 = normal(s0, s1)
    if brownian:
        price += p.volatility * math.sqrt(p.length - now) * z
    stream[2], stream[3] = s0, s1
    for i in range(count):
        taker_rewards[i] += p.size * (moved[i] + held[i] * (price - last[i]))
    maker_moved = moved[count] + held[count] * (price - last[count])
    return maker_moved, price if brownian else price + p.volatility * math.sqrt(p.length) * z
