"""Where a result came from: versions, platform and commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["provenance"]

PACKAGES = (
    "mmgym", "numpy", "numba", "scipy", "gymnasium", "stable-baselines3", "sb3-contrib", "torch", "ortools", "minari",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Versions of the packages that matter, Python, platform and the commit of the checkout (None outside one)."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        commit: str | None = answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"versions": versions, "platform": platform.platform(), "commit": commit}
