"""Stable-Baselines3's ``.zip`` files: the network in them, without running what else they hold.

Such a file has pickles, which can run any code. They are not read: the network's shape is taken from the readable part
of its settings, its weights from the tensors (which torch loads as nothing but tensors). What is lost: the statistics
of `VecNormalize`, which SB3 keeps in another file, a pickle too (give them as ``normalisation``, plain arrays);
wrappers; and everything that further training would need.
"""

import ast
import io
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmgym.baselines.foreign import ModelPolicy
from mmgym.baselines.policy import PolicyThrough
from mmgym.plain_files import parse_json, read_arrays

__all__ = ["load_sb3_file"]

MOST_BYTES = 500_000_000  # of one part, unpacked
POLICIES = {  # where a policy class is -> its name there
    "mmgym.agents.hurdle": "HurdlePolicy",
    "stable_baselines3.common.policies": "ActorCriticPolicy",
    "stable_baselines3.dqn.policies": "DQNPolicy",
    "stable_baselines3.sac.policies": "SACPolicy",
    "stable_baselines3.td3.policies": "TD3Policy",
    "sb3_contrib.common.maskable.policies": "MaskableActorCriticPolicy",
    "sb3_contrib.crossq.policies": "CrossQPolicy",
    "sb3_contrib.qrdqn.policies": "QRDQNPolicy",
    "sb3_contrib.tqc.policies": "TQCPolicy",
}
ACTIVATIONS = ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh")
LITERALS = (
    "batch_norm",
    "batch_norm_eps",
    "batch_norm_momentum",
    "renorm_warmup_steps",
    "net_arch",
    "log_std_init",
    "ortho_init",
    "n_critics",
    "n_quantiles",
    "share_features_extractor",
    "squash_output",
)
IGNORED = ("optimizer_class", "optimizer_kwargs", "normalize_images", "features_extractor_kwargs")  # not of the network


class _Network:
    """What a policy needs of an SB3 model: the network, and how it is asked."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.action_space, self.predict = policy, policy.action_space, policy.predict


class _Normalised(PolicyThrough):
    """A policy that sees observations as `VecNormalize` shows them."""

    def __init__(self, policy: Any, mean: Any, var: Any, clip: float, epsilon: float) -> None:
        super().__init__(policy)
        self._mean, self._scale, self._clip = mean, np.sqrt(var + epsilon), clip

    def seen(self, observations: Any) -> Any:
        """Centred, scaled and clipped."""
        return np.clip((observations - self._mean) / self._scale, -self._clip, self._clip).astype(np.float32)


def load_sb3_file(path: str | Path, env: Any, normalisation: str | Path | None = None) -> Any:
    """The policy in a ``.zip`` file of Stable-Baselines3 or sb3-contrib.

    Parameters
    ----------
    path : str or Path
    env : environment or vector environment
        With the observations and actions that the model was made for.
    normalisation : str or Path, optional
        An ``.npz`` file with ``mean`` and ``var``, and perhaps ``clip`` (10) and ``epsilon`` (1e-8): of a
        `VecNormalize`, ``np.savez(path, mean=venv.obs_rms.mean, var=venv.obs_rms.var)``.

    Raises
    ------
    ValueError
        If the file is none, has a policy of another kind, one of somebody's own classes, or weights of other shapes.
    """
    path = Path(path)
    settings, weights = _read(path)
    module = str((settings.get("policy_class") or {}).get("__module__"))
    if module not in POLICIES:
        raise ValueError(f"{path} has a policy of {module}: only networks of {', '.join(POLICIES)} can be read safely")
    observations, actions = (
        getattr(env, f"single_{kind}_space", getattr(env, f"{kind}_space")) for kind in ("observation", "action")
    )
    policy = getattr(import_module(module), POLICIES[module])(
        observations, actions, lambda _: 0.0, **_arguments(path, settings)
    )
    try:
        policy.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path} has weights of other shapes than a network for {observations} and {actions}: {error}"
        ) from error
    policy.set_training_mode(False)
    masks = getattr(getattr(env, "unwrapped", env), "masks", None) if "maskable" in module else None
    model = ModelPolicy(_Network(policy), masks=masks, quotes_of=getattr(env, "to_quotes", None))
    if normalisation is None:
        return model
    arrays = read_arrays(Path(normalisation))
    shape = observations.shape
    if any(name not in arrays or np.shape(arrays[name]) != shape for name in ("mean", "var")):
        raise ValueError(f"{normalisation} must have the arrays mean and var, each of shape {shape}")
    return _Normalised(
        model, arrays["mean"], arrays["var"], float(arrays.get("clip", 10.0)), float(arrays.get("epsilon", 1e-8))
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings as JSON has them, and the weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("data", "policy.pth"):
                if archive.getinfo(name).file_size > MOST_BYTES:
                    raise ValueError(f"{path}: {name} has more than {MOST_BYTES:,} bytes")
            settings = parse_json(archive.read("data").decode("utf-8"), str(path))
            with warnings.catch_warnings(action="ignore"):  # of what is no file of tensors; it is refused
                weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    except (KeyError, zipfile.BadZipFile, OSError, RuntimeError, UnicodeError) as error:
        raise ValueError(f"{path} is no model file of Stable-Baselines3: {error}") from error
    except Exception as error:  # torch's refusal of what is no tensor
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ValueError(f"{path} holds more than tensors in policy.pth, which is not read") from error
    if not isinstance(settings, dict) or not isinstance(weights, dict):
        raise ValueError(f"{path} is no model file of Stable-Baselines3")
    return settings, weights


def _arguments(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the policy class, from the readable part of the settings."""
    given = settings.get("policy_kwargs") or {}
    arguments: dict[str, Any] = {"use_sde": True} if settings.get("use_sde") else {}
    for name, value in given.items():
        if name.startswith(":") or name in IGNORED or name == "use_sde":
            continue
        if name == "activation_fn":
            kind = str(value).removesuffix("'>").rpartition(".")[2]
            if kind not in ACTIVATIONS:
                raise ValueError(f"{path} has the activation {value}: only {', '.join(ACTIVATIONS)} can be read safely")
            arguments[name] = getattr(nn, kind)
        elif name in LITERALS:
            arguments[name] = ast.literal_eval(value) if isinstance(value, str) else value
        else:
            raise ValueError(
                f"{path} has the policy argument {name}, which is not known here: it may change the network"
            )
    return arguments
