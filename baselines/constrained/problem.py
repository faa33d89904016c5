"""A risk-constrained problem as a mapping of plain values (a YAML file): market, limits, environment, solver, agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from mmgym.arguments import integer, real
from mmgym.baselines.constrained.model import Chain, FiniteMarket, Limits, RiskLimit, ShortfallLimit

__all__ = ["AgentSettings", "ConstrainedProblem", "EnvironmentSettings", "read_problem"]

KEYS = {
    "": ("market", "limits", "environment", "solver", "agent"),
    "market": (
        "num_steps", "fill_probabilities", "mid_moves", "inventory_limit", "terminal_penalty", "running_penalty",
        "initial_inventory",
    ),
    "limits": ("loss", "drawdown", "floor", "cvar", "inventory", "spread", "time_only"),
    "limits.loss": ("amount", "probability"),
    "limits.drawdown": ("amount", "probability"),
    "limits.floor": ("amount", "probability"),
    "limits.cvar": ("confidence", "amount"),
    "environment": ("id", "tick", "arguments"),
    "solver": ("time_limit", "workers"),
    "agent": ("iterations", "learning_rate", "dual_rate", "seed"),
}  # fmt: skip
MOST_STEPS = 20  # beyond, exact evaluations take minutes


class EnvironmentSettings(NamedTuple):
    """The environment in which a schedule is played: its id and arguments, and the price of a tick there."""

    id: str
    tick: float
    arguments: dict[str, Any]


class AgentSettings(NamedTuple):
    """Of the penalised agent: see `mmgym.agents.lagrangian`."""

    iterations: int = 4000
    learning_rate: float = 0.05
    dual_rate: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class ConstrainedProblem:
    """What is asked: the chain with its limits, and the settings around it."""

    chain: Chain
    environment: EnvironmentSettings | None = None
    agent: AgentSettings = field(default_factory=AgentSettings)
    time_limit: float = 60.0
    workers: int = 1


def _section(source: str, name: str, content: Any, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping that has the keys it needs and no others."""
    where = f"{source}: {name}" if name else source
    allowed = ", ".join(KEYS[name])
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping with the keys {allowed}")
    for key in content:
        if key not in KEYS[name]:
            raise ValueError(f"{where}: unknown key {key!r}: allowed are {allowed}")
    for key in required:
        if key not in content:
            raise ValueError(f"{where} lacks {key!r}: it has the keys {allowed}")
    return dict(content)


def _rational(name: str, value: Any, high: Fraction | None = None) -> Fraction:
    """A number >= 0 written as a whole number, a decimal or "a/b", as it is written."""
    allowed = "a number >= 0" + (f" and <= {high}" if high is not None else "") + ', or a ratio such as "1/50"'
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{name} = {value!r} is not allowed: it must be {allowed}") from None
    if number < 0 or (high is not None and number > high):
        raise ValueError(f"{name} = {value!r} is not allowed: it must be {allowed}")
    return number


def _law(name: str, content: Any, low: int) -> dict[int, Fraction]:
    """Probabilities by whole numbers of ticks."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{name} must be a mapping of whole numbers of ticks to probabilities")
    law = {}
    for ticks, probability in content.items():
        if isinstance(ticks, bool) or not isinstance(ticks, int) or not low <= ticks <= 1000:
            raise ValueError(f"{name}: {ticks!r} is not allowed: ticks must be whole numbers from {low} to 1000")
        law[ticks] = _rational(f"{name}[{ticks}]", probability, Fraction(1))
    return dict(sorted(law.items()))


def _market(source: str, content: Any) -> FiniteMarket:
    section = _section(source, "market", content, ("num_steps", "fill_probabilities", "mid_moves", "inventory_limit"))
    name = f"{source}: market."
    limit = integer(f"{name}inventory_limit", section["inventory_limit"], low=1, high=1000)
    moves = _law(f"{name}mid_moves", section["mid_moves"], -1000)
    total = sum(moves.values())
    if total != 1:
        raise ValueError(f"{name}mid_moves: the probabilities add up to {total}, but must add up to 1")
    return FiniteMarket(
        num_steps=integer(f"{name}num_steps", section["num_steps"], low=1, high=MOST_STEPS),
        fill_probabilities=_law(f"{name}fill_probabilities", section["fill_probabilities"], 1),
        mid_moves={move: p for move, p in moves.items() if p},
        inventory_limit=limit,
        terminal_penalty=_rational(f"{name}terminal_penalty", section.get("terminal_penalty", 0)),
        running_penalty=_rational(f"{name}running_penalty", section.get("running_penalty", 0)),
        initial_inventory=integer(
            f"{name}initial_inventory", section.get("initial_inventory", 0), low=-limit, high=limit
        ),
    )


def _risk_limit(source: str, name: str, content: Any, low: int) -> RiskLimit | None:
    if content is None:
        return None
    section = _section(source, name, content, ("amount", "probability"))
    amount = integer(f"{source}: {name}.amount", section["amount"], low=low, high=1_000_000)
    return RiskLimit(amount, _rational(f"{source}: {name}.probability", section["probability"], Fraction(1)))


def _shortfall_limit(source: str, content: Any) -> ShortfallLimit | None:
    if content is None:
        return None
    section = _section(source, "limits.cvar", content, ("confidence", "amount"))
    confidence = _rational(f"{source}: limits.cvar.confidence", section["confidence"], Fraction(999999, 1000000))
    return ShortfallLimit(confidence, _rational(f"{source}: limits.cvar.amount", section["amount"]))


def _limits(source: str, content: Any, market: FiniteMarket) -> Limits:
    section = _section(source, "limits", content)
    inventory = section.get("inventory")
    if inventory is not None:
        low, high = abs(market.initial_inventory), market.inventory_limit
        inventory = integer(f"{source}: limits.inventory", inventory, low=low, high=high)
    spread = section.get("spread")
    if spread is not None:
        if not isinstance(spread, list) or len(spread) != 2:
            raise ValueError(f"{source}: limits.spread = {spread!r} is not allowed: it must be [minimum, maximum]")
        low_spread = integer(f"{source}: limits.spread[0]", spread[0], low=0, high=2000)
        spread = (low_spread, integer(f"{source}: limits.spread[1]", spread[1], low=low_spread, high=2000))
    time_only = section.get("time_only", False)
    if not isinstance(time_only, bool):
        raise ValueError(f"{source}: limits.time_only = {time_only!r} is not allowed: it must be true or false")
    return Limits(
        loss=_risk_limit(source, "limits.loss", section.get("loss"), 1),
        drawdown=_risk_limit(source, "limits.drawdown", section.get("drawdown"), 0),
        floor=_risk_limit(source, "limits.floor", section.get("floor"), 0),
        cvar=_shortfall_limit(source, section.get("cvar")),
        inventory=inventory,
        spread=spread,
        time_only=time_only,
    )


def _check_quotes(source: str, chain: Chain) -> None:
    for inventory, quotes in chain.quotes.items():
        if not quotes:
            probabilities = chain.market.fill_probabilities
            pairs = [(b, a) for b in probabilities for a in probabilities if probabilities[b] + probabilities[a] <= 1]
            sums = sorted({b + a for b, a in pairs})
            if not sums:
                raise ValueError(f"{source}: market.fill_probabilities of any two sides add up to more than 1")
            raise ValueError(
                f"{source}: limits.spread = {list(chain.limits.spread or ())} leaves no quotes at inventory "
                f"{inventory}: the ticks allow total spreads of {', '.join(map(str, sums))}"
            )


def read_problem(content: Any, source: str = "problem") -> ConstrainedProblem:
    """A risk-constrained problem from plain values.

    Parameters
    ----------
    content : mapping
        ``market`` (see `FiniteMarket`; probabilities as numbers or ratios such as "6/16"), ``limits`` (``loss``,
        ``drawdown`` and ``floor``, each ``{amount, probability}``; ``cvar``, ``{confidence, amount}``; ``inventory``;
        ``spread``, ``[minimum, maximum]``; ``time_only``), and optionally ``environment`` (``id``, ``tick``,
        ``arguments``), ``solver`` (``time_limit`` in seconds, ``workers``) and ``agent`` (see `AgentSettings`).
    source : str
        What errors call it.

    Raises
    ------
    ValueError
        If a key is unknown or missing, or a value is not allowed; the message says what is.
    """
    sections = _section(source, "", content, ("market",))
    market = _market(source, sections["market"])
    chain = Chain(market, _limits(source, sections.get("limits") or {}, market))
    _check_quotes(source, chain)
    environment = None
    if sections.get("environment") is not None:
        section = _section(source, "environment", sections["environment"], ("id",))
        arguments = section.get("arguments") or {}
        if not isinstance(section["id"], str) or not isinstance(arguments, Mapping):
            raise ValueError(f"{source}: environment must have an id that is text, and arguments that are a mapping")
        tick = real(f"{source}: environment.tick", section.get("tick", 1.0), above=0.0)
        environment = EnvironmentSettings(section["id"], tick, dict(arguments))
    solver = _section(source, "solver", sections.get("solver") or {})
    agent = _section(source, "agent", sections.get("agent") or {})
    default = AgentSettings()
    return ConstrainedProblem(
        chain=chain,
        environment=environment,
        agent=AgentSettings(
            iterations=integer(
                f"{source}: agent.iterations", agent.get("iterations", default.iterations), low=1, high=10**7
            ),
            learning_rate=real(
                f"{source}: agent.learning_rate", agent.get("learning_rate", default.learning_rate), above=0.0
            ),
            dual_rate=real(f"{source}: agent.dual_rate", agent.get("dual_rate", default.dual_rate), above=0.0),
            seed=integer(f"{source}: agent.seed", agent.get("seed", default.seed), low=0, high=2**32 - 1),
        ),
        time_limit=real(f"{source}: solver.time_limit", solver.get("time_limit", 60.0), above=0.0),
        workers=integer(f"{source}: solver.workers", solver.get("workers", 1), low=1, high=1024),
    )
