"""How the page and snapshots look: what they share."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["GRAPH", "style"]

GRAPH = {"displaylogo": False, "displayModeBar": False, "responsive": True}  # of every figure


def style() -> str:
    """The text of the style sheet."""
    return (files("mmgym.agents.explore") / "style.css").read_text(encoding="utf-8")
