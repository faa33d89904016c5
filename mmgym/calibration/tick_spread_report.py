"""What a calibration of the tick-spread market says in words and in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmgym.calibration.own_quotes import QUOTES, SIDES
from mmgym.calibration.spread_chain import ENOUGH_VISITS, ModelTest
from mmgym.calibration.tape_checks import described, draw_findings

if TYPE_CHECKING:
    from mmgym.calibration.tick_spread import Calibration, Executions

LOGARITHMIC = 20.0  # ratio of rates from which their axis is logarithmic
REJECTION = 0.01  # p-value below which a law is called rejected
COLOURS = {"best": "tab:blue", "improved": "tab:orange"}


def summarise(found: Calibration) -> str:
    """The sentences of `Calibration.summary`."""
    jumps, duration = int(found.clock_counts.sum()), found.end - found.start
    left = found.transition_counts.sum(axis=1)
    rare = int(left.argmin())
    sentences = [
        *described(found.findings),
        f"{found.source}: {jumps} jumps of the spread in {duration:.6g} s (from {found.start:g} to {found.end:g}), "
        f"{found.num_spreads} spreads of tick {found.tick:g}, the widest with all that are wider. The rarest spread, "
        f"{rare + 1} tick{'s' * (rare > 0)}, was left {left[rare]} times"
        + ("." if left[rare] >= ENOUGH_VISITS else f": few, {ENOUGH_VISITS} bound standard errors by 0.05."),
        _clock_sentence(found),
        _verdict(
            "Holding times on the clock's time are exponential", found.tests["holding_times"], "needs 50 jumps or more"
        ),
        _one_clock_sentences(found),
        _verdict(
            "Given the spread, the next one does not depend on the one before (Markov)",
            found.tests["markov"],
            "needs three spreads and more jumps",
        ),
        *_proxy_sentences(found),
    ]
    if found.own_quotes is not None:
        sentences += [_own_quotes_sentence(found.own_quotes, side) for side in range(2)]
    if found.mid is None:
        sentences.append("The sampled mid does not move: no volatility.")
    else:
        volatility, mid = found.mid.volatility, found.mid
        sentences.append(
            f"Volatility {volatility.value:.4g} +- {volatility.stderr:.2g} price/sqrt(s), the mid sampled every "
            f"{found.volatility_interval:g} s; excess kurtosis of its changes {mid.excess_kurtosis:.2g} (0 under the "
            "model)."
        )
    return "\n".join(sentences)


def _verdict(claim: str, test: ModelTest, lacking: str) -> str:
    if not test.degrees_of_freedom:
        return f"{claim}: not tested, that {lacking}."
    p = test.p_value
    return (
        f"{claim}: {'rejected' if p < REJECTION else 'not rejected'} (chi-square {test.statistic:.4g} on "
        f"{test.degrees_of_freedom} degrees of freedom, p {f'= {p:.2g}' if p >= 1e-12 else '< 1e-12'})."
    )


def _clock_sentence(found: Calibration) -> str:
    clock, test = found.clock_rates.value, found.tests["clock"]
    shown = f"{clock[0]:.4g} per s" if clock.size == 1 else f"{clock.min():.4g} to {clock.max():.4g} per s"
    text = f"Clock: {shown} on {clock.size} piece{'s' * (clock.size > 1)}. "
    verdict = _verdict("Jumps in stretches of time are Poisson", test, "needs ten jumps or more in a piece")
    if test.degrees_of_freedom and test.p_value < REJECTION and test.dispersion > 1:
        verdict += f" They vary {test.dispersion:.3g} times as much: the clock may need more pieces."
    return text + verdict


def _one_clock_sentences(found: Calibration) -> str:
    observed, model = found.seconds / found.seconds.sum(), found.model_shares
    stays = found.seconds / found.transition_counts.sum(axis=1)
    widest = int(np.abs(observed - model).argmax())
    return (
        _verdict("All spreads are left at one rate (one clock)", found.tests["one_clock"], "needs two spreads")
        + f" Shares of time at spreads 1 to {found.num_spreads}: {_shares(observed)} on the tape, {_shares(model)} in "
        f"the model; they differ most, by {abs(observed - model)[widest]:.3f}, at {widest + 1}. Mean stays there: "
        f"{' '.join(f'{stay:.3g}' for stay in stays)} s; the model has one for all."
    )


def _shares(law: Any) -> str:
    return " ".join(f"{share:.3f}" for share in law)


def _proxy_sentences(found: Calibration) -> list[str]:
    counts = found.proxy.counts.sum(axis=2)
    text = (
        f"Proxy intensities (2.13), for orders of {found.own_size:g}: " + "; ".join(
            f"{side} {quote} {counts[s, q]} counts" for s, side in enumerate(SIDES) for q, quote in enumerate(QUOTES)
        ) + "."
    )  # fmt: skip
    if counts.min() == 0:
        text += " Some never count: is own_size in the unit of the tape's sizes?"
    ratios = "; ".join(
        f"{row.side} {row.quote} {row.proxy_limit:.3g} for {row.single_order_rate:.3g}"
        for row in found.proxy_bias().itertuples()
    )
    bias = (
        "The proxy is biased: an interval counts once at most (low), and volumes add up (high). If orders were Poisson "
        "with exponential sizes, at this tape's order rate, mean sizes and jump rate, it would tend to (per s, for "
        f"the true rate of single orders that large): {ratios}."
    )
    return [text, bias] if ratios else [text]


def _own_quotes_sentence(executions: Executions, side: int) -> str:
    parts = ", ".join(
        f"{executions.counts[side, q].sum()} fills in {executions.seconds[side, q].sum():.5g} s {quote}"
        for q, quote in enumerate(QUOTES)
    )
    return f"Own quotes, {SIDES[side]}: {parts}."


def draw(found: Calibration, path: Path) -> Path:
    """The picture of `Calibration.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'mmgym[plot]'") from error

    figure = Figure(figsize=(12, 9), layout="constrained")
    (clock, matrix), sides = figure.subplots(2, 2)
    _draw_clock(found, clock)
    _draw_matrix(found, matrix)
    sides[1].sharey(sides[0])
    for side, panel in enumerate(sides):
        _draw_rates(found, side, panel)
    _scale_rates(found, sides[0])
    figure.suptitle(f"{found.source}: tick {found.tick:g}, {found.num_spreads} spreads")
    draw_findings(figure, found.findings, width=190)
    figure.savefig(path, format="png", dpi=120)
    return path


def _draw_clock(found: Calibration, panel: Any) -> None:
    hours = found.end - found.start > 2 * 3600
    edges = found.clock_edges / (3600 if hours else 1)
    value, _, lower, upper = found.clock_rates
    panel.stairs(value, edges, color="tab:blue", linewidth=1.5, baseline=None)
    panel.errorbar(
        (edges[:-1] + edges[1:]) / 2, value, [value - lower, upper - value], fmt="o", markersize=4, capsize=3,
        color="tab:blue", label="jumps over length, 95 %",
    )  # fmt: skip
    panel.set_ylim(0, 1.2 * float(upper.max()))
    panel.set_xlabel(f"time of the tape ({'hours' if hours else 's'})")
    panel.set_ylabel("jumps of the spread per second")
    panel.set_title("clock (2.9)")
    panel.grid(alpha=0.3)
    panel.legend()


def _draw_matrix(found: Calibration, panel: Any) -> None:
    rho, m = found.spread_transitions, found.num_spreads
    panel.imshow(rho.value, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if m <= 10:
        for i, j in np.argwhere(~np.eye(m, dtype=bool)):
            share, error = rho.value[i, j], rho.stderr[i, j]
            text = f"{share:.3f}\n±{error:.3f}"
            panel.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if share > 0.5 else "black")
    labels = _spread_labels(m)
    left = found.transition_counts.sum(axis=1)
    panel.set_xticks(range(m), labels)
    panel.set_yticks(range(m), [f"{label}\n(n={n})" for label, n in zip(labels, left, strict=True)])
    panel.set_xlabel("to (ticks)")
    panel.set_ylabel("from (ticks)")
    panel.set_title("transition matrix (2.8), ± standard error")


def _draw_rates(found: Calibration, side: int, panel: Any) -> None:
    spreads = np.arange(1, found.num_spreads + 1)
    drawn: list[tuple[str, Executions, str, str | None, str]] = [("proxy", found.proxy, "s", "none", ":")]
    if found.own_quotes is not None:
        drawn.append(("own quotes", found.own_quotes, "o", None, "-"))
    for k, (label, executions, marker, face, line) in enumerate(drawn):
        value, _, lower, upper = executions.rates
        for q, quote in enumerate(QUOTES):
            seen = executions.seconds[side, q] > 0
            if not seen.any():
                continue
            y = value[side, q][seen]
            errors = [y - lower[side, q][seen], upper[side, q][seen] - y]
            panel.errorbar(
                spreads[seen] + 0.06 * (2 * k + q - len(drawn) + 0.5), y, errors, fmt=marker, linestyle=line,
                markersize=5, capsize=3, markerfacecolor=face, color=COLOURS[quote], label=f"{quote}, {label}",
            )  # fmt: skip
    shares = 100 * found.seconds / found.seconds.sum()
    labels = [f"{n}\n{share:.3g} %" for n, share in zip(_spread_labels(found.num_spreads), shares, strict=True)]
    panel.set_xticks(spreads, labels)
    panel.set_xlim(0.5, found.num_spreads + 0.5)
    panel.set_xlabel("spread (ticks), share of the time")
    panel.set_ylabel("executions per second")
    panel.set_title(f"{SIDES[side]} intensities, 95 % (proxy: orders of {found.own_size:g})")
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", ncols=len(drawn), fontsize=9)


def _scale_rates(found: Calibration, panel: Any) -> None:
    """Room for the legend; a logarithmic axis where the rates differ by more than a factor of 20."""
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [part.rates for part in (found.proxy, found.own_quotes) if part is not None]
    values = np.concatenate([part.value.ravel() for part in shown])
    positive = values[values > 0]
    highest = max(float(np.nanmax(part.upper)) for part in shown)
    if positive.size and positive.max() > LOGARITHMIC * positive.min():
        lowest = float(positive.min()) / 2
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(lowest, highest * (highest / lowest) ** 0.25)
    else:
        panel.set_ylim(0, 1.25 * highest)


def _spread_labels(m: int) -> list[str]:
    return [str(i) for i in range(1, m)] + [f"{m}+"]
