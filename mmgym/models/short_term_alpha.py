r"""A short-term alpha: the mid has a drift that follows a finite Markov chain, which the market maker observes.

    dS = a m dt + sigma dW,    m in {-1, 0, 1},

``m`` leaves its level at the rate ``eta``: from ``-1`` and ``1`` to ``0``, and from ``0`` to either with equal probability,
so that its stationary law, that of the start, is (1/4, 1/2, 1/4) and its autocorrelation ``exp(-eta t)``. It is a chain in
the place of the mean-reverting ``alpha`` of Cartea, Jaimungal & Penalva (2015, section 10.4.2); with one level a time unit
of ``m = 1`` is expected to last ``1 / eta``. Quotes at the depth ``d`` are filled at the intensity ``A f(k d)``
(`mmgym.models.quoting`; exponential by default):

    dq = D (dN_bid - dN_ask),    dW = D d_bid dN_bid + D d_ask dN_ask + q dS,

a side is inactive where the inventory would leave ``[-Q, Q]``. "mean" maximises ``E[W_T - W_0 - phi int q^2 dt -
alpha q_T^2]``, "cara" ``E[-exp(-gamma (W_T - W_0 - alpha q_T^2))]``; ``a = 0`` is `mmgym/GLFT-v0`.

Policies: "hjb", the continuous-time optimum; "alpha_blind", that of the market without alpha, which is what a maker plays
who does not see ``m`` move; "constant", ``1 / k`` with the exponential curve.

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

from typing import Annotated

import numpy as np

from mmgym import declare
from mmgym.models import quoting
from mmgym.models.quoting import best_depths, continuous_depths
from mmgym.parameters import Real


class Params(
    quoting.parameters(
        alpha=Annotated[float, Real(10.0, -1e6, 1e6, "price / time", "a"), "drift of the mid at level 1"],
        switching_rate=Annotated[float, Real(10.0, 0.0, 1e6, "1 / time", "eta"), "at which the drift leaves a level"],
    )
):
    """Parameters of the market."""


def fills(side, sign, j):
    """Fills of one side: its depth is the ``j``-th control."""
    return declare.Event(
        side,
        intensity=lambda p, u: quoting.intensity(p, u[j]),
        effect=lambda x: (x.inventory + sign, x.signal),
        payoff=lambda p, u: p.order_size * u[j],
        when=lambda p, x: abs(x.inventory + sign) <= p.limit,
        counts=side,
    )


def switch(name, sign):
    """Moves of the signal to the next level above (sign 1) or below."""
    return declare.Event(
        name,
        intensity=lambda p, x: p.switching_rate if x.signal == -sign else 0.5 * p.switching_rate,
        effect=lambda x: (x.inventory, x.signal + sign),
        when=lambda x: x.signal != sign,
    )


MARKET = declare.Market(
    name="short_term_alpha",
    title="Market making with a short-term alpha (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[quoting.inventory(), declare.Coordinate("signal", -1, 1)],
    controls=[quoting.depth_box("bid_depth"), quoting.depth_box("ask_depth")],
    events=[fills("bid", 1, 0), fills("ask", -1, 1), switch("up", 1), switch("down", -1)],
    drift=lambda p, x: p.alpha * x.signal,
    start=lambda p: [((p.start, -1), 0.25), ((p.start, 0), 0.5), ((p.start, 1), 0.25)],
    **quoting.INVENTORY,
    policies={
        "constant": lambda p, x, n: np.full(2, best_depths(p, np.zeros((1, 1)))[0, 0]),
        "hjb": lambda p, x, n: continuous_depths(MARKET, p)[n],
        "alpha_blind": lambda p, x, n: continuous_depths(MARKET, p._replace(alpha=0.0))[n],
    },
    papers=("hjb", "alpha_blind"),
    description=__doc__,
    references="- Cartea, Á., Jaimungal, S. & Penalva, J. (2015). Algorithmic and High-Frequency Trading, section 10.4.2.",
)
