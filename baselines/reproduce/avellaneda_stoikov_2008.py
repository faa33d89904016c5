r"""Avellaneda & Stoikov (2008), "High-frequency trading in a limit order book", Quantitative Finance 8(3), section 3.3.

The paper plays two strategies on simulated paths, for three risk aversions ``gamma``: the *inventory* strategy, whose
quotes stand around the reservation price ``S - q gamma sigma^2 (T - t)`` (eq. 3.17), and the *symmetric* one, with the
same spread around the mid. Its recipe: steps of ``dt = 0.005``; in each, a bid at depth ``d`` is filled with
probability ``min(1, A exp(-k d) dt)``, an ask likewise and independently, quotes from the time left at the start of the
step, no bound on inventory; then the mid moves by ``sigma sqrt(dt) Z``, which the inventory after the fills feels.

The recipe is a Markov chain, so its moments need no simulation: here they are exact, for both readings of the spread,

    time-dependent:  gamma sigma^2 (T - t) + (2 / gamma) ln(1 + gamma / k)   (eq. 3.18),
    constant:        (2 / gamma) ln(1 + gamma / k)                           (the spread that the table prints),

beside 1000 simulated paths, as in the paper, and the exact values of the model itself, with Poisson fills in continuous
time.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines import frozen
from mmgym.baselines.frozen import Functional
from mmgym.baselines.glft.feedback import feedback_moments, feedback_problem
from mmgym.baselines.glft.one_step import GLFTProblem
from mmgym.baselines.pnl_law import PnlLaw, pnl_law
from mmgym.baselines.reproduce.artifacts import paragraph, text_table, write_artifacts
from mmgym.models.glft import Params
from mmgym.plot import new_figure

Array = NDArray[Any]

__all__ = ["BernoulliProblem", "recipe_quotes", "recipe_row", "reproduce"]

VOLATILITY, FILL_RATE, FILL_DECAY, HORIZON = 2.0, 140.0, 1.5, 1.0
NUM_STEPS, INITIAL_PRICE, PATHS = 200, 100.0, 1000
RISK_AVERSIONS = (0.1, 0.01, 0.5)  # in the order of the paper's tables
STRATEGIES, READINGS = ("inventory", "symmetric"), ("time-dependent", "constant")
QUANTITIES = ("spread", "profit", "std_profit", "std_inventory")

WIDE, NARROW = 100, 64  # inventory grids (orders): beyond 11 and 6 standard deviations, so in effect without bounds
LOWEST_DEPTH = -1.0  # of the continuous-time quotes, which would be filled ever faster far beyond the mid

# (gamma, strategy): profit, its standard deviation, that of the final inventory, spread (nan: not at hand). The paper's
# mean final inventories are not at hand either; exactly they are 0.
PUBLISHED = {
    (0.1, "inventory"): (62.94, 5.89, 2.80, 1.29),
    (0.1, "symmetric"): (67.21, 13.43, 8.66, math.nan),
    (0.01, "inventory"): (66.78, 8.76, 4.70, math.nan),
    (0.01, "symmetric"): (67.36, 13.40, 8.65, math.nan),
    (0.5, "inventory"): (33.92, 4.72, 1.88, math.nan),
    (0.5, "symmetric"): (66.20, 14.53, 9.06, math.nan),
}
# A version that is often quoted, of the preprint's type; one decimal, not checked against a copy.
PREPRINT = {(0.1, "inventory"): (65.0, 6.6, 2.9, 1.49), (0.1, "symmetric"): (68.4, 12.7, 8.4, math.nan)}
# The spread that a version prints tells its reading.
VERSIONS = {"published": (PUBLISHED, "constant", 0.005), "preprint": (PREPRINT, "time-dependent", 0.05)}


class BernoulliProblem(GLFTProblem):
    """The paper's recipe as a `mmgym.baselines.frozen.FrozenProblem` for evaluation: at most one fill a side in a step.

    A side is off when the inventory is at its bound at the start of the step; drift and penalty accrue on that
    inventory, the price noise on the one after the fills.
    """

    def _fill_probabilities(self, states: Array, depths: Array) -> tuple[Array, Array]:
        """Probabilities (M,), (M,) that the bid and the ask are filled in a step."""
        probabilities = np.minimum(1.0, self.intensities(depths) * self.params.step_length)
        bid = np.where(states == self.num_states - 1, 0.0, probabilities[:, 0])
        ask = np.where(states == 0, 0.0, probabilities[:, 1])
        return bid, ask

    def backward(self, n: int, states: Array, controls: Array, values: Array, functional: Functional) -> Array:
        """Values (M, K) at step n, from the values (S, K) of step n + 1, by the four outcomes of a step."""
        bid, ask = self._fill_probabilities(states, controls)
        gain_bid, gain_ask = (functional.gain * self.params.order_size * controls + functional.fills).T
        drift, variance = (rate * self.params.step_length for rate in self._rates(functional))
        outcomes = list(itertools.product((0, 1), (0, 1)))  # bids and asks filled
        after = {(b, a): np.clip(states + b - a, 0, self.num_states - 1) for b, a in outcomes}
        result = np.zeros((len(states), values.shape[1]), dtype=values.dtype)
        if functional.exponents is not None:
            z = functional.exponents
            carried = np.exp(0.5 * np.multiply.outer(variance, z**2)) * values
            of_bid = ((1.0 - bid)[:, None], bid[:, None] * np.exp(np.multiply.outer(gain_bid, z)))
            of_ask = ((1.0 - ask)[:, None], ask[:, None] * np.exp(np.multiply.outer(gain_ask, z)))
            for b, a in outcomes:
                result += of_bid[b] * of_ask[a] * carried[after[b, a]]
            return result * np.exp(np.multiply.outer(drift[states], z))
        for b, a in outcomes:
            weight = (bid if b else 1.0 - bid) * (ask if a else 1.0 - ask)
            gain, rest = drift[states] + b * gain_bid + a * gain_ask, values[after[b, a]]
            result[:, 0] += weight * (gain + rest[:, 0])
            if functional.moments == 2:
                square = gain**2 + variance[after[b, a]] + 2.0 * gain * rest[:, 0] + rest[:, 1]
                result[:, 1] += weight * square
        return result

    def backward_without_inventory(
        self, n: int, states: Array, controls: Array, values: Array, functional: Functional
    ) -> Array:
        """Paths without inventory: both sides are filled, or neither."""
        bid, ask = self._fill_probabilities(states, controls)
        gain = (functional.gain * self.params.order_size * controls + functional.fills).sum(axis=1)
        both = np.multiply.outer(gain, np.asarray(functional.exponents))
        factor = ((1.0 - bid) * (1.0 - ask))[:, None] + (bid * ask)[:, None] * np.exp(both)
        return np.asarray(np.where(self.lots[states] == 0, 1.0, 0.0)[:, None] * factor * values[states])

    def forward(self, n: int, controls: Array, law: Array) -> Array:
        """Law (S,) of the inventory after a step."""
        bid, ask = self._fill_probabilities(np.arange(self.num_states), controls)
        up, down = law * bid * (1.0 - ask), law * ask * (1.0 - bid)
        result = law - up - down
        result[1:] += up[:-1]
        result[:-1] += down[1:]
        return result

    def improve(self, n: int, values: Array, guess: Array | None = None) -> NoReturn:
        """Not offered.

        Raises
        ------
        TypeError
            Always: the recipe is evaluated at the paper's quotes only.
        """
        raise TypeError("the paper's recipe is evaluated at the paper's quotes only, not optimised")


def market(num_steps: int, limit: int) -> Params:
    """The paper's market (section 3.3), inventory between ``-limit`` and ``limit`` orders."""
    return Params.create(
        volatility=VOLATILITY,
        fill_rate=FILL_RATE,
        fill_decay=FILL_DECAY,
        horizon=HORIZON,
        num_steps=num_steps,
        initial_price=INITIAL_PRICE,
        inventory_limit=limit,
        running_penalty=0.0,
    )


def recipe_quotes(risk_aversion: float, strategy: str, reading: str, left: Any, inventory: Any) -> Array:
    """Bid and ask depths (..., 2) of a strategy (price).

    Parameters
    ----------
    risk_aversion : float
        ``gamma`` (1 / price).
    strategy : {"inventory", "symmetric"}
    reading : {"time-dependent", "constant"}
        Of the spread.
    left : array (...)
        Time left ``T - t``.
    inventory : array (...)
        ``q`` (assets).
    """
    left, inventory = np.broadcast_arrays(np.asarray(left, dtype=float), np.asarray(inventory, dtype=float))
    risk = risk_aversion * VOLATILITY**2 * left
    half = np.log1p(risk_aversion / FILL_DECAY) / risk_aversion + (0.5 * risk if reading == "time-dependent" else 0.0)
    lean = inventory * risk if strategy == "inventory" else 0.0 * risk
    return np.stack([half + lean, half - lean], axis=-1)


def _recipe(
    risk_aversion: float, strategy: str, reading: str, lowest_depth: float = -math.inf, limit: int = WIDE
) -> tuple[BernoulliProblem, Array]:
    """The recipe and the table of depths (N, S, 2)."""
    problem = BernoulliProblem(market(NUM_STEPS, limit))
    left = HORIZON - np.arange(NUM_STEPS)[:, None] * problem.params.step_length
    depths = recipe_quotes(risk_aversion, strategy, reading, left, problem.inventory)
    return problem, np.maximum(depths, lowest_depth)


def _final_inventory(problem: GLFTProblem, depths: Array) -> tuple[float, float]:
    """Mean and standard deviation of ``q_T`` (assets)."""
    law = frozen.state_laws(problem, depths)[-1]
    mean = float(law @ problem.inventory)
    return mean, math.sqrt(float(law @ problem.inventory**2) - mean**2)


def recipe_row(risk_aversion: float, strategy: str, reading: str, lowest_depth: float = -math.inf) -> dict[str, float]:
    """Exact row of the paper's table under its Bernoulli recipe.

    Parameters
    ----------
    risk_aversion, strategy, reading
        As for `recipe_quotes`.
    lowest_depth : float
        Floor of the depths (price); none in the paper.

    Returns
    -------
    dict
        ``spread`` (time average), ``profit``, ``std_profit`` (price), ``mean_inventory``, ``std_inventory`` (assets, at
        the end).
    """
    problem, depths = _recipe(risk_aversion, strategy, reading, lowest_depth)
    return _row(depths, frozen.moments(problem, depths, frozen.PNL), _final_inventory(problem, depths))


def continuous_row(risk_aversion: float, strategy: str, reading: str, cells: int) -> dict[str, float]:
    """The same row for Poisson fills in continuous time, quotes of so many time cells and never below depth -1."""
    params = market(cells, NARROW)
    left = HORIZON - (np.arange(cells)[:, None] + 0.5) * params.step_length
    inventory = np.arange(-params.limit, params.limit + 1)
    depths = np.maximum(recipe_quotes(risk_aversion, strategy, reading, left, inventory), LOWEST_DEPTH)
    held = _final_inventory(feedback_problem(params, depths), depths)
    return _row(depths, feedback_moments(params, depths), held)


def _row(depths: Array, profit: tuple[float, float], inventory: tuple[float, float]) -> dict[str, float]:
    spread = float(depths[:, depths.shape[1] // 2].sum(axis=-1).mean())  # of a market maker without inventory
    return {
        "spread": spread,
        "profit": profit[0],
        "std_profit": profit[1],
        "mean_inventory": inventory[0],
        "std_inventory": inventory[1],
    }


def simulate(
    risk_aversion: float, strategy: str, reading: str, paths: int, seed: int
) -> tuple[Array, Array, dict[str, Array]]:
    """Play the recipe, step by step and path by path, as the paper did.

    Parameters
    ----------
    risk_aversion, strategy, reading
        As for `recipe_quotes`.
    paths, seed : int

    Returns
    -------
    profit, inventory : (paths,), (paths,)
        At the end (price, assets).
    history : dict of (NUM_STEPS,) arrays
        Of the first path, at the start of each step: time, mid, bid, ask, reservation (prices) and inventory (assets).
    """
    random = np.random.default_rng(seed)
    step = HORIZON / NUM_STEPS
    cash, inventory, mid = np.zeros(paths), np.zeros(paths), np.full(paths, INITIAL_PRICE)
    columns = ("time", "mid", "bid", "ask", "reservation", "inventory")
    history = {name: np.empty(NUM_STEPS) for name in columns}
    for n in range(NUM_STEPS):
        left = HORIZON - n * step
        depths = recipe_quotes(risk_aversion, strategy, reading, left, inventory)
        bid, ask = mid - depths[:, 0], mid + depths[:, 1]
        reservation = mid - inventory * risk_aversion * VOLATILITY**2 * left
        for name, entry in zip(columns, (n * step, mid[0], bid[0], ask[0], reservation[0], inventory[0]), strict=True):
            history[name][n] = entry
        bought, sold = (random.random((paths, 2)) < FILL_RATE * np.exp(-FILL_DECAY * depths) * step).T
        cash += sold * ask - bought * bid
        inventory += bought.astype(float) - sold
        mid += VOLATILITY * math.sqrt(step) * random.standard_normal(paths)
    return cash + inventory * mid, inventory, history


def _moments_with_errors(sample: Array) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and the standard error of each."""
    count, mean, std = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    fourth = float(((sample - mean) ** 4).mean())
    return mean, std, std / math.sqrt(count), math.sqrt(max(fourth - std**4, 0.0) / count) / (2.0 * std)


def simulated_row(depths: Array, profit: Array, inventory: Array) -> dict[str, float]:
    """Row of the paper's table from simulated paths, with the standard error of each number."""
    mean, std, mean_error, std_error = _moments_with_errors(profit)
    mean_q, std_q, mean_q_error, std_q_error = _moments_with_errors(inventory)
    return {
        **_row(depths, (mean, std), (mean_q, std_q)),
        "profit_stderr": mean_error,
        "std_profit_stderr": std_error,
        "mean_inventory_stderr": mean_q_error,
        "std_inventory_stderr": std_q_error,
    }


def _printed_rows() -> list[dict[str, Any]]:
    """The paper's own numbers as rows."""
    rows = []
    for source, (printed, reading, _) in VERSIONS.items():
        for (risk_aversion, strategy), (profit, std, std_inventory, spread) in printed.items():
            case = {"gamma": risk_aversion, "strategy": strategy, "source": source, "reading": reading}
            amounts = {"spread": spread, "profit": profit, "std_profit": std, "std_inventory": std_inventory}
            rows.append({**case, **amounts})
    return rows


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Each printed number beside the exact ones, one row a number.

    It counts as reproduced if it lies within 3 standard errors of a mean over 1000 paths, plus half a unit of its last
    digit, of the exact number of its version's reading. The error of a profit is exact, others are estimated.
    """
    exact = rows[rows["source"] == "exact"].set_index(["gamma", "strategy", "reading"])
    simulated = rows[rows["source"] == "simulated"].set_index(["gamma", "strategy", "reading"])
    compared = []
    for _, printed in rows[rows["source"].isin(VERSIONS)].iterrows():
        case = (printed["gamma"], printed["strategy"])
        _, reading, rounding = VERSIONS[printed["source"]]
        errors = {
            "spread": 0.0,
            "profit": exact.loc[(*case, reading), "std_profit"] / math.sqrt(PATHS),
            "std_profit": simulated.loc[(*case, reading), "std_profit_stderr"],
            "std_inventory": simulated.loc[(*case, reading), "std_inventory_stderr"],
        }
        for quantity in QUANTITIES:
            if math.isnan(printed[quantity]):
                continue
            distance = printed[quantity] - exact.loc[(*case, reading), quantity]
            entry = {name: printed[name] for name in ("gamma", "strategy", "source", "reading")}
            entry |= {"quantity": quantity, "printed": printed[quantity], "stderr": errors[quantity]}
            entry |= {f"exact_{reading}": exact.loc[(*case, reading), quantity] for reading in READINGS}
            compared.append({**entry, "reproduced": bool(abs(distance) <= 3.0 * errors[quantity] + rounding)})
    return pd.DataFrame(compared)


def _histogram(risk_aversion: float, profits: dict[str, Array], laws: dict[str, PnlLaw]) -> Any:
    figure = new_figure()
    axes = figure.subplots()
    bins = np.linspace(min(map(np.min, profits.values())), max(map(np.max, profits.values())), 61)
    for strategy, color in zip(STRATEGIES, ("tab:blue", "tab:orange"), strict=True):
        label = f"{strategy}, {len(profits[strategy])} paths"
        axes.hist(profits[strategy], bins, density=True, color=color, alpha=0.4, label=label)
        x = np.linspace(bins[0], bins[-1], 400)
        axes.plot(x, laws[strategy].density(x), color=color, label=f"{strategy}, exact")
    axes.set_xlabel("final profit (price units)")
    axes.set_ylabel("density (1 / price unit)")
    axes.set_title(f"Final profit, gamma = {risk_aversion:g}, time-dependent spread")
    axes.legend(frameon=False)
    return figure


def _path_picture(history: dict[str, Array]) -> Any:
    figure = new_figure(7.0, 6.0)
    prices, inventory = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    time = history["time"]
    prices.plot(time, history["ask"], color="tab:red", linewidth=0.8, label="ask")
    prices.plot(time, history["mid"], color="black", linewidth=1.4, label="mid")
    prices.plot(time, history["reservation"], color="tab:green", linewidth=1.2, label="reservation price")
    prices.plot(time, history["bid"], color="tab:blue", linewidth=0.8, label="bid")
    prices.set_ylabel("price (price units)")
    prices.set_title("One path of the inventory strategy, gamma = 0.1")
    prices.legend(frameon=False, ncols=4, loc="upper center")
    low, high = prices.get_ylim()
    prices.set_ylim(low, high + 0.12 * (high - low))
    inventory.step(time, history["inventory"], where="post", color="black", linewidth=1.0)
    inventory.axhline(0.0, color="gray", linewidth=0.6)
    inventory.set_ylabel("inventory (assets)")
    inventory.set_xlabel("time (unit of the horizon T = 1)")
    inventory.set_xlim(0.0, HORIZON)
    return figure


def _table_of(rows: pd.DataFrame, risk_aversion: float) -> str:
    shown = rows[rows["gamma"] == risk_aversion]
    shown = pd.concat([shown[shown["strategy"] == strategy] for strategy in STRATEGIES])
    columns = {
        "strategy": "strategy",
        "source": "source",
        "reading": "spread is",
        "spread": "spread",
        "profit": "profit",
        "profit_stderr": "+-",
        "std_profit": "std(profit)",
        "mean_inventory": "E q_T",
        "std_inventory": "std(q_T)",
    }
    return text_table(shown[list(columns)].rename(columns=columns), 2)


def _verdict(numbers: pd.DataFrame) -> str:
    """Sentences on what the recipe reproduces and what it does not."""
    lines = []
    for source, (_, reading, _) in VERSIONS.items():
        of_source = numbers[numbers["source"] == source]
        missing = of_source[~of_source["reproduced"]]
        count = f"{len(of_source) - len(missing)} of {len(of_source)} numbers are reproduced"
        lines.append(f"{source} ({reading} spread): {count}.")
        for _, row in missing.iterrows():
            case = f"gamma {row['gamma']:g}, {row['strategy']}, {row['quantity']} {row['printed']:.2f}"
            exact = " and ".join(f"{row[f'exact_{reading}']:.2f} ({reading} spread)" for reading in READINGS)
            lines.append(f"  NOT reproduced: {case}; exact {exact}.")
    floored = [recipe_row(0.5, "inventory", reading, lowest_depth=0.0)["profit"] for reading in READINGS]
    lines.append(
        paragraph(
            f"""Nor does the inventory strategy for gamma 0.5 earn 33.92 where quotes are kept from crossing the mid: it
            earns {floored[0]:.2f} with a {READINGS[0]} spread and {floored[1]:.2f} with a {READINGS[1]} one."""
        )
    )
    return "\n".join(lines)


def _report(table: pd.DataFrame, numbers: pd.DataFrame) -> str:
    """The tables as text."""
    parts = [
        "Avellaneda & Stoikov (2008), section 3.3: the inventory strategy against the symmetric one.",
        paragraph(
            f"""sigma {VOLATILITY:g}, A {FILL_RATE:g}, k {FILL_DECAY:g}, T {HORIZON:g}, dt {HORIZON / NUM_STEPS:g};
            amounts in price units, inventories in assets."""
        ),
        paragraph(
            f"""exact: the paper's recipe (Bernoulli fills), no sampling error. simulated: the recipe, {PATHS} paths, +-
            one standard error. continuous: the model itself, Poisson fills, quotes never below depth {LOWEST_DEPTH:g}.
            preprint: as often quoted, not checked against a copy."""
        ),
        *(f"gamma = {gamma:g}\n{_table_of(table, gamma)}" for gamma in RISK_AVERSIONS),
        paragraph(
            f"""A printed number counts as reproduced within 3 standard errors ({PATHS} paths) of the exact one, for the
            spread that its version prints."""
        )
        + "\n"
        + _verdict(numbers),
        paragraph(
            """The standard deviations of the final inventory show that the paper played the Bernoulli recipe with
            dt = 0.005 (a side is filled with probability 0.26 a step): for gamma 0.1 Poisson fills give the symmetric
            strategy 9.6 to 10.3 where 8.66 is printed. Bernoulli fills vary less than Poisson ones, so the recipe
            flatters both strategies. Take the exact rows as reference, not the printed ones."""
        ),
        paragraph(
            """Not checked: the paper's mean final inventories and the spreads left empty above, for lack of a copy of
            its tables. The mean final inventory is exactly 0 by symmetry."""
        ),
    ]
    return "\n\n".join(parts)


def reproduce(folder: Path, *, quick: bool = False, progress: bool = True) -> str:
    """The tables and figures, and the tables as text: see `mmgym.baselines.reproduce`.

    Parameters
    ----------
    folder : Path
        Made if missing. It gets ``tables.csv``, ``printed_numbers.csv``, ``path.csv`` and four pictures.
    quick : bool
        Coarser time cells for the continuous-time rows, whose last decimal may change, and a narrower inventory grid
        for the curves of the histograms.
    """
    new_figure()  # fails early where matplotlib is missing
    rows, profits = _printed_rows(), {}
    path: dict[str, Array] = {}
    cases = list(itertools.product(RISK_AVERSIONS, STRATEGIES, READINGS))
    figures = {}
    with tqdm(total=len(cases) + 2 * len(RISK_AVERSIONS), desc="avellaneda-stoikov-2008", disable=not progress) as bar:
        for seed, (risk_aversion, strategy, reading) in enumerate(cases):
            profit, inventory, history = simulate(risk_aversion, strategy, reading, PATHS, seed)
            if reading == "time-dependent":
                profits[risk_aversion, strategy] = profit
                path = path or history
            _, depths = _recipe(risk_aversion, strategy, reading)
            sources = {
                "exact": recipe_row(risk_aversion, strategy, reading),
                "simulated": simulated_row(depths, profit, inventory),
                "continuous": continuous_row(risk_aversion, strategy, reading, 50 if quick else 400),
            }
            case = {"gamma": risk_aversion, "strategy": strategy, "reading": reading}
            rows += [{**case, "source": source, **row} for source, row in sources.items()]
            bar.update()
        for i, risk_aversion in enumerate(RISK_AVERSIONS):
            laws = {}
            for strategy in STRATEGIES:
                recipe = _recipe(risk_aversion, strategy, "time-dependent", limit=40 if quick else NARROW)
                laws[strategy] = pnl_law(*recipe)
                bar.update()
            sample = {strategy: profits[risk_aversion, strategy] for strategy in STRATEGIES}
            figures[f"figure_{i + 2}_profit_gamma_{risk_aversion:g}"] = _histogram(risk_aversion, sample, laws)
    table = pd.DataFrame(rows)
    leading = ["gamma", "strategy", "source", "reading", "spread", "profit", "std_profit", "mean_inventory"]
    table = table[[*leading, "std_inventory", *table.filter(like="stderr")]]
    numbers = compare(table)
    tables = {"tables": table, "printed_numbers": numbers, "path": pd.DataFrame(path)}
    write_artifacts(folder, tables, {"figure_1_path": _path_picture(path), **figures})
    return _report(table, numbers)
