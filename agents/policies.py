"""Trained Stable-Baselines3 models as policies that can be scored exactly."""

from mmgym.baselines.foreign import ModelPolicy
from mmgym.baselines.foreign import model_policy as as_policy

__all__ = ["ModelPolicy", "as_policy"]
