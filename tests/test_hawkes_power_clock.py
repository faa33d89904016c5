"""The dual bound of the intraday power market's quotes that rest between ticks of the clock.

Expected values are those of the certified optimum of the reduced market, of dynamic programs over all quotes on a grid
where nothing excites itself, of episodes that an environment plays, and differences.
Statistical checks use fixed seeds; were they redrawn, each would fail with probability at most 2e-4.
"""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

from mmgym.baselines import optimal_policy
from mmgym.baselines.episodes import simulated_columns
from mmgym.baselines.hawkes_flow.reach import best_offsets, reach_laws
from mmgym.baselines.hawkes_power import HawkesPowerBaseline, solved
from mmgym.baselines.hawkes_power.baseline import DistancePolicy, HeldPolicy
from mmgym.baselines.hawkes_power.basis import features_at, fitted_space
from mmgym.baselines.hawkes_power.clock import fill_grid, held_bounds, offset_nodes
from mmgym.baselines.hawkes_power.clock_kernels import curvature_of_walk, most_of_walk, walk, walk_alone
from mmgym.baselines.hawkes_power.kernels import order_features, scratch
from mmgym.models.hawkes_power import BUY, MARKET, MID_SIGN, SELL, SPREAD_SIGN, Params

MOVING = {
    "base_rate": [1.0, 1.5, 1.2, 2.0, 0.8, 0.5],
    "excitation": [0.5, 1.2, 1.0, 0.8, 1.0, 2.0],
    "decay": [2.0, 3.0, 2.5, 4.0, 2.0, 4.0],
    "improvement": [0.3, 0.6],
    "mean_move": [5.0, 4.0, 6.0, 7.0, 9.0, 3.0],
    "first_level_share": [0.5, 0.3],
    "largest_spread": 40,
    "initial_spread": 20,
    "fill_decay": [6.0, 9.0],
    "running_penalty": 0.02,
    "horizon": 3.0,
    "num_steps": 10,
    "inventory_limit": 2,
    "decision": "clock",
}


@pytest.mark.long
@pytest.mark.parametrize("excitation", [[1.5, 1.0], [0.0, 0.0]])
def test_a_book_that_never_moves_has_the_certified_optimum_below(excitation):
    shared = {"fill_decay": [4.0, 5.0], "running_penalty": 0.02, "inventory_limit": 2, "horizon": 3.0, "num_steps": 12}
    shared["decision"] = "clock"
    pair = {"base_rate": [0.6, 0.9], "excitation": excitation, "decay": [3.0, 2.0], "initial_rates": [2.0, 0.9]}
    optimum = optimal_policy("mmgym/HawkesFlow-v0", **shared, **pair, impact=0.0, half_spread=0.3).optimum
    still = {"base_rate": 1e-6, "excitation": 0.0, "decay": 1.0, "initial_rates": 1e-6}
    arguments = {name: [still[name]] * 4 + list(pair[name]) for name in still}
    p = Params.create(**shared, **arguments, first_level_share=1.0)
    found = held_bounds(p, solved(p, "held"), 300, 2, 50, 50)
    upper, lower = found.mean(axis=0)
    errors = 4.0 * found.std(axis=0) / math.sqrt(len(found)) + 2e-4
    assert lower - errors[1] < optimum < upper + errors[0]
    assert upper < 1.15 * optimum  # an inventory of two lots at most: what several fills of a step change is large


@pytest.mark.long
def test_the_policy_of_the_bound_is_what_an_environment_plays():
    """Path by path: with the penalty, the policy's estimates have the mean of its returns, and lie below the bound."""
    p, paths, seed = Params.create(**MOVING), 150, 40
    found = held_bounds(p, solved(p, "held"), paths, seed, 20)
    assert (found[:, 0] >= found[:, 1]).all()
    policy, baseline = HeldPolicy(p), HawkesPowerBaseline(p)
    played = simulated_columns(baseline.environment(), policy, baseline.control_variate(policy), paths, seed)
    difference = found[:, 1] - played["estimate"]
    assert abs(difference.mean()) < 4.0 * difference.std(ddof=1) / math.sqrt(paths) + 1e-4


@pytest.mark.parametrize(
    "other", [{"decision": "event"}, {"decision": "order"}, {"reach_atom": 0.1}, {"num_steps": 1}, {"max_offset": 1e3}]
)
def test_markets_that_the_bound_is_not_made_for(other):
    p = Params.create(**{**MOVING, **other})
    assert offset_nodes(p) is None
    with pytest.raises(ValueError, match=r"no reach_atom, at most 1\.5 orders a step and 1000 offsets"):
        held_bounds(p, solved(Params.create(**MOVING), "fitted"), 1, 0)


def move_laws(p):
    """Law of the spread after an event of each process, (6, L, L), and mean of half the ticks moved (EUR / MWh)."""
    largest = p.largest_spread
    laws, means = np.zeros((6, largest, largest)), np.zeros((6, largest))
    for k, sign in enumerate(SPREAD_SIGN):
        for spread in range(1, largest + 1):
            room = spread - 1 if sign < 0 else largest - spread
            ticks = np.arange(room + 1)
            if sign < 0 and p.placement == "binomial":
                law = stats.binom.pmf(ticks, room, p.improvement_ask if k else p.improvement_bid)
            else:
                law = stats.geom.pmf(ticks, 1.0 / p.mean_move[k])
                law[-1] = 1.0 - law[:-1].sum()
            if k >= BUY:
                law *= 1.0 - (p.first_level_share_buy if k == BUY else p.first_level_share_sell)
                law[0] += 1.0 - law.sum()
            laws[k, spread - 1, spread - 1 + sign * ticks], means[k, spread - 1] = law, p.half_tick * (law @ ticks)
    return laws, means


def best_on_a_grid(p, parts):
    """The optimum of rates that stay, by inventory and spread, over distances at equal parts of half a tick."""
    laws, means = move_laws(p)
    lots, heights = (
        np.arange(-p.inventory_limit, p.inventory_limit + 1),
        p.half_tick * np.arange(1, p.largest_spread + 1),
    )
    states, spreads = len(lots) * len(heights), len(heights)
    held = np.repeat(lots, spreads)
    spacing = p.half_tick / parts
    reach = heights[-1] - heights[0] + max(p.max_offset_bid, p.max_offset_ask)
    distances = heights[0] + spacing * np.arange(round(reach / spacing) + 1)

    def generator(process, distance=np.inf, kappa=1.0):
        """States, then what is earned, as a last column."""
        step = {BUY: -1, SELL: 1}.get(process, 0)
        fill = np.where(np.abs(held + step) <= p.inventory_limit, 1.0, 0.0) * (step != 0)
        if step:
            fill *= np.tile(np.minimum(np.exp(-kappa * (distance - heights)), 1.0), len(lots))
        matrix, mean = np.zeros((states + 1, states + 1)), np.tile(means[process], len(lots))
        shifted = np.kron(np.eye(len(lots), k=step), laws[process])
        stays = np.kron(np.eye(len(lots)), laws[process])
        matrix[:-1, :-1] = fill[:, None] * shifted + (1.0 - fill)[:, None] * stays - np.eye(states)
        matrix[:-1, -1] = held * MID_SIGN[process] * mean + (fill * (distance - mean) if step else 0.0)
        return p.base_rate[process] * matrix

    rest = sum(generator(k) for k in range(4))
    rest[:-1, -1] -= p.running_penalty * held**2
    asks = np.array([generator(BUY, d, p.fill_decay_buy) for d in distances])
    bids = np.array([generator(SELL, d, p.fill_decay_sell) for d in distances])
    steps = np.array([expm(p.step_length * (rest + asks + bid)) for bid in bids])[:, :, :-1]
    offsets = distances[:, None] - np.tile(heights, len(lots)) + 1e-9
    allowed = (offsets >= 0.0)[:, None] & (offsets >= 0.0)[None]
    values = -np.abs(held) * np.tile(heights, len(lots)) - p.terminal_penalty * held**2
    for _ in range(p.num_steps):
        values = np.where(allowed, steps[..., :-1] @ values + steps[..., -1], -np.inf).max(axis=(0, 1))
    return values[(p.initial_inventory + p.inventory_limit) * spreads + p.initial_spread - 1]


@pytest.mark.long
@pytest.mark.parametrize(("seed", "kind"), [(0, "held"), (1, "fitted"), *((seed, "held") for seed in range(2, 6))])
def test_no_quotes_on_a_grid_are_worth_more(seed, kind):
    """Books that move at rates that stay: few ticks, limits of one to three lots, small and large penalties."""
    random = np.random.default_rng(seed)
    largest = int(random.integers(2, 6))
    p = Params.create(
        base_rate=np.exp(random.uniform(np.log(0.1), 0.0, 6)).tolist(),
        excitation=0.0,
        decay=1.0,
        placement=str(random.choice(["binomial", "geometric"])),
        improvement=random.uniform(0.1, 0.9, 2).tolist(),
        mean_move=random.uniform(1.0, 4.0, 6).tolist(),
        first_level_share=random.uniform(0.0, 1.0, 2).tolist(),
        tick=0.2,
        largest_spread=largest,
        initial_spread=int(random.integers(1, largest + 1)),
        fill_decay=random.uniform(3.0, 6.0, 2).tolist(),
        running_penalty=float(random.choice([0.0, 0.05, 1.0])),
        terminal_penalty=float(random.choice([0.0, 0.05, 1.0])),
        horizon=2.0,
        num_steps=int(random.integers(4, 13)),
        inventory_limit=1 + seed % 3,
        initial_inventory=int(random.integers(-1, 2)),
        decision="clock",
    )
    estimates = held_bounds(p, solved(p, kind), 80, seed, 100, 50)
    upper, lower = estimates.mean(axis=0)
    errors = 4.0 * estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates)) + 2e-4
    optimum = best_on_a_grid(p, 3)
    assert optimum < upper + errors[0]
    assert lower - errors[1] < optimum + 0.01  # what a finer grid adds


@pytest.mark.long
@pytest.mark.parametrize(
    "other",
    [
        {"excitation": [0.1, 0.1, 0.2, 0.1, 0.3, 0.2], "inventory_limit": 1},
        {"excitation": [1.8, 2.6, 2.2, 3.6, 1.6, 3.2], "horizon": 1.0},
        {"inventory_limit": 3, "running_penalty": 0.5, "terminal_penalty": 1.0},
        {"horizon": 0.9, "num_steps": 2},
    ],
)
def test_random_policies_are_worth_less(other):
    p, paths, seed = Params.create(**{**MOVING, **other}), 60, 7
    function, random = solved(p, "fitted"), np.random.default_rng(3)
    upper, baseline = held_bounds(p, function, paths, seed, 50, 2)[:, 0], HawkesPowerBaseline(p)
    for _ in range(6):
        factor, skew, shift = random.uniform(0.7, 1.3), random.normal(0.0, 0.02), random.normal(0.0, 0.02)

        def distances(time_left, inventory, spread, rates, tilt=(factor, skew, shift)):
            flat = [np.ravel(x) for x in (time_left, inventory, spread)]
            edges = function.at(p, *flat, np.reshape(rates, (-1, 6)))[:, :2].reshape(*np.shape(rates)[:-1], 2)
            lots = np.asarray(inventory)[..., None] * np.array([1.0, -1.0])
            offsets = np.maximum(tilt[0] * best_offsets(edges, *reach_laws(p)) + tilt[1] * lots + tilt[2], 0.0)
            return offsets + p.half_tick * np.asarray(spread)[..., None]

        policy = DistancePolicy(p, distances)
        variate = baseline.control_variate(policy)
        excess = simulated_columns(baseline.environment(), policy, variate, paths, seed)["estimate"] - upper
        assert excess.mean() < 4.0 * excess.std(ddof=1) / math.sqrt(paths) + 1e-4


def test_what_the_orders_of_a_step_earn_between_offsets():
    """The largest value and the curvature are bounds of differences, large edges of either sign included."""
    random = np.random.default_rng(4)
    for trial in range(600):
        orders, lots = int(random.integers(1, 7)), 2 * int(random.integers(1, 4)) + 1
        q = int(random.choice([0, random.integers(0, lots), lots - 1]))
        decays, start = np.exp(random.uniform(0.0, 3.0, 2)), float(random.uniform(0.1, 0.5))
        half_spreads = np.maximum(start + 0.01 * random.integers(-10, 40, orders), 0.005)
        edges = random.normal(0.0, 1.0, (orders, lots - 1)) * math.exp(random.uniform(-3.0, 5.0))
        edges *= random.random(edges.shape) < random.choice([0.3, 1.0])  # few orders matter, or all
        sums, after = (np.exp(random.uniform(-8.0, 0.0)) * random.normal(size=x) for x in ((orders + 1, lots), lots))
        sides = random.integers(BUY, SELL + 1, orders)
        if trial % 3 == 0:  # a side that opens within the step, and would rather not
            orders, q, sides, lots, half_spreads = 2, 0, np.array([SELL, BUY]), 3, np.full(2, start)
            edges = np.array([[0.0, 0.0], [-math.exp(random.uniform(0.0, 5.0)), 0.0]])
            sums, after = 1e-3 * random.random((3, 3)), 1e-3 * random.random(3)
        parts = (orders, q, sides, half_spreads, edges, sums, after)
        most, curve = most_of_walk(*parts, start, decays), curvature_of_walk(*parts, start, decays, np.empty((6, lots)))
        room, step = np.empty(lots), 1e-3 / decays.max()
        for _ in range(10):
            bid, ask = start + random.uniform(0.0, 2.0 / decays)
            if np.abs(np.subtract.outer(half_spreads, [bid, ask])).min() < 2.0 * step:
                continue

            def value(of_bid, of_ask, parts=parts, decays=decays, room=room):
                return walk(*parts, of_bid, of_ask, decays, room)

            here = value(bid, ask)
            second = abs(value(bid + step, ask) - 2.0 * here + value(bid - step, ask))
            second += abs(value(bid, ask + step) - 2.0 * here + value(bid, ask - step))
            assert here <= most + 1e-9 * (1.0 + abs(most)), trial
            assert second <= step**2 * curve + 1e-11 * (1.0 + abs(edges).max()), trial


def test_orders_of_one_side_alone():
    """What they earn is that of all orders, from every inventory at once."""
    random = np.random.default_rng(5)
    for _ in range(50):
        orders, lots = int(random.integers(1, 6)), 2 * int(random.integers(1, 4)) + 1
        half_spreads, quote = 0.05 * random.integers(1, 20, orders), random.uniform(0.05, 1.5)
        edges, decays = random.normal(size=(orders, lots - 1)), np.exp(random.uniform(0.0, 3.0, 2))
        none, room, found = np.zeros((orders + 1, lots)), np.empty(lots), np.empty(lots)
        for process, side in ((SELL, 0), (BUY, 1)):
            walk_alone(orders, half_spreads, edges, quote, decays[side], side == 1, found)
            for q in range(lots):
                parts = (orders, q, np.full(orders, process), half_spreads, edges, none, none[0])
                assert found[q] == pytest.approx(walk(*parts, quote, quote, decays, room), rel=1e-9, abs=1e-12)


def test_what_lies_between_the_offsets_of_both_sides():
    p = Params.create(**MOVING)
    grid, nodes = fill_grid(p, offset_nodes(p)), offset_nodes(p)
    for side, decay in enumerate((p.fill_decay_sell, p.fill_decay_buy)):
        fading, coarse = np.exp(-decay * nodes), grid.coarse[side]
        assert coarse[0] == 0 and coarse[-1] == len(nodes) - 1 and (np.diff(coarse) > 0).all()
        values = np.random.default_rng(side).normal(size=len(coarse))
        between = (1.0 - grid.share[side]) * values[grid.below[side]] + grid.share[side] * values[grid.below[side] + 1]
        np.testing.assert_allclose(between, np.interp(-fading, -fading[coarse], values), atol=1e-12)


def test_features_just_after_orders():
    """Those of the kernel that makes nothing else."""
    p, random = Params.create(**MOVING), np.random.default_rng(6)
    basis = fitted_space(p).basis
    spreads, rates = (
        random.integers(1, p.largest_spread + 1, 20),
        p.base_rates * np.exp(random.normal(0.5, 0.5, (20, 6))),
    )
    expected, found = features_at(p, basis, spreads, rates), np.empty((4, len(basis.degrees)))
    for n in range(20):
        order_features(MARKET.record(p)[0], basis, spreads[n], rates[n], scratch(basis), found)
        np.testing.assert_allclose(found[2:], expected[n, 2:], rtol=1e-12)
