"""The on-disk cache of compiled kernels is keyed by the sources: numba itself misses edits in functions of other files."""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def source_hash() -> str:
    """A hash of every Python source of the three packages."""
    digest = hashlib.sha256()
    for package in ("mmgym", "baselines", "agents"):
        for source in sorted((REPOSITORY / package).rglob("*.py")):
            digest.update(str(source.relative_to(REPOSITORY)).encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


# Before anything imports numba; processes that tests start inherit it.
os.environ.setdefault("NUMBA_CACHE_DIR", str(REPOSITORY / ".numba_cache" / source_hash()))
