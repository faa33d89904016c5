"""How calibrations are shown: tables of estimates, p-values, JSON and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from mmgym.calibration.exponential import Estimate, ExponentialFit
from mmgym.calibration.tape_checks import Finding, draw_findings, json_value, marked
from mmgym.plot import write_figure

REJECTION = 0.01  # p-value below which a summary calls a law rejected


def estimate_table(estimates: Mapping[str, tuple[Estimate, str]], findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per parameter, with its unit: ``estimate, standard_error, lower, upper, unit`` (95 % interval).

    Where there are findings, their names stand in a column ``warning``.
    """
    rows = [[*vars(estimate).values(), unit] for estimate, unit in estimates.values()]
    columns = ["estimate", "standard_error", "lower", "upper", "unit"]
    return marked(pd.DataFrame(rows, columns=columns, index=pd.Index(list(estimates), name="parameter")), findings)


def shown_p_value(p_value: float) -> str:
    """A p-value after the letter p."""
    return f"= {p_value:.2g}" if p_value >= 1e-12 else "< 1e-12"


def verdict(p_value: float) -> str:
    """Whether a test rejects its law."""
    return "rejected" if p_value < REJECTION else "not rejected"


def json_warnings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as JSON types."""
    return [asdict(item) | {"parameters": list(item.parameters)} for item in findings]


def json_fit(fit: ExponentialFit) -> dict[str, Any]:
    """A fit as JSON types, without its rates by depth; NaN becomes None."""
    values = {item.name: getattr(fit, item.name) for item in fields(fit) if item.name != "rates"}
    content: dict[str, Any] = json_value(
        {name: asdict(value) if isinstance(value, Estimate) else value for name, value in values.items()}
    )
    return content


def save_figure(
    figure: Any, path: str | Path, findings: Sequence[Finding], *, width: int = 150, dpi: int = 120
) -> Path:
    """Write a figure with its warnings below (lines of ``width`` letters) as PNG; the file."""
    draw_findings(figure, findings, width)
    write_figure(figure, Path(path), dpi=dpi)
    return Path(path)


def logarithmic_axis(panel: Any) -> None:
    """Let the vertical axis of a panel be logarithmic, its marks plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_formatter(NullFormatter())
