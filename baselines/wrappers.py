"""Wrappers around environments: which of them leave alone what a policy sees, does and is paid for.

An optimum is that of an environment as built. A wrapper that may change it is honoured (in a score, see
`mmgym.baselines.through_wrappers`) or refused by name, never dropped.
"""

import copy
from typing import Any

import gymnasium
import numpy as np

__all__ = ["Wrapped", "changing_layers", "innermost", "is_function", "refuse_policy_wrappers", "unwrapped"]

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
    layers = []
    while True:
        if isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
            layers.append(env)
            env = env.env
        elif hasattr(env, "venv"):  # a wrapper of Stable-Baselines3
            layers.append(env)
            env = env.venv
        else:
            inner = getattr(env, "unwrapped", env)
            if inner is not env and not hasattr(env, "params"):  # somebody else's wrapper
                layers.append(env)
            return layers, inner


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
    base, layers = changing_layers(env)
    for layer in layers:
        allowed = ", ".join(sorted({entry.rpartition(".")[2] for entry in TRANSPARENT}))
        raise Wrapped(
            f"the environment is wrapped in {_name(layer)}, which may change observations or actions: the optimum, and "
            "what is asked for here, are those of the environment as built (`score` sees through wrappers). Give "
            f"env.unwrapped and a policy that does what the wrapper does. Allowed wrappers: {allowed}"
        )
    return base


def changing_layers(env: Any) -> tuple[Any, list[Any]]:
    """What is inside all wrappers, and those, from the outermost on, that may change what a policy sees or does.

    Raises
    ------
    Wrapped
        If there is a wrapper of Stable-Baselines3 that does, or one that changes rewards or cuts episodes short: what
        they leave is another criterion, whose optimum is not known.
    """
    layers, base = _layers(env)
    if not hasattr(base, "params"):
        return base, []  # none of ours, whatever is around it
    changing = []
    for layer in layers:
        name = _name(layer)
        if name in TIME_LIMITS and not _never_cuts(layer, base):
            raise Wrapped(
                f"the environment is wrapped in TimeLimit({getattr(layer, '_max_episode_steps', None)}), which may cut "
                "episodes short: optima and scores are those of whole episodes; give the environment without it"
            )
        if name in TRANSPARENT | TIME_LIMITS:
            continue
        if isinstance(layer, gymnasium.RewardWrapper | gymnasium.vector.VectorRewardWrapper) or name in REWARDS_ONLY:
            raise Wrapped(
                f"the environment is wrapped in {name}, which changes rewards: optima and scores are those of the "
                "market's own; give the environment inside it"
            )
        if not isinstance(layer, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
            raise Wrapped(
                f"the environment is wrapped in {name}, which may change observations, actions or rewards: give the "
                "environment inside it (a model brings the statistics of its own VecNormalize)"
            )
        changing.append(layer)
    return base, changing


FUNCTIONS = (  # what a wrapper is whose method of that name is all that it does
    (gymnasium.ObservationWrapper, "observation"),
    (gymnasium.ActionWrapper, "action"),
    (gymnasium.vector.VectorObservationWrapper, "observations"),
    (gymnasium.vector.VectorActionWrapper, "actions"),
)


def is_function(layer: Any) -> bool:
    """Whether a wrapper turns one observation or action into another, and neither remembers nor draws."""
    for kind, method in FUNCTIONS:
        if isinstance(layer, kind):
            own = type(layer)
            if any(getattr(own, name) is not getattr(kind, name) for name in ("step", "reset")):
                return False
            if not getattr(layer, "update_running_mean", False):
                return _repeats(copy.deepcopy(layer), method)
    return False


def _repeats(layer: Any, method: str) -> bool:
    """Whether a wrapper answers the same in between other questions."""
    space = layer.env.observation_space if "observation" in method else layer.action_space
    space = copy.deepcopy(space)
    space.seed(0)
    samples = [space.sample() for _ in range(8)]
    answers = [[np.asarray(getattr(layer, method)(copy.deepcopy(each))).copy() for each in samples] for _ in range(2)]
    return all(np.array_equal(first, again) for first, again in zip(*answers, strict=True))


def refuse_policy_wrappers(model: Any) -> None:
    """Refuse a Stable-Baselines3 model whose environment has wrappers that change what it does, besides `VecNormalize`.

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
        if name not in TRANSPARENT | REWARDS_ONLY | TIME_LIMITS | {NORMALISATION}:
            raise Wrapped(
                f"the {model_name} model was trained behind {name}, which may change observations or actions: score it "
                "in an environment with that wrapper around it"
            )
