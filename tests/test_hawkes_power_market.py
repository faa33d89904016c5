"""The intraday power market's step law, book, rewards and bookkeeping.

Expected values come from a simulation of another construction (Ogata's thinning), from scipy's laws, from closed forms,
and from the reference values of the project's mathematical notes (moments of counts).

False alarms: seeds are fixed. Were they redrawn, each test function would fail with probability at most 1e-3: it
divides that rate evenly over its p-values.
"""

import math

import numpy as np
import pytest
from scipy import stats

from mmgym.envs.hawkes_power import HawkesPowerEnv, HawkesPowerVectorEnv
from mmgym.models import hawkes
from mmgym.models.hawkes_power import PROCESSES, Params

FALSE_ALARMS = 1e-3
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
    "reach_atom": [0.3, 0.6],
    "initial_rates": [1.5, 1.5, 3.0, 2.0, 2.5, 0.5],
    "running_penalty": 0.02,
    "terminal_penalty": 0.07,
    "inventory_limit": 2,
    "initial_inventory": 1,
}
BID = {"bid_improvement": 1, "bid_cancellation": -1, "sell": -1}  # processes that move the bid, and where
ASK = {"ask_cancellation": 1, "ask_improvement": -1, "buy": 1}


def actions_for(envs, bid, ask):
    """The same offsets in every row."""
    return np.tile(envs.from_quotes([bid, ask]), (envs.num_envs, 1))


def episodes(envs, seed, actions):
    """One episode of every row: returns, sums of step entries, and the entries at each row's end."""
    _, info = envs.reset(seed=seed)
    running, total = np.ones(envs.num_envs, dtype=bool), np.zeros(envs.num_envs)
    names = ("book_events", "buy_orders", "sell_orders", "bid_fills", "ask_fills")
    sums = {name: np.zeros(envs.num_envs) for name in names}
    last = {name: np.array(values) for name, values in info.items()}
    while running.any():
        _, rewards, terminated, truncated, info = envs.step(actions)
        assert not truncated.any()
        total[running] += rewards[running]
        for name in names:
            sums[name][running] += info[name][running]
        for name, values in info.items():
            last[name][running] = values[running]
        running &= ~terminated
    return total, sums, last


# --- A second simulation ---------------------------------------------------------------------------------------------


def thinning(random, count, p, offsets, length):
    """Paths by Ogata's thinning, quotes pegged to the mid for the whole length; see `environment`."""
    names = ("book", "buys", "sells", "bid_fills", "ask_fills", "inventory", "gain", "square", "mid", "spread")
    sample = {name: np.zeros(count) for name in (*names, *PROCESSES)}
    mu, zeta, rho = (np.array(values) for values in (p.base_rate, p.excitation, p.decay))
    kappa = {"buy": p.fill_decay_buy, "sell": p.fill_decay_sell}
    atom = {"buy": p.reach_atom_buy, "sell": p.reach_atom_sell}
    for i in range(count):
        now, q, cash, square = 0.0, p.initial_inventory, 0.0, 0.0
        bid, ask = 0, p.initial_spread  # ticks
        depths = [0.5 * p.tick * p.initial_spread + offset for offset in offsets]
        rates = np.array(p.initial_rates)
        events = dict.fromkeys(PROCESSES, 0)
        fills = {"buy": 0, "sell": 0}
        while True:
            bound = rates.sum()  # intensities fall until the next event
            wait = random.exponential(1.0 / bound)
            if now + wait >= length:
                break
            now += wait
            square += q * q * wait
            rates = mu + (rates - mu) * np.exp(-rho * wait)
            draw = random.uniform(0.0, bound)
            k = int(np.searchsorted(np.cumsum(rates), draw))
            if k == 6:
                continue
            name, spread, mid = PROCESSES[k], ask - bid, 0.5 * p.tick * (bid + ask)
            events[name] += 1
            if name in fills:
                depth = depths[1 if name == "buy" else 0]
                side = -1 if name == "buy" else 1
                reach = 0.0 if random.uniform() < atom[name] else random.exponential(1.0 / kappa[name])
                if abs(q + side) <= p.inventory_limit and depth - 0.5 * p.tick * spread <= reach:
                    q, cash = q + side, cash - side * (mid - side * depth)
                    fills[name] += 1
            if "improvement" in name and p.placement == "binomial":
                share = p.improvement_bid if name == "bid_improvement" else p.improvement_ask
                ticks = random.binomial(spread - 1, share)
            else:
                ticks = random.geometric(1.0 / p.mean_move[k])
                ticks = min(ticks, spread - 1 if "improvement" in name else p.largest_spread - spread)
            if name == "buy" and random.uniform() < p.first_level_share_buy:
                ticks = 0
            if name == "sell" and random.uniform() < p.first_level_share_sell:
                ticks = 0
            bid += BID.get(name, 0) * ticks
            ask += ASK.get(name, 0) * ticks
            rates[k] += zeta[k]
        rates = mu + (rates - mu) * np.exp(-rho * (length - now))
        square += q * q * (length - now)
        mid = 0.5 * p.tick * (bid + ask)
        start = 0.5 * p.tick * p.initial_spread
        book = sum(events[name] for name in PROCESSES[:4])
        gain = cash + q * mid - p.initial_inventory * start
        row = (
            book,
            events["buy"],
            events["sell"],
            fills["sell"],
            fills["buy"],
            q,
            gain,
            square,
            mid - start,
            ask - bid,
        )
        for name, value in zip(sample, (*row, *rates), strict=True):
            sample[name][i] = value
    return sample


def environment(count, seed, offsets, arguments):
    """The same of the environment, at the end of an episode."""
    envs = HawkesPowerVectorEnv(count, info="full", **arguments)
    _, sums, last = episodes(envs, seed, actions_for(envs, *offsets))
    names = {"book": "book_events", "buys": "buy_orders", "sells": "sell_orders"}
    columns = {name: sums[names.get(name, name)] for name in ("book", "buys", "sells", "bid_fills", "ask_fills")}
    columns |= {name: last[name].astype(float) for name in ("inventory", "gain", "mid", "spread")}
    return {**columns, "square": last["inventory_square"], **{name: last[f"{name}_rate"] for name in PROCESSES}}


@pytest.mark.long
@pytest.mark.parametrize("placement", ["binomial", "geometric"])
def test_the_law_of_a_step_against_thinning(placement):
    """Frozen quotes, many events: among them are some after which a quote lies inside the spread."""
    arguments = {**UNEQUAL, "horizon": 1.5, "num_steps": 1, "decision": "clock", "placement": placement}
    p, offsets = Params.create(**arguments), (0.01, 0.03)
    first = thinning(np.random.default_rng([len(placement), 4]), 4_000, p, offsets, 1.5)
    second = environment(12_000, 77, offsets, arguments)
    p_values = {}
    for name in first:
        a, b = first[name].round(9), second[name].round(9)
        edges = np.unique(np.concatenate([a, b]))
        if len(edges) > 100:
            p_values[name] = stats.ks_2samp(a, b, method="asymp").pvalue
        else:
            table = np.stack([[(sample == edge).sum() for edge in edges] for sample in (a, b)])
            common = table.sum(axis=0) >= 20
            pooled = np.column_stack([table[:, common], table[:, ~common].sum(axis=1)])
            p_values[name] = stats.chi2_contingency(pooled[:, pooled.sum(axis=0) > 0]).pvalue
    products = ("gain", "inventory"), ("gain", "spread"), ("ask_fills", "buys"), ("mid", "inventory"), ("square", "mid")
    for a, b in products:
        x, y = (sample[a] * sample[b] for sample in (first, second))
        p_values[f"{a} {b}"] = stats.ttest_ind(x, y, equal_var=False).pvalue
    assert min(p_values.values()) > FALSE_ALARMS / (2 * len(p_values)), p_values


@pytest.mark.parametrize("steps", [2, 9])
def test_decision_times_do_not_change_the_market(steps):
    """Events, book and mid have one law with decisions at events, at orders and by the clock."""
    arguments = {**UNEQUAL, "horizon": 2.0, "num_steps": steps}
    samples = {
        decision: environment(8_000, 900 + i, (0.02, 0.02), {**arguments, "decision": decision})
        for i, decision in enumerate(("event", "order", "clock"))
    }
    p_values = {}
    for name in ("book", "buys", "sells", "mid", "spread", *PROCESSES):
        for other in ("order", "clock"):
            a, b = samples["event"][name].round(9), samples[other][name].round(9)
            p_values[name, other] = stats.ks_2samp(a, b, method="asymp").pvalue
    assert min(p_values.values()) > FALSE_ALARMS / (2 * len(p_values)), p_values


# Notes, section 1: [lambda, tau] -> E N and Var N at mu 0.6, zeta 1.5, rho 3 (from the numbers file).
COUNTS = [
    (0.6, 60.0, 71.6, 283.5999999999998),
    (2.1, 60.0, 72.6, 287.6),
    (5.0, 1.0, 3.168070260957311, 7.613940127211691),
]


@pytest.mark.parametrize(("rate", "horizon", "mean", "variance"), COUNTS)
def test_counts_have_the_closed_form_moments(rate, horizon, mean, variance):
    count, book = 5_000, [2.0, 1.4, 3.0, 1.6]
    arguments = {"horizon": horizon, "num_steps": 3, "decision": "clock", "initial_rates": [*book, rate, rate]}
    envs = HawkesPowerVectorEnv(count, info="full", **arguments)
    _, sums, _ = episodes(envs, 11, np.zeros((count, 2), np.float32))
    p = envs.params
    rest = hawkes.moments(p.base_rates[:4], p.excitations[:4], p.decays[:4], book, horizon)
    wanted = dict.fromkeys(("buy_orders", "sell_orders"), (mean, variance))
    wanted["book_events"] = float(rest.integral.sum()), float(rest.count_variance.sum())
    bound = stats.norm.isf(0.5 * FALSE_ALARMS / (len(COUNTS) * 6))
    for name, (expected, spread) in wanted.items():
        sample = sums[name]
        assert abs(sample.mean() - expected) < bound * math.sqrt(spread / count), name
        squares = (sample - expected) ** 2
        assert abs(squares.mean() - spread) < bound * squares.std() / math.sqrt(count), name


# --- The book --------------------------------------------------------------------------------------------------------


def fired(before, after, p):
    """The process of each row's step, by the jump of its intensity; -1 for none."""
    kinds = np.full(len(before["elapsed"]), -1)
    for k, name in enumerate(PROCESSES):
        faded = p.base_rate[k] + (before[f"{name}_rate"] - p.base_rate[k]) * np.exp(-p.decay[k] * after["elapsed"])
        kinds[after[f"{name}_rate"] - faded > 0.5 * p.excitation[k]] = k
    return kinds


@pytest.mark.parametrize("placement", ["binomial", "geometric"])
def test_each_event_moves_one_side_of_the_book(placement):
    """Of two thousand paths: the side, the direction, and the bounds of the spread."""
    envs = HawkesPowerVectorEnv(2_000, info="full", **UNEQUAL, placement=placement, horizon=20.0, num_steps=40)
    _, before = envs.reset(seed=3)
    counts, floors = np.zeros(6, dtype=int), 0
    for _ in range(60):
        *_, info = envs.step(np.zeros((2_000, 2), np.float32))
        processes = fired(before, info, envs.params)
        bid = np.rint((info["best_bid"] - before["best_bid"]) / 0.01).astype(int)
        ask = np.rint((info["best_ask"] - before["best_ask"]) / 0.01).astype(int)
        for k, name in enumerate(PROCESSES):
            here = processes == k
            assert (bid[here] * BID.get(name, 0) >= 0).all()
            assert (ask[here] * ASK.get(name, 0) >= 0).all()
            assert (ask if name in BID else bid)[here].any() == 0
            counts[k] += here.sum()
        assert not (bid != 0)[processes < 0].any()
        assert not (ask != 0)[processes < 0].any()
        np.testing.assert_array_equal(info["spread"] - before["spread"], ask - bid)
        np.testing.assert_allclose(info["mid"] - before["mid"], 0.005 * (bid + ask), atol=1e-12)
        np.testing.assert_allclose(info["best_ask"] - info["best_bid"], 0.01 * info["spread"], atol=1e-12)
        assert info["spread"].min() >= 1
        assert info["spread"].max() <= 40
        floors += (info["spread"] == 1).sum()
        before = {name: np.array(values) for name, values in info.items()}
    assert counts.min() > 1_000
    assert floors > 20


def cut(law, room):
    """Probabilities of 0 to ``room`` ticks of a law whose larger values are cut to ``room``."""
    chances = law.pmf(np.arange(room + 1))
    chances[room] += law.sf(room)
    return chances


@pytest.mark.parametrize("placement", ["binomial", "geometric"])
def test_the_laws_of_moves(placement):
    """First events of many rows that start at one spread, against scipy's laws."""
    arguments = {**UNEQUAL, "initial_spread": 12, "largest_spread": 30, "placement": placement}
    envs = HawkesPowerVectorEnv(60_000, info="full", **arguments, horizon=10.0, num_steps=1)
    _, before = envs.reset(seed=21)
    *_, info = envs.step(np.zeros((60_000, 2), np.float32))
    processes, moved = fired(before, info, envs.params), np.abs(info["spread"] - 12)
    geometric = {k: stats.geom(1.0 / mean) for k, mean in enumerate(UNEQUAL["mean_move"])}
    for k, name in enumerate(PROCESSES):
        narrows = "improvement" in name
        law = cut(geometric[k], 11 if narrows else 18)
        if narrows and placement == "binomial":
            law = stats.binom(11, 0.3 if k == 0 else 0.6).pmf(np.arange(12))
        if k >= 4:
            share = 0.5 if k == 4 else 0.3
            law = (1.0 - share) * law + share * (np.arange(len(law)) == 0)
        sample = np.bincount(moved[processes == k], minlength=len(law))
        assert len(sample) == len(law)
        expected = law * sample.sum()
        common = expected >= 5
        counts = np.append(sample[common], sample[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        counts, wanted = counts[wanted > 0], wanted[wanted > 0]
        assert stats.chisquare(counts, wanted).pvalue > FALSE_ALARMS / 12, name


def test_a_spread_of_one_tick_stays_open():
    """With no room to widen or to narrow, events still excite their processes, and nothing moves."""
    envs = HawkesPowerVectorEnv(500, info="full", largest_spread=1, initial_spread=1, horizon=3.0, num_steps=5)
    _, sums, last = episodes(envs, 2, np.zeros((500, 2), np.float32))
    assert (last["spread"] == 1).all()
    assert (last["mid"] == 0.0).all()
    assert sums["book_events"].mean() > 20


# --- Fills -----------------------------------------------------------------------------------------------------------


def test_fills_are_by_reach_beyond_the_best_quote():
    """One event a step: an order fills with the probability of the offset, whatever the spread."""
    offsets = [(0.0, 0.05), (0.15, 0.25), (0.5, 0.7)]
    for seed, (bid, ask) in enumerate(offsets):
        envs = HawkesPowerVectorEnv(60_000, info="full", horizon=10.0, num_steps=5, fill_decay=[3.0, 5.0])
        envs.reset(seed=seed)
        *_, info = envs.step(actions_for(envs, bid, ask))
        for side, order, offset, decay in (("bid", "sell", bid, 5.0), ("ask", "buy", ask, 3.0)):
            orders, fills = int(info[f"{order}_orders"].sum()), int(info[f"{side}_fills"].sum())
            assert info[f"{side}_offset"][0] == pytest.approx(offset, abs=1e-6)
            np.testing.assert_allclose(info[f"{side}_depth"], info[f"{side}_offset"] + 0.3, rtol=1e-14)
            chance = math.exp(-decay * info[f"{side}_offset"][0])
            assert stats.binomtest(fills, orders, chance).pvalue > FALSE_ALARMS / (2 * len(offsets))


def test_a_frozen_quote_inside_the_spread_is_filled_for_sure():
    """The market only widens: quotes that joined the best stay where they were and fill at every order."""
    arguments = {
        "placement": "geometric",
        "mean_move": [1, 30, 30, 1, 30, 30],
        "initial_spread": 2,
        "decision": "clock",
    }
    arguments |= {"base_rate": [1e-9, 3, 3, 1e-9, 2, 2], "excitation": 0.0, "first_level_share": 0.0, "horizon": 1.0}
    envs = HawkesPowerVectorEnv(4_000, info="full", num_steps=1, inventory_limit=100, **arguments)
    envs.reset(seed=4)
    *_, info = envs.step(actions_for(envs, 0.0, 0.0))
    np.testing.assert_array_equal(info["ask_fills"], info["buy_orders"])
    np.testing.assert_array_equal(info["bid_fills"], info["sell_orders"])
    paid = info["gain"] - info["price_gain"]
    np.testing.assert_allclose(paid, 0.01 * (info["ask_fills"] + info["bid_fills"]), atol=1e-12)
    assert info["spread"].mean() > 50


def test_a_side_at_its_limit_is_closed():
    for limit, side in ((1, "bid"), (-1, "ask")):
        arguments = {"inventory_limit": 1, "initial_inventory": limit, "horizon": 5.0, "decision": "order"}
        envs = HawkesPowerVectorEnv(3_000, info="full", **arguments)
        envs.reset(seed=9)
        *_, info = envs.step(actions_for(envs, 0.0, 0.0))
        assert info[f"{side}_fills"].sum() == 0
        other, orders = ("ask", "buy_orders") if side == "bid" else ("bid", "sell_orders")
        assert (info[f"{other}_fills"] <= info[orders]).all()
        assert info[f"{other}_fills"].sum() > 20


# --- Bookkeeping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["event", "order", "clock"])
def test_rewards_add_up_to_the_criterion(decision):
    envs = HawkesPowerVectorEnv(300, info="full", **UNEQUAL, horizon=4.0, num_steps=9, decision=decision)
    total, _, last = episodes(envs, 3, actions_for(envs, 0.05, 0.02))
    q = last["inventory"].astype(float)
    liquidation = np.abs(q) * 0.5 * (last["best_ask"] - last["best_bid"])
    criterion = last["gain"] - 0.02 * last["inventory_square"] - liquidation - 0.07 * q**2
    np.testing.assert_allclose(total, criterion, atol=1e-12)
    np.testing.assert_allclose(last["cash"] + q * last["mid"], last["gain"], atol=1e-12)
    assert np.abs(q).max() == 2.0
    assert (last["time_left"] == 0.0).all()


def test_a_step_is_an_event():
    """Every entry of the info follows from the one event of a step."""
    env = HawkesPowerEnv(**UNEQUAL, horizon=40.0, num_steps=80, info="full")
    _, info = env.reset(seed=8)
    terminated, seen = False, set()
    while not terminated:
        before = info
        _, reward, terminated, _, info = env.step(env.from_quotes([0.02, 0.05]))
        q, after, u = before["inventory"], info["inventory"], info["elapsed"]
        events = info["book_events"] + info["buy_orders"] + info["sell_orders"]
        seen.add((info["book_events"], info["buy_orders"], after - q))
        assert events <= 1
        assert after - q in {0, -info["buy_orders"], info["sell_orders"]}
        earned = info["ask_fills"] * info["ask_depth"] + info["bid_fills"] * info["bid_depth"]
        expected = earned + after * (info["mid"] - before["mid"]) - 0.02 * q**2 * u
        if terminated:
            expected -= abs(after) * 0.5 * (info["best_ask"] - info["best_bid"]) + 0.07 * after**2
        assert reward == pytest.approx(expected, abs=1e-12)
        assert 0.0 < u <= 0.5 * (1 + 1e-9)
        assert info["time_left"] == pytest.approx(before["time_left"] - u, abs=1e-12)
        if events == 0 and not terminated:
            assert u == 0.5
    assert {(1, 0, 0), (0, 1, 0), (0, 1, -1), (0, 0, 1), (0, 0, 0)} <= seen


def test_orders_alone_end_a_step_of_decision_order():
    envs = HawkesPowerVectorEnv(500, info="full", decision="order", horizon=30.0, num_steps=15)
    envs.reset(seed=1)
    book = 0
    for _ in range(40):
        *_, info = envs.step(np.zeros((500, 2), np.float32))
        orders = info["buy_orders"] + info["sell_orders"]
        assert orders.max() == 1
        waited = (orders == 0) & (info["elapsed"] > 0) & (info["time_left"] > 0)
        np.testing.assert_allclose(info["elapsed"][waited], 2.0, rtol=1e-9)
        book += info["book_events"].max()
    assert book > 100


# --- Spaces and maps -------------------------------------------------------------------------------------------------


def test_observations_are_the_state():
    env = HawkesPowerEnv(**{**UNEQUAL, "inventory_limit": 7}, horizon=6.0, num_steps=30)
    observation, info = env.reset(seed=2)
    assert observation[7] == np.float32(2.5 / (2.5 + 0.8 / (1 - 0.5)))
    terminated = False
    while not terminated:
        left, inventory, spread, *rates = env.to_state(observation)
        assert left == pytest.approx(info["time_left"], abs=1e-6)
        assert (inventory, spread) == (info["inventory"], info["spread"])
        assert rates == pytest.approx([info[f"{name}_rate"] for name in PROCESSES], rel=1e-5)
        assert env.observation_space.contains(observation)
        observation, _, terminated, _, info = env.step(env.from_quotes([0.0, 0.0]))


def test_intensities_are_never_clipped():
    envs = HawkesPowerVectorEnv(4)
    envs.reset(seed=0)
    excess = np.array([0.0, 10.0, 1e3, 1e6])
    for k, name in enumerate(PROCESSES):
        seen = envs.set_state({**envs.get_state(), f"excess_{name}": excess})
        rates = envs.params.base_rate[k] + excess
        np.testing.assert_allclose(envs.to_state(seen)[3 + k], rates, rtol=0.1)
        assert (np.diff(seen[:, 3 + k]) > 0).all()
        assert (seen[:, 3 + k] < 1.0).all()


def test_actions_are_offsets_from_the_best_quotes():
    env = HawkesPowerEnv(fill_decay=[3.0, 5.0])
    quotes = env.to_quotes(np.array([[-1, -1], [0, 0], [1, 1]], dtype=np.float32))
    np.testing.assert_allclose(quotes, [[0.0, 0.0], [2 / 5, 2 / 3], [4 / 5, 4 / 3]], rtol=1e-15)
    assert env.from_quotes([-0.1, 99.0]).tolist() == [-1.0, 1.0]


def test_defaults_are_those_of_the_notes():
    p = Params.create()
    assert p.base_rate == (1.5, 1.35, 1.35, 1.5, 0.6, 0.6)
    assert p.excitation == (1.2, 1.2, 1.2, 1.2, 1.5, 1.5)
    assert p.mean_move == (36.0, 20.0, 20.0, 36.0, 40.0, 40.0)
    assert p.initial_rates == pytest.approx((2.5, 2.25, 2.25, 2.5, 1.2, 1.2))
    assert (p.horizon, p.tick, p.largest_spread, p.initial_spread, p.inventory_limit) == (60.0, 0.01, 300, 60, 10)
    assert (p.running_penalty, p.terminal_penalty, p.fill_decay_buy, p.improvement_bid) == (0.001, 0.05, 4.0, 0.36)


def test_arguments_make_the_same_parameters():
    explosive = {"excitation": 3.5, "allow_explosive": True, "initial_rates": [2.0] * 6, "horizon": 5.0}
    for arguments in ({}, UNEQUAL, explosive):
        params = Params.create(**arguments)
        assert Params.create(**params.arguments()) == params


def test_rendering_follows_the_elapsed_time():
    env = HawkesPowerEnv(render_mode="ansi", horizon=2.0, num_steps=4)
    env.reset(seed=4)
    elapsed, terminated = 0.0, False
    while not terminated:
        *_, terminated, _, info = env.step(np.zeros(2, np.float32))
        elapsed += info["elapsed"]
        assert env.render().startswith(f"t {elapsed:g}/2 ")


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_rate": 0.0}, "base_rate = 0.0 is not allowed: it must be a finite number >= 1e-12"),
        ({"base_rate": [1.0, 2.0]}, r"base_rate = \[1.0, 2.0\] is not allowed: it must be a number, or six numbers"),
        ({"excitation": [1, 1, -1.0, 1, 1, 1]}, r"excitation\[2\] \(ask_cancellation\) = -1.0"),
        ({"decay": float("nan")}, "decay = nan"),
        ({"placement": "uniform"}, "placement = 'uniform' is not allowed: it must be one of 'binomial', 'geometric'"),
        ({"improvement": 1.2}, "improvement = 1.2"),
        ({"improvement": [0.1, 0.2, 0.3]}, r"it must be a number, or a pair \[bid, ask\] of numbers"),
        ({"mean_move": 0.5}, "mean_move = 0.5 is not allowed: it must be a finite number >= 1"),
        ({"first_level_share": [0.5, -0.1]}, r"first_level_share\[1\] \(sell\) = -0.1"),
        ({"tick": 0.0}, "tick = 0.0"),
        ({"largest_spread": 0}, "largest_spread = 0 is not allowed: it must be a whole number from 1 to 1000"),
        ({"initial_spread": 301}, "initial_spread = 301 and largest_spread = 300 are not allowed together"),
        ({"fill_decay": 0.0}, "fill_decay = 0.0"),
        ({"inventory_limit": 2.5}, "inventory_limit = 2.5 is not allowed: it must be a whole number"),
        ({"initial_inventory": 11}, "initial_inventory = 11 and inventory_limit = 10 are not allowed together"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"decision": "both"}, "decision = 'both' is not allowed: it must be one of 'event', 'order', 'clock'"),
        ({"initial_rates": "typical"}, "initial_rates = 'typical'"),
        ({"initial_rates": [2, 2, 2, 2, 0.5, 2]}, "the rate of buy must be at least its base_rate 0.6"),
        ({"horizon": 1e9}, "events would be expected in an episode"),
        ({"excitation": 3.0}, "no stationary rate.*allow_explosive=True"),
        ({"excitation": [1, 1, 1, 1, 1, 4.0]}, "branching ratio"),
        (
            {"excitation": 3.0, "allow_explosive": True},
            "initial_rates = 'stationary' is not allowed with excitation >=",
        ),
    ],
    ids=str,
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HawkesPowerEnv(**arguments)
