"""Coordinates that are not observed: random chains against dense matrix exponentials and enumerated histories.

The second method knows nothing of beliefs: it carries the joint probabilities of a history and what is hidden. A
statistical comparison states its false-alarm rate; seeds are fixed.
"""

import itertools
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import minimize

from mmgym import baselines, declare
from mmgym.baselines.baseline import baseline_of
from mmgym.baselines.catalogue import environment_of, level_of
from mmgym.baselines.cells import regret_maps
from mmgym.baselines.declared import DeclaredProblem
from mmgym.baselines.declared.beliefs import Beliefs
from mmgym.checking import check_market
from mmgym.parameters import Choice, Integer, Real, create

ALPHA, GLFT = "mmgym/ShortTermAlpha-v0", "mmgym/GLFT-v0"
HELD, REGIMES, LENGTH = (-1, 0, 1), (0, 1, 2), 0.5


class Params(NamedTuple):
    """A random chain of which the regime may be hidden."""

    seed: Annotated[int, Integer(0, 0, 10**6)]
    horizon: Annotated[float, Real(1.0, 0.1, 100.0)]
    num_steps: Annotated[int, Integer(2, 1, 100)]
    observe: Annotated[Literal["state", "fills", "nothing"], Choice("fills")]
    utility: Annotated[Literal["mean", "cara"], Choice("mean")]
    risk_aversion: Annotated[float, Real(0.3, 0.0, 10.0)]

    @classmethod
    def create(cls, **arguments):
        return create(cls, arguments)


class BoxParams(Params):
    """The same with a continuous control."""


def table(name, shape, low, high):
    def draw(p):
        return np.random.default_rng([p.seed, sum(map(ord, name))]).uniform(low, high, shape)

    return draw, shape


TABLES = {
    "buys": table("buys", (3, 3), 0.1, 3.0),  # by regime and what is held
    "sells": table("sells", (3, 3), 0.1, 3.0),
    "turns": table("turns", (3, 3), 0.1, 2.0),
    "trend": table("trend", (3,), -1.5, 1.5),
}


def stated(name, params, depth, **more):
    """The declaration with a control `depth`, from 0 to 2."""
    return declare.Market(
        name=name,
        params=params,
        coordinates=[
            declare.Coordinate("regime", 0, 2, observed=lambda p: p.observe == "state"),
            declare.Coordinate("held", -1, 1, observed=lambda p: p.observe != "nothing"),
        ],
        controls=[depth, *more.pop("controls", ())],
        events=[
            declare.Event(
                "buy",
                lambda p, x, u: p.buys[x.regime, x.held + 1] * np.exp(-u.depth),
                lambda x: (x.regime, x.held + 1),
                lambda u: 1.0 * u.depth,
                lambda x: x.held < 1,
                "bid",
            ),
            declare.Event(
                "sell",  # and the regime turns with it
                lambda p, x, u: p.sells[x.regime, x.held + 1] / (1.0 + u.depth),
                lambda x: ((x.regime + 1) % 3, x.held - 1),
                lambda u: 1.0 * u.depth,
                lambda x: x.held > -1,
                "ask",
            ),
            declare.Event("turn", lambda p, x: p.turns[x.regime, x.held + 1], lambda x: ((x.regime + 2) % 3, x.held)),
        ],
        start=lambda p: [((0, 0), 0.4), ((2, 0), 0.3), ((1, 1), 0.2), ((2, 1), 0.1)],
        position=lambda x: 1.0 * x.held,
        drift=lambda p, x: p.trend[x.regime],
        variance=lambda x: 0.3,
        running_penalty=lambda x: 0.2 * x.held**2,
        terminal_penalty=lambda x: 0.3 * x.held**2,
        policies={"still": lambda p, x, n: (1, *[0 * x["held"]] * (name == "hidden_choices")), **more.pop("named", {})},
        tables=TABLES,
        **more,
    )


BOX = stated("hidden_box", BoxParams, declare.Box("depth", 0.0, 2.0))
ORDER = declare.Choice("order", -1, 1, allowed=lambda p, x, entry: abs(x.held + entry) <= 1)
IMPULSE = declare.Impulse(lambda x, u: (x.regime, x.held + u.order), lambda u: -0.2 * abs(u.order))
CHOICES = stated(
    "hidden_choices", Params, declare.Choice("depth", 0, 2), controls=[ORDER], impulse=IMPULSE,
    named={"by_regime": lambda p, x, n: (x["regime"], 0 * x["held"])},
)  # fmt: skip
STATES = list(itertools.product(REGIMES, HELD))
START = np.array([{(0, 0): 0.4, (2, 0): 0.3, (1, 1): 0.2, (2, 1): 0.1}.get(state, 0.0) for state in STATES])
SEEN = np.array([held for _, held in STATES])


class Dense:
    """The same chain by dense matrix exponentials."""

    def __init__(self, seed):
        p = Params(seed, 1.0, 2, "fills", "mean", 0.3)
        self.t = {name: draw(p) for name, (draw, _) in TABLES.items()}
        self.end = np.array([-0.3 * held**2 for _, held in STATES])

    def step(self, depth):
        """Transition probabilities (S, S) and expected rewards (S,) of a step."""
        matrix, reward = np.zeros((9, 9)), np.zeros(9)
        for s, (regime, held) in enumerate(STATES):
            moves = [(self.t["turns"][regime, held + 1], ((regime + 2) % 3, held), 0.0)]
            if held < 1:
                moves.append((self.t["buys"][regime, held + 1] * np.exp(-depth), (regime, held + 1), depth))
            if held > -1:
                moves.append((self.t["sells"][regime, held + 1] / (1 + depth), ((regime + 1) % 3, held - 1), depth))
            reward[s] = held * self.t["trend"][regime] - 0.2 * held**2
            for rate, after, pays in moves:
                matrix[s, STATES.index(after)] += rate
                matrix[s, s] -= rate
                reward[s] += rate * pays
        block = expm(LENGTH * np.block([[matrix, reward[:, None]], [np.zeros((1, 10))]]))
        return block[:9, :9], block[:9, 9]

    def decision(self, depth, order):
        """The same of a step with the order before it, where that is allowed."""
        chain, reward = self.step(depth)
        landed = [
            STATES.index((regime, held + order)) if abs(held + order) <= 1 else s
            for s, (regime, held) in enumerate(STATES)
        ]
        paid = [-0.2 * abs(order) if abs(held + order) <= 1 else -np.inf for _, held in STATES]
        return chain[landed], reward[landed] + paid


def played(dense, law, plans):
    """The value of a policy of histories by enumeration: ``plans(n, history)`` is (transitions, rewards)."""

    def rest(n, joint, history):
        if n == 2:
            return joint @ dense.end
        chain, reward = plans(n, history, joint)
        with np.errstate(invalid="ignore"):
            earned = np.where(joint > 0.0, joint * reward, 0.0).sum()
        after = joint @ chain
        return earned + sum(rest(n + 1, np.where(held == SEEN, after, 0.0), (*history, held)) for held in HELD)

    return sum(rest(0, np.where(held == SEEN, law, 0.0), (held,)) for held in HELD)


ACTIONS = list(itertools.product((0.0, 1.0, 2.0), (-1, 0, 1)))


@pytest.fixture(params=range(4))
def seed(request):
    return request.param


@pytest.mark.long
def test_the_partially_observed_optimum_lies_in_the_bracket(seed):
    """Of two steps of choices: the best of all policies of the history, by enumeration."""
    dense = Dense(seed)
    decisions = [dense.decision(*action) for action in ACTIONS]

    def best(n, joint):
        if n == 2 or not joint.any():
            return joint @ dense.end
        values = []
        for chain, reward in decisions:
            if (reward[joint > 0.0] == -np.inf).any():
                continue
            after = joint @ chain
            ahead = sum(best(n + 1, np.where(held == SEEN, after, 0.0)) for held in HELD)
            values.append(joint[joint > 0.0] @ reward[joint > 0.0] + ahead)
        return max(values)

    optimum = sum(best(0, np.where(held == SEEN, START, 0.0)) for held in HELD)
    env = CHOICES.environment(seed=seed)
    baseline = baseline_of(env)
    bounds = baseline.bounds()
    assert bounds.lower <= optimum + 1e-12 and optimum <= bounds.upper + 1e-12
    assert bounds.upper - bounds.lower > 1e-3 and level_of(env) == "bracketed"
    with pytest.raises(baselines.NoOptimum, match="best_known_policy"):
        baselines.optimal_policy(env)
    # with two steps the last is played as well as can be: the first alone may not be
    policies = baseline.policies()
    worth = {}
    for name in ("filtered", "rollout", "memoryless", "still", "by_regime"):
        worth[name] = played(dense, START, following(env, policies[name](), dense))
        assert worth[name] <= optimum + 1e-12
        score = baselines.score(env, policies[name](), episodes=2_000)
        # 20 comparisons of 4.5 standard errors: false-alarm rate 2e-4
        assert abs(score.value - worth[name]) <= 4.5 * score.stderr + 1e-9
    assert worth["rollout"] >= worth["memoryless"] - 1e-9
    assert worth["memoryless"] >= max(worth["still"], worth["by_regime"]) - 1e-9


def following(env, policy, dense):
    """What a policy plays along histories, and its belief against the enumerated joint probabilities."""

    def plan(n, history, joint):
        state = None
        for step, held in enumerate(history):
            observation = np.array([step / 2, held], dtype=np.float32)
            action, state = policy.predict(observation, state=state)
        if joint.any() and not policy.markov:
            likely = (joint / joint.sum())[held == SEEN]
            np.testing.assert_allclose(state.belief[0], likely, atol=1e-11)
        return dense.decision(*env.to_quotes(np.asarray(action)))

    return plan


@pytest.mark.long
def test_tables_of_what_is_observed(seed):
    """Their exact score, and the best of them, by dense matrices; scipy does not find a better one from there."""
    dense, env = Dense(seed), BOX.environment(seed=seed)
    problem, baseline = baseline_of(env).problem, baseline_of(env)

    def value(depths):
        law, total = START, 0.0
        for n in range(2):
            after = np.zeros(9)
            for held in HELD:
                chain, reward = dense.step(depths[3 * n + held + 1])
                here = np.where(held == SEEN, law, 0.0)
                total, after = total + here @ reward, after + here @ chain
            law = after
        return total + law @ dense.end

    depths = np.random.default_rng(seed).uniform(0.0, 2.0, 6)
    played = env.to_quotes(env.from_quotes(depths[:, None]))[:, 0]

    def policy(observations):
        step, held = np.rint(2 * observations[:, 0]).astype(int), np.rint(observations[:, 1]).astype(int)
        return env.from_quotes(depths[3 * np.minimum(step, 1) + held + 1][:, None])

    score = baselines.score(env, policy, markov=True, method="exact")
    assert score.value == pytest.approx(value(played), rel=1e-12)
    alike = problem.observations(0)
    assert alike.shape == (9, 2) and len(np.unique(alike, axis=0)) == 3
    best = np.array([[baseline.memoryless.controls[n, s, 0] for s in range(3)] for n in range(2)]).ravel()
    reached = value(best)
    for start in (best, depths, 2.0 - depths):
        search = minimize(lambda d: -value(d), start, bounds=[(0.0, 2.0)] * 6, tol=1e-12)
        assert -search.fun <= reached + 1e-7


@pytest.mark.long
@pytest.mark.parametrize("number", range(3))
def test_a_hidden_drift_of_which_fills_tell_nothing_leaves_the_optimum_without_it(number):
    """Against the hand-written market without a drift: few and many fills, large penalties."""
    random = np.random.default_rng([number, 22])
    names = ("volatility", "horizon", "running_penalty", "terminal_penalty")
    arguments = dict(zip(names, random.uniform(0.1, 2.0, 4), strict=True)) | {"num_steps": (1, 4, 30)[number]}
    arguments |= {"fill_rate": (3.0, 40.0, 400.0)[number], "inventory_limit": 3.0, "initial_inventory": 2.0}
    shared = {"fill_decay": 1.5, "min_depth": -0.3, "max_depth": 2.5, **arguments}
    alpha = {"alpha": 5.0, "switching_rate": (0.5, 5.0, 50.0)[number]}
    best, env = baselines.optimal_policy(GLFT, **shared), environment_of(ALPHA, observe="fills", **alpha, **shared)
    policy = baselines.optimal_policy(env)
    assert policy.level == "exact" and policy.optimum == pytest.approx(best.optimum, rel=1e-11)
    assert float(policy.value(env.reset(seed=0)[0])) == pytest.approx(best.optimum, rel=1e-11)
    constant = baselines.paper_policies(env)["constant"]
    score = baselines.score(env, constant, risk="exact")
    seen = baselines.score(ALPHA, baselines.paper_policies(ALPHA, **alpha, **shared)["constant"], **alpha, **shared)
    assert (score.value, score.std, score.pnl_std) == (seen.value, seen.std, seen.pnl_std)  # of any that does not look
    sampled = baselines.score(env, constant, method="simulated", episodes=1_000)
    assert abs(sampled.value - score.value) < 4.5 * sampled.stderr + 1e-9  # three comparisons: false-alarm rate 2e-5
    cells = regret_maps(env, {"constant": constant})["constant"].cells["inventory"]
    assert cells.sum() == pytest.approx(score.regret, rel=1e-8, abs=1e-10)


@pytest.mark.long
def test_environments_show_what_is_observed():
    for market in (BOX, CHOICES):
        check_market(market.environment, num_steps=3)
    assert BOX.environment(observe="state").observation_space.shape == (3,)
    env = CHOICES.environment(seed=1)
    observation, info = env.reset(seed=0)
    assert observation.shape == (2,) and "regime" in info
    assert np.array_equal(env.masks(observation), env.action_masks())
    assert CHOICES.guess(env.params).tolist() == [1, 0]
    by_regime = baselines.paper_policies(env)["by_regime"]
    assert np.array_equal(by_regime.controls[0, :, 0], np.ones(9))  # the regime that is guessed


@pytest.mark.long
def test_randomised_markets_are_bracketed_by_means_over_their_law(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGYM_CACHE_DIR", str(tmp_path))
    lengths = (0.5, 2.0)
    env = CHOICES.environment(seed=2, randomise={"horizon": ("choice", list(lengths))})
    baseline = baseline_of(env)
    markets = [baseline_of(CHOICES.environment(seed=2, horizon=length)) for length in lengths]
    upper = np.mean([market.bounds().upper for market in markets])
    assert baseline.bounds().upper == pytest.approx(upper, rel=1e-12) and baseline.bounds().lower < upper
    for name in ("rollout", "still"):
        score = baselines.score(env, baseline.policies()[name](), method="simulated", episodes=4_000)
        assert score.value < upper + 4.0 * score.stderr
        if name == "still":  # one comparison of 4.5 standard errors: false-alarm rate 7e-6
            worth = np.mean([market.criterion_value(market.policies()[name]()) for market in markets])
            assert abs(score.value - worth) < 4.5 * score.stderr


def quiet(number, effect=None, turns=None):
    """A market in which nothing tells of the regime, or what is given does."""
    return declare.Market(
        name=f"quiet_{number}",
        params=type(f"QuietParams{number}", (Params,), {"__module__": __name__}),
        coordinates=[declare.Coordinate("regime", 0, 2, observed=False), declare.Coordinate("held", -1, 1)],
        controls=[declare.Box("depth", 0.0, 1.0)],
        events=[
            declare.Event(
                "buy",
                lambda u: 2.0 - u.depth,
                effect or (lambda x: (x.regime, x.held + 1)),
                lambda u: 1.0 * u.depth,
                lambda x: x.held < 1,
            ),
            declare.Event("turn", turns or by_what_is_held, lambda x: ((x.regime + 1) % 3, x.held)),
        ],
        start=lambda p: [((0, 0), 0.5), ((1, min(p.seed, 1)), 0.5)],
        policies={"still": lambda p, x, n: (0.5,)},
    )


def by_what_is_held(p, x):
    return 1.0 + x.regime + p.risk_aversion * x.held


@pytest.mark.long
def test_the_best_table_is_called_the_optimum_only_where_nothing_tells_of_what_is_hidden():
    def silent(market, **arguments):
        return Beliefs(DeclaredProblem(market, market.params.create(**arguments))).never_move

    market = quiet(0)
    assert silent(market, risk_aversion=0.0)
    assert not silent(market, risk_aversion=0.0, seed=1)  # it is correlated at the start
    assert not silent(market, risk_aversion=0.1)
    assert not silent(quiet(1, effect=lambda x: ((x.regime + 1) % 3, x.held + 1)))
    assert not silent(quiet(2, turns=lambda u: 1.0 + 0.5 * u.depth))


@pytest.mark.long
def test_refused():
    with pytest.raises(ValueError, match="regime, held are all coordinates"):
        BOX.environment(observe="nothing")
    with pytest.raises(ValueError, match="utility = 'cara' is not allowed where regime is not observed"):
        BOX.environment(utility="cara")
    with pytest.raises(ValueError, match="utility = 'cara' is not allowed where signal is not observed"):
        baselines.score(ALPHA, "", observe="fills", utility="cara")
    peeking = declare.Choice("order", -1, 1, allowed=lambda p, x, entry: x.step != 1 or entry < 2 - x.regime)
    market = stated(
        "hidden_masks", type("MaskParams", (Params,), {"__module__": __name__}), declare.Choice("depth", 0, 2),
        controls=[peeking], named={"still": lambda p, x, n: (1, 0)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"lambda.* other entries of order .*a mask must not depend on regime"):
        market.environment(num_steps=9)
