"""``mmgym simulate hawkes_power``: tapes of simulated days (`mmgym.calibration.hawkes_power_tape`)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mmgym.calibration.hawkes_power_tape import (
    ILLUSTRATIVE_SETS,
    WINDOW_NAMES,
    TapeParameters,
    illustrative,
    simulate_power_tapes,
)

TITLE = "six Hawkes processes and the book they move: event tapes of days, in a folder"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmgym simulate hawkes_power``: those of `simulate_power_tapes`."""
    products = sorted({product for product, _ in ILLUSTRATIVE_SETS})
    parser.add_argument("--product", choices=products, default=products[0], help=f"default {products[0]}")
    parser.add_argument("--window", choices=WINDOW_NAMES, default="Late", help="default Late")
    parser.add_argument("--days", type=int, default=5, help="tapes (default 5)")
    parser.add_argument("--first-date", default="2015-04-01", metavar="DATE", help="of delivery (default 2015-04-01)")
    parser.add_argument("--start-bid", type=int, default=3470, metavar="TICKS", help="default 3470")
    parser.add_argument("--allow-explosive", action="store_true", help="accept excitation >= decay")


def run(options: argparse.Namespace, arguments: Mapping[str, Any]) -> list[Path]:
    """Run ``mmgym simulate hawkes_power``; ``arguments`` are fields of `TapeParameters`."""
    known = [item.name for item in fields(TapeParameters)]
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"{', '.join(unknown)}: no parameter of these tapes; there are {', '.join(known)}")
    own: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()
    }
    return simulate_power_tapes(
        options.out,
        product=options.product,
        window=options.window,
        days=options.days,
        seed=options.seed,
        first_date=options.first_date,
        start_bid=options.start_bid,
        parameters=replace(illustrative(options.product, options.window), **own),
        allow_explosive=options.allow_explosive,
    )
