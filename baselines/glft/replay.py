"""How the GLFT market is played on a recorded book: depths from the mid, one order size, seconds."""

import numpy as np

from mmgym.baselines.replay.rules import ReplayRules, make_replay_rules, quadratic
from mmgym.models.glft import Params


@make_replay_rules.register
def rules(params: Params) -> ReplayRules:
    """What `mmgym.baselines.replay` asks for. The unit of time is the second, as `mmgym calibrate glft` has it."""
    p = params
    rates, decays = (p.fill_rate_bid, p.fill_rate_ask), (p.fill_decay_bid, p.fill_decay_ask)

    def orders(controls: np.ndarray) -> np.ndarray:
        sizes = np.full_like(controls, p.order_size)
        return np.concatenate([controls, sizes, np.zeros_like(controls[..., :1])], axis=-1)

    return ReplayRules(
        seconds=1.0,
        unit=p.order_size,
        limit=p.limit,
        from_mid=True,
        ending="pass_on",
        orders=orders,
        intensity=lambda side, depth, offset, spread: rates[side] * np.exp(-decays[side] * depth),
        penalties=quadratic(p.running_penalty, p.terminal_penalty),
    )
