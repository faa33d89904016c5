"""The robust GLFT market's solution: best replies, the value of the game and exploitability, against dense solutions.

The dense solution is that of this file: exponentials of matrices, on grids of controls that are refined. The simulated
test has a false-alarm rate of 1e-3.
"""

import itertools

import gymnasium
import numpy as np
import pytest

from mmgym import baselines
from mmgym.baselines.policy import CallablePolicy
from mmgym.baselines.robust_glft import exploitability, game_value, worst_case
from mmgym.models.robust_glft import AdversaryParams, MakerParams
from mmgym.models.robust_glft_game import Game, minimax

MAKER, ADVERSARY = "mmgym/RobustGLFT-v0", "mmgym/RobustGLFTAdversary-v0"
TINY = {"num_steps": 2, "horizon": 0.02, "inventory_limit": 1.0, "terminal_penalty": 0.3}
SMALL = {"num_steps": 6, "horizon": 0.03, "inventory_limit": 3.0, "running_penalty": 2.0}


def exponentials(systems):
    """Of matrices (M, K, K), by Taylor series of halved ones and squarings."""
    halvings = max(0, int(np.ceil(np.log2(np.abs(systems).sum(axis=2).max() + 1e-300))) + 1)
    small = systems / 2.0**halvings
    term = total = np.broadcast_to(np.eye(systems.shape[1]), systems.shape)
    for j in range(1, 16):
        term = term @ small / j
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def one_step(p, s, ahead, drift, rates, depths):
    """One-step values (M,) at the inventory ``s`` of drifts (M,), intensities (M, 2) and depths (M, 2)."""
    q = np.arange(-p.limit, p.limit + 1) * p.order_size
    count = len(q)
    system = np.zeros((len(drift), count + 1, count + 1))
    system[:, :count, count] = drift[:, None] * q - p.running_penalty * q**2
    for side, move in ((0, 1), (1, -1)):
        for i in range(count):
            if 0 <= i + move < count:
                system[:, i, i] -= rates[:, side]
                system[:, i, i + move] += rates[:, side]
                system[:, i, count] += rates[:, side] * p.order_size * depths[:, side]
    return exponentials(p.horizon / p.num_steps * system)[:, s] @ np.append(ahead, 1.0)


def worst_choice(p, s, ahead, depths, points):
    """The lowest one-step value of depths (M, 2) over a grid of nature's choices: (M,).

    Rates and decays enter by the intensities alone, which take all values between those of the corners; the drift
    enters linearly.
    """
    rate = p.fill_rate * np.array([1.0 - p.fill_rate_reach, 1.0 + p.fill_rate_reach])
    decay = p.fill_decay * np.array([1.0 - p.fill_decay_reach, 1.0 + p.fill_decay_reach])
    ends = [np.exp(-decay * d[..., None]) for d in depths.T]
    low = np.stack([rate[0] * end.min(axis=-1) for end in ends], axis=-1)
    high = np.stack([rate[1] * end.max(axis=-1) for end in ends], axis=-1)
    lowest = np.full(len(depths), np.inf)
    for share in itertools.product(np.linspace(0.0, 1.0, points), repeat=2):
        rates = low + (high - low) * np.array(share)
        for drift in (p.drift - p.drift_reach, p.drift + p.drift_reach):
            lowest = np.minimum(lowest, one_step(p, s, ahead, np.full(len(depths), drift), rates, depths))
    return lowest


def dense_lower_value(p, points=3, zooms=12):
    """The lower value of the game (N + 1, S), by a grid of depths that closes in on the best of it."""
    q = np.arange(-p.limit, p.limit + 1) * p.order_size
    values = np.empty((p.num_steps + 1, len(q)))
    values[-1] = -p.terminal_penalty * q**2
    for n in reversed(range(p.num_steps)):
        for s in range(len(q)):
            center, reach = np.full(2, 0.5 * (p.min_depth + p.max_depth)), 0.5 * (p.max_depth - p.min_depth)
            for _ in range(zooms):
                axes = [np.linspace(c - reach, c + reach, 9).clip(p.min_depth, p.max_depth) for c in center]
                grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
                lowest = worst_choice(p, s, values[n + 1], grid, points)
                center, reach = grid[lowest.argmax()], 0.4 * reach
            values[n, s] = lowest.max()
    return values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"drift": 3.0, "drift_reach": 40.0, "initial_inventory": 1.0}, marks=pytest.mark.long),
        pytest.param({"terminal_penalty": 2.0, "fill_decay_reach": 0.6}, marks=pytest.mark.long),
        pytest.param({"fill_rate_reach": 0.9, "drift_reach": 0.0, "horizon": 0.1}, marks=pytest.mark.long),
        pytest.param({"drift_reach": 30.0, "fill_rate": 8.0, "horizon": 0.2}, marks=pytest.mark.long),  # she draws
    ],
    ids=str,
)
def test_a_tiny_game_against_its_dense_solution(changes):
    p = MakerParams.create(**{**TINY, **changes})
    dense, saddle = dense_lower_value(p), minimax(p.game)
    np.testing.assert_allclose(saddle.values, dense, rtol=0.0, atol=2e-5 * (1.0 + np.abs(dense).max()))
    value = game_value(MAKER, **{**TINY, **changes})
    assert value.saddle
    assert value.lower == pytest.approx(dense[0, p.start + p.limit], abs=2e-5 * (1.0 + np.abs(dense).max()))


def test_the_adversary_draws_where_a_step_is_long():
    """The worst drift and the worst fill rates go together: one choice that the maker knows is not the worst law."""
    long_steps = {**TINY, "drift_reach": 30.0, "fill_rate": 8.0, "horizon": 0.2}
    weights = minimax(Game.create(**long_steps)).weights
    assert weights.shape[-1] > 1 and ((weights > 0.01) & (weights < 0.99)).any()
    assert game_value(MAKER, **long_steps).saddle
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_the_worst_case_of_random_makers_against_a_grid(seed):
    """Wide bounds, steps with some fills: the grid comes no lower, and close."""
    random = np.random.default_rng(seed)
    arguments = {
        "num_steps": 2,
        "horizon": float(random.uniform(0.02, 0.1)),
        "inventory_limit": 2.0,
        "terminal_penalty": float(random.uniform(0.0, 2.0)),
        "fill_rate": float(random.uniform(1.0, 60.0)),
        "drift_reach": float(random.uniform(0.0, 20.0)),
        "fill_rate_reach": 0.8,
        "fill_decay_reach": 0.6,
    }
    p = MakerParams.create(**arguments)
    depths = random.uniform(p.min_depth, p.max_depth, (p.num_steps, p.levels, 2))
    worst = worst_case(MAKER, depths, **arguments)
    assert worst.opponent.shape == (2, 5, 5)
    values = -p.terminal_penalty * p.inventory**2
    for n in reversed(range(p.num_steps)):
        values = np.array([worst_choice(p, s, values, depths[n, s][None], 11)[0] for s in range(p.levels)])
    assert worst.value <= values[p.limit] + 1e-11 * (1.0 + np.abs(values).max())
    assert worst.value == pytest.approx(values[p.limit], abs=2e-3 * (1.0 + np.abs(values).max()))


def random_policy(p, random):
    """A maker or an adversary who plays a random table."""
    return random.uniform(-1.0, 1.0, (p.num_steps, p.levels, p.num_own_controls))


@pytest.mark.parametrize(("env_id", "kind"), [(MAKER, MakerParams), (ADVERSARY, AdversaryParams)])
def test_nobody_beats_the_value(env_id, kind):
    p, random = kind.create(**SMALL), np.random.default_rng(4)
    env, value = gymnasium.make(env_id, **SMALL), game_value(env_id, **SMALL)
    assert value.saddle and value.lower <= value.upper + 1e-12
    best = value.upper if kind is MakerParams else -value.lower
    policies = baselines.paper_policies(env)
    minimax_policy = policies["robust" if kind is MakerParams else "worst"]
    for k in range(6):
        table = env.unwrapped.to_quotes(random_policy(p, random))
        if k == 5:  # near the minimax policy
            table = minimax_policy.controls + 0.02 * table
            table = table.clip(*(env.unwrapped.to_quotes(np.full(p.num_own_controls, end)) for end in (-1.0, 1.0)))
        gap = exploitability(env, table)
        assert gap.best == best
        assert gap.exploitability == pytest.approx(best - gap.value, abs=1e-12)
        assert gap.exploitability > 1e-4
    assert exploitability(env, minimax_policy).exploitability == pytest.approx(0.0, abs=1e-6)  # as played, in float32
    if kind is MakerParams:  # the best reply to the worst law is robust; that to the robust maker need not be a law
        assert exploitability(env, baselines.optimal_policy(env)).exploitability == pytest.approx(0.0, abs=1e-6)
    for name, policy in policies.items():
        if not policy.markov:  # uniform in five controls: no quadrature
            with pytest.raises(ValueError, match="no exact worst case"):
                exploitability(env, policy, deterministic=False)
            continue
        gap = exploitability(env, policy, deterministic=name != "random")
        assert gap.exploitability >= -1e-9
        assert name in ("robust", "worst") or gap.exploitability > 1e-4
        given = baselines.score(env, policy).value  # against the minimax opponent: no worse than against her worst
        assert gap.value - 1e-9 <= given <= best + 1e-9
    played = exploitability(env, CallablePolicy(lambda x: np.zeros((len(x), p.num_own_controls)), markov=True))
    assert played.exploitability > 1e-4


@pytest.mark.long
def test_a_learner_against_the_worst_adversary(tmp_path):
    """Trained against the minimax adversary a network is near the value of the game in the worst case."""
    train = pytest.importorskip("mmgym.agents.train")
    arguments = {"num_steps": 5, "horizon": 0.075, "inventory_limit": 2.0}
    value, gaps = game_value(MAKER, **arguments).lower, {}
    for adversary in ("worst", "none"):
        given = arguments | {"adversary": adversary}
        folder, result = train.train(
            "exact_gradient", MAKER, folder=tmp_path / adversary, arguments=given, timesteps=12, progress=False
        )
        learner = train.load_model(folder / "model")[0]
        gaps[adversary] = exploitability(MAKER, learner, **given)
        assert gaps[adversary].best == pytest.approx(value, rel=1e-9)
        assert result.value <= result.optimum_upper + 1e-9
    assert -1e-9 < gaps["worst"].exploitability < 0.02 * value
    assert gaps["worst"].value < value + 1e-9
    assert gaps["none"].exploitability > gaps["worst"].exploitability  # who knows no adversary is worse against hers


def test_without_reach_it_is_the_nominal_optimum():
    """To rounding that of Avellaneda & Stoikov, whatever the adversary."""
    none = {**SMALL, "drift_reach": 0.0, "fill_rate_reach": 0.0, "fill_decay_reach": 0.0}
    optimum = baselines.optimal_policy("mmgym/AvellanedaStoikov-v0", **SMALL).optimum
    assert baselines.optimal_policy(MAKER, **none).optimum == pytest.approx(optimum, rel=1e-13)
    assert baselines.optimal_policy(MAKER, **SMALL, adversary="none").optimum == pytest.approx(optimum, rel=1e-13)
    value = game_value(MAKER, **none)
    assert value.saddle and value.lower == pytest.approx(optimum, rel=1e-13)


def test_wider_bounds_have_lower_values():
    """Each reach alone, and all of them: strictly, and below the optimum against any given adversary."""
    base = {"drift_reach": 1.0, "fill_rate_reach": 0.1, "fill_decay_reach": 0.1}
    narrow = game_value(MAKER, **SMALL, **base).upper
    for name in base:
        assert game_value(MAKER, **SMALL, **{**base, name: 2.0 * base[name]}).upper < narrow - 1e-6
    doubled = {name: 2.0 * value for name, value in base.items()}
    assert game_value(MAKER, **SMALL, **doubled).upper < narrow - 1e-5
    for adversary in ("none", "random"):
        assert baselines.optimal_policy(MAKER, **SMALL, **base, adversary=adversary).optimum > narrow


def drawn_game(random):
    """Arguments of a game: many and few fills, large penalties, small and large orders, any box."""
    decay, size, kind = float(random.uniform(0.2, 5.0)), float(random.choice([1.0, 0.5, 10.0])), random.choice
    arguments = {
        "fill_decay": decay,
        "order_size": size,
        "inventory_limit": size * int(random.integers(1, 8)),
        "num_steps": int(random.integers(1, 10)),
        "horizon": float(10.0 ** random.uniform(-2.0, 1.0)),
        "fill_rate": float(10.0 ** random.uniform(-3.0, 1.5)),
        "drift": float(random.normal() * kind([0.0, 1.0, 5.0])),
        "drift_reach": float(kind([0.0, 1.0, 10.0]) * random.random()),
        "fill_rate_reach": float(kind([0.0, 0.25, 0.9])),
        "fill_decay_reach": float(kind([0.0, 0.25, 0.8])),
        "running_penalty": float(kind([0.0, 1.0]) * 10.0 ** random.uniform(-3.0, 1.0)),
        "terminal_penalty": float(kind([0.0, 1.0]) * 10.0 ** random.uniform(-3.0, 2.0)),
    }
    if random.random() < 0.3:
        arguments |= {
            "min_depth": float(random.uniform(-2.0, 1.0) / decay),
            "max_depth": float(random.uniform(1.1, 6.0) / decay),
        }
    return arguments


@pytest.mark.parametrize("count", [12, pytest.param(80, marks=pytest.mark.slow)])
def test_bounds_of_drawn_games(count):
    """What one guarantees is never above what the other does; they meet in games of few fills a step."""
    random = np.random.default_rng(20)
    for _ in range(count):
        arguments = drawn_game(random)
        p = MakerParams.create(**arguments)
        most = p.step_length * p.nature_high[1] * np.exp(-min(p.nature_high[3] * p.min_depth, 0.0))
        if most > 20.0:
            continue
        value = game_value(MAKER, **arguments)
        scale = 1e-9 * (1.0 + abs(value.upper) + abs(value.lower))
        assert value.lower <= value.upper + scale, arguments
        assert value.saddle or most > 0.5, (value, arguments)


def test_the_simulated_robust_maker_earns_the_value(check_mean):
    """Against the minimax adversary the robust policy has the game's value, and the adversary its negative."""
    for env_id, sign in ((MAKER, 1.0), (ADVERSARY, -1.0)):
        env = gymnasium.make(env_id, reward="expected", **SMALL)
        policy = baselines.optimal_policy(env)
        assert policy.optimum == pytest.approx(sign * game_value(env).upper, abs=1e-9)
        played = baselines.rollout(env, policy, episodes=20_000, seed=5)
        returns = played.groupby("episode")["reward"].sum().to_numpy()
        check_mean(returns, policy.optimum, alarms=1e-3, checks=2)
