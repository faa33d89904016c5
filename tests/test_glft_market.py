"""The GLFT market's step law, rewards and bookkeeping.

Expected values come from an event simulation of another construction (two Poisson processes, thinned at the bounds,
with Brownian increments between the events), from closed forms, or from the reference values of the project's
mathematical notes: continuous-time values of constant quotes, which no number of steps changes.

False alarms: seeds are fixed, so a check either always passes or never does. Were the seeds redrawn, each test function
below (over all its parameter sets) would fail with probability at most 1e-3: it divides that rate evenly over its
p-values. Property tests have no false alarms.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmgym.envs.glft import GLFTEnv, GLFTVectorEnv

FALSE_ALARMS = 1e-3

SMALL = {"volatility": 1.0, "fill_rate": 10.0, "fill_decay": 1.5, "horizon": 1.0, "inventory_limit": 3.0}
AVELLANEDA_STOIKOV = {"volatility": 2.0, "fill_rate": 140.0, "fill_decay": 1.5, "horizon": 1.0, "inventory_limit": 10.0}


def same_actions(count, action):
    return np.tile(np.asarray(action, dtype=np.float32), (count, 1))


def total_returns(envs, seed, actions=None):
    """Sum of rewards of one episode of every row, and the last info."""
    envs.reset(seed=seed)
    actions = np.zeros((envs.num_envs, 2), dtype=np.float32) if actions is None else actions
    total, terminated = np.zeros(envs.num_envs), np.zeros(1, dtype=bool)
    while not terminated.any():
        _, rewards, terminated, _, info = envs.step(actions)
        total += rewards
    return total, info


# --- A second simulation of the step ---------------------------------------------------------------------------------


def simulate_step(random, count, *, depths, rates, decays, size, limit, start, drift, volatility, length):
    """One step of ``count`` paths: fills, inventory, gains and mid changes, in model units."""
    intensities = [rate * math.exp(-decay * depth) for rate, decay, depth in zip(rates, decays, depths, strict=True)]
    arrivals = [random.poisson(intensity * length, count) for intensity in intensities]
    sample = {
        name: np.zeros(count) for name in ("bid_fills", "ask_fills", "inventory", "square", "gain", "price_gain", "mid")
    }
    for path in range(count):
        events = [(time, 1) for time in random.uniform(0.0, length, arrivals[0][path])]
        events += [(time, -1) for time in random.uniform(0.0, length, arrivals[1][path])]
        events.sort()
        events.append((length, 0))
        normals = random.standard_normal(len(events))
        q, time, mid, earned, price_gain, square = start, 0.0, 0.0, 0.0, 0.0, 0.0
        fills = [0, 0]
        for (event, side), normal in zip(events, normals.tolist(), strict=True):
            elapsed = event - time
            change = drift * elapsed + volatility * math.sqrt(elapsed) * normal
            mid += change
            price_gain += size * q * (change - drift * elapsed)
            earned += size * q * drift * elapsed
            square += (size * q) ** 2 * elapsed
            time = event
            if side != 0 and abs(q + side) <= limit:  # thinned: an order at the bound is not there
                q += side
                fills[side < 0] += 1
                earned += size * depths[side < 0]
        sample["bid_fills"][path], sample["ask_fills"][path] = fills
        sample["inventory"][path] = size * q
        sample["square"][path] = square
        sample["gain"][path] = earned + price_gain
        sample["price_gain"][path] = price_gain
        sample["mid"][path] = mid
    return sample


def environment_step(count, seed, action, arguments):
    """The same of the environment."""
    envs = GLFTVectorEnv(count, info="full", **arguments)
    _, before = envs.reset(seed=seed)
    _, _, _, _, info = envs.step(same_actions(count, action))
    return {
        "bid_fills": info["bid_fills"].astype(float),
        "ask_fills": info["ask_fills"].astype(float),
        "inventory": info["inventory"],
        "square": info["inventory_square"],
        "gain": info["gain"],
        "price_gain": info["price_gain"],
        "mid": info["mid"] - before["mid"],
    }


def two_sample_p_values(first, second):
    """Discrete laws by chi-square, continuous ones by Kolmogorov-Smirnov, moments and products by their z-scores."""
    p_values = {}
    codes = {
        "fills": lambda s: s["bid_fills"] * 1000 + s["ask_fills"],
        "inventory": lambda s: s["inventory"],
    }
    for name, code in codes.items():
        p_values[name] = contingency_p_value(code(first), code(second))
    for name in ("gain", "price_gain", "mid", "square"):
        samples = first[name].round(9), second[name].round(9)  # atoms (of paths without a fill) must be ties
        if len(np.unique(np.concatenate(samples))) > 100:
            p_values[f"law of {name}"] = stats.ks_2samp(*samples, method="asymp").pvalue
    center = {name: 0.5 * (first[name].mean() + second[name].mean()) for name in first}
    names = list(first)
    for i, one in enumerate(names):
        p_values[f"mean of {one}"] = mean_p_value(first[one], second[one])
        for other in names[i:]:
            products = [(s[one] - center[one]) * (s[other] - center[other]) for s in (first, second)]
            p_values[f"covariance of {one} and {other}"] = mean_p_value(*products)
    # Given the inventory's path, the price gain and the mid are Gaussian: their joint fourth moment sees that too.
    products = [(s["price_gain"] * (s["mid"] - center["mid"])) ** 2 for s in (first, second)]
    p_values["fourth moment of price gain and mid"] = mean_p_value(*products)
    return p_values


def mean_p_value(first, second):
    variance = first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)
    difference = abs(first.mean() - second.mean())
    if difference <= 1e-12 * (abs(first).max() + abs(second).max()):
        return 1.0
    return 2.0 * stats.norm.sf(difference / math.sqrt(variance)) if variance > 0 else 0.0


def contingency_p_value(first, second):
    values, codes = np.unique(np.concatenate([first, second]).round(9), return_inverse=True)
    table = np.stack([np.bincount(c, minlength=len(values)) for c in np.split(codes, [len(first)])])
    rare = table.sum(axis=0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)]) if rare.any() else table
    table = table[:, table.sum(axis=0) > 0]
    return stats.chi2_contingency(table).pvalue if table.shape[1] > 1 else 1.0


STEPS = {
    "few fills": ({"num_steps": 600, "initial_inventory": 3.0}, (0.2, -0.3)),
    "drift, sides that differ": (
        {
            **SMALL,
            "num_steps": 4,
            "drift": 0.7,
            "fill_rate": [12.0, 8.0],
            "fill_decay": [1.5, 2.0],
            "initial_inventory": 2.0,
        },
        (-0.4, 0.1),
    ),
    "bounds hit often": ({**SMALL, "num_steps": 1, "inventory_limit": 1.0, "drift": -1.0}, (-0.5, -0.2)),
    "many fills": (
        {**AVELLANEDA_STOIKOV, "num_steps": 4, "inventory_limit": 5.0, "initial_inventory": -2.0},
        (-0.3, 0.0),
    ),
    "large orders": (
        {**SMALL, "num_steps": 2, "order_size": 2.5, "inventory_limit": 7.5, "initial_inventory": -2.5, "drift": 0.4},
        (0.0, -0.6),
    ),
    "from a bound": ({**SMALL, "num_steps": 3, "initial_inventory": 3.0}, (-1.0, 0.5)),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "count", [pytest.param(20_000, id="reduced"), pytest.param(400_000, id="full", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", list(STEPS))
def test_law_of_a_step(name, count):
    arguments, action = STEPS[name]
    env = GLFTEnv(**arguments)
    p = env.params
    expected = simulate_step(
        np.random.default_rng(list(STEPS).index(name)),
        count,
        depths=env.to_quotes(np.array(action, dtype=np.float32)).tolist(),
        rates=(p.fill_rate_bid, p.fill_rate_ask),
        decays=(p.fill_decay_bid, p.fill_decay_ask),
        size=p.order_size,
        limit=round(p.inventory_limit / p.order_size),
        start=round(p.initial_inventory / p.order_size),
        drift=p.drift,
        volatility=p.volatility,
        length=p.horizon / p.num_steps,
    )
    p_values = two_sample_p_values(environment_step(count, 1000, action, arguments), expected)
    for statistic, p_value in p_values.items():
        assert p_value > FALSE_ALARMS / (len(p_values) * len(STEPS)), f"{statistic}: p = {p_value:.2g}"


def test_the_comparison_sees_a_small_difference():
    """The second simulation with 10 % more fills, or with the price gain's Brownian motion independent of the mid's."""
    arguments, action = STEPS["drift, sides that differ"]
    sample = environment_step(20_000, 1000, action, arguments)
    more = environment_step(20_000, 1000, action, {**arguments, "fill_rate": [13.2, 8.0]})
    assert min(two_sample_p_values(sample, more).values()) < 1e-6
    other = environment_step(20_000, 99, action, arguments)
    unrelated = {**sample, "mid": other["mid"]}
    assert two_sample_p_values(sample, unrelated)["covariance of price_gain and mid"] < 1e-6


@pytest.mark.parametrize("action", [-0.8, 0.0, 0.7])
def test_fills_far_from_the_bounds_are_poisson(action):
    """Two independent Poisson numbers of mean fill_rate * exp(-fill_decay * depth) * step."""
    arguments = {**SMALL, "inventory_limit": 1000.0, "num_steps": 2}
    sample = environment_step(50_000, 5, (action, 0.3), arguments)
    p_values = []
    for name, a in (("bid_fills", action), ("ask_fills", 0.3)):
        law = stats.poisson(10.0 * math.exp(-1.5 * (1.0 + 2.0 * np.float32(a)) / 1.5) * 0.5)
        top = int(law.isf(1e-3))
        counts = np.bincount(np.minimum(sample[name], top).astype(int), minlength=top + 1)
        expected = np.append(law.pmf(np.arange(top)), law.sf(top - 1)) * len(sample[name])
        p_values.append(stats.chisquare(counts, expected).pvalue)
    z = np.corrcoef(sample["bid_fills"], sample["ask_fills"])[0, 1] * math.sqrt(50_000)
    p_values.append(2.0 * stats.norm.sf(abs(z)))
    assert min(p_values) > FALSE_ALARMS / (3 * len(p_values))


def test_deeper_quotes_fill_less():
    """The same seeds: fewer bid fills and a lower inventory, in the mean, at every deeper bid."""
    actions = np.linspace(-1.0, 1.0, 9)
    samples = [environment_step(4_000, 6, (a, 0.0), {**SMALL, "num_steps": 2}) for a in actions]
    for name in ("bid_fills", "inventory"):
        means = [sample[name].mean() for sample in samples]
        assert all(np.diff(means) < 0.0)


# --- Reference values of constant quotes -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_a_constant_quote_is_worth_the_same_for_every_number_of_steps(num_steps):
    """Mean criterion, P&L and fills of the depths 1/k, from the continuous-time equations."""
    count = 40_000
    envs = GLFTVectorEnv(count, num_steps=num_steps, running_penalty=0.2, info="full", **AVELLANEDA_STOIKOV)
    fills = np.zeros(count)
    envs.reset(seed=num_steps)
    returns = np.zeros(count)
    for _ in range(num_steps):
        _, rewards, _, _, info = envs.step(np.zeros((count, 2), dtype=np.float32))
        returns += rewards
        fills += info["bid_fills"] + info["ask_fills"]
    pnl = info["gain"]
    spread = np.mean((pnl - pnl.mean()) ** 4) - pnl.var() ** 2
    z = [
        (returns.mean() - 61.038434766) / (returns.std() / math.sqrt(count)),
        (fills.mean() - 99.8254) / (fills.std() / math.sqrt(count)),
        (pnl.var() - 12.657354**2) / math.sqrt(spread / count),
    ]
    assert np.abs(z).max() < stats.norm.isf(0.5 * FALSE_ALARMS / 9)


def test_a_constant_quote_with_a_terminal_penalty(check_mean):
    count = 100_000
    envs = GLFTVectorEnv(count, num_steps=3, running_penalty=0.2, terminal_penalty=0.1, reward="expected", **SMALL)
    returns, _ = total_returns(envs, seed=11)
    check_mean(returns, 3.69126578156, alarms=FALSE_ALARMS)


@pytest.mark.parametrize("reward", ["pnl", "expected"])
def test_certainty_equivalent_of_a_constant_quote(reward, check_mean):
    """CARA, no penalties: 57.1897 at risk aversion 0.1, from the continuous-time equations."""
    count = 200_000
    arguments = {"num_steps": 2, "utility": "cara", "risk_aversion": 0.1, "reward": reward}
    returns, _ = total_returns(GLFTVectorEnv(count, **arguments, **AVELLANEDA_STOIKOV), seed=12)
    check_mean(returns, -math.exp(-0.1 * 57.1897), alarms=FALSE_ALARMS, checks=2)


# --- Rewards ---------------------------------------------------------------------------------------------------------


def play(arguments, seed=3, count=500):
    """Rewards (N, rows) and full infos (N) of one episode with random actions."""
    envs = GLFTVectorEnv(count, info="full", **arguments)
    envs.reset(seed=seed)
    random = np.random.default_rng(0)
    rewards, infos = [], []
    for _ in range(arguments["num_steps"]):
        _, reward, _, _, info = envs.step(random.uniform(-1, 1, (count, 2)).astype(np.float32))
        rewards.append(reward)
        infos.append(info)
    return np.array(rewards), infos


PENALTIES = {
    **SMALL,
    "num_steps": 6,
    "running_penalty": 0.3,
    "terminal_penalty": 0.2,
    "initial_inventory": 1.0,
    "drift": 0.5,
}


def test_expected_rewards_differ_by_the_price_gain_alone():
    pnl, infos = play({**PENALTIES, "reward": "pnl"})
    expected, others = play({**PENALTIES, "reward": "expected"})
    for name in infos[0]:
        assert all(np.array_equal(info[name], other[name]) for info, other in zip(infos, others, strict=True)), name
    price_gain = np.array([info["price_gain"] for info in infos])
    assert np.abs(pnl - expected - np.diff(price_gain, axis=0, prepend=0.0)).max() < 1e-12
    assert expected.sum(axis=0).std() < pnl.sum(axis=0).std()


def test_rewards_of_both_kinds_have_the_same_mean(check_mean):
    count = 100_000
    envs = [GLFTVectorEnv(count, **{**PENALTIES, "reward": reward}) for reward in ("pnl", "expected")]
    noise = total_returns(envs[0], 1)[0] - total_returns(envs[1], 1)[0]
    check_mean(noise, alarms=FALSE_ALARMS)


@pytest.mark.parametrize("reward", ["pnl", "expected"])
def test_cara_rewards(reward):
    """0 until the last, which is the documented utility."""
    gamma, penalty, volatility = 0.4, 0.2, 1.0
    arguments = {**SMALL, "num_steps": 6, "terminal_penalty": penalty, "utility": "cara", "risk_aversion": gamma}
    rewards, infos = play({**arguments, "reward": reward, "drift": 0.5})
    last = infos[-1]
    wealth = last["gain"] - penalty * last["inventory"] ** 2
    if reward == "pnl":
        expected = -np.exp(-gamma * wealth)
    else:
        variance = volatility**2 * last["inventory_square"]
        expected = -np.exp(-gamma * (wealth - last["price_gain"]) + 0.5 * gamma**2 * variance)
    assert (rewards[:-1] == 0.0).all()
    assert np.abs(rewards[-1] / expected - 1.0).max() < 1e-12
    assert (rewards[-1] < 0.0).all()


def test_the_exponent_of_cara_is_cut():
    arguments = {**SMALL, "num_steps": 1, "utility": "cara", "risk_aversion": 1e6, "terminal_penalty": 10.0}
    env = GLFTEnv(initial_inventory=3.0, **arguments)
    env.reset(seed=0)
    _, reward, terminated, _, _ = env.step(np.ones(2, dtype=np.float32))
    assert terminated
    assert reward == -math.exp(700.0)


def test_the_default_running_penalty():
    assert GLFTEnv(volatility=2.0, risk_aversion=0.1).params.running_penalty == pytest.approx(0.2, rel=1e-15)
    assert GLFTEnv(volatility=2.0, risk_aversion=0.1, utility="cara").params.running_penalty == 0.0
    assert GLFTEnv(running_penalty=0.0).params.running_penalty == 0.0


def test_the_terminal_penalty_falls_on_the_last_reward():
    with_penalty, infos = play(PENALTIES)
    without, _ = play({**PENALTIES, "terminal_penalty": 0.0})
    assert np.array_equal(with_penalty[:-1], without[:-1])
    assert np.abs(without[-1] - with_penalty[-1] - 0.2 * infos[-1]["inventory"] ** 2).max() < 1e-12


# --- Properties ------------------------------------------------------------------------------------------------------


def moderate(low, high):
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


@st.composite
def markets(draw):
    """Arguments over many orders of magnitude, with at most about 300 expected fills a step."""
    size = draw(st.sampled_from([1.0, 2.5, 0.01, 1000.0]))
    limit = draw(st.integers(1, 40))
    horizon, num_steps = draw(moderate(1e-3, 1e3)), draw(st.integers(1, 8))
    decays = [draw(moderate(1e-3, 1e3)) for _ in range(2)]
    events = [draw(moderate(1e-6, 300.0)) for _ in range(2)]
    utility = draw(st.sampled_from(["mean", "cara"]))
    return {
        "order_size": size,
        "inventory_limit": size * limit,
        "initial_inventory": size * draw(st.integers(-limit, limit)),
        "horizon": horizon,
        "num_steps": num_steps,
        "fill_decay": decays,
        "fill_rate": [number * num_steps / horizon / math.e for number in events],  # at the depth -1/k
        "volatility": draw(st.sampled_from([0.0, 1e-6, 0.3, 100.0])),
        "drift": draw(moderate(-10.0, 10.0)),
        "initial_price": draw(moderate(-1e4, 1e4)),
        "running_penalty": draw(moderate(0.0, 10.0)) if utility == "mean" else None,
        "terminal_penalty": draw(moderate(0.0, 10.0)),
        "utility": utility,
        "risk_aversion": draw(moderate(1e-6, 10.0)),
        "reward": draw(st.sampled_from(["pnl", "expected"])),
    }


PROPERTIES = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@PROPERTIES
@given(markets(), st.integers(0, 2**64 - 1), st.data())
def test_bookkeeping(arguments, seed, data):
    """Bounds, finiteness and accounting identities of every step of an episode, for any action."""
    envs = GLFTVectorEnv(3, info="full", autoreset_mode="Disabled", **arguments)
    p = envs.params
    limit, size, length = p.inventory_limit, p.order_size, p.horizon / p.num_steps
    observations, before = envs.reset(seed=seed)
    assert (before["inventory"] == p.initial_inventory).all()
    assert (before["cash"] == 0.0).all()
    assert (before["mid"] == p.initial_price).all()
    total = np.zeros(3)
    for step in range(p.num_steps):
        scale = st.floats(-1.5, 1.5, width=32)
        actions = np.array(data.draw(st.lists(scale, min_size=6, max_size=6)), dtype=np.float32).reshape(3, 2)
        observations, rewards, terminated, truncated, info = envs.step(actions)
        total += rewards
        assert observations in envs.observation_space
        assert all(np.isfinite(values).all() for values in (rewards, *info.values()))
        assert (terminated == (step == p.num_steps - 1)).all()
        assert not truncated.any()
        depths = envs.to_quotes(actions)
        assert np.array_equal(np.stack([info["bid_depth"], info["ask_depth"]], axis=1), depths)

        fills = np.stack([info["bid_fills"], info["ask_fills"]], axis=1).astype(float)
        inventory = info["inventory"]
        assert (np.abs(inventory) <= limit).all()
        moved = size * (fills[:, 0] - fills[:, 1])
        assert np.allclose(inventory - before["inventory"], moved, rtol=0.0, atol=1e-9 * limit)
        steps, orders = envs.to_state(observations)
        assert (steps == step + 1).all()
        assert np.allclose(orders * size, inventory, rtol=1e-12, atol=0.0)

        square = info["inventory_square"] - before["inventory_square"]
        slack = 1e-9 * limit**2 * p.horizon
        assert (square >= -slack).all()
        assert (square <= limit**2 * length + slack).all()

        gain, price_gain = (info[name] - before[name] for name in ("gain", "price_gain"))
        money = 1e-9 * (1.0 + limit * np.abs(info["mid"]) + np.abs(info["cash"]) + np.abs(before["cash"]))
        money += 1e-9 * (
            size * (fills * np.abs(depths)).sum(axis=1) + np.abs(info["gain"]) + np.abs(info["price_gain"])
        )
        earned = gain - price_gain - size * (fills * depths).sum(axis=1)
        assert (np.abs(earned) <= abs(p.drift) * limit * length + money).all()  # drift times the integral of inventory
        quiet = fills.sum(axis=1) == 0
        change = info["mid"] - before["mid"]
        assert np.allclose(square[quiet], (before["inventory"] ** 2 * length)[quiet], rtol=1e-9, atol=slack)
        assert (np.abs(gain - inventory * change)[quiet] <= money[quiet]).all()
        assert (np.abs(info["cash"] - before["cash"])[quiet] <= money[quiet]).all()
        wealth = info["cash"] + inventory * info["mid"] - p.initial_inventory * p.initial_price
        assert (np.abs(wealth - info["gain"]) <= money).all()
        before = info
    if p.utility == "mean":
        penalties = p.running_penalty * info["inventory_square"] + p.terminal_penalty * inventory**2
        noise = info["price_gain"] if p.reward == "expected" else 0.0
        assert (np.abs(wealth - noise - total - penalties) <= money * p.num_steps + 1e-9 * penalties).all()


@PROPERTIES
@given(
    moderate(-10.0, 10.0),
    moderate(1e-3, 20.0),
    st.lists(st.floats(-1.0, 1.0, width=32).filter(lambda a: abs(a) > 1e-3), min_size=2, max_size=2),
)
def test_quotes_and_actions(low, width, action):
    """Depths span the box, and actions survive the way there and back."""
    env = GLFTEnv(min_depth=low, max_depth=low + width, fill_rate=1e-3)
    bid, ask = env.to_quotes(np.array(action, dtype=np.float32))
    for depth, a in ((bid, action[0]), (ask, action[1])):
        assert depth == pytest.approx(low + width * (a + 1.0) / 2.0, abs=1e-12 * (abs(low) + width))
    assert env.from_quotes([bid, ask]).tolist() == action
    assert env.from_quotes([low - 1.0, low + width + 1.0]).tolist() == [-1.0, 1.0]


def test_action_zero_is_the_depth_of_risk_neutral_quotes():
    for decays in ([0.3, 0.3], [1.5, 2.0]):
        quotes = GLFTEnv(fill_decay=decays).to_quotes(np.zeros(2, dtype=np.float32))
        assert quotes == pytest.approx([1.0 / decay for decay in decays], rel=1e-15)
        extremes = GLFTEnv(fill_decay=decays).to_quotes(np.array([[-1, -1], [1, 1]], dtype=np.float32))
        assert extremes == pytest.approx(np.array([[-1.0 / d for d in decays], [3.0 / d for d in decays]]), rel=1e-15)


# --- Extremes --------------------------------------------------------------------------------------------------------


def test_without_volatility_the_mid_is_a_line():
    arguments = {**SMALL, "volatility": 0.0, "drift": 2.0, "num_steps": 5, "initial_price": 7.0}
    _, infos = play(arguments)
    for step, info in enumerate(infos):
        assert np.allclose(info["mid"], 7.0 + 2.0 * (step + 1) / 5, rtol=1e-14)
        assert (info["price_gain"] == 0.0).all()


def test_one_step():
    env = GLFTEnv(num_steps=1)
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0.0, 0.0]
    observation, _, terminated, truncated, _ = env.step(np.zeros(2, dtype=np.float32))
    assert (observation[0], terminated, truncated) == (1.0, True, False)


def test_a_limit_of_one_order():
    """Fills alternate: the numbers of bid and ask fills differ by the change of inventory, at most 2."""
    arguments = {**AVELLANEDA_STOIKOV, "inventory_limit": 1.0, "num_steps": 3}
    _, infos = play(arguments)
    inventories = np.array([info["inventory"] for info in infos])
    assert set(np.unique(inventories)) == {-1.0, 0.0, 1.0}
    for info in infos:
        assert (np.abs(info["bid_fills"].astype(int) - info["ask_fills"]) <= 2).all()
    assert max(info["bid_fills"].max() for info in infos) > 5


@pytest.mark.parametrize(("side", "start"), [("bid", 3.0), ("ask", -3.0)])
def test_a_side_at_its_bound_is_inactive(side, start):
    """From the bound the first fill is on the other side."""
    other = "ask" if side == "bid" else "bid"
    envs = GLFTVectorEnv(20_000, info="full", num_steps=20, initial_inventory=start, **SMALL)
    envs.reset(seed=4)
    _, _, _, _, info = envs.step(same_actions(20_000, (-1.0, -1.0)))
    fills, others = info[f"{side}_fills"].astype(int), info[f"{other}_fills"].astype(int)
    assert (fills <= others).all()
    assert fills.max() > 0  # it comes back inside the step
    assert (others[fills > 0] > 0).all()


def test_the_most_fills_a_step():
    """10,000 expected fills, the most that are allowed, and as many states of inventory."""
    arguments = {
        "fill_rate": 10_000.0 / math.e,
        "fill_decay": 1.0,
        "horizon": 1.0,
        "num_steps": 1,
        "inventory_limit": 1e5,
    }
    envs = GLFTVectorEnv(200, info="full", volatility=0.3, **arguments)
    envs.reset(seed=0)
    _, rewards, _, _, info = envs.step(same_actions(200, (-1.0, -1.0)))
    for side in ("bid", "ask"):
        z = (info[f"{side}_fills"].mean() - 10_000.0) / math.sqrt(10_000.0 / 200)
        assert abs(z) < stats.norm.isf(0.5 * FALSE_ALARMS / 2)
    assert np.isfinite(rewards).all()
    assert (info["inventory"] == info["bid_fills"].astype(float) - info["ask_fills"]).all()


def placed(arguments, **columns):
    """A batch whose rows are put at given columns of state, and its observations."""
    count = len(next(iter(columns.values())))
    envs = GLFTVectorEnv(count, **arguments)
    envs.reset(seed=0)
    state = envs.get_state()
    assert set(columns) <= set(state)
    return envs, envs.set_state({**state, **columns})


def test_a_million_steps_are_told_apart():
    steps = np.arange(1_000_000, dtype=np.int32)
    envs, observations = placed({"num_steps": 1_000_000}, step=steps)
    assert np.array_equal(envs.to_state(observations)[0], steps)
    assert np.array_equal(observations[:, 0], (steps / 1_000_000).astype(np.float32))
    terminated = envs.step(np.zeros((len(steps), 2), dtype=np.float32))[2]
    assert np.flatnonzero(terminated).tolist() == [999_999]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 30, 999, 1_000_000])
def test_inventories_are_told_apart(limit):
    lots = np.unique(np.linspace(-limit, limit, 20_001).astype(np.int32))
    arguments = {"inventory_limit": 2.5 * limit, "order_size": 2.5}
    envs, observations = placed(arguments, inventory=lots)
    assert np.array_equal(envs.to_state(observations)[1], lots)
    assert np.array_equal(observations[:, 1], (lots / limit).astype(np.float32))
    assert observations in envs.observation_space


def test_every_number_of_steps_is_recovered():
    for num_steps in (1, 2, 3, 7, 10, 49, 600, 4097):
        steps = np.arange(num_steps, dtype=np.int32)
        envs, observations = placed({"num_steps": num_steps, "horizon": 1.0}, step=steps)
        assert np.array_equal(envs.to_state(observations)[0], steps)
