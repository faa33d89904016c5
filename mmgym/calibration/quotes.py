"""Reading what a market maker's own quotes did, from a CSV file.

Quotes file
-----------
A ``.csv`` or ``.csv.gz`` file in UTF-8 whose first line is a header; one row per interval in which the quotes stood
still.

============================ ============ ==========================================================================
column                       unit         meaning
============================ ============ ==========================================================================
time                         s            start of the interval; rises strictly within an episode
mid                          price        mid price at the start of the interval
bid_depth, ask_depth         price        distance of the quote from the mid; may be empty where the exposure is 0
bid_exposure, ask_exposure   s            how long the quote stood, 0 or more; 0 says that the side was not quoted
bid_fills, ask_fills         count        fills in the interval; 0 where the exposure is 0
episode (optional)           label        a number that changes where a new run begins; no price change is taken across
============================ ============ ==========================================================================

Further columns are ignored. Rows of exposure 0 count for the mid price only, so a last row of this kind may carry the
final mid. A quote that goes on standing after a fill has its whole time as exposure; one that is withdrawn at its fill
has the time until then.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmgym.tapes.text_files import read_columns, require, the_source

QUOTES_COLUMNS = (
    "time",
    "mid",
    "bid_depth",
    "ask_depth",
    "bid_exposure",
    "ask_exposure",
    "bid_fills",
    "ask_fills",
)


def read_quotes(path: str | Path) -> pd.DataFrame:
    """Read and check a quotes file (the columns are in the module's docstring).

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.csv.gz`` file.

    Returns
    -------
    pandas.DataFrame
        The documented columns; ``episode`` is 0 where the file has none.

    Raises
    ------
    ValueError
        If anything in the file breaks the format; the message names file, line, column and what is allowed.
    """
    source = the_source(path)
    with_episode = "episode" in source.header
    quotes = read_columns(source, (*QUOTES_COLUMNS, "episode") if with_episode else QUOTES_COLUMNS)
    if not with_episode:
        quotes["episode"] = 0.0
    for column in ("time", "mid", "episode"):
        require(path, quotes, column, quotes[column].notna(), "every row needs a number")
    rises = (quotes["time"].diff() > 0) | (quotes["episode"].diff() != 0)
    require(path, quotes, "time", rises, "time must rise strictly from one row of an episode to the next")
    for side in ("bid", "ask"):
        depth, exposure, fills = f"{side}_depth", f"{side}_exposure", f"{side}_fills"
        live = ~(quotes[exposure] == 0)
        require(path, quotes, exposure, quotes[exposure] >= 0, "an exposure is a number of seconds, 0 or more")
        require(path, quotes, depth, quotes[depth].notna() | ~live, "a quote of positive exposure needs a depth")
        whole = (quotes[fills] >= 0) & (quotes[fills] % 1 == 0)
        require(path, quotes, fills, whole, "fills are a whole number, 0 or more")
        require(path, quotes, fills, live | (quotes[fills] == 0), "without exposure there are no fills")
    return quotes
