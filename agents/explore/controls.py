"""Controls of a market's parameters: what a slider spans and what an entry says, from the table of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from mmgym.agents.explore.settings import Settings, text_of
from mmgym.parameters import Choice, Integer, Multiple, Row, argument_names, arguments_of, create, row_of

__all__ = ["Control", "controls_of"]

STEPS = 20  # of a slider between 0 and the default


class Control(NamedTuple):
    """One parameter: an entry and, where it is a number, a slider."""

    name: str
    text: str  # what was given; "" where the default holds
    shown: str  # the value that holds now
    default: str  # the value that holds where nothing is given
    options: tuple[str, ...]  # of a choice; empty otherwise
    slider: tuple[float, float, float, float] | None  # lowest, highest, step and position
    unit: str
    help: str


def _number(value: Any) -> float | None:
    """The number that a parameter is, or that all entries of it are."""
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        flat = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        return None
    return float(flat[0]) if flat.size and np.isfinite(flat).all() and (flat == flat[0]).all() else None


def _nice(size: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above a size."""
    power = 10.0 ** math.floor(math.log10(size) + 1e-12)
    return max(step for step in (1.0, 2.0, 5.0) if step * power <= size * (1.0 + 1e-9)) * power


def slider_of(row: Row, value: float, unit: float | None) -> tuple[float, float, float]:
    """Lowest, highest and step of a slider around a value: its grid has the value, its ends are allowed.

    Parameters
    ----------
    row : Row
    value : float
        The default.
    unit : float or None
        What values must be multiples of.
    """
    low, high = (row.low, row.high) if unit is None else (row.low * unit, row.high * unit)
    if high - low <= 2.0:  # a share, a correlation
        step = 0.01 if unit is None else unit
        return low, high, step
    size = abs(value) or (5.0 * unit if unit else 1.0)
    step = _nice(size / STEPS) if unit is None else unit * max(1.0, round(_nice(size / STEPS) / unit))
    away, back = 2.0 * size, 0.9 * size  # from zero and towards it
    reach = (size, size) if value == 0.0 else (back, away) if value > 0.0 else (away, back)
    down, up = min(reach[0], max(value - low, 0.0)), min(reach[1], max(high - value, 0.0))
    lowest, highest = (value + sign * math.floor(part / step + 1e-9) * step for sign, part in ((-1, down), (1, up)))
    return float(f"{lowest:.12g}"), float(f"{highest:.12g}"), float(f"{step:.12g}")


def _unit_of(row: Row, known: Mapping[str, Any]) -> float | None:
    if isinstance(row, Multiple):
        return _number(known[row.of])
    return 1.0 if isinstance(row, Integer) else None


def _help(row: Row, default: str) -> str:
    texts = (row.text, row.allowed(), f"default {default}")
    return "; ".join(filter(None, texts)).replace("`", "").replace("**", "")


def controls_of(settings: Settings, params: Any) -> list[Control]:
    """The controls of an environment's parameters, in the order of its table.

    Parameters
    ----------
    settings : Settings
    params : NamedTuple
        What the settings make (see `mmgym.agents.explore.settings.checked_params`).
    """
    params_type: Any = type(params)
    preset = dict(gymnasium.registry[settings.env].kwargs)
    known, defaults = arguments_of(params), arguments_of(create(params_type, preset))
    controls = []
    for name in argument_names(params_type):
        row = row_of(params_type, name)
        given = settings.arguments.get(name)
        choices = row.options if isinstance(row, Choice) else ()
        number, middle = _number(known[name]), _number(defaults[name])
        plain = row.default is None or _number(row.default) is not None
        slider = None
        if not choices and plain and middle is not None and number is not None:
            low, high, step = slider_of(row, middle, _unit_of(row, known))
            if high > low:
                slider = (min(low, number), max(high, number), step, number)
        shown, default = (text_of(values[name]) for values in (known, known if given is None else defaults))
        if slider is not None:
            shown, default = f"{number:.6g}", f"{number if given is None else middle:.6g}"
        controls.append(
            Control(
                name=name,
                text="" if given is None else text_of(given),
                shown=shown,
                default=default,
                options=tuple(text_of(option) for option in choices),
                slider=slider,
                unit=row.unit.replace("**", "").replace("`", ""),
                help=_help(row, default),
            )
        )
    return controls
