"""The tick-spread market: parameters, the step law, masks, both action spaces.

Statistical checks use fixed seeds; each states its false-alarm rate.
"""

import itertools
import math

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import expm

from mmgym.checking import check_market
from mmgym.envs.tick_spread import TickSpreadEnv, TickSpreadVectorEnv
from mmgym.models import tick_spread
from mmgym.models.tick_spread import Params

ID = "mmgym/TickSpread-v0"
TWO = [[0.0, 1.0], [1.0, 0.0]]
FALSE_ALARM = 1e-4  # of each statistical check


def batch(count, **arguments):
    return TickSpreadVectorEnv(count, info="full", autoreset_mode="Disabled", **arguments)


def play(envs, action, seed=0):
    envs.reset(seed=seed)
    return envs.step(np.tile(action, (envs.num_envs, 1)))


# --- Parameters ------------------------------------------------------------------------------------------------------


def test_defaults_are_the_calibrated_tables_of_the_paper():
    p = Params.create()
    assert p.num_spreads == 6
    assert np.sum(p.spread_transitions, axis=1) == pytest.approx(1.0, abs=1e-15)
    assert p.spread_transitions[0][1] == pytest.approx(0.410 / 0.997)
    assert p.best_bid_rates[0] == pytest.approx((0.0539 + 0.0718) / 2)  # Table 3, averaged over bid and ask
    assert p.improved_ask_rates[5] == pytest.approx((0.1202 + 0.1255) / 2, abs=1.1e-5)
    law = [0.08609, 0.11118, 0.15717, 0.22094, 0.26247, 0.16215]  # tick_spread.md, section 1
    assert p.initial_spread_law == pytest.approx(law, abs=5e-6)
    assert p.initial_spread_law @ p.spreads == pytest.approx(0.019745, abs=5e-7)
    assert (p.step_length, p.limit, p.size_max, p.order_max, p.running_penalty) == (1.0, 100, 10, 10, 3e-6)
    assert Params.create(utility="cara").running_penalty == 0.0
    assert p.risk_aversion * p.volatility**2 / 2 == pytest.approx(p.running_penalty)


def test_edges_and_costs():
    """``h_i(q) = i d / 2 - d 1{improved} + rebate`` and ``i d / 2 + fee``, a lot of 10 shares."""
    p = Params.create()
    assert p.edges[0] / 10 == pytest.approx([0.0033, 0.0058, 0.0083, 0.0108, 0.0133, 0.0158])
    assert p.edges[1] / 10 == pytest.approx([0.0033, 0.0008, 0.0033, 0.0058, 0.0083, 0.0108])  # at one tick: best
    assert p.crossing_costs / 10 == pytest.approx([0.0037, 0.0062, 0.0087, 0.0112, 0.0137, 0.0162])
    assert p.bid_rates[1, 0] == p.bid_rates[0, 0]


def test_sides_and_forms_of_rates():
    p = Params.create(spread_transitions=TWO, fill_rate_best=0.2, fill_rate_improved=[[0.3, 0.4], [0.5, 0.6]])
    assert p.best_bid_rates == p.best_ask_rates == (0.2, 0.2)
    assert p.improved_bid_rates == (0.3, 0.4)
    assert p.improved_ask_rates == (0.5, 0.6)
    same = Params.create(spread_transitions=TWO, fill_rate_best=[0.1, 0.2], fill_rate_improved=0.5)
    assert same.best_bid_rates == same.best_ask_rates == (0.1, 0.2)


def test_an_unlimited_inventory_is_never_reached():
    p = Params.create(inventory_limit=None, lot=100.0)
    fills = p.inventory_limit / p.limit_order_max
    fastest = max(p.improved_bid_rates) * p.horizon
    assert stats.poisson.sf(fills - 1, fastest) <= 1e-12
    assert fills < fastest + 10 * math.sqrt(fastest)


BAD = {
    "tick": (0.0, math.nan, "x", True),
    "spread_transitions": (
        0.5,
        [[0.0, 1.0]],
        [[0.0, 1.0], [1.0]],
        [[0.0, 0.9], [1.0, 0.0]],
        [[0.0, 1.0], [1.0, -0.1]],
        [[0.0, 1.0], [math.nan, 1.0]],
        [1.0, 2.0],
    ),
    "clock_rate": (-1.0, math.inf, [], [[1.0, 2.0]], [[0.0, 1.0], [0.0, 2.0]], [[0.0, -1.0]], [[0.0]], "fast"),
    "fill_rate_best": (-0.1, [0.1], [[0.1] * 6, [0.1] * 5], [0.1, 0.1, 0.1, 0.1, 0.1, "a"], "x"),
    "fill_rate_improved": (math.inf, [[0.1] * 6]),
    "rebate": (math.nan,),
    "fee": (-0.1, "x"),
    "fixed_fee": (-1e-9,),
    "running_penalty": (-1.0, "x"),
    "lot": (0.0, -1.0),
    "limit_order_max": (0.0, 105.0, 1e6, math.nan),
    "market_order_max": (-10.0, 5.0, 1e6),
    "inventory_limit": (0.0, 15.0, -10.0),
    "initial_inventory": (1010.0, 5.0),
    "initial_price": (math.inf,),
    "volatility": (-1.0,),
    "horizon": (0.0, math.nan),
    "num_steps": (0, 1.5, True, 10**7),
    "initial_spread": (0, 7, 1.5, "mean"),
    "utility": ("log", 1),
    "risk_aversion": (-1.0,),
    "reward": ("both",),
    "actions": ("box",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_arguments_are_refused_by_name(name, value):
    for make in (TickSpreadEnv, lambda **arguments: TickSpreadVectorEnv(2, **arguments)):
        with pytest.raises(ValueError, match=name) as refusal:
            make(**{name: value})
        assert "allowed" in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spread_transitions": [[0.0, 1.0], [0.4, 0.5]]}, r"spread_transitions\[1\].*sum to 1, its sum is 0.9"),
        ({"utility": "cara", "running_penalty": 1e-6}, "running_penalty"),
        ({"utility": "cara", "risk_aversion": 0.0}, "risk_aversion"),
        (
            {"spread_transitions": [[1.0, 0.0], [0.0, 1.0]], "fill_rate_best": 0.1, "fill_rate_improved": 0.1},
            "several stationary laws",
        ),
        ({"spread_transitions": TWO}, "fill_rate_best = None is not allowed with 2 spreads"),
        ({"fill_rate_best": 1e9}, "expected events a step"),
        ({"clock_rate": 1e6, "num_steps": 10}, "expected events a step"),
    ],
)
def test_bad_combinations(arguments, message):
    with pytest.raises(ValueError, match=message):
        TickSpreadEnv(**arguments)


# --- The step law ----------------------------------------------------------------------------------------------------


def one_step_law(params, posting, spread, length):
    """Law of (bid fills, ask fills, final spread), fills up to 4 a side, by a dense matrix exponential."""
    p, fills = params, 5
    rho = np.array(p.spread_transitions)
    m = len(rho)
    rates = [[*p.best_bid_rates], [*p.improved_bid_rates]], [[*p.best_ask_rates], [*p.improved_ask_rates]]
    index = np.arange(fills * fills * m).reshape(fills, fills, m)
    generator = np.zeros((index.size, index.size))
    for b, a, j in itertools.product(range(fills), range(fills), range(m)):
        moves = [(index[b, a, k], p.clock_rates[0] * rho[j, k]) for k in range(m)]
        # an improved quote stays best for a step that starts at one tick, and is best while the spread is one tick
        for side, (quote, size, count) in enumerate(((posting[0], posting[2], b), (posting[1], posting[3], a))):
            improved = quote and spread > 0 and j > 0
            rate = rates[side][1 if improved else 0][j] if size else 0.0
            if count + 1 < fills:
                moves.append((index[b + 1, a, j] if side == 0 else index[b, a + 1, j], rate))
        for target, rate in moves:
            generator[index[b, a, j], target] += rate
            generator[index[b, a, j], index[b, a, j]] -= rate
    return expm(generator * length)[index[0, 0, spread]].reshape(fills, fills, m)


@pytest.mark.parametrize(
    ("posting", "spread"),
    [((0, 0, 3, 2), 1), ((1, 0, 2, 2), 2), ((1, 1, 1, 3), 3), ((1, 1, 2, 2), 1), ((0, 1, 0, 2), 2)],
)
def test_law_of_one_step(posting, spread):
    """Chi-square of (fills, final spread) against the matrix exponential; false-alarm rate 1e-4 each."""
    arguments = {
        "spread_transitions": [[0.0, 0.7, 0.3], [0.5, 0.0, 0.5], [0.2, 0.8, 0.0]],
        "clock_rate": 1.5,
        "fill_rate_best": [[0.2, 0.5, 0.3], [0.4, 0.1, 0.6]],
        "fill_rate_improved": [[9.0, 0.9, 0.5], [8.0, 0.3, 1.0]],
        "horizon": 1.2,
        "num_steps": 1,
        "initial_spread": spread,
        "lot": 1.0,
        "limit_order_max": 3.0,
        "market_order_max": 0.0,
    }
    envs = batch(40_000, **arguments)
    *_, info = play(envs, [*posting, 0], seed=11)
    law = one_step_law(envs.params, posting, spread - 1, 1.2)
    found_spread = np.rint(info["spread"] / envs.params.tick).astype(int) - 1
    bids, asks = (np.minimum(info[name], 4) for name in ("bid_fills", "ask_fills"))
    counts = np.zeros(law.shape)
    np.add.at(counts, (bids, asks, found_spread), 1)
    expected = law * envs.num_envs
    large = expected >= 5.0
    assert counts[law == 0.0].sum() == 0
    seen, wanted = counts[large], expected[large]
    if expected[~large].sum() > 0.0:
        seen, wanted = np.append(seen, counts[~large].sum()), np.append(wanted, expected[~large].sum())
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > FALSE_ALARM
    assert (info["inventory"] == posting[2] * info["bid_fills"] - posting[3] * info["ask_fills"]).all()


def test_an_improved_quote_is_best_while_the_spread_is_one_tick(check_mean):
    """Best quotes never fill here and improved ones often: an improved quote sent at one tick never fills."""
    arguments = {
        "spread_transitions": TWO,
        "clock_rate": 2.0,
        "fill_rate_best": 0.0,
        "fill_rate_improved": 5.0,
        "num_steps": 2,
        "horizon": 4.0,
        "inventory_limit": None,
    }
    *_, info = play(batch(500, initial_spread=1, **arguments), [1, 1, 10, 10, 10])
    assert info["bid_fills"].sum() + info["ask_fills"].sum() == 0
    assert (info["masked_actions"] == 2).all()
    np.testing.assert_allclose(info["bid_depth"], 0.0025)
    envs = batch(20_000, initial_spread=2, **arguments)
    *_, info = play(envs, [1, 1, 10, 0, 10])
    assert (info["masked_actions"] == 0).all()
    np.testing.assert_allclose(info["bid_depth"], 0.0, atol=1e-15)
    # time at two ticks of a chain that flips at rate 2, from two ticks, in 2 s: int (1 + exp(-4 t)) / 2 dt
    check_mean(info["bid_fills"].astype(float), 5.0 * (1.0 + (1.0 - math.exp(-8.0)) / 8.0), alarms=FALSE_ALARM)
    earned = info["gain"] - info["price_gain"]
    assert earned == pytest.approx(info["bid_fills"] * 100 * (0.005 - 0.005 + 0.0008))


def test_fills_earn_the_edge_of_the_spread_at_that_time(check_mean):
    """At spreads one and two the expected gain is rate * edge * time in each, by a matrix exponential."""
    envs = batch(
        40_000,
        spread_transitions=TWO,
        clock_rate=3.0,
        fill_rate_best=[0.2, 1.0],
        fill_rate_improved=0.0,
        horizon=1.0,
        num_steps=2,
        initial_spread=1,
        inventory_limit=None,
        volatility=0.0,
    )
    *_, info = play(envs, [0, 0, 10, 0, 10])
    wide = 0.25 - (1.0 - math.exp(-3.0)) / 12.0  # expected seconds at two ticks in half a second
    check_mean(info["gain"], 100 * (0.2 * 0.0033 * (0.5 - wide) + 1.0 * 0.0058 * wide), alarms=FALSE_ALARM)


def test_market_orders_and_liquidation_cost_what_they_should():
    env = TickSpreadEnv(
        clock_rate=0.0, fill_rate_best=0.0, fill_rate_improved=0.0, num_steps=2, initial_spread=3, info="full"
    )
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 0, 10, 10, 17]))  # buys 7 lots
    assert info["gain"] - info["price_gain"] == pytest.approx(-70 * (0.0075 + 0.0012) - 1e-6, rel=1e-12)
    assert (info["inventory"], info["market_orders"], info["market_order"]) == (70.0, 1, 70.0)
    before = info["gain"] - info["price_gain"]
    _, reward, terminated, _, info = env.step(np.array([0, 0, 0, 0, 6]))  # sells 4 lots, 3 are liquidated
    after = info["gain"] - info["price_gain"]
    assert terminated
    assert after - before == pytest.approx(-70 * 0.0087 - 2e-6, rel=1e-12)
    assert info["inventory"] == 30.0
    penalty = 3e-6 * 30.0**2 * 150.0
    assert reward == pytest.approx(info["gain"] - (before + info_price(env, 70.0)) - penalty, abs=1e-9)


def info_price(env, shares):
    """Brownian gain of the first step of the same episode, by playing it again."""
    again = TickSpreadEnv(info="full", **env.arguments)
    again.reset(seed=0)
    *_, info = again.step(np.array([0, 0, 10, 10, 17]))
    assert info["inventory"] == shares
    return info["price_gain"]


@pytest.mark.parametrize(
    ("lots", "action", "played", "masked"),
    [
        (0, [0, 0, 10, 10, 10], (100, 100, 0), 0),
        (100, [0, 0, 10, 10, 10], (0, 100, 0), 0),  # no room: the bid is cut, but a market order could make room
        (100, [0, 0, 10, 10, 3], (70, 100, -70), 0),
        (100, [0, 0, 10, 10, 11], (0, 100, 0), 1),  # a purchase beyond the limit is masked
        (97, [0, 0, 10, 10, 20], (0, 100, 30), 1),
        (95, [0, 0, 10, 10, 10], (50, 100, 0), 0),
        (-100, [0, 0, 10, 10, 10], (100, 0, 0), 0),
        (-95, [0, 0, 10, 9, 13], (100, 80, 30), 0),
    ],
)
def test_orders_are_cut_to_the_limit_then_sizes_to_the_room(lots, action, played, masked):
    env = TickSpreadEnv(
        clock_rate=0.0,
        fill_rate_best=0.0,
        initial_spread=2,
        initial_inventory=10.0 * lots,
        info="full",
    )
    env.reset(seed=0)
    *_, info = env.step(np.array(action))
    assert (info["bid_size"], info["ask_size"], info["market_order"]) == played
    assert info["masked_actions"] == masked


def test_sizes_are_masked_without_market_orders_to_make_room():
    env = TickSpreadEnv(market_order_max=0.0, initial_inventory=950.0, fill_rate_best=0.0, info="full")
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 0, 10, 10, 0]))
    assert info["bid_size"] == 50.0
    assert info["masked_actions"] == 1
    *_, info = env.step(np.array([0, 0, 6, 10, 0]))
    assert info["masked_actions"] == 2  # counted since the reset
    *_, info = env.step(np.array([0, 0, 5, 10, 0]))
    assert info["masked_actions"] == 2


def test_fills_stop_at_the_bound_and_execute_the_room():
    """Only bids fill, fast: 30 of 100 shares of room are bought by the first fill, then nothing."""
    envs = batch(
        50, fill_rate_best=[[50.0] * 6, [0.0] * 6], inventory_limit=230.0, initial_inventory=100.0, num_steps=300
    )
    *_, info = play(envs, [0, 0, 10, 10, 10])
    assert (info["inventory"] == 230.0).all()
    assert (info["bid_fills"] == 2).all()  # 100 shares, then the 30 that are left


def test_the_piecewise_clock(check_mean):
    """No jumps while the rate is 0; jumps at the rate of each piece, also within one step."""
    pieces = [[0.0, 0.0], [1.5, 4.0], [2.25, 0.0]]
    rates = {"fill_rate_best": 0.1, "fill_rate_improved": 0.1}
    market = {"spread_transitions": TWO, "clock_rate": pieces, "initial_spread": 1, **rates}
    envs = batch(20_000, horizon=3.0, num_steps=3, **market)
    envs.reset(seed=5)
    rest = np.tile([0, 0, 0, 0, 10], (20_000, 1))
    odd = []
    for _ in range(3):
        *_, info = envs.step(rest)
        odd.append((info["spread"] > 0.0075).astype(float))
    assert odd[0].sum() == 0.0
    check_mean(odd[1], (1.0 - math.exp(-2.0 * 4.0 * 0.5)) / 2.0, alarms=FALSE_ALARM)
    check_mean(odd[2], (1.0 - math.exp(-2.0 * 4.0 * 0.75)) / 2.0, alarms=FALSE_ALARM)


def test_price_noise_given_the_inventory_path():
    """``price_gain`` and the mid are jointly Gaussian; the reward without price noise is the same otherwise."""
    arguments = {"initial_inventory": 500.0, "num_steps": 1, "horizon": 30.0}
    envs = batch(20_000, **arguments)
    _, rewards, _, _, info = play(envs, [0, 0, 10, 10, 10], seed=3)
    z = info["price_gain"] / (0.008 * np.sqrt(info["inventory_square"]))
    assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
    assert stats.kstest((info["mid"] - 45.0) / (0.008 * math.sqrt(30.0)), "norm").pvalue > FALSE_ALARM
    still = batch(20_000, reward="expected", **arguments)
    _, expected, _, _, other = play(still, [0, 0, 10, 10, 10], seed=3)
    assert other["inventory"] == pytest.approx(info["inventory"])
    assert rewards - info["price_gain"] == pytest.approx(expected, abs=1e-9)


def test_the_cara_reward():
    envs = batch(200, utility="cara", num_steps=3)
    envs.reset(seed=1)
    for n in range(3):
        _, rewards, _, _, info = envs.step(np.tile([0, 0, 10, 10, 10], (200, 1)))
        assert (rewards == 0.0).all() or n == 2
    assert rewards == pytest.approx(-np.exp(-0.09375 * info["gain"]))
    smooth = batch(200, utility="cara", num_steps=3, reward="expected")
    smooth.reset(seed=1)
    for _ in range(3):
        _, smooth_rewards, _, _, info = smooth.step(np.tile([0, 0, 10, 10, 10], (200, 1)))
    earned = info["gain"] - info["price_gain"]
    variance = (0.09375 * 0.008) ** 2 * info["inventory_square"]
    assert smooth_rewards == pytest.approx(-np.exp(-0.09375 * earned + variance / 2))


def test_the_initial_spread():
    envs = batch(60_000)
    _, info = envs.reset(seed=0)
    counts = np.bincount(np.rint(info["spread"] / 0.005).astype(int), minlength=7)[1:]
    assert stats.chisquare(counts, envs.params.initial_spread_law * 60_000).pvalue > FALSE_ALARM
    for spread in (1, 6):
        _, info = batch(100, initial_spread=spread).reset(seed=0)
        np.testing.assert_allclose(info["spread"], spread * 0.005)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_played_stays_in_bounds_and_money_adds_up(data):
    """No NaN, inventory within its limit, wealth identity to rounding."""
    draw = data.draw
    spreads = draw(st.integers(2, 5))
    rows = [[draw(st.floats(0.01, 1.0)) * (i != j) for j in range(spreads)] for i in range(spreads)]
    arguments = {
        "tick": draw(st.sampled_from([1e-6, 0.005, 10.0])),
        "spread_transitions": [[value / math.fsum(row) for value in row] for row in rows],
        "clock_rate": draw(st.sampled_from([0.0, 1.0, 50.0, [[0.0, 3.0], [0.7, 0.0], [1.1, 8.0]]])),
        "fill_rate_best": draw(st.sampled_from([0.0, 0.3, 40.0])),
        "fill_rate_improved": draw(st.sampled_from([0.0, 0.9, 90.0])),
        "lot": draw(st.sampled_from([1.0, 10.0, 2.5])),
        "limit_order_max": 50.0,
        "market_order_max": draw(st.sampled_from([0.0, 20.0, 50.0])),
        "inventory_limit": draw(st.sampled_from([10.0, 50.0, 1000.0])),
        "utility": draw(st.sampled_from(["mean", "cara"])),
        "actions": draw(st.sampled_from(["multi", "flat"])),
        "num_steps": 4,
        "horizon": 2.0,
    }
    envs = batch(6, **arguments)
    envs.action_space.seed(draw(st.integers(0, 1000)))
    envs.reset(seed=draw(st.integers(0, 2**63)))
    total = np.zeros(6)
    for _ in range(4):
        observations, rewards, terminated, _, info = envs.step(envs.action_space.sample())
        total += rewards
        assert observations in envs.observation_space
        assert np.isfinite(rewards).all()
        assert (np.abs(info["inventory"]) <= envs.params.inventory_limit * (1 + 1e-12)).all()
        wealth = info["cash"] + info["inventory"] * info["mid"]
        assert wealth == pytest.approx(info["gain"], abs=1e-9 * (1 + np.abs(info["cash"]).max()))
    assert terminated.all()
    if arguments["utility"] == "mean":
        penalty = 3e-6 * info["inventory_square"]
        assert total == pytest.approx(info["gain"] - penalty, rel=1e-9, abs=1e-9)


# --- Masks and action spaces -----------------------------------------------------------------------------------------


def test_masks_are_what_is_allowed_whatever_the_other_components_are():
    """Brute force over joint actions of a small market, from the rule itself."""
    for orders in (0.0, 2.0):
        p = Params.create(
            spread_transitions=TWO,
            fill_rate_best=0.1,
            fill_rate_improved=0.1,
            lot=1.0,
            limit_order_max=3.0,
            market_order_max=orders,
            inventory_limit=4.0,
        )
        joint = list(itertools.product(*map(range, p.action_sizes)))
        for lots, spread in itertools.product(range(-4, 5), range(2)):
            allowed = [set() for _ in range(5)]
            for action in joint:
                after = lots + action[4] - p.order_max
                fits = [
                    action[0] == 0 or spread > 0,
                    action[1] == 0 or spread > 0,
                    action[2] <= 4 - after,
                    action[3] <= 4 + after,
                    abs(after) <= 4,
                ]
                if fits[4]:  # sizes stand to reason only after a possible market order
                    for i in range(4):
                        if fits[i]:
                            allowed[i].add(action[i])
                    allowed[4].add(action[4])
            expected = [entry in allowed[i] for i, size in enumerate(p.action_sizes) for entry in range(size)]
            assert tick_spread.masks(p, lots, spread).tolist() == expected, (lots, spread)
            if orders:
                menu = p._replace(actions="flat")
                flat = [all(entry in allowed[i] for i, entry in enumerate(action)) for action in menu.menu.tolist()]
                assert tick_spread.action_masks(menu, lots, spread).tolist() == flat


def test_masks_of_single_batch_and_observation_agree():
    envs = batch(64, inventory_limit=50.0)
    observations, _ = envs.reset(seed=2)
    for _ in range(5):
        masks = envs.action_masks()
        assert masks.shape == (64, 2 + 2 + 11 + 11 + 21)
        np.testing.assert_array_equal(masks, envs.masks(observations))
        observations, *_ = envs.step(envs.action_space.sample())
    env = gymnasium.make(ID, inventory_limit=50.0).unwrapped
    observation, _ = env.reset(seed=2)
    np.testing.assert_array_equal(env.action_masks(), env.masks(observation))


def test_actions_within_the_masks_are_never_counted():
    envs = batch(300, inventory_limit=80.0, num_steps=20)
    envs.reset(seed=0)
    random = np.random.default_rng(0)
    sizes = envs.params.action_sizes
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    for _ in range(20):
        masks = envs.action_masks()
        parts = [masks[:, a:b] * random.random((300, b - a)) for a, b in itertools.pairwise(offsets)]
        *_, info = envs.step(np.stack([part.argmax(axis=1) for part in parts], axis=1))
    assert (info["masked_actions"] == 0).all()


def test_flat_actions_play_what_they_stand_for():
    flat, full = TickSpreadEnv(actions="flat"), TickSpreadEnv()
    assert flat.action_space == gymnasium.spaces.Discrete(15)
    for action in range(15):
        stands_for = flat.params.menu[action]
        flat.reset(seed=action)
        full.reset(seed=action)
        outputs, expected = flat.step(np.int64(action)), full.step(stands_for)
        np.testing.assert_array_equal(outputs[0], expected[0])
        assert outputs[1] == expected[1]
        np.testing.assert_array_equal(flat.to_quotes(action), full.to_quotes(stands_for))
    for bad in (-1, 15, 10**6):
        with pytest.raises(ValueError, match="not allowed"):
            flat.step(np.int64(bad))
    envs = batch(3, actions="flat")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="row 1"):
        envs.step(np.array([0, 15, 2]))


def test_gymnasium_and_sb3_have_nothing_to_say():
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3

    for arguments in ({}, {"actions": "flat"}):
        check_env(gymnasium.make(ID, **arguments).unwrapped, skip_render_check=True)
        check_sb3(gymnasium.make(ID, **arguments).unwrapped)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 1},
        {"num_steps": 4, "actions": "flat"},
        {"num_steps": 3, "utility": "cara", "reward": "expected"},
        {
            "num_steps": 5,
            "clock_rate": [[0, 2.0], [77.0, 0.3], [250, 5.0]],
            "inventory_limit": 50.0,
            "lot": 25.0,
            "initial_spread": 1,
        },
        {"num_steps": 3, "market_order_max": 0.0, "actions": "flat"},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_conformance_with_other_arguments(arguments):
    check_market(TickSpreadVectorEnv, **arguments)


@pytest.mark.long
def test_a_million_environments():
    envs = TickSpreadVectorEnv(1_000_000, num_steps=2)
    envs.reset(seed=0)
    observations, rewards, *_ = envs.step(np.tile([0, 0, 10, 10, 10], (1_000_000, 1)))
    assert np.isfinite(rewards).all()
    assert np.abs(observations).max() <= 1.0


def test_sb3_gets_the_masks():
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
    from stable_baselines3.common.vec_env import VecNormalize

    from mmgym.adapters.sb3 import make_sb3_env

    venv = VecNormalize(make_sb3_env(ID, 5, inventory_limit=20.0), gamma=1.0)
    venv.seed(0)
    venv.reset()
    assert is_masking_supported(venv)
    masks = get_action_masks(venv)
    np.testing.assert_array_equal(masks, venv.venv.envs.action_masks())
    assert masks.shape == (5, 47)
