"""Pictures from tables: what is drawn is what the tables say, and the tables are what the markets say."""

import gymnasium
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from mmgym import plot
from mmgym.agents.cli import main
from mmgym.baselines import (
    optimal_policy,
    paper_policies,
    pnl_distribution,
    policy_cells,
    regret_maps,
    robustness,
    rollout,
    score,
)

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 10, "inventory_limit": 4.0}
TICK = "mmgym/TickSpread-v0"
COARSE = {"num_steps": 4, "lot": 100.0, "inventory_limit": 200.0}


def test_cells_are_quotes_and_values():
    env = gymnasium.make(AS, **SMALL)
    best, constant = optimal_policy(env), paper_policies(env)["constant"]
    cells = policy_cells(env, {"optimal": best, "constant": constant}, fractions=(0.0, 0.95))
    assert sorted(cells["step"].unique()) == [0, 9] and len(cells) == 2 * 2 * 9
    start = cells[(cells["step"] == 0) & (cells["inventory"] == 0)].set_index("policy")
    assert start.loc["optimal", "value"] == pytest.approx(best.optimum, rel=1e-9)
    assert start.loc["constant", "value"] == pytest.approx(score(env, constant).value, rel=1e-9)
    assert cells.groupby(["policy", "step"])["chance"].sum().to_numpy() == pytest.approx(np.ones(4))
    observation = env.reset(seed=0)[0]
    quotes = env.unwrapped.to_quotes(best.predict(observation)[0])
    assert start.loc["optimal", ["bid_depth", "ask_depth"]].to_numpy(float) == pytest.approx(quotes, rel=1e-6)
    same = policy_cells(AS, {"optimal": best, "constant": constant}, fractions=(0.0, 0.95), **SMALL)
    pd.testing.assert_frame_equal(cells, same)


def test_pictures_of_quotes_and_values_draw_the_cells():
    env = gymnasium.make(AS, **SMALL)
    policies = {"optimal": optimal_policy(env), **paper_policies(env)}
    cells = policy_cells(env, {name: policies[name] for name in ("optimal", "hjb", "constant")})
    names = list(env.unwrapped.control_names)
    axes = plot.quotes(cells, names)
    assert axes.shape == (2, 3)
    for column, step in enumerate((0, 5, 9)):
        for row, name in enumerate(names):
            for line, policy in zip(axes[row, column].lines, ("optimal", "hjb", "constant"), strict=True):
                own = cells[(cells["policy"] == policy) & (cells["step"] == step)]
                np.testing.assert_array_equal(line.get_xydata(), own[["inventory", name]])
    values = plot.value(cells, names)
    own = cells[(cells["policy"] == "constant") & (cells["step"] == 5)]
    np.testing.assert_array_equal(values[1].lines[2].get_ydata(), own["value"])
    with pytest.raises(ValueError, match="across = 'spread' is not allowed: it must be one of inventory"):
        plot.quotes(cells, names, across="spread")
    with pytest.raises(ValueError, match="no cells"):
        plot.value(cells.iloc[:0], names)


def test_other_coordinates_are_held_where_the_optimum_is():
    env = gymnasium.make(TICK, **COARSE)
    cells = policy_cells(env, {"optimal": optimal_policy(env)}, fractions=(0.5,))
    axes = plot.quotes(cells, list(env.unwrapped.control_names))
    likely = cells.loc[cells["chance"].idxmax()]
    own = cells[cells["spread"] == likely["spread"]]
    np.testing.assert_array_equal(axes[2, 0].lines[0].get_ydata(), own["bid_size"])
    assert f"spread {likely['spread']:g}" in axes[0, 0].get_title()
    across = plot.quotes(cells, list(env.unwrapped.control_names), across="spread")
    assert across[0, 0].lines[0].get_xdata().tolist() == sorted(cells["spread"].unique())


def test_a_picture_of_regret_adds_up():
    env = gymnasium.make(AS, **SMALL)
    policies = {name: paper_policies(env)[name] for name in ("constant", "avellaneda_stoikov")}
    maps = regret_maps(env, policies)
    axes = plot.regret(maps)
    for axis, (name, policy) in zip(axes, policies.items(), strict=True):
        drawn = axis.collections[0].get_array().sum()
        assert drawn == pytest.approx(score(env, policy).regret, rel=1e-9)
        assert name.replace("_", " ") in axis.get_title()
    with pytest.raises(ValueError, match="an exponential criterion"):
        regret_maps(AS, {"optimal": optimal_policy(AS, utility="cara", **SMALL)}, utility="cara", **SMALL)


def test_pictures_of_an_episode_a_law_and_learning():
    env = gymnasium.make(AS, **SMALL)
    best = optimal_policy(env)
    frame = rollout(env, best, episodes=2, seed=4)
    prices, inventory = plot.episode(frame, 1)
    own = frame[frame["episode"] == 1]
    np.testing.assert_array_equal(prices.lines[0].get_ydata(), own["mid"])
    np.testing.assert_array_equal(inventory.lines[0].get_ydata(), own["inventory"])
    assert len(prices.lines[2].get_xdata()) == (own["bid_fills"] > 0).sum()
    with pytest.raises(ValueError, match="no episode 2"):
        plot.episode(frame, 2)
    law = pnl_distribution(env, best)
    axis = plot.pnl_law({"optimal": law})
    x, density = axis.lines[0].get_data()
    np.testing.assert_allclose(np.trapezoid(density, x) + law.atoms[:, 1].sum(), 1.0, atol=1e-3)
    assert axis.lines[1].get_xdata()[0] == pytest.approx(law.quantile(0.05))
    curves = {"ppo 0": [{"steps": 0, "skill": 0.1}, {"steps": 10, "skill": 0.9}], "ppo 1": [{"steps": 0, "skill": 0.2}]}
    axis = plot.learning_curves(curves)
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.9] and axis.lines[0].get_color() == axis.lines[1].get_color()


def test_a_picture_of_robustness_is_its_table():
    over = {"fill_decay": [1.2, 1.5, 1.9], "volatility": [1.0, 2.0]}
    policies = {"optimal": optimal_policy(AS, **SMALL), "constant": paper_policies(AS, **SMALL)["constant"]}
    tables = [robustness(policy, AS, over, **SMALL).table.assign(policy=name) for name, policy in policies.items()]
    table = pd.concat(tables)
    one = table[table["volatility"] == 2.0]
    values, skills = plot.robustness(one, ["fill_decay"])
    for k, name in enumerate(policies):
        own = one[one["policy"] == name]
        np.testing.assert_array_equal(values.lines[2 + k].get_xydata(), own[["fill_decay", "value"]])
        np.testing.assert_array_equal(skills.lines[k].get_xydata(), own[["fill_decay", "skill"]])
        assert values.lines[2 + k].get_color() == skills.lines[k].get_color() == plot.COLORS[k]
    for axis, name in zip(plot.robustness(table, ["fill_decay", "volatility"]), policies, strict=True):
        own = table[table["policy"] == name].sort_values(["volatility", "fill_decay"])
        assert axis.get_title() == name
        np.testing.assert_array_equal(np.ravel(axis.collections[0].get_array()), own["skill"])


def test_the_command_line_draws(tmp_path, capsys):
    words = ["--env", "AvellanedaStoikov", "--set", "num_steps=5", "--set", "inventory_limit=3"]
    for command, rest in (("solve", []), ("score", ["hjb", "constant"])):
        file = tmp_path / f"{command}.png"
        assert main([command, *words, *rest, "--plot", str(file)]) == 0
        assert file.read_bytes()[:4] == b"\x89PNG" and f"written: {file}" in capsys.readouterr().out
