"""The public calls on the baseline of an environment: its optimum and its named policies."""

from typing import Any

from mmgym.baselines.baseline import Baseline, FiniteBaseline, OptimalPolicy, PaperPolicies, baseline_of, environment_of
from mmgym.baselines.choices import FrozenChoices
from mmgym.baselines.expansion import Expansions
from mmgym.baselines.frozen import FrozenProblem
from mmgym.baselines.policy import RandomPolicy
from mmgym.baselines.table_policy import MixedTablePolicy, TablePolicy, table_policy

__all__ = [
    "Baseline",
    "FiniteBaseline",
    "MixedTablePolicy",
    "NoOptimum",
    "OptimalPolicy",
    "PaperPolicies",
    "RandomPolicy",
    "TablePolicy",
    "baseline_of",
    "best_known_policy",
    "clipped_share",
    "environment_of",
    "expansions_of",
    "level_of",
    "optimal_policy",
    "paper_policies",
    "params_of",
    "policy_origins",
    "problem_of",
    "random_policy",
    "reference_policy",
    "reference_value",
    "table_policy",
]


class NoOptimum(LookupError):  # noqa: N818  # the public name
    """The optimum of a market is not known, only bounds."""


def params_of(env: Any, **arguments: Any) -> Any:
    """Parameters of an environment, a vector environment, or an id with constructor arguments: see `environment_of`."""
    return environment_of(env, **arguments).params


def problem_of(env: Any, **arguments: Any) -> FrozenProblem:
    """The frozen-control problem of an environment (see `params_of`).

    Raises
    ------
    TypeError
        If the market's states are not finitely many.
    """
    base = environment_of(env, **arguments)
    problem = baseline_of(base).problem
    if problem is None:
        raise TypeError(f"{base.market.name} has continuous coordinates: it has no exact one-step law on finite states")
    return problem


def level_of(env: Any, **arguments: Any) -> str:
    """How exactly the optimum of an environment is known, as its bounds say: "exact", "certified" or "bracketed"."""
    return baseline_of(env, **arguments).bounds().level


def optimal_policy(env: Any, **arguments: Any) -> Any:
    """The optimal policy of an environment as built: its steps, order size, bounds and utility.

    Solutions that took more than half a second are kept in the user's cache folder, or in ``MMGYM_CACHE_DIR``.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.

    Returns
    -------
    OptimalPolicy, or what stands for it where states are not finitely many
        Its ``optimum`` is the criterion from the environment's own initial state.

    Raises
    ------
    NoOptimum
        If only bounds of the optimum are known.
    """
    baseline = baseline_of(env, **arguments)
    if baseline.only_bounds or baseline.bounds().level == "bracketed":
        raise NoOptimum("only bounds of this market's optimum are known: use best_known_policy")
    return baseline.best_policy()


def best_known_policy(env: Any, **arguments: Any) -> Any:
    """The best policy known: the optimal one, or the one with the best lower bound of all that the market knows."""
    return baseline_of(env, **arguments).best_policy()


def paper_policies(env: Any, **arguments: Any) -> dict[str, Any]:
    """Policies to compare with, by name: the papers', and ours (`policy_origins`).

    ``random`` is uniform on the action box if no paper has one.
    """
    base = environment_of(env, **arguments)
    policies: dict[str, Any] = {name: make() for name, make in baseline_of(base).policies().items()}
    return policies | {"random": random_policy(base)}


def policy_origins(env: Any, **arguments: Any) -> dict[str, str]:
    """Where the `paper_policies` of an environment come from: name -> "paper" or "ours"."""
    baseline = baseline_of(env, **arguments)
    papers = [name for name in baseline.policies() if name not in baseline.ours]
    return {name: "paper" if name in papers else "ours" for name in [*baseline.policies(), "random"]}


def random_policy(env: Any, seed: int = 0, **arguments: Any) -> Any:
    """The market's random policy: that of its paper, otherwise uniform on the action box.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    seed : int
        Of the actions drawn by `predict`.
    """
    base = environment_of(env, **arguments)
    return baseline_of(base).random_policy(base.single_spaces()[1], seed)


def reference_policy(env: Any, **arguments: Any) -> Any:
    """The policy whose skill is 0."""
    baseline = baseline_of(env, **arguments)
    return baseline.policies()[baseline.reference]()


def reference_value(env: Any, **arguments: Any) -> float:
    """Criterion of the reference policy, in model units."""
    return baseline_of(env, **arguments).reference_value()


def clipped_share(env: Any, policy: Any, seed: int = 0, **arguments: Any) -> float | None:
    """Share of a policy's decisions at which the quotes that it wants lie outside the action box.

    Parameters
    ----------
    env : environment, vector environment or id
        With an id, ``arguments`` are those of its constructor.
    policy : Policy
        One of the baselines': others do not tell what they want.
    seed : int
        Of the episodes that are played in a market with continuous coordinates.

    Returns
    -------
    float or None
        By the law of the states where they are finitely many, otherwise of 200 episodes; None where the policy does not
        tell.
    """
    base = environment_of(env, **arguments)
    return baseline_of(base).clipped_share(base, policy, seed)


def expansions_of(env: Any) -> Expansions | FrozenChoices:
    """Expansions around policies of an environment; with discrete actions, its choices (`mmgym.baselines.choices`).

    Raises
    ------
    TypeError
        If its actions are neither a box nor discrete, or their values are not known without sampling.
    """
    base = environment_of(env)
    expansions = baseline_of(base).expansions(base.single_spaces()[1])
    if expansions is None:
        raise TypeError(f"exact_gradient has no exact derivatives in the market {base.market.name}")
    return expansions
