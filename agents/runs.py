"""Where a run came from: versions, commit and the seeds that are derived from its seed."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MOST_SEED", "derived_seed", "provenance", "write_json"]

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


def provenance() -> dict[str, Any]:
    """Versions of the packages that matter, Python, platform and the commit of the checkout (None outside one)."""
    versions = {"python": platform.python_version()}
    for name in (
        "mmgym",
        "numpy",
        "numba",
        "scipy",
        "gymnasium",
        "stable-baselines3",
        "sb3-contrib",
        "torch",
        "ortools",
        "minari",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        folder = Path(__file__).resolve().parent
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        commit: str | None = found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"versions": versions, "platform": platform.platform(), "commit": commit}


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary file and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
