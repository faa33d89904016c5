"""What the explorer shows: an environment with arguments and what is compared, as the query of an address has it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gymnasium

from mmgym.kernel_env import MarketFace
from mmgym.parameters import argument_names, create
from mmgym.plain_files import parse_json, shortened
from mmgym.registration import ENVIRONMENTS, check_foreign_environment

__all__ = ["Settings", "checked_params", "known_environments", "read_address", "value_of", "write_address"]

LONGEST = 4000  # characters of a value
FRACTIONS = (0.0, 0.5, 0.9)  # of the episode: the times that are shown at first


@dataclass(frozen=True)
class Settings:
    """An environment and what is shown of it.

    Attributes
    ----------
    env : str
        A registered id, without ``module:`` in front.
    arguments : mapping
        Constructor arguments that are given, as JSON types.
    agent : str
        Folder of a run or of a model; "" for none.
    policy : str
        Which named policy is compared with the optimum; "" for the agent or, without one, the reference policy.
    seed : int
        Of the episode.
    across : str
        Coordinate of the state on the axis; "" for the first.
    times : tuple of float
        Fractions of the episode at which quotes are shown.
    at : mapping
        Where the other coordinates are held: name -> level.
    """

    env: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    agent: str = ""
    policy: str = ""
    seed: int = 0
    across: str = ""
    times: tuple[float, ...] = FRACTIONS
    at: Mapping[str, float] = field(default_factory=dict)

    @property
    def market(self) -> str:
        """What tells one environment with its arguments from another."""
        return json.dumps([self.env, dict(self.arguments)], sort_keys=True)

    @property
    def compared(self) -> str:
        """What is compared with the optimum, as one word or path; "" for the reference policy."""
        return self.policy or self.agent

    def without_market(self, env: str) -> Settings:
        """The settings of another environment: nothing but the times is kept."""
        return Settings(env, times=self.times)


def known_environments() -> dict[str, str]:
    """Ids that can be explored, with their titles: this project's, and registered markets of others."""
    known = {row.id: row.title for row in ENVIRONMENTS}
    for env_id, spec in gymnasium.registry.items():
        face: Any = spec.entry_point
        if isinstance(face, str):  # only what is imported already
            module, _, name = face.partition(":")
            face = getattr(sys.modules.get(module), name, None)
        if env_id not in known and isinstance(face, type) and issubclass(face, MarketFace):
            known[env_id] = str(face.market.name).replace("_", " ")
    return known


def checked_params(settings: Settings, allowed: Mapping[str, Any] | None = None) -> Any:
    """Parameters that the settings make, checked as those of a file from somebody else are; nothing is solved.

    Parameters
    ----------
    settings : Settings
    allowed : mapping, optional
        Arguments that the user gave on the command line: these may name files.

    Raises
    ------
    ValueError, TypeError
        If the id is not registered, or an argument is unknown or out of range; the message says what is allowed.
    """
    foreign = {name: value for name, value in settings.arguments.items() if (allowed or {}).get(name) != value}
    face = check_foreign_environment(settings.env, foreign, "the address")
    params_type = face.market.params_type
    for name in settings.arguments:
        if name not in argument_names(params_type):
            raise ValueError(
                f"argument {shortened(name)} of {settings.env} is not allowed: it must be one of "
                f"{', '.join(argument_names(params_type))}"
            )
    return create(params_type, {**gymnasium.registry[settings.env].kwargs, **settings.arguments})


def value_of(text: str) -> Any:
    """The value that was typed or stands in an address: a number, true, false, null, a list, or else text."""
    text = text.strip()
    if len(text) > LONGEST:
        raise ValueError(f"the value {shortened(text)} is not allowed: it has more than {LONGEST} characters")
    try:
        return parse_json(text, "the value")
    except ValueError:
        pass
    try:
        return float(text)  # .5 and 1. are no JSON
    except ValueError:
        return text


def text_of(value: Any) -> str:
    """A value as it is shown and typed: the inverse of `value_of`."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.10g}"
    return json.dumps([parsed(part) for part in value]) if isinstance(value, list | tuple) else json.dumps(value)


def parsed(value: Any) -> Any:
    """Numbers of a list with ten digits, for showing."""
    if isinstance(value, list | tuple):
        return [parsed(part) for part in value]
    return float(f"{value:.10g}") if isinstance(value, float) and math.isfinite(value) else value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"the time {shortened(text)} is not allowed: times are fractions of the episode from 0 to 1")
    return value


def times_of(text: str) -> tuple[float, ...]:
    """Fractions of the episode from text like ``0, 0.5, 0.9``: one to six of them, in order."""
    times = sorted({_fraction(part) for part in text.replace(";", ",").split(",") if part.strip()})
    if not 1 <= len(times) <= 6:
        raise ValueError(f"the times {shortened(text)} are not allowed: give one to six fractions from 0 to 1")
    return tuple(times)


def seed_of(text: str) -> int:
    """A seed from text."""
    if not (text.strip().isdecimal() and len(text.strip()) <= 18):
        raise ValueError(f"the seed {shortened(text)} is not allowed: it must be a whole number from 0 to 10^18 - 1")
    return int(text)


def _level(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{shortened(name)} = {shortened(text)} is not allowed: it must be a level of the coordinate")
    return value


def read_address(query: str, default: Settings) -> Settings:
    """Settings of an address's query: ``?env=ID&fill_decay=1.2``; names with a dot are those of the view.

    Parameters
    ----------
    query : str
        With or without the question mark; "" stands for the default.
    default : Settings
        Those of the command line.

    Raises
    ------
    ValueError
        If a value cannot be used, or a name is given twice.
    """
    if len(query) > 20 * LONGEST:
        raise ValueError(f"the address is not allowed: it has {len(query)} characters")
    pairs = parse_qsl(query.removeprefix("?"), keep_blank_values=True)
    if not pairs:
        return default
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ValueError("the address is not allowed: it has a name twice")
    env = given.pop("env", default.env)
    if env not in known_environments():
        raise ValueError(
            f"the environment {shortened(env)} is not known here: choose one of the list (a market of your own is "
            "given by mmgym explore --env MODULE:ID, never by an address)"
        )
    settings = Settings(env)
    at, arguments = {}, {}
    for name, text in given.items():
        if name.startswith("at."):
            at[name.removeprefix("at.")] = _level(name, text)
        elif name == "view.agent":
            settings = replace(settings, agent=text)
        elif name == "view.policy":
            settings = replace(settings, policy=text)
        elif name == "view.across":
            settings = replace(settings, across=text)
        elif name == "view.seed":
            settings = replace(settings, seed=seed_of(text))
        elif name == "view.times":
            settings = replace(settings, times=times_of(text))
        elif "." in name:
            raise ValueError(
                f"{shortened(name)} is not allowed in an address: names with a dot are view.agent, view.policy, "
                "view.across, view.seed, view.times and at.COORDINATE"
            )
        else:
            arguments[name] = value_of(text)
    return replace(settings, arguments=arguments, at=at)


def write_address(settings: Settings) -> str:
    """The query of an address that holds the settings: the inverse of `read_address`."""
    pairs = {"env": settings.env, **{name: text_of(value) for name, value in settings.arguments.items()}}
    for name in ("agent", "policy", "across"):
        if value := getattr(settings, name):
            pairs[f"view.{name}"] = value
    if settings.seed:
        pairs["view.seed"] = str(settings.seed)
    if settings.times != FRACTIONS:
        pairs["view.times"] = ",".join(f"{value:g}" for value in settings.times)
    pairs |= {f"at.{name}": f"{value:.10g}" for name, value in settings.at.items()}
    return "?" + urlencode(pairs, safe="/:[],")
