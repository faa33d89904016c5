"""The baseline of the Hawkes flow market: its optimum, its policies, and what they are worth.

The optimum is that of frozen depths, computed to a stated error: where the intensities are observed, and on the tape,
from which who remembers reconstructs them. Where only fills are observed it is bracketed; by the clock also where
several orders are to be expected between two ticks, and with a `reach_atom`, where the best depths jump with the
intensities. Above: what the optimum would be worth to who sees the intensities; in these two cases by the clock, the
value of depths that move at once. Below: the best policy known, which is that
with the best lower bound of all that are listed here.

With the defaults: 16.4142 (error 1.4e-5) at events, 15.7821 (9.4e-4) by the clock, 16.1651 to 16.4142 of fills, where
"particle_filter" was worth 16.1708 (standard error 0.0017) in a simulation on other seeds, "filtered" 16.1500 (0.0018),
and the optimum played at the expected rates, without memory, 15.0060.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import mmgym.models.hawkes_flow as model
from mmgym.baselines.baseline import (
    BestKnownPolicy,
    Bounds,
    Evaluation,
    PriceNoise,
    Progress,
    SimulatedBaseline,
    best_lower,
    make_baseline,
)
from mmgym.baselines.episodes import ControlVariate, Decision, Step
from mmgym.baselines.frozen import Functional
from mmgym.baselines.hawkes_flow import closed_forms, kernels, solver
from mmgym.baselines.hawkes_flow.clock import MOST_IN_STEP, clock_march, orders_in_step
from mmgym.baselines.hawkes_flow.expansion import FlowExpansions, grid_actions
from mmgym.baselines.hawkes_flow.filtering import FilteredPolicy, ParticlePolicy
from mmgym.baselines.hawkes_flow.price_noise import price_noise
from mmgym.baselines.hawkes_flow.rates import rate_grids, states_of
from mmgym.baselines.hawkes_flow.reach import best_offsets, reach_laws
from mmgym.baselines.hawkes_flow.solver import COARSE, FINE, DepthFunction, Resolution, Tables, march
from mmgym.baselines.kept import is_named, kept
from mmgym.baselines.policy import Policy, StatePolicy, draws_actions
from mmgym.envs.hawkes_flow import HawkesFlowVectorEnv
from mmgym.models.hawkes_flow import Params

Array = NDArray[Any]

__all__ = [
    "DepthPolicy",
    "HawkesFlowBaseline",
    "OptimalFlowPolicy",
    "OptimalTapePolicy",
    "Solved",
    "SolvedPolicy",
    "solve",
]

EVALUATION = Resolution(20, 0.3, 1e-5)  # of given policies
BETWEEN = Resolution(17, 0.2, 1e-5)  # of the best depths with a `reach_atom`, beside COARSE and FINE
SAFETY, ROUNDING = 2.0, 1e-7  # the stated error in units of the distance between two resolutions, and of the value
SUMMATION = 1e-14  # and of the largest value of all: where a value is 0, its sums have rounding still
SAFETY_AT_KINKS = 4.0  # with a `reach_atom`
LARGEST_ERROR = 0.02  # relative: beyond, the optimum is not called certified
DECISIONS = 1_000_000  # simulated for the lower bound of the optimum
ROUGH = 100  # episodes of all policies that may be the best one


@dataclass(frozen=True)
class Solved:
    """An optimum on the grid.

    Attributes
    ----------
    value : float
        The criterion from the initial state, EUR / MWh lots.
    error : float
        Twice its distance to the value at a coarser resolution, which is several times its own error. With a
        `reach_atom` polynomials go through kinks of the value, their errors have changing signs, and that is not told
        by one of them: four times the largest distance to those at two resolutions.
    times, segments, largest
        As in `Tables`.
    table : (L, S, n+, n-, 3) float32
        Continuation gains of bid and ask, and values.
    """

    value: float
    error: float
    times: Array
    segments: NDArray[np.int64]
    largest: tuple[float, float]
    table: Array


def _at_start(params: Params, tables: Tables, field: Array) -> float:
    """A field (S, n+, n-) of the last level at the initial state."""
    p = params
    buy, sell = rate_grids(p, tables.largest, field.shape[1], field.shape[2])
    across = buy.matrix(np.array([p.initial_excess_buy]))
    along = sell.matrix(np.array([p.initial_excess_sell]))
    return float((across @ field[p.initial_inventory + p.inventory_limit] @ along.T)[0, 0])


def _marched(params: Params, resolution: Resolution, held: bool, **options: Any) -> Tables:
    """`march`, or by the clock with depths that are frozen `clock_march`."""
    if held and params.decision == "clock":
        return clock_march(params, resolution, **options)
    return march(params, resolution, held=held, **options)


@functools.lru_cache(maxsize=4)
def solve(params: Params, held: bool) -> Solved:
    """The optimum for depths that are frozen between decisions (``held``) or move at once; kept in memory and on disk.

    It is that of who sees the intensities, whether or not they are hidden.
    """

    def make() -> Mapping[str, Any]:
        fine = _marched(params, FINE, held)
        value = _at_start(params, fine, fine.values[-1])
        has_kinks = max(params.reach_atom_buy, params.reach_atom_sell) > 0.0
        others = [_marched(params, other, held) for other in ((COARSE, BETWEEN) if has_kinks else (COARSE,))]
        table = np.stack([fine.gains[0], fine.gains[1], fine.values], axis=-1).astype(np.float32)
        difference = max(abs(value - _at_start(params, other, other.values[-1])) for other in others)
        error = (SAFETY_AT_KINKS if has_kinks else SAFETY) * difference + ROUNDING * abs(value)
        error += SUMMATION * float(np.abs(fine.values).max())
        numbers = [value, error, *fine.largest]
        return {"numbers": numbers, "times": fine.times, "segments": fine.segments, "table": table}

    def fits(arrays: Mapping[str, Array]) -> bool:
        levels, segments, table = len(arrays["times"]), arrays["segments"], arrays["table"]
        shape = (levels, 2 * params.inventory_limit + 1, *table.shape[2:4], 3)
        return (
            arrays["numbers"].shape == (4,)
            and arrays["times"].shape == (levels,)
            and table.shape == shape
            and table.dtype == np.float32
            and min(shape) >= 2
            and segments.ndim == 2
            and segments.shape[1] == 2
            and segments.dtype == np.int64
            and 0 == segments[0, 0] <= segments.min() <= segments.max() == levels - 1
        )

    arrays = kept(params._replace(observe="state"), f"held {held}", make, fits)
    value, error, *largest = arrays["numbers"].tolist()
    return Solved(value, error, arrays["times"], arrays["segments"], (largest[0], largest[1]), arrays["table"])


class SolutionTables:
    """Tables of a solution between their nodes."""

    def __init__(self, params: Params, solved: Solved) -> None:
        self.params = params
        buy, sell = rate_grids(params, solved.largest, *solved.table.shape[2:4])
        self.nodes = (buy.excess, buy.weights, sell.excess, sell.weights)
        self.table, self.times, self.segments = solved.table, solved.times, solved.segments

    def __call__(self, states: Array) -> Array:
        """Bid gain, ask gain and value, shape (B, 3), at states (B, 4): see `states_of`."""
        rows = np.empty((len(states), 3))
        kernels.look_up_rows(self.table, self.times, self.segments, states, *self.nodes, rows)
        return rows

    def depths(self, gains: Array) -> Array:
        """Best depths [bid, ask] for continuation gains (..., 2 or more)."""
        p = self.params
        edges = p.half_spread + gains[..., :2]
        return p.half_spread + best_offsets(edges, *reach_laws(p), 0.0, 2.0 * p.depth_reach)


class DepthPolicy(StatePolicy):
    """A function of time left, inventory and intensities behind `predict`.

    Attributes
    ----------
    depths : callable
        ``(time_left, inventory, buy_rate, sell_rate) -> (..., 2)`` depths [bid, ask], EUR / MWh. Where the intensities
        are hidden, it is given the expected ones.
    """

    model = model


class SolvedPolicy(DepthPolicy):
    """The best depths of a solution.

    Attributes
    ----------
    solved : Solved
    """

    def __init__(self, params: Params, solved: Solved) -> None:
        super().__init__(params, self._best_depths)
        self.solved = solved
        self._look_up = SolutionTables(params, solved)

    def _at(self, *state: Any) -> Array:
        shape = np.broadcast_shapes(*map(np.shape, state))
        return self._look_up(states_of(self.params, *state)).reshape(*shape, 3)

    def _best_depths(self, *state: Any) -> Array:
        return self._look_up.depths(self._at(*state))

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch, by the solution.

        Hidden intensities are taken to be the expected ones, and to be seen from then on.
        """
        return self._at(*model.locate(self.params, observation))[..., 2]


class OptimalFlowPolicy(SolvedPolicy):
    """The optimum where intensities are seen.

    Attributes
    ----------
    optimum : float
        From the environment's own initial state.
    bounds : Bounds
    level : str
    """

    def __init__(self, params: Params, solved: Solved, bounds: Bounds) -> None:
        super().__init__(params, solved)
        self.optimum, self.bounds, self.level = bounds.upper, bounds, bounds.level


class OptimalTapePolicy(FilteredPolicy):
    """The optimum on the tape: the best depths for the intensities that the orders so far tell.

    Attributes
    ----------
    optimum : float
        From the environment's own initial state.
    bounds : Bounds
    level : str
    """

    def __init__(self, params: Params, solved: Solved, bounds: Bounds) -> None:
        solution = SolvedPolicy(params, solved)
        super().__init__(params, solution.depths)
        self.optimum, self.bounds, self.level = bounds.upper, bounds, bounds.level
        self.value = solution.value


class FlowAdvantages(ControlVariate):
    """The solved value plus the sum of advantages of what is played.

    The estimate is unbiased for any policy, but for the error of the solved value, and the optimum at events is
    estimated without sampling error.
    """

    def __init__(self, params: Params, solved: Solved) -> None:
        self.params, self.start = params, solved.value
        self.tables = SolutionTables(params, solved)
        self.record = model.MARKET.record(params)

    def before(self, decision: Decision) -> Array:
        """Advantages of the depths: by the clock with the step replayed."""
        envs, info, active = decision.envs, decision.info, decision.running
        depths, gap = np.ascontiguousarray(envs.to_quotes(decision.actions)), np.zeros(len(active))
        names = ("time_left", "inventory", "buy_rate", "sell_rate")
        states = states_of(self.params, *(info[name] for name in names))
        if self.params.decision == "event":
            kernels.event_advantages(self.record, states, depths, self.tables(states), active, gap)
            return gap
        self.ends = np.empty(len(active), dtype=np.int64)
        streams, tables = envs.get_state()["streams"], self.tables
        solution = tables.table, tables.times, tables.segments, *tables.nodes
        kernels.clock_advantages(self.record, *solution, states, streams, depths, active, self.ends, gap)
        return gap

    def after(self, step: Step) -> float:
        """Nothing; by the clock the replay is checked."""
        if self.params.decision != "event":
            ends, running = self.ends - self.params.inventory_limit, step.running
            if not np.array_equal(ends[running], step.info["inventory"][running]):
                raise AssertionError("the replay of a step ended with other inventories than the environment")
        return 0.0


@make_baseline.register(Params)
class HawkesFlowBaseline(SimulatedBaseline):
    """Optimum, policies and evaluation of the Hawkes flow market."""

    reference = "join_best"
    ours = (
        "reconstructed",
        "particle_filter",
        "filtered",
        "clock_optimum",
        "event_optimum",
        "signal_poisson",
        "poisson",
        "join_best",
    )

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        few = orders_in_step(params) <= MOST_IN_STEP and not max(params.reach_atom_buy, params.reach_atom_sell)
        self.held = params.decision == "event" or few  # depths, in the solution
        self.known = self.held and params.observe != "fills"  # the intensities, at each decision

    @functools.cached_property
    def solved(self) -> Solved:
        """The optimum, or where it is bracketed the upper bound.

        Raises
        ------
        ArithmeticError
            If its error is not small: the grids do not resolve such intensities.
        """
        solved = solve(self.params._replace(observe="state"), self.held)
        scale = max(abs(solved.value), self.params.half_spread)
        if not solved.error <= LARGEST_ERROR * scale:
            raise ArithmeticError(
                f"the optimum {solved.value:.6g} is only known to {solved.error:.3g}: with so much excitation for the "
                "decay and the horizon, intensities spread too far; shorten the horizon or lower excitation"
            )
        return solved

    def upper(self) -> float:
        """The upper bound of the optimum."""
        return self.solved.value

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch: at most, where it is bracketed."""
        return SolvedPolicy(self.params, self.solved).value(observation)

    def best_policy(self) -> Any:
        """The optimum, or where it is bracketed the best policy known."""
        if self.known:
            kind = OptimalTapePolicy if self.params.observe == "tape" else OptimalFlowPolicy
            return kind(self.params, self.solved, self.bounds())
        return BestKnownPolicy(self)

    def bounds(self) -> Bounds:
        """Bounds of the optimum: where it is not solved, the lower one is that of the best known policy."""
        value, error = self.solved.value, self.solved.error
        if self.known:
            return Bounds(value, value, error)
        return Bounds(min(self.best_known()[1], value), value, error)

    @functools.cache  # noqa: B019  # baselines are kept anyway
    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound, kept on disk.

        The bound is its value less its error: numerical where it is a function of the observation and few orders come
        in a step, otherwise four standard errors of a simulation.
        """

        def rough(name: str) -> tuple[float, float]:
            return self._simulated(name, ROUGH, 0x10BD)

        def make() -> Mapping[str, Any]:
            name, lower = best_lower(list(self.policies()), rough, self._lower)
            return {"name": name, "lower": lower}

        best = kept(self.params, "best known", make, is_named(self.policies()))
        return str(best["name"]), float(best["lower"])

    def environment(self) -> HawkesFlowVectorEnv:
        """As in `SimulatedBaseline`."""
        return HawkesFlowVectorEnv(1, **self.params.arguments())

    def _simulated(self, name: str, count: int, seed: int) -> tuple[float, float]:
        """Value and four standard errors of a policy."""
        value, error = self.simulated(self.policies()[name](), count, seed)
        return value, 4.0 * error

    def _lower(self, name: str) -> float:
        policy = self.policies()[name]()
        if self.held and policy.markov:
            value, error = self._valued(policy)
        else:
            count = int(np.clip(DECISIONS // self.params.num_steps, ROUGH, 4_000))
            value, error = self._simulated(name, count, 0x10BE)
        return value - error

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """The paper's policies and `ours`, those of Poisson order flow among them.

        By the clock also the depths that are best with decisions at events, and the paper's, which move at once.
        Intensities that are not observed are taken to be the expected ones, or with decisions at events reconstructed
        from the tape, or filtered from the fills.
        """
        p, at_events = self.params, self.params.decision == "event"

        def of(depths: Callable[..., Array], **options: Any) -> Callable[[], Policy]:
            return lambda: DepthPolicy(p, functools.partial(depths, p, **options))

        def best(decision: str, held: bool = True) -> SolvedPolicy:
            return SolvedPolicy(p, solve(p._replace(decision=decision, observe="state"), held))

        policies: dict[str, Callable[[], Policy]] = {}
        if p.observe == "tape":
            policies["reconstructed"] = lambda: FilteredPolicy(p, best("event").depths)
        if at_events and p.observe == "fills":
            policies["particle_filter"] = lambda: ParticlePolicy(p, best("event").depths)
            policies["filtered"] = lambda: FilteredPolicy(p, best("event").depths)
        if not at_events:
            policies["hjb"] = lambda: best("clock", held=False)
        if not at_events and not self.known and orders_in_step(p) <= MOST_IN_STEP:
            policies["clock_optimum"] = lambda: best("clock")
        if not at_events or p.observe != "state":
            policies["event_optimum"] = lambda: best("event")
        return policies | {
            "signal_poisson": lambda: DepthPolicy(p, closed_forms.signal_poisson(p, _poisson_values(p))),
            "poisson": lambda: DepthPolicy(p, closed_forms.poisson(p, _poisson_values(p))),
            "corollary_3": of(closed_forms.corollary_3),
            "corollary_3_as_printed": of(closed_forms.corollary_3, as_printed=True),
            "join_best": of(closed_forms.join_best),
        }

    def value_of_reference(self) -> float:
        """What joining the best quotes is worth, however often it is decided."""
        depths = functools.partial(closed_forms.join_best, self.params)
        return self._expectation(EVALUATION, depths, solver.CRITERION)

    def evaluate(
        self, policy: Policy, deterministic: bool = True, progress: Progress | None = None
    ) -> Evaluation | None:
        """Expectations under a policy; the error is the distance to a coarser resolution.

        None for a policy that draws its actions, and by the clock with many orders in a step or a `reach_atom`, but for
        constant depths, to which it makes no difference when they are decided on. On the tape a policy may look
        at the last order, which is not on the grid: None, but for named depths, which do not.
        """
        if draws_actions(policy, deterministic) or not (self.held or _is_constant(policy)):
            return None
        if self.params.observe == "tape" and not isinstance(policy, DepthPolicy):
            return None
        recorded = _Recorded(self.params, policy)
        wanted = (Functional(gain=1.0), Functional(fills=1.0), Functional(absolute_inventory=1.0))
        pnl, fills, inventory = (self._expectation(COARSE, recorded, functional) for functional in wanted)
        return Evaluation(*self._valued(policy, recorded), pnl, fills, inventory)

    def _valued(self, policy: Policy, recorded: "_Recorded | None" = None) -> tuple[float, float]:
        """The criterion under a policy and its error; ``recorded``, its depths at the coarse resolution, saves time."""
        rough = self._expectation(COARSE, recorded or _Recorded(self.params, policy), solver.CRITERION)
        value = self._expectation(EVALUATION, _Recorded(self.params, policy), solver.CRITERION)
        return value, abs(value - rough)

    def _expectation(self, resolution: Resolution, depths: DepthFunction, functional: Functional) -> float:
        tables = _marched(self.params, resolution, self.held, depths=depths, functional=functional)
        return _at_start(self.params, tables, tables.values[-1])

    def expansions(self, action_space: gymnasium.Space[Any]) -> FlowExpansions:
        """Expansions around policies, for training on the exact value (`mmgym.baselines.expansion`).

        Raises
        ------
        TypeError
            If decisions are taken by the clock, the tape is observed, or there is a `reach_atom`.
        """
        return FlowExpansions(self.params)

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`: by the clock, where orders come while depths are frozen, from depths that move at once."""
        params = self.params._replace(observe="state")
        return FlowAdvantages(self.params, solve(params, params.decision == "event"))

    def price_noise(self) -> PriceNoise | None:
        """As in `Baseline`: see `mmgym.baselines.hawkes_flow.price_noise`."""
        return price_noise(self.params)

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Values and best depths at some times, inventories and intensities."""
        p, best = self.params, SolvedPolicy(self.params, self.solved)
        rows = []
        for time_left in (p.horizon, 0.5 * p.horizon, 0.1 * p.horizon, p.step_length):
            for inventory in np.unique([-p.inventory_limit // 2, 0, 1, p.inventory_limit // 2]).tolist():
                for factor in (1.0, 2.0):
                    state = time_left, inventory, factor * p.initial_rate_buy, p.initial_rate_sell
                    names = ("time_left", "inventory", "buy_rate", "sell_rate")
                    controls = dict(zip(control_names, best.depths(*state).tolist(), strict=True))
                    value = float(best._at(*state)[2])
                    rows.append({**dict(zip(names, state, strict=True)), "value": value, **controls})
        return rows


@functools.lru_cache(maxsize=16)
def _poisson_values(params: Params) -> closed_forms.PoissonValues:
    return closed_forms.PoissonValues(params)


def _is_constant(policy: Any) -> bool:
    """Whether a policy says that its action is the same everywhere."""
    if isinstance(policy, BestKnownPolicy):
        policy = policy.policy
    depths = policy.depths if isinstance(policy, DepthPolicy) else None
    return isinstance(depths, functools.partial) and depths.func is closed_forms.join_best


class _Recorded:
    """Depths that a policy plays, asked for once at each time left of a resolution."""

    def __init__(self, params: Params, policy: Policy) -> None:
        self.params, self.policy = params, policy
        self.by_grid: dict[tuple[float, tuple[int, ...]], Array] = {}

    def __call__(self, time_left: float, inventory: Array, buy_rate: Array, sell_rate: Array) -> Array:
        key = time_left, np.broadcast_shapes(inventory.shape, buy_rate.shape, sell_rate.shape)
        if key not in self.by_grid:
            self.by_grid[key] = grid_actions(self.params, self.policy, time_left, inventory, buy_rate, sell_rate)
        return model.to_quotes(self.params, self.by_grid[key])
