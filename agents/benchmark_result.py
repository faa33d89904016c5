"""The result of a benchmark's cell, read back from its file with every field checked that a report uses."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgym.plain_files import UnreadableFile, read_json, shortened

__all__ = ["read_result"]

Check = Callable[[Any, str], None]  # of a value and what errors call it; refuses by a ValueError


def _refuse(value: Any, name: str, allowed: str) -> ValueError:
    return ValueError(f"{name} = {shortened(value)} must be {allowed}")


def _number(value: Any, name: str) -> None:
    if type(value) not in (int, float) or (abs(value) > 1e300 and math.isfinite(value)):
        raise _refuse(value, name, "a number")


def _finite(value: Any, name: str) -> None:
    if type(value) not in (int, float) or not abs(value) <= 1e300:
        raise _refuse(value, name, "a finite number")


def _amount(value: Any, name: str) -> None:
    if type(value) not in (int, float) or not 0.0 <= value <= 1e18:
        raise _refuse(value, name, "a number from 0 to 1e18")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise _refuse(value, name, "text")


def _maybe(check: Check) -> Check:
    """None, or what the check allows."""
    return lambda value, name: None if value is None else check(value, name)


def _list(check: Check) -> Check:
    def allows(value: Any, name: str) -> None:
        if not isinstance(value, list):
            raise _refuse(value, name, "a list")
        for place, part in enumerate(value):
            check(part, f"{name}[{place}]")

    return allows


def _names(check: Check) -> Check:
    """A mapping of names to what the check allows."""

    def allows(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _refuse(value, name, "a mapping")
        for key, part in value.items():
            check(part, f"{name}.{key}")

    return allows


def _fields(**checks: Check) -> Check:
    """A mapping that has at least these names."""

    def allows(value: Any, name: str) -> None:
        if not isinstance(value, dict) or not set(checks) <= set(value):
            raise _refuse(value, name, f"a mapping with {', '.join(checks)}")
        for key, check in checks.items():
            check(value[key], f"{name}.{key}")

    return allows


def _array(value: Any, name: str, shape: tuple[int, ...]) -> None:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise _refuse(value, name, f"numbers of shape {shape}") from error
    if array.shape != shape:
        raise _refuse(value, name, f"numbers of shape {shape}")


_POINT = _fields(steps=_amount, skill=_number, regret=_number)
_FIGURES = _fields(
    **dict.fromkeys(("value", "value_error", "optimum_lower", "optimum_upper", "reference", "skill"), _finite),
    **dict.fromkeys(("stderr", "std", "pnl", "pnl_std", "fills", "orders", "mean_absolute_inventory"), _maybe(_number)),
    **dict.fromkeys(("level", "method"), _text),
)


def _score(value: Any, name: str) -> None:
    _FIGURES(value, name)
    _maybe(_number)(value.get("clipped"), f"{name}.clipped")


def _kind(value: Any, name: str) -> None:
    if value not in ("paper", "ours", "optimum"):
        raise _refuse(value, name, "'paper', 'ours' or 'optimum'")


def _regret(value: Any, name: str) -> None:
    """A map of regret over time and each coordinate."""
    part = _fields(levels=_list(_number), cells=_list(_list(_number)))
    _fields(times=_list(_number), coordinates=_names(part))(value, name)
    if "inventory" not in value["coordinates"] or len(value["times"]) < 2:
        raise _refuse(value, name, "over two times or more, and over the inventory")
    for coordinate, by_level in value["coordinates"].items():
        place = f"{name}.coordinates.{coordinate}"
        _array(by_level["levels"], f"{place}.levels", (max(len(by_level["levels"]), 1),))
        _array(by_level["cells"], f"{place}.cells", (len(value["times"]) - 1, len(by_level["levels"])))


def _analysis(value: Any, name: str) -> None:
    _fields(regret=_maybe(_regret), controls=_list(_text))(value, name)
    panels, count = value.get("quotes"), len(value["controls"])
    _maybe(_list(_fields(where=_names(_number), inventory=_list(_number), optimal=_list(_list(_number)))))(
        panels, f"{name}.quotes"
    )
    for place, panel in enumerate(panels or []):
        for curve in ("optimal", "learned"):
            _array(panel.get(curve), f"{name}.quotes[{place}].{curve}", (count, len(panel["inventory"])))
        where = panel["where"]
        if "fraction" not in where and where.get("third") not in (1, 2, 3):
            raise _refuse(where, f"{name}.quotes[{place}].where", "a fraction, or a third from 1 to 3")


_COMMON = _fields(wall_seconds=_amount, versions=_names(_text), platform=_text, commit=_maybe(_text))
_FAILED = _fields(error=_text)
_AGENT = _fields(
    score=_score,
    analysis=_analysis,
    curve=_maybe(_list(_POINT)),
    **dict.fromkeys(("steps", "seconds", "steps_per_second"), _maybe(_amount)),
)


def _policy(value: Any, name: str) -> None:
    _fields(score=_score, regret=_maybe(_regret))(value, name)
    _maybe(_kind)(value.get("kind"), f"{name}.kind")  # folders of older versions lack it


_POLICIES = _fields(policies=_names(_policy))


def read_result(file: Path, cell: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a cell, with the cell as it is planned: nothing that the file says of it is used.

    Raises
    ------
    ValueError
        If the file is damaged, or a field is of the wrong type or out of range.
    """
    way_on = "delete it to run the cell again"
    try:
        result = read_json(file)
        _COMMON(result, "the result")
        status = result.get("status")
        if status not in ("finished", "failed"):
            raise _refuse(status, "status", "'finished' or 'failed'")
        check = _FAILED if status == "failed" else _AGENT if cell["kind"] == "agent" else _POLICIES
        check(result, "the result")
        _maybe(_text)(result.get("traceback"), "traceback")
    except UnreadableFile as error:
        raise ValueError(f"{error}; {way_on}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not the result of {cell['key']}: {error}; {way_on}") from error
    content: dict[str, Any] = result
    return content | {"cell": dict(cell)}
