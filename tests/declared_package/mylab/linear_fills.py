"""Linear fills with a fee: a quote at depth d is filled at the intensity A (1 - d / c), d <= c, and pays a fee."""

from typing import NamedTuple

from mmgym import declare
from mmgym.arguments import integer, real


class Params(NamedTuple):
    """Parameters (unit)."""

    fill_rate: float  # A, 1 / time
    cutoff: float  # c, price: no fills from here on
    fee: float  # price
    volatility: float  # price / sqrt(time)
    running_penalty: float  # price / time
    limit: int  # orders
    horizon: float
    num_steps: int

    @classmethod
    def create(
        cls, *, fill_rate=2.0, cutoff=1.0, fee=0.05, volatility=0.3, running_penalty=0.01, limit=5, horizon=20.0,
        num_steps=40,
    ):  # fmt: skip
        return cls(
            real("fill_rate", fill_rate, above=0.0), real("cutoff", cutoff, above=0.0), real("fee", fee, low=0.0),
            real("volatility", volatility, low=0.0), real("running_penalty", running_penalty, low=0.0),
            integer("limit", limit, low=1, high=1000), real("horizon", horizon, above=0.0),
            integer("num_steps", num_steps, low=1, high=10**6),
        )  # fmt: skip


MARKET = declare.Market(
    name="linear_fills",
    title="Linear fills with a fee",
    params=Params,
    coordinates=[declare.Coordinate("inventory", lambda p: -p.limit, lambda p: p.limit)],
    controls=[declare.Box(name, 0.0, lambda p: p.cutoff) for name in ("bid_depth", "ask_depth")],
    events=[
        declare.Event(
            "bid",
            intensity=lambda p, u: p.fill_rate * (1.0 - u.bid_depth / p.cutoff),
            when=lambda p, x: x.inventory < p.limit,
            effect=lambda x: x.inventory + 1,
            payoff=lambda p, u: u.bid_depth - p.fee,
            counts="bid",
        ),
        declare.Event(
            "ask",
            intensity=lambda p, u: p.fill_rate * (1.0 - u.ask_depth / p.cutoff),
            when=lambda p, x: x.inventory > -p.limit,
            effect=lambda x: x.inventory - 1,
            payoff=lambda p, u: u.ask_depth - p.fee,
            counts="ask",
        ),
    ],
    position=lambda x: x.inventory,
    variance=lambda p: p.volatility**2,
    running_penalty=lambda p, x: p.running_penalty * x.inventory**2,
    policies={"constant": lambda p, x, n: (0.5 * p.cutoff, 0.5 * p.cutoff)},
)
MARKET.register("mylab/LinearFills-v0")
