"""Continuous time: the quasi-variational inequality and controls that react at once.

Expected values are the reference's digits, or come from a second method: the scheme written out state by state in plain
Python, and dense matrix exponentials. There are no statistical checks.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import expm

from mmgym.baselines import frozen
from mmgym.baselines.frozen import Functional
from mmgym.baselines.tick_spread.continuous import (
    continuous_controls,
    continuous_solution,
    continuous_values,
    mean_clock,
    scheme,
    stable_step,
)
from mmgym.baselines.tick_spread.feedback import (
    FeedbackProblem,
    feedback_certainty_equivalent,
    feedback_moments,
    feedback_pnl_law,
    feedback_problem,
)
from mmgym.models.tick_spread import Params

Array = NDArray[Any]

CRITERION = Functional(gain=1.0, penalty=1.0)
QVI = {0.6: 23.910400, 0.3: 23.904830, 0.15: 23.902249, 0.075: 23.901031, 0.0375: 23.900433}  # by the scheme's step
VALUES_AT_0 = {
    0: (23.78923, 23.80460, 23.83431, 23.88186, 23.95310, 24.02550),
    100: (23.52881, 23.49115, 23.51887, 23.57456, 23.64821, 23.71762),
    200: (23.15881, 22.87292, 22.74850, 22.75718, 22.81810, 22.89386),
    500: (22.04880, 21.01292, 20.13850, 19.43252, 18.96881, 18.92862),
}
# Spread: full buys up to y, no buys from y, improved bid up to y, market sells from y, which land on.
STRUCTURE = {
    1: (-50, 50, None, 53, 52),
    2: (0, 100, -108, 107, 106),
    3: (62, 162, -66, 176, 175),
    4: (139, 239, -19, 254, 253),
    5: (252, 352, 18, 384, 383),
    6: (558, 658, 58, 726, 725),
}
# Size, cap, whether the reducing side is improved; value in continuous time.
CAPPED = [(100, 100, False, 13.6125), (100, 200, False, 6.0871), (100, 200, True, 18.0210), (50, 100, True, 11.5670)]


def by_spread(params: Params, states: Array) -> Array:
    """(S, ...) as (m, Y, ...)."""
    return states.reshape(params.num_spreads, 2 * params.limit + 1, *states.shape[1:])


def stationary(params: Params, values: Array) -> float:
    """Value (S,) without inventory, the spread from its stationary law."""
    return float(params.initial_spread_law @ by_spread(params, values)[:, params.limit])


def small(**changes: Any) -> Params:
    """Three spreads, nine inventories; everything differs between the sides, the clock changes inside a step."""
    arguments: dict[str, Any] = {
        "tick": 0.01,
        "spread_transitions": [[0.0, 0.7, 0.3], [0.4, 0.0, 0.6], [0.8, 0.2, 0.0]],
        "clock_rate": [[0.0, 0.5], [1.3, 2.0], [4.0, 0.2]],
        "fill_rate_best": [[0.30, 0.20, 0.15], [0.25, 0.22, 0.10]],
        "fill_rate_improved": [[0.60, 0.50, 0.40], [0.55, 0.35, 0.45]],
        "rebate": 0.002,
        "fee": 0.001,
        "fixed_fee": 0.01,
        "running_penalty": 2e-5,
        "lot": 20.0,
        "limit_order_max": 40.0,
        "market_order_max": 40.0,
        "inventory_limit": 80.0,
        "initial_inventory": -20.0,
        "volatility": 0.03,
        "horizon": 6.0,
        "num_steps": 3,
    }
    return Params.create(**(arguments | changes))


def mirrored(params: Params, values: Array) -> Array:
    """Values (..., S) with the inventory's sign changed."""
    shape = (*values.shape[:-1], params.num_spreads, -1)
    return np.asarray(values.reshape(shape)[..., ::-1].reshape(values.shape))


def mirrored_controls(params: Params, controls: Array) -> Array:
    """Controls (..., S, 5) with the inventory's sign and the sides exchanged."""
    shape = (*controls.shape[:-2], params.num_spreads, -1, 5)
    turned = controls.reshape(shape)[..., ::-1, :].reshape(controls.shape)[..., [1, 0, 3, 2, 4]]
    return np.asarray(turned * np.array([1.0, 1.0, 1.0, 1.0, -1.0]) + 0.0)


# Reference digits


@pytest.mark.parametrize("step", QVI)
def test_scheme_has_the_reference_digits(step: float) -> None:
    params = Params.create()
    values, none = scheme(params, 1, round(300.0 / step), with_controls=False)
    assert none is None
    assert stationary(params, values[0]) == pytest.approx(QVI[step], abs=0.51e-6)


def test_extrapolated_values_are_those_of_the_reference() -> None:
    params = Params.create(num_steps=10)
    solution = continuous_solution(params, time_step=0.3)
    assert stationary(params, solution.values[0]) == pytest.approx(23.8998, abs=0.51e-4)
    assert stationary(params, solution.errors[0]) < 2e-4
    table = by_spread(params, solution.values[0])
    for shares, row in VALUES_AT_0.items():
        for sign in (-1, 1):
            column = table[:, params.limit + sign * shares // 10]
            np.testing.assert_allclose(column, row, rtol=0, atol=0.51e-5)
    finer = continuous_solution(params, time_step=0.075)
    assert (np.abs(finer.values - solution.values) < solution.errors + finer.errors + 1e-4).all()
    np.testing.assert_array_equal(continuous_values(params, time_step=0.3), solution.values)
    np.testing.assert_array_equal(continuous_controls(params, time_step=0.3), solution.controls)


@pytest.mark.parametrize(
    ("changes", "value", "accuracy"),
    [
        ({"market_order_max": 0.0}, 21.31052, 0.51e-5),
        ({"lot": 50.0}, 23.8867, 2e-4),
        ({"lot": 100.0}, 23.00, 0.51e-2),
        ({"utility": "cara"}, 22.5811, 0.51e-4),
        ({"utility": "cara", "market_order_max": 0.0}, 19.8817, 0.51e-4),
    ],
)
def test_variants_have_the_reference_digits(changes: dict[str, Any], value: float, accuracy: float) -> None:
    params = Params.create(num_steps=10, **changes)
    solution = continuous_solution(params, time_step=0.3)
    assert stationary(params, solution.values[0]) == pytest.approx(value, abs=accuracy)
    assert stationary(params, solution.errors[0]) < 2e-4


@pytest.mark.parametrize(("lot", "value"), [(5.0, 23.905608), (1.0, 23.908610)])
def test_finer_sizes_at_one_step_of_the_scheme(lot: float, value: float) -> None:
    params = Params.create(lot=lot)
    assert stationary(params, scheme(params, 1, 1000, with_controls=False)[0][0]) == pytest.approx(value, abs=0.51e-6)


def test_small_risk_aversion_tends_to_the_mean_without_penalty() -> None:
    indifferent = Params.create(running_penalty=0.0)
    mean = stationary(indifferent, scheme(indifferent, 1, 1000, with_controls=False)[0][0])
    equivalents = {}
    for eta in (1e-5, 1e-6):
        params = Params.create(utility="cara", risk_aversion=eta)
        equivalents[eta] = stationary(params, scheme(params, 1, 1000, with_controls=False)[0][0])
    assert equivalents[1e-6] == pytest.approx(35.984, abs=0.51e-3)
    assert mean - equivalents[1e-6] == pytest.approx(0.1 * (mean - equivalents[1e-5]), rel=0.01)


def structure(params: Params, controls: Array) -> dict[int, tuple[int | None, ...]]:
    lots = np.arange(-params.limit, params.limit + 1)
    rows = {}
    for spread, table in enumerate(by_spread(params, controls), start=1):
        here = table[:, 4] == 0.0
        inner = here & (lots < params.limit - params.size_max)
        improved = here & (table[:, 0] == 1.0)
        first = int(lots[table[:, 4] < 0.0].min())
        landed = first + round(table[params.limit + first, 4] / params.lot)
        full = int(lots[here & (table[:, 2] == params.limit_order_max)].max())
        none = int(lots[inner & (table[:, 2] == 0.0)].min())
        rows[spread] = (full, none, int(lots[improved].max()) if improved.any() else None, first, landed)
    return rows


def test_structure_of_the_optimum_on_unit_shares() -> None:
    params = Params.create(lot=1.0)
    _, controls = scheme(params, 1, 1000)
    assert controls is not None
    assert structure(params, controls[0]) == STRUCTURE


@pytest.mark.slow
def test_unit_shares_extrapolated() -> None:
    params = Params.create(lot=1.0, num_steps=1)
    solution = continuous_solution(params, time_step=0.3)
    assert stationary(params, solution.values[0]) == pytest.approx(23.9036, abs=1e-4)
    for spread, row in structure(params, solution.controls[0]).items():  # flat optima: a few shares
        expected = np.array([np.nan if entry is None else entry for entry in STRUCTURE[spread]])
        np.testing.assert_allclose([np.nan if entry is None else entry for entry in row], expected, rtol=0, atol=3)


def capped(params: Params, size: float, cap: float, improve: bool) -> Array:
    """One cell of the reference's benchmarks: quotes as long as they do not lead beyond the cap."""
    shares = np.arange(-params.limit, params.limit + 1) * params.lot
    table = np.zeros((params.num_spreads, len(shares), 5))
    table[..., 2], table[..., 3] = size * (shares + size <= cap), size * (shares - size >= -cap)
    if improve:
        table[..., 0], table[..., 1] = shares < 0, shares > 0
    return table.reshape(1, -1, 5)


@pytest.mark.parametrize(("size", "cap", "improve", "value"), CAPPED)
def test_benchmarks_have_the_reference_digits(size: float, cap: float, improve: bool, value: float) -> None:
    params = Params.create()
    mean, _ = feedback_moments(params, capped(params, size, cap, improve), CRITERION)
    # The second is 6.0870489, also by a dense exponential below: the reference was rounded twice.
    assert mean == pytest.approx(value, abs=0.52e-4)


@pytest.mark.parametrize(("cap", "improve"), [(200.0, False), (200.0, True), (100.0, False)])
def test_benchmarks_against_one_dense_exponential(cap: float, improve: bool) -> None:
    params = Params.create(lot=100.0)
    table = capped(params, 100.0, cap, improve)
    first, _ = dense_moments(params, table, CRITERION)
    mean, _ = feedback_moments(params, table, CRITERION)
    assert mean == pytest.approx(stationary(params, first), abs=1e-10)


def test_constant_quotes() -> None:
    params = Params.create(lot=100.0)
    mean, _ = feedback_moments(params, capped(params, 100.0, np.inf, False), CRITERION)
    assert mean == pytest.approx(-93.0721, abs=0.51e-4)
    free = Params.create(lot=100.0, inventory_limit=None)
    assert feedback_moments(free, capped(free, 100.0, np.inf, False))[0] == pytest.approx(25.290, abs=0.51e-3)
    nothing = np.zeros((1, 6 * (2 * params.limit + 1), 5))
    assert feedback_moments(params, nothing, CRITERION) == (0.0, 0.0)


# The scheme written out


def plain_scheme(params: Params, steps: int) -> Array:
    """Value functions (steps + 1, m, Y): ``phi``, exponential under CARA, loop by loop from the inequality."""
    p, limit, cara = params, params.limit, params.utility == "cara"
    eta, step = p.risk_aversion, p.horizon / steps
    clock = mean_clock(p, np.linspace(0.0, p.horizon, steps + 1))
    better = min if cara else max
    inventories = range(-limit, limit + 1)

    def after(value: float, gain: float) -> float:
        return value * np.exp(-eta * gain) if cara else value + gain

    def cost(i: int, lots: int) -> float:
        return abs(lots) * p.lot * ((i + 1) * p.tick / 2.0 + p.fee) + (p.fixed_fee if lots else 0.0)

    def fill(phi: dict, i: int, y: int, side: int) -> float:
        best = 0.0
        for improved in (False, True) if i > 0 else (False,):
            rates = (p.improved_bid_rates, p.improved_ask_rates) if improved else (p.best_bid_rates, p.best_ask_rates)
            edge = (i + 1) * p.tick / 2.0 - p.tick * improved + p.rebate
            for lots in range(1, p.size_max + 1):
                to = y + lots if side == 0 else y - lots
                if abs(to) <= limit:
                    gain = rates[side][i] * (after(phi[i, to], edge * lots * p.lot) - phi[i, y])
                    best = better(best, gain)
        return best

    phi = {(i, y): after(1.0 if cara else 0.0, -cost(i, y)) for i in range(p.num_spreads) for y in inventories}
    values = [phi]
    for k in reversed(range(steps)):
        moved = {}
        for i, y in phi:
            drift = sum(p.spread_transitions[i][j] * phi[j, y] for j in range(p.num_spreads)) - phi[i, y]
            risk = 0.5 * (p.volatility * eta * p.lot * y) ** 2 * phi[i, y] if cara else 0.0
            rest = risk - p.running_penalty * (p.lot * y) ** 2
            flow = clock[k] * drift + fill(phi, i, y, 0) + fill(phi, i, y, 1) + rest
            moved[i, y] = phi[i, y] + step * flow
        while True:
            best = {
                (i, y): better(
                    [value]
                    + [
                        after(moved[i, y + e], -cost(i, e))
                        for e in range(-p.order_max, p.order_max + 1)
                        if e and abs(y + e) <= limit
                    ]
                )
                for (i, y), value in moved.items()
            }
            if all(abs(best[s] - moved[s]) <= 1e-15 * abs(moved[s]) for s in best):
                break
            moved = best
        phi = moved
        values.append(phi)
    return np.array([[[phi[i, y] for y in inventories] for i in range(p.num_spreads)] for phi in reversed(values)])


@pytest.mark.parametrize(
    "changes",
    [{}, {"market_order_max": 0.0}, {"market_order_max": 20.0}, {"utility": "cara", "risk_aversion": 0.4}],
    ids=["mean", "no market orders", "small blocks", "cara"],
)
def test_scheme_against_plain_loops(changes: dict[str, Any]) -> None:
    if "utility" in changes:
        changes = {**changes, "running_penalty": None}
    params = small(**changes)
    expected = plain_scheme(params, 24)
    if params.utility == "cara":
        expected = -np.log(expected) / params.risk_aversion
    values, controls = scheme(params, 24, 1)
    np.testing.assert_allclose(values, expected.reshape(25, -1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(scheme(params, 3, 8)[0], values[::8], rtol=0, atol=1e-13)
    assert controls is not None
    assert (controls[..., 4] != 0.0).any() == (params.order_max > 0)


def moved_by(params: Params, controls: Array) -> tuple[Array, Array, Array, Array, Array]:
    """States after fills and orders, rates and edges of one cell's controls (S, 5), from the market's definition."""
    p, count = params, 2 * params.limit + 1
    spread, lots = np.divmod(np.arange(len(controls)), count)
    sizes = np.rint(controls[:, 2:4] / p.lot).astype(int)
    order = np.rint(controls[:, 4] / p.lot).astype(int)
    improved = (controls[:, :2] > 0.5) & (spread > 0)[:, None]
    bid = np.where(improved[:, 0], np.array(p.improved_bid_rates)[spread], np.array(p.best_bid_rates)[spread])
    ask = np.where(improved[:, 1], np.array(p.improved_ask_rates)[spread], np.array(p.best_ask_rates)[spread])
    sizes[:, 0] = np.minimum(sizes[:, 0], count - 1 - lots)
    sizes[:, 1] = np.minimum(sizes[:, 1], lots)
    rates = np.stack([bid, ask], axis=1) * (sizes > 0)
    edges = ((spread + 1) * 0.5 * p.tick + p.rebate)[:, None] - p.tick * improved
    states = np.arange(len(controls))
    targets = np.stack([states + sizes[:, 0], states - sizes[:, 1]], axis=1)
    cost = np.abs(order) * p.lot * ((spread + 1) * 0.5 * p.tick + p.fee) + p.fixed_fee * (order != 0)
    return targets, rates, edges * sizes * p.lot, states + order, cost


@pytest.mark.parametrize("changes", [{}, {"lot": 50.0, "fixed_fee": 1e-3}])
def test_linear_value_of_the_optimum_is_the_value_of_the_scheme(changes: dict[str, Any]) -> None:
    params = Params.create(num_steps=1000, **changes)
    values, controls = scheme(params, 1000, 1)
    assert controls is not None
    count, step = 2 * params.limit + 1, 0.3
    shares = np.tile(np.arange(-params.limit, params.limit + 1) * params.lot, 6)
    rho = np.array(params.spread_transitions)
    linear = values[-1].copy()
    for n in reversed(range(1000)):
        targets, rates, gains, after_order, cost = moved_by(params, controls[n])
        flow = (rho @ linear.reshape(6, count)).ravel() - linear - params.running_penalty * shares**2
        # Quotes stand in the table for the inventory after the order.
        flow += (rates * (gains + linear[targets] - linear[:, None])).sum(axis=1)
        moved = linear + step * flow
        linear, place = np.zeros_like(moved), np.arange(len(moved))
        for _ in range(25):
            linear -= np.where(place != after_order[place], cost[place], 0.0)
            place = after_order[place]
        assert (after_order[place] == place).all()
        linear += moved[place]
    np.testing.assert_allclose(linear, values[0], rtol=0, atol=1e-10)


@pytest.mark.long
def test_optimum_played_at_once_is_worth_the_continuous_value() -> None:
    params = Params.create(num_steps=1000)
    solution = continuous_solution(params)
    best, error = stationary(params, solution.values[0]), stationary(params, solution.errors[0])
    value, _ = feedback_moments(params, solution.controls, CRITERION)
    wealth, wealth_std = feedback_moments(params, solution.controls)
    fills, _ = feedback_moments(params, solution.controls, Functional(fills=1.0))
    orders, _ = feedback_moments(params, solution.controls, Functional(orders=1.0))
    squares, _ = feedback_moments(params._replace(running_penalty=1.0), solution.controls, Functional(penalty=-1.0))
    assert best - 5e-4 < value < best + error
    # Simulated by another program, 100,000 paths: 29.74 +- 0.04, 12.52, 19.7 fills a side, 13.16 market orders.
    assert wealth == pytest.approx(29.74, abs=0.12)
    assert wealth_std == pytest.approx(12.52, abs=0.09)
    assert fills == pytest.approx(2 * 19.7, abs=0.2)
    assert orders == pytest.approx(13.16, abs=0.05)
    assert value == pytest.approx(wealth - 3e-6 * squares, abs=1e-10)


@pytest.mark.long
def test_optimum_under_cara_played_at_once() -> None:
    params = Params.create(utility="cara", num_steps=400)
    solution = continuous_solution(params)
    best = stationary(params, solution.values[0])
    equivalent = feedback_certainty_equivalent(params, solution.controls, params.risk_aversion)
    assert best - 3e-3 < equivalent < best + 2e-4


# Structure


def test_values_are_even_and_fall_with_inventory_and_penalty() -> None:
    params = Params.create(num_steps=5)
    values = continuous_values(params)
    np.testing.assert_allclose(values, mirrored(params, values), rtol=0, atol=1e-12)
    table = values.reshape(6, 6, -1)
    assert (np.diff(table[..., params.limit :], axis=-1) < 1e-9).all()
    assert (np.diff(values, axis=0) < 1e-9).all()  # less time, less value
    dearer = continuous_values(params._replace(running_penalty=4e-6))
    without = continuous_values(params._replace(market_order_max=0.0))
    assert (dearer <= values + 1e-9).all()
    assert (without <= values + 1e-9).all()
    assert dearer[0, params.limit] < values[0, params.limit] - 0.1


def test_controls_are_symmetric() -> None:
    params = Params.create(num_steps=20)
    controls = continuous_controls(params)
    np.testing.assert_array_equal(controls, mirrored_controls(params, controls))


def test_sides_exchanged_mirror_values_and_controls() -> None:
    params = small()
    turned = small(
        fill_rate_best=[list(params.best_ask_rates), list(params.best_bid_rates)],
        fill_rate_improved=[list(params.improved_ask_rates), list(params.improved_bid_rates)],
    )
    solution, other = continuous_solution(params), continuous_solution(turned)
    np.testing.assert_allclose(other.values, mirrored(params, solution.values), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(other.controls, mirrored_controls(params, solution.controls))
    assert np.abs(solution.values - mirrored(params, solution.values)).max() > 0.01
    moments = feedback_moments(params._replace(initial_inventory=20.0), solution.controls)
    assert moments == pytest.approx(feedback_moments(turned, other.controls), rel=1e-12)


def test_pieces_of_one_rate_are_a_constant_clock() -> None:
    constant = small(clock_rate=0.7)
    pieces = small(clock_rate=[[0.0, 0.7], [0.9, 0.7], [2.05, 0.7]])
    np.testing.assert_allclose(continuous_values(pieces), continuous_values(constant), rtol=0, atol=1e-13)
    controls = continuous_controls(constant)
    np.testing.assert_array_equal(continuous_controls(pieces), controls)
    assert feedback_moments(pieces, controls) == pytest.approx(feedback_moments(constant, controls), rel=1e-13)


def test_mean_clock_and_stable_step() -> None:
    params = small()
    np.testing.assert_allclose(
        mean_clock(params, np.array([0.0, 1.0, 2.0, 5.0])), [0.5, 0.3 * 0.5 + 0.7 * 2.0, 4.2 / 3]
    )
    assert stable_step(params) == pytest.approx(1.0 / (2.0 + 0.50 + 0.35))  # improved quotes at two ticks
    assert stable_step(Params.create(clock_rate=0.0, fill_rate_best=0.0, fill_rate_improved=0.0)) == np.inf


def test_equal_choices_are_the_simplest() -> None:
    still = small(
        clock_rate=0.0, fill_rate_best=0.0, fill_rate_improved=0.0, fixed_fee=0.0, running_penalty=0.0, horizon=50.0
    )
    solution = continuous_solution(still)  # to sell now or at the end is the same
    assert not solution.controls.any()
    np.testing.assert_allclose(solution.values, np.broadcast_to(solution.values[-1], solution.values.shape), atol=1e-12)


def test_blocks_follow_each_other_down_to_where_they_land() -> None:
    # Holding costs far more than crossing, so everything is sold at once, the largest block first.
    params = small(running_penalty=1.0, market_order_max=60.0, num_steps=2)
    lots = np.tile(np.arange(-4, 5), 3)
    controls = continuous_controls(params, 2)
    np.testing.assert_array_equal(controls[0, :, 4], -20.0 * np.clip(lots, -3, 3))
    assert feedback_moments(params, controls, Functional(orders=1.0))[0] >= 1.0


def test_any_table_is_worth_less_than_the_continuous_value() -> None:
    params = small()
    solution = continuous_solution(params, time_step=0.01)
    random = np.random.default_rng(4)
    for _ in range(20):
        table = random_table(params, 3, random)
        values, _ = frozen.evaluate(feedback_problem(params, table), table, CRITERION)
        assert (values[:, :, 0] <= solution.values + solution.errors + 1e-9).all()


# Controls that react at once, against dense exponentials

FUNCTIONAL = Functional(gain=1.3, price=0.8, penalty=0.7, fills=0.2, orders=-0.3, absolute_inventory=-0.004)


def random_table(params: Params, cells: int, random: np.random.Generator) -> Array:
    """Random controls whose market orders shrink the inventory, so that they end."""
    count = 2 * params.limit + 1
    lots = np.tile(np.arange(-params.limit, params.limit + 1), params.num_spreads)
    table = np.zeros((cells, params.num_spreads * count, 5))
    table[..., :2] = random.integers(0, 2, (*table.shape[:2], 2))
    table[..., 2:4] = params.lot * random.integers(0, params.size_max + 1, (*table.shape[:2], 2))
    size = np.minimum(random.integers(0, params.order_max + 1, table.shape[:2]), np.abs(lots))
    table[..., 4] = -params.lot * np.sign(lots) * size * (random.random(table.shape[:2]) < 0.5)
    return table + 0.0


@pytest.fixture(scope="module")
def random_case() -> tuple[FeedbackProblem, Array]:
    params = small()
    table = random_table(params, 3, np.random.default_rng(8))
    assert (table[..., 4] != 0.0).any(axis=1).all()
    return feedback_problem(params, table), table


def dense_cell(params: Params, controls: Array, clock: float, functional: Functional) -> tuple[Array, ...]:
    """Jump rates and gains (S, S), landing (S,), gains of landing (S,), flow and variance (S,), state by state."""
    targets, rates, edges, after_order, cost = moved_by(params, controls)
    size, count = len(controls), 2 * params.limit + 1
    landing, order_gain = np.empty(size, dtype=int), np.zeros(size)
    for s in range(size):
        place = s
        while after_order[place] != place:
            order_gain[s] += functional.orders - functional.gain * cost[place]
            place = after_order[place]
        landing[s] = place
    jumps, squares, gains = (np.zeros((size, size)) for _ in range(3))  # rates, and rates times gains and squares
    for s in np.flatnonzero(landing == np.arange(size)):
        for other in range(params.num_spreads):
            rate = clock * params.spread_transitions[s // count][other]
            events = [(other * count + s % count, rate, 0.0)]
            for to, rate, gain in events:
                total = gain + order_gain[to]
                jumps[s, landing[to]] += rate
                gains[s, landing[to]] += rate * total
                squares[s, landing[to]] += rate * total**2
        for side in range(2):
            if rates[s, side] > 0.0:
                to, total = targets[s, side], functional.gain * edges[s, side] + functional.fills
                total += order_gain[to]
                jumps[s, landing[to]] += rates[s, side]
                gains[s, landing[to]] += rates[s, side] * total
                squares[s, landing[to]] += rates[s, side] * total**2
    shares = params.lot * (np.arange(size) % count - params.limit)
    flow = functional.absolute_inventory * np.abs(shares) - functional.penalty * params.running_penalty * shares**2
    return jumps, gains, squares, landing, order_gain, flow, (functional.price * params.volatility * shares) ** 2


def intervals(params: Params, table: Array) -> list[tuple[Array, float, float]]:
    """Controls (S, 5), clock rate and length of the intervals in which all is constant, in order of time."""
    cells = np.linspace(0.0, params.horizon, len(table) + 1)
    edges = np.union1d(cells, [start for start in params.clock_starts if start < params.horizon])
    pieces = []
    for start, end in itertools.pairwise(edges):
        middle = 0.5 * (start + end)
        rate = [rate for first, rate in zip(params.clock_starts, params.clock_rates, strict=True) if first < middle][-1]
        pieces.append((table[int(np.searchsorted(cells, middle)) - 1], rate, end - start))
    return pieces


def dense_moments(params: Params, table: Array, functional: Functional) -> tuple[Array, Array]:
    size, count = table.shape[1], 2 * params.limit + 1
    spread, lots = np.divmod(np.arange(size), count)
    lots = lots - params.limit
    liquidation = np.abs(lots) * params.lot * ((spread + 1) * 0.5 * params.tick + params.fee)
    first = -functional.gain * (liquidation + params.fixed_fee * (lots != 0))
    second = first**2
    for cell, clock, length in reversed(intervals(params, table)):
        jumps, gains, squares, landing, order_gain, flow, variance = dense_cell(params, cell, clock, functional)
        generator = jumps - np.diag(jumps.sum(axis=1))
        mean, square = slice(1, 1 + size), slice(1 + size, None)
        matrix = np.zeros((1 + 2 * size,) * 2)
        matrix[mean, mean] = matrix[square, square] = generator
        matrix[mean, 0] = flow + gains.sum(axis=1)
        matrix[square, 0] = variance + squares.sum(axis=1)
        matrix[square, mean] = 2.0 * (np.diag(flow) + gains)
        vector = expm(length * matrix) @ np.concatenate([[1.0], first, second])
        first, second = vector[mean], vector[square]
        second = order_gain**2 + 2.0 * order_gain * first[landing] + second[landing]
        first = order_gain + first[landing]
    return first, second


def test_moments_against_dense_exponentials(random_case: tuple[FeedbackProblem, Array]) -> None:
    problem, table = random_case
    expected = dense_moments(problem.params, table, FUNCTIONAL)
    values, _ = frozen.evaluate(problem, table, FUNCTIONAL._replace(moments=2))
    np.testing.assert_allclose(values[0].T, expected, rtol=1e-11, atol=1e-12)
    only_mean, _ = frozen.evaluate(problem, table, FUNCTIONAL)
    np.testing.assert_allclose(only_mean[0, :, 0], expected[0], rtol=1e-11, atol=1e-12)


def test_law_against_dense_exponentials(random_case: tuple[FeedbackProblem, Array]) -> None:
    problem, table = random_case
    law = problem.initial.copy()
    for cell, clock, length in intervals(problem.params, table):
        jumps, _, _, landing, *_ = dense_cell(problem.params, cell, clock, FUNCTIONAL)
        law = np.bincount(landing, weights=law, minlength=len(law))
        law = law @ expm(length * (jumps - np.diag(jumps.sum(axis=1))))
    laws = frozen.state_laws(problem, table)
    np.testing.assert_allclose(laws[-1], law, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(laws.sum(axis=1), 1.0, rtol=1e-13)


@pytest.mark.long
@pytest.mark.parametrize("exponents", [np.array([-0.6, 0.3]), np.array([0.0, 1.1j, 6.0j])])
def test_exponential_functionals_have_the_moments(random_case: tuple[FeedbackProblem, Array], exponents: Array) -> None:
    problem, table = random_case
    values, log_scale = frozen.evaluate(problem, table, FUNCTIONAL._replace(exponents=exponents))
    # Derivatives in z by central differences agree with the moments; at z itself, dense exponentials.
    step = 1e-4
    around, scale = frozen.evaluate(problem, table, FUNCTIONAL._replace(exponents=np.array([-step, step])))
    low, high = (around[0] * np.exp(scale[0])).T
    moments, _ = frozen.evaluate(problem, table, FUNCTIONAL._replace(moments=2))
    np.testing.assert_allclose((high - low) / (2.0 * step), moments[0, :, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((high - 2.0 + low) / step**2, moments[0, :, 1], rtol=1e-4, atol=1e-4)
    for k, z in enumerate(exponents):
        chi = values[-1, :, k] * np.exp(log_scale[-1])
        for cell, clock, length in reversed(intervals(problem.params, table)):
            jumps, landing, order_gain, flow, variance = exponential_cell(problem.params, cell, clock, z)
            leave = np.abs(dense_cell(problem.params, cell, clock, FUNCTIONAL)[0]).sum(axis=1)
            matrix = jumps + np.diag(z * flow + 0.5 * z**2 * variance - leave)
            chi = expm(length * matrix) @ chi
            chi = np.exp(z * order_gain) * chi[landing]
        np.testing.assert_allclose(values[0, :, k] * np.exp(log_scale[0]), chi, rtol=1e-11, atol=1e-12)


def exponential_cell(params: Params, controls: Array, clock: float, z: complex) -> tuple[Array, ...]:
    """Jump rates times ``exp(z gain)`` (S, S), and the rest of `dense_cell`."""
    targets, rates, edges, *_ = moved_by(params, controls)
    _, _, _, landing, order_gain, flow, variance = dense_cell(params, controls, clock, FUNCTIONAL)
    size, count = len(controls), 2 * params.limit + 1
    jumps = np.zeros((size, size), dtype=complex if isinstance(z, complex) else float)
    for s in np.flatnonzero(landing == np.arange(size)):
        for other in range(params.num_spreads):
            to = other * count + s % count
            rate = clock * params.spread_transitions[s // count][other]
            jumps[s, landing[to]] += rate * np.exp(z * order_gain[to])
        for side in range(2):
            to, gain = targets[s, side], FUNCTIONAL.gain * edges[s, side] + FUNCTIONAL.fills
            jumps[s, landing[to]] += rates[s, side] * np.exp(z * (gain + order_gain[to]))
    return jumps, landing, order_gain, flow, variance


def test_cells_of_one_table_may_be_cut(random_case: tuple[FeedbackProblem, Array]) -> None:
    problem, table = random_case
    moments = feedback_moments(problem.params, table, FUNCTIONAL)
    assert moments == pytest.approx(
        feedback_moments(problem.params, np.repeat(table, 4, axis=0), FUNCTIONAL), rel=1e-12
    )


@pytest.mark.long
def test_law_of_wealth() -> None:
    params = Params.create(lot=100.0, inventory_limit=200.0, initial_inventory=100.0, horizon=20.0, volatility=0.05)
    table = capped(params, 100.0, 200.0, True)
    law = feedback_pnl_law(params, table)
    assert (law.mean, law.std) == pytest.approx(feedback_moments(params, table), rel=1e-12)
    equivalent = feedback_certainty_equivalent(params, table, 0.005)
    x = np.linspace(law.low, law.high, 4001)
    utility = np.trapezoid(np.exp(-0.005 * x) * law.density(x), x)
    assert equivalent == pytest.approx(-np.log(utility) / 0.005, abs=1e-6)


# What is refused


def test_bad_input_is_refused() -> None:
    params = small()
    states = 3 * 9
    with pytest.raises(ValueError, match="time_step"):
        continuous_solution(params, time_step=1.0)
    with pytest.raises(ValueError, match="time_step"):
        continuous_solution(params, time_step=0.0)
    with pytest.raises(ValueError, match="too long"):
        scheme(params, 3, 1)
    with pytest.raises(ValueError, match="floating point"):
        continuous_solution(small(utility="cara", risk_aversion=1e4, running_penalty=None))
    with pytest.raises(ValueError, match=r"\(cells, 27, 5\)"):
        feedback_moments(params, np.zeros((2, states - 1, 5)))
    for column, entry, name in ((0, 0.5, "bid quotes"), (3, 60.0, "ask sizes"), (2, np.nan, "bid sizes")):
        table = np.zeros((1, states, 5))
        table[0, 4, column] = entry
        with pytest.raises(ValueError, match=name):
            feedback_moments(params, table)
    table = np.zeros((1, states, 5))
    table[0, 5, 4], table[0, 6, 4] = 20.0, -20.0
    with pytest.raises(ValueError, match="for ever"):
        feedback_moments(params, table)
    with pytest.raises(ValueError, match="risk_aversion"):
        feedback_certainty_equivalent(params, np.zeros((1, states, 5)), 0.0)
    problem = feedback_problem(params, np.zeros((1, states, 5)))
    with pytest.raises(ValueError, match="all states"):
        problem.backward(0, np.array([1, 2]), np.zeros((2, 5)), np.zeros((states, 1)), CRITERION)
    with pytest.raises(TypeError, match="continuous_values"):
        problem.improve(0, np.zeros((states, 1)))
