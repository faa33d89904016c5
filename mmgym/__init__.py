"""Gymnasium environments for market making in which the best possible result is known."""

from mmgym.registration import register_all

__version__ = "0.1.0"

register_all()
