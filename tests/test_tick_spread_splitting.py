"""The explicit backward splitting, and the Euler scheme in which the paper plays.

Second methods: the splitting written out state by state in plain Python, all outcomes of an Euler step enumerated
forward, and the continuous-time moments that the scheme tends to. Seeds are fixed; a change of seed fails one of the
six checks within 4.2 standard errors with probability 2e-4.
"""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmgym.baselines.tick_spread.continuous import splitting
from mmgym.baselines.tick_spread.euler import euler_moments, euler_paths
from mmgym.baselines.tick_spread.feedback import feedback_moments
from mmgym.models.tick_spread import Params

Array = NDArray[Any]


def small(**changes: Any) -> Params:
    """Three spreads, seven inventories, everything different between the sides."""
    arguments: dict[str, Any] = {
        "tick": 0.01,
        "spread_transitions": [[0.0, 0.7, 0.3], [0.4, 0.0, 0.6], [0.8, 0.2, 0.0]],
        "clock_rate": 0.8,
        "fill_rate_best": [[0.30, 0.20, 0.15], [0.25, 0.22, 0.10]],
        "fill_rate_improved": [[0.60, 0.50, 0.40], [0.55, 0.35, 0.45]],
        "rebate": 0.002,
        "fee": 0.001,
        "fixed_fee": 0.01,
        "running_penalty": 2e-4,
        "lot": 20.0,
        "limit_order_max": 40.0,
        "market_order_max": 40.0,
        "inventory_limit": 60.0,
        "initial_inventory": -20.0,
        "volatility": 0.03,
        "horizon": 3.0,
    }
    return Params.create(**(arguments | changes))


def test_controls_of_the_splitting_attain_the_maximum_in_plain_python() -> None:
    p, steps = small(), 6
    dt, lots = p.horizon / steps, range(-3, 4)
    controls = splitting(p, steps).reshape(steps, 3, 7, 5)
    cost = {(i, e): abs(e) * 20.0 * (0.005 * (i + 1) + 0.001) + 0.01 * (e != 0) for i in range(3) for e in range(-6, 7)}
    phi = {(i, y): -cost[i, y] for i in range(3) for y in lots}
    orders = 0

    def side(i: int, y: int, sign: int, quote: int, size: int) -> float:
        """Gain per second of a bid (1) or an ask (-1)."""
        quote = quote if i else 0
        best, improved = (
            (p.best_bid_rates, p.improved_bid_rates) if sign == 1 else (p.best_ask_rates, p.improved_ask_rates)
        )
        edge = 20.0 * (0.005 * (i + 1) - 0.01 * quote + 0.002)
        return (improved if quote else best)[i] * (phi[i, y + sign * size] - phi[i, y] + edge * size)

    for n in reversed(range(steps)):
        before = {}
        for (i, y), here in phi.items():
            options = {
                s: {(q, k): side(i, y, s, q, k) for q in (0, 1) for k in range(3) if abs(y + s * k) <= 3}
                for s in (1, -1)
            }
            moved = sum(p.spread_transitions[i][j] * (phi[j, y] - here) for j in range(3))
            waiting = here + dt * (
                0.8 * moved - 2e-4 * (20.0 * y) ** 2 + sum(max(o.values()) for o in options.values())
            )
            sent = {e: phi[i, y + e] - cost[i, e] for e in (-2, -1, 1, 2) if abs(y + e) <= 3}
            before[i, y] = max(waiting, *sent.values())
            bid, ask, bid_size, ask_size, order = controls[n, i, y + 3] / [1, 1, 20, 20, 20]
            if order:
                orders += 1
                assert sent[order] == pytest.approx(before[i, y], abs=1e-12)
            else:
                assert waiting == pytest.approx(before[i, y], abs=1e-12)
                assert options[1][bid, bid_size] == pytest.approx(max(options[1].values()), abs=1e-12)
                assert options[-1][ask, ask_size] == pytest.approx(max(options[-1].values()), abs=1e-12)
        phi = before
    assert 10 < orders < 100


def test_moments_are_those_of_all_outcomes() -> None:
    p, steps = small(inventory_limit=100.0, horizon=1.5), 3
    controls = splitting(p, steps)
    dt = p.horizon / steps
    law: Counter[tuple[int, int, float, int]] = Counter()  # spread, lots, gain, sum of squared lots
    law.update({(i, -1, 0.0, 0): weight for i, weight in enumerate(p.initial_spread_law)})
    for n in range(steps):
        after: Counter[tuple[int, int, float, int]] = Counter()
        for (i, y, gain, squares), weight in law.items():
            bid, ask, bid_size, ask_size, order = np.rint(controls[n, i * 11 + y + 5] / [1, 1, 20, 20, 20]).astype(int)
            landed = y + order
            paid = abs(order) * 20.0 * (0.005 * (i + 1) + 0.001) + 0.01 * (order != 0)
            bid, ask = bid * (i > 0), ask * (i > 0)
            chances = (p.bid_rates[bid, i] * dt, p.ask_rates[ask, i] * dt)
            for b, a, j in itertools.product((0, 1), (0, 1), range(3)):
                moved = 0.8 * dt * p.spread_transitions[i][j] + (1.0 - 0.8 * dt) * (i == j)
                chance = (chances[0] if b else 1.0 - chances[0]) * (chances[1] if a else 1.0 - chances[1]) * moved
                earned = b * bid_size * 20.0 * (0.005 * (i + 1) - 0.01 * bid + 0.002)
                earned += a * ask_size * 20.0 * (0.005 * (i + 1) - 0.01 * ask + 0.002)
                inventory = landed + b * bid_size - a * ask_size
                after[j, inventory, gain - paid + earned, squares + landed**2] += weight * chance
        law = after
    weights = np.array(list(law.values()))
    gains = np.array([g - abs(y) * 20.0 * (0.005 * (i + 1) + 0.001) - 0.01 * (y != 0) for i, y, g, _ in law])
    variance = np.array([dt * (0.03 * 20.0) ** 2 * squares for *_, squares in law])
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    mean = weights @ gains
    moments = euler_moments(p, controls, steps)
    np.testing.assert_allclose(moments, (mean, np.sqrt(weights @ (gains**2 + variance) - mean**2)), rtol=1e-12)


def test_short_steps_tend_to_continuous_time() -> None:
    p = small(horizon=20.0)
    controls = splitting(p, 40)
    coarse, fine = (np.array(euler_moments(p, controls, n)) for n in (4000, 8000))
    exact = feedback_moments(p, controls)
    np.testing.assert_allclose(2.0 * fine - coarse, exact, rtol=1e-5)
    assert (np.abs(fine - exact) > 1e-4 * np.abs(exact)).all()


def test_paths_have_these_moments_and_count_quotes_of_size_zero() -> None:
    p = small(horizon=20.0)
    controls = splitting(p, 40)
    paths = 4000
    sample = euler_paths(p, controls, 80, paths, np.random.default_rng(7))
    mean, std = euler_moments(p, controls, 80)
    wealth = sample["wealth"]
    assert abs(wealth.mean() - mean) < 4.2 * std / np.sqrt(paths)
    fourth = ((wealth - mean) ** 4).mean()
    assert abs(wealth.std() - std) < 4.2 * np.sqrt((fourth - std**4) / paths) / (2.0 * std)
    assert (sample["market orders"] > 0).any()
    assert sample["maximum inventory"].max() <= 60.0

    p = small(fill_rate_best=[[0.3] * 3, [0.2] * 3], horizon=20.0)
    nothing = np.zeros((1, 21, 5))
    sample = euler_paths(p, nothing, 40, paths, np.random.default_rng(8))
    for name, chance in (("bid fills", 0.15), ("ask fills", 0.10)):  # binomial: 40 steps of 0.5 s
        variance = 40 * chance * (1.0 - chance)
        assert abs(sample[name].mean() - 40 * chance) < 4.2 * np.sqrt(variance / paths)
        kurtosis = 3.0 + (1.0 - 6.0 * chance * (1.0 - chance)) / variance
        assert abs(sample[name].var() - variance) < 4.2 * variance * np.sqrt((kurtosis - 1.0) / paths)
    np.testing.assert_array_equal(sample["maximum inventory"], 20.0)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="raise num_steps"):
        splitting(small(), 1)
    with pytest.raises(ValueError, match="mean criterion"):
        splitting(small(utility="cara", running_penalty=None), 10)
    controls = splitting(small(), 6)
    with pytest.raises(ValueError, match="probabilities need at most"):
        euler_moments(small(), controls, 2)
    with pytest.raises(ValueError, match="one rate of the clock"):
        euler_paths(small(clock_rate=[[0.0, 1.0], [1.0, 0.5]]), controls, 30, 10, np.random.default_rng(0))
