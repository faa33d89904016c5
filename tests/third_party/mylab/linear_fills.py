"""Linear fills with a fee: a quote at depth d is filled at the intensity A (1 - d / c), and every fill pays a fee."""

from typing import Annotated, Literal, NamedTuple

from mmgym import declare
from mmgym.parameters import Choice, Integer, Real


class Params(NamedTuple):
    """Parameters of the market."""

    fill_rate: Annotated[float, Real(2.0, 0.001, 1e3, "fills / time", "A"), "at depth 0"]
    cutoff: Annotated[float, Real(1.0, 0.001, 1e3, "price", "c"), "no fills from here on"]
    fee: Annotated[float, Real(0.05, 0.0, 1e3, "price")]
    volatility: Annotated[float, Real(0.3, 0.0, 1e3, "price / sqrt(time)")]
    running_penalty: Annotated[float, Real(0.01, 0.0, 1e3, "price / time")]
    limit: Annotated[int, Integer(5, 1, 1000, "orders"), "of the inventory"]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[float, Real(0.1, 0.001, 100.0, "1 / price")]
    reward: Annotated[Literal["pnl", "expected"], Choice("pnl")]
    horizon: Annotated[float, Real(20.0, 0.001, 1e6, "time")]
    num_steps: Annotated[int, Integer(40, 1, 10**6)]


def fills(side, moved, intensity, earned, room):
    """Fills of one side."""
    return declare.Event(side, intensity, effect=moved, payoff=earned, when=room, counts=side)


MARKET = declare.Market(
    name="linear_fills",
    title="Linear fills with a fee (inventory in orders)",
    params=Params,
    coordinates=[declare.Coordinate("inventory", lambda p: -p.limit, lambda p: p.limit)],
    controls=[declare.Box(name, 0.0, lambda p: p.cutoff) for name in ("bid_depth", "ask_depth")],
    events=[
        fills(
            "bid",
            moved=lambda x: x.inventory + 1,
            intensity=lambda p, u: p.fill_rate * (1.0 - u.bid_depth / p.cutoff),
            earned=lambda p, u: u.bid_depth - p.fee,
            room=lambda p, x: x.inventory < p.limit,
        ),
        fills(
            "ask",
            moved=lambda x: x.inventory - 1,
            intensity=lambda p, u: p.fill_rate * (1.0 - u.ask_depth / p.cutoff),
            earned=lambda p, u: u.ask_depth - p.fee,
            room=lambda p, x: x.inventory > -p.limit,
        ),
    ],
    position=lambda x: x.inventory,
    variance=lambda p: p.volatility**2,
    running_penalty=lambda p, x: p.running_penalty * x.inventory**2,
    policies={"constant": lambda p, x, n: (0.5 * p.cutoff, 0.5 * p.cutoff)},
)
MARKET.register("mylab/LinearFills-v0")
