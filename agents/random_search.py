"""Augmented random search (Mania, Guy & Recht 2018) of sb3-contrib, in runs that can be killed and go on."""

from typing import Any

import torch
from sb3_contrib import ARS

__all__ = ["RandomSearch"]


class RandomSearch(ARS):
    """`sb3_contrib.ARS` that counts the steps that it takes, and is at rest when told that a rollout begins.

    Theirs counts a step of each environment as one of all of them, takes the steps that are left for those of the
    run, and has drawn its candidates before its callback is told, so that a checkpoint would not lead to the same ones.
    """

    _played: Any = None  # the last actions

    def _trigger_callback(self, _locals: Any, _globals: Any, callback: Any, n_envs: int) -> None:
        if _locals["actions"] is not self._played:  # called for each environment that is in its first episode
            self._played = _locals["actions"]
            super()._trigger_callback(_locals, _globals, callback, n_envs)

    def _do_one_update(self, callback: Any, async_eval: Any) -> None:
        callback.on_rollout_start()
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self.weights = torch.nn.utils.parameters_to_vector(self.policy.parameters()).detach()  # type: ignore[assignment]
        super()._do_one_update(callback, async_eval)
