"""Kernels are cached by the sources, and scripts run in processes of their own.

The on-disk cache of kernels is keyed by the sources because numba itself misses edits in functions of other files.
Solutions are kept in the repository: tests neither trust nor touch those in the user's cache.
"""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
os.environ.setdefault("MMGYM_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "mmgym"))


@pytest.fixture
def run_script(tmp_path):
    """Run a script in a fresh process: its standard output. A script that hangs or fails fails the test."""

    def run(source: str, *, timeout: float = 60.0, flags: tuple[str, ...] = ()) -> str:
        script = tmp_path / "script.py"
        script.write_text(source, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, *flags, str(script)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the script and its workers
            output, errors = process.communicate()
            pytest.fail(f"the script hung for {timeout:g} s\n{output}\n{errors}")
        assert process.returncode == 0, f"the script failed with {process.returncode}\n{output}\n{errors}"
        return output

    return run
