"""The table of environment ids."""

import inspect
import math
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import load_env_creator

from mmgym.models.mean_field_game import PRESETS
from mmgym.parameters import argument_names
from mmgym.plain_files import shortened

__all__ = ["ENVIRONMENTS", "Registered", "check_foreign_environment", "register_all"]


class Registered(NamedTuple):
    """One id: the market's word, its environment classes in ``module`` and its preset arguments."""

    id: str
    market: str
    env: str
    vector_env: str
    arguments: dict[str, Any]
    level: str  # of exactness of the optimum: "exact", "certified" or "bracketed"
    title: str
    declared: bool = False  # a declaration (`mmgym.declare`), which makes the environment's classes

    @property
    def module(self) -> str:
        """Where the environment's classes are."""
        return f"mmgym.{'models' if self.declared else 'envs'}.{self.market}"


_AVELLANEDA_STOIKOV = {
    "volatility": 2.0,
    "fill_rate": 140.0,
    "fill_decay": 1.5,
    "horizon": 1.0,
    "num_steps": 200,
    "inventory_limit": 10.0,
    "risk_aversion": 0.1,
}

ENVIRONMENTS = (
    Registered(
        "mmgym/GLFT-v0", "glft", "GLFTEnv", "GLFTVectorEnv", {}, "exact", "Guéant-Lehalle-Fernandez-Tapia (2013)"
    ),
    Registered(
        "mmgym/AvellanedaStoikov-v0",
        "glft",
        "GLFTEnv",
        "GLFTVectorEnv",
        _AVELLANEDA_STOIKOV,
        "exact",
        "Avellaneda-Stoikov (2008)",
    ),
    Registered(
        "mmgym/MultiAssetGLFT-v0",
        "multi_asset_glft",
        "MultiAssetGLFTEnv",
        "MultiAssetGLFTVectorEnv",
        {},
        "exact",
        "Bergault-Guéant (2021), two assets",
    ),
    Registered(
        "mmgym/StochasticVolatility-v0",
        "stochastic_volatility",
        "StochasticVolatilityEnv",
        "StochasticVolatilityVectorEnv",
        {},
        "certified",
        "Guéant-Lehalle-Fernandez-Tapia (2013), Heston variance",
    ),
    Registered(
        "mmgym/TickSpread-v0",
        "tick_spread",
        "TickSpreadEnv",
        "TickSpreadVectorEnv",
        {},
        "exact",
        "Guilbaud-Pham (2013)",
    ),
    Registered(
        "mmgym/TickSpreadCompact-v0",
        "tick_spread",
        "TickSpreadEnv",
        "TickSpreadVectorEnv",
        {"lot": 50.0, "inventory_limit": 300.0, "actions": "compact", "spread_encoding": "one_hot"},
        "exact",
        "Guilbaud-Pham (2013), a menu of 32 actions",
    ),
    Registered(
        "mmgym/HawkesFlow-v0",
        "hawkes_flow",
        "HawkesFlowEnv",
        "HawkesFlowVectorEnv",
        {},
        "certified",
        "von Luckner-Cartea-Jaimungal-Kiesel (2017), reduced",
    ),
    Registered(
        "mmgym/HawkesPower-v0",
        "hawkes_power",
        "HawkesPowerEnv",
        "HawkesPowerVectorEnv",
        {},
        "bracketed",
        "von Luckner-Cartea-Jaimungal-Kiesel (2017)",
    ),
    *(
        Registered(
            f"mmgym/MeanField{role}{suffix}-v0",
            "mean_field",
            f"MeanField{role}Env",
            f"MeanField{role}VectorEnv",
            PRESETS[preset],
            "exact",
            f"Baldacci-Bergault-Possamaï, {who}{what}",
        )
        for role, who in (("Taker", "one taker"), ("Maker", "the market-maker"))
        for preset, suffix, what in (
            ("paper", "", ""),
            ("fast_signals", "FastSignals", ", signals ten times faster"),
            ("coupled", "Coupled", ", impact 0.02"),
            ("strong_impact", "StrongImpact", ", impact 0.05"),
        )
    ),
    *(
        Registered(f"mmgym/{word}-v0", market, f"{word}Env", f"{word}VectorEnv", {}, "exact", title, declared=True)
        for word, market, title in (
            ("FillCurves", "fill_curves", "Guéant (2017), fill curves and fees"),
            ("TickQuotes", "tick_quotes", "Guéant (2017), quotes in whole ticks"),
            ("Impact", "impact", "Cartea-Jaimungal-Ricci (2014), impact of fills"),
            ("ShortTermAlpha", "short_term_alpha", "Cartea-Jaimungal-Penalva (2015), drift on a chain"),
            ("GeometricPrice", "geometric_price", "Avellaneda-Stoikov (2008), geometric mid on a grid"),
            ("Dealer", "dealer", "Bergault-Guéant (2021), requests of several sizes"),
        )
    ),
    *(
        Registered(
            f"mmgym/RobustGLFT{role}-v0",
            "robust_glft",
            f"RobustGLFT{role}Env",
            f"RobustGLFT{role}VectorEnv",
            {},
            "exact",
            f"Spooner-Savani (2020), {who}",
        )
        for role, who in (("", "a maker against nature"), ("Adversary", "nature against a maker"))
    ),
)


def register_all() -> None:
    """Register every id of the table with Gymnasium.

    No id has ``max_episode_steps``: its `TimeLimit` would truncate what the market ends by itself. Gymnasium would copy
    the number into ``spec`` whatever ``num_steps`` is given, and where decisions follow events an episode has a random
    number of them. The length of the others is the argument ``num_steps``.
    """
    for row in ENVIRONMENTS:
        if row.id not in gymnasium.registry:
            gymnasium.register(
                id=row.id,
                entry_point=f"{row.module}:{row.env}",
                vector_entry_point=f"{row.module}:{row.vector_env}",
                kwargs=dict(row.arguments),
            )


def check_foreign_environment(env_id: Any, arguments: Any, source: str, *, files: bool = False) -> Any:
    """Refuse what a file from somebody else may not name: anything but a registered market with plain arguments.

    Nothing that the file names is imported or opened: the id must be in Gymnasium's registry already (``module:`` in
    front of it would import the module), its class one of mmgym's, and an argument that takes the path of a file must
    be one of the words that it takes besides.

    Parameters
    ----------
    env_id, arguments
        As the file has them.
    source : str
        What errors call the file.
    files : bool
        Whether an argument may be a path all the same; the caller does not open it.

    Returns
    -------
    type
        The environment's class.

    Raises
    ------
    ValueError
        If the id or an argument is not allowed.
    """
    from mmgym.kernel_env import MarketFace

    spec = gymnasium.registry.get(env_id) if isinstance(env_id, str) else None
    creator = load_env_creator(spec.entry_point) if spec is not None and isinstance(spec.entry_point, str) else None
    face = spec.entry_point if spec is not None and creator is None else creator
    if not inspect.isclass(face) or not issubclass(face, MarketFace):
        module = shortened(env_id.partition(":")[0])[1:-1] if isinstance(env_id, str) and ":" in env_id else "MODULE"
        raise ValueError(
            f"{source}: the environment {shortened(env_id)} is not allowed: it must be the id of a registered mmgym "
            "market (see `mmgym list`), without module: in front; import the module of a market of your own first "
            f"(mmgym --import {module} ...)"
        )
    if not isinstance(arguments, dict):
        raise ValueError(
            f"{source}: arguments = {shortened(arguments)} of {env_id} must be a mapping of names to values"
        )
    allowed = [*argument_names(face.market.params_type), "info", "randomise", "observe_parameters"]
    for name, value in arguments.items():
        if name == "randomise" and isinstance(value, dict) and all(isinstance(key, str) for key in value):
            value = list(value.values())  # laws are plain lists
        if name not in allowed:
            raise ValueError(
                f"{source}: argument {shortened(name)} of {env_id} is not allowed: it must be one of "
                f"{', '.join(allowed)}"
            )
        words = face.file_arguments.get(name)
        text = files and isinstance(value, str)
        if not _is_plain(value, 4) or (words is not None and value not in words and not text):
            what = "a number, a truth value, text, null or a list of those" if words is None else " or ".join(words)
            hint = "" if words is None else "; a file's path can be given by the user, not by a file"
            raise ValueError(
                f"{source}: argument {name} = {shortened(value)} of {env_id} is not allowed: it must be {what}{hint}"
            )
    return face


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is a finite number, a truth value, text, None, or lists of such, so many deep."""
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
