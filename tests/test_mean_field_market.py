"""The mean-field market: arguments, populations, observations and the step law of both roles.

Statistical checks use fixed seeds; each has a false-alarm rate of 1e-4.
"""

import json
import math

import gymnasium
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm

from mmgym.checking import check_market
from mmgym.envs.mean_field import MeanFieldMakerEnv, MeanFieldMakerVectorEnv, MeanFieldTakerEnv, MeanFieldTakerVectorEnv
from mmgym.models import mean_field
from mmgym.models.mean_field import MakerParams, TakerParams
from mmgym.models.mean_field_game import Game

TAKER, MAKER = "mmgym/MeanFieldTaker-v0", "mmgym/MeanFieldMaker-v0"
SMALL = {"inventory_limit": 30.0, "signal_limit": 1, "horizon": 0.4, "num_steps": 10}
COUPLED = {**SMALL, "impact": 0.02, "initial_law": [20.0, 1]}
FALSE_ALARM = 1e-4  # of each statistical check


def batch(env_class, count, **arguments):
    return env_class(count, info="full", autoreset_mode="Disabled", **arguments)


# --- Parameters -------------------------------------------------------------------------------------------------------


def test_defaults_are_the_paper_s_table():
    p = TakerParams.create()
    assert (p.volatility, p.impact, p.signal_rate_up, p.signal_rate_down, p.signal_limit) == (8.0, 5e-5, 1.5, 1.5, 4)
    assert p.game.taker_fill_rate.tolist() == [70.0, 70.0]
    assert p.game.maker_fill_rate.tolist() == [100.0, 100.0]
    assert p.game.taker_fill_decay.tolist() == p.game.maker_fill_decay.tolist() == [19.0 / 8.0] * 2
    assert (p.order_size, p.game.inventory_limit, p.limit, p.max_depth) == (10.0, 120.0, 12, 1.5)
    assert MakerParams.create().lots.tolist() == p.lots.tolist() == list(range(-12, 13))
    assert p.running_penalty == pytest.approx(1e-4 * 64)
    assert MakerParams.create().running_penalty == pytest.approx(5e-4 * 64)
    assert (p.horizon, p.num_steps, p.step_length) == (5.0, 500, 0.01)
    assert p.initial_law == ((0.0, 0.0, 1.0),)
    assert p.game == Game.create()
    assert p != MakerParams.create()


BAD = {
    "volatility": (-1.0, "x"),
    "impact": (-1e-9, 0.0501, 0.1, math.nan),
    "signal_rate": (-1.0, [1.0], [1.0, -1.0], "x"),
    "signal_limit": (-1, 1.5, 11, True),
    "taker_fill_rate": (0.0, math.inf, [70.0, 0.0], [70.0]),
    "taker_fill_decay": (0.0, -1.0),
    "maker_fill_rate": (0.0, "x"),
    "maker_fill_decay": (0.0, math.nan),
    "order_size": (0.0, 7.0),
    "inventory_limit": (0.0, 15.0, 510.0, [120.0], [120.0, 5.0], [120.0, -10.0]),
    "maker_inventory_limit": (0.0, 15.0, [510.0, 10.0], "x"),
    "maker_initial_inventory": (130.0, 5.0, None),
    "taker_risk_aversion": (-1.0,),
    "maker_risk_aversion": (-1.0, "x"),
    "max_depth": (0.0, 30.0),
    "horizon": (0.0, math.inf),
    "num_steps": (0, 1.5, 5001, 10),
    "initial_law": (
        "middle",
        [0.0],
        [5.0, 0],
        [0.0, 0.5],
        [130.0, 0],
        [0.0, 5],
        [[0.5, 0.5]],
        [[1.0 / 225 + 1e-4] * 9] * 25,
        [[-0.1] * 9] * 25,
        [[0.0] * 9] * 24,
        [[0.0] * 9] * 25,
        3,
    ),
    "boundary_quotes": ("all", None),
    "population": ("nobody.npz", 1, None),
    "reward": ("both",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_refused_arguments_are_named(name, value):
    for env_class in (MeanFieldTakerEnv, MeanFieldMakerVectorEnv):
        with pytest.raises(ValueError, match=rf"^({name}|inventory_limit|initial_law)\b"):
            env_class(**{name: value})


def test_impact_beyond_the_tested_range_is_refused():
    with pytest.raises(ValueError, match=r"tested up to .* 0\.05 here"):
        Game.create(impact=0.1)
    Game.create(impact=0.05)
    Game.create(impact=0.5, order_size=1.0, inventory_limit=12.0)


def test_initial_laws():
    table = np.zeros((7, 3))
    table[0, 0], table[3, 1], table[6, 2] = 0.25, 0.5, 0.25
    p = TakerParams.create(**{**SMALL, "initial_law": table.tolist()})
    assert p.initial_law == ((-3.0, -1.0, 0.25), (0.0, 0.0, 0.5), (3.0, 1.0, 0.25))
    assert p.game.initial == pytest.approx(table.T)
    count = 4000
    envs = batch(MeanFieldTakerVectorEnv, count, **{**SMALL, "initial_law": table.tolist()})
    observations, info = envs.reset(seed=3)
    _, inventory, signal = envs.to_state(observations)
    assert set(zip(inventory.tolist(), signal.tolist(), strict=True)) == {(-3, -1), (0, 0), (3, 1)}
    counts = [(inventory == q).sum() for q in (-3, 0, 3)]
    assert stats.chisquare(counts, count * np.array([0.25, 0.5, 0.25])).pvalue > FALSE_ALARM
    assert (info["cash"] == 0.0).all()
    assert TakerParams.create(**{**SMALL, "initial_law": [-20.0, -1]}).start_inventory == -2
    maker = batch(MeanFieldMakerVectorEnv, 5, **{**SMALL, "initial_law": table.tolist()})
    assert (maker.reset(seed=0)[1]["inventory"] == 0.0).all()  # the law is the takers'


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 2, "horizon": 0.02, "signal_limit": 0},
        {**COUPLED, "num_steps": 4, "reward": "expected", "boundary_quotes": "zero"},
        {**COUPLED, "num_steps": 5, "population": "constant", "signal_rate": [3.0, 1.0]},
        {**SMALL, "num_steps": 5, "initial_law": [[1.0 / 21] * 3] * 7, "max_depth": 1.0},
    ],
)
def test_conformance_with_other_arguments(arguments):
    check_market(MeanFieldTakerVectorEnv, **arguments)
    check_market(MeanFieldMakerEnv, **arguments)


# --- Observations -----------------------------------------------------------------------------------------------------


def test_the_maker_sees_the_crowd():
    env = MeanFieldMakerEnv(**COUPLED, info="full")
    flow, p = env.params.flow, env.params
    observation, _ = env.reset(seed=0)
    seen = np.array([observation, *(env.step(np.zeros(2, np.float32))[0] for _ in range(p.num_steps))])
    assert seen[:-1, 2:4] * p.max_depth == pytest.approx(flow.mean_quotes, abs=1e-6)
    drift = p.impact * flow.movement.sum(axis=1) / p.step_length  # mean over the coming step
    assert np.abs(drift).max() > 1.0
    assert seen[:-1, 4] == pytest.approx(drift / (np.abs(drift) + 1.0), abs=1e-6)
    assert (seen[-1, 2:] == seen[-2, 2:]).all()


def test_a_maker_is_filled_as_the_mean_quotes_say():
    """Bids against the takers' mean ask, asks against their mean bid."""
    p = MakerParams.create(**COUPLED)
    mean = p.flow.mean_quotes
    assert p.factors()[:, 0] == pytest.approx(100.0 * np.exp(-2.375 * mean[:, 1]))
    assert p.factors()[:, 1] == pytest.approx(100.0 * np.exp(-2.375 * mean[:, 0]))
    assert (TakerParams.create(**COUPLED).factors() == 70.0).all()


def test_nobody_who_quotes_fills_nobody():
    """All takers start at the upper bound: no bids, so the maker sells nothing in the first step."""
    arguments = {**SMALL, "initial_law": [30.0, 0], "population": "constant"}
    p = MakerParams.create(**arguments)
    assert p.flow.quoting[0].tolist() == [0.0, 1.0]
    assert p.factors()[0, 1] == 0.0
    assert (p.factors()[1:] > 0.0).all()
    envs = batch(MeanFieldMakerVectorEnv, 200, **arguments)
    observations, _ = envs.reset(seed=0)
    assert np.isfinite(observations).all()
    info = envs.step(np.full((200, 2), -1.0, np.float32))[-1]
    assert (info["ask_fills"] == 0).all()
    assert info["bid_fills"].sum() > 0
    zero = MakerParams.create(**arguments, boundary_quotes="zero")
    assert zero.factors()[0, 1] == pytest.approx(100.0)  # a quote of 0 for each, as the paper writes it


# --- The step law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_class", [MeanFieldTakerVectorEnv, MeanFieldMakerVectorEnv])
def test_wealth_adds_up(env_class):
    envs = batch(env_class, 50, **{**COUPLED, "impact": 0.01})
    p, random = envs.params, np.random.default_rng(0)
    _, info = envs.reset(seed=5)
    start = info["inventory"].copy()
    returns = np.zeros(50)
    for _ in range(p.num_steps):
        _, rewards, _, _, info = envs.step(random.uniform(-1, 1, (50, 2)).astype(np.float32))
        returns += rewards
    assert info["cash"] + info["inventory"] * info["mid"] == pytest.approx(info["gain"])
    assert returns == pytest.approx(info["gain"] - p.running_penalty * info["inventory_square"])
    assert (np.abs(info["inventory"]) <= p.limit * p.order_size).all()
    assert start == pytest.approx(20.0 if p.role == "taker" else 0.0)


def test_without_fills_the_gain_is_that_of_the_mid():
    """Deep quotes where fills are few: the inventory stays, and its gain is the crowd's and the signal's drift."""
    arguments = {**COUPLED, "population": "constant", "taker_fill_rate": 5.0, "num_steps": 4, "horizon": 0.1}
    envs = batch(MeanFieldTakerVectorEnv, 400, **arguments, reward="expected")
    p = envs.params
    envs.reset(seed=1)
    still, gain, moved = np.ones(400, bool), np.zeros(400), 0.0
    for n in range(p.num_steps):
        _, rewards, _, _, info = envs.step(np.ones((400, 2), np.float32))
        still &= (info["bid_fills"] + info["ask_fills"]) == 0
        gain += rewards
        moved += p.impact * p.flow.movement[n].sum()
    quiet = still & (info["signal"] == 1)
    expected = 20.0 * (moved + 1.0 * p.horizon) - p.running_penalty * 400.0 * p.horizon
    assert quiet.sum() > 100
    assert np.median(gain[quiet]) == pytest.approx(expected)  # a few signals went and came back


def test_the_crowd_s_impact_inside_a_step():
    """The polynomial that kernels evaluate is the flow's."""
    p = TakerParams.create(**COUPLED)
    points = np.linspace(0.0, 1.0, 7)
    expected = p.impact * p.flow.powers(points)
    values = [[mean_field.impact_one(row, x) for x in points] for row in p.flow_rows[:-1]]
    assert np.array(values) == pytest.approx(expected, abs=1e-15)
    assert p.flow_rows[:-1, mean_field.STEP_IMPACT] == pytest.approx(expected[:, -1])


def test_signals_follow_their_generator():
    envs = batch(MeanFieldTakerVectorEnv, 5000, **{**SMALL, "signal_limit": 2, "signal_rate": [5.0, 2.0]})
    envs.reset(seed=2)
    for _ in range(envs.params.num_steps):
        info = envs.step(np.ones((5000, 2), np.float32))[-1]
    law = expm(envs.params.horizon * envs.params.game.signal_generator)[2]
    counts = np.bincount(info["signal"] + 2, minlength=5)
    assert stats.chisquare(counts, 5000 * law).pvalue > FALSE_ALARM


def test_one_step_against_a_matrix_exponential(check_mean):
    """Mean fills and mean gain of one step at fixed depths, with a signal and without impact."""
    arguments = {**SMALL, "impact": 0.0, "num_steps": 1, "horizon": 0.1, "initial_law": [20.0, 1]}
    envs = batch(MeanFieldTakerVectorEnv, 20_000, **arguments, reward="expected")
    p = envs.params
    depths = np.array([0.3, 0.1])
    envs.reset(seed=4)
    action = envs.from_quotes(np.tile(depths, (20_000, 1)))
    _, rewards, terminated, _, info = envs.step(action)
    assert terminated.all()
    rates = 70.0 * np.exp(-2.375 * depths)
    count = 7 * 3
    walk = np.diag(np.full(6, rates[0]), 1) + np.diag(np.full(6, rates[1]), -1)
    walk -= np.diag(walk.sum(axis=1))
    generator = np.kron(p.game.signal_generator, np.eye(7)) + np.kron(np.eye(3), walk)
    inventory, signal = np.tile(p.game.inventory, 3), np.repeat(p.game.signal, 7)
    bid, ask = rates[0] * (inventory < 30.0), rates[1] * (inventory > -30.0)
    parts = np.stack(
        [10.0 * (bid * depths[0] + ask * depths[1]) + signal * inventory - 0.0064 * inventory**2, bid, ask], axis=1
    )
    system = np.zeros((count + 3, count + 3))
    system[:count, :count], system[:count, count:] = generator, parts
    expected = expm(0.1 * system)[2 * 7 + 5, count:]
    for sample, value in zip((rewards, info["bid_fills"], info["ask_fills"]), expected, strict=True):
        check_mean(sample.astype(float), value, alarms=FALSE_ALARM)


@pytest.mark.parametrize("env_class", [MeanFieldTakerVectorEnv, MeanFieldMakerVectorEnv])
def test_one_step_with_sides_and_roles_that_differ(env_class, check_mean):
    """Mean fills and mean gain at fixed depths, by a matrix exponential (the asymmetry of the paper's Remark 3.1)."""
    arguments = {
        "taker_fill_rate": [70.0, 45.0], "taker_fill_decay": [2.0, 2.9], "maker_fill_rate": [110.0, 80.0],
        "maker_fill_decay": [2.6, 2.1], "inventory_limit": [30.0, 10.0], "maker_inventory_limit": [20.0, 40.0],
        "maker_initial_inventory": -30.0, "initial_law": [20.0, 0], "signal_limit": 0, "impact": 0.0,
        "num_steps": 1, "horizon": 0.1, "population": "constant",
    }  # fmt: skip
    envs, depths = batch(env_class, 20_000, **arguments, reward="expected"), np.array([0.3, 0.1])
    envs.reset(seed=4)
    _, rewards, _, _, info = envs.step(envs.from_quotes(np.tile(depths, (20_000, 1))))
    if env_class is MeanFieldTakerVectorEnv:
        held, start, penalty = np.arange(-10.0, 31.0, 10.0), 20.0, 1e-4 * 64.0
        rates = np.array([70.0, 45.0]) * np.exp(-np.array([2.0, 2.9]) * depths)
    else:  # her bid meets the takers' ask, 1 / 2.9, and her ask their bid
        held, start, penalty = np.arange(-40.0, 21.0, 10.0), -30.0, 5e-4 * 64.0
        rates = np.array([110.0, 80.0]) * np.exp(-np.array([2.6, 2.1]) * (depths + np.array([1.0 / 2.9, 0.5])))
    count = len(held)
    walk = np.diag(np.full(count - 1, rates[0]), 1) + np.diag(np.full(count - 1, rates[1]), -1)
    bid, ask = rates[0] * (held < held[-1]), rates[1] * (held > held[0])
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = walk - np.diag(walk.sum(axis=1))
    system[:count, count:] = np.stack([10.0 * (bid * depths[0] + ask * depths[1]) - penalty * held**2, bid, ask], 1)
    expected = expm(0.1 * system)[np.flatnonzero(held == start)[0], count:]
    for sample, value in zip((rewards, info["bid_fills"], info["ask_fills"]), expected, strict=True):
        check_mean(sample.astype(float), value, alarms=FALSE_ALARM)


def test_reward_kinds_share_the_fills():
    runs = []
    for reward in ("pnl", "expected"):
        envs = batch(MeanFieldMakerVectorEnv, 30, **COUPLED, reward=reward)
        envs.reset(seed=9)
        total = np.zeros(30)
        for _ in range(envs.params.num_steps):
            _, rewards, _, _, info = envs.step(np.zeros((30, 2), np.float32))
            total += rewards
        runs.append((total, info))
    assert np.array_equal(runs[0][1]["inventory"], runs[1][1]["inventory"])
    assert runs[0][0] - runs[1][0] == pytest.approx(runs[0][1]["price_gain"])


def test_presets_and_ids():
    for suffix, changed in (
        ("", {}),
        ("FastSignals", {"signal_rate_up": 15.0}),
        ("Coupled", {"impact": 0.02}),
        ("StrongImpact", {"impact": 0.05}),
    ):
        for role in ("Taker", "Maker"):
            params = gymnasium.make(f"mmgym/MeanField{role}{suffix}-v0").unwrapped.params
            assert params.role == role.lower()
            assert params.num_steps == 500
            for name, value in changed.items():
                assert getattr(params, name) == value


# --- Populations from files -------------------------------------------------------------------------------------------


def table_file(path, controls, weights=None, **description):
    parts = {"controls": controls, "description": np.array(json.dumps({"format": 1, "role": "taker", **description}))}
    if weights is not None:
        parts["weights"] = weights
    np.savez(path, **parts)
    return str(path)


def test_a_population_of_a_file(tmp_path):
    states = 7 * 3
    controls = np.full((10, states, 2), 1.0 / 2.375)
    path = table_file(tmp_path / "crowd.npz", controls)
    for env_class in (MeanFieldTakerEnv, MeanFieldMakerEnv):
        from_file, constant = env_class(**COUPLED, population=path), env_class(**COUPLED, population="constant")
        assert from_file.params.flow_rows == pytest.approx(constant.params.flow_rows)
    mixed = np.stack([controls, controls], axis=2)
    drawn = table_file(tmp_path / "drawn.npz", mixed, np.full((10, states, 2), 0.5))
    rows = MakerParams.create(**COUPLED, population=drawn).flow_rows
    assert rows == pytest.approx(constant.params.flow_rows, abs=1e-8)


def test_populations_that_are_refused(tmp_path):
    states = 7 * 3
    good = np.full((10, states, 2), 0.4)
    bad = {
        "shape": table_file(tmp_path / "a.npz", good[:, 1:]),
        "shape ": table_file(tmp_path / "b.npz", good[1:]),
        "max_depth": table_file(tmp_path / "c.npz", 5.0 * good),
        "finite": table_file(tmp_path / "d.npz", np.nan * good),
        "takers": table_file(tmp_path / "e.npz", good, role="maker"),
        "probabilities": table_file(tmp_path / "f.npz", np.stack([good] * 2, axis=2), np.full((10, states, 2), 0.6)),
    }
    (tmp_path / "g.npz").write_bytes(b"nothing")
    bad["not a table file"] = str(tmp_path / "g.npz")
    np.savez(tmp_path / "h.npz", description=np.array("{}"), controls=np.array([object()]))
    bad["not a table file "] = str(tmp_path / "h.npz")
    for reason, path in bad.items():
        with pytest.raises(ValueError, match=rf"^population = .*{reason.strip()}"):
            TakerParams.create(**COUPLED, population=path)


def test_a_population_file_that_changes_is_noticed(tmp_path):
    path = table_file(tmp_path / "crowd.npz", np.full((10, 21, 2), 0.4))
    params = MakerParams.create(**COUPLED, population=path)
    table_file(tmp_path / "crowd.npz", np.full((10, 21, 2), 0.5))
    with pytest.raises(ValueError, match="has changed"):
        _ = params.flow_rows
    assert MakerParams.create(**COUPLED, population=path) != params
