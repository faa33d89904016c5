"""What a reproduction leaves behind: tables (CSV), pictures (PNG) and text, each written completely or not at all."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmgym.plot import write_figure
from mmgym.printing import write_table

__all__ = ["paragraph", "text_table", "write_artifacts", "write_table"]


def text_table(frame: pd.DataFrame, digits: int) -> str:
    """A table as plain text: so many decimals, no negative zeros, nothing where a number is missing."""
    return frame.to_string(index=False, float_format=lambda x: f"{round(x, digits) + 0.0:.{digits}f}", na_rep="")


def paragraph(text: str) -> str:
    """Text in lines of at most 110 characters."""
    return textwrap.fill(" ".join(text.split()), 110)


def write_artifacts(folder: Path, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Any]) -> None:
    """Write tables and figures into a folder, each under its name."""
    for name, frame in tables.items():
        write_table(frame, folder / f"{name}.csv")
    for name, figure in figures.items():
        write_figure(figure, folder / f"{name}.png")
