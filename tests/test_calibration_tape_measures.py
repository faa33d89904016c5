"""What is measured on a tape: two-scale volatility, windows of depth, adverse selection, sizes, all by hand.

False alarms: volatilities within 4 standard errors of their truth, 6.3e-5 each, 4e-4 for the six of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmgym.agents.cli import main
from mmgym.calibration import glft
from mmgym.calibration.adverse_selection import fit_impact, measure, pressure_limit
from mmgym.calibration.block_intervals import BLOCKS, ratio_estimate, sandwich
from mmgym.calibration.book_sizes import book_sizes
from mmgym.calibration.depth_window import choose_window
from mmgym.calibration.exponential import fit_reaches
from mmgym.calibration.volatility import fit_brownian, fit_mid
from mmgym.tapes.level1 import TAPE_COLUMNS, best_quotes, market_orders


def test_the_two_scales_by_hand() -> None:
    """V_K less V_1, each over all pairs of a path without drift, over K - 1 is the variance per second."""
    random = np.random.default_rng(1)
    mid = random.normal(size=200).cumsum() + random.choice([-0.3, 0.3], 200)
    mid -= np.linspace(mid[0], mid[-1], 200)
    fit = fit_mid(np.arange(200.0), mid)
    assert fit.scales is not None and fit.scales[0] == 1.0
    lag = int(fit.scales[1])
    first, second = np.mean((mid[1:] - mid[:-1]) ** 2), np.mean((mid[lag:] - mid[:-lag]) ** 2)
    variance = (second - first) / (lag - 1)
    assert fit.volatility.value**2 == pytest.approx(variance)
    assert fit.noise**2 == pytest.approx(max((first - variance) / 2, 0.0))
    assert fit.signature is not None
    assert fit.signature["volatility"].iloc[0] == pytest.approx(np.sqrt(first))
    few = fit_mid(np.arange(50.0), mid[:50])
    assert few == fit_brownian(np.arange(50.0), mid[:50]) and few.scales is None


@pytest.mark.parametrize("kind", ["clean", "rounded", "coarse", "bounce", "strong", "gaps"])
def test_noise_is_not_volatility(kind: str) -> None:
    """A rounding of 0.6 and of 4 standard deviations of a change, bounces of a tick and of four deviations."""
    random = np.random.default_rng(7)
    number, volatility = 20_000, 0.008
    price = volatility * random.normal(size=number).cumsum()
    label, grid = np.zeros(number), {"rounded": 0.005, "coarse": 0.032}.get(kind, 0.0)
    if kind == "rounded":
        spread = random.integers(1, 7, number)
        price = (np.rint(price / 0.005 - spread / 2) + spread / 2) * 0.005
    elif kind == "coarse":
        price = np.rint(price / 0.032) * 0.032
    elif kind == "bounce":
        price += random.choice([-0.005, 0.005], number)
    elif kind == "strong":
        price += random.choice([-0.032, 0.032], number)
    elif kind == "gaps":
        label = np.repeat(np.arange(4.0), number // 4)
        price += 10 * label
    fit = fit_mid(np.arange(float(number)), price, label, grid=grid)
    assert abs(fit.volatility.value - volatility) < 4 * fit.volatility.stderr
    assert fit.volatility.stderr < 0.06 * volatility
    if kind in ("coarse", "bounce", "strong"):
        plain = fit_brownian(np.arange(float(number)), price)
        assert plain.volatility.lower > 1.2 * volatility


def test_a_mid_that_does_not_spread_has_no_volatility() -> None:
    """All of it is noise: whether longer changes are larger is chance, here they are not."""
    with pytest.raises(ValueError, match="does not spread with time"):
        fit_mid(np.arange(400.0), np.random.default_rng(1).choice([0.0, 0.01], 400))


def test_the_window_is_the_nearest_and_widest_in_which_the_law_holds() -> None:
    """Three orders in four stop at the touch: from the first tick behind it on the reach is exponential."""
    random = np.random.default_rng(2)
    time = random.uniform(0, 1000, 4000)
    beyond = np.where(random.random(4000) < 0.75, 0, 1 + np.floor(random.exponential(8.0, 4000)))

    def fit(low: float, high: float | None) -> list:
        reach = 0.005 + 0.01 * beyond
        return [fit_reaches(time, reach, start=0, end=1000, tick=0.01, minimum_depth=low, maximum_depth=high)] * 2

    assert choose_window(fit, 0.005, 0.01, None, None) == (0.015, None)
    assert choose_window(fit, 0.005, 0.01, 0.025, None) == (0.025, None)
    assert choose_window(fit, 0.005, 0.01, 0.005, 0.5) == (0.005, 0.5)  # as asked for, and rejected
    beyond[:] = np.where(beyond > 30, 200, beyond)  # few go on to the end of the book
    low, high = choose_window(fit, 0.005, 0.01, None, None)
    assert low == 0.015 and high is not None and high <= 0.315


def hand_tape() -> pd.DataFrame:
    rows = [
        [0.0, "quote", 99.0, 10.0, 101.0, 30.0, np.nan, np.nan, ""],
        [1.0, "trade", np.nan, np.nan, np.nan, np.nan, 101.0, 2.0, "buy"],
        [1.0, "quote", 100.0, 20.0, 102.0, 30.0, np.nan, np.nan, ""],
        [3.0, "quote", 101.0, 40.0, 103.0, 30.0, np.nan, np.nan, ""],
        [4.0, "trade", np.nan, np.nan, np.nan, np.nan, 101.0, 4.0, "sell"],
        [4.0, "quote", 100.0, 40.0, 102.0, 30.0, np.nan, np.nan, ""],
        [10.0, "quote", 100.0, 40.0, 102.0, 30.0, np.nan, np.nan, ""],
    ]
    return pd.DataFrame(rows, columns=list(TAPE_COLUMNS))


def test_drifts_and_sizes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mid 100 101 102 101 from 0 1 3 4 s: up 1, 1 and 2 after the buy at 1 s, down 1 after the sale at 4 s."""
    monkeypatch.setattr("mmgym.calibration.adverse_selection.FEWEST_FILLS", 1)
    tape = hand_tape()
    quotes, orders, bounds = [best_quotes(tape)], market_orders(tape), [[0.0, 10.0]]
    selection = measure(quotes, bounds, orders, tick=1.0, minimum_depth=1.0, horizons=[0.0, 1.0, 2.0, 8.0])
    assert selection is not None
    drifts = selection.drifts[selection.drifts["depth"] == 1.0].set_index(["side", "horizon"])
    assert drifts.loc["ask", "drift"].tolist() == [1.0, 1.0, 2.0, 1.0]
    assert drifts.loc["bid", "drift"].tolist()[:3] == [1.0, 1.0, 1.0]
    assert drifts.loc[("bid", 8.0), "fills"] == 0  # 12 s are beyond the tape
    assert drifts.loc[("both", 2.0), "drift"] == 1.5 and drifts.loc[("both", 2.0), "edge_left"] == -0.5
    sizes = book_sizes(quotes, bounds, orders, 1.0)
    assert sizes.queue_bid.value == pytest.approx((10 * 1 + 20 * 2 + 40 * 7) / 10)
    assert (sizes.queue_ask.value, sizes.order_size_ask.value, sizes.order_size_bid.value) == (30.0, 2.0, 4.0)


def test_the_impact_law_is_the_curve() -> None:
    """Drifts that lie on a curve, the same in all blocks but for a little noise, give its parameters."""
    horizons = np.array([0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
    random = np.random.default_rng(4)
    curve = 0.02 + 0.05 / 0.5 * (1 - np.exp(-0.5 * horizons))
    counts = np.full((BLOCKS, horizons.size), 40.0)
    law = fit_impact(horizons, counts * (curve + 1e-4 * random.normal(size=counts.shape)), counts)
    for estimate, truth in ((law.impact, 0.02), (law.pressure_drift, 0.05), (law.pressure_decay, 0.5)):
        assert estimate.value == pytest.approx(truth, rel=0.03)  # the decay is one of a grid
    assert law.curve(horizons) == pytest.approx(curve, rel=0.05)
    assert (pressure_limit(1.0, 0.25), pressure_limit(1.0, 100.0), pressure_limit(1e9, 1.0)) == (6, 2, 100)


def test_errors_over_blocks_by_hand() -> None:
    assert sandwich(np.ones((5, 1)), [[2.0]]).tolist() == [[2.0]]  # too few blocks: the model's
    scores = np.array([[1.0], [-1.0]] * 15)
    assert sandwich(scores, [[0.5]])[0, 0] == pytest.approx(0.25 * 30 * 30 / 29)
    ratio = ratio_estimate([1, 3], [1, 1])
    assert (ratio.value, ratio.stderr) == (2.0, 1.0)
    assert ratio.upper == pytest.approx(2 + 12.7062047)  # Student's quantile on one degree of freedom
    assert np.isnan(ratio_estimate([0], [0]).value) and np.isnan(ratio_estimate([3], [2]).stderr)


@pytest.mark.long
def test_the_command_writes_adverse_selection_and_refuses_what_is_rejected(tmp_path: Path, capsys) -> None:
    random = np.random.default_rng(3)
    times = np.arange(0.0, 600.0, 0.5)
    bid = 10_000 + np.rint(0.5 * random.normal(size=times.size).cumsum()).astype(int)
    quotes = {"time_s": times, "event": "quote", "bid": bid / 100, "bid_size": 1.0, "ask": (bid + 1) / 100}
    parts = [pd.DataFrame(quotes | {"ask_size": 1.0, "side": ""})]
    for number, side in enumerate(("sell", "buy")):
        when = np.sort(random.uniform(0, 600, 900))
        steps = np.where(random.random(900) < 0.5, random.geometric(0.7, 900) - 1, 10 * random.integers(0, 4, 900))
        price = bid[np.searchsorted(times, when, side="right") - 1] + number + (2 * number - 1) * steps
        parts.append(pd.DataFrame({"time_s": when, "event": "trade", "price": price / 100, "size": 1.0, "side": side}))
    tape = pd.concat(parts)[list(TAPE_COLUMNS)].sort_values("time_s", kind="stable")
    path, table, picture = tmp_path / "tape.csv", tmp_path / "drift.csv", tmp_path / "drift.png"
    tape.to_csv(path, index=False)
    words = ["calibrate", "glft", str(path), "--adverse-selection", str(table), "--adverse-selection", str(picture)]
    assert main([*words, "--output", str(tmp_path / "fit.json")]) == 0
    output = capsys.readouterr().out
    assert "REJECTED: exponential law of the bid" in output and "gymnasium.make(" not in output
    rows = {row["parameter"]: row for row in json.loads((tmp_path / "fit.json").read_text())}
    assert "rejected" in rows["fill_rate_bid"]["warning"]
    pd.testing.assert_frame_equal(pd.read_csv(table), glft.calibrate(path).adverse_selection.drifts)  # type: ignore[union-attr]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--force"]) == 0
    output = capsys.readouterr().out
    assert 'gymnasium.make("mmgym/GLFT-v0"' in output and 'gymnasium.make("mmgym/Impact-v0"' in output
