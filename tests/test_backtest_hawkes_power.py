"""The backtest of the intraday power market and its commands: tapes by hand, a slow replay, policies, wrong input.

False alarms. Seeds are fixed. The one statistical check (slow) is within 4 standard errors: a change of seed fails it
with probability 6e-5.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mmgym  # noqa: F401
from mmgym.agents.cli import main
from mmgym.agents.commands.command import UsageError
from mmgym.baselines.hawkes_power.backtest import (
    ALPHAS,
    QuoteRule,
    backtest,
    closed_form,
    measures,
    named_rule,
    observed,
    table_2,
)
from mmgym.baselines.hawkes_power.closed_forms import corollary_3, join_best
from mmgym.calibration.hawkes_power import calibrate, market_arguments
from mmgym.calibration.hawkes_power_tape import (
    EVENT_TYPES,
    TAPE_COLUMNS,
    PowerTape,
    TapeParameters,
    read_power_tape,
    side_file,
    simulate_power_tapes,
)
from mmgym.models import hawkes, hawkes_flow
from mmgym.models.hawkes_power import Params

POWER, FLOW = "mmgym/HawkesPower-v0", "mmgym/HawkesFlow-v0"
SIDE = {"start_bid": 3480, "start_ask": 3520, "tick": 0.01, "product": "H11", "delivery_date": "2015-04-01"}
SIDE |= {"window": "Late", "horizon": 2.0}

# The backtest tape of the reference, and its result: profit 0.80 EUR, inventory 1, volume 5
HAND = """
0,0.2,MO_BUY,3480,3520,3520,5.0
1,0.4,ASK_DOWN,3480,3510,,1.0
2,0.7,MO_SELL,3470,3510,3475,8.0
3,1.1,MO_SELL,3470,3510,3470,2.0
4,1.3,BID_UP,3480,3510,,1.0
5,1.6,MO_BUY,3480,3530,3525,9.0
6,1.9,MO_SELL,3480,3530,3480,1.0
"""
HAND_FILLS = [(0.2, -1, 3520), (0.7, 1, 3480), (1.1, 1, 3470), (1.6, -1, 3510), (1.9, 1, 3480)]


def write(path: Path, rows: str = HAND, **changes: Any) -> Path:
    path.write_text(",".join(TAPE_COLUMNS) + "\n" + rows.strip() + "\n", encoding="utf-8")
    side_file(path).write_text(json.dumps(SIDE | changes), encoding="utf-8")
    return path


def tape_of(folder: Path, rows: str = HAND, **changes: Any) -> PowerTape:
    return read_power_tape(write(folder / "tape.csv", rows, **changes))


def fixed(bid: Any, ask: Any, limit: int = 10, **changes: Any) -> QuoteRule:
    """Constant distances from the mid in ticks, or functions of (time_left, inventory, spread, rates)."""

    def distances(*state: Any) -> Any:
        sides = [side(*state) if callable(side) else np.full(len(state[0]), side) for side in (bid, ask)]
        return 0.01 * np.stack(sides, axis=-1)

    values: dict[str, Any] = dict.fromkeys(("base_rate", "initial_rates", "decay"), np.ones(6))
    values |= {"excitation": np.zeros(6), "inventory_limit": limit, "tick": 0.01}
    return QuoteRule(start=lambda: distances, **(values | changes))


JOIN = closed_form(Params.create(), join_best)


def fills_of(result: Any) -> list[tuple[float, int, int]]:
    return list(result.fills[["time", "change", "price"]].itertuples(index=False, name=None))


# The procedure


def test_the_hand_tape_of_the_reference(tmp_path: Path) -> None:
    result = backtest([tape_of(tmp_path)], JOIN, interval=0.5)
    row = result.windows.iloc[0]
    assert row["pnl"] == pytest.approx(0.7999999999999972, abs=1e-12)
    assert (row["inventory"], row["volume"], row["bought"], row["sold"]) == (1, 5, 3, 2)
    assert (row["product"], row["delivery_date"], row["window"]) == ("H11", "2015-04-01", "Late")
    assert fills_of(result) == HAND_FILLS
    assert result.decisions["time"].tolist() == [0.0, 0.2, 0.5, 0.7, 1.0, 1.1, 1.5, 1.6, 1.9]


def test_prices_are_fixed_within_a_window(tmp_path: Path) -> None:
    rows = """
    0,0.1,ASK_UP,3480,3560,,1.0
    1,0.2,MO_BUY,3480,3560,3560,1.0
    2,0.3,MO_BUY,3480,3560,3560,1.0
    3,0.9,ASK_DOWN,3480,3500,,1.0
    4,1.5,MO_BUY,3480,3510,3510,1.0
    """.replace("    ", "")
    result = backtest([tape_of(tmp_path, rows)], JOIN, interval=1.0)
    # at 3520 until the fill at 0.2, then at 3560 (the order at 0.3), at 3500 from 1.0 on, not from 0.9
    assert fills_of(result) == [(0.2, -1, 3520), (0.3, -1, 3560), (1.5, -1, 3500)]
    asks = result.decisions.set_index("time")["ask"]
    assert asks.to_dict() == {0.0: 3520, 0.2: 3560, 0.3: 3560, 1.0: 3500, 1.5: 3510}
    assert result.windows["pnl"].iloc[0] == pytest.approx(0.01 * (3520 + 3560 + 3500 - 3 * 3510))


def test_an_event_at_the_end_of_a_window_belongs_to_it(tmp_path: Path) -> None:
    rows = "0,0.5,ASK_DOWN,3480,3500,,1.0\n1,0.7,MO_BUY,3480,3500,3500,1.0\n2,0.9,MO_BUY,3480,3500,3500,1.0"
    result = backtest([tape_of(tmp_path, rows)], JOIN, interval=0.7)
    # the order at exactly 0.7 meets the quote of time 0 (3520), the one after it that of 0.7
    assert fills_of(result) == [(0.9, -1, 3500)]
    assert result.decisions["time"].tolist() == pytest.approx([0.0, 0.7, 0.9, 1.4])
    # 3 * 0.7 is below 2.1 in binary
    tape = tape_of(tmp_path, "0,1.0,ASK_DOWN,3480,3500,,1.0\n1,2.1,MO_BUY,3480,3520,3520,1.0", horizon=2.8)
    assert fills_of(backtest([tape], fixed(20, 20), interval=0.7)) == [(2.1, -1, 3510)]


def test_orders_must_reach_the_quote(tmp_path: Path) -> None:
    rows = "0,0.1,MO_BUY,3480,3524,3524,1.0\n1,0.2,ASK_DOWN,3480,3520,,1.0\n2,0.3,MO_SELL,3476,3520,3476,1.0"
    for distance, expected in ((24.0, [(0.1, -1, 3524), (0.3, 1, 3478)]), (24.5, []), (np.inf, [])):
        assert fills_of(backtest([tape_of(tmp_path, rows)], fixed(distance, distance), interval=1.0)) == expected


def test_quotes_are_rounded_away_from_the_mid(tmp_path: Path) -> None:
    tape = tape_of(tmp_path, HAND.replace("3480,3520,3520", "3480,3521,3521"), start_ask=3521)
    first = backtest([tape], fixed(20.5, 20.5), interval=2.0).decisions.iloc[0]
    assert (first["bid"], first["ask"]) == (3480, 3521)
    first = backtest([tape], fixed(20.51, 20.6), interval=2.0).decisions.iloc[0]
    assert (first["bid"], first["ask"]) == (3479, 3522)


def test_inventory_limit_and_liquidation(tmp_path: Path) -> None:
    rows = "\n".join(f"{k},{0.1 * k},MO_BUY,3480,3520,3520,1.0" for k in range(4))
    result = backtest([tape_of(tmp_path, rows)], fixed(20, 20, limit=2), interval=1.0)
    assert fills_of(result) == [(0.0, -1, 3520), (0.1, -1, 3520)]
    assert result.windows["inventory"].iloc[0] == -2
    assert result.windows["pnl"].iloc[0] == 0.0  # bought back at the ask, 3520
    quiet = result.decisions["ask"].isna()
    np.testing.assert_array_equal(quiet, result.decisions["inventory"] == -2)
    assert result.decisions["bid"].notna().all()


def test_a_rule_sees_the_state_of_the_tape(tmp_path: Path) -> None:
    rates, excitation, decay = np.linspace(0.5, 1.0, 6), np.linspace(1.0, 2.0, 6), np.linspace(2.0, 3.0, 6)
    start = rates + 0.25
    seen: list[tuple[Any, ...]] = []

    def look(*state: Any) -> Any:
        seen.append(tuple(np.array(part) for part in state))
        return np.full(1, 20.0)

    tape = tape_of(tmp_path)
    rule = fixed(20.0, look, base_rate=rates, excitation=excitation, decay=decay, initial_rates=start)
    result = backtest([tape], rule, interval=0.5)
    for (time_left, inventory, spread, shown), (_, row) in zip(seen, result.decisions.iterrows(), strict=True):
        now = row["time"]
        assert time_left[0] == pytest.approx(2.0 - now, abs=1e-12)
        assert (inventory[0], spread[0]) == (row["inventory"], row["best_ask"] - row["best_bid"])
        expected = rates + (start - rates) * np.exp(-decay * now)  # the sum of eq. (3), event by event
        for k, name in enumerate(EVENT_TYPES):
            past = tape.times(name)
            past = past[past <= now + 1e-9]
            expected[k] += (excitation[k] * np.exp(-decay[k] * (now - past))).sum()
        np.testing.assert_allclose(shown[0], expected, rtol=1e-12)


def slow_replay(tape: PowerTape, params: Params, interval: float, as_printed: bool) -> tuple[float, int, int]:
    """Another replay of Corollary 3: event by event, intensities as sums over the whole history."""
    base, jump, decay = params.base_rates, params.excitations, params.decays
    history: list[list[float]] = [[] for _ in range(6)]
    bid, ask, q, volume, cash = tape.start_bid, tape.start_ask, 0, 0, 0

    def quote(now: float) -> tuple[float, float]:
        rates = base + (np.array(params.initial_rates) - base) * np.exp(-decay * now)
        for k in range(6):
            rates[k] += sum(jump[k] * math.exp(-decay[k] * (now - t)) for t in history[k])
        d = corollary_3(params, tape.horizon - now, q, ask - bid, rates, as_printed=as_printed)
        below, above = math.floor((bid + ask) / 2 - d[0] / tape.tick), math.ceil((bid + ask) / 2 + d[1] / tape.tick)
        return (below if q < params.inventory_limit else -math.inf), (
            above if q > -params.inventory_limit else math.inf
        )

    own_bid, own_ask = quote(0.0)
    window = 0
    for event in tape.events.itertuples():
        while event.t_min > interval * (window + 1):
            window += 1
            own_bid, own_ask = quote(interval * window)
        bid, ask = int(event.best_bid), int(event.best_ask)
        history[EVENT_TYPES.index(event.type)].append(event.t_min)
        if event.type == "MO_BUY" and event.worst_price >= own_ask:
            q, cash, volume = q - 1, cash + int(own_ask), volume + 1
        elif event.type == "MO_SELL" and event.worst_price <= own_bid:
            q, cash, volume = q + 1, cash - int(own_bid), volume + 1
        else:
            continue
        own_bid, own_ask = quote(event.t_min)
    return tape.tick * (cash + q * (bid if q > 0 else ask)), q, volume


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return simulate_power_tapes(tmp_path_factory.mktemp("days"), days=6, seed=3)


@pytest.mark.long
@pytest.mark.parametrize("as_printed", [False, True])
def test_against_a_slow_replay(days: list[Path], as_printed: bool) -> None:
    tapes = [read_power_tape(path) for path in days[:3:2]]  # days of much trading
    params = Params.create(inventory_limit=2, terminal_penalty=0.01, largest_spread=150)
    name = "corollary_3_as_printed" if as_printed else "corollary_3"
    windows = backtest(tapes, named_rule(name, params), interval=0.4).windows
    for tape, row in zip(tapes, windows.itertuples(), strict=True):
        pnl, inventory, volume = slow_replay(tape, params, 0.4, as_printed)
        assert (row.inventory, row.volume) == (inventory, volume)
        assert row.pnl == pytest.approx(pnl, abs=1e-9)
        assert volume > 20


def test_tapes_do_not_influence_each_other(days: list[Path]) -> None:
    tapes = [read_power_tape(path) for path in days]
    rule = named_rule("corollary_3", Params.create(largest_spread=150))
    together = backtest(tapes, rule)
    for k, tape in enumerate(tapes):
        alone = backtest([tape], rule)
        pd.testing.assert_frame_equal(alone.windows, together.windows.iloc[[k]].reset_index(drop=True))
        ours = together.fills[together.fills["tape"] == k].reset_index(drop=True).assign(tape=0)
        pd.testing.assert_frame_equal(alone.fills, ours)


def test_corollary_3_of_the_reference(tmp_path: Path) -> None:
    rows = "0,59.0,MO_BUY,3480,3540,3540,1.0"
    tape = tape_of(tmp_path, rows, start_ask=3540, horizon=60.0)
    for name, distance in (("corollary_3", 0.898671602462793), ("corollary_3_as_printed", 0.8991621083843548)):
        first = backtest([tape], named_rule(name, Params.create()), interval=60.0).decisions.iloc[0]
        assert first["ask"] == math.ceil(3510 + 100 * distance)
        assert first["bid"] == math.floor(3510 - 100 * distance)


@pytest.mark.slow
def test_joining_the_best_quotes_earns_what_the_model_says(tmp_path: Path) -> None:
    six = (1.5, 1.35, 1.35, 1.5, 0.6, 0.6), (1.2, 1.2, 1.2, 1.2, 1.5, 1.5), (3.0,) * 6
    made = TapeParameters(*six, improvement=0.36, cancellation_move=20.0, order_move=40.0)
    paths = simulate_power_tapes(tmp_path, days=600, seed=8, parameters=made)
    result = backtest([read_power_tape(path) for path in paths], JOIN, interval=0.01)
    criterion = result.windows["pnl"] - 0.05 * result.windows["inventory"] ** 2
    fills = result.fills.assign(left=60.0 - result.fills["time"])
    held = fills.groupby("tape")["change"].cumsum()
    gap = fills["left"] - fills.groupby("tape")["left"].shift(-1).fillna(0.0)
    criterion -= 0.001 * (held**2 * gap).groupby(fills["tape"]).sum().reindex(range(600), fill_value=0.0)
    stderr = math.hypot(0.6, criterion.std() / math.sqrt(600))  # the reference: 26.8(6), from mean intensities
    assert abs(criterion.mean() - 26.8) < 4 * stderr + 0.4  # the tapes start without history: a lot or so less


# Policies


class Constant:
    """A policy that remembers how often it was asked, and keeps what it saw."""

    markov = False

    def __init__(self, action: float) -> None:
        self.action, self.seen, self.states, self.starts = action, [], [], []  # type: ignore[var-annotated]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        self.seen.append(np.array(observation))
        self.states.append(state)
        self.starts.append(np.array(episode_start))
        return np.full((len(observation), 2), self.action, np.float32), (0 if state is None else state + 1)


@pytest.mark.parametrize("env_id", [POWER, FLOW])
def test_policies_of_the_observation(env_id: str, days: list[Path]) -> None:
    tapes = [read_power_tape(path) for path in days[:3]]
    env = gymnasium.make(env_id)
    params: Any = env.unwrapped.params  # type: ignore[attr-defined]
    policy = Constant(-1.0)
    backtested = backtest(tapes, observed(policy, params), interval=1.0)
    pd.testing.assert_frame_equal(backtested.windows, backtest(tapes, JOIN, interval=1.0).windows)
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(policy.seen[0], np.tile(first, (3, 1)))
    space = env.observation_space
    assert all(space.contains(row) for batch in policy.seen for row in batch)
    assert policy.states == [None, *range(len(policy.states) - 1)]
    assert policy.starts[0].all()
    assert not np.any(policy.starts[1:])
    offset = 50  # ticks from the best quotes: action 0 is half the box of 4 / fill_decay
    asks = backtest(tapes, observed(Constant(0.0), params), interval=1.0).decisions
    whole = asks["ask"].notna() & asks["bid"].notna()
    assert ((asks["ask"] - asks["best_ask"])[whole] == offset).all()
    assert ((asks["best_bid"] - asks["bid"])[whole] == offset).all()


def test_named_policies_play_as_in_the_environment(days: list[Path]) -> None:
    tapes = [read_power_tape(path) for path in days[:3]]
    params = Params.create(largest_spread=150, fill_decay=2.0)
    import mmgym.baselines.hawkes_power as power

    policy = power.HawkesPowerBaseline(params).policies()["corollary_3"]()
    through = backtest(tapes, observed(policy, params)).decisions
    direct = backtest(tapes, named_rule("corollary_3", params)).decisions
    # float32 observations move a quote across a tick now and then; beyond 2 EUR/MWh the box ends
    reach = (direct["best_bid"] - direct["bid"]).fillna(0) <= 199
    same = through["bid"].eq(direct["bid"]) | direct["bid"].isna()
    assert same[reach].mean() > 0.99
    flow = hawkes_flow.Params.create()
    quotes = backtest(tapes, named_rule("corollary_3", flow)).decisions.iloc[0]
    # the reference's reduced market: 0.94044 at q = 0, a half-spread of 0.3; offsets from the best quotes are kept
    assert quotes["ask"] - quotes["best_ask"] == math.ceil(100 * (0.9404429711361559 - 0.3))


def test_the_spread_shown_is_bounded(tmp_path: Path) -> None:
    policy = Constant(-1.0)
    tape = tape_of(tmp_path)
    backtested = backtest([tape], observed(policy, Params.create(largest_spread=30, initial_spread=30)), interval=0.5)
    assert policy.seen[0][0, 2] == 1.0
    assert fills_of(backtested) == HAND_FILLS


# Parameters


def test_market_arguments_from_a_calibration(days: list[Path]) -> None:
    tapes = [read_power_tape(path) for path in days]
    fit = calibrate(days).group()
    arguments = market_arguments(fit, tapes)
    json.dumps(arguments)
    params = gymnasium.make(POWER, **arguments).unwrapped.params  # type: ignore[attr-defined]
    assert params.horizon == 60.0
    assert params.base_rate == tuple(fit.processes[name].base_rate.value for name in EVENT_TYPES)
    assert params.mean_move[1] == fit.mean_moves["BID_DOWN"].value
    assert params.mean_move[2] == fit.mean_moves["ASK_UP"].value
    assert params.improvement_ask == fit.improvements["ASK_DOWN"].value
    assert params.fill_decay_sell == fit.reaches["MO_SELL"].fill_decay.value
    assert params.reach_atom_sell == fit.estimates()["reach_atom_MO_SELL"][0].value
    assert params.largest_spread == 300
    wide = [tape.events.assign(best_ask=tape.events["best_bid"] + 2000) for tape in tapes[:1]]
    tape = PowerTape(**{**vars(tapes[0]), "events": wide[0]})
    assert market_arguments(fit, [tape])["largest_spread"] == 1000


def test_explosive_and_missing_estimates(days: list[Path]) -> None:
    from dataclasses import replace

    from mmgym.calibration.exponential import Estimate

    fit = calibrate(days).group()
    nothing = Estimate(math.nan, math.nan, math.nan, math.nan)
    process = replace(fit.processes["MO_BUY"], excitation=fit.processes["MO_BUY"].decay)
    silent = replace(fit.processes["BID_UP"], excitation=Estimate(0.0, 0.0, 0.0, 0.0), decay=nothing)
    fit = replace(
        fit,
        processes=fit.processes | {"MO_BUY": process, "BID_UP": silent},
        mean_moves=fit.mean_moves | {"BID_DOWN": nothing},
        improvements=fit.improvements | {"BID_UP": nothing},
    )
    arguments = market_arguments(fit)
    params = Params.create(**arguments)
    assert arguments["allow_explosive"] is True
    assert params.initial_rates == params.base_rate
    assert (params.mean_move[1], params.improvement_bid, params.decay[0]) == (1.0, 0.0, 1.0)


# Table 2


def test_measures_by_hand_and_by_scipy() -> None:
    row = measures([0.0, 0.0, 0.0, 4.0])
    expected = {"mean": 1.0, "std": 2.0, "Q5": 0.0, "Q95": 3.4, "skewness": 6 / 3**1.5, "kurtosis": 21 / 9}
    assert row == pytest.approx(expected, rel=1e-12)
    sample = np.random.default_rng(1).gamma(2.0, size=400) - 5.0
    row = measures(sample)
    assert row["skewness"] == pytest.approx(stats.skew(sample), rel=1e-12)
    assert row["kurtosis"] == pytest.approx(stats.kurtosis(sample, fisher=False), rel=1e-12)
    assert row["std"] == pytest.approx(pd.Series(sample).std(), rel=1e-12)
    assert row["Q5"] == pytest.approx(pd.Series(sample).quantile(0.05), rel=1e-12)
    alone, equal = measures([3.0]), measures([0.1, 0.1, 0.1])
    assert alone["mean"] == alone["Q5"] == 3.0
    for value in (alone["std"], alone["skewness"], equal["skewness"], equal["kurtosis"]):
        assert math.isnan(value)
    with pytest.raises(ValueError, match="no numbers"):
        measures([])


def test_table_2(tmp_path: Path) -> None:
    windows = backtest([tape_of(tmp_path)], JOIN, interval=0.5).windows
    table = table_2({"alpha = 0": windows, "alpha = 0.1": pd.concat([windows, windows])})
    assert table.columns.tolist() == ["indicator", "measure", "unit", "alpha = 0", "alpha = 0.1"]
    assert table["unit"].tolist() == [unit for unit in ("EUR", "MW", "MW") for unit in [unit] * 4 + ["n/a"] * 2]
    means = table[table["measure"] == "mean"].set_index("indicator")["alpha = 0.1"]
    assert means.to_dict() == pytest.approx({"PnL": 0.8, "Inventory": 1.0, "Volume": 5.0})


# Wrong input


def test_wrong_input(tmp_path: Path) -> None:
    tape = tape_of(tmp_path)
    with pytest.raises(ValueError, match="no tapes"):
        backtest([], JOIN)
    for interval in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"interval = .* must be positive"):
            backtest([tape], JOIN, interval=interval)
    with pytest.raises(ValueError, match=r"tick is 0\.01, that of the policy 0\.1"):
        backtest([tape], named_rule("join_best", Params.create(tick=0.1)))
    with pytest.raises(ValueError, match="horizon is 2 min, the policy knows 1 min"):
        backtest([tape], observed(Constant(0.0), Params.create(horizon=1.0)))
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="numbers >= 0"):
            backtest([tape], fixed(20.0, wrong))
    with pytest.raises(ValueError, match="shape"):
        backtest([tape], QuoteRule(**{**vars(JOIN), "start": lambda: lambda *_: np.zeros(2)}))
    with pytest.raises(ValueError, match=r"policy 'hope' is not one of: best, corollary_3, .*join_best"):
        named_rule("hope", Params.create())
    glft: Any = gymnasium.make("mmgym/GLFT-v0").unwrapped
    with pytest.raises(TypeError, match="not those of HawkesPower or HawkesFlow"):
        observed(Constant(0.0), glft.params)
    with pytest.raises(TypeError, match="not those of HawkesPower or HawkesFlow"):
        named_rule("join_best", glft.params)


# Commands


def run(kind: str, *words: Any) -> None:
    """A command, whose errors are raised."""
    assert main(["--traceback", kind, "hawkes_power", *(str(word) for word in words)]) == 0


def test_calibrate_command(days: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("calibrate", *days, "--output", tmp_path / "fit.json", "--plot", tmp_path / "fit.png", "--force")
    out = capsys.readouterr().out
    calibration = calibrate(days)
    for text in ("kappa+", "zeta_upsilon-", "gap_p_value", calibration.summary(), "H11 Late"):
        assert text in out
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    assert content["calibration"] == json.loads(json.dumps(calibration.to_dict()))
    assert "numpy" in content["provenance"]["versions"]
    for env_id, arguments in content["arguments"]["H11 Late"].items():
        assert f'gymnasium.make("{env_id}", **{json.dumps(arguments)})' in out
        gymnasium.make(env_id, **arguments)
    run("calibrate", *days, "--output", tmp_path / "fit.csv")
    assert len(pd.read_csv(tmp_path / "fit.csv")) == len(calibration.table())


def test_replay_of_parts_of_tapes(days: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The windows are those of the parts that are cut by hand; before and after an outage there is one each."""
    words = ["--policy", "join_best", "--fit-on", *days, "--alpha", 0, "--start", 600, "--windows", tmp_path / "w.csv"]
    run("replay", *days[:2], *words, "--end", 2400)
    for command in ("calibrate", "replay"):
        with pytest.raises(ValueError, match="session is not allowed with event tapes, which are windows"):
            run(command, *days[:2], "--session", "08:00-09:00")
    rule = named_rule("join_best", Params.create())
    parts = [read_power_tape(path).between(10.0, 40.0) for path in days[:2]]
    expected = backtest(parts, rule).windows["pnl"]
    assert pd.read_csv(tmp_path / "w.csv")["pnl"].to_numpy() == pytest.approx(expected.to_numpy())
    events = pd.read_csv(days[0])
    lossy = simulate_power_tapes(tmp_path, days=1, seed=1)[0]
    lossy.with_suffix(".json").write_text(days[0].with_suffix(".json").read_text())
    events[~events["t_min"].between(20.0, 30.0)].to_csv(lossy, index=False)
    capsys.readouterr()
    run("replay", lossy, *words)
    assert "1 gap without events" in capsys.readouterr().out
    whole, (start, end) = read_power_tape(days[0]), read_power_tape(lossy).pauses[0]
    parts = [whole.between(10.0, start), whole.between(end, 60.0)]
    expected = backtest(parts, rule).windows["pnl"]
    assert pd.read_csv(tmp_path / "w.csv")["pnl"].to_numpy() == pytest.approx(expected.to_numpy())


def test_backtest_command(days: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = simulate_power_tapes(tmp_path, days=5, seed=9)
    words = ["--policy", "corollary_3", "join_best", "--fit-on", *other, "--interval", 1, "--set", "inventory_limit=3"]
    run("replay", *days, *words, "--output", tmp_path / "r.json", "--windows", tmp_path / "w.csv")
    out = capsys.readouterr().out
    assert "6 tapes: H11 Late (6)" in out
    assert "fitted to 5 other tapes" in out
    assert "corollary_3, Late (6 windows, one observation each)" in out
    windows = pd.read_csv(tmp_path / "w.csv")
    assert len(windows) == 2 * 4 * 6
    tapes = [read_power_tape(path) for path in days]
    fit = calibrate(other).group()
    columns = {}
    for alpha in ALPHAS:
        params = Params.create(**market_arguments(fit, tapes), terminal_penalty=alpha, inventory_limit=3)
        columns[f"alpha = {alpha:g}"] = backtest(tapes, named_rule("corollary_3", params), interval=1.0).windows
        own = windows[(windows["policy"] == "corollary_3") & (windows["alpha"] == alpha)]
        np.testing.assert_allclose(own["pnl"], columns[f"alpha = {alpha:g}"]["pnl"], atol=1e-9)
    assert columns["alpha = 0"]["inventory"].abs().max() <= 3
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert content["interval"] == 1
    rows = [row for row in content["tables"] if row["policy"] == "corollary_3"]
    for row, (_, expected) in zip(rows, table_2(columns).iterrows(), strict=True):
        assert row["measure"] == expected["measure"]
        for head in columns:
            assert row[head] == pytest.approx(expected[head], nan_ok=True)


def test_backtest_command_with_the_reduced_market(
    days: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env", FLOW, "--policy", "corollary_3", "--alpha", 0.05, "--interval", 2]
    run("replay", *days, *words, "--output", tmp_path / "r.csv")
    assert "in sample" in capsys.readouterr().out
    tapes = [read_power_tape(path) for path in days]
    params = hawkes_flow.Params.create(**calibrate(days).kwargs(), terminal_penalty=0.05)
    expected = backtest(tapes, named_rule("corollary_3", params), interval=2.0).windows["pnl"].mean()
    table = pd.read_csv(tmp_path / "r.csv")
    assert table.loc[0, "alpha = 0.05"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("env_id", [POWER, FLOW])
def test_backtest_command_with_a_model(env_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmgym.adapters.sb3 import make_sb3_env
    from mmgym.agents.config import load_config
    from mmgym.agents.train import build_model, save_model

    text = f"{env_id}: {{n_envs: 2, n_timesteps: 8, policy: MlpPolicy, n_steps: 4, batch_size: 8, gamma: 1.0}}"
    (tmp_path / "ppo.yml").write_text(text, encoding="utf-8")
    config = load_config(str(tmp_path / "ppo.yml"), env_id)
    arguments = {"terminal_penalty": 0.02}
    model = build_model(config, make_sb3_env(env_id, 2, **arguments), 0, None)
    save_model(tmp_path / "run" / "model", model, config, env_id, arguments)
    run("replay", write(tmp_path / "t.csv"), "--policy", tmp_path / "run", "--output", tmp_path / "r.csv")
    assert "alpha = 0.02" in capsys.readouterr().out
    params: Any = gymnasium.make(env_id, **arguments).unwrapped.params  # type: ignore[attr-defined]
    expected = backtest([read_power_tape(tmp_path / "t.csv")], observed(model, params)).windows
    assert pd.read_csv(tmp_path / "r.csv").loc[0, "alpha = 0.02"] == pytest.approx(expected["pnl"].iloc[0], abs=1e-9)


def test_wrong_commands(days: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.csv or \.json"):
        run("calibrate", days[0], "--output", tmp_path / "r.txt")
    with pytest.raises(UsageError, match=r"must end in \.csv or \.json"):
        run("replay", days[0], "--output", tmp_path / "r.txt")
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        run("replay", days[0], "--windows", tmp_path / "r.json")
    with pytest.raises(ValueError, match="policy 'hope' is not one of"):
        run("replay", *days, "--policy", "hope", "--alpha", 0)
    mid = simulate_power_tapes(tmp_path, product="H15", window="Mid", days=1, seed=9)
    with pytest.raises(ValueError, match=r"'H15' and window 'Mid'.*not calibrated; there are H11 Late"):
        run("replay", *mid, "--fit-on", *days)
    with pytest.raises(ValueError, match="terminal_penalty"):
        run("replay", *days, "--alpha", -1)
    with pytest.raises(FileNotFoundError):
        run("replay", tmp_path / "none.csv")
    with pytest.raises(UsageError, match="--queue, --folder: not for a replay of event tapes of the power market"):
        run("replay", days[0], "--queue", "log", "--folder", tmp_path)
    with pytest.raises(ValueError, match="event tapes are replayed with"):
        run("replay", days[0], "--env", "mmgym/GLFT-v0")


def test_intensities_return_to_their_mean() -> None:
    """The start of a rule is the stationary intensity, unless the environment has another one."""
    rule = named_rule("corollary_3", Params.create())
    np.testing.assert_allclose(
        rule.initial_rates, hawkes.stationary_rate(rule.base_rate, rule.excitation, rule.decay), rtol=1e-12
    )
    params = Params.create(initial_rates=list(Params.create().base_rate))
    np.testing.assert_array_equal(named_rule("join_best", params).initial_rates, params.base_rate)
