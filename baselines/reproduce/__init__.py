"""The papers' tables and figures, one file a paper.

Each module has ``reproduce(folder, *, quick=False, progress=True) -> str``: it writes tables and figures into a folder,
which is made if it is missing, and returns the tables as text. ``quick`` does less; ``progress`` shows progress bars.
Without matplotlib, the extra ``plot``, it raises an `ImportError`.
"""

__all__ = ["PAPERS"]

# Name of the command -> module in this package.
PAPERS: dict[str, str] = {
    "avellaneda-stoikov-2008": "avellaneda_stoikov_2008",
    "gueant-2013": "gueant_2013",
    "guilbaud-pham-2013": "guilbaud_pham_2013",
    "power-2017": "power_2017",
    "mean-field-2022": "mean_field_2022",
    "market-making-note": "market_making_note",
}
