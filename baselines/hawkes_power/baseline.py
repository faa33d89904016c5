"""The baseline of the intraday power market: the best policy known, the papers' and bounds of the optimum."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

import mmgym.models.hawkes_power as model
from mmgym.baselines.baseline import BestKnownPolicy, Bounds, PriceNoise, SimulatedBaseline, best_lower, make_baseline
from mmgym.baselines.episodes import ControlVariate, Decision, Step, simulated_columns
from mmgym.baselines.hawkes_flow.reach import best_offsets, reach_laws
from mmgym.baselines.hawkes_power import clock, closed_forms, kernels
from mmgym.baselines.hawkes_power.bounds import (
    CERTAIN,
    MOST,
    Interval,
    held_estimates,
    mean_of,
    paths_for,
    solved,
    upper_estimates,
)
from mmgym.baselines.hawkes_power.expansion import PowerExpansions
from mmgym.baselines.hawkes_power.price_noise import price_noise
from mmgym.baselines.hawkes_power.values import ValueFunction
from mmgym.baselines.kept import is_named, is_sample, kept
from mmgym.baselines.policy import Policy, RememberingPolicy, StatePolicy
from mmgym.envs.hawkes_power import HawkesPowerVectorEnv
from mmgym.models.hawkes_power import MARKET, PROCESSES, Params

Array = NDArray[Any]

__all__ = [
    "BestPowerPolicy",
    "DistancePolicy",
    "FittedPolicy",
    "HawkesPowerBaseline",
    "HeldPolicy",
    "ReconstructedPolicy",
    "ValuePolicy",
]

ROUGH_SEED, LOWER_SEED, REFERENCE_SEED = 0x10BD, 0x10BE, 0x10BF
ROUGH = 200  # paths of all policies that may be the best one
HELD_MOST = 60  # paths of the one that simulates futures at every decision


class DistancePolicy(StatePolicy):
    """A function of the state behind `predict`.

    Attributes
    ----------
    depths : callable
        ``(time_left, inventory, spread, rates) -> (..., 2)`` distances [bid, ask] from the mid, EUR / MWh.
    control : str
        The value function (a kind of `mmgym.baselines.hawkes_power.bounds.solved`) that a simulation of it is
        controlled with.
    """

    model = model

    def __init__(self, params: Params, distances: Callable[..., Array], control: str = "fitted") -> None:
        super().__init__(params, distances)
        self.control = control

    def wanted(self, observation: Any) -> Array:
        """Offsets from the best prices of the book, of one observation or of each of a batch."""
        state = model.locate(self.params, observation)
        return np.asarray(self.depths(*state) - self.params.half_tick * state[2][..., None])


class ValuePolicy(DistancePolicy):
    """The best quotes for a value function: offsets ``max(0, 1 / kappa - c)`` from the best prices of the book, or 0.

    Attributes
    ----------
    kind : str
        One of those of `mmgym.baselines.hawkes_power.bounds.solved`.
    """

    def __init__(self, params: Params, kind: str) -> None:
        super().__init__(params, self._best_distances)
        self.kind = kind

    @functools.cached_property
    def function(self) -> ValueFunction:
        """The value function, solved or read from disk when first asked for."""
        return solved(self.params, self.kind)

    def _at(self, time_left: Any, inventory: Any, spread: Any, rates: Any) -> Array:
        shape = np.shape(rates)[:-1]
        left, lots, ticks = (np.ravel(np.broadcast_to(x, shape)) for x in (time_left, inventory, spread))
        flat = self.function.at(self.params, left, lots, ticks, np.reshape(rates, (-1, len(PROCESSES))))
        return flat.reshape(*shape, 3)

    def _best_distances(self, *state: Any) -> Array:
        p = self.params
        offsets = best_offsets(self._at(*state)[..., :2], *reach_laws(p))
        return np.asarray(offsets + p.half_tick * np.asarray(state[2])[..., None])

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch, by the value function."""
        return self._at(*model.locate(self.params, observation))[..., 2]


class FittedPolicy(ValuePolicy):
    """That of the fitted value function, at the expected intensities where they are hidden."""

    def __init__(self, params: Params) -> None:
        super().__init__(params, "fitted")

    def _best_distances(self, time_left: Any, inventory: Any, spread: Any, rates: Any) -> Array:
        """Quotes that rest until the next event are those for intensities and time left when it is expected."""
        p = self.params
        if p.decision != "event":
            return super()._best_distances(time_left, inventory, spread, rates)
        total, longest = np.sum(rates, axis=-1), np.minimum(p.step_length, time_left)
        ahead = 1.0 / total - longest / np.expm1(np.clip(total * longest, 1e-9, 500.0))
        ahead = np.clip(ahead, 0.0, longest)
        faded = p.base_rates + (rates - p.base_rates) * np.exp(-p.decays * ahead[..., None])
        return super()._best_distances(time_left - ahead, inventory, spread, faded)


class HeldPolicy(ValuePolicy):
    """Quotes that are expected to earn most while they rest for a step, by the value function of quotes that rest.

    What is expected comes from simulated futures of every state, always the same for the same time left.
    """

    def __init__(self, params: Params) -> None:
        super().__init__(params, "held")
        self.control = "held"

    def _best_distances(self, time_left: Any, inventory: Any, spread: Any, rates: Any) -> Array:
        p, shape = self.params, np.shape(rates)[:-1]
        left, lots, ticks = (np.ravel(np.broadcast_to(x, shape)) for x in (time_left, inventory, spread))
        flat = np.reshape(rates, (-1, len(PROCESSES)))
        offsets = clock.best_held_offsets(p, self.function, left, lots, ticks, flat)
        return np.asarray(offsets.reshape(*shape, 2) + p.half_tick * np.asarray(spread)[..., None])


class _Memory(NamedTuple):
    rates: Array  # (..., 6), 1 / minute
    time_left: Array


class ReconstructedPolicy(RememberingPolicy):
    """`FittedPolicy` on the tape: at the intensities that the events so far tell, from the initial ones.

    In between they decay, and each event lifts its own process's by ``excitation``.
    """

    def __init__(self, params: Params) -> None:
        self.params, self._fitted = params, FittedPolicy(params)

    def respond(self, observation: Any, state: Any, episode_start: Any) -> tuple[Array, Any]:
        """Action of one observation, or actions of a batch, and what is remembered."""
        p, (left, inventory, spread, _) = self.params, model.locate(self.params, observation)
        rates = np.broadcast_to(p.initial_rates, (*left.shape, len(PROCESSES)))
        if state is not None:
            begun = left > state.time_left
            if episode_start is not None:
                begun = begun | np.reshape(episode_start, left.shape).astype(np.bool_)
            event, elapsed = model.last_event(p, observation)
            faded = p.base_rates + (state.rates - p.base_rates) * np.exp(-p.decays * elapsed[..., None])
            jumped = faded + p.excitations * (event[..., None] == np.arange(len(PROCESSES)))
            rates = np.where(begun[..., None], rates, jumped)
        distances = self._fitted.depths(left, inventory, spread, rates)
        actions = model.from_quotes(p, distances - p.half_tick * spread[..., None])
        return actions, _Memory(rates, left)


class BestPowerPolicy(BestKnownPolicy):
    """The best policy known; its bounds are simulated when first asked for, and four standard errors are in them.

    Attributes
    ----------
    interval : Interval
        Its own value in the environment as built, and a bound of every policy's.
    """

    _baseline: "HawkesPowerBaseline"

    @property
    def interval(self) -> Interval:
        return self._baseline.interval()

    @property
    def paired_gap(self) -> tuple[float, float]:  # type: ignore[override]  # found when it is asked for
        """As in `BestKnownPolicy`."""
        return self.interval.gap, self.interval.gap_stderr


class Replay(ControlVariate):
    """A value at the start plus what the generator makes of it under what is played, along the replayed step.

    The estimate is unbiased for any policy and any value function; the better the function fits the policy, the less it
    varies.
    """

    def __init__(self, params: Params, function: ValueFunction) -> None:
        self.params, self.function, self.start = params, function, function.initial(params)
        self.record = MARKET.record(params)

    def before(self, decision: Decision) -> Array:
        """What the step adds."""
        half_spread = self.params.half_tick * np.asarray(decision.info["spread"])[:, None]
        distances, gap = half_spread + decision.envs.to_quotes(decision.actions), np.zeros(len(decision.running))
        self.rows = _rows(decision.envs)
        kernels.replay_steps(self.record, self.rows, *self.function, distances, decision.running, gap)
        return gap

    def after(self, step: Step) -> float:
        """Nothing; the replay is checked."""
        for name in ("inventory", "spread"):
            if not np.array_equal(self.rows[name][step.running], step.info[name][step.running]):
                raise AssertionError(f"the replay of a step ended with another {name} than the environment")
        return 0.0


@make_baseline.register(Params)
class HawkesPowerBaseline(SimulatedBaseline):
    """Best policy, paper policies and bounds of the intraday power market."""

    only_bounds = True
    reference = "join_best"
    ours = ("held", "reconstructed", "fitted", "first_order_expansion", "frozen_intensity", "join_best")

    def best_policy(self) -> BestPowerPolicy:
        """The policy with the best lower bound."""
        return BestPowerPolicy(self)

    @functools.cache  # noqa: B019  # baselines are kept anyway
    def best_known(self) -> tuple[str, float]:
        """Name and lower bound of the policy with the best lower bound, kept on disk."""

        def rough(name: str) -> tuple[float, float]:
            value, error = mean_of(self._simulated(name, ROUGH_SEED, ROUGH))
            return value, CERTAIN * error

        def fine(name: str) -> float:
            value, error = mean_of(self._simulated(name, LOWER_SEED))
            return value - CERTAIN * error

        def make() -> Mapping[str, Any]:
            name, lower = best_lower(list(self.policies()), rough, fine)
            return {"name": name, "lower": lower}

        best = kept(self.params, "best known", make, is_named(self.policies()))
        return str(best["name"]), float(best["lower"])

    def interval(self) -> Interval:
        """The certified interval of the optimum, both ends on the same paths, which are kept on disk."""
        return Interval.of(self._simulated(self.best_known()[0], LOWER_SEED), self._upper())

    def bounds(self) -> Bounds:
        """Certified bounds of the optimum."""
        return Bounds(*self.interval().certified, 0.0)

    def upper(self) -> float:
        """The certified upper bound of the optimum."""
        value, error = mean_of(self._upper())
        return value + CERTAIN * error

    def _upper(self) -> Array:
        return upper_estimates(self.params, LOWER_SEED << 32)

    def value(self, observation: Any) -> Array:
        """What can still be reached from an observation, or from each of a batch, by the best value function made.

        That is the fitted one, or that of quotes that rest, where quotes do and it is made for the market.
        """
        return self._valued(self.params).value(observation)

    @staticmethod
    def _valued(params: Params) -> ValuePolicy:
        return HeldPolicy(params) if clock.offset_nodes(params) is not None else FittedPolicy(params)

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """The paper's policies and `ours`: those of value functions, and the plainest one."""
        p = self.params

        def of(distances: Callable[..., Array], control: str = "fitted", **options: Any) -> Callable[[], Policy]:
            return lambda: DistancePolicy(p, functools.partial(distances, p, **options), control)

        remembering = {"reconstructed": lambda: ReconstructedPolicy(p)} if p.observe == "tape" else {}
        held = {"held": lambda: HeldPolicy(p)} if clock.offset_nodes(p) is not None else {}
        return {
            **held,
            **remembering,
            "fitted": lambda: FittedPolicy(p),
            "first_order_expansion": lambda: ValuePolicy(p, "first_order"),
            "frozen_intensity": lambda: ValuePolicy(p, "frozen"),
            "corollary_3": of(closed_forms.corollary_3),
            "corollary_3_as_printed": of(closed_forms.corollary_3, as_printed=True),
            "join_best": of(closed_forms.join_best, control="join_best"),
        }

    def value_of_reference(self) -> float:
        """What joining the best quotes is worth: simulated with the control variate of its own value function."""
        if self.params.observe != "state":  # it does not look at them
            return HawkesPowerBaseline(self.params._replace(observe="state")).reference_value()
        return mean_of(self._simulated(self.reference, REFERENCE_SEED))[0]

    def _simulated(self, name: str, seed: int, most: int = MOST) -> Array:
        """Estimates (paths,) of the value of a policy, kept on disk.

        What the bound of quotes that rest knows of the policy that looks ahead is taken from there.
        """
        if name == "held" and seed == LOWER_SEED and self.params.observe == "state":
            return held_estimates(self.params, seed << 32)[1]
        count = min(paths_for(self.params), most, HELD_MOST if name == "held" else MOST)

        def make() -> Mapping[str, Any]:
            policy = self.policies()[name]()
            variate = self.control_variate(policy)
            return {"estimates": simulated_columns(self.environment(), policy, variate, count, seed << 32)["estimate"]}

        return kept(self.params, (name, seed), make, is_sample("estimates", count))["estimates"]

    def environment(self) -> HawkesPowerVectorEnv:
        """As in `SimulatedBaseline`."""
        return HawkesPowerVectorEnv(1, **self.params.arguments())

    def control_variate(self, policy: Policy) -> ControlVariate:
        """As in `Baseline`, by the value function that a policy names."""
        inner = policy.policy if isinstance(policy, BestKnownPolicy) else policy
        kind = inner.control if isinstance(inner, DistancePolicy) else "fitted"
        return Replay(self.params, solved(self.params, kind))

    def expansions(self, action_space: gymnasium.Space[Any]) -> PowerExpansions:
        """Expansions around policies, with values that are fitted to each (`mmgym.baselines.hawkes_power.expansion`).

        Raises
        ------
        TypeError
            If decisions are not taken at every event, with ``observe="tape"``, or with a `reach_atom`.
        """
        return PowerExpansions(self.params)

    def price_noise(self) -> PriceNoise | None:
        """As in `Baseline`: see `mmgym.baselines.hawkes_power.price_noise`."""
        return price_noise(self.params)

    def examples(self, control_names: Sequence[str]) -> list[dict[str, float]]:
        """Values and best offsets at some times, inventories, spreads and intensities."""
        p = self.params._replace(observe="state")  # rows have intensities of their own, seen or not
        best = self._valued(p)
        rates, rows = np.array(p.initial_rates), []
        for time_left in (p.horizon, 0.5 * p.horizon, 0.1 * p.horizon):
            for inventory in np.unique([-p.inventory_limit // 2, 0, 1, p.inventory_limit // 2]).tolist():
                for factor in (1.0, 2.0):
                    now = rates * np.where(np.arange(6) == model.BUY, factor, 1.0)
                    state = (time_left, inventory, p.initial_spread, now)
                    offsets = (best.depths(*state) - p.half_tick * p.initial_spread).tolist()
                    value = float(best.value(model.observe(p, *state)))
                    names = {"time_left": time_left, "inventory": inventory, "spread": p.initial_spread}
                    controls = dict(zip(control_names, offsets, strict=True))
                    rows.append({**names, "buy_rate": float(now[model.BUY]), "value": value, **controls})
        return rows


def _rows(envs: Any) -> Array:
    """Rows of state, as kernels take them, of a batch of environments."""
    state = envs.get_state()
    rows = np.zeros(len(state["needs_reset"]), MARKET.row_dtype)
    for name in MARKET.state.names or ():
        rows[name] = state[name]
    rows["s0"], rows["s1"] = state["streams"].T
    return rows
