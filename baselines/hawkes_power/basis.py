"""Where value functions of the intraday power market are sought, and how right-hand sides are projected there.

A `Space` is a set of products of features with states and a projection: values at these states become coefficients.
`fitted_space` takes states of simulated paths and least squares: the projection on the features under the law of the
market itself. `expansion_space` takes the first-order expansion in the intensities around their means; with ``order=0``
what is left of it are the intensities' effect on the expected mid and a value that is blind to them.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmgym.baselines.hawkes_power import book, kernels
from mmgym.baselines.hawkes_power.kernels import Basis
from mmgym.models.hawkes_power import MARKET, MID_SIGN, PROCESSES, Params

Array = NDArray[np.float64]

__all__ = ["Space", "expansion_space", "fitted_space"]

PATHS, PER_PATH = 600, 5  # states of simulated paths
RELAXATION = 20.0  # minutes of a path at least, in units of the slowest process
PATH_EVENTS = 20_000.0  # on a path, at most
SEED = 0x5EED
UNIFORM = 0.02  # share of the uniform law in the weights of the spread's features
STEP = 1e-4  # of finite differences in the intensities, relative to their means

# Weights of degrees, which must not exceed WEIGHT together: the spread, book processes, market orders
SPREAD_DEGREE, BOOK_DEGREE, ORDER_DEGREE = 5, 2, 4
SPREAD_WEIGHT, BOOK_WEIGHT, ORDER_WEIGHT, WEIGHT = 0.6, 1.0, 0.75, 3.0
EXPANSION_DEGREE = 8  # of the spread's features in expansions


class Space(NamedTuple):
    """Features, states, and the projection of functions of them.

    Attributes
    ----------
    basis : Basis
    spreads, rates : arrays, shapes (S,), (S, 6)
    projection : array, shape (B, S)
        Coefficients of a function given at the states.
    linear : array, shape (B,)
        Where not NaN, the coefficient follows ``C' = linear C + forcing q`` instead of the projection.
    forcing : array, shape (B,)
    """

    basis: Basis
    spreads: NDArray[np.int64]
    rates: Array
    projection: Array
    linear: Array
    forcing: Array


def spread_features(params: Params, degree: int) -> tuple[Array, Array]:
    """Polynomials of the spread, (L, degree + 1), orthonormal under weights (L,) near its stationary law."""
    largest = params.largest_spread
    weights = (1.0 - UNIFORM) * book.spread_law(params) + UNIFORM / largest
    grid = np.linspace(-1.0, 1.0, largest) if largest > 1 else np.zeros(1)
    powers = np.polynomial.chebyshev.chebvander(grid, min(degree, largest - 1))
    table = np.linalg.qr(np.sqrt(weights)[:, None] * powers)[0] / np.sqrt(weights)[:, None]
    return table * np.sign(table[0, 0]), weights


def _basis(params: Params, degrees: NDArray[np.int64], table: Array, shapes: Array) -> Basis:
    constant = degrees[:, 1:] == 0
    most = max(int((~constant).sum(axis=1).max()), 1)
    active = np.full((len(degrees), most), -1, dtype=np.int64)
    for row, flags in enumerate(~constant):
        nonzero = np.flatnonzero(flags)
        active[row, : len(nonzero)] = nonzero
    moved = np.einsum("kij,jn->kin", book.spread_transitions(params), table)
    return Basis(
        np.ascontiguousarray(degrees),
        active,
        np.ascontiguousarray(table),
        np.ascontiguousarray(moved),
        book.mean_impacts(params),
        np.ascontiguousarray(shapes),
    )


def sampled_states(params: Params, per_path: int = PER_PATH) -> tuple[NDArray[np.int64], Array]:
    """States at uniform times of simulated paths, longer than the horizon where that is short: (S,) and (S, 6)."""
    pull = params.decays - params.excitations
    horizon = params.horizon
    if (pull > 0.0).all():
        longest = PATH_EVENTS / float(book.mean_rates(params).sum())
        horizon = max(horizon, min(RELAXATION / float(pull.min()), longest))
    spreads, rates = np.empty(PATHS * per_path, dtype=np.int64), np.empty((PATHS * per_path, len(PROCESSES)))
    seeds = np.random.SeedSequence(SEED).generate_state(PATHS, np.uint64)
    rows = np.zeros(1, MARKET.row_dtype)
    kernels.sample_states(MARKET.record(params), rows, horizon, per_path, seeds, spreads, rates)
    return spreads, rates


def fitted_space(
    params: Params, weight: float = WEIGHT, per_path: int = PER_PATH, book_degree: int = BOOK_DEGREE
) -> Space:
    """Products of features up to a total weight, fitted to states of simulated paths."""
    spreads, rates = sampled_states(params, per_path)
    bounded = rates / (rates + params.rate_scales)
    columns: list[Array] = [
        rates.mean(axis=0),
        rates.std(axis=0),
        params.rate_scales,
        bounded.mean(axis=0),
        bounded.std(axis=0),
    ]
    shapes: Array = np.stack(columns, axis=1)
    varies = rates.std(axis=0) > 1e-9 * rates.mean(axis=0)
    shapes[~varies] = 1.0
    table, _ = spread_features(params, SPREAD_DEGREE)
    most = [book_degree] * 4 + [ORDER_DEGREE] * 2
    ranges = [range(table.shape[1]), *(range(n + 1 if v else 1) for n, v in zip(most, varies, strict=True))]
    weights = np.array([SPREAD_WEIGHT, *[BOOK_WEIGHT] * 4, *[ORDER_WEIGHT] * 2])
    degrees = np.array(list(itertools.product(*ranges)), dtype=np.int64)
    basis = _basis(params, degrees[degrees @ weights <= weight + 1e-9], table, shapes)
    features = features_at(params, basis, spreads, rates)[:, 0]
    size = len(basis.degrees)
    projection = np.asarray(np.linalg.pinv(features, rcond=1e-9), dtype=np.float64)
    return Space(basis, spreads, rates, projection, np.full(size, np.nan), np.zeros(size))


def expansion_space(params: Params, order: int) -> Space:
    """Order 0 or 1 in the intensities around their means, at every spread.

    Coefficients of polynomials in the spread, ``EXPANSION_DEGREE``, match the right-hand side and (order 1) its
    derivatives in the intensities there.
    """
    table, weights = spread_features(params, EXPANSION_DEGREE)
    means, count = book.mean_rates(params), table.shape[1]
    shapes = np.stack([means, np.ones(6), np.ones(6), np.zeros(6), np.ones(6)], axis=1)
    constant = np.zeros((count, 7), dtype=np.int64)
    constant[:, 0] = np.arange(count)
    slopes = count if order else 1
    parts = [constant]
    for k in range(len(PROCESSES)):
        part = constant[:slopes].copy()
        part[:, k + 1] = 1
        parts.append(part)
    basis = _basis(params, np.concatenate(parts), table, shapes)
    fit = (weights[:, None] * table).T  # (n, L)
    largest = params.largest_spread
    points = np.stack([means, *(means + sign * STEP * means * np.eye(6)[k] for k in range(6) for sign in (1, -1))])
    projection = np.zeros((len(basis.degrees), largest * len(points)))
    projection[:count, :largest] = fit
    linear, forcing = np.full(len(basis.degrees), np.nan), np.zeros(len(basis.degrees))
    for k in range(len(PROCESSES)):
        rows = slice(count + k * slopes, count + (k + 1) * slopes)
        if order:
            for i, sign in ((1 + 2 * k, 1), (2 + 2 * k, -1)):
                projection[rows, i * largest : (i + 1) * largest] = sign * fit / (2.0 * STEP * means[k])
        else:
            linear[rows] = params.excitation[k] - params.decay[k]
            forcing[rows] = MID_SIGN[k] * book.effective_impacts(params)[k]
    spreads = np.tile(np.arange(1, largest + 1), len(points))
    return Space(basis, spreads, np.repeat(points, largest, axis=0), projection, linear, forcing)


def features_at(params: Params, basis: Basis, spreads: NDArray[np.int64], rates: Array) -> Array:
    """Features (S, 4, B) of states; see `mmgym.baselines.hawkes_power.kernels`."""
    features = np.empty((len(spreads), 4, len(basis.degrees)))
    kernels.features_of(
        MARKET.record(params), basis, np.ascontiguousarray(spreads), np.ascontiguousarray(rates, dtype=float), features
    )
    return features
