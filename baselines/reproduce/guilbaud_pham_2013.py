r"""Guilbaud & Pham (2013), "Optimal high-frequency trading with limit and market orders", Quantitative Finance 13(1).

A market maker in a spread of one to six ticks quotes at the best prices or one tick better, and may cross the spread
(arXiv:1106.5040, which loses most formulas in its text form: `mmgym.models.tick_spread` states them restored). The
paper calibrates the market to a stock of 2010 (Tables 1-3), sets parameters (Table 4), plays the optimal strategy, the
optimal one without market orders, constant and random quotes on simulated paths (Table 5), and varies the inventory
penalty (Table 6).

Here the same strategies play the environment, which simulates each step of 0.3 s exactly, and Table 6 is computed
without simulation, from exact moments of strategies that react at once. Beside both stand the paper's numbers, and
those that another program found for the same market. What does not agree is said in the text that is returned.

A second column describes how the paper's numbers may have come about: the explicit backward splitting that the
published abstract names, with 100 steps of 0.75 s each of which is played for 3 s, in the paper's Euler scheme and in
slightly lower intensities. That agrees with the abstract and with the tables; it is not the authors' code.

Three things are not in the paper's text and were inferred from its tables: the clock's rate, the volatility and the
unit of the inventory penalty. Money is in euro, inventory in shares, time in seconds.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.reproduce.artifacts import paragraph, text_table, write_artifacts
from mmgym.baselines.tick_spread.continuous import scheme, splitting
from mmgym.baselines.tick_spread.euler import euler_moments, euler_paths
from mmgym.baselines.tick_spread.feedback import feedback_moments
from mmgym.envs.tick_spread import TickSpreadVectorEnv
from mmgym.models import tick_spread
from mmgym.models.tick_spread import Params
from mmgym.plot import new_figure

Array = NDArray[Any]

__all__ = ["constant_quotes", "frontier", "reproduce", "simulate", "split_controls", "strategy_table"]

NUM_STEPS, STEP = 1000, 0.3  # of the backtest
BENCHMARK_LOT = 100.0  # benchmarks trade 100 shares
PENALTY_PER_GAMMA = 6e-7  # running penalty (euro / share^2 s) for gamma = 1, inferred
GAMMA = 5.0
SPLIT_STEPS, SPLIT_STEP = 100, 0.75  # of the splitting: the paper's N_T, and about the longest stable step (s)
SPLIT_PENALTY_PER_GAMMA = 5e-7  # gamma (y / 100)^2, counted in ticks times shares
IMPROVED_FACTORS = (1.0, 1.0, 1.0, 0.88, 0.88, 0.88)  # of Table 3's averages, by spread: how "slightly modified" may
BEST_FACTORS = (1.0, 1.0, 1.0, 1.0, 1.0, 0.92)  # be meant, found from the tables
SCHEME_STEP = 0.15  # s, of the quasi-variational inequality

CLOCK_TIMES = ("10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:30")  # right ends of hours
CLOCK_RATES = (1.654, 0.799, 0.516, 0.377, 0.632, 1.305, 2.113)  # Table 2, 1 / s
INTENSITIES = {  # Table 3, 1 / s, by spread
    "ask_best": (0.0539, 0.0465, 0.0401, 0.0360, 0.0435, 0.0554),
    "ask_improved": (0.1485, 0.0979, 0.0846, 0.0856, 0.1009, 0.1202),
    "bid_best": (0.0718, 0.0520, 0.0419, 0.0409, 0.0452, 0.0614),
    "bid_improved": (0.1763, 0.1144, 0.0915, 0.0896, 0.0930, 0.1255),
}
PARAMETERS = (  # name, symbol, value, unit, where it is from
    ("tick", "delta", 0.005, "euro", "printed"),
    ("rebate", "rho", 0.0008, "euro / share", "printed"),
    ("fee", "epsilon", 0.0012, "euro / share", "printed"),
    ("fixed_fee", "epsilon_0", 1e-6, "euro", "chosen; the printed value is lost, below 1e-5 it does not matter"),
    ("clock_rate", "lambda", 1.0, "1 / s", "inferred; the printed value is lost"),
    ("gamma", "gamma", GAMMA, "unstated", "printed"),
    ("running_penalty", "c", 3e-6, "euro / (share^2 s)", "inferred: 6e-7 gamma"),
    ("volatility", "sigma", 0.008, "euro / sqrt(s)", "inferred from the dispersion of constant quotes"),
    ("limit_order_max", "l_bar", 100.0, "shares", "printed"),
    ("market_order_max", "e_bar", 100.0, "shares", "printed"),
    ("benchmark_size", "l_0", 100.0, "shares", "printed"),
    ("horizon", "T", 300.0, "s", "printed"),
    ("inventory_limit", "y_max", 1000.0, "shares", "printed; benchmarks need to have none"),
    ("lot", "", 10.0, "shares", "chosen"),
    ("backtest_step", "", STEP, "s", "printed"),
    ("paths", "", 1e5, "1", "chosen; the printed value is lost"),
    ("initial_price", "P_0", 45.0, "euro", "printed"),
)

STRATEGIES = ("optimal", "without_market_orders", "constant", "random")
VARIANTS = ("optimal, splitting", "without_market_orders, splitting")
SUMMED = ("wealth", "bid fills", "ask fills", "market orders", "maximum inventory")
QUANTITIES = ("wealth / std", *itertools.chain.from_iterable((name, f"{name}, std") for name in SUMMED))

# Table 5: wealth / std, then mean and standard deviation of `SUMMED`.
_OPTIMAL = (2.117, 26.759, 12.634, 18.770, 3.660, 18.770, 3.666, 6.336, 2.457, 241.019, 53.452)
_WITHOUT = (1.999, 25.19, 12.599, 18.766, 3.581, 18.769, 3.573, 0.0, 0.0, 176.204, 23.675)
PAPER_5 = {
    "optimal": _OPTIMAL,
    "without_market_orders": _WITHOUT,
    "constant": (0.472, 24.314, 51.482, 13.758, 3.682, 13.76, 3.692, 0.0, 0.0, 607.913, 272.631),
    "random": (0.376, 24.022, 63.849, 21.545, 4.591, 21.543, 4.602, 0.0, 0.0, 772.361, 337.403),
    "optimal, splitting": _OPTIMAL,
    "without_market_orders, splitting": _WITHOUT,
}
# What another program found, 100,000 paths. The first three are of strategies that react at once (constant quotes are
# the same in steps); the random one changes its quotes every 0.3 s and draws fills as the paper did.
REFERENCE_5: dict[str, dict[str, float]] = {
    "optimal": {
        "wealth": 29.74,
        "wealth, std": 12.52,
        "bid fills": 19.7,
        "market orders": 13.16,
        "market orders, std": 4.05,
        "maximum inventory": 248.1,
        "maximum inventory, std": 54.6,
    },
    "without_market_orders": {
        "wealth": 27.72,
        "wealth, std": 12.91,
        "bid fills": 18.2,
        "maximum inventory": 161.1,
        "maximum inventory, std": 13.5,
    },
    "constant": {"wealth": 25.28, "wealth, std": 52.2, "bid fills": 14.07, "maximum inventory": 615.7},
    "random": {"wealth": 27.76, "wealth, std": 63.9, "bid fills": 21.40, "maximum inventory": 761.3},
}

# Table 6: gamma; std and mean of wealth of the optimal strategy, and without market orders; the two ratios.
# The row of gamma = 5 is of Table 5.
PAPER_6 = (
    (50.0, 5.283, 12.448, 4.064, 9.165, 2.356, -2.246),
    (25.0, 7.562, 18.421, 7.210, 16.466, 2.436, -0.779),
    (12.5, 9.812, 22.984, 9.531, 20.971, 2.343, -0.135),
    (6.25, 11.852, 25.932, 11.749, 24.232, 2.188, 0.136),
    (5.0, 12.634, 26.759, 12.599, 25.19, 2.118, 0.194),
    (3.125, 14.546, 28.153, 14.485, 26.752, 1.935, 0.263),
    (1.563, 15.819, 28.901, 16.830, 28.234, 1.827, 0.289),
    (0.781, 19.088, 29.952, 19.593, 29.145, 1.569, 0.295),
    (0.391, 20.898, 30.372, 20.927, 29.728, 1.453, 0.289),
    (0.195, 23.342, 30.811, 23.247, 30.076, 1.320, 0.278),
    (0.098, 25.232, 30.901, 24.075, 30.236, 1.225, 0.261),
    (0.049, 26.495, 31.020, 24.668, 30.434, 1.171, 0.253),
    (0.024, 27.124, 30.901, 25.060, 30.393, 1.139, 0.242),
    (0.012, 27.697, 31.053, 25.246, 30.498, 1.121, 0.243),
    (0.006, 28.065, 30.998, 25.457, 30.434, 1.105, 0.238),
)
PAPER_6_COLUMNS = ("gamma", "std", "mean", "std_without", "mean_without", "ratio", "net_ratio")

REGIONS = (  # of the picture of the policy, and their colours
    ("sell at market", "#7f1d1d"),
    ("ask only", "#e8836b"),
    ("bid best, ask improved", "#fbd5c0"),
    ("both best", "#d9d9d9"),
    ("both improved", "#b7dfb0"),
    ("bid improved, ask best", "#c6dcf2"),
    ("bid only", "#6ba3d6"),
    ("buy at market", "#12366b"),
    ("no order", "white"),
)
TIMES_LEFT = (300.0, 10.0, 1.0)  # s, of that picture
LAST, LAST_CELLS, LAST_INVENTORY = 30.0, 60, 500.0  # s, their cells and shares of the picture over time
COLORS = {"optimal": "black", "without_market_orders": "tab:blue", "constant": "tab:orange", "random": "tab:red"}
LABELS = {
    "optimal": "optimal",
    "without_market_orders": "without market orders",
    "constant": "constant",
    "random": "random",
}


def arguments(gamma: float = GAMMA, *, market_orders: bool = True, horizon: float = 300.0) -> dict[str, Any]:
    """Arguments of the environment for the paper's market, in steps of 0.3 s."""
    return {
        "running_penalty": PENALTY_PER_GAMMA * gamma,
        "market_order_max": 100.0 if market_orders else 0.0,
        "horizon": horizon,
        "num_steps": round(horizon / STEP),
    }


def benchmark_arguments() -> dict[str, Any]:
    """Arguments of the environment for the benchmarks, whose inventory has in effect no bound."""
    return {**arguments(market_orders=False), "lot": BENCHMARK_LOT, "inventory_limit": None}


def _controls(params: Params, cells: int) -> Array:
    """The continuous-time optimum (cells, S, 5) at the starts of equal cells of the horizon."""
    _, controls = scheme(params, cells, math.ceil(params.horizon / cells / SCHEME_STEP - 1e-9))
    assert controls is not None
    return controls


def split_arguments(gamma: float = GAMMA, *, market_orders: bool = True, modified: bool = True) -> dict[str, Any]:
    """Arguments for the market of the splitting; ``modified``: in the lowered intensities."""
    settings = arguments(gamma, market_orders=market_orders)
    settings["running_penalty"] = SPLIT_PENALTY_PER_GAMMA * gamma
    return settings | (_modified_intensities() if modified else {})


def _modified_intensities() -> dict[str, Any]:
    best, improved = np.array(tick_spread.TABLE_3_BEST), np.array(tick_spread.TABLE_3_IMPROVED)
    return {
        "fill_rate_best": (best * BEST_FACTORS).tolist(),
        "fill_rate_improved": (improved * IMPROVED_FACTORS).tolist(),
    }


def split_controls(params: Params) -> Array:
    """Controls (100, S, 5) of the splitting over 75 s; each of them is played for 3 s of the 300 s."""
    return splitting(params._replace(horizon=SPLIT_STEPS * SPLIT_STEP), SPLIT_STEPS)


def constant_quotes(params: Params) -> Array:
    """Best quotes of the full size on both sides, always: one cell of controls (1, S, 5)."""
    controls = np.zeros((1, params.num_spreads * (2 * params.limit + 1), 5))
    controls[..., 2:4] = params.limit_order_max
    return controls


# Table 5


def simulate(
    settings: dict[str, Any],
    controls: Array | None,
    paths: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Array]:
    """Play the environment, exactly simulated, without the inventory penalty in its rewards.

    Parameters
    ----------
    settings : dict
        Arguments of the environment.
    controls : (N, S, 5) or None
        What is played in each of N equal parts of the horizon, sizes in shares. None: best or improved quotes with
        probability 1/2 each, drawn anew for both sides at every step, of the full size.
    paths, seed : int
    progress : callable, optional
        Called with the number of paths done.

    Returns
    -------
    dict of (paths,) arrays
        ``wealth`` (euro, gained by the end), ``bid fills, ask fills, market orders`` (numbers) and ``maximum
        inventory`` (shares, the largest absolute one at the end of a step).
    """
    parts = []
    random = np.random.default_rng([seed, 1])
    base = int(np.random.SeedSequence([seed, 0]).generate_state(1, np.uint64)[0])
    for done in range(0, paths, 20_000):
        count = min(20_000, paths - done)
        envs = TickSpreadVectorEnv(count, info="full", copy=False, **{**settings, "running_penalty": 0.0})
        parts.append(_play(envs, controls, base + done, random))
        if progress is not None:
            progress(count)
    return {name: np.concatenate([part[name] for part in parts]) for name in SUMMED}


def _play(
    envs: TickSpreadVectorEnv, controls: Array | None, seed: int, random: np.random.Generator
) -> dict[str, Array]:
    """One batch of episodes of `simulate`."""
    params, count = envs.params, envs.num_envs
    width = 2 * params.limit + 1
    totals = {name: np.zeros(count) for name in SUMMED}
    observations, info = envs.reset(seed=seed)
    actions = np.empty((count, 5), dtype=np.int64)
    actions[:] = tick_spread.from_quotes(params, [0.0, 0.0, params.limit_order_max, params.limit_order_max, 0.0])
    for n in range(params.num_steps):
        if controls is None:
            actions[:, :2] = random.integers(0, 2, (count, 2))
        else:
            row = n * len(controls) // params.num_steps
            table = tick_spread.from_quotes(params, controls[row])
            _, lots, spread = envs.to_state(observations)
            actions = table.take(spread * width + lots + params.limit, axis=0)
        observations, _, _, _, info = envs.step(actions)
        totals["bid fills"] += info["bid_fills"]
        totals["ask fills"] += info["ask_fills"]
        totals["market orders"] += info["market_orders"]
        np.maximum(totals["maximum inventory"], np.abs(info["inventory"]), out=totals["maximum inventory"])
    return {**totals, "wealth": np.array(info["gain"])}


def _with_errors(sample: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and standard deviation of a sample, each with its standard error."""
    count, mean, std = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    if std == 0.0:
        return (mean, 0.0), (0.0, 0.0)
    fourth = float(((sample - mean) ** 4).mean())
    return (mean, std / math.sqrt(count)), (std, math.sqrt(max(fourth - std**4, 0.0) / count) / (2.0 * std))


def strategy_table(samples: dict[str, dict[str, Array]]) -> pd.DataFrame:
    """Table 5 from the samples of `simulate` or `euler_paths`, by strategy.

    Returns
    -------
    DataFrame
        ``strategy, quantity, here``, its sampling error ``stderr``, ``paper`` and ``reference`` (of another program;
        empty where that says nothing).
    """
    rows = []
    for strategy, sample in samples.items():
        estimates: dict[str, tuple[float, float]] = {}
        for name in SUMMED:
            estimates[name], estimates[f"{name}, std"] = _with_errors(sample[name])
        mean, std = estimates["wealth"], estimates["wealth, std"]
        # The sampling errors of mean and standard deviation are in effect independent.
        ratio = mean[0] / std[0]
        estimates["wealth / std"] = ratio, abs(ratio) * math.hypot(mean[1] / mean[0], std[1] / std[0])
        for quantity, paper in zip(QUANTITIES, PAPER_5[strategy], strict=True):
            reference = REFERENCE_5.get(strategy, {}).get(quantity.replace("ask", "bid"), math.nan)
            here, error = estimates[quantity]
            row = {"strategy": strategy, "quantity": quantity, "here": here, "stderr": error, "paper": paper}
            rows.append({**row, "reference": reference})
    return pd.DataFrame(rows)


def _samples(paths: int, bar: Any) -> dict[str, dict[str, Array]]:
    """Simulated paths of all strategies and variants."""
    played = {}
    for seed, strategy in enumerate(STRATEGIES):
        settings, controls = benchmark_arguments(), None
        if strategy == "constant":
            controls = constant_quotes(Params.create(**settings))
        elif strategy != "random":
            settings = arguments(market_orders=strategy == "optimal")
            controls = _controls(Params.create(**settings), NUM_STEPS)
        played[strategy] = simulate(settings, controls, paths, 2013 + seed, bar.update)
    for seed, strategy in enumerate(VARIANTS):
        params = Params.create(**split_arguments(market_orders=strategy.startswith("optimal")))
        random = np.random.default_rng([2013, seed])
        played[strategy] = euler_paths(params, split_controls(params), NUM_STEPS, paths, random)
        bar.update(paths)
    return played


# Table 6


def frontier(gammas: tuple[float, ...], cells: int, progress: Callable[[int], object] | None = None) -> pd.DataFrame:
    """Table 6, exactly: moments of wealth under strategies that react at once.

    Parameters
    ----------
    gammas : tuple of float
        Penalties of the paper, rows of its table.
    cells : int
        Equal cells of the horizon on which the optimal controls are constant.
    progress : callable, optional
        Called with the number of penalties done.

    Returns
    -------
    DataFrame
        ``gamma``, ``running_penalty`` (euro / (share^2 s)); ``std, mean`` (euro) of the optimal strategy and
        ``std_without, mean_without`` of the one without market orders; ``ratio = mean / std`` and ``net_ratio = (mean -
        mean of constant quotes) / std``. The same with the prefix ``paper_``; ``split_`` for the splitting, played in
        the Euler scheme; and ``unmodified_`` for the splitting in the intensities of Table 3.
    """
    free = Params.create(**benchmark_arguments())
    quotes = constant_quotes(free)
    constants = {"": feedback_moments(free, quotes)[0], "unmodified_": euler_moments(free, quotes, NUM_STEPS)[0]}
    lowered = Params.create(**benchmark_arguments(), **_modified_intensities())
    constants["split_"] = euler_moments(lowered, quotes, NUM_STEPS)[0]
    rows = []
    for gamma in gammas:
        row: dict[str, float] = {"gamma": gamma, "running_penalty": PENALTY_PER_GAMMA * gamma}
        for prefix, constant in constants.items():
            for suffix, market_orders in (("", True), ("_without", False)):
                if prefix:
                    modified = prefix == "split_"
                    params = Params.create(**split_arguments(gamma, market_orders=market_orders, modified=modified))
                    mean, std = euler_moments(params, split_controls(params), NUM_STEPS)
                else:
                    params = Params.create(**arguments(gamma, market_orders=market_orders))
                    mean, std = feedback_moments(params, _controls(params, cells))
                row |= {f"{prefix}std{suffix}": std, f"{prefix}mean{suffix}": mean}
            mean, std = row[f"{prefix}mean"], row[f"{prefix}std"]
            row |= {f"{prefix}ratio": mean / std, f"{prefix}net_ratio": (mean - constant) / std}
        printed = next(line for line in PAPER_6 if line[0] == gamma)
        row |= {f"paper_{name}": value for name, value in zip(PAPER_6_COLUMNS[1:], printed[1:], strict=True)}
        rows.append(row)
        if progress is not None:
            progress(1)
    return pd.DataFrame(rows)


def log_deviation(table: pd.DataFrame, prefix: str, quantity: str = "std") -> float:
    """Root mean square of ln(paper / here) of the ``std`` or ``mean`` of a `frontier`, both strategies."""
    return float(np.sqrt((_log_ratios(table, prefix, quantity) ** 2).mean()))


def _mean_ratio(table: pd.DataFrame, prefix: str) -> float:
    """Mean of paper / here over the means of a `frontier`, both strategies."""
    return float(np.exp(_log_ratios(table, prefix, "mean")).mean())


def _log_ratios(table: pd.DataFrame, prefix: str, quantity: str) -> Array:
    columns = [quantity, f"{quantity}_without"]
    here, paper = (table[[f"{source}{name}" for name in columns]].to_numpy() for source in (prefix, "paper_"))
    return np.asarray(np.log(paper / here))


def gain_table(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The paper's three measures of the optimal strategy at gamma = 5, from a `strategy_table` and a `frontier`.

    Returns
    -------
    DataFrame
        ``here, splitting, paper`` of each ``quantity``: gains in mean wealth over constant quotes and over the strategy
        without market orders, in standard deviations of the optimal one; and the gain over constant quotes (euro) by
        limit and market order executed.
    """
    at = table.set_index("gamma").loc[GAMMA]
    columns: dict[str, Any] = {"quantity": ["over constant / std", "over without market orders / std", "per trade"]}
    sources = (("here", "", "here"), ("splitting", "split_", "here"), ("paper", "paper_", "paper"))
    for name, prefix, source in sources:
        strategy = VARIANTS[0] if name == "splitting" else STRATEGIES[0]
        counts = rows[(rows["strategy"] == strategy) & rows["quantity"].isin(SUMMED[1:4])]
        std, ratio = at[f"{prefix}std"], at[f"{prefix}net_ratio"]
        added = (at[f"{prefix}mean"] - at[f"{prefix}mean_without"]) / std
        columns[name] = [ratio, added, ratio * std / counts[source].sum()]
    return pd.DataFrame(columns)


# Tables 1-4 and figures


def transition_table() -> pd.DataFrame:
    rows = []
    for i, (printed, used) in enumerate(zip(tick_spread.TABLE_1, Params.create().spread_transitions, strict=True)):
        row = {"spread": 0.005 * (i + 1), "sum": math.fsum(printed)}
        row |= {f"printed_{j + 1}": value for j, value in enumerate(printed)}
        rows.append(row | {f"used_{j + 1}": value for j, value in enumerate(used)})
    return pd.DataFrame(rows)


def intensity_table() -> pd.DataFrame:
    used = {"used_best": tick_spread.TABLE_3_BEST, "used_improved": tick_spread.TABLE_3_IMPROVED}
    return pd.DataFrame({"spread": 0.005 * np.arange(1, 7), **INTENSITIES, **used})


def _policy_table(lot: float) -> pd.DataFrame:
    """The continuous-time optimum at `TIMES_LEFT` before the horizon, by spread and inventory."""
    frames = []
    for left in TIMES_LEFT:
        params = Params.create(**{**arguments(horizon=left), "lot": lot, "num_steps": 1})
        frames.append(_policy_frame(params, left, _controls(params, 1)[0]))
    return pd.concat(frames, ignore_index=True)


def _policy_over_time() -> pd.DataFrame:
    """The same in the last seconds, at the starts of `LAST_CELLS` equal cells, for small inventories."""
    params = Params.create(**arguments(horizon=LAST))
    controls = _controls(params, LAST_CELLS)
    times = LAST * (1.0 - np.arange(LAST_CELLS) / LAST_CELLS)
    frames = [_policy_frame(params, left, table) for left, table in zip(times, controls, strict=True)]
    policy = pd.concat(frames, ignore_index=True)
    return policy[policy["inventory"].abs() <= LAST_INVENTORY]


def _policy_frame(params: Params, left: float, controls: Array) -> pd.DataFrame:
    spread, column = np.divmod(np.arange(len(controls)), 2 * params.limit + 1)
    columns = {"time_left": left, "spread": 0.005 * (spread + 1), "inventory": (column - params.limit) * params.lot}
    names = ("bid_improved", "ask_improved", "bid_size", "ask_size", "market_order")
    return pd.DataFrame({**columns, **dict(zip(names, controls.T, strict=True))})


def regions_of(policy: pd.DataFrame) -> Array:
    """Index into `REGIONS` of each row of the policy's table."""
    bid, ask = policy["bid_improved"].to_numpy() > 0.0, policy["ask_improved"].to_numpy() > 0.0
    codes = np.select([bid & ask, ask, bid], [4, 2, 5], default=3)
    no_bid, no_ask = policy["bid_size"].to_numpy() == 0.0, policy["ask_size"].to_numpy() == 0.0
    codes = np.select([no_bid & no_ask, no_bid, no_ask], [8, 1, 6], default=codes)
    order = policy["market_order"].to_numpy()
    return np.where(order < 0.0, 0, np.where(order > 0.0, 7, codes))


def _clock_picture() -> Any:
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    hours = np.arange(10.5, 17.0)
    axes.plot(hours, CLOCK_RATES, "o-", color="black", label="joined by straight lines, as in the paper")
    axes.step(np.append(9.5, hours), np.append(CLOCK_RATES[0], CLOCK_RATES), where="pre", color="tab:blue", alpha=0.6)
    axes.plot([], [], color="tab:blue", alpha=0.6, label="as estimated: constant in each hour")
    axes.set_xticks(hours, CLOCK_TIMES)
    axes.set_ylim(0.0, 2.4)
    axes.set_xlabel("time of day")
    axes.set_ylabel("rate of the clock (1 / s)")
    axes.set_title("Ticks of the spread's clock (Table 2)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _intensity_picture(table: pd.DataFrame) -> Any:
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    for quote, color in (("improved", "tab:red"), ("best", "tab:blue")):
        for side, marker in (("ask", "v"), ("bid", "^")):
            label = f"{side}, {quote}"
            axes.plot(table["spread"], table[f"{side}_{quote}"], marker, color=color, alpha=0.6, label=label)
        axes.plot(table["spread"], table[f"used_{quote}"], color=color, label=f"used for both sides, {quote}")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("spread (euro)")
    axes.set_ylabel("fills per second")
    axes.set_title("Execution intensities (Table 3); at one tick an improved quote is not allowed")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _region_colors() -> tuple[dict[str, Any], list[Any]]:
    """What pcolormesh needs to show `REGIONS`, and the patches of their legend."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    norm = BoundaryNorm(np.arange(len(REGIONS) + 1) - 0.5, len(REGIONS))
    patches = [Patch(facecolor=color, edgecolor="gray", label=name) for name, color in REGIONS]
    return {"cmap": ListedColormap([color for _, color in REGIONS]), "norm": norm, "rasterized": True}, patches


def _policy_picture(policy: pd.DataFrame) -> Any:
    colors, patches = _region_colors()
    figure = new_figure(9.0, 7.2)
    for axes, left in zip(figure.subplots(len(TIMES_LEFT), 1, sharex=True), TIMES_LEFT, strict=True):
        rows = policy[policy["time_left"] == left]
        inventory = np.unique(rows["inventory"])
        step = inventory[1] - inventory[0]
        edges = np.append(inventory, inventory[-1] + step) - 0.5 * step
        axes.pcolormesh(edges, np.arange(0.5, 7.0), regions_of(rows).reshape(6, -1), **colors)
        axes.set_yticks(range(1, 7))
        axes.set_ylabel("spread (ticks)")
        axes.set_title(f"{left:g} s before the horizon", fontsize=10)
        axes.set_xlim(-800.0, 800.0)
    figure.axes[-1].set_xlabel("inventory (shares)")
    figure.legend(handles=patches, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _policy_over_time_picture(policy: pd.DataFrame) -> Any:
    colors, patches = _region_colors()
    figure = new_figure(9.0, 6.4)
    inventory = np.unique(policy["inventory"])
    step = inventory[1] - inventory[0]
    edges = np.append(inventory, inventory[-1] + step) - 0.5 * step
    times = np.linspace(LAST, 0.0, LAST_CELLS + 1)
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for ticks, axes in enumerate(grid.flat, start=1):
        rows = policy[np.isclose(policy["spread"], 0.005 * ticks)]
        axes.pcolormesh(times, edges, regions_of(rows).reshape(LAST_CELLS, -1).T, **colors)
        axes.set_title(f"spread of {ticks} tick{'s' * (ticks > 1)}", fontsize=10)
    grid[0, 0].set_xlim(LAST, 0.0)
    for axes in grid[1]:
        axes.set_xlabel("time left (s)")
    for axes in grid[:, 0]:
        axes.set_ylabel("inventory (shares)")
    figure.legend(handles=patches, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _wealth_histogram(samples: dict[str, dict[str, Array]]) -> pd.DataFrame:
    edges = np.arange(-150.0, 202.5, 2.5)
    columns: dict[str, Array] = {"low": edges[:-1], "high": edges[1:]}
    for strategy in STRATEGIES:
        wealth = samples[strategy]["wealth"]
        columns[strategy] = np.histogram(wealth, edges)[0] / (len(wealth) * np.diff(edges))
    return pd.DataFrame(columns)


def _count_histogram(samples: dict[str, dict[str, Array]]) -> pd.DataFrame:
    """Relative frequencies of numbers of fills and market orders."""
    frames = []
    for strategy in STRATEGIES:
        for quantity in ("bid fills", "ask fills", "market orders"):
            counts = np.bincount(samples[strategy][quantity].astype(np.int64), minlength=50)
            columns = {"strategy": strategy, "quantity": quantity, "number": np.arange(len(counts))}
            frames.append(pd.DataFrame({**columns, "frequency": counts / counts.sum()}))
    return pd.concat(frames, ignore_index=True)


def _wealth_picture(histogram: pd.DataFrame) -> Any:
    figure = new_figure(7.0, 4.4)
    axes = figure.subplots()
    for strategy in STRATEGIES:
        color = COLORS[strategy]
        axes.stairs(
            histogram[strategy], np.append(histogram["low"], 200.0), color=color, label=LABELS[strategy], linewidth=1.3
        )
    axes.set_xlim(-130.0, 180.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("wealth at the end (euro)")
    axes.set_ylabel("density (1 / euro)")
    axes.set_title("Wealth after 300 s, simulated in steps of 0.3 s")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _count_picture(histogram: pd.DataFrame) -> Any:
    figure = new_figure(10.0, 3.8)
    titles = {"bid fills": "Fills at the bid", "ask fills": "Fills at the ask", "market orders": "Market orders"}
    for axes, (quantity, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for strategy in STRATEGIES if quantity != "market orders" else STRATEGIES[:1]:
            rows = histogram[(histogram["strategy"] == strategy) & (histogram["quantity"] == quantity)]
            axes.plot(
                rows["number"], rows["frequency"], ".-", color=COLORS[strategy], linewidth=1.0, label=LABELS[strategy]
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("number in 300 s")
        axes.set_xlim(0.0, 30.0 if quantity == "market orders" else 45.0)
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("relative frequency")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _frontier_picture(table: pd.DataFrame, constant: tuple[float, float]) -> Any:
    figure = new_figure(8.0, 5.2)
    axes = figure.subplots()
    for suffix, name, color in (("", "optimal", "black"), ("_without", "without market orders", "tab:blue")):
        axes.plot(table[f"std{suffix}"], table[f"mean{suffix}"], "o-", color=color, markersize=4, label=f"{name}: here")
        axes.plot(
            table[f"split_std{suffix}"],
            table[f"split_mean{suffix}"],
            ".--",
            color=color,
            alpha=0.55,
            linewidth=1.0,
            label=f"{name}: splitting",
        )
        axes.plot(table[f"paper_std{suffix}"], table[f"paper_mean{suffix}"], "x", color=color, label=f"{name}: paper")
    axes.plot(*constant[::-1], "s", color="tab:orange", label="constant: here")
    axes.plot(PAPER_5["constant"][2], PAPER_5["constant"][1], "x", color="tab:orange", label="constant: paper")
    axes.set_xlim(0.0, 56.0)
    axes.set_ylim(0.0, 40.0)
    axes.set_xlabel("standard deviation of wealth (euro)")
    axes.set_ylabel("mean wealth (euro)")
    axes.set_title("Efficient frontier over the inventory penalty (Table 6)")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)
    return figure


# Text


def _table_5_text(table: pd.DataFrame, strategies: tuple[str, ...], other: str) -> str:
    """Columns of our numbers and of another source by turns."""
    columns: dict[str, Any] = {"": list(QUANTITIES)}
    titles = {"without_market_orders": "without m.o.", VARIANTS[0]: "optimal", VARIANTS[1]: "without m.o."}
    for k, strategy in enumerate(strategies):
        rows = table[table["strategy"] == strategy]
        columns[titles.get(strategy, strategy)] = rows["here"].to_numpy()
        columns[other + " " * k] = rows[other].to_numpy()  # equal titles for the reader, different ones for pandas
    return text_table(pd.DataFrame(columns), 2)


def _table_6_text(table: pd.DataFrame, prefix: str = "") -> str:
    columns = {
        "gamma": "gamma",
        "std": "std",
        "mean": "mean",
        "std_without": "std w/o",
        "mean_without": "mean w/o",
        "ratio": "ratio",
        "net_ratio": "net",
    }
    shown = table[["gamma", *(f"{prefix}{name}" for name in list(columns)[1:])]].set_axis(
        list(columns.values()), axis=1
    )
    for k, name in enumerate(list(columns)[1:]):
        shown.insert(2 * k + 2, "paper" + " " * k, table[f"paper_{name}"])
    return text_table(shown, 3)


def ranking(names: Sequence[str], values: Sequence[float], stderrs: Sequence[float]) -> str:
    """Whether simulated values fall in the order of the names, as far as three standard errors tell."""
    unclear = []
    for (first, value, stderr), (second, other, other_stderr) in itertools.combinations(
        zip(names, values, stderrs, strict=True), 2
    ):
        error = 3.0 * math.hypot(stderr, other_stderr)
        if value - other < -error:
            return "NOT as in the paper"
        if value - other <= error:
            unclear.append(f"{first.replace('_', ' ')} and {second.replace('_', ' ')}")
    if not unclear:
        return "as in the paper"
    return f"as in the paper, but for {' and for '.join(unclear)}, which are within three standard errors of each other"


def verdict(rows: pd.DataFrame, quantity: str, strategies: Sequence[str] = STRATEGIES) -> str:
    """Where a quantity of a `strategy_table` differs from the paper by more than three standard errors."""
    entries = rows[rows["quantity"] == quantity].set_index("strategy").loc[list(strategies)]
    apart = (entries["here"] - entries["paper"]).abs() > 3.0 * entries["stderr"]
    beyond, within = (", ".join(name.replace("_", " ") for name in entries.index[chosen]) for chosen in (apart, ~apart))
    if not beyond:
        return f"matched within three standard errors ({within})"
    return f"NOT matched ({beyond}" + (f"; within three standard errors: {within})" if within else ")")


def _remarks(table: pd.DataFrame, rows: pd.DataFrame, constant: tuple[float, float]) -> list[str]:
    """What agrees with the paper, and what does not."""
    last = table.iloc[-1]
    here, paper = (
        dict(zip(zip(rows["strategy"], rows["quantity"], strict=True), rows[source], strict=True))
        for source in ("here", "paper")
    )
    ratios = [paper[name, "wealth"] / here[name, "wealth"] for name in STRATEGIES]
    orders, spread = ("optimal", "market orders"), ("optimal", "market orders, std")
    return [
        _agreement(table, rows, here),
        paragraph(
            f"""Mean wealth: {verdict(rows, "wealth")}.
            In Table 5 the paper has {min(ratios):.2f} to {max(ratios):.2f} of the wealth found here, in Table 6
            {_mean_ratio(table, ""):.2f} of it on average. Constant quotes earn exactly {constant[0]:.3f} (std
            {constant[1]:.2f}), the paper's 24.314 (51.48) with 2.3 % fewer fills. The intensities were "slightly
            modified" in a way that is not printed; lower ones would do."""
        ),
        paragraph(
            f"""Market orders: {verdict(rows, "market orders", STRATEGIES[:1])},
            {here[orders]:.2f} with a standard deviation of {here[spread]:.2f} here, {paper[orders]:g} and
            {paper[spread]:g} in the paper."""
        ),
        paragraph(
            f"""NOT matched: for small penalties the paper's standard deviations end at {last["paper_std"]:.1f} and
            {last["paper_std_without"]:.1f}; those of the optimum go on to {last["std"]:.1f} and
            {last["std_without"]:.1f} (gamma {last["gamma"]:g}). Over the whole table they differ by
            {100.0 * log_deviation(table, ""):.0f} %."""
        ),
        _splitting(table, here, paper),
        paragraph(
            """Inferred, not printed: the clock's rate (1 /s), the volatility (0.008 euro / sqrt(s)) and the unit of the
            penalty (6e-7 gamma euro per share squared and second; gamma = 5 in shares or lots would stop all trading).
            The paper draws at most one fill a side in 0.3 s from the state at the start of the step; here fills and
            spread jumps happen in continuous time. Whether its random strategy improves quotes at a spread of one tick,
            too, is not said; the environment plays the best quote there."""
        ),
    ]


def _agreement(table: pd.DataFrame, rows: pd.DataFrame, here: dict[tuple[str, str], float]) -> str:
    top, paper_top = (table.iloc[table[name].argmax()] for name in ("net_ratio", "paper_net_ratio"))
    information = [here[name, "wealth / std"] for name in STRATEGIES]
    stderrs = rows[rows["quantity"] == "wealth / std"].set_index("strategy")["stderr"]
    ranked = ranking(STRATEGIES, information, [float(stderrs[name]) for name in STRATEGIES])
    return paragraph(
        f"""What agrees: the order of the four strategies by wealth / std is {ranked} (here
        {", ".join(f"{value:.2f}" for value in information)}); the largest inventory is
        {here["optimal", "maximum inventory"]:.0f} shares on average with market orders and
        {here["without_market_orders", "maximum inventory"]:.0f} without; the net ratio has its maximum inside the
        range of penalties, here at gamma {top["gamma"]:g} ({top["net_ratio"]:.2f}), in the paper at
        {paper_top["gamma"]:g} ({paper_top["paper_net_ratio"]:.2f}), and is flat around it. For gamma of 1.5 and
        more the standard deviations of Table 6 agree to
        {100.0 * log_deviation(table[table["gamma"] > 1.5], ""):.1f} % (root mean square of both strategies)."""
    )


def _splitting(table: pd.DataFrame, here: dict[tuple[str, str], float], paper: dict[tuple[str, str], float]) -> str:
    return paragraph(
        f"""The splitting column has these almost wholly. The published abstract names an explicit backward
        splitting: phi(t) = max(T phi(t + dt), M phi(t + dt)), in which an order forgoes one step's gain, so that
        orders are rarer and larger ({here[VARIANTS[0], "market orders"]:.2f}; the paper
        {paper["optimal", "market orders"]:g}). Its {SPLIT_STEPS} steps (the paper's N_T) are of {SPLIT_STEP:g} s,
        about the longest stable ones, so the policy looks {SPLIT_STEPS * SPLIT_STEP:g} s ahead, and each is played
        for 3 s; gamma (y / 100)^2 is counted in ticks times shares, 5e-7 gamma euro per share squared and second;
        improved quotes have 0.88 of Table 3's
        averages at 4 to 6 ticks, best ones 0.92 at 6 ticks; paths are the paper's Euler scheme, whose fills count
        quotes of size 0 too. The {len(table)} rows of both strategies in Table 6 (that of gamma = 5 is from Table
        5) are then matched to {100.0 * log_deviation(table, "split_"):.1f} % (standard deviations) and
        {100.0 * log_deviation(table, "split_", "mean"):.1f} % (means), root mean squares; in the averages of Table 3
        as they are, to {100.0 * log_deviation(table, "unmodified_"):.1f} % and
        {100.0 * log_deviation(table, "unmodified_", "mean"):.1f} %. Factors, step and unit were found from the tables:
        a description that is consistent with the published abstract, not the authors' code."""
    )


def _report(paths: int, rows: pd.DataFrame, table: pd.DataFrame, constant: tuple[float, float]) -> str:
    """The tables as text: strategies on so many paths, and the frontier beside constant quotes."""
    parts = [
        "Guilbaud & Pham (2013): limit and market orders in a spread of a few ticks.",
        paragraph(
            """Wealth in euro after 300 s, starting without cash and inventory, the spread from its stationary law.
            Penalty 3e-6 euro per share squared and second (gamma = 5), lots of 10 shares. Optimal strategies are those
            of continuous time. Tables 1-4 are in the files."""
        ),
        f"Table 5, {paths:,} simulated paths in steps of 0.3 s, beside the paper\n"
        + _table_5_text(rows, STRATEGIES, "paper"),
        "The same beside another program (optimal strategies there react at once; random ones draw fills by the step)\n"
        + _table_5_text(rows, STRATEGIES, "reference"),
        "Table 5 by the explicit splitting (described below), beside the paper\n"
        + _table_5_text(rows, VARIANTS, "paper"),
        "Table 6, exact, strategies that react at once, beside the paper (w/o: without market orders)\n"
        + _table_6_text(table),
        "Table 6 by the explicit splitting, exact moments of the Euler scheme, beside the paper\n"
        + _table_6_text(table, "split_"),
        "Gain in mean wealth of the optimal strategy at gamma = 5: ratios, and euro per trade\n"
        + text_table(gain_table(rows, table), 3),
        *_remarks(table, rows, constant),
    ]
    return "\n\n".join(parts)


def reproduce(folder: Path, *, quick: bool = False, progress: bool = True) -> str:
    """The tables and figures, and the tables as text: see `mmgym.baselines.reproduce`.

    Parameters
    ----------
    folder : Path
        Made if missing. It gets ``table_1_transitions.csv`` to ``table_6_frontier.csv``, the data of the pictures
        (``policy.csv``, ``policy_over_time.csv``, ``wealth_histogram.csv``, ``count_histogram.csv``) and seven
        pictures.
    quick : bool
        1,000 paths instead of 100,000, four penalties instead of fifteen, and controls that are constant for 3 s in
        Table 6.
    """
    new_figure()  # fails early where matplotlib is missing
    paths = 1_000 if quick else 100_000
    gammas = tuple(line[0] for line in PAPER_6)
    gammas = (gammas[0], GAMMA, gammas[6], gammas[-1]) if quick else gammas
    with tqdm(total=6 * paths, desc="guilbaud-pham-2013: paths", disable=not progress) as bar:
        samples = _samples(paths, bar)
    with tqdm(total=len(gammas), desc="guilbaud-pham-2013: penalties", disable=not progress) as bar:
        table = frontier(gammas, 100 if quick else 500, bar.update)
    rows, free = strategy_table(samples), Params.create(**benchmark_arguments())
    constant = feedback_moments(free, constant_quotes(free))
    policy, intensities = _policy_table(10.0 if quick else 5.0), intensity_table()
    over_time = _policy_over_time()
    wealth, counts = _wealth_histogram(samples), _count_histogram(samples)

    names = ["parameter", "symbol", "value", "unit", "source"]
    tables = {
        "table_1_transitions": transition_table(),
        "table_2_clock": pd.DataFrame({"time": CLOCK_TIMES, "rate": CLOCK_RATES}),
        "table_3_intensities": intensities,
        "table_4_parameters": pd.DataFrame(list(PARAMETERS), columns=names),
        "table_5_strategies": rows,
        "table_5_gains": gain_table(rows, table),
        "table_6_frontier": table,
        "policy": policy,
        "policy_over_time": over_time,
        "wealth_histogram": wealth,
        "count_histogram": counts,
    }
    figures = {
        "figure_1_clock": _clock_picture(),
        "figure_2_intensities": _intensity_picture(intensities),
        "figure_3_policy": _policy_picture(policy),
        "figure_3_policy_over_time": _policy_over_time_picture(over_time),
        "figure_4_wealth": _wealth_picture(wealth),
        "figure_5_executions": _count_picture(counts),
        "figure_6_frontier": _frontier_picture(table, constant),
    }
    write_artifacts(folder, tables, figures)
    return _report(paths, rows, table, constant)
