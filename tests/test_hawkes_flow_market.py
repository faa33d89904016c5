"""The Hawkes flow market's step law, rewards and bookkeeping.

Expected values come from a simulation of another construction (Ogata's thinning), from closed forms, and from the
reference values of the project's mathematical notes (moments of counts).

False alarms: seeds are fixed. Were they redrawn, each test function would fail with probability at most 1e-3: it
divides that rate evenly over its p-values.
"""

import math

import gymnasium
import numpy as np
import pytest
from scipy import stats

import mmgym  # noqa: F401  # registers the ids
from mmgym.envs.hawkes_flow import HawkesFlowEnv, HawkesFlowVectorEnv
from mmgym.models.hawkes_flow import Params

ID = "mmgym/HawkesFlow-v0"
FALSE_ALARMS = 1e-3
UNEQUAL = {
    "base_rate": [0.8, 0.5],
    "excitation": [1.0, 2.0],
    "decay": [2.0, 4.0],
    "impact": [0.05, 0.15],
    "fill_decay": [3.0, 5.0],
    "reach_atom": [0.3, 0.6],
    "initial_rates": [2.5, 0.5],
    "running_penalty": 0.02,
    "inventory_limit": 2,
}


def actions_for(envs, bid, ask):
    """The same depths in every row."""
    return np.tile(envs.from_quotes([bid, ask]), (envs.num_envs, 1))


def episodes(envs, seed, actions):
    """One episode of every row: returns, and the infos of its steps with the mask of rows that played them."""
    _, info = envs.reset(seed=seed)
    running, total, steps = np.ones(envs.num_envs, dtype=bool), np.zeros(envs.num_envs), []
    last = {name: np.array(values) for name, values in info.items()}
    while running.any():
        _, rewards, terminated, truncated, info = envs.step(actions)
        assert not truncated.any()
        total[running] += rewards[running]
        steps.append((running.copy(), info))
        for name, values in info.items():
            last[name][running] = values[running]
        running &= ~terminated
    return total, steps, last


# --- A second simulation ---------------------------------------------------------------------------------------------


def thinning(random, count, params, depths, length):
    """Paths of ``length`` minutes from the start by Ogata's thinning: orders, fills, gains, inventories, rates."""
    p = params
    names = ("buys", "sells", "bid_fills", "ask_fills", "inventory", "gain", "square", "buy_rate", "sell_rate")
    sample = {name: np.zeros(count) for name in names}
    sides = (depths[0], p.fill_decay_sell, p.reach_atom_sell), (depths[1], p.fill_decay_buy, p.reach_atom_buy)
    probability = [
        1.0 if depth <= p.half_spread else (1.0 - atom) * math.exp(-kappa * (depth - p.half_spread))
        for depth, kappa, atom in sides
    ]
    for i in range(count):
        time, q, mid, cash, square = 0.0, p.initial_inventory, 0.0, 0.0, 0.0
        buy, sell = p.initial_rate_buy, p.initial_rate_sell
        orders, fills = [0, 0], [0, 0]
        while True:
            bound = buy + sell  # intensities fall until the next order
            wait = random.exponential(1.0 / bound)
            if time + wait >= length:
                break
            time += wait
            square += q * q * wait
            buy = p.base_rate_buy + (buy - p.base_rate_buy) * math.exp(-p.decay_buy * wait)
            sell = p.base_rate_sell + (sell - p.base_rate_sell) * math.exp(-p.decay_sell * wait)
            draw = random.uniform(0.0, bound)
            if draw < buy:
                orders[0] += 1
                if q > -p.inventory_limit and random.uniform() < probability[1]:
                    q, cash, fills[1] = q - 1, cash + mid + depths[1], fills[1] + 1
                mid += p.impact_buy
                buy += p.excitation_buy
            elif draw < buy + sell:
                orders[1] += 1
                if q < p.inventory_limit and random.uniform() < probability[0]:
                    q, cash, fills[0] = q + 1, cash - mid + depths[0], fills[0] + 1
                mid -= p.impact_sell
                sell += p.excitation_sell
        rest = length - time
        square += q * q * rest
        buy = p.base_rate_buy + (buy - p.base_rate_buy) * math.exp(-p.decay_buy * rest)
        sell = p.base_rate_sell + (sell - p.base_rate_sell) * math.exp(-p.decay_sell * rest)
        row = (*orders, *fills, q, cash + q * mid, square, buy, sell)
        for name, value in zip(names, row, strict=True):
            sample[name][i] = value
    return sample


def environment(count, seed, depths, arguments):
    """The same of the environment, at the end of an episode."""
    envs = HawkesFlowVectorEnv(count, info="full", **arguments)
    _, steps, last = episodes(envs, seed, actions_for(envs, *depths))
    sums = {name: np.zeros(count) for name in ("buys", "sells", "bid_fills", "ask_fills")}
    for running, info in steps:
        for name in sums:
            entry = {"buys": "buy_orders", "sells": "sell_orders"}.get(name, name)
            sums[name][running] += info[entry][running]
    names = ("inventory", "gain", "buy_rate", "sell_rate")
    return {**sums, **{name: last[name].astype(float) for name in names}, "square": last["inventory_square"]}


@pytest.mark.parametrize("decision", ["event", "clock"])
@pytest.mark.parametrize(("steps", "bid"), [(1, 0.38), (5, 0.3)])
def test_the_law_of_an_episode_against_thinning(decision, steps, bid):
    arguments = {**UNEQUAL, "horizon": 3.0, "num_steps": steps, "decision": decision, "initial_inventory": 1}
    params, depths = Params.create(**arguments), (bid, 0.47)
    first = thinning(np.random.default_rng([steps, 4]), 6_000, params, depths, 3.0)
    second = environment(6_000, 77 + steps, depths, arguments)
    p_values = {}
    for name in first:
        values = np.concatenate([first[name], second[name]]).round(9)
        if len(np.unique(values)) > 60:
            p_values[name] = stats.ks_2samp(first[name].round(9), second[name].round(9), method="asymp").pvalue
        else:
            edges = np.unique(values)
            table = np.stack([[(sample[name].round(9) == edge).sum() for edge in edges] for sample in (first, second)])
            common = table.sum(axis=0) >= 20
            pooled = np.column_stack([table[:, common], table[:, ~common].sum(axis=1)])
            p_values[name] = stats.chi2_contingency(pooled[:, pooled.sum(axis=0) > 0]).pvalue
    products = (("gain", "inventory"), ("buys", "sells"), ("bid_fills", "buys"), ("square", "sells"))
    for a, b in products:
        x, y = (sample[a] * sample[b] for sample in (first, second))
        p_values[f"{a} {b}"] = stats.ttest_ind(x, y, equal_var=False).pvalue
    bound = FALSE_ALARMS / (4 * len(p_values))
    assert min(p_values.values()) > bound, p_values


# Reference mathematics, section 1: [lambda, tau] -> E N and Var N at mu 0.6, zeta 1.5, rho 3 (from the numbers file).
COUNTS = [
    (0.6, 60.0, 71.6, 283.5999999999998),
    (2.1, 60.0, 72.6, 287.6),
    (5.0, 1.0, 3.168070260957311, 7.613940127211691),
]


@pytest.mark.parametrize(("rate", "horizon", "mean", "variance"), COUNTS)
@pytest.mark.parametrize("decision", ["event", "clock"])
def test_counts_of_orders_have_the_closed_form_moments(rate, horizon, mean, variance, decision):
    count = 8_000
    envs = HawkesFlowVectorEnv(
        count, info="full", horizon=horizon, num_steps=4, decision=decision, initial_rates=[rate, rate]
    )
    _, steps, last = episodes(envs, 11, np.zeros((count, 2), np.float32))
    bound = stats.norm.isf(0.5 * FALSE_ALARMS / (4 * len(COUNTS) * 2))
    for entry in ("buy_orders", "sell_orders"):
        orders = np.sum([np.where(running, info[entry], 0) for running, info in steps], axis=0)
        assert abs(orders.mean() - mean) < bound * math.sqrt(variance / count)
        squares = (orders - mean) ** 2
        assert abs(squares.mean() - variance) < bound * squares.std() / math.sqrt(count)
    assert (last["time_left"] == 0.0).all()


def test_waits_are_those_of_the_intensities():
    """Integrated intensities up to each order are exponential, and its side is drawn by the intensities there."""
    p = Params.create(**UNEQUAL)
    envs = HawkesFlowVectorEnv(400, info="full", **UNEQUAL, horizon=20.0, num_steps=100)
    _, info = envs.reset(seed=5)
    actions, hazard, running = np.zeros((400, 2), np.float32), np.zeros(400), np.ones(400, dtype=bool)
    waits = [[] for _ in range(400)]
    scores, chances = [], []
    while running.any():
        before = [np.array(info[name]) for name in ("buy_rate", "sell_rate")]
        _, _, terminated, _, info = envs.step(actions)
        u = info["elapsed"]
        faded = [
            base + (rate - base) * np.exp(-decay * u)
            for rate, base, decay in zip(
                before, (p.base_rate_buy, p.base_rate_sell), (p.decay_buy, p.decay_sell), strict=True
            )
        ]
        for rate, after, base, decay in zip(
            before, faded, (p.base_rate_buy, p.base_rate_sell), (p.decay_buy, p.decay_sell), strict=True
        ):
            hazard[running] += (base * u + (rate - after) / decay)[running]
        ordered = running & (info["buy_orders"] + info["sell_orders"] > 0)
        assert (info["buy_orders"] + info["sell_orders"] <= 1).all()
        for row in np.flatnonzero(ordered):
            waits[row].append(hazard[row])
        chance = faded[0] / (faded[0] + faded[1])
        scores += (info["buy_orders"] - chance)[ordered].tolist()
        chances += (chance * (1.0 - chance))[ordered].tolist()
        jumped = faded[0] + info["buy_orders"] * p.excitation_buy
        np.testing.assert_allclose(info["buy_rate"][running], jumped[running], rtol=1e-12)
        hazard[ordered] = 0.0
        running &= ~terminated
    residuals, carried = [], 0.0  # one row after the other, so that no wait is cut at a horizon
    for row in range(400):
        residuals += [carried + waits[row][0], *waits[row][1:]]
        carried = hazard[row]
    assert len(residuals) > 15_000
    assert stats.kstest(residuals, "expon").pvalue > FALSE_ALARMS / 2
    z = np.sum(scores) / math.sqrt(np.sum(chances))
    assert abs(z) < stats.norm.isf(0.5 * FALSE_ALARMS / 2)


def test_fills_have_the_probability_of_the_depth():
    """One step, one order: the side's fills over its orders, for some depths."""
    depths = [(0.3, 0.35), (0.45, 0.55), (0.8, 1.0)]
    for seed, (bid, ask) in enumerate(depths):
        envs = HawkesFlowVectorEnv(40_000, info="full", horizon=10.0, num_steps=5)
        envs.reset(seed=seed)
        *_, info = envs.step(actions_for(envs, bid, ask))
        for side, order, depth in (("bid", "sell", bid), ("ask", "buy", ask)):
            orders, fills = int(info[f"{order}_orders"].sum()), int(info[f"{side}_fills"].sum())
            played = float(info[f"{side}_depth"][0])
            assert played == pytest.approx(depth, abs=1e-6)
            chance = math.exp(-4.0 * (played - 0.3))
            assert stats.binomtest(fills, orders, min(chance, 1.0)).pvalue > FALSE_ALARMS / (2 * len(depths))


# --- Bookkeeping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["event", "clock"])
def test_rewards_add_up_to_the_criterion(decision):
    arguments = {**UNEQUAL, "terminal_penalty": 0.07, "horizon": 4.0, "num_steps": 9, "decision": decision}
    envs = HawkesFlowVectorEnv(300, info="full", **arguments)
    total, _, last = episodes(envs, 3, actions_for(envs, 0.35, 0.4))
    q = last["inventory"].astype(float)
    criterion = last["gain"] - 0.02 * last["inventory_square"] - 0.3 * np.abs(q) - 0.07 * q**2
    np.testing.assert_allclose(total, criterion, atol=1e-12)
    np.testing.assert_allclose(last["cash"] + q * last["mid"], last["gain"], atol=1e-12)
    assert np.abs(q).max() == 2.0


def test_a_step_is_an_order():
    """Every entry of the info follows from the one order of an event step."""
    env = HawkesFlowEnv(**UNEQUAL, horizon=30.0, num_steps=60, info="full")
    _, info = env.reset(seed=8)
    terminated, seen = False, set()
    while not terminated:
        before = info
        _, reward, terminated, _, info = env.step(env.from_quotes([0.31, 0.36]))
        q, after, u = before["inventory"], info["inventory"], info["elapsed"]
        buy, sell = info["buy_orders"], info["sell_orders"]
        seen.add((buy, sell, after - q))
        assert after - q in {0, buy * -1, sell}
        assert info["mid"] - before["mid"] == pytest.approx(0.05 * buy - 0.15 * sell, abs=1e-13)
        earned = info["ask_fills"] * info["ask_depth"] + info["bid_fills"] * info["bid_depth"]
        expected = earned + after * (0.05 * buy - 0.15 * sell) - 0.02 * q**2 * u
        if terminated:
            expected -= 0.3 * abs(after) + 0.05 * after**2
        assert reward == pytest.approx(expected, abs=1e-12)
        assert 0.0 < u <= 0.5 * (1 + 1e-9)
        assert info["time_left"] == pytest.approx(before["time_left"] - u, abs=1e-12)
        if buy + sell == 0 and not terminated:
            assert u == 0.5
    assert {(1, 0, 0), (0, 1, 0), (1, 0, -1), (0, 1, 1), (0, 0, 0)} <= seen


def test_without_orders_there_are_as_many_decisions_as_steps():
    for decision in ("event", "clock"):
        for num_steps in (1, 7, 240, 977):
            env = HawkesFlowEnv(base_rate=1e-9, excitation=0.0, num_steps=num_steps, decision=decision)
            env.reset(seed=0)
            count, terminated = 0, False
            while not terminated:
                observation, reward, terminated, _, _ = env.step(np.zeros(2, np.float32))
                count += 1
            assert count == num_steps
            assert observation[0] == 0.0
            assert reward == 0.0


def test_the_clock_ticks_on_the_grid():
    env = HawkesFlowEnv(decision="clock", num_steps=7, horizon=1.0)
    observation, _ = env.reset(seed=1)
    for step in range(7):
        left, *_ = env.to_state(observation)
        assert left == (7 - step) * (1.0 / 7)
        observation, _, terminated, _, info = env.step(np.zeros(2, np.float32))
        assert info["elapsed"] == pytest.approx(1.0 / 7)
    assert terminated


def test_decisions_do_not_change_constant_quotes():
    """What is frozen anyway is worth the same with decisions at events and by the clock."""
    samples = []
    for seed, decision in enumerate(("event", "clock")):
        envs = HawkesFlowVectorEnv(6_000, info="full", decision=decision, horizon=10.0, num_steps=4)
        samples.append(episodes(envs, 100 + seed, actions_for(envs, 0.5, 0.5))[0])
    assert stats.ks_2samp(*samples).pvalue > FALSE_ALARMS


def test_a_side_at_its_limit_is_closed():
    for limit, side in ((1, "bid"), (-1, "ask")):
        envs = HawkesFlowVectorEnv(3_000, info="full", inventory_limit=1, initial_inventory=limit, horizon=5.0)
        envs.reset(seed=9)
        *_, info = envs.step(actions_for(envs, 0.3, 0.3))
        assert info[f"{side}_fills"].sum() == 0
        other = "ask" if side == "bid" else "bid"
        orders = info["buy_orders"] if side == "bid" else info["sell_orders"]
        np.testing.assert_array_equal(info[f"{other}_fills"], orders)  # joining the best is always filled


# --- Spaces and maps -------------------------------------------------------------------------------------------------


def test_observations_are_the_state():
    env = HawkesFlowEnv(**{**UNEQUAL, "inventory_limit": 7}, horizon=12.0, num_steps=30)
    observation, info = env.reset(seed=2)
    assert observation[2] == np.float32(2.5 / (2.5 + 0.8 / (1 - 0.5)))
    terminated = False
    while not terminated:
        left, inventory, buy, sell = env.to_state(observation)
        assert left == pytest.approx(info["time_left"], abs=1e-6)
        assert inventory == info["inventory"]
        assert buy == pytest.approx(info["buy_rate"], rel=1e-5)
        assert sell == pytest.approx(info["sell_rate"], rel=1e-5)
        assert env.observation_space.contains(observation)
        observation, _, terminated, _, info = env.step(env.from_quotes([0.3, 0.3]))


def test_intensities_are_never_clipped():
    envs = HawkesFlowVectorEnv(4)
    envs.reset(seed=0)
    excess = np.array([0.0, 10.0, 1e3, 1e6])
    seen = envs.set_state({**envs.get_state(), "excess_buy": excess})
    rates = 0.6 + excess
    np.testing.assert_allclose(envs.to_state(seen)[2], rates, rtol=0.1)
    assert (np.diff(seen[:, 2]) > 0).all()
    assert (seen[:, 2] < 1.0).all()


def test_actions_are_depths_from_the_best_quote_on():
    env = HawkesFlowEnv(fill_decay=[3.0, 5.0])
    quotes = env.to_quotes(np.array([[-1, -1], [0, 0], [1, 1]], dtype=np.float32))
    np.testing.assert_allclose(quotes, [[0.3, 0.3], [0.3 + 2 / 5, 0.3 + 2 / 3], [0.3 + 4 / 5, 0.3 + 4 / 3]], rtol=1e-15)
    assert env.from_quotes([0.1, 99.0]).tolist() == [-1.0, 1.0]


def test_arguments_make_the_same_parameters():
    for arguments in (
        {},
        UNEQUAL,
        {"excitation": 3.5, "allow_explosive": True, "initial_rates": [1, 2], "horizon": 5.0},
    ):
        params = Params.create(**arguments)
        assert Params.create(**params.arguments()) == params


def test_rendering_and_rollout_follow_the_elapsed_time():
    from mmgym.baselines import rollout

    env = gymnasium.make(ID, render_mode="ansi", horizon=2.0, num_steps=4)
    env.reset(seed=4)
    elapsed, terminated = 0.0, False
    while not terminated:
        *_, terminated, _, info = env.step(np.zeros(2, np.float32))
        elapsed += info["elapsed"]
        assert env.render().startswith(f"t {elapsed:g}/2 ")
    rows = rollout(ID, lambda seen: np.zeros((len(seen), 2), np.float32), episodes=30, seed=4, horizon=2.0, num_steps=4)
    for _, episode in rows.groupby("episode"):
        np.testing.assert_allclose(episode["time"], np.cumsum([0.0, *episode["elapsed"][:-1]]), atol=1e-12)
        assert episode["time"].iloc[-1] + episode["elapsed"].iloc[-1] == pytest.approx(2.0, abs=1e-12)
        assert (episode["step"] == np.arange(len(episode))).all()
    assert rows.groupby("episode").size().nunique() > 3


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_rate": 0.0}, "base_rate = 0.0 is not allowed: it must be a finite number >= 1e-12"),
        ({"base_rate": [1.0]}, r"base_rate = \[1.0\] is not allowed: it must be a number, or a pair \[buy, sell\]"),
        ({"excitation": [-1.0, 1.0]}, r"excitation\[0\] \(buy\) = -1.0"),
        ({"decay": float("nan")}, "decay = nan"),
        ({"half_spread": -0.1}, "half_spread = -0.1"),
        ({"impact": "big"}, "impact = 'big'"),
        ({"fill_decay": 0.0}, "fill_decay = 0.0"),
        ({"inventory_limit": 2.5}, "inventory_limit = 2.5 is not allowed: it must be a whole number"),
        ({"initial_inventory": 11}, "initial_inventory = 11 and inventory_limit = 10 are not allowed together"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"decision": "both"}, "decision = 'both' is not allowed: it must be one of 'event', 'clock'"),
        ({"initial_rates": "typical"}, "initial_rates = 'typical'"),
        ({"initial_rates": [0.5, 1.0]}, "the buy rate must be at least its base_rate 0.6"),
        ({"horizon": 1e9}, "market orders would be expected in an episode"),
        ({"excitation": 3.0}, "no stationary rate.*allow_explosive=True"),
        ({"excitation": [1.0, 4.0]}, "branching ratio"),
        (
            {"excitation": 3.0, "allow_explosive": True},
            "initial_rates = 'stationary' is not allowed with excitation >=",
        ),
        (
            {"excitation": 6.0, "allow_explosive": True, "initial_rates": [1, 1]},
            "horizon = 60.0 are not allowed together: .* market orders would be expected",
        ),
    ],
    ids=str,
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HawkesFlowEnv(**arguments)


def test_explosive_flow_on_a_short_horizon(check_mean):
    """Expected counts at zeta = rho: y tau + rho mu tau^2 / 2, the limit of the closed form."""
    arguments = {
        "excitation": 3.0,
        "allow_explosive": True,
        "initial_rates": [1.0, 1.0],
        "horizon": 1.0,
        "num_steps": 3,
    }
    envs = HawkesFlowVectorEnv(20_000, info="full", **arguments)
    _, steps, _ = episodes(envs, 6, np.zeros((20_000, 2), np.float32))
    orders = np.sum([np.where(running, info["buy_orders"], 0) for running, info in steps], axis=0)
    check_mean(orders, 1.0 + 3.0 * 0.6 / 2, alarms=FALSE_ALARMS)
    assert HawkesFlowEnv(**arguments).params.rate_scale_buy == 3.6
