r"""Impact of fills: the mid moves against the market maker, at once and by a drift that follows (adverse selection).

With ``lambda = A f(k d)`` (`mmgym.models.quoting`; exponential by default), after a fill of the ask the mid is higher by
``xi``, after one of the bid lower, as after every market order in Cartea, Jaimungal & Ricci (2014) and Cartea, Jaimungal &
Penalva (2015, section 10.4); here only orders that hit the maker's quotes move it:

    dS = beta m dt + sigma dW + xi (dN_ask - dN_bid).

The pressure ``m`` is their short-lived drift on a finite chain: an ask fill moves it up by one, a bid fill down, within
``[-M, M]``, and each of its ``|m|`` units decays at the rate ``kappa``. The fill is paid at the depth from the mid before
it, and the whole inventory after it is marked to the mid that it moved, so that with orders of ``D`` assets

    dW = (D d_bid - xi (q + D)) dN_bid + (D d_ask + xi (q - D)) dN_ask + q (beta m dt + sigma dW),

``q`` before the fill. Criteria and penalties are those of `mmgym.models.fill_curves`; ``xi = beta = 0`` is that market
without a fee. As ``xi q^2 / (2 D)`` changes by ``xi q + xi D / 2`` at a bid and ``-xi q + xi D / 2`` at an ask, the value
for ``beta = 0`` is

    v = xi q^2 / (2 D) + w,    w the value with a fee of xi / 2 and alpha + xi / (2 D) in place of the impact:

far from the end both quotes are wider by ``xi / 2``, and an instant before it (``alpha = 0``, flat) by ``xi``: there the
one fill that is left costs all of its own impact, and "constant" is the best depth of one such fill.

Policies: "hjb", the continuous-time optimum; "impact_blind", that of the market without impact; "constant".

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

from typing import Annotated

import numpy as np

from mmgym import declare
from mmgym.models import quoting
from mmgym.models.quoting import best_depths, continuous_depths
from mmgym.parameters import Integer, Real


class Params(
    quoting.parameters(
        impact=Annotated[float, Real(0.2, 0.0, 1e6, "price", "xi"), "of a fill on the mid, at once"],
        pressure_drift=Annotated[float, Real(1.0, -1e6, 1e6, "price / time", "beta"), "of a unit of pressure"],
        pressure_decay=Annotated[float, Real(20.0, 0.0, 1e6, "1 / time", "kappa"), "of a unit of pressure"],
        pressure_limit=Annotated[int, Integer(2, 0, 100, "fills", "M"), "0: no drift follows a fill"],
    )
):
    """Parameters of the market."""


def fills(side, sign, j):
    """Fills of one side: its depth is the ``j``-th control."""
    return declare.Event(
        side,
        intensity=lambda p, u: quoting.intensity(p, u[j]),
        effect=lambda p, x: (
            x.inventory + sign,
            min(max(x.pressure - sign, -p.pressure_limit), p.pressure_limit),
        ),
        payoff=lambda p, x, u: p.order_size * u[j] - sign * p.impact * p.order_size * (x.inventory + sign),
        when=lambda p, x: abs(x.inventory + sign) <= p.limit,
        counts=side,
    )


def blind(p):
    """The same market without impact."""
    return p._replace(impact=0.0, pressure_drift=0.0)


MARKET = declare.Market(
    name="impact",
    title="Market making with impact of fills on the mid (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[
        quoting.inventory(),
        declare.Coordinate("pressure", lambda p: -p.pressure_limit, lambda p: p.pressure_limit),
    ],
    controls=[quoting.depth_box("bid_depth"), quoting.depth_box("ask_depth")],
    events=[
        fills("bid", 1, 0),
        fills("ask", -1, 1),
        declare.Event(
            "decay",
            intensity=lambda p, x: p.pressure_decay * abs(x.pressure),
            effect=lambda x: (x.inventory, x.pressure - 1 if x.pressure > 0 else x.pressure + 1),
            when=lambda x: x.pressure != 0,
        ),
    ],
    drift=lambda p, x: p.pressure_drift * x.pressure,
    start=lambda p: (p.start, 0),
    **quoting.INVENTORY,
    policies={
        "constant": lambda p, x, n: np.full(2, best_depths(p, np.array([[p.impact]]))[0, 0]),
        "hjb": lambda p, x, n: continuous_depths(MARKET, p)[n],
        "impact_blind": lambda p, x, n: continuous_depths(MARKET, blind(p))[n],
    },
    papers=("hjb",),
    description=__doc__,
    references="- Cartea, Á., Jaimungal, S. & Ricci, J. (2014). Buy low, sell high: a high frequency trading perspective. "
    "SIAM Journal on Financial Mathematics 5(1).\n- Cartea, Á., Jaimungal, S. & Penalva, J. (2015). Algorithmic and "
    "High-Frequency Trading, section 10.4.",
)
