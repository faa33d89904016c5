"""The style sheet that the page and snapshots share."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["style"]


def style() -> str:
    """The text of the style sheet."""
    return (files("mmgym.agents.explore") / "style.css").read_text(encoding="utf-8")
