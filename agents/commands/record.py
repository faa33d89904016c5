"""``mmgym record``: datasets for offline learning."""

import argparse
import sys
from pathlib import Path

from mmgym.agents.commands.command import Command, add_environment, add_output, environment_arguments, named_policies
from mmgym.printing import show, write_output

__all__ = ["RECORD"]


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_environment(parser)
    text = (
        "optimal, medium (the optimum perturbed to skill 0.5), random (these three by default), or what `score` takes "
        "but all: a paper policy, a table (.npz), or the folder of a run or model"
    )
    parser.add_argument("policy", nargs="*", help=text)
    parser.add_argument("--folder", default="datasets", help="root of the datasets (default datasets)")
    parser.add_argument("--episodes", type=int, default=1000, help="of each policy (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the recording (default 0)")
    add_output(parser)


def _record(options: argparse.Namespace) -> None:
    from mmgym.agents.record import POLICIES, record
    from mmgym.baselines.catalogue import environment_of

    arguments = environment_arguments(options.set)
    env = environment_of(options.env, **arguments)
    wanted = options.policy or list(POLICIES)
    given = named_policies([name for name in wanted if name not in POLICIES], env)
    recordings = record(
        options.env,
        options.folder,
        policies={Path(name).name: given.get(name, name) for name in wanted},
        episodes=options.episodes,
        seed=options.seed,
        arguments=arguments,
        progress=sys.stderr.isatty(),
    )
    rows = {
        part.policy: {
            "steps": part.steps,
            "mean return": part.mean_return,
            "stderr": part.stderr,
            "exact": part.score.mean_return,
            "skill": part.score.skill,
            "method": part.score.method,
            "dataset": part.dataset_id,
        }
        for part in recordings
    }
    first = recordings[0].score
    print(
        f"{options.env}: {options.episodes} episodes a policy; returns of skill 0 and 1: "
        f"{first.reference_return:.10g} and {first.optimum_return:.10g} ({first.level})\n"
    )
    import pandas as pd

    table = pd.DataFrame.from_dict(rows, orient="index")
    show(table, index=True)
    if options.output:
        write_output(options.output, table, "policy")
    folder = Path(options.folder).resolve()
    print(f"\nwritten: MINARI_DATASETS_PATH={folder}, then minari.load_dataset(DATASET)")


EXAMPLE = """\
"medium" is the optimum with as much noise as brings its skill to one half. The scale is exact:
`minari.get_normalized_score` of a return is its skill, and the metadata has the exact value of the very policy that was
recorded, so that an offline learner can be compared with what it learned from.

$ mmgym record --env mmgym/AvellanedaStoikov-v0
mmgym/AvellanedaStoikov-v0: 1000 episodes a policy; returns of skill 0 and 1: 61.03843477 and 66.24387869 (exact)

          steps  mean return   stderr    exact    skill             method                                dataset
optimal  200000      66.2911 0.269749  66.2439        1              exact  mmgym/AvellanedaStoikov-v0/optimal-v0
medium   200000      63.6523 0.274703  63.6561 0.502868  exact, as it acts   mmgym/AvellanedaStoikov-v0/medium-v0
random   200000     -14.1095 0.478227 -14.6917 -14.5483  exact, as it acts   mmgym/AvellanedaStoikov-v0/random-v0
"""

RECORD = Command(
    "record",
    "record episodes of known policies as Minari datasets, with exact reference scores",
    _add_options,
    _record,
    EXAMPLE,
)
