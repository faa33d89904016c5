r"""The finite market of risk-constrained quoting, and its chain on states that remember enough for the limits.

At each of ``num_steps`` decisions the agent quotes a bid and an ask, each a whole number of ticks from the mid. At most
one order is filled: the bid with the probability ``p(bid)``, the ask with ``p(ask)``, none with the rest; a side whose
fill would leave the inventory bound is off. Then the mid moves by a whole number of ticks, independently. With the
inventory ``q`` after the fill and the wealth ``w`` marked to mid,

    w <- w + ticks of the filled quote + q * move,      w_0 = 0.

Maximised is ``E[w_N - running_penalty sum_n q_{n+1}^2 - terminal_penalty q_N^2]``, under limits on

- the final loss: ``P(w_N <= -amount) <= probability`` (a bound on the value at risk at confidence ``1 - probability``);
- the drawdown: ``P(max_n (max_{m <= n} w_m - w_n) > amount) <= probability``, observed at step ends and at the start;
- losses from the start: ``P(min_n w_n < -amount) <= probability``, a floor under the wealth at step ends;
- the conditional value at risk: ``CVaR = min_t t + E[(-w_N - t)^+] / (1 - confidence) <= amount`` (Rockafellar &
  Uryasev 2000);
- the inventory, ``|q_n| <= bound`` always; and the total spread, ``minimum <= bid + ask <= maximum`` where both quote.

All probabilities are rational, so after ``n`` steps every state has a whole number of parts of ``B^n``: nothing is
rounded. A state of the chain is ``(q, w, d, f)``, with the drawdown ``d`` so far from the peak, or `BREACHED`, and
whether the floor was broken; a quote *schedule* may look at the step and the inventory only, or (``time_only``) at the
step alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

__all__ = [
    "BREACHED",
    "OFF",
    "Chain",
    "Evaluation",
    "FiniteMarket",
    "Limits",
    "Quotes",
    "RiskLimit",
    "ShortfallLimit",
    "as_schedule",
    "best_unlimited",
    "evaluate_schedule",
    "evaluate_table",
    "shortfall",
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
    """An amount in ticks and the largest probability that it is reached (loss) or exceeded (drawdown, floor)."""

    amount: int
    probability: Fraction


class ShortfallLimit(NamedTuple):
    """A confidence, and the largest expected final loss (ticks) in the worst ``1 - confidence`` of cases."""

    confidence: Fraction
    amount: Fraction


class Limits(NamedTuple):
    """What a policy must keep to; None where there is no such limit."""

    loss: RiskLimit | None = None
    drawdown: RiskLimit | None = None
    floor: RiskLimit | None = None
    cvar: ShortfallLimit | None = None
    inventory: int | None = None
    spread: tuple[int, int] | None = None
    time_only: bool = False  # a schedule has the same quotes at every inventory


class State(NamedTuple):
    """A state of the chain; without limits that ask for them ``drawdown`` is 0 and ``broken`` False."""

    inventory: int
    wealth: int
    drawdown: int  # from the peak so far, or `BREACHED`
    broken: bool  # the floor was broken


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
    def outcomes(self) -> dict[tuple[int, Quotes], list[tuple[int, int, int]]]:
        """Inventories after a step, changes of wealth, and the parts of ``B`` that take them."""
        outcomes: dict[tuple[int, Quotes], list[tuple[int, int, int]]] = {}
        for q, choices in self.quotes.items():
            for pair in choices:
                masses: dict[tuple[int, int], int] = {}
                for change, fill in self.fills(pair).items():
                    gain = {1: pair.bid, -1: pair.ask, 0: 0}[change]
                    for move, probability in self.market.mid_moves.items():
                        key = q + change, gain + (q + change) * move
                        masses[key] = masses.get(key, 0) + int(fill * probability * self.denominator)
                outcomes[q, pair] = [(after, step, parts) for (after, step), parts in masses.items()]
        return outcomes

    def successors(self, state: State, quotes: Quotes) -> list[tuple[State, int]]:
        """States after a step, and the parts of ``B`` that go there."""
        return [(self.after(state, q, step), parts) for q, step, parts in self.outcomes[state.inventory, quotes]]

    def after(self, state: State, inventory: int, step: int) -> State:
        """The state after one, at an inventory and with the wealth changed by ``step``."""
        drawdown, limit = 0, self.limits.drawdown
        if limit is not None:
            drawdown = BREACHED if state.drawdown == BREACHED else max(state.drawdown - step, 0)
            if drawdown > limit.amount:
                drawdown = BREACHED
        wealth, floor = state.wealth + step, self.limits.floor
        return State(inventory, wealth, drawdown, floor is not None and (state.broken or wealth < -floor.amount))

    @cached_property
    def start(self) -> State:
        """The state at step 0."""
        return State(self.market.initial_inventory, 0, 0, False)

    @cached_property
    def layers(self) -> list[list[State]]:
        """States that some policy can reach, by step: ``num_steps + 1`` lists."""
        layers = [[self.start]]
        jumps = {
            q: sorted({(after, step) for pair in choices for after, step, _ in self.outcomes[q, pair]})
            for q, choices in self.quotes.items()
        }
        for _ in range(self.market.num_steps):
            reached = {self.after(state, q, step) for state in layers[-1] for q, step in jumps[state.inventory]}
            layers.append(sorted(reached))
        return layers

    @cached_property
    def reachable_inventories(self) -> list[list[int]]:
        """Inventories at each decision."""
        reached, layers = {self.market.initial_inventory}, []
        for _ in range(self.market.num_steps):
            layers.append(sorted(reached))
            reached = {after for q in reached for pair in self.quotes[q] for after, _, _ in self.outcomes[q, pair]}
        return layers

    def restrict(self, pair: Quotes, inventory: int) -> Quotes:
        """Quotes that are meant for every inventory, at one: a side whose fill would leave the bound is off."""
        bound = self.inventory_limit
        return Quotes(pair.bid if inventory < bound else OFF, pair.ask if inventory > -bound else OFF)

    @cached_property
    def decisions(self) -> list[list[tuple[list[int], list[dict[int, Quotes]]]]]:
        """What a schedule chooses at each step: inventories that share a choice, and the quotes of each choice."""
        steps = []
        for inventories in self.reachable_inventories:
            if self.limits.time_only:
                choices = [{q: self.restrict(pair, q) for q in inventories} for pair in self.quotes[0]]
                distinct = {tuple(choice.values()): choice for choice in choices}
                steps.append([(inventories, list(distinct.values()))])
            else:
                steps.append([([q], [{q: pair} for pair in self.quotes[q]]) for q in inventories])
        return steps

    def step_reward(self, inventory: int) -> Fraction:
        """Running penalty (negative) of a step that ends at this inventory, before the mid moves."""
        return -self.market.running_penalty * inventory**2

    def final_reward(self, state: State) -> Fraction:
        """Wealth less the terminal penalty."""
        return state.wealth - self.market.terminal_penalty * state.inventory**2

    @cached_property
    def bounds(self) -> dict[str, Fraction]:
        """What each limited risk may be at most: probabilities, and ticks for ``cvar``."""
        limits = self.limits
        named = {"loss": limits.loss, "drawdown": limits.drawdown, "floor": limits.floor}
        bounds = {name: limit.probability for name, limit in named.items() if limit is not None}
        return bounds if limits.cvar is None else {**bounds, "cvar": limits.cvar.amount}

    def violates(self, name: str, state: State) -> bool:
        """Whether a final state counts for the limit on a probability of that name."""
        if name == "loss":
            return self.limits.loss is not None and state.wealth <= -self.limits.loss.amount
        return state.broken if name == "floor" else state.drawdown == BREACHED


def shortfall(wealth: Mapping[int, Fraction], confidence: Fraction) -> tuple[Fraction, int]:
    """CVaR of the loss ``-w`` and the ``t`` that attains it, from the probabilities of final wealth."""

    def at(t: int) -> Fraction:
        return t + sum((p * (-w - t) for w, p in wealth.items() if -w > t), Fraction(0)) / (1 - confidence)

    return min((at(-w), -w) for w in wealth)


class Evaluation(NamedTuple):
    """What a policy is worth, exactly: the objective, and each limited risk (a probability, or ticks for ``cvar``)."""

    value: Fraction
    risks: dict[str, Fraction]

    def meets(self, chain: Chain) -> bool:
        """Whether every limit is kept."""
        return all(self.risks[name] <= bound for name, bound in chain.bounds.items())


Schedule = Mapping[tuple[int, int], Mapping[Quotes, Fraction]]  # (step, inventory) -> probabilities of quotes
Table = Mapping[tuple[int, int], Quotes]  # (step, inventory) -> quotes


def evaluate_schedule(chain: Chain, schedule: Schedule) -> Evaluation:
    """Exact value and risk of a schedule: probabilities of quotes by step and inventory.

    Masses are whole numbers, in parts of the common denominator of the schedule's probabilities times ``B``.
    """
    common = math.lcm(*(weight.denominator for cell in schedule.values() for weight in cell.values()))
    whole, value, law = common * chain.denominator, Fraction(0), {(chain.start.inventory, 0, False): {0: 1}}
    for n in range(chain.market.num_steps):
        shares = {q: _shares(chain, q, schedule[n, q], common) for q in {q for q, _, _ in law}}
        law = _after_step(chain, law, shares)
        held: dict[int, int] = {}
        for (q, _, _), masses in law.items():
            held[q] = held.get(q, 0) + sum(masses.values())
        value += sum((chain.step_reward(q) * mass for q, mass in held.items()), Fraction(0)) / whole ** (n + 1)
    total = whole**chain.market.num_steps
    final = {State(q, w, d, f): mass for (q, d, f), masses in law.items() for w, mass in masses.items()}
    value += sum((chain.final_reward(state) * mass for state, mass in final.items()), Fraction(0)) / total
    risks: dict[str, Fraction] = {}
    for name in chain.bounds:
        if name != "cvar":
            risks[name] = Fraction(sum(mass for state, mass in final.items() if chain.violates(name, state)), total)
    if chain.limits.cvar is not None:
        wealth: dict[int, int] = {}
        for state, mass in final.items():
            wealth[state.wealth] = wealth.get(state.wealth, 0) + mass
        chances = {w: Fraction(mass, total) for w, mass in wealth.items()}
        risks["cvar"] = shortfall(chances, chain.limits.cvar.confidence)[0]
    return Evaluation(value, risks)


def _shares(chain: Chain, q: int, cell: Mapping[Quotes, Fraction], common: int) -> dict[tuple[int, int], int]:
    """Where the mass at an inventory goes: (inventory, change of wealth) -> parts of ``common * B``."""
    share: dict[tuple[int, int], int] = {}
    for pair, weight in cell.items():
        for after, step, parts in chain.outcomes[q, pair]:
            share[after, step] = share.get((after, step), 0) + int(weight * common) * parts
    return share


Law = dict[tuple[int, int, bool], dict[int, int]]  # (inventory, drawdown, broken) -> wealth -> mass


def _after_step(chain: Chain, law: Law, shares: Mapping[int, Mapping[tuple[int, int], int]]) -> Law:
    floor = chain.limits.floor
    following: Law = {}
    for (q, drawdown, broken), masses in law.items():
        for (after, step), parts in shares[q].items():
            deeper = chain.after(State(q, 0, drawdown, broken), after, step).drawdown
            target = following.setdefault((after, deeper, broken), {})
            fallen = target if floor is None else following.setdefault((after, deeper, True), {})
            lowest = -math.inf if floor is None else -floor.amount
            for w, mass in masses.items():
                place = target if w + step >= lowest else fallen
                place[w + step] = place.get(w + step, 0) + mass * parts
    return {key: masses for key, masses in following.items() if masses}


def as_schedule(table: Table) -> dict[tuple[int, int], dict[Quotes, Fraction]]:
    """A schedule that draws nothing."""
    return {cell: {pair: Fraction(1)} for cell, pair in table.items()}


def evaluate_table(chain: Chain, table: Table) -> Evaluation:
    """Exact value and risk of a schedule that draws nothing."""
    return evaluate_schedule(chain, as_schedule(table))


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
