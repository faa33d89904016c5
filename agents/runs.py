"""Seeds that are derived from the seed of a run."""

import numpy as np

__all__ = ["MOST_SEED", "derived_seed"]

MOST_SEED = 2**32 - 1  # of a run: numpy's global generator, from which Stable-Baselines3 draws, takes no larger one
PURPOSES = ("environment", "evaluation", "recording")


def derived_seed(run_seed: int, purpose: str) -> int:
    """A 64-bit base seed for environments: neighbouring run seeds never share streams.

    Parameters
    ----------
    run_seed : int
        Seed of the run, >= 0.
    purpose : str
        One of `PURPOSES`: training and evaluation use different streams.
    """
    return int(np.random.SeedSequence([run_seed, PURPOSES.index(purpose)]).generate_state(1, np.uint64)[0])
