"""Reproductions of Avellaneda & Stoikov (2008) and Guéant, Lehalle & Fernandez-Tapia (2013).

False alarms. Seeds are fixed; a change of seed fails one of the 12 checks of simulated paths within 4 standard errors
with probability 8e-4.
"""

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmgym import baselines
from mmgym.baselines import frozen
from mmgym.baselines.glft import continuous_depths, continuous_values, stationary_depths
from mmgym.baselines.pnl_law import pnl_law
from mmgym.baselines.reproduce import PAPERS, avellaneda_stoikov_2008, gueant_2013, market_making_note
from mmgym.baselines.reproduce.artifacts import write_table
from mmgym.models.glft import Params

# Exact reference of the recipe for gamma 0.1: profit, its standard deviation, that of the final inventory; and the same
# for Poisson fills in continuous time.
RECIPE = {
    ("inventory", "time-dependent"): ((64.893, 6.543, 2.927), (63.99, 7.29, 3.43)),
    ("symmetric", "time-dependent"): ((68.021, 13.268, 8.401), (68.03, 15.01, 9.59)),
    ("inventory", "constant"): ((64.220, 6.048, 2.926), (62.59, 6.77, 3.44)),
    ("symmetric", "constant"): ((68.635, 13.764, 8.836), (68.64, 16.03, 10.31)),
}
NOT_REPRODUCED = {
    (0.1, "inventory", "profit"),
    (0.1, "symmetric", "profit"),
    (0.01, "inventory", "profit"),
    (0.01, "inventory", "std_inventory"),
    (0.01, "symmetric", "profit"),
    (0.5, "inventory", "profit"),
    (0.5, "inventory", "std_profit"),
    (0.5, "symmetric", "profit"),
}


@pytest.mark.parametrize(("strategy", "reading"), RECIPE)
def test_rows_of_the_2008_table(strategy: str, reading: str) -> None:
    recipe, continuous = RECIPE[strategy, reading]
    row = avellaneda_stoikov_2008.recipe_row(0.1, strategy, reading)
    assert (row["profit"], row["std_profit"], row["std_inventory"]) == pytest.approx(recipe, abs=0.51e-3)
    assert row["mean_inventory"] == pytest.approx(0.0, abs=1e-12)
    assert row["spread"] == pytest.approx({"constant": 1.29077, "time-dependent": 1.49177}[reading], abs=0.51e-5)
    row = avellaneda_stoikov_2008.continuous_row(0.1, strategy, reading, 400)
    assert (row["profit"], row["std_profit"], row["std_inventory"]) == pytest.approx(continuous, abs=0.51e-2)


def test_no_reading_of_the_2008_quotes_earns_the_published_profit_for_the_largest_risk_aversion() -> None:
    profits = {
        (reading, floor): avellaneda_stoikov_2008.recipe_row(0.5, "inventory", reading, floor)["profit"]
        for reading in ("constant", "time-dependent")
        for floor in (-np.inf, 0.0)
    }
    assert profits["constant", -np.inf] == pytest.approx(23.9, abs=0.051)
    assert profits["time-dependent", -np.inf] == pytest.approx(48.6, abs=0.051)
    assert profits["constant", 0.0] == pytest.approx(51.0, abs=1.0)
    assert profits["time-dependent", 0.0] == pytest.approx(51.0, abs=1.0)


def test_recipe_with_bounds_and_penalty_has_the_reference_value() -> None:
    params = Params.create(
        volatility=2.0,
        fill_rate=140.0,
        fill_decay=1.5,
        horizon=1.0,
        num_steps=100,
        inventory_limit=10.0,
        running_penalty=0.2,
    )
    quote = np.full((100, 21, 2), 1.0 / 1.5)
    assert frozen.criterion_value(avellaneda_stoikov_2008.BernoulliProblem(params), quote) == pytest.approx(
        64.187, abs=0.51e-3
    )


@pytest.mark.parametrize("strategy", ["inventory", "symmetric"])
def test_simulated_recipe_agrees_with_the_exact_one(strategy: str) -> None:
    paths = 4000
    profit, inventory, history = avellaneda_stoikov_2008.simulate(0.1, strategy, "constant", paths, seed=11)
    exact = avellaneda_stoikov_2008.recipe_row(0.1, strategy, "constant")
    depths = np.zeros((1, 1, 2))
    simulated = avellaneda_stoikov_2008.simulated_row(depths, profit, inventory)
    for name in ("profit", "std_profit", "mean_inventory", "std_inventory"):
        assert abs(simulated[name] - exact[name]) < 4.0 * simulated[f"{name}_stderr"], name
    left = 1.0 - history["time"]
    lean = 0.1 * 4.0 * left * history["inventory"]
    np.testing.assert_allclose(history["reservation"], history["mid"] - lean, rtol=1e-13)
    half = np.log(1.0 + 0.1 / 1.5) / 0.1
    center = history["reservation"] if strategy == "inventory" else history["mid"]
    np.testing.assert_allclose([history["ask"], history["bid"]], [center + half, center - half], rtol=1e-13)


def test_law_of_the_recipe_agrees_with_simulated_paths() -> None:
    paths = 4000
    problem = avellaneda_stoikov_2008.BernoulliProblem(avellaneda_stoikov_2008.market(200, 40))
    left = 1.0 - np.arange(200)[:, None] / 200
    depths = avellaneda_stoikov_2008.recipe_quotes(0.1, "inventory", "time-dependent", left, problem.inventory)
    law = pnl_law(problem, depths)
    assert (law.mean, law.std) == pytest.approx((64.893, 6.543), abs=0.51e-3)
    profit, _, _ = avellaneda_stoikov_2008.simulate(0.1, "inventory", "time-dependent", paths, seed=12)
    for level in (0.05, 0.25, 0.5, 0.95):
        share = float((profit <= law.quantile(level)).mean())
        assert abs(share - level) < 4.0 * np.sqrt(level * (1.0 - level) / paths)


def check_artifacts(folder: Path, tables: dict[str, int], pictures: int) -> None:
    """Tables have so many rows or more, pictures are pictures, and nothing else is there."""
    for name, rows in tables.items():
        assert len(pd.read_csv(folder / name)) >= rows, name
    figures = sorted(folder.glob("*.png"))
    assert len(figures) == pictures
    for path in figures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000
    assert len(list(folder.iterdir())) == len(tables) + pictures


@pytest.mark.long
def test_quick_reproduction_of_2008(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = avellaneda_stoikov_2008.reproduce(tmp_path / "new", quick=True, progress=False)
    assert capsys.readouterr() == ("", "")
    check_artifacts(tmp_path / "new", {"tables.csv": 44, "printed_numbers.csv": 26, "path.csv": 200}, 4)
    numbers = pd.read_csv(tmp_path / "new" / "printed_numbers.csv")
    missing = numbers[~numbers["reproduced"]]
    assert set(missing["source"]) == {"published"}
    assert set(missing[["gamma", "strategy", "quantity"]].itertuples(index=False, name=None)) == NOT_REPRODUCED
    assert text.count("NOT reproduced") == len(NOT_REPRODUCED)
    assert "gamma 0.5, inventory, profit 33.92" in text


def check_2013(folder: Path, text: str, points: int, cells: int) -> None:
    tables = {
        "depths.csv": 61,
        "depths_over_time.csv": 601,
        "values.csv": 601,
        "comparative_statics.csv": 4 * points * 61,
        "policies.csv": 7,
        "numbers.csv": 11,
    }
    check_artifacts(folder, tables, 4)
    numbers = pd.read_csv(folder / "numbers.csv")
    # The Riccati quotes lose 0.000123 in the limit of many cells: 0.00013 is right to its digits and the cells' error.
    assert numbers["agrees"].all()
    assert "All agree" in text
    errors = numbers.set_index("quantity")["error"]
    assert (
        errors["loss of Riccati"] == errors["loss of constant"] == pytest.approx(1.15e-6 * (2000 / cells) ** 2, rel=0.1)
    )
    assert (errors[[name for name in errors.index if not name.startswith("loss")]] == 0.0).all()
    assert "Not checked" in text


@pytest.mark.long
def test_quick_reproduction_of_2013(tmp_path: Path) -> None:
    check_2013(tmp_path, gueant_2013.reproduce(tmp_path, quick=True, progress=False), points=9, cells=600)


@pytest.mark.slow
def test_full_reproduction_of_2013(tmp_path: Path) -> None:
    check_2013(tmp_path, gueant_2013.reproduce(tmp_path, progress=False), points=41, cells=2000)


@pytest.mark.slow
def test_full_reproduction_of_2008(tmp_path: Path) -> None:
    text = avellaneda_stoikov_2008.reproduce(tmp_path, progress=False)
    rows = pd.read_csv(tmp_path / "tables.csv").set_index(["gamma", "source", "strategy", "reading"])
    for (strategy, reading), references in RECIPE.items():
        for source, reference, decimals in zip(("exact", "continuous"), references, (3, 2), strict=True):
            row = rows.loc[(0.1, source, strategy, reading), ["profit", "std_profit", "std_inventory"]]
            assert tuple(row) == pytest.approx(reference, abs=0.51 * 10.0**-decimals)
    assert text.count("NOT reproduced") == len(NOT_REPRODUCED)


def test_losses_and_quotes_of_2013_have_the_reference_digits() -> None:
    params = gueant_2013.market(600)
    values = continuous_values(params)
    depths = continuous_depths(params, values)
    assert values[0, 30] == pytest.approx(1290.62509524680, rel=1e-13)
    quotes = [depths[0, 30, 0], depths[0, 30, 1], depths[0, 31, 0], depths[0, 31, 1]]
    reference = [3.3130454098, 3.3130454098, 3.3811680739, 3.2449191548]
    np.testing.assert_allclose(quotes, reference, rtol=0, atol=0.51e-10)
    losses = gueant_2013.policy_table(600).set_index("policy")["loss"]
    assert losses["optimal"] == pytest.approx(0.0, abs=2e-5)
    assert losses["Riccati"] == pytest.approx(0.00013, abs=1e-5)
    assert losses["closed form"] == pytest.approx(0.327, abs=0.51e-3)
    assert losses["Avellaneda-Stoikov"] == pytest.approx(15.399, abs=0.51e-3)
    assert losses["zero skew"] == pytest.approx(54.52, abs=0.51e-2)
    assert losses["constant"] == pytest.approx(54.92, abs=0.51e-2)


def test_statics_are_the_long_horizon_quotes_and_the_closed_form() -> None:
    table = gueant_2013.statics_table(3)
    assert (table.groupby("parameter")["value"].nunique() == 3).all()
    middle = {"sigma": 0.3, "A": 0.9, "k": 0.3, "gamma": 0.01}
    for symbol, value in middle.items():
        chosen = table[(table["parameter"] == symbol) & np.isclose(table["value"], value)].set_index("inventory")
        far = continuous_depths(gueant_2013.market(1), continuous_values(gueant_2013.market(600)))[0]
        np.testing.assert_allclose(chosen["bid"].to_numpy()[:-1], far[:-1, 0], atol=1e-6)
        np.testing.assert_allclose(chosen["ask"].to_numpy()[1:], far[1:, 1], atol=1e-6)
        assert np.isnan(chosen.loc[30, "bid"])
        assert np.isnan(chosen.loc[-30, "ask"])
    # The paper's formula, with the fill decay three times as large.
    sigma, fill_rate, k, gamma = 0.3, 0.9, 0.9, 0.01
    slope = np.sqrt(sigma**2 * gamma / (2.0 * k * fill_rate) * (1.0 + gamma / k) ** (1.0 + k / gamma))
    row = table[(table["parameter"] == "k") & np.isclose(table["value"], k)].set_index("inventory").loc[7]
    assert row["closed_bid"] == pytest.approx(np.log(1.0 + gamma / k) / gamma + slope * 7.5, rel=1e-12)
    assert row["closed_ask"] == pytest.approx(np.log(1.0 + gamma / k) / gamma - slope * 6.5, rel=1e-12)


def test_signs_of_the_comparative_statics() -> None:
    changes = gueant_2013.elasticities().set_index(["parameter", "formula"])
    signs = {"sigma": (-1, 1, 1, 1), "A": (1, -1, -1, -1), "k": (-1, -1, -1, -1), "gamma": (-1, -1, 1, -1)}
    for (parameter, _), row in changes.iterrows():
        assert tuple(np.sign(row.to_numpy())) == signs[parameter]
    # Finite differences of the exact quotes by hand, for volatility.
    params = gueant_2013.market(1)
    high = stationary_depths(params._replace(volatility=0.3 * 1.005))[40, 0]
    low = stationary_depths(params._replace(volatility=0.3 * 0.995))[40, 0]
    assert changes.loc[("sigma", "exact"), "bid, q = 10"] == pytest.approx(high - low, rel=1e-9)


def test_every_paper_has_its_module() -> None:
    for module in PAPERS.values():
        reproduce = importlib.import_module(f"mmgym.baselines.reproduce.{module}").reproduce
        parameters = inspect.signature(reproduce).parameters
        assert list(parameters) == ["folder", "quick", "progress"]
        assert parameters["quick"].default is False
        assert parameters["progress"].default is True


@pytest.mark.parametrize("module", [avellaneda_stoikov_2008, gueant_2013])
def test_missing_matplotlib_names_the_extra(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"mmgym\[plot\]"):
        module.reproduce(tmp_path / "none", quick=True, progress=False)
    assert not (tmp_path / "none").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    write_table(pd.DataFrame({"a": [1.0, 2.0]}), path)
    before = path.read_text()

    def half_written(_: pd.DataFrame, target: Path, **arguments: object) -> None:
        Path(target).write_text("a\n1")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_table(pd.DataFrame({"a": [3.0]}), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


# --- The note with errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_corrected_recursion_converges_at_first_order(seed: int) -> None:
    """To the exact value of quotes that move at once: halved steps halve the error, which extrapolation removes."""
    random = np.random.default_rng(seed)
    params = Params.create(
        fill_rate=random.uniform(5.0, 40.0, 2).tolist(),
        fill_decay=random.uniform(1.0, 3.0, 2).tolist(),
        order_size=float(random.choice([1.0, 2.0])),
        inventory_limit=8,
        drift=random.uniform(-0.1, 0.1),
        running_penalty=random.uniform(0.0, 0.05),
        terminal_penalty=random.uniform(0.0, 0.05),
        horizon=1.0,
        num_steps=10,
    )
    exact = continuous_values(params, 1)[0]
    coarse, fine = (market_making_note.finite_differences(params, steps)[0][0] - exact for steps in (400, 800))
    assert np.abs(coarse).max() > 1e-4
    assert np.abs(2.0 * fine - coarse).max() < 0.02 * np.abs(coarse).max()
    depths = market_making_note.finite_differences(params, 3200)[1][0]
    expected = continuous_depths(params, exact)
    assert depths[:-1, 0] == pytest.approx(expected[:-1, 0], abs=2e-3)
    assert depths[1:, 1] == pytest.approx(expected[1:, 1], abs=2e-3)
    assert np.isinf([depths[-1, 0], depths[0, 1]]).all()


def test_what_the_corrected_recursion_refuses() -> None:
    params = Params.create(horizon=1.0, fill_rate=140.0, fill_decay=1.5, inventory_limit=10, num_steps=10)
    with pytest.raises(ValueError, match=r"num_steps = 50 is not allowed: .* must be more than"):
        market_making_note.finite_differences(params, 50)
    with pytest.raises(ValueError, match="utility = 'cara' is not allowed"):
        market_making_note.finite_differences(params._replace(utility="cara", risk_aversion=0.1), 1000)


def test_quotes_of_the_note_as_written() -> None:
    """Half the base earns e^0.5 / 2 of the best rate; the pseudo-code is the same as one on a circle of inventories."""
    free = {"running_penalty": 0.0, "inventory_limit": 60, "fill_rate": 20.0}
    env = baselines.catalogue.environment_of("mmgym/AvellanedaStoikov-v0", **free)
    written = market_making_note.policies(env)
    constant = baselines.score(env, baselines.paper_policies(env)["constant"]).value
    assert baselines.score(env, written["half_base"]).value / constant == pytest.approx(0.5 * np.exp(0.5), rel=1e-6)
    env = baselines.catalogue.environment_of(
        "mmgym/AvellanedaStoikov-v0", terminal_penalty=1e-3, num_steps=40, fill_rate=5.0
    )
    p, limit = env.params, 10
    v = -p.terminal_penalty * np.arange(-limit, limit + 1) ** 2
    for n in reversed(range(p.num_steps)):
        bid = 1.0 / (2.0 * p.fill_decay_bid) + np.roll(v, -1) - v
        ask = 1.0 / (2.0 * p.fill_decay_bid) + v - np.roll(v, 1)
        table = np.roll(np.stack([bid, ask], axis=1), limit, axis=0)  # the entry of q = 0 is the first
        played = market_making_note.policies(env)["pseudocode"].controls[n]  # type: ignore[attr-defined]
        assert played == pytest.approx(table.clip(*env.to_quotes(np.array([[-1.0], [1.0]]))), abs=1e-6)
        fills = p.fill_rate_bid * np.exp(-p.fill_decay_bid * np.stack([bid, ask]))
        v = v - p.step_length * (fills[0] * (np.roll(v, -1) - v - bid) + fills[1] * (np.roll(v, 1) - v + ask))
    with pytest.raises(ValueError, match="one fill rate"):
        market_making_note.policies("mmgym/AvellanedaStoikov-v0", fill_rate=[100.0, 140.0])
    with pytest.raises(TypeError, match="not the market of the note"):
        market_making_note.policies("mmgym/TickSpread-v0")


def test_the_page_of_errors_names_every_one(tmp_path: Path) -> None:
    text = market_making_note.reproduce(tmp_path, progress=False)
    written = pd.read_csv(tmp_path / "scores.csv").set_index(["criterion", "policy"])
    assert len(pd.read_csv(tmp_path / "errors.csv")) == 25
    assert all(f"{number}. " in text for number in range(1, 26))
    named = {each.policy for each in market_making_note.CORRECTIONS if each.policy}
    assert set(written.loc["running penalty"].index) == named | {"finite_differences"}
    assert (written["regret"] >= 0.0).all()
    assert written.loc["running penalty", "skill"]["finite_differences"] == pytest.approx(1.0, abs=1e-3)
    assert (tmp_path / "quotes.png").stat().st_size > 10_000
