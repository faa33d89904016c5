"""Baselines of the intraday power market: laws of the book, the paper's quotes, value functions, and the interval.

Expected values are those of the project's mathematical notes and numbers file (hawkes_power), and those of second
methods: differential equations on grids in special cases, the certified optimum of the reduced market, scipy.

Statistical checks use fixed seeds. Were they redrawn, a test function would fail with probability at most 1e-3, but for
comparisons with simulated figures of the notes, whose own standard errors are rounded.
"""

import functools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.optimize import minimize_scalar

from mmgym.baselines import NoOptimum, best_known_policy, optimal_policy, paper_policies, reference_policy, score
from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.episodes import episodes, simulated_columns
from mmgym.baselines.hawkes_flow import solve
from mmgym.baselines.hawkes_flow.reach import best_offset, best_offsets, order_gain
from mmgym.baselines.hawkes_power import (
    KINDS,
    HawkesPowerBaseline,
    ValueFunction,
    corollary_3,
    effective_impacts,
    join_best,
    kernels,
    mean_impacts,
    move_law,
    path_bounds,
    solved,
    spread_law,
    spread_transitions,
)
from mmgym.baselines.hawkes_power.basis import expansion_space, features_at, fitted_space, sampled_states
from mmgym.baselines.policy import StatelessPolicy
from mmgym.envs.hawkes_power import HawkesPowerVectorEnv
from mmgym.models import hawkes_flow
from mmgym.models.hawkes_power import MARKET, MID_SIGN, PROCESSES, SPREAD_SIGN, Params

ID = "mmgym/HawkesPower-v0"
SMALL = {"horizon": 2.0, "num_steps": 8, "inventory_limit": 3}
MIRROR = [3, 2, 1, 0, 5, 4]  # K+ <-> L-, K- <-> L+, M+ <-> M-
STATIONARY = [2.5, 2.25, 2.25, 2.5, 1.2, 1.2]

# Numbers file: effective_mean_impacts, stationary_mean_half_spread, corollary3_full_default
IMPACTS = [0.10862180626145888, 0.09959374500256132, 0.09959374500256132, 0.10862180626145888]
IMPACTS += [0.03955715783157256, 0.03955715783157256]
HALF_SPREAD = 0.3067272396151635
# q, raw, floored, as printed (raw); each ask, bid
COROLLARY_3 = [
    (0, [0.898671602462793] * 2, [0.898671602462793] * 2, [0.8991621083843548] * 2),
    (
        1,
        [-0.07955702886419175, 1.118671602462793],
        [0.3, 1.118671602462793],
        [-0.07906652294262993, 1.1191621083843548],
    ),
    (
        -1,
        [1.118671602462793, -0.07955702886419175],
        [1.118671602462793, 0.3],
        [1.1191621083843548, -0.07906652294262993],
    ),
]
# Notes, section 5: horizon -> (lower bound of the first-order expansion, its standard error, dual bound, its error)
NOTES = {10.0: (5.646, 0.005, 5.887, 0.005), 60.0: (40.034, 0.018, 41.843, 0.017)}
UNEQUAL = {
    "base_rate": [1.0, 1.5, 1.2, 2.0, 0.8, 0.5],
    "excitation": [0.5, 1.2, 1.0, 0.8, 1.0, 2.0],
    "decay": [2.0, 3.0, 2.5, 4.0, 2.0, 4.0],
    "improvement": [0.3, 0.6],
    "mean_move": [5.0, 4.0, 6.0, 7.0, 9.0, 3.0],
    "first_level_share": [0.5, 0.3],
    "largest_spread": 40,
    "initial_spread": 20,
    "fill_decay": [6.0, 9.0],
    "reach_atom": [0.4, 0.7],
    "horizon": 3.0,
    "num_steps": 6,
    "inventory_limit": 2,
}


def mirrored(arguments):
    """The arguments of the market seen in a mirror."""
    turned = dict(arguments)
    for name in ("base_rate", "excitation", "decay", "mean_move", "initial_rates"):
        if name in turned:
            turned[name] = [turned[name][k] for k in MIRROR]
    for name in ("improvement", "first_level_share", "fill_decay", "reach_atom"):
        if name in turned:
            turned[name] = turned[name][::-1]
    return turned


# --- Laws of the book ------------------------------------------------------------------------------------------------


def test_effective_impacts_are_those_of_the_numbers_file():
    p = Params.create()
    np.testing.assert_allclose(effective_impacts(p), IMPACTS, rtol=1e-12)
    assert spread_law(p) @ np.arange(1, 301) * 0.005 == pytest.approx(HALF_SPREAD, rel=1e-12)


@pytest.mark.parametrize("placement", ["binomial", "geometric"])
def test_laws_of_moves(placement):
    p = Params.create(**UNEQUAL, placement=placement)
    spread = np.arange(1, 41)
    for k, name in enumerate(PROCESSES):
        law = move_law(p, k)
        np.testing.assert_allclose(law.sum(axis=1), 1.0, rtol=1e-12)
        room = spread - 1 if "improvement" in name else 40 - spread
        ticks = np.arange(200)
        share = {"buy": 0.5, "sell": 0.3}.get(name, 0.0)
        geometric = stats.geom(1.0 / UNEQUAL["mean_move"][k]).pmf(ticks)
        expected = (1.0 - share) * np.array([(np.minimum(ticks, r) * geometric).sum() for r in room])
        if "improvement" in name and placement == "binomial":
            expected = (spread - 1) * UNEQUAL["improvement"][k == 3]
        np.testing.assert_allclose(mean_impacts(p)[k], 0.005 * expected, atol=1e-12)
        moved = spread_transitions(p)[k] @ spread - spread
        np.testing.assert_allclose(moved, SPREAD_SIGN[k] * expected, atol=1e-10)


# --- The paper's quotes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "raw", "floored", "printed"), COROLLARY_3)
def test_corollary_3_of_the_numbers_file(q, raw, floored, printed):
    state = Params.create(), 60.0, q, 60, STATIONARY
    np.testing.assert_allclose(corollary_3(*state, floored=False)[::-1], raw, atol=1e-11)
    np.testing.assert_allclose(corollary_3(*state)[::-1], floored, atol=1e-11)
    np.testing.assert_allclose(corollary_3(*state, floored=False, as_printed=True)[::-1], printed, atol=1e-11)


def random_states(count, limit=2, seed=0):
    random = np.random.default_rng(seed)
    inventory = random.integers(-limit, limit + 1, count)
    return random.uniform(0.0, 3.0, count), inventory, random.integers(1, 41, count), random.uniform(2, 6, (count, 6))


def test_corollary_3_in_the_mirror():
    first, second = Params.create(**UNEQUAL), Params.create(**mirrored(UNEQUAL))
    left, inventory, spread, rates = random_states(50)
    for options in ({}, {"as_printed": True}, {"floored": False}):
        quotes = corollary_3(first, left, inventory, spread, rates, **options)
        image = corollary_3(second, left, -inventory, spread, rates[:, MIRROR], **options)
        np.testing.assert_allclose(quotes, image[:, ::-1], atol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["first_order", "frozen"])
def test_value_functions_in_the_mirror(kind):
    """Values are equal, and edges of bid and ask are swapped."""
    first, second = Params.create(**UNEQUAL), Params.create(**mirrored(UNEQUAL))
    left, inventory, spread, rates = random_states(50)
    values = solved(first, kind).at(first, left, inventory, spread, rates)
    image = solved(second, kind).at(second, left, -inventory, spread, rates[:, MIRROR])
    np.testing.assert_allclose(values, image[:, [1, 0, 2]], atol=1e-6)


@pytest.mark.long
def test_fitted_quotes_are_nearly_mirror_images():
    """The defaults are symmetric, the sampled states that values are fitted to are not."""
    p = Params.create(**SMALL)
    best = best_known_policy(ID, **SMALL)
    spread, rates = sampled_states(p)
    left, inventory, _, _ = random_states(len(spread), limit=3)
    left = np.minimum(left, 2.0)
    quotes = best.policy.depths(left, inventory, spread, rates)
    image = best.policy.depths(left, -inventory, spread, rates[:, MIRROR])[:, ::-1]
    assert np.sqrt(((quotes - image) ** 2).mean()) < 0.01


def test_join_best_is_the_half_spread():
    assert join_best(Params.create(), 1.0, 0, np.array([1, 60]), STATIONARY).tolist() == [[0.005] * 2, [0.3] * 2]


# --- Value functions -------------------------------------------------------------------------------------------------


def most_behind(edge, high):
    """The best of all offsets behind the best price, by scipy, if all orders get there."""
    optimum = minimize_scalar(lambda d: -math.exp(-4.0 * d) * (d + edge), bounds=(0.0, high), method="bounded",
                            options={"xatol": 1e-10})  # fmt: skip
    return -optimum.fun


@pytest.mark.parametrize("atom", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("edge", [-3.0, -0.2, 0.02, 0.1, 0.25, 0.6])
def test_the_gain_of_an_order(edge, atom):
    """Joining the best price earns the edge; also in a box that ends before the best offset."""
    behind = hawkes_flow.log_behind(atom)
    assert order_gain(edge, 4.0, behind) == pytest.approx(max((1.0 - atom) * most_behind(edge, 6.0), edge), abs=1e-9)
    for high in (6.0, 0.05):
        offset = best_offset(edge, 4.0, behind, high)
        assert best_offsets(edge, 4.0, behind, 0.0, high) == offset
        filled = 1.0 if offset == 0.0 else (1.0 - atom) * math.exp(-4.0 * offset)
        best = max((1.0 - atom) * most_behind(edge, high), edge)
        assert filled * (offset + edge) == pytest.approx(best, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("make", [fitted_space, functools.partial(expansion_space, order=1)])
def test_features_and_the_generator(make):
    """Against sums over the laws of moves, and differences along the path between events."""
    p = Params.create(**UNEQUAL)
    basis = make(p).basis
    _, _, spreads, rates = random_states(12, seed=1)
    spreads = np.append(spreads, [1, 40]).astype(np.int64)
    rates = np.vstack([rates, p.base_rates, p.base_rates + 5.0])
    features = features_at(p, basis, spreads, rates)
    step = 1e-6
    flows = [
        features_at(p, basis, spreads, rates + sign * step * p.decays * (p.base_rates - rates)) for sign in (1, -1)
    ]
    expected = (flows[0][:, 0] - flows[1][:, 0]) / (2.0 * step)
    transitions = spread_transitions(p)
    every = np.arange(1, 41)
    for i in range(len(spreads)):
        for k in range(6):
            jumped = np.tile(rates[i] + p.excitations * (np.arange(6) == k), (40, 1))
            after = transitions[k, spreads[i] - 1] @ features_at(p, basis, every, jumped)[:, 0]
            expected[i] += rates[i, k] * (after - features[i, 0])
            if k >= 4:
                np.testing.assert_allclose(features[i, k - 2], after, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(features[:, 1], expected, rtol=1e-6, atol=1e-5)


POISSON = {
    "base_rate": [2.0, 1.5, 1.2, 1.8, 1.5, 1.0],
    "excitation": 0.0,
    "improvement": [0.5, 0.3],
    "mean_move": [1.0, 2.0, 3.0, 1.0, 2.5, 1.5],
    "first_level_share": [0.5, 0.3],
    "tick": 0.1,
    "largest_spread": 14,
    "initial_spread": 5,
    "fill_decay": [2.0, 3.0],
    "running_penalty": 0.02,
    "inventory_limit": 2,
    "initial_inventory": 1,
    "horizon": 4.0,
}


def poisson_optimum(p):
    """Without excitation: the values (L, Q) of every spread and inventory, by scipy on the full grid."""
    transitions, impacts = spread_transitions(p), mean_impacts(p)
    half_spread = 0.5 * p.tick * np.arange(1, p.largest_spread + 1)
    q = np.arange(-p.inventory_limit, p.inventory_limit + 1.0)
    mu = p.base_rates

    def psi(edge, decay, atom):
        offset = np.maximum(1.0 / decay - edge, 0.0)
        return np.maximum((1.0 - atom) * np.exp(-decay * offset) * (offset + edge), edge)

    def slope(_, flat):
        value = flat.reshape(len(half_spread), len(q))
        rise = np.outer((mu * MID_SIGN) @ impacts, q) - p.running_penalty * q**2
        for k in range(6):
            rise += mu[k] * (transitions[k] @ value - value)
        bought, sold = transitions[4] @ value, transitions[5] @ value
        ask = (half_spread - impacts[4])[:, None] + bought[:, :-1] - bought[:, 1:]
        bid = (half_spread - impacts[5])[:, None] + sold[:, 1:] - sold[:, :-1]
        rise[:, 1:] += mu[4] * psi(ask, p.fill_decay_buy, p.reach_atom_buy)
        rise[:, :-1] += mu[5] * psi(bid, p.fill_decay_sell, p.reach_atom_sell)
        return rise.ravel()

    start = -np.outer(half_spread, np.abs(q)) - p.terminal_penalty * q**2
    end = solve_ivp(slope, (0.0, p.horizon), start.ravel(), method="LSODA", rtol=1e-9, atol=1e-10).y[:, -1]
    return end.reshape(start.shape)


@pytest.mark.long
@pytest.mark.parametrize("atom", [0.0, [0.6, 0.3]])
def test_without_excitation_the_bounds_meet_at_the_exact_optimum(atom):
    p = Params.create(**POISSON, reach_atom=atom)
    exact = poisson_optimum(p)
    optimum = exact[p.initial_spread - 1, p.inventory_limit + 1]
    for kind in ("fitted", "first_order", "frozen"):
        function = solved(p, kind)
        bounds = path_bounds(p, function, 1_000, 1)
        for each, again in zip(bounds, path_bounds(p, function, 30, 1 + 90), strict=True):  # a path is that of its seed
            np.testing.assert_array_equal(again, each[90:120])
        error = bounds.upper.std() / math.sqrt(1_000)
        assert abs(bounds.upper.mean() - optimum) < 4.0 * error + 1e-4, kind
        assert abs(bounds.policy.mean() - optimum) < 4.0 * error + 1e-4, kind
        assert error < 2e-3
    spreads = np.arange(1, 15)
    for q in range(-2, 3):
        states = np.full(14, 4.0), np.full(14, q), spreads, np.tile(p.base_rates, (14, 1))
        np.testing.assert_allclose(solved(p, "first_order").at(p, *states)[:, 2], exact[:, q + 2], atol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("atom", [0.0, [0.8, 0.5]])
def test_a_book_that_never_moves_is_the_reduced_market(atom):
    """The certified optimum of HawkesFlow without impact, in continuous time, lies in the interval."""
    shared = {"fill_decay": [4.0, 5.0], "running_penalty": 0.02, "inventory_limit": 2, "horizon": 3.0, "num_steps": 6}
    shared["reach_atom"] = atom
    pair = {"base_rate": [0.6, 0.9], "excitation": [1.5, 1.0], "decay": [3.0, 2.0], "initial_rates": [2.0, 0.9]}
    flow = hawkes_flow.Params.create(**shared, **pair, impact=0.0, half_spread=0.3, decision="clock")
    optimum = solve(flow, False).value
    still = {"base_rate": 1e-6, "excitation": 0.0, "decay": 1.0, "initial_rates": 1e-6}
    arguments = {name: [still[name]] * 4 + list(pair[name]) for name in still}
    p = Params.create(**shared, **arguments, first_level_share=1.0)
    bounds = path_bounds(p, solved(p, "fitted"), 2_000, 2)
    errors = [4.0 * sample.std() / math.sqrt(2_000) + 2e-4 for sample in (bounds.policy, bounds.upper)]
    assert bounds.policy.mean() - errors[0] < optimum < bounds.upper.mean() + errors[1]
    assert bounds.upper.mean() - bounds.policy.mean() < 0.01 * optimum


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        {**UNEQUAL, "placement": "geometric"},
        {"excitation": 3.5, "allow_explosive": True, "initial_rates": [2.0] * 6, "horizon": 1.0},
        {"largest_spread": 1, "initial_spread": 1, "horizon": 1.0},
        {"excitation": [0.0, 1.2, 0.0, 1.2, 0.0, 1.5], "horizon": 1.0, "inventory_limit": 1, "initial_inventory": -1},
    ],
    ids=["unequal", "explosive", "one tick", "some Poisson"],
)
def test_other_markets_are_bracketed_too(arguments):
    p = Params.create(**arguments)
    for kind in ("fitted", "first_order"):
        bounds = path_bounds(p, solved(p, kind), 400, 3)
        error = bounds.upper.std() / math.sqrt(400)
        assert (bounds.policy <= bounds.upper + 1e-9).all()
        assert (bounds.upper <= bounds.revealed + 1e-9).all()
        assert (
            kind == "first_order"
            or bounds.upper.mean() - bounds.policy.mean() < 0.03 * abs(bounds.upper.mean()) + error
        )


# --- The interval ----------------------------------------------------------------------------------------------------


def compare_with_the_notes(horizon, paths):
    """The first-order expansion with the bound of the notes, fills known in advance; then the tighter interval."""
    p = Params.create(horizon=horizon)
    lower, lower_error, upper, upper_error = NOTES[horizon]
    bounds = path_bounds(p, solved(p, "first_order"), paths, 4)
    root = math.sqrt(paths)
    assert abs(bounds.policy.mean() - lower) < 4.0 * math.hypot(lower_error, bounds.policy.std() / root)
    assert abs(bounds.revealed.mean() - upper) < 4.0 * math.hypot(upper_error, bounds.revealed.std() / root)
    best = path_bounds(p, solved(p, "fitted"), paths, 4)
    assert best.upper.mean() < upper - 4.0 * (upper_error + best.upper.std() / root)
    assert best.policy.mean() > lower - 4.0 * (lower_error + best.policy.std() / root)
    gap = best.upper - best.policy
    assert gap.mean() + 4.0 * gap.std() / root < 0.002 * lower


@pytest.mark.long
def test_the_interval_at_ten_minutes():
    compare_with_the_notes(10.0, 300)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [10.0, 60.0])
def test_the_interval_of_the_notes(horizon):
    compare_with_the_notes(horizon, 6_000 if horizon == 10.0 else 3_000)


@pytest.mark.slow
def test_the_value_functions_of_order_0():
    """Notes, section 5: 56 for the dual bound, fills known in advance; 39.10(48) for the policy, 0.49(10) below."""
    p = Params.create()
    frozen, first = (path_bounds(p, solved(p, kind), 2_000, 5) for kind in ("frozen", "first_order"))
    assert frozen.revealed.mean() == pytest.approx(56.0, abs=1.0)
    error = frozen.policy.std() / math.sqrt(2_000)
    assert abs(frozen.policy.mean() - 39.10) < 4.0 * math.hypot(0.48, error)
    assert abs(first.policy.mean() - frozen.policy.mean() - 0.49) < 4.0 * math.hypot(0.10, error)


@pytest.mark.slow
def test_policy_values_of_the_notes():
    """Notes, section 5: 13.32(10) for Corollary 3, 26.8(6) for joining the best; quotes here rest between events."""
    policies = paper_policies(ID)
    third = score(ID, policies["corollary_3"], episodes=2_000)
    assert abs(third.value - 13.32) < 4.0 * math.hypot(0.10, third.stderr) + 0.1
    assert abs(third.reference - 26.8) < 4.0 * 0.6
    interval = best_known_policy(ID).interval
    assert 40.034 - 4.0 * 0.018 - 0.5 < interval.lower <= interval.upper + 4.0 * interval.upper_stderr < 40.4
    assert interval.width < 0.02


@pytest.mark.long
def test_every_path_is_in_order():
    """Path by path: the policy below the dual bound, and that below the bound with fills known in advance."""
    p = Params.create(**SMALL)
    for kind in KINDS:
        bounds = path_bounds(p, solved(p, kind), 300, 6)
        assert (bounds.policy <= bounds.upper + 1e-9).all()
        assert (bounds.upper <= bounds.revealed + 1e-9).all()


@pytest.mark.long
def test_any_value_function_gives_valid_bounds():
    """With a useless one, too, the bounds are on both sides of those of a good one."""
    p = Params.create(**SMALL)
    good, tight = solved(p, "fitted"), path_bounds(p, solved(p, "fitted"), 1_000, 7)
    useless = ValueFunction(good.basis, good.borders, 0.0 * good.table)
    loose = path_bounds(p, useless, 1_000, 8)
    error = 4.0 * loose.upper.std() / math.sqrt(1_000)
    assert loose.policy.mean() - error < tight.policy.mean()
    assert loose.upper.mean() + error > tight.upper.mean()


# --- Scores ----------------------------------------------------------------------------------------------------------


class Tilted(StatelessPolicy):
    """A rough function of the observation."""

    def act(self, observation):
        seen = np.asarray(observation)
        tilt = 0.5 * np.sin(7.0 * seen[..., 7]) - 0.4 + 0.3 * seen[..., 1]
        return np.stack([tilt, -0.6 - tilt], axis=-1).astype(np.float32)


@pytest.mark.long
@pytest.mark.parametrize("decision", ["event", "order", "clock"])
def test_control_variates_are_unbiased(decision):
    """Estimates against plain returns of the same episodes, for quotes that rest while the book moves."""
    arguments = {**SMALL, "num_steps": 3, "decision": decision, "initial_inventory": 1, "running_penalty": 0.05}
    arguments["reach_atom"] = [0.3, 0.6]
    p = Params.create(**arguments)
    baseline, base = HawkesPowerBaseline(p), HawkesPowerVectorEnv(1, **arguments)
    policies = {"best": baseline.best_policy(), "tilted": Tilted(), "join_best": baseline.policies()["join_best"]()}
    for i, (name, policy) in enumerate(policies.items()):
        columns = simulated_columns(base, policy, baseline.control_variate(policy), 1_200, 50 + i)
        difference = columns["estimate"] - columns["returns"]
        z = difference.mean() / (difference.std(ddof=1) / math.sqrt(1_200))
        assert abs(z) < stats.norm.isf(0.5e-3 / 9), (name, z)
        if name != "tilted":
            assert columns["estimate"].std() < 0.5 * columns["returns"].std()


@pytest.mark.long
def test_the_best_policy_and_its_interval():
    best = best_known_policy(ID, **SMALL)
    interval = best.interval
    assert best.level == "bracketed"
    lower, upper, error = best.bounds
    assert lower == interval.lower - 4.0 * interval.lower_stderr
    assert best.optimum == upper == interval.upper + 4.0 * interval.upper_stderr
    assert error == 0.0
    assert abs(interval.upper - interval.lower) < 4.0 * math.hypot(interval.lower_stderr, interval.upper_stderr) + 2e-3
    assert 0.0 < interval.width < 0.04
    apart = math.hypot(interval.lower_stderr, interval.upper_stderr)
    assert -4.0 * interval.gap_stderr < interval.gap < 0.005 * interval.upper
    assert interval.gap_stderr < 0.2 * apart  # both ends are on the same paths
    with pytest.raises(NoOptimum, match="best_known_policy"):
        optimal_policy(ID, **SMALL)


@pytest.mark.parametrize("decision", ["event", "order", "clock"])
def test_bounds_see_the_orders_that_the_environment_plays(decision):
    """Path by path, whether there are so many: a path with more than there is room for is not-a-number."""
    p, paths = Params.create(**{**SMALL, "num_steps": 3, "decision": decision}), 300
    baseline = HawkesPowerBaseline(p)
    joins = baseline.policies()["join_best"]()
    orders = np.zeros(paths, dtype=int)
    for step in episodes(baseline.environment().make_batch(paths, info="full"), joins, 77):
        orders += np.where(step.running, step.info["buy_orders"] + step.info["sell_orders"], 0)
    function, rows = solved(p, "frozen"), np.zeros(1, MARKET.row_dtype)
    for most in (1, 3, 5, 8):
        values, seeds = np.empty((paths, 3)), np.arange(77, 77 + paths, dtype=np.uint64)
        kernels.bound_paths(MARKET.record(p), rows, *function, seeds, most, values)
        assert 0 < np.isnan(values[:, 0]).sum() < paths
        assert np.array_equal(np.isnan(values[:, 0]), orders >= most)


@pytest.mark.long
def test_no_score_is_above_the_dual_bound():
    best = best_known_policy(ID, **SMALL)
    policies = {"best": best, **paper_policies(ID, **SMALL)}
    scores = {name: score(ID, policy, episodes=400, **SMALL) for name, policy in policies.items()}
    for name, scored in scores.items():
        assert scored.value <= best.interval.upper + 4.0 * (scored.stderr + best.interval.upper_stderr), name
        assert (scored.level, scored.method) == ("bracketed", "simulated")
        assert scored.regret == (best.bounds.lower - scored.value, best.bounds.upper - scored.value)
    assert scores["best"].skill == pytest.approx(1.0, abs=0.05)
    assert scores["join_best"].skill == pytest.approx(0.0, abs=0.05)
    assert scores["first_order_expansion"].skill > 0.95
    assert reference_policy(ID, **SMALL).predict(np.zeros((3, 9), np.float32))[0].tolist() == [[-1.0, -1.0]] * 3


@pytest.mark.long
def test_more_decisions_are_worth_more():
    values = {}
    for decision in ("event", "order", "clock"):
        arguments = {**SMALL, "num_steps": 6, "decision": decision}
        base = HawkesPowerVectorEnv(1, **arguments)
        baseline = HawkesPowerBaseline(base.params)
        values[decision], _ = baseline.simulated(baseline.best_policy(), 1_000, 9)
    assert values["event"] > values["order"] + 0.05
    assert values["order"] > values["clock"]


@pytest.mark.parametrize("params", [Params, hawkes_flow.Params])
def test_derivatives_are_refused_where_what_a_quote_earns_jumps(params):
    with pytest.raises(TypeError, match=r"reach_atom = .* jumps at the best price"):
        baseline_for(params.create(reach_atom=0.5)).expansions(None)


@pytest.mark.long
def test_values_and_examples():
    best = best_known_policy(ID, **SMALL)
    env = HawkesPowerVectorEnv(2, **SMALL)
    seen, _ = env.reset(seed=0)
    assert best.value(seen) == pytest.approx([best.interval.upper] * 2, rel=0.05)
    assert best.value(seen[0]) == pytest.approx(best.value(seen)[0])
    rows = HawkesPowerBaseline(env.params).examples(env.control_names)
    assert {"time_left", "inventory", "value", "bid_offset", "ask_offset"} <= set(rows[0])
    assert all(row["bid_offset"] >= -1e-12 for row in rows)
