r"""A short-term alpha: the mid has a drift that follows a Markov chain, which the market maker observes or not.

    dS = mu dt + sigma dW,    mu = a m / sqrt(L),    m in {-L, .., L},

``m`` rises by one at the rate ``eta (L - m) / 2`` and falls by one at ``eta (L + m) / 2``: half the excess of heads
over tails among ``2 L`` coins that are tossed again at the rate ``eta`` each. Its stationary law, that of the start,
is binomial, for ``L = 1`` (1/4, 1/2, 1/4). For every ``L``, mean, variance and covariances of ``mu``, also given its
present level, are exactly those of the mean-reverting drift of Cartea, Jaimungal & Penalva (2015, section 10.4.2),

    d mu = -eta mu dt + a sqrt(eta) dB,    stationary variance a^2 / 2;

the kurtosis is less by ``1 / L``. Hence what a policy that does not look at ``mu`` earns on average, and the variance
of that, are those of the Ornstein-Uhlenbeck process too, and the optimum is its to order ``1 / L``: at the defaults
76.4421 with L = 1, 76.1829 with 16, 76.168 in the limit.

Quotes at the depth ``d`` are filled at the intensity ``A f(k d)`` (`mmgym.models.quoting`; exponential by default):

    dq = D (dN_bid - dN_ask),    dW = D d_bid dN_bid + D d_ask dN_ask + q dS,

a side is inactive where the inventory would leave ``[-Q, Q]``. "mean" maximises ``E[W_T - W_0 - phi int q^2 dt -
alpha q_T^2]``, "cara" ``E[-exp(-gamma (W_T - W_0 - alpha q_T^2))]``; ``a = 0`` is `mmgym/GLFT-v0`.

With ``observe="fills"`` the maker sees time and inventory, and neither ``m`` nor the mid. Fills come at intensities
that do not depend on ``m``: they tell nothing of it, memory is of no use, and under "mean", the only criterion there,
the optimum is that of ``a = 0``: 66.2439 at the defaults.

Policies: "hjb", the continuous-time optimum, at ``m = 0`` where it is hidden; "alpha_blind", that of the market without
alpha, what a maker plays who does not see ``m`` move; "constant", ``1 / k`` with the exponential curve.

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

import math
from typing import Annotated, Literal

import numpy as np

from mmgym import declare
from mmgym.models import quoting
from mmgym.models.quoting import best_depths, continuous_depths
from mmgym.parameters import Choice, Integer, Real


class Params(
    quoting.parameters(
        alpha=Annotated[float, Real(10.0, -1e6, 1e6, "price / time", "a"), "standard deviation of the drift x sqrt(2)"],
        switching_rate=Annotated[float, Real(10.0, 0.0, 1e6, "1 / time", "eta"), "at which the drift reverts to 0"],
        signal_levels=Annotated[int, Integer(1, 1, 31, symbol="L"), "of the drift, on either side of 0"],
        observe=Annotated[
            Literal["state", "fills"],
            Choice("state"),
            'what is seen beside the time: inventory and signal; or inventory only ("fills", with "mean")',
        ],
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
        intensity=lambda p, x: 0.5 * p.switching_rate * (p.signal_levels - sign * x.signal),
        effect=lambda x: (x.inventory, x.signal + sign),
        when=lambda p, x: x.signal != sign * p.signal_levels,
    )


MARKET: declare.Market = declare.Market(
    name="short_term_alpha",
    title="Market making with a short-term alpha (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[
        quoting.inventory(),
        declare.Coordinate(
            "signal", lambda p: -p.signal_levels, lambda p: p.signal_levels, observed=lambda p: p.observe == "state"
        ),
    ],
    controls=[quoting.depth_box("bid_depth"), quoting.depth_box("ask_depth")],
    events=[fills("bid", 1, 0), fills("ask", -1, 1), switch("up", 1), switch("down", -1)],
    drift=lambda p, x: p.alpha * x.signal / math.sqrt(p.signal_levels),
    start=lambda p: [
        ((p.start, m), math.comb(2 * p.signal_levels, p.signal_levels + m) * 0.25**p.signal_levels)
        for m in range(-p.signal_levels, p.signal_levels + 1)
    ],
    **quoting.INVENTORY,
    policies={
        "constant": lambda p, x, n: np.full(2, best_depths(p, np.zeros((1, 1)))[0, 0]),
        "hjb": lambda p, x, n: continuous_depths(MARKET, p)[n],
        "alpha_blind": lambda p, x, n: continuous_depths(MARKET, p._replace(alpha=0.0))[n],
    },
    papers=("hjb", "alpha_blind"),
    description=__doc__,
    references="- Cartea, Á., Jaimungal, S. & Penalva, J. (2015). Algorithmic and High-Frequency Trading, 10.4.",
)
