"""The law of the P&L with its atoms: dense matrix exponentials and simulated episodes, in every family of markets."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from mmgym import baselines
from mmgym.baselines import frozen, risk
from mmgym.baselines.catalogue import TablePolicy, problem_of
from mmgym.baselines.pnl_law import pnl_law

GLFT = "mmgym/GLFT-v0"
AS = "mmgym/AvellanedaStoikov-v0"
TICK = "mmgym/TickSpread-v0"
ASSETS = "mmgym/MultiAssetGLFT-v0"
TAKER, MAKER = "mmgym/MeanFieldTaker-v0", "mmgym/MeanFieldMaker-v0"
FEW_FILLS = {
    "volatility": 1.5,
    "fill_rate": [9.0, 7.0],
    "fill_decay": [1.2, 1.5],
    "drift": 0.3,
    "inventory_limit": 2.0,
    "horizon": 1.0,
    "num_steps": 4,
    "running_penalty": 0.2,
}
FALSE_ALARM = 1e-3  # of the comparison with simulated episodes, all markets and figures together


def dense_characteristic_function(market, depths, u):
    """``E exp(i u R)`` from inventory 0, by eigenvalues of each step's generator (order size 1)."""
    limit = (depths.shape[1] - 1) // 2
    q, step = np.arange(-limit, limit + 1.0), market["horizon"] / market["num_steps"]
    rate, decay = np.array(market["fill_rate"]), np.array(market["fill_decay"])
    values = np.ones((len(u), len(q)), dtype=complex)
    for quotes in depths[::-1]:
        before = np.empty_like(values)
        for s, depth in enumerate(quotes):
            fills, generator = rate * np.exp(-decay * depth), np.zeros((len(u), len(q), len(q)), dtype=complex)
            for i, lots in enumerate(q):
                generator[:, i, i] = 1j * u * market["drift"] * lots - 0.5 * (u * market["volatility"] * lots) ** 2
                for side, other in ((0, i + 1), (1, i - 1)):
                    if 0 <= other < len(q):
                        generator[:, i, i] -= fills[side]
                        generator[:, i, other] = fills[side] * np.exp(1j * u * depth[side])
            growth, modes = np.linalg.eig(generator)
            weights = np.linalg.solve(modes, values[..., None])[..., 0]
            before[:, s] = (modes[:, s] * np.exp(step * growth) * weights).sum(axis=1)
        values = before
    return values[:, limit]


def dense_risk(market, depths, confidences, terms=2048):
    """VaR and CVaR from it: a cosine series with fading terms beside the atom at 0 of no fill at all."""
    rate, decay = np.array(market["fill_rate"]), np.array(market["fill_decay"])
    at_zero = depths[:, depths.shape[1] // 2]
    no_fill = np.exp(-(rate * np.exp(-decay * at_zero)).sum() * market["horizon"] / market["num_steps"])
    low, high = -28.0, 36.0
    u = np.arange(terms) * np.pi / (high - low)
    transform = dense_characteristic_function(market, depths, u) - no_fill
    series = 2.0 / (high - low) * (transform * np.exp(-1j * u * low)).real
    series[0] *= 0.5
    series *= np.exp(-36.0 * (np.arange(terms) / terms) ** 8)

    def below(x):
        return (x - low) * series[0] + np.sin((x - low) * u[1:]) / u[1:] @ series[1:] + no_fill * (x >= 0.0)

    risks = []
    for confidence in confidences:
        tail, x = 1.0 - confidence, 0.0
        if below(-1e-12) >= tail or below(0.0) < tail:
            sides = (low, -1e-12) if below(-1e-12) >= tail else (0.0, high)
            x = brentq(lambda x, tail=tail: below(x) - tail, *sides, xtol=1e-13)
        integral = 0.5 * (x - low) ** 2 * series[0] + (1.0 - np.cos((x - low) * u[1:])) / u[1:] ** 2 @ series[1:]
        risks.append((-x, -(x * tail - integral - no_fill * max(x, 0.0)) / tail))
    return risks


@pytest.mark.long
@pytest.mark.parametrize("name", ["hjb", "constant"])
def test_few_fills_have_the_risk_of_dense_matrix_exponentials(name):
    """VaR of "hjb" at 99 %: 0.85923 (with the atom left in the series it was 0.86695); errors within what is stated."""
    problem = problem_of(GLFT, **FEW_FILLS)
    depths = frozen.tabulate(problem, baselines.paper_policies(GLFT, **FEW_FILLS)[name]).controls
    law = pnl_law(problem, depths)
    confidences = (0.95, 0.99)
    for confidence, truth in zip(confidences, dense_risk(FEW_FILLS, depths, confidences), strict=True):
        measured = law.value_at_risk(confidence), law.expected_shortfall(confidence)
        for value, true, error in zip(measured, truth, law.accuracy(confidence), strict=True):
            assert abs(value - true) <= error + 1e-9
            assert error < 5e-4
    if name == "hjb":
        assert law.value_at_risk(0.99) == pytest.approx(0.85923, abs=5e-6)
        measures = baselines.risk_measures(GLFT, TablePolicy(problem, depths), episodes=1000, **FEW_FILLS)
        shown = measures.value_at_risk[0.99]
        assert measures.method == "numerical"
        assert shown.low <= 0.8592283511 <= shown.high  # the dense series with 60,000 terms
        assert "+-" in str(shown)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_random_markets_have_the_risk_of_dense_matrix_exponentials(seed):
    """Random rates, drift, noise and quotes of every step and inventory; errors within what is stated."""
    draw = np.random.default_rng([7, seed]).uniform
    market = {
        **FEW_FILLS,
        "volatility": draw(0.7, 1.5),
        "fill_rate": draw(2.0, 12.0, 2).tolist(),
        "fill_decay": draw(1.0, 2.0, 2).tolist(),
        "drift": draw(-0.5, 0.5),
        "num_steps": int(draw(1, 5)),
    }
    depths = draw(0.2, 1.2, (market["num_steps"], 5, 2))
    law = pnl_law(problem_of(GLFT, **market), depths)
    confidences = (0.9, 0.95, 0.99)
    for confidence, truth in zip(confidences, dense_risk(market, depths, confidences), strict=True):
        measured = law.value_at_risk(confidence), law.expected_shortfall(confidence)
        for value, true, error in zip(measured, truth, law.accuracy(confidence), strict=True):
            assert abs(value - true) <= error + 1e-8
            assert error < 1e-3


def quotes_of(env_id, name):
    return lambda arguments: baselines.paper_policies(env_id, **arguments)[name]


def liquidate_and_wait(arguments):
    """Sells what there is at the first decision, then quotes little: an atom for every spread it can start with."""
    problem = problem_of(TICK, **arguments)
    controls = np.zeros((problem.num_steps, problem.num_states, 5))
    controls[..., 2:4] = 100.0
    controls[0, :, 4] = -problem.coordinates["inventory"]
    return TablePolicy(problem, controls)


MARKETS = {
    "few fills": (GLFT, FEW_FILLS, quotes_of(GLFT, "hjb"), 1),
    "a position": (GLFT, {**FEW_FILLS, "initial_inventory": 1.0}, quotes_of(GLFT, "hjb"), 0),
    "drawn quotes": (GLFT, {**FEW_FILLS, "num_steps": 1}, quotes_of(GLFT, "random"), 1),
    "expected utility": (
        GLFT,
        {**FEW_FILLS, "running_penalty": None, "utility": "cara", "risk_aversion": 0.4, "terminal_penalty": 0.2},
        lambda arguments: baselines.optimal_policy(GLFT, **arguments),
        1,
    ),
    "jumps": (
        GLFT,
        {**FEW_FILLS, "jump_rate": 2.0, "jump_mean": -0.5, "jump_volatility": 0.4, "order_size": 0.5},
        quotes_of(GLFT, "constant"),
        1,
    ),
    "two assets": (
        ASSETS,
        {
            "covariance": [[2.0, 0.8], [0.8, 1.0]],
            "fill_rate": [[4.0, 3.0], 3.0],
            "fill_decay": [1.5, [2.0, 1.7]],
            "order_size": [1.0, 0.5],
            "inventory_limit": [1.0, 0.5],
            "drift": [0.3, -0.1],
            "horizon": 0.4,
            "num_steps": 2,
        },
        quotes_of(ASSETS, "constant"),
        1,
    ),
    "spreads": (
        TICK,
        {"lot": 100.0, "inventory_limit": 200.0, "horizon": 8.0, "num_steps": 2, "volatility": 0.05},
        quotes_of(TICK, "constant"),
        1,
    ),
    "liquidation": (
        TICK,
        {
            "lot": 100.0,
            "inventory_limit": 200.0,
            "initial_inventory": 100.0,
            "horizon": 8.0,
            "num_steps": 2,
            "volatility": 0.05,
        },
        liquidate_and_wait,
        6,
    ),
    "taker": (
        TAKER,
        {
            "inventory_limit": 30.0,
            "signal_limit": 1,
            "horizon": 0.04,
            "num_steps": 2,
            "volatility": 20.0,
            "population": "constant",
            "impact": 0.03,
            "initial_law": [0.0, 1],
        },
        quotes_of(TAKER, "constant"),
        1,
    ),
    "maker": (
        MAKER,
        {"inventory_limit": 30.0, "horizon": 0.02, "num_steps": 2, "volatility": 20.0, "population": "constant"},
        quotes_of(MAKER, "constant"),
        1,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MARKETS)
def test_atoms_and_quantiles_are_those_of_simulated_episodes(name):
    """Shares of episodes at every atom, below four values, and the shortfall: exact binomial and normal tests."""
    env_id, arguments, make, count = MARKETS[name]
    policy, episodes, drawn = make(arguments), 40_000, name == "drawn quotes"
    law = baselines.pnl_distribution(env_id, policy, deterministic=not drawn, **arguments)
    gains = risk.path_risks(env_id, policy, episodes, seed=9, deterministic=not drawn, **arguments).gains
    assert len(law.atoms) == count
    limit = FALSE_ALARM / len(MARKETS) / (count + 5)
    for value, weight in law.atoms:
        share = np.abs(gains - value) < 1e-9 * law.std
        assert weight > 1e-3
        assert stats.binomtest(int(share.sum()), episodes, weight).pvalue > limit
    for tail in (0.01, 0.05, 0.5, 0.9):
        x = law.quantile(tail) + 1e-9 * law.std
        assert float(law.probability(x)) >= tail - law.truncation
        below = int((gains <= x).sum())
        assert stats.binomtest(below, episodes, float(law.probability(x))).pvalue > limit, tail
    shortfall = risk.shortfall_estimate(-gains, 0.95)
    deviation = (shortfall.high - shortfall.low) / (2.0 * stats.norm.isf(0.025))
    error = law.accuracy(0.95)[1]
    assert abs(law.expected_shortfall(0.95) - shortfall.value) < stats.norm.isf(limit / 2.0) * deviation + error


@pytest.mark.parametrize("volatility", [0.0, 0.05])
def test_a_nearly_discrete_law_is_never_called_exact(volatility):
    """Equal gains a fill with little price noise make nearly a lattice: its characteristic function returns."""
    arguments = {"volatility": volatility, "num_steps": 20}
    policy = baselines.paper_policies(AS, **arguments)["constant"]
    with pytest.raises(ValueError, match="nearly discrete"):
        baselines.pnl_distribution(AS, policy, **arguments)
    assert baselines.risk_measures(AS, policy, episodes=1000, **arguments).method == "simulated"
    with pytest.raises(ValueError, match="nearly discrete"):
        baselines.risk_measures(AS, policy, method="exact", episodes=1000, **arguments)


def test_jumps_alone_leave_no_density():
    """Without diffusion a path of no jump carries no noise, although the jumps' variance is large."""
    arguments = {**FEW_FILLS, "volatility": 0.0, "jump_rate": 3.0, "jump_volatility": 1.0}
    policy = baselines.paper_policies(GLFT, **arguments)["constant"]
    with pytest.raises(ValueError, match="nearly discrete"):
        baselines.pnl_distribution(GLFT, policy, **arguments)


def test_a_law_that_returns_beyond_its_series_is_found_out():
    """With little noise and hundreds of fills, terms vanish at first and return: the error stays above the lattice's.

    The quotes are equal, so gains of fills are multiples of one, and by symmetry the P&L has its atoms' spacing
    there: half the largest jump of the lattice is what a smooth law must miss.
    """
    arguments = {"volatility": 0.2, "num_steps": 5, "fill_rate": 140.0, "inventory_limit": 4.0}
    problem = problem_of(AS, **arguments)
    table = frozen.tabulate(problem, baselines.paper_policies(AS, **arguments)["constant"])
    law = pnl_law(problem, table)
    u = 2.0 * np.pi / float(table.controls[0, 0, 0])  # where the lattice of gains returns
    back = abs(frozen.characteristic_function(problem, table, frozen.PNL, np.array([u]))[0])
    cut = len(law.coefficients) * np.pi / (law.high - law.low)
    assert back > 1e-6
    assert cut > u or law.truncation > back


def test_no_trade_at_all_is_one_atom():
    """The smallest rate allowed, for a moment: the P&L is 0, exactly, and so are VaR and CVaR."""
    arguments = {**FEW_FILLS, "fill_rate": 1e-12, "horizon": 1e-3}
    measures = baselines.risk_measures(
        GLFT, lambda seen: np.zeros((len(seen), 2)), markov=True, method="exact", episodes=1000, **arguments
    )
    assert measures.method == "exact"
    assert measures.value_at_risk[0.99].value == measures.expected_shortfall[0.99].value == 0.0
