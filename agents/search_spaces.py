"""What a study of settings draws from: one space for each family of algorithms, in the manner of rl-baselines3-zoo.

Raffin et al., rl-baselines3-zoo (https://github.com/DLR-RM/rl-baselines3-zoo), ``rl_zoo3/hyperparams_opt.py``: its
parameters and, where they suit many environments without a discount, its ranges. Other than there, ``gamma`` stays 1,
batches are parts of a rollout, learning rates and bonuses on entropy fall linearly, and rewards may be centred
(`mmgym.adapters.sb3.CentredRewards`).
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium

from mmgym.agents.algorithms import ALGORITHMS, EXACT_LEARNERS, NEED_BOXES, NEED_LISTS, RECURRENT
from mmgym.agents.config import ALGORITHM_KEYS, WRAPPER

try:
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
except ImportError as error:
    raise ImportError("tuning needs Optuna: pip install 'mmgym[agents,tune]'") from error

__all__ = ["search_space", "settings_of"]

Space = dict[str, BaseDistribution]

ROLLOUTS = 16  # at least in a run, where the shortest rollout allows it
LEAST_BATCH = 1024  # transitions of a rollout: smaller ones take a multiple of the time
MOST_KEPT = 1_000_000  # transitions in a replay buffer
ACTORS = {"tiny": [16], "small": [32, 32], "medium": [64, 64]}
CRITICS = {"tiny": [64, 64], "small": [128, 128]}  # of replayed experience
ENVS = {"rollouts": 256, "a2c": 64, "replay": 64, "natural_gradient": 1024, "ars": 64}  # one epoch: more updates
IN_POLICY = ("log_std_init", "n_critics", "n_quantiles", "lstm_hidden_size", "enable_critic_lstm")  # policy_kwargs


def _family(algorithm: str) -> str:
    """Which space an algorithm has."""
    if algorithm in SPACES:
        return algorithm
    return "replay" if "buffer_size" in ALGORITHM_KEYS[algorithm] else "rollouts"


def _envs(algorithm: str) -> int:
    """How many environments are stepped together."""
    return ENVS.get(algorithm, ENVS[_family(algorithm)])


def _log(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def _one_of(*values: Any) -> CategoricalDistribution:
    return CategoricalDistribution(values)


def _rollout(algorithm: str, timesteps: int, low: int, high: int) -> IntDistribution:
    """The binary logarithm of a rollout's steps in each environment."""
    room = int(math.log2(max(timesteps / (ROLLOUTS * _envs(algorithm)), 1.0)))
    return IntDistribution(low, max(low, min(high, room)))


def _rollouts_space(algorithm: str, timesteps: int, box: bool) -> Space:
    space: Space = {
        "n_steps_pow": _rollout(algorithm, timesteps, 3, 8),
        "learning_rate": _log(5e-4, 2e-2),
        "one_minus_gae_lambda": _log(2e-3, 0.5),
        "net_arch": _one_of("tiny", "small", "medium"),
        "centred": _one_of(0.0, 1.0),
    }
    if algorithm == "trpo":
        space |= {
            "minibatches_pow": IntDistribution(0, 5),  # of the critic
            "n_critic_updates": _one_of(1, 2, 5, 10),
            "target_kl": _log(1e-3, 0.1),
            "cg_damping": _log(1e-3, 0.5),
        }
        return space | ({"log_std_init": FloatDistribution(-3.0, 0.0)} if box else {})
    space |= {"ent_coef": _log(1e-6, 0.1), "max_grad_norm": FloatDistribution(0.3, 2.0)}
    if "n_epochs" in ALGORITHM_KEYS[algorithm]:
        space |= {
            "minibatches_pow": IntDistribution(0, 4),
            "n_epochs": _one_of(1, 2, 5, 10),
            "clip_range": _one_of(0.1, 0.2, 0.3, 0.4),
        }
    else:
        space |= {"normalize_advantage": _one_of(False, True), "use_rms_prop": _one_of(False, True)}
    if algorithm in RECURRENT:
        space |= {"lstm_hidden_size": _one_of(16, 32, 64), "enable_critic_lstm": _one_of(False, True)}
    return space | ({"log_std_init": FloatDistribution(-3.0, 0.0)} if box else {})


def _replay_space(algorithm: str, timesteps: int, box: bool) -> Space:
    space: Space = {
        "learning_rate": _log(2e-4, 5e-3),
        "batch_size_pow": IntDistribution(8, 9),
        "gradient_steps_pow": IntDistribution(0, 1),
        "net_arch": _one_of("tiny", "small"),
        "norm_reward": _one_of(False, True),
        "centred": _one_of(0.0, 1.0),
    }
    if algorithm in NEED_LISTS:
        space |= {
            "exploration_fraction": FloatDistribution(0.05, 0.5),
            "exploration_final_eps": FloatDistribution(0.01, 0.5),
            "target_update_interval": IntDistribution(500, 50_000, log=True),
        }
    else:
        space |= {"tau": _log(5e-3, 0.5)} if "tau" in ALGORITHM_KEYS[algorithm] else {}  # how far targets follow
        space |= {"n_critics": _one_of(1, 2)}
    if algorithm == "td3":
        space |= {"noise_std": FloatDistribution(0.01, 0.5), "target_policy_noise": _log(0.01, 0.2)}
    elif algorithm in ("crossq", "sac", "tqc"):
        space |= {"ent_coef": _log(1e-6, 0.01)}
    if algorithm in ("tqc", "qrdqn"):
        space |= {"n_quantiles": IntDistribution(5, 50)}
    return space | ({"top_quantiles_to_drop_per_net": IntDistribution(0, 4)} if algorithm == "tqc" else {})


def _natural_space(algorithm: str, timesteps: int, box: bool) -> Space:
    return {
        "n_steps_pow": _rollout(algorithm, timesteps, 4, 7),
        "exploration_first": _log(0.05, 1.0),
        "exploration_kept": _log(0.1, 1.0),  # at the end, of that at the start
        "step_size": _log(0.01, 0.5),
        "critic_step_size": _log(0.05, 1.0),
        "gae_lambda": FloatDistribution(0.0, 1.0),
        "value_lambda": FloatDistribution(0.0, 1.0),
        "net_arch": _one_of("tiny", "small"),  # one layer
    }


def _search_space(algorithm: str, timesteps: int, box: bool) -> Space:
    return {
        "n_delta_pow": IntDistribution(2, 5),
        "top": FloatDistribution(0.1, 1.0),  # share of the candidates that count
        "learning_rate": _log(1e-3, 0.3),
        "delta_std": _log(1e-3, 0.3),
        "net_arch": _one_of("linear", "tiny"),
    }


SPACES = {
    "rollouts": _rollouts_space,
    "replay": _replay_space,
    "natural_gradient": _natural_space,
    "ars": _search_space,
}


def search_space(algorithm: str, actions: gymnasium.Space, timesteps: int) -> Space:
    """The distribution of each parameter of a study.

    Parameters
    ----------
    algorithm : str
    actions : Space
        Of the market, as the algorithm gets them (flat for DQN).
    timesteps : int
        Environment steps of a run: rollouts are so short that there are sixteen, if the shortest is.

    Raises
    ------
    ValueError
        If there is no such algorithm, it has nothing to tune, or it cannot send such actions.
    """
    tuned = sorted(set(ALGORITHMS) - set(EXACT_LEARNERS))
    if algorithm in EXACT_LEARNERS:
        raise ValueError(
            f"{algorithm} has nothing to tune: its Gauss-Newton steps on exact values choose their own size; "
            f"tuned are {', '.join(tuned)}"
        )
    if algorithm not in tuned:
        raise ValueError(f"algorithm {algorithm!r} is not allowed: it must be one of {', '.join(tuned)}")
    box = isinstance(actions, gymnasium.spaces.Box)
    if box and algorithm in NEED_LISTS:
        raise ValueError(f"{algorithm} chooses from a list of actions, but those of this market are {actions}")
    if not box and algorithm in NEED_BOXES:
        raise ValueError(f"{algorithm} needs a box of actions, but those of this market are {actions}")
    return SPACES[_family(algorithm)](algorithm, timesteps, box)


def _random_search(size: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of augmented random search, which compares returns of whole episodes: rewards stay as they are."""
    deltas = 2 ** params["n_delta_pow"]
    settings = {
        "normalize": {"norm_obs": True, "norm_reward": False, "gamma": 1.0},
        "n_delta": deltas,
        "n_top": max(1, round(params["top"] * deltas)),
        "learning_rate": f"lin_{params['learning_rate']!r}",
        "delta_std": params["delta_std"],
    }
    if size == "linear":
        return settings | {"policy": "LinearPolicy", "policy_kwargs": {"with_bias": True}}
    return settings | {"policy_kwargs": {"net_arch": ACTORS[size]}}


def settings_of(algorithm: str, drawn: Mapping[str, Any], timesteps: int, per_step: float) -> dict[str, Any]:
    """The settings of a configuration file for what was drawn from `search_space`.

    Parameters
    ----------
    algorithm : str
    drawn : mapping
        A value of each parameter.
    timesteps : int
        Environment steps of the run.
    per_step : float
        What the best known policy earns in a step (currency): ``centred`` is the share of it that rewards are without.
    """
    family, params, kwargs = _family(algorithm), dict(drawn), dict[str, Any]()
    settings: dict[str, Any] = {"n_envs": _envs(algorithm), "n_timesteps": timesteps, "gamma": 1.0}
    size = params.pop("net_arch")
    if family == "ars":
        return {"n_envs": settings["n_envs"], "n_timesteps": timesteps, **_random_search(size, params)}
    actor, critic = ACTORS[size], CRITICS[size] if family == "replay" else [64, 64]
    if family == "natural_gradient":
        first = params.pop("exploration_first")
        settings["exploration"] = [first, first * params.pop("exploration_kept")]
        settings["net_arch"] = {"pi": actor[:1], "vf": actor[:1]}  # Gauss-Newton steps: a system of all weights
    else:
        rewards = {"norm_reward": params.pop("norm_reward", True), "clip_reward": 1000.0}
        settings["normalize"] = {"norm_obs": True, **rewards, "gamma": 1.0}
        settings["vec_env_wrapper"] = {WRAPPER: {"per_step": params.pop("centred") * per_step}}
        for name in {"rollouts": ("learning_rate", "ent_coef"), "replay": ("learning_rate",)}[family]:
            settings |= {name: f"lin_{params.pop(name)!r}"} if name in params else {}
        second = "qf" if family == "replay" else "vf"
        kwargs["net_arch"] = critic if algorithm in NEED_LISTS else {"pi": actor, second: critic}
    if family == "replay":
        warm = max(timesteps // 40, settings["n_envs"])
        settings |= {"buffer_size": min(timesteps, MOST_KEPT), "learning_starts": warm, "train_freq": 1}
    if algorithm == "td3":
        settings |= {"noise_type": "normal", "target_noise_clip": 2.0 * params["target_policy_noise"]}
    for name, value in params.items():
        if name in IN_POLICY:
            kwargs[name] = value
        elif name.endswith("_pow"):
            settings[name.removesuffix("_pow")] = 2**value
        elif name.startswith("one_minus_"):
            settings[name.removeprefix("one_minus_")] = 1.0 - value
        else:
            settings[name] = value
    if "minibatches" in settings:
        rollout = settings["n_envs"] * settings["n_steps"]  # a power of two
        settings["batch_size"] = max(rollout // settings.pop("minibatches"), min(rollout, LEAST_BATCH))
    return settings | ({"policy_kwargs": kwargs} if kwargs else {})
