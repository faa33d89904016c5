r"""The note that this project began with, "Mathematical Model: Optimal Market Making with Inventory Constraints".

Its model is that of `mmgym/AvellanedaStoikov-v0`; its formulas have errors. Here is each with its correction and, where
it changes quotes, what the quotes as written are worth: exact scores of `policies`, in that environment and with the
criterion that the note writes down, a terminal penalty alone.

`finite_differences` is the note's pseudo-code, corrected: a way to learn what a solver does. It converges to the
optimum of quotes that move at once (`mmgym.baselines.glft.continuous`), at first order in the length of a step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.baseline import baseline_of, environment_of
from mmgym.baselines.frozen import criterion_value
from mmgym.baselines.glft.closed_forms import avellaneda_stoikov_depths
from mmgym.baselines.glft.continuous import continuous_depths, continuous_values
from mmgym.baselines.policy import Policy
from mmgym.baselines.reproduce.artifacts import paragraph, text_table, write_artifacts
from mmgym.baselines.reproduce.avellaneda_stoikov_2008 import BernoulliProblem
from mmgym.baselines.scoring import score
from mmgym.baselines.table_policy import TablePolicy
from mmgym.models.glft import Params
from mmgym.plot import new_figure

Array = NDArray[Any]

__all__ = ["CORRECTIONS", "finite_differences", "policies", "reproduce"]

ENV = "mmgym/AvellanedaStoikov-v0"
TERMINAL_ONLY = {"running_penalty": 0.0, "terminal_penalty": 0.1}  # the criterion that the note writes down
STEPS = (400, 800, 1600, 3200)  # of the corrected recursion
CRITERIA: dict[str, dict[str, Any]] = {"running penalty": {}, "terminal penalty": TERMINAL_ONLY}


class Correction(NamedTuple):
    """An error of the note: where it stands, what is written and what is right; ``policy`` plays what is written."""

    place: str
    written: str
    correct: str
    policy: str = ""


CORRECTIONS = (
    Correction("cash", "dX = S - d_b when bought", "dX = -(S - d_b): buying costs cash"),
    Correction("generator", "u(t, x + S - d_b, q + 1, S)", "u(t, x - S + d_b, q + 1, S)"),
    Correction(
        "reduced HJB",
        "v(q + 1) - v(q) - d_b",
        "v(q + 1) - v(q) + d_b; as written the supremum rewards bids infinitely far above the mid",
    ),
    Correction(
        "first-order condition",
        "-k (v(q + 1) - v(q) - d_b) - 1 = 0",
        "1 - k (d_b + v(q + 1) - v(q)) = 0; as written it holds at a minimum",
    ),
    Correction(
        "base depth",
        "1 / (2 k)",
        "1 / k, or ln(1 + gamma / k) / gamma under CARA; half of it earns e^0.5 / 2 = 0.824 of the best rate",
        "half_base",
    ),
    Correction(
        "sign of the bid's skew",
        "d_b = ... + v(q + 1) - v(q)",
        "d_b = 1 / k - (v(q + 1) - v(q)); as written a long position bids nearer to the mid",
        "bid_sign",
    ),
    Correction("ODE system", "linear", "nonlinear in v; exp(k v) obeys a linear one, where both sides have one k"),
    Correction(
        "constants of the ODE system",
        "A / (2 k), exp(-k (v(q + 1) - v(q)))",
        "A / (k e), exp(+k (v(q + 1) - v(q))), and a side drops out at its bound",
    ),
    Correction(
        "criterion",
        "terminal penalty only",
        "gamma sigma^2 in a quote needs CARA or a penalty on int q^2 dt: without them v is flat far from the horizon",
        "terminal_only",
    ),
    Correction(
        "name of the asymptotic formula",
        "GLFT, for large T",
        "Avellaneda & Stoikov's, for small T: the skew grows with T - t; GLFT's does not depend on time",
        "asymptotic",
    ),
    Correction(
        "sign of the ask's skew there",
        "+ gamma sigma^2 (T - t) (q - 1/2)",
        "- gamma sigma^2 (T - t) (q - 1/2); as written a long position widens both sides",
        "ask_sign",
    ),
    Correction(
        "interpretation", "a long position: wide ask, near bid", "a long position: near ask, wide bid", "reversed"
    ),
    Correction(
        "risk aversion",
        "gamma = phi / sigma^2, phi of q_T^2",
        "gamma = 2 phi / sigma^2, phi of int q^2 dt (other units)",
        "half_aversion",
    ),
    Correction("objective", "expected utility", "a mean less a penalty; utility would be E[-exp(-gamma ...)]"),
    Correction(
        "price",
        "S + sigma sqrt(dt) Z for a geometric mid",
        "exact for an arithmetic mid alone; a geometric one has mu S u_S + sigma^2 S^2 / 2 u_SS, and v depends on S",
    ),
    Correction("fills", "a buy order fills the bid", "sell orders fill bids; cash belongs to the state"),
    Correction("end", "liquidated at the mid", "that costs nothing: phi q_T^2 stands for the spread and impact"),
    Correction(
        "pseudo-code",
        "v[n] = v[n+1] - dt H, v[n, q] with q < 0",
        "v[n] = v[n+1] + dt H at q + Q; negative indices wrap: the largest inventory is beside the smallest",
        "pseudocode",
    ),
    Correction(
        "VaR and CVaR", "q sigma sqrt(T - t) z", "|q| sigma sqrt(T - t) z less the drift, of a position that is held"
    ),
    Correction(
        "drawdown",
        "max_t (X_t + q_t S_t - X_0) >= -D",
        "min_t (W_t - W_0) >= -D, a floor of losses; a drawdown counts from the highest wealth before",
    ),
    Correction("limit on VaR", "P(loss > VaR) <= alpha, alpha a confidence", "P(loss > VaR) <= 1 - alpha"),
    Correction(
        "constraint program",
        "d_b(t), d_a(t)",
        "quotes must know the inventory; `mmgym constrain` has both, with losses and costs that are defined",
        "time_only",
    ),
    Correction(
        "extensions",
        "sigma S dW + J dN; a correlation matrix Sigma",
        "S_-, jumps less their mean; a covariance matrix; Heston's correlation and Feller's condition",
    ),
    Correction("bounds", "very large spreads", "the side is off: a finite spread leaks beyond the bound"),
    Correction(
        "fills in a step",
        "probability lambda dt",
        "exponential clocks: lambda dt passes 1, and Bernoulli fills vary less than Poisson ones",
    ),
)


def finite_differences(params: Params, num_steps: int) -> tuple[Array, Array]:
    """The note's backward recursion, corrected: explicit steps of the HJB equation (model 1a), in plain loops.

    Parameters
    ----------
    params : Params
        Of the mean criterion.
    num_steps : int
        Time steps; more than the fills of a side that are expected in the horizon at any quote that is best.

    Returns
    -------
    values : (num_steps + 1, S)
        ``v(t_n, q)``, of all inventories from the smallest on (currency).
    depths : (num_steps, S, 2)
        Best bid and ask depths (price); infinite where the inventory is at its bound.

    Raises
    ------
    ValueError
        Under CARA, or if the steps are too long for the recursion to be stable.
    """
    p = params
    if p.utility != "mean":
        raise ValueError(f"utility = {p.utility!r} is not allowed: the note's criterion is 'mean'")
    dt, lot, last = p.horizon / num_steps, p.order_size, 2 * p.limit
    q = np.arange(-p.limit, p.limit + 1) * lot
    v = np.zeros((num_steps + 1, last + 1))
    depths = np.full((num_steps, last + 1, 2), np.inf)
    v[num_steps] = -p.terminal_penalty * q**2
    for n in reversed(range(num_steps)):
        for i in range(last + 1):
            gain, rate = p.trend * q[i] - p.running_penalty * q[i] ** 2, 0.0
            if i < last:  # a bid, unless the inventory is at its bound
                change = v[n + 1, i + 1] - v[n + 1, i]
                depths[n, i, 0] = 1.0 / p.fill_decay_bid - change / lot
                fills = p.fill_rate_bid * math.exp(-p.fill_decay_bid * depths[n, i, 0])
                gain, rate = gain + fills * (lot * depths[n, i, 0] + change), rate + fills
            if i > 0:  # an ask
                change = v[n + 1, i - 1] - v[n + 1, i]
                depths[n, i, 1] = 1.0 / p.fill_decay_ask - change / lot
                fills = p.fill_rate_ask * math.exp(-p.fill_decay_ask * depths[n, i, 1])
                gain, rate = gain + fills * (lot * depths[n, i, 1] + change), rate + fills
            if rate * dt >= 1.0:
                raise ValueError(
                    f"num_steps = {num_steps} is not allowed: {rate * dt:.3g} fills in a step make the recursion "
                    f"unstable; it must be more than {math.ceil(num_steps * rate * dt)}"
                )
            v[n, i] = v[n + 1, i] + dt * gain
    return v, depths


def _pseudocode(p: Params) -> Array:
    """Depths (N, S, 2) of the note's pseudo-code, line by line: a negative ``q`` counts from the end of the row.

    With a terminal penalty its values soon pass the range of numbers, and depths are nan.
    """
    dt, steps, k, rate = p.step_length, p.num_steps, p.fill_decay_bid, p.fill_rate_bid
    inventories = np.arange(-p.limit, p.limit + 1)
    v, depths = np.zeros((steps + 1, len(inventories))), np.empty((steps, len(inventories), 2))
    v[steps] = -p.terminal_penalty * inventories**2
    with np.errstate(over="ignore", invalid="ignore"):
        for n in range(steps - 1, -1, -1):
            for q in inventories.tolist():
                bid = 1.0 / (2.0 * k) + v[n + 1, q + 1] - v[n + 1, q]
                ask = 1.0 / (2.0 * k) + v[n + 1, q] - v[n + 1, q - 1]
                of_bid, of_ask = rate * np.exp(-k * bid), rate * np.exp(-k * ask)
                v[n, q] = v[n + 1, q] - dt * (
                    of_bid * (v[n + 1, q + 1] - v[n + 1, q] - bid) + of_ask * (v[n + 1, q - 1] - v[n + 1, q] + ask)
                )
                depths[n, q + p.limit] = bid, ask
    return depths


def policies(env: Any = ENV, **arguments: Any) -> dict[str, Policy]:
    """The note's quotes as written, by name: policies to score in an environment of the GLFT market.

    Where the pseudo-code's depths are not numbers, 1 / k is played.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.

    Raises
    ------
    TypeError
        If it is of another market.
    ValueError
        If its sides differ, its lot is not 1, or its criterion is CARA: the note has none of them.
    """
    baseline = baseline_of(env, **arguments)
    p, problem = baseline.params, baseline.problem
    if not isinstance(p, Params) or problem is None:
        raise TypeError(f"{type(p).__module__} is not the market of the note: it must be GLFT or AvellanedaStoikov")
    if (p.fill_rate_bid, p.fill_decay_bid) != (p.fill_rate_ask, p.fill_decay_ask) or p.order_size != 1.0:
        raise ValueError("the note has one fill rate and one decay for both sides, and a lot of 1 asset")
    if p.utility != "mean":
        raise ValueError("utility = 'cara' is not allowed: the note's criterion is 'mean'")
    best = continuous_depths(p, continuous_values(p)[:-1])  # what a table looks like: (N, S, [bid, ask])
    base, expansion = 1.0 / p.fill_decay_bid, avellaneda_stoikov_depths(p)
    skew = 2.0 * p.running_penalty * (p.horizon - np.arange(p.num_steps) * p.step_length)[:, None]
    q = problem.coordinates["inventory"]
    last_ask = np.stack([expansion[..., 0], base + skew * (q - 0.5)], axis=-1)
    plain = p._replace(running_penalty=0.0)
    tables: dict[str, Callable[[], Array]] = {
        "half_base": lambda: best - 0.5 * base,
        "bid_sign": lambda: np.stack([2.0 * base - best[..., 0], best[..., 1]], axis=-1),
        "terminal_only": lambda: continuous_depths(plain, continuous_values(plain)[:-1]),
        "asymptotic": lambda: last_ask - 0.5 * base,
        "ask_sign": lambda: last_ask,
        "reversed": lambda: best[:, ::-1],
        "half_aversion": lambda: 0.5 * (expansion + base),
        "pseudocode": lambda: _pseudocode(p),
        "time_only": lambda: np.broadcast_to(best[:, p.limit, None, :], best.shape),
    }
    return {name: TablePolicy(problem, np.nan_to_num(table(), nan=base)) for name, table in tables.items()}


def _scores(progress: bool) -> pd.DataFrame:
    """Exact scores of the quotes as written, under both criteria, and of the corrected recursion's."""
    rows = []
    for criterion, arguments in tqdm(CRITERIA.items(), desc="market-making-note", disable=not progress):
        env = environment_of(ENV, **arguments)
        p, baseline = env.params, baseline_of(env)
        assert baseline.problem is not None
        corrected = TablePolicy(baseline.problem, _corrected(p))
        every: Mapping[str, Policy] = {"finite_differences": corrected, **policies(env)}
        for name, policy in every.items():
            scored = score(env, policy)
            rows.append(
                {
                    "criterion": criterion, "policy": name, "skill": scored.skill, "regret": scored.regret,
                    "value": scored.value, "P&L std": scored.pnl_std, "fills": scored.fills, "clipped": scored.clipped,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _corrected(p: Params) -> Array:
    """Depths (N, S, 2) of the corrected recursion at decisions; a side that is off gets its neighbour's depth."""
    finer = 10
    depths = finite_differences(p, finer * p.num_steps)[1][::finer]
    depths[:, -1, 0], depths[:, 0, 1] = depths[:, -2, 0], depths[:, 1, 1]
    return depths


def _convergence(p: Params, steps: Sequence[int]) -> pd.DataFrame:
    """Errors of the corrected recursion's value at the start, for so many steps each."""
    exact = continuous_values(p, 1)[0, p.limit]
    errors = [finite_differences(p, count)[0][0, p.limit] - exact for count in steps]
    return pd.DataFrame({"steps": steps, "error of v(0, 0)": errors})


def _bernoulli(p: Params) -> tuple[float, float]:
    """What the same quotes are worth where a side is filled with probability ``lambda dt``, and truly."""
    baseline = baseline_of(environment_of(ENV))
    assert baseline.problem is not None and baseline.solution is not None
    table = baseline.solution.controls
    return criterion_value(BernoulliProblem(p), table), criterion_value(baseline.problem, table)


def _picture() -> Any:
    """Quotes at the start, as written and as they should be."""
    env = environment_of(ENV)
    best, p = baseline_of(env).solution, env.params
    assert best is not None
    written = policies(env)
    figure = new_figure(9.0, 4.0)
    q = np.arange(-p.limit, p.limit + 1)
    for side, (name, axes) in enumerate(zip(("bid", "ask"), figure.subplots(1, 2, sharey=True), strict=True)):
        axes.plot(q, best.controls[0, :, side], color="black", linewidth=2.0, label="optimal")
        for shown, color in (("half_base", "tab:green"), ("bid_sign", "tab:red"), ("ask_sign", "tab:blue")):
            axes.plot(q, written[shown].controls[0, :, side], "--", color=color, label=shown)  # type: ignore[attr-defined]
        axes.set_title(f"{name} depth at the start")
        axes.set_xlabel("inventory (assets)")
    figure.axes[0].set_ylabel("depth (price)")
    figure.axes[0].legend(frameon=False)
    return figure


def _report(scores: pd.DataFrame, convergence: pd.DataFrame) -> str:
    p = environment_of(ENV).params
    bernoulli, poisson = _bernoulli(p)
    listed = [
        paragraph(f"{number}. {each.place}: {each.written}. Correct: {each.correct}.")
        + (f"\n    as written: `{each.policy}` below" if each.policy else "")
        for number, each in enumerate(CORRECTIONS, 1)
    ]
    parts = {name: scores[scores["criterion"] == name].drop(columns="criterion") for name in CRITERIA}
    tables = [f"{name}\n{text_table(part, 4)}" for name, part in parts.items()]
    lost = np.isnan(_pseudocode(environment_of(ENV, **TERMINAL_ONLY).params)).mean()
    return "\n\n".join(
        [
            'Errors of the note "Optimal Market Making with Inventory Constraints", with corrections',
            *listed,
            paragraph(
                f"""What the quotes as written are worth in {ENV}, exactly, with its running penalty
                {p.running_penalty:g} and with a terminal penalty {TERMINAL_ONLY["terminal_penalty"]:g} alone, as the
                note has it. Skill is 0 for constant quotes 1 / k and 1 for the optimum; "clipped" is the share of
                decisions at which a quote lies outside the action box."""
            ),
            *tables,
            paragraph(
                f"""With the terminal penalty {100.0 * lost:.0f} % of the depths of the pseudo-code are not numbers: its
                values pass the range of floating point, and `pseudocode` plays 1 / k there."""
            ),
            f"The corrected recursion, against the exact value\n{convergence.to_string(index=False)}",
            paragraph(
                f"""Fills with probability lambda dt (dt = {p.step_length:g}): the optimal quotes seem to be worth
                {bernoulli:.4f}; they are worth {poisson:.4f}."""
            ),
        ]
    )


def reproduce(folder: Path, *, quick: bool = False, progress: bool = True) -> str:
    """The errors, their corrections and what they cost, as text: see `mmgym.baselines.reproduce`.

    Parameters
    ----------
    folder : Path
        Made if missing. It gets ``errors.csv``, ``scores.csv``, ``convergence.csv`` and ``quotes.png``.
    quick : bool
        Compares the corrected recursion at two lengths of a step, not four.
    """
    errors = pd.DataFrame([{"number": number, **each._asdict()} for number, each in enumerate(CORRECTIONS, 1)])
    scores, convergence = _scores(progress), _convergence(environment_of(ENV).params, STEPS[:2] if quick else STEPS)
    write_artifacts(folder, {"errors": errors, "scores": scores, "convergence": convergence}, {"quotes": _picture()})
    return _report(scores, convergence)
