"""The kernels of declared markets: one exact step, written once over the functions that an author states.

Those that `mmgym.declare` makes of a declaration are found by the type of the parameter record ``p``, as in
`mmgym.batch_kernels`.
"""

import math
from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.extending import overload

from mmgym.batch_kernels import market_function
from mmgym.compiling import COMPILED, KERNEL, kernel_rows
from mmgym.dual_numbers import DualType, dual, overload_dual, slope_of
from mmgym.market import scalar_kernel
from mmgym.models.wealth import MAX_EXPONENT
from mmgym.random_streams import exponential, normal, uniform
from mmgym.vector_exp import fast_exp

__all__ = ["controls_one", "exp", "reset_one", "step_one"]

BID, ASK, ORDER = 1, 2, 3  # what an event counts as; 0: nothing


def exp(x):
    """``exp(x)`` in the functions of a declaration: three times faster than that of `math`."""
    return math.exp(x) if COMPILED else fast_exp(x)  # without a compiler: bit for bit what kernels compute


@overload(exp)
def _exp(x):
    return None if isinstance(x, DualType) else lambda x: fast_exp(np.float64(x))


def _dual_exp(x):
    value = fast_exp(x.value)
    return dual(value, value * x.slope)


overload_dual(exp, _dual_exp)


def as_tuple(moved):
    """An effect as a tuple: of one coordinate it may be a number."""
    return moved if isinstance(moved, tuple) else (moved,)


@overload(as_tuple)
def _as_tuple(moved):
    return (lambda moved: moved) if isinstance(moved, types.BaseTuple) else (lambda moved: (moved,))


def _declared(name):
    """A function that `mmgym.declare` makes of a declaration, looked up by the record ``p``, its first parameter."""
    return market_function(name, lambda market: market.declaration.kernels)


# Of the state

load = _declared("load")  # (p, s): the coordinates of a row of state
place = _declared("place")  # (p, s, x): write coordinates into a row of state
from_row = _declared("from_row")  # (p, step, row): coordinates from an array
to_row = _declared("to_row")  # (p, x, row): coordinates, without the step, to an array
at_step = _declared("at_step")  # (p, step, x): the same coordinates at another step
differs = _declared("differs")  # (p, x, y): whether coordinates differ

# Of the controls

to_controls = _declared("to_controls")  # (p, row): controls from an array
to_duals = _declared("to_duals")  # (p, row, j): dual numbers with a slope in the j-th
is_box = _declared("is_box")  # (p, j): whether the ``j``-th control is a box, not a choice
some_boxes = _declared("some_boxes")  # (p): whether any control is a box
allowed = _declared("allowed")  # (p, x, j, entry): whether the ``j``-th choice may be ``entry``

# Of the events

fixed_rates = _declared("fixed_rates")  # (p, u): a tuple; 0 where they depend on x
rates = _declared("rates")  # (p, x, u, fixed): intensities (a tuple), 0 of an event that is not open
fill_rates = _declared("fill_rates")  # (p, x, u, fixed, values): the same into an array
fill_rate_slopes = _declared("fill_rate_slopes")  # (p, x, u, fixed, slopes): of dual controls
payoff = _declared("payoff")  # (p, x, u, k): what the ``k``-th event pays
fill_chances = _declared("fill_chances")  # (p, x, values): of marks, 1 of an event without, into an array
fill_payoffs = _declared("fill_payoffs")  # (p, x, u, values): what every open event pays, into an array
fill_payoff_slopes = _declared("fill_payoff_slopes")  # (p, x, u, slopes): of dual controls
chosen = _declared("chosen")  # (p, r, draw): the event at ``draw``, below the sum of the intensities ``r``
total = _declared("total")  # (p, r): the sum of the intensities ``r``, from the first on
is_open = _declared("is_open")  # (p, x, k): whether the ``k``-th event can happen
effect = _declared("effect")  # (p, x, k): the coordinates after the ``k``-th event
counts_as = _declared("counts_as")  # (p, k): what the ``k``-th event counts as
num_events = _declared("num_events")  # (p): number of events

# Of decisions, and per unit of time

has_impulse = _declared("has_impulse")  # (p): whether a decision may move the coordinates
impulse_payoff = _declared("impulse_payoff")  # (p, x, u): what the impulse pays
impulse_effect = _declared("impulse_effect")  # (p, x, u): the coordinates after the impulse
income = _declared("income")  # (p, x, u): gain per unit of time
running_penalty = _declared("running_penalty")  # (p, x, u): penalty per unit of time
position = _declared("position")  # (p, x): assets exposed to the price
variance = _declared("variance")  # (p, x): variance of the price per unit of time
drift = _declared("drift")  # (p, x): expected change of the price per unit of time
liquidation = _declared("liquidation")  # (p, x): what is paid at the end
terminal_penalty = _declared("terminal_penalty")  # (p, x): penalty at the end
has_mid = _declared("has_mid")  # (p): whether coordinates tell the mid
mid = _declared("mid")  # (p, x): what they add to it


@scalar_kernel
def revalued(p, x, y):
    """What the position in ``y`` gains as the mid moves from ``x`` to ``y``."""
    return position(p, y) * (mid(p, y) - mid(p, x)) if has_mid(p) else 0.0


@scalar_kernel
def carry(p, x, r):
    """What events at the intensities ``r`` gain on average by moving the mid, per unit of time; 0 under CARA."""
    gain = 0.0
    if has_mid(p) and p.aversion == 0.0:
        for k in range(num_events(p)):
            if r[k] > 0.0:
                gain += r[k] * revalued(p, x, effect(p, x, k))
    return gain


@scalar_kernel
def reset_one(p, s):
    """Start an episode."""
    start = 0
    if p.start_chances[0] < 1.0:
        draw, s.s0, s.s1 = uniform(s.s0, s.s1)
        while draw >= p.start_chances[start]:
            start += 1
    x = from_row(p, 0, p.starts[start])
    place(p, s, x)
    s.gain = 0.0
    s.price_gain = 0.0
    s.penalty = 0.0
    s.price_square = 0.0
    s.mid = p.start_price + mid(p, x)
    s.position = position(p, x)
    s.start_position = s.position
    s.step = 0
    s.bid_fills = 0
    s.ask_fills = 0
    s.market_orders = 0
    s.masked_actions = 0


@scalar_kernel
def controls_one(p, action, controls, log_intensities):
    """Controls of an action, boxes clipped to their bounds; False if it is not finite, or no choice."""
    acceptable: Any = True
    for j in range(controls.shape[0]):
        if not some_boxes(p):
            acceptable &= 0 <= action[j] < p.control_count[j]
            controls[j] = p.control_low[j] + action[j]
            continue
        entry: Any = np.float64(action[j])
        acceptable &= abs(entry) < np.inf
        entry = min(max(entry, -1.0), 1.0)
        if is_box(p, j):
            controls[j] = p.control_center[j] + p.control_reach[j] * entry
        else:  # a column of a box, cut into equal parts
            count = p.control_count[j]
            part = math.floor((0.5 * entry + 0.5) * count) if acceptable else 0
            controls[j] = p.control_low[j] + min(part, count - 1.0)
    return acceptable


@scalar_kernel
def nearest_allowed(p, x, j, entry):
    """The allowed entry of the ``j``-th choice that is nearest to ``entry``, of two the lower one."""
    low, high = np.int64(p.control_low[j]), np.int64(p.control_low[j] + p.control_count[j]) - 1
    for distance in range(high - low + 1):
        if entry - distance >= low and allowed(p, x, j, entry - distance):
            return entry - distance
        if entry + distance <= high and allowed(p, x, j, entry + distance):
            return entry + distance
    return entry


@scalar_kernel
def admit(p, x, controls):
    """Put the nearest allowed choices in the place of masked ones; how many were masked."""
    masked = 0
    for j in range(controls.shape[0]):
        if not is_box(p, j):
            asked = np.int64(controls[j])
            played = nearest_allowed(p, x, j, asked)
            masked += played != asked
            controls[j] = played
    return masked


@scalar_kernel
def step_one(p, s, controls, intensities):
    """One exact step: (reward, terminated). Puts the choices that were played in the place of masked ones."""
    x = load(p, s)
    step, before = np.int64(s.step), x
    s.masked_actions += np.int32(admit(p, x, controls))
    u = to_controls(p, controls)
    s0, s1 = s.s0, s.s1
    bids = asks = orders = 0
    gain = 0.0
    if has_impulse(p):
        gain += impulse_payoff(p, x, u)
        landed = impulse_effect(p, x, u)
        gain += revalued(p, x, landed)
        orders += differs(p, landed, x)
        x = landed

    left = p.step_length
    noise = noise_q = noise_qq = trend = penalty = jumps = 0.0
    moved = False
    fixed = fixed_rates(p, u)
    r = rates(p, x, u, fixed)
    rate = total(p, r)
    clock, s0, s1 = exponential(s0, s1)
    while True:
        happens = clock < rate * left
        elapsed = clock / rate if happens else left
        q, v, mu = position(p, x), variance(p, x), drift(p, x)
        weight = v * elapsed
        noise += weight
        noise_q += q * weight
        noise_qq += q * q * weight
        trend += mu * elapsed
        carried = carry(p, x, r)
        gain += (income(p, x, u) + q * mu + carried) * elapsed
        jumps -= carried * elapsed
        penalty += running_penalty(p, x, u) * elapsed
        if not happens:
            break
        left -= elapsed
        draw, s0, s1 = uniform(s0, s1)
        k = chosen(p, r, draw * rate)
        gain += payoff(p, x, u, k)
        kind = counts_as(p, k)
        bids += kind == BID
        asks += kind == ASK
        orders += kind == ORDER
        y = effect(p, x, k)
        if p.aversion == 0.0:
            jumps += revalued(p, x, y)
        else:
            gain += revalued(p, x, y)
        x = y
        moved = True
        r = rates(p, x, u, fixed)
        rate = total(p, r)
        clock, s0, s1 = exponential(s0, s1)

    z, s0, s1 = normal(s0, s1)
    brownian = math.sqrt(noise) * z
    price_gain = position(p, x) * brownian
    if moved:
        mean_q = noise_q / noise if noise > 0.0 else 0.0
        z, s0, s1 = normal(s0, s1)
        price_gain = mean_q * brownian + math.sqrt(max(noise_qq - noise_q * mean_q, 0.0)) * z

    s.step += 1
    terminated = s.step >= p.num_steps
    x = at_step(p, step + 1, x)
    if terminated:
        gain -= liquidation(p, x)
        penalty += terminal_penalty(p, x)
    place(p, s, x)
    price_gain += jumps
    s.gain += gain
    s.price_gain += price_gain
    s.penalty += penalty
    s.price_square += noise_qq
    s.mid += trend + brownian + (mid(p, x) - mid(p, before))
    s.position = position(p, x)
    s.bid_fills = bids
    s.ask_fills = asks
    s.market_orders = orders
    s.s0 = s0
    s.s1 = s1

    if p.aversion == 0.0:
        return gain - penalty + (0.0 if p.expected else price_gain), terminated
    if not terminated:
        return 0.0, terminated
    exponent = -p.aversion * (s.gain - s.penalty)
    if p.expected:
        exponent += 0.5 * p.aversion * p.aversion * s.price_square
    else:
        exponent -= p.aversion * s.price_gain
    return -math.exp(min(exponent, MAX_EXPONENT)), terminated


@njit(**KERNEL)
def find_transitions(params, rows, opened, reached):
    """Which events are open in states, what their effects are, and where they come to: see `mmgym.declare`.

    Parameters
    ----------
    rows : (S, C) int
        Coordinates.
    found : (E, S) bool
        Out: whether an event is open.
    reached : (E, S, C) int
        Out: the coordinates after it, those before it where it is not open.
    """
    p = params[0]
    for i in range(rows.shape[0]):
        x = from_row(p, 0, rows[i])
        for k in range(num_events(p)):
            opened[k, i] = is_open(p, x, k)
            reached[k, i] = rows[i]
            if opened[k, i]:
                to_row(p, effect(p, x, k), reached[k, i])


@njit(**KERNEL)
def find_impulses(params, step, rows, controls, reached, paid):
    """Coordinates (S, C) after the impulse of controls, (C,), in states (S, C), and what it pays (S,)."""
    p = params[0]
    u = to_controls(p, controls)
    for i in range(rows.shape[0]):
        x = from_row(p, step, rows[i])
        landed = impulse_effect(p, x, u)
        to_row(p, landed, reached[i])
        paid[i] = impulse_payoff(p, x, u) + revalued(p, x, landed)


@njit(**KERNEL)
def find_allowed(params, step, rows, entries):
    """Which entries of every choice are allowed in states (S, C): bool (S, choices, entries)."""
    p = params[0]
    for i in range(rows.shape[0]):
        x = from_row(p, step, rows[i])
        for j in range(entries.shape[1]):
            if is_box(p, j):
                continue
            for entry in range(np.int64(p.control_count[j])):
                entries[i, j, entry] = allowed(p, x, j, np.int64(p.control_low[j]) + entry)


@njit(**KERNEL)
def find_chances(params, step, rows, chances):
    """Chances (E, S) of marks in states (S, C)."""
    p = params[0]
    for i in range(rows.shape[0]):
        fill_chances(p, from_row(p, step, rows[i]), chances[:, i])


@njit(**KERNEL)
def find_rates(take, raw, step, rows, order, controls, weights, rate, pay, flow, noise):
    """What happens in the states ``order`` (M,), by `rates_function`: the highest total intensity, or -1."""
    buffer = np.empty((2, len(rate)))
    return take(raw, step, rows, order, len(order), controls, weights, rate, pay, flow, noise, buffer)


@njit(**KERNEL)
def find_sampled_rates(take, raw, step, rows, sample, rate, pay):
    """Intensities and payoffs (M, E, S) under a sample of controls (M, C)."""
    buffer, order, weights = np.empty((2, rate.shape[1])), np.arange(len(rows)), np.ones(7)
    flow, noise = np.empty(len(rows)), np.empty(len(rows))
    for m in range(len(sample)):
        take(raw, step, rows, order, len(order), sample[m], weights, rate[m], pay[m], flow, noise, buffer)


@njit(**KERNEL)
def find_state_rates(params, step, rows, controls, columns):
    """Numbers of states (S, C) under controls (controls,): income, running penalty, position, variance, drift,
    what is paid at the end, as liquidation and as penalty, and what they add to the mid: (8, S)."""
    p = params[0]
    u = to_controls(p, controls)
    for i in range(rows.shape[0]):
        x = from_row(p, step, rows[i])
        columns[0, i] = income(p, x, u)
        columns[1, i] = running_penalty(p, x, u)
        columns[2, i] = position(p, x)
        columns[3, i] = variance(p, x)
        columns[4, i] = drift(p, x)
        columns[5, i] = liquidation(p, x)
        columns[6, i] = terminal_penalty(p, x)
        columns[7, i] = mid(p, x)


# What happens in states under controls, as functions of one type: what calls them is compiled once for all markets.

GAIN, PRICE, PENALTY, FILLS, ORDERS, ABSOLUTE, JUMPS = range(7)  # of the weights of a functional

_LINE, _TABLE = types.Array(types.float64, 1, "C"), types.Array(types.float64, 2, "C")
_RECORD, _STATES = types.Array(types.uint8, 1, "C"), types.Array(types.int64, 1, "C")
_ROWS = types.Array(types.int64, 2, "C")
_RATES = types.float64(
    _RECORD, types.int64, _ROWS, _STATES, types.int64, _LINE, _LINE, _TABLE, _TABLE, _LINE, _LINE, _TABLE
)  # fmt: skip
_SLOPES = types.float64(
    _RECORD, types.int64, _ROWS, _STATES, types.int64, _LINE, types.int64, _TABLE, _TABLE, _LINE, _TABLE
)  # fmt: skip


@scalar_kernel
def _take_rates(p, step, rows, order, size, controls, weights, rate, pay, flow, noise, buffer):
    """See `rates_function`; ``p`` is the record."""
    u = to_controls(p, controls)
    fixed = fixed_rates(p, u)
    highest = 0.0
    wrong = False
    for i in range(size):
        x = from_row(p, step, rows[order[i]])
        fill_rates(p, x, u, fixed, buffer[0])
        fill_payoffs(p, x, u, buffer[1])
        leaving = carried = 0.0
        for k in range(num_events(p)):
            intensity = buffer[0, k]
            wrong |= not 0.0 <= intensity < np.inf
            leaving += intensity
            kind = counts_as(p, k)
            paid = weights[GAIN] * buffer[1, k]
            if kind == ORDER:
                paid += weights[ORDERS]
            elif kind in (BID, ASK):
                paid += weights[FILLS]
            if has_mid(p) and intensity > 0.0:
                jump = revalued(p, x, effect(p, x, k))
                carried += intensity * jump
                paid += weights[JUMPS] * jump
            rate[k, i], pay[k, i] = intensity, paid
        highest = max(highest, leaving)
        q = position(p, x)
        gained = weights[GAIN] * (income(p, x, u) + q * drift(p, x)) + weights[ABSOLUTE] * abs(q)
        gained += (weights[GAIN] - weights[JUMPS]) * carried
        flow[i] = gained - weights[PENALTY] * running_penalty(p, x, u)
        noise[i] = weights[PRICE] * weights[PRICE] * variance(p, x) * q * q
    return -1.0 if wrong else highest


def rates_function(dtype: Any) -> Any:
    """The function of a market, by the type of its record, that fills in what happens.

    It takes the record's bytes, the step, coordinates (S, C), states (M,) and how many of them count, controls and
    weights of a functional; and fills in, by state, intensities (E, M), what events pay (E, M), what the functional
    gains per unit of time (M,) and the variance of its noise (M,). It returns the highest total intensity, or -1 where
    an intensity is negative or not finite.
    """

    def take_rates(raw, step, rows, order, size, controls, weights, rate, pay, flow, noise, buffer):
        p = raw.view(dtype)[0]
        return _take_rates(p, step, rows, order, size, controls, weights, rate, pay, flow, noise, buffer)

    def interpreted(raw, *rest):
        return _take_rates(kernel_rows(raw.view(dtype))[0], *rest)

    return cfunc(_RATES, cache=KERNEL["cache"])(take_rates) if COMPILED else interpreted


def slopes_function(dtype: Any) -> Any:
    """The function of a market that fills in the slopes of what happens in the ``j``-th control.

    Of intensities (E, M), payoffs (E, M), and of income less running penalty (M,); otherwise as `rates_function`.

    Raises
    ------
    RuntimeError
        Without a compiler.
    """
    if not COMPILED:
        raise RuntimeError("derivatives of a declared market need the compiler: unset NUMBA_DISABLE_JIT")

    @cfunc(_SLOPES, cache=KERNEL["cache"])
    def take_slopes(raw, step, rows, order, size, controls, j, rate, pay, flow, buffer):
        p = raw.view(dtype)[0]
        u = to_duals(p, controls, j)
        fixed = fixed_rates(p, u)
        for i in range(size):
            x = from_row(p, step, rows[order[i]])
            fill_rate_slopes(p, x, u, fixed, buffer[0])
            fill_payoff_slopes(p, x, u, buffer[1])
            for k in range(num_events(p)):
                rate[k, i], pay[k, i] = buffer[0, k], buffer[1, k]
            flow[i] = slope_of(income(p, x, u)) - slope_of(running_penalty(p, x, u))
        return 0.0

    return take_slopes
