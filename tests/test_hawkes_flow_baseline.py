"""The Hawkes flow baseline against the digits of the reference mathematics and against second methods.

Second methods: the matrix exponential and an ordinary differential equation without excitation, a uniform-grid scheme
with splitting for depths that move at once, Picard iteration of the integral equation for frozen ones, and simulation.
Statistical checks have a false-alarm rate of 1e-3 a test function, with fixed seeds.
"""

import functools
import math

import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.interpolate import make_interp_spline
from scipy.linalg import expm

from mmgym import baselines
from mmgym.baselines.catalogue import baseline_of, level_of, params_of
from mmgym.baselines.frozen import Functional
from mmgym.baselines.hawkes_flow import (
    COARSE,
    FINE,
    HawkesFlowBaseline,
    PoissonValues,
    Resolution,
    corollary_3,
    join_best,
    march,
    poisson,
    price_drift,
    signal_poisson,
    solve,
)
from mmgym.baselines.hawkes_flow import baseline as baseline_module
from mmgym.baselines.hawkes_flow.rates import RateGrid
from mmgym.baselines.policy import StatelessPolicy
from mmgym.models import hawkes
from mmgym.models.hawkes_flow import Params, observe

pytestmark = pytest.mark.usefixtures("solutions_of_its_own")
ID = "mmgym/HawkesFlow-v0"
FALSE_ALARMS = 1e-3
SMALL = {"horizon": 2.0, "num_steps": 8, "inventory_limit": 2}
UNEQUAL = {
    "base_rate": [0.8, 0.5],
    "excitation": [1.0, 2.0],
    "decay": [2.0, 4.0],
    "impact": [0.05, 0.15],
    "fill_decay": [3.0, 5.0],
    "initial_rates": [2.5, 0.5],
    "running_penalty": 0.02,
}
WITHOUT_LIMITS = (np.full(2, -np.inf), np.full(2, np.inf))


def at(params, tables, inventory, buy, sell, field=None):
    """A field of the last level (values by default) at one state."""
    field = tables.values[-1] if field is None else field
    sides = (
        RateGrid(mu, zeta, rho, largest, nodes).matrix(np.array([rate - mu]))
        for mu, zeta, rho, largest, nodes, rate in (
            (params.base_rate_buy, params.excitation_buy, params.decay_buy, tables.largest[0], field.shape[1], buy),
            (params.base_rate_sell, params.excitation_sell, params.decay_sell, tables.largest[1], field.shape[2], sell),
        )
    )
    across, along = sides
    return float((across @ field[inventory + params.inventory_limit] @ along.T)[0, 0])


# --- The paper's depths ----------------------------------------------------------------------------------------------

# Numbers file, corollary3_reduced: depths [bid, ask] before the floor at tau 60 and the stationary intensities.
COROLLARY_3 = {
    0: (0.9404429711361559, 0.9404429711361559),
    1: (1.1604429711361561, 0.12044297113615603),
    -1: (0.12044297113615603, 1.1604429711361561),
}


def test_corollary_3_has_the_reference_digits():
    params = Params.create()
    for inventory, raw in COROLLARY_3.items():
        depths = corollary_3(params, 60.0, inventory, 1.2, 1.2)
        np.testing.assert_allclose(depths, np.maximum(raw, 0.3), atol=1e-12)


def test_corollary_3_as_printed_differs_by_what_left_the_integral():
    """Section 2, item 8: ``(2/e) phi [tau (I+ - I-) - (J+ - J-)]``, at the intensities after the order."""
    params = Params.create()
    correct, printed = (corollary_3(params, 60.0, 0, 1.2, 1.2, as_printed=flag) for flag in (False, True))
    process = (0.6, 1.5, 3.0)
    orders = hawkes.expected_count(*process, 2.7, 60.0) - hawkes.expected_count(*process, 1.2, 60.0)
    weighted = hawkes.weighted_count(*process, 2.7, 60.0) - hawkes.weighted_count(*process, 1.2, 60.0)
    expected = 2.0 / math.e * 0.001 * (60.0 * orders - weighted)
    np.testing.assert_allclose(printed - correct, expected, atol=1e-13)
    assert expected == pytest.approx(0.8991621083843548 - 0.898671602462793, abs=1e-12)  # as in the full model


@pytest.mark.long
@pytest.mark.parametrize("name", ["corollary_3", "signal_poisson", "optimal"])
def test_quotes_are_symmetric(name):
    """Depths swap sides with the sign of the inventory and the intensities (section 3)."""
    params = Params.create(horizon=5.0, num_steps=20)
    policy = {"optimal": HawkesFlowBaseline(params).best_policy}.get(name) or HawkesFlowBaseline(params).policies()[
        name
    ]
    depths = policy().depths
    for inventory, buy, sell in ((0, 1.2, 3.0), (3, 0.7, 0.7), (-5, 6.0, 2.0)):
        bid, ask = depths(4.0, inventory, buy, sell)
        mirrored = depths(4.0, -inventory, sell, buy)
        np.testing.assert_allclose([ask, bid], mirrored, atol=1e-6)


# --- Depths that move at once: the reference values of section 5 -----------------------------------------------------


def test_the_continuous_optimum_has_the_reference_digits():
    params = Params.create()
    solution = march(params, FINE, held=False)
    assert at(params, solution, 0, 1.2, 1.2) == pytest.approx(16.4457, abs=2e-4)
    assert at(params, solution, 0, 0.6, 0.6) == pytest.approx(16.3481, abs=2e-4)
    for gains in solution.gains[:, -1]:
        assert 0.25 - at(params, solution, 0, 1.2, 1.2, gains) == pytest.approx(0.46340, abs=1e-4)


def without_penalties(params, time_left, inventory, buy, sell):
    """Corollary 3 without its 2/e terms."""
    penalty = params.terminal_penalty + params.running_penalty * time_left
    q = inventory
    bid = 0.35 + 0.3 * (abs(q + 1) - abs(q)) + penalty * (1 + 2 * q) - price_drift(params, time_left, buy, sell + 1.5)
    ask = 0.35 + 0.3 * (abs(q - 1) - abs(q)) + penalty * (1 - 2 * q) + price_drift(params, time_left, buy + 1.5, sell)
    return np.maximum(np.stack([bid, ask], axis=-1), 0.3)


# name -> value, and what the coarse and the fine resolution may miss: quotes at the floor have kinks in the intensities
VALUES = {
    "join_best": (1.830, 2e-3, 3e-3),
    "signal_poisson": (16.4087, 2e-4, 2e-4),
    "poisson": (14.736, 4e-3, 3e-3),
    "corollary_3": (8.807, 4e-3, 2e-3),
    "corollary_3_as_printed": (8.799, 4e-3, 2e-3),
    "without_penalties": (9.965, 6e-3, 3e-3),
}


def depths_of(name, params):
    if name in ("poisson", "signal_poisson"):
        return {"poisson": poisson, "signal_poisson": signal_poisson}[name](params, PoissonValues(params))
    if name == "corollary_3_as_printed":
        return functools.partial(corollary_3, params, as_printed=True)
    return functools.partial({"corollary_3": corollary_3, "join_best": join_best}.get(name, without_penalties), params)


@pytest.mark.long
@pytest.mark.parametrize("name", ["join_best", "signal_poisson", "corollary_3"])
def test_policies_have_the_reference_values(name):
    params = Params.create()
    value, tolerance, _ = VALUES[name]
    solution = march(params, COARSE, held=False, depths=depths_of(name, params))
    assert at(params, solution, 0, 1.2, 1.2) == pytest.approx(value, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VALUES))
def test_policies_have_the_reference_values_at_full_resolution(name):
    params = Params.create()
    value, _, tolerance = VALUES[name]
    solution = march(params, FINE, held=False, depths=depths_of(name, params))
    assert at(params, solution, 0, 1.2, 1.2) == pytest.approx(value, abs=tolerance)


@pytest.mark.long
def test_the_asymptotic_policy_quotes_far_too_wide():
    """Section 5: 21 fills against 65."""
    params = Params.create()
    fills = Functional(fills=1.0)
    solution = march(params, COARSE, held=False, depths=depths_of("corollary_3", params), functional=fills)
    assert at(params, solution, 0, 1.2, 1.2) == pytest.approx(21, abs=0.5)


# --- Without excitation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"base_rate": [0.9, 0.5], "impact": [0.05, 0.1]}], ids=["equal", "unequal"])
def test_poisson_limit_against_the_matrix_exponential(arguments):
    """Section 4: ``w = exp(kappa theta)`` is linear without excitation and without a floor."""
    arguments = {**arguments, "excitation": 0.0, "inventory_limit": 4, "horizon": 20.0, "num_steps": 40}
    params = Params.create(**arguments)
    buy, sell = params.base_rate_buy, params.base_rate_sell
    q, kappa, h = np.arange(-4, 5), 4.0, 0.3
    diagonal = kappa * q * (buy * params.impact_buy - sell * params.impact_sell) - kappa * 0.001 * q**2
    matrix = np.diag(diagonal)
    matrix += np.diag(np.full(8, buy * math.exp(-1.0 + kappa * (h - params.impact_buy))), -1)
    matrix += np.diag(np.full(8, sell * math.exp(-1.0 + kappa * (h - params.impact_sell))), 1)
    expected = np.log(expm(matrix * 20.0) @ np.exp(-kappa * (np.abs(q) * h + 0.05 * q**2))) / kappa
    solution = march(params, Resolution(2, 0.1, 1e-4), held=False, depth_bounds=WITHOUT_LIMITS)
    np.testing.assert_allclose(solution.values[-1, :, 0, 0], expected, atol=1e-6)
    drift = q * price_drift(params, 20.0, buy, sell)
    values = PoissonValues(params, (-np.inf, np.inf))(20.0)
    np.testing.assert_allclose(drift + values, expected, atol=1e-7)


def test_poisson_values_with_the_floor_solve_the_market_without_excitation():
    params = Params.create(excitation=0.0, base_rate=[0.9, 0.7], horizon=20.0, num_steps=40, inventory_limit=5)
    q = np.arange(-5, 6)
    expected = PoissonValues(params)(20.0) + q * price_drift(params, 20.0, 0.9, 0.7)
    solution = march(params, COARSE, held=False).values[-1, :, 0, 0]
    np.testing.assert_allclose(solution, expected, atol=1e-6)


def test_frozen_depths_without_excitation_lose_nothing_far_from_the_horizon():
    """Intensities do not move between orders: what is lost is the drift of the value in time, nearly nothing."""
    params = Params.create(excitation=0.0)
    values = [at(params, march(params, COARSE, held=held), 0, 0.6, 0.6) for held in (False, True)]
    assert 0.0 <= values[0] - values[1] < 2e-4


# --- Frozen depths ---------------------------------------------------------------------------------------------------


def spline_matrix(nodes, points):
    """Values at nodes -> cubic spline at points, held constant beyond the last node: shape (points, nodes)."""
    return make_interp_spline(nodes, np.eye(len(nodes)), k=3)(np.clip(points, nodes[0], nodes[-1]))


def worth(params, side, gain):
    """What an order to buy (0) or sell (1) is worth at the best depth, with the defaults but for a `reach_atom`."""
    atom, depth = (params.reach_atom_buy, params.reach_atom_sell)[side], np.clip(0.25 - gain, 0.3, 1.3)
    return np.maximum((1.0 - atom) * np.exp(-4.0 * (depth - 0.3)) * (depth + gain), 0.3 + gain)


def picard(params, time_nodes, rate_nodes, largest, iterations):
    """Frozen depths at the horizon by Picard iteration of the integral equation, with splines on a uniform grid.

    The n-th iterate counts the first n orders only. Axes of the result: inventory, excess of buys and of sells; the
    second result are the nodes of an excess.
    """
    p, limit = params, params.inventory_limit
    r, x = np.linspace(0.0, p.horizon, time_nodes), np.linspace(0.0, largest, rate_nodes)
    q = np.arange(-limit, limit + 1)[:, None, None]
    gauss, weight = np.polynomial.legendre.leggauss(10)
    terminal = -0.3 * np.abs(q) - p.terminal_penalty * q**2
    values = np.broadcast_to(terminal, (time_nodes, len(q), rate_nodes, rate_nodes)).copy()

    def nothing(u):
        """No order for u minutes, of both sides."""
        sides = ((p.base_rate_buy, p.decay_buy), (p.base_rate_sell, p.decay_sell))
        buy, sell = (np.exp(-mu * u + x * np.expm1(-rho * u) / rho) for mu, rho in sides)
        return buy[:, None] * sell

    for _ in range(iterations):
        previous = values.copy()
        for i in range(1, time_nodes):
            length = min(r[i], p.step_length)
            matrices = [spline_matrix(x, x * math.exp(-rho * length)) for rho in (p.decay_buy, p.decay_sell)]
            later = np.tensordot(spline_matrix(r, r[i] - np.array([length]))[0], values, axes=1)
            value = nothing(length) * (matrices[0] @ later @ matrices[1].T)
            orders, gains = np.zeros((2, rate_nodes, rate_nodes)), np.zeros((2, *later.shape))
            for u, w in zip(0.5 * length * (gauss + 1.0), 0.5 * length * weight, strict=True):
                later = np.tensordot(spline_matrix(r, r[i] - np.array([u]))[0], values, axes=1)
                buy, sell = x * math.exp(-p.decay_buy * u), x * math.exp(-p.decay_sell * u)
                same = spline_matrix(x, buy), spline_matrix(x, sell)
                jumped = spline_matrix(x, buy + p.excitation_buy), spline_matrix(x, sell + p.excitation_sell)
                sides = (
                    (1, p.impact_buy, (p.base_rate_buy + buy)[:, None], jumped[0] @ later @ same[1].T),
                    (-1, p.impact_sell, p.base_rate_sell + sell, same[0] @ later @ jumped[1].T),
                )
                value -= p.running_penalty * q**2 * w * nothing(u)
                for side, (sign, impact, rate, after) in enumerate(sides):
                    chance = w * nothing(u) * rate
                    orders[side] += chance
                    value += chance * (sign * q * impact + after)
                    filled = np.roll(after, sign, axis=0)  # at inventory q - sign
                    gains[side] += chance * (filled - after - impact)
            for side, sign in enumerate((1, -1)):
                mean = gains[side] / orders[side]
                value += np.where(np.abs(q - sign) <= limit, orders[side] * worth(params, side, mean), 0.0)
            previous[i] = value
        values = previous
    return values[-1], x


@pytest.mark.parametrize("atom", [0.0, [0.5, 0.8]])
def test_frozen_depths_against_picard_iteration(atom):
    """A short horizon from all inventories: the integral equation on another grid, by another iteration.

    With an atom both err at the kinks of the value, and they agree within the stated error.
    """
    market = {"horizon": 0.5, "num_steps": 2, "inventory_limit": 1, "running_penalty": 0.1, "reach_atom": atom}
    params = Params.create(**market, initial_rates=[2.0, 1.2])
    solved = march(params, FINE, held=True)
    values, nodes = picard(params, 13, 33, 16.0, 12)
    across, along = (spline_matrix(nodes, np.array([excess]))[0] for excess in (1.4, 0.6))
    for inventory in (-1, 0, 1):
        other = across @ values[inventory + 1] @ along
        error = solve(params._replace(initial_inventory=inventory), True).error if atom else 5e-5
        assert at(params, solved, inventory, 2.0, 1.2) == pytest.approx(other, abs=error)


def test_frozen_depths_tend_to_the_continuous_ones():
    arguments = {"horizon": 5.0, "inventory_limit": 4}
    values = []
    for num_steps in (1, 5, 20, 100):
        params = Params.create(**arguments, num_steps=num_steps)
        values.append(at(params, march(params, COARSE, held=True), 0, 1.2, 1.2))
    limit = at(params, march(params, COARSE, held=False), 0, 1.2, 1.2)
    assert np.all(np.diff([*values, limit]) > 0.0)
    assert limit - values[-1] < 2e-4


def test_a_mirrored_market_has_the_same_value():
    arguments = {**UNEQUAL, "horizon": 5.0, "num_steps": 20, "inventory_limit": 4, "initial_inventory": 2}
    mirrored = {name: value[::-1] if isinstance(value, list) else value for name, value in arguments.items()}
    mirrored["initial_inventory"] = -2
    first, second = (solve(Params.create(**given), True) for given in (arguments, mirrored))
    assert first.value == pytest.approx(second.value, abs=1e-9)


def test_an_order_is_worth_its_gain_at_the_limits():
    """At most one order in an instant: ``theta = terminal + r sum_k y_k [...]`` for a very short horizon."""
    r = 1e-5
    params = Params.create(horizon=r, num_steps=1, inventory_limit=1, initial_rates=[2.0, 1.0])
    terminal = {q: -0.3 * abs(q) - 0.05 * q**2 for q in (-1, 0, 1)}
    for q in (-1, 0, 1):
        expected = -0.001 * q**2
        for sign, rate in ((1, 2.0), (-1, 1.0)):
            expected += rate * sign * q * 0.1
            if abs(q - sign) <= 1:
                gain = terminal[q - sign] - terminal[q] - 0.1
                depth = max(0.3, 0.25 - gain)
                expected += rate * math.exp(-4.0 * (depth - 0.3)) * (depth + gain)
        value = at(params, march(params, COARSE, held=True), q, 2.0, 1.0)
        assert (value - terminal[q]) / r == pytest.approx(expected, rel=1e-3)


# --- A second scheme -------------------------------------------------------------------------------------------------


def splitting(params, per_jump, cells, steps):
    """Depths that move at once, on a uniform grid whose jumps are whole cells: Strang splitting of decay and orders.

    Returns theta at zero inventory and the stationary intensities. Both sides must be alike.
    """
    p, limit = params, params.inventory_limit
    spacing = p.excitation_buy / per_jump
    x = spacing * np.arange(cells + 1)
    rate = p.base_rate_buy + x
    dt = p.horizon / steps
    q = np.arange(-limit, limit + 1)[:, None, None]
    theta = np.broadcast_to(-0.3 * np.abs(q) - p.terminal_penalty * q**2, (2 * limit + 1, len(x), len(x))).copy()
    # cubic Lagrange interpolation at the decayed nodes
    target = x * math.exp(-0.5 * p.decay_buy * dt) / spacing
    first = np.clip(np.floor(target).astype(int) - 1, 0, cells - 3)
    decay = np.zeros((len(x), len(x)))
    for k in range(4):
        weight = np.ones(len(x))
        for j in range(4):
            if j != k:
                weight *= (target - first - j) / (k - j)
        decay[np.arange(len(x)), first + k] += weight
    ends = np.minimum(np.arange(len(x)) + per_jump, cells)
    beyond = (np.arange(len(x)) + per_jump - ends)[:, None]

    def jumped(field):
        """Shift along the second axis, and the straight line beyond the grid."""
        slope = (field[:, -1:] - field[:, -1 - 4 * per_jump, None]) / (4 * per_jump)
        return field[:, ends] + beyond * slope

    def slope(field):
        bought = jumped(field)
        sold = np.moveaxis(jumped(np.moveaxis(field, 1, 2)), 1, 2)
        rise = rate[:, None] * (0.1 * q + bought - field) + rate * (sold - 0.1 * q - field) - p.running_penalty * q**2
        gain = bought[:-1] - bought[1:] - 0.1
        rise[1:] += rate[:, None] * worth(params, 0, gain)
        gain = sold[1:] - sold[:-1] - 0.1
        rise[:-1] += rate * worth(params, 1, gain)
        return rise

    for _ in range(steps):
        theta = decay @ theta @ decay.T
        k1 = slope(theta)
        k2 = slope(theta + 0.5 * dt * k1)
        k3 = slope(theta + 0.5 * dt * k2)
        k4 = slope(theta + dt * k3)
        theta = theta + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        theta = decay @ theta @ decay.T
    spline = ndimage.spline_filter(theta[limit], order=3, mode="nearest")
    where = (1.2 - p.base_rate_buy) / spacing
    return float(ndimage.map_coordinates(spline, [[where], [where]], order=3, mode="nearest", prefilter=False)[0])


def richardson(params, per_jump, cells, steps):
    """`splitting` extrapolated in the time step, with which its error goes as the square."""
    coarse, fine = (splitting(params, per_jump, cells, count) for count in (steps, 2 * steps))
    return (4.0 * fine - coarse) / 3.0


@pytest.mark.parametrize("atom", [0.0, 0.6])
def test_a_second_scheme_agrees_on_a_short_horizon(atom):
    params = Params.create(horizon=3.0, num_steps=12, inventory_limit=2, reach_atom=atom)
    assert richardson(params, 6, 48, 90) == pytest.approx(
        at(params, march(params, FINE, held=False), 0, 1.2, 1.2), abs=2e-4 if atom == 0.0 else 1e-3
    )


@pytest.mark.slow
def test_a_second_scheme_agrees():
    """Section 4: solvers A and B agree to 1.3e-4 in 16.4457."""
    params = Params.create()
    value = at(params, march(params, FINE, held=False), 0, 1.2, 1.2)
    assert richardson(params, 6, 60, 2400) == pytest.approx(value, abs=5e-4)


# --- The stated error ------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [{}, {**UNEQUAL, "horizon": 20.0, "num_steps": 80}, {"reach_atom": 0.8}],
    ids=["default", "unequal", "atom"],
)
def test_the_stated_error_is_small(arguments):
    """The issue asks for 1e-4 of the value; with an atom it is larger."""
    solved = solve(Params.create(**arguments), True)
    assert solved.error <= (1e-3 if "reach_atom" in arguments else 1e-4) * abs(solved.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        UNEQUAL,
        {"impact": 0.3},
        {"decay": 6.0, "excitation": 3.0},
        {"excitation": 0.2, "decay": 0.5},
        {"inventory_limit": 3, "num_steps": 60},
        {"decision": "clock"},
    ],
    ids=str,
)
def test_the_stated_error_bounds_the_distance_to_a_finer_solution(arguments):
    params = Params.create(**arguments)
    held = params.decision == "event"
    solved = solve(params, held)
    finer = march(params, Resolution(28, 0.12, 1e-6), held=held)
    exact = at(params, finer, 0, params.initial_rate_buy, params.initial_rate_sell)
    assert abs(solved.value - exact) <= solved.error
    assert solved.error <= 2e-4 * abs(solved.value)


def test_what_the_grids_do_not_resolve_is_not_called_certified(monkeypatch):
    monkeypatch.setattr(baseline_module, "LARGEST_ERROR", 1e-9)
    with pytest.raises(ArithmeticError, match="is only known to"):
        baselines.optimal_policy(ID, **{**SMALL, "horizon": 2.1})


# --- Policies and scores ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_optimum_at_events_and_its_policy():
    best = baselines.optimal_policy(ID)
    assert best.level == level_of(ID) == "certified"
    assert best.optimum == pytest.approx(16.4142, abs=2e-4)  # below the 16.4457 of depths that move at once
    assert best.bounds == (best.optimum, best.optimum, best.solved.error)
    env = best.params
    start = observe(env, 60.0, 0, 1.2, 1.2)
    assert float(best.value(start)) == pytest.approx(best.optimum, abs=1e-4)
    action, _ = best.predict(start)
    assert action.dtype == np.float32
    assert action.shape == (2,)
    terminal = np.array([0.0, 0.3, 0.9, 0.2], dtype=np.float32)
    assert np.isfinite(best.predict(terminal)[0]).all()
    assert float(best.value(terminal)) == pytest.approx(-0.3 * 3 - 0.05 * 9, abs=1e-5)
    beyond = np.array([[0.5, 0.0, 0.99, 0.99], [0.5, 0.0, 1.0, 0.0]], dtype=np.float32)
    assert np.isfinite(best.predict(beyond)[0]).all()
    assert isinstance(baselines.best_known_policy(ID), type(best))


@pytest.mark.long
def test_paper_policies():
    policies = baselines.paper_policies(ID)
    names = {"signal_poisson", "poisson", "corollary_3", "corollary_3_as_printed", "join_best", "random"}
    assert set(policies) == names
    seen = np.stack([observe(Params.create(), time, q, 1.2, 2.0) for time in (60.0, 0.1, 0.0) for q in (-10, 0, 10)])
    for name, policy in policies.items():
        actions, _ = policy.predict(seen)
        assert actions.shape == (9, 2), name
        assert (np.abs(actions) <= 1.0).all(), name
    assert (policies["join_best"].predict(seen)[0] == -1.0).all()


@pytest.mark.long
def test_simulated_and_numerical_scores_agree():
    """Control-variate scores of policies near and far from the optimum, against their numerical values."""
    arguments = {**UNEQUAL, "horizon": 3.0, "num_steps": 12, "inventory_limit": 2}
    policies = baselines.paper_policies(ID, **arguments)
    chosen = ("signal_poisson", "corollary_3")
    for name in chosen:
        numerical = baselines.score(ID, policies[name], method="exact", episodes=200, **arguments)
        sampled = baselines.score(ID, policies[name], method="simulated", episodes=2_000, seed=3, **arguments)
        assert (numerical.method, sampled.method) == ("numerical", "simulated")
        excess = abs(numerical.value - sampled.value) - numerical.value_error - sampled.value_error
        assert excess < stats.norm.isf(0.5 * FALSE_ALARMS / len(chosen)) * sampled.stderr
        assert numerical.value <= numerical.optimum_upper + numerical.value_error
    reference = baselines.score(ID, policies["join_best"], episodes=200, **arguments)
    assert reference.skill == pytest.approx(0.0, abs=2e-3)
    best = baselines.score(ID, baselines.optimal_policy(ID, **arguments), episodes=200, **arguments)
    assert best.skill == pytest.approx(1.0, abs=1e-3)
    assert best.method == "numerical"
    assert best.regret == pytest.approx(0.0, abs=2.0 * best.value_error)


@pytest.mark.long
def test_the_optimum_is_sampled_without_error():
    score = baselines.score(ID, baselines.optimal_policy(ID, **SMALL), method="simulated", episodes=500, **SMALL)
    assert score.stderr < 1e-6
    assert score.value == pytest.approx(score.optimum_upper, abs=1e-5)


def test_plain_returns_have_the_numerical_values():
    policy = baselines.optimal_policy(ID)
    rows = baselines.rollout(ID, policy, episodes=600, seed=21)
    returns = rows.groupby("episode")["reward"].sum()
    fills = (rows["bid_fills"] + rows["ask_fills"]).groupby(rows["episode"]).sum()
    bound = stats.norm.isf(0.5 * FALSE_ALARMS / 2)
    assert abs(returns.mean() - policy.optimum) < bound * returns.sem()
    assert abs(fills.mean() - 65.0) < bound * fills.sem() + 0.5  # section 5, in whole fills


@pytest.mark.long
def test_by_a_slow_clock_the_optimum_lies_between_bounds():
    arguments = {"decision": "clock", "horizon": 4.0, "num_steps": 1, "inventory_limit": 3}
    best = baselines.best_known_policy(ID, **arguments)
    params = params_of(ID, **arguments)
    upper = at(params, march(params, FINE, held=False), 0, 1.2, 1.2)
    assert best.optimum == pytest.approx(upper, abs=1e-9)
    lower, higher, _ = best.bounds
    assert lower < higher == best.optimum
    event = solve(params._replace(decision="event"), True).value
    assert lower < event < higher
    score = baselines.score(ID, best, episodes=2_000, **arguments)
    assert score.method == "simulated"
    assert score.optimum_lower == lower
    assert score.optimum_upper == higher
    assert isinstance(score.regret, tuple)
    assert score.regret[0] <= 3.0 * score.stderr
    assert 0.9 < score.skill < 1.1
    rows = baselines.rollout(ID, best, episodes=3_000, seed=33, **arguments)
    returns = rows.groupby("episode")["reward"].sum()
    z = (returns.mean() - score.value) / math.hypot(returns.sem(), score.stderr)
    assert abs(z) < stats.norm.isf(0.5 * FALSE_ALARMS)
    assert score.stderr < 0.3 * returns.sem() * math.sqrt(3_000 / 2_000)
    with pytest.raises(ValueError, match="no numerical evaluation"):
        baselines.score(ID, best, method="exact", **arguments)
    joined = baselines.score(ID, baselines.paper_policies(ID, **arguments)["join_best"], episodes=500, **arguments)
    assert joined.method == "numerical"  # a constant quote is worth the same whenever it is decided on


@pytest.mark.long
def test_a_policy_that_the_grid_does_not_resolve_is_simulated():
    """Quotes that jump between neighbouring intensities: the stated error of the evaluation is large."""

    class Rough(StatelessPolicy):
        def act(self, observation):
            wave = np.sin(4_000.0 * np.asarray(observation, dtype=float)[..., 2:])
            return np.where(wave > 0.0, -1.0, 1.0).astype(np.float32)

    score = baselines.score(ID, Rough(), episodes=1_000, **SMALL)
    assert baseline_of(ID, **SMALL).evaluate(Rough()).error > 0.05
    assert score.method == "simulated"
    assert score.stderr < 0.02


def test_random_actions_are_simulated():
    score = baselines.score(ID, baselines.paper_policies(ID, **SMALL)["random"], episodes=300, **SMALL)
    assert score.method == "simulated"
    assert score.value < score.optimum_upper


def test_there_is_no_exact_law_on_finite_states():
    with pytest.raises(TypeError, match="continuous coordinates"):
        baselines.pnl_distribution(ID, baselines.optimal_policy(ID, **SMALL), **SMALL)


def test_solutions_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))
    params = Params.create(**{**SMALL, "horizon": 1.5})
    solve.cache_clear()
    first = solve(params, True)
    (file,) = (tmp_path / "solutions").iterdir()
    assert file.name.startswith("hawkes_flow-")
    calls = []
    monkeypatch.setattr(baseline_module, "march", lambda *given, **options: calls.append(given))
    solve.cache_clear()
    second = solve(params, True)
    assert not calls
    assert (first.value, first.error, first.segments.tolist(), first.largest) == (
        second.value,
        second.error,
        second.segments.tolist(),
        second.largest,
    )
    assert np.array_equal(first.table, second.table)
    monkeypatch.undo()
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))
    file.write_bytes(file.read_bytes()[:500])
    solve.cache_clear()
    assert solve(params, True).value == first.value
    solve.cache_clear()


@pytest.mark.slow
def test_no_smooth_policy_is_above_the_optimum():
    """Random tilts of the optimum, from small to wild, in the default market."""
    best = baselines.optimal_policy(ID)
    random = np.random.default_rng(12)

    class Tilted:
        markov = True

        def __init__(self, size):
            self.size, self.weights = size, random.uniform(-1.0, 1.0, (5, 2))

        def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
            seen = np.asarray(observation, dtype=float)
            tilt = np.tanh(seen @ self.weights[:4] + self.weights[4])
            return np.clip(best.predict(observation)[0] + self.size * tilt, -1.0, 1.0).astype(np.float32), state

    for size in (0.003, 0.03, 0.3):
        score = baselines.score(ID, Tilted(size), episodes=500)
        assert score.value <= best.optimum + score.value_error
        assert score.method == "numerical"
