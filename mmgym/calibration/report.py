"""How calibrations are shown: tables of estimates, p-values, JSON and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmgym.calibration.block_intervals import Estimate
from mmgym.calibration.tape_checks import draw_findings, marked
from mmgym.plain_files import json_value
from mmgym.plot import write_figure
from mmgym.tapes.findings import Finding

REJECTION = 0.01  # chance that a fit is called rejected although its laws hold, all its tests together


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


def verdict(p_value: float, tests: int = 1) -> str:
    """Whether a test, one of so many of a fit, rejects its law."""
    return "rejected" if p_value < REJECTION / tests else "not rejected"


def rejected_laws(p_values: Mapping[str, float]) -> list[str]:
    """The laws, by name, that the tests of a fit reject; NaN, where nothing could be tested, rejects none."""
    return [name for name, p_value in p_values.items() if p_value < REJECTION / len(p_values)]


def as_json(value: Any) -> Any:
    """Results as JSON types: tables as lists of rows, dataclasses by their fields (findings are "warnings").

    NaN becomes None.
    """
    if is_dataclass(value):
        items = {item.name: getattr(value, item.name) for item in fields(value)}
        return {"warnings" if name == "findings" else name: as_json(item) for name, item in items.items()}
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, pd.DataFrame):
        return json_value(value.to_dict(orient="records"))
    return json_value(value.tolist() if isinstance(value, np.ndarray) else value)


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
