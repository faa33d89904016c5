"""Scores over parameters that differ: against sums and integrals of single markets, brute force and simulation."""

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy import integrate, optimize, stats

import mmgym  # noqa: F401
from mmgym.baselines import (
    NoOptimum,
    as_quotes,
    best_known_policy,
    optimal_policy,
    paper_policies,
    robustness,
    rollout,
    score,
)
from mmgym.baselines.baseline import baseline_for, baseline_of
from mmgym.baselines.policy import CallablePolicy
from mmgym.baselines.randomised import MOST_NODES, quadrature
from mmgym.variation import Variation, laws_of

AS = "mmgym/AvellanedaStoikov-v0"
TINY = {"num_steps": 3, "inventory_limit": 2.0, "horizon": 0.05}
CHOICE = {"fill_decay, volatility": ["choice", [[1.0, 1.0], [1.5, 2.0], [2.5, 6.0]], [0.5, 0.2, 0.3]]}


def linear(seed: int) -> CallablePolicy:
    """A function of the first two entries of observations: depths that are linear in them."""
    weights = np.random.default_rng(seed).normal(0.0, 0.7, (3, 2))

    def act(observations: object) -> np.ndarray:
        seen = np.asarray(observations, np.float64)[..., :2]
        return np.clip(seen @ weights[:2] + weights[2], -1.0, 1.0).astype(np.float32)

    return CallablePolicy(act, markov=True)


def markets(env: gymnasium.Env) -> list[tuple[float, gymnasium.Env]]:
    """The markets of a law of finitely many values, each with its probability."""
    variation = env.unwrapped.variation
    nodes = quadrature(variation)
    return [
        (weight, gymnasium.make(env.spec.id, **{**variation.fixed, **values}))
        for weight, values in zip(nodes.weights, nodes.values, strict=True)
    ]


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_a_score_over_a_finite_law_is_the_mean_of_scores(utility: str) -> None:
    env = gymnasium.make(AS, randomise=CHOICE, utility=utility, **TINY)
    for seed in range(3):
        scored = score(env, linear(seed))
        parts = [(weight, score(market, linear(seed))) for weight, market in markets(env)]
        if utility == "mean":
            value = sum(weight * part.value for weight, part in parts)
        else:
            value = -10.0 * np.log(sum(weight * np.exp(-0.1 * part.value) for weight, part in parts))
        assert scored.value == pytest.approx(value, rel=1e-12)
        assert scored.pnl == pytest.approx(sum(weight * part.pnl for weight, part in parts), rel=1e-12)
        assert scored.fills == pytest.approx(sum(weight * part.fills for weight, part in parts), rel=1e-12)
        second = sum(weight * (part.pnl_std**2 + part.pnl**2) for weight, part in parts)
        assert scored.pnl_std == pytest.approx(np.sqrt(second - scored.pnl**2), rel=1e-9)
        assert scored.value_error == 0.0 and scored.method == "exact"


def test_the_upper_bound_is_the_mean_of_optima_and_nothing_is_above_it() -> None:
    env = gymnasium.make(AS, randomise=CHOICE, **TINY)
    baseline = baseline_of(env)
    mean = sum(weight * optimal_policy(market).optimum for weight, market in markets(env))
    bounds = baseline.bounds()
    assert bounds.upper == pytest.approx(mean, rel=1e-12) and bounds.lower < bounds.upper
    scores = {name: score(env, policy) for name, policy in paper_policies(env).items()}
    best = best_known_policy(env)
    assert max(scores, key=lambda name: scores[name].value) == best.name
    assert bounds.lower == pytest.approx(scores[best.name].value, rel=1e-14)  # summed in another order
    assert scores[baseline.reference].skill == pytest.approx(0.0, abs=1e-12)
    assert score(env, best).skill == pytest.approx(1.0)
    for seed in range(20):
        assert score(env, linear(seed)).value < bounds.lower
    with pytest.raises(NoOptimum):
        optimal_policy(env)


@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_the_best_fixed_table_against_a_search(utility: str) -> None:
    env = gymnasium.make(AS, randomise=CHOICE, utility=utility, num_steps=2, inventory_limit=1.0, horizon=0.05)
    baseline = baseline_of(env)
    chains = [(weight, baseline_of(market).problem) for weight, market in markets(env)]
    low, high = (baseline.problem.controls(np.full((1, 2), end, np.float32))[0] for end in (-1.0, 1.0))

    def loss(flat: np.ndarray) -> float:
        from mmgym.baselines.frozen import criterion_value

        table = flat.reshape(2, 3, 2)
        values = np.array([criterion_value(chain, table) for _, chain in chains])
        weights = np.array([weight for weight, _ in chains])
        return float(-(weights @ values) if utility == "mean" else 10.0 * np.log(weights @ np.exp(-0.1 * values)))

    fixed = baseline.fixed_controls
    bounds = list(zip(np.tile(low, 6), np.tile(high, 6), strict=True))
    searched = optimize.minimize(loss, np.tile(1.0, 12), bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14})
    assert -loss(fixed.ravel()) >= -searched.fun - 1e-7 * abs(searched.fun)
    assert baseline.bounds().lower == pytest.approx(-loss(fixed.ravel()), rel=1e-7)  # the policy acts in float32


@pytest.mark.parametrize(
    ("law", "density"),
    [
        (["loguniform", 1.0, 3.0], stats.loguniform(1.0, 3.0)),
        (["normal", 2.0, 0.2], stats.truncnorm(-4.0, 4.0, 2.0, 0.2)),
    ],
)
def test_the_fixed_table_of_a_continuous_law_against_a_search(law: list[object], density: object) -> None:
    """The mean over the law by a fine sum, of the table found and of the best one that a search finds."""
    arguments = {"num_steps": 2, "inventory_limit": 1.0, "horizon": 0.05, "terminal_penalty": 0.5}
    env = gymnasium.make(AS, randomise={"fill_decay": law}, **arguments)
    baseline, variation = baseline_of(env), env.unwrapped.variation
    values = np.linspace(*density.support(), 101)  # type: ignore[attr-defined]
    chains = [baseline_for(variation.params({"fill_decay": float(value)})).problem for value in values]
    low, high = (baseline.problem.controls(np.full((1, 2), end, np.float32))[0] for end in (-1.0, 1.0))

    def mean(flat: np.ndarray) -> float:
        from mmgym.baselines.frozen import criterion_value

        worth = [criterion_value(chain, flat.reshape(2, 3, 2)) for chain in chains]
        return float(integrate.simpson(density.pdf(values) * worth, x=values))  # type: ignore[attr-defined]

    box = list(zip(np.tile(low, 6), np.tile(high, 6), strict=True))
    solved, bounds = mean(baseline.fixed_controls.ravel()), baseline.bounds()
    searched = optimize.minimize(lambda x: -mean(x), np.tile(1.0, 12), bounds=box, method="L-BFGS-B")
    assert -1e-4 * abs(solved) < solved - -searched.fun < 1e-5 * abs(solved)
    assert abs(bounds.lower - solved) < bounds.error + 1e-5 * abs(solved)
    scored = {name: score(env, policy) for name, policy in paper_policies(env).items()}
    assert scored["fixed_optimum"].value >= scored["average_optimum"].value
    assert scored["fixed_optimum"].skill == pytest.approx(1.0)
    assert scored["fixed_optimum"].value < scored["fixed_optimum"].optimum_upper


def test_the_fixed_table_of_a_wide_law_is_not_below_the_average_optimum() -> None:
    """Six powers of ten: a table that is best at the nested nodes is not, over the law."""
    given = {"num_steps": 5, "inventory_limit": 3.0, "horizon": 0.1, "utility": "mean"}
    env = gymnasium.make("mmgym/GLFT-v0", randomise={"running_penalty": ["loguniform", 1e-3, 1e3]}, **given)
    papers = paper_policies(env)
    fixed, average = (score(env, papers[name]) for name in ("fixed_optimum", "average_optimum"))
    assert fixed.value >= average.value
    assert fixed.value == pytest.approx(baseline_of(env).bounds().lower, abs=1e-12)


def test_a_policy_that_sees_the_parameters_can_be_optimal() -> None:
    env = gymnasium.make(AS, randomise=CHOICE, observe_parameters=True, **TINY)
    best = optimal_policy(env)
    assert best.level == "exact"
    assert best.optimum == pytest.approx(sum(w * optimal_policy(m).optimum for w, m in markets(env)), rel=1e-12)
    assert score(env, best).value == pytest.approx(best.optimum, rel=1e-9)
    simulated = score(env, best, method="simulated", episodes=4000, seed=1)
    assert abs(simulated.value - best.optimum) < 3.5 * simulated.stderr  # false-alarm rate 5e-4
    blind = gymnasium.make(AS, randomise=CHOICE, **TINY)
    assert score(env, linear(1)).value == pytest.approx(score(blind, linear(1)).value, rel=1e-12)


@pytest.mark.parametrize("law", [["uniform", 1.0, 3.0], ["loguniform", 0.8, 3.0], ["normal", 2.0, 0.2]])
def test_who_sees_parameters_of_a_continuous_law_plays_each_market_at_its_optimum(law: list[object]) -> None:
    """At values between the nodes against the optima of their markets; the mean against a sum over many of them."""
    arguments = {**TINY, "min_depth": -1.0, "max_depth": 3.0}
    env = gymnasium.make(AS, randomise={"fill_decay": law}, observe_parameters=True, **arguments)
    np.random.seed(0)  # noqa: NPY002
    best, variation = best_known_policy(env), env.unwrapped.variation
    assert best.name == "informed_optimum" and best.level == "bracketed"
    bounds, optima = baseline_of(env).bounds(), list[float]()
    best.predict(env.reset(seed=0)[0])
    assert np.random.get_state()[2] == 624  # noqa: NPY002
    for quantile in np.linspace(0.01, 0.99, 50):
        values = variation.laws[0].at(float(quantile))
        market = gymnasium.make(AS, **arguments, **values)
        told = variation.scaled(values)

        def informed(observations: np.ndarray, told: np.ndarray = told) -> np.ndarray:
            end = np.broadcast_to(told, (*np.shape(observations)[:-1], len(told)))
            return best.predict(np.concatenate([observations, end], axis=-1))[0]

        played = score(market, informed, markov=True)
        assert played.optimum_upper - played.value < 1e-7 * abs(played.optimum_upper)
        start, _ = market.reset(seed=0)
        value = best.value(np.concatenate([start, told]))
        assert value == pytest.approx(played.optimum_upper, abs=bounds.error)  # as near as the nested rule says
        optima.append(played.optimum_upper)
    scored = score(env, best)
    assert scored.skill == pytest.approx(1.0, abs=1e-9) and bounds.lower <= bounds.upper
    assert np.mean(optima) == pytest.approx(bounds.lower, abs=bounds.error + 1e-3 * abs(bounds.lower))  # midpoints
    for name, policy in paper_policies(env).items():
        assert score(env, policy).value <= bounds.lower + 1e-9, name


def test_who_sees_parameters_of_several_laws_plays_the_optimum_of_the_nearest_choices() -> None:
    """Mixed laws, some of several names; at ends and choices, where it is that of a market of its own."""
    arguments = {**TINY, "min_depth": -1.0, "max_depth": 3.0}
    law = {
        "running_penalty": ["uniform", 0.0, 2.0],
        "fill_decay, volatility": ["choice", [[1.0, 1.0], [1.5, 2.0]]],
        "horizon": ["choice", [0.05, 0.1]],
    }
    env = gymnasium.make(AS, **{**arguments, "randomise": law, "observe_parameters": True})
    best, variation, random = best_known_policy(env), env.unwrapped.variation, np.random.default_rng(0)
    for at in np.random.default_rng(1).uniform(size=(20, 3)):
        at[0] = round(at[0])  # an end
        values = {name: v for part, q in zip(variation.laws, at, strict=True) for name, v in part.at(float(q)).items()}
        own = optimal_policy(gymnasium.make(AS, **{**arguments, **values}))
        seen = np.column_stack([random.uniform(0.0, 0.9, 8), random.integers(-2, 3, 8) / 2.0]).astype(np.float32)
        told = np.hstack([seen, np.tile(variation.scaled(values), (8, 1))])
        quotes = [each.quotes_of(each.predict(rows)[0]) for each, rows in ((own, seen), (best, told))]
        np.testing.assert_allclose(*quotes, atol=1e-5)
        np.testing.assert_allclose(best.value(told), own.value(seen), rtol=1e-6)


@pytest.mark.long
def test_simulated_episodes_have_the_exact_mean() -> None:
    """False-alarm rate 2e-3 for the four."""
    for arguments in ({}, {"horizon": 0.2, "num_steps": 5}):
        env = gymnasium.make(AS, randomise=CHOICE, reward="expected", **{**TINY, **arguments})
        exact = score(env, linear(2))
        sampled = score(env, linear(2), method="simulated", episodes=20_000, seed=4)
        assert abs(sampled.value - exact.value) < 3.5 * sampled.stderr
        assert abs(sampled.pnl - exact.pnl) < 3.5 * sampled.pnl_std / np.sqrt(20_000)


@pytest.mark.parametrize(
    ("law", "density"),
    [
        (["uniform", 1.0, 4.0], stats.uniform(1.0, 3.0)),
        (["loguniform", 1.0, 4.0], stats.loguniform(1.0, 4.0)),
        (["normal", 2.0, 0.3], stats.truncnorm(-4.0, 4.0, 2.0, 0.3)),
    ],
)
def test_quadrature_against_a_sum_of_many_markets(law: list[object], density: object) -> None:
    env = gymnasium.make(AS, randomise={"fill_decay": law}, **TINY)
    scored = score(env, linear(5))
    variation = env.unwrapped.variation
    values = np.linspace(*density.support(), 401)  # type: ignore[attr-defined]
    worth = [
        baseline_for(variation.params({"fill_decay": float(value)})).criterion_value(linear(5)) for value in values
    ]
    total = integrate.simpson(density.pdf(values) * worth, x=values)  # type: ignore[attr-defined]
    assert abs(scored.value - total) < 1e-6 * abs(total) + scored.value_error
    assert scored.method == "quadrature" and 0.0 < scored.value_error < 1e-2 * abs(total)


def test_nodes_integrate_polynomials_exactly() -> None:
    laws = laws_of({"volatility": ["normal", 2.0, 0.25], "drift": ["uniform", -1.0, 1.0]})
    market = gymnasium.make(AS).unwrapped.market
    nodes = quadrature(Variation(market.params_type, {}, laws))
    sigma, mu = (np.array([values[name] for values in nodes.values]) for name in ("volatility", "drift"))
    law = stats.truncnorm(-4.0, 4.0, 2.0, 0.25)
    for powers in ((0, 0), (1, 0), (2, 2), (4, 6), (8, 8)):
        expected = law.moment(powers[0]) * stats.uniform(-1.0, 2.0).moment(powers[1])
        assert nodes.weights @ (sigma ** powers[0] * mu ** powers[1]) == pytest.approx(expected, rel=1e-12)
    assert nodes.coarse @ np.ones(len(sigma)) == pytest.approx(1.0, rel=1e-13)


def test_other_quotes_for_the_same_actions() -> None:
    """The study of the README: a policy for fill_decay 1.5 at 1.0, its actions and its quotes."""
    policy, env = optimal_policy(AS), gymnasium.make(AS, fill_decay=1.0)
    with pytest.warns(UserWarning, match="another action box.*quotes=True"):
        naive = score(env, policy)
    assert naive.skill == pytest.approx(0.990, abs=5e-4)
    quoted = score(env, policy, quotes=True)
    assert quoted.skill == pytest.approx(-0.238, abs=5e-4)
    assert score(env, as_quotes(policy, env)).value == quoted.value
    wide = gymnasium.make(AS, fill_decay=1.0, min_depth=-1.0 / 1.5, max_depth=2.0)
    assert score(wide, policy).value == pytest.approx(quoted.value, rel=1e-7)
    plain = CallablePolicy(policy.act, markov=True)
    assert score(env, as_quotes(plain, env, trained_in=AS)).value == quoted.value
    with pytest.raises(TypeError, match="trained_in"):
        score(env, plain, quotes=True)
    table = robustness(policy, AS, {"fill_decay": [1.0, 1.5]})
    assert table.table["skill"].tolist() == pytest.approx([quoted.skill, 1.0], abs=1e-6)
    assert table.worst["fill_decay"] == 1.0


def test_robustness_tables() -> None:
    env = gymnasium.make(AS, **TINY)
    over = {"fill_decay": [1.0, 1.5], "volatility": [1.0, 2.0, 3.0]}
    law = {"fill_decay": ["choice", [1.0, 1.5]]}
    result = robustness(linear(3), env, over, law)
    assert len(result.table) == 6
    box = {"min_depth": env.unwrapped.params.min_depth_bid, "max_depth": env.unwrapped.params.max_depth_bid}
    for _, row in result.table.iterrows():
        alone = score(AS, linear(3), fill_decay=row["fill_decay"], volatility=row["volatility"], **box, **TINY)
        assert row["value"] == alone.value and row["optimum"] == alone.optimum_lower and row["skill"] == alone.skill
    assert result.worst["regret"] == result.table["regret"].max()
    assert result.mean is not None
    fine = result.table[result.table["volatility"] == 2.0]
    assert result.mean.value == pytest.approx(fine["value"].mean(), rel=1e-12)
    seen = gymnasium.make(AS, randomise={"fill_decay": ["choice", [1.0, 1.5]]}, observe_parameters=True, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        knowing = robustness(optimal_policy(seen), seen, {"fill_decay": [1.0, 1.5]})
    assert knowing.table["skill"].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    for wrong, words in (({}, "mapping"), ({"num_steps": [1, 2]}, "num_steps"), ({"fill_decay": [-1.0]}, "fill_decay")):
        with pytest.raises((ValueError, TypeError), match=words):
            robustness(linear(3), env, wrong)


def test_what_cannot_be_scored_is_named() -> None:
    rows = gymnasium.make_vec(AS, num_envs=2, parameters={"volatility": [1.0, 2.0]})
    with pytest.raises(TypeError, match="arguments_of_row"):
        score(rows, linear(0))
    laws = {name: ["uniform", 1.0, 2.0] for name in ("volatility", "fill_decay", "drift", "fill_rate")}
    with pytest.raises(ValueError, match=f"{MOST_NODES:,}"):
        score(gymnasium.make(AS, randomise=laws), linear(0))
    cara = gymnasium.make(AS, randomise={"risk_aversion": ["choice", [0.1, 0.2]]}, utility="cara", **TINY)
    with pytest.raises(ValueError, match="risk_aversion"):
        score(cara, linear(0))


@pytest.mark.long
def test_discrete_actions_over_a_law() -> None:
    arguments = {"num_steps": 4, "lot": 100.0, "inventory_limit": 300.0}
    env = gymnasium.make("mmgym/TickSpread-v0", randomise={"running_penalty": ["choice", [1e-6, 1e-5]]}, **arguments)
    policies = paper_policies(env)
    scored = score(env, policies["average_optimum"])
    parts = [score(market, policies["average_optimum"]).value for _, market in markets(env)]
    assert scored.value == pytest.approx(np.mean(parts), rel=1e-12)
    assert scored.optimum_lower <= scored.optimum_upper


@pytest.mark.slow
def test_continuous_coordinates_over_a_law() -> None:
    env = gymnasium.make("mmgym/HawkesFlow-v0", randomise={"running_penalty": ["choice", [0.001, 0.01]]}, horizon=10.0)
    best = best_known_policy(env)
    scored = score(env, best)
    parts = [score(market, best).value for _, market in markets(env)]
    assert scored.value == pytest.approx(np.mean(parts), abs=scored.value_error + 4.0 * scored.stderr + 1e-3)
    assert scored.value <= scored.optimum_upper + scored.value_error + 4.0 * scored.stderr


@pytest.mark.long
def test_a_network_is_trained_on_the_exact_mean(tmp_path: Path) -> None:
    """What it gains is the mean over the law: near the best fixed table, which a function of the state can play."""
    train = pytest.importorskip("mmgym.agents.train").train
    arguments = {"randomise": {"fill_decay": ["choice", [1.0, 2.0]]}, **TINY}
    _, result = train("exact_gradient", AS, folder=tmp_path / "run", arguments=arguments, progress=False)
    assert 0.99 < result.skill <= 1.0 + 1e-6
    assert result.level == "bracketed" and result.value < result.optimum_upper


def test_rollouts_have_the_parameters_and_times_of_their_episodes() -> None:
    law = {"fill_decay": ["choice", [1.0, [1.0, 2.0]]], "horizon": ["uniform", 0.1, 0.2]}
    env = gymnasium.make(AS, **{**TINY, "randomise": law})
    played = rollout(env, linear(0), episodes=4, seed=1)
    for episode, rows in played.groupby("episode"):
        single = gymnasium.make(AS, **{**TINY, "randomise": law})
        _, info = single.reset(seed=1 + int(episode))
        assert (rows["horizon"] == info["parameters"]["horizon"]).all()
        assert rows[["fill_decay_0", "fill_decay_1"]].iloc[0].tolist() == [
            single.unwrapped.params.fill_decay_bid,
            single.unwrapped.params.fill_decay_ask,
        ]
        np.testing.assert_allclose(rows["time"], np.arange(3) * info["parameters"]["horizon"] / 3)


@pytest.mark.long
@pytest.mark.parametrize("utility", ["mean", "cara"])
def test_a_fixed_table_of_choices_against_all_actions(utility: str) -> None:
    """In one step the mean is a sum over states, and every action can be tried in each."""
    gains = []
    for seed in range(6):
        numbers = np.random.default_rng(seed)
        names = "fill_rate_best, fill_rate_improved, volatility"
        points = [[float(10.0**x) for x in numbers.uniform((-2.0, -2.0, -3.0), (0.0, 0.3, -1.0))] for _ in range(3)]
        arguments = {"num_steps": 1, "horizon": 3.0, "inventory_limit": 100.0, "lot": 50.0, "initial_inventory": 50.0}
        arguments |= {"actions": "flat", "utility": utility, "rebate": float(numbers.uniform(-0.003, 0.003))}
        env = gymnasium.make("mmgym/TickSpread-v0", randomise={names: ["choice", points]}, **arguments)
        baseline, each = baseline_of(env), [(w, baseline_of(market).problem) for w, market in markets(env)]
        actions, states = env.unwrapped.to_quotes(np.arange(env.action_space.n)), np.arange(each[0][1].num_states)
        worth = np.zeros((len(states), len(actions)))
        for weight, chain in each:
            end = chain.terminal(chain.criterion)
            for a, controls in enumerate(actions):
                played = np.tile(controls, (len(states), 1))
                worth[:, a] += weight * chain.backward(0, states, played, end, chain.criterion)[:, 0]
        best = each[0][1].initial @ (worth.max(axis=1) if utility == "mean" else worth.min(axis=1))
        expected = best if utility == "mean" else -np.log(best) / env.unwrapped.params.risk_aversion
        fixed, average = (
            baseline.criterion_value(baseline.policies()[f"{name}_optimum"]()) for name in ("fixed", "average")
        )
        gains.append(fixed - average)
        assert fixed == pytest.approx(expected, rel=1e-9)
    assert max(gains) > 1e-6
