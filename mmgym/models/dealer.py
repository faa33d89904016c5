r"""A dealer who answers requests of several sizes, with a quote for each size and side: Bergault & Guéant (2021).

Requests to sell and to buy ``z_i D`` assets arrive at Poisson times, with ``z = (1, 2, 4)``; a client who is quoted
the depth ``d`` from the mid trades with a probability that falls with it, so that trades of a size and side have the
intensity ``w_i A f(k d)``, ``A f(k d)`` as in `mmgym.models.quoting` and ``w_i`` the size's share of the flow. With
the logistic curve, the paper's, ``A f(k d) = 2 A / (1 + exp(2 k d))``: requests arrive at the rate ``2 w_i A`` on a
side, and half of them trade at depth 0. A trade costs ``F``, whatever its size. With the mid ``dS = sigma dW``

    dq = sum_i z_i D (dN_bid_i - dN_ask_i),
    dW = sum_i ((z_i D d_bid_i - F) dN_bid_i + (z_i D d_ask_i - F) dN_ask_i) + q dS,

a request is not answered where the inventory would leave ``[-Q, Q]``. "mean" maximises ``E[W_T - W_0 - phi int q^2 dt
- alpha q_T^2]``, "cara" ``E[-exp(-gamma (W_T - W_0 - alpha q_T^2))]``. The shares (1, 0, 0) with the exponential
curve are `mmgym/GLFT-v0`.

Policies: "hjb", the continuous-time optimum; "same_quotes", that of the smallest size for all of them; "constant",
the best depth of one trade of its size.

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

from typing import Annotated

import numpy as np

from mmgym import declare
from mmgym.models import fill_curves, quoting
from mmgym.models.quoting import best_depths, continuous_depths
from mmgym.parameters import Real

SIZES = {"small": 1, "medium": 2, "large": 4}  # orders


class Params(
    quoting.parameters(
        small_share=Annotated[float, Real(0.5, 0.0, 1e6, "1", "w_1"), "of `fill_rate`, in requests of 1 order"],
        medium_share=Annotated[float, Real(0.3, 0.0, 1e6, "1", "w_2"), "of `fill_rate`, in requests of 2 orders"],
        large_share=Annotated[float, Real(0.2, 0.0, 1e6, "1", "w_3"), "of `fill_rate`, in requests of 4 orders"],
        fixed_fee=fill_curves.FEES["fixed_fee"],
    )
):
    """Parameters of the market."""


def trades(number, size, side, sign):
    """Trades of one size and side."""
    lots, j = SIZES[size], 2 * number + (sign < 0)
    return declare.Event(
        f"{size}_{side}",
        intensity=lambda p, u: (p.small_share, p.medium_share, p.large_share)[number] * quoting.intensity(p, u[j]),
        effect=lambda x: x.inventory + sign * lots,
        payoff=lambda p, u: lots * p.order_size * u[j] - p.fixed_fee,
        when=lambda p, x: abs(x.inventory + sign * lots) <= p.limit,
        counts=side,
    )


def constant(p, x, n):
    """The best depth of one trade of each size."""
    costs = p.fixed_fee / (p.order_size * np.array(list(SIZES.values()), dtype=float))
    return np.repeat(best_depths(p, costs[:, None])[:, 0], 2)


QUOTES = [(i, size, side, sign) for i, size in enumerate(SIZES) for side, sign in (("bid", 1), ("ask", -1))]

MARKET: declare.Market = declare.Market(
    name="dealer",
    title="A dealer's quotes for requests of several sizes (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[quoting.inventory()],
    controls=[quoting.depth_box(f"{size}_{side}_depth") for _, size, side, _ in QUOTES],
    events=[trades(*quote) for quote in QUOTES],
    start=lambda p: (p.start,),
    **quoting.INVENTORY,
    policies={
        "constant": constant,
        "hjb": lambda p, x, n: continuous_depths(MARKET, p)[n],
        "same_quotes": lambda p, x, n: np.tile(continuous_depths(MARKET, p)[n, :, :2], 3),
    },
    papers=("hjb",),
    description=__doc__,
    references="- Bergault, P. & Guéant, O. (2021). Size matters for OTC market makers: general results and "
    "dimensionality reduction techniques. Mathematical Finance 31(1).",
)
