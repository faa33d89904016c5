r"""A geometric mid, with drift and under CARA: the log-price on a grid is observed.

The mid is the chain ``S = S_0 exp(h i)``, ``i`` in ``{-M, .., M}``, which ticks up at the rate ``a`` and down at ``b``:

    a = (sigma^2 + mu d) / (u (u + d)),    b = (sigma^2 - mu u) / (d (u + d)),    u = exp(h) - 1,    d = 1 - exp(-h),

so that ``E[dS] = mu S dt`` and ``E[dS^2] = sigma^2 S^2 dt`` are those of a geometric Brownian motion,

    dS = mu S dt + sigma S dW.

At the edges, ``M h = R sigma sqrt(T) + |mu| T`` from the start, the price stays where it is. Quotes at the depth ``d``
are filled at the intensity ``A f(k d)`` (`mmgym.models.quoting`; exponential by default):

    dq = D (dN_bid - dN_ask),    dW = D d_bid dN_bid + D d_ask dN_ask + q dS,

a side is inactive where the inventory would leave ``[-Q, Q]``. "mean" maximises ``E[W_T - W_0 - phi int q^2 dt -
alpha q_T^2]``, "cara" ``E[-exp(-gamma (W_T - W_0 - alpha q_T^2))]``.

The simulation is this chain and no approximation of it, and the optimum is exact for it. From geometric Brownian
motion it differs as follows. What a policy that does not look at the price earns on average, and the variance of that,
are the same for every ``h`` (but for paths that reach an edge: at ``R = 5`` about 1 in a million). With "mean" and
``mu = 0`` so is the optimum: that of `mmgym/GLFT-v0`. Otherwise the generators differ by ``h^2``, the optimum too, and
four thirds of what it changes by with twice the `price_levels` tell by how much: at the defaults 4e-6 of 70.4165, and
under "cara" 0.11 of 68.28 (0.03 with 40 levels), where the risk of jumps is more than that of a diffusion.

Policies: "hjb", the continuous-time optimum; "price_blind", its quotes at the starting price whatever the price;
"constant", ``1 / k`` with the exponential curve.

Units: prices in the currency, inventory in assets, time in the unit of the horizon.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmgym import declare
from mmgym.arguments import TINY, together
from mmgym.models import quoting
from mmgym.models.glft import MAX_EVENTS
from mmgym.models.quoting import best_depths, continuous_depths
from mmgym.parameters import Integer, Real

MAX_REACH = 20.0  # of the log-price


class Params(
    quoting.parameters(
        volatility=Annotated[float, Real(0.02, TINY, 1e3, "1 / sqrt(time)", "sigma"), "of the mid, relative to it"],
        initial_price=Annotated[float, Real(100.0, TINY, 1e9, "price", "S_0")],
        running_penalty=Annotated[
            float,
            Real(None, 0.0, 1e9, "price / (assets * time)", "phi", none=True),
            'None is ``risk_aversion * (initial_price * volatility)^2 / 2`` under "mean"; under "cara" it must be None '
            "or 0",
        ],
        drift=Annotated[float, Real(0.02, -1e3, 1e3, "1 / time", "mu"), "of the mid, relative to it"],
        price_levels=Annotated[int, Integer(20, 1, 10_000, symbol="M"), "of the price, on either side of the first"],
        price_range=Annotated[
            float, Real(5.0, 1.0, 10.0, "1", "R"), "from the first price to the last, in standard deviations"
        ],
    )
):
    """Parameters of the market."""

    def completed(self, given: Mapping[str, Any]) -> Any:
        """As `mmgym.models.quoting` has it, with rates of the price that are none below 0."""
        p = super().completed(given)
        words = {name: getattr(p, name) for name in ("volatility", "drift", "horizon", "price_levels", "price_range")}
        if p.spacing * p.price_levels > MAX_REACH:
            raise together(words, f"the log-price may reach {MAX_REACH:g} at most; lower price_range or volatility")
        if min(p.up_rate, p.down_rate) < 0.0:
            raise together(
                words,
                f"a tick of the log-price, {p.spacing:.3g}, must be below about volatility^2 / |drift|, "
                f"{p.volatility**2 / abs(p.drift):.3g}; raise price_levels",
            )
        ticks = (p.up_rate + p.down_rate) * p.step_length
        if ticks > MAX_EVENTS:
            raise together(
                {**words, "num_steps": p.num_steps},
                f"the expected ticks of the price in a step, {ticks:g}, must be at most {MAX_EVENTS:g}; lower "
                "price_levels or raise num_steps",
            )
        return p

    @property
    def step_length(self) -> float:
        """Length of a decision step (time)."""
        return float(self.horizon / self.num_steps)

    @property
    def start_volatility(self) -> float:
        """Of the mid at the start (price / sqrt(time))."""
        return float(self.initial_price * self.volatility)

    @property
    def spacing(self) -> float:
        """``h`` of the log-price."""
        reach = self.price_range * self.volatility * math.sqrt(self.horizon) + abs(self.drift) * self.horizon
        return float(reach / self.price_levels)

    @property
    def up_rate(self) -> float:
        """``a`` (1 / time)."""
        up, down = math.expm1(self.spacing), -math.expm1(-self.spacing)
        return float((self.volatility**2 + self.drift * down) / (up * (up + down)))

    @property
    def down_rate(self) -> float:
        """``b`` (1 / time)."""
        up, down = math.expm1(self.spacing), -math.expm1(-self.spacing)
        return float((self.volatility**2 - self.drift * up) / (down * (up + down)))


def fills(side, sign, j):
    """Fills of one side: its depth is the ``j``-th control."""
    return declare.Event(
        side,
        intensity=lambda p, u: quoting.intensity(p, u[j]),
        effect=lambda x: (x.inventory + sign, x.price),
        payoff=lambda p, u: p.order_size * u[j],
        when=lambda p, x: abs(x.inventory + sign) <= p.limit,
        counts=side,
    )


def ticks(name, sign):
    """Ticks of the price."""
    return declare.Event(
        name,
        intensity=lambda p, x: p.up_rate if sign > 0 else p.down_rate,
        effect=lambda x: (x.inventory, x.price + sign),
        when=lambda p, x: abs(x.price) < p.price_levels,
    )


def price_blind(p, x, n):
    """The continuous-time optimum at the starting price."""
    depths = continuous_depths(MARKET, p)[n].reshape(-1, 2 * p.price_levels + 1, 2)
    return np.repeat(depths[:, p.price_levels], 2 * p.price_levels + 1, axis=0)


MARKET: declare.Market = declare.Market(
    name="geometric_price",
    title="Market making with a geometric price on a grid (inventory in assets, traded in orders of `order_size`)",
    params=Params,
    coordinates=[
        quoting.inventory(),
        declare.Coordinate("price", lambda p: -p.price_levels, lambda p: p.price_levels),
    ],
    controls=[quoting.depth_box("bid_depth"), quoting.depth_box("ask_depth")],
    events=[fills("bid", 1, 0), fills("ask", -1, 1), ticks("up", 1), ticks("down", -1)],
    mid=lambda p, x: p.initial_price * (declare.exp(p.spacing * x.price) - 1.0),
    start=lambda p: (p.start, 0),
    **{name: function for name, function in quoting.INVENTORY.items() if name != "variance"},
    policies={
        "constant": lambda p, x, n: np.full(2, best_depths(p, np.zeros((1, 1)))[0, 0]),
        "hjb": lambda p, x, n: continuous_depths(MARKET, p)[n],
        "price_blind": price_blind,
    },
    papers=("hjb",),
    description=__doc__,
    references="- Avellaneda, M. & Stoikov, S. (2008). High-frequency trading in a limit order book. Quantitative "
    "Finance 8(3).\n"
    "- Guéant, O., Lehalle, C.-A. & Fernandez-Tapia, J. (2013). Dealing with the inventory risk. Mathematics and "
    "Financial Economics 7(4).",
)
