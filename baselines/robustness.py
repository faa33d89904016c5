"""What a policy is worth where the parameters are others than those that it was made for: exact, point by point."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mmgym.arguments import shown as printed
from mmgym.baselines.foreign import player_in
from mmgym.baselines.quotes import as_quotes, warn_of_another_box
from mmgym.baselines.randomised import SeesValues
from mmgym.baselines.scoring import Score, WholeTable, score
from mmgym.parameters import pinned_box

__all__ = ["MOST_POINTS", "Robustness", "robustness"]

MOST_POINTS = 4096  # each is a market that is solved


@dataclass(frozen=True)
class Robustness:
    """A policy over a range of parameters.

    Attributes
    ----------
    table : DataFrame
        A row for each point: the parameters, ``value``, ``optimum`` (its lower bound where it has two), ``reference``,
        ``regret``, ``skill``, ``method``.
    worst : Series
        The row with the largest regret.
    mean : Score or None
        Over a law, where one was given: value, optimum that knows the parameters, best policy that does not.
    """

    table: pd.DataFrame
    worst: pd.Series
    mean: Score | None = None


def robustness(
    policy: Any,
    env: Any,
    over: Mapping[str, Sequence[Any]],
    law: Mapping[str, Any] | None = None,
    *,
    quotes: bool = False,
    deterministic: bool = True,
    markov: bool | None = None,
    progress: bool = False,
    **arguments: Any,
) -> Robustness:
    """Score a policy at every combination of values of some parameters, with the action box of an environment.

    Parameters
    ----------
    policy : Policy or callable
    env : environment or id
        Whose other parameters and whose action box hold at all points, so that an action stands for the same quotes at
        all of them; with an id, ``arguments`` are those of its constructor.
    over : mapping of str to sequence
        Values of parameters; all combinations of several.
    law : mapping, optional
        A law of parameters as of `randomise` (see `mmgym.variation`), over which the mean is taken.
    quotes : bool
        Whether the policy's quotes are played, in the place of its actions (`mmgym.baselines.quotes`).
    deterministic, markov
        As in `mmgym.baselines.score`.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If a parameter cannot differ (it changes the states or the meaning of actions), a value is not allowed, or there
        are more than `MOST_POINTS` points.
    """
    base, player = player_in(env, policy, markov, **arguments)
    points = _points(over)
    if quotes:
        player = as_quotes(player, base)
    else:
        warn_of_another_box(player, base)
    fixed = pinned_box(base.one_params, base.arguments_of_row())
    kind = getattr(base, "vector_class", type(base))
    _require_same_actions(kind, fixed, points)
    variation = base.variation
    rows = []
    for point in tqdm(points, "robustness", unit="market", disable=not progress, delay=2.0):
        shown = np.zeros(0, np.float32)
        if variation is not None and variation.observed:
            shown = variation.scaled({name: point.get(name, value) for name, value in base.parameters.items()})
        seen = SeesValues(player, shown)
        scored = score(kind(1, **{**fixed, **point}), seen, deterministic=deterministic, markov=markov)
        rows.append({**point, **_columns(scored)})
    table = WholeTable(pd.DataFrame(rows))
    mean = None
    if law is not None:
        random = kind(1, **fixed, randomise=law, observe_parameters=variation is not None and variation.observed)
        mean = score(random, player, deterministic=deterministic, markov=markov, progress=progress)
    return Robustness(table, table.iloc[int(np.argmax(table["regret"]))], mean)


def _points(over: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values."""
    if not isinstance(over, Mapping) or not over:
        raise TypeError(f'over = {printed(over)} is not allowed: it must be a mapping, {{"name": [values], ...}}')
    columns = {
        name: np.asarray(values, object).tolist() if np.ndim(values) else [values] for name, values in over.items()
    }
    count = math.prod(map(len, columns.values()))
    if not 1 <= count <= MOST_POINTS:
        raise ValueError(f"over has {count:,} points: from 1 to {MOST_POINTS:,} are allowed, each is a market to solve")
    return [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]


def _require_same_actions(kind: Any, fixed: Mapping[str, Any], points: list[dict[str, Any]]) -> None:
    """Refuse parameters that change the states or what actions stand for, by the names of those that do."""
    kind(len(points), parameters={name: [point[name] for point in points] for name in points[0]}, **fixed)


def _columns(scored: Score) -> dict[str, Any]:
    regret = scored.regret if isinstance(scored.regret, float) else scored.regret[0]
    return {
        "value": scored.value,
        "optimum": scored.optimum_lower,
        "reference": scored.reference,
        "regret": regret,
        "skill": scored.skill,
        "method": scored.method,
    }
