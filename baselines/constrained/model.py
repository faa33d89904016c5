r"""The finite market of risk-constrained quoting, and its chain on states that remember enough for the limits.

At each of ``num_steps`` decisions the agent quotes a bid and an ask, each a whole number of ticks from the mid. At most
one order is filled: the bid with the probability ``p(bid)``, the ask with ``p(ask)``, none with the rest; a side whose
fill would leave the inventory bound is off. Then the mid moves by a whole number of ticks, independently. With the
inventory ``q`` after the fill and the wealth ``w`` marked to mid,

    w <- w + ticks of the filled quote + q * move,      w_0 = 0.

Maximised is ``E[w_N - running_penalty sum_n q_{n+1}^2 - terminal_penalty q_N^2]``, under limits on

- the final loss: ``P(w_N <= -amount) <= probability`` (a bound on the value at risk at confidence ``1 - probability``);
- the drawdown: ``P(max_n (max_{m <= n} w_m - w_n) > amount) <= probability``, observed at step ends and at the start;
- the inventory, ``|q_n| <= bound`` always; and the total spread, ``minimum <= bid + ask <= maximum`` where both quote.

All probabilities are rational, so after ``n`` steps every state has a whole number of parts of ``B^n``: nothing is
rounded. A state of the chain is ``(q, w, d)``, with the drawdown ``d`` so far from the peak, or `BREACHED`; a quote
*schedule* may look at the step and the inventory only.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

__all__ = [
    "BREACHED",
    "OFF",
    "Chain",
    "Evaluation",
    "FiniteMarket",
    "Limits",
    "Quotes",
    "RiskLimit",
    "best_unlimited",
    "evaluate_schedule",
    "evaluate_table",
    "first_table",
]

BREACHED = -1  # in place of a drawdown: it has been larger than the limit
OFF = 0  # in place of ticks: the side does not quote


class Quotes(NamedTuple):
    """Ticks of the bid and of the ask; `OFF` where a side is off."""

    bid: int
    ask: int


class FiniteMarket(NamedTuple):
    """The market. Amounts are in ticks."""

    num_steps: int
    fill_probabilities: Mapping[int, Fraction]  # ticks -> probability that the quote is filled in a step
    mid_moves: Mapping[int, Fraction]  # ticks -> probability of that move in a step
    inventory_limit: int
    terminal_penalty: Fraction = Fraction(0)  # per squared inventory
    running_penalty: Fraction = Fraction(0)  # per squared inventory and step
    initial_inventory: int = 0


class RiskLimit(NamedTuple):
    """An amount in ticks and the largest probability that it is reached (loss) or exceeded (drawdown)."""

    amount: int
    probability: Fraction


class Limits(NamedTuple):
    """What a policy must keep to; None where there is no such limit."""

    loss: RiskLimit | None = None
    drawdown: RiskLimit | None = None
    inventory: int | None = None
    spread: tuple[int, int] | None = None


class State(NamedTuple):
    """A state of the chain: inventory, wealth and drawdown from the peak (0 where it is not limited)."""

    inventory: int
    wealth: int
    drawdown: int


@dataclass(frozen=True)
class Chain:
    """The market under limits, unfolded: states that can be reached, and what each quote does.

    Attributes
    ----------
    market, limits
    """

    market: FiniteMarket
    limits: Limits

    @property
    def inventory_limit(self) -> int:
        """The tighter of the market's bound and the limit."""
        bound = self.limits.inventory
        return self.market.inventory_limit if bound is None else min(bound, self.market.inventory_limit)

    @cached_property
    def quotes(self) -> dict[int, list[Quotes]]:
        """Quotes that may be posted at each inventory."""
        ticks, bound = sorted(self.market.fill_probabilities), self.inventory_limit
        pairs = {}
        for q in range(-bound, bound + 1):
            bids, asks = (ticks if q < bound else [OFF]), (ticks if q > -bound else [OFF])
            pairs[q] = [Quotes(bid, ask) for bid in bids for ask in asks if self._allowed(bid, ask)]
        return pairs

    def _allowed(self, bid: int, ask: int) -> bool:
        if bid == OFF or ask == OFF:
            return True
        if self.market.fill_probabilities[bid] + self.market.fill_probabilities[ask] > 1:
            return False  # at most one fill: there is no such pair
        spread = self.limits.spread
        return spread is None or spread[0] <= bid + ask <= spread[1]

    @cached_property
    def denominator(self) -> int:
        """``B``: every probability of a step is a multiple of ``1 / B``."""
        denominators = [
            (fill * move).denominator
            for quotes in self.quotes.values()
            for pair in quotes
            for fill in self.fills(pair).values()
            for move in self.market.mid_moves.values()
        ]
        return math.lcm(*denominators)

    def fills(self, quotes: Quotes) -> dict[int, Fraction]:
        """Probability of each change of the inventory."""
        probabilities = self.market.fill_probabilities
        bid = probabilities[quotes.bid] if quotes.bid != OFF else Fraction(0)
        ask = probabilities[quotes.ask] if quotes.ask != OFF else Fraction(0)
        return {change: p for change, p in ((1, bid), (-1, ask), (0, 1 - bid - ask)) if p}

    @cached_property
    def _successors(self) -> dict[tuple[State, Quotes], list[tuple[State, int]]]:
        return {}

    def successors(self, state: State, quotes: Quotes) -> list[tuple[State, int]]:
        """States after a step, and the parts of ``B`` that go there."""
        known = self._successors
        if (state, quotes) not in known:
            known[state, quotes] = self._step(state, quotes)
        return known[state, quotes]

    def _step(self, state: State, quotes: Quotes) -> list[tuple[State, int]]:
        masses: dict[State, int] = {}
        limit = self.limits.drawdown
        for change, fill in self.fills(quotes).items():
            inventory = state.inventory + change
            gain = {1: quotes.bid, -1: quotes.ask, 0: 0}[change]
            for move, probability in self.market.mid_moves.items():
                step = gain + inventory * move
                drawdown = 0
                if limit is not None:
                    drawdown = BREACHED if state.drawdown == BREACHED else max(state.drawdown - step, 0)
                    if drawdown > limit.amount:
                        drawdown = BREACHED
                after = State(inventory, state.wealth + step, drawdown)
                masses[after] = masses.get(after, 0) + int(fill * probability * self.denominator)
        return list(masses.items())

    @cached_property
    def start(self) -> State:
        """The state at step 0."""
        return State(self.market.initial_inventory, 0, 0)

    @cached_property
    def layers(self) -> list[list[State]]:
        """States that some policy can reach, by step: ``num_steps + 1`` lists."""
        layers = [[self.start]]
        for _ in range(self.market.num_steps):
            reached = {
                after
                for state in layers[-1]
                for quotes in self.quotes[state.inventory]
                for after, _ in self.successors(state, quotes)
            }
            layers.append(sorted(reached))
        return layers

    @cached_property
    def reachable_inventories(self) -> list[list[int]]:
        """Inventories at each decision."""
        return [sorted({state.inventory for state in layer}) for layer in self.layers[:-1]]

    def step_reward(self, inventory: int) -> Fraction:
        """Running penalty (negative) of a step that ends at this inventory, before the mid moves."""
        return -self.market.running_penalty * inventory**2

    def final_reward(self, state: State) -> Fraction:
        """Wealth less the terminal penalty."""
        return state.wealth - self.market.terminal_penalty * state.inventory**2

    def loses(self, state: State) -> bool:
        """Whether a final state counts as a loss for the limit."""
        limit = self.limits.loss
        return limit is not None and state.wealth <= -limit.amount

    @cached_property
    def risk_limits(self) -> dict[str, RiskLimit]:
        """The limits on probabilities, by name."""
        named = {"loss": self.limits.loss, "drawdown": self.limits.drawdown}
        return {name: limit for name, limit in named.items() if limit is not None}

    def violates(self, name: str, state: State) -> bool:
        """Whether a final state counts for the limit of that name."""
        return self.loses(state) if name == "loss" else state.drawdown == BREACHED


class Evaluation(NamedTuple):
    """What a policy is worth, exactly: the objective, and the probability that each limit counts."""

    value: Fraction
    probabilities: dict[str, Fraction]

    def meets(self, chain: Chain) -> bool:
        """Whether every limit is kept."""
        return all(self.probabilities[name] <= limit.probability for name, limit in chain.risk_limits.items())


Schedule = Mapping[tuple[int, int], Mapping[Quotes, Fraction]]  # (step, inventory) -> probabilities of quotes
Table = Mapping[tuple[int, int], Quotes]  # (step, inventory) -> quotes


def _evaluation(chain: Chain, laws: list[dict[State, Any]], whole: Any) -> Evaluation:
    """From the masses of states after each step; those after step n in parts of ``whole ** n``."""
    value, steps = Fraction(0), len(laws)
    for n, law in enumerate(laws, start=1):
        for state, mass in law.items():
            reward = chain.step_reward(state.inventory) + (chain.final_reward(state) if n == steps else 0)
            if reward:
                value += reward * Fraction(mass) / whole**n
    counted = dict.fromkeys(chain.risk_limits, Fraction(0))
    for state, mass in laws[-1].items():
        for name in counted:
            if chain.violates(name, state):
                counted[name] += Fraction(mass) / whole**steps
    return Evaluation(value, counted)


def evaluate_schedule(chain: Chain, schedule: Schedule) -> Evaluation:
    """Exact value and risk of a schedule: probabilities of quotes by step and inventory."""
    law: dict[State, Fraction] = {chain.start: Fraction(1)}
    laws = []
    for n in range(chain.market.num_steps):
        following: dict[State, Fraction] = {}
        for state, mass in law.items():
            for quotes, weight in schedule[n, state.inventory].items():
                for after, parts in chain.successors(state, quotes):
                    following[after] = following.get(after, Fraction(0)) + mass * weight * parts
        law = following
        laws.append(law)
    return _evaluation(chain, laws, chain.denominator)


def evaluate_table(chain: Chain, table: Table) -> Evaluation:
    """The same for a schedule that draws nothing: in whole numbers, hence faster."""
    law = {chain.start: 1}
    laws = []
    for n in range(chain.market.num_steps):
        following: dict[State, int] = {}
        for state, mass in law.items():
            for after, parts in chain.successors(state, table[n, state.inventory]):
                following[after] = following.get(after, 0) + mass * parts
        law = following
        laws.append(law)
    return _evaluation(chain, laws, chain.denominator)


def best_unlimited(chain: Chain) -> dict[tuple[int, int], Quotes]:
    """The best schedule without limits on probabilities: dynamic programming on (step, inventory), exact."""
    market = chain.market
    drift = sum((move * p for move, p in market.mid_moves.items()), Fraction(0))
    values = {q: -market.terminal_penalty * q**2 for q in chain.quotes}
    table = {}
    for n in reversed(range(market.num_steps)):
        after = {q: value + chain.step_reward(q) + drift * q for q, value in values.items()}
        values = {}
        for q, choices in chain.quotes.items():
            worth = {
                pair: sum(
                    (p * (after[q + change] + {1: pair.bid, -1: pair.ask, 0: 0}[change])
                     for change, p in chain.fills(pair).items()),
                    Fraction(0),
                )
                for pair in choices
            }  # fmt: skip
            table[n, q] = max(choices, key=worth.__getitem__)
            values[q] = worth[table[n, q]]
    return table


def first_table(chain: Chain, sweeps: int = 3, seconds: float = math.inf) -> dict[tuple[int, int], Quotes]:
    """A schedule to start a search from: wide quotes, improved cell by cell for so many seconds at most.

    It keeps to the limits if a way to was found; what it is worth is not the best.
    """
    deadline = time.perf_counter() + seconds

    def rank(table: Table) -> tuple[Fraction, Fraction]:
        evaluation = evaluate_table(chain, table)
        excess = sum(
            (
                max(evaluation.probabilities[name] - limit.probability, Fraction(0))
                for name, limit in chain.risk_limits.items()
            ),
            Fraction(0),
        )
        return -excess, evaluation.value

    cells = [(n, q) for n, inventories in enumerate(chain.reachable_inventories) for q in inventories]

    def widest(q: int, lean: int) -> Quotes:
        """Wide quotes; with ``lean`` 1, tight on the side that reduces the inventory."""
        signs = (1 - 2 * lean * (q < 0), 1 - 2 * lean * (q > 0))
        return max(chain.quotes[q], key=lambda pair: (signs[0] * pair.bid + signs[1] * pair.ask, pair))

    table = max(({cell: widest(cell[1], lean) for cell in cells} for lean in (0, 1)), key=rank)
    best = rank(table)
    for _ in range(sweeps):
        before = best
        for cell in cells:
            if time.perf_counter() > deadline:
                return table
            for pair in chain.quotes[cell[1]]:
                candidate = {**table, cell: pair}
                rating = rank(candidate)
                if rating > best:
                    table, best = candidate, rating
        if best == before:
            break
    return table
