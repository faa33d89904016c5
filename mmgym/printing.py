"""Tables as commands print and write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from mmgym.plain_files import json_value, replacing, write_json
from mmgym.provenance import provenance

__all__ = ["show", "table_text", "write_output", "write_result", "write_table"]


def table_text(table: pd.DataFrame, *, index: bool = False, digits: int = 6, missing: str = "NaN") -> str:
    """A table as text, numbers with so many significant digits."""
    return table.to_string(index=index, float_format=lambda x: f"{x:.{digits}g}", na_rep=missing)


def show(table: pd.DataFrame, file: str | None = None, *, index: bool = False) -> None:
    """Print a table and, if a file is named, write it as `write_output` does."""
    print(table_text(table, index=index))
    if file is not None:
        write_output(file, table)


def write_output(file: str, table: pd.DataFrame, index: str = "") -> None:
    """Write a table as CSV or, where the name ends in .json, as a list of rows with the same columns; say so.

    ``index`` is what the column of its index is called, which is left out without it.
    """
    table = table.reset_index(names=index) if index else table
    path = Path(file)
    if path.suffix == ".json":
        write_json(path, json_value(table.to_dict(orient="records")))
    else:
        with replacing(path) as part:
            table.to_csv(part, index=False)
    print(f"\nwritten: {path}")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, without its index; numbers keep 12 significant digits."""
    with replacing(path) as part:
        table.to_csv(part, index=False, float_format="%.12g")


def write_result(file: str, table: pd.DataFrame, content: Mapping[str, Any]) -> None:
    """Write a table as CSV or, where the name ends in .json, all the content with versions and commit; say so."""
    path = Path(file)
    if path.suffix == ".json":
        write_json(path, {**content, "provenance": provenance()})
    else:
        write_table(table, path)
    print(f"written: {path}")
