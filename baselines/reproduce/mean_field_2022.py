r"""Baldacci, Bergault & Possamaï, "A mean-field game of market-making against strategic traders".

One market-maker and a crowd of market-takers with private signals. The paper solves the mean-field game by explicit
Euler steps and shows the takers' law, value and quotes and the maker's value and quotes, for signals that jump 1.5
times a day either way (Figures 1-8) and ten times as often (Figures 9-16). The table of parameters is the paper's; the
takers' initial law, which it does not print, is (0, 0) here.

Here all sixteen figures are drawn from the equilibrium in continuous time (`mmgym.models.mean_field_limit`), the
paper's statements about them are checked one by one, and its theorem that the equilibrium is nearly one of the game
with N takers is measured: deviations gain of the order 1 / N^2, and empirical laws fluctuate like 1 / sqrt(N).

Money in dollars, time in days, inventory in assets.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mmgym.baselines.mean_field.players import best_deviation, few_takers, inventory_fluctuations, loglog_slope
from mmgym.baselines.reproduce.artifacts import paragraph, text_table, write_table
from mmgym.models import mean_field_limit as limit
from mmgym.models import mean_field_ode
from mmgym.models.mean_field_game import PRESETS, Game
from mmgym.models.mean_field_limit import Equilibrium, solve_equilibrium
from mmgym.plot import new_figure, write_figure

Array = NDArray[np.float64]

__all__ = ["Case", "claims", "reproduce"]

INVENTORIES, SIGNALS = (-80, 0, 80), (-2, 0, 2)  # at which the paper cuts its surfaces
COUNTS, FEW_COUNTS = (10, 30, 100, 300, 1000), (10, 30, 100)  # takers; those of a quick run
STRONG: dict[str, Any] = {
    "impact": 0.05,
    "initial_law": [80.0, 2],
}  # the strongest impact: there a deviation gains something
MODERATE: dict[str, Any] = {"impact": 0.005, "initial_law": [80.0, 2]}  # the same, quicker to solve
FEW: dict[str, Any] = {  # so small a game that all joint states of few takers are worked out
    "impact": 0.05, "initial_law": [10.0, 1], "inventory_limit": 10.0, "maker_inventory_limit": 30.0, "signal_limit": 1,
    "horizon": 0.4,
}  # fmt: skip
BETWEEN = 5.0  # signal jumps a day at which the paper's statements on fast signals hold together
FIGURES = {"slow": range(1, 9), "fast": range(9, 17)}
TITLES = {"slow": "1.5 signal jumps a day", "fast": "15 signal jumps a day"}


class Case(NamedTuple):
    """One speed of the signals, solved."""

    game: Game
    law: Array  # p(T), (B, Q)
    value: Array  # W^m(0), (B, Q)
    quotes: Array  # takers' at time 0, (B, Q, 2)
    maker_value: Array  # W(0), (Q,)
    maker_quotes: Array  # at time 0, (Q, 2)
    equilibrium: Equilibrium

    @classmethod
    def solve(cls, game: Game) -> "Case":
        """The equilibrium of a game."""
        solved = solve_equilibrium(game)
        return cls(
            game, solved.flow.laws[-1], solved.taker_values[0], solved.taker_quotes[0], solved.maker_values[0],
            solved.maker_quotes[0], solved,
        )  # fmt: skip

    def at(self, field: Array, inventory: float, signal: int) -> float:
        """Entry of a field (B, Q)."""
        return float(field[self.row(signal), self.column(inventory)])

    def column(self, inventory: float) -> int:
        """Index of an inventory (assets)."""
        return round(inventory / self.game.order_size) + self.game.short

    def row(self, signal: int) -> int:
        """Index of a signal."""
        return signal + self.game.signal_limit


# Figures


def _long(case: Case, **fields: Array) -> pd.DataFrame:
    signal, inventory = np.meshgrid(case.game.signal, case.game.inventory, indexing="ij")
    columns = {name: np.ravel(field) for name, field in fields.items()}
    return pd.DataFrame({"signal": signal.ravel(), "inventory": inventory.ravel(), **columns})


def _surfaces(case: Case, fields: dict[str, Array], title: str) -> Any:
    """Heat maps over inventory and signal."""
    game = case.game
    figure = new_figure(6.4 * len(fields) if len(fields) == 1 else 10.4, 4.2)
    step = 0.5 * game.order_size
    extent = (game.inventory[0] - step, game.inventory[-1] + step, game.signal[0] - 0.5, game.signal[-1] + 0.5)
    for axes, (name, field) in zip(np.atleast_1d(figure.subplots(1, len(fields))), fields.items(), strict=True):
        image = axes.imshow(field, origin="lower", aspect="auto", extent=extent, cmap="viridis")
        figure.colorbar(image, ax=axes, label=name)
        axes.set(xlabel="inventory (assets)", ylabel="signal (dollars / day)")
    figure.suptitle(title, fontsize=11)
    return figure


def _cuts(case: Case, left: Array, right: Array, label: str, title: str) -> Any:
    """A field over the signal at fixed inventories, and over the inventory at fixed signals."""
    game, figure = case.game, new_figure(10.0, 4.0)
    first, second = figure.subplots(1, 2)
    for inventory in INVENTORIES:
        first.plot(game.signal, left[:, case.column(inventory)], "o-", markersize=3.5, label=f"inventory {inventory}")
    for signal in SIGNALS:
        second.plot(game.inventory, right[case.row(signal)], "o-", markersize=3.0, label=f"signal {signal}")
    first.set(xlabel="signal (dollars / day)", ylabel=label)
    second.set(xlabel="inventory (assets)", ylabel=label)
    for axes in (first, second):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _lines(x: Array, fields: dict[str, Array], label: str, title: str) -> Any:
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for name, field in fields.items():
        axes.plot(x, field, "o-", markersize=3.5, label=name)
    axes.set(xlabel="inventory (assets)", ylabel=label, title=title)
    axes.title.set_fontsize(11)
    axes.grid(alpha=0.3)
    if len(fields) > 1:
        axes.legend(frameon=False)
    return figure


def _conditional(case: Case) -> tuple[Array, Array]:
    """Law of the signal given each inventory, and of the inventory given each signal, (B, Q) both."""
    law = case.law
    return law / law.sum(axis=0, keepdims=True), law / law.sum(axis=1, keepdims=True)


def _open(field: Array) -> Array:
    """Quotes (Q, 2) or (B, Q, 2) without those of closed sides: no bid at the upper limit, no ask at the lower one."""
    quotes = field.copy()
    quotes[..., -1, 0] = np.nan
    quotes[..., 0, 1] = np.nan
    return quotes


Drawn = tuple[str, pd.DataFrame, Callable[[str], Any]]  # name and data of a figure, and its picture under a title


def _law_figures(case: Case) -> list[Drawn]:
    law, (given_inventory, given_signal) = case.law, _conditional(case)
    return [
        (
            "joint_law",
            _long(case, probability=law),
            lambda title: _surfaces(case, {"probability": law}, f"{title}: law of the takers at the horizon"),
        ),
        (
            "conditional_laws",
            _long(case, signal_given_inventory=given_inventory, inventory_given_signal=given_signal),
            lambda title: _cuts(
                case, given_inventory, given_signal, "probability", f"{title}: conditional laws at the horizon"
            ),
        ),
    ]


def _taker_figures(case: Case) -> list[Drawn]:
    label, value, bid, ask = "value (dollars)", case.value, *np.moveaxis(_open(case.quotes), -1, 0)
    both = {"bid depth (dollars)": bid, "ask depth (dollars)": ask}
    return [
        (
            "taker_value",
            _long(case, value=value),
            lambda title: _surfaces(case, {label: value}, f"{title}: a taker's value at time 0"),
        ),
        (
            "taker_value_cuts",
            _long(case, value=value),
            lambda title: _cuts(case, value, value, label, f"{title}: a taker's value at time 0"),
        ),
        (
            "taker_quotes",
            _long(case, bid=bid, ask=ask),
            lambda title: _surfaces(case, both, f"{title}: a taker's best quotes at time 0"),
        ),
        (
            "taker_bid_cuts",
            _long(case, bid=bid),
            lambda title: _cuts(case, bid, bid, "bid depth (dollars)", f"{title}: a taker's best bid at time 0"),
        ),
    ]


def _maker_figures(case: Case) -> list[Drawn]:
    inventory, (bid, ask) = case.game.inventory, _open(case.maker_quotes).T
    maker = pd.DataFrame({"inventory": inventory, "value": case.maker_value, "bid": bid, "ask": ask})
    value, quotes = {"value (dollars)": case.maker_value}, {"bid": bid, "ask": ask}
    return [
        (
            "maker_value",
            maker[["inventory", "value"]],
            lambda title: _lines(inventory, value, "value (dollars)", f"{title}: the maker's value at time 0"),
        ),
        (
            "maker_quotes",
            maker[["inventory", "bid", "ask"]],
            lambda title: _lines(inventory, quotes, "depth (dollars)", f"{title}: the maker's best quotes at time 0"),
        ),
    ]


def _draw(case: Case, name: str, folder: Path) -> None:
    """Eight figures and their data."""
    drawn = [*_law_figures(case), *_taker_figures(case), *_maker_figures(case)]
    for number, (what, table, picture) in zip(FIGURES[name], drawn, strict=True):
        stem = f"figure_{number:02d}_{what}"
        write_table(table, folder / f"{stem}.csv")
        write_figure(picture(f"Figure {number} ({TITLES[name]})"), folder / f"{stem}.png")


# What the paper says of them


Claim = tuple[str, str, bool | str]  # the paper's statement, what comes out here, and whether it holds


def _zero_given_empty(case: Case) -> float:
    """Probability of signal 0 given inventory 0."""
    return float(_conditional(case)[0][case.row(0), case.column(0)])


def _peaks(case: Case) -> list[int]:
    """Inventories at which the law given signal 0 has a peak."""
    law = _conditional(case)[1][case.row(0)]
    inside = np.flatnonzero((law[1:-1] > law[:-2]) & (law[1:-1] > law[2:])) + 1
    return [round(x) for x in case.game.inventory[inside]]


def _lowest(case: Case, inventory: float) -> int:
    """Signal at which a taker's value is lowest."""
    return int(case.game.signal[np.argmin(case.value[:, case.column(inventory)])])


def _first_crossing(case: Case, inventory: float) -> int:
    """Lowest signal at which a taker bids above the mid."""
    bids = case.quotes[:, case.column(inventory), 0]
    return int(case.game.signal[np.flatnonzero(bids < 0.0)[0]])


def _asymmetry(field: Array) -> float:
    """Largest difference from the mirror image, relative."""
    return float(np.abs(field - field[::-1]).max() / np.abs(field).max())


def _symmetric_peak(field: Array) -> bool:
    """Whether a field is its own mirror image, and highest in the middle."""
    return bool(np.abs(field - field[::-1]).max() < 1e-6 * np.abs(field).max() and np.argmax(field) == len(field) // 2)


def _span(field: Array) -> float:
    return float(np.nanmax(field) - np.nanmin(field))


def _law_claims(slow: Case, fast: Case) -> list[Claim]:
    """Of the law of the takers at the horizon."""
    both = (slow, fast)
    given_empty = [_conditional(case)[0][:, case.column(0)] for case in both]
    given_flat = [_conditional(case)[1][case.row(0)] for case in both]
    short = float(_conditional(slow)[1][slow.row(-2), : slow.column(0)].sum())
    positive = float(_conditional(slow)[0][slow.row(1) :, slow.column(-80)].sum())
    return [
        (
            "P(signal 0 | inventory 0) is 0.3 with fast signals (Figure 10a) and 0.5 with slow ones (Figure 2a)",
            f"{_zero_given_empty(fast):.3f} and {_zero_given_empty(slow):.3f}",
            "in order only",
        ),
        (
            "given inventory 0 the law of the signal is symmetric",
            f"up to {max(map(_asymmetry, given_empty)):.0e}",
            max(map(_asymmetry, given_empty)) < 1e-6,
        ),
        (
            "given signal 0 the law of the inventory is symmetric, with slow and with fast signals",
            f"up to {max(map(_asymmetry, given_flat)):.0e}",
            max(map(_asymmetry, given_flat)) < 1e-6,
        ),
        (
            "given signal -2 (or 2) all the weight is on negative (or positive) inventories (slow signals)",
            f"probability {short:.3f}",
            short > 0.95,
        ),
        ("at inventory -80 the signal is almost never positive", f"probability {positive:.4f}", positive < 0.05),
        (
            "given signal 0 the inventory has two bumps with fast signals, one with slow ones",
            f"peaks at {_peaks(fast)} and at {_peaks(slow)}",
            len(_peaks(fast)) == 2 and len(_peaks(slow)) == 1,
        ),
    ]


def _value_claims(slow: Case, fast: Case, between: Case) -> list[Claim]:
    """Of a taker's value; ``between`` is the likely game of the figures with fast signals."""

    def three(case: Case) -> bool:
        """The three statements on fast signals that depend on how fast they are."""
        chance = _zero_given_empty(case)
        return 0.25 <= chance < 0.35 and len(_peaks(case)) == 2 and _lowest(case, -80) == 1

    both, flat = (slow, fast), slow.row(0)
    best_at = [round(slow.game.inventory[np.argmax(slow.value[slow.row(signal)])]) for signal in (-2, 2)]
    return [
        (
            "at inventory 0 a taker's value is lowest at signal 0",
            f"at {_lowest(slow, 0)} and {_lowest(fast, 0)}",
            all(_lowest(case, 0) == 0 for case in both),
        ),
        (
            "at inventory 0 a taker's value is symmetric in the signal",
            f"up to {_asymmetry(slow.value[:, slow.column(0)]):.0e}",
            _asymmetry(slow.value[:, slow.column(0)]) < 1e-6,
        ),
        (
            "with a negative signal a taker's value is highest at a negative inventory, and conversely (slow signals)",
            f"at {best_at[0]} for signal -2, at {best_at[1]} for signal 2",
            best_at[0] < 0 < best_at[1],
        ),
        (
            "with slow signals also at inventories -80 and 80",
            f"at {_lowest(slow, -80)} and {_lowest(slow, 80)}",
            _lowest(slow, -80) == _lowest(slow, 80) == 0,
        ),
        (
            "with fast signals at inventory -80 it is lowest at signal 1",
            f"at {_lowest(fast, -80)}",
            _lowest(fast, -80) == 1,
        ),
        (
            f"(these three statements on fast signals hold together at {BETWEEN:g} jumps a day, about 3.3 times the "
            "slow rate and not 10 times: the figures were likely drawn there)",
            f"probability {_zero_given_empty(between):.3f}, peaks at {_peaks(between)}, lowest at "
            f"{_lowest(between, -80)}",
            three(between) and not three(fast),
        ),
        (
            "a taker's value differs less between its highest and its lowest level with fast signals (Figure 11)",
            f"by {_span(fast.value):.0f} instead of {_span(slow.value):.0f}",
            _span(fast.value) < _span(slow.value),
        ),
        (
            "at signal 0 the value is symmetric in the inventory, and highest at 0",
            "yes" if all(_symmetric_peak(case.value[flat]) for case in both) else "no",
            all(_symmetric_peak(case.value[flat]) for case in both),
        ),
    ]


def _quote_claims(slow: Case, fast: Case) -> list[Claim]:
    """Of a taker's quotes."""
    bids = [_open(case.quotes)[..., 0] for case in (slow, fast)]
    change = (bids[1] - bids[0])[:, slow.column(0)]
    middle, edge = (float(np.abs(change[[slow.row(-b), slow.row(b)]]).max()) for b in (1, slow.game.signal_limit))
    return [
        (
            "at inventory -80 a taker bids above the mid as soon as the signal is positive (slow signals)",
            f"from signal {_first_crossing(slow, -80)} (fast: {_first_crossing(fast, -80)})",
            _first_crossing(slow, -80) == 1,
        ),
        (
            "at inventory 0 a taker bids above the mid if the signal is positive enough",
            f"from signal {_first_crossing(slow, 0)} (fast: {_first_crossing(fast, 0)})",
            _first_crossing(slow, 0) > 0,
        ),
        (
            "with fast signals a taker's quotes are the same but at intermediate values (Figures 13, 14)",
            f"at inventory 0 bids move by {middle:.3f} at signals -1 and 1, by {edge:.3f} at the largest ones",
            edge < middle,
        ),
        (
            "there a taker quotes more conservatively",
            f"at inventory 0 and signal 1 the bid is {change[slow.row(1)]:.3f} further from the mid",
            change[slow.row(1)] > 0.0,
        ),
    ]


def _maker_claims(slow: Case, fast: Case) -> list[Claim]:
    both = (slow, fast)
    tallest = float(np.nanmax(_open(slow.maker_quotes)))
    takers = float(np.nanmax(_open(slow.quotes)))
    traded = [_maker_fills(case) for case in both]
    return [
        (
            "the maker's bid rises with her inventory, her ask falls",
            "yes" if all(_sorted_quotes(case) for case in both) else "no",
            all(_sorted_quotes(case) for case in both),
        ),
        (
            "the maker's value is symmetric, and highest at 0",
            "yes" if all(_symmetric_peak(case.maker_value) for case in both) else "no",
            all(_symmetric_peak(case.maker_value) for case in both),
        ),
        (
            "the maker's value is significantly lower with fast signals",
            f"{slow.equilibrium.maker_value:.2f}, then {fast.equilibrium.maker_value:.2f}",
            fast.equilibrium.maker_value < 0.98 * slow.equilibrium.maker_value,
        ),
        ("because the maker trades less", f"{traded[0]:.2f} fills, then {traded[1]:.2f}", traded[1] < traded[0]),
        (
            "the maker's quotes go higher than the takers'",
            f"{tallest:.3f} against {takers:.3f} (time 0)",
            tallest > takers,
        ),
    ]


def claims(slow: Case, fast: Case, between: Case) -> pd.DataFrame:
    """The paper's statements (section 5), what is found, and whether they hold; ``between`` has the rate `BETWEEN`."""
    rows = [
        *_law_claims(slow, fast),
        *_value_claims(slow, fast, between),
        *_quote_claims(slow, fast),
        *_maker_claims(slow, fast),
        (
            "takers' quotes are stationary",
            f"they change by {_drift(slow):.1e} dollars in the first day",
            _drift(slow) < 1e-6,
        ),
        (
            "the algorithm finds one solution only, which suggests uniqueness",
            "with symmetric laws nothing moves the price, and the map is constant: it cannot show anything else",
            "says nothing",
        ),
    ]
    held = [verdict if isinstance(verdict, str) else ("yes" if verdict else "NO") for _, _, verdict in rows]
    return pd.DataFrame({"statement": [row[0] for row in rows], "found": [row[1] for row in rows], "holds": held})


def _maker_fills(case: Case) -> float:
    """Expected fills of the maker, who starts without inventory and plays her best quotes."""
    game, flow, quotes = case.game, case.equilibrium.flow, case.equilibrium.maker_quotes
    times = flow.times
    factors = limit.maker_factors(game, flow.mean_quotes, flow.quoting)
    rates = (factors[:, None] * np.exp(-game.maker_fill_decay * quotes))[:, None]
    laws = np.empty((len(rates), 1, game.shape[1]))
    mean_field_ode.law(
        times, rates, np.zeros((2, 1)), np.eye(1, len(game.maker_inventory), game.maker_start), False, laws
    )
    speed = (laws * rates[..., 0])[..., :-1].sum(axis=(1, 2)) + (laws * rates[..., 1])[..., 1:].sum(axis=(1, 2))
    return float(limit.curve_weights(times) @ speed)


def _sorted_quotes(case: Case) -> bool:
    """Whether the maker's bid rises with her inventory and her ask falls."""
    bid, ask = case.maker_quotes.T
    return bool((np.diff(bid[:-1]) > 0.0).all() and (np.diff(ask[1:]) < 0.0).all())


def _drift(case: Case) -> float:
    """Largest change of the takers' quotes in the first day."""
    times = case.equilibrium.flow.times
    return float(np.abs(case.equilibrium.taker_quotes[2 * np.searchsorted(times, 1.0)] - case.quotes).max())


# N takers


def _players(quick: bool, folder: Path) -> str:
    arguments, numbers = (MODERATE, FEW_COUNTS) if quick else (STRONG, COUNTS)
    game = Game.create(**arguments)
    equilibrium = solve_equilibrium(game)
    deviations = pd.DataFrame([best_deviation(game, count, equilibrium)._asdict() for count in numbers])
    fluctuations = inventory_fluctuations(numbers, players=4_000 if quick else 200_000)
    write_table(deviations, folder / "players_deviations.csv")
    few = few_takers((1, 2) if quick else (1, 2, 3), num_steps=4 if quick else 10, **FEW)
    write_table(fluctuations, folder / "players_fluctuations.csv")
    write_table(few, folder / "players_few.csv")
    counts = np.array(numbers, dtype=np.float64)
    slopes = {
        "gain of a deviation": loglog_slope(counts, deviations["gain"].to_numpy()),
        "shift of the value": loglog_slope(counts, -deviations["shift"].to_numpy()),
        "mean inventory (rms)": loglog_slope(counts, fluctuations["rms"].to_numpy()),
        "inventory law (L1)": loglog_slope(counts, fluctuations["histogram"].to_numpy()),
    }
    figure = new_figure(10.0, 4.0)
    left, right = figure.subplots(1, 2)
    left.loglog(counts, deviations["gain"], "o-", label=f"gain, slope {slopes['gain of a deviation']:.2f}")
    left.loglog(counts, -deviations["shift"], "s--", label=f"minus shift, slope {slopes['shift of the value']:.2f}")
    left.set(xlabel="takers", ylabel="dollars", title=f"A taker's best deviation, impact {game.impact:g}")
    rms = f"mean inventory, slope {slopes['mean inventory (rms)']:.2f}"
    right.errorbar(counts, fluctuations["rms"], 2.0 * fluctuations["rms_error"], fmt="o", label=rms)
    right.loglog(counts, fluctuations["rms_exact"], "-", color="tab:blue", linewidth=1.0, label="std / sqrt(N)")
    right.loglog(counts, 10.0 * fluctuations["histogram"], "s", color="tab:orange",
                 label=f"10 x L1 distance of laws, slope {slopes['inventory law (L1)']:.2f}")  # fmt: skip
    right.loglog(counts, 10.0 * fluctuations["histogram_normal"], "-", color="tab:orange", linewidth=1.0)
    right.set(xlabel="takers", ylabel="assets", title="Fluctuations at the horizon (base game)")
    for axes in (left, right):
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, fontsize=8)
    write_figure(figure, folder / "players.png")
    shown = pd.DataFrame({"quantity": slopes.keys(), "slope": slopes.values(), "expected": [-2.0, -1.0, -0.5, -0.5]})
    return (
        f"N takers: convergence to the limit (deviations with impact {game.impact:g} from (80, 2), fluctuations in the "
        f"base game)\n\n{text_table(deviations, 6)}\n\n{text_table(fluctuations, 4)}\n\n{text_table(shown, 3)}\n\n"
        f"Few takers in a small game on decision steps (impact {FEW['impact']:g}, signals up to {FEW['signal_limit']}, "
        f"takers' limit {FEW['inventory_limit']:g}): what a player gains by depths of her own state, and by depths of "
        f"all takers' states\n\n{text_table(few, 4)}"
    )


def reproduce(folder: str | Path, *, quick: bool = False, progress: bool = True) -> str:
    """The figures, their data and the tables, and the tables as text: see `mmgym.baselines.reproduce`.

    Parameters
    ----------
    quick : bool
        Deviations under a weaker impact, and fewer takers; the figures and the claims are the same.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    with tqdm(total=5, desc="mean-field-2022", disable=not progress) as bar:
        cases = {}
        for name, preset in (("slow", "paper"), ("fast", "fast_signals")):
            cases[name] = Case.solve(Game.create(**PRESETS[preset]))
            bar.update(1)
        for name, case in cases.items():
            _draw(case, name, home)
            bar.update(1)
        table = claims(cases["slow"], cases["fast"], Case.solve(Game.create(signal_rate=BETWEEN)))
        write_table(table, home / "claims.csv")
        players = _players(quick, home)
        bar.update(1)
    values = pd.DataFrame(
        [
            {
                "signals": TITLES[name],
                "W^m(0,0,0)": case.at(case.value, 0, 0),
                "W(0,0)": case.equilibrium.maker_value,
                "mean bid at time 0": float(case.equilibrium.flow.mean_quotes[0, 0]),
                "E |q|": float((case.law * np.abs(case.game.inventory)).sum()),
                "error": case.equilibrium.error,
            }
            for name, case in cases.items()
        ]
    )
    write_table(values, home / "values.csv")
    lines = [f"{row.holds:>13}  {row.statement}: {row.found}" for row in table.itertuples()]
    return "\n\n".join(
        [
            paragraph(
                "Baldacci, Bergault & Possamaï: the equilibrium of the mean-field game, sixteen figures. The paper's "
                "initial law is not printed: (0, 0) here. Mean quotes are those of the takers who quote on a side."
            ),
            text_table(values, 8),
            "What the paper says, and whether it holds:\n\n" + "\n".join(lines),
            players,
        ]
    )
