"""Base rates of the Hawkes flow market that vary in pieces of the horizon: simulation, optimum, filters, formulas.

Second methods: differential equations of the mean intensity solved by SciPy, the random time change of the orders that
are observed, the exponential of the inventory's chain where nothing excites, and the constant profile. Statistical
checks are at a false-alarm rate of 1e-3 a test function, with fixed seeds.
"""

import json
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm
from scipy.optimize import minimize

from mmgym import baselines
from mmgym.baselines.baseline import baseline_for
from mmgym.baselines.hawkes_flow import FilteredPolicy, ParticlePolicy, PoissonValues, clock_march, march
from mmgym.baselines.hawkes_flow.closed_forms import corollary_3, join_best, price_drift
from mmgym.baselines.hawkes_flow.expansion import FlowExpansions
from mmgym.baselines.hawkes_flow.replay import rules
from mmgym.baselines.hawkes_flow.solver import COARSE, Resolution
from mmgym.models import hawkes_flow
from mmgym.models.hawkes_flow import Params

pytestmark = pytest.mark.usefixtures("solutions_of_its_own")
ID = "mmgym/HawkesFlow-v0"
FALSE_ALARMS = 1e-3
PROFILE = {
    "base_rate": [0.9, 0.6],
    "base_rate_profile": [[0.2, 3.0, 1.0], [2.0, 0.5, 1.5]],
    "excitation": [1.0, 2.0],
    "decay": [2.0, 4.0],
    "impact": [0.05, 0.15],
    "horizon": 3.0,
    "num_steps": 12,
    "inventory_limit": 2,
    "running_penalty": 0.02,
}


def base_rate(p, side, time):
    """mu of a side (0: buy) at a time since the start."""
    factor = (p.base_rate_profile_buy, p.base_rate_profile_sell)[side]
    rate = (p.base_rate_buy, p.base_rate_sell)[side]
    return rate * factor[min(int(time / p.horizon * len(factor)), len(factor) - 1)]


def process(p, side):
    """Excitation, decay and initial rate of a side."""
    return (
        (p.excitation_buy, p.decay_buy, p.initial_rate_buy),
        (p.excitation_sell, p.decay_sell, p.initial_rate_sell),
    )[side]


def mean_path(p, side, time, rate):
    """Times and ``(E x, E N, int (T - t) E y dt)`` of each piece from a time and an intensity on, by SciPy."""
    zeta, rho, _ = process(p, side)
    edges = [
        time,
        *(k * p.horizon / p.pieces for k in range(1, p.pieces) if k * p.horizon / p.pieces > time),
        p.horizon,
    ]
    state, states = [rate - base_rate(p, side, time), 0.0, 0.0], []
    for low, high in pairwise(edges):
        mu = base_rate(p, side, 0.5 * (low + high))

        def slope(t, y, mu=mu):
            return [zeta * mu - (rho - zeta) * y[0], mu + y[0], (p.horizon - t) * (mu + y[0])]

        state = solve_ivp(slope, (low, high), state, rtol=1e-11, atol=1e-12).y[:, -1]
        states.append(state)
    return edges[1:], np.array(states)


def played(params, actions, seed, count):
    """Steps of a batch to its end: info of each decision, with the rewards, and which rows still ran."""
    envs = gym.make_vec(ID, num_envs=count, info="full", **params.arguments())
    _, info = envs.reset(seed=seed)
    running, steps = np.ones(count, dtype=bool), []
    while running.any():
        before = info
        _, reward, ended, _, info = envs.step(np.broadcast_to(np.float32(actions), (count, 2)))
        steps.append((before, info, reward, running))
        running = running & ~ended
    return steps


@pytest.mark.parametrize("decision", ["event", "clock"])
def test_orders_in_each_piece_have_the_exact_mean(decision):
    p = Params.create(**PROFILE, decision=decision)
    count, edges = 4000, p.horizon / p.pieces * np.arange(1, p.pieces + 1)
    orders = np.zeros((2, p.pieces, count))
    for before, after, _, running in played(p, 0.5, 7, count):
        middle = p.horizon - 0.5 * (before["time_left"] + after["time_left"])
        piece = np.minimum(np.searchsorted(edges, middle), p.pieces - 1)
        for side, name in enumerate(("buy_orders", "sell_orders")):
            orders[side, piece[running], np.flatnonzero(running)] += after[name][running]
    scores = []
    for side in range(2):
        ends, path = mean_path(p, side, 0.0, process(p, side)[2])
        assert ends == pytest.approx(edges)
        expected = np.diff(path[:, 1], prepend=0.0)
        scores += list((orders[side].mean(axis=1) - expected) / (orders[side].std(axis=1) / np.sqrt(count)))
    assert np.abs(scores).max() < stats.norm.isf(FALSE_ALARMS / 2 / len(scores))


def test_orders_are_poisson_after_a_change_of_time():
    """The compensator between two orders of a side is unit exponential, across pieces and episodes laid end to end."""
    p = Params.create(**PROFILE | {"horizon": 30.0, "num_steps": 60})
    env = gym.make(ID, **p.arguments())
    clocks, excess, gaps = np.zeros(2), np.zeros(2), ([], [])
    for episode in range(12):
        _, info = env.reset(seed=episode)
        excess[:] = [process(p, side)[2] - base_rate(p, side, 0.0) for side in range(2)]
        now, ended = 0.0, False
        while not ended:
            _, _, ended, _, info = env.step(np.zeros(2, np.float32))
            length = info["elapsed"]
            for side in range(2):
                zeta, rho, _ = process(p, side)
                clocks[side] += base_rate(p, side, now + 0.5 * length) * length
                clocks[side] += excess[side] * (1.0 - np.exp(-rho * length)) / rho
                excess[side] *= np.exp(-rho * length)
                if info[("buy_orders", "sell_orders")[side]]:
                    gaps[side].append(clocks[side])
                    clocks[side], excess[side] = 0.0, excess[side] + zeta
            now += length
            rates = [base_rate(p, side, now + 1e-9) + excess[side] for side in range(2)]
            assert [info["buy_rate"], info["sell_rate"]] == pytest.approx(rates, rel=1e-9)
        assert now == pytest.approx(p.horizon, abs=1e-12)
    for side in range(2):
        assert len(gaps[side]) > 300
        assert stats.kstest(gaps[side], "expon").pvalue > FALSE_ALARMS / 2


def step_worth(p, rates, offsets, values, length):
    """Worth of so long at offsets [bid, ask] with Poisson orders [sell, buy], from each inventory."""
    fills = np.exp(-np.array([p.fill_decay_sell, p.fill_decay_buy]) * offsets)
    impacts, limit = (p.impact_sell, p.impact_buy), p.inventory_limit
    size = 2 * limit + 1
    chain = np.zeros((size + 1, size + 1))  # the last column: what is earned
    for i in range(size):
        q = i - limit
        chain[i, size] = q * (rates[1] * impacts[1] - rates[0] * impacts[0]) - p.running_penalty * q * q
        for k, step in enumerate((1, -1)):
            if abs(q + step) <= limit:
                rate = rates[k] * fills[k]
                chain[i, i + step] += rate
                chain[i, i] -= rate
                chain[i, size] += rate * (p.half_spread + offsets[k] - impacts[k])
    return expm(length * chain)[:size] @ np.append(values, 1.0)


def at_start(p, tables):
    """The value at the start; the initial excess is the lowest node."""
    assert p.initial_excess_buy == p.initial_excess_sell == 0.0
    return tables.values[-1, p.initial_inventory + p.inventory_limit, 0, 0]


QUIET = PROFILE | {"excitation": 0.0, "num_steps": 3, "fill_decay": [3.0, 5.0], "inventory_limit": 1}


def test_without_excitation_the_optimum_by_the_clock_is_that_of_the_inventory_chain():
    p = Params.create(**QUIET | {"num_steps": 6}, decision="clock")
    q = np.arange(-p.inventory_limit, p.inventory_limit + 1.0)
    values = -p.half_spread * np.abs(q) - p.terminal_penalty * q**2
    for step in reversed(range(p.num_steps)):
        rates = [base_rate(p, side, (step + 0.5) * p.step_length) for side in (1, 0)]
        best = [
            max(
                -minimize(
                    lambda x, i=i, v=values, r=rates: -step_worth(p, r, x, v, p.step_length)[i],
                    start,
                    bounds=[(0.0, 2.0 * reach) for reach in p.depth_reach],
                ).fun
                for start in ([0.1, 0.1], [0.5, 0.5])
            )
            for i in range(len(q))
        ]
        values = np.array(best)
    assert at_start(p, clock_march(p, COARSE)) == pytest.approx(values[p.inventory_limit], rel=1e-6)


def test_without_excitation_depths_that_move_at_once_solve_the_equation_of_the_chain():
    """And so do the values of Poisson order flow, of which ``q G`` is a part, times the drift that is still to come."""
    p = Params.create(**QUIET | {"inventory_limit": 2})
    q = np.arange(-p.inventory_limit, p.inventory_limit + 1.0)
    values, decays = -p.half_spread * np.abs(q) - p.terminal_penalty * q**2, (p.fill_decay_sell, p.fill_decay_buy)
    for piece in reversed(range(p.pieces)):
        sell, buy = (base_rate(p, side, (piece + 0.5) * p.horizon / p.pieces) for side in (1, 0))

        def slope(_, v, sell=sell, buy=buy):
            change = q * (buy * p.impact_buy - sell * p.impact_sell) - p.running_penalty * q**2
            for rate, decay, reach, impact, moved, open_side in (
                (sell, decays[0], p.depth_reach[0], p.impact_sell, np.diff(v), slice(None, -1)),
                (buy, decays[1], p.depth_reach[1], p.impact_buy, -np.diff(v), slice(1, None)),
            ):
                edge = p.half_spread + moved - impact
                offset = np.clip(1.0 / decay - edge, 0.0, 2.0 * reach)
                change[open_side] += rate * np.exp(-decay * offset) * (offset + edge)
            return change

        values = solve_ivp(slope, (0.0, p.horizon / p.pieces), values, rtol=1e-11, atol=1e-12).y[:, -1]
    solution = march(p, Resolution(2, 0.1, 1e-3), held=False)
    assert solution.values[-1, :, 0, 0] == pytest.approx(values, rel=1e-6)
    poisson = PoissonValues(p)(p.horizon) + q * price_drift(p, p.horizon, p.initial_rate_buy, p.initial_rate_sell)
    assert poisson == pytest.approx(values, rel=1e-7)
    finest = march(Params.create(**QUIET | {"inventory_limit": 2, "num_steps": 60}), COARSE, held=True)
    assert solution.values[-1, 2, 0, 0] - 1e-3 < finest.values[-1, 2, 0, 0] < solution.values[-1, 2, 0, 0] + 1e-6


@pytest.mark.parametrize("decision", ["event", "clock"])
def test_a_constant_profile_is_a_base_rate(decision):
    """By the clock the optimum is the same; after events it has decisions at the pieces' starts besides."""
    plain = PROFILE | {"base_rate_profile": [1.0], "base_rate": [1.8, 1.2], "num_steps": 24, "decision": decision}
    one = Params.create(**plain)
    three = Params.create(**plain | {"base_rate": [0.9, 0.6], "base_rate_profile": [2.0, 2.0, 2.0]})
    assert three.initial_rate_buy == one.initial_rate_buy and three.rate_scale_sell == pytest.approx(
        one.rate_scale_sell
    )
    assert three.expected_rates([0.5, 2.5]) == pytest.approx(one.expected_rates([0.5, 2.5]), rel=1e-12)
    rough, pair = Resolution(10, 0.4, 1e-4), (one, three)
    solve = clock_march if decision == "clock" else march
    options = {} if decision == "clock" else {"held": True}
    for depths, most in ((None, 0.0 if decision == "clock" else 3e-4), (lambda *_: np.full(2, 0.5), 0.0)):
        first, second = (solve(p, rough, depths=depths, **options).values[-1] for p in pair)
        assert (second - first).min() > -5e-5 and (second - first).max() < most + 5e-5
    state = (2.2, 1, 2.5, 1.7)
    for formula in (join_best, corollary_3):
        assert formula(three, *state) == pytest.approx(formula(one, *state), rel=1e-10)


def simulated(params, policy, count, seed):
    """Mean return and its standard error."""
    envs = gym.make_vec(ID, num_envs=count, **params.arguments())
    observations, _ = envs.reset(seed=seed)
    running, total, memory = np.ones(count, dtype=bool), np.zeros(count), None
    start = np.ones(count, dtype=bool)
    while running.any():
        actions, memory = policy.predict(observations, state=memory, episode_start=start, deterministic=True)
        observations, reward, ended, _, _ = envs.step(actions)
        total[running] += reward[running]
        running, start = running & ~ended, np.zeros(count, dtype=bool)
    return total.mean(), total.std() / np.sqrt(count), total


@pytest.mark.long
@pytest.mark.parametrize("decision", ["event", "clock"])
def test_the_optimum_is_what_it_earns_in_simulation(decision):
    """So does a policy of the paper its exact value, and neither is worth more than the optimum."""
    p = Params.create(**PROFILE | {"base_rate": [1.5, 1.0], "inventory_limit": 1}, decision=decision)
    base = baseline_for(p)
    for policy in (base.best_policy(), base.policies()["corollary_3"]()):
        valued = base.evaluate(policy)
        mean, error, _ = simulated(p, policy, 4000, 11)
        assert abs(mean - valued.value) < stats.norm.isf(FALSE_ALARMS / 4) * error + valued.error
        assert valued.value <= base.bounds().upper + base.bounds().error + valued.error
    assert base.evaluate(base.best_policy()).value == pytest.approx(base.bounds().upper, abs=base.bounds().error + 1e-4)
    scored = baselines.score(gym.make(ID, **p.arguments()), base.best_policy(), method="simulated", episodes=200)
    assert abs(scored.value - base.bounds().upper) < 4.0 * scored.stderr + base.bounds().error + 1e-4


def test_on_the_tape_the_optimum_sees_what_the_state_shows():
    shown, hidden = (Params.create(**PROFILE, observe=observe) for observe in ("state", "tape"))
    base = baseline_for(hidden)
    _, _, first = simulated(shown, baseline_for(shown).best_policy(), 200, 3)
    _, _, second = simulated(hidden, base.best_policy(), 200, 3)
    assert np.abs(second - first).max() < 1e-4


def test_filters_know_intensities_whose_orders_all_fill():
    """Both sides join the best price, and the inventory is never at its limit: fills tell every order's side."""
    p = Params.create(**PROFILE | {"inventory_limit": 60}, observe="fills")
    envs = gym.make_vec(ID, num_envs=50, info="full", **p.arguments())
    for policy in (kind(p, lambda *state: join_best(p, *state)) for kind in (FilteredPolicy, ParticlePolicy)):
        (seen, info), memory, running = envs.reset(seed=5), None, np.ones(50, dtype=bool)
        while running.any():
            actions, memory = policy.predict(seen, state=memory)
            rates = np.stack([info["buy_rate"], info["sell_rate"]], axis=-1)
            assert memory.rates[running] == pytest.approx(rates[running], rel=1e-4)
            seen, _, ended, _, info = envs.step(actions)
            running &= ~ended


def test_moments_are_those_of_the_differential_equations():
    p, time, rates = Params.create(**PROFILE), 0.7, (2.5, 3.0)
    ends = [mean_path(p, side, time, rates[side])[1][-1] for side in range(2)]
    drift = p.impact_buy * ends[0][1] - p.impact_sell * ends[1][1]
    assert price_drift(p, p.horizon - time, *rates) == pytest.approx(drift, rel=1e-8)
    for at in (0.4, 1.5, 2.9, 3.0):
        for side in range(2):
            zeta, rho, start = process(p, side)
            past = quad(
                lambda u, s=side, z=zeta, r=rho, t=at: z * base_rate(p, s, u) * np.exp((z - r) * (t - u)),
                0.0, at, points=[x for x in (1.0, 2.0) if x < at], epsabs=1e-12,
            )[0]  # fmt: skip
            excess = (start - base_rate(p, side, 0.0)) * np.exp((zeta - rho) * at) + past
            assert p.expected_rates(at)[side] == pytest.approx(base_rate(p, side, at) + excess, rel=1e-8)
    q, phi, alpha = 1.0, p.running_penalty, p.terminal_penalty
    after = [mean_path(p, side, time, rates[side] + (side == 0) * p.excitation_buy)[1][-1] for side in range(2)]
    slope = p.impact_buy * after[0][1] - p.impact_sell * after[1][1]
    slope += 2.0 / np.e * (alpha * (after[0][1] - after[1][1]) + phi * (after[0][2] - after[1][2]))
    ask = 1.0 / p.fill_decay_buy + p.impact_buy - p.half_spread + (alpha + phi * 2.3) * (1.0 - 2.0 * q) + slope
    assert corollary_3(p, 2.3, q, *rates)[1] == pytest.approx(max(ask, p.half_spread), rel=1e-8)


@pytest.mark.parametrize("decision", ["event", "clock"])
def test_the_price_noise_has_no_mean(decision, check_mean):
    p = Params.create(**PROFILE | {"initial_inventory": 2, "num_steps": 6}, decision=decision)
    envs = gym.make_vec(ID, num_envs=3000, **p.arguments())
    envs.reset(seed=9)
    noise, total, running = baseline_for(p).price_noise(), np.zeros(3000), np.ones(3000, dtype=bool)
    while running.any():
        before = envs.get_state()
        _, _, ended, _, _ = envs.step(np.zeros((3000, 2), np.float32))
        total += np.where(running, noise(before, envs.get_state()), 0.0)
        running &= ~ended
    check_mean(total, alarms=FALSE_ALARMS)


@pytest.mark.long
def test_expansions_have_the_value_of_a_policy():
    p = Params.create(**PROFILE)
    policy = baseline_for(p).policies()["corollary_3"]()
    value = baseline_for(p).evaluate(policy).value
    assert FlowExpansions(p).value(policy) == pytest.approx(value, rel=2e-3)


def test_pieces_are_decided_on_and_observed_exactly():
    """Steps do not cross the start of a piece, and observations tell the excess there."""
    p = Params.create(**PROFILE)
    for before, after, _, running in played(p, -1.0, 2, 100):
        ends = hawkes_flow.piece_end(p, before["time_left"])
        assert (after["time_left"] >= ends)[running].all()
        seen = hawkes_flow.observe(p, *(before[n] for n in ("time_left", "inventory", "buy_rate", "sell_rate")))
        left, _, buy, sell = hawkes_flow.locate(p, seen)
        assert np.allclose(np.stack([buy, sell], axis=-1), np.stack([before["buy_rate"], before["sell_rate"]], axis=-1))
        starts = np.isin(before["time_left"], p.piece_ends)
        assert (left[starts] == before["time_left"][starts]).all()


def test_profiles_are_checked_and_come_back():
    p = Params.create(**PROFILE)
    assert Params.create(**json.loads(json.dumps(p.arguments()))) == p
    assert Params.create(base_rate_profile=[1, 2]).arguments()["base_rate_profile"] == [1.0, 2.0]
    for wrong in ([], 2.0, [[1.0], [1.0, 2.0]], [1.0, 0.0], ["a"], [1.0] * 49, None, [[1.0], [1.0], [1.0]]):
        with pytest.raises(ValueError, match="base_rate_profile"):
            Params.create(base_rate_profile=wrong)
    with pytest.raises(ValueError, match="num_steps must be a multiple of the 7 pieces"):
        Params.create(base_rate_profile=[1.0] * 7)
    with pytest.raises(ValueError, match="at least its base_rate 3 at the start"):
        Params.create(base_rate=1.0, base_rate_profile=[3.0, 1.0], initial_rates=2.0)
    with pytest.raises(ValueError, match="profiles"):
        gym.make(ID, randomise={"base_rate_profile": ["choice", [[1.0, 2.0], [2.0, 1.0]]]})
    with pytest.raises(TypeError, match=r"base_rate_profile = .* cannot be replayed"):
        rules(p)
    rows = gym.make_vec(ID, num_envs=2, parameters={"base_rate": [0.5, 1.0]}, base_rate_profile=[2.0, 1.0], info="full")
    _, info = rows.reset(seed=0)
    assert info["buy_rate"] == pytest.approx([2.0 * 0.5 / (1 - 1.5 / 3), 2.0 * 1.0 / (1 - 1.5 / 3)])
