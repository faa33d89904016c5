"""Figures of matplotlib, the extra ``plot``."""

from pathlib import Path
from typing import Any

from mmgym.plain_files import replacing

__all__ = ["new_figure", "write_figure"]


def new_figure(width: float = 7.0, height: float = 4.5) -> Any:
    """An empty matplotlib figure of that size (inches) that lays itself out.

    Raises
    ------
    ImportError
        Without matplotlib, the extra ``plot``.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'mmgym[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: Path, *, dpi: int = 150) -> None:
    """Write a figure as PNG, so many dots an inch."""
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
