"""The algorithms that agents can be trained with, by name."""

from typing import Any

__all__ = ["ALGORITHMS", "algorithm_class"]

ALGORITHMS = ("a2c", "ppo")


def algorithm_class(name: str) -> Any:
    """The Stable-Baselines3 class of an algorithm.

    Raises
    ------
    ValueError
        For a name that is not in `ALGORITHMS`.
    ImportError
        Without the extra ``agents``.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is not allowed: it must be one of {', '.join(ALGORITHMS)}")
    try:
        import stable_baselines3
    except ImportError as error:
        raise ImportError("training needs Stable-Baselines3: pip install 'mmgym[agents]'") from error
    return getattr(stable_baselines3, name.upper())
