"""Training configurations, keyed by environment id: ``<algorithm>.yml``, or a file with the key ``algorithm``."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import yaml

from mmgym.agents.algorithms import ALGORITHMS, EXACT_LEARNERS, OWN_LEARNERS, RECURRENT
from mmgym.plain_files import shortened

__all__ = [
    "Config",
    "check_settings",
    "config_names",
    "configurations_for",
    "in_batches",
    "load_config",
    "read_yaml",
    "remembers",
    "shipped_folder",
]

_LOG = logging.getLogger(__name__)
TUNED = "-tuned"  # what names of configurations end with that are results of studies: see `mmgym.agents.studies`
DEFAULTS = ("default_box", "default_discrete")  # entries for ids without one, by their actions

# Keys of rl-baselines3-zoo that describe the run; all others but `vec_env_wrapper` and our own `memory` (arguments of
# `mmgym.memory_traces.MemoryTraces`) go to the algorithm's constructor.
RUN_KEYS = ("n_envs", "n_timesteps", "normalize")
WRAPPER = "mmgym.adapters.sb3.CentredRewards"  # the only one that `vec_env_wrapper` may name: no code comes from files
HURDLE = "mmgym.agents.hurdle.HurdlePolicy"  # the only one of ours that `policy` may name
CLOCK = "mmgym.agents.clock.ClockExtractor"  # the only one that `features_extractor_class` may name
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
_ENTROPY_KEYS = ("ent_coef", "target_entropy", "noise_type", "noise_std")
_SAC_KEYS = (*_REPLAY_KEYS, *_ENTROPY_KEYS, "target_update_interval")
ALGORITHM_KEYS = {
    **dict.fromkeys(EXACT_LEARNERS, ("gamma", "net_arch", "inner_steps")),
    "natural_gradient": (
        "gamma", "net_arch", "n_steps", "exploration", "step_size", "critic_step_size", "gae_lambda", "value_lambda",
    ),
    "ars": ("policy", "learning_rate", "n_delta", "n_top", "delta_std", "zero_policy", "policy_kwargs"),
    "crossq": (*(key for key in _REPLAY_KEYS if key != "tau"), *_ENTROPY_KEYS, "policy_delay"),
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
    "trpo": (
        "policy", "learning_rate", "n_steps", "batch_size", "gamma", "gae_lambda", "normalize_advantage", "target_kl",
        "n_critic_updates", "cg_max_steps", "cg_damping", "line_search_shrinking_factor", "line_search_max_iter",
        "sub_sampling_factor", "policy_kwargs",
    ),
}  # fmt: skip


def in_batches(algorithm: str) -> bool:
    """Whether an algorithm learns from batches of a rollout."""
    return {"gae_lambda", "batch_size"} <= set(ALGORITHM_KEYS[algorithm])


def remembers(algorithm: str, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether what is trained has a memory: a network's own, or that of its observations."""
    return algorithm in RECURRENT or "memory" in hyperparameters


_WHOLE, _BIG = 10**9, 1e12  # limits of what has none of its own
MOST_TRANSITIONS = 200_000_000  # kept at a time: some ten GB


class _Values(NamedTuple):
    """What a key may be: a test of the value, and the words that an error has for it."""

    allows: Callable[[Any], bool]
    words: str


def _number(low: float, high: float, *, above: bool = False) -> _Values:
    """A finite number from ``low`` (or above it) to ``high``."""

    def allows(value: Any) -> bool:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return real and (low < value if above else low <= value) and value <= high

    return _Values(
        allows, f"a number {'above' if above else 'from'} {low:g}{' and at most' if above else ' to'} {high:g}"
    )


def _whole(low: int, high: int = _WHOLE) -> _Values:
    return _Values(lambda value: type(value) is int and low <= value <= high, f"a whole number >= {low} and <= {high}")


def _count_of(high: int) -> _Values:
    """A whole number >= 1, which may be written as 1.0e+6."""
    whole = _whole(1, high)
    return _Values(
        lambda value: whole.allows(int(value) if isinstance(value, float) and value.is_integer() else value),
        whole.words,
    )


def _words(*allowed: Any) -> _Values:
    shown = " or ".join(word if isinstance(word, str) else json.dumps(word) for word in allowed)
    return _Values(lambda value: any(type(value) is type(word) and value == word for word in allowed), shown)


def _either(*choices: _Values) -> _Values:
    return _Values(
        lambda value: any(choice.allows(value) for choice in choices), ", or ".join(choice.words for choice in choices)
    )


def _text_number(prefix: str, low: float, high: float) -> _Values:
    """Text such as ``lin_0.001``: a prefix and a number."""
    number = _number(low, high, above=True)

    def allows(value: Any) -> bool:
        if not isinstance(value, str) or not value.startswith(prefix):
            return False
        try:
            return number.allows(float(value[len(prefix) :]))
        except ValueError:
            return False

    return _Values(allows, f"{prefix}<number> with {number.words}")


def _mapping(allowed: Mapping[str, _Values], needed: tuple[str, ...] = ()) -> _Values:
    return _Values(
        lambda value: (
            isinstance(value, dict)
            and all(name in allowed and allowed[name].allows(value[name]) for name in value)
            and all(name in value for name in needed)
        ),
        "{" + ", ".join(f"{name}: {part.words}" for name, part in allowed.items()) + "}",
    )


_BOOL = _words(True, False)
_POSITIVE, _SHARE = _number(0.0, _BIG, above=True), _number(0.0, 1.0)
_SCHEDULE = _either(_POSITIVE, _text_number("lin_", 0.0, _BIG))._replace(
    words=f"a number or lin_<number>, the number above 0 and at most {_BIG:g}"
)
_LAYERS = _Values(
    lambda value: isinstance(value, list) and 1 <= len(value) <= 20 and all(map(_whole(1, 10_000).allows, value)),
    "a list of whole numbers >= 1 and <= 10000, at most 20",
)
_RATES = _Values(
    lambda value: isinstance(value, list) and 1 <= len(value) <= 20 and all(map(_number(1e-9, 1e9).allows, value)),
    "a list of numbers from 1e-9 to 1e9, per horizon, at most 20",
)
_PER_STEP = _mapping({"per_step": _number(-_BIG, _BIG), "scale": _number(0.0, _BIG, above=True)}, ("per_step",))
_NORMALIZE = _mapping(
    {
        "norm_obs": _BOOL,
        "norm_reward": _BOOL,
        "training": _BOOL,
        "clip_obs": _POSITIVE,
        "clip_reward": _POSITIVE,
        "epsilon": _POSITIVE,
        "gamma": _words(1.0, 1),
    },
    ("gamma",),
)
VALUES = {
    "n_envs": _count_of(MOST_TRANSITIONS),
    "n_timesteps": _count_of(10**15),
    "normalize": _either(_BOOL, _NORMALIZE)._replace(
        words=f"true, false or a mapping with gamma: 1.0: {_NORMALIZE.words}"
    ),
    "vec_env_wrapper": _mapping({WRAPPER: _PER_STEP}, (WRAPPER,)),
    "memory": _mapping({"entries": _LAYERS, "rates": _RATES}, ("entries", "rates")),
    "policy": _words("MlpPolicy"),
    "learning_rate": _SCHEDULE,
    "clip_range": _SCHEDULE,
    "clip_range_vf": _either(_POSITIVE, _words(None)),
    "n_steps": _whole(1),
    "batch_size": _whole(1),
    "n_epochs": _whole(1),
    "gamma": _words(1.0, 1),
    "gae_lambda": _SHARE,
    "normalize_advantage": _BOOL,
    "ent_coef": _either(_number(0.0, _BIG), _text_number("lin_", 0.0, _BIG)),
    "vf_coef": _number(0.0, _BIG),
    "max_grad_norm": _POSITIVE,
    "target_kl": _either(_POSITIVE, _words(None)),
    "buffer_size": _whole(1, MOST_TRANSITIONS),
    "learning_starts": _whole(0),
    "tau": _number(0.0, 1.0, above=True),
    "train_freq": _either(
        _whole(1),
        _Values(
            lambda value: (
                isinstance(value, list)
                and len(value) == 2
                and _whole(1).allows(value[0])
                and value[1] in ("step", "episode")
            ),
            "[such a number, step or episode]",
        ),
    ),
    "gradient_steps": _either(_whole(1), _words(-1)),
    "target_update_interval": _whole(1),
    "exploration_fraction": _number(0.0, 1.0, above=True),
    "exploration_initial_eps": _SHARE,
    "exploration_final_eps": _SHARE,
    "target_entropy": _either(_number(-_BIG, _BIG), _words("auto")),
    "noise_type": _words("normal"),
    "noise_std": _number(0.0, _BIG),
    "policy_delay": _whole(1),
    "target_policy_noise": _number(0.0, _BIG),
    "target_noise_clip": _number(0.0, _BIG),
    "n_delta": _whole(1, 10_000),
    "n_top": _either(_whole(1), _words(None)),
    "delta_std": _SCHEDULE,
    "zero_policy": _BOOL,
    "n_critic_updates": _whole(1),
    "cg_max_steps": _whole(1),
    "cg_damping": _number(0.0, _BIG),
    "line_search_shrinking_factor": _number(0.0, 1.0, above=True),
    "line_search_max_iter": _whole(1),
    "sub_sampling_factor": _whole(1),
    "top_quantiles_to_drop_per_net": _whole(0, 10_000),
    "rms_prop_eps": _POSITIVE,
    "use_rms_prop": _BOOL,
    "net_arch": _LAYERS,
    "inner_steps": _whole(1),
    "exploration": _Values(
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(map(_number(0.0, 2.0, above=True).allows, value))
        ),
        "two numbers above 0 and at most 2: at the start and at the end",
    ),
    "step_size": _POSITIVE,
    "critic_step_size": _number(0.0, 1.0, above=True),
    "value_lambda": _SHARE,
}
_SAC_ENTROPY = _either(_number(0.0, _BIG), _words("auto"), _text_number("auto_", 0.0, _BIG))
_FEATURES = {"features_extractor_class": _words(CLOCK)}
_NETWORK = {"net_arch": _LAYERS, **_FEATURES}
TABLE_NETWORK = _mapping({"net_arch": _LAYERS, "steps": _whole(1)})  # of games that are learned with one
_ACTOR_CRITIC = {
    "net_arch": _either(_LAYERS, _mapping({"pi": _LAYERS, "vf": _LAYERS})),
    "ortho_init": _BOOL,
    "log_std_init": _number(-20.0, 20.0),
    **_FEATURES,
}
_OFF_POLICY = {
    "net_arch": _either(_LAYERS, _mapping({"pi": _LAYERS, "qf": _LAYERS})),
    "n_critics": _whole(1, 100),
}
_BATCH_NORM = {
    "batch_norm": _BOOL,
    "batch_norm_momentum": _number(0.0, 1.0),
    "batch_norm_eps": _number(1e-12, 1.0),
    "renorm_warmup_steps": _whole(0),
}
_SAC = {**_OFF_POLICY, "log_std_init": _number(-20.0, 20.0), "clip_mean": _number(0.0, _BIG)}
_RECURRENT = {
    "lstm_hidden_size": _whole(1, 10_000),
    "n_lstm_layers": _whole(1, 100),
    "shared_lstm": _BOOL,
    "enable_critic_lstm": _BOOL,
}
# What differs from `VALUES` from algorithm to algorithm.
OWN_VALUES: dict[str, dict[str, _Values]] = {
    "a2c": {"policy_kwargs": _mapping(_ACTOR_CRITIC)},
    "ars": {
        "policy": _words("MlpPolicy", "LinearPolicy"),
        "policy_kwargs": _mapping({"net_arch": _LAYERS, "with_bias": _BOOL, "squash_output": _BOOL}),
    },
    "crossq": {
        "ent_coef": _SAC_ENTROPY,
        "policy_kwargs": _mapping({**_OFF_POLICY, "log_std_init": _number(-20.0, 20.0), **_BATCH_NORM}),
    },
    "dqn": {"policy_kwargs": _mapping(_NETWORK)},
    "natural_gradient": {"net_arch": _mapping({"pi": _LAYERS, "vf": _LAYERS}, ("pi", "vf"))},
    "maskable_ppo": {
        "policy_kwargs": _mapping({name: part for name, part in _ACTOR_CRITIC.items() if name != "log_std_init"})
    },
    "ppo": {"policy": _words("MlpPolicy", HURDLE), "policy_kwargs": _mapping(_ACTOR_CRITIC)},
    "qrdqn": {"policy_kwargs": _mapping({**_NETWORK, "n_quantiles": _whole(1, 10_000)})},
    "recurrent_ppo": {
        "policy": _words("MlpLstmPolicy"),
        "policy_kwargs": _mapping({**_ACTOR_CRITIC, **_RECURRENT}),
    },
    "sac": {"ent_coef": _SAC_ENTROPY, "policy_kwargs": _mapping(_SAC)},
    "td3": {"policy_kwargs": _mapping(_OFF_POLICY)},
    "tqc": {"ent_coef": _SAC_ENTROPY, "policy_kwargs": _mapping({**_SAC, "n_quantiles": _whole(1, 10_000)})},
    "trpo": {"policy_kwargs": _mapping(_ACTOR_CRITIC), "target_kl": _number(0.0, 1.0, above=True)},
}


_NOTHING_TO_SIMULATE = {"n_envs": 1, "net_arch": [32, 32], "inner_steps": 5}
OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(EXACT_LEARNERS, _NOTHING_TO_SIMULATE),
    "natural_gradient": {
        "n_envs": 1024,
        "net_arch": {"pi": [32], "vf": [32]},
        "n_steps": 64,
        "exploration": [0.3, 0.1],
        "step_size": 0.1,
        "critic_step_size": 0.5,
        "gae_lambda": 0.5,
        "value_lambda": 0.9,
    },
}


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
    return [name for name in config_names() if env_id in read_yaml(name, ALGORITHMS)[0]]


def shipped_folder() -> Path:
    """The configurations inside the package (in a checkout a link to ``configs/``)."""
    return Path(__file__).parent / "configs"


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice in one mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            names: set[tuple[str, str]] = set()
            for key, _ in node.value:
                name = (key.tag, str(key.value))
                if name in names and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.YAMLError(f"the key {key.value!r} is there twice in one mapping, {key.start_mark}")
                names.add(name)
        return super().construct_mapping(node, deep)


MOST_BYTES = 1_000_000
MOST_VALUES = 100_000  # of a configuration, counted once for each place that refers to them


def _count(value: Any, left: list[int]) -> None:
    """Refuse more values than are left: aliases of aliases grow without end."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {MOST_VALUES} values, or refers to itself")
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        _count(part, left)


def read_yaml(
    name_or_path: str | Path, beginnings: Iterable[str], kind: str = "configuration", *, any_ending: bool = False
) -> tuple[Any, str]:
    """Content and file name of a YAML file: a path, or the name of a shipped one (see `config_names`).

    Parameters
    ----------
    name_or_path : str or Path
    beginnings : iterable of str
        What the names of the shipped ones begin with, of which an error tells.
    kind : str
        What an error calls the file.
    any_ending : bool
        Whether the file may have another ending than .yml or .yaml: not where its name comes from a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML of plain values in UTF-8, has more than a million bytes, has a key twice in one mapping, or
        refers to itself.
    """
    path = Path(name_or_path)
    shipped = shipped_folder() / f"{path.stem}.yml"
    given = path.is_file() and (any_ending or path.suffix in (".yml", ".yaml"))
    if not given and (path.parent not in (Path(), Path("configs")) or not shipped.is_file()):
        known = ", ".join(config_names(beginnings))
        raise FileNotFoundError(f"no {kind} {str(name_or_path)!r}: give the path of a .yml file, or one of {known}")
    source = str(path) if given else shipped.name
    try:
        with (path if given else shipped).open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        content = yaml.load(text.decode("utf-8"), Loader=_Loader)  # a SafeLoader
        _count(content, [MOST_VALUES])
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {error}") from error
    return content, source


def check_settings(algorithm: str, settings: Mapping[Any, Any], source: str, env_id: str) -> Config:
    """The `Config` of settings with every key known and every value of its type and in its range.

    Parameters
    ----------
    algorithm : str
    settings : mapping
        As in a configuration file: those of the run, and those of the algorithm.
    source, env_id : str
        What errors call the file and the environment.

    Raises
    ------
    ValueError
        If a key or a value is not allowed; the message names key, value and what is allowed.
    """
    checked = dict(settings)
    run_keys = RUN_KEYS[:2] if algorithm in OWN_LEARNERS else (*RUN_KEYS, "vec_env_wrapper")
    run_keys = run_keys if algorithm in EXACT_LEARNERS else (*run_keys, "memory")
    allowed = (*run_keys, *ALGORITHM_KEYS[algorithm])
    values = {**VALUES, **OWN_VALUES.get(algorithm, {})}
    checked = {**OWN_DEFAULTS.get(algorithm, {}), **checked}
    if algorithm != "ars" and checked.get("gamma") != 1.0:  # whole episodes count there
        given = shortened(checked.get("gamma"))
        raise ValueError(f"{source}: gamma of {env_id} is {given}, but must be 1.0: no discounting")
    for key in ("n_envs", "n_timesteps"):
        checked.setdefault(key, None)
    for key, value in checked.items():
        if key not in allowed:
            raise ValueError(f"{source}: unknown key {shortened(key)} of {env_id}: allowed are {', '.join(allowed)}")
        if not values[key].allows(value):
            number = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+[eE][+-]?[0-9]+", value)
            note = " (YAML takes 1e-3 for text: write 1.0e-3)" if number else ""
            raise ValueError(f"{source}: {key} = {shortened(value)} of {env_id} must be {values[key].words}{note}")
    normalize = checked.pop("normalize", False)
    if normalize is True:
        normalize = {"norm_obs": True, "norm_reward": True, "gamma": 1.0}
    sees = checked.get("policy_kwargs", {}).get("features_extractor_class")
    if sees is not None and normalize and normalize.get("norm_obs", True):
        raise ValueError(
            f"{source}: features_extractor_class = {sees} of {env_id} needs normalize with norm_obs: false"
        )
    if sees is not None and "memory" in checked:
        raise ValueError(
            f"{source}: features_extractor_class = {sees} of {env_id} needs bounded observations, which those with "
            "memory are not: leave one of the two out"
        )
    n_envs, n_timesteps = int(checked.pop("n_envs")), int(checked.pop("n_timesteps"))
    _check_together(algorithm, checked, n_envs, f"{source}: ", f" of {env_id}")
    return Config(algorithm, n_envs, n_timesteps, dict(normalize or {}), checked)


def _check_together(algorithm: str, settings: Mapping[str, Any], n_envs: int, before: str, after: str) -> None:
    """What keys must be to each other."""
    n_steps, frequency = settings.get("n_steps", 1), settings.get("train_freq")
    kwargs = settings.get("policy_kwargs", {})
    if "buffer_size" not in ALGORITHM_KEYS[algorithm] and n_envs * n_steps > MOST_TRANSITIONS:
        raise ValueError(f"{before}n_envs * n_steps = {n_envs * n_steps}{after} must be at most {MOST_TRANSITIONS}")
    if algorithm == "natural_gradient" and n_envs * n_steps < 2:
        raise ValueError(f"{before}n_envs * n_steps = {n_envs * n_steps}{after} must be at least 2")
    if in_batches(algorithm):
        if n_envs * settings.get("n_steps", 128) < 2:
            raise ValueError(f"{before}n_envs * n_steps = 1{after} must be at least 2")
        if settings.get("batch_size") == 1 and settings.get("normalize_advantage", True):
            raise ValueError(f"{before}batch_size = 1{after} must be at least 2 with normalize_advantage")
    taken, kept = settings.get("sub_sampling_factor", 1), n_envs * settings.get("n_steps", 2048)
    if algorithm == "trpo" and taken >= kept:
        raise ValueError(f"{before}sub_sampling_factor = {taken}{after} must be below n_envs * n_steps = {kept}")
    if algorithm == "crossq" and settings.get("batch_size") == 1 and kwargs.get("batch_norm", True):
        raise ValueError(f"{before}batch_size = 1{after} must be at least 2 with batch_norm")
    if algorithm == "ars":
        deltas, top = settings.get("n_delta", 8), settings.get("n_top")
        if top is not None and top > deltas:
            raise ValueError(f"{before}n_top = {top}{after} must be at most n_delta = {deltas}")
        if settings.get("policy") == "LinearPolicy" and "net_arch" in kwargs:
            raise ValueError(f"{before}net_arch = {kwargs['net_arch']}{after} needs policy: MlpPolicy")
    if isinstance(frequency, list) and frequency[1] == "episode" and n_envs > 1:
        raise ValueError(f"{before}train_freq = {frequency}{after} must be in steps with n_envs = {n_envs} > 1")
    if "noise_std" in settings and "noise_type" not in settings:
        raise ValueError(f"{before}noise_std = {settings['noise_std']}{after} needs noise_type: normal")
    quantiles, dropped = kwargs.get("n_quantiles", 25), settings.get("top_quantiles_to_drop_per_net", 2)
    if algorithm == "tqc" and dropped >= quantiles:
        raise ValueError(
            f"{before}top_quantiles_to_drop_per_net = {dropped}{after} must be below n_quantiles = {quantiles}"
        )
    if kwargs.get("shared_lstm") and kwargs.get("enable_critic_lstm", True):
        raise ValueError(f"{before}shared_lstm = True{after} needs enable_critic_lstm: false")


def load_config(name_or_path: str, env_id: str, market: str | None = None) -> Config:
    """Settings for an environment id from a configuration file.

    The algorithm is the file's key ``algorithm``, or else its name begins with it. An id without an
    entry takes the entry ``default_box`` or ``default_discrete``, as its actions are, and the log says so.

    Parameters
    ----------
    name_or_path : str
        Path of a configuration, or the name of a shipped one ("ppo").
    env_id : str
        With or without its module in front (``module:id``); entries are without.
    market : str, optional
        Whose entry is taken, if there is one, rather than the id's: an environment with arguments of its own.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not YAML, names no algorithm, has no settings for the id, an unknown key, a wrong value, or a
        discount other than 1.
    """
    content, source = read_yaml(name_or_path, ALGORITHMS)
    algorithm = Path(source).stem.split("-")[0]
    if isinstance(content, dict):
        algorithm = content.get("algorithm", algorithm)
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"{source}: the file name must start with an algorithm: {', '.join(ALGORITHMS)}; or the key algorithm must "
            f"name one, not {shortened(algorithm)}"
        )
    entry = key = env_id.rpartition(":")[2]
    if market is not None and isinstance(content, dict) and market in content:
        entry = key = market
    elif isinstance(content, dict) and key not in content:
        entry = _default_entry(content, env_id)
    if not isinstance(content, dict) or not isinstance(content.get(entry), dict):
        known = ", ".join(str(key)[:100] for key in list(content)[:50]) if isinstance(content, dict) else "none"
        raise ValueError(
            f"{source} has no settings for {key!r}: it has them for {known}{_other_ways(algorithm, env_id)}"
        )
    if entry != key:
        _LOG.warning("%s has no entry %s: training takes %s, that of no market in particular", source, key, entry)
    return check_settings(algorithm, content[entry], source, key)


def _other_ways(algorithm: str, env_id: str) -> str:
    """Where settings for an environment id are, and how they are found."""
    names = configurations_for(env_id.rpartition(":")[2])
    shipped = f"; shipped ones for it are {', '.join(names)}" if names else ""
    if algorithm in EXACT_LEARNERS:
        return shipped
    return (
        f"{shipped}; mmgym tune {algorithm} --env {env_id} searches for some and writes them to a file for mmgym train"
    )


def _default_entry(content: Mapping[Any, Any], env_id: str) -> str:
    """The entry of an id without one of its own: by its actions, if there is such an entry at all."""
    if not any(name in content for name in DEFAULTS):
        return env_id
    from mmgym.baselines.baseline import environment_of

    space = environment_of(env_id).single_spaces()[1]
    return DEFAULTS[not isinstance(space, gymnasium.spaces.Box)]
