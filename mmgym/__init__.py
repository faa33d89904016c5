"""Gymnasium environments for market making in which the best possible result is known.

``help(env.unwrapped)`` tells of the market that ``env = gymnasium.make(id)`` returns: spaces, rewards and arguments.
"""

from mmgym.registration import register_all

__version__ = "0.1.0"

register_all()
