"""Wrappers around environments: which of them leave alone what a policy sees, does and is paid for.

A score is that of an environment as built. A wrapper that may change it is refused by name, never dropped.
"""

from typing import Any

import gymnasium

__all__ = ["Wrapped", "innermost", "refuse_policy_wrappers", "unwrapped"]

# Exact types by name: a subclass may do anything.
TRANSPARENT = {
    "gymnasium.wrappers.common.Autoreset",
    "gymnasium.wrappers.common.OrderEnforcing",
    "gymnasium.wrappers.common.PassiveEnvChecker",
    "gymnasium.wrappers.common.RecordEpisodeStatistics",
    "gymnasium.wrappers.rendering.HumanRendering",
    "gymnasium.wrappers.rendering.RecordVideo",
    "gymnasium.wrappers.rendering.RenderCollection",
    "gymnasium.wrappers.vector.common.RecordEpisodeStatistics",
    "gymnasium.wrappers.vector.dict_info_to_list.DictInfoToList",
    "gymnasium.wrappers.vector.rendering.HumanRendering",
    "gymnasium.wrappers.vector.rendering.RecordVideo",
    "stable_baselines3.common.monitor.Monitor",
    "stable_baselines3.common.vec_env.vec_check_nan.VecCheckNan",
    "stable_baselines3.common.vec_env.vec_monitor.VecMonitor",
    "stable_baselines3.common.vec_env.vec_video_recorder.VecVideoRecorder",
}
TIME_LIMITS = {  # transparent where no episode is that long
    "gymnasium.wrappers.common.TimeLimit",
    "rl_zoo3.gym_patches.PatchedTimeLimit",  # put in its place by rl_zoo3
}
NORMALISATION = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
REWARDS_ONLY = {  # a policy trained behind them sees and does the same
    "gymnasium.wrappers.stateful_reward.NormalizeReward",
    "gymnasium.wrappers.transform_reward.ClipReward",
    "gymnasium.wrappers.transform_reward.TransformReward",
    "mmgym.adapters.sb3.CentredRewards",
}


class Wrapped(TypeError):  # noqa: N818  # a TypeError, as what cannot be unwrapped at all
    """An environment or a model is behind a wrapper that may change observations, actions or rewards."""


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _layers(env: Any) -> tuple[list[Any], Any]:
    """Wrappers from the outermost on, and what is inside."""
    found = []
    while True:
        if isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
            found.append(env)
            env = env.env
        elif hasattr(env, "venv"):  # a wrapper of Stable-Baselines3
            found.append(env)
            env = env.venv
        else:
            inner = getattr(env, "unwrapped", env)
            if inner is not env and not hasattr(env, "params"):  # somebody else's wrapper
                found.append(env)
            return found, inner


def _never_cuts(layer: Any, base: Any) -> bool:
    steps = getattr(getattr(base, "params", None), "num_steps", None)
    longest = getattr(layer, "_max_episode_steps", 0)
    return bool(getattr(base, "counts_steps", False) and steps is not None and longest >= steps)


def innermost(env: Any) -> Any:
    """What is inside all wrappers, whatever they do."""
    return _layers(env)[1]


def unwrapped(env: Any) -> Any:
    """What is inside wrappers that are transparent.

    Raises
    ------
    Wrapped
        If there is a wrapper that may change observations, actions, rewards or the length of an episode.
    """
    layers, base = _layers(env)
    if not hasattr(base, "params"):
        return base  # none of ours, whatever is around it
    for layer in layers:
        name = _name(layer)
        if name in TIME_LIMITS and not _never_cuts(layer, base):
            raise Wrapped(
                f"the environment is wrapped in TimeLimit({getattr(layer, '_max_episode_steps', None)}), which may cut "
                "episodes short: optima and scores are those of whole episodes; give the environment without it"
            )
        if name not in TRANSPARENT | TIME_LIMITS:
            allowed = ", ".join(sorted({entry.rpartition(".")[2] for entry in TRANSPARENT}))
            raise Wrapped(
                f"the environment is wrapped in {name}, which may change observations, actions or rewards: optima and "
                f"scores are those of the environment as built, and a policy is scored on what that shows and takes. "
                f"Give env.unwrapped and a policy that does what the wrapper does. Allowed wrappers: {allowed}"
            )
    return base


def refuse_policy_wrappers(model: Any, *, normalisation: bool) -> None:
    """Refuse a Stable-Baselines3 model whose environment has wrappers that change what it sees or does.

    Parameters
    ----------
    model : stable_baselines3 algorithm
    normalisation : bool
        Whether the caller honours the statistics of a `VecNormalize`.

    Raises
    ------
    Wrapped
        If there is such a wrapper.
    """
    venv = model.get_env()
    layers, inner = _layers(venv)
    alike = getattr(inner, "envs", None)
    if isinstance(alike, list) and alike:  # of a DummyVecEnv
        layers = layers + _layers(alike[0])[0]
    for layer in layers:
        name, model_name = _name(layer), type(model).__name__
        if name == NORMALISATION:
            if layer.norm_obs and not normalisation:
                raise Wrapped(
                    f"the {model_name} model sees observations through VecNormalize: give "
                    "mmgym.agents.policies.as_policy(model), which carries its statistics"
                )
        elif name not in TRANSPARENT | REWARDS_ONLY | TIME_LIMITS:
            raise Wrapped(
                f"the {model_name} model was trained behind {name}, which may change observations or actions: give a "
                "function that does what the wrapper does before and after model.predict"
            )
