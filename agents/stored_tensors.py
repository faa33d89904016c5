"""Checks of stored tensors against the network and the optimiser that they are put into."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from mmgym.agents.model_files import ModelFileError
from mmgym.plain_files import shortened

__all__ = ["check_optimizer", "check_tensors"]

ENTRIES = {  # of an optimiser, for each parameter; without the options that no configuration can set
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "RMSprop": {"step", "square_avg"},
    "RMSpropTFLike": {"step", "square_avg"},
}
MISFIT = "the parameters do not fit the model of model.json"


def check_tensors(given: Any, own: Mapping[str, Any], name: str) -> None:
    """Refuse a state dict that does not have the names, shapes and types of one's own, or is not finite.

    Raises
    ------
    ModelFileError
        The message begins with ``name``.
    """
    if not isinstance(given, dict) or set(given) != set(own):
        names = sorted(map(str, given)) if isinstance(given, dict) else given
        raise ModelFileError(f"{MISFIT}: {name} has {shortened(names)}")
    for key, wanted in own.items():
        tensor = given[key]
        usual = isinstance(tensor, torch.Tensor) and tensor.shape == wanted.shape and tensor.dtype == wanted.dtype
        if not usual or not bool(torch.isfinite(tensor).all()):
            shown = (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, torch.Tensor) else tensor
            raise ModelFileError(
                f"{MISFIT}: {name}.{key} is {shortened(shown)}, but must be "
                f"finite {wanted.dtype} of shape {tuple(wanted.shape)}"
            )


def _alike(given: Any, own: Any) -> bool:
    """Whether plain values have the structure of one's own, numbers in the place of numbers."""
    if isinstance(own, dict):
        return isinstance(given, dict) and set(given) == set(own) and all(_alike(given[k], own[k]) for k in own)
    if isinstance(own, list | tuple):
        return type(given) is type(own) and len(given) == len(own) and all(map(_alike, given, own))
    if isinstance(own, int | float) and not isinstance(own, bool):
        return type(given) in (int, float) and math.isfinite(given)
    return type(given) is type(own) and bool(given == own)


def check_optimizer(given: Any, optimizer: Any, name: str) -> None:
    """Refuse an optimiser's state that is not one of this optimiser, with these parameters.

    Raises
    ------
    ModelFileError
        The message begins with ``name``.
    """

    def refuse(what: Any) -> ModelFileError:
        return ModelFileError(f"{MISFIT}: {name} has {shortened(what)}")

    own = optimizer.state_dict()
    if not isinstance(given, dict) or set(given) != set(own) or not isinstance(given["state"], dict):
        raise refuse(given)
    if not _alike(given["param_groups"], own["param_groups"]):
        raise refuse(given["param_groups"])
    if any(
        mine["params"] != theirs["params"]
        for mine, theirs in zip(own["param_groups"], given["param_groups"], strict=True)
    ):
        raise refuse(given["param_groups"])
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for place, entry in given["state"].items():
        if type(place) is not int or not 0 <= place < len(tensors) or not isinstance(entry, dict):
            raise refuse({place: entry})
        if set(entry) != ENTRIES[type(optimizer).__name__]:
            raise refuse(sorted(map(str, entry)))
        for part, value in entry.items():
            value = value if isinstance(value, torch.Tensor) or type(value) not in (int, float) else torch.tensor(value)
            shape = () if part == "step" else tensors[place].shape
            if not isinstance(value, torch.Tensor) or value.shape != shape or not bool(torch.isfinite(value).all()):
                raise refuse({f"{place}.{part}": value})
            if part in ("step", "square_avg", "exp_avg_sq") and not bool((value >= 0.0).all()):
                raise refuse({f"{place}.{part}": value})
