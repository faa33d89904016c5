"""The 95 % intervals of the calibrations cover, with clustered orders, gaps, rounding to half ticks and bounce.

60 simulated tapes of each kind (a dozen in the reduced test). Every interval must hold the truth in 90 to 98 % of the
tapes, all parameters of a kind together. One by one the count of 60 is held within the two-sided binomial interval at a
chance of 1e-3 for all of a kind together (at 95 %). The share of all is an average over parameters and tapes, with a
standard error of 1 % at most for nine or more nearly independent parameters: outside 90 to 98 % about once in 400
changes of seed at 95 %. The reduced tests check lower bounds alone, at 1e-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mmgym.baselines import score
from mmgym.baselines.policy import CallablePolicy
from mmgym.baselines.replay import replay, rules_of
from mmgym.baselines.replay.metrics import HORIZONS, fills_by_depth, metrics
from mmgym.calibration import glft, hawkes_power, tick_spread
from mmgym.calibration.adverse_selection import AdverseSelection
from mmgym.calibration.hawkes import fit_hawkes
from mmgym.calibration.hawkes_power_tape import EVENT_TYPES, illustrative, read_power_tape, simulate_power_tapes
from mmgym.calibration.tick_spread_simulation import simulate_own_quotes, simulate_tape
from mmgym.models import hawkes
from mmgym.models.tick_spread import Params
from mmgym.tapes.level1 import TAPE_COLUMNS
from mmgym.tapes.selection import Selection

TAPES = 60
FEW, LONG = pytest.param(12, marks=pytest.mark.long), pytest.param(TAPES, marks=pytest.mark.slow)
TICK, SECONDS, STEP = 0.01, 2400.0, 0.5
OUTAGE = (900.0, 1500.0)
VOLATILITY, DECAY = 0.006, {"bid": 35.0, "ask": 50.0}
ORDERS = {"bid": (0.2, 0.6, 1.0), "ask": (0.3, 1.2, 2.4)}  # base rate, excitation, decay: dispersion 6.25 and 4
QUEUE, SIZE = 20.0, 3.0
Covered = dict[str, list[bool]]


def check(covered: Covered, tapes: int) -> None:
    """Counts one by one and together (the chances are in the module's docstring)."""
    counts = {name: int(np.sum(hits)) for name, hits in covered.items()}
    law, share = stats.binom(tapes, 0.95), 1e-3 / (2 * len(counts))
    if tapes < TAPES:
        assert min(counts.values()) >= law.ppf(1e-4 / len(counts)), counts
        return
    assert all(law.ppf(share) <= count for count in counts.values()), counts
    together = np.mean([count / tapes for count in counts.values()])
    assert 0.90 <= together <= 0.98, (together, counts)


def note(covered: Covered, name: str, estimate: Any, truth: float) -> None:
    covered.setdefault(name, []).append(bool(estimate.lower <= truth <= estimate.upper))


def note_all(covered: Covered, name: str, estimates: Any, truth: np.ndarray, mask: np.ndarray | None = None) -> None:
    hits = (estimates.lower <= truth) & (truth <= estimates.upper)
    for index in np.ndindex(*truth.shape):
        if mask is None or mask[index]:
            covered.setdefault(f"{name}{list(index)}", []).append(bool(hits[index]))


def clustered_tape(seed: int) -> pd.DataFrame:
    """Hawkes orders of exponential reach; the mid is rounded to ticks and bounces by one; ten minutes are lost."""
    random = np.random.default_rng(seed)
    times = np.arange(0.0, SECONDS + STEP / 2, STEP)
    price = 100 + VOLATILITY * np.sqrt(STEP) * random.normal(size=times.size).cumsum()
    bid = np.rint(price / TICK - 0.5).astype(int) + random.choice([-1, 0, 0, 1], times.size)
    quotes = {"time_s": times, "event": "quote", "bid": np.round(bid * TICK, 2), "ask": np.round((bid + 1) * TICK, 2)}
    sizes = {"bid_size": random.exponential(QUEUE, times.size), "ask_size": random.exponential(QUEUE, times.size)}
    parts = [pd.DataFrame(quotes | sizes)]
    for number, (side, sign) in enumerate((("bid", -1), ("ask", 1))):
        when = hawkes.simulate(*ORDERS[side], SECONDS, seed=2 * seed + number).times
        best = bid[np.searchsorted(times, when) - 1] + number
        worst = best + sign * np.floor(random.exponential(1 / DECAY[side], when.size) / TICK)
        size = random.exponential(SIZE, when.size)
        for price, share in ((best, 0.5), (worst, 0.5)):  # two trades at one time stamp are one order
            trades = {"time_s": when, "event": "trade", "price": np.round(price * TICK, 2), "size": share * size}
            parts.append(pd.DataFrame(trades | {"side": "sell" if sign < 0 else "buy"}))
    tape = pd.concat(parts, ignore_index=True).sort_values("time_s", kind="stable", ignore_index=True)
    return tape[~tape["time_s"].between(*OUTAGE)].fillna({"side": ""})[list(TAPE_COLUMNS)]


@pytest.mark.parametrize("tapes", [FEW, LONG])
def test_intervals_of_glft_cover(tmp_path: Path, tapes: int) -> None:
    """Rate and decay are those of the Hawkes process that reaches half a tick and of its geometric reach."""
    covered: Covered = {}
    for seed in range(tapes):
        path = tmp_path / "tape.csv"
        clustered_tape(seed).to_csv(path, index=False)
        calibration = glft.calibrate(path)
        assert calibration.findings[0].name == "gaps" and calibration.mid.duration <= SECONDS - 600
        for side in ("bid", "ask"):
            fit, (base, jump, decay) = getattr(calibration, side), ORDERS[side]
            rate = base / (1 - jump / decay) * np.exp(DECAY[side] * TICK / 2)
            note(covered, f"fill_rate_{side}", fit.fill_rate, rate)
            note(covered, f"fill_decay_{side}", fit.fill_decay, DECAY[side])
        assert calibration.sizes is not None
        note(covered, "volatility", calibration.mid.volatility, VOLATILITY)
        note(covered, "drift", calibration.mid.drift, 0.0)
        for side in ("bid", "ask"):
            note(covered, f"queue_{side}", getattr(calibration.sizes, f"queue_{side}"), QUEUE)
            note(covered, f"order_size_{side}", getattr(calibration.sizes, f"order_size_{side}"), SIZE)
    check(covered, tapes)


IMPACT, DRIFT_SIZE, PRESSURE_DECAY, ORDER_RATE = 0.012, 0.02, 0.1, 0.15


def impact_tape(seed: int) -> pd.DataFrame:
    """Poisson orders move the mid by ``IMPACT`` at once, and ``DRIFT_SIZE`` in all afterwards; rounding is dithered."""
    random = np.random.default_rng(1000 + seed)
    when = np.sort(random.uniform(0, SECONDS, random.poisson(2 * ORDER_RATE * SECONDS)))
    sign = np.concatenate([random.choice([-1, 1], when.size), np.zeros(int(SECONDS / 0.2) + 1)])
    every = np.concatenate([when, np.arange(0.0, SECONDS + 0.1, 0.2)])
    order = np.argsort(every)
    every, sign = every[order], sign[order]
    gaps, waiting, moved = np.diff(every, prepend=0.0), 0.0, 0.0
    mid = np.empty(every.size)
    for i, (gap, own) in enumerate(zip(gaps, sign, strict=True)):
        left = waiting * np.exp(-PRESSURE_DECAY * gap)
        moved += waiting - left + IMPACT * own
        waiting = left + DRIFT_SIZE * own
        mid[i] = moved
    mid += 100 + 0.002 * (np.sqrt(gaps) * random.normal(size=gaps.size)).cumsum()
    bid = np.rint(mid / TICK - 0.5 + random.uniform(-0.5, 0.5, mid.size)).astype(int)
    quotes = {"time_s": every, "event": "quote", "bid": np.round(bid * TICK, 2), "ask": np.round((bid + 1) * TICK, 2)}
    place = np.flatnonzero(sign)
    side = sign[place]
    best = bid[place - 1] + (side > 0)
    worst = best + side * np.floor(random.exponential(1 / 50.0, place.size) / TICK)
    trades = {"time_s": every[place], "event": "trade", "price": np.round(worst * TICK, 2), "size": 1.0}
    trades["side"] = np.where(side > 0, "buy", "sell")
    parts = [pd.DataFrame(trades), pd.DataFrame(quotes | {"bid_size": 1.0, "ask_size": 1.0, "side": ""})]
    tape = pd.concat(parts, ignore_index=True).sort_values("time_s", kind="stable", ignore_index=True)
    return tape[~tape["time_s"].between(*OUTAGE)][list(TAPE_COLUMNS)]


@pytest.mark.parametrize("tapes", [FEW, LONG])
def test_intervals_of_adverse_selection_cover(tmp_path: Path, tapes: int) -> None:
    """Both sides are Poisson, so that what follows a fill is its own impact alone; quotes are 0.1 s old on average."""
    covered: Covered = {}
    for seed in range(tapes):
        path = tmp_path / "tape.csv"
        impact_tape(seed).to_csv(path, index=False)
        calibration = glft.calibrate(path).adverse_selection
        assert isinstance(calibration, AdverseSelection)
        both = calibration.drifts[(calibration.drifts["side"] == "both") & (calibration.drifts["horizon"] != 0.1)]
        for row in both[both["depth"] == both["depth"].min()].itertuples():
            truth = IMPACT - DRIFT_SIZE * np.expm1(-PRESSURE_DECAY * max(row.horizon - 0.1, 0.0))
            note(covered, f"drift at {row.horizon:g} s", row, truth)
        note(covered, "impact", calibration.law.impact, IMPACT)
        note(covered, "pressure_drift", calibration.law.pressure_drift, DRIFT_SIZE * PRESSURE_DECAY)
        note(covered, "pressure_decay", calibration.law.pressure_decay, PRESSURE_DECAY)
    check(covered, tapes)


def chain_market() -> Params:
    """Spreads that last differently, on a clock of two pieces."""
    transitions = [[0.8, 0.15, 0.05], [0.5, 0.2, 0.3], [0.4, 0.6, 0.0]]
    return Params.create(
        spread_transitions=transitions,
        clock_rate=[[0.0, 3.0], [1800.0, 1.5]],
        fill_rate_best=[0.1, 0.08, 0.06],
        fill_rate_improved=[0.1, 0.2, 0.15],
        horizon=3600.0,
        num_steps=3600,
    )


@pytest.mark.parametrize("tapes", [FEW, LONG])
def test_intervals_of_tick_spread_cover(tapes: int) -> None:
    """The mid lies on half ticks of 0.6 standard deviations of a second; ten minutes are lost."""
    params = chain_market()
    covered: Covered = {}
    transitions = np.array(params.spread_transitions)
    fill_rates = np.stack([params.bid_rates, params.ask_rates])
    for seed in range(tapes):
        tape = simulate_tape(params, seed=seed, quote_rate=2.0)
        log = simulate_own_quotes(params, tape, seed=seed + 7000)
        lost = tape["time_s"].between(*OUTAGE)
        calibration = tick_spread.calibrate(tape[~lost], own_quotes=log, num_spreads=3, clock_pieces=[1800.0])
        assert calibration.chain.by_spread and calibration.own_quotes is not None and calibration.mid is not None
        assert calibration.findings[0].name == "gaps" and calibration.end == pytest.approx(3000.0, abs=5)
        fastest = int(np.argmax(calibration.chain.exit_rates.value))
        assert fastest == 2
        mask = np.ones((3, 3), dtype=bool)
        mask[fastest, fastest] = False  # the one that is left fastest makes the clock
        note_all(covered, "spread_transitions", calibration.chain.spread_transitions, transitions, mask)
        note_all(covered, "clock_rate", calibration.chain.clock_rates, np.array([3.0, 1.5]))
        note_all(covered, "fill_rate", calibration.own_quotes.rates, fill_rates, calibration.own_quotes.seconds > 0)
        note(covered, "volatility", calibration.mid.volatility, params.volatility)
        for side in ("bid", "ask"):
            note(covered, f"queue_{side}", getattr(calibration.sizes, f"queue_{side}"), 200.0)
            note(covered, f"order_size_{side}", getattr(calibration.sizes, f"order_size_{side}"), 120.0)
    check(covered, tapes)


POWER_DAYS, POWER_OUTAGE = 20, (20.0, 30.0)  # minutes
LONG_DAYS = 1000  # whose averages stand for the truth: their errors are a seventh of those of a record


def power_truths(folder: Path) -> dict[str, float]:
    """Parameters by the names of the estimates; averages over the book's states are those of many days."""
    p, values = illustrative(), {}
    for k, name in enumerate(EVENT_TYPES):
        values |= {f"base_rate_{name}": p.base_rate[k], f"excitation_{name}": p.excitation[k]}
        values |= {f"decay_{name}": p.decay[k], f"branching_ratio_{name}": p.excitation[k] / p.decay[k]}
    for name in ("MO_BUY", "MO_SELL"):
        values |= {f"fill_decay_{name}": p.fill_decay, f"first_level_share_{name}": p.first_level_share}
        values[f"reach_atom_{name}"] = p.first_level_share
    values |= {f"improvement_{name}": p.improvement for name in ("BID_UP", "ASK_DOWN")}
    days = [read_power_tape(path) for path in simulate_power_tapes(folder, days=LONG_DAYS, seed=10**6)]
    values["half_spread"] = float(np.mean([day.mean_half_spread() for day in days]))
    for name in EVENT_TYPES:
        moves = np.concatenate([day.moves(name) for day in days])
        values[f"impact_{name}"] = moves.mean() * p.tick / 2
        if name not in ("BID_UP", "ASK_DOWN"):
            values[f"mean_move_{name}"] = moves[moves > 0].mean()
    return values


@pytest.mark.slow
def test_intervals_of_hawkes_power_cover(tmp_path: Path) -> None:
    """Records of twenty days, ten minutes of each of which are lost; not always is that long beside other pauses."""
    truths = power_truths(tmp_path / "long")
    covered: Covered = {}
    for seed in range(TAPES):
        paths = simulate_power_tapes(tmp_path / "days", days=POWER_DAYS, seed=seed)
        for path in paths:
            events = pd.read_csv(path)
            events[~events["t_min"].between(*POWER_OUTAGE)].to_csv(path, index=False)
        calibration = hawkes_power.calibrate(paths, selection=Selection(gap=240.0)).group()
        assert calibration.findings[0].name == "gaps"
        estimates = calibration.estimates()
        for name, truth in truths.items():
            note(covered, name, estimates[name][0], truth)
    check(covered, TAPES)


PIECES, DAY_LENGTH, DAYS, STAMP = (0.3, 0.6, 1.5), 60.0, 15, 1e-3  # base rates of thirds of a day; minutes
JUMP, FADE = 1.2, 3.0


def day_of_pieces(random: np.random.Generator) -> np.ndarray:
    """A Hawkes process by its families: immigrants at the base rates, children after exponential times; rounded."""
    length = DAY_LENGTH / len(PIECES)
    counts = random.poisson(np.array(PIECES) * length)
    parents = (np.repeat(np.arange(len(PIECES)), counts) + random.uniform(size=counts.sum())) * length
    times = [parents]
    while parents.size:
        parents = np.repeat(parents, random.poisson(JUMP / FADE, parents.size))
        parents = parents + random.exponential(1 / FADE, parents.size)
        parents = parents[parents < DAY_LENGTH]
        times.append(parents)
    return np.unique(np.round(np.concatenate(times), 3))


@pytest.mark.parametrize("tapes", [FEW, LONG])
def test_intervals_of_base_rates_in_pieces_cover(tapes: int) -> None:
    """Fifteen days on a clock of 60 ms; pieces need whole days, gaps are refused."""
    covered: Covered = {}
    truths = {"excitation": JUMP, "decay": FADE, "branching_ratio": JUMP / FADE, "base_rate": float(np.mean(PIECES))}
    truths |= {f"base_rate[{number + 1}]": rate for number, rate in enumerate(PIECES)}
    for seed in range(tapes):
        random = np.random.default_rng(2000 + seed)
        fit = fit_hawkes([day_of_pieces(random) for _ in range(DAYS)], DAY_LENGTH, base_pieces=len(PIECES), unit="min")
        estimates = fit.estimates()
        for name, truth in truths.items():
            note(covered, name, estimates[name], truth)
    check(covered, tapes)


BOOK_SECONDS, BOOK_TICK, HALF = 1200.0, 0.05, 400  # half a spread so wide that trades print within it
LOST = (500.0, 620.0)
GLFT = {
    "fill_rate": 1.0,
    "fill_decay": 1.0,
    "volatility": 0.3,
    "horizon": 10.0,
    "num_steps": 1000,
    "inventory_limit": 1,
}


def book(path: Path, seed: int, clustered: bool) -> Path:
    """Orders of exponential reach, Poisson or of a Hawkes process, around a mid on ticks; two minutes are lost."""
    random = np.random.default_rng(3000 + seed)
    # moves just before decisions, and rare: at the limit a moved quote waits until the old one is cancelled
    times = np.maximum(np.arange(0.0, BOOK_SECONDS + 0.5) - 1e-6, 0.0)
    mid = np.rint(GLFT["volatility"] * random.normal(size=times.size).cumsum() / BOOK_TICK) + 2000
    quotes = {"time_s": times, "event": "quote", "bid": (mid - HALF) * BOOK_TICK, "ask": (mid + HALF) * BOOK_TICK}
    parts = [pd.DataFrame(quotes | {"bid_size": 1.0, "ask_size": 1.0})]
    for side, sign in (("sell", -1), ("buy", 1)):
        if clustered:
            when = hawkes.simulate(*ORDERS["bid"], BOOK_SECONDS, seed=5 * seed + sign).times
        else:
            when = np.sort(random.uniform(0.0, BOOK_SECONDS, random.poisson(GLFT["fill_rate"] * BOOK_SECONDS)))
        reach = np.floor(random.exponential(1 / GLFT["fill_decay"], when.size) / BOOK_TICK)
        price = mid[np.searchsorted(times, when, side="right") - 1] + sign * np.minimum(reach, HALF - 1)
        trades = {"time_s": when, "event": "trade", "price": price * BOOK_TICK, "size": 1.0, "side": side}
        parts.append(pd.DataFrame(trades))
    tape = pd.concat(parts, ignore_index=True).sort_values("time_s", kind="stable", ignore_index=True)
    tape = tape[~tape["time_s"].between(*LOST)][list(TAPE_COLUMNS)]
    tape.to_csv(path, index=False, float_format="%.9f")
    return path


@pytest.mark.parametrize("tapes", [FEW, LONG])
@pytest.mark.parametrize("clustered", [False, True], ids=["Poisson", "clustered"])
def test_intervals_of_replays_cover(tmp_path: Path, clustered: bool, tapes: int) -> None:
    """Own orders are first and filled whole, so that the exact score is the truth; depths are whole ticks.

    Where orders are clustered the depth is constant and nothing limits the inventory, so that fills are those of the
    law in the mean; what else a policy earns of them has no closed form.
    """
    pytest.importorskip("hftbacktest", reason="the extra replay is not installed")
    from mmgym.adapters.hftbacktest import Assumptions, read_recordings

    base, jump, decay = ORDERS["bid"]
    changes = {"fill_rate": base / (1 - jump / decay), "inventory_limit": 100} if clustered else {}
    env = gymnasium.make("mmgym/GLFT-v0", **(GLFT | changes)).unwrapped
    lean = 0.0 if clustered else 0.5

    def act(observations: Any) -> Any:
        held = env.to_state(observations)[1]
        return env.from_quotes(np.stack([1.0 + lean * held, 1.0 - lean * held], axis=-1))

    policy = CallablePolicy(act, markov=True)
    promise = score(env, policy)
    truths = {
        "P&L an hour": 360 * promise.pnl,
        "P&L a fill": promise.pnl / promise.fills,
        "fills an hour": 360 * promise.fills,
        "depth of a fill": promise.pnl / promise.fills,
        "mean |inventory|": promise.mean_absolute_inventory,
    }
    truths |= {f"move after a fill, {horizon:g} s": 0.0 for horizon in HORIZONS}
    covered: Covered = {}
    assumed = Assumptions(fills="whole", order_latency=0.0, response_latency=0.0)
    for seed in range(tapes):
        parts = read_recordings([book(tmp_path / "tape.csv", seed, clustered)], tick=BOOK_TICK, lot=1.0)
        assert len(parts) == 2
        sessions = [replay(env, policy, part, assumed, interval=0.01) for part in parts]
        for row in fills_by_depth(sessions, rules_of(env)).itertuples():
            note(covered, f"{row.side} at {row.depth:.2f}", row, 1.0)
        if not clustered:
            figures, _ = metrics(sessions)
            for name, truth in truths.items():
                note(covered, name, figures.loc[name], truth)
    check(covered, tapes)
