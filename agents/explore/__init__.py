"""The explorer: a market's optimum, formulas and agents on a local web page (extra ``explore``)."""
