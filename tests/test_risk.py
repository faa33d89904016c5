"""Risk measures: closed forms, published figures, intervals that cover, and what a score carries."""

import json

import numpy as np
import pytest
from scipy import stats

from mmgym import baselines
from mmgym.baselines import risk

AS = "mmgym/AvellanedaStoikov-v0"
FAMILY_FALSE_ALARM = 1e-3  # of each statistical test below, all its comparisons together


def test_frozen_position_of_the_model_file():
    at_risk, shortfall = baselines.frozen_position_risk(-5.0, 2.0, 0.25, 0.95)
    assert at_risk == pytest.approx(8.2242681, abs=5e-8)
    assert shortfall == pytest.approx(10.3135640, abs=5e-8)


@pytest.mark.parametrize("inventory", [3.0, -3.0])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_frozen_position_is_the_normal_law(inventory, confidence):
    """Against the quantile and the integrated tail of the loss, with drift."""
    measures = baselines.frozen_position_risk(inventory, 1.5, 0.5, confidence, drift=0.4)
    loss = stats.norm(-inventory * 0.4 * 0.5, 3.0 * 1.5 * np.sqrt(0.5))
    levels = np.linspace(confidence, 1.0, 200_001)
    tail = loss.ppf(0.5 * (levels[1:] + levels[:-1])).mean()
    assert measures[0] == pytest.approx(loss.ppf(confidence), rel=1e-12)
    assert measures[1] == pytest.approx(tail, rel=1e-4)


def test_frozen_position_without_risk():
    assert baselines.frozen_position_risk(0.0, 2.0, 1.0, 0.95) == (0.0, 0.0)
    assert baselines.frozen_position_risk(5.0, 2.0, 0.0, 0.95) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((1.0, -1.0, 1.0, 0.95), "volatility"),
        ((1.0, 1.0, -1.0, 0.95), "time"),
        ((1.0, 1.0, 1.0, 0.0), "confidence"),
        ((1.0, 1.0, 1.0, 1.0), "confidence"),
        ((np.nan, 1.0, 1.0, 0.5), "inventory"),
    ],
)
def test_frozen_position_refuses(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} = "):
        baselines.frozen_position_risk(*arguments)


@pytest.mark.parametrize("episodes", [5_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_drawdowns_of_the_model_file(episodes):
    """Section 6: means 2.217(4) and 5.419(10), 95 % quantiles 4.44 and 11.6 of the optimum and of constant quotes.

    The printed quantiles are rounded to half a unit of their last digit, and carry a sampling error of their own.
    """
    policies = {"optimal": baselines.optimal_policy(AS), "constant": baselines.paper_policies(AS)["constant"]}
    limit = stats.norm.isf(FAMILY_FALSE_ALARM / 2 / 4 / 2)  # four figures, two sizes
    reference = {"optimal": (2.217, 0.004, 4.44, 0.02), "constant": (5.419, 0.010, 11.6, 0.1)}
    for name, (mean, mean_error, quantile, quantile_error) in reference.items():
        drawdowns = risk.path_risks(AS, policies[name], episodes, seed=1).drawdowns
        average, tail = risk.mean_estimate(drawdowns), risk.quantile_estimate(drawdowns, 0.95)
        deviation = (average.high - average.low) / (2 * stats.norm.isf(0.025))
        assert abs(average.value - mean) < limit * np.hypot(deviation, mean_error)
        deviation = (tail.high - tail.low) / (2 * stats.norm.isf(0.025))
        assert abs(tail.value - quantile) < limit * deviation + quantile_error


def test_drawdown_and_largest_inventory_are_those_of_the_rollout():
    """Step by step from the environment's own cash, mid and inventory; the start counts."""
    market = {"num_steps": 20, "initial_inventory": 9}
    policy = baselines.paper_policies(AS, **market)["avellaneda_stoikov"]
    seed = int(np.random.SeedSequence([5, 0x715C]).generate_state(1, np.uint64)[0])
    base = baselines.catalogue.environment_of(AS, **market)
    gains, drawdowns, inventories, _ = risk.path_risks(base, policy, 3, seed=5)
    for episode in range(3):
        observation, info = base.reset(seed=seed + episode)
        wealth = [info["cash"] + info["inventory"] * info["mid"]]
        held, done = [info["inventory"]], False
        while not done:
            observation, _, done, _, info = base.step(policy.predict(observation)[0])
            wealth.append(info["cash"] + info["inventory"] * info["mid"])
            held.append(info["inventory"])
        path = np.array(wealth) - wealth[0]
        assert gains[episode] == pytest.approx(path[-1], abs=1e-9)
        assert drawdowns[episode] == pytest.approx((np.maximum.accumulate(path) - path).max(), abs=1e-9)
        assert inventories[episode] == max(abs(inventory) for inventory in held)


@pytest.mark.long
def test_intervals_cover_what_they_say():
    """Normal samples with known quantile, shortfall and mean, and a known proportion: 95 % within false alarm 1e-3."""
    rng = np.random.default_rng(2)
    draws, level = 2000, 0.9
    shortfall = stats.norm.pdf(stats.norm.ppf(level)) / (1.0 - level)
    covered = np.zeros(4)
    for _ in range(draws):
        sample = rng.standard_normal(400)
        for i, (estimate, truth) in enumerate(
            [
                (risk.quantile_estimate(sample, level), stats.norm.ppf(level)),
                (risk.shortfall_estimate(sample, level), shortfall),
                (risk.mean_estimate(sample), 0.0),
                (risk.proportion_estimate(sample > 1.0), stats.norm.sf(1.0)),
            ]
        ):
            assert estimate.low <= estimate.value <= estimate.high
            covered[i] += estimate.low <= truth <= estimate.high
    low = stats.binom.ppf(FAMILY_FALSE_ALARM / 2 / 4, draws, 0.95) / draws
    # order statistics and proportions are conservative; the two normal intervals are asymptotic (bias below 0.02)
    assert (covered / draws >= low - np.array([0.0, 0.02, 0.005, 0.0])).all()
    assert (covered / draws <= 0.985).all()


@pytest.mark.long
def test_simulated_measures_agree_with_the_exact_law():
    """VaR and CVaR of three policies: the exact law (tested elsewhere) against the simulated route."""
    limit = stats.norm.isf(FAMILY_FALSE_ALARM / 2 / 12)
    policies = {"optimal": baselines.optimal_policy(AS, num_steps=50), **baselines.paper_policies(AS, num_steps=50)}
    for name in ("optimal", "constant", "avellaneda_stoikov"):
        exact = baselines.risk_measures(AS, policies[name], episodes=1000, num_steps=50)
        simulated = baselines.risk_measures(
            AS, policies[name], method="simulated", episodes=10_000, seed=4, num_steps=50
        )
        assert (exact.method, simulated.method) == ("exact", "simulated")
        assert exact.truncation < 1e-9
        for level in (0.95, 0.99):
            for measure in ("value_at_risk", "expected_shortfall"):
                truth, estimate = getattr(exact, measure)[level], getattr(simulated, measure)[level]
                assert truth.low == truth.high
                deviation = (estimate.high - estimate.low) / (2 * stats.norm.isf(0.025))
                assert abs(estimate.value - truth.value) < limit * deviation, (name, measure, level)


def test_score_carries_the_measures():
    policy = baselines.paper_policies(AS, num_steps=20)["constant"]
    score = baselines.score(AS, policy, risk=True, num_steps=20)
    measures = score.risk
    # the constant quote's law does not depend on the number of steps (reference mathematics, section 6)
    assert measures.value_at_risk[0.95].value == pytest.approx(-45.245508, abs=2e-5)
    assert measures.expected_shortfall[0.99].value == pytest.approx(-27.880104, abs=2e-5)
    content = json.loads(json.dumps(score.to_dict()))
    assert content["risk"]["value_at_risk"]["0.95"]["value"] == measures.value_at_risk[0.95].value
    table = baselines.score_table({"constant": score})
    assert table.loc["constant", "CVaR 95%"] == measures.expected_shortfall[0.95].value
    assert table.loc["constant", "drawdown"] == measures.drawdown.value
    assert table.loc["constant", "max |inventory|"] == content["risk"]["largest_inventory"]["value"]
    assert score.information_ratio == content["information_ratio"] == score.pnl / score.pnl_std
    assert "[" in baselines.risk_table({"constant": score}).loc["constant", "drawdown 99%"]
    assert baselines.score(AS, policy, num_steps=20).risk is None


def test_exact_law_is_left_where_it_is_slow_or_there_is_none(monkeypatch):
    best = baselines.optimal_policy(AS, num_steps=10)
    few = {"episodes": 1000, "num_steps": 10}
    assert baselines.risk_measures(AS, best, **few).method == "exact"
    monkeypatch.setattr(risk, "EXACT_CELLS", 100)
    assert baselines.risk_measures(AS, best, **few).method == "simulated"
    assert baselines.risk_measures(AS, best, method="exact", **few).method == "exact"

    def forgetful(observations):
        return np.zeros((*observations.shape[:-1], 2), dtype=np.float32)

    assert baselines.risk_measures(AS, forgetful, **few).method == "simulated"
    with pytest.raises(ValueError, match="a function of the observation"):
        baselines.risk_measures(AS, forgetful, method="exact", **few)
    monkeypatch.undo()
    nearly_discrete = {"fill_rate": 0.1, "fill_decay": 1.0, "horizon": 1.0, "num_steps": 2, "inventory_limit": 2.0}
    policy = baselines.optimal_policy("mmgym/GLFT-v0", **nearly_discrete)  # mostly no fill at all: an atom at 0
    measures = baselines.risk_measures("mmgym/GLFT-v0", policy, episodes=1000, **nearly_discrete)
    assert measures.method == "numerical"
    assert measures.value_at_risk[0.95].value == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fast"}, "method = 'fast' is not allowed"),
        ({"episodes": 10}, "episodes = 10 is not allowed"),
        ({"levels": [1.0]}, "confidence = 1.0 is not allowed"),
        ({"levels": [0.99999], "episodes": 1000}, "episodes = 1000 are too few"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=r"allowed|few") as caught:
        baselines.risk_measures(AS, baselines.paper_policies(AS, num_steps=5)["constant"], num_steps=5, **arguments)
    assert message in str(caught.value)
