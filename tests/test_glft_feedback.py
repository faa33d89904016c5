"""Quotes that react at once: reference digits, dense matrix exponentials, and agreement with the frozen problem."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import expm

from mmgym.baselines import frozen
from mmgym.baselines.frozen import Functional
from mmgym.baselines.glft import (
    GLFTProblem,
    avellaneda_stoikov_depths,
    continuous_depths,
    continuous_values,
    glft_asymptotic_depths,
    riccati_depths,
    stationary_depths,
)
from mmgym.baselines.glft.feedback import (
    feedback_certainty_equivalent,
    feedback_moments,
    feedback_pnl_law,
    feedback_problem,
)
from mmgym.baselines.pnl_law import pnl_law
from mmgym.models.glft import Params

Depths = NDArray[np.float64]

CELLS = 2000
CONTINUOUS = 66.28920797649  # value of the Hamilton-Jacobi-Bellman equation

# Reference of the mean criterion: J, regret, P&L standard deviation, expected fills, certainty equivalent for 0.1.
POLICIES = {
    "optimal": (66.289208, 0.0, 8.432819, 101.0148, 64.0937),
    "riccati": (66.285992, 0.003216, 8.460605, 101.0428, 64.0902),
    "glft_asymptotic": (66.229369, 0.059839, 8.360793, 100.9299, 64.0332),
    "stationary": (66.227612, 0.061596, 8.341321, 100.9035, 64.0319),
    "wobbly": (64.763385, 1.525823, 8.401934, 98.9384, 62.5285),
    "avellaneda_stoikov": (63.508516, 2.780693, 7.377774, 95.2628, 61.3589),
    "zero_skew": (61.106012, 5.183196, 12.663367, 96.4193, 57.1735),
    "constant": (61.038435, 5.250773, 12.657354, 99.8254, 57.1897),
}


def avellaneda_stoikov_market(num_steps: int) -> Params:
    """The mean-criterion set of the reference: gamma sigma^2 = 2 phi = 0.4."""
    return Params.create(
        volatility=2.0,
        fill_rate=140.0,
        fill_decay=1.5,
        horizon=1.0,
        num_steps=num_steps,
        inventory_limit=10.0,
        running_penalty=0.2,
    )


def small_market(num_steps: int) -> Params:
    return Params.create(
        volatility=1.0,
        fill_rate=10.0,
        fill_decay=1.5,
        horizon=1.0,
        num_steps=num_steps,
        inventory_limit=3.0,
        running_penalty=0.2,
        terminal_penalty=0.1,
    )


def general_market(num_steps: int) -> Params:
    """Everything differs between the sides, and nothing is zero or one."""
    return Params.create(
        volatility=0.7,
        drift=0.4,
        fill_rate=[5.0, 8.0],
        fill_decay=[1.2, 2.1],
        order_size=0.5,
        inventory_limit=2.0,
        initial_inventory=-0.5,
        horizon=1.5,
        num_steps=num_steps,
        running_penalty=0.15,
        terminal_penalty=0.3,
    )


def midpoint_depths(name: str, cells: int) -> Depths:
    """Depths at the midpoints of the cells, for the mean-criterion set."""
    params = avellaneda_stoikov_market(2 * cells)  # every second step starts at a midpoint
    limit = params.limit
    optimal = continuous_depths(params, continuous_values(params)[1::2])
    if name == "optimal":
        return optimal
    if name == "zero_skew":
        return np.broadcast_to(optimal[:, limit, None, :], optimal.shape)
    if name == "stationary":
        return np.broadcast_to(stationary_depths(params), optimal.shape)
    if name == "constant":
        return np.full(optimal.shape, 1.0 / params.fill_decay_bid)
    if name == "wobbly":
        t, q = ((np.arange(cells) + 0.5) / cells)[:, None], np.arange(-limit, limit + 1)[None, :]
        bid = (1.05 + 0.75 * q / limit + 0.3 * np.sin(3.0 * t + q)) / params.fill_decay_bid
        ask = (1.05 - 0.75 * q / limit + 0.3 * np.cos(2.0 * t - q)) / params.fill_decay_ask
        return np.stack([bid, ask], axis=-1)
    formulas = {
        "riccati": riccati_depths,
        "glft_asymptotic": glft_asymptotic_depths,
        "avellaneda_stoikov": avellaneda_stoikov_depths,
    }
    return formulas[name](params)[1::2]


@pytest.mark.parametrize("name", POLICIES)
def test_policies_have_the_reference_digits(name: str) -> None:
    params, depths = avellaneda_stoikov_market(1), midpoint_depths(name, CELLS)
    value, regret, std, fills, equivalent = POLICIES[name]
    mean, _ = feedback_moments(params, depths, Functional(gain=1.0, price=1.0, penalty=1.0))
    # The reference's value and regret of Avellaneda-Stoikov differ by 1e-6 in the last digit; it is 63.5085152 here.
    assert mean == pytest.approx(value, abs=1e-6 if name == "avellaneda_stoikov" else 0.51e-6)
    assert CONTINUOUS - mean == pytest.approx(regret, abs=0.51e-6)
    assert feedback_moments(params, depths)[1] == pytest.approx(std, abs=0.51e-6)
    assert feedback_moments(params, depths, Functional(fills=1.0))[0] == pytest.approx(fills, abs=0.51e-4)
    assert feedback_certainty_equivalent(params, depths, 0.1) == pytest.approx(equivalent, abs=0.51e-4)


@pytest.mark.parametrize(
    ("name", "risk"),
    [
        ("optimal", (-53.967502, -48.411260, -50.550029, -45.570680)),
        ("constant", (-45.245508, -33.981490, -38.325829, -27.880104)),
    ],
)
def test_tail_risk_has_the_reference_digits(name: str, risk: tuple[float, ...]) -> None:
    law = feedback_pnl_law(avellaneda_stoikov_market(1), midpoint_depths(name, 400))
    measured = [
        law.value_at_risk(0.95),
        law.value_at_risk(0.99),
        law.expected_shortfall(0.95),
        law.expected_shortfall(0.99),
    ]
    np.testing.assert_allclose(measured, risk, rtol=0, atol=0.51e-6)


def test_optimal_quotes_reach_the_continuous_value_at_second_order_in_the_cells() -> None:
    def gap(cells: int) -> float:
        params = small_market(2 * cells)
        depths = continuous_depths(params, continuous_values(params)[1::2])
        return 4.19712702533 - feedback_moments(params, depths, Functional(gain=1.0, penalty=1.0))[0]

    coarse, fine = gap(100), gap(400)
    assert 0.0 < fine < 1e-6
    assert coarse / fine == pytest.approx(16.0, rel=0.05)


def dense_cell(problem: GLFTProblem, depths: Depths, functional: Functional) -> tuple[Depths, Depths, Depths]:
    """Generator, gains of a jump (S, S) and flow, entry by entry from the market's definition."""
    p, size = problem.params, problem.num_states
    generator, gains, flow = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
    for i in range(size):
        q = (i - p.limit) * p.order_size
        flow[i] = functional.gain * p.drift * q - functional.penalty * p.running_penalty * q**2
        flow[i] += functional.absolute_inventory * abs(q)
        for j, depth, rate, decay in (
            (i + 1, depths[i, 0], p.fill_rate_bid, p.fill_decay_bid),
            (i - 1, depths[i, 1], p.fill_rate_ask, p.fill_decay_ask),
        ):
            if 0 <= j < size:
                generator[i, j] = rate * np.exp(-decay * depth)
                generator[i, i] -= generator[i, j]
                gains[i, j] = functional.gain * p.order_size * depth + functional.fills
    return generator, gains, flow


FUNCTIONAL = Functional(gain=1.3, price=0.8, penalty=0.7, fills=0.2, absolute_inventory=-0.4)


@pytest.fixture(scope="module")
def random_case() -> tuple[GLFTProblem, Depths]:
    params = general_market(3)
    depths = np.random.default_rng(5).uniform(-0.3, 1.5, (3, 2 * params.limit + 1, 2))
    return feedback_problem(params, depths), depths


def test_moments_against_dense_exponentials(random_case: tuple[GLFTProblem, Depths]) -> None:
    problem, depths = random_case
    p, size = problem.params, problem.num_states
    q = (np.arange(size) - p.limit) * p.order_size
    last = -FUNCTIONAL.penalty * p.terminal_penalty * q**2
    vector = np.concatenate([[1.0], last, last**2])
    for n in (2, 1, 0):
        generator, gains, flow = dense_cell(problem, depths[n], FUNCTIONAL)
        jumps = np.where(generator > 0.0, generator, 0.0)
        matrix = np.zeros((1 + 2 * size,) * 2)
        mean, square = slice(1, 1 + size), slice(1 + size, None)
        matrix[mean, 0] = flow + (jumps * gains).sum(axis=1)
        matrix[square, 0] = (FUNCTIONAL.price * p.volatility * q) ** 2 + (jumps * gains**2).sum(axis=1)
        matrix[mean, mean] = matrix[square, square] = generator
        matrix[square, mean] = 2.0 * (np.diag(flow) + jumps * gains)
        vector = expm(0.5 * matrix) @ vector
    values, _ = frozen.evaluate(problem, depths, FUNCTIONAL._replace(moments=2))
    np.testing.assert_allclose(values[0].T.ravel(), vector[1:], rtol=1e-12, atol=1e-13)
    only_mean, _ = frozen.evaluate(problem, depths, FUNCTIONAL)
    np.testing.assert_allclose(only_mean[0, :, 0], vector[mean], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("exponents", [np.array([-0.6, 0.3]), np.array([0.0, 1.1j, 6.0j])])
def test_exponential_functionals_against_dense_exponentials(
    random_case: tuple[GLFTProblem, Depths], exponents: NDArray[np.complex128]
) -> None:
    problem, depths = random_case
    p, size = problem.params, problem.num_states
    q = (np.arange(size) - p.limit) * p.order_size
    expected = []
    for z in exponents:
        chi = np.exp(-z * FUNCTIONAL.penalty * p.terminal_penalty * q**2)
        for n in (2, 1, 0):
            generator, gains, flow = dense_cell(problem, depths[n], FUNCTIONAL)
            noise = 0.5 * (z * FUNCTIONAL.price * p.volatility * q) ** 2
            chi = expm(0.5 * (generator * np.exp(z * gains) + np.diag(z * flow + noise))) @ chi
        expected.append(chi)
    values, log_scale = frozen.evaluate(problem, depths, FUNCTIONAL._replace(exponents=exponents))
    np.testing.assert_allclose(values[0].T * np.exp(log_scale[0]), expected, rtol=1e-12, atol=1e-13)


def test_law_of_the_inventory_against_dense_exponentials(random_case: tuple[GLFTProblem, Depths]) -> None:
    problem, depths = random_case
    law = problem.initial
    for n in range(3):
        law = law @ expm(0.5 * dense_cell(problem, depths[n], FUNCTIONAL)[0])
    np.testing.assert_allclose(frozen.state_laws(problem, depths)[-1], law, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("market", "value"), [(avellaneda_stoikov_market, 61.0384347660), (small_market, 3.69126578156)]
)
@pytest.mark.parametrize("steps", [1, 7])
def test_constant_quote_does_not_care_when_it_may_change(market, value: float, steps: int) -> None:
    params = market(steps)
    quote = np.full((steps, 2 * params.limit + 1, 2), 1.0 / 1.5)
    criterion = Functional(gain=1.0, price=1.0, penalty=1.0)
    moments = feedback_moments(params, quote, criterion)
    assert moments[0] == pytest.approx(value, rel=1e-11)
    assert moments == pytest.approx(frozen.moments(GLFTProblem(params), quote, criterion), rel=1e-11)
    assert moments == pytest.approx(feedback_moments(params, np.repeat(quote, 3, axis=0), criterion), rel=1e-11)


def test_constant_quote_has_the_certainty_equivalent_of_the_frozen_problem() -> None:
    params = general_market(4)._replace(utility="cara", risk_aversion=0.5, running_penalty=0.0)
    quote = np.broadcast_to([0.4, 0.9], (4, 2 * params.limit + 1, 2))
    assert feedback_certainty_equivalent(params, quote, 0.5) == pytest.approx(
        frozen.criterion_value(GLFTProblem(params), quote), rel=1e-11
    )


@pytest.mark.long
def test_constant_quote_has_the_law_of_the_frozen_problem() -> None:
    params = avellaneda_stoikov_market(20)
    quote = np.full((20, 2 * params.limit + 1, 2), 1.0 / 1.5)
    law, frozen_law = feedback_pnl_law(params, quote[:5]), pnl_law(GLFTProblem(params), quote)
    x = np.linspace(20.0, 110.0, 10)
    np.testing.assert_allclose(law.probability(x), frozen_law.probability(x), rtol=0, atol=1e-11)


def test_certainty_equivalent_leaves_out_the_running_penalty_and_tends_to_the_mean() -> None:
    params = small_market(5)
    quote = np.full((5, 2 * params.limit + 1, 2), 0.6)
    mean, _ = feedback_moments(
        params._replace(running_penalty=0.0), quote, Functional(gain=1.0, price=1.0, penalty=1.0)
    )
    assert feedback_certainty_equivalent(params, quote, 1e-6) == pytest.approx(mean, abs=1e-5)
    assert feedback_certainty_equivalent(params, quote, 1.0) < mean - 0.1


def test_bad_tables_are_refused() -> None:
    params = small_market(5)
    with pytest.raises(ValueError, match=r"\(cells, 7, 2\)"):
        feedback_moments(params, np.zeros((5, 6, 2)))
    with pytest.raises(ValueError, match="finite"):
        feedback_moments(params, np.full((5, 7, 2), np.nan))
    with pytest.raises(ValueError, match="too low"):
        feedback_moments(params, np.full((5, 7, 2), -1000.0))
    with pytest.raises(ValueError, match="risk_aversion"):
        feedback_certainty_equivalent(params, np.zeros((5, 7, 2)), 0.0)
    problem = feedback_problem(params, np.zeros((5, 7, 2)))
    with pytest.raises(ValueError, match="all inventories"):
        problem.backward(0, np.array([1, 2]), np.zeros((2, 2)), np.zeros((7, 1)), Functional(gain=1.0))
    with pytest.raises(TypeError, match="continuous_values"):
        problem.improve(0, np.zeros((7, 1)))
