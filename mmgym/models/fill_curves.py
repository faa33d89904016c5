r"""General fill intensities: Guéant (2017), with a fee or a rebate on what is traded.

The mid is a Brownian motion, ``dS = sigma dW``. A quote at the depth ``d`` is filled at the intensity ``A f(k d)``,
with a curve ``f`` that falls as an exponential, a line, a logistic function or a power (`mmgym.models.quoting`); a
fill trades ``D`` assets and pays the fee ``e`` on each and ``F`` for all of it: ``c = e + F / D`` on an asset, a rebate
where it is below 0:

    dq = D (dN_bid - dN_ask),    dW = D (d_bid - c) dN_bid + D (d_ask - c) dN_ask + q dS,

a side is inactive where the inventory would leave ``[-Q, Q]``. "mean" maximises ``E[W_T - W_0 - phi int q^2 dt -
alpha q_T^2]``, "cara" ``E[-exp(-gamma (W_T - W_0 - alpha q_T^2))]``. The exponential curve without a fee is the
market of Guéant, Lehalle & Fernandez-Tapia (2013), `mmgym/GLFT-v0`.

Policies: "hjb", the continuous-time optimum; "asymptotic", the closed form of Guéant (2017): with the Hamiltonian
``H`` replaced by its second-order polynomial at the fee the value is ``-a q^2`` far from the end,

    4 D H''(c) a^2 = phi  (cara: gamma sigma^2 / 2),    d = delta(c + a (D +- 2 q)),

``delta(p)`` the maximiser in ``H(p)``; "constant", the best depth of one fill, ``max_d f(k d) (d - c)``.

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

from typing import Annotated, Any

import numpy as np

from mmgym import declare
from mmgym.models import quoting
from mmgym.models.quoting import best_depths, continuous_depths, hamiltonian_slopes
from mmgym.parameters import Real

FEES = {
    "fee": Annotated[float, Real(0.05, -1e6, 1e6, "price", "e"), "on an asset traded; < 0: a rebate"],
    "fixed_fee": Annotated[float, Real(0.0, -1e6, 1e6, "currency", "F"), "on a fill; < 0: a rebate"],
}


class Fees:
    """What parameters with fees can do."""

    @property
    def cost(self: Any) -> float:
        """``c`` (price)."""
        return float(self.fee + self.fixed_fee / self.order_size)


class Params(Fees, quoting.parameters(**FEES)):
    """Parameters of the market."""


def fills(side, sign, j):
    """Fills of one side: its depth is the ``j``-th control."""
    return declare.Event(
        side,
        intensity=lambda p, u: quoting.intensity(p, u[j]),
        effect=lambda x: x.inventory + sign,
        payoff=lambda p, u: p.order_size * (u[j] - p.fee) - p.fixed_fee,
        when=lambda p, x: abs(x.inventory + sign) <= p.limit,
        counts=side,
    )


def asymptotic(p, x, n):
    """Depths of the quadratic approximation."""
    aversion, width = MARKET.aversion(p) * p.order_size, 1e-4 / p.fill_decay
    below, above = hamiltonian_slopes(p, np.array([[p.cost - width, p.cost + width]]), aversion)[0]
    bend = 4.0 * p.order_size * p.fill_rate * (above - below) / (2.0 * width)
    cost = p.running_penalty + 0.5 * MARKET.aversion(p) * p.volatility**2
    a = np.sqrt(cost / bend) if bend > 0.0 else 0.0
    skew = 2.0 * p.order_size * x["inventory"]
    return best_depths(p, p.cost + a * np.array([p.order_size + skew, p.order_size - skew]), aversion).T


MARKET: declare.Market = declare.Market(
    name="fill_curves",
    title="Market making with general fill curves and fees (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[quoting.inventory()],
    controls=[quoting.depth_box("bid_depth"), quoting.depth_box("ask_depth")],
    events=[fills("bid", 1, 0), fills("ask", -1, 1)],
    start=lambda p: (p.start,),
    **quoting.INVENTORY,
    policies={
        "constant": lambda p, x, n: np.full(2, best_depths(p, np.array([[p.cost]]))[0, 0]),
        "hjb": lambda p, x, n: continuous_depths(MARKET, p)[n],
        "asymptotic": asymptotic,
    },
    papers=("hjb", "asymptotic"),
    description=__doc__,
    references="- Guéant, O. (2017). Optimal market making. Applied Mathematical Finance 24(2).",
)
