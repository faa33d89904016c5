"""Training configurations: ``configs/<algorithm>.yml``, keyed by environment id."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from agents.algorithms import ALGORITHMS, OURS

__all__ = ["Config", "config_names", "configurations_for", "load_config", "read_yaml", "shipped_folder"]

# Keys of rl-baselines3-zoo that describe the run; all others but `vec_env_wrapper` go to the algorithm's constructor.
RUN_KEYS = ("n_envs", "n_timesteps", "normalize")
WRAPPER = "mmgym.adapters.sb3.CentredRewards"  # the only one that `vec_env_wrapper` may name: no code comes from files
_PPO_KEYS = (
    "policy", "learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range",
    "clip_range_vf", "normalize_advantage", "ent_coef", "vf_coef", "max_grad_norm", "target_kl", "policy_kwargs",
)  # fmt: skip
_REPLAY_KEYS = (
    "policy", "learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma", "train_freq",
    "gradient_steps", "n_steps", "policy_kwargs",
)  # fmt: skip
_DQN_KEYS = (
    *_REPLAY_KEYS, "target_update_interval", "exploration_fraction", "exploration_initial_eps",
    "exploration_final_eps", "max_grad_norm",
)  # fmt: skip
_SAC_KEYS = (*_REPLAY_KEYS, "ent_coef", "target_entropy", "target_update_interval", "noise_type", "noise_std")
ALGORITHM_KEYS = {
    **dict.fromkeys(OURS, ("gamma", "net_arch", "inner_steps")),
    "dqn": _DQN_KEYS,
    "qrdqn": _DQN_KEYS,
    "recurrent_ppo": _PPO_KEYS,
    "sac": _SAC_KEYS,
    "td3": (*_REPLAY_KEYS, "policy_delay", "target_policy_noise", "target_noise_clip", "noise_type", "noise_std"),
    "tqc": (*_SAC_KEYS, "top_quantiles_to_drop_per_net"),
    "ppo": _PPO_KEYS,
    "maskable_ppo": _PPO_KEYS,
    "a2c": (
        "policy", "learning_rate", "n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm",
        "rms_prop_eps", "use_rms_prop", "normalize_advantage", "policy_kwargs",
    ),
}  # fmt: skip


class Config(NamedTuple):
    """One algorithm's settings for one environment."""

    algorithm: str
    n_envs: int
    n_timesteps: int
    normalize: dict[str, Any]  # keyword arguments of VecNormalize; empty for none
    hyperparameters: dict[str, Any]


def config_names(beginnings: Iterable[str] = tuple(ALGORITHMS)) -> list[str]:
    """Names of the shipped configurations that begin with one of some words: of algorithms by default."""
    return sorted(path.stem for path in shipped_folder().glob("*.yml") if path.stem.startswith(tuple(beginnings)))


def configurations_for(env_id: str) -> list[str]:
    """Names of the shipped configurations that have settings for an environment id."""
    found = {name: yaml.safe_load(_read(name, ALGORITHMS)[0]) for name in config_names()}
    return [name for name, content in found.items() if env_id in content]


def shipped_folder() -> Path:
    """``configs/`` of a checkout, or the copy inside the installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "configs"


def read_yaml(name_or_path: str, beginnings: Iterable[str]) -> tuple[Any, str]:
    """Content and file name of a configuration: a path, or the name of a shipped one (see `config_names`).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not YAML.
    """
    text, source = _read(name_or_path, beginnings)
    try:
        return yaml.safe_load(text), source
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from error


def _read(name_or_path: str, beginnings: Iterable[str]) -> tuple[str, str]:
    """Text and file name of a configuration: a path, or the name of a shipped one."""
    path = Path(name_or_path)
    if path.suffix in (".yml", ".yaml") and path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    shipped = shipped_folder() / f"{path.stem}.yml"
    if path.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped.read_text(encoding="utf-8"), f"{path.stem}.yml"
    known = ", ".join(config_names(beginnings))
    raise FileNotFoundError(f"no configuration {name_or_path!r}: give the path of a .yml file, or one of {known}")


def _check_network(settings: dict[str, Any], source: str, env_id: str) -> None:
    widths, inner = settings.setdefault("net_arch", [32, 32]), settings.setdefault("inner_steps", 5)
    if not isinstance(widths, list) or not widths or not all(type(width) is int and width >= 1 for width in widths):
        raise ValueError(f"{source}: net_arch = {widths!r} of {env_id} must be a list of whole numbers >= 1")
    if type(inner) is not int or inner < 1:
        raise ValueError(f"{source}: inner_steps = {inner!r} of {env_id} must be a whole number >= 1")


def _check_wrapper(wrapper: Any, source: str, env_id: str) -> None:
    given = wrapper.get(WRAPPER) if isinstance(wrapper, dict) and len(wrapper) == 1 else None
    value = given.get("per_step") if isinstance(given, dict) and len(given) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"{source}: vec_env_wrapper = {wrapper!r} of {env_id} must be {{{WRAPPER}: {{per_step: a number}}}}"
        )


def load_config(name_or_path: str, env_id: str) -> Config:
    """Settings for an environment id from a configuration file.

    Parameters
    ----------
    name_or_path : str
        Path of a ``<algorithm>.yml``, or the name of a shipped one ("ppo").
    env_id : str

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not YAML, has no settings for the id, an unknown key, a wrong value, or a discount other than 1.
    """
    content, source = read_yaml(name_or_path, ALGORITHMS)
    algorithm = Path(source).stem.split("-")[0]
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{source}: the file name must start with an algorithm: {', '.join(ALGORITHMS)}")
    if not isinstance(content, dict) or not isinstance(content.get(env_id), dict):
        known = ", ".join(map(str, content)) if isinstance(content, dict) else "none"
        raise ValueError(f"{source} has no settings for {env_id!r}: it has them for {known}")
    settings = dict(content[env_id])
    sampled = () if algorithm in OURS else ("vec_env_wrapper",)
    allowed = (*RUN_KEYS, *sampled, *ALGORITHM_KEYS[algorithm])
    for key in settings:
        if key not in allowed:
            raise ValueError(f"{source}: unknown key {key!r} of {env_id}: allowed are {', '.join(allowed)}")
    if settings.get("gamma") != 1.0:
        raise ValueError(f"{source}: gamma of {env_id} is {settings.get('gamma')!r}, but must be 1.0: no discounting")
    if algorithm in OURS:
        settings.setdefault("n_envs", 1)  # there is nothing to simulate
        _check_network(settings, source, env_id)
    if "vec_env_wrapper" in settings:
        _check_wrapper(settings["vec_env_wrapper"], source, env_id)
    for key in ("n_envs", "n_timesteps"):
        value = settings.pop(key, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
            raise ValueError(f"{source}: {key} = {value!r} of {env_id} must be a whole number >= 1")
        settings[key] = int(value)
    normalize = settings.pop("normalize", False)
    if normalize is True:
        normalize = {"norm_obs": True, "norm_reward": True, "gamma": 1.0}
    if normalize is not False and (not isinstance(normalize, dict) or normalize.get("gamma") != 1.0):
        raise ValueError(f"{source}: normalize of {env_id} must be true, false or a mapping with gamma: 1.0")
    n_envs, n_timesteps = settings.pop("n_envs"), settings.pop("n_timesteps")
    return Config(algorithm, n_envs, n_timesteps, dict(normalize or {}), settings)
