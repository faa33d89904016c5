"""The algorithms that agents can be trained with, by name."""

from importlib import import_module
from typing import Any

__all__ = [
    "ALGORITHMS",
    "EXACT_LEARNERS",
    "NEED_BOXES",
    "NEED_FLAT_ACTIONS",
    "NEED_LISTS",
    "OWN_LEARNERS",
    "RECURRENT",
    "algorithm_class",
]

EXACT_LEARNERS = ("behaviour_cloning", "exact_gradient")  # Gauss-Newton on a network: see mmgym.agents.exact_gradient
OWN_LEARNERS = (*EXACT_LEARNERS, "natural_gradient")  # the others are those of Stable-Baselines3

# Name -> package and class.
_CLASSES = {
    "a2c": ("stable_baselines3", "A2C"),
    "ars": ("mmgym.agents.random_search", "RandomSearch"),
    "crossq": ("sb3_contrib", "CrossQ"),
    "dqn": ("stable_baselines3", "DQN"),
    "maskable_ppo": ("sb3_contrib", "MaskablePPO"),
    "ppo": ("stable_baselines3", "PPO"),
    "qrdqn": ("sb3_contrib", "QRDQN"),
    "recurrent_ppo": ("sb3_contrib", "RecurrentPPO"),
    "sac": ("stable_baselines3", "SAC"),
    "td3": ("stable_baselines3", "TD3"),
    "tqc": ("sb3_contrib", "TQC"),
    "trpo": ("sb3_contrib", "TRPO"),
}
ALGORITHMS = tuple(sorted([*_CLASSES, *OWN_LEARNERS]))
NEED_FLAT_ACTIONS = ("ars", "dqn", "qrdqn")  # want one number where actions are chosen from a list
NEED_BOXES = ("crossq", "natural_gradient", "sac", "td3", "tqc")
NEED_LISTS = ("dqn", "maskable_ppo", "qrdqn")
RECURRENT = ("recurrent_ppo",)  # have a memory: for observations that hide something


def algorithm_class(name: str) -> Any:
    """The Stable-Baselines3 (or sb3-contrib) class of an algorithm.

    Raises
    ------
    ValueError
        For a name that is not one of theirs.
    ImportError
        Without the extra ``agents``.
    """
    if name not in _CLASSES:
        raise ValueError(f"algorithm {name!r} is not allowed: it must be one of {', '.join(_CLASSES)}")
    package, class_name = _CLASSES[name]
    try:
        return getattr(import_module(package), class_name)
    except ImportError as error:
        raise ImportError("training needs Stable-Baselines3 and sb3-contrib: pip install 'mmgym[agents]'") from error
