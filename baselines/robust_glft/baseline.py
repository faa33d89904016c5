"""The baseline of a player of the robust GLFT market: the best reply to the opponent, and the policies of the game."""

from collections.abc import Callable
from typing import Any

from mmgym.baselines.baseline import FiniteBaseline, PaperPolicies, make_baseline
from mmgym.baselines.frozen import Table
from mmgym.baselines.robust_glft.one_step import RobustProblem, as_table
from mmgym.models.robust_glft import AdversaryParams, MakerParams, opponent_table

__all__ = ["robust_glft_baseline"]


@make_baseline.register(MakerParams)
@make_baseline.register(AdversaryParams)
def robust_glft_baseline(params: Any) -> FiniteBaseline:
    """The baseline of these parameters."""
    maker = params.role == "maker"
    other, names = (AdversaryParams, ("robust", "nominal", "constant")) if maker else (MakerParams, ("worst", "none"))

    def table(name: str) -> Callable[[], Table]:
        return lambda: as_table(*opponent_table(other(*params.game, (name, ""))))

    # Of the paper are the replies to, and the adversary of, its "fixed" parameters.
    papers = PaperPolicies(
        {name: table(name) for name in names},
        reference=names[-1],
        ours=tuple(name for name in names if name not in ("nominal", "none")),
    )
    return FiniteBaseline(params, RobustProblem(params), papers)
