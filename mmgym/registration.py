"""The table of environment ids."""

from typing import Any, NamedTuple

import gymnasium

from mmgym.models.mean_field_game import PRESETS

__all__ = ["ENVIRONMENTS", "Registered", "register_all"]


class Registered(NamedTuple):
    """One id: the market's word, its environment classes in ``mmgym.envs.<market>`` and its preset arguments."""

    id: str
    market: str
    env: str
    vector_env: str
    arguments: dict[str, Any]
    level: str  # of exactness of the optimum: "exact", "certified" or "bracketed"
    title: str


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
            ("coupled", "Coupled", ", strong impact"),
        )
    ),
)


def register_all() -> None:
    """Register every id of the table with Gymnasium."""
    for row in ENVIRONMENTS:
        if row.id not in gymnasium.registry:
            gymnasium.register(
                id=row.id,
                entry_point=f"mmgym.envs.{row.market}:{row.env}",
                vector_entry_point=f"mmgym.envs.{row.market}:{row.vector_env}",
                kwargs=dict(row.arguments),
            )
